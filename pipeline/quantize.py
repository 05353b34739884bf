"""From float weights to the quantised twin: fold BatchNorm, build the twin, calibrate, fine-tune, check its scales.

The twin is built anew from the kept widths; a quantised layer is never cut. ``bits`` is a plain dictionary
{"input", "bias", "weights", "activations": int, "layers": {name: {"weights", "activations"}}}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.nn import QuantIdentity, QuantReLU
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as QuantMac
from brevitas.quant_tensor import QuantTensor
from torch import nn
from torch.fx.experimental.optimization import fuse

from boards.errors import SlimgateError
from pipeline import models
from pipeline.golden import NotIntegral, log2_of, values_to_codes
from pipeline.train import fit, load_state, to_values

#: Pictures that calibration looks at; more do not move a power-of-two scale.
CALIBRATION_SAMPLES = 2048
CALIBRATION_BATCH = 64
#: float32 holds every integer below this, so sums of products are exact below it in any order.
FLOAT32_EXACT = 2**24


class QuantizeError(SlimgateError):
    """A quantiser came out in a way that hardware could not follow exactly."""


def bits_of(quantize) -> dict:
    """The bits of a recipe's ``[quantize]`` section (pydantic or dict), unset layer entries left out."""
    section = quantize if isinstance(quantize, dict) else quantize.model_dump(exclude_none=True)
    layers = {n: {k: v for k, v in b.items() if v is not None} for n, b in section.get("layers", {}).items()}
    return {key: section[key] for key in ("input", "bias", "weights", "activations")} | {"layers": layers}


def fold_batchnorm(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases of the float network with every BatchNorm folded into the convolution before it.

    The model is left as it is. Folding happens in float64 and is rounded once.
    """
    was_training = model.training
    folded = fuse(model.eval().double()).float().state_dict()
    model.float().train(was_training)
    return folded


def twin(model: str, widths: dict[str, int], bits: dict, input_shape, classes: int) -> nn.Module:
    """The quantised network without trained weights. Raises ModelError for bits of a layer it does not have."""
    models.check_layers(model, bits["layers"])
    return models.build(model, widths, bits, input_shape, classes)


def load_folded(quantized: nn.Module, folded: dict[str, torch.Tensor]) -> None:
    """Put folded weights into a twin; its scales stay. QuantizeError unless every weight finds its place."""
    missing, unexpected = quantized.load_state_dict(folded, strict=False)
    lost = [name for name in missing if "scaling_impl" not in name] + list(unexpected)
    if lost:
        raise QuantizeError(
            f"the folded network and its twin differ in {', '.join(lost)}",
            fix="a BatchNorm must follow its convolution directly in the model file, under the names the twin uses",
        )


@torch.no_grad()
def calibrate(quantized: nn.Module, pixels: torch.Tensor, bits: int) -> None:
    """Set the activation scales from the statistics of (at most 2,048) training pictures."""
    quantized.eval()
    with calibration_mode(quantized):
        for batch in pixels[:CALIBRATION_SAMPLES].split(CALIBRATION_BATCH):
            quantized(to_values(batch, bits))


def quantize(
    float_model: nn.Module,
    model: str,
    widths: dict[str, int],
    bits: dict,
    train,
    val,
    *,
    classes: int,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    patience: int | None = None,
    augment: str = "none",
    progress: Callable = lambda items, label: items,
) -> tuple[nn.Module, list[dict]]:
    """Fold, build, calibrate and fine-tune; returns the twin in evaluation mode and the history.

    ``train``, ``val``: pictures (N, C, H, W) uint8 and labels (N,). Epoch 0 of the history is the calibrated twin.
    Raises ModelError, QuantizeError, TrainingDiverged.
    """
    pixels, _ = train
    quantized = twin(model, widths, bits, tuple(pixels.shape[1:]), classes)
    load_folded(quantized, fold_batchnorm(float_model))
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    calibrate(quantized, pixels[order], bits["input"])
    history = fit(
        quantized, train, val, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        weight_decay=weight_decay, augment=augment, bits=bits["input"], seed=seed, patience=patience,
        progress=progress, label="quantize",
    )  # fmt: skip
    return quantized, history


def load(model: str, widths: dict[str, int], bits: dict, input_shape, classes: int, state) -> nn.Module:
    """The trained twin from its weights, in evaluation mode. Raises CheckpointError where they do not fit."""
    return load_state(twin(model, widths, bits, input_shape, classes), state)


@dataclass
class Observation:
    """What passed through a twin, as integer codes.

    ``outputs`` (N, K) int64. ``quantizers`` {name: how often each code occurred, from the lowest possible code up}.
    ``accumulators`` {layer: (lowest, highest) accumulator in units of its product scale}. ``output_scale_log2``: the
    last layer's product scale.
    """

    outputs: np.ndarray
    output_scale_log2: int
    quantizers: dict[str, np.ndarray] = field(default_factory=dict)
    accumulators: dict[str, tuple[int, int]] = field(default_factory=dict)


@contextmanager
def _hooks(module: nn.Module, kinds, hook) -> Iterator[None]:
    handles = [
        child.register_forward_hook(lambda child, given, made, name=name: hook(name, child, given[0], made))
        for name, child in module.named_modules()
        if isinstance(child, kinds)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def observe(
    quantized: nn.Module, pixels: torch.Tensor, bits: int, *, batch: int = 256, dtype=torch.float32
) -> Observation:
    """Run pictures (N, C, H, W) uint8 through a twin and collect codes. NotIntegral when anything is off its grid.

    ``dtype`` float64 is for networks whose accumulators may exceed 2**24 units; ``quantized`` must have that dtype.
    """
    quantized.eval()
    counts: dict[str, np.ndarray] = {}
    ranges: dict[str, tuple[int, int]] = {}
    scale: list[int] = []

    def count(name, child, given, made):
        low, high = _code_range(made)
        codes = values_to_codes(made.value.numpy(), log2_of(float(made.scale))) - low
        found = np.bincount(codes.ravel(), minlength=high - low + 1)
        counts[name] = counts.get(name, 0) + found

    def accumulate(name, child, given, made):
        product = log2_of(float(given.scale)) + log2_of(float(child.quant_weight().scale))
        value = made.value if isinstance(made, QuantTensor) else made
        low, high = (int(values_to_codes(bound.numpy(), product)) for bound in (value.min(), value.max()))
        old = ranges.get(name, (low, high))
        ranges[name] = (min(low, old[0]), max(high, old[1]))
        scale[:] = [product]

    outputs = []
    with _hooks(quantized, (QuantIdentity, QuantReLU), count), _hooks(quantized, QuantMac, accumulate):
        for part in pixels.split(batch):
            outputs.append(quantized(to_values(part, bits, dtype)).numpy())
    codes = values_to_codes(np.concatenate(outputs), scale[0])
    return Observation(codes, scale[0], counts, ranges)


def _code_range(tensor: QuantTensor) -> tuple[int, int]:
    width, signed = int(tensor.bit_width), bool(tensor.signed)
    return (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if signed else (0, 2**width - 1)


@torch.no_grad()
def describe(quantized: nn.Module, input_shape, bits: int) -> dict:
    """Every quantiser of a trained twin with its width and scale, in order of execution; checks them on the way.

    Returns {"layers": [{"name", "weights", "weight_scale_log2", "bias", "input_bits", "input_scale_log2",
    "accumulator_scale_log2", "accumulator_max", "weight_zeros"}], "activations": [{"name", "bits", "signed",
    "scale_log2"}]}; ``accumulator_max`` bounds every partial sum, in units of the product scale, from the actual
    weights and the widest input codes. Raises QuantizeError for a scale that is no power of two, a zero point that is
    not 0, or a layer whose weights have all become zero.
    """
    layers, activations = [], []

    def exponent(name, tensor):
        try:
            found = log2_of(float(tensor.scale))
        except (NotIntegral, RuntimeError) as error:
            raise QuantizeError(
                f"{name}: a scale per tensor that is a power of two is needed", where=name,
                fix="train longer, or with a lower learning rate: scales must stay finite and per tensor",
            ) from error  # fmt: skip
        if float(torch.as_tensor(tensor.zero_point).abs().max()) != 0:
            raise QuantizeError(f"{name}: its zero point is not 0", where=name)
        return found

    def activation(name, child, given, made):
        signed, width = bool(made.signed), int(made.bit_width)
        activations.append({"name": name, "bits": width, "signed": signed, "scale_log2": exponent(name, made)})

    def layer(name, child, given, made):
        weight = child.quant_weight()
        bias = child.bias_quant(child.bias, given, weight)
        scale_in, scale_weight = exponent(f"{name}'s input", given), exponent(f"{name}'s weights", weight)
        codes = values_to_codes(weight.value.numpy(), scale_weight)
        if not codes.any():
            raise QuantizeError(
                f"all weights of {name} became zero", where=name,
                fix=f"give it more bits in [quantize.layers.{name}], or trim less",
            )  # fmt: skip
        if exponent(f"{name}'s bias", bias) != scale_in + scale_weight:
            raise QuantizeError(f"{name}'s bias is not on the scale of its accumulator", where=name)
        bias_codes = values_to_codes(bias.value.numpy(), scale_in + scale_weight)
        low, high = _code_range(given)
        per_filter = np.abs(codes.reshape(len(codes), -1)).sum(axis=1) * max(-low, high) + np.abs(bias_codes)
        layers.append(
            {
                "name": name,
                "weights": int(weight.bit_width),
                "weight_scale_log2": scale_weight,
                "weight_zeros": float((codes == 0).mean()),
                "bias": int(bias.bit_width),
                "input_bits": int(given.bit_width),
                "input_scale_log2": scale_in,
                "accumulator_scale_log2": scale_in + scale_weight,
                "accumulator_max": int(per_filter.max()),
            }
        )

    quantized.eval()
    with _hooks(quantized, (QuantIdentity, QuantReLU), activation), _hooks(quantized, QuantMac, layer):
        quantized(to_values(torch.zeros((1, *input_shape), dtype=torch.uint8), bits))
    if any(not isinstance(item["scale_log2"], int) for item in activations) or not layers:
        raise QuantizeError("the network has no quantised layer")
    return {"layers": layers, "activations": activations}


def recipe_exactness(model: str, widths: dict[str, int], bits: dict, input_shape, classes: int) -> list[dict]:
    """Worst accumulators that bit widths and fan-in alone allow, per layer, before anything is trained.

    Returns [{"name", "fan_in", "input_bits", "weights", "accumulator_max", "oracle"}]; ``oracle`` is "float32" below
    2**24 units, else "float64": float evaluation of that layer is then exact only in double precision.
    """
    found = []

    def layer(name, child, given, made):
        fan_in = child.weight[0].numel()
        width, weights = int(given.bit_width), int(child.quant_weight().bit_width)
        low, high = _code_range(given)
        most = fan_in * max(-low, high) * (2 ** (weights - 1) - 1) + 2 ** (bits["bias"] - 1)
        found.append(
            {
                "name": name,
                "fan_in": fan_in,
                "input_bits": width,
                "weights": weights,
                "accumulator_max": most,
                "oracle": "float32" if most < FLOAT32_EXACT else "float64",
            }
        )

    with torch.random.fork_rng():
        quantized = twin(model, widths, bits, input_shape, classes).eval()
        with torch.no_grad(), _hooks(quantized, QuantMac, layer):
            quantized(torch.rand(1, *input_shape))
    return found
