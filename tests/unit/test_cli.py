"""The command line: exit codes, messages without tracebacks, and what stays light."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boards.errors import SlimgateError
from pipeline import cli, doctor, keys, summary
from pipeline.config import ROOT
from pipeline.gates import GateFailed
from tests.unit.test_stage import toy  # noqa: F401 - a fixture

DIGITS = str(ROOT / "runs/digits.toml")


def slimgate(*words, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def commands():
    return next(action for action in cli.parser()._actions if action.choices and "run" in action.choices).choices


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0
    assert f"example: slimgate {name}" in capsys.readouterr().out


def test_every_command_there_should_be():
    expected = "run status doctor boards summary report predict verify import estimator plan"
    assert set(commands()) == set(expected.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "no/such.toml"), "the recipe does not exist"),
        (("run", DIGITS, "--set", "trim.ratio=1"), "0 <= value < 1"),
        (("run", DIGITS, "--set", "quantize.weights=33"), "2 <= value <= 8"),
        (("run", DIGITS, "--board", "pynq-z9"), "did you mean 'pynq-z"),
        (("run", DIGITS, "--until", "sumulate"), "there is no stage 'sumulate'"),
        (("run", DIGITS, "--until", "nix"), "benchmark, report, bitstream"),
        (("run", DIGITS, "--place", "moon", "--until", "data"), "'moon' cannot be reached"),
        (("summary", "nowhere"), "there is no run 'nowhere'"),
        (("status",), "there is no run yet"),
        (("report",), "there is no run yet"),
        (("predict", "no-package", "x.png"), "no-package"),
    ],
)
def test_users_mistake_is_one_message_and_exit_code_2(tmp_path, words, message):
    done = slimgate(*words, "--build-dir", tmp_path / "build")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    debug = slimgate(*words, "--build-dir", tmp_path / "build", "--debug")
    assert debug.returncode == 2 and "Traceback" in debug.stderr


def test_shut_gate_is_exit_code_1_and_a_bug_is_3(monkeypatch, capsys):
    def shut(args):
        raise GateFailed({"name": "x", "detail": "y"})

    def bug(args):
        raise KeyError("z")

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_boards", shut)
    assert cli.main(["boards"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(cli, "_boards", bug)
    assert cli.main(["boards"]) == 3
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setattr(cli, "_boards", stop)
    assert cli.main(["boards"]) == 130


def test_boards_are_listed():
    done = slimgate("boards")
    assert done.returncode == 0
    assert "pynq-z2" in done.stdout and "xc7z020clg400-1" in done.stdout


def test_second_run_says_that_nothing_was_done_and_stays_light(tmp_path):
    words = ("run", DIGITS, "--until", "data", "--build-dir", tmp_path)
    first = slimgate(*words)
    assert first.returncode == 0, first.stderr
    assert "nothing was re-run" not in first.stdout
    script = (
        "import sys; from pipeline.cli import main\n"
        f"code = main({[str(word) for word in words]!r})\n"
        "print(code, sorted({'torch', 'hls4ml', 'brevitas', 'pynq', 'qonnx', 'onnx', 'matplotlib'} & set(sys.modules)))"
    )
    second = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "everything is finished already: nothing was re-run" in second.stdout
    assert second.stdout.splitlines()[-1] == "0 []"

    status = slimgate("status", "--build-dir", tmp_path)
    assert status.returncode == 0, status.stderr
    assert "finished" in status.stdout and "missing" in status.stdout
    collected = json.loads(slimgate("summary", "--json", "digits-pynq-z2", "--build-dir", tmp_path).stdout)
    assert [(stage["name"], stage["cached"]) for stage in collected["stages"]] == [("data", True)]
    report = slimgate("report", "--build-dir", tmp_path)
    assert report.returncode == 2 and "no report yet" in report.stderr


def test_missing_compiler_is_told_before_training(tmp_path):
    done = slimgate("run", DIGITS, "--build-dir", tmp_path, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "g++ was not found" in done.stderr and "apt-get install g++" in done.stderr
    assert not list(tmp_path.glob("*/data"))


def test_summary_leaves_out_what_no_longer_belongs_together(toy):  # noqa: F811
    toy.execute()
    run = toy.build / "toy-table"
    assert set(summary.manifests(run)) == {"a", "b", "c"}
    toy.execute("a", alpha={"factor": 5})
    assert set(summary.manifests(run)) == {"a"}
    toy.execute(alpha={"factor": 5})
    assert set(summary.manifests(run)) == {"a", "b", "c"}
    with pytest.raises(GateFailed):
        toy.execute(alpha={"factor": 5}, beta={"fail": True})
    assert set(summary.manifests(run)) == {"a", "b"}  # c is that of the run before


FIGURES = {
    "train": {"accuracy_test": 0.98, "parameters": 1000, "macs": 5000},
    "trim": {"accuracy_test": 0.97, "parameters": 400, "macs": 2000, "macs_removed": 0.6},
    "quantize": {"accuracy_test": 0.965},
    "export": {"qonnx_mismatches": 0},
    "plan": {"dsp": 40},
    "csim": {"csim_mismatches": 0, "accuracy_test": 0.965},
    "benchmark": {"board_mismatches": 0, "accuracy_test": 0.965, "samples": 360},
}


@pytest.fixture
def figures(tmp_path):
    """A run folder as the stages would leave it, as far as the summary looks."""
    run = tmp_path / "x-pynq-z2"
    for name, metrics in FIGURES.items():
        entries = {
            key: {"value": value, "evidence": "simulated", "unit": None, "interval": None, "compared": 3600}
            for key, value in metrics.items()
        }
        entries.get("accuracy_test", {})["interval"] = [0.9, 0.99]
        manifest = {"schema": 1, "stage": name, "key": name, "content": name, "files": {}, "inputs": {},
                    "input_keys": {}, "versions": {}, "metrics": entries, "gates": [], "seconds": 1.5,
                    "config": {"place": "simulated", "trim": {"of": "macs", "ratio": 0.5}}}  # fmt: skip
        (run / name).mkdir(parents=True)
        (run / name / keys.MANIFEST).write_text(json.dumps(manifest))
    last = {"schema": 1, "board": "pynq-z2", "place": "simulated", "command": "slimgate run x.toml", "pending": [],
            "recipe": {}, "recipe_path": "x.toml", "started": "2026-01-01T00:00:00+00:00",
            "stages": [{"name": name, "how": "ran", "cached": False, "seconds": 1.5} for name in FIGURES]}  # fmt: skip
    (run / "last_run.json").write_text(json.dumps(last))
    return run


def test_summary_has_every_figure(figures, capsys):
    assert cli.main(["summary", "--json", str(figures)]) == 0
    collected = json.loads(capsys.readouterr().out)
    accuracy = {"value": 0.965, "interval": [0.9, 0.99], "evidence": "simulated"}
    assert collected["accuracy"].keys() == {"float", "trimmed", "quantized", "csim", "board"}
    assert collected["accuracy"]["board"] == accuracy
    assert collected["parameters"] == {"float": 1000, "trimmed": 400}
    assert collected["macs"] == {"float": 5000, "trimmed": 2000}
    assert collected["trim"] == {"of": "macs", "asked": 0.5, "achieved": 0.6}
    for kind in ("qonnx", "csim", "board"):
        assert collected["mismatches"][kind] == {"mismatches": 0, "compared": 3600, "evidence": "simulated"}
    assert (collected["run"], collected["board"], collected["place"]) == ("x-pynq-z2", "pynq-z2", "simulated")
    assert collected["samples"] == 360
    assert collected["plan"]["dsp"]["value"] == 40
    assert collected["stages"][0] == {"name": "train", "seconds": 1.5, "cached": False, "how": "ran"}
    assert cli.main(["summary", str(figures)]) == 0
    text = capsys.readouterr().out
    for word in ("96.50", "90.00 .. 99.00", "60.0 %", "3,600", "dsp"):
        assert word in text


def test_newest_run_is_the_default(figures, tmp_path):
    (tmp_path / "older").mkdir()
    (tmp_path / "older/last_run.json").write_text((figures / "last_run.json").read_text())
    os.utime(tmp_path / "older/last_run.json", (1, 1))
    assert summary.find(None, tmp_path) == figures
    assert summary.find("older", tmp_path) == tmp_path / "older"
    with pytest.raises(summary.NoRun, match="one of older, x-pynq-z2"):
        summary.find("newer", tmp_path)


def without(key):
    def ill(text):
        value = json.loads(text)
        del value[key]
        return json.dumps(value)

    return ill


ILL = [lambda text: "{", lambda text: "[]", lambda text: '{"schema": 1}', lambda text: "\udcff", lambda text: ""]


@pytest.mark.parametrize(
    "ill", [*ILL, *(without(key) for key in ("board", "place", "pending", "stages", "recipe", "recipe_path"))]
)
def test_ill_formed_last_run_is_told(figures, tmp_path, capsys, ill):
    file = figures / "last_run.json"
    file.write_text(ill(file.read_text()), errors="surrogateescape")
    for words in (["summary"], ["summary", "--json"], ["status"], ["report"]):
        for name in ([], [figures.name], [str(figures)]):
            assert cli.main([*words, *name, "--build-dir", str(tmp_path)]) == 2
            error = capsys.readouterr().err
            assert f"the run '{figures.name}' does not say what was done last" in error and str(file) in error
            assert "run its recipe again" in error and "Traceback" not in error


def test_ill_formed_last_run_does_not_hide_the_others(figures, tmp_path):
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer/last_run.json").write_text("{")
    os.utime(figures / "last_run.json", (1, 1))
    assert summary.find(None, tmp_path) == figures
    with pytest.raises(summary.NoRun, match=f"one of {figures.name}$"):
        summary.find("other", tmp_path)


@pytest.mark.parametrize(
    "ill", [*ILL, *(without(key) for key in ("content", "files", "inputs", "metrics", "gates", "config", "seconds"))]
)
def test_ill_formed_manifest_tells_no_figures(figures, capsys, ill):
    file = figures / "train" / keys.MANIFEST
    file.write_text(ill(file.read_text()), errors="surrogateescape")
    assert cli.main(["summary", "--json", str(figures)]) == 0
    collected = json.loads(capsys.readouterr().out)
    assert collected["accuracy"]["float"] is None and collected["accuracy"]["trimmed"] is not None


def test_doctor_finds_what_is_missing(monkeypatch, tmp_path):
    before = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert {"Python", "g++", "Vitis HLS", "Vivado", "ssh", "boards", "disk"} <= set(before)
    assert before["g++"].state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    keys.version.cache_clear()
    found = {finding.what: finding for finding in doctor.examine(tmp_path)}
    assert found["g++"].state == "broken" and "C simulation" in found["g++"].prevents
    assert found["Vivado"].state == "missing" and "bitstream" in found["Vivado"].prevents
    assert doctor.show(list(found.values()), cli._console()) == 1
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 0))
    assert doctor._python().state == "broken"
    monkeypatch.setattr(doctor, "ROOM_MB", 1e12)
    assert doctor._disk(tmp_path / "build").state == "broken"


def test_doctor_compares_with_the_pins(monkeypatch):
    wanted = ["numpy>=1.26", "none-such", "rich; extra == 'x'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(doctor, "pins", lambda: {"numpy": "0.1", "none_such": "1"})
    numpy, missing = doctor._packages()
    assert (numpy.state, missing.state) == ("broken", "broken")
    assert "pinned: 0.1" in numpy.found and "pinned: 1" in missing.found


def test_error_lines():
    error = SlimgateError("what", where=Path("a"), fix="do")
    assert str(error) == "what\n  where: a\n  next:  do"
