"""From a picture file to pixels, by one rule; the board's predict.py follows the same rule on new pictures."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from boards.errors import SlimgateError

MAX_PIXELS = 64_000_000
MODES = {"rgb": "RGB", "gray": "L"}
# A phone's MPO is one photograph with extras (depth, preview) behind it: its first frame is the picture.
ONE_PICTURE = {"MPO"}
# Pillow hands these to other programs to draw.
NOT_DECODED = {"EPS", "WMF"}


class PictureError(SlimgateError):
    """A file that is not one whole picture of 8 bits per channel."""


def load_picture(
    file: Path | str | BinaryIO, size: tuple[int, int] | None, color: str, resize: str, *, name: object = None
) -> np.ndarray:
    """(H, W, C) uint8 pixels, C = 3 for ``color`` "rgb", 1 for "gray".

    The rule: open with Pillow; turn as EXIF says; where there is transparency, paste over black; convert to RGB or
    L; resize to ``size`` = (H, W) with the named Pillow filter only when the size differs (None: keep it).
    PictureError names the file (or ``name``): not a picture, cut short, zero bytes, more than ``MAX_PIXELS``,
    several frames (whose picture would it be?), 16-bit or floating-point gray (whose range is not known).
    """
    where = name if name is not None else file
    try:
        with Image.open(file) as picture:
            return _pixels(picture, size, color, resize, where)
    except PictureError:
        raise
    # Decoders meet damaged files with a dozen kinds of exception; each means that this file is refused.
    except Exception as error:
        detail = "not a picture Pillow knows" if "cannot identify" in str(error) else str(error)
        raise PictureError(
            f"cannot be read as a picture: {detail or type(error).__name__}",
            where=where,
            fix="replace or remove the file",
        ) from error


def _pixels(picture: Image.Image, size, color: str, resize: str, where) -> np.ndarray:
    if picture.format in NOT_DECODED:
        raise PictureError(f"{picture.format} is a drawing, not a picture", where=where, fix="convert it to PNG")
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError(
            f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}",
            where=where,
            fix="make it smaller",
        )
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format not in ONE_PICTURE:
        raise PictureError(f"{frames} frames in one file", where=where, fix="store the frame you mean as a picture")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise PictureError(
            f"more than 8 bits per pixel (Pillow's mode {picture.mode})",
            where=where,
            fix="convert it to 8 bits, choosing which range becomes 0..255",
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        solid = picture.convert("RGBA")
        picture = Image.new("RGB", solid.size)
        picture.paste(solid, mask=solid)
    picture = picture.convert(MODES[color])
    if size is not None and picture.size != (size[1], size[0]):
        picture = picture.resize((size[1], size[0]), Image.Resampling[resize.upper()])
    pixels = np.array(picture, dtype=np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
