"""Reuse factors and strategies for a budget, with proof: how far each layer is folded onto fewer multipliers.

A layer has options (strategy, legal reuse factor), each with its cycles per frame and its resources. Choosing one
option per layer so that the slowest process is as fast as possible under every resource's limit is a multiple-choice
knapsack in several dimensions; OR-tools CP-SAT solves it and proves the optimum. Among the fastest plans the one that
uses least is taken. Everything is deterministic: one worker, a fixed seed, effort bounded by work and not by time.

The interval of a dataflow design is that of its slowest process once its FIFOs are deep enough
(:func:`hls.dataflow.full_speed_depths`), so the minimum found here is the minimum of the model. Latency is not a sum:
for it a linear lower bound is minimised (`fastest_first`), the best plans by that bound are simulated, and the best
of those is taken, with no claim that none is better.

hls4ml 1.3.0 processes one pixel at a time in ``io_stream`` convolutions: beside reuse factor and strategy there is no
parallelism to choose.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ortools.sat.python import cp_model

from boards.errors import SlimgateError
from hls.cost import LayerSpec, legal_reuse_factors
from hls.dataflow import FIRINGS, Network, Process, cycles
from hls.layers import Described

RESOURCES = ("lut", "ff", "dsp", "bram18")
#: The Latency strategy unrolls every multiplication; beyond this many the tools do not finish.
MOST_UNROLLED = 4096
#: Bounds on the solver's work, in its own deterministic units (roughly seconds): for the proof, and for tidying up.
PROOF_EFFORT, TIDY_EFFORT = 60.0, 4.0
#: Resources are compared in this fraction of the limit.
UNIT = 100_000


class FoldingError(SlimgateError):
    """No choice of reuse factors fits, or one that was asked for is not legal."""


@dataclass(frozen=True)
class Option:
    """One way to build a layer. ``cycles`` per frame; ``cost``: resource -> amount, whole numbers."""

    strategy: str
    reuse_factor: int
    cycles: int
    cost: Mapping[str, int]


#: Layer -> its options.
Choices = dict[str, list[Option]]
#: A layer with its strategy and reuse factor -> resource -> amount.
Cost = Callable[[LayerSpec], Mapping[str, float]]


@dataclass(frozen=True)
class Folding:
    """``chosen``: layer -> option. ``interval``: cycles of the slowest process. ``used``: resource -> amount, of the
    layers alone. ``optimal``: the objective is proven; ``least``: so is the resource use among equally good plans.
    ``latency`` (simulated) and ``bound`` (no plan's simulated latency is less, where proven), in cycles, where latency
    was the objective."""

    chosen: dict[str, Option]
    interval: int
    used: dict[str, int]
    optimal: bool
    least: bool
    latency: int | None = None
    bound: int | None = None


# --------------------------------------------------------------------------- options


def legal_options(layer: LayerSpec, strategies: Iterable[str] = ("Resource",),
                  wanted: int | None = None) -> list[tuple[str, int]]:
    """(strategy, reuse factor) that hls4ml builds as asked: its legal factors for Resource; unrolled for Latency, where
    a larger factor does not promise fewer multipliers. ``wanted``: only this factor, which Latency takes as it is."""
    found = []
    for strategy in strategies:
        if strategy == "Resource":
            factors = legal_reuse_factors(layer.n_in, layer.n_out)
            found += [(strategy, factor) for factor in factors if wanted in (None, factor)]
        elif strategy == "Latency":
            found += [(strategy, wanted or 1)] if layer.weights <= MOST_UNROLLED else []
        else:
            raise FoldingError(f"no strategy is called {strategy!r}", fix="Resource or Latency")
    return found


def choices_of(network: Network, layers: Iterable[LayerSpec], cost: Cost, *,
               strategies: Iterable[str] | Mapping[str, Iterable[str]] = ("Resource",),
               pinned: Mapping[str, int] | None = None) -> Choices:
    """Every useful option of every layer: those no other option of the layer beats in cycles and in all resources.

    ``strategies``: to choose from, for all layers or by layer. ``pinned``: layer -> reuse factor that was asked for.
    Raises :class:`FoldingError` when it is not legal.
    """
    processes = {p.name: p for p in network.processes}
    pinned, found = dict(pinned or {}), {}
    for layer in layers:
        allowed = tuple(strategies[layer.name] if isinstance(strategies, Mapping) else strategies)
        wanted = pinned.pop(layer.name, None)
        legal, every = legal_options(layer, allowed, wanted), legal_reuse_factors(layer.n_in, layer.n_out)
        if wanted is not None and "Resource" in allowed and wanted not in every:
            near = sorted(sorted(every, key=lambda f, w=wanted: abs(f - w))[:4])
            raise FoldingError(f"reuse factor {wanted} is not legal for layer {layer.name}", where="[hls]",
                               fix=f"legal and near: {', '.join(map(str, near))}")
        if not legal:
            raise FoldingError(f"{layer.weights} multiplications cannot be unrolled ({MOST_UNROLLED} at most)",
                               where=layer.name, fix="use the Resource strategy")
        options = []
        for strategy, factor in legal:
            spec = replace(layer, strategy=strategy.lower(), reuse_factor=factor)
            options.append(Option(strategy, factor, cycles(folded(processes[layer.name], strategy, factor),
                                                           network.timing),
                                  {r: math.ceil(v) for r, v in cost(spec).items()}))
        found[layer.name] = undominated(options)
    if pinned:
        raise FoldingError(f"no layer is called {min(pinned)}", where="[hls.layers]",
                           fix=f"layers of this network: {', '.join(found)}")
    return found


def undominated(options: Iterable[Option]) -> list[Option]:
    """The options that no other beats or equals in cycles and every resource, fastest first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cycles, *(o.cost.get(r, 0) for r in RESOURCES), o.reuse_factor)):
        if not any(all(k.cost.get(r, 0) <= option.cost.get(r, 0) for r in RESOURCES) for k in kept):
            kept.append(option)
    return kept


def folded(process: Process, strategy: str, reuse_factor: int) -> Process:
    """The process with another reuse factor and strategy."""
    shape = process.shape | {"reuse_factor": reuse_factor}
    return replace(process, shape=shape | {"resource": int(strategy == "Resource")} if "resource" in shape else shape)


def apply(network: Network, chosen: Mapping[str, Option]) -> Network:
    """The network as a plan makes it."""
    made = [folded(p, chosen[p.name].strategy, chosen[p.name].reuse_factor) if p.name in chosen else p
            for p in network.processes]
    return Network(made, network.bits, network.timing)


def floor_of(network: Network, layers: Iterable[str]) -> int:
    """Cycles of the slowest process that has no reuse factor: no plan is faster."""
    layers = set(layers)
    return max(cycles(p, network.timing) for p in network.processes if p.name not in layers)


def limits(resources: Mapping[str, int], margin: float = 0.2, fixed: Mapping[str, int] | None = None) -> dict[str, int]:
    """What layers may use of a board: each resource less the margin (a fraction) and less what is used anyway.

    ``resources``: as in a board file (bram36), or with bram18.
    """
    if not 0 <= margin < 1:
        raise FoldingError(f"a margin of {margin:g} leaves nothing", fix="a fraction from 0 to below 1")
    have = ({"bram18": 2 * resources["bram36"]} if "bram36" in resources else {}) | dict(resources)
    if missing := [r for r in RESOURCES if r not in have]:
        raise FoldingError(f"the board does not say how much {missing[0]} it has", where="[resources]")
    return {r: math.floor(have[r] * (1 - margin)) - (fixed or {}).get(r, 0) for r in RESOURCES}


# --------------------------------------------------------------------------- the solver


class _Model:
    """One boolean per layer and option, exactly one true per layer, resources within limits."""

    def __init__(self, choices: Choices, limit: Mapping[str, int] | None):
        self.choices, self.model = choices, cp_model.CpModel()
        self.pick = {n: [self.model.new_bool_var("") for _ in options] for n, options in choices.items()}
        for picks in self.pick.values():
            self.model.add_exactly_one(picks)
        for resource in RESOURCES if limit is not None else ():
            self.model.add(self.total(resource) <= limit[resource])

    def weighted(self, name: str, values: Iterable[int]):
        """What of ``values``, one per option, the choice takes."""
        return cp_model.LinearExpr.weighted_sum(self.pick[name], list(values))

    def over_all(self, value: Callable[[Option], int]):
        """Sum over the layers of what the chosen option is worth."""
        return cp_model.LinearExpr.weighted_sum([x for picks in self.pick.values() for x in picks],
                                                [value(o) for options in self.choices.values() for o in options])

    def total(self, resource: str):
        return self.over_all(lambda o: o.cost.get(resource, 0))

    def share(self, board: Mapping[str, int]):
        """Sum over the resources of the fraction used, in `UNIT`."""
        return self.over_all(lambda o: sum(o.cost.get(r, 0) * UNIT // max(board[r], 1) for r in RESOURCES))

    def within(self, interval: int) -> "_Model":
        for name, options in self.choices.items():
            for option, x in zip(options, self.pick[name], strict=True):
                if option.cycles > interval:
                    self.model.add(x == 0)
        return self

    def minimize(self, objective, effort: float) -> tuple[dict[str, Option] | None, bool]:
        """(the best choice found, whether it is proven); (None, True) when it is proven that there is none."""
        self.model.minimize(objective)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        solver.parameters.max_deterministic_time = effort
        status = solver.solve(self.model)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, status == cp_model.INFEASIBLE
        chosen = {n: self.choices[n][next(i for i, x in enumerate(picks) if solver.boolean_value(x))]
                  for n, picks in self.pick.items()}
        self.value = round(solver.objective_value)
        return chosen, status == cp_model.OPTIMAL


def _unsolved() -> FoldingError:
    return FoldingError(f"no plan was found and none excluded within {PROOF_EFFORT:g} units of the solver's work",
                        fix="pin the reuse factors of some layers")


def _used(chosen: Mapping[str, Option]) -> dict[str, int]:
    return {r: sum(o.cost.get(r, 0) for o in chosen.values()) for r in RESOURCES}


def _result(chosen, floor: int, optimal: bool, least: bool) -> Folding:
    return Folding(chosen, max([floor, *(o.cycles for o in chosen.values())]), _used(chosen), optimal, least)


def fastest(choices: Choices, limit: Mapping[str, int], *, floor: int = 0) -> Folding:
    """The plan of least interval within ``limit``, and of least resources among those.

    ``floor``: cycles of the slowest process without a reuse factor. Raises :class:`FoldingError` with the resource that
    is short, by how much, and the layer that takes most of it.
    """
    problem = _Model(choices, limit)
    slowest = max([floor, *(max(o.cycles for o in options) for options in choices.values())])
    interval = problem.model.new_int_var(floor, slowest, "interval")
    for name in choices:
        problem.model.add(problem.weighted(name, [o.cycles for o in choices[name]]) <= interval)
    chosen, proven = problem.minimize(interval, PROOF_EFFORT)
    if chosen is None:
        raise shortage(choices, limit) if proven else _unsolved()
    best = _result(chosen, floor, proven, False)
    return _tidy(choices, limit, limit, best, floor)


def _tidy(choices, limit, board, best: Folding, floor: int) -> Folding:
    """Least resources at the same interval."""
    problem = _Model(choices, limit).within(best.interval)
    for name, option in best.chosen.items():
        problem.model.add_hint(problem.pick[name][choices[name].index(option)], 1)
    chosen, proven = problem.minimize(problem.share(board), TIDY_EFFORT)
    return _result(chosen, floor, best.optimal, proven) if chosen is not None else best


def cheapest(choices: Choices, interval: int, board: Mapping[str, int], *, floor: int = 0) -> Folding:
    """The plan of least resources (sum of the fractions of ``board`` used) among those no slower than ``interval``
    cycles a frame; whether it fits the board is for the caller to see in ``used``. What fits goes first: of two plans
    the one that overshoots no resource of ``board`` is taken.

    Raises :class:`FoldingError` when a layer cannot be that fast at any cost.
    """
    if floor > interval:
        raise FoldingError(f"{interval} cycles a frame are too few: a process without a reuse factor takes {floor}",
                           fix=f"ask for {floor} cycles or more, or a faster clock")
    for name, options in choices.items():
        if (best := min(o.cycles for o in options)) > interval:
            raise FoldingError(f"layer {name} takes {best} cycles a frame at its fastest, {interval} are asked for",
                               where=name, fix="fewer frames per second, a faster clock, or fewer pixels at this layer")
    for limit in (board, None):
        problem = _Model(choices, limit).within(interval)
        chosen, proven = problem.minimize(problem.share(board), PROOF_EFFORT)
        if chosen is not None:
            return _result(chosen, floor, proven, proven)
    raise _unsolved()


def interval_for(frames_per_second: float, clock_mhz: float) -> int:
    """Whole cycles a frame may take."""
    if not 0 < frames_per_second < math.inf:
        raise FoldingError(f"{frames_per_second:g} frames per second are no rate", fix="a number above 0")
    return math.floor(clock_mhz * 1e6 / frames_per_second)


# --------------------------------------------------------------------------- latency


def fastest_first(choices: Choices, limit: Mapping[str, int], network: Network, *, plans: int = 8) -> Folding:
    """The plan of least simulated latency among the ``plans`` best by a lower bound, and the plan of least interval.

    The bound, linear in the choice: a layer's first output waits for the first output of the layer before it, for as
    much of that layer's frame as its window needs, and for its own fill; its last output comes no sooner than its own
    work after its first, or the drain of its pipeline after the last input. Waiting in between is what it leaves out.
    """
    phases = {n: [_phases(network, n, o) for o in options] for n, options in choices.items()}
    before = _predecessors(network, set(choices))
    problem = _Model(choices, limit)
    most = 2 * sum(max(o.cycles for o in options) for options in choices.values())
    first = {n: problem.model.new_int_var(0, most, "") for n in choices}
    last = {n: problem.model.new_int_var(0, most, "") for n in choices}
    total = problem.model.new_int_var(0, most, "")
    for name in choices:
        fill, rest, drain = (problem.weighted(name, [p[i] for p in phases[name]]) for i in range(3))
        problem.model.add(first[name] >= fill)
        problem.model.add(last[name] >= first[name] + rest)
        problem.model.add(total >= last[name])
        for source in before[name]:
            wait = problem.weighted(source, [int(p[1] * phases[name][0][3]) for p in phases[source]])
            problem.model.add(first[name] >= first[source] + wait)
            problem.model.add(first[name] >= first[source] + drain)
            problem.model.add(last[name] >= last[source] + drain)
    floor = floor_of(network, choices)
    best = fastest(choices, limit, floor=floor)
    best = replace(best, optimal=False, latency=_latency(network, best.chosen))
    bound = None
    for turn in range(plans):
        chosen, proven = problem.minimize(total, PROOF_EFFORT if turn == 0 else 1.0)
        if chosen is None:
            break
        if turn == 0 and proven:
            bound = problem.value
        latency = _latency(network, chosen)
        if latency < best.latency:
            best = replace(_result(chosen, floor, False, False), latency=latency)
        taken = [problem.pick[n][choices[n].index(o)] for n, o in chosen.items()]
        problem.model.add_bool_or([x.negated() for x in taken])
    return replace(best, bound=bound)


def _latency(network: Network, chosen: Mapping[str, Option]) -> int:
    return apply(network, chosen).simulate(None, frames=2).latency


def _phases(network: Network, name: str, option: Option) -> tuple[int, int, int, float]:
    """Cycles to the first output, from it to the last, of one window; and the part of its input that must have come
    before the first output."""
    process = folded(next(p for p in network.processes if p.name == name), option.strategy, option.reuse_factor)
    reads, writes, step, delay = FIRINGS[process.kind](process.shape, network.timing)
    outputs = writes.nonzero()[0]
    fill = int(step[: outputs[0]].sum() + delay[outputs[0]])
    rest = int(step[: outputs[-1]].sum() + delay[outputs[-1]]) - fill
    return fill, rest, int(delay[outputs[-1]]), float(reads[: outputs[0] + 1].sum() - 1) / max(int(reads.sum()), 1)


def _predecessors(network: Network, layers: set[str]) -> dict[str, set[str]]:
    """For each layer with options the nearest ones upstream."""
    found: dict[str, set[str]] = {}
    behind: dict[str, set[str]] = {}
    for process in network.processes:
        sources = {network.writer[fifo].name for fifo in process.inputs}
        upstream = set().union(*({s} if s in layers else behind[s] for s in sources))
        behind[process.name] = upstream
        if process.name in layers:
            found[process.name] = upstream
    return found


# --------------------------------------------------------------------------- when nothing fits


@dataclass(frozen=True)
class Shortage:
    """Even at the cheapest choice ``resource`` is short by ``missing`` beyond the ``available``; ``layer`` takes most
    of it, ``takes``."""

    resource: str
    available: int
    missing: int
    layer: str
    takes: int
    changes: tuple[str, ...] = field(default=())


class DoesNotFit(FoldingError):
    """No plan fits; ``shortage`` says why, ``chosen`` is the plan that overshoots least."""

    exit_code = 1

    def __init__(self, shortage: Shortage, chosen: Mapping[str, Option] | None = None):
        s = shortage
        super().__init__(
            f"no plan fits: an estimated {s.available + s.missing:,} {s.resource.upper()} are needed at least, "
            f"{s.missing:,} more than the {s.available:,} allowed; {s.layer} takes most of them ({s.takes:,})",
            where=s.layer,
            fix="one of: " + "; ".join(s.changes) if s.changes else "narrower layers, fewer bits or a larger board",
        )
        self.shortage, self.chosen = shortage, chosen


def shortage(choices: Choices, limit: Mapping[str, int], changes: Iterable[str] = ()) -> DoesNotFit:
    """What is short when nothing fits: the plan that overshoots its limits least tells."""
    problem = _Model(choices, None)
    excess = problem.model.new_int_var(0, 10**12, "excess")
    for resource in RESOURCES:
        room = max(limit[resource], 1)
        problem.model.add(problem.total(resource) * UNIT <= (excess + UNIT) * room)
    chosen, _ = problem.minimize(excess, TIDY_EFFORT)
    return over(chosen, limit, changes)


def over(chosen: Mapping[str, Option], limit: Mapping[str, int], changes: Iterable[str] = ()) -> DoesNotFit:
    """What a choice is short of."""
    used = _used(chosen)
    resource = max(RESOURCES, key=lambda r: (used[r] - limit[r]) / max(limit[r], 1))
    layer = max(chosen, key=lambda n: chosen[n].cost.get(resource, 0))
    return DoesNotFit(Shortage(resource, limit[resource], used[resource] - limit[resource], layer,
                               chosen[layer].cost.get(resource, 0), tuple(changes)), chosen)


def fits(choices: Choices, limit: Mapping[str, int]) -> bool:
    """Whether any plan is within ``limit``."""
    chosen, proven = _Model(choices, limit).minimize(0, PROOF_EFFORT)
    if chosen is None and not proven:
        raise _unsolved()
    return chosen is not None


#: Widest activations a recipe can ask for; what is wider behind a layer are its sums.
_QUANTISED = 8


def fewer_bits(found: list[Described]) -> Iterator[tuple[str, list[Described]]]:
    """One bit less at a time for weights and activations, down to 2; the network's input and its raw outputs keep
    theirs."""
    last, before = _last(found), found
    for less in range(1, 8):
        made: dict[str, Described] = {}
        for item in found:
            spec = item.spec
            source = made[item.reads[0]].spec.output_bits if item.reads else spec.input_bits
            keeps = not item.reads or item.name in last or spec.output_bits <= 2
            quantised = item.multiplies or spec.kind in ("activation", "threshold")
            changes = {"input_bits": source, "output_bits": spec.output_bits if keeps else
                       max(2, spec.output_bits - less) if quantised else source}
            if item.multiplies:
                bits = max(2, spec.weight_bits - less)
                saved = spec.weight_bits - bits + spec.input_bits - source
                if spec.output_bits > _QUANTISED and not keeps:  # whole sums leave it, as wide as they come
                    changes["output_bits"] = spec.output_bits - saved
                changes |= {"weight_bits": bits, "accumulator_bits": max(4, spec.accumulator_bits - saved),
                            "powers_of_two": None, "csd_digits": None,
                            "used_weight_bits": min(bits, spec.used_weight_bits or bits)}
            made[item.name] = replace(item, spec=replace(spec, **changes))
        if list(made.values()) == before:
            return
        before = list(made.values())
        yield f"{less} bit{'s' if less > 1 else ''} less for weights and activations", before


def narrower(found: list[Described]) -> Iterator[tuple[str, list[Described]]]:
    """Every hidden layer narrower, in steps of 5 %; the network's inputs and outputs keep their number."""
    last = _last(found, _depthwise)
    for percent in range(95, 4, -5):
        made: dict[str, Described] = {}
        for item in found:
            spec = item.spec
            if not item.reads:
                made[item.name] = item
                continue
            sources = [made[name].spec.channels for name in item.reads]
            channels, before = sources[0], spec.in_shape[-1]
            if item.multiplies:
                width = spec.n_out if item.name in last else max(1, math.floor(spec.n_out * percent / 100))
                n_in = spec.n_in // before * channels
                if _depthwise(item):  # as many outputs for each channel, and none of another's inputs
                    width, n_in = spec.n_out // before * channels, spec.n_in
                changes = {"n_in": n_in, "n_out": width, "weights": n_in * width, "nonzeros": None,
                           "powers_of_two": None, "csd_digits": None}
            else:
                width, changes = sum(sources) if item.operation == "Concat" else channels, {}
            made[item.name] = replace(item, spec=replace(spec, in_shape=(*spec.in_shape[:-1], channels),
                                                         out_shape=(*spec.out_shape[:-1], width), **changes))
        yield f"{percent} % of the width of every hidden layer", list(made.values())


def _depthwise(item: Described) -> bool:
    """Whether it is a convolution of each channel alone."""
    return item.spec.kind == "conv" and item.spec.in_shape[-1] > 1 and item.spec.n_in == math.prod(item.spec.kernel)


def _last(found: list[Described], passes: Callable[[Described], bool] = lambda item: False) -> set[str]:
    """The layers whose outputs reach the network's without another layer of weights, and what lies behind them;
    ``passes``: layers of weights that are looked through."""
    last: set[str] = set()
    todo = [found[-1].name]
    by_name = {x.name: x for x in found}
    while todo:
        item = by_name[todo.pop()]
        if item.name not in last:
            last.add(item.name)
            todo += () if item.multiplies and not passes(item) else item.reads
    return last
