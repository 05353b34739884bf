"""Iterative trimming: what was asked, what was achieved, what is left."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import config
from pipeline.models import cnn_small, resnet8
from pipeline.trimming import criteria, groups, methods, schedule
from pipeline.trimming.count import count


@pytest.fixture(autouse=True)
def one_thread():
    """Threads only get in one another's way on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PICTURES = {module: torch.rand(12, *module.INPUT_SHAPE) for module in (cnn_small, resnet8)}


def network(module=cnn_small, seed=0):
    torch.manual_seed(seed)
    net = module.build(module.WIDTHS, None)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, 0.2, 1.0)  # no filter is silent by chance
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2)
    return net.eval()


def trim(net=None, module=cnn_small, **options):
    options = {
        "build": lambda widths: module.build(widths, None),
        "input_shape": module.INPUT_SHAPE,
        "batches": lambda: PICTURES[module].split(5),
        "finetune": lambda model, step: None,
        **options,
    }
    return schedule.trim(network(module) if net is None else net, **options)


@pytest.mark.parametrize("of", schedule.MEASURES)
@pytest.mark.parametrize("module", [cnn_small, resnet8], ids=["chain", "residual"])
@pytest.mark.parametrize("ratio,steps", [(0.5, 3), (0.8, 1)])
def test_achieved_is_what_was_asked_and_is_counted_on_the_result(module, of, ratio, steps):
    result = trim(module=module, of=of, ratio=ratio, steps=steps)
    assert result.achieved >= ratio == result.asked
    smaller = module.build(result.widths, None)
    smaller.load_state_dict(result.state, strict=True)
    for measure in ("macs", "parameters"):
        for counted, model in ((result.after, smaller), (result.before, network(module))):
            assert counted[measure] == count(model, module.INPUT_SHAPE)[measure]
    assert result.after["filters"] == sum(result.widths.values())
    assert result.achieved == (result.before[of] - result.after[of]) / result.before[of]
    assert [entry["target"] for entry in result.history] == [*(ratio * k / steps for k in range(1, steps)), ratio]
    assert all(entry["achieved"] >= entry["target"] for entry in result.history)


@pytest.mark.parametrize("of", schedule.MEASURES)
@pytest.mark.parametrize("module", [cnn_small, resnet8], ids=["chain", "residual"])
def test_the_target_is_passed_by_less_than_one_unit_and_the_lowest_went(module, of):
    net = network(module)
    result = trim(net, module, of=of, ratio=0.4, steps=1)
    graph = groups.trace(net, module.INPUT_SHAPE)
    statistics = criteria.collect(graph, PICTURES[module].split(5), ["mean"])
    gone, stayed = [], []
    keep = {}
    for name, group in graph.groups.items():
        path, unit = next(iter(group.producers.items()))
        scores = criteria.CRITERIA["relevance_mean"](group, statistics)
        keep[name] = unit[result.kept[path]]
        for number in range(group.size):
            (stayed if number in keep[name] else gone).append((scores[number], name, number))
    assert max(gone)[0] <= min(stayed)[0]
    _, name, number = max(gone)
    keep[name] = np.sort([*keep[name], number])
    widths, _ = groups.remove(graph, keep)
    one_more = schedule.Budget(groups.trace(module.build(widths, None), module.INPUT_SHAPE)).measure(of)
    assert 1 - one_more / result.before[of] < 0.4 <= result.achieved


def test_kept_and_removed_at_tell_the_same_story_over_all_steps():
    net = network()
    result = trim(net, ratio=0.7, steps=4)
    for path, width in result.widths.items():
        assert len(result.kept[path]) == width and np.array_equal(result.kept[path], np.sort(result.kept[path]))
        assert np.array_equal(np.flatnonzero(result.removed_at[path] == 0), result.kept[path])
        assert len(result.scores[path]) == len(result.relevance[path]) == cnn_small.WIDTHS[path]
    for entry in result.history:
        for path, width in entry["widths"].items():
            still = (result.removed_at[path] == 0) | (result.removed_at[path] > entry["step"])
            assert still.sum() == width
    assert set(np.concatenate(list(result.removed_at.values()))) == {0, 1, 2, 3, 4}
    # Without fine-tuning the weights that are left are the trained ones.
    k1, k2 = result.kept["conv1"], result.kept["conv2"]
    assert torch.equal(result.state["conv2.weight"], net.conv2.weight[k2][:, k1])
    assert torch.equal(result.state["norm2.running_var"], net.norm2.running_var[k2])


def test_scores_are_those_of_the_untrimmed_network():
    net = network()
    result = trim(net, ratio=0.5, steps=3)
    with torch.no_grad():
        expected = net.act1(net.norm1(net.conv1(PICTURES[cnn_small]))).mean((0, 2, 3)).numpy()
    assert np.allclose(result.relevance["conv1"], expected, rtol=1e-5)
    assert np.allclose(result.scores["conv1"], expected / expected.mean(), rtol=1e-5)


def test_fine_tuning_comes_between_the_steps_and_its_result_is_used():
    sizes = []

    def finetune(model, step):
        sizes.append((step, model.conv2.out_channels))
        with torch.no_grad():
            model.classifier.bias += 1
        return {"note": step}

    net = network()
    result = trim(net, ratio=0.7, steps=3, finetune=finetune)
    assert [step for step, _ in sizes] == [1, 2, 3]
    assert sizes[0][1] > sizes[2][1] == result.widths["conv2"]
    assert torch.allclose(result.state["classifier.bias"], net.classifier.bias + 3)
    assert [entry["finetune"] for entry in result.history] == [{"note": 1}, {"note": 2}, {"note": 3}]


def test_scores_are_taken_anew_after_fine_tuning():
    def silence(model, step):
        """Fine-tuning that lets the filter with the largest weight die."""
        if step == 1:
            with torch.no_grad():
                model.norm3.weight[:5] = 0
                model.norm3.bias[:5] = -1

    first = trim(ratio=0.2, steps=1).kept["conv3"][:5]
    result = trim(ratio=0.4, steps=2, finetune=silence)
    assert set(result.removed_at["conv3"][first]) == {2}


def test_silent_filters_go_first():
    net = network()
    with torch.no_grad():
        net.norm2.weight[[4, 9]] = 0
        net.norm2.bias[[4, 9]] = -1
    result = trim(net, ratio=0.02, steps=1)
    assert np.flatnonzero(result.removed_at["conv2"])[0] == 4


@pytest.mark.parametrize("least", [1, 3])
def test_each_layer_keeps_its_least(least):
    net = network()
    with torch.no_grad():
        net.norm1.weight[:] = 0
        net.norm1.bias[:] = -1
    result = trim(net, ratio=0.9, of="macs", steps=2, min_filters=least)
    assert result.widths["conv1"] == least and min(result.widths.values()) >= least


def test_a_target_out_of_reach_says_how_far_it_gets_before_anything_is_trained():
    def finetune(model, step):
        raise AssertionError("trained")

    with pytest.raises(schedule.TrimError, match=r"99\.9% of the filters .* 1 filter.s. per layer 96\.2% is the most"):
        trim(ratio=0.999, of="filters", finetune=finetune)
    reach = 1 - 3 / 80
    assert trim(ratio=reach, of="filters", steps=1).widths == {"conv1": 1, "conv2": 1, "conv3": 1}
    with pytest.raises(schedule.TrimError, match=r"85\.0% is the most"):
        trim(ratio=0.9, of="filters", min_filters=4, finetune=finetune)


@pytest.mark.parametrize(
    "options,message",
    [({"ratio": 1.0}, "ratio"), ({"ratio": -0.1}, "ratio"), ({"ratio": float("nan")}, "ratio"),
     ({"of": "watts"}, "watts"), ({"steps": 0}, "steps"), ({"min_filters": 0}, "min_filters"),
     ({"criterion": "luck"}, "luck")],
)  # fmt: skip
def test_nonsense_is_refused(options, message):
    with pytest.raises(schedule.TrimError, match=message):
        trim(**options)


def test_ratio_zero_changes_nothing_but_scores():
    net = network()
    result = trim(net, ratio=0.0, finetune=None)
    assert result.widths == cnn_small.WIDTHS and result.history == [] and result.achieved == 0
    assert all(torch.equal(value, result.state[key]) for key, value in net.state_dict().items())
    assert all(len(result.scores[path]) == width for path, width in cnn_small.WIDTHS.items())


def test_the_trained_model_is_not_changed():
    net = network().train()
    before = copy.deepcopy(net.state_dict())
    trim(net, ratio=0.5)
    assert net.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_build_that_ignores_widths_is_named():
    with pytest.raises(schedule.TrimError, match="does not give the network that trimming made") as caught:
        trim(build=lambda widths: cnn_small.build({**widths, "conv2": 32}, None))
    assert "conv2.weight" in str(caught.value)


def test_a_build_that_computes_something_else_is_caught():
    def build(widths):
        net = cnn_small.build(widths, None)
        net.norm2.eps *= 1.001
        return net

    with pytest.raises(schedule.TrimError, match="differs from the masked one"):
        trim(build=build)


def test_diverged_training_is_refused():
    net = network()
    net.conv1.weight.data[0] = float("nan")
    with pytest.raises(criteria.CriterionError, match="not a number"):
        trim(net)


def test_layers_of_the_output_are_whole_and_not_scored():
    class Segment(nn.Module):
        def __init__(self, widths):
            super().__init__()
            self.a, self.act = nn.Conv2d(1, widths["a"], 1), nn.ReLU()
            self.b = nn.Conv2d(widths["a"], 2, 1)

        def forward(self, x):
            return self.b(self.act(self.a(x))).mean((2, 3))

    torch.manual_seed(0)
    result = trim(Segment({"a": 8}), build=Segment, ratio=0.5, input_shape=(1, 8, 8))
    assert result.widths == {"a": 4, "b": 2}
    assert len(result.scores["b"]) == len(result.relevance["b"]) == 0 and result.kept["b"].tolist() == [0, 1]


def test_depthwise_layers_follow_theirs_down_to_one_channel():
    class Separable(nn.Module):
        def __init__(self, widths):
            super().__init__()
            a, b, c = (widths[name] for name in "abc")
            self.a, self.b = nn.Conv2d(1, a, 3), nn.Conv2d(a, 2 * a, 3, groups=a)
            self.c, self.act, self.last = nn.Conv2d(b, c, 1), nn.ReLU(), nn.Linear(c, 2)

        def forward(self, x):
            return self.last(self.act(self.c(self.act(self.b(self.act(self.a(x)))))).mean((2, 3)))

    torch.manual_seed(0)
    result = trim(Separable({"a": 4, "b": 8, "c": 5}), build=Separable, of="filters", ratio=13 / 17, steps=4)
    assert result.widths == {"a": 1, "b": 2, "c": 1}


def run(method, net, **changed):
    return methods.trimmed(
        net,
        build=lambda widths: cnn_small.build(widths, None),
        input_shape=(1, 8, 8),
        batches=lambda: [PICTURES[cnn_small]],
        finetune=lambda model, step: None,
        options=config.Trim(method=method, steps=changed.pop("steps", 2), **changed),
    )


def test_method_relevance_follows_the_recipe():
    net = network()
    result = run("relevance", net, ratio=0.6, of="parameters", steps=3, statistic="l2", min_filters=2)
    same = trim(net, ratio=0.6, of="parameters", steps=3, criterion="relevance_l2", min_filters=2)
    assert result.of == "parameters" and result.achieved >= 0.6 and len(result.history) == 3
    assert result.widths == same.widths


def test_method_none_leaves_everything():
    net = network()
    result = run("none", net)
    assert result.widths == cnn_small.WIDTHS and result.achieved == 0 == result.asked
    assert result.before == result.after == schedule.Budget(groups.trace(net, (1, 8, 8))).all()
    assert all(torch.equal(value, result.state[key]) for key, value in net.state_dict().items())
    assert result.kept.keys() == result.removed_at.keys() == result.scores.keys() == result.widths.keys()
