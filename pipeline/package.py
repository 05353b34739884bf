"""Building and opening a package: everything a board needs to run one network and to prove that it is right.

A package is a folder with a manifest of every file's sha256, and the same as one tar.gz. The manifest is written last
and the folder renamed into place, so a half-written one never looks whole. Building is deterministic: the same inputs give
the same bytes.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import boards
from boards.board import Board
from boards.errors import SlimgateError
from boards.netlist import platform, render_hwh, simulated_bitstream
from boards.onboard import run as onboard
from boards.simulated.accelerator import Accelerator

ONBOARD = Path(boards.__file__).parent / "onboard"
PARTS = ("brevitas", "hls4ml", "numpy", "pynq", "qonnx", "torch")
"""Distributions whose versions the manifest names."""
# What gzip writes for level 9, no name, time 0. Its checksum does not cover these bytes, so they are compared.
_GZIP_HEAD = bytes.fromhex("1f8b08000000000002ff")


class PackageError(SlimgateError):
    """A package cannot be built, or one on disk is damaged, changed or not a package."""


@dataclass(frozen=True)
class Package:
    """An opened package, every hash checked. As a context manager it removes what it had to unpack."""

    folder: Path
    manifest: Mapping
    scratch: Path | None = None

    @property
    def library(self) -> Path:
        """The compiled design that the simulated board runs."""
        return self.folder / "simulated" / "design.so"

    def __enter__(self) -> "Package":
        return self

    def __exit__(self, *_: object) -> None:
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)


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
    clock_mhz: float | None = None,
    overlay: tuple[Path, Path] | None = None,
) -> Package:
    """Write a package into ``folder``, which must not exist yet.

    ``wire`` is io.json as plain data, ``preprocess`` has size, color and resize, ``recipe`` is TOML text, ``overlay``
    the real (.bit, .hwh); without it the SIMULATED stand-in is put in. PackageError when the parts do not fit one another.
    """
    digest = wire["design_digest"]
    clock_mhz = board.clock_mhz if clock_mhz is None else clock_mhz
    labels = [str(label) for label in labels]
    _check_parts(wire, library, golden, labels, preprocess)
    bit, hwh = _overlay(board, digest, clock_mhz, overlay)
    stem = f"overlay/{name}_{digest[:12]}"
    rule = {key: preprocess[key] for key in ("size", "color", "resize")}
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
        "example.ipynb": onboard.canonical(_notebook(name, board)),
        "README.txt": _readme(name, board, digest, overlay is None).encode("utf-8"),
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
        "simulated": overlay is None,
        "evidence": "simulated" if overlay is None else "implemented",
        "overlay": {"bit": f"{stem}.bit", "hwh": f"{stem}.hwh"},
        "versions": {part: metadata.version(part) for part in PARTS},
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
    if list(wire["input"]["shape"]) != [*preprocess["size"], channels]:
        raise PackageError(
            f"pictures become {[*preprocess['size'], channels]}, the network takes {list(wire['input']['shape'])}",
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


def open_package(path: Path, into: Path | None = None) -> Package:
    """A package folder or tar.gz, every hash checked.

    A tar.gz is unpacked into the existing folder ``into``, or into one of its own that closing the Package removes;
    nothing outside it is written. PackageError names the file that is missing, added or changed.
    """
    path = Path(path)
    if path.is_dir():
        return Package(path, _check(path, path))
    if not path.is_file():
        raise PackageError("there is no package", where=path, fix="make one with: slimgate run RECIPE --until package")
    scratch = None if into is not None else Path(tempfile.mkdtemp(prefix="slimgate-"))
    try:
        folder = _unpack(path, Path(into or scratch))
        return Package(folder, _check(folder, path), scratch)
    except PackageError:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        raise


def _check(folder: Path, named: Path) -> dict:
    try:
        manifest = onboard.check_package(folder)
    except onboard.Stop as stop:
        raise PackageError(str(stop), where=named, fix="take or build the package again") from stop
    there = {str(PurePosixPath(p.relative_to(folder))) for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if extra := sorted(there - set(manifest["files"]) - {"manifest.json"}):
        raise PackageError(
            f"the package holds what its manifest does not name: {', '.join(extra[:5])}",
            where=named,
            fix="remove it, or take or build the package again",
        )
    return manifest


def _unpack(path: Path, into: Path) -> Path:
    """Regular files under one top folder; anything else in the archive is refused before a byte is written."""
    again = "take or build the package again"
    try:
        if path.read_bytes()[: len(_GZIP_HEAD)] != _GZIP_HEAD:
            raise PackageError("not a tar.gz that slimgate wrote, or its head was changed", where=path, fix=again)
        with tarfile.open(path, "r:gz") as archive:
            members = archive.getmembers()
            files = {}
            for member in members:
                name = PurePosixPath(member.name)
                if not member.isreg() or name.is_absolute() or ".." in name.parts or len(name.parts) < 2:
                    raise PackageError(f"the archive holds {member.name!r}, which is no plain file in it", where=path)
                files[name] = archive.extractfile(member).read()
        with gzip.open(path) as whole:  # tarfile stops at the end mark; the checksum is at the end of the file
            while whole.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise PackageError(f"the archive is damaged or incomplete: {error}", where=path, fix=again) from error
    tops = {name.parts[0] for name in files}
    if len(tops) != 1:
        raise PackageError("the archive does not hold exactly one folder", where=path, fix=again)
    for name, data in files.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return into / tops.pop()


def _readme(name: str, board: Board, digest: str, simulated: bool) -> str:
    warning = (
        "\nSIMULATED: the overlay in here is a stand-in without a design. It runs on the simulated board only;\n"
        "a real board refuses it. Build the bitstream and package again for the board.\n"
        if simulated
        else ""
    )
    return f"""{name} for {board.title} ({board.name}), design {digest}
{warning}
On the board, in this folder, as root and with the pynq environment sourced:

  python3 run.py --out result.json        every output code against the golden vectors (exit code 0: all equal)
  python3 predict.py picture.png          classify pictures
  example.ipynb                           the same from Jupyter

manifest.json    sha256 of every file, versions, board, clock
overlay/         what is loaded into the device (.bit, .hwh)
simulated/       the compiled design that the simulated board runs instead
golden.npz       input codes, expected output codes and labels of the test set
io.json          samples on the wire; preprocess.json: from picture to input codes; labels.json: names of the outputs
recipe.toml      how the network was made
"""


def _notebook(name: str, board: Board) -> dict:
    def markdown(*lines: str) -> dict:
        return {"cell_type": "markdown", "metadata": {}, "source": "\n".join(lines)}

    def code(*lines: str) -> dict:
        return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": "\n".join(lines)}

    cells = [
        markdown(f"# {name} on {board.title}", "", "Run it in the package's folder on the board."),
        code("import json, subprocess, sys", 'print(open("README.txt").read())'),
        markdown("Every output code of the test set against the golden vectors:"),
        code(
            'subprocess.run([sys.executable, "run.py", "--out", "/tmp/result.json"])',
            'result = json.load(open("/tmp/result.json"))',
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
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    language = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": cells, "metadata": language, "nbformat": 4, "nbformat_minor": 5}


def read_json(path: Path) -> dict:
    """A JSON file as plain data; PackageError where it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"not readable as JSON: {error}", where=path) from error
