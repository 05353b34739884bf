"""The prepared channels-last graph computes what the file computes, and keeps the names of its layers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hls import graph
from hls.lower import host_operations
from hls.numerics import NotExact
from tests.graphs import Net, loaded, prepared, residual, tiny


def same(net: Net):
    """The file as qonnx runs it, the prepared graph as qonnx runs it, and torch: one answer."""
    wanted = net.outputs
    file = graph.execute(loaded(net), net.inputs)
    assert np.array_equal(np.moveaxis(next(iter(file.values())), 1, -1), wanted)
    model = prepared(net)
    found = graph.execute(model, np.moveaxis(net.inputs, 1, -1))
    assert np.array_equal(found["global_out"], wanted)
    assert len(np.unique(wanted)) > 5  # constants would agree as well
    return model


@pytest.mark.parametrize("make", [tiny, residual], ids=["tiny", "residual"])
@pytest.mark.parametrize("seed", range(3))
def test_prepared_graph_computes_the_file(make, seed):
    model = same(make(seed))
    assert {n.op_type for n in model.graph.node} <= {"Quant", "Conv", "Relu", "MaxPool", "Add", "Flatten", "MatMul"}


@pytest.mark.parametrize("reshape", [False, True])
@pytest.mark.parametrize(("gemm", "transposed"), [(True, True), (True, False), (False, False)])
def test_flatten_of_a_picture_into_a_dense_layer(gemm, transposed, reshape):
    """Three channels of 2x3 pixels: any mistake in the permutation of rows shows."""
    net = Net((3, 2, 3))
    x = net.relu_quant(net.conv(net.input, 3, name="conv"))
    x = net.flatten(x, reshape=reshape)
    model = same(net.finish(net.dense(x, 4, gemm=gemm, transposed=transposed, name="head")))
    assert not any(n.op_type in ("Transpose", "Gemm") for n in model.graph.node)
    assert [n.name for n in graph.mac_nodes(model)] == ["conv", "head"]


def test_pictures_straight_into_a_dense_layer():
    model = same(Net((3, 2, 3)).head("input.quant"))
    assert not any(n.op_type == "Transpose" for n in model.graph.node)


def test_convolutions_only():
    """No dense layer at all: as many filters as classes, pooled to one pixel."""
    net = Net((2, 4, 4))
    x = net.maxpool(net.relu_quant(net.conv(net.input, 5)), 4)
    model = same(net.finish(net.flatten(x)))
    assert not any(n.op_type == "Transpose" for n in model.graph.node)


def test_two_branches_from_the_input():
    net = Net((2, 4, 4))
    x, y = (net.quant(net.conv(net.input, 3, name=name), 6) for name in ("left", "right"))
    model = same(net.head(net.add(x, y)))
    assert not any(n.op_type == "Transpose" for n in model.graph.node)


def test_a_bias_in_front_of_the_product():
    """Add is commutative; hls4ml and the ranges of accumulators look for the bias in second place."""
    net = Net((4,))
    product = net.dense(net.input, 3, gemm=False, bias=None)
    bias = net.bias(3, -7, "head")
    model = same(net.finish(net.node("Add", [bias, product], net.values[product] + net.values[bias])))
    add = next(n for n in model.graph.node if n.op_type == "Add")
    assert add.input[0] in graph.data_tensors(model) and add.input[1] not in graph.data_tensors(model)


@pytest.mark.parametrize("source", ["conv", "input"])
@pytest.mark.parametrize("shared", ["flatten", "weights"])
def test_two_dense_layers_behind_one_flatten(shared, source):
    """Each gets rows in the order of the wire, on a copy of its own."""
    net = Net((2, 2, 2))
    x = net.relu_quant(net.conv(net.input, 2)) if source == "conv" else net.input
    x, y = net.flatten(x), net.flatten(x)
    if shared == "flatten":
        weights = [net.weights((8, 3), 4, -3, name) for name in "ab"]
    else:
        weights = [net.weights((8, 3), 4, -3, "a")] * 2
    sources = [x, x] if shared == "flatten" else [x, y]
    y, z = (net.quant(net.dense(x, 3, weights=w, bias=None, gemm=False), 6, lsb=-5)
            for x, w in zip(sources, weights, strict=True))  # fmt: skip
    same(net.finish(net.add(y, z)))


def test_two_flattened_branches():
    net = Net((2, 2, 2))
    x = net.relu_quant(net.conv(net.input, 2))
    values = net.constant(net.random.integers(-7, 8, (8, 3)) / 8, "a.weight")  # quantised in two ways
    weights = [net.quant(values, 4, -3), net.quant(values, 3, -3)]
    y, z = (net.quant(net.dense(net.flatten(x), 3, weights=w, gemm=False), 6) for w in weights)
    same(net.finish(net.add(y, z)))


def test_one_picture_read_by_a_relu_and_flattened():
    """qonnx's own change to channels last computes something else here."""
    net = Net((2, 2, 3))
    x = net.conv(net.input, 3, pad=1)
    y = net.dense(net.flatten(net.relu_quant(x, 5)), 3, bias=None, name="y", gemm=False)
    z = net.dense(net.flatten(net.quant(x, 6)), 3, bias=None, name="z")
    same(net.finish(net.add(net.quant(y, 6, -4), net.quant(z, 6, -4))))


@pytest.mark.parametrize("joined", ["vector", "pixels"])
def test_forks_around_flattened_pictures(joined):
    """A picture goes on as it is, flattened, pooled and joined: each reader sees its own order."""
    net = Net((2, 3, 4))
    x = net.quant(net.conv(net.input, 3, pad=1), 5)
    small = net.maxpool(x, 2, 1)
    if joined == "vector":
        both = net.node("Concat", [net.flatten(x), net.flatten(small)],
                        torch.cat([net.values[x].flatten(1), net.values[small].flatten(1)], 1), axis=1)
        both = net.quant(both, 4, -1)  # element by element between the Flatten and the layer
        y, z = (net.quant(net.dense(v, 4, name=n), 6, -4) for n, v in (("a", both), ("b", net.flatten(x))))
        same(net.finish(net.add(y, z)))
    else:
        y = net.add(x, net.relu_quant(x, 3))
        same(net.finish(net.dense(net.flatten(net.quant(net.conv(y, 2, pad=0, kernel=2), 5)), 3)))


@pytest.mark.parametrize("quantized_first", [False, True])
def test_a_file_that_takes_channels_last(quantized_first):
    """One that turns its input, before or behind the quantiser, and turns its output back."""
    net = Net((3, 4, 2))
    net.nodes.clear()
    x = "input" if not quantized_first else net.quant("input", 8, -8, signed=False, name="input.quant")
    x = net.node("Transpose", [x], net.values[x].permute(0, 3, 1, 2), perm=[0, 3, 1, 2])
    x = x if quantized_first else net.quant(x, 8, -8, signed=False, name="input.quant")
    x = net.relu_quant(net.conv(x, 3, pad=1), 5)
    x = net.quant(net.conv(x, 3, 2, pad=0), 6)
    net.finish(net.node("Transpose", [x], net.values[x].permute(0, 2, 3, 1), perm=[0, 2, 3, 1]))
    model = prepared(net)
    assert not any(n.op_type == "Transpose" for n in model.graph.node)
    found = graph.execute(model, net.inputs)["global_out"]
    assert np.array_equal(found, net.values[net.output].numpy()) and len(np.unique(found)) > 5
    assert [d["operation"] for d in host_operations(model)] == ["Transpose"]


@pytest.mark.parametrize("joined", [False, True])
def test_a_transpose_in_the_middle_is_refused(joined):
    net = Net((3, 3, 3))
    x = net.relu_quant(net.conv(net.input, 3))
    x = net.node("Transpose", [x], net.values[x].permute(0, 2, 1, 3), perm=[0, 2, 1, 3])
    if joined:
        x, message = net.add(x, net.quant(net.conv(net.input, 3), 4)), "axes in different places"
    else:
        x, message = net.relu_quant(net.conv(x, 2)), "a Transpose before it puts other axes in the place of channels"
    with pytest.raises(NotExact, match=message):
        prepared(net.head(x))


def test_a_vector_that_becomes_a_picture():
    """At the input the host makes it one; inside it is refused."""
    net = Net((12,))
    net.constants["picture"] = np.array([1, 3, 2, 2], np.int64)
    x = net.node("Reshape", [net.input, "picture"], net.values[net.input].reshape(-1, 3, 2, 2))
    net.finish(net.dense(net.flatten(net.relu_quant(net.conv(x, 3))), 4))
    model = prepared(net)
    pictures = np.moveaxis(net.inputs.reshape(-1, 3, 2, 2), 1, -1)
    assert np.array_equal(graph.execute(model, pictures)["global_out"], net.outputs)
    net = Net((5,))
    net.constants["picture"] = np.array([1, 3, 2, 2], np.int64)
    x = net.quant(net.dense(net.input, 12), 4)
    x = net.node("Reshape", [x, "picture"], net.values[x].reshape(-1, 3, 2, 2))
    with pytest.raises(NotExact, match=r"makes \[1, 12\] a picture of \[1, 3, 2, 2\]"):
        prepared(net.head(net.relu_quant(net.conv(x, 3))))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_random_geometry(data):
    def pick(low, high):
        return data.draw(st.integers(low, high))

    net = Net((pick(1, 3), pick(3, 6), pick(3, 6)), seed=pick(0, 1000), samples=4)
    kernel = pick(1, 3)
    x = net.conv(net.input, pick(1, 4), kernel, stride=pick(1, 2), pad=[pick(0, 2) for _ in range(4)])
    x = net.relu_quant(x) if data.draw(st.booleans()) else net.quant(x, 5)
    if min(net.values[x].shape[2:]) >= 2:
        x = net.maxpool(x, 2, pick(1, 2))
    net.finish(net.dense(net.flatten(x, reshape=data.draw(st.booleans())), 3, gemm=data.draw(st.booleans())))
    wanted, model = net.outputs, prepared(net)
    assert np.array_equal(graph.execute(model, np.moveaxis(net.inputs, 1, -1))["global_out"], wanted)


# ---------------------------------------------------------------------- names


def stacked(weights):
    net = Net((2, 3, 3))
    x = net.input
    for index, codes in enumerate(weights):
        constant = net.constant(codes, f"features.{index}.weight")
        x = net.relu_quant(net.conv(x, 2, weights=net.quant(constant, 4, -3, narrow=True), bias=None))
    return net.head(x)


def test_layers_keep_their_names_whatever_the_order_of_nodes():
    net = stacked([np.random.default_rng(seed).integers(-7, 8, (2, 2, 3, 3)) / 8 for seed in range(3)])
    names = [n.name for n in graph.mac_nodes(prepared(net))]
    assert names == ["features_0", "features_1", "features_2", "head"]
    quantizers = [n for n in net.proto.graph.node if n.op_type == "Quant" and "weight" in n.input[0]]
    for node in quantizers:  # torch writes them in front of their layer; a file may hold them in any order
        net.proto.graph.node.remove(node)
    for node in quantizers:
        net.proto.graph.node.insert(0, node)
    assert [n.name for n in graph.mac_nodes(prepared(net))] == names


def test_layers_with_identical_weights_are_not_confused():
    same = np.random.default_rng(0).integers(-7, 8, (2, 2, 3, 3)) / 8
    other = np.random.default_rng(1).integers(-7, 8, (2, 2, 3, 3)) / 8
    names = [n.name for n in graph.mac_nodes(prepared(stacked([same, other, same])))]
    assert names[1] == "features_1" and len(set(names)) == 4
    assert "features_0" not in names and "features_2" not in names  # which of the two is which cannot be told


def test_paths_that_become_one_identifier_are_not_used():
    net = Net((2, 3, 3))
    x = net.relu_quant(net.conv(net.input, 2, name="a.b"))
    x = net.relu_quant(net.conv(x, 2, name="a_b"))
    names = [n.name for n in graph.mac_nodes(prepared(net.head(x)))]
    assert len(set(names)) == 3 and "a_b" not in names


def test_negative_zeros_do_not_lose_a_name():
    weights = np.zeros((4, 4), np.float32)
    weights[::2] = -0.0
    weights[1, 1:] = [0.5, -0.25, 0.875]
    net = Net((4,))
    w = net.quant(net.constant(weights, "first.weight"), 4, -3, narrow=True)
    net.finish(net.dense(net.input, 4, weights=w, bias=None, name="first"))
    assert [n.name for n in graph.mac_nodes(prepared(net))] == ["first"]


# ---------------------------------------------------------------------- execution


@pytest.mark.parametrize("make", [tiny, residual], ids=["tiny", "residual"])
def test_batches_equal_singles_for_every_tensor(make):
    net = make()
    model, values = prepared(net), np.moveaxis(net.inputs, 1, -1)
    whole = graph.execute(model, values, tensors=True)
    assert set(whole) == graph.data_tensors(model)
    for batch in (1, 5):  # 16 samples: the last part of five is short
        parts = graph.execute(model, values, tensors=True, batch=batch)
        assert all(np.array_equal(parts[name], whole[name]) for name in whole)


def test_execution_leaves_the_graph_as_it_is():
    model = prepared(tiny())
    before = model.model.SerializeToString()
    graph.execute(model, np.moveaxis(tiny().inputs, 1, -1), batch=4)
    assert model.model.SerializeToString() == before


def test_input_shape_is_that_of_the_wire():
    assert graph.input_shape(prepared(tiny(shape=(3, 4, 6)))) == (4, 6, 3)
    assert graph.input_shape(prepared(Net((5,)).finish("input.quant"))) == (5,)


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x08"])
def test_a_file_that_is_no_graph(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(graph.GraphError, match=r"not a readable ONNX file.*\n.*model\.onnx"):
        graph.load(path)
