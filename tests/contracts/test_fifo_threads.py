"""FIFO depths confirmed on the generated C++: every process on a thread of its own, FIFOs that block.

A residual network and one whose branches are concatenated. What the dataflow model says about depths holds for the C++
that synthesis sees: the codes at the safe depth, the deadlock at one less, where every process stands in it.
"""

import functools
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hls import dataflow, fifo, generated, numerics
from hls.csim import CsimError
from tests.graphs import Net
from tests.hil import converted

NETWORKS = ("residual", "concat")


def branches(samples=16) -> Net:
    """One 1x1 convolution beside two 3x3 ones, joined by concatenating their channels."""
    net = Net((2, 6, 6), samples=samples)
    x = net.relu_quant(net.conv(net.input, 4, name="stem"), 4, -2)
    one = net.relu_quant(net.conv(x, 3, 1, pad=0, name="one"), 4, -3)
    three = net.relu_quant(net.conv(x, 3, name="three1"), 4, -3)
    three = net.relu_quant(net.conv(three, 5, name="three2"), 4, -3)
    both = net.node("Concat", [one, three], torch.cat([net.values[one], net.values[three]], 1), axis=1)
    x = net.relu_quant(net.conv(both, 4, name="after"))
    return net.head(net.maxpool(x, 3))


def channels_last(model):
    """The Concat of a prepared graph on channels-last tensors, where the transposes around it cancel."""
    node = next(n for n in model.graph.node if n.op_type == "Concat")
    around = [model.find_producer(name) for name in node.input]
    after = model.find_consumer(node.output[0])
    if after.op_type == "Transpose":
        node.input[:] = [t.input[0] for t in around]
        node.output[0] = after.output[0]
        node.attribute[0].i = 3
        for transpose in {t.name: t for t in [*around, after]}.values():
            model.graph.node.remove(transpose)
    return model


def concat_range(model, node, analysis):
    """The analysis of a concatenation: both inputs on the finer grid."""
    sides = [analysis.tensors[name] for name in node.input]
    lsb = min(s.lsb for s in sides)
    return numerics.Fixed(lsb, min(s.at(lsb).min for s in sides), max(s.at(lsb).max for s in sides))


@functools.cache
def made(name: str):
    """(converted project, its processes read from the C++, the threaded program)"""
    if name == "residual":
        project = converted.made("residual")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(numerics.OPERATORS, "Concat", numerics.OPERATORS.get("Concat", concat_range))
            plain = converted.prepared
            patch.setattr(converted, "prepared", lambda net: channels_last(plain(net)))
            folder = Path(tempfile.mkdtemp(prefix="slimgate-test-"))
            project = converted.convert_net(branches(), folder / "project")
    design = generated.read(project.project)
    return project, dataflow.from_project(design, project.io), fifo.build(project.project)


@pytest.fixture(params=NETWORKS)
def network(request):
    return made(request.param)


def codes(project):
    return project.net.codes[:8], project.expected.reshape(len(project.net.codes), -1)[:8]


def test_the_model_of_the_graph_is_the_generated_network(network):
    project, read, _ = network
    built = dataflow.from_graph(project.model, project.analysis, project.plan)
    assert {p.name: p for p in built.processes} == {p.name: p for p in read.processes}
    assert built.bits == read.bits


def test_codes_are_identical_at_the_safe_depths(network):
    project, model, threads = network
    safe = dataflow.safe_depths(model)
    inputs, outputs = codes(project)
    for _ in range(3):
        found = threads.run(inputs, project.io, safe)
        assert not found.deadlock and np.array_equal(found.codes, outputs)
        assert all(found.peaks[n] <= safe[n] for n in safe)


def test_one_token_less_deadlocks_and_the_fifo_is_named(network):
    project, model, threads = network
    safe = dataflow.safe_depths(model)
    tried = [n for n, depth in safe.items() if depth > dataflow.FLOOR]
    assert tried
    for name in tried:
        depths = safe | {name: safe[name] - 1}
        found = [threads.run(codes(project)[0], project.io, depths) for _ in range(3)]
        assert all(f.deadlock and name in f.full for f in found)
        # every process stands where the model says, whatever the threads did
        assert all(f.waits == model.simulate(depths).waits for f in found)
        assert set(found[0].waits) == {p.name for p in model.processes}


def test_planned_depths_are_enough(network):
    project, model, threads = network
    planned = dataflow.plan_depths(model).planned
    inputs, outputs = codes(project)
    found = threads.run(inputs, project.io, planned)
    assert np.array_equal(found.codes, outputs)
    assert all(found.peaks[n] <= planned[n] for n in planned)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NETWORKS), st.data())
def test_at_any_depths_the_model_and_the_threads_agree(name, data):
    project, model, threads = made(name)
    depths = {n: data.draw(st.integers(1, 16)) for n in model.fifos}
    expected = model.simulate(depths)
    found = threads.run(codes(project)[0][:3], project.io, depths)
    assert found.deadlock == expected.deadlock
    assert (found.waits, found.full) == (expected.waits, expected.full)


def test_a_frame_that_ends_too_soon_is_told_from_shallow_fifos():
    """All processes wait, for the host in the end: no FIFO is to blame."""
    project, model, threads = made("residual")
    generous = dict.fromkeys(model.fifos, 10_000)
    io = project.io | {"input": project.io["input"] | {"beats": project.io["input"]["beats"] - 1}}
    inputs = codes(project)[0][:1].reshape(1, -1)[:, : 8 * io["input"]["beats"]]
    io["input"]["shape"] = [inputs.shape[1]]
    found = threads.run(inputs, io, generous)
    assert found.deadlock and found.full == ()
    assert found.waits["unpack"] == ("read", "s_axis")
    assert found.waits["pack"] == ("read", dataflow.LASTS)


def test_depths_go_into_the_project_and_come_back(tmp_path):
    project, model, threads = made("residual")
    copy = project.copy(tmp_path)
    planned = dataflow.plan_depths(model).planned
    assert generated.depths(copy.project) != planned
    generated.set_depths(copy.project, planned)
    assert generated.depths(copy.project) == planned
    name = "clone_Relu_0->Add_0"
    stream = generated.read(copy.project).fifos()[name][0]
    pragma = f"#pragma HLS STREAM variable={stream} depth={planned[name]}\n"
    assert pragma in (copy.project / "firmware" / "network.cpp").read_text()
    found = threads.run(codes(project)[0], project.io, generated.depths(copy.project))
    assert np.array_equal(found.codes, codes(project)[1])
    for odd in ({**planned, "a->b": 2}, {n: d for n, d in planned.items() if n != name}):
        with pytest.raises(generated.GeneratedError, match="is only in the (plan|network)"):
            generated.set_depths(copy.project, odd)
    wrapper = copy.project / "slimgate_axis.cpp"
    wrapper.write_text(re.sub(r".*STREAM variable=lasts.*\n", "", wrapper.read_text()))
    with pytest.raises(generated.GeneratedError, match="FIFO unpack->pack has no depth"):
        generated.set_depths(copy.project, planned)


def test_a_fifo_without_a_depth_is_refused():
    project, model, threads = made("residual")
    depths = dataflow.safe_depths(model)
    depths.pop("clone_Relu_0->Add_0")
    with pytest.raises(CsimError, match="FIFO clone_Relu_0->Add_0 has no depth"):
        threads.run(codes(project)[0], project.io, depths)


def test_processes_that_would_share_static_memory_are_refused(tmp_path):
    copy = converted.made("residual").copy(tmp_path)
    path = copy.project / "firmware" / "network.cpp"
    calls = re.findall(r"nnet::relu<[^>]*>", path.read_text())
    path.write_text(path.read_text().replace(calls[1], calls[0]))
    with pytest.raises(generated.GeneratedError, match="would share its static memory"):
        fifo.build(copy.project)


@pytest.mark.parametrize(("change", "message"), [
    (("nnet::relu<", "nnet::prelu<"), "kind that is not known here: nnet::prelu"),
    (None, None),
    (('("', '("x'), "calls itself x"),
])  # fmt: skip
def test_text_that_hls4ml_does_not_write_is_refused(tmp_path, change, message):
    copy = converted.made("residual").copy(tmp_path)
    path = copy.project / "firmware" / "network.cpp"
    text = path.read_text()
    if message is None:  # a stream that nobody reads
        stream = generated.read(copy.project).calls[2].inputs[0]
        changed, message = text.replace(f"({stream},", "(global_in,", 1), "has [01] writers and [02] readers"
    else:
        changed = text.replace(*change)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(generated.GeneratedError, match=message):
        generated.read(copy.project)


def test_no_project_is_no_generated_network(tmp_path):
    with pytest.raises(generated.GeneratedError, match="no generated network"):
        generated.read(tmp_path)
