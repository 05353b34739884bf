"""`slimgate import`: a folder with a recipe and a copy of a model that was trained elsewhere.

Everything that can be wrong is looked at before the first byte is written; the folder appears whole or not at all.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import unicodedata
from fractions import Fraction
from pathlib import Path

import onnx
from onnx import external_data_helper

from boards.board import Board
from hls.front import front_operations
from pipeline import config, pixels
from pipeline.datasets import elsewhere
from pipeline.imported import Imported, ImportProblem, TestSet, check_labels, examine, test_set


def run(model: Path, labels: str | None, data: str, board: Board, *, name: str | None = None,
        to: Path = Path("imported"), force: bool = False, say=lambda text: None, **rule) -> Path:  # fmt: skip
    """Write ``to/NAME/NAME.toml`` and ``to/NAME/NAME.onnx``; return the recipe's path.

    ``labels``: a text file with one name a line, names with commas between them, or None to take those of the data.
    ``data``: as :func:`pipeline.datasets.elsewhere.kind_of` takes it. ``rule``: input_range, mean, std, resize.
    Raises SlimgateError for whatever does not fit, and then nothing has been written.
    """
    model = Path(model)
    name = _name(name, model)
    folder = Path(to) / name
    _free(folder, force)
    say(f"checking {model.name}")
    found = examine(model)
    kind = elsewhere.kind_of(data)
    path = None if kind == "digits" else Path(data)
    names, whence = _labels(labels, kind, path, found)
    say(f"reading the test data ({kind})")
    tests = test_set(found, kind, path, names, **rule)
    for line in described(found, tests, names, whence):
        say(line)
    try:
        return _write(folder, name, model, found, kind, path, names, board, tests, rule)
    except OSError as error:
        raise ImportProblem(f"the recipe cannot be written: {error.strerror or error}", where=folder,
                            fix="choose another folder with --to, or make it writable") from error  # fmt: skip


def number(text: str) -> float:
    """A number of the command line; fractions such as 255/256 are numbers. ValueError for anything else."""
    if not re.fullmatch(r"-?[0-9.]+(e-?[0-9]+)?(/[0-9]+)?", text):
        raise ValueError(text)
    try:
        return float(Fraction(text))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(text) from error


def described(found: Imported, tests: TestSet, labels: list[str], whence: str) -> list[str]:
    """What was understood, for the user to check: wrong labels or a wrong range are no error that anyone could see."""
    quantizer = found.quantizer
    lines = [f"{len(labels)} labels {whence}: {', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}",
             f"{len(tests.labels):,} test samples, of shape {tuple(found.shape)} on the wire; input codes "
             f"{quantizer.lo} to {quantizer.hi} on 2**{quantizer.lsb}"]  # fmt: skip
    if tests.table is not None:
        edge = pixels.clipped(quantizer, tests.table)
        lines.append(f"pixels 0 to 255 become codes {tests.table.min()} to {tests.table.max()}"
                     + (f"; {edge:.0%} of them are cut off at the ends of the quantizer's range" if edge > 0.02 else "")
                     + "; other training: --input-range, --mean, --std")  # fmt: skip
    if found.network.front is not None:
        lines.append(f"left to the host before the wire: {', '.join(front_operations(found.network.model))}")
    if tests.table is not None and found.picture is not None and not tests.picture:
        lines.append("the table alone does not make the codes of a picture: the package will take none")
    if found.network.host:
        lines.append(f"left to the host: {', '.join(found.network.host)}")
    return lines


def _name(said: str | None, model: Path) -> str:
    name = said
    if name is None:
        plain = unicodedata.normalize("NFKD", model.stem.lower()).encode("ascii", "ignore").decode()
        name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-._") or "network"
    if not re.fullmatch(config.NAME, name) or name[0] in ".-":
        raise ImportProblem(f"--name {name} is not allowed", where="--name",
                            fix="lower-case letters, digits, dot, dash and underscore; not a dot or dash at first")
    return name


def _free(folder: Path, force: bool) -> None:
    """Refuse a name that is taken; with ``force``, one that is taken by something else than an imported network."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise ImportProblem("there is an imported network of this name, or something else", where=folder,
                            fix="give another --name, or replace it with --force")  # fmt: skip
    entries = {path.name for path in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {None}
    recipe = folder / f"{folder.name}.toml"
    if entries != {recipe.name, f"{folder.name}.onnx"} or "[imported]" not in recipe.read_text("utf-8", "replace"):
        raise ImportProblem("what is there is not only an imported network: --force does not replace it", where=folder,
                            fix="give another --name, or move it away by hand")  # fmt: skip


def _labels(said: str | None, kind: str, path: Path | None, found: Imported) -> tuple[list[str], str]:
    """Names of the network's outputs, and where they are from."""
    own = elsewhere.classes(kind, path)
    if said is None:
        if own is None:
            raise ImportProblem("an .npz has no names of classes", where=path,
                                fix="give --labels: a text file with one name a line, or names with commas between")
        whence = "from the names of the class folders, sorted" if kind == "folder" else f"of {kind}"
        check_labels(own, found, path)
        return own, whence
    file = Path(said)
    if file.is_file():
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ImportProblem(f"the labels are not UTF-8 text: {error}", where=file,
                                fix="save them as UTF-8, one name a line") from error  # fmt: skip
        except OSError as error:
            raise ImportProblem(f"the labels cannot be read: {error.strerror}", where=file) from error
        names, whence = [line.strip() for line in lines if line.strip()], f"from {file.name}"
    elif "," in said:
        names, whence = [name.strip() for name in said.split(",")], "as given"
    else:
        what = "it is a folder" if file.is_dir() else "there is no such file, and there is no comma in it"
        raise ImportProblem(f"--labels {said}: {what}", where=said,
                            fix="give a text file with one name a line, or names with commas between")  # fmt: skip
    names = [unicodedata.normalize("NFC", name) for name in names]  # as names of folders are read
    check_labels(names, found, said)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not all(names):
        raise ImportProblem(f"a label is empty or there twice: {repeated[0]!r}" if repeated else "a label is empty",
                            where=said, fix="give each output a name of its own")  # fmt: skip
    return names, whence


def _write(folder, name, model, found, kind, path, labels, board, tests, rule) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{name}.partial-*"):  # of an import that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.parent / f".{name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        content = _one_file(model)
        (partial / f"{name}.onnx").write_bytes(content)
        recipe = partial / f"{name}.toml"
        digest = hashlib.sha256(content).hexdigest()
        recipe.write_text(_text(folder, name, model, digest, kind, path, labels, board, tests, rule), encoding="utf-8")
        config.load(recipe)  # what was written can be read
        old = folder.with_name(f".{name}.partial-old-{secrets.token_hex(4)}")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder / f"{name}.toml"


def _one_file(model: Path) -> bytes:
    """The file's own bytes; where weights lie in files of their own, the same network in one file."""
    content = model.read_bytes()
    proto = onnx.load_model_from_string(content)
    if any(external_data_helper.uses_external_data(t) for t in external_data_helper._get_all_tensors(proto)):
        return onnx.load(str(model)).SerializeToString(deterministic=True)
    return content


def _text(folder, name, model, digest, kind, path, labels, board, tests, rule) -> str:
    told: dict = {"model": f"{name}.onnx", "sha256": digest, "labels": labels, "data": kind}
    if path is not None:
        inside = path.resolve().is_relative_to(Path.cwd().resolve())
        told["test"] = os.path.relpath(path.resolve(), folder.resolve()) if inside else str(path.resolve())
    if tests.table is not None:
        told["input_range"] = list(rule.get("input_range") or pixels.TO_TENSOR)
        told |= {key: list(rule[key]) for key in ("mean", "std") if rule.get(key) is not None}
        if kind == "folder":
            told["resize"] = rule.get("resize") or "bilinear"
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
             for key, value in told.items()]  # fmt: skip
    return "\n".join([
        "# A network that was trained elsewhere, as `slimgate import` made it.",
        f"# From {json.dumps(model.name, ensure_ascii=False)}; the hash is that of the copy beside this recipe.",
        f'name = "{name}"', f'board = "{board.name}"', "seed = 0", "", "[imported]", *lines, "",
        "[hls]", 'strategy = "Resource"', 'reuse_factor = "auto"', "",
    ])  # fmt: skip
