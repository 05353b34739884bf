"""`slimgate import`: what it writes, what it refuses with one message, and that it leaves nothing half made."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from boards.onboard import predict as onboard
from hls import graph, onnxfile
from hls.numerics import Quantizer
from pipeline import cli, config, imported, importing, pixels, summary
from pipeline.datasets import elsewhere
from tests.graphs import Net, tiny
from tests.unit.test_front import Raw, flattened_signs, normalized, scaled
from tests.unit.test_stage import toy  # noqa: F401 - a fixture

LABELS = "cat,dog,owl"


def run(capsys, *words):
    code = cli.main(["import", *map(str, words)])
    done = capsys.readouterr()
    assert "Traceback" not in done.err
    return code, done.out, done.err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Gray pictures of 8x8, three classes."""
    return tiny(5, shape=(1, 8, 8), samples=60).save(tmp_path_factory.mktemp("a model ü") / "My Net.onnx")


@pytest.fixture
def data(tmp_path):
    """Pixels and labels as npz."""
    return npz(tmp_path / "test.npz")


def npz(path, count=60, **changed):
    random = np.random.default_rng(0)
    arrays = {"pixels": random.integers(0, 256, (count, 1, 8, 8), np.uint8), "labels": np.arange(count) % 3}
    np.savez(path, **{key: value for key, value in (arrays | changed).items() if value is not None})
    return path


def pictures(folder, classes, size=8):
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((size, size), 40 * index, np.uint8)).save(folder / name / "one.png")
    return folder


def refused(capsys, tmp_path, words, *arguments):
    code, _, err = run(capsys, *arguments, "--to", tmp_path / "to")
    assert code == 2 and words in " ".join(err.split()), err
    assert not (tmp_path / "to").exists() or not any((tmp_path / "to").iterdir())


# -- what is written -------------------------------------------------------------------------------------------------


def test_a_folder_with_a_recipe_and_the_same_model(model, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("\ufeffcat\n\n dog \nowl\n", encoding="utf-8")
    code, out, err = run(capsys, model, "--labels", "labels.txt", "--data", "test.npz", "--board", "zybo-z7-10",
                         "--input-range", "0", "255/256", "--to", "to here")  # fmt: skip
    assert code == 0, err
    file = Path("to here/my-net/my-net.toml")
    assert f"made {file}; now: slimgate run '{file}'" in out and "pixels 0 to 255 become codes 0 to 255" in out
    assert sorted(path.name for path in Path("to here").rglob("*")) == ["my-net", "my-net.onnx", "my-net.toml"]
    assert (file.parent / "my-net.onnx").read_bytes() == model.read_bytes()
    recipe = config.load(file)
    assert (recipe.name, recipe.board, recipe.imported.labels) == ("my-net", "zybo-z7-10", ["cat", "dog", "owl"])
    assert recipe.imported.input_range == [0, 255 / 256] and recipe.imported.data == "npz"
    assert recipe.imported.test == "../../test.npz"  # inside where it was called: the whole can be moved
    assert recipe.resolve(recipe.imported.test) == data.resolve()
    again = config.restore(recipe.dump(), recipe.path)
    assert again.to_toml() == recipe.to_toml() and again.dump() == recipe.dump()


def test_data_elsewhere_are_named_by_their_whole_path(model, data, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(capsys, model, "--labels", LABELS, "--data", data)[0] == 0
    assert config.load("imported/my-net/my-net.toml").imported.test == str(data.resolve())


def test_labels_of_class_folders(model, tmp_path, capsys):
    folder = pictures(tmp_path / "pictures", ["owl", "cat", "dög"])
    code, out, _ = run(capsys, model, "--data", folder, "--to", tmp_path / "to", "--name", "n")
    assert code == 0 and "3 labels from the names of the class folders, sorted: cat, dög, owl" in out
    code, out, _ = run(capsys, model, "--data", folder, "--labels", "owl,dög,cat", "--to", tmp_path / "to")
    recipe = config.load(tmp_path / "to/my-net/my-net.toml")
    assert code == 0 and recipe.imported.labels == ["owl", "dög", "cat"] and recipe.imported.resize == "bilinear"
    found = elsewhere.load("folder", folder, recipe.imported.labels, (8, 8, 1))
    assert found["names"] == ["cat/one.png", "dög/one.png", "owl/one.png"] and found["labels"].tolist() == [2, 1, 0]


def test_weights_in_files_of_their_own_come_along(data, tmp_path, capsys):
    proto = tiny(5, shape=(1, 8, 8)).proto
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert run(capsys, tmp_path / "net.onnx", "--labels", LABELS, "--data", data, "--to", tmp_path / "to")[0] == 0
    (tmp_path / "weights.bin").unlink()
    assert imported.examine(tmp_path / "to/net/net.onnx").outputs == 3


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("cat,dog", "2 labels, and the network has 3 outputs"),
        ("a,b,c,d", "4 labels, and the network has 3 outputs"),
        ("a,b,a", "there twice: 'a'"),
        ("a, ,c", "a label is empty"),
        ("labels.txt", "there is no such file, and there is no comma in it"),
        (".", "it is a folder"),
        (None, "an .npz has no names of classes"),
    ],
)
def test_labels_that_do_not_fit(model, data, tmp_path, capsys, labels, words):
    given = [] if labels is None else ["--labels", labels]
    refused(capsys, tmp_path, words, model, "--data", data, *given)


def test_labels_that_are_no_text(model, data, tmp_path, capsys):
    (tmp_path / "labels").write_bytes(b"\xff\xfe\x00")
    refused(capsys, tmp_path, "not UTF-8", model, "--data", data, "--labels", tmp_path / "labels")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"labels": None}, "no array is called 'labels'; there are: pixels"),
        ({"pixels": None}, "no array is called 'inputs' or 'pixels'; there are: labels"),
        ({"inputs": np.zeros((60, 1, 8, 8))}, "there are both 'inputs' and 'pixels'"),
        ({"pixels": np.zeros((60, 8, 8, 1), np.uint8)}, "put the axes in the model's order (numpy.moveaxis)"),
        ({"pixels": np.zeros((60, 9), np.uint8)}, "the network takes (N, 1, 8, 8)"),
        ({"pixels": np.zeros((60, 1, 8, 8))}, "pixels are of type float64, not uint8"),
        ({"pixels": np.zeros(60, np.uint8)}, "not one label for each sample"),
        ({"labels": np.arange(59) % 3}, "not one label for each sample"),
        ({"labels": np.eye(3)[np.arange(60) % 3]}, "save labels.argmax(1)"),
        ({"labels": np.arange(60) / 2}, "not (N,) whole numbers"),
        ({"labels": np.arange(60) % 4}, "label 3 is none of 0 to 2"),
        ({"labels": np.arange(60) % 3 - 1}, "label -1 is none of 0 to 2"),
        ({"pixels": np.zeros((0, 1, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "N is 0"),
        ({"pixels": np.array([{}] * 60, dtype=object)}, "it holds Python objects"),
        ({"pixels": None, "inputs": np.full((60, 1, 8, 8), 0.3)}, "are off the grid of the network's input"),
        ({"pixels": None, "inputs": np.full((60, 1, 8, 8), np.nan)}, "hold nan at (0, 0, 0, 0)"),
        ({"pixels": None, "inputs": np.zeros((60, 8, 8, 1))}, "the network takes (N, 1, 8, 8)"),
    ],
)
def test_arrays_that_do_not_fit(model, tmp_path, capsys, changed, words):
    refused(capsys, tmp_path, words, model, "--labels", LABELS, "--data", npz(tmp_path / "x.npz", **changed))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npz", None, "there are no such test data"),
        ("x.npz", b"", "not a readable npz file"),
        ("x.npz", b"PK\x03\x04 damaged", "not a readable npz file"),
        ("x.npy", b"\x93NUMPY", "not a readable npz file"),
        ("x.zip", b"no zip", "not a whole zip file"),
    ],
)
def test_files_that_are_no_data(model, tmp_path, capsys, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(capsys, tmp_path, words, model, "--labels", LABELS, "--data", tmp_path / name)


def test_pictures_that_do_not_fit(model, tmp_path, capsys):
    folder = pictures(tmp_path / "p", ["cat", "dog", "cow"])
    refused(capsys, tmp_path, "none of the network's labels: 'cow'; labels without a folder: owl",
            model, "--labels", LABELS, "--data", folder)  # fmt: skip
    refused(capsys, tmp_path, "'digits' has 10 classes, the network 3", model, "--labels", LABELS, "--data", "digits")
    refused(capsys, tmp_path, "no class folder", model, "--labels", LABELS, "--data", tmp_path / "p/cat")
    (folder / "cow").rename(folder / "owl")
    (folder / "owl/two.png").write_text("text")
    refused(capsys, tmp_path, "two.png", model, "--labels", LABELS, "--data", folder)
    other = tiny(1, shape=(1, 9, 8), outputs=10).save(tmp_path / "ten.onnx")
    refused(capsys, tmp_path, "are 8 x 8 pixels of 1 channel(s); the network takes 9 x 8", other, "--data", "digits")


def test_a_network_without_pictures_takes_no_folder(tmp_path, capsys):
    net = Net((6,), samples=20)
    net.finish(net.dense(net.input, 3))
    folder = pictures(tmp_path / "p", ["a", "b", "c"])
    refused(capsys, tmp_path, "the network takes no pictures", net.save(tmp_path / "net.onnx"), "--data", folder)


def maps():
    net = Net((1, 6, 6), samples=4)
    return net.finish(net.conv(net.input, 2))


def one_output():
    net = Net((5,), samples=4)
    return net.finish(net.dense(net.input, 1))


@pytest.mark.parametrize("make", [maps, one_output])
def test_only_classifiers_become_recipes(make, data, tmp_path, capsys):
    refused(capsys, tmp_path, "not one row of two or more scores", make().save(tmp_path / "net.onnx"), "--data", data)


def test_files_that_are_no_network(data, tmp_path, capsys):
    (tmp_path / "x.onnx").write_text("text")
    for path, words in ((tmp_path / "x.onnx", "not a readable ONNX file"), (tmp_path, "it is a folder"),
                        (tmp_path / "none.onnx", "there is no such file")):  # fmt: skip
        refused(capsys, tmp_path, words, path, "--labels", LABELS, "--data", data)
    net = Net((1, 8, 8), samples=4)
    weights = net.constant(np.random.default_rng(0).normal(size=(3, 1, 3, 3)), "float.weight")
    net.head(net.relu_quant(net.conv(net.input, 3, weights=weights, name="float")), 3).save(tmp_path / "float.onnx")
    refused(capsys, tmp_path, "its weights are not quantised", tmp_path / "float.onnx", "--data", data)


def test_files_that_may_not_be_read(model, data, tmp_path, capsys, monkeypatch):
    """Whoever the tests run as: the system's refusal is made up."""

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    for module, name, words in ((onnxfile.Path, "read_bytes", "the file cannot be read: Permission denied"),
                                (elsewhere.zipfile, "ZipFile", "the test data cannot be read: Permission denied")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, denied)
            refused(capsys, tmp_path, words, model, "--labels", LABELS, "--data", data)
            if name == "ZipFile":
                assert cli.main(["verify", str(model), "--inputs", str(data)]) == 2
                assert "the inputs cannot be read: Permission denied" in capsys.readouterr().err


def test_other_options_that_do_not_fit(model, data, tmp_path, capsys):
    inputs = npz(tmp_path / "i.npz", pixels=None, inputs=np.zeros((60, 1, 8, 8)))
    for options, words in (
        (("--data", data, "--board", "pynq-z9"), "did you mean"),
        (("--data", data, "--name", ".."), "--name .. is not allowed"),
        (("--data", data, "--name", "a/b"), "--name a/b is not allowed"),
        (("--data", data, "--name=-x"), "--name -x is not allowed"),
        (("--data", data, "--mean", "0.5"), "--mean and --std go together"),
        (("--data", data, "--mean", "0.5", "--std", "0"), "a deviation of 0 cannot be divided by"),
        (("--data", data, "--mean", "1", "2", "--std", "1", "1"), "2 numbers of mean, the network takes 1 channel"),
        (("--data", data, "--input-range", "3", "9"), "every pixel becomes the same code"),
        (("--data", inputs, "--input-range", "0", "1"), "input_range is about pixels"),
        (("--data", inputs, "--mean", "0", "--std", "1"), "mean is about pixels"),
    ):
        refused(capsys, tmp_path, words, model, "--labels", LABELS, *options)
    for word in ("nan", "x", "1/0", "1e999", "0x1", ""):
        with pytest.raises(SystemExit):
            cli.main(["import", str(model), "--data", str(data), "--input-range", "0", word])
        assert "is not a number, nor a fraction" in capsys.readouterr().err


# -- never half, never over something --------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_name_that_is_taken(model, data, tmp_path, capsys):
    words = (model, "--labels", LABELS, "--data", data, "--to", tmp_path / "to", "--name", "n")
    assert run(capsys, *words)[0] == 0
    before = contents(tmp_path / "to")
    code, _, err = run(capsys, *words[:2], "x,y,z", *words[3:])
    assert code == 2 and "--force" in err and contents(tmp_path / "to") == before
    assert run(capsys, *words[:2], "x,y,z", *words[3:], "--force")[0] == 0
    assert config.load(tmp_path / "to/n/n.toml").imported.labels == ["x", "y", "z"]
    assert len(contents(tmp_path / "to")) == 2 and len(list((tmp_path / "to").iterdir())) == 1


@pytest.mark.parametrize("there", ["n/notes.txt", "n", "n/n.toml", "link"])
def test_force_replaces_nothing_else(model, data, tmp_path, capsys, there):
    to = tmp_path / "to"
    words = (model, "--labels", LABELS, "--data", data, "--to", to, "--name", "n")
    if there == "n":
        to.mkdir()
        (to / "n").write_text("mine")
    elif there == "link":
        (tmp_path / "other").mkdir()
        to.mkdir()
        (to / "n").symlink_to(tmp_path / "other")
    else:
        assert run(capsys, *words)[0] == 0
        (to / there).write_text("mine")
    before = contents(tmp_path)
    code, _, err = run(capsys, *words, "--force")
    assert code == 2 and "--force does not replace it" in err and contents(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_import_leaves_nothing(model, data, tmp_path, capsys, monkeypatch, error, force):
    words = (model, "--labels", LABELS, "--data", data, "--to", tmp_path / "to")
    if force:
        run(capsys, *words)
    before = contents(tmp_path)

    def stop(*_, **__):
        raise error

    monkeypatch.setattr(importing.config, "load", stop)
    code, _, err = run(capsys, *words, *["--force"] * force)
    assert code == (130 if error is KeyboardInterrupt else 2), err
    assert contents(tmp_path) == before and [path.name for path in (tmp_path / "to").iterdir()] == ["my-net"] * force


def test_what_a_killed_import_left_is_removed_by_the_next(model, data, tmp_path, capsys):
    left = tmp_path / "to/.my-net.partial-12345678"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    assert run(capsys, model, "--labels", LABELS, "--data", data, "--to", tmp_path / "to")[0] == 0
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["my-net"]


def test_a_folder_that_cannot_be_written(model, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, model, "--labels", LABELS, "--data", data, "--to", tmp_path / "file")
    assert code == 2 and "the recipe cannot be written" in err and "--to" in err


# -- recipes ---------------------------------------------------------------------------------------------------------

MINIMAL = f'[imported]\nmodel = "m.onnx"\nsha256 = "{"0" * 64}"\nlabels = ["a", "b"]\ndata = "digits"\n'


def problems(tmp_path, text, *overrides):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(config.RecipeError) as caught:
        config.load(tmp_path / "r.toml", overrides)
    return caught.value.problems


def test_sections_of_making_a_network_are_not_for_imported_ones(tmp_path):
    making = "".join(f"[{section}]\n" for section in config.MAKING)
    found = problems(tmp_path, MINIMAL + making)
    assert len(found) == len(config.MAKING)
    assert found[2].startswith(f"{tmp_path}/r.toml:8: [train] and [imported] exclude each other: ")
    [found] = problems(tmp_path, MINIMAL, "train.epochs=3")
    assert found.startswith("--set train.epochs=3: [train] and [imported] exclude each other")
    (tmp_path / "r.toml").write_text(MINIMAL)
    assert not set(config.MAKING) & set(config.load(tmp_path / "r.toml").dump())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('sha256 = "x"', "r.toml:3: imported.sha256 = \"x\" is not allowed; allowed: 64 hexadecimal digits"),
        ('labels = ["a"]', "imported.labels"),
        ('labels = ["a", "a"]', "imported.labels holds a name twice"),
        ('labels = ["a", " "]', "imported.labels holds a name twice, or an empty one"),
        ('data = "mnist"', '"digits" or "cifar10" or "folder" or "npz"'),
        ('data = "npz"', "imported.test is needed by the data 'npz'"),
        ("mean = [0.5]", "imported.mean and imported.std go together"),
        ("mean = [0.5]\nstd = [0.0]", "a list of a number, 0 < value"),
        ("input_range = [0]", "imported.input_range"),
        ("modle = 1", "unknown key 'modle' in [imported]; did you mean 'model'?"),
        ('test = "x"', "imported.test has no meaning for the data 'digits'"),
    ],
)
def test_wrong_recipes(tmp_path, line, words):
    key = line.partition(" =")[0]
    kept = [old for old in MINIMAL.splitlines() if not old.startswith(f"{key} =")]
    place = next((i for i, old in enumerate(MINIMAL.splitlines()) if old.startswith(f"{key} =")), len(kept))
    found = problems(tmp_path, "\n".join([*kept[:place], line, *kept[place:]]) + "\n")
    assert len(found) == 1 and words in found[0], found


def test_paths_of_the_command_line_are_from_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "r.toml").write_text(MINIMAL.replace('"digits"', '"npz"') + 'test = "x.npz"\n')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = config.load("../r.toml")
    assert recipe.resolve(recipe.imported.test) == tmp_path / "x.npz"
    recipe = config.load("../r.toml", ["imported.test=y.npz"])
    assert recipe.resolve(recipe.imported.test) == tmp_path / "here/y.npz"


# -- pixels ----------------------------------------------------------------------------------------------------------

SIGNED = Quantizer(-7, -128, 127, "ROUND")
UNSIGNED = Quantizer(-8, 0, 255, "ROUND")


def table(quantizer, channels, **options):
    return pixels.table(quantizer, pixels.values(channels, **options))


def test_tables_are_what_torch_computes():
    """As torchvision's ToTensor and Normalize, and Brevitas' quantizer behind them, in float32."""
    random = np.random.default_rng(0)
    levels = torch.arange(256, dtype=torch.uint8)
    for _ in range(50):
        mean, std = random.uniform(0, 1, 3).round(3), random.uniform(0.1, 1, 3).round(3)
        found = table(SIGNED, 3, mean=mean.tolist(), std=std.tolist())
        values = levels.to(torch.float32).div(255).repeat(3, 1)
        shift, spread = (torch.tensor(numbers, dtype=torch.float32)[:, None] for numbers in (mean, std))
        values.sub_(shift).div_(spread)
        expected = torch.round(values / 2.0**-7).clamp(-128, 127)
        assert np.array_equal(found, expected.numpy())
    assert np.array_equal(table(UNSIGNED, 1)[0], torch.round(levels.float().div(255) * 256).clamp(0, 255))


def test_tables_of_common_ranges():
    assert table(UNSIGNED, 1, input_range=[0, 255 / 256])[0].tolist() == list(range(256))
    assert table(Quantizer(0, 0, 255, "ROUND"), 1, input_range=[0, 255])[0].tolist() == list(range(256))
    symmetric = table(SIGNED, 2, input_range=[-1, 1])
    assert symmetric.shape == (2, 256) and (symmetric.min(), symmetric.max()) == (-128, 127)
    halves = table(Quantizer(0, 0, 9, "ROUND"), 1, input_range=[0, 127.5])[0]
    assert halves[:8].tolist() == [0, 0, 1, 2, 2, 2, 3, 4]  # half to even
    floored = table(Quantizer(0, 0, 9, "FLOOR"), 1, input_range=[0, 127.5])[0]
    assert floored[:8].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert pixels.clipped(UNSIGNED, table(UNSIGNED, 1, input_range=[0, 2])) == pytest.approx(0.5, abs=0.01)


def test_the_board_uses_the_same_table():
    random = np.random.default_rng(1)
    made = table(SIGNED, 3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    bytes_ = random.integers(0, 256, (5, 4, 6, 3), np.uint8)
    there = onboard.to_codes(bytes_, 8, json.loads(json.dumps(made.tolist())))
    assert np.array_equal(there, pixels.apply(made, bytes_)) and there.min() < 0


# -- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 3, 3), (4, 4, 4), (1, 5, 2), (5,)])
@pytest.mark.parametrize("kind", ["inputs", "pixels"])
def test_samples_reach_the_wire_and_the_file(tmp_path, shape, kind):
    """Codes 0 to 255 that are their own pixels; the file gets the values it was built for."""
    net = Net(shape, samples=7)
    if len(shape) == 1:
        net.finish(net.dense(net.input, 3))
    else:
        net.head(net.relu_quant(net.conv(net.input, 2)))
    found = imported.examine(net.save(tmp_path / "net.onnx"))
    in_file = np.ldexp(net.inputs, 8).astype(np.uint8)
    np.savez(tmp_path / "x.npz", labels=np.arange(7) % found.outputs, **{kind: in_file})
    options = {"input_range": (0, 255 / 256)} if kind == "pixels" else {}
    tests = imported.test_set(found, "npz", tmp_path / "x.npz", ["a"] * found.outputs, **options)
    assert np.array_equal(tests.codes, net.codes) and np.array_equal(tests.values(slice(2, 5)), net.inputs[2:5])
    assert tests.picture is (kind == "pixels" and shape[0] in (1, 3))
    if found.picture:
        last = np.moveaxis(in_file, 1, -1)
        assert np.array_equal(imported.in_file_order(found, last), in_file)
        assert np.array_equal(imported.in_file_order(found, in_file, back=True), last)


def by_position():
    """A file that weighs each place of a picture before it quantizes."""
    net = Raw((1, 3, 3))
    weights = np.linspace(0.5, 1.5, 9, dtype=np.float32).reshape(1, 1, 3, 3)
    x = net.node("Mul", ["input", net.constant(weights)], net.values["input"] * torch.from_numpy(weights))
    return net.head(net.body(net.convolve(net.quant(x, 6, -4), 3, (2, 2))), 4)


@pytest.mark.parametrize(
    ("build", "alone"), [(normalized, True), (flattened_signs, True), (by_position, False), (scaled, False)]
)
def test_what_the_file_computes_before_it_quantizes(tmp_path, build, alone):
    """The table is what comes of all that; where one cannot say it, or there are two channels, there is no picture."""
    net = build()
    found = imported.examine(net.save(tmp_path / "net.onnx"))
    bytes_ = np.random.default_rng(0).integers(0, 256, net.inputs.shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", pixels=bytes_, labels=np.zeros(len(bytes_), int))
    tests = imported.test_set(found, "npz", tmp_path / "x.npz", ["a"] * found.outputs, mean=[0.25], std=[0.5])
    values = np.float32((np.float32(bytes_ / 255) - np.float32(0.25)) / np.float32(0.5))
    assert np.array_equal(tests.values(slice(None)), values)
    executed = next(iter(graph.execute(found.network.front, values).values()))
    codes = np.ldexp(executed.astype(np.float64), -found.quantizer.lsb)
    codes = np.moveaxis(codes, 1, -1) if codes.ndim == 4 else codes
    assert np.array_equal(tests.codes, codes) and len(np.unique(codes)) > 1
    assert tests.picture is alone and (found.picture is None) is (build is scaled)
    if alone:
        pictures = np.moveaxis(bytes_, 1, -1)
        assert np.array_equal(onboard.to_codes(pictures, 8, tests.table.tolist()).reshape(codes.shape), codes)


def test_parameters_are_those_that_were_trained(tmp_path):
    net = tiny(5, shape=(1, 8, 8), filters=4, outputs=3)
    found = imported.examine(net.save(tmp_path / "net.onnx"))
    assert imported.parameters(found) == (4 * 9 + 4) + (64 * 3 + 3)


# -- the run folder --------------------------------------------------------------------------------------------------


def test_a_stage_in_the_place_of_others(toy):  # noqa: F811
    first, *rest = toy.flow.STAGES
    stages = [replace(first, name="x", stands_for=("a",)), *rest]
    assert toy.execute(stages=stages) == ["ran", "ran", "ran"]
    assert toy.execute(stages=stages) == ["finished"] * 3
    manifest = json.loads((toy.build / "toy-table/b/manifest.json").read_text())
    assert set(manifest["inputs"]) == {"x"} and not (toy.build / "toy-table/a").exists()
    assert [one.name for one in toy.run(stages=stages).until("b")] == ["x", "b"]
    (toy.build / "toy-table/x/parts/0.txt").write_text("9")  # same size
    assert toy.execute(stages=stages, verify=True) == ["ran", "finished", "finished"]


def test_two_kinds_of_recipe_do_not_share_a_run_folder(model, tmp_path, capsys):
    recipe = tmp_path / "net.toml"
    recipe.write_text('name = "net"\n[data]\nname = "digits"\n[model]\nname = "cnn_small"\n')
    assert cli.main(["run", str(recipe), "--until", "data", "--build-dir", str(tmp_path / "b")]) == 0
    run(capsys, model, "--labels", LABELS, "--data", npz(tmp_path / "x.npz"), "--name", "net", "--to", tmp_path / "to")
    code = cli.main(["run", str(tmp_path / "to/net/net.toml"), "--build-dir", str(tmp_path / "b")])
    err = capsys.readouterr().err
    assert code == 2 and "this run folder holds a network of another recipe, net.toml" in err


def test_a_changed_model_is_seen(model, tmp_path, capsys):
    words = ("--labels", LABELS, "--data", npz(tmp_path / "x.npz"), "--to", tmp_path / "to")
    run(capsys, model, *words)
    recipe, copy = tmp_path / "to/my-net/my-net.toml", tmp_path / "to/my-net/my-net.onnx"
    tiny(6, shape=(1, 8, 8)).save(copy)
    for words in ("sha256", "is not beside the recipe"):
        code = cli.main(["run", str(recipe), "--until", "import", "--build-dir", str(tmp_path / "b")])
        err = capsys.readouterr().err
        assert code == 1 and "gate 'the model is the one imported' is shut" in err and words in err, err
        copy.unlink(missing_ok=True)


def test_summary_tells_nothing_of_a_training(tmp_path):
    """Folders of stages that only the other kind of recipe has are not looked at."""
    recipe = {"imported": {"model": "a/net.onnx", "sha256": "f" * 64}}
    last = {"schema": 1, "run": "r", "recipe": recipe, "recipe_path": "r.toml", "board": "b", "place": "simulated",
            "command": "c", "started": "s", "pending": [], "stages": []}  # fmt: skip
    (tmp_path / "last_run.json").write_text(json.dumps(last))
    manifest = {name: {} for name in ("files", "inputs", "input_keys", "config", "versions", "metrics")}
    manifest |= {"schema": 1, "stage": "train", "key": "k", "content": "c", "seconds": 0, "gates": []}
    manifest["metrics"] = {"accuracy_test": {"value": 1.0, "evidence": "trained", "interval": None, "unit": None}}
    for name in ("train", "import"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest | {"stage": name}))
    assert set(summary.manifests(tmp_path)) == {"import"}
    found = summary.collect(tmp_path)
    assert found["imported"] == {"model": "net.onnx", "sha256": "f" * 64} and found["trim"] is None
    assert set(found["accuracy"]) == {"imported", "csim", "board"} and set(found["macs"]) == {"imported"}
    said: list[str] = []
    console = SimpleNamespace(print=lambda *words, **_: said.append(str(words[0])))
    summary.show(found, console)
    assert any("not trained here: imported from net.onnx, sha256 ffffffffffffffff" in text for text in said)
    (tmp_path / "last_run.json").write_text(json.dumps(last | {"recipe": {"imported": 3}}))
    with pytest.raises(summary.NoRun, match="is damaged"):
        summary.collect(tmp_path)
