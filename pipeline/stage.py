"""The stage engine: finished folders in, one finished folder out.

A run folder holds one folder per stage. A stage works in ``.<stage>.partial-*``; its manifest is written last and the
folder is renamed into place, so a folder without the dot is finished whatever happened to the process. A finished
folder serves as long as its key does; see ``Stage`` for what a key covers. Nothing here knows what the stages do, and
no stage imports this module or pipeline.config: their keys would change with every edit of the engine.
"""

import errno
import fcntl
import importlib
import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Any

from rich.console import Console

from boards.errors import SlimgateError
from boards.evidence import EVIDENCE
from pipeline import gates, keys
from pipeline.keys import MANIFEST
from pipeline.progress import Work

SCHEMA = 1
LAST_RUN = "last_run.json"
_LOCK = ".lock"


class StageError(SlimgateError):
    """A stage broke its contract: it did not write what it must, said a figure without evidence, or was damaged."""


class RunLocked(SlimgateError):
    """Another process works in the run folder."""


class _InputMissing(Exception):
    """A stage's key was asked before the stages it needs are finished."""


class StorageError(SlimgateError):
    """The disk is full, or a folder cannot be written."""


@dataclass(frozen=True)
class Stage:
    """One stage. Its key covers everything that can change what it makes:

    its name; ``config``, dotted recipe keys and ``place``; the keys and contents of the stages it ``needs``; the
    versions of its ``tools`` (distributions, or programs of keys.PROGRAMS) and of Python; the source text of the run
    hook's module and all modules of ours that it imports, transitively, and of ``imports``, modules that it imports by
    a computed name; the data files that ``sources`` match; and what its ``fingerprint`` hook returns. ``imports`` and
    ``sources`` may contain ``{model.name}``-like recipe keys.
    """

    name: str
    run: str  #: "package.module:function", imported only when the stage has to run; called with a Context
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()  #: files or non-empty folders that must exist afterwards
    metrics: tuple[str, ...] = ()  #: metrics that must have been told, or the stage has failed
    gates: tuple[str, ...] = ()  #: gates that must have been passed: a check that was not made is not passed
    config: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    fingerprint: str | None = None  #: "package.module:function" of light import: (recipe) -> str
    publish: tuple[str, ...] = ()  #: files that are also copied to the run folder itself
    always: Callable[["Context"], bool] | None = None  #: True: never taken from a cache
    stands_for: tuple[str, ...] = ()  #: stages in whose place it is: what needs one of them gets this one's folder


@dataclass
class Outcome:
    """What became of one stage in one invocation: ``how`` is "ran", "finished" (nothing to do) or "copied"."""

    name: str
    how: str
    seconds: float
    manifest: dict = field(repr=False)

    @property
    def cached(self) -> bool:
        return self.how != "ran"


class Declared:
    """A recipe of which only the declared keys can be read: what is not in the key must not shape the result."""

    def __init__(self, section: Any, stage: str, config: tuple[str, ...], prefix: str = ""):
        self._section, self._stage, self._config, self._prefix = section, stage, config, prefix

    def __getattr__(self, name: str) -> Any:
        value, key = getattr(self._section, name), f"{self._prefix}{name}"
        if key in self._config or key in ("name", "path", "resolve"):
            return value
        if any(declared.startswith(f"{key}.") for declared in self._config):
            return Declared(value, self._stage, self._config, f"{key}.")
        whole = not self._prefix and set(type(self._section).model_fields) <= set(self._config)
        if callable(value) and whole:  # dump() and to_toml() tell everything
            return value
        raise StageError(
            f"stage {self._stage!r} reads the recipe's {key!r}, which is not in its key",
            fix=f"add {key!r} to its `config` in pipeline/flow.py",
        )


class Context:
    """What a run hook gets. ``folder`` is where it writes; nothing else is remembered."""

    def __init__(self, stage: Stage, folder: Path, run: "Run", inputs: dict[str, Path]):
        self.stage, self.folder, self.inputs = stage, folder, inputs
        self.recipe, self.place = Declared(run.recipe, stage.name, stage.config), run.place
        self._run = run
        self.metrics: dict[str, dict] = {}
        self.gates: list[dict] = []

    @property
    def board(self):
        """The board model, a boards.board.Board."""
        return self._run.board

    def manifest(self, stage: str) -> dict:
        """The manifest of a stage this one needs."""
        if stage not in self.inputs:
            raise StageError(f"stage {self.stage.name!r} reads {stage!r} without needing it", fix="add it to `needs`")
        return read_json(self.inputs[stage] / MANIFEST)

    def metric(
        self,
        name: str,
        value: float,
        evidence: str,
        unit: str | None = None,
        interval: tuple[float, float] | None = None,
        **extra: Any,
    ) -> None:
        """Record one figure with how it was obtained (a word of boards.evidence)."""
        if evidence not in EVIDENCE:
            raise StageError(f"metric {name!r}: {evidence!r} is no evidence", fix=f"one of {', '.join(EVIDENCE)}")
        interval = None if interval is None else [_plain(bound) for bound in interval]
        extra = {key: _plain(number) for key, number in extra.items()}
        self.metrics[name] = {
            "value": _plain(value), "evidence": evidence, "unit": unit, "interval": interval, **extra
        }  # fmt: skip

    def gate(self, name: str, passed: bool, detail: str, *, fix: str | None = None, **numbers: Any) -> None:
        """Record a gate; raises gates.GateFailed when it is shut. ``passed`` must be a real bool."""
        numbers = {key: _plain(number) for key, number in numbers.items()}
        try:
            self.gates.append(gates.check(name, passed, detail, fix=fix, **numbers))
        except gates.GateFailed as error:
            self.gates.append(error.record)
            raise

    def progress(self, items: Iterable | int, label: str) -> Work:
        """Iterate over the result, or use it as a context and call ``advance(n)``."""
        return Work(items, label, self._run.console)

    def log(self, text: str) -> None:
        """One line for whoever watches."""
        self._run.say(f"    {text}")


class Run:
    """One run folder, ``build/<recipe>-<board>``, and the flow that fills it.

    ``root`` is the folder that holds the ``packages``: sources of keys are found below it. ``load_board`` makes the
    board model from its name, and is only called when a stage asks for it.
    """

    def __init__(
        self,
        stages: Iterable[Stage],
        recipe: Any,
        *,
        build: Path = Path("build"),
        place: str = "simulated",
        root: Path,
        packages: tuple[str, ...] = ("pipeline", "hls", "boards"),
        load_board: Callable[[str], Any] = str,
        verify: bool = False,
        console: Console | None = None,
    ):
        self.stages = {stage.name: stage for stage in stages}
        self._in_place_of = {other: stage.name for stage in self.stages.values() for other in stage.stands_for}
        self.recipe, self.place, self.root, self.packages = recipe, place, root, packages
        self.build = Path(build)
        self.folder = self.build / f"{recipe.name}-{recipe.board}"
        self.verify = verify
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._load_board, self._board = load_board, None
        self._values = {**recipe.dump(), "place": place}

    @property
    def board(self) -> Any:
        if self._board is None:
            self._board = self._load_board(self.recipe.board)
        return self._board

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def until(self, last: str | None = None) -> list[Stage]:
        """The stages to execute, in order: all, or those that ``last`` needs, however indirectly, and itself."""
        if last is None:
            return list(self.stages.values())
        if last not in self.stages:
            raise SlimgateError(f"there is no stage {last!r}", fix=f"one of {', '.join(self.stages)}")
        wanted = {last}
        for name in reversed(self.stages):
            if name in wanted:
                wanted |= set(self._needs(self.stages[name]))
        return [stage for name, stage in self.stages.items() if name in wanted]

    def execute(self, stages: list[Stage], command: str | None = None) -> list[Outcome]:
        """Bring the stages up to date, in order. Raises SlimgateError; what was finished before stays finished."""
        command = command or shlex.join(["slimgate", *sys.argv[1:]])
        outcomes: list[Outcome] = []
        with storage_errors(self.build), self._locked(command):
            for stage in stages:  # before hours of training, not after
                for tool in stage.tools:
                    keys.version(tool)
            self._sweep()
            started = _now()
            for stage in stages:
                self._write_last_run(outcomes, stages, started, command)
                outcomes.append(self._one(stage, command))
            self._write_last_run(outcomes, stages, started, command)
        return outcomes

    def state(self, stage: Stage) -> tuple[str, str]:
        """("finished" | "outdated" | "damaged" | "missing", key or "") of a stage; needs its inputs finished."""
        manifest = self.manifest(self.path(stage.name))
        try:
            key = self._key(stage)
        except _InputMissing:
            return ("outdated" if manifest else "missing"), ""
        if manifest is None:
            return "missing", key
        if manifest["key"] != key:
            return "outdated", key
        return ("finished" if self._intact(self.path(stage.name), manifest, self.verify) else "damaged"), key

    # -- one stage -----------------------------------------------------------------------------------------------

    def _one(self, stage: Stage, command: str) -> Outcome:
        began, final = time.monotonic(), self.path(stage.name)
        state, key = self.state(stage)
        always = stage.always is not None and stage.always(Context(stage, final, self, {}))
        if always is False and state != "finished" and (copied := self._copy_sibling(stage, key)):
            self._publish(stage)
            shutil.rmtree(self.folder / "failed" / stage.name, ignore_errors=True)
            return Outcome(stage.name, "copied", time.monotonic() - began, copied)
        if always is False and state == "finished":
            self._publish(stage)
            return Outcome(stage.name, "finished", 0.0, self.manifest(final))
        why = {"finished": "never cached", "missing": "new"}.get(state, state)
        self.say(f"{stage.name} ({why}) ...")
        self._check_inputs(stage)
        manifest = self._work(stage, key, command)
        self._publish(stage)
        self.say(f"{stage.name}: done in {manifest['seconds']:.1f} s")
        return Outcome(stage.name, "ran", manifest["seconds"], manifest)

    def _work(self, stage: Stage, key: str, command: str) -> dict:
        partial = self._partial(stage.name)
        context = Context(stage, partial, self, self._inputs(stage))
        manifest = {
            "schema": SCHEMA,
            "stage": stage.name,
            "key": key,
            "inputs": {name: self.manifest(self.path(name))["content"] for name in self._needs(stage)},
            "input_keys": {name: self.manifest(self.path(name))["key"] for name in self._needs(stage)},
            "config": {name: self._value(name) for name in stage.config},
            "versions": self._versions(stage),
            "started": _now(),
            "command": command,
        }
        began = time.monotonic()
        try:
            hook(stage.run)(context)
            self._accept(stage, context)
            files = keys.inventory(partial)
            manifest |= {
                "content": keys.content(files),
                "files": files,
                "metrics": context.metrics,
                "gates": context.gates,
                "seconds": round(time.monotonic() - began, 3),
            }
            write_json(partial / MANIFEST, manifest)
        except Exception as error:
            if full(error, partial):
                shutil.rmtree(partial, ignore_errors=True)
                raise disk_full(partial.parent) from error
            self._keep_failed(stage, partial, {**manifest, "metrics": context.metrics, "gates": context.gates}, error)
            raise
        except BaseException:  # Ctrl-C: nothing to learn from half a folder
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._install(partial, self.path(stage.name))
        shutil.rmtree(self.folder / "failed" / stage.name, ignore_errors=True)
        return manifest

    def _accept(self, stage: Stage, context: Context) -> None:
        """Fail closed on what the stage left out; refuse what would make its content depend on where it ran."""
        for name in stage.makes:
            path = context.folder / name
            if not (path.is_file() or (path.is_dir() and any(path.iterdir()))):
                raise StageError(f"stage {stage.name!r} did not make {name}", where=stage.run)
        missing = [name for name in stage.metrics if name not in context.metrics]
        if missing:
            context.gate("figures complete", False, f"stage {stage.name!r} told nothing about {', '.join(missing)}")
        missing = sorted(set(stage.gates) - {gate["name"] for gate in context.gates})
        if missing:
            context.gate("gates complete", False, f"stage {stage.name!r} did not check: {', '.join(missing)}")
        here = os.fsencode(context.folder.name)
        for name, path in keys.files_of(context.folder).items():
            if here in path.read_bytes():
                raise StageError(
                    f"stage {stage.name!r} wrote the path of its own folder into {name}",
                    where=stage.run,
                    fix="write relative paths: contents must not depend on where and when they were made",
                )

    def _keep_failed(self, stage: Stage, partial: Path, manifest: dict, error: Exception) -> None:
        """Move what there is to failed/<stage>; the failure itself is what the user must see, so this never raises."""
        with suppress(OSError):
            (partial / MANIFEST).unlink(missing_ok=True)
            write_json(partial / "failure.json", {**manifest, "error": str(error)})
            kept = self.folder / "failed" / stage.name
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(exist_ok=True)
            partial.replace(kept)
            if isinstance(error, gates.GateFailed) and error.where is None:
                error.where = kept
        shutil.rmtree(partial, ignore_errors=True)

    def _needs(self, stage: Stage) -> list[str]:
        """The stages of this flow that a stage needs: in place of some others may stand."""
        return list(dict.fromkeys(self._in_place_of.get(name, name) for name in stage.needs))

    def _inputs(self, stage: Stage) -> dict[str, Path]:
        """{name: folder} of what a stage reads; a folder that stands for others under their names as well."""
        names = self._needs(stage)
        names += [other for other, name in self._in_place_of.items() if name in names]
        return {name: self.path(self._in_place_of.get(name, name)) for name in names}

    # -- keys ----------------------------------------------------------------------------------------------------

    def _key(self, stage: Stage) -> str:
        inputs = {}
        for name in self._needs(stage):
            manifest = self.manifest(self.path(name))
            if manifest is None:
                raise _InputMissing(name)
            # The content alone would be enough for correctness; the key makes every edit upstream visible downstream.
            inputs[name] = [manifest["key"], manifest["content"]]
        modules = [stage.run.partition(":")[0], *(self._fill(name) for name in stage.imports)]
        sources = keys.closure(modules, self.packages, self.root)
        data = keys.glob([self._fill(pattern) for pattern in stage.sources], self.root)
        return keys.digest(
            {
                "schema": SCHEMA,
                "name": stage.name,
                "run": stage.run,
                "config": {name: self._value(name) for name in stage.config},
                "inputs": inputs,
                "versions": self._versions(stage),
                "sources": {name: keys.file_digest(path) for name, path in (sources | data).items()},
                "fingerprint": hook(stage.fingerprint)(self.recipe) if stage.fingerprint else None,
            }
        )

    def _versions(self, stage: Stage) -> dict[str, str]:
        return {tool: keys.version(tool) for tool in ("python", *stage.tools)}

    def _value(self, key: str) -> Any:
        value = self._values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def _fill(self, pattern: str) -> str:
        for _, name, _, _ in Formatter().parse(pattern):
            if name:
                pattern = pattern.replace(f"{{{name}}}", str(self._value(name)))
        return pattern

    # -- folders -------------------------------------------------------------------------------------------------

    def manifest(self, folder: Path) -> dict | None:
        """The manifest of a finished folder; None where there is none or it is not one of ours."""
        return read_manifest(folder / MANIFEST)

    def _intact(self, folder: Path, manifest: dict, hashes: bool) -> bool:
        return self._damaged(folder, manifest, hashes) is None

    def _damaged(self, folder: Path, manifest: dict, hashes: bool) -> str | None:
        """The first file that is not as the manifest says: missing, not from here, or of another size or hash."""
        found, entries = keys.files_of(folder), manifest["files"]
        for name in sorted(found.keys() | entries.keys()):
            if name not in found or name not in entries:
                return name
            if found[name].stat().st_size != entries[name]["bytes"]:
                return name
            if hashes and keys.file_digest(found[name]) != entries[name]["sha256"]:
                return name
        return None

    def _check_inputs(self, stage: Stage) -> None:
        """Every byte of what the stage is about to read: sizes alone would let a flipped bit into what is made."""
        for name in self._needs(stage):
            folder = self.path(name)
            damaged = self._damaged(folder, self.manifest(folder), hashes=True)
            if damaged is not None:
                raise StageError(
                    f"a file of the finished stage {name!r}, which {stage.name!r} needs, is damaged: {damaged}",
                    where=folder / damaged,
                    fix="run again with --verify: it is made again",
                )

    def _copy_sibling(self, stage: Stage, key: str) -> dict | None:
        """Take the same stage, by key, from another run folder of the same build folder, hashes verified."""
        for other in sorted(self.build.glob(f"*/{stage.name}/{MANIFEST}")):
            manifest = self.manifest(other.parent)
            if manifest is None or manifest["key"] != key or other.parent == self.path(stage.name):
                continue
            partial = self._partial(stage.name)
            shutil.rmtree(partial)
            try:
                shutil.copytree(other.parent, partial)
            except (shutil.Error, FileNotFoundError) as error:
                # The other run may be replacing the folder at this moment: then it has nothing for us.
                if full(error, self.folder):
                    raise
                shutil.rmtree(partial, ignore_errors=True)
                continue
            if not self._intact(partial, manifest, hashes=True):
                self.say(f"{stage.name}: {other.parent} has the same key but damaged files; not used")
                shutil.rmtree(partial)
                continue
            self._install(partial, self.path(stage.name))
            self.say(f"{stage.name}: copied from {other.parent} (same key)")
            return manifest
        return None

    def _partial(self, stage: str) -> Path:
        # A name of its own each time: children of a killed process may still be writing to the old one.
        partial = self.folder / f".{stage}.partial-{secrets.token_hex(4)}"
        partial.mkdir()
        return partial

    def _install(self, partial: Path, final: Path) -> None:
        """Put a finished folder into place. A kill in between leaves the old folder or none, never half of one."""
        sync(partial)
        if final.exists():
            old = partial.with_name(f".{final.name}.old-{secrets.token_hex(4)}")
            final.replace(old)
            partial.replace(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.replace(final)
        sync(self.folder)

    def _publish(self, stage: Stage) -> None:
        for name in stage.publish:
            source, target = self.path(stage.name) / name, self.folder / name
            if not target.is_file() or keys.file_digest(target) != keys.file_digest(source):
                beside = target.with_name(f".{name}.partial-{secrets.token_hex(4)}")
                shutil.copyfile(source, beside)
                beside.replace(target)

    def _sweep(self) -> None:
        """Remove what interrupted runs left; we hold the lock, so nobody is working in it."""
        for pattern in (".*.partial-*", ".*.old-*"):
            for path in self.folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _write_last_run(self, outcomes: list[Outcome], stages: list[Stage], started: str, command: str) -> None:
        write_json(
            self.folder / LAST_RUN,
            {
                "schema": SCHEMA,
                "run": self.folder.name,
                "recipe": self.recipe.dump(),
                "recipe_path": str(self.recipe.path),
                "board": self.recipe.board,
                "place": self.place,
                "command": command,
                "started": started,
                # Whatever stops this process, what it has not brought up to date is written here.
                "pending": [stage.name for stage in stages[len(outcomes) :]],
                "stages": [
                    {"name": o.name, "how": o.how, "cached": o.cached, "seconds": round(o.seconds, 3)} for o in outcomes
                ],
            },
        )

    @contextmanager
    def _locked(self, command: str):
        """Exclude other processes from the run folder.

        A POSIX record lock: it ends with this process, even by kill -9, and unlike flock() is not inherited by
        forked workers, which could otherwise outlive this process and keep the folder locked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise RunLocked(
                    f"another slimgate works in this run folder: {holder}",
                    where=self.folder,
                    fix="wait for it, or stop that process; the lock ends with it",
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()} ({command})\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


# -- helpers ---------------------------------------------------------------------------------------------------------


def hook(name: str) -> Callable:
    """The function named "package.module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_NUMBER = (int, float)
_MANIFEST = {"schema": int, "stage": str, "key": str, "content": str, "files": dict, "inputs": dict, "input_keys": dict,
             "config": dict, "versions": dict, "metrics": dict, "gates": list, "seconds": _NUMBER}  # fmt: skip
_LAST_RUN = {"schema": int, "recipe": dict, "recipe_path": str, "board": str, "place": str, "command": str,
             "started": str, "pending": list, "stages": list}  # fmt: skip


def _has(value: Any, kinds: dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def _read(path: Path, kinds: dict[str, Any]) -> dict | None:
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return value if _has(value, kinds) and value["schema"] == SCHEMA else None


def read_manifest(path: Path) -> dict | None:
    """A manifest; None where there is none, or what is there is not one whole manifest of this schema."""
    manifest = _read(path, _MANIFEST)
    whole = (
        manifest is not None
        and all(_has(entry, {"sha256": str, "bytes": int}) for entry in manifest["files"].values())
        and all(_has(entry, {"evidence": str}) and "value" in entry for entry in manifest["metrics"].values())
        and all(_has(gate, {"name": str, "passed": bool}) for gate in manifest["gates"])
        and manifest["inputs"].keys() == manifest["input_keys"].keys()
    )
    return manifest if whole else None


def read_last_run(folder: Path) -> dict | None:
    """What the last invocation wrote into a run folder; None where there is nothing, or nothing whole."""
    last = _read(folder / LAST_RUN, _LAST_RUN)
    stage = {"name": str, "how": str, "cached": bool, "seconds": _NUMBER}
    whole = (
        last is not None
        and isinstance(last["recipe"].get("imported", {}), dict)
        and all(isinstance(name, str) for name in last["pending"])
        and all(_has(entry, stage) for entry in last["stages"])
    )
    return last if whole else None


def write_json(path: Path, value: Any) -> None:
    """Write atomically and to the disk; NaN and infinities are refused (ValueError)."""
    beside = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def says_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is the system's own word for a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


def full(error: Exception, folder: Path) -> bool:
    """Whether a stage failed on a full disk: libraries hide that in errors of their own, so the disk is asked too."""
    return says_full(error) or (not isinstance(error, gates.GateFailed) and shutil.disk_usage(folder).free < 1 << 16)


def disk_full(folder: Path) -> StorageError:
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free / 1e6
    return StorageError(
        f"the disk is full ({free:.1f} MB free)",
        where=folder,
        fix="make room and run the same command again: finished stages are kept, the unfinished one was removed",
    )


@contextmanager
def storage_errors(folder: Path):
    """Turn a full disk, and folders at ``folder`` that cannot be used, into a StorageError."""
    try:
        yield
    except OSError as error:
        absolute = folder.absolute()
        if says_full(error):
            raise disk_full(absolute) from error
        where = Path(error.filename).absolute() if isinstance(error.filename, str) else absolute
        if absolute not in (where, *where.parents) and where not in absolute.parents:
            raise  # not about the folder: an error of a stage, which is no one's storage
        reason = error.strerror or str(error)
        raise StorageError(
            f"the folder for runs cannot be used: {reason}", where=where, fix="choose another one with --build-dir"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays as Python's own numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
