"""An ONNX file read with suspicion: what is wrong with it is one sentence, before qonnx or hls4ml meet it.

Everything here is about the file. Whether its network can be carried exactly is :mod:`hls.numerics`' business.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import checker, external_data_helper, shape_inference

from boards.errors import SlimgateError

#: A network whose weights sit on the chip is far below this; onnx itself ends at 2 GiB.
LARGEST_FILE = 256 * 2**20
#: Elements of one tensor. A damaged shape must not become an allocation of terabytes.
LARGEST_TENSOR = 2**26
AGAIN = "export it again with brevitas.export.export_qonnx"
QUANTIZERS = {"Quant", "BipolarQuant", "IntQuant"}
QCDQ = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
INTEGER = {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
WINDOWED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
KEEP_RANK = QUANTIZERS | WINDOWED | {
    "Relu", "Transpose", "BatchNormalization", "Identity", "Pad", "Softmax", "Sigmoid", "Tanh", "Clip", "LeakyRelu",
    "Concat", "Dropout", "Neg", "Abs", "Trunc",
}  # fmt: skip


class GraphError(SlimgateError):
    """A file that is not a QONNX graph this project can read."""


def read(path: str | Path) -> onnx.ModelProto:
    """The model of a file, with its external data, checked: a fixed-shape quantised network with one input and output.

    Raises :class:`GraphError` for anything else, whatever the file holds.
    """
    path = Path(path)
    try:
        model = onnx.load_model_from_string(_bytes(path))
        if not model.graph.node:
            raise GraphError("not a readable ONNX file: it holds no network", where=path, fix=AGAIN)
        if not model.graph.output:
            raise GraphError("the network has 0 outputs", where=path, fix=AGAIN)
        _versions(model, path)
        _external_data(model, path)
        _kind(model, path)
        _sides(model, path)
        _valid(model, path)
        _drop_what_nobody_reads(model)
        _write_out_defaults(model)
    except SlimgateError:
        raise
    except OSError as error:
        raise GraphError(f"the file cannot be read: {error.strerror or first_line(error)}",
                         where=error.filename or path, fix="make it readable for you") from error  # fmt: skip
    except Exception as error:  # onnx and protobuf raise a dozen unrelated types for a damaged file
        raise GraphError(f"not a readable ONNX file: {first_line(error)}", where=path, fix=AGAIN) from error
    return model


def first_line(error: Exception) -> str:
    """An exception as a few words: its first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise GraphError(f"not a readable ONNX file: {'it is a folder' if path.is_dir() else 'there is no such file'}",
                         where=path, fix="name an ONNX file")  # fmt: skip
    _size(path, path)
    content = path.read_bytes()
    if not content:
        raise GraphError("not a readable ONNX file: it is empty", where=path, fix=AGAIN)
    return content


def _size(file: Path, path: Path) -> None:
    size = file.stat().st_size
    if size > LARGEST_FILE:
        raise GraphError(f"{file.name} holds {size / 2**20:,.0f} MiB; a network whose weights fit on a board stays "
                         f"below {LARGEST_FILE >> 20}", where=path, fix="give a smaller network")  # fmt: skip


def _versions(model, path: Path) -> None:
    installed = f"onnx {onnx.__version__}"
    if model.ir_version > onnx.IR_VERSION:
        raise GraphError(f"the file has IR version {model.ir_version}; {installed} reads up to {onnx.IR_VERSION}",
                         where=path, fix="export it where onnx<1.20 is installed")  # fmt: skip
    newest = onnx.defs.onnx_opset_version()
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise GraphError("the file does not tell its opset", where=path, fix=AGAIN)
    if opset > newest:
        raise GraphError(f"the file has opset {opset}; {installed} reads up to {newest}", where=path,
                         fix="export with opset_version=20 (brevitas.export.export_qonnx takes it), or with onnx<1.20")


def _external_data(model, path: Path) -> None:
    tensors = [t for t in external_data_helper._get_all_tensors(model) if external_data_helper.uses_external_data(t)]
    for tensor in tensors:
        location = external_data_helper.ExternalDataInfo(tensor).location
        file = path.parent / location
        outside = not file.resolve().is_relative_to(path.parent.resolve())
        if outside or not file.is_file():
            where = "outside the model's folder" if outside else "missing"
            raise GraphError(f"the weights of {tensor.name} are in a file of their own, {location!r}, which is {where}",
                             where=path, fix="put it beside the model, or save the model in one file")  # fmt: skip
        _size(file, path)
    for tensor in tensors:
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _kind(model, path: Path) -> None:
    """QONNX, and neither of the two things that are mistaken for it."""
    nodes = list(model.graph.node) + [node for function in model.functions for node in function.node]
    kinds = {node.op_type for node in nodes}
    if kinds & QUANTIZERS:
        return
    if kinds & (QCDQ | INTEGER):
        found = sorted(kinds & (QCDQ | INTEGER))
        raise GraphError(f"this is a QCDQ export, not QONNX: its quantisers are {' and '.join(found)} nodes",
                         where=path, fix="export with brevitas.export.export_qonnx(model, args=x, export_path=...), "
                                         "not with export_onnx_qcdq")  # fmt: skip
    layers = [node.name or node.output[0] for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
    what = f"; its layers {', '.join(layers[:3])}{', ...' if len(layers) > 3 else ''} are float" if layers else ""
    raise GraphError(f"the network has no quantiser{what}", where=path,
                     fix="train it with Brevitas' QuantConv2d, QuantLinear, QuantReLU and QuantIdentity, then export "
                         "with brevitas.export.export_qonnx")  # fmt: skip


def _sides(model, path: Path) -> None:
    constants = {item.name for item in model.graph.initializer}
    moving = [side for side in model.graph.input if side.name not in constants]
    for what, sides in (("inputs", moving), ("outputs", list(model.graph.output))):
        if len(sides) != 1:
            names = f" ({', '.join(side.name for side in sides)})" if sides else ""
            raise GraphError(f"the network has {len(sides)} {what}{names}; one stream carries them", where=path,
                             fix=f"export a network with one of its {what}")  # fmt: skip
    tensor = moving[0].type.tensor_type
    fix = "export with fixed shapes: export_qonnx(model, args=torch.zeros(1, C, H, W)), without dynamic_axes or " \
          "dynamic_shapes"  # fmt: skip
    if not tensor.HasField("shape"):
        raise GraphError(f"the input {moving[0].name} has no shape", where=path, fix=fix)
    for axis, size in enumerate(tensor.shape.dim):
        if size.dim_value < 1:
            name = f" ({size.dim_param})" if size.dim_param else ""
            raise GraphError(f"axis {axis}{name} of the input {moving[0].name} is dynamic; hardware has one shape",
                             where=path, fix=fix)  # fmt: skip
    if len(tensor.shape.dim) < 2:
        raise GraphError(f"the input {moving[0].name} has {len(tensor.shape.dim)} axes; the first is the batch",
                         where=path, fix=fix)  # fmt: skip
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise GraphError(f"the input {moving[0].name} is of type {kind}, not FLOAT", where=path,
                         fix="let the network take float values on the grid of its input quantiser")  # fmt: skip


def _valid(model, path: Path) -> None:
    """onnx's own rules, and no tensor, declared or inferred, that no computer holds."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    told = {item.domain for item in copy.opset_import}
    for domain in sorted({node.domain for node in copy.graph.node} - told - {"ai.onnx"}):
        copy.opset_import.append(onnx.helper.make_opsetid(domain, 1))  # older exporters leave qonnx's own out
    for output in [side for side in copy.graph.output if not side.type.tensor_type.HasField("shape")]:
        copy.graph.output.remove(output)  # not told: it is inferred later
    for item in copy.graph.initializer:
        _bounded(item.name, item.dims, path)
    _ranks(copy, path)
    try:
        checker.check_model(copy)
        copy = shape_inference.infer_shapes(copy)
    except (checker.ValidationError, shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise GraphError(f"not a valid ONNX graph: {first_line(error)}", where=path, fix=AGAIN) from error
    for info in [*copy.graph.input, *copy.graph.value_info, *copy.graph.output]:
        _bounded(info.name, (size.dim_value for size in info.type.tensor_type.shape.dim), path)


def _ranks(model, path: Path) -> None:
    """Convolutions and pools of flat tensors: onnx 1.19 does not refuse them, it crashes."""
    ranks = {item.name: len(item.dims) for item in model.graph.initializer}
    ranks |= {side.name: len(side.type.tensor_type.shape.dim) for side in model.graph.input}
    for node in model.graph.node:
        found = [ranks.get(name) for name in node.input]
        if node.op_type in WINDOWED and any(rank is not None and rank < 3 for rank in found[:2]):
            told = " and ".join(str(rank) for rank in found[:2] if rank is not None)
            raise GraphError(f"not a valid ONNX graph: {node.op_type} {node.name or node.output[0]} reads tensors of "
                             f"{told} axes; it needs 3 or more", where=path, fix=AGAIN)  # fmt: skip
        if found and found[0] is not None and node.op_type in KEEP_RANK and node.output:
            ranks[node.output[0]] = found[0]


def _drop_what_nobody_reads(model) -> None:
    """In hardware its stream would fill up and stand still."""
    if any(a.HasField("g") or a.graphs for node in model.graph.node for a in node.attribute):
        return  # inner graphs read tensors by name
    wanted = {side.name for side in model.graph.output}
    for node in reversed(list(model.graph.node)):  # in topological order: readers come first
        if wanted & set(node.output):
            wanted |= set(node.input)
        else:
            model.graph.node.remove(node)


def _write_out_defaults(model) -> None:
    """What ONNX lets a file leave out and qonnx or hls4ml ask for."""
    shapes = {item.name: list(item.dims) for item in model.graph.initializer}
    for node in model.graph.node:  # a quantiser keeps its input's shape
        if node.op_type in QUANTIZERS and node.input and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    for node in model.graph.node:
        if node.op_type == "Gemm" and len(node.input) == 2 and len(shapes.get(node.input[1], [])) == 2:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            bias = np.zeros(shapes[node.input[1]][0 if transposed else 1], np.float32)
            node.input.append(f"{node.output[0]}.no_bias")
            model.graph.initializer.append(onnx.numpy_helper.from_array(bias, node.input[2]))
        if node.op_type not in ("Conv", "MaxPool", "AveragePool") or node.domain:
            continue
        given, wanted = {attribute.name: attribute for attribute in node.attribute}, {}
        if node.op_type == "Conv":
            wanted = {"kernel_shape": shapes.get(node.input[1], [])[2:], "group": 1}
        kernel = list(given["kernel_shape"].ints) if "kernel_shape" in given else wanted.get("kernel_shape")
        if not kernel:
            continue
        wanted |= {"strides": [1] * len(kernel), "dilations": [1] * len(kernel)}
        if "auto_pad" not in given or given["auto_pad"].s in (b"NOTSET", b"VALID", b""):
            wanted["pads"] = [0] * 2 * len(kernel)
        if node.op_type == "AveragePool":
            del wanted["dilations"]  # opset 19 and later only
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in wanted.items() if k not in given)


def _bounded(name: str, dims: Iterable[int], path: Path) -> None:
    dims = list(dims)
    if any(size < 0 for size in dims) or math.prod(dims) > LARGEST_TENSOR:
        raise GraphError(f"tensor {name} has the shape {tuple(dims)}: below 0, or over {LARGEST_TENSOR:,} elements",
                         where=path, fix="the file is damaged, or its network far too large")  # fmt: skip
