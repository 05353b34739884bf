"""Reading published designs, predicting without looking at what was reported, fitting, comparing."""

import contextlib
import copy
import dataclasses
import functools
import json
import math
import operator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boards.errors import SlimgateError
from hls import cost, estimator, estimator_study
from hls.estimator import DesignError

DESIGNS = Path(__file__).parents[1] / "data" / "designs"


@pytest.fixture(scope="module")
def designs():
    found, refused = estimator.read_all(DESIGNS)
    assert len(found) == 8 and not refused
    return found


def _raw(name: str) -> dict:
    return json.loads((DESIGNS / f"{name}.json").read_text())


def _scrambled(value, factor: float):
    if isinstance(value, dict):
        return {k: _scrambled(v, factor) for k, v in value.items()}
    if isinstance(value, list):
        return [_scrambled(v, factor) for v in value]
    return value * factor if isinstance(value, (int, float)) and not isinstance(value, bool) else value


@pytest.mark.parametrize("path", sorted(DESIGNS.glob("*.json")), ids=lambda p: p.stem)
def test_predictions_do_not_look_at_reports(path):
    raw = json.loads(path.read_text())
    assert raw["source"]["repo"] and raw["source"]["commit"], "provenance is kept"
    other = copy.deepcopy(raw)
    for key in estimator.REPORTED:
        if key in other:
            other[key] = _scrambled(other[key], 3)
    other["clock_period_ns"]["estimated"] = 1.0
    for layer in other["layers"]:
        layer["reported"] = _scrambled(layer.get("reported"), 7)
    a, b = estimator.read(raw), estimator.read(other)
    first, second = (cost.estimate(d.layers, d.target).as_dict() for d in (a, b))
    assert first == second
    # the comparison itself does look
    assert a.reported["hls"] != b.reported["hls"]


def test_structure_is_exact_where_the_bars_ask(designs):
    rows = [r for d in designs for r in estimator.rows_of(d, cost.load_coefficients()) if r.layer]
    weights = [r for r in rows if r.quantity == "weight_bram18"]
    assert weights and all(r.predicted == r.reported for r in weights)
    resource = {(d.name, x.name) for d in designs for x in d.layers
                if x.kind in cost.MULTIPLYING and x.strategy == "resource"}
    dsp = [r for r in rows if r.quantity == "dsp" and (r.design, r.layer) in resource]
    assert len(dsp) > 10 and sum(r.predicted == r.reported for r in dsp) >= 0.8 * len(dsp)


def test_missing_fields_and_unknown_things_do_not_stop_a_prediction():
    raw = _raw("pominiq_mnist_rf64_res_z020")
    for layer in raw["layers"]:
        for key in ("weight_precision", "input_precision", "accum_precision", "mult", "weight_stats", "n_zeros",
                    "out_fifo_depth_pragma", "input_pack", "strategy", "implementation"):
            layer[key] = None
    raw["layers"].append({"name": "odd", "type": "my_new_layer", "in_shape": [10], "out_shape": [10]})
    for key in ("totals", "fifos", "yml", "notes", "toolchain", "top_pragma", "io_type", "clock_period_ns", "source"):
        raw.pop(key, None)
    design = estimator.read(raw)
    found = cost.estimate(design.layers, design.target)
    assert found.totals["lut"]["hls"]["value"] > 0
    assert found.evidence == "estimated (extrapolated)"


def test_an_unknown_toolchain_is_extrapolated_and_an_unknown_part_refused(tmp_path):
    raw = _raw("hector_jet_u250_16b_rf1")
    raw["toolchain"] = {"hls_tool": "Catapult", "backend": None, "hls_version": None}
    design = estimator.read(raw)
    assert any("catapult" in why for why in cost.estimate(design.layers, design.target).why)
    raw["part"] = "xcvc1902"
    with pytest.raises(cost.CostError, match="xcvc1902"):
        estimator.read(raw)
    (tmp_path / "a.json").write_text(json.dumps(raw))
    with pytest.raises(DesignError, match="none of the designs"):
        estimator.run(_args("--designs", str(tmp_path)))


@pytest.mark.parametrize(("content", "message"), [
    (None, "no designs"), ("{", "not readable"), ("[]", "no list of layers"), ('{"name": "x"}', "no list of layers"),
])
def test_a_bad_folder_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(DesignError, match=message):
        estimator.load_designs(tmp_path)


@pytest.mark.parametrize(("where", "value", "message"), [
    (("clock_period_ns", "target"), 200e6, "clock_period_ns is 200000000"),
    (("clock_period_ns", "target"), 10**400, "target is 1000"), (("clock_period_ns", "target"), 5e-9, "nanoseconds"),
    (("clock_period_ns",), "200 MHz", "clock_period_ns is '200 MHz'"), (("totals", "csynth", "LUT"), -3, "not a count"),
    (("totals", "csynth", "FF"), float("nan"), "totals.csynth.FF is nan"), (("totals", "csynth"), [1], "not an object"),
    (("totals", "csynth", "DSP"), 1e15, "totals.csynth.DSP"), (("layers", 0), "conv", "layers.0 is 'conv'"),
    (("layers", 0, "in_shape"), 5, "not a list"), (("layers", 0, "in_shape"), [9], "too few sizes for a kernel"),
    (("layers", 0, "reported"), 7, "not an object"),
    (("layers", 0, "reported", "memories", "items"), [[1]], "not .name, words"),
    (("layers", 0, "reuse_factor"), "many", "not a count"), (("layers", 0, "out_shape"), [0, 0, 0], "below 1"),
    (("source", "repo"), ["x"], "not a text"), (("part",), "10AX115", "nobody has published"),
])  # fmt: skip
def test_a_design_with_a_wrong_field_is_refused_by_name(where, value, message):
    raw = _raw("pominiq_mnist_rf64_res_z020")
    at = raw
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    with pytest.raises(SlimgateError, match=message):
        estimator.read(raw)


def _places(value, path=()):
    inside = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from _places(one, (*path, key))


RAW = _raw("pominiq_mnist_rf64_res_z020")
ODD = st.sampled_from([None, 0, -1, 3.7, 1e308, float("nan"), float("inf"), "", "74%", True, 10**9, [], {}, [0], [None],
                       [[1]], {"a": 1}, "ap_fixed<0,0>"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(_places(RAW), key=str)), ODD), min_size=1, max_size=2))
def test_whatever_is_in_a_file_there_is_an_answer_or_a_reason(changes):
    raw = copy.deepcopy(RAW)
    for path, value in changes:
        # the change before may have taken the place away
        with contextlib.suppress(KeyError, IndexError, TypeError):
            functools.reduce(operator.getitem, path[:-1], raw)[path[-1]] = value
    try:
        design = estimator.read(raw)
    except SlimgateError as error:
        assert str(error)
        return
    assert estimator.compare([design], cost.load_coefficients())["designs"][0]["name"]


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(RAW))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "twin.json").write_text(json.dumps(RAW))
    (tmp_path / "list.json").write_text("[]")
    found, refused = estimator.read_all(tmp_path)
    assert [d.name for d in found] == [RAW["name"]]
    assert {k: v.splitlines()[0] for k, v in refused.items()} == {
        "broken": refused["broken"].splitlines()[0], "list": "not a design: it has no list of layers",
        "twin": f"a second design is called {RAW['name']}"}
    assert "not readable as JSON" in refused["broken"]
    text: list[str] = []
    assert estimator.run(_args("--designs", str(tmp_path)), text.append) == 0
    assert "left out: twin" in text[0] and "left out: broken" in text[0]
    # a fit says what it lacks instead of guessing from one repository
    with pytest.raises(DesignError, match="1 repositories with reported figures are too few"):
        estimator.run(_args("--designs", str(DESIGNS), "--fit", str(tmp_path)), text.append)


def test_fit_on_another_folder(designs):
    text: list[str] = []
    assert estimator.run(_args("--designs", str(DESIGNS), "--fit", str(DESIGNS), "--json"), text.append) == 0
    result = json.loads(text[0])
    assert all(d["seen_in_fit"] for d in result["designs"])
    assert result["designs"] != estimator.compare(designs, cost.load_coefficients())["designs"]


def test_fit_recovers_known_coefficients():
    rng = np.random.default_rng(0)
    matrix = rng.uniform(100, 5000, (60, 3))
    truth = np.array([0.5, 2.0, 1.3])
    found = estimator.fit_positive(matrix, matrix @ truth, np.ones(60), pull=0.01)
    assert found == pytest.approx(truth, rel=0.02)
    # one wild row in sixty does not carry the fit away
    wild = matrix @ truth
    wild[0] *= 50
    assert estimator.fit_positive(matrix, wild, np.ones(60), pull=0.01) == pytest.approx(truth, rel=0.15)


def test_repositories_count_alike():
    weights = estimator._weights(["a", "a", "a", "b"], [1, 1, 2, 5])
    assert weights == pytest.approx([0.25, 0.25, 0.5, 1.0])
    assert estimator.weighted_quantile([5, 1, 3], [1, 1, 8], 0.5) == 3


def test_intervals_hold_the_errors_they_come_from(designs):
    rows = [r for d in designs for r in estimator.rows_of(d, {"terms": {}})]
    found = {"intervals": estimator.intervals_from(rows)}
    totals = [r for r in rows if not r.layer and r.quantity == "lut" and r.figure == "hls"]
    inside = 0
    for r in totals:
        near = estimator.interval_of(r, found)
        inside += near["lo"] <= r.reported <= near["hi"]
    assert inside >= 0.85 * len(totals)


def _row(repo: str, error: float, kind="stock", strategy="latency") -> estimator.Row:
    like = cost.Traits(kind, strategy)
    return estimator.Row(f"{repo}-{error}", repo, None, "hls", "lut", like, 1000.0, 1000.0 * math.exp(error))


def test_intervals_are_wider_where_errors_are():
    near = [_row(f"a{i}", 0.1 + 0.01 * i) for i in range(5)]
    far = [_row(f"b{i}", -0.8 - 0.01 * i, strategy="resource") for i in range(5)]
    alone, by = estimator.reaches(near + far, ()), estimator.reaches(near + far, ("strategy",))
    assert alone["stock"] > 0.8
    assert by["stock/latency"] < 0.6 * alone["stock"] < by["stock/resource"]
    chosen = estimator.intervals_from(near + far)["total.hls.lut"]
    assert chosen["by"] == list(estimator.CLASSES)
    assert chosen["reach"]["stock/latency/vitis_hls/dense"] < chosen["reach"]["stock/resource/vitis_hls/dense"]
    # a kind of two repositories has no interval of its own, and what it falls back on is no narrower than unknown
    few = estimator.reaches([*near, _row("c", 0.1, "unread"), _row("d", 0.1, "unread")], ())
    assert set(few) == {"stock", ""} and few[""] >= round(cost.UNKNOWN_REACH, 4)
    # two like repositories in a class of their own do not set its reach alone
    pair = estimator.reaches([*far, _row("x", 0.05), _row("y", 0.05)], ("strategy",))
    assert 0.05 < pair["stock/latency"] < pair["stock/resource"]


def test_a_repository_counts_once_however_many_designs_it_has():
    few = [_row(f"a{i}", 0.1) for i in range(10)]
    many = [*few, *[_row("z", 1.0)] * 50]
    assert estimator.reaches(many, ())["stock"] == estimator.reaches([*few, _row("z", 1.0)], ())["stock"]


def _held(rows: list[estimator.Row], factor: float) -> float:
    """The share of repositories whose figure is inside ``factor`` times the reach that the others give: one row each
    and no classes, so every repository is judged by the quantile of the rest alone."""
    inside = 0
    for row in rows:
        reach = estimator.reaches([r for r in rows if r.repo != row.repo], ())["stock"]
        inside += abs(row.log_ratio) <= factor * reach * (1 + 1e-9)
    return inside / len(rows)


def test_intervals_are_never_narrowed():
    rows = [_row(f"a{i}", 0.2 if i < 4 else 0.01) for i in range(20)]
    assert _held(rows, 0.9) < _held(rows, 1.0) == 1.0
    assert estimator.calibration(rows, ()) == 1.0


@pytest.mark.parametrize("wild", [1.5, 0.9, 0.2])
def test_reaches_are_calibrated_until_they_hold_repositories_left_out(wild):
    rows = [_row(f"a{i}", 0.1 + 0.005 * i) for i in range(12)] + [_row("w", wild), _row("x", -wild)]
    factor = estimator.calibration(rows, ())
    assert _held(rows, factor) >= estimator.SHARE
    # two of fourteen are wild: the share asks for the nearer one too, and for no more than that
    assert factor > 1 and _held(rows, 0.98 * factor) < estimator.SHARE
    found = estimator.intervals_from(rows)["total.hls.lut"]
    plain = estimator.reaches(rows, estimator.CLASSES)
    assert found["factor"] == round(estimator.calibration(rows, estimator.CLASSES), 4)
    assert found["reach"] == {k: min(round(v * estimator.calibration(rows, estimator.CLASSES), 4), 3.0)
                              for k, v in plain.items()}  # fmt: skip


def test_of_few_repositories_no_factor_is_taken_and_layers_have_none(monkeypatch):
    rows = [_row(f"a{i}", 0.1) for i in range(estimator.CALIBRATED - 3)] + [_row("w", 1.5), _row("x", -0.9)]
    assert estimator.calibration(rows, ()) == 1.0
    many = rows + [_row(f"b{i}", 0.1) for i in range(3)]
    assert estimator.calibration(many, ()) > 1.0
    layers = [dataclasses.replace(r, layer="conv") for r in many]
    assert estimator.intervals_from(layers)["layer.hls.lut"]["factor"] == 1.0
    monkeypatch.setattr(estimator, "CALIBRATED", 5)
    assert estimator.calibration(rows, ()) == pytest.approx(1.5 / 0.9), "the worst repository alone"


def test_an_extrapolated_design_needs_less_of_a_factor_as_its_interval_is_wider_already():
    rows = [_row(f"a{i}", 0.1) for i in range(10)]
    wild = [_row("w", 0.5), _row("x", -0.5)]
    wide = [dataclasses.replace(r, widen=1.3) for r in wild]
    assert estimator.calibration(rows + wide, ()) < estimator.calibration(rows + wild, ())


def test_intervals_are_made_without_the_repository_and_without_each_other_in_turn(designs, monkeypatch):
    seen = []
    monkeypatch.setattr(estimator_study, "fit", lambda some: seen.append({d.repo for d in some}) or {})
    monkeypatch.setattr(estimator, "fit", lambda some: {})
    monkeypatch.setattr(estimator_study, "intervals_from", lambda rows: {r.repo for r in rows})
    _, factors = estimator_study.held_out(designs)
    everyone = {d.repo for d in designs}
    pairs = {frozenset(everyone - some) for some in seen}
    assert len(seen) == len(pairs) == len(everyone) * (len(everyone) - 1) // 2
    for design in designs:
        assert design.repo not in factors[design.name]["intervals"]
        assert factors[design.name]["intervals"] == everyone - {design.repo}


def test_leaving_out_leaves_out(designs, monkeypatch):
    seen = []
    monkeypatch.setattr(estimator, "fit", lambda some: seen.append({d.repo for d in some}) or {})
    found = estimator.leave_out(designs)
    assert set(found) == {d.name for d in designs}
    everyone = {d.repo for d in designs}
    assert sorted(map(sorted, seen)) == sorted(sorted(everyone - {repo}) for repo in everyone)


def test_boards_are_simulated_and_a_constant_is_tested_where_there_are_two(designs):
    design = next(d for d in designs if d.name == "pominiq_mnist_rf64_res_z020")
    network = estimator_study.chain(design)
    result, slowest = network.simulate(None, frames=3), cost.network_cycles(design.layers, design.target)
    # only pixels that complete a window take the reuse factor, so hardware is below csynth's maximum
    assert 0.7 * slowest["latency"] < result.latency < slowest["latency"]
    assert estimator_study.chain(next(d for d in designs if d.target.io == "io_parallel")) is None

    raw = copy.deepcopy(design.raw)
    raw["totals"]["cosim"] = {"status": "Pass", "lat_max": 30000}
    assert estimator_study.cosims([estimator.read(raw), design]) == [
        (design.name, design.reported["latency"], network.simulate(None, frames=2).latency, 30000)]

    def measured(raw: dict, name: str, micros: float, how: str) -> estimator.Design:
        raw = copy.deepcopy(raw) | {"name": name}
        raw["totals"]["board"] = {"throughput_per_s": 1e6 / micros, "how": how}
        for layer in raw["layers"]:
            layer["reuse_factor"] = layer.get("reuse_factor") or 1
        return estimator.read(raw)

    base = result.latency / 100
    two = [measured(design.raw, "a", base + 50, "python, DMA"), measured(design.raw, "b", base + 60, "python, DMA"),
           measured(design.raw, "c", base + 900, "python MMIO")]
    found = estimator_study.boards(two, {d.name: cost.load_coefficients() for d in two})
    assert [round(b.measured_us - b.predicted_us) for b in found] == [50, 60, 900]
    text = "\n".join(estimator_study._board_tests(found))
    assert text.count("fitted on") == 2 and text.count("no second design") == 1
    assert f"fitted on a (+50.0 us, or a factor of {(base + 50) / base:.2f}), tested on b" in text
    assert f"{100 * 10 / (base + 60):.1f} % off with the time added" in text


def _args(*argv):
    import argparse

    parser = argparse.ArgumentParser()
    estimator.add_arguments(parser)
    return parser.parse_args(argv)


def test_command_as_json_names_every_figure(designs):
    text: list[str] = []
    assert estimator.run(_args("--designs", str(DESIGNS), "--json"), text.append) == 0
    result = json.loads(text[0])
    assert len(result["designs"]) == 8 and result["evidence"] == "estimated"
    one = next(d for d in result["designs"] if d["name"] == "rheed_gauss_cnn_ku035")
    cell = one["totals"]["hls.lut"]
    assert cell["reported"] == 46604 and cell["lo"] <= cell["predicted"] <= cell["hi"]
    assert set(one["layers"]["q_dense"]) >= {"lut", "ff", "dsp", "bram18", "latency_max"}
    assert one["seen_in_fit"] is True
    assert {"totals.hls.lut", "layers.hls.dsp"} <= set(result["summary"])


def test_command_as_text_fits_and_writes(designs, tmp_path):
    text: list[str] = []
    estimator.run(_args("--designs", str(DESIGNS)), text.append)
    assert "rheed_gauss_cnn_ku035" in text[0] and "median" in text[0] and "seen" in text[0]
    path = tmp_path / "k.json"
    estimator.run(_args("--designs", str(DESIGNS), "--write-coefficients", str(path)), text.append)
    made = cost.load_coefficients(path)
    assert made["fitted_on"]["designs"] == 8 and made["terms"]["lut:latency.tree"] > 0
    assert estimator.fit(designs) == made["terms"], "the same designs give the same coefficients"


def test_the_shipped_coefficients_are_complete():
    shipped = cost.load_coefficients()
    assert shipped["fitted_on"]["designs"] >= 70
    assert all(value > 0 for value in shipped["terms"].values())
    for quantity in cost.QUANTITIES:
        entry = shipped["intervals"][f"total.hls.{quantity}"]
        assert tuple(entry["by"]) == estimator.CLASSES
        assert 1 <= entry["factor"] < 3
        assert set(entry["reach"]) >= {"", "stock"} and all(0 < r <= 3 for r in entry["reach"].values())
    assert not any("design" in name for name in shipped["terms"]), "no design has a coefficient of its own"


def test_the_page_is_made_from_designs(designs, tmp_path):
    others = {"estimator": "someone's", "predictions": {"rheed_gauss_cnn_ku035": {"lut": 1.0}}}
    (tmp_path / "o.json").write_text(json.dumps(others))
    page = tmp_path / "p.md"
    estimator.run(_args("--designs", str(DESIGNS), "--page", str(page), "--others", str(tmp_path / "o.json")),
                  lambda _: None)
    text = page.read_text()
    for words in ("## The bars", "extrapolated", "## Every residual", "log-linear", "someone's",
                  "rheed_gauss_cnn_ku035"):
        assert words in text
    with pytest.raises(DesignError, match="not readable"):
        estimator.run(_args("--designs", str(DESIGNS), "--page", str(page), "--others", str(tmp_path / "none.json")))


def test_a_wrong_figure_shows_in_the_bars(designs):
    good = {row[0]: row for row in estimator_study.study(designs)["bars"]}
    assert good["BRAM18 of weights, Resource layers"][3] == "yes"
    wrong = [estimator.read(_faulty(d.raw)) for d in designs]
    bad = {row[0]: row for row in estimator_study.study(wrong)["bars"]}
    assert bad["BRAM18 of weights, Resource layers"][3] == "no"
    assert bad["DSP of Resource layers"][3] == "no"


def _faulty(raw: dict) -> dict:
    """A design whose reports list one more memory and one more DSP per layer than they did."""
    raw = copy.deepcopy(raw)
    for layer in raw["layers"]:
        row = layer.get("reported")
        if row:
            row["DSP"] = row["DSP"] + 1
            for item in (row.get("memories") or {}).get("items") or []:
                item[4] = int(item[4]) + 1
    return raw
