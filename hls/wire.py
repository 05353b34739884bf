"""Codes on the wire: integers in little-endian containers, channels last, padded with zeros to whole 64-bit beats.

``io`` is the wire description that :func:`hls.convert.convert` returns.
"""

import math

import numpy as np

from boards.errors import SlimgateError


class WireError(SlimgateError):
    """Codes or beats that do not fit the wire description."""

    exit_code = 1


def _container(side: dict) -> np.dtype:
    return np.dtype(f"<{'i' if side['signed'] else 'u'}{side['container_bytes']}")


def code_range(side: dict) -> tuple[int, int]:
    """Lowest and highest code of one side of the wire."""
    low = -(1 << (side["bits"] - 1)) if side["signed"] else 0
    return low, (1 << (side["bits"] - side["signed"])) - 1


def pack(codes: np.ndarray, io: dict) -> bytes:
    """Input codes (N, *shape) of any integer type -> the bytes of one DMA transfer."""
    side = io["input"]
    low, high = code_range(side)
    if list(codes.shape[1:]) != side["shape"]:
        raise WireError(f"codes have shape {codes.shape[1:]}, the network takes {tuple(side['shape'])}")
    if not np.issubdtype(codes.dtype, np.integer) or (codes.size and (codes.min() < low or codes.max() > high)):
        raise WireError(f"input codes must be whole numbers from {low} to {high}")
    rows = np.zeros((len(codes), side["beats"] * io["beat_bytes"]), np.uint8)
    flat = codes.reshape(len(codes), math.prod(side["shape"])).astype(_container(side))
    raw = np.ascontiguousarray(flat).view(np.uint8)
    rows[:, : raw.shape[1]] = raw
    return rows.tobytes()


def unpack(data: bytes, io: dict) -> np.ndarray:
    """The bytes of whole samples -> output codes (N, outputs) int64; bytes beyond the codes must be zero."""
    side = io["output"]
    size, count = side["beats"] * io["beat_bytes"], math.prod(side["shape"])
    if len(data) % size:
        raise WireError(f"{len(data)} output bytes are not whole samples of {size} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    used = count * side["container_bytes"]
    if np.any(rows[:, used:]):
        raise WireError("the padding behind the outputs is not zero")
    codes = np.ascontiguousarray(rows[:, :used]).view(_container(side)).astype(np.int64)
    low, high = code_range(side)
    if codes.size and (codes.min() < low or codes.max() > high):
        raise WireError(f"output codes leave the range {low}..{high} of their {side['bits']} bits: not sign-extended")
    return codes
