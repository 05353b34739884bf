"""The real flow: that its declarations are true, and that an edit re-runs exactly what depends on it.

The stages are not run here. Folders are made up as if they had been: keys need no more than that.
"""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from boards import board
from boards.evidence import EVIDENCE
from pipeline import config, flow, keys
from pipeline.config import ROOT, ImportedRecipe, Recipe
from pipeline.stage import Run

PACKAGES = ("pipeline", "hls", "boards")
# An imported network takes most stages as they are; what a flow declares anew is looked at like the rest.
STAGES = [*flow.STAGES, flow.BITSTREAM, *(stage for stage in flow.IMPORTED if stage not in flow.STAGES)]
NAMES = [stage.name for stage in flow.STAGES]
SECTIONS = set(Recipe.model_fields) | set(ImportedRecipe.model_fields) | {"place"}

# Walks the flow as a run does, in the tree it is started in: tells the stages whose key is not that of their folder,
# and makes up a folder with the right key for each.
WALK = """
import json, sys
from pathlib import Path
from pipeline import config, flow
from pipeline.stage import Run

root = Path.cwd()
run = Run(flow.STAGES, config.load("runs/digits.toml", sys.argv[2:]), build=Path(sys.argv[1]), root=root)
outdated = []
for stage in flow.STAGES:
    state, key = run.state(stage)
    if state != "finished":
        outdated.append(stage.name)
        folder = run.path(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {"schema": 1, "stage": stage.name, "key": key, "content": "same", "seconds": 0, "gates": []}
        manifest |= {name: {} for name in ("files", "inputs", "input_keys", "config", "versions", "metrics")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
heavy = {"torch", "hls4ml", "brevitas", "pynq", "qonnx", "onnx", "matplotlib"} & set(sys.modules)
print(json.dumps({"outdated": outdated, "heavy": sorted(heavy)}))
"""


def walk(tree: Path, build: Path, *overrides: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(build), *overrides], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of our packages and recipes, with every stage of digits finished in it."""
    copied = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, "runs"):
        shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert walk(copied, copied / "build")["outdated"] == NAMES
    return copied


@pytest.fixture
def edited(tree, tmp_path):
    """Edit a file of the copy; what the next run would do."""
    build = tmp_path / "build"
    shutil.copytree(tree / "build", build)

    def edit(file: str) -> list[str]:
        text = (tree / file).read_text()
        try:
            (tree / file).write_text(text + ("\n# edited\n" if file.endswith((".py", ".toml")) else "\n// edited\n"))
            return walk(tree, build)["outdated"]
        finally:
            (tree / file).write_text(text)

    return edit


def test_nothing_edited_nothing_to_do(tree):
    assert walk(tree, tree / "build") == {"outdated": [], "heavy": []}


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("pipeline/datasets/digits.py", "data"),
        ("pipeline/train.py", "train"),
        ("pipeline/models/cnn_small.py", "train"),
        ("pipeline/quantize.py", "quantize"),
        ("hls/plan.py", "plan"),
        ("hls/numerics.py", "convert"),
        ("boards/pynq-z2.toml", "plan"),
        ("boards/onboard/run.py", "package"),
    ],
)
def test_edit_reruns_from_there_on(edited, file, first):
    outdated = edited(file)
    # A stage before may depend on the file too; never may one from `first` on be taken from a cache.
    assert outdated[-len(NAMES[NAMES.index(first) :]) :] == NAMES[NAMES.index(first) :]
    if first != "data":
        assert "data" not in outdated


def test_edit_of_numerics_leaves_the_training_alone(edited):
    assert not {"data", "train", "trim", "quantize"} & set(edited("hls/numerics.py"))


def test_every_template_is_part_of_the_key(edited, tree):
    templates = [path.relative_to(tree) for path in (tree / "hls/templates").rglob("*") if path.is_file()]
    assert templates
    assert {"convert", "csim", "package", "benchmark", "report"} <= set(edited(str(templates[0])))


@pytest.mark.parametrize(
    "file", ["pipeline/models/resnet8.py", "pipeline/datasets/cifar10.py", "boards/kv260.toml", "pipeline/cli.py",
             "pipeline/stage.py", "pipeline/config.py", "pipeline/summary.py"],
)  # fmt: skip
def test_edit_of_what_is_not_used_reruns_nothing(edited, file):
    assert edited(file) == []


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.seed=1", "data"), ("train.epochs=3", "train"), ("trim.ratio=0.1", "trim"),
        ("quantize.epochs=3", "quantize"), ("export.samples=9", "export"), ("hls.reuse_factor=4", "plan"),
        ("csim.samples=1009", "csim"), ("benchmark.singles=1009", "package"), ("seed=1", "train"),
    ],
)  # fmt: skip
def test_changed_recipe_reruns_from_there_on(tree, tmp_path, override, first):
    shutil.copytree(tree / "build", tmp_path / "build")
    assert walk(tree, tmp_path / "build", override)["outdated"] == NAMES[NAMES.index(first) :]


def test_needs_come_first():
    seen = []
    for stage in [*flow.STAGES, flow.BITSTREAM]:
        assert set(stage.needs) <= set(seen)
        seen.append(stage.name)


def test_imported_networks_take_the_same_stages():
    seen: list[str] = []
    for stage in [*flow.IMPORTED, flow.BITSTREAM]:
        assert set(stage.needs) <= set(seen)
        seen += [stage.name, *stage.stands_for]
    names = [stage.name for stage in flow.IMPORTED]
    assert names == ["import", *NAMES[NAMES.index("plan") :]]
    known = {stage.name: stage for stage in flow.STAGES}
    for stage in flow.IMPORTED[1:]:  # the same work under the same gates; only what it reads is another
        assert replace(stage, needs=()) == replace(known[stage.name], needs=())
    assert flow.of({"imported": {}}) is flow.IMPORTED and flow.of({"model": {}}) is flow.STAGES


def test_stages_are_those_of_the_house():
    expected = "data train trim quantize export plan convert csim package benchmark report"
    assert " ".join(NAMES) == expected


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_declared_config_exists(stage):
    assert {key.partition(".")[0] for key in stage.config} <= SECTIONS


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_run_hook_exists(stage):
    module, _, function = stage.run.partition(":")
    assert importlib.util.find_spec(module) is not None
    assert f"def {function}(ctx" in keys.closure([module], PACKAGES, ROOT)[module].read_text()


#: (stage, gate) that are only come to under a condition: they cannot be required of every run.
CONDITIONAL: set[tuple[str, str]] = set()


def gates_called(source: str) -> dict[str, bool]:
    """Gate -> whether every run that succeeds comes by it, for all ``ctx.gate("literal", ...)`` of a stage.

    Only the statements of ``run`` itself count as always come to, and ``with``: not what stands in an ``if``, a loop,
    a ``try`` or another function, and nothing behind a ``return``.
    """
    tree, always = ast.parse(source), set()

    def walk(statements: list) -> bool:
        """False behind a statement that may leave ``run``."""
        for statement in statements:
            if isinstance(statement, ast.With):
                if not walk(statement.body):
                    return False
            elif isinstance(statement, ast.Expr):
                always.add(statement.value)
            elif any(isinstance(node, ast.Return) for node in ast.walk(statement)):
                return False
        return True

    [run] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    walk(run.body)
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "gate":
            name = node.args[0]
            assert isinstance(name, ast.Constant) and isinstance(name.value, str), "a gate's name must be a literal"
            found[name.value] = found.get(name.value, False) or node in always
    return found


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_gate_of_a_stage_is_required(stage):
    """A gate that the stage's source no longer comes to must shut the run, so each one has to be declared."""
    source = (ROOT / f"{stage.run.partition(':')[0].replace('.', '/')}.py").read_text()
    called = gates_called(source)
    conditional = {name for kind, name in CONDITIONAL if kind == stage.name}
    assert {name for name, always in called.items() if not always} == conditional
    assert set(stage.gates) == set(called) - conditional
    assert len(set(stage.gates)) == len(stage.gates)


def test_every_stage_but_training_has_a_gate():
    assert [stage.name for stage in (*flow.STAGES, *flow.IMPORTED) if not stage.gates] == ["train"]


def test_conditional_gates_are_seen():
    source = """
def run(ctx):
    ctx.gate("first", True, "")
    if ctx.place:
        ctx.gate("sometimes", True, "")
    with open("x"):
        ctx.gate("inside", True, "")
    for _ in ():
        return
    ctx.gate("behind", True, "")

def other(ctx):
    ctx.gate("elsewhere", True, "")
"""
    expected = {"first": True, "sometimes": False, "inside": True, "behind": False, "elsewhere": False}
    assert gates_called(source) == expected


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_computed_imports_are_declared(stage):
    """import_module(f"pipeline.models.{...}") is invisible to the key unless the stage declares it."""
    for path in keys.closure([stage.run.partition(":")[0]], PACKAGES, ROOT).values():
        for prefix in re.findall(r"import_module\(\s*f?[\"']([\w.]*)\.\{", path.read_text()):
            assert any(pattern.startswith(f"{prefix}.") for pattern in stage.imports), (path, prefix)


@pytest.mark.parametrize("stage", [*STAGES, flow.TRIM_ON_HARDWARE], ids=lambda stage: stage.name)
def test_every_import_that_computes_is_a_declared_tool(stage):
    """A distribution that changes results and is not in the key would leave old results standing."""
    same = ("torch", "brevitas", "qonnx", "onnx", "onnxruntime", "hls4ml", "pynq", "numpy", "jinja2", "matplotlib")
    watched = {**dict(zip(same, same, strict=True)), "sklearn": "scikit-learn", "PIL": "pillow"}
    recipe = config.load(ROOT / "runs/digits.toml")
    run = Run(STAGES, recipe, build=Path("nowhere"), root=ROOT)
    modules = [stage.run.partition(":")[0], *(run._fill(name) for name in stage.imports)]
    imported = set()
    for path in keys.closure(modules, PACKAGES, ROOT).values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    missing = {watched[name] for name in imported & set(watched)} - set(stage.tools)
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_evidence_words_are_known(stage):
    module = stage.run.partition(":")[0]
    for path in keys.closure([module], PACKAGES, ROOT).values():
        for word in re.findall(r"ctx\.metric\([^)]*?[\"'](\w+ed)[\"']", path.read_text()):
            assert word in EVIDENCE


def test_real_places_are_never_cached():
    stage = next(stage for stage in flow.STAGES if stage.name == "benchmark")
    run = Run(flow.STAGES, config.load(ROOT / "runs/digits.toml"), root=ROOT, place="lab", load_board=board.load)
    for place, always in (("simulated", False), ("lab", True), ("", True)):
        run.place = place
        assert stage.always(run) is always
