"""Plain chains of 3x3 convolutions with pooling in between, VGG-like (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values


class Plain(nn.Module):
    """Input (N, C, H, W) values; output (N, classes). ``stages``: convolutions before each halving max-pool.

    What the last pool leaves is flattened: each of its channels is as many inputs of the classifier as it has pixels.
    """

    def __init__(self, make, widths, input_shape, classes, stages):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.steps, number = [], 0
        for stage, count in enumerate(stages, 1):
            for _ in range(count):
                number += 1
                name = f"conv{number}"
                setattr(self, name, make.conv(name, channels, widths[name], 3))
                setattr(self, f"norm{number}", make.norm(widths[name]))
                setattr(self, f"act{number}", make.activation(name))
                self.steps += [name, f"norm{number}", f"act{number}"]
                channels = widths[name]
            setattr(self, f"pool{stage}", nn.MaxPool2d(2))
            self.steps.append(f"pool{stage}")
        self.flatten = nn.Flatten(1)
        pixels = (height >> len(stages)) * (width >> len(stages))
        self.classifier = make.linear("classifier", channels * pixels, classes)

    def forward(self, x):
        x = self.input(x)
        for name in self.steps:
            x = getattr(self, name)(x)
        return values(self.classifier(self.flatten(x)))


def build(widths, quant, input_shape, classes, stages) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return Plain(layers(quant), widths, input_shape, classes, stages)
