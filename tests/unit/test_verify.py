"""`slimgate verify`: 0 where every code agrees, 1 with the first layer that differs, 2 with every reason and fix."""

import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from boards import board
from hls import lower, verify
from hls.reference import Reference
from pipeline import cli, imported
from tests.contracts import test_operators
from tests.graphs import Net, tiny


def network(tmp_path, net, name="net.onnx"):
    return verify.examine(net.save(tmp_path / name))


def run(capsys, file, inputs, *words):
    code = cli.main(["verify", str(file), "--inputs", str(inputs), *words])
    done = capsys.readouterr()
    assert "Traceback" not in done.err
    return code, done.out, done.err


# -- what is refused -------------------------------------------------------------------------------------------------


def faulty():
    """Four faults, three of them behind one another."""
    net = Net((2, 4, 4))
    x = net.conv(net.input, 3, name="first", bias=net.constant([0.1, 0.2, 0.3], "first.bias"))
    x = net.quant(net.relu(x), 4, scale=0.3, signed=False, name="odd.scale")
    x = net.quant(net.conv(x, 3, name="second"), 4, zero_point=1.0, name="zero.point")
    x = net.node("Sigmoid", [x], net.values[x].sigmoid())
    return net.head(net.quant(x, 4, signed=False))


def test_every_refusal_is_listed(tmp_path):
    with pytest.raises(verify.Refused) as caught:
        network(tmp_path, faulty())
    reasons = [refusal["reason"] for refusal in caught.value.refusals]
    for words in ("its bias is a floating-point", "is not a power of two", "the zero point is 1", "operation Sigmoid"):
        assert sum(words in reason for reason in reasons) == 1, (words, reasons)
    assert len(reasons) == 4
    assert all(refusal["fix"] and refusal["node"] for refusal in caught.value.refusals)
    assert all(refusal["fix"] in str(caught.value) for refusal in caught.value.refusals)


def test_refusals_on_the_command_line(tmp_path, capsys):
    file = faulty().save(tmp_path / "net.onnx")
    code, out, err = run(capsys, file, tmp_path / "x.npz")
    assert code == 2 and "4 reason(s)" in err and "change: quantise the bias" in err and out == ""
    code, out, err = run(capsys, file, tmp_path / "x.npz", "--json")
    assert code == 2 and len(json.loads(out)["refused"]) == 4


def test_nothing_to_compute(tmp_path):
    with pytest.raises(verify.graph.GraphError, match="no convolution and no dense layer"):
        network(tmp_path, Net((5,)).finish("input.quant"))
    net = Net((5,))
    net.finish(net.dense(net.quant(net.constant(np.ones((1, 5))), 4, -1), 3, gemm=False, bias=None))
    with pytest.raises(verify.graph.GraphError, match="does not depend on its input|holds no network"):
        network(tmp_path, net)


@pytest.mark.parametrize("operations", [("Softmax",), ("LogSoftmax",), ("ArgMax",), ("Softmax", "ArgMax")])
def test_what_follows_from_the_codes_is_left_to_the_host(tmp_path, operations):
    net = tiny(5)
    scores = net.output
    for operation in operations:
        last = net.node(operation, [net.output], net.values[net.output].softmax(1), axis=1)
        net.finish(last)
    if operations[-1] == "ArgMax":
        net.proto.graph.output[0].type.tensor_type.elem_type = 7
        net.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    found = network(tmp_path, net)
    assert found.host == operations
    executed = next(iter(verify.graph.execute(found.file, net.inputs).values()))
    assert np.array_equal(executed, net.values[scores].numpy())


def scaled(net, operation, value, number):
    return net.node(operation, [net.output, net.constant(np.full(number, value))], net.values[net.output])


@pytest.mark.parametrize(("operation", "value"), [("Mul", 0.3), ("Div", 3.0), ("Add", -0.7), ("Sub", 0.1)])
def test_one_number_for_all_outputs_is_left_to_the_host(tmp_path, operation, value):
    net = tiny(5)
    scores = net.output
    found = network(tmp_path, net.finish(scaled(net, operation, value, 1)))
    assert lower.host_operations(found.file) == [{"operation": operation, "by": float(np.float32(value))}]
    executed = next(iter(verify.graph.execute(found.file, net.inputs).values()))
    assert np.array_equal(executed, net.values[scores].numpy())


def test_a_batch_norm_of_one_number_is_left_to_the_host(tmp_path):
    net = tiny(5)
    numbers = [net.constant(np.full(3, v), f"norm{v}") for v in (2.0, 0.5, 0.25, 3.0)]
    net.finish(net.node("BatchNormalization", [net.output, *numbers], net.values[net.output], epsilon=1e-5))
    told = lower.host_operations(network(tmp_path, net).file)
    assert told == [{"operation": "BatchNormalization", "gamma": 2.0, "beta": 0.5, "mean": 0.25, "var": 3.0,
                     "epsilon": pytest.approx(1e-5)}]  # fmt: skip


@pytest.mark.parametrize(("operation", "value", "number"), [("Mul", 0.3, 3), ("Mul", -0.3, 1), ("Div", -3.0, 1)])
def test_what_changes_the_order_of_classes_is_not(tmp_path, operation, value, number):
    """A number for each class, or a negative one."""
    net = tiny(5)
    values = value * (1 + np.arange(number))
    net.finish(net.node(operation, [net.output, net.constant(values)], net.values[net.output]))
    with pytest.raises(verify.Refused, match=f"{operation} is not carried exactly"):
        network(tmp_path, net)


def top(net, axis=1, count=1, largest=1):
    net.constants["count"] = np.array([count], np.int64)
    name = net.node("TopK", [net.output, "count"], net.values[net.output], axis=axis, largest=largest)
    net.nodes[-1].output.append("indices")
    net.finish(name)
    net.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = count
    return net


def test_the_best_class_is_left_to_the_host(tmp_path):
    assert network(tmp_path, top(tiny(5))).host == ("TopK",)


@pytest.mark.parametrize("options", [{"count": 2}, {"largest": 0}])
def test_more_than_the_best_class_is_refused(tmp_path, options):
    with pytest.raises(verify.Refused, match="operation TopK"):
        network(tmp_path, top(tiny(5), **options))


def test_a_softmax_over_pixels_is_refused(tmp_path):
    net = Net((2, 3, 3))
    x = net.quant(net.conv(net.input, 2), 4)
    net.finish(net.node("Softmax", [x], net.values[x].softmax(3), axis=3))
    with pytest.raises(verify.Refused, match="operation Softmax"):
        network(tmp_path, net)


def test_a_softmax_inside_is_refused(tmp_path):
    net = tiny(5)
    x = net.node("Softmax", [net.output], net.values[net.output].softmax(1), axis=1)
    net.finish(net.dense(net.quant(x, 4, signed=False), 3))
    with pytest.raises(verify.Refused, match="operation Softmax"):
        network(tmp_path, net)


# -- scales that are no powers of two --------------------------------------------------------------------------------


def scaled_network():
    return test_operators.CASES["scale_of_the_output"]()


def test_codes_of_other_scales_are_those_of_qonnx_but_where_it_rounds(tmp_path, capsys):
    """The definition is on integers; qonnx' float32 comes to the same here. Inputs are values as a user has them."""
    net = test_operators.CASES["scales_of_any_kind"]()
    file = net.save(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", inputs=net.inputs.astype(np.float32))
    code, out, err = run(capsys, file, tmp_path / "x.npz")
    count = f"{net.outputs.size} of {net.outputs.size}"
    assert code == 0 and f"scales that are no powers of two: {count} codes are those of qonnx" in out, err
    found = verify.examine(file)
    assert not found.exact and found.factors[0] == pytest.approx(0.037 * 32, rel=1e-6) and found.factors[1] == 1


def test_the_output_s_own_scale(tmp_path):
    net = scaled_network()
    found = network(tmp_path, net)
    codes, lsb = Reference(found.model, found.analysis).run(net.codes)
    values = np.ldexp(codes.astype(np.float64), lsb) * found.factors[1]
    assert np.allclose(values, net.outputs, rtol=1e-6, atol=0)  # codes times the scale; torch rounds elsewhere
    assert len(np.unique(codes)) > 20


def test_inputs_off_a_scale_that_is_no_power_of_two(tmp_path):
    net = test_operators.CASES["scales_of_any_kind"]()
    found = network(tmp_path, net)
    values = net.inputs.astype(np.float32)
    assert np.array_equal(verify.wire_codes(found, read(tmp_path, found, x=values)), net.codes)
    values[3, 1, 2, 0] *= np.float32(1.0001)
    with pytest.raises(verify.VerifyError, match=r"off the grid(.|\n)*rint\(x / 0.037"):
        read(tmp_path, found, x=np.abs(values) + np.float32(0.037) * (values == 0))


def test_a_wrong_factor_is_seen(tmp_path, monkeypatch):
    """The fault the comparison with qonnx is there for: codes of another network are not half the same."""
    net = scaled_network()
    file = net.save(tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", inputs=net.inputs)
    monkeypatch.setattr(verify.scales, "factors", lambda model: (1.0, 1.7))
    with pytest.raises(verify.Disagreement, match=r"only \d+ of 96 codes are those of qonnx(.|\n)*two codes meet"):
        verify.verify(file, tmp_path / "x.npz", board.load("pynq-z2"))


# -- inputs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A network of unsigned 8-bit pixels (2, 4, 5), as values k/256."""
    return verify.examine(tiny(5, shape=(2, 4, 5)).save(tmp_path_factory.mktemp("net") / "net.onnx"))


GOOD = np.arange(80, dtype=np.uint8).reshape(2, 2, 4, 5)


def read(tmp_path, network, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return verify.read_inputs(tmp_path / "x.npz", network)


def test_values_and_codes_are_the_same_inputs(tmp_path, known):
    values = read(tmp_path, known, x=GOOD / 256)
    assert values.dtype == np.float64 and np.array_equal(values, GOOD / 256)
    for kind in (np.uint8, np.int16, np.int64):
        assert np.array_equal(read(tmp_path, known, x=GOOD.astype(kind)), values)
    assert np.array_equal(read(tmp_path, known, x=(GOOD / 256).astype(np.float16)), values)
    codes = verify.wire_codes(known, values)
    assert codes.dtype == np.int64 and np.array_equal(codes, np.moveaxis(GOOD, 1, -1))


def test_which_array_is_taken(tmp_path, known):
    name = "input"  # what the file says; cleaning renames it
    assert known.file.graph.input[0].name != name
    other = GOOD[:1]
    assert len(read(tmp_path, known, other=other, **{name: GOOD}, inputs=other)) == 2
    assert len(read(tmp_path, known, other=other, inputs=GOOD)) == 2
    assert len(read(tmp_path, known, whatever=GOOD)) == 2
    with pytest.raises(verify.VerifyError, match=f"no array is called '{name}' or 'inputs'; there are: a, b"):
        read(tmp_path, known, a=GOOD, b=GOOD)
    with pytest.raises(verify.VerifyError, match="there are: none"):
        read(tmp_path, known)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.moveaxis(GOOD, 1, -1), r"shape \(2, 4, 5, 2\), the network takes \(N, 2, 4, 5\)(.|\n)*moveaxis"),
        (GOOD[0], r"shape \(2, 4, 5\), the network(.|\n)*one row for each sample"),
        (GOOD[:0], "N is 0"),
        (GOOD / 256 + 2**-9, r"80 of 80 inputs are off the grid.* 0\.\.255 of 2\*\*-8; (.|\n)*on the host first"),
        (GOOD / 256 + 1, "80 of 80 inputs are off the grid"),
        (GOOD.astype(np.int16) - 1, r"1 of 80 .*the first is -1 at \(0, 0, 0, 0\)"),
        (np.where(GOOD == 7, np.nan, GOOD / 256), r"hold nan at \(0, 0, 1, 2\)"),
        (np.where(GOOD == 7, np.inf, GOOD / 256), r"hold inf at \(0, 0, 1, 2\)"),
        (GOOD > 3, "of type bool"),
        (GOOD * 1j, "of type complex"),
        (GOOD.astype(str), "of type <U"),
        (np.float32(3), "a single number"),
        (np.array([{"a": 1}], dtype=object), "it holds Python objects"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path, known, array, words):
    with pytest.raises(verify.VerifyError, match=words):
        read(tmp_path, known, x=array)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "not a readable npz"), (b"PK\x03\x04damaged", "not a readable npz"),
     (pickle.dumps([1]), "not a readable npz")],
)  # fmt: skip
def test_files_that_are_no_npz(tmp_path, known, content, words):
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(verify.VerifyError, match=words):
        verify.read_inputs(tmp_path / "x.npz", known)


def test_an_array_that_unpacks_to_gigabytes_is_not_read(tmp_path, known, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", bytes(2**20))
    monkeypatch.setattr(verify, "LARGEST_INPUTS", 2**19)
    with pytest.raises(verify.VerifyError, match="the array 'inputs' holds"):
        verify.read_inputs(tmp_path / "x.npz", known)


@pytest.mark.parametrize("shape", [(3, 4, 6), (4, 4, 4), (5,)])
def test_axes_reach_the_wire_in_its_order(tmp_path, shape):
    net = Net(shape)
    if len(shape) == 1:
        net.finish(net.dense(net.input, 3))
    else:
        net.head(net.relu_quant(net.conv(net.input, 2)))
    found = network(tmp_path, net)
    assert np.array_equal(verify.wire_codes(found, net.inputs), net.codes)


# -- comparing -------------------------------------------------------------------------------------------------------


def dense():
    """Compiles in seconds; the samples are diverse."""
    net = Net((6,), signed=True, samples=40, seed=9)
    x = net.relu_quant(net.dense(net.input, 5, name="first", bias=None))
    net.finish(net.dense(x, 3, name="last", bias=None))
    return net


@pytest.fixture
def files(tmp_path):
    net = dense()
    np.savez(tmp_path / "x.npz", inputs=net.inputs)
    return net.save(tmp_path / "net.onnx"), tmp_path / "x.npz"


def test_every_code_agrees(files, capsys):
    code, out, err = run(capsys, *files)
    assert code == 0, err
    assert "264 codes compared, 0 differ: 40 samples, C simulation for pynq-z2 against qonnx" in out
    assert "diversity: 3 of 3 classes" in out
    code, out, _ = run(capsys, *files, "--json")
    found = json.loads(out)
    assert code == 0 and (found["compared"], found["mismatches"], found["board"]) == (264, 0, "pynq-z2")
    assert found["evidence"] == "simulated" and found["plan"]["evidence"] == "estimated (extrapolated)"
    assert found["plan"]["fits"] is True
    assert [mode["samples"] for mode in found["modes"]] == [40, 16, 16, 16]
    assert found["diversity"]["passed"] is True and found["refused"] == [] and found["first_divergence"] is None


def test_samples_that_prove_little_are_told(files, tmp_path, capsys):
    np.savez(tmp_path / "same.npz", inputs=np.zeros((9, 6)))
    code, out, _ = run(capsys, files[0], tmp_path / "same.npz")
    assert code == 0 and "warning: this proves little: only 1 of 3 classes" in out
    assert "11.1% of the 9 output vectors are distinct" in out


def test_a_layer_that_differs_is_named(files, capsys, monkeypatch):
    """A weight of the last layer is another one in the generated project, as a converter's bug would have it."""
    genuine = verify.convert

    def convert(model, analysis, plan, *, part, folder):
        io = genuine(model, analysis, plan, part=part, folder=folder)
        row = next(row for row in json.loads((folder / "layers.json").read_text()) if row["name"] == "last")
        assert row["class"]
        weights = sorted((folder / "firmware" / "weights").glob("w*.txt"), key=lambda p: int(p.stem[1:]))[-1]
        header = weights.with_suffix(".h")
        first = float(weights.read_text().split(",")[0])
        for file, start in ((weights, ""), (header, r"=\s*\{")):
            other = rf"\g<1>{0.5 if first != 0.5 else 0.25}"
            file.write_text(re.sub(rf"({start})([^,]+)", other, file.read_text(), count=1))
        return io

    monkeypatch.setattr(verify, "convert", convert)
    code, out, err = run(capsys, *files)
    assert code == 1
    assert "first diverging layer: last (" in err and "C simulation" in err and ", qonnx " in err
    assert "264 codes compared, 0 differ" not in out and "264 codes compared, " in out


def test_oracles_that_disagree(files, capsys, monkeypatch):
    genuine = verify.Reference.run

    def wrong(self, codes, **options):
        found, lsb = genuine(self, codes, **options)
        return found + 1, lsb

    monkeypatch.setattr(verify.Reference, "run", wrong)
    code, _, err = run(capsys, *files)
    assert code == 1 and "qonnx execution and the integer reference disagree" in err


def test_sums_beyond_float32_are_compared_with_the_reference(tmp_path, capsys):
    net = Net((6,), bits=16, signed=True, samples=20, seed=1)
    net.finish(net.dense(net.input, 3, bits=14, lsb=-10, bias_lsb=-26, name="wide"))
    np.savez(tmp_path / "x.npz", x=net.codes)
    code, out, err = run(capsys, net.save(tmp_path / "net.onnx"), tmp_path / "x.npz")
    assert code == 0, err
    assert "0 differ: 20 samples, C simulation for pynq-z2 against integer reference" in out


def test_a_board_that_is_none(files, capsys):
    code, _, err = run(capsys, *files, "--board", "pynq-z9")
    assert code == 2 and "did you mean" in err


def test_recipes_refuse_scales_that_are_no_powers_of_two(tmp_path):
    with pytest.raises(imported.ImportProblem, match="no powers of two, by which a board cannot be handed pixels"):
        imported.examine(scaled_network().save(tmp_path / "net.onnx"))
