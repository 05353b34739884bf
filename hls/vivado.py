"""The block design around the network as Tcl for Vivado: rendered, not run. No run uses it yet.

What it builds is the platform that boards/netlist.py describes, which the simulated board's handoff comes from too.
Nothing here has met Vivado: tests replay the script in a stub interpreter (tests/vivado).
"""

import re
from pathlib import Path

import jinja2

from boards.board import Board
from boards.errors import SlimgateError
from boards.netlist import platform

TEMPLATES = Path(__file__).parent / "templates" / "vivado"
DESIGN = "design_1"
# What Vivado computes from the rest and writes into the handoff.
COMPUTED = re.compile(r"PCW_ACT_|PCW_FCLK\d_PERIPHERAL_|C_|PSU__CRL_APB__PL\d_REF_CTRL__(DIVISOR\d|ACT_FREQMHZ)$"
                      r"|PSU__CRL_APB__PL[123]_")  # fmt: skip
# Pins that the interfaces of the platform's description bring with them: cell -> clocks, resets.
PINS = {
    "axi_dma_0": (["s_axi_lite_aclk", "m_axi_mm2s_aclk", "m_axi_s2mm_aclk"], ["axi_resetn"]),
    "network_0": (["ap_clk"], ["ap_rst_n"]),
    "probe_0": (["aclk"], ["aresetn"]),
    "control_smc": (["aclk"], ["aresetn"]),
    "memory_smc": (["aclk"], ["aresetn"]),
    "reset_0": (["slowest_sync_clk"], []),
}
FAMILY = {
    "zynq7": {
        "clocks": ["M_AXI_GP0_ACLK", "S_AXI_HP0_ACLK"],
        "memory": "S_AXI_HP0/HP0_DDR_LOWOCM",
        "excluded": [],
        "divisors": ("PCW_FCLK0_PERIPHERAL_DIVISOR0", "PCW_FCLK0_PERIPHERAL_DIVISOR1"),
    },
    "zynqmp": {
        "clocks": ["maxihpm0_fpd_aclk", "saxihp0_fpd_aclk"],
        "memory": "SAXIGP2/HP0_DDR_LOW",
        "excluded": ["SAXIGP2/HP0_LPS_OCM"],
        "divisors": ("PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0", "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR1"),
    },
}
SAFE = re.compile(r"[\w./-]+", re.ASCII)


class VivadoError(SlimgateError):
    """The block design cannot be written down."""


def settings(parameters: dict) -> dict:
    """The parameters of the processor that a script sets; the others follow from them."""
    return {key: value for key, value in parameters.items() if not COMPUTED.match(key)}


def block_design(
    board: Board, clock_mhz: float | None = None, *, ip_repository: str, probe: str = "slimgate_probe.v", jobs: int = 2
) -> str:
    """The Tcl that builds the board's design and its bitstream. Paths are relative to where it runs.

    :class:`VivadoError` for a path that Tcl or Vivado would take apart; BoardError for a clock out of reach.
    """
    for path in (ip_repository, probe):
        if not SAFE.fullmatch(path):
            raise VivadoError(
                f"Vivado's Tcl takes no path like {path!r}",
                where=path,
                fix="letters, digits, and _ . / - only: build in another folder",
            )
    clock = board.clock_mhz if clock_mhz is None else clock_mhz
    description = platform(board, clock)
    ps, family = description["ps"], FAMILY[board.ps]
    fabric = {}
    for name, cell in description["cells"].items():
        vendor, library, ip, _ = cell["vlnv"].split(":")
        module = ip if library == "module_ref" else ""
        if name != ps:
            fabric[name] = {"module": module, "ip": f"{vendor}:{library}:{ip}", "parameters": cell["parameters"]}
    monitors = {
        f"{name}/{interface}"
        for name, cell in description["cells"].items()
        for interface, (_, side) in cell["interfaces"].items()
        if side == "MONITOR"
    }
    # A stream is linked before anything watches it.
    links = [pair for pair in description["links"] if pair[1] not in monitors]
    watched = [pair for pair in description["links"] if pair[1] in monitors]
    registers = [
        # Module references call their one segment reg0, packaged IPs theirs Reg.
        (f"{cell}/{slave}/{'reg0' if fabric[cell]['module'] else 'Reg'}", base, size)
        for cell, (_, slave, base, size) in description["addresses"].items()
    ]
    values = {
        "board": board,
        "clock_mhz": float(clock),
        "io_pll_mhz": board.io_pll_mhz,
        "design": DESIGN,
        "jobs": jobs,
        "ip_repository": ip_repository,
        "probe": probe,
        "ps": f"{board.ps}.tcl.j2",
        "ps_cell": ps,
        "ps_ip": description["cells"][ps]["vlnv"].rpartition(":")[0],
        "ps_parameters": settings(description["cells"][ps]["parameters"]),
        "fabric": fabric,
        "links": links,
        "watched": watched,
        "clock": description["clock"]["net"],
        "clock_pins": [f"{ps}/{pin}" for pin in family["clocks"]]
        + [f"{cell}/{pin}" for cell, (clocks, _) in PINS.items() for pin in clocks],
        "reset": description["reset"]["net"],
        "reset_cell": description["reset"]["cell"],
        "reset_pins": [f"{cell}/{pin}" for cell, (_, resets) in PINS.items() for pin in resets],
        "registers": registers,
        "spaces": ["axi_dma_0/Data_MM2S", "axi_dma_0/Data_S2MM"],
        "memory_segment": f"{ps}/{family['memory']}",
        "memory_excluded": [f"{ps}/{segment}" for segment in family["excluded"]],
        "memory_bytes": description["memory"][1],
        "divisors": family["divisors"],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    return environment.get_template("block_design.tcl.j2").render(values)
