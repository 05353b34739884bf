"""What is exact: rounding, grids, ranges that hold for every input and order, and every refusal."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qonnx.custom_op.general.quant import quant as qonnx_quant

from hls import numerics
from hls.graph import execute
from hls.numerics import Fixed, NotExact, Quantizer, analyze, quantize_codes, round_shift
from tests.graphs import Net, prepared, residual, tiny

CODES = st.integers(-(2**60), 2**60)


def scalar(function, *arguments):
    return int(function(np.array([arguments[0]], np.int64), *arguments[1:])[0])


# ---------------------------------------------------------------------- rounding


@given(CODES, st.integers(-1, 80))
def test_round_shift_is_half_to_even_and_floor(code, shift):
    exact = Fraction(code) / Fraction(2) ** shift
    assert scalar(round_shift, code, shift) == round(exact)  # Fraction rounds half to even
    assert scalar(round_shift, code, shift, "FLOOR") == math.floor(exact)


@pytest.mark.parametrize(("code", "rounded"), [(1, 0), (2, 0), (3, 1), (6, 2), (10, 2), (-2, 0), (-6, -2), (-10, -2)])
def test_ties_go_to_even(code, rounded):
    assert scalar(round_shift, code, 2) == rounded


@st.composite
def quantizers(draw, widest=8):
    width, signed = draw(st.integers(1, widest)), draw(st.booleans())
    width = max(width, 2) if signed else width
    narrow = signed and draw(st.booleans())
    low = (-(2 ** (width - 1)) + narrow) if signed else 0
    rounding = draw(st.sampled_from(["ROUND", "FLOOR"]))
    return Quantizer(draw(st.integers(-12, 6)), low, 2 ** (width - signed) - 1, rounding), (width, signed, narrow)


@given(quantizers(), st.lists(st.integers(-(2**20), 2**20), min_size=1), st.integers(-14, 4))
def test_quantize_codes_is_qonnx(made, codes, lsb):
    quantizer, (width, signed, narrow) = made
    values = np.ldexp(np.array(codes, np.float64), lsb)
    scale = np.array(2.0**quantizer.lsb)
    wanted = qonnx_quant(values, scale, np.array(0.0), np.array(float(width)), signed, narrow, quantizer.rounding)
    found = quantize_codes(np.array(codes, np.int64), lsb, quantizer)
    assert np.array_equal(np.ldexp(found.astype(np.float64), quantizer.lsb), wanted)


@given(quantizers(widest=32), CODES, st.integers(-200, 200))
def test_quantize_codes_is_exact_however_far_the_grids_are(made, code, lsb):
    quantizer, _ = made
    exact = Fraction(code) * Fraction(2) ** (lsb - quantizer.lsb)
    whole = round(exact) if quantizer.rounding == "ROUND" else math.floor(exact)
    assert scalar(quantize_codes, code, lsb, quantizer) == min(max(whole, quantizer.lo), quantizer.hi)


def test_quantizing_keeps_order():
    """Ranges are carried through a quantiser by its ends only; that is right because it is monotone."""
    codes = np.arange(-300, 300)
    for rounding in ("ROUND", "FLOOR"):
        assert np.all(np.diff(quantize_codes(codes, -5, Quantizer(-2, -16, 15, rounding))) >= 0)


# ---------------------------------------------------------------------- Fixed


@given(st.integers(-(2**50), 2**50), st.integers(0, 2**50), st.integers(-20, 20))
def test_bits_are_enough_and_one_less_is_not(low, span, lsb):
    fixed = Fixed(lsb, np.array(low), np.array(low + span))

    def holds(bits):
        bottom = -(2 ** (bits - 1)) if fixed.signed else 0
        return bottom <= fixed.min and fixed.max <= 2 ** (bits - fixed.signed) - 1

    assert holds(fixed.bits)
    assert fixed.bits == 1 or not holds(fixed.bits - 1)


@pytest.mark.parametrize(
    ("low", "high", "lsb", "precision"),
    [
        (0, 255, -8, "ufixed<8,0>"),
        (-128, 127, -4, "fixed<8,4>"),
        (-129, 127, -4, "fixed<9,5>"),
        (0, 15, 3, "ufixed<4,7>"),
        (-1, 0, 0, "fixed<1,1>"),
        (0, 0, -3, "ufixed<1,-2>"),
        (-8, 7, -12, "fixed<4,-8>"),
    ],
)
def test_precision(low, high, lsb, precision):
    assert Fixed(lsb, np.array(low), np.array(high)).precision() == precision


@given(st.integers(-(2**30), 2**30), st.integers(-10, 10), st.integers(0, 20))
def test_at_keeps_values(code, lsb, finer):
    moved = Fixed(lsb, np.array(code), np.array(code)).at(lsb - finer)
    assert moved.lsb == lsb - finer
    assert Fraction(moved.min) * Fraction(2) ** moved.lsb == Fraction(code) * Fraction(2) ** lsb


def test_at_refuses_a_coarser_grid():
    with pytest.raises(ValueError, match="coarser"):
        Fixed(0, np.array(1), np.array(1)).at(1)


@given(st.lists(st.integers(-(2**23) + 1, 2**23 - 1), min_size=1, max_size=8), st.integers(-30, 30))
def test_grid_of_is_the_coarsest(codes, lsb):
    values = np.ldexp(np.array(codes, np.float64), lsb)
    found = numerics.grid_of(values)
    whole = np.ldexp(values, -found)
    assert np.array_equal(whole, np.round(whole))
    assert not np.any(values) or np.any(whole % 2)  # on a grid twice as coarse one would be odd


@pytest.mark.parametrize("values", [[np.nan], [np.inf], [1.0, 2.0**-24], [0.1]])
def test_grid_of_refuses_what_is_no_short_fraction(values):
    assert numerics.grid_of(np.array(values)) is None


@given(st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_log2_exact(value):
    exponent = numerics.log2_exact(value)
    if exponent is None:
        assert not (value > 0 and math.isfinite(value) and math.frexp(value)[0] == 0.5)
    else:
        assert math.ldexp(1.0, exponent) == value


# ---------------------------------------------------------------------- ranges


def dense_net(weights, bias=None, *, bits=3, signed=False, gemm=False):
    """One dense layer with given weight codes (in, out) on 2**0, inputs on 2**0."""
    weights = np.asarray(weights)
    net = Net((len(weights),), bits=bits, lsb=0, signed=signed)
    width = max(int(np.abs(weights).max()).bit_length() + 1, 2)
    w = net.quant(net.constant(weights, "w"), width, 0)
    b = net.quant(net.constant(bias, "b"), 24, 0) if bias is not None else None
    net.constants["w"] = weights.astype(np.float32)
    return net.finish(net.dense(net.input, weights.shape[1], weights=w, bias=b, gemm=gemm, transposed=False))


def one_layer(kind, weights, bias, *, signed, offset):
    """One layer with weight codes (in, out) on 2**0 and 2-bit inputs on 2**0; ``offset`` is added to them first."""
    inputs = len(weights)
    net = Net((inputs, 1, 1) if kind == "conv" else (inputs,), bits=2, lsb=0, signed=signed)
    x = net.input
    if offset:
        moved = net.node("Add", [x, net.constant(offset)], net.values[x] + offset)
        x = net.quant(moved, 5, 0)
    shaped = weights.T.reshape(-1, inputs, 1, 1) if kind == "conv" else weights
    w = net.quant(net.constant(shaped, "w"), 4, 0)
    b = None if bias is None else net.quant(net.constant(bias, "b"), 8, 0)
    if kind == "conv":
        return net.finish(net.flatten(net.conv(x, weights.shape[1], 1, weights=w, bias=b)))
    return net.finish(net.dense(x, weights.shape[1], weights=w, bias=b, gemm=kind == "gemm", transposed=False))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["conv", "gemm", "matmul"]), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans(),
    st.sampled_from([0, 3, -4]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_accumulators_hold_every_partial_sum_in_every_order(kind, inputs, outputs, signed, biased, offset, seed):
    random = np.random.default_rng(seed)
    weights = random.integers(-7, 8, (inputs, outputs))
    bias = random.integers(-50, 51, outputs) if biased else None
    analysis = analyze(prepared(one_layer(kind, weights, bias, signed=signed, offset=offset)))
    (accumulator,), output = analysis.accumulators.values(), analysis.tensors["global_out"]
    codes = (np.arange(-2, 2) if signed else np.arange(4)) + offset
    grid = np.stack(np.meshgrid(*[codes] * inputs), -1).reshape(-1, inputs)  # every input there is
    unit = 2.0**-accumulator.lsb
    bias = np.zeros(outputs) if bias is None else bias
    low, high = np.minimum(bias, 0), np.maximum(bias, 0)
    for mask in range(2**inputs):  # every partial sum of every order, from zero and from the bias
        terms = [i for i in range(inputs) if mask >> i & 1]
        sums = grid[:, terms] @ weights[terms]
        for start in (0, bias):
            low, high = np.minimum(low, (sums + start).min(0)), np.maximum(high, (sums + start).max(0))
    # exactly: nothing lies outside, and each end is reached
    assert np.array_equal(low * unit, np.broadcast_to(accumulator.lo, outputs))
    assert np.array_equal(high * unit, np.broadcast_to(accumulator.hi, outputs))
    result = grid @ weights + bias
    assert np.array_equal(result.min(0) * 2.0**-output.lsb, np.broadcast_to(output.lo, outputs))
    assert np.array_equal(result.max(0) * 2.0**-output.lsb, np.broadcast_to(output.hi, outputs))


@pytest.mark.parametrize("make", [tiny, residual], ids=["tiny", "residual"])
@pytest.mark.parametrize("seed", range(3))
def test_every_tensor_stays_in_its_range_and_on_its_grid(make, seed):
    net = make(seed)
    model = prepared(net)
    analysis = analyze(model)
    # corners reach further than random pictures
    corners = np.random.default_rng(seed).integers(0, 2, (32, *net.codes.shape[1:])) * 255
    values = np.ldexp(np.concatenate([net.codes, corners, np.zeros_like(corners[:1])]).astype(np.float32), -8)
    found = execute(model, values, tensors=True)
    checked = 0
    for name, fixed in analysis.tensors.items():
        if name not in found:
            continue
        codes = np.ldexp(found[name].astype(np.float64), -fixed.lsb)
        assert np.array_equal(codes, np.round(codes)), name
        assert np.all(codes >= fixed.lo) and np.all(codes <= fixed.hi), name
        checked += 1
    assert checked >= 6


def test_padding_lets_a_zero_in():
    """Inputs that are never zero in the middle of a picture still meet zeros at its border."""
    for pad, lowest in ((0, 36), (1, 0)):
        net = Net((1, 3, 3), bits=4, lsb=0)
        x = net.quant(net.node("Add", [net.input, net.constant(4.0)], net.values[net.input] + 4), 5, 0, signed=False)
        w = net.quant(net.constant(np.ones((1, 1, 3, 3)), "w"), 3, 0)
        model = prepared(net.head(net.conv(x, 1, pad=pad, weights=w, bias=None)))
        made = next(n for n in model.graph.node if n.op_type == "Conv").output[0]
        assert analyze(model).tensors[made].min == lowest


def test_per_channel_ranges_follow_their_channels_through_flatten_and_pooling():
    """Two channels with very different ranges: each weight of the dense layer must meet its own."""
    net = Net((1, 2, 2), bits=2, lsb=0)
    kernel = net.quant(net.constant(np.array([1.0, 7.0]).reshape(2, 1, 1, 1), "k"), 4, 0)
    x = net.conv(net.input, 2, 1, weights=kernel, bias=None)
    w = np.zeros((8, 2))
    w[:4, 0] = w[4:, 1] = 1  # NCHW flattening: the first four rows are channel 0
    w = net.quant(net.constant(w, "w"), 2, 0)
    analysis = analyze(prepared(net.finish(net.dense(net.flatten(x), 2, weights=w, bias=None, gemm=False))))
    output = analysis.tensors["global_out"]
    assert list(np.ravel(output.lo)) == [0, 0] and list(np.ravel(output.hi)) == [4 * 3, 4 * 21]


# ---------------------------------------------------------------------- float32


@pytest.mark.parametrize(("weight", "bias", "exact"), [(2**16 - 1, 2**16 - 1, True), (2**16 - 1, 2**16, False)])
def test_float32_is_exact_up_to_2_24(weight, bias, exact):
    """255 * 65,535 + 65,535 = 2**24 - 256 ... and with the last bias code raised to the limit exactly."""
    bias = bias + 255 if exact else 2**24 - 255 * weight
    net = dense_net([[weight]], [bias], bits=8)
    analysis = analyze(prepared(net))
    assert analysis.widest_accumulator == (2**24 - 256 + 255 if exact else 2**24)
    assert analysis.float32_exact is exact


def test_float32_limit_counts_residual_sums():
    """Two branches whose scales lie far apart: neither accumulator is wide, their sum is."""
    net = Net((3,), bits=8)
    far = net.quant(net.dense(net.input, 2, lsb=10, bias=None, name="far"), 8)
    near = net.quant(net.dense(net.input, 2, name="near"), 8, -16)
    analysis = analyze(prepared(net.finish(net.add(far, near))))
    assert analysis.widest_accumulator < 2**24 and analysis.float32_exact is False


# ---------------------------------------------------------------------- refusals


def weight_quant(**options):
    def build():
        net = Net((3,))
        codes = net.random.integers(-7, 8, (2, 3)) / 8
        return net.finish(net.dense(net.input, 2, weights=net.quant(net.constant(codes, "w"), 4, -3, **options)))

    return build


def activation_quant(bits=4, lsb=-2, **options):
    def build():
        net = Net((2, 4, 4))
        x = net.relu(net.conv(net.input, 2))
        return net.head(net.quant(x, bits, lsb, **options))

    return build


def conv(weights=None, **options):
    def build():
        net = Net((2, 5, 5))
        made = weights(net) if weights else None
        return net.head(net.conv(net.input, 2, weights=made, **options))

    return build


def pool(**options):
    def build():
        net = Net((2, 5, 5))
        return net.head(net.maxpool(net.input, 3, 2, **options))

    return build


def unknown_operation():
    net = Net((2, 4, 4))
    x = net.conv(net.input, 2)
    return net.head(net.conv(net.node("Sigmoid", [x], torch.sigmoid(net.values[x])), 2))


def one_bit_input():
    net = Net((2, 4, 4), bits=1, signed=True)
    return net.head(net.conv(net.input, 2))


def float_input():
    net = Net((2, 4, 4))
    return net.head(net.conv("input", 2))


def float_bias():
    net = Net((2, 4, 4))
    return net.head(net.conv(net.input, 2, bias=net.constant([0.1, 0.2], "b")))


def float_dense_bias():
    net = Net((3,))
    return net.finish(net.dense(net.input, 2, bias=net.constant([0.1, 0.2], "b")))


def diverged_weights():
    net = Net((3,))
    w = net.quant(net.constant(np.full((3, 2), np.nan), "w"), 4, -3)
    return net.finish(net.dense(net.input, 2, weights=w, transposed=False))


def different_shapes():
    net = Net((2, 4, 4))
    x = net.quant(net.conv(net.input, 2, name="a"), 6)
    y = net.quant(net.conv(net.input, 2, name="b"), 6)
    return net.head(net.maxpool(net.add(x, net.maxpool(y, 4)), 4))


def huge_sums():
    net = Net((4,), bits=32, lsb=0)
    w = net.quant(net.constant(np.full((4, 1), 2.0**30), "w"), 32, 0)
    return net.finish(net.dense(net.input, 1, weights=w, bias=None, gemm=False))


def far_scales():
    net = Net((2, 2, 2))
    far = net.quant(net.conv(net.input, 2, lsb=50, bias=None, name="far"), 8)
    near = net.quant(net.conv(net.input, 2, name="near"), 8, -16)
    return net.head(net.add(far, near))


REFUSED = {
    "scale": (activation_quant(scale=0.3), "Mul", "scale 0.300000012 is not a power of two", "FixedPoint"),
    "weight scale": (weight_quant(scale=0.15), "Mul", "not a power of two", "Int8WeightPerTensorFixedPoint"),
    "negative scale": (activation_quant(scale=-0.25), "Quant", "-0.25 is not a power of two", "FixedPoint"),
    "zero point": (activation_quant(zero_point=3.0), "Quant", "zero point is 3, not 0", "symmetric"),
    "per channel": (activation_quant(scale=[[[[0.5]], [[0.25]]]]), "Quant", "scale differs per channel", "per-tensor"),
    "bits per channel": (weight_quant(), "Quant", "bit width differs per channel", "per-tensor"),
    "rounding": (activation_quant(rounding="HALF_UP"), "Quant", "rounding mode HALF_UP", "ROUND or FLOOR"),
    "ceil": (activation_quant(rounding="CEIL"), "Quant", "rounding mode CEIL", "ROUND or FLOOR"),
    "narrow unsigned": (activation_quant(14, signed=False, narrow=True), "Quant", "unsigned quantiser", "narrow_range"),
    "signed 1 bit": (one_bit_input, "Quant", "1-bit", "2 bits"),
    "signed narrow 1 bit": (weight_quant(), "Quant", "1-bit", "2 bits"),
    "broken width": (activation_quant(), "Quant", "bit width is 3.5", "whole bit width"),
    "width 33": (activation_quant(), "Quant", "bit width is 33", "between 1 and 32"),
    "run-time scale": (activation_quant(), "Quant", "computed at run time", "eval mode"),
    "float weights": (conv(lambda net: net.constant(net.random.normal(size=(2, 2, 3, 3)), "w")), "Conv",
                      "not quantised", "QuantConv2d"),
    "float bias": (float_bias, "Conv", "bias is a floating-point", "bias_quant"),
    "float dense bias": (float_dense_bias, "Add", "floating-point numbers, such as a bias", "bias_quant"),
    "auto_pad": (conv(auto_pad="SAME_UPPER"), "Conv", "auto_pad=SAME_UPPER", "pads"),
    "ceil pool": (pool(ceil=True), "MaxPool", "ceil_mode", "ceil_mode=False"),
    "dilated pool": (pool(dilation=2), "MaxPool", "dilated", "dilation 1"),
    "auto_pad pool": (pool(auto_pad="SAME_UPPER"), "MaxPool", "auto_pad", "pads"),
    "unknown": (unknown_operation, "Sigmoid", "operation Sigmoid", "operations that are: .*Conv"),
    "float input": (float_input, "Conv", "not on a known grid", "QuantIdentity"),
    "diverged": (diverged_weights, "Quant", "NaN", "train"),
    "shapes": (different_shapes, "Add", "different shapes", "one shape"),
    "huge sums": (huge_sums, "MatMul", "more than 62 bits", "fewer"),
    "far scales": (far_scales, "Add", "more than 62 bits", "closer"),
}  # fmt: skip


def _set_width(model, node, bits):
    model.set_initializer(node.input[3], np.asarray(bits, np.float32))


#: What qonnx' cleaning refuses or folds before we see it is put into the prepared graph instead.
AFTERWARDS = {
    "bits per channel": lambda model: _set_width(model, _weight_node(model), [4.0, 3.0]),
    "signed narrow 1 bit": lambda model: (_set_width(model, _weight_node(model), 1.0), _narrow(_weight_node(model))),
    "run-time scale": lambda model: _run_time_scale(_activation_node(model)),
    "broken width": lambda model: _set_width(model, _activation_node(model), 3.5),
    "width 33": lambda model: _set_width(model, _activation_node(model), 33.0),
}


def _weight_node(model):
    return model.find_producer(next(n for n in model.graph.node if n.op_type == "MatMul").input[1])


def _activation_node(model):
    return next(n for n in model.graph.node if n.op_type == "Quant" and n.input[0].startswith("Relu"))


def _run_time_scale(node):
    node.input[1] = node.input[0]


def _narrow(node):
    next(a for a in node.attribute if a.name == "narrow").i = 1


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_node_reason_and_fix(case):
    build, operation, reason, fix = REFUSED[case]
    model = prepared(build())
    AFTERWARDS.get(case, lambda model: None)(model)
    with pytest.raises(NotExact, match=reason) as caught:
        analyze(model)
    node = next(n for n in model.graph.node if n.name == caught.value.node)
    assert node.op_type == operation
    assert str(caught.value.where) == f"node {node.name}"
    assert re.search(fix, caught.value.fix)


def test_two_inputs_and_two_outputs_are_refused():
    for side in ("input", "output"):
        model = prepared(tiny())
        sides = getattr(model.graph, side)
        sides.append(sides[0])
        sides[1].name = "second"
        with pytest.raises(NotExact, match=f"2 {side}s"):
            analyze(model)


def test_the_same_networks_without_the_fault_pass():
    """Guards the table above: what it builds is refused for the named fault, not for something else in the builder."""
    for build in (weight_quant(), activation_quant(), conv(), pool()):
        analysis = analyze(prepared(build()))
        assert "global_out" in analysis.tensors and analysis.float32_exact


def test_a_bias_finer_than_the_products_widens_the_accumulator():
    net = Net((2,), bits=4, lsb=0)
    w = net.quant(net.constant([[3.0], [-5.0]], "w"), 4, 0)
    b = net.quant(net.constant([0.375], "b"), 8, -3)
    analysis = analyze(prepared(net.finish(net.dense(net.input, 1, weights=w, bias=b, gemm=False))))
    (accumulator,) = analysis.accumulators.values()
    assert accumulator.lsb == -3 and (accumulator.min, accumulator.max) == (-75 * 8, 45 * 8 + 3)
    output = analysis.tensors["global_out"]
    assert (output.lsb, output.min, output.max) == (-3, -75 * 8 + 3, 45 * 8 + 3)


def test_round_shift_against_torch():
    codes = np.random.default_rng(0).integers(-(2**30), 2**30, 4000)
    wanted = torch.round(torch.from_numpy(codes).to(torch.float64) / 2**9).to(torch.int64).numpy()
    assert np.array_equal(round_shift(codes, 9), wanted)
