"""A toy package, and a way to run its scripts on simulated boards in this process: one import of pynq is enough."""

import shutil
from pathlib import Path

import pytest

from boards import board as boards_board
from boards.onboard import run as onboard
from boards.session import read_result
from tests.hil.toy import build


@pytest.fixture(scope="session")
def toy_package(tmp_path_factory):
    return build(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def folder(toy_package, tmp_path):
    """A package folder that a test may damage."""
    return Path(shutil.copytree(toy_package.folder, tmp_path / "package"))


@pytest.fixture
def on_board(tmp_path):
    """Run run.py's main in this process on a simulated board: (exit code, result). Importing pynq once is enough."""
    from boards.simulated import device

    machines = []

    def run(folder: Path, *arguments: str, library: Path | None = None, board: str = "pynq-z2"):
        library = library or Path(folder) / "simulated" / "design.so"
        machines.append(device.register(library, boards_board.load(board)))
        out = tmp_path / "result.json"
        options = ["--package", str(folder), "--out", str(out), "--singles", "12", "--warmup", "2", "--timeout", "0.3"]
        code = onboard.main([*options, *arguments])
        return code, read_result(out)

    yield run
    for machine in machines:
        machine.close()
