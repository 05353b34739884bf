"""``slimgate plan``: what a network takes of a board, before anything is trained, converted or synthesised.

The network is a QONNX file, or a recipe's: its export where that stage is finished, else an untrained network of the
recipe's widths and bits, as it is before trimming.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from boards import board as boards
from boards.board import Board
from boards.errors import SlimgateError
from hls import layers, verify
from hls.plan import plan_layers

RESOURCES = {"lut": "LUT", "ff": "FF", "dsp": "DSP", "bram18": "BRAM18"}


@dataclass(frozen=True)
class Subject:
    """What is planned: its processes, where they come from in words, what is asked (:func:`hls.plan.make_plan`), and
    the board it is meant for."""

    found: list[layers.Described]
    origin: str
    asked: Mapping
    board: Board

    def plan(self, board: Board | None = None, **more) -> dict:
        return plan_layers(self.found, board=board or self.board, **(dict(self.asked) | more))


def of_file(path: Path, board_name: str | None, asked: Mapping) -> Subject:
    """A QONNX file. Raises GraphError or :class:`hls.verify.Refused` for one that cannot be carried exactly."""
    board = boards.load(board_name or "pynq-z2")
    board.clock_divisors(float(asked.get("clock_mhz", board.clock_mhz)))
    network = verify.examine(path)
    return Subject(layers.describe(network.model, network.analysis), str(path), asked, board)


def of_recipe(recipe, exported: Path | None, asked: Mapping) -> Subject:
    """A recipe's network: ``exported`` is the finished export, None where there is none yet; then the file of a recipe
    that imports one."""
    from pipeline.stages.plan import asked_of

    board = boards.load(recipe.board)
    if exported is None and hasattr(recipe, "imported"):
        exported = recipe.resolve(recipe.imported.model)
    if exported is not None:
        network = verify.examine(exported)
        origin, model, analysis = str(exported), network.model, network.analysis
    else:
        from pipeline import preflight  # imports torch, which a file does without

        origin = "an untrained network of the recipe" + (", before trimming" if recipe.trim.method != "none" else "")
        model, analysis = preflight.untrained(recipe)
    asked = asked_of(recipe.hls) | dict(asked)
    board.clock_divisors(float(board.clock_mhz if asked["clock_mhz"] is None else asked["clock_mhz"]))
    return Subject(layers.describe(model, analysis), origin, asked, board)


def on_all_boards(subject: Subject) -> list[dict]:
    """The subject on every board at the board's own clock: {"board", "fits", "plan" or "reason"}, best rate first."""
    rows = []
    for name in boards.names():
        board = boards.load(name)
        try:
            plan = subject.plan(board, clock_mhz=None, over_budget=True)
        except SlimgateError as error:  # a part nobody has data for, a rate no clock of this board reaches
            rows.append({"board": name, "fits": False, "reason": error.what})
            continue
        row = {"board": name, "fits": plan["fits"], "plan": plan}
        rows.append(row if plan["fits"] else row | {"reason": plan["shortage"]})
    return sorted(rows, key=lambda r: (not r["fits"], -r["plan"]["totals"]["frames_per_second"] if r["fits"] else 0))


class NoBoard(SlimgateError):
    """The subject fits on none of the boards."""

    exit_code = 1

    def __init__(self, rows: list[dict]):
        """``rows`` of :func:`on_all_boards`, none of which fits."""
        known = {row["board"]: row for row in rows if "plan" in row}
        if not known:
            super().__init__("no board known here can be planned for", where=rows[0]["board"], fix=rows[0]["reason"])
            return
        over = {name: max(r["planned"] / max(r["limit"], 1) for r in row["plan"]["resources"].values())
                for name, row in known.items()}  # fmt: skip
        nearest = min(over, key=over.get)
        super().__init__(
            "no board known here is large enough",
            where=f"the nearest, {nearest}: {known[nearest]['reason']}",
            fix=f"--board {nearest} instead of --all-boards names the nearest changes of width and bits",
        )


# --------------------------------------------------------------------------- as tables


def show(subject: Subject, plan: dict, console) -> None:
    """The whole plan of one board."""
    console.print(f"{subject.origin} on {plan['board']} at {plan['clock_mhz']:g} MHz: {plan['evidence']}",
                  markup=False, soft_wrap=True)  # fmt: skip
    table = Table("layer", "shape", "MACs", "bits", "strategy", "reuse", "multipliers", "cycles",
                  *RESOURCES.values(), "FIFO")  # fmt: skip
    names = {row["name"]: row for row in plan["layers"] + plan["processes"]}
    for item in subject.found:
        table.add_row(*_cells(names[item.name], plan["fifo"]))
    console.print(table)
    table = Table("resource", "estimated", "90 % interval", "as HLS reports", "allowed", "on the board", "taken")
    for name, row in plan["resources"].items():
        here, reported = row["implemented"], row["hls"]
        share = f"{100 * row['planned'] / row['available']:.0f} %" if row["available"] else "-"
        table.add_row(RESOURCES[name], f"{here['value']:,.0f}", f"{here['lo']:,.0f} .. {here['hi']:,.0f}",
                      f"{reported['value']:,.0f}", f"{row['limit']:,}", f"{row['available']:,}", share)  # fmt: skip
    console.print(table)
    for line in _sentences(plan):
        console.print(line, markup=False, soft_wrap=True)


def _cells(row: dict, fifos: dict) -> list[str]:
    shape = "x".join(map(str, row["in_shape"])) + " > " + "x".join(map(str, row["out_shape"]))
    written = [str(fifo["depth"]) for name, fifo in fifos.items() if name.partition("->")[0] == row["name"]]
    bits, work = f"A{row['input_bits']}", ["", "", "", ""]
    if "reuse_factor" in row:
        bits = f"W{row['weight_bits']} {bits}"
        work = [f"{row['macs']:,}", row["strategy"], f"{row['reuse_factor']:,}", f"{row['multipliers']:,}"]
    return [row["name"], shape, work[0], bits, *work[1:], f"{row['cycles']:,}",
            *(f"{row[name]['implemented']['value']:,.0f}" for name in RESOURCES), " ".join(written)]


def _sentences(plan: dict) -> list[str]:
    totals, bounds = plan["totals"], plan["totals"]["bounds"]
    around = lambda name: f"{totals[name]:,} ({bounds[name]['lo']:,.0f} .. {bounds[name]['hi']:,.0f})"  # noqa: E731
    what = {"interval": "least interval", "latency": "least latency of the plans simulated",
            "resources": "least resources at the rate asked for"}[plan["objective"]]  # fmt: skip
    what = what if plan["fits"] else "the plan that overshoots least"
    proven = "; proven: no choice that fits is faster, by this model" if plan["optimal"] else ""
    return [
        f"bottleneck: {totals['bottleneck']}; {what}{proven}",
        f"interval: {around('initiation_interval_cycles')} cycles, {totals['frames_per_second']:,} frames per second",
        f"latency: {around('latency_cycles')} cycles, {totals['latency_us']:,} us",
        *(f"extrapolated: {reason}" for reason in plan["extrapolated"]),
    ]


def show_boards(subject: Subject, rows: list[dict], console) -> None:
    """On which boards it fits."""
    console.print(f"{subject.origin}, each board at its own clock: estimated", markup=False, soft_wrap=True)
    table = Table("board", "fits", "MHz", "frames per second", "latency us", "fullest resource", "room left", "reason")
    for row in rows:
        plan = row.get("plan")
        if not row["fits"]:
            table.add_row(row["board"], "no", f"{plan['clock_mhz']:g}" if plan else "", "", "", "", "", row["reason"])
            continue
        name, fullest = max(plan["resources"].items(), key=lambda item: _share(item[1]))
        table.add_row(row["board"], "yes", f"{plan['clock_mhz']:g}", f"{plan['totals']['frames_per_second']:,}",
                      f"{plan['totals']['latency_us']:,}", RESOURCES[name], f"{100 * (1 - _share(fullest)):.0f} %",
                      "")  # fmt: skip
    console.print(table)


def _share(row: dict) -> float:
    return row["planned"] / row["available"] if row["available"] else 0.0
