"""The user's files from outside: which there are, which class each belongs to, and whether they changed.

Nothing here decodes a picture or imports torch, so that a finished run is recognized in no time.
"""

import hashlib
import json
import os
import re
import stat
import unicodedata
import zipfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from boards.errors import SlimgateError

# What file managers and archivers leave behind; names that begin with a dot are ignored as well.
LEFTOVERS = {"__macosx", "thumbs.db", "desktop.ini"}
# Larger than any picture a camera makes; a zip can claim anything.
MAX_BYTES = 256 * 2**20


class SourceError(SlimgateError):
    """A folder or zip of pictures is not what it should be."""


class Picture(NamedTuple):
    """``name`` "class/.../file" with forward slashes, ``key`` the path or zip member to read, ``token`` its looks."""

    name: str
    label: str
    key: str
    token: tuple


class Listing(NamedTuple):
    """Pictures sorted by name, classes sorted by name, and how many leftovers were ignored."""

    pictures: list[Picture]
    classes: list[str]
    ignored: int


def fingerprint(recipe) -> str:
    """sha256 hex digest that changes whenever the recipe's data set would read something else.

    It is taken over what the data set's ``seen(recipe)`` returns: published checksums, or name, size and times of
    every file. A touched but unchanged file costs a new reading; a changed one is never missed, because the inode's
    change time cannot be set by a program. Raises what ``seen`` raises when files are absent.
    """
    module = import_module(f"pipeline.datasets.{recipe.data.name}")
    seen = json.dumps([recipe.data.name, module.seen(recipe)], sort_keys=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def looks(path: Path) -> tuple:
    """Size and times of one file, in bytes and nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def listing(path: Path, what: str) -> Listing:
    """The pictures of a folder or zip of class folders. ``what`` names it in messages, e.g. "data.train".

    The folders on top are the classes; whatever lies below a class folder, however deep, belongs to it. One folder
    that holds all class folders is seen through. Names are compared in Unicode's composed form.
    SourceError: absent, not a folder or zip, a name that leaves the zip, a file outside every class, an empty class,
    fewer than two classes, a link that leads back to a folder above, encrypted or oversized members.
    """
    if path.is_dir():
        files, folders, ignored = _walk(path)
    elif path.is_file():
        files, folders, ignored = _unzip(path)
    else:
        raise SourceError(f"{what} does not exist", where=path, fix="give a folder or a zip of class folders")

    while len(tops := {parts[0] for parts in [*files, *folders]}) == 1 and all(len(parts) > 2 for parts in files):
        if not any(len(parts) == 2 for parts in folders):
            break
        files = {parts[1:]: value for parts, value in files.items()}
        folders = {parts[1:] for parts in folders if len(parts) > 1}

    stray = sorted(parts[0] for parts in files if len(parts) == 1)
    if stray:
        raise SourceError(
            f"{what}: {len(stray)} file(s) in no class folder, e.g. {stray[0]!r}",
            where=path,
            fix="one folder per class on top, the pictures inside; move other files away",
        )
    counts = dict.fromkeys(tops, 0)
    for parts in files:
        counts[parts[0]] += 1
    empty = sorted(name for name, number in counts.items() if number == 0)
    if empty:
        raise SourceError(
            f"{what}: no picture in class {', '.join(map(repr, empty))}",
            where=path,
            fix="add pictures to it or remove the folder",
        )
    if len(counts) < 2:
        raise SourceError(
            f"{what}: {len(counts)} class(es), at least 2 are needed",
            where=path,
            fix="one folder per class on top, the pictures inside",
        )
    pictures = [Picture("/".join(parts), parts[0], *files[parts]) for parts in sorted(files)]
    return Listing(pictures, sorted(counts), ignored)


def _walk(root: Path) -> tuple[dict, set, int]:
    files: dict[tuple, tuple] = {}
    folders: set[tuple] = set()
    ignored = 0

    def visit(folder: Path, parts: tuple, above: frozenset) -> None:
        nonlocal ignored
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"cannot be listed: {error.strerror}", where=folder) from error
        for entry in entries:
            if _leftover(entry.name):
                ignored += 1
                continue
            path, inner = Path(entry.path), (*parts, _name(entry.name, folder))
            try:
                found = entry.stat()
            except OSError as error:
                raise SourceError(f"cannot be read: {error.strerror}", where=path, fix="is it a dead link?") from error
            if stat.S_ISDIR(found.st_mode):
                identity = (found.st_dev, found.st_ino)
                if identity in above:
                    raise SourceError("a link leads back to a folder above it", where=path, fix="remove the link")
                folders.add(inner)
                visit(path, inner, above | {identity})
            elif stat.S_ISREG(found.st_mode):
                if inner in files:
                    raise SourceError("two files whose names differ in Unicode form only", where=path)
                files[inner] = (str(path), (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
            else:
                raise SourceError("neither a file nor a folder", where=path, fix="remove it")

    top = root.stat()
    visit(root, (), frozenset({(top.st_dev, top.st_ino)}))
    return files, folders, ignored


def _unzip(path: Path) -> tuple[dict, set, int]:
    files: dict[tuple, tuple] = {}
    folders: set[tuple] = set()
    ignored = 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise SourceError(
            f"not a whole zip file: {error}", where=path, fix="download or make it again; it may be cut short"
        ) from error
    for member in members:
        name = member.filename
        if not member.flag_bits & 0x800:
            # Archivers without the UTF-8 flag often store UTF-8 all the same.
            try:
                name = name.encode("cp437").decode("utf-8")
            except UnicodeError:
                name = member.filename
        where = f"{path}: {member.filename!r}"
        pieces = name.rstrip("/").split("/")
        if name.startswith("/") or "\\" in name or ".." in pieces or re.match(r"[A-Za-z]:", name):
            raise SourceError(
                "a name in the zip points outside of it",
                where=where,
                fix="do not use this zip; make it again",
            )
        parts = tuple(_name(piece, path) for piece in pieces if piece not in ("", "."))
        if not parts:
            continue
        if any(_leftover(piece) for piece in parts):
            ignored += 0 if member.is_dir() else 1
            continue
        folders.update(parts[:depth] for depth in range(1, len(parts)))
        if member.is_dir():
            folders.add(parts)
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise SourceError("a link or device in the zip", where=where, fix="store the pictures themselves")
        if member.flag_bits & 1:
            raise SourceError("the zip is encrypted", where=where, fix="make it without a password")
        if parts in files:
            raise SourceError("the zip holds this name twice", where=where, fix="make it again")
        if member.file_size > MAX_BYTES:
            raise SourceError(f"claims {member.file_size} bytes, more than {MAX_BYTES} of a picture", where=where)
        files[parts] = (member.filename, (member.file_size, member.CRC))
    return files, folders, ignored


def _leftover(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFTOVERS


def _name(name: str, folder: Path) -> str:
    """Composed Unicode, so that a folder from a Mac and a zip from Linux name a class alike."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise SourceError(f"a name that is not UTF-8: {name!r}", where=folder, fix="rename it") from None
    return unicodedata.normalize("NFC", name)
