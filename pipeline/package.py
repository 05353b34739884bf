"""Building a package: everything a board needs to run one network and to prove that it is right.

A package is a folder with a manifest of every file's sha256, and the same as one tar.gz. The manifest is written last
and the folder renamed into place, so a half-written one never looks whole. Building is deterministic: the same inputs
give the same bytes.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import boards
from boards.board import Board
from boards.netlist import platform, render_hwh, simulated_bitstream
from boards.onboard import run as onboard
from boards.package import Package, PackageError
from boards.simulated.accelerator import Accelerator

ONBOARD = Path(boards.__file__).parent / "onboard"

def build_package(
    folder: Path,
    *,
    name: str,
    board: Board,
    wire: Mapping,
    library: Path,
    golden: Path,
    labels: Sequence[str],
    preprocess: Mapping,
    recipe: str,
    versions: Mapping[str, str],
    clock_mhz: float | None = None,
    overlay: tuple[Path, Path] | None = None,
    imported: Mapping | None = None,
) -> Package:
    """Write a package into ``folder``, which must not exist yet.

    ``wire`` is io.json as plain data, ``preprocess`` has size, color and resize, and for imported networks ``codes``,
    a table of input codes (C, 256) of pixels (no size, no table: the network takes no pictures); ``recipe`` is TOML
    text, ``versions`` those of the tools that made the parts, ``overlay`` the real (.bit, .hwh); without it the
    SIMULATED stand-in is put in. ``imported``: {"model", "sha256", "host", ...} of a network trained elsewhere.
    PackageError when the parts do not fit one another.
    """
    digest = wire["design_digest"]
    clock_mhz = board.clock_mhz if clock_mhz is None else clock_mhz
    labels = [str(label) for label in labels]
    _check_parts(wire, library, golden, labels, preprocess)
    bit, hwh = _overlay(board, digest, clock_mhz, overlay)
    stem = f"overlay/{name}_{digest[:12]}"
    rule = {key: preprocess[key] for key in ("size", "color", "resize", "codes") if key in preprocess}
    rule |= {"input_bits": wire["input"]["bits"], "scale_log2": wire["input"]["scale_log2"]}
    contents = {
        f"{stem}.bit": bit,
        f"{stem}.hwh": hwh,
        "simulated/design.so": Path(library).read_bytes(),
        "golden.npz": Path(golden).read_bytes(),
        "io.json": onboard.canonical(dict(wire)),
        "preprocess.json": onboard.canonical(rule),
        "labels.json": onboard.canonical(labels),
        "recipe.toml": recipe.encode("utf-8"),
        "run.py": (ONBOARD / "run.py").read_bytes(),
        "predict.py": (ONBOARD / "predict.py").read_bytes(),
        "example.ipynb": onboard.canonical(_notebook(name, board, rule["size"] is not None)),
        "README.txt": _readme(name, board, digest, overlay is None, imported, rule).encode("utf-8"),
    }
    manifest = {
        "kind": "slimgate-package",
        "schema": 1,
        "name": name,
        "board": board.name,
        "part": board.part,
        "ps": board.ps,
        "arch": board.arch,
        "pynq": {"minimum": board.pynq_min, "below": board.pynq_below},
        "pynq_names": list(board.pynq_names),
        "clock_mhz": clock_mhz,
        "design_digest": digest,
        "trained": "here" if imported is None else "elsewhere",
        "simulated": overlay is None,
        "evidence": "simulated" if overlay is None else "implemented",
        "overlay": {"bit": f"{stem}.bit", "hwh": f"{stem}.hwh"},
        "versions": dict(versions),
        "files": {
            path: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for path, data in contents.items()
        },
    }
    manifest["self_sha256"] = hashlib.sha256(onboard.canonical(manifest)).hexdigest()
    _write(Path(folder), contents, manifest)
    return Package(Path(folder), manifest)


def _check_parts(wire: Mapping, library: Path, golden: Path, labels: list[str], preprocess: Mapping) -> None:
    for path in (library, golden):
        if not Path(path).is_file():
            raise PackageError("a part of the package is missing", where=path, fix="run the stage that makes it again")
    try:
        shape = onboard.Wire(wire)
        inputs, _, truth = onboard.load_golden(Path(golden).parent, shape)
        shape.pack(inputs[:1])
    except onboard.Stop as stop:
        raise PackageError(str(stop), where=golden) from stop
    if len(labels) != shape.outputs or not 0 <= truth.min() <= truth.max() < len(labels):
        raise PackageError(
            f"{len(labels)} labels, {shape.outputs} outputs, golden classes {truth.min()} to {truth.max()}",
            where=golden,
        )
    channels = 3 if preprocess["color"] == "rgb" else 1
    table = preprocess.get("codes")
    if table is not None and [len(row) for row in table] != [256] * channels:
        raise PackageError(f"the table of codes has {len(table)} rows, the network {channels} channel(s)",
                           where="preprocess")  # fmt: skip
    taken, made = list(wire["input"]["shape"]), [*(preprocess["size"] or []), channels]
    # An imported network may take the pixels of a picture as one vector.
    if preprocess["size"] is not None and (made != taken if table is None else prod(made) != prod(taken)):
        raise PackageError(
            f"pictures become {made}, the network takes {taken}",
            where="preprocess",
        )
    with Accelerator(library) as accelerator:
        if accelerator.identity != wire["design_digest"]:
            raise PackageError(
                f"the compiled design is {accelerator.identity[:12]}..., io.json is of {wire['design_digest'][:12]}...",
                where=library,
                fix="run the csim stage again",
            )


def _overlay(board: Board, digest: str, clock_mhz: float, overlay: tuple[Path, Path] | None) -> tuple[bytes, bytes]:
    if overlay is None:
        return simulated_bitstream(board, digest), render_hwh(board, platform(board, clock_mhz)).encode("utf-8")
    bit, hwh = (Path(path).read_bytes() for path in overlay)
    for data, path in zip((bit, hwh), overlay, strict=True):
        if b"SIMULATED" in data[:1024]:
            raise PackageError("a stand-in was given as a real overlay", where=path, fix="build the bitstream")
    return bit, hwh


def _write(folder: Path, contents: Mapping[str, bytes], manifest: Mapping) -> None:
    if folder.exists():
        raise PackageError("there is something already", where=folder, fix="remove it or take another folder")
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        for name, data in [*contents.items(), ("manifest.json", onboard.canonical(manifest))]:
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for script in ("run.py", "predict.py"):
            (part / script).chmod(0o755)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise PackageError(f"cannot write the package: {error.strerror}", where=error.filename or folder) from error


def pack(package: Package, path: Path) -> Path:
    """The package as one tar.gz, the same bytes for the same package."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    top = f"{package.manifest['name']}-{package.manifest['board']}"
    try:
        with (
            open(part, "wb") as raw,
            gzip.GzipFile(fileobj=raw, filename="", mode="wb", compresslevel=9, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name in sorted([*package.manifest["files"], "manifest.json"]):
                data = (package.folder / name).read_bytes()
                info = tarfile.TarInfo(f"{top}/{name}")
                info.size, info.mode = len(data), 0o755 if name in ("run.py", "predict.py") else 0o644
                archive.addfile(info, io.BytesIO(data))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PackageError(f"cannot write the package: {error.strerror}", where=error.filename or path) from error
    return path


def _readme(name: str, board: Board, digest: str, simulated: bool, imported: Mapping | None, rule: Mapping) -> str:
    warning = (
        "\nSIMULATED: the overlay in here is a stand-in without a design. It runs on the simulated board only;\n"
        "a real board refuses it. Build the bitstream and package again for the board.\n"
        if simulated
        else ""
    )
    origin, made, steps = "", "how the network was made", "preprocess.json: from picture to input codes"
    pictures = "classify pictures"
    if imported is not None:
        made = "the recipe it was imported with"
        origin = (
            f"\nNot trained here: the network was imported from {imported['model']}, sha256\n{imported['sha256']}.\n"
        )
        if imported["host"]:
            origin += f"Its {' and '.join(imported['host'])} at the end is left to whoever reads the outputs.\n"
    if rule["size"] is None:
        pictures = "not for this network, which takes no pictures: see --codes"
        steps = "preprocess.json: no pictures, input codes are given as they are"
    return f"""{name} for {board.title} ({board.name}), design {digest}
{warning}{origin}
On the board, in this folder, as root and with the pynq environment sourced:

  python3 run.py --out result.json        every output code against the golden vectors (exit code 0: all equal)
  python3 predict.py picture.png          {pictures}
  example.ipynb                           the same from Jupyter

manifest.json    sha256 of every file, versions, board, clock
overlay/         what is loaded into the device (.bit, .hwh)
simulated/       the compiled design that the simulated board runs instead
golden.npz       input codes, expected output codes and labels of the test set
io.json          samples on the wire; {steps}; labels.json: names of the outputs
recipe.toml      {made}
"""


def _notebook(name: str, board: Board, pictures: bool) -> dict:
    def markdown(*lines: str) -> dict:
        return {"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)}

    def code(*lines: str) -> dict:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": "\n".join(lines)}

    cells = [
        markdown(f"# {name} on {board.title}", "", "Run it in the package's folder on the board."),
        code("import json, pathlib, subprocess, sys, tempfile", 'print(open("README.txt").read())'),
        markdown("Every output code of the test set against the golden vectors:"),
        code(
            'out = pathlib.Path(tempfile.gettempdir(), "slimgate-result.json")  # beside the package, not in it',
            'subprocess.run([sys.executable, "run.py", "--out", str(out)])',
            "result = json.loads(out.read_text())",
            'result["status"], result.get("accuracy")',
        ),
        markdown("Your own pictures, prepared as in training:"),
        code(
            "import predict",
            'network = predict.Classifier(".")',
            'pictures = []  # paths of picture files, such as "photo.jpg"',
            "network.classify(pictures) if pictures else network.labels",
        ),
    ]
    if not pictures:
        cells[-2:] = [
            markdown("Your own samples, as input codes (N, *shape); the shape is in io.json:"),
            code("import predict", 'network = predict.Classifier(".")', "codes = None  # an array of whole numbers",
                 "network.codes(codes) if codes is not None else network.labels"),
        ]  # fmt: skip
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": language, "nbformat": 4, "nbformat_minor": 5}
