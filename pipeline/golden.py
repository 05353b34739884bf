"""Codes: what lies on the wire, and the golden vectors that every hop is compared with. numpy only."""

from __future__ import annotations

from math import frexp
from pathlib import Path

import numpy as np

from boards.errors import SlimgateError

PIXEL_BITS = 8


class NotIntegral(SlimgateError):
    """A value is not a whole multiple of its scale, or its scale is no power of two."""


def log2_of(scale: float) -> int:
    """Exponent of a scale that is exactly a power of two; NotIntegral otherwise."""
    mantissa, exponent = frexp(scale)
    if mantissa != 0.5:
        raise NotIntegral(f"the scale {scale!r} is not a power of two", fix="use fixed-point quantisers")
    return exponent - 1


def pixels_to_codes(pixels: np.ndarray, bits: int) -> np.ndarray:
    """uint8 pixels (any shape) to unsigned input codes of ``bits`` bits: the leading bits of each pixel."""
    return np.asarray(pixels, dtype=np.uint8) >> (PIXEL_BITS - bits)


def codes_to_values(codes: np.ndarray, scale_log2: int, dtype=np.float32) -> np.ndarray:
    """Real numbers that integer codes stand for."""
    return np.ldexp(np.asarray(codes, dtype=dtype), scale_log2)


def values_to_codes(values: np.ndarray, scale_log2: int) -> np.ndarray:
    """int64 codes of real numbers on the grid 2**scale_log2, without any tolerance.

    Raises NotIntegral when one lies off the grid (or is not finite): rounding here would hide a difference.
    """
    scaled = np.ldexp(np.asarray(values, dtype=np.float64), -scale_log2)
    codes = np.rint(scaled)
    if not np.array_equal(codes, scaled) or not np.all(np.abs(scaled) < 2.0**62):
        wrong = scaled[~(codes == scaled)] if (codes != scaled).any() else scaled
        raise NotIntegral(
            f"{np.count_nonzero(codes != scaled)} of {scaled.size} values are no multiples of 2**{scale_log2}, "
            f"for example {wrong.flat[0]!r} units",
            fix="every quantiser needs a power-of-two scale and every bias the scale of its accumulator",
        )
    return codes.astype(np.int64)


def smallest(codes: np.ndarray) -> np.dtype:
    """uint8 where all codes fit, else the smallest signed type that holds them."""
    low, high = (int(codes.min()), int(codes.max())) if np.size(codes) else (0, 0)
    kinds = (np.uint8, np.int8, np.int16, np.int32, np.int64)
    return np.dtype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))


def compared(total: int, asked: int) -> np.ndarray:
    """Indices of the samples of a test set that are executed in QONNX, spread evenly.

    All of up to 2,000; of a larger set ``asked``, at least 200, or 1,000 where ``asked`` is 0.
    """
    wanted = min(total, max(asked or (total if total <= 2000 else 1000), 200))
    return np.unique(np.linspace(0, total - 1, wanted).round().astype(np.int64)) if total else np.arange(0)


def write(file: Path, input_codes, output_codes, labels, input_scale_log2: int, output_scale_log2: int) -> None:
    """Golden vectors as npz: input_codes (N, H, W, C), output_codes (N, K) int64, labels (N,) int64, two scales.

    Input codes are uint8 where they fit, else of the smallest signed type that holds them. The same arrays give the
    same bytes (npz members carry a fixed date).
    """
    np.savez(
        file,
        input_codes=np.ascontiguousarray(input_codes, dtype=smallest(input_codes)),
        output_codes=np.ascontiguousarray(output_codes, dtype=np.int64),
        labels=np.ascontiguousarray(labels, dtype=np.int64),
        input_scale_log2=np.int64(input_scale_log2),
        output_scale_log2=np.int64(output_scale_log2),
    )
