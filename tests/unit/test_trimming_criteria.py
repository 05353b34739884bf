"""Relevance, against a few lines of numpy on activations taken by hooks."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.models import cnn_small, resnet8
from pipeline.trimming import criteria, groups


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only get in one another's way on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(module, seed=0):
    torch.manual_seed(seed)
    net = module.build(module.WIDTHS, None)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return net.eval()


def activations(net, names, pictures) -> dict[str, np.ndarray]:
    """{module: (N, C, H, W)}, all at once."""
    found = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: found.update({name: out.numpy()}))
        for name in names
    ]
    with torch.no_grad():
        net(pictures)
    for hook in hooks:
        hook.remove()
    return found


REFERENCE = {
    "mean": lambda a: a.mean((0, 2, 3)),
    "mean_abs": lambda a: np.abs(a).mean((0, 2, 3)),
    "max": lambda a: a.max((2, 3)).mean(0),
    "l2": lambda a: np.sqrt((a**2).sum((2, 3))).mean(0),
    "fraction": lambda a: (a > 0).mean((0, 2, 3)),
}


def test_every_statistic_has_a_reference():
    assert REFERENCE.keys() == criteria.STATISTICS.keys()


@pytest.mark.parametrize("name", REFERENCE)
def test_relevance_of_a_chain(name):
    net, pictures = network(cnn_small), torch.rand(30, 1, 8, 8)
    graph = groups.trace(net, (1, 8, 8))
    statistics = criteria.collect(graph, pictures.split(7), [name])
    seen = activations(net, ["act1", "act2", "act3"], pictures)
    assert statistics.pictures == 30
    for number in (1, 2, 3):
        expected = REFERENCE[name](seen[f"act{number}"].astype(np.float64))
        group = graph.groups[f"conv{number}"]
        assert np.allclose(criteria.raw(group, statistics, name), expected, rtol=1e-5)
        assert np.allclose(criteria.CRITERIA[name](group, statistics), expected / np.abs(expected).mean(), rtol=1e-5)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_residual_stream_is_asked_after_each_activation_normalized_by_itself(name):
    net, pictures = network(resnet8), torch.rand(6, 3, 32, 32)
    net.block1.norm2.weight.data *= 100  # the later tensor is far louder; it must not decide alone
    graph = groups.trace(net, (3, 32, 32))
    statistics = criteria.collect(graph, [pictures], [name])
    seen = activations(net, ["act1", "block1.act2"], pictures)
    parts = [REFERENCE[name](seen[key].astype(np.float64)) for key in ("act1", "block1.act2")]
    expected = np.mean([part / np.abs(part).mean() for part in parts], axis=0)
    assert np.allclose(criteria.CRITERIA[name](graph.groups["conv1"], statistics), expected, rtol=1e-4)


def test_the_statistics_differ_from_one_another():
    graph = groups.trace(network(cnn_small), (1, 8, 8))
    statistics = criteria.collect(graph, [torch.rand(20, 1, 8, 8)], list(REFERENCE))
    found = [criteria.CRITERIA[name](graph.groups["conv2"], statistics) for name in ("mean", "max", "l2", "fraction")]
    assert all(not np.allclose(a, b, rtol=1e-3) for i, a in enumerate(found) for b in found[:i])


def test_leaky_activations_tell_mean_from_mean_abs():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.LeakyReLU(0.5), nn.Flatten(), nn.Linear(12, 2))
    graph = groups.trace(net, (1, 2, 2))
    statistics = criteria.collect(graph, [torch.randn(50, 1, 2, 2)], ["mean", "mean_abs"])
    assert not np.allclose(*(criteria.raw(graph.groups["0"], statistics, name) for name in ("mean", "mean_abs")))


def test_how_the_data_are_cut_into_batches_does_not_matter():
    graph, pictures = groups.trace(network(cnn_small), (1, 8, 8)), torch.rand(24, 1, 8, 8)
    whole, cut = (
        criteria.collect(graph, pictures.split(size), list(REFERENCE)).activations["act3"] for size in (24, 5)
    )
    assert all(np.allclose(whole[name], cut[name], rtol=1e-6) for name in REFERENCE)


def test_no_batch_is_kept():
    graph = groups.trace(network(cnn_small), (1, 8, 8))
    alive = []

    def batches():
        for _ in range(5):
            batch = torch.rand(4, 1, 8, 8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(reference() is not None for reference in alive) <= 1

    criteria.collect(graph, batches(), ["mean"])
    assert len(alive) == 5


def test_the_model_is_measured_as_in_use_and_left_as_it_was():
    net = network(cnn_small).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph = groups.trace(net, (1, 8, 8))
    criteria.collect(graph, [torch.rand(4, 1, 8, 8)], ["mean"])
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_silent_layer_scores_zero_and_a_silent_filter_is_last():
    net = network(cnn_small)
    for index in (3, None):
        with torch.no_grad():
            net.norm2.weight[index] = 0.0
            net.norm2.bias[index] = -1.0
        graph = groups.trace(net, (1, 8, 8))
        statistics = criteria.collect(graph, [torch.rand(8, 1, 8, 8)], list(REFERENCE))
        for name in REFERENCE:
            scores = criteria.CRITERIA[name](graph.groups["conv2"], statistics)
            assert np.isfinite(scores).all() and scores[3] == scores.min() == 0
            assert (scores == 0).all() == (index is None)


def test_units_that_are_not_everywhere_are_averaged_where_they_are():
    class Concat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 3, 1)
            self.act, self.last = nn.ReLU(), nn.Linear(5, 2)

        def forward(self, x):
            x = self.act(torch.cat([self.a(x), self.b(x)], 1))
            return self.last(x.mean((2, 3)))

    torch.manual_seed(0)
    net, pictures = Concat(), torch.randn(40, 1, 4, 4)
    graph = groups.trace(net, (1, 4, 4))
    statistics = criteria.collect(graph, [pictures], ["mean"])
    with torch.no_grad():
        expected = net.b(pictures).relu().mean((0, 2, 3)).numpy()
    assert graph.groups["b"].tensors["act"].tolist() == [-1, -1, 0, 1, 2]
    assert np.allclose(criteria.raw(graph.groups["b"], statistics, "mean"), expected, rtol=1e-5)


def test_channels_of_one_unit_are_averaged():
    assert criteria.per_unit(np.array([1.0, 3, 10, 7]), np.array([0, 0, 2, -1]), 4).tolist()[::2] == [2, 10]
    assert np.isnan(criteria.per_unit(np.array([1.0]), np.array([0]), 2)[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused(value):
    net = network(cnn_small)
    net.norm2.bias.data[0] = value
    graph = groups.trace(net, (1, 8, 8))
    with pytest.raises(criteria.CriterionError, match="infinite or not a number") as caught:
        criteria.collect(graph, [torch.rand(4, 1, 8, 8)], ["mean"])
    assert "act2" in str(caught.value)


def test_no_data_and_unknown_statistics_are_refused():
    graph = groups.trace(network(cnn_small), (1, 8, 8))
    with pytest.raises(criteria.CriterionError, match="no pictures"):
        criteria.collect(graph, [], ["mean"])
    with pytest.raises(criteria.CriterionError, match="no statistic 'median'"):
        criteria.collect(graph, [torch.rand(1, 1, 8, 8)], ["median"])
