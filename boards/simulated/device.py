"""A simulated board behind the real pynq package: its Overlay, allocate and DMA driver run on this, unchanged.

Modelled: memory with and without a cache, the clock registers, the AXI DMA in direct register mode, the probe. What the
accelerator computes comes from the compiled HLS design in its own process. Not modelled: time. A transfer takes no
cycles, so nothing measured here is a latency.

Stricter than silicon where silicon would be undefined: an unaligned address, a length written while busy or a short
last beat give an error or visible garbage instead of luck.
"""

import contextlib
import ctypes
import weakref
from pathlib import Path

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device
from pynq.pl_server.embedded_device import parse_bit_header
from pynq.ps import Clocks
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from boards import netlist
from boards.board import Board
from boards.errors import SlimgateError
from boards.simulated.accelerator import Accelerator

NAME_PREFIX = "simulated-"
OUTPUT_FIFO_BEATS = 64
"""How many finished beats the design holds before it stalls its input. Real designs differ; a script must not count on
any, so this is small: sending more than it before receiving does not end, as on the board."""


class SimulationError(SlimgateError):
    """The simulated board was used in a way that a real one would answer with a bus error."""


class Memory:
    """The contiguous memory a real image reserves for buffers (128 MB on PYNQ images), as the device sees it."""

    BASE, SIZE, PAGE, LEAST = 0x1000_0000, 128 << 20, 4096, 8192

    def __init__(self) -> None:
        self.bytes = np.zeros(self.SIZE, np.uint8)  # pages are only taken when touched
        self._used: dict[int, int] = {}  # offset -> size

    def allocate(self, count: int) -> int:
        """Address of ``count`` bytes; at least 8 KB are taken, as pynq's own allocator does."""
        size = max(self.LEAST, -(-count // self.PAGE) * self.PAGE)
        offset = 0
        for start in sorted(self._used):
            if start - offset >= size:
                break
            offset = start + self._used[start]
        if offset + size > self.SIZE:
            raise RuntimeError(f"BO allocation failed: {count} bytes, {self.SIZE >> 20} MiB of memory for buffers")
        self._used[offset] = size
        return self.BASE + offset

    def free(self, address: int) -> None:
        self._used.pop(address - self.BASE, None)

    def view(self, address: int, count: int) -> np.ndarray:
        offset = address - self.BASE
        if offset < 0 or offset + count > self.SIZE:
            raise IndexError(hex(address))
        return self.bytes[offset : offset + count]


class Streams:
    """The network between the DMA's two streams, with what waits in it. A DMA reset does not touch it."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.data, self.last, self.keep = b"", b"", b""
        self.input_beats = self.input_lasts = 0
        self.output_beats = self.output_lasts = 0

    def feed(self, data: bytes) -> None:
        made, last, keep = self.accelerator.transfer(data)
        self.data, self.last, self.keep = self.data + made, self.last + last, self.keep + keep
        self.input_beats += len(data) // netlist.BEAT_BYTES
        self.input_lasts += 1

    @property
    def waiting(self) -> int:
        """Beats at the output that nobody has taken."""
        return len(self.last)

    def packet_beats(self) -> int | None:
        """Beats up to and with the first TLAST; None where no TLAST waits."""
        before = len(self.last) - len(self.last.lstrip(b"\0"))
        return before + 1 if before < len(self.last) else None

    def take(self, beats: int) -> bytes:
        """The bytes that TKEEP marks in the next ``beats`` beats, which leave the stream."""
        size = beats * netlist.BEAT_BYTES
        data, keep = self.data[:size], self.keep[:beats]
        self.output_beats += beats
        self.output_lasts += beats - self.last[:beats].count(0)
        self.data, self.last, self.keep = self.data[size:], self.last[beats:], self.keep[beats:]
        if keep == b"\xff" * beats:
            return data
        kept = np.unpackbits(np.frombuffer(keep, np.uint8), bitorder="little").astype(bool)
        return np.frombuffer(data, np.uint8)[kept].tobytes()


class AxiDma:
    """AMD PG021, direct register mode, both channels, no realignment engine."""

    HALTED, IDLE, INTERNAL, DECODE, DONE_IRQ, ERROR_IRQ = 0x1, 0x2, 0x10, 0x40, 0x1000, 0x4000
    ERRORS = 0x70
    MM2S, S2MM = 0x00, 0x30

    def __init__(self, memory: Memory, streams: Streams, length_width: int):
        self.memory, self.streams = memory, streams
        self.length_mask = (1 << length_width) - 1
        self.reset()

    def reset(self) -> None:
        """Both channels: a soft reset of either resets the whole engine. The streams beyond it keep what they hold."""
        self.registers = {offset: 0 for _, offset in netlist.DMA_REGISTERS}
        for channel in (self.MM2S, self.S2MM):
            self.registers[channel] = 0x10002
            self.registers[channel + 4] = self.HALTED
        self.busy = {self.MM2S: False, self.S2MM: False}
        self.filled = 0  # bytes the running S2MM transfer has written

    def read(self, offset: int) -> int:
        return self.registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        channel = self.S2MM if offset >= self.S2MM else self.MM2S
        register, status = offset - channel, channel + 4
        if register == 0x00:
            if value & 4:
                self.reset()
                return
            self.registers[channel] = value
            if value & 1:
                # After an error only a reset helps: the run bit alone does not clear Halted.
                if not self.registers[status] & self.ERRORS:
                    self.registers[status] &= ~self.HALTED
            elif not self.busy[channel]:  # a transfer in flight is finished first, for ever if it never ends
                self.registers[status] = (self.registers[status] | self.HALTED) & ~self.IDLE
        elif register == 0x04:
            self.registers[status] &= ~(value & 0x7000)
        elif register == 0x28:
            self._start(channel, value & self.length_mask)
        elif offset in self.registers:
            self.registers[offset] = value & 0xFFFF_FFFF

    def _start(self, channel: int, length: int) -> None:
        if self.registers[channel + 4] & self.HALTED:
            return  # a halted channel ignores the write
        if self.busy[channel]:
            self._fail(channel, self.INTERNAL)
            return
        self.registers[channel + 0x28] = length
        self.registers[channel + 4] &= ~self.IDLE
        self.busy[channel] = True
        address = self.registers[channel + 0x18] | self.registers[channel + 0x1C] << 32
        if length == 0 or address % netlist.BEAT_BYTES:
            self._fail(channel, self.INTERNAL)
            return
        try:
            view = self.memory.view(address, length)
        except IndexError:
            self._fail(channel, self.DECODE)
            return
        if channel == self.MM2S:
            # The network reads whole beats and no TKEEP: what is beyond a short last beat is whatever the bus holds.
            self.streams.feed(view.tobytes() + b"\xa5" * (-length % netlist.BEAT_BYTES))
        else:
            self.filled = 0
        self._move()

    def _move(self) -> None:
        """Let the output stream flow into memory, as far as it goes, and end the transfers that are complete."""
        if self.busy[self.S2MM]:
            packet = self.streams.packet_beats()
            data = self.streams.take(self.streams.waiting if packet is None else packet)
            room = self.registers[0x58] - self.filled
            address = (self.registers[0x48] | self.registers[0x4C] << 32) + self.filled
            fits = data[:room]
            self.memory.view(address, len(fits))[:] = np.frombuffer(fits, np.uint8)
            self.filled += len(fits)
            if len(data) > room:
                self._fail(self.S2MM, self.INTERNAL)  # the packet is longer than LENGTH
            elif packet is not None:
                self.registers[0x58] = self.filled
                self._done(self.S2MM)
            # else: no TLAST came. Even a full buffer does not end the transfer; it hangs.
        if self.busy[self.MM2S] and self.streams.waiting <= OUTPUT_FIFO_BEATS:
            self._done(self.MM2S)

    def _done(self, channel: int) -> None:
        self.busy[channel] = False
        self.registers[channel + 4] |= self.IDLE | self.DONE_IRQ

    def _fail(self, channel: int, error: int) -> None:
        self.busy[channel] = False
        self.registers[channel] &= ~1
        self.registers[channel + 4] |= error | self.HALTED | self.ERROR_IRQ


class Probe:
    """The peripheral that snoops both streams. A C simulation has no cycles: FEATURES says so and they read 0."""

    def __init__(self, streams: Streams, identity: str):
        self.streams = streams
        self.offsets = {name: offset for name, offset, _ in netlist.PROBE_REGISTERS}
        words = [int(identity[i : i + 8], 16) for i in range(0, 32, 8)]
        self.constants = {"MAGIC": netlist.PROBE_MAGIC, "VERSION": netlist.PROBE_VERSION, "FEATURES": 0}
        self.constants |= {f"IDENTITY_{i}": word for i, word in enumerate(words)}
        self.names = {offset: name for name, offset in self.offsets.items()}

    def read(self, offset: int) -> int:
        name = self.names.get(offset, "")
        if name in self.constants:
            return self.constants[name]
        counters = ("INPUT_BEATS", "INPUT_LASTS", "OUTPUT_BEATS", "OUTPUT_LASTS")
        return getattr(self.streams, name.lower()) & 0xFFFF_FFFF if name in counters else 0

    def write(self, offset: int, value: int) -> None:
        if offset == self.offsets["CONTROL"] and value & 1:
            for name in ("input_beats", "input_lasts", "output_beats", "output_lasts"):
                setattr(self.streams, name, 0)


class Registers(dict):
    """Registers that hold what is written."""

    def read(self, offset: int) -> int:
        return self.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        self[offset] = value


def _clock_registers(board: Board) -> list[tuple[int, int, Registers]]:
    """The clock controllers as the boot loader leaves them: IO PLL as the board has it, PL clocks a tenth.

    (base, bytes, registers); AMD UG585 (SLCR) and UG1087 (CRL_APB, CRF_APB).
    """
    if board.ps == "zynq7":
        feedback = round(board.io_pll_mhz / board.crystal_mhz)
        slcr = Registers({0x100: 26 << 12, 0x104: 21 << 12, 0x108: feedback << 12, 0x120: 2 << 8})
        slcr |= {0x170 + 16 * i: 1 << 20 | 10 << 8 for i in range(4)}
        return [(0xF800_0000, 0x1000, slcr)]
    pll = 1 << 16 | round(2 * board.io_pll_mhz / board.crystal_mhz) << 8  # DIV2 halves it
    crl = Registers({0x20: pll, 0x30: pll} | {0xC0 + 4 * i: 1 << 24 | 1 << 16 | 10 << 8 for i in range(4)})
    crf = Registers({0x20: pll, 0x2C: pll, 0x38: pll, 0x60: 1 << 8})
    return [(0xFF5E_0000, 0x1000, crl), (0xFD1A_0000, 0x1000, crf)]


class SimulatedDevice(Device):
    """A pynq Device whose programmable logic is the compiled design ``library``.

    Loading an overlay starts the accelerator's process afresh; resetting the DMA does not.
    """

    _probe_priority_ = 10
    _registered: "SimulatedDevice | None" = None

    @classmethod
    def _probe_(cls) -> list:
        return [cls._registered] if cls._registered else []

    def __init__(self, library: str | Path, board: Board):
        super().__init__(NAME_PREFIX + board.name)
        self.name, self.arch, self.index = self.tag, board.arch, 0
        self.capabilities = {"REGISTER_RW": True, "MEMORY_MAPPED": False}
        self.library, self.board = Path(library), board
        self.memory = Memory()
        self.clocks = _clock_registers(board)
        self.blocks: list = []
        self.accelerator: Accelerator | None = None
        self.timestamp: str | None = None
        self.bitfile_name = ""

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> RuntimeMetadataParser:
        """What the handoff beside the bitstream says, read by pynq's own parser."""
        header = parse_bit_header(Path(bitfile_name).read_bytes())
        if header["part"] != netlist.bit_part(self.board):
            raise SimulationError(f"the overlay is for {header['part']}, not {self.board.part}", where=bitfile_name)
        return RuntimeMetadataParser(Metadata(input=str(Path(bitfile_name).with_suffix(".hwh"))))

    def download(self, bitstream, parser=None) -> None:
        """Load an overlay: a fresh process for the accelerator, empty streams, DMA and probe after reset."""
        self.close()
        self.accelerator = Accelerator(self.library)
        self.blocks = []
        streams = Streams(self.accelerator)
        for name, entry in (parser.ip_dict if parser else {}).items():
            if "phys_addr" not in entry:
                continue
            kind = entry["type"].split(":")[2]
            if kind == "axi_dma":
                block = AxiDma(self.memory, streams, int(entry["parameters"].get("c_sg_length_width", 14)))
            elif kind == "slimgate_probe":
                block = Probe(streams, self.accelerator.identity)
            else:
                raise SimulationError(f"no model of {entry['type']}", where=name)
            self.blocks.append((entry["phys_addr"], entry["addr_range"], block))
        self.post_download(bitstream, parser, self.name)

    def _at(self, address: int) -> tuple:
        for base, size, block in [*self.blocks, *self.clocks]:
            if base <= address < base + size:
                return block, address - base
        raise OSError(f"bus error at {address:#x}")

    def read_registers(self, address: int, length: int) -> bytes:
        block, offset = self._at(address)
        return b"".join(int(block.read(offset + i)).to_bytes(4, "little") for i in range(0, length, 4))

    def write_registers(self, address: int, data) -> None:
        block, offset = self._at(address)
        data = bytes(data)
        for i in range(0, len(data), 4):
            block.write(offset + i, int.from_bytes(data[i : i + 4], "little"))

    def allocate(self, shape, dtype, cacheable=0, **_) -> PynqBuffer:
        """A buffer the DMA can reach. ``cacheable=1`` gives it a copy of its own, so a missing flush is seen."""
        dtype = np.dtype(dtype)
        count = int(np.prod(shape)) * dtype.itemsize
        address = self.memory.allocate(count)
        store = None if cacheable else self.memory.view(address, count)
        buffer = PynqBuffer(shape, dtype, buffer=store, device=self, device_address=address, bo=address)
        weakref.finalize(buffer, self.memory.free, address)
        return buffer

    def flush(self, bo: int, offset: int, virtual: int, count: int) -> None:
        self._copy(bo + offset, virtual, count, to_device=True)

    def invalidate(self, bo: int, offset: int, virtual: int, count: int) -> None:
        self._copy(bo + offset, virtual, count, to_device=False)

    def _copy(self, address: int, virtual: int, count: int, to_device: bool) -> None:
        device = self.memory.view(address, count)
        if device.__array_interface__["data"][0] == virtual:
            return  # not cached: the host works on the device's own bytes
        host = np.frombuffer((ctypes.c_ubyte * count).from_address(virtual), np.uint8)
        if to_device:
            device[:] = host
        else:
            host[:] = device

    def close(self) -> None:
        if self.accelerator is not None:
            self.accelerator.close()
            self.accelerator = None


def register(library: str | Path, board: Board) -> SimulatedDevice:
    """Make a simulated board the device that pynq finds, and the only one."""
    device = SimulatedDevice(library, board)
    SimulatedDevice._registered = device
    Device._devices = [device]
    Device.active_device = device
    Clocks.device = device
    # pynq keeps its clock driver for the life of the process; a new board needs a new one.
    with contextlib.suppress(AttributeError):
        del Clocks._real_instance
    return device
