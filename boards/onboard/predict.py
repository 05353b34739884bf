#!/usr/bin/env python3
"""Classify pictures with the packaged network on this board, prepared exactly as in training.

    sudo -E python3 predict.py --package . picture.png another.jpg --top 3

Needs numpy, Pillow and pynq; Python 3.10. The loading of the overlay and the transfers are those of run.py beside it.
"""

import argparse
import importlib.util
import json
import sys
import traceback
from pathlib import Path

import numpy as np


def _load_run():
    """run.py from this file's folder, wherever this file is run from."""
    spec = importlib.util.spec_from_file_location("slimgate_run", str(Path(__file__).resolve().with_name("run.py")))
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave no __pycache__ in the package
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    return module


run = _load_run()


MAX_PIXELS = 64_000_000


def load_picture(path, size, color, resize):
    """Pixels of a picture, uint8 (H, W, C), by the rule of training. Stop(2) names a picture that does not serve.

    Turned upright as its EXIF says; where there is transparency, pasted over black; then mode RGB ("rgb") or L
    ("gray"); then resized to ``size`` = [H, W] with the named Pillow filter where the size differs. Refused: several
    frames, and more than 8 bits per channel, for there is no one way to make them 8 bits.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(str(path)) as picture:
            if picture.format in ("EPS", "WMF"):
                raise ValueError("%s is a drawing, not a picture" % picture.format)
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError("%d x %d pixels, more than %d" % (picture.width, picture.height, MAX_PIXELS))
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise ValueError("%d frames in one file" % picture.n_frames)
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                raise ValueError("more than 8 bits per pixel (mode %s); convert it to 8 bits first" % picture.mode)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
                solid = picture.convert("RGBA")
                picture = Image.new("RGB", solid.size)
                picture.paste(solid, mask=solid)
            picture = picture.convert("RGB" if color == "rgb" else "L")
            height, width = size
            if picture.size != (width, height):
                filters = getattr(Image, "Resampling", Image)  # Pillow before 9.1 has them in Image itself
                picture = picture.resize((width, height), getattr(filters, resize.upper()))
            return np.array(picture, dtype=np.uint8).reshape(height, width, 3 if color == "rgb" else 1)
    except Exception as error:  # noqa: BLE001 - decoders meet damaged files with a dozen kinds of exception
        text = "%s cannot be read as a picture: %s" % (path, error or type(error).__name__)
        raise run.Stop(run.WRONG_INPUT, "picture", text) from None


def to_codes(pixels, input_bits, table=None):
    """Pixels 0..255 (..., C) -> input codes: the upper ``input_bits`` bits, or what the table (C, 256) says of each."""
    pixels = np.asarray(pixels, np.uint8)
    if table is None:
        return pixels >> (8 - input_bits)
    return np.stack([np.asarray(row, np.int64)[pixels[..., c]] for c, row in enumerate(table)], axis=-1)


class Classifier:
    """The package's network, loaded once."""

    def __init__(self, folder, timeout=10.0):
        self.folder = Path(folder)
        self.manifest = run.check_package(self.folder)
        self.wire = run.Wire(self._json("io.json"))
        self.preprocess, self.labels = self._json("preprocess.json"), self._json("labels.json")
        self.link = run.Link(self.folder, self.manifest, timeout)

    def _json(self, name):
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def pictures(self, paths):
        """Input codes (N, *input shape) of picture files. Stop(2) for a network that takes none."""
        rule = self.preprocess
        if rule["size"] is None:
            text = ("this network takes no pictures: its inputs are %s numbers a sample; give input codes"
                    " (N, %s) as .npy with --codes" % (" x ".join(map(str, self.wire.input["shape"])),
                                                       ", ".join(map(str, self.wire.input["shape"]))))  # fmt: skip
            raise run.Stop(run.WRONG_INPUT, "picture", text)
        codes = np.stack([to_codes(load_picture(p, rule["size"], rule["color"], rule["resize"]), rule["input_bits"],
                                   rule.get("codes")) for p in paths])  # fmt: skip
        return codes.reshape([len(codes)] + list(self.wire.input["shape"]))

    def codes(self, input_codes):
        """Output codes (N, outputs) int64 of input codes."""
        codes, padding, _, _ = run.stream(self.link, self.wire, self.wire.pack(input_codes), 32 << 20)
        if padding:
            raise run.Stop(run.MISMATCH, "padding", "%d padding bytes of the outputs are not 0" % padding)
        return codes

    def top(self, output_codes, count):
        """The ``count`` classes with the largest codes, the first of equals first: label, index, code, value."""
        scale = 2.0 ** self.wire.output["scale_log2"]
        order = np.argsort(-output_codes, kind="stable")[:count]
        return [{"label": str(self.labels[i]), "index": int(i), "code": int(output_codes[i]),
                 "value": float(output_codes[i] * scale)} for i in order]  # fmt: skip

    def classify(self, paths, count=3):
        """One entry a picture: its path and its top classes."""
        outputs = self.codes(self.pictures(paths))
        return [{"image": str(path), "top": self.top(row, count)} for path, row in zip(paths, outputs, strict=True)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, help="pictures to classify")
    parser.add_argument("--package", type=Path, default=Path(__file__).resolve().parent, help="the package's folder")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name (default 3)")
    parser.add_argument("--out", type=Path, help="also write the answers as JSON")
    parser.add_argument("--codes", type=Path, help="instead of pictures: input codes, .npy of (N, H, W, C)")
    parser.add_argument("--codes-out", type=Path, help="write the output codes, .npy of (N, outputs)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a transfer may take (default 10)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    if options.top < 1 or not options.timeout > 0:
        parser.error("--top from 1, --timeout above 0")
    try:
        classifier = Classifier(options.package, options.timeout)
        answer = {"identity": classifier.link.identity, "simulated": classifier.link.simulated}
        if options.codes:
            inputs, names = np.load(str(options.codes), allow_pickle=False), None
        else:
            inputs, names = (classifier.pictures(options.images) if options.images else None), options.images
        outputs = classifier.codes(inputs) if inputs is not None and len(inputs) else np.zeros((0, 0), np.int64)
        tops = [classifier.top(row, options.top) for row in outputs]
        answer["answers"] = [{"image": str(names[i]) if names else i, "top": top} for i, top in enumerate(tops)]
        if options.codes_out:
            with open(str(options.codes_out), "wb") as file:
                np.save(file, outputs)
        if options.out:
            run.write_whole(options.out, run.canonical(answer))
    except run.Stop as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except Exception as error:  # noqa: BLE001 - whatever pynq raises must not look like an answer
        if options.debug:
            traceback.print_exc()
        print("%s: %s" % (type(error).__name__, error), file=sys.stderr)
        return run.TROUBLE
    for entry in answer["answers"]:
        words = ", ".join("%(label)s (%(value)g)" % item for item in entry["top"])
        print("%s: %s" % (entry["image"], words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
