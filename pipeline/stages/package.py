"""Put what a board needs into one folder and one archive."""

from boards.package import open_package, read_json
from pipeline.package import build_package, pack


def run(ctx) -> None:
    """csim/design.so, convert/io.json, export/golden.npz, data/dataset.json -> package/, package.tar.gz.

    Gate: the package opens again, from the archive, with every hash right.
    """
    dataset = read_json(ctx.inputs["data"] / "dataset.json")
    imported = read_json(ctx.inputs["import"] / "import.json") if "import" in ctx.inputs else None
    package = build_package(
        ctx.folder / "package",
        name=ctx.recipe.name,
        board=ctx.board,
        wire=read_json(ctx.inputs["convert"] / "io.json"),
        library=ctx.inputs["csim"] / "design.so",
        golden=ctx.inputs["export"] / "golden.npz",
        labels=dataset["labels"],
        preprocess=dataset["preprocess"],
        recipe=ctx.recipe.to_toml(),
        versions={tool: version for stage in ctx.inputs for tool, version in ctx.manifest(stage)["versions"].items()},
        clock_mhz=ctx.recipe.hls.clock_mhz,
        imported=imported,
    )
    archive = pack(package, ctx.folder / "package.tar.gz")
    files = package.manifest["files"]
    with open_package(archive) as opened:
        ctx.gate(
            "package opens",
            opened.manifest == package.manifest,
            f"{len(files)} files of {package.manifest['name']}, opened from the archive",
            files=len(files),
        )
    ctx.metric("package_bytes", archive.stat().st_size, "simulated", unit="bytes")
