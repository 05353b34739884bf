"""Planning, side by side: predicted latency of our planner's reuse factors, of the best uniform one and of hls4ml's
defaults, on one board with one budget; seconds of the planner and of the dataflow simulation.

All three are judged by the same cost model and the same simulation, so what is compared is the choice. Every latency
and resource is an estimate; no synthesis stands behind any of them.
"""

import math
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from boards.board import Board
from boards.board import load as load_board
from hls import cost, dataflow, graph, numerics
from hls.cost import LayerSpec
from hls.generated import INPUT, OUTPUT
from hls.layers import Described, describe, with_clones
from hls.plan import MARGIN, plan_layers

BLOCKS = (1, 3, 5, 7, 9)
"""Blocks per stage of the CIFAR ResNets whose simulation is timed: depths 8 to 56."""
SHAPES = {"cnn_small": (1, 8, 8), "resnet8": (3, 32, 32)}
LARGER = "kv260"
"""Where a ResNet20 of half its filters has room."""


# --------------------------------------------------------------------------- networks without weights


class Sketch:
    """The processes of a network nobody trained: ``bits`` for weights and activations, every weight alive."""

    def __init__(self, size: int, channels: int, bits: int = 4):
        self.bits, self.found = bits, []
        self._add(INPUT, "other", "unpack", {"tokens": size * size, "cycles": 1}, (size, size, channels),
                  (size, size, channels), 8, 8, (), "Input")

    def _add(self, name, kind, process, shape, before, after, bits_in, bits_out, reads=None, operation="", **more):
        reads = (self.found[-1].name,) if reads is None else reads
        spec = LayerSpec(name, kind, before, after, input_bits=bits_in, output_bits=bits_out, **more)
        self.found.append(Described(spec, process, shape, reads, operation or kind))
        return name

    def _at(self, name: str | None) -> Described:
        return self.found[-1] if name is None else next(x for x in self.found if x.name == name)

    def conv(self, name: str, filters: int, kernel: int = 3, stride: int = 1, source: str | None = None) -> str:
        """A convolution that keeps the size (divided by its stride), its padding and its activation."""
        at, edge = self._at(source), kernel // 2
        (rows, _, channels), bits, reads = at.spec.out_shape, at.spec.output_bits, (at.name,)
        if edge:
            reads = (self._add(f"pad_{name}", "pad", "pad", {
                "height": rows, "width": rows, "top": edge, "left": edge, "bottom": edge, "right": edge},
                (rows, rows, channels), (rows + 2 * edge, rows + 2 * edge, channels), bits, bits, reads),)
        wide, after = rows + 2 * edge, (rows - 1) // stride + 1
        n_in = kernel * kernel * channels
        accumulator = self.bits + bits + math.ceil(math.log2(n_in)) + 1
        self._add(name, "conv", "convolution", {
            "height": wide, "width": wide, "kernel_height": kernel, "kernel_width": kernel, "stride_height": stride,
            "stride_width": stride, "pointwise": int(kernel == 1), "resource": 1, "reuse_factor": 1},
            (wide, wide, channels), (after, after, filters), bits, accumulator, reads, "Conv", kernel=(kernel, kernel),
            stride=(stride, stride), n_in=n_in, n_out=filters, weights=n_in * filters, nonzeros=n_in * filters,
            weight_bits=self.bits, accumulator_bits=accumulator)
        return self._elementwise(f"act_{name}", "activation")

    def _elementwise(self, name: str, kind: str) -> str:
        spec = self.found[-1].spec
        return self._add(name, kind, "elementwise", {"tokens": math.prod(spec.out_shape[:-1])}, spec.out_shape,
                         spec.out_shape, spec.output_bits, self.bits, op="relu")

    def pool(self, name: str, kernel: int = 2) -> str:
        rows, _, channels = self.found[-1].spec.out_shape
        return self._add(name, "pool", "pooling", {
            "height": rows, "width": rows, "kernel_height": kernel, "kernel_width": kernel, "stride_height": kernel,
            "stride_width": kernel, "pointwise": 0}, (rows, rows, channels), (rows // kernel, rows // kernel, channels),
            self.bits, self.bits, kernel=(kernel, kernel), stride=(kernel, kernel))

    def whole(self, name: str) -> str:
        """The largest value of each channel over the picture."""
        shape = self.found[-1].spec.out_shape
        return self._add(name, "globalpool", "gather", {"tokens": math.prod(shape[:-1]), "reuse_factor": 1}, shape,
                         (1, 1, shape[-1]), self.bits, self.bits)

    def add(self, name: str, one: str, other: str) -> str:
        """The sum of two branches, and its activation."""
        shape = self._at(one).spec.out_shape
        self._add(name, "merge", "merge", {"tokens": math.prod(shape[:-1])}, shape, shape, self.bits, self.bits + 1,
                  (one, other), "Add")
        return self._elementwise(f"act_{name}", "activation")

    def dense(self, name: str, outputs: int) -> str:
        spec = self.found[-1].spec
        n_in = math.prod(spec.out_shape)
        accumulator = self.bits + spec.output_bits + math.ceil(math.log2(n_in)) + 1
        return self._add(name, "dense", "gather", {"tokens": math.prod(spec.out_shape[:-1]), "reuse_factor": 1},
                         spec.out_shape, (outputs,), spec.output_bits, accumulator, None, "MatMul", n_in=n_in,
                         n_out=outputs, weights=n_in * outputs, nonzeros=n_in * outputs, weight_bits=self.bits,
                         accumulator_bits=accumulator)

    def processes(self) -> list[Described]:
        last = self.found[-1].spec
        self._add(OUTPUT, "other", "pack", {"tokens": math.prod(last.out_shape[:-1]), "cycles": last.channels},
                  last.out_shape, last.out_shape, last.output_bits, last.output_bits, None, "Output")
        return with_clones(self.found)


def vgg(widths: Iterable[int] = (16, 16, 32, 32, 64, 64)) -> list[Described]:
    """Pairs of 3x3 convolutions with pooling behind each, 3x32x32, ten classes (Simonyan and Zisserman 2015), at widths
    that weights of 4 bits leave room for on a Zynq-7020."""
    sketch = Sketch(32, 3)
    for number, width in enumerate(widths):
        sketch.conv(f"conv{number + 1}", width)
        if number % 2:
            sketch.pool(f"pool{number // 2 + 1}")
    sketch.dense("classifier", 10)
    return sketch.processes()


def resnet(blocks: int, filters: int = 16) -> list[Described]:
    """The CIFAR ResNet of depth 6 * ``blocks`` + 2 (He et al. 2015, section 4.2)."""
    sketch = Sketch(32, 3)
    at = sketch.conv("stem", filters)
    for stage in range(3):
        for block in range(blocks):
            name, width, first = f"s{stage}b{block}", filters << stage, stage > 0 and block == 0
            sketch.conv(f"{name}c1", width, stride=2 if first else 1, source=at)
            branch = sketch.conv(f"{name}c2", width)
            short = sketch.conv(f"{name}short", width, 1, 2, source=at) if first else at
            at = sketch.add(f"{name}add", branch, short)
    sketch.whole("pool")
    sketch.dense("classifier", 10)
    return sketch.processes()


# --------------------------------------------------------------------------- the three choices


def closest(legal: list[int], wanted: int) -> int:
    """The reuse factor hls4ml makes of ``wanted`` (``FPGABackend.get_closest_reuse_factor``): the nearest legal one,
    the smaller of two as near."""
    position = bisect_left(legal, wanted)
    if position in (0, len(legal)):
        return legal[min(position, len(legal) - 1)]
    before, after = legal[position - 1 : position + 1]
    return after if after - wanted < wanted - before else before


def hls4ml_defaults(found: list[Described], board: Board, margin: float = MARGIN) -> dict:
    """As hls4ml builds a network when nobody says anything: Latency strategy, reuse factor 1, every FIFO as deep as the
    picture behind it. What that needs is judged like a plan, and said where it is over budget."""
    built = [x.folded("Latency", 1) if x.multiplies else x for x in found]
    target = cost.Target(family=cost.family_of(board.part), clock_ns=1000 / board.clock_mhz,
                         dsp_available=board.resources["dsp"])
    network = dataflow.from_layers(built, dataflow.timing_for(target))
    streams = {p.name: [(network.tokens[n], network.bits[n]) for n in p.outputs] for p in network.processes}
    totals = cost.estimate([x.spec for x in built], target, platform=True, streams=streams).totals
    have = {"bram18": 2 * board.resources["bram36"]} | dict(board.resources)
    used = {r: math.ceil(totals[r]["implemented"]["value"]) for r in cost.QUANTITIES}
    result = network.simulate(dict(network.tokens))
    unrolled = max((x for x in found if x.multiplies), key=lambda x: x.spec.weights)
    return {"latency_cycles": result.latency, "interval_cycles": result.interval, "used": used,
            "over": {r: round(used[r] / (have[r] * (1 - margin)), 2) for r in used if used[r] > have[r] * (1 - margin)},
            "largest_unrolled": unrolled.spec.weights}


def best_uniform(found: list[Described], board: Board, margin: float = MARGIN) -> dict | None:
    """The one reuse factor for all layers, made legal per layer as hls4ml does, that gives the least simulated latency
    within the budget: Resource strategy, FIFOs planned as ours are. None where no factor fits."""
    weighted = [x for x in found if x.multiplies]
    legal = {x.name: cost.legal_reuse_factors(x.spec.n_in, x.spec.n_out) for x in weighted}
    target = cost.Target(family=cost.family_of(board.part), clock_ns=1000 / board.clock_mhz)
    timing = dataflow.timing_for(target)
    made: dict[tuple[int, ...], int] = {}
    for factor in sorted(set().union(*legal.values())):
        made.setdefault(tuple(closest(legal[x.name], factor) for x in weighted), factor)

    def latency(factors: tuple[int, ...]) -> int:
        chosen = dict(zip(legal, factors, strict=True))
        network = dataflow.from_layers([x.folded("Resource", chosen[x.name]) if x.multiplies else x for x in found],
                                       timing)
        return network.simulate(None, frames=2).latency

    best, tried = None, 0
    for least, factors in sorted((latency(factors), factors) for factors in made):
        if best is not None and best["latency_cycles"] <= least:
            break  # with FIFOs of finite depth nothing is faster than without bounds
        tried += 1
        plan = plan_layers(found, board=board, strategy="Resource", margin=margin, over_budget=True,
                           overrides={n: {"reuse_factor": f} for n, f in zip(legal, factors, strict=True)})
        if plan["fits"] and (best is None or plan["totals"]["latency_cycles"] < best["latency_cycles"]):
            best = _figures(plan) | {"reuse_factor": made[factors]}
    return best and best | {"factors": len(made), "tried": tried}


def _figures(plan: dict) -> dict:
    return {"latency_cycles": plan["totals"]["latency_cycles"],
            "interval_cycles": plan["totals"]["initiation_interval_cycles"],
            "used": {r: row["planned"] for r, row in plan["resources"].items()}}


def ours(found: list[Described], board: Board, margin: float = MARGIN) -> dict:
    """Our plan for least latency, or with "shortage" the one that overshoots least."""
    plan = plan_layers(found, board=board, margin=margin, objective="latency", over_budget=True)
    return _figures(plan) | ({} if plan["fits"] else {"shortage": plan["shortage"]})


def compare(name: str, found: list[Described], board: Board) -> dict:
    """The three on one network."""
    return {"network": name, "board": board.name, "clock_mhz": board.clock_mhz, "margin": MARGIN,
            "evidence": "estimated", "ours": ours(found, board), "uniform": best_uniform(found, board),
            "hls4ml": hls4ml_defaults(found, board)}


# --------------------------------------------------------------------------- seconds


def planner_time(name: str, found: list[Described], board: Board) -> dict:
    """Seconds for a plan of least interval, proven."""
    began = time.perf_counter()
    plan = plan_layers(found, board=board, over_budget=True)
    seconds = time.perf_counter() - began
    return {"network": name, "board": board.name, "seconds": seconds, "fits": plan["fits"], "optimal": plan["optimal"],
            "layers": len(plan["layers"]), "interval_cycles": plan["totals"]["initiation_interval_cycles"]}


def simulation_time(blocks: int) -> dict:
    """Seconds to simulate a CIFAR ResNet of ``6 * blocks + 2`` layers, four frames, and to find its FIFO depths."""
    found = [x.folded("Resource", closest(cost.legal_reuse_factors(x.spec.n_in, x.spec.n_out), 144)) if x.multiplies
             else x for x in resnet(blocks)]
    network = dataflow.from_layers(found)
    times = []
    for _ in range(6):  # the first one compiles
        began = time.perf_counter()
        result = network.simulate(None)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    dataflow.plan_depths(network)
    return {"network": f"ResNet{6 * blocks + 2}", "processes": len(network.processes),
            "tokens": sum(network.tokens.values()) * dataflow.FRAMES, "latency_cycles": result.latency,
            "seconds": min(times), "depths_seconds": time.perf_counter() - began}


def growth(rows: list[dict], what: str = "seconds") -> float:
    """Exponent with which a time grows in tokens, between the smallest and the largest network."""
    first, last = rows[0], rows[-1]
    return math.log(last[what] / first[what]) / math.log(last["tokens"] / first["tokens"])


def described(name: str) -> list[Described]:
    """A network of :mod:`pipeline.models` with random weights, W4A4 (:func:`pipeline.bench.exported`)."""
    from pipeline import bench

    with tempfile.TemporaryDirectory() as scratch:
        prepared = graph.prepare(graph.load(bench.exported(name, SHAPES[name], Path(scratch))))
    return describe(prepared, numerics.analyze(prepared))


def run(board: Board, quick: bool = False) -> dict:
    """Everything, as data."""
    compared = {"cnn_small": described("cnn_small")}
    timed = dict(compared)
    if not quick:
        compared |= {"resnet8": described("resnet8"), "VGG-like, 16 to 64 filters": vgg()}
        timed = compared | {"ResNet20": resnet(3)}
    planner = [planner_time(name, found, board) for name, found in timed.items()]
    if not quick:
        planner.append(planner_time("ResNet20, 8 to 32 filters", resnet(3, 8), load_board(LARGER)))
    return {"choices": [compare(name, found, board) for name, found in compared.items()], "planner": planner,
            "simulation": [simulation_time(blocks) for blocks in (BLOCKS[:2] if quick else BLOCKS)]}


def lines(found: dict) -> list[str]:
    """The results as Markdown."""
    rows = []
    for row in found["choices"]:
        clock, best, short = row["clock_mhz"], row["ours"]["latency_cycles"], row["ours"].get("shortage")
        uniform, theirs = row["uniform"], row["hls4ml"]
        over = ", ".join(f"{r.upper()} {x:.1f}" for r, x in theirs["over"].items())
        rows.append([row["network"], f"{best / clock:.1f}" if short is None else short,
                     "no plan fits" if uniform is None else
                     f"{uniform['latency_cycles'] / clock:.1f} (reuse factor {uniform['reuse_factor']})",
                     "-" if uniform is None else f"{uniform['latency_cycles'] / best:.2f}",
                     f"{theirs['latency_cycles'] / clock:.1f}" + (f", over budget: {over} times what is allowed" if over
                                                                  else ""),
                     "-" if over or short else f"{theirs['latency_cycles'] / best:.2f}"])

    def table(head: list[str], body: list[list]) -> list[str]:
        return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
                *("| " + " | ".join(map(str, r)) + " |" for r in body), ""]

    first = found["choices"][0]
    return [
        "# Planning, side by side", "",
        "Written by `make bench` with the option `--page`. Predicted microseconds from the first beat of a picture to "
        f"its last on {first['board']} at {first['clock_mhz']:g} MHz, W4A4, at equal budget: the board less "
        f"{100 * first['margin']:.0f} %. All three are judged by the same cost model and the same simulation, so what "
        "is compared is the choice of reuse factors. Evidence: estimated (extrapolated), all of it; no synthesis "
        "stands behind a figure.", "",
        "- *Our plan*: what the planner chooses for least latency.",
        "- *Best uniform*: the best of all reuse factors given to every layer at once, Resource strategy, made legal "
        "for each layer as hls4ml does; FIFOs planned as ours are.",
        "- *hls4ml's defaults*: Latency strategy, reuse factor 1, FIFOs of a whole picture.", "",
        *table(["network", "our plan, us", "best uniform, us", "ratio", "hls4ml's defaults, us", "ratio"], rows),
        "## Seconds", "",
        "Seconds for a plan of least interval, and whether it is proven that none is shorter:", "",
        *table(["network", "board", "layers", "plan, s", "proven", "interval, cycles"],
               [[r["network"], r["board"], r["layers"], f"{r['seconds']:.1f}",
                 "-" if not r["fits"] else "yes" if r["optimal"] else "no",
                 r["interval_cycles"] if r["fits"] else "no plan fits"] for r in found["planner"]]),
        "Seconds to simulate the dataflow of CIFAR ResNets, four frames (the least of six times), and to find all FIFO "
        f"depths (many simulations). Simulation grows with the power {growth(found['simulation']):.2f} of the tokens "
        f"that flow, the search for depths with {growth(found['simulation'], 'depths_seconds'):.2f}.", "",
        *table(["network", "processes", "tokens", "simulation, s", "FIFO depths, s"],
               [[r["network"], r["processes"], r["tokens"], f"{r['seconds']:.3f}", f"{r['depths_seconds']:.2f}"]
                for r in found["simulation"]]),
        "; ".join(f"{key}: {value}" for key, value in found["machine"].items()) if "machine" in found else "",
    ]
