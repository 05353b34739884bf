"""Stage ``data``: real pictures, in three splits that share none, as plain arrays.

A data set is a module ``pipeline/datasets/<name>.py`` with

    SPEC    {"name", "summary", "needs": keys of [data] without which it cannot load, "uses": keys it reads,
             "shape": (H, W, C) or None when the recipe says, "classes": number or None, "address"}
    seen(recipe) -> what is there to be read, as plain JSON; it changes when the files do and is quick
    load(recipe, *, progress) -> {
        "splits": {"train" | "val" | "test":
                   {"pixels": (N, H, W, C) uint8, "labels": (N,) int64, "names" (folder only): (N,) str}},
        "labels": [class names],
        "provenance": {...}}    no absolute paths, no times: the artifacts must be the same every time

``progress(list, label)`` hands the list through while showing how far it is.
"""

import hashlib
import json
from importlib import import_module
from pathlib import Path

import numpy as np

from pipeline.datasets.split import SPLITS


def run(ctx) -> None:
    """Load, write ``train.npz val.npz test.npz dataset.json``, then gate on leaks and absent classes."""
    data = ctx.recipe.data
    module = import_module(f"pipeline.datasets.{data.name}")
    loaded = module.load(ctx.recipe, progress=ctx.progress)
    splits, labels = loaded["splits"], loaded["labels"]
    write(ctx.folder, module.SPEC["name"], loaded, resize=data.resize)
    shared = in_two_splits(splits)
    ctx.gate(
        "no picture in two splits",
        not shared,
        "every picture's pixels are in one split only"
        if not shared
        else f"{len(shared)} picture(s) in two splits: " + "; ".join(f"{a} is {b}" for a, b in shared[:10]),
        fix="remove one of each pair or put both in the same split: a test that was trained on is no test",
        shared=len(shared),
    )
    absent = classes_absent(splits, labels)
    ctx.gate(
        "every class in every split",
        not absent,
        "absent: " + "; ".join(absent) if absent else f"{len(labels)} classes in each split",
        fix="add pictures of those classes",
        absent=len(absent),
    )


def write(folder: Path, name: str, loaded: dict, *, resize: str) -> None:
    """The four files of the stage. The same pictures give the same bytes (npz members carry a fixed date)."""
    splits, labels = loaded["splits"], loaded["labels"]
    for split in SPLITS:
        np.savez(folder / f"{split}.npz", **splits[split])
    height, width, channels = splits["train"]["pixels"].shape[1:]
    color = "gray" if channels == 1 else "rgb"
    repeated = {
        split: len(splits[split]["labels"]) - len({_digest(picture) for picture in splits[split]["pixels"]})
        for split in SPLITS
    }
    description = {
        "name": name,
        "labels": labels,
        "shape": [height, width, channels],
        "counts": {split: len(splits[split]["labels"]) for split in SPLITS},
        "counts_per_class": {
            split: np.bincount(splits[split]["labels"], minlength=len(labels)).tolist() for split in SPLITS
        },
        "repeated_within_split": repeated,
        "provenance": loaded["provenance"],
        "preprocess": {"size": [height, width], "color": color, "resize": resize},
    }
    text = json.dumps(description, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / "dataset.json").write_text(text + "\n", encoding="utf-8")


def in_two_splits(splits: dict) -> list[tuple[str, str]]:
    """Pairs of pictures, by name, whose pixels are equal though they are in different splits.

    Compared as the network sees them, so the same file under two names, the same picture in two lossless
    formats and two pictures that only differ in what resizing removes are all found.
    """
    seen: dict[bytes, tuple[str, str]] = {}
    shared = []
    for split in SPLITS:
        arrays = splits[split]
        names = arrays.get("names")
        for index, picture in enumerate(arrays["pixels"]):
            title = f"{split}:{index if names is None else names[index]}"
            first = seen.setdefault(_digest(picture), (split, title))
            if first[0] != split:
                shared.append((first[1], title))
    return shared


def _digest(picture: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(picture), digest_size=16).digest()


def classes_absent(splits: dict, labels: list[str]) -> list[str]:
    """``"class in split"`` for every class that a split has no picture of."""
    return [
        f"{labels[k]} in {split}"
        for split in SPLITS
        for k, count in enumerate(np.bincount(splits[split]["labels"], minlength=len(labels)))
        if count == 0
    ]
