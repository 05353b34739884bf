"""What stands before the first quantiser: the host computes it, the wire carries the codes behind that quantiser.

A file may scale its pictures (``2 * x - 1``), normalize or flatten them before it quantises them. That is arithmetic in
floating point on numbers that no grid is known for, so it stays on the host, which executes these nodes of the file,
quantiser included, as they are. So does a BipolarQuant, which gives every number a sign: what arrives is -1 or +1.
"""

import copy
import json

import numpy as np
from onnx import TensorProto, helper

from hls.numerics import log2_exact

#: Metadata key: what the host does before the network (:func:`front_operations`).
FRONT = "slimgate_front"
_ARITHMETIC = ("Mul", "Div", "Add", "Sub", "BatchNormalization", "Clip", "Neg")
_SHAPES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout")


def front_operations(model) -> list[str]:
    """The operations of a prepared graph that were left to the host, quantiser last; empty where it only quantises."""
    return json.loads(model.get_metadata_prop(FRONT) or "[]")


def _chain(model) -> list:
    """The nodes from the input to the first quantiser; empty where there is nothing but a Quant or a change of shape,
    or anything that is no such chain."""
    name, found = model.graph.input[0].name, []
    while True:
        readers = model.find_consumers(name)
        if len(readers) != 1 or name == model.graph.output[0].name or readers[0].input[0] != name:
            return []
        node = readers[0]
        if any(i and model.get_initializer(i) is None for i in node.input[1:]):
            return []
        found.append(node)
        if node.op_type in ("Quant", "BipolarQuant"):
            return found if node.op_type == "BipolarQuant" or any(n.op_type in _ARITHMETIC for n in found) else []
        if node.op_type not in _ARITHMETIC + _SHAPES:
            return []
        name = node.output[0]


def front_of(model):
    """The part of a cleaned file that the host executes, as a graph of its own; None where it only quantises."""
    chain = _chain(model)
    if not chain:
        return None
    front, kept = copy.deepcopy(model), {node.name for node in chain}
    for node in [n for n in front.graph.node if n.name not in kept]:
        front.graph.node.remove(node)
    name = chain[-1].output[0]
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, model.get_tensor_shape(name))
    for known in [known for known in front.graph.value_info if known.name == name]:
        front.graph.value_info.remove(known)
    front.graph.output[0].CopyFrom(info)
    return front


def cut_front(model) -> None:
    """Let the graph begin at its first quantiser, in place; a BipolarQuant there becomes a Quant of two bits, which
    changes neither -1 nor +1."""
    chain = _chain(model)
    if not chain:
        return
    told, last, source = [node.op_type for node in chain], chain[-1], model.graph.input[0].name
    if last.op_type == "BipolarQuant":
        scale = model.get_initializer(last.input[1])
        if np.size(scale) != 1 or log2_exact(float(np.ravel(scale)[0])) is None:
            return  # refused by name
        names = [f"{last.name}_zero", f"{last.name}_bits"]
        for name, value in zip(names, (0.0, 2.0), strict=True):
            model.set_initializer(name, np.float32(value).reshape(()))
        made = helper.make_node("Quant", [last.input[0], last.input[1], *names], list(last.output), name=last.name,
                                domain=last.domain, signed=1, narrow=1, rounding_mode="ROUND")  # fmt: skip
        place = list(model.graph.node).index(last)
        model.graph.node.remove(last)
        model.graph.node.insert(place, made)
        last = model.graph.node[place]
    shape = model.get_tensor_shape(last.input[0])
    for node in chain[:-1]:
        model.graph.node.remove(node)
    last.input[0] = source
    model.set_tensor_shape(source, shape)
    model.set_metadata_prop(FRONT, json.dumps(told))
