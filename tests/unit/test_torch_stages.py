"""train, trim, quantize and export as stages, on a tiny digits-like set: gates shut, files repeat, test unseen."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline import config, gates
from pipeline.stages import export as export_stage
from pipeline.stages import quantize as quantize_stage
from pipeline.stages import train as train_stage
from pipeline.stages import trim as trim_stage
from tests.torchnets import CLASSES, SHAPE, pictures

STAGES = {"train": train_stage, "trim": trim_stage, "quantize": quantize_stage, "export": export_stage}


class Context(SimpleNamespace):
    """What a stage needs of pipeline.stage.Context."""

    def progress(self, items, label):
        return items

    def metric(self, name, value, evidence, unit=None, interval=None, **extra):
        self.metrics[name] = {"value": value, "interval": interval, **extra}

    def gate(self, name, passed, detail, *, fix=None, **numbers):
        self.gates.append(gates.check(name, passed, detail, fix=fix, **numbers))


def recipe():
    return config.Recipe(
        name="tiny",
        data={"name": "digits"},
        model={"name": "cnn_small", "widths": {"conv1": 6, "conv2": 8, "conv3": 8}},
        train={"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "augment": "shift"},
        trim={"ratio": 0.4, "steps": 2, "finetune_epochs": 1, "learning_rate": 0.005},
        quantize={"epochs": 2, "batch_size": 16, "learning_rate": 0.002},
    )


def write_data(folder, test_seed=2):
    folder.mkdir(parents=True)
    for name, count, seed in (("train", 192, 0), ("val", 64, 1), ("test", 240, test_seed)):
        pixels, labels = pictures(count, seed)
        np.savez(folder / f"{name}.npz", pixels=pixels.numpy().transpose(0, 2, 3, 1), labels=labels.numpy())
    description = {"labels": [str(k) for k in range(CLASSES)], "shape": [*SHAPE[1:], SHAPE[0]]}
    (folder / "dataset.json").write_text(json.dumps(description))


def execute(name, root):
    folder = root / name
    folder.mkdir()
    inputs = {path.name: path for path in root.iterdir()}
    ctx = Context(recipe=recipe(), folder=folder, inputs=inputs, metrics={}, gates=[])
    STAGES[name].run(ctx)
    return ctx


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("chain")
    write_data(root / "data")
    return root, {name: execute(name, root) for name in STAGES}


def test_every_promised_file_figure_and_gate(chain):
    from pipeline.flow import STAGES as FLOW

    root, done = chain
    for stage in FLOW:
        if stage.name in STAGES:
            assert all((root / stage.name / file).is_file() for file in stage.makes)
            assert set(stage.metrics) <= set(done[stage.name].metrics)
    assert [record["name"] for record in done["export"].gates] == ["QONNX equals Brevitas", "codes are diverse"]
    assert done["export"].gates[0]["compared"] == 240 * CLASSES


def test_accuracies_have_their_interval_and_agree(chain):
    _, done = chain
    for name in STAGES:
        accuracy = done[name].metrics["accuracy_test"]
        low, high = accuracy["interval"]
        assert 0 <= low <= accuracy["value"] <= high <= 1 and accuracy["total"] == 240
    assert done["export"].metrics["accuracy_test"]["value"] == done["quantize"].metrics["accuracy_test"]["value"] > 0.9


def test_trimming_is_as_asked_and_the_twin_is_built_from_what_is_kept(chain):
    root, done = chain
    before, after = done["train"].metrics["macs"]["value"], done["trim"].metrics["macs"]["value"]
    assert after <= 0.6 * before
    widths = json.loads((root / "trim/widths.json").read_text())
    quant = json.loads((root / "quantize/quant.json").read_text())
    assert [layer["name"] for layer in quant["layers"]][:-1] == list(widths)
    relevance = json.loads((root / "trim/relevance.json").read_text())["layers"]
    assert {layer: len(entry["kept"]) for layer, entry in relevance.items()} == widths
    assert [len(entry["scores"]) for entry in relevance.values()] == [6, 8, 8]
    graph = onnx.load(root / "export/model.onnx").graph
    dims = {item.name: list(item.dims) for item in graph.initializer}
    assert dims["conv2.weight"][:2] == [widths["conv2"], widths["conv1"]]


def test_golden_holds_the_whole_test_set(chain):
    root, done = chain
    pixels, labels = pictures(240, 2)
    with np.load(root / "export/golden.npz") as golden:
        assert np.array_equal(golden["input_codes"], pixels.numpy().transpose(0, 2, 3, 1))
        assert np.array_equal(golden["labels"], labels.numpy())
        assert golden["input_scale_log2"] == -8
        correct = (golden["output_codes"].argmax(1) == golden["labels"]).mean()
        quant = json.loads((root / "quantize/quant.json").read_text())
        assert golden["output_scale_log2"] == quant["layers"][-1]["accumulator_scale_log2"]
    assert correct == done["export"].metrics["accuracy_test"]["value"]


def test_again_gives_the_same_bytes_and_the_test_set_decides_nothing(chain, tmp_path):
    """With other test pictures everything that is trained stays the same, byte for byte; only golden.npz may change."""
    root, _ = chain
    write_data(tmp_path / "data", test_seed=77)
    for name in STAGES:
        execute(name, tmp_path)
    changed = [
        str(file.relative_to(root))
        for name in STAGES
        for file in sorted((root / name).iterdir())
        if file.read_bytes() != (tmp_path / name / file.name).read_bytes()
    ]
    assert changed == ["export/golden.npz"]


def linked(chain, tmp_path):
    root, _ = chain
    for name in ("data", "train", "trim", "quantize"):
        (tmp_path / name).symlink_to(root / name)
    return tmp_path


def test_a_flipped_weight_bit_shuts_the_gate(chain, tmp_path, monkeypatch):
    def broken(quantized, shape, file):
        export(quantized, shape, file)
        model = onnx.load(file)
        item = next(item for item in model.graph.initializer if item.name == "classifier.weight")
        weights = numpy_helper.to_array(item).copy()
        weights[0] = -weights[0]
        item.CopyFrom(numpy_helper.from_array(weights, item.name))
        onnx.save(model, file)

    export = export_stage.export
    monkeypatch.setattr(export_stage, "export", broken)
    with pytest.raises(gates.GateFailed, match="QONNX equals Brevitas"):
        execute("export", linked(chain, tmp_path))


def test_constant_outputs_shut_the_gate(chain, tmp_path, monkeypatch):
    """A dead network is bit-exact, and is refused for being dead."""

    def dead(*arguments):
        twin = load(*arguments)
        twin.conv3.bias.data.fill_(-100.0)
        return twin

    load = export_stage.load
    monkeypatch.setattr(export_stage, "load", dead)
    with pytest.raises(gates.GateFailed, match="codes are diverse") as caught:
        execute("export", linked(chain, tmp_path))
    assert "distinct" in str(caught.value) and "classes are ever predicted" in str(caught.value)


def test_weights_that_became_zero_shut_the_gate(chain, tmp_path, monkeypatch):
    root, _ = chain

    def zeroed(*arguments, **options):
        twin, history = quantize(*arguments, **options)
        twin.conv2.weight.data.zero_()
        return twin, history

    quantize = quantize_stage.quantize
    monkeypatch.setattr(quantize_stage, "quantize", zeroed)
    for name in ("data", "train", "trim"):
        (tmp_path / name).symlink_to(root / name)
    with pytest.raises(gates.GateFailed, match="all weights of conv2 became zero"):
        execute("quantize", tmp_path)
