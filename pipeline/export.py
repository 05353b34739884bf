"""The trained twin as a QONNX file, and the proof that executing the file gives the twin's own integers."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from brevitas.export import export_qonnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.registry import getCustomOp

from boards.errors import SlimgateError
from hls.graph import with_batch
from pipeline.golden import values_to_codes

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


def qonnx_execute(
    model: ModelWrapper, codes: np.ndarray, input_scale_log2: int, output_scale_log2: int,
    *, batch: int = 128, dtype=np.float32, progress=lambda items, label: items,
) -> np.ndarray:  # fmt: skip
    """Output codes (N, K) int64 of a cleaned QONNX graph for input codes (N, C, H, W).

    ``dtype`` float64 computes the whole graph in double precision: needed where accumulators may reach 2**24 units.
    Raises NotIntegral when an output lies off its grid; there is no tolerance anywhere.
    """
    name, result = model.graph.input[0].name, model.graph.output[0].name
    sized: dict[int, ModelWrapper] = {}
    outputs = []
    for start in progress(range(0, len(codes), batch), "qonnx"):
        values = np.ldexp(codes[start : start + batch].astype(dtype), input_scale_log2)
        if len(values) not in sized:
            sized[len(values)] = with_batch(model, len(values))
        run = _execute_float64 if dtype == np.float64 else execute_onnx
        outputs.append(run(sized[len(values)], {name: values})[result])
        if outputs[-1].dtype != dtype:
            raise ExportError(f"the graph was executed in {outputs[-1].dtype}, not in {np.dtype(dtype)}")
    return values_to_codes(np.concatenate(outputs), output_scale_log2)


def _execute_float64(model: ModelWrapper, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What qonnx's execution does, in double precision: its own Quant, and ONNX's reference operators.

    onnxruntime, which qonnx calls for standard operators, has no convolution in double precision.
    """
    context = dict(inputs)
    for item in model.graph.initializer:
        value = numpy_helper.to_array(item)
        context[item.name] = value.astype(np.float64) if value.dtype == np.float32 else value
    opsets = [item for item in model.model.opset_import if item.domain == ""]
    for node in model.graph.node:
        if node.domain:
            getCustomOp(node).execute_node(context, model.graph)
            # Quant rounds in double but hands out float32, which holds its few-bit codes exactly.
            context[node.output[0]] = context[node.output[0]].astype(np.float64)
        else:
            infos = [onnx.helper.make_empty_tensor_value_info(name) for name in (*node.input, *node.output) if name]
            graph = onnx.helper.make_graph([node], "one", infos[: len(node.input)], infos[len(node.input) :])
            single = onnx.helper.make_model(graph, opset_imports=opsets)
            made = ReferenceEvaluator(single).run(None, {name: context[name] for name in node.input if name})
            context.update(zip(node.output, made, strict=True))
    return context


def compared(total: int, asked: int) -> np.ndarray:
    """Indices of the pictures of a test set that are executed in QONNX, spread evenly.

    All of up to 2,000; of a larger set ``asked``, at least 200, or 1,000 where ``asked`` is 0.
    """
    wanted = min(total, max(asked or (total if total <= 2000 else 1000), 200))
    return np.unique(np.linspace(0, total - 1, wanted).round().astype(np.int64)) if total else np.arange(0)
