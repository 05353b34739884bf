"""What is exact: every tensor of a QONNX graph as integers on a power-of-two grid, with its worst-case range.

The graph is walked once in topological order. A tensor is described by :class:`Fixed`: its values are ``k * 2**lsb``
with integer ``k`` between ``lo`` and ``hi``, per channel (last axis). Ranges of accumulators come from the actual
weights and the worst input, with every partial sum inside, so a type derived from them can neither round nor overflow.
A network that breaks a condition of exactness is refused with the node, the reason and what to change.

Graphs are channels-last and cleaned (:mod:`hls.graph`). QONNX operator semantics:
https://github.com/fastmachinelearning/qonnx/tree/main/docs/qonnx-custom-ops.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from boards.errors import SlimgateError

#: float32 holds every integer below this, so float execution of sums of products stays exact below it.
FLOAT32_EXACT = 2**24
#: Thresholds of one channel that are compared all at once, as an 8-bit quantiser has; more are searched.
MOST_COMPARED = 255
#: Codes and accumulators are int64 here and at most this wide in ap_fixed.
WIDEST = 62


class NotExact(SlimgateError):
    """A node of the network breaks a condition of exactness."""

    def __init__(self, node: str, reason: str, fix: str):
        super().__init__(f"the network cannot be carried to hardware exactly: {reason}", where=f"node {node}", fix=fix)
        self.node, self.reason = node, reason


@dataclass(frozen=True)
class Fixed:
    """Values ``k * 2**lsb``, ``lo <= k <= hi``; ``lo`` and ``hi`` int64 arrays that broadcast over the last axis."""

    lsb: int
    lo: np.ndarray
    hi: np.ndarray

    @property
    def min(self) -> int:
        return int(np.min(self.lo))

    @property
    def max(self) -> int:
        return int(np.max(self.hi))

    @property
    def signed(self) -> bool:
        return self.min < 0

    @property
    def bits(self) -> int:
        """The least width, sign bit included, that holds every code; at least 1."""
        magnitude = max(self.max, -self.min - 1, 0)
        return max(magnitude.bit_length() + self.signed, 1)

    def at(self, lsb: int) -> "Fixed":
        """The same values on a grid at least as fine."""
        if lsb > self.lsb:
            raise ValueError(f"grid 2**{lsb} is coarser than 2**{self.lsb}")
        return Fixed(lsb, self.lo << (self.lsb - lsb), self.hi << (self.lsb - lsb))

    def precision(self) -> str:
        """The hls4ml precision string of the smallest type that holds it: ``fixed<W,I>``, I includes the sign."""
        return f"{'' if self.signed else 'u'}fixed<{self.bits},{self.bits + self.lsb}>"


@dataclass
class Analysis:
    """What :func:`analyze` found. ``tensors``: name -> Fixed. ``constants``: name -> (int64 codes, lsb).
    ``accumulators``: MAC node name -> Fixed of every partial sum. ``quantizers``: Quant node name -> Fixed of its grid.
    """

    tensors: dict[str, Fixed] = field(default_factory=dict)
    constants: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    accumulators: dict[str, Fixed] = field(default_factory=dict)
    quantizers: dict[str, Fixed] = field(default_factory=dict)

    @property
    def widest_accumulator(self) -> int:
        """The largest magnitude of any partial sum, in units of its product scale."""
        return max((max(a.max, -a.min) for a in self.accumulators.values()), default=0)

    @property
    def float32_exact(self) -> bool:
        """Whether float32 execution of the graph is exact; otherwise the int64 reference is the oracle.

        Sums of residual branches and wide quantisers count as well as accumulators do.
        """
        tensors = max((max(t.max, -t.min) for t in self.tensors.values()), default=0)
        return max(self.widest_accumulator, tensors) < FLOAT32_EXACT


def log2_exact(value: float) -> int | None:
    """The exponent of a positive power of two, None for anything else."""
    if not np.isfinite(value) or value <= 0:
        return None
    mantissa, exponent = np.frexp(value)
    return int(exponent) - 1 if mantissa == 0.5 else None


def round_shift(codes: np.ndarray, shift: int, mode: str = "ROUND") -> np.ndarray:
    """``codes * 2**-shift`` as integers: ROUND is half to even, FLOOR toward minus infinity. Exact in int64."""
    if shift <= 0:
        return codes << -shift
    if mode == "FLOOR":
        return codes >> shift
    if shift > WIDEST:
        return np.zeros_like(codes)
    half = np.int64(1) << (shift - 1)
    return (codes + half - 1 + ((codes >> shift) & 1)) >> shift


def quantize_codes(codes: np.ndarray, lsb: int, quantizer: "Quantizer") -> np.ndarray:
    """The output codes of a Quant node for input codes on the grid ``2**lsb``."""
    shift = quantizer.lsb - lsb
    if shift < 0:  # a finer grid: what saturates is cut off first, so that shifting up cannot leave int64
        shift = max(shift, -33)
        codes = np.clip(codes, (quantizer.lo >> -shift) - 1, (quantizer.hi >> -shift) + 1)
    return np.clip(round_shift(codes, shift, quantizer.rounding), quantizer.lo, quantizer.hi)


@dataclass(frozen=True)
class Quantizer:
    """A Quant node with a power-of-two scale: output codes ``lo..hi`` on the grid ``2**lsb``."""

    lsb: int
    lo: int
    hi: int
    rounding: str


# --------------------------------------------------------------------------- reading nodes

_FIXED_POINT = ("use fixed-point quantisers (Brevitas: Int8WeightPerTensorFixedPoint, Uint8ActPerTensorFixedPoint), or "
                "restrict_scaling_type = POWER_OF_TWO")


def attributes(node) -> dict:
    """The attributes of an ONNX node as plain Python values."""
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def quantizer_of(model, node, *, any_scale: bool = False) -> Quantizer:
    """Read a Quant node; refuse what has no exact integer meaning. ``any_scale``: take a scale that is no power of two
    as the next below, and an unsigned narrow range, both of which only thresholds have.

    QONNX writes an empty string for attributes that are zero when it cleans a graph, hence ``bool(...)``.
    """
    parameters = [model.get_initializer(name) for name in node.input[1:4]]
    if any(p is None for p in parameters):
        raise NotExact(node.name, "scale, zero point or bit width is computed at run time",
                       "export the network in eval mode so that quantiser parameters are constants")
    scale, zero_point, width = parameters
    if np.any(zero_point != 0):
        raise NotExact(node.name, f"the zero point is {np.ravel(zero_point)[0]:g}, not 0",
                       "use a symmetric quantiser (Brevitas: Int8...FixedPoint / Uint8...FixedPoint)")
    for name, values in (("scale", scale), ("bit width", width)):
        if not np.array_equal(values, np.full_like(values, np.ravel(values)[0]), equal_nan=True):
            raise NotExact(node.name, f"the {name} differs per channel",
                           "use a per-tensor quantiser (Brevitas: ...PerTensorFixedPoint)")
    first = float(np.ravel(scale)[0])
    lsb = math.frexp(first)[1] - 1 if any_scale and math.isfinite(first) and first > 0 else log2_exact(first)
    if lsb is None:
        raise NotExact(node.name, f"the scale {np.ravel(scale)[0]:.9g} is not a power of two",
                       _FIXED_POINT)
    bits = float(np.ravel(width)[0])
    if bits != int(bits) or not 1 <= bits <= 32:
        raise NotExact(node.name, f"the bit width is {bits:g}", "use a whole bit width between 1 and 32")
    options = attributes(node)
    signed, narrow = bool(options.get("signed", 1)), bool(options.get("narrow", 0))
    rounding = options.get("rounding_mode", b"ROUND").decode().upper()
    if rounding not in ("ROUND", "FLOOR"):
        raise NotExact(node.name, f"rounding mode {rounding} has no hls4ml counterpart",
                       "use rounding mode ROUND or FLOOR")
    if narrow and not signed and not any_scale:
        raise NotExact(node.name, "an unsigned quantiser with narrow range at the input, or of over 12 bits, has "
                                  "no hls4ml counterpart",
                       "set narrow_range=False on unsigned quantisers")
    if signed and bits == 1:
        raise NotExact(node.name, "a signed 1-bit quantiser means -1 and +1 to QONNX and -1 and 0 to hls4ml",
                       "use a BipolarQuant, or at least 2 bits")
    bits = int(bits)
    low = (-(1 << (bits - 1)) + narrow) if signed else 0
    high = (1 << (bits - signed)) - 1 - (narrow and not signed)
    return Quantizer(lsb, low, high, rounding)


# --------------------------------------------------------------------------- operators


def _constant(model, analysis: Analysis, name: str) -> tuple[np.ndarray, int] | None:
    """A quantised constant's codes and grid; an initializer that is a short binary fraction counts as one."""
    if name in analysis.constants:
        return analysis.constants[name]
    values = model.get_initializer(name)
    if values is None:
        return None
    lsb = grid_of(np.asarray(values, np.float64))
    if lsb is None:
        return None
    analysis.constants[name] = (np.round(np.ldexp(np.asarray(values, np.float64), -lsb)).astype(np.int64), lsb)
    return analysis.constants[name]


def grid_of(values: np.ndarray, widest: int = 24) -> int | None:
    """The coarsest power of two of which all values are whole multiples, None if they need more than 24 bits."""
    if not np.all(np.isfinite(values)):
        return None
    if not np.any(values):
        return 0
    mantissas, exponents = np.frexp(np.unique(values[values != 0]))
    whole = [int(m) for m in np.abs(np.ldexp(mantissas, 53))]
    lsb = min(int(e) - 53 + (m & -m).bit_length() - 1 for m, e in zip(whole, exponents, strict=True))
    return lsb if np.max(np.abs(np.ldexp(values, -lsb))) < 2**widest else None


def _input(analysis: Analysis, node, index: int = 0) -> Fixed:
    name = node.input[index]
    if name not in analysis.tensors:
        raise NotExact(node.name, f"its input {name} is not on a known grid",
                       "quantise the network's input (Brevitas: QuantIdentity) and every tensor that is computed with")
    return analysis.tensors[name]


def _quant(model, node, analysis: Analysis) -> Fixed:
    quantizer = quantizer_of(model, node)
    grid = Fixed(quantizer.lsb, np.array(quantizer.lo), np.array(quantizer.hi))
    analysis.quantizers[node.name] = grid
    values = model.get_initializer(node.input[0])
    if values is not None:
        scaled = np.round(np.ldexp(np.asarray(values, np.float64), -quantizer.lsb)) if quantizer.rounding == "ROUND" \
            else np.floor(np.ldexp(np.asarray(values, np.float64), -quantizer.lsb))
        if not np.all(np.isfinite(scaled)):
            raise NotExact(node.name, "the constant holds NaN or infinity",
                           "train the network again; its weights diverged")
        codes = np.clip(scaled, quantizer.lo, quantizer.hi).astype(np.int64)
        analysis.constants[node.output[0]] = (codes, quantizer.lsb)
        return Fixed(quantizer.lsb, codes.min(), codes.max())
    if node.input[0] in {i.name for i in model.graph.input}:
        for other in model.find_consumers(node.input[0]):
            if other.op_type == "Quant" and other.name in analysis.quantizers and quantizer_of(
                model, other) != quantizer:  # fmt: skip
                raise NotExact(node.name, f"it quantises the network's input in another way than {other.name} does; "
                                          "the codes of one quantiser arrive",
                               "share one QuantIdentity at the input, or put the second behind the first")
        return grid  # the host quantises: codes arrive on this grid and fill it
    source = _input(analysis, node)
    return Fixed(quantizer.lsb, quantize_codes(source.lo, source.lsb, quantizer),
                 quantize_codes(source.hi, source.lsb, quantizer))


def _check_width(node, lsb: int, *codes, at: int | None = None, more: float = 1.0) -> None:
    """Refuse codes on the grid ``2**lsb`` that, ``more`` times as large and on the grid ``2**at``, leave int64."""
    largest = max(float(np.max(np.abs(np.asarray(c, np.float64)))) for c in codes)
    if largest and math.log2(largest) + math.log2(max(more, 1.0)) + lsb - (lsb if at is None else at) >= WIDEST - 1:
        raise NotExact(node.name, f"its sums need more than {WIDEST} bits",
                       "use fewer bits or fewer inputs, and scales that lie closer together")


def _multiply_accumulate(model, node, analysis: Analysis, weights, bias, source: Fixed, padded: bool) -> Fixed:
    """Range of a sum of products. ``weights`` int64 (terms, outputs); ``source`` bounds (terms,), scalar, or (terms,
    outputs)."""
    codes, weight_lsb = weights
    lo, hi = (b if np.ndim(b) == 2 else np.broadcast_to(np.ravel(b), codes.shape[:1])[:, None]
              for b in (source.lo, source.hi))
    if padded:  # a border pixel sees zeros in place of data
        lo, hi = np.minimum(lo, 0), np.maximum(hi, 0)
    lsb = weight_lsb + source.lsb
    _check_width(node, source.lsb, lo, hi, more=np.abs(codes).astype(np.float64).sum(0).max())
    products = np.stack([codes * lo, codes * hi])
    low, high = products.min(0), products.max(0)
    bias_codes, bias_lsb = bias if bias is not None else (np.zeros(codes.shape[1], np.int64), lsb)
    fine = min(lsb, bias_lsb) if np.any(bias_codes) else lsb
    _check_width(node, lsb, low.sum(0), high.sum(0), at=fine)
    _check_width(node, bias_lsb, bias_codes, at=fine)
    bias_codes = bias_codes << (bias_lsb - fine) if np.any(bias_codes) else np.zeros(codes.shape[1], np.int64)
    up = lsb - fine
    # hls4ml starts from the bias and adds products one by one, in any grouping: every partial sum lies in here
    partial = Fixed(fine, (np.minimum(low, 0).sum(0) << up) + np.minimum(bias_codes, 0),
                    (np.maximum(high, 0).sum(0) << up) + np.maximum(bias_codes, 0))
    _check_width(node, fine, partial.lo, partial.hi)
    analysis.accumulators[node.name] = partial
    return Fixed(fine, (low.sum(0) << up) + bias_codes, (high.sum(0) << up) + bias_codes)


def _weights(model, node, analysis: Analysis) -> tuple[np.ndarray, int]:
    weights = _constant(model, analysis, node.input[1])
    if weights is None:
        raise NotExact(node.name, "its weights are not quantised", "use Brevitas' QuantConv2d / QuantLinear")
    return weights


def _bias(model, node, analysis: Analysis) -> tuple[np.ndarray, int] | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = _constant(model, analysis, node.input[2])
    if bias is None:
        raise NotExact(node.name, "its bias is a floating-point number",
                       "quantise the bias (Brevitas: bias_quant=Int16Bias, or ...BiasPerTensorFixedPoint)")
    return bias


def _explicit_padding(node, options: dict) -> None:
    if options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID", b""):
        raise NotExact(node.name, f"its padding is left to auto_pad={options['auto_pad'].decode()}",
                       "give the padding as numbers (pads)")


def _conv(model, node, analysis: Analysis) -> Fixed:
    options, source = attributes(node), _input(analysis, node)
    codes, lsb = _weights(model, node, analysis)
    group, channels = options.get("group", 1), model.get_tensor_shape(node.input[0])[-1]
    if group != 1 and (group != channels or group != codes.shape[0]):
        raise NotExact(node.name, f"its {group} groups cannot be written as one dense kernel",
                       "quantise its weights (Brevitas: QuantConv2d)")
    if any(d != 1 for d in options.get("dilations", [1])):
        raise NotExact(node.name, "a dilated convolution is not supported by hls4ml 1.3.0", "use dilation 1")
    _explicit_padding(node, options)
    if codes.ndim != 4:
        raise NotExact(node.name, "only 2-D convolutions are carried yet", "use Conv2d")
    terms = np.moveaxis(codes, 0, -1).reshape(-1, codes.shape[0])  # weights O,kH,kW,I -> (kH*kW*I, O)
    taps = terms.shape[0] // codes.shape[-1]

    def per_tap(bounds):
        if group != 1:  # each output sees its own channel alone
            return np.broadcast_to(np.broadcast_to(np.ravel(bounds), (channels,)), (taps, channels))
        return np.tile(np.broadcast_to(np.ravel(bounds), (codes.shape[-1],)), taps)

    spread = Fixed(source.lsb, per_tap(source.lo), per_tap(source.hi))
    return _multiply_accumulate(model, node, analysis, (terms, lsb), _bias(model, node, analysis), spread,
                                padded=any(options.get("pads", [0])))


def _matmul(model, node, analysis: Analysis) -> Fixed:
    source = _input(analysis, node)
    codes, lsb = _weights(model, node, analysis)
    lo, hi = (np.ravel(b) for b in (source.lo, source.hi))
    if lo.size not in (1, codes.shape[0]):
        lo, hi = np.array(source.min), np.array(source.max)
    return _multiply_accumulate(model, node, analysis, (codes, lsb), None, Fixed(source.lsb, lo, hi), padded=False)


def _add(model, node, analysis: Analysis) -> Fixed:
    sides, shapes = [], set()
    for index, name in enumerate(node.input):
        constant = _constant(model, analysis, name)
        if constant is not None:
            codes, lsb = constant
            flat = np.ravel(codes) if codes.size in (1, codes.shape[-1] if codes.ndim else 1) else None
            sides.append(Fixed(lsb, *((flat, flat) if flat is not None else (codes.min(), codes.max()))))
        elif model.get_initializer(name) is not None:
            raise NotExact(node.name, f"it adds floating-point numbers, such as a bias, and {_FOLLOWED[0]}",
                           "quantise the bias (Brevitas: bias_quant=Int16Bias, or ...BiasPerTensorFixedPoint), or put "
                           "a quantiser of at most 12 bits right behind it")
        else:
            sides.append(_input(analysis, node, index))
            shapes.add(tuple(model.get_tensor_shape(name)))
    producer = model.find_producer(node.input[0])
    biased = producer is not None and producer.op_type == "MatMul" and producer.name in analysis.accumulators
    if len(shapes) == 1 < len(node.input) and node.input[1] in analysis.constants and not biased:
        raise NotExact(node.name, f"it adds a constant, and {_FOLLOWED[0]}",
                       f"{_FOLLOWED[1]}, and add one number for each channel; or make it the layer's bias")
    if len(shapes) > 1:
        raise NotExact(node.name, f"it adds tensors of different shapes ({' and '.join(map(str, sorted(shapes)))})",
                       "bring both branches to one shape")
    lsb = min(s.lsb for s in sides)
    for side in sides:
        _check_width(node, side.lsb, side.lo, side.hi, at=lsb)
    left, right = (s.at(lsb) for s in sides)
    total = Fixed(lsb, left.lo + right.lo, left.hi + right.hi)
    if biased:
        # the bias of a dense layer: hls4ml starts the accumulator from it
        partial = analysis.accumulators[producer.name].at(lsb)
        analysis.accumulators[producer.name] = Fixed(
            lsb, partial.lo + np.minimum(right.lo, 0), partial.hi + np.maximum(right.hi, 0))
    return total


def _concat(model, node, analysis: Analysis) -> Fixed:
    if len(node.input) != 2:
        raise NotExact(node.name, f"it joins {len(node.input)} tensors, hls4ml 1.3.0 joins two", "join two at a time")
    rank = len(model.get_tensor_shape(node.output[0]))
    if attributes(node)["axis"] % rank != rank - 1:
        raise NotExact(node.name, "it joins tensors along another axis than channels", "join channels")
    sides = [_input(analysis, node, index) for index in range(2)]
    lsb = min(s.lsb for s in sides)
    for side in sides:
        _check_width(node, side.lsb, side.lo, side.hi, at=lsb)
    channels = [model.get_tensor_shape(name)[-1] for name in node.input]
    low, high = (np.concatenate([np.broadcast_to(np.ravel(getattr(s.at(lsb), side)), (c,))
                                 for s, c in zip(sides, channels, strict=True)]) for side in ("lo", "hi"))
    return Fixed(lsb, low, high)


def _relu(model, node, analysis: Analysis) -> Fixed:
    source = _input(analysis, node)
    return Fixed(source.lsb, np.maximum(source.lo, 0), np.maximum(source.hi, 0))


def threshold_levels(node) -> tuple[int, int, int]:
    """(lsb, lowest code, step in codes) of a MultiThreshold node."""
    options = attributes(node)
    step, base = options.get("out_scale", 1.0), options.get("out_bias", 0.0)
    lsb = grid_of(np.array([step, base]))
    if lsb is None:
        raise NotExact(node.name, f"its levels {base:g} + n * {step:g} lie on no power-of-two grid", "use such scales")
    return lsb, int(np.ldexp(base, -lsb)), int(np.ldexp(step, -lsb))


def threshold_codes(model, node, lsb: int) -> np.ndarray:
    """(channels, steps) int64 on the grid ``2**lsb``: the first code that is no less than each threshold."""
    thresholds = np.asarray(model.get_initializer(node.input[1]), np.float64)
    return np.ceil(np.ldexp(thresholds, -lsb)).astype(np.int64)


def _multi_threshold(model, node, analysis: Analysis) -> Fixed:
    source = _input(analysis, node)
    lsb, base, step = threshold_levels(node)
    rank, layout = len(model.get_tensor_shape(node.input[0])), attributes(node).get("data_layout", b"")
    thresholds = model.get_initializer(node.input[1])
    if layout != {2: b"NC", 4: b"NHWC"}.get(rank) or step <= 0 or np.any(np.diff(thresholds, axis=1) < 0):
        raise NotExact(node.name, "its thresholds fall, or its channels are not last", "sort them, channels last")
    codes = threshold_codes(model, node, source.lsb)
    if np.any(np.ldexp(codes.astype(np.float64), source.lsb) != thresholds):
        raise NotExact(node.name, "its thresholds are not on its input's grid", "round them up to that grid")
    channels = model.get_tensor_shape(node.input[0])[-1]
    low, high = (np.broadcast_to(np.ravel(b), (channels,)) for b in (source.lo, source.hi))
    counts = [np.sum(codes <= bound[:, None], axis=1) for bound in (low, high)]
    grid = Fixed(lsb, base + step * counts[0], base + step * counts[1])
    analysis.quantizers[node.name] = Fixed(lsb, np.array(base), np.array(base + step * codes.shape[1]))
    return grid


def _same(model, node, analysis: Analysis) -> Fixed:
    return _input(analysis, node)


def _max_pool(model, node, analysis: Analysis) -> Fixed:
    options, source = attributes(node), _input(analysis, node)
    if any(options.get("pads", [0])):
        raise NotExact(node.name, "its padding is not that of a picture", "pad height and width only")
    _explicit_padding(node, options)
    if any(d != 1 for d in options.get("dilations", [1])):
        raise NotExact(node.name, "dilated max pooling is not supported by hls4ml 1.3.0", "use dilation 1")
    if options.get("ceil_mode"):
        raise NotExact(node.name, "max pooling with ceil_mode is not supported by hls4ml 1.3.0", "use ceil_mode=False")
    return source


def pad_amounts(model, node) -> tuple[list[int], float]:
    """(top, left, bottom, right) and the value of a Pad of pixels; refuses every other."""
    mode = attributes(node).get("mode", b"constant").decode()
    if mode != "constant":
        raise NotExact(node.name, f"padding of mode {mode} is not carried", "pad with a constant")
    pads, value = (model.get_initializer(name) for name in node.input[1:3]) if len(node.input) == 3 else (None, None)
    if pads is None or value is None:
        raise NotExact(node.name, "how much it pads is computed at run time", "pad by constant amounts")
    pads = np.reshape(pads, (2, -1))
    if pads.shape[1] != 4 or np.any(pads[:, [0, 3]]) or np.any(pads < 0):
        raise NotExact(node.name, "it pads something else than pixels, or cuts them off", "pad height and width only")
    return [int(p) for p in pads[:, 1:3].ravel()], float(value)


def _pad(model, node, analysis: Analysis) -> Fixed:
    source = _input(analysis, node)
    _, value = pad_amounts(model, node)
    code = source.min if value == -np.inf else np.ldexp(value, -source.lsb)
    if code != np.round(code) or abs(code) >= 2**31:
        raise NotExact(node.name, f"it pads with {value:g}, which is not on its input's grid of 2**{source.lsb}",
                       "pad with a value of that grid, such as 0")
    return Fixed(source.lsb, np.minimum(source.lo, int(code)), np.maximum(source.hi, int(code)))


def resize_factors(model, node) -> tuple[int, int]:
    """(down, across) of a Resize that repeats pixels; refuses every other."""
    options = attributes(node)
    kind = tuple(options.get(name, b"").decode() for name in
                 ("mode", "coordinate_transformation_mode", "nearest_mode"))
    scales = model.get_initializer(node.input[2]) if len(node.input) == 3 else None
    if kind != ("nearest", "asymmetric", "floor") or scales is None or len(scales) != 4 or np.any(
            scales != np.round(scales)) or scales[0] != 1 or scales[3] != 1 or np.any(scales < 1):
        told = ", ".join(part for part in kind if part)
        raise NotExact(node.name, f"it does not repeat every pixel a whole number of times ({told})",
                       "use nn.Upsample(scale_factor=2, 3, ..., mode='nearest')")
    return int(scales[1]), int(scales[2])


def _resize(model, node, analysis: Analysis) -> Fixed:
    resize_factors(model, node)
    return _input(analysis, node)


def _reshape(model, node, analysis: Analysis) -> Fixed:
    """Values stay, channels may land elsewhere: keep per-channel bounds only where the last axis repeats them."""
    source = _input(analysis, node)
    shape_in, shape_out = model.get_tensor_shape(node.input[0]), model.get_tensor_shape(node.output[0])
    if shape_in[0] != shape_out[0]:
        raise NotExact(node.name, "it mixes samples of a batch", "flatten from axis 1 on")
    if source.lo.size > 1:
        if shape_out[-1] % shape_in[-1]:
            return Fixed(source.lsb, np.array(source.min), np.array(source.max))
        times = shape_out[-1] // shape_in[-1]
        return Fixed(source.lsb, np.tile(np.ravel(source.lo), times), np.tile(np.ravel(source.hi), times))
    return source


OPERATORS: dict[str, Callable] = {
    "Quant": _quant,
    "Conv": _conv,
    "MatMul": _matmul,
    "Add": _add,
    "Concat": _concat,
    "Relu": _relu,
    "MaxPool": _max_pool,
    "MultiThreshold": _multi_threshold,
    "Pad": _pad,
    "Resize": _resize,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Identity": _same,
}


#: Why an operation that is carried elsewhere, or in other hands, is refused where it stands: (reason, fix).
_FOLLOWED = ("no quantiser follows it that could take it in",
             "put a quantiser of at most 12 bits (QuantIdentity, QuantReLU) right behind it; let nothing else read it")
_LAST = ("it is not the last operation, over the classes", "put it at the end of the network, over axis 1")
_REFUSED = {
    **dict.fromkeys(("BatchNormalization", "Mul", "Div", "Sub", "BipolarQuant"), _FOLLOWED),
    **dict.fromkeys(("Softmax", "LogSoftmax", "ArgMax", "TopK"), _LAST),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"),
                    ("only averages over pixels with all of a window inside the picture are carried",
                     "average over height and width, without padding or with count_include_pad")),
    "Trunc": ("its zero point is not 0, its scale not a power of two, or it keeps more than 12 bits",
              "use a symmetric quantiser with a power-of-two scale and keep at most 12 bits"),
}  # fmt: skip


def unknown_operation(node) -> NotExact:
    """The refusal of a node that is none of :data:`OPERATORS`."""
    if node.doc_string:  # what :mod:`hls.scales` or :mod:`hls.lower` put here
        other = "average over 2, 4, 8, ... pixels" if node.op_type == "Div" else _FIXED_POINT
        return NotExact(node.name, f"{node.doc_string}, and {_FOLLOWED[0]}", f"{_FOLLOWED[1]}; or {other}")
    told = f"operation {node.op_type} is not carried exactly"
    if node.op_type not in _REFUSED:
        return NotExact(node.name, told, f"operations that are: {', '.join(sorted(OPERATORS))}")
    reason, fix = _REFUSED[node.op_type]
    return NotExact(node.name, f"{told} here: {reason}", fix)


def analyze(model) -> Analysis:
    """Walk a prepared graph (:func:`hls.graph.prepare`); raise :class:`NotExact` at the first node that is refused."""
    analysis = Analysis()
    for what, sides in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        moving = [side.name for side in sides if model.get_initializer(side.name) is None]
        if len(moving) != 1:
            raise NotExact(", ".join(moving), f"the network has {len(moving)} {what}; one stream carries them",
                           f"export a network with one of its {what}")
    for node in model.graph.node:
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            raise unknown_operation(node)
        analysis.tensors[node.output[0]] = operator(model, node, analysis)
    for output in model.graph.output:
        if output.name not in analysis.tensors:
            raise NotExact(output.name, "the output is not computed from quantised tensors",
                           "quantise the network's input")
    return analysis
