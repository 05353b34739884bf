"""What a network of given widths is predicted to cost on a board, before anything is quantised or exported.

Per layer the cost model (``hls.cost``) is asked for every legal reuse factor; the network's plan is the smallest
initiation interval whose cheapest choices fit what the board has, less a margin. Depthwise convolutions count as the
dense ones they are mapped to. Resources are what implementation is expected to leave, as in the plan stage;
activations, FIFOs, pooling, joins and forks are not counted, and a layer is folded, never unrolled. These figures rank
networks and set targets, the plan stage has the last word. Evidence: estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from boards.errors import SlimgateError
from hls import cost
from hls.cost import legal_reuse_factors
from pipeline.trimming.groups import NORM_MODULES, Graph, Layer

#: Resources a plan is held to; LUT-built multipliers leave DSP and FF idle at these bit widths.
HELD = ("lut", "bram18")


class HardwareError(SlimgateError):
    """A layer that the cost model has no figures for, or a network that no plan of the board carries."""


@dataclass(frozen=True)
class Choice:
    """One reuse factor of one layer: cycles per frame, and resources."""

    cycles: int
    lut: float
    bram18: float


class Hardware:
    """A board and bit widths; asks the cost model and remembers what it said.

    ``bits``: {"weights", "activations", "input", "layers": {name: {"weights", "activations"}}} as in
    ``pipeline.quantize.bits_of``.
    """

    def __init__(self, board, bits: dict, margin: float = 0.2):
        self.board, self.bits = board, bits
        self.target = cost.Target(family=cost.family_of(board.part), clock_ns=1e3 / float(board.clock_mhz))
        have = {"lut": board.resources["lut"], "bram18": 2 * board.resources["bram36"]}
        self.limits = {name: math.floor(have[name] * (1 - margin) - cost.PLATFORM[name][0]) for name in HELD}
        self._known: dict[tuple, list[Choice]] = {}

    def spec(self, layer: Layer, inputs: int, outputs: int) -> cost.LayerSpec:
        """A convolution or linear layer of so many channels, as the cost model wants it."""
        module = layer.module
        kernel = tuple(module.weight.shape[2:])
        if len(layer.shape_in) == 2:  # one dimension is carried as a picture of height 1
            kernel = (1, *kernel)
        own = self.bits["layers"].get(layer.path, {})
        weights = own.get("weights") or self.bits["weights"]
        values = self.bits["activations"]
        pixels_in, pixels_out = ((1, *s[1:])[-2:] if len(s) > 1 else () for s in (layer.shape_in, layer.shape_out))
        fan_in = math.prod(kernel) * inputs
        return cost.LayerSpec(
            name=layer.path, kind="conv" if kernel else "dense",
            in_shape=(*pixels_in, inputs), out_shape=(*pixels_out, outputs), kernel=kernel,
            stride=tuple(getattr(module, "stride", ())), n_in=fan_in, n_out=outputs, weights=fan_in * outputs,
            weight_bits=weights, input_bits=values, output_bits=own.get("activations") or values,
            accumulator_bits=weights + values + math.ceil(math.log2(fan_in + 1)),
        )  # fmt: skip

    def choices(self, layer: Layer, inputs: int, outputs: int) -> list[Choice]:
        """Every legal reuse factor, fastest first."""
        key = layer.path, inputs, outputs
        if key not in self._known:
            self._known[key] = self._choices(self.spec(layer, inputs, outputs))
        return self._known[key]

    def _choices(self, spec: cost.LayerSpec) -> list[Choice]:
        coefficients, found = cost.load_coefficients(), []
        for factor in legal_reuse_factors(spec.n_in, spec.n_out):
            folded = replace(spec, reuse_factor=factor)
            left = cost.remaining(
                folded, self.target, cost.raw_layer(folded, self.target, coefficients, ()), coefficients
            )
            cycles = cost.layer_cycles(folded, self.target, coefficients)["latency_max"]
            found.append(Choice(round(cycles), *(left[name] for name in HELD)))
        return sorted(found, key=lambda choice: (choice.cycles, choice.lut, choice.bram18))

    def network(self, graph: Graph, size: dict[str, list[int]]) -> Plan:
        """Every layer's choices at the sizes {layer: [inputs, outputs]}."""
        layers = {}
        for path, layer in graph.layers.items():
            if isinstance(layer.module, NORM_MODULES):
                continue  # folded into its convolution
            inputs, outputs = size[path]
            layers[path] = self.choices(layer, inputs, outputs)
        return Plan(layers, self.limits)

    def carries(self, graph: Graph, size: dict[str, list[int]]) -> bool:
        """Whether the board is expected to carry the whole network at some speed."""
        plan = self.network(graph, size)
        taken = plan.taken(plan.slowest)
        return all(taken[name] <= FIT_SHARE * limit for name, limit in self.limits.items())

    def measure(self, graph: Graph, what: str) -> Callable[[dict[str, list[int]]], float]:
        """How much of ``what`` a network of the graph's layers takes, as a function of its sizes {layer: [in, out]}.

        "cycles": the interval of the fastest plan that fits the board. "lut" and "bram18": of the cheapest plan that is
        as fast as the untrimmed network's. HardwareError where the untrimmed network does not fit and has no speed.
        """
        whole = self.network(graph, {path: [len(layer.inputs), len(layer.outputs)] for path, layer in
                                     graph.layers.items()})  # fmt: skip
        interval = whole.interval()
        if what == "cycles":
            if not whole.fits():
                raise HardwareError(
                    f"the untrimmed network does not fit {self.board.name} at any speed, so there are no cycles to "
                    "compare with",
                    where="trim.of",
                    fix='ask for trim.of = "fit" first, or for "macs"',
                )
            return lambda size: self.network(graph, size).interval()
        return lambda size: self.network(graph, size).taken(interval)[what]

    def useful(self, graph: Graph, size: dict[str, list[int]]) -> dict[str, list[int]]:
        """{group: unit counts to trim to, ascending}: those after which one more unit makes a step in the hardware.

        Every layer that makes the group's channels is swept over all its widths; of coupled layers a width counts when
        it is a step of one of them. Cost is looked at where each layer is as fast as the slowest one of the network's
        plan: that decides which reuse factors are of use. See ``steps``.
        """
        interval = self.network(graph, size).interval()
        found = {}
        for name, group in graph.groups.items():
            widths = {group.size}
            for path, unit in group.producers.items():
                layer, prices = graph.layers[path], []
                for units in range(1, group.size + 1):
                    outputs = max(1, round(units * len(unit) / group.size))
                    inputs = outputs if layer.depthwise else size[path][0]
                    prices.append(_cheapest(self.choices(layer, inputs, outputs), interval, self.limits))
                widths |= {units for units in steps(prices) if units <= group.size}
            found[name] = sorted(widths)
        return found


#: Share of what the board has that "fit" gives to layers with weights; activations, FIFOs, joins, forks and pooling
#: need the rest.
FIT_SHARE = 0.75
#: A step in LUT is an increase of so many times the usual one.
STEP = 1.5


def steps(prices: list[tuple[float, float]]) -> list[int]:
    """Widths at which a layer should stop, from (lut, bram18) at widths 1, 2, ...: the next width takes another memory
    or a jump of LUTs (more multipliers, a worse legal reuse factor), and no wider layer is as cheap. The last always.
    """
    lut, bram = np.array(prices).T
    usual = np.median(np.diff(lut)) if len(lut) > 1 else 0.0
    found = []
    for width in range(1, len(prices)):
        now, later = width - 1, slice(width, None)
        dominated = bool(((lut[later] <= lut[now]) & (bram[later] <= bram[now])).any())
        jump = bram[width] > bram[now] or lut[width] - lut[now] > STEP * max(usual, 0)
        if jump and not dominated:
            found.append(width)
    return [*found, len(prices)]


def _cheapest(choices: list[Choice], interval: int, limits: dict[str, int]) -> tuple[float, float]:
    """(lut, bram18) of the choice that takes the least of the board within the interval (its fastest if none is)."""
    within = [choice for choice in choices if choice.cycles <= interval] or choices[:1]
    best = min(within, key=lambda c: (c.lut / limits["lut"] + c.bram18 / max(limits["bram18"], 1), c.cycles))
    return best.lut, best.bram18


@dataclass(frozen=True)
class Plan:
    """A network's layers with their choices, and what the board has for them."""

    layers: dict[str, list[Choice]]
    limits: dict[str, int]

    def taken(self, interval: int) -> dict[str, float] | None:
        """{"lut", "bram18"} of the cheapest choices within an interval; None where a layer cannot keep it."""
        total = dict.fromkeys(HELD, 0.0)
        for choices in self.layers.values():
            if choices[0].cycles > interval:
                return None
            for name, value in zip(HELD, _cheapest(choices, interval, self.limits), strict=True):
                total[name] += value
        return total

    @property
    def slowest(self) -> int:
        """The interval beyond which waiting makes nothing cheaper."""
        return max(choices[-1].cycles for choices in self.layers.values())

    def fits(self, interval: int | None = None) -> bool:
        taken = self.taken(self.slowest if interval is None else interval)
        return taken is not None and all(taken[name] <= self.limits[name] for name in HELD)

    def interval(self) -> int:
        """The smallest initiation interval, in cycles, whose cheapest choices fit; ``slowest`` where none does."""
        candidates = sorted({choice.cycles for choices in self.layers.values() for choice in choices})
        low, high = 0, len(candidates) - 1
        while low < high:  # a longer interval allows more choices, so it never costs more
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(candidates[middle]) else (middle + 1, high)
        return candidates[low]
