"""The compiled HLS design in a process of its own: beats in, beats out.

The process (serve.py) is given one file, the shared library built by C simulation. Once that is mapped it lowers its
own limit of open files to the three pipes it already holds, so it *cannot* open anything afterwards: not the golden
vectors, not the package. Its state (half a sample in a stream, static line buffers) lives until the process is
restarted, as the state of an accelerator lives until the overlay is loaded again.

The library's C interface, written by ``hls/templates``::

    uint32_t    slimgate_abi_version(void);
    const char *slimgate_identity(void);
    long        slimgate_transfer(const uint8_t *in, long beats_in,
                                  uint8_t *out, uint8_t *last, uint8_t *keep, long capacity_beats);
"""

import contextlib
import subprocess
import sys
from pathlib import Path

from boards.errors import SlimgateError
from boards.simulated import serve
from boards.simulated.serve import BEAT_BYTES


class AcceleratorError(SlimgateError):
    """The compiled design could not be loaded, or its process ended."""


class Accelerator:
    """One compiled design, running in a child process.

    ``transfer`` is one DMA transfer: whole 64-bit beats in, with TLAST on the final one; whatever the network has
    finished comes out.
    """

    def __init__(self, library: str | Path):
        self.library = Path(library)
        self._process: subprocess.Popen | None = None
        self.identity = ""
        self.restart()

    def restart(self) -> None:
        """Start a fresh process: what loading the overlay does. All state of the old one is gone."""
        self.close()
        if not self.library.is_file():
            raise AcceleratorError(
                "the compiled design is missing",
                where=self.library,
                fix="run the csim stage again; the simulated board has nothing else to compute with",
            )
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", serve.__file__, str(self.library.resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        )
        identity = self._read(serve.COUNT.unpack(self._read(serve.COUNT.size))[0])
        self.identity = identity.decode("ascii")

    def transfer(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        """Send whole beats; return (bytes out, TLAST per beat out, TKEEP per beat out)."""
        if len(data) % BEAT_BYTES:
            raise AcceleratorError(f"{len(data)} bytes are not whole beats of {BEAT_BYTES} bytes")
        if self._process is None:
            raise AcceleratorError("the accelerator's process is closed", where=self.library)
        try:
            self._process.stdin.write(serve.COUNT.pack(len(data) // BEAT_BYTES) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()
        beats = serve.COUNT.unpack(self._read(serve.COUNT.size))[0]
        return self._read(beats * BEAT_BYTES), self._read(beats), self._read(beats)

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process = None

    def __enter__(self) -> "Accelerator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, count: int) -> bytes:
        data = self._process.stdout.read(count)
        if len(data) != count:
            self._died()
        return data

    def _died(self) -> None:
        code = self._process.wait()
        words = self._process.stderr.read().decode(errors="replace").strip()
        self.close()
        raise AcceleratorError(
            f"the accelerator's process ended with code {code}{': ' + words if words else ''}",
            where=self.library,
            fix="run the csim stage again; if it repeats, the generated C++ itself crashes",
        )
