"""The stage engine on a toy flow: caching, keys, interruption, locks, full disks, gates."""

import fcntl
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from boards.errors import SlimgateError
from hls import csim
from pipeline import keys, stage
from pipeline.gates import GateFailed
from pipeline.stage import RunLocked, Stage, StageError, StorageError
from tests.toy import Toy

_number = itertools.count()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    made = Toy(tmp_path, f"toy_{next(_number)}")
    yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == made.package]:
        del sys.modules[name]


def leftovers(toy):
    names = [path.name for path in (toy.build / "toy-table").iterdir()]
    return [name for name in names if ".partial-" in name or ".old-" in name]


def test_second_run_does_nothing(toy):
    assert toy.execute() == ["ran", "ran", "ran"]
    before = {path: path.stat().st_mtime_ns for path in toy.build.rglob("*") if path.is_file()}
    assert toy.execute() == ["finished", "finished", "finished"]
    after = {path: path.stat().st_mtime_ns for path in toy.build.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"last_run.json", ".lock"}


def test_manifest_tells_everything(toy):
    toy.execute()
    manifest = json.loads((toy.build / "toy-table/c/manifest.json").read_text())
    assert manifest["metrics"]["total"] == {
        "value": 1140, "evidence": "trained", "unit": "points", "interval": None
    }  # fmt: skip
    assert manifest["gates"] == [{"name": "total is even", "passed": True, "detail": "total 1140", "total": 1140}]
    assert set(manifest) == {
        "schema", "stage", "key", "inputs", "input_keys", "content", "config", "files", "metrics", "gates", "versions",
        "seconds", "started", "command",
    }  # fmt: skip
    assert manifest["files"]["out.bin"]["bytes"] == 1000
    assert manifest["content"] == toy.contents()["c"]


def test_until_runs_only_what_is_needed(toy):
    assert toy.execute("b") == ["ran", "ran"]
    assert not (toy.build / "toy-table/c").exists()
    with pytest.raises(SlimgateError, match=r"no stage 'd'.*\n.*one of a, b, c"):
        toy.execute("d")


def test_config_change_reruns_from_there_on(toy):
    toy.execute()
    assert toy.execute(beta={"size": 5}) == ["finished", "finished", "ran"]
    assert toy.execute(beta={"size": 5}, alpha={"factor": 4}) == ["ran", "ran", "ran"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("deep", ["finished", "ran", "ran"]),  # b imports helper (inside a function), helper imports deep
        ("helper", ["finished", "ran", "ran"]),
        ("c", ["finished", "finished", "ran"]),
        ("unrelated", ["finished", "finished", "finished"]),
        ("__init__", ["ran", "ran", "ran"]),
    ],
)
def test_key_covers_imported_modules(toy, module, expected):
    toy.execute()
    toy.write(module, toy.path(module).read_text() + "\n# edited\n")
    assert toy.execute() == expected


def test_syntax_error_in_a_module_is_told(toy):
    toy.write("deep", "FACTOR = (\n")
    with pytest.raises(keys.SourceError, match="cannot be parsed"):
        toy.execute()


def test_key_covers_data_files_and_computed_imports(toy):
    stages = [Stage("a", f"{toy.package}.a:run", config=("alpha",), sources=("data/**",),
                    imports=(f"{toy.package}.{{name}}",))]  # fmt: skip
    toy.write("toy", "A = 1\n")
    with pytest.raises(keys.SourceError, match="missing"):
        toy.execute(stages=stages)
    (toy.root / "data/deep").mkdir(parents=True)
    (toy.root / "data/deep/file").write_text("1")
    assert toy.execute(stages=stages) == ["ran"]
    assert toy.execute(stages=stages) == ["finished"]
    (toy.root / "data/deep/file").write_text("2")
    assert toy.execute(stages=stages) == ["ran"]
    toy.write("toy", "A = 2\n")
    assert toy.execute(stages=stages) == ["ran"]


def test_fingerprint_is_part_of_the_key(toy):
    toy.write("light", "from pathlib import Path\n\ndef seen(recipe):\n    return Path(recipe.path).read_text()\n")
    stages = [Stage("a", f"{toy.package}.a:run", config=("alpha",), fingerprint=f"{toy.package}.light:seen")]
    recipe = toy.root / "toy.toml"
    recipe.write_text("1")
    assert toy.execute(stages=stages, path=str(recipe)) == ["ran"]
    assert toy.execute(stages=stages, path=str(recipe)) == ["finished"]
    recipe.write_text("2")
    assert toy.execute(stages=stages, path=str(recipe)) == ["ran"]


def test_tool_version_is_part_of_the_key(toy, monkeypatch):
    versions = {"g++": "12.2.0"}
    original = keys.version
    monkeypatch.setattr(keys, "version", lambda tool: versions.get(tool) or original(tool))
    stages = [Stage("a", f"{toy.package}.a:run", config=("alpha",), tools=("g++", "rich"))]
    assert toy.execute(stages=stages) == ["ran"]
    assert toy.execute(stages=stages) == ["finished"]
    versions["g++"] = "13.1.0"
    assert toy.execute(stages=stages) == ["ran"]


def test_missing_tool_is_told_before_anything_runs(toy, monkeypatch):
    keys.version.cache_clear()
    monkeypatch.setenv("PATH", str(toy.root))
    stages = [*toy.flow.STAGES[:2], Stage("c", f"{toy.package}.c:run", needs=("b",), tools=("g++",))]
    with pytest.raises(keys.ToolMissing, match=r"g\+\+ was not found(.|\n)*apt-get install g\+\+"):
        toy.execute(stages=stages)
    assert toy.contents() == {}
    with pytest.raises(keys.ToolMissing, match="no-such-distribution is not installed"):
        keys.version("no-such-distribution")


def test_compiler_of_the_key_is_the_one_that_compiles(toy, monkeypatch):
    """$CXX, as hls.csim.compiler() reads it."""
    stages = [*toy.flow.STAGES[:2], Stage("c", f"{toy.package}.c:run", needs=("b",), config=("beta",), tools=("g++",))]
    other = toy.root / "other-cc"

    def became(compiler: str | None) -> list[str]:
        keys.version.cache_clear()
        monkeypatch.delenv("CXX", raising=False) if compiler is None else monkeypatch.setenv("CXX", compiler)
        return toy.execute(stages=stages)

    def write(version: str) -> None:
        other.write_text(f"#!/bin/sh\necho '{version}'\necho more\n")
        other.chmod(0o755)

    try:
        assert became(None) == ["ran", "ran", "ran"]
        assert became("g++") == ["finished"] * 3
        write("othercc 1.0")
        assert became(str(other)) == ["finished", "finished", "ran"]
        assert keys.version("g++") == "othercc 1.0" and csim.compiler() == str(other)
        write("othercc 1.1")
        assert became(str(other)) == ["finished", "finished", "ran"]
        for missing in ("no-such-cc", ""):
            with pytest.raises(keys.ToolMissing, match=f"{missing or 'CXX'} was not found(.|\n)*another in CXX"):
                became(missing)
            with pytest.raises(csim.CsimError):
                csim.compiler()
        write("")
        other.write_text("#!/bin/sh\nexit 1\n")
        with pytest.raises(keys.ToolMissing, match="does not tell its version"):
            became(str(other))
    finally:
        keys.version.cache_clear()


def test_damage_is_found_and_repaired(toy):
    toy.execute()
    whole = toy.contents()
    (toy.build / "toy-table/b/total.txt").unlink()
    assert toy.execute() == ["finished", "ran", "finished"]
    assert toy.contents() == whole
    (toy.build / "toy-table/c/out.bin").write_bytes(b"short")
    assert toy.execute() == ["finished", "finished", "ran"]
    (toy.build / "toy-table/a/parts/extra").write_text("not from here")
    assert toy.execute() == ["ran", "finished", "finished"]
    (toy.build / "toy-table/a/manifest.json").write_text("{")
    assert toy.execute() == ["ran", "finished", "finished"]
    assert toy.contents() == whole


@pytest.mark.parametrize("text", ["[]", '{"schema": 1}', '{"schema": 2}', "null", "whole[files]", "whole[key]"])
def test_ill_formed_manifest_is_made_again(toy, text):
    toy.execute()
    whole = toy.contents()
    file = toy.build / "toy-table/b/manifest.json"
    manifest = json.loads(file.read_text())
    for part in ("files", "key"):
        if text == f"whole[{part}]":
            text = json.dumps({**manifest, part: [1]})
    file.write_text(text)
    run = toy.run()
    assert [run.state(one)[0] for one in run.until()] == ["finished", "missing", "outdated"]
    assert toy.execute(name="other") == ["copied", "ran", "copied"]  # not taken as a source of copies either
    assert toy.execute() == ["finished", "copied", "finished"]
    assert toy.contents() == whole


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_ill_formed_last_run_is_written_anew(toy, text):
    toy.execute()
    file = toy.build / "toy-table/last_run.json"
    file.write_text(text)
    assert stage.read_last_run(file.parent) is None
    assert toy.execute() == ["finished"] * 3
    assert stage.read_last_run(file.parent)["pending"] == []


def test_verify_finds_a_flipped_byte_of_the_same_size(toy):
    toy.execute()
    (toy.build / "toy-table/c/out.bin").write_bytes(b"\1" + bytes(999))
    assert toy.execute() == ["finished"] * 3
    assert toy.execute(verify=True) == ["finished", "finished", "ran"]


def test_flipped_byte_of_an_input_is_found_before_the_stage_runs(toy):
    toy.execute()
    whole = toy.contents()
    file = toy.build / "toy-table/b/total.txt"
    file.write_text("1240")  # was 1140: the same size, and a total that c would take
    process = toy.spawn(json.dumps({"beta": {"size": 5}}))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "stage 'b', which 'c' needs, is damaged: total.txt" in out and str(file) in out
    assert "run again with --verify: it is made again" in out and "Traceback" not in err
    assert toy.contents()["c"] == whole["c"]
    assert toy.execute(beta={"size": 5}, verify=True) == ["finished", "ran", "ran"]
    assert toy.contents()["b"] == whole["b"]


def test_sibling_run_is_copied_and_verified(toy):
    toy.execute()
    assert toy.execute(name="other") == ["copied"] * 3
    assert toy.contents("other-table") == toy.contents()
    (toy.build / "toy-table/c/out.bin").write_bytes(b"\1" + bytes(999))
    (toy.build / "other-table/c/out.bin").write_bytes(b"\1" + bytes(999))
    assert toy.execute(name="third") == ["copied", "copied", "ran"]


def test_always_is_never_taken_from_a_cache(toy):
    real = lambda ctx: ctx.place != "simulated"  # noqa: E731
    stages = [*toy.flow.STAGES[:2], Stage("c", f"{toy.package}.c:run", needs=("b",), config=("beta",), always=real)]
    toy.execute(stages=stages)
    assert toy.execute(stages=stages) == ["finished"] * 3
    assert toy.execute(stages=stages, place="lab") == ["finished", "finished", "ran"]
    assert toy.execute(stages=stages, place="lab", name="other") == ["copied", "copied", "ran"]
    undecided = [Stage("a", f"{toy.package}.a:run", config=("alpha",), always=lambda ctx: None)]
    toy.execute(stages=undecided)
    assert toy.execute(stages=undecided) == ["ran"]


def test_shut_gate_keeps_evidence_and_what_was_finished(toy):
    toy.execute()
    before = toy.contents()
    with pytest.raises(GateFailed, match="gate 'never' is shut: asked to fail") as caught:
        toy.execute(beta={"fail": True})
    assert caught.value.exit_code == 1
    assert toy.contents() == before
    kept = toy.build / "toy-table/failed/c"
    assert (kept / "out.bin").is_file()
    failure = json.loads((kept / "failure.json").read_text())
    assert [(gate["name"], gate["passed"]) for gate in failure["gates"]] == [("total is even", True), ("never", False)]
    assert str(kept) in str(caught.value)
    assert not leftovers(toy)
    last = json.loads((toy.build / "toy-table/last_run.json").read_text())
    assert last["pending"] == ["c"]

    toy.execute(beta={"size": 7})
    assert not kept.exists()


@pytest.mark.parametrize("value", [1, "yes", None, [True]])
def test_gate_wants_a_real_bool(toy, value):
    toy.write("a", f"def run(ctx):\n    ctx.gate('x', {value!r}, 'is it?')\n")
    with pytest.raises(GateFailed, match=f"decided by {type(value).__name__}"):
        toy.execute("a", stages=[Stage("a", f"{toy.package}.a:run")])


def test_gate_refuses_a_numpy_bool(toy):
    toy.write("a", "import numpy\n\ndef run(ctx):\n    ctx.gate('x', numpy.bool_(True), 'is it?')\n")
    with pytest.raises(GateFailed, match="not by a bool"):
        toy.execute("a", stages=[Stage("a", f"{toy.package}.a:run")])


def test_missing_metric_shuts_the_gate(toy):
    stages = [Stage("a", f"{toy.package}.a:run", config=("alpha",), metrics=("accuracy_test",))]
    with pytest.raises(GateFailed, match="told nothing about accuracy_test"):
        toy.execute(stages=stages)


def test_gate_that_was_not_asked_is_shut(toy):
    stages = [Stage("a", f"{toy.package}.a:run", config=("alpha",), gates=("all codes equal",))]
    with pytest.raises(GateFailed, match="did not check: all codes equal"):
        toy.execute(stages=stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pass", "did not make out.txt"),
        ("ctx.metric('x', 1, 'guessed')", "'guessed' is no evidence"),
        ("(ctx.folder / 'out.txt').write_text(str(ctx.folder))", "wrote the path of its own folder into out.txt"),
        ("ctx.recipe.beta.size", "reads the recipe's 'beta', which is not in its key"),
        ("ctx.manifest('b')", "reads 'b' without needing it"),
    ],
)
def test_broken_stage_is_refused(toy, text, message):
    toy.write("a", f"def run(ctx):\n    {text}\n")
    with pytest.raises(StageError, match=message):
        toy.execute(stages=[Stage("a", f"{toy.package}.a:run", makes=("out.txt",), config=("alpha",))])
    assert toy.contents() == {}


def test_recipe_keys_can_be_declared_one_by_one(toy):
    toy.write("a", "def run(ctx):\n    ctx.recipe.alpha.parts\n    ctx.recipe.alpha.factor\n")
    with pytest.raises(StageError, match=r"reads the recipe's 'alpha\.factor'"):
        toy.execute(stages=[Stage("a", f"{toy.package}.a:run", config=("alpha.parts",))])


def test_nan_is_no_metric(toy):
    toy.write("a", "def run(ctx):\n    ctx.metric('x', float('nan'), 'trained')\n")
    with pytest.raises((ValueError, StageError), match=r"NaN|nan|finite"):
        toy.execute(stages=[Stage("a", f"{toy.package}.a:run")])
    assert toy.contents() == {}


def test_published_file_lies_in_the_run_folder(toy):
    toy.execute()
    published = toy.build / "toy-table/out.bin"
    assert published.read_bytes() == bytes(1000)
    published.write_bytes(b"old")
    assert toy.execute() == ["finished"] * 3
    assert published.read_bytes() == bytes(1000)


SLOW = json.dumps({"alpha": {"parts": 20, "factor": 3, "pause": 0.01}})


def test_killed_at_any_moment_and_started_again_gives_the_same(toy):
    """SIGKILL at random moments, over and over; then the artifacts of an undisturbed run."""
    undisturbed = toy.spawn(SLOW)
    assert undisturbed.wait(60) == 0, undisturbed.stderr.read()
    expected = toy.contents()
    dice = random.Random(2)
    finished = kills = 0
    for _ in range(8):
        shutil.rmtree(toy.build)
        for _ in range(3):
            process = toy.spawn(SLOW)
            time.sleep(dice.uniform(0.1, 1.2))
            process.kill()
            kills += process.wait() == -9
            for name, content in toy.contents().items():
                assert content == expected[name], f"{name} looks finished and is not"
        process = toy.spawn(SLOW)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        finished += json.loads(out.splitlines()[-1]).count("finished")
        assert toy.contents() == expected
        assert not leftovers(toy)
    assert kills > 0  # otherwise nothing was tried


def test_kill_between_the_two_renames_loses_only_the_outdated_folder(toy, monkeypatch):
    toy.execute()
    renames = []
    original = os.replace

    def die(source, target):
        renames.append(target)
        if len(renames) == 1:
            return original(source, target)
        raise KeyboardInterrupt

    run = toy.run(beta={"size": 3})
    monkeypatch.setattr(stage.Path, "replace", lambda self, target: die(self, target))
    with pytest.raises(KeyboardInterrupt):
        run._install(run._partial("c"), run.path("c"))
    monkeypatch.undo()
    monkeypatch.syspath_prepend(toy.root)
    assert leftovers(toy)
    assert toy.execute(beta={"size": 3}) == ["finished", "finished", "ran"]
    assert not leftovers(toy)


def test_two_runs_in_one_folder_exclude_each_other(toy):
    first = toy.spawn(json.dumps({"alpha": {"parts": 40, "pause": 0.05}}))
    deadline = time.monotonic() + 20
    while not list(toy.build.glob("*/.a.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    second = toy.spawn()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 2, err
    assert f"another slimgate works in this run folder: process {first.pid} on" in out
    assert "Traceback" not in err
    assert first.wait(60) == 0, first.stderr.read()
    assert toy.spawn(json.dumps({"alpha": {"parts": 40, "pause": 0.05}})).wait(60) == 0


def test_lock_of_a_dead_process_does_not_stay(toy):
    process = toy.spawn(json.dumps({"alpha": {"parts": 400, "pause": 0.05}}))
    deadline = time.monotonic() + 20
    while not list(toy.build.glob("*/.a.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (toy.build / "toy-table/.lock").read_text()  # what it wrote is still there; the lock is not
    assert toy.execute() == ["ran", "ran", "ran"]


def test_locked_error_in_this_process(toy, monkeypatch):
    def busy(*_):
        raise BlockingIOError(11, "busy")

    monkeypatch.setattr(fcntl, "lockf", busy)
    with pytest.raises(RunLocked, match="another slimgate works"):
        toy.execute()


def test_disk_full_keeps_what_was_finished(toy):
    """RLIMIT_FSIZE makes write() fail as a full disk does; the largest file is that of stage c."""
    options = {"beta": {"size": 500_000}}
    process = toy.spawn(json.dumps({**options, "file_limit": 100_000}))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "the disk is full" in out and "Traceback" not in err
    assert sorted(toy.contents()) == ["a", "b"]
    assert not leftovers(toy)
    assert toy.execute(**options) == ["finished", "finished", "ran"]


def test_full_disk_hidden_in_a_librarys_own_error(toy, monkeypatch):
    toy.write("a", "def run(ctx):\n    raise RuntimeError('unexpected pos 64 vs 0')\n")
    monkeypatch.setattr(stage.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="the disk is full"):
        toy.execute(stages=[Stage("a", f"{toy.package}.a:run")])


def test_build_folder_that_cannot_be_used(toy):
    (toy.root / "occupied").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot be used(.|\n)*--build-dir"):
        toy.execute(build=toy.root / "occupied")
    with pytest.raises(StorageError, match="cannot be used"):
        toy.execute(build="/proc/slimgate")


def test_no_write_permission(toy):
    """Root may write anywhere, so root becomes nobody for this, once the modules are imported."""
    with tempfile.TemporaryDirectory() as closed:
        Path(closed).chmod(0o555)
        process = toy.spawn(json.dumps({"nobody": os.geteuid() == 0}), build=Path(closed) / "build")
        out, err = process.communicate(timeout=60)
        Path(closed).chmod(0o755)
    assert process.returncode == 2, err
    assert "Permission denied" in out and "--build-dir" in out and "Traceback" not in err


def test_error_of_a_stage_is_not_taken_for_storage(toy):
    toy.write("a", "def run(ctx):\n    open('/nonexistent/file')\n")
    with pytest.raises(FileNotFoundError):
        toy.execute(stages=[Stage("a", f"{toy.package}.a:run")])
    assert not leftovers(toy)


def test_interrupt_leaves_nothing_half_done(toy):
    toy.write("b", "def run(ctx):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        toy.execute()
    assert list(toy.contents()) == ["a"]
    assert not leftovers(toy)


def test_content_hash_does_not_depend_on_place_or_time(toy, tmp_path):
    toy.execute()
    first = toy.contents()
    shutil.move(toy.build, tmp_path / "elsewhere")
    assert toy.execute() == ["ran"] * 3
    assert toy.contents() == first
