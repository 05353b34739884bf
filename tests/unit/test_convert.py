"""What hls4ml made is what was planned: types read back, sabotage caught, equal input gives equal bytes."""

import contextlib
import json
import re

import hls4ml
import numpy as np
import pytest

from hls import convert, generated, numerics
from hls.convert import ConvertError
from hls.numerics import NotExact, quantizer_of
from tests.graphs import Net, prepared, tiny
from tests.hil.converted import BOARD, NETWORKS, PART, convert_net, made


def defines(project):
    """Type name -> (signed, width, integer bits, rounding, saturation) as the C++ has it."""
    text = (project / "firmware" / "defines.h").read_text()
    pattern = r"typedef (?:nnet::array<)?ap_(u?)fixed<(\d+),(-?\d+)(?:,(\w+),(\w+),0)?>.*? (\w+);"
    return {m[6]: (not m[1], int(m[2]), int(m[3]), m[4], m[5]) for m in re.finditer(pattern, text)}


@pytest.mark.parametrize("name", ["tiny", "residual"])
def test_types_in_the_cpp_are_the_derived_ones(name):
    found = made(name)
    types = defines(found.project)
    for layer, accumulator in found.analysis.accumulators.items():
        key = next(k for k in types if k.endswith(f"_{layer}_accum_t"))
        signed, width, integer, *_ = types[key]
        assert (signed, width) == (accumulator.signed, accumulator.bits) and integer == width + accumulator.lsb
    quantizers = {n.output[0]: quantizer_of(found.model, n) for n in found.model.graph.node if n.op_type == "Quant"}
    checked = 0
    for row in found.layers:
        if row["tensor"] not in quantizers or row["class"] in ("Input", "Clone") or row["class"].startswith("ZeroPad"):
            continue
        signed, width, integer, rounding, saturation = types[row["stream"].replace("_out", "_t")]
        quantizer = quantizers[row["tensor"]]
        assert integer - width == quantizer.lsb and (rounding, saturation) == ("AP_RND_CONV", "AP_SAT")
        assert (-(2 ** (width - 1)) if signed else 0, 2 ** (width - signed) - 1) == (quantizer.lo, quantizer.hi)
        checked += 1
    assert checked == {"tiny": 1, "residual": 8}[name]


def test_weights_in_both_files_are_the_networks():
    found = made("tiny")
    source = (found.project / "firmware" / "network.cpp").read_text()
    names = re.findall(r'"(\w+)\.txt"', source)
    assert len(names) == 4
    constants = found.analysis.constants.values()
    wanted = {tuple(sorted(np.ldexp(codes.astype(float), lsb).ravel())) for codes, lsb in constants}
    for name in names:
        header, text = convert.read_weights(found.project, name)
        assert np.array_equal(header, text) and tuple(sorted(header)) in wanted


def test_wire_description():
    found = made("tiny")
    assert found.io["input"] == {"shape": [4, 4, 3], "bits": 8, "signed": False, "container_bytes": 1, "scale_log2": -8,
                                 "beats": 6}  # fmt: skip
    output, bounds = found.io["output"], found.analysis.tensors["global_out"]
    assert output["shape"] == [3] and output["bits"] == bounds.bits and output["scale_log2"] == bounds.lsb
    assert output["signed"] and output["beats"] == -(-3 * output["container_bytes"] // 8)
    assert found.io["design_digest"] == convert.digest(found.project)


def test_reuse_factors_of_the_plan_reach_the_cpp(tmp_path):
    found = convert_net(NETWORKS["residual"](), tmp_path / "project", strategy="Resource", frames_per_second=50_000)
    source = (found.project / "firmware" / "network.cpp").read_text()
    written = generated.read(found.project).configs
    planned = {row["name"]: row["reuse_factor"] for row in found.plan["layers"]}
    assert len(set(planned.values())) > 1
    for row in found.layers:
        if row["name"] in planned:
            config = re.search(rf"(config\d+)>\(\w+, {row['stream']}, w", source)[1]
            assert written[config]["reuse_factor"] == row["reuse_factor"] == planned[row["name"]]


def test_each_layer_is_built_by_its_own_strategy(tmp_path):
    """The residual network with one layer of each kind on Latency: read from the C++."""
    asked = {name: {"strategy": "Latency"} for name in ("stem", "block2.shortcut", "head")}
    found = convert_net(NETWORKS["residual"](), tmp_path / "project", strategy="Resource", overrides=asked)
    design = generated.read(found.project)
    planned = {row["name"]: row["strategy"] for row in found.plan["layers"]}
    assert {n for n, s in planned.items() if s == "Latency"} == {"stem", "block2_shortcut", "head"}
    read = {call.name: design.configs[call.types[-1]] for call in design.calls if call.name in planned}
    assert {n: c["strategy"] for n, c in read.items()} == {n: int(s == "Resource") for n, s in planned.items()}
    assert {row["name"]: row["strategy"] for row in found.layers if row["strategy"]} == planned


@pytest.mark.parametrize("name", ["tiny", "residual"])
def test_fifo_depths_are_the_planned_ones(name):
    found = made(name)
    planned = {fifo: row["depth"] for fifo, row in found.plan["fifo"].items()}
    assert generated.depths(found.project) == planned
    text = "".join((found.project / file).read_text() for file in generated.DECLARING)
    assert len(re.findall(r"#pragma HLS STREAM variable=\w+ depth=\d+", text)) == len(planned)
    if name == "residual":  # the shortcut waits for the branch beside it
        assert planned["clone_Relu_0->Add_0"] > max(planned["unpack->zp2d_stem"], 8)


@pytest.mark.parametrize("name", ["tiny", "residual"])
def test_deterministic_and_without_paths(name, tmp_path):
    found = made(name)
    again = convert_net(found.net, tmp_path / "elsewhere" / "project")
    assert again.io == found.io and again.layers == found.layers
    for path in again.project.rglob("*"):
        if path.is_file():
            text = path.read_bytes()
            assert b"elsewhere" not in text and str(tmp_path.parent).encode() not in text, path
    assert {p.name for p in again.project.iterdir()} == {"firmware", "hls.tcl", "layers.json", "slimgate_axis.cpp",
                                                         "slimgate_axis.h"}  # fmt: skip


def test_the_digest_sees_every_byte_and_name(tmp_path):
    found = made("tiny").copy(tmp_path)
    before = convert.digest(found.project)
    path = found.project / "firmware" / "parameters.h"
    text = path.read_text()
    path.write_text(text + "\n")
    assert convert.digest(found.project) != before
    path.write_text(text)
    assert convert.digest(found.project) == before
    path.rename(path.with_name("other.h"))
    assert convert.digest(found.project) != before


def test_tcl_and_clock(tmp_path):
    found = convert_net(tiny(), tmp_path / "project", clock_mhz=80.0)
    tcl = (found.project / "hls.tcl").read_text()
    assert f"set_part {PART}" in tcl and "create_clock -period 12.500" in tcl and "set_top slimgate_axis" in tcl


# ---------------------------------------------------------------------- sabotage


@pytest.fixture
def sabotaged(tmp_path, monkeypatch):
    """Convert with hls4ml's converter (or its settings) bent."""

    def run(net=None, settings=None, result=None, plan=None):
        model = prepared(net or NETWORKS["tiny"]())
        analysis = numerics.analyze(model)
        from hls.plan import make_plan

        made = make_plan(model, analysis, board=BOARD)
        if plan:
            plan(made)
        original = hls4ml.converters.convert_from_onnx_model

        def bent(model, *, hls_config, **options):
            if settings:
                settings(hls_config["LayerName"])
            graph = original(model, hls_config=hls_config, **options)
            if result:
                result({layer.name: layer for layer in graph.get_layers()})
            return graph

        monkeypatch.setattr(hls4ml.converters, "convert_from_onnx_model", bent)
        return convert.convert(model, analysis, made, part=PART, folder=tmp_path / "project")

    return run


def precision(text):
    return hls4ml.backends.get_backend("Vitis").convert_precision_string(text)


def _each(settings, name):
    return [entry for key, entry in settings.items() if key in (name, f"Conv2D_{name}", f"Dense_{name}")]


def narrower(name, kind):
    def change(settings):
        for entry in _each(settings, name):
            bits, integer = map(int, re.search(r"<(\d+),(-?\d+)>", entry["Precision"][kind]).groups())
            sign = "" if entry["Precision"][kind].startswith("fixed") else "u"
            entry["Precision"][kind] = f"{sign}fixed<{bits - 1},{integer - 1}>"

    return change


def test_unbent_it_passes(sabotaged):
    assert sabotaged()["design_digest"]


@pytest.mark.parametrize("name", ["stem_conv", "head"])
def test_a_narrower_accumulator_is_caught(sabotaged, name):
    with pytest.raises(ConvertError, match=r"its accumulator .* cannot hold every partial sum") as caught:
        sabotaged(settings=narrower(name, "accum"))
    assert caught.value.where == f"layer {name}"


def test_an_accumulator_on_a_coarser_grid_is_caught(sabotaged):
    def change(settings):
        for entry in _each(settings, "stem_conv"):
            bits, integer = map(int, re.search(r"<(\d+),(-?\d+)>", entry["Precision"]["accum"]).groups())
            entry["Precision"]["accum"] = f"fixed<{bits - 1},{integer}>"

    with pytest.raises(ConvertError, match="cannot hold every partial sum"):
        sabotaged(settings=change)


def test_a_changed_reuse_factor_is_caught(sabotaged):
    """hls4ml corrects an illegal one silently."""
    with pytest.raises(ConvertError, match="changed the reuse factor 5 to") as caught:
        sabotaged(plan=lambda made: made["layers"][0].update(reuse_factor=5, strategy="Resource"))
    assert caught.value.where == "layer stem_conv"


def test_a_changed_strategy_is_caught(sabotaged):
    def change(settings):
        for entry in _each(settings, "stem_conv"):
            entry["Strategy"] = "Resource"

    with pytest.raises(ConvertError, match="changed the strategy Latency to resource"):
        sabotaged(settings=change, plan=lambda made: made["layers"][0].update(reuse_factor=1, strategy="Latency"))


def test_fifos_of_another_network_are_caught(sabotaged):
    with pytest.raises(generated.GeneratedError, match="FIFO stem_conv->ghost is only in the plan"):
        sabotaged(plan=lambda made: made["fifo"].update({"stem_conv->ghost": {"depth": 2}}))


def bend_output(name, text):
    def change(layers):
        layers[name].get_output_variable().type.precision = precision(text)

    return change


def test_wrong_rounding_width_or_saturation_is_caught(sabotaged):
    found = made("tiny")
    row = next(r for r in found.layers if r["name"] == "Relu_0")
    bits, integer = map(int, re.search(r"<(\d+),(-?\d+)", row["precision"]).groups())
    for text in (
        f"ufixed<{bits},{integer},TRN,SAT,0>", f"ufixed<{bits},{integer},RND,SAT,0>",
        f"ufixed<{bits},{integer},RND_CONV,WRAP,0>", f"ufixed<{bits - 1},{integer},RND_CONV,SAT,0>",
        f"ufixed<{bits + 1},{integer},RND_CONV,SAT,0>", f"ufixed<{bits},{integer + 1},RND_CONV,SAT,0>",
        f"fixed<{bits},{integer},RND_CONV,SAT,0>",
    ):  # fmt: skip
        with pytest.raises(ConvertError, match=r"layer Relu_0 quantises to .*, the network to codes 0\.\.15"):
            sabotaged(result=bend_output("Relu_0", text))


def test_an_output_that_cannot_hold_its_values_is_caught(sabotaged):
    name = made("tiny").layers[-1]["name"]
    assert name == "head"
    with pytest.raises(ConvertError, match="cannot hold"):
        sabotaged(result=bend_output("Dense_head", "fixed<4,4>"))


def test_a_pooling_accumulator_that_is_too_narrow_is_caught(sabotaged):
    def change(layers):
        layers["MaxPool_0"].types["accum_t"].precision = precision("ufixed<1,0>")

    with pytest.raises(ConvertError, match="layer MaxPool_0: type ufixed<1,0"):
        sabotaged(result=change)


def test_weights_that_do_not_fit_their_type_are_caught(sabotaged):
    def change(layers):
        layers["Conv2D_stem_conv"].weights["weight"].type.precision = precision("fixed<3,2>")

    with pytest.raises(ConvertError, match="does not fit its type") as caught:
        sabotaged(result=change)
    assert caught.value.where == "layer stem_conv"


def test_weights_that_were_written_wrong_are_caught(sabotaged, monkeypatch):
    original = convert._keep_only_firmware

    def damage(folder):
        original(folder)
        path = next((folder / "firmware" / "weights").glob("w*.txt"))
        path.write_text(path.read_text().replace("0.", "1.", 1))

    monkeypatch.setattr(convert, "_keep_only_firmware", damage)
    with pytest.raises(ConvertError, match="does not read back as the network's weights"):
        sabotaged()


def test_a_layer_that_hls4ml_dropped_is_missed(sabotaged):
    with pytest.raises(ConvertError, match="hls4ml dropped layer ghost"):
        sabotaged(plan=lambda made: made["layers"].append(made["layers"][0] | {"name": "ghost"}))


@pytest.mark.parametrize("version", ["1.2.0", "1.3.1"])
def test_another_version_of_hls4ml_is_refused(monkeypatch, tmp_path, version):
    monkeypatch.setattr(convert, "version", lambda name: version)
    with pytest.raises(ConvertError, match=f"hls4ml {version} is installed") as caught:
        convert.convert(None, None, {}, part=PART, folder=tmp_path / "project")
    assert "hls4ml==1.3.0" in caught.value.fix and not (tmp_path / "project").exists()


def test_what_hls4ml_cannot_convert_is_one_message(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise AssertionError("no such layer")

    monkeypatch.setattr(hls4ml.converters, "convert_from_onnx_model", fail)
    with pytest.raises(ConvertError, match=r"cannot convert this network: AssertionError: no such layer"):
        convert_net(tiny(), tmp_path / "project")


@pytest.mark.parametrize(
    ("bits", "error", "text"),
    [(4, NotExact, "quantises the network's input in another way than"), (8, ConvertError, "exactly one quantiser")],
)
def test_an_input_read_by_two_quantisers_is_refused(tmp_path, bits, error, text):
    net = Net((3,))
    other = net.quant("input", bits, -bits, signed=False, name="other")
    x, y = net.quant(net.dense(net.input, 2), 5), net.quant(net.dense(other, 2), 5)
    with pytest.raises(error, match=text):
        convert_net(net.finish(net.add(x, y)), tmp_path / "project")


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["h", "txt"])
def test_a_damaged_weight_file_is_named(tmp_path, suffix):
    found = made("tiny").copy(tmp_path)
    path = next((found.project / "firmware" / "weights").glob(f"b*.{suffix}"))
    path.write_text("what")
    with pytest.raises(ConvertError, match=f"weights/{path.stem} is damaged"):
        convert.read_weights(found.project, path.stem)


def test_illegal_reuse_factors_by_the_tools_own_rule():
    plan = json.loads(json.dumps(made("tiny").plan))
    assert convert.illegal_reuse_factors(plan) == []
    plan["layers"][1] |= {"reuse_factor": 7, "strategy": "Resource"}
    assert convert.illegal_reuse_factors(plan) == ["head: 7"]
    plan["layers"][1]["strategy"] = "Latency"  # whose factor hls4ml leaves as it is
    assert convert.illegal_reuse_factors(plan) == []


def test_container_bytes():
    assert [convert.container_bytes(b) for b in (1, 8, 9, 16, 17, 32, 33, 62)] == [1, 1, 2, 2, 4, 4, 8, 8]


def test_templates_have_no_undefined_variables(tmp_path):
    with contextlib.suppress(FileExistsError):
        tmp_path.mkdir()
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        convert.render(("hls.tcl",), {"part": PART}, tmp_path)
