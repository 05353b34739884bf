"""Stage ``trim``: filters that contribute least are removed physically, with fine-tuning in between."""

import copy
from importlib import import_module

from pipeline import models
from pipeline.stages.network import read_data, read_network, tell_accuracy, tell_size, write_json
from pipeline.train import EVALUATION_BATCH, fit, save_state, seed_everything, to_values
from pipeline.trimming import methods


def run(ctx) -> None:
    """Write ``state.pt widths.json relevance.json history.json``.

    relevance.json: {"layers": {layer: {"scores", "relevance", "kept", "removed_at"}}, "asked", "achieved", "of"};
    scores and relevance are those of the network before trimming, one per filter.
    """
    recipe, data = ctx.recipe, read_data(ctx.inputs["data"])
    model, _ = read_network(ctx, "train", data)
    board = hardware(ctx.board, recipe) if methods.on_hardware(recipe.trim) else None
    result = trimmed(model, recipe, data, board, progress=ctx.progress)
    smaller = models.build(recipe.model.name, result.widths, None, data["input_shape"], data["classes"])
    smaller.load_state_dict(result.state)
    save_state(smaller, ctx.folder / "state.pt")
    write_json(ctx.folder / "widths.json", result.widths)
    write_json(ctx.folder / "history.json", result.history)
    layers = {
        layer: {
            "scores": result.scores[layer].tolist(),
            "relevance": result.relevance[layer].tolist(),
            "kept": result.kept[layer].tolist(),
            "removed_at": result.removed_at[layer].tolist(),
        }
        for layer in result.widths
    }
    asked = {"asked": result.asked, "achieved": result.achieved, "of": result.of}
    write_json(ctx.folder / "relevance.json", {"layers": layers, **asked})

    tell_size(ctx, smaller, data["input_shape"])
    for what in ("macs", "parameters", "filters"):
        ctx.metric(f"{what}_removed", 1 - result.after[what] / result.before[what], "trained")
    if board is not None:
        for what, unit in (("cycles", "cycles"), ("lut", "LUT"), ("bram18", "BRAM18")):
            ctx.metric(f"{what}_predicted", result.after[what], "estimated", unit=unit, before=result.before[what])
    for split in ("val", "test"):
        tell_accuracy(ctx, split, smaller, data)
    ctx.gate(
        "trimmed as asked",
        bool(result.achieved >= result.asked and min(result.widths.values()) >= 1),
        f"{result.achieved:.1%} of the {result.of} removed, {result.asked:.1%} asked; "
        f"the narrowest layer keeps {min(result.widths.values())} filters",
        fix="lower trim.ratio",
        **asked,
    )


def hardware(board, recipe):
    """The figures of a board for the recipe's bit widths: ``pipeline.trimming.hardware.Hardware``."""
    # Imported by name: what asks for no target on hardware does not depend on the cost model (see flow.of).
    bits = recipe.quantize.model_dump(exclude_none=True)
    return import_module("pipeline.trimming.hardware").Hardware(board, bits)


def trimmed(model, recipe, data: dict, board=None, progress=lambda items, label: items):
    """Trim a trained network as ``[trim]`` asks, without the test pictures: ``pipeline.trimming.schedule.Result``."""
    pixels, labels = data["train"]
    settings, train = recipe.trim, recipe.train
    steps = 1 if settings.schedule == "one-shot" else settings.steps
    teacher = copy.deepcopy(model) if settings.distillation else None
    labeled = methods.needs_labels(settings)

    def build(widths):
        return models.build(recipe.model.name, widths, None, data["input_shape"], data["classes"])

    def batches():
        for part, answers in zip(pixels.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            yield (to_values(part), answers) if labeled else to_values(part)

    def finetune(smaller, step: int) -> list[dict]:
        scratch = settings.rewind == "scratch" and step == steps
        if scratch:  # the control: these widths, and nothing that was learned before
            seed_everything(recipe.seed)
            fresh = build({name: part.out_channels for name, part in methods.convolutions(smaller).items()})
            smaller.load_state_dict(fresh.state_dict())
        return fit(
            smaller,
            data["train"],
            data["val"],
            epochs=train.epochs if scratch else settings.finetune_epochs,
            batch_size=train.batch_size,
            learning_rate=train.learning_rate if scratch or settings.rewind == "rate" else settings.learning_rate,
            weight_decay=train.weight_decay,
            augment=train.augment,
            seed=recipe.seed + step,
            progress=progress,
            label=f"trim {step} of {steps}",
            teacher=teacher,
            distillation=settings.distillation,
        )

    return methods.trimmed(
        model,
        build=build,
        input_shape=data["input_shape"],
        batches=batches,
        finetune=finetune,
        options=settings,
        board=board,
        seed=recipe.seed,
    )
