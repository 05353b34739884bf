import hashlib

import numpy as np
import pytest

from pipeline import golden
from pipeline.diversity import TRAINED_ELSEWHERE, diversity


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_pixels(bits):
    pixels = np.arange(256, dtype=np.uint8)
    codes = golden.pixels_to_codes(pixels, bits)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, pixels.astype(int) // 2 ** (8 - bits))


@pytest.mark.parametrize("exponent", [-20, -8, 0, 5])
def test_codes_and_values_are_inverse(exponent):
    codes = np.array([-(2**23), -1, 0, 1, 12345, 2**23])
    assert np.array_equal(golden.values_to_codes(golden.codes_to_values(codes, exponent), exponent), codes)


@pytest.mark.parametrize("wrong", [0.3, 2**-12 + 2**-40, np.nan, np.inf])
def test_there_is_no_tolerance(wrong):
    with pytest.raises(golden.NotIntegral):
        golden.values_to_codes(np.array([1.0, wrong]), -12)


def test_huge_values_do_not_wrap():
    with pytest.raises(golden.NotIntegral):
        golden.values_to_codes(np.array([2.0**63]), 0)


@pytest.mark.parametrize("scale", [0.0, -0.5, 0.3, np.nan, np.inf, 1 / 3])
def test_scales_must_be_powers_of_two(scale):
    with pytest.raises(golden.NotIntegral):
        golden.log2_of(scale)


def test_log2():
    assert [golden.log2_of(2.0**k) for k in range(-30, 31)] == list(range(-30, 31))


def test_golden_file_is_deterministic(tmp_path):
    digests = []
    for name in ("a.npz", "b.npz"):
        golden.write(tmp_path / name, np.ones((3, 8, 8, 1)), -np.ones((3, 10)), np.zeros(3), -8, -11)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    with np.load(tmp_path / "a.npz") as got:
        kinds = {name: (got[name].dtype.name, got[name].shape) for name in got.files}
    assert kinds == {
        "input_codes": ("uint8", (3, 8, 8, 1)),
        "output_codes": ("int64", (3, 10)),
        "labels": ("int64", (3,)),
        "input_scale_log2": ("int64", ()),
        "output_scale_log2": ("int64", ()),
    }


def diverse():
    generator = np.random.default_rng(0)
    outputs = generator.integers(-100, 100, (200, 4))
    return outputs, {"act1": np.array([80, 10, 10]), "act2": np.array([1, 1])}, {"conv1": (-5, 9)}


def test_diverse_codes_pass():
    passed, detail, numbers = diversity(*diverse())
    assert passed is True, detail
    assert numbers["largest_code_share"] == 0.8 and numbers["largest_code_share_of"] == "act1"


def test_one_absent_class_is_allowed_two_are_not():
    outputs, quantizers, accumulators = diverse()
    outputs[:, 0] -= 1000
    assert diversity(outputs, quantizers, accumulators)[0]
    outputs[:, 1] -= 1000
    passed, detail, _ = diversity(outputs, quantizers, accumulators)
    assert not passed and "2 of 4 classes" in detail


def test_ninety_of_a_hundred_outputs_must_be_distinct():
    outputs, quantizers, accumulators = diverse()
    for repeated, passes in ((20, True), (21, False)):  # 180 and 179 distinct rows of 200
        some = np.unique(outputs, axis=0)[:200].copy()
        some = np.concatenate([some, np.arange(4 * (200 - len(some))).reshape(-1, 4) + 1000])
        some[:repeated] = some[repeated]
        assert diversity(some, quantizers, accumulators)[0] is passes, repeated


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda o, q, a: (np.ones_like(o), q, a), "distinct"),
        (lambda o, q, a: (np.repeat(o[:20], 10, axis=0), q, a), "10.0% of the 200 output vectors"),
        (lambda o, q, a: (o, q | {"act1": np.array([96, 4])}, a), "96.0% of the codes of act1"),
        (lambda o, q, a: (o, q | {"act1": np.zeros(4)}, a), "100.0% of the codes of act1"),
        (lambda o, q, a: (o, q, a | {"conv2": (0, 9)}), "conv2 stay on one side"),
        (lambda o, q, a: (o, q, a | {"conv2": (-9, 0)}), "conv2 stay on one side"),
        (lambda o, q, a: (o, {}, a), "no quantiser"),
        (lambda o, q, a: (o, q, {}), "no accumulator"),
        (lambda o, q, a: (o[:0], q, a), "no output codes"),
    ],
)
def test_degenerate_codes_shut_the_gate(fault, says):
    passed, detail, _ = diversity(*fault(*diverse()))
    assert passed is False and says in detail.replace("no quantiser or no accumulator", "no quantiser, no accumulator")


def sparse():
    """One 8-bit output, one-bit activations that are mostly 0, accumulators that are never negative."""
    return np.arange(1000).reshape(-1, 1) % 256, {"act1": np.array([998, 2])}, {"conv1": (0, 9)}


def test_of_a_network_trained_elsewhere_less_is_asked():
    assert not diversity(*sparse())[0]
    passed, detail, _ = diversity(*sparse(), TRAINED_ELSEWHERE)
    assert passed is True, detail


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda o, q, a: (o % 63, q, a), "6.3% of the 1000 output vectors"),
        (lambda o, q, a: (o, {"act1": np.array([1000, 0])}, a), "100.0% of the codes of act1"),
        (lambda o, q, a: (np.hstack([o, o + 1, o - 1]), q, a), "only 1 of 3 classes"),
        (lambda o, q, a: (o, {}, a), "no quantiser"),
    ],
)
def test_constant_codes_of_a_network_trained_elsewhere_shut_the_gate(fault, says):
    passed, detail, _ = diversity(*fault(*sparse()), TRAINED_ELSEWHERE)
    assert passed is False and says in detail
