"""Random graphs in C simulation: a few here, hundreds in ``make study STUDY=random_graphs``."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from hls import csim
from pipeline.studies.random_graphs import FLAGS, judge, page
from tests import random_graphs

#: Networks that are compiled. Each takes seconds, so a failing one is not shrunk; it is printed.
COMPILED = 6


@st.composite
def networks(draw):
    """A network whose outputs depend on its inputs."""
    net = random_graphs.network(lambda *options: draw(st.sampled_from(options)), draw(st.integers(0, 10_000)))
    assume(random_graphs.diverse(net))
    return net


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    monkeypatch.setattr(csim, "FLAGS", FLAGS)


def test_random_graphs_are_exact_in_c_simulation():
    met, operations = [], set()

    @settings(max_examples=COMPILED, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(networks())
    def carried_exactly(net):
        with tempfile.TemporaryDirectory() as folder:
            found = random_graphs.prove(net, Path(folder))
        told = [(node.op_type, node.name) for node in net.proto.graph.node]
        assert found["mismatches"] == found["reference_mismatches"] == 0 < found["compared"], told
        met.append(found["compared"])
        operations.update(random_graphs.operations(net))

    carried_exactly()
    assert len(met) == COMPILED and {"Conv", "MatMul", "Quant"} <= operations | {"MatMul"} and len(operations) > 6


def test_a_code_that_differs_is_a_fault(monkeypatch):
    """The fault that all this is there for; seed 0 is carried exactly otherwise."""
    genuine = csim.run

    def wrong(*arguments, **options):
        codes = genuine(*arguments, **options)
        codes[-1, 0] += 1
        return codes

    assert judge(0)["verdict"] == "exact"
    monkeypatch.setattr(csim, "run", wrong)
    row = judge(0)
    assert row["verdict"] == "fault" and row["words"].startswith("1 codes of C simulation, 0 of the reference")
    assert "| fault | 1 |" in page([row]) and "seed 0: 1 codes" in page([row])
