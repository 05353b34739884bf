"""Tiny networks for the tests of the torch side: seconds, not minutes."""

import functools

import torch

from pipeline import models, quantize, train

SHAPE = (1, 8, 8)
CLASSES = 4
WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 6}
BITS = {"input": 8, "bias": 16, "weights": 4, "activations": 4, "layers": {}}


def pictures(count, seed=0, shape=SHAPE, classes=CLASSES):
    """Random pictures (N, C, H, W) uint8 with a bright quarter that tells the class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 150, (count, *shape), generator=generator, dtype=torch.uint8)
    height, width = shape[1] // 2, shape[2] // 2
    for index, label in enumerate(labels):
        row, column = divmod(int(label) % 4, 2)
        pixels[index, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 100
    return pixels, labels


@functools.cache
def float_network():
    """A trained float network; do not change it."""
    train.seed_everything(0)
    model = models.build("cnn_small", WIDTHS, None, SHAPE, CLASSES)
    train.fit(model, pictures(192), pictures(64, 1), epochs=6, batch_size=16, learning_rate=0.01)
    return model


@functools.cache
def quantized_network(weights=4, activations=4):
    """Its trained twin; do not change it."""
    bits = BITS | {"weights": weights, "activations": activations}
    twin, _ = quantize.quantize(
        float_network(), "cnn_small", WIDTHS, bits, pictures(192), pictures(64, 1),
        classes=CLASSES, seed=0, epochs=3, batch_size=16, learning_rate=2e-3,
    )  # fmt: skip
    return twin


def normalize(model, batch):
    """BatchNorm statistics of one batch: without them an untrained deep network says the same of every picture."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()(batch)
    model.eval()
