import copy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import models, quantize, train
from pipeline.golden import NotIntegral
from tests.torchnets import BITS, CLASSES, SHAPE, WIDTHS, float_network, pictures, quantized_network


def test_folding_keeps_the_function_and_the_model():
    model = float_network()
    before = copy.deepcopy(model.state_dict())
    folded = quantize.fold_batchnorm(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any("norm" in name for name in folded)
    # The plain network with the folded weights: convolutions with bias, no BatchNorm.
    plain = copy.deepcopy(model)
    for number in (1, 2, 3):
        conv = getattr(plain, f"conv{number}")
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
        setattr(plain, f"norm{number}", nn.Identity())
    plain.load_state_dict(folded)
    values = train.to_values(pictures(64, 2)[0])
    with torch.no_grad():
        assert torch.allclose(plain.eval()(values), model.eval()(values), atol=1e-4)


def test_a_dead_filter_does_not_blow_up_its_layer():
    model = copy.deepcopy(float_network())
    with torch.no_grad():
        model.conv2.weight[0] *= 1e-4
        model.norm2.running_mean[0], model.norm2.running_var[0] = 0.0, 0.0
    folded = quantize.fold_batchnorm(model)["conv2.weight"]
    assert folded[0].abs().max() < folded[1:].abs().max()


def test_the_twin_learns():
    pixels, labels = pictures(128, 3)
    correct, _ = train.evaluate(quantized_network(), pixels, labels, BITS["input"])
    assert correct / len(labels) > 0.9


def test_quantisation_is_repeatable(tmp_path):
    for name in ("a", "b"):
        again, history = quantize.quantize(
            float_network(), "cnn_small", WIDTHS, BITS, pictures(64), pictures(32, 1),
            classes=CLASSES, seed=3, epochs=1, batch_size=16, learning_rate=1e-3,
        )  # fmt: skip
        train.save_state(again, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [entry["epoch"] for entry in history] == [0, 1]


def test_a_reloaded_twin_gives_the_same_codes(tmp_path):
    train.save_state(quantized_network(), tmp_path / "state.pt")
    again = quantize.load("cnn_small", WIDTHS, BITS, SHAPE, CLASSES, train.read_state(tmp_path / "state.pt"))
    pixels = pictures(32, 4)[0]
    codes = [quantize.observe(twin, pixels, 8).outputs for twin in (again, quantized_network())]
    assert np.array_equal(*codes)


def test_description_has_every_quantiser_with_its_own_bits():
    found = quantize.describe(quantized_network(), SHAPE, 8)
    assert [layer["name"] for layer in found["layers"]] == ["conv1", "conv2", "conv3", "classifier"]
    assert [layer["input_bits"] for layer in found["layers"]] == [8, 4, 4, 4]
    assert {layer["weights"] for layer in found["layers"]} == {4}
    assert {layer["bias"] for layer in found["layers"]} == {16}
    first = found["activations"][0]
    assert first == {"name": "input", "bits": 8, "signed": False, "scale_log2": -8}
    for layer in found["layers"]:
        assert layer["accumulator_scale_log2"] == layer["input_scale_log2"] + layer["weight_scale_log2"]


def test_described_bound_holds_on_data_and_below_the_recipes_bound():
    pixels = pictures(128, 5)[0]
    seen = quantize.observe(quantized_network(), pixels, 8).accumulators
    trained = quantize.describe(quantized_network(), SHAPE, 8)["layers"]
    before = quantize.recipe_exactness("cnn_small", WIDTHS, BITS, SHAPE, CLASSES)
    bound, recipe = ({layer["name"]: layer["accumulator_max"] for layer in found} for found in (trained, before))
    assert seen.keys() == bound.keys() == recipe.keys()
    for name, (low, high) in seen.items():
        assert max(-low, high) <= bound[name] <= recipe[name]


def test_layer_bits_reach_their_layers():
    bits = BITS | {"layers": {"conv2": {"weights": 3, "activations": 2}, "classifier": {"weights": 6}}}
    twin = quantize.twin("cnn_small", WIDTHS, bits, SHAPE, CLASSES)
    quantize.load_folded(twin, quantize.fold_batchnorm(float_network()))
    quantize.calibrate(twin, pictures(64)[0], 8)
    found = quantize.describe(twin, SHAPE, 8)
    assert [layer["weights"] for layer in found["layers"]] == [4, 3, 4, 6]
    assert [item["bits"] for item in found["activations"]] == [8, 4, 2, 4]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_input_quantiser_passes_codes_unchanged(bits):
    twin = quantize.twin("cnn_small", WIDTHS, BITS | {"input": bits}, SHAPE, CLASSES).eval()
    codes = torch.arange(2**bits, dtype=torch.float32)
    passed = twin.input(codes * 2.0**-bits)
    assert torch.equal(passed.value, codes * 2.0**-bits)
    assert float(passed.scale) == 2.0**-bits and not passed.signed


def test_observed_codes_are_those_of_an_integer_network():
    """The first layer, recomputed in int64 from its codes, gives the codes that Brevitas gives."""
    twin, pixels = quantized_network(), pictures(16, 6)[0]
    weight = twin.conv1.quant_weight()
    layer = quantize.describe(twin, SHAPE, 8)["layers"][0]
    weights = np.rint((weight.value / weight.scale).detach().numpy()).astype(np.int64)
    bias = np.rint(twin.conv1.bias.detach().numpy() * 2.0 ** -layer["accumulator_scale_log2"]).astype(np.int64)
    image = np.pad(pixels.numpy().astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(2, 3))
    accumulators = np.einsum("nchwij,ocij->nohw", windows, weights) + bias[None, :, None, None]
    seen = quantize.observe(twin, pixels, 8)
    assert seen.accumulators["conv1"] == (accumulators.min(), accumulators.max())
    scale = next(a["scale_log2"] for a in quantize.describe(twin, SHAPE, 8)["activations"] if a["name"] == "act1")
    codes = np.clip(np.rint(np.ldexp(accumulators.astype(float), layer["accumulator_scale_log2"] - scale)), 0, 15)
    assert np.array_equal(np.bincount(codes.astype(int).ravel(), minlength=16), seen.quantizers["act1"])


def test_float64_gives_the_same_codes():
    pixels = pictures(32, 7)[0]
    wide = copy.deepcopy(quantized_network()).double()
    assert np.array_equal(
        quantize.observe(wide, pixels, 8, dtype=torch.float64).outputs,
        quantize.observe(quantized_network(), pixels, 8).outputs,
    )


def test_a_scale_off_the_powers_of_two_is_found():
    twin = copy.deepcopy(quantized_network())
    quant = twin.act2.act_quant.fused_activation_quant_proxy.tensor_quant
    plain = quant.scaling_impl

    class Off(nn.Module):
        def forward(self, *given):
            return plain(*given) * 1.1

    quant.scaling_impl = Off()
    with pytest.raises(quantize.QuantizeError, match="act2.*power of two"):
        quantize.describe(twin, SHAPE, 8)
    with pytest.raises(NotIntegral):
        quantize.observe(twin, pictures(8)[0], 8)


def test_weights_that_all_became_zero_are_found():
    twin = copy.deepcopy(quantized_network())
    with torch.no_grad():
        twin.conv3.weight.zero_()
    with pytest.raises(quantize.QuantizeError, match="conv3 became zero"):
        quantize.describe(twin, SHAPE, 8)


def test_weights_without_a_place_are_found():
    folded = quantize.fold_batchnorm(float_network())
    twin = quantize.twin("cnn_small", WIDTHS, BITS, SHAPE, CLASSES)
    with pytest.raises(quantize.QuantizeError, match=r"conv1\.bias"):
        quantize.load_folded(twin, {name: t for name, t in folded.items() if name != "conv1.bias"})
    with pytest.raises(quantize.QuantizeError, match=r"norm1\.weight"):
        quantize.load_folded(twin, folded | {"norm1.weight": torch.zeros(4)})


def test_unknown_layers_are_refused_before_anything_is_built():
    with pytest.raises(models.ModelError, match="'conv9'.*did you mean") as caught:
        quantize.twin("cnn_small", WIDTHS, BITS | {"layers": {"conv9": {"weights": 3}}}, SHAPE, CLASSES)
    assert "conv1, conv2, conv3, classifier" in str(caught.value)
    with pytest.raises(models.ModelError, match="not quantised"):
        quantize.twin("cnn_small", WIDTHS, BITS | {"layers": {"classifier": {"activations": 3}}}, SHAPE, CLASSES)


def test_recipe_shows_where_float32_is_not_exact():
    wide = {"conv1": 8, "conv2": 64, "conv3": 600}
    bits = BITS | {"weights": 8, "activations": 8}
    found = quantize.recipe_exactness("cnn_small", wide, bits, SHAPE, CLASSES)
    assert [layer["oracle"] for layer in found] == ["float32", "float32", "float64", "float64"]
    assert [layer["fan_in"] for layer in found] == [9, 72, 576, 600]
    assert found[2]["accumulator_max"] == 576 * 255 * 127 + 2**15


def test_checking_a_recipe_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    quantize.recipe_exactness("cnn_small", WIDTHS, BITS, SHAPE, CLASSES)
    assert torch.equal(torch.rand(1), expected)


def test_bits_of_a_recipe_section():
    section = BITS | {"epochs": 2, "layers": {"conv1": {"weights": 8, "activations": None}}}
    assert quantize.bits_of(section) == BITS | {"layers": {"conv1": {"weights": 8}}}
