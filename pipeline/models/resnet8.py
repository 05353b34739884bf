"""ResNet8 for CIFAR-size pictures: a stem and three residual blocks (12.5 M MACs at 3x32x32).

The head is a global max-pool: average pooling does not survive the way through QONNX into hls4ml 1.3.0.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values

WIDTHS = {
    "conv1": 16,
    "block1.conv1": 16,
    "block1.conv2": 16,
    "block2.conv1": 32,
    "block2.conv2": 32,
    "block2.shortcut": 32,
    "block3.conv1": 64,
    "block3.conv2": 64,
    "block3.shortcut": 64,
}
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 4
# Filters on both sides of an add are the same channels: groups of convolutions that must have equal widths.
TIED = (
    ("conv1", "block1.conv2"),
    ("block2.conv2", "block2.shortcut"),
    ("block3.conv2", "block3.shortcut"),
)


class Block(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution on the shortcut where the stride is not 1."""

    def __init__(self, make, name, inputs, widths, stride):
        super().__init__()
        inner, outer = widths[f"{name}.conv1"], widths[f"{name}.conv2"]
        self.conv1 = make.conv(f"{name}.conv1", inputs, inner, 3, stride)
        self.norm1 = make.norm(inner)
        self.act1 = make.activation(f"{name}.conv1")
        self.conv2 = make.conv(f"{name}.conv2", inner, outer, 3)
        self.norm2 = make.norm(outer)
        self.before_add = make.before_add(f"{name}.conv2")
        self.projects = stride != 1
        if self.projects:
            self.shortcut = make.conv(f"{name}.shortcut", inputs, outer, 1, stride)
            self.norm_shortcut = make.norm(outer)
            self.before_add_shortcut = make.before_add(f"{name}.shortcut")
        self.add = make.add()
        self.act2 = make.activation(f"{name}.conv2")

    def forward(self, x):
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.before_add(self.norm2(self.conv2(y)))
        if self.projects:
            x = self.before_add_shortcut(self.norm_shortcut(self.shortcut(x)))
        return self.act2(self.add(y, x))


class ResNet8(nn.Module):
    """Input (N, C, H, W) values, H and W multiples of 4; output (N, classes)."""

    def __init__(self, make, widths, input_shape, classes):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.conv1 = make.conv("conv1", channels, widths["conv1"], 3)
        self.norm1 = make.norm(widths["conv1"])
        self.act1 = make.activation("conv1")
        self.block1 = Block(make, "block1", widths["conv1"], widths, 1)
        self.block2 = Block(make, "block2", widths["block1.conv2"], widths, 2)
        self.block3 = Block(make, "block3", widths["block2.conv2"], widths, 2)
        self.pool = nn.MaxPool2d((height // 4, width // 4))
        self.flatten = nn.Flatten(1)
        self.classifier = make.linear("classifier", widths["block3.conv2"], classes)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(self.input(x))))
        x = self.block3(self.block2(self.block1(x)))
        return values(self.classifier(self.flatten(self.pool(x))))


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return ResNet8(layers(quant), widths, input_shape, classes)
