"""Every file of pipeline/models trims, quantises, exports and passes `slimgate verify` with no code differing.

The instance is tiny (4 to 8 filters a layer, the smallest picture the network takes): the same operations in the same
order.
"""

import numpy as np
import pytest
import torch

from boards.board import load as load_board
from hls.verify import verify
from pipeline import export, models, quantize
from pipeline.trimming import schedule
from tests.torchnets import BITS, normalize, pictures

CLASSES = 4
# Compiling its 58 layers takes minutes, and they are resnet20's: only up to QONNX, in test_models.py.
DEEP = ("resnet56",)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.names() if name not in DEEP])
def test_trims_quantises_exports_and_verifies(name, tmp_path):
    step = __import__(f"pipeline.models.{name}", fromlist=["SIZE_STEP"]).SIZE_STEP
    size = max(step, 8)
    shape = (2, size, size)
    widths = {layer: max(8, width // 64) for layer, width in models.widths_of(name).items()}
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pixels, _ = pictures(64, shape=shape, classes=CLASSES)
    pixels = (pixels * torch.rand(64, 2, 1, 1)).to(torch.uint8)  # of different brightness
    plain = models.build(name, widths, None, shape, CLASSES)
    normalize(plain, pixels / 256)

    def build(kept):
        return models.build(name, kept, None, shape, CLASSES)

    result = schedule.trim(
        plain, build=build, input_shape=shape, batches=lambda: [pixels / 256],
        finetune=lambda model, step: normalize(model, pixels / 256), ratio=0.4, steps=1, min_filters=4,
    )  # fmt: skip
    smaller = build(result.widths)
    smaller.load_state_dict(result.state)
    assert sum(result.widths.values()) < sum(widths.values()) and result.achieved >= 0.4

    twin = quantize.twin(name, result.widths, BITS, shape, CLASSES)
    quantize.load_folded(twin, quantize.fold_batchnorm(smaller))
    quantize.calibrate(twin, pixels, BITS["input"])
    export.export(twin.eval(), shape, tmp_path / "model.onnx")
    np.savez(tmp_path / "inputs.npz", inputs=pixels.numpy())
    seen = quantize.observe(twin, pixels, BITS["input"])
    found = verify(tmp_path / "model.onnx", tmp_path / "inputs.npz", load_board("pynq-z2"))
    assert found["mismatches"] == 0 and found["compared"] >= len(pixels) * CLASSES
    assert np.array_equal(found["outputs"], seen.outputs)  # the twin's own integers, not only the file's
    assert len(np.unique(found["outputs"], axis=0)) > len(pixels) // 8
