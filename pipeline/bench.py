"""Speed, side by side in one run: ``make bench``. Ratios count; seconds are recorded with the machine.

C simulation by :mod:`hls.csim` (copies of the design on all cores, codes in and out) against hls4ml's own ``predict()``
on the same project, alternating, compile time apart; the integer reference (:mod:`hls.reference`) against qonnx
execution of the exported file. Both sides must give the same codes or there is nothing to compare. Then planning
(:mod:`pipeline.bench_plan`).
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from boards.board import load as load_board
from boards.errors import SlimgateError
from hls import csim, graph, numerics
from hls.convert import convert, predictor
from hls.plan import make_plan
from hls.reference import Reference
from pipeline import bench_plan, models
from pipeline.export import export
from pipeline.quantize import calibrate, twin

#: Pictures at a time, and widths as multiples of the model's own, for the growth of the reference.
BATCHES, GROWTH_BATCH, WIDTHS = [1, 4, 16, 64, 256, 1024], 16, [0.5, 1, 2, 4]
BITS = {"weights": 4, "activations": 4, "input": 8, "bias": 16, "layers": {}}


class BenchError(SlimgateError):
    """The two sides of a comparison do not compute the same."""

    exit_code = 1


def exported(name: str, shape: tuple[int, int, int], folder: Path, width: float = 1) -> Path:
    """A W4A4 network with random weights, calibrated on random pictures: speed does not depend on what was learned.
    ``width`` times as many channels as the model has by default. Returns the QONNX file."""
    torch.manual_seed(0)
    widths = {module: max(1, round(width * count)) for module, count in models.widths_of(name).items()}
    quantized = twin(name, widths, BITS, shape, 10)
    calibrate(quantized, torch.randint(0, 256, (64, *shape), dtype=torch.uint8), BITS["input"])
    path = folder / f"{name}-{width:g}.onnx"
    export(quantized.eval(), shape, path)
    return path


def network(name: str, shape: tuple[int, int, int], folder: Path):
    """(prepared graph, analysis) of :func:`exported`."""
    prepared = graph.prepare(graph.load(exported(name, shape, folder)))
    return prepared, numerics.analyze(prepared)


def csim_against_hls4ml(name: str, shape: tuple[int, int, int], samples: int, rounds: int, folder: Path) -> dict:
    """Seconds of both sides, alternating ``rounds`` times over the same ``samples`` pictures, and their ratios."""
    prepared, analysis = network(name, shape, folder)
    board = load_board("pynq-z2")
    plan = make_plan(prepared, analysis, board=board, over_budget=True)
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


@contextlib.contextmanager
def threads(count: int):
    """Both torch and onnxruntime on ``count`` cores: onnxruntime makes its threads anew for every session, with the
    cores that this thread may use."""
    before, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(count)
    os.sched_setaffinity(0, sorted(cores)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(before)


def reference_against_qonnx(file: Path, batches: list[int], samples: int, rounds: int, cores: int) -> list[dict]:
    """Time per picture of the integer reference and of qonnx execution, both on ``cores`` cores, in turn: a row for
    each of ``batches``. qonnx runs the file as it was exported, one picture at a time, and once more with as many
    pictures at a time as the reference (:func:`hls.graph.with_batch`). Raises :class:`BenchError` if a code differs."""
    loaded = graph.load(file)
    model = graph.prepare(loaded)
    analysis = numerics.analyze(model)
    reference, readers = Reference(model, analysis), model.find_consumers(model.graph.input[0].name)
    grid, shape = analysis.tensors[readers[0].output[0]], graph.input_shape(model)
    most = max(samples, *batches)
    codes = np.random.default_rng(0).integers(grid.min, grid.max + 1, (most, *shape))
    values = np.moveaxis(np.ldexp(codes.astype(np.float32), grid.lsb), -1, 1)
    single = loaded, values[:samples]
    rows = []
    with threads(cores):
        for batch in batches:
            count = max(samples, batch)
            times: dict[str, list[float]] = {"ours": [], "qonnx": [], "qonnx_batched": []}
            reference.run(codes[:batch], batch=batch)  # what is slow only once
            for _ in range(rounds):
                found, ours = _timed(lambda n=count, b=batch: reference.run(codes[:n], batch=b))
                times["ours"].append(ours / count)
                one, seconds = _timed(lambda: graph.execute(*single, batch=1))
                times["qonnx"].append(seconds / samples)
                many, seconds = _timed(lambda n=count, b=batch: graph.execute(loaded, values[:n], batch=b))
                times["qonnx_batched"].append(seconds / count)
            integers, lsb = found
            for other in (one, many):
                wanted = np.ldexp(next(iter(other.values())).astype(np.float64), -lsb)
                if not np.array_equal(integers[: len(wanted)], wanted):
                    raise BenchError(f"{file.stem}: the integer reference and qonnx execution give different codes")
            ratios = [b / a for a, b in zip(times["ours"], times["qonnx"], strict=True)]
            batched = [b / a for a, b in zip(times["ours"], times["qonnx_batched"], strict=True)]
            rows.append({
                "what": file.stem, "batch": batch, "cores": cores, "rounds": rounds, "samples": count,
                "compared": int(integers.size), "seconds_per_picture": times,
                "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
                "ratio_batched": statistics.median(batched),
            })  # fmt: skip
    return rows


def _timed(work):
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def many_pictures(file: Path, count: int, cores: int) -> dict:
    """Seconds of the reference for ``count`` random pictures, as many at a time as it chooses itself."""
    model = graph.prepare(graph.load(file))
    reference = Reference(model, numerics.analyze(model))
    codes = np.random.default_rng(1).integers(0, 256, (count, *graph.input_shape(model)))
    with threads(cores):
        _, seconds = _timed(lambda: reference.run(codes))
    return {"what": file.stem, "pictures": count, "cores": cores, "batch": reference.batch, "seconds": seconds}


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
        "g++": csim.compiler_version(csim.compiler()).splitlines()[0],
        **{name: metadata.version(name) for name in ("torch", "qonnx", "onnxruntime")},
    }


def _growth(rows: list[dict]) -> list[str]:
    """Table rows: microseconds per picture of both sides, and ratios."""

    def micro(row, side):
        return f"{1e6 * statistics.median(row['seconds_per_picture'][side]):.0f}"

    return [
        f"| {row['what']} | {row['batch']} | {micro(row, 'ours')} | {micro(row, 'qonnx')} "
        f"| {row['ratio']:.0f} ({row['ratio_min']:.0f} .. {row['ratio_max']:.0f}) | {micro(row, 'qonnx_batched')} "
        f"| {row['ratio_batched']:.1f} | {row['compared']} |"
        for row in rows
    ]


def page(machine: dict, results: list[dict], quick: bool, growth: list[dict], many: dict) -> str:
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
        "`ap_types` keeps results in registers (`hls.csim.faster_types`).",
        "",
        "## Integer reference against qonnx",
        "",
        f"Microseconds per picture, medians of {growth[0]['rounds']} rounds in turn; both sides on "
        f"{growth[0]['cores']} core(s). qonnx",
        "executes the exported file as it is, one picture at a time; in the last columns with as many at a time as the",
        "reference, which `hls.graph.with_batch` makes possible. `resnet8-2` has twice the channels of `resnet8-1`.",
        "All codes compared were equal.",
        "",
        "| network | pictures at a time | reference, us | qonnx, us | ratio (min .. max) | qonnx batched, us | ratio "
        "| codes compared |",
        "|---|---|---|---|---|---|---|---|",
        *_growth(growth),
        "",
        f"{many['pictures']} pictures through {many['what']} take the reference {many['seconds']:.1f} s on "
        f"{many['cores']} core(s), {many['batch']} at a time",
        "(its own choice: more leave the processor's cache between two layers). qonnx makes an onnxruntime session for",
        "every node of every call; the reference keeps tensors in float32 in units in which quantizing is rounding and",
        "clipping.",
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
    parser.add_argument("--cores", type=int, default=1, help="cores for the reference and qonnx (default: 1)")
    options = parser.parse_args(arguments)
    scale = 50 if options.quick else 1
    console, before = Console(), machine()
    with tempfile.TemporaryDirectory() as scratch:
        results = [
            csim_against_hls4ml("cnn_small", (1, 8, 8), 10_000 // scale, options.rounds, Path(scratch)),
            csim_against_hls4ml("resnet8", (3, 32, 32), 200 // scale, options.rounds, Path(scratch)),
        ]
        onnxruntime.set_default_logger_severity(3)  # it warns of the opset that qonnx gives single nodes
        growth: list[dict] = []
        for width in WIDTHS:
            file = exported("resnet8", (3, 32, 32), Path(scratch), width)
            batches = BATCHES if width == 1 else [GROWTH_BATCH]
            growth += reference_against_qonnx(file, batches[:2] if options.quick else batches, 4 if options.quick else
                                              32, options.rounds, options.cores)  # fmt: skip
        many = many_pictures(Path(scratch) / "resnet8-1.onnx", 10_000 // scale, options.cores)
    planning = bench_plan.run(load_board("pynq-z2"), options.quick) | {"machine": before}
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
    heads = "network", "at a time", "ours us", "qonnx us", "ratio (min .. max)", "qonnx batched", "ratio", "codes"
    table = Table(*heads)
    for line in _growth(growth):
        table.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    console.print(table)
    console.print(f"{many['pictures']} pictures: {many['seconds']:.1f} s on {many['cores']} core(s)")
    console.print(", ".join(f"{key}: {value}" for key, value in before.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for line in bench_plan.lines(planning):
        console.print(line, markup=False, highlight=False)
    found = {"machine": before, "results": results, "reference": growth, "many": many, "planning": planning}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"written to {options.out}")
    if options.page:
        options.page.write_text(page(before, results, options.quick, growth, many), encoding="utf-8")
        plans = options.page.with_name("planning.md")
        plans.write_text("\n".join(bench_plan.lines(planning)) + "\n", encoding="utf-8")
        console.print(f"written to {options.page} and {plans}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
