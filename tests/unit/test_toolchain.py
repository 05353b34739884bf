"""Vendor tools: found by variable, found on PATH, and what is said when they are not there."""

import pytest

from hls import toolchain
from hls.toolchain import ToolNotFound, require_tools


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without tools; call it to put a program into a folder."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for variable in toolchain.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)

    def install(folder, *programs):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        for program in programs:
            (place / program).write_text("#!/bin/sh\n")
            (place / program).chmod(0o755)
        return place

    return install


def test_nothing_there(machine, monkeypatch):
    monkeypatch.setenv("XILINX_VIVADO", "/opt/nowhere")
    with pytest.raises(ToolNotFound) as caught:
        require_tools()
    text = str(caught.value)
    assert "Vitis HLS and Vivado not found; a bitstream cannot be built on this machine" in text
    for words in ("vitis-run or vitis_hls in $XILINX_HLS/bin (not set), on PATH",
                  "vivado in $XILINX_VIVADO/bin (/opt/nowhere), on PATH", "/empty", "2022.2 to 2025.x",
                  "settings64.sh", "set XILINX_HLS and XILINX_VIVADO to the installation folder"):  # fmt: skip
        assert words in text
    assert caught.value.exit_code != 0


def test_only_the_missing_one_is_named(machine, monkeypatch):
    monkeypatch.setenv("PATH", str(machine("tools", "vitis_hls")))
    with pytest.raises(ToolNotFound) as caught:
        require_tools()
    text = str(caught.value)
    assert text.startswith("Vivado not found") and "XILINX_VIVADO" in text
    assert "vitis" not in text.split("PATH=")[0] and "XILINX_HLS" not in text


def test_found_on_path(machine, monkeypatch):
    place = machine("tools", "vitis_hls", "vivado")
    monkeypatch.setenv("PATH", str(place))
    assert require_tools() == {"Vitis HLS": place / "vitis_hls", "Vivado": place / "vivado"}


def test_the_later_program_is_preferred(machine, monkeypatch):
    place = machine("tools", "vitis_hls", "vitis-run", "vivado")
    monkeypatch.setenv("PATH", str(place))
    assert require_tools()["Vitis HLS"] == place / "vitis-run"


def test_the_variable_comes_before_path(machine, monkeypatch):
    monkeypatch.setenv("PATH", str(machine("path", "vitis-run", "vivado")))
    hls, vivado = machine("Vitis/2024.1/bin", "vitis_hls"), machine("Vivado/2024.1/bin", "vivado")
    monkeypatch.setenv("XILINX_HLS", str(hls.parent))
    monkeypatch.setenv("XILINX_VIVADO", str(vivado.parent))
    assert require_tools() == {"Vitis HLS": hls / "vitis_hls", "Vivado": vivado / "vivado"}


def test_a_variable_that_leads_nowhere_falls_back_to_path(machine, monkeypatch):
    place = machine("path", "vitis-run", "vivado")
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("XILINX_HLS", "/opt/nowhere")
    assert require_tools()["Vitis HLS"] == place / "vitis-run"


def test_a_file_that_cannot_be_run_is_no_tool(machine, monkeypatch):
    place = machine("tools", "vitis_hls", "vivado")
    monkeypatch.setenv("PATH", str(place))
    (place / "vivado").chmod(0o644)
    with pytest.raises(ToolNotFound, match="^Vivado not found"):
        require_tools()
