"""Small charts as inline SVG, colored by the page's own CSS so that they follow light and dark. Pure functions."""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 24


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from the last one at or below ``low`` to the first at or above ``high``, at most ``most``."""
    high = max(high, low + 1e-4 * max(1.0, abs(low)))
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power, 2 * power, 5 * power, 10 * power, 20 * power, 50 * power):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= most:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def decades(low: float, high: float, most: int = 6, factors: Sequence[int] = (1, 3)) -> list[float]:
    """Ticks of a logarithmic axis that enclose positive numbers: 1, 3, 10, ..., or powers of ten if these are many."""
    marks = [factor * 10.0**power for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
             for factor in factors]  # fmt: skip
    first = max(i for i, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = next((i for i, mark in enumerate(marks) if mark >= high), len(marks) - 1)
    marks = [float(f"{mark:.6g}") for mark in marks[first : max(last, first + 1) + 1]]
    return marks if len(marks) <= most or len(factors) == 1 else decades(low, high, most, factors=(1,))


def curve(series: Sequence[dict], marks: Sequence[float], *, points: int, label: str, logarithmic=False, percent=False,
          starts: Sequence[int] = (), chosen: Sequence[int] = ()) -> Markup:
    """Lines over epochs 0 .. points - 1 between the first and last of ``marks`` (the ticks of the y axis).

    ``series``: {"values": one number or None per epoch, "style": CSS class}; the last one carries a dot at each epoch
    of ``chosen``. ``starts``: epochs at which training began anew; lines are broken there.
    """
    scale = math.log if logarithmic else float
    low, high = scale(marks[0]), scale(marks[-1])

    def x(epoch: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (epoch / max(points - 1, 1))

    def y(value: float) -> float:
        value = marks[0] if logarithmic and value <= 0 else value
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (scale(value) - low) / (high - low)

    parts = []
    for mark in marks:
        text = f"{100 * mark:g}" if percent else f"{mark:g}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
                     f'<text x="{_LEFT - 6}" y="{y(mark) + 3.5:.1f}" text-anchor="end">{text}</text>')  # fmt: skip
    for start in starts[1:]:
        parts.append(f'<line class="start" x1="{x(start - 0.5):.1f}" x2="{x(start - 0.5):.1f}" y1="{_TOP}" '
                     f'y2="{HEIGHT - _BOTTOM}"/>')  # fmt: skip
    for epoch in ticks(0, max(points - 1, 1)):
        if epoch == int(epoch) and epoch <= max(points - 1, 1):
            parts.append(f'<text x="{x(epoch):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{int(epoch)}</text>')
    lines = []
    for line in series:
        path, pen = [], "M"
        for epoch, value in enumerate(line["values"]):
            if value is None or epoch in starts:
                pen = "M"
            if value is not None:
                path.append(f"{pen}{x(epoch):.1f} {y(value):.1f}")
                pen = "L"
        lines.append(f'<path class="{line["style"]}" d="{" ".join(path)}"/>')
    # A viewport of its own cuts off what lies outside the axes.
    box = f"{_LEFT} {_TOP - 2} {WIDTH - _LEFT - _RIGHT + 2} {HEIGHT - _TOP - _BOTTOM + 4}"
    x0, y0, width, height = box.split()
    parts.append(f'<svg x="{x0}" y="{y0}" width="{width}" height="{height}" viewBox="{box}">{"".join(lines)}</svg>')
    for epoch in chosen:
        if (value := series[-1]["values"][epoch]) is not None and marks[0] <= value <= marks[-1]:
            parts.append(f'<circle class="chosen" cx="{x(epoch):.1f}" cy="{y(value):.1f}" r="3.2"/>')
    return _svg(f"0 0 {WIDTH} {HEIGHT}", label, parts, "chart")


def bars(scores: Sequence[float], removed_at: Sequence[int], *, label: str, highest: float) -> Markup:
    """One bar per filter in the order of its number, as tall as its score; removed ones are hollow.

    Stretched to the width there is; ``highest``: the score of a bar over the whole height.
    """
    parts = []
    for number, (score, step) in enumerate(zip(scores, removed_at, strict=True)):
        height = 100 * max(score, 0) / highest if highest > 0 else 0
        fate = f"removed in step {step}" if step else "kept"
        parts.append(f'<rect class="{"removed" if step else "kept"}" x="{number + 0.12:.2f}" width="0.76" '
                     f'y="{100 - height:.2f}" height="{height:.2f}"><title>filter {number}: score {score:.3f}, {fate}'
                     f"</title></rect>")  # fmt: skip
    return _svg(f"0 0 {len(scores)} 100", label, parts, "bars", ' preserveAspectRatio="none"')


_NAME, _LONG, _ROW = 150, 560, 24


def budget(rows: Sequence[dict], *, label: str) -> Markup:
    """What a design takes of a board: one bar per resource, its parts side by side, the whole width what there is.

    ``rows``: {"name", "parts": [(words, amount)], "available", "limit", "low", "high"}; the last two are the interval
    of the sum.
    """
    drawn = []
    for number, row in enumerate(rows):
        whole = max(row["available"], 1)
        top, at = number * _ROW + 4, 0.0
        drawn.append(f'<text x="{_NAME - 8}" y="{top + 12}" text-anchor="end">{escape(row["name"])}</text>'
                     f'<rect class="room" x="{_NAME}" y="{top}" width="{_LONG}" height="{_ROW - 8}"/>')  # fmt: skip
        for place, (words, amount) in enumerate(row["parts"]):
            wide = _LONG * min(amount / whole, max(1.1 - at, 0.0))
            drawn.append(f'<rect class="part{place % 2}" x="{_NAME + _LONG * at:.1f}" y="{top}" width="{wide:.1f}" '
                         f'height="{_ROW - 8}"><title>{escape(words)}: {amount:,.0f}</title></rect>')  # fmt: skip
            at += wide / _LONG
        low, high = (_NAME + _LONG * min(row[end] / whole, 1.1) for end in ("low", "high"))
        middle, limit = top + (_ROW - 8) / 2, _NAME + _LONG * row["limit"] / whole
        drawn.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}V{middle + 4}'
                     f'M{high:.1f} {middle - 4}V{middle + 4}"/><path class="limit" d="M{limit:.1f} {top - 3}'
                     f'V{top + _ROW - 5}"/>')  # fmt: skip
    return _svg(f"0 0 {_NAME + _LONG * 1.12:.0f} {len(rows) * _ROW}", label, drawn, "stack")


def lanes(rows: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """One bar per (name, amount), the longest over the whole width, in the order given."""
    most, drawn = max(amount for _, amount in rows), []
    for number, (name, amount) in enumerate(rows):
        top = number * 18 + 2
        style, wide = "part0" if amount == most else "part1", _LONG * amount / most
        drawn.append(f'<text x="{_NAME - 8}" y="{top + 11}" text-anchor="end">{escape(name)}</text>'
                     f'<rect class="{style}" x="{_NAME}" y="{top}" width="{wide:.1f}" height="13"/>'
                     f'<text x="{_NAME + wide + 5:.1f}" y="{top + 11}">{amount:,.0f}</text>')
    return _svg(f"0 0 {_NAME + _LONG * 1.12:.0f} {len(rows) * 18 + 2}", label, drawn, "stack")


def _svg(box: str, label: str, parts: Sequence[str], style: str, more: str = "") -> Markup:
    return Markup(f'<svg class="{style}" viewBox="{box}"{more} role="img" aria-label="{escape(label)}">') + Markup(
        "".join(parts)
    ) + Markup("</svg>")  # fmt: skip
