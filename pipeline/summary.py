"""The figures of one run folder, gathered from its manifests: as one object, or as tables on a terminal.

A stage whose inputs have changed since, or that the last invocation meant to bring up to date and did not, tells
nothing here: figures of two different networks never stand in one summary.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from boards.errors import SlimgateError
from pipeline import flow
from pipeline.keys import MANIFEST
from pipeline.stage import LAST_RUN, read_last_run, read_manifest

ACCURACIES = {"float": "train", "trimmed": "trim", "quantized": "quantize", "csim": "csim", "board": "benchmark"}
MISMATCHES = {"qonnx": "export", "csim": "csim", "board": "benchmark"}
#: The same of a network that was trained elsewhere: there is nothing to tell of its training.
IMPORTED_ACCURACIES = {"imported": "import", "csim": "csim", "board": "benchmark"}
IMPORTED_MISMATCHES = {"qonnx": "import", "csim": "csim", "board": "benchmark"}


class NoRun(SlimgateError):
    """There is no such run folder, or what it says of its last run is damaged."""


def find(name: str | None, build: Path) -> Path:
    """The run folder of a name, a path, or the newest one that is whole. Raises NoRun, naming those there are."""
    files = sorted(build.glob(f"*/{LAST_RUN}"), key=lambda path: path.stat().st_mtime)
    runs = [path.parent for path in files if read_last_run(path.parent) is not None]
    if name is None and runs:
        return runs[-1]
    for folder in [Path(name), build / name] if name is not None else [path.parent for path in reversed(files)]:
        if (folder / LAST_RUN).is_file():
            last_run(folder)
            return folder
    there = ", ".join(folder.name for folder in runs)
    raise NoRun(
        f"there is no run {name!r}" if name else "there is no run yet",
        where=build,
        fix=f"one of {there}" if there else "make one, for example: slimgate run runs/digits.toml",
    )


def last_run(folder: Path) -> dict:
    """What the last invocation wrote into a run folder. Raises NoRun where that is damaged."""
    last = read_last_run(folder)
    if last is None:
        raise NoRun(
            f"the run {folder.name!r} does not say what was done last: {LAST_RUN} is damaged or of another version",
            where=folder / LAST_RUN,
            fix="run its recipe again: what is finished is kept, and the file is written anew",
        )
    return last


def manifests(run: Path) -> dict[str, dict]:
    """Manifests of the run's finished stages that belong together, by name."""
    last = last_run(run)
    # Whatever was copied into one folder by hand: stages of the other kind of recipe tell nothing here.
    hidden = {stage.name for stage in (*flow.STAGES, *flow.IMPORTED)} - {s.name for s in flow.of(last["recipe"])}
    files = [path for path in run.glob(f"*/{MANIFEST}") if path.parent.name not in hidden]
    read = {path.parent.name: read_manifest(path) for path in files}
    found = {name: manifest for name, manifest in read.items() if manifest is not None}

    def current(name: str) -> bool:
        manifest = found.get(name)
        return (
            manifest is not None
            and name not in last["pending"]
            and all(
                current(need)
                and found[need]["content"] == content
                and found[need]["key"] == manifest["input_keys"][need]
                for need, content in manifest["inputs"].items()
            )
        )

    return {name: manifest for name, manifest in found.items() if current(name)}


def collect(run: Path) -> dict[str, Any]:
    """One JSON object for a run. A figure that does not exist (yet) is null; every other carries its evidence."""
    last, found = last_run(run), manifests(run)

    def metric(stage: str, name: str) -> dict | None:
        return found.get(stage, {}).get("metrics", {}).get(name)

    def value(stage: str, name: str) -> Any:
        entry = metric(stage, name)
        return None if entry is None else entry["value"]

    def accuracy(stage: str) -> dict | None:
        entry = metric(stage, "accuracy_test")
        return entry and {key: entry[key] for key in ("value", "interval", "evidence")}

    def mismatches(kind: str, stage: str) -> dict | None:
        entry = metric(stage, f"{kind}_mismatches")
        if entry is None:
            return None
        return {"mismatches": entry["value"], "compared": entry.get("compared"), "evidence": entry["evidence"]}

    asked = found.get("trim", {}).get("config", {}).get("trim", {})
    imported = last["recipe"].get("imported")
    origin = imported and {"model": Path(str(imported.get("model"))).name, "sha256": str(imported.get("sha256"))}
    accuracies, compared = (ACCURACIES, MISMATCHES) if imported is None else (IMPORTED_ACCURACIES, IMPORTED_MISMATCHES)
    sizes = {"float": "train", "trimmed": "trim"} if imported is None else {"imported": "import"}
    return {
        "run": run.name,
        "imported": origin,
        "board": last["board"],
        "place": found["benchmark"]["config"].get("place") if "benchmark" in found else last["place"],
        "command": last["command"],
        "finished": not last["pending"],
        "pending": last["pending"],
        "samples": value("benchmark", "samples"),
        "parameters": {name: value(stage, "parameters") for name, stage in sizes.items()},
        "macs": {name: value(stage, "macs") for name, stage in sizes.items()},
        "trim": None if imported is not None else {
            "of": asked.get("of"),
            "asked": asked.get("ratio"),
            "achieved": value("trim", f"{asked.get('of')}_removed"),
        },
        "accuracy": {name: accuracy(stage) for name, stage in accuracies.items()},
        "mismatches": {kind: mismatches(kind, stage) for kind, stage in compared.items()},
        "plan": found.get("plan", {}).get("metrics", {}),
        "stages": [{key: stage[key] for key in ("name", "seconds", "cached", "how")} for stage in last["stages"]],
        "gates": [{"stage": name, **gate} for name, manifest in found.items() for gate in manifest["gates"]],
        "report": str(run / "report.html") if "report" in found else None,
    }


def show(summary: dict, console: Console) -> None:
    """The same as tables."""
    console.print(f"\n{summary['run']} at {summary['place']}", markup=False)
    if summary["imported"]:
        made = f"{summary['imported']['model']}, sha256 {summary['imported']['sha256'][:16]}..."
        console.print(f"not trained here: imported from {made}", markup=False, highlight=False, soft_wrap=True)
    table = Table("stage", "now", "seconds")
    for stage in summary["stages"]:
        table.add_row(stage["name"], stage["how"], f"{stage['seconds']:.1f}" if not stage["cached"] else "-")
    for name in summary["pending"]:
        table.add_row(name, "pending", "-")
    console.print(table)

    rows = [(name, entry) for name, entry in summary["accuracy"].items() if entry]
    if rows:
        table = Table("test accuracy", "%", "95 % interval", "evidence")
        for name, entry in rows:
            low, high = entry["interval"] or (None, None)
            interval = "-" if low is None else f"{100 * low:.2f} .. {100 * high:.2f}"
            table.add_row(name, f"{100 * entry['value']:.2f}", interval, entry["evidence"])
        console.print(table)

    sizes = [(name, *summary[name].values()) for name in ("parameters", "macs")]
    if summary["imported"]:
        table = Table("size", "imported")
        for name, number in sizes:
            table.add_row(name, "-" if number is None else f"{number:,}")
        console.print(table)
    elif any(before is not None for _, before, _ in sizes):
        table = Table("size", "float", "trimmed", "removed")
        for name, before, after in sizes:
            removed = f"{100 * (1 - after / before):.1f} %" if before and after is not None else "-"
            table.add_row(name, *("-" if n is None else f"{n:,}" for n in (before, after)), removed)
        console.print(table)

    rows = [(name, entry) for name, entry in summary["mismatches"].items() if entry]
    if rows:
        table = Table("compared with golden codes", "mismatches", "codes compared", "evidence")
        for name, entry in rows:
            compared = "-" if entry["compared"] is None else f"{entry['compared']:,}"
            table.add_row(name, f"{entry['mismatches']:,}", compared, entry["evidence"])
        console.print(table)

    if summary["plan"]:
        table = Table("plan", "value", "90 % interval", "unit", "evidence")
        for name, entry in summary["plan"].items():
            ends = " .. ".join(map(_number, entry["interval"] or ()))
            evidence = entry["evidence"] + (" (extrapolated)" if entry.get("extrapolated") else "")
            table.add_row(name, _number(entry["value"]), ends, entry["unit"] or "", evidence)
        console.print(table)
    if summary["report"]:
        console.print(f"report: {summary['report']}", markup=False, highlight=False, soft_wrap=True)


def _number(number) -> str:
    if not isinstance(number, int | float):
        return str(number)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
