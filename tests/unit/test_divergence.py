"""Where a simulated stream leaves what was expected, also where it carried too few or too many codes."""

import numpy as np
import pytest

from hls import csim

WANTED = np.arange(24.0).reshape(2, 3, 4)


def test_equal_streams_do_not_diverge():
    assert csim.first_difference(WANTED.copy(), WANTED) is None


def test_the_first_value_that_differs():
    values = WANTED.copy()
    values[1, 0, 2] += 1
    values[1, 2, 2] += 1
    assert csim.first_difference(values, WANTED) == {
        "differing": 2, "sample": 1, "position": [0, 2], "csim_value": 15.0, "expected_value": 14.0}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "differing", "sample", "position", "found", "expected"),
    [
        (np.arange(20.0), 4, 1, [2, 0], None, 20.0),
        (np.arange(26.0), 2, 1, [2, 3], 24.0, None),
        (np.arange(0.0), 24, 0, [0, 0], None, 0.0),
        (np.arange(1.0, 31), 30, 0, [0, 0], 1.0, 0.0),
    ],
)
def test_too_few_and_too_many_values(values, differing, sample, position, found, expected):
    flat = csim.shaped(values, WANTED.shape)
    assert flat.ndim == 1
    assert csim.first_difference(flat, WANTED) == {
        "differing": differing, "sample": sample, "position": position, "csim_value": found, "expected_value": expected,
    }  # fmt: skip


def test_what_is_told_of_a_value_that_never_came():
    found = {"name": "conv", "class": "Conv2D", "of": 24, "oracle": "qonnx",
             **csim.first_difference(np.arange(20.0), WANTED)}  # fmt: skip
    assert csim.told(found, "sample 5") == (
        "first diverging layer: conv (Conv2D), 4 of 24 values, sample 5, position [2, 0]: "
        "C simulation nothing, qonnx 20")
