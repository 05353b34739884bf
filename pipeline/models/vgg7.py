"""Six 3x3 convolutions and a classifier over 4x4 pixels, for CIFAR-size pictures (153 M MACs at 3x32x32)."""

from pipeline.models import plain

WIDTHS = {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 128, "conv5": 256, "conv6": 256}
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 8


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10):
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return plain.build(widths, quant, input_shape, classes, (2, 2, 2))
