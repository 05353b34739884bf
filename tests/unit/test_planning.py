"""``slimgate plan``: what it says of a file and of a recipe, on one board and on all, and when nothing fits."""

import json

import pytest

from boards import board
from pipeline import cli, planning
from tests.graphs import Net, residual

RECIPE = "runs/digits.toml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return residual().save(tmp_path_factory.mktemp("plan") / "residual.onnx")


def run(capsys, *arguments):
    code = cli.main(["plan", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_file_is_told_layer_by_layer(model, capsys):
    code, out, err = run(capsys, model)
    assert (code, err) == (0, "")
    assert "on pynq-z2 at 100 MHz: estimated (extrapolated)" in out
    for name in ("unpack", "zp2d_stem", "block1_conv1", "clone_Relu_0", "Add_0", "head", "BRAM18"):
        assert name in out
    code, text, _ = run(capsys, model, "--json")
    found = json.loads(text)
    totals = found["totals"]
    assert f"interval: {totals['initiation_interval_cycles']:,} (" in out
    assert f"bottleneck: {totals['bottleneck']}" in out
    assert f"{totals['frames_per_second']:,} frames per second" in out
    stem = next(line for line in out.splitlines() if line.startswith("│ stem "))
    cells = [cell.strip() for cell in stem.strip("│").split("│")]
    row = next(r for r in found["layers"] if r["name"] == "stem")
    assert cells[1:8] == ["8x8x2 > 6x6x4", f"{row['macs']:,}", f"W4 A{row['input_bits']}", row["strategy"],
                          str(row["reuse_factor"]), str(row["multipliers"]), str(row["cycles"])]  # fmt: skip
    assert cells[-1] == str(found["fifo"]["stem->Relu_0"]["depth"])
    assert "proven: no choice that fits is faster" in out and found["optimal"]


def test_what_is_asked_for_reaches_the_plan(model, capsys):
    _, text, _ = run(capsys, model, "--json", "--board", "zybo-z7-20", "--clock-mhz", "50", "--margin", "0.4")
    found = json.loads(text)
    assert (found["board"], found["clock_mhz"], found["margin"]) == ("zybo-z7-20", 50.0, 0.4)
    code, text, _ = run(capsys, model, "--json", "--fps", "5000")
    slow = json.loads(text)
    assert slow["objective"] == "resources" and slow["totals"]["frames_per_second"] >= 5000
    assert "proven" not in run(capsys, model, "--fps", "5000")[1]
    assert slow["resources"]["lut"]["planned"] < found["resources"]["lut"]["planned"]
    code, text, _ = run(capsys, model, "--objective", "latency")
    assert code == 0 and "least latency of the plans simulated" in text


def test_all_boards_are_told(model, capsys):
    code, text, _ = run(capsys, model, "--all-boards", "--json")
    rows = json.loads(text)["boards"]
    assert code == 0 and {row["board"] for row in rows} == set(board.names())
    rates = [row["plan"]["totals"]["frames_per_second"] for row in rows if row["fits"]]
    assert rates == sorted(rates, reverse=True)
    for row in rows:
        assert row["fits"] == row["plan"]["fits"] and ("LUT are needed" in row.get("reason", "") or row["fits"])
    _, text, _ = run(capsys, model, "--all-boards")
    assert all(row["board"] in text for row in rows)


def test_a_network_that_fits_nowhere_ends_with_one(model, capsys):
    code, text, err = run(capsys, model, "--margin", "0.97")
    assert code == 1 and "no plan fits: an estimated" in err and "a margin of 0.15" in err
    assert "bottleneck" in text and "; the plan that overshoots least" in text and "least interval" not in text
    code, text, err = run(capsys, model, "--margin", "0.97", "--json")
    found = json.loads(text)
    assert code == 1 and found["fits"] is False and found["changes"][0] == "a margin of 0.15"
    code, text, err = run(capsys, model, "--margin", "0.99", "--all-boards")
    assert code == 1 and "yes" not in text and "no board known here is large enough" in err


def test_a_network_larger_than_every_board_is_told_so(tmp_path, capsys):
    """1.3 million weights of 8 bits: more than the memories of any board hold."""
    net = Net((1200,), samples=2)
    hidden = net.relu_quant(net.dense(net.input, 1100, bits=8))
    path = net.finish(net.dense(hidden, 4)).save(tmp_path / "large.onnx")
    most = max(board.load(name).resources["bram36"] for name in board.names())
    assert most * 36 * 1024 < 1200 * 1100 * 8
    code, out, err = run(capsys, path)
    assert code == 1 and "BRAM18 are needed at least" in err and "no board known here is large enough" in err
    assert "Traceback" not in out + err
    code, out, err = run(capsys, path, "--all-boards", "--json")
    rows = json.loads(out)["boards"]
    assert code == 1 and {row["board"] for row in rows} == set(board.names()) and not any(r["fits"] for r in rows)
    assert err.startswith("slimgate: no board known here is large enough\n") and "Traceback" not in err
    # the board that is named is the one where least is missing, by the fullest of its resources
    over = {r["board"]: max(x["planned"] / x["limit"] for x in r["plan"]["resources"].values()) for r in rows}
    named = err.split("the nearest, ")[1].split(":")[0]
    assert over[named] == min(over.values())
    code, out, err = run(capsys, path, "--all-boards", "--fps", "1e8")
    assert code == 1 and "no board known here can be planned for" in err and "Traceback" not in err


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere.onnx"], "no such file"),
    (["nowhere.toml"], "the recipe does not exist"),
    (["MODEL", "--board", "pynq"], "unknown board 'pynq'"),
    (["MODEL", "--set", "hls.margin=0"], "--set changes a recipe"),
    (["MODEL", "--fps", "0"], "0 frames per second are no rate"),
    (["MODEL", "--fps", "nan"], "nan frames per second are no rate"),
    (["MODEL", "--fps", "1e9"], "are too few"),
    (["MODEL", "--clock-mhz", "0"], "cannot be divided from"),
    (["MODEL", "--all-boards", "--board", "kv260"], "takes every board at its own clock"),
    (["MODEL", "--all-boards", "--clock-mhz", "50"], "takes every board at its own clock"),
    (["MODEL", "--margin", "1"], "a margin of 1 leaves nothing"),
    (["MODEL", "--clock-mhz", "99"], "cannot be divided from"),
])  # fmt: skip
def test_a_mistake_is_one_message(model, capsys, arguments, words):
    code, out, err = run(capsys, *(model if a == "MODEL" else a for a in arguments))
    assert code == 2 and words in err and "Traceback" not in err and out == ""


def test_a_recipe_without_a_run_is_planned_untrained(tmp_path, capsys):
    code, text, _ = run(capsys, RECIPE, "--json", "--build-dir", tmp_path, "--set", "hls.strategy=Resource",
                        "--set", "hls.layers.conv1.reuse_factor=9")  # fmt: skip
    found = json.loads(text)
    assert code == 0 and found["origin"] == "an untrained network of the recipe, before trimming"
    rows = {row["name"]: row for row in found["layers"]}
    assert list(rows) == ["conv1", "conv2", "conv3", "classifier"]
    assert rows["conv1"]["reuse_factor"] == 9 and {r["strategy"] for r in rows.values()} == {"Resource"}
    assert not list(tmp_path.iterdir())  # planning makes nothing


def test_a_recipe_with_an_export_is_planned_as_it_was_trained(tmp_path, capsys, monkeypatch):
    """``of_recipe`` of the export that a finished run left."""
    from pipeline import config

    path = residual().save(tmp_path / "model.onnx")
    subject = planning.of_recipe(config.load(RECIPE, ["hls.margin=0.3"]), path, {})
    assert subject.origin == str(path) and subject.asked["margin"] == 0.3
    assert next(r["name"] for r in subject.plan()["layers"]) == "stem"
