"""What a layer costs in hardware: LUT, FF, DSP48, BRAM18 and cycles, each with a 90 % interval.

The structure comes from hls4ml's C++ templates and from how the tools map it: multipliers = ceil(n / reuse factor),
weight memories 36 bits wide up to 512 deep, constant multiplications as shifted additions, adder trees, line buffers,
FIFOs.
Terms whose size depends on a tool's heuristics carry one coefficient each, fitted on published reports
(``hls.estimator.fit``) and kept in ``hls/data/cost_coefficients.json``. Without weights, the numbers of zeros and of
signed digits are expectations.

Two figures per quantity, which differ by about two in LUT: what HLS will report (``hls``) and what remains after
implementation (``implemented``). Nothing here runs a tool: evidence is "estimated", or "estimated (extrapolated)" where
no design in the published set is near.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from boards.errors import SlimgateError

COEFFICIENTS = Path(__file__).parent / "data" / "cost_coefficients.json"
QUANTITIES = ("lut", "ff", "dsp", "bram18")
FAMILIES = {"zynq7": 1.0, "7series": 0.75, "ultrascale": 0.45, "ultrascale+": 0.28}
"""Part family -> logic delay relative to Zynq-7000's Artix fabric (speed grade -1), a data-sheet ratio."""
DSP48_PORTS = {"zynq7": (25, 18), "7series": (25, 18), "ultrascale": (27, 18), "ultrascale+": (27, 18)}
"""Widths of the signed multiplier's operands (UG479, UG579)."""
SMALL_OPERAND = 9
"""Up to this width of both operands, a multiplication is built from LUTs (INDEX of the published set, pattern 10)."""
MULTIPLYING = ("conv", "dense")
KINDS = (*MULTIPLYING, "pool", "globalpool", "activation", "table", "softmax", "norm", "pad", "resize", "merge",
         "clone", "threshold", "search", "reshape", "other")


class CostError(SlimgateError):
    """A layer, part or coefficient file the cost model cannot take."""


@dataclass(frozen=True)
class Target:
    """Where and with what the design is built. ``clock_ns``: the period HLS is given."""

    family: str = "zynq7"
    clock_ns: float = 10.0
    toolchain: str = "vitis_hls"
    """"vivado_hls" (up to 2020.1) or "vitis_hls"."""
    version: float = 2022.2
    io: str = "io_stream"
    dataflow: bool = True
    """The top function is a dataflow region; False: one pipeline (hls4ml's io_parallel default)."""
    dsp_available: int | None = None
    """DSP blocks of the part: multipliers beyond it become LUTs. None: unlimited."""
    multiplier: str = "auto"
    """"auto", or "dsp" / "fabric" where the project forces ``config_op mul -impl``."""
    speed_grade: int = 1
    """Of the part: 1 (slowest) to 3. Only tells 7 series apart; the published UltraScale designs are all of one
    grade."""
    softmax_run_time_table: bool | None = None
    """Whether hls4ml's softmax computes its table at run time; None: derived from the normalized type's width."""

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise CostError(f"no data for the part family {self.family!r}", fix="known: " + ", ".join(FAMILIES))
        if not self.clock_ns > 0:
            raise CostError(f"a clock period of {self.clock_ns!r} ns is not above 0", where="clock_ns")

    @property
    def tightness(self) -> float:
        """Logic delay over clock period; 1 for Zynq-7000 at 5 ns. Pipeline registers grow with it."""
        faster = 0.87 ** (self.speed_grade - 1) if self.family in ("zynq7", "7series") else 1.0
        return FAMILIES[self.family] * faster * 5.0 / self.clock_ns

    @property
    def vitis(self) -> bool:
        return self.toolchain == "vitis_hls"

    @property
    def stream(self) -> bool:
        return self.io == "io_stream"


@dataclass(frozen=True)
class LayerSpec:
    """One layer as hardware sees it. Shapes are channels-last, without the batch; bits are widths of codes."""

    name: str
    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    n_in: int = 0
    """Inputs of one dot product (kernel * channels)."""
    n_out: int = 0
    weights: int = 0
    weight_bits: int = 8
    input_bits: int = 8
    accumulator_bits: int = 16
    output_bits: int = 8
    reuse_factor: int = 1
    strategy: str = "resource"
    nonzeros: int | None = None
    powers_of_two: int | None = None
    csd_digits: int | None = None
    """Nonzero signed digits over all weights (canonical form)."""
    used_weight_bits: int | None = None
    """Bits the largest weight needs; the last word of a memory is cut to it."""
    multiplier_limit: int | None = None
    implementation: str = "linebuffer"
    op: str = ""
    """The operation's name where the kind leaves it open ("linear", "leaky_relu")."""
    serial: bool = False
    """Values pass one at a time: forks that send one channel per token ("_me"), arrays walked by loops ("large")."""
    fifo_depth: int | None = None
    """Tokens of the stream behind the layer; None: as many as the layer has output pixels (hls4ml's default)."""
    table_size: int = 1024
    """Entries of a look-up table; levels of a "threshold" or "search"."""
    table_bits: int = 18
    normalized_bits: int | None = None
    parts: tuple["LayerSpec", ...] = ()
    """Layers inside this one (a separable convolution's two); its own fields then only describe its streams."""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise CostError(f"a layer of unknown kind {self.kind!r}", where=self.name, fix="one of " + ", ".join(KINDS))
        for what, shape in (("input", self.in_shape), ("output", self.out_shape)):
            if not shape or any(not isinstance(n, int) or n < 1 for n in shape):
                raise CostError(f"{what} shape {shape!r} has a size below 1", where=self.name,
                                fix="a layer of size zero computes nothing: remove it or widen it")
        if self.kind in ("conv", "pool") and len(self.kernel) > 1 and len(self.in_shape) <= len(self.kernel):
            raise CostError(f"input shape {self.in_shape!r} has too few sizes for a kernel of {self.kernel!r}",
                            where=self.name, fix="height, width and channels")
        if self.kind in MULTIPLYING and not self.parts and min(self.n_in, self.n_out, self.weights) < 1:
            raise CostError(f"{self.n_in} inputs x {self.n_out} outputs is not a layer", where=self.name)
        widths = (self.weight_bits, self.input_bits, self.accumulator_bits, self.output_bits, self.reuse_factor)
        if min(widths) < 1:
            raise CostError(f"bit widths and reuse factor must be at least 1, not {widths}", where=self.name)

    @property
    def channels(self) -> int:
        return self.out_shape[-1]

    @property
    def tokens_in(self) -> int:
        """Tokens that arrive per frame on a stream."""
        pixels = math.prod(self.in_shape[:-1])
        return pixels * self.in_shape[-1] if self.serial else pixels

    @property
    def tokens_out(self) -> int:
        pixels = math.prod(self.out_shape[:-1])
        return pixels * self.channels if self.serial else pixels

    @property
    def lanes(self) -> int:
        """Values handled side by side."""
        return 1 if self.serial else self.channels

    @property
    def factor(self) -> int:
        """The reuse factor, never beyond the number of weights."""
        return min(self.reuse_factor, max(self.weights, 1))

    @property
    def multipliers(self) -> int:
        return math.ceil(self.weights / self.factor) if self.weights else 0

    @property
    def live(self) -> int:
        """Weights that are not zero; all of them where nobody says."""
        return self.weights if self.nonzeros is None else self.nonzeros

    @property
    def digits(self) -> tuple[float, float]:
        """(multiplications that are neither zero nor a power of two, signed digits of those); expected values of a
        random weight of that many bits where the weights are not given: (b + 1) / 3 digits, two at least."""
        if self.csd_digits is not None and self.powers_of_two is not None and self.nonzeros is not None:
            real = max(self.nonzeros - self.powers_of_two, 0)
            return real, max(self.csd_digits - self.powers_of_two, 2 * real)
        bits = self.used_weight_bits or min(self.weight_bits, 11)
        share = max(1 - 2 * bits / 2**bits, 0.0) if bits < 12 else 0.97
        real = self.live * share
        return real, real * (2 + 0.14 * max(bits - 4, 0))


def family_of(part: str) -> str:
    """Part number -> family. Raises :class:`CostError` for parts nobody has data for."""
    name = part.lower()
    for pattern, family in (
        (r"xc7z0(07|10|12|14|15|20)|xc7[as]\d", "zynq7"),
        (r"xc7", "7series"),
        (r"xc(ku|vu)\d+p|xczu|xck26|xck24|xcu\d|xcau", "ultrascale+"),
        (r"xc(ku|vu)\d", "ultrascale"),
    ):
        if re.match(pattern, name):
            return family
    raise CostError(f"nobody has published figures for the part {part!r} or its family", where="part",
                    fix="Zynq-7000, 7 series, UltraScale and UltraScale+ parts are known")


@lru_cache(maxsize=8)
def load_coefficients(path: Path = COEFFICIENTS) -> dict:
    """The fitted coefficients. Raises :class:`CostError` when the file is missing or of another schema."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CostError(f"no readable cost coefficients: {error}", where=path,
                        fix="make them with: slimgate estimator --designs DIR --write-coefficients") from error
    if not isinstance(data, dict) or data.get("schema") != 2 or "terms" not in data:
        raise CostError("not a cost coefficient file of schema 2", where=path)
    return data


# --- multipliers ---------------------------------------------------------------------------------------------------


def dsp_per_product(a: int, b: int, family: str) -> int:
    """DSP48 blocks of one full product of ``a`` x ``b`` bits: the wide port takes its width, further parts of an
    operand are unsigned and lose one bit (UG479)."""
    wide, narrow = DSP48_PORTS[family]

    def tiles(width: int, port: int) -> int:
        return 1 if width <= port else 1 + math.ceil((width - port) / (port - 1))

    return min(tiles(a, wide) * tiles(b, narrow), tiles(a, narrow) * tiles(b, wide))


def _long_products(layer: LayerSpec) -> float:
    """Constant multiplications with three or more signed digits: those HLS gives a DSP when operands are wide. Excess
    digits over two are taken as Poisson: 1 - exp(-mean excess)."""
    real, digits = layer.digits
    return real * -math.expm1(-(digits / real - 2)) if real > 0 else 0.0


def _limit(layer: LayerSpec) -> int:
    """Multipliers that the ALLOCATION pragma of the Latency strategy admits."""
    return layer.multiplier_limit or max(math.ceil(layer.live / layer.factor), 1)


def products(layer: LayerSpec, target: Target) -> tuple[float, float]:
    """(DSP blocks, multipliers made of LUTs) of one layer of weights."""
    if layer.parts:
        pairs = [products(part, target) for part in layer.parts]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    a, w, n = layer.input_bits, layer.weight_bits, layer.multipliers
    small = max(a, w) <= SMALL_OPERAND
    if layer.strategy == "latency":
        wanted = _long_products(layer)
        if target.multiplier == "fabric" or (small and target.multiplier == "auto"):
            return 0.0, wanted
        count = wanted if layer.factor == 1 else min(wanted, _limit(layer))
        each = dsp_per_product(a, min(w, layer.used_weight_bits or w), target.family)
        return round(count) * each, 0.0
    if target.multiplier == "fabric":
        return 0.0, n
    if small and target.multiplier == "auto":
        # Vivado HLS 2020.1 builds a multiply-add into a DSP whatever its width, one per pair of products that meet in
        # the same sum; earlier versions use LUTs, and so, it is assumed, does Vitis HLS.
        if target.vitis or target.version < 2020:
            return 0.0, n
        paired = layer.factor < layer.n_in and n > layer.n_out
        return (math.ceil(n / 2), n // 2) if paired else (n, 0)
    last = dsp_per_product(a, min(w, layer.used_weight_bits or w), target.family)
    return (n - 1) * dsp_per_product(a, w, target.family) + last, 0.0


# --- memories ------------------------------------------------------------------------------------------------------


def memory_bram18(bits: int, depth: int) -> int:
    """BRAM18 of a memory: 36 bits wide up to 512 words, then 18, 9, 4, 2 and 1 bit wide (UG473)."""
    if bits < 1 or depth < 1:
        return 0
    for deep, width in ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)):
        if depth <= deep:
            return math.ceil(bits / width)
    return bits * math.ceil(depth / 16384)


def weight_memory(layer: LayerSpec, target: Target) -> tuple[int, int]:
    """(bits per word, BRAM18) of a layer's weights: the Resource strategy reads all multipliers' weights as one word,
    ``reuse_factor`` words deep. Up to 1 kbit lies in LUTs (from 2019.2 on). Latency has no weight memory. UltraRAM
    cannot be given contents before Versal (UG573), so no weights lie in it."""
    if layer.parts:
        pairs = [weight_memory(part, target) for part in layer.parts]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)
    if layer.kind not in MULTIPLYING or layer.strategy == "latency" or layer.factor == 1:
        return 0, 0
    n, used = layer.multipliers, min(layer.weight_bits, layer.used_weight_bits or layer.weight_bits)
    bits = (n - 1) * layer.weight_bits + used
    if bits * layer.factor <= 1024 and target.version >= 2019.2:
        return bits, 0
    return bits, memory_bram18(bits, layer.factor)


def index_memory(layer: LayerSpec) -> int:
    """BRAM18 of the table that says which output a product belongs to (``dense_resource_rf_gt_nin_rem0``)."""
    if layer.parts:
        return sum(index_memory(part) for part in layer.parts)
    if (layer.kind not in MULTIPLYING or layer.strategy == "latency" or layer.factor <= layer.n_in
            or layer.factor % layer.n_in or layer.serial):
        return 0
    bits = max((layer.factor // layer.n_in - 1).bit_length(), 1)
    return memory_bram18(bits, layer.factor) if bits * layer.factor > 1024 else 0


def _upsamples(layer: LayerSpec, target: Target) -> bool:
    """Whether it is our own process; hls4ml's, published with Vivado HLS, holds its row in registers."""
    return layer.kind == "resize" and not layer.serial and target.vitis


def row_memory(layer: LayerSpec) -> tuple[int, int, int]:
    """(bits per word, words, BRAM18) of the row that nearest upsampling repeats: up to 1 kbit lies in LUTs."""
    bits, depth = layer.in_shape[-1] * layer.input_bits, layer.in_shape[-2] if len(layer.in_shape) > 1 else 1
    return bits, depth, memory_bram18(bits, depth) if bits * depth > 1024 else 0


def window_fifos(layer: LayerSpec) -> tuple[int, int, int]:
    """(count, depth, bits) of the FIFOs of the "encoded" window: one per position and channel."""
    if layer.implementation != "encoded" or layer.kind not in ("conv", "pool") or not layer.kernel:
        return 0, 0, 0
    height = layer.kernel[0] if len(layer.kernel) > 1 else 1
    width = layer.out_shape[-2] if len(layer.out_shape) > 1 else 1
    return math.prod(layer.kernel) * layer.in_shape[-1], height * width, layer.input_bits


def fifo_bram18(depth: int, bits: int, target: Target) -> int:
    """BRAM18 of one FIFO: shift registers up to 512 bits, beyond them memories of a power of two of words, at most
    18 bits wide (Vivado HLS) or 36 (Vitis HLS, which packs a token's channels)."""
    if depth * bits <= 512 or depth <= 4:
        return 0
    if target.vitis:
        return memory_bram18(bits, depth) if depth > 16 else 0
    return memory_bram18(bits, max(1 << (depth - 1).bit_length(), 1024))


def fifos(layer: LayerSpec, target: Target) -> tuple[int, int, int]:
    """(count, depth, bits) of the FIFOs behind a layer. Vivado HLS has one per channel, Vitis HLS one per stream, a
    dataflow region between arrays one per element, two deep."""
    if layer.kind == "reshape":
        return 0, 0, 0
    if target.stream:
        depth = layer.fifo_depth or math.prod(layer.out_shape[:-1])
        if layer.serial:
            return 1, depth, layer.output_bits
        return (1, depth, layer.lanes * layer.output_bits) if target.vitis else (layer.lanes, depth, layer.output_bits)
    if layer.serial:
        return (2, math.prod(layer.out_shape), layer.output_bits) if target.dataflow else (0, 0, 0)
    return (math.prod(layer.out_shape), 2, layer.output_bits) if target.dataflow else (0, 0, 0)


def table_memory(layer: LayerSpec, target: Target) -> int:
    """BRAM18 of look-up tables: two reads per memory and cycle; softmax has an exponential and a reciprocal table."""
    lanes = layer.lanes if target.stream else math.prod(layer.out_shape)
    one = memory_bram18(layer.table_bits, layer.table_size)
    if layer.kind == "table":
        return math.ceil(lanes / 2) * one
    if layer.kind == "search":
        return lanes * one if layer.table_bits * layer.table_size > 1024 else 0
    if layer.kind == "softmax":
        copies = 1 if target.stream and layer.reuse_factor > 1 else math.ceil(lanes / 2)
        return (copies + 1) * one
    return 0


# --- cycles --------------------------------------------------------------------------------------------------------


def _term(coefficients: Mapping, name: str) -> float:
    return coefficients["terms"].get(name, DEFAULT_TERMS.get(name, 1.0))


DEFAULT_TERMS = {
    # cycles a convolution adds to the reuse factor on a pixel with an output: fixed part, part that grows with the
    # fabric's delay (the clock hardly matters); cycles on a pixel without
    "cycles.conv": 4.0, "cycles.conv_slow": 6.0, "cycles.conv_idle": 4.5,
    "cycles.dense": 4.0, "cycles.dense_tight": 4.0,
    # stages of a pipelined sum of products: delay of the product and of one level of the adder tree, in clock
    # periods at tightness 1
    "cycles.product": 1.5, "cycles.level": 0.65,
    "cycles.share": 4.0,
}


def _delay(layer: LayerSpec, target: Target, coefficients: Mapping) -> float:
    """Delay of a fully unrolled sum of products, in clock periods."""
    levels = math.log2(max(layer.live / layer.n_out, 1.0))
    periods = _term(coefficients, "cycles.product") + _term(coefficients, "cycles.level") * levels
    return periods * target.tightness


def pipeline_depth(layer: LayerSpec, target: Target, coefficients: Mapping) -> int:
    """Stages of a fully unrolled sum of products."""
    return int(_delay(layer, target, coefficients))


def layer_cycles(layer: LayerSpec, target: Target, coefficients: Mapping | None = None) -> dict[str, float]:
    """Cycles per frame as csynth reports them: {"latency_min", "latency_max", "interval", "per_output", "per_idle"}.

    ``per_output`` / ``per_idle``: cycles a convolution spends on an input pixel that does / does not yield an output
    (csynth's maximum takes the former for every pixel, so it is an upper bound of what hardware does)."""
    k = coefficients or load_coefficients()
    if layer.parts:
        inner = [layer_cycles(part, target, k) for part in layer.parts]
        slowest = max(inner, key=lambda c: c["latency_max"])
        return slowest | {"latency_min": max(c["latency_min"] for c in inner)}
    tight, tokens = target.tightness, layer.tokens_in
    if layer.kind == "conv" and target.stream:
        pixels = math.prod(layer.in_shape[:-1])
        idle = _term(k, "cycles.conv_idle")
        if layer.strategy == "latency":
            first = pipeline_depth(layer, target, k)
            paced = 3.0 if target.vitis else 1.0
            idle = per = _latency_interval(layer, target, k, first) if layer.factor > 1 else paced
            extra = first + 3
        elif layer.serial:
            per = layer.factor + 2 * layer.in_shape[-1] + layer.n_out
            idle, extra = layer.in_shape[-1] + 3.0, 0
        else:
            per = layer.factor + _term(k, "cycles.conv") + _term(k, "cycles.conv_slow") * FAMILIES[target.family]
            extra = 0
        return _cycles(pixels * min(idle, per) + extra, pixels * per + extra, per=per, idle=min(idle, per))
    if layer.kind in MULTIPLYING:
        if not (target.stream and layer.in_shape[-1] < layer.n_in):
            tokens = layer.n_in // layer.in_shape[-1] or 1
        pixels = math.prod(layer.out_shape[:-1]) if layer.kind == "conv" else 1
        wait = (tokens if tokens > 1 else 0) if target.stream else 0
        if layer.strategy == "latency":
            depth = pipeline_depth(layer, target, k)
            run = depth + _shared_steps(layer)
            interval = pixels * (_latency_interval(layer, target, k, depth) if layer.factor > 1 else 1)
            total = wait + run + (2 if target.stream else 0) + (pixels - 1 if pixels > 1 else 0)
            return _cycles(total, total, interval=total if target.stream else interval)
        total = wait + pixels * layer.factor + _term(k, "cycles.dense") + _term(k, "cycles.dense_tight") * tight
        return _cycles(total - 1, total, interval=total if target.stream else pixels * layer.factor)
    if not target.stream:
        stages = {"softmax": 12 * tight, "table": 2.0}.get(layer.kind, 1.0 if tight > 1.2 else 0.0)
        if layer.kind in ("pool", "globalpool") and layer.in_shape:
            stages = tight * math.log2(max(math.prod(layer.kernel or layer.in_shape[:-1]), 2))
        return _cycles(round(stages), round(stages), interval=1)
    elements = max(layer.tokens_in, layer.tokens_out)
    if layer.kind == "softmax":
        if _run_time_table(layer, target):
            return _cycles(layer.table_size + 30, layer.table_size + 30)
        groups = max(math.prod(layer.in_shape) // max(layer.lanes, 1), 1)
        total = groups * (1 if groups > 64 else max(min(layer.reuse_factor, layer.lanes), 1)) + 5 + 10 * tight
        return _cycles(total, total)
    if elements <= 1 and layer.kind in ("activation", "table", "norm"):
        return _cycles(1, 1, interval=1)
    pace = 1.0
    if layer.kind == "pool" and (tight >= 0.9 or (target.vitis and target.version < 2025)):
        pace = 2.0
    if layer.serial:
        pace = {"activation": 1.0, "pad": 1.0}.get(layer.kind, 1.5)
    return _cycles(elements * pace + 3, elements * pace + 3)


def _run_time_table(layer: LayerSpec, target: Target) -> bool:
    if target.softmax_run_time_table is not None:
        return target.softmax_run_time_table
    return target.vitis and (layer.normalized_bits or 0) > 18


def _shared_steps(layer: LayerSpec) -> int:
    """Turns the shared multipliers take beyond those a pipeline of interval 2 hides."""
    return max(math.ceil(_long_products(layer) / _limit(layer)) - 2, 0) if layer.factor > 1 else 0


def _latency_interval(layer: LayerSpec, target: Target, k: Mapping, depth: int) -> float:
    """A Latency layer with a reuse factor shares ``multiplier_limit`` multipliers among its long products; it is done
    when they are, even if that is sooner than the reuse factor."""
    return min(float(layer.factor), _shared_steps(layer) + depth / 2 + 2 + _term(k, "cycles.share"))


def _cycles(low: float, high: float, *, interval: float | None = None, per: float = 0.0, idle: float = 0.0) -> dict:
    low, high = round(low), round(high)
    return {"latency_min": low, "latency_max": high, "interval": round(interval if interval is not None else high),
            "per_output": per, "per_idle": idle}


def network_cycles(layers: Iterable[LayerSpec], target: Target, coefficients: Mapping | None = None) -> dict[str, int]:
    """Latency and interval of the whole network as csynth reports them: {"latency", "interval"}.

    A dataflow region takes as long as its slowest layer, plus what each other layer does with its last token; a
    pipeline adds its layers and the registers between them. Hardware differs where several layers are nearly as slow:
    ``hls.dataflow`` simulates what this only composes."""
    k = coefficients or load_coefficients()
    rows = [(layer, layer_cycles(layer, target, k)) for layer in layers if layer.kind != "reshape"]
    if not rows:
        return {"latency": 0, "interval": 0}
    slowest = max(c["interval"] for _, c in rows)
    if not target.stream:
        registers = sum(1 for layer, _ in rows if target.tightness >= 0.8 or layer.kind in (*MULTIPLYING, "softmax"))
        registers = registers if target.tightness >= 0.25 else registers / 2
        return {"latency": round(sum(c["latency_max"] for _, c in rows) + registers), "interval": max(slowest, 1)}
    longest = max(c["latency_max"] for _, c in rows)
    tails = 0.0
    for layer, cycles in rows:
        own, tokens = cycles["latency_max"], max(layer.tokens_in, 1)
        # a table made at run time is made before the first value arrives
        own -= layer.table_size if layer.kind == "softmax" and own > layer.table_size and own != longest else 0
        tails += 0 if own == longest else max(own - tokens, 0) if layer.kind == "dense" else own / tokens
    return {"latency": round(longest + tails + 2), "interval": round(slowest + 1)}


# --- LUT and FF: named terms, each with one coefficient ------------------------------------------------------------


def _stripe(layer: LayerSpec) -> tuple[float, float]:
    """(bits of one column of the line buffers, bits times the 32-bit shift registers along a row)."""
    if layer.kind not in ("conv", "pool") or len(layer.kernel) < 2 or layer.implementation == "encoded":
        return 0.0, 0.0
    column = (layer.kernel[0] - 1) * layer.in_shape[-1] * layer.input_bits
    return float(column), column * layer.in_shape[1] / 32


def terms(layer: LayerSpec, target: Target) -> dict[str, dict[str, float]]:
    """{"lut": {term: size}, "ff": {term: size}} of a layer without its FIFOs, in LUTs and FFs at a coefficient of 1."""
    if layer.parts:
        total: dict[str, dict[str, float]] = {"lut": {}, "ff": {}}
        for part in layer.parts:
            for quantity, sizes in terms(part, target).items():
                for name, size in sizes.items():
                    total[quantity][name] = total[quantity].get(name, 0.0) + size
        return total
    if layer.kind in MULTIPLYING:
        sizes = (_latency_terms if layer.strategy == "latency" else _resource_terms)(layer, target)
    else:
        sizes = _other_terms(layer, target)
    if layer.serial:
        # forks have coefficients of their own and none of hls4ml's
        return {q: {f"serial_{name}": v for name, v in one.items()} for q, one in sizes.items()}
    return sizes


def _window_terms(layer: LayerSpec, target: Target) -> tuple[dict, dict]:
    lut, ff = {}, {}
    if target.stream:
        bits = layer.n_in * layer.input_bits if not layer.serial else layer.in_shape[-1] * layer.input_bits
        lut["window"] = 0.2 * bits
        # a convolution shifts its window, a dense layer holds its input
        ff["window" if layer.kind == "conv" else "held_input"] = float(bits)
    column, along = _stripe(layer)
    if column and target.stream:
        lut["line"] = 1.5 * column + along
        ff["line"] = 2.0 * column
    count, _, bits = window_fifos(layer)
    if count:
        lut["encoded"], ff["encoded"] = 30.0 * count, 2.0 * count * bits
    return lut, ff


def _resource_terms(layer: LayerSpec, target: Target) -> dict:
    n, a, acc, tight = layer.multipliers, layer.input_bits, layer.accumulator_bits, target.tightness
    _, in_lut = products(layer, target)
    lut, ff = _window_terms(layer, target)
    # below n_in every multiplier selects its own input, and HLS counts a mux for each whatever its size; from n_in on
    # one selection serves all and the sums are selected instead
    many = layer.factor < layer.n_in
    lut |= {
        "base": 600.0,
        "product": 0.8 * in_lut * layer.weight_bits * a,
        "sum": 1.0 * n * acc if many else 0.5 * n * acc,
        "result": layer.n_out * (20.0 + acc) if layer.factor > layer.n_in else 0.5 * layer.n_out * acc,
        f"select_{layer.kind}": 70.0 * n if many else 0.0,
    }
    _, bram = weight_memory(layer, target)
    if not bram:
        lut["rom"] = 0.3 * layer.weights * layer.weight_bits / 16 + 5
    ff |= {
        "base": 150.0,
        "operands": 0.6 * n * (layer.weight_bits + a) * min(2 * tight, 1.0),
        "products": 0.8 * n * acc * min(tight, 1.5),
        "result": 1.0 * layer.n_out * acc,
    }
    return {"lut": {f"resource.{k}": v for k, v in lut.items()}, "ff": {f"resource.{k}": v for k, v in ff.items()}}


def _latency_terms(layer: LayerSpec, target: Target) -> dict:
    a, live = layer.input_bits, layer.live
    real, digits = layer.digits
    long = _long_products(layer)
    in_dsp = products(layer, target)[0] > 0
    width = min(layer.accumulator_bits, a + (layer.used_weight_bits or min(layer.weight_bits, 11)) + 4)
    kept = real - long if in_dsp else real
    adders = kept if in_dsp else digits - real
    shared = 0.0
    if not in_dsp and layer.factor > 1 and long > _limit(layer):
        # long products take turns on multipliers built from LUTs; the rest stay shifted additions
        adders, shared = real - long, 0.8 * _limit(layer) * layer.weight_bits * a
    lut, ff = _window_terms(layer, target)
    lut |= {"base": 50.0, "tree": live * width, "shifted": max(adders, 0.0) * (a + 4.0) + shared}
    # registers: none in a short path, one or two per product once the sum takes several clocks
    delay = _delay(layer, target, {"terms": {}})
    if layer.factor > 1:
        steps = _shared_steps(layer)
        lut["share"], lut["steps"] = long * a * 0.6, 6.0 * steps
        ff["held"] = 1.1 * live * width * -math.expm1(-(((delay + steps) / 2.5) ** 4))
    else:
        ff["stages"] = 1.6 * live * width * -math.expm1(-((delay / 2.5) ** 4))
    ff |= {"base": 20.0, "result": layer.n_out * width * (1.0 if delay >= 1 else 0.1)}
    if layer.kind == "conv" and not target.stream:
        lut["image"] = ff["image"] = 3.0 * math.prod(layer.in_shape) * a
    return {"lut": {f"latency.{k}": v for k, v in lut.items()}, "ff": {f"latency.{k}": v for k, v in ff.items()}}


def _other_terms(layer: LayerSpec, target: Target) -> dict:
    tight = target.tightness
    lanes = layer.lanes if target.stream else math.prod(layer.out_shape)
    wide, narrow = max(layer.input_bits, layer.output_bits), min(layer.input_bits, layer.output_bits)
    kind = layer.kind
    if layer.serial and kind != "softmax":
        lanes = 1
    if kind == "activation" and (
            "linear" in layer.op or ("quantize" in layer.op and "quantized" not in layer.op)):
        # a cast: a process of its own in a stream, nearly nothing in a pipeline
        lut, ff = {"base": 30.0, "lane": (0.8 if target.stream else 0.1) * lanes * narrow}, {"base": 10.0}
        if target.stream:
            lut["stream"] = 18.0 * lanes
        return {"lut": {f"linear.{k}": v for k, v in lut.items()}, "ff": {f"linear.{k}": v for k, v in ff.items()}}
    if kind == "activation":
        cut = 1.0 if layer.output_bits < layer.input_bits else 0.0
        lut = {"base": 40.0, "pass": 1.6 * lanes * narrow, "cut": 2.2 * cut * lanes * wide}
        # registered in a dataflow process unless the clock is slow, in a pipeline only when it is fast
        held = tight >= 0.25 if target.dataflow and layer.tokens_in > 1 else tight > 1.2 or (target.dataflow and cut)
        ff = {"base": 10.0, "pass": lanes * (wide if cut and target.dataflow else narrow) * (1.0 if held else 0.01)}
        if target.stream:
            lut["stream"] = 18.0 * lanes
    elif kind in ("pool", "globalpool"):
        taps = max(math.prod(layer.kernel) - 1, 1) if layer.kernel and kind == "pool" else 1
        if kind == "globalpool" and not target.stream:
            taps, lanes = math.prod(layer.in_shape[:-1]), layer.channels
        column, along = _stripe(layer)
        lut = {"base": 150.0, "compare": 2.0 * lanes * taps * layer.input_bits, "steer": 40.0 * lanes * taps}
        ff = {"base": 60.0, "compare": lanes * taps * layer.input_bits * 2.0 * (0.4 + tight)}
        if target.stream:
            lut["line"], ff["line"] = column + along, 2.0 * column
            if count := window_fifos(layer)[0]:
                lut["encoded"], ff["encoded"] = 30.0 * count, 2.0 * count * layer.input_bits
    elif kind in ("softmax", "table"):
        lut = {"base": 150.0, "lane": 120.0 * lanes}
        ff = {"base": 50.0, "lane": 100.0 * lanes * (0.2 + tight)}
        if target.stream and kind == "softmax":
            lut["stream"] = 100.0 * lanes
        if kind == "softmax" and _run_time_table(layer, target):
            lut["made"], ff["made"] = 2500.0, 900.0
        if kind == "softmax" and target.multiplier == "fabric":
            lut["fabric"] = 350.0 * lanes
    elif kind == "norm":
        lut = {"base": 40.0, "lane": 3.0 * lanes * layer.input_bits}
        ff = {"base": 30.0, "lane": 8.0 * lanes * layer.input_bits * tight}
    elif kind in ("pad", "clone", "reshape", "other"):
        copies = 0 if kind == "reshape" else 1
        lut = {"base": 150.0 * copies, "lane": lanes * (20.0 + layer.output_bits) * copies}
        ff = {"base": 30.0 * copies}
    elif kind == "threshold":
        # a comparison with a constant per channel and level, and a count of those that hold
        steps, levels = layer.table_size, layer.table_size.bit_length()
        lut = {"base": 150.0, "lane": lanes * steps * (layer.input_bits / 3 + 1.0)}
        ff = {"base": 60.0, "lane": lanes * (layer.input_bits + levels * (1.0 + tight))}
    elif kind == "search":
        # a binary search in a table of each channel: one comparison for every bit of the count
        bits = layer.table_size.bit_length()
        lut = {"base": 150.0, "lane": lanes * bits * (layer.input_bits / 2 + 4.0)}
        ff = {"base": 60.0, "lane": lanes * bits * (layer.input_bits + bits / 2)}
    elif _upsamples(layer, target):
        # nnet_upsample.h: a selection and a register for each channel; the row it repeats lies in a memory of LUTs, 64
        # words deep, or of blocks (`row_memory`)
        bits, depth, blocks = row_memory(layer)
        lut = {"base": 150.0, "lane": 1.0 * bits, "row": 0.0 if blocks else bits * math.ceil(depth / 64)}
        ff = {"base": 60.0, "lane": 1.0 * bits}
    elif kind == "resize":
        row = layer.in_shape[1] if len(layer.in_shape) > 1 else 1
        held = lanes * row * layer.input_bits
        lut, ff = {"base": 250.0, "row": 0.3 * held}, {"base": 30.0, "row": 1.0 * held}
    else:
        lut = {"base": 60.0, "lane": lanes * (layer.output_bits + 20.0)}
        ff = {"base": 20.0, "lane": 1.0 * lanes * layer.output_bits * tight}
    group = {"globalpool": "global", "reshape": "pad", "clone": "pad", "other": "pad", "merge": "pad"}.get(kind, kind)
    return {"lut": {f"{group}.{k}": v for k, v in lut.items()}, "ff": {f"{group}.{k}": v for k, v in ff.items()}}


def fifo_terms(layer: LayerSpec, target: Target) -> dict[str, dict[str, float]]:
    """The same for the FIFOs behind a layer."""
    return stream_terms(*fifos(layer, target), target)


def stream_terms(count: int, depth: int, bits: int, target: Target) -> dict[str, dict[str, float]]:
    """The same for ``count`` FIFOs of ``depth`` tokens of ``bits`` bits."""
    if not count:
        return {"lut": {}, "ff": {}}
    steps = max((depth - 1).bit_length(), 1)
    if target.vitis and target.version >= 2024.2:
        # reports from 2024.2 on count a FIFO's control, whatever its width
        return {"lut": {"fifo.control": 50.0 * count}, "ff": {"fifo.control": 95.0 * count}}
    if fifo_bram18(depth, bits, target):
        return {"lut": {"fifo.memory": count * (bits + 4.0 * steps + 8)},
                "ff": {"fifo.memory": count * ((2.0 if target.vitis else 1.0) * bits + 3.0 * steps + 4)}}
    ff = count * (2.0 * bits + 4) if target.vitis else count * max(5.0, 3.0 + steps)
    return {"lut": {"fifo.shift": count * (bits * max(depth / 32, 0.8) + steps + 8.0)}, "ff": {"fifo.shift": ff}}


def top_terms(layers: Iterable[LayerSpec], target: Target) -> dict[str, dict[str, float]]:
    """The top function's own: registers between layers of a pipeline, control."""
    held = 0.0
    if not target.stream and not target.dataflow:
        held = float(sum(math.prod(x.out_shape) * x.output_bits for x in layers if x.kind != "reshape"))
    return {"lut": {"top.base": 40.0}, "ff": {"top.registers": held} if held else {"top.base": 5.0}}


# --- estimates -----------------------------------------------------------------------------------------------------

PLATFORM = {"lut": (2000.0, 1400.0, 4000.0), "ff": (3500.0, 3100.0, 6500.0), "dsp": (0.0, 0.0, 0.0),
            "bram18": (8.0, 4.0, 10.0)}
"""AXI DMA and interconnect on a Zynq-7000 block design: (typical, least, most) as placed (INDEX, pattern 13). Taken for
UltraScale+ too, where no published system tells them apart from the network."""


@dataclass(frozen=True)
class Estimate:
    """Per layer and in total: {quantity: {"hls": {"value", "lo", "hi"}, "implemented": {...}, "evidence"}}; cycles
    likewise per layer under "cycles", of the whole under ``latency`` and ``interval``."""

    layers: dict[str, dict]
    totals: dict[str, dict]
    latency: dict[str, float]
    """Cycles from the first value in to the last out: {"value", "lo", "hi"}."""
    interval: dict[str, float]
    """Cycles between frames, likewise."""
    evidence: str
    why: tuple[str, ...]
    """Why figures are extrapolated, in words; empty where they are not."""

    def as_dict(self) -> dict:
        return {"layers": self.layers, "totals": self.totals, "latency_cycles": self.latency,
                "interval_cycles": self.interval, "evidence": self.evidence, "why_extrapolated": list(self.why)}


def extrapolated(layers: Iterable[LayerSpec], target: Target) -> tuple[str, ...]:
    """What in this design no published report covers, in words."""
    layers = [part for layer in layers for part in (layer.parts or (layer,))]
    found = []
    work = [x for x in layers if x.kind in MULTIPLYING]
    if target.vitis and any(x.strategy != "latency" and x.factor > 1 for x in work):
        found.append("Vitis HLS with Resource strategy and reuse factor > 1: no published design; structure from the "
                     "templates, coefficients from Vivado HLS")
    if any(max(x.weight_bits, x.input_bits) <= 4 for x in work):
        found.append("4-bit products: one published row; LUT multipliers assumed under Vitis HLS")
    if any(x.kind in ("merge", "clone", "threshold", "search", "other") or _upsamples(x, target) for x in layers):
        found.append("merge, clone, threshold, upsampling or unknown layers: no published row")
    if target.toolchain not in ("vivado_hls", "vitis_hls"):
        found.append(f"toolchain {target.toolchain!r}: no data")
    return tuple(found)


Streams = Iterable[tuple[int, int]]
"""FIFOs behind a layer: (depth in tokens, bits of a token) each."""


def stream_figures(count: int, depth: int, bits: int, target: Target, coefficients: Mapping) -> dict[str, dict]:
    """``count`` equal FIFOs: {"hls": {quantity: value}, "implemented": {...}}."""
    sizes = stream_terms(count, depth, bits, target)
    hls = {q: sum(_term(coefficients, f"{q}:{name}") * size for name, size in sizes[q].items()) for q in ("lut", "ff")}
    hls |= {"dsp": 0.0, "bram18": float(count * fifo_bram18(depth, bits, target)) if count else 0.0}
    left = {q: hls[q] * _term(coefficients, f"remains:{q}.fifo") for q in ("lut", "ff")}
    # Vivado moves FIFOs up to 128 deep into LUTs
    return {"hls": hls, "implemented": left | {"dsp": 0.0, "bram18": hls["bram18"] if depth > 128 else 0.0}}


def raw_layer(layer: LayerSpec, target: Target, coefficients: Mapping,
              streams: Streams | None = None) -> dict[str, dict[str, float]]:
    """Figures of one layer as HLS will report it, of its FIFOs, and of what implementation leaves of those: {"own":
    {quantity: value}, "fifo": {...}, "fifo_left": {...}}. ``streams``: its FIFOs where they are known one by one."""
    own = terms(layer, target)

    def weigh(kind: str, sizes: dict) -> float:
        return sum(_term(coefficients, f"{kind}:{name}") * size for name, size in sizes.items())

    window_count, window_depth, window_bits = window_fifos(layer)
    dsp = products(layer, target)[0] if layer.kind in MULTIPLYING else 0.0
    if layer.kind == "softmax" and target.multiplier != "fabric":
        dsp = math.ceil(layer.channels / layer.reuse_factor) if target.stream else math.prod(layer.out_shape)
    elif layer.kind == "norm" and target.stream and max(layer.input_bits, layer.weight_bits) > SMALL_OPERAND:
        dsp = math.ceil(layer.lanes)
    elif layer.kind == "activation" and layer.serial and layer.weight_bits > SMALL_OPERAND:
        dsp = 2.0
    memories = weight_memory(layer, target)[1] + index_memory(layer) + table_memory(layer, target)
    memories += row_memory(layer)[2] if _upsamples(layer, target) else 0
    if target.stream:
        memories += window_count * fifo_bram18(window_depth, window_bits, replace(target, toolchain="vivado_hls"))
    known = [fifos(layer, target)] if streams is None else [(1, depth, bits) for depth, bits in streams]
    figures = [stream_figures(*one, target, coefficients) for one in known]
    return {
        "own": {"lut": weigh("lut", own["lut"]), "ff": weigh("ff", own["ff"]), "dsp": float(dsp),
                "bram18": float(memories)},
        "fifo": {q: sum(f["hls"][q] for f in figures) for q in QUANTITIES},
        "fifo_left": {q: sum(f["implemented"][q] for f in figures) for q in QUANTITIES},
    }


def remaining(layer: LayerSpec, target: Target, raw: Mapping, coefficients: Mapping) -> dict[str, float]:
    """What implementation leaves of one layer's HLS figures, FIFOs included."""
    strategy = layer.parts[0].strategy if layer.parts else layer.strategy
    share = "latency" if layer.kind in MULTIPLYING and strategy == "latency" else \
        "resource" if layer.kind in MULTIPLYING else "other"
    value = {q: raw["own"][q] * _term(coefficients, f"remains:{q}.{share}") for q in ("lut", "ff")}
    # Vivado moves shallow memories into LUTs: words of a weight memory up to 16 deep
    weights = weight_memory(layer, target)[1] if layer.factor <= 16 else 0
    value |= {"dsp": raw["own"]["dsp"], "bram18": raw["own"]["bram18"] - weights}
    return {q: value[q] + raw["fifo_left"][q] for q in QUANTITIES}


def design_class(layers: Iterable[LayerSpec]) -> str:
    """Which published designs' errors tell how far an estimate may be off: "serial" forks; "unread" where the Latency
    strategy is used and nobody said how many weights are zero; "stock" for the rest."""
    work = _work(layers)
    if any(x.serial for x in work):
        return "serial"
    return "unread" if any(x.strategy == "latency" and x.nonzeros is None for x in work) else "stock"


def _work(layers: Iterable[LayerSpec]) -> list[LayerSpec]:
    return [p for x in layers for p in (x.parts or (x,)) if p.kind in MULTIPLYING]


class Traits(NamedTuple):
    """What the reach of an interval may depend on: :func:`design_class`, the strategy of most layers, the compiler, how
    layers are joined, and whether most weights are zero."""

    kind: str
    strategy: str = "none"
    tool: str = "vitis_hls"
    io: str = "io_stream"
    density: str = "dense"


def traits(layers: Iterable[LayerSpec], target: Target) -> Traits:
    """The traits of a design."""
    layers = list(layers)
    work = _work(layers)
    strategies = [x.strategy for x in work]
    sparse = sum(x.live for x in work) < 0.5 * sum(x.weights for x in work)
    return Traits(design_class(layers), max(strategies, key=strategies.count, default="none"), target.toolchain,
                  target.io, "sparse" if sparse else "dense")


UNKNOWN_REACH = math.log(2.5)
"""Logarithm of the factor to both sides where fewer than three repositories are like the design."""
SHIFT = {"dsp": 1.0, "bram18": 1.0}
"""Added to small counts before a ratio is taken, so that 0 and 1 are near."""


def reach_of(coefficients: Mapping, scope: str, figure: str, quantity: str, like: Traits) -> float:
    """Logarithm of the factor around a prediction that holds 90 % of what is reported. From the nearest class of
    designs that was seen: {"by": traits that count, "reach": {"kind/trait/...": reach, ..., "": all designs}}."""
    known = coefficients.get("intervals", {}).get(f"{scope}.{figure}.{quantity}")
    if known is None:
        return UNKNOWN_REACH
    path = [like.kind, *(getattr(like, name) for name in known["by"])]
    while path:
        if (reach := known["reach"].get("/".join(path))) is not None:
            return reach
        path.pop()
    return known["reach"][""]


def spread(value: float, coefficients: Mapping, scope: str, figure: str, quantity: str, like: Traits,
           widen: float = 1.0) -> dict[str, float]:
    """{"value", "lo", "hi"}: the 90 % interval from the errors on designs that were left out of the fit."""
    factor = math.exp(reach_of(coefficients, scope, figure, quantity, like)) * widen
    shift = SHIFT.get(quantity, 0.0)
    return {"value": round(value, 1), "lo": round(max((value + shift) / factor - shift, 0.0), 1),
            "hi": round((value + shift) * factor - shift, 1)}


WIDEN = 1.3
"""An extrapolated figure's interval is this factor wider on each side."""


def estimate(layers: Iterable[LayerSpec], target: Target, *, platform: bool = False,
             coefficients: Mapping | None = None, streams: Mapping[str, Streams] | None = None) -> Estimate:
    """Cost of a network on a target. ``platform``: add the DMA and interconnect to the implemented totals.
    ``streams``: layer -> the FIFOs it writes, where they are known one by one.

    Raises :class:`CostError` for an empty network, or two layers of one name."""
    layers = list(layers)
    k = coefficients or load_coefficients()
    if not layers:
        raise CostError("a network without layers has no cost")
    names = [layer.name for layer in layers]
    if len(set(names)) != len(names):
        raise CostError(f"two layers are called {max(names, key=names.count)!r}")
    why, kind = extrapolated(layers, target), traits(layers, target)
    if platform and target.family != "zynq7":
        why += (f"platform of {target.family}: DMA and interconnect as on Zynq-7000",)
    evidence, widen = ("estimated (extrapolated)", WIDEN) if why else ("estimated", 1.0)
    rows: dict[str, dict] = {}
    sums = {"hls": dict.fromkeys(QUANTITIES, 0.0), "implemented": dict.fromkeys(QUANTITIES, 0.0)}
    for layer in layers:
        raw = raw_layer(layer, target, k, None if streams is None else streams.get(layer.name, ()))
        left = remaining(layer, target, raw, k)
        row: dict = {}
        for quantity in QUANTITIES:
            value = raw["own"][quantity] + raw["fifo"][quantity]
            sums["hls"][quantity] += value
            sums["implemented"][quantity] += left[quantity]
            row[quantity] = {
                "hls": spread(value, k, "layer", "hls", quantity, kind, widen),
                "implemented": spread(left[quantity], k, "layer", "implemented", quantity, kind, widen),
                "evidence": evidence,
            }
        row["cycles"] = layer_cycles(layer, target, k) | {"evidence": evidence}
        row["multipliers"] = sum(p.multipliers for p in layer.parts) if layer.parts else layer.multipliers
        rows[layer.name] = row
    for quantity, sizes in top_terms(layers, target).items():
        extra = sum(_term(k, f"{quantity}:{name}") * size for name, size in sizes.items())
        sums["hls"][quantity] += extra
        sums["implemented"][quantity] += extra
    short = sums["implemented"]["dsp"] - (target.dsp_available or math.inf)
    if short > 0:
        # Vivado builds what does not fit the DSPs from LUTs
        sums["implemented"]["dsp"] = float(target.dsp_available)
        sums["implemented"]["lut"] += short * 80.0 * _term(k, "remains:displaced")
    totals = {}
    for quantity in QUANTITIES:
        here = {f: spread(sums[f][quantity], k, "total", f, quantity, kind, widen) for f in ("hls", "implemented")}
        if platform:
            for edge, extra in zip(("value", "lo", "hi"), PLATFORM[quantity], strict=True):
                here["implemented"][edge] += extra
        totals[quantity] = here | {"evidence": evidence}
    cycles = network_cycles(layers, target, k)
    latency, interval = (spread(float(cycles[what]), k, "total", "hls", what, kind, widen)
                         for what in ("latency", "interval"))
    return Estimate(rows, totals, latency, interval, evidence, why)


def legal_reuse_factors(n_in: int, n_out: int) -> list[int]:
    """Every reuse factor hls4ml 1.3.0 accepts without changing it (``FPGABackend._validate_reuse_factor``)."""

    def legal(factor: int) -> bool:
        limit = math.ceil(n_in * n_out / min(n_in, factor))
        return (limit % n_out == 0 or factor >= n_in) and (factor % n_in == 0 or factor < n_in)

    total = n_in * n_out
    divisors = {d for i in range(1, math.isqrt(total) + 1) if total % i == 0 for d in (i, total // i)}
    return sorted(d for d in divisors if legal(d))


def widened(layer: LayerSpec, width: int) -> LayerSpec:
    """The layer with ``width`` output channels, at the largest reuse factor up to its own that is legal (hls4ml's
    rule), so that it is no slower."""
    if width < 1:
        raise CostError(f"a width of {width} is not a layer", where=layer.name)
    if layer.kind not in MULTIPLYING or layer.parts:
        return replace(layer, out_shape=(*layer.out_shape[:-1], width))
    legal = legal_reuse_factors(layer.n_in, width)
    factor = max(f for f in legal if f <= layer.reuse_factor)
    kept = {"nonzeros": None, "powers_of_two": None, "csd_digits": None, "multiplier_limit": None}
    return replace(layer, n_out=width, weights=layer.n_in * width, out_shape=(*layer.out_shape[:-1], width),
                   reuse_factor=factor if layer.strategy != "latency" else layer.reuse_factor, **kept)


def width_cost(layer: LayerSpec, width: int, target: Target | None = None,
               coefficients: Mapping | None = None) -> dict[str, float]:
    """What ``layer`` would cost with ``width`` output channels: {"lut", "ff", "dsp", "bram18", "multipliers", "cycles",
    "reuse_factor"} as HLS reports it, at no more cycles than the layer takes now. A step function of width, and not
    monotone: 13 filters have fewer legal reuse factors than 14 and may cost more. The trimming side reads its cluster
    sizes from it."""
    target, k = target or Target(), coefficients or load_coefficients()
    changed = widened(layer, width)
    raw = raw_layer(changed, target, k)
    return {q: raw["own"][q] + raw["fifo"][q] for q in QUANTITIES} | {
        "multipliers": changed.multipliers, "cycles": layer_cycles(changed, target, k)["latency_max"],
        "reuse_factor": changed.reuse_factor}


def useful_widths(layer: LayerSpec, widths: Iterable[int], target: Target | None = None,
                  coefficients: Mapping | None = None) -> list[int]:
    """The widths that no wider one dominates: a width goes when a larger one takes no more of any resource, both within
    the cycles the layer takes now."""
    costs = {w: width_cost(layer, w, target, coefficients) for w in sorted(set(widths))}
    return [w for w, c in costs.items()
            if not any(v > w and all(d[q] <= c[q] for q in QUANTITIES) for v, d in costs.items())]
