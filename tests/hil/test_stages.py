"""The stages package and benchmark around the toy design; every gate of theirs is seen shut."""

import json
import shutil
from types import SimpleNamespace

import pytest

from boards import board, session
from boards.package import open_package
from boards.simulated.session import SimulatedSession
from pipeline.gates import GateFailed, check
from pipeline.stages import benchmark, package
from tests.hil.toy import DIGEST, PREPROCESS, WIRE, compile_toy, reseal, write_golden


class FakeContext:
    """What a stage gets from the engine."""

    def __init__(self, folder, inputs, place="simulated"):
        folder.mkdir()
        self.folder, self.inputs, self.place, self.board = folder, inputs, place, board.load("pynq-z2")
        self.recipe = SimpleNamespace(
            name="toy", to_toml=lambda: 'board = "pynq-z2"\n', hls=SimpleNamespace(clock_mhz=None),
            benchmark=SimpleNamespace(singles=20, warmup=2),
        )  # fmt: skip
        self.metrics, self.gates, self.said = {}, {}, []

    def metric(self, name, value, evidence, unit=None, interval=None, **extra):
        self.metrics[name] = {"value": value, "evidence": evidence, "interval": interval, **extra}

    def gate(self, name, passed, detail, *, fix=None, **numbers):
        self.gates[name] = passed
        check(name, passed, detail, fix=fix, **numbers)

    def manifest(self, stage):
        return {"versions": {f"tool-of-{stage}": "1.0"}}

    def log(self, text):
        self.said.append(text)


@pytest.fixture
def parts(tmp_path):
    folders = {name: tmp_path / name for name in ("data", "export", "convert", "csim")}
    for folder in folders.values():
        folder.mkdir()
    dataset = {"name": "toy", "labels": ["low", "mid", "high"], "shape": [4, 4, 1], "preprocess": PREPROCESS}
    (folders["data"] / "dataset.json").write_text(json.dumps(dataset))
    (folders["convert"] / "io.json").write_text(json.dumps(WIRE))
    write_golden(folders["export"])
    shutil.copy(compile_toy(), folders["csim"] / "design.so")
    return folders


@pytest.fixture
def packaged(parts, tmp_path):
    ctx = FakeContext(tmp_path / "package-stage", parts)
    package.run(ctx)
    return ctx


def test_package_then_benchmark(packaged, tmp_path):
    assert packaged.gates == {"package opens": True}
    with open_package(packaged.folder / "package.tar.gz") as opened:
        assert opened.manifest["versions"] == {f"tool-of-{s}": "1.0" for s in ("data", "export", "convert", "csim")}
    ctx = FakeContext(tmp_path / "one", {"package": packaged.folder})
    benchmark.run(ctx)
    assert ctx.metrics["board_mismatches"] == {
        "value": 0, "evidence": "simulated", "interval": None, "compared": 20 * 3 + 40 * 3, "samples": 40, "singles": 20
    }  # fmt: skip
    assert ctx.metrics["samples"]["value"] == 40
    accuracy = ctx.metrics["accuracy_test"]
    assert accuracy["value"] == 37 / 40 and accuracy["interval"][0] < 37 / 40 < accuracy["interval"][1]
    assert accuracy["samples"] == 40
    assert set(ctx.gates) == {"board ran to the end", "board is the place's", "board identity", "board transfers",
                              "board bytes", "board equals golden"}  # fmt: skip
    assert not any("latency" in name or "_us" in name for name in ctx.metrics)
    assert "no latency of the design" in ctx.said[0]

    again = FakeContext(tmp_path / "two", {"package": packaged.folder})
    benchmark.run(again)
    for name in ("result.json", "result.codes.npy"):  # no times, no paths: equal runs give equal files
        assert (again.folder / name).read_bytes() == (ctx.folder / name).read_bytes()
    assert session.read_result(ctx.folder / "result.json")["times"] is None


def _change(packaged, change):
    folder = packaged.folder / "package"
    change(folder)
    reseal(folder)


def _shut(packaged, tmp_path, gate, words):
    ctx = FakeContext(tmp_path / "shut", {"package": packaged.folder})
    with pytest.raises(GateFailed, match=words):
        benchmark.run(ctx)
    assert ctx.gates[gate] is False
    return ctx


def _swap_library(*flags):
    return lambda folder: shutil.copy(compile_toy(*flags), folder / "simulated" / "design.so")


def test_gate_codes(packaged, tmp_path):
    _change(packaged, _swap_library("-DFAULT_FLIP_BIT=5"))
    ctx = _shut(packaged, tmp_path, "board equals golden", "1 of 180 output codes differ; first: .*'sample': 2")
    assert ctx.metrics["board_mismatches"]["value"] == 1  # the figure is kept with the failure


def test_gate_bytes(packaged, tmp_path):
    _change(packaged, _swap_library("-DFAULT_PADDING"))
    _shut(packaged, tmp_path, "board bytes", "60 padding bytes")


def test_gate_stale_overlay(packaged, tmp_path):
    _change(packaged, _swap_library('-DIDENTITY="' + "f" * 64 + '"'))
    _shut(packaged, tmp_path, "board ran to the end", "stale overlay")


@pytest.fixture
def result(packaged, tmp_path):
    """A good result, to be changed by the tests of gates that no fault in a design can shut."""
    ctx = FakeContext(tmp_path / "good", {"package": packaged.folder})
    benchmark.run(ctx)
    result = session.read_result(ctx.folder / "result.json")
    times = {"p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0, "count": 1}
    result["times"] = {"host_simulation": {
        "round_trip_us": times, "end_to_end_us": times, "stream_us_per_sample": 1.0, "note": ""}}  # fmt: skip
    return result


def _identity(result):
    result["probe"]["identity"] = "f" * 32


def _digest(result):
    result["package"]["design_digest"] = "f" * 64


def _retry(result):
    result["retries"] = [{"text": "receiving did not end"}]


def _counters(result):
    result["probe"]["equal"] = False


def _uncounted(result):
    result["probe"].update(equal=None, expected=None)



@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (_identity, "board identity"),
        (_digest, "board identity"),
        (_retry, "board transfers"),
        (_counters, "board bytes"),
        (_uncounted, "board bytes"),
        (lambda result: result.update(status="mismatch"), "board equals golden"),
        (lambda result: result["stream"].update(mismatches=1), "board equals golden"),
        (lambda result: result["singles"].update(mismatches=1), "board equals golden"),
        (lambda result: result["device"].update(simulated=False), "board is the place's"),
    ],
)
def test_gates_look_at_the_result(packaged, tmp_path, monkeypatch, result, change, gate):
    change(result)
    monkeypatch.setattr(SimulatedSession, "benchmark", lambda *_: result)
    _shut(packaged, tmp_path, gate, gate)


def test_a_library_deleted_from_the_package_is_not_run(packaged, tmp_path):
    (packaged.folder / "package" / "simulated" / "design.so").unlink()
    ctx = FakeContext(tmp_path / "gone", {"package": packaged.folder})
    with pytest.raises(session.SlimgateError, match=r"simulated/design\.so"):
        benchmark.run(ctx)
    assert not (ctx.folder / "result.json").exists()


def test_another_place_is_refused(packaged, tmp_path):
    ctx = FakeContext(tmp_path / "desk", {"package": packaged.folder}, place="desk")
    with pytest.raises(session.PlaceError, match="'desk'"):
        benchmark.run(ctx)


def test_a_dataset_without_what_a_board_needs(parts, tmp_path):
    (parts["data"] / "dataset.json").write_text("{")
    with pytest.raises(session.SlimgateError, match=r"dataset\.json"):
        package.run(FakeContext(tmp_path / "p", parts))


def test_golden_of_another_design(parts, tmp_path):
    (parts["convert"] / "io.json").write_text(json.dumps(WIRE | {"design_digest": DIGEST[::-1]}))
    with pytest.raises(session.SlimgateError, match=r"io\.json is of"):
        package.run(FakeContext(tmp_path / "p", parts))
