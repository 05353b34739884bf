"""Where the vendor tools are. Without them nothing is built and nothing pretends to be: :class:`ToolNotFound`."""

import os
import shutil
from pathlib import Path

from boards.errors import SlimgateError

VERSIONS = "2022.2 to 2025.x"
#: program -> (what it is for, variable that names its installation folder)
VITIS_HLS = ("vitis-run", "vitis_hls")
VIVADO = ("vivado",)
VARIABLES = {"Vitis HLS": "XILINX_HLS", "Vivado": "XILINX_VIVADO"}


class ToolNotFound(SlimgateError):
    """A vendor tool is not on this machine."""


def find(names: tuple[str, ...], variable: str) -> Path | None:
    """The first of ``names`` below ``$variable``/bin or on PATH, None when there is none."""
    places = [f"{os.environ[variable]}/bin"] if os.environ.get(variable) else []
    for path in [*places, os.environ.get("PATH", os.defpath)]:
        for name in names:
            found = shutil.which(name, path=path)
            if found:
                return Path(found)
    return None


def require_tools() -> dict[str, Path]:
    """Paths of Vitis HLS and Vivado; :class:`ToolNotFound` says what was sought, where, and how to name it."""
    found = {"Vitis HLS": find(VITIS_HLS, "XILINX_HLS"), "Vivado": find(VIVADO, "XILINX_VIVADO")}
    missing = [tool for tool, path in found.items() if path is None]
    if missing:
        names = {"Vitis HLS": " or ".join(VITIS_HLS), "Vivado": VIVADO[0]}
        sought = "; ".join(
            f"{tool}: {names[tool]} in ${VARIABLES[tool]}/bin ({os.environ.get(VARIABLES[tool]) or 'not set'}), on PATH"
            for tool in missing
        )
        raise ToolNotFound(
            f"{' and '.join(missing)} not found; a bitstream cannot be built on this machine",
            where=f"{sought}; PATH={os.environ.get('PATH', '')}",
            fix=f"install {' and '.join(missing)} {VERSIONS} and source its settings64.sh, or set "
            f"{' and '.join(VARIABLES[t] for t in missing)} to the installation folder",
        )
    return found
