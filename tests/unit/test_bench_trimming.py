"""The benchmark of trimming measures, compares and refuses; how fast it is stands on its page."""

import json

import pytest
import torch

from pipeline import bench_trimming as bench


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_trial_writes_both_rows(tmp_path):
    out, page = tmp_path / "b.json", tmp_path / "b.md"
    code = bench.main(["--quick", "--rounds", "2", "--out", str(out), "--page", str(page)])
    told = json.loads(out.read_text())
    assert [len(row["ours_seconds"]) for row in told["results"]] == [2, 2]
    assert all(row["ratio_min"] <= row["ratio"] <= row["ratio_max"] for row in told["results"])
    assert code == (0 if all(told["met"]) else 1)
    assert page.read_text().count("| yes |") + page.read_text().count("| no |") == 2


def test_sides_that_do_different_jobs_are_refused(monkeypatch):
    monkeypatch.setattr(bench, "theirs", lambda model, module: model)
    with pytest.raises(bench.BenchError, match="different widths"):
        bench.against_torch_pruning("cnn_small", 1)
