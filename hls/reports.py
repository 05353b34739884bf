"""What the vendor tools report, read from their text: Vitis HLS (csynth, cosim) and Vivado (utilization, timing, power,
DRC).

Nothing here runs a tool. Each reader takes the text of one report and returns one frozen record, or raises
:class:`ReportError` naming what is missing: a cut-off report is never half an answer. A value the tool itself does not
know ("undef", "?", "NA") is None; a gate that needs it fails closed. Written against reports of the 2018.3 to 2025.2
releases (tests/data/reports/README.md).
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from boards.errors import SlimgateError

MOST_BYTES = 64 << 20
"""No report of a design that fits these boards comes near it; a larger file is not read."""
EDGE = re.compile(r"^\+[-+]+\+$")
UNKNOWN = {"", "-", "?", "NA", "N/A", "undef", "x", "---"}
HLS_NAMES = {"LUT": "lut", "FF": "ff", "DSP": "dsp", "DSP48E": "dsp", "URAM": "uram", "BRAM_18K": "bram36"}


class ReportError(SlimgateError):
    """A report is missing, cut off, or not the kind of report it was taken for."""


@dataclass(frozen=True)
class Header:
    """Who wrote a Vivado report about what. ``version`` as 2022.2, ``state`` as Routed; "" where not said."""

    version: str
    design: str
    device: str
    state: str


@dataclass(frozen=True)
class Csynth:
    """C synthesis of one module: estimates of Vitis HLS, before any implementation.

    Cycles are (least, most), None where they depend on data; periods in ns; resources are counts of lut, ff, bram36
    (halves allowed), uram and dsp. Vivado HLS before 2020.2 counts a top function's interval one cycle longer in the
    XML than in the text.
    """

    version: str
    top: str
    part: str
    target_ns: float
    uncertainty_ns: float
    estimated_ns: float
    latency_cycles: tuple[int, int] | None
    interval_cycles: tuple[int, int] | None
    pipeline: str
    used: dict[str, float]
    available: dict[str, float]

    @property
    def slack_ns(self) -> float:
        """What is left of the period after the estimate and the uncertainty, as the tool's own summary counts it."""
        return round(self.target_ns - self.uncertainty_ns - self.estimated_ns, 6)

    @property
    def clock_met(self) -> bool:
        """Whether the estimate fits into the period itself; the uncertainty is the implementation's reserve."""
        return self.estimated_ns <= self.target_ns


@dataclass(frozen=True)
class CsynthRow:
    """One line of the synthesis summary: a module or a loop at ``depth`` in the hierarchy, its cycles and resources."""

    name: str
    depth: int
    loop: bool
    dataflow: bool
    slack_ns: float | None
    latency_cycles: int | None
    interval_cycles: int | None
    used: dict[str, float]


@dataclass(frozen=True)
class Cosim:
    """C/RTL co-simulation of one language. Cycles are (least, mean, most) over the transactions, None where unknown."""

    language: str
    status: str
    latency_cycles: tuple[int, int, int] | None
    interval_cycles: tuple[int, int, int] | None
    total_cycles: int | None

    @property
    def passed(self) -> bool:
        return self.status == "Pass"


@dataclass(frozen=True)
class Utilization:
    """Sites used and there, after synthesis or implementation (``header.state``): lut, ff, bram36, uram, dsp."""

    header: Header
    used: dict[str, float]
    available: dict[str, float]

    def over(self) -> dict[str, float]:
        """Resource -> share, of those of which more is used than there is."""
        return {
            name: self.used[name] / self.available[name] if self.available[name] else float("inf")
            for name in self.used
            if self.used[name] > self.available[name]
        }


@dataclass(frozen=True)
class Timing:
    """The design timing summary, in ns and endpoints; None where the tool says NA (nothing is constrained)."""

    header: Header
    wns_ns: float | None
    tns_ns: float | None
    setup_failing: int | None
    setup_endpoints: int | None
    whs_ns: float | None
    ths_ns: float | None
    hold_failing: int | None
    hold_endpoints: int | None
    wpws_ns: float | None
    tpws_ns: float | None
    pulse_failing: int | None
    pulse_endpoints: int | None
    constrained: bool
    """False where the report says that there are no user specified timing constraints."""
    clocks_ns: dict[str, float] = field(default_factory=dict)
    """Clock -> period."""

    @property
    def met(self) -> bool:
        """Setup, hold and pulse width were all timed and none fails. False where one was not timed."""
        slacks = (self.wns_ns, self.whs_ns, self.wpws_ns)
        return all(slack is not None and slack >= 0 for slack in slacks)


@dataclass(frozen=True)
class Power:
    """Vivado's power estimate in W: vectorless unless ``activity`` names a file. An estimate, never a measurement."""

    header: Header
    total_w: float
    dynamic_w: float
    static_w: float
    junction_c: float | None
    confidence: str
    activity: str | None


@dataclass(frozen=True)
class Violation:
    rule: str
    severity: str
    description: str
    count: int


@dataclass(frozen=True)
class Drc:
    """Design rule check: the summary's rows, and the message lines of each violation in the details."""

    header: Header
    violations: tuple[Violation, ...]
    details: dict[str, str]

    @property
    def errors(self) -> tuple[Violation, ...]:
        return tuple(v for v in self.violations if v.severity == "Error")


def read(path: Path, parse: Callable[[str], object]):
    """``parse`` applied to the text of ``path``; a :class:`ReportError` names the file."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ReportError(f"a report of {size >> 20} MiB is not read", where=path)
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReportError(f"the report cannot be read: {error.strerror}", where=path) from error
    try:
        return parse(text.replace("\r\n", "\n"))
    except ReportError as error:
        if error.where is None:
            raise ReportError(error.what, where=path, fix=error.fix) from error
        raise


# ---- Vitis HLS


def csynth_xml(text: str) -> Csynth:
    """``csynth.xml`` or ``<module>_csynth.xml``."""
    if "<!DOCTYPE" in text[:4096]:
        raise ReportError("a csynth report has no document type", fix="take the file the tool wrote")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _cut(f"not a csynth report in XML: {error}") from error
    if root.tag != "profile":
        raise ReportError(
            f"not a csynth report: its root is <{root.tag}>, not <profile>",
            fix="take csynth.xml or <module>_csynth.xml",
        )

    def say(path: str) -> str:
        element = root.find(path)
        if element is None or not (element.text or "").strip():
            raise _cut(f"the csynth report has no {path}")
        return element.text.strip()

    estimates, area = "PerformanceEstimates", "AreaEstimates"
    overall = f"{estimates}/SummaryOfOverallLatency"
    used, available = (
        _hls_resources({e.tag: e.text or "" for e in root.iterfind(f"{area}/{group}/*")}, f"{area}/{group}")
        for group in ("Resources", "AvailableResources")
    )
    return Csynth(
        version=say("ReportVersion/Version"),
        top=say("UserAssignments/TopModelName"),
        part=say("UserAssignments/Part"),
        target_ns=_decimal(say("UserAssignments/TargetClockPeriod"), "TargetClockPeriod"),
        uncertainty_ns=_decimal(say("UserAssignments/ClockUncertainty"), "ClockUncertainty"),
        estimated_ns=_decimal(say(f"{estimates}/SummaryOfTimingAnalysis/EstimatedClockPeriod"), "EstimatedClockPeriod"),
        latency_cycles=_pair(say(f"{overall}/Best-caseLatency"), say(f"{overall}/Worst-caseLatency"), "latency"),
        interval_cycles=_pair(say(f"{overall}/Interval-min"), say(f"{overall}/Interval-max"), "interval"),
        pipeline=say(f"{estimates}/PipelineType"),
        used=used,
        available=available,
    )


def csynth_rpt(text: str) -> Csynth:
    """``<module>_csynth.rpt``."""
    top = re.search(r"^== V\w+ HLS Report for '(.+)'$", text, re.M)
    if not top:
        raise ReportError(
            "not a module's csynth report: no line \"== Vitis HLS Report for '...'\"",
            fix="take <module>_csynth.rpt; csynth.rpt is the summary of all modules",
        )

    def say(word: str) -> str:
        found = re.search(rf"^\* {word}: +(\S+)", text, re.M)
        if not found:
            raise _cut(f"the csynth report has no {word}")
        return found.group(1)

    timing = _summary(text, "Timing")
    latency = _summary(text, "Latency")
    if len(timing) < 4 or len(latency) < 5:
        raise _cut("the csynth report's timing or latency row has too few columns")
    table = _hls_table(text)
    return Csynth(
        version=say("Version"),
        top=top.group(1),
        part=say("Target device"),
        target_ns=_decimal(timing[1], "target period"),
        uncertainty_ns=_decimal(timing[3], "uncertainty"),
        estimated_ns=_decimal(timing[2], "estimated period"),
        latency_cycles=_pair(latency[0], latency[1], "latency"),
        interval_cycles=_pair(latency[-3], latency[-2], "interval"),
        pipeline=latency[-1],
        used=_hls_resources(table["Total"], "Total"),
        available=_hls_resources(table["Available"], "Available"),
    )


def csynth_summary(text: str) -> list[CsynthRow]:
    """``csynth.rpt``: every module and loop, in the tool's order; the first is the top."""
    if "Synthesis Summary Report of" not in text:
        raise ReportError(
            "not a synthesis summary: no line \"== Synthesis Summary Report of '...'\"", fix="take the file csynth.rpt"
        )
    lines = text[text.index("Synthesis Summary Report of") :].splitlines()
    heads = [i for i, line in enumerate(lines) if line.strip().startswith("|") and "Modules" in line]
    if not heads or heads[0] + 3 > len(lines):
        raise _cut("the synthesis summary has no table of modules")
    first, second = (_cells(lines[heads[0] + k]) for k in (0, 1))
    names = [f"{a} {b}".strip() for a, b in zip(first, second, strict=False)]
    rows = []
    for line in lines[heads[0] + 3 :]:
        if EDGE.match(line.strip()):
            break
        cells = _cells(line, keep=True)
        mark = re.match(r"^( *)(\+|o) ?(.*?)(\*?) *$", cells[0]) if len(cells) == len(names) else None
        if not mark:
            raise _cut(f"the synthesis summary has a line that is no row of {len(names)} columns: {line.strip()[:60]}")
        cell = dict(zip(names, (c.strip() for c in cells), strict=True))
        used = {
            HLS_NAMES[tag]: _count(cell[name].split("(")[0], name) or 0.0
            for name, tag in (("DSP", "DSP"), ("FF", "FF"), ("LUT", "LUT"), ("URAM", "URAM"))
            if name in cell
        }
        used["bram36"] = (_count(cell.get("BRAM", "").split("(")[0], "BRAM") or 0.0) / 2
        rows.append(
            CsynthRow(
                name=mark.group(3).strip(),
                depth=len(mark.group(1)),
                loop=mark.group(2) == "o",
                dataflow=bool(mark.group(4)),
                slack_ns=_maybe(cell.get("Slack", ""), "slack"),
                latency_cycles=_whole(cell.get("Latency (cycles)", ""), "latency"),
                interval_cycles=_whole(cell.get("Interval", ""), "interval"),
                used=used,
            )
        )
    else:
        raise _cut("the synthesis summary's table has no end")
    return rows


def cosim_rpt(text: str) -> dict[str, Cosim]:
    """``<top>_cosim.rpt``: language ("Verilog", "VHDL") -> result."""
    found = {}
    for line in text.splitlines():
        cells = _cells(line)
        if not cells or cells[0] not in ("Verilog", "VHDL"):
            continue
        if len(cells) not in (8, 9):
            raise _cut(f"the row of {cells[0]} in the co-simulation report has {len(cells)} columns, not 8 or 9")
        numbers = [_whole(cell, f"{cells[0]} cycles") for cell in cells[2:]]
        latency, interval = (
            None if None in numbers[k : k + 3] else tuple(numbers[k : k + 3]) for k in (0, 3)
        )  # the interval of a single transaction is NA
        total = numbers[6] if len(numbers) == 7 else None
        found[cells[0]] = Cosim(cells[0], cells[1], latency, interval, total)
    if not found:
        raise _cut("not a co-simulation report: no row of Verilog or VHDL")
    return found


# ---- Vivado

SITES = {
    "lut": ("Slice LUTs", "CLB LUTs"),
    "ff": ("Slice Registers", "CLB Registers"),
    "bram36": ("Block RAM Tile",),
    "dsp": ("DSPs",),
}


VERDICTS = {
    "All user specified timing constraints are met": True,
    "Timing constraints are not met": False,
    "There are no user specified timing constraints": None,
}


def utilization_rpt(text: str) -> Utilization:
    """``report_utilization`` of a whole design (not ``-hierarchical``)."""
    header = _header(text, "report_utilization")
    if "-hierarchical" in _command(text):
        raise ReportError("a hierarchical utilization report has no sites", fix="take report_utilization without it")
    rows = {}
    for names, cells in _tables(text):
        if names and names[0] == "Site Type" and "Available" in names:
            used, available = names.index("Used"), names.index("Available")
            # A later table repeats sites of an earlier one (slices of LUTs); the first is the sum.
            rows.setdefault(cells[0].rstrip("*"), (cells[used], cells[available]))
    used, there = {}, {}
    for name, sites in SITES.items():
        site = next((s for s in sites if s in rows), None)
        if site is None:
            raise _cut(f"the utilization report has no row {' or '.join(sites)}")
        used[name], there[name] = (_count(cell, site) for cell in rows[site])
        if used[name] is None or there[name] is None:
            raise _cut(f"the utilization report's row {site} has no counts")
    # Devices without UltraRAM have no such row.
    used["uram"], there["uram"] = (_count(cell, "URAM") or 0.0 for cell in rows.get("URAM", ("0", "0")))
    return Utilization(header, used, there)


def timing_rpt(text: str) -> Timing:
    """``report_timing_summary``."""
    header = _header(text, "report_timing_summary")
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.split()[:2] == ["WNS(ns)", "TNS(ns)"]]
    if not heads or heads[0] + 2 >= len(lines):
        raise _cut("the timing report has no design timing summary")
    words = lines[heads[0] + 2].split()
    if len(words) != 12:
        raise _cut(f"the design timing summary has {len(words)} numbers, not 12")
    values: list = []
    for i, word in enumerate(words):
        # A path without a constraint has infinite slack: not timed, not met.
        value = _maybe(word, "slack") if i % 4 < 2 else _whole(word, "endpoints")
        values.append(None if value == float("inf") else value)
    said = next((verdict for verdict in VERDICTS if f"\n{verdict}." in text), None)
    if said is None:
        raise _cut("the timing report does not say whether its constraints are met")
    timing = Timing(header, *values, constrained=VERDICTS[said] is not None, clocks_ns=_clocks(lines))
    fails = any(slack is not None and slack < 0 for slack in (timing.wns_ns, timing.whs_ns, timing.wpws_ns))
    if VERDICTS[said] is not None and fails == VERDICTS[said]:
        raise ReportError(
            f'the timing report contradicts itself: slacks {words[0]}, {words[4]}, {words[8]} and "{said}"',
            fix="take the file the tool wrote",
        )
    return timing


def power_rpt(text: str) -> Power:
    """``report_power``."""
    header = _header(text, "report_power")
    cell = {cells[0]: cells[1] for line in text.splitlines() if len(cells := _cells(line)) == 2}

    def watts(name: str) -> float:
        if name not in cell:
            raise _cut(f"the power report has no {name}")
        # A comment may follow: "(Junction temp exceeded!)".
        return _decimal((cell[name].split() or [""])[0].lstrip("<"), name)

    activity = cell.get("Simulation Activity File", "---")
    return Power(
        header,
        total_w=watts("Total On-Chip Power (W)"),
        dynamic_w=watts("Dynamic (W)"),
        static_w=watts("Device Static (W)"),
        junction_c=_maybe((cell.get("Junction Temperature (C)", "").split() or [""])[0], "junction temperature"),
        confidence=cell.get("Confidence Level", ""),
        activity=None if activity in UNKNOWN else activity,
    )


def drc_rpt(text: str) -> Drc:
    """``report_drc``; ``report_methodology`` writes the same form and is refused."""
    header = _header(text, "report_drc")
    said = re.search(r"^ *(?:Violations|Checks) found: (\d+)", text, re.M)  # 2025.1 says checks
    if not said:
        raise _cut("the DRC report does not say how many violations it found")
    violations = []
    for names, cells in _tables(text):
        if names[:2] == ["Rule", "Severity"]:
            count = _whole(cells[3], "violations") if len(cells) == 4 else None
            if count is None:
                raise _cut(f"the DRC report has a row without a count: {' | '.join(cells)}")
            violations.append(Violation(*cells[:3], count))
    if sum(v.count for v in violations) != int(said.group(1)):
        raise _cut(f"the DRC report found {said.group(1)} violations and lists {sum(v.count for v in violations)}")
    details = {}
    for found in re.finditer(r"^(\S+#\d+) (?:Error|Critical Warning|Warning|Advisory|Info)\n(.*?)(?=^\S+#\d+ |\Z)",
                             text, re.M | re.S):  # fmt: skip
        details[found.group(1)] = " ".join(found.group(2).split("Related violations:")[0].split())
    return Drc(header, tuple(violations), details)


# ---- pieces


def _cut(what: str) -> ReportError:
    return ReportError(what, fix="the file may be cut off: run the step again, or fetch the file again")


def _cells(line: str, *, keep: bool = False) -> list[str]:
    """The cells of a table row ``| a | b |``, stripped; [] for another line."""
    line = line.strip()
    if len(line) < 2 or line[0] != "|" or line[-1] != "|":
        return []
    return [cell if keep else cell.strip() for cell in line[1:-1].split("|")]


def _tables(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """(column names, cells) of every row of the tables ``+--+ | names | +--+ | cells | ... +--+``."""
    names: list[str] | None = None
    edge = False
    for line in text.splitlines():
        if EDGE.match(line.strip()):
            edge = True
            continue
        cells = _cells(line)
        if not cells:
            names = None
        elif edge and (names is None or len(names) != len(cells)):
            names = cells
        elif names and len(cells) == len(names):
            yield names, cells
        edge = False


def _header(text: str, command: str) -> Header:
    said = dict(re.findall(r"^\| ([A-Z][A-Za-z ]*?) *: +(.*?) *$", text[:8192], re.M))
    version = re.search(r"Vivado v\.(\d{4}\.\d)", said.get("Tool Version", ""))
    if not version:
        raise _cut(f'not a report of Vivado\'s {command}: no line "| Tool Version : Vivado v."')
    if command not in said.get("Command", "").split():
        got = (said.get("Command", "").split() or ["no command"])[0]
        raise ReportError(f"not a report of {command}: it was written by {got}", fix=f"take the file of {command}")
    return Header(version.group(1), said.get("Design", ""), said.get("Device", ""), said.get("Design State", ""))


def _command(text: str) -> str:
    found = re.search(r"^\| Command +: +(.*)$", text[:8192], re.M)
    return found.group(1) if found else ""


def _clocks(lines: list[str]) -> dict[str, float]:
    """Clock -> period in ns, of the table of waveforms; empty where the design has no clock."""
    heads = [i for i, line in enumerate(lines) if line.split()[:2] == ["Clock", "Waveform(ns)"]]
    found = {}
    for line in lines[heads[0] + 2 :] if heads else ():
        row = re.match(r"^\s*(\S+)\s+\{[^}]*\}\s+([\d.]+)\s+[\d.]+\s*$", line)
        if not row:
            break
        found[row.group(1)] = _decimal(row.group(2), "period")
    return found


def _summary(text: str, title: str) -> list[str]:
    """The last row of the summary table below ``+ title``: names and units lie above it."""
    found = re.search(rf"^\+ {title}[^\n]*:\s*\n((?:.*\n)*?)\s*\n", text, re.M)
    rows = [cells for line in (found.group(1) if found else "").splitlines() if (cells := _cells(line))]
    if not rows:
        raise _cut(f"the csynth report has no {title.lower()} summary")
    return rows[-1]


def _hls_table(text: str) -> dict[str, dict[str, str]]:
    """Row -> column -> cell of the first table below "Utilization Estimates"."""
    at = text.find("== Utilization Estimates")
    found = _first_table(text[at:]) if at >= 0 else ()
    rows = {cells[0]: dict(zip(names, cells, strict=True)) for names, cells in found}
    for row in ("Total", "Available"):
        if row not in rows:
            raise _cut(f"the csynth report has no row {row} of resources")
    return rows


def _first_table(text: str) -> Iterator[tuple[list[str], list[str]]]:
    columns = None
    for names, cells in _tables(text):
        columns = columns or names
        if "Name" not in columns:
            return
        if cells[0] == "Name" or len(cells) != len(columns):
            return
        yield columns, cells
        if cells[0].startswith("Utilization"):
            return


def _hls_resources(cells: dict[str, str], where: str) -> dict[str, float]:
    """Counts in planner's names; what a family does not have is 0."""
    found = dict.fromkeys(("lut", "ff", "bram36", "uram", "dsp"), 0.0)
    seen = set()
    for tag, text in cells.items():
        if tag in HLS_NAMES:
            name = HLS_NAMES[tag]
            found[name] += (_count(text, tag) or 0.0) / (2 if tag == "BRAM_18K" else 1)
            seen.add(name)
    if missing := {"lut", "ff", "bram36", "dsp"} - seen:
        raise _cut(f"{where} lacks {', '.join(sorted(missing))}")
    return found


def _count(text: str, what: str) -> float | None:
    return _maybe(text.replace(",", "").lstrip("~<"), what)


def _maybe(text: str, what: str) -> float | None:
    return None if text.strip() in UNKNOWN else _decimal(text, what)


def _decimal(text: str, what: str) -> float:
    try:
        return float(text.strip().removesuffix("ns").strip())
    except ValueError:
        raise _cut(f"{what} is {text.strip()!r}, not a number") from None


def _whole(text: str, what: str) -> int | None:
    if text.strip() in UNKNOWN:
        return None
    try:
        return int(text.strip())
    except ValueError:
        raise _cut(f"{what} is {text.strip()!r}, not a whole number") from None


def _pair(least: str, most: str, what: str) -> tuple[int, int] | None:
    pair = _whole(least, what), _whole(most, what)
    return None if None in pair else pair
