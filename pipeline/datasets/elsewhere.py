"""Test data for a network that was trained elsewhere: nothing is trained here, so there is one split, the test.

``kind`` is one of

    digits    the test part of scikit-learn's digits, as runs/digits.toml divides them
    cifar10   the published test batch, from a folder that holds the published files
    folder    a folder or zip of class folders, every picture of it
    npz       ``labels`` (N,) whole numbers, and ``pixels`` (N, ...) uint8 or ``inputs`` (N, ...): values on the grid of
              the network's input quantizer, or its integer codes; axes as the network's file has them

Nothing here imports torch or onnx until a network is asked, so that a finished run is recognized in no time.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from boards.errors import SlimgateError
from pipeline.datasets import cifar10, digits, folder
from pipeline.datasets.source import SourceError, listing, looks

KINDS = ("digits", "cifar10", "folder", "npz")
#: Those that are pictures whatever they hold.
PICTURES = ("digits", "cifar10", "folder")
#: As the shipped recipe divides the digits: what it tests on, a network trained by it has not seen.
_SPLIT = {"validation": 0.2, "test_fraction": 0.2, "seed": 0}


class TestDataError(SlimgateError):
    """Test data that do not fit the network or its labels."""

    __test__ = False


def kind_of(said: str) -> str:
    """Which kind of data a word or path of the command line names. Raises TestDataError where nothing is there."""
    try:
        return _kind(said, Path(said))
    except OSError as error:
        raise TestDataError(f"the test data cannot be read: {error.strerror}", where=error.filename or said,
                            fix="make them readable for you") from error  # fmt: skip


def _kind(said: str, path: Path) -> str:
    if said == "digits" and not path.exists():
        return "digits"
    if path.is_dir():
        names = [*cifar10.PYTHON, *cifar10.BINARY, *cifar10.ARCHIVES]
        inner = ("cifar-10-batches-py", "cifar-10-batches-bin")
        found = any((path / name).is_file() for name in names) or any((path / name).is_dir() for name in inner)
        return "cifar10" if found else "folder"
    if path.is_file():
        return "folder" if path.suffix.lower() != ".npz" and _zip_of_pictures(path) else "npz"
    raise TestDataError(
        "there are no such test data", where=said,
        fix='give a folder or zip of class folders, an .npz with inputs and labels, or the word "digits"',
    )  # fmt: skip


def _zip_of_pictures(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return not all(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError):
        return path.suffix.lower() == ".zip"


def fingerprint(recipe) -> str:
    """sha256 hex digest that changes whenever the model or the test data do: names, sizes and times of the files."""
    data = recipe.imported
    seen: list = [list(looks(path)) if (path := recipe.resolve(data.model)).is_file() else None]
    path = None if data.test is None else recipe.resolve(data.test)
    if data.data == "digits":
        seen.append(digits.seen(recipe))
    elif data.data == "cifar10":
        seen.append(cifar10.seen(_as(path)))
    elif data.data == "npz":
        seen.append([path.name, *looks(path)] if path.is_file() else None)
    else:
        seen.append([[picture.name, *picture.token] for picture in listing(path, "imported.test").pictures])
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def classes(kind: str, path: Path | None) -> list[str] | None:
    """The names of the classes that the data bring along, in the order of their numbers; None for an npz."""
    if kind == "npz":
        return None
    if kind == "folder":
        return listing(path, "the test data").classes
    return cifar10.CLASSES if kind == "cifar10" else [str(digit) for digit in range(digits.SPEC["classes"])]


def load(kind: str, path: Path | None, labels: list[str], shape, *, resize: str = "bilinear", progress=None) -> dict:
    """{"pixels" (N, H, W, C) uint8 or "inputs" (N, ...), "labels" (N,) int64, "names" or None, "provenance"}.

    ``labels``: names of the network's outputs, in their order. ``shape``: (H, W, C) of a picture on the wire, None for
    a network that takes none. Pixels of an npz are as they lie there. Raises SlimgateError for what does not fit.
    """
    if kind == "npz":
        return _npz(path, len(labels))
    if shape is None:
        raise TestDataError(
            "the network takes no pictures: its inputs are no (channels, height, width) with 1 or 3 channels",
            where=path, fix="give an .npz with inputs and labels",
        )  # fmt: skip
    color = "gray" if shape[2] == 1 else "rgb"
    found = _folder(path, labels, shape, color, resize, progress) if kind == "folder" else _known(kind, path, color)
    if found["pixels"].shape[1:] != tuple(shape):
        size = "{0[0]} x {0[1]} pixels of {0[2]} channel(s)"
        raise TestDataError(
            f"the pictures of {kind!r} are {size.format(found['pixels'].shape[1:])}; the network takes "
            f"{size.format(shape)}", where=path,
            fix="give the data set that the network was trained for, or a folder of pictures, which are resized",
        )  # fmt: skip
    own = classes(kind, path)
    if kind != "folder" and len(own) != len(labels):
        raise TestDataError(f"{kind!r} has {len(own)} classes, the network {len(labels)}", where=path,
                            fix="give the data set that the network was trained for")  # fmt: skip
    return found


def _as(path: Path | None, **more) -> SimpleNamespace:
    """What the loaders of data sets read of a recipe."""
    data = SimpleNamespace(root=path, **(_SPLIT | more))
    return SimpleNamespace(data=data, resolve=lambda _: path)


def _known(kind: str, path: Path | None, color: str) -> dict:
    module = {"digits": digits, "cifar10": cifar10}[kind]
    loaded = module.load(_as(path, color=color))
    test = loaded["splits"]["test"]
    return {"pixels": test["pixels"], "labels": test["labels"], "names": None,
            "provenance": loaded["provenance"] | {"used": "the test part only"}}  # fmt: skip


def _folder(path: Path, labels: list[str], shape, color: str, resize: str, progress) -> dict:
    found = listing(path, "the test data")
    check_classes(found.classes, labels, path)
    rule = SimpleNamespace(size=list(shape[:2]), color=color, resize=resize)
    pixels = folder._decode(path, found.pictures, rule, progress, "test pictures")
    return {
        "pixels": np.stack(pixels),
        "labels": np.array([labels.index(picture.label) for picture in found.pictures], np.int64),
        "names": [picture.name for picture in found.pictures],
        "provenance": {"source": "folder", "test": path.name, "verified": "every picture decoded",
                       "ignored_files": found.ignored, "used": "every picture, as the test"},
    }  # fmt: skip


def check_classes(there: list[str], labels: list[str], path: Path) -> None:
    """Raise SourceError unless every class folder is called like one of the network's labels."""
    strange = sorted(set(there) - set(labels))
    if strange:
        missing = sorted(set(labels) - set(there))
        left = f"; labels without a folder: {', '.join(missing[:5])}" if missing else ""
        raise SourceError(
            f"class folder(s) that are none of the network's labels: {', '.join(map(repr, strange[:5]))}{left}",
            where=path, fix="call the folders as the labels; the order of the labels is that of the network's outputs",
        )  # fmt: skip


def _npz(path: Path, count: int) -> dict:
    arrays = read_npz(path)
    labels = arrays["labels"]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        fix = "save whole numbers, one for each sample"
        if labels.ndim == 2 and labels.shape[1] == count:
            fix = "that looks like one-hot vectors or scores: save labels.argmax(1)"
        raise TestDataError(f"the labels are {labels.dtype} of shape {labels.shape}, not (N,) whole numbers",
                            where=path, fix=fix)  # fmt: skip
    key = "pixels" if "pixels" in arrays else "inputs"
    found = arrays[key]
    if found.ndim < 2 or len(found) != len(labels):
        raise TestDataError(f"{key} has shape {found.shape}, labels {labels.shape}: not one label for each sample",
                            where=path, fix="save as many labels as samples, in the same order")  # fmt: skip
    if not len(labels):
        raise TestDataError("there are no samples: N is 0", where=path, fix="save at least one of each class")
    if labels.min() < 0 or labels.max() >= count:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise TestDataError(f"label {wrong} is none of 0 to {count - 1}, the network's {count} outputs", where=path,
                            fix="number the classes from 0, in the order of the outputs")  # fmt: skip
    if key == "pixels" and found.dtype != np.uint8:
        raise TestDataError(f"pixels are of type {found.dtype}, not uint8", where=path,
                            fix="save bytes 0..255 as pixels, or values on the input's grid as inputs")  # fmt: skip
    return {key: found, "labels": labels.astype(np.int64), "names": None,
            "provenance": {"source": "npz", "test": path.name, "sha256": _sha256(path), "array": key}}  # fmt: skip


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """``labels`` and one of ``pixels`` and ``inputs``. Raises TestDataError for a file that holds something else."""
    from hls import onnxfile, verify

    fix = "numpy.savez(FILE, inputs=x, labels=y), or pixels= for bytes 0..255"
    if not path.is_file():
        raise TestDataError("there are no test data: no such file", where=path, fix=fix)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename.removesuffix(".npy"): item.file_size for item in archive.infolist()}
        given = [key for key in ("pixels", "inputs") if key in sizes]
        if "labels" not in sizes or len(given) != 1:
            there = f"there are: {', '.join(sorted(sizes)) or 'none'}"
            lack = "no array is called 'labels'" if "labels" not in sizes else (
                "there are both 'inputs' and 'pixels'" if given else "no array is called 'inputs' or 'pixels'")
            raise TestDataError(f"{lack}; {there}", where=path, fix=fix)
        for key in ("labels", *given):
            if sizes[key] > verify.LARGEST_INPUTS:
                raise TestDataError(f"the array {key!r} holds {sizes[key] / 2**30:.1f} GiB; "
                                    f"{verify.LARGEST_INPUTS >> 30} are taken at most", where=path,
                                    fix="give fewer samples")  # fmt: skip
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in ("labels", *given)}
    except SlimgateError:
        raise
    except OSError as error:
        raise TestDataError(f"the test data cannot be read: {error.strerror or onnxfile.first_line(error)}",
                            where=path, fix="make the file readable for you") from error  # fmt: skip
    except Exception as error:  # zipfile, zlib and numpy raise many types for a damaged or pickled file
        pickled = "allow_pickle" in str(error)
        reason = "it holds Python objects, not numbers" if pickled else onnxfile.first_line(error)
        raise TestDataError(f"not a readable npz file: {reason}", where=path, fix=fix) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
