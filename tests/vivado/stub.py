"""A stand-in for Vivado's Tcl shell that knows enough of block designs to refuse a wrong one. It builds nothing.

The Tcl is real: tkinter's interpreter runs the script. What Vivado adds (projects, cells, pins, nets, addresses, runs)
are Python commands over a small model of the design; what is not known is an error: a command, an option, an IP, a
pin, a parameter, a value. ``validate_bd_design`` checks clocks, resets, links, widths and the address map, more
strictly than Vivado, which only warns of some of it. What the IPs are like stands in ips.toml. It cannot know whether
Vivado would accept a value it has never seen, nor anything about timing.
"""

import functools
import itertools
import re
import tkinter
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

import pynqmetadata

IPS = tomllib.loads((Path(__file__).parent / "ips.toml").read_text())
HANDOFFS = Path(pynqmetadata.__file__).parent / "tests" / "hwhs"
PARTS = re.compile(
    r"xc7z(007s|010|020|045)(clg|ffg)\d+-[123]|xczu\d+[a-z]+-[a-z]+\d+-\d(-[ei])?|xck26-sfvc784-2LV-[ci]"
)
PROCESSORS = ("processing_system7", "zynq_ultra_ps_e")
INTERCONNECTS = ("smartconnect", "axi_interconnect")
DEAD = ("exec", "socket", "load", "exit")
FAKE = "SIMULATED by the stub interpreter: not a bitstream.\n"


class Refused(Exception):
    """What the script did that Vivado would not take, or that would build a design that does not work."""


@functools.cache
def names_in(handoff: str, module: str) -> set[str]:
    """Every parameter name of one IP in a handoff that Vivado wrote."""
    root = ElementTree.parse(HANDOFFS / handoff).getroot()
    found = next(m for m in root.iter("MODULE") if m.get("MODTYPE") == module)
    return {p.get("NAME") for p in found.iterfind("PARAMETERS/PARAMETER")}


@dataclass(frozen=True)
class Pin:
    direction: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Interface:
    bus: str
    side: str
    width: int
    clock: str


@dataclass
class Cell:
    name: str
    vlnv: str
    table: dict
    set: dict = field(default_factory=dict)

    @property
    def ip(self) -> str:
        """The IP's name without vendor and version; "" for a module."""
        return self.vlnv.split(":")[2] if ":" in self.vlnv else ""

    def value(self, name: str):
        """The parameter as set, or its default; 0 for one that the tables do not know a default of."""
        return self.set.get(name, self.table.get("parameters", {}).get(name, [0])[0])

    def pins(self) -> dict[str, Pin]:
        found = {}
        for pattern, text in self.table.get("pins", {}).items():
            words, _, condition = text.partition(" if ")
            direction, kind, *rest = words.split()
            if not condition or any(str(self.value(p)) not in ("0", "0.0") for p in condition.split("|")):
                for name in self._spread(pattern):
                    found[name] = Pin(direction, kind, "?" in rest)
        return found

    def interfaces(self) -> dict[str, Interface]:
        found = {}
        for pattern, (bus, side, width, clock, *condition) in self.table.get("interfaces", {}).items():
            if condition and str(self.value(condition[0])) == "0":
                continue
            size = int(self.value(width)) if isinstance(width, str) else width
            for name in self._spread(pattern):
                own = name.removesuffix("_AXI") + "_ACLK" if clock in ("S_ACLK", "M_ACLK") else clock
                found[name] = Interface(bus, side, size, own)
        return found

    def _spread(self, pattern: str) -> list[str]:
        count = re.search(r"\{(\w+)\}", pattern)
        if not count:
            return [pattern]
        first = 1 if pattern.startswith("aclk") else 0  # SmartConnect: aclk, aclk1, ...
        digits = "d" if pattern.startswith(("aclk", "In")) else "02d"
        return [pattern.replace(count[0], format(i, digits)) for i in range(first, int(self.value(count[1])))]


class Shell:
    """A Tcl shell whose commands are the methods ``cmd_*``; any other word is an error, and so is a caught one."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.tcl = tkinter.Tcl()
        for name in DEAD:
            self.tcl.eval(f"catch {{rename {name} {{}}}}")
        self.tcl.createcommand("_python", self._call)
        self.tcl.eval("proc unknown args { _python {*}$args }\nnamespace eval common {}")
        for name in [n[4:] for n in dir(self) if n.startswith("cmd_")]:
            tcl = name.replace("__", "::")
            self.tcl.eval(f"proc {tcl} args {{ _python {tcl} {{*}}$args }}")

    def run(self, path: Path, *arguments: str) -> None:
        self.tcl.setvar("argv", arguments)
        self.tcl.setvar("argc", len(arguments))
        try:
            self.tcl.call("source", str(path))
        except tkinter.TclError as error:
            raise Refused(str(self.problem or error)) from error
        if self.problem:  # a script that catches its errors
            raise Refused(self.problem)

    def _call(self, name: str, *arguments: str) -> str:
        command = getattr(self, "cmd_" + name.removeprefix("::").replace("::", "__"), None)
        try:
            if command is None:
                raise Refused(f"unknown command {name}")
            return str(command(*map(str, arguments)) or "")
        except (Refused, ValueError, KeyError, IndexError, TypeError) as error:
            self.problem = self.problem or f"{name}: {error}"
            raise RuntimeError(self.problem) from error

    @staticmethod
    def _options(arguments: tuple, flags: str = "", valued: str = "") -> tuple[dict, list]:
        options, rest, i = {}, [], 0
        while i < len(arguments):
            word = arguments[i]
            if re.match(r"-[a-z_]+$", word):
                if word[1:] in flags.split():
                    options[word[1:]] = "1"
                elif word[1:] in valued.split() and i + 1 < len(arguments):
                    options[word[1:]] = arguments[i + 1]
                    i += 1
                else:
                    raise Refused(f"unknown option {word}")
            else:
                rest.append(word)
            i += 1
        return options, rest


class Stub(Shell):
    """One Vivado session. ``run(path)`` sources a script; :class:`Refused` says what was wrong with it.

    ``own``: IPs and modules that are the project's own, vlnv or module name -> table as in ips.toml; an IP is in the
    catalog once a repository is named, a module once a source is added.
    """

    def __init__(
        self,
        own: dict[str, dict] | None = None,
        *,
        version: str = "2023.2",
        folder: Path | None = None,
        keeps_pll: bool = False,
    ):
        self.own, self.version, self.folder, self.keeps_pll = own or {}, version, folder, keeps_pll
        self.project: dict | None = None
        self.cells: dict[str, Cell] = {}
        self.links: list[tuple[str, ...]] = []  # interface ends of one net, "cell/interface"; "name" for a port
        self.nets: list[set[str]] = []
        self.ports: dict[str, str] = {}
        self.addresses: dict[tuple[str, str], tuple[int, int]] = {}  # (space, segment) -> offset, range
        self.excluded: set[tuple[str, str]] = set()
        self.external: set[str] = set()
        self.warnings: list[str] = []
        self.done: list[str] = []
        self.design: str | None = None
        super().__init__()
        self.names = {ip: names_in(t["names"], ip) | set(t.get("more", ())) for ip, t in IPS.items() if "names" in t}

    # ---- project and files

    def cmd_create_project(self, *arguments):
        options, rest = self._options(arguments, "force in_memory", "part")
        if "part" not in options or not PARTS.fullmatch(options["part"]):
            raise Refused(f"unknown part {options.get('part')!r}")
        self.project = {
            "part": options["part"],
            "name": rest[0] if rest else "",
            "folder": rest[1] if rest[1:] else ".",
        }
        return self.project["name"]

    def cmd_get_projects(self, *arguments):
        self._options(arguments, "quiet")
        return self.project["name"] if self.project else ""

    def cmd_current_project(self, *arguments):
        if not self.project:
            raise Refused("no project is open")
        return "project:"

    def cmd_version(self, *arguments):
        self._options(arguments, "short")
        return self.version

    def cmd_add_files(self, *arguments):
        _options, rest = self._options(arguments, "norecurse", "fileset")
        for name in rest[0].split() if rest else []:
            self.done.append(f"add {name}")
            if not name.startswith("wrapper:") and self.folder and not (self.folder / name).is_file():
                raise Refused(f"no file {name}")
        return ""

    def cmd_update_compile_order(self, *arguments):
        self._options(arguments, "", "fileset")

    def cmd_update_ip_catalog(self, *arguments):
        self._options(arguments, "rebuild quiet")
        self.done.append("catalog")

    @staticmethod
    def _versions(table: dict) -> set[str]:
        name, _, version = table["vlnv"].rpartition(":")
        return {f"{name}:{v}" for v in (version, *table.get("versions", ()))}

    def cmd_get_ipdefs(self, *arguments):
        _options, rest = self._options(arguments, "all quiet", "filter")
        known = set().union(*map(self._versions, IPS.values()))
        if "catalog" in self.done:
            known |= {v for v in self.own if ":" in v}
        pattern = re.compile(re.escape(rest[0]).replace(r"\*", ".*")) if rest else re.compile("")
        return " ".join(sorted(v for v in known if pattern.fullmatch(v)))

    def cmd_common__send_gid_msg(self, *arguments):
        options, rest = self._options(arguments, "", "ssname id severity")
        if options.get("severity") == "ERROR":
            raise Refused(rest[-1])

    def cmd_common__send_msg_id(self, *arguments):
        if arguments[1] == "ERROR":
            raise Refused(arguments[2])

    # ---- the design

    def cmd_create_bd_design(self, *arguments):
        if not self.project:
            raise Refused("no project is open")
        self.design = arguments[-1]
        return self.design

    def cmd_current_bd_design(self, *arguments):
        _options, rest = self._options(arguments, "quiet")
        return (rest or [self.design or ""])[0]

    def cmd_current_bd_instance(self, *arguments):
        return "/"

    def cmd_create_bd_cell(self, *arguments):
        options, rest = self._options(arguments, "", "type vlnv reference")
        (name,) = rest
        if name in self.cells:
            raise Refused(f"there is a cell {name} already")
        if self.design is None:
            raise Refused("no block design is open")
        kind = options.get("type")
        if kind == "ip":
            vlnv = options["vlnv"]
            ip = vlnv.split(":")[2]
            table = IPS.get(ip) or (self.own.get(vlnv) if "catalog" in self.done else None)
            if table is None or (ip in IPS and vlnv not in self._versions(table) | {f"{vlnv.rpartition(':')[0]}:*"}):
                raise Refused(f"IP {vlnv} is not in the catalog")
        elif kind == "module":
            vlnv = options["reference"]
            if vlnv not in self.own or not any(d.startswith("add ") for d in self.done):
                raise Refused(f"no source has a module {vlnv}")
            table = self.own[vlnv]
        else:
            raise Refused(f"unknown type of cell {kind!r}")
        self.cells[name] = Cell(name, vlnv, table)
        return f"/{name}"

    def cmd_create_bd_port(self, *arguments):
        options, (name,) = self._options(arguments, "", "dir type from to freq_hz")
        self.ports[name] = {"I": "out", "O": "in"}[options["dir"]]  # as the design sees it
        return f"/{name}"

    def cmd_create_bd_intf_port(self, *arguments):
        options, (name,) = self._options(arguments, "", "mode vlnv")
        self.ports[name] = options["mode"].lower()
        return f"/{name}"

    def _cell(self, path: str) -> Cell:
        name = path.strip("/")
        if name not in self.cells:
            raise Refused(f"no cell {path!r}")
        return self.cells[name]

    def cmd_get_bd_cells(self, *arguments):
        _options, rest = self._options(arguments, "quiet")
        if not rest:
            return " ".join(f"/{c}" for c in self.cells)
        return "/" if rest[0] == "/" else f"/{self._cell(rest[0]).name}"

    def _pin(self, path: str, interfaces: bool) -> str:
        cell, _, name = path.strip("/").partition("/")
        there = self._cell(cell).interfaces() if interfaces else self._cell(cell).pins()
        if name not in there:
            what = "interface" if interfaces else "pin"
            raise Refused(f"{self.cells[cell].vlnv} as configured has no {what} {name!r} ({cell})")
        return f"{cell}/{name}"

    def cmd_get_bd_pins(self, *arguments):
        return "/" + self._pin(self._options(arguments, "quiet")[1][0], False)

    def cmd_get_bd_intf_pins(self, *arguments):
        return "/" + self._pin(self._options(arguments, "quiet")[1][0], True)

    def _port(self, *arguments):
        name = arguments[-1].strip("/")
        if name not in self.ports:
            raise Refused(f"no port {name!r}")
        return f"/{name}"

    cmd_get_bd_ports = cmd_get_bd_intf_ports = _port

    # ---- properties

    def cmd_set_property(self, *arguments):
        options, rest = self._options(arguments, "quiet", "dict")
        if "dict" in options:
            words = self.tcl.splitlist(options["dict"])
            pairs, target = list(zip(words[::2], words[1::2], strict=True)), rest[0]
        else:
            pairs, target = [(rest[0], rest[1])], rest[2]
        for name, value in pairs:
            if name.startswith("CONFIG."):
                self._configure(self._cell(target), name.removeprefix("CONFIG."), value)
            elif target == "project:" and name.lower() in ("ip_repo_paths", "board_part"):
                self.done.append(f"{name} {value}")
            elif target == "fileset:" and name == "top":
                self.done.append(f"top {value}")
            elif name.startswith("PFM") and target:
                pass  # what Vitis platforms are told
            else:
                raise Refused(f"unknown property {name!r} of {target!r}")

    def _configure(self, cell: Cell, name: str, value: str) -> None:
        known = cell.table.get("parameters", {})
        if name not in known:
            if name not in self.names.get(cell.ip, ()):
                raise Refused(f"{cell.vlnv} has no parameter {name}")
            cell.set[name] = value
            return
        legal = known[name][1]
        kind = type(legal[0]) if isinstance(legal, list) else float if "." in legal.replace("..", "") else int
        try:
            read = kind(float(value)) if kind is int and float(value).is_integer() else kind(value)
        except ValueError:
            raise Refused(f"{name} of {cell.name} is no number: {value!r}") from None
        if isinstance(legal, list):
            fits = read in legal
        else:
            low, high = map(kind, legal.split(".."))
            fits = low <= read <= high
        if not fits:
            raise Refused(f"{name} of {cell.name} cannot be {value}: legal is {legal}")
        cell.set[name] = read
        for pin in {p for net in self.nets for p in net if p.startswith(f"{cell.name}/")}:
            self._pin(pin, False)

    def cmd_get_property(self, *arguments):
        _options, (name, target) = self._options(arguments, "quiet")
        if name == "VLNV":
            return target
        if name == "TYPE" and target == "/":
            return "hier"
        if name == "NAME":
            return target
        if name.startswith("CONFIG."):
            return self._parameter(self._cell(target), name.removeprefix("CONFIG."))
        if target == "run:impl_1" and name in ("PROGRESS", "STATUS"):
            done = "waited impl_1" in self.done
            return (
                ("100%" if done else "0%") if name == "PROGRESS" else "write_bitstream Complete!" if done else "Running"
            )
        raise Refused(f"unknown property {name!r} of {target!r}")

    def _parameter(self, cell: Cell, name: str) -> str:
        if name not in cell.table.get("parameters", {}) and name not in self.names.get(cell.ip, ()):
            raise Refused(f"{cell.vlnv} has no parameter {name}")
        if name not in ("PCW_FCLK0_PERIPHERAL_DIVISOR0", "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0"):
            return str(cell.set.get(name, cell.table.get("parameters", {}).get(name, [1])[0]))
        # Computed from the PLL: whether Vivado takes the multiplier that a script sets is not known; both are tried.
        if cell.ip == "processing_system7":
            crystal, factor = cell.value("PCW_CRYSTAL_PERIPHERAL_FREQMHZ"), cell.set.get("PCW_IOPLL_CTRL_FBDIV")
            pll, wanted = 1000.0, cell.value("PCW_FPGA0_PERIPHERAL_FREQMHZ")
        else:
            crystal, factor = cell.value("PSU__PSS_REF_CLK__FREQMHZ"), cell.set.get("PSU__CRL_APB__IOPLL_CTRL__FBDIV")
            factor = factor and float(factor) / (1 + int(cell.set.get("PSU__CRL_APB__IOPLL_CTRL__DIV2", 1)))
            pll, wanted = 1500.0, cell.value("PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ")
        if factor and not self.keeps_pll:
            pll = float(crystal) * float(factor)
        return str(round(pll / float(wanted)))

    # ---- links and nets

    def cmd_get_bd_intf_nets(self, *arguments):
        options, rest = self._options(arguments, "quiet", "of_objects")
        end = options.get("of_objects", "").strip("/")
        if not any(end in link for link in self.links):
            raise Refused(f"{end or rest} is on no link")
        return f"net:{end}"

    def cmd_connect_bd_intf_net(self, *arguments):
        options, rest = self._options(arguments, "", "intf_net")
        ends = tuple(e.strip("/") for e in rest)
        if len(ends) != 2:
            raise Refused("a link has two ends")
        found = []
        for end in ends:
            if end in self.ports:
                found.append(Interface("", {"master": "slave", "slave": "master"}[self.ports[end]], 0, ""))
            else:
                cell, name = end.split("/")
                found.append(self.cells[cell].interfaces()[name])
        if len({i.bus for i in found} - {""}) > 1:
            raise Refused(f"{ends[0]} is {found[0].bus}, {ends[1]} is {found[1].bus}")
        sides = [i.side for i in found]
        if sorted(sides) not in (["master", "slave"], ["master", "monitor"]):
            raise Refused(f"{ends[0]} is a {sides[0]}, {ends[1]} a {sides[1]}")
        if "monitor" in sides:
            if options.get("intf_net", "") not in [f"net:{e}" for e in ends]:
                raise Refused(f"{ends[sides.index('monitor')]} watches no link: -intf_net names it")
        elif taken := [e for e in ends if any(e in link for link in self.links if not self._monitors(link))]:
            raise Refused(f"{taken[0]} is linked already")
        self.links.append(ends)

    def _monitors(self, link: tuple) -> bool:
        return any(
            "/" in e and self.cells[e.split("/")[0]].interfaces()[e.split("/")[1]].side == "monitor" for e in link
        )

    def cmd_connect_bd_net(self, *arguments):
        _options, rest = self._options(arguments, "", "net")
        ends = {e.strip("/") for e in rest}
        if len(ends) < 2:
            raise Refused("a net has two ends or more")
        joined = [n for n in self.nets if n & ends]
        net = set().union(ends, *joined)
        drivers = [e for e in net if self._scalar(e).direction == "out"]
        if len(drivers) > 1:
            raise Refused(f"{' and '.join(sorted(drivers))} drive one net")
        if any(ends <= n for n in joined):
            raise Refused(f"{' and '.join(sorted(ends))} are connected already")
        self.nets = [n for n in self.nets if not n & ends] + [net]

    def _scalar(self, end: str) -> Pin:
        if end in self.ports:
            return Pin(self.ports[end], "data", True)
        cell, name = end.split("/")
        return self.cells[cell].pins()[name]

    def driver(self, pin: str) -> str | None:
        """What drives the pin, None for an open one."""
        net = next((n for n in self.nets if pin in n), ())
        return next((e for e in net if self._scalar(e).direction == "out"), None)

    def cmd_apply_bd_automation(self, *arguments):
        options, rest = self._options(arguments, "", "rule config")
        cell = self._cell(rest[0])
        config = dict(zip(*[iter(self.tcl.splitlist(options["config"]))] * 2, strict=True))
        if options["rule"] != "xilinx.com:bd_rule:processing_system7" or "processing_system7" not in cell.vlnv:
            raise Refused(f"unknown rule {options['rule']} for {cell.vlnv}")
        if unknown := set(config) - {"make_external", "apply_board_preset", "Master", "Slave"}:
            raise Refused(f"unknown {sorted(unknown)}")
        self.external |= {f"{cell.name}/{w.strip()}" for w in config.get("make_external", "").split(",") if w.strip()}

    # ---- addresses

    def cmd_get_bd_addr_spaces(self, *arguments):
        _options, (path,) = self._options(arguments, "quiet")
        cell, _, name = path.strip("/").partition("/")
        if name not in self._cell(cell).table.get("spaces", {}):
            raise Refused(f"no address space {path!r}")
        return f"/{cell}/{name}"

    def cmd_get_bd_addr_segs(self, *arguments):
        options, (path,) = self._options(arguments, "quiet")
        cell, _, name = path.strip("/").partition("/")
        pattern = re.compile(re.escape(name).replace(r"\*", "[^/]*"))
        found = [s for s in self._cell(cell).table.get("segments", {}) if pattern.fullmatch(s)]
        if not found and "quiet" not in options:
            raise Refused(f"no address segment {path!r}")
        return " ".join(f"/{cell}/{s}" for s in found)

    def cmd_assign_bd_address(self, *arguments):
        options, (segment,) = self._options(arguments, "force", "offset range target_address_space")
        offset, size = int(options["offset"], 0), int(options["range"], 0)
        space, segment = options["target_address_space"].strip("/"), segment.strip("/")
        if size < 4096 or size & size - 1:
            raise Refused(f"a range of {size:#x} is no power of two from 4K on")
        if offset % size:
            raise Refused(f"{offset:#x} is no multiple of its range {size:#x}")
        cell, _, name = segment.partition("/")
        base, extent = self.cells[cell].table["segments"][name]
        if not base <= offset <= offset + size <= base + extent:
            raise Refused(f"{segment} reaches from {base:#x} to {base + extent:#x}, not {offset:#x} + {size:#x}")
        self.addresses[space, segment] = offset, size

    def cmd_exclude_bd_addr_seg(self, *arguments):
        options, (segment,) = self._options(arguments, "", "offset range target_address_space")
        self.excluded.add((options["target_address_space"].strip("/"), segment.strip("/")))

    # ---- checks

    def cmd_validate_bd_design(self, *arguments):
        _options, rest = self._options(arguments, "force quiet")
        if rest:
            raise Refused(f"unknown argument {rest[0]}")
        for cell in self.cells.values():
            self._check_pins(cell)
            self._check_interfaces(cell)
        self._check_addresses()
        self.done.append("validated")

    def _check_pins(self, cell: Cell) -> None:
        for name, pin in cell.pins().items():
            at = f"{cell.name}/{name}"
            driver = self.driver(at) if pin.direction == "in" else None
            if pin.direction == "out" or (driver is None and pin.optional):
                continue
            if driver is None:
                raise Refused(f"{at} ({pin.kind}) is not connected")
            source = self._scalar(driver)
            if pin.kind == "clock" and source.kind != "clock":
                raise Refused(f"{at} is a clock, {driver} is not")
            if pin.kind.startswith("reset"):
                self._check_reset(cell, at, pin, driver, source)

    def _check_reset(self, cell: Cell, at: str, pin: Pin, driver: str, source: Pin) -> None:
        if source.kind == "clock" or (source.kind.startswith("reset") and source.kind != pin.kind):
            raise Refused(f"{at} is an active-{'high' if '+' in pin.kind else 'low'} reset, {driver} is {source.kind}")
        if "proc_sys_reset" in cell.vlnv or not source.kind.startswith("reset"):
            return
        reset = self.cells[driver.split("/")[0]]
        if "proc_sys_reset" not in reset.vlnv:
            raise Refused(f"{at} is reset by {driver}, which no flip-flop of its clock has synchronized")
        clocks = {self.driver(f"{cell.name}/{n}") for n, p in cell.pins().items() if p.kind == "clock"} - {None}
        if self.driver(f"{reset.name}/slowest_sync_clk") not in clocks:
            raise Refused(f"{at} is reset by {driver}, which runs on none of {sorted(clocks)}")

    def _check_interfaces(self, cell: Cell) -> None:
        processor, interconnect = cell.ip in PROCESSORS, cell.ip in INTERCONNECTS
        for name, interface in cell.interfaces().items():
            at = f"{cell.name}/{name}"
            ends = [next(e for e in link if e != at) for link in self.links if at in link]
            if name in cell.table.get("external", ()):
                if at not in self.external and not ends:
                    raise Refused(f"{at} leads to no pin of the board")
                continue
            # Public designs leave unused ports of processors and interconnects open; Vivado warns.
            if not [e for e in ends if interface.side == "monitor" or not self._monitors((at, e))]:
                if processor or interconnect:
                    self.warnings.append(f"{at} is not linked")
                    continue
                raise Refused(f"{at} is not linked")
            for other in (e for e in ends if "/" in e):
                peer, peer_name = other.split("/")
                peer_side = self.cells[peer].interfaces()[peer_name]
                if interface.bus == "axis" and interface.width and peer_side.width not in (0, interface.width):
                    raise Refused(f"{at} is {interface.width} bits wide, {other} is {peer_side.width}")
                here = self.driver(f"{cell.name}/{interface.clock}") if interface.clock else None
                there = self.driver(f"{peer}/{peer_side.clock}") if peer_side.clock else None
                if here and there and here != there:
                    raise Refused(f"{at} runs on {here}, {other} on {there}")

    def reach(self, master: str, seen: frozenset = frozenset()) -> set[str]:
        """Slave interfaces that a master reaches, through interconnects."""
        found = set()
        for link in self.links:
            if master in link and not self._monitors(link):
                (other,) = set(link) - {master}
                cell = self.cells[other.split("/")[0]]
                if cell.ip in INTERCONNECTS and cell.name not in seen:
                    for name, i in cell.interfaces().items():
                        if i.side == "master":
                            found |= self.reach(f"{cell.name}/{name}", seen | {cell.name})
                else:
                    found.add(other)
        return found

    def _check_addresses(self) -> None:
        for cell in self.cells.values():
            spaces = cell.table.get("spaces", {})
            for space, interface in spaces.items():
                masters = cell.table.get("windows") or {interface: None}
                for master, window in masters.items():
                    if master in cell.interfaces():
                        self._check_space(f"{cell.name}/{space}", f"{cell.name}/{master}", window)
            for space in spaces:
                ranges = sorted(
                    (*where, seg) for (s, seg), where in self.addresses.items() if s == f"{cell.name}/{space}"
                )
                for (low, size, one), (start, _, two) in itertools.pairwise(ranges):
                    if start < low + size:
                        raise Refused(f"{one} and {two} overlap at {start:#x}")

    def _check_space(self, space: str, master: str, window) -> None:
        for slave in self.reach(master):
            cell, _, name = slave.partition("/")
            table = self.cells[cell].table
            prefix = {"S_AXI_HP0_FPD": "SAXIGP2"}.get(name, name)
            segments = [s for s in table.get("segments", {}) if s.startswith(f"{prefix}/")]
            assigned = [
                self.addresses[space, f"{cell}/{s}"] for s in segments if (space, f"{cell}/{s}") in self.addresses
            ]
            if segments and not assigned:
                raise Refused(f"{space} has no address for {slave}")
            for offset, size in assigned if window else ():
                if not window[0] <= offset <= offset + size <= window[0] + window[1]:
                    raise Refused(f"{slave} at {offset:#x} is outside of what {master} reaches")
        reached = {s.split("/")[0] for s in self.reach(master)}
        for (own, segment), _ in self.addresses.items():
            if own == space and window is None and segment.split("/")[0] not in reached:
                raise Refused(f"{space} has an address for {segment}, which it does not reach")

    # ---- after the design

    def cmd_save_bd_design(self, *arguments):
        self.done.append("saved")

    def cmd_regenerate_bd_layout(self, *arguments):
        return ""

    def cmd_get_files(self, *arguments):
        options, rest = self._options(arguments, "quiet")
        if not rest or Path(rest[0]).name != f"{self.design}.bd":
            if "quiet" in options:
                return ""
            raise Refused(f"no file {rest}")
        return f"bd:{self.design}"

    def cmd_generate_target(self, *arguments):
        if arguments != ("all", f"bd:{self.design}"):
            raise Refused(f"cannot generate {arguments}")
        if "validated" not in self.done or "saved" not in self.done:
            raise Refused("the block design was not validated and saved")
        self.done.append("generated")

    def cmd_make_wrapper(self, *arguments):
        options, _rest = self._options(arguments, "top", "files")
        if options.get("files") != f"bd:{self.design}" or "top" not in options:
            raise Refused("make_wrapper -files <the design> -top")
        return f"wrapper:{self.design}_wrapper.v"

    def cmd_current_fileset(self, *arguments):
        return "fileset:"

    def cmd_launch_runs(self, *arguments):
        options, rest = self._options(arguments, "", "to_step jobs")
        if rest != ["impl_1"]:
            raise Refused(f"no run {rest}")
        if f"add wrapper:{self.design}_wrapper.v" not in self.done or f"top {self.design}_wrapper" not in self.done:
            raise Refused("the wrapper of the block design is not the top")
        if "generated" not in self.done:
            raise Refused("the block design's products were not generated")
        self.done.append(f"launched {options.get('to_step')}")

    def cmd_wait_on_runs(self, *arguments):
        _options, _rest = self._options(arguments, "", "timeout")
        if not any(d.startswith("launched") for d in self.done):
            raise Refused("no run was launched")
        self.done.append("waited impl_1")
        folder = Path(self.project["folder"])
        handoff = folder / f"{self.project['name']}.gen/sources_1/bd/{self.design}/hw_handoff"
        for path in (folder / f"{self.project['name']}.runs/impl_1", handoff):
            path.mkdir(parents=True, exist_ok=True)
        (handoff / f"{self.design}.hwh").write_text(FAKE)
        if "launched write_bitstream" in self.done:
            (folder / f"{self.project['name']}.runs/impl_1/{self.design}_wrapper.bit").write_text(FAKE)

    cmd_wait_on_run = cmd_wait_on_runs

    def cmd_get_runs(self, *arguments):
        if arguments != ("impl_1",):
            raise Refused(f"no run {arguments}")
        return "run:impl_1"

    def cmd_open_run(self, *arguments):
        if "waited impl_1" not in self.done:
            raise Refused("the run is not finished")

    def _report(self, *arguments):
        options, rest = self._options(arguments, "hierarchical no_header", "file max_paths")
        if "file" not in options or rest:
            raise Refused("a report goes to -file")
        Path(options["file"]).write_text(FAKE)

    cmd_report_timing_summary = cmd_report_utilization = cmd_report_power = cmd_report_drc = _report

    def cmd_close_project(self, *arguments):
        return ""


class Hls(Shell):
    """One session of Vitis HLS: the order of its commands, their options, the part, the clock and the sources.

    Options: AMD UG1399, and the scripts that hls4ml and public projects run.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.done = folder, []
        self.top = self.part = self.period_ns = self.vlnv = None
        self.sources: list[str] = []
        self.tcl.createcommand("exit", lambda *code: self.done.append("exit") or "")

    def _after(self, *steps: str) -> None:
        if missing := [step for step in steps if step not in self.done]:
            raise Refused(f"{missing[0]} comes first")

    def cmd_open_project(self, *arguments):
        _, (name,) = self._options(arguments, "reset")
        self.done.append("open_project")
        return name

    def cmd_set_top(self, *arguments):
        self._after("open_project")
        (self.top,) = arguments

    def cmd_add_files(self, *arguments):
        self._after("open_project")
        options, rest = self._options(arguments, "tb", "cflags csimflags")
        for name in rest[0].split():
            if not (self.folder / name).exists():
                raise Refused(f"no file {name}")
            self.sources += [] if "tb" in options else [name]
        for include in re.findall(r"-I(\S+)", options.get("cflags", "")):
            if not (self.folder / include).is_dir():
                raise Refused(f"no folder {include}")

    def cmd_open_solution(self, *arguments):
        self._after("open_project")
        options, _ = self._options(arguments, "reset", "flow_target")
        if options.get("flow_target") != "vivado":
            raise Refused("an IP for Vivado needs -flow_target vivado")
        self.done.append("open_solution")

    def cmd_set_part(self, *arguments):
        self._after("open_solution")
        (self.part,) = arguments
        if not PARTS.fullmatch(self.part):
            raise Refused(f"unknown part {self.part!r}")

    def cmd_create_clock(self, *arguments):
        self._after("open_solution")
        options, _ = self._options(arguments, "", "period name")
        self.period_ns = float(options["period"])

    def cmd_csynth_design(self, *arguments):
        self._after("open_solution")
        if None in (self.top, self.part, self.period_ns) or arguments:
            raise Refused("top, part and clock come before csynth_design")
        text = "".join((self.folder / name).read_text() for name in self.sources)
        if not re.search(rf"\bvoid {self.top}\(", text):
            raise Refused(f"no source has a function {self.top}")
        self.done.append("csynth_design")

    def cmd_export_design(self, *arguments):
        self._after("csynth_design")
        options, _ = self._options(arguments, "", "format vendor library ipname version rtl output")
        if options.get("format") != "ip_catalog":
            raise Refused("a block design takes -format ip_catalog")
        self.vlnv = ":".join(options[key] for key in ("vendor", "library", "ipname", "version"))
        self.done.append("export_design")
