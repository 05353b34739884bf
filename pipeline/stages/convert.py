"""Stage ``convert``: the QONNX graph and the plan become a Vitis HLS project with derived, verified types."""

import json

from hls import graph, numerics
from hls.convert import convert


def run(ctx) -> None:
    """Write ``project/ io.json clean.onnx``; what hls4ml made is read back and checked before it counts."""
    model = graph.prepare(graph.load(ctx.inputs["export"] / "model.onnx"))
    analysis = numerics.analyze(model)
    plan = json.loads((ctx.inputs["plan"] / "plan.json").read_text())
    io = convert(model, analysis, plan, part=ctx.board.part, folder=ctx.folder / "project")
    (ctx.folder / "io.json").write_text(json.dumps(io, indent=1) + "\n")
    model.save(str(ctx.folder / "clean.onnx"))
    layers = json.loads((ctx.folder / "project" / "layers.json").read_text())
    ctx.gate("types, weights and reuse factors read back as planned", bool(layers),
             f"{len(layers)} layers of hls4ml checked against the network's ranges")  # fmt: skip
