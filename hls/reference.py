"""The network on integers: codes of every tensor of a prepared graph, bit for bit, batched and fast.

Sums of products run on torch in float32 where no partial sum reaches 2**24 product-scale units, in float64 (exact to
2**53) above, and beyond that, slowly, in int64 like everything else. Independent of Brevitas, of qonnx execution and of
the generated C++; tests hold all four equal.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional

from hls.numerics import (
    FLOAT32_EXACT,
    Analysis,
    attributes,
    quantize_codes,
    quantizer_of,
    round_shift,
    threshold_codes,
    threshold_levels,
)

#: float64 holds every integer below this.
FLOAT64_EXACT = 2**53


class Reference:
    """Executes a prepared graph on codes. ``run`` takes (N, *shape) int64 input codes, channels last.

    ``visit(node, codes, lsb)`` of :meth:`run` sees every computed tensor; codes (n, ...) int64 on the grid ``2**lsb``.
    """

    def __init__(self, model, analysis: Analysis):
        self.model, self.analysis = model, analysis
        self.input = model.graph.input[0].name
        self.output = model.graph.output[0].name

    def run(self, codes: np.ndarray, *, batch: int = 256, visit: Callable | None = None) -> tuple[np.ndarray, int]:
        """Output codes (N, ...) int64 and their lsb."""
        outputs, lsb = [], 0
        for start in range(0, len(codes), batch):
            found, lsb = self._batch(np.asarray(codes[start : start + batch], np.int64), visit)
            outputs.append(found)
        return np.concatenate(outputs), lsb

    def _batch(self, codes: np.ndarray, visit: Callable | None) -> tuple[np.ndarray, int]:
        tensors: dict[str, tuple[np.ndarray, int]] = {}
        for node in self.model.graph.node:
            if node.output[0] in self.analysis.constants:
                continue
            if node.op_type == "Quant" and node.input[0] == self.input:
                result = (codes, quantizer_of(self.model, node).lsb)
            else:
                result = getattr(self, f"_{node.op_type.lower()}")(node, tensors)
            tensors[node.output[0]] = result
            if visit is not None:
                visit(node, *result)
        return tensors[self.output]

    def _value(self, tensors, name: str) -> tuple[np.ndarray, int]:
        return tensors[name] if name in tensors else self.analysis.constants[name]

    def _exact(self, node) -> torch.dtype:
        accumulator = self.analysis.accumulators[node.name]
        widest = max(accumulator.max, -accumulator.min)
        return torch.float32 if widest < FLOAT32_EXACT else torch.float64 if widest < FLOAT64_EXACT else torch.int64

    def _quant(self, node, tensors):
        codes, lsb = tensors[node.input[0]]
        quantizer = quantizer_of(self.model, node)
        return quantize_codes(codes, lsb, quantizer), quantizer.lsb

    def _conv(self, node, tensors):
        (codes, lsb), (weights, weight_lsb) = tensors[node.input[0]], self.analysis.constants[node.input[1]]
        options, kind = attributes(node), self._exact(node)
        top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
        x = torch.from_numpy(codes).to(kind).permute(0, 3, 1, 2)
        x = functional.pad(x, (left, right, top, bottom))
        w = torch.from_numpy(weights).to(kind).permute(0, 3, 1, 2)
        with torch.backends.nnpack.flags(enabled=False):  # its Winograd and FFT transforms are not sums of products
            sums = functional.conv2d(x, w, stride=tuple(options.get("strides", [1, 1])))
        result = sums.permute(0, 2, 3, 1).contiguous().to(torch.int64).numpy(), lsb + weight_lsb
        if len(node.input) < 3 or not node.input[2]:
            return result
        return _sum(result, self.analysis.constants[node.input[2]])

    def _matmul(self, node, tensors):
        (codes, lsb), (weights, weight_lsb) = tensors[node.input[0]], self.analysis.constants[node.input[1]]
        kind = self._exact(node)
        sums = torch.from_numpy(codes).to(kind) @ torch.from_numpy(weights).to(kind)
        return sums.to(torch.int64).numpy(), lsb + weight_lsb

    def _add(self, node, tensors):
        return _sum(self._value(tensors, node.input[0]), self._value(tensors, node.input[1]))

    def _concat(self, node, tensors):
        sides = [self._value(tensors, name) for name in node.input]
        lsb = min(side[1] for side in sides)
        return np.concatenate([round_shift(codes, lsb - own) for codes, own in sides], axis=-1), lsb

    def _relu(self, node, tensors):
        codes, lsb = tensors[node.input[0]]
        return np.maximum(codes, 0), lsb

    def _multithreshold(self, node, tensors):
        codes, source = tensors[node.input[0]]
        lsb, base, step = threshold_levels(node)
        counts = np.empty_like(codes)
        for channel, steps in enumerate(np.broadcast_to(
                threshold_codes(self.model, node, source), (codes.shape[-1], self._steps(node)))):
            counts[..., channel] = np.searchsorted(steps, codes[..., channel], side="right")
        return base + step * counts, lsb

    def _steps(self, node) -> int:
        return self.model.get_initializer(node.input[1]).shape[1]

    def _maxpool(self, node, tensors):
        codes, lsb = tensors[node.input[0]]
        options = attributes(node)
        pooled = functional.max_pool2d(torch.from_numpy(codes).permute(0, 3, 1, 2),
                                       tuple(options["kernel_shape"]), tuple(options.get("strides", [1, 1])))
        return pooled.permute(0, 2, 3, 1).contiguous().numpy(), lsb

    def _flatten(self, node, tensors):
        codes, lsb = tensors[node.input[0]]
        return codes.reshape(len(codes), -1), lsb

    def _reshape(self, node, tensors):
        codes, lsb = tensors[node.input[0]]
        return codes.reshape(len(codes), *self.model.get_tensor_shape(node.output[0])[1:]), lsb

    def _identity(self, node, tensors):
        return tensors[node.input[0]]


def _sum(left: tuple[np.ndarray, int], right: tuple[np.ndarray, int]) -> tuple[np.ndarray, int]:
    lsb = min(left[1], right[1])
    return round_shift(left[0], lsb - left[1]) + round_shift(right[0], lsb - right[1]), lsb


class Census:
    """Counts what codes every quantiser produced and how far every accumulator reached: evidence that a comparison
    means something. Hand :meth:`visit` to :meth:`Reference.run`."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.quantizers: dict[str, np.ndarray] = {}
        self._sums: dict[str, tuple[int, int]] = {}
        self._biased: dict[str, tuple[int, int]] = {}
        self._dense: dict[str, str] = {}  # output of a dense layer without its bias -> the layer

    @property
    def accumulators(self) -> dict[str, tuple[int, int]]:
        """{layer: (lowest, highest) sum seen}, the bias included wherever a layer has one."""
        return {**self._sums, **self._biased}

    def visit(self, node, codes: np.ndarray, lsb: int) -> None:
        if node.op_type in ("Quant", "MultiThreshold"):
            grid = self.analysis.quantizers[node.name]
            counts = np.bincount((codes - grid.min).ravel(), minlength=grid.max - grid.min + 1)
            self.quantizers[node.name] = self.quantizers.get(node.name, 0) + counts
        elif node.name in self.analysis.accumulators:
            self._reach(self._sums, node.name, codes)
            self._dense[node.output[0]] = node.name
        elif node.op_type == "Add":
            # the bias of a dense layer is a node of its own here
            for name, other in (node.input, reversed(node.input)):
                if name in self._dense and other in self.analysis.constants:
                    self._reach(self._biased, self._dense[name], codes)

    @staticmethod
    def _reach(found: dict[str, tuple[int, int]], name: str, codes: np.ndarray) -> None:
        low, high = found.get(name, (0, 0))
        found[name] = (min(low, int(codes.min())), max(high, int(codes.max())))
