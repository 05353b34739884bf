"""The whole chain on real digits, as a user runs it: one process per command, from the recipe to the board's codes."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from boards.board import load as load_board
from boards.onboard import run as onboard
from boards.session import open_session
from hls.cost import legal_reuse_factors

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("data", "train", "trim", "quantize", "export", "plan", "convert", "csim", "package", "benchmark", "report")
#: Everything but what tells times: the report shows seconds.
SAME = STAGES[:9]


def command(*arguments, root: Path = ROOT) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def slimgate(*arguments, root: Path = ROOT, code: int = 0, **environment) -> subprocess.CompletedProcess:
    result = subprocess.run(
        command(*arguments), cwd=root, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def manifests(folder: Path, stages=STAGES) -> dict[str, dict]:
    return {stage: json.loads((folder / stage / "manifest.json").read_text()) for stage in stages}


def cached(folder: Path) -> dict[str, bool]:
    last = json.loads(slimgate("summary", folder, "--json").stdout)
    return {row["name"]: row["cached"] for row in last["stages"]}


@pytest.fixture(scope="session")
def build(tmp_path_factory) -> Path:
    """A build folder with one finished run of runs/digits.toml."""
    folder = tmp_path_factory.mktemp("digits")
    slimgate("run", "runs/digits.toml", "--build-dir", folder)
    return folder


@pytest.fixture(scope="session")
def run(build) -> Path:
    return build / "digits-pynq-z2"


def test_every_stage_finishes_and_every_code_agrees(run):
    found = manifests(run)
    for stage, manifest in found.items():
        assert manifest["gates"] or stage in ("train", "quantize", "report"), stage
        assert all(gate["passed"] is True for gate in manifest["gates"])
    test_pictures = json.loads((run / "data" / "dataset.json").read_text())["counts"]["test"]
    expected = {
        ("export", "qonnx_mismatches"): 10 * test_pictures,
        ("csim", "csim_mismatches"): 4 * 10 * test_pictures,  # one transfer, singles, two odd sizes
        ("csim", "reference_mismatches"): 10 * test_pictures,
        ("benchmark", "board_mismatches"): 10 * (1000 + test_pictures),
    }
    for (stage, name), compared in expected.items():
        metric = found[stage]["metrics"][name]
        assert (metric["value"], metric["compared"]) == (0, compared), name


def test_summary_tells_what_the_run_found(run):
    summary = json.loads(slimgate("summary", run, "--json").stdout)
    assert (summary["board"], summary["place"]) == ("pynq-z2", "simulated")
    assert set(summary["accuracy"]) == {"float", "trimmed", "quantized", "csim", "board"}
    for figure in summary["accuracy"].values():
        assert figure["interval"][0] < figure["value"] < figure["interval"][1] and figure["evidence"]
    with np.load(run / "export" / "golden.npz") as golden:
        share = float(np.mean(golden["output_codes"].argmax(1) == golden["labels"]))
    for place in ("quantized", "csim", "board"):
        assert summary["accuracy"][place]["value"] == pytest.approx(share, abs=1e-12)
    assert summary["accuracy"]["board"]["evidence"] == "simulated"
    assert all(summary["mismatches"][hop]["mismatches"] == 0 for hop in ("qonnx", "csim", "board"))
    assert summary["macs"]["trimmed"] <= 0.5 * summary["macs"]["float"]
    assert summary["parameters"]["trimmed"] < summary["parameters"]["float"]


def test_a_second_call_does_nothing_and_says_so(build, run):
    def times() -> dict[Path, int]:
        files = (path for path in run.rglob("*") if path.is_file() and path.name not in ("last_run.json", ".lock"))
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    result = slimgate("run", "runs/digits.toml", "--build-dir", build)
    assert "nothing was re-run" in result.stdout
    assert times() == before
    assert all(cached(run).values())


def test_killed_at_random_moments_it_ends_in_the_same_artifacts(build, run, tmp_path):
    wanted = manifests(run, SAME)
    random.seed(int.from_bytes(os.urandom(4), "big"))
    arguments = command("run", "runs/digits.toml", "--build-dir", tmp_path, "--until", "package")
    waits = []
    for _ in range(5):
        waits.append(random.uniform(3, 12))
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        try:
            process.wait(waits[-1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    slimgate("run", "runs/digits.toml", "--build-dir", tmp_path, "--until", "package")
    found = manifests(tmp_path / run.name, SAME)
    for stage in SAME:
        assert found[stage]["content"] == wanted[stage]["content"], f"{stage}, killed after {waits} s"
    left = [path.name for path in (tmp_path / run.name).iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert not left


def test_an_edit_of_numerics_runs_again_from_there_on(build, run, tmp_path):
    root = tmp_path / "tree"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*cache")
    shutil.copytree(ROOT, root, ignore=ignore)
    shutil.copytree(build, tmp_path / "build")
    folder = tmp_path / "build" / run.name

    def again() -> dict[str, bool]:
        slimgate("run", "runs/digits.toml", "--build-dir", tmp_path / "build", root=root, PYTHONPATH=str(root))
        return cached(folder)

    assert all(again().values())
    (root / "hls" / "numerics.py").write_text((root / "hls" / "numerics.py").read_text() + "\n# edited\n")
    ran = {stage for stage, kept in again().items() if not kept}
    # export reads its file back through hls.graph, which knows numerics; nothing is trained again
    assert ran == {"export", "plan", "convert", "csim", "package", "benchmark", "report"}
    assert all(again().values())


def test_a_changed_reuse_factor_plans_again_and_trains_nothing(build, run, tmp_path):
    shutil.copytree(run, tmp_path / run.name)
    plan = json.loads((run / "plan" / "plan.json").read_text())
    layer = plan["layers"][0]["name"]
    row = plan["layers"][0]
    other = next(f for f in legal_reuse_factors(row["n_in"], row["n_out"]) if f > row["reuse_factor"])
    slimgate("run", "runs/digits.toml", "--build-dir", tmp_path, "--until", "convert",
             "--set", f"hls.layers.{layer}.reuse_factor={other}")  # fmt: skip
    ran = {stage for stage, kept in cached(tmp_path / run.name).items() if not kept}
    assert ran == {"plan", "convert"}
    assert json.loads((tmp_path / run.name / "plan" / "plan.json").read_text())["layers"][0]["reuse_factor"] == other


def test_bitstream_without_tools_says_what_is_missing_and_where_the_project_lies(build, run):
    empty = "/usr/bin:/bin"
    result = slimgate("run", "runs/digits.toml", "--build-dir", build, "--until", "bitstream", code=2, PATH=empty,
                      XILINX_HLS="", XILINX_VIVADO="")  # fmt: skip
    for word in ("Vitis HLS", "Vivado", "vitis-run", "2022.2", "XILINX_VIVADO", str(run / "convert" / "project")):
        assert word in result.stderr
    assert (run / "convert" / "project" / "hls.tcl").is_file()
    assert not (run / "bitstream").exists()


def test_new_pictures_are_classified_with_the_codes_of_training(run, tmp_path):
    with np.load(run / "data" / "test.npz") as data, np.load(run / "export" / "golden.npz") as golden:
        pixels, codes = data["pixels"][:12], golden["output_codes"][:12]
    files = []
    for index, picture in enumerate(pixels):
        files.append(tmp_path / f"digit {index}.png")
        Image.fromarray(picture[:, :, 0]).save(files[-1])
    package = run / "package" / "package.tar.gz"
    answers = json.loads(slimgate("predict", package, *files, "--top", "10", "--json").stdout)
    assert [Path(answer["image"]).name for answer in answers] == [file.name for file in files]
    for answer, expected in zip(answers, codes, strict=True):
        assert [row["code"] for row in sorted(answer["top"], key=lambda row: row["index"])] == expected.tolist()
        assert answer["top"][0]["index"] == expected.argmax()


def test_golden_outputs_are_checked_and_never_read_by_the_accelerator(run, tmp_path):
    """Corrupt the golden outputs in a package whose manifest is made to match: the board's codes stay as they are."""
    package = tmp_path / "package"
    shutil.copytree(run / "package" / "package", package)
    with np.load(package / "golden.npz") as file:
        golden = dict(file)
    truth = golden["output_codes"].copy()
    golden["output_codes"] = golden["output_codes"][::-1].copy()
    np.savez(package / "golden.npz", **golden)
    manifest = json.loads((package / "manifest.json").read_text())
    data = (package / "golden.npz").read_bytes()
    manifest["files"]["golden.npz"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    del manifest["self_sha256"]
    manifest["self_sha256"] = hashlib.sha256(onboard.canonical(manifest)).hexdigest()
    (package / "manifest.json").write_bytes(onboard.canonical(manifest))
    with open_session("simulated", load_board("pynq-z2")) as session:
        session.load(package)
        codes = session.run(golden["input_codes"])
        result = session.benchmark(tmp_path / "result.json", singles=1000, warmup=1)
    assert np.array_equal(codes, truth)
    wrong = int(np.count_nonzero(golden["output_codes"] != truth))
    assert result["status"] == "mismatch" and wrong > 0
