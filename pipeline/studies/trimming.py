"""Criteria side by side: every method x ratio x seed on one recipe, resumable, in parallel processes.

    python -m pipeline.studies.trimming [--recipe runs/digits.toml] [--ratios 0.3 0.5 0.7 0.85] [--seeds 5]
        [--methods relevance l1 ...] [--processes 2] [--folder build/trimming] [--page FILE] [--csv FILE]

A finished cell is one JSON file with the key of its recipe and is not computed again; a stopped study goes on where it
was. Controls: "random", and "scratch" (the widths that relevance comes to, trained like a new network). "cluster" is
cluster pruning of the l2 norm with widths from the hardware. The float network of a seed is trained once and shared.
Test pictures are only counted. Cells that did not run say so.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import torch

from boards import board as boards
from boards.errors import SlimgateError
from pipeline import config, models
from pipeline.quantize import bits_of, quantize
from pipeline.stages.trim import hardware, trimmed
from pipeline.train import evaluate, fit, read_state, save_state, seed_everything, set_threads, to_tensors
from pipeline.trimming import groups

COMMAND = "python -m pipeline.studies.trimming"
METHODS: dict[str, list[str]] = {
    "relevance": ["trim.method=relevance"],
    "cluster": ["trim.method=l2", "trim.granularity=cluster", "trim.cluster_size=auto"],
    **{name: [f"trim.method={name}"] for name in (
        "l1", "l2", "fpgm", "apoz", "hrank", "slimming", "taylor", "taylor_bn", "pca", "pfa", "random")},
    "scratch": ["trim.method=relevance", "trim.rewind=scratch"],
}  # fmt: skip
FIGURES = ("float", "trimmed", "quantized", "macs_removed", "parameters_removed", "cycles", "lut")


def key_of(recipe, *sections: str) -> str:
    """What a finished cell depends on: these sections of the recipe (all of it where none is named), and versions."""
    asked = {name: value for name, value in recipe.dump().items() if name in sections or not sections}
    asked.pop("name", None)
    tools = {name: version(name) for name in ("torch", "brevitas")}
    return hashlib.sha256(json.dumps([asked, tools], sort_keys=True).encode()).hexdigest()


def finished(file: Path, key: str) -> dict | None:
    """A cell's figures, where it was computed for this key."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def write(file: Path, found: dict) -> None:
    """All of it or nothing: a study may be stopped at any time."""
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    scratch.replace(file)


def read_data(recipe) -> dict:
    """The splits as the torch stages see them."""
    loaded = import_module(f"pipeline.datasets.{recipe.data.name}").load(recipe)
    splits = {name: to_tensors(split["pixels"], split["labels"]) for name, split in loaded["splits"].items()}
    return {"input_shape": tuple(splits["train"][0].shape[1:]), "classes": len(loaded["labels"]), **splits}


def loaded(path: Path, overrides: list[str], cell: tuple[str, float, int]):
    """The recipe of one cell (method, ratio, seed)."""
    method, ratio, seed = cell
    asked = [f"seed={seed}", "trim.of=macs", f"trim.ratio={ratio}", *METHODS[method]]
    return config.load(path, [*overrides, *asked])


def float_network(recipe, data: dict, folder: Path):
    """The trained float network of the recipe's seed, trained where it is not there yet."""
    name, settings = recipe.model.name, recipe.train
    set_threads(data["train"][0][0].numel())
    seed_everything(recipe.seed)
    model = models.build(name, models.widths_of(name, recipe.model.widths), None, data["input_shape"], data["classes"])
    key = key_of(recipe, "seed", "data", "model", "train")
    file = folder / f"float-{recipe.seed}.json"
    if finished(file, key) is None:
        fit(
            model, data["train"], data["val"], epochs=settings.epochs, batch_size=settings.batch_size,
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, augment=settings.augment,
            seed=recipe.seed, sparsity=settings.sparsity,
        )  # fmt: skip
        save_state(model, file.with_suffix(".pt"))
        write(file, {"key": key})
    else:
        model.load_state_dict(read_state(file.with_suffix(".pt")))
    return model


def train_float(path: Path, overrides: list[str], folder: Path, seed: int) -> None:
    """Train the float network of one seed, so that cells find it."""
    recipe = config.load(path, [*overrides, f"seed={seed}"])
    float_network(recipe, read_data(recipe), folder)


def compute(path: Path, overrides: list[str], folder: Path, cell: tuple[str, float, int]) -> dict:
    """One cell: trim, fine-tune, quantise, predict. A method that cannot do it leaves the reason, under "error"."""
    recipe = loaded(path, overrides, cell)
    file, key = folder / "{}-{:g}-{}.json".format(*cell), key_of(recipe)
    if (found := finished(file, key)) is not None:
        return found
    found = {"key": key, "cell": list(cell)}
    data = read_data(recipe)
    model, board = float_network(recipe, data, folder), hardware(boards.load(recipe.board), recipe)

    def share(network, bits: int = 8) -> float:
        return evaluate(network, *data["test"], bits)[0] / len(data["test"][1])

    try:
        result = trimmed(model, recipe, data, board)
        name, shape, classes = recipe.model.name, data["input_shape"], data["classes"]
        smaller = models.build(name, result.widths, None, shape, classes)
        smaller.load_state_dict(result.state)
        options, bits = recipe.quantize, bits_of(recipe.quantize)
        twin, _ = quantize(
            smaller, name, result.widths, bits, data["train"], data["val"], classes=classes, seed=recipe.seed,
            epochs=options.epochs, batch_size=options.batch_size, learning_rate=options.learning_rate,
            weight_decay=recipe.train.weight_decay, patience=options.patience, augment=recipe.train.augment,
        )  # fmt: skip
    except SlimgateError as error:
        found["error"] = error.what
    else:
        graph = groups.trace(smaller, shape)
        size = {layer: [len(of.inputs), len(of.outputs)] for layer, of in graph.layers.items()}
        plan = board.network(graph, size)
        found |= {
            "float": share(model), "trimmed": share(smaller), "quantized": share(twin, bits["input"]),
            "macs_removed": 1 - result.after["macs"] / result.before["macs"],
            "parameters_removed": 1 - result.after["parameters"] / result.before["parameters"],
            "cycles": plan.interval(), "lut": round(plan.taken(plan.interval())["lut"]), "fits": plan.fits(),
            "widths": result.widths,
        }  # fmt: skip
    write(file, found)
    return found


def table(cells: list[dict], methods: list[str], ratios: list[float], seeds: int) -> list[str]:
    """Markdown rows: a method at a ratio, mean and standard deviation over the seeds that ran."""
    rows = []
    for ratio in ratios:
        for method in methods:
            ran = [cell for cell in cells if cell["cell"][:2] == [method, ratio] and "error" not in cell]
            failed = [cell["error"] for cell in cells if cell["cell"][:2] == [method, ratio] and "error" in cell]
            if not ran:
                reason = f"not possible: {failed[0]}" if failed else "not run"
                rows.append(f"| {ratio:g} | {method} | 0 of {seeds} | {reason} | | | | |")
                continue

            def spread(name: str, of=ran, scale: float = 100, digits: int = 2) -> str:
                values = [scale * cell[name] for cell in of]
                return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")

            rows.append(
                f"| {ratio:g} | {method} | {len(ran)} of {seeds} | {spread('trimmed')} | {spread('quantized')} "
                f"| {spread('macs_removed', digits=1)} | {spread('cycles', scale=1, digits=0)} "
                f"| {spread('lut', scale=1, digits=0)} |"
            )
    return rows


def page(recipe, cells: list[dict], methods: list[str], ratios: list[float], seeds: int) -> str:
    """The study as Markdown."""
    ran = {cell["cell"][2]: cell["float"] for cell in cells if "error" not in cell}
    base = f"{100 * mean(ran.values()):.2f} % on average over {len(ran)} seed(s)" if ran else "not run"
    return "\n".join([
        f"# Trimming: {recipe.name}",
        "",
        f"`{COMMAND}`, recipe `{recipe.name}`, network `{recipe.model.name}`, seeds 0..{seeds - 1}. Accuracy of the",
        f"test pictures in %, mean ± standard deviation over seeds (trained). Untrimmed: {base}. Cycles (initiation",
        f"interval) and LUT are predictions for {recipe.board}, replanned for every network (estimated).",
        "",
        "| of MACs asked | method | seeds | trimmed | quantized | MACs removed, % | cycles | LUT |",
        "|---|---|---|---|---|---|---|---|",
        *table(cells, methods, ratios, seeds),
        "",
        f"torch {version('torch')} on {torch.get_num_threads()} thread(s) a process, no GPU.",
        "",
    ])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=config.ROOT / "runs" / "digits.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `slimgate run`")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.85])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path("build/trimming"), help="where finished cells are kept")
    parser.add_argument("--page", type=Path, help="also write the table as Markdown")
    parser.add_argument("--csv", type=Path, help="also write one line per cell")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    grid = [(m, r, s) for s in range(options.seeds) for r in options.ratios for m in options.methods]
    for cell in grid:  # what a recipe may not ask is told before anything is trained
        recipe = loaded(options.recipe, options.set, cell)
    asked = (options.recipe, options.set, options.folder)
    # Not forked: threads of torch that another process started do not answer in a copy of it.
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(train_float, *asked), range(options.seeds)))
        cells = []
        for found in pool.map(partial(compute, *asked), grid):
            cells.append(found)
            method, ratio, seed = found["cell"]
            told = found.get("error") or f"trimmed {100 * found['trimmed']:.2f} %"
            print(f"{len(cells)} of {len(grid)}: {method} at {ratio:g}, seed {seed}: {told}", flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["method", "ratio", "seed", *FIGURES, "error"])
            rows.writerows([*c["cell"], *(c.get(name, "") for name in FIGURES), c.get("error", "")] for c in cells)
    if options.page:
        options.page.write_text(page(recipe, cells, options.methods, options.ratios, options.seeds), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
