"""Which picture is for training, which for validation, which for the test: decided by name, per class."""

import hashlib
from collections.abc import Mapping, Sequence

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
