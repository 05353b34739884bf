from types import SimpleNamespace

from pipeline.studies import digits_seeds


def test_the_page_has_means_spread_and_gap():
    recipe = SimpleNamespace(name="digits", quantize=SimpleNamespace(weights=4, activations=4))
    results = [
        {
            **{n: {"test": share + step} for n, share in (("float", 0.98), ("trimmed", 0.97), ("quantized", 0.96))},
            "removed": 0.5 + step,
            "widths": {"conv1": 3, "conv2": 4},
            "seconds": 10.0,
        }
        for step in (0.0, 0.01)
    ]
    page = digits_seeds.page(recipe, results, {"test": 359})
    assert "| float | 98.50 | 0.71 |" in page
    assert "| trimmed, W4A4 | 96.50 | 0.71 |" in page
    assert "2.00 points" in page
    assert "| 1 | 99.00 | 98.00 | 97.00 | 51.0 | 3-4 |" in page
    assert "359 test" in page
    assert "| float | 98.0 | - |" in digits_seeds.page(recipe, results[:1], {"test": 359})
