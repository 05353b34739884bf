"""Which reuse factor each layer gets, how deep the FIFOs are, and what that is estimated to cost.

First, honest version: reuse factors are legal by hls4ml's own rule, balanced so that the slowest layer is as fast as
the multipliers allowed on the board permit. Every figure is an estimate and tagged so; no synthesis stands behind it.
"""

import math
from dataclasses import dataclass

from boards.errors import SlimgateError
from hls.graph import data_tensors, mac_nodes
from hls.numerics import Analysis, attributes

#: Share of the board's LUTs that the network's multipliers may take; adders, line buffers, FIFOs and the platform need
#: the rest.
MULTIPLIER_LUT_SHARE = 0.35
#: FIFO depth, in tokens, of a stream on a chain. A chain of processes cannot deadlock at any depth; 32 fits one SRL.
CHAIN_DEPTH = 32


class PlanError(SlimgateError):
    """No legal plan exists under the given limits."""


@dataclass(frozen=True)
class Layer:
    """A multiply-accumulate layer as hardware sees it: ``n_in`` x ``n_out`` weights, used ``pixels`` times a frame."""

    name: str
    operation: str
    n_in: int
    n_out: int
    pixels: int
    pixels_in: int
    weight_bits: int
    input_bits: int
    accumulator_bits: int

    @property
    def weights(self) -> int:
        return self.n_in * self.n_out

    @property
    def macs(self) -> int:
        return self.weights * self.pixels

    def multipliers(self, reuse_factor: int) -> int:
        return math.ceil(self.weights / reuse_factor)

    def cycles(self, reuse_factor: int) -> int:
        """Cycles per frame: ``reuse_factor`` on each output pixel, at least one on each input pixel."""
        return max(self.pixels * reuse_factor, self.pixels_in)


def legal_reuse_factors(n_in: int, n_out: int) -> list[int]:
    """Every reuse factor hls4ml 1.3.0 accepts without changing it (``FPGABackend._validate_reuse_factor``)."""

    def legal(factor: int) -> bool:
        limit = math.ceil(n_in * n_out / min(n_in, factor))
        return (limit % n_out == 0 or factor >= n_in) and (factor % n_in == 0 or factor < n_in)

    total = n_in * n_out
    divisors = {d for i in range(1, math.isqrt(total) + 1) if total % i == 0 for d in (i, total // i)}
    return sorted(d for d in divisors if legal(d))


def layers_of(model, analysis: Analysis) -> list[Layer]:
    """The MAC layers of a prepared graph."""
    found = []
    for node in mac_nodes(model):
        codes, _ = analysis.constants[node.input[1]]
        shape_in, shape_out = model.get_tensor_shape(node.input[0]), model.get_tensor_shape(node.output[0])
        if node.op_type == "Conv":
            n_out, n_in = codes.shape[0], codes.size // codes.shape[0]
            pads = attributes(node).get("pads", [0, 0, 0, 0])
            pixels_in = (shape_in[1] + pads[0] + pads[2]) * (shape_in[2] + pads[1] + pads[3])
        else:
            (n_in, n_out), pixels_in = codes.shape, 1
        weight = max(int(codes.max()), -int(codes.min()) - 1, 0).bit_length() + 1
        found.append(
            Layer(
                node.name,
                node.op_type,
                n_in,
                n_out,
                math.prod(shape_out[1:-1]),
                pixels_in,
                weight,
                analysis.tensors[node.input[0]].bits,
                analysis.accumulators[node.name].bits,
            )
        )
    return found


def lut_per_multiplier(layer: Layer) -> float:
    """LUTs of one small multiplier and its share of the adder tree, before implementation. A textbook figure
    (w*a partial products, two per LUT, plus the adder), not a fit."""
    return layer.weight_bits * layer.input_bits / 2 + layer.accumulator_bits


def parallel_tensors(model) -> set[str]:
    """Tensors on a path between a fork and the Add or Concat where its branches meet again."""
    data = data_tensors(model)
    consumers: dict[str, list] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in data:
                consumers.setdefault(name, []).append(node)

    def reach(names: set[str]) -> set[str]:
        seen, todo = set(), list(names)
        while todo:
            for node in consumers.get(todo.pop(), []):
                if node.output[0] not in seen:
                    seen.add(node.output[0])
                    todo.append(node.output[0])
        return seen

    found: set[str] = set()
    for fork, users in consumers.items():
        if len(users) < 2:
            continue
        branches = [{u.output[0]} | reach({u.output[0]}) for u in users]
        joined = set.intersection(*branches)
        if not joined:
            continue
        found |= {fork} | (set.union(*branches) - joined)
        # a branch that is the fork's own tensor meets the others inside the join node: the fork is on the list already
    return found


def make_plan(
    model,
    analysis: Analysis,
    *,
    lut: int,
    clock_mhz: float,
    strategy: str = "Resource",
    reuse_factor: int | str = "auto",
    overrides: dict[str, int] | None = None,
) -> dict:
    """Choose reuse factors and FIFO depths for a prepared graph; return the plan as plain data.

    ``reuse_factor``: "auto", or one number for every layer (must be legal for each). ``overrides``: layer -> number.
    ``lut``: LUTs of the board. Raises :class:`PlanError` for an illegal or impossible request.
    """
    layers = layers_of(model, analysis)
    legal = {layer.name: legal_reuse_factors(layer.n_in, layer.n_out) for layer in layers}
    overrides = {k.replace(".", "_"): v for k, v in (overrides or {}).items()}
    unknown = sorted(set(overrides) - set(legal))
    if unknown:
        raise PlanError(
            f"no layer is called {unknown[0]}", where="[hls.layers]", fix=f"layers of this network: {', '.join(legal)}"
        )
    fixed = dict.fromkeys(legal, reuse_factor) if reuse_factor != "auto" else {}
    fixed |= overrides
    for name, factor in fixed.items():
        if factor not in legal[name]:
            near = sorted(legal[name], key=lambda f: abs(f - factor))[:4]
            raise PlanError(
                f"reuse factor {factor} is not legal for layer {name}",
                where="[hls]",
                fix=f"legal and near: {', '.join(map(str, sorted(near)))}",
            )
    chosen = _balance(layers, legal, fixed, lut * MULTIPLIER_LUT_SHARE)
    rows, parallel = [], parallel_tensors(model)
    for layer in layers:
        factor = chosen[layer.name]
        rows.append(
            {
                "name": layer.name,
                "operation": layer.operation,
                "n_in": layer.n_in,
                "n_out": layer.n_out,
                "pixels": layer.pixels,
                "macs": layer.macs,
                "weights": layer.weights,
                "weight_bits": layer.weight_bits,
                "input_bits": layer.input_bits,
                "accumulator_bits": layer.accumulator_bits,
                "strategy": strategy,
                "reuse_factor": factor,
                "multipliers": layer.multipliers(factor),
                "cycles": layer.cycles(factor),
                "lut_multipliers": round(layer.multipliers(factor) * lut_per_multiplier(layer)),
            }
        )
    slowest = max(rows, key=lambda r: r["cycles"])
    interval = slowest["cycles"]
    return {
        "schema": 1,
        "evidence": "estimated",
        "clock_mhz": clock_mhz,
        "strategy": strategy,
        "layers": rows,
        "fifo": {
            "rule": f"{CHAIN_DEPTH} tokens on chains; between a fork and its join the whole map, which cannot deadlock",
            "chain_depth": CHAIN_DEPTH,
            "whole_map": sorted(parallel),
        },
        "totals": {
            "macs": sum(r["macs"] for r in rows),
            "weights": sum(r["weights"] for r in rows),
            "weight_kbit": round(sum(r["weights"] * r["weight_bits"] for r in rows) / 1000, 3),
            "multipliers": sum(r["multipliers"] for r in rows),
            "lut_multipliers": sum(r["lut_multipliers"] for r in rows),
            "initiation_interval_cycles": interval,
            "bottleneck": slowest["name"],
            "frames_per_second": round(clock_mhz * 1e6 / interval, 1),
        },
        "limits": {"lut": lut, "lut_multipliers": round(lut * MULTIPLIER_LUT_SHARE)},
    }


def _balance(layers, legal, fixed, lut_limit: float) -> dict[str, int]:
    """The smallest initiation interval whose multipliers fit: for each candidate interval every layer takes the largest
    legal reuse factor that keeps it within; candidates are the cycle counts layers can have."""

    def choose(interval: int) -> dict[str, int] | None:
        chosen = {}
        for layer in layers:
            options = [fixed[layer.name]] if layer.name in fixed else legal[layer.name]
            fitting = [f for f in options if layer.cycles(f) <= interval]
            if not fitting:
                return None
            chosen[layer.name] = max(fitting)
        return chosen

    def cost(chosen) -> float:
        return sum(x.multipliers(chosen[x.name]) * lut_per_multiplier(x) for x in layers)

    candidates = sorted({x.cycles(f) for x in layers for f in ([fixed[x.name]] if x.name in fixed else legal[x.name])})
    plans = (p for c in candidates if (p := choose(c)) is not None)
    least = None
    for plan in plans:
        if cost(plan) <= lut_limit:
            return plan
        least = plan if least is None or cost(plan) < cost(least) else least
    raise PlanError(
        f"the multipliers need an estimated {cost(least):.0f} LUTs "
        f"{'with the reuse factors asked for' if fixed else 'even at the largest legal reuse factors'}; "
        f"{lut_limit:.0f} are set aside for them on this board",
        where=max(layers, key=lambda x: x.multipliers(least[x.name]) * lut_per_multiplier(x)).name,
        fix="trim more, use fewer bits, a larger board, or larger reuse factors",
    )
