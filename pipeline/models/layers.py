"""The layers a model file asks for, in two kinds: float with BatchNorm, or Brevitas with BatchNorm folded away.

Both kinds give every module the same name, so that folded float weights load into the quantised twin.
All quantisers have power-of-two scales and zero point 0, and all weights are quantised per tensor.

The bias is quantised on the product scale (input scale x weight scale, no scale of its own): it is then an
integer added to the integer accumulator, nothing is aligned or rounded, and the QONNX export carries it as one
more Quant node. A bias with a scale of its own would be exact too, but every one of them would widen its accumulator.
"""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.inject.enum import ScalingImplType
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8WeightPerTensorFixedPoint,
    Int16Bias,
    Uint8ActPerTensorFixedPoint,
)
from brevitas.quant_tensor import QuantTensor
from torch import nn

# A filter that trimming or training left (nearly) dead has a variance near zero; folding divides by its root.
# 1e-3 bounds the folded weight at 32 times the trained one, so that it cannot blow up the scale of its layer.
NORM_EPSILON = 1e-3

# Signed codes on both sides of a residual add get this many bits more than the activations around them:
# one for the sign, one because a sum is read at a finer step than its result.
ADD_EXTRA_BITS = 2


class FixedInput(Uint8ActPerTensorFixedPoint):
    """Unsigned input of b bits with the constant scale 2^-b: values already on that grid pass unchanged."""

    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 1.0


class Add(nn.Module):
    """Sum of two branches; quantised tensors are added as values, since their scales differ."""

    def forward(self, left, right):
        return _values(left) + _values(right)


class Concat(nn.Module):
    """Channels of two branches side by side, as values: their scales may differ."""

    def forward(self, left, right):
        return torch.cat([_values(left), _values(right)], 1)


def _values(tensor):
    return tensor.value if isinstance(tensor, QuantTensor) else tensor


class FloatLayers:
    """Float network: convolutions without bias, each followed by BatchNorm."""

    def input(self) -> nn.Module:
        return nn.Identity()

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=NORM_EPSILON)

    def activation(self, name: str) -> nn.Module:
        return nn.ReLU()

    def before_add(self, name: str) -> nn.Module:
        return nn.Identity()

    def add(self) -> nn.Module:
        return Add()

    def concat(self) -> nn.Module:
        return Concat()

    def linear(self, name: str, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)


class QuantLayers:
    """Brevitas twin. ``bits``: see ``pipeline.quantize.bits_of``."""

    def __init__(self, bits: dict[str, Any]):
        self.bits = bits

    def _of(self, name: str, what: str) -> int:
        return self.bits["layers"].get(name, {}).get(what) or self.bits[what]

    def _weights(self, name: str) -> dict[str, Any]:
        return {
            "bias": True,
            "weight_quant": Int8WeightPerTensorFixedPoint,
            "weight_bit_width": self._of(name, "weights"),
            "bias_quant": Int16Bias,
            "bias_bit_width": self.bits["bias"],
        }

    def input(self) -> nn.Module:
        return qnn.QuantIdentity(act_quant=FixedInput, bit_width=self.bits["input"], return_quant_tensor=True)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
        return qnn.QuantConv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, **self._weights(name)
        )

    def norm(self, channels: int) -> nn.Module:
        return nn.Identity()

    def activation(self, name: str) -> nn.Module:
        return qnn.QuantReLU(
            act_quant=Uint8ActPerTensorFixedPoint,
            bit_width=self._of(name, "activations"),
            return_quant_tensor=True,
        )

    def before_add(self, name: str) -> nn.Module:
        return qnn.QuantIdentity(
            act_quant=Int8ActPerTensorFixedPoint,
            bit_width=self._of(name, "activations") + ADD_EXTRA_BITS,
            return_quant_tensor=True,
        )

    def add(self) -> nn.Module:
        return Add()

    def concat(self) -> nn.Module:
        return Concat()

    def linear(self, name: str, inputs: int, outputs: int) -> nn.Module:
        return qnn.QuantLinear(inputs, outputs, **self._weights(name))


def layers(bits: dict[str, Any] | None) -> FloatLayers | QuantLayers:
    """Float layers for ``None``, otherwise quantised ones."""
    return FloatLayers() if bits is None else QuantLayers(bits)


def values(output) -> torch.Tensor:
    """Plain values of a network's output, whether it is a tensor or a QuantTensor."""
    return _values(output)
