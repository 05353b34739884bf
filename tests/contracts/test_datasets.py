"""Every module of pipeline/datasets with a SPEC keeps the contract; a new one is tested without an edit here."""

import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest

from pipeline import config
from pipeline.datasets import source, split

NAMES = config.datasets()
LOADABLE_EVERYWHERE = [name for name in NAMES if not import_module(f"pipeline.datasets.{name}").SPEC["needs"]]


def module_of(name):
    return import_module(f"pipeline.datasets.{name}")


def recipe(name):
    return config.Recipe.model_validate({"name": "trial", "data": {"name": name}, "model": {"name": "cnn_small"}})


def test_the_folder_is_enumerated():
    assert {"cifar10", "digits", "folder"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_spec(name):
    module = module_of(name)
    assert set(module.SPEC) == {"name", "summary", "needs", "uses", "shape", "classes", "address"}
    assert module.SPEC["name"] == name and module.SPEC["summary"]
    assert set(module.SPEC["needs"]) <= set(module.SPEC["uses"]) <= set(config.Data.model_fields)
    assert callable(module.load) and callable(module.seen)


@pytest.mark.parametrize("name", LOADABLE_EVERYWHERE)
def test_loads_what_the_stage_writes(name):
    module = module_of(name)
    loaded = module.load(recipe(name))
    assert set(loaded) == {"splits", "labels", "provenance"}
    assert tuple(loaded["splits"]) == split.SPLITS
    assert len(loaded["labels"]) == module.SPEC["classes"] and len(set(loaded["labels"])) == len(loaded["labels"])
    for part in loaded["splits"].values():
        assert part["pixels"].dtype == np.uint8 and part["pixels"].shape[1:] == module.SPEC["shape"]
        assert part["labels"].dtype == np.int64 and len(part["labels"]) == len(part["pixels"])
        assert set(part["labels"].tolist()) == set(range(len(loaded["labels"])))
    json.dumps(loaded["provenance"])


@pytest.mark.parametrize("name", LOADABLE_EVERYWHERE)
def test_fingerprint_repeats(name):
    assert source.fingerprint(recipe(name)) == source.fingerprint(recipe(name))


def test_fingerprint_imports_neither_torch_nor_sklearn():
    """A finished run must be recognized without loading them."""
    program = (
        "import sys\nfrom pipeline.config import Recipe\nfrom pipeline.datasets import source\n"
        f"for name in {LOADABLE_EVERYWHERE!r}:\n"
        "    source.fingerprint(Recipe.model_validate("
        "{'name': 't', 'data': {'name': name}, 'model': {'name': 'cnn_small'}}))\n"
        f"for name in {NAMES!r}:\n    __import__(f'pipeline.datasets.{{name}}')\n"
        "print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
