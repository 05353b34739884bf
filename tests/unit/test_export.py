import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from hls.graph import load as load_graph
from pipeline import execution, export, golden, quantize
from pipeline.golden import NotIntegral
from tests.torchnets import BITS, CLASSES, SHAPE, pictures, quantized_network


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export.export(quantized_network(), SHAPE, path)
    return path


@pytest.fixture(scope="module")
def seen():
    return quantize.observe(quantized_network(), pictures(200, 9)[0], 8)


def execute(path, seen, **changes):
    return execution.qonnx_execute(load_graph(path), pictures(200, 9)[0].numpy(), -8, seen.output_scale_log2, **changes)


def test_qonnx_gives_brevitas_codes_in_any_batch(file, seen):
    for batch in (64, 200, 1000):
        assert np.array_equal(execute(file, seen, batch=batch), seen.outputs)


def test_qonnx_in_float64_gives_the_same_codes(file, seen):
    assert np.array_equal(execute(file, seen, dtype=np.float64), seen.outputs)


def test_export_is_deterministic_and_tells_nothing_of_this_machine(file, tmp_path):
    export.export(quantized_network(), SHAPE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()
    model = onnx.load(file)
    for thing in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input):
        assert not thing.doc_string and not thing.metadata_props
    for word in (b"site-packages", b".py", b"/home", b"brevitas.nn"):
        assert word not in file.read_bytes()
    assert not list(tmp_path.glob("*.data"))


def test_export_leaves_the_twin_usable(seen):
    twin = copy.deepcopy(quantized_network())
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.Path, "write_bytes", lambda self, data: len(data))
        export.export(twin, SHAPE, export.Path("unwritten.onnx"))
    assert all(torch.equal(state[name], tensor) for name, tensor in twin.state_dict().items())
    assert np.array_equal(quantize.observe(twin, pictures(200, 9)[0], 8).outputs, seen.outputs)


def test_nodes_and_weights_are_named_after_modules(file):
    graph = onnx.load(file).graph
    names = {node.name for node in graph.node}
    assert {"conv1.Conv", "act2.act_quant.Quant", "classifier.Gemm", "pool1.MaxPool"} <= names
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    assert shapes["conv2.weight"] == (6, 4, 3, 3) and shapes["classifier.bias"] == (CLASSES,)
    assert [item.name for item in graph.input] == ["input"] and [item.name for item in graph.output] == ["output"]


def test_only_integers_reach_the_accumulators(file):
    """Conv and Gemm read quantised data, weights and biases; nothing else multiplies."""
    graph = onnx.load(file).graph
    producers = {node.output[0]: node.op_type for node in graph.node}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [producers[name] for name in node.input[1:]] == ["Quant", "Quant"]
            assert producers[node.input[0]] in ("Quant", "MaxPool", "Reshape")
    assert set(producers.values()) == {"Quant", "Conv", "Relu", "MaxPool", "Reshape", "Gemm"}


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "classifier"])
def test_one_flipped_weight_is_seen(file, seen, tmp_path, layer):
    """A weight moved by one code step must change output codes: otherwise the comparison proves nothing."""
    model = onnx.load(file)
    item = next(item for item in model.graph.initializer if item.name == f"{layer}.weight")
    layers = quantize.describe(quantized_network(), SHAPE, 8)["layers"]
    steps = {entry["name"]: entry["weight_scale_log2"] for entry in layers}
    weights = numpy_helper.to_array(item).copy()
    quantised = np.rint(np.ldexp(weights, -steps[layer]))
    index = np.unravel_index(np.argmin(np.abs(quantised)), weights.shape)
    weights[index] = np.ldexp(quantised[index] + 3, steps[layer])
    item.CopyFrom(numpy_helper.from_array(weights, item.name))
    onnx.save(model, tmp_path / "changed.onnx")
    assert (execute(tmp_path / "changed.onnx", seen) != seen.outputs).any()


def test_a_changed_scale_is_seen(file, seen, tmp_path):
    model = onnx.load(file)
    quant = next(node for node in model.graph.node if node.name == "act2.act_quant.Quant")
    item = next(item for item in model.graph.initializer if item.name == quant.input[1])
    item.CopyFrom(numpy_helper.from_array(np.float32(2) * numpy_helper.to_array(item), item.name))
    onnx.save(model, tmp_path / "changed.onnx")
    assert (execute(tmp_path / "changed.onnx", seen) != seen.outputs).any()


def test_an_output_between_two_codes_is_refused(file, seen):
    with pytest.raises(NotIntegral):
        execution.qonnx_execute(load_graph(file), pictures(8)[0].numpy(), -8, seen.output_scale_log2 + 2)


def test_wide_accumulators_need_float64_and_get_it(tmp_path):
    """A layer whose bound lies beyond 2**24 units: Brevitas and QONNX agree in double precision."""
    bits = BITS | {"weights": 8, "activations": 8}
    widths = {"conv1": 4, "conv2": 160, "conv3": 64}
    torch.manual_seed(0)
    twin = quantize.twin("cnn_small", widths, bits, SHAPE, CLASSES)
    with torch.no_grad():
        for conv in (twin.conv1, twin.conv2, twin.conv3):
            conv.weight.abs_().add_(0.02)
        twin.conv3.bias.fill_(3e-5)
    pixels = pictures(24, 11)[0] | 64
    quantize.calibrate(twin, pixels, 8)
    layer = {entry["name"]: entry for entry in quantize.describe(twin, SHAPE, 8)["layers"]}["conv3"]
    assert layer["accumulator_max"] > quantize.FLOAT32_EXACT
    wide = twin.double()
    seen = quantize.observe(wide, pixels, 8, dtype=torch.float64)
    export.export(twin.float(), SHAPE, tmp_path / "wide.onnx")
    graph = load_graph(tmp_path / "wide.onnx")
    codes = execution.qonnx_execute(graph, pixels.numpy(), -8, seen.output_scale_log2, dtype=np.float64)
    assert np.array_equal(codes, seen.outputs)
    assert max(high for _, high in seen.accumulators.values()) > 2**22


@pytest.mark.parametrize(
    ("total", "asked", "expected"),
    [(360, 0, 360), (2000, 0, 2000), (10000, 0, 1000), (10000, 50, 200), (10000, 400, 400), (120, 50, 120)],
)
def test_which_pictures_are_compared(total, asked, expected):
    chosen = golden.compared(total, asked)
    assert len(chosen) == len(set(chosen.tolist())) == expected
    assert chosen[0] == 0 and chosen[-1] == total - 1


def test_a_graph_without_module_names_is_refused():
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="r")
    infos = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", infos[:1], infos[1:]))
    with pytest.raises(export.ExportError, match="which module"):
        export.canonical(model)
