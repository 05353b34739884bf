"""The trained twin as a QONNX file, and the proof that executing the file gives the twin's own integers."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from brevitas.export import export_qonnx

from boards.errors import SlimgateError

#: What the inputs of a Conv or Gemm node are.
_PARAMETERS = {1: "weight", 2: "bias"}


class ExportError(SlimgateError):
    """The exported graph is not what the rest of the chain understands."""


def export(quantized: torch.nn.Module, input_shape, file: Path) -> None:
    """Write a twin as QONNX, for one picture (1, C, H, W). The same twin gives the same bytes.

    Nodes and tensors are named after the modules they come from (``block1.conv1``, ``block1.conv1.weight``), so that a
    layer keeps its name down to the hardware. Stack traces, paths and descriptions are left out.
    """
    # The exporter may refuse or alter a network in training mode, and prints its progress.
    quantized = quantized.eval()
    with tempfile.TemporaryDirectory() as folder, _silence():
        raw = Path(folder) / "raw.onnx"
        export_qonnx(quantized, args=torch.zeros(1, *input_shape), export_path=str(raw), verbose=False)
        model = onnx.load(raw)
    file.write_bytes(canonical(model).SerializeToString(deterministic=True))


def canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name nodes and tensors after their modules and drop everything that is not the network."""
    graph = model.graph
    constants = {item.name for item in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    modules = [_module(node) for node in graph.node]
    renamed: dict[str, str] = {info.name: "input" for info in graph.input}
    taken = set(renamed.values())

    def rename(old: str, new: str) -> None:
        base, number = new, 2
        while new in taken:
            new, number = f"{base}_{number}", number + 1
        taken.add(new)
        renamed[old] = new

    producers = {node.output[0]: node for node in graph.node}
    for node, module in zip(graph.node, modules, strict=True):
        node.name = f"{module}.{node.op_type}"
        rename(node.output[0], "output" if node.output[0] == graph.output[0].name else node.name)
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            for index, kind in _PARAMETERS.items():
                source = node.input[index] if index < len(node.input) else None
                while source in producers:
                    source = producers[source].input[0]
                if source in constants:
                    rename(source, f"{module}.{kind}")
    for item in graph.initializer:
        if item.name not in renamed:
            rename(item.name, f"constant_{len(renamed)}")
        item.name = renamed[item.name]
        item.ClearField("doc_string")
    for info in [*graph.input, *graph.output]:
        info.name = renamed[info.name]
        info.ClearField("doc_string")
        info.ClearField("metadata_props")
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    # Shapes of inner tensors are inferred again by whoever loads the file.
    del graph.value_info[:]
    graph.name = "network"
    for proto in (model, graph):
        proto.ClearField("doc_string")
        proto.ClearField("metadata_props")
    ordered = sorted(graph.initializer, key=lambda item: item.name)
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    return model


def _module(node: onnx.NodeProto) -> str:
    """Path of the module a node was traced in; the exporter records ["", "conv1", "conv1.weight_quant", ...]."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), None)
    if scopes is None:
        raise ExportError(
            f"node {node.name} does not tell which module it comes from",
            fix="export with the pinned versions of torch and brevitas",
        )
    path = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    inner = [part for part in path[1:-1] if "export_handler" not in part and "fused_activation" not in part]
    return inner[-1] if inner else "network"


@contextlib.contextmanager
def _silence():
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
