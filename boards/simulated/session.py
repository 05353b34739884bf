"""A session with the simulated board: the package's own scripts, under the real pynq, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import boards
from boards.session import SIMULATED, Finished, Session, SessionError


class SimulatedSession(Session):
    """Each script loads the overlay afresh, so nothing is held between calls."""

    place = SIMULATED
    simulated = True

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def execute(self, script: str, arguments: list[str], timeout: float) -> Finished:
        if self.folder is None:
            raise SessionError("no package is loaded", where=self.place)
        root = str(Path(boards.__file__).resolve().parents[1])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        library = self.folder / "simulated" / "design.so"
        command = [sys.executable, "-m", "boards.simulated.runner", "--library", str(library.resolve()),
                   "--board", self.board.name, "--", script, *arguments]  # fmt: skip
        try:
            done = subprocess.run(command, cwd=self.folder, env=environment, timeout=timeout, text=True, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True)  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise SessionError(f"{script} did not end within {timeout:g} s", where=self.place) from error
        return Finished(done.returncode, done.stdout, done.stderr)
