"""`slimgate verify` as a user of Brevitas meets it: an exported network, pictures, one line and an exit code."""

import subprocess
import sys

import numpy as np
import pytest

from pipeline.config import ROOT
from pipeline.export import export
from tests.torchnets import BITS, SHAPE, pictures, quantized_network


def slimgate(*words):
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_exported_network(tmp_path):
    export(quantized_network(), SHAPE, tmp_path / "net.onnx")
    pixels = pictures(200, 7)[0].numpy()
    np.savez(tmp_path / "x.npz", inputs=pixels / 2 ** BITS["input"])
    done = slimgate("verify", tmp_path / "net.onnx", "--inputs", tmp_path / "x.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " codes compared, 0 differ: 200 samples" in done.stdout

    np.savez(tmp_path / "off.npz", inputs=pixels / 255)
    done = slimgate("verify", tmp_path / "net.onnx", "--inputs", tmp_path / "off.npz")
    assert done.returncode == 2 and "off the grid" in done.stderr and "Traceback" not in done.stderr

    content = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").write_bytes(content[: len(content) // 2])
    done = slimgate("verify", tmp_path / "net.onnx", "--inputs", tmp_path / "x.npz")
    assert done.returncode == 2 and "not a readable ONNX file" in done.stderr and "Traceback" not in done.stderr
