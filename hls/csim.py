"""C simulation: the generated C++, compiled with g++ behind its AXI4-Stream wrapper; codes in, codes out.

The library is cached by content: sources, flags and compiler. Each copy runs in a process of its own
(:class:`boards.simulated.accelerator.Accelerator`), several of them side by side, because the generated C++ keeps its
line buffers in static memory.
"""

import hashlib
import inspect
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boards.errors import SlimgateError
from boards.simulated.accelerator import Accelerator
from hls import wire
from hls.convert import PROJECT, TEMPLATES, read_weights
from hls.graph import execute
from hls.numerics import Analysis
from hls.reference import Reference

FLAGS = ("-O3", "-std=c++17", "-w", "-fPIC", "-shared", "-fno-gnu-unique", "-fvisibility=default")
UNITS = ("slimgate_axis.cpp",)


class CsimError(SlimgateError):
    """The C++ could not be compiled, or its beats break the protocol."""

    exit_code = 1


# --------------------------------------------------------------------------- compile


def compiler() -> str:
    """Path of the C++ compiler ($CXX, else g++)."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise CsimError(
            f"the C++ compiler {name} was not found on PATH",
            where=os.environ.get("PATH", ""),
            fix="install it (Debian, Ubuntu: apt-get install g++) or name another in CXX",
        )
    return path


def cache_folder() -> Path:
    """Where compiled designs are kept: $SLIMGATE_CACHE, else ~/.cache/slimgate."""
    return Path(os.environ.get("SLIMGATE_CACHE") or Path.home() / ".cache" / "slimgate") / "csim"


def compile_design(project: Path, io: dict, *, trace: bool = False) -> Path:
    """Compile a converted project; return the shared library, from the cache when nothing changed.

    ``trace`` adds the recorder of every stream (slower). Raises :class:`CsimError` with the compiler's first errors.
    """
    gxx = compiler()
    flags = [
        *FLAGS,
        f'-DSLIMGATE_IDENTITY="{io["design_digest"]}"',
        f"-DSLIMGATE_BEATS_IN={io['input']['beats']}",
        *(["-DSLIMGATE_TRACE"] if trace else []),
    ]
    network = network_unit(project)
    covered = [compiler_version(gxx), *flags, network, inspect.getsource(faster_types)]
    key = hashlib.sha256("\0".join(covered).encode())
    for folder in (project, TEMPLATES / "csim"):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cpp")):
            key.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    library = cache_folder() / f"{key.hexdigest()[:32]}.so"
    if not library.is_file():
        _compile(gxx, flags, project, network, library)
    return library


def network_unit(project: Path) -> str:
    """One translation unit: the generated network with its weights inside.

    hls4ml's C++ reads weights from text files when not synthesised; here the very initialisers that synthesis sees are
    compiled in instead (as plain doubles: as ap_fixed constants they take minutes to compile).
    """
    arrays, names = [], []
    source = (project / "firmware" / f"{PROJECT}.cpp").read_text()
    for name in re.findall(r'load_weights_from_txt<[^>]*>\(\w+, "(\w+)\.txt"\)', source):
        header, text = read_weights(project, name)
        if not np.array_equal(header, text):
            raise CsimError(
                f"weights/{name}.h and {name}.txt differ: synthesis and vendor simulation would not agree",
                where=project,
                fix="run the convert stage again",
            )
        arrays.append(f"static const double {name}_values[] = {{{', '.join(repr(float(v)) for v in header)}}};")
        names.append(name)
    cases = "\n".join(
        f'    if (!std::strcmp(file, "{n}.txt")) {{ values = {n}_values; count = sizeof {n}_values / sizeof(double); }}'
        for n in names
    )
    return f"""#include <cstdlib>
#include <cstring>
#include "{PROJECT}.h"
#include "parameters.h"
{os.linesep.join(arrays)}
namespace nnet {{
template <class T, size_t SIZE> void load_embedded_weights(T *w, const char *file) {{
    const double *values = nullptr;
    size_t count = 0;
{cases}
    if (count != SIZE)
        std::abort();
    for (size_t i = 0; i < SIZE; i++)
        w[i] = values[i];
}}
}} // namespace nnet
#define load_weights_from_txt load_embedded_weights
#include "{PROJECT}.cpp"
"""


def compiler_version(gxx: str) -> str:
    return subprocess.run([gxx, "--version"], capture_output=True, text=True, check=True).stdout


def _compile(gxx: str, flags: list[str], project: Path, network: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        (Path(scratch) / "network_unit.cpp").write_text(network)
        made = Path(scratch) / "design.so"
        firmware = project / "firmware"
        faster_types(firmware / "ap_types", Path(scratch) / "ap_types")
        command = [
            gxx,
            *flags,
            f"-ffile-prefix-map={project}=.",
            f"-ffile-prefix-map={scratch}=.",
            f"-ffile-prefix-map={TEMPLATES}=.",
            *(f"-I{f}" for f in (TEMPLATES / "csim", project, firmware, Path(scratch) / "ap_types")),
            f"{scratch}/network_unit.cpp",
            *(str(project / u) for u in UNITS),
            str(TEMPLATES / "csim" / "capi.cpp"),
            "-o",
            str(made),
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line][:5] or result.stderr.splitlines()[
                :5
            ]
            raise CsimError(
                "the generated C++ does not compile:\n  " + "\n  ".join(errors),
                where=project,
                fix="if the disk is full or memory short free some; else report the network",
            )
        made.replace(library)


def faster_types(source: Path, target: Path) -> None:
    """Copy the C simulation's ap_types with one overload added.

    ``clearUnusedBits`` is declared ``volatile`` only, so every arithmetic result takes a trip through memory. The copy
    has the same function without that word beside it, which ordinary objects then pick: same bits, several times the
    speed (`make bench`).
    """
    shutil.copytree(source, target)
    header = target / "etc" / "ap_private.h"
    text = header.read_text()
    found = re.search(r"  INLINE void clearUnusedBits\(void\) volatile\n.*?\n  }\n", text, re.S)
    if found is None:
        raise CsimError("ap_private.h is not the one of hls4ml 1.3.0", where=source, fix="run the convert stage again")
    plain = found[0].replace("(void) volatile", "(void)", 1)
    header.write_text(text[: found.end()] + plain + text[found.end() :])


# --------------------------------------------------------------------------- run


@dataclass(frozen=True)
class Transfer:
    """What one DMA transfer gave back: codes (N, outputs) int64."""

    codes: np.ndarray
    beats: int


def transfer(accelerator: Accelerator, codes: np.ndarray, io: dict) -> Transfer:
    """Send samples in one transfer; check TLAST (last beat only), TKEEP (all ones), count and padding of the reply."""
    data, last, keep = accelerator.transfer(wire.pack(codes, io))
    wanted = len(codes) * io["output"]["beats"]
    where = f"transfer of {len(codes)} samples"
    if len(last) != wanted:
        raise CsimError(f"{len(last)} output beats came back, {wanted} belong to these samples", where=where)
    positions = [i for i, flag in enumerate(last) if flag]
    if positions != [wanted - 1]:
        raise CsimError(
            f"TLAST is on beats {positions[:5]}, it belongs on the last one ({wanted - 1}) only", where=where
        )
    if any(k != 0xFF for k in keep):
        raise CsimError("TKEEP is not all ones", where=where)
    return Transfer(wire.unpack(data, io), wanted)


def run(
    library: Path, codes: np.ndarray, io: dict, *, batch: int | None = None, processes: int | None = None, progress=None
) -> np.ndarray:
    """Codes (N, *shape) through the design: output codes (N, outputs) int64.

    ``batch``: samples per transfer; None sends everything in one transfer. Batches are dealt to ``processes`` copies of
    the design (default: one per core). ``progress(samples)`` is called as samples finish.
    """
    if batch is None:
        with Accelerator(library) as accelerator:
            _check_identity(accelerator, io)
            out = transfer(accelerator, codes, io).codes
        if progress:
            progress(len(codes))
        return out
    if not len(codes):
        raise CsimError("there are no samples to simulate")
    starts = range(0, len(codes), batch)
    workers = max(1, min(processes or os.cpu_count() or 1, len(starts)))
    results: list[np.ndarray | None] = [None] * len(starts)

    def work(worker: int) -> None:
        with Accelerator(library) as accelerator:
            _check_identity(accelerator, io)
            for index in range(worker, len(starts), workers):
                part = codes[starts[index] : starts[index] + batch]
                results[index] = transfer(accelerator, part, io).codes
                if progress:
                    progress(len(part))

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work, w) for w in range(workers)]:
            future.result()
    return np.concatenate(results)


def _check_identity(accelerator: Accelerator, io: dict) -> None:
    if accelerator.identity != io["design_digest"]:
        raise CsimError(
            f"the compiled design says it is {accelerator.identity[:16]}, not {io['design_digest'][:16]}",
            where=accelerator.library,
            fix="run the csim stage again",
        )


# --------------------------------------------------------------------------- where it diverges


def trace(project: Path, io: dict, codes: np.ndarray, layers: list[dict]) -> dict[str, tuple[np.ndarray, int]]:
    """Run samples through the traced design; return stream name -> (codes (N, *shape), lsb); a stream that carried
    another number of codes than that stays flat.

    ``layers``: the rows of ``layers.json``. Streams that are aliases of another have no record. What the network reads
    and writes is recorded in the wrapper, where those two streams have names of their own.
    """
    ports = {layers[0]["stream"]: "tokens_in", layers[-1]["stream"]: "tokens_out"}
    recorders = {row["stream"]: ports.get(row["stream"], row["stream"]) for row in layers}
    library = compile_design(project, io, trace=True)
    with tempfile.TemporaryDirectory() as scratch:
        np.save(f"{scratch}/in.npy", np.frombuffer(wire.pack(codes, io), np.uint8))
        names = sorted(set(recorders.values()))
        command = [sys.executable, "-m", "hls.tracer", str(library), f"{scratch}/in.npy", f"{scratch}/out.npz", *names]
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        if result.returncode != 0:
            raise CsimError(
                f"the traced design ended with code {result.returncode}: {result.stderr.strip()}", where=project
            )
        with np.load(f"{scratch}/out.npz") as found:
            recorded = {name: found[name] for name in found.files if not name.endswith(":lsb")}
            grids = {name: int(found[f"{name}:lsb"]) for name in recorded}
    shapes = {row["stream"]: (len(codes), *row["shape"]) for row in layers}
    return {
        stream: (shaped(recorded[name], shapes[stream]), grids[name])
        for stream, name in recorders.items()
        if name in recorded
    }


def shaped(codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``codes`` in ``shape``, or flat where there are too many or too few of them."""
    return codes.reshape(shape) if codes.size == math.prod(shape) else codes.reshape(-1)


def first_divergence(
    project: Path, io: dict, model, analysis: Analysis, layers: list[dict], codes: np.ndarray
) -> dict | None:
    """The first layer, in the order of the graph, whose C simulation differs from the network on these samples.

    ``model``: the prepared graph, executed by qonnx where float32 is exact for it and by the integer reference where it
    is not. Returns the row of ``layers.json`` with the sample, position, both values and the oracle added, None when
    every layer agrees.
    """
    streams = trace(project, io, codes, layers)
    if analysis.float32_exact:
        oracle = "qonnx"
        expected = execute(model, np.ldexp(codes.astype(np.float64), io["input"]["scale_log2"]), tensors=True)
    else:
        oracle, expected = "integer reference", {}
        Reference(model, analysis).run(
            codes,
            batch=len(codes),
            visit=lambda node, found, lsb: expected.update({node.output[0]: np.ldexp(found.astype(np.float64), lsb)}),
        )
    for row in layers:
        if row["stream"] not in streams or row["tensor"] not in expected or row["class"].startswith("ZeroPadding"):
            continue
        found, lsb = streams[row["stream"]]
        values = np.ldexp(found.astype(np.float64), lsb)
        wanted = expected[row["tensor"]].reshape(len(codes), *row["shape"]).astype(np.float64)
        if (place := first_difference(values, wanted)) is not None:
            return {**row, **place, "of": int(wanted.size), "oracle": oracle}
    return None


def first_difference(values: np.ndarray, wanted: np.ndarray) -> dict | None:
    """Where ``values`` leave ``wanted`` (N, *shape), None where they do not: "differing" values, "sample", "position",
    "csim_value", "expected_value". ``values`` may be flat and too short or too long: what the other has beyond its end
    differs, and the value that is not there is None."""
    common = min(values.size, wanted.size)
    flat, right = values.reshape(-1), wanted.reshape(-1)
    different = np.flatnonzero(flat[:common] != right[:common])
    count = len(different) + abs(values.size - wanted.size)
    if not count:
        return None
    first = int(different[0]) if len(different) else common
    at = np.unravel_index(min(first, wanted.size - 1), wanted.shape)
    return {
        "differing": count,
        "sample": int(at[0]),
        "position": [int(i) for i in at[1:]],
        "csim_value": float(flat[first]) if first < flat.size else None,
        "expected_value": float(right[first]) if first < right.size else None,
    }


def told(found: dict, sample: str) -> str:
    """A divergence in words. ``sample``: which it is, for the reader."""
    ours, right = ("nothing" if found[key] is None else f"{found[key]:g}" for key in ("csim_value", "expected_value"))
    return (f"first diverging layer: {found['name']} ({found['class']}), {found['differing']} of {found['of']} values, "
            f"{sample}, position {found['position']}: C simulation {ours}, {found['oracle']} {right}")  # fmt: skip
