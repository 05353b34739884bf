"""The network on integers: codes of every tensor of a prepared graph, bit for bit, batched and fast.

A tensor stays floating point from layer to layer: float32 where neither it nor a partial sum reaches 2**24 codes,
float64 up to 2**53; beyond that the layer is computed, slowly, in int64. Scaling by a power of two is exact in floating
point, so a layer in front of a quantiser is computed in the quantiser's units, with fractions, and quantising is
rounding and clipping. Independent of Brevitas, of qonnx execution and of the generated C++; tests hold all four equal.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as functional

from boards.errors import SlimgateError
from hls.numerics import (
    FLOAT32_EXACT,
    Analysis,
    attributes,
    pad_amounts,
    quantize_codes,
    quantizer_of,
    resize_factors,
    round_shift,
    threshold_codes,
    threshold_levels,
)

#: float64 holds every integer below this.
FLOAT64_EXACT = 2**53
_KINDS = (torch.float32, torch.float64, torch.int64)
#: Further than this from its grid no unit is moved: no factor leaves the exponents of float32.
_FAR = 24
#: Up to here one comparison for each threshold is faster than a binary search among them.
_FEW_STEPS = 7
#: Values of the widest tensor that are computed together: more leave the processor's cache between two layers.
_TOGETHER = 2**18
#: Operations whose result is their source's memory.
_VIEWS = ("Flatten", "Reshape", "Identity")


@dataclass
class _Tensor:
    """``array * 2**unit`` are the values, channels last; ``own``: the next step may write over the array."""

    array: torch.Tensor
    unit: int
    own: bool = True


class Reference:
    """Executes a prepared graph on codes. ``run`` takes (N, *shape) integer input codes, channels last.

    ``visit(node, codes, lsb)`` of :meth:`run` sees every computed tensor; codes (n, ...) int64 on the grid ``2**lsb``
    that :func:`hls.numerics.analyze` found for it.
    """

    def __init__(self, model, analysis: Analysis):
        check_float32()  # settings of torch can change while it runs
        self.model, self.analysis = model, analysis
        self.input = model.graph.input[0].name
        self.output = model.graph.output[0].name
        self.nodes = [node for node in model.graph.node if node.output[0] not in analysis.constants]
        self._last = {name: index for index, node in enumerate(self.nodes) for name in node.input}
        self._last[self.output] = len(self.nodes)
        self._units: dict[str, int] = {}
        self._steps = []
        for node in self.nodes:
            make = self._arrival if node.input[0] == self.input else getattr(self, f"_{node.op_type.lower()}")
            unit, step = make(node)
            self._units[node.output[0]] = unit
            self._steps.append(step)
        widest = max(int(np.prod(model.get_tensor_shape(node.output[0])[1:])) for node in self.nodes)
        self.batch = max(1, _TOGETHER // widest)

    def run(self, codes: np.ndarray, *, batch: int | None = None, visit: Callable | None = None
            ) -> tuple[np.ndarray, int]:  # fmt: skip
        """Output codes (N, ...) int64 and their lsb. ``batch``: samples that are computed together; by default as many
        as the processor's cache is good for."""
        batch = batch or self.batch
        outputs = [self._batch(codes[start : start + batch], visit) for start in range(0, len(codes), batch)]
        return np.concatenate(outputs), self.analysis.tensors[self.output].lsb

    def _batch(self, codes: np.ndarray, visit: Callable | None) -> np.ndarray:
        tensors = {self.input: _Tensor(torch.from_numpy(np.ascontiguousarray(codes, np.int64)), 0, own=False)}
        # inference: nothing is recorded; nnpack: its Winograd and FFT transforms are not sums of products
        with torch.inference_mode(), torch.backends.nnpack.flags(enabled=False):
            for index, (node, step) in enumerate(zip(self.nodes, self._steps, strict=True)):
                names = [name for name in node.input if name in tensors]
                sources = []
                for name in names:
                    dies = self._last[name] == index and names.count(name) == 1
                    if node.op_type in _VIEWS and not dies:
                        tensors[name].own = False
                    sources.append(replace(tensors[name], own=tensors[name].own and dies))
                for name in names:
                    if self._last[name] == index:
                        tensors.pop(name, None)
                name = node.output[0]
                tensors[name] = step(*sources)
                if visit is not None:
                    visit(node, self._codes(name, tensors[name]), self.analysis.tensors[name].lsb)
            return self._codes(self.output, tensors[self.output])

    def _codes(self, name: str, tensor: _Tensor) -> np.ndarray:
        """A copy, int64, on the tensor's grid."""
        return _scaled(tensor.array, tensor.unit - self.analysis.tensors[name].lsb).to(torch.int64, copy=True).numpy()

    # ------------------------------------------------------------------ what is exact in which type

    def _kind(self, node, *more) -> torch.dtype:
        """The type in which a node's sources, constants, partial sums and result are whole numbers without loss."""
        ranges = [self.analysis.tensors[name] for name in (*node.input, node.output[0]) if name in
                  self.analysis.tensors and name not in self.analysis.constants]  # fmt: skip
        widest = [max(r.max, -r.min) for r in (*ranges, *more)]
        widest += [int(np.abs(self.analysis.constants[name][0]).max()) for name in node.input
                   if name in self.analysis.constants and self.analysis.constants[name][0].size]  # fmt: skip
        return _exact(max(widest))

    def _store(self, node) -> torch.dtype:
        """The type in which a node's result is kept."""
        found = self.analysis.tensors[node.output[0]]
        return _exact(max(found.max, -found.min))

    def _grid(self, name: str) -> int:
        return self.analysis.tensors[name].lsb

    def _unit_before_quantizer(self, node) -> int:
        """The unit of the quantiser that alone reads a layer's result, else the result's own grid."""
        lsb, name = self._grid(node.output[0]), node.output[0]
        while name != self.output:
            readers = [reader for reader in self.nodes if name in reader.input]
            if len(readers) != 1:
                break
            reader = readers[0]
            if reader.op_type == "Quant":
                unit = quantizer_of(self.model, reader).lsb
                return unit if abs(unit - lsb) <= _FAR else lsb
            bias = reader.op_type == "Add" and reader.input[1] in self.analysis.constants
            if reader.op_type not in ("Relu", "MaxPool") and not bias:
                break
            name = reader.output[0]
        return lsb

    # ------------------------------------------------------------------ operations: (unit of the result, step)

    def _arrival(self, node):
        quantizer, store = quantizer_of(self.model, node), self._store(node)
        return quantizer.lsb, lambda x: _Tensor(x.array.to(store, copy=True), quantizer.lsb)

    def _quant(self, node):
        quantizer, source = quantizer_of(self.model, node), self._grid(node.input[0])
        kind, store = self._kind(node, self.analysis.quantizers[node.name]), self._store(node)
        if kind == torch.int64:
            return quantizer.lsb, lambda x: _Tensor(torch.from_numpy(quantize_codes(
                _whole(x, source), source, quantizer)).to(store), quantizer.lsb)  # fmt: skip
        # what is shifted further saturates or is rounded away just the same
        shift = min(max(quantizer.lsb - source, -33), 60)
        factor = 2.0 ** (self._units[node.input[0]] - source - shift)
        rounding = torch.round if quantizer.rounding == "ROUND" else torch.floor

        def step(x):
            array, free = _as(x, kind)
            if factor != 1:
                array, free = torch.mul(array, factor, out=array if free else None), True
            array = rounding(array, out=array if free else None)
            return _Tensor(array.clamp_(quantizer.lo, quantizer.hi).to(store), quantizer.lsb)

        return quantizer.lsb, step

    def _conv(self, node):
        weights = np.moveaxis(self.analysis.constants[node.input[1]][0], -1, 1)
        options = attributes(node)
        top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
        even = top == bottom and left == right
        padding, strides = (top, left) if even else (0, 0), tuple(options.get("strides", [1, 1]))
        biased, group = len(node.input) > 2 and bool(node.input[2]), options.get("group", 1)

        def convolve(x, w, b):
            x = x.permute(0, 3, 1, 2)  # channels stay last in memory
            x = x if even else functional.pad(x, (left, right, top, bottom))
            return functional.conv2d(x, w, b, strides, padding, 1, group).permute(0, 2, 3, 1).contiguous()

        return self._products(node, weights, node.input[2] if biased else None, convolve)

    def _matmul(self, node):
        return self._products(node, self.analysis.constants[node.input[1]][0], None, lambda x, w, _: x @ w)

    def _products(self, node, weights: np.ndarray, bias: str | None, multiply: Callable):
        kind, store = self._kind(node, self.analysis.accumulators[node.name]), self._store(node)
        if weights.ndim == 4 and weights.shape[1] == 1 and kind == torch.float32:
            # oneDNN, which takes float32 only, reads past the picture where one channel gives one column (torch 2.13)
            kind = torch.float64
        source, weight_lsb = node.input[0], self.analysis.constants[node.input[1]][1]
        lsb = self._grid(node.output[0])
        if kind == torch.int64:
            # sums on the grid of the products, which a bias may refine
            w, products = torch.from_numpy(np.ascontiguousarray(weights)), self._grid(source) + weight_lsb
            shift = None if bias is None else round_shift(self.analysis.constants[bias][0], lsb - self.analysis.
                                                          constants[bias][1])  # fmt: skip

            def whole(x):
                sums = multiply(torch.from_numpy(_whole(x, self._grid(source))), w, None).numpy()
                sums = round_shift(sums, lsb - products)
                return _Tensor(torch.from_numpy(sums if shift is None else sums + shift).to(store), lsb)

            return lsb, whole
        unit = self._unit_before_quantizer(node)
        w = _constant(weights, kind, weight_lsb + self._units[source] - unit)
        w = w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w
        b = None if bias is None else _constant(self.analysis.constants[bias][0], kind,
                                                self.analysis.constants[bias][1] - unit)  # fmt: skip
        return unit, lambda x: _Tensor(multiply(x.array.to(kind), w, b).to(store), unit)

    def _add(self, node):
        kind, store, lsb = self._kind(node), self._store(node), self._grid(node.output[0])
        constants = [self.analysis.constants.get(name) for name in node.input]
        moving = [name for name, constant in zip(node.input, constants, strict=True) if constant is None]
        unit = self._units[moving[0]]
        if kind == torch.int64 or abs(unit - lsb) > 2 * _FAR:
            unit = lsb
        others = [constant for constant in constants if constant is not None]
        if kind == torch.int64:
            fixed = [round_shift(codes, lsb - own) for codes, own in others]

            def whole(*sources):
                sums = fixed + [round_shift(_whole(x, self._grid(name)), lsb - self._grid(name))
                                for x, name in zip(sources, moving, strict=True)]  # fmt: skip
                return _Tensor(torch.from_numpy(sums[0] + sums[1]).to(store), lsb)

            return lsb, whole
        fixed = [_constant(codes, kind, own - unit) for codes, own in others]

        def step(first, *second):
            array, free = _as(first, kind)
            if first.unit != unit:
                array, free = torch.mul(array, _power(first.unit - unit), out=array if free else None), True
            other, more = (fixed[0], 1.0) if fixed else (second[0].array.to(kind), _power(second[0].unit - unit))
            return _Tensor(torch.add(array, other, alpha=more, out=array if free else None).to(store), unit)

        return unit, step

    def _concat(self, node):
        kind, store, lsb = self._kind(node), self._store(node), self._grid(node.output[0])
        unit = lsb if kind == torch.int64 else min(self._units[name] for name in node.input)
        if kind == torch.int64:
            return lsb, lambda *sources: _Tensor(torch.from_numpy(np.concatenate([
                round_shift(_whole(x, self._grid(name)), lsb - self._grid(name))
                for x, name in zip(sources, node.input, strict=True)], axis=-1)).to(store), lsb)  # fmt: skip
        return unit, lambda *sources: _Tensor(
            torch.cat([_scaled(x.array.to(kind), x.unit - unit) for x in sources], -1).to(store), unit)

    def _relu(self, node):
        store = self._store(node)
        return self._units[node.input[0]], lambda x: _Tensor(
            torch.clamp(x.array, min=0, out=x.array if x.own else None).to(store), x.unit)

    def _multithreshold(self, node):
        source = self.analysis.tensors[node.input[0]]
        lsb, base, step = threshold_levels(node)
        store, kind = self._store(node), _exact(max(source.max, -source.min))
        codes = threshold_codes(self.model, node, source.lsb)
        # no code lies outside the range: a threshold outside counts for all of them or for none
        codes = np.clip(codes, source.min, source.max + 1)
        steps = _constant(codes, kind, source.lsb - self._units[node.input[0]])
        few = codes.shape[1] <= _FEW_STEPS
        columns = steps.T.contiguous()

        def count(x):
            if few:
                counts = (x >= columns[0]).to(store)
                for column in columns[1:]:
                    counts += x >= column
                return counts
            flat = x.reshape(-1, x.shape[-1]).T.contiguous()
            every = steps.expand(len(flat), -1).contiguous()
            return torch.searchsorted(every, flat, right=True).T.reshape(x.shape).to(store)

        return lsb, lambda x: _Tensor(count(x.array).mul_(step).add_(base), lsb)

    def _maxpool(self, node):
        options = attributes(node)
        kernel, strides = tuple(options["kernel_shape"]), tuple(options.get("strides", [1, 1]))
        return self._units[node.input[0]], lambda x: _Tensor(functional.max_pool2d(
            x.array.permute(0, 3, 1, 2), kernel, strides).permute(0, 2, 3, 1).contiguous(), x.unit)  # fmt: skip

    def _pad(self, node):
        (top, left, bottom, right), value = pad_amounts(self.model, node)
        unit, store = self._units[node.input[0]], self._store(node)
        number = float(np.ldexp(value, -unit))

        def step(x):
            array = x.array.to(store)
            filling = int(number) if store == torch.int64 else number
            return _Tensor(functional.pad(array, (0, 0, left, right, top, bottom), value=filling), unit)

        return unit, step

    def _resize(self, node):
        down, across = resize_factors(self.model, node)
        unit = self._units[node.input[0]]
        return unit, lambda x: _Tensor(
            x.array.repeat_interleave(down, 1).repeat_interleave(across, 2), unit)

    def _flatten(self, node):
        return self._units[node.input[0]], lambda x: replace(x, array=x.array.reshape(len(x.array), -1))

    def _reshape(self, node):
        shape = self.model.get_tensor_shape(node.output[0])[1:]
        return self._units[node.input[0]], lambda x: replace(x, array=x.array.reshape(len(x.array), *shape))

    def _identity(self, node):
        return self._units[node.input[0]], lambda x: x


def check_float32() -> None:
    """Raise where torch multiplies float32 with fewer than its 24 bits, as oneDNN and BLAS may be told to."""
    x = torch.full((2, 16, 8, 8), 4095.0)
    weights = torch.zeros(16, 16, 3, 3)
    weights[:, 0, 1, 1] = 4097.0
    found = functional.conv2d(x, weights, padding=1), functional.linear(x[:, :, 0, 0], weights[:, :, 1, 1])
    if not all(bool((sums == 4095 * 4097).all()) for sums in found):
        raise SlimgateError(
            "torch computes float32 products with fewer than 24 bits here: whole numbers come out wrong",
            where="torch",
            fix="unset ONEDNN_DEFAULT_FPMATH_MODE, and call torch.set_float32_matmul_precision('highest')",
        )


def _exact(widest: int) -> torch.dtype:
    return _KINDS[(widest >= FLOAT32_EXACT) + (widest >= FLOAT64_EXACT)]


def _power(exponent: int) -> float:
    """2**exponent. Only a tensor of nothing but zeros can be as far from another as to leave the exponents of float32:
    it may be scaled by anything finite."""
    return 2.0 ** min(max(exponent, -120), 120)


def _scaled(array: torch.Tensor, exponent: int) -> torch.Tensor:
    return array if exponent == 0 else array * _power(exponent)


def _constant(codes: np.ndarray, kind: torch.dtype, exponent: int) -> torch.Tensor:
    return _scaled(torch.from_numpy(np.ascontiguousarray(codes)).to(kind), exponent)


def _as(tensor: _Tensor, kind: torch.dtype) -> tuple[torch.Tensor, bool]:
    """The array as ``kind``, and whether it may be written over."""
    array = tensor.array.to(kind)
    return array, tensor.own or array is not tensor.array


def _whole(tensor: _Tensor, lsb: int) -> np.ndarray:
    """int64 codes on the grid ``2**lsb``."""
    return _scaled(tensor.array, tensor.unit - lsb).to(torch.int64).numpy()


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
