"""The user's own pictures: folders or zips with one folder per class.

With ``test`` given, it is the test; the validation is taken from ``train``. Without it, ``train`` is divided in three,
and who belongs where is written to ``<recipe's name>.split.json`` beside the recipe, once. From then on that file
holds: a picture added later is assigned and appended, an old one never moves, one that was removed and comes back
returns to its place. Delete the file for a new division.
"""

import io
import os
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from pipeline.datasets import split
from pipeline.datasets.pictures import PictureError, load_picture
from pipeline.datasets.source import MAX_BYTES, Listing, Picture, SourceError, listing, looks

SPEC = {
    "name": "folder",
    "summary": "your own pictures: a folder or zip with one folder per class",
    "needs": ("train", "size"),
    "uses": ("train", "test", "size", "color", "resize", "validation", "test_fraction", "seed"),
    "shape": None,
    "classes": None,
    "address": None,
}


def seen(recipe) -> list:
    """Name and looks of every picture, and the split each is assigned to."""
    given = _listings(recipe)
    assigned = _assign(recipe, given["train"])
    found = [[[picture.name, *picture.token] for picture in part.pictures] for part in given.values()]
    return [found, assigned]


def load(recipe, *, progress=None) -> dict:
    """All pictures in three splits; ``pipeline/stages/data.py`` tells what a data set's ``load`` returns.

    Raises SourceError, PictureError and SplitError, naming the file. No file is ever skipped but the leftovers of
    file managers, which are counted.
    """
    data = recipe.data
    given = _listings(recipe)
    assigned = _assign(recipe, given["train"])
    classes = given["train"].classes
    entries = [(*pair, "train") for pair in zip(given["train"].pictures, assigned, strict=True)]
    entries += [(picture, "test", "test") for picture in given["test"].pictures] if "test" in given else []

    splits: dict[str, dict] = {name: {"pixels": [], "labels": [], "names": []} for name in split.SPLITS}
    paths = {"train": recipe.resolve(data.train)}
    if "test" in given:
        paths["test"] = recipe.resolve(data.test)
    for part, path in paths.items():
        mine = [(picture, name) for picture, name, where in entries if where == part]
        pixels = _decode(path, [picture for picture, _ in mine], data, progress, f"{part} pictures")
        for (picture, name), array in zip(mine, pixels, strict=True):
            splits[name]["pixels"].append(array)
            splits[name]["labels"].append(classes.index(picture.label))
            splits[name]["names"].append(f"{part}/{picture.name}" if "test" in given else picture.name)
    if "test" not in given:
        split.keep(_file(recipe), data, [picture.name for picture in given["train"].pictures], assigned)
    return {
        "splits": {
            name: {
                "pixels": np.stack(part["pixels"]),
                "labels": np.array(part["labels"], dtype=np.int64),
                "names": np.array(part["names"]),
            }
            for name, part in splits.items()
        },
        "labels": classes,
        "provenance": {
            "source": "folder",
            "train": paths["train"].name,
            "test": paths["test"].name if "test" in paths else None,
            "verified": "every picture decoded",
            "ignored_files": sum(part.ignored for part in given.values()),
            "split": "test given, validation by name" if "test" in given else _file(recipe).name,
        },
    }


def _listings(recipe) -> dict[str, Listing]:
    data = recipe.data
    given = {"train": listing(recipe.resolve(data.train), "data.train")}
    if data.test is not None:
        given["test"] = listing(recipe.resolve(data.test), "data.test")
        train, test = set(given["train"].classes), set(given["test"].classes)
        if train != test:
            lines = [f"{name!r} only in data.train" for name in sorted(train - test)]
            lines += [f"{name!r} only in data.test" for name in sorted(test - train)]
            raise SourceError(
                "data.train and data.test have different classes: " + ", ".join(lines),
                where=recipe.resolve(data.test),
                fix="the same class folders in both",
            )
    return given


def _file(recipe) -> Path:
    return recipe.resolve(f"{recipe.name}.split.json")


def _assign(recipe, train: Listing) -> list[str]:
    data = recipe.data
    own_test = data.test is None
    return split.assign(
        [picture.name for picture in train.pictures],
        [train.classes.index(picture.label) for picture in train.pictures],
        train.classes,
        validation=data.validation,
        test_fraction=data.test_fraction if own_test else 0,
        seed=data.seed,
        old=split.kept(_file(recipe), data) if own_test else None,
    )


def _decode(path: Path, pictures: list[Picture], data, progress, label: str) -> list[np.ndarray]:
    """In threads: Pillow's decoders and filters run outside the interpreter lock."""
    archive = None if path.is_dir() else zipfile.ZipFile(path)

    def one(picture: Picture) -> np.ndarray:
        where = picture.key if archive is None else f"{path}: {picture.name}"
        return load_picture(io.BytesIO(_read(archive, picture, where)), data.size, data.color, data.resize, name=where)

    workers = os.cpu_count() or 1
    with archive or nullcontext(), ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(one, picture) for picture in pictures]
        try:
            return [future.result() for future in (progress(waiting, label) if progress else waiting)]
        finally:
            pool.shutdown(cancel_futures=True)


def _read(archive: zipfile.ZipFile | None, picture: Picture, where: str) -> bytes:
    try:
        if archive is not None:
            return archive.read(picture.key)
        if looks(Path(picture.key))[0] > MAX_BYTES:
            raise PictureError(f"more than {MAX_BYTES} bytes", where=where, fix="remove the file")
        return Path(picture.key).read_bytes()
    # zlib's error for a damaged member derives from Exception alone; a password or an unknown packing is a
    # RuntimeError to zipfile.
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        raise PictureError(f"cannot be read: {error}", where=where, fix="replace or remove the file") from error
