"""Board files: each mistake in one is a clear error; clocks are what the divisors can make."""

import pytest

from boards import netlist
from boards.board import FOLDER, BoardError, load, names

GOOD = (FOLDER / "pynq-z2.toml").read_text()


def test_an_unknown_board_gives_the_list_and_the_nearest():
    with pytest.raises(BoardError) as error:
        load("pynq_z2")
    assert "did you mean 'pynq-z2'" in str(error.value)
    for name in names():
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("crystal_mhz", "cristal_mhz", "unknown key 'cristal_mhz'.*did you mean 'crystal_mhz'"),
        ("crystal_mhz = 50.0\n", "", "missing crystal_mhz"),
        ("50.0", '"fast"', "crystal_mhz must be a number"),
        ("50.0", "0", "crystal_mhz must be a number above 0"),
        ("50.0", "true", "crystal_mhz must be a number"),
        ('ps = "zynq7"', 'ps = "zynq8"', "unknown ps 'zynq8'.*zynqmp"),
        ('part = "xc7z020clg400-1"', "part = 7020", "part must be a text"),
        ('part = "xc7z020clg400-1"', 'part = ""', "part must be a text"),
        ("dsp = 220", "dsp = -1", "resources.dsp must be a count"),
        ("dsp = 220", "dsps = 220", "needs exactly lut, ff, bram36, uram, dsp"),
        ('["Pynq-Z2"]', '"Pynq-Z2"', "pynq_names must be a list"),
        ("clock_mhz = 100.0", "clock_mhz = 150.0", "150 MHz cannot be divided"),
        ("[resources]", "[resources", "not a TOML file"),
        ('title = ', 'name = "x"\ntitle = ', "unknown key 'name'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_board_file(tmp_path, old, new, words):
    assert old in GOOD
    (tmp_path / "mine.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(BoardError, match=f"(?s){words}") as error:
        load("mine", tmp_path)
    assert "mine.toml" in str(error.value) or "clock" in words or "MHz" in words


def test_a_new_board_is_one_file(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD)
    mine = load("mine", tmp_path)
    assert (mine.name, mine.part, mine.resources["dsp"]) == ("mine", "xc7z020clg400-1", 220)
    with pytest.raises(TypeError):
        mine.resources["dsp"] = 1
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("mhz", [100, 125, 142.857, 166.667, 200, 50, 33.3333])
def test_clocks_within_reach(mhz):
    first, second = load("pynq-z2").clock_divisors(mhz)
    assert 1 <= first <= 63 and 1 <= second <= 63
    assert load("pynq-z2").io_pll_mhz / (first * second) == pytest.approx(mhz, rel=1e-3)


@pytest.mark.parametrize(("mhz", "near"), [(150, "142.857 or 166.667"), (0, "25"), (-5, "25"), (1e9, "250")])
def test_clocks_out_of_reach_name_the_nearest(mhz, near):
    with pytest.raises(BoardError, match=near):
        load("pynq-z2").clock_divisors(mhz)


def test_a_board_with_another_pll_has_other_clocks():
    """150 MHz needs 1500 MHz, 200 MHz needs 1000 or 1400; the MiniZed's divisors are not the PYNQ-Z2's."""
    assert load("ultra96-v2").clock_divisors(150) == (10, 1)
    with pytest.raises(BoardError, match=r"200 MHz cannot be divided from the 1500 MHz.*\n.*\n.*187.5 or 214.286 MHz"):
        load("ultra96-v2").clock_divisors(200)
    assert load("minized").clock_divisors(100) == (14, 1) and load("pynq-z2").clock_divisors(100) == (10, 1)


def test_the_platform_follows_the_clock():
    parameters = netlist.platform(load("pynq-z2"), 125)["cells"]["processing_system7_0"]["parameters"]
    assert parameters["PCW_FCLK0_PERIPHERAL_DIVISOR0"] * parameters["PCW_FCLK0_PERIPHERAL_DIVISOR1"] == 8
    assert parameters["PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ"] == 125.0
    with pytest.raises(BoardError, match="150 MHz"):
        netlist.platform(load("kv260"), 150)


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("xc7z020clg400-1", ("7z020", "clg400", "-1")),
        ("xc7z007sclg225-1", ("7z007s", "clg225", "-1")),
        ("xczu3eg-sbva484-1-i", ("xczu3eg", "sbva484", "-1-i")),
        ("xck26-sfvc784-2LV-c", ("xck26", "sfvc784", "-2LV-c")),
    ],
)
def test_part_names_split_as_the_handoff_writes_them(part, fields):
    assert netlist.part_fields(part) == fields
