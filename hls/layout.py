"""The layout of a network on hardware: pixels as they lie on the wire, all channels of one after the other.

Every tensor is told where its axes lie (pictures: N, H, W, C) or in which order its values stand (vectors that were
pictures), and every node is rewritten for what it reads. No Transpose is left: one that the file holds only changes
where the axes of its result lie, a Flatten only the order of values, which the rows of the weights behind it follow,
each layer's on a copy of its own.
"""

import json
import math

import numpy as np
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper

from hls.numerics import NotExact, attributes

#: Metadata key: {"shape": of one sample as the network sees it, "axes": their order on the wire, N included, "output":
#: the same of the result}.
WIRE = "slimgate_wire"
#: Where the axes of a picture lie: N, H, W, C.
CHANNELS_LAST = (0, 2, 3, 1)
DOMAIN = "qonnx.custom_op.channels_last"
#: Nodes that treat every value alike, with constants that follow the layout.
ELEMENTWISE = ("Quant", "BipolarQuant", "Trunc", "Relu", "Identity", "Add", "Sub", "Mul", "Div")
_WINDOWED = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Upsample", "Pad")
#: Nodes that read a picture as a vector.
_FLATTENING = ("Flatten", "Reshape", "Squeeze")


def channels_last(model: ModelWrapper) -> None:
    """Rewrite a cleaned graph, in place. Raises :class:`~hls.numerics.NotExact` where axes meet that do not match."""
    _Layout(model).run()


class _Layout:
    def __init__(self, model: ModelWrapper):
        self.model = model
        self.shapes: dict[str, list[int]] = {}  # of moving tensors, as the file has them
        self.axes: dict[str, tuple[int, ...]] = {}  # pictures: stored = file's, transposed so
        self.order: dict[str, np.ndarray | None] = {}  # vectors: stored = file's values[order]
        self.constants: list = []  # nodes of rearranged constants, in their order

    def run(self) -> None:
        self._register_domain()
        source = self.model.graph.input[0].name
        shape = self.model.get_tensor_shape(source)
        self._know(source, shape, axes=self._axes_of_input(source, len(shape)))
        for node in list(self.model.graph.node):
            if any(name in self.shapes for name in node.input):
                self._node(node)
        for node in reversed(self.constants):
            self.model.graph.node.insert(0, node)
        output = self.model.graph.output[0].name
        if output not in self.shapes:
            return  # told by the analysis
        result = self.axes.get(output)
        if self.order.get(output) is not None:
            last = self.model.find_producer(output)
            raise NotExact(last.name, "the network's output is a flattened picture read by other nodes too",
                           "give the picture out as it is")
        told = {"shape": shape[1:], "axes": list(self.axes.get(source, range(len(shape))))}
        told["output"] = {"shape": self.shapes[output][1:], "axes": list(result or range(len(self.shapes[output])))}
        self.model.set_metadata_prop(WIRE, json.dumps(told))
        for name, shape in self.shapes.items():
            axes = self.axes.get(name)
            self.model.set_tensor_shape(name, [shape[i] for i in axes] if axes else list(shape))

    def _axes_of_input(self, name: str, rank: int) -> tuple[int, ...] | None:
        """Channels last, also where the file itself turns its quantised input first."""
        if rank != 4:
            return None
        readers = self.model.find_consumers(name)
        while len(readers) == 1 and readers[0].op_type in ELEMENTWISE:
            readers = self.model.find_consumers(readers[0].output[0])
        if readers and all(node.op_type == "Transpose" for node in readers):
            turned = _permutation(readers[0], rank)
            return tuple(turned[axis] for axis in CHANNELS_LAST)
        return CHANNELS_LAST

    def _know(self, name: str, shape, axes=None, order=None) -> None:
        self.shapes[name] = list(shape)
        if axes is not None:
            self.axes[name] = tuple(axes)
        self.order[name] = order

    # ------------------------------------------------------------------ nodes

    def _node(self, node) -> None:
        moving = [name for name in node.input if name in self.shapes]
        shapes = [self.model.get_tensor_shape(name) for name in node.output]
        axes, order = self.axes.get(moving[0]), self.order.get(moving[0])
        if node.op_type == "Transpose":
            return self._transpose(node, moving[0], shapes[0])
        if node.op_type in _FLATTENING and len(shapes[0]) != 4:
            return self._flatten(node, moving[0], shapes[0])
        if node.op_type in _FLATTENING:
            if shapes[0] != self.shapes[moving[0]]:
                raise NotExact(node.name, f"it makes {self.shapes[moving[0]]} a picture of {shapes[0]}",
                               "reshape at the network's input only, where the host does it")
            self._replace(node, "Identity")
            return self._know(node.output[0], shapes[0], axes, order)
        if any(self.axes.get(name) != axes for name in moving):
            raise NotExact(node.name, "the tensors it reads have their axes in different places",
                           "transpose both of them, or none")
        if node.op_type == "Concat":
            return self._concat(node, moving, shapes[0])
        if any(not np.array_equal(self.order.get(name), order) for name in moving):
            raise NotExact(node.name, "the vectors it reads are flattened pictures of different shapes",
                           "bring the pictures to one shape before they are flattened")
        if node.op_type in (*_WINDOWED, "BatchNormalization") and axes not in (None, CHANNELS_LAST):
            raise NotExact(node.name, "a Transpose before it puts other axes in the place of channels and pixels",
                           "remove the Transpose")
        if node.op_type == "MatMul" and len(self.shapes[moving[0]]) != 2:
            raise NotExact(node.name, f"it multiplies along the last axis of {self.shapes[moving[0]]}",
                           "flatten to one vector for each sample first, or use a convolution")
        if node.op_type == "MatMul" and order is not None:
            node.input[1] = self._constant(node.input[1], lambda v: v[order] if v.shape[0] > 1 else v)
            order = None
        elif node.op_type == "Conv" and axes is not None:
            node.input[1] = self._constant(node.input[1], lambda v: v.transpose(CHANNELS_LAST))
            node.domain = DOMAIN
        elif node.op_type in ("MaxPool", "BatchNormalization") and axes is not None:
            node.domain = DOMAIN
        elif node.op_type == "BatchNormalization" and order is not None:
            for index in range(1, 5):
                node.input[index] = self._constant(node.input[index], lambda v: v[order])
        elif node.op_type == "Pad" and axes is not None:
            node.input[1] = self._constant(node.input[1], lambda v: v.reshape(2, -1)[:, list(axes)].ravel())
        elif node.op_type in ("Resize", "Upsample") and axes is not None:
            for index, name in enumerate(node.input):
                if index and name and np.size(self.model.get_initializer(name)) == 4:
                    node.input[index] = self._constant(name, lambda v: v[list(axes)])
        elif node.op_type in ELEMENTWISE and (axes is not None or order is not None):
            rank = len(self.shapes[moving[0]])
            for index, name in enumerate(node.input):
                if name and name not in self.shapes:
                    node.input[index] = self._constant(name, lambda v: _follow(v, rank, axes, order))
        for name, shape in zip(node.output, shapes, strict=True):
            self._know(name, shape, axes if len(shape) == 4 else None, order if len(shape) == 2 else None)
        return None

    def _transpose(self, node, source: str, shape) -> None:
        permutation = _permutation(node, len(shape))
        if source not in self.axes:
            raise NotExact(node.name, f"it transposes a tensor of {len(shape)} axes",
                           "transpose pictures of four axes (N, C, H, W) only")
        self._replace(node, "Identity")
        self._know(node.output[0], shape, [permutation.index(axis) for axis in self.axes[source]])

    def _replace(self, node, operation: str, **options) -> None:
        """Put a node of one input and the same output in the place of one that means nothing else here."""
        made = helper.make_node(operation, [node.input[0]], [node.output[0]], name=node.name, **options)
        place = list(self.model.graph.node).index(node)
        self.model.graph.node.remove(node)
        self.model.graph.node.insert(place, made)

    def _flatten(self, node, source: str, shape) -> None:
        before, axes, order = self.shapes[source], self.axes.get(source), self.order.get(source)
        if shape[0] != before[0] or (axes is not None and axes[0] != 0):
            raise NotExact(node.name, "it mixes samples of a batch", "flatten from axis 1 on")
        if len(shape) != 2:
            raise NotExact(node.name, f"it makes {before} a tensor of {len(shape)} axes",
                           "flatten to one vector for each sample")
        if axes is not None:
            positions = np.arange(math.prod(before[1:])).reshape(before[1:])
            positions = positions.transpose([axis - 1 for axis in axes[1:]]).ravel()
            order = None if np.array_equal(positions, np.arange(positions.size)) else positions
        self._replace(node, "Flatten", axis=1)
        self._know(node.output[0], shape, order=order)

    def _concat(self, node, moving: list[str], shape) -> None:
        axis = attributes(node)["axis"] % len(shape)
        axes = self.axes.get(moving[0])
        if len(moving) != len(node.input):
            raise NotExact(node.name, "it joins a constant to a tensor", "join tensors that are computed")
        if axes is not None:
            self._set(node, "axis", axes.index(axis))
            return self._know(node.output[0], shape, axes)
        orders, start = [], 0
        for name in moving:
            size = self.shapes[name][-1]
            own = self.order.get(name)
            orders.append(start + (np.arange(size) if own is None else own))
            start += size
        plain = axis != len(shape) - 1 or all(self.order.get(name) is None for name in moving)
        return self._know(node.output[0], shape, order=None if plain else np.concatenate(orders))

    @staticmethod
    def _set(node, name: str, value) -> None:
        for old in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(old)
        node.attribute.append(helper.make_attribute(name, value))

    def _register_domain(self) -> None:
        imports = {entry.domain: entry.version for entry in self.model.model.opset_import}
        if DOMAIN not in imports:
            version = imports.get("", imports.get("ai.onnx", 1))
            self.model.model.opset_import.append(helper.make_opsetid(DOMAIN, version))

    # ------------------------------------------------------------------ constants

    def _constant(self, name: str, change) -> str:
        """A copy of a constant, its quantisers included, with its values and their parameters rearranged."""
        values, node = self.model.get_initializer(name), self.model.find_producer(name)
        copy = f"{name}_laid{len(self.constants)}_{len(self.model.graph.initializer)}"
        if values is not None:
            if np.size(values) > 1:
                self.model.set_initializer(copy, np.ascontiguousarray(change(values)))
            return copy if np.size(values) > 1 else name
        if node is None or name in self.shapes:
            return name
        shape = self.model.get_tensor_shape(name)

        def raised(values):  # parameters broadcast against what they belong to
            return change(values.reshape([1] * (len(shape) - values.ndim) + list(values.shape)))

        inputs = [self._constant(i, raised if index else change) for index, i in enumerate(node.input)]
        made = helper.make_node(node.op_type, inputs, [copy], name=f"{node.name}_laid", domain=node.domain)
        made.attribute.extend(node.attribute)
        self.constants.append(made)
        self.model.set_tensor_shape(copy, list(change(np.empty(shape)).shape))
        return copy


def _permutation(node, rank: int) -> list[int]:
    return list(attributes(node).get("perm", range(rank)[::-1]))


def _follow(values: np.ndarray, rank: int, axes, order) -> np.ndarray:
    """A constant that broadcasts against a tensor of ``rank`` axes, after that tensor was laid out anew."""
    values = values.reshape([1] * (rank - values.ndim) + list(values.shape))
    if axes is not None:
        return values.transpose(axes)
    return values[..., order] if values.shape[-1] > 1 else values
