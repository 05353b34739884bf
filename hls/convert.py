"""A prepared QONNX graph and its plan become a Vitis HLS project: hls4ml's C++ plus our AXI4-Stream wrapper.

The only module that imports hls4ml, and it insists on the one version whose behavior is known: hls4ml accepts
``bit_exact`` for ONNX and ignores it, corrects reuse factors silently and falls back to default types. So every type is
derived here from :mod:`hls.numerics`, and what hls4ml made of it is read back and checked before anything is written.
"""

import contextlib
import copy
import hashlib
import io
import json
import math
import re
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np

from boards.errors import SlimgateError
from hls import generated, scales
from hls.generated import PROJECT
from hls.graph import data_tensors, input_shape, pools_all
from hls.numerics import (
    MOST_COMPARED,
    Analysis,
    Fixed,
    attributes,
    pad_amounts,
    quantizer_of,
    resize_factors,
    threshold_codes,
    threshold_levels,
)

HLS4ML_VERSION = "1.3.0"
BEAT_BYTES = 8
TEMPLATES = Path(__file__).parent / "templates"


class ConvertError(SlimgateError):
    """hls4ml did not make of the network what was asked."""

    exit_code = 1


def convert(model, analysis: Analysis, plan: dict, *, part: str, folder: Path) -> dict:
    """Write the project for a prepared graph into ``folder``; return the wire description (``io.json``).

    ``plan``: :func:`hls.plan.make_plan`; strategies, reuse factors and FIFO depths are read back as planned.

    ``folder/firmware`` holds hls4ml's C++ with the weights inside, ``folder`` the wrapper, ``layers.json`` which stream
    carries which tensor, ``hls.tcl`` what Vitis HLS runs. "factor" of a side: what real values are more than
    ``code * 2**scale_log2``, where a scale is no power of two. Deterministic: equal input gives equal bytes.
    """
    installed = version("hls4ml")
    if installed != HLS4ML_VERSION:
        raise ConvertError(
            f"hls4ml {installed} is installed; its types and rules were proven for {HLS4ML_VERSION}",
            where="hls/convert.py",
            fix=f"pip install hls4ml=={HLS4ML_VERSION}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()) as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _to_hls4ml(model, analysis, plan, part, folder)
    _order_depthwise_weights(graph)
    layers = _check(graph, model, analysis, plan)
    with contextlib.redirect_stdout(log), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph.write()
    _keep_only_firmware(folder)
    if any(n.op_type == "MaxPool" and _overlaps(n) for n in model.graph.node):
        _any_pooling_stride(folder)
    _check_weight_files(graph, folder)
    (folder / "layers.json").write_text(json.dumps(layers, indent=1) + "\n")
    return _write_wrapper(graph, model, analysis, plan, part, folder)


# --------------------------------------------------------------------------- hls4ml


def predictor(model, analysis: Analysis, plan: dict, *, part: str, folder: Path):
    """hls4ml's own C simulation of the same network, compiled: a function from values (N, *shape) to values.

    Only for comparisons; the proofs of this project run :mod:`hls.csim`.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = _to_hls4ml(model, analysis, plan, part, folder)
        graph.compile()
    return lambda values: graph.predict(np.ascontiguousarray(values, dtype=np.float32))


def illegal_reuse_factors(plan: dict) -> list[str]:
    """The layers of a plan whose reuse factor hls4ml itself would change, by its own rule."""
    import hls4ml

    backend = hls4ml.backends.get_backend("Vitis")
    return [
        f"{row['name']}: {row['reuse_factor']}"
        for row in plan["layers"]
        if row["strategy"] == "Resource"  # Latency takes any
        and not backend._validate_reuse_factor(row["n_in"], row["n_out"], row["reuse_factor"])
    ]


def _to_hls4ml(model, analysis: Analysis, plan: dict, part: str, folder: Path):
    import hls4ml

    _install_dense_results()
    _install_own_layers()
    _dense_results.clear()
    for node in model.graph.node:
        if node.op_type == "MatMul":
            users = model.find_consumers(node.output[0]) or []
            last = (
                users[0] if len(users) == 1 and users[0].op_type == "Add" and _is_dense_bias(model, users[0]) else node
            )
            after = model.find_consumers(last.output[0]) or []
            if not (len(after) == 1 and after[0].op_type == "Quant"):  # hls4ml merges the two into one
                _dense_results[f"Dense_{node.name}"] = analysis.tensors[last.output[0]].precision()
    config = {
        "Model": {"Precision": {"default": "fixed<62,31>"}, "ReuseFactor": 1, "Strategy": "Resource"},
        "LayerName": _layer_config(model, analysis, plan),
    }
    try:
        return hls4ml.converters.convert_from_onnx_model(
            _without_input_quantizer(model, analysis),
            output_dir=str(folder),
            project_name=PROJECT,
            backend="Vitis",
            io_type="io_stream",
            hls_config=config,
            part=part,
            clock_period=1000 / plan["clock_mhz"],
            write_weights_txt=True,
        )
    except Exception as error:  # hls4ml raises bare Exception, AssertionError, KeyError, ... for what it cannot convert
        raise ConvertError(
            f"hls4ml {HLS4ML_VERSION} cannot convert this network: {type(error).__name__}: {error}",
            where=folder,
            fix="run slimgate with --debug and report the network",
        ) from error


#: Result types of dense layers, read by the pass below while a conversion runs.
_dense_results: dict[str, str] = {}


def _install_dense_results() -> None:
    """Teach hls4ml to give a dense layer its derived result type *after* its bias was fused into it.

    hls4ml fuses a bias only into a layer without a result type, and then infers a needlessly wide one.
    """
    from hls4ml.model.flow import update_flow
    from hls4ml.model.layers import BatchNormalization, Dense
    from hls4ml.model.optimizer import OptimizerPass, get_available_passes, register_pass

    class GiveDenseResults(OptimizerPass):
        def match(self, node):
            if not isinstance(node, Dense) or node.name not in _dense_results:
                return False
            if any(isinstance(user, BatchNormalization) for user in node.get_output_nodes()):
                return False  # the bias is not fused yet
            return node.get_output_variable().type.precision != self._wanted(node)

        def transform(self, model, node):
            node.get_output_variable().type.precision = self._wanted(node)
            return False

        @staticmethod
        def _wanted(node):
            return node.model.config.backend.convert_precision_string(_dense_results[node.name])

    if "slimgate_give_dense_results" not in get_available_passes():
        register_pass("slimgate_give_dense_results", GiveDenseResults)
        update_flow("convert", add_optimizers=["slimgate_give_dense_results"])


#: Layers of our own, their C++ in ``templates/layers/nnet_<function>.h``: class name -> function of namespace nnet.
#: Whole numbers that a node carries become members of the function's configuration, under their names.
OWN_LAYERS = {"MultiThreshold": "multithreshold", "ThresholdSearch": "threshold_search", "PadWith": "pad_with",
              "Upsample": "upsample", "WholeMax": "whole_max"}  # fmt: skip


def _install_own_layers() -> None:
    """Teach hls4ml the nodes that :func:`_own_nodes` makes, once for a process."""
    import hls4ml
    from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
    from hls4ml.converters.onnx_to_hls import get_supported_onnx_layers, register_onnx_layer_handler
    from hls4ml.model.attributes import Attribute, TypeAttribute, WeightAttribute
    from hls4ml.model.layers import Layer, register_layer

    if "SlimgateMultiThreshold" in get_supported_onnx_layers():
        return
    backend = hls4ml.backends.get_backend("Vitis")

    def parse(node, input_names, input_shapes, graph):
        options = {k: v for k, v in attributes(node).items() if k != "thresholds"}
        given = {"name": node.name, "class_name": node.op_type, "inputs": input_names, "outputs": list(node.output),
                 "members": sorted(set(options) - {"out_shape"}), **options}
        if "thresholds" in attributes(node):
            values = np.array(attributes(node)["thresholds"], np.float64)
            given["thresholds_data"] = values.reshape(options["n_chan"], -1)
        return given

    class Own(Layer):
        def initialize(self):
            self.add_output_variable(list(self.get_attr("out_shape")))
            if self.get_attr("thresholds_data") is not None:
                self.add_weights_variable(name="thresholds", var_name="t{index}")

    for name, function in OWN_LAYERS.items():
        weighted = name in ("MultiThreshold", "ThresholdSearch")
        expected = [Attribute("members", value_type=list), Attribute("out_shape", value_type=list)]
        if weighted:
            expected += [WeightAttribute("thresholds"), TypeAttribute("thresholds")]
        layer = type(f"Slimgate{name}", (Own,), {"_expected_attributes": expected})

        class Config(LayerConfigTemplate):
            def __init__(self, layer=layer, function=function):
                super().__init__(layer)
                self.function = function

            def format(self, node):
                members = "".join(f"    static const int {name} = {node.get_attr(name)};\n"
                                  for name in node.get_attr("members"))
                weights = f"    typedef {node.types['thresholds_t'].name} thresholds_t;\n" if node.weights else ""
                return f"struct config{node.index} : nnet::{self.function}_config {{\n{members}{weights}}};\n"

        class Call(FunctionCallTemplate):
            def __init__(self, layer=layer, function=function):
                super().__init__(layer, include_header=[f"nnet_utils/nnet_{function}.h"])
                self.template = "nnet::" + function + "<{input_t}, {output_t}, {config}>({input}, {output}{more});"

            def format(self, node):
                more = "".join(f", {weights.name}" for weights in node.get_weights())
                return self.template.format(**self._default_function_params(node), more=more)

        register_onnx_layer_handler(f"Slimgate{name}", parse)
        register_layer(f"Slimgate{name}", layer)
        backend.register_template(Config)
        backend.register_template(Call)
        backend.register_source(TEMPLATES / "layers" / f"nnet_{function}.h")


def _order_depthwise_weights(graph) -> None:
    """Turn back what hls4ml turns wrongly: of Resource strategy, it transposes the weights of a depthwise convolution
    as those of a dense one, from (H, W, 1, C) to (C, H, W, 1), but its product reads them pixel by pixel."""
    for layer in graph.get_layers():
        if layer.class_name == "DepthwiseConv2D" and layer.get_attr("_weights_transposed"):
            weights = layer.weights["weight"]
            weights.data = np.ascontiguousarray(np.transpose(weights.data, (1, 2, 3, 0)))
            layer.set_attr("_weights_transposed", False)


def _own_nodes(model, analysis: Analysis) -> None:
    """Nodes for layers of our own: hls4ml makes a layer of every constant input, so constants become attributes."""
    from onnx import helper

    for node in model.graph.node:
        if node.op_type not in ("MultiThreshold", "Pad", "Resize") and not pools_all(model, node):
            continue
        shape = model.get_tensor_shape(node.input[0])
        if node.op_type == "MultiThreshold":
            values = np.asarray(model.get_initializer(node.input[1]), np.float64)
            values = np.broadcast_to(values, (shape[-1], values.shape[1]))
            _, base, step = threshold_levels(node)
            told = {"n_in": math.prod(shape[1:]), "n_chan": shape[-1], "n_steps": values.shape[1], "base": base,
                    "step": step, "thresholds": [float(v) for v in values.ravel()]}  # fmt: skip
            name = "MultiThreshold"
            if values.shape[1] > MOST_COMPARED:
                name, told["n_bits"] = "ThresholdSearch", values.shape[1].bit_length()
        elif node.op_type == "MaxPool":
            name, told = "WholeMax", {"pixels": math.prod(shape[1:-1])}
        elif node.op_type == "Pad":
            (top, left, bottom, right), value = pad_amounts(model, node)
            code = int(np.ldexp(value, -analysis.tensors[node.input[0]].lsb))
            name, told = "PadWith", {"in_height": shape[1], "in_width": shape[2], "pad_top": top, "pad_left": left,
                                     "pad_bottom": bottom, "pad_right": right, "value": code}
        else:
            down, across = resize_factors(model, node)
            name, told = "Upsample", {"height": shape[1], "width": shape[2], "factor_height": down,
                                      "factor_width": across}
        told["out_shape"] = model.get_tensor_shape(node.output[0])[1:]
        node.op_type, node.domain = f"Slimgate{name}", ""
        del node.input[1:], node.attribute[:]
        node.attribute.extend(helper.make_attribute(key, value) for key, value in told.items())


def _without_input_quantizer(model, analysis: Analysis):
    """The host quantises: codes arrive on the input quantiser's grid, so the Quant node would be a wire."""
    model = copy.deepcopy(model)
    name = model.graph.input[0].name
    first = model.find_consumers(name)
    if len(first) != 1 or first[0].op_type != "Quant":
        raise ConvertError(
            "the network's input does not go through exactly one quantiser",
            where=f"input {name}",
            fix="put one Brevitas QuantIdentity in front of the network",
        )
    for node in model.graph.node:
        for index, source in enumerate(node.input):
            if source == first[0].output[0]:
                node.input[index] = name
    model.graph.node.remove(first[0])
    _own_nodes(model, analysis)
    used = {name for node in model.graph.node for name in node.input}
    for unused in [i for i in model.graph.initializer if i.name not in used]:
        model.graph.initializer.remove(unused)
    return model


#: What hls4ml's passes put in front of a node's name.
_PREFIXES = {"Conv": ("", "Conv2D_", "DepthwiseConv2D_"), "MatMul": ("", "Dense_"), "Add": ("", "bn_")}


def _layer_config(model, analysis: Analysis, plan: dict) -> dict:
    """hls4ml's per-layer settings, under the node's name and the names its passes will give it.

    A result that only feeds a quantiser is left to hls4ml ('auto'), which then merges the two into one process; every
    other result gets the smallest type that holds all its values.
    """
    planned = {row["name"]: row for row in plan["layers"]}
    name = model.graph.input[0].name
    settings = {name: {"Precision": {"result": analysis.tensors[model.find_consumer(name).output[0]].precision()}}}
    moving = data_tensors(model)
    for node in model.graph.node:
        if node.output[0] not in moving or node.op_type == "Quant":
            continue
        precision = {"result": analysis.tensors[node.output[0]].precision()}
        users = model.find_consumers(node.output[0]) or []
        merges = node.op_type in ("Conv", "MatMul", "Relu") and len(users) == 1 and users[0].op_type == "Quant"
        bias = node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add"
        if merges or bias or (node.op_type == "Add" and _is_dense_bias(model, node)):
            precision["result"] = "auto"
        if node.name in analysis.accumulators:
            precision["accum"] = analysis.accumulators[node.name].precision()
        elif node.op_type == "MultiThreshold":
            precision["thresholds"] = _threshold_type(model, node, analysis).precision()
        elif node.op_type == "MaxPool":
            precision["accum"] = precision["result"]
        entry = {"Precision": precision}
        if node.name in planned:
            row = planned[node.name]
            entry |= {"ReuseFactor": row["reuse_factor"], "Strategy": row["strategy"]}
        for prefix in _PREFIXES.get(node.op_type, ("",)):
            settings[prefix + node.name] = entry
    return settings


def _threshold_type(model, node, analysis: Analysis) -> Fixed:
    lsb = analysis.tensors[node.input[0]].lsb
    codes = threshold_codes(model, node, lsb)
    return Fixed(lsb, codes.min(), codes.max())


def _is_dense_bias(model, node) -> bool:
    producer = model.find_producer(node.input[0])
    return producer is not None and producer.op_type == "MatMul" and node.input[1] not in data_tensors(model)


def _tensor_of(name: str) -> str:
    """The graph's tensor behind an hls4ml output; Clone appends _cpy1, _cpy2, ..."""
    return re.sub(r"_cpy\d+$", "", name)


def _fixed_of(precision) -> tuple[int, int, int]:
    """(lsb, lowest code, highest code) of an hls4ml precision."""
    width = precision.width
    low = -(1 << (width - 1)) if precision.signed else 0
    return getattr(precision, "integer", width) - width, low, (1 << (width - bool(precision.signed))) - 1


def _holds(precision, wanted: Fixed) -> bool:
    lsb, low, high = _fixed_of(precision)
    if lsb > wanted.lsb:
        return False
    fine = wanted.at(lsb)
    return low <= fine.min and fine.max <= high


def _check(graph, model, analysis: Analysis, plan: dict) -> list[dict]:
    """Read back every type, reuse factor and weight; return one row per layer (name, tensor, stream, type)."""
    quantizers = {
        n.output[0]: quantizer_of(model, n)
        for n in model.graph.node
        if n.op_type == "Quant" and n.output[0] not in analysis.constants
    }
    planned = {row["name"]: row for row in plan["layers"]}
    done, rows = set(), []
    written = {_tensor_of(layer.outputs[0]) for layer in graph.get_layers()}
    for layer in graph.get_layers():
        variable = layer.get_output_variable()
        precision = variable.type.precision
        # padding adds zeros, which every grid has: it carries its input
        tensor = _tensor_of(layer.inputs[0] if layer.class_name.startswith("ZeroPadding") else layer.outputs[0])
        source = layer.name.removeprefix("Depthwise").removeprefix("Conv2D_").removeprefix("Dense_")
        if tensor == model.graph.input[0].name:
            tensor = model.find_consumer(tensor).output[0]
        users = model.find_consumers(tensor) or []
        if len(users) == 1 and users[0].op_type == "Add" and _is_dense_bias(model, users[0]):
            tensor = users[0].output[0]  # hls4ml fused the bias into the dense layer
            users = model.find_consumers(tensor) or []
        if len(users) == 1 and users[0].output[0] in quantizers and users[0].output[0] not in written:
            tensor = users[0].output[0]  # hls4ml merged the quantiser into this layer
        if tensor not in analysis.tensors:
            raise ConvertError(
                f"hls4ml made a layer {layer.name} ({layer.class_name}) that has no counterpart in the graph",
                where=f"tensor {tensor}",
                fix="report the network: this pass of hls4ml is not known here",
            )
        _check_result(layer, precision, tensor, analysis.tensors[tensor], quantizers.get(tensor))
        if source in planned:
            done.add(source)
            _check_arithmetic(layer, source, planned[source], analysis)
            if layer.class_name == "DepthwiseConv2D":
                node = next(node for node in model.graph.node if node.name == source)
                _check_depthwise_order(layer, source, *analysis.constants[node.input[1]])
        elif "accum_t" in layer.types and not _holds(layer.types["accum_t"].precision, analysis.tensors[tensor]):
            raise ConvertError(
                f"layer {layer.name}: type {layer.types['accum_t'].precision} is too narrow", where=tensor
            )
        if layer.class_name in ("SlimgateMultiThreshold", "SlimgateThresholdSearch"):
            _check_weights(layer, source)
        rows.append(
            {
                "name": source,
                "class": layer.class_name.removeprefix("Slimgate"),
                "tensor": tensor,
                "stream": variable.name,
                "shape": [int(s) for s in variable.shape],
                "precision": str(precision),
                "reuse_factor": int(layer.get_attr("reuse_factor") or 1) if source in planned else None,
                "strategy": planned[source]["strategy"] if source in planned else None,
            }
        )
    missing = sorted(set(planned) - done)
    if missing:
        raise ConvertError(f"hls4ml dropped layer {missing[0]}", where="hls4ml's layer list")
    return rows


def _check_result(layer, precision, tensor: str, wanted: Fixed, quantizer) -> None:
    passes_on = layer.class_name in ("Input", "Clone") or layer.class_name.startswith("ZeroPadding")
    if quantizer is not None and not passes_on:
        lsb, low, high = _fixed_of(precision)
        rounding = {"ROUND": "RND_CONV", "FLOOR": "TRN"}[quantizer.rounding]
        narrow = quantizer.lo == -quantizer.hi and quantizer.lo < 0
        saturation = "SAT_SYM" if narrow else "SAT"
        same = (
            lsb == quantizer.lsb
            and high == quantizer.hi
            and (low == quantizer.lo or narrow)
            and precision.rounding_mode.name == rounding
            and precision.saturation_mode.name == saturation
        )
        if not same:
            raise ConvertError(
                f"layer {layer.name} quantises to {precision}, the network to codes "
                f"{quantizer.lo}..{quantizer.hi} on 2**{quantizer.lsb} by {quantizer.rounding}",
                where=tensor,
            )
    elif not _holds(precision, wanted):
        raise ConvertError(
            f"layer {layer.name} writes {precision}, which cannot hold {wanted.min}..{wanted.max} on 2**{wanted.lsb}",
            where=tensor,
        )


def _check_arithmetic(layer, source: str, row: dict, analysis: Analysis) -> None:
    if layer.get_attr("reuse_factor") != row["reuse_factor"]:
        raise ConvertError(
            f"hls4ml changed the reuse factor {row['reuse_factor']} to {layer.get_attr('reuse_factor')}",
            where=f"layer {source}",
            fix="the plan must use legal reuse factors only",
        )
    if layer.get_attr("strategy") != row["strategy"].lower():
        raise ConvertError(
            f"hls4ml changed the strategy {row['strategy']} to {layer.get_attr('strategy')}", where=f"layer {source}"
        )
    accumulator = layer.types["accum_t"].precision
    if not _holds(accumulator, analysis.accumulators[source]):
        wanted = analysis.accumulators[source]
        raise ConvertError(
            f"its accumulator {accumulator} cannot hold every partial sum ({wanted.min}..{wanted.max} on "
            f"2**{wanted.lsb})",
            where=f"layer {source}",
        )
    _check_weights(layer, source)


def _check_depthwise_order(layer, source: str, codes: np.ndarray, lsb: int) -> None:
    wanted = np.ldexp(codes.astype(np.float64), lsb).transpose(1, 2, 3, 0).ravel()
    if not np.array_equal(np.ravel(layer.weights["weight"].data), wanted):
        raise ConvertError("the weights of a depthwise convolution are not in the order its product reads",
                           where=f"layer {source}", fix="report the network")


def _check_weights(layer, source: str) -> None:
    for weights in layer.get_weights():
        lsb, low, high = _fixed_of(weights.type.precision)
        codes = np.ldexp(np.asarray(weights.data, np.float64), -lsb)
        if np.any(codes != np.round(codes)) or codes.min() < low or codes.max() > high:
            raise ConvertError(
                f"{weights.name} does not fit its type {weights.type.precision}", where=f"layer {source}"
            )


def _check_weight_files(graph, folder: Path) -> None:
    """hls4ml prints weights as decimals, once for synthesis and once for the vendor's C simulation: both must read back
    as exactly the numbers they were."""
    for weights in graph.get_weight_variables():
        header, text = read_weights(folder, weights.name)
        wanted = np.ravel(np.asarray(weights.data, np.float64))
        if not np.array_equal(header, wanted) or not np.array_equal(text, wanted):
            raise ConvertError(f"weights/{weights.name} does not read back as the network's weights", where=folder)


def read_weights(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers printed in ``firmware/weights/<name>.h`` (synthesis) and ``.txt`` (vendor C simulation)."""
    header = (folder / "firmware" / "weights" / f"{name}.h").read_text()
    body = re.search(r"=\s*\{(.*?)\}\s*;", header, re.S)
    text = (folder / "firmware" / "weights" / f"{name}.txt").read_text()
    try:
        return tuple(np.array([float(v) for v in numbers.split(",")]) for numbers in (body.group(1), text))
    except (AttributeError, ValueError) as error:
        raise ConvertError(
            f"weights/{name} is damaged: {error}", where=folder, fix="run the convert stage again"
        ) from error


def _overlaps(node) -> bool:
    options = attributes(node)
    return list(options.get("strides", [1, 1])) != list(options["kernel_shape"])


def _any_pooling_stride(folder: Path) -> None:
    """hls4ml asserts that pooling windows do not overlap; its line buffer is right for every stride, as tests show."""
    path = folder / "firmware" / "nnet_utils" / "nnet_pooling_stream.h"
    head, found, body = path.read_text().partition("void pooling2d_cl(")
    rule = re.compile(r" *assert\(CONFIG_T::pool_height == CONFIG_T::stride_height[^\n]*\n")
    changed, count = rule.subn("", body, count=1)
    if not found or count != 1:
        raise ConvertError("nnet_pooling_stream.h is not the one of hls4ml 1.3.0", where=path)
    path.write_text(head + found + changed)


def _keep_only_firmware(folder: Path) -> None:
    """hls4ml's test bench, bridge and Tcl carry a random stamp and are not used; ours stand in their place."""
    for path in folder.iterdir():
        if path.name != "firmware":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --------------------------------------------------------------------------- wrapper


def container_bytes(bits: int) -> int:
    """The smallest of 1, 2, 4, 8 bytes that holds a code."""
    return next(size for size in (1, 2, 4, 8) if bits <= 8 * size)


def _write_wrapper(graph, model, analysis: Analysis, plan: dict, part: str, folder: Path) -> dict:
    input_type = graph.get_input_variables()[0].type.precision
    result = graph.get_output_variables()[0]
    precision, shape = result.type.precision, [int(s) for s in result.shape]
    lsb = _fixed_of(precision)[0]
    in_shape, in_bytes, out_bytes = (
        input_shape(model),
        container_bytes(input_type.width),
        container_bytes(precision.width),
    )
    if BEAT_BYTES % in_bytes or not _holds(precision, analysis.tensors[model.graph.output[0].name]):
        raise ConvertError("the output type does not hold the network's outputs", where=str(precision))
    values = {
        "project": PROJECT,
        "part": part,
        "clock_period_ns": 1000 / plan["clock_mhz"],
        "in_shape": list(in_shape),
        "out_count": math.prod(shape),
        "in_container_bits": 8 * in_bytes,
        "in_tokens": math.prod(in_shape[:-1]),
        "in_channels": in_shape[-1],
        "out_container_bits": 8 * out_bytes,
        "out_tokens": math.prod(shape[:-1]),
        "out_channels": shape[-1],
        "out_signed": bool(precision.signed),
    }
    render(("slimgate_axis.h", "slimgate_axis.cpp", "hls.tcl"), values, folder)
    generated.set_depths(folder, {name: row["depth"] for name, row in plan["fifo"].items()})
    before, after = scales.factors(model)
    beats = lambda count, size: -(-count * size // BEAT_BYTES)  # noqa: E731
    return {
        "beat_bytes": BEAT_BYTES,
        "input": {
            "shape": list(in_shape),
            "bits": input_type.width,
            "signed": bool(input_type.signed),
            "container_bytes": in_bytes,
            "scale_log2": _fixed_of(input_type)[0],
            "beats": beats(math.prod(in_shape), in_bytes),
            **({} if before == 1 else {"factor": before}),
        },
        "output": {
            "shape": shape,
            "bits": precision.width,
            "signed": bool(precision.signed),
            "container_bytes": out_bytes,
            "scale_log2": lsb,
            "beats": beats(math.prod(shape), out_bytes),
            **({} if after == 1 else {"factor": after}),
        },
        "design_digest": digest(folder),
    }


def render(names, values: dict, folder: Path) -> None:
    """Render templates ``<name>.j2``; an undefined variable is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    for name in names:
        (folder / name).write_text(environment.get_template(f"{name}.j2").render(values))


def digest(folder: Path) -> str:
    """SHA-256 over every file of the project, names included: the identity a board must answer with."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return total.hexdigest()
