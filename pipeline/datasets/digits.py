"""The 1,797 handwritten digits that scikit-learn carries (UCI, "Optical Recognition of Handwritten Digits").

8x8 gray pictures of 43 writers with 17 levels, 0..16. They become ordinary 8-bit pictures by
``pixel = min(16 * level, 255)``: injective, and the same number a picture file of that digit would hold.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from boards.errors import SlimgateError
from pipeline.datasets.split import SPLITS, assign

SPEC = {
    "name": "digits",
    "summary": "1,797 handwritten digits, 8x8 gray, embedded in scikit-learn (no download)",
    "needs": (),
    "uses": ("validation", "test_fraction", "seed"),
    "shape": (8, 8, 1),
    "classes": 10,
    "address": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
}

# Of the uint8 pixels (1797, 8, 8), then of the labels as little-endian int64.
SHA256 = "5dcd4effdfd089f650611da09219875dc9a8c3f475aab3a81803cadc773e1867"
SHA256_LABELS = "a3c91c262eddcf7ba8f0e37507c30284493c9b20412ffe4af30d536401f7ba21"


class DigitsError(SlimgateError):
    """scikit-learn's copy is not the published one."""


def seen(recipe) -> list:
    """sha256 of the file the digits lie in."""
    package = find_spec("sklearn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz" if package else None
    return [hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None]


def load(recipe, *, progress=None) -> dict:
    """All pictures in three splits; ``pipeline/stages/data.py`` tells what a data set's ``load`` returns."""
    data = recipe.data
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = np.minimum(raw.images.astype(np.int64) * 16, 255).astype(np.uint8)
    labels = raw.target.astype("<i8")
    found = [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in (pixels, labels)]
    if found != [SHA256, SHA256_LABELS]:
        raise DigitsError(
            "the digits of the installed scikit-learn are not the published 1,797 pictures",
            where="sklearn.datasets.load_digits",
            fix="install the pinned scikit-learn",
        )
    classes = [str(name) for name in raw.target_names]
    split = np.array(assign([str(i) for i in range(len(labels))], labels, classes, validation=data.validation,
                            test_fraction=data.test_fraction, seed=data.seed))  # fmt: skip
    return {
        "splits": {
            name: {
                "pixels": pixels[split == name][..., None],
                "labels": labels[split == name].astype(np.int64),
            }
            for name in SPLITS
        },
        "labels": classes,
        "provenance": {
            "source": "scikit-learn load_digits",
            "address": SPEC["address"],
            "verified": "sha256 of all pixels and labels",
            "split": f"stratified by class, seed {data.seed}",
        },
    }
