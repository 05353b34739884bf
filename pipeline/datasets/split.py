"""Which picture is for training, which for validation, which for the test: decided by name, per class."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from boards.errors import SlimgateError

SPLITS = ("train", "val", "test")


class SplitError(SlimgateError):
    """The pictures cannot be divided as asked."""


def assign(
    names: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    validation: float,
    test_fraction: float,
    seed: int,
    old: Mapping[str, str] | None = None,
) -> list[str]:
    """One of ``SPLITS`` for each picture, stratified: the fractions hold in every class.

    Within a class the pictures are ranked by a hash of (seed, name); the first ``test_fraction`` of the class
    is the test, the next ``validation`` fraction of what remains is the validation, the rest is for training
    (counts rounded, at least one each; ``test_fraction`` 0 means no test pictures here). So the division
    depends on nothing but names and seed, on no random generator's version and on no order of files.
    ``old`` {name: split} is kept as it is; pictures it does not know fill up what is missing.
    SplitError names a class with too few pictures for every split to have one.
    """
    old = old or {}
    result: list[str] = [""] * len(names)
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(int(label), []).append(index)
    for label, indices in members.items():
        total = len(indices)
        wanted_test = max(1, round(test_fraction * total)) if test_fraction else 0
        wanted_val = max(1, round(validation * (total - wanted_test)))
        if wanted_test + wanted_val >= total:
            raise SplitError(
                f"class '{classes[label]}' has {total} picture(s): too few to give every split one",
                fix="add pictures to that class, remove the class, or lower validation or test_fraction",
            )
        missing = {"test": wanted_test, "val": wanted_val}
        fresh = []
        for index in indices:
            known = old.get(names[index])
            if known is None:
                fresh.append(index)
            else:
                result[index] = known
                missing[known] = missing.get(known, 0) - 1
        for index in sorted(fresh, key=lambda index: _rank(seed, names[index])):
            split = next((s for s in ("test", "val") if missing[s] > 0), "train")
            result[index] = split
            if split != "train":
                missing[split] -= 1
    return result


def _rank(seed: int, name: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest(), name


# What the division depends on: a file made with other values is not silently taken for these.
SETTINGS = ("validation", "test_fraction", "seed")


def kept(file: Path, data) -> dict[str, str]:
    """{picture's name: split} of a split file, empty when there is none. SplitError: damaged, or other settings."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        assignments, settings = content["assignments"], content["settings"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SplitError(
            f"the split file cannot be read: {error}",
            where=file,
            fix="restore it, or delete it for a new division",
        ) from error
    bad = sorted(name for name, word in assignments.items() if word not in SPLITS)
    if bad:
        raise SplitError(
            f"{bad[0]!r} is assigned to {assignments[bad[0]]!r}",
            where=file,
            fix=f"one of {', '.join(SPLITS)}",
        )
    for key in SETTINGS:
        if settings.get(key) != getattr(data, key):
            raise SplitError(
                f"the split file was made with {key} = {settings.get(key)}, the recipe says {getattr(data, key)}",
                where=file,
                fix="set it back in the recipe, or delete the split file for a new division",
            )
    return assignments


def keep(file: Path, data, names: Sequence[str], assigned: Sequence[str]) -> None:
    """Write the split file, or append pictures it does not know; what it holds is never changed."""
    old = kept(file, data)
    assignments = {**dict(zip(names, assigned, strict=True)), **old}
    if assignments == old:
        return
    content = {
        "about": "which split each picture belongs to; written once, pictures added later are appended",
        "settings": {key: getattr(data, key) for key in SETTINGS},
        "assignments": dict(sorted(assignments.items())),
    }
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise SplitError(
            f"the split file cannot be written: {error.strerror}",
            where=file,
            fix="give data.test, or make it writable",
        ) from error
