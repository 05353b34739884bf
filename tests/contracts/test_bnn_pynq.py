"""The networks of the card's own ecosystem, as brevitas builds and exports them: TFC whole, CNV with fewer channels.

LFC and CNV in full are in ``make study STUDY=bnn_pynq``: one takes minutes to compile.
"""

import pytest
import torch
from brevitas_examples.bnn_pynq.models import CNV as cnv

from hls import csim
from pipeline.studies import bnn_pynq

#: What the C++ means does not depend on the level, and compiling takes most of the time.
FLAGS = ("-O0", *csim.FLAGS[1:])


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    monkeypatch.setattr(csim, "FLAGS", FLAGS)


def exact(row: dict) -> None:
    assert row["compared"] > 10 * row["samples"] and row["mismatches"] == 0 and row["oracle"] == "qonnx"
    assert row["different_outputs"] > 0.9 * row["samples"], row["diversity"]
    assert row["host"] == ["Sub", "Div", "Mul", "Add"] and row["front"][-3:-1] == ["Mul", "Sub"]


@pytest.mark.parametrize("name", ["tfc_1w1a", "tfc_1w2a", "tfc_2w2a"])
def test_tfc(name, tmp_path):
    row = bnn_pynq.proven(name, tmp_path, "pynq-z2", steps=60, samples=40)
    exact(row)
    assert row["diverse"], row["diversity"]
    assert row["accuracy"] > 0.3, "it learned nothing"


@pytest.mark.parametrize(("weights", "activations"), [(1, 1), (2, 2)])
def test_cnv_with_fewer_channels(weights, activations, tmp_path, monkeypatch):
    widths = [(4, False), (4, True), (6, False), (6, True), (8, False), (8, False)]
    monkeypatch.setattr(cnv, "CNV_OUT_CH_POOL", widths)
    monkeypatch.setattr(cnv, "INTERMEDIATE_FC_FEATURES", [(8, 16), (16, 16)])
    monkeypatch.setattr(cnv, "LAST_FC_IN_FEATURES", 16)
    torch.manual_seed(0)
    network = cnv.CNV(10, weights, activations, 8, 3)
    made = bnn_pynq.exported(network, "cnv", tmp_path, (3, 32), 20, 8)
    exact(bnn_pynq.proven("cnv", tmp_path, "pynq-z2", network=made))
