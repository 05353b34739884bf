"""The cost model: structure against figures of real reports, and what must never fall when a layer grows."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boards import board as boards
from hls import cost, estimator
from hls.cost import CostError, LayerSpec, Target, legal_reuse_factors

Z020 = Target("zynq7", 10.0, "vivado_hls", 2020.1)
OURS = Target("zynq7", 10.0, "vitis_hls", 2022.2)
PLAIN = {"terms": {}}


def conv(n_in=36, n_out=8, bits=16, factor=72, **changes) -> LayerSpec:
    channels = max(n_in // 9, 1)
    given = {"name": "c", "kind": "conv", "in_shape": (10, 10, channels), "out_shape": (8, 8, n_out), "kernel": (3, 3),
             "n_in": n_in, "n_out": n_out, "weights": n_in * n_out, "weight_bits": bits, "input_bits": bits,
             "accumulator_bits": 16, "output_bits": bits, "reuse_factor": factor}
    return LayerSpec(**given | changes)


def dense(n_in, n_out, factor, bits=16, **changes) -> LayerSpec:
    return LayerSpec(**{"name": "d", "kind": "dense", "in_shape": (n_in,), "out_shape": (n_out,), "n_in": n_in,
                        "n_out": n_out, "weights": n_in * n_out, "weight_bits": bits, "input_bits": bits,
                        "reuse_factor": factor} | changes)


@pytest.mark.parametrize(("layer", "bram18"), [
    # reported by Vivado HLS: gabriele_jet_keras_pynq (57, 29, 29, 5), uplane rf12 (683), crimson_yolo (1, 2 beyond 512)
    (dense(16, 64, 8), 57), (dense(64, 32, 32), 29), (dense(32, 32, 16), 29), (dense(32, 5, 16), 5),
    (dense(288, 64, 12), 683), (dense(72, 8, 576, used_weight_bits=15), 1),
    (dense(72, 18, 1296, used_weight_bits=15), 2),
    (dense(9, 4, 36), 0), (dense(64, 1, 8), 0),
])
def test_weight_memory_is_what_reports_list(layer, bram18):
    assert cost.weight_memory(layer, Z020)[1] == bram18


@pytest.mark.parametrize(("layer", "target", "dsp"), [
    (dense(64, 32, 32), Z020, 64), (dense(16, 64, 8, bits=6, input_bits=16), Z020, 128),
    # 6-bit operands under 2020.1: a multiply-add per pair of products, one each beyond n_in (spehic)
    (dense(64, 32, 32, bits=6), Z020, 32), (dense(32, 10, 64, bits=4), Z020, 5),
    (dense(64, 32, 32, bits=8), Target("zynq7", 10.0, "vivado_hls", 2019.1), 0),
    (dense(64, 32, 32, bits=4), OURS, 0),
    # 32 x 32 bits: four DSP48 each, two for the last word, cut to the bits its weights use (chirui autoencoder)
    (dense(9, 8, 9, bits=32, used_weight_bits=16), Z020, 30),
    (dense(72, 4, 72, bits=32, used_weight_bits=17), Z020, 14),
])
def test_dsp_is_what_reports_list(layer, target, dsp):
    assert cost.products(layer, target)[0] == dsp


def test_latency_strategy_shares_multipliers_as_reports_say():
    # pominiq slp rf16: 128 of 512 weights live, 127 long ones, limit 8
    layer = dense(4, 128, 16, strategy="latency", nonzeros=128, powers_of_two=1, csd_digits=482, multiplier_limit=8)
    assert cost.products(layer, Z020)[0] == 8
    unshared = replace(layer, reuse_factor=1)
    assert cost.products(unshared, Z020)[0] > 80
    assert cost.products(unshared, replace(Z020, multiplier="fabric"))[0] == 0


def test_convolution_cycles_follow_the_published_rule():
    layer = conv(n_in=9, n_out=4, factor=36, in_shape=(28, 28, 1), out_shape=(26, 26, 4))
    cycles = cost.layer_cycles(layer, Z020)
    assert abs(cycles["latency_max"] - 35280) < 0.06 * 35280
    assert cycles["latency_min"] < cycles["latency_max"]
    # what hardware does lies between: only pixels that yield an output take the reuse factor
    real = 26 * 26 * cycles["per_output"] + (28 * 28 - 26 * 26) * cycles["per_idle"]
    assert cycles["latency_min"] <= real <= cycles["latency_max"]


@st.composite
def growing(draw):
    """A Resource layer at a legal reuse factor of both sizes, and the same layer grown in width or in bits."""
    taps, channels = draw(st.sampled_from([1, 9, 25])), draw(st.integers(1, 24))
    n_in, n_out = taps * channels, draw(st.integers(1, 24))
    more = draw(st.integers(1, 8))
    bits, wider = draw(st.integers(1, 8)), draw(st.integers(0, 8))
    factor = draw(st.sampled_from([f for f in legal_reuse_factors(n_in, n_out)
                                   if f in legal_reuse_factors(n_in, n_out * more)]))
    small = dense(n_in, n_out, factor, bits=bits)
    large = dense(n_in, n_out * more, factor, bits=bits + wider)
    return small, large


@settings(max_examples=150, deadline=None)
@given(growing(), st.sampled_from([Z020, OURS, Target("ultrascale+", 5.0, "vivado_hls", 2019.1)]))
def test_nothing_falls_when_width_or_bits_grow(pair, target):
    small, large = pair
    assert large.multipliers >= small.multipliers
    for one in (cost.weight_memory,):
        assert one(large, target)[0] >= one(small, target)[0]
        assert one(large, target)[1] >= one(small, target)[1]
    assert cost.index_memory(large) >= cost.index_memory(small) or large.factor <= large.n_in
    a, b = (cost.raw_layer(x, target, cost.load_coefficients()) for x in (small, large))
    assert b["own"]["bram18"] >= a["own"]["bram18"]
    assert b["fifo"]["bram18"] >= a["fifo"]["bram18"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 2048), st.integers(1, 40000), st.integers(0, 500))
def test_memories_never_shrink(bits, more, depth, deeper):
    assert cost.memory_bram18(bits + more, depth) >= cost.memory_bram18(bits, depth) > 0
    assert cost.memory_bram18(bits, depth + deeper) >= cost.memory_bram18(bits, depth)
    for target in (Z020, OURS):
        assert cost.fifo_bram18(depth, bits + more, target) >= cost.fifo_bram18(depth, bits, target)


def test_width_cost_is_a_step_function_and_dominated_widths_go():
    layer = conv(n_in=144, n_out=14, bits=8, factor=1008)
    costs = {w: cost.width_cost(layer, w, OURS) for w in range(1, 33)}
    # 1008 = 7 x 144 is legal for 14 filters; 13 is prime and falls back to 144, with more multipliers
    assert (costs[13]["reuse_factor"], costs[13]["multipliers"]) == (144, 13)
    assert (costs[14]["reuse_factor"], costs[14]["multipliers"]) == (1008, 2)
    assert costs[13]["lut"] > costs[14]["lut"] and costs[13]["ff"] > costs[14]["ff"]
    assert all(costs[w]["cycles"] <= costs[14]["cycles"] for w in costs)
    useful = cost.useful_widths(layer, costs, OURS)
    assert 13 not in useful and 14 in useful and 32 in useful
    resources = {w: [c[q] for q in cost.QUANTITIES] for w, c in costs.items()}

    def beaten(w):
        return any(v > w and all(x <= y for x, y in zip(resources[v], resources[w], strict=True)) for v in costs)

    assert {w for w in costs if not beaten(w)} == set(useful)
    # without a factor above the inputs every width has the same choice, and none is dominated
    assert cost.useful_widths(replace(layer, reuse_factor=72), range(1, 33), OURS) == list(range(1, 33))
    # a latency layer keeps its factor; a layer without weights only its channels
    assert cost.width_cost(replace(layer, strategy="latency", reuse_factor=1), 13, OURS)["reuse_factor"] == 1
    pool = LayerSpec("p", "pool", (8, 8, 16), (4, 4, 16), kernel=(2, 2), stride=(2, 2))
    assert cost.width_cost(pool, 8, OURS)["lut"] < cost.width_cost(pool, 16, OURS)["lut"]


@st.composite
def wider(draw):
    """A convolution with its window, and the same with more filters, channels or bits, at one legal reuse factor."""
    taps, channels, n_out = draw(st.sampled_from([1, 9])), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits, more_bits, more_out = draw(st.integers(1, 8)), draw(st.integers(0, 8)), draw(st.integers(1, 4))
    factor = draw(st.sampled_from([f for f in legal_reuse_factors(taps * channels, n_out)
                                   if f in legal_reuse_factors(taps * channels, n_out * more_out)]))
    side = 3 if taps == 9 else 1

    def layer(filters: int, wide: int) -> LayerSpec:
        return conv(taps * channels, filters, wide, factor, in_shape=(8, 8, channels), kernel=(side, side),
                    out_shape=(9 - side, 9 - side, filters))

    return layer(n_out, bits), layer(n_out * more_out, bits + more_bits)


@settings(max_examples=100, deadline=None)
@given(wider(), st.sampled_from([Z020, OURS, replace(OURS, family="ultrascale+", clock_ns=5.0)]),
       st.sampled_from(["fabric", "dsp"]))
def test_at_one_factor_and_multiplier_class_a_larger_convolution_takes_no_less(pair, target, multiplier):
    """Multipliers, weight bits, BRAM18, and what follows from them: at a fixed way of multiplying, LUT and FF too."""
    small, large = pair
    target = replace(target, multiplier=multiplier)
    assert large.multipliers >= small.multipliers
    assert cost.weight_memory(large, target)[0] >= cost.weight_memory(small, target)[0]
    assert sum(cost.products(large, target)) >= sum(cost.products(small, target))
    k = cost.load_coefficients()
    a, b = cost.raw_layer(small, target, k), cost.raw_layer(large, target, k)
    for part in ("own", "fifo"):
        assert b[part]["bram18"] >= a[part]["bram18"]
    # weights that leave the LUTs for a memory take LUTs along
    if (cost.weight_memory(small, target)[1] > 0) == (cost.weight_memory(large, target)[1] > 0):
        assert b["own"]["lut"] >= a["own"]["lut"] and b["own"]["ff"] >= a["own"]["ff"]


def test_estimate_has_both_figures_with_intervals_and_says_what_is_extrapolated():
    layers = [conv(bits=4, name="a"), LayerSpec("r", "activation", (8, 8, 8), (8, 8, 8), op="relu"),
              dense(512, 10, 512, name="b")]
    found = cost.estimate(layers, OURS, platform=True)
    assert found.evidence == "estimated (extrapolated)"
    assert any("Resource" in why for why in found.why) and any("4-bit" in why for why in found.why)
    for quantity in ("lut", "ff", "bram18"):
        for figure in ("hls", "implemented"):
            cell = found.totals[quantity][figure]
            assert cell["lo"] <= cell["value"] <= cell["hi"]
    bare = cost.estimate(layers, OURS)
    alone = bare.totals["lut"]["implemented"]["value"]
    assert found.totals["lut"]["implemented"]["value"] == pytest.approx(alone + 2000)
    assert found.totals["lut"]["hls"] == bare.totals["lut"]["hls"]
    assert sum(row["lut"]["hls"]["value"] for row in bare.layers.values()) <= bare.totals["lut"]["hls"]["value"] + 1
    assert bare.latency["value"] >= bare.interval["value"] - 2 > 0
    known = cost.estimate([replace(x, weight_bits=16, input_bits=16) for x in layers], Z020)
    assert known.evidence == "estimated" and not known.why
    # the extrapolated interval is wider around the same value
    near, far = (cost.spread(100.0, {}, "total", "hls", "lut", cost.Traits("stock"), w) for w in (1.0, cost.WIDEN))
    assert far["lo"] < near["lo"] and far["hi"] > near["hi"]


def test_the_interval_of_the_nearest_class_is_taken():
    known = {"intervals": {"total.hls.lut": {"by": ["strategy", "density"], "reach": {
        "": 1.0, "stock": 0.5, "stock/latency": 0.3, "stock/latency/sparse": 0.7}}}}
    for like, reach in ((cost.Traits("stock", "latency", density="sparse"), 0.7),
                        (cost.Traits("stock", "latency"), 0.3), (cost.Traits("stock", "resource"), 0.5),
                        (cost.Traits("serial", "latency"), 1.0)):
        assert cost.reach_of(known, "total", "hls", "lut", like) == reach
        cell = cost.spread(100.0, known, "total", "hls", "lut", like)
        assert cell["hi"] == pytest.approx(100 * math.exp(reach), abs=0.1)
    assert cost.reach_of(known, "total", "hls", "ff", cost.Traits("stock")) == cost.UNKNOWN_REACH


def test_traits_of_a_design():
    sparse = dense(64, 10, 1, name="a", strategy="latency", nonzeros=100, powers_of_two=0, csd_digits=300)
    assert cost.traits([sparse], Z020) == ("stock", "latency", "vivado_hls", "io_stream", "sparse")
    assert cost.traits([sparse, dense(9, 9, 9, name="b"), dense(9, 9, 9, name="c")], OURS).strategy == "resource"
    assert cost.traits([replace(sparse, nonzeros=None)], Z020).kind == "unread"
    assert cost.traits([LayerSpec("r", "activation", (8,), (8,))], Z020).strategy == "none"


def test_more_multipliers_than_dsps_become_luts():
    wide = dense(64, 64, 1, strategy="latency", nonzeros=4096, powers_of_two=0, csd_digits=16000)
    free = cost.estimate([wide], replace(Z020, dsp_available=None))
    short = cost.estimate([wide], replace(Z020, dsp_available=220))
    assert short.totals["dsp"]["implemented"]["value"] == 220
    assert short.totals["lut"]["implemented"]["value"] > free.totals["lut"]["implemented"]["value"] + 10_000


@pytest.mark.parametrize(("part", "family"), [
    ("xc7z020clg400-1", "zynq7"), ("xc7a100tcsg324-1", "zynq7"), ("xc7vx690t-ffg1761-2", "7series"),
    ("xc7z045ffg900-2", "7series"), ("xcku035-fbva676-2-e", "ultrascale"), ("xczu3eg-sfvc784-2-e", "ultrascale+"),
    ("xck26-sfvc784-2LV-c", "ultrascale+"), ("xcu250-figd2104-2L-e", "ultrascale+"),
    ("xcku5p-ffvb676-2-e", "ultrascale+"),
])
def test_part_families(part, family):
    assert cost.family_of(part) == family


def test_bipolar_layers_cost_less_than_those_of_four_bits_and_are_extrapolated():
    for strategy, factor in (("resource", 72), ("latency", 1)):
        lut = []
        for bits in (1, 2, 4):
            live = None if strategy == "resource" else 288
            found = cost.estimate([conv(bits=bits, factor=factor, strategy=strategy, nonzeros=live)], OURS)
            lut.append(found.totals["lut"]["hls"]["value"])
            assert found.evidence == "estimated (extrapolated)" and found.totals["dsp"]["hls"]["value"] == 0
        assert lut == sorted(set(lut))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["threshold", "resize", "pad", "clone", "merge", "activation", "pool", "globalpool"]),
       st.integers(1, 40), st.integers(1, 20), st.integers(1, 12), st.integers(0, 12), st.integers(1, 3))
def test_layers_of_our_own_grow_with_pixels_channels_and_bits(kind, side, channels, bits, more, times):
    def layer(channels, bits, levels):
        grown = side * 2 if kind == "resize" else side
        return LayerSpec("x", kind, (side, side, channels), (grown, grown, channels), kernel=(2, 2),
                         input_bits=bits, output_bits=bits, table_size=levels)

    k = cost.load_coefficients()
    small = cost.raw_layer(layer(channels, bits, 7), OURS, k)
    large = cost.raw_layer(layer(channels * times, bits + more, 7 + more), OURS, k)
    for part in ("own", "fifo"):
        assert large[part]["bram18"] >= small[part]["bram18"] >= 0
    if large["own"]["bram18"] == small["own"]["bram18"]:
        assert large["own"]["lut"] >= small["own"]["lut"] > 0 and large["own"]["ff"] >= small["own"]["ff"]
    if kind in ("threshold", "resize", "clone", "merge"):
        assert cost.estimate([layer(channels, bits, 7)], OURS).evidence == "estimated (extrapolated)"


def test_upsampling_holds_one_row():
    # 16 channels of 4 bits, 32 pixels: 2 kbit in two blocks 36 bits wide; 4 pixels lie in LUTs
    wide = LayerSpec("u", "resize", (32, 32, 16), (64, 64, 16), input_bits=4, output_bits=4)
    assert cost.row_memory(wide) == (64, 32, 2)
    assert cost.row_memory(replace(wide, in_shape=(4, 4, 16), out_shape=(8, 8, 16))) == (64, 4, 0)
    assert cost.raw_layer(wide, OURS, cost.load_coefficients())["own"]["bram18"] == 2
    # a token every cycle, four for each that comes in
    assert cost.layer_cycles(wide, OURS)["latency_max"] == 64 * 64 + 3


@pytest.mark.parametrize("name", boards.names())
def test_every_board_has_a_family_and_its_parts_own_resources(name):
    """Published for the part, and written in the board's file: the same DSP48 blocks; no weights in UltraRAM."""
    board = boards.load(name)
    family = cost.family_of(board.part)
    assert family == ("ultrascale+" if board.ps == "zynqmp" else "zynq7")
    part = max((p for p in estimator.DSP_BLOCKS if board.part.startswith(p)), key=len)
    assert estimator.DSP_BLOCKS[part] == board.resources["dsp"]
    # 27 bits fit one port of an UltraScale+ DSP, 25 of a 7 series one
    assert cost.dsp_per_product(27, 18, family) == (1 if family == "ultrascale+" else 2)
    target = Target(family, 10.0, dsp_available=board.resources["dsp"])
    found = cost.estimate([dense(512, 10, 512, name="d")], target, platform=True)
    assert found.totals["bram18"]["hls"]["value"] > 0 and "uram" not in found.totals
    # the platform's figures were read off Zynq-7000 systems
    assert any("platform" in why for why in found.why) == (family != "zynq7")


@pytest.mark.parametrize("wrong", [
    lambda: cost.family_of("xcvc1902-vsva2197-2MP-e-S"),
    lambda: cost.family_of("10AX115S2F45I1SG"),
    lambda: Target("versal", 5.0),
    lambda: Target("zynq7", 0.0),
    lambda: conv(out_shape=(8, 8, 0)),
    lambda: conv(n_out=0, weights=0),
    lambda: conv(bits=0),
    lambda: LayerSpec("x", "lstm", (1,), (1,)),
    lambda: cost.estimate([], OURS),
    lambda: cost.estimate([conv(), conv()], OURS),
    lambda: cost.width_cost(conv(), 0),
])
def test_bad_input_is_refused(wrong):
    with pytest.raises(CostError) as error:
        wrong()
    assert str(error.value)


def test_a_missing_or_foreign_coefficient_file_is_refused(tmp_path: Path):
    with pytest.raises(CostError, match="no readable"):
        cost.load_coefficients(tmp_path / "none.json")
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(CostError, match="schema 2"):
        cost.load_coefficients(tmp_path / "old.json")


def test_serial_and_separable_layers_are_priced_by_their_own_rules():
    fork = conv(serial=True)
    assert cost.fifos(fork, Z020)[0] == 1 and cost.fifos(conv(), Z020)[0] == 8
    assert all(name.startswith("serial_") for name in cost.terms(fork, Z020)["lut"])
    half = conv(n_in=9, n_out=4, factor=9)
    both = replace(conv(), parts=(replace(half, name="d"), replace(half, name="p")))
    assert cost.products(both, Z020)[0] == 2 * cost.products(half, Z020)[0]
    assert cost.estimate([both], Z020).layers["c"]["multipliers"] == 2 * half.multipliers
    one, two = (cost.terms(x, Z020)["lut"]["resource.base"] for x in (half, both))
    assert math.isclose(two, 2 * one)
