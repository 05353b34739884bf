import pytest

from pipeline.statistics import wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: score without continuity correction
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_reference_values(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=6e-5)


def test_bounds():
    assert wilson(10, 10)[1] == 1.0
    assert wilson(28, 29) == pytest.approx([1 - bound for bound in reversed(wilson(1, 29))])
    assert wilson(0, 10)[0] == 0.0
    low, high = wilson(96, 100, confidence=0.99)
    assert low < wilson(96, 100)[0] < 0.96 < wilson(96, 100)[1] < high


@pytest.mark.parametrize("arguments", [(1, 0), (-1, 3), (4, 3), (1, 2, 1.0), (1, 2, 0.0)])
def test_no_proportion(arguments):
    with pytest.raises(ValueError, match=r"not (a proportion|between)"):
        wilson(*arguments)
