"""Speed, side by side in one run: ``make bench``. Ratios count; seconds are recorded with the machine.

C simulation by :mod:`hls.csim` (copies of the design on all cores, codes in and out) against hls4ml's own ``predict()``
on the same project, alternating, compile time apart. Both must give the same outputs or there is nothing to compare.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from boards.board import load as load_board
from boards.errors import SlimgateError
from hls import csim, graph, numerics
from hls.convert import convert, predictor
from hls.plan import make_plan
from pipeline import models
from pipeline.export import export
from pipeline.quantize import calibrate, twin

BITS = {"weights": 4, "activations": 4, "input": 8, "bias": 16, "layers": {}}


class BenchError(SlimgateError):
    """The two sides of a comparison do not compute the same."""

    exit_code = 1


def network(name: str, shape: tuple[int, int, int], folder: Path):
    """An exported W4A4 network with random weights, calibrated on random pictures: speed does not depend on what was
    learned. Returns (prepared graph, analysis)."""
    torch.manual_seed(0)
    quantized = twin(name, models.widths_of(name), BITS, shape, 10)
    calibrate(quantized, torch.randint(0, 256, (64, *shape), dtype=torch.uint8), BITS["input"])
    export(quantized.eval(), shape, folder / f"{name}.onnx")
    prepared = graph.prepare(graph.load(folder / f"{name}.onnx"))
    return prepared, numerics.analyze(prepared)


def csim_against_hls4ml(name: str, shape: tuple[int, int, int], samples: int, rounds: int, folder: Path) -> dict:
    """Seconds of both sides, alternating ``rounds`` times over the same ``samples`` pictures, and their ratios."""
    prepared, analysis = network(name, shape, folder)
    board = load_board("pynq-z2")
    plan = make_plan(prepared, analysis, lut=board.resources["lut"], clock_mhz=board.clock_mhz)
    began = time.perf_counter()
    io = convert(prepared, analysis, plan, part=board.part, folder=folder / name)
    library = csim.compile_design(folder / name, io)
    compile_ours = time.perf_counter() - began
    began = time.perf_counter()
    predict = predictor(prepared, analysis, plan, part=board.part, folder=folder / f"{name}-hls4ml")
    compile_theirs = time.perf_counter() - began

    codes = np.random.default_rng(0).integers(0, 256, (samples, *io["input"]["shape"]))
    values = np.ldexp(codes.astype(np.float32), io["input"]["scale_log2"])
    batch = -(-samples // (os.cpu_count() or 1))
    ours, theirs = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        found = csim.run(library, codes, io, batch=batch)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        other = predict(values)
        theirs.append(time.perf_counter() - began)
    same = np.array_equal(np.ldexp(found.astype(np.float64), io["output"]["scale_log2"]), other.reshape(found.shape))
    if not same:
        raise BenchError(f"{name}: our C simulation and hls4ml's predict() give different outputs")
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "what": f"C simulation of {name} against hls4ml predict()",
        "samples": samples,
        "rounds": rounds,
        "ours_seconds": ours,
        "theirs_seconds": theirs,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "compile_seconds": {"ours": compile_ours, "hls4ml": compile_theirs},
    }


def machine() -> dict:
    """What the seconds were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load": os.getloadavg()[0],
        "g++": csim._compiler_version(csim.compiler()).splitlines()[0],
    }


def page(machine: dict, results: list[dict], quick: bool) -> str:
    """The results as Markdown, with the command and the machine."""
    rows = [
        f"| {row['what']} | {row['samples']} | {statistics.median(row['ours_seconds']):.2f} "
        f"| {statistics.median(row['theirs_seconds']):.2f} | {row['ratio']:.2f} "
        f"| {row['ratio_min']:.2f} .. {row['ratio_max']:.2f} |"
        for row in results
    ]
    return "\n".join([
        "# Speed, side by side",
        "",
        f"Written by `make bench` with the options `--rounds {results[0]['rounds']}"
        f"{' --quick' if quick else ''} --page`.",
        "Both sides ran in turn, with the same samples, on the same project; they gave the same outputs, or there",
        "would be no page. Compile time is apart. A ratio above 1 means that slimgate's C simulation is faster;",
        "seconds tell something about this machine only.",
        "",
        "| what | samples | ours, s | hls4ml, s | ratio (median) | min .. max |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Two things make the difference: copies of the design run on all cores, and the C simulation's copy of",
        "`ap_types` keeps results in registers (`hls.csim._faster_types`).",
        "",
        "; ".join(f"{key}: {value}" for key, value in machine.items()),
        "",
    ])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=3, help="alternations of the two sides (default: 3)")
    parser.add_argument("--page", type=Path, help="also write the table as Markdown, such as docs/results/bench.md")
    parser.add_argument("--quick", action="store_true", help="few samples: a trial of the benchmark itself")
    options = parser.parse_args(arguments)
    scale = 50 if options.quick else 1
    console, before = Console(), machine()
    with tempfile.TemporaryDirectory() as scratch:
        results = [
            csim_against_hls4ml("cnn_small", (1, 8, 8), 10_000 // scale, options.rounds, Path(scratch)),
            csim_against_hls4ml("resnet8", (3, 32, 32), 200 // scale, options.rounds, Path(scratch)),
        ]
    table = Table("what", "samples", "ours s", "theirs s", "ratio (median)", "min .. max")
    for row in results:
        table.add_row(
            row["what"],
            str(row["samples"]),
            f"{statistics.median(row['ours_seconds']):.2f}",
            f"{statistics.median(row['theirs_seconds']):.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ratio_min']:.2f} .. {row['ratio_max']:.2f}",
        )
    console.print(table)
    console.print(", ".join(f"{key}: {value}" for key, value in before.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": before, "results": results}, indent=1) + "\n")
    console.print(f"written to {options.out}")
    if options.page:
        options.page.write_text(page(before, results, options.quick), encoding="utf-8")
        console.print(f"written to {options.page}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
