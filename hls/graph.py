"""A QONNX file made ready for hardware: cleaned, channels-last, with pixels arriving as they lie on the wire.

The prepared graph computes the same function as the file (tests run both with qonnx); only the layout of its input
changes, from NCHW to NHWC.
"""

import contextlib
import copy
import io
import json
import re
import warnings
from pathlib import Path

import numpy as np
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames, RemoveUnusedTensors
from qonnx.util.cleanup import cleanup_model

from hls import onnxfile
from hls.front import cut_front
from hls.layout import channels_last
from hls.lower import drop_identities, drop_unread, fingerprint, lower, strip_host_operation
from hls.onnxfile import GraphError
from hls.thresholds import insert_thresholds, settle_padding

_LAYERS = "slimgate_layers"
#: Metadata key: what the file calls its input, which cleaning renames.
INPUT = "slimgate_input"


_AGAIN = "slimgate: reads the same tensor again"


def _tidied(model: ModelWrapper, change) -> ModelWrapper:
    """``change(model)`` of a graph in which no node reads a tensor twice: where one does, qonnx renames it once."""
    moving = data_tensors(model)
    for node in list(model.graph.node):
        for index, name in enumerate(node.input):
            if name in moving and name in list(node.input)[:index]:
                again = f"{name}_again{len(model.graph.node)}"
                made = helper.make_node("Identity", [name], [again], doc_string=_AGAIN)
                model.graph.node.insert(list(model.graph.node).index(node), made)
                if (shape := model.get_tensor_shape(name)) is not None:
                    model.set_tensor_shape(again, shape)
                node.input[index] = again
    model = change(model)
    for node in [node for node in model.graph.node if node.doc_string == _AGAIN]:
        for reader in model.find_consumers(node.output[0]):
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
        model.graph.node.remove(node)
    return model


def load(path: str | Path) -> ModelWrapper:
    """Read and clean a QONNX file: shapes inferred, constants folded, nodes named ``<Op>_<n>``.

    Raises :class:`GraphError` for a file that is none (:mod:`hls.onnxfile`).
    """
    proto = onnxfile.read(path)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            model = ModelWrapper(proto)
            names, called = _module_names(model), sorted(data_inputs(model))[0]
            model = _tidied(model, cleanup_model)
            strip_host_operation(model)
    except Exception as error:  # a valid file whose nodes do not fit together fails anywhere in onnxruntime or qonnx
        raise GraphError(f"its shapes or constants cannot be computed: {onnxfile.first_line(error)}", where=path,
                         fix=onnxfile.AGAIN) from error  # fmt: skip
    model.set_metadata_prop(_LAYERS, json.dumps(names))
    model.set_metadata_prop(INPUT, called)
    return model


def mac_nodes(model: ModelWrapper) -> list:
    """The nodes that multiply and accumulate, in the order of the graph."""
    return [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


def _fingerprint(model: ModelWrapper, node) -> str | None:
    """Identifies a layer by its weights, whatever their layout: cleaning reorders nodes and transposes weights."""
    name = node.input[1]
    while (producer := model.find_producer(name)) is not None:
        name = producer.input[0]
    weights = model.get_initializer(name)
    return None if weights is None else fingerprint(weights)


def _module_names(model: ModelWrapper) -> dict[str, str]:
    """Fingerprint -> the module path that torch left in a parameter's name, for each layer where it is unambiguous."""
    names: dict[str, str] = {}
    for node in mac_nodes(model):
        key = _fingerprint(model, node)
        for parameter in reversed(node.input[1:]):
            while (producer := model.find_producer(parameter)) is not None:
                parameter = producer.input[0]
            path, dot, kind = parameter.rpartition(".")
            if dot and kind in ("weight", "bias") and key is not None:
                # two layers with the same weights cannot be told apart: both keep their node's name
                names[key] = path if key not in names else ""
                break
    names = {k: re.sub(r"[^0-9A-Za-z_]", "_", v) for k, v in names.items()}
    paths = list(names.values())
    return {k: v for k, v in names.items() if v and paths.count(v) == 1}


def prepare(model: ModelWrapper) -> ModelWrapper:
    """Turn a cleaned NCHW graph into the NHWC graph that hls4ml converts.

    Gemm becomes MatMul and Add, with the constant second; what the layout changes is told in :mod:`hls.layout`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = copy.deepcopy(model)
        cut_front(model)
        model = _tidied(lower(model, _LAYERS), cleanup_model)
        # before the layout changes: qonnx reads any transB of a Gemm behind a Flatten as true
        model = _tidied(model, lambda model: cleanup_model(model.transform(GemmToMatMul())))
        channels_last(model)
        drop_identities(model)
        drop_unread(model)
        model = _tidied(model, _named)
    moving = data_tensors(model)
    for node in model.graph.node:
        if node.op_type == "Add" and node.input[0] not in moving:
            node.input[:] = reversed(node.input)  # as a bias stands in a Gemm
    names = json.loads(model.get_metadata_prop(_LAYERS) or "{}")
    for node in mac_nodes(model):
        node.name = names.get(_fingerprint(model, node)) or node.name  # becomes part of a C++ identifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        insert_thresholds(model)
        settle_padding(model)
    return model


def _named(model: ModelWrapper) -> ModelWrapper:
    for change in (RemoveUnusedTensors(), GiveUniqueNodeNames(), GiveReadableTensorNames()):
        model = model.transform(change)
    return model


def input_shape(model: ModelWrapper) -> tuple[int, ...]:
    """Shape of one sample on the wire, channels last: (H, W, C) or (features,)."""
    return tuple(model.get_tensor_shape(model.graph.input[0].name)[1:])


def data_inputs(model: ModelWrapper) -> set[str]:
    """Names of the inputs that are no constants."""
    return {i.name for i in model.graph.input if model.get_initializer(i.name) is None}


def data_tensors(model: ModelWrapper) -> set[str]:
    """Names of the tensors that depend on the network's input; the others are constants and quantised weights."""
    names = data_inputs(model)
    for node in model.graph.node:
        if names & set(node.input):
            names |= set(node.output)
    return names


def pools_all(model: ModelWrapper, node) -> bool:
    """Whether a channels-last node is a MaxPool whose one window is the whole picture."""
    if node.op_type != "MaxPool":
        return False
    kernel = next(list(a.ints) for a in node.attribute if a.name == "kernel_shape")
    return kernel == list(model.get_tensor_shape(node.input[0])[1:-1])


def with_batch(model: ModelWrapper, batch: int) -> ModelWrapper:
    """A copy of the graph that takes ``batch`` samples at once.

    Only the leading dimension changes, so it is written directly: qonnx's shape inference cannot redo channels-last
    nodes.
    """
    model = copy.deepcopy(model)
    names = data_tensors(model)
    for info in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        if info.name in names:
            info.type.tensor_type.shape.dim[0].dim_value = batch
    for node in model.graph.node:
        if node.op_type == "Reshape" and node.input[0] in names:
            shape = np.array(model.get_initializer(node.input[1]))
            shape[0] = batch
            model.set_initializer(node.input[1], shape)
    return model


def execute(
    model: ModelWrapper, values: np.ndarray, *, tensors: bool = False, batch: int = 64
) -> dict[str, np.ndarray]:
    """Run a graph with qonnx on float32 ``values`` (N, ...) in batches; all tensors' values when ``tensors``."""
    from qonnx.core.onnx_exec import execute_onnx

    name = model.graph.input[0].name
    collected: dict[str, list[np.ndarray]] = {}
    sized: dict[int, ModelWrapper] = {}
    moving = data_tensors(model)
    for start in range(0, len(values), batch):
        part = np.ascontiguousarray(values[start : start + batch], dtype=np.float32)
        if len(part) not in sized:
            sized[len(part)] = with_batch(model, len(part))
        context = execute_onnx(sized[len(part)], {name: part}, return_full_exec_context=tensors)
        for key, value in context.items():
            if key in moving:
                collected.setdefault(key, []).append(value)
    return {key: np.concatenate(parts) for key, parts in collected.items()}
