"""Groups and removal, against an account of every channel that the networks here keep themselves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import cnn_small, resnet8
from pipeline.trimming import groups
from pipeline.trimming.count import count
from pipeline.trimming.schedule import Budget
from tests.trimnets import NETS, SHAPE, Net, randomized


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only get in one another's way on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some_units(graph, random):
    """Random units to keep of every group, at least one for every layer."""
    keep = {}
    for name, group in graph.groups.items():
        units = set(random.choice(group.size, random.integers(1, group.size + 1), replace=False).tolist())
        for unit in group.producers.values():
            if not units & set(unit.tolist()):
                units.add(int(random.choice(unit)))
        keep[name] = np.array(sorted(units))
    return keep


@settings(max_examples=40, deadline=None)
@given(NETS, st.integers(0, 2**31))
def test_the_smaller_network_equals_the_masked_one(words, seed):
    net = randomized(Net(words), seed)
    graph = groups.trace(net, SHAPE, [f"parts.{word}{i}" for i, (word, _) in enumerate(words) if word == "depthwise"])
    keep = some_units(graph, np.random.default_rng(seed))
    widths, state = groups.remove(graph, keep)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        smaller = Net(words, widths).double().eval()
        smaller.load_state_dict(state, strict=True)
        got = smaller(x)
        net.dead = {
            (path, int(channel))
            for name, group in graph.groups.items()
            for path, unit in group.producers.items()
            for channel in np.flatnonzero(~np.isin(unit, keep[name]))
        }
        expected = net(x)
    assert (got - expected).abs().max() <= 1e-10 * expected.abs().max()
    # The same networks: what the budget counts while units go is what is counted on the result.
    budget = Budget(graph)
    for name, group in graph.groups.items():
        for unit in set(range(group.size)) - set(keep[name].tolist()):
            budget.remove((name, unit))
    counted = count(smaller, SHAPE)
    assert (budget.all()["macs"], budget.all()["parameters"]) == (counted["macs"], counted["parameters"])


def test_every_layer_that_may_shrink_is_in_a_group():
    words = [("conv", 4), ("act", 1), ("concat", 5), ("residual", 3), ("depthwise", 2), ("head", 1)]
    graph = groups.trace(Net(words).eval(), SHAPE)
    assert {name: list(group.producers) for name, group in graph.groups.items()} == {
        "parts.conv0": ["parts.conv0"],
        # One family: the residual add ties its last convolution to both branches of the concatenation.
        "parts.concat2a": ["parts.concat2a", "parts.concat2b", "parts.residual3b", "parts.depthwise4"],
        "parts.residual3a": ["parts.residual3a"],
        "parts.hidden": ["parts.hidden"],
    }
    family = graph.groups["parts.concat2a"]
    assert family.size == 8
    assert family.producers["parts.concat2b"].tolist() == [5, 6, 7]
    assert family.producers["parts.residual3b"].tolist() == list(range(8))
    assert family.producers["parts.depthwise4"].tolist() == np.repeat(range(8), 2).tolist()


def test_a_depthwise_layer_of_one_channel_stays_depthwise_when_told():
    net = Net([("conv", 1), ("depthwise", 2), ("head", 0)])
    assert list(groups.trace(net, SHAPE).groups) == ["parts.conv0", "parts.depthwise1"]
    graph = groups.trace(net, SHAPE, ["parts.depthwise1"])
    assert list(graph.groups) == ["parts.conv0"] and graph.depthwise == ["parts.depthwise1"]


def test_outputs_and_what_is_added_to_the_input_stay_whole():
    graph = groups.trace(Net([("residual", 4), ("head", 0)]), SHAPE)
    assert list(graph.groups) == ["parts.residual0a"]


def test_one_channel_that_is_added_to_all_stays():
    graph = groups.trace(Net([("conv", 4), ("broadcast", 0), ("head", 2)]).eval(), SHAPE)
    assert {name: list(group.producers) for name, group in graph.groups.items()} == {
        "parts.conv0": ["parts.conv0"], "parts.broadcast1a": ["parts.broadcast1a"],
    }  # fmt: skip
    with pytest.raises(groups.GroupError, match="no channel would be left"):
        groups.remove(graph, {"parts.broadcast1a": []})


def test_models_of_the_house():
    graph = groups.trace(resnet8.build(resnet8.WIDTHS, None), resnet8.INPUT_SHAPE)
    tied = {tuple(group.producers) for group in graph.groups.values() if len(group.producers) > 1}
    assert tied == set(resnet8.TIED)
    assert graph.groups["conv1"].tensors.keys() == {"act1", "block1_act2"}
    graph = groups.trace(cnn_small.build(cnn_small.WIDTHS, None), cnn_small.INPUT_SHAPE)
    assert {name: group.size for name, group in graph.groups.items()} == cnn_small.WIDTHS
    assert {name: list(group.tensors) for name, group in graph.groups.items()} == {
        f"conv{i}": [f"act{i}"] for i in (1, 2, 3)
    }


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, o, 1) for i, o in ((2, 4), (4, 3), (3, 5), (5, 3)))
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        x = x + self.d(F.relu(F.max_pool2d(self.c(x), 1)))
        return self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_where_no_activation_follows_the_value_itself_is_looked_at():
    graph = groups.trace(Bottleneck(), SHAPE)
    assert list(graph.groups["a"].tensors) == ["relu"]
    assert list(graph.groups["c"].tensors) == ["relu_1"]
    assert list(graph.groups["b"].producers) == ["b", "d"]
    assert list(graph.groups["b"].tensors) == ["b", "adaptive_avg_pool2d"]


def test_mode_and_state_of_the_model_are_left_alone():
    net = Net([("conv", 3), ("head", 0)]).train()
    net.parts["conv0norm"].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph = groups.trace(net, SHAPE)
    _, state = groups.remove(graph, {"parts.conv0": [1]})
    state["parts.last.bias"] += 1
    assert net.training and not net.parts["conv0norm"].training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("keep", [{"parts.conv0": []}, {"parts.conv0": [3]}, {"parts.conv0": [-1]},
                                  {"parts.conv0": [1, 1]}, {"nobody": [0]}])  # fmt: skip
def test_impossible_units_are_refused(keep):
    graph = groups.trace(Net([("conv", 3), ("head", 0)]), SHAPE)
    with pytest.raises(groups.GroupError):
        groups.remove(graph, keep)


# --- refused by name ---


class Custom(nn.Conv2d):
    pass


def block(function, **parts):
    """conv (2 -> 4 channels), then ``function(self, x)``."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x):
            return function(self, self.conv(x))

    return Block()


REFUSED = [
    ("Softmax2d", block(lambda self, x: self.part(x), part=nn.Softmax2d())),
    ("GroupNorm", block(lambda self, x: self.part(x), part=nn.GroupNorm(2, 4))),
    ("ConvTranspose2d", block(lambda self, x: self.part(x), part=nn.ConvTranspose2d(4, 3, 3))),
    ("2 groups", block(lambda self, x: self.part(x), part=nn.Conv2d(4, 4, 3, groups=2))),
    ("ChannelShuffle", block(lambda self, x: self.part(x), part=nn.ChannelShuffle(2))),
    ("PReLU", block(lambda self, x: self.part(x), part=nn.PReLU(4))),
    ("Custom", block(lambda self, x: self.part(x), part=Custom(4, 4, 3))),
    ("Linear", block(lambda self, x: self.part(x), part=nn.Linear(6, 3))),
    ("matmul", block(lambda self, x: torch.matmul(x, x))),
    ("chunk", block(lambda self, x: x.chunk(2, 1)[0])),
    ("mul", block(lambda self, x: x * torch.sigmoid(x))),
    ("over pictures or channels", block(lambda self, x: x + x.mean((1,), keepdim=True))),
    ("not of equal rank", block(lambda self, x: F.adaptive_avg_pool2d(x, (2, 4)) + x.mean((2, 3)))),
    ("flattening", block(lambda self, x: x.reshape(2, 2, -1))),
    ("flattening", block(lambda self, x: x.flatten(2))),
    ("dimension 2", block(lambda self, x: torch.cat([x, x], 2))),
    ("over pictures or channels", block(lambda self, x: x.mean((1, 2, 3)))),
    ("permute", block(lambda self, x: x.permute(0, 2, 3, 1))),
    ("scale", block(lambda self, x: x * self.scale)),
    ("getitem", block(lambda self, x: x[:, :2])),
    ("layer_norm", block(lambda self, x: F.layer_norm(x, (6, 6)))),
]


@pytest.mark.parametrize("name,net", REFUSED, ids=[f"{i}-{name}" for i, (name, _) in enumerate(REFUSED)])
def test_what_is_not_known_is_refused_by_name(name, net):
    with pytest.raises(groups.GroupError) as caught:
        groups.trace(net, SHAPE)
    assert name in str(caught.value)
    assert caught.value.where and caught.value.fix


def test_the_place_is_the_layer_and_the_line():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Softmax2d())
    with pytest.raises(groups.GroupError) as caught:
        groups.trace(net, SHAPE)
    assert caught.value.where == "1"
    with pytest.raises(groups.GroupError) as caught:
        groups.trace(block(lambda self, x: x.cumsum(1)), SHAPE)
    assert "test_trimming_groups.py" in str(caught.value.where)


def branching(self, x):
    return x if x.sum() > 0 else -x


def test_control_flow_on_data_is_refused_with_its_line():
    with pytest.raises(groups.GroupError, match="cannot be traced") as caught:
        groups.trace(block(branching), SHAPE)
    assert "test_trimming_groups.py" in caught.value.where and "x.sum() > 0" in caught.value.where


def test_weights_under_two_names_are_refused():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    net[2].weight = net[0].weight
    with pytest.raises(groups.GroupError, match="share their weights") as caught:
        groups.trace(net, SHAPE)
    assert "0.weight and 2.weight" in str(caught.value)


def test_a_picture_that_does_not_fit_names_the_layer():
    with pytest.raises(groups.GroupError) as caught:
        groups.trace(Net([("conv", 3), ("head", 0)]), (2, 9, 9))
    assert "parts.last" in str(caught.value)
