"""What the recipe alone already shows, refused before hours of training: an untrained twin goes through the proofs.

The quantised network of the recipe's widths and bits is built with random weights, exported and analyzed exactly as the
trained one will be, so every operation, scale and bit width that hardware could not carry exactly is named here.
"""

import tempfile
from importlib import import_module
from pathlib import Path

import torch

from boards.errors import SlimgateError
from hls import graph, numerics, scales
from hls.cost import legal_reuse_factors
from hls.layers import describe
from pipeline import models
from pipeline.export import export
from pipeline.quantize import bits_of, calibrate, twin


class PreflightError(SlimgateError):
    """The recipe asks for something that its network does not have."""


def untrained(recipe):
    """(prepared graph, its analysis) of the recipe's quantised network with random weights, before trimming."""
    spec = import_module(f"pipeline.datasets.{recipe.data.name}").SPEC
    height, width, channels = spec.get("shape") or (*recipe.data.size, None)
    channels = channels or (1 if recipe.data.color == "gray" else 3)
    shape, bits = (channels, height, width), bits_of(recipe.quantize)
    widths = models.widths_of(recipe.model.name, recipe.model.widths)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        network = twin(recipe.model.name, widths, bits, shape, spec.get("classes") or 2)
        calibrate(network, torch.randint(0, 256, (16, *shape), dtype=torch.uint8), bits["input"])
        export(network.eval(), shape, Path(scratch) / "untrained.onnx")
        file = graph.load(Path(scratch) / "untrained.onnx")
    scales.refuse_scales(file)
    prepared = graph.prepare(file)
    return prepared, numerics.analyze(prepared)


def check(recipe, board) -> dict:
    """Refuse what cannot become hardware; return {"widest_accumulator", "oracle", "layers"} of the untrained twin.

    ``oracle`` is "int64" where the worst accumulator of *some* weights of this width would leave float32; whether the
    trained weights do is decided after training. Raises NotExact, ModelError, BoardError or PreflightError.
    """
    board.clock_divisors(float(recipe.hls.clock_mhz or board.clock_mhz))
    prepared, analysis = untrained(recipe)
    layers = {item.name: item.spec for item in describe(prepared, analysis) if item.multiplies}
    asked = {} if recipe.hls.reuse_factor == "auto" else dict.fromkeys(layers, ("[hls]", recipe.hls.reuse_factor))
    for name, wanted in recipe.hls.layers.items():
        if name.replace(".", "_") not in layers:
            raise PreflightError(
                f"the network has no layer {name!r}", where=f"[hls.layers.{name}]", fix=f"layers: {', '.join(layers)}"
            )
        if wanted.reuse_factor is not None:
            asked[name.replace(".", "_")] = (f"[hls.layers.{name}]", wanted.reuse_factor)
    latency = {name for name in layers if recipe.hls.strategy == "Latency"}  # takes any reuse factor
    for name, wanted in recipe.hls.layers.items():
        if wanted.strategy is not None:
            (latency.add if wanted.strategy == "Latency" else latency.discard)(name.replace(".", "_"))
    if recipe.trim.method == "none":  # else the widths, and so the legal factors, are known only after trimming
        for name, (where, factor) in asked.items():
            if name in latency:
                continue
            legal = legal_reuse_factors(layers[name].n_in, layers[name].n_out)
            if factor not in legal:
                near = sorted(sorted(legal, key=lambda other, to=factor: abs(other - to))[:4])
                raise PreflightError(
                    f"reuse factor {factor} is not legal for layer {name}",
                    where=where,
                    fix=f"near: {', '.join(map(str, near))}; or leave it to the planner with reuse_factor = \"auto\"",
                )
    worst = max(
        layer.n_in * (2**layer.input_bits - 1) * (2 ** (layer.weight_bits - 1) - 1) for layer in layers.values()
    )
    return {"widest_accumulator": worst, "oracle": "float32" if worst < numerics.FLOAT32_EXACT else "int64",
            "layers": list(layers)}  # fmt: skip
