"""The planner: against brute force on small problems, legal and within budget on real ones, and what it says when
nothing fits."""

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hls import folding
from hls.cost import legal_reuse_factors
from hls.folding import RESOURCES, DoesNotFit, FoldingError, Option
from tests.flows import Flow, layers_of, resnet, textbook_cost

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BOARD = {"lut": 53200, "ff": 106400, "bram36": 140, "dsp": 220}


def small(filters: int = 4):
    """(network, layers) of three layers."""
    flow = Flow(6)
    flow.conv("a", filters)
    flow.conv("b", filters, stride=2)
    flow.dense("c", 3)
    network = flow.network()
    return network, layers_of(network, {"a": filters, "b": filters, "c": 3}, {"a": 3, "b": filters, "c": filters})


def resnet20():
    network, widths = resnet(3).network(), {}
    for p in network.processes:
        widths[p.name] = 16 << int(p.name[1]) if p.name[0] == "s" and p.name[1].isdigit() else 16
    inputs = dict(widths) | {"stem": 3, "classifier": 64}
    for name in ("s1b0c1", "s1b0short", "s2b0c1", "s2b0short"):
        inputs[name] = widths[name] // 2
    return network, layers_of(network, widths | {"classifier": 10}, inputs)


def plans(choices):
    """Every plan, as layer -> option."""
    return (dict(zip(choices, combination, strict=True)) for combination in itertools.product(*choices.values()))


def amounts(plan) -> dict[str, int]:
    return {r: sum(o.cost.get(r, 0) for o in plan.values()) for r in RESOURCES}


def share(plan, board) -> int:
    return sum(o.cost.get(r, 0) * folding.UNIT // max(board[r], 1) for o in plan.values() for r in RESOURCES)


COSTS = st.fixed_dictionaries({r: st.integers(0, 30) for r in RESOURCES})
OPTIONS = st.lists(st.builds(Option, st.just("Resource"), st.integers(1, 9), st.integers(1, 40), COSTS),
                   min_size=1, max_size=4, unique_by=lambda o: o.reuse_factor)
CHOICES = st.dictionaries(st.sampled_from("abcd"), OPTIONS, min_size=1, max_size=4)
LIMIT = st.fixed_dictionaries({r: st.integers(1, 80) for r in RESOURCES})


# --------------------------------------------------------------------------- optimal


@QUICK
@given(CHOICES, LIMIT, st.integers(0, 30))
def test_the_fastest_plan_is_the_one_brute_force_finds(choices, limit, floor):
    fitting = [p for p in plans(choices) if all(amounts(p)[r] <= limit[r] for r in RESOURCES)]
    if not fitting:
        with pytest.raises(DoesNotFit):
            folding.fastest(choices, limit, floor=floor)
        assert not folding.fits(choices, limit)
        return
    assert folding.fits(choices, limit)
    found = folding.fastest(choices, limit, floor=floor)
    interval = lambda p: max([floor, *(o.cycles for o in p.values())])  # noqa: E731
    best = min(map(interval, fitting))
    assert found.optimal and found.least and found.interval == best == interval(found.chosen)
    assert found.used == amounts(found.chosen) and all(found.used[r] <= limit[r] for r in RESOURCES)
    assert share(found.chosen, limit) == min(share(p, limit) for p in fitting if interval(p) <= best)


@QUICK
@given(CHOICES, LIMIT, st.integers(1, 40))
def test_the_cheapest_plan_is_the_one_brute_force_finds(choices, board, interval):
    fitting = [p for p in plans(choices) if max(o.cycles for o in p.values()) <= interval]
    if not fitting:
        with pytest.raises(FoldingError, match="at its fastest"):
            folding.cheapest(choices, interval, board)
        return
    found = folding.cheapest(choices, interval, board)
    assert found.optimal and found.interval <= interval
    within = [p for p in fitting if all(amounts(p)[r] <= board[r] for r in RESOURCES)]
    assert share(found.chosen, board) == min(share(p, board) for p in within or fitting)


@QUICK
@given(OPTIONS)
def test_only_useless_options_are_dropped(options):
    kept = folding.undominated(options)
    better = lambda k, o: k.cycles <= o.cycles and all(k.cost[r] <= o.cost[r] for r in RESOURCES)  # noqa: E731
    assert all(any(better(k, o) for k in kept) for o in options)
    assert not any(better(k, o) for k in kept for o in kept if k is not o)


def test_resnet20_is_proven_optimal_in_ten_seconds():
    network, layers = resnet20()
    begin = time.perf_counter()
    choices = folding.choices_of(network, layers, textbook_cost, strategies=("Resource", "Latency"))
    found = folding.fastest(choices, folding.limits(BOARD), floor=folding.floor_of(network, choices))
    assert time.perf_counter() - begin < 10
    assert found.optimal and len(found.chosen) == 22
    assert folding.apply(network, found.chosen).simulate().interval == found.interval
    assert found == folding.fastest(choices, folding.limits(BOARD), floor=folding.floor_of(network, choices))


# --------------------------------------------------------------------------- legal and within budget


@QUICK
@given(st.integers(2, 9), st.fixed_dictionaries({r: st.integers(1, n) for r, n in BOARD.items()}),
       st.sampled_from((0.0, 0.2, 0.5)))
def test_a_plan_is_legal_and_within_the_budget(filters, board, margin):
    network, layers = small(filters)
    choices = folding.choices_of(network, layers, textbook_cost, strategies=("Resource", "Latency"))
    try:
        found = folding.fastest(choices, folding.limits(board, margin), floor=folding.floor_of(network, choices))
    except DoesNotFit:
        return
    for layer in layers:
        option = found.chosen[layer.name]
        if option.strategy == "Resource":
            assert option.reuse_factor in legal_reuse_factors(layer.n_in, layer.n_out)
        else:
            assert option.reuse_factor == 1 and layer.weights <= folding.MOST_UNROLLED
        made = textbook_cost(replace(layer, reuse_factor=option.reuse_factor, strategy=option.strategy.lower()))
        assert all(option.cost[r] >= made[r] for r in RESOURCES)
    have = dict(board) | {"bram18": 2 * board["bram36"]}
    assert all(found.used[r] <= have[r] * (1 - margin) for r in RESOURCES)
    assert folding.apply(network, found.chosen).simulate(frames=6).interval == found.interval


def test_the_inverse_reaches_the_rate_with_less():
    network, layers = small()
    choices = folding.choices_of(network, layers, textbook_cost)
    limit, floor = folding.limits(BOARD), folding.floor_of(network, choices)
    fast = folding.fastest(choices, limit, floor=floor)
    interval = folding.interval_for(100e6 / (4 * fast.interval), 100.0)
    slow = folding.cheapest(choices, interval, limit, floor=floor)
    assert slow.interval <= interval and slow.used["lut"] < fast.used["lut"]
    with pytest.raises(FoldingError, match="are too few: a process without a reuse factor takes"):
        folding.cheapest(choices, floor - 1, limit, floor=floor)


def test_reuse_factors_that_are_asked_for_stay():
    network, layers = small()
    found = folding.fastest(folding.choices_of(network, layers, textbook_cost, pinned={"b": 12}), folding.limits(BOARD))
    assert found.chosen["b"].reuse_factor == 12
    with pytest.raises(FoldingError, match="reuse factor 5 is not legal for layer b"):
        folding.choices_of(network, layers, textbook_cost, pinned={"b": 5})
    with pytest.raises(FoldingError, match="no layer is called z"):
        folding.choices_of(network, layers, textbook_cost, pinned={"z": 1})


# --------------------------------------------------------------------------- latency


def test_latency_is_between_the_bound_and_every_simulated_plan_tried():
    network, layers = small(2)
    choices = folding.choices_of(network, layers, textbook_cost)
    limit = folding.limits({"lut": 900, "ff": 106400, "bram36": 140, "dsp": 220})
    found = folding.fastest_first(choices, limit, network)
    fitting = [p for p in plans(choices) if all(amounts(p)[r] <= limit[r] for r in RESOURCES)]
    latencies = [folding.apply(network, p).simulate(None, frames=2).latency for p in fitting]
    assert len(fitting) > 20
    assert found.bound <= min(latencies) <= found.latency <= 1.02 * min(latencies)
    assert found.latency == folding.apply(network, found.chosen).simulate().latency
    assert found.latency <= folding._latency(network, folding.fastest(choices, limit).chosen)


# --------------------------------------------------------------------------- nothing fits


def test_what_is_short_is_said_in_numbers():
    network, layers = small()
    choices = folding.choices_of(network, layers, textbook_cost)
    least = {n: min(options, key=lambda o: o.cost["lut"]) for n, options in choices.items()}
    need = amounts(least)["lut"]
    limit = folding.limits(BOARD) | {"lut": need - 7}
    with pytest.raises(DoesNotFit) as caught:
        folding.fastest(choices, limit)
    short = caught.value.shortage
    assert (short.resource, short.available, short.missing) == ("lut", need - 7, 7)
    assert short.layer == max(least, key=lambda n: least[n].cost["lut"])
    assert f"{need} LUT are needed at least, 7 more than the {need - 7} allowed" in str(caught.value)
    folding.fastest(choices, limit | {"lut": need})
    with pytest.raises(DoesNotFit, match="needed at least, 1 more than"):
        folding.fastest(choices, limit | {"lut": need - 1})


# --------------------------------------------------------------------------- bad input


def test_what_cannot_be_planned_is_refused(monkeypatch):
    network, layers = small()
    with pytest.raises(FoldingError, match="no strategy is called 'Fast'"):
        folding.choices_of(network, layers, textbook_cost, strategies=("Fast",))
    with pytest.raises(FoldingError, match="does not say how much dsp"):
        folding.limits({"lut": 1, "ff": 1, "bram36": 1})
    with pytest.raises(FoldingError, match="does not say how much bram18"):
        folding.limits({"lut": 1, "ff": 1, "dsp": 1})
    with pytest.raises(FoldingError, match="a margin of 1 leaves nothing"):
        folding.limits(BOARD, 1)
    with pytest.raises(FoldingError, match="are no rate"):
        folding.interval_for(0, 100.0)
    wide = [replace(layers[0], weights=layers[0].weights * 1000), *layers[1:]]
    with pytest.raises(FoldingError, match="cannot be unrolled"):
        folding.choices_of(network, wide, textbook_cost, strategies=("Latency",))
    monkeypatch.setattr(folding, "PROOF_EFFORT", 0.0)
    with pytest.raises(FoldingError, match="no plan was found and none excluded"):
        folding.fastest(folding.choices_of(*resnet20(), textbook_cost), folding.limits(BOARD))
