"""The recipe: one TOML file, read strictly; every problem is reported at once, with key, file and line."""

import difflib
import json
import pkgutil
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from boards import board
from boards.errors import SlimgateError
from pipeline import models as networks

ROOT = Path(__file__).resolve().parent.parent
NAME = r"[a-z0-9._-]+"
# A path given on the command line is meant from where the user stands, one in the recipe from the recipe.
PATH_KEYS = {("data", "root"), ("data", "train"), ("data", "test"), ("imported", "model"), ("imported", "test")}
#: Sections about making a network: a recipe with [imported] has none of them.
MAKING = ("data", "model", "train", "trim", "quantize", "export")

Fraction = Annotated[float, Field(gt=0, lt=1)]
# Upper bounds stop slips of the finger (and what torch, NumPy or C could not hold), not serious work.
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
MoreEpochs = Annotated[int, Field(ge=0, le=100_000)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
Width = Annotated[int, Field(ge=1, le=4096)]
ReuseFactor = Annotated[int, Field(ge=1, lt=2**31)]
SAMPLES = 1_000_000
Real = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Resize = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
WeightBits = Annotated[int, Field(ge=2, le=8)]
ActivationBits = Annotated[int, Field(ge=2, le=8)]


class RecipeError(SlimgateError):
    """The recipe is not one; ``problems`` holds one "where: what" line each."""

    def __init__(self, problems: list[str], *, where: object = None, fix: str | None = None):
        title = f"{len(problems)} problems in the recipe:"
        super().__init__(problems[0] if len(problems) == 1 else "\n  ".join([title, *problems]), where=where, fix=fix)
        self.problems = problems


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(_Section):
    name: str
    root: str | None = None
    train: str | None = None
    test: str | None = None
    size: Annotated[list[Annotated[int, Field(ge=4, le=512)]], Field(min_length=2, max_length=2)] | None = None
    color: Literal["rgb", "gray"] = "rgb"
    resize: Resize = "bilinear"
    validation: Fraction = 0.2
    test_fraction: Fraction = 0.2
    seed: Seed = 0

    @model_validator(mode="after")
    def _own_keys(self) -> "Data":
        foreign = {"folder": {"root"}, "cifar10": {"train", "test", "size"}}.get(
            self.name, {"root", "train", "test", "size"}
        )
        for key in sorted(foreign & self.model_fields_set):
            raise ValueError(f"data.{key} has no meaning for the data set {self.name!r}")
        for key in {"folder": ("train", "size"), "cifar10": ("root",)}.get(self.name, ()):
            if getattr(self, key) is None:
                raise ValueError(f"the data set {self.name!r} needs data.{key}")
        return self


class Model(_Section):
    name: str
    widths: dict[str, Width] = {}


class Train(_Section):
    epochs: Epochs = 30
    batch_size: BatchSize = 64
    learning_rate: LearningRate = 2e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-4
    augment: Literal["none", "shift", "flip_crop"] = "none"
    sparsity: Annotated[float, Field(ge=0, le=1)] = 0.0


class Trim(_Section):
    method: Literal[
        "relevance", "l1", "l2", "fpgm", "apoz", "hrank", "slimming", "taylor", "taylor_bn", "pca", "pfa", "random",
        "none",
    ] = "relevance"  # fmt: skip
    statistic: Literal["mean", "mean_abs", "max", "l2", "fraction"] = "mean"
    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    of: Literal["macs", "parameters", "filters", "cycles", "lut", "bram", "fit"] = "macs"
    allocation: Literal["global", "uniform", "isomorphic", "widths", "pca", "pfa"] = "global"
    widths: dict[str, Width] = {}
    granularity: Literal["filter", "cluster", "channel_multiple"] = "filter"
    cluster_size: Literal["auto"] | Width = "auto"
    cluster_order: Literal["consecutive", "sorted"] = "consecutive"
    rank_weighted: bool = False
    channel_multiple: Width = 4
    schedule: Literal["linear", "polynomial", "one-shot"] = "linear"
    steps: Annotated[int, Field(ge=1, le=1000)] = 4
    finetune_epochs: MoreEpochs = 4
    learning_rate: LearningRate = 1e-3
    rewind: Literal["none", "rate", "scratch"] = "none"
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    min_filters: Width = 1

    @model_validator(mode="after")
    def _meaning(self) -> "Trim":
        # A recipe that was written out names every key: only another value than the default was asked for.
        asked = {key for key, about in type(self).model_fields.items() if getattr(self, key) != about.default}
        for key, of, value in (
            ("widths", "allocation", "widths"), ("cluster_size", "granularity", "cluster"),
            ("cluster_order", "granularity", "cluster"), ("rank_weighted", "granularity", "cluster"),
            ("channel_multiple", "granularity", "channel_multiple"),
        ):  # fmt: skip
            if key in asked and getattr(self, of) != value:
                raise ValueError(f"trim.{key} has no meaning with trim.{of} = {getattr(self, of)!r}")
        if self.allocation == "widths" and not self.widths:
            raise ValueError("trim.allocation = 'widths' needs trim.widths")
        if "ratio" in asked and self.allocation in ("widths", "pca", "pfa"):
            raise ValueError(f"trim.ratio has no meaning with trim.allocation = {self.allocation!r}")
        return self


class LayerBits(_Section):
    weights: WeightBits | None = None
    activations: ActivationBits | None = None


class Quantize(_Section):
    weights: WeightBits = 4
    activations: ActivationBits = 4
    input: Annotated[int, Field(ge=2, le=8)] = 8
    bias: Annotated[int, Field(ge=2, le=16)] = 16
    epochs: MoreEpochs = 20
    learning_rate: LearningRate = 1e-3
    batch_size: BatchSize = 64
    patience: Epochs = 5
    layers: dict[str, LayerBits] = {}


class Export(_Section):
    samples: Annotated[int, Field(ge=0, le=SAMPLES)] = 0


class LayerHls(_Section):
    reuse_factor: ReuseFactor | None = None
    strategy: Literal["auto", "Resource", "Latency"] | None = None


class Hls(_Section):
    clock_mhz: Annotated[float, Field(ge=1, le=1000)] | None = None
    strategy: Literal["auto", "Resource", "Latency"] = "auto"
    reuse_factor: Literal["auto"] | ReuseFactor = "auto"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.2
    objective: Literal["interval", "latency"] = "interval"
    frames_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = None
    layers: dict[str, LayerHls] = {}


class Csim(_Section):
    # The minimums are those of the proof: a recipe may ask for more of it, never for less.
    samples: Annotated[int, Field(ge=1000, le=SAMPLES)] = 1000
    modes_samples: Annotated[int, Field(ge=64, le=SAMPLES)] = 64


class Benchmark(_Section):
    singles: Annotated[int, Field(ge=1000, le=SAMPLES)] = 1000  # the least that the board's proof asks for
    warmup: Annotated[int, Field(ge=0, le=SAMPLES)] = 10


class Imported(_Section):
    model: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    labels: Annotated[list[str], Field(min_length=2)]
    data: Literal["digits", "cifar10", "folder", "npz"]
    test: str | None = None
    input_range: Annotated[list[Real], Field(min_length=2, max_length=2)] | None = None
    mean: Annotated[list[Real], Field(min_length=1, max_length=3)] | None = None
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)] | None = None
    resize: Resize = "bilinear"
    samples: Annotated[int, Field(ge=0, le=SAMPLES)] = 0

    @model_validator(mode="after")
    def _fits(self) -> "Imported":
        if (self.test is None) != (self.data == "digits"):
            said = "has no meaning for" if self.test is not None else "is needed by"
            raise ValueError(f"imported.test {said} the data {self.data!r}")
        if len(set(self.labels)) < len(self.labels) or not all(label.strip() for label in self.labels):
            raise ValueError("imported.labels holds a name twice, or an empty one")
        if (self.mean is None) != (self.std is None):
            raise ValueError("imported.mean and imported.std go together")
        return self


class _Recipe(_Section):
    """What both kinds of recipe can do. Defaults are filled in, so equal recipes dump equal."""

    _path: Path = PrivateAttr(default_factory=lambda: Path.cwd() / "recipe.toml")

    @property
    def path(self) -> Path:
        """The recipe's file (absolute)."""
        return self._path

    def resolve(self, path: str) -> Path:
        """The absolute path of a path in the recipe, which is relative to the recipe's folder."""
        return (self.path.parent / Path(path).expanduser()).resolve()

    def dump(self) -> dict[str, Any]:
        """Every key with its value, defaults included, unset ones left out; plain JSON types."""
        return self.model_dump(mode="json", exclude_none=True)

    def get(self, key: str) -> Any:
        """The value of one dotted key, e.g. ``trim.ratio`` or ``quantize``; None where it is unset."""
        value: Any = self.dump()
        for part in key.split("."):
            if not isinstance(value, Mapping):
                raise KeyError(key)
            value = value.get(part)
        return value

    def to_toml(self) -> str:
        """The recipe as TOML; reading it gives an equal recipe."""
        return "\n".join(_toml(self.dump(), ())) + "\n"


class Recipe(_Recipe):
    """A whole recipe, validated: a network is trained here."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    board: str = "pynq-z2"
    seed: Seed = 0
    data: Data
    model: Model
    train: Train = Train()
    trim: Trim = Trim()
    quantize: Quantize = Quantize()
    export: Export = Export()
    hls: Hls = Hls()
    csim: Csim = Csim()
    benchmark: Benchmark = Benchmark()


class ImportedRecipe(_Recipe):
    """A recipe of a network that was trained elsewhere, as ``slimgate import`` writes it."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    board: str = "pynq-z2"
    seed: Seed = 0
    imported: Imported
    hls: Hls = Hls()
    csim: Csim = Csim()
    benchmark: Benchmark = Benchmark()


def kind_of(values: Mapping[str, Any]) -> type[Recipe] | type[ImportedRecipe]:
    """Which of the two kinds of recipe plain values are meant as."""
    return ImportedRecipe if "imported" in values else Recipe


def datasets(root: Path = ROOT) -> list[str]:
    """Names of the data sets: modules of pipeline/datasets that define SPEC, found without importing them."""
    return _modules(root / "pipeline" / "datasets", r"^SPEC\b")


def load(file: str | Path, overrides: Iterable[str] = (), board_name: str | None = None) -> Recipe | ImportedRecipe:
    """Read a recipe, apply ``key=value`` overrides and a board, validate. Raises RecipeError with every problem."""
    file = Path(file)
    text = _read(file)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = f"{file}:{line[1] if line else len(text.splitlines())}"
        raise RecipeError([f"not valid TOML: {error}"], where=where) from None
    origins = {key: f"{file}:{line}" for key, line in _lines(text).items()}
    origins[()] = str(file)
    problems = _apply(values, overrides, origins)
    if board_name is not None:
        values["board"] = board_name
        origins["board",] = f"--board {board_name}"
    name = file.stem.lower()
    if "name" not in values:
        values["name"] = name
        if not re.fullmatch(NAME, name):
            plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
            plain = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("-") or "my-run"
            allowed = _allowed(("name",), kind_of(values))
            problems.append(
                f"{file}: the file's name, {name!r}, is not allowed as the name of the run; {allowed}; "
                f'add name = "{plain}" as the first line of the recipe'
            )
            values["name"] = plain
        origins["name",] = str(file)

    kind, recipe = kind_of(values), None
    if kind is ImportedRecipe:
        for section in [section for section in MAKING if section in values]:
            problems.append(
                f"{_origin((section,), origins)}: [{section}] and [imported] exclude each other: a network that was "
                f"trained elsewhere is not made here; remove one of the two"
            )
            del values[section]
    try:
        recipe = kind.model_validate(values)
        recipe._path = file.resolve()
    except ValidationError as error:
        # One wrong value fails every branch of a union: said once.
        problems += dict.fromkeys(_problem(item, origins, kind) for item in error.errors())
    problems += _unknown_names(values, origins)
    if not problems and kind is Recipe:
        problems += _unfit_layers(recipe, origins)
    if problems or recipe is None:
        raise RecipeError(problems, fix="put these right in the recipe (or in the option named) and run again")
    return recipe


def restore(values: Mapping[str, Any], path: str | Path) -> Recipe | ImportedRecipe:
    """A recipe from what ``dump`` gave and the path it was read from. Raises RecipeError where it no longer fits."""
    try:
        recipe = kind_of(values).model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            [f"a recipe of another version: {item['msg']}" for item in error.errors()], where=path, fix="run it again"
        ) from None
    recipe._path = Path(path)
    return recipe


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _recipes(file.parent) or _recipes(Path("runs"))
        fix = f"recipes here: {', '.join(near)}" if near else "name an existing TOML file"
        raise RecipeError(["the recipe does not exist"], where=file, fix=fix) from None
    except UnicodeDecodeError as error:
        raise RecipeError([f"the recipe is not UTF-8 text: {error}"], where=file) from None
    except OSError as error:
        raise RecipeError([f"the recipe cannot be read: {error.strerror}"], where=file) from None


def _recipes(folder: Path) -> list[str]:
    """The recipes in a folder: not every TOML file is one."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        with suppress(OSError, ValueError):
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            if "imported" in values or {"data", "model"} <= values.keys():
                found.append(str(path))
    return found


def _apply(values: dict, overrides: Iterable[str], origins: dict) -> list[str]:
    problems = []
    for option in overrides:
        key, equals, text = option.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            problems.append(f"--set {option}: expected key=value, for example --set trim.ratio=0.6")
            continue
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            # A bare word is a string; something that began as TOML and did not end as TOML is a mistake.
            if text.strip()[:1] in ("[", "{", '"', "'"):
                problems.append(f"--set {option}: the value is not valid TOML")
                continue
            value = text.strip()
        if path in PATH_KEYS and isinstance(value, str):
            value = str(Path(value).expanduser().resolve())
        table: Any = values
        for part in path[:-1]:
            table = table.setdefault(part, {}) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            problems.append(f"--set {option}: {'.'.join(path[:-1])} is not a section")
            continue
        table[path[-1]] = value
        origins[path] = f"--set {option}"
    return problems


_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*((?:[A-Za-z0-9_.-]|\"[^\"]*\"|'[^']*'|\s*\.\s*)+?)\s*=")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The line of every section and key. tomllib reports none; recipes have no multi-line strings to confuse this."""
    lines: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _parts(header[1])
            lines.setdefault(section, number)
        elif key := _KEY.match(line):
            lines.setdefault(section + _parts(key[1]), number)
            for inner in re.finditer(r"[{,]\s*([A-Za-z0-9_-]+)\s*=", line[key.end() :]):
                lines.setdefault(section + _parts(key[1]) + (inner[1],), number)
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(
        a or b or c for a, b, c in re.findall(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)", dotted)
    )


def _origin(path: tuple, origins: dict) -> str:
    """Where the value at ``path`` came from: its own line, or that of the nearest section around it."""
    keys = tuple(part for part in path if isinstance(part, str))
    if keys not in origins:  # a section that only exists because something in it was named
        keys = next((key for key in origins if key[: len(keys)] == keys), keys)
    while keys and keys not in origins:
        keys = keys[:-1]
    return origins[keys]


def _problem(item: dict, origins: dict, kind: type) -> str:
    path, value = item["loc"], item["input"]
    # A union's branches are part of pydantic's location, but no part of the key.
    path = tuple(part for part in path if _is_key(part))
    key = ".".join(str(part) for part in path if isinstance(part, str))
    where = _origin(path, origins)
    if item["type"] == "extra_forbidden":
        known = _keys_at(path[:-1], kind)
        section = f"[{'.'.join(map(str, path[:-1]))}]" if path[:-1] else "the recipe"
        return f"{where}: unknown key {path[-1]!r} in {section}{_nearest(str(path[-1]), known)}"
    if item["type"] == "missing":
        what = "section" if _field(path, kind)[1] in (Data, Model) else "key"
        return f"{where}: the {what} {key!r} is missing; {_allowed(path, kind)}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    said = json.dumps(value, default=str, ensure_ascii=False)
    return f"{where}: {key} = {said} is not allowed; {_allowed(path, kind)}"


def _is_key(part: object) -> bool:
    return not (isinstance(part, str) and (part in ("int", "float", "str") or part.startswith(("literal[", "constr"))))


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {near[0]!r}? (known: {', '.join(known)})" if near else f"; known: {', '.join(known)}"


def _field(path: tuple, kind: type):
    """The pydantic field at a path; the path's last field for values inside a list or a dict."""
    model: Any = kind
    field = None
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            field = model.model_fields[part]
            model = field.annotation
        elif get_origin(model) is dict:
            model = get_args(model)[1]
    return field, model


def _keys_at(path: tuple, kind: type) -> list[str]:
    model = _field(path, kind)[1] if path else kind
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _allowed(path: tuple, kind: type) -> str:
    field, model = _field(path, kind)
    if field is None:
        return "see the recipes in runs/"
    if hasattr(model, "model_fields"):
        return f"a section with the keys {', '.join(model.model_fields)}"
    hint = model if get_origin(field.annotation) is dict else field.annotation
    return f"allowed: {_describe(hint, field.metadata)}"


def _describe(hint: Any, metadata: Iterable = ()) -> str:
    if get_origin(hint) is Annotated:
        base, *extra = get_args(hint)
        return _describe(base, [*metadata, *extra])
    if get_origin(hint) is Literal:
        return " or ".join(json.dumps(word) for word in get_args(hint))
    if get_origin(hint) is dict:
        return f"a table of {_describe(get_args(hint)[1])} each"
    if get_origin(hint) is list:
        each = _describe(get_args(hint)[0])
        return f"[height, width], each {each}" if each.startswith("a whole") else f"a list of {each} each"
    branches = [arg for arg in get_args(hint) if arg is not type(None)]
    if branches:
        return " or ".join(_describe(branch, metadata) for branch in branches)
    bounds = [item for meta in metadata for item in getattr(meta, "metadata", [meta])]
    low = next((f"{b.ge} <= " for b in bounds if getattr(b, "ge", None) is not None), "") or next(
        (f"{b.gt} < " for b in bounds if getattr(b, "gt", None) is not None), ""
    )
    high = next((f" <= {b.le}" for b in bounds if getattr(b, "le", None) is not None), "") or next(
        (f" < {b.lt}" for b in bounds if getattr(b, "lt", None) is not None), ""
    )
    pattern = next((b.pattern for b in bounds if getattr(b, "pattern", None)), None)
    if pattern:
        return "64 hexadecimal digits" if "64" in pattern else "lower-case letters, digits, dot, dash and underscore"
    word = {int: "a whole number", float: "a number", str: "a string"}.get(hint, getattr(hint, "__name__", str(hint)))
    return f"{word}, {low}value{high}" if low or high else word


def _unknown_names(values: dict, origins: dict) -> list[str]:
    problems = []
    for path, what, known in (
        (("board",), "board", board.names),
        (("model", "name"), "model", networks.names),
        (("data", "name"), "data set", datasets),
    ):
        value: Any = values
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str) and value not in (names := known()):
            problems.append(f"{_origin(path, origins)}: unknown {what} {value!r}{_nearest(value, names)}")
    return problems


def _unfit_layers(recipe: Recipe, origins: dict) -> list[str]:
    """Layers that the network does not have or that cannot be as asked: known before anything is trained."""
    name, bits = recipe.model.name, recipe.dump()["quantize"]["layers"]
    problems = []
    for path, check in (
        (("model", "widths"), lambda: networks.widths_of(name, recipe.model.widths)),
        *((("quantize", "layers", layer), lambda one={layer: given}: networks.check_layers(name, one))
          for layer, given in bits.items()),
        (("trim", "widths"), lambda: _check_trim(recipe, recipe.trim.widths, None)),
        (("trim", "cluster_size"), lambda: _check_trim(recipe, {}, recipe.trim.cluster_size)),
    ):  # fmt: skip
        try:
            check()
        except networks.ModelError as error:
            problems.append(f"{_origin(path, origins)}: {error.what}; {error.fix}")
    return problems


def _check_trim(recipe: Recipe, trimmed: dict[str, int], cluster_size: int | str | None) -> None:
    try:
        widths = networks.widths_of(recipe.model.name, recipe.model.widths)
    except networks.ModelError:
        return  # told by the line of [model]
    clusters = recipe.trim.granularity == "cluster"
    networks.check_trim(recipe.model.name, widths, trimmed, cluster_size if clusters else None)


def _modules(folder: Path, mark: str) -> list[str]:
    return sorted(
        module.name
        for module in pkgutil.iter_modules([str(folder)])
        if not module.ispkg
        and re.search(mark, (folder / f"{module.name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    )


def _toml(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = []
    for key, value in table.items():
        if not isinstance(value, Mapping):
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, Mapping) and (value or not path):
            inner = path + (_toml_key(key),)
            lines += ["", f"[{'.'.join(inner)}]", *_toml(value, inner)]
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    # JSON is TOML for all that a recipe holds, but for one control character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
