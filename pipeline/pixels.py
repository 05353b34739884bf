"""From 8-bit pixels to the input codes of a network that was trained elsewhere: one table for each channel.

What a pixel stood for in that training is for the user to say. It is computed once, in float32 as torchvision's
ToTensor and Normalize do, and given to the network's own input quantizer; from then on only the table counts, here and
on the board. numpy only.
"""

import numpy as np

from boards.errors import SlimgateError

#: What pixels 0 and 255 stand for unless the user says: torchvision's ToTensor divides by 255.
TO_TENSOR = (0.0, 1.0)


class PixelError(SlimgateError):
    """Pixels cannot become input codes as asked."""


def values(channels: int, *, input_range=None, mean=None, std=None) -> np.ndarray:
    """What each pixel stands for: (channels, 256) float32.

    ``input_range``: values of pixels 0 and 255; ``mean`` and ``std``, one for each channel or one for all, are
    subtracted and divided by after that. Raises PixelError where they do not fit.
    """
    low, high = input_range or TO_TENSOR
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers is not None and len(numbers) not in (1, channels):
            raise PixelError(f"{len(numbers)} numbers of {name}, the network takes {channels} channel(s)",
                             fix=f"give one number, or {channels}")  # fmt: skip
    if std is not None and not min(std) > 0:
        raise PixelError(f"a deviation of {min(std):g} cannot be divided by", fix="give numbers above 0 for std")
    found = np.asarray(low + (high - low) * np.arange(256, dtype=np.float64) / 255, np.float32)
    found = np.broadcast_to(found, (channels, 256))
    if mean is not None:
        shift, spread = (np.asarray(numbers, np.float32).reshape(-1, 1) for numbers in (mean, std))
        found = (found - shift) / spread
    return found


def table(quantizer, levels: np.ndarray) -> np.ndarray:
    """Codes (channels, 256) int64 of every pixel that stands for ``levels`` (channels, 256).

    ``quantizer`` has lsb, lo, hi and rounding (:class:`hls.numerics.Quantizer`).
    Raises PixelError where all pixels of a channel would become the same code.
    """
    scaled = np.ldexp(levels.astype(np.float64), -quantizer.lsb)
    rounded = np.floor(scaled) if quantizer.rounding == "FLOOR" else np.rint(scaled)
    codes = np.clip(rounded, quantizer.lo, quantizer.hi).astype(np.int64)
    check_varied(quantizer, codes, levels)
    return codes


def check_varied(quantizer, codes: np.ndarray, levels: np.ndarray) -> None:
    """Raise PixelError where all pixels of a channel become the same code."""
    if any(len(np.unique(row)) < 2 for row in codes):
        least, most = (np.ldexp(float(code), quantizer.lsb) for code in (quantizer.lo, quantizer.hi))
        raise PixelError(
            f"every pixel becomes the same code: pixels stand for {levels.min():g} to {levels.max():g}, the network's "
            f"input quantizer holds {least:g} to {most:g}",
            fix="say what pixels 0 and 255 stood for in the training: --input-range LOW HIGH",
        )


def clipped(quantizer, codes: np.ndarray) -> float:
    """Share of the table's entries at either end of the quantizer's range, beyond one entry each; 0 of a quantizer of a
    few codes, whose ends stand for many values."""
    if quantizer.hi - quantizer.lo < 15:
        return 0.0
    ends = sum(max(0, int(np.count_nonzero(row == end)) - 1) for row in codes for end in (quantizer.lo, quantizer.hi))
    return ends / codes.size


def apply(codes: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Input codes (N, H, W, C) of pixels (N, H, W, C) uint8 by a table (C, 256)."""
    return np.stack([codes[channel][pixels[..., channel]] for channel in range(pixels.shape[-1])], axis=-1)
