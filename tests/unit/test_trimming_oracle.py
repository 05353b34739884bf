"""Groups and removal against Torch-Pruning 1.6.1, an independent implementation, unit by unit.

Where the two disagree the reason is listed in ``DISAGREEMENTS`` with a network that shows it; anywhere else one
differing index fails. That ours is right there is shown by the masked network (test_trimming_groups.py draws the same
networks).
"""

import copy
from importlib import import_module

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import assume, given, settings
from torch import nn

from pipeline import models
from pipeline.trimming import groups
from tests.trimnets import NETS, SHAPE, Net, randomized

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def ours(graph, name) -> list[set]:
    """Per unit of a group everything that goes with it: {(layer, "in" or "out", index)}."""
    found, number = [set() for _ in range(graph.groups[name].size)], graph.names.index(name)
    for path, layer in graph.layers.items():
        one_sided = layer.depthwise or isinstance(layer.module, NORMS)
        for side, ids in (("out", layer.outputs), *([] if one_sided else [("in", layer.inputs)])):
            for index, channel in enumerate(ids):
                if graph.group_of[channel] == number:
                    found[graph.unit_of[channel]].add((path, side, index))
    return found


class Theirs:
    def __init__(self, net, shape):
        example = torch.zeros(2, *shape, dtype=next(net.parameters()).dtype)
        self.graph = tp.DependencyGraph().build_dependency(net, example, verbose=False)
        self.net, self.names = net, {module: name for name, module in net.named_modules()}

    def group(self, path, channels):
        module = self.net.get_submodule(path)
        return self.graph.get_pruning_group(
            module, self.graph.get_pruner_of_module(module).prune_out_channels, [int(c) for c in channels]
        )

    def affected(self, path, channel) -> set:
        found = set()
        for item, indices in self.group(path, [channel]):
            module = item.target.module
            if module not in self.names or not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, *NORMS)):
                continue  # operations without weights
            one_sided = isinstance(module, NORMS) or getattr(module, "groups", 1) > 1
            side = "out" if one_sided or self.graph.is_out_channel_pruning_fn(item.handler) else "in"
            found |= {(self.names[module], side, int(index)) for index in indices}
        return found


def differences(net, graph, shape) -> list:
    """[(layer, channel, only theirs, only ours)] over every producer of every unit."""
    theirs, found = Theirs(net, shape), []
    for name, group in graph.groups.items():
        mine = ours(graph, name)
        for path, unit in group.producers.items():
            for number in sorted(set(unit.tolist())):
                channels = np.flatnonzero(unit == number)
                other = theirs.affected(path, channels[0])
                if other != mine[number]:
                    found.append((path, int(channels[0]), sorted(other - mine[number]), sorted(mine[number] - other)))
    return found


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def house(name):
    module = import_module(f"pipeline.models.{name}")
    widths = {layer: max(2, width // 8) for layer, width in module.WIDTHS.items()}
    torch.manual_seed(0)
    return module.build(widths, None).eval(), module


@pytest.mark.parametrize("name", models.names())
def test_every_model_of_the_house_has_the_same_groups(name):
    net, module = house(name)
    graph = groups.trace(net, module.INPUT_SHAPE)
    assert differences(net, graph, module.INPUT_SHAPE) == []
    # Every convolution is in one group: nothing but the classifier is fixed.
    assert {path for group in graph.groups.values() for path in group.producers} == module.WIDTHS.keys()


@pytest.mark.parametrize("name", models.names())
def test_physical_removal_gives_the_same_weights(name):
    net, module = house(name)
    graph = groups.trace(net, module.INPUT_SHAPE)
    random, other = np.random.default_rng(0), copy.deepcopy(net)
    keep = {
        name: np.sort(random.choice(group.size, max(1, group.size // 2), replace=False))
        for name, group in graph.groups.items()
    }
    for name, group in graph.groups.items():
        path, unit = next(iter(group.producers.items()))
        gone = np.flatnonzero(~np.isin(unit, keep[name]))
        if len(gone):
            Theirs(other, module.INPUT_SHAPE).group(path, gone).prune()
    _, state = groups.remove(graph, keep)
    pruned = other.state_dict()
    assert pruned.keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in pruned.items())


def _multiplier(words, size):
    return any(word == "depthwise" and value > 1 for word, value in words)


def _one_channel(words, size):
    graph = traced(words)[1]
    return any(layer.depthwise and len(layer.inputs) == 1 for layer in graph.layers.values())


def _flattened_concat(words, size):
    return any(word in ("concat", "dense") for word, _ in words) and size > 1 and words[-1][1] != 2


def _nested_concat(words, size):
    first = next((place for place, (word, _) in enumerate(words) if word in ("concat", "dense")), len(words))
    return any(word == "dense" for word, _ in words[first + 1 :])


def _broadcast(words, size):
    return any(word == "broadcast" for word, _ in words)


# Why: which random networks it may concern, and one on which it shows.
DISAGREEMENTS = {
    "Torch-Pruning does not follow a depthwise convolution of multiplier 2 to its outputs": (
        _multiplier, [("conv", 3), ("depthwise", 2), ("head", 2)],
    ),
    "Torch-Pruning takes a depthwise convolution of one channel for a dense one; we are told": (
        _one_channel, [("conv", 1), ("depthwise", 1), ("head", 0)],
    ),
    "Torch-Pruning ties channels to the one channel that is added to all of them, which always stays": (
        _broadcast, [("conv", 4), ("broadcast", 0), ("head", 2)],
    ),
    "Torch-Pruning mixes up the blocks of features where a concatenation is flattened with several pixels": (
        _flattened_concat, [("concat", 1), ("head", 0)],
    ),
    "Torch-Pruning mixes up the offsets where a concatenation goes into another one": (
        _nested_concat,
        [("pool", 2), ("dense", 1), ("pool", 2), ("dense", 1), ("pool", 2), ("shared", 4), ("head", 2)],
    ),
}  # fmt: skip


def traced(words):
    net = randomized(Net(words), 0)
    depthwise = [f"parts.{word}{place}" for place, (word, _) in enumerate(words) if word == "depthwise"]
    return net, groups.trace(net, SHAPE, depthwise)


def reasons(words) -> list[str]:
    size = SHAPE[1]
    for word, _ in words:
        size //= 2 if word == "pool" and size > 1 else 1
    return [why for why, (concerns, _) in DISAGREEMENTS.items() if concerns(words, size)]


@settings(max_examples=40, deadline=None)
@given(NETS)
def test_random_networks_have_the_same_groups(words):
    assume(not reasons(words))
    net, graph = traced(words)
    assert differences(net, graph, SHAPE) == []


@pytest.mark.parametrize("why", DISAGREEMENTS)
def test_each_listed_disagreement_is_one(why):
    """A reason that no longer holds is to be taken off the list."""
    _, words = DISAGREEMENTS[why]
    assert reasons(words) == [why]
    net, graph = traced(words)
    assert differences(net, graph, SHAPE) != []


def test_a_wrong_group_would_be_noticed():
    net, module = house("resnet8")
    graph = groups.trace(net, module.INPUT_SHAPE)
    graph.unit_of[np.flatnonzero(graph.unit_of == 1)[0]] = 0
    assert differences(net, graph, module.INPUT_SHAPE) != []


def test_one_dimension():
    class Sound(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3)
            self.pool, self.last = nn.AdaptiveAvgPool1d(3), nn.Linear(12, 2)

        def forward(self, x):
            return self.last(self.pool(torch.relu(self.b(torch.relu(self.norm(self.a(x)))))).flatten(1))

    net = Sound().eval()
    graph = groups.trace(net, (2, 20))
    assert differences(net, graph, (2, 20)) == []
    assert {name: group.size for name, group in graph.groups.items()} == {"a": 6, "b": 4}
