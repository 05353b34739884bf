"""Stage ``csim``: the generated C++ behind its AXI4-Stream wrapper computes every golden code, or the gate is shut."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hls import csim, fifo, generated, graph, numerics
from hls.convert import digest
from hls.reference import Census, Reference
from pipeline.diversity import TRAINED_ELSEWHERE, TRAINED_HERE, diversity
from pipeline.statistics import wilson

#: Transfers of odd sizes leave partial pipelines and buffers behind if anything depends on the transfer.
ODD_BATCHES = (3, 7)


def run(ctx) -> None:
    """Write ``design.so csim.json``; gates: zero differing codes in every mode, FIFOs deep enough, diverse codes,
    reference agrees."""
    io = json.loads((ctx.inputs["convert"] / "io.json").read_text())
    project = ctx.inputs["convert"] / "project"
    with np.load(ctx.inputs["export"] / "golden.npz") as file:
        golden = dict(file)
    codes, expected, labels = golden["input_codes"], golden["output_codes"], golden["labels"]
    shift = int(golden["output_scale_log2"]) - io["output"]["scale_log2"]
    ctx.gate(
        "scales agree",
        shift >= 0 and int(golden["input_scale_log2"]) == io["input"]["scale_log2"],
        f"output codes on 2**{io['output']['scale_log2']} in hardware, 2**{int(golden['output_scale_log2'])} in golden",
    )
    expected = expected << shift
    ctx.log("compiling the generated C++ (from the cache when unchanged)")
    with ThreadPoolExecutor(1) as pool:
        threads = pool.submit(fifo.build, project)
        library = csim.compile_design(project, io)
        threads = threads.result()
    chosen = stratified(labels, ctx.recipe.csim.samples, ctx.recipe.seed)
    few = chosen if len(chosen) == len(labels) else stratified(labels, ctx.recipe.csim.modes_samples, ctx.recipe.seed)

    modes, outputs = [], {}
    plan = [("one transfer", chosen, None), ("sample by sample", few, 1)]
    plan += [(f"transfers of {size}", few, size) for size in ODD_BATCHES]
    for name, samples, batch in plan:
        with ctx.progress(len(samples), f"C simulation, {name}") as work:
            found = csim.run(library, codes[samples], io, batch=batch, progress=work.advance)
        outputs[name] = found
        modes.append({"mode": name, "samples": len(samples), "compared": int(found.size),
                      "mismatches": int(np.count_nonzero(found != expected[samples]))})  # fmt: skip
    mismatches, compared = (sum(m[key] for m in modes) for key in ("mismatches", "compared"))
    ctx.metric("csim_mismatches", mismatches, "simulated", unit="codes", compared=compared, modes=modes)
    model = graph.prepare(graph.load(ctx.inputs["export"] / "model.onnx"))
    analysis = numerics.analyze(model)
    diverging = None
    if mismatches:
        diverging = explain(project, io, model, analysis, codes, expected, plan, outputs)
    ctx.gate("C simulation equals the trained network", mismatches == 0 and compared > 0,
             f"{mismatches} of {compared} codes differ" + (f"; {diverging}" if diverging else ""),
             mismatches=mismatches, compared=compared)  # fmt: skip

    ctx.gate("the simulated project is the converted one", digest(project) == io["design_digest"],
             f"design {io['design_digest'][:16]}", fix="run the convert stage again: a file of its project was changed")
    depths = generated.depths(project)
    stuck, detail = through_fifos(threads.run(codes[few], io, depths), expected[few])
    ctx.gate("FIFOs are deep enough", not stuck, detail,
             fix="run the plan stage again; if it repeats, report the network")  # fmt: skip
    ctx.metric("fifo_deadlocks", 0, "simulated", samples=len(few), fifos=len(depths))
    census = Census(analysis)
    with ctx.progress(len(codes), "integer reference, whole test set") as work:
        found, lsb = Reference(model, analysis).run(codes, visit=census.visit)
        work.advance(len(codes))
    different = int(np.count_nonzero((found << (lsb - io["output"]["scale_log2"])) != expected))
    ctx.metric("reference_mismatches", different, "trained", unit="codes", compared=int(found.size))
    ctx.gate("the integer reference equals the trained network", different == 0 and found.size > 0,
             f"{different} of {found.size} codes differ on the whole test set", mismatches=different)  # fmt: skip
    elsewhere = (ctx.inputs["export"] / "import.json").is_file()
    limits = TRAINED_ELSEWHERE if elsewhere else TRAINED_HERE
    passed, detail, numbers = diversity(outputs["one transfer"], census.quantizers, census.accumulators, limits)
    ctx.gate("codes are diverse", passed, detail, **numbers,
             fix="train longer, trim less or give more bits: outputs that hardly vary prove nothing about the hardware")

    correct = int(np.count_nonzero(outputs["one transfer"].argmax(1) == labels[chosen]))
    ctx.metric("accuracy_test", correct / len(chosen), "simulated", interval=wilson(correct, len(chosen)),
               correct=correct, samples=len(chosen))  # fmt: skip
    (ctx.folder / "csim.json").write_text(
        json.dumps(
            {
                "modes": modes,
                "mismatches": mismatches,
                "compared": compared,
                "fifo": {"depths": depths, "samples": len(few)},
                "reference": {"mismatches": different, "compared": int(found.size)},
            },
            indent=1,
        )
        + "\n"
    )
    shutil.copyfile(library, ctx.folder / "design.so")


def through_fifos(found: fifo.Outcome, expected: np.ndarray) -> tuple[bool, str]:
    """Whether the design with one thread per process and FIFOs that block did not give every code (N, outputs) it gives
    without bounds, and what happened in words."""
    if found.deadlock:
        return True, f"all processes wait for each other; too shallow: {', '.join(found.full) or 'none, for the host'}"
    different = int(np.count_nonzero(found.codes != expected))
    text = f"{len(expected)} samples through {len(found.peaks)} FIFOs that block: {different} codes differ"
    return bool(different or not found.codes.size), text


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` samples with the classes in proportion (all when there are no more), ascending."""
    if count >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    # deal each class evenly over the whole length, then cut: every prefix is stratified
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.sort(np.argsort(position, kind="stable")[:count])


def explain(project, io, model, analysis, codes, expected, plan, outputs) -> str:
    """Name the first layer that differs from the network's execution, on samples that came out wrong."""
    for name, samples, _ in plan:
        wrong = samples[np.any(outputs[name] != expected[samples], axis=1)]
        if len(wrong):
            break
    layers = json.loads((project / "layers.json").read_text())
    found = csim.first_divergence(project, io, model, analysis, layers, codes[wrong[:4]])
    if found is None:
        return f"each layer alone is right on test sample {wrong[0]}: the fault lies in the wrapper or the stream"
    return csim.told(found, f"test sample {wrong[found['sample']]}")
