"""How good the cost model is on repositories it has not seen: the bars, the errors by class, every residual.

``python -m hls.estimator --designs DIR --page docs/results/estimator.md`` writes the page.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from hls import cost
from hls.estimator import (
    Design,
    Row,
    _weights,
    describe,
    given_hls,
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


def log_linear(designs: list[Design], quantity: str) -> dict[str, float]:
    """The baseline: log(figure) linear in log(MACs) and log(bits), fitted leaving one repository out."""
    known = [d for d in designs if d.reported["hls"].get(quantity, 0) > 0 and d.macs]

    def features(design: Design) -> list[float]:
        bits = {"<=8": 8, "9-16": 16, ">16": 32}[design.bit_class]
        widths = [p.weight_bits for x in design.layers for p in (x.parts or (x,)) if p.weights]
        return [1.0, math.log(design.macs), math.log(sum(widths) / len(widths) if widths else bits)]

    found = {}
    for repo in {d.repo for d in known}:
        train = [d for d in known if d.repo != repo]
        root = np.sqrt(_weights((d.repo for d in train), [1.0] * len(train)))
        matrix = np.array([features(d) for d in train]) * root[:, None]
        values = np.log([d.reported["hls"][quantity] for d in train]) * root
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


def held_out(designs: list[Design]) -> tuple[dict[str, list[Row]], dict[str, dict]]:
    """({design: its rows predicted without its repository}, {design: the factors around them}); the factors come
    from the other repositories' held-out errors."""
    without = leave_out(designs)
    rows = {d.name: rows_of(d, without[d.name]) for d in designs}
    factors = {}
    for repo in {d.repo for d in designs}:
        found = intervals_from(r for d in designs if d.repo != repo for r in rows[d.name])
        factors |= {d.name: without[d.name] | {"intervals": found} for d in designs if d.repo == repo}
    return rows, factors


def study(designs: list[Design], others: Mapping[str, Mapping] | None = None) -> dict:
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
    coverage = []
    for figure in ("hls", "implemented"):
        for quantity in TOTALS if figure == "hls" else cost.QUANTITIES:
            inside, width = [], []
            for r in every:
                if r.layer is None and (r.figure, r.quantity) == (figure, quantity):
                    near = cost.spread(r.predicted, factors[r.design], "total", figure, quantity, r.kind)
                    inside.append((r.repo, near["lo"] - 0.5 <= r.reported <= near["hi"] + 0.5))
                    if r.kind == "stock" and near["lo"] >= 1:
                        width.append((r.repo, near["hi"] / near["lo"]))
            coverage.append((figure, quantity, len(inside), _share(inside), _median(width)))
    good = [c for c in coverage if c[0] == "hls"]
    value = sum(c[3] for c in good) / len(good)
    bar("held-out HLS totals inside the 90 % interval", ">= 85 %", _percent(value), value >= 0.85,
        sum(c[2] for c in good), "each quantity below")
    widths = [c[4] for c in good if c[4] is not None]
    value = sorted(widths)[len(widths) // 2]
    bar("interval, upper over lower, median (stock designs)", "<= 2.5", f"{value:.2f}", value <= 2.5, len(widths),
        "quantities; each below")
    done = [r for r in every if r.layer is None and r.figure == "implemented"]
    baselines = []
    for quantity in ("lut", "ff", "dsp", "bram18"):
        ours = {r.design: r for r in totals if r.quantity == quantity}
        line = log_linear(designs, quantity)
        reported = {d.name: d.reported["hls"].get(quantity) for d in designs}
        common = [n for n in line if n in ours]
        entry = [quantity, len(common), _median([(ours[n].repo, ours[n].error) for n in common]),
                 _median([(ours[n].repo, abs(line[n] - reported[n]) / max(reported[n], 1)) for n in common])]
        taken = [n for n in (others or {}) if n in ours and (others or {})[n].get(quantity) is not None]
        theirs = [(ours[n].repo, abs(others[n][quantity] - reported[n]) / max(reported[n], 1)) for n in taken]
        entry += [len(taken), _median([(ours[n].repo, ours[n].error) for n in taken]), _median(theirs)]
        final = {r.design: r for r in done if r.quantity == quantity and r.design in (others or {})
                 and others[r.design].get(quantity) is not None}
        entry += [len(final), _median([(r.repo, r.error) for r in final.values()]),
                  _median([(r.repo, abs(others[n][quantity] - r.reported) / max(r.reported, 1))
                           for n, r in final.items()])]
        baselines.append(entry)
    classes: dict[tuple, list[Row]] = {}
    for r in totals:
        d = by_name[r.design]
        classes.setdefault((d.tool, d.strategy, d.bit_class), []).append(r)
    return {"bars": bars, "coverage": coverage, "baselines": baselines, "classes": classes, "totals": totals,
            "boards": boards(designs, factors), "designs": by_name, "layers": {
                key: describe([r for r in every if r.layer and r.quantity == key]) for key in
                ("lut", "ff", "dsp", "bram18", "latency_max") if any(r.layer and r.quantity == key for r in every)}}


def _layer_of(by_name: Mapping[str, Design], row: Row):
    return next(x for x in by_name[row.design].layers if x.name == row.layer)


def _kind(by_name, row: Row) -> str:
    return _layer_of(by_name, row).kind if row.layer else ""


def _strategy(by_name, row: Row) -> str:
    layer = _layer_of(by_name, row)
    return (layer.parts[0].strategy if layer.parts else layer.strategy) if layer.kind in cost.MULTIPLYING else ""


def boards(designs: list[Design], factors: Mapping) -> list[tuple]:
    """(design, board, cycles of the slowest layer in hardware, microseconds at the board's clock, measured, ratio)."""
    found = []
    for d in designs:
        board = (d.raw.get("totals") or {}).get("board") or {}
        rate = board.get("throughput_per_s")
        known = all(raw.get("reuse_factor") for raw in d.raw["layers"] if isinstance(raw.get("n_params"), dict)
                    and raw["n_params"].get("weights") and "separable" not in raw)
        if not isinstance(rate, (int, float)) or not rate or not known:
            continue
        slowest = 0.0
        for x in d.layers:
            cycles = cost.layer_cycles(x, d.target, factors[d.name])
            if x.kind == "conv" and d.target.stream and cycles["per_output"]:
                pixels, outputs = math.prod(x.in_shape[:-1]), math.prod(x.out_shape[:-1])
                busy = outputs * cycles["per_output"] + max(pixels - outputs, 0) * cycles["per_idle"]
            else:
                busy = cycles["interval"]
            slowest = max(slowest, busy)
        text = " ".join([str(board.get("how")), *map(str, d.raw.get("notes") or [])])
        clock = 200.0 if "FCLK0 200" in text else 100.0
        predicted = slowest / clock
        found.append((d.name, d.repo, round(slowest), predicted, 1e6 / rate, 1e6 / rate / max(predicted, 1e-9)))
    return found


def page(designs: list[Design], refused: Mapping[str, str], others: Mapping | None, command: str) -> str:
    """The page docs/results/estimator.md."""
    s = study(designs, (others or {}).get("predictions"))
    named = (others or {}).get("estimator", "")
    lines = [
        "# The cost model against published designs", "",
        f"`{command}`. {len(designs)} designs of {len({d.repo for d in designs})} public repositories with "
        f"reports of real "
        "tools and boards. Evidence of every prediction: estimated. Coefficients are fitted leaving one "
        "repository out at a "
        "time and every repository counts alike; errors are |predicted - reported| / reported.", "",
        "What is not held out: the *structure* (which pragma becomes what, at which width a DSP is taken, how deep a "
        "FIFO may be before it needs a memory, what forks do) was written by people who had read all of these reports, "
        "and one strength (how far coefficients may leave their first-principles values) was chosen among five on the "
        "same folds. Only coefficients and intervals are out-of-sample. A judgment on other designs is the "
        "better test.",
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
        "Factors around a held-out prediction come from the other repositories' held-out errors: symmetric in "
        "the logarithm; "
        "stock designs, serial forks and Latency designs whose zeros nobody published have factors of their own "
        "where there "
        "are at least three repositories, else the pooled ones. Widths are of stock designs.", "",
        *_table(["figure", "quantity", "held-out totals", "inside", "upper / lower, median"],
                [(f, q, n, _percent(c), "-" if w is None else f"{w:.2f}") for f, q, n, c, w in s["coverage"]]),
        "## Against simpler and other estimators", "",
        "Median errors of HLS totals. Log-linear: log(figure) on log(MACs) and log(mean weight bits), the same folds. "
        + (f"Other: {named}, which was trained on other data and not refitted; it takes one precision and one reuse "
           "factor per network and knows four boards, so it is given the nearest "
           "(docs/results/rule4ml_predict.py)." if others else
           "No other estimator's predictions were given."), "",
        *_table(["quantity", "designs", "ours", "log-linear", "designs both take", "ours there", "other",
                 "with implemented figures", "ours, implemented", "other, implemented"],
                [(q, n, _percent(a), _percent(b), m, _percent(c), _percent(d), x, _percent(y), _percent(z))
                 for q, n, a, b, m, c, d, x, y, z in s["baselines"]]),
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
              "- The width of LUT intervals: stock designs fall within a factor of about 1.6, but two of some fifteen "
              "repositories (yanlun, openml, below) are off by 3 to 8, and a held-out 90 % must hold most of one of "
              "them; without these two the ratio is near 2.5.",
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
              "Measured microseconds per frame against the slowest layer's cycles in hardware (outputs x (reuse "
              "factor + c) + "
              "other pixels x c_min) at the board's clock. The ratio is one constant per host and network "
              "class; two designs "
              "of one host and class are needed to test it.", "",
              *_table(["design", "cycles, slowest layer", "predicted us", "measured us", "ratio"],
                      [(n, c, f"{p:.1f}", f"{m:.1f}", f"{k:.2f}") for n, _, c, p, m, k in s["boards"]]),
              *_board_tests(s["boards"])]
    if refused:
        lines += ["## Left out", "", *(f"- {name}: {why.splitlines()[0]}" for name, why in sorted(refused.items())), ""]
    return "\n".join(lines).rstrip() + "\n"


def _board_tests(found: list[tuple]) -> list[str]:
    groups: dict[str, list[tuple]] = {}
    for row in found:
        groups.setdefault(row[1], []).append(row)
    lines = []
    for repo, group in sorted(groups.items()):
        if len(group) < 2:
            lines.append(f"- {repo}: no second design of this host and class; its constant, {group[0][5]:.2f}, is "
                         "untested.")
            continue
        errors = [abs(b[5] - a[5]) / b[5] for a in group for b in group if a is not b]
        lines.append(f"- {repo}: {len(group)} designs; the constant of one applied to another is off by "
                     f"{_percent(sorted(errors)[len(errors) // 2])} in the median"
                     + (" (they differ in host or class: two hosts of one network, and another network)."
                        if "mlcommons" in repo else "."))
    return [*lines, ""]
