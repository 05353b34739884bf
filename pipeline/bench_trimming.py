"""Speed of trimming, side by side in one run: part of ``make bench``. Ratios count; seconds go with the machine.

Seconds are those of the processor, on one core, so that other work on the machine counts little.

Trace, score (l1) and remove half of every group's filters of ResNet-56, against Torch-Pruning on the same job, both on
one core; and one pass of relevance statistics against plain inference over the same pictures.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from boards.errors import SlimgateError
from pipeline.trimming import criteria, groups
from pipeline.trimming.methods import convolutions

#: What is asked: seconds for ResNet-56, and how much a pass of statistics may cost of plain inference.
SECONDS, PASS_RATIO = 2.0, 1.15


class BenchError(SlimgateError):
    """The two sides of a comparison do not do the same, or the second one is not installed."""

    exit_code = 1


def network(name: str):
    """A network with random weights, and its module: speed does not depend on what was learned."""
    module = import_module(f"pipeline.models.{name}")
    torch.manual_seed(0)
    return module.build(module.WIDTHS, None).eval(), module


def ours(model, module):
    """The network with half of every group's units, those of largest l1 scores."""
    graph = groups.trace(model, module.INPUT_SHAPE)
    statistics_ = criteria.collect(graph, (), ())
    keep = {
        name: np.sort(np.argsort(criteria.l1(group, statistics_), kind="stable")[group.size // 2 :])
        for name, group in graph.groups.items()
    }
    widths, state = groups.remove(graph, keep)
    smaller = module.build(widths, None)
    smaller.load_state_dict(state)
    return smaller


def theirs(model, module):
    """Torch-Pruning's magnitude pruner on the same job, in place."""
    try:
        import torch_pruning
    except ImportError as error:
        raise BenchError("torch-pruning is not installed", fix="make venv") from error
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, torch.zeros(1, *module.INPUT_SHAPE), torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5, ignored_layers=[model.classifier],
    )  # fmt: skip
    pruner.step()
    return model


def against_torch_pruning(name: str, rounds: int) -> dict:
    """Seconds of both sides in turn; the widths they come to must be equal."""
    model, module = network(name)
    seconds: dict[Callable, list[float]] = {ours: [], theirs: []}
    for turn in range(rounds + 1):
        widths = []
        for side, times in seconds.items():
            given = copy.deepcopy(model)
            began = time.process_time()
            made = side(given, module)
            if turn:  # the first round imports and warms up
                times.append(time.process_time() - began)
            widths.append({path: part.out_channels for path, part in convolutions(made).items()})
        if widths[0] != widths[1]:
            raise BenchError(f"{name}: we and Torch-Pruning come to different widths")
    return _row(f"trace, l1 and remove half of {name}, against Torch-Pruning", rounds, *seconds.values())


def statistics_against_inference(name: str, pictures: int, rounds: int, batch: int = 64) -> dict:
    """Seconds of one pass of relevance statistics and of plain inference, batch by batch in turn: what else the machine
    does changes from second to second."""
    model, module = network(name)
    graph = groups.trace(model, module.INPUT_SHAPE)
    batches = torch.rand(pictures, *module.INPUT_SHAPE, generator=torch.Generator().manual_seed(0)).split(batch)
    mine, other = [], []

    def alternating(times: list[float]):
        """Hands out the batches; times = [statistics, inference]."""
        for part in batches:
            began = time.process_time()
            with torch.inference_mode():
                model(part)
            between = time.process_time()
            yield part  # comes back when the statistics of this batch are taken
            times[0] += time.process_time() - between
            times[1] += between - began

    for turn in range(rounds + 1):
        times = [0.0, 0.0]
        criteria.collect(graph, alternating(times), ["mean"])
        if turn:  # the first round warms up
            mine.append(times[0])
            other.append(times[1])
    return _row(f"relevance statistics of {name}, against plain inference", rounds, mine, other)


def _row(what: str, rounds: int, mine: list[float], other: list[float]) -> dict:
    ratios = [a / b for a, b in zip(mine, other, strict=True)]
    return {"what": what, "rounds": rounds, "ours_seconds": mine, "theirs_seconds": other,
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """0 where every aim of this page is met, 1 where one is missed."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.bench_trimming", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench-trimming.json"), help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of the two sides (default: 5)")
    parser.add_argument("--page", type=Path, help="also write Markdown, such as docs/results/bench-trimming.md")
    parser.add_argument("--quick", action="store_true", help="a small network: a trial of the benchmark itself")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    removal = against_torch_pruning("resnet8" if options.quick else "resnet56", options.rounds)
    measured = statistics_against_inference("resnet8", 64, options.rounds, 64) if options.quick else (
        statistics_against_inference("resnet20", 1024, options.rounds))  # fmt: skip
    aims = [
        (f"below {SECONDS:g} s, and ratio at most 1", statistics.median(removal["ours_seconds"]) < SECONDS
         and removal["ratio"] <= 1),
        (f"ratio at most {PASS_RATIO:g}", measured["ratio"] <= PASS_RATIO),
    ]  # fmt: skip
    table = Table("what", "ours s", "theirs s", "ours / theirs", "min .. max", "aim", "met")
    for row, (aim, met) in zip((removal, measured), aims, strict=True):
        table.add_row(
            row["what"], f"{statistics.median(row['ours_seconds']):.3f}",
            f"{statistics.median(row['theirs_seconds']):.3f}", f"{row['ratio']:.3f}",
            f"{row['ratio_min']:.3f} .. {row['ratio_max']:.3f}", aim, "yes" if met else "no",
        )  # fmt: skip
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": platform.platform(), "results": [removal, measured], "met": [bool(met) for _, met in aims]}
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    if options.page:
        options.page.write_text(page((removal, measured), aims), encoding="utf-8")
    return 0 if all(met for _, met in aims) else 1


def page(rows, aims) -> str:
    """The results as Markdown, with the command and the machine."""
    lines = [
        f"| {row['what']} | {statistics.median(row['ours_seconds']):.3f} "
        f"| {statistics.median(row['theirs_seconds']):.3f} | {row['ratio']:.3f} "
        f"| {row['ratio_min']:.3f} .. {row['ratio_max']:.3f} | {aim} | {'yes' if met else 'no'} |"
        for row, (aim, met) in zip(rows, aims, strict=True)
    ]
    return "\n".join([
        "# Speed of trimming, side by side",
        "",
        f"Written by `make bench` through `pipeline/bench_trimming.py --rounds {rows[0]['rounds']} --page`. Both sides "
        "ran in turn on one core;",
        "seconds are those of the processor and tell something about this machine only. A ratio below 1 means that",
        "slimgate is faster; both sides of the first row come to the same widths, or there would be no page.",
        "",
        "| what | ours, s | theirs, s | ours / theirs (median) | min .. max | aim | met |",
        "|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"machine: {platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}",
        "",
    ])


if __name__ == "__main__":
    raise SystemExit(main())
