"""Stage ``plan``: exactness of the trained network, reuse factors, FIFO depths, estimates."""

import json

from hls import graph, numerics
from hls.convert import illegal_reuse_factors
from hls.plan import make_plan


def run(ctx) -> None:
    """Write ``plan.json``; gates: every type exact, every reuse factor legal by hls4ml's own rule."""
    model = graph.prepare(graph.load(ctx.inputs["export"] / "model.onnx"))
    analysis = numerics.analyze(model)
    hls = ctx.recipe.hls
    clock = float(hls.clock_mhz or ctx.board.clock_mhz)
    ctx.board.clock_divisors(clock)
    plan = make_plan(
        model, analysis, lut=ctx.board.resources["lut"], clock_mhz=clock, strategy=hls.strategy,
        reuse_factor=hls.reuse_factor,
        overrides={name: layer.reuse_factor for name, layer in hls.layers.items() if layer.reuse_factor is not None},
    )  # fmt: skip
    illegal = illegal_reuse_factors(plan)
    ctx.gate("reuse factors are legal", not illegal, ", ".join(illegal) or f"{len(plan['layers'])} layers")
    plan |= {"board": ctx.board.name, "part": ctx.board.part,
             "exactness": {"widest_accumulator": analysis.widest_accumulator, "limit": numerics.FLOAT32_EXACT,
                           "oracle": "float32" if analysis.float32_exact else "int64"}}  # fmt: skip
    (ctx.folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    totals = plan["totals"]
    ctx.metric("widest_accumulator", analysis.widest_accumulator, "estimated", limit=numerics.FLOAT32_EXACT,
               oracle=plan["exactness"]["oracle"])  # fmt: skip
    ctx.metric("initiation_interval_cycles", totals["initiation_interval_cycles"], "estimated", unit="cycles")
    ctx.metric("frames_per_second", totals["frames_per_second"], "estimated", unit="1/s", clock_mhz=clock)
    ctx.metric("multipliers", totals["multipliers"], "estimated")
    ctx.metric("lut_multipliers", totals["lut_multipliers"], "estimated", limit=plan["limits"]["lut_multipliers"])
    ctx.metric("weight_kbit", totals["weight_kbit"], "estimated", unit="kbit")
