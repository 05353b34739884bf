"""What every file of pipeline/models must keep; a new file is tested without editing this one."""

import operator

import numpy as np
import pytest
import torch
from torch import fx, nn

from hls.graph import load as load_graph
from pipeline import config, execution, export, models, quantize
from pipeline.models import layers
from pipeline.trimming import groups
from tests.torchnets import BITS, normalize, pictures

CLASSES = 5
torch.set_num_threads(1)  # threads only get in one another's way on networks this small


def module_of(name):
    return __import__(f"pipeline.models.{name}", fromlist=["build"])


def narrow(name):
    """Every width an eighth: the same topology, quickly."""
    return {conv: max(2, width // 8) for conv, width in models.widths_of(name).items()}


def convolutions(model):
    return {path: m.out_channels for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.fixture(params=models.names())
def name(request):
    return request.param


@pytest.fixture
def shape(name):
    return module_of(name).INPUT_SHAPE


def test_a_recipe_may_name_it(name, tmp_path):
    file = tmp_path / "some.toml"
    layer = f"[quantize.layers.{models.CLASSIFIER}]"
    file.write_text(f'[data]\nname = "digits"\n[model]\nname = "{name}"\n{layer}\nweights = 8\n')
    assert config.load(file).model.name == name
    file.write_text(file.read_text().replace(models.CLASSIFIER, "no_such_layer"))
    with pytest.raises(config.RecipeError, match="no_such_layer"):
        config.load(file)


def test_widths_are_the_networks_convolutions(name, shape):
    widths = narrow(name)
    for bits in (None, BITS):
        built = models.build(name, widths, bits, shape, CLASSES)
        assert convolutions(built) == widths
        assert isinstance(built.get_submodule(models.CLASSIFIER), nn.Linear)
    assert [*widths, models.CLASSIFIER] == models.layer_names(name)
    assert models.widths_of(name) == module_of(name).WIDTHS


def test_both_kinds_have_the_same_modules(name, shape):
    plain, twin = (models.build(name, narrow(name), bits, shape, CLASSES) for bits in (None, BITS))
    names = dict(plain.named_modules()).keys()
    assert names <= dict(twin.named_modules()).keys()
    for path, module in plain.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(twin.get_submodule(path), nn.Identity)
            assert module.eps == layers.NORM_EPSILON


def test_float_network_is_traced_and_joins_are_seen(name, shape):
    """Trimming and folding follow the traced graph: only modules, additions and concatenations."""
    plain = models.build(name, narrow(name), None, shape, CLASSES)
    called = [node for node in fx.symbolic_trace(plain).graph.nodes if node.op in ("call_function", "call_method")]
    joins = {operator.add: layers.Add, torch.cat: layers.Concat}
    assert all(node.target in joins for node in called), called
    for target, kind in joins.items():
        assert sum(node.target is target for node in called) == sum(isinstance(m, kind) for m in plain.modules())


def test_what_is_tied_is_what_trimming_takes_together(name, shape):
    graph = groups.trace(models.build(name, narrow(name), None, shape, CLASSES), shape)
    tied = [set(group.producers) for group in graph.groups.values() if len(group.producers) > 1]
    assert sorted(map(sorted, tied)) == sorted(map(sorted, getattr(module_of(name), "TIED", ())))


def test_other_widths_and_picture_sizes(name, shape):
    step = module_of(name).SIZE_STEP
    other = (3, 8 // min(step, 8) * step + step, 8 // min(step, 8) * step + 2 * step)
    for bits in (None, BITS):
        built = models.build(name, narrow(name), bits, other, CLASSES).eval()
        with torch.no_grad():
            assert built(torch.rand(2, *other)).shape == (2, CLASSES)


def test_twin_is_exact_through_qonnx(name, tmp_path):
    """Folded, calibrated, exported: the executed file gives the twin's integers, and every quantiser is fixed-point;
    the smallest pictures there are."""
    size = max(8, module_of(name).SIZE_STEP)
    shape = (2, size, size)
    torch.manual_seed(0)
    pixels, _ = pictures(48, shape=shape, classes=CLASSES)
    plain = models.build(name, narrow(name), None, shape, CLASSES)
    normalize(plain, pixels / 256)
    twin = quantize.twin(name, narrow(name), BITS, shape, CLASSES)
    quantize.load_folded(twin, quantize.fold_batchnorm(plain))
    quantize.calibrate(twin, pixels, BITS["input"])
    quantize.describe(twin, shape, BITS["input"])
    seen = quantize.observe(twin, pixels, BITS["input"])
    assert len(np.unique(seen.outputs, axis=0)) > 30
    export.export(twin, shape, tmp_path / "model.onnx")
    codes = execution.qonnx_execute(
        load_graph(tmp_path / "model.onnx"), pixels.numpy(), -BITS["input"], seen.output_scale_log2, batch=48
    )
    assert np.array_equal(codes, seen.outputs)


def test_recipe_exactness_covers_every_layer(name, shape):
    found = quantize.recipe_exactness(name, models.widths_of(name), BITS, shape, CLASSES)
    assert sorted(layer["name"] for layer in found) == sorted(models.layer_names(name))
    assert {layer["oracle"] for layer in found} == {"float32"}
