"""Trimming in steps: score, remove the least relevant filters physically, fine-tune, again, until the target is met.

    result = trim(
        model,                       # trained float network, on any device; is not changed
        build=lambda widths: module.build(widths, None, input_shape, classes),
        input_shape=(C, H, W),
        batches=lambda: iterable,    # called once per step; the whole training set as (N, C, H, W) float values, or
                                     # pairs of those and labels (N,)
        finetune=lambda model, step: {...},  # trains the smaller network in place; what it returns goes to history
        criterion="relevance_mean", ratio=0.5, of="macs", steps=4, min_filters=1)

    result.widths    {layer path: out_channels}   -> build(result.widths) fits result.state
    result.state     state_dict after the last fine-tuning
    result.scores    {layer: (filters,) float64}  of the network before any trimming
    result.relevance {layer: (filters,) float64}  the statistic itself, likewise; both (0,) for a layer of ``widths``
                                                  that was not scored (its channels are the network's outputs)
    result.kept      {layer: (kept,) int64}       indices into the untrimmed layer's filters, ascending
    result.removed_at {layer: (filters,) int64}   the step that removed the filter, 0 when it was kept
    result.asked, result.achieved                 removed fraction of ``result.of``, achieved >= asked
    result.before, result.after                   {"macs", "parameters", "filters"} and, where a board was given,
                                                  {"cycles", "lut", "bram18"} as predicted (evidence: estimated)
    result.history   [{"step", "target", "achieved", "macs", "parameters", "filters", "widths", "finetune"}]

Which filters: any criterion of ``criteria`` x granularity x allocation (``moves``) x schedule x target. With widths
given, or from PCA or PFA, each group goes to its own width and ``asked`` is the fraction those widths remove.
Every step is scored anew, on the fine-tuned network. Step k of n aims at a part of the target, see ``target_of_step``.
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
from pipeline.trimming.moves import (
    ALLOCATIONS,
    GRANULARITIES,
    ORDERS,
    Move,
    follow,
    moves_of,
    multiples,
    ordered,
    rounded,
    target_of_step,
)

MEASURES = ("macs", "parameters", "filters")
# Predicted on a board: ``pipeline.trimming.hardware.Hardware``, which is handed in, so that a run without a target on
# hardware does not depend on the cost model.
PREDICTED = ("cycles", "lut", "bram18")
SCHEDULES = ("linear", "polynomial", "one-shot")
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
    batches: Callable[[], Iterable],
    finetune: Callable[[nn.Module, int], dict | None],
    criterion: str = "relevance_mean",
    ratio: float = 0.5,
    of: str = "macs",
    steps: int = 4,
    min_filters: int = 1,
    allocation: str = "global",
    granularity: str = "filter",
    cluster_size: int | str = 8,
    cluster_order: str = "consecutive",
    rank_weighted: bool = False,
    channel_multiple: int = 1,
    schedule: str = "linear",
    widths: dict[str, int] | None = None,
    board: object | None = None,
    seed: int = 0,
) -> Result:
    """Trim until ``ratio`` of ``of`` is removed; see the top of this file.

    ``of``: "macs", "parameters", "filters"; with a ``board`` "cycles", "lut", "bram18" (``Hardware.measure``) or "fit":
    until the board carries the network, whatever the ratio. ``allocation``: one of ``moves.ALLOCATIONS``, "widths" (the
    argument of that name), "pca" or "pfa". ``cluster_size``: a number, or "auto": each layer only to widths at which
    the board's figures step.

    TrimError, before anything is trained: ratio outside [0, 1), unknown words, widths that do not fit, a cluster larger
    than a layer, a target beyond what ``min_filters`` leaves (it says how far one gets). GroupError: a network that
    cannot be traced. CriterionError: no data or no finite activations. HardwareError: no figures for a layer.
    """
    _check(ratio, of, steps, min_filters, criterion, allocation, granularity, cluster_size, cluster_order,
           channel_multiple, schedule, widths, board)  # fmt: skip
    model = copy.deepcopy(model)
    graph = groups.trace(model, input_shape)
    plain, steps = Budget(graph).all(), 1 if schedule == "one-shot" else steps
    goal = _Goal(graph, of, ratio, board)
    before = plain | goal.predicted(Budget(graph))
    if granularity == "cluster" and cluster_size != "auto":
        _refuse_large_clusters(graph, cluster_size)
    final = _given(graph, widths, min_filters) if allocation == "widths" else None

    def listed(graph, scores) -> list[Move]:
        allowed = _allowed(graph, granularity, cluster_size, channel_multiple, board)
        number = cluster_size if granularity == "cluster" and allowed is None else 1
        order = cluster_order if granularity == "cluster" else "sorted"
        made = {
            name: moves_of(name, scores[name], widths=allowed and allowed[name], cluster_size=number, order=order,
                           rank_weighted=rank_weighted and granularity == "cluster")
            for name in graph.groups
        }  # fmt: skip
        return ordered(graph, made, allocation)

    if allocation in ALLOCATIONS:
        nothing = {name: np.zeros(group.size) for name, group in graph.groups.items()}
        _refuse_out_of_reach(graph, goal, listed(graph, nothing), min_filters)
    kept = {path: np.arange(len(unit)) for group in graph.groups.values() for path, unit in group.producers.items()}
    removed_at = {path: np.zeros(len(indices), dtype=np.int64) for path, indices in kept.items()}
    first: tuple[dict, dict] | None = None
    history: list[dict] = []
    names = [*criteria.needed(criterion), *(criteria.needed(allocation) if allocation in criteria.WIDTHS else ())]
    for step in range(1, steps + 1):
        statistics = criteria.collect(graph, batches() if names else (), list(dict.fromkeys(names)), seed)
        scores = {name: criteria.CRITERIA[criterion](group, statistics) for name, group in graph.groups.items()}
        if first is None:
            values = {name: criteria.raw(group, statistics, criterion) for name, group in graph.groups.items()}
            first = per_layer(graph, scores), per_layer(graph, values)
            start = {name: group.size for name, group in graph.groups.items()}
            if allocation in criteria.WIDTHS:
                allowed = _allowed(graph, granularity, cluster_size, channel_multiple, board)
                final = {
                    name: rounded(criteria.WIDTHS[allocation](group, statistics),
                                  allowed[name] if allowed else range(1, group.size + 1), min_filters)
                    for name, group in graph.groups.items()
                }  # fmt: skip
        if ratio == 0 and final is None and of != "fit":
            break
        if final is not None:
            target = target_of_step(1.0, step, steps, schedule)
            keep = _to_widths(graph, scores, start, final, target)
        else:
            target = target_of_step(ratio, step, steps, schedule)
            keep = goal.select(graph, listed(graph, scores), target, step == steps, min_filters)
        for name, units in keep.items():
            for path, unit in graph.groups[name].producers.items():
                stays = np.isin(unit, units)
                removed_at[path][kept[path][~stays]] = step
                kept[path] = kept[path][stays]
        smaller = shrink(graph, keep, build, input_shape)
        record = finetune(smaller, step)
        graph = groups.trace(smaller, input_shape, graph.depthwise)
        now, (shape, _) = Budget(graph).all(), groups.remove(graph, {})
        achieved = goal.removed(Budget(graph))
        history.append(
            {"step": step, "target": target, "achieved": achieved, **now, "widths": shape, "finetune": record}
        )
    widths, state = groups.remove(graph, {})
    scored, values = first
    for path in widths.keys() - kept.keys():
        scored[path] = values[path] = np.zeros(0)
        kept[path], removed_at[path] = np.arange(widths[path]), np.zeros(widths[path], dtype=np.int64)
    budget = Budget(graph)
    achieved = goal.removed(budget)
    asked = achieved if final is not None else ratio
    if of == "fit":
        asked = achieved = float(goal.fits(budget))
    return Result(
        widths, state, scored, values, kept, removed_at, of, asked, achieved, before,
        budget.all() | goal.predicted(budget), history,
    )  # fmt: skip


def _check(ratio, of, steps, min_filters, criterion, allocation, granularity, cluster_size, cluster_order,
           channel_multiple, schedule, widths, board) -> None:  # fmt: skip
    if not 0 <= ratio < 1:
        raise TrimError(f"ratio = {ratio} is not in [0, 1)", fix="0.5 removes half")
    for what, word, known in (
        ("trim a ratio of", of, (*MEASURES, *PREDICTED, "fit")),
        ("allocate", allocation, (*ALLOCATIONS, "widths", *criteria.WIDTHS)),
        ("remove in units of a", granularity, GRANULARITIES),
        ("order clusters", cluster_order, ORDERS),
        ("schedule", schedule, SCHEDULES),
    ):
        if word not in known:
            raise TrimError(f"cannot {what} {word!r}", fix=f"one of {', '.join(known)}")
    if steps < 1 or min_filters < 1 or channel_multiple < 1 or (cluster_size != "auto" and cluster_size < 1):
        raise TrimError("steps, min_filters, cluster_size and channel_multiple must be at least 1")
    if criterion not in criteria.CRITERIA:
        raise TrimError(f"no criterion {criterion!r}", fix=f"one of {', '.join(criteria.CRITERIA)}")
    if (widths is not None) != (allocation == "widths"):
        raise TrimError("widths are given by allocation = \"widths\", and only by it", where="trim.widths")
    needs_board = [of] * (of in (*PREDICTED, "fit")) + ["cluster_size = auto"] * (
        granularity == "cluster" and cluster_size == "auto"
    )
    if needs_board and board is None:
        raise TrimError(f"{needs_board[0]} needs a board's figures", fix="give a board")


def _refuse_large_clusters(graph: groups.Graph, cluster_size: int) -> None:
    for name, group in graph.groups.items():
        if cluster_size > group.size:
            raise TrimError(
                f"a cluster of {cluster_size} filters is larger than the layer, which has {group.size}",
                where=name,
                fix=f"trim.cluster_size of at most {min(group.size for group in graph.groups.values())}, or \"auto\"",
            )


def _given(graph: groups.Graph, widths: dict[str, int], min_filters: int) -> dict[str, int]:
    """{group: units} from {layer: filters}. TrimError for a layer that is not there or cannot have that width."""
    owner = {path: name for name, group in graph.groups.items() for path in group.producers}
    found: dict[str, tuple[int, str]] = {}
    for path, width in widths.items():
        if path not in owner:
            raise TrimError("no layer of this name may be trimmed", where=f"[trim.widths] {path}",
                            fix=f"layers: {', '.join(owner)}")  # fmt: skip
        group = graph.groups[owner[path]]
        filters = len(group.producers[path])
        each = filters // group.size
        if len(np.unique(group.producers[path])) < group.size:
            raise TrimError("its filters are coupled with those of several layers, so a width alone does not say which",
                            where=f"[trim.widths] {path}", fix="trim by a ratio")  # fmt: skip
        if not min_filters <= width <= filters or width % each:
            raise TrimError(
                f"{width} filters do not fit a layer of {filters}" + (f" in steps of {each}" if each > 1 else ""),
                where=f"[trim.widths] {path}",
                fix=f"at least {min_filters}, at most {filters}",
            )
        units, other = found.setdefault(group.name, (width // each, path))
        if units != width // each:
            raise TrimError(f"coupled with {other}, which is given another width", where=f"[trim.widths] {path}",
                            fix="give both the same")  # fmt: skip
    return {name: found.get(name, (group.size, ""))[0] for name, group in graph.groups.items()}


def _to_widths(graph, scores, start: dict[str, int], final: dict[str, int], share: float) -> dict[str, np.ndarray]:
    """{group: kept units}: this share of the way from ``start`` to ``final`` units, lowest scores going first."""
    keep = {}
    for name, group in graph.groups.items():
        units = max(final[name], min(group.size, round(start[name] - share * (start[name] - final[name]))))
        keep[name] = np.sort(np.argsort(scores[name], kind="stable")[group.size - units :])
    return keep


def _allowed(graph, granularity: str, cluster_size, channel_multiple: int, board) -> dict[str, list[int]] | None:
    """{group: allowed unit counts}, None where any will do or clusters are made beforehand."""
    if granularity == "channel_multiple":
        return {name: multiples(group.size, channel_multiple) for name, group in graph.groups.items()}
    if granularity == "cluster" and cluster_size == "auto":
        return board.useful(graph, Budget(graph).size)
    return None


class _Goal:
    """What is asked for, measured on the untrimmed network: how much is gone, and is it enough?"""

    def __init__(self, graph: groups.Graph, of: str, ratio: float, board: object | None):
        self.of, self.ratio, self.board = of, ratio, board
        self.graph = graph
        whole = Budget(graph)
        if of in PREDICTED:
            self._measure = board.measure(graph, of)
        self.whole = None if of == "fit" else self.amount(whole)

    def amount(self, budget: Budget) -> float:
        return self._measure(budget.size) if self.of in PREDICTED else budget.measure(self.of)

    def removed(self, budget: Budget) -> float:
        """The fraction that is gone; for "fit" of the MACs."""
        if self.of == "fit":
            return 1 - budget.measure("macs") / Budget(self.graph).measure("macs")
        return (self.whole - self.amount(budget)) / self.whole

    def fits(self, budget: Budget) -> bool:
        return self.board.carries(self.graph, budget.size)

    def predicted(self, budget: Budget) -> dict[str, float]:
        """{"cycles", "lut", "bram18"} of the fastest plan on the board, of the cheapest where none fits."""
        if self.board is None:
            return {}
        plan = self.board.network(self.graph, budget.size)
        interval = plan.interval()
        return {"cycles": interval, **{name: round(value) for name, value in plan.taken(interval).items()}}

    def reached(self, budget: Budget, target: float) -> bool:
        return self.fits(budget) if self.of == "fit" else self.removed(budget) >= target

    def select(self, graph, moves: list[Move], target: float, last: bool, min_filters: int) -> dict[str, np.ndarray]:
        """{group: kept units} when moves happen until the target is met, or none may happen any more.

        Predictions on hardware take too long to be asked after every move: there the number of moves is found by
        bisection. A smaller network is sometimes slower, so that fewer moves might have done; that many do.
        """
        if self.of in MEASURES:
            budget = Budget(graph)
            gone = follow(budget, moves, lambda: self.reached(budget, target), min_filters)
        else:
            low, high = 0, len(moves)
            while low < high:
                middle = (low + high) // 2
                budget = Budget(graph)
                follow(budget, moves[:middle], lambda: False, min_filters)
                low, high = (low, middle) if self.reached(budget, target) else (middle + 1, high)
            if self.of == "fit" and not last:
                low = round(low * target) if target else low
            budget = Budget(graph)
            gone = follow(budget, moves[:low], lambda: False, min_filters)
        return {
            name: np.setdiff1d(np.arange(group.size), sorted(gone.get(name, ()))) for name, group in
            graph.groups.items()
        }  # fmt: skip


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

    def may_go(self, units: list[tuple[str, int]], min_filters: int) -> bool:
        """Whether every layer that makes channels of these units keeps ``min_filters`` without them."""
        lost: dict[str, int] = {}
        for unit in units:
            for path, side, number in self.touched[unit]:
                if side == 1 and path in self.producers:
                    lost[path] = lost.get(path, 0) + number
        return all(self.size[path][1] - number >= min_filters for path, number in lost.items())

    def remove(self, unit: tuple[str, int]) -> None:
        for path, side, number in self.touched[unit]:
            self.size[path][side] -= number


def _unique_columns(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    columns, number = np.unique(pairs, axis=1, return_counts=True)
    return columns.T, number


def _refuse_out_of_reach(graph, goal: _Goal, moves: list[Move], min_filters: int) -> None:
    """TrimError when even all moves that may happen do not reach the target."""
    least = Budget(graph)
    follow(least, moves, lambda: False, min_filters)
    if goal.of == "fit":
        if not goal.fits(least):
            plan = goal.board.network(graph, least.size)
            taken = plan.taken(plan.slowest)
            raise TrimError(
                f"the network does not fit {goal.board.board.name} however much is trimmed: with at least "
                f"{min_filters} filter(s) per layer it takes "
                + ", ".join(f"{taken[name]:.0f} {name} of {plan.limits[name]}" for name in taken),
                where=f"{len(graph.groups)} groups of filters that may be trimmed",
                fix="choose a larger board, fewer bits or a smaller network",
            )
        return
    reach = goal.removed(least)
    if reach < goal.ratio:
        raise TrimError(
            f"{goal.ratio:.1%} of the {goal.of} cannot be removed: with at least {min_filters} filter(s) per layer "
            f"{reach:.1%} is the most",
            where=f"{len(graph.groups)} groups of filters that may be trimmed, {goal.whole:.0f} {goal.of}",
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
