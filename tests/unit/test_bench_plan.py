"""The planning benchmark: what it compares is legal, within the budget, and the best there is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boards.board import load as load_board
from hls import cost, dataflow
from hls.plan import plan_layers
from pipeline import bench_plan

BOARD = load_board("pynq-z2")


def small():
    """Two convolutions, a sum of two branches, a classifier; on 8x8 pixels."""
    sketch = bench_plan.Sketch(8, 2)
    at = sketch.conv("a", 4)
    sketch.pool("p")
    at = sketch.conv("b", 4)
    branch = sketch.conv("c", 4, source=at)
    sketch.add("d", branch, at)
    sketch.dense("e", 5)
    return sketch.processes()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 500))
def test_closest_is_what_hls4ml_takes(n_in, n_out, wanted):
    from hls4ml.backends.fpga.fpga_backend import FPGABackend

    legal = cost.legal_reuse_factors(n_in, n_out)
    assert bench_plan.closest(legal, wanted) == FPGABackend.get_closest_reuse_factor(None, legal, wanted)


def test_a_sketch_is_a_network_with_clones_where_tensors_fork():
    found = small()
    network = dataflow.from_layers(found)
    assert [x.name for x in found if x.spec.kind == "clone"] == ["clone_act_b"]
    assert not network.simulate(None).deadlock
    assert {x.name: x.spec.weights for x in found if x.multiplies} == {
        "a": 9 * 2 * 4, "b": 9 * 4 * 4, "c": 9 * 4 * 4, "e": 4 * 4 * 4 * 5}
    depth = sum(x.multiplies and x.spec.kernel != (1, 1) for x in bench_plan.resnet(3))
    assert depth == 20  # 19 convolutions and the classifier; two shortcuts apart


def test_the_best_uniform_factor_is_the_best_of_all_and_no_better_than_ours():
    found = small()
    best = bench_plan.best_uniform(found, BOARD)
    weighted = [x for x in found if x.multiplies]
    legal = {x.name: cost.legal_reuse_factors(x.spec.n_in, x.spec.n_out) for x in weighted}
    latencies = {}
    for factor in set().union(*legal.values()):
        plan = plan_layers(found, board=BOARD, strategy="Resource", over_budget=True, overrides={
            n: {"reuse_factor": bench_plan.closest(f, factor)} for n, f in legal.items()})
        if plan["fits"]:
            latencies[factor] = plan["totals"]["latency_cycles"]
    assert best["latency_cycles"] == min(latencies.values()) == latencies[best["reuse_factor"]]
    assert bench_plan.ours(found, BOARD)["latency_cycles"] <= best["latency_cycles"]
    for plan in (best, bench_plan.ours(found, BOARD)):
        limits = {"bram18": 2 * BOARD.resources["bram36"]} | dict(BOARD.resources)
        assert all(used <= 0.8 * limits[r] for r, used in plan["used"].items())


def test_defaults_of_hls4ml_are_judged_as_built():
    found = bench_plan.vgg()
    judged = bench_plan.hls4ml_defaults(found, BOARD)
    assert judged["over"]["lut"] > 1, "hundreds of thousands of multiplications at once are not what a Zynq-7020 holds"
    assert judged["largest_unrolled"] == 9 * 64 * 64
    tiny = bench_plan.Sketch(4, 1)
    tiny.conv("a", 1)
    tiny.dense("b", 2)
    fits = bench_plan.hls4ml_defaults(tiny.processes(), BOARD)
    assert fits["over"] == {} and fits["latency_cycles"] < judged["latency_cycles"]


def test_growth_is_an_exponent():
    rows = [{"tokens": 10, "seconds": 2.0, "depths_seconds": 1.0}, {"tokens": 1000, "seconds": 200.0,
                                                                     "depths_seconds": 10000.0}]
    assert bench_plan.growth(rows) == pytest.approx(1)
    assert bench_plan.growth(rows, "depths_seconds") == pytest.approx(2)


def test_what_does_not_fit_is_said_and_not_compared():
    found = {"choices": [{"network": "n", "board": "b", "clock_mhz": 100.0, "margin": 0.2,
                          "ours": {"latency_cycles": 100, "shortage": "no plan fits: LUT"}, "uniform": None,
                          "hls4ml": {"latency_cycles": 50, "over": {"lut": 3.0}}},
                         {"network": "m", "board": "b", "clock_mhz": 100.0, "margin": 0.2,
                          "ours": {"latency_cycles": 100}, "uniform": {"latency_cycles": 250, "reuse_factor": 9},
                          "hls4ml": {"latency_cycles": 400, "over": {}}}],
             "planner": [], "simulation": [{"network": n, "processes": 1, "tokens": t, "seconds": 1.0,
                                            "depths_seconds": 1.0} for n, t in (("x", 1), ("y", 2))]}
    text = bench_plan.lines(json.loads(json.dumps(found)))
    rows = [line for line in text if line.startswith(("| n |", "| m |"))]
    assert rows == [
        "| n | no plan fits: LUT | no plan fits | - | 0.5, over budget: LUT 3.0 times what is allowed | - |",
        "| m | 1.0 | 2.5 (reuse factor 9) | 2.50 | 4.0 | 4.00 |"]
