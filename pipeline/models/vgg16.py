"""VGG-16 as it is used for CIFAR-10: thirteen 3x3 convolutions and one linear layer (313 M MACs at 3x32x32)."""

from pipeline.models import plain

WIDTHS = {
    "conv1": 64, "conv2": 64, "conv3": 128, "conv4": 128, "conv5": 256,
    "conv6": 256, "conv7": 256, "conv8": 512, "conv9": 512, "conv10": 512,
    "conv11": 512, "conv12": 512, "conv13": 512,
}  # fmt: skip
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 32


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10):
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return plain.build(widths, quant, input_shape, classes, (2, 2, 3, 3, 3))
