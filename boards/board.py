"""A board as data: part, processing system, clocks, resources. One TOML file per board, no Python per board."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

from boards.errors import SlimgateError

FOLDER = Path(__file__).parent
PS_FAMILIES = {"zynq7": "armv7l", "zynqmp": "aarch64"}
"""Processing system -> the machine name its Linux reports."""
RESOURCES = ("lut", "ff", "bram36", "uram", "dsp")


class BoardError(SlimgateError):
    """A board is unknown, or its data file is wrong."""


@dataclass(frozen=True)
class Board:
    """What the tools need to know about one board. Frequencies in MHz, widths in bits, resources in counts."""

    name: str
    title: str
    part: str
    ps: str
    crystal_mhz: float
    io_pll_mhz: float
    """What the board's boot loader makes of the crystal, for the PL clocks to be divided from."""
    clock_mhz: float
    """Default clock of the programmable logic."""
    hp_width_bits: int
    """Width of the memory port the DMA uses."""
    resources: Mapping[str, int]
    """Counts of lut, ff, bram36, uram and dsp."""
    image: str
    """Which Linux image carries pynq on this board."""
    pynq_min: str
    pynq_below: str
    """The pynq releases that drive this board: pynq_min <= release < pynq_below."""
    pynq_names: tuple[str, ...]
    """What /proc/device-tree/chosen/pynq_board may say on it; empty where no image says anything."""
    power_sensor: str
    """Sensor readable from Linux, or "none"."""

    @property
    def arch(self) -> str:
        return PS_FAMILIES[self.ps]

    def clock_divisors(self, clock_mhz: float) -> tuple[int, int]:
        """The two divisors (each 1..63) that make ``clock_mhz`` from the IO PLL; BoardError when none do."""
        if clock_mhz > 0:
            product = round(self.io_pll_mhz / clock_mhz)
            if product and abs(self.io_pll_mhz / product - clock_mhz) < 1e-3 * clock_mhz:
                for second in range(1, 64):
                    if product % second == 0 and product // second <= 63:
                        return product // second, second
        near = self.clocks_mhz()
        below = max((f for f in near if f < clock_mhz), default=near[0])
        above = min((f for f in near if f > clock_mhz), default=near[-1])
        raise BoardError(
            f"a PL clock of {clock_mhz:g} MHz cannot be divided from the {self.io_pll_mhz:g} MHz IO PLL of {self.name}",
            where="[hls] clock_mhz",
            fix=f"take {below:.6g} or {above:.6g} MHz",
        )

    def clocks_mhz(self, low: float = 25.0, high: float = 250.0) -> list[float]:
        """Every PL clock from ``low`` to ``high`` MHz that the IO PLL can be divided to, rising."""
        products = {first * second for first in range(1, 64) for second in range(1, 64)}
        return sorted(f for n in products if low <= (f := self.io_pll_mhz / n) <= high)


def names(folder: Path = FOLDER) -> list[str]:
    """The boards there are data files for, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load(name: str, folder: Path = FOLDER) -> Board:
    """The board called ``name``. BoardError when there is none, or its file has a wrong, missing or unknown key."""
    known = names(folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise BoardError(
            f"unknown board {name!r}{f', did you mean {near[0]!r}?' if near else ''}",
            fix="known boards: " + ", ".join(known),
        )
    path = folder / f"{name}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"not a TOML file: {error}", where=path) from error
    return _read(data, name, path)


def _read(data: dict, name: str, path: Path) -> Board:
    types = {field.name: field.type for field in fields(Board)}
    for key in data:
        if key not in types or key == "name":
            near = difflib.get_close_matches(key, set(types) - {"name"}, 1)
            raise BoardError(f"unknown key {key!r}", where=path, fix=f"did you mean {near[0]!r}?" if near else None)
    if missing := sorted(set(types) - {"name"} - set(data)):
        raise BoardError(f"missing {', '.join(missing)}", where=path)
    for key, kind in types.items():
        value = data.get(key, name)
        if kind is str and not (isinstance(value, str) and value):
            raise BoardError(f"{key} must be a text, not {value!r}", where=path)
        if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
            raise BoardError(f"{key} must be a number above 0, not {value!r}", where=path)
    if data["ps"] not in PS_FAMILIES:
        raise BoardError(f"unknown ps {data['ps']!r}", where=path, fix=f"one of {', '.join(PS_FAMILIES)}")
    resources = data["resources"]
    if not isinstance(resources, dict) or sorted(resources) != sorted(RESOURCES):
        raise BoardError(f"[resources] needs exactly {', '.join(RESOURCES)}", where=path)
    for key, count in resources.items():
        if type(count) is not int or count < 0:
            raise BoardError(f"resources.{key} must be a count, not {count!r}", where=path)
    if not isinstance(data["pynq_names"], list) or not all(isinstance(n, str) for n in data["pynq_names"]):
        raise BoardError("pynq_names must be a list of texts", where=path)
    values = data | {"resources": MappingProxyType(dict(resources)), "pynq_names": tuple(data["pynq_names"])}
    board = Board(name=name, **values)
    board.clock_divisors(board.clock_mhz)
    return board
