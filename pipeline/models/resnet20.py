"""ResNet-20 for CIFAR-size pictures: a stem and nine residual blocks (41 M MACs at 3x32x32).

The head is a global max-pool, which costs no multiplications.
"""

from pipeline.models import residual

WIDTHS = {
    "conv1": 16,
    "block1.conv1": 16, "block1.conv2": 16,
    "block2.conv1": 16, "block2.conv2": 16,
    "block3.conv1": 16, "block3.conv2": 16,
    "block4.conv1": 32, "block4.conv2": 32, "block4.shortcut": 32,
    "block5.conv1": 32, "block5.conv2": 32,
    "block6.conv1": 32, "block6.conv2": 32,
    "block7.conv1": 64, "block7.conv2": 64, "block7.shortcut": 64,
    "block8.conv1": 64, "block8.conv2": 64,
    "block9.conv1": 64, "block9.conv2": 64,
}  # fmt: skip
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 4
# Filters on both sides of an add are the same channels: a stage has one set of them.
TIED = (
    ("conv1", "block1.conv2", "block2.conv2", "block3.conv2"),
    ("block4.conv2", "block4.shortcut", "block5.conv2", "block6.conv2"),
    ("block7.conv2", "block7.shortcut", "block8.conv2", "block9.conv2"),
)  # fmt: skip


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10):
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return residual.build(widths, quant, input_shape, classes, (3, 3, 3))
