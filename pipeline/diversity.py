"""Constants are bit-exact too: an exactness gate is worth something only if the compared codes are diverse.

Everything here is counted on integer codes; numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Limits:
    """What is asked of codes. ``distinct``: share of distinct output vectors among the inputs, at least;
    ``enough``: so many of them do, whatever the share (None: the share counts alone). ``one_code``: share of one
    quantiser's codes that may sit at one value, at most. ``absent``: classes that may never be predicted (None: all
    but two). ``both_signs``: every layer's accumulators must lie on both sides of zero."""

    distinct: float = 0.90
    enough: int | None = None
    one_code: float = 0.95
    absent: int | None = 1
    both_signs: bool = True


TRAINED_HERE = Limits()
#: Elsewhere networks are trained with few outputs of few bits (a network with one 8-bit output has 256 output vectors
#: at most), with one-bit activations that are mostly 0, for two classes of ten: what is constant is still refused.
TRAINED_ELSEWHERE = Limits(enough=64, one_code=0.9999, absent=None, both_signs=False)


def distinct_share(outputs: np.ndarray) -> float:
    """Distinct rows of ``outputs`` (N, K) as a fraction of N."""
    return len(np.unique(outputs, axis=0)) / len(outputs) if len(outputs) else 0.0


def diversity(
    outputs: np.ndarray,
    quantizers: Mapping[str, np.ndarray],
    accumulators: Mapping[str, tuple[int, int]],
    limits: Limits = TRAINED_HERE,
) -> tuple[bool, str, dict]:
    """Judge whether codes are diverse enough to mean anything: (passed, detail, numbers).

    ``outputs``: (N, K) output codes. ``quantizers``: {name: how often each code occurred}. ``accumulators``:
    {layer: (lowest, highest) accumulator code seen}. Missing evidence shuts the gate: no outputs, no quantisers
    or no accumulators is not diverse.
    """
    outputs = np.asarray(outputs)
    problems = []
    if outputs.ndim != 2 or not outputs.size:
        return False, "there are no output codes", {}
    classes = outputs.shape[1]
    predicted = len(np.unique(outputs.argmax(axis=1)))
    if predicted < (min(2, classes) if limits.absent is None else classes - limits.absent):
        problems.append(f"only {predicted} of {classes} classes are ever predicted")
    share = distinct_share(outputs)
    if share < limits.distinct and (limits.enough is None or round(share * len(outputs)) < limits.enough):
        problems.append(f"only {share:.1%} of the {len(outputs)} output vectors are distinct")
    if not quantizers or not accumulators:
        problems.append("no quantiser or no accumulator was observed")
    shares = {name: _largest_share(counts) for name, counts in quantizers.items()}
    for name, largest in shares.items():
        if not largest <= limits.one_code:
            problems.append(f"{largest:.1%} of the codes of {name} have one value")
    for name, (low, high) in accumulators.items():
        if limits.both_signs and not low < 0 < high:
            problems.append(f"the accumulators of {name} stay on one side of zero ({low}..{high})")
    numbers = {
        "classes_predicted": predicted,
        "classes": classes,
        "distinct_outputs": share,
        "largest_code_share": max(shares.values(), default=1.0),
        "largest_code_share_of": max(shares, key=shares.get) if shares else None,
    }
    good = (
        f"{predicted} of {classes} classes predicted, {share:.1%} of the output vectors distinct, "
        f"at most {numbers['largest_code_share']:.1%} of a quantiser's codes at one value"
    )
    return not problems, "; ".join(problems) or good, numbers


def _largest_share(counts: np.ndarray) -> float:
    counts = np.asarray(counts)
    return float(counts.max() / counts.sum()) if counts.size and counts.sum() else 1.0
