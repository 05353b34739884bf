"""The one description of a network's hardware: each process hls4ml will make of a prepared graph, and the wrapper's.

A process is described once: as the cost model sees it (:class:`hls.cost.LayerSpec`: shapes, widths, weights), as the
dataflow simulation sees it (a kind of firing and its shape), and which processes it reads. Costs, cycles, FIFO depths
and reuse factors are all derived from this list. Contract tests hold it equal to what the generated C++ says.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from boards.errors import SlimgateError
from hls import cost
from hls.convert import BEAT_BYTES, container_bytes
from hls.cost import LayerSpec
from hls.generated import INPUT, OUTPUT
from hls.graph import data_tensors, input_shape, pools_all
from hls.numerics import MOST_COMPARED, Analysis, Fixed, attributes, pad_amounts, resize_factors

#: Operations that are only another name for the same stream.
ALIASES = ("Flatten", "Reshape", "Identity")


class LayersError(SlimgateError):
    """An operation whose process is not known."""


@dataclass(frozen=True)
class Described:
    """One process. ``spec``: what it costs; ``kind``, ``shape``: a key of :data:`hls.dataflow.FIRINGS` and what that
    needs; ``reads``: the processes whose tokens it takes, in the order it takes them; ``operation``: the graph's."""

    spec: LayerSpec
    kind: str
    shape: Mapping[str, int]
    reads: tuple[str, ...]
    operation: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def multiplies(self) -> bool:
        """Whether it has a reuse factor."""
        return self.spec.kind in cost.MULTIPLYING

    @property
    def token_bits(self) -> int:
        """Bits of a token it writes."""
        return self.spec.output_bits * self.spec.channels

    @property
    def pixels(self) -> int:
        """How often a frame uses every weight."""
        return math.prod(self.spec.out_shape[:-1]) if self.spec.kind == "conv" else 1

    @property
    def macs(self) -> int:
        """Multiplications and additions a frame."""
        return self.spec.weights * self.pixels

    def folded(self, strategy: str, reuse_factor: int) -> "Described":
        """The same with another strategy ("Resource" or "Latency") and reuse factor."""
        shape = dict(self.shape) | {"reuse_factor": reuse_factor}
        if "resource" in shape:
            shape["resource"] = int(strategy == "Resource")
        return replace(self, shape=shape,
                       spec=replace(self.spec, strategy=strategy.lower(), reuse_factor=reuse_factor))


def describe(model, analysis: Analysis) -> list[Described]:
    """Every process of a prepared graph (:func:`hls.graph.prepare`) in topological order, unfolded: Resource strategy,
    reuse factor 1. First the wrapper's unpack, last its pack; a clone where several processes read one.

    Raises :class:`LayersError` for an operation whose process is not known.
    """
    return with_clones(_Walk(model, analysis).walk())


def weight_figures(codes: np.ndarray) -> dict[str, int]:
    """What a layer of constants costs depends on them: how many are not zero, how many of those are powers of two,
    nonzero digits over all in canonical signed-digit form, and bits of the largest."""
    magnitudes = np.abs(codes[codes != 0]).astype(np.int64)
    # the canonical form of n has a digit wherever n and 3n differ, one place up (Reitwiesner 1960)
    digits = sum(int(((magnitudes ^ 3 * magnitudes) >> place & 1).sum()) for place in range(1, 34))
    return {"nonzeros": int(magnitudes.size), "powers_of_two": int((magnitudes & (magnitudes - 1) == 0).sum()),
            "csd_digits": digits, "used_weight_bits": _bits(codes)}


def _bits(codes: np.ndarray) -> int:
    return Fixed(0, codes.min(), codes.max()).bits


class _Walk:
    def __init__(self, model, analysis: Analysis):
        self.model, self.analysis, self.moving = model, analysis, data_tensors(model)
        self.found: list[Described] = []
        self.source: dict[str, str] = {}  # tensor -> process that makes it

    def walk(self) -> list[Described]:
        name = self.model.graph.input[0].name
        first = self.model.find_consumer(name).output[0]
        shape = input_shape(self.model)
        narrow = container_bytes(self.analysis.tensors[first].bits) * shape[-1] <= BEAT_BYTES
        self._add(INPUT, "other", "unpack", {"tokens": math.prod(shape[:-1]), "cycles": 1 if narrow else shape[-1]},
                  [], first, "Input", in_shape=shape, input_bits=self.analysis.tensors[first].bits)
        self.source[name] = INPUT
        merged = set()
        for node in self.model.graph.node:
            if node.output[0] not in self.moving or node.name in merged:
                continue
            reads = [t for t in node.input if t in self.moving]
            if node.op_type in ALIASES or (node.op_type == "Quant" and reads == [name]):
                self.source[node.output[0]] = self.source[reads[0]]
                continue
            output = node.output[0]
            for follower in self._merged(node):
                merged.add(follower.name)
                output = follower.output[0]
            self._node(node, reads, output)
        output = self.model.graph.output[0].name
        shape = tuple(self.model.get_tensor_shape(output)[1:])
        bits = self._type_bits(output)
        spec = LayerSpec(OUTPUT, "other", self._shape(shape), self._shape(shape), input_bits=bits, output_bits=bits)
        self.found.append(Described(spec, "pack", {"tokens": math.prod(shape[:-1]), "cycles": shape[-1]},
                                    (self.source[output],), "Output"))
        return self.found

    def _merged(self, node):
        """Nodes hls4ml makes part of this one: a dense layer's bias, and the quantiser behind a layer."""
        at, found = node, []
        while at.op_type in ("Conv", "MatMul", "Relu", "Add"):
            users = self.model.find_consumers(at.output[0]) or []
            if len(users) != 1:
                break
            bias = at.op_type == "MatMul" and users[0].op_type == "Add" and users[0].input[1] not in self.moving
            if not bias and (users[0].op_type != "Quant" or (at is node and at.op_type == "Add")):
                break
            at = users[0]
            found.append(at)
        return found

    @staticmethod
    def _shape(shape) -> tuple[int, ...]:
        return tuple(int(n) for n in shape)

    def _add(self, name: str, cost_kind: str, kind: str, shape: dict, reads: list[str], output: str, operation: str,
             **spec) -> None:
        """Append a process that writes tensor ``output``; ``spec`` goes to the LayerSpec."""
        taken = self._shape(spec.pop("in_shape", None) or self._stream_shape(reads[0]))
        if "input_bits" not in spec:
            spec["input_bits"] = self._type_bits(reads[0])
        made = LayerSpec(name, cost_kind, taken, self._shape(self.model.get_tensor_shape(output)[1:]),
                         output_bits=self._type_bits(output), **spec)
        self.found.append(Described(made, kind, shape, tuple(self.source[t] for t in reads), operation))
        self.source[output] = name

    def _weights(self, node, n_in: int, n_out: int) -> dict:
        """What the LayerSpec says about a layer's weights. Their type is the quantiser's, whatever they fill of it."""
        codes, _ = self.analysis.constants[node.input[1]]
        producer = self.model.find_producer(node.input[1])
        grid = self.analysis.quantizers.get(producer.name) if producer is not None else None
        return {"n_in": n_in, "n_out": n_out, "weights": n_in * n_out,
                "weight_bits": grid.bits if grid is not None else _bits(codes),
                "accumulator_bits": self.analysis.accumulators[node.name].bits, **weight_figures(codes)}

    def _node(self, node, reads: list[str], output: str) -> None:
        shape, options = self.model.get_tensor_shape(reads[0])[1:], attributes(node)
        tokens = math.prod(shape[:-1])
        if node.op_type == "Conv":
            self._convolution(node, reads, output, shape, options)
        elif pools_all(self.model, node) or node.op_type == "GlobalAveragePool":
            self._add(node.name, "globalpool", "gather", {"tokens": tokens, "reuse_factor": 1}, reads, output,
                      node.op_type)
        elif node.op_type in ("MaxPool", "AveragePool"):
            kernel = options["kernel_shape"]
            window = _window(shape, kernel, options.get("strides", kernel), 0)
            self._add(node.name, "pool", "pooling", window, reads, output, node.op_type, kernel=tuple(kernel),
                      stride=tuple(options.get("strides", kernel)))
        elif node.op_type == "MatMul":
            stream = self._stream_shape(reads[0])
            self._add(node.name, "dense", "gather", {"tokens": math.prod(stream[:-1]), "reuse_factor": 1}, reads,
                      output, "MatMul", **self._weights(node, *self.analysis.constants[node.input[1]][0].shape))
        elif node.op_type == "Add" and len(reads) == 2:
            self._add(node.name, "merge", "merge", {"tokens": tokens}, reads, output, "Add")
        elif node.op_type == "Concat" and len(reads) == 2:
            self._concat(node, reads, output, options["axis"])
        elif node.op_type == "Pad":
            top, left, bottom, right = pad_amounts(self.model, node)[0]
            self._add(node.name, "pad", "pad", {"height": shape[0], "width": shape[1], "top": top, "bottom": bottom,
                                                "left": left, "right": right}, reads, output, "Pad")
        elif node.op_type == "Resize":
            down, across = resize_factors(self.model, node)
            self._add(node.name, "resize", "upsample", {"height": shape[0], "width": shape[1], "factor_height": down,
                                                        "factor_width": across}, reads, output, "Resize")
        elif node.op_type == "MultiThreshold":
            steps = self.model.get_initializer(node.input[1]).shape[1]
            about = {"table_size": steps, "table_bits": self.analysis.tensors[reads[0]].bits}
            if steps > MOST_COMPARED:
                self._add(node.name, "search", "search", {"tokens": tokens, "bits": steps.bit_length()}, reads, output,
                          node.op_type, **about)
            else:
                self._add(node.name, "threshold", "elementwise", {"tokens": tokens}, reads, output, node.op_type,
                          **about)
        elif node.op_type in ("Relu", "Quant"):  # a quantiser in no layer becomes an activation
            name = f"{node.name}_act" if node.op_type == "Quant" else node.name
            self._add(name, "activation", "elementwise", {"tokens": tokens}, reads, output, node.op_type,
                      op="linear" if node.op_type == "Quant" else "relu")
        else:
            raise LayersError(f"the process of operation {node.op_type} is not known", where=f"node {node.name}",
                              fix="use operations that hls4ml's Vitis backend carries as streams")

    def _convolution(self, node, reads: list[str], output: str, shape, options) -> None:
        top, left, bottom, right = options.get("pads", [0, 0, 0, 0])
        kernel, strides = options["kernel_shape"], options.get("strides", [1, 1])
        bits = self._type_bits(reads[0])
        if any((top, left, bottom, right)):
            padding = {"height": shape[0], "width": shape[1], "top": top, "bottom": bottom, "left": left,
                       "right": right}
            padded, name = f"{reads[0]} padded for {node.name}", f"zp2d_{node.name}"
            grown = [shape[0] + top + bottom, shape[1] + left + right, shape[2]]
            self.found.append(Described(LayerSpec(name, "pad", self._shape(shape), self._shape(grown), input_bits=bits,
                                                  output_bits=bits), "pad", padding, (self.source[reads[0]],), "Pad"))
            self.source[padded], reads, shape = name, [padded], grown
        pointwise = tuple(kernel) == (1, 1) and options.get("group", 1) == 1
        window = _window(shape, kernel, strides, int(pointwise)) | {"resource": 1, "reuse_factor": 1}
        codes, _ = self.analysis.constants[node.input[1]]
        self._add(node.name, "conv", "convolution", window, reads, output, "Conv", in_shape=shape, input_bits=bits,
                  kernel=tuple(kernel), stride=tuple(strides),
                  **self._weights(node, codes.size // codes.shape[0], codes.shape[0]))

    def _concat(self, node, reads, output, axis: int) -> None:
        shapes = [self.model.get_tensor_shape(t)[1:] for t in reads]
        axis = axis - 1 if axis > 0 else axis + len(shapes[0])
        if axis == len(shapes[0]) - 1:
            self._add(node.name, "merge", "merge", {"tokens": math.prod(shapes[0][:-1])}, reads, output, "Concat")
            return
        turns = math.prod(shapes[0][:axis])
        first, second = (math.prod(s[axis:-1]) for s in shapes)
        self._add(node.name, "merge", "concatenate", {"first": first, "second": second, "turns": turns}, reads, output,
                  "Concat")

    def _stream(self, tensor: str) -> str:
        """The tensor that flows: flattening is only another name for the same tokens."""
        while (node := self.model.find_producer(tensor)) is not None and node.op_type in ALIASES:
            tensor = node.input[0]
        return tensor

    def _stream_shape(self, tensor: str) -> list[int]:
        return self.model.get_tensor_shape(self._stream(tensor))[1:]

    def _type_bits(self, tensor: str) -> int:
        """Bits of a value on the wire: a quantiser's whole grid, whatever its input fills of it; else the range."""
        tensor = self._stream(tensor)
        node = self.model.find_producer(tensor)
        if node is not None and node.op_type == "Quant":
            return self.analysis.quantizers[node.name].bits
        return self.analysis.tensors[tensor].bits


def _window(shape, kernel, strides, pointwise: int) -> dict[str, int]:
    return {"height": shape[0], "width": shape[1], "kernel_height": kernel[0], "kernel_width": kernel[1],
            "stride_height": strides[0], "stride_width": strides[1], "pointwise": pointwise}


def with_clones(found: Iterable[Described]) -> list[Described]:
    """The processes with a clone behind each that several read; what it feeds, in order, are its readers."""
    found = list(found)
    readers: dict[str, int] = {}
    for item in found:
        for name in item.reads:
            readers[name] = readers.get(name, 0) + 1
    clones = {name: clone_name(name) for name, count in readers.items() if count > 1}
    made: list[Described] = []
    for item in found:
        made.append(replace(item, reads=tuple(clones.get(name, name) for name in item.reads)))
        if item.name in clones:
            spec, shape = item.spec, item.spec.out_shape
            made.append(Described(
                LayerSpec(clones[item.name], "clone", shape, shape, input_bits=spec.output_bits,
                          output_bits=spec.output_bits),
                "clone", {"tokens": math.prod(shape[:-1]), "copies": readers[item.name]}, (item.name,), "Clone"))
    return made


#: What hls4ml calls the input of a prepared graph.
GRAPH_INPUT = "global_in"


def clone_name(name: str) -> str:
    return f"clone_{GRAPH_INPUT if name == INPUT else name}"
