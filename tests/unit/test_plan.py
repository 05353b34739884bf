"""The planner on real graphs: legal and within the board, proven where it says so, and what it says when nothing fits.

The solver itself is held against brute force in test_folding.py, the depths against the C++ in test_fifo_threads.py.
"""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import hls4ml
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boards import board
from hls import cost, dataflow, folding, generated, layers, plan
from hls.cost import legal_reuse_factors
from hls.folding import RESOURCES, DoesNotFit, FoldingError
from hls.layers import describe
from hls.numerics import analyze
from hls.plan import PlanError, make_plan
from pipeline import config
from pipeline.gates import GateFailed, check
from pipeline.stages import plan as stage
from tests.graphs import Net, prepared, residual, tiny
from tests.hil.converted import convert_net

BACKEND = hls4ml.backends.get_backend("Vitis")
PYNQ = board.load("pynq-z2")


def tools_own(n_in, n_out):
    return [f for f in range(1, n_in * n_out + 1) if BACKEND._validate_reuse_factor(n_in, n_out, f)]


@given(st.integers(1, 40), st.integers(1, 40))
def test_legal_reuse_factors_are_the_tools_own(n_in, n_out):
    assert legal_reuse_factors(n_in, n_out) == tools_own(n_in, n_out)


@pytest.mark.parametrize(("n_in", "n_out"), [(27, 16), (9, 7), (144, 16), (1, 1), (1, 13), (13, 1), (225, 23)])
def test_legal_reuse_factors_of_usual_layers(n_in, n_out):
    assert legal_reuse_factors(n_in, n_out) == tools_own(n_in, n_out)


def with_resources(**amounts):
    """A PYNQ-Z2 with other amounts of something."""
    return replace(PYNQ, resources=dict(PYNQ.resources) | amounts)


MADE = {}


def described(name="tiny"):
    if name not in MADE:
        model = prepared({"tiny": tiny, "residual": residual}[name]())
        MADE[name] = model, analyze(model)
    return MADE[name]


def planned(name="tiny", **options):
    return make_plan(*described(name), **({"board": PYNQ} | options))


# ---------------------------------------------------------------------- what a plan says


def test_rows_describe_the_network():
    found = planned()
    stem, head = found["layers"]
    assert (stem["name"], stem["operation"], stem["n_in"], stem["n_out"]) == ("stem_conv", "Conv", 27, 4)
    assert (stem["pixels"], stem["macs"], stem["weights"]) == (16, 27 * 4 * 16, 108)
    assert (head["name"], head["operation"], head["n_in"], head["n_out"]) == ("head", "MatMul", 16, 3)
    assert head["pixels"] == 1 and head["macs"] == 48
    assert stem["input_bits"] == 8 and stem["weight_bits"] == 4
    assert [r["name"] for r in found["processes"]] == ["unpack", "zp2d_stem_conv", "Relu_0", "MaxPool_0", "pack"]
    totals = found["totals"]
    assert totals["macs"] == stem["macs"] + head["macs"] and totals["weights"] == 108 + 48
    slowest = max(found["layers"] + found["processes"], key=lambda r: r["cycles"])
    assert totals["bottleneck"] == slowest["name"] and totals["initiation_interval_cycles"] == slowest["cycles"]
    assert totals["frames_per_second"] == round(100e6 / totals["initiation_interval_cycles"], 1)
    assert totals["latency_us"] == totals["latency_cycles"] / 100
    assert json.loads(json.dumps(found)) == found


def test_every_figure_is_an_estimate_with_bounds():
    found = planned()
    assert found["evidence"] == "estimated (extrapolated)" and found["extrapolated"]
    for row in found["layers"] + found["processes"]:
        for name in RESOURCES:
            for figure in ("hls", "implemented"):
                one = row[name][figure]
                assert 0 <= one["lo"] <= one["value"] <= one["hi"]
    for name, row in found["resources"].items():
        assert row["implemented"]["lo"] <= row["implemented"]["value"] <= row["implemented"]["hi"]
        assert row["limit"] == int(row["available"] * 0.8), name
        # the total is that of its parts: what is planned is rounded up layer by layer
        assert 0 <= row["planned"] - row["implemented"]["value"] <= len(found["layers"]) + 1
    for name in ("initiation_interval_cycles", "latency_cycles"):
        bounds = found["totals"]["bounds"][name]
        assert bounds["lo"] <= found["totals"][name] <= bounds["hi"]


def test_fifos_hold_what_the_simulation_puts_in():
    found = planned("residual")
    network = dataflow.from_graph(*described("residual"), found, dataflow.timing_for(cost.Target()))
    depths = {name: row["depth"] for name, row in found["fifo"].items()}
    result = network.simulate(depths, frames=8)
    assert result.interval == found["totals"]["initiation_interval_cycles"]
    assert result.latency == found["totals"]["latency_cycles"]
    for name, row in found["fifo"].items():
        assert row["depth"] >= max(row["safe"], row["full_speed"]) and result.peaks[name] <= row["depth"]
        assert row["bits"] == network.bits[name]


# ---------------------------------------------------------------------- legal, within budget, the best


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(3_000, 60_000), st.integers(0, 140), st.integers(0, 220), st.sampled_from((0.0, 0.2, 0.4)))
def test_a_plan_is_legal_and_within_the_board(lut, bram36, dsp, margin):
    small = with_resources(lut=lut, bram36=bram36, dsp=dsp)
    found = planned("residual", board=small, margin=margin, over_budget=True)
    if not found["fits"]:
        assert any(row["planned"] > row["limit"] for row in found["resources"].values())
        return
    have = {"lut": lut, "ff": 106400, "bram18": 2 * bram36, "dsp": dsp}
    for name, row in found["resources"].items():
        assert row["implemented"]["value"] <= row["planned"] <= have[name] * (1 - margin)
    for row in found["layers"]:
        if row["strategy"] == "Resource":
            assert BACKEND._validate_reuse_factor(row["n_in"], row["n_out"], row["reuse_factor"])
        else:
            assert row["reuse_factor"] == 1


def test_nothing_faster_fits_where_it_is_proven():
    """Every combination of reuse factors of the tiny network, each with FIFOs of its own."""
    small = with_resources(lut=7000)
    found = planned(board=small, strategy="Resource")
    assert found["optimal"] and found["bound_interval_cycles"] == found["totals"]["initiation_interval_cycles"]
    factors = [legal_reuse_factors(r["n_in"], r["n_out"]) for r in found["layers"]]
    names, best = [r["name"] for r in found["layers"]], None
    for combination in itertools.product(*factors):
        asked = {n: {"reuse_factor": f} for n, f in zip(names, combination, strict=True)}
        one = planned(board=small, strategy="Resource", overrides=asked, over_budget=True)
        if one["fits"]:
            interval = one["totals"]["initiation_interval_cycles"]
            best = interval if best is None else min(best, interval)
    assert best == found["totals"]["initiation_interval_cycles"]


def test_a_smaller_board_gets_a_slower_plan():
    large, small = planned("residual"), planned("residual", board=with_resources(lut=12_500))
    assert small["resources"]["lut"]["planned"] <= 10_000
    assert small["totals"]["multipliers"] < large["totals"]["multipliers"]
    assert small["totals"]["initiation_interval_cycles"] > large["totals"]["initiation_interval_cycles"]


def test_a_rate_that_is_asked_for_is_reached_with_less():
    fast = planned("residual")
    found = planned("residual", frames_per_second=fast["totals"]["frames_per_second"] / 8)
    assert found["totals"]["frames_per_second"] >= fast["totals"]["frames_per_second"] / 8
    assert found["resources"]["lut"]["planned"] < fast["resources"]["lut"]["planned"]
    assert found["objective"] == "resources"
    with pytest.raises(FoldingError, match="cycles a frame are too few"):
        planned("residual", frames_per_second=1e7)


def test_least_latency_is_no_longer_than_that_of_the_least_interval():
    by_interval = planned("residual", board=with_resources(lut=12_500))
    by_latency = planned("residual", board=with_resources(lut=12_500), objective="latency")
    assert by_latency["totals"]["latency_cycles"] <= by_interval["totals"]["latency_cycles"]
    assert by_latency["objective"] == "latency" and not by_latency["optimal"]


# ---------------------------------------------------------------------- what was asked for


def test_one_reuse_factor_for_all_and_overrides():
    assert [r["reuse_factor"] for r in planned(reuse_factor=1)["layers"]] == [1, 1]
    # as the recipe writes a module's path
    found = planned(reuse_factor=1, overrides={"stem.conv": {"reuse_factor": 9}, "head": {"strategy": "Latency"}})
    assert [r["reuse_factor"] for r in found["layers"]] == [9, 1]
    assert found["layers"][1]["strategy"] == "Latency"


@pytest.mark.parametrize("strategy", ["Resource", "Latency"])
def test_the_strategy_that_is_asked_for(strategy):
    assert {r["strategy"] for r in planned(strategy=strategy)["layers"]} == {strategy}


def test_a_strategy_changes_what_a_layer_costs():
    one, other = (planned(strategy=s, reuse_factor=1)["layers"][0] for s in ("Resource", "Latency"))
    assert one["lut"]["hls"] != other["lut"]["hls"] and one["cycles"] != other["cycles"]


def test_an_illegal_reuse_factor_names_near_ones_that_hls4ml_accepts():
    with pytest.raises(FoldingError, match="reuse factor 5 is not legal for layer stem_conv") as caught:
        planned(overrides={"stem_conv": {"reuse_factor": 5}}, strategy="Resource")
    near = [int(f) for f in caught.value.fix.removeprefix("legal and near: ").split(", ")]
    assert near == sorted(near) and {3, 9} <= set(near)
    assert all(BACKEND._validate_reuse_factor(27, 4, f) for f in near)


def test_an_unknown_layer_names_the_known():
    with pytest.raises(PlanError, match="no layer is called stemm") as caught:
        planned(overrides={"stemm": {"reuse_factor": 1}})
    assert "stem_conv, head" in caught.value.fix


@pytest.mark.parametrize(("options", "words"), [
    ({"strategy": "Fast"}, "no strategy is called 'Fast'"),
    ({"objective": "beauty"}, "no objective is called 'beauty'"),
    ({"margin": 1.0}, "a margin of 1 leaves nothing"),
    ({"frames_per_second": -1.0}, "-1 frames per second are no rate"),
])  # fmt: skip
def test_a_request_without_sense_is_refused(options, words):
    with pytest.raises(FoldingError if "margin" in options or "frames_per_second" in options else PlanError,
                       match=words):
        planned(**options)


# ---------------------------------------------------------------------- when nothing fits


def test_a_board_that_is_too_small_is_refused_in_numbers_with_the_nearest_changes():
    small = with_resources(lut=9_000)
    words = r"no plan fits: an estimated [\d,]+ LUT are needed at least, [\d,]+ more than the 7,200 allowed"
    with pytest.raises(DoesNotFit, match=words) as caught:
        planned("residual", board=small)
    error = caught.value
    whole = planned("residual", board=small, over_budget=True)
    row = whole["resources"]["lut"]
    assert (error.shortage.available, error.shortage.missing) == (row["limit"], row["planned"] - row["limit"])
    takes = {r["name"]: r["lut"]["implemented"]["value"] for r in whole["layers"] + whole["processes"]}  # as shown
    assert error.exit_code == 1 and error.where == max(takes, key=takes.get)
    width, bits, larger = error.shortage.changes[-3:]
    # each is the nearest that helps: computed again here, one by one
    found = describe(*described("residual"))
    request = plan._request(found, board=small)
    assert not plan.fits(found, request)
    steps = list(folding.narrower(found))
    at = [text for text, _ in steps].index(width)
    assert [plan.fits(made, request) for _, made in steps[: at + 1]] == [False] * at + [True]
    tried = [plan.fits(made, request) for _, made in folding.fewer_bits(found)]
    assert (bits == "no change of bits alone is sure to be enough") == (not any(tried))
    name = larger.removeprefix("the board ")
    assert make_plan(*described("residual"), board=board.load(name))["fits"]
    assert all(text in str(error) for text in (width, bits, larger))


def test_asked_for_factors_that_do_not_fit_are_said_to_be_the_reason():
    with pytest.raises(DoesNotFit, match="strategies and reuse factors left to the planner"):
        planned("residual", reuse_factor=1, strategy="Resource", board=with_resources(lut=12_500))


def test_a_platform_that_alone_is_too_large_is_named():
    """No layer of this network takes a memory, but the DMA does."""
    with pytest.raises(DoesNotFit, match=r"BRAM18 are needed at least.* the platform's DMA takes most of them"):
        planned("residual", board=with_resources(bram36=1))


def test_what_a_process_takes_counts_the_fifos_it_fills(monkeypatch):
    monkeypatch.setattr(plan, "_fifo", lambda depth, bits, target: {"lut": depth * 100.0, "ff": 0, "dsp": 0,
                                                                    "bram18": 0})  # fmt: skip
    with pytest.raises(DoesNotFit, match="clone_Relu_0 takes most of them"):
        planned("residual", board=with_resources(lut=9_000))


def test_changes_keep_the_factors_that_were_asked_for():
    """What helps only with other reuse factors says so, or is not told."""
    small, asked = with_resources(lut=12_500), {"reuse_factor": 1, "strategy": "Resource"}
    with pytest.raises(DoesNotFit) as caught:
        planned("residual", board=small, **asked)
    found, (width, bits) = describe(*described("residual")), caught.value.shortage.changes[-3:-1]
    request = plan._request(found, board=small, **asked)
    at = {text: made for changes in (folding.narrower(found), folding.fewer_bits(found)) for text, made in changes}
    assert not plan.fits(at["95 % of the width of every hidden layer"], request)
    assert bits == "no change of bits alone is sure to be enough"
    assert not plan.fits(at["2 bits less for weights and activations"], request)
    assert width not in at or plan.fits(at[width], request)
    with pytest.raises(DoesNotFit, match="width of every hidden layer with another reuse factor of block1_conv1"):
        planned("residual", board=with_resources(lut=9_000), overrides={"block1_conv1": {"reuse_factor": 12}})


def depthwise():
    """Each channel alone, then all of them, twice; the input's and a hidden layer's."""
    net = Net((4, 6, 6))
    x = net.relu_quant(net.conv(net.input, 4, group=4, name="inputs"))
    x = net.relu_quant(net.conv(x, 8, 1, name="point"))
    x = net.relu_quant(net.conv(x, 8, group=8, name="alone"))
    return net.head(net.maxpool(x, 6))


def test_a_depthwise_layer_is_as_wide_as_what_it_reads():
    model = prepared(depthwise())
    found = describe(model, analyze(model))
    for _, made in folding.narrower(found):
        specs = {x.name: x.spec for x in made}
        assert (specs["inputs"].n_in, specs["inputs"].n_out) == (9, 4)
        assert (specs["alone"].n_in, specs["alone"].n_out) == (9, specs["point"].n_out)
        assert specs["head"].n_in == specs["alone"].n_out
        assert all(s.weights == s.n_in * s.n_out > 0 for s in specs.values() if s.kind in cost.MULTIPLYING)
    need = make_plan(model, analyze(model), board=with_resources(lut=1_000), over_budget=True)
    small = with_resources(lut=int(need["resources"]["lut"]["planned"] * 1.2))  # of which four fifths are allowed
    with pytest.raises(DoesNotFit, match=r"one of: a margin of [\d.]+; \d\d % of the width of every hidden layer"):
        make_plan(model, analyze(model), board=small)


def test_only_the_least_interval_is_called_proven():
    """The least resources at a rate are no proof that nothing is faster."""
    free, slow = planned(), planned(frames_per_second=1000.0)
    assert free["optimal"] and free["totals"]["frames_per_second"] > slow["totals"]["frames_per_second"]
    assert not slow["optimal"] and slow["bound_interval_cycles"] is None


def test_a_rate_that_only_the_layers_reach_is_refused(monkeypatch):
    """FIFOs as deep as the rate needs have no room; shallower ones are slower than was asked for."""
    interval = planned("residual")["totals"]["initiation_interval_cycles"]
    genuine = dataflow.safe_depths
    monkeypatch.setattr(dataflow, "safe_depths", lambda network, guard=False: genuine(network))
    dear = lambda depth, bits, target: {"lut": depth * 1e4 if depth > 20 else 0.0, "ff": 0, "dsp": 0, "bram18": 0}  # noqa: E731
    monkeypatch.setattr(plan, "_fifo", dear)
    slower = planned("residual")["totals"]["initiation_interval_cycles"]
    assert slower > interval
    with pytest.raises(PlanError, match=f"no room for FIFOs deep enough for {interval} cycles a frame: {slower} is"):
        planned("residual", frames_per_second=100e6 / (interval + 0.5))


def test_a_smaller_margin_is_told_where_it_is_enough():
    need = planned("residual", board=with_resources(lut=9_000), over_budget=True)["resources"]["lut"]["planned"]
    small = with_resources(lut=int(need / 0.88))
    with pytest.raises(DoesNotFit, match="one of: a margin of 0.1; ") as caught:
        planned("residual", board=small)
    assert caught.value.shortage.changes[0] == "a margin of 0.1"
    assert planned("residual", board=small, margin=0.1)["fits"]
    with pytest.raises(DoesNotFit):
        planned("residual", board=small, margin=0.15)


def test_over_budget_is_planned_only_where_that_is_asked_for():
    found = planned("residual", board=with_resources(lut=2_000), over_budget=True)
    assert found["fits"] is False and "LUT are needed at least" in found["shortage"]
    row = found["resources"]["lut"]
    assert row["planned"] > row["limit"]


def test_fifos_shrink_to_what_cannot_deadlock_where_memory_is_short(monkeypatch):
    """A FIFO that full speed wants deep, on a board without the room for it."""
    model, analysis = described("residual")
    roomy = planned("residual")
    deep = next(n for n, row in roomy["fifo"].items() if row["depth"] > 16)
    dear = lambda depth, bits, target: {"lut": depth * 4000.0 if depth > 60 else 0.0, "ff": 0, "dsp": 0, "bram18": 0}  # noqa: E731
    full = dict.fromkeys(roomy["fifo"], 2) | {deep: 90}
    monkeypatch.setattr(plan, "_fifo", dear)
    monkeypatch.setattr(dataflow, "plan_depths", lambda network: dataflow.Depths(full, full, full))
    found = planned("residual")
    assert found["fifo"][deep]["depth"] < 60
    network = dataflow.from_graph(model, analysis, found, dataflow.timing_for(cost.Target()))
    assert not network.simulate({n: row["depth"] for n, row in found["fifo"].items()}).deadlock


# ---------------------------------------------------------------------- the stage


class FakeContext:
    """What the stage gets from the engine."""

    def __init__(self, folder, network, board=PYNQ, **hls):
        (folder / "export").mkdir(parents=True)
        network.save(folder / "export" / "model.onnx")
        self.folder, self.inputs, self.board = folder, {"export": folder / "export"}, board
        self.recipe = SimpleNamespace(hls=config.Hls(**hls))
        self.metrics, self.gates = {}, {}

    def metric(self, name, value, evidence, unit=None, interval=None, **extra):
        assert evidence == "estimated"
        self.metrics[name] = {"value": value, "interval": interval, **extra}

    def gate(self, name, passed, detail, *, fix=None, **numbers):
        self.gates[name] = passed
        check(name, passed, detail, fix=fix, **numbers)


def test_the_stage_plans_what_the_recipe_asks_for(tmp_path):
    ctx = FakeContext(tmp_path, tiny(), clock_mhz=50.0, margin=0.5,
                      layers={"stem_conv": {"reuse_factor": 9, "strategy": "Resource"}})  # fmt: skip
    stage.run(ctx)
    assert ctx.gates == {"the design fits the board": True, "reuse factors are legal": True}
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["clock_mhz"] == 50.0 and found["margin"] == 0.5 and found["layers"][0]["reuse_factor"] == 9
    assert ctx.metrics["latency_cycles"]["value"] == found["totals"]["latency_cycles"]
    assert ctx.metrics["lut"]["value"] == found["resources"]["lut"]["implemented"]["value"]
    assert ctx.metrics["lut"]["extrapolated"] == found["extrapolated"]


def test_the_gate_is_shut_on_a_design_that_does_not_fit(tmp_path):
    ctx = FakeContext(tmp_path, residual(), board=with_resources(lut=9_000))
    with pytest.raises(GateFailed, match="'the design fits the board' is shut: no plan fits: an estimated") as caught:
        stage.run(ctx)
    assert caught.value.exit_code == 1 and "the board " in caught.value.fix
    assert ctx.gates == {"the design fits the board": False} and not ctx.metrics
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is False  # kept with the failure


@pytest.mark.parametrize("damage", [
    lambda found: found["resources"]["ff"].update(planned=found["resources"]["ff"]["limit"] + 1),
    lambda found: found["resources"]["bram18"].update(planned=float("nan")),
    lambda found: found.update(fits=False),
])  # fmt: skip
def test_the_gate_does_not_trust_the_planner(tmp_path, monkeypatch, damage):
    def faulty(*network, **asked):
        found = make_plan(*network, **asked)
        damage(found)
        return found

    monkeypatch.setattr(stage, "make_plan", faulty)
    with pytest.raises(GateFailed, match="'the design fits the board' is shut"):
        stage.run(FakeContext(tmp_path, tiny()))


def test_an_illegal_reuse_factor_shuts_the_gate(tmp_path, monkeypatch):
    def faulty(*network, **asked):
        found = make_plan(*network, **asked)
        found["layers"][0] |= {"strategy": "Resource", "reuse_factor": 5}
        return found

    monkeypatch.setattr(stage, "make_plan", faulty)
    with pytest.raises(GateFailed, match="'reuse factors are legal' is shut: stem_conv: 5"):
        stage.run(FakeContext(tmp_path, tiny()))


# ---------------------------------------------------------------------- smaller networks


def test_narrower_keeps_the_networks_inputs_and_outputs():
    found = describe(*described("residual"))
    text, made = list(folding.narrower(found))[9]
    assert text.startswith("50 %")
    before, after = ({x.name: x.spec for x in side} for side in (found, made))
    assert after["unpack"] == before["unpack"] and after["pack"].channels == before["pack"].channels
    assert after["stem"].n_in == before["stem"].n_in and after["stem"].n_out == before["stem"].n_out // 2
    assert after["head"].n_out == before["head"].n_out and after["head"].n_in == before["head"].n_in // 2
    for item in made:  # every tensor is as wide as its reader takes it
        for source in item.reads:
            if item.operation != "Concat":
                assert after[source].channels == item.spec.in_shape[-1], item.name
    assert cost.estimate(after.values(), cost.Target()).totals["lut"]["hls"]["value"] < \
        cost.estimate(before.values(), cost.Target()).totals["lut"]["hls"]["value"]


def test_fewer_bits_end_at_two_and_keep_what_the_host_sees():
    found = describe(*described("residual"))
    steps = [made for _, made in folding.fewer_bits(found)]
    last = {x.name: x.spec for x in steps[-1]}
    assert all(s.weight_bits == 2 for s in last.values() if s.kind in cost.MULTIPLYING)
    assert last["unpack"] == found[0].spec and last["pack"].output_bits == found[-1].spec.output_bits
    assert last["head"].output_bits == next(x.spec.output_bits for x in found if x.name == "head")
    sizes = [sum(x.spec.input_bits + x.spec.weight_bits for x in made) for made in [found, *steps]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


# ---------------------------------------------------------------------- the description


def test_a_token_is_as_wide_as_its_quantisers_grid(tmp_path):
    """Whatever the values in front of it fill of it: the generated C++ has the grid's type, behind padding too."""
    net = Net((2, 5, 5), bits=2)
    x = net.quant(net.conv(net.input, 2, 1, bits=2, lsb=0, bias=False, name="few"), 12, -2)
    x = net.quant(net.maxpool(net.conv(x, 3, bits=2, lsb=0, bias=False, name="padded"), 5), 20, -2)
    made = convert_net(net.head(x), tmp_path)
    built = dataflow.from_graph(made.model, made.analysis, made.plan)
    assert built.bits == dataflow.from_project(generated.read(made.project), made.io).bits
    assert built.bits["few->zp2d_padded"] == built.bits["zp2d_padded->padded"] == 2 * 12
    assert made.analysis.tensors[made.model.get_nodes_by_op_type("Quant")[1].output[0]].bits < 12


def test_weight_figures_hold_the_weights():
    net = Net((4,))
    w = net.quant(net.constant(np.array([[-8.0, 7, 0, 1]]).T / 8, "w.weight"), 4, -3)
    model = prepared(net.finish(net.dense(net.input, 1, weights=w, gemm=False, bias=None)))
    spec = next(x.spec for x in describe(model, analyze(model)) if x.multiplies)
    assert (spec.weight_bits, spec.input_bits, spec.n_in, spec.n_out) == (4, 8, 4, 1)
    assert (spec.nonzeros, spec.powers_of_two, spec.used_weight_bits) == (3, 2, 4)
    assert spec.csd_digits == 4  # 7 = 8 - 1


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=20))
def test_signed_digits_are_the_fewest(values):
    def fewest(n: int) -> int:
        """By the definition: odd numbers take the digit that leaves a multiple of four."""
        digits = 0
        while n:
            if n % 2:
                n -= 2 - n % 4
                digits += 1
            n //= 2
        return digits

    assert layers.weight_figures(np.array(values))["csd_digits"] == sum(fewest(v) for v in values)


def test_a_clone_stands_behind_each_fork():
    found = {x.name: x for x in describe(*described("residual"))}
    clones = [x for x in found.values() if x.kind == "clone"]
    assert clones and all(x.shape["copies"] == 2 for x in clones)
    for clone in clones:
        assert [n for n, x in found.items() if clone.name in x.reads].__len__() == 2
        assert found[clone.reads[0]].spec.out_shape == clone.spec.out_shape
