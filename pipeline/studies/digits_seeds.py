"""Does the digits recipe keep its accuracy? Float, trimmed and quantised networks over several seeds.

    python -m pipeline.studies.digits_seeds [--seeds 5] [--recipe runs/digits.toml] [--output docs/results/digits.md]

The split is the recipe's own; the seed varies initial weights, batches and augmentation. Hyperparameters were chosen
on validation accuracy; the test pictures are only counted here.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

import torch

from pipeline import config, models
from pipeline.datasets import digits
from pipeline.quantize import bits_of, observe, quantize
from pipeline.stages.trim import trimmed
from pipeline.train import evaluate, fit, seed_everything, set_threads, to_tensors

COMMAND = "python -m pipeline.studies.digits_seeds"
NETWORKS = ("float", "trimmed", "quantized")


def read_digits(recipe) -> dict:
    """The splits as the torch stages see them."""
    loaded = digits.load(recipe)
    splits = {name: to_tensors(split["pixels"], split["labels"]) for name, split in loaded["splits"].items()}
    return {"input_shape": tuple(splits["train"][0].shape[1:]), "classes": len(loaded["labels"]), **splits}


def one_seed(recipe, data: dict) -> dict:
    """Train, trim and quantise once.

    Returns {"float" | "trimmed" | "quantized": {"val", "test"}, "removed", "widths", "seconds"}; shares in 0..1.
    """
    began = time.monotonic()
    shape, classes = data["input_shape"], data["classes"]
    set_threads(data["train"][0][0].numel())
    name, settings = recipe.model.name, recipe.train
    seed_everything(recipe.seed)
    model = models.build(name, models.widths_of(name, recipe.model.widths), None, shape, classes)
    fit(
        model, data["train"], data["val"], epochs=settings.epochs, batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, augment=settings.augment,
        seed=recipe.seed,
    )  # fmt: skip
    result = trimmed(model, recipe, data)
    smaller = models.build(name, result.widths, None, shape, classes)
    smaller.load_state_dict(result.state)
    bits, options = bits_of(recipe.quantize), recipe.quantize
    twin, _ = quantize(
        smaller, name, result.widths, bits, data["train"], data["val"], classes=classes, seed=recipe.seed,
        epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.learning_rate,
        weight_decay=settings.weight_decay, patience=options.patience, augment=settings.augment,
    )  # fmt: skip
    found = {"removed": 1 - result.after["macs"] / result.before["macs"], "widths": result.widths}
    for network, label, bits_in in ((model, "float", 8), (smaller, "trimmed", 8), (twin, "quantized", bits["input"])):
        found[label] = {
            split: evaluate(network, *data[split], bits_in)[0] / len(data[split][1]) for split in ("val", "test")
        }
    # The figure that counts is the argmax of the integer codes.
    codes = torch.from_numpy(observe(twin, data["test"][0], bits["input"]).outputs)
    found["quantized"]["test"] = float((codes.argmax(1) == data["test"][1]).double().mean())
    return found | {"seconds": time.monotonic() - began}


def page(recipe, results: list[dict], counts: dict[str, int]) -> str:
    """The results as Markdown."""

    def spread(values):
        return f"{100 * mean(values):.2f} | {100 * stdev(values):.2f}" if len(values) > 1 else f"{100 * values[0]} | -"

    def row(seed, result):
        cells = [f"{100 * result[n]['test']:.2f}" for n in NETWORKS]
        widths = "-".join(map(str, result["widths"].values()))
        return f"| {seed} | {' | '.join(cells)} | {100 * result['removed']:.1f} | {widths} |"

    quant = recipe.quantize
    gap = 100 * (mean(r["float"]["test"] for r in results) - mean(r["quantized"]["test"] for r in results))
    bits = f"W{quant.weights}A{quant.activations}"
    lines = [
        "# Digits: float, trimmed and quantized",
        "",
        f"`{COMMAND}`, recipe `{recipe.name}`, seeds 0..{len(results) - 1}; split fixed: "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + " pictures. Evidence: trained (computed by the PyTorch networks themselves).",
        "",
        "| test accuracy, % | mean | standard deviation |",
        "|---|---|---|",
        f"| float | {spread([r['float']['test'] for r in results])} |",
        f"| trimmed | {spread([r['trimmed']['test'] for r in results])} |",
        f"| trimmed, {bits} | {spread([r['quantized']['test'] for r in results])} |",
        f"| MACs removed | {spread([r['removed'] for r in results])} |",
        "",
        f"Mean of float minus mean of trimmed {bits}: {gap:.2f} points.",
        "",
        f"| seed | float | trimmed | {bits} | MACs removed | widths kept |",
        "|---|---|---|---|---|---|",
        *(row(seed, result) for seed, result in enumerate(results)),
        "",
        f"Training, trimming and quantizing took {mean(r['seconds'] for r in results):.0f} s per seed on one core of a "
        f"{platform.machine()} machine; torch {version('torch')}, brevitas {version('brevitas')}. "
        "Hyperparameters were chosen on validation accuracy.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", type=Path, default=config.ROOT / "runs" / "digits.toml")
    parser.add_argument("--output", type=Path, default=config.ROOT / "docs" / "results" / "digits.md")
    arguments = parser.parse_args()
    results, data = [], None
    for seed in range(arguments.seeds):
        recipe = config.load(arguments.recipe, [f"seed={seed}"])
        data = data or read_digits(recipe)
        results.append(one_seed(recipe, data))
        shown = ", ".join(f"{name} {100 * results[-1][name]['test']:.2f} %" for name in NETWORKS)
        print(f"seed {seed}: {shown}, {results[-1]['seconds']:.0f} s", flush=True)
    counts = {name: len(data[name][1]) for name in ("train", "val", "test")}
    arguments.output.write_text(page(recipe, results, counts), encoding="utf-8")


if __name__ == "__main__":
    main()
