"""Scales that are no powers of two, carried beside the integers instead of in them.

Every tensor of the rewritten graph holds its codes on a power-of-two grid; what its real values are more than that, one
factor for the tensor or one per channel, is known here and multiplied where a chain of floating point begins, in front
of a quantiser: there it becomes thresholds like a BatchNormalization (:mod:`hls.thresholds`). The definition is: the
exact integer accumulator, times the product of all scales behind it (in float64, rounded to float32 once), then the
chain as qonnx runs it. qonnx itself multiplies and adds rounded products in float32, in any order: near a threshold its
own result may differ from this one, and verification tells how often it does.
"""

import json
import math

import numpy as np
from onnx import helper
from qonnx.custom_op.general.quant import quant

from hls.numerics import NotExact, attributes, log2_exact

#: Metadata key: {"input": factor, "output": factor} by which real values are more than what the network carries.
SCALES = "slimgate_scales"
#: Two scales are powers of two apart where float32 cannot tell: a scale of a bias is a product of two others.
_SAME = 2.0**-20
_SCALED = ("Quant", "BipolarQuant", "Trunc")


def factors(model) -> tuple[float, float]:
    """What the real input and output values of a prepared graph are more than its own."""
    told = json.loads(model.get_metadata_prop(SCALES) or "{}")
    return told.get("input", 1.0), told.get("output", 1.0)


def split(scale: float) -> tuple[float, int]:
    """(mantissa from 1 up to 2, exponent)."""
    mantissa, exponent = math.frexp(scale)
    return 2 * mantissa, exponent - 1


def pull_scales(model, moving, new_constant, renamed) -> None:
    """Rewrite a graph (NCHW), in place, whose quantisers have other scales than powers of two.

    ``moving(model)``: names of tensors that depend on the input; ``new_constant(model, hint, values)``: a quantised
    constant of these values; ``renamed(old, new)`` hears which weights take the place of which.
    """
    if any(_odd(model, node) for node in model.graph.node):
        _Pull(model, moving(model), new_constant, renamed).run()


def _odd(model, node) -> bool:
    scale = model.get_initializer(node.input[1]) if node.op_type in _SCALED else None
    return scale is not None and np.all(np.isfinite(scale)) and np.all(scale > 0) and any(
        log2_exact(float(s)) is None for s in np.ravel(scale))


def refuse_scales(model) -> None:
    """Raise NotExact for the first quantiser of a loaded graph whose scale is no power of two: for networks that are
    trained here, whose hardware and software must give one code and not nearly always the same."""
    for node in model.graph.node:
        if _odd(model, node):
            raise NotExact(node.name, _cause(model.get_initializer(node.input[1])),
                           "quantise with restrict_scaling_type = POWER_OF_TWO")


class _Pull:
    def __init__(self, model, moving: set[str], new_constant, renamed):
        self.model, self.moving, self.new_constant, self.renamed = model, moving, new_constant, renamed
        self.factor: dict[str, np.ndarray] = {model.graph.input[0].name: np.array(1.0)}
        self.cause: dict[str, str] = {}  # why a tensor has a factor
        self.told: dict[str, float] = {}

    def run(self) -> None:
        for node in list(self.model.graph.node):
            if any(name in self.moving for name in node.input):
                self._node(node)
        output = self.model.graph.output[0].name
        last = np.unique(self.factor.get(output, 1.0))
        if last.size > 1:
            raise NotExact(self.model.find_producer(output).name,
                           "the outputs of different classes have scales that are no powers of two apart",
                           "use one scale for all weights of the last layer, or quantise its output")
        self.told["output"] = float(last[0])
        self.model.set_metadata_prop(SCALES, json.dumps(self.told))

    def _node(self, node) -> None:
        sources = [name for name in node.input if name in self.moving]
        self.cause[node.output[0]] = next((self.cause[name] for name in sources if self.cause.get(name)), "")
        found = [self.factor[name] for name in sources]
        output = node.output[0]
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[0] in self.moving:
            return self._layer(node)
        if node.op_type in ("Add", "Concat") and len(sources) == len(node.input):
            if any(f.size > 1 and node.op_type == "Concat" for f in found) or any(
                not np.array_equal(np.broadcast_to(f, np.broadcast(f, found[0]).shape),
                                   np.broadcast_to(found[0], np.broadcast(f, found[0]).shape)) for f in found
            ):
                raise NotExact(node.name, "the scales of what it reads are no powers of two apart",
                               "give all of them the same quantiser (share one QuantIdentity)")
            self.factor[output] = found[0]
            return None
        if node.op_type == "Add" and (bias := self._bias(node.input[1 - list(node.input).index(sources[0])], found[0],
                                                         f"{node.name}_bias")):
            node.input[:] = [sources[0], bias]
            self.factor[output] = found[0]
            return None
        if node.op_type in ("Relu", "MaxPool", "Identity", "Pad", "Resize"):
            self.factor[output] = found[0]
            return None
        if node.op_type in ("Flatten", "Reshape", "Squeeze") and (
            found[0].size == 1 or len(self._shape(output)) == 2
        ):
            repeats = math.prod(self._shape(output)[1:]) // max(found[0].size, 1)
            self.factor[output] = found[0] if found[0].size == 1 else np.repeat(found[0], repeats)
            return None
        if node.op_type == "Quant" and sources[0] == self.model.graph.input[0].name and _odd(self.model, node):
            scale = np.ravel(self.model.get_initializer(node.input[1]))
            mantissa, exponent = split(float(scale[0]))
            if np.all(scale == scale[0]):
                self.told["input"] = mantissa
                name = f"{node.name}_carried"
                self.model.set_initializer(name, np.array(2.0**exponent, np.float32))
                node.input[1] = name
                self.factor[output], self.cause[output] = np.array(mantissa), _cause(scale)
                return None
        if np.any(found[0] != 1):
            node.input[list(node.input).index(sources[0])] = self._times(sources[0], found[0], node)
        self.factor[output] = np.array(1.0)
        if node.op_type in _SCALED and _odd(self.model, node):
            after = 4 if node.op_type == "Trunc" and len(node.input) == 6 else 1  # version 2 has a scale of its own
            scale = self.model.get_initializer(node.input[after])
            self.factor[output], self.cause[output] = np.array(split(float(np.ravel(scale)[0]))[0]), _cause(scale)
        return None

    def _shape(self, name: str) -> list[int]:
        return self.model.get_tensor_shape(name)

    def _times(self, source: str, factor: np.ndarray, reader) -> str:
        """Multiply a tensor by its factor in front of a node; the name of the product."""
        name, constant = f"{reader.name}_real", f"{reader.name}_scale"
        rank = len(self._shape(source))
        values = factor if factor.size == 1 else factor.reshape(1, -1, *[1] * (rank - 2))
        self.model.set_initializer(constant, values.astype(np.float32))
        made = helper.make_node("Mul", [source, constant], [name], name=f"{reader.name}_rescale",
                                doc_string=self.cause.get(source, ""))
        self.model.graph.node.insert(list(self.model.graph.node).index(reader), made)
        self.model.set_tensor_shape(name, self._shape(source))
        return name

    # ------------------------------------------------------------------ layers

    def _layer(self, node) -> None:
        source, output = self.factor[node.input[0]], node.output[0]
        if source.size > 1:
            raise NotExact(node.name, "it reads channels whose scales are no powers of two apart, unquantised",
                           "quantise the tensor in front of it")
        name, own = self._weights(node)
        node.input[1] = name
        factor = source * own
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if np.all(factor == 1) or bias is None:
            self.factor[output] = factor
            return
        carried = self._bias(bias, factor, f"{node.name}_bias")
        if carried is not None:
            node.input[2] = carried
            self.factor[output] = factor
            return
        # a bias that is on no grid of the accumulator's goes into the floating point behind it
        values = _values(self.model, bias)
        rank, shape = len(self._shape(output)), self._shape(output)
        if values is None:
            self.factor[output] = factor  # refused by the analysis: it is computed at run time
            return
        if node.op_type == "Gemm":
            node.input[2] = f"{node.name}_none"
            self.model.set_initializer(f"{node.name}_none", np.zeros(shape[1], np.float32))
        else:
            del node.input[2]
        spread = (1, -1, *[1] * (rank - 2))
        names = [f"{node.name}_sum", f"{node.name}_real", f"{node.name}_scale", f"{node.name}_offset"]
        spread_factor = factor if factor.size == 1 else factor.reshape(spread)
        self.model.set_initializer(names[2], spread_factor.astype(np.float32))
        offset = np.broadcast_to(np.ravel(values), shape[1]).reshape(spread)
        self.model.set_initializer(names[3], offset.astype(np.float32))
        node.output[0] = names[0]
        place = list(self.model.graph.node).index(node) + 1
        for inputs, result, kind in ((names[:1] + names[2:3], names[1], "Mul"), ([names[1], names[3]], output, "Add")):
            made = helper.make_node(kind, inputs, [result], name=f"{node.name}_{kind.lower()}",
                                    doc_string=self.cause[output])
            self.model.graph.node.insert(place, made)
            self.model.set_tensor_shape(result, shape)
            place += 1
        self.model.set_tensor_shape(names[0], shape)
        self.factor[output] = np.array(1.0)

    def _weights(self, node) -> tuple[str, np.ndarray]:
        """(constant of codes, factor of each output channel or one) of a layer's weights."""
        name = node.input[1]
        producer = self.model.find_producer(name)
        if producer is None or producer.op_type not in ("Quant", "BipolarQuant") or not _odd(self.model, producer):
            return name, np.array(1.0)
        values = _values(self.model, name)
        scale = np.asarray(self.model.get_initializer(producer.input[1]), np.float64)
        if values is None:
            return name, np.array(1.0)
        axis = 0 if node.op_type == "Conv" or attributes(node).get("transB") else values.ndim - 1
        if scale.size > 1 and ([1] * (values.ndim - scale.ndim) + list(scale.shape))[axis] != scale.size:
            raise NotExact(producer.name, "its scales are per input channel and no powers of two",
                           "use one scale for each output channel, or one for all")
        made = self.new_constant(self.model, f"{node.name}_weights", np.rint(values / scale))
        if made is None:
            return name, np.array(1.0)
        self.renamed(name, np.rint(values / scale))
        self.cause[node.output[0]] = self.cause[node.output[0]] or _cause(scale)
        return made, np.ravel(scale) if scale.size > 1 else scale.reshape(())

    def _bias(self, name: str, factor: np.ndarray, hint: str) -> str | None:
        """A constant of the bias on grids of the accumulator, where it has such; None where it has not."""
        values = _values(self.model, name)
        if values is None or not np.any(values):
            return name if values is not None else None
        if np.all(factor == 1):
            return name
        producer = self.model.find_producer(name)
        if producer is None or producer.op_type != "Quant":
            return None
        scale = np.ravel(np.asarray(self.model.get_initializer(producer.input[1]), np.float64))
        ratio = scale / np.ravel(factor)
        power = np.exp2(np.round(np.log2(ratio)))
        if np.any(np.abs(ratio / power - 1) > _SAME):
            return None
        flat = np.ravel(values)
        codes = np.rint(flat / np.broadcast_to(scale, flat.shape if scale.size in (1, flat.size) else scale.shape))
        return self.new_constant(self.model, hint, (codes * power).reshape(values.shape))


def _cause(scale) -> str:
    return f"the scale {np.ravel(np.asarray(scale, np.float32))[0]:.9g} is not a power of two"


def _values(model, name: str) -> np.ndarray | None:
    """A constant in float32 as qonnx computes it, its quantisers applied."""
    values = model.get_initializer(name)
    if values is not None:
        return np.asarray(values, np.float32).astype(np.float64)
    node = model.find_producer(name)
    if node is None or node.op_type not in ("Quant", "BipolarQuant"):
        return None
    inputs = [_values(model, i) for i in node.input]
    if any(i is None for i in inputs) or (node.op_type == "Quant" and np.any(inputs[2] != 0)):
        return None
    inputs = [i.astype(np.float32) for i in inputs]
    if node.op_type == "BipolarQuant":
        return (np.where(inputs[0] >= 0, np.float32(1), np.float32(-1)) * inputs[1]).astype(np.float64)
    options = attributes(node)
    rounding = options.get("rounding_mode", b"ROUND").decode()
    try:
        made = quant(*inputs, bool(options.get("signed", 1)), bool(options.get("narrow", 0)), rounding)
    except (ValueError, KeyError, AssertionError):  # a rounding mode or width that qonnx does not know
        return None
    return np.asarray(made, np.float64)
