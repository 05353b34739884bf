"""Imports point one way, and what must stay light stays light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "hls4ml", "brevitas", "pynq", "qonnx", "onnx", "sklearn", "matplotlib"}


def broken_layers(root: Path) -> str:
    """What import-linter says about the tree at ``root``; empty when every contract is kept."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", root / "pyproject.toml"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def forbidden_on_board() -> set[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(set(contract["forbidden_modules"]) for contract in contracts if contract["type"] == "forbidden")


def test_layers_are_kept():
    assert broken_layers(ROOT) == ""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("boards/errors.py", "import hls\n"),
        ("hls/__init__.py", "import pipeline\n"),
        ("boards/onboard/run.py", "import boards.errors\n"),
    ],
)
def test_a_backward_import_is_seen(tmp_path, file, text):
    for package in ("pipeline", "hls", "boards", "boards/onboard"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    for module in forbidden_on_board():
        if module.startswith("boards."):
            (tmp_path / f"{module.replace('.', '/')}.py").write_text("")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert broken_layers(tmp_path) == ""
    (tmp_path / file).write_text(text)
    assert "BROKEN" in broken_layers(tmp_path)


def test_every_module_of_boards_is_forbidden_on_board():
    """The contract names modules; a new one must be named too."""
    graph = grimp.build_graph("boards", cache_dir=None)
    assert graph.find_children("boards") - {"boards.onboard"} <= forbidden_on_board()


def imports_of(module: str) -> set[str]:
    """Top-level names of everything a fresh interpreter has loaded after importing a module."""
    code = f"import sys, {module}; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "pipeline.flow", "pipeline.config", "pipeline.summary", "pipeline.doctor"]
)
def test_engine_imports_nothing_heavy(module):
    assert not imports_of(module) & HEAVY


def test_heavy_imports_are_seen():
    assert "onnx" in imports_of("onnx") & HEAVY


def test_stages_do_not_import_the_engine():
    """Their keys cover what they import: an edit of the engine would re-run the training."""
    graph = grimp.build_graph("pipeline", "hls", "boards", cache_dir=None)
    engine = {f"pipeline.{name}" for name in ("stage", "config", "cli", "flow", "keys", "summary", "gates")}
    for module in sorted(name for name in graph.modules if name.startswith("pipeline.stages.")):
        assert not graph.find_upstream_modules(module) & engine, module


def test_environment_runs_on_old_pythons():
    """It is what tells the user of an old Python which one to take: no syntax or module that is newer than 3.7."""
    ast.parse((ROOT / "pipeline/environment.py").read_text(), feature_version=(3, 7))


def test_constraints_pin_every_requirement_within_its_bounds():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    for version in ("3.11", "3.12"):
        lines = (ROOT / f"constraints-{version}.txt").read_text().splitlines()
        pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
        pinned = {canonicalize_name(name): pin for name, pin in pinned.items()}
        for requirement in wanted:
            pin = pinned[canonicalize_name(requirement.name)]
            assert pin in requirement.specifier, (version, requirement, pin)
        assert not [pin for pin in pinned.values() if "+" in pin or "/" in pin]
