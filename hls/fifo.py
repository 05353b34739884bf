"""Are the FIFOs of a generated project deep enough? Asked of the generated C++ itself.

Every dataflow process of the network and its wrapper runs on a thread of its own; the streams between them block when
full or empty, as hardware FIFOs do. The processes are deterministic and talk through these streams only, so (Kahn)
the outcome does not depend on how the threads are scheduled: either all frames come out, always with the same
codes, or all processes end up waiting for each other, always in the same state. That state is detected by counting,
without a clock, and the FIFO that closes the circle is named.

This shows what the C++ means, not what RTL does with it: evidence "simulated".
"""

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hls import csim, generated, wire
from hls.convert import PROJECT, TEMPLATES
from hls.dataflow import circle
from hls.generated import INPUT

THREADS = TEMPLATES / "threads"
FLAGS = ("-O1", "-std=c++17", "-w", "-pthread")


@dataclass(frozen=True)
class Outcome:
    """``codes`` (N, outputs) int64, None after a deadlock. ``peaks``: most tokens each FIFO ever held. ``waits``:
    after a deadlock, process -> (read or write, FIFO). ``full``: the FIFOs whose depth closes the circle of waiting
    processes.
    """

    codes: np.ndarray | None
    peaks: dict[str, int]
    waits: dict[str, tuple[str, str]]
    full: tuple[str, ...]

    @property
    def deadlock(self) -> bool:
        return self.codes is None


@dataclass(frozen=True)
class Threaded:
    """A project compiled with one thread per process. ``fifos``: FIFO name -> (C++ stream, writer, reader)."""

    program: Path
    fifos: dict[str, tuple[str, str, str]]

    def run(self, codes: np.ndarray, io: dict, depths: dict[str, int]) -> Outcome:
        """Send samples (N, *shape) back to back; ``depths``: FIFO name -> tokens, for every FIFO.

        Raises :class:`hls.csim.CsimError` when a FIFO has no depth or the program itself breaks.
        """
        if missing := sorted(set(self.fifos) - set(depths)):
            raise csim.CsimError(f"FIFO {missing[0]} has no depth", where=self.program, fix="give every FIFO a depth")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "depths").write_text("".join(f"{self.fifos[n][0]} {depths[n]}\n" for n in self.fifos))
            (folder / "in").write_bytes(wire.pack(codes, io))
            command = [str(self.program), *(str(folder / f) for f in ("depths", "in", "out")), str(len(codes))]
            result = subprocess.run(command, capture_output=True, text=True)
            lines = [line.split() for line in result.stdout.splitlines()]
            if result.returncode not in (0, 3):
                raise csim.CsimError(f"the threaded design ended with code {result.returncode}: "
                                     f"{(result.stderr or result.stdout).strip()}", where=self.program)
            names = {stream: name for name, (stream, _, _) in self.fifos.items()}
            peaks = {names[line[1]]: int(line[2]) for line in lines if line[0] == "peak" and line[1] in names}
            if result.returncode == 3:
                waits = {line[1]: (line[2], names.get(line[3], line[3])) for line in lines if line[0] == "wait"}
                ends = {n: fifo[1:] for n, fifo in self.fifos.items()} | {"s_axis": ("host", INPUT)}
                return Outcome(None, peaks, waits, circle(waits, ends))
            return Outcome(wire.unpack((folder / "out").read_bytes(), io), peaks, {}, ())


def build(project: Path) -> Threaded:
    """Compile a converted project with one thread per process; from the cache when nothing changed.

    Raises :class:`hls.csim.CsimError` when it does not compile, :class:`hls.generated.GeneratedError` when its text
    is not what hls4ml writes, or two processes would share one line buffer.
    """
    design = generated.read(project)
    _own_state(design, project)
    network, wrapper = _threaded_network(design), _threaded_wrapper(project)
    gxx, unit = csim.compiler(), csim.network_unit(project)
    key = hashlib.sha256("\0".join([csim.compiler_version(gxx), *FLAGS, unit, network, wrapper]).encode())
    for folder in (project, THREADS, TEMPLATES / "csim"):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cpp")):
            key.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    program = csim.cache_folder().parent / "threads" / key.hexdigest()[:32]
    if not program.is_file():
        units = {f"{PROJECT}.cpp": network, "network_unit.cpp": unit, "slimgate_axis.cpp": wrapper}
        _compile(gxx, project, units, program)
    return Threaded(program, design.fifos())


def _own_state(design: generated.Generated, project: Path) -> None:
    """Line buffers and pixel counters are static variables of a template's instance: one per process, or two
    processes would write into each other's. Synthesis gives each call its own; C++ needs distinct instances."""
    seen: dict[tuple, str] = {}
    for call in design.calls:
        instance = (call.function, call.types)
        if instance in seen and call.function not in ("clone_stream", "repack_stream"):
            raise generated.GeneratedError(
                f"{seen[instance]} and {call.name} are the same C++ function and would share its static memory",
                where=project, fix="report the network")
        seen[instance] = call.name


def _threaded_network(design: generated.Generated) -> str:
    """``network.cpp`` with each process call spawned; nothing else changes."""
    names = iter(design.calls)
    spawned = lambda m: f'    slimgate::spawn("{next(names).name}", [&] {{ {m[1]} }});'  # noqa: E731
    body = generated.CALL.sub(spawned, design.source)
    end = body.rindex("}")
    return f"{body[:end]}    slimgate::run();\n{body[end:]}"


def _threaded_wrapper(project: Path) -> str:
    """``slimgate_axis.cpp`` with unpack and pack spawned; the network, called last, spawns the rest and waits."""
    source = (project / "slimgate_axis.cpp").read_text()
    calls = re.search(rf"^    (unpack\([^;]*\);)\n    ({PROJECT}\([^;]*\);)\n    (pack\([^;]*\);)\n", source, re.M)
    if calls is None:
        raise generated.GeneratedError("the wrapper does not call unpack, the network and pack", where=project)
    spawned = "".join(f'    slimgate::spawn("{c.partition("(")[0]}", [&] {{ {c} }});\n' for c in (calls[1], calls[3]))
    return f"{source[: calls.start()]}{spawned}    {calls[2]}\n{source[calls.end() :]}"


def _compile(gxx: str, project: Path, units: dict[str, str], program: Path) -> None:
    program.parent.mkdir(parents=True, exist_ok=True)
    firmware = project / "firmware"
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        for name, text in units.items():
            (Path(scratch) / name).write_text(text)
        csim.faster_types(firmware / "ap_types", Path(scratch) / "ap_types")
        folders = (THREADS, TEMPLATES / "csim", project, firmware, Path(scratch) / "ap_types")
        # one unit: the headers take most of the time
        whole = "".join(f'#include "{unit}"\n' for unit in ("network_unit.cpp", "slimgate_axis.cpp", "main.cpp"))
        (Path(scratch) / "whole.cpp").write_text(whole)
        command = [gxx, *FLAGS, *(f"-I{f}" for f in folders), f"{scratch}/whole.cpp", "-o", f"{scratch}/program"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            lines = result.stderr.splitlines()
            errors = [line for line in lines if "error" in line][:5] or lines[:5]
            raise csim.CsimError("the threaded C++ does not compile:\n  " + "\n  ".join(errors), where=project)
        (Path(scratch) / "program").replace(program)
