"""The platform around the network, described once: cells, parameters, links, addresses, registers.

The simulated overlay's hardware handoff (.hwh) is rendered from this description, and the block design that a real
build makes must agree with it: same names, same parameters, same addresses. Nothing here runs a tool.
"""

import struct
from xml.sax.saxutils import quoteattr

from boards.board import Board

BEAT_BYTES = 8
LENGTH_WIDTH = 26
"""Width of the DMA's length register: 2**26 - 1 bytes a transfer, the most the IP offers (its default 14 is 16 KB)."""

# AMD PG021, AXI DMA 7.1, direct register mode: (name, offset).
DMA_REGISTERS = (
    ("MM2S_DMACR", 0x00), ("MM2S_DMASR", 0x04), ("MM2S_SA", 0x18), ("MM2S_SA_MSB", 0x1C), ("MM2S_LENGTH", 0x28),
    ("S2MM_DMACR", 0x30), ("S2MM_DMASR", 0x34), ("S2MM_DA", 0x48), ("S2MM_DA_MSB", 0x4C), ("S2MM_LENGTH", 0x58),
)  # fmt: skip

PROBE_MAGIC = 0x534C494D  # "SLIM"
PROBE_VERSION = 1
PROBE_HAS_CYCLES = 1  # bit of FEATURES: the cycle counters count
# Our own peripheral beside the network: it snoops both streams. (name, offset, access)
PROBE_REGISTERS = (
    ("MAGIC", 0x00, "read-only"),
    ("VERSION", 0x04, "read-only"),
    ("FEATURES", 0x08, "read-only"),
    ("CONTROL", 0x0C, "read-write"),  # writing 1 clears every counter
    ("IDENTITY_0", 0x10, "read-only"),  # first 128 bits of the design digest, most significant word first
    ("IDENTITY_1", 0x14, "read-only"),
    ("IDENTITY_2", 0x18, "read-only"),
    ("IDENTITY_3", 0x1C, "read-only"),
    ("INPUT_BEATS", 0x20, "read-only"),  # all counters wrap at 2**32
    ("INPUT_LASTS", 0x24, "read-only"),
    ("OUTPUT_BEATS", 0x28, "read-only"),
    ("OUTPUT_LASTS", 0x2C, "read-only"),
    ("LATENCY_CYCLES", 0x30, "read-only"),  # first input beat to last output beat of the last transfer
    ("INTERVAL_CYCLES", 0x34, "read-only"),  # between the last two samples' last output beats
    ("INPUT_STALLS", 0x38, "read-only"),  # cycles with TVALID and no TREADY
    ("OUTPUT_STALLS", 0x3C, "read-only"),
)

_PORTS = {
    "zynq7": {"cell": "processing_system7_0", "vlnv": "xilinx.com:ip:processing_system7:5.5", "control": "M_AXI_GP0",
              "memory": "S_AXI_HP0", "clock": "FCLK_CLK0", "reset": "FCLK_RESET0_N"},
    "zynqmp": {"cell": "zynq_ultra_ps_e_0", "vlnv": "xilinx.com:ip:zynq_ultra_ps_e:3.5", "control": "M_AXI_HPM0_FPD",
               "memory": "S_AXI_HP0_FPD", "clock": "pl_clk0", "reset": "pl_resetn0"},
}  # fmt: skip
_ADDRESSES = {
    "zynq7": {"axi_dma_0": 0x4040_0000, "probe_0": 0x43C0_0000},
    "zynqmp": {"axi_dma_0": 0xA000_0000, "probe_0": 0xA001_0000},
}
ADDRESS_RANGE = 0x1_0000
MEMORY_BYTES = 0x2000_0000
"""How much memory the DMA's ports see, from address 0: the least of all boards (512 MB)."""


def platform(board: Board, clock_mhz: float | None = None) -> dict:
    """The platform of one board as plain data: ps, cells, links, clock, reset and addresses.

    ``cells``: name -> vlnv, parameters (text -> int, float or text), interfaces (name -> (kind, side)).
    ``links``: pairs of "cell/interface". ``addresses``: cell -> (master interface, slave interface, base, bytes).
    BoardError when ``clock_mhz`` (default: the board's) cannot be made from the IO PLL.
    """
    clock_mhz = board.clock_mhz if clock_mhz is None else clock_mhz
    ports = _PORTS[board.ps]
    ps, bits = ports["cell"], BEAT_BYTES * 8
    dma = {
        "c_include_sg": 0, "c_sg_include_stscntrl_strm": 0, "c_sg_length_width": LENGTH_WIDTH, "c_micro_dma": 0,
        "c_addr_width": 32, "c_include_mm2s": 1, "c_m_axi_mm2s_data_width": bits, "c_m_axis_mm2s_tdata_width": bits,
        "c_include_mm2s_dre": 0, "c_mm2s_burst_size": 64, "c_include_s2mm": 1, "c_m_axi_s2mm_data_width": bits,
        "c_s_axis_s2mm_tdata_width": bits, "c_include_s2mm_dre": 0, "c_s2mm_burst_size": 64,
    }  # fmt: skip
    aximm, axis = "aximm", "axis"
    cells = {
        ps: {
            "vlnv": ports["vlnv"],
            "parameters": _ps_parameters(board, clock_mhz),
            "interfaces": {ports["control"]: (aximm, "MASTER"), ports["memory"]: (aximm, "SLAVE")},
        },
        "axi_dma_0": {
            "vlnv": "xilinx.com:ip:axi_dma:7.1",
            "parameters": dma,
            "interfaces": {
                "S_AXI_LITE": (aximm, "SLAVE"), "M_AXI_MM2S": (aximm, "MASTER"), "M_AXI_S2MM": (aximm, "MASTER"),
                "M_AXIS_MM2S": (axis, "MASTER"), "S_AXIS_S2MM": (axis, "SLAVE"),
            },
        },
        # No register interface: ap_ctrl_none, the length of a DMA transfer is the batch.
        "network_0": {
            "vlnv": "slimgate:hls:slimgate_axis:1.0",
            "parameters": {},
            "interfaces": {"s_axis": (axis, "SLAVE"), "m_axis": (axis, "MASTER")},
        },
        "probe_0": {
            "vlnv": "xilinx.com:module_ref:slimgate_probe:1.0",
            "parameters": {},
            "interfaces": {
                "s_axi": (aximm, "SLAVE"), "input_axis": (axis, "MONITOR"), "output_axis": (axis, "MONITOR"),
            },
        },
        "control_smc": {
            "vlnv": "xilinx.com:ip:smartconnect:1.0",
            "parameters": {"NUM_SI": 1, "NUM_MI": 2},
            "interfaces": {"S00_AXI": (aximm, "SLAVE"), "M00_AXI": (aximm, "MASTER"), "M01_AXI": (aximm, "MASTER")},
        },
        "memory_smc": {
            "vlnv": "xilinx.com:ip:smartconnect:1.0",
            "parameters": {"NUM_SI": 2, "NUM_MI": 1},
            "interfaces": {"S00_AXI": (aximm, "SLAVE"), "S01_AXI": (aximm, "SLAVE"), "M00_AXI": (aximm, "MASTER")},
        },
        "reset_0": {"vlnv": "xilinx.com:ip:proc_sys_reset:5.0", "parameters": {}, "interfaces": {}},
    }  # fmt: skip
    base = _ADDRESSES[board.ps]
    return {
        "ps": ps,
        "cells": cells,
        "links": [
            (f"{ps}/{ports['control']}", "control_smc/S00_AXI"),
            ("control_smc/M00_AXI", "axi_dma_0/S_AXI_LITE"),
            ("control_smc/M01_AXI", "probe_0/s_axi"),
            ("axi_dma_0/M_AXI_MM2S", "memory_smc/S00_AXI"),
            ("axi_dma_0/M_AXI_S2MM", "memory_smc/S01_AXI"),
            ("memory_smc/M00_AXI", f"{ps}/{ports['memory']}"),
            ("axi_dma_0/M_AXIS_MM2S", "network_0/s_axis"),
            ("network_0/m_axis", "axi_dma_0/S_AXIS_S2MM"),
            ("axi_dma_0/M_AXIS_MM2S", "probe_0/input_axis"),
            ("network_0/m_axis", "probe_0/output_axis"),
        ],
        "clock": {"net": f"{ps}/{ports['clock']}", "mhz": clock_mhz},
        "reset": {"net": f"{ps}/{ports['reset']}", "cell": "reset_0"},
        "addresses": {
            "axi_dma_0": (ports["control"], "S_AXI_LITE", base["axi_dma_0"], ADDRESS_RANGE),
            "probe_0": (ports["control"], "s_axi", base["probe_0"], ADDRESS_RANGE),
        },
        "memory": (ports["memory"], MEMORY_BYTES),
    }


def _ps_parameters(board: Board, clock_mhz: float) -> dict:
    first, second = board.clock_divisors(clock_mhz)
    made = round(board.io_pll_mhz / (first * second), 6)
    parameters: dict = {}
    if board.ps == "zynq7":
        parameters |= {
            "PCW_CRYSTAL_PERIPHERAL_FREQMHZ": board.crystal_mhz, "PCW_USE_M_AXI_GP0": 1, "PCW_USE_S_AXI_HP0": 1,
            "PCW_S_AXI_HP0_DATA_WIDTH": board.hp_width_bits, "PCW_USE_FABRIC_INTERRUPT": 0,
            "PCW_IOPLL_CTRL_FBDIV": round(board.io_pll_mhz / board.crystal_mhz),
            "PCW_FPGA0_PERIPHERAL_FREQMHZ": clock_mhz, "PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ": made,
        }  # fmt: skip
        for i in range(4):
            parameters |= {
                f"PCW_FPGA_FCLK{i}_ENABLE": int(i == 0),
                f"PCW_FCLK{i}_PERIPHERAL_CLKSRC": "IO PLL",
                f"PCW_FCLK{i}_PERIPHERAL_DIVISOR0": first if i == 0 else 1,
                f"PCW_FCLK{i}_PERIPHERAL_DIVISOR1": second if i == 0 else 1,
            }
        return parameters
    halved = board.io_pll_mhz < 1500  # the oscillator runs at 1500 MHz or more
    parameters |= {
        "PSU__PSS_REF_CLK__FREQMHZ": board.crystal_mhz, "PSU__USE__M_AXI_GP0": 1, "PSU__USE__M_AXI_GP1": 0,
        "PSU__USE__M_AXI_GP2": 0, "PSU__USE__S_AXI_GP2": 1, "PSU__CRL_APB__IOPLL_CTRL__DIV2": int(halved),
        "PSU__CRL_APB__IOPLL_CTRL__FBDIV": round(board.io_pll_mhz * (1 + halved) / board.crystal_mhz),
        "PSU__MAXIGP0__DATA_WIDTH": 32, "C_MAXIGP0_DATA_WIDTH": 32,
        "PSU__SAXIGP2__DATA_WIDTH": board.hp_width_bits, "C_SAXIGP2_DATA_WIDTH": board.hp_width_bits,
    }  # fmt: skip
    for i in range(4):
        parameters |= {
            f"PSU__FPGA_PL{i}_ENABLE": int(i == 0),
            f"PSU__CRL_APB__PL{i}_REF_CTRL__SRCSEL": "IOPLL",
            f"PSU__CRL_APB__PL{i}_REF_CTRL__DIVISOR0": first if i == 0 else 1,
            f"PSU__CRL_APB__PL{i}_REF_CTRL__DIVISOR1": second if i == 0 else 1,
            f"PSU__CRL_APB__PL{i}_REF_CTRL__FREQMHZ": clock_mhz,
            f"PSU__CRL_APB__PL{i}_REF_CTRL__ACT_FREQMHZ": made,
        }
    return parameters


def render_hwh(board: Board, netlist: dict | None = None) -> str:
    """The hardware handoff pynq reads, as XML, of the stand-in: marked SIMULATED in its name, version and a comment.

    A real overlay brings the file its own build wrote; it is never rendered.
    """
    netlist = netlist or platform(board)
    device, package, grade = part_fields(board.part)
    attributes = {
        "ARCH": "zynq" if board.ps == "zynq7" else "zynquplus",
        "DEVICE": device, "NAME": "SIMULATED_design_1", "PACKAGE": package, "SPEEDGRADE": grade,
    }  # fmt: skip
    lines = [
        '<?xml version="1.0" encoding="UTF-8" standalone="no" ?>',
        "<!-- SIMULATED stand-in, rendered by slimgate. No tool has built this design; no device can load it. -->",
        '<EDKSYSTEM EDWVERSION="1.2" TIMESTAMP="SIMULATED" VIVADOVERSION="SIMULATED">',
        _tag("SYSTEMINFO", attributes, 1, close=True),
        "  <EXTERNALPORTS/>",
        "  <EXTERNALINTERFACES/>",
        "  <MODULES>",
    ]
    for name, cell in netlist["cells"].items():
        lines += _module(name, cell, netlist)
    return "\n".join([*lines, "  </MODULES>", "</EDKSYSTEM>", ""])


def _module(name: str, cell: dict, netlist: dict) -> list[str]:
    kind = cell["vlnv"].split(":")[2]
    attributes = {"FULLNAME": f"/{name}", "INSTANCE": name, "MODTYPE": kind, "VLNV": cell["vlnv"]}
    if name == netlist["ps"]:
        attributes["IS_PL"] = "FALSE"
    lines = [_tag("MODULE", attributes, 2)]
    for registers, interface in ((DMA_REGISTERS, "S_AXI_LITE"), (PROBE_REGISTERS, "s_axi")):
        if name in netlist["addresses"] and netlist["addresses"][name][1] == interface:
            lines += _registers(registers, interface)
    lines.append("      <PARAMETERS>")
    lines += [_tag("PARAMETER", {"NAME": k, "VALUE": v}, 4, close=True) for k, v in cell["parameters"].items()]
    lines += ["      </PARAMETERS>", "      <BUSINTERFACES>"]
    for interface, (bus, side) in cell["interfaces"].items():
        vlnv = f"xilinx.com:interface:{bus}:1.0"
        names = [_bus_name(pair) for pair in netlist["links"] if f"{name}/{interface}" in pair]
        attributes = {"BUSNAME": names[0] if names else "__NOC__", "NAME": interface, "TYPE": side, "VLNV": vlnv}
        lines.append(_tag("BUSINTERFACE", attributes, 4, close=True))
    lines += ["      </BUSINTERFACES>", "      <MEMORYMAP>"]
    if name == netlist["ps"]:
        for slave, (master, interface, base, size) in netlist["addresses"].items():
            lines.append(_memrange("Reg", base, size, slave, master, interface, "REGISTER"))
    if name == "axi_dma_0":
        memory, size = netlist["memory"]
        for master in ("M_AXI_MM2S", "M_AXI_S2MM"):
            lines.append(_memrange("HP0_DDR_LOWOCM", 0, size, netlist["ps"], master, memory, "MEMORY"))
    return [*lines, "      </MEMORYMAP>", "    </MODULE>"]


def _bus_name(pair: tuple[str, str]) -> str:
    return pair[0].replace("/", "_")


def _registers(registers: tuple, interface: str) -> list[str]:
    lines = ["      <ADDRESSBLOCKS>"]
    block = {"ACCESS": "read-write", "INTERFACE": interface, "NAME": "Reg", "RANGE": 4096, "USAGE": "register"}
    lines += [_tag("ADDRESSBLOCK", block, 4), "          <REGISTERS>"]
    for name, offset, *access in registers:
        lines.append(_tag("REGISTER", {"NAME": name}, 6))
        properties = {"ADDRESS_OFFSET": hex(offset), "SIZE": 32, "ACCESS": access[0] if access else "read-write",
                      "IS_ENABLED": "true"}  # fmt: skip
        lines += [_tag("PROPERTY", {"NAME": k, "VALUE": v}, 7, close=True) for k, v in properties.items()]
        lines.append("            </REGISTER>")
    return [*lines, "          </REGISTERS>", "        </ADDRESSBLOCK>", "      </ADDRESSBLOCKS>"]


def _memrange(block: str, base: int, size: int, instance: str, master: str, slave: str, kind: str) -> str:
    attributes = {
        "ADDRESSBLOCK": block, "BASENAME": "C_BASEADDR", "BASEVALUE": f"0x{base:08X}", "HIGHNAME": "C_HIGHADDR",
        "HIGHVALUE": f"0x{base + size - 1:08X}", "INSTANCE": instance, "IS_DATA": "TRUE", "IS_INSTRUCTION": "TRUE",
        "MASTERBUSINTERFACE": master, "MEMTYPE": kind, "SLAVEBUSINTERFACE": slave,
    }  # fmt: skip
    return _tag("MEMRANGE", attributes, 4, close=True)


def _tag(name: str, attributes: dict, depth: int, *, close: bool = False) -> str:
    words = " ".join(f"{key}={quoteattr(str(value))}" for key, value in attributes.items())
    return f"{'  ' * depth}<{name} {words}{'/' if close else ''}>"


def part_fields(part: str) -> tuple[str, str, str]:
    """(device, package, speed grade) of a part, as the handoff writes them: xc7z020clg400-1 -> 7z020, clg400, -1."""
    head, _, tail = part.partition("-")
    if head.startswith("xc7"):
        split = head.index("clg")
        return head[2:split], head[split:], "-" + tail
    package, _, grade = tail.partition("-")
    return head, package, "-" + grade


def bit_part(board: Board) -> str:
    """The part as the header of a .bit names it: 7z020clg400 without the grade, xczu3eg-sbva484-1-i in full."""
    return board.part.removeprefix("xc").partition("-")[0] if board.ps == "zynq7" else board.part


def simulated_bitstream(board: Board, design_digest: str) -> bytes:
    """A .bit container that says SIMULATED in its header and holds no configuration data.

    Without the sync word AA995566 the FPGA manager of a real device refuses it. The header carries the first 32 digits
    of ``design_digest``, so that two designs never give the same file.
    """
    text = f"SIMULATED by slimgate: not a bitstream. Design {design_digest}. "
    payload = (text * 8).encode("ascii")
    payload += b" " * (-len(payload) % 4)

    def field(key: bytes, value: str) -> bytes:
        data = value.encode("ascii") + b"\0"
        return key + struct.pack(">H", len(data)) + data

    head = struct.pack(">H", 9) + bytes.fromhex("0ff00ff00ff00ff000") + struct.pack(">H", 1)
    name = f"SIMULATED_{design_digest[:32]};UserID=0XFFFFFFFF;Version=SIMULATED"
    return (
        head + field(b"a", name) + field(b"b", bit_part(board)) + field(b"c", "1980/01/01") + field(b"d", "00:00:00")
        + b"e" + struct.pack(">I", len(payload)) + payload
    )  # fmt: skip
