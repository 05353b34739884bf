"""The integer reference: every tensor equals qonnx execution and an independent computation, also beyond float32."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hls import graph
from hls.numerics import FLOAT32_EXACT, analyze
from hls.reference import FLOAT64_EXACT, Census, Reference
from tests.graphs import Net, prepared, residual, tiny


def everything(net, batch=256):
    """{tensor: (codes, lsb)} for the samples of the net, and the analysis."""
    model = prepared(net)
    analysis, found = analyze(model), {}

    def visit(node, codes, lsb):
        found.setdefault(node.output[0], []).append((codes, lsb))

    codes, lsb = Reference(model, analysis).run(net.codes, batch=batch, visit=visit)
    assert np.array_equal(np.ldexp(codes.astype(np.float64), lsb), net.outputs)
    return model, analysis, {k: (np.concatenate([c for c, _ in v]), v[0][1]) for k, v in found.items()}


def check(net):
    model, analysis, found = everything(net)
    assert analysis.float32_exact
    wanted = graph.execute(model, np.moveaxis(net.inputs, 1, -1), tensors=True)
    assert set(found) == set(wanted) - {model.graph.input[0].name}
    for name, (codes, lsb) in found.items():
        assert codes.dtype == np.int64
        assert np.array_equal(np.ldexp(codes.astype(np.float64), lsb), wanted[name]), name
        assert np.all(codes >= analysis.tensors[name].at(lsb).lo) and np.all(codes <= analysis.tensors[name].at(lsb).hi)


@pytest.mark.parametrize("make", [tiny, residual], ids=["tiny", "residual"])
def test_every_tensor_equals_qonnx(make):
    check(make(5))


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_every_tensor_equals_qonnx_on_random_networks(data):
    def pick(low, high):
        return data.draw(st.integers(low, high))

    net = Net((pick(1, 3), pick(4, 6), pick(4, 6)), bits=pick(2, 8), signed=data.draw(st.booleans()), seed=pick(0, 999),
              samples=4)  # fmt: skip
    x = net.relu_quant(net.conv(net.input, 3, pick(1, 3), stride=pick(1, 2), pad=[pick(0, 2) for _ in range(4)]))
    y = net.quant(net.conv(x, 3, name="left", bias_lsb=pick(-12, -2)), pick(2, 7), narrow=data.draw(st.booleans()))
    shortcut = x if data.draw(st.booleans()) else net.quant(net.conv(x, 3, 1, pad=0, name="right"), pick(2, 6))
    x = net.quant(net.add(y, shortcut), 5, rounding=data.draw(st.sampled_from(["ROUND", "FLOOR"])))
    if min(net.values[x].shape[2:]) >= 2:
        x = net.maxpool(x, 2, pick(1, 2))
    check(net.head(x, 3))


@pytest.mark.parametrize(
    ("weight_bits", "input_bits", "low", "high"),
    [(4, 8, 0, FLOAT32_EXACT), (14, 16, FLOAT32_EXACT, FLOAT64_EXACT), (28, 30, FLOAT64_EXACT, 2**62)],
    ids=["float32", "float64", "int64"],
)
def test_exact_in_every_regime(weight_bits, input_bits, low, high):
    """Against Python's integers: the widest regime has no float oracle at all."""
    net = Net((2, 3, 3), bits=input_bits, lsb=0, samples=3)
    limit = 2 ** (weight_bits - 1) - 1
    weights = [net.random.integers(-limit, limit + 1, (o, i)) for o, i in ((3, 18), (2, 3))]

    def constant(codes, bits, name):
        # float32 holds weights of any width exactly once their lowest bits are zero
        codes &= -(2 ** max(bits - 24, 0))
        return net.quant(net.constant(codes, name), bits, 0)

    kernel = constant(weights[0].reshape(3, 2, 3, 3), weight_bits, "k.weight")
    x = net.conv(net.input, 3, pad=0, weights=kernel, bias=None)
    x = net.quant(x, 4, lsb=input_bits + weight_bits - 2)
    net.finish(net.dense(net.flatten(x), 2, weights=constant(weights[1], weight_bits, "w.weight"), bias=None))
    model = prepared(net)
    analysis = analyze(model)
    assert low <= analysis.widest_accumulator < high and analysis.float32_exact == (high == FLOAT32_EXACT)
    sums = {}
    Reference(model, analysis).run(net.codes, visit=lambda node, *found: sums.setdefault(node.op_type, found))
    codes, lsb = sums["Conv"]
    inputs = [[int(v) for v in np.moveaxis(sample, -1, 0).ravel()] for sample in net.codes]
    wanted = [[sum(a * int(b) for a, b in zip(sample, row, strict=True)) for row in weights[0]] for sample in inputs]
    assert (codes.reshape(3, 3) << lsb if lsb >= 0 else codes.reshape(3, 3) >> -lsb).tolist() == wanted
    if high == FLOAT64_EXACT:  # float32 would have been wrong here
        assert np.any(np.float32(codes).astype(np.int64) != codes)


def test_batches_do_not_matter():
    net = residual()
    whole, parts = everything(net)[2], everything(net, batch=5)[2]
    assert all(np.array_equal(whole[name][0], parts[name][0]) for name in whole)


def test_census_counts_every_code_and_the_reach_of_accumulators():
    net = tiny()
    model = prepared(net)
    analysis = analyze(model)
    census, seen = Census(analysis), {}

    def visit(node, codes, lsb):
        census.visit(node, codes, lsb)
        seen.setdefault(node.name, []).append(codes)

    Reference(model, analysis).run(net.codes, batch=7, visit=visit)
    assert set(census.accumulators) == {"stem_conv", "head"}
    bias = {"head": next(node.name for node in model.graph.node if node.op_type == "Add")}  # the sum with its bias
    for name, (low, high) in census.accumulators.items():
        codes = np.concatenate(seen[bias.get(name, name)])
        assert (low, high) == (min(codes.min(), 0), max(codes.max(), 0))
    assert len(census.quantizers) == 2  # the input's and the activation's, not those of weights
    for name, counts in census.quantizers.items():
        codes = np.concatenate(seen[name])
        low = analysis.quantizers[name].min
        assert counts.sum() == codes.size and all(counts[c - low] == np.sum(codes == c) for c in range(low, low + 16))
