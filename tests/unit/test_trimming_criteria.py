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
        assert np.allclose(criteria.raw(group, statistics, f"relevance_{name}"), expected, rtol=1e-5)
        scores = criteria.CRITERIA[f"relevance_{name}"](group, statistics)
        assert np.allclose(scores, expected / np.abs(expected).mean(), rtol=1e-5)


@pytest.mark.parametrize("name", REFERENCE)
def test_a_residual_stream_is_asked_after_each_activation_normalized_by_itself(name):
    net, pictures = network(resnet8), torch.rand(6, 3, 32, 32)
    net.block1.norm2.weight.data *= 100  # the later tensor is far louder; it must not decide alone
    graph = groups.trace(net, (3, 32, 32))
    statistics = criteria.collect(graph, [pictures], [name])
    seen = activations(net, ["act1", "block1.act2"], pictures)
    parts = [REFERENCE[name](seen[key].astype(np.float64)) for key in ("act1", "block1.act2")]
    expected = np.mean([part / np.abs(part).mean() for part in parts], axis=0)
    assert np.allclose(criteria.CRITERIA[f"relevance_{name}"](graph.groups["conv1"], statistics), expected, rtol=1e-4)


def test_the_statistics_differ_from_one_another():
    graph = groups.trace(network(cnn_small), (1, 8, 8))
    statistics = criteria.collect(graph, [torch.rand(20, 1, 8, 8)], list(REFERENCE))
    names = ("mean", "max", "l2", "fraction")
    found = [criteria.CRITERIA[f"relevance_{name}"](graph.groups["conv2"], statistics) for name in names]
    assert all(not np.allclose(a, b, rtol=1e-3) for i, a in enumerate(found) for b in found[:i])


def test_leaky_activations_tell_mean_from_mean_abs():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.LeakyReLU(0.5), nn.Flatten(), nn.Linear(12, 2))
    graph = groups.trace(net, (1, 2, 2))
    statistics = criteria.collect(graph, [torch.randn(50, 1, 2, 2)], ["mean", "mean_abs"])
    group = graph.groups["0"]
    assert not np.allclose(*(criteria.raw(group, statistics, f"relevance_{name}") for name in ("mean", "mean_abs")))


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
            scores = criteria.CRITERIA[f"relevance_{name}"](graph.groups["conv2"], statistics)
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
    assert np.allclose(criteria.raw(graph.groups["b"], statistics, "relevance_mean"), expected, rtol=1e-5)


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


# --- the other criteria, each against a few lines of its own ---


def score(name, net, module=cnn_small, pictures=None, seed=0, key="conv2"):
    graph = groups.trace(net, module.INPUT_SHAPE)
    statistics = criteria.collect(graph, pictures or [], criteria.needed(name), seed)
    return criteria.CRITERIA[name](graph.groups[key], statistics)


def proportional(found, expected):
    return np.allclose(found / np.abs(found).mean(), expected / np.abs(expected).mean(), rtol=1e-5)


def test_norms_and_distances_of_weights():
    net = network(cnn_small)
    filters = net.conv2.weight.detach().double().numpy().reshape(32, -1)
    assert proportional(score("l1", net), np.abs(filters).sum(1))
    assert proportional(score("l2", net), np.sqrt((filters**2).sum(1)))
    assert proportional(score("fpgm", net), [sum(np.linalg.norm(a - b) for b in filters) for a in filters])


def test_distances_are_of_signed_weights():
    net = network(cnn_small)
    with torch.no_grad():
        net.conv2.weight[1] = -net.conv2.weight[0]
        net.conv2.weight[3] = net.conv2.weight[2]
    found = score("fpgm", net)
    assert abs(found[0] - found[1]) > 1e-4 and found[2] == found[3]  # on |w| the first two would be equal


def test_criteria_of_weights_need_no_data_and_those_of_activations_do():
    assert {name for name in criteria.CRITERIA if not criteria.needed(name)} == {
        "l1", "l2", "fpgm", "slimming", "random",
    }  # fmt: skip
    for name in criteria.CRITERIA:
        if criteria.needed(name):
            with pytest.raises(criteria.CriterionError, match="no pictures"):
                score(name, network(cnn_small))


def test_apoz_and_slimming():
    net, pictures = network(cnn_small), torch.rand(30, 1, 8, 8)
    seen = activations(net, ["act2"], pictures)["act2"]
    assert np.allclose(score("apoz", net, pictures=pictures.split(7)), 1 - (seen == 0).mean((0, 2, 3)))
    assert np.allclose(score("slimming", net), net.norm2.weight.detach().abs().numpy())


def test_hrank():
    net, pictures = network(cnn_small), torch.rand(10, 1, 8, 8)
    seen = activations(net, ["act2"], pictures)["act2"]
    expected = [np.mean([np.linalg.matrix_rank(seen[n, c]) for n in range(10)]) for c in range(32)]
    assert proportional(score("hrank", net, pictures=pictures.split(4)), np.array(expected))


def test_taylor_and_its_form_at_batchnorm():
    net, pictures, labels = network(cnn_small), torch.rand(6, 1, 8, 8), torch.arange(6)
    batches = list(zip(pictures.split(4), labels.split(4), strict=True))
    per_picture, gates = [], []
    for x, y in zip(pictures, labels, strict=True):
        norm = net.norm2
        norm.weight.grad = norm.bias.grad = None
        a = net.act2(norm(net.conv2(net.pool1(net.act1(net.norm1(net.conv1(x[None])))))))
        a.retain_grad()
        rest = net.classifier(net.flatten(net.pool2(net.act3(net.norm3(net.conv3(a))))))
        torch.nn.functional.cross_entropy(rest, y[None]).backward()
        per_picture.append((a * a.grad).mean((0, 2, 3)).abs().detach().numpy())
        gates.append((norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach().numpy() ** 2)
    expected = np.mean(per_picture, axis=0)
    assert np.allclose(score("taylor", net, pictures=batches), expected / np.linalg.norm(expected), rtol=1e-4)
    assert np.allclose(score("taylor_bn", net, pictures=batches), np.mean(gates, axis=0), rtol=1e-3)
    assert net.norm2.weight.requires_grad


def test_gradients_without_labels_and_batchnorm_criteria_without_batchnorm_are_refused():
    with pytest.raises(criteria.CriterionError, match="needs the labels"):
        score("taylor", network(cnn_small), pictures=[torch.rand(2, 1, 8, 8)])
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    graph = groups.trace(net, (1, 2, 2))
    with pytest.raises(criteria.CriterionError, match="no BatchNorm") as caught:
        criteria.CRITERIA["slimming"](graph.groups["0"], criteria.collect(graph, [], []))
    assert caught.value.where == "0"
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    graph = groups.trace(flat, (1, 2, 2))
    with pytest.raises(criteria.CriterionError, match="two dimensions"):
        criteria.collect(graph, [torch.rand(2, 1, 2, 2)], criteria.needed("hrank"))


def covariance(samples):
    return np.cov(samples.reshape(-1, samples.shape[-1]), rowvar=False, bias=True)


def test_pca_gives_as_many_filters_as_components_hold_the_variance():
    net, pictures = network(cnn_small), torch.rand(40, 1, 8, 8)
    before = activations(net, ["norm2"], pictures)["norm2"].astype(np.float64).transpose(0, 2, 3, 1)
    values, vectors = np.linalg.eigh(covariance(before))
    held = np.cumsum(values[::-1]) / values.sum()
    expected = int((held < 0.999).sum()) + 1
    graph = groups.trace(net, (1, 8, 8))
    statistics = criteria.collect(graph, pictures.split(9), criteria.needed("pca"))
    assert criteria.WIDTHS["pca"](graph.groups["conv2"], statistics) == expected < 32
    kept = vectors[:, ::-1][:, :expected]
    energy = np.diag(kept @ kept.T @ covariance(before) @ kept @ kept.T)
    assert proportional(criteria.CRITERIA["pca"](graph.groups["conv2"], statistics), energy)


def test_pfa_drops_the_most_correlated_and_keeps_what_the_spectrum_says():
    net, pictures = network(cnn_small), torch.rand(40, 1, 8, 8)
    with torch.no_grad():  # two filters that always say the same
        net.conv2.weight[5] = net.conv2.weight[4]
        for tensor in (net.norm2.weight, net.norm2.bias, net.norm2.running_mean, net.norm2.running_var):
            tensor[5] = tensor[4]
    peaks = activations(net, ["act2"], pictures)["act2"].astype(np.float64).max((2, 3))
    graph = groups.trace(net, (1, 8, 8))
    statistics = criteria.collect(graph, pictures.split(9), criteria.needed("pfa"))
    values = np.linalg.eigvalsh(covariance(peaks))
    share = values[values > 1e-12] / values.sum()
    expected = round(32 * -(share * np.log(share)).sum() / np.log(32))
    assert criteria.WIDTHS["pfa"](graph.groups["conv2"], statistics) == expected
    correlation, left, order = np.abs(np.corrcoef(peaks, rowvar=False)), list(range(32)), []
    correlation[np.isnan(correlation)] = 1.0
    while left:
        order.append(max(left, key=lambda i: (round(correlation[i, left].sum(), 9), -i)))
        left.remove(order[-1])
    found = criteria.CRITERIA["pfa"](graph.groups["conv2"], statistics)
    assert np.argsort(found, kind="stable").tolist() == order
    assert sorted(found) == [turn / 32 for turn in range(1, 33)]


def test_random_is_of_its_seed():
    net = network(cnn_small)
    assert np.array_equal(score("random", net, seed=3), score("random", net, seed=3))
    assert not np.array_equal(score("random", net, seed=3), score("random", net, seed=4))
    assert not np.array_equal(score("random", net), score("random", net, key="conv3"))


def test_covariances_take_no_memory_of_the_data():
    graph = groups.trace(network(cnn_small), (1, 8, 8))
    few, many = (
        criteria.collect(graph, (torch.rand(8, 1, 8, 8) for _ in range(n)), criteria.needed("pca")).covariances
        for n in (1, 20)
    )
    assert {k: {n: v.shape for n, v in of.items()} for k, of in few.items()} == {
        k: {n: v.shape for n, v in of.items()} for k, of in many.items()
    }


def test_hooks_and_steps_see_the_same(monkeypatch):
    """Watched tensors that are no module's only output are seen by running the trace."""
    net, pictures = network(resnet8), torch.rand(6, 3, 32, 32)
    graph = groups.trace(net, (3, 32, 32))
    names = ["mean", criteria.ZEROS, criteria.PEAKS_COVARIANCE]
    hooked = criteria.collect(graph, pictures.split(4), names)
    assert not any(module._forward_hooks for module in net.modules())
    monkeypatch.setattr(criteria._Watch, "attached", lambda watch: (criteria._Steps(watch).run, []))
    stepped = criteria.collect(graph, pictures.split(4), names)
    for node, values in hooked.activations.items():
        assert all(np.array_equal(values[name], stepped.activations[node][name]) for name in values)
    monkeypatch.undo()

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.last = nn.Conv2d(1, 3, 1), nn.Linear(12, 2)

        def forward(self, x):
            return self.last(torch.relu(self.a(x)).flatten(1))

    graph = groups.trace(Functional(), (1, 2, 2))
    forward, hooks = criteria._Watch(graph, ["mean"]).attached()
    assert hooks == [] and forward.__name__ == "run"
