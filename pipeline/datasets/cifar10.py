"""CIFAR-10 as published (Krizhevsky 2009): 60,000 pictures, 32x32 RGB, ten classes; test = the published test batch.

``data.root`` is a folder that holds, itself or one folder below, the python batches, the binary batches, or one of
the two published archives, which are read as they are. What is verified, and said in dataset.json:
python batches by the md5 of each file, archives by their published md5, and unpacked binary batches by size and by
the labels only, since no checksum of the single binary files is published.
"""

import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from boards.errors import SlimgateError
from pipeline.datasets import split
from pipeline.datasets.pictures import MODES
from pipeline.datasets.source import looks

SPEC = {
    "name": "cifar10",
    "summary": "CIFAR-10 as published, python or binary batches, from a folder you name",
    "needs": ("root",),
    "uses": ("root", "color", "validation", "seed"),
    "shape": (32, 32, 3),
    "classes": 10,
    "address": "https://www.cs.toronto.edu/~kriz/cifar.html",
}

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 10_000
# md5 of the published files; the archives' are on the publication page, the batches' in torchvision as well.
PYTHON = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
BINARY = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
BATCHES = {"python": list(PYTHON), "binary": BINARY}
ARCHIVES = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
# The first labels of the first batch, as every reader of the set knows them.
FIRST_LABELS = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]


class CifarError(SlimgateError):
    """The files are absent or are not the published ones."""


def seen(recipe) -> list:
    """Name and looks of the files that will be read."""
    kind, files = _find(recipe.resolve(recipe.data.root))
    return [kind, [[file.name, *looks(file)] for file in files]]


def load(recipe, *, progress=None) -> dict:
    """All pictures in three splits; ``pipeline/stages/data.py`` tells what a data set's ``load`` returns."""
    data = recipe.data
    kind, files = _find(recipe.resolve(data.root))
    if kind == "archive":
        contents = _archive(files[0])
        kind = "python" if "test_batch" in contents else "binary"
        verified = "md5 of the archive"
    else:
        contents, verified = {file.name: file for file in files}, VERIFIED[kind]
    read = {"python": _python, "binary": _binary}[kind]
    names = list(BATCHES[kind])
    batches = [
        read(item if isinstance(item := contents[name], bytes) else item.read_bytes(), files[0].parent / name)
        for name in (progress(names, "CIFAR-10 batches") if progress else names)
    ]
    labels = np.concatenate([labels for _, labels in batches])
    pixels = np.concatenate([pixels for pixels, _ in batches])
    _check_labels(labels, files[0].parent)
    if data.color == "gray":
        pixels = np.stack([np.asarray(Image.fromarray(picture).convert(MODES["gray"])) for picture in pixels])
        pixels = pixels[..., None]

    last = len(labels) - PER_BATCH
    names = [str(index) for index in range(last)]
    assigned = split.assign(names, labels[:last], CLASSES, validation=data.validation, test_fraction=0, seed=data.seed)
    part = np.array([*assigned, *["test"] * PER_BATCH])
    return {
        "splits": {name: {"pixels": pixels[part == name], "labels": labels[part == name]} for name in split.SPLITS},
        "labels": CLASSES,
        "provenance": {
            "source": f"CIFAR-10, {kind} batches",
            "address": SPEC["address"],
            "verified": verified,
            "split": f"published test batch; validation stratified from the training batches, seed {data.seed}",
        },
    }


VERIFIED = {
    "python": "md5 of each batch",
    "binary": (
        "size of each batch, labels 0..9 in equal numbers and the first ten of batch 1; not the pixels, since no "
        "checksum of the single binary files is published (the archive's is: name its folder instead)"
    ),
}


def _find(root: Path) -> tuple[str, list[Path]]:
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        for kind, names in BATCHES.items():
            present = [name for name in names if (folder / name).is_file()]
            if len(present) == len(names):
                return kind, [folder / name for name in names]
            if present:
                absent = ", ".join(name for name in names if name not in present)
                raise CifarError(f"batches are missing: {absent}", where=folder, fix=f"get them from {SPEC['address']}")
    for name in ARCHIVES:
        if (root / name).is_file():
            return "archive", [root / name]
    raise CifarError(
        "no CIFAR-10 here" if root.is_dir() else "data.root is not a folder",
        where=root,
        fix=f"get {' or '.join(ARCHIVES)} from {SPEC['address']} and name its folder, unpacked or not, as data.root",
    )


def _checked(content: bytes, md5: str, where) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise CifarError(
            f"not the published file: md5 {found}, published {md5}",
            where=where,
            fix=f"get it again from {SPEC['address']}",
        )
    return content


def _archive(file: Path) -> dict[str, bytes]:
    """{batch's name: content}; nothing is unpacked to disk."""
    content = _checked(file.read_bytes(), ARCHIVES[file.name], file)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if any(name in names for names in BATCHES.values()):
                found[name] = archive.extractfile(member).read()
    return found


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers; anything else a pickle could call is refused."""

    _KNOWN = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return self._KNOWN[module, name]


def _python(content: bytes, where: Path) -> tuple[np.ndarray, np.ndarray]:
    _checked(content, PYTHON[where.name], where)
    return _unpickle(content, where)


def _unpickle(content: bytes, where) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        rows, labels = batch["data"], np.array(batch["labels"], dtype=np.int64)
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
    ) as error:
        raise CifarError(f"not a CIFAR-10 batch: {error}", where=where) from error
    if not isinstance(rows, np.ndarray) or rows.shape != (PER_BATCH, 3072) or rows.dtype != np.uint8:
        raise CifarError(f"not {PER_BATCH} pictures of 3,072 bytes", where=where)
    if labels.shape != (PER_BATCH,):
        raise CifarError(f"not {PER_BATCH} labels", where=where)
    return _pictures(rows), labels


def _binary(content: bytes, where: Path) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != PER_BATCH * 3073:
        raise CifarError(
            f"{len(content)} bytes, a batch has {PER_BATCH * 3073}",
            where=where,
            fix=f"get it again from {SPEC['address']}",
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(PER_BATCH, 3073)
    return _pictures(rows[:, 1:]), rows[:, 0].astype(np.int64)


def _pictures(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _check_labels(labels: np.ndarray, where: Path) -> None:
    """The published counts: every class 5,000 times in the training batches and 1,000 times in the test batch."""
    last = len(labels) - PER_BATCH
    right = labels.min() >= 0 and labels.max() <= 9 and labels[: len(FIRST_LABELS)].tolist() == FIRST_LABELS
    if not right or any(
        (np.bincount(part, minlength=10) != len(part) // 10).any() for part in (labels[:last], labels[last:])
    ):
        raise CifarError(
            "the labels are not those of the published batches",
            where=where,
            fix=f"get them again from {SPEC['address']}",
        )
