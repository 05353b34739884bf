"""What the recipe alone already shows, refused before hours of training: an untrained twin goes through the proofs.

The quantised network of the recipe's widths and bits is built with random weights, exported and analyzed exactly as the
trained one will be, so every operation, scale and bit width that hardware could not carry exactly is named here.
"""

import tempfile
from importlib import import_module
from pathlib import Path

import torch

from boards.errors import SlimgateError
from hls import graph, numerics
from hls.plan import layers_of, legal_reuse_factors
from pipeline import models
from pipeline.export import export
from pipeline.quantize import bits_of, calibrate, twin


class PreflightError(SlimgateError):
    """The recipe asks for something that its network does not have."""


def check(recipe, board) -> dict:
    """Refuse what cannot become hardware; return {"widest_accumulator", "oracle", "layers"} of the untrained twin.

    ``oracle`` is "int64" where the worst accumulator of *some* weights of this width would leave float32; whether the
    trained weights do is decided after training. Raises NotExact, ModelError, BoardError or PreflightError.
    """
    board.clock_divisors(float(recipe.hls.clock_mhz or board.clock_mhz))
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
        prepared = graph.prepare(graph.load(Path(scratch) / "untrained.onnx"))
    analysis = numerics.analyze(prepared)
    layers = {layer.name: layer for layer in layers_of(prepared, analysis)}
    for name, wanted in recipe.hls.layers.items():
        layer = layers.get(name.replace(".", "_"))
        if layer is None:
            raise PreflightError(f"the network has no layer {name!r}", where=f"[hls.layers.{name}]",
                                 fix=f"layers: {', '.join(layers)}")  # fmt: skip
        legal = legal_reuse_factors(layer.n_in, layer.n_out)
        if recipe.trim.method == "none" and wanted.reuse_factor is not None and wanted.reuse_factor not in legal:
            near = sorted(sorted(legal, key=lambda factor, to=wanted.reuse_factor: abs(factor - to))[:4])
            raise PreflightError(f"reuse factor {wanted.reuse_factor} is not legal for layer {name}",
                                 where=f"[hls.layers.{name}]", fix=f"near: {', '.join(map(str, near))}")  # fmt: skip
    worst = max(
        layer.n_in * (2**layer.input_bits - 1) * (2 ** (layer.weight_bits - 1) - 1) for layer in layers.values()
    )
    return {"widest_accumulator": worst, "oracle": "float32" if worst < numerics.FLOAT32_EXACT else "int64",
            "layers": list(layers)}  # fmt: skip
