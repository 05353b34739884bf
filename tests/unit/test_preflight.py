import brevitas.nn as qnn
import pytest
import torch
from brevitas.quant import Int8WeightPerTensorFloat

from boards.board import BoardError
from boards.board import load as load_board
from hls.numerics import NotExact
from pipeline import config, preflight
from pipeline.models import ModelError

BOARD = load_board("pynq-z2")


def recipe(*changes: str):
    return config.load("runs/digits.toml", list(changes))


def test_the_recipes_of_the_repository_pass():
    for name in ("runs/digits.toml", "runs/cifar10-resnet8.toml"):
        found = preflight.check(config.load(name, ["data.root=x"] if "cifar" in name else []), BOARD)
        assert found["oracle"] == "float32" and found["widest_accumulator"] > 0 and "conv1" in found["layers"]


def test_wide_bits_are_flagged_for_the_integer_oracle():
    found = preflight.check(recipe("quantize.weights=8", "quantize.activations=8", "model.widths.conv2=256"), BOARD)
    assert found["oracle"] == "int64"


def test_an_unreachable_clock_is_refused_with_near_ones():
    with pytest.raises(BoardError, match="142"):
        preflight.check(recipe("hls.clock_mhz=150"), BOARD)


def test_an_unknown_layer_and_an_illegal_reuse_factor_are_refused():
    with pytest.raises(preflight.PreflightError, match="conv9"):
        preflight.check(recipe("hls.layers.conv9.reuse_factor=4"), BOARD)
    with pytest.raises(preflight.PreflightError, match=r"7 is not legal(.|\n)*6, 8"):
        preflight.check(recipe("trim.method=none", "hls.layers.conv2.reuse_factor=7"), BOARD)


def test_a_reuse_factor_for_all_layers_must_suit_each():
    with pytest.raises(preflight.PreflightError, match="16 is not legal for layer conv1"):
        preflight.check(recipe("trim.method=none", "hls.reuse_factor=16"), BOARD)


def test_pictures_that_do_not_fit_the_network_are_refused():
    with pytest.raises(ModelError, match="multiples"):
        preflight.check(recipe("model.name=resnet8", "data.name=folder", "data.train=.", "data.size=[9, 9]"), BOARD)


def test_a_network_that_is_not_exact_is_refused_by_node_before_training(monkeypatch, tmp_path, capsys):
    """A scale that is no power of two, planted where a model file would have it."""
    genuine = preflight.twin

    def inexact(*arguments):
        network = genuine(*arguments)
        old = network.conv2
        network.conv2 = qnn.QuantConv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False,
                                        weight_quant=Int8WeightPerTensorFloat, weight_bit_width=4)  # fmt: skip
        torch.nn.init.normal_(network.conv2.weight)
        return network

    monkeypatch.setattr(preflight, "twin", inexact)
    with pytest.raises(NotExact, match="not a power of two") as refusal:
        preflight.check(recipe(), BOARD)
    assert refusal.value.node and refusal.value.fix
    from pipeline import cli

    assert cli.main(["run", "runs/digits.toml", "--build-dir", str(tmp_path)]) == 2
    assert "not a power of two" in capsys.readouterr().err
    assert not (tmp_path / "digits-pynq-z2" / "train").exists()
