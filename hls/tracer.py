"""Runs a traced design once, in a process of its own: ``python -m hls.tracer LIBRARY IN.npy OUT.npz STREAM...``"""

import ctypes
import sys

import numpy as np


def main(library: str, source: str, target: str, *streams: str) -> None:
    design = ctypes.CDLL(library)
    data = np.load(source)
    beats = data.size // 8
    design.slimgate_transfer.restype = ctypes.c_long
    made = capacity = beats + 4096
    feed, out = data.tobytes(), np.zeros(capacity * 10, np.uint8)
    pointer = out.ctypes.data
    while made == capacity:
        made = design.slimgate_transfer(
            feed,
            ctypes.c_long(len(feed) // 8),
            ctypes.c_void_p(pointer),
            ctypes.c_void_p(pointer + 8 * capacity),
            ctypes.c_void_p(pointer + 9 * capacity),
            ctypes.c_long(capacity),
        )
        feed = b""
    found = {}
    for name in streams:
        codes, count, lsb = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_long(), ctypes.c_int()
        if design.slimgate_trace_read(name.encode(), ctypes.byref(codes), ctypes.byref(count), ctypes.byref(lsb)):
            found[name] = np.ctypeslib.as_array(codes, (count.value,)).copy()
            found[f"{name}:lsb"] = np.int64(lsb.value)
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
