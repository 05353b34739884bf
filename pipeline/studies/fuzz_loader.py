"""Whatever a file holds, it is refused with a sentence or understood: truncations, flipped bytes, random graphs.

    python -m pipeline.studies.fuzz_loader [--cases 10000] [--processes 2] [--seed 0]

A fault is any exception that is no SlimgateError, a dead process, a case of more than a minute, or a graph that is
understood and whose integer reference and qonnx execution differ. Exit code 1 if there is one.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from boards.errors import SlimgateError
from hls import graph
from hls.reference import Reference
from hls.verify import examine, some_inputs, wire_codes

KINDS = ("truncated", "bytes flipped", "bytes overwritten", "field changed", "random graph")
DOMAIN = "qonnx.custom_op.general"
#: Cases of one process; seconds it may take for each.
CHUNK, PATIENCE = 50, 60
OPERATIONS = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool", "Flatten", "Quant", "Transpose", "Reshape", "Concat", "Softmax",
    "AveragePool", "BatchNormalization", "Mul", "Pad", "Resize", "Sigmoid", "Gather", "Nothing",
)  # fmt: skip


def case(seed: int) -> tuple[str, bytes]:
    """(kind, content of a file); the same for the same seed."""
    random = np.random.default_rng(seed)
    kind = KINDS[random.integers(len(KINDS))]
    if kind == "random graph":
        return kind, _soup(random)
    content = _network(np.random.default_rng(int(random.integers(8))))
    if kind == "field changed":
        return kind, _changed(content, random)
    data = bytearray(content)
    if kind == "truncated":
        del data[int(random.integers(len(data))) :]
    elif kind == "bytes flipped":
        for at in random.integers(len(data), size=random.integers(1, 20)):
            data[at] ^= 1 << random.integers(8)
    else:
        at, size = int(random.integers(len(data))), int(random.integers(1, 64))
        data[at : at + size] = random.bytes(size)
    return kind, bytes(data)


def _constant(name: str, values) -> TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(values, np.float32), name)


def _quant(source: str, target: str, bits: float, scale: float, signed: int):
    """A Quant node and its three constants."""
    names = [f"{target}.{part}" for part in ("scale", "zero", "bits")]
    node = helper.make_node("Quant", [source, *names], [target], name=target, domain=DOMAIN, signed=signed, narrow=0,
                            rounding_mode="ROUND")  # fmt: skip
    return node, [_constant(n, v) for n, v in zip(names, (scale, 0.0, bits), strict=True)]


def _model(nodes, constants, shape, output) -> onnx.ModelProto:
    sides = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "fuzz", sides, results, constants)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 2)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _network(random) -> bytes:
    """A good file: quantised input, convolution, ReLU, quantiser, dense layer."""
    filters, channels, size, outputs = (int(n) for n in random.integers(2, 5, 4))
    nodes, constants = [], []

    def quant(*arguments):
        node, values = _quant(*arguments)
        nodes.append(node)
        constants.extend(values)

    quant("input", "x", 8, 2.0**-8, 0)
    constants.append(_constant("conv.weight", random.integers(-7, 8, (filters, channels, 3, 3)) / 8))
    quant("conv.weight", "conv.quant", 4, 2.0**-3, 1)
    nodes.append(helper.make_node("Conv", ["x", "conv.quant"], ["conv"], kernel_shape=[3, 3], pads=[1] * 4))
    nodes.append(helper.make_node("Relu", ["conv"], ["relu"]))
    quant("relu", "a", 4, 2.0**-2, 0)
    nodes.append(helper.make_node("Flatten", ["a"], ["flat"], axis=1))
    constants.append(_constant("fc.weight", random.integers(-7, 8, (filters * size * size, outputs)) / 8))
    quant("fc.weight", "fc.quant", 4, 2.0**-3, 1)
    nodes.append(helper.make_node("MatMul", ["flat", "fc.quant"], ["output"]))
    return _model(nodes, constants, (1, channels, size, size), "output").SerializeToString()


def _changed(content: bytes, random) -> bytes:
    """A file that is whole, with one thing in it that is another."""
    model = onnx.load_model_from_string(content)
    nodes, constants = model.graph.node, model.graph.initializer
    node, constant = nodes[random.integers(len(nodes))], constants[random.integers(len(constants))]
    odd = [0.0, -1.0, 0.3, 1e30, 1e-30, float("nan"), float("inf"), 2.0**-40, 2.0**40, 33.0, 1.0]

    def value():
        array = onnx.numpy_helper.to_array(constant).copy()
        array.reshape(-1)[random.integers(array.size)] = odd[random.integers(len(odd))]
        constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))

    def attribute():
        if node.attribute:
            chosen = node.attribute[random.integers(len(node.attribute))]
            if chosen.ints:
                chosen.ints[random.integers(len(chosen.ints))] = int(random.integers(-2, 9))
            else:
                chosen.i = int(random.integers(-3, 9))

    def edge():
        node.input[random.integers(len(node.input))] = nodes[random.integers(len(nodes))].output[0]

    def reshape():
        constant.dims[:] = [int(n) for n in random.integers(0, 9, random.integers(0, 5))]

    def operation():
        node.op_type = OPERATIONS[random.integers(len(OPERATIONS))]

    def removal():
        nodes.remove(node)

    def sides():
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[random.integers(len(dims))].dim_value = int(random.integers(-1, 9))

    changes = (value, attribute, edge, reshape, operation, removal, sides)
    changes[random.integers(len(changes))]()
    return model.SerializeToString()


def _soup(random) -> bytes:
    """Operations in random order, with quantisers where they may or may not belong."""
    shape = [1, *(int(n) for n in random.integers(1, 6, random.integers(1, 4)))]
    nodes, constants, tensors = [], [], ["input"]
    for index in range(int(random.integers(1, 12))):
        name, source = f"t{index}", tensors[-1] if random.random() < 0.8 else tensors[random.integers(len(tensors))]
        kind = "Quant" if index == 0 or random.random() < 0.4 else OPERATIONS[random.integers(len(OPERATIONS))]
        if kind == "Quant":
            scale = 2.0 ** int(random.integers(-9, 3)) if random.random() < 0.9 else float(random.random())
            node, values = _quant(source, name, int(random.integers(1, 10)), scale, int(random.integers(2)))
            constants.extend(values)
        else:
            inputs = [source]
            if kind in ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "Gather", "Reshape"):
                if random.random() < 0.5:
                    inputs.append(tensors[random.integers(len(tensors))])
                else:
                    size = [int(n) for n in random.integers(1, 6, random.integers(0, 5))]
                    constants.append(_constant(f"{name}.w", random.integers(-7, 8, size) / 8))
                    inputs.append(f"{name}.w")
            options = {"kernel_shape": [2, 2]} if kind in ("MaxPool", "AveragePool") else {}
            node = helper.make_node(kind, inputs, [name], name=name, **options)
        nodes.append(node)
        tensors.append(name)
    return _model(nodes, constants, shape, tensors[-1]).SerializeToString()


def judge(content: bytes) -> tuple[str, str]:
    """("refused" | "understood" | "fault", words) of one file's content."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.onnx"
        file.write_bytes(content)
        try:
            network = examine(file)
            return _compare(network)
        except SlimgateError as error:
            told = error.what.strip()
            return ("refused", told.splitlines()[0]) if told else ("fault", "refused without a word")
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            return "fault", f"{type(error).__name__}: {error}"


def _compare(network) -> tuple[str, str]:
    """Reference and qonnx on random codes of a graph that was understood."""
    if not network.exact:
        return "understood", "float32 is not exact for it"
    random = np.random.default_rng(0)
    values = some_inputs(network, 4, random)
    executed = next(iter(graph.execute(network.file, values).values()))
    codes, lsb = Reference(network.model, network.analysis).run(wire_codes(network, values))
    executed = np.moveaxis(executed, 1, -1) if executed.ndim > 2 else executed
    same = np.array_equal(executed.reshape(4, -1), np.ldexp(codes.astype(np.float64), lsb).reshape(4, -1))
    return ("understood", "reference equals qonnx") if same else ("fault", "reference and qonnx differ")


def work(first: int, count: int) -> None:
    """Judge cases in this process; one line each: seed, kind, verdict, words."""
    for seed in range(first, first + count):
        kind, content = case(seed)
        print("\t".join([str(seed), kind, *(" ".join(word.split()) for word in judge(content))]), flush=True)


def chunk(first: int, count: int) -> list[list[str]]:
    """The same in a process of its own, taken up again behind a case that ends it."""
    rows: list[list[str]] = []
    while len(rows) < count:
        command = [sys.executable, "-m", "pipeline.studies.fuzz_loader", "--work", str(first + len(rows)),
                   "--cases", str(count - len(rows))]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE * count)
            output, end = done.stdout, f"the process ended with code {done.returncode}: {done.stderr[-200:]}"
        except subprocess.TimeoutExpired as error:
            output, end = (error.stdout or b"").decode(), "it does not end"
        rows += [line.split("\t") for line in output.splitlines() if line.count("\t") == 3]
        if len(rows) < count:
            rows.append([str(first + len(rows)), "?", "fault", " ".join(end.split())])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.cases)
        return 0
    began, end = time.monotonic(), arguments.seed + arguments.cases
    size = min(CHUNK * 10, -(-arguments.cases // arguments.processes))
    starts = range(arguments.seed, end, size)
    with ThreadPoolExecutor(arguments.processes) as pool:
        parts = pool.map(lambda first: chunk(first, min(size, end - first)), starts)
        rows = [row for part in parts for row in part]
    counted = Counter((row[1], row[2]) for row in rows)
    for (kind, verdict), number in sorted(counted.items()):
        print(f"{kind:<18} {verdict:<11} {number:>6}")
    faults = [row for row in rows if row[2] == "fault"]
    for row in faults[:20]:
        print(f"fault: seed {row[0]}, {row[1]}: {row[3]}")
    print(f"{len(rows)} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
