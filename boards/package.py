"""Opening a package: a folder or a tar.gz in which every byte is what the manifest says."""

import gzip
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from boards.errors import SlimgateError
from boards.onboard import run as onboard

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


def open_package(path: Path, into: Path | None = None) -> Package:
    """A package folder or tar.gz, every hash checked.

    A tar.gz is unpacked into the existing folder ``into``, or into one of its own that closing the Package removes;
    nothing outside it is written. PackageError names the file that is missing, added or changed.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "package.tar.gz").is_file() and (path / "package" / "manifest.json").is_file():
            raise PackageError(
                "this is the folder of the package stage, not the package", where=path,
                fix=f"name {path / 'package'} or {path / 'package.tar.gz'}",
            )  # fmt: skip
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


def read_json(path: Path) -> dict:
    """A JSON file as plain data; PackageError where it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"not readable as JSON: {error}", where=path) from error
