"""Stage ``train``: the float network with BatchNorm, chosen on the validation pictures."""

from pipeline import models
from pipeline.stages.network import read_data, tell_accuracy, tell_size, write_json
from pipeline.train import fit, save_state, seed_everything


def run(ctx) -> None:
    """Write ``state.pt widths.json history.json``."""
    recipe, data = ctx.recipe, read_data(ctx.inputs["data"])
    widths = models.widths_of(recipe.model.name, recipe.model.widths)
    seed_everything(recipe.seed)
    model = models.build(recipe.model.name, widths, None, data["input_shape"], data["classes"])
    settings = recipe.train
    history = fit(
        model,
        data["train"],
        data["val"],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        augment=settings.augment,
        seed=recipe.seed,
        progress=ctx.progress,
        sparsity=settings.sparsity,
    )
    save_state(model, ctx.folder / "state.pt")
    write_json(ctx.folder / "widths.json", widths)
    write_json(ctx.folder / "history.json", history)
    tell_size(ctx, model, data["input_shape"])
    for split in ("val", "test"):
        tell_accuracy(ctx, split, model, data)
