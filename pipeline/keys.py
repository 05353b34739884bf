"""What a stage's key is made of: content hashes, versions of tools, and the source of the modules it imports."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from boards.errors import SlimgateError

MANIFEST = "manifest.json"
#: Programs whose version is asked on the command line, and the variable that names another one in place of each;
#: every other tool is a Python distribution.
PROGRAMS = {"g++": "CXX"}
INSTALL = {"g++": "install a C++ compiler, for example: apt-get install g++, or name another in CXX"}


class ToolMissing(SlimgateError):
    """A program or distribution that a stage needs is not there."""


class SourceError(SlimgateError):
    """One of our own modules cannot be read or parsed, so no key can be made."""


def digest(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Relative POSIX path -> path of every file of a stage's folder, without its manifest; sorted."""
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    found.pop(MANIFEST, None)
    return found


def inventory(folder: Path) -> dict[str, dict]:
    """{"relative/path": {"sha256", "bytes"}} of a stage's folder."""
    return {
        name: {"sha256": file_digest(path), "bytes": path.stat().st_size} for name, path in files_of(folder).items()
    }


def content(files: dict[str, dict]) -> str:
    """One hash over a whole inventory: equal contents, equal hash, wherever and whenever they were made."""
    return digest({name: entry["sha256"] for name, entry in files.items()})


@functools.cache
def version(tool: str) -> str:
    """Version of a distribution or of a program in PROGRAMS. Raises ToolMissing."""
    if tool == "python":
        return platform.python_version()
    if tool in PROGRAMS:
        name = os.environ.get(PROGRAMS[tool], tool)  # as hls.csim.compiler() takes it
        path = shutil.which(name)
        if path is None:
            raise ToolMissing(f"{name or PROGRAMS[tool]} was not found", where="PATH", fix=INSTALL.get(tool))
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        first = answer.stdout.strip().partition("\n")[0]
        if answer.returncode or not first:
            raise ToolMissing(f"{name} does not tell its version: {answer.stderr.strip()}", where=path)
        # The whole line: version numbers of different compilers can be equal. Their path is no part of it.
        return first.replace(path, Path(path).name)
    try:
        return importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        raise ToolMissing(
            f"the Python package {tool} is not installed",
            where=f"the environment of Python {platform.python_version()}",
            fix="run `make benchmark` or `make test` in the repository: they complete the environment",
        ) from None


@functools.cache
def _graph(packages: tuple[str, ...]):
    import grimp  # some milliseconds; commands that need no key do not pay them

    try:
        return grimp.build_graph(*packages, cache_dir=None)
    except grimp.exceptions.SourceSyntaxError as error:
        raise SourceError(f"a module cannot be parsed: {error}", fix="correct its syntax") from None


def closure(modules: Iterable[str], packages: tuple[str, ...], root: Path) -> dict[str, Path]:
    """Module -> source file, for the modules and everything of ours they import, however indirectly.

    Found in the source text, so imports inside functions count; what is imported by a computed name does not and
    has to be named in ``Stage.imports``. The packages' ``__init__`` on the way are part of it: they are executed.
    """
    graph = _graph(packages)
    found: set[str] = set()
    for module in modules:
        if module not in graph.modules:
            raise SourceError(f"there is no module {module}", where=root, fix="name a module that exists")
        found |= {module} | graph.find_upstream_modules(module)
    for module in list(found):
        parts = module.split(".")
        found |= {".".join(parts[:n]) for n in range(1, len(parts))}
    return {module: path for module in sorted(found) if (path := _file(module, root)) is not None}


def _file(module: str, root: Path) -> Path | None:
    path = root.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def glob(patterns: Iterable[str], root: Path) -> dict[str, Path]:
    """Relative POSIX path -> path of the data files matching any pattern; ``**`` at the end means all below."""
    found = {}
    for pattern in patterns:
        matches = [path for path in root.glob(pattern + "/*" if pattern.endswith("**") else pattern) if path.is_file()]
        if not matches:
            raise SourceError("data files that belong to a stage's key are missing", where=root / pattern)
        found |= {path.relative_to(root).as_posix(): path for path in matches if "__pycache__" not in path.parts}
    return dict(sorted(found.items()))
