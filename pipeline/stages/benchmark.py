"""Run the package on a board at a place and hold every output code against the golden vectors."""

from boards.onboard.run import canonical, write_whole
from boards.package import open_package
from boards.session import open_session


def run(ctx) -> None:
    """package/ -> result.json (boards/result.schema.json), result.codes.npy (N, K) int64.

    Gates: the script came to an end, on the device it was meant for; its design is the package's; every byte arrived
    where it should; every code equals golden; nothing had to be tried twice.
    """
    out, options = ctx.folder / "result.json", ctx.recipe.benchmark
    with open_package(ctx.inputs["package"] / "package") as package, open_session(ctx.place, ctx.board) as session:
        session.load(package.folder)
        result = session.benchmark(out, options.singles, options.warmup)
        digest, simulated = package.manifest["design_digest"], session.simulated
    error = result.get("error", {})
    detail = error.get("text", f"{ctx.board.name} at {ctx.place}")
    ctx.gate("board ran to the end", result["status"] != "error", detail, **_code(error))
    if simulated:
        _drop_times(ctx, result, out)
    evidence, name = result["evidence"], result["device"]["name"]
    ctx.gate("board is the place's", result["device"]["simulated"] is simulated, f"{name} at {ctx.place}")
    probe, streamed, singles = result["probe"], result["stream"], result["singles"]
    same = probe["identity"] == digest[:32] and result["package"]["design_digest"] == digest
    ctx.gate("board identity", same, f"the device holds {probe['identity'][:12]}..., the package {digest[:12]}...",
             fix="a stale overlay: build and package again")  # fmt: skip
    ctx.gate("board transfers", not result["retries"], f"{len(result['retries'])} transfers tried twice",
             retries=len(result["retries"]))  # fmt: skip
    padding = streamed["padding_bytes_not_zero"] + singles["padding_bytes_not_zero"]
    ctx.gate("board bytes", probe["equal"] is True and padding == 0,
             f"counted {probe['counted']}, expected {probe['expected']}, {padding} padding bytes not 0")  # fmt: skip

    mismatches = streamed["mismatches"] + singles["mismatches"]
    compared = streamed["compared_codes"] + singles["compared_codes"]
    ctx.metric("board_mismatches", mismatches, evidence, compared=compared, samples=streamed["samples"],
               singles=singles["count"])  # fmt: skip
    ctx.metric("samples", streamed["samples"], evidence)
    accuracy = result["accuracy"]
    ctx.metric("accuracy_test", accuracy["value"], evidence, interval=accuracy["interval"], samples=accuracy["samples"])
    if not simulated:
        latency = result["times"]["latency"]
        for share in ("p50", "p90", "p99", "max"):
            ctx.metric(f"round_trip_{share}_us", latency["round_trip_us"][share], evidence, unit="us")
    first = streamed["first_mismatch"] or singles["first_mismatch"]
    ctx.gate("board equals golden", mismatches == 0 and result["status"] == "ok",
             f"{mismatches} of {compared} output codes differ" + (f"; first: {first}" if first else ""),
             fix="the C simulation agreed, so look at the package, the driver or the transfer", mismatches=mismatches,
             compared=compared)  # fmt: skip


def _code(error: dict) -> dict:
    """The exit code of a failed run: 1 a length differs, 2 wrong package or board, 3 board or DMA trouble."""
    return {"code": error["code"]} if error else {}


def _drop_times(ctx, result: dict, out) -> None:
    """A simulated board's times are this computer's: said once, kept nowhere, so that equal runs give equal files."""
    spent = result["times"]["host_simulation"]["round_trip_us"]["p50"]
    ctx.log(f"host-side simulation: {spent:.0f} us a transfer on this computer; no latency of the design")
    result["times"] = None
    write_whole(out, canonical(result))
