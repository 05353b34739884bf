"""Converted projects of the small networks of ``tests.graphs``, made once per session and copied to be damaged."""

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boards import board
from hls import convert, numerics
from hls.plan import make_plan
from hls.scales import SCALES
from tests.graphs import Net, prepared, residual, tiny

BOARD = board.load("pynq-z2")
PART = BOARD.part


@dataclass
class Converted:
    """A network, its prepared graph, plan and project."""

    net: Net
    model: object
    analysis: numerics.Analysis
    plan: dict
    project: Path
    io: dict

    @property
    def layers(self) -> list[dict]:
        return json.loads((self.project / "layers.json").read_text())

    @property
    def expected(self) -> np.ndarray:
        """Output codes (N, outputs) on the grid of the wire, from torch in float64."""
        output = self.io["output"]
        codes = np.ldexp(self.net.outputs / output.get("factor", 1.0), -output["scale_log2"])
        if self.model.get_metadata_prop(SCALES):  # torch rounds codes times a scale that is no power of two
            codes = np.rint(codes)
        assert np.array_equal(codes, np.round(codes))
        return codes.astype(np.int64)

    def copy(self, folder: Path) -> "Converted":
        """The same with a project that may be changed."""
        return Converted(**{**vars(self), "project": Path(shutil.copytree(self.project, folder / "project"))})


def convert_net(net: Net, folder: Path, **options) -> Converted:
    model = prepared(net)
    analysis = numerics.analyze(model)
    plan = make_plan(model, analysis, **({"board": BOARD} | options))
    io = convert.convert(model, analysis, plan, part=PART, folder=folder)
    return Converted(net, model, analysis, plan, folder, io)


#: Seeds with which the outputs are diverse.
NETWORKS = {
    "tiny": functools.partial(tiny, 5, samples=64),
    "residual": functools.partial(residual, 0, samples=64),
}


@functools.cache
def made(name: str) -> Converted:
    """``tiny`` or ``residual``; do not change it."""
    folder = Path(tempfile.mkdtemp(prefix="slimgate-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return convert_net(NETWORKS[name](), folder / "project")
