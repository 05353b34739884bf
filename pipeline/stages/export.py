"""Stage ``export``: the QONNX file, the golden vectors, and the proof that the file computes them."""

import json

import numpy as np
import torch

from hls.graph import load as load_graph
from pipeline import golden
from pipeline.diversity import diversity
from pipeline.execution import qonnx_execute
from pipeline.export import export
from pipeline.quantize import load, observe
from pipeline.stages.network import read_data, tell_share
from pipeline.train import read_state


def run(ctx) -> None:
    """Write ``model.onnx golden.npz``; gate on QONNX = Brevitas, code by code, and on diverse codes."""
    data = read_data(ctx.inputs["data"])
    quant = json.loads((ctx.inputs["quantize"] / "quant.json").read_text(encoding="utf-8"))
    widths = json.loads((ctx.inputs["trim"] / "widths.json").read_text(encoding="utf-8"))
    state, bits = read_state(ctx.inputs["quantize"] / "state.pt"), quant["bits"]
    name, shape = ctx.recipe.model.name, data["input_shape"]
    quantized = load(name, widths, bits, shape, data["classes"], state)
    export(quantized, shape, ctx.folder / "model.onnx")

    # Above 2**24 product-scale units float32 rounds: everything is then evaluated in float64, which is exact to 2**53.
    wide = quant["oracle"] == "float64"
    pixels, labels = data["test"][0], data["test"][1].numpy()
    if wide:
        quantized = quantized.double()
    seen = observe(quantized, pixels, bits["input"], dtype=torch.float64 if wide else torch.float32)
    codes = golden.pixels_to_codes(pixels.numpy(), bits["input"])
    golden.write(
        ctx.folder / "golden.npz",
        codes.transpose(0, 2, 3, 1),
        seen.outputs,
        labels,
        -bits["input"],
        seen.output_scale_log2,
    )
    tell_share(ctx, "accuracy_test", int((seen.outputs.argmax(axis=1) == labels).sum()), len(labels))

    chosen = golden.compared(len(codes), ctx.recipe.export.samples)
    dtype = np.float64 if wide else np.float32
    executed = qonnx_execute(
        load_graph(ctx.folder / "model.onnx"),
        codes[chosen],
        -bits["input"],
        seen.output_scale_log2,
        dtype=dtype,
        progress=ctx.progress,
    )
    expected = seen.outputs[chosen]
    same_shape = executed.shape == expected.shape
    mismatches = int((executed != expected).sum()) if same_shape else expected.size
    ctx.metric(
        "qonnx_mismatches", mismatches, "trained", unit="codes",
        compared=int(expected.size), samples=len(chosen), evaluated_in=np.dtype(dtype).name,
    )  # fmt: skip
    ctx.gate(
        "QONNX equals Brevitas",
        mismatches == 0 and expected.size > 0,
        f"{mismatches} of {expected.size} output codes differ on {len(chosen)} test pictures",
        mismatches=mismatches,
        compared=int(expected.size),
    )
    passed, detail, numbers = diversity(seen.outputs, seen.quantizers, seen.accumulators)
    ctx.gate(
        "codes are diverse",
        passed,
        detail,
        fix="train longer, trim less or give more bits: outputs that hardly vary prove nothing about the hardware",
        **numbers,
    )
