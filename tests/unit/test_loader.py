"""Files that are no QONNX network are refused with one sentence: which, why, and what to do."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hls import graph, onnxfile
from hls.verify import examine
from pipeline.config import ROOT
from pipeline.studies import fuzz_loader
from tests.graphs import Net, tiny


def saved(tmp_path, proto):
    file = tmp_path / "model.onnx"
    onnx.save(proto, file)
    return file


def refused(file, words):
    with pytest.raises(graph.GraphError, match=words) as caught:
        graph.load(file)
    assert str(file) in str(caught.value) and "next:" in str(caught.value)
    return str(caught.value)


def small():
    return tiny().proto


def test_a_good_file_is_read(tmp_path):
    assert graph.load(saved(tmp_path, small())).graph.node


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, share):
    file = saved(tmp_path, small())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    refused(file, "not a readable ONNX file|not a valid ONNX graph|the file does not tell its opset|has no quantiser")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "it is empty"), (b"PK\x03\x04 no model", "not a readable"), (b"\x08\x08", "holds no network")],
)
def test_no_onnx(tmp_path, content, words):
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    refused(file, words)


def test_no_outputs(tmp_path):
    proto = small()
    del proto.graph.output[:]
    refused(saved(tmp_path, proto), "the network has 0 outputs")


def test_a_folder_and_nothing(tmp_path):
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "none.onnx", "there is no such file")


def test_a_huge_file_is_not_read(tmp_path):
    file = tmp_path / "model.onnx"
    with file.open("wb") as stream:
        stream.truncate(2 * 2**30)  # sparse
    refused(file, r"model\.onnx holds 2,048 MiB")


def test_newer_than_the_installed_onnx(tmp_path):
    proto = small()
    proto.ir_version = 99
    assert "onnx<1.20" in refused(saved(tmp_path, proto), f"IR version 99; onnx .* up to {onnx.IR_VERSION}")
    proto = small()
    next(item for item in proto.opset_import if item.domain == "").version = 99
    assert "opset_version=20" in refused(saved(tmp_path, proto), "opset 99")
    del proto.opset_import[:]
    refused(saved(tmp_path, proto), "does not tell its opset")


def external(tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(small(), file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return file


def test_external_data(tmp_path):
    file = external(tmp_path)
    whole = graph.load(saved(tmp_path / "..", small()))
    read = graph.load(file)
    assert [i.raw_data for i in read.graph.initializer] == [i.raw_data for i in whole.graph.initializer]
    (tmp_path / "weights.bin").unlink()
    assert "in one file" in refused(file, r"'weights\.bin', which is missing")


def test_external_data_outside_the_folder(tmp_path):
    file = external(tmp_path)
    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(item for item in tensor.external_data if item.key == "location").value = "../weights.bin"
    (tmp_path.parent / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes())
    file.write_bytes(proto.SerializeToString())
    refused(file, "outside the model's folder")


def test_huge_external_data_is_not_read(tmp_path):
    file = external(tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as stream:
        stream.truncate(3 * 2**30)
    refused(file, r"weights\.bin holds 3,072 MiB")


def plain(nodes, *, shape=(1, 3), out=(1, 3), inputs=None, kind=TensorProto.FLOAT, weights=(3, 3)):
    sides = inputs or [helper.make_tensor_value_info("x", kind, shape)]
    constants = [onnx.numpy_helper.from_array(np.ones(weights, np.float32), "w"),
                 onnx.numpy_helper.from_array(np.float32(0.5), "s"),
                 onnx.numpy_helper.from_array(np.int8(0), "z")]  # fmt: skip
    made = helper.make_graph(nodes, "g", sides, [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_qcdq_export(tmp_path):
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             helper.make_node("MatMul", ["d", "w"], ["y"])]  # fmt: skip
    text = refused(saved(tmp_path, plain(nodes)), "QCDQ export, not QONNX: .*DequantizeLinear and QuantizeLinear")
    assert "brevitas.export.export_qonnx" in text


def test_a_float_network(tmp_path):
    text = refused(saved(tmp_path, plain([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")])),
                   "no quantiser; its layers fc are float")  # fmt: skip
    assert "QuantLinear" in text


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (("N", 3, 4, 4), r"axis 0 \(N\) of the input input is dynamic"),
        ((1, 3, None, 4), "axis 2 of the input input is dynamic"),
        ((1, 0, 4, 4), "axis 1 of the input input is dynamic"),
        (None, "has no shape"),
        ((3,), "has 1 axes"),
    ],
)
def test_shapes_that_are_none(tmp_path, shape, words):
    proto = small()
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
    assert "torch.zeros(1, C, H, W)" in refused(saved(tmp_path, proto), words)


def test_input_of_another_type(tmp_path):
    proto = small()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    refused(saved(tmp_path, proto), "of type INT8, not FLOAT")


def test_several_inputs_and_outputs(tmp_path):
    proto = small()
    proto.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, (1, 2)))
    refused(saved(tmp_path, proto), r"2 inputs \(input, other\)")
    proto = small()
    proto.graph.output.append(helper.make_tensor_value_info(proto.graph.node[2].output[0], TensorProto.FLOAT, None))
    refused(saved(tmp_path, proto), "2 outputs")


def test_nodes_that_do_not_fit(tmp_path):
    proto = small()
    next(node for node in proto.graph.node if node.op_type == "Conv").input[0] = "nowhere"
    refused(saved(tmp_path, proto), "not a valid ONNX graph: .*nowhere")


def test_weights_of_another_shape(tmp_path):
    """A custom operation stands between, so that only cleaning or preparing the graph can notice."""
    net = Net((3, 4, 4))
    x = net.flatten(net.relu_quant(net.conv(net.input, 2)))
    proto = net.finish(net.dense(x, 3, weights=net.weights((3, 32), 4, -3, "w"))).proto
    weights = next(item for item in proto.graph.initializer if item.name == "w.weight")
    weights.CopyFrom(onnx.numpy_helper.from_array(np.ones((3, 31), np.float32), "w.weight"))
    with pytest.raises(graph.GraphError, match="not understood|cannot be computed"):
        examine(saved(tmp_path, proto))


def test_a_shape_of_terabytes_is_not_allocated(tmp_path):
    proto = small()
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 2**20, 2**20)))
    refused(saved(tmp_path, proto), "has the shape|not a valid ONNX graph")


def test_domains_that_older_exporters_leave_out(tmp_path):
    proto = small()
    kept = [item for item in proto.opset_import if item.domain == ""]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    assert graph.load(saved(tmp_path, proto)).graph.node


def test_a_branch_that_nobody_reads(tmp_path):
    net = Net((3, 4, 4))
    x = net.conv(net.input, 4)
    net.relu_quant(x)
    net.head(x)
    network = examine(saved(tmp_path, net.proto))
    assert not [node for node in network.model.graph.node if node.op_type == "Relu"]
    assert np.array_equal(graph.execute(network.file, net.inputs)["global_out"], net.outputs)


def test_a_layout_that_cannot_be_changed_is_noticed(tmp_path, monkeypatch):
    """As qonnx's transformations did where a tensor is read by a Relu and by a Flatten."""
    file, prepare = saved(tmp_path, small()), graph.prepare

    def wrong(model):
        made = prepare(model)
        name = next(n for n in made.graph.node if n.op_type == "MatMul").input[1]
        name = made.find_producer(name).input[0]
        made.set_initializer(name, made.get_initializer(name)[::-1].copy())  # rows of a dense layer, as after Flatten
        return made

    examine(file)
    monkeypatch.setattr(graph, "prepare", wrong)
    with pytest.raises(graph.GraphError, match="without changing what it computes"):
        examine(file)


def test_attributes_that_onnx_lets_a_file_leave_out(tmp_path):
    net = Net((3, 4, 4))
    x = net.maxpool(net.relu_quant(net.conv(net.input, 2, 3, pad=0)), 2, 1)
    proto = net.head(x).proto
    for node in proto.graph.node:
        if node.op_type in ("Conv", "MaxPool"):
            kept = [a for a in node.attribute if node.op_type == "MaxPool" and a.name == "kernel_shape"]
            del node.attribute[:]
            node.attribute.extend(kept)
    model = graph.prepare(graph.load(saved(tmp_path, proto)))
    found = graph.execute(model, np.moveaxis(net.inputs, 1, -1))
    assert np.array_equal(next(iter(found.values())), net.outputs) and len(np.unique(net.outputs)) > 5


def test_a_convolution_of_a_flat_tensor(tmp_path):
    """Found by the fuzzer: onnx's shape inference crashes on it, so it must be refused before."""
    net = Net((5,))
    proto = net.finish(net.dense(net.input, 3, bias=None, gemm=False)).proto
    next(node for node in proto.graph.node if node.op_type == "MatMul").op_type = "Conv"
    refused(saved(tmp_path, proto), "Conv .* reads tensors of 2 and 2 axes")


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_without_bias(tmp_path, transposed):
    """As Brevitas exports a QuantLinear with bias=False."""
    net = Net((5,))
    net.finish(net.dense(net.input, 3, bias=None, transposed=transposed))
    gemm = next(node for node in net.proto.graph.node if node.op_type == "Gemm")
    del gemm.input[2]
    model = graph.prepare(graph.load(saved(tmp_path, net.proto)))
    assert np.array_equal(graph.execute(model, net.inputs)["global_out"], net.outputs)


# -- fuzz ------------------------------------------------------------------------------------------------------------


def test_fuzzed_files_are_refused_or_understood():
    """In a process of its own: onnx and onnxruntime are C++, and a crash there would end this one."""
    command = [sys.executable, "-m", "pipeline.studies.fuzz_loader", "--cases", "100", "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 cases" in done.stdout and "0 faults" in done.stdout


def test_files_are_good_before_they_are_fuzzed():
    for seed in range(8):
        content = fuzz_loader._network(np.random.default_rng(seed))
        assert fuzz_loader.judge(content) == ("understood", "reference equals qonnx")


def test_the_fuzzer_makes_what_it_says():
    kinds = {fuzz_loader.case(seed)[0] for seed in range(60)}
    assert kinds == set(fuzz_loader.KINDS)
    assert fuzz_loader.case(7) == fuzz_loader.case(7) != fuzz_loader.case(8)


def test_the_fuzzer_sees_faults(monkeypatch):
    kind, content = next(case for case in map(fuzz_loader.case, range(100)) if case[0] == "random graph")
    assert fuzz_loader.judge(content)[0] in ("refused", "understood"), kind

    def fault(path):
        raise KeyError("z")

    monkeypatch.setattr(onnxfile, "_bytes", fault)  # within the net: becomes a sentence
    assert fuzz_loader.judge(content)[0] == "refused"
    monkeypatch.setattr(fuzz_loader, "examine", fault)
    assert fuzz_loader.judge(content) == ("fault", "KeyError: 'z'")
