"""Are random networks carried exactly? Hundreds of them, over operations and attributes, each in C simulation.

    python -m pipeline.studies.random_graphs [--cases 300] [--processes 1] [--minutes 60] [--seed 0]

Every seed gives one network (``tests/random_graphs.py``). What was judged is kept in ``build/random_graphs.jsonl`` and
not judged again. A fault is a differing code or an error that is no refusal; exit code 1 if there is one.
"""

import argparse
import json
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from boards.errors import SlimgateError
from hls import csim
from hls.graph import GraphError
from hls.numerics import NotExact
from pipeline.config import ROOT
from tests import random_graphs

#: What the C++ means does not depend on the level, and compiling takes most of the time.
FLAGS = ("-O0", *csim.FLAGS[1:])


def judge(seed: int) -> dict:
    """{"seed", "verdict": exact | refused | uniform | fault, "words", "operations", "compared"}."""
    csim.FLAGS = FLAGS
    random = np.random.default_rng(seed)
    net = random_graphs.network(lambda *options: options[random.integers(len(options))], seed)
    row = {"seed": seed, "operations": dict(random_graphs.operations(net)), "compared": 0}
    if not random_graphs.diverse(net):
        return row | {"verdict": "uniform", "words": "its outputs hardly depend on its inputs"}
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = random_graphs.prove(net, Path(folder))
    except (NotExact, GraphError) as error:
        return row | {"verdict": "refused", "words": getattr(error, "reason", str(error).splitlines()[0])}
    except (SlimgateError, Exception) as error:  # noqa: BLE001 - whatever it is, it is the finding
        told = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return row | {"verdict": "fault", "words": told}
    wrong = found["mismatches"] + found["reference_mismatches"]
    words = f"{found['mismatches']} codes of C simulation, {found['reference_mismatches']} of the reference differ"
    return row | {"verdict": "fault" if wrong or not found["compared"] else "exact", "words": words,
                  "compared": found["compared"]}  # fmt: skip


def page(rows: list[dict]) -> str:
    """The results as Markdown."""
    verdicts = Counter(row["verdict"] for row in rows)
    exact = [row for row in rows if row["verdict"] == "exact"]
    met = Counter(name for row in exact for name in row["operations"])
    reasons = Counter(row["words"] for row in rows if row["verdict"] == "refused")
    faults = [row for row in rows if row["verdict"] == "fault"]
    lines = [
        "# Random graphs",
        "",
        f"`make study STUDY=random_graphs`, seeds {rows[0]['seed']}..{rows[-1]['seed']}. Each seed gives one small",
        "network over the operations of [operators](../operators.md) and their attributes (`tests/random_graphs.py`),",
        "which is converted, compiled and compared with qonnx execution of its file, code by code, on 16 inputs.",
        "Evidence: simulated.",
        "",
        "| verdict | networks |",
        "|---|---|",
        f"| exact: no code differs, outputs diverse | {verdicts['exact']} |",
        f"| refused with a reason | {verdicts['refused']} |",
        f"| left out: outputs hardly depend on inputs | {verdicts['uniform']} |",
        f"| fault | {verdicts['fault']} |",
        "",
        f"{sum(row['compared'] for row in exact):,} codes compared, none differs in the exact ones.",
        "Networks of these in which an operation occurs:",
        ", ".join(f"{name} {count}" for name, count in met.most_common()) + ".",
        "",
        *([] if not reasons else ["Reasons of refusal:", "",
                                  *(f"- {count} x {reason}" for reason, count in reasons.most_common()), ""]),
        *([] if not faults else ["Faults:", "", *(f"- seed {row['seed']}: {row['words']}" for row in faults), ""]),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="no case begins later than this")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "random_graphs.md")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "random_graphs.jsonl")
    arguments = parser.parse_args()
    arguments.kept.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.kept.read_text().splitlines() if arguments.kept.is_file() else []
    rows = {row["seed"]: row for row in map(json.loads, lines)}
    seeds = [s for s in range(arguments.seed, arguments.seed + arguments.cases) if s not in rows]
    end = time.monotonic() + 60 * arguments.minutes
    one_thread = {"mp_context": get_context("spawn"), "initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(arguments.processes, **one_thread) as pool, arguments.kept.open("a") as kept:
        for start in range(0, len(seeds), arguments.processes):
            if time.monotonic() > end:
                break
            for row in pool.map(judge, seeds[start : start + arguments.processes]):
                rows[row["seed"]] = row
                kept.write(json.dumps(row) + "\n")
                kept.flush()
                print(f"seed {row['seed']}: {row['verdict']}, {row['words']}", flush=True)
    known = [rows[seed] for seed in sorted(rows)]
    if known:
        arguments.output.write_text(page(known), encoding="utf-8")
    faults = sum(row["verdict"] == "fault" for row in known)
    print(f"{len(known)} networks, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
