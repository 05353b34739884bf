"""Floating-point arithmetic between an accumulator and a quantiser, as integer thresholds.

A chain such as BatchNormalization, Relu, Quant is a monotone function of one integer per channel. It is evaluated, by
qonnx itself, for every value the accumulator can take; where its output steps up is a threshold. Where these values are
too many, each threshold is searched by bisection. What comes out is a MultiThreshold node of QONNX and exact by
construction. A channel that falls instead of rising (negative gamma) gets the signs of its weights turned round first,
or a layer of signs. A chain that does not end in a quantiser is left, and refused later.
"""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from hls.layout import DOMAIN
from hls.lower import QUANT_DOMAIN, constant_values, new_constant
from hls.numerics import FLOAT32_EXACT, OPERATORS, Analysis, Fixed, NotExact, attributes, quantizer_of
from hls.scales import split

#: Values of one chain, all channels together, up to which every one is evaluated.
MOST_VALUES = 2**24
#: Thresholds of one channel: a 12-bit quantiser has 4095, and a channel's table of them fills memory blocks already.
MOST_STEPS = 4095
#: Nodes that end a chain.
QUANTIZERS = ("Quant", "BipolarQuant", "Trunc")
_FLOATING = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Relu")


def insert_thresholds(model) -> None:
    """Replace, in place, every chain of a prepared graph that has an exact form."""
    while _insert_one(model):
        pass


def settle_padding(model) -> None:
    """Give every Pad with minus infinity, in place, the lowest value that its input takes: no maximum sees it."""
    analysis, _ = _known(model)
    for node in model.graph.node:
        if node.op_type == "Pad" and node.input[0] in analysis.tensors and len(node.input) == 3:
            value, source = model.get_initializer(node.input[2]), analysis.tensors[node.input[0]]
            if value == -np.inf:
                model.set_initializer(node.input[2], np.array(np.ldexp(float(source.min), source.lsb), np.float32))


def _known(model) -> tuple[Analysis, object]:
    """What is known of a graph up to the first node that is refused, and that node."""
    analysis = Analysis()
    for node in model.graph.node:
        operator = OPERATORS.get(node.op_type)
        try:
            if operator is None:
                raise NotExact(node.name, "unknown", "")
            analysis.tensors[node.output[0]] = operator(model, node, analysis)
        except NotExact:
            return analysis, node
    return analysis, None


def _insert_one(model) -> bool:
    analysis, node = _known(model)
    if node is None or node.input[0] not in analysis.tensors:
        return False
    return _replace(model, node, analysis.tensors[node.input[0]])


def _chain(model, node) -> list | None:
    """The nodes from ``node`` to the quantiser, each the only reader of the one before."""
    found = []
    while True:
        found.append(node)
        if node.op_type in QUANTIZERS:
            return found
        if node.op_type not in _FLOATING or any(model.get_initializer(name) is None for name in node.input[1:]):
            return None
        readers = model.find_consumers(node.output[0])
        if len(readers) != 1 or node.output[0] == model.graph.output[0].name:
            return None
        node = readers[0]


@dataclass(frozen=True)
class _Levels:
    """What a quantiser's results are: ``(low + n) * step``, n from 0 to ``steps``; low and steps None where it does not
    say itself. ``grid``: the power of two that stands for the step in hardware (:mod:`hls.scales`)."""

    step: float
    grid: float
    low: float | None
    steps: int | None


def _levels(model, node) -> _Levels | None:
    parameters = [model.get_initializer(name) for name in node.input[1:]]
    if any(p is None or np.size(p) != 1 or not np.all(np.isfinite(p)) for p in parameters):
        return None
    numbers = [float(np.ravel(p)[0]) for p in parameters]
    # inputs of a Trunc of version 1: scale, zero point, bits, bits after; of version 2: ..., scale after, bits after
    step = numbers[3] if node.op_type == "Trunc" and len(numbers) == 5 else numbers[0]
    if step <= 0:
        return None
    grid = 2.0 ** split(step)[1]
    # signed and of 1 bit: qonnx gives -1 and +1, as of a BipolarQuant
    sign = node.op_type == "Quant" and numbers[1:] == [0, 1] and attributes(node).get("signed", 1)
    if node.op_type == "BipolarQuant" or sign:
        return _Levels(2 * step, 2 * grid, -0.5, 1)
    if node.op_type == "Trunc":
        return None if numbers[1] != 0 else _Levels(step, grid, None, None)
    try:
        quantizer = quantizer_of(model, node, any_scale=True)
    except NotExact:
        return None
    return _Levels(step, grid, quantizer.lo, quantizer.hi - quantizer.lo)


def _replace(model, first, source: Fixed) -> bool:
    chain = _chain(model, first)
    levels = chain and _levels(model, chain[-1])
    if not levels or (levels.steps or 0) > MOST_STEPS:
        return False
    if max(source.max, -source.min) + 1 >= FLOAT32_EXACT:
        raise NotExact(first.name, f"it reads sums of up to {max(source.max, -source.min)} units, and only those below "
                                   "2**24, which float32 holds, become thresholds",
                       "use fewer bits for the weights, the bias or the inputs of the layer before it, or fewer inputs")
    shape = model.get_tensor_shape(first.input[0])
    low, high = (np.broadcast_to(np.ravel(b), shape[-1]) for b in (source.lo, source.hi))
    span, channels = int((high - low).max()) + 1, shape[-1]
    searched = span * channels > MOST_VALUES

    def results(steps: np.ndarray) -> np.ndarray | None:
        """What leaves the chain, in its steps, for the ``steps``-th code above the lowest of each channel."""
        codes = np.minimum(low + steps, high)
        values = _evaluate(model, chain, np.ldexp(codes.astype(np.float64), source.lsb))
        return None if values is None else values.astype(np.float64) / levels.step

    # every operation of a chain, rounded or not, is monotone: where there are many values, the ends tell the direction
    found = results(np.array([[0], [span - 1]]) if searched else np.arange(span)[:, None])
    if found is None:
        return False
    low_level = float(np.round(found.min())) if levels.low is None else levels.low
    counts = np.round(found - low_level).astype(np.int64)
    steps = int(counts.max()) if levels.steps is None else levels.steps
    if steps > MOST_STEPS or steps < 1:
        return False
    change = np.diff(counts, axis=0)
    falling = np.any(change < 0, axis=0)
    if np.any(falling & np.any(change > 0, axis=0)):
        return False
    if np.any(falling):
        return _turn_round(model, first, falling)
    # the first code that reaches a level; past the end for a level that none reaches
    if searched:
        wanted, below, above = np.arange(1, steps + 1)[:, None], np.full((steps, channels), -1), np.full(
            (steps, channels), span)  # fmt: skip
        while np.any(above - below > 1):
            middle = (above + below) // 2
            # a middle of -1 is one that is settled already
            reaches = np.round(results(np.maximum(middle, 0)) - low_level) >= wanted
            open_ = above - below > 1
            above, below = np.where(open_ & reaches, middle, above), np.where(open_ & ~reaches, middle, below)
        reached = above.T
    else:
        reached = np.stack([np.searchsorted(column, np.arange(1, steps + 1)) for column in counts.T])
    thresholds = np.where(reached < span, low[:, None] + reached, high[:, None] + 1)
    thresholds = np.minimum(thresholds, high[:, None] + 1)
    last = chain[-1]
    name = f"{last.name}_thresholds"
    model.set_initializer(name, np.ldexp(thresholds.astype(np.float64), source.lsb).astype(np.float32))
    made = helper.make_node("MultiThreshold", [first.input[0], name], [last.output[0]], name=f"{last.name}_levels",
                            domain=QUANT_DOMAIN, out_dtype="INT32", out_scale=levels.grid,
                            out_bias=low_level * levels.grid, data_layout={2: "NC", 4: "NHWC"}[len(shape)])  # fmt: skip
    place = list(model.graph.node).index(first)
    for node in chain:
        model.graph.node.remove(node)
    model.graph.node.insert(place, made)
    return True


def _evaluate(model, chain: list, values: np.ndarray) -> np.ndarray | None:
    """The chain on (n, channels) values, by qonnx."""
    channels = values.shape[1]
    nodes, constants, name = [], {}, "chain_in"
    for index, node in enumerate(chain):
        inputs = [name]
        for parameter in node.input[1:]:
            constant = model.get_initializer(parameter)
            # along the last axis, channels, and no other that happens to be as long
            per_channel = channels > 1 and constant is not None and np.shape(constant)[-1:] == (channels,)
            if constant is None or np.size(constant) != (channels if per_channel else 1):
                return None
            shape = (channels,) if per_channel or node.op_type == "BatchNormalization" else ()
            constants[parameter] = np.asarray(constant, np.float32).reshape(shape)
            inputs.append(parameter)
        name = f"chain_{index}"
        made = helper.make_node(node.op_type, inputs, [name], name=name)
        made.attribute.extend(a for a in node.attribute if a.name not in ("data_layout", "training_mode"))
        made.domain = QUANT_DOMAIN if node.op_type in QUANTIZERS else ""
        nodes.append(made)
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, values.shape) for n in ("chain_in", name)]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
    version = {entry.domain: entry.version for entry in model.model.opset_import}.get(QUANT_DOMAIN, 1)
    opsets = [helper.make_opsetid(QUANT_DOMAIN, version), helper.make_opsetid("", 20)]  # a Trunc means two things
    small = ModelWrapper(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    for parameter, constant in constants.items():
        small.set_initializer(parameter, constant)
    for index in range(len(nodes) - 1):
        small.set_tensor_shape(f"chain_{index}", list(values.shape))
    return execute_onnx(small, {"chain_in": values.astype(np.float32)})[name]


def _turn_round(model, first, channels: np.ndarray) -> bool:
    """Negate the accumulators of some channels and, in front of the chain, what arrives of them: both are exact.

    The layer in front does it with the signs of its weights; where there is none that only the chain reads (behind a
    pool, a join, a residual sum), a layer of one pixel with a sign for each channel.
    """
    sign, source = np.where(channels, -1.0, 1.0), first.input[0]
    turned = _negate_layer(model, source, sign) or _layer_of_signs(model, first, sign)
    if turned is None:
        return False
    back, factors = f"{first.name}_turned", f"{first.name}_signs"
    model.set_initializer(factors, sign.astype(np.float32))
    made = helper.make_node("Mul", [turned, factors], [back], name=f"{first.name}_back", doc_string=first.doc_string)
    model.graph.node.insert(list(model.graph.node).index(first), made)
    model.set_tensor_shape(back, model.get_tensor_shape(source))
    first.input[0] = back
    return True


def _negate_layer(model, source: str, sign: np.ndarray) -> str | None:
    """Turn the signs of the layer that makes ``source`` for one reader, which stays its name."""
    layer, edits = model.find_producer(source), []
    if layer is None or len(model.find_consumers(source)) > 1:
        return None
    if layer.op_type == "Add":
        edits.append((layer, 1, sign))
        layer = model.find_producer(layer.input[0])
        if layer is None or len(model.find_consumers(layer.output[0])) > 1:
            return None
    if layer.op_type == "MatMul":
        edits.append((layer, 1, sign[None, :]))
    elif layer.op_type == "Conv":
        edits.append((layer, 1, sign[:, None, None, None]))
        edits += [(layer, 2, sign)] if len(layer.input) > 2 and layer.input[2] else []
    else:
        return None
    values = [constant_values(model, node.input[index]) for node, index, _ in edits]
    if any(v is None for v in values):
        return None
    names = [new_constant(model, f"{node.name}_turned{index}", value * factor)
             for (node, index, factor), value in zip(edits, values, strict=True)]
    if any(name is None for name in names):
        return None
    for (node, index, _), name in zip(edits, names, strict=True):
        old = node.input[index]
        node.input[index] = name
        producer = model.find_producer(old)
        if producer is not None and not model.find_consumers(old):
            model.graph.node.remove(producer)
    return source


def _layer_of_signs(model, first, sign: np.ndarray) -> str | None:
    source, shape = first.input[0], model.get_tensor_shape(first.input[0])
    pictures, name = len(shape) == 4, f"{first.name}_sign_layer"
    weights = new_constant(model, name, sign[:, None, None, None] if pictures else np.diag(sign))
    if weights is None:
        return None
    options = {"domain": DOMAIN, "group": len(sign), "dilations": [1, 1], "kernel_shape": [1, 1], "strides": [1, 1],
               "pads": [0, 0, 0, 0]} if pictures else {}  # fmt: skip
    made = helper.make_node("Conv" if pictures else "MatMul", [source, weights], [name], name=name, **options)
    model.graph.node.insert(list(model.graph.node).index(first), made)
    model.set_tensor_shape(name, shape)
    return name
