"""The dataflow simulation: against the hardware's own counters, against a token game in random order, and against
designs whose cycles were measured."""

import itertools
import random
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hls import cost, dataflow
from hls.dataflow import LASTS, DataflowError, Network, Process, Timing
from tests.flows import Flow, resnet

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def firings(network: Network) -> dict[str, tuple]:
    return {p.name: dataflow.FIRINGS[p.kind](p.shape, network.timing) for p in network.processes}


@st.composite
def flows(draw, branches=True) -> Network:
    """Random small networks: convolutions, activations, pooling and residual or concatenated branches."""
    flow = Flow(draw(st.integers(4, 8)), timing=Timing(hold=draw(st.integers(0, 5))))
    names = (f"n{i}" for i in itertools.count())

    def convolution(stride=1):
        flow.conv(next(names), 4, draw(st.sampled_from((1, 3))), stride=stride, reuse_factor=draw(st.integers(1, 12)),
                  resource=draw(st.integers(0, 1)))

    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("conv", "relu", "pool", "branch", "branch"))) if branches else \
            draw(st.sampled_from(("conv", "relu", "pool")))
        if kind == "conv":
            convolution()
        elif kind == "relu":
            flow.relu(next(names))
        elif kind == "pool" and flow.size >= 4:
            flow.pool(next(names))
        elif kind == "branch":
            fork, ends = flow.at, []
            for length in (draw(st.integers(0, 2)), draw(st.integers(1, 2))):
                flow.go(fork)
                for _ in range(length):
                    convolution()
                ends.append(flow.at)
            flow.join(next(names), *ends)
    flow.dense("last", 3, reuse_factor=draw(st.integers(1, 9)))
    return flow.network()


# --------------------------------------------------------------------------- the patterns of the processes


@QUICK
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_windows_are_completed_where_the_counters_of_the_template_say(height, width, tall, wide, down, right):
    """The counters pX, pY, sX, sY of nnet_conv_stream.h, compute_output_buffer_2d, written out again."""
    shape = {"height": height, "width": width, "kernel_height": tall, "kernel_width": wide, "stride_height": down,
             "stride_width": right, "pointwise": 0}
    px = py = sx = sy = 0
    expected = []
    for _ in range(height * width):
        expected.append(int(sx - (wide - 1) == 0 and sy - (tall - 1) == 0 and py > tall - 2 and px > wide - 2))
        if px + 1 == width:
            px = sx = 0
            if py + 1 == height:
                py = sy = 0
            else:
                py, sy = py + 1, sy - down + 1 if sy - (tall - 1) == 0 else sy + 1
        else:
            px, sx = px + 1, sx - right + 1 if sx - (wide - 1) == 0 else sx + 1
    assert dataflow._windows(shape).tolist() == expected


def test_a_convolution_works_long_only_on_pixels_that_complete_a_window():
    flow = Flow(8, timing=Timing(window=9, idle=6, restart=3))
    flow.conv("c", 4, reuse_factor=20)
    process = flow.network().processes[2]
    assert dataflow.cycles(process, flow.timing) == 64 * 29 + 36 * 6 + 3


@pytest.mark.parametrize(("target", "window", "idle"), [
    (cost.Target("zynq7", 10.0, "vivado_hls", 2020.1), (7, 10), (4, 6)),
    (cost.Target("zynq7", 5.0, "vivado_hls", 2020.1), (9, 12), (4, 5)),
    (cost.Target("ultrascale+", 5.0, "vivado_hls", 2019.2), (5, 7), (3, 4)),
])  # fmt: skip
def test_the_cycles_around_the_arithmetic_are_those_of_published_reports(target, window, idle):
    timing = dataflow.timing_for(target)
    assert window[0] <= timing.window <= window[1] and idle[0] <= timing.idle <= idle[1]
    spec = cost.LayerSpec("c", "conv", (10, 10, 4), (8, 8, 4), kernel=(3, 3), stride=(1, 1), n_in=36, n_out=4,
                          weights=144, reuse_factor=36)
    told = cost.layer_cycles(spec, target)
    assert abs(36 + timing.window - told["per_output"]) <= 0.5 and abs(timing.idle - told["per_idle"]) <= 0.5
    dense = cost.LayerSpec("d", "dense", (40,), (10,), n_in=40, n_out=10, weights=400, reuse_factor=40)
    assert abs(40 + timing.dense - cost.layer_cycles(dense, target)["latency_max"]) <= 1
    assert 1 <= timing.unrolled <= 6 and timing.pooling in (1, 2)


# --------------------------------------------------------------------------- against hardware


def test_cosimulation_of_a_published_convolution():
    """YanLunHuang/conv2d_test, Vivado HLS 2019.2, xczu9eg: 3x3x8 padded to 5x5, RF 72, 4 or 79 cycles a pixel in its
    synthesis report; RTL cosimulation says 777 cycles."""
    flow = Flow(3, timing=Timing(window=7, idle=4))
    flow.conv("conv", 8, reuse_factor=72)
    flow.channels = 1
    assert flow.network().simulate().latency == pytest.approx(777, rel=0.01)


def test_board_measurement_of_rn07():
    """MLPerf Tiny v0.7, hls4ml's RN07 on a PYNQ-Z2 at 100 MHz, batch one: 27.33 ms, driver included."""
    flow = Flow(32)
    flow.conv("c0", 32, 1, reuse_factor=96)
    for name, filters in (("c1", 4), ("c2", 32)):
        flow.conv(name, filters, 4, pad=(1, 2), reuse_factor=2048)
    flow.conv("c3", 32, 4, stride=4, pad=(0, 0), reuse_factor=16384)
    flow.conv("c4", 32, 4, pad=(1, 2), reuse_factor=16384)
    flow.dense("d", reuse_factor=20480)
    latency = flow.network().simulate().latency / 100e3
    assert 0.95 * 27.325 < latency < 27.325
    # the slowest layer alone, as csynth has it, is far off
    assert max(dataflow.cycles(p, flow.timing) for p in flow.network().processes) / 100e3 < 0.8 * 27.325


# --------------------------------------------------------------------------- deadlock


def play(network: Network, depths: dict[str, int], order: random.Random, *, frames=2, pipelines=False) -> bool:
    """The token game, one operation of one random process at a time: whether all frames come out.

    ``pipelines``: every process is a pipeline that reads up to its ``hold`` tokens ahead and, at random per process,
    keeps results inside until it has (or the frame ends), or lets them out at once.
    """
    held = dict.fromkeys(network.fifos, 0)

    def operations(process: Process):
        reads, writes, _, _ = firings(network)[process.name]
        take = [[("read", n) for i, n in enumerate(process.inputs) if (r >> i) & 1] for r in reads]
        give = [[("write", n) for i, n in enumerate(process.outputs) if (w >> i) & 1] for w in writes]
        ahead = dataflow.holds(process, network.timing) if pipelines and order.random() < 0.7 else 0
        for _ in range(frames):
            for firing in range(len(take) + ahead):
                if firing < len(take):
                    yield from take[firing]
                if firing >= ahead:
                    yield from give[firing - ahead]

    todo = {p.name: list(operations(p)) for p in network.processes}
    at = dict.fromkeys(todo, 0)
    alive = set(todo)
    while alive:
        ready = []
        for name in alive:
            operation, fifo = todo[name][at[name]]
            if held[fifo] > 0 if operation == "read" else held[fifo] < depths[fifo]:
                ready.append(name)
        if not ready:
            return False
        name = order.choice(sorted(ready))
        while at[name] < len(todo[name]):
            operation, fifo = todo[name][at[name]]
            if not (held[fifo] > 0 if operation == "read" else held[fifo] < depths[fifo]):
                break
            held[fifo] += 1 if operation == "write" else -1
            at[name] += 1
            if order.random() < 0.3:
                break
        if at[name] == len(todo[name]):
            alive.discard(name)
    return True


@QUICK
@given(flows(), st.data())
def test_any_schedule_ends_as_the_simulation_does(network, data):
    depths = {n: data.draw(st.integers(1, 12)) for n in network.fifos}
    expected = not network.simulate(depths).deadlock
    assert network.completes(depths) == expected
    for seed in range(2):
        assert play(network, depths, random.Random(seed)) == expected


@QUICK
@given(flows(), st.data())
def test_safe_depths_are_safe_and_the_least(network, data):
    safe = dataflow.safe_depths(network)
    assert play(network, safe, random.Random(data.draw(st.integers(0, 9))))
    for name, depth in safe.items():
        assert depth >= dataflow.FLOOR
        if depth > dataflow.FLOOR:
            stuck = network.simulate(safe | {name: depth - 1})
            assert stuck.deadlock and name in stuck.full


@pytest.mark.parametrize(("filters", "stride", "storing"), [
    (16, 1, "clone_stem->short"),  # 4 channels in front of the 1x1 convolution, 16 behind it
    (4, 2, "short->add"),  # a quarter of the pixels behind it
])  # fmt: skip
def test_what_a_bypass_stores_lies_where_it_takes_fewest_bits(filters, stride, storing):
    flow = Flow(12)
    fork = flow.conv("stem", 4)
    flow.conv("c1", filters, stride=stride)
    branch = flow.conv("c2", filters)
    flow.join("add", branch, flow.go(fork).conv("short", filters, 1, stride=stride))
    flow.dense("d")
    network = flow.network()
    assert [n for n, depth in dataflow.safe_depths(network).items() if depth > dataflow.FLOOR] == [storing]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(flows(), st.integers(0, 99))
def test_guarded_depths_are_safe_for_any_mixture_of_pipelines(network, seed):
    guarded = dataflow.safe_depths(network, guard=True)
    assert play(network, guarded, random.Random(seed), pipelines=True)
    assert play(network, dataflow.plan_depths(network).planned, random.Random(seed), pipelines=True)


def test_a_pipeline_that_holds_back_needs_more_than_the_plain_safe_depth():
    """Or the guard would guard nothing."""
    network = resnet(1, size=8, filters=4).network()
    safe = dataflow.safe_depths(network)
    tried = [play(network, safe, random.Random(seed), pipelines=True) for seed in range(8)]
    assert not all(tried)
    assert not network.completes(safe, guard=True)


@QUICK
@given(flows(branches=False))
def test_a_chain_needs_no_more_than_the_floor(network):
    assert set(dataflow.safe_depths(network, floor=1).values()) == {1}


def test_the_deadlock_of_a_shallow_bypass_names_it():
    network = resnet(1).network()
    bypass = "clone_relu->s0b0add"
    result = network.simulate({n: 32 if n == bypass else 4096 for n in network.fifos})
    assert result.deadlock and result.full == (bypass,)
    assert result.waits["clone_relu"] == ("write", bypass)
    assert result.latency is None and result.peaks[bypass] == 32


def test_the_flag_of_the_last_beat_is_part_of_the_network():
    """pack waits for TLAST, which unpack writes behind the frame: an image that comes out meanwhile must fit."""
    flow = Flow(8)
    flow.conv("c", 2)
    network = flow.network()
    safe = dataflow.safe_depths(network)
    stored = sum(safe.values())
    assert stored > 40
    assert network.simulate(dict.fromkeys(network.fifos, 2)).deadlock


# --------------------------------------------------------------------------- time


def by_equations(network: Network, depths: dict[str, int], frames: int) -> tuple[list[int], dict[str, int]]:
    """(end of each frame at the last process, most tokens each FIFO held): the rules of the simulation as equations
    over the time of every read and write, iterated from zero until nothing changes. Slow, and without any queue,
    blocking or order of processes."""
    made = firings(network)
    written = {n: [0] * (network.tokens[n] * frames) for n in network.fifos}
    read = {n: [0] * (network.tokens[n] * frames) for n in network.fifos}
    ends: list[int] = []
    changed = True
    while changed:
        changed = False

        def put(times: list[int], place: int, value: int) -> None:
            nonlocal changed
            changed |= times[place] != value
            times[place] = value

        for process in network.processes:
            now, taken, given_ = 0, dict.fromkeys(process.inputs, 0), dict.fromkeys(process.outputs, 0)
            ends = []
            for _ in range(frames):
                for reads, writes, step, delay in zip(*made[process.name], strict=True):
                    for i, name in enumerate(process.inputs):
                        if (reads >> i) & 1:
                            now = max(now, written[name][taken[name]])
                            put(read[name], taken[name], now)
                            taken[name] += 1
                    late = 0
                    for i, name in enumerate(process.outputs):
                        if (writes >> i) & 1:
                            place, when = given_[name], now + int(delay)
                            if place >= depths[name]:
                                when = max(when, read[name][place - depths[name]] + 1)
                            put(written[name], place, when)
                            late = max(late, when - now - int(delay))
                            given_[name] += 1
                    now += int(step) + late
                ends.append(now)
                now += network.timing.restart
    # a token read in the cycle it is written was held
    peaks = {n: max(sum(1 for w in written[n][: i + 1]) - sum(1 for r in read[n] if r < written[n][i])
                    for i in range(len(written[n]))) for n in network.fifos}
    return ends, peaks


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(flows(), st.data())
def test_the_simulation_is_the_solution_of_its_equations(network, data):
    depths = {n: data.draw(st.integers(2, 9)) for n in network.fifos}
    for limit in (depths, network.tokens | {n: network.tokens[n] * 2 for n in network.fifos}):
        found = network.simulate(limit, frames=2)
        if found.deadlock:
            continue
        ends, peaks = by_equations(network, limit, 2)
        assert [found.latency, found.latency + found.interval] == ends
        assert found.peaks == peaks


@QUICK
@given(flows(), st.data())
def test_more_depth_is_never_slower_and_never_stuck(network, data):
    depths = {n: data.draw(st.integers(2, 10)) for n in network.fifos}
    more = {n: d + data.draw(st.integers(0, 5)) for n, d in depths.items()}
    before, after = network.simulate(depths), network.simulate(more)
    if not before.deadlock:
        assert after.latency <= before.latency and not after.deadlock


@QUICK
@given(flows())
def test_full_speed_is_full_and_the_least(network):
    best, depths = network.simulate(), dataflow.full_speed_depths(network)
    found = network.simulate(depths)
    assert found.latency <= best.latency and found.interval <= best.interval
    for name, depth in depths.items():
        if depth > dataflow.FLOOR:
            slower = network.simulate(depths | {name: depth - 1})
            assert slower.deadlock or slower.latency > best.latency or slower.interval > best.interval


@QUICK
@given(flows())
def test_planned_depths_keep_the_margin_and_are_never_exceeded(network):
    depths = dataflow.plan_depths(network)
    best = network.simulate(frames=8)
    found = network.simulate(depths.planned, frames=8)
    assert found.interval <= best.interval and found.latency <= best.latency
    for name, depth in depths.planned.items():
        ends = network.writer[name], network.reader[name]
        margin = max(dataflow.holds(p, network.timing) for p in ends)
        assert depth >= max(depths.safe[name], depths.full_speed[name]) + margin
        assert found.peaks[name] <= depth


def test_the_interval_is_that_of_the_slowest_process():
    network = resnet(1, size=16).network()
    slowest = max(dataflow.cycles(p, network.timing) for p in network.processes)
    assert network.simulate(frames=6).interval == slowest


def test_resnet20_in_less_than_five_seconds():
    network = resnet(3).network()
    begin = time.perf_counter()
    result = network.simulate(frames=4)
    assert time.perf_counter() - begin < 5
    assert result.latency > result.interval > 1024 * 25


# --------------------------------------------------------------------------- bad input


def test_what_is_no_network():
    flow = Flow(4)
    flow.relu("r")
    network = flow.network()
    with pytest.raises(DataflowError, match="has no depth"):
        network.simulate({LASTS: 2})
    unknown = [*network.processes[:1], Process("r", "dream", {}, network.processes[1].inputs, ("r->pack",))]
    with pytest.raises(DataflowError, match="kind that is not known here: dream"):
        Network(unknown, {}, Timing())
    empty = [Process(p.name, p.kind, p.shape | {"tokens": 0}, p.inputs, p.outputs) if p.name == "r" else p
             for p in network.processes]
    with pytest.raises(DataflowError, match="r has no tokens"):
        Network(empty, network.bits, Timing())
    short = [Process(p.name, p.kind, p.shape | {"tokens": 9}, p.inputs, p.outputs) if p.name == "r" else p
             for p in network.processes]
    with pytest.raises(DataflowError, match="r reads 9 tokens a frame, its input gets 16"):
        Network(short, network.bits, Timing())


def test_concatenation_along_height_reads_one_input_after_the_other():
    """Both branches come from one fork, so the second must be stored whole."""
    made = [
        Process("unpack", "unpack", {"tokens": 6, "cycles": 1}, (), ("unpack->f", LASTS)),
        Process("f", "clone", {"tokens": 6, "copies": 2}, ("unpack->f",), ("f->j", "f->j#2")),
        Process("j", "concatenate", {"first": 6, "second": 6, "turns": 1}, ("f->j", "f->j#2"), ("j->d",)),
        Process("d", "gather", {"tokens": 12, "reuse_factor": 1}, ("j->d",), ("d->pack",)),
        Process("pack", "pack", {"tokens": 1, "cycles": 2}, ("d->pack", LASTS), ()),
    ]
    network = Network(made, dict.fromkeys(("unpack->f", LASTS, "f->j", "f->j#2", "j->d", "d->pack"), 8), Timing())
    safe = dataflow.safe_depths(network)
    assert safe["f->j#2"] in (5, 6) and safe["f->j"] == 2
    assert network.simulate(safe | {"f->j#2": safe["f->j#2"] - 1}).full == ("f->j#2",)
