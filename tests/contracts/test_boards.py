"""Every board of boards/*.toml: its data, its platform as pynq reads it, and a toy package run on it."""

import json
import re
import tomllib
import xml.etree.ElementTree as ElementTree

import pytest

from boards import board, netlist
from boards.onboard import run as onboard
from boards.session import read_result
from tests.hil.toy import build, write_golden

BOARDS = board.names()


@pytest.fixture(params=BOARDS)
def one(request):
    return board.load(request.param)


def parsed(one, tmp_path):
    from pynqmetadata.frontends import Metadata
    from pynqmetadata.views.runtime import RuntimeMetadataParser

    path = tmp_path / "design.hwh"
    path.write_text(netlist.render_hwh(one))
    return RuntimeMetadataParser(Metadata(input=str(path)))


def test_the_boards_of_the_table_are_there():
    assert len(BOARDS) >= 12 and "pynq-z2" in BOARDS and "kv260" in BOARDS


# What the vendor's tools print as available for each part; sources in the board files.
RESOURCES = {
    "xc7z020": {"lut": 53200, "ff": 106400, "bram36": 140, "uram": 0, "dsp": 220},
    "xc7z010": {"lut": 17600, "ff": 35200, "bram36": 60, "uram": 0, "dsp": 80},
    "xc7z007s": {"lut": 14400, "ff": 28800, "bram36": 50, "uram": 0, "dsp": 66},
    "xczu3eg": {"lut": 70560, "ff": 141120, "bram36": 216, "uram": 0, "dsp": 360},
    "xck26": {"lut": 117120, "ff": 234240, "bram36": 144, "uram": 64, "dsp": 1248},
}


def test_its_file_names_its_sources(one):
    text = (board.FOLDER / f"{one.name}.toml").read_text()
    comments = text[: text.index("title = ")]
    assert comments.startswith("# Sources: part")
    for word in ("github ", "crystal" if one.ps == "zynq7" else "reference clock", "IO PLL", "# Port: ", "# Power: "):
        assert word in comments, word
    assert "# Resources: " in comments and "from memory" not in comments
    assert "name" not in tomllib.loads(text)  # the file's name is the board's name


def test_its_numbers_are_of_its_part(one):
    device = re.match(r"xc7z\d+s?(?=clg)|xczu\d+[a-z]+|xck26", one.part).group()
    assert dict(one.resources) == RESOURCES[device]
    assert (one.ps == "zynq7") == one.part.startswith("xc7")
    assert one.pynq_below == ("4" if one.ps == "zynq7" else "5")
    assert onboard.release(one.pynq_min) < onboard.release("3.1.2") < onboard.release(one.pynq_below)
    assert one.hp_width_bits in ((32, 64) if one.ps == "zynq7" else (32, 64, 128))


def test_its_pll_is_a_multiple_of_its_crystal(one):
    """The feedback divider is whole; UltraScale+ may halve what the oscillator makes."""
    factor = one.io_pll_mhz / one.crystal_mhz * (1 if one.ps == "zynq7" else 2)
    assert factor == pytest.approx(round(factor), rel=1e-4)
    low, high = (780, 1600) if one.ps == "zynq7" else (750, 3000)  # AMD DS187 (-1), DS925: the oscillators' ranges
    assert low <= one.io_pll_mhz <= high


def test_its_default_clock_can_be_made(one):
    first, second = one.clock_divisors(one.clock_mhz)
    assert one.io_pll_mhz / (first * second) == pytest.approx(one.clock_mhz, rel=1e-3)


def test_its_reachable_clocks_are_those_its_divisors_make(one):
    clocks = one.clocks_mhz(50, 250)
    assert one.clock_mhz in [pytest.approx(mhz, rel=1e-3) for mhz in clocks] and clocks == sorted(set(clocks))
    for mhz in clocks:
        first, second = one.clock_divisors(mhz)
        assert one.io_pll_mhz / (first * second) == pytest.approx(mhz, rel=1e-9)
    between = (clocks[-1] + clocks[-2]) / 2
    with pytest.raises(board.BoardError, match="cannot be divided"):
        one.clock_divisors(between)


def test_pynq_reads_its_handoff(one, tmp_path):
    parser = parsed(one, tmp_path)
    platform = netlist.platform(one)
    assert set(parser.ip_dict) == {"axi_dma_0", "probe_0", platform["ps"]}
    for name, (_, _, base, size) in platform["addresses"].items():
        assert (parser.ip_dict[name]["phys_addr"], parser.ip_dict[name]["addr_range"]) == (base, size)
    read = parser.ip_dict["axi_dma_0"]["parameters"]
    assert read == {key: str(value) for key, value in platform["cells"]["axi_dma_0"]["parameters"].items()}
    registers = parser.ip_dict["probe_0"]["registers"]
    assert {name: entry["address_offset"] for name, entry in registers.items()} == onboard.PROBE
    clock = parser.clock_dict[0]
    assert one.io_pll_mhz / (int(clock["divisor0"]) * int(clock["divisor1"])) == pytest.approx(one.clock_mhz, 1e-3)
    assert [parser.clock_dict[i]["enable"] for i in range(4)] == [1, 0, 0, 0]


def test_its_stand_in_cannot_be_mistaken(one):
    hwh, bit = netlist.render_hwh(one), netlist.simulated_bitstream(one, "ab" * 32)
    assert ElementTree.fromstring(hwh).find("SYSTEMINFO").get("NAME").startswith("SIMULATED")
    assert b"SIMULATED" in bit[:64] and bytes.fromhex("aa995566") not in bit
    from pynq.pl_server.embedded_device import bit2bin, parse_bit_header

    header = parse_bit_header(bit)
    assert header["design"].startswith("SIMULATED") and header["part"] == netlist.bit_part(one)
    assert bytes.fromhex("665599aa") not in bit2bin(bit)


def test_every_link_of_its_platform_joins_two_interfaces_of_one_kind(one):
    platform = netlist.platform(one)
    for source, sink in platform["links"]:
        kinds = []
        for end, sides in ((source, {"MASTER"}), (sink, {"SLAVE", "MONITOR"})):
            cell, interface = end.split("/")
            kind, side = platform["cells"][cell]["interfaces"][interface]
            assert side in sides, end
            kinds.append(kind)
        assert kinds[0] == kinds[1], (source, sink)
    ends = [end for pair in platform["links"] for end in pair]
    for cell, entry in platform["cells"].items():
        for interface in entry["interfaces"]:
            assert f"{cell}/{interface}" in ends, f"{cell}/{interface} is not connected"


def test_a_toy_package_runs_on_it(one, tmp_path):
    from boards.simulated import device

    package = build(tmp_path, board=one.name, golden=write_golden(tmp_path, 12))
    machine = device.register(package.library, one)
    out = tmp_path / "result.json"
    try:
        code = onboard.main(["--package", str(package.folder), "--out", str(out), "--singles", "5", "--warmup", "1"])
    finally:
        machine.close()
    result = read_result(out)
    assert code == 0, result
    assert (result["device"]["name"], result["device"]["arch"]) == (f"simulated-{one.name}", one.arch)
    assert json.loads((package.folder / "manifest.json").read_text())["part"] == one.part
    # pynq takes a 50 MHz crystal for every Zynq-7000: that is why the manifest's clock counts.
    reported = result["device"]["pynq_reports_clock_mhz"]
    assert reported == pytest.approx(150 if one.ps == "zynq7" and one.crystal_mhz < 40 else 100, rel=1e-3)
    assert result["package"]["clock_mhz"] == 100


@pytest.fixture(scope="module")
def digits():
    """The digits recipe's network, untrained."""
    from pipeline import config, planning

    return planning.of_recipe(config.load("runs/digits.toml"), None, {})


@pytest.mark.parametrize("name", board.names())
def test_the_digits_network_is_planned_or_refused_with_what_is_short(digits, name):
    model = board.load(name)
    found = digits.plan(model, over_budget=True)
    have = {"bram18": 2 * model.resources["bram36"]} | dict(model.resources)
    assert found["part"] == model.part and found["clock_mhz"] == model.clock_mhz
    if found["fits"]:
        assert all(row["planned"] <= 0.8 * have[r] for r, row in found["resources"].items())
        assert found["totals"]["frames_per_second"] > 1000 and found["optimal"]
        return
    resource, row = max(found["resources"].items(), key=lambda item: item[1]["planned"] / max(item[1]["limit"], 1))
    assert row["planned"] > row["limit"] and f"{row['planned'] - row['limit']:,} more than" in found["shortage"]
    assert resource.upper() in found["shortage"]
