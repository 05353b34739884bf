"""A network that was trained elsewhere, with its test data: what both `slimgate import` and the stage look at."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from boards.errors import SlimgateError
from hls import graph, verify
from hls.front import front_operations
from hls.numerics import Quantizer, quantizer_of
from pipeline import pixels
from pipeline.datasets import elsewhere


class ImportProblem(SlimgateError):
    """A network, its labels and its test data do not fit one another."""


@dataclass(frozen=True)
class Imported:
    """``shape``: of a sample on the wire, channels last; ``picture``: the same where the file takes (1 or 3, H, W),
    else None; ``outputs``: scores of a sample; ``quantizer``: of the input."""

    network: verify.Network
    shape: tuple[int, ...]
    picture: tuple[int, int, int] | None
    outputs: int
    quantizer: Quantizer


@dataclass(frozen=True)
class TestSet:
    """``codes`` (N, *shape) int64 as on the wire, ``labels`` (N,) int64, ``table`` (C, 256) of pixels or None."""

    __test__ = False

    data: dict
    codes: np.ndarray
    labels: np.ndarray
    table: np.ndarray | None


def examine(path: Path, board=None) -> Imported:
    """Check a file and its conditions of exactness. Raises GraphError, Refused or ImportProblem."""
    network = verify.examine(path)
    model = network.model
    if before := front_operations(model):
        raise ImportProblem(
            f"its codes come from {', '.join(before)}, which a board cannot be handed",
            where=path, fix="export the network from its first quantizer on and give the arithmetic before it as "
                            "--input-range, --mean and --std; `slimgate verify` takes it as it is",
        )  # fmt: skip
    if network.scaled:
        raise ImportProblem(
            "scales of its input or its layers are no powers of two, by which a board cannot be handed pixels yet",
            where=path, fix="train it with power-of-two scales (restrict_scaling_type = POWER_OF_TWO); "
                            "`slimgate verify` takes it as it is",
        )  # fmt: skip
    [first, *_] = model.find_consumers(model.graph.input[0].name)
    if first.op_type != "Quant":
        raise ImportProblem(
            f"the input goes into {first.op_type} before it is quantized", where=path,
            fix="begin the network with a quantizer (Brevitas: QuantIdentity), so that pixels have codes",
        )  # fmt: skip
    shape = graph.input_shape(model)
    in_file = network.file.get_tensor_shape(network.file.graph.input[0].name)[1:]
    picture = shape if len(in_file) == 3 and shape[-1] in (1, 3) else None
    out = model.get_tensor_shape(model.graph.output[0].name)[1:]
    if max(out[:-1], default=1) > 1 or prod(out) < 2:
        raise ImportProblem(
            f"its output has the shape {tuple(out)}, not one row of two or more scores", where=path,
            fix="only classifiers become recipes; `slimgate verify` compares networks of any output",
        )  # fmt: skip
    return Imported(network, shape, picture, prod(out), quantizer_of(model, first))


def check_labels(labels: list[str], found: Imported, where) -> None:
    """Raise ImportProblem unless there is one label for each output of the network."""
    if len(labels) != found.outputs:
        raise ImportProblem(
            f"{len(labels)} labels, and the network has {found.outputs} outputs", where=where,
            fix="give one name for each output, in the order of the outputs",
        )  # fmt: skip


def test_set(found: Imported, kind: str, path: Path | None, labels: list[str], *, input_range=None, mean=None,
             std=None, resize="bilinear", progress=None) -> TestSet:  # fmt: skip
    """The test data as input codes. Raises SlimgateError for what does not fit the network."""
    data = elsewhere.load(kind, path, labels, found.picture, resize=resize, progress=progress)
    given = [name for name, value in (("input_range", input_range), ("mean", mean), ("std", std)) if value is not None]
    if "inputs" in data:
        if given:
            raise ImportProblem(
                f"{given[0]} is about pixels; the array 'inputs' holds values or codes as the network takes them",
                where=path, fix="leave it out, or save bytes 0..255 under the name 'pixels'",
            )  # fmt: skip
        values = verify.read_inputs(path, found.network)
        return TestSet(data, verify.wire_codes(found.network, values), data["labels"], None)
    bytes_ = data["pixels"]
    if kind == "npz":
        bytes_ = _on_the_wire(found, bytes_, path)
    table = pixels.table(found.quantizer, found.shape[-1], input_range=input_range, mean=mean, std=std)
    return TestSet(data, pixels.apply(table, bytes_), data["labels"], table)


test_set.__test__ = False


def _on_the_wire(found: Imported, array: np.ndarray, path: Path) -> np.ndarray:
    """Bytes in the axis order of the file -> in that of the wire."""
    shape = tuple(found.network.file.get_tensor_shape(found.network.file.graph.input[0].name)[1:])
    if array.shape[1:] != shape:
        turned = sorted(array.shape[1:]) == sorted(shape)
        raise ImportProblem(
            f"the pixels have shape {array.shape}, the network takes (N, {', '.join(map(str, shape))})", where=path,
            fix="put the axes in the model's order (numpy.moveaxis)" if turned else "one row for each sample: (N, ...)",
        )  # fmt: skip
    return array.reshape(len(array), -1)[:, _order(found).ravel()].reshape(len(array), *found.shape)


def _order(found: Imported) -> np.ndarray:
    """Where in a flattened sample of the file each code of the wire lies: (*shape) int64."""
    shape = found.network.file.get_tensor_shape(found.network.file.graph.input[0].name)[1:]
    positions = np.arange(prod(shape), dtype=np.float64).reshape(1, *shape)
    return verify.wire_codes(found.network, np.ldexp(positions, found.network.grid.lsb))[0]


def file_codes(found: Imported, codes: np.ndarray) -> np.ndarray:
    """Codes (N, *shape) of the wire in the axis order of the file."""
    shape = found.network.file.get_tensor_shape(found.network.file.graph.input[0].name)[1:]
    flat = np.empty((len(codes), prod(shape)), codes.dtype)
    flat[:, _order(found).ravel()] = codes.reshape(len(codes), -1)
    return flat.reshape(len(codes), *shape)


def parameters(found: Imported) -> int:
    """Trained numbers in the file: weights, biases, scales and shifts; not those of its quantizers."""
    model, counted = found.network.file, {}
    for node in model.graph.node:
        if node.domain:  # quantizers
            continue
        for name in node.input[1:3] if node.op_type == "BatchNormalization" else node.input:
            while (producer := model.find_producer(name)) is not None and producer.domain:
                name = producer.input[0]
            value = model.get_initializer(name)
            if value is not None and value.dtype.kind == "f" and value.any():  # a bias of zeros stands for none
                counted[name] = value.size
    return sum(counted.values())
