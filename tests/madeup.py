"""A finished run that never was: artifacts as the stages write them, made up to be hard to lay out.

Long class names with markup in them, a residual network's nested layers, wide numbers, color pictures.
"""

import json
from pathlib import Path

import numpy as np

from boards.board import load
from pipeline.statistics import wilson

LABELS = ["airplane", "automobile <b>&amp;", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "Bernhardinerhund"]
LAYERS = {
    "conv1": (16, 11), "block1.conv1": (16, 12), "block1.conv2": (16, 11), "block2.conv1": (32, 20),
    "block2.conv2": (64, 40), "block2.shortcut": (64, 40), "classifier": (10, 10),
}  # fmt: skip
DIGEST = "c0ffee" * 10 + "beef"
BOARD = load("pynq-z2")
RECIPE = 'name = "made-up"\n[data]\nname = "folder"\ntrain = "/home/somebody/pictures/train"\n'


def run(folder: Path, *, place: str = "simulated", labels=LABELS, samples: int = 120, wrong: int = 17,
        method: str = "relevance"):  # fmt: skip
    """(folders, manifests) as ``pipeline.report.figures.collect`` takes them; ``wrong`` answers are wrong."""
    random = np.random.default_rng(0)
    simulated = place == "simulated"
    evidence = "simulated" if simulated else "measured"
    truth = np.arange(samples) % len(labels)
    answers = truth.copy()
    answers[:wrong] = (answers[:wrong] + 1 + np.arange(wrong) % 3) % len(labels)
    correct = int((answers == truth).sum())
    accuracy = {"value": correct / samples, "interval": list(wilson(correct, samples))}
    made: dict[str, dict] = {}
    folders: dict[str, Path] = {}

    def stage(name, metrics=None, gates=(), config=None, **files):
        folders[name] = folder / name
        for file, value in files.items():
            path = folders[name] / (file + ".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        folders[name].mkdir(parents=True, exist_ok=True)
        made[name] = {
            "metrics": {key: {"unit": None, "interval": None, **value} for key, value in (metrics or {}).items()},
            "gates": [{"name": gate, "passed": True, "detail": detail} for gate, detail in gates],
            "config": config or {}, "versions": {"python": "3.11.7", "numpy": "1.26.4"}, "seconds": 12.345,
            "started": "2031-02-03T04:05:06+00:00",
            "command": "slimgate run /home/somebody/made-up.toml --build-dir /tmp/elsewhere --until benchmark",
        }  # fmt: skip

    def trained(**more):
        return {"accuracy_test": {"evidence": "trained", "successes": correct, "total": samples, **accuracy}, **more}

    def size(which):
        layers = [{"name": name, "out_channels": widths[which], "parameters": 1234567 * widths[which] // 10,
                   "macs": 98765432 * widths[which] // 10} for name, widths in LAYERS.items()]  # fmt: skip
        total = {key: sum(layer[key] for layer in layers) for key in ("parameters", "macs")}
        return {"macs": {"value": total["macs"], "evidence": "trained", "layers": layers},
                "parameters": {"value": total["parameters"] + 200, "evidence": "trained"}}  # fmt: skip

    def epochs(count, start=0.3):
        return [{"epoch": i, "loss": None if i == 0 else 2.0 / i, "loss_val": 2.3 / (i + 1), "best": i < count - 2,
                 "correct_val": int(50 * min(1, start + 0.1 * i))} for i in range(count)]  # fmt: skip

    stage("data", gates=[("no picture in two splits", "every picture's pixels are in one split only")], dataset={
        "name": "folder", "labels": list(labels), "shape": [32, 32, 3],
        "counts": {"train": 400, "val": 50, "test": samples}, "preprocess": {"size": [32, 32], "color": "rgb"},
        "provenance": {"source": "folder", "train": "a-rather-long-name-of-a-folder-full-of-pictures", "test": None},
    })  # fmt: skip
    stage("train", trained(**size(0)), history=epochs(9))
    scores = {name: random.random(widths[0]).tolist() for name, widths in LAYERS.items() if name != "classifier"}
    stage("trim", trained(**size(1)), [("trimmed as asked", "33.8% of the macs removed, 30.0% asked")],
          {"trim": {"method": method, "statistic": "mean"}},
          relevance={"asked": 0.3, "achieved": 0.338, "of": "macs", "layers": {
              name: {"scores": [] if name == "block2.shortcut" else values, "kept": list(range(LAYERS[name][1])),
                     "removed_at": [0 if i < LAYERS[name][1] else 1 + i % 2 for i in range(LAYERS[name][0])]}
              for name, values in sorted(scores.items())}},
          history=[{"step": step, "target": 0.15 * step, "achieved": 0.16 * step, "filters": 200 - step,
                    "parameters": 10**7 - step, "macs": 10**9 - step, "finetune": epochs(4, 0.7)}
                   for step in (1, 2)])  # fmt: skip
    stage("quantize", trained(), history=epochs(6, 0.6), quant={"layers": [
        {"name": name, "weights": 4, "input_bits": 4, "bias": 16, "weight_zeros": 0.123} for name in LAYERS
    ]})  # fmt: skip
    stage("export", {"qonnx_mismatches": {"value": 0, "compared": samples * len(labels), "evidence": "trained",
                                 "evaluated_in": "float64"}}, [("QONNX equals Brevitas", "0 differ")])  # fmt: skip
    np.savez(folders["export"] / "golden.npz", labels=truth, input_scale_log2=np.int64(-8),
             input_codes=random.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8))  # fmt: skip
    about = lambda value: {"value": value, "lo": 0.8 * value, "hi": 1.4 * value}  # noqa: E731
    costs = {name: {"hls": about(2.0 * amount), "implemented": about(float(amount))}
             for name, amount in (("lut", 4321), ("ff", 1234), ("dsp", 0), ("bram18", 7))}
    row = {"in_shape": [32, 32, 64], "out_shape": [32, 32, 64], "input_bits": 4, "cycles": 1327104, **costs}
    stage("plan", plan={
        "evidence": "estimated (extrapolated)", "extrapolated": ["no published row"], "clock_mhz": 100.0, "margin": 0.2,
        "board": "pynq-z2", "optimal": True, "fits": True,
        "layers": [row | {"name": name.replace(".", "_"), "n_in": 5184, "n_out": widths[1], "pixels": 1024,
                          "weight_bits": 4, "accumulator_bits": 18, "strategy": "Resource", "reuse_factor": 1296,
                          "multipliers": 1234} for name, widths in LAYERS.items()],
        "processes": [row | {"name": "unpack", "cycles": 1024}],
        "fifo": {"unpack->stem": {"safe": 2, "full_speed": 2, "depth": 6, "bits": 24, "bram18": 0}},
        "totals": {"multipliers": 8638, "initiation_interval_cycles": 1327104, "latency_cycles": 2654208,
                   "bottleneck": "block2_shortcut", "frames_per_second": 75.4, "weight_kbit": 4321.5,
                   "latency_us": 26542.08},
        "resources": {name: {"available": 53200, "limit": 42560, "planned": 30000, **one}
                      for name, one in costs.items()},
        "exactness": {"widest_accumulator": 98765432, "limit": 16777216, "oracle": "int64"},
    })  # fmt: skip
    stage("convert", io={"design_digest": DIGEST, "input": {"bits": 8, "scale_log2": -8}})
    compared = samples * len(labels)
    stage("csim", {
        "accuracy_test": {"evidence": "simulated", "correct": correct, "samples": samples, **accuracy},
        "csim_mismatches": {"value": 0, "compared": 2 * compared, "evidence": "simulated", "modes": [
            {"mode": mode, "samples": samples, "compared": compared, "mismatches": 0}
            for mode in ("one transfer", "sample by sample")]},
        "reference_mismatches": {"value": 0, "compared": compared, "evidence": "trained"},
    }, [("C simulation equals the trained network", f"0 of {2 * compared} codes differ")])  # fmt: skip
    stage("package", **{"package/manifest": {
        "simulated": simulated, "evidence": evidence, "design_digest": DIGEST, "overlay": {"bit": "overlay/x.bit"},
        "files": {"overlay/x.bit": {"sha256": "b" * 64}},
    }})  # fmt: skip
    percentiles = {"p50": 311.25, "p90": 322.5, "p99": 333.0, "max": 444.0, "count": 1000}
    times = {"latency": {"round_trip_us": percentiles, "end_to_end_us": percentiles, "stream_us_per_sample": 17.25,
                         "note": "measured on the board"}}  # fmt: skip
    stage("benchmark", {
        "accuracy_test": {"evidence": evidence, "samples": samples, **accuracy},
        "board_mismatches": {"value": 0, "compared": compared + 1000 * len(labels), "evidence": evidence},
    }, [("board bytes", "counted {'input_beats': 10952, 'input_lasts': 1011}, expected the same")], result={
        "status": "ok", "evidence": evidence, "predictions": answers.tolist(), "codes_sha256": "a" * 64,
        "accuracy": {"correct": correct, "samples": samples, **accuracy}, "retries": [],
        "device": {"name": f"{place}-pynq-z2", "simulated": simulated, "arch": "armv7l", "pynq": "3.1.2"},
        "package": {"design_digest": DIGEST}, "times": None if simulated else times,
        "probe": {"identity": DIGEST[:32], "equal": True,
                  "counted": {"input_beats": 10952, "input_lasts": 11, "output_beats": 4107, "output_lasts": 1011}},
        "singles": {"count": 1000, "compared_codes": 1000 * len(labels), "mismatches": 0},
        "stream": {"samples": samples, "transfers": 1, "bytes_sent": 368640, "bytes_received": 4800,
                   "compared_codes": compared, "mismatches": 0},
    })  # fmt: skip
    return folders, made


def figures(folder: Path, *, without=(), **options) -> dict:
    """The figures of such a run, ``without`` some of its stages."""
    from pipeline.report.figures import collect

    folders, manifests = run(folder, **options)
    for stage in without:
        del folders[stage], manifests[stage]
    place = options.get("place", "simulated")
    return collect(folders, manifests, name="made-up", recipe=RECIPE, board=BOARD, place=place)
