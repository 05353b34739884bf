"""A prepared graph computed with Python's fractions, one QONNX operation after the other: no integer types, no grids,
no ranges, nothing of ``hls`` but the graph. Too slow for anything but a handful of tiny samples."""

from fractions import Fraction

import numpy as np
from onnx import helper

_exactly = np.vectorize(Fraction, otypes=[object])


def values_of(model, codes: np.ndarray) -> dict[str, np.ndarray]:
    """{tensor: Fractions (N, ...)} for input codes (N, *shape), channels last; constants are in there as well."""
    found = {i.name: _exactly(np.asarray(model.get_initializer(i.name), np.float64)) for i in model.graph.initializer}
    first = next(n for n in model.graph.node if n.input[0] == model.graph.input[0].name)
    found[model.graph.input[0].name] = _exactly(codes.astype(object)) * found[first.input[1]].ravel()[0]
    for node in model.graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        sources = [found[name] for name in node.input if name]
        found[node.output[0]] = _OPERATIONS[node.op_type](options, model.get_tensor_shape(node.output[0]), *sources)
    return found


def _quant(options, _shape, x, scale, zero, bits):
    bits, signed, narrow = int(bits.ravel()[0]), bool(options.get("signed", 1)), bool(options.get("narrow", 0))
    low = -(2 ** (bits - 1)) + narrow if signed else 0
    high = 2 ** (bits - signed) - 1
    whole = round if options.get("rounding_mode", b"ROUND").decode() == "ROUND" else (lambda v: v.numerator //
                                                                                     v.denominator)  # fmt: skip
    scale = scale.ravel()[0]
    return np.vectorize(lambda v: scale * min(max(whole(v / scale), low), high), otypes=[object])(x)


def _conv(options, _shape, x, w, b=None):
    top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
    (down, across), (_, height, width, _) = options.get("strides", [1, 1]), w.shape
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=Fraction(0))
    rows = [[np.tensordot(x[:, i : i + height, j : j + width], w, axes=([1, 2, 3], [1, 2, 3]))
             for j in range(0, x.shape[2] - width + 1, across)]
            for i in range(0, x.shape[1] - height + 1, down)]  # fmt: skip
    sums = np.moveaxis(np.array(rows, object), 2, 0)
    return sums if b is None else sums + b


def _max_pool(options, _shape, x):
    (height, width), (down, across) = options["kernel_shape"], options.get("strides", [1, 1])
    rows = [[x[:, i : i + height, j : j + width].max((1, 2)) for j in range(0, x.shape[2] - width + 1, across)]
            for i in range(0, x.shape[1] - height + 1, down)]  # fmt: skip
    return np.moveaxis(np.array(rows, object), 2, 0)


def _multi_threshold(options, _shape, x, steps):
    counts = sum((x >= steps[:, i]).astype(object) for i in range(steps.shape[1]))
    return Fraction(options.get("out_bias", 0.0)) + Fraction(options.get("out_scale", 1.0)) * counts


_OPERATIONS = {
    "Quant": _quant,
    "Conv": _conv,
    "MatMul": lambda _o, _s, x, w: np.dot(x, w),
    "Add": lambda _o, _s, x, y: x + y,
    "Relu": lambda _o, _s, x: np.maximum(x, Fraction(0)),
    "Concat": lambda _o, _s, *x: np.concatenate(x, -1),
    "MaxPool": _max_pool,
    "MultiThreshold": _multi_threshold,
    "Flatten": lambda _o, _s, x: x.reshape(len(x), -1),
    "Reshape": lambda _o, shape, x: x.reshape(len(x), *shape[1:]),
    "Identity": lambda _o, _s, x: x,
}
