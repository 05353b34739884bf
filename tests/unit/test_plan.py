"""Reuse factors that hls4ml accepts as they are, balanced within the board's limit; what a bad request is told."""

import hls4ml
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hls import plan
from hls.numerics import analyze
from hls.plan import Layer, PlanError, legal_reuse_factors, make_plan, parallel_tensors
from tests.graphs import Net, prepared, residual, tiny

BACKEND = hls4ml.backends.get_backend("Vitis")


def tools_own(n_in, n_out):
    return [f for f in range(1, n_in * n_out + 1) if BACKEND._validate_reuse_factor(n_in, n_out, f)]


@given(st.integers(1, 40), st.integers(1, 40))
def test_legal_reuse_factors_are_the_tools_own(n_in, n_out):
    assert legal_reuse_factors(n_in, n_out) == tools_own(n_in, n_out)


@pytest.mark.parametrize(("n_in", "n_out"), [(27, 16), (9, 7), (144, 16), (1, 1), (1, 13), (13, 1), (225, 23)])
def test_legal_reuse_factors_of_usual_layers(n_in, n_out):
    assert legal_reuse_factors(n_in, n_out) == tools_own(n_in, n_out)


def layer(name="x", n_in=9, n_out=4, pixels=16, pixels_in=36, weight_bits=4, input_bits=4, accumulator_bits=12):
    return Layer(name, "Conv", n_in, n_out, pixels, pixels_in, weight_bits, input_bits, accumulator_bits)


layers = st.lists(
    st.builds(layer, n_in=st.integers(1, 40), n_out=st.integers(1, 20), pixels=st.integers(1, 200),
              pixels_in=st.integers(1, 300), weight_bits=st.integers(2, 8), input_bits=st.integers(1, 8)),
    min_size=1, max_size=5,
).map(lambda found: [Layer(**{**vars(x), "name": f"layer{i}"}) for i, x in enumerate(found)])  # fmt: skip


def cost(found, chosen):
    return sum(x.multipliers(chosen[x.name]) * plan.lut_per_multiplier(x) for x in found)


@given(layers, st.floats(10, 1e5))
def test_balance_stays_below_the_limit_and_no_faster_plan_fits(found, limit):
    legal = {x.name: legal_reuse_factors(x.n_in, x.n_out) for x in found}
    least = {name: max(factors) for name, factors in legal.items()}
    try:
        chosen = plan._balance(found, legal, {}, limit)
    except PlanError:
        assert cost(found, least) > limit
        return
    assert all(chosen[name] in legal[name] for name in legal)
    assert cost(found, chosen) <= limit
    interval = max(x.cycles(chosen[x.name]) for x in found)
    # at any shorter interval even the cheapest choice is impossible or too large
    for shorter in {x.cycles(f) for x in found for f in legal[x.name]}:
        if shorter >= interval:
            continue
        options = {x.name: [f for f in legal[x.name] if x.cycles(f) <= shorter] for x in found}
        assert any(not o for o in options.values()) or cost(found, {n: max(o) for n, o in options.items()}) > limit


def planned(net=None, **options):
    model = prepared(net or tiny())
    return make_plan(model, analyze(model), **({"lut": 53200, "clock_mhz": 100.0} | options))


def test_rows_describe_the_network():
    found = planned()
    stem, head = found["layers"]
    assert (stem["name"], stem["operation"], stem["n_in"], stem["n_out"]) == ("stem_conv", "Conv", 27, 4)
    assert (stem["pixels"], stem["macs"], stem["weights"]) == (16, 27 * 4 * 16, 108)
    assert (head["name"], head["operation"], head["n_in"], head["n_out"]) == ("head", "MatMul", 16, 3)
    assert head["pixels"] == 1 and head["macs"] == 48
    assert stem["input_bits"] == 8 and stem["weight_bits"] == 4
    totals = found["totals"]
    assert totals["macs"] == stem["macs"] + head["macs"] and totals["weights"] == 108 + 48
    assert totals["initiation_interval_cycles"] == max(r["cycles"] for r in found["layers"])
    assert totals["frames_per_second"] == round(100e6 / totals["initiation_interval_cycles"], 1)
    assert found["evidence"] == "estimated"


def test_a_smaller_board_gets_a_slower_plan():
    large, small = planned(lut=100_000), planned(lut=6000)
    assert small["totals"]["lut_multipliers"] <= small["limits"]["lut_multipliers"] == round(6000 * 0.35)
    assert small["totals"]["multipliers"] < large["totals"]["multipliers"]
    assert small["totals"]["initiation_interval_cycles"] > large["totals"]["initiation_interval_cycles"]


def test_a_board_that_is_too_small_is_refused_with_the_worst_layer():
    with pytest.raises(PlanError, match="even at the largest legal reuse factors; 2 are set aside") as caught:
        planned(lut=5)
    assert caught.value.where in ("stem_conv", "head") and "larger board" in caught.value.fix


def test_one_reuse_factor_for_all_and_overrides():
    assert [r["reuse_factor"] for r in planned(reuse_factor=1, lut=10**6)["layers"]] == [1, 1]
    found = planned(reuse_factor=1, lut=10**6, overrides={"stem.conv": 9})  # as the recipe writes a module's path
    assert [r["reuse_factor"] for r in found["layers"]] == [9, 1]


def test_an_illegal_reuse_factor_names_near_ones_that_hls4ml_accepts():
    with pytest.raises(PlanError, match="reuse factor 5 is not legal for layer stem_conv") as caught:
        planned(overrides={"stem_conv": 5})
    near = [int(f) for f in caught.value.fix.removeprefix("legal and near: ").split(", ")]
    assert near == sorted(near) and {3, 9} <= set(near)
    assert all(BACKEND._validate_reuse_factor(27, 4, f) for f in near)


def test_asked_for_factors_that_do_not_fit_say_so():
    with pytest.raises(PlanError, match="asked for"):
        planned(reuse_factor=1, lut=2000)


def test_an_unknown_layer_names_the_known():
    with pytest.raises(PlanError, match="no layer is called stemm") as caught:
        planned(overrides={"stemm": 1})
    assert "stem_conv, head" in caught.value.fix


# ---------------------------------------------------------------------- forks


def test_a_chain_has_no_parallel_tensors():
    assert parallel_tensors(prepared(tiny())) == set()


def test_parallel_tensors_of_residual_blocks():
    model = prepared(residual())
    found = parallel_tensors(model)
    adds = [n for n in model.graph.node if n.op_type == "Add" and all(i in found for i in n.input)]
    assert len(adds) == 2  # both inputs of both joins are covered
    names = {n.name: n for n in model.graph.node}
    for layer in ("block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2", "block2_shortcut"):
        assert names[layer].output[0] in found
        assert names["stem"].output[0] not in found
    assert not found & {n.output[0] for n in adds}  # the joins themselves are chains again
    assert names["head"].output[0] not in found and model.graph.output[0].name not in found


def test_a_fork_whose_branches_do_not_meet_is_no_pair():
    net = Net((4,))
    x = net.quant(net.dense(net.input, 4), 5)
    net.dense(x, 3)  # read by nobody
    assert parallel_tensors(prepared(net.finish(net.dense(x, 3)))) == set()


def test_weight_bits_hold_the_weights():
    net = Net((4,))
    w = net.quant(net.constant(np.array([[-8.0, 7, 0, 1]]).T / 8, "w.weight"), 4, -3)
    model = prepared(net.finish(net.dense(net.input, 1, weights=w, gemm=False, bias=None)))
    (found,) = plan.layers_of(model, analyze(model))
    assert (found.weight_bits, found.input_bits, found.n_in, found.n_out) == (4, 8, 4, 1)
