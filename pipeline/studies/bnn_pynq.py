"""Do the networks of the card's own ecosystem pass ``slimgate verify``? brevitas' bnn_pynq TFC, LFC and CNV.

    python -m pipeline.studies.bnn_pynq [NAME ...] [--samples 8] [--output docs/results/bnn_pynq.md]

Each is built by brevitas itself, without weights from anywhere, trained for some steps on the digits of scikit-learn
(enlarged, and colored for CNV), exported by brevitas' own ``export_qonnx`` and verified as a stranger's file would be.
What was proven is kept in ``build/bnn_pynq.json`` and not run again.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from brevitas.export import export_qonnx
from brevitas_examples.bnn_pynq.models import model_with_cfg
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss
from sklearn.datasets import load_digits
from torch.nn import functional

from boards import board
from hls.verify import verify
from pipeline.config import ROOT
from pipeline.diversity import diversity

COMMAND = "make study STUDY=bnn_pynq"
NAMES = ("tfc_1w1a", "tfc_1w2a", "tfc_2w2a", "cnv_1w1a", "cnv_1w2a", "cnv_2w2a", "lfc_1w1a", "lfc_1w2a")
#: Training steps and samples of each family: what a minute or two allow.
STEPS = {"tfc": 300, "lfc": 80, "cnv": 30}
SAMPLES = {"tfc": 256, "lfc": 32, "cnv": 24}
#: Batches behind the last step that only move the running means.
SETTLE = 15


def pictures(size: int, channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits (1797, channels, size, size), float32 in 0..1 on multiples of 1/256, and labels. In color,
    paper and ink of each are drawn at random."""
    digits = load_digits()
    ink = torch.from_numpy(digits.images / 16).float()[:, None]
    ink = functional.interpolate(ink, size=(size, size), mode="bilinear")
    if channels > 1:
        colors = torch.rand(2, len(ink), channels, 1, 1, generator=torch.Generator().manual_seed(seed))
        ink = ink * colors[0] + (1 - ink) * colors[1]
    return (ink * 255).round() / 256, torch.from_numpy(digits.target)


def trained(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> torch.nn.Module:
    """Some steps as brevitas' own trainer takes them: squared hinge loss, Adam, weights clipped to -1..1."""
    loss, optimizer = SqrHingeLoss(), torch.optim.Adam(network.parameters(), lr=0.01)
    random = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (64,), generator=random)
        target = 2.0 * functional.one_hot(y[chosen], 10) - 1
        optimizer.zero_grad()
        loss(network(x[chosen]), target).backward()
        optimizer.step()
        network.clip_weights(-1, 1)
    with torch.no_grad():  # signs flip until the last step: let the statistics of BatchNorm follow
        for _ in range(SETTLE):
            network(x[torch.randint(0, len(x), (64,), generator=random)])
    return network.eval()


def made(name: str, folder: Path, *, steps: int | None = None, samples: int | None = None) -> tuple[Path, Path, float]:
    """Train and export: (QONNX file, inputs for it, share of the held-out digits that the network gets right)."""
    family = name.split("_")[0]
    torch.manual_seed(0)
    network, _ = model_with_cfg(name, pretrained=False)
    return exported(network, name, folder, (3, 32) if family == "cnv" else (1, 28), steps or STEPS[family],
                    samples or SAMPLES[family])  # fmt: skip


def exported(network, name: str, folder: Path, shape: tuple[int, int], steps: int, samples: int):
    """:func:`made` for any network with brevitas' interface; ``shape``: (channels, size)."""
    x, y = pictures(shape[1], shape[0])
    held = len(x) - 397
    trained(network, x[:held], y[:held], steps)
    with torch.no_grad():
        right = float((network(x[held:]).argmax(1) == y[held:]).double().mean())
    file, inputs = folder / f"{name}.onnx", folder / f"{name}.npz"
    export_qonnx(network, args=x[:1], export_path=str(file), verbose=False)
    np.savez(inputs, inputs=x[held : held + samples].numpy())
    return file, inputs, right


def proven(name: str, folder: Path, board_name: str, *, network=None, **options) -> dict:
    """One row of the page; ``mismatches`` 0 and ``compared`` above 0 where the network is carried exactly."""
    began = time.perf_counter()
    file, inputs, right = made(name, folder, **options) if network is None else network
    ready = time.perf_counter()
    found = verify(file, inputs, board.load(board_name))
    census = found.pop("census")
    good, detail, _ = diversity(found["outputs"], census.quantizers, census.accumulators)
    different = len(np.unique(found.pop("outputs"), axis=0))
    return {
        "name": name, "accuracy": right, "weights": found["plan"]["weights"], "macs": found["plan"]["macs"],
        "front": found["front"], "host": found["host"], "input": found["io"]["input"], "samples": found["samples"],
        "compared": found["compared"], "mismatches": found["mismatches"], "oracle": found["oracle"],
        "different_outputs": different, "diverse": good, "diversity": detail,
        "train_seconds": ready - began, "verify_seconds": time.perf_counter() - ready, "board": board_name,
    }  # fmt: skip


def page(rows: list[dict]) -> str:
    """The results as Markdown."""
    lines = [
        "# bnn_pynq: the networks of the card's own ecosystem",
        "",
        f"`{COMMAND}`. TFC, LFC and CNV as brevitas {version('brevitas')} builds them",
        "(`brevitas_examples.bnn_pynq`),",
        "random weights trained for some steps on scikit-learn's digits (28 x 28, or 32 x 32 in random colors),",
        "exported by brevitas' `export_qonnx` and given to `verify` unchanged. Evidence: simulated",
        "(C simulation behind the AXI4-Stream wrapper), compared code by code with qonnx execution of the whole file.",
        "",
        "| network | weights | MACs | codes on the wire | samples | different outputs | codes compared | differ "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wire = f"{'x'.join(map(str, row['input']['shape']))}, {row['input']['bits']} bits"
        lines.append(
            f"| {row['name']} | {row['weights']:,} | {row['macs']:,} | {wire} | {row['samples']} "
            f"| {row['different_outputs']} | {row['compared']:,} | {row['mismatches']} | {row['verify_seconds']:.0f} |"
        )
    lines += [
        "",
        "Seconds: checking, planning, converting, compiling and simulating, on two shared cores. On the held-out",
        "digits these few steps reach (trained; no result, and for CNV, in color, hardly more than chance)",
        ", ".join(f"{row['name']} {100 * row['accuracy']:.0f} %" for row in rows) + ".",
        "",
        f"Left to the host before the wire: {', '.join(rows[0]['front'])} (what stands before the first",
        f"quantizer, that included); behind it: {', '.join(rows[0]['host'])} (TensorNorm: one positive factor and one",
        "offset for all outputs). BatchNormalization and the quantizer behind it are thresholds. Plans: reuse factors",
        f"of the Resource strategy, for {rows[0]['board']}; whether a network fits there is not what this page tells.",
        "",
        "Diversity of the codes compared, by the rule of the pipeline's gate (few samples cannot show all classes):",
        "",
        *(f"- {row['name']}: {row['diversity']}" for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--samples", type=int, help="pictures that are verified (default: by family)")
    parser.add_argument("--board", default="pynq-z2")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "bnn_pynq.md")
    parser.add_argument("--kept", type=Path, default=ROOT / "build" / "bnn_pynq.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(arguments.kept.read_text()) if arguments.kept.is_file() else {}
    for name in arguments.names:
        if name not in rows:
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = proven(name, Path(folder), arguments.board, samples=arguments.samples)
            arguments.kept.parent.mkdir(parents=True, exist_ok=True)
            arguments.kept.write_text(json.dumps(rows, indent=1) + "\n")
        row = rows[name]
        print(f"{name}: {row['compared']:,} codes compared, {row['mismatches']} differ; {row['diversity']}; "
              f"{row['train_seconds']:.0f} + {row['verify_seconds']:.0f} s", flush=True)  # fmt: skip
    known = [rows[name] for name in NAMES if name in rows]
    arguments.output.write_text(page(known), encoding="utf-8")
    return 1 if any(row["mismatches"] or not row["compared"] for row in known) else 0


if __name__ == "__main__":
    raise SystemExit(main())
