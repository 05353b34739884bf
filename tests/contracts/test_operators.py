"""Every operation with every attribute that the documentation promises: C simulation gives torch's codes, all of them.

Each case is a network of its own, so that a failing one names itself. ``CASES`` is read by the documentation's test:
every row of ``docs/operators.md`` names its evidence here.
"""

import copy
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from boards.errors import SlimgateError
from hls import convert, csim, dataflow, generated, graph, numerics, scales
from hls.lower import host_operations
from hls.reference import Reference
from tests.graphs import DOMAIN, Net, prepared
from tests.hil.converted import PART, convert_net

#: Compiling takes most of the time; what the C++ means does not depend on the level.
FLAGS = ("-O0", *csim.FLAGS[1:])


class Wide(Net):
    """More of ONNX than ``Net`` needs for the networks of this project."""

    def kernel(self, shape, *, bits=4, lsb=-3, name=None, scales=None, bipolar=False) -> str:
        """Quantised weights; ``scales``: exponents, one per output channel."""
        name = name or f"kernel{len(self.nodes)}"
        if bipolar:
            return self.bipolar(self.constant(self.random.normal(size=shape), f"{name}.weight"), lsb)
        if scales is None:
            return self.weights(shape, bits, lsb, name)
        limit = 2 ** (bits - 1) - 1
        codes = self.random.integers(-limit, limit + 1, shape).astype(np.float64)
        factors = 2.0 ** np.reshape(scales, (-1, *[1] * (len(shape) - 1)))
        made = self.constant(codes * factors, f"{name}.weight")
        inputs = [made, self.constant(factors), self.constant(0.0), self.constant(bits)]
        return self.node("Quant", inputs, torch.from_numpy(codes * factors), domain=DOMAIN, signed=1, narrow=1,
                         rounding_mode="ROUND")  # fmt: skip

    def bipolar(self, x, lsb=0) -> str:
        value = torch.where(self._of(x) >= 0, 1.0, -1.0).double() * 2.0**lsb
        return self.node("BipolarQuant", [x, self.constant(2.0**lsb)], value, domain=DOMAIN)

    def one_bit(self, x, lsb=0) -> str:
        """A signed Quant of 1 bit: qonnx gives -1 and +1."""
        value = torch.where(self._of(x) >= 0, 1.0, -1.0).double() * 2.0**lsb
        inputs = [x, self.constant(2.0**lsb), self.constant(0.0), self.constant(1)]
        return self.node("Quant", inputs, value, domain=DOMAIN, signed=1, narrow=0, rounding_mode="ROUND")

    def convolve(
        self, x, filters, kernel=(3, 3), *, strides=None, pads=None, dilations=None, group=1, bias=True, **options
    ) -> str:
        """Convolution of any rank; ``pads`` as in ONNX."""
        rank = len(kernel)
        strides, dilations, pads = strides or [1] * rank, dilations or [1] * rank, pads or [0] * 2 * rank
        w = self.kernel((filters, self.values[x].shape[1] // group, *kernel), **options)
        b = self.bias(filters, -11, options.get("name") or f"bias{len(self.nodes)}") if bias else None
        sides = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
        value = {1: functional.conv1d, 2: functional.conv2d}[rank](
            functional.pad(self.values[x], sides), self._of(w), self._of(b) if b else None, tuple(strides), 0,
            tuple(dilations), group)  # fmt: skip
        return self.node("Conv", [x, w, *([b] if b else [])], value, group=group, strides=strides, dilations=dilations,
                         pads=pads, kernel_shape=list(kernel))  # fmt: skip

    def average(self, x, kernel, strides=None) -> str:
        strides = strides or kernel
        pool = functional.avg_pool2d if len(kernel) == 2 else functional.avg_pool1d
        value = pool(self.values[x], tuple(kernel), tuple(strides))
        return self.node("AveragePool", [x], value, kernel_shape=list(kernel), strides=list(strides))

    def mean(self, x, *, keepdims=True, attribute=False) -> str:
        """ReduceMean over the pixels, its axes an input, or an attribute as before opset 18."""
        value = self.values[x].mean((2, 3), keepdim=keepdims)
        if attribute:
            self.opset = 17
            return self.node("ReduceMean", [x], value, axes=[2, 3], keepdims=int(keepdims))
        self.constants["pixels"] = np.array([-1, 2], np.int64)
        return self.node("ReduceMean", [x, "pixels"], value, keepdims=int(keepdims))

    def trunc(self, x, lsb, bits, after, *, version=2, rounding="FLOOR", signed=False) -> str:
        """Trunc as qonnx defines it: to ``after`` bits of ``bits``, its codes on the old scale (version 1) or a new."""
        codes = torch.round(torch.ldexp(self.values[x], torch.tensor(-lsb)))
        codes = torch.ldexp(codes, torch.tensor(after - bits))
        codes = {"FLOOR": torch.floor, "ROUND": torch.round}[rounding](codes)
        scale, up = self.constant(2.0**lsb), bits - after
        inputs = [x, scale, self.constant(0.0), self.constant(float(bits))]
        if version == 2:
            inputs.append(self.constant(2.0 ** (lsb + up)))
            codes = codes.clamp(-(2 ** (after - 1)) if signed else 0, 2 ** (after - signed) - 1)
        options = {"signed": int(signed), "narrow": 0} if version == 2 else {}
        value = torch.ldexp(codes, torch.tensor(lsb + up * (version == 2)))
        self.qonnx = version
        return self.node("Trunc", [*inputs, self.constant(float(after))], value, domain=DOMAIN, rounding_mode=rounding,
                         **options)  # fmt: skip

    def global_average(self, x) -> str:
        axes = tuple(range(2, self.values[x].dim()))
        return self.node("GlobalAveragePool", [x], self.values[x].mean(axes, keepdim=True))

    def pool(self, x, kernel, strides=None, pads=None) -> str:
        """``pads`` as in ONNX: what lies outside is less than everything."""
        rank, strides = len(kernel), strides or kernel
        pads = pads or [0] * 2 * rank
        sides = [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])]
        pool = functional.max_pool2d if rank == 2 else functional.max_pool1d
        value = pool(functional.pad(self.values[x], sides, value=-np.inf), tuple(kernel), tuple(strides))
        return self.node("MaxPool", [x], value, kernel_shape=list(kernel), strides=list(strides), ceil_mode=0,
                         pads=list(pads), dilations=[1] * rank)  # fmt: skip

    def upsample(self, x, factors, *, mode="nearest", coordinates="asymmetric", nearest="floor", sizes=False) -> str:
        """Resize as torch exports nn.Upsample; ``value`` is torch's own."""
        shape = self.values[x].shape
        value = functional.interpolate(self.values[x], scale_factor=tuple(map(float, factors)), mode=mode)
        name, mode = f"scales{len(self.nodes)}", mode.replace("bilinear", "linear")
        if sizes:
            self.constants[name] = np.array([1, *value.shape[1:]], np.int64)
        else:
            self.constants[name] = np.array([1, 1, *factors], np.float32)
        assert len(shape) == len(factors) + 2
        return self.node("Resize", [x, "", "", name] if sizes else [x, "", name], value, mode=mode,
                         coordinate_transformation_mode=coordinates, nearest_mode=nearest)  # fmt: skip

    def times(self, x, factors, *, divide=False) -> str:
        factors = np.asarray(factors, np.float64)
        other = torch.from_numpy(np.asarray(1 / factors if divide else factors))
        name = self.constant(factors, f"factors{len(self.nodes)}")
        return self.node("Div" if divide else "Mul", [x, name], self.values[x] * other)

    def pad(self, x, top, left, bottom, right, *, value=None, axes=False, mode="constant") -> str:
        """``axes``: amounts for height and width alone, as opset 18 allows."""
        name = f"pads{len(self.nodes)}"
        amounts = [top, left, bottom, right] if axes else [0, 0, top, left, 0, 0, bottom, right]
        self.constants[name] = np.array(amounts, np.int64)
        inputs = [x, name, *([self.constant(value)] if value is not None else [])]
        if axes:
            self.constants[f"{name}.axes"] = np.array([2, 3], np.int64)
            inputs += [""] * (3 - len(inputs)) + [f"{name}.axes"]
        padded = functional.pad(self.values[x], (left, right, top, bottom), mode, value or 0.0)
        return self.node("Pad", inputs, padded, mode=mode)

    def concat(self, *inputs) -> str:
        return self.node("Concat", list(inputs), torch.cat([self.values[i] for i in inputs], 1), axis=1)

    def norm(self, x, *, negative=False) -> str:
        """BatchNormalization with parameters that are no binary fractions."""
        count = self.values[x].shape[1]
        axes = [a for a in range(self.values[x].dim()) if a != 1]
        gamma = self.random.uniform(0.5, 1.5, count) * np.where(negative & (np.arange(count) % 2 == 1), -1, 1)
        beta = self.random.normal(0, 0.3, count)
        mean, var = self.values[x].mean(axes).numpy(), self.values[x].var(axes).numpy() + 0.01
        name = f"norm{len(self.nodes)}"
        made = [self.constant(v, f"{name}.{k}") for k, v in
                (("gamma", gamma), ("beta", beta), ("mean", mean), ("var", var))]  # fmt: skip
        g, b, m, v = (torch.from_numpy(np.asarray(self.constants[n], np.float64)) for n in made)
        shape = [1, count] + [1] * (self.values[x].dim() - 2)
        scaled = (self.values[x] - m.reshape(shape)) / torch.sqrt(v.reshape(shape) + 1e-5) * g.reshape(shape)
        return self.node("BatchNormalization", [x, *made], scaled + b.reshape(shape), epsilon=1e-5)

    def rescaled(self, x, bits, scale, *, signed=True, narrow=False, name=None) -> str:
        """A Quant of any scale, or of one for each channel; constants as well."""
        value, scale = self._of(x), np.asarray(scale, np.float32)
        factor = torch.from_numpy(np.asarray(scale, np.float64))
        low, high = ((-(2 ** (bits - 1)) + narrow) if signed else 0), 2 ** (bits - signed) - 1
        inputs = [x, self.constant(scale), self.constant(0.0), self.constant(bits)]
        return self.node("Quant", inputs, torch.round(value / factor).clamp(low, high) * factor, domain=DOMAIN,
                         name=name, signed=int(signed), narrow=int(narrow), rounding_mode="ROUND")  # fmt: skip

    def rescaled_weights(self, shape, scale, name, bits=4) -> str:
        limit, scale = 2 ** (bits - 1) - 1, np.asarray(scale, np.float32)
        codes = self.random.integers(-limit, limit + 1, shape)
        return self.rescaled(self.constant(codes * scale, f"{name}.weight"), bits, scale, narrow=True)

    def rescaled_bias(self, count, scale, name) -> str:
        """As Brevitas' Int32Bias: on the scale of the accumulator."""
        codes, scale = self.random.integers(-40, 41, count), np.asarray(scale, np.float32)
        return self.rescaled(self.constant(codes * scale, f"{name}.bias"), 16, scale)

    def scaled_input(self, scale) -> None:
        """The same codes at the input, on another scale."""
        codes = torch.round(self.values["input"] / self.constants[self.nodes[0].input[1]])
        self.values["input"] = self.values[self.input] = codes * float(np.float32(scale))
        self.nodes[0].input[1] = self.constant(scale)

    def body(self, x, bits=4) -> str:
        """A quantiser that uses its range well, behind a ReLU."""
        return self.relu_quant(x, bits)


CASES: dict[str, object] = {}


def case(build):
    CASES[build.__name__] = build
    return build


def picture(shape=(3, 5, 4), **options) -> Wide:
    return Wide(shape, **{"samples": 12, "bits": 4} | options)


def _convolution(name, *, shape=(2, 5, 4), filters=2, **options):
    def build():
        net = picture(shape)
        return net.head(net.body(net.convolve(net.input, filters, **options)))

    CASES[name] = build


_convolution("conv_pointwise", kernel=(1, 1))
_convolution("conv_strided_pointwise", kernel=(1, 1), strides=[2, 2])
_convolution("conv_asymmetric_padding", pads=[0, 1, 2, 0])
_convolution("conv_uneven_kernel_and_strides", kernel=(2, 3), strides=[2, 1], bias=False)
_convolution("conv_of_one_row", kernel=(1, 2), strides=[2, 1])
_convolution("conv_of_one_row_padded", kernel=(1, 3), strides=[3, 2], pads=[1, 1, 2, 0], group=2, filters=4)
_convolution("conv_dilated", kernel=(2, 2), dilations=[2, 1], pads=[1, 0, 1, 0])
_convolution("conv_depthwise", shape=(3, 5, 4), filters=3, group=3, pads=[1, 1, 1, 1])
_convolution("conv_depthwise_of_one_pixel", shape=(3, 5, 4), filters=3, group=3, kernel=(1, 1), strides=[2, 1])
_convolution("conv_depthwise_multiplier", shape=(2, 5, 4), filters=6, group=2)
_convolution("conv_grouped", shape=(4, 4, 4), filters=6, group=2, strides=[2, 2], pads=[1, 1, 1, 1])
_convolution("conv_scale_per_channel", filters=3, scales=[-3, -5, -1])
_convolution("conv_bipolar_weights", bipolar=True, lsb=-1)


@case
def conv_of_one_dimension():
    net = picture((2, 9))
    x = net.body(net.convolve(net.input, 3, (3,), strides=[2], pads=[1, 0]))
    return net.head(net.pool(x, (2,)))


@case
def average_pool():
    net = picture((2, 6, 4))
    x = net.body(net.convolve(net.input, 3, (1, 1)))
    return net.head(net.quant(net.average(x, (2, 2)), 5, signed=False))


@case
def average_pool_overlapping():
    net = picture((2, 5, 5))
    return net.head(net.average(net.body(net.convolve(net.input, 2, (1, 1))), (2, 2), (1, 2)))


@case
def global_average_pool():
    net = picture((2, 4, 4))
    x = net.global_average(net.body(net.convolve(net.input, 3, (3, 3), pads=[1] * 4)))
    return net.head(net.quant(x, 6, signed=False), 3)


@case
def average_of_nine():
    """Windows of nine and six, then of two by five: what is rounded is the exact quotient."""
    net = picture((2, 7, 5))
    x = net.quant(net.average(net.body(net.convolve(net.input, 3, (1, 1))), (3, 3), (2, 1)), 5, -6, signed=False)
    return net.head(net.quant(net.average(x, (3, 2), (1, 1)), 4, -5, rounding="FLOOR", signed=False))


@case
def average_over_all_pixels():
    """Three ways to write it; a Flatten stands between the average and its quantiser."""
    net = picture((2, 3, 5), signed=True)
    x = net.quant(net.convolve(net.input, 3, (1, 1)), 5)
    parts = [net.quant(net.flatten(net.global_average(x)), 6, -6), net.quant(net.mean(x, keepdims=False), 5, -4),
             net.relu_quant(net.flatten(net.mean(x)), 6, -7)]  # fmt: skip
    parts = [net.quant(net.dense(part, 3, name=f"part{n}"), 6, -4) for n, part in enumerate(parts)]
    return net.finish(net.add(net.add(*parts[:2]), parts[2]))


@case
def truncated_average():
    """What Brevitas exports of a TruncAvgPool2d: the average, times the pixels again, and Trunc."""
    net = picture((2, 6, 6))
    x = net.body(net.convolve(net.input, 3, (1, 1)), 4)
    lsb = int(np.log2(net.constants[net.nodes[-1].input[1]]))
    x = net.times(net.average(x, (3, 3)), 9.0)
    return net.head(net.trunc(x, lsb, 8, 5))


@case
def truncation_of_version_one():
    net = picture((2, 4, 4), signed=True)
    x = net.quant(net.convolve(net.input, 3, (1, 1)), 6, -5)
    x = net.trunc(net.times(net.average(x, (2, 2)), 4.0), -5, 8, 5, version=1, rounding="ROUND")
    return net.head(x)


@case
def max_pool_uneven():
    net = picture((2, 5, 6))
    return net.head(net.pool(net.body(net.convolve(net.input, 2, (1, 1))), (2, 3)))


@case
def max_pool_overlapping():
    net = picture((2, 5, 6))
    return net.head(net.pool(net.body(net.convolve(net.input, 2, (1, 1))), (3, 2), (2, 1)))


@case
def max_pool_with_gaps():
    net = picture((2, 5, 6))
    return net.head(net.pool(net.body(net.convolve(net.input, 2, (1, 1))), (2, 2), (3, 4)))


@case
def max_pool_of_the_whole_picture():
    """Negative values: the largest of them is less than an accumulator that starts from zero."""
    net = picture((2, 5, 4), signed=True)
    return net.head(net.pool(net.quant(net.convolve(net.input, 3, (1, 1)), 4), (5, 4)))


@case
def max_pool_padded():
    """Negative values, where zeros around would be seen; the padding is not alike on all sides."""
    net = picture((2, 5, 4), signed=True)
    x = net.pool(net.quant(net.convolve(net.input, 3, (1, 1)), 4), (3, 2), (2, 1), (1, 1, 1, 0))
    return net.head(net.pool(net.relu(x), (2, 3), (2, 2), (0, 1, 1, 1)))


@case
def max_pool_padded_of_one_dimension():
    net = picture((2, 9), signed=True)
    return net.head(net.pool(net.quant(net.convolve(net.input, 3, (2,)), 5), (3,), (2,), (1, 1)))


@case
def upsample():
    """By different factors, by sizes, and with the coordinates torch exports at another opset."""
    net = picture((2, 2, 3), signed=True)
    x = net.upsample(net.quant(net.convolve(net.input, 3, (1, 1)), 4), (2, 1))
    x = net.upsample(x, (1, 2), coordinates="half_pixel", nearest="round_prefer_floor", sizes=True)
    return net.head(net.upsample(net.quant(net.convolve(x, 2, (2, 2)), 5), (3, 2)))


@case
def upsample_of_one_dimension():
    net = picture((2, 4), signed=True)
    return net.head(net.upsample(net.quant(net.convolve(net.input, 3, (2,)), 5), (3,)))


@case
def multiplication_by_powers_of_two():
    net = picture((2, 4, 4))
    x = net.body(net.convolve(net.input, 2, (1, 1)))
    x = net.times(x, np.reshape([0.5, -4.0], (1, 2, 1, 1)))
    x = net.times(net.dense(net.flatten(net.quant(x, 6)), 3), 8.0, divide=True)
    return net.finish(net.dense(net.quant(x, 5), 4))


@case
def pad_before_a_convolution():
    net = picture((2, 4, 3))
    return net.head(net.body(net.convolve(net.pad(net.input, 1, 0, 2, 1), 3)))


@case
def pad_of_its_own():
    net = picture((2, 4, 3))
    x = net.quant(net.convolve(net.input, 2, (1, 1)), 4, -3)
    x = net.pad(net.pool(net.pad(x, 1, 0, 1, 1), (2, 2)), 0, 1, 1, 0, value=-0.875, axes=True)
    return net.head(x)


@case
def concat_of_two_scales():
    net = picture((2, 4, 4))
    x, y = (net.body(net.convolve(net.input, n, (1, 1)), bits) for n, bits in ((2, 4), (3, 6)))
    return net.head(net.body(net.convolve(net.concat(x, y), 2, (3, 3))))


@case
def concat_of_many():
    """Four tensors of four scales, one of which is read elsewhere and one twice."""
    net = picture((2, 4, 3))
    x, y, z = (net.body(net.convolve(net.input, n, (1, 1)), bits) for n, bits in ((2, 4), (1, 6), (3, 3)))
    joined = net.body(net.convolve(net.concat(x, y, net.quant(z, 4, -2), x), 3, (2, 2)))
    return net.head(net.add(joined, net.pool(z, (2, 2), (1, 1))))


@case
def add_of_two_scales():
    net = picture((2, 4, 4))
    x, y = (net.quant(net.convolve(net.input, 3, (1, 1)), bits) for bits in (4, 7))
    return net.head(net.body(net.add(x, y)))


@case
def addition_to_itself():
    net = picture((2, 4, 4))
    x = net.quant(net.convolve(net.input, 3, (1, 1)), 4)
    return net.head(net.body(net.add(x, x), 3))


@case
def identity_and_dropout():
    net = picture((2, 3, 3))
    x = net.body(net.convolve(net.input, 2, pads=[1] * 4))
    x = net.node("Identity", [x], net.values[x])
    return net.head(net.node("Dropout", [x], net.values[x]))


@case
def dense_without_bias():
    net = Wide((6,), bits=4, samples=12)
    x = net.relu_quant(net.dense(net.input, 5, bias=None))
    return net.finish(net.dense(x, 4, gemm=False, bias=None))


@case
def dense_scale_per_channel():
    net = Wide((6,), bits=4, samples=12)
    return net.finish(net.dense(net.input, 4, weights=net.kernel((4, 6), scales=[-1, -2, -3, -6]), bias=None))


@case
def quantizers_of_many_kinds():
    net = Wide((5,), bits=8, signed=True, samples=24)
    x = net.quant(net.dense(net.input, 6, name="a"), 16, rounding="FLOOR")
    x = net.quant(net.dense(x, 5, name="b"), 3, narrow=True)
    return net.finish(net.quant(net.dense(x, 5, name="c"), 7))


@case
def quantizer_unsigned_one_bit():
    net = Wide((6,), bits=4, signed=True, samples=24)
    x = net.quant(net.dense(net.input, 8, bias=None, name="a"), 1, -3, signed=False)
    return net.finish(net.dense(x, 4, name="b"))


@case
def batch_norm_before_a_quantizer():
    net = picture((2, 4, 4))
    x = net.body(net.norm(net.convolve(net.input, 4, (1, 1), bits=3), negative=True), 3)
    x = net.quant(net.norm(net.convolve(x, 3, (2, 2), bits=3, bias=False)), 3, -1)
    return net.head(x)


@case
def batch_norm_behind_a_dense_layer():
    net = Wide((6,), bits=3, samples=24)
    return net.finish(net.dense(net.relu_quant(net.norm(net.dense(net.input, 5, name="a"), negative=True), 4), 4))


@case
def batch_norm_that_falls_behind_a_pool():
    """No layer in front that could be turned round: a layer of signs, for pictures and for vectors."""
    net = picture((2, 4, 4), samples=24)
    x = net.pool(net.convolve(net.input, 3, (2, 2), bits=3), (2, 2), (1, 1))
    x = net.dense(net.flatten(net.body(net.norm(x, negative=True))), 4, name="a")
    y = net.quant(x, 4)
    return net.finish(net.dense(net.relu_quant(net.norm(net.add(y, net.relu(y)), negative=True)), 4, name="b"))


@case
def batch_norm_before_many_bits():
    """Ten bits, and nine with a narrow range behind a falling channel: a search in tables."""
    net = picture((2, 4, 4), samples=24)
    x = net.quant(net.norm(net.convolve(net.input, 3, (1, 1), bits=6)), 10)
    return net.head(net.quant(net.norm(net.convolve(x, 2, (2, 2), bits=3), negative=True), 9, narrow=True))


@case
def additions_of_constants():
    """On the grid of what they are added to, so that nothing but a quantiser behind them takes them in; unsigned
    quantisers with a narrow range, of activations and of weights."""
    net = picture((2, 4, 4), samples=24)
    w = net.quant(net.constant(net.random.uniform(0, 1, (3, 2, 2, 2))), 3, -3, signed=False, narrow=True)
    x = net.conv(net.input, 3, 2, pad=0, weights=w, bias=None)
    x = net.add(x, net.constant([[[[-0.5]], [[0.25]], [[-0.125]]]]))
    x = net.quant(net.relu(x), 3, signed=False, narrow=True)
    return net.head(net.body(net.convolve(net.quant(net.add(x, net.constant(-0.25)), 3), 2, (2, 2))))


@case
def dense_layers_that_share_weights():
    """Read as they are and transposed; one multiplies its product and its bias by powers of two."""
    net = Wide((6,), bits=4, signed=True, samples=24)
    w = net.weights((6, 6), 4, -3, "shared")
    x = net.relu_quant(net.dense(net.input, 6, weights=w, bias=None))
    y, b = net.relu_quant(net.dense(x, 6, weights=w, transposed=False)), net.bias(6, -7, "c")
    total = net.values[y] @ net._of(w).T * 0.5 + net._of(b) * 2
    return net.finish(net.node("Gemm", [y, w, b], total, transB=1, alpha=0.5, beta=2.0))


@case
def bipolar_activations_and_weights():
    net = Wide((7,), bits=4, signed=True, samples=48)
    x = net.input
    for inputs, quantizer in ((7, net.bipolar), (8, net.one_bit), (8, net.bipolar)):
        w = net.kernel((inputs, 8), bipolar=True, lsb=0)
        x = quantizer(net.norm(net.dense(x, 8, weights=w, bias=None, gemm=False)), -1)
    return net.finish(net.dense(net.one_bit(net.dense(x, 8)), 4))


@case
def scales_of_any_kind():
    """Of the input, of weights (one, one for each channel), of activations; biases on the accumulator's, or on none."""
    net = picture((2, 5, 4))
    net.scaled_input(0.037)
    w = net.rescaled_weights((3, 2, 2, 2), 0.019, "a")
    bias = net.rescaled_bias(3, np.float32(0.037) * np.float32(0.019), "a")
    x = net.conv(net.input, 3, 2, pad=0, weights=w, bias=bias)
    x = net.pool(net.rescaled(net.relu(x), 4, 0.0113, signed=False), (2, 2), (1, 1))
    w = net.rescaled_weights((3, 3, 2, 2), np.reshape([0.3, 0.07, 0.11], (3, 1, 1, 1)), "b")
    x = net.rescaled(net.conv(x, 3, 2, pad=0, weights=w, bias=net.bias(3, -9, "b")), 5, 0.0271)
    y = net.rescaled(net.conv(x, 3, 1, pad=0, name="c", bias=None), 4, 0.0183)
    y = net.rescaled(net.conv(y, 3, 1, pad=0, name="d", bias=None), 5, 0.0271 / 4)
    return net.head(net.body(net.norm(net.add(x, y))))


@case
def scale_of_the_output():
    """A dense layer behind a scale of its own: the host is told what its codes are."""
    net = Wide((6,), bits=4, signed=True, samples=24)
    x = net.rescaled(net.dense(net.input, 5, name="a"), 5, 0.043)
    w = net.rescaled_weights((4, 5), 0.021, "b")
    return net.finish(net.dense(x, 4, weights=w, bias=net.rescaled_bias(4, np.float32(0.043) * np.float32(0.021), "b")))


@case
def softmax_for_the_host():
    net = Wide((6,), bits=4, samples=12)
    x = net.dense(net.input, 4)
    y = net.node("Softmax", [x], torch.softmax(net.values[x], 1), axis=1)
    net.finish(y)
    net.output = x  # what the board computes
    return net


# ---------------------------------------------------------------------- random graphs


def random_network(number: int) -> Wide:
    """Two or three layers and what may stand between them, drawn at random; a failing number names itself."""
    random = np.random.default_rng(number)

    def pick(*choices):
        return choices[random.integers(len(choices))]

    net = picture((pick(1, 2, 4), int(random.integers(4, 7)), int(random.integers(4, 7))), seed=number)
    x = net.input
    for _ in range(pick(1, 2)):
        group = pick(1, net.values[x].shape[1])
        kernel = [min(pick(1, 2, 3), size) for size in net.values[x].shape[2:]]
        x = net.convolve(x, group * pick(1, 2), kernel, group=group, strides=[pick(1, 2), 1], bias=pick(True, False),
                         pads=[int(p) for p in random.integers(0, 2, 4)], bipolar=pick(False, False, True))  # fmt: skip
        x = net.norm(x, negative=pick(True, False)) if pick(True, False) else x
        x = net.body(x, pick(2, 3, 4)) if pick(True, False) else net.quant(x, pick(2, 3))
        if min(net.values[x].shape[2:]) >= 2:
            step = pick("none", "max", "average", "concat", "add")
            if step in ("max", "average"):
                x = (net.pool if step == "max" else net.average)(x, (2, pick(1, 2)))
            elif step == "concat":
                x = net.concat(x, net.quant(net.convolve(x, 2, (1, 1)), 3))
            elif step == "add":
                x = net.add(x, net.quant(net.convolve(x, net.values[x].shape[1], (1, 1)), 3))
    return net.head(x, 3)


for _number in (1, 2, 3, 4):
    CASES[f"random_{_number}"] = functools.partial(random_network, _number)


# ---------------------------------------------------------------------- the proof


@pytest.fixture(scope="module")
def everything(request, tmp_path_factory) -> dict:
    """Name -> (converted, library) or the error, of the cases that are asked for; converted one by one, compiled side
    by side."""
    asked = {item.callspec.params["name"] for item in request.session.items
             if getattr(item, "originalname", "") == "test_operator"}
    folder, made = tmp_path_factory.mktemp("operators"), {}
    flags, csim.FLAGS = csim.FLAGS, FLAGS
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name in [name for name in CASES if name in asked]:
                try:
                    found = convert_net(CASES[name](), folder / name)
                    made[name] = found, pool.submit(csim.compile_design, found.project, found.io)
                except (SlimgateError, AssertionError) as error:  # told by the case's own test
                    made[name] = error
            for found in made.values():
                if isinstance(found, tuple):
                    found[1].exception()
    finally:
        csim.FLAGS = flags
    return made


def prove(found, library) -> int:
    """Zero differing codes between torch, qonnx, the reference and C simulation; the outputs say something."""
    expected = found.expected.reshape(len(found.net.codes), -1)
    values = np.unique(expected, axis=0)
    assert len(values) > len(expected) / 3, "the outputs do not depend on the inputs"
    assert sum(len(np.unique(column)) > 1 for column in expected.T) > expected.shape[1] / 2
    inputs = found.net.codes.reshape(-1, *found.io["input"]["shape"])
    codes, lsb = Reference(found.model, found.analysis).run(inputs)
    scale = found.io["output"]["scale_log2"]
    assert np.array_equal(codes.reshape(expected.shape) << (lsb - scale), expected), "reference"
    assert np.array_equal(csim.run(library, inputs, found.io), expected), "C simulation"
    return expected.size


def same_function(net, model) -> None:
    """The prepared graph computes with qonnx what torch computed, tensor for tensor of the reference."""
    analysis = numerics.analyze(model)
    shape = graph.input_shape(model)
    before, after = scales.factors(model)
    inputs = np.moveaxis(net.inputs, 1, -1).reshape(-1, *shape) / before
    wanted = graph.execute(model, inputs, tensors=True)
    found: dict[str, tuple] = {}

    def visit(node, codes, lsb):
        found[node.output[0]] = codes, lsb

    Reference(model, analysis).run(net.codes.reshape(-1, *shape), visit=visit)
    for name, (codes, lsb) in found.items():
        assert np.array_equal(np.ldexp(codes.astype(np.float64), lsb), wanted[name]), name
    output, lsb = wanted[model.graph.output[0].name].ravel(), analysis.tensors[model.graph.output[0].name].lsb
    told = net.outputs.ravel()
    if model.get_metadata_prop(scales.SCALES):  # torch rounds codes times a scale
        told = np.ldexp(np.rint(np.ldexp(told / after, -lsb)), lsb)
    assert np.array_equal(output, told)


@pytest.mark.parametrize("name", CASES)
def test_operator(everything, name):
    made = everything[name]
    if isinstance(made, Exception):
        raise made
    found, library = made
    same_function(found.net, found.model)
    built = dataflow.from_graph(found.model, found.analysis, found.plan)
    read = dataflow.from_project(generated.read(found.project), found.io)
    assert {p.name: p for p in built.processes} == {p.name: p for p in read.processes}
    assert built.bits == read.bits  # of each token, as the generated C++ types it
    assert prove(found, library.result()) > 20


def test_depthwise_at_every_kind_of_reuse(tmp_path, monkeypatch):
    """hls4ml has a product each for factors up to the channels, multiples of them, and others above. Weights are
    asymmetric, so that any other order of theirs shows; so does the order that hls4ml itself gives them."""
    net, factors = picture((4, 4, 4), samples=16), {"few": 2, "many": 36, "other": 9}
    x = net.input
    for name in factors:
        x = net.body(net.convolve(x, 4, group=4, pads=[1] * 4, name=name), 6)
    found = convert_net(net.head(x), tmp_path / "a")
    plan = copy.deepcopy(found.plan)
    for row in plan["layers"]:
        if row["name"] in factors:
            row |= {"strategy": "Resource", "reuse_factor": factors[row["name"]]}
    io = convert.convert(found.model, found.analysis, plan, part=PART, folder=tmp_path / "b")
    monkeypatch.setattr(csim, "FLAGS", FLAGS)
    library = csim.compile_design(tmp_path / "b", io)
    assert np.array_equal(csim.run(library, net.codes, io), found.expected)
    monkeypatch.setattr(convert, "_order_depthwise_weights", lambda graph: None)
    with pytest.raises(convert.ConvertError, match="depthwise convolution are not in the order its product reads"):
        convert.convert(found.model, found.analysis, plan, part=PART, folder=tmp_path / "c")


def test_the_host_is_told_what_it_runs():
    model = prepared(CASES["softmax_for_the_host"]())
    assert host_operations(model) == [{"operation": "Softmax", "axis": 1}]
    assert model.graph.node[-1].op_type == "Add"


def test_axes_that_are_an_attribute():
    net = picture((2, 3, 5))
    x = net.mean(net.body(net.convolve(net.input, 3, (1, 1))), attribute=True)
    same_function(net.head(net.quant(x, 5, -7)), prepared(net))


def test_names_of_layers_survive_the_rewriting():
    net = picture((2, 3, 3))
    x = net.body(net.convolve(net.input, 4, (2, 2), group=2, name="block.depthwise"))
    assert [n.name for n in graph.mac_nodes(prepared(net.head(x)))] == ["block_depthwise", "head"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_random_networks_equal_qonnx_and_torch(number):
    """Every tensor of the reference; those with a number below end in C simulation as well."""
    net = random_network(number)
    same_function(net, prepared(net))


# ---------------------------------------------------------------------- what stays refused


def scale_at_an_addition():
    net = picture((2, 4, 4))
    x, y = (net.rescaled(net.convolve(net.input, 2, (1, 1)), 4, s) for s in (0.037, 0.021))
    return net.head(net.add(x, y))


def scale_at_a_join():
    net = picture((2, 4, 4))
    x, y = (net.rescaled(net.convolve(net.input, 2, (1, 1)), 4, s) for s in (0.037, 0.021))
    return net.head(net.concat(x, y))


def scales_of_the_classes():
    net = Wide((6,), bits=4)
    w = net.rescaled_weights((3, 6), np.array([[0.3], [0.2], [0.1]]), "a")
    return net.finish(net.dense(net.input, 3, weights=w, bias=None))


def scale_of_sixteen_bits():
    net = Wide((6,), bits=4)
    return net.finish(net.dense(net.rescaled(net.dense(net.input, 3, name="a"), 16, 0.0003), 3, name="b"))


def bias_off_the_scale_at_the_output():
    net = Wide((6,), bits=4)
    w = net.rescaled_weights((3, 6), 0.3, "a")
    return net.finish(net.dense(net.input, 3, weights=w, bias=net.bias(3, -5, "a")))


def norm_at_the_output():
    net = Wide((6,), bits=4)
    return net.finish(net.norm(net.dense(net.input, 3)))


def norm_before_an_addition():
    net = picture((2, 4, 4))
    x = net.convolve(net.input, 2, (1, 1))
    return net.head(net.body(net.add(net.norm(x), net.quant(x, 4))))


def norm_before_sixteen_bits():
    net = picture((2, 4, 4))
    return net.head(net.quant(net.norm(net.convolve(net.input, 2, (1, 1))), 16))


def norm_of_wide_sums():
    net = picture((2, 4, 4), bits=16)
    return net.head(net.body(net.norm(net.convolve(net.input, 2, (1, 1), bits=12))))


def matrix_times_a_picture():
    """As many columns as channels: along the wrong axis it would fit as well."""
    net = picture((4, 3, 4))
    w = net.weights((4, 4), 4, -3, "a")
    return net.head(net.body(net.node("MatMul", [net.input, w], net.values[net.input] @ net._of(w))))


def constant_for_each_pixel():
    net = picture((2, 4, 4))
    x = net.quant(net.convolve(net.input, 2, (1, 1)), 4)
    return net.head(net.body(net.add(x, net.constant(net.random.integers(-4, 4, (1, 2, 4, 4)) / 4))))


def product_times_a_third():
    net = Wide((6,), bits=4)
    w = net.weights((3, 6), 4, -3, "a")
    return net.finish(net.node("Gemm", [net.input, w], net.values[net.input] @ net._of(w).T / 3, transB=1, alpha=1 / 3))


def two_quantizers_at_the_input():
    net = picture((2, 4, 4))
    x, y = (net.convolve(source, 2, (1, 1)) for source in (net.input, net.quant("input", 2, -1)))
    return net.head(net.add(net.body(x), net.body(y)))


def average_of_nine_unquantized():
    net = picture((2, 6, 6))
    return net.head(net.average(net.body(net.convolve(net.input, 2, (1, 1))), (3, 3)))


def truncation_with_a_zero_point():
    net = picture((2, 4, 4))
    x = net.trunc(net.body(net.convolve(net.input, 2, (1, 1)), 4), -5, 4, 3)
    net.nodes[-1].input[2] = net.constant(3.0)
    return net.head(x)


def multiplication_by_three():
    net = picture((2, 4, 4))
    return net.finish(net.times(net.dense(net.flatten(net.body(net.convolve(net.input, 2))), 3), [1.0, 3.0, 2.0]))


def dilated_pool():
    net = picture((2, 5, 5))
    return net.head(net.maxpool(net.body(net.convolve(net.input, 2, (1, 1))), 2, 1, dilation=2))


def upsample_bilinear():
    net = picture((2, 4, 4))
    return net.head(net.upsample(net.body(net.convolve(net.input, 2, (1, 1))), (2, 2), mode="bilinear"))


def upsample_by_one_and_a_half():
    net = picture((2, 4, 4))
    return net.head(net.upsample(net.body(net.convolve(net.input, 2, (1, 1))), (1.5, 2)))


def upsample_of_other_coordinates():
    net = picture((2, 4, 4))
    return net.head(net.upsample(net.body(net.convolve(net.input, 2, (1, 1))), (2, 2), coordinates="align_corners"))


def padding_by_reflection():
    net = picture((2, 4, 4))
    return net.head(net.body(net.convolve(net.pad(net.input, 1, 1, 1, 1, mode="reflect"), 2)))


def padding_off_the_grid():
    net = picture((2, 4, 4))
    return net.head(net.pool(net.pad(net.input, 1, 1, 1, 1, value=0.3), (2, 2)))


def concat_of_pixels():
    net = picture((2, 4, 4))
    x, y = (net.quant(net.convolve(net.input, 2, (1, 1)), 4) for _ in range(2))
    return net.head(net.node("Concat", [x, y], torch.cat([net.values[x], net.values[y]], 2), axis=2))


def addition_that_spreads():
    net = picture((2, 4, 4))
    x, y = (net.quant(net.convolve(net.input, 2, (1, 1)), 4) for _ in range(2))
    return net.head(net.add(x, net.global_average(y)))


@pytest.mark.parametrize(
    ("build", "operation", "reason"),
    [
        (norm_at_the_output, "BatchNormalization", ""),
        (norm_before_an_addition, "BatchNormalization", ""),
        (norm_before_sixteen_bits, "BatchNormalization", "no quantiser follows it that could take it in"),
        (norm_of_wide_sums, "BatchNormalization", "only those below 2**24, which float32 holds, become thresholds"),
        (matrix_times_a_picture, "MatMul", "it multiplies along the last axis of [1, 4, 3, 4]"),
        (constant_for_each_pixel, "Add", "it adds a constant, and no quantiser follows it that could take it in"),
        (product_times_a_third, "Gemm", "its alpha is 0.333333"),
        (two_quantizers_at_the_input, "Quant", "it quantises the network's input in another way than Quant_"),
        (average_of_nine_unquantized, "Div", "averages over 9 pixels, no power of two, and no quantiser follows it"),
        (truncation_with_a_zero_point, "Trunc", "its zero point is not 0"),
        (multiplication_by_three, "Mul", ""),
        (scale_at_an_addition, "Add", "the scales of what it reads are no powers of two apart"),
        (scale_at_a_join, "Concat", "the scales of what it reads are no powers of two apart"),
        (scales_of_the_classes, "", "the outputs of different classes have scales that are no powers of two apart"),
        (scale_of_sixteen_bits, "Quant", "the scale 0.000300000014 is not a power of two"),
        (bias_off_the_scale_at_the_output, "Mul", "scale 0.300000012 is not a power of two, and no quantiser"),
        (dilated_pool, "MaxPool", "dilated max pooling"),
        (upsample_bilinear, "Resize", "does not repeat every pixel a whole number of times (linear"),
        (upsample_by_one_and_a_half, "Resize", "does not repeat every pixel a whole number of times (nearest"),
        (upsample_of_other_coordinates, "Resize", "(nearest, align_corners, floor)"),
        (padding_by_reflection, "Pad", "padding of mode reflect is not carried"),
        (padding_off_the_grid, "Pad", "pads with 0.3, which is not on its input's grid of 2**-4"),
        (concat_of_pixels, "Concat", "along another axis than channels"),
        (addition_that_spreads, "Add", "adds tensors of different shapes"),
    ],
)
def test_refused(build, operation, reason):
    with pytest.raises(numerics.NotExact) as caught:
        numerics.analyze(prepared(build()))
    assert caught.value.node.startswith(operation) and caught.value.fix
    assert reason in caught.value.reason


@pytest.mark.parametrize("name", ["batch_norm_that_falls_behind_a_pool", "batch_norm_before_many_bits",
                                  "scales_of_any_kind", "truncated_average"])  # fmt: skip
def test_searched_thresholds_are_those_of_every_value(name, monkeypatch):
    """Wide accumulators: 16 channels of 8 bits in and out have more values than are evaluated one by one."""
    found = []
    for most in (2**24, 0):
        monkeypatch.setattr("hls.thresholds.MOST_VALUES", most)
        model = prepared(CASES[name]())
        found.append([model.get_initializer(n.input[1]) for n in model.graph.node if n.op_type == "MultiThreshold"])
    assert found[0] and all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert any(len(np.unique(thresholds)) > 3 for thresholds in found[0])


def test_batch_norm_of_a_wide_layer():
    net = picture((16, 3, 3), bits=8, samples=24)
    net.head(net.quant(net.relu(net.norm(net.convolve(net.input, 16, (3, 3), bits=8), negative=True)), 8, signed=False))
    model = prepared(net)
    analysis = numerics.analyze(model)
    source = analysis.tensors[next(n for n in model.graph.node if n.op_type == "MultiThreshold").input[0]]
    assert int(np.max(source.hi - source.lo)) * 16 > 2**24  # more than are evaluated
    codes, lsb = Reference(model, analysis).run(net.codes)
    assert np.array_equal(np.ldexp(codes.astype(np.float64), lsb), net.values[net.output].numpy())


def test_a_constant_along_the_width_is_not_taken_for_one_of_channels():
    """As many columns as channels, behind a layer so wide that only the integer reference is compared."""
    net = picture((2, 4, 4))
    x = net.quant(net.convolve(net.input, 4, (1, 1)), 4)
    factors = net.random.uniform(0.5, 1.5, (1, 1, 1, 4))
    with pytest.raises(numerics.NotExact, match="no quantiser follows it that could take it in"):
        numerics.analyze(prepared(net.head(net.body(net.times(x, factors)))))


def test_a_threshold_that_is_off_by_one_is_seen():
    """The fault that the comparison is there for."""
    net = CASES["batch_norm_behind_a_dense_layer"]()
    model = prepared(net)
    node = next(n for n in model.graph.node if n.op_type == "MultiThreshold")
    analysis = numerics.analyze(model)
    before = Reference(model, analysis).run(net.codes)[0]
    lsb = analysis.tensors[node.input[0]].lsb
    reached = model.get_initializer(node.input[1])
    model.set_initializer(node.input[1], reached + np.float32(2.0**lsb) * 40)
    assert not np.array_equal(Reference(model, numerics.analyze(model)).run(net.codes)[0], before)
