"""What the torch stages share: reading the data stage's folder and telling a network's figures."""

import json
from pathlib import Path

from torch import nn

from pipeline import models
from pipeline.statistics import wilson
from pipeline.train import evaluate, load_state, read_split, read_state, set_threads
from pipeline.trimming.count import count


def read_data(folder: Path) -> dict:
    """{"input_shape": (C, H, W), "classes": K, "train" | "val" | "test": (pixels NCHW uint8, labels)}."""
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    height, width, channels = description["shape"]
    set_threads(height * width * channels)
    splits = {name: read_split(folder / f"{name}.npz") for name in ("train", "val", "test")}
    return {"input_shape": (channels, height, width), "classes": len(description["labels"]), **splits}


def read_network(ctx, stage: str, data: dict) -> tuple[nn.Module, dict[str, int]]:
    """The float network a stage made, and its widths."""
    folder = ctx.inputs[stage]
    widths = json.loads((folder / "widths.json").read_text(encoding="utf-8"))
    model = models.build(ctx.recipe.model.name, widths, None, data["input_shape"], data["classes"])
    return load_state(model, read_state(folder / "state.pt")), widths


def write_json(file: Path, value: object) -> None:
    """JSON with sorted keys, so that equal values give equal bytes."""
    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def tell_accuracy(ctx, split: str, model: nn.Module, data: dict, bits: int = 8) -> None:
    """Record ``accuracy_<split>`` with its Wilson 95 % interval."""
    pixels, labels = data[split]
    correct, _ = evaluate(model, pixels, labels, bits)
    tell_share(ctx, f"accuracy_{split}", correct, len(labels))


def tell_share(ctx, name: str, successes: int, total: int) -> None:
    """Record a proportion with its Wilson 95 % interval."""
    ctx.metric(name, successes / total, "trained", interval=wilson(successes, total), successes=successes, total=total)


def tell_size(ctx, model: nn.Module, input_shape) -> dict:
    """Record ``macs`` and ``parameters``; returns the whole count."""
    counted = count(model, input_shape)
    ctx.metric("macs", counted["macs"], "trained", unit="MAC", layers=counted["layers"])
    ctx.metric("parameters", counted["parameters"], "trained")
    return counted
