"""The study of criteria: a grid on tiny settings, stopped and gone on with, and what its table says."""

import json

from pipeline.studies import trimming as study

TINY = ["train.epochs=1", "trim.finetune_epochs=0", "trim.steps=1", "quantize.epochs=0",
        'model.widths={"conv1"=4, "conv2"=4, "conv3"=4}']  # fmt: skip


def run(folder, *more):
    settings = [word for item in TINY for word in ("--set", item)]
    once = ["--seeds", "1", "--processes", "1", "--ratios", "0.3"]
    return study.main(["--folder", str(folder), *once, *settings, *more])


def test_a_grid_is_resumed_and_told(tmp_path):
    cells, page, table = tmp_path / "cells", tmp_path / "p.md", tmp_path / "c.csv"
    methods = ["--methods", "l1", "scratch", "random"]
    assert run(cells, *methods, "--page", str(page), "--csv", str(table)) == 0
    assert sorted(file.name for file in cells.glob("*.json")) == [
        "float-0.json", "l1-0.3-0.json", "random-0.3-0.json", "scratch-0.3-0.json",
    ]  # fmt: skip
    assert page.read_text().count("1 of 1") == 3 and len(table.read_text().splitlines()) == 4
    # A finished cell is taken as it is; one of another key is computed again.
    kept, other = cells / "l1-0.3-0.json", cells / "scratch-0.3-0.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"trimmed": 0.5}))
    other.write_text(json.dumps(json.loads(other.read_text()) | {"trimmed": 0.5, "key": "old"}))
    run(cells, *methods)
    assert json.loads(kept.read_text())["trimmed"] == 0.5 != json.loads(other.read_text())["trimmed"]


def test_what_did_not_run_says_so():
    cell = {"cell": ["l1", 0.3, 0], "trimmed": 0.9, "quantized": 0.8, "macs_removed": 0.31, "cycles": 900, "lut": 5000}
    more = cell | {"cell": ["l1", 0.3, 1], "trimmed": 0.94}
    impossible = {"cell": ["pfa", 0.3, 0], "error": "why"}
    rows = study.table([cell, more, impossible], ["l1", "pfa", "random"], [0.3], 2)
    assert "| 2 of 2 | 92.00 ± 2.83 | 80.00 ± 0.00 | 31.0 ± 0.0 | 900 ± 0 |" in rows[0]
    assert "| pfa | 0 of 2 | not possible: why |" in rows[1] and "| random | 0 of 2 | not run |" in rows[2]
