"""The whole chain on one screen: the stages in order, what each needs, makes, tells and depends on.

``STAGES`` makes a network; ``IMPORTED`` takes one that was trained elsewhere and goes on with the same stages.
"""

from dataclasses import replace

from pipeline.stage import Stage

WHOLE_RECIPE = (
    "name", "board", "seed", "data", "model", "train", "trim", "quantize", "export", "imported", "hls", "csim",
    "benchmark",
)  # fmt: skip
NETWORK = ("seed", "model")

STAGES = [
    Stage(
        "data",
        "pipeline.stages.data:run",
        makes=("train.npz", "val.npz", "test.npz", "dataset.json"),
        gates=("no picture in two splits", "every class in every split"),
        config=("data",),
        tools=("numpy", "scikit-learn", "pillow"),
        imports=("pipeline.datasets.{data.name}",),
        fingerprint="pipeline.datasets.source:fingerprint",
    ),
    Stage(
        "train",
        "pipeline.stages.train:run",
        needs=("data",),
        makes=("state.pt", "widths.json", "history.json"),
        metrics=("accuracy_val", "accuracy_test", "parameters", "macs"),
        config=(*NETWORK, "train"),
        tools=("torch", "brevitas", "numpy"),
        imports=("pipeline.models.{model.name}",),
    ),
    Stage(
        "trim",
        "pipeline.stages.trim:run",
        needs=("data", "train"),
        makes=("state.pt", "widths.json", "history.json"),
        metrics=("accuracy_test", "parameters", "macs"),
        gates=("trimmed as asked",),
        config=(*NETWORK, "train", "trim"),
        tools=("torch", "brevitas", "numpy"),
        imports=("pipeline.models.{model.name}",),
    ),
    Stage(
        "quantize",
        "pipeline.stages.quantize:run",
        needs=("data", "trim"),
        makes=("state.pt", "quant.json", "history.json"),
        metrics=("accuracy_test",),
        gates=("scales are powers of two",),
        config=(*NETWORK, "train", "quantize"),
        tools=("torch", "brevitas", "numpy"),
        imports=("pipeline.models.{model.name}",),
    ),
    Stage(
        "export",
        "pipeline.stages.export:run",
        needs=("data", "trim", "quantize"),
        makes=("model.onnx", "golden.npz"),
        metrics=("qonnx_mismatches",),
        gates=("QONNX equals Brevitas", "codes are diverse"),
        config=(*NETWORK, "quantize", "export"),
        tools=("torch", "brevitas", "qonnx", "onnx", "onnxruntime", "numpy"),
        imports=("pipeline.models.{model.name}",),
    ),
    Stage(
        "plan",
        "pipeline.stages.plan:run",
        needs=("export",),
        makes=("plan.json",),
        metrics=("initiation_interval_cycles", "widest_accumulator"),
        gates=("reuse factors are legal", "the design fits the board"),
        config=("board", "hls"),
        tools=("hls4ml", "qonnx", "onnx", "onnxruntime", "ortools", "numba", "jinja2", "numpy"),
        sources=("boards/{board}.toml", "hls/data/cost_coefficients.json"),
    ),
    Stage(
        "convert",
        "pipeline.stages.convert:run",
        needs=("export", "plan"),
        makes=("project", "io.json", "clean.onnx"),
        gates=("types, weights and reuse factors read back as planned",),
        config=("board",),
        tools=("hls4ml", "qonnx", "onnx", "onnxruntime", "jinja2", "numpy"),
        sources=("hls/templates/**", "boards/{board}.toml"),
    ),
    Stage(
        "csim",
        "pipeline.stages.csim:run",
        needs=("export", "convert"),
        makes=("design.so", "csim.json"),
        metrics=("csim_mismatches", "accuracy_test"),
        gates=(
            "scales agree", "C simulation equals the trained network", "the simulated project is the converted one",
            "FIFOs are deep enough", "the integer reference equals the trained network", "codes are diverse",
        ),
        config=("seed", "csim"),
        tools=("g++", "hls4ml", "qonnx", "onnx", "onnxruntime", "torch", "jinja2", "numpy"),
        sources=("hls/templates/**",),
    ),
    Stage(
        "package",
        "pipeline.stages.package:run",
        needs=("data", "train", "trim", "quantize", "export", "plan", "convert", "csim"),
        makes=("package", "package.tar.gz"),
        gates=("package opens",),
        config=WHOLE_RECIPE,
        tools=("numpy", "pynq"),
        sources=("boards/{board}.toml", "boards/onboard/**"),
    ),
    Stage(
        "benchmark",
        "pipeline.stages.benchmark:run",
        needs=("package",),
        makes=("result.json",),
        metrics=("board_mismatches", "accuracy_test", "samples"),
        gates=(
            "board ran to the end", "board is the place's", "board identity", "board transfers", "board bytes",
            "board equals golden",
        ),
        config=("board", "benchmark", "place"),
        tools=("numpy", "pynq"),
        sources=("boards/{board}.toml", "boards/onboard/**"),
        always=lambda ctx: ctx.place != "simulated",
    ),
    Stage(
        "report",
        "pipeline.stages.report:run",
        needs=("data", "train", "trim", "quantize", "export", "plan", "convert", "csim", "package", "benchmark"),
        makes=("report.html",),
        gates=("one design",),
        config=(*WHOLE_RECIPE, "place"),
        tools=("jinja2", "pillow", "numpy"),
        sources=("pipeline/report/**",),
        publish=("report.html",),
    ),
]

_SHARED = {stage.name: stage for stage in STAGES}
#: What is known of an imported network: its file and what it is compared on. It has no training and no trimming.
_OF_IMPORTED = ("import", "plan", "convert", "csim")

IMPORTED = [
    Stage(
        "import",
        "pipeline.stages.importing:run",
        makes=("model.onnx", "golden.npz", "test.npz", "dataset.json", "import.json"),
        metrics=("qonnx_mismatches", "accuracy_test", "parameters", "macs"),
        gates=("the model is the one imported", "QONNX equals the integer reference", "codes are diverse"),
        config=("imported",),
        tools=("torch", "qonnx", "onnx", "onnxruntime", "hls4ml", "jinja2", "scikit-learn", "pillow", "numpy"),
        sources=("hls/templates/**",),
        imports=("pipeline.datasets.elsewhere",),
        fingerprint="pipeline.datasets.elsewhere:fingerprint",
        stands_for=("data", "export"),
    ),
    _SHARED["plan"],
    _SHARED["convert"],
    _SHARED["csim"],
    replace(_SHARED["package"], needs=_OF_IMPORTED),
    _SHARED["benchmark"],
    replace(_SHARED["report"], needs=(*_OF_IMPORTED, "package", "benchmark")),
]

#: Only where `--until bitstream` asks for it: the vendor tools, on the verified project.
BITSTREAM = Stage(
    "bitstream",
    "pipeline.stages.bitstream:run",
    needs=("convert", "csim"),
    config=("board", "hls"),
    sources=("boards/{board}.toml",),
    always=lambda ctx: True,
)


_TRIM = next(stage for stage in STAGES if stage.name == "trim")
#: Where trimming aims at a board's figures, it depends on the board, the bit widths and the cost model; else on none.
TRIM_ON_HARDWARE = replace(
    _TRIM,
    config=(*_TRIM.config, "board", "quantize"),
    imports=(*_TRIM.imports, "pipeline.trimming.hardware"),
    sources=("boards/{board}.toml", "hls/data/cost_coefficients.json"),
)


def of(recipe: dict) -> list[Stage]:
    """The stages of a recipe, of which ``dump()`` gave ``recipe``."""
    if "imported" in recipe:
        return IMPORTED
    trim = recipe.get("trim", {})
    auto = trim.get("granularity") == "cluster" and trim.get("cluster_size") == "auto"
    if trim.get("method") != "none" and (trim.get("of") in ("cycles", "lut", "bram", "fit") or auto):
        return [TRIM_ON_HARDWARE if stage is _TRIM else stage for stage in STAGES]
    return STAGES
