"""What is taken away next: granularity, allocation, and how far a list of moves has to be followed.

A move takes some units of one group away. ``moves_of`` lists a group's moves in the order they must happen, by
granularity; ``ordered`` merges the lists of all groups, by allocation; ``follow`` applies them until a target is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.trimming.groups import Graph

GRANULARITIES = ("filter", "cluster", "channel_multiple")
ALLOCATIONS = ("global", "uniform", "isomorphic")
ORDERS = ("consecutive", "sorted")


@dataclass(frozen=True)
class Move:
    """Units of a group that go together, and the score by which moves of different groups are compared."""

    group: str
    units: tuple[int, ...]
    score: float
    chained: bool = False
    """Leads from one allowed width to the next: without it the group's later moves would miss theirs."""


def moves_of(
    name: str,
    scores: np.ndarray,
    *,
    widths: Sequence[int] | None = None,
    cluster_size: int = 1,
    order: str = "sorted",
    rank_weighted: bool = False,
) -> list[Move]:
    """All moves of one group from its full width down to nothing, in the order they must happen.

    Without ``widths`` clusters of ``cluster_size`` units are made once: of consecutive units, as the public account of
    cluster pruning has it, or of units sorted by score; the last one is smaller where the size does not divide the
    width. The cluster of lowest score goes first. With ``widths`` (allowed widths, from the hardware or multiples of
    something) each move leads to the next narrower one: the units of lowest score ("sorted") or the consecutive run,
    of those that are left, with the lowest score.

    A cluster's score is the sum of its filters' scores F over the number of filters, the public account's G. With
    ``rank_weighted`` each F is first multiplied by the filter's rank in its group (1: lowest) over the number of
    filters there: the public code multiplies by the rank; whether the paper does is unknown. The division keeps groups
    of different width comparable.
    """
    size = len(scores)
    weighed = scores
    if rank_weighted:
        weighed = scores * (np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1) / size
    if widths is None:
        base = np.argsort(scores, kind="stable") if order == "sorted" else np.arange(size)
        chunks = [base[start : start + cluster_size] for start in range(0, size, cluster_size)]
        made = [Move(name, tuple(sorted(chunk.tolist())), float(weighed[chunk].mean())) for chunk in chunks]
        return sorted(made, key=lambda move: move.score)
    left, made = np.arange(size), []
    for narrower in sorted({width for width in widths if 0 < width < size}, reverse=True):
        number = len(left) - narrower
        if order == "sorted":
            chunk = left[np.argsort(scores[left], kind="stable")[:number]]
        else:
            sums = np.convolve(weighed[left], np.ones(number), "valid")
            first = int(np.argmin(sums))
            chunk = left[first : first + number]
        made.append(Move(name, tuple(sorted(chunk.tolist())), float(weighed[chunk].mean()), True))
        left = left[~np.isin(left, chunk)]
    return made


def multiples(size: int, multiple: int) -> list[int]:
    """Allowed widths: the multiples of a number, and the full width."""
    return [*range(multiple, size, multiple), size]


def ordered(graph: Graph, moves: dict[str, list[Move]], allocation: str) -> list[Move]:
    """All groups' moves in one order.

    "global": the group whose next move has the lowest score moves. "uniform": every group loses the same share of its
    units, each rounded to its nearest allowed width. "isomorphic": the same between classes of equal structure (see
    ``structure``), by score within a class.
    """
    if allocation == "uniform":
        classes = {name: name for name in moves}
    elif allocation == "isomorphic":
        classes = {name: structure(graph, name) for name in moves}
    else:
        return _merged(moves)
    found: list[tuple[float, int, Move]] = []
    for number, kind in enumerate(dict.fromkeys(classes.values())):
        members = {name: own for name, own in moves.items() if classes[name] == kind}
        total, gone = sum(graph.groups[name].size for name in members), 0
        for move in _merged(members):
            # Nearest: a move happens when the share asked for passes the middle between before and after.
            found.append(((gone + len(move.units) / 2) / total, number, move))
            gone += len(move.units)
    return [move for _, _, move in sorted(found, key=lambda item: item[:2])]


def structure(graph: Graph, name: str) -> tuple:
    """What makes groups comparable: the kernels and output sizes of the layers that make them, and their width."""
    group = graph.groups[name]
    kinds = {
        (tuple(graph.layers[path].module.weight.shape[2:]), graph.layers[path].shape_out[1:],
         graph.layers[path].depthwise)
        for path in group.producers
    }  # fmt: skip
    return group.size, len(group.producers) > 1, tuple(sorted(kinds))


def _merged(moves: dict[str, list[Move]]) -> list[Move]:
    """Next moves of all groups, lowest score first; equal scores in the order of the network."""
    place, found = dict.fromkeys(moves, 0), []
    for _ in range(sum(map(len, moves.values()))):
        name = min((n for n in moves if place[n] < len(moves[n])), key=lambda n: moves[n][place[n]].score)
        found.append(moves[name][place[name]])
        place[name] += 1
    return found


def follow(budget, moves: Iterable[Move], reached: Callable[[], bool], min_filters: int) -> dict[str, set[int]]:
    """{group: units that went} when moves happen in order until ``reached()``, asked before each.

    A move that would leave a layer fewer than ``min_filters`` channels is left out; others may still happen.
    """
    gone: dict[str, set[int]] = {}
    ended: set[str] = set()
    for move in moves:
        if reached():
            break
        if move.group in ended:
            continue
        units = [(move.group, unit) for unit in move.units]
        if budget.may_go(units, min_filters):
            for unit in units:
                budget.remove(unit)
            gone.setdefault(move.group, set()).update(move.units)
        elif move.chained:
            ended.add(move.group)
    return gone


def target_of_step(ratio: float, step: int, steps: int, schedule: str) -> float:
    """The part of the ratio that step 1..steps aims at: linear, or cubic (gradual pruning, Zhu and Gupta 2018)."""
    if step == steps:
        return ratio
    share = step / steps
    return ratio * (1 - (1 - share) ** 3 if schedule == "polynomial" else share)


def rounded(width: float, allowed: Sequence[int], least: int) -> int:
    """The allowed width nearest to one that is asked for, the wider of two equally near ones, not below ``least``.

    Where no allowed width is at least ``least`` the largest is taken: nothing is skipped and nothing vanishes.
    """
    good = [value for value in allowed if value >= least] or [max(allowed)]
    return min(good, key=lambda value: (abs(value - width), -value)) if math.isfinite(width) else max(good)
