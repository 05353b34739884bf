"""Stage ``trim``: filters that contribute least are removed physically, with fine-tuning in between."""

from pipeline import models
from pipeline.stages.network import read_data, read_network, tell_accuracy, tell_size, write_json
from pipeline.train import EVALUATION_BATCH, fit, save_state, to_values
from pipeline.trimming.methods import METHODS


def run(ctx) -> None:
    """Write ``state.pt widths.json relevance.json history.json``.

    relevance.json: {"layers": {layer: {"scores", "relevance", "kept", "removed_at"}}, "asked", "achieved", "of"};
    scores and relevance are those of the network before trimming, one per filter.
    """
    recipe, data = ctx.recipe, read_data(ctx.inputs["data"])
    model, _ = read_network(ctx, "train", data)
    result = trimmed(model, recipe, data, progress=ctx.progress)
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


def trimmed(model, recipe, data: dict, progress=lambda items, label: items):
    """Trim a trained network as ``[trim]`` asks, without the test pictures: ``pipeline.trimming.schedule.Result``."""
    pixels, _ = data["train"]
    settings = recipe.trim

    def finetune(smaller, step: int) -> list[dict]:
        return fit(
            smaller,
            data["train"],
            data["val"],
            epochs=settings.finetune_epochs,
            batch_size=recipe.train.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=recipe.train.weight_decay,
            augment=recipe.train.augment,
            seed=recipe.seed + step,
            progress=progress,
            label=f"trim {step} of {settings.steps}",
        )

    return METHODS[settings.method](
        model,
        build=lambda widths: models.build(recipe.model.name, widths, None, data["input_shape"], data["classes"]),
        input_shape=data["input_shape"],
        batches=lambda: (to_values(part) for part in pixels.split(EVALUATION_BATCH)),
        finetune=finetune,
        options=settings,
    )
