"""Networks trained elsewhere, from `slimgate import` to the simulated board's codes."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image

from hls.reference import Reference
from pipeline import cli, imported, quantize
from pipeline.config import ROOT
from pipeline.export import export
from tests import torchnets
from tests.graphs import Net
from tests.unit.test_report import Page

LABELS = ["north west", "north east", "süd-west", "süd-ost"]
STAGES = ["import", "plan", "convert", "csim", "package", "benchmark", "report"]


def slimgate(capsys, *words, code=0):
    assert cli.main([str(word) for word in words]) == code, capsys.readouterr()
    done = capsys.readouterr()
    assert "Traceback" not in done.err
    return done.out if code == 0 else done.err


def summary(capsys, build, name):
    return json.loads(slimgate(capsys, "summary", f"{name}-pynq-z2", "--json", "--build-dir", build))


def check(found, samples, classes):
    """Zero differing codes at every hop, and every code of every mode compared."""
    hops = {hop: (entry["mismatches"], entry["compared"]) for hop, entry in found["mismatches"].items()}
    assert hops == {"qonnx": (0, samples * classes), "csim": (0, 4 * samples * classes),
                    "board": (0, (samples + 1000) * classes)}  # fmt: skip
    assert all(gate["passed"] for gate in found["gates"]) and len(found["gates"]) > 15
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert set(found["accuracy"]) == {"imported", "csim", "board"} and found["trim"] is None
    assert len({entry["value"] for entry in found["accuracy"].values()}) == 1


@pytest.fixture(scope="module")
def brevitas(tmp_path_factory):
    """A trained Brevitas network with a Softmax behind it, pictures in class folders, what Brevitas says of them."""
    folder = tmp_path_factory.mktemp("trained elsewhere ü")
    twin = torchnets.quantized_network()
    export(twin, torchnets.SHAPE, folder / "net.onnx")
    proto = onnx.load(folder / "net.onnx")
    proto.graph.node.append(helper.make_node("Softmax", ["output"], ["shares"], axis=1))
    proto.graph.output[0].name = "shares"
    onnx.save(proto, folder / "net.onnx")
    pixels, labels = torchnets.pictures(80, 7)
    order = []
    for label, name in enumerate(LABELS):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in np.flatnonzero(labels.numpy() == label):
            order.append((name, f"{index:03}.png", int(index)))
            Image.fromarray(pixels[index, 0].numpy()).save(folder / "pictures" / name / f"{index:03}.png")
    order = [index for *_, index in sorted(order)]  # as the listing of a folder goes
    seen = quantize.observe(twin, pixels[order], 8, dtype=torch.float32)
    return folder, pixels[order].numpy(), labels.numpy()[order], seen.outputs


def test_from_a_brevitas_file_and_a_folder_of_pictures_to_the_board(brevitas, tmp_path, capsys):
    folder, pixels, labels, outputs = brevitas
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    out = slimgate(capsys, "import", folder / "net.onnx", "--labels", folder / "labels.txt", "--data",
                   folder / "pictures", "--input-range", "0", "255/256", "--to", tmp_path / "to")  # fmt: skip
    assert "left to the host: Softmax" in out and "80 test samples" in out
    recipe, run = tmp_path / "to/net/net.toml", tmp_path / "net-pynq-z2"
    out = slimgate(capsys, "run", recipe, "--build-dir", tmp_path)
    assert "not trained here: imported from net.onnx" in out and "trimmed" not in out and "float" not in out
    found = summary(capsys, tmp_path, "net")
    check(found, 80, 4)
    # Brevitas itself is the oracle: no code of ours stands between its outputs and these.
    with np.load(run / "import/golden.npz") as golden:
        assert np.array_equal(golden["output_codes"], outputs)
        assert np.array_equal(golden["input_codes"][..., 0], pixels[:, 0])
    assert found["accuracy"]["imported"]["value"] == np.mean(outputs.argmax(1) == labels)

    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Not trained here." in page.text() and "not run" not in page.text() and page.outside() == []
    assert "Brevitas" not in page.text() and "trained elsewhere and imported as it came" in page.text("lead")
    assert "compared with those of the imported network at 3 hops. 0 differ." in page.text("verdict")
    assert "süd-ost" in page.text() and len([tag for tag, _ in page.tags if tag == "img"]) >= 4

    package = run / "package/package"
    read = (package / "README.txt").read_text(encoding="utf-8")
    assert "Not trained here" in read and "Softmax" in read and "how the network was made" not in read
    assert json.loads((package / "manifest.json").read_text())["trained"] == "elsewhere"
    file = sorted((folder / "pictures" / LABELS[2]).iterdir())[0]
    [answer] = json.loads(slimgate(capsys, "predict", package, file, "--top", "4", "--json"))
    index = labels.tolist().index(2)
    assert [row["code"] for row in sorted(answer["top"], key=lambda r: r["index"])] == outputs[index].tolist()
    assert answer["top"][0]["label"] == LABELS[outputs[index].argmax()]

    assert "nothing was re-run" in slimgate(capsys, "run", recipe, "--build-dir", tmp_path)
    assert "finished" in slimgate(capsys, "status", "net-pynq-z2", "--build-dir", tmp_path)
    err = slimgate(capsys, "run", recipe, "--build-dir", tmp_path, "--until", "bitstream", code=2)
    assert str(run / "convert/project") in err
    err = slimgate(capsys, "run", recipe, "--build-dir", tmp_path, "--until", "train", code=2)
    assert "there is no stage 'train'; one of" in " ".join(err.replace("next:", "").split()) or "import, plan" in err
    file.unlink()  # the test data have changed: nothing of before serves
    slimgate(capsys, "run", recipe, "--build-dir", tmp_path, "--until", "import")
    assert summary(capsys, tmp_path, "net")["stages"][0]["how"] == "ran"


def color(samples=300, *, front=False):
    """Signed 8-bit color pictures, value = code / 128; with ``front`` the file itself computes 2 x - 1 before that, as
    brevitas' CNV does."""
    net = Net((3, 6, 6), bits=8, lsb=-7, signed=True, samples=samples, seed=3)
    if front:
        net.nodes.clear()
        net.values["input"] = (net.values["input"] + 1) / 2
        x = net.node("Mul", ["input", net.constant(2.0)], net.values["input"] * 2)
        net.input = net.quant(net.node("Sub", [x, net.constant(1.0)], net.values[x] - 1), 8, -7)
    x = net.maxpool(net.relu_quant(net.conv(net.input, 6, name="stem.conv", lsb=-3)))
    return net.finish(net.dense(net.flatten(x), 4, bias_lsb=-7, name="head"))


@pytest.mark.parametrize("front", [False, True], ids=["by the option", "by the file"])
def test_signed_pixels_by_a_table_the_board_has_too(tmp_path, capsys, front):
    net = color(front=front)
    net.save(tmp_path / "net.onnx")
    # Byte b stands for -1 + 2 b / 255, which makes every code.
    pixels = np.random.default_rng(1).integers(0, 256, (120, 3, 6, 6), dtype=np.uint8)
    values = np.asarray(-1 + 2 * pixels.astype(np.float64) / 255, np.float32)
    if front:
        values = np.float32(np.float32(pixels / 255) * np.float32(2) - np.float32(1))
    codes = np.clip(np.rint(values * 128), -128, 127).astype(np.int64)
    found = imported.examine(tmp_path / "net.onnx")
    outputs, _ = Reference(found.network.model, found.network.analysis).run(np.moveaxis(codes, 1, -1))
    kept = np.unique(outputs, axis=0, return_index=True)[1]
    answers = outputs.argmax(1)
    np.savez(tmp_path / "test.npz", pixels=pixels[kept], labels=answers[kept])
    slimgate(capsys, "import", tmp_path / "net.onnx", "--labels", "a,b,c,d", "--data", tmp_path / "test.npz",
             *([] if front else ["--input-range", "-1", "1"]), "--to", tmp_path)  # fmt: skip
    slimgate(capsys, "run", tmp_path / "net/net.toml", "--build-dir", tmp_path)
    check(summary(capsys, tmp_path, "net"), len(kept), 4)
    with np.load(tmp_path / "net-pynq-z2/import/golden.npz") as golden:
        assert golden["input_codes"].dtype == np.int8
        assert np.array_equal(golden["input_codes"], np.moveaxis(codes[kept], 1, -1))
        expected = golden["output_codes"]
    Image.fromarray(np.moveaxis(pixels[kept[5]], 0, -1)).save(tmp_path / "picture.png")
    package = tmp_path / "net-pynq-z2/package/package.tar.gz"
    [answer] = json.loads(slimgate(capsys, "predict", package, tmp_path / "picture.png", "--top", "4", "--json"))
    assert [row["code"] for row in sorted(answer["top"], key=lambda r: r["index"])] == expected[5].tolist()


def test_numbers_that_are_no_pictures_beyond_float32(tmp_path, capsys):
    net = Net((6,), bits=16, signed=True, samples=200, seed=1)
    net.finish(net.dense(net.input, 3, bits=14, lsb=-10, bias_lsb=-26, name="wide"))
    net.save(tmp_path / "net.onnx")
    labels = net.outputs.argmax(1)
    labels[:10] = (labels[:10] + 1) % 3  # so that the accuracy is none that a constant would have
    np.savez(tmp_path / "test.npz", inputs=net.inputs, labels=labels)
    slimgate(capsys, "import", tmp_path / "net.onnx", "--labels", "a,b,c", "--data", tmp_path / "test.npz", "--to",
             tmp_path)  # fmt: skip
    slimgate(capsys, "run", tmp_path / "net/net.toml", "--build-dir", tmp_path)
    found = summary(capsys, tmp_path, "net")
    check(found, 200, 3)
    assert found["accuracy"]["board"]["value"] == 0.95
    manifest = json.loads((tmp_path / "net-pynq-z2/import/manifest.json").read_text())
    assert manifest["metrics"]["qonnx_mismatches"]["evaluated_in"] == "float64"
    page = Page((tmp_path / "net-pynq-z2/report.html").read_text(encoding="utf-8")).text()
    assert "as they were given; no pictures" in page and "the samples are no pictures" in page
    package = tmp_path / "net-pynq-z2/package/package"
    assert "takes no pictures" in (package / "README.txt").read_text(encoding="utf-8")
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    err = slimgate(capsys, "predict", package, tmp_path / "picture.png", code=2)
    assert "this network takes no pictures: its inputs are 6 numbers a sample" in err and "--codes" in err


def test_the_worked_example_of_the_guide(tmp_path):
    """Its commands as they stand there, in an empty folder; what the second prints is what the guide shows."""
    guide = (ROOT / "docs/guide.md").read_text(encoding="utf-8").partition("### Worked example")[2]
    commands, shown = re.findall(r"```\n(.*?)```", guide, re.DOTALL)[:2]
    first, *others = commands.splitlines()
    assert first == ".venv/bin/python docs/brevitas_digits.py" and len(others) == 2
    calls = [[str(ROOT / "docs/brevitas_digits.py")], *(["-m", "pipeline", *line.split()[1:]] for line in others)]
    said = []
    for call in calls:
        done = subprocess.run([sys.executable, *call], cwd=tmp_path, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[1] == shown
    found = json.loads((tmp_path / "build/network-pynq-z2/benchmark/result.json").read_text())
    assert found["accuracy"]["value"] > 0.9 and found["status"] == "ok"
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("build/network-pynq-z2/*/manifest.json")]
    kinds = ("qonnx_mismatches", "csim_mismatches", "board_mismatches")
    metrics = [manifest["metrics"][kind] for manifest in manifests for kind in kinds if kind in manifest["metrics"]]
    assert [metric["value"] for metric in metrics] == [0, 0, 0]
    assert f"compares {sum(metric['compared'] for metric in metrics):,} output codes" in " ".join(guide.split())


def test_a_file_that_computes_something_else_shuts_the_gate(tmp_path, capsys, monkeypatch):
    """As if qonnx and the reference read one operator differently."""
    net = color(60)
    net.save(tmp_path / "net.onnx")
    np.savez(tmp_path / "test.npz", inputs=net.inputs, labels=net.outputs.argmax(1))
    slimgate(capsys, "import", tmp_path / "net.onnx", "--labels", "a,b,c,d", "--data", tmp_path / "test.npz", "--to",
             tmp_path)  # fmt: skip
    from pipeline.stages import importing

    genuine = importing.qonnx_execute

    def wrong(*arguments, **options):
        codes = genuine(*arguments, **options)
        codes[3, 1] += 1
        return codes

    monkeypatch.setattr(importing, "qonnx_execute", wrong)
    words = ("run", tmp_path / "net/net.toml", "--build-dir", tmp_path, "--until", "import")
    err = slimgate(capsys, *words, code=1)
    assert "gate 'QONNX equals the integer reference' is shut: 1 of 240 output codes differ" in err
    monkeypatch.undo()
    np.savez(tmp_path / "test.npz", inputs=net.inputs * 0, labels=net.outputs.argmax(1))
    assert "gate 'codes are diverse' is shut: only 1 of 4 classes" in slimgate(capsys, *words, code=1)
