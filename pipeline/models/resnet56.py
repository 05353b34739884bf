"""ResNet-56 for CIFAR-size pictures: a stem and 27 residual blocks (126 M MACs at 3x32x32).

The head is a global max-pool, which costs no multiplications.
"""

from pipeline.models import residual

WIDTHS = {
    "conv1": 16,
    "block1.conv1": 16, "block1.conv2": 16,
    "block2.conv1": 16, "block2.conv2": 16,
    "block3.conv1": 16, "block3.conv2": 16,
    "block4.conv1": 16, "block4.conv2": 16,
    "block5.conv1": 16, "block5.conv2": 16,
    "block6.conv1": 16, "block6.conv2": 16,
    "block7.conv1": 16, "block7.conv2": 16,
    "block8.conv1": 16, "block8.conv2": 16,
    "block9.conv1": 16, "block9.conv2": 16,
    "block10.conv1": 32, "block10.conv2": 32, "block10.shortcut": 32,
    "block11.conv1": 32, "block11.conv2": 32,
    "block12.conv1": 32, "block12.conv2": 32,
    "block13.conv1": 32, "block13.conv2": 32,
    "block14.conv1": 32, "block14.conv2": 32,
    "block15.conv1": 32, "block15.conv2": 32,
    "block16.conv1": 32, "block16.conv2": 32,
    "block17.conv1": 32, "block17.conv2": 32,
    "block18.conv1": 32, "block18.conv2": 32,
    "block19.conv1": 64, "block19.conv2": 64, "block19.shortcut": 64,
    "block20.conv1": 64, "block20.conv2": 64,
    "block21.conv1": 64, "block21.conv2": 64,
    "block22.conv1": 64, "block22.conv2": 64,
    "block23.conv1": 64, "block23.conv2": 64,
    "block24.conv1": 64, "block24.conv2": 64,
    "block25.conv1": 64, "block25.conv2": 64,
    "block26.conv1": 64, "block26.conv2": 64,
    "block27.conv1": 64, "block27.conv2": 64,
}  # fmt: skip
INPUT_SHAPE = (3, 32, 32)
SIZE_STEP = 4
# Filters on both sides of an add are the same channels: a stage has one set of them.
TIED = (
    ("conv1", "block1.conv2", "block2.conv2", "block3.conv2", "block4.conv2", "block5.conv2", "block6.conv2",
     "block7.conv2", "block8.conv2", "block9.conv2"),
    ("block10.conv2", "block10.shortcut", "block11.conv2", "block12.conv2", "block13.conv2", "block14.conv2",
     "block15.conv2", "block16.conv2", "block17.conv2", "block18.conv2"),
    ("block19.conv2", "block19.shortcut", "block20.conv2", "block21.conv2", "block22.conv2", "block23.conv2",
     "block24.conv2", "block25.conv2", "block26.conv2", "block27.conv2"),
)  # fmt: skip


def build(widths, quant, input_shape=INPUT_SHAPE, classes=10):
    """``widths``: {convolution: filters}; ``quant``: None for float, else the bits (``pipeline.quantize.bits_of``)."""
    return residual.build(widths, quant, input_shape, classes, (9, 9, 9))
