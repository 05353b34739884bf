"""Three 3x3 convolutions for tiny gray pictures such as the 8x8 digits (230 k MACs at 1x8x8)."""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values

WIDTHS = {"conv1": 16, "conv2": 32, "conv3": 32}
INPUT_SHAPE = (1, 8, 8)
SIZE_STEP = 2


class CnnSmall(nn.Module):
    """Input (N, C, H, W) values, H and W even; output (N, classes)."""

    def __init__(self, make, widths, input_shape, classes):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.conv1 = make.conv("conv1", channels, widths["conv1"], 3)
        self.norm1 = make.norm(widths["conv1"])
        self.act1 = make.activation("conv1")
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = make.conv("conv2", widths["conv1"], widths["conv2"], 3)
        self.norm2 = make.norm(widths["conv2"])
        self.act2 = make.activation("conv2")
        self.conv3 = make.conv("conv3", widths["conv2"], widths["conv3"], 3)
        self.norm3 = make.norm(widths["conv3"])
        self.act3 = make.activation("conv3")
        self.pool2 = nn.MaxPool2d((height // 2, width // 2))
        self.flatten = nn.Flatten(1)
        self.classifier = make.linear("classifier", widths["conv3"], classes)

    def forward(self, x):
        x = self.input(x)
        x = self.pool1(self.act1(self.norm1(self.conv1(x))))
        x = self.act2(self.norm2(self.conv2(x)))
        x = self.act3(self.norm3(self.conv3(x)))
        return values(self.classifier(self.flatten(self.pool2(x))))


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return CnnSmall(layers(quant), widths, input_shape, classes)
