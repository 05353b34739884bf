"""Stage ``quantize``: the Brevitas twin of the trimmed network, calibrated and fine-tuned."""

from pipeline.quantize import FLOAT32_EXACT, QuantizeError, bits_of, describe, quantize
from pipeline.stages.network import read_data, read_network, tell_accuracy, write_json
from pipeline.train import save_state


def run(ctx) -> None:
    """Write ``state.pt quant.json history.json``; gate on scales that hardware can follow exactly."""
    recipe, data = ctx.recipe, read_data(ctx.inputs["data"])
    model, widths = read_network(ctx, "trim", data)
    bits, settings = bits_of(recipe.quantize), recipe.quantize
    quantized, history = quantize(
        model,
        recipe.model.name,
        widths,
        bits,
        data["train"],
        data["val"],
        classes=data["classes"],
        seed=recipe.seed,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=recipe.train.weight_decay,
        patience=settings.patience,
        augment=recipe.train.augment,
        progress=ctx.progress,
    )
    save_state(quantized, ctx.folder / "state.pt")
    write_json(ctx.folder / "history.json", history)
    for split in ("val", "test"):
        tell_accuracy(ctx, split, quantized, data, bits["input"])
    try:
        found, problem, fix = describe(quantized, data["input_shape"], bits["input"]), None, None
    except QuantizeError as error:
        found, problem, fix = None, error.what, error.fix
    ctx.gate(
        "scales are powers of two",
        problem is None,
        problem or f"{len(found['layers'])} layers and {len(found['activations'])} activations, zero points 0",
        fix=fix,
    )
    widest = max(layer["accumulator_max"] for layer in found["layers"])
    ctx.metric("accumulator_max", widest, "trained", unit="product-scale units", limit=FLOAT32_EXACT)
    oracle = "float32" if widest < FLOAT32_EXACT else "float64"
    write_json(ctx.folder / "quant.json", {"bits": bits, "oracle": oracle, **found})
