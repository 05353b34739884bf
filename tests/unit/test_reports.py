"""Report readers on genuine reports of the vendor's tools (tests/data/reports), and on damaged ones."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hls import reports
from hls.reports import ReportError

DATA = Path(__file__).parents[1] / "data" / "reports"
READERS = {
    "csynth_2018_3.xml": reports.csynth_xml,
    "csynth_2019_1.xml": reports.csynth_xml,
    "csynth_2018_3.rpt": reports.csynth_rpt,
    "csynth_2024_2.rpt": reports.csynth_rpt,
    "summary_2022_2.rpt": reports.csynth_summary,
    "summary_2024_2.rpt": reports.csynth_summary,
    "utilization_2019_2.rpt": reports.utilization_rpt,
    "utilization_2023_2.rpt": reports.utilization_rpt,
    "timing_2023_2.rpt": reports.timing_rpt,
    "timing_2025_1.rpt": reports.timing_rpt,
    "power_2025_2.rpt": reports.power_rpt,
}
# No published report with a license that allows passing it on was found: tables in the tools' layout, numbers ours.
COSIM = """
Report time       : Tue Jan 02 03:04:05 2024.
Solution          : solution1.
Simulation tool   : xsim.

+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
|          |          |             Latency(Clock Cycles)             |              Interval(Clock Cycles)           | Total Execution Time |
+   RTL    +  Status  +-----------------------------------------------+-----------------------------------------------+    (Clock Cycles)    +
|          |          |      min      |      avg      |      max      |      min      |      avg      |      max      |                      |
+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
|      VHDL|        NA|             NA|             NA|             NA|             NA|             NA|             NA|                    NA|
|   Verilog|      Pass|            101|            103|            110|             96|             97|             99|                  2031|
+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
"""  # noqa: E501
DRC = """
| Tool Version : Vivado v.2022.2 (lin64) Build 1
| Command      : report_drc -file made_up.rpt
| Design       : made_up
| Device       : xc7z020clg400-1
| Design State : Fully Routed

Report DRC

1. REPORT SUMMARY
-----------------
             Violations found: 4
+-----------+----------+------------------------+------------+
| Rule      | Severity | Description            | Violations |
+-----------+----------+------------------------+------------+
| DPOP-1    | Warning  | PREG Output pipelining | 3          |
| NSTD-1    | Error    | Unspecified standard   | 1          |
+-----------+----------+------------------------+------------+

2. REPORT DETAILS
-----------------
DPOP-1#1 Warning
PREG Output pipelining
DSP a/b output is not pipelined.
Related violations: <none>

NSTD-1#1 Error
Unspecified standard
1 out of 2 ports have no standard.
Related violations: <none>
"""


def text(name: str) -> str:
    return (DATA / name).read_text()


def get(name: str):
    return reports.read(DATA / name, READERS[name])


def test_every_excerpt_is_read_and_named():
    there = {path.name for path in DATA.iterdir()} - {"README.md"}
    assert there == set(READERS)
    assert set(re.findall(r"^\| `(\S+)` \|", (DATA / "README.md").read_text(), re.M)) == there


def test_csynth_xml():
    one = get("csynth_2018_3.xml")
    assert (one.version, one.top, one.part) == ("2018.3", "product", "xc7z007sclg225-1")
    assert (one.target_ns, one.uncertainty_ns, one.estimated_ns, one.slack_ns) == (5.0, 0.62, 3.89, 0.49)
    assert (one.latency_cycles, one.interval_cycles, one.clock_met) == ((4, 4), (4, 4), True)
    assert one.used == {"lut": 147, "ff": 55, "bram36": 0, "uram": 0, "dsp": 1}
    assert one.available == {"lut": 14400, "ff": 28800, "bram36": 50, "uram": 0, "dsp": 66}
    two = get("csynth_2019_1.xml")
    assert (two.version, two.interval_cycles, two.used["lut"]) == ("2019.1.3", (3137, 3137), 183)


def test_csynth_rpt_of_both_generations():
    old, new = get("csynth_2018_3.rpt"), get("csynth_2024_2.rpt")
    assert (old.latency_cycles, old.interval_cycles) == ((2521531, 7004283), (949549, 2917349))
    assert old.pipeline == "dataflow"
    assert old.used == {"lut": 8349, "ff": 4852, "bram36": 62, "uram": 0, "dsp": 9}
    assert (new.version, new.top, new.part) == ("2024.2", "cnn_block", "xa7a12t-cpg238-2I")
    assert (new.latency_cycles, new.interval_cycles) == ((95, 95), (32, 32))
    assert (new.target_ns, new.estimated_ns, new.uncertainty_ns) == (10.0, 8.178, 2.7)
    assert new.clock_met and new.slack_ns == -0.878  # the tool's own summary rounds it to -0.88 and says "Timing"
    assert new.used["dsp"] == 55 and new.available["dsp"] == 40


def test_csynth_summary():
    (row,) = get("summary_2024_2.rpt")
    assert (row.name, row.depth, row.loop, row.dataflow) == ("cnn_block", 0, False, False)
    assert (row.slack_ns, row.latency_cycles, row.interval_cycles) == (-0.88, 95, 32)
    assert row.used == {"lut": 15518, "ff": 17943, "bram36": 0, "uram": 0, "dsp": 55}
    top, first, loop, *_, fill, last = get("summary_2022_2.rpt")
    assert (top.latency_cycles, top.used["bram36"], top.used["uram"]) == (None, 129, 2)
    assert (first.depth, first.loop, first.latency_cycles, first.slack_ns) == (1, False, 34, 0.58)
    assert (loop.name, loop.depth, loop.loop, loop.interval_cycles) == ("Loop 1", 2, True, 1)
    assert (fill.name, fill.depth, fill.latency_cycles) == ("FILL_ORDER_LOOP", 4, 65536)
    assert last.dataflow and last.name == "countEdgesPerBlockWrap_32ul_5ul_64ul_20ul_32ul_s"


def test_utilization():
    old, new = get("utilization_2019_2.rpt"), get("utilization_2023_2.rpt")
    assert old.used == {"lut": 999, "ff": 920, "bram36": 0, "dsp": 0, "uram": 0}
    assert old.available == {"lut": 162720, "ff": 325440, "bram36": 360, "dsp": 1368, "uram": 48}
    assert new.used == {"lut": 1455, "ff": 1704, "bram36": 28, "dsp": 38, "uram": 0}
    assert new.available == {"lut": 20800, "ff": 41600, "bram36": 50, "dsp": 90, "uram": 0}
    assert (new.header.version, new.header.design, new.header.device) == ("2023.2", "nids_top", "xc7a35tcpg236-1")
    assert new.over() == {}
    over = reports.utilization_rpt(text("utilization_2023_2.rpt").replace("| DSPs           |   38", "| DSPs | 99"))
    assert over.over() == {"dsp": 1.1}


def test_timing():
    met = get("timing_2023_2.rpt")
    assert (met.wns_ns, met.tns_ns, met.setup_failing, met.setup_endpoints) == (0.097, 0.0, 0, 5298)
    assert (met.whs_ns, met.hold_endpoints, met.wpws_ns, met.pulse_endpoints) == (0.024, 5298, 4.02, 1778)
    assert met.met and met.constrained and met.clocks_ns == {"sys_clk": 10.0}


def test_timing_that_fails_is_not_met():
    failing = text("timing_2023_2.rpt").replace(
        "      0.097        0.000                      0", "     -0.300       -1.200                     12", 1
    )
    with pytest.raises(ReportError, match="contradicts itself"):
        reports.timing_rpt(failing)
    failing = failing.replace("All user specified timing constraints are met.", "Timing constraints are not met.")
    one = reports.timing_rpt(failing)
    assert (one.wns_ns, one.setup_failing, one.met) == (-0.3, 12, False)


def test_a_design_without_constraints_is_not_met():
    one = get("timing_2025_1.rpt")
    assert (one.wns_ns, one.wpws_ns, one.constrained, one.met, one.clocks_ns) == (None, None, False, False, {})


def test_power():
    one = get("power_2025_2.rpt")
    assert (one.total_w, one.dynamic_w, one.static_w, one.junction_c) == (0.156, 0.083, 0.073, 25.8)
    assert (one.confidence, one.activity, one.header.device) == ("Low", None, "xc7a35tcpg236-1")
    hot = text("power_2025_2.rpt").replace("| 0.156        |", "| 61.5 (Junction temp exceeded!) |", 1)
    assert reports.power_rpt(hot).total_w == 61.5


def test_cosim():
    found = reports.cosim_rpt(COSIM)
    one = found["Verilog"]
    assert (one.passed, one.latency_cycles, one.interval_cycles) == (True, (101, 103, 110), (96, 97, 99))
    assert one.total_cycles == 2031 and not found["VHDL"].passed and found["VHDL"].latency_cycles is None
    assert not reports.cosim_rpt(COSIM.replace("Pass", "Fail"))["Verilog"].passed


def test_drc():
    one = reports.drc_rpt(DRC)
    assert [(v.rule, v.severity, v.count) for v in one.violations] == [("DPOP-1", "Warning", 3), ("NSTD-1", "Error", 1)]
    assert [v.rule for v in one.errors] == ["NSTD-1"]
    assert one.details["NSTD-1#1"] == "Unspecified standard 1 out of 2 ports have no standard."
    with pytest.raises(ReportError, match="found 4 violations and lists 3"):
        reports.drc_rpt(DRC.replace("| NSTD-1    | Error    | Unspecified standard   | 1          |\n", ""))
    clean = DRC.replace("Violations found: 4", "Checks found: 0")
    clean = re.sub(r"^\| (DPOP|NSTD).*\n", "", clean, flags=re.M)
    assert reports.drc_rpt(clean).violations == ()
    with pytest.raises(ReportError, match="written by report_methodology"):
        reports.drc_rpt(DRC.replace("report_drc", "report_methodology"))


@pytest.mark.parametrize("name", READERS)
def test_a_report_taken_for_another_is_refused(name):
    for other, parse in READERS.items():
        if parse is not READERS[name]:
            with pytest.raises(ReportError):
                parse(text(name))
                pytest.fail(f"{name} was read as {other}")


@pytest.mark.parametrize("name", READERS)
def test_a_report_cut_off_anywhere_is_refused_or_whole(name):
    """Cut after each line: an error, or, once everything asked for is there, the whole answer."""
    whole = text(name)
    lines = whole.splitlines(keepends=True)
    answer, refused = READERS[name](whole), 0
    for end in range(len(lines)):
        try:
            got = READERS[name]("".join(lines[:end]))
        except ReportError as error:
            assert error.fix
            refused += 1
        else:
            # What follows the part asked for may be gone (clocks, junction temperature); never a number that counts.
            if name.startswith("timing"):
                assert got.wns_ns == answer.wns_ns and got.met == answer.met
            elif name.startswith("power"):
                assert (got.total_w, got.dynamic_w, got.static_w) == (answer.total_w, answer.dynamic_w, answer.static_w)
            else:
                assert got == answer
    assert refused >= len(lines) / 4


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_report_gives_a_report_error_or_an_answer(name, data):
    whole = text(name)
    at = data.draw(st.integers(0, len(whole) - 1))
    size = data.draw(st.integers(0, 40))
    put = data.draw(st.text(max_size=12))
    with contextlib.suppress(ReportError):
        READERS[name](whole[:at] + put + whole[at + size :])


@pytest.mark.parametrize("parse", sorted(set(READERS.values()) | {reports.cosim_rpt, reports.drc_rpt}, key=repr))
@pytest.mark.parametrize("junk", ["", "\n", "hello", "<profile/>", "| a | b |\n", "\0\0\0"])
def test_no_report_at_all(parse, junk):
    with pytest.raises(ReportError):
        parse(junk)


def test_the_file_is_named(tmp_path):
    missing = tmp_path / "none.rpt"
    with pytest.raises(ReportError, match="cannot be read") as error:
        reports.read(missing, reports.power_rpt)
    assert error.value.where == missing
    cut = tmp_path / "cut.xml"
    cut.write_bytes(text("csynth_2018_3.xml")[:600].encode() + b"\xff")
    with pytest.raises(ReportError, match="(?s)not a csynth report in XML.*cut.xml.*cut off"):
        reports.read(cut, reports.csynth_xml)
    large = tmp_path / "large.rpt"
    with open(large, "wb") as f:
        f.truncate(reports.MOST_BYTES + 1)
    with pytest.raises(ReportError, match="is not read"):
        reports.read(large, reports.power_rpt)
    windows = tmp_path / "windows.rpt"
    windows.write_bytes(text("csynth_2024_2.rpt").replace("\n", "\r\n").encode())
    assert reports.read(windows, reports.csynth_rpt) == get("csynth_2024_2.rpt")


def test_no_document_type_is_followed():
    bomb = '<!DOCTYPE p [<!ENTITY a "aaaa">]>' + text("csynth_2018_3.xml").replace("product", "&a;")
    with pytest.raises(ReportError, match="document type"):
        reports.csynth_xml(bomb)


def test_a_value_the_tool_does_not_know_is_none():
    unknown = text("csynth_2018_3.xml").replace("caseLatency>4<", "caseLatency>undef<")
    unknown = unknown.replace(">4</Interval", ">?</Interval")
    one = reports.csynth_xml(unknown)
    assert one.latency_cycles is None and one.interval_cycles is None
    with pytest.raises(ReportError, match="latency is 'four', not a whole number"):
        reports.csynth_xml(text("csynth_2018_3.xml").replace("caseLatency>4<", "caseLatency>four<"))
