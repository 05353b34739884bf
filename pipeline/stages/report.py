"""Stage ``report``: the whole run on one self-contained page."""

from pipeline.report import figures, page


def run(ctx) -> None:
    """Write ``report.html`` from every stage before it. Gate: package, project and board are of one design.

    No times are told: those of the stages are in their manifests, and equal runs shall give equal pages.
    """
    told = figures.collect(
        ctx.inputs,
        {stage: ctx.manifest(stage) for stage in ctx.inputs},
        name=ctx.recipe.name,
        recipe=ctx.recipe.to_toml(),
        board=ctx.board,
        place=ctx.place,
    )
    digests = [told["io"]["design_digest"], told["package"]["design_digest"],
               told["result"].get("package", {}).get("design_digest")]  # fmt: skip
    ctx.gate("one design", len(set(digests)) == 1, f"design {digests[0][:12]}... in project, package and board result",
             fix="run the same command again with --verify: an artifact was replaced by hand")  # fmt: skip
    (ctx.folder / "report.html").write_text(page.render(told), encoding="utf-8")
