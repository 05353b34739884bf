"""A network trained with plain Brevitas, without slimgate: the worked example of docs/guide.md.

Trains on three quarters of the digits that scikit-learn carries (about ten seconds) and writes into the current folder:
network.onnx (with network.onnx.data), test.npz with the pictures it has not seen, and labels.txt.
"""

import brevitas.nn as qnn
import numpy as np
import torch
from brevitas.export import export_qonnx
from brevitas.quant import Int8WeightPerTensorFixedPoint as Weights
from brevitas.quant import Uint8ActPerTensorFixedPoint as Activations
from sklearn.datasets import load_digits
from torch import nn


def activations(bits):
    """Fixed point: scales are powers of two."""
    return {"act_quant": Activations, "bit_width": bits, "return_quant_tensor": True}


def network():
    """Four-bit weights and activations. The input is quantized too, and BatchNorm stands before a quantizer."""
    weights = {"weight_quant": Weights, "weight_bit_width": 4, "bias": False}
    return nn.Sequential(
        qnn.QuantIdentity(**activations(8)),
        qnn.QuantConv2d(1, 12, 3, padding=1, **weights),
        nn.BatchNorm2d(12),
        qnn.QuantReLU(**activations(4)),
        nn.MaxPool2d(2),
        qnn.QuantConv2d(12, 16, 3, padding=1, **weights),
        nn.BatchNorm2d(16),
        qnn.QuantReLU(**activations(4)),
        nn.MaxPool2d(2),
        nn.Flatten(),
        qnn.QuantLinear(64, 10, **weights),
    )


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    pixels = np.minimum(digits.images * 16, 255).astype(np.uint8)[:, None]  # (N, 1, 8, 8), bytes
    order = np.random.default_rng(0).permutation(len(pixels))
    test, training = order[: len(order) // 4], order[len(order) // 4 :]

    images = torch.tensor(pixels[training], dtype=torch.float32) / 255  # as torchvision's ToTensor
    labels = torch.tensor(digits.target[training])
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(30):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()

    export_qonnx(model.eval(), args=torch.zeros(1, 1, 8, 8), export_path="network.onnx")
    np.savez("test.npz", pixels=pixels[test], labels=digits.target[test])
    with open("labels.txt", "w") as file:
        file.write("\n".join(str(digit) for digit in range(10)) + "\n")


if __name__ == "__main__":
    main()
