"""Recipes: what is accepted, and what a mistake is told."""

import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config
from pipeline.config import ROOT, RecipeError

MINIMAL = '[data]\nname = "digits"\n[model]\nname = "cnn_small"\n'


def write(tmp_path, text, name="mine.toml"):
    file = tmp_path / name
    file.write_text(text)
    return file


def problems(tmp_path, text, *overrides, **options):
    with pytest.raises(RecipeError) as caught:
        config.load(write(tmp_path, text), overrides, **options)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize("file", sorted((ROOT / "runs").glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_recipes_are_valid(file):
    assert config.load(file).name == file.stem


def test_defaults_are_filled_in(tmp_path):
    recipe = config.load(write(tmp_path, MINIMAL))
    assert (recipe.name, recipe.board, recipe.quantize.weights, recipe.trim.of) == ("mine", "pynq-z2", 4, "macs")


def test_misspelt_key_gets_the_nearest_file_and_line(tmp_path):
    [problem] = problems(tmp_path, MINIMAL + "[trim]\nmethod = 'none'\nratoi = 0.3\n")
    assert problem.startswith(f"{tmp_path}/mine.toml:7: unknown key 'ratoi' in [trim]; did you mean 'ratio'?")
    assert "statistic" in problem


def test_misspelt_section(tmp_path):
    [problem] = problems(tmp_path, MINIMAL + "\n[quantise]\nweights = 4\n")
    assert "mine.toml:6: unknown key 'quantise' in the recipe; did you mean 'quantize'?" in problem


def test_unknown_key_without_a_near_one(tmp_path):
    [problem] = problems(tmp_path, "zzz = 1\n" + MINIMAL)
    assert "mine.toml:1: unknown key 'zzz' in the recipe; known: benchmark, board" in problem


@pytest.mark.parametrize(
    ("line", "section", "words"),
    [
        ("weights = 0", "quantize", "quantize.weights = 0 is not allowed; allowed: a whole number, 2 <= value <= 8"),
        ("weights = 33", "quantize", "quantize.weights = 33 is not allowed; allowed: a whole number, 2 <= value <= 8"),
        ("activations = 0", "quantize", "a whole number, 2 <= value <= 8"),
        ("input = 9", "quantize", "a whole number, 2 <= value <= 8"),
        ("bias = 33", "quantize", "a whole number, 2 <= value <= 16"),
        ("weights = 4.5", "quantize", "quantize.weights = 4.5 is not allowed; allowed: a whole number"),
        ("weights = true", "quantize", "quantize.weights = true is not allowed; allowed: a whole number"),
        ("weights = '4'", "quantize", 'quantize.weights = "4" is not allowed; allowed: a whole number'),
        ("ratio = 1", "trim", "trim.ratio = 1 is not allowed; allowed: a number, 0 <= value < 1"),
        ("ratio = 1.5", "trim", "0 <= value < 1"),
        ("ratio = -0.1", "trim", "0 <= value < 1"),
        ("ratio = nan", "trim", "0 <= value < 1"),
        ("of = 'flops'", "trim", 'allowed: "macs" or "parameters" or "filters"'),
        ("epochs = 0", "train", "train.epochs = 0 is not allowed; allowed: a whole number, 1 <= value"),
        ("learning_rate = 0", "train", "allowed: a number, 0 < value"),
        ("clock_mhz = 0", "hls", "a number, 1 <= value <= 1000"),
        ("reuse_factor = 0", "hls", 'allowed: "auto" or a whole number, 1 <= value'),
        ("reuse_factor = 'much'", "hls", 'allowed: "auto" or a whole number, 1 <= value'),
    ],
)
def test_value_out_of_range(tmp_path, line, section, words):
    found = problems(tmp_path, MINIMAL + f"\n[{section}]\n{line}\n")
    assert all(problem.startswith(f"{tmp_path}/mine.toml:7: {section}.") for problem in found)
    assert words in found[0]
    assert len(found) == 1


BOUNDS = [
    ("seed", 0, 2**63 - 1, ""), ("seed", 0, 2**63 - 1, "data"),
    *((key, 1, 100_000, "train") for key in ("epochs",)), ("batch_size", 1, 65_536, "train"),
    ("steps", 1, 1000, "trim"), ("finetune_epochs", 0, 100_000, "trim"), ("min_filters", 1, 4096, "trim"),
    ("epochs", 0, 100_000, "quantize"), ("batch_size", 1, 65_536, "quantize"), ("patience", 1, 100_000, "quantize"),
    ("reuse_factor", 1, 2**31 - 1, "hls"), ("samples", 0, 1_000_000, "export"), ("samples", 1000, 1_000_000, "csim"),
    ("modes_samples", 64, 1_000_000, "csim"), ("singles", 1000, 1_000_000, "benchmark"),
    ("warmup", 0, 1_000_000, "benchmark"), ("conv1", 1, 4096, "model.widths"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "low", "high", "section"), BOUNDS, ids=lambda value: str(value))
def test_whole_numbers_have_two_bounds(tmp_path, key, low, high, section):
    file, path = write(tmp_path, MINIMAL), f"{section}.{key}".lstrip(".")
    for good in (low, high):
        assert config.load(file, [f"{path}={good}"]).get(path) == good
    for bad in (low - 1, high + 1, 10**30):
        [problem] = problems(tmp_path, MINIMAL, f"{path}={bad}")
        told = f"--set {path}={bad}: {path} = {bad} is not allowed; allowed: "
        assert problem.startswith(told)
        assert f"a whole number, {low} <= value <= {high}" in problem or f"{low} <= value < {high + 1}" in problem


@pytest.mark.parametrize("path", ["train.learning_rate", "trim.learning_rate", "quantize.learning_rate"])
def test_learning_rates_have_an_upper_bound(tmp_path, path):
    assert config.load(write(tmp_path, MINIMAL), [f"{path}=10"]).get(path) == 10
    for bad in ("10.1", "1e30", "inf", "0"):
        [problem] = problems(tmp_path, MINIMAL, f"{path}={bad}")
        assert problem.endswith("is not allowed; allowed: a number, 0 < value <= 10")
    assert "0 <= value <= 10" in problems(tmp_path, MINIMAL, "train.weight_decay=11")[0]


@pytest.mark.parametrize("line", ["csim]\nsamples = 999", "csim]\nmodes_samples = 63", "benchmark]\nsingles = 999"])
def test_a_recipe_cannot_weaken_the_proof(tmp_path, line):
    section, _, key = line.partition("]\n")
    [problem] = problems(tmp_path, MINIMAL + f"[{line}\n")
    assert problem.startswith(f"{tmp_path}/mine.toml:6: {section}.{key} is not allowed; allowed: a whole number, ")


def test_layer_sections(tmp_path):
    text = MINIMAL + "[quantize.layers.conv1]\nweights = 8\n[hls.layers.conv1]\nreuse_factor = 9\n"
    recipe = config.load(write(tmp_path, text))
    assert recipe.quantize.layers["conv1"].weights == 8
    assert recipe.hls.layers["conv1"].reuse_factor == 9
    [problem] = problems(tmp_path, MINIMAL + "[quantize.layers.conv1]\nweights = 9\n")
    assert "mine.toml:6: quantize.layers.conv1.weights = 9" in problem and "2 <= value <= 8" in problem
    [problem] = problems(tmp_path, MINIMAL + "[quantize]\nlayers = {conv1 = {wieghts = 4}}\n")
    assert "mine.toml:6: unknown key 'wieghts' in [quantize.layers.conv1]; did you mean 'weights'?" in problem


def test_layers_the_network_does_not_have(tmp_path):
    found = problems(
        tmp_path,
        MINIMAL + "widths = {conv1 = 8, covn2 = 8}\n[quantize.layers.conv9]\nweights = 4\n"
        "[quantize.layers.classifier]\nactivations = 4\n",
    )
    assert "mine.toml:5: cnn_small has no convolution 'covn2'; did you mean 'conv2'?" in found[0]
    assert "mine.toml:6: cnn_small has no layer 'conv9'" in found[1] and "classifier" in found[1]
    assert "mine.toml:8: the classifier's outputs" in found[2]
    assert len(found) == 3


def test_unknown_names_come_with_the_list(tmp_path):
    found = problems(tmp_path, "board = 'pynq-z3'\n[data]\nname = 'digit'\n[model]\nname = 'lenet'\n")
    assert "mine.toml:1: unknown board 'pynq-z3'; did you mean 'pynq-z2'? (known: arty-z7-20" in found[0]
    assert "mine.toml:5: unknown model 'lenet'" in found[1] and "cnn_small" in found[1] and "resnet8" in found[1]
    assert "layers" not in found[1]  # a helper module beside the models is no model
    assert "mine.toml:3: unknown data set 'digit'; did you mean 'digits'? (known: cifar10, digits, folder)" in found[2]


def test_all_problems_at_once(tmp_path):
    found = problems(tmp_path, "bord = 1\n[data]\nname = 'digits'\n[trim]\nratio = 2\n[quantize]\nweights = 0\n")
    text = "\n".join(found)
    assert len(found) == 4
    for word in ("'bord'", "the section 'model' is missing", "trim.ratio", "quantize.weights"):
        assert word in text


def test_toml_mistake_tells_the_line(tmp_path):
    with pytest.raises(RecipeError, match="not valid TOML") as caught:
        config.load(write(tmp_path, MINIMAL + "[trim\n"))
    assert caught.value.where == f"{tmp_path}/mine.toml:5"


def test_file_that_is_none(tmp_path):
    write(tmp_path, MINIMAL, "other.toml")
    with pytest.raises(RecipeError, match="does not exist") as caught:
        config.load(tmp_path / "mine.toml")
    assert "other.toml" in caught.value.fix
    with pytest.raises(RecipeError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        config.load(tmp_path / "binary.toml")


def test_only_recipes_are_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RecipeError) as caught:
        config.load("nix.toml")
    assert caught.value.fix.startswith("recipes here: runs/") and "pyproject" not in caught.value.fix
    assert all(word.strip().startswith("runs/") for word in caught.value.fix.partition(":")[2].split(","))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[project]\n", "pyproject.toml")
    write(tmp_path, "[data\n", "broken.toml")
    with pytest.raises(RecipeError) as caught:
        config.load("nix.toml")
    assert caught.value.fix == "name an existing TOML file"


@pytest.mark.parametrize(
    ("file", "plain"), [("my recipe", "my-recipe"), ("für übung", "fur-ubung"), ("Größe", "groe"), ("数字", "my-run")]
)
def test_file_name_that_is_no_name_of_a_run(tmp_path, file, plain):
    with pytest.raises(RecipeError) as caught:
        config.load(write(tmp_path, MINIMAL, f"{file}.toml"))
    [problem] = caught.value.problems
    assert f"the file's name, {file.lower()!r}, is not allowed" in problem and "lower-case letters" in problem
    assert f'add name = "{plain}" as the first line of the recipe' in problem
    assert config.load(write(tmp_path, f'name = "{plain}"\n{MINIMAL}', f"{file}.toml")).name == plain
    assert 'name = "für" is not allowed' in problems(tmp_path, f'name = "für"\n{MINIMAL}')[0]


def test_bad_name(tmp_path):
    assert "lower-case letters" in problems(tmp_path, "name = '../up'\n" + MINIMAL)[0]


def test_set_overrides(tmp_path):
    recipe = config.load(
        write(tmp_path, MINIMAL),
        ["trim.ratio=0.25", "hls.reuse_factor=auto", "train.augment = shift", "quantize.layers.conv1.weights=8",
         "model.widths={conv1=8}", 'name="other"'],
        "pynq-z1",
    )  # fmt: skip
    assert recipe.trim.ratio == 0.25
    assert recipe.hls.reuse_factor == "auto"
    assert recipe.train.augment == "shift"
    assert recipe.quantize.layers["conv1"].weights == 8
    assert recipe.model.widths == {"conv1": 8}
    assert (recipe.name, recipe.board) == ("other", "pynq-z1")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("trim.ratio=1", "--set trim.ratio=1: trim.ratio = 1 is not allowed"),
        ("trim.ratoi=0.5", "--set trim.ratoi=0.5: unknown key 'ratoi' in [trim]; did you mean 'ratio'?"),
        ("modle.name=x", "--set modle.name=x: unknown key 'modle' in the recipe; did you mean 'model'?"),
        ("trim.ratio", "--set trim.ratio: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("board.part=3", "--set board.part=3: board is not a section"),
        ("model.widths={conv1=", "--set model.widths={conv1=: the value is not valid TOML"),
        ("model.name=alexnet", "--set model.name=alexnet: unknown model 'alexnet'"),
    ],
)
def test_wrong_overrides_name_the_option(tmp_path, option, words):
    found = problems(tmp_path, "board = 'pynq-z2'\n" + MINIMAL, option)
    assert len(found) == 1 and found[0].startswith(words)


def test_board_option_is_named(tmp_path):
    assert problems(tmp_path, MINIMAL, board_name="spartan")[0].startswith("--board spartan: unknown board")


def test_keys_of_other_data_sets(tmp_path):
    text = '[data]\nname = "{}"\n{}\n[model]\nname = "cnn_small"\n'
    [problem] = problems(tmp_path, text.format("digits", "train='x'"))
    assert "data.train has no meaning for the data set 'digits'" in problem
    assert "the data set 'cifar10' needs data.root" in problems(tmp_path, text.format("cifar10", ""))[0]
    assert "the data set 'folder' needs data.train" in problems(tmp_path, text.format("folder", "size=[8, 8]"))[0]
    assert "[height, width]" in problems(tmp_path, text.format("folder", "train='x'\nsize=[8]"))[0]


def test_paths_are_relative_to_who_gave_them(tmp_path, monkeypatch):
    text = '[data]\nname = "folder"\ntrain = "pictures"\nsize = [8, 8]\n[model]\nname = "cnn_small"\n'
    (tmp_path / "runs").mkdir()
    (tmp_path / "here").mkdir()
    file = write(tmp_path / "runs", text)
    monkeypatch.chdir(tmp_path / "here")
    recipe = config.load(file)
    assert recipe.resolve(recipe.data.train) == tmp_path / "runs/pictures"
    recipe = config.load(file, ["data.train=mine"])
    assert recipe.resolve(recipe.data.train) == tmp_path / "here/mine"


WORDS = st.text(alphabet="abcxyz_019-", min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(
    ratio=st.floats(0, 1, exclude_max=True),
    bits=st.dictionaries(WORDS | st.text(min_size=1, max_size=5), st.integers(2, 8), max_size=3),
    reuse=st.just("auto") | st.integers(1, 1000),
)
def test_dump_can_be_read_again(ratio, bits, reuse):
    recipe = config.Recipe(
        name="x",
        data=config.Data(name="digits"),
        model=config.Model(name="cnn_small"),
        trim=config.Trim(ratio=ratio),
        quantize=config.Quantize(layers={name: config.LayerBits(weights=n) for name, n in bits.items()}),
        hls=config.Hls(reuse_factor=reuse),
    )
    # Layer names are arbitrary here, so this is read as TOML: load() would look for them in the network.
    again = config.restore(tomllib.loads(recipe.to_toml()), "x.toml")
    assert again.dump() == recipe.dump()
    assert again.to_toml() == recipe.to_toml()


def test_models_are_listed_without_importing_torch():
    code = "import sys; from pipeline.config import networks, datasets; networks.names(); datasets()"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
