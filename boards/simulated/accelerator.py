"""The compiled HLS design in a process of its own: beats in, beats out.

The process is given one file, the shared library built by C simulation. Once that is mapped it lowers its own limit of
open files to the three pipes it already holds, so it *cannot* open anything afterwards: not the golden vectors, not the
package. Its state (half a sample in a stream, static line buffers) lives until the process is restarted, as the state of
an accelerator lives until the overlay is loaded again.

The library's C interface, written by ``hls/templates``::

    uint32_t    slimgate_abi_version(void);
    const char *slimgate_identity(void);
    long        slimgate_transfer(const uint8_t *in, long beats_in,
                                  uint8_t *out, uint8_t *last, uint8_t *keep, long capacity_beats);
"""

import contextlib
import ctypes
import resource
import struct
import subprocess
import sys
from pathlib import Path

from boards.errors import SlimgateError

ABI_VERSION = 1
BEAT_BYTES = 8
_REQUEST = struct.Struct("<q")
_REPLY = struct.Struct("<q")


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
            [sys.executable, "-I", "-S", __file__, str(self.library.resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        )
        identity = self._read(_REPLY.unpack(self._read(_REPLY.size))[0])
        self.identity = identity.decode("ascii")

    def transfer(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        """Send whole beats; return (bytes out, TLAST per beat out, TKEEP per beat out)."""
        if len(data) % BEAT_BYTES:
            raise AcceleratorError(f"{len(data)} bytes are not whole beats of {BEAT_BYTES} bytes")
        if self._process is None:
            raise AcceleratorError("the accelerator's process is closed", where=self.library)
        try:
            self._process.stdin.write(_REQUEST.pack(len(data) // BEAT_BYTES) + data)
            self._process.stdin.flush()
        except BrokenPipeError:
            self._died()
        beats = _REPLY.unpack(self._read(_REPLY.size))[0]
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


def _forbid_opening_files() -> None:
    """Allow no descriptor beyond stdin, stdout and stderr: every later open() fails with EMFILE."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _serve(path: str) -> int:
    try:
        library = ctypes.CDLL(path)
        library.slimgate_identity.restype = ctypes.c_char_p
        library.slimgate_abi_version.restype = ctypes.c_uint32
        library.slimgate_transfer.restype = ctypes.c_long
        version, identity = library.slimgate_abi_version(), library.slimgate_identity()
    except (OSError, AttributeError) as error:
        sys.stderr.write(f"not a compiled slimgate design: {error}")
        return 3
    if version != ABI_VERSION:
        sys.stderr.write(f"interface version {version}, this program speaks {ABI_VERSION}")
        return 3
    _forbid_opening_files()
    read, write = sys.stdin.buffer, sys.stdout.buffer
    write.write(_REPLY.pack(len(identity)) + identity)
    write.flush()
    while header := read.read(_REQUEST.size):
        beats = _REQUEST.unpack(header)[0]
        data = read.read(beats * BEAT_BYTES)

        capacity, made, reply = beats + 4096, beats + 4096, [b"", b"", b""]
        out, last, keep = ((ctypes.c_uint8 * n)() for n in (capacity * BEAT_BYTES, capacity, capacity))
        while made == capacity:  # what did not fit waits in the output stream: ask again, feeding nothing
            made = library.slimgate_transfer(
                data, ctypes.c_long(beats), out, last, keep, ctypes.c_long(capacity)
            )
            data, beats = b"", 0
            reply[0] += bytes(out)[: made * BEAT_BYTES]
            reply[1] += bytes(last)[:made]
            reply[2] += bytes(keep)[:made]
        write.write(_REPLY.pack(len(reply[1])) + b"".join(reply))
        write.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
