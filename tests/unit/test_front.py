"""What stands before the first quantiser stays on the host, exactly; what follows is carried."""

import numpy as np
import pytest
import torch

from hls import front, graph, verify
from hls.lower import host_operations
from hls.reference import Reference
from tests.contracts.test_operators import Wide
from tests.graphs import loaded


class Raw(Wide):
    """A network that takes any numbers and computes something before it quantises."""

    def __init__(self, shape=(2, 4, 4), samples=24, seed=0):
        super().__init__(shape, samples=samples, seed=seed)
        self.nodes.clear()
        whole = self.random.integers(-256, 512, (samples, *shape))
        self.values["input"] = torch.from_numpy(whole / 256).double()

    def affine(self, x="input"):
        x = self.node("Mul", [x, self.constant(2.0)], self.values[x] * 2)
        return self.node("Sub", [x, self.constant(1.0)], self.values[x] - 1)


def scaled():
    net = Raw()
    return net.head(net.body(net.convolve(net.quant(net.affine(), 8, -7, narrow=True), 3, (2, 2))), 4)


def normalized():
    """One mean and deviation per channel, no binary fractions."""
    net = Raw((3, 4, 3))
    mean, deviation = (np.float32(v).reshape(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = net.node("Sub", ["input", net.constant(mean)], net.values["input"] - torch.from_numpy(mean))
    x = net.node("Div", [x, net.constant(deviation)], (net.values[x] / torch.from_numpy(deviation)).float().double())
    return net.head(net.body(net.convolve(net.quant(x, 6, -3), 3, (2, 2))), 4)


def flattened_signs():
    net = Raw((1, 3, 3))
    return net.finish(net.dense(net.bipolar(net.affine(net.flatten("input"))), 4))


def bare_signs():
    net = Raw((7,))
    return net.finish(net.dense(net.bipolar("input", -1), 4))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (scaled, ["Mul", "Sub", "Quant"]),
        (normalized, ["Sub", "Div", "Quant"]),
        (flattened_signs, ["Flatten", "Mul", "Sub", "BipolarQuant"]),
        (bare_signs, ["BipolarQuant"]),
    ],
)
def test_the_file_computes_its_own_codes(build, told, tmp_path):
    net = build()
    found = verify.examine(net.save(tmp_path / "net.onnx"))
    assert front.front_operations(found.model) == told
    np.savez(tmp_path / "x.npz", inputs=net.inputs)
    values = verify.read_inputs(tmp_path / "x.npz", found)
    codes = verify.wire_codes(found, values)
    assert codes.shape[1:] == graph.input_shape(found.model)
    assert found.grid.min <= codes.min() < codes.max() <= found.grid.max
    outputs, lsb = Reference(found.model, found.analysis).run(codes)
    assert np.array_equal(np.ldexp(outputs.astype(np.float64), lsb), net.outputs)
    assert len(np.unique(outputs, axis=0)) > len(outputs) / 3
    # the fault that all this is there for: codes of the numbers themselves
    assert not np.array_equal(codes.ravel(), np.ldexp(net.inputs, -found.grid.lsb).ravel())


def test_nothing_is_left_to_the_host_where_the_file_only_quantises():
    net = Wide((2, 3, 3))
    model = graph.prepare(loaded(net.head(net.body(net.convolve(net.input, 2)))))
    assert front.front_operations(model) == [] and front.front_of(model) is None


def test_a_layer_before_the_first_quantizer_is_not_moved_to_the_host(tmp_path):
    net = Raw()
    net.head(net.quant(net.convolve(net.affine(), 2), 4))
    with pytest.raises(verify.Refused, match="not on a known grid"):
        verify.examine(net.save(tmp_path / "net.onnx"))


def test_inputs_that_the_file_quantises_must_be_finite_floats(tmp_path):
    net = scaled()
    found = verify.examine(net.save(tmp_path / "net.onnx"))
    np.savez(tmp_path / "x.npz", inputs=net.inputs.astype(np.int64))
    with pytest.raises(verify.VerifyError, match="integers; before it quantises, the file computes Mul, Sub"):
        verify.read_inputs(tmp_path / "x.npz", found)
    np.savez(tmp_path / "x.npz", inputs=np.full_like(net.inputs, np.nan))
    with pytest.raises(verify.VerifyError, match="hold nan"):
        verify.read_inputs(tmp_path / "x.npz", found)


def test_layers_of_as_many_ones_keep_apart():
    """Layers are told apart by their weights in any order; these two have the same."""
    net = Wide((4,), bits=4, samples=8)
    signs = np.array([[1, -1, 1, -1]] * 4) * 0.5
    x = net.input
    for name in ("first", "second"):
        w = net.bipolar(net.constant(signs if name == "first" else signs.T, f"{name}.weight"))
        x = net.relu_quant(net.dense(x, 4, weights=w, bias=None, gemm=False, name=name))
    names = [node.name for node in graph.mac_nodes(graph.prepare(loaded(net.finish(net.dense(x, 2, name="last")))))]
    assert len(set(names)) == 3 and names[-1] == "last"


def test_a_tensor_norm_is_left_to_the_host_but_not_the_bias_of_one_class():
    for outputs, wanted in ((3, ["Sub", "Div"]), (1, ["Div"])):
        net = Wide((5,), bits=4)
        x = net.dense(net.input, outputs, bias=None, gemm=False)
        x = net.node("Add" if outputs == 1 else "Sub", [x, net.constant(0.5)], net.values[x])
        x = net.node("Div", [x, net.constant(3.0)], net.values[x])
        assert [done["operation"] for done in host_operations(loaded(net.finish(x)))] == wanted
