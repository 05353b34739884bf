"""The program of the accelerator's process: a compiled design behind three pipes. Standard library only.

It runs as a lone file without site-packages and without this repository on its path (python -I -S), hence no imports of
ours. Protocol on stdin: count of beats, then the beats. On stdout: first the length of the identity and the identity;
then for each request the count of output beats, their bytes, TLAST per beat, TKEEP per beat.
"""

import ctypes
import resource
import struct
import sys

ABI_VERSION = 1
BEAT_BYTES = 8
COUNT = struct.Struct("<q")


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
    write.write(COUNT.pack(len(identity)) + identity)
    write.flush()
    while header := read.read(COUNT.size):
        beats = COUNT.unpack(header)[0]
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
        write.write(COUNT.pack(len(reply[1])) + b"".join(reply))
        write.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
