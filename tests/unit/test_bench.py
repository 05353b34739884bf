import json

import numpy as np
import pytest

from pipeline import bench


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The benchmark of one small network with few samples; what is tested is that it compares and refuses."""
    monkeypatch.setenv("SLIMGATE_CACHE", str(tmp_path / "cache"))
    return lambda: bench.csim_against_hls4ml("cnn_small", (1, 8, 8), 6, 2, tmp_path)


def test_both_sides_are_timed_on_the_same_samples_and_the_page_tells_it(tiny):
    row = tiny()
    assert len(row["ours_seconds"]) == len(row["theirs_seconds"]) == 2
    assert row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    text = bench.page(bench.machine(), [row], quick=False)
    assert f"| 6 | {np.median(row['ours_seconds']):.2f} |" in text and "cores" in text
    json.dumps(row)


def test_different_outputs_are_no_comparison(tiny, monkeypatch):
    genuine = bench.predictor
    monkeypatch.setattr(bench, "predictor", lambda *a, **k: lambda values: genuine(*a, **k)(values) + 1)
    with pytest.raises(bench.BenchError, match="different outputs"):
        tiny()
