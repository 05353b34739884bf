"""A toy design, compiled once and kept by its content, and packages around it."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from boards import board as boards_board
from boards import package as opening
from boards.onboard import run as onboard
from pipeline import package as building

SOURCE = Path(__file__).with_name("toy_design.cpp")
DIGEST = "0123456789abcdef" * 4
WIRE = {
    "beat_bytes": 8,
    "input": {"shape": [4, 4, 1], "bits": 6, "signed": False, "container_bytes": 1, "scale_log2": -6, "beats": 2},
    "output": {"shape": [3], "bits": 18, "signed": True, "container_bytes": 4, "scale_log2": -9, "beats": 2},
    "design_digest": DIGEST,
}
PREPROCESS = {"size": [4, 4], "color": "gray", "resize": "bilinear"}


def compile_toy(*flags: str) -> Path:
    """The toy design's library, compiled once per content of its source and flags."""
    key = hashlib.sha256(SOURCE.read_bytes() + repr(flags).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("SLIMGATE_TEST_CACHE", Path(tempfile.gettempdir(), f"slimgate-toy-{os.getuid()}")))
    cache.mkdir(parents=True, exist_ok=True)
    library = cache / f"toy-{key}.so"
    if not library.is_file():
        part = cache / f"toy-{key}.{os.getpid()}.part"
        subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *flags, "-o", part, SOURCE], check=True)
        part.rename(library)
    return library


def toy_outputs(codes: np.ndarray) -> np.ndarray:
    """The toy network in numpy: input codes (N, 4, 4, 1) -> output codes (N, 3)."""
    x = codes.reshape(len(codes), 16).astype(np.int64)
    edge = np.where(np.arange(16) % 2, -3, 2)
    return np.stack([x @ (np.arange(16) - 8), 300 - x.sum(1), x @ edge], axis=1)


def write_golden(folder: Path, count: int = 40, **changed) -> Path:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 64, (count, 4, 4, 1)).astype(np.uint8)
    outputs = toy_outputs(codes)
    arrays = {"input_codes": codes, "output_codes": outputs, "labels": outputs.argmax(1),
              "input_scale_log2": np.int64(-6), "output_scale_log2": np.int64(-9)}  # fmt: skip
    arrays["labels"][:3] = (arrays["labels"][:3] + 1) % 3
    np.savez(folder / "golden.npz", **(arrays | changed))
    return folder / "golden.npz"


def build(folder: Path, board: str = "pynq-z2", library: Path | None = None, **changed) -> opening.Package:
    """A package around the toy design in ``folder``/package."""
    parts = {
        "name": "toy", "board": boards_board.load(board), "wire": WIRE, "library": library or compile_toy(),
        "golden": None, "labels": ["low", "mid", "high"], "preprocess": PREPROCESS, "recipe": 'board = "pynq-z2"\n',
        "versions": {"toy": "1.0"},
    }  # fmt: skip
    parts |= changed
    parts["golden"] = parts["golden"] or write_golden(folder)
    return building.build_package(folder / "package", **parts)


def reseal(folder: Path) -> None:
    """Make the manifest agree with whatever the files are now: the fault then lies behind the hashes."""
    manifest = opening.read_json(folder / "manifest.json")
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.pop("self_sha256")
    manifest["self_sha256"] = hashlib.sha256(onboard.canonical(manifest)).hexdigest()
    (folder / "manifest.json").write_bytes(onboard.canonical(manifest))
