"""The modelled device, driven by pynq's own driver: what PG021 says, and what a reset does not touch."""

import errno
from pathlib import Path

import numpy as np
import pytest

from boards import board, netlist
from boards.simulated import device
from boards.simulated.accelerator import Accelerator, AcceleratorError
from tests.hil.toy import DIGEST, compile_toy, toy_outputs


class Loaded:
    """The toy package's overlay on a simulated board, with buffers for ten samples."""

    def __init__(self, package, library=None):
        from pynq import Overlay

        self.device = device.register(library or package.library, board.load("pynq-z2"))
        self.bit = str(package.folder / package.manifest["overlay"]["bit"])
        self.overlay = Overlay(self.bit)
        self.dma, self.probe = self.overlay.axi_dma_0, self.overlay.probe_0
        self.source, self.sink = self.allocate(160), self.allocate(160)

    def allocate(self, count, **options):
        from pynq import allocate

        return allocate((count,), np.uint8, **options)

    def send(self, codes, *, receive=None):
        """Send codes (N, 16) after asking for ``receive`` bytes (default: what they give)."""
        data = np.asarray(codes, np.uint8).reshape(-1)
        self.source[: data.size] = data
        self.dma.recvchannel.transfer(self.sink, 0, receive or data.size)
        self.dma.sendchannel.transfer(self.source, 0, data.size)

    def outputs(self, count):
        return np.asarray(self.sink[: 16 * count]).view("<i4").reshape(count, 4)[:, :3]

    def receive_status(self):
        return self.dma.read(0x34)


@pytest.fixture
def loaded(toy_package):
    made = []

    def load(library=None):
        made.append(Loaded(toy_package, library))
        return made[-1]

    yield load
    for item in made:
        item.device.close()


@pytest.fixture
def codes():
    return np.random.default_rng(1).integers(0, 64, (10, 4, 4, 1)).astype(np.uint8)


def test_a_transfer_gives_what_the_design_computes(loaded, codes):
    it = loaded()
    it.send(codes)
    assert it.receive_status() & 0x2
    assert np.array_equal(it.outputs(10), toy_outputs(codes))
    assert it.dma.read(0x58) == 160
    assert [it.probe.read(offset) for offset in (0x20, 0x24, 0x28, 0x2C)] == [20, 1, 20, 1]
    it.probe.write(0x0C, 1)
    assert [it.probe.read(offset) for offset in (0x20, 0x24, 0x28, 0x2C)] == [0, 0, 0, 0]
    assert f"{it.probe.read(0x10):08x}" == DIGEST[:8]
    assert it.probe.read(0x08) & netlist.PROBE_HAS_CYCLES == 0


def test_dma_reset_leaves_half_a_sample_and_loading_the_overlay_does_not(loaded, codes):
    from pynq import Overlay

    it = loaded()
    pid = it.device.accelerator.pid
    it.source[:8] = 63
    it.dma.sendchannel.transfer(it.source, 0, 8)  # half a sample
    it.dma.write(0x00, 4)
    it.dma.sendchannel.start()
    it.dma.recvchannel.start()
    assert it.device.accelerator.pid == pid
    it.send(codes[:3])
    # The half sample came first: every output is of pixels shifted by one beat, and the last sample stays inside.
    assert not it.receive_status() & 0x2
    shifted = np.concatenate([np.full(8, 63), codes[:3].reshape(-1)])[:48].reshape(3, 4, 4, 1)
    assert np.array_equal(it.outputs(3), toy_outputs(shifted))
    assert not np.array_equal(it.outputs(3), toy_outputs(codes[:3]))

    it.overlay = Overlay(it.bit)
    it.dma = it.overlay.axi_dma_0
    assert it.device.accelerator.pid != pid
    it.send(codes[:3])
    assert it.receive_status() & 0x2
    assert np.array_equal(it.outputs(3), toy_outputs(codes[:3]))


def test_a_second_overlay_takes_the_device_from_the_first(loaded):
    from pynq import Overlay

    it = loaded()
    assert it.overlay.is_loaded()
    second = Overlay(it.bit)
    assert second.is_loaded() and not it.overlay.is_loaded()


def test_missing_tlast_never_ends_even_with_a_full_buffer(loaded, codes):
    it = loaded(compile_toy("-DFAULT_NO_TLAST"))
    it.send(codes)
    assert it.receive_status() & 0x73 == 0
    assert np.array_equal(it.outputs(10), toy_outputs(codes))  # the bytes came; the end did not


def test_a_packet_longer_than_the_buffer_is_an_error_that_only_a_reset_clears(loaded, codes):
    it = loaded()
    it.send(codes, receive=80)
    assert it.receive_status() & 0x11 == 0x11
    it.dma.write(0x30, 1)
    assert it.receive_status() & 0x1  # still halted
    with pytest.raises(RuntimeError, match="not started"):
        it.dma.recvchannel.transfer(it.sink)
    it.dma.write(0x00, 4)
    assert it.receive_status() & 0x71 == 0x1
    it.dma.recvchannel.start()
    it.dma.sendchannel.start()
    it.send(codes)
    assert np.array_equal(it.outputs(10), toy_outputs(codes))


def test_a_packet_shorter_than_the_buffer_reports_its_length(loaded, codes):
    it = loaded()
    it.send(codes[:4], receive=160)
    assert it.receive_status() & 0x2
    assert it.dma.read(0x58) == 64


def test_sending_more_than_the_fifo_before_receiving_does_not_end(loaded):
    it = loaded()
    beats = device.OUTPUT_FIFO_BEATS
    source, sink = it.allocate(8 * beats + 16), it.allocate(8 * beats + 16)
    it.dma.sendchannel.transfer(source, 0, 8 * beats)
    assert it.dma.read(0x04) & 0x2
    it.dma.recvchannel.transfer(sink)
    it.dma.sendchannel.transfer(source)
    it.dma.recvchannel.transfer(sink)
    assert it.dma.read(0x04) & 0x2

    it.dma.sendchannel.transfer(source)
    assert not it.dma.read(0x04) & 0x2
    it.dma.recvchannel.transfer(sink)
    assert it.dma.read(0x04) & 0x2


@pytest.mark.parametrize(
    ("address", "length", "bit"),
    [(0x1000_0004, 16, 0x10), (0x1000_0000, 0, 0x10), (0x0000_1000, 16, 0x40), (0x17FF_FFF8, 16, 0x40)],
)
def test_bad_addresses_and_lengths_halt_the_channel(loaded, address, length, bit):
    it = loaded()
    it.dma.write(0x18, address)
    it.dma.write(0x28, length)
    assert it.dma.read(0x04) & (bit | 0x1) == bit | 0x1


def test_a_halted_channel_ignores_a_length_and_a_busy_one_fails(loaded):
    it = loaded()
    it.dma.write(0x30, 0)
    it.dma.write(0x48, it.sink.physical_address)
    it.dma.write(0x58, 16)
    assert it.receive_status() & 0x73 == 0x1
    it.dma.write(0x30, 1)
    it.dma.write(0x58, 16)
    assert it.receive_status() & 0x73 == 0
    it.dma.write(0x30, 0)
    assert not it.receive_status() & 0x1  # a transfer in flight is finished first
    it.dma.write(0x58, 16)
    assert it.receive_status() & 0x11 == 0x11


def test_pynq_refuses_what_the_handoff_says_the_dma_cannot(loaded):
    it = loaded()
    with pytest.raises(RuntimeError, match="unaligned"):
        it.dma.sendchannel.transfer(it.source, 4, 8)
    assert it.dma.buffer_max_size == (1 << 26) - 1
    big = it.allocate(1 << 26)
    with pytest.raises(ValueError, match="exceeds"):
        it.dma.sendchannel.transfer(big)


def test_a_length_of_half_a_beat_feeds_garbage_not_zeros(loaded):
    it = loaded()
    it.source[:] = 0
    it.dma.recvchannel.transfer(it.sink, 0, 16)
    it.dma.sendchannel.transfer(it.source, 0, 12)
    assert it.outputs(1)[0, 1] == 300 - 4 * 0xA5


def test_cached_buffers_are_stale_until_invalidated(loaded, codes):
    it = loaded()
    it.sink = it.allocate(160, cacheable=1)
    it.send(codes)
    assert not np.array_equal(it.outputs(10), toy_outputs(codes))
    it.sink.invalidate()
    assert np.array_equal(it.outputs(10), toy_outputs(codes))


def test_buffers_take_8_kb_and_run_out(loaded):
    it = loaded()
    first, second = it.allocate(16), it.allocate(16)
    assert second.physical_address - first.physical_address == 8192
    address = first.physical_address
    del first
    assert it.allocate(8192).physical_address == address
    with pytest.raises(RuntimeError, match="allocation failed"):
        it.allocate(it.device.memory.SIZE)


def test_addresses_nobody_answers_are_bus_errors(loaded):
    it = loaded()
    with pytest.raises(OSError, match="bus error"):
        it.device.read_registers(0x5000_0000, 4)


def test_an_overlay_for_another_part_is_refused(loaded, toy_package):
    from pynq import Overlay

    machine = device.register(toy_package.library, board.load("zedboard"))
    with pytest.raises(device.SimulationError, match="7z020clg400"):
        Overlay(str(toy_package.folder / toy_package.manifest["overlay"]["bit"]))
    machine.close()


def test_the_accelerator_cannot_open_a_file():
    with Accelerator(compile_toy("-DFAULT_OPENS_FILES")) as accelerator:
        out, _, _ = accelerator.transfer(bytes(16))
    assert np.frombuffer(out, "<i4")[0] == -errno.EMFILE


def test_the_accelerator_process_is_given_the_library_and_nothing_else(toy_package):
    with Accelerator(toy_package.library) as accelerator:
        process = Path(f"/proc/{accelerator.pid}")
        lines = (process / "limits").read_text().splitlines()
        limit = next(line for line in lines if line.startswith("Max open files"))
        assert limit.split()[3:5] == ["3", "3"]
        assert sorted(path.name for path in (process / "fd").iterdir()) == ["0", "1", "2"]
        assert (process / "cwd").readlink() == Path("/")
        words = (process / "cmdline").read_text().strip("\0").split("\0")
        assert words[1:3] == ["-I", "-S"] and words[4:] == [str(toy_package.library.resolve())]


def test_more_outputs_than_one_answer_holds_and_a_crash(tmp_path):
    with Accelerator(compile_toy()) as accelerator:
        out, last, keep = accelerator.transfer(bytes(16 * 9000))
        assert (len(out), len(last), sum(last), set(keep)) == (16 * 9000, 18000, 1, {0xFF})
    with pytest.raises(AcceleratorError, match="missing"):
        Accelerator(tmp_path / "none.so")
    with pytest.raises(AcceleratorError, match="interface version 2"):
        Accelerator(compile_toy("-DABI_VERSION=2"))
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(AcceleratorError, match="not a compiled slimgate design"):
        Accelerator(tmp_path / "text.so")


def test_the_shared_handoff_of_pynq_itself_runs_here(tmp_path):
    """resizer.hwh was written by Vivado: our device serves a genuine handoff, not only our own."""
    import pynqmetadata
    from pynqmetadata.frontends import Metadata
    from pynqmetadata.views.runtime import RuntimeMetadataParser

    genuine = Path(pynqmetadata.__file__).parent / "tests" / "hwhs" / "resizer.hwh"
    parameters = RuntimeMetadataParser(Metadata(input=str(genuine))).ip_dict["axi_dma_0"]["parameters"]
    mine = netlist.platform(board.load("pynq-z2"))["cells"]["axi_dma_0"]["parameters"]
    assert set(mine) <= set(parameters)  # every parameter name exists in the genuine IP
    assert mine["c_sg_length_width"] == int(parameters["c_sg_length_width"])
