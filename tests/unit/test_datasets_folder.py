"""The user's own pictures: what is read, what is refused and by which name."""

import io
import json
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import config, gates
from pipeline.config import Recipe
from pipeline.datasets import folder, pictures, source, split
from pipeline.datasets.pictures import PictureError, load_picture
from pipeline.datasets.source import SourceError
from pipeline.stages import data as stage

RANDOM = np.random.default_rng(7)


def picture(height=10, width=12, channels=3) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(file: Path, pixels=None, **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(file, **options)
    return file


def tree(root: Path, classes=("cat", "dog"), count=10, suffix="png") -> Path:
    for name in classes:
        for index in range(count):
            save(root / name / f"{index:02}.{suffix}")
    return root


def pack(root: Path, file: Path, prefix="") -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, prefix + path.relative_to(root).as_posix())
    return file


def recipe(base: Path, **data) -> Recipe:
    """The recipe ``base``/trial.toml; JSON's strings, numbers and lists are TOML's."""
    keys = [f"{key} = {json.dumps(value)}" for key, value in {"name": "folder", "size": [8, 8], **data}.items()]
    file = base / "trial.toml"
    file.write_text("\n".join(["[model]", 'name = "cnn_small"', "[data]", *keys, ""]))
    return config.load(file)


def names(loaded) -> dict[str, list[str]]:
    return {name: part["names"].tolist() for name, part in loaded["splits"].items()}


# --- one picture ---


def test_pixels_are_the_files(tmp_path):
    pixels = picture()
    assert np.array_equal(load_picture(save(tmp_path / "a.png", pixels), None, "rgb", "bilinear"), pixels)
    assert np.array_equal(load_picture(tmp_path / "a.png", (10, 12), "rgb", "bilinear"), pixels)


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_resizing_is_pillows_by_name_and_size_is_height_width(tmp_path, resize):
    pixels = picture(20, 30)
    expected = np.asarray(Image.fromarray(pixels).resize((9, 7), getattr(Image.Resampling, resize.upper())))
    found = load_picture(save(tmp_path / "a.png", pixels), (7, 9), "rgb", resize)
    assert found.shape == (7, 9, 3) and np.array_equal(found, expected)


def test_gray_has_one_channel_and_comes_before_resizing(tmp_path):
    pixels = picture(20, 30)
    expected = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 7), Image.Resampling.BOX))
    found = load_picture(save(tmp_path / "a.png", pixels), (7, 9), "gray", "box")
    assert found.shape == (7, 9, 1) and np.array_equal(found[..., 0], expected)


def test_exif_turns_the_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture()
    found = load_picture(save(tmp_path / "a.png", pixels, exif=exif), None, "rgb", "box")
    assert np.array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB key"])
def test_transparency_is_over_black(tmp_path, mode):
    if mode == "RGB key":
        image, options = Image.new("RGB", (4, 4), (9, 8, 7)), {"transparency": (9, 8, 7)}
    elif mode == "P":
        image, options = Image.new("P", (4, 4), 1), {"transparency": 1}
        image.putpalette([0, 0, 0, 200, 100, 50])
    else:
        image, options = Image.new(mode, (4, 4), (200, 100, 50, 0) if mode == "RGBA" else (200, 0)), {}
    image.save(tmp_path / "a.png", **options)
    assert not load_picture(tmp_path / "a.png", None, "rgb", "box").any()


def test_half_transparent_is_half_as_bright():
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 2), (200, 100, 50, 128)).save(buffer, "png")
    assert load_picture(buffer, None, "rgb", "box", name="x")[0, 0].tolist() == [100, 50, 25]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path, mode):
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(picture()).convert(mode).save(file)
    found = load_picture(file, None, "rgb", "box")
    with Image.open(file) as image:
        assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode,suffix", [("I;16", "png"), ("I", "tif"), ("F", "tif")])
def test_deep_pictures_are_refused(tmp_path, mode, suffix):
    Image.new(mode, (4, 4)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(PictureError, match="more than 8 bits") as caught:
        load_picture(tmp_path / f"a.{suffix}", None, "rgb", "box")
    assert "a." in str(caught.value)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(picture()) for _ in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(PictureError, match="3 frames"):
        load_picture(tmp_path / f"a.{suffix}", None, "rgb", "box")


def test_a_phones_mpo_is_its_first_frame(tmp_path):
    frames = [Image.fromarray(picture(16, 16)) for _ in range(2)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.jpg")
    assert np.array_equal(*(load_picture(tmp_path / name, None, "rgb", "box") for name in ("a.mpo", "b.jpg")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp", "tif"])
def test_cut_short_is_refused(tmp_path, suffix):
    file = save(tmp_path / f"a.{suffix}", picture(64, 64))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(PictureError) as caught:
        load_picture(file, None, "rgb", "box")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PictureError) as caught:
        load_picture(tmp_path / "a.jpg", None, "rgb", "box")
    assert "a.jpg" in str(caught.value)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(PictureError, match="10 x 11 pixels, more than 100"):
        load_picture(save(tmp_path / "a.png", picture(11, 10)), None, "rgb", "box")


def test_absent_file_is_named(tmp_path):
    with pytest.raises(PictureError, match="No such file"):
        load_picture(tmp_path / "a.png", None, "rgb", "box")


# --- folders and zips ---


def test_folder_zip_and_zip_in_a_top_folder_give_the_same(tmp_path):
    root = tree(tmp_path / "made", ("cat", "dog", "été"))
    save(root / "cat" / "deep" / "er" / "x.jpg")
    pack(root, tmp_path / "flat.zip")
    pack(root, tmp_path / "nested.zip", "my pictures/")
    loaded = [
        folder.load(recipe(tmp_path / f"run{i}", train=str(tmp_path / name)))
        for i, name in enumerate(("made", "flat.zip", "nested.zip"))
        if (tmp_path / f"run{i}").mkdir() is None
    ]
    assert loaded[0]["labels"] == ["cat", "dog", "été"]
    assert any("cat/deep/er/x.jpg" in part for part in names(loaded[0]).values())
    for other in loaded[1:]:
        assert names(other) == names(loaded[0])
        for part, same in zip(other["splits"].values(), loaded[0]["splits"].values(), strict=True):
            assert np.array_equal(part["pixels"], same["pixels"]) and np.array_equal(part["labels"], same["labels"])


def test_labels_belong_to_their_pictures(tmp_path):
    root = tmp_path / "made"
    for label, value in (("a", 10), ("b", 200)):
        for index in range(8):
            save(root / label / f"{index}.png", np.full((8, 8, 3), value + index, np.uint8))
    for part in folder.load(recipe(tmp_path, train="made"))["splits"].values():
        assert ((part["pixels"][:, 0, 0, 0] >= 200) == (part["labels"] == 1)).all()


def test_leftovers_are_ignored_and_counted(tmp_path):
    root = tree(tmp_path / "made")
    for name in (".DS_Store", "cat/Thumbs.db", "cat/._00.png", "__MACOSX/cat/._00.png", "desktop.ini"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"junk")
    pack(root, tmp_path / "made.zip")
    found = source.listing(root, "t")
    assert (len(found.pictures), found.classes, found.ignored) == (20, ["cat", "dog"], 5)
    found = source.listing(tmp_path / "made.zip", "t")
    assert (len(found.pictures), found.classes, found.ignored) == (20, ["cat", "dog"], 5)


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    tree(tmp_path / "train", (unicodedata.normalize("NFD", "été"), "dog"))
    tree(tmp_path / "test", (unicodedata.normalize("NFC", "été"), "dog"))
    assert folder.load(recipe(tmp_path, train="train", test="test"))["labels"] == ["dog", "été"]


def test_utf8_names_without_the_flag_are_read(tmp_path):
    pack(tree(tmp_path / "made", ("été", "dog")), tmp_path / "made.zip")
    content = (tmp_path / "made.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert any(member.flag_bits & 0x800 for member in archive.infolist())
    # Clear bit 11 of the flags in local headers (offset 6) and in the central directory (offset 8).
    cleared = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        at = -1
        while (at := content.find(mark, at + 1)) >= 0:
            cleared[at + offset] &= ~0x08 & 0xFF
    (tmp_path / "made.zip").write_bytes(cleared)
    assert source.listing(tmp_path / "made.zip", "t").classes == ["dog", "été"]
    assert folder.load(recipe(tmp_path, train="made.zip"))["labels"] == ["dog", "été"]


@pytest.mark.parametrize("function", [folder.load, folder.seen])
@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda root: (root / "fish").mkdir(), "no picture in class 'fish'"),
        (lambda root: (root / "notes.txt").write_text("x"), "1 file.s. in no class folder, e.g. 'notes.txt'"),
        (lambda root: (root / "cat" / "loop").symlink_to(root), "leads back"),
        (lambda root: (root / "cat" / "dead").symlink_to(root / "nowhere"), "cannot be read"),
        (lambda root: os.mkfifo(root / "cat" / "pipe"), "neither a file nor a folder"),
        (lambda root: (root / "dog").rename(root.parent / "away"), "1 class"),
        (lambda root: root.rename(root.parent / "away"), "data.train does not exist"),
    ],
)
def test_bad_folders_are_refused(tmp_path, damage, message, function):
    damage(tree(tmp_path / "made"))
    with pytest.raises(SourceError, match=message):
        function(recipe(tmp_path, train="made"))


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    root = tree(tmp_path / "made")
    with open(os.fsencode(root / "cat") + b"/\xff.png", "wb") as file:
        file.write(b"x")
    with pytest.raises(SourceError, match="not UTF-8"):
        source.listing(root, "t")


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    tree(tmp_path / "away")
    (tmp_path / "made").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "made" / name).symlink_to(tmp_path / "away" / name)
    assert len(source.listing(tmp_path / "made", "t").pictures) == 20


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "cat/../../x.png", "C:/x.png", "cat\\x.png"])
def test_zip_names_that_leave_it_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("cat/a.png", b"x")
        archive.writestr(name, b"x")
    with pytest.raises(SourceError, match="points outside"):
        source.listing(tmp_path / "made.zip", "t")


def test_zip_with_link_double_or_oversized_member_is_refused(tmp_path, monkeypatch):
    def made(change):
        with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
            archive.writestr("dog/a.png", b"x")
            change(archive)
        return tmp_path / "made.zip"

    link = zipfile.ZipInfo("cat/a.png")
    link.external_attr = 0o120777 << 16
    with pytest.raises(SourceError, match="a link or device"):
        source.listing(made(lambda archive: archive.writestr(link, "/etc/passwd")), "t")
    with pytest.warns(UserWarning, match="Duplicate"), pytest.raises(SourceError, match="twice"):
        source.listing(made(lambda archive: archive.writestr("dog/a.png", b"y")), "t")
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    with pytest.raises(SourceError, match="claims 11 bytes"):
        source.listing(made(lambda archive: archive.writestr("cat/a.png", b"y" * 11)), "t")


def test_encrypted_zip_is_refused(tmp_path):
    file = pack(tree(tmp_path / "made"), tmp_path / "made.zip")
    content = bytearray(file.read_bytes())
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    with pytest.raises(SourceError, match="encrypted"):
        source.listing(file, "t")


def test_truncated_zip_is_refused(tmp_path):
    file = pack(tree(tmp_path / "made"), tmp_path / "made.zip")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SourceError, match="not a whole zip") as caught:
        folder.load(recipe(tmp_path, train="made.zip"))
    assert "made.zip" in str(caught.value)


def test_damaged_zip_member_is_named(tmp_path):
    file = pack(tree(tmp_path / "made"), tmp_path / "made.zip")
    content = bytearray(file.read_bytes())
    content[content.find(b"dog/03.png") + 100] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(PictureError, match="CRC") as caught:
        folder.load(recipe(tmp_path, train="made.zip"))
    assert "dog/03.png" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text"])
def test_one_corrupt_picture_is_named_never_skipped(tmp_path, content):
    root = tree(tmp_path / "made")
    (root / "dog" / "04.png").write_bytes(content)
    with pytest.raises(PictureError) as caught:
        folder.load(recipe(tmp_path, train="made"))
    assert "dog/04.png" in str(caught.value)
    assert not (tmp_path / "trial.split.json").exists()


def test_classes_of_train_and_test_must_agree(tmp_path):
    tree(tmp_path / "train", ("cat", "dog", "fish"))
    tree(tmp_path / "test", ("cat", "dog", "bird"))
    with pytest.raises(SourceError, match=r"'fish' only in data\.train, 'bird' only in data\.test"):
        folder.seen(recipe(tmp_path, train="train", test="test"))


# --- the split file ---


def test_split_is_written_once_and_keeps_old_assignments(tmp_path):
    root = tree(tmp_path / "made")
    asked = recipe(tmp_path, train="made")
    first = names(folder.load(asked))
    written = (tmp_path / "trial.split.json").read_bytes()
    assert names(folder.load(asked)) == first
    assert (tmp_path / "trial.split.json").read_bytes() == written
    for index in range(20, 30):
        save(root / "cat" / f"{index}.png")
    second = names(folder.load(asked))
    assert all(set(first[name]) <= set(second[name]) for name in split.SPLITS)
    assert sum(map(len, second.values())) == 30 and len(second["test"]) == 6
    third = names(folder.load(asked))
    assert third == second


def test_split_file_of_the_user_is_followed(tmp_path):
    tree(tmp_path / "made")
    asked = recipe(tmp_path, train="made")
    folder.load(asked)
    before = source.fingerprint(asked)
    file = tmp_path / "trial.split.json"
    content = json.loads(file.read_text())
    moved = next(name for name, word in content["assignments"].items() if word == "train")
    content["assignments"][moved] = "test"
    file.write_text(json.dumps(content))
    assert moved in names(folder.load(asked))["test"]
    assert source.fingerprint(asked) != before


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"assignments": {"a": "exam"}, "settings": {}}'])
def test_damaged_split_file_is_refused(tmp_path, text):
    tree(tmp_path / "made")
    (tmp_path / "trial.split.json").write_text(text)
    with pytest.raises(split.SplitError) as caught:
        folder.load(recipe(tmp_path, train="made"))
    assert "trial.split.json" in str(caught.value)


def test_split_file_of_other_settings_is_refused(tmp_path):
    tree(tmp_path / "made")
    folder.load(recipe(tmp_path, train="made"))
    with pytest.raises(split.SplitError, match=r"test_fraction = 0\.2, the recipe says 0\.3"):
        folder.load(recipe(tmp_path, train="made", test_fraction=0.3))


def test_given_test_needs_no_split_file(tmp_path):
    tree(tmp_path / "train")
    tree(tmp_path / "test", count=4)
    loaded = folder.load(recipe(tmp_path, train="train", test="test"))
    assert {name: len(part) for name, part in names(loaded).items()} == {"train": 16, "val": 4, "test": 8}
    assert all(name.startswith("test/") for name in names(loaded)["test"])
    assert not (tmp_path / "trial.split.json").exists()


# --- fingerprint ---


def test_fingerprint_sees_every_change_and_not_the_first_split(tmp_path):
    root = tree(tmp_path / "made")
    asked = recipe(tmp_path, train="made")
    seen = [source.fingerprint(asked)]
    folder.load(asked)
    assert source.fingerprint(asked) == seen[0]

    def changed() -> bool:
        seen.append(source.fingerprint(asked))
        return len(set(seen)) == len(seen)

    save(root / "cat" / "new.png")
    assert changed()
    (root / "cat" / "new.png").rename(root / "dog" / "new.png")
    assert changed()
    file = root / "cat" / "00.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and changed()
    (root / "dog" / "new.png").unlink()
    assert changed()


def test_fingerprint_of_a_zip_is_its_contents(tmp_path):
    root = tree(tmp_path / "made")
    pack(root, tmp_path / "made.zip")
    asked = recipe(tmp_path, train="made.zip")
    first = source.fingerprint(asked)
    os.utime(tmp_path / "made.zip")
    assert source.fingerprint(asked) == first
    save(root / "cat" / "00.png")
    pack(root, tmp_path / "made.zip")
    assert source.fingerprint(asked) != first


# --- the stage's gates on folders ---


class Context:
    def __init__(self, recipe, folder):
        self.recipe, self.folder = recipe, folder
        folder.mkdir()

    def progress(self, items, label):
        return items

    def gate(self, name, passed, detail, **rest):
        gates.check(name, passed, detail, **rest)


@pytest.mark.parametrize("how", ["copy", "bmp"])
def test_the_same_picture_in_train_and_test_names_both_files(tmp_path, how):
    tree(tmp_path / "train")
    tree(tmp_path / "test")
    pixels = picture()
    save(tmp_path / "train" / "cat" / "twin.png", pixels)
    save(tmp_path / "test" / "cat" / ("other.png" if how == "copy" else "other.bmp"), pixels)
    with pytest.raises(gates.GateFailed, match=r"train/cat/twin\.png is test:test/cat/other"):
        stage.run(Context(recipe(tmp_path, train="train", test="test"), tmp_path / "out"))


def test_repeats_within_a_split_are_allowed_and_counted(tmp_path):
    tree(tmp_path / "train")
    tree(tmp_path / "test")
    pixels = picture()
    for index in range(3):
        save(tmp_path / "test" / "dog" / f"same{index}.png", pixels)
    stage.run(Context(recipe(tmp_path, train="train", test="test"), tmp_path / "out"))
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["repeated_within_split"] == {"train": 0, "val": 0, "test": 2}
    assert str(tmp_path) not in json.dumps(description)
    with np.load(tmp_path / "out" / "test.npz", allow_pickle=False) as test:
        assert len(test["names"]) == 23
