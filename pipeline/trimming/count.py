"""Multiply-accumulates and parameters of a network, counted on one picture."""

import math

import torch
from torch import nn

# One weight each is multiplied once per output position (transposed: once per input position).
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def count(model: nn.Module, input_shape: tuple[int, ...]) -> dict:
    """{"macs", "parameters", "layers": [{"name", "macs", "parameters", "out_channels"}]}; input (C, H, W).

    MACs are the multiplications by weights of convolutions and linear layers for one picture, layers in the
    order they run; a layer that runs twice counts twice. Additions of biases, BatchNorm (folded away before
    hardware), pooling and activations are none. "parameters" of the network is everything that is trained,
    BatchNorm's scale and shift included; a layer's are its own weights and biases. Works on float networks
    and on Brevitas ones; leaves mode and state of the model as they were.
    """
    layers: dict[str, dict] = {}

    def hook(name):
        def record(module, inputs, output):
            shape = getattr(output, "value", output).shape
            positions = math.prod(shape[2:]) if not isinstance(module, nn.Linear) else math.prod(shape[1:-1])
            entry = layers.setdefault(
                name,
                {
                    "name": name,
                    "macs": 0,
                    "parameters": sum(p.numel() for p in (module.weight, module.bias) if p is not None),
                    "out_channels": module.weight.shape[0],
                },
            )
            entry["macs"] += positions * module.weight.numel()

        return record

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
    modes = {module: module.training for module in model.modules()}
    example = next(model.parameters())
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, *input_shape, dtype=example.dtype, device=example.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return {
        "macs": sum(layer["macs"] for layer in layers.values()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": list(layers.values()),
    }
