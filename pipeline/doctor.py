"""What this machine has, and what each missing thing prevents."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from boards import board
from boards.errors import SlimgateError
from hls import toolchain
from pipeline import keys

ROOT = Path(__file__).resolve().parent.parent
#: The Python versions that all pinned packages have wheels for; see requires-python in pyproject.toml.
PYTHONS = ((3, 11), (3, 12))
#: A run folder with its environment-independent artifacts stays well below this.
ROOM_MB = 500


@dataclass(frozen=True)
class Finding:
    """``state`` is "ok", "missing" (nothing of `make benchmark` needs it) or "broken" (something does)."""

    what: str
    state: str
    found: str
    prevents: str = ""


def examine(build: Path = Path("build")) -> list[Finding]:
    """Look at Python, its packages, the programs, the boards and the disk; nothing is started or changed."""
    return [
        _python(),
        *_packages(),
        _compiler(),
        _program("Vitis HLS", toolchain.VITIS_HLS, "synthesis of the design: make bitstream"),
        _program("Vivado", toolchain.VIVADO, "block design and bitstream: make bitstream"),
        _program("ssh", ("ssh",), "places on a real board"),
        _boards(),
        _disk(build),
    ]


def show(findings: list[Finding], console: Console) -> int:
    """Print the findings; return 1 where something is broken, 0 otherwise."""
    table = Table("", "", "found", "without it")
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[red]broken[/]"}
    for finding in findings:
        table.add_row(finding.what, marks[finding.state], finding.found, finding.prevents)
    console.print(table)
    return int(any(finding.state == "broken" for finding in findings))


def _python() -> Finding:
    supported = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    if sys.version_info[:2] in PYTHONS:
        return Finding("Python", "ok", platform.python_version())
    return Finding("Python", "broken", f"{platform.python_version()}, supported: {supported}", "everything")


def pins(root: Path = ROOT) -> dict[str, str]:
    """Distribution -> version from the constraints file of this Python; empty where it was not shipped."""
    file = root / f"constraints-{sys.version_info[0]}.{sys.version_info[1]}.txt"
    if not file.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return dict(line.split("==") for line in lines if line)


def _packages() -> list[Finding]:
    pinned = {_canonical(name): version for name, version in pins().items()}
    try:
        direct = importlib.metadata.requires("slimgate") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("slimgate", "missing", "not installed", "the command `slimgate`; `python -m pipeline` works")]
    findings = []
    for requirement in direct:
        if "extra ==" in requirement:
            continue
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0]
        pin = pinned.get(_canonical(name))
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "broken", f"not installed, pinned: {pin}", "everything: run make benchmark"))
            continue
        if pin is None or found.partition("+")[0] == pin:
            findings.append(Finding(name, "ok", found))
        else:
            text = f"{found}, pinned: {pin}"
            findings.append(Finding(name, "broken", text, "bit-exactness was established for the pinned versions"))
    return findings


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _compiler() -> Finding:
    try:
        return Finding("g++", "ok", keys.version("g++"))
    except SlimgateError as error:
        return Finding("g++", "broken", str(error.what), "C simulation and all after it: " + keys.INSTALL["g++"])


def _program(what: str, names: tuple[str, ...], prevents: str) -> Finding:
    variable = toolchain.VARIABLES.get(what, "")
    if path := toolchain.find(names, variable):
        return Finding(what, "ok", str(path))
    where = f"in ${variable}/bin or on PATH" if variable else "on PATH"
    return Finding(what, "missing", f"no {' or '.join(names)} {where}", prevents)


def _boards() -> Finding:
    names = board.names()
    try:
        for name in names:
            board.load(name)
    except SlimgateError as error:
        return Finding("boards", "broken", str(error), "runs for that board")
    return Finding("boards", "ok", f"{len(names)}: {', '.join(names)}")


def _disk(build: Path) -> Finding:
    folder = next(path for path in (build.absolute(), *build.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 1e6
    if not os.access(folder, os.W_OK):
        return Finding("disk", "broken", f"{folder} cannot be written", "runs: name another folder with --build-dir")
    if free < ROOM_MB:
        return Finding("disk", "broken", f"{free:.0f} MB free at {folder}", f"runs: they need up to {ROOM_MB} MB")
    return Finding("disk", "ok", f"{free / 1000:.0f} GB free at {folder}")
