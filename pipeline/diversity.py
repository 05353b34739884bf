"""Constants are bit-exact too: an exactness gate is worth something only if the compared codes are diverse.

Everything here is counted on integer codes; numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

#: Share of distinct output vectors among distinct inputs, at least.
DISTINCT_LIMIT = 0.90
#: Share of one quantiser's codes that may sit at one value, at most.
ONE_CODE_LIMIT = 0.95
#: Classes that may never be predicted.
ABSENT_CLASSES_LIMIT = 1


def distinct_share(outputs: np.ndarray) -> float:
    """Distinct rows of ``outputs`` (N, K) as a fraction of N."""
    return len(np.unique(outputs, axis=0)) / len(outputs) if len(outputs) else 0.0


def diversity(
    outputs: np.ndarray,
    quantizers: Mapping[str, np.ndarray],
    accumulators: Mapping[str, tuple[int, int]],
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
    if predicted < classes - ABSENT_CLASSES_LIMIT:
        problems.append(f"only {predicted} of {classes} classes are ever predicted")
    share = distinct_share(outputs)
    if share < DISTINCT_LIMIT:
        problems.append(f"only {share:.1%} of the {len(outputs)} output vectors are distinct")
    if not quantizers or not accumulators:
        problems.append("no quantiser or no accumulator was observed")
    shares = {name: _largest_share(counts) for name, counts in quantizers.items()}
    for name, largest in shares.items():
        if not largest <= ONE_CODE_LIMIT:
            problems.append(f"{largest:.1%} of the codes of {name} have one value")
    for name, (low, high) in accumulators.items():
        if not low < 0 < high:
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
