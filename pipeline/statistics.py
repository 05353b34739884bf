"""Intervals for proportions such as accuracies."""

from math import sqrt
from statistics import NormalDist


def wilson(successes: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, as (low, high) fractions in 0..1.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927), without
    continuity correction. Raises ValueError unless 0 <= successes <= total, total > 0 and 0 < confidence < 1.
    """
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} successes of {total} are not a proportion")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / total, z * z / total
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / total + spread / (4 * total))
    # At the two ends the bound is exactly 0 or 1; rounding must not leave the range.
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == total else min(1.0, center + half)
    return low, high
