"""Stage ``import``: a network that was trained elsewhere, in the place of data, train, trim, quantize and export."""

import hashlib
import json
import shutil

import numpy as np

from hls.front import front_operations
from hls.layers import describe
from hls.reference import Census, Reference
from pipeline import golden
from pipeline.diversity import TRAINED_ELSEWHERE, diversity
from pipeline.execution import qonnx_execute
from pipeline.imported import check_labels, examine, parameters, test_set
from pipeline.statistics import wilson


def run(ctx) -> None:
    """Write ``model.onnx golden.npz test.npz dataset.json import.json``.

    The golden codes are those of the integer reference; QONNX execution of the file must give the same. The accuracy is
    that of the file on the user's test data, which choose nothing. Raises Refused where the network is not exact.
    """
    told = ctx.recipe.imported
    source = ctx.recipe.resolve(told.model)
    content = source.read_bytes() if source.is_file() else b""
    found_hash = hashlib.sha256(content).hexdigest()
    ctx.gate("the model is the one imported", found_hash == told.sha256,
             f"sha256 {found_hash[:16]}..." if content else f"{source.name} is not beside the recipe",
             fix="put the file back that was imported, or run `slimgate import` again")  # fmt: skip
    shutil.copyfile(source, ctx.folder / "model.onnx")
    found = examine(ctx.folder / "model.onnx")
    check_labels(told.labels, found, ctx.recipe.path)
    path = None if told.test is None else ctx.recipe.resolve(told.test)
    tests = test_set(found, told.data, path, told.labels, input_range=told.input_range, mean=told.mean, std=told.std,
                     resize=told.resize, progress=ctx.progress)  # fmt: skip

    network = found.network
    census, reference = Census(network.analysis), Reference(network.model, network.analysis)
    with ctx.progress(len(tests.codes), "integer reference") as work:
        outputs, lsb = reference.run(tests.codes, visit=census.visit)
        work.advance(len(tests.codes))
    grid = network.analysis.tensors[network.model.graph.output[0].name].lsb
    outputs, lsb = outputs.reshape(len(outputs), -1) << (lsb - grid), grid

    # Beyond float32's integers the file is executed in float64, which is exact to 2**53.
    chosen = golden.compared(len(outputs), told.samples)
    dtype = np.float32 if network.analysis.float32_exact else np.float64
    executed = qonnx_execute(network.file, tests.values(chosen), 0, lsb, dtype=dtype, progress=ctx.progress)
    mismatches = int(np.count_nonzero(executed.reshape(len(chosen), -1) != outputs[chosen]))
    compared = len(chosen) * found.outputs
    ctx.metric("qonnx_mismatches", mismatches, "trained", unit="codes", compared=compared, samples=len(chosen),
               evaluated_in=np.dtype(dtype).name)  # fmt: skip
    ctx.gate("QONNX equals the integer reference", mismatches == 0 and compared > 0,
             f"{mismatches} of {compared} output codes differ on {len(chosen)} test samples", mismatches=mismatches,
             compared=compared, fix="report the network: one of the two is wrong")  # fmt: skip
    passed, detail, numbers = diversity(outputs, census.quantizers, census.accumulators, TRAINED_ELSEWHERE)
    ctx.gate("codes are diverse", passed, detail, **numbers,
             fix="give test data of every class, prepared as for the training (--input-range, --mean, --std): outputs "
                 "that hardly vary prove nothing about the hardware")  # fmt: skip

    correct = int(np.count_nonzero(outputs.argmax(1) == tests.labels))
    ctx.metric("accuracy_test", correct / len(outputs), "trained", interval=wilson(correct, len(outputs)),
               successes=correct, total=len(outputs))  # fmt: skip
    ctx.metric("parameters", parameters(found), "trained")
    ctx.metric("macs", sum(layer.macs for layer in describe(network.model, network.analysis)), "trained",
               unit="MAC")  # fmt: skip
    golden.write(ctx.folder / "golden.npz", tests.codes, outputs, tests.labels, network.grid.lsb, lsb)
    arrays = {key: tests.data[key] for key in ("pixels", "inputs") if key in tests.data}
    np.savez(ctx.folder / "test.npz", labels=tests.labels, **arrays)
    _write(ctx.folder / "dataset.json", _dataset(told, found, tests))
    _write(ctx.folder / "import.json", {
        "model": source.name, "sha256": found_hash, "host": list(network.host),
        "front": front_operations(network.model), "trained": "elsewhere",
        "outputs": found.outputs, "input": {"lsb": network.grid.lsb, "lowest": found.quantizer.lo,
                                            "highest": found.quantizer.hi, "rounding": found.quantizer.rounding},
    })  # fmt: skip


def _dataset(told, found, tests) -> dict:
    """As stage ``data`` describes a data set; ``preprocess`` has the table of codes, and no size without pictures."""
    labels = list(told.labels)
    counts = np.bincount(tests.labels, minlength=len(labels)).tolist()
    distinct = len({hashlib.sha256(np.ascontiguousarray(sample)).digest() for sample in tests.codes})
    rule: dict = {"size": None, "color": None, "resize": None, "codes": None}
    if tests.picture:
        height, width, channels = found.picture
        rule = {"size": [height, width], "color": "gray" if channels == 1 else "rgb",
                "resize": told.resize, "codes": tests.table.tolist()}  # fmt: skip
    return {
        "name": told.data, "labels": labels, "shape": list(found.shape), "counts": {"test": len(tests.labels)},
        "counts_per_class": {"test": counts}, "repeated_within_split": {"test": len(tests.labels) - distinct},
        "provenance": tests.data["provenance"], "preprocess": rule,
    }  # fmt: skip


def _write(file, value: object) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
