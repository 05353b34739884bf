"""A network that was trained elsewhere, with its test data: what both `slimgate import` and the stage look at."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from boards.errors import SlimgateError
from hls import graph, verify
from hls.layout import WIRE
from hls.numerics import Quantizer, quantizer_of
from pipeline import pixels
from pipeline.datasets import elsewhere
from pipeline.golden import smallest


class ImportProblem(SlimgateError):
    """A network, its labels and its test data do not fit one another."""


@dataclass(frozen=True)
class Imported:
    """``shape``: of a sample on the wire, channels last; ``in_file``: as the file takes it; ``picture``: (H, W, C)
    where a sample is a gray or color picture, else None; ``outputs``: scores of a sample; ``quantizer``: its input."""

    network: verify.Network
    shape: tuple[int, ...]
    in_file: tuple[int, ...]
    picture: tuple[int, int, int] | None
    outputs: int
    quantizer: Quantizer


@dataclass(frozen=True)
class TestSet:
    """``codes`` (N, *shape) integers as on the wire, ``labels`` (N,) int64, ``values(chosen)`` the same samples as the
    file takes them, float; ``table`` (C, 256) of pixels, None where samples are no pixels; ``picture``: whether the
    table alone makes the codes of a picture."""

    __test__ = False

    data: dict
    codes: np.ndarray
    labels: np.ndarray
    values: Callable[[np.ndarray], np.ndarray]
    table: np.ndarray | None = None
    picture: bool = False


def examine(path: Path) -> Imported:
    """Check a file and its conditions of exactness. Raises GraphError, Refused or ImportProblem."""
    network = verify.examine(path)
    model = network.model
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
    out = model.get_tensor_shape(model.graph.output[0].name)[1:]
    if max(out[:-1], default=1) > 1 or prod(out) < 2:
        raise ImportProblem(
            f"its output has the shape {tuple(out)}, not one row of two or more scores", where=path,
            fix="only classifiers become recipes; `slimgate verify` compares networks of any output",
        )  # fmt: skip
    shape = graph.input_shape(model)
    in_file = tuple(network.file.get_tensor_shape(network.file.graph.input[0].name)[1:])
    return Imported(network, shape, in_file, _picture(network, shape, in_file), prod(out), quantizer_of(model, first))


def _picture(network, shape, in_file) -> tuple[int, int, int] | None:
    """(H, W, C) of the pictures a network takes; None where its input is none, or turned in a way not understood."""
    if network.front is None:
        return shape if len(_wire(network)["shape"]) == 3 and shape[-1] in (1, 3) else None
    turned = "Transpose" in [node.op_type for node in network.front.graph.node]
    return (*in_file[1:], in_file[0]) if len(in_file) == 3 and in_file[0] in (1, 3) and not turned else None


def _wire(network) -> dict:
    told = json.loads(network.model.get_metadata_prop(WIRE))
    return {"shape": tuple(told["shape"]), "axes": told["axes"]}


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
        return TestSet(data, _wired(found, values), data["labels"], lambda chosen: values[chosen])
    bytes_ = data["pixels"]
    if kind == "npz":
        _check_pixels(found, bytes_, path)
    else:
        bytes_ = in_file_order(found, bytes_)
    channels = found.picture[2] if found.picture else 1
    levels = pixels.values(channels, input_range=input_range, mean=mean, std=std)
    if found.network.front is None:
        table = pixels.table(found.quantizer, levels)
        levels = np.ldexp(table.astype(np.float64), found.quantizer.lsb)
    else:
        table = _probed(found, levels)

    def values(chosen) -> np.ndarray:
        return _leveled(found, levels, bytes_[chosen])

    codes = np.concatenate([_wired(found, values(slice(at, at + 1024))) for at in range(0, len(bytes_), 1024)])
    known = found.picture is not None and table is not None
    if known:
        alone = pixels.apply(table, in_file_order(found, bytes_, back=True)).reshape(codes.shape)
        known = np.array_equal(alone, codes)
    return TestSet(data, codes, data["labels"], values, table, known)


test_set.__test__ = False


def _wired(found: Imported, values: np.ndarray) -> np.ndarray:
    codes = verify.wire_codes(found.network, values)
    return codes.astype(smallest(np.array([found.quantizer.lo, found.quantizer.hi])))


def _leveled(found: Imported, levels: np.ndarray, bytes_: np.ndarray) -> np.ndarray:
    """Values (N, *in_file) of bytes in the same order, by a table (C, 256)."""
    last = in_file_order(found, bytes_, back=True) if found.picture else bytes_[..., None]
    made = np.stack([levels[channel][last[..., channel]] for channel in range(len(levels))], axis=-1)
    return in_file_order(found, made) if found.picture else made[..., 0]


def _probed(found: Imported, levels: np.ndarray) -> np.ndarray | None:
    """The table of a file that computes something before it quantizes: 256 even pictures through those nodes.

    None where the same pixel becomes another code at another place: then the table alone makes no codes.
    """
    if found.picture is None:
        return None
    even = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, *found.picture))
    codes = _wired(found, _leveled(found, levels, in_file_order(found, even))).reshape(even.shape)
    pixels.check_varied(found.quantizer, codes[:, 0, 0].T, levels)
    return codes[:, 0, 0].T.astype(np.int64) if np.array_equal(codes, np.broadcast_to(codes[:, :1, :1], codes.shape)) \
        else None  # fmt: skip


def in_file_order(found: Imported, pictures: np.ndarray, *, back: bool = False) -> np.ndarray:
    """Pictures (N, H, W, C) with their axes as the file has them (N, *in_file); ``back`` is the other way."""
    if found.network.front is not None:
        return np.moveaxis(pictures, 1, -1) if back else np.moveaxis(pictures, -1, 1)
    told = _wire(found.network)
    if back:
        return pictures.reshape(-1, *told["shape"]).transpose(told["axes"])
    return pictures.transpose(np.argsort(told["axes"])).reshape(-1, *found.in_file)


def _check_pixels(found: Imported, array: np.ndarray, path: Path) -> None:
    if array.shape[1:] != found.in_file:
        turned = sorted(array.shape[1:]) == sorted(found.in_file)
        raise ImportProblem(
            f"the pixels have shape {array.shape}, the network takes (N, {', '.join(map(str, found.in_file))})",
            where=path,
            fix="put the axes in the model's order (numpy.moveaxis)" if turned else "one row for each sample: (N, ...)",
        )  # fmt: skip


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
