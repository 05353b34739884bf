"""How much a filter matters: one function ``(group, statistics) -> scores`` per criterion, lowest is trimmed first.

Relevance (Ressi, Pistellato, Albarelli, Bergamasco, AIxIA 2021, doi 10.1007/978-3-031-08421-8_20): "the output of
its activation function with respect to a representative dataset". The formula is our reading of the public account,
the full text not being at hand: for filter k and its activation phi(z_k),

    R_k = 1/|D| * sum over pictures x in D of stat over positions of phi(z_k(x))

with stat one of ``STATISTICS``, then divided by the mean of |R| over the layer, so that layers of different scale can
be ranked together. Sums run over the data set in one pass, in float64; memory does not grow with the data.

A group of coupled filters has several layers that make them and may be looked at in several tensors. Unless a
criterion says otherwise, each layer or tensor is normalized by itself and the mean over them is the score.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from boards.errors import SlimgateError
from pipeline.trimming.groups import Graph, Group

# (pictures, channels, positions) activations -> (pictures, channels) values.
STATISTICS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda activations: activations.mean(2),
    "mean_abs": lambda activations: activations.abs().mean(2),
    "max": lambda activations: activations.amax(2),
    "l2": lambda activations: torch.linalg.vector_norm(activations, dim=2),
    "fraction": lambda activations: (activations > 0).to(torch.float32).mean(2),
}
# What else criteria need of the same pass: where it is taken, and how.
ZEROS, RANK, GATE, NORM_GATE = "zeros", "rank", "gate", "norm_gate"
INPUTS_COVARIANCE, PEAKS_COVARIANCE = "covariance of inputs", "covariance of peaks"
# Share of the variance that the components kept by PCA hold (Garg et al. 2019).
PCA_SHARE = 0.999


class CriterionError(SlimgateError):
    """Filters cannot be scored: unknown criterion, no data, or activations that are not numbers."""


@dataclass(frozen=True)
class Statistics:
    """What criteria look at: the traced network (weights: ``graph.layers[path].module``), and per tensor and statistic
    the mean over pictures, (channels,) float64. ``covariances`` {statistic: {tensor: (channels, channels) float64}}.
    ``seed`` is that of the random criterion."""

    graph: Graph
    pictures: int
    activations: dict[str, dict[str, np.ndarray]]
    covariances: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    seed: int = 0


def collect(graph: Graph, batches: Iterable, names: Sequence[str], seed: int = 0) -> Statistics:
    """One pass in evaluation mode over ``batches``, at the tensors the groups are looked at.

    A batch is (N, C, H, W) values or a pair of those and labels (N,); only gradients need the labels. Without ``names``
    no pass is made and no data are needed. CriterionError: no pictures, no labels where they are needed, unknown
    statistic, an activation that is infinite or not a number (names the tensor).
    """
    known = (*STATISTICS, ZEROS, RANK, GATE, NORM_GATE, INPUTS_COVARIANCE, PEAKS_COVARIANCE)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CriterionError(f"no statistic {unknown[0]!r}", fix=f"one of {', '.join(STATISTICS)}")
    if not names:
        return Statistics(graph, 0, {}, {}, seed)
    watch = _Watch(graph, names)
    forward, hooks = watch.attached()
    modes = {module: module.training for module in graph.model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in graph.model.parameters()}
    pictures = 0
    try:
        graph.model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        for batch in batches:
            values, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
            watch.look(forward, values, labels)
            pictures += len(values)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
        for parameter, was in wanted.items():
            parameter.requires_grad_(was)
    if not pictures:
        raise CriterionError("no pictures to measure activations on", fix="the training set is empty")
    found = {node: {name: (total / pictures).numpy() for name, total in sums.items()} for node, sums in
             watch.sums.items()}  # fmt: skip
    covariances = {name: {node: moments.covariance() for node, moments in of.items()} for name, of in
                   watch.moments.items()}  # fmt: skip
    checked = {node: list(values.values()) for node, values in found.items()}
    for of in covariances.values():
        for node, covariance in of.items():
            checked.setdefault(node, []).append(covariance)
    for node, values in checked.items():
        if not all(np.isfinite(value).all() for value in values):
            raise CriterionError(
                "activations that are infinite or not a number",
                where=node,
                fix="train with a lower learning rate",
            )
    return Statistics(graph, pictures, found, covariances, seed)


class _Moments:
    """Sums of samples (n, channels) and of their products, about the first batch's mean, in float64."""

    def __init__(self, samples: torch.Tensor):
        self.about = samples.double().mean(0)
        self.number, self.sum, self.products = 0, 0.0, 0.0

    def add(self, samples: torch.Tensor) -> None:
        samples = samples.double() - self.about
        self.number += len(samples)
        self.sum, self.products = self.sum + samples.sum(0), self.products + samples.T @ samples

    def covariance(self) -> np.ndarray:
        mean = self.sum / self.number
        return (self.products / self.number - torch.outer(mean, mean)).cpu().numpy()


class _Steps(fx.Interpreter):
    """Runs the trace node by node and shows each tensor to a watch."""

    def __init__(self, watch: _Watch):
        super().__init__(watch.graph.traced)
        self.watch = watch

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        return self.watch.see(node.name, result) if node.name in self.watch.wanted else result


class _Watch:
    """Adds up, at each watched tensor, what was asked for there."""

    def __init__(self, graph: Graph, names: Sequence[str]):
        self.graph, groups = graph, graph.groups.values()
        places = {
            INPUTS_COVARIANCE: {node for group in groups for node in group.inputs},
            NORM_GATE: {node for group in groups for node, _ in group.norms.values()},
        }
        tensors = {node for group in groups for node in group.tensors}
        self.wanted: dict[str, list[str]] = {}
        for name in names:
            for node in places.get(name, tensors):
                self.wanted.setdefault(node, []).append(name)
        self.sums: dict[str, dict[str, torch.Tensor]] = {}
        self.moments: dict[str, dict[str, _Moments]] = {}
        self.gradients = GATE in names or NORM_GATE in names
        self.gates: dict[str, tuple[torch.Tensor, int]] = {}

    def attached(self) -> tuple[Callable, list]:
        """(a forward pass that shows the watched tensors, hooks to take off again).

        The network itself with hooks where every watched tensor is the output of a module that is called once; that
        costs what inference costs. Else the trace, node by node.
        """
        calls: dict[str, list[str]] = {}
        for node in self.graph.traced.graph.nodes:
            calls.setdefault(node.target if node.op == "call_module" else "", []).append(node.name)
        paths = {nodes[0]: path for path, nodes in calls.items() if path and len(nodes) == 1}
        if not self.wanted.keys() <= paths.keys():
            return _Steps(self).run, []
        return self.graph.model, [
            self.graph.model.get_submodule(paths[name]).register_forward_hook(
                lambda module, given, made, name=name: self.see(name, made)
            )
            for name in self.wanted
        ]

    def look(self, forward: Callable, values: torch.Tensor, labels: torch.Tensor | None) -> None:
        if not self.gradients:
            with torch.inference_mode():
                forward(values)
            return
        if labels is None:
            raise CriterionError("this criterion needs the labels of the pictures", fix="give (values, labels) batches")
        self.gates = {}
        with torch.enable_grad():
            # Summed, so that the gradient of each picture is that of its own loss.
            loss = F.cross_entropy(forward(values), labels, reduction="sum")
            found = torch.autograd.grad(loss, [gate for gate, _ in self.gates.values()])
        for (node, (_, positions)), gradient in zip(self.gates.items(), found, strict=True):
            for name in self.wanted[node]:
                if name == GATE:
                    self._sum(node, name, (gradient / positions).abs())
                elif name == NORM_GATE:
                    self._sum(node, name, gradient.double() ** 2)

    def see(self, node: str, result: torch.Tensor) -> torch.Tensor:
        names = self.wanted[node]
        flat = result.detach().reshape(*result.shape[:2], -1)
        for name in names:
            if name in STATISTICS:
                self._sum(node, name, STATISTICS[name](flat))
            elif name == ZEROS:
                self._sum(node, name, (flat == 0).to(torch.float32).mean(2))
            elif name == RANK:
                self._sum(node, name, _ranks(node, result.detach()))
            elif name in (INPUTS_COVARIANCE, PEAKS_COVARIANCE):
                samples = flat.amax(2) if name == PEAKS_COVARIANCE else flat.transpose(1, 2).flatten(0, 1)
                of = self.moments.setdefault(name, {})
                of.setdefault(node, _Moments(samples)).add(samples)
        if GATE in names or NORM_GATE in names:
            # A factor of one on each channel: its gradient is the sum over positions of a * dL/da.
            gate = torch.ones(flat.shape[:2], dtype=flat.dtype, device=flat.device, requires_grad=True)
            self.gates[node] = gate, flat.shape[2]
            result = result * gate.reshape(*gate.shape, *[1] * (result.ndim - 2))
        return result

    def _sum(self, node: str, name: str, values: torch.Tensor) -> None:
        sums = self.sums.setdefault(node, {})
        sums[name] = sums.get(name, 0.0) + values.sum(0, dtype=torch.float64).cpu()


def _ranks(node: str, maps: torch.Tensor) -> torch.Tensor:
    if maps.ndim != 4:
        raise CriterionError("the rank of a feature map needs two dimensions", where=node,
                             fix="choose another trim.method")  # fmt: skip
    return torch.linalg.matrix_rank(maps).to(torch.float32)


def per_unit(values: np.ndarray, unit: np.ndarray, size: int) -> np.ndarray:
    """(size,) mean of the values of each unit's channels; NaN for units without a channel here."""
    here = unit >= 0
    total = np.bincount(unit[here], weights=values[here], minlength=size)
    number = np.bincount(unit[here], minlength=size)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def normalized(scores: np.ndarray) -> np.ndarray:
    """Divided by the mean of their magnitudes (of those that are there); zeros when all of them are zero."""
    scale = np.nanmean(np.abs(scores))
    return scores / scale if scale > 0 else np.where(np.isnan(scores), np.nan, 0.0)


def needs(*names: str):
    """Marks what a criterion needs of the pass over the data; without a mark it needs none."""

    def mark(function):
        function.needs = names
        return function

    return mark


def needed(name: str) -> tuple[str, ...]:
    """The statistics a criterion (or a rule for widths) needs, for ``collect``."""
    return getattr({**WIDTHS, **CRITERIA}[name], "needs", ())


def raw(group: Group, statistics: Statistics, criterion: str) -> np.ndarray:
    """(units,) for relevance the statistic itself, averaged over the tensors at which the group is looked at, in
    activation units; for any other criterion its scores."""
    name = criterion.removeprefix("relevance_")
    if name == criterion:
        return CRITERIA[criterion](group, statistics)
    found = [per_unit(statistics.activations[node][name], unit, group.size) for node, unit in group.tensors.items()]
    return np.nanmean(found, axis=0)


def relevance(name: str) -> Callable[[Group, Statistics], np.ndarray]:
    """The criterion of one statistic.

    A group may be looked at in several tensors: the channels of a residual stream after every add, say. Each tensor is
    normalized by itself before the mean over tensors is taken. Without that the tensor with the largest values, in a
    residual stream the last one, would decide alone; and it is the values after the add that later layers read, so a
    branch's own output before the add, which the other branch may cancel, is not asked.
    """

    @needs(name)
    def score(group: Group, statistics: Statistics) -> np.ndarray:
        return _of_tensors(group, statistics, name, normalized)

    return score


def _of_tensors(group: Group, statistics: Statistics, name: str, scale: Callable) -> np.ndarray:
    """The mean over the group's tensors of one statistic, scaled by each tensor's own values."""
    found = [
        scale(per_unit(statistics.activations[node][name], unit, group.size)) for node, unit in group.tensors.items()
    ]
    return np.nanmean(found, axis=0)


def _of_layers(group: Group, statistics: Statistics, value: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    """The mean over the group's layers of ``value(weights (filters, ...))``, each normalized by itself."""
    found = []
    for path, unit in group.producers.items():
        weights = statistics.graph.layers[path].module.weight.detach().cpu().double().flatten(1)
        found.append(normalized(per_unit(value(weights).numpy(), unit, group.size)))
    return np.nanmean(found, axis=0)


def l1(group: Group, statistics: Statistics) -> np.ndarray:
    """Sum of the filter's magnitudes (Li et al. 2017)."""
    return _of_layers(group, statistics, lambda weights: weights.abs().sum(1))


def l2(group: Group, statistics: Statistics) -> np.ndarray:
    """Euclidean norm of the filter."""
    return _of_layers(group, statistics, lambda weights: weights.norm(dim=1))


def fpgm(group: Group, statistics: Statistics) -> np.ndarray:
    """Sum of the distances to the layer's other filters, on signed weights (He et al. 2019): what lies near the
    geometric median can be replaced by the others."""
    return _of_layers(
        group, statistics,
        lambda weights: torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist").sum(1),
    )  # fmt: skip


@needs(ZEROS)
def apoz(group: Group, statistics: Statistics) -> np.ndarray:
    """One less the average percentage of zeros after the activation (Hu et al. 2016): filters with most zeros go."""
    return 1 - _of_tensors(group, statistics, ZEROS, lambda values: values)


@needs(RANK)
def hrank(group: Group, statistics: Statistics) -> np.ndarray:
    """Mean rank of the filter's feature map over the pictures (Lin et al. 2020), normalized per layer."""
    return _of_tensors(group, statistics, RANK, normalized)


def slimming(group: Group, statistics: Statistics) -> np.ndarray:
    """Magnitude of BatchNorm's factor behind each layer (Liu et al. 2017), as it is: its threshold is global. Means
    something after training with ``train.sparsity`` above 0."""
    found = []
    for path, module in _norms(group, statistics):
        found.append(per_unit(module.weight.detach().abs().cpu().double().numpy(), group.producers[path], group.size))
    return np.nanmean(found, axis=0)


@needs(GATE)
def taylor(group: Group, statistics: Statistics) -> np.ndarray:
    """First-order effect on the loss of zeroing the activation (Molchanov et al. 2017): per picture
    |mean over positions of a * dL/da|, averaged over pictures, divided by the layer's Euclidean norm."""
    return _of_tensors(group, statistics, GATE, _by_norm)


def _by_norm(values: np.ndarray) -> np.ndarray:
    norm = np.sqrt(np.nansum(values**2))
    return values / norm if norm > 0 else values


@needs(NORM_GATE)
def taylor_bn(group: Group, statistics: Statistics) -> np.ndarray:
    """The same at a gate behind BatchNorm (Molchanov et al. 2019), (gate * dL/dgate)^2 per picture, averaged: equal to
    (gamma * dL/dgamma + beta * dL/dbeta)^2. Coupled layers' effects are added; nothing is normalized."""
    found = []
    for path, _ in _norms(group, statistics):
        node, _ = group.norms[path]
        found.append(per_unit(statistics.activations[node][NORM_GATE], group.producers[path], group.size))
    return np.nansum(found, axis=0)


def _norms(group: Group, statistics: Statistics) -> list[tuple[str, torch.nn.Module]]:
    without = [path for path in group.producers if path not in group.norms]
    if without:
        raise CriterionError(
            "no BatchNorm reads this layer, and the criterion is a property of it",
            where=without[0],
            fix="choose another trim.method",
        )
    return [(path, statistics.graph.layers[norm].module) for path, (_, norm) in group.norms.items()]


def _spectra(group: Group, statistics: Statistics, name: str) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per tensor (eigenvalues descending, eigenvectors in columns, unit of each channel) of the group's channels."""
    found = []
    for node, unit in (group.inputs if name == INPUTS_COVARIANCE else group.tensors).items():
        here = np.flatnonzero(unit >= 0)
        values, vectors = np.linalg.eigh(statistics.covariances[name][node][np.ix_(here, here)])
        found.append((np.maximum(values[::-1], 0), vectors[:, ::-1], unit[here]))
    return found


def _components(values: np.ndarray) -> int:
    """How many leading components hold ``PCA_SHARE`` of the variance; 1 where there is none."""
    held = np.cumsum(values)
    return int(np.searchsorted(held, PCA_SHARE * held[-1]) + 1) if held[-1] > 0 else 1


@needs(INPUTS_COVARIANCE)
def pca(group: Group, statistics: Statistics) -> np.ndarray:
    """Variance of a filter's pre-activation within the components that PCA keeps, normalized per layer. The paper
    (Garg et al. 2019) takes widths only, see ``pca_width``; that score is our reading of which filters to keep."""
    found = []
    for values, vectors, unit in _spectra(group, statistics, INPUTS_COVARIANCE):
        kept = _components(values)
        energy = (vectors[:, :kept] ** 2 * values[:kept]).sum(1)
        found.append(normalized(per_unit(energy, unit, group.size)))
    return np.nanmean(found, axis=0)


@needs(INPUTS_COVARIANCE)
def pca_width(group: Group, statistics: Statistics) -> int:
    """As many filters as components hold 99.9 % of the variance of the pre-activations (Garg et al. 2019)."""
    return _width(group, [(_components(values), unit) for values, _, unit in
                          _spectra(group, statistics, INPUTS_COVARIANCE)])  # fmt: skip


@needs(PEAKS_COVARIANCE)
def pfa(group: Group, statistics: Statistics) -> np.ndarray:
    """Place in the order in which the most correlated filter is dropped again and again (Suau et al. 2020): the filter
    whose correlations with those that are left have the largest sum of magnitudes goes first. Responses are the
    largest value over positions. In (0, 1]: layers are compared by the share of their filters that is gone."""
    names = statistics.covariances[PEAKS_COVARIANCE]
    found = []
    for node, unit in group.tensors.items():
        here = np.flatnonzero(unit >= 0)
        covariance = names[node][np.ix_(here, here)]
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
        scale = np.outer(deviation, deviation)
        # A response that never changes says nothing: it counts as fully correlated with everything.
        correlation = np.where(scale > 0, np.abs(covariance) / np.where(scale > 0, scale, 1), 1.0)
        left, place = list(range(len(here))), np.zeros(len(here))
        for turn in range(1, len(here) + 1):
            sums = correlation[np.ix_(left, left)].sum(1)
            place[left.pop(int(np.argmax(sums)))] = turn / len(here)
        found.append(per_unit(place, unit[here], group.size))
    return np.nanmean(found, axis=0)


@needs(PEAKS_COVARIANCE)
def pfa_width(group: Group, statistics: Statistics) -> int:
    """Filters times the entropy of the normalized eigenvalues over its largest value (Suau et al. 2020, the variant
    without a parameter): equal eigenvalues keep all filters, a single one keeps one. Our reading of the formula."""
    widths = []
    for values, _, unit in _spectra(group, statistics, PEAKS_COVARIANCE):
        share = values[values > 0] / values.sum() if values.sum() > 0 else np.ones(1)
        entropy = -(share * np.log(share)).sum()
        size = len(values)
        widths.append((max(1, round(size * entropy / np.log(size))) if size > 1 else 1, unit))
    return _width(group, widths)


def _width(group: Group, widths: list[tuple[int, np.ndarray]]) -> int:
    """Units of the widest tensor, from (channels wanted, unit of each channel) per tensor."""
    return max(min(len(np.unique(unit)), -(-wanted * len(np.unique(unit)) // len(unit))) for wanted, unit in widths)


def random(group: Group, statistics: Statistics) -> np.ndarray:
    """The control: uniform numbers, the same for the same seed and group."""
    return np.random.default_rng([statistics.seed, zlib.crc32(group.name.encode())]).random(group.size)


# A new criterion is one function and one line. Scores are (units,) float64, comparable between groups.
CRITERIA: dict[str, Callable[[Group, Statistics], np.ndarray]] = {
    **{f"relevance_{name}": relevance(name) for name in STATISTICS},
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "apoz": apoz,
    "hrank": hrank,
    "slimming": slimming,
    "taylor": taylor,
    "taylor_bn": taylor_bn,
    "pca": pca,
    "pfa": pfa,
    "random": random,
}
# Rules that say how many filters each group keeps.
WIDTHS: dict[str, Callable[[Group, Statistics], int]] = {"pca": pca_width, "pfa": pfa_width}
