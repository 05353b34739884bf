"""Packages: the same bytes for the same inputs, every changed byte found, nothing half-written that looks whole."""

import ast
import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from boards.board import load
from boards.errors import SlimgateError
from boards.netlist import render_hwh, simulated_bitstream
from boards.package import PackageError, open_package
from pipeline import package as building
from tests.hil.toy import PREPROCESS, WIRE, build, compile_toy, reseal, write_golden


@pytest.fixture
def archive(toy_package, tmp_path):
    return building.pack(toy_package, tmp_path / "package.tar.gz")


def test_a_package_opens_as_folder_and_as_archive(toy_package, archive):
    assert open_package(toy_package.folder).manifest == toy_package.manifest
    with open_package(archive) as opened:
        assert opened.manifest == toy_package.manifest
        assert opened.library.is_file()
    assert not opened.folder.exists()
    assert toy_package.manifest["simulated"] is True and toy_package.manifest["evidence"] == "simulated"


def test_the_same_inputs_give_the_same_bytes(toy_package, tmp_path):
    shutil.copy(toy_package.folder / "golden.npz", tmp_path / "golden.npz")
    again = build(tmp_path, golden=tmp_path / "golden.npz")
    for name in [*again.manifest["files"], "manifest.json"]:
        assert (again.folder / name).read_bytes() == (toy_package.folder / name).read_bytes(), name
    first = building.pack(toy_package, tmp_path / "a.tar.gz").read_bytes()
    (again.folder / "run.py").touch()
    assert building.pack(again, tmp_path / "b.tar.gz").read_bytes() == first


def test_one_flipped_byte_in_any_file_is_found_and_named(folder):
    for name in sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()):
        file = folder / name
        good = file.read_bytes()
        for at in (0, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(PackageError) as error:
                open_package(folder)
            assert name in str(error.value)
        file.write_bytes(good)
    open_package(folder)


def test_one_flipped_byte_anywhere_in_the_archive_is_found(archive, tmp_path):
    good = archive.read_bytes()
    broken = tmp_path / "broken.tar.gz"
    places = [*range(24), *range(24, len(good) - 8, len(good) // 40), *range(len(good) - 8, len(good))]
    found = 0
    for at in places:
        changed = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
        broken.write_bytes(changed)
        try:
            open_package(broken)
        except PackageError:
            found += 1
        else:  # deflate can say the same bytes in two ways: then nothing was changed in the package
            assert 24 <= at < len(good) - 8 and gzip.decompress(changed) == gzip.decompress(good)
    assert found > 0.9 * len(places)
    broken.write_bytes(good)
    with open_package(broken):
        pass


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_archive(archive, share):
    good = archive.read_bytes()
    archive.write_bytes(good[: int(share * len(good))])
    with pytest.raises(PackageError):
        open_package(archive)


def test_a_missing_and_an_added_file_are_named(folder):
    (folder / "surprise.sh").write_text("rm -rf ~")
    with pytest.raises(PackageError, match="surprise.sh"):
        open_package(folder)
    (folder / "surprise.sh").unlink()
    (folder / "labels.json").unlink()
    with pytest.raises(PackageError, match="labels.json"):
        open_package(folder)


def test_a_link_in_place_of_a_folder_is_an_added_file(folder):
    (folder / "elsewhere").symlink_to("/etc")
    with pytest.raises(PackageError, match="elsewhere"):
        open_package(folder)


def _archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(fileobj=raw, filename="", mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "toy/../../evil", "evil"])
def test_an_archive_cannot_write_outside(tmp_path, name):
    path = _archive(tmp_path / "x.tar.gz", [(tarfile.TarInfo(name), b"x")])
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(PackageError, match="no plain file"):
        open_package(path, into)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["into", "x.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_an_archive_holds_no_links_or_devices(tmp_path, kind):
    info = tarfile.TarInfo("toy/link")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(PackageError, match="no plain file"):
        open_package(_archive(tmp_path / "x.tar.gz", [(info, b"")]), tmp_path)


def test_two_folders_and_no_package(tmp_path):
    two = [(tarfile.TarInfo("a/x"), b""), (tarfile.TarInfo("b/x"), b"")]
    with pytest.raises(PackageError, match="exactly one folder"):
        open_package(_archive(tmp_path / "x.tar.gz", two), tmp_path)
    with pytest.raises(PackageError, match=r"manifest\.json is missing"):
        open_package(_archive(tmp_path / "y.tar.gz", two[:1]), tmp_path)
    with pytest.raises(PackageError, match="there is no package"):
        open_package(tmp_path / "none.tar.gz")


def test_a_manifest_that_was_only_written_differently(folder):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text())))
    with pytest.raises(PackageError, match=r"manifest\.json was changed"):
        open_package(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"self_sha256": 1}', "not json"])
def test_a_manifest_that_is_none(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(PackageError, match="manifest.json"):
        open_package(folder)


def test_a_disk_that_is_full_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def full(_):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(building.os, "fsync", full)
    with pytest.raises(PackageError, match="No space left on device"):
        build(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["golden.npz"]


def test_killed_while_writing_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(building.Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    assert not (tmp_path / "package").exists()
    monkeypatch.undo()
    assert open_package(build(tmp_path).folder)  # what was left does not stand in the way


def test_an_existing_folder_is_not_overwritten(tmp_path):
    build(tmp_path)
    with pytest.raises(PackageError, match="something already"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["a", "b"]}, "2 labels, 3 outputs"),
        ({"preprocess": PREPROCESS | {"size": [8, 8]}}, "the network takes"),
        ({"preprocess": PREPROCESS | {"color": "rgb"}}, "the network takes"),
        ({"library": Path("none.so")}, "missing"),
        ({"wire": WIRE | {"design_digest": "e" * 64}}, "io.json is of eeeeeeeeeeee"),
        ({"wire": WIRE | {"output": WIRE["output"] | {"scale_log2": 0}}}, "scales"),
    ],
)
def test_parts_that_do_not_fit_one_another(tmp_path, change, words):
    with pytest.raises(SlimgateError, match=words):
        build(tmp_path, **change)
    assert not (tmp_path / "package").exists()


def test_a_real_overlay_is_taken_as_given_and_a_stand_in_is_none(tmp_path):
    board = load("pynq-z2")
    bit, hwh = tmp_path / "d.bit", tmp_path / "d.hwh"
    bit.write_bytes(b"genuine bitstream")
    hwh.write_text("<EDKSYSTEM/>")
    package = build(tmp_path, overlay=(bit, hwh))
    assert package.manifest["simulated"] is False and package.manifest["evidence"] == "implemented"
    assert (package.folder / package.manifest["overlay"]["bit"]).read_bytes() == b"genuine bitstream"
    shutil.rmtree(package.folder)
    hwh.write_text(render_hwh(board))
    with pytest.raises(PackageError, match="stand-in"):
        build(tmp_path, overlay=(bit, hwh))
    bit.write_bytes(simulated_bitstream(board, "a" * 64))
    with pytest.raises(PackageError, match="stand-in"):
        build(tmp_path, overlay=(bit, hwh))


def test_the_overlays_name_holds_its_design(toy_package):
    assert toy_package.manifest["overlay"]["bit"] == "overlay/toy_0123456789ab.bit"


def test_the_notebook_is_one(toy_package):
    notebook = json.loads((toy_package.folder / "example.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            ast.parse(cell["source"], feature_version=(3, 10))
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_preprocess_says_how_a_picture_becomes_codes(toy_package):
    rule = json.loads((toy_package.folder / "preprocess.json").read_text())
    assert rule == PREPROCESS | {"input_bits": 6, "scale_log2": -6}


def test_reseal_makes_a_package_that_opens(folder):
    write_golden(folder, labels=np.zeros(40, np.int64))
    reseal(folder)  # the helper of the fault tests: its faults lie behind intact hashes
    open_package(folder)


def test_the_toy_design_is_compiled_once():
    assert compile_toy() == compile_toy() and compile_toy().stat().st_mtime == compile_toy().stat().st_mtime
