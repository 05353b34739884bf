"""What is copied to a board: Python 3.10, few imports, the same facts as the host has."""

import ast
import sys
from pathlib import Path

import pytest

from boards import netlist
from boards.onboard import run as onboard

ONBOARD = Path(onboard.__file__).parent
ALLOWED = {"run.py": {"numpy", "pynq"}, "predict.py": {"numpy", "pynq", "PIL"}}


def imported(source: str) -> set[str]:
    """Top-level names of every import, at any depth; a relative import is '.'."""
    found = set()
    for node in ast.walk(ast.parse(source, feature_version=(3, 10))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_a_board_script_needs_the_standard_library_and_little_else(name):
    assert imported((ONBOARD / name).read_text()) - sys.stdlib_module_names <= ALLOWED[name]


def test_the_check_of_imports_sees_a_stranger():
    assert imported("def f():\n    from boards.errors import X") == {"boards"}
    assert imported("from . import run") == {"."}
    with pytest.raises(SyntaxError):
        imported("try:\n    pass\nexcept* ValueError:\n    pass")  # 3.11


def test_no_other_scripts_are_on_board():
    assert {path.name for path in ONBOARD.glob("*.py")} == {*ALLOWED, "__init__.py"}
    assert (ONBOARD / "__init__.py").read_text() == ""


def test_the_endless_wait_of_the_driver_is_never_called():
    for name in ALLOWED:
        tree = ast.parse((ONBOARD / name).read_text())
        calls = [node.func.attr for node in ast.walk(tree)
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]  # fmt: skip
        assert "wait" not in calls and "stop" not in calls
        assert name != "run.py" or "transfer" in calls


def test_script_and_netlist_agree_on_the_registers():
    assert {name: offset for name, offset, _ in netlist.PROBE_REGISTERS} == onboard.PROBE
    assert (netlist.PROBE_MAGIC, netlist.PROBE_VERSION, netlist.PROBE_HAS_CYCLES, netlist.BEAT_BYTES) == (
        onboard.PROBE_MAGIC, onboard.PROBE_VERSION, onboard.PROBE_HAS_CYCLES, onboard.BEAT_BYTES
    )  # fmt: skip
    dma = dict(netlist.DMA_REGISTERS)
    assert (dma["MM2S_DMASR"], dma["S2MM_DMASR"], dma["S2MM_LENGTH"]) == (
        onboard.MM2S_STATUS, onboard.S2MM_STATUS, onboard.S2MM_LENGTH
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3.1.2", (3, 1, 2)), ("4.0.0rc1", (4, 0, 0)), ("3.0", (3, 0)), ("3.1.dev", (3, 1)), ("x", ())],
)
def test_releases_compare_as_numbers(text, numbers):
    assert onboard.release(text) == numbers
