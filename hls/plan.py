"""How a network is built on a board: strategy and reuse factor of each layer, depth of each FIFO, and what that costs.

Processes are described once (:mod:`hls.layers`), cost by :mod:`hls.cost`, cycles and depths by :mod:`hls.dataflow`;
:mod:`hls.folding` chooses. The budget is judged on what is expected to remain after implementation: the layers with
their FIFOs, the wrapper, and the platform's DMA and interconnect, against the board less a margin. Every figure is an
estimate and tagged so; no synthesis stands behind it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from boards import board as boards
from boards.board import Board
from boards.errors import SlimgateError
from hls import cost, dataflow, folding, layers
from hls.cost import LayerSpec, Target
from hls.dataflow import Network
from hls.folding import RESOURCES, DoesNotFit, Folding
from hls.layers import Described
from hls.numerics import Analysis

STRATEGIES = {"auto": ("Resource", "Latency"), "Resource": ("Resource",), "Latency": ("Latency",)}
OBJECTIVES = ("interval", "latency")
#: Part of each resource that a plan leaves free: place and route need room, and the estimate may be low.
MARGIN = 0.2
#: Rounds in which FIFO depths and reuse factors are brought to agree.
ROUNDS = 4
SCHEMA = 2


class PlanError(SlimgateError):
    """A request that no plan can answer."""


@dataclass(frozen=True)
class Request:
    """What is asked of a plan. ``strategies`` and ``pinned``: by layer; ``interval``: cycles a frame may take, None:
    as few as possible."""

    board: Board
    clock_mhz: float
    margin: float
    objective: str
    interval: int | None
    strategies: Mapping[str, tuple[str, ...]]
    pinned: Mapping[str, int]

    @property
    def target(self) -> Target:
        """What the cost model is asked about: Vitis HLS, which the project is written for."""
        grade = self.board.part.rpartition("-")[2][:1]
        return Target(family=cost.family_of(self.board.part), clock_ns=1000 / self.clock_mhz, toolchain="vitis_hls",
                      dsp_available=self.board.resources["dsp"], speed_grade=int(grade) if grade in "123" else 1)

    @property
    def limits(self) -> dict[str, int]:
        return folding.limits(self.board.resources, self.margin)


@dataclass(frozen=True)
class Choice:
    """One folding with the FIFOs it was given (``depths.planned``; ``depths.full_speed`` is empty where nobody asked).
    ``used``: resource -> amount, of everything, whole numbers."""

    folding: Folding
    network: Network
    depths: dataflow.Depths
    used: dict[str, int]
    simulated: dataflow.Result


# --------------------------------------------------------------------------- the plan


def make_plan(
    model,
    analysis: Analysis,
    *,
    board: Board,
    clock_mhz: float | None = None,
    strategy: str = "auto",
    reuse_factor: int | str = "auto",
    overrides: Mapping[str, Mapping] | None = None,
    margin: float = MARGIN,
    objective: str = "interval",
    frames_per_second: float | None = None,
    over_budget: bool = False,
) -> dict:
    """Plan a prepared graph (:func:`hls.graph.prepare`) for a board; return the plan as plain data (``plan.json``).

    ``clock_mhz``: None for the board's. ``strategy``: "Resource", "Latency", or "auto" to choose for each layer.
    ``reuse_factor``: "auto", or one number for every layer, legal for each. ``overrides``: layer -> {"reuse_factor",
    "strategy"}, either. ``margin``: fraction of each resource left free. ``objective``: least "interval" (proven) or
    least "latency" (the best of a few plans by simulation). ``frames_per_second``: instead, as little of the board as
    this rate takes. ``over_budget``: where nothing fits, return the plan that overshoots least, ``fits`` false in it.

    Raises :class:`hls.folding.DoesNotFit` where nothing fits, with the nearest changes that help;
    :class:`hls.folding.FoldingError`, :class:`PlanError` for an illegal or impossible request.
    """
    return plan_layers(layers.describe(model, analysis), board=board, clock_mhz=clock_mhz, strategy=strategy,
                       reuse_factor=reuse_factor, overrides=overrides, margin=margin, objective=objective,
                       frames_per_second=frames_per_second, over_budget=over_budget)


def plan_layers(found: list[Described], *, over_budget: bool = False, **asked) -> dict:
    """:func:`make_plan` for described processes (:func:`hls.layers.describe`); the same arguments."""
    request = _request(found, **asked)
    try:
        choice, bound = _choose(found, request)
    except DoesNotFit as error:
        choice, bound = _overshoot(found, request, error.chosen), None
        if any(choice.used[r] > limit for r, limit in request.limits.items()):
            short = _told(found, request, choice)
            if not over_budget:
                raise DoesNotFit(replace(short, changes=tuple(nearest_changes(found, request))), error.chosen) from None
            return _document(found, request, choice, bound) | {"fits": False, "shortage": DoesNotFit(short).what}
    if request.interval is not None and choice.simulated.interval > request.interval:
        raise PlanError(f"beside the layers there is no room for FIFOs deep enough for {request.interval:,} cycles a "
                        f"frame: {choice.simulated.interval:,} is what is left", where=request.board.name,
                        fix="fewer frames per second, a smaller margin or a larger board")
    return _document(found, request, choice, bound)


def _request(found, *, board: Board, clock_mhz=None, strategy="auto", reuse_factor="auto", overrides=None,
             margin=MARGIN, objective="interval", frames_per_second=None) -> Request:
    names = [x.name for x in found if x.multiplies]
    if not names:
        raise PlanError("the network has no convolution and no dense layer", fix="plan a network with weights")
    if strategy not in STRATEGIES or objective not in OBJECTIVES:
        raise PlanError(f"no strategy is called {strategy!r}" if strategy not in STRATEGIES else
                        f"no objective is called {objective!r}", where="[hls]",
                        fix=f"strategies: {', '.join(STRATEGIES)}; objectives: {', '.join(OBJECTIVES)}")
    overrides = {name.replace(".", "_"): dict(values) for name, values in (overrides or {}).items()}
    if unknown := sorted(set(overrides) - set(names)):
        raise PlanError(f"no layer is called {unknown[0]}", where="[hls.layers]",
                        fix=f"layers of this network: {', '.join(names)}")
    pinned = {} if reuse_factor == "auto" else dict.fromkeys(names, int(reuse_factor))
    pinned |= {n: int(v["reuse_factor"]) for n, v in overrides.items() if v.get("reuse_factor") is not None}
    strategies = {n: STRATEGIES[(overrides.get(n) or {}).get("strategy") or strategy] for n in names}
    clock = float(board.clock_mhz if clock_mhz is None else clock_mhz)
    interval = None if frames_per_second is None else folding.interval_for(frames_per_second, clock)
    return Request(board, clock, margin, objective, interval, strategies, pinned)


# --------------------------------------------------------------------------- costs


@lru_cache(maxsize=4096)
def _own(spec: LayerSpec, target: Target) -> Mapping[str, float]:
    """What implementation is expected to leave of a process, without its FIFOs."""
    k = cost.load_coefficients()
    return cost.remaining(spec, target, cost.raw_layer(spec, target, k, ()), k)


@lru_cache(maxsize=4096)
def _fifo(depth: int, bits: int, target: Target) -> Mapping[str, float]:
    return cost.stream_figures(1, depth, bits, target, cost.load_coefficients())["implemented"]


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    parts = list(parts)
    return {r: sum(p.get(r, 0.0) for p in parts) for r in RESOURCES}


def _fixed(found: Iterable[Described], target: Target) -> dict[str, float]:
    """What no choice changes: the processes without weights, the wrapper, the platform."""
    found = list(found)
    top = {q: sum(sizes.values()) for q, sizes in cost.top_terms([x.spec for x in found], target).items()}
    platform = {r: cost.PLATFORM[r][0] for r in RESOURCES}
    return _sum([platform, top, *(_own(x.spec, target) for x in found if not x.multiplies)])


def _fifos(network: Network, depths: Mapping[str, int], target: Target) -> dict[str, float]:
    return _sum(_fifo(depths[n], network.bits[n], target) for n in network.fifos)


def _choices(found: Iterable[Described], network: Network, request: Request) -> folding.Choices:
    target = request.target
    return folding.choices_of(network, [x.spec for x in found if x.multiplies], lambda spec: _own(spec, target),
                              strategies=request.strategies, pinned=request.pinned)


def _room(request: Request, *taken: Mapping[str, float]) -> dict[str, int]:
    """What is left of the limits for the layers of weights; may be negative."""
    return {r: limit - math.ceil(sum(t[r] for t in taken)) for r, limit in request.limits.items()}


# --------------------------------------------------------------------------- choosing


def _choose(found: list[Described], request: Request) -> tuple[Choice, int | None]:
    """(the plan, cycles a frame of a plan that nothing beats where that is proven).

    Reuse factors decide how deep FIFOs must be for full speed, and FIFOs take room from the layers. So the solver is
    asked with the room that the FIFOs of the round before leave; what it says is taken once its own FIFOs fit. Where
    full speed has no room, the FIFOs get the depths that cannot deadlock, and the simulation says how fast that is.
    """
    network = dataflow.from_layers(found, dataflow.timing_for(request.target))
    choices, target = _choices(found, network, request), request.target
    fixed, floor = _fixed(found, target), folding.floor_of(network, choices)
    # no FIFO is shallower than this, so no plan is faster than what fits beside such FIFOs
    shallow = _fifos(network, dict.fromkeys(network.fifos, dataflow.FLOOR), target)
    best = _solve(choices, _room(request, fixed, shallow), network, floor, request)
    proving = request.objective == "interval" and request.interval is None
    bound = best.interval if best.optimal and proving else None
    reserve, candidates, seen = shallow, [], []
    for _ in range(ROUNDS):
        made = folding.apply(network, best.chosen)
        whole = dataflow.plan_depths(made)
        for depths in (whole, None):
            if depths is None:  # no room for full speed: as deep as cannot deadlock
                depths = replace(whole, planned=dataflow.safe_depths(made, guard=True))
            taken = _fifos(made, depths.planned, target)
            used = {r: best.used[r] + math.ceil(fixed[r] + taken[r]) for r in RESOURCES}
            seen.append(taken)
            if all(used[r] <= request.limits[r] for r in RESOURCES):
                candidates.append(Choice(best, made, depths, used, made.simulate(depths.planned)))
                break
        if candidates and candidates[-1].simulated.interval <= (request.interval or best.interval):
            break
        reserve = {r: max(reserve[r], seen[-1][r]) for r in RESOURCES}
        try:
            best = _solve(choices, _room(request, fixed, reserve), network, floor, request)
        except DoesNotFit:
            if not candidates:
                raise
            break
    if not candidates:
        room = _room(request, fixed, reserve)
        raise folding.shortage(choices, room)
    key = (lambda c: c.simulated.latency) if request.objective == "latency" else (lambda c: c.simulated.interval)
    return min(candidates, key=key), bound


def _solve(choices, room, network: Network, floor: int, request: Request) -> Folding:
    if request.interval is not None:
        found = folding.cheapest(choices, request.interval, room, floor=floor)
        if any(found.used[r] > room[r] for r in RESOURCES):
            raise folding.over(found.chosen, room)
        return found
    if request.objective == "latency":
        return folding.fastest_first(choices, room, network)
    return folding.fastest(choices, room, floor=floor)


def _told(found, request: Request, choice: Choice) -> folding.Shortage:
    """What the plan that overshoots least is short of, and the process, with weights or not, that takes most of it with
    the FIFOs it fills; the platform where none takes any."""
    short = max(RESOURCES, key=lambda r: choice.used[r] / max(request.limits[r], 1))
    takes = {n: o.cost.get(short, 0) for n, o in choice.folding.chosen.items()}
    takes |= {x.name: math.ceil(_own(x.spec, request.target)[short]) for x in found if not x.multiplies}
    for name in choice.network.fifos:
        fifo = _fifo(choice.depths.planned[name], choice.network.bits[name], request.target)
        takes[choice.network.writer[name].name] += math.ceil(fifo.get(short, 0.0))
    layer, limit = max(takes, key=takes.get), request.limits[short]
    if not takes[layer]:
        layer, takes = "the platform's DMA", {"the platform's DMA": math.ceil(cost.PLATFORM[short][0])}
    return folding.Shortage(short, limit, choice.used[short] - limit, layer, takes[layer])


def _overshoot(found, request: Request, chosen) -> Choice:
    """The plan that overshoots least, with FIFOs that cannot deadlock."""
    network = dataflow.from_layers(found, dataflow.timing_for(request.target))
    made = folding.apply(network, chosen)
    depths = dataflow.Depths(dataflow.safe_depths(made), {}, dataflow.safe_depths(made, guard=True))
    fixed, taken = _fixed(found, request.target), _fifos(made, depths.planned, request.target)
    layers_use = {r: sum(o.cost.get(r, 0) for o in chosen.values()) for r in RESOURCES}
    used = {r: layers_use[r] + math.ceil(fixed[r] + taken[r]) for r in RESOURCES}
    simulated = made.simulate(depths.planned)
    return Choice(Folding(dict(chosen), simulated.interval, layers_use, False, False), made, depths, used, simulated)


# --------------------------------------------------------------------------- what would help


def fits(found: list[Described], request: Request) -> bool:
    """Whether any plan fits, with FIFOs that cannot deadlock, however slow."""
    network = dataflow.from_layers(found, dataflow.timing_for(request.target))
    return _fits(found, request, network, dataflow.safe_depths(network, guard=True))


def _fits(found, request: Request, network: Network, depths: Mapping[str, int]) -> bool:
    choices = _choices(found, network, request)
    if request.interval is not None:
        if folding.floor_of(network, choices) > request.interval:
            return False
        choices = {n: [o for o in options if o.cycles <= request.interval] for n, options in choices.items()}
        if not all(choices.values()):
            return False
    return folding.fits(choices, _room(request, _fixed(found, request.target), _fifos(network, depths, request.target)))


def nearest_changes(found: list[Described], request: Request) -> list[str]:
    """The nearest change of each kind with which a plan fits, each computed: of what was asked for (told only where it
    helps), of the width, the bits, the board."""
    network = dataflow.from_layers(found, dataflow.timing_for(request.target))
    depths = dataflow.safe_depths(network, guard=True)  # neither widths nor bits change what may deadlock

    def tried(changes: Iterator[tuple[str, list[Described]]], what: str) -> str:
        for text, made in changes:
            changed = dataflow.from_layers(made, network.timing)
            kept = _still_legal(request, made)
            if _fits(made, kept, changed, depths):
                freed = ", ".join(n for n in request.pinned if n not in kept.pinned)
                return text + (f" with another reuse factor of {freed}" if freed else "")
        return f"no change of {what} alone is sure to be enough"

    told = []
    if request.pinned or any(len(s) < 2 for s in request.strategies.values()):
        free = replace(request, pinned={}, strategies=dict.fromkeys(request.strategies, STRATEGIES["auto"]))
        if _fits(found, free, network, depths):
            told.append("strategies and reuse factors left to the planner")
    margins = [m / 100 for m in range(15, -1, -5) if m / 100 < request.margin]
    told += [f"a margin of {m:g}" for m in margins if _fits(found, replace(request, margin=m), network, depths)][:1]
    told += [tried(folding.narrower(found), "width"), tried(folding.fewer_bits(found), "bits")]
    told.append(next((f"the board {b.name}" for b in _larger(request.board)
                      if fits(found, replace(request, board=b))), "no board known here is large enough"))
    return told


def _still_legal(request: Request, changed: Iterable[Described]) -> Request:
    """Without the reuse factors that are not legal at other widths."""
    legal = {x.name: cost.legal_reuse_factors(x.spec.n_in, x.spec.n_out) for x in changed if x.name in request.pinned}
    kept = {n: f for n, f in request.pinned.items() if f in legal[n] or "Resource" not in request.strategies[n]}
    return replace(request, pinned=kept)


def _larger(board: Board) -> list[Board]:
    """The other boards from the smallest, those that have more of something."""
    others = [boards.load(name) for name in boards.names() if name != board.name]
    more = [b for b in others if any(b.resources[r] > board.resources[r] for r in ("lut", "bram36", "dsp"))]
    return sorted(more, key=lambda b: (b.resources["lut"], b.resources["bram36"], b.name))


# --------------------------------------------------------------------------- as plain data


def _document(found: list[Described], request: Request, choice: Choice, bound: int | None) -> dict:
    chosen, network, target = choice.folding.chosen, choice.network, request.target
    built = [x.folded(chosen[x.name].strategy, chosen[x.name].reuse_factor) if x.name in chosen else x for x in found]
    streams = {p.name: [(choice.depths.planned[n], network.bits[n]) for n in p.outputs] for p in network.processes}
    k = cost.load_coefficients()
    estimated = cost.estimate([x.spec for x in built], target, platform=True, streams=streams)
    processes = {p.name: p for p in network.processes}
    rows = [_row(x, dataflow.cycles(processes[x.name], network.timing), estimated) for x in built]
    slowest = max(rows, key=lambda r: r["cycles"])
    weights = [r for r in rows if "reuse_factor" in r]
    interval, latency = choice.simulated.interval, choice.simulated.latency
    like = cost.traits([x.spec for x in built], target)
    around = lambda value, what: cost.spread(  # noqa: E731
        float(value), k, "total", "hls", what, like, cost.WIDEN if estimated.why else 1.0)
    clock = request.clock_mhz
    return {
        "schema": SCHEMA,
        "evidence": estimated.evidence,
        "extrapolated": list(estimated.why),
        "board": request.board.name,
        "part": request.board.part,
        "clock_mhz": clock,
        "objective": "resources" if request.interval is not None else request.objective,
        "margin": request.margin,
        "fits": True,
        "optimal": bound is not None and interval <= bound,
        "bound_interval_cycles": bound,
        "layers": weights,
        "processes": [r for r in rows if "reuse_factor" not in r],
        "fifo": _fifo_rows(choice, target),
        "totals": {
            "macs": sum(r["macs"] for r in weights),
            "weights": sum(r["weights"] for r in weights),
            "weight_kbit": round(sum(r["weights"] * r["weight_bits"] for r in weights) / 1000, 3),
            "multipliers": sum(r["multipliers"] for r in weights),
            "initiation_interval_cycles": interval,
            "latency_cycles": latency,
            "bottleneck": slowest["name"],
            "frames_per_second": round(clock * 1e6 / interval, 1),
            "latency_us": round(latency / clock, 2),
            "bounds": {"initiation_interval_cycles": around(interval, "interval"),
                       "latency_cycles": around(latency, "latency")},
        },
        "resources": _budget(request, choice, estimated),
    }


def _row(item: Described, cycles: int, estimated: cost.Estimate) -> dict:
    spec, row = item.spec, estimated.layers[item.name]
    told = {"name": item.name, "operation": item.operation, "in_shape": list(spec.in_shape),
            "out_shape": list(spec.out_shape), "input_bits": spec.input_bits, "output_bits": spec.output_bits}
    if item.multiplies:
        told |= {"n_in": spec.n_in, "n_out": spec.n_out, "pixels": item.pixels, "macs": item.macs,
                 "weights": spec.weights, "weight_bits": spec.weight_bits, "accumulator_bits": spec.accumulator_bits,
                 "strategy": spec.strategy.capitalize(), "reuse_factor": spec.reuse_factor,
                 "multipliers": row["multipliers"]}
    return told | {"cycles": cycles} | {q: {f: row[q][f] for f in ("hls", "implemented")} for q in RESOURCES}


def _fifo_rows(choice: Choice, target: Target) -> dict[str, dict]:
    network = choice.network
    rows = {}
    for name in network.fifos:
        depth, bits = choice.depths.planned[name], network.bits[name]
        rows[name] = {"safe": choice.depths.safe[name], "full_speed": choice.depths.full_speed.get(name),
                      "depth": depth, "bits": bits,
                      "bram18": cost.fifo_bram18(depth, bits, target)}
    return rows


def _budget(request: Request, choice: Choice, estimated: cost.Estimate) -> dict[str, dict]:
    have = {"bram18": 2 * request.board.resources["bram36"]} | dict(request.board.resources)
    return {r: {"available": have[r], "limit": request.limits[r], "planned": choice.used[r],
                "hls": estimated.totals[r]["hls"], "implemented": estimated.totals[r]["implemented"]}
            for r in RESOURCES}
