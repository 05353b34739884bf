"""C simulation on small networks: right in every mode, and shut by every fault that can be put into a project."""

import json
import os
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from boards.simulated.accelerator import Accelerator, AcceleratorError
from hls import convert, csim, graph, numerics, wire
from hls.convert import ConvertError
from hls.csim import CsimError
from hls.reference import Reference
from pipeline.gates import GateFailed, check
from pipeline.stages import csim as stage
from tests.hil.converted import made
from tests.hil.faulty import ARITHMETIC, VARIABLE, WRAPPERS, Builds, flip_weight, stream_of, substitute


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    found = Builds(tmp_path_factory.mktemp("builds"))
    yield found
    found.close()


# ---------------------------------------------------------------------- right


@pytest.mark.parametrize("batch", [None, 1, 3, 7, 64])
def test_codes_are_right_in_every_mode(builds, batch):
    found, seen = made("tiny"), []
    codes = csim.run(builds.library("good"), found.net.codes, found.io, batch=batch, progress=seen.append)
    assert codes.dtype == np.int64 and np.array_equal(codes, found.expected)
    assert sum(seen) == 64
    assert len(np.unique(found.expected, axis=0)) > 58


def test_residual_network_is_right(builds):
    found = made("residual")
    codes = csim.run(builds.library("residual", True), found.net.codes, found.io, batch=5, processes=3)
    assert np.array_equal(codes, found.expected)


@pytest.mark.parametrize(("name", "layers"), [("tiny", 5), ("residual", 18)])
def test_every_stream_of_a_right_design_agrees(builds, name, layers):
    found = made(name)
    builds.library("good" if name == "tiny" else name, True)
    codes = found.net.codes[:6]
    streams = csim.trace(found.project, found.io, codes, found.layers)
    compared = [r for r in found.layers if r["stream"] in streams and not r["class"].startswith("ZeroPad")]
    assert len(compared) >= layers
    wanted = {}

    def visit(node, values, lsb):
        wanted[node.output[0]] = np.ldexp(values.astype(float), lsb)

    Reference(found.model, found.analysis).run(codes, visit=visit)
    for row in compared:
        values, lsb = streams[row["stream"]]
        assert values.shape == (6, *row["shape"])
        assert np.array_equal(np.ldexp(values.astype(float), lsb), wanted[row["tensor"]].reshape(values.shape)), row
    assert {found.layers[0]["name"], found.layers[-1]["name"]} <= {row["name"] for row in compared}
    assert divergence(found, codes) is None


def divergence(found, codes):
    return csim.first_divergence(found.project, found.io, found.model, found.analysis, found.layers, codes)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper_of_every_shape(builds, name):
    (io, wanted), library = builds.wrappers[name], builds.library(name)
    low, high = wire.code_range(io["input"])
    codes = np.random.default_rng(0).integers(low, high + 1, (9, *io["input"]["shape"]))
    codes[0], codes[1] = low, high
    for batch in (None, 1, 4):
        assert np.array_equal(csim.run(library, codes, io, batch=batch), wanted(codes))


def test_wrappers_reach_both_ways_of_unpacking():
    """Tokens of at most one beat are cut from a window, wider ones are shifted in code by code."""
    sizes = {o[0][-1] * convert.container_bytes(o[1]) for o in WRAPPERS.values()}
    assert {s for s in sizes if s <= 8} >= {3, 8} and {s % 8 for s in sizes if s > 8} >= {1, 3}
    assert {convert.container_bytes(o[4]) for o in WRAPPERS.values()} == {1, 2, 4, 8}


# ---------------------------------------------------------------------- compiling


def test_compiled_once_and_again_when_anything_changed(builds, tmp_path, monkeypatch):
    found = made("tiny")
    library = builds.library("good")
    compiled = []

    def compile_(gxx, flags, project, network, target):
        compiled.append(target)

    monkeypatch.setattr(csim, "_compile", compile_)
    assert csim.compile_design(found.project, found.io) == library and not compiled
    moved = found.copy(tmp_path)
    assert csim.compile_design(moved.project, found.io) == library and not compiled  # wherever it lies
    header = moved.project / "firmware" / "defines.h"
    header.write_text(header.read_text() + "\n")
    csim.compile_design(moved.project, found.io)
    csim.compile_design(found.project, found.io | {"design_digest": "f" * 64})
    flip_weight(moved.project, stream_of(moved, "head"))
    csim.compile_design(moved.project, found.io)
    assert len({library, *compiled}) == 4


def test_weights_that_differ_between_synthesis_and_simulation(tmp_path):
    found = made("tiny").copy(tmp_path)
    flip_weight(found.project, stream_of(found, "stem_conv"), files=("h",))
    with pytest.raises(CsimError, match=r"weights/(w\d+)\.h and \1\.txt differ") as caught:
        csim.compile_design(found.project, found.io)
    assert caught.value.exit_code == 1


def test_a_damaged_weight_file(tmp_path):
    found = made("tiny").copy(tmp_path)
    next((found.project / "firmware" / "weights").glob("w*.h")).write_text("")
    with pytest.raises(ConvertError, match="is damaged"):
        csim.compile_design(found.project, found.io)


def test_cpp_that_does_not_compile(builds, tmp_path, monkeypatch):
    found = made("tiny").copy(tmp_path)
    substitute(found.project / "slimgate_axis.h", "typedef ap_axiu", "typedeff ap_axiu")
    monkeypatch.setenv("SLIMGATE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CsimError, match=r"does not compile:\n  .*error: .*typedeff"):
        csim.compile_design(found.project, found.io)
    assert not list((tmp_path / "cache").rglob("*.so")) and not list((tmp_path / "cache").rglob("*.cpp"))


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CsimError, match=r"no-such-compiler was not found on PATH") as caught:
        csim.compile_design(made("tiny").project, made("tiny").io)
    assert "apt-get install g++" in caught.value.fix


# ---------------------------------------------------------------------- faults of the arithmetic


@pytest.mark.parametrize("name", ARITHMETIC)
def test_the_layer_that_diverges_first_is_named(builds, name):
    _, _, layer = ARITHMETIC[name]
    damaged = builds.projects[name]
    codes = csim.run(builds.library(name, True), damaged.net.codes, damaged.io, batch=None)
    wrong = np.any(codes != damaged.expected, axis=1)
    assert wrong.any()
    samples = damaged.net.codes[wrong][:4]
    found = divergence(damaged, samples)
    assert found["name"] == layer and 0 < found["differing"] <= found["of"] and found["oracle"] == "qonnx"
    # what is told of the place is true
    values = {}
    Reference(damaged.model, damaged.analysis).run(
        samples, visit=lambda node, v, lsb: values.update({node.output[0]: np.ldexp(v.astype(float), lsb)})
    )
    at = (found["sample"], *found["position"])
    assert values[found["tensor"]].reshape(len(samples), *found["shape"])[at] == found["expected_value"]
    assert found["csim_value"] != found["expected_value"]


# ---------------------------------------------------------------------- faults of the wrapper


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("no TLAST", CsimError, r"TLAST is on beats \[\], it belongs on the last one \(7\) only"),
        ("TLAST on every sample", CsimError, r"TLAST is on beats \[0, 1, 2, 3, 4\]"),
        ("TKEEP", CsimError, "TKEEP is not all ones"),
        ("lost beat", CsimError, "7 output beats came back, 8 belong"),
        ("extra beat", CsimError, "9 output beats came back, 8 belong"),
        ("padding", wire.WireError, "padding behind the outputs is not zero"),
        ("sign", wire.WireError, "not sign-extended"),
        ("crash", AcceleratorError, "process ended with code -11"),
        ("empty read", AcceleratorError, "ended with code 5: stream tokens_out was read while empty"),
    ],
)
def test_faults_of_the_wrapper_are_errors(builds, monkeypatch, fault, error, words):
    damaged, library = builds.projects["wrapper"], builds.library("wrapper")
    assert damaged.io["output"]["beats"] == 1
    monkeypatch.setenv(VARIABLE, fault)
    with pytest.raises(error, match=words):
        csim.run(library, damaged.net.codes[:8], damaged.io)
    # nothing can be got past in batches either
    with pytest.raises(error):
        csim.run(library, damaged.net.codes[:24], damaged.io, batch=8, processes=2)


def test_the_damaged_wrapper_without_a_fault_is_right(builds):
    damaged = builds.projects["wrapper"]
    assert np.array_equal(csim.run(builds.library("wrapper"), damaged.net.codes, damaged.io), damaged.expected)


def test_swapped_channels_give_wrong_codes(builds, monkeypatch):
    damaged = builds.projects["wrapper"]
    monkeypatch.setenv(VARIABLE, "channel order")
    codes = csim.run(builds.library("wrapper"), damaged.net.codes, damaged.io)
    assert np.mean(np.any(codes != damaged.expected, axis=1)) > 0.9
    builds.library("wrapper", True)
    found = divergence(damaged, damaged.net.codes[:2])
    assert found["class"] == "Input"  # the network is given the wrong pixels, and computes rightly with them


def test_a_traced_design_that_crashes_says_so(builds, monkeypatch):
    damaged = builds.projects["wrapper"]
    builds.library("wrapper", True)
    monkeypatch.setenv(VARIABLE, "empty read")
    with pytest.raises(CsimError, match="traced design ended with code 5: stream tokens_out was read while empty"):
        csim.trace(damaged.project, damaged.io, damaged.net.codes[:4], damaged.layers)


def test_another_design_is_not_run(builds):
    found = made("tiny")
    for batch in (None, 4):
        with pytest.raises(CsimError, match="the compiled design says it is .*, not ffffffff"):
            csim.run(builds.library("good"), found.net.codes, found.io | {"design_digest": "f" * 64}, batch=batch)


def test_half_a_sample_stays_in_the_design(builds):
    """What a batch could leave behind is not thrown away silently: it spoils the next one."""
    found = made("tiny")
    data = wire.pack(found.net.codes[:2], found.io)
    with Accelerator(builds.library("good")) as accelerator:
        beats = found.io["input"]["beats"] * 8
        assert accelerator.transfer(data[: beats + 16])[1] == b"\0"  # one sample, and no TLAST: it lies further on
        first, last, _ = accelerator.transfer(data[beats + 16 :])
        assert last == b"\1"
        assert np.array_equal(wire.unpack(first, found.io), found.expected[1:2])


# ---------------------------------------------------------------------- the stage


class FakeContext:
    """What a stage gets from the engine."""

    def __init__(self, folder, inputs, samples=0, modes=64):
        folder.mkdir()
        self.folder, self.inputs = folder, inputs
        self.recipe = SimpleNamespace(seed=0, csim=SimpleNamespace(samples=samples or 10**6, modes_samples=modes))
        self.metrics, self.gates = {}, {}

    def metric(self, name, value, evidence, unit=None, interval=None, **extra):
        self.metrics[name] = {"value": value, "evidence": evidence, "interval": interval, **extra}

    def gate(self, name, passed, detail, *, fix=None, **numbers):
        self.gates[name] = passed
        check(name, passed, detail, fix=fix, **numbers)

    @contextmanager
    def progress(self, total, label):
        yield SimpleNamespace(advance=lambda count=1: None)

    def log(self, text):
        pass


@pytest.fixture
def inputs(tmp_path):
    """Folders of the stages export and convert, as those stages leave them."""
    return inputs_of(made("tiny"), tmp_path)


def inputs_of(found, tmp_path):
    folders = {name: tmp_path / name for name in ("export", "convert")}
    for folder in folders.values():
        folder.mkdir()
    found.net.save(folders["export"] / "model.onnx")
    golden = found.expected
    np.savez(folders["export"] / "golden.npz", input_codes=found.net.codes.astype(np.uint8), output_codes=golden,
             labels=golden.argmax(1), input_scale_log2=np.int64(-8),
             output_scale_log2=np.int64(found.io["output"]["scale_log2"]))  # fmt: skip
    shutil.copytree(found.project, folders["convert"] / "project")
    (folders["convert"] / "io.json").write_text(json.dumps(found.io))
    return folders


def change_golden(inputs, **changes):
    path = inputs["export"] / "golden.npz"
    with np.load(path) as file:
        golden = dict(file)
    for name, change in changes.items():
        golden[name] = change(golden[name])
    np.savez(path, **golden)


def change_io(inputs, side, **changes):
    path = inputs["convert"] / "io.json"
    io = json.loads(path.read_text())
    io[side] |= changes
    path.write_text(json.dumps(io))


def shut(inputs, tmp_path, gate, words, **options):
    ctx = FakeContext(tmp_path / "csim", inputs, **options)
    with pytest.raises(GateFailed, match=words):
        stage.run(ctx)
    assert ctx.gates[gate] is False and list(ctx.gates)[-1] == gate
    assert not (ctx.folder / "design.so").exists()
    return ctx


def test_stage(builds, inputs, tmp_path):
    builds.library("good")
    ctx = FakeContext(tmp_path / "csim", inputs)
    stage.run(ctx)
    assert ctx.gates == dict.fromkeys(
        ("scales agree", "C simulation equals the trained network", "the simulated project is the converted one",
         "FIFOs are deep enough", "the integer reference equals the trained network", "codes are diverse"),
        True)  # fmt: skip
    assert ctx.metrics["fifo_deadlocks"] == {"value": 0, "evidence": "simulated", "interval": None, "samples": 64,
                                             "fifos": len(made("tiny").plan["fifo"])}  # fmt: skip
    modes = ctx.metrics["csim_mismatches"]["modes"]
    assert [m["mode"] for m in modes] == ["one transfer", "sample by sample", "transfers of 3", "transfers of 7"]
    assert all(m["samples"] == 64 and m["compared"] == 64 * 3 and m["mismatches"] == 0 for m in modes)
    assert ctx.metrics["csim_mismatches"]["compared"] == 4 * 64 * 3
    assert ctx.metrics["accuracy_test"]["value"] == 1.0 and ctx.metrics["accuracy_test"]["evidence"] == "simulated"
    with Accelerator(ctx.folder / "design.so") as accelerator:
        assert accelerator.identity == made("tiny").io["design_digest"]
    record = json.loads((ctx.folder / "csim.json").read_text())
    planned = {name: row["depth"] for name, row in made("tiny").plan["fifo"].items()}
    assert record["fifo"] == {"depths": planned, "samples": 64}
    assert record["mismatches"] == 0 and record["reference"] == {"mismatches": 0, "compared": 192}


def test_stage_sends_each_mode_as_it_says(builds, inputs, tmp_path, monkeypatch):
    builds.library("good")
    sent, genuine = [], csim.transfer
    monkeypatch.setattr(csim, "transfer", lambda a, codes, io: sent.append(len(codes)) or genuine(a, codes, io))
    stage.run(FakeContext(tmp_path / "csim", inputs))
    assert sorted(sent) == sorted([64] + 64 * [1] + 21 * [3] + [1] + 9 * [7] + [1])


def test_stage_on_some_of_the_samples(builds, inputs, tmp_path):
    ctx = FakeContext(tmp_path / "csim", inputs, samples=40, modes=20)
    stage.run(ctx)
    assert [m["samples"] for m in ctx.metrics["csim_mismatches"]["modes"]] == [40, 20, 20, 20]
    assert ctx.metrics["reference_mismatches"]["compared"] == 64 * 3  # always the whole set


def test_stage_names_the_layer_of_a_flipped_weight_bit(builds, tmp_path):
    damaged = builds.projects["weight bit"]
    builds.library("weight bit"), builds.library("weight bit", True)
    ctx = shut(inputs_of(damaged, tmp_path), tmp_path, "C simulation equals the trained network",
               r"\d+ of 768 codes differ; first diverging layer: stem_conv \(Conv2D\), .* test sample \d+")  # fmt: skip
    assert ctx.metrics["csim_mismatches"]["value"] > 0  # the figure is kept with the failure


def test_stage_with_a_project_that_was_changed_without_changing_a_code(inputs, tmp_path):
    with (inputs["convert"] / "project" / "hls.tcl").open("a") as file:
        file.write("# changed\n")
    shut(inputs, tmp_path, "the simulated project is the converted one", "design [0-9a-f]{16}")


def test_stage_with_a_fifo_that_is_too_shallow(builds, inputs, tmp_path, monkeypatch):
    """A chain deadlocks at no depth but none at all."""
    builds.library("good")
    genuine, name = stage.generated.depths, "stem_conv->Relu_0"
    monkeypatch.setattr(stage.generated, "depths", lambda project: genuine(project) | {name: 0})
    ctx = shut(inputs, tmp_path, "FIFOs are deep enough", f"all processes wait for each other; too shallow: {name}")
    assert "fifo_deadlocks" not in ctx.metrics


def test_stage_with_fifos_that_change_a_code(builds, inputs, tmp_path, monkeypatch):
    builds.library("good")
    genuine = stage.fifo.Threaded.run

    def altered(self, codes, io, depths):
        found = genuine(self, codes, io, depths)
        found.codes[5, 1] += 1
        return found

    monkeypatch.setattr(stage.fifo.Threaded, "run", altered)
    shut(inputs, tmp_path, "FIFOs are deep enough", "64 samples through .* FIFOs that block: 1 codes differ")


def test_stage_with_one_altered_golden_code(builds, inputs, tmp_path):
    def change(codes):
        codes = codes.copy()
        codes[17, 1] += 1
        return codes

    builds.library("good", True)
    change_golden(inputs, output_codes=change)
    shut(inputs, tmp_path, "C simulation equals the trained network",
         "4 of 768 codes differ; each layer alone is right on test sample 17")  # fmt: skip


def test_stage_with_golden_codes_outside_the_chosen_samples(builds, inputs, tmp_path):
    """C simulation sees some samples of a larger set, the integer reference all."""
    labels = made("tiny").expected.argmax(1)
    chosen = {*stage.stratified(labels, 40, 0), *stage.stratified(labels, 20, 0)}
    left = next(i for i in range(64) if i not in chosen)

    def change(codes):
        codes = codes.copy()
        codes[left, 0] -= 1
        return codes

    change_golden(inputs, output_codes=change)
    shut(inputs, tmp_path, "the integer reference equals the trained network", "1 of 192 codes differ",
         samples=40, modes=20)  # fmt: skip


@pytest.mark.parametrize("what", ["golden input", "golden output", "io input", "io output"])
def test_stage_with_disagreeing_scales(builds, inputs, tmp_path, what):
    place, side = what.split()
    if place == "golden":
        change_golden(inputs, **{f"{side}_scale_log2": lambda scale: scale - 1})
    else:
        scale = made("tiny").io[side]["scale_log2"]
        change_io(inputs, side, scale_log2=scale + 1)
    shut(inputs, tmp_path, "scales agree", "scales agree")


def test_stage_with_an_output_scale_that_is_too_fine(builds, inputs, tmp_path):
    """Hardware may have a finer grid than the golden codes: then they are shifted, and do not agree by chance."""
    builds.library("good", True)
    change_io(inputs, "output", scale_log2=made("tiny").io["output"]["scale_log2"] - 1)
    shut(inputs, tmp_path, "C simulation equals the trained network", "codes differ; each layer alone is right")


def test_stage_with_outputs_that_prove_nothing(builds, inputs, tmp_path):
    """One picture 64 times: everything agrees, and nothing was shown."""
    change_golden(inputs, input_codes=lambda c: np.repeat(c[:1], 64, 0), output_codes=lambda c: np.repeat(c[:1], 64, 0),
                  labels=lambda c: np.repeat(c[:1], 64))  # fmt: skip
    ctx = shut(inputs, tmp_path, "codes are diverse", "only 1 of 3 classes are ever predicted; only 1.6% of the 64")
    assert ctx.gates["C simulation equals the trained network"] is True


def test_stage_without_samples_is_not_passed(builds, inputs, tmp_path):
    change_golden(inputs, input_codes=lambda c: c[:0], output_codes=lambda c: c[:0], labels=lambda c: c[:0])
    ctx = FakeContext(tmp_path / "csim", inputs)
    with pytest.raises((GateFailed, CsimError)):
        stage.run(ctx)
    assert not (ctx.folder / "design.so").exists()


def test_stage_with_a_wrapper_that_drops_tlast(builds, tmp_path, monkeypatch):
    damaged = builds.projects["wrapper"]
    builds.library("wrapper")
    monkeypatch.setenv(VARIABLE, "no TLAST")
    ctx = FakeContext(tmp_path / "csim", inputs_of(damaged, tmp_path))
    with pytest.raises(CsimError, match="TLAST") as caught:
        stage.run(ctx)
    assert caught.value.exit_code == 1 and not (ctx.folder / "design.so").exists()


def test_stratified_samples_keep_the_classes_in_proportion():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    for count in (100, 10, 37):
        chosen = stage.stratified(labels, count, 3)
        assert len(set(chosen)) == count and np.all(np.diff(chosen) > 0)
        assert np.all(np.abs(np.bincount(labels[chosen], minlength=3) - np.array([0.6, 0.3, 0.1]) * count) <= 1.5)
    assert np.array_equal(stage.stratified(labels, 1000, 3), np.arange(1000))
    assert not np.array_equal(stage.stratified(labels, 100, 3), stage.stratified(labels, 100, 4))


def test_the_networks_here_are_exact_in_float32():
    """first_divergence compares with float32 execution: that must be an oracle for these networks."""
    assert all(made(name).analysis.float32_exact for name in ("tiny", "residual"))
    assert os.environ.get(VARIABLE) is None
    assert numerics.FLOAT32_EXACT == 2**24 and graph.input_shape(made("tiny").model) == (4, 4, 3)
