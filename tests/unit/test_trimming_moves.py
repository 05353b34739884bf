"""Granularity, allocation, schedule and targets on hardware: what goes, in which order, and how far."""

import numpy as np
import pytest
import torch

from boards import board as boards
from pipeline.models import cnn_small, resnet8, resnet20
from pipeline.trimming import criteria, groups, hardware, moves, schedule

BITS = {"weights": 4, "activations": 4, "input": 8, "layers": {}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(module=cnn_small):
    torch.manual_seed(0)
    return module.build(module.WIDTHS, None).eval()


def graph_of(module=cnn_small):
    return groups.trace(network(module), module.INPUT_SHAPE)


def pynq():
    return hardware.Hardware(boards.load("pynq-z2"), BITS)


def trim(module=cnn_small, **options):
    defaults = {"criterion": "l1", "steps": 1, "batches": lambda: (), "finetune": lambda model, step: None}
    return schedule.trim(
        network(module), build=lambda widths: module.build(widths, None), input_shape=module.INPUT_SHAPE,
        **(defaults | options),
    )  # fmt: skip


# --- granularity ---


SCORES = np.array([5.0, 1, 4, 8, 2, 7, 3, 6, 9])


def units(found):
    return [list(move.units) for move in found]


def test_filters_go_from_the_lowest_score():
    assert units(moves.moves_of("g", SCORES)) == [[i] for i in np.argsort(SCORES)]


def test_consecutive_clusters_are_those_of_the_public_account():
    """G = sum over the cluster of F * rank / size, by hand; the last cluster is what is left over."""
    found = moves.moves_of("g", SCORES, cluster_size=2, order="consecutive", rank_weighted=True)
    ranks = {index: place for place, index in enumerate(np.argsort(SCORES), 1)}
    by_hand = {
        tuple(c): sum(SCORES[i] * ranks[i] / 9 for i in c) / len(c) for c in ([0, 1], [2, 3], [4, 5], [6, 7], [8])
    }
    assert {move.units: move.score for move in found} == pytest.approx(by_hand)
    assert [move.units for move in found] == sorted(by_hand, key=by_hand.get)
    plain = moves.moves_of("g", SCORES, cluster_size=2, order="consecutive")
    assert plain[0].units == (0, 1) and plain[0].score == 3.0


def test_sorted_clusters_take_the_lowest_together():
    assert units(moves.moves_of("g", SCORES, cluster_size=3, order="sorted")) == [[1, 4, 6], [0, 2, 7], [3, 5, 8]]


@pytest.mark.parametrize("order", moves.ORDERS)
def test_allowed_widths_are_all_that_is_reached(order):
    found = moves.moves_of("g", SCORES, widths=[2, 4, 7, 9], order=order)
    left, reached = 9, []
    for move in found:
        left -= len(move.units)
        reached.append(left)
    assert reached == [7, 4, 2] and len({unit for move in found for unit in move.units}) == 7
    if order == "sorted":
        assert found[0].units == (1, 4)
    else:
        assert found[0].units == (1, 2)  # 1 + 4 is the least of all neighbors


def test_a_refused_step_between_widths_ends_its_group():
    graph = graph_of()
    made = {"conv1": moves.moves_of("conv1", np.arange(16.0), widths=[2, 5, 16])}
    budget = schedule.Budget(graph)
    assert moves.follow(budget, made["conv1"], lambda: False, 6) == {}
    assert len(moves.follow(budget, made["conv1"], lambda: False, 3)["conv1"]) == 11


@pytest.mark.parametrize("multiple", [4, 5])
def test_channel_multiple(multiple):
    result = trim(granularity="channel_multiple", channel_multiple=multiple, ratio=0.6)
    assert result.achieved >= 0.6
    for layer, width in result.widths.items():
        assert width % multiple == 0 or width == cnn_small.WIDTHS[layer]


@pytest.mark.parametrize("order", moves.ORDERS)
def test_clusters_of_a_number(order):
    result = trim(granularity="cluster", cluster_size=8, cluster_order=order, ratio=0.5)
    assert all(width % 8 == 0 for width in result.widths.values()) and result.achieved >= 0.5
    if order == "consecutive":
        for kept in result.kept.values():
            assert (kept.reshape(-1, 8) % 8 == np.arange(8)).all()


def test_rounding_goes_to_the_nearest_with_a_floor():
    allowed = [4, 8, 12, 16]
    assert [moves.rounded(w, allowed, 1) for w in (5.9, 6, 6.1, 1, 99)] == [4, 8, 8, 4, 16]
    assert moves.rounded(3, allowed, 5) == 8 and moves.rounded(3, [4], 5) == 4  # never below, never nothing


# --- allocation ---


def test_uniform_takes_the_same_share_everywhere():
    result = trim(allocation="uniform", of="filters", ratio=0.5)
    assert result.widths == {"conv1": 8, "conv2": 16, "conv3": 16}


def test_uniform_rounds_to_the_nearest_allowed_width():
    result = trim(
        resnet8, allocation="uniform", granularity="channel_multiple", channel_multiple=8, of="filters", ratio=0.45
    )
    assert all(width % 8 == 0 for width in result.widths.values())
    shares = [(1 - (width + 4) / resnet8.WIDTHS[layer], 1 - (width - 4) / resnet8.WIDTHS[layer])
              for layer, width in result.widths.items()]  # fmt: skip
    assert max(low for low, _ in shares) <= min(high for _, high in shares)  # one share explains all of them


def test_isomorphic_shares_out_within_equal_structure():
    graph = graph_of(resnet8)
    kinds = {name: moves.structure(graph, name) for name in graph.groups}
    assert len(set(kinds.values())) == 6  # nothing in resnet8 repeats
    graph = graph_of(resnet20)
    kinds = {name: moves.structure(graph, name) for name in graph.groups}
    same = {"block1.conv1", "block2.conv1", "block3.conv1"}
    assert {name for name in kinds if kinds[name] == kinds["block1.conv1"]} == same
    scores = {name: np.full(group.size, 5.0) for name, group in graph.groups.items()}
    scores["block2.conv1"] = np.arange(16) / 1000  # the least of its class, and of all
    order = moves.ordered(graph, {n: moves.moves_of(n, s) for n, s in scores.items()}, "isomorphic")
    first = order[: len(order) // 2]
    gone = {name: sum(move.group == name for move in first) for name in graph.groups}
    assert gone["block2.conv1"] == 16 and sum(gone[name] for name in same) == pytest.approx(24, abs=1)
    # The others lose their half, whatever the scores of that class.
    assert all(gone[name] == pytest.approx(graph.groups[name].size / 2, abs=1) for name in ("conv1", "block4.conv2"))


def test_global_takes_the_lowest_of_all():
    graph = graph_of()
    scores = {name: np.arange(group.size) + 100 * place for place, (name, group) in enumerate(graph.groups.items())}
    order = moves.ordered(graph, {n: moves.moves_of(n, s) for n, s in scores.items()}, "global")
    assert [move.score for move in order] == sorted(move.score for move in order)


def test_widths_given():
    result = trim(allocation="widths", widths={"conv1": 5, "conv3": 20}, steps=3)
    assert result.widths == {"conv1": 5, "conv2": 32, "conv3": 20} and result.asked == result.achieved > 0
    assert [entry["widths"]["conv1"] for entry in result.history] == [12, 9, 5]
    magnitude = network().conv1.weight.abs().sum((1, 2, 3)).detach().numpy()
    assert len(result.kept["conv1"]) == 5
    assert set(trim(allocation="widths", widths={"conv1": 5}).kept["conv1"]) == set(np.argsort(magnitude)[-5:])


@pytest.mark.parametrize("rule", criteria.WIDTHS)
def test_widths_from_the_spectrum(rule):
    pictures = torch.rand(60, 1, 8, 8)
    options = {"batches": lambda: pictures.split(20), "criterion": rule, "allocation": rule}
    result = trim(**options)
    graph = graph_of()
    statistics = criteria.collect(graph, pictures.split(20), criteria.needed(rule))
    assert result.widths == {name: criteria.WIDTHS[rule](group, statistics) for name, group in graph.groups.items()}
    rounded = trim(**options, granularity="channel_multiple", channel_multiple=8)
    assert all(width % 8 == 0 and abs(width - result.widths[layer]) <= 4 for layer, width in rounded.widths.items())


# --- schedule ---


def test_polynomial_takes_most_at_first():
    targets = [moves.target_of_step(0.8, step, 4, "polynomial") for step in range(1, 5)]
    assert targets == pytest.approx([0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3), 0.8])
    result = trim(schedule="polynomial", steps=4, ratio=0.8)
    assert [entry["target"] for entry in result.history] == targets
    assert len(trim(schedule="one-shot", steps=4).history) == 1


# --- hardware ---


def test_a_target_of_predicted_cycles_lut_or_bram_is_met():
    board = pynq()
    for of, ratio in (("cycles", 0.5), ("lut", 0.3), ("bram18", 0.3)):
        result = trim(resnet8, of=of, ratio=ratio, board=board, criterion="random")
        assert result.achieved >= ratio and result.history[-1]["achieved"] == result.achieved
    smaller = groups.trace(resnet8.build(result.widths, None), resnet8.INPUT_SHAPE)
    size = {path: [len(layer.inputs), len(layer.outputs)] for path, layer in smaller.layers.items()}
    plan = board.network(smaller, size)
    assert result.after["cycles"] == plan.interval() and plan.fits(plan.interval())


def test_the_plan_is_the_fastest_that_fits():
    graph, board = graph_of(resnet8), pynq()
    size = {path: [len(layer.inputs), len(layer.outputs)] for path, layer in graph.layers.items()}
    plan = board.network(graph, size)
    candidates = {choice.cycles for choices in plan.layers.values() for choice in choices}
    assert plan.interval() == min(interval for interval in candidates if plan.fits(interval))


def test_fit_stops_where_the_board_carries_it_and_says_where_it_cannot():
    board = pynq()
    result = trim(resnet20, of="fit", ratio=0, board=board, criterion="random")
    assert result.asked == result.achieved == 1.0 and result.after["lut"] <= board.limits["lut"]
    tight = pynq()
    tight.limits = {"lut": 9000, "bram18": 10}
    with pytest.raises(schedule.TrimError, match=r"does not fit pynq-z2 however much is trimmed.* lut of 9000") as told:
        trim(resnet20, of="fit", ratio=0, board=tight)
    assert told.value.fix


def test_clusters_from_the_hardware_are_its_steps():
    board, graph = pynq(), graph_of()
    useful = board.useful(graph, schedule.Budget(graph).size)
    result = trim(granularity="cluster", cluster_size="auto", cluster_order="sorted", ratio=0.5, board=board)
    assert result.achieved >= 0.5 and all(width in useful[layer] for layer, width in result.widths.items())
    assert any(len(widths) < cnn_small.WIDTHS[layer] for layer, widths in useful.items())


def test_steps_are_before_a_memory_or_a_jump_and_never_dominated():
    flat = [(100.0 + 10 * w, 1.0 if w <= 3 else 2.0) for w in range(1, 7)]
    assert hardware.steps(flat) == [3, 6]
    jump = [(100.0 + 10 * w + (50 if w > 4 else 0), 1.0) for w in range(1, 7)]
    assert hardware.steps(jump) == [4, 6]
    dominated = [(100.0, 1.0), (150.0, 1.0), (110.0, 1.0), (120.0, 1.0)]
    assert 2 not in hardware.steps(dominated)
    assert hardware.steps([(5.0, 1.0)]) == [1]


def test_what_has_no_speed_has_no_cycles_to_lose():
    from pipeline.models import resnet56

    with pytest.raises(hardware.HardwareError, match="does not fit pynq-z2 at any speed"):
        pynq().measure(graph_of(resnet56), "cycles")


# --- bad input ---


@pytest.mark.parametrize(
    "options,words",
    [({"widths": {"conv1": 5}}, "allocation"), ({"allocation": "widths"}, "allocation"),
     ({"allocation": "widths", "widths": {"conv9": 5}}, "no layer"),
     ({"allocation": "widths", "widths": {"conv1": 17}}, "17 filters do not fit a layer of 16"),
     ({"granularity": "cluster", "cluster_size": 17}, "larger than the layer, which has 16"),
     ({"granularity": "cluster", "cluster_size": "auto"}, "needs a board"), ({"of": "cycles"}, "needs a board"),
     ({"allocation": "luck"}, "luck"), ({"granularity": "crumb"}, "crumb"), ({"schedule": "never"}, "never"),
     ({"granularity": "channel_multiple", "channel_multiple": 8, "ratio": 0.99}, "is the most")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_trained(options, words):
    def finetune(model, step):
        raise AssertionError("trained")

    with pytest.raises(schedule.TrimError, match=words):
        trim(finetune=finetune, **options)


def test_coupled_layers_need_one_width():
    with pytest.raises(schedule.TrimError, match="coupled with conv1") as caught:
        trim(resnet8, allocation="widths", widths={"conv1": 8, "block1.conv2": 9})
    assert "block1.conv2" in caught.value.where
