"""Counting against torch's own counter, and by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import cnn_small, resnet8
from pipeline.trimming.count import count


def test_by_hand_with_bias_stride_groups_and_batchnorm():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=True),  # 8 x (3x3x3) weights at 6x6 positions
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),  # depthwise: 8 x 9 weights at 2x2 positions
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    counted = count(model, (3, 6, 6))
    assert [layer["macs"] for layer in counted["layers"]] == [8 * 27 * 36, 8 * 9 * 4, 160]
    assert [layer["parameters"] for layer in counted["layers"]] == [8 * 27 + 8, 72, 165]
    assert [layer["out_channels"] for layer in counted["layers"]] == [8, 8, 5]
    assert counted["macs"] == 8 * 27 * 36 + 8 * 9 * 4 + 160
    assert counted["parameters"] == 224 + 16 + 72 + 165


@pytest.mark.parametrize("module", [cnn_small, resnet8])
def test_agrees_with_torch(module):
    model = module.build(module.WIDTHS, None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *module.INPUT_SHAPE))
    assert count(model, module.INPUT_SHAPE)["macs"] * 2 == counter.get_total_flops()


def test_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, (1, 5, 5))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model[0]._forward_hooks


def test_a_layer_that_runs_twice_counts_twice():
    shared = nn.Conv2d(2, 2, 1, bias=False)
    counted = count(nn.Sequential(shared, nn.ReLU(), shared), (2, 3, 3))
    assert counted["macs"] == 2 * 4 * 9 and counted["parameters"] == 4 and len(counted["layers"]) == 1
