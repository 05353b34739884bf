#!/usr/bin/env python3
"""Run a packaged network on this board and compare every output code with the golden vectors.

    sudo -E python3 run.py --package . --out result.json

One file of stdlib + numpy + pynq, Python 3.10. It checks the package's hashes, loads the overlay, checks that the
design in the device is the package's, warms up, runs single samples and then the whole set as a stream, and writes a
result (result.schema.json) and the raw output codes (*.codes.npy).

Exit codes: 0 every code equal; 1 a code, a length or a count differs; 2 wrong package or wrong board; 3 the board or
its DMA failed.
"""

import argparse
import hashlib
import io
import json
import math
import os
import platform
import sys
import time
import traceback
from pathlib import Path

import numpy as np

RESULT_SCHEMA = 1
MISMATCH, WRONG_INPUT, TROUBLE = 1, 2, 3
BEAT_BYTES = 8
PROBE_MAGIC, PROBE_VERSION, PROBE_HAS_CYCLES = 0x534C494D, 1, 1
PROBE = {
    "MAGIC": 0x00, "VERSION": 0x04, "FEATURES": 0x08, "CONTROL": 0x0C, "IDENTITY_0": 0x10, "IDENTITY_1": 0x14,
    "IDENTITY_2": 0x18, "IDENTITY_3": 0x1C, "INPUT_BEATS": 0x20, "INPUT_LASTS": 0x24, "OUTPUT_BEATS": 0x28,
    "OUTPUT_LASTS": 0x2C, "LATENCY_CYCLES": 0x30, "INTERVAL_CYCLES": 0x34, "INPUT_STALLS": 0x38, "OUTPUT_STALLS": 0x3C,
}  # fmt: skip
# AMD PG021: offsets of the status and length registers, and the status bits.
MM2S_STATUS, S2MM_STATUS, S2MM_LENGTH = 0x04, 0x34, 0x58
IDLE, ERRORS, RESET = 0x2, 0x70, 0x4
BOARD_FILE = Path("/proc/device-tree/chosen/pynq_board")


class Stop(Exception):
    """The run cannot go on. ``code`` is the exit code, ``kind`` a word for the result, ``details`` plain data."""

    def __init__(self, code, kind, text, **details):
        super().__init__(text)
        self.code, self.kind, self.details = code, kind, details


class TransferTimeout(Stop):
    """A transfer did not end in time."""


# --- the package -----------------------------------------------------------------------------------------------------


def canonical(data):
    """The one way a manifest is written, so that any changed byte shows."""
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def check_package(folder):
    """The manifest of a package folder, every file's sha256 checked. Stop(2) names the file that differs."""
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw.decode("utf-8"))
        rest = {key: value for key, value in manifest.items() if key != "self_sha256"}
        intact = raw == canonical(manifest) and hashlib.sha256(canonical(rest)).hexdigest() == manifest["self_sha256"]
    except FileNotFoundError:
        raise Stop(WRONG_INPUT, "package", "no package here: %s is missing" % path) from None
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise Stop(WRONG_INPUT, "package", "%s was changed or is damaged; take the package again" % path)
    if manifest.get("kind") != "slimgate-package" or manifest.get("schema") != 1:
        raise Stop(WRONG_INPUT, "package", "%s is no slimgate package of schema 1" % path)
    for name, entry in sorted(manifest["files"].items()):
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise Stop(WRONG_INPUT, "package", "the package's %s cannot be read: %s" % (name, error)) from None
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise Stop(WRONG_INPUT, "package", "the package's %s was changed or is damaged; take it again" % name)
    return manifest


def marked_simulated(folder, manifest):
    """True where the overlay is the stand-in. Both of its files must say the same."""
    bit = b"SIMULATED" in (folder / manifest["overlay"]["bit"]).read_bytes()[:256]
    hwh = b"SIMULATED" in (folder / manifest["overlay"]["hwh"]).read_bytes()[:1024]
    if not bit == hwh == manifest["simulated"]:
        raise Stop(WRONG_INPUT, "package", "one of the overlay's files and the manifest says SIMULATED, another not")
    return bit


def load_golden(folder, wire):
    """(input codes, output codes, labels) of golden.npz, checked against the wire description."""
    try:
        with np.load(str(folder / "golden.npz"), allow_pickle=False) as file:
            inputs, outputs, labels = file["input_codes"], file["output_codes"], file["labels"]
            scales = int(file["input_scale_log2"]), int(file["output_scale_log2"])
    except (KeyError, ValueError, OSError) as error:
        raise Stop(WRONG_INPUT, "package", "golden.npz: %s" % error) from None
    if scales != (wire.input["scale_log2"], wire.output["scale_log2"]):
        raise Stop(WRONG_INPUT, "package", "golden.npz has scales 2**%d, 2**%d; io.json differs" % scales)
    count = len(inputs)
    if count == 0 or outputs.shape != (count, wire.outputs) or labels.shape != (count,):
        raise Stop(WRONG_INPUT, "package", "golden.npz holds inputs %s, outputs %s, labels %s; io.json wants %d outputs"
                   % (inputs.shape, outputs.shape, labels.shape, wire.outputs))  # fmt: skip
    return inputs, outputs.astype(np.int64), labels.astype(np.int64)


class Wire:
    """What a sample looks like on the streams: little-endian containers, channels last, zeros up to a whole beat."""

    def __init__(self, description):
        self.input, self.output = description["input"], description["output"]
        for name, side in (("input", self.input), ("output", self.output)):
            size = int(np.prod(side["shape"])) * side["container_bytes"]
            if side["container_bytes"] not in (1, 2, 4, 8) or side["bits"] > 8 * side["container_bytes"]:
                raise Stop(WRONG_INPUT, "package", "io.json: %d bits do not fit the %s's container of %d bytes"
                           % (side["bits"], name, side["container_bytes"]))  # fmt: skip
            if description["beat_bytes"] != BEAT_BYTES or side["beats"] != -(-size // BEAT_BYTES):
                raise Stop(WRONG_INPUT, "package", "io.json: %d bytes of %s are not %d beats of %d bytes"
                           % (size, name, side["beats"], description["beat_bytes"]))  # fmt: skip
        self.input_bytes = self.input["beats"] * BEAT_BYTES
        self.output_bytes = self.output["beats"] * BEAT_BYTES
        self.outputs = int(np.prod(self.output["shape"]))

    @staticmethod
    def _dtype(side):
        return np.dtype("<%s%d" % ("i" if side["signed"] else "u", side["container_bytes"]))

    def pack(self, codes):
        """Codes (N, *input shape) -> bytes (N, input_bytes) uint8. Stop(2) for a wrong shape or range."""
        codes = np.asarray(codes)
        if list(codes.shape[1:]) != list(self.input["shape"]) or codes.dtype.kind not in "iu":
            raise Stop(WRONG_INPUT, "codes", "input codes of %s %s; the network takes %s"
                       % (codes.dtype, codes.shape[1:], self.input["shape"]))  # fmt: skip
        bits = self.input["bits"]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if self.input["signed"] else (0, (1 << bits) - 1)
        if codes.size and not low <= int(codes.min()) <= int(codes.max()) <= high:
            raise Stop(WRONG_INPUT, "codes", "input codes reach from %d to %d; %d bits hold %d to %d"
                       % (codes.min(), codes.max(), bits, low, high))  # fmt: skip
        count = len(codes)
        data = np.ascontiguousarray(codes.reshape(count, -1).astype(self._dtype(self.input))).view(np.uint8)
        packed = np.zeros((count, self.input_bytes), np.uint8)
        packed[:, : data.shape[1]] = data
        return packed

    def unpack(self, data):
        """Bytes (N, output_bytes) uint8 -> (codes (N, outputs) int64, how many padding bytes are not 0)."""
        used = self.outputs * self.output["container_bytes"]
        codes = np.ascontiguousarray(data[:, :used]).view(self._dtype(self.output))
        return codes.astype(np.int64), int(np.count_nonzero(data[:, used:]))


# --- the board -------------------------------------------------------------------------------------------------------


def release(text):
    """"3.1.2rc1" -> (3, 1, 2)."""
    numbers = []
    for word in text.split(".")[:3]:
        digits = word[: len(word) - len(word.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


class Link:
    """The loaded overlay: its DMA, its probe, and transfers that end."""

    def __init__(self, folder, manifest, timeout):
        self.manifest, self.timeout = manifest, timeout
        self.bit = str((folder / manifest["overlay"]["bit"]).resolve())
        self.retries = []
        self._check_place(folder)
        self.load()

    def _check_place(self, folder):
        import pynq
        from pynq import Device

        want = self.manifest["pynq"]
        if not release(want["minimum"]) <= release(pynq.__version__) < release(want["below"]):
            why = " (pynq 4 dropped Zynq-7000)" if self.manifest["ps"] == "zynq7" else ""
            raise Stop(WRONG_INPUT, "pynq", "pynq %s cannot drive %s%s; it needs %s <= pynq < %s"
                       % (pynq.__version__, self.manifest["board"], why, want["minimum"], want["below"]))  # fmt: skip
        try:
            self.device = Device.active_device
        except RuntimeError as error:
            raise Stop(TROUBLE, "device", "pynq finds no device (%s); on a board, run as root with the pynq environment"
                       " sourced" % error) from None  # fmt: skip
        self.pynq = pynq.__version__
        self.name = str(getattr(self.device, "name", ""))
        self.simulated = self.name.startswith("simulated")
        arch = getattr(self.device, "arch", platform.machine())
        if arch != self.manifest["arch"]:
            raise Stop(WRONG_INPUT, "board", "this is a %s machine; the package is for %s (%s)"
                       % (arch, self.manifest["board"], self.manifest["arch"]))  # fmt: skip
        try:
            says = BOARD_FILE.read_bytes().rstrip(b"\0").decode("ascii", "replace")
        except OSError:
            says = ""
        known = self.manifest["pynq_names"]
        if says and known and says not in known and not self.simulated:
            raise Stop(WRONG_INPUT, "board", "this board is a %s; the package is for %s"
                       % (says, self.manifest["board"]))  # fmt: skip
        if marked_simulated(folder, self.manifest) and not self.simulated:
            raise Stop(WRONG_INPUT, "overlay", "the package holds the SIMULATED stand-in, which no board can load;"
                       " build the bitstream and package again")  # fmt: skip

    def load(self):
        """Load the overlay and check that the device now holds the package's design. Stop(2) when it does not."""
        import pynq.lib.dma  # noqa: F401 - binds the driver to axi_dma_0
        from pynq import Overlay

        self.overlay = Overlay(self.bit)
        if not self.overlay.is_loaded():
            raise Stop(TROUBLE, "overlay", "the overlay was loaded, but pynq says that another one is in the device")
        for name in ("axi_dma_0", "probe_0"):
            if name not in self.overlay.ip_dict:
                raise Stop(WRONG_INPUT, "overlay", "the overlay has no %s" % name)
        self.dma, self.probe = self.overlay.axi_dma_0, self.overlay.probe_0
        if getattr(self.dma, "sendchannel", None) is None or getattr(self.dma, "recvchannel", None) is None:
            raise Stop(WRONG_INPUT, "overlay", "axi_dma_0 is not driven by pynq.lib.dma with both channels")
        magic, version = self.probe.read(PROBE["MAGIC"]), self.probe.read(PROBE["VERSION"])
        if (magic, version) != (PROBE_MAGIC, PROBE_VERSION):
            raise Stop(WRONG_INPUT, "identity", "the probe answers %#x version %d, not %#x version %d"
                       % (magic, version, PROBE_MAGIC, PROBE_VERSION))  # fmt: skip
        self.identity = "".join("%08x" % self.probe.read(PROBE["IDENTITY_%d" % i]) for i in range(4))
        if self.identity != self.manifest["design_digest"][:32]:
            raise Stop(WRONG_INPUT, "identity", "the device holds design %s..., the package is design %s...:"
                       " a stale overlay" % (self.identity[:12], self.manifest["design_digest"][:12]))  # fmt: skip
        self.clear_counters()

    def allocate(self, size):
        """A buffer of ``size`` bytes that the DMA can reach."""
        from pynq import allocate

        buffer = allocate((size,), np.uint8)
        if buffer.physical_address + buffer.nbytes > 1 << 32:
            raise Stop(TROUBLE, "memory", "pynq gave a buffer at %#x, beyond what the DMA can address"
                       % buffer.physical_address)  # fmt: skip
        return buffer

    def exchange(self, source, sent, sink, wanted):
        """Send ``sent`` bytes, receive one packet of ``wanted`` bytes; nanoseconds from start to both channels done.

        After a timeout the DMA is reset and the overlay loaded again, for half a sample may wait in the network; then
        one more attempt. A packet of another length is Stop(1): TLAST came at the wrong beat.
        """
        try:
            return self._attempt(source, sent, sink, wanted)
        except TransferTimeout as first:
            self.retries.append(dict(first.details, text=str(first)))
            self.dma.write(0x00, RESET)
            self.load()
            return self._attempt(source, sent, sink, wanted)

    def _attempt(self, source, sent, sink, wanted):
        start = time.perf_counter_ns()
        # Receive first: a network without room for its outputs would stall the sending side.
        self.dma.recvchannel.transfer(sink, 0, wanted)
        self.dma.sendchannel.transfer(source, 0, sent)
        self._await(S2MM_STATUS, "receiving")
        self._await(MM2S_STATUS, "sending")
        ended = time.perf_counter_ns() - start
        received = self.dma.read(S2MM_LENGTH)
        sink.invalidate()
        self.packets += 1
        if received != wanted:
            raise Stop(MISMATCH, "length", "received %d bytes instead of %d: TLAST came at the wrong beat"
                       % (received, wanted), received=received, wanted=wanted, probe=self.counters())  # fmt: skip
        return ended

    def _await(self, offset, doing):
        # pynq's own wait() spins for ever when a transfer hangs.
        deadline = time.monotonic() + self.timeout
        while True:
            status = self.dma.read(offset)
            if status & ERRORS:
                raise Stop(TROUBLE, "dma", "the DMA failed while %s: status %#010x" % (doing, status),
                           status=status, probe=self.counters())  # fmt: skip
            if status & IDLE:
                return
            if time.monotonic() > deadline:
                details = {"send_status": self.dma.read(MM2S_STATUS), "receive_status": self.dma.read(S2MM_STATUS)}
                raise TransferTimeout(TROUBLE, "timeout", "%s did not end within %g s: no TLAST, or too few outputs"
                                      % (doing, self.timeout), probe=self.counters(), **details)  # fmt: skip

    def clear_counters(self):
        self.probe.write(PROBE["CONTROL"], 1)
        self.packets = 0

    def counters(self):
        return {name.lower(): self.probe.read(PROBE[name])
                for name in ("INPUT_BEATS", "INPUT_LASTS", "OUTPUT_BEATS", "OUTPUT_LASTS")}  # fmt: skip


# --- the run ---------------------------------------------------------------------------------------------------------


def first_difference(codes, golden, first_sample=0):
    """The first differing code in reading order, or None."""
    where = np.argwhere(codes != golden)
    if not len(where):
        return None
    sample, output = (int(v) for v in where[0])
    return {"sample": first_sample + sample, "output": output,
            "board": int(codes[sample, output]), "golden": int(golden[sample, output])}  # fmt: skip


def wilson(successes, total):
    """95 % Wilson score interval of a proportion."""
    z = 1.959963984540054
    share, spread = successes / total, z * z / total
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = ((share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return [0.0 if successes == 0 else max(0.0, low), 1.0 if successes == total else min(1.0, high)]


def microseconds(nanoseconds):
    """Percentiles of durations; nearest rank, so each is a time that occurred."""
    times = np.sort(np.asarray(nanoseconds, np.int64)) / 1000.0
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    summary = {name: float(times[max(0, math.ceil(share * len(times)) - 1)]) for name, share in ranks.items()}
    return dict(summary, count=len(times))


def run_singles(link, wire, packed, golden, count, warmup):
    """One sample a transfer, ``count`` times over the set; (what was compared, times in ns)."""
    source, sink = link.allocate(wire.input_bytes), link.allocate(wire.output_bytes)
    for i in range(warmup):
        source[:] = packed[i % len(packed)]
        link.exchange(source, wire.input_bytes, sink, wire.output_bytes)
    mismatches = padding = 0
    first, round_trips, whole = None, [], []
    for i in range(count):
        sample = i % len(packed)
        start = time.perf_counter_ns()
        source[:] = packed[sample]
        round_trips.append(link.exchange(source, wire.input_bytes, sink, wire.output_bytes))
        codes, dirty = wire.unpack(np.asarray(sink).reshape(1, -1))
        whole.append(time.perf_counter_ns() - start)
        mismatches += int(np.count_nonzero(codes[0] != golden[sample]))
        padding += dirty
        first = first or first_difference(codes, golden[sample : sample + 1], sample)
    counts = {"count": count, "compared_codes": count * wire.outputs, "mismatches": mismatches,
              "padding_bytes_not_zero": padding, "first_mismatch": first}  # fmt: skip
    return counts, round_trips, whole


def stream(link, wire, packed, memory_bytes):
    """All samples in as few transfers as DMA and memory allow; (codes (N, outputs), dirty padding, transfers, ns)."""
    widest = max(wire.input_bytes, wire.output_bytes)
    chunk = max(1, min(len(packed), link.dma.buffer_max_size // widest, memory_bytes // (2 * widest)))
    while True:
        try:
            source, sink = link.allocate(chunk * wire.input_bytes), link.allocate(chunk * wire.output_bytes)
            break
        except (RuntimeError, MemoryError) as error:
            if chunk == 1:
                raise Stop(TROUBLE, "memory", "no memory for buffers: %s" % error) from None
            source = sink = None
            chunk = -(-chunk // 2)
    codes = np.empty((len(packed), wire.outputs), np.int64)
    padding, transfers, spent = 0, 0, 0
    for begin in range(0, len(packed), chunk):
        part = packed[begin : begin + chunk]
        source[: part.size] = part.reshape(-1)
        wanted = len(part) * wire.output_bytes
        spent += link.exchange(source, part.size, sink, wanted)
        codes[begin : begin + len(part)], dirty = wire.unpack(np.asarray(sink[:wanted]).reshape(len(part), -1))
        padding, transfers = padding + dirty, transfers + 1
    return codes, padding, transfers, spent


def check_counters(link, samples, wire):
    """What the probe counted against what was sent; everything modulo 2**32, as the counters wrap."""
    wanted = {"input_beats": samples * wire.input["beats"], "input_lasts": link.packets,
              "output_beats": samples * wire.output["beats"], "output_lasts": link.packets}  # fmt: skip
    counted = link.counters()
    if link.retries:  # loading the overlay again cleared them
        return {"counted": counted, "expected": None, "equal": None}
    return {"counted": counted, "expected": wanted,
            "equal": all(counted[k] == wanted[k] % (1 << 32) for k in wanted)}  # fmt: skip


def benchmark(folder, options):
    """The whole run; the result as plain data, and the codes of the streamed set."""
    manifest = check_package(folder)
    description = json.loads((folder / "io.json").read_text(encoding="utf-8"))
    if description.get("design_digest") != manifest["design_digest"]:
        raise Stop(WRONG_INPUT, "package", "io.json is of another design than the manifest")
    wire = Wire(description)
    inputs, golden, labels = load_golden(folder, wire)
    packed = wire.pack(inputs)
    link = Link(folder, manifest, options.timeout)
    try:
        from pynq import Clocks

        clock = float(Clocks.fclk0_mhz)
    except (RuntimeError, ValueError, AttributeError):
        clock = None

    singles, round_trips, whole = run_singles(link, wire, packed, golden, options.singles, options.warmup)
    codes, padding, transfers, spent = stream(link, wire, packed, options.memory_mib << 20)
    samples = options.warmup + options.singles + len(packed)
    probe = check_counters(link, samples, wire)
    mismatches = int(np.count_nonzero(codes != golden))
    streamed = {"samples": len(packed), "transfers": transfers, "bytes_sent": int(packed.size),
                "bytes_received": len(packed) * wire.output_bytes, "compared_codes": int(codes.size),
                "mismatches": mismatches, "padding_bytes_not_zero": padding,
                "first_mismatch": first_difference(codes, golden)}  # fmt: skip
    predictions = np.argmax(codes, axis=1)  # the first of equal maxima
    correct = int(np.count_nonzero(predictions == labels))
    same = not (mismatches or singles["mismatches"] or padding or singles["padding_bytes_not_zero"])
    counters_ok = probe["equal"] is not False
    times = {"round_trip_us": microseconds(round_trips), "end_to_end_us": microseconds(whole),
             "stream_us_per_sample": spent / 1000.0 / len(packed)}  # fmt: skip
    if link.simulated:
        note = "time this computer needed to simulate; says nothing about the design"
        timing = {"host_simulation": dict(times, note=note)}
    else:
        timing = {"latency": dict(times, note="measured on the board; round_trip: DMA and Python driver; end_to_end:"
                                  " with copying and unpacking")}  # fmt: skip
    probe.update(identity=link.identity, cycle_counters=bool(link.probe.read(PROBE["FEATURES"]) & PROBE_HAS_CYCLES))
    result = {
        "status": "ok" if same and counters_ok else "mismatch",
        "evidence": "simulated" if link.simulated else "measured",
        "device": {"name": link.name, "simulated": link.simulated, "arch": manifest["arch"], "pynq": link.pynq,
                   "python": platform.python_version(), "numpy": np.__version__, "kernel": platform.release(),
                   "pynq_reports_clock_mhz": clock},
        "package": {"name": manifest["name"], "board": manifest["board"], "design_digest": manifest["design_digest"],
                    "manifest_sha256": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
                    "clock_mhz": manifest["clock_mhz"]},
        "overlay": {"simulated": manifest["simulated"],
                    "bit_sha256": manifest["files"][manifest["overlay"]["bit"]]["sha256"],
                    "hwh_sha256": manifest["files"][manifest["overlay"]["hwh"]]["sha256"]},
        "probe": probe,
        "warmup": options.warmup,
        "singles": singles,
        "stream": streamed,
        "retries": link.retries,
        "accuracy": {"correct": correct, "samples": len(labels), "value": correct / len(labels),
                     "interval": wilson(correct, len(labels)), "confidence": 0.95},
        "predictions": predictions.tolist(),
        "codes_sha256": hashlib.sha256(codes.astype("<i8").tobytes()).hexdigest(),
        "times": timing,
    }  # fmt: skip
    return result, codes


def write_whole(path, data):
    """The file is there in full, or not at all."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, default=Path(__file__).resolve().parent, help="the package's folder")
    parser.add_argument("--out", type=Path, required=True, help="result JSON to write")
    parser.add_argument("--singles", type=int, default=1000, help="single samples to run (default 1000)")
    parser.add_argument("--warmup", type=int, default=10, help="single samples before counting (default 10)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a transfer may take (default 10)")
    parser.add_argument("--memory-mib", type=int, default=32, help="most memory for buffers (default 32)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)
    if options.singles < 1 or options.warmup < 0 or not options.timeout > 0 or options.memory_mib < 1:
        parser.error("--singles and --memory-mib from 1, --warmup from 0, --timeout above 0")

    if not options.out.parent.is_dir():
        parser.error("there is no folder %s for the result" % options.out.parent)
    codes_path = options.out.with_suffix(".codes.npy")
    for old in (options.out, codes_path):  # an old result must not be mistaken for this run's
        if old.exists():
            old.unlink()
    head = {"schema": RESULT_SCHEMA, "kind": "slimgate-board-result"}
    try:
        result, codes = benchmark(options.package, options)
        code = 0 if result["status"] == "ok" else MISMATCH
        buffer = io.BytesIO()
        np.save(buffer, codes)
        write_whole(codes_path, buffer.getvalue())
    except Stop as stop:
        code = stop.code
        result = {"status": "error", "error": {"code": code, "kind": stop.kind, "text": str(stop),
                                               "details": stop.details}}  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever pynq raises must not look like exit code 1
        if options.debug:
            traceback.print_exc()
        code = TROUBLE
        text = "%s: %s" % (type(error).__name__, error)
        result = {"status": "error", "error": {"code": code, "kind": "unforeseen", "text": text, "details": {}}}
    try:
        write_whole(options.out, canonical(dict(head, **result)))
    except OSError as error:
        print("the result cannot be written: %s" % error, file=sys.stderr)
        return TROUBLE
    if result["status"] == "error":
        print(result["error"]["text"], file=sys.stderr)
    else:
        compared = result["singles"]["compared_codes"] + result["stream"]["compared_codes"]
        wrong = result["singles"]["mismatches"] + result["stream"]["mismatches"]
        first = result["stream"]["first_mismatch"] or result["singles"]["first_mismatch"]
        print("%s: %d of %d output codes differ from golden%s; accuracy %.4f on %d samples; %s"
              % (result["status"], wrong, compared, ", first %s" % first if first else "", result["accuracy"]["value"],
                 result["accuracy"]["samples"], result["evidence"]))  # fmt: skip
        if result["probe"]["equal"] is False:
            print("the probe counted %(counted)s instead of %(expected)s" % result["probe"], file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
