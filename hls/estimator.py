"""The cost model against published designs: read them, predict without looking, compare; and fit its coefficients.

A design is one JSON file with layers, precisions, reuse factors and what the tools reported (the format of the
published set). Predictions read a copy from which every reported figure has been taken out.
"""

import argparse
import copy
import json
import math
import re
import reprlib
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from boards.errors import SlimgateError
from hls import cost
from hls.cost import LayerSpec, Target, Traits

REPORTED = ("totals", "fifos", "other_instances", "has")
"""Keys of a design that hold what tools reported; a layer's are ``reported`` and ``quoted``."""
DSP_BLOCKS = {
    "xc7z007s": 66, "xc7z010": 80, "xc7z012s": 120, "xc7z014s": 170, "xc7z015": 160, "xc7z020": 220, "xc7z030": 400,
    "xc7z045": 900, "xc7z100": 2020, "xc7a35t": 90, "xc7a100t": 240, "xc7a200t": 740, "xc7vx690t": 3600,
    "xcku035": 1700, "xcku040": 1920, "xcku060": 2760, "xcku115": 5520, "xczu1": 216, "xczu2": 240, "xczu3": 360,
    "xczu4": 728, "xczu5": 1248, "xczu7": 1728, "xczu9": 2520, "xck26": 1248, "xcu50": 5952, "xcu200": 6840,
    "xcu250": 12288, "xcu280": 9024, "xcvu9p": 6840, "xcvu13p": 12288,
}
"""DSP48 blocks per part (Xilinx product tables DS190, DS180, DS890)."""


class DesignError(SlimgateError):
    """A design file that cannot be read."""


# --- reading -------------------------------------------------------------------------------------------------------


def load_designs(folder: str | Path, refused: dict[str, str] | None = None) -> list[dict]:
    """All ``*.json`` designs of a folder, sorted by file name. A file that is no design raises :class:`DesignError`, or
    is put into ``refused`` with the reason where that is given; a folder without files raises in any case."""
    folder = Path(folder)
    paths = sorted((folder / "designs" if (folder / "designs").is_dir() else folder).glob("*.json"))
    if not paths:
        raise DesignError("no designs (*.json)", where=folder, fix="give a folder that holds one JSON file per design")
    found: dict[str, dict] = {}
    for path in paths:
        try:
            design = _parsed(path)
            if design["name"] in found:
                raise DesignError(f"a second design is called {design['name']}", where=path,
                                  fix="give each design a name of its own, or none: then the file's is taken")
            found[design["name"]] = design
        except DesignError as error:
            if refused is None:
                raise
            refused[path.stem] = str(error)
    return list(found.values())


def _parsed(path: Path) -> dict:
    try:
        design = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DesignError(f"not readable as JSON: {error}", where=path) from error
    if not isinstance(design, dict) or not isinstance(design.get("layers"), list):
        raise DesignError("not a design: it has no list of layers", where=path,
                          fix="one JSON object per file, as in the published set")
    design.setdefault("name", path.stem)
    if not isinstance(design["name"], str):
        raise DesignError(f"its name is {design['name']!r}, not a text", where=path)
    return design


LARGEST = 1e12
"""No figure of a design is larger; what is, is a slip of units."""
CLOCKS_NS = (0.5, 1000.0)
"""Clock periods that are believed: beyond them somebody wrote MHz or seconds."""
_COUNTS = ("LUT", "FF", "DSP", "BRAM_18K", "BRAM_tile_36", "BRAM36_tiles", "latency_cycles_max", "interval_max",
           "latency_max", "latency_min", "reuse_factor", "out_fifo_depth_pragma", "table_size", "multiplier_limit",
           "input_pack", "output_pack", "zeros", "pow2", "csd_nonzero_digits", "max_abs_int", "n_zeros", "n_nonzeros",
           "throughput_per_s")


def check(design: Mapping) -> None:
    """Raise :class:`DesignError` for a field that is not what the format says: an object, list or count that is
    something else, a figure that is negative, not finite or beyond :data:`LARGEST`, a clock period in other units."""

    def wrong(path: str, value, what: str, fix: str | None = None):
        raise DesignError(f"{path} is {reprlib.repr(value)}{what}", where=design.get("name"), fix=fix)

    def figures(value, path: str) -> None:
        if isinstance(value, (int, float)) and (abs(value) > LARGEST or not math.isfinite(value)):
            wrong(path, value, "", "figures are counts, cycles, nanoseconds and microseconds")
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, one in inside:
            figures(one, f"{path}.{key}" if path else str(key))

    def part(holder: Mapping, path: str, key: str, kind: type = dict):
        value = holder.get(key)
        if value is not None and not isinstance(value, kind):
            wrong(f"{path}{key}", value, ", not " + {dict: "an object", list: "a list"}[kind])
        return value or kind()

    def counts(holder: Mapping, path: str) -> None:
        for key in _COUNTS:
            value = holder.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                wrong(f"{path}{key}", value, ", not a count")

    figures(design, "")
    if not isinstance(design.get("layers"), list):
        wrong("layers", design.get("layers"), ", not a list")
    for key in ("toolchain", "yml", "source", "totals"):
        part(design, "", key)
    if not isinstance((design.get("source") or {}).get("repo") or "", str):
        wrong("source.repo", design["source"]["repo"], ", not a text")
    totals = design.get("totals") or {}
    for key in ("csynth", "csynth_wrapper", "vivado_synth", "implemented", "board"):
        counts(part(totals, "totals.", key), f"totals.{key}.")
    counts(part(totals.get("implemented") or {}, "totals.implemented.", "ip_synth"), "totals.implemented.ip_synth.")
    for number, layer in enumerate(design["layers"]):
        path = f"layers.{number}"
        if not isinstance(layer, dict):
            wrong(path, layer, ", not an object")
        counts(layer, f"{path}.")
        for key in ("in_shape", "out_shape", "kernel", "stride"):
            part(layer, f"{path}.", key, list)
        for key in ("reported", "mult", "weight_stats", "separable"):
            counts(part(layer, f"{path}.", key), f"{path}.{key}.")
        memories = part(layer.get("reported") or {}, f"{path}.reported.", "memories")
        for item in part(memories, f"{path}.reported.memories.", "items", list):
            if not isinstance(item, list) or len(item) < 5 or not isinstance(item[4], int):
                wrong(f"{path}.reported.memories.items", item, ", not [name, words, bits, banks, BRAM18, ...]")
    clock = design.get("clock_period_ns")
    clock = clock.get("target") if isinstance(clock, Mapping) else clock
    if clock is not None and (not isinstance(clock, (int, float)) or not CLOCKS_NS[0] <= clock <= CLOCKS_NS[1]):
        wrong("clock_period_ns", clock, "", f"a period in nanoseconds, {CLOCKS_NS[0]:g} to {CLOCKS_NS[1]:g}")


def without_reports(design: Mapping) -> dict:
    """A copy with every reported figure taken out: all that prediction may see."""
    seen = {k: copy.deepcopy(v) for k, v in design.items() if k not in REPORTED}
    seen["layers"] = [{k: v for k, v in layer.items() if k not in ("reported", "quoted")} for layer in seen["layers"]]
    clock = design.get("clock_period_ns")
    seen["clock_period_ns"] = {"target": clock.get("target")} if isinstance(clock, Mapping) else clock
    return seen


def _bits(precision, otherwise: int | None) -> int | None:
    match = re.match(r"\s*(?:ap_|ac_)?u?(?:fixed|int)\s*<\s*(\d+)", str(precision or ""))
    return max(int(match[1]), 1) if match else otherwise


def _kind(name: str) -> str:
    name = name.lower()
    if "merged" in name and "relu" in name and "conv" not in name:
        return "reshape"
    for pattern, kind in (
        (r"global_?pool", "globalpool"), (r"pool", "pool"), (r"conv", "conv"),
        (r"quantizer$|^h_quantize|^h_.*quantize", "activation"), (r"dense|gemm|matmul", "dense"),
        (r"softmax", "softmax"),
        (r"tanh|sigmoid|softplus|softsign|selu|elu$|elu_", "table") if "relu" not in name else (r"relu", "activation"),
        (r"relu|linear|quant|clip|identity|hard_", "activation"), (r"normali|batch", "norm"), (r"pad", "pad"),
        (r"resize|upsampl|up_sampl", "resize"), (r"add|concat|merge|mult|subtract|average|maximum|minimum", "merge"),
        (r"clone|repack|broadcast", "clone"), (r"reshape|flatten|transpose|input", "reshape"),
    ):
        if re.search(pattern, name):
            return kind
    return "other"


def target_of(design: Mapping) -> Target:
    """Part, clock and toolchain of a design. CostError for a part nobody has data for."""
    tools = design.get("toolchain") or {}
    label = f"{tools.get('hls_tool') or ''} {tools.get('backend') or ''}".lower()
    year = re.search(r"(20\d\d)\.(\d)", str(tools.get("hls_version") or ""))
    version = float(f"{year[1]}.{year[2]}") if year else None
    if version is not None and version >= 2020.2:
        toolchain = "vitis_hls"
    elif version is not None or "vivado" in label:
        toolchain = "vivado_hls"
    elif "vitis" in label or not label.strip():
        toolchain = "vitis_hls"
    else:
        toolchain = label.strip().replace(" ", "_")
    clock = design.get("clock_period_ns")
    clock = clock.get("target") if isinstance(clock, Mapping) else clock
    part = str(design.get("part") or "xc7z020")
    dsp = max((k for k in DSP_BLOCKS if part.lower().startswith(k)), key=len, default=None)
    io = design.get("io_type") or "io_stream"
    pragma = design.get("top_pragma")
    newest = re.search(r"1\.([2-9])", str(tools.get("hls4ml_version") or ""))
    grade = re.search(r"-([123])$", part.lower())
    forced = re.search(r"config_op mul -impl (dsp|fabric)", json.dumps(design.get("notes") or []).replace('\\"', '"'))
    return Target(
        family=cost.family_of(part), clock_ns=float(clock or 10.0), toolchain=toolchain,
        version=version or (2020.1 if toolchain == "vivado_hls" else 2022.2), io=io,
        dataflow="DATAFLOW" in pragma.upper() if pragma else io == "io_stream",
        dsp_available=DSP_BLOCKS.get(dsp), multiplier=forced[1] if forced else "auto",
        speed_grade=int(grade[1]) if grade else 1,
        softmax_run_time_table=True if newest and toolchain == "vitis_hls" else None,
    )


def layers_of(design: Mapping, target: Target) -> list[LayerSpec]:
    """The layers of a design (:func:`without_reports`), as robust to missing fields as can be: nulls take the
    neighbor's value or hls4ml's default."""
    found: list[LayerSpec] = []
    used: set[str] = set()
    # hls4ml 0.1's variants for layers too large to unroll walk their arrays in loops, all layers of such a design alike
    large = not target.stream and any("large" in str(x.get("type")) for x in design["layers"])
    shape, bits = None, _bits((design.get("yml") or {}).get("Model.Precision"), 16)
    default = str((design.get("yml") or {}).get("Model.Strategy") or "").lower()
    for position, raw in enumerate(design["layers"]):
        name = str(raw.get("name") or f"layer_{position}")
        while name in used:
            name += "_"
        used.add(name)
        try:
            layer = _layer(raw, name, shape, bits, target, default)
            layer = replace(layer, serial=layer.serial or large)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise DesignError(f"layer {name} cannot be read: {error!r}", where=design.get("name")) from error
        found.append(layer)
        shape, bits = layer.out_shape, layer.output_bits
    return found


def _shape(values) -> tuple[int, ...] | None:
    flat = tuple(int(v) for v in values if v is not None) if values else ()
    return flat if flat else None


def _folded(flat: tuple[int, ...], before: tuple[int, ...] | None, pack, stream: bool) -> tuple[int, ...]:
    """hls4ml flattens shapes of activations; the channels come back from the neighbor or from the pack width."""
    if len(flat) > 1 or not stream:
        return flat
    if before and math.prod(before) == flat[0]:
        return before
    if pack and flat[0] % int(pack) == 0:
        return (flat[0] // int(pack), int(pack)) if flat[0] > int(pack) else flat
    return flat


def _layer(raw: Mapping, name: str, before, bits_before: int, target: Target, default: str) -> LayerSpec:
    kind_text = str(raw.get("type") or "other")
    kind, serial = _kind(kind_text), bool(re.search(r"_me\b|_me$|dense_ss", kind_text.lower()))
    given = raw.get("in_shape")
    in_shape = _shape(given) or before or (1,)
    in_shape = _folded(in_shape, before, raw.get("input_pack"), target.stream)
    out_shape = _shape(raw.get("out_shape"))
    if out_shape is None:
        out_shape = in_shape[-1:] if kind == "globalpool" else in_shape
    elif kind not in ("conv", "pool", "dense", "globalpool"):
        same = math.prod(out_shape) == math.prod(in_shape)
        out_shape = in_shape if same else _folded(out_shape, None, raw.get("output_pack"), target.stream)
    mult = raw.get("mult") or {}
    params = raw.get("n_params")
    weights = params.get("weights") if isinstance(params, Mapping) else None
    kernel = tuple(int(v) for v in raw.get("kernel") or ())
    depthwise = "depthwise" in kind_text.lower()
    n_in = n_out = 0
    if kind == "dense":
        in_shape = in_shape if math.prod(in_shape) else (1,)
        n_in, n_out = math.prod(in_shape), out_shape[-1]
    elif kind == "conv":
        kernel = kernel or (1,) * max(len(in_shape) - 1, 1)
        n_in = math.prod(kernel) * (1 if depthwise else in_shape[-1])
        n_out = out_shape[-1]
    count = int(weights or n_in * n_out)
    stats = raw.get("weight_stats") or {}
    zeros = stats.get("zeros", raw.get("n_zeros") if raw.get("n_nonzeros") is None else None)
    live = count - int(zeros) if zeros is not None else raw.get("n_nonzeros")
    factor = int(mult.get("reuse_factor") or raw.get("reuse_factor") or 1)
    strategy = str(raw.get("strategy") or mult.get("strategy") or "").lower()
    if strategy not in ("latency", "resource"):
        large = "large" in kind_text or (factor > 1 and kind in cost.MULTIPLYING)
        strategy = default if default in ("latency", "resource") else "resource" if large else "latency"
    input_bits = _bits(raw.get("input_precision"), bits_before)
    wide = _bits(raw.get("weight_precision"), 16)
    out_bits = _bits(raw.get("result_precision"), input_bits)
    acc = _bits(raw.get("accum_precision"), out_bits if kind in cost.MULTIPLYING else 16)
    padding = raw.get("padding")
    if kind == "conv" and padding == "same" and len(in_shape) > 1:
        steps = tuple(raw.get("stride") or (1,) * len(kernel))
        grown = tuple(max((o - 1) * s + k, i) for o, s, k, i in
                      zip(out_shape[:-1], steps, kernel, in_shape[:-1], strict=False))
        in_shape = (*grown, in_shape[-1])
    elif kind == "conv" and isinstance(padding, Mapping):
        edges = [int(padding.get(k) or 0) for k in ("top", "bottom", "left", "right")]
        spatial = [in_shape[0] + edges[0] + edges[1], in_shape[1] + edges[2] + edges[3]] if len(in_shape) > 2 else \
            [in_shape[0] + edges[2] + edges[3]]
        in_shape = (*spatial, in_shape[-1])
    for key, value in (("out_fifo_depth_pragma", raw.get("out_fifo_depth_pragma")), *stats.items()):
        if value is not None and key in _COUNTS and not isinstance(value, int):
            raise ValueError(f"{key} is {value!r}, not a whole number")
    limit = raw.get("multiplier_limit") or mult.get("multiplier_limit")
    peak = stats.get("max_abs_int")
    largest = min(int(peak).bit_length() + 1, wide) if peak else None
    layer = LayerSpec(
        name=name, kind=kind, in_shape=in_shape, out_shape=out_shape, kernel=kernel,
        stride=tuple(int(v) for v in raw.get("stride") or ()), n_in=n_in, n_out=n_out,
        weights=count if kind in cost.MULTIPLYING else 0, weight_bits=wide, input_bits=input_bits, accumulator_bits=acc,
        output_bits=out_bits, reuse_factor=max(factor, 1), strategy=strategy,
        nonzeros=int(live) if live is not None else None, powers_of_two=stats.get("pow2"),
        csd_digits=stats.get("csd_nonzero_digits"), used_weight_bits=largest,
        multiplier_limit=int(limit) if limit and strategy == "latency" else None,
        # headers without the field are of hls4ml 0.5, which knew no line buffer
        implementation=raw.get("implementation") or ("encoded" if mult and not target.vitis else "linebuffer"),
        op=kind_text.lower(), serial=serial, fifo_depth=raw.get("out_fifo_depth_pragma"),
        table_size=int(raw.get("table_size") or 1024),
        table_bits=_bits(raw.get("table_t") or raw.get("exp_table_t"), 18),
        normalized_bits=_bits(raw.get("inp_norm_t"), None),
    )
    if isinstance(raw.get("separable"), Mapping):
        layer = replace(layer, parts=_separable(layer, raw["separable"]))
    return layer


def _separable(layer: LayerSpec, halves: Mapping) -> tuple[LayerSpec, ...]:
    taps, channels = math.prod(layer.kernel), layer.in_shape[-1]
    middle = (*layer.out_shape[:-1], channels)

    def part(name: str, **changes) -> LayerSpec:
        half = halves.get(name) or {}
        zeros, count = half.get("n_zeros"), changes["weights"]
        return replace(layer, name=f"{layer.name}.{name}", reuse_factor=int(half.get("reuse_factor") or 1),
                       strategy=str(half.get("strategy") or "latency").lower(),
                       weight_bits=_bits(half.get("weight_precision"), 16), csd_digits=None, powers_of_two=None,
                       accumulator_bits=_bits(half.get("accum_precision"), 16), used_weight_bits=None,
                       nonzeros=count - int(zeros) if zeros is not None else None, multiplier_limit=None, **changes)

    return (part("depthwise", n_in=taps, n_out=channels, weights=taps * channels, out_shape=middle),
            part("pointwise", n_in=channels, n_out=layer.n_out, weights=channels * layer.n_out, in_shape=middle,
                 kernel=(1,) * len(layer.kernel)))


@dataclass
class Design:
    """One design: what prediction sees, and what was reported."""

    name: str
    repo: str
    target: Target
    layers: list[LayerSpec]
    reported: dict
    """Total figures: {"hls": {...}, "implemented": {...}, "latency", "interval"}; absent where nobody says."""
    rows: dict[str, dict]
    """Layer name -> its row in the report."""
    stock: bool
    raw: Mapping = field(repr=False)

    @property
    def strategy(self) -> str:
        work = [p for x in self.layers for p in (x.parts or (x,)) if x.kind in cost.MULTIPLYING]
        return max((x.strategy for x in work), key=[x.strategy for x in work].count, default="none")

    @property
    def bit_class(self) -> str:
        widths = [max(p.weight_bits, p.input_bits) for x in self.layers for p in (x.parts or (x,))
                  if x.kind in cost.MULTIPLYING]
        middle = statistics.median(widths) if widths else 16
        return "<=8" if middle <= 8 else "9-16" if middle <= 16 else ">16"

    @property
    def tool(self) -> str:
        return f"{'Vitis' if self.target.vitis else 'Vivado'} HLS {self.target.version:.1f}"

    @property
    def macs(self) -> int:
        return sum(p.weights * (math.prod(p.out_shape[:-1]) if p.kind == "conv" else 1)
                   for x in self.layers for p in (x.parts or (x,)) if x.kind in cost.MULTIPLYING)


def _figures(row) -> dict[str, float]:
    names = {"LUT": "lut", "FF": "ff", "DSP": "dsp", "BRAM_18K": "bram18"}
    row = row or {}
    found = {ours: float(row[theirs]) for theirs, ours in names.items() if isinstance(row.get(theirs), (int, float))}
    for tiles in ("BRAM_tile_36", "BRAM36_tiles"):
        if isinstance(row.get(tiles), (int, float)) and "bram18" not in found:
            found["bram18"] = 2.0 * row[tiles]
    return found


def read(design: Mapping) -> Design:
    """A design ready for prediction and comparison. Raises CostError or DesignError."""
    check(design)
    try:
        return _read(design)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise DesignError(f"cannot be read: {error!r}", where=design.get("name"),
                          fix="compare the file with one of the published set") from error


def _read(design: Mapping) -> Design:
    seen = without_reports(design)
    target = target_of(seen)
    layers = layers_of(seen, target)
    totals = design.get("totals") or {}
    top = totals.get("csynth") or {}
    placed = totals.get("implemented") or {}
    done = _figures(totals.get("vivado_synth")) or _figures(placed.get("ip_synth"))
    reported = {"hls": _figures(top), "implemented": done, "system": _figures(placed) if not done else {}}
    for ours, theirs in (("latency", "latency_cycles_max"), ("interval", "interval_max")):
        if isinstance(top.get(theirs), (int, float)):
            reported[ours] = float(top[theirs])
    rows = {x.name: raw["reported"] for x, raw in zip(layers, design["layers"], strict=True) if raw.get("reported")}
    return Design(design["name"], (design.get("source") or {}).get("repo") or design["name"], target, layers, reported,
                  rows, design.get("stock_hls4ml") is not False, design)


def read_all(folder: str | Path) -> tuple[list[Design], dict[str, str]]:
    """(designs with layers, {name: why it was left out})."""
    found: list[Design] = []
    refused: dict[str, str] = {}
    for raw in load_designs(folder, refused):
        try:
            design = read(raw)
        except SlimgateError as error:
            refused[raw["name"]] = str(error)
            continue
        if design.layers:
            found.append(design)
        else:
            refused[raw["name"]] = "no layers"
    return found, refused


# --- fitting -------------------------------------------------------------------------------------------------------


def _weights(repos: Iterable[str], importance: Iterable[float]) -> np.ndarray:
    """Equal weight per repository, shared among its rows by importance."""
    repos, importance = list(repos), np.asarray(list(importance), dtype=float)
    sums: dict[str, float] = {}
    for repo, value in zip(repos, importance, strict=True):
        sums[repo] = sums.get(repo, 0.0) + value
    return np.array([v / sums[r] if sums[r] else 0.0 for r, v in zip(repos, importance, strict=True)])


def fit_positive(matrix: np.ndarray, reported: np.ndarray, weights: np.ndarray, *, floor: np.ndarray | float = 1.0,
                 pull: np.ndarray | float = 0.15) -> np.ndarray:
    """Positive coefficients c that make ``matrix @ c`` close to ``reported`` in the logarithm, differences far below
    ``floor`` not counting. Robust (soft L1); each coefficient is pulled towards 1, its first-principles value, with
    strength ``pull``."""
    columns = matrix.shape[1]
    root = np.sqrt(weights)

    def residuals(logs):
        miss = np.log(matrix @ np.exp(logs) + floor) - np.log(reported + floor)
        # soft L1 by hand: the pull must stay quadratic
        soft = np.sign(miss) * np.sqrt(2 * 0.3**2 * (np.sqrt(1 + (miss / 0.3) ** 2) - 1))
        return np.concatenate([root * soft, pull * logs])

    start = np.zeros(columns)
    result = least_squares(residuals, start, bounds=(-4, 3), max_nfev=60)
    return np.exp(result.x)


PULL = 0.4
"""How strongly a coefficient is held at its first-principles value: the middle of the range 0.3 to 0.8 over which the
held-out errors of LUT and FF hardly differ."""


def _group(name: str) -> str:
    return name.split(".")[0]


def fit(designs: list[Design]) -> dict:
    """Coefficients ``{"term": value}`` from designs; the value of every term that no design shows stays 1."""
    found: dict[str, float] = {}
    rows: dict[tuple[str, str], list] = {}
    for design in designs:
        for layer in design.layers:
            row = design.rows.get(layer.name)
            figures = _figures(row)
            if not figures:
                continue
            sizes = cost.terms(layer, design.target)
            for quantity in ("lut", "ff"):
                if quantity in figures and sizes[quantity]:
                    whole = design.reported["hls"].get(quantity) or sum(
                        _figures(r).get(quantity, 0.0) for r in design.rows.values()) or 1.0
                    share = math.sqrt(max(figures[quantity], 1.0) / whole)
                    rows.setdefault((quantity, _group(next(iter(sizes[quantity])))), []).append(
                        (design.repo, share, sizes[quantity], figures[quantity], 0.02 * whole))
        streams: dict[str, dict[str, float]] = {"lut": {}, "ff": {}}
        for layer in design.layers[:-1] or design.layers:
            for quantity, sizes in cost.fifo_terms(layer, design.target).items():
                for name, size in sizes.items():
                    streams[quantity][name] = streams[quantity].get(name, 0.0) + size
        block = ((design.raw.get("totals") or {}).get("csynth") or {}).get("breakdown") or {}
        for quantity, name in (("lut", "LUT"), ("ff", "FF")):
            value = (block.get("FIFO") or {}).get(name)
            if value and streams[quantity]:
                rows.setdefault((quantity, "fifo"), []).append((design.repo, 1.0, streams[quantity], float(value), 1.0))
        value = (block.get("Register") or {}).get("FF")
        sizes = cost.top_terms(design.layers, design.target)["ff"]
        if value and "top.registers" in sizes:
            rows.setdefault(("ff", "top"), []).append((design.repo, 1.0, sizes, float(value), 1.0))
    for (quantity, _), group in rows.items():
        names = sorted({name for _, _, sizes, *_ in group for name in sizes})
        matrix = np.array([[sizes.get(name, 0.0) for name in names] for _, _, sizes, *_ in group])
        values, floor = np.array([row[3] for row in group]), np.array([row[4] for row in group])
        weights = _weights((r for r, *_ in group), (s for _, s, *_ in group))
        # line buffers are listed as modules of their own, so their size is known better than a layer's sum can tell
        pull = np.array([1.0 if quantity == "lut" and name.endswith(".line") else PULL for name in names])
        for name, value in zip(names, fit_positive(matrix, values, weights, floor=floor, pull=pull), strict=True):
            found[f"{quantity}:{name}"] = float(value)
    found |= _fit_cycles(designs)
    found |= _fit_remaining(designs, {"terms": found})
    return {k: float(f"{v:.4g}") for k, v in sorted(found.items())}


def _fit_cycles(designs: list[Design]) -> dict[str, float]:
    conv, dense, stages, idle = [], [], [], []
    for design in designs:
        tight = design.target.tightness
        for layer in design.layers:
            row = design.rows.get(layer.name) or {}
            high, low = row.get("latency_max"), row.get("latency_min")
            if not high or layer.serial or layer.parts or not design.stock or layer.kind not in cost.MULTIPLYING:
                continue
            if layer.strategy == "latency":
                if layer.factor == 1 and layer.kind == "dense" and not design.target.stream:
                    fan = math.log2(max(layer.live / layer.n_out, 1.0))
                    stages.append((design.repo, tight, tight * fan, high + 0.5, 1.0))
                continue
            pixels = math.prod(layer.in_shape[:-1])
            if layer.kind == "conv" and design.target.stream:
                slow = cost.FAMILIES[design.target.family]
                conv.append((design.repo, 1.0, slow, high / pixels - layer.factor, 1 / math.sqrt(layer.factor)))
                if low:
                    idle.append((design.repo, low / pixels))
            elif layer.kind == "dense":
                nothing = {"terms": {"cycles.dense": 0.0, "cycles.dense_tight": 0.0}}
                base = cost.layer_cycles(layer, design.target, nothing)
                gap = high - base["latency_max"]
                if abs(gap) < 50:
                    dense.append((design.repo, 1.0, tight, gap, 1 / math.sqrt(layer.factor)))
    found = {}
    for names, data in ((("cycles.conv", "cycles.conv_slow"), conv), (("cycles.dense", "cycles.dense_tight"), dense),
                        (("cycles.product", "cycles.level"), stages)):
        if len({d[0] for d in data}) < 2:
            continue
        matrix = np.array([d[1:3] for d in data])
        values, root = np.array([d[3] for d in data]), np.sqrt(_weights((d[0] for d in data), (d[4] for d in data)))
        start = np.array([cost.DEFAULT_TERMS[n] for n in names])

        def residuals(x, matrix=matrix, values=values, root=root, start=start):
            miss = matrix @ x - values
            return np.concatenate([root * np.sign(miss) * np.sqrt(2 * (np.sqrt(1 + miss**2) - 1)), 0.1 * (x - start)])

        result = least_squares(residuals, start, bounds=(0, np.inf), max_nfev=60)
        found |= dict(zip(names, map(float, result.x), strict=True))
    if idle:
        found["cycles.conv_idle"] = weighted_quantile([v for _, v in idle], _weights((r for r, _ in idle),
                                                                                   [1.0] * len(idle)), 0.5)
    return found


def remaining_parts(design: Design, coefficients: Mapping, quantity: str) -> dict[str, float]:
    """The HLS figure of a design, split by what implementation does with it."""
    parts = dict.fromkeys(("latency", "resource", "other", "fifo"), 0.0)
    for layer in design.layers:
        raw = cost.raw_layer(layer, design.target, coefficients)
        strategy = layer.parts[0].strategy if layer.parts else layer.strategy
        parts[strategy if layer.kind in cost.MULTIPLYING else "other"] += raw["own"][quantity]
        parts["fifo"] += raw["fifo"][quantity]
    return parts


def displaced(design: Design, dsp: float | None = None) -> float:
    """Multipliers beyond the part's DSPs: Vivado builds them from LUTs."""
    if design.target.dsp_available is None:
        return 0.0
    if dsp is None:
        dsp = sum(cost.products(x, design.target)[0] for x in design.layers if x.kind in cost.MULTIPLYING)
    return max(dsp - design.target.dsp_available, 0.0)


def _fit_remaining(designs: list[Design], coefficients: Mapping) -> dict[str, float]:
    found = {"remains:lut.latency": 0.5, "remains:lut.resource": 0.45, "remains:lut.other": 0.45,
             "remains:lut.fifo": 0.5,
             "remains:ff.latency": 0.75, "remains:ff.resource": 0.7, "remains:ff.other": 0.75, "remains:ff.fifo": 0.8}
    for quantity in ("lut", "ff"):
        names = [f"remains:{quantity}.{k}" for k in ("latency", "resource", "other", "fifo")]
        start = np.array([found[n] for n in names])
        rows = []
        for design in designs:
            done, hls = design.reported["implemented"].get(quantity), design.reported["hls"].get(quantity)
            if not done or not hls:
                continue
            parts = remaining_parts(design, coefficients, quantity)
            scale = hls / max(sum(parts.values()), 1.0)
            extra = displaced(design, design.reported["hls"].get("dsp")) if quantity == "lut" else 0.0
            rows.append((design.repo, [v * scale for v in parts.values()] + [80.0 * extra], done))
        if len({r[0] for r in rows}) < 2:
            continue
        matrix = np.array([r[1] for r in rows])
        scaled = matrix * np.append(start, 1.0)
        fitted = fit_positive(scaled, np.array([r[2] for r in rows]), _weights((r[0] for r in rows), [1.0] * len(rows)),
                              pull=PULL)
        found |= {n: float(s * f) for n, s, f in zip(names, start, fitted, strict=False)}
        if quantity == "lut":
            found["remains:displaced"] = float(fitted[-1])
    return found


def weighted_quantile(values: Iterable[float], weights: Iterable[float], share: float) -> float:
    """The value below which ``share`` of the weight lies."""
    values, weights = np.asarray(list(values), float), np.asarray(list(weights), float)
    order = np.argsort(values)
    running = np.cumsum(weights[order])
    return float(values[order][min(int(np.searchsorted(running, share * running[-1])), len(values) - 1)])


# --- errors on designs left out --------------------------------------------------------------------------------------


def network_of(design: Design) -> tuple:
    """What makes two designs the same network: the repository and the weights per layer."""
    return design.repo, tuple(p.weights for x in design.layers for p in (x.parts or (x,)) if p.weights)


def leave_out(designs: list[Design], by: Callable[[Design], object] = lambda d: d.repo) -> dict[str, dict]:
    """Design name -> coefficients fitted without any design of its group (its repository)."""
    found: dict[str, dict] = {}
    for group in dict.fromkeys(by(d) for d in designs):
        without = {"terms": fit([d for d in designs if by(d) != group])}
        found |= {d.name: without for d in designs if by(d) == group}
    return found


@dataclass(frozen=True)
class Row:
    """One predicted and reported figure."""

    design: str
    repo: str
    layer: str | None
    figure: str
    quantity: str
    like: Traits
    predicted: float
    reported: float
    widen: float = 1.0
    """By how much the design's intervals are wider for being extrapolated."""

    @property
    def kind(self) -> str:
        return self.like.kind

    @property
    def error(self) -> float:
        """Relative to what was reported; counts below 1 are taken as 1."""
        return abs(self.predicted - self.reported) / max(self.reported, 1.0)

    @property
    def log_ratio(self) -> float:
        shift = cost.SHIFT.get(self.quantity, 0.0) or (1e-9 if self.reported > 0 else 1.0)
        return math.log((self.reported + shift) / (self.predicted + shift)) if self.predicted + shift > 0 else 0.0


def rows_of(design: Design, coefficients: Mapping) -> list[Row]:
    """Everything predicted about a design that was also reported."""
    estimate = cost.estimate(design.layers, design.target, coefficients=coefficients)
    like, found = cost.traits(design.layers, design.target), []
    widen = cost.WIDEN if estimate.why else 1.0

    def add(figure, quantity, predicted, reported, layer=None):
        found.append(Row(design.name, design.repo, layer, figure, quantity, like, float(predicted), float(reported),
                         widen))

    for figure in ("hls", "implemented"):
        for quantity, value in design.reported[figure].items():
            add(figure, quantity, estimate.totals[quantity][figure]["value"], value)
    for quantity, value in (design.reported["system"] or {}).items():
        alone = estimate.totals[quantity]["implemented"]["value"]
        add("implemented", quantity, alone + cost.PLATFORM[quantity][0], value)
    for quantity in ("latency", "interval"):
        if quantity in design.reported:
            add("hls", quantity, getattr(estimate, quantity)["value"], design.reported[quantity])
    for layer in design.layers:
        row = design.rows.get(layer.name)
        if not row:
            continue
        own = cost.raw_layer(layer, design.target, coefficients)["own"]
        for quantity, value in _figures(row).items():
            add("hls", quantity, own[quantity], value, layer.name)
        cycles = estimate.layers[layer.name]["cycles"]
        for ours in ("latency_max", "latency_min"):
            if isinstance(row.get(ours), (int, float)):
                add("hls", ours, cycles[ours], row[ours], layer.name)
        held = weight_bram18(layer, row)
        if held is not None:
            add("hls", "weight_bram18", cost.weight_memory(layer, design.target)[1], held, layer.name)
    return found


def interval_of(row: Row, coefficients: Mapping) -> dict[str, float]:
    """{"value", "lo", "hi"} as the product gives it."""
    return cost.spread(row.predicted, coefficients, "layer" if row.layer else "total", row.figure, row.quantity,
                       row.like, row.widen)


def weight_bram18(layer: LayerSpec, row: Mapping) -> int | None:
    """BRAM18 of a layer's weights as its ``memories`` table lists them (items w<n>_...); None where it does not."""
    items = (row.get("memories") or {}).get("items") or []
    weights = [item for item in items if re.match(r"w\d+_", str(item[0]))]
    return sum(int(item[4]) for item in weights) if weights and layer.kind in cost.MULTIPLYING else None


def given_hls(design: Design, coefficients: Mapping, quantity: str) -> float | None:
    """The implemented figure of a design when HLS's own is known: its split over parts is predicted, its size is
    not."""
    hls = design.reported["hls"].get(quantity)
    if hls is None or quantity not in ("lut", "ff"):
        return None
    parts = remaining_parts(design, coefficients, quantity)
    scale, terms = hls / max(sum(parts.values()), 1.0), coefficients["terms"]
    value = sum(v * scale * terms.get(f"remains:{quantity}.{k}", 0.5) for k, v in parts.items())
    if quantity == "lut":
        value += 80.0 * terms.get("remains:displaced", 1.0) * displaced(design, design.reported["hls"].get("dsp"))
    return value


SHARE = 0.9
"""Of the reported figures an interval is to hold."""
CLASSES = ("strategy", "tool", "density")
"""Traits the reach of intervals depends on, each within the one before."""
FEWEST = 3
"""Repositories of a kind below which it has no interval of its own."""
PRIOR, LEAST, WORST = 2.0, 0.03, 1.5
"""A class's typical error counts as many repositories as it has against this many of the class above it; it is taken to
be no less than 3 %, and single errors count up to this logarithm."""


def reaches(rows: list[Row], by: tuple[str, ...]) -> dict[str, float]:
    """{"kind/trait/...": logarithm of the factor around a prediction}; "" for designs of a kind hardly seen.

    Errors are first divided by what is typical of the design's class, a weighted mean drawn towards the class above
    where few repositories tell; the share's quantile of these, times what is typical, is the reach (normalized
    conformal prediction, over repositories rather than designs, which are alike within one)."""
    found = {}
    errors = [abs(r.log_ratio) for r in rows]
    for kind in sorted({r.kind for r in rows}):
        chosen = [i for i, r in enumerate(rows) if r.kind == kind]
        if len({rows[i].repo for i in chosen}) < FEWEST:
            continue
        typical = {kind: _mean_error(rows, errors, chosen)}
        paths = {i: [kind] for i in chosen}
        for name in by:
            groups: dict[str, list[int]] = {}
            for i in chosen:
                paths[i].append(f"{paths[i][-1]}/{getattr(rows[i].like, name)}")
                groups.setdefault(paths[i][-1], []).append(i)
            for path, group in groups.items():
                count = len({rows[i].repo for i in group})
                above = typical[path.rsplit("/", 1)[0]]
                typical[path] = (count * _mean_error(rows, errors, group) + PRIOR * above) / (count + PRIOR)
        typical = {path: max(value, LEAST) for path, value in typical.items()}
        quantile = _reach(rows, chosen, [errors[i] / typical[paths[i][-1]] for i in chosen])
        found |= {path: _bounded(quantile * value) for path, value in typical.items()}
    everyone = _reach(rows, range(len(rows)), errors)
    return found | {"": _bounded(max(everyone, cost.UNKNOWN_REACH))}


CALIBRATED = 10
"""Repositories that must tell of a total before its intervals are calibrated: of fewer, the worst is the quantile."""


def calibration(rows: list[Row], by: tuple[str, ...]) -> float:
    """The factor, at least 1, on the logarithmic reach with which intervals made without a repository hold
    :data:`SHARE` of its figures (repositories counting alike); 1 where fewer than :data:`CALIBRATED` tell.

    :func:`reaches` takes its quantile from the errors that it has divided by their own classes' means, so it is too
    sure of repositories it has not seen. Here each repository is judged by reaches made of the others."""
    repos = sorted({r.repo for r in rows})
    if len(repos) < CALIBRATED:
        return 1.0
    judged: list[tuple[str, float]] = []
    for repo in repos:
        known = {"by": list(by), "reach": reaches([r for r in rows if r.repo != repo], by)}
        for r in rows:
            if r.repo == repo:
                reach = cost.reach_of({"intervals": {"total..": known}}, "total", "", "", r.like)
                judged.append((repo, max(abs(r.log_ratio) - math.log(r.widen), 0.0) / reach))
    weights = _weights((repo for repo, _ in judged), [1.0] * len(judged))
    return max(weighted_quantile((need for _, need in judged), weights, SHARE), 1.0)


def _mean_error(rows: list[Row], errors: list[float], chosen: Iterable[int]) -> float:
    weights = _weights((rows[i].repo for i in chosen), [1.0] * len(list(chosen)))
    return float(np.average([min(errors[i], WORST) for i in chosen], weights=weights))


def _reach(rows: list[Row], chosen: Iterable[int], values: list[float]) -> float:
    """The share's quantile; of fewer than ten repositories only the worst one reaches it."""
    repos = [rows[i].repo for i in chosen]
    count = len(set(repos))
    share = SHARE if count >= 10 else min(SHARE * (count + 1) / count, 1.0)
    return weighted_quantile(values, _weights(repos, [1.0] * len(repos)), share)


def _bounded(reach: float) -> float:
    return round(min(max(reach, 0.01), 3.0), 4)


def intervals_from(rows: Iterable[Row]) -> dict[str, dict]:
    """{"scope.figure.quantity": {"by": traits, "factor": calibration, "reach": {class: reach}}} that hold :data:`SHARE`
    of the reported figures, every repository counting alike (:func:`hls.cost.reach_of` reads them; the factor is in the
    reaches). For single layers only the kind counts, and nothing is calibrated."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{'layer' if row.layer else 'total'}.{row.figure}.{row.quantity}", []).append(row)
    found = {}
    for key, group in groups.items():
        total = key.startswith("total")
        by = CLASSES if total else ()
        factor = calibration(group, by) if total else 1.0
        found[key] = {"by": list(by), "factor": round(factor, 4),
                      "reach": {path: _bounded(factor * reach) for path, reach in reaches(group, by).items()}}
    return found


def fitted(designs: list[Design]) -> dict:
    """A coefficient file's content: terms from all designs, intervals from predictions of designs left out."""
    without = leave_out(designs)
    rows = [row for design in designs for row in rows_of(design, without[design.name])]
    return {"schema": 2, "evidence": "fitted on published reports",
            "fitted_on": {"designs": len(designs), "repositories": sorted({d.repo for d in designs})},
            "terms": fit(designs), "intervals": dict(sorted(intervals_from(rows).items()))}


def write_coefficients(designs: list[Design], path: Path = cost.COEFFICIENTS) -> dict:
    """Fit and write; returns what was written."""
    content = fitted(designs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    cost.load_coefficients.cache_clear()
    return content


# --- comparison ------------------------------------------------------------------------------------------------------


def summary(rows: Iterable[Row]) -> dict[str, dict]:
    """{"figure.quantity": {"n", "repositories", "median", "p90", "exact"}} of errors, repositories counting alike."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        scope = "layers" if row.layer else "totals"
        groups.setdefault(f"{scope}.{row.figure}.{row.quantity}", []).append(row)
    return {key: describe(group) for key, group in sorted(groups.items())}


def describe(group: list[Row]) -> dict:
    weights = _weights((r.repo for r in group), [1.0] * len(group))
    exact = sum(w for r, w in zip(group, weights, strict=True) if round(r.predicted) == round(r.reported))
    return {"n": len(group), "repositories": len({r.repo for r in group}),
            "median": round(weighted_quantile((r.error for r in group), weights, 0.5), 4),
            "p90": round(weighted_quantile((r.error for r in group), weights, 0.9), 4),
            "exact": round(exact / max(weights.sum(), 1e-12), 3)}


def compare(designs: list[Design], coefficients: Mapping | Callable[[Design], Mapping]) -> dict:
    """Per design and per layer: reported, predicted, interval; and the errors by quantity."""
    pick = coefficients if callable(coefficients) else lambda _: coefficients
    found, every = [], []
    for design in designs:
        k = pick(design)
        rows = rows_of(design, k)
        every += rows
        estimate = cost.estimate(design.layers, design.target, coefficients=k)

        def cell(row: Row, k=k) -> dict:
            return {"reported": row.reported} | {
                ("predicted" if key == "value" else key): value for key, value in interval_of(row, k).items()}

        layers: dict[str, dict] = {}
        for row in rows:
            if row.layer:
                layers.setdefault(row.layer, {})[row.quantity] = cell(row)
        found.append({
            "name": design.name, "repo": design.repo, "tool": design.tool, "strategy": design.strategy,
            "bits": design.bit_class, "part_family": design.target.family, "stock_hls4ml": design.stock,
            "seen_in_fit": design.repo in (k.get("fitted_on") or {}).get("repositories", ()),
            "evidence": estimate.evidence, "why_extrapolated": list(estimate.why),
            "predicted": {q: {f: estimate.totals[q][f] for f in ("hls", "implemented")} for q in cost.QUANTITIES}
            | {"latency": estimate.latency, "interval": estimate.interval},
            "totals": {f"{r.figure}.{r.quantity}": cell(r) for r in rows if not r.layer}, "layers": layers,
        })
    return {"schema": 1, "evidence": "estimated", "designs": found, "summary": summary(every)}


# --- command ---------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``slimgate estimator``."""
    parser.add_argument("--designs", required=True, metavar="DIR", help="folder of designs (*.json) to predict")
    parser.add_argument("--json", action="store_true", help="everything as JSON on standard output")
    parser.add_argument("--fit", metavar="DIR2", help="fit on these designs instead of taking the shipped coefficients")
    parser.add_argument("--leave-one-out", action="store_true",
                        help="predict each design with coefficients fitted on the other repositories of the folder")
    parser.add_argument("--write-coefficients", metavar="FILE", nargs="?", const=str(cost.COEFFICIENTS),
                        help="fit on --designs and write the coefficients")
    parser.add_argument("--page", metavar="FILE", help="write the study of held-out errors (docs/results/estimator.md)")
    parser.add_argument("--others", metavar="FILE", help="another estimator's predictions, for the page")


def run(args: argparse.Namespace, out: Callable[[str], object] = print) -> int:
    """Do what the arguments say; returns the exit code. Raises SlimgateError."""
    designs, refused = read_all(args.designs)
    if not designs:
        raise DesignError("none of the designs can be predicted: " + "; ".join(f"{k}: {v}" for k, v in refused.items()),
                          where=args.designs)
    if args.write_coefficients:
        write_coefficients(designs, Path(args.write_coefficients))
        out(f"wrote {args.write_coefficients}: {len(designs)} designs" + (
            f"; left out: {', '.join(sorted(refused))}" if refused else ""))
        return 0
    if args.page:
        from hls.estimator_study import page

        others = None
        if args.others:
            try:
                others = json.loads(Path(args.others).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DesignError(f"not readable as JSON: {error}", where=args.others) from error
        command = "slimgate estimator --designs DIR --page docs/results/estimator.md" + (
            f" --others {args.others}" if args.others else "")
        Path(args.page).write_text(page(designs, refused, others, command), encoding="utf-8")
        out(f"wrote {args.page}")
        return 0
    if args.leave_one_out:
        from hls.estimator_study import held_out

        _, factors = held_out(designs)
        coefficients: Mapping | Callable = lambda design: factors[design.name]  # noqa: E731
    else:
        coefficients = fitted(_to_fit(args.fit)) if args.fit else cost.load_coefficients()
    result = compare(designs, coefficients) | {"refused": refused}
    if args.json:
        out(json.dumps(result, indent=1))
    else:
        out(table(result))
    return 0


def _to_fit(folder: str) -> list[Design]:
    """The designs of a folder with reported figures of at least three repositories: fewer give no intervals."""
    designs = [d for d in read_all(folder)[0] if d.reported["hls"]]
    repos = {d.repo for d in designs}
    if len(repos) < FEWEST:
        raise DesignError(f"{len(designs)} designs of {len(repos)} repositories with reported figures are too few to "
                          "fit", where=folder, fix=f"{FEWEST} repositories or more, or leave --fit out to take the "
                          "shipped coefficients")
    return designs


def table(result: Mapping) -> str:
    """The comparison as text: a row per design, then the errors."""
    lines = [f"{'design':<36}{'':>4}" + "".join(f"{q:>22}" for q in (*cost.QUANTITIES, "latency", "interval"))]
    for design in result["designs"]:
        mark = "seen" if design["seen_in_fit"] else ""
        cells = []
        for quantity in (*cost.QUANTITIES, "latency", "interval"):
            cell = design["totals"].get(f"hls.{quantity}")
            here = design["predicted"][quantity]
            cells.append(f"{cell['predicted']:.0f} ({cell['reported']:.0f})" if cell else
                         f"{here['hls']['value'] if quantity in cost.QUANTITIES else here['value']:.0f} (-)")
        lines.append(f"{design['name'][:35]:<36}{mark:>4}" + "".join(f"{c:>22}" for c in cells))
    lines += ["", "predicted (reported); HLS figures, predictions estimated. seen: the repository was in the fit.", "",
              f"{'errors':<32}{'n':>5}{'repos':>7}{'median':>9}{'p90':>9}{'exact':>8}"]
    for key, row in result["summary"].items():
        lines.append(f"{key:<32}{row['n']:>5}{row['repositories']:>7}{row['median']:>9.1%}{row['p90']:>9.1%}{row['exact']:>8.0%}")
    lines += [f"left out: {name}: {why.splitlines()[0]}" for name, why in result["refused"].items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """``python -m hls.estimator``: the same as ``slimgate estimator``."""
    parser = argparse.ArgumentParser(prog="slimgate estimator", description="The cost model against published designs.")
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except SlimgateError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
