"""Random small networks over the operations of ``docs/operators.md`` and their attributes, and the proof of one.

``network(choose, seed)`` asks ``choose(*options)`` for every decision: hypothesis answers in the tests, a seeded
generator in ``make study STUDY=random_graphs``.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from hls import csim, graph
from hls.reference import Reference
from tests.contracts.test_operators import Wide
from tests.hil.converted import convert_net

#: Values of a picture, at most, so that a network compiles and runs in seconds.
MOST = 160


def network(choose, seed: int) -> Wide:
    """One to three blocks and a head; every one of them is to be carried exactly."""
    kind = choose("picture", "picture", "picture", "vector", "line")
    shape = {
        "picture": lambda: (choose(1, 2, 3, 4), choose(3, 4, 5, 6), choose(3, 4, 5, 7)),
        "line": lambda: (choose(1, 2, 3), choose(5, 8, 9)),
        "vector": lambda: (choose(3, 6, 8),),
    }[kind]()
    net = Wide(shape, bits=choose(1, 2, 4, 8), signed=False, seed=seed, samples=16)
    x = net.input
    for _ in range(choose(1, 2, 3)):
        x = _block(net, x, choose)
    if net.values[x].dim() > 2:
        if choose(False, False, True) and np.prod(net.values[x].shape[2:]) in (1, 2, 4, 8, 16):
            x = net.global_average(x)
        x = net.flatten(x, reshape=choose(False, True))
    x = net.dense(x, choose(2, 3, 5), bits=choose(2, 4, 8), bias=choose(True, None), gemm=choose(True, False))
    ending = choose("bare", "bare", "quant", "scaled")
    if ending == "quant":
        x = _quantised(net, x, choose)
    elif ending == "scaled":
        x = net.times(x, 0.25)
    return net.finish(x)


def _block(net, x, choose) -> str:
    rank = net.values[x].dim() - 2
    if rank == 0:
        return _quantised(net, net.dense(x, choose(3, 4, 8), bits=choose(2, 3, 6), bias=choose(True, None),
                                         gemm=choose(True, False)), choose)  # fmt: skip
    x = _quantised(net, _convolution(net, x, choose), choose)
    sides = net.values[x].shape[2:]
    steps = ["none", "none", "max", "add", "twice", "concat", "times", "identity"]
    steps += ["average", "pad", "upsample"] if rank == 2 else []
    step = choose(*steps)
    if step == "max":
        kernel = [min(choose(1, 2, 3), side) for side in sides]
        pads = [choose(0, min(1, k - 1)) for k in kernel * 2]
        return net.pool(x, kernel, [choose(1, 2) for _ in kernel], pads)
    if step == "average":
        kernel = [min(choose(1, 2), side) for side in sides]
        x = net.average(x, kernel, [choose(1, 2) for _ in kernel])
        return net.quant(x, choose(3, 5), signed=True) if choose(True, False) else x
    if step == "pad":
        return net.pad(x, choose(0, 1), choose(0, 1), choose(1, 2), choose(0, 1))
    if step == "upsample" and np.prod(sides) * net.values[x].shape[1] <= MOST / 4:
        return net.upsample(x, (choose(1, 2), choose(2, 2)))
    if step == "add":
        return net.add(x, _quantised(net, net.convolve(x, net.values[x].shape[1], [1] * rank, bits=3), choose))
    if step == "twice":
        return net.add(net.relu(x), x)
    if step == "concat":
        more = [net.quant(net.convolve(x, choose(1, 2), [1] * rank, bits=3), choose(2, 5))
                for _ in range(choose(1, 2) if rank == 2 else 1)]  # fmt: skip
        return net.concat(x, *more)
    if step == "times" and rank == 2:
        count = net.values[x].shape[1]
        factors = np.array([choose(0.5, 2.0, -1.0, 4.0) for _ in range(count)]).reshape(1, count, 1, 1)
        return net.times(x, factors, divide=choose(False, True))
    if step == "identity":
        return net.node("Identity", [x], net.values[x])
    return x


def _convolution(net, x, choose) -> str:
    channels, *sides = net.values[x].shape[1:]
    rank = len(sides)
    group = choose(1, 1, 1, channels)
    kernel, dilations, pads = [], [], []
    for side in sides:
        kernel.append(min(choose(1, 2, 3), side))
        dilations.append(choose(1, 1, 2) if (kernel[-1] - 1) * 2 + 1 <= side else 1)
    pads = [choose(0, 0, 1, 2) for _ in range(2 * rank)]
    strides = [choose(1, 1, 2, 3) for _ in range(rank)]
    filters = group * choose(1, 2) if group > 1 else choose(1, 2, 3, 5)
    out = [(side + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
           for i, side in enumerate(sides)]  # fmt: skip
    if filters * np.prod(out) > MOST:
        strides = [max(2, s) for s in strides]
    weights = choose("plain", "plain", "channel", "bipolar")
    options = {"bits": choose(2, 4, 7)}
    if weights == "channel":
        options["scales"] = [choose(-3, -1, -5) for _ in range(filters)]
    elif weights == "bipolar":
        options |= {"bipolar": True, "lsb": choose(0, -2)}
    return net.convolve(x, filters, kernel, strides=strides, pads=pads, dilations=dilations, group=group,
                        bias=choose(True, False), **options)  # fmt: skip


def _quantised(net, x, choose) -> str:
    """Something that ends in a quantiser."""
    kind = choose("relu", "relu", "plain", "plain", "norm", "norm relu", "bipolar")
    if kind == "relu":
        return net.relu_quant(x, choose(1, 2, 4, 8))
    if kind == "plain":
        return net.quant(x, choose(2, 3, 6, 12), narrow=choose(False, True), rounding=choose("ROUND", "FLOOR"))
    x = net.norm(x, negative=choose(False, True))
    if kind == "norm":
        return net.quant(x, choose(2, 4), -1)
    return net.relu_quant(x, choose(2, 3, 4)) if kind == "norm relu" else net.bipolar(x, choose(0, -1))


def operations(net) -> Counter:
    """How often each operation occurs, with what was chosen for it."""
    found: Counter = Counter()
    for node in net.proto.graph.node:
        moving = node.input[0] not in net.constants
        if moving:
            found[node.op_type] += 1
    return found


def diverse(net) -> bool:
    """Whether torch's outputs of it say something: a third of the samples and half of the outputs differ."""
    rows = net.outputs.reshape(len(net.codes), -1)
    return len(np.unique(rows, axis=0)) > len(rows) / 3 and (
        sum(len(np.unique(column)) > 1 for column in rows.T) > rows.shape[1] / 2
    )


def prove(net, folder: Path) -> dict:
    """Convert, compile and compare with qonnx execution of the file and with the reference, code by code.

    Returns {"compared", "mismatches": C simulation's, "reference_mismatches", "oracle"}; raises SlimgateError for a
    network that is refused.
    """
    file = graph.load(net.save(folder / "net.onnx"))
    found = convert_net(net, folder / "project")
    library = csim.compile_design(found.project, found.io)
    inputs = net.codes.reshape(-1, *found.io["input"]["shape"])
    reference, lsb = Reference(found.model, found.analysis).run(inputs)
    scale = found.io["output"]["scale_log2"]
    reference = (reference.reshape(len(inputs), -1)) << (lsb - scale)
    if found.analysis.float32_exact:
        executed = next(iter(graph.execute(file, net.inputs).values()))
        executed = np.moveaxis(executed, 1, -1) if executed.ndim > 2 else executed
        expected = np.ldexp(executed.reshape(reference.shape).astype(np.float64), -scale)
    else:
        expected = reference
    simulated = csim.run(library, inputs, found.io, processes=1)
    return {
        "compared": int(simulated.size),
        "mismatches": int(np.count_nonzero(simulated != expected)),
        "reference_mismatches": int(np.count_nonzero(reference != expected)),
        "oracle": "qonnx" if found.analysis.float32_exact else "integer reference",
    }
