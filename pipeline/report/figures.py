"""What the report tells, gathered from finished stages as plain data; no markup here.

Every function takes ``folders`` {stage: folder} and ``manifests`` {stage: manifest}. A stage that is in neither was
not run: its figures are None, and the page says so.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boards.errors import SlimgateError
from pipeline.statistics import wilson

#: Stage -> what it does, in the order of the chain.
STAGES = {
    "data": "real pictures in three splits that share none",
    "train": "the float network, chosen on the validation pictures",
    "trim": "the least relevant filters removed, fine-tuning in between",
    "quantize": "the quantized twin: integers on power-of-two scales",
    "export": "QONNX and the golden codes every later hop is held against",
    "plan": "reuse factors and FIFO depths for the board",
    "convert": "the HLS project, its types derived so that nothing rounds or overflows",
    "csim": "the generated C++ behind its AXI4-Stream wrapper, compiled and run",
    "package": "what the board needs, in one folder with a hash of every file",
    "benchmark": "the package on the board, driven through DMA",
}
#: The same of a network that was trained elsewhere.
IMPORTED_STAGES = {
    "import": "a network that was trained elsewhere, as it came, and the golden codes every later hop is held against",
    **{name: STAGES[name] for name in ("plan", "convert", "csim", "package", "benchmark")},
}
# As in pipeline.summary, which this must not import: a stage's key would then change with every edit of the engine.
ACCURACIES = {"float": "train", "trimmed": "trim", "quantized": "quantize", "csim": "csim", "board": "benchmark"}
MISMATCHES = {"qonnx": "export", "csim": "csim", "board": "benchmark"}
IMPORTED_ACCURACIES = {"imported": "import", "csim": "csim", "board": "benchmark"}
IMPORTED_MISMATCHES = {"qonnx": "import", "csim": "csim", "board": "benchmark"}
_NETWORKS = {
    "float": "float network",
    "trimmed": "trimmed, still float",
    "quantized": "quantized twin",
    "imported": "imported file",
    "csim": "C simulation of the hardware",
    "board": "board",
}
_HOPS = {
    "qonnx": ("QONNX", "the exported file, executed"),
    "reference": ("Integer reference", "the file again, in int64"),
    "csim": ("C simulation", "generated C++ in its stream wrapper"),
    "board": ("Board", "through DMA, one by one and streamed"),
}
#: Options of the command that change where and how far the work is done, not its result.
_IDLE_OPTIONS = {"--build-dir": 1, "--until": 1, "--verify": 0, "--debug": 0}
_AGAIN = "run the same command again with --verify: what is damaged or was replaced by hand is made anew"


class ReportError(SlimgateError):
    """Artifacts of one run do not belong together."""


def collect(folders: Mapping[str, Path], manifests: Mapping[str, dict], *, name: str, recipe: str, board, place: str):
    """Everything the page shows. ``recipe``: its TOML text; ``board``: a boards.board.Board."""
    data = _read(folders, "data", "dataset.json")
    result = _read(folders, "benchmark", "result.json")
    imported = _read(folders, "import", "import.json")
    package = _read(folders, "package", "package/manifest.json")
    simulated = _simulated(package, result)
    hops = _hops(manifests, simulated, imported is not None)
    return {
        "name": name,
        "imported": imported,
        "board": {"name": board.name, "title": board.title, "part": board.part},
        "place": place,
        "simulated": simulated,
        "hops": hops,
        "verdict": _verdict(hops),
        "chain": _chain(manifests, STAGES if imported is None else IMPORTED_STAGES),
        "accuracy": _accuracies(manifests, result, simulated, imported is not None),
        "size": _size(folders, manifests),
        "trimming": _trimming(folders, manifests),
        "curves": [] if imported is not None else _curves(folders, data),
        "plan": _read(folders, "plan", "plan.json"),
        "modes": _metric(manifests, "csim", "csim_mismatches").get("modes"),
        "result": result,
        "answers": None if result is None or data is None else _answers(folders, result, data),
        "data": data,
        "io": _read(folders, "convert", "io.json"),
        "package": package,
        "recipe": re.sub(r'"(/[^"\n]*)"', lambda found: f'"{Path(found[1]).name}"', recipe),
        "command": _command(manifests),
        "versions": _versions(manifests),
    }


def _simulated(package: dict | None, result: dict | None) -> bool | None:
    """Whether no FPGA was involved: the bitstream is the stand-in, or the board a model. None: nothing was run."""
    if package is None:
        return None
    return package["simulated"] is not False or (result or {}).get("device", {}).get("simulated") is not False


# -- the chain -------------------------------------------------------------------------------------------------------


def _hops(manifests, simulated: bool | None, imported: bool) -> list[dict]:
    """Each place where output codes were compared with the golden ones.

    Those of an imported network come from the integer reference, which is no hop then.
    """
    found = []
    stages = IMPORTED_MISMATCHES if imported else {"reference": "csim", **MISMATCHES}
    for hop, (title, what) in _HOPS.items():
        if hop not in stages:
            continue
        entry = _metric(manifests, stages[hop], f"{hop}_mismatches")
        if imported and hop == "qonnx":
            what = "the imported file, executed"
        if "evaluated_in" in entry:
            what += f" in {entry['evaluated_in']}"
        found.append({
            "title": "Simulated board" if simulated and hop == "board" else title, "what": what, "run": bool(entry),
            "mismatches": entry.get("value"), "compared": entry.get("compared"), "evidence": entry.get("evidence"),
        })  # fmt: skip
    return found


def _verdict(hops: list[dict]) -> dict:
    """{"state": "equal" | "different" | "unfinished", "compared", "mismatches", "hops"}; no comparison is no proof."""
    done = [hop for hop in hops if hop["run"]]
    mismatches, compared = (sum(hop[key] or 0 for hop in done) for key in ("mismatches", "compared"))
    state = "equal" if len(done) == len(hops) and all(hop["compared"] for hop in hops) else "unfinished"
    return {"state": "different" if mismatches else state, "compared": compared, "mismatches": mismatches,
            "hops": len(done)}  # fmt: skip


def _chain(manifests, stages: Mapping[str, str]) -> list[dict]:
    return [
        {"stage": stage, "what": what, "run": stage in manifests, "gates": manifests.get(stage, {}).get("gates", [])}
        for stage, what in stages.items()
    ]


def _accuracies(manifests, result: dict | None, simulated: bool | None, imported: bool) -> list[dict]:
    """Test accuracy of each network, with how many pictures it got right of how many."""
    rows, titles = [], _NETWORKS | ({"board": "simulated board"} if simulated else {})
    for name, stage in (IMPORTED_ACCURACIES if imported else ACCURACIES).items():
        entry = _metric(manifests, stage, "accuracy_test")
        if not entry:
            rows.append({"name": name, "title": titles[name], "run": False})
            continue
        counts = result["accuracy"] if name == "board" and result else entry
        correct = counts.get("successes", counts.get("correct"))
        low, high = entry["interval"] or (None, None)
        rows.append({
            "name": name, "title": titles[name], "run": True, "value": entry["value"], "low": low, "high": high,
            "evidence": entry["evidence"], "correct": correct, "total": counts.get("total", counts.get("samples")),
        })  # fmt: skip
    return rows


# -- trimming --------------------------------------------------------------------------------------------------------


def _size(folders, manifests) -> dict | None:
    """Filters, parameters, MACs and bits of each layer, before and after; layers in the order they run."""
    if "train" not in manifests:
        return None
    totals = {
        what: [_metric(manifests, stage, what).get("value") for stage in ("train", "trim")]
        for what in ("parameters", "macs")
    }
    before, after = (
        {layer["name"]: layer for layer in _metric(manifests, stage, "macs").get("layers", [])}
        for stage in ("train", "trim")
    )
    bits = {layer["name"]: layer for layer in (_read(folders, "quantize", "quant.json") or {"layers": []})["layers"]}
    rows = [
        {
            "name": name,
            **{what: [layer[what], after.get(name, {}).get(what)] for what in ("out_channels", "parameters", "macs")},
            "bits": bits.get(name),
        }
        for name, layer in before.items()
    ]
    # What is trained but in none of the layers: BatchNorm's scale and shift, folded away before hardware.
    other = [
        None if total is None else total - sum(layer["parameters"] for layer in layers.values())
        for total, layers in zip(totals["parameters"], (before, after), strict=True)
    ]
    return {"layers": rows, "totals": totals, "other": other}


def _trimming(folders, manifests) -> dict | None:
    """Asked and achieved, the steps, and the relevance of each filter before trimming."""
    found = _read(folders, "trim", "relevance.json")
    if found is None:
        return None
    config = manifests["trim"]["config"]["trim"]
    order = [layer["name"] for layer in _metric(manifests, "trim", "macs").get("layers", [])]
    layers = []
    for name in sorted(found["layers"], key=lambda name: order.index(name) if name in order else len(order)):
        layer = found["layers"][name]
        layers.append({
            "name": name, "scores": layer["scores"], "removed_at": layer["removed_at"], "kept": len(layer["kept"]),
            "filters": len(layer["removed_at"]),
        })  # fmt: skip
    history = _read(folders, "trim", "history.json") or []
    return {"asked": found["asked"], "achieved": found["achieved"], "of": found["of"], "method": config["method"],
            "statistic": config["statistic"], "layers": layers, "steps": history}  # fmt: skip


def _curves(folders, data: dict | None) -> list[dict]:
    """Per stage that trains: one point per epoch; the steps of trimming follow one another on one axis."""
    pictures = data["counts"]["val"] if data else None
    titles = {"train": "float network", "trim": "fine-tuning between steps", "quantize": "quantized twin"}
    curves = []
    for stage, title in titles.items():
        history = _read(folders, stage, "history.json")
        parts = [] if not history or not pictures else (
            [step["finetune"] or [] for step in history] if stage == "trim" else [history]
        )  # fmt: skip
        points, starts, chosen = [], [], []
        for part in filter(None, parts):
            starts.append(len(points))
            chosen.append(len(points) + max((i for i, row in enumerate(part) if row["best"]), default=len(part) - 1))
            points += [{"accuracy": row["correct_val"] / pictures, "loss": row["loss"], "loss_val": row["loss_val"]}
                       for row in part]  # fmt: skip
        curves.append({"stage": stage, "title": title, "points": points, "starts": starts, "chosen": chosen})
    return curves


# -- the board's answers ---------------------------------------------------------------------------------------------


def _answers(folders, result: dict, data: dict, wrong_shown: int = 10, right_shown: int = 10) -> dict | None:
    """Confusions of the board's answers, and some pictures as they went over the wire: wrong ones first.

    Samples that are no pictures are counted and not shown.
    Raises ReportError unless there is one answer per golden sample.
    """
    if result["status"] == "error" or "export" not in folders:
        return None
    with np.load(folders["export"] / "golden.npz") as file:
        truth, codes, bits = file["labels"], file["input_codes"], -int(file["input_scale_log2"])
    labels, low, high = data["labels"], 0, 2**bits - 1
    if (table := data["preprocess"].get("codes")) is not None:
        low, high = (int(bound(np.asarray(table))) for bound in (np.min, np.max))
    shown = data["preprocess"]["size"] is not None
    if shown:  # as pictures, also where the network takes their pixels as one vector
        codes = codes.reshape(-1, *data["preprocess"]["size"], 1 if data["preprocess"]["color"] == "gray" else 3)
    said = np.asarray(result["predictions"])
    if said.shape != truth.shape:
        raise ReportError(
            f"the board answered {len(said)} samples and golden has {len(truth)}",
            where=folders["benchmark"] / "result.json",
            fix=_AGAIN,
        )
    count = len(labels)
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (truth, said), 1)
    per_class = []
    for index, label in enumerate(labels):
        right, total = int(matrix[index, index]), int(matrix[index].sum())
        per_class.append({"label": label, "right": right, "total": total, "row": matrix[index].tolist(),
                          "interval": wilson(right, total) if total else None})  # fmt: skip
    pairs = Counter({(labels[i], labels[j]): int(matrix[i, j]) for i, j in np.argwhere(matrix) if i != j})

    def picture(index) -> dict:
        pixels = np.rint((codes[index].astype(np.int64) - low) * (255 / (high - low))).astype(np.uint8)
        return {"sample": int(index), "pixels": pixels, "label": labels[truth[index]], "answer": labels[said[index]]}

    wrong = np.flatnonzero(said != truth)
    right = [hits[0] for label in range(count) if len(hits := np.flatnonzero((said == truth) & (truth == label)))]
    return {
        "classes": per_class,
        "confused": [{"label": a, "answer": b, "count": n} for (a, b), n in pairs.most_common()],
        "wrong": [picture(index) for index in wrong[:wrong_shown] if shown],
        "wrong_total": len(wrong),
        "right": [picture(index) for index in right[:right_shown] if shown],
        "samples": len(truth),
    }


# -- provenance ------------------------------------------------------------------------------------------------------


def _command(manifests) -> str | None:
    """The user's command without what leaves the result as it is (where runs are kept, how far to go).

    Of an absolute path only the last part is told: the report travels.
    """
    said = next(
        (manifests[stage]["command"] for stage in (*reversed(STAGES), "import") if stage in manifests), None
    )
    if said is None:
        return None
    words, kept = shlex.split(said), []
    while words:
        word = words.pop(0)
        option, _, value = word.partition("=")
        if option in _IDLE_OPTIONS:
            del words[: 0 if value else _IDLE_OPTIONS[option]]
            continue
        key, equals, path = word.rpartition("=")
        kept.append(key + equals + Path(path).name if path.startswith("/") else word)
    return shlex.join(kept)


def _versions(manifests) -> dict[str, list[str]]:
    """Tool -> versions seen; more than one where stages were finished in different environments."""
    found: dict[str, set] = {}
    for manifest in manifests.values():
        for tool, version in manifest["versions"].items():
            found.setdefault(tool, set()).add(version)
    return {tool: sorted(found[tool]) for tool in sorted(found)}


def _read(folders: Mapping[str, Path], stage: str, name: str) -> Any:
    """A JSON file of a stage; None where the stage was not run. ReportError where the file is not readable."""
    if stage not in folders:
        return None
    file = folders[stage] / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"not readable as JSON: {error}", where=file, fix=_AGAIN) from error


def _metric(manifests, stage: str, name: str) -> dict:
    """A metric with its evidence; empty where the stage was not run."""
    return manifests.get(stage, {}).get("metrics", {}).get(name, {})
