"""Trimming in steps: score, remove the least relevant filters physically, fine-tune, again, until the target is met.

    result = trim(
        model,                       # trained float network, on any device; is not changed
        build=lambda widths: module.build(widths, None, input_shape, classes),
        input_shape=(C, H, W),
        batches=lambda: iterable,    # called once per step; (N, C, H, W) float values of the whole training set
        finetune=lambda model, step: {...},  # trains the smaller network in place; what it returns goes to history
        criterion="mean", ratio=0.5, of="macs", steps=4, min_filters=1)

    result.widths    {layer path: out_channels}   -> build(result.widths) fits result.state
    result.state     state_dict after the last fine-tuning
    result.scores    {layer: (filters,) float64}  layer-normalized, of the network before any trimming
    result.relevance {layer: (filters,) float64}  the statistic itself, likewise; both (0,) for a layer of ``widths``
                                                  that was not scored (its channels are the network's outputs)
    result.kept      {layer: (kept,) int64}       indices into the untrimmed layer's filters, ascending
    result.removed_at {layer: (filters,) int64}   the step that removed the filter, 0 when it was kept
    result.asked, result.achieved                 removed fraction of ``result.of``, achieved >= asked
    result.before, result.after                   {"macs", "parameters", "filters"}
    result.history   [{"step", "target", "achieved", "macs", "parameters", "filters", "widths", "finetune"}]

Ranking is global: of all filters that may go the one with the lowest layer-normalized score goes first, one at a time,
so that the target is passed by less than one filter (one unit, where channels are coupled). Step k of n aims at k/n of
the ratio. Scores are taken anew at every step, on the fine-tuned network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx, nn

from boards.errors import SlimgateError
from pipeline.trimming import criteria, groups

MEASURES = ("macs", "parameters", "filters")
# Physical removal against masking in float64, relative to the largest output.
EXACT = 1e-10


class TrimError(SlimgateError):
    """The target cannot be met, or what was asked is no target."""


@dataclass
class Result:
    """See the top of this file."""

    widths: dict[str, int]
    state: dict[str, torch.Tensor]
    scores: dict[str, np.ndarray]
    relevance: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]
    removed_at: dict[str, np.ndarray]
    of: str
    asked: float
    achieved: float
    before: dict[str, int]
    after: dict[str, int]
    history: list[dict] = field(default_factory=list)


def trim(
    model: nn.Module,
    *,
    build: Callable[[dict[str, int]], nn.Module],
    input_shape: tuple[int, ...],
    batches: Callable[[], Iterable[torch.Tensor]],
    finetune: Callable[[nn.Module, int], dict | None],
    criterion: str = "mean",
    ratio: float = 0.5,
    of: str = "macs",
    steps: int = 4,
    min_filters: int = 1,
) -> Result:
    """Trim until ``ratio`` of ``of`` is removed; see the top of this file.

    TrimError, before anything is trained: ratio outside [0, 1), unknown measure, a target beyond what ``min_filters``
    leaves (it says how far one gets). GroupError: a network that cannot be traced. CriterionError: no data or no
    finite activations.
    """
    if not 0 <= ratio < 1:
        raise TrimError(f"ratio = {ratio} is not in [0, 1)", fix="0.5 removes half")
    if of not in MEASURES:
        raise TrimError(f"cannot trim a ratio of {of!r}", fix=f"one of {', '.join(MEASURES)}")
    if steps < 1 or min_filters < 1:
        raise TrimError("steps and min_filters must be at least 1")
    if criterion not in criteria.CRITERIA:
        raise TrimError(f"no criterion {criterion!r}", fix=f"one of {', '.join(criteria.CRITERIA)}")

    model = copy.deepcopy(model)
    graph = groups.trace(model, input_shape)
    before = Budget(graph).all()
    _refuse_out_of_reach(graph, before, ratio, of, min_filters)
    kept = {path: np.arange(len(unit)) for group in graph.groups.values() for path, unit in group.producers.items()}
    removed_at = {path: np.zeros(len(indices), dtype=np.int64) for path, indices in kept.items()}
    first: tuple[dict, dict] | None = None
    history: list[dict] = []
    for step in range(1, steps + 1):
        statistics = criteria.collect(graph, batches(), [criterion])
        scores = {name: criteria.CRITERIA[criterion](group, statistics) for name, group in graph.groups.items()}
        if first is None:
            values = {name: criteria.raw(group, statistics, criterion) for name, group in graph.groups.items()}
            first = per_layer(graph, scores), per_layer(graph, values)
        if ratio == 0:
            break
        target = ratio * step / steps if step < steps else ratio
        keep = select(graph, scores, before, target, of, min_filters)
        for name, units in keep.items():
            for path, unit in graph.groups[name].producers.items():
                stays = np.isin(unit, units)
                removed_at[path][kept[path][~stays]] = step
                kept[path] = kept[path][stays]
        smaller = shrink(graph, keep, build, input_shape)
        record = finetune(smaller, step)
        graph = groups.trace(smaller, input_shape, graph.depthwise)
        now = Budget(graph).all()
        widths, _ = groups.remove(graph, {})
        history.append(
            {"step": step, "target": target, "achieved": (before[of] - now[of]) / before[of], **now, "widths": widths,
             "finetune": record}
        )  # fmt: skip
    widths, state = groups.remove(graph, {})
    scored, values = first
    for path in widths.keys() - kept.keys():
        scored[path] = values[path] = np.zeros(0)
        kept[path], removed_at[path] = np.arange(widths[path]), np.zeros(widths[path], dtype=np.int64)
    after = Budget(graph).all()
    return Result(
        widths,
        state,
        scored,
        values,
        kept,
        removed_at,
        of,
        ratio,
        (before[of] - after[of]) / before[of],
        before,
        after,
        history,
    )


def per_layer(graph: groups.Graph, per_group: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{layer: (filters,)} from {group: (units,)}: coupled filters share their unit's value."""
    return {
        path: per_group[name][unit] for name, group in graph.groups.items() for path, unit in group.producers.items()
    }


class Budget:
    """MACs, parameters and filters of a traced network while units are taken away one by one."""

    def __init__(self, graph: groups.Graph):
        self.size = {path: [len(layer.inputs), len(layer.outputs)] for path, layer in graph.layers.items()}
        self.producers = {path for group in graph.groups.values() for path in group.producers}
        self.touched: dict[tuple[str, int], list[tuple[str, int, int]]] = {}
        self.costs: list[tuple[list[int], int, bool, int, int]] = []
        for path, layer in graph.layers.items():
            module, norm = layer.module, isinstance(layer.module, groups.NORM_MODULES)
            vectors = [module.weight, module.bias] if norm else [module.bias]
            kernel = 0 if norm else math.prod(module.weight.shape[2:])
            self.costs.append(
                (self.size[path], kernel, layer.depthwise, layer.positions, sum(v is not None for v in vectors))
            )
            for side, ids in enumerate((layer.inputs, layer.outputs)):
                pairs = np.stack([graph.group_of[ids], graph.unit_of[ids]])
                for (group, unit), number in zip(*_unique_columns(pairs[:, pairs[0] >= 0]), strict=True):
                    entry = self.touched.setdefault((graph.names[group], int(unit)), [])
                    entry.append((path, side, int(number)))
        self.other_parameters = 0
        self.other_parameters = sum(p.numel() for p in graph.model.parameters()) - self.measure("parameters")

    def measure(self, of: str) -> int:
        """ "macs" and "parameters" as ``count`` has them; "filters": outputs of all layers that may be trimmed."""
        if of == "filters":
            return sum(self.size[path][1] for path in self.producers)
        total = 0 if of == "macs" else self.other_parameters
        for (inputs, outputs), kernel, depthwise, positions, vectors in self.costs:
            weights = kernel * outputs * (1 if depthwise else inputs)
            total += weights * positions if of == "macs" else weights + vectors * outputs
        return total

    def all(self) -> dict[str, int]:
        return {of: self.measure(of) for of in MEASURES}

    def may_go(self, unit: tuple[str, int], min_filters: int) -> bool:
        """Whether every layer that makes a channel of this unit keeps ``min_filters`` without it."""
        return all(
            self.size[path][1] - number >= min_filters
            for path, side, number in self.touched[unit]
            if side == 1 and path in self.producers
        )

    def remove(self, unit: tuple[str, int]) -> None:
        for path, side, number in self.touched[unit]:
            self.size[path][side] -= number


def _unique_columns(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns, number = np.unique(pairs, axis=1, return_counts=True)
    return columns.T, number


def select(
    graph: groups.Graph,
    scores: dict[str, np.ndarray],
    before: dict[str, int],
    target: float,
    of: str,
    min_filters: int,
) -> dict[str, np.ndarray]:
    """{group: kept units} when the lowest scores go one by one until ``target`` of ``before[of]`` is removed.

    Equal scores go in the order of the network. Stops early when no unit may go any more.
    """
    budget = Budget(graph)
    kept = {name: np.ones(group.size, dtype=bool) for name, group in graph.groups.items()}
    order = [(float(score), place, unit) for place, name in enumerate(graph.names)
             for unit, score in enumerate(scores[name])]  # fmt: skip
    for _, place, unit in sorted(order):
        if removed(budget, before, of) >= target:
            break
        name = graph.names[place]
        if budget.may_go((name, unit), min_filters):
            budget.remove((name, unit))
            kept[name][unit] = False
    return {name: np.flatnonzero(stays) for name, stays in kept.items()}


def removed(budget: Budget, before: dict[str, int], of: str) -> float:
    """The fraction of ``before[of]`` that is gone."""
    return (before[of] - budget.measure(of)) / before[of]


def _refuse_out_of_reach(graph, before: dict[str, int], ratio: float, of: str, min_filters: int) -> None:
    """TrimError when even removing everything that may go does not reach the ratio."""
    anything = {name: np.zeros(group.size) for name, group in graph.groups.items()}
    keep = select(graph, anything, before, 1.0, of, min_filters)
    least = Budget(graph)
    for name, units in keep.items():
        for unit in sorted(set(range(graph.groups[name].size)) - set(units.tolist())):
            least.remove((name, unit))
    reach = removed(least, before, of)
    if reach < ratio:
        raise TrimError(
            f"{ratio:.1%} of the {of} cannot be removed: with at least {min_filters} filter(s) per layer "
            f"{reach:.1%} is the most",
            where=f"{len(graph.groups)} groups of filters that may be trimmed, {before[of]} {of}",
            fix="lower trim.ratio or trim.min_filters",
        )


def shrink(graph: groups.Graph, keep: dict[str, np.ndarray], build, input_shape: tuple[int, ...]) -> nn.Module:
    """The smaller network, proved equal to the masked one in float64 before it is handed out."""
    widths, state = groups.remove(graph, keep)
    smaller = build(widths)
    try:
        smaller.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise TrimError(
            "the model's build(widths) does not give the network that trimming made",
            where="; ".join(line.strip() for line in str(error).splitlines()[1:3]),
            fix="every width in WIDTHS must size its layer and all layers that read it",
        ) from error
    example = next(graph.model.parameters())
    smaller = smaller.to(device=example.device, dtype=example.dtype)
    pictures = torch.rand(4, *input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = masked(graph, groups.alive(graph, keep), pictures)
    with torch.inference_mode():
        got = copy.deepcopy(smaller).cpu().double().eval()(pictures)
    difference = (got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    if not difference <= EXACT:
        raise TrimError(
            f"the smaller network differs from the masked one by {difference:.3g} of its largest output",
            fix="the model's build(widths) must do to the kept channels what the whole network does",
        )
    return smaller


def masked(graph: groups.Graph, living: np.ndarray, pictures: torch.Tensor) -> torch.Tensor:
    """Output (N, classes) of the whole network in float64, evaluation mode, with dead channels zero everywhere."""

    class Masked(fx.Interpreter):
        def run_node(self, node: fx.Node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor) and node.name in graph.channels:
                mask = torch.from_numpy(living[graph.channels[node.name]]).to(result)
                result = result * mask.reshape(1, -1, *[1] * (result.ndim - 2))
            return result

    double = copy.deepcopy(graph.model).cpu().double().eval()
    with torch.inference_mode():
        return Masked(fx.GraphModule(double, graph.traced.graph)).run(pictures)
