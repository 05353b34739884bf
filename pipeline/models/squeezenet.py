"""SqueezeNet (Iandola et al. 2016) for CIFAR-size pictures: fire modules, whose two branches are concatenated.

The stem does not halve the picture, and a global max-pool and a linear layer take the place of the last convolution
and its average.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values

WIDTHS = {
    "conv1": 64,
    "fire2.squeeze": 16, "fire2.expand1": 64, "fire2.expand3": 64,
    "fire3.squeeze": 16, "fire3.expand1": 64, "fire3.expand3": 64,
    "fire4.squeeze": 32, "fire4.expand1": 128, "fire4.expand3": 128,
    "fire5.squeeze": 32, "fire5.expand1": 128, "fire5.expand3": 128,
    "fire6.squeeze": 48, "fire6.expand1": 192, "fire6.expand3": 192,
    "fire7.squeeze": 48, "fire7.expand1": 192, "fire7.expand3": 192,
    "fire8.squeeze": 64, "fire8.expand1": 256, "fire8.expand3": 256,
    "fire9.squeeze": 64, "fire9.expand1": 256, "fire9.expand3": 256,
}  # fmt: skip
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 8
FIRES = (2, 3, 4, 5, 6, 7, 8, 9)
POOL_BEFORE = (2, 4, 6)


class Fire(nn.Module):
    """A 1x1 convolution that squeezes, then 1x1 and 3x3 convolutions side by side."""

    def __init__(self, make, name, inputs, widths):
        super().__init__()
        squeeze, expand1, expand3 = (f"{name}.{part}" for part in ("squeeze", "expand1", "expand3"))
        self.squeeze = make.conv(squeeze, inputs, widths[squeeze], 1)
        self.norm_squeeze = make.norm(widths[squeeze])
        self.act_squeeze = make.activation(squeeze)
        self.expand1 = make.conv(expand1, widths[squeeze], widths[expand1], 1)
        self.norm1 = make.norm(widths[expand1])
        self.expand3 = make.conv(expand3, widths[squeeze], widths[expand3], 3)
        self.norm3 = make.norm(widths[expand3])
        self.concat = make.concat()
        # One activation behind the concatenation: one scale for both branches.
        self.act = make.activation(expand3)

    def forward(self, x):
        x = self.act_squeeze(self.norm_squeeze(self.squeeze(x)))
        return self.act(self.concat(self.norm1(self.expand1(x)), self.norm3(self.expand3(x))))


class SqueezeNet(nn.Module):
    """Input (N, C, H, W) values, H and W multiples of 8; output (N, classes)."""

    def __init__(self, make, widths, input_shape, classes):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.conv1 = make.conv("conv1", channels, widths["conv1"], 3)
        self.norm1 = make.norm(widths["conv1"])
        self.act1 = make.activation("conv1")
        inputs = widths["conv1"]
        for number in FIRES:
            name = f"fire{number}"
            if number in POOL_BEFORE:
                setattr(self, f"pool{number}", nn.MaxPool2d(2))
            setattr(self, name, Fire(make, name, inputs, widths))
            inputs = widths[f"{name}.expand1"] + widths[f"{name}.expand3"]
        self.pool = nn.MaxPool2d((height // 8, width // 8))
        self.flatten = nn.Flatten(1)
        self.classifier = make.linear("classifier", inputs, classes)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(self.input(x))))
        for number in FIRES:
            if number in POOL_BEFORE:
                x = getattr(self, f"pool{number}")(x)
            x = getattr(self, f"fire{number}")(x)
        return values(self.classifier(self.flatten(self.pool(x))))


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return SqueezeNet(layers(quant), widths, input_shape, classes)
