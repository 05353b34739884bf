"""digits, cifar10 and the stage: divisions, gates, bytes that repeat."""

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from boards.errors import SlimgateError
from pipeline import gates
from pipeline.config import Recipe
from pipeline.datasets import cifar10, digits, source, split
from pipeline.stages import data as stage


class Context:
    """As much of the engine's context as the stage uses."""

    def __init__(self, recipe, folder: Path):
        self.recipe, self.folder, self.gates = recipe, folder, []
        folder.mkdir(parents=True, exist_ok=True)

    def progress(self, items, label):
        return items

    def gate(self, name, passed, detail, **rest):
        self.gates.append(gates.check(name, passed, detail, **rest)["name"])


def recipe(**data):
    return Recipe.model_validate({"name": "trial", "data": data, "model": {"name": "cnn_small"}})


# --- digits and the division ---


def test_digits_are_1797_pictures_divided_without_overlap():
    splits = digits.load(recipe(name="digits"))["splits"]
    assert {name: len(part["labels"]) for name, part in splits.items()} == {
        "train": 1151,
        "val": 287,
        "test": 359,
    }
    assert stage.in_two_splits(splits) == []
    for part in splits.values():
        assert part["pixels"].dtype == np.uint8 and part["labels"].dtype == np.int64
        assert part["pixels"].max() == 255
        share = np.bincount(part["labels"]) / len(part["labels"])
        assert abs(share - 0.1).max() < 0.01
    assert set(np.unique(splits["train"]["pixels"])) <= {min(16 * level, 255) for level in range(17)}


def test_digits_division_follows_the_seed_only():
    first, again = (digits.load(recipe(name="digits"))["splits"]["test"]["pixels"] for _ in range(2))
    other = digits.load(recipe(name="digits", seed=1))["splits"]["test"]["pixels"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_digits_that_are_not_the_published_ones_are_refused(monkeypatch):
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    with pytest.raises(digits.DigitsError, match="not the published"):
        digits.load(recipe(name="digits"))


def test_adding_pictures_moves_no_old_one_when_the_old_division_is_given():
    names = [f"{i}" for i in range(50)]
    settings = {"validation": 0.2, "test_fraction": 0.2, "seed": 3}
    old = dict(zip(names, split.assign(names, [0] * 50, ["a"], **settings), strict=True))
    more = [f"new{i}" for i in range(25)] + names
    result = dict(zip(more, split.assign(more, [0] * 75, ["a"], **settings, old=old), strict=True))
    assert all(result[name] == old[name] for name in names)
    counts = {word: list(result.values()).count(word) for word in split.SPLITS}
    assert counts == {"train": 48, "val": 12, "test": 15}


def test_a_class_too_small_for_every_split_is_named():
    with pytest.raises(split.SplitError, match="class 'b' has 2"):
        split.assign(list("uvwxyz"), [0, 0, 0, 0, 1, 1], ["a", "b"], validation=0.2, test_fraction=0.2, seed=0)


# --- the stage ---


def test_stage_writes_the_same_bytes_twice(tmp_path):
    for name in ("one", "two"):
        stage.run(Context(recipe(name="digits"), tmp_path / name))
    for file in ("train.npz", "val.npz", "test.npz", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    description = json.loads((tmp_path / "one" / "dataset.json").read_text())
    assert description["shape"] == [8, 8, 1] and description["counts"]["test"] == 359
    assert description["preprocess"] == {"size": [8, 8], "color": "gray", "resize": "bilinear"}
    assert str(tmp_path) not in (tmp_path / "one" / "dataset.json").read_text()
    with np.load(tmp_path / "one" / "test.npz", allow_pickle=False) as test:
        assert test["pixels"].shape == (359, 8, 8, 1)


def _altered(monkeypatch, change):
    loaded = digits.load(recipe(name="digits"))
    change(loaded["splits"])
    monkeypatch.setattr(digits, "load", lambda recipe, *, progress: loaded)


def test_gate_shuts_when_a_picture_is_in_two_splits(tmp_path, monkeypatch):
    def leak(splits):
        splits["test"]["pixels"][5] = splits["train"]["pixels"][7]

    _altered(monkeypatch, leak)
    with pytest.raises(gates.GateFailed, match="train:7 is test:5"):
        stage.run(Context(recipe(name="digits"), tmp_path / "run"))


def test_gate_shuts_when_a_class_is_absent_from_a_split(tmp_path, monkeypatch):
    def lose(splits):
        keep = splits["val"]["labels"] != 4
        splits["val"] = {key: value[keep] for key, value in splits["val"].items()}

    _altered(monkeypatch, lose)
    with pytest.raises(gates.GateFailed, match="4 in val"):
        stage.run(Context(recipe(name="digits"), tmp_path / "run"))


# --- cifar10, with batches of 20 pictures ---

PER_BATCH = 20


@pytest.fixture
def batches(monkeypatch):
    """{name: (rows, labels)} of a small set in the published layout; checksums are those of ``written``."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(cifar10, "PER_BATCH", PER_BATCH)
    monkeypatch.setattr(cifar10, "FIRST_LABELS", [6, 9])
    made = {}
    for name in cifar10.PYTHON:
        labels = [6, 9, *(label for label in range(10) if label not in (6, 9)), *range(10)]
        made[name] = random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8), labels
    return made


def as_python(batch) -> bytes:
    rows, labels = batch
    return pickle.dumps({"data": rows, "labels": labels, "batch_label": "x"}, protocol=4)


def as_binary(batch) -> bytes:
    rows, labels = batch
    return np.concatenate([np.array(labels, np.uint8)[:, None], rows], axis=1).tobytes()


def write_python(folder: Path, batches, monkeypatch) -> Path:
    folder.mkdir(parents=True)
    sums = {}
    for name, batch in batches.items():
        (folder / name).write_bytes(as_python(batch))
        sums[name] = hashlib.md5(as_python(batch)).hexdigest()
    monkeypatch.setattr(cifar10, "PYTHON", sums)
    return folder


def write_binary(folder: Path, batches) -> Path:
    folder.mkdir(parents=True)
    for name, batch in batches.items():
        (folder / f"{name}.bin").write_bytes(as_binary(batch))
    return folder


def test_published_sums_are_the_known_ones():
    assert cifar10.PYTHON["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert cifar10.ARCHIVES["cifar-10-binary.tar.gz"] == "c32a1d4ab5d03f1284b67883e8d87530"
    assert len(set(cifar10.PYTHON.values())) == 6 and all(len(md5) == 32 for md5 in cifar10.PYTHON.values())


def test_python_binary_and_archive_give_the_same_pictures(tmp_path, batches, monkeypatch):
    python = write_python(tmp_path / "a" / "cifar-10-batches-py", batches, monkeypatch).parent
    binary = write_binary(tmp_path / "b", batches)
    packed = tmp_path / "c" / "cifar-10-python.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(python, "cifar-10-batches-py")
    monkeypatch.setitem(cifar10.ARCHIVES, packed.name, hashlib.md5(packed.read_bytes()).hexdigest())

    loaded = [cifar10.load(recipe(name="cifar10", root=str(root))) for root in (python, binary, packed.parent)]
    for other in loaded[1:]:
        for name in split.SPLITS:
            for key in ("pixels", "labels"):
                assert np.array_equal(loaded[0]["splits"][name][key], other["splits"][name][key])
    test = loaded[0]["splits"]["test"]
    assert test["labels"].tolist() == batches["test_batch"][1]
    # Red, green and blue planes one after the other, each row by row.
    assert test["pixels"][3, 2, 1].tolist() == [int(batches["test_batch"][0][3, c * 1024 + 65]) for c in range(3)]
    assert {name: len(part["labels"]) for name, part in loaded[0]["splits"].items()} == {
        "train": 80, "val": 20, "test": 20,
    }  # fmt: skip
    assert [item["provenance"]["verified"][:6] for item in loaded] == ["md5 of", "size o", "md5 of"]


def test_gray_is_pillows_gray(tmp_path, batches, monkeypatch):
    folder = str(write_python(tmp_path / "a", batches, monkeypatch))
    gray = cifar10.load(recipe(name="cifar10", root=folder, color="gray"))["splits"]["test"]["pixels"]
    rgb = cifar10.load(recipe(name="cifar10", root=folder))["splits"]["test"]["pixels"].astype(int)
    assert gray.shape == (20, 32, 32, 1)
    assert abs(gray[..., 0] - rgb @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_one_flipped_byte_is_refused(tmp_path, batches, monkeypatch):
    folder = write_python(tmp_path / "a", batches, monkeypatch)
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[1000] ^= 1
    (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(cifar10.CifarError, match="md5") as caught:
        cifar10.load(recipe(name="cifar10", root=str(folder)))
    assert "data_batch_3" in str(caught.value)


def test_an_altered_archive_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"not it")
    with pytest.raises(cifar10.CifarError, match="not the published file"):
        cifar10.load(recipe(name="cifar10", root=str(tmp_path)))


@pytest.mark.parametrize("damage", ["short", "label 10", "unequal", "first"])
def test_binary_batches_with_another_structure_are_refused(tmp_path, batches, damage):
    if damage == "label 10":
        batches["data_batch_2"][1][4] = 10
    elif damage == "unequal":
        batches["test_batch"][1][4] = 7
    elif damage == "first":
        batches["data_batch_1"][1][:2] = [9, 6]
    folder = write_binary(tmp_path / "b", batches)
    if damage == "short":
        file = folder / "data_batch_4.bin"
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(cifar10.CifarError, match=r"bytes|labels"):
        cifar10.load(recipe(name="cifar10", root=str(folder)))


@pytest.mark.parametrize("function", [cifar10.load, cifar10.seen])
def test_absent_files_are_told_with_their_address(tmp_path, batches, function):
    with pytest.raises(cifar10.CifarError, match=r"cs\.toronto\.edu/~kriz/cifar\.html"):
        function(recipe(name="cifar10", root=str(tmp_path)))
    with pytest.raises(cifar10.CifarError, match="not a folder"):
        function(recipe(name="cifar10", root=str(tmp_path / "nowhere")))
    write_binary(tmp_path / "b", batches)
    (tmp_path / "b" / "data_batch_5.bin").unlink()
    with pytest.raises(cifar10.CifarError, match=r"missing: data_batch_5\.bin"):
        function(recipe(name="cifar10", root=str(tmp_path / "b")))


class Evil:
    def __reduce__(self):
        return print, ("the pickle ran",)


def test_a_pickle_that_calls_is_refused_and_does_not_run(capsys):
    with pytest.raises(cifar10.CifarError, match=r"calls builtins\.print"):
        cifar10._unpickle(pickle.dumps({"data": Evil(), "labels": []}), "data_batch_1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({"data": 1, "labels": [1]})])
def test_a_pickle_that_is_no_batch_is_refused(content):
    with pytest.raises(cifar10.CifarError):
        cifar10._unpickle(content, "data_batch_1")


def test_published_pickles_of_python_2_are_read(monkeypatch):
    """The published batches are protocol 2 with numpy arrays as Python 2 wrote them: bytes in str opcodes."""
    monkeypatch.setattr(cifar10, "PER_BATCH", 1)
    buffer = io.BytesIO()
    row = bytes(range(256)) * 12
    buffer.write(b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(")
    buffer.write(b"K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R")
    buffer.write(b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + row + b"tb")
    buffer.write(b"U\x06labels](K\x06eu.")
    pixels, labels = cifar10._unpickle(buffer.getvalue(), "data_batch_1")
    assert labels.tolist() == [6]
    assert pixels[0].transpose(2, 0, 1).tobytes() == row


def test_fingerprint_follows_the_files(tmp_path, batches):
    folder = write_binary(tmp_path / "b", batches)
    asked = recipe(name="cifar10", root=str(folder))
    before = source.fingerprint(asked)
    assert source.fingerprint(asked) == before
    content = (folder / "test_batch.bin").read_bytes()
    (folder / "test_batch.bin").write_bytes(content[::-1])
    assert source.fingerprint(asked) != before


def test_every_error_here_is_one_the_command_line_prints():
    assert all(
        issubclass(error, SlimgateError)
        for error in (cifar10.CifarError, digits.DigitsError, split.SplitError, source.SourceError)
    )
