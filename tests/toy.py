"""A flow of three tiny stages in a package of its own, to try the stage engine with: a -> b -> c.

``a`` writes many small files slowly (something to be killed in), ``b`` imports a helper that imports another, ``c``
tells a metric and passes a gate. ``python driver.py`` runs the same flow in a process of its own.
"""

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

from pipeline import keys

MODULES = {
    "__init__": "",
    "a": """
        import time

        def run(ctx):
            folder = ctx.folder / "parts"
            folder.mkdir()
            for index in ctx.progress(range(ctx.recipe.alpha.parts), "parts"):
                time.sleep(ctx.recipe.alpha.pause)
                (folder / f"{index}.txt").write_text(str(index * ctx.recipe.alpha.factor))
        """,
    "b": """
        def run(ctx):
            from {package} import helper  # inside a function, and still part of the key

            total = sum(int(path.read_text()) for path in (ctx.inputs["a"] / "parts").iterdir())
            (ctx.folder / "total.txt").write_text(str(helper.twice(total)))
        """,
    "helper": "from {package}.deep import FACTOR\n\ndef twice(number):\n    return FACTOR * number\n",
    "deep": "FACTOR = 2\n",
    "unrelated": "X = 1\n",
    "c": """
        def run(ctx):
            total = int((ctx.inputs["b"] / "total.txt").read_text())
            (ctx.folder / "out.bin").write_bytes(bytes(ctx.recipe.beta.size))
            ctx.metric("total", total, "trained", unit="points")
            ctx.gate("total is even", total % 2 == 0, f"total {total}", total=total)
            if ctx.recipe.beta.fail:
                ctx.gate("never", False, "asked to fail", fix="ask for something else")
        """,
    "flow": """
        from pathlib import Path

        from pydantic import BaseModel

        from pipeline.stage import Run, Stage

        class Alpha(BaseModel):
            parts: int = 20
            factor: int = 3
            pause: float = 0.0

        class Beta(BaseModel):
            size: int = 1000
            fail: bool = False

        class Recipe(BaseModel):
            name: str = "toy"
            board: str = "table"
            alpha: Alpha = Alpha()
            beta: Beta = Beta()
            path: str = "toy.toml"

            def dump(self):
                return self.model_dump()

        ROOT = Path(__file__).resolve().parent.parent
        STAGES = [
            Stage("a", "{package}.a:run", makes=("parts",), config=("alpha",)),
            Stage("b", "{package}.b:run", needs=("a",), makes=("total.txt",)),
            Stage("c", "{package}.c:run", needs=("b",), makes=("out.bin",), metrics=("total",), config=("beta",),
                  publish=("out.bin",)),
        ]

        def run(build, stages=STAGES, verify=False, place="simulated", **recipe):
            return Run(stages, Recipe(**recipe), build=Path(build), root=ROOT, packages=("{package}",), verify=verify,
                       place=place)
        """,
}

DRIVER = """
import json, os, resource, sys
from boards.errors import SlimgateError
from {package} import flow

options = json.loads(sys.argv[2])
if limit := options.pop("file_limit", None):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if options.pop("nobody", False):
    os.seteuid(65534)
try:
    run = flow.run(sys.argv[1], **options)
    print(json.dumps([outcome.how for outcome in run.execute(run.until())]))
except SlimgateError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class Toy:
    """The package in a folder of its own, and its run folders in ``build``."""

    def __init__(self, folder: Path, name: str):
        self.root, self.package, self.build = folder, name, folder / "build"
        (folder / name).mkdir()
        for module, text in MODULES.items():
            self.write(module, textwrap.dedent(text).replace("{package}", name))
        (folder / "driver.py").write_text(DRIVER.replace("{package}", name))

    def write(self, module: str, text: str) -> None:
        self.path(module).write_text(text)
        keys._graph.cache_clear()

    def path(self, module: str) -> Path:
        return self.root / self.package / f"{module}.py"

    @property
    def flow(self):
        return importlib.import_module(f"{self.package}.flow")

    def run(self, **options):
        return self.flow.run(options.pop("build", self.build), **options)

    def execute(self, until: str | None = None, **options) -> list[str]:
        """What became of each stage."""
        run = self.run(**options)
        return [outcome.how for outcome in run.execute(run.until(until))]

    def spawn(self, options: str = "{}", build: Path | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "driver.py", str(build or self.build), options],
            cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={"PYTHONPATH": f"{self.root}:{keys.__file__.rpartition('/pipeline/')[0]}", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    def contents(self, run: str = "toy-table") -> dict[str, str]:
        """Stage -> hash of what it made."""
        return {
            path.parent.name: keys.content(keys.inventory(path.parent))
            for path in sorted((self.build / run).glob(f"[a-z]*/{keys.MANIFEST}"))
        }
