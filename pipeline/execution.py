"""Executing a QONNX file: the integers it computes, without any tolerance. No torch, no Brevitas."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.registry import getCustomOp

from boards.errors import SlimgateError
from hls.graph import with_batch
from pipeline.golden import values_to_codes


class ExecutionError(SlimgateError):
    """A graph was not executed as it was asked to be."""


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
            raise ExecutionError(f"the graph was executed in {outputs[-1].dtype}, not in {np.dtype(dtype)}")
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
