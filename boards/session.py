"""A session with a board at a place: load a package, ask what is in the device, run codes, run the package's scripts.

A place is where a board stands. ``simulated`` is this computer. Places with real boards need a transport and a file of
addresses (lab.toml), which do not exist yet; asking for one says so.
"""

import json
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np

from boards.board import Board
from boards.errors import SlimgateError

SIMULATED = "simulated"
SCHEMA = Path(__file__).with_name("result.schema.json")


class PlaceError(SlimgateError):
    """A place that does not exist or that nothing here can reach."""


class SessionError(SlimgateError):
    """A script on the place failed, gave no result or did not end."""


@dataclass(frozen=True)
class Finished:
    """How a script ended on the place."""

    code: int
    output: str
    errors: str


class Session(ABC):
    """One board at one place, from ``open`` to ``close``; a context manager. ``load`` comes before the rest."""

    place: str
    simulated: bool
    """Whether the device is a simulated one; never a guess."""

    def __init__(self, board: Board):
        self.board = board
        self.folder: Path | None = None

    @abstractmethod
    def open(self) -> None:
        """Take the place. PlaceError when it cannot be had."""

    @abstractmethod
    def execute(self, script: str, arguments: list[str], timeout: float) -> Finished:
        """Run a script of the loaded package on the place, in its folder; SessionError when it does not end."""

    @abstractmethod
    def close(self) -> None:
        """Give the place back. Closing twice is fine."""

    def load(self, folder: Path) -> None:
        """Choose the package, an unpacked folder whose hashes the scripts check again on the place."""
        self.folder = Path(folder)

    def identity(self) -> str:
        """First 32 hex digits of the design in the device, as its probe answers after loading the overlay."""
        with tempfile.TemporaryDirectory() as scratch:
            return self._predict(Path(scratch), [], 60.0)["identity"]

    def run(self, codes: np.ndarray, timeout: float = 600.0) -> np.ndarray:
        """Input codes (N, H, W, C) -> output codes (N, K) int64, all in one stream."""
        with tempfile.TemporaryDirectory() as scratch:
            source, sink = Path(scratch, "in.npy"), Path(scratch, "out.npy")
            np.save(source, codes)
            self._predict(Path(scratch), ["--codes", str(source), "--codes-out", str(sink)], timeout)
            return np.load(sink, allow_pickle=False)

    def classify(self, images: list[Path], top: int = 3, timeout: float = 600.0) -> list[dict]:
        """[{"image", "top": [{"label", "index", "code", "value"}, ...]}, ...], one entry a picture file."""
        for image in images:
            if not Path(image).is_file():
                raise SessionError("there is no such picture", where=image)
        with tempfile.TemporaryDirectory() as scratch:
            paths = [str(Path(image).resolve()) for image in images]
            answers = self._predict(Path(scratch), ["--top", str(top), "--", *paths], timeout)["answers"]
        return [{"image": str(image), "top": answer["top"]} for image, answer in zip(images, answers, strict=True)]

    def benchmark(self, out: Path, singles: int, warmup: int, timeout: float = 1800.0) -> dict:
        """Run the package's run.py; the result it wrote to ``out``, valid by the schema. Raw codes lie beside it."""
        arguments = ["--out", str(Path(out).resolve()), "--singles", str(singles), "--warmup", str(warmup)]
        finished = self.execute("run.py", arguments, timeout)
        if not Path(out).is_file():
            raise SessionError(
                f"run.py ended with code {finished.code} and wrote no result", where=self.place, fix=_tail(finished)
            )
        return read_result(out)

    def _predict(self, scratch: Path, arguments: list[str], timeout: float) -> dict:
        out = scratch / "answers.json"
        finished = self.execute("predict.py", ["--out", str(out), *arguments], timeout)
        if finished.code:
            raise SessionError(_tail(finished) or f"predict.py ended with code {finished.code}", where=self.place)
        return json.loads(out.read_text(encoding="utf-8"))

    def __enter__(self) -> "Session":
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_session(place: str, board: Board) -> Session:
    """The session for a place, not yet opened (``with`` opens it). PlaceError for a place nothing here can reach."""
    if place != SIMULATED:
        lab = Path("lab.toml")
        raise PlaceError(
            f"the place {place!r} cannot be reached: only {SIMULATED!r} is supported so far",
            where=f"{lab.resolve()} ({'found, but not read yet' if lab.is_file() else 'not found'})",
            fix="take PLACE=simulated, or copy package.tar.gz to the board and run its run.py there",
        )
    from boards.simulated.session import SimulatedSession

    return SimulatedSession(board)


@cache
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def check_result(result: object, where: object = None) -> dict:
    """The result, if it is as result.schema.json says; else SessionError naming the place in it."""
    error = jsonschema.exceptions.best_match(_validator().iter_errors(result))
    if error is not None:
        raise SessionError(f"not a valid board result: {error.message}", where=f"{where}: {error.json_path}")
    return result


def read_result(path: Path) -> dict:
    """A result JSON that run.py wrote, checked against the schema. SessionError when it is not one."""
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SessionError(f"the board's result cannot be read: {error}", where=path) from error
    return check_result(result, path)


def _tail(finished: Finished) -> str:
    return "\n".join((finished.errors or finished.output).strip().splitlines()[-8:])
