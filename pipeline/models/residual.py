"""Residual networks for CIFAR-size pictures: a stem, then blocks of two 3x3 convolutions (He et al. 2016, section 4.2).

Two things differ from the paper: a shortcut whose size changes is a 1x1 convolution (the paper's option B; its option A
pads with zeros), and the head is a global max-pool. A stage's first block halves the picture, but for the first stage.
"""

from __future__ import annotations

from torch import nn

from pipeline.models.layers import layers, values


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


class ResNet(nn.Module):
    """Input (N, C, H, W) values, H and W multiples of 4; output (N, classes). ``blocks``: blocks of each stage."""

    def __init__(self, make, widths, input_shape, classes, blocks=(1, 1, 1)):
        super().__init__()
        channels, height, width = input_shape
        self.input = make.input()
        self.conv1 = make.conv("conv1", channels, widths["conv1"], 3)
        self.norm1 = make.norm(widths["conv1"])
        self.act1 = make.activation("conv1")
        self.blocks, inputs = [], widths["conv1"]
        for stage, count in enumerate(blocks):
            for place in range(count):
                name = f"block{len(self.blocks) + 1}"
                setattr(self, name, Block(make, name, inputs, widths, 2 if stage > 0 and place == 0 else 1))
                self.blocks.append(name)
                inputs = widths[f"{name}.conv2"]
        halvings = 2 ** (len(blocks) - 1)
        self.pool = nn.MaxPool2d((height // halvings, width // halvings))
        self.flatten = nn.Flatten(1)
        self.classifier = make.linear("classifier", inputs, classes)

    def forward(self, x):
        x = self.act1(self.norm1(self.conv1(self.input(x))))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return values(self.classifier(self.flatten(self.pool(x))))


def build(widths, quant, input_shape, classes, blocks) -> nn.Module:
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return ResNet(layers(quant), widths, input_shape, classes, blocks)
