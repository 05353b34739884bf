"""ResNet8 for CIFAR-size pictures: a stem and three residual blocks (12.5 M MACs at 3x32x32).

The head is a global max-pool, which costs no multiplications.
"""

from pipeline.models import residual

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


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10):
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return residual.build(widths, quant, input_shape, classes, (1, 1, 1))
