"""Reads what hls4ml wrote: the processes of a generated network, the streams between them and their configurations.

Text is read, not hls4ml's graph: what is proven about a project is proven about the C++ that synthesis will see.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from boards.errors import SlimgateError

PROJECT = "network"
#: The wrapper's two processes, and its FIFO beside the network: the TLAST flag of each frame.
INPUT, OUTPUT, LASTS = "unpack", "pack", "unpack->pack"

#: Template function -> number of input streams. Outputs follow the inputs; what is no stream (weights) comes last.
INPUTS = {
    "zeropad2d_cl": 1, "conv_2d_cl": 1, "pointwise_conv_2d_cl": 1, "depthwise_conv_2d_cl": 1, "pooling2d_cl": 1,
    "global_pooling2d_cl": 1, "dense": 1, "relu": 1, "linear": 1, "normalize": 1, "hard_tanh": 1, "repack_stream": 1,
    "clone_stream": 1, "add": 2, "subtract": 2, "multiply": 2, "concatenate3d": 2, "concatenate1d": 2,
    "multithreshold": 1, "threshold_search": 1, "pad_with": 1, "upsample": 1, "whole_max": 1,
}  # fmt: skip


class GeneratedError(SlimgateError):
    """The generated C++ is not of the form hls4ml 1.3.0 writes."""

    exit_code = 1


@dataclass(frozen=True)
class Call:
    """One dataflow process: ``function<types>(arguments)``; ``name`` is the layer's, without hls4ml's prefixes."""

    function: str
    name: str
    types: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Generated:
    """``streams``: name -> (type, depth in the pragma; None for the two ports). ``tokens``: type -> (bits of one
    value, values). ``configs``: struct -> its whole-number members."""

    calls: tuple[Call, ...]
    streams: dict[str, tuple[str, int | None]]
    tokens: dict[str, tuple[int, int]]
    configs: dict[str, dict[str, int]]
    ports: tuple[str, str]
    source: str = field(repr=False)

    def writer(self, stream: str) -> Call | None:
        return next((c for c in self.calls if stream in c.outputs), None)

    def reader(self, stream: str) -> Call | None:
        return next((c for c in self.calls if stream in c.inputs), None)

    def fifo_names(self) -> dict[str, str]:
        """C++ stream -> ``writer->reader``, the name the dataflow model uses; ports end at unpack and pack."""
        found, seen = {}, set()
        for stream in self.streams:
            writer, reader = self.writer(stream), self.reader(stream)
            name = f"{writer.name if writer else INPUT}->{reader.name if reader else OUTPUT}"
            found[stream] = name if name not in seen else f"{name}#2"
            seen.add(name)
        return found

    def fifos(self) -> dict[str, tuple[str, str, str]]:
        """FIFO name -> (C++ stream, writer, reader), the wrapper's included, where the network's two ports are called
        tokens_in and tokens_out."""
        inside = {self.ports[0]: "tokens_in", self.ports[1]: "tokens_out"}
        found = {LASTS: ("lasts", INPUT, OUTPUT)}
        for stream, name in self.fifo_names().items():
            writer, reader = self.writer(stream), self.reader(stream)
            ends = writer.name if writer else INPUT, reader.name if reader else OUTPUT
            found[name] = (inside.get(stream, stream), *ends)
        return found


def plain_name(name: str) -> str:
    """An hls4ml layer name without the prefixes its passes add: ``zp2d_Conv2D_conv1`` -> ``zp2d_conv1``."""
    return re.sub(r"^((?:zp2d_|clone_)?)(?:DepthwiseConv2D_|Conv2D_|Dense_|bn_)", r"\1", name)


def read(project: Path) -> Generated:
    """Parse ``firmware/network.cpp``, ``parameters.h`` and ``defines.h`` of a converted project.

    Raises :class:`GeneratedError` for a process of unknown kind, or a stream that has not one writer and one reader.
    """
    firmware = project / "firmware"
    try:
        source = (firmware / f"{PROJECT}.cpp").read_text()
        parameters, defines = (firmware / "parameters.h").read_text(), (firmware / "defines.h").read_text()
    except OSError as error:
        raise GeneratedError(f"no generated network: {error.strerror}", where=error.filename,
                             fix="run the convert stage") from error
    head = re.search(rf"void {PROJECT}\((.*?)\)\s*\{{", source, re.S)
    ports = re.findall(r"hls::stream<(\w+)>\s*&(\w+)", head[1]) if head else []
    if len(ports) != 2:
        raise GeneratedError(f"the network function has {len(ports)} streams, not one in and one out", where=project)
    streams: dict[str, tuple[str, int | None]] = {name: (kind, None) for kind, name in ports}
    depths = {n: int(d) for n, d in re.findall(r"#pragma HLS STREAM variable=(\w+) depth=(\d+)", source)}
    for kind, variable, name in re.findall(r'hls::stream<(\w+)>\s+(\w+)\("(\w+)"\);', source):
        if variable != name:
            raise GeneratedError(f"stream {variable} calls itself {name}", where=project)
        streams[name] = (kind, depths.get(name, 2))
    aliases = dict(re.findall(r"auto\s*&\s*(\w+)\s*=\s*(\w+);", source))
    calls = tuple(_call(m, aliases, streams, project) for m in CALL.finditer(source))
    made = Generated(calls, streams, _tokens(defines), _configs(parameters), (ports[0][1], ports[1][1]), source)
    for stream in streams:
        ends = [sum(stream in c.outputs for c in calls), sum(stream in c.inputs for c in calls)]
        if ends != [stream != made.ports[0], stream != made.ports[1]]:
            raise GeneratedError(f"stream {stream} has {ends[0]} writers and {ends[1]} readers", where=project)
    return made


#: The files of a project that declare streams.
DECLARING = (f"firmware/{PROJECT}.cpp", "slimgate_axis.cpp")


def depths(project: Path) -> dict[str, int]:
    """FIFO name -> tokens, from the pragmas that synthesis reads."""
    text = "".join((project / name).read_text() for name in DECLARING)
    found = {stream: int(depth) for stream, depth in re.findall(r"#pragma HLS STREAM variable=(\w+) depth=(\d+)", text)}
    fifos = read(project).fifos()
    if missing := [name for name, (stream, _, _) in fifos.items() if stream not in found]:
        raise GeneratedError(f"FIFO {missing[0]} has no depth", where=project, fix="run the convert stage again")
    return {name: found[stream] for name, (stream, _, _) in fifos.items()}


def set_depths(project: Path, wanted: dict[str, int]) -> None:
    """Write FIFO depths (name -> tokens) into the pragmas of the network and its wrapper, and read them back.

    Raises :class:`GeneratedError` when the names are not exactly those of this network.
    """
    fifos = read(project).fifos()
    if odd := sorted(set(fifos) ^ set(wanted)):
        raise GeneratedError(f"FIFO {odd[0]} is only in the {'network' if odd[0] in fifos else 'plan'}", where=project,
                             fix="plan this very network; if it is, report it")
    by_stream = {stream: wanted[name] for name, (stream, _, _) in fifos.items()}
    for name in DECLARING:
        path = project / name
        path.write_text(re.sub(r"(#pragma HLS STREAM variable=(\w+) depth=)\d+",
                               lambda m: f"{m[1]}{by_stream[m[2]]}", path.read_text()))
    if depths(project) != wanted:
        raise GeneratedError("the FIFO depths do not read back as they were planned", where=project)


#: A process: hls4ml writes each call on one line, with the layer's name behind it.
CALL = re.compile(r"^[ \t]*(nnet::(\w+)<([^;()]*)>\(([^;]*)\);)[ \t]*//[ \t]*(\S+)", re.M)


def _call(match, aliases, streams, project: Path) -> Call:
    text, function, types, arguments, name = match.groups()
    if function not in INPUTS:
        raise GeneratedError(f"{name} is a process of a kind that is not known here: nnet::{function}", where=project)
    found = []
    for argument in (a.strip() for a in arguments.split(",")):
        while argument in aliases:
            argument = aliases[argument]
        if argument in streams:
            found.append(argument)
    count = INPUTS[function]
    return Call(function, plain_name(name), tuple(t.strip() for t in types.split(",")), tuple(found[:count]),
                tuple(found[count:]), text)


def _tokens(defines: str) -> dict[str, tuple[int, int]]:
    pattern = r"typedef nnet::array<ap_u?(?:fixed|int)<(\d+)[^>]*>,\s*([\d*]+)> (\w+);"
    return {name: (int(bits), math.prod(int(f) for f in size.split("*")))
            for bits, size, name in re.findall(pattern, defines)}


def _configs(parameters: str) -> dict[str, dict[str, int]]:
    """Whole-number members of each struct; strategies as 0 latency, 1 resource."""
    found: dict[str, dict[str, int]] = {}
    for name, body in re.findall(r"struct (\w+) : nnet::\w+ \{(.*?)\n\};", parameters, re.S):
        members: dict[str, int] = {}
        for key, text in re.findall(r"static const (?:unsigned|int|bool) (\w+)\s*=\s*([^;]+);", body):
            factors = [f.strip() for f in text.split("*")]
            if all(f.isdigit() or f in members for f in factors):
                members[key] = math.prod(int(f) if f.isdigit() else members[f] for f in factors)
            elif text.startswith("nnet::") and key == "strategy":
                members[key] = int("resource" in text)
        found[name] = members
    return found
