"""Cycles and FIFO depths of a network before any synthesis: a token-accurate simulation of its streaming processes.

hls4ml's ``io_stream`` design is a set of processes, each of which reads and writes tokens (one pixel, all channels)
in an order fixed by its shape, never by its data. So every process is a list of firings: which inputs it reads,
which outputs it writes, how many cycles until the next firing may begin and until the result is in the FIFO. The
simulation fires them in the order the C++ would, with FIFOs of finite depth that block when full and when empty.

What decides the figures (patterns read off finished synthesis reports and cosimulation, `Timing`):
a Resource convolution works RF + c cycles on a pixel that completes a window and c_min on the others; pooling,
activations, merges, clones and padding move a token per cycle; a dense layer reads all its tokens, then works RF + c.

**Why one simulation decides deadlock for every schedule.** The processes are sequential and deterministic and wait
only for a token or for room. A FIFO of depth d is two unbounded channels: tokens forward, and back d tokens of
room. So the design is a Kahn process network, and the history of each channel does not depend on timing: either
every execution completes all frames or every execution stops in the same state. It follows that
(1) a depth vector that completes in this simulation completes in any schedule, on threads (:mod:`hls.fifo`) or in
logic;
(2) more depth never hurts: it adds initial tokens of room;
(3) one frame suffices: a process reads and writes the same number of tokens in every frame and ends as it began, so
the schedule that finishes a frame before it starts the next completes any number of frames, and then all schedules
do. The restarting of processes in hardware only adds waiting that this frame-by-frame schedule satisfies.

**Pipelines that hold tokens back.** A pipelined loop may keep up to ``hold`` finished tokens inside until as many
further inputs push them out, or may flush; which one, only synthesis knows. `safe_depths(guard=True)` therefore
fires a process only when the ``hold`` tokens behind are there as well (or the frame ends), reads and writes at
once, and gives the pipeline no storage. Any pipeline can follow that execution step by step: what it must have read
has been produced, and the FIFOs hold no more than here, since it reads no later and writes as much. It is a Kahn
process itself, so if one of its executions completes, all do.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numba
import numpy as np

from boards.errors import SlimgateError
from hls import cost, generated, layers
from hls.generated import INPUT, LASTS, OUTPUT
from hls.layers import Described
from hls.numerics import Analysis

#: The least depth a FIFO is given, in tokens: what hls::stream has by default.
FLOOR = 2
#: Frames simulated to see the interval settle.
FRAMES = 4


class DataflowError(SlimgateError):
    """A network whose processes are not known here, or depths that are not for it."""


@dataclass(frozen=True)
class Timing:
    """Cycles the tools spend around the arithmetic. Defaults: Zynq-7000 at 10 ns, Vivado HLS 2020.1, as read off
    published synthesis reports; `timing_for` for other targets.

    ``window``: a convolution's overhead on a pixel that completes a window (c); ``idle``: cycles on any other pixel
    (c_min); ``pooling``: cycles per pixel; ``unrolled``: least initiation interval of a Latency convolution;
    ``dense``: overhead of a dense layer; ``pipeline``: latency of an element-wise loop; ``restart``: cycles between
    two frames of a process; ``hold``: tokens a pipelined loop may keep inside. No report of Vitis HLS 2022.2 or
    later with Resource strategy is known: for it these are extrapolated.
    """

    window: int = 9
    idle: int = 6
    pooling: int = 1
    unrolled: int = 1
    dense: int = 7
    pipeline: int = 3
    restart: int = 3
    hold: int = 4


def timing_for(target: cost.Target) -> Timing:
    """The cycles the cost model (:mod:`hls.cost`) gives a layer on a target, so that both tell the same."""
    def probe(kind: str, rows: int = 3, **more) -> dict[str, float]:
        shape = (rows, rows, 1) if rows else (1,)
        return cost.layer_cycles(cost.LayerSpec("probe", kind, shape, (1, 1, 1), **more), target)

    about = {"kernel": (3, 3), "stride": (1, 1), "n_in": 9, "n_out": 1, "weights": 9, "reuse_factor": 3}
    window, unrolled = probe("conv", **about), probe("conv", **about | {"strategy": "latency", "reuse_factor": 1})
    dense = probe("dense", 0, n_in=1, n_out=9, weights=9, reuse_factor=3)
    pooling = probe("pool", 32, kernel=(2, 2))["latency_max"] / 32**2
    return Timing(window=round(window["per_output"]) - 3, idle=round(window["per_idle"]), pooling=round(pooling),
                  unrolled=round(unrolled["per_output"]), dense=dense["latency_max"] - 3)


@dataclass(frozen=True)
class Process:
    """One process: ``kind`` is a key of `FIRINGS`, ``shape`` what that needs; ``inputs``, ``outputs``: FIFO names
    in the order the C++ reads and writes them."""

    name: str
    kind: str
    shape: dict[str, int]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


# --------------------------------------------------------------------------- firings

#: (inputs read as a bit mask, outputs written, cycles to the next firing, cycles until written), one entry per firing
Firings = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _firings(count: int, reads, writes, step, delay) -> Firings:
    return tuple(np.ascontiguousarray(np.broadcast_to(np.asarray(x, np.int64), (count,))) for x in
                 (reads, writes, step, delay))


def _elementwise(shape, timing: Timing) -> Firings:
    return _firings(shape["tokens"], 1, 1, 1, timing.pipeline)


def _merge(shape, timing: Timing) -> Firings:
    return _firings(shape["tokens"], 3, 1, 1, timing.pipeline)


def _clone(shape, timing: Timing) -> Firings:
    return _firings(shape["tokens"], 1, (1 << shape["copies"]) - 1, 1, timing.pipeline)


def _pad(shape, timing: Timing) -> Firings:
    inside = np.zeros((shape["top"] + shape["height"] + shape["bottom"],
                       shape["left"] + shape["width"] + shape["right"]), np.int64)
    inside[shape["top"] : shape["top"] + shape["height"], shape["left"] : shape["left"] + shape["width"]] = 1
    return _firings(inside.size, inside.ravel(), 1, 1, 2)


def _search(shape, timing: Timing) -> Firings:
    """A table of two ports for each channel, read once for every bit of the count."""
    return _firings(shape["tokens"], 1, 1, -(-shape["bits"] // 2), timing.pipeline + shape["bits"])


def _upsample(shape, timing: Timing) -> Firings:
    """Every token ``factor_width`` times, every row ``factor_height`` times: it is read the first time."""
    reads = np.zeros((shape["height"], shape["factor_height"], shape["width"], shape["factor_width"]), np.int64)
    reads[:, 0, :, 0] = 1
    return _firings(reads.size, reads.ravel(), 1, 1, timing.pipeline)


def _windows(shape) -> np.ndarray:
    """Which pixels of a frame complete a window; (height * width,) of 0 and 1."""
    def ends(size, kernel, stride):
        found = np.zeros(size, np.int64)
        found[kernel - 1 :: stride] = 1
        return found

    if shape["pointwise"]:  # hls4ml takes the first pixel of each stride, not the last of the window
        rows, columns = (ends(shape[side], 1, shape[stride]) for side, stride in
                         (("height", "stride_height"), ("width", "stride_width")))
    else:
        rows = ends(shape["height"], shape["kernel_height"], shape["stride_height"])
        columns = ends(shape["width"], shape["kernel_width"], shape["stride_width"])
    return np.outer(rows, columns).ravel()


def _convolution(shape, timing: Timing) -> Firings:
    done = _windows(shape)
    if shape["resource"]:
        cycles = np.where(done, shape["reuse_factor"] + timing.window, timing.idle)
        return _firings(done.size, 1, done, cycles, cycles)
    interval = max(shape["reuse_factor"], timing.unrolled)
    return _firings(done.size, 1, done, interval, interval + timing.window)


def _pooling(shape, timing: Timing) -> Firings:
    done = _windows(shape)
    return _firings(done.size, 1, done, timing.pooling, timing.pooling + timing.pipeline)


def _gather(shape, timing: Timing) -> Firings:
    """All tokens in, then one out: dense layers and global pooling (reuse_factor 1)."""
    tokens = shape["tokens"]
    last = np.arange(tokens + 1) == tokens
    work = np.where(last, shape["reuse_factor"] + timing.dense, 1)
    return _firings(tokens + 1, ~last, last, work, work)


def _concatenate(shape, timing: Timing) -> Firings:
    """Along height or width: ``first`` tokens of one input, ``second`` of the other, in turns."""
    turn = np.repeat([1, 2], [shape["first"], shape["second"]])
    reads = np.tile(turn, shape["turns"])
    return _firings(reads.size, reads, 1, 1, timing.pipeline)


def _unpack(shape, timing: Timing) -> Firings:
    """The wrapper: a token every ``cycles``, and the TLAST flag behind the frame."""
    tokens = shape["tokens"]
    last = np.arange(tokens + 1) == tokens
    return _firings(tokens + 1, 0, np.where(last, 2, 1), np.where(last, 1, shape["cycles"]), shape["cycles"] + 1)


def _pack(shape, timing: Timing) -> Firings:
    tokens = shape["tokens"]
    first = np.arange(tokens + 1) == 0
    return _firings(tokens + 1, np.where(first, 2, 1), 0, np.where(first, 1, shape["cycles"]), 1)


FIRINGS = {
    "elementwise": _elementwise, "merge": _merge, "clone": _clone, "pad": _pad, "convolution": _convolution,
    "pooling": _pooling, "gather": _gather, "concatenate": _concatenate, "unpack": _unpack, "pack": _pack,
    "upsample": _upsample, "search": _search,
}  # fmt: skip


def cycles(process: Process, timing: Timing) -> int:
    """Cycles from one frame to the next of a process that never waits."""
    return int(FIRINGS[process.kind](process.shape, timing)[2].sum()) + timing.restart


def holds(process: Process, timing: Timing) -> int:
    """Tokens the process may hold back in its pipeline; a Resource convolution is no pipeline unless RF is 1."""
    if process.kind == "convolution" and process.shape["resource"] and process.shape["reuse_factor"] > 1:
        return 1
    return 0 if process.kind == "gather" else timing.hold


# --------------------------------------------------------------------------- the simulation


@dataclass(frozen=True)
class Result:
    """Cycles: ``latency`` of the first frame, from its first beat to its last; ``interval`` between the last two
    frames; both None after a deadlock. ``peaks``: most tokens each FIFO held. ``waits``: after a deadlock, process
    -> (read or write, FIFO). ``full``: the FIFOs whose depth closes the circle."""

    latency: int | None
    interval: int | None
    peaks: dict[str, int]
    waits: dict[str, tuple[str, str]] = field(default_factory=dict)
    full: tuple[str, ...] = ()

    @property
    def deadlock(self) -> bool:
        return self.latency is None


class Network:
    """Processes in topological order, made ready to simulate. ``bits``: FIFO name -> bits of one token.

    Raises :class:`DataflowError` for an unknown kind, or a FIFO whose two ends disagree about the tokens of a frame.
    """

    def __init__(self, processes: Iterable[Process], bits: dict[str, int], timing: Timing):
        self.processes, self.bits, self.timing = tuple(processes), dict(bits), timing
        self.fifos = [name for p in self.processes for name in p.outputs]
        self.index = {name: i for i, name in enumerate(self.fifos)}
        self.writer = {name: p for p in self.processes for name in p.outputs}
        self.reader = {name: p for p in self.processes for name in p.inputs}
        made = [self._made(p) for p in self.processes]
        self._count = np.array([m[0].size for m in made])
        self._first = np.concatenate([[0], np.cumsum(self._count)[:-1]])
        self._firings = tuple(np.concatenate([m[i] for m in made]) for i in range(4))
        self._hold = np.array([holds(p, timing) for p in self.processes])
        self._in, self._out = (self._ends(side) for side in ("inputs", "outputs"))
        slots = range(self._in.shape[1])
        self._need = np.concatenate([np.stack([np.cumsum((m[0] >> i) & 1) for i in slots]) for m in made], axis=1)
        #: Tokens per frame of each FIFO.
        self.tokens = {name: int(np.sum((m[1] >> slot) & 1)) for p, m in zip(self.processes, made, strict=True)
                       for slot, name in enumerate(p.outputs)}
        for i, p in enumerate(self.processes):
            for slot, name in enumerate(p.inputs):
                if self.tokens.get(name) != (read := int(np.sum((made[i][0] >> slot) & 1))):
                    raise DataflowError(f"{p.name} reads {read} tokens a frame, its input gets "
                                        f"{self.tokens.get(name)}", where=name, fix="report the network")

    def _made(self, process: Process) -> Firings:
        if process.kind not in FIRINGS:
            raise DataflowError(f"{process.name} is a process of a kind that is not known here: {process.kind}")
        made = FIRINGS[process.kind](process.shape, self.timing)
        if made[0].size == 0:
            raise DataflowError(f"{process.name} has no tokens", where=str(process.shape),
                                fix="remove the empty layer")
        return made

    def _ends(self, side: str) -> np.ndarray:
        ends = [[self.index[n] for n in getattr(p, side)] for p in self.processes]
        width = max(1, *map(len, ends))
        return np.array([e + [-1] * (width - len(e)) for e in ends])

    def _depths(self, depths: dict[str, int] | None, frames: int) -> np.ndarray:
        whole = np.array([self.tokens[n] * frames for n in self.fifos])
        if depths is None:
            return whole
        if missing := [n for n in self.fifos if n not in depths]:
            raise DataflowError(f"FIFO {missing[0]} has no depth", fix="give every FIFO a depth")
        return np.array([depths[n] for n in self.fifos], np.int64)

    def _run(self, depths: np.ndarray, frames: int, guard: bool):
        totals = np.array([self.tokens[n] for n in self.fifos])
        offset = np.concatenate([[0], np.cumsum(totals * frames)])
        return _simulate(self._first, self._count, *self._firings, self._need, self._hold, self._in, self._out,
        depths,
                         totals, offset, frames, self.timing.restart, guard)

    def completes(self, depths: dict[str, int], *, guard: bool = False) -> bool:
        """Whether a frame goes through; ``guard`` as in `safe_depths`."""
        return bool(self._run(self._depths(depths, 1), 1, guard)[0])

    def simulate(self, depths: dict[str, int] | None = None, *, frames: int = FRAMES) -> Result:
        """Send ``frames`` (2 or more) back to back. ``depths``: FIFO name -> tokens; None: without bounds."""
        limits = self._depths(depths, frames)
        done, ends, written, read, blocked = self._run(limits, frames, False)
        totals = [self.tokens[n] * frames for n in self.fifos]
        offset = np.concatenate([[0], np.cumsum(totals)])
        peaks = {}
        for i, name in enumerate(self.fifos):
            put, taken = written[offset[i] : offset[i + 1]], read[offset[i] : offset[i + 1]]
            put, taken = put[put >= 0], taken[taken >= 0]
            peaks[name] = int(np.max(np.arange(1, put.size + 1) - np.searchsorted(taken, put), initial=0))
        if done:
            last = ends[-1]
            return Result(int(last[0]), int(last[-1] - last[-2]), peaks)
        waits = {}
        for i, process in enumerate(self.processes):
            if (slot := int(blocked[i])) >= 0:
                reading = slot < len(process.inputs)
                fifo = process.inputs[slot] if reading else process.outputs[slot - len(process.inputs)]
                waits[process.name] = ("read" if reading else "write", fifo)
        ends_of = {name: (self.writer[name].name, self.reader[name].name) for name in self.fifos}
        return Result(None, None, peaks, waits, circle(waits, ends_of))

    def size(self, depths: dict[str, int]) -> int:
        """Bits of storage in all FIFOs."""
        return sum(depths[n] * self.bits[n] for n in self.fifos)


def circle(waits: dict[str, tuple[str, str]], ends: dict[str, tuple[str, str]]) -> tuple[str, ...]:
    """The full FIFOs on the circle of processes that wait for each other; deepening one of them resolves the
    deadlock.

    ``waits``: process -> (read or write, FIFO); ``ends``: FIFO -> (writer, reader). A blocked process waits for
    exactly one other, so following them comes back to where it was, or ends outside the design.
    """
    seen: list[str] = []
    at = next(iter(waits))
    while at in waits and at not in seen:
        seen.append(at)
        operation, fifo = waits[at]
        at = ends[fifo][0 if operation == "read" else 1]
    if at not in waits:
        return ()  # it waits for the host: no depth helps
    return tuple(waits[p][1] for p in seen[seen.index(at) :] if waits[p][0] == "write")


@numba.njit(cache=True)
def _simulate(first, count, reads, writes, step, delay, need, hold, ins, outs, depth, tokens, offset, frames, restart,
              guard):  # fmt: skip
    """(all frames done, end of each frame per process, time each token was written and read (-1: never), operation
    each process is blocked at (-1: finished)). Sweeps over the processes, each going as far as it can, until none
    moves."""
    processes, inputs, outputs = first.size, ins.shape[1], outs.shape[1]
    written_at = np.full(offset[-1], -1, np.int64)
    read_at = np.full(offset[-1], -1, np.int64)
    written = np.zeros(depth.size, np.int64)
    read = np.zeros(depth.size, np.int64)
    ends = np.zeros((processes, frames), np.int64)
    frame = np.zeros(processes, np.int64)
    at = np.zeros(processes, np.int64)  # firing within the frame
    operation = np.zeros(processes, np.int64)
    start = np.zeros(processes, np.int64)
    late = np.zeros(processes, np.int64)
    moving = True
    while moving:
        moving = False
        for p in range(processes):
            while frame[p] < frames:
                firing = first[p] + at[p]
                if guard and operation[p] == 0:
                    ready = True
                    ahead = first[p] + min(at[p] + hold[p], count[p] - 1)
                    for i in range(inputs):
                        f = ins[p, i]
                        if f >= 0 and written[f] < frame[p] * tokens[f] + need[i, ahead]:
                            ready = False
                    for o in range(outputs):
                        f = outs[p, o]
                        if f >= 0 and (writes[firing] >> o) & 1 and written[f] - read[f] >= depth[f]:
                            ready = False
                    if not ready:
                        break
                stuck = False
                while operation[p] < inputs:
                    if (reads[firing] >> operation[p]) & 1:
                        f = ins[p, operation[p]]
                        if read[f] == written[f]:
                            stuck = True
                            break
                        start[p] = max(start[p], written_at[offset[f] + read[f]])
                        read_at[offset[f] + read[f]] = start[p]
                        read[f] += 1
                        moving = True
                    operation[p] += 1
                while not stuck and operation[p] < inputs + outputs:
                    o = operation[p] - inputs
                    if (writes[firing] >> o) & 1:
                        f = outs[p, o]
                        if written[f] - read[f] >= depth[f]:
                            stuck = True
                            break
                        time = start[p] + delay[firing]
                        if written[f] >= depth[f]:
                            time = max(time, read_at[offset[f] + written[f] - depth[f]] + 1)
                        written_at[offset[f] + written[f]] = time
                        written[f] += 1
                        late[p] = max(late[p], time - start[p] - delay[firing])
                        moving = True
                    operation[p] += 1
                if stuck:
                    break
                start[p] += late[p] + step[firing]
                late[p] = 0
                operation[p] = 0
                at[p] += 1
                moving = True
                if at[p] == count[p]:
                    ends[p, frame[p]] = start[p]
                    start[p] += restart
                    at[p] = 0
                    frame[p] += 1
    done = True
    blocked = np.full(processes, -1, np.int64)
    for p in range(processes):
        if frame[p] < frames:
            done = False
            width = 0
            for i in range(inputs):
                width += ins[p, i] >= 0
            blocked[p] = operation[p] if operation[p] < inputs else operation[p] - inputs + width
    return done, ends, written_at, read_at, blocked


# --------------------------------------------------------------------------- depths


def safe_depths(network: Network, *, guard: bool = False, floor: int = FLOOR) -> dict[str, int]:
    """Least depths without deadlock in any schedule: one token less in any FIFO above ``floor`` deadlocks.

    ``guard``: with every pipeline holding tokens back (see above). Where several FIFOs can share the burden the one
    further downstream carries it, or upstream when that takes fewer bits.
    """
    def good(depths: dict[str, int]) -> dict[str, int] | None:
        return depths if network.completes(depths, guard=guard) else None

    start, floors = dict(network.tokens), _floors(network, floor, guard)
    found = [_least(good, start, floors, order) for order in (network.fifos, network.fifos[::-1])]
    return min(found, key=network.size)


def full_speed_depths(network: Network, *, frames: int = FRAMES, floor: int = FLOOR) -> dict[str, int]:
    """Least depths at which neither the interval nor the first frame's latency is longer than without bounds."""
    best = network.simulate(None, frames=frames)

    def good(depths: dict[str, int]) -> dict[str, int] | None:
        found = network.simulate(depths, frames=frames)
        if found.deadlock or found.interval > best.interval or found.latency > best.latency:
            return None
        return found.peaks  # with these depths nothing would have waited for room either

    start = {n: network.tokens[n] * frames for n in network.fifos}
    return _least(good, start, _floors(network, floor, False), network.fifos[::-1])


def _floors(network: Network, floor: int, guard: bool) -> dict[str, int]:
    """The reader of a guarded FIFO looks ``hold`` tokens ahead, which must fit."""
    return {n: max(floor, min(network.tokens[n], 1 + holds(network.reader[n], network.timing)) if guard else 0)
            for n in network.fifos}


def _least(good, start: dict[str, int], floors: dict[str, int], order: list[str]) -> dict[str, int]:
    """Minimal depths that are ``good``, a test monotone in every depth that returns depths just as good, or None.

    FIFOs are settled in ``order``, in halves: those that may go to the floor together do.
    """
    depths = {n: max(floors[n], start[n]) for n in order}
    settled: set[str] = set()

    def accept(found: dict[str, int]) -> None:
        for n in order:
            if n not in settled:
                depths[n] = max(floors[n], min(depths[n], found[n]))

    def settle(group: list[str]) -> None:
        found = good(depths | {n: floors[n] for n in group})
        if found is not None:
            depths.update({n: floors[n] for n in group})
            settled.update(group)
            accept(found)
        elif len(group) > 1:
            settle(group[: len(group) // 2])
            settle(group[len(group) // 2 :])
        else:
            name, low = group[0], floors[group[0]] + 1
            reach = low
            while low < depths[name]:
                # from below, in doubling steps: too shallow is seen at once
                middle = min(reach, (low + depths[name]) // 2)
                found = good(depths | {name: middle})
                if found is None:
                    low, reach = middle + 1, 2 * reach
                else:
                    depths[name] = middle
                    accept(found)
            settled.add(name)

    settle(list(order))
    return depths


@dataclass(frozen=True)
class Depths:
    """Per FIFO: ``safe`` (no deadlock), ``full_speed``, ``planned`` (the larger plus the pipelines' margin)."""

    safe: dict[str, int]
    full_speed: dict[str, int]
    planned: dict[str, int]


def plan_depths(network: Network) -> Depths:
    """The depths a project gets: the larger of the two, plus what the pipelines at both ends may hold back, and
    enough that no deadlock is possible with every pipeline holding back (`safe_depths` with ``guard``)."""
    safe, full = safe_depths(network), full_speed_depths(network)
    planned = {n: max(safe[n], full[n]) + max(holds(network.writer[n], network.timing),
                                              holds(network.reader[n], network.timing)) for n in network.fifos}
    if not network.completes(planned, guard=True):
        guarded = safe_depths(network, guard=True)
        planned = {n: max(planned[n], guarded[n]) for n in planned}
    return Depths(safe, full, planned)


# --------------------------------------------------------------------------- networks


def from_graph(model, analysis: Analysis, plan: dict, timing: Timing | None = None) -> Network:
    """The processes hls4ml will make of a prepared graph, and the wrapper around them.

    ``plan``: reuse factors and strategies (``plan["layers"]``). Raises :class:`hls.layers.LayersError` for an operation
    whose process is not known. Tests hold this equal to `from_project`.
    """
    rows = {row["name"]: row for row in plan["layers"]}
    found = layers.describe(model, analysis)
    return from_layers([x.folded(rows[x.name]["strategy"], rows[x.name]["reuse_factor"]) if x.name in rows else x
                        for x in found], timing)


def from_layers(found: Iterable[Described], timing: Timing | None = None) -> Network:
    """The network of described processes (:func:`hls.layers.describe`), its FIFOs named ``writer->reader``."""
    found = list(found)
    readers: dict[str, list[str]] = {}
    for item in found:
        for name in item.reads:
            readers.setdefault(name, []).append(item.name)
    inputs: dict[tuple[str, str], list[str]] = {}  # (writer, reader) -> FIFOs
    made, bits = [], {LASTS: 1}
    for item in found:
        taken = [inputs[(name, item.name)].pop(0) for name in item.reads] + ([LASTS] if item.kind == "pack" else [])
        users = readers.get(item.name, [])
        fifos = distinct(f"{item.name}->{user}" for user in users)
        for user, fifo in zip(users, fifos, strict=True):
            inputs.setdefault((item.name, user), []).append(fifo)
        bits |= dict.fromkeys(fifos, item.token_bits)
        made.append(Process(item.name, item.kind, dict(item.shape), tuple(taken),
                            tuple(fifos + ([LASTS] if item.kind == "unpack" else []))))
    return Network(made, bits, timing or Timing())


def distinct(names: Iterable[str]) -> list[str]:
    """Two FIFOs between the same processes get a number."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return result


def from_project(design: generated.Generated, io: dict, timing: Timing | None = None) -> Network:
    """The processes of a generated project, read from its C++ (:func:`hls.generated.read`); ``io``: ``io.json``."""
    names = design.fifo_names()
    values = lambda stream: design.tokens[design.streams[stream][0]][1]  # noqa: E731
    shape, count = io["input"]["shape"], math.prod(io["output"]["shape"])
    wide = 8 * io["input"]["container_bytes"] * shape[-1] > 8 * io["beat_bytes"]
    size = values(design.ports[1])
    made = [Process(INPUT, "unpack", {"tokens": math.prod(shape[:-1]), "cycles": shape[-1] if wide else 1}, (),
                    (names[design.ports[0]], LASTS))]
    for call in design.calls:
        kind, about = _read_shape(call, design, values)
        made.append(Process(call.name, kind, about, tuple(names[s] for s in call.inputs),
                            tuple(names[s] for s in call.outputs)))
    made.append(Process(OUTPUT, "pack", {"tokens": count // size, "cycles": size},
                        (names[design.ports[1]], LASTS), ()))
    bits = {names[s]: math.prod(design.tokens[kind]) for s, (kind, _) in design.streams.items()} | {LASTS: 1}
    return Network(made, bits, timing or Timing())


def _read_shape(call: generated.Call, design: generated.Generated, values) -> tuple[str, dict]:
    config = design.configs.get(call.types[-1], {})
    function, size = call.function, values(call.inputs[0])
    if function == "threshold_search":
        return "search", {"tokens": config["n_in"] // size, "bits": config["n_bits"]}
    if function == "whole_max":
        return "gather", {"tokens": config["pixels"], "reuse_factor": 1}
    if function == "upsample":
        return "upsample", {key: config[key] for key in ("height", "width", "factor_height", "factor_width")}
    if function in ("zeropad2d_cl", "pad_with"):
        return "pad", {"height": config["in_height"], "width": config["in_width"],
                       **{side: config[f"pad_{side}"] for side in ("top", "bottom", "left", "right")}}
    if function in ("conv_2d_cl", "pointwise_conv_2d_cl", "depthwise_conv_2d_cl", "pooling2d_cl"):
        pooled = function == "pooling2d_cl"
        window = {"height": config["in_height"], "width": config["in_width"],
                  "kernel_height": config["pool_height" if pooled else "filt_height"],
                  "kernel_width": config["pool_width" if pooled else "filt_width"],
                  "stride_height": config["stride_height"], "stride_width": config["stride_width"],
                  "pointwise": int(function == "pointwise_conv_2d_cl")}
        if pooled:
            return "pooling", window
        return "convolution", window | {"resource": config["strategy"], "reuse_factor": config["reuse_factor"]}
    if function == "global_pooling2d_cl":
        return "gather", {"tokens": config["in_height"] * config["in_width"], "reuse_factor": 1}
    if function == "dense":
        return "gather", {"tokens": config["n_in"] // size, "reuse_factor": config["reuse_factor"]}
    if function == "clone_stream":
        return "clone", {"tokens": int(call.types[-1]) // size, "copies": len(call.outputs)}
    if function in ("add", "subtract", "multiply"):
        return "merge", {"tokens": config["n_elem"] // size}
    if function in ("relu", "linear", "normalize", "hard_tanh", "multithreshold"):
        return "elementwise", {"tokens": config["n_in"] // size}
    if function == "concatenate3d" and config["axis"] == 3:
        return "merge", {"tokens": config["n_elem1_0"] * config["n_elem1_1"]}
    raise DataflowError(f"the process {call.name} is of a kind that is not simulated yet: nnet::{function}")
