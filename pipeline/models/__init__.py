"""Networks: a file per model, each describing its float form and its quantised twin.

A model file holds ``WIDTHS`` ({path of a convolution: filters}, a literal), ``INPUT_SHAPE`` (C, H, W),
``build(widths, quant, input_shape, classes)`` and, where a residual add ties filters together, ``TIED`` (groups of
convolutions of equal width). Its last layer is a linear one named ``classifier``.

Nothing here imports torch until a network is built, so that a recipe can be checked at once.
"""

import ast
import difflib
from importlib import import_module
from pathlib import Path

from boards.errors import SlimgateError

CLASSIFIER = "classifier"


class ModelError(SlimgateError):
    """A recipe's widths, layer names or picture size do not fit the network."""


def names() -> list[str]:
    """Names of the networks: files here that define WIDTHS."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if "WIDTHS" in _literals(file))


def widths_of(model: str, changed: dict[str, int] | None = None) -> dict[str, int]:
    """{convolution: filters} of a network, with ``changed`` applied.

    Raises ModelError for an unknown network or convolution, and for tied convolutions of different widths.
    """
    literals = _of(model)
    widths = dict(literals["WIDTHS"])
    for name, width in (changed or {}).items():
        if name not in widths:
            raise _unknown(model, "convolution", name, list(widths))
        widths[name] = width
    for group in literals.get("TIED", ()):
        if len({widths[name] for name in group}) > 1:
            raise ModelError(
                f"{model}: these convolutions meet at an add and need the same width, not "
                + ", ".join(f"{name}={widths[name]}" for name in group),
                where="[model.widths]",
                fix="set all of them to one width",
            )
    return widths


def layer_names(model: str) -> list[str]:
    """The layers that ``[quantize.layers.NAME]`` may name: every convolution and the classifier."""
    return [*_of(model)["WIDTHS"], CLASSIFIER]


def check_layers(model: str, layers: dict[str, dict]) -> None:
    """Raise ModelError unless ``layers`` {name: {"weights", "activations"}} fits the network."""
    for name, bits in layers.items():
        if name not in (known := layer_names(model)):
            raise _unknown(model, "layer", name, known)
        if name == CLASSIFIER and bits.get("activations") is not None:
            raise ModelError(
                "the classifier's outputs are its accumulators and are not quantised",
                where=f"[quantize.layers.{CLASSIFIER}] activations",
                fix="remove that key",
            )


def check_trim(model: str, widths: dict[str, int], trimmed: dict[str, int], cluster_size: int | str | None) -> None:
    """Raise ModelError unless the widths to trim to, and the size of clusters, fit the network's own widths."""
    for name, width in trimmed.items():
        if name not in widths:
            raise _unknown(model, "convolution", name, list(widths))
        if width > widths[name]:
            raise ModelError(
                f"{name} has {widths[name]} filters and cannot be trimmed to {width}",
                where="[trim.widths]",
                fix="give fewer",
            )
    for group in _of(model).get("TIED", ()):
        given = {name: trimmed[name] for name in group if name in trimmed}
        if len(set(given.values())) > 1:
            raise ModelError(
                f"{model}: these convolutions have one set of filters and need the same width, not "
                + ", ".join(f"{name}={width}" for name, width in given.items()),
                where="[trim.widths]",
                fix="give one of them, or all the same",
            )
    narrowest = min(widths, key=widths.__getitem__)
    if isinstance(cluster_size, int) and cluster_size > widths[narrowest]:
        raise ModelError(
            f"a cluster of {cluster_size} filters is larger than the layer {narrowest}, which has {widths[narrowest]}",
            where="trim.cluster_size",
            fix=f'at most {widths[narrowest]}, or "auto"',
        )


def build(model: str, widths: dict[str, int], quant: dict | None, input_shape, classes: int):
    """The network as a torch module. ``quant``: None for float, else its bits; ``input_shape``: (C, H, W).

    Raises ModelError where the pictures are too small or do not divide as the network needs.
    """
    module = import_module(f"pipeline.models.{model}")
    step = getattr(module, "SIZE_STEP", 1)
    channels, height, width = input_shape
    if height % step or width % step or height < step or width < step:
        raise ModelError(
            f"{model} takes pictures whose height and width are multiples of {step}, not {height}x{width}",
            fix="choose another size in [data] or another [model]",
        )
    return module.build(widths, quant, (channels, height, width), classes)


def _of(model: str) -> dict:
    if model not in (known := names()):
        raise _unknown("slimgate", "model", model, known)
    return _literals(Path(__file__).parent / f"{model}.py")


def _literals(file: Path) -> dict:
    """Module-level constants of a model file that are plain literals, read without importing it."""
    found = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def _unknown(model: str, what: str, name: str, known: list[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ModelError(f"{model} has no {what} {name!r}{hint}", fix=f"known: {', '.join(known)}")
