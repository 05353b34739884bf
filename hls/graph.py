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
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model

from hls import onnxfile
from hls.lower import fingerprint, lower, strip_host_operation
from hls.onnxfile import GraphError
from hls.thresholds import insert_thresholds

_LAYERS = "slimgate_layers"


def load(path: str | Path) -> ModelWrapper:
    """Read and clean a QONNX file: shapes inferred, constants folded, nodes named ``<Op>_<n>``.

    Raises :class:`GraphError` for a file that is none (:mod:`hls.onnxfile`).
    """
    proto = onnxfile.read(path)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            model = ModelWrapper(proto)
            names = _module_names(model)
            model = cleanup_model(model)
            strip_host_operation(model)
    except Exception as error:  # a valid file whose nodes do not fit together fails anywhere in onnxruntime or qonnx
        raise GraphError(f"its shapes or constants cannot be computed: {onnxfile.first_line(error)}", where=path,
                         fix=onnxfile.AGAIN) from error  # fmt: skip
    model.set_metadata_prop(_LAYERS, json.dumps(names))
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

    Gemm becomes MatMul and Add, with the constant second; a Transpose in front of a Flatten is moved into the weights
    of the dense layer behind it, so that pixels need not be reordered in hardware.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cleanup_model(lower(copy.deepcopy(model), _LAYERS))
        # before the layout changes: qonnx reads any transB of a Gemm behind a Flatten as true
        model = cleanup_model(model.transform(GemmToMatMul()))
        _refuse_shared_flatten(model)
        if len(model.get_tensor_shape(model.graph.input[0].name)) == 4:
            model = model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True))
        _sink_transposes(model)
        _move_flatten_transpose_into_weights(model)
        model = cleanup_model(model)
    moving = data_tensors(model)
    for node in model.graph.node:
        if node.op_type == "Add" and node.input[0] not in moving:
            node.input[:] = reversed(node.input)  # as a bias stands in a Gemm
    names = json.loads(model.get_metadata_prop(_LAYERS) or "{}")
    for node in mac_nodes(model):
        node.name = names.get(_fingerprint(model, node), node.name)  # becomes part of a C++ identifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        insert_thresholds(model)
    return model


def _refuse_shared_flatten(model: ModelWrapper) -> None:
    """The order of flattened pixels is changed by permuting the weights of one reader: there must be no other."""
    for node in model.graph.node:
        if node.op_type not in ("Flatten", "Reshape") or len(model.get_tensor_shape(node.input[0])) != 4:
            continue
        readers = model.find_consumers(node.output[0])
        chain = [reader.input[1] for reader in readers if reader.op_type == "MatMul"]
        for name in chain:
            if (producer := model.find_producer(name)) is not None:
                chain.append(producer.input[0])
        if len(readers) > 1 or any(len(model.find_consumers(name)) > 1 for name in chain):
            raise GraphError("a flattened picture is read by several nodes, or by a layer that shares its weights",
                             where=f"node {node.name}", fix="flatten once for each layer, each with its own weights")


_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


def _permutation(node) -> list[int] | None:
    if node.op_type != "Transpose":
        return None
    return next((list(a.ints) for a in node.attribute if a.name == "perm"), None)


def _sink_transposes(model: ModelWrapper) -> None:
    """Move the NHWC -> NCHW transposes that qonnx leaves, down through element-wise nodes until each meets its inverse
    or a Flatten: it leaves them where the input's quantiser is read by several nodes, or by a Flatten."""
    todo = [n for n in model.graph.node if _permutation(n) == _TO_NCHW]
    while todo:
        transpose = todo.pop()
        source = transpose.input[0]
        for user in model.find_consumers(transpose.output[0]):
            if _permutation(user) == _TO_NHWC:
                for reader in model.find_consumers(user.output[0]):
                    reader.input[:] = [source if name == user.output[0] else name for name in reader.input]
                if not any(output.name == user.output[0] for output in model.graph.output):
                    model.graph.node.remove(user)
            elif user.op_type in ("Quant", "Relu", "Identity") and all(
                np.size(model.get_initializer(name)) == 1 for name in user.input[1:]
            ):
                above, below = f"{user.output[0]}_nhwc", user.output[0]
                user.input[0], user.output[0] = source, above
                model.set_tensor_shape(above, model.get_tensor_shape(source))
                lower = helper.make_node("Transpose", [above], [below], perm=_TO_NCHW)
                place = list(model.graph.node).index(user) + 1
                model.graph.node.insert(place, lower)
                todo.append(model.graph.node[place])
            elif user.op_type in ("Concat", "Add") and all(
                (producer := model.find_producer(name)) is not None and _permutation(producer) == _TO_NCHW
                for name in user.input
            ):
                todo += _sink_below(model, user)
        unread = not model.find_consumers(transpose.output[0]) and transpose.output[0] != model.graph.output[0].name
        if unread and transpose in model.graph.node:
            model.graph.node.remove(transpose)


def _sink_below(model: ModelWrapper, join) -> list:
    """Let a node read channels last what only transposes hand it; return the transpose now behind it, and its own,
    which may be unread now."""
    above = [model.find_producer(name) for name in join.input]
    join.input[:] = [transpose.input[0] for transpose in above]
    shape = model.get_tensor_shape(join.output[0])
    upper, lower = f"{join.output[0]}_nhwc", join.output[0]
    join.output[0] = upper
    model.set_tensor_shape(upper, [shape[i] for i in _TO_NHWC])
    for attribute in join.attribute:
        if attribute.name == "axis":
            attribute.i = _TO_NHWC.index(attribute.i % 4)
    place = list(model.graph.node).index(join) + 1
    model.graph.node.insert(place, helper.make_node("Transpose", [upper], [lower], perm=_TO_NCHW))
    for transpose in above:
        if transpose in model.graph.node and not model.find_consumers(transpose.output[0]):
            model.graph.node.remove(transpose)
    return [model.graph.node[list(model.graph.node).index(join) + 1]]


def _move_flatten_transpose_into_weights(model: ModelWrapper) -> None:
    """NHWC -> Transpose(NCHW) -> Flatten -> MatMul(W) becomes NHWC -> Flatten -> MatMul(W with its rows permuted)."""
    for transpose in [n for n in model.graph.node if _permutation(n) == _TO_NCHW]:
        flatten = _only(model.find_consumers(transpose.output[0]))
        if flatten is None or flatten.op_type not in ("Flatten", "Reshape"):
            continue
        shape = model.get_tensor_shape(transpose.input[0])
        if shape[1] == shape[2] == 1:  # one pixel: both layouts are the same numbers in the same order
            flatten.input[0] = transpose.input[0]
            model.graph.node.remove(transpose)
            continue
        dense = _only(model.find_consumers(flatten.output[0]))
        if dense is None or dense.op_type != "MatMul" or len(model.get_tensor_shape(flatten.output[0])) != 2:
            continue
        order = np.arange(int(np.prod(shape[1:]))).reshape(shape[3], shape[1], shape[2]).transpose(1, 2, 0).ravel()
        name = dense.input[1]
        shared = len(model.find_consumers(name)) > 1
        while (producer := model.find_producer(name)) is not None and producer.op_type == "Quant":
            name = producer.input[0]  # permuting before an element-wise quantiser is permuting after it
            shared |= len(model.find_consumers(name)) > 1
        weights = model.get_initializer(name)
        if weights is None or weights.shape[0] != order.size or shared:
            continue
        model.set_initializer(name, np.ascontiguousarray(weights[order]))
        flatten.input[0] = transpose.input[0]
        model.graph.node.remove(transpose)


def _only(nodes: list):
    return nodes[0] if len(nodes) == 1 else None


def input_shape(model: ModelWrapper) -> tuple[int, ...]:
    """Shape of one sample on the wire, channels last: (H, W, C) or (features,)."""
    return tuple(model.get_tensor_shape(model.graph.input[0].name)[1:])


def data_tensors(model: ModelWrapper) -> set[str]:
    """Names of the tensors that depend on the network's input; the others are constants and quantised weights."""
    names = {i.name for i in model.graph.input if model.get_initializer(i.name) is None}
    for node in model.graph.node:
        if names & set(node.input):
            names |= set(node.output)
    return names


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
