import json

import numpy as np
import pytest

from hls import graph, numerics
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
    growth = {"what": "net", "batch": 3, "cores": 1, "rounds": 1, "compared": 30, "ratio": 70.0, "ratio_min": 70.0,
              "ratio_max": 70.0, "ratio_batched": 2.0,
              "seconds_per_picture": {"ours": [1e-6], "qonnx": [70e-6], "qonnx_batched": [2e-6]}}  # fmt: skip
    many = {"what": "net", "pictures": 5, "cores": 1, "batch": 3, "seconds": 0.1}
    text = bench.page(bench.machine(), [row], quick=False, growth=[growth], many=many)
    assert "| net | 3 | 1 | 70 | 70 (70 .. 70) | 2 | 2.0 | 30 |" in text
    assert f"| 6 | {np.median(row['ours_seconds']):.2f} |" in text and "cores" in text
    json.dumps(row)


def test_different_outputs_are_no_comparison(tiny, monkeypatch):
    genuine = bench.predictor
    monkeypatch.setattr(bench, "predictor", lambda *a, **k: lambda values: genuine(*a, **k)(values) + 1)
    with pytest.raises(bench.BenchError, match="different outputs"):
        tiny()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return bench.exported("cnn_small", (1, 8, 8), tmp_path_factory.mktemp("bench"))


def test_the_reference_is_timed_against_qonnx_on_equal_codes(exported):
    rows = bench.reference_against_qonnx(exported, [1, 8], 4, 1, 1)
    assert [row["batch"] for row in rows] == [1, 8] and [row["compared"] for row in rows] == [40, 80]
    for row in rows:
        times = row["seconds_per_picture"]
        assert row["ratio"] == times["qonnx"][0] / times["ours"][0] > 1
    assert bench.many_pictures(exported, 16, 1)["pictures"] == 16


def test_a_reference_that_differs_is_no_comparison(exported, monkeypatch):
    genuine = bench.Reference.run

    def wrong(self, codes, **options):
        found, lsb = genuine(self, codes, **options)
        found[-1, -1] += 1
        return found, lsb

    monkeypatch.setattr(bench.Reference, "run", wrong)
    with pytest.raises(bench.BenchError, match="different codes"):
        bench.reference_against_qonnx(exported, [2], 2, 1, 1)


def test_wider_networks_have_more_channels(exported, tmp_path):
    wide = bench.exported("cnn_small", (1, 8, 8), tmp_path, 2)

    def weights(path):
        return sum(array.size for array, _ in numerics.analyze(graph.prepare(graph.load(path))).constants.values())

    assert weights(wide) > 2 * weights(exported)
