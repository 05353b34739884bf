"""The block design script of every board, replayed in the stub interpreter; every listed fault in it is refused."""

import re
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jinja2
import pytest

from boards import board as boards
from boards import netlist
from boards.board import BoardError, load
from hls import vivado
from hls.vivado import VivadoError, block_design
from tests.vivado import stub as stubs
from tests.vivado.stub import IPS, Refused, Stub

HERE = Path(__file__).parent
MUTATIONS = tomllib.loads((HERE / "mutations.toml").read_text())["mutation"]
FAMILY_BOARDS = {"zynq7": "pynq-z2", "zynqmp": "kv260"}
# The exported IP as hls/templates/slimgate_axis.h.j2 makes it; the probe as boards/netlist.py describes it.
OWN = {
    "slimgate:hls:slimgate_axis:1.0": {
        "pins": {"ap_clk": "in clock", "ap_rst_n": "in reset"},
        "interfaces": {"s_axis": ["axis", "slave", 64, "ap_clk"], "m_axis": ["axis", "master", 64, "ap_clk"]},
    },
    "slimgate_probe": {
        "pins": {"aclk": "in clock", "aresetn": "in reset"},
        "interfaces": {
            "s_axi": ["aximm", "slave", 32, "aclk"],
            "input_axis": ["axis", "monitor", 64, "aclk"],
            "output_axis": ["axis", "monitor", 64, "aclk"],
        },
        "segments": {"s_axi/reg0": [0, 1 << 32]},
    },
}


def replay(script: str, folder: Path, monkeypatch, **options) -> Stub:
    monkeypatch.chdir(folder)
    (folder / "slimgate_probe.v").touch()
    path = folder / "block_design.tcl"
    path.write_text(script)
    session = Stub(OWN, folder=folder, **options)
    session.run(path)
    return session


def disagreements(session: Stub, board: boards.Board, clock_mhz: float) -> list[str]:
    """Where the design that was built is not the platform that the board's script and the simulated board know."""
    wanted = netlist.platform(board, clock_mhz)
    ps = wanted["ps"]
    found = []
    if session.project["part"] != board.part:
        found.append(f"part {session.project['part']}")
    if set(session.cells) != set(wanted["cells"]):
        return [*found, f"cells {sorted(set(session.cells) ^ set(wanted['cells']))}"]
    for name, cell in wanted["cells"].items():
        built = session.cells[name]
        if cell["vlnv"].split(":")[2] != (built.ip or built.vlnv):
            found.append(f"{name} is a {built.vlnv}")
        parameters = vivado.settings(cell["parameters"]) if name == ps else cell["parameters"]
        for key, value in parameters.items():
            if str(built.value(key)) not in (str(value), f"{value}.0", str(value).removesuffix(".0")):
                found.append(f"{name}.{key} is {built.value(key)}, not {value}")
    links = {frozenset(link) for link in session.links}
    for pair in {frozenset(p) for p in wanted["links"]} ^ links:
        found.append(f"link {sorted(pair)}")
    for cell, (_, slave, base, size) in wanted["addresses"].items():
        at = {where for (space, seg), where in session.addresses.items() if seg.startswith(f"{cell}/{slave}/")}
        if at != {(base, size)}:
            found.append(f"{cell} at {at}")
    memory = {space: where for (space, seg), where in session.addresses.items() if seg.startswith(f"{ps}/")}
    if memory != dict.fromkeys(("axi_dma_0/Data_MM2S", "axi_dma_0/Data_S2MM"), (0, wanted["memory"][1])):
        found.append(f"memory {memory}")
    for cell in session.cells.values():
        for name, pin in cell.pins().items():
            driver = session.driver(f"{cell.name}/{name}") if (pin.kind, pin.direction) == ("clock", "in") else None
            if driver and driver != wanted["clock"]["net"]:
                found.append(f"{cell.name}/{name} runs on {driver}")
    for step in ("validated", "saved", "generated", "launched write_bitstream", "waited impl_1"):
        if step not in session.done:
            found.append(f"not {step}")
    return found


@pytest.mark.parametrize("name", boards.names())
def test_every_board_builds_its_platform(name, tmp_path, monkeypatch):
    board = load(name)
    session = replay(block_design(board, ip_repository="ip"), tmp_path, monkeypatch)
    assert disagreements(session, board, board.clock_mhz) == []
    assert session.warnings == []
    made = {path.name for path in (tmp_path / "result").iterdir()}
    assert made == {
        "design_1.bit",
        "design_1.hwh",
        "build.json",
        "timing.rpt",
        "utilization.rpt",
        "power.rpt",
        "drc.rpt",
    }
    assert "SIMULATED" in (tmp_path / "result/design_1.bit").read_text()


@pytest.mark.parametrize("name", FAMILY_BOARDS.values())
def test_another_clock_and_the_same_bytes(name, tmp_path, monkeypatch):
    board = load(name)
    mhz = board.clocks_mhz(60, 200)[2]
    script = block_design(board, mhz, ip_repository="ip")
    assert script == block_design(board, mhz, ip_repository="ip") != block_design(board, ip_repository="ip")
    session = replay(script, tmp_path, monkeypatch)
    assert disagreements(session, board, mhz) == []
    assert disagreements(session, board, board.clock_mhz) != []
    with pytest.raises(BoardError, match="cannot be divided"):
        block_design(board, 150.5, ip_repository="ip")


def test_a_pll_that_vivado_does_not_share_is_refused_where_it_would_be_too_fast(tmp_path, monkeypatch):
    """Should Vivado count from its own 1000 MHz, 100 MHz are a tenth, and the MiniZed's 1400 MHz make 140 of it."""
    script = block_design(load("minized"), ip_repository="ip")
    replay(script, tmp_path, monkeypatch)
    with pytest.raises(Refused, match="minized, whose IO PLL runs at 1400 MHz, .* at 140.0 MHz instead of 100"):
        replay(script, tmp_path, monkeypatch, keeps_pll=True)


@pytest.mark.parametrize("path", ["my ip", "ip;exit", "[exec rm]", "$home", "ümlaut", 'a"b', "", "a\nb", "a{b"])
def test_a_path_that_tcl_would_take_apart_is_refused(path):
    with pytest.raises(VivadoError, match="takes no path"):
        block_design(load("pynq-z2"), ip_repository=path)
    with pytest.raises(VivadoError, match="takes no path"):
        block_design(load("pynq-z2"), ip_repository="ip", probe=path)


def test_the_ip_is_called_as_it_is_exported():
    """hls.tcl names the IP that the block design looks for, and OWN stands for."""
    script = (vivado.TEMPLATES.parent / "hls.tcl.j2").read_text()
    export = dict(re.findall(r"-(vendor|library|ipname|version) (\S+)", script))
    vlnv = ":".join(export[key] for key in ("vendor", "library", "ipname", "version"))
    assert netlist.platform(load("pynq-z2"))["cells"]["network_0"]["vlnv"] == vlnv and vlnv in OWN
    ports = re.findall(r"hls::stream<beat_t> &(\w+)", (vivado.TEMPLATES.parent / "slimgate_axis.h.j2").read_text())
    assert sorted(ports) == sorted(OWN[vlnv]["interfaces"])


HLS_FAULTS = [
    ("csynth_design", "csynth_desing", "unknown command csynth_desing"),
    ("set_top slimgate_axis", "set_top slimgate_axs", "no source has a function slimgate_axs"),
    ("add_files slimgate_axis.cpp", "add_files slimgate_axs.cpp", "no file slimgate_axs.cpp"),
    ("-Ifirmware", "-Ifirmwar", "no folder firmwar"),
    ("-flow_target vivado", "-flow_target vitis", "needs -flow_target vivado"),
    ("-flow_target vivado", "-flow vivado", "unknown option -flow"),
    ("set_part xc7z020clg400-1", "set_part xc7z020clg400", "unknown part"),
    ("set_part xc7z020clg400-1\n", "", "top, part and clock come before"),
    ("create_clock -period 10.000 -name default\n", "", "top, part and clock come before"),
    ("csynth_design\n", "", "csynth_design comes first"),
    ("-format ip_catalog", "-format xo", "takes -format ip_catalog"),
    ("open_project -reset slimgate_hls\n", "", "open_project comes first"),
]


@pytest.mark.parametrize(("old", "new", "words"), [(None, None, None), *HLS_FAULTS])
def test_the_hls_script(old, new, words, tmp_path):
    """hls.tcl as convert renders it, replayed; faults in it refused."""
    values = {"project": "toy", "part": "xc7z020clg400-1", "clock_period_ns": 10.0}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    script = environment.from_string((vivado.TEMPLATES.parent / "hls.tcl.j2").read_text()).render(values)
    (tmp_path / "firmware").mkdir()
    (tmp_path / "firmware/toy.cpp").write_text("void toy() {}\n")
    (tmp_path / "slimgate_axis.cpp").write_text("void slimgate_axis(int) {}\n")
    path, session = tmp_path / "hls.tcl", stubs.Hls(tmp_path)
    path.write_text(script if old is None else script.replace(old, new))
    if old is None:
        session.run(path)
        assert (session.top, session.part, session.period_ns) == ("slimgate_axis", "xc7z020clg400-1", 10.0)
        assert session.vlnv in OWN and session.done[-2:] == ["export_design", "exit"]
        return
    assert old in script
    with pytest.raises(Refused, match=re.escape(words)):
        session.run(path)


def mutated(mutation: dict, family: str) -> str:
    board = load(FAMILY_BOARDS[family])
    script = block_design(board, ip_repository="ip")
    wanted = netlist.platform(board)
    other = {"zynq7": "zynq_ultra_ps_e", "zynqmp": "processing_system7"}[family]
    words = {
        "@DMA@": f"{wanted['addresses']['axi_dma_0'][2]:#x}", "@PSRESET@": wanted["reset"]["net"],
        "@PSCLOCK@": wanted["clock"]["net"], "@OTHERPS@": other,
    }  # fmt: skip
    becomes = mutation.get("becomes")
    for word, value in words.items():
        becomes = becomes and becomes.replace(word, value)
    lines, hits = [], 0
    for line in script.splitlines():
        if not re.search(mutation["line"], line):
            lines.append(line)
            continue
        hits += 1
        if becomes is not None:
            lines.append(re.sub(mutation["line"], becomes, line))
    assert hits, f"{mutation['id']} changes nothing: the list or the script has moved"
    return "\n".join(lines) + "\n"


CASES = [(m, f) for m in MUTATIONS for f in FAMILY_BOARDS if m["family"] in (f, "both")]


@pytest.mark.parametrize(("mutation", "family"), CASES, ids=[f"{m['id']}-{f}" for m, f in CASES])
def test_every_listed_fault_is_refused(mutation, family, tmp_path, monkeypatch):
    board = load(FAMILY_BOARDS[family])
    try:
        session = replay(mutated(mutation, family), tmp_path, monkeypatch)
    except Refused:
        return
    assert disagreements(session, board, board.clock_mhz), f"not noticed: {mutation['what']}"


def test_the_list_is_long_enough():
    assert len({m["id"] for m in MUTATIONS}) == len(MUTATIONS) >= 25


# ---- the interpreter itself


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("frobnicate", "unknown command frobnicate"),
        ("exec ls", "unknown command exec"),
        ("create_project -force x y -part xc7z999", "unknown part"),
        ("create_project x y -prat xc7z020clg400-1", "unknown option -prat"),
        ("create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma:7.0 d", "not in the catalog"),
        ("create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dna:7.1 d", "not in the catalog"),
        ("set_property CONFIG.NUM_SI {17} [get_bd_cells s]", "cannot be 17"),
        ("set_property CONFIG.NUM_SI {two} [get_bd_cells s]", "is no number"),
        ("set_property FREQ 3 [get_bd_cells s]", "unknown property"),
        ("get_bd_pins s/aclk7", "has no pin 'aclk7'"),
        ("get_bd_intf_pins s/S01_AXI", "has no interface 'S01_AXI'"),
        ("get_bd_cells t", "no cell"),
        ("create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect:1.0 s", "there is a cell s already"),
        ("launch_runs impl_1", "wrapper"),
        ("wait_on_runs impl_1", "no run was launched"),
        ("error oops", "oops"),
    ],
)
def test_the_interpreter_knows_what_it_does_not_know(line, words, tmp_path):
    script = tmp_path / "a.tcl"
    start = "create_project a b -part xc7z020clg400-1\ncreate_bd_design d\n"
    script.write_text(start + "create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect:1.0 s\n" + line + "\n")
    with pytest.raises(Refused, match=re.escape(words)):
        Stub().run(script)
    script.write_text(script.read_text().replace(line, f"catch {{{line}}}"))
    if line != "error oops":  # Tcl's own
        with pytest.raises(Refused, match=re.escape(words)):
            Stub().run(script)


@pytest.mark.parametrize("handoff", ["resizer.hwh", "rfsoc_sam.hwh"])
def test_the_tables_agree_with_what_vivado_wrote(handoff):
    """Pins, directions, clocks, interfaces and parameter names of the IPs in a genuine handoff."""
    root = ElementTree.parse(stubs.HANDOFFS / handoff).getroot()
    kinds, seen = {"clk": "clock", "rst": "reset"}, set()
    for module in root.iter("MODULE"):
        ip = module.get("MODTYPE")
        if ip not in IPS:
            continue
        seen.add(ip)
        parameters = {p.get("NAME"): p.get("VALUE") for p in module.iterfind("PARAMETERS/PARAMETER")}
        assert set(IPS[ip].get("parameters", {})) <= set(parameters), ip
        cell = stubs.Cell("x", module.get("VLNV"), IPS[ip])
        for name, (default, _) in IPS[ip]["parameters"].items():
            value = parameters[name]
            cell.set[name] = type(default)(float(value)) if isinstance(default, (int, float)) else value
        ports = {p.get("NAME"): p for p in module.iterfind("PORTS/PORT")}
        pins = cell.pins()
        for name, pin in pins.items():
            if name not in ports:
                assert pin.optional or pin.direction == "out", f"{ip} has no port {name}"
                continue
            assert ports[name].get("DIR") == {"in": "I", "out": "O"}[pin.direction], name
            if ports[name].get("SIGIS") in kinds:
                assert pin.kind.rstrip("+") == kinds[ports[name].get("SIGIS")], name
        for name, port in ports.items():
            if port.get("SIGIS") == "clk" and port.get("DIR") == "I":
                assert name in pins, f"{ip}'s clock {name} is not in the table"
        side = {"INITIATOR": "master", "TARGET": "slave"}
        there = {
            b.get("NAME"): side.get(b.get("TYPE"), b.get("TYPE").lower())
            for b in module.iterfind("BUSINTERFACES/BUSINTERFACE")
        }
        for name, interface in cell.interfaces().items():
            assert there.get(name) == interface.side, f"{ip} {name}"
    assert len(seen) >= 3


def test_the_public_addresses_are_legal():
    """A genuine handoff's address map lies in the windows of the table."""
    root = ElementTree.parse(stubs.HANDOFFS / "resizer.hwh").getroot()
    base, size = IPS["processing_system7"]["windows"]["M_AXI_GP0"]
    ranges = [r for r in root.iter("MEMRANGE") if r.get("MASTERBUSINTERFACE") == "M_AXI_GP0"]
    assert len(ranges) >= 2
    for one in ranges:
        assert base <= int(one.get("BASEVALUE"), 16) <= int(one.get("HIGHVALUE"), 16) < base + size
