"""Small QONNX files built node by node, computed in float64 by torch while they are built.

``Net`` writes what Brevitas would export (NCHW, Quant nodes in front of weights, biases and after activations) without
needing Brevitas, and keeps the value of every tensor for a few random samples: an oracle that shares no code with
``hls``, with qonnx or with the generated C++.

    net = Net((3, 4, 4))                         # channels, height, width
    x = net.relu_quant(net.conv(net.input, 4))
    model = prepared(net.finish(net.dense(net.flatten(x), 3)))
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as functional
from onnx import TensorProto, helper

from hls import graph

DOMAIN = "qonnx.custom_op.general"


class Net:
    """``shape``: (C, H, W) or (features,). ``low``/``high`` of the input codes follow from ``bits`` and ``signed``."""

    def __init__(self, shape=(3, 4, 4), *, bits=8, lsb=None, signed=False, samples=16, seed=0):
        self.random = np.random.default_rng(seed)
        self.shape, self.nodes, self.constants = tuple(shape), [], {}
        self.opset, self.qonnx = 20, 2  # versions of the operations
        self.values: dict[str, torch.Tensor] = {}
        self._shared: dict[tuple, str] = {}
        lsb = -bits if lsb is None else lsb
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        nchw = self.random.integers(low, high + 1, (samples, *shape))
        #: Input codes as they lie on the wire: channels last.
        self.codes = np.moveaxis(nchw, 1, -1).copy()
        self.values["input"] = torch.from_numpy(np.ldexp(nchw.astype(np.float64), lsb))
        self.input = self.quant("input", bits, lsb, signed=signed, name="input.quant")

    # ------------------------------------------------------------------ pieces

    def constant(self, values, name=None) -> str:
        """An initializer; without a name equal scalars are shared, as torch's exporter shares them."""
        values = np.asarray(values, np.float32)
        key = (values.shape, values.tobytes())
        if name is None and key in self._shared:
            return self._shared[key]
        name = name or self._shared.setdefault(key, f"constant_{len(self.constants)}")
        self.constants[name] = values
        return name

    def node(self, operation, inputs, value, *, name=None, domain="", **attributes) -> str:
        """Any node; ``value`` is what it computes."""
        name = name or f"{operation.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [name], name=name, domain=domain, **attributes))
        self.values[name] = value
        return name

    def quant(
        self, x, bits, lsb=None, *, signed=True, narrow=False, rounding="ROUND", zero_point=0.0, scale=None, name=None
    ) -> str:
        """A Quant node. ``lsb`` None: the finest that holds nine tenths of the values; ``scale`` overrides it."""
        value = self._of(x)
        low = (-(2 ** (bits - 1)) + narrow) if signed else 0
        high = 2 ** (bits - signed) - 1 - (narrow and not signed)
        if lsb is None:
            typical = float(torch.quantile(value.abs().flatten(), 0.9)) or 1.0
            lsb = int(np.ceil(np.log2(typical / max(high, 1))))
        if value is not None:
            scaled = torch.ldexp(value, torch.tensor(-lsb))
            value = torch.ldexp(
                (torch.round if rounding == "ROUND" else torch.floor)(scaled).clamp(low, high), torch.tensor(lsb)
            )
        scale = self.constant(2.0**lsb if scale is None else scale)
        inputs = [x, scale, self.constant(zero_point), self.constant(bits)]
        return self.node(
            "Quant",
            inputs,
            value,
            name=name,
            domain=DOMAIN,
            signed=int(signed),
            narrow=int(narrow),
            rounding_mode=rounding,
        )

    def weights(self, shape, bits, lsb, name) -> str:
        """Random quantised weights over the whole range, zeros included."""
        limit = 2 ** (bits - 1) - 1
        codes = self.random.integers(-limit, limit + 1, shape)
        values = np.ldexp(codes.astype(np.float64), lsb)
        return self.quant(self.constant(values, f"{name}.weight"), bits, lsb, narrow=True)

    def bias(self, count, lsb, name, bits=16, most=200) -> str:
        codes = self.random.integers(-most, most + 1, count)
        return self.quant(self.constant(np.ldexp(codes.astype(np.float64), lsb), f"{name}.bias"), bits, lsb)

    # ------------------------------------------------------------------ layers

    def conv(
        self,
        x,
        filters,
        kernel=3,
        *,
        stride=1,
        pad=None,
        bits=4,
        lsb=-3,
        bias=True,
        bias_lsb=-11,
        name=None,
        weights=None,
        **attributes,
    ) -> str:
        """``pad``: one number, or ONNX's (top, left, bottom, right); None keeps the size of odd kernels."""
        name = name or f"conv{len(self.nodes)}"
        pads = [kernel // 2 if pad is None else pad] * 4 if pad is None or isinstance(pad, int) else list(pad)
        channels = self.values[x].shape[1]
        w = weights or self.weights((filters, channels // attributes.get("group", 1), kernel, kernel), bits, lsb, name)
        b = self.bias(filters, bias_lsb, name) if bias is True else bias
        attributes = {
            "group": 1,
            "strides": [stride] * 2,
            "dilations": [1, 1],
            "kernel_shape": [kernel] * 2,
            "pads": pads,
        } | attributes
        top, left, bottom, right = pads
        value = functional.conv2d(
            functional.pad(self.values[x], (left, right, top, bottom)), self._of(w), self._of(b) if b else None,
            stride=stride, groups=attributes["group"], dilation=attributes["dilations"])  # fmt: skip
        return self.node("Conv", [x, w, *([b] if b else [])], value, name=f"{name}.Conv", **attributes)

    def dense(
        self, x, outputs, *, bits=4, lsb=-3, bias=True, bias_lsb=-7, gemm=True, transposed=True, name=None, weights=None
    ) -> str:
        """Gemm as torch exports it (``transposed``: weights (out, in)), or MatMul and Add."""
        name = name or f"dense{len(self.nodes)}"
        inputs = self.values[x].shape[1]
        transposed = transposed and gemm
        w = weights or self.weights((outputs, inputs) if transposed else (inputs, outputs), bits, lsb, name)
        b = self.bias(outputs, bias_lsb, name) if bias is True else bias
        product = self.values[x] @ (self._of(w).T if transposed else self._of(w))
        total = product + self._of(b) if b else product
        if gemm:
            return self.node(
                "Gemm",
                [x, w, b or self.constant(np.zeros(outputs))],
                total,
                name=f"{name}.Gemm",
                transB=int(transposed),
                alpha=1.0,
                beta=1.0,
                transA=0,
            )
        made = self.node("MatMul", [x, w], product, name=f"{name}.MatMul")
        return self.node("Add", [made, b], total, name=f"{name}.Add") if b else made

    def relu(self, x) -> str:
        return self.node("Relu", [x], self.values[x].clamp(min=0))

    def relu_quant(self, x, bits=4, lsb=None) -> str:
        return self.quant(self.relu(x), bits, lsb, signed=False)

    def maxpool(self, x, size=2, stride=None, *, pad=0, dilation=1, ceil=False, **attributes) -> str:
        stride = stride or size
        value = functional.max_pool2d(self.values[x], size, stride, pad, dilation, ceil)
        attributes = {
            "kernel_shape": [size] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
            "dilations": [dilation] * 2,
            "ceil_mode": int(ceil),
        } | attributes
        return self.node("MaxPool", [x], value, **attributes)

    def flatten(self, x, *, reshape=False) -> str:
        value = self.values[x].flatten(1)
        if reshape:
            shape = f"shape{len(self.nodes)}"
            self.constants[shape] = np.array([1, value.shape[1]], np.int64)
            return self.node("Reshape", [x, shape], value)
        return self.node("Flatten", [x], value, axis=1)

    def add(self, x, y) -> str:
        return self.node("Add", [x, y], self.values[x] + self._of(y))

    def head(self, x, outputs=2) -> "Net":
        """Flatten and a dense layer, and done."""
        return self.finish(self.dense(self.flatten(x), outputs, name="head"))

    def _of(self, name) -> torch.Tensor:
        return self.values[name] if name in self.values else torch.tensor(self.constants[name], dtype=torch.float64)

    # ------------------------------------------------------------------ whole

    def finish(self, output) -> "Net":
        self.output, shape = output, self.values[output].shape[1:]
        sides = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, *s])
            for n, s in (("input", self.shape), (output, shape))
        ]
        made = helper.make_graph(
            self.nodes,
            "net",
            sides[:1],
            sides[1:],
            [onnx.numpy_helper.from_array(v, n) for n, v in self.constants.items()],
        )
        opsets = [helper.make_opsetid(DOMAIN, self.qonnx), helper.make_opsetid("", self.opset)]
        self.proto = helper.make_model(made, opset_imports=opsets, ir_version=10)
        return self

    def save(self, path) -> Path:
        onnx.save(self.proto, str(path))
        return Path(path)

    @property
    def outputs(self) -> np.ndarray:
        """Values (N, ...) of the output in float64, channels last."""
        return np.moveaxis(self.values[self.output].numpy(), 1, -1)

    @property
    def inputs(self) -> np.ndarray:
        """Values (N, C, H, W) of the input, as the file takes them."""
        return self.values["input"].numpy()


def loaded(net: Net):
    """The cleaned NCHW graph, read back from a file."""
    with tempfile.TemporaryDirectory() as folder:
        return graph.load(net.save(Path(folder) / "net.onnx"))


def prepared(net: Net):
    return graph.prepare(loaded(net))


# ---------------------------------------------------------------------- networks that several tests use


def tiny(seed=0, shape=(3, 4, 4), filters=4, outputs=3, **options) -> Net:
    """conv 3x3, ReLU, max-pool, dense: seconds to compile."""
    net = Net(shape, seed=seed, **options)
    x = net.maxpool(net.relu_quant(net.conv(net.input, filters, name="stem.conv")))
    return net.finish(net.dense(net.flatten(x), outputs, bias_lsb=-7, name="head"))


def residual(seed=0, **options) -> Net:
    """Two blocks, all scales different: one shortcut is the fork itself, one has a strided 1x1 convolution."""
    net = Net((2, 6, 6), seed=seed, **options)
    x = net.relu_quant(net.conv(net.input, 4, name="stem"))
    y = net.relu_quant(net.conv(x, 3, name="block1.conv1", bias_lsb=-6))
    y = net.quant(net.conv(y, 4, name="block1.conv2", bias_lsb=-6), 6)
    x = net.relu_quant(net.add(y, x))
    y = net.relu_quant(net.conv(x, 4, stride=2, name="block2.conv1", bias_lsb=-6))
    y = net.quant(net.conv(y, 5, name="block2.conv2", bias_lsb=-6), 6)
    shortcut = net.quant(net.conv(x, 5, 1, stride=2, pad=0, name="block2.shortcut", bias_lsb=-6), 5)
    x = net.relu_quant(net.add(y, shortcut))
    return net.finish(net.dense(net.flatten(net.maxpool(x, 3)), 4, bias_lsb=-6, name="head"))
