"""Operations that hardware does not have, written with those it has: an exact rewriting of a cleaned NCHW graph.

What comes out computes the same function on integers (tests run both with qonnx): grouped and dilated convolutions
become dense ones with zero weights, an average over 2**k pixels a depthwise convolution by 2**-k (over another number:
their sum, divided), a multiplication by powers of two one of one pixel, 1-D pictures 2-D ones of height 1;
weights with one power-of-two scale per channel, or of -1 and +1, become codes on one grid. What is not exact is left as
it stands, for :mod:`hls.numerics` to refuse by name.
"""

import hashlib
import json
import math

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from qonnx.custom_op.general.quant import quant

from hls.numerics import FLOAT32_EXACT, NotExact, attributes, grid_of, log2_exact
from hls.scales import pull_scales

QUANT_DOMAIN = "qonnx.custom_op.general"
#: Metadata key: what the host does behind the network (:func:`host_operations`).
HOST = "slimgate_host"
_SAMPLED = ("Conv", "MaxPool", "AveragePool")


def lower(model, layers: str):
    """Rewrite ``model`` in place and return it. ``layers``: the metadata key of the layers' names by fingerprint.

    Shapes of the tensors must be known; those that a rewriting changes are set.
    """
    strip_host_operation(model)
    drop_identities(model)
    _weights_of_their_own(model)
    _plain_gemms(model)
    _reshape_on_the_host(model)
    _plain_pads(model)
    _plain_resizes(model)
    _chained_joins(model)
    _to_two_dimensions(model)
    _padded_pools(model)
    _pads_into_convolutions(model)
    _averages(model)
    _multiplications(model)
    _flatten_early(model)
    _pull_scales(model, layers)
    _plain_constants(model, layers)
    drop_unread(model)
    return model


# --------------------------------------------------------------------------- helpers


def constant_values(model, name: str) -> np.ndarray | None:
    """A constant in float64, its quantisers applied; None for anything that is not one."""
    values = model.get_initializer(name)
    if values is not None:
        return np.asarray(values, np.float64)
    node = model.find_producer(name)
    if node is not None and node.op_type == "Transpose":
        values = constant_values(model, node.input[0])
        return None if values is None else values.transpose(attributes(node).get("perm"))
    if node is None or node.op_type not in ("Quant", "BipolarQuant"):
        return None
    inputs = [constant_values(model, i) for i in node.input]
    if any(i is None for i in inputs):
        return None
    if node.op_type == "BipolarQuant":
        return np.where(inputs[0] >= 0, 1.0, -1.0) * inputs[1]
    options = attributes(node)
    if np.any(inputs[2] != 0):
        return None
    rounding = options.get("rounding_mode", b"ROUND").decode()
    try:
        return quant(*inputs, bool(options.get("signed", 1)), bool(options.get("narrow", 0)), rounding)
    except (ValueError, KeyError, AssertionError):  # a rounding mode or width that qonnx does not know
        return None


def new_constant(model, hint: str, values: np.ndarray, *, least_bits: int = 2) -> str | None:
    """A quantised constant of exactly these values; None where they are no short binary fractions."""
    lsb = grid_of(values)
    if lsb is None:
        return None
    codes = np.ldexp(values, -lsb)
    bits = max(int(max(codes.max(), -codes.min() - 1, 0)).bit_length() + 1, least_bits)
    stem = hint
    while model.get_initializer(f"{stem}_plain") is not None or model.find_producer(f"{stem}_codes") is not None:
        stem += "_"
    names = [f"{stem}_plain", f"{stem}_scale", f"{stem}_zero", f"{stem}_bits"]
    for name, value in zip(names, (values, 2.0**lsb, 0.0, float(bits)), strict=True):
        model.set_initializer(name, np.asarray(value, np.float32))
    node = helper.make_node("Quant", names, [f"{stem}_codes"], name=f"{stem}_codes", domain=QUANT_DOMAIN, signed=1,
                            narrow=0, rounding_mode="ROUND")  # fmt: skip
    model.graph.node.insert(0, node)
    model.set_tensor_shape(f"{stem}_codes", list(np.shape(values)))
    return f"{stem}_codes"


def _bypass(model, node) -> None:
    """Take a node with one moving input out of the graph."""
    source, target = node.input[0], node.output[0]
    if target == model.graph.output[0].name:
        producer = model.find_producer(source)
        if producer is None or len(model.find_consumers(source)) > 1:
            return  # nothing else would carry the output's name
        producer.output[0] = target
    else:
        for reader in model.find_consumers(target):
            reader.input[:] = [source if name == target else name for name in reader.input]
    model.graph.node.remove(node)


def _set_option(node, name: str, value) -> None:
    for old in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(old)
    node.attribute.append(helper.make_attribute(name, value))


def _depthwise(model, node, source: str, weights: np.ndarray, *, strides=(1, 1), pads=(0, 0, 0, 0)) -> bool:
    """Put a convolution of each channel by itself, without bias, in a node's place; ``weights`` (C, 1, kH, kW). False
    where they cannot be written exactly."""
    name = new_constant(model, f"{node.name}_weights", weights)
    if name is None:
        return False
    made = helper.make_node("Conv", [source, name], [node.output[0]], name=node.name, group=len(weights),
                            dilations=[1, 1], kernel_shape=list(weights.shape[2:]), strides=list(strides),
                            pads=list(pads))  # fmt: skip
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    model.graph.node.insert(place, made)
    return True


def _each(channels: int, factors=1.0, kernel=(1, 1)) -> np.ndarray:
    """(C, 1, kH, kW), a factor for each channel."""
    return np.ones((channels, 1, *kernel)) * np.broadcast_to(factors, channels)[:, None, None, None]


# --------------------------------------------------------------------------- the ends of the graph


def host_operations(model) -> list[dict]:
    """What was taken off the end of the network, in the order the host has to do it: {"operation", its parameters}."""
    return json.loads(model.get_metadata_prop(HOST) or "[]")


def strip_host_operation(model) -> None:
    """Take off the end, in place, what the host does: what follows from the codes without a rounding that matters.

    A Softmax, LogSoftmax, ArgMax or TopK(1) over the classes; multiplying all outputs by one positive number or adding
    one to them; the order and shape of the outputs.
    """
    while (last := model.find_producer(model.graph.output[0].name)) is not None and len(model.graph.output) == 1:
        source = next((name for name in last.input if name in _moving(model)), None)
        told = _for_the_host(model, last, source) if source is not None else None
        if told is None or len(model.find_consumers(source)) > 1 or model.find_producer(source) is None or any(
            model.find_consumers(name) for name in last.output
        ):
            return
        model.set_metadata_prop(HOST, json.dumps([{"operation": last.op_type, **told}, *host_operations(model)]))
        model.graph.node.remove(last)
        info = helper.make_tensor_value_info(source, TensorProto.FLOAT, model.get_tensor_shape(source))
        model.graph.output[0].CopyFrom(info)
        for known in [known for known in model.graph.value_info if known.name == source]:
            model.graph.value_info.remove(known)


def _for_the_host(model, node, source: str) -> dict | None:
    """What the host must know to do a node's work; None for a node that hardware must do."""
    options, shape = attributes(node), model.get_tensor_shape(source)
    if node.op_type in ("Softmax", "LogSoftmax", "ArgMax", "TopK"):
        axis = options.get("axis", 0 if node.op_type == "ArgMax" else -1) % len(shape)
        if axis != 1 or len(shape) not in (2, 4):
            return None
        if node.op_type == "TopK":
            count = model.get_initializer(node.input[1])
            if count is None or np.ravel(count).tolist() != [1] or not options.get("largest", 1):
                return None
        return {"axis": axis}
    if node.op_type in ("Flatten", "Reshape", "Transpose") and len(shape) == 4 and max(shape[2:]) > 1:
        after = model.get_tensor_shape(node.output[0])
        if node.op_type == "Transpose":
            return {"perm": list(options.get("perm", range(4)[::-1]))}
        return {"shape": after[1:]} if after[0] == shape[0] else None
    if node.op_type in ("Mul", "Div", "Add", "Sub") and node.input[0] == source:
        value = constant_values(model, node.input[1])
        before = model.find_producer(source)
        if value is None or value.size != 1 or not np.isfinite(value).all():
            return None
        value = float(value.ravel()[0])
        if node.op_type in ("Mul", "Div"):
            return {"by": value} if value > 0 else None
        return {"by": value} if before is not None and (before.op_type != "MatMul" or shape[-1] > 1) else (
            None)  # the bias of one class
    if node.op_type == "BatchNormalization":
        parameters = [constant_values(model, name) for name in node.input[1:5]]
        if any(p is None or np.any(p != p.ravel()[0]) or not np.isfinite(p).all() for p in parameters):
            return None
        gamma, beta, mean, var = (float(p.ravel()[0]) for p in parameters)
        told = {"gamma": gamma, "beta": beta, "mean": mean, "var": var, "epsilon": options.get("epsilon", 1e-5)}
        return told if gamma > 0 else None
    return None


def drop_unread(model) -> None:
    """Quantisers of constants that nothing reads any more."""
    results = {o.name for o in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if not any(model.find_consumers(name) or name in results for name in node.output):
            model.graph.node.remove(node)


def drop_identities(model) -> None:
    """Take out what hands on its input."""
    for node in [n for n in model.graph.node if n.op_type in ("Identity", "Dropout")]:
        _bypass(model, node)


def _reshape_on_the_host(model) -> None:
    """A vector that is made a picture before anything is computed with it comes as a picture."""
    source = model.graph.input[0].name
    readers, between = model.find_consumers(source), [source]
    while len(readers) == 1 and readers[0].op_type == "Quant" and all(
        np.size(model.get_initializer(name)) == 1 for name in readers[0].input[1:]
    ):
        between.append(readers[0].output[0])
        readers = model.find_consumers(readers[0].output[0])
    if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Unsqueeze"):
        return
    before, after = model.get_tensor_shape(source), model.get_tensor_shape(readers[0].output[0])
    if before[0] == after[0] and len(after) in (3, 4) and len(before) < len(after):
        _bypass(model, readers[0])
        for name in between:
            model.set_tensor_shape(name, after)


def _to_two_dimensions(model) -> None:
    """(N, C, W) becomes (N, C, 1, W), where all of the graph can follow."""
    moving = _moving(model)
    flat = {n for n in moving if len(model.get_tensor_shape(n) or []) == 3}
    if model.graph.input[0].name not in flat:
        return
    known = {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Quant", "BipolarQuant", "Trunc", "Add",
             "Mul", "Sub", "Div", "BatchNormalization", "Flatten", "Reshape", "Squeeze", "Concat", "Pad",
             "Resize"}  # fmt: skip
    nodes = [n for n in model.graph.node if flat & {*n.input, *n.output}]
    if any(n.op_type not in known or (n.op_type == "Reshape" and n.output[0] in flat) for n in nodes):
        return
    parameters = set()
    for node in nodes:
        if node.op_type in _SAMPLED:
            options = attributes(node)
            for name, one in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
                if name in options:
                    _set_option(node, name, [one, *options[name]])
            left, right = options.get("pads", [0, 0])
            _set_option(node, "pads", [0, left, 0, right])
        elif node.op_type == "Pad" and len(node.input) == 3:
            pads = np.insert(np.reshape(model.get_initializer(node.input[1]), (2, 3)), 2, 0, axis=1)
            _pad_node(model, node, pads, float(model.get_initializer(node.input[2])))
        elif node.op_type == "Resize":
            model.set_initializer(node.input[2], np.insert(model.get_initializer(node.input[2]), 2, 1))
        if node.op_type == "Conv":
            parameters.add(node.input[1])
        elif node.op_type in ("Quant", "BipolarQuant", "Trunc", "Add", "Mul", "Sub", "Div"):
            parameters |= {i for i in node.input if i not in moving}
    for name in parameters:
        while model.get_initializer(name) is None:
            producer = model.find_producer(name)
            model.set_tensor_shape(name, _raised(model.get_tensor_shape(name)))
            for other in producer.input[1:]:
                model.set_initializer(other, _raise(model.get_initializer(other)))
            name = producer.input[0]
        model.set_initializer(name, _raise(model.get_initializer(name)))
    for name in flat:
        model.set_tensor_shape(name, _raised(model.get_tensor_shape(name)))


def _raised(shape):
    return [*shape[:-1], 1, shape[-1]] if len(shape) == 3 else list(shape)


def _raise(values: np.ndarray) -> np.ndarray:
    return values.reshape(_raised(values.shape))


def _moving(model) -> set[str]:
    names = {i.name for i in model.graph.input if model.get_initializer(i.name) is None}
    for node in model.graph.node:
        if names & set(node.input):
            names |= set(node.output)
    return names


# --------------------------------------------------------------------------- operations


def _plain_pads(model) -> None:
    """Every Pad with its amounts for all axes, its value as a constant, and no third input."""
    for node in [n for n in model.graph.node if n.op_type == "Pad"]:
        rank = len(model.get_tensor_shape(node.input[0]))
        given = [model.get_initializer(name) if name else None for name in node.input[1:4]] + [None] * 3
        pads, value, axes = given[0], 0.0 if len(node.input) < 3 or not node.input[2] else given[1], given[2]
        if pads is None or value is None or (len(node.input) > 3 and node.input[3] and axes is None):
            continue
        axes = [int(a) % rank for a in (range(rank) if axes is None else axes)]
        whole = np.zeros((2, rank), np.int64)
        whole[:, axes] = np.reshape(pads, (2, -1))
        _pad_node(model, node, whole, float(np.ravel(value)[0]))


def _pad_node(model, node, pads: np.ndarray, value: float) -> None:
    """Give a Pad node its amounts, (2, rank), and what it puts there."""
    names = [f"{node.name}_amounts", f"{node.name}_value"]
    model.set_initializer(names[0], np.asarray(pads, np.int64).ravel())
    model.set_initializer(names[1], np.array(value, np.float32))
    node.input[:] = [node.input[0], *names]


def _plain_resizes(model) -> None:
    """A Resize or Upsample that repeats every value a whole number of times, as the one kind of Resize that is carried;
    whether it does is seen by running it on the numbers of its values."""
    for node in [n for n in model.graph.node if n.op_type in ("Resize", "Upsample")]:
        shape, after = model.get_tensor_shape(node.input[0]), model.get_tensor_shape(node.output[0])
        if len(shape) not in (3, 4) or shape[:2] != after[:2] or any(b % a for a, b in zip(shape, after, strict=True)):
            continue
        factors = [b // a for a, b in zip(shape, after, strict=True)]
        moving = _moving(model)
        if math.prod(after[2:]) >= FLOAT32_EXACT or any(name in moving for name in node.input[1:]):
            continue
        numbers = np.arange(math.prod(shape[2:]), dtype=np.float32).reshape(1, 1, *shape[2:])
        wanted = numbers
        for axis, factor in enumerate(factors):
            wanted = np.repeat(wanted, factor, axis)
        if not np.array_equal(_resized(model, node, np.broadcast_to(numbers, shape)), np.broadcast_to(wanted, after)):
            continue
        scales, none = f"{node.name}_factors", f"{node.name}_none"
        model.set_initializer(scales, np.array(factors, np.float32))
        model.set_initializer(none, np.zeros(0, np.float32))
        made = helper.make_node("Resize", [node.input[0], none, scales], [node.output[0]], name=node.name,
                                mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        place = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(place, made)


def _resized(model, node, values: np.ndarray) -> np.ndarray | None:
    names = {name: model.get_initializer(name) for name in node.input[1:] if name}
    shapes = [model.get_tensor_shape(name) for name in (node.input[0], node.output[0])]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in zip((node.input[0], node.output[0]), shapes, strict=True)]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in names.items()]
    graph = helper.make_graph([node], "resize", sides[:1], sides[1:], constants)
    made = helper.make_model(graph, opset_imports=list(model.model.opset_import), ir_version=model.model.ir_version)
    try:
        session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {node.input[0]: np.ascontiguousarray(values)})[0]
    except Exception:  # noqa: BLE001 - onnxruntime raises its own types; what it cannot run is refused by name
        return None


def _weights_of_their_own(model) -> None:
    """A copy of the quantiser for each layer that shares its weights: each may transpose or turn them its own way."""
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    for node in layers:
        name = node.input[1]
        shared = model.find_producer(name)
        if shared is None or shared.op_type not in ("Quant", "BipolarQuant") or len(model.find_consumers(name)) < 2:
            continue
        own, values = f"{node.name}_own", model.get_initializer(shared.input[0])
        if values is None:
            continue
        model.set_initializer(f"{own}_values", values)
        made = helper.make_node(shared.op_type, [f"{own}_values", *shared.input[1:]], [own], name=own,
                                domain=shared.domain)  # fmt: skip
        made.attribute.extend(shared.attribute)
        model.graph.node.insert(list(model.graph.node).index(shared), made)
        model.set_tensor_shape(own, list(values.shape))
        node.input[1] = own


def _plain_gemms(model) -> None:
    """What a Gemm multiplies its product and its bias by, into these."""
    for node in [n for n in model.graph.node if n.op_type == "Gemm"]:
        options = attributes(node)
        for index, name in ((1, "alpha"), (2, "beta")):
            factor = options.get(name, 1.0)
            if factor == 1 or len(node.input) <= index or not node.input[index]:
                continue
            values = constant_values(model, node.input[index])
            made = None if values is None else new_constant(model, f"{node.name}_{name}", values * factor)
            if made is None:
                raise NotExact(node.name, f"its {name} is {factor:g}", f"leave {name} at 1, which Brevitas does")
            node.input[index] = made
            _set_option(node, name, 1.0)


def _chained_joins(model) -> None:
    """Concat of three and more: of two, and the next, and so on."""
    for node in [n for n in model.graph.node if n.op_type == "Concat" and len(n.input) > 2]:
        axis = attributes(node)["axis"]
        joined, sources = node.input[0], list(node.input[1:])
        place = list(model.graph.node).index(node)
        for number, source in enumerate(sources[:-1]):
            name = f"{node.name}_first{number + 2}"
            shape = list(model.get_tensor_shape(joined))
            shape[axis] += model.get_tensor_shape(source)[axis]
            made = helper.make_node("Concat", [joined, source], [name], name=name, axis=axis)
            model.graph.node.insert(place + number, made)
            model.set_tensor_shape(name, shape)
            joined = name
        node.input[:] = [joined, sources[-1]]


def _padded_pools(model) -> None:
    """Padding of a MaxPool as a Pad of its own, with what is never the largest."""
    for node in [n for n in model.graph.node if n.op_type == "MaxPool"]:
        options, shape = attributes(node), model.get_tensor_shape(node.input[0])
        pads = options.get("pads", [0] * 4)
        if not any(pads) or len(shape) != 4 or options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            continue
        output = f"{node.name}_padded"
        made = helper.make_node("Pad", [node.input[0]], [output], name=f"{node.name}_pad", mode="constant")
        amounts = np.array([[0, 0, *pads[:2]], [0, 0, *pads[2:]]])
        _pad_node(model, made, amounts, -np.inf)
        model.graph.node.insert(list(model.graph.node).index(node), made)
        model.set_tensor_shape(output, [n + int(p) for n, p in zip(shape, amounts.sum(0), strict=True)])
        node.input[0] = output
        _set_option(node, "pads", [0] * 4)


def _pads_into_convolutions(model) -> None:
    """Zeros around what only convolutions read are padding of theirs."""
    for node in [n for n in model.graph.node if n.op_type == "Pad"]:
        pads, value = (model.get_initializer(name) for name in node.input[1:3]) if len(node.input) == 3 else (None, 1)
        if pads is None or value != 0 or len(pads) != 8 or attributes(node).get("mode", b"constant") != b"constant":
            continue
        before, after = [int(p) for p in pads[2:4]], [int(p) for p in pads[6:8]]
        if any(pads[:2]) or any(pads[4:6]) or min(before + after) < 0:
            continue
        readers = model.find_consumers(node.output[0])
        takes = all(r.op_type == "Conv" and attributes(r).get("auto_pad", b"NOTSET") == b"NOTSET" for r in readers)
        if readers and takes and node.output[0] != model.graph.output[0].name:
            for reader in readers:
                old = attributes(reader).get("pads", [0] * 4)
                _set_option(reader, "pads", [a + b for a, b in zip(old, before + after, strict=True)])
            _bypass(model, node)


def _averages(model) -> None:
    for node in [n for n in model.graph.node if n.op_type in ("AveragePool", "GlobalAveragePool", "ReduceMean")]:
        shape, options = model.get_tensor_shape(node.input[0]), attributes(node)
        if len(shape) != 4:
            continue
        kernel, strides = options.get("kernel_shape"), options.get("strides", [1, 1])
        pads = options.get("pads", [0] * 4)
        if node.op_type != "AveragePool":
            axes = options.get("axes")
            if node.op_type == "ReduceMean" and axes is None and len(node.input) > 1:
                axes = model.get_initializer(node.input[1])
            if node.op_type == "ReduceMean" and (axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]):
                continue
            kernel = shape[2:]
            if not options.get("keepdims", 1):  # what is left of the axes is taken away behind it
                kept = f"{node.name}_kept"
                squeeze = helper.make_node("Flatten", [kept], [node.output[0]], name=f"{node.name}_flat", axis=1)
                model.graph.node.insert(list(model.graph.node).index(node) + 1, squeeze)
                node.output[0] = kept
                model.set_tensor_shape(kept, [*shape[:2], 1, 1])
        elif (options.get("auto_pad", b"NOTSET") != b"NOTSET" or options.get("ceil_mode")
              or any(d != 1 for d in options.get("dilations", [1]))
              or (any(pads) and not options.get("count_include_pad"))):
            continue
        count = math.prod(kernel)
        if log2_exact(count) is not None:
            _depthwise(model, node, node.input[0], _each(shape[1], 1 / count, kernel), strides=strides, pads=pads)
            continue
        # onnxruntime divides the sum, which is exact: so does a Div, for the thresholds of a quantiser to take in
        mean, total = node.output[0], f"{node.name}_sum"
        after = model.get_tensor_shape(mean)
        node.output[0] = total
        if not _depthwise(model, node, node.input[0], _each(shape[1], 1.0, kernel), strides=strides, pads=pads):
            raise NotExact(node.name, "its sums cannot be written as a convolution", "report the network")
        made = next(n for n in model.graph.node if n.output[0] == total)
        model.set_tensor_shape(total, after)
        model.set_initializer(f"{node.name}_count", np.array(count, np.float32))
        divide = helper.make_node("Div", [total, f"{node.name}_count"], [mean], name=f"{node.name}_mean",
                                  doc_string=f"{node.name} averages over {count} pixels, no power of two")
        model.graph.node.insert(list(model.graph.node).index(made) + 1, divide)


def _multiplications(model) -> None:
    """Mul or Div by powers of two, one for all or one per channel: into the layer before where nothing else reads it,
    else a convolution or a dense layer of its own with a diagonal."""
    moving = _moving(model)
    for node in [n for n in model.graph.node if n.op_type in ("Mul", "Div") and n.output[0] in moving]:
        place = 0 if node.input[0] in moving else 1
        factors = constant_values(model, node.input[1 - place])
        shape = model.get_tensor_shape(node.input[place])
        if factors is None or (node.op_type == "Div" and place == 1) or len(shape) not in (2, 4):
            continue
        if np.any(factors == 0):
            continue
        factors = 1 / factors if node.op_type == "Div" else factors
        aligned = factors.reshape([1] * (len(shape) - factors.ndim) + list(factors.shape))
        if any(log2_exact(abs(float(f))) is None for f in factors.ravel()) or aligned.size not in (1, aligned.shape[1]):
            continue
        factors, source = np.broadcast_to(aligned.ravel(), shape[1]), node.input[place]
        if len(shape) == 4:
            _depthwise(model, node, source, _each(shape[1], factors))
        elif (name := new_constant(model, f"{node.name}_weights", np.diag(factors))) is not None:
            made = helper.make_node("MatMul", [source, name], [node.output[0]], name=node.name)
            model.graph.node.insert(list(model.graph.node).index(node), made)
            model.graph.node.remove(node)


def _flatten_early(model) -> None:
    """Pictures of one pixel become vectors in front of what waits for a quantiser, so that this stands behind it."""
    waiting = ("Div", "Mul", "Add", "Sub", "BatchNormalization", "Relu")
    changed = True
    while changed:
        changed = False
        for node in [n for n in model.graph.node if n.op_type in ("Flatten", "Reshape", "Squeeze")]:
            before, shape = model.find_producer(node.input[0]), model.get_tensor_shape(node.input[0])
            if (before is None or before.op_type not in waiting or len(shape) != 4 or shape[2:] != [1, 1]
                    or len(model.get_tensor_shape(node.output[0])) != 2 or len(model.find_consumers(node.input[0])) > 1
                    or before.input[0] not in _moving(model)
                    or any(model.get_initializer(name) is None for name in before.input[1:])):
                continue
            for index, name in enumerate(before.input[1:], 1):
                constant = model.get_initializer(name)
                model.set_initializer(f"{before.name}_flat{index}", constant.reshape(-1) if constant.size > 1 else
                                      constant.reshape(()) if before.op_type != "BatchNormalization" else constant)
                before.input[index] = f"{before.name}_flat{index}"
            flat = f"{before.name}_flattened"
            node.input[0], before.input[0], before.output[0], node.output[0] = (
                before.input[0], flat, node.output[0], flat)  # fmt: skip
            model.set_tensor_shape(flat, shape[:2])
            place = list(model.graph.node).index(before)
            moved = helper.make_node("Flatten", [node.input[0]], [flat], name=node.name, axis=1)
            model.graph.node.remove(node)
            model.graph.node.insert(place, moved)
            changed = True


def _pull_scales(model, layers: str) -> None:
    names = json.loads(model.get_metadata_prop(layers) or "{}")

    def renamed(old: str, codes: np.ndarray) -> None:
        key = fingerprint(_root(model, old))
        if key in names:
            names[fingerprint(codes.astype(np.float32))] = names[key]

    pull_scales(model, _moving, new_constant, renamed)
    model.set_metadata_prop(layers, json.dumps(names))


def _plain_constants(model, layers: str) -> None:
    """Weights and biases whose quantiser hardware does not have, and kernels with holes: codes on one grid."""
    names = json.loads(model.get_metadata_prop(layers) or "{}")
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        for index in range(1, len(node.input)):
            name = node.input[index]
            values = constant_values(model, name) if name else None
            if values is None:
                continue
            holes = index == 1 and node.op_type == "Conv" and values.ndim == 4 and (
                _has_holes(model, node) or _skips_rows(model, node, values))  # fmt: skip
            if not holes and not _needs_codes(model, name):
                continue
            dense = _dense_kernel(model, node, values) if holes else values
            hint = f"{node.name}_{'weights' if index == 1 else 'bias'}"
            made = None if dense is None else new_constant(model, hint, dense)
            if made is None:
                continue
            if index == 1:
                old, new = fingerprint(_root(model, name)), fingerprint(dense.astype(np.float32))
                if old in names:
                    # two layers of as many -1 and +1 cannot be told apart: both keep their node's name
                    names[new] = names[old] if names.get(new, names[old]) == names[old] else ""
            if holes:
                if _skips_rows(model, node, values):
                    top, left, bottom, right = attributes(node).get("pads", [0, 0, 0, 0])
                    _set_option(node, "pads", [top, left, bottom + 1, right])
                    _set_option(node, "auto_pad", "NOTSET")
                if not _is_depthwise(model, node):
                    _set_option(node, "group", 1)
                _set_option(node, "dilations", [1, 1])
                _set_option(node, "kernel_shape", list(dense.shape[2:]))
            node.input[index] = made
    model.set_metadata_prop(layers, json.dumps(names))


def _root(model, name: str) -> np.ndarray:
    while (producer := model.find_producer(name)) is not None:
        name = producer.input[0]
    return model.get_initializer(name)


def fingerprint(weights: np.ndarray) -> str:
    """Identifies a layer by its weights, whatever their layout: cleaning reorders nodes and transposes weights."""
    # + 0.0 makes -0.0 and 0.0, which sort as equals in any order, the same bytes
    return hashlib.sha256((np.sort(weights, axis=None) + 0.0).tobytes()).hexdigest()


def _needs_codes(model, name: str) -> bool:
    """A quantiser whose parameters are per channel, or that knows only -1 and +1, or a transposed constant."""
    node = model.find_producer(name)
    if node is None:
        return False
    if node.op_type in ("BipolarQuant", "Transpose"):
        return True
    if node.op_type != "Quant":
        return False
    scale, width = (np.ravel(model.get_initializer(i)) for i in (node.input[1], node.input[3]))
    options = attributes(node)
    one_bit = bool(options.get("signed", 1)) and np.any(width == 1)
    narrow = bool(options.get("narrow", 0)) and not options.get("signed", 1)
    return bool(np.any(scale != scale[0]) or np.any(width != width[0]) or one_bit or narrow)


def _has_holes(model, node) -> bool:
    options = attributes(node)
    group = options.get("group", 1)
    return (group != 1 and not _is_depthwise(model, node)) or any(d != 1 for d in options.get("dilations", [1]))


def _is_depthwise(model, node) -> bool:
    """One filter for each channel: hardware has a layer for it, which several filters for each channel have not."""
    group = attributes(node).get("group", 1)
    return 1 < group == model.get_tensor_shape(node.input[0])[1] == model.get_tensor_shape(node.input[1])[0]


def _skips_rows(model, node, values: np.ndarray) -> bool:
    """hls4ml 1.3.0 computes kernels of one row and several columns, and every depthwise kernel of one row, with its
    process for one dimension, which knows no vertical stride: such a kernel gets a second row of zeros, and the picture
    a row of padding."""
    options = attributes(node)
    rule, down = options.get("auto_pad", b"NOTSET"), options.get("strides", [1, 1])[0]
    one_row = values.shape[2] == 1 and (values.shape[3] > 1 or _is_depthwise(model, node))
    return down > 1 and one_row and rule in (b"NOTSET", b"VALID", b"")


def _dense_kernel(model, node, values: np.ndarray) -> np.ndarray | None:
    """(O, I/group, kH, kW) -> (O, I, kH', kW') with zeros between groups and between dilated taps, and below a single
    row that is moved by more than one."""
    options, channels = attributes(node), model.get_tensor_shape(node.input[0])[1]
    group, (down, right) = options.get("group", 1), options.get("dilations", [1, 1])
    outputs, inputs, height, width = values.shape
    if inputs * group != channels or outputs % group:
        return None
    rows = 2 if _skips_rows(model, node, values) else (height - 1) * down + 1
    last = (height - 1) * down + 1
    if _is_depthwise(model, node):
        spread = np.zeros((outputs, 1, rows, (width - 1) * right + 1))
        spread[:, :, :last:down, ::right] = values
        return spread
    dense = np.zeros((outputs, channels, rows, (width - 1) * right + 1))
    for g in range(group):
        own = slice(g * outputs // group, (g + 1) * outputs // group)
        dense[own, g * inputs : (g + 1) * inputs, :last:down, ::right] = values[own]
    return dense
