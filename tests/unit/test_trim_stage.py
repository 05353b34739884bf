"""[trim] as the stage carries it out: rewinding, distillation, labels, boards; and what recipes may not ask."""

import copy

import pytest
import torch
from torch import nn

from boards import board as boards
from pipeline import config, flow, models, train
from pipeline.stages import trim as stage
from pipeline.trimming import methods
from tests.torchnets import CLASSES, SHAPE, WIDTHS, float_network, pictures

DATA = {"input_shape": SHAPE, "classes": CLASSES, "train": pictures(64), "val": pictures(32, 1)}


def recipe(**trim):
    asked = {"ratio": 0.4, "steps": 2, "finetune_epochs": 1, **trim}
    return config.Recipe(
        name="tiny", data={"name": "digits"}, model={"name": "cnn_small", "widths": WIDTHS},
        train={"epochs": 2, "batch_size": 16, "learning_rate": 0.01}, trim=asked,
    )  # fmt: skip


def trimmed(monkeypatch=None, **trim):
    """The result, and what each fine-tuning was called with."""
    asked, calls = recipe(**trim), []
    if monkeypatch is not None:
        genuine = train.fit

        def fit(model, *data, **options):
            calls.append({**options, "weights": copy.deepcopy(model.state_dict())})
            return genuine(model, *data, **options)

        monkeypatch.setattr(stage, "fit", fit)
    board = stage.hardware(boards.load("pynq-z2"), asked) if methods.on_hardware(asked.trim) else None
    return stage.trimmed(copy.deepcopy(float_network()), asked, DATA, board), calls


@pytest.mark.parametrize("method", config.Trim.model_fields["method"].annotation.__args__)
def test_every_method_of_the_recipe_trims(method):
    result, _ = trimmed(method=method, finetune_epochs=0, steps=1)
    smaller = models.build("cnn_small", result.widths, None, SHAPE, CLASSES)
    smaller.load_state_dict(result.state)
    assert result.achieved >= result.asked == (0 if method == "none" else 0.4)


def test_rewinding_the_rate_and_training_from_scratch(monkeypatch):
    _, plain = trimmed(monkeypatch)
    assert [(call["epochs"], call["learning_rate"]) for call in plain] == [(1, 1e-3), (1, 1e-3)]
    _, rate = trimmed(monkeypatch, rewind="rate")
    assert [call["learning_rate"] for call in rate] == [0.01, 0.01]
    result, scratch = trimmed(monkeypatch, rewind="scratch")
    assert [(call["epochs"], call["learning_rate"]) for call in scratch] == [(1, 1e-3), (2, 0.01)]
    train.seed_everything(0)
    fresh = models.build("cnn_small", result.widths, None, SHAPE, CLASSES).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in scratch[1]["weights"].items())
    assert not torch.equal(plain[1]["weights"]["conv1.weight"], scratch[1]["weights"]["conv1.weight"])


def test_the_untrimmed_network_is_the_teacher(monkeypatch):
    _, calls = trimmed(monkeypatch, distillation=0.7)
    for call in calls:
        assert call["distillation"] == 0.7
        assert all(torch.equal(v, call["teacher"].state_dict()[k]) for k, v in float_network().state_dict().items())


def test_distillation_pulls_towards_the_teacher():
    """A pupil that only listens to the teacher comes to its answers, whatever the labels say."""
    pixels, _ = pictures(96)
    wrong = torch.zeros(96, dtype=torch.int64)
    torch.manual_seed(1)
    apart = []
    for weight in (0.0, 1.0):
        train.seed_everything(0)
        pupil = models.build("cnn_small", WIDTHS, None, SHAPE, CLASSES)
        # The validation set is the teacher's: the best epoch is chosen by it.
        answers = float_network()(train.to_values(pixels)).argmax(1)
        train.fit(pupil, (pixels, wrong), (pixels, answers), epochs=6, batch_size=16, learning_rate=0.01,
                  teacher=float_network(), distillation=weight)  # fmt: skip
        apart.append(float((pupil(train.to_values(pixels)).argmax(1) != answers).float().mean()))
    assert apart[1] < 0.2 < apart[0]


def test_sparsity_drives_factors_down():
    factors = []
    for sparsity in (0.0, 0.3):
        train.seed_everything(0)
        net = models.build("cnn_small", WIDTHS, None, SHAPE, CLASSES)
        train.fit(net, pictures(96), pictures(32, 1), epochs=8, batch_size=16, learning_rate=0.01, sparsity=sparsity)
        factors.append(sum(float(m.weight.abs().sum()) for m in net.modules() if isinstance(m, nn.BatchNorm2d)))
    assert factors[1] < 0.8 * factors[0]


def test_a_target_on_hardware_reports_predictions():
    result, _ = trimmed(of="lut", ratio=0.2, steps=1, method="l1")
    assert result.achieved >= 0.2 and result.after["lut"] < result.before["lut"]
    assert {"cycles", "lut", "bram18"} <= result.after.keys()


def test_only_a_target_on_hardware_depends_on_the_board():
    def keys(**trim):
        return next(stage for stage in flow.of(recipe(**trim).dump()) if stage.name == "trim")

    for trim in ({}, {"granularity": "cluster", "cluster_size": 2}, {"method": "none", "of": "lut"}):
        assert "board" not in keys(**trim).config and not methods.on_hardware(recipe(**trim).trim)
    for trim in ({"of": "cycles"}, {"of": "fit"}, {"granularity": "cluster"}):
        assert {"board", "quantize"} <= set(keys(**trim).config) and methods.on_hardware(recipe(**trim).trim)


BASE = '[data]\nname = "digits"\n[model]\nname = "cnn_small"\n[trim]\n'
BAD = {
    "ratio = 1.0": "trim.ratio = 1.0",
    "ratio = -0.1": "trim.ratio = -0.1",
    'method = "luck"': "trim.method",
    'allocation = "widths"': "needs trim.widths",
    "widths = { conv1 = 4 }": "no meaning with trim.allocation",
    'allocation = "widths"\nwidths = { conv9 = 4 }': "no convolution 'conv9'",
    'allocation = "widths"\nwidths = { conv1 = 17 }': "conv1 has 16 filters and cannot be trimmed to 17",
    'allocation = "pca"\nratio = 0.4': "trim.ratio has no meaning",
    'granularity = "cluster"\ncluster_size = 17': "a cluster of 17 filters is larger than the layer conv1",
    "cluster_size = 4": "no meaning with trim.granularity",
    "channel_multiple = 8": "no meaning with trim.granularity",
    "distillation = 1.5": "trim.distillation",
}


@pytest.mark.parametrize("lines", BAD)
def test_recipes_that_ask_the_impossible_are_refused_with_their_line(lines, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text(BASE + lines + "\n")
    with pytest.raises(config.RecipeError, match=BAD[lines]) as caught:
        config.load(file)
    assert "bad.toml:" in str(caught.value)


def test_tied_layers_are_given_one_width(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text(BASE.replace("cnn_small", "resnet8") + 'allocation = "widths"\n'
                    'widths = { conv1 = 8, "block1.conv2" = 9 }\n')  # fmt: skip
    with pytest.raises(config.RecipeError, match=r"conv1=8, block1.conv2=9"):
        config.load(file)
