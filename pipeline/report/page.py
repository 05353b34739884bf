"""The page: figures in, one self-contained HTML text out. Equal figures give equal text."""

import base64
import io
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from boards.evidence import EVIDENCE
from pipeline.report import charts

FOLDER = Path(__file__).parent
#: Pictures are shown as the network sees them; larger ones than this (pixels) are made smaller to keep the page light.
LARGEST_PICTURE = 96


def render(figures: dict) -> str:
    """HTML of ``figures.collect``'s result."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "count": count, "png": png, "whole": lambda number: f"{number:,.0f}"}
    environment.globals |= {
        "css": Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        "evidence_words": EVIDENCE,
        "relevance_bars": charts.bars,
        "budget_bars": budget_bars,
        "cycle_bars": cycle_bars,
        "panels": panels,
        "interval_axis": interval_axis,
    }
    return environment.get_template("report.html").render(figures).strip() + "\n"


def percent(share: float, digits: int = 2) -> str:
    """0.9109 -> "91.09 %", with a space that does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def count(number: float) -> str:
    """1234567 -> "1,234,567"."""
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"


def png(pixels) -> str:
    """A data URI of (H, W, 1 or 3) uint8 pixels."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def interval_axis(rows: list[dict]) -> dict | None:
    """{"ticks": [(share, percent of the width)], "at": share -> percent of the width} that holds every interval."""
    ends = [row[end] for row in rows if row["run"] for end in ("low", "high", "value") if row[end] is not None]
    if not ends:
        return None
    marks = charts.ticks(min(ends), max(ends))
    marks = [mark for mark in marks if mark <= 1] or marks

    def at(share: float) -> str:
        return f"{100 * (share - marks[0]) / (marks[-1] - marks[0]):.2f}"

    return {"ticks": [(mark, at(mark)) for mark in marks], "at": at}


def budget_bars(plan: dict) -> Markup:
    """What each part of a plan takes of each resource, as far as implementation is expected to leave it."""
    rows = []
    for name, row in plan["resources"].items():
        layers = [(one["name"], one[name]["implemented"]["value"]) for one in plan["layers"]]
        others = sum(one[name]["implemented"]["value"] for one in plan["processes"])
        rest = row["implemented"]["value"] - others - sum(amount for _, amount in layers)
        rows.append({"name": RESOURCES[name], "available": row["available"], "limit": row["limit"],
                     "low": row["implemented"]["lo"], "high": row["implemented"]["hi"],
                     "parts": [*layers, ("processes without weights", others), ("platform", max(rest, 0.0))]})
    return charts.budget(rows, label=f"what the plan takes of each resource of {plan['board']}")


RESOURCES = {"lut": "LUT", "ff": "FF", "dsp": "DSP48", "bram18": "BRAM18"}


def cycle_bars(plan: dict) -> Markup:
    """Cycles a picture of every process, the slowest marked."""
    rows = [(row["name"], row["cycles"]) for row in plan["layers"] + plan["processes"]]
    return charts.lanes(sorted(rows, key=lambda row: -row[1]), label="cycles a picture of each process")


def panels(trained: list[dict]) -> list[dict]:
    """For each stage that trained: {"title", "stage", "accuracy": svg, "loss": svg}; axes are common to all of them."""
    shown = [curve for curve in trained if curve["points"]]
    if not shown:
        return []
    points = [point for curve in shown for point in curve["points"]]
    losses = [point[key] for point in points for key in ("loss", "loss_val") if point[key]]
    # The first epochs would leave the rest of the axis to a flat line.
    shares = charts.ticks(sorted(point["accuracy"] for point in points)[len(points) // 10], 1.0, 5)
    logs = charts.decades(min(losses), max(losses)) if losses else [0.1, 1.0]

    def chart(curve: dict, what: str, series: list[tuple[str, str]], marks, **style) -> Markup:
        lines = [{"values": [point[key] for point in curve["points"]], "style": name} for key, name in series]
        label = f"{what} of the {curve['title']} over {len(curve['points']) - 1} epochs"
        return charts.curve(lines, marks, points=len(curve["points"]), label=label, starts=curve["starts"],
                            chosen=curve["chosen"], **style)  # fmt: skip

    return [
        {
            "title": curve["title"],
            "stage": curve["stage"],
            "accuracy": chart(curve, "validation accuracy in percent", [("accuracy", "main")], shares, percent=True),
            "loss": chart(curve, "loss", [("loss", "second"), ("loss_val", "main")], logs, logarithmic=True),
        }
        for curve in shown
    ]
