"""How good the cost model is on repositories it has not seen: the bars, the errors by class, every residual.

``python -m hls.estimator --designs DIR --page docs/results/estimator.md`` writes the page.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hls import cost, dataflow
from hls.cost import LayerSpec, legal_reuse_factors
from hls.dataflow import LASTS, Network, Process
from hls.estimator import (
    CALIBRATED,
    SHARE,
    Design,
    Row,
    _weights,
    describe,
    fit,
    given_hls,
    interval_of,
    intervals_from,
    leave_out,
    network_of,
    rows_of,
    weighted_quantile,
)

TOTALS = ("lut", "ff", "dsp", "bram18", "latency", "interval")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _table(head: list[str], rows: Iterable[Iterable]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join(str(c) for c in row) + " |" for row in rows), ""]


def _asked(limit: float | None) -> str:
    return f"median <= {100 * limit:.0f} %" if limit else "reported"


def _median(pairs: list[tuple[str, float]], share: float = 0.5) -> float | None:
    """Quantile of (repository, value) pairs, repositories counting alike."""
    return weighted_quantile((v for _, v in pairs), _weights((r for r, _ in pairs), [1.0] * len(pairs)), share) \
        if pairs else None


def _share(pairs: list[tuple[str, bool]]) -> float | None:
    if not pairs:
        return None
    weights = _weights((r for r, _ in pairs), [1.0] * len(pairs))
    return float(sum(w for w, (_, hit) in zip(weights, pairs, strict=True) if hit) / weights.sum())


def log_linear(designs: list[Design], quantity: str, figure: str = "hls") -> dict[str, float]:
    """The baseline: log(figure) linear in log(MACs) and log(bits), fitted leaving one repository out; {} of fewer than
    three repositories."""
    known = [d for d in designs if d.reported[figure].get(quantity, 0) > 0 and d.macs]
    if len({d.repo for d in known}) < 3:
        return {}

    def features(design: Design) -> list[float]:
        bits = {"<=8": 8, "9-16": 16, ">16": 32}[design.bit_class]
        widths = [p.weight_bits for x in design.layers for p in (x.parts or (x,)) if p.weights]
        return [1.0, math.log(design.macs), math.log(sum(widths) / len(widths) if widths else bits)]

    found = {}
    for repo in {d.repo for d in known}:
        train = [d for d in known if d.repo != repo]
        root = np.sqrt(_weights((d.repo for d in train), [1.0] * len(train)))
        matrix = np.array([features(d) for d in train]) * root[:, None]
        values = np.log([d.reported[figure][quantity] for d in train]) * root
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        found |= {d.name: float(np.exp(np.dot(features(d), solution))) for d in known if d.repo == repo}
    return found


def calibrated(designs: list[Design], without: Mapping[str, Mapping]) -> list[tuple[str, float]]:
    """Errors of convolution cycles when the overhead per pixel is read from one layer of the same design: (repo, error)
    of its other layers."""
    found = []
    for design in designs:
        layers = _convolutions(design)
        if len(layers) < 2:
            continue
        first, row = layers[0]
        pixels = math.prod(first.in_shape[:-1])
        extra = row["latency_max"] / pixels - first.factor
        for layer, other in layers[1:]:
            cycles = math.prod(layer.in_shape[:-1]) * (layer.factor + extra)
            found.append((design.repo, abs(cycles - other["latency_max"]) / other["latency_max"]))
    return found


def _convolutions(design: Design) -> list[tuple]:
    """Stock Resource convolutions on streams with their rows."""
    if not design.stock or not design.target.stream:
        return []
    return [(x, design.rows[x.name]) for x in design.layers if x.kind == "conv" and not x.parts and not x.serial
            and x.strategy == "resource" and design.rows.get(x.name, {}).get("latency_max")]


def elsewhere(designs: list[Design], without: Mapping[str, Mapping]) -> list[tuple[str, float]]:
    """Errors of convolution cycles when the overhead per pixel is read from one layer of another repository on the
    same compiler version and part family: (repo, error), for every such layer."""
    layers = [(d, x, row) for d in designs for x, row in _convolutions(d)]
    found = []
    for d, x, row in layers:
        for repo in sorted({e.repo for e, *_ in layers} - {d.repo}):
            like = [(y, other) for e, y, other in layers if e.repo == repo and e.tool == d.tool
                    and e.target.family == d.target.family]
            if like:
                y, other = like[0]
                extra = other["latency_max"] / math.prod(y.in_shape[:-1]) - y.factor
                cycles = math.prod(x.in_shape[:-1]) * (x.factor + extra)
                found.append((d.repo, abs(cycles - row["latency_max"]) / row["latency_max"]))
    return found


def held_out(designs: list[Design]) -> tuple[dict[str, list[Row]], dict[str, dict]]:
    """({design: its rows predicted without its repository}, {design: coefficients and intervals made without it}).

    Nested: the intervals around a repository's predictions come from errors on the other repositories, each predicted
    by a fit without itself *and* without the repository in question."""
    without = leave_out(designs)
    rows = {d.name: rows_of(d, without[d.name]) for d in designs}
    repos = sorted({d.repo for d in designs})
    errors: dict[str, list[Row]] = {repo: [] for repo in repos}
    for one, other in itertools.combinations(repos, 2):
        both = {"terms": fit([d for d in designs if d.repo not in (one, other)])}
        for out, seen in ((one, other), (other, one)):
            errors[out] += [r for d in designs if d.repo == seen for r in rows_of(d, both)]
    factors = {}
    for repo in repos:
        found = intervals_from(errors[repo])
        factors |= {d.name: without[d.name] | {"intervals": found} for d in designs if d.repo == repo}
    return rows, factors


REACH = 5
"""The data reaches a stock design for a quantity when this many other repositories report it for stock designs of its
strategy."""


def reached(rows: Iterable[Row], row: Row) -> bool:
    """Whether the data reaches a held-out figure; ``rows``: all held-out figures."""
    alike = {r.repo for r in rows if (r.figure, r.quantity, r.like.strategy) == (row.figure, row.quantity,
             row.like.strategy) and r.kind == "stock" and not r.layer and r.repo != row.repo}
    return row.kind == "stock" and len(alike) >= REACH


def study(designs: list[Design], others: Mapping[str, Mapping] | None = None, other_name: str = "") -> dict:
    """Everything the page shows, as data. ``others``: {design: {quantity: prediction}} of another estimator."""
    rows, factors = held_out(designs)
    by_name = {d.name: d for d in designs}
    every = [r for group in rows.values() for r in group]
    totals = [r for r in every if r.layer is None and r.figure == "hls"]
    bars: list[tuple] = []

    def bar(what: str, asked: str, achieved, good: bool | None, count: int, note: str = "") -> None:
        bars.append((what, asked, achieved, "" if good is None else "yes" if good else "no", count, note))

    conv = [(d, x, row) for d in designs for x, row in _convolutions(d)]
    errors, low = [], []
    for d, x, row in conv:
        cycles = cost.layer_cycles(x, d.target, factors[d.name])
        errors.append((d.repo, abs(cycles["latency_max"] - row["latency_max"]) / row["latency_max"]))
        if row.get("latency_min"):
            low.append((d.repo, abs(cycles["latency_min"] - row["latency_min"]) / row["latency_min"]))
    value = _median(errors)
    bar("convolution cycles, csynth max (Resource, stock), unseen", "median <= 6 %", _percent(value),
        value is not None and value <= 0.06, len(errors), f"p90 {_percent(_median(errors, 0.9))}")
    again = calibrated(designs, factors)
    value = _median(again)
    bar("the same, overhead read from one layer of the design", "median <= 4 %", _percent(value),
        value is not None and value <= 0.04, len(again), f"p90 {_percent(_median(again, 0.9))}")
    far = elsewhere(designs, factors)
    bar("the same, read from one layer of another repository on the same tool and part family", "reported",
        _percent(_median(far)), None, len(far), f"p90 {_percent(_median(far, 0.9))}")
    bar("convolution cycles, csynth min", "reported", _percent(_median(low)), None, len(low))
    dense = [(r.repo, abs(r.predicted - r.reported) / max(2.0, 0.1 * r.reported)) for r in every
             if r.quantity == "latency_max" and _kind(by_name, r) == "dense" and r.kind != "serial"]
    value = _median(dense)
    bar("dense cycles", "median <= max(2 cycles, 10 %)", "-" if value is None else f"{value:.2f} of the bar",
        value is not None and value <= 1, len(dense),
        f"{_percent(_share([(r, v <= 1) for r, v in dense]))} of layers within")
    for quantity, text in (("latency", "whole-design latency"), ("interval", "whole-design interval")):
        pairs = [(r.repo, r.error) for r in totals if r.quantity == quantity]
        value = _median(pairs)
        bar(f"{text}, csynth (own composition)", "median <= 6 %", _percent(value), value is not None and value <= 0.06,
            len(pairs), f"p90 {_percent(_median(pairs, 0.9))}")

    def layer_rows(quantity: str, strategy: str, keep: Callable[[Design], bool] = lambda d: True) -> list[Row]:
        return [r for r in every if r.layer and r.quantity == quantity and _strategy(by_name, r) == strategy
                and keep(by_name[r.design])]

    for quantity, text in (("dsp", "DSP of Resource layers"), ("weight_bram18", "BRAM18 of weights, Resource layers")):
        found = layer_rows(quantity, "resource")
        value = _share([(r.repo, round(r.predicted) == round(r.reported)) for r in found])
        stock = _share([(r.repo, round(r.predicted) == round(r.reported)) for r in found if by_name[r.design].stock])
        bar(text, "exact on >= 80 %", _percent(value), value is not None and value >= 0.8, len(found),
            f"stock hls4ml alone {_percent(stock)}")
    found = layer_rows("dsp", "latency", lambda d: d.target.multiplier == "auto")
    value = _median([(r.repo, r.error) for r in found])
    bar("DSP of Latency layers, forced multipliers apart", "median <= 25 %", _percent(value),
        value is not None and value <= 0.25, len(found))
    found = layer_rows("lut", "latency", lambda d: d.target.multiplier == "auto")
    value = _median([(r.repo, r.error) for r in found])
    bar("LUT of Latency layers, forced multipliers apart", "median <= 25 %", _percent(value),
        value is not None and value <= 0.25, len(found))
    for quantity, limit in (("lut", 0.3), ("ff", 0.4), ("dsp", None), ("bram18", None)):
        pairs = [(r.repo, r.error) for r in totals if r.quantity == quantity]
        value = _median(pairs)
        bar(f"{quantity.upper()} of HLS totals", _asked(limit), _percent(value),
            None if limit is None else value is not None and value <= limit, len(pairs),
            f"p90 {_percent(_median(pairs, 0.9))}")
    left = leave_out(designs, by=network_of)
    for quantity, limit in (("lut", 0.25), ("ff", None)):
        pairs = []
        for d in designs:
            done, guess = d.reported["implemented"].get(quantity), given_hls(d, left[d.name], quantity)
            if done and guess:
                pairs.append((d.repo, abs(guess - done) / done))
        value = _median(pairs)
        networks = len({network_of(d) for d in designs if d.reported["implemented"].get(quantity)})
        bar(f"implemented {quantity.upper()} given HLS's, one network left out", _asked(limit), _percent(value),
            None if limit is None else value is not None and value <= limit, len(pairs),
            f"p90 {_percent(_median(pairs, 0.9))}; {networks} networks")
    coverage, widths, unbounded, done_widths = [], [], [], []
    everything: dict[str, list[tuple[str, bool]]] = {"hls": [], "implemented": []}
    for figure in ("hls", "implemented"):
        for quantity in TOTALS if figure == "hls" else cost.QUANTITIES:
            inside, within, width = [], [], []
            own = [r for r in every if r.layer is None and (r.figure, r.quantity) == (figure, quantity)]
            for r in own:
                near = interval_of(r, factors[r.design])
                inside.append((r.repo, near["lo"] - 0.5 <= r.reported <= near["hi"] + 0.5))
                if reached(own, r):
                    within.append(inside[-1])
                    width += [(r.repo, near["hi"] / near["lo"])] if near["lo"] >= 1 else []
                    unbounded += [(r.repo, math.inf)] if figure == "hls" and near["lo"] < 1 else []
                if figure == "implemented" and near["lo"] >= 1:
                    done_widths.append((r.repo, near["hi"] / near["lo"]))
            coverage.append((figure, quantity, len(inside), _share(inside), len(within), _share(within), len(width),
                             _median(width)))
            widths += width if figure == "hls" else []
            everything[figure] += inside
    good = [c for c in coverage if c[0] == "hls"]
    for figure, text in (("hls", "HLS"), ("implemented", "implemented")):
        own, all_of = [c for c in coverage if c[0] == figure and c[2]], everything[figure]
        value, below = _share(all_of), [f"{c[1]} {_percent(c[3])}" for c in own if c[3] < 0.85]
        bar(f"held-out {text} totals inside the 90 % interval, repositories alike", ">= 85 %", _percent(value),
            value is not None and value >= 0.85, len(all_of), "no such totals" if value is None else
            f"mean of the quantities below {_percent(sum(c[3] for c in own) / len(own))}; totals alike "
            f"{_percent(sum(hit for _, hit in all_of) / len(all_of))}; by itself "
            + (f"below 85 %: {', '.join(below)}" if below else "none below 85 %")
            + (f"; upper over lower: median {_median(done_widths):.1f}" if figure == "implemented" and done_widths
               else ""))
    value = _median(widths) or math.inf
    over = [f"{c[1]} {c[7]:.2f}" for c in good if c[7] is not None and c[7] > 2.5]
    bar("interval of HLS totals, upper over lower, where the data reaches", "median <= 2.5", f"{value:.2f}",
        value <= 2.5, len(widths), "over all totals; by quantity " + (f"above 2.5: {', '.join(over)}" if over else
        "none above 2.5") + (f"; {_median(widths + unbounded):.2f} with the {len(unbounded)} of a lower bound below 1 "
                             "taken as infinitely wide" if unbounded else ""))
    done = [r for r in every if r.layer is None and r.figure == "implemented"]
    baselines = []
    for figure, own in (("hls", totals), ("implemented", done)):
        for quantity in cost.QUANTITIES:
            ours = {r.design: r for r in own if r.quantity == quantity}
            line = log_linear(designs, quantity, figure)
            taken = [n for n in ours if (others or {}).get(n, {}).get(quantity) is not None]
            guesses = {"line": {n: line[n] for n in line if n in ours},
                       "other": {n: others[n][quantity] for n in taken}}
            errors = {"ours": {n: r.error for n, r in ours.items()}} | {
                who: {n: abs(value - ours[n].reported) / max(ours[n].reported, 1) for n, value in guess.items()}
                for who, guess in guesses.items()}
            common, both = [n for n in ours if n in line], [n for n in taken if n in line]

            def middle(who: str, names: list[str], errors=errors, ours=ours) -> float | None:
                return _median([(ours[n].repo, errors[who][n]) for n in names])

            baselines.append([figure, quantity, len(common), middle("ours", common), middle("line", common), len(both),
                              middle("ours", both), middle("line", both), middle("other", both)])
    for what, column in (("a log-linear fit on MACs and bits", 4), (f"{other_name or 'the other estimator'}", 8)):
        worse = [f"{row[1]} ({row[0]})" for row in baselines if row[column] is not None
                 and row[3 if column == 4 else 6] > row[column]]
        known = [row for row in baselines if row[column] is not None]
        if known:
            bar(f"median errors against {what}", "better", f"{len(known) - len(worse)} of {len(known)} better",
                not worse, sum(row[2 if column == 4 else 5] for row in known),
                "figure by figure, below" + (f"; worse: {', '.join(worse)}" if worse else ""))
    classes: dict[tuple, list[Row]] = {}
    for r in totals:
        d = by_name[r.design]
        classes.setdefault((d.tool, d.strategy, d.bit_class), []).append(r)
    shipped, one_each = intervals_from(every), {d.repo: factors[d.name] for d in designs}
    used: dict[str, tuple[float, float, float, float]] = {}
    for quantity in TOTALS:
        of_folds = [fold["intervals"].get(f"total.hls.{quantity}") for fold in one_each.values()]
        if known := [fold["factor"] for fold in of_folds if fold]:
            used[quantity] = (min(known), float(np.median(known)), max(known),
                              shipped[f"total.hls.{quantity}"]["factor"])
    return {"bars": bars, "coverage": coverage, "factors": used, "baselines": baselines, "classes": classes,
            "totals": totals, "boards": boards(designs, factors), "cosims": cosims(designs), "designs": by_name,
            "layers": {
                key: describe([r for r in every if r.layer and r.quantity == key]) for key in
                ("lut", "ff", "dsp", "bram18", "latency_max") if any(r.layer and r.quantity == key for r in every)}}


def _layer_of(by_name: Mapping[str, Design], row: Row):
    return next(x for x in by_name[row.design].layers if x.name == row.layer)


def _kind(by_name, row: Row) -> str:
    return _layer_of(by_name, row).kind if row.layer else ""


def _strategy(by_name, row: Row) -> str:
    layer = _layer_of(by_name, row)
    return (layer.parts[0].strategy if layer.parts else layer.strategy) if layer.kind in cost.MULTIPLYING else ""


@dataclass(frozen=True)
class Board:
    """A measured design. ``host``: repository, part, network class and how frames get there; ``cycles`` per frame in
    hardware, from ``source`` ("simulated chain", where the layers are one on streams, or "model")."""

    design: str
    host: tuple[str, str, str, str]
    cycles: int
    source: str
    predicted_us: float
    measured_us: float


WAYS = {"one DMA call": "DMA, many frames a call", "MMIO": "register writes", "AXI-master": "AXI master",
        "axi_master": "AXI master", "DMA": "DMA, one frame a call"}
"""How frames get to the board, by the first of these words in what a design says about its measurement."""


def boards(designs: list[Design], factors: Mapping) -> list[Board]:
    """Predicted and measured time of every design with a board's figure and published reuse factors."""
    found = []
    for d in designs:
        board = (d.raw.get("totals") or {}).get("board") or {}
        rate = board.get("throughput_per_s")
        known = all(raw.get("reuse_factor") for raw in d.raw["layers"] if isinstance(raw.get("n_params"), dict)
                    and raw["n_params"].get("weights") and "separable" not in raw)
        if not isinstance(rate, (int, float)) or not rate or not known:
            continue
        text = " ".join([str(board.get("how")), str(board.get("batch")), *map(str, d.raw.get("notes") or [])])
        way = next((name for word, name in WAYS.items() if word in text), "way of transfer unknown")
        network = chain(d)
        if network is not None:
            result = network.simulate(None, frames=3)
            latency, interval, source = result.latency, result.interval, "simulated chain"
        else:
            whole = cost.network_cycles(d.layers, d.target, factors[d.name])
            latency, interval, source = whole["latency"], whole["interval"], "model"
        cycles = interval if "many frames" in way else latency
        clock = 200.0 if "FCLK0 200" in text or "200 MHz FCLK0" in text else 100.0
        kind = "CNN" if any(x.kind == "conv" for x in d.layers) else "MLP"
        found.append(Board(d.name, (d.repo, str(d.raw.get("part")), kind, way), cycles, source, cycles / clock,
                           1e6 / rate))
    return found


def cosims(designs: list[Design]) -> list[tuple[str, float | None, int | None, int]]:
    """(design, csynth's maximum, simulated latency or None where the layers are no chain of ours, cycles of RTL
    cosimulation) of every design with a cosimulated latency."""
    found = []
    for d in designs:
        cycles = ((d.raw.get("totals") or {}).get("cosim") or {}).get("lat_max")
        if isinstance(cycles, int):
            network = chain(d)
            found.append((d.name, d.reported.get("latency"),
                          None if network is None else network.simulate(None, frames=2).latency, cycles))
    return found


def chain(design: Design) -> Network | None:
    """The processes of a design on streams whose layers follow one another, for :mod:`hls.dataflow`; None for others.

    Where no header tells what hls4ml made of a Resource layer's reuse factor, it is the nearest legal one."""
    if not design.target.stream or any(x.serial or x.parts or x.kind in ("merge", "clone", "other", "resize")
                                       for x in design.layers):
        return None
    shape = design.layers[0].in_shape if design.layers[0].kind != "conv" else \
        tuple(int(n) for n in design.raw["layers"][0].get("in_shape") or design.layers[0].in_shape)
    made: list[tuple[str, str, dict]] = [("unpack", "unpack", {"tokens": math.prod(shape[:-1]), "cycles": 1})]
    for x in design.layers:
        rows, columns = _plane(shape)
        high, wide = _plane(x.in_shape)
        if x.kind in ("conv", "pad"):
            grown = _plane(x.out_shape) if x.kind == "pad" else (high, wide)
            more = (grown[0] - rows, grown[1] - columns)
            if min(more) < 0:
                return None
            if x.kind == "pad" or max(more):
                made.append((f"pad of {x.name}", "pad", {
                    "height": rows, "width": columns, "top": more[0] // 2, "bottom": more[0] - more[0] // 2,
                    "left": more[1] // 2, "right": more[1] - more[1] // 2}))
        if x.kind in ("conv", "pool"):
            tall, across = (x.kernel if len(x.kernel) > 1 else (1, *x.kernel)) or (1, 1)
            down, right = (x.stride if len(x.stride) > 1 else (1, *x.stride)) if x.stride else (1, 1)
            about = {"height": high, "width": wide, "kernel_height": tall, "kernel_width": across,
                     "stride_height": down, "stride_width": right, "pointwise": int(x.kind == "conv" and
                     tall == across == 1)}
            if x.kind == "conv":
                about |= {"resource": int(x.strategy == "resource"), "reuse_factor": _folded(x, design)}
            made.append((x.name, "convolution" if x.kind == "conv" else "pooling", about))
        elif x.kind in ("dense", "globalpool"):
            factor = _folded(x, design) if x.kind == "dense" else 1
            made.append((x.name, "gather", {"tokens": rows * columns, "reuse_factor": factor}))
        elif x.kind not in ("pad", "reshape"):
            made.append((x.name, "elementwise", {"tokens": rows * columns}))
        if x.kind != "reshape":
            shape = x.out_shape
    made.append(("pack", "pack", {"tokens": math.prod(_plane(shape)), "cycles": shape[-1]}))
    last = len(made) - 1
    processes = [Process(name, kind, about, (() if not i else (f"f{i - 1}",)) + ((LASTS,) if i == last else ()),
                         (() if i == last else (f"f{i}",)) + ((LASTS,) if not i else ()))
                 for i, (name, kind, about) in enumerate(made)]
    try:
        return Network(processes, {}, dataflow.timing_for(design.target))
    except dataflow.DataflowError:
        return None


def _plane(shape: tuple[int, ...]) -> tuple[int, int]:
    return (1, 1) if len(shape) < 2 else (1, shape[0]) if len(shape) == 2 else (shape[0], shape[1])


def _folded(layer: LayerSpec, design: Design) -> int:
    if layer.strategy == "latency":
        return max(round(cost.layer_cycles(layer, design.target)["per_output"]), 1) if layer.kind == "conv" else 1
    legal = legal_reuse_factors(layer.n_in, layer.n_out)
    return layer.factor if layer.factor in legal else min(legal, key=lambda f: (abs(f - layer.factor), f))


def page(designs: list[Design], refused: Mapping[str, str], others: Mapping | None, command: str) -> str:
    """The page docs/results/estimator.md."""
    named = (others or {}).get("estimator", "")
    s = study(designs, (others or {}).get("predictions"), named)
    lines = [
        "# The cost model against published designs", "",
        f"`{command}`. {len(designs)} designs of {len({d.repo for d in designs})} public repositories with "
        f"reports of real "
        "tools and boards. Evidence of every prediction: estimated. Coefficients are fitted leaving one "
        "repository out at a "
        "time and every repository counts alike; errors are |predicted - reported| / reported.", "",
        "What is not held out: the *structure* (which pragma becomes what, at which width a DSP is taken, how deep a "
        "FIFO may be before it needs a memory, what forks do) was written by people who had read all of these reports; "
        "the *form* of terms was changed where these same folds showed large residuals, and kept when their errors "
        "fell; and one strength (how far coefficients may leave their first-principles values) was chosen among five "
        "on the same folds. So the figures below are better than those of a set nobody has seen. Coefficients are "
        "out-of-sample, and intervals doubly so (nested folds). A judgment on other "
        "designs is the better test.",
        "",
        "**The first measurement to ask users for.** No published design covers Vitis HLS 2022.2 or later with "
        "Resource "
        "strategy and a reuse factor above 1, which is what this project builds. There the structure is derived "
        "from the "
        "templates of hls4ml 1.3.0 (multipliers = n / reuse factor, one weight word per step, one packed FIFO "
        "per stream), "
        "coefficients are Vivado HLS's, figures are tagged `estimated (extrapolated)`, intervals are widened by "
        "1.3 on each "
        "side, and no accuracy is claimed. For products of at most 4 bits there is one published row (Vivado "
        "HLS 2020.1, "
        "which spends a DSP per pair of products); under Vitis HLS they are assumed to be LUT multipliers of "
        "0.8 x weight bits "
        "x activation bits times the fitted factor, and no DSP.", "",
        "## The bars", "",
        *_table(["what", "asked", "achieved", "met", "on how many", "remark"], s["bars"]),
        "## Coverage and width of the 90 % intervals", "",
        "Factors around a held-out prediction, symmetric in the logarithm: normalized conformal prediction. Errors are "
        "divided by what is typical of a design's class (drawn towards all designs of its kind where few repositories "
        "tell), and the 90 % quantile of these over repositories, times what is typical, is the reach. Kinds are stock "
        "designs, serial forks, and Latency designs whose zeros nobody published; a kind of fewer than three "
        "repositories gets the reach of all, at least a factor of 2.5. Within a kind, classes are strategy, then "
        "compiler, then whether most weights are zero. Nested: for every repository the errors are those of the "
        "others, each predicted by a fit without itself and without the repository in question.", "",
        "A quantile taken from errors that were divided by their own classes' means is too sure of repositories it has "
        "not seen. So the logarithmic reach of a quantity is multiplied by one factor, at least 1: that with which, "
        f"among the repositories at hand, {100 * SHARE:.0f} % of the figures (repositories alike) are held by reaches "
        "made without their own repository. Chosen in the training folds alone: the repository judged here has no part "
        "in the fits, the reaches or the factor. (Only within a training fold is it one level short: the fit that "
        "predicts one of its repositories saw the one whose reach is being tested.) A quantity told by fewer than "
        f"{CALIBRATED} repositories has no factor, as a 90 % quantile of so few is their worst. That is so for "
        "implemented totals: their shares inside are shown uncorrected, and what is called their 90 % interval held "
        "less of LUT and BRAM18 than 85 %, though it is wide.", "",
        *_table(["quantity", "factor, least of the folds", "median", "largest", "in the product"],
                [(q, *(f"{v:.2f}" for v in values)) for q, values in s["factors"].items()]),
        "The classes were settled on while looking at these folds. What else was tried (without factors): no classes, "
        "87.6 % inside "
        "(mean over quantities) at a median width of 2.83; strategy alone, with compiler, with zeros, with streams or "
        "arrays: 85.9 to 87.5 % at 1.96 to 2.06; strategy, zeros, compiler: 86.6 % at 1.84; classes chosen per "
        "quantity, or once for all, by Winkler's score in the inner folds: 85.2 % at 1.95, 86.2 % at 2.45; the "
        "finite-sample quantile, (n + 1)/n of 0.9: 1 to 4 % more inside at a width of 2.9 to 4.3.", "",
        "The factors were added when these classes without them were seen to hold 87.1 % (mean over quantities), but "
        "83.6 % of all totals with repositories alike (FF 81.7 %, DSP 84.9 %), at a median width of 1.83. Two ways "
        "were written down before either was computed, the first to be taken: a factor per quantity (88.9 % of all "
        "totals, width 2.18, taken); one factor for all quantities (89.8 %, width 3.09, FF 10.5). Seen after that: "
        "factors for implemented totals too, whose eight repositories give 4.1 for LUT and 5.2 for BRAM18 and hold "
        "87.5 % and 85.4 %, as the worst repository alone sets them and reaches of Resource designs grow to their "
        f"bound, a factor of 20 to each side; so the least number of {CALIBRATED} repositories was set with these "
        "figures known.", "",
        f"Where the data reaches: stock designs whose strategy at least {REACH} other repositories report the quantity "
        "for. This was not defined blindly: residuals, and the widths of intervals of stock designs alone, had been "
        "seen before the definition was fixed. Widths are of these; figures whose lower bound is below 1 have "
        "no ratio (small counts) and are not counted; the bar also gives the median with them taken as infinite.", "",
        *_table(["figure", "quantity", "held-out totals", "inside", "where the data reaches", "inside", "with a ratio",
                 "upper / lower, median"],
                [(f, q, n, _percent(c), m, _percent(i), k, "-" if w is None else f"{w:.2f}")
                 for f, q, n, c, m, i, k, w in s["coverage"]]),
        "## Against simpler and other estimators", "",
        "Median errors. Log-linear: log(figure) on log(MACs) and log(mean weight bits), the same folds. "
        + (f"Other: {named}, which was trained on other data and not refitted; it takes one precision and one reuse "
           "factor per network and knows four boards, so it is given the nearest "
           "(docs/results/rule4ml_predict.py)." if others else
           "No other estimator's predictions were given."), "",
        *_table(["figure", "quantity", "designs", "ours", "log-linear", "designs all take", "ours there",
                 "log-linear there", "other there"],
                [(f, q, n, _percent(a), _percent(b), m, _percent(c), _percent(d), _percent(e))
                 for f, q, n, a, b, m, c, d, e in s["baselines"]]),
        "## Totals by toolchain, strategy and bits", "",
        "Median (90th percentile) of errors of HLS totals.", "",
    ]
    rows = []
    for key, group in sorted(s["classes"].items()):
        cells = []
        for quantity in TOTALS:
            own = [r for r in group if r.quantity == quantity]
            cells.append(f"{_percent(describe(own)['median'])} ({_percent(describe(own)['p90'])})" if own else "-")
        rows.append((*key, len({r.design for r in group}), *cells))
    lines += _table(["tool", "strategy", "bits", "designs", *TOTALS], rows)
    lines += ["## Layers", "",
              "Errors of single rows; HLS's own estimate of a layer depends on its mapping of selections "
              "(mux or barrel shifter) that no input tells.", "",
              *_table(["quantity", "rows", "median", "p90", "exact"], [
                  (k, v["n"], *(_percent(v[c]) for c in ("median", "p90", "exact"))) for k, v in s["layers"].items()])]
    lines += ["## Every residual", "", "reported / predicted of HLS totals, leaving the repository out.", ""]
    table: dict[str, dict[str, Row]] = {}
    for r in s["totals"]:
        table.setdefault(r.design, {})[r.quantity] = r
    cells = []
    for name, own in sorted(table.items()):
        d = s["designs"][name]
        cells.append((name, d.tool, d.strategy, *(
            f"{own[q].reported:.0f} / {own[q].predicted:.0f}" if q in own else "-" for q in TOTALS)))
    lines += _table(["design", "tool", "strategy", *TOTALS], cells)
    lines += ["Large ones and why:", "",
              "- The width of FF intervals: FF depends on where HLS cuts its pipelines, which the model knows only as "
              "delay over clock period; Latency layers at slow clocks (pominiq slp, 25 ns) are the worst.",
              "- Edited forks and layers of hls4ml 0.1 that pass values one at a time (`_me`, `large`: "
              "deepcalo, yolo, face "
              "detection, LeNet): their templates are not ours; they only widen the intervals of their own class.",
              "- HGQ-trained networks at high compression (openml 3_1_3 to 3_1_5): most outputs are constant "
              "after training, "
              "which counts of nonzero weights do not tell.",
              "- Latency designs without published weights (liu): three quarters of them are zero, the model "
              "assumes none.",
              "- 3x3x8 convolution under Vivado HLS 2019.2 (yanlun): HLS selects the input with a barrel "
              "shifter of the whole "
              "window (1152 bits x 6 stages, its `Expression` row) where other versions count a mux of 145 LUT.",
              "- 2019.2 to 2020.1 convolutions of 4 channels in hls4ml 0.7 (pominiq, Resource): channels are "
              "walked in loops "
              "there, 28 cycles more per pixel.", "",
              "## Boards", "",
              "Measured microseconds per frame against cycles at the board's clock: the dataflow simulation of the "
              "chain of layers, first frame (frames sent one at a time) or interval (many per call), with FIFOs "
              "without bounds; the cost model's own composition where layers are not on streams. What is left is the "
              "host's: driver, transfer, memory. One constant per host and network class, fitted on one design "
              "and tested on another of the same host, class and way of transfer, is a time added per frame; the "
              "factor is shown beside it. That the time is the better constant was seen on the one pair there is.", "",
              *_table(["design", "cycles", "from", "predicted us", "measured us", "measured - predicted"],
                      [(b.design, b.cycles, b.source, f"{b.predicted_us:.1f}", f"{b.measured_us:.1f}",
                        f"{b.measured_us - b.predicted_us:+.1f}") for b in s["boards"]]),
              *_board_tests(s["boards"])]
    if s["cosims"]:
        lines += ["## RTL cosimulation", "",
                  "Cycles from the first token in to the last out. csynth's maximum takes every pixel for one that "
                  "completes a window; the dataflow simulation (with a wrapper's packing of the outputs) does not.", "",
                  *_table(["design", "csynth, maximum", "simulated dataflow", "RTL cosimulation", "off"],
                          [(n, "-" if m is None else f"{m:.0f}", "an edited fork" if k is None else k, c,
                            "-" if k is None else _percent(abs(k - c) / c)) for n, m, k, c in s["cosims"]])]
    if refused:
        lines += ["## Left out", "", *(f"- {name}: {why.splitlines()[0]}" for name, why in sorted(refused.items())), ""]
    return "\n".join(lines).rstrip() + "\n"


def _board_tests(found: list[Board]) -> list[str]:
    groups: dict[tuple, list[Board]] = {}
    for row in found:
        groups.setdefault(row.host, []).append(row)
    lines = []
    for (repo, part, kind, way), group in sorted(groups.items()):
        title = f"- {repo}, {kind} on {part}, {way}: "
        if len(group) < 2:
            one = group[0]
            lines.append(title + f"no second design of this host and class; its constant, "
                         f"{one.measured_us - one.predicted_us:+.1f} us or a factor of "
                         f"{one.measured_us / one.predicted_us:.2f}, is untested.")
            continue
        for fitted, tested in itertools.permutations(group, 2):
            added = tested.predicted_us + fitted.measured_us - fitted.predicted_us
            scaled = tested.predicted_us * fitted.measured_us / fitted.predicted_us
            lines.append(title + f"fitted on {fitted.design} ({fitted.measured_us - fitted.predicted_us:+.1f} us, or a "
                         f"factor of {fitted.measured_us / fitted.predicted_us:.2f}), tested on {tested.design}: "
                         f"{_percent(abs(added - tested.measured_us) / tested.measured_us)} off with the time added, "
                         f"{_percent(abs(scaled - tested.measured_us) / tested.measured_us)} with the factor.")
    return [*lines, ""]
