"""MobileNet in the manner of v1 (Howard et al. 2017) for CIFAR-size pictures: a stem, seven depthwise-separable blocks.

The head is a global max-pool, which costs no multiplications.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values

WIDTHS = {
    "conv1": 32,
    "block1.depthwise": 32, "block1.pointwise": 64,
    "block2.depthwise": 64, "block2.pointwise": 128,
    "block3.depthwise": 128, "block3.pointwise": 128,
    "block4.depthwise": 128, "block4.pointwise": 256,
    "block5.depthwise": 256, "block5.pointwise": 256,
    "block6.depthwise": 256, "block6.pointwise": 512,
    "block7.depthwise": 512, "block7.pointwise": 512,
}  # fmt: skip
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 8
# A depthwise convolution has the channels of the one before it.
TIED = (
    ("conv1", "block1.depthwise"),
    ("block1.pointwise", "block2.depthwise"),
    ("block2.pointwise", "block3.depthwise"),
    ("block3.pointwise", "block4.depthwise"),
    ("block4.pointwise", "block5.depthwise"),
    ("block5.pointwise", "block6.depthwise"),
    ("block6.pointwise", "block7.depthwise"),
)
HALVING = (2, 4, 6)


class Separable(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution."""

    def __init__(self, make, name, inputs, widths, stride):
        super().__init__()
        depthwise, pointwise = f"{name}.depthwise", f"{name}.pointwise"
        self.depthwise = make.conv(depthwise, inputs, inputs, 3, stride, groups=inputs)
        self.norm1 = make.norm(inputs)
        self.act1 = make.activation(depthwise)
        self.pointwise = make.conv(pointwise, inputs, widths[pointwise], 1)
        self.norm2 = make.norm(widths[pointwise])
        self.act2 = make.activation(pointwise)

    def forward(self, x):
        x = self.act1(self.norm1(self.depthwise(x)))
        return self.act2(self.norm2(self.pointwise(x)))


class MobileNet(nn.Module):
    """Input (N, C, H, W) values, H and W multiples of 8; output (N, classes)."""

    def __init__(self, make, widths, input_shape, classes):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.conv1 = make.conv("conv1", channels, widths["conv1"], 3)
        self.norm1 = make.norm(widths["conv1"])
        self.act1 = make.activation("conv1")
        inputs = widths["conv1"]
        for number in range(1, 8):
            name = f"block{number}"
            setattr(self, name, Separable(make, name, inputs, widths, 2 if number in HALVING else 1))
            inputs = widths[f"{name}.pointwise"]
        self.pool = nn.MaxPool2d((height // 8, width // 8))
        self.flatten = nn.Flatten(1)
        self.classifier = make.linear("classifier", inputs, classes)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(self.input(x))))
        for number in range(1, 8):
            x = getattr(self, f"block{number}")(x)
        return values(self.classifier(self.flatten(self.pool(x))))


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return MobileNet(layers(quant), widths, input_shape, classes)
