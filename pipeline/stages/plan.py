"""Stage ``plan``: exactness of the trained network, reuse factors, FIFO depths, estimates."""

import json

from hls import graph, numerics
from hls.convert import illegal_reuse_factors
from hls.folding import DoesNotFit
from hls.plan import make_plan


def run(ctx) -> None:
    """Write ``plan.json``; gates: every reuse factor legal by hls4ml's own rule, the design within the board."""
    model = graph.prepare(graph.load(ctx.inputs["export"] / "model.onnx"))
    analysis = numerics.analyze(model)
    asked = asked_of(ctx.recipe.hls)
    clock = float(asked["clock_mhz"] or ctx.board.clock_mhz)
    ctx.board.clock_divisors(clock)
    plan, short = planned(model, analysis, board=ctx.board, **asked)
    plan |= {"exactness": {"widest_accumulator": analysis.widest_accumulator, "limit": numerics.FLOAT32_EXACT,
                           "oracle": "float32" if analysis.float32_exact else "int64"}}  # fmt: skip
    (ctx.folder / "plan.json").write_text(json.dumps(plan, indent=1) + "\n")
    over = over_budget(plan["resources"])
    ctx.gate("the design fits the board", plan["fits"] and short is None and not over,
             short.what if short else "; ".join(over) or budget(plan["resources"]), fix=short and short.fix)
    illegal = illegal_reuse_factors(plan)
    ctx.gate("reuse factors are legal", not illegal, ", ".join(illegal) or f"{len(plan['layers'])} layers")
    ctx.metric("widest_accumulator", analysis.widest_accumulator, "estimated", limit=numerics.FLOAT32_EXACT,
               oracle=plan["exactness"]["oracle"])  # fmt: skip
    for name, value, unit, interval in figures(plan):
        ctx.metric(name, value, "estimated", unit=unit, interval=interval, clock_mhz=clock,
                   extrapolated=plan["extrapolated"])  # fmt: skip


def planned(*network, **asked) -> tuple[dict, DoesNotFit | None]:
    """(the plan, None), or the plan that overshoots least and what it is short of, with the changes that would help."""
    try:
        return make_plan(*network, **asked), None
    except DoesNotFit as error:
        return make_plan(*network, **asked, over_budget=True), error


def asked_of(hls) -> dict:
    """The keys of a recipe's [hls] as :func:`hls.plan.make_plan` takes them."""
    return {
        "clock_mhz": hls.clock_mhz, "strategy": hls.strategy, "reuse_factor": hls.reuse_factor, "margin": hls.margin,
        "objective": hls.objective, "frames_per_second": hls.frames_per_second,
        "overrides": {name: layer.model_dump(exclude_none=True) for name, layer in hls.layers.items()},
    }  # fmt: skip


def over_budget(resources: dict) -> list[str]:
    """Which resources a plan takes more of than the board has after the margin, in words."""
    return [f"{name.upper()}: {row['planned']:,} planned, {row['limit']:,} allowed of {row['available']:,}"
            for name, row in resources.items() if not row["planned"] <= row["limit"]]  # fmt: skip


def budget(resources: dict) -> str:
    return ", ".join(f"{name.upper()} {row['planned']:,} of {row['limit']:,}" for name, row in resources.items())


def figures(plan: dict):
    """(name, value, unit, 90 % interval) of everything a plan estimates of the whole design."""
    totals, bounds = plan["totals"], plan["totals"]["bounds"]
    for name in ("initiation_interval_cycles", "latency_cycles"):
        yield name, totals[name], "cycles", [bounds[name]["lo"], bounds[name]["hi"]]
    yield "frames_per_second", totals["frames_per_second"], "1/s", None
    for name, row in plan["resources"].items():
        found = row["implemented"]
        yield name, found["value"], None, [found["lo"], found["hi"]]
    yield "multipliers", totals["multipliers"], None, None
    yield "weight_kbit", totals["weight_kbit"], "kbit", None
