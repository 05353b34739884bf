"""How much a filter matters: one function ``(group, statistics) -> scores`` per criterion, lowest is trimmed first.

Relevance (Ressi, Pistellato, Albarelli, Bergamasco, AIxIA 2021, doi 10.1007/978-3-031-08421-8_20): "the output of
its activation function with respect to a representative dataset". The formula is our reading of the public account,
the full text not being at hand: for filter k and its activation phi(z_k),

    R_k = 1/|D| * sum over pictures x in D of stat over positions of phi(z_k(x))

with stat one of ``STATISTICS``, then divided by the mean of |R| over the layer, so that layers of different scale can
be ranked together. Sums run over the data set in one pass, in float64; memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from boards.errors import SlimgateError
from pipeline.trimming.groups import Graph, Group

# (pictures, channels, positions) activations -> (pictures, channels) values.
STATISTICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda activations: activations.mean(2),
    "mean_abs": lambda activations: activations.abs().mean(2),
    "max": lambda activations: activations.amax(2),
    "l2": lambda activations: torch.linalg.vector_norm(activations, dim=2),
    "fraction": lambda activations: (activations > 0).to(torch.float32).mean(2),
}


class CriterionError(SlimgateError):
    """Filters cannot be scored: unknown criterion, no data, or activations that are not numbers."""


@dataclass(frozen=True)
class Statistics:
    """What criteria look at: the traced network (weights: ``graph.layers[path].module``), and per tensor and statistic
    the mean over pictures, (channels,) float64."""

    graph: Graph
    pictures: int
    activations: dict[str, dict[str, np.ndarray]]


def collect(graph: Graph, batches: Iterable[torch.Tensor], names: Sequence[str]) -> Statistics:
    """One pass in evaluation mode over ``batches`` of (N, C, H, W) values, at the tensors the groups are looked at.

    CriterionError: no pictures, unknown statistic, an activation that is infinite or not a number (names the tensor).
    """
    unknown = [name for name in names if name not in STATISTICS]
    if unknown:
        raise CriterionError(f"no statistic {unknown[0]!r}", fix=f"one of {', '.join(STATISTICS)}")
    wanted = {node for group in graph.groups.values() for node in group.tensors}
    watch = _Watch(graph.traced, wanted, names)
    modes = {module: module.training for module in graph.model.modules()}
    pictures = 0
    try:
        graph.model.eval()
        with torch.inference_mode():
            for batch in batches:
                watch.run(batch)
                pictures += len(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not pictures:
        raise CriterionError("no pictures to measure activations on", fix="the training set is empty")
    found = {node: {name: total / pictures for name, total in sums.items()} for node, sums in watch.sums.items()}
    for node, values in found.items():
        if not all(np.isfinite(value).all() for value in values.values()):
            raise CriterionError(
                "activations that are infinite or not a number",
                where=node,
                fix="train with a lower learning rate",
            )
    return Statistics(graph, pictures, found)


class _Watch(fx.Interpreter):
    def __init__(self, traced: fx.GraphModule, wanted: set[str], names: Sequence[str]):
        super().__init__(traced)
        self.wanted, self.names = wanted, names
        self.sums: dict[str, dict[str, np.ndarray]] = {}

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if node.name in self.wanted:
            flat = result.reshape(*result.shape[:2], -1)
            sums = self.sums.setdefault(node.name, dict.fromkeys(self.names, 0.0))
            for name in self.names:
                sums[name] = sums[name] + STATISTICS[name](flat).sum(0, dtype=torch.float64).cpu().numpy()
        return result


def per_unit(values: np.ndarray, unit: np.ndarray, size: int) -> np.ndarray:
    """(size,) mean of the values of each unit's channels; NaN for units without a channel here."""
    here = unit >= 0
    total = np.bincount(unit[here], weights=values[here], minlength=size)
    number = np.bincount(unit[here], minlength=size)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def normalized(scores: np.ndarray) -> np.ndarray:
    """Divided by the mean of their magnitudes (of those that are there); zeros when all of them are zero."""
    scale = np.nanmean(np.abs(scores))
    return scores / scale if scale > 0 else np.where(np.isnan(scores), np.nan, 0.0)


def raw(group: Group, statistics: Statistics, name: str) -> np.ndarray:
    """(units,) the statistic itself, averaged over the tensors at which the group is looked at; in activation units."""
    found = [per_unit(statistics.activations[node][name], unit, group.size) for node, unit in group.tensors.items()]
    return np.nanmean(found, axis=0)


def relevance(name: str) -> Callable[[Group, Statistics], np.ndarray]:
    """The criterion of one statistic.

    A group may be looked at in several tensors: the channels of a residual stream after every add, say. Each tensor is
    normalized by itself before the mean over tensors is taken. Without that the tensor with the largest values, in a
    residual stream the last one, would decide alone; and it is the values after the add that later layers read, so a
    branch's own output before the add, which the other branch may cancel, is not asked.
    """

    def score(group: Group, statistics: Statistics) -> np.ndarray:
        found = [
            normalized(per_unit(statistics.activations[node][name], unit, group.size))
            for node, unit in group.tensors.items()
        ]
        return np.nanmean(found, axis=0)

    return score


# A new criterion is one function and one line. Scores are (units,) float64, comparable between groups.
CRITERIA: dict[str, Callable[[Group, Statistics], np.ndarray]] = {
    "mean": relevance("mean"),
    "mean_abs": relevance("mean_abs"),
    "max": relevance("max"),
    "l2": relevance("l2"),
    "fraction": relevance("fraction"),
}
