"""`slimgate verify` as a user of Brevitas meets it: a plain export_qonnx, pictures, one line and an exit code."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.export import export_onnx_qcdq, export_qonnx
from brevitas.quant import Int8WeightPerTensorFixedPoint as Weights
from brevitas.quant import Uint8ActPerTensorFixedPoint as Activations

from pipeline.config import ROOT

SHAPE = (1, 2, 5, 6)


def network(weights):
    """Calibrated, not trained; four-bit weights and activations."""
    torch.manual_seed(1)
    bits = {"weight_quant": weights, "weight_bit_width": 4}
    made = torch.nn.Sequential(
        qnn.QuantIdentity(act_quant=Activations, bit_width=8, return_quant_tensor=True),
        qnn.QuantConv2d(2, 3, 3, bias=False, **bits),
        qnn.QuantReLU(act_quant=Activations, bit_width=4, return_quant_tensor=True),
        torch.nn.Flatten(),
        qnn.QuantLinear(36, 3, bias=False, **bits),
    )
    for _ in range(3):
        made(torch.rand(64, *SHAPE[1:]))
    return made.eval()


def slimgate(*words):
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def refused(words, *command):
    done = slimgate(*command)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_network_from_brevitas(tmp_path):
    file, inputs = tmp_path / "net.onnx", tmp_path / "x.npz"
    export_qonnx(network(Weights), args=torch.zeros(SHAPE), export_path=str(file))
    codes = np.random.default_rng(0).integers(0, 256, (100, *SHAPE[1:]), np.uint8)
    np.savez(inputs, inputs=codes)
    done = slimgate("verify", file, "--inputs", inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "444 codes compared, 0 differ: 100 samples" in done.stdout

    np.savez(tmp_path / "off.npz", inputs=codes / 255 + 1e-3)
    refused("off the grid", "verify", file, "--inputs", tmp_path / "off.npz")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused("not a readable ONNX file", "verify", file, "--inputs", inputs)


def test_exports_that_are_something_else(tmp_path):
    file = tmp_path / "net.onnx"
    export_onnx_qcdq(network(Weights), args=torch.zeros(SHAPE), export_path=str(file))
    refused("brevitas.export.export_qonnx", "verify", file, "--inputs", tmp_path / "x.npz")
    export_qonnx(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(SHAPE[1:])), 3)),
                 args=torch.zeros(SHAPE), export_path=str(file))  # fmt: skip
    refused("quanti", "verify", file, "--inputs", tmp_path / "x.npz")


def test_weights_of_any_scale_are_taken(tmp_path):
    """Brevitas' default quantisers have scales that are no powers of two."""
    from brevitas.quant import Int8WeightPerTensorFloat

    file, inputs = tmp_path / "net.onnx", tmp_path / "x.npz"
    export_qonnx(network(Int8WeightPerTensorFloat), args=torch.zeros(SHAPE), export_path=str(file))
    np.savez(inputs, inputs=np.random.default_rng(0).integers(0, 256, (100, *SHAPE[1:]), np.uint8))
    done = slimgate("verify", file, "--inputs", inputs)
    assert done.returncode == 0 and " codes compared, 0 differ: 100 samples" in done.stdout, done.stdout + done.stderr
    assert "scales that are no powers of two" in done.stdout
