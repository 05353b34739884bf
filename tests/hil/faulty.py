"""Faults put into converted projects, and compiled designs that are built before the tests ask for them."""

import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hls import convert, csim
from tests.hil.converted import Converted, made

#: Read by the damaged wrapper when it runs: one compiled design carries all faults of the wrapper.
VARIABLE = "SLIMGATE_TEST_FAULT"


def substitute(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))


def flip_weight(project: Path, layer: dict, files=("h", "txt")) -> None:
    """Flip the lowest bit of the first weight that is not zero, in both files of a layer's weights or in one."""
    name = re.search(rf", {layer['stream']}, (w\d+), ", (project / "firmware" / "network.cpp").read_text())[1]
    types = (project / "firmware" / "defines.h").read_text()
    width, integer = map(int, re.search(rf"ap_fixed<(\d+),(-?\d+).*weight{name[1:]}_t;", types).groups())
    for suffix in files:
        path = project / "firmware" / "weights" / f"{name}.{suffix}"
        head, brace, tail = path.read_text().rpartition("{") if suffix == "h" else ("", "", path.read_text())
        numbers = tail.split(",")
        at = next(i for i, n in enumerate(numbers) if float(re.match(r"\s*(\S+?)[};\s]*$", n)[1]) not in (0.0,))
        code = int(np.ldexp(float(numbers[at]), width - integer))
        numbers[at] = f" {np.ldexp(code ^ 1, integer - width)!r}"
        path.write_text(head + brace + ",".join(numbers))


def retype(project: Path, name: str, change) -> None:
    """Change the ap_fixed of a typedef: ``change`` maps its text, e.g. 'ap_ufixed<4,2,AP_RND_CONV,AP_SAT,0>'."""
    path = project / "firmware" / "defines.h"
    text = path.read_text()
    found = re.search(rf"ap_u?fixed<[^>]*>(?=(?:, \d+\*1>)? {name};)", text)
    changed = change(found[0])
    assert changed != found[0]
    path.write_text(text[: found.start()] + changed + text[found.end() :])


def damage_wrapper(project: Path) -> None:
    """Every fault of the wrapper in one source, chosen by the environment when it runs."""
    path = project / "slimgate_axis.cpp"
    substitute(path, '#include "slimgate_axis.h"\n', f'''#include "slimgate_axis.h"
#include <csignal>
#include <cstdlib>
#include <string>
static bool fault(const char *name) {{
    const char *chosen = std::getenv("{VARIABLE}");
    return chosen != nullptr && chosen == std::string(name);
}}
static unsigned calls = 0;
''')  # fmt: skip
    substitute(path, "beat.last = last && e + 1 == OUT_COUNT;", """
            beat.last = last && e + 1 == OUT_COUNT;
            if (fault("no TLAST"))
                beat.last = 0;
            if (fault("TLAST on every sample"))
                beat.last = e + 1 == OUT_COUNT;
            if (fault("TKEEP"))
                beat.keep = e + 1 == OUT_COUNT ? 0x3f : 0xff;
            if (fault("padding") && e + 1 == OUT_COUNT)
                beat.data |= ap_uint<64>(1) << 63;
            if (fault("extra beat") && calls == 3)
                m_axis.write(beat);
            if (fault("lost beat") && calls == 3)
                continue;""")  # fmt: skip
    substitute(path, "ap_int<OUT_BITS> wide = code;", """ap_int<OUT_BITS> wide = code;
        if (fault("sign"))
            wide = ap_uint<result_t::value_type::width>(code);""")  # fmt: skip
    substitute(path, "        tokens.write(token);\n        window >>= TOKEN_BITS;", """
        if (fault("channel order"))
            std::swap(token[0], token[IN_CHANNELS - 1]);
        tokens.write(token);
        window >>= TOKEN_BITS;""")  # fmt: skip
    substitute(path, "    pack(tokens_out, lasts, m_axis);", """    pack(tokens_out, lasts, m_axis);
    calls++;
    if (fault("crash") && calls == 3)
        std::raise(SIGSEGV);
    if (fault("empty read") && calls == 3)
        tokens_out.read();""")  # fmt: skip


def stream_of(found: Converted, layer: str) -> dict:
    return next(row for row in found.layers if row["name"] == layer)


def _type(found: Converted, layer: str) -> str:
    return stream_of(found, layer)["stream"].replace("_out", "_t")


#: Faults of the arithmetic: name -> (network, what is changed, the layer that must be named).
ARITHMETIC = {
    "weight bit": ("tiny", lambda f: flip_weight(f.project, stream_of(f, "stem_conv")), "stem_conv"),
    "rounding mode": ("tiny", lambda f: retype(f.project, _type(f, "Relu_0"), _truncate), "Relu_0"),
    "result width": ("tiny", lambda f: retype(f.project, _type(f, "MaxPool_0"), _one_less), "MaxPool_0"),
    "accumulator": ("tiny", lambda f: retype(f.project, "conv2d_stem_conv_accum_t", _top_bits), "stem_conv"),
    "last layer": ("tiny", lambda f: flip_weight(f.project, stream_of(f, "head")), "head"),
    "shortcut": ("residual", lambda f: flip_weight(f.project, stream_of(f, "block2_shortcut")), "block2_shortcut"),
}  # fmt: skip


def _truncate(text: str) -> str:
    return text.replace("AP_RND_CONV", "AP_TRN")


def _one_less(text: str) -> str:
    return re.sub(r"<(\d+)", lambda m: f"<{int(m[1]) - 1}", text)


def _top_bits(text: str) -> str:
    return re.sub(r"<(\d+),(-?\d+)", lambda m: f"<{int(m[1]) - 3},{int(m[2]) - 3}", text)


# ---------------------------------------------------------------------- the wrapper alone


def wrapper_project(folder: Path, shape, bits: int, signed: bool, out_shape, out_bits: int, out_signed: bool):
    """The wrapper around a network that hands codes on, odd positions negated where signs allow; returns (io, wanted).

    ``wanted(codes)``: the output codes of input codes (N, *shape).
    """
    firmware = folder / "firmware"
    firmware.mkdir(parents=True)
    for name in ("ap_types", "nnet_utils"):
        (firmware / name).symlink_to(made("tiny").project / "firmware" / name)
    count, outputs, shift = int(np.prod(shape)), int(np.prod(out_shape)), out_bits - bits - out_signed
    channels, out_channels = shape[-1], out_shape[-1]
    (firmware / "parameters.h").write_text("#pragma once\n")
    (firmware / "network.h").write_text(f"""#pragma once
#include "ap_fixed.h"
#include "ap_int.h"
#include "hls_stream.h"
#include "nnet_utils/nnet_types.h"
typedef nnet::array<ap_{"" if signed else "u"}fixed<{bits},{bits}>, {channels}*1> input_t;
typedef nnet::array<ap_{"" if out_signed else "u"}fixed<{out_bits},{out_bits}>, {out_channels}*1> result_t;
void network(hls::stream<input_t> &in, hls::stream<result_t> &out);
""")
    (firmware / "network.cpp").write_text(f"""#include "network.h"
void network(hls::stream<input_t> &in, hls::stream<result_t> &out) {{
    long codes[{count}];
    for (int i = 0; i < {count // channels}; i++) {{
        input_t token = in.read();
        for (int c = 0; c < {channels}; c++)
            codes[i * {channels} + c] = token[c].to_int64();
    }}
    for (int i = 0; i < {outputs // out_channels}; i++) {{
        result_t token;
        for (int c = 0; c < {out_channels}; c++) {{
            const int at = i * {out_channels} + c;
            const long code = codes[at % {count}] * (1l << {shift});
            token[c] = ap_int<64>({"at % 2 ? -code : code" if out_signed else "code"});
        }}
        out.write(token);
    }}
}}
""")
    in_bytes, out_bytes = convert.container_bytes(bits), convert.container_bytes(out_bits)
    convert.render(("slimgate_axis.h", "slimgate_axis.cpp"), {
        "project": convert.PROJECT, "in_shape": list(shape), "out_count": outputs, "in_container_bits": 8 * in_bytes,
        "in_tokens": count // channels, "in_channels": channels, "out_container_bits": 8 * out_bytes,
        "out_tokens": outputs // out_channels, "out_channels": out_channels, "out_signed": out_signed,
        "samples_in_flight": 8,
    }, folder)  # fmt: skip

    def side(shape, bits, signed, size):
        beats = -(-int(np.prod(shape)) * size // 8)
        return {"shape": list(shape), "bits": bits, "signed": signed, "container_bytes": size, "beats": beats}

    io = {"beat_bytes": 8, "input": side(shape, bits, signed, in_bytes), "design_digest": convert.digest(folder),
          "output": side(out_shape, out_bits, out_signed, out_bytes)}  # fmt: skip

    def wanted(codes: np.ndarray) -> np.ndarray:
        flat = codes.reshape(len(codes), count)[:, np.arange(outputs) % count].astype(np.int64) << shift
        return np.where(np.arange(outputs) % 2 & out_signed, -flat, flat)

    return io, wanted


#: input shape, bits, signed; output shape, bits, signed. Tokens of up to one beat and of several, with and without
#: rest; containers of 1, 2, 4 and 8 bytes on both sides that have them.
WRAPPERS = {
    "3 bytes a token, 1-byte outputs": ((2, 3, 3), 6, False, (2, 3), 8, True),
    "11 bytes a token, signed": ((2, 2, 11), 8, True, (3,), 19, True),
    "8 bytes a token, unsigned bytes out": ((3, 1, 8), 8, False, (5,), 8, False),
    "9 bytes a token, 4 bits": ((1, 2, 9), 4, False, (5,), 11, True),
    "features of 2 bytes, 8-byte outputs": ((7,), 10, True, (3,), 40, True),
    "one beat a token of 2-byte codes": ((2, 1, 4), 16, False, (4,), 16, False),
}  # fmt: skip


# ---------------------------------------------------------------------- building


class Builds:
    """Everything the tests of C simulation compile, by name, started at once on all cores.

    All without optimisation: these designs see a few dozen samples each, and g++ is what the tests wait for.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.flags = csim.FLAGS
        csim.FLAGS = ("-O0", *(f for f in csim.FLAGS if not f.startswith("-O")))
        self.projects: dict[str, Converted] = {}
        self.wrappers = {}
        self.futures = {("good", False): self._submit(made("tiny"), False)}
        self.futures["good", True] = self._submit(made("tiny"), True)
        for name, (network, change, _) in ARITHMETIC.items():
            self._damaged(name, network, change, traces=(False, True) if name == "weight bit" else (True,))
        self._damaged("wrapper", "tiny", lambda f: damage_wrapper(f.project), traces=(False, True))
        for index, (name, options) in enumerate(WRAPPERS.items()):
            project = folder / f"wrapper{index}"
            io, wanted = wrapper_project(project, *options)
            self.wrappers[name] = io, wanted
            self.futures[name, False] = self.pool.submit(csim.compile_design, project, io)
        self.futures["residual", True] = self._submit(made("residual"), True)

    def _damaged(self, name, network, change, traces) -> None:
        damaged = made(network).copy(self.folder / name)
        change(damaged)
        damaged.io = damaged.io | {"design_digest": convert.digest(damaged.project)}
        self.projects[name] = damaged
        for trace in traces:
            self.futures[name, trace] = self._submit(damaged, trace)

    def _submit(self, found: Converted, trace: bool):
        return self.pool.submit(csim.compile_design, found.project, found.io, trace=trace)

    def library(self, name: str, trace: bool = False) -> Path:
        return self.futures[name, trace].result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        csim.FLAGS = self.flags
        shutil.rmtree(self.folder, ignore_errors=True)
