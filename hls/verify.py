"""Is a network that was trained anywhere carried to hardware exactly? Asked of a QONNX file and inputs for it.

The file is checked node by node, planned, converted and C-simulated behind its AXI4-Stream wrapper; every output code
is compared with qonnx execution of the file itself, or with the integer reference where float32 is not exact for it.
"""

import json
import tempfile
import zipfile
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import onnxruntime

from boards.errors import SlimgateError
from hls import csim, graph, numerics, onnxfile, scales
from hls.convert import convert, illegal_reuse_factors
from hls.front import front_of, front_operations
from hls.layout import WIRE
from hls.lower import host_operations
from hls.numerics import Analysis, Fixed, NotExact
from hls.plan import make_plan
from hls.reference import Census, Reference

#: Bytes of an array of inputs, unpacked.
LARGEST_INPUTS = 2 * 2**30
#: Transfers of other sizes leave partial pipelines and buffers behind if anything depends on the transfer.
TRANSFERS = {"one transfer": None, "sample by sample": 1, "transfers of 3": 3}
BATCH, FEW = 64, 16


class VerifyError(SlimgateError):
    """Inputs that do not fit the network."""


class Disagreement(SlimgateError):
    """Two software oracles give different codes: nothing can be compared with them."""

    exit_code = 1


class Refused(SlimgateError):
    """A network that breaks conditions of exactness; ``refusals`` holds {"node", "reason", "fix"} for each."""

    def __init__(self, refusals: list[dict], path: Path):
        first, more = refusals[0], refusals[1:]
        what = f"the network cannot be carried to hardware exactly: {len(refusals)} reason(s)"
        lines = [f"\n  node {r['node']}: {r['reason']}\n    change: {r['fix']}" for r in [first, *more]]
        super().__init__(what + "".join(lines), where=path)
        self.refusals = refusals


@dataclass(frozen=True)
class Network:
    """A file that passed every check: ``file`` as it is but for ``host``, the operations at its end that the host runs;
    ``model`` channels-last; the grid of its input codes; ``front``, what the host computes before the wire
    (:mod:`hls.front`), None where it only quantises."""

    file: object
    model: object
    analysis: Analysis
    grid: Fixed
    host: tuple[str, ...]
    front: object = None

    @property
    def factors(self) -> tuple[float, float]:
        """What real input and output values are more than those that are carried (:mod:`hls.scales`); else 1."""
        return scales.factors(self.model)

    @property
    def exact(self) -> bool:
        """Whether qonnx computes this file without rounding: all scales powers of two, all sums within float32."""
        return self.analysis.float32_exact and not self.scaled

    @property
    def scaled(self) -> bool:
        """Whether a scale is no power of two."""
        return self.model.get_metadata_prop(scales.SCALES) is not None

    def execute(self, values: np.ndarray) -> np.ndarray:
        """The file as qonnx runs it on what :func:`read_inputs` gives; its outputs as carried, rows, channels last."""
        before, after = self.factors
        found = next(iter(graph.execute(self.file, values * before if self.front is None else values).values()))
        return _flat(self, found) / after


def examine(path: Path) -> Network:
    """Read a file and check the conditions of exactness. Raises GraphError or :class:`Refused`, whatever it holds."""
    onnxruntime.set_default_logger_severity(3)  # it warns of the opset that qonnx gives single nodes
    file, model = graph.load(path), None
    try:
        model = graph.prepare(file)
        analysis = numerics.analyze(model)
    except NotExact as error:
        raise Refused(refusals(model, error), path) from error
    except SlimgateError:
        raise
    except Exception as error:  # operators in combinations that qonnx's transformations were not written for
        raise graph.GraphError(f"its nodes fit together in a way that is not understood: {onnxfile.first_line(error)}",
                               where=path, fix="simplify the network, or report it with --debug") from error
    if not graph.mac_nodes(model):
        raise graph.GraphError("the network has no convolution and no dense layer", where=path, fix=onnxfile.AGAIN)
    readers = model.find_consumers(model.graph.input[0].name)
    if not readers or not file.find_consumers(file.graph.input[0].name):
        raise graph.GraphError("its output does not depend on its input", where=path, fix=onnxfile.AGAIN)
    host = tuple(done["operation"] for done in host_operations(file))
    network = Network(file, model, analysis, analysis.tensors[readers[0].output[0]], host,
                      front_of(file) if front_operations(model) else None)  # fmt: skip
    _try(network, path)
    return network


def _try(network: Network, path: Path) -> None:
    """Two samples through the file and through the prepared graph: a quantiser hides shapes from onnx's checks, and
    qonnx's transformations are not right for every fork."""
    try:
        values = some_inputs(network, 2, np.random.default_rng(0))
        wanted = network.execute(values)
        moved = np.ldexp(wire_codes(network, values).astype(np.float64), network.grid.lsb)
        found = next(iter(graph.execute(network.model, moved).values())).reshape(len(moved), -1)
    except SlimgateError:
        raise
    except Exception as error:  # onnxruntime raises its own types
        raise graph.GraphError(f"it cannot be executed: {onnxfile.first_line(error)}", where=path,
                               fix=onnxfile.AGAIN) from error  # fmt: skip
    if network.exact and not np.array_equal(wanted, found):
        raise graph.GraphError("its layout cannot be changed to channels last without changing what it computes",
                               where=path, fix="quantise a tensor before it is read by several nodes, or report the "
                                               "network")  # fmt: skip


def some_inputs(network: Network, count: int, random: np.random.Generator) -> np.ndarray:
    """Random input values (count, ...) that a file takes: on its grid, or where the host computes something first
    multiples of 1/256 between -1 and 2."""
    shape = network.file.get_tensor_shape(network.file.graph.input[0].name)[1:]
    grid = network.grid
    low, high, lsb = (grid.min, grid.max, grid.lsb) if network.front is None else (-256, 512, -8)
    return np.ldexp(random.integers(low, high, (count, *shape), endpoint=True).astype(np.float64), lsb)


def refusals(model, first: NotExact) -> list[dict]:
    """Every node that is refused on its own account; what only lacks the result of a refused one is not told.

    ``first``: what :func:`hls.numerics.analyze` said; it is always the first of the list, and all of it where preparing
    the graph was refused already (``model`` None).
    """
    found, analysis, unknown = {first.node: first}, Analysis(), set()
    for node in model.graph.node if model is not None else []:
        lost = unknown & set(node.input)
        try:
            if lost and node.op_type == "Quant":  # whatever arrives, what leaves lies on its grid
                quantizer = numerics.quantizer_of(model, node)
                grid = Fixed(quantizer.lsb, np.array(quantizer.lo), np.array(quantizer.hi))
                analysis.tensors[node.output[0]] = analysis.quantizers[node.name] = grid
            elif lost and (node.op_type in numerics.OPERATORS or node.doc_string):
                unknown |= set(node.output)
            elif node.op_type not in numerics.OPERATORS:
                raise numerics.unknown_operation(node)
            else:
                analysis.tensors[node.output[0]] = numerics.OPERATORS[node.op_type](model, node, analysis)
        except NotExact as error:
            found.setdefault(node.name, error)
            unknown |= set(node.output)
        except Exception:  # noqa: BLE001 - a list that is not complete is better than none
            break
    return [{"node": e.node, "reason": e.reason, "fix": e.fix} for e in found.values()]


# --------------------------------------------------------------------------- inputs


def read_inputs(path: Path, network: Network) -> np.ndarray:
    """Input values of a network from an npz: (N, ...) float64, axes in the order of the file's own input.

    The array is the one called like the network's input, else ``inputs``, else the only one there is. Floats are values
    on the grid of the input quantiser, integers are its codes. Raises :class:`VerifyError` for anything else.
    """
    file = network.file
    array = _array(path, file.get_metadata_prop(graph.INPUT) or file.graph.input[0].name)
    shape = tuple(file.get_tensor_shape(file.graph.input[0].name)[1:])
    if array.dtype.kind not in "fiu":
        raise VerifyError(f"the inputs are of type {array.dtype}", where=path,
                          fix="save float values on the input's grid, or integer codes")  # fmt: skip
    if array.shape[1:] != shape:
        turned = len(shape) > 1 and array.ndim == len(shape) + 1 and array.shape[1:] in set(permutations(shape))
        fix = "put the axes in the model's order (numpy.moveaxis)" if turned else "one row for each sample: (N, ...)"
        raise VerifyError(f"the inputs have shape {array.shape}, the network takes (N, {', '.join(map(str, shape))})",
                          where=path, fix=fix)  # fmt: skip
    if not len(array):
        raise VerifyError("there are no inputs: N is 0", where=path, fix="save at least one sample, better hundreds")
    grid = network.grid
    if network.front is not None and array.dtype.kind != "f":
        raise VerifyError(f"the inputs are integers; before it quantises, the file computes "
                          f"{', '.join(front_operations(network.model)[:-1]) or 'signs'}", where=path,
                          fix="save float values as the file takes them")  # fmt: skip
    if array.dtype.kind == "f":
        values = array.astype(np.float64)
        if not np.all(np.isfinite(values)):
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise VerifyError(f"the inputs hold {values[at]} at {at}", where=path, fix="put finite numbers there")
        if network.front is not None:
            return values  # any numbers: the file itself quantises them
        scale = np.ldexp(network.factors[0], grid.lsb)
        codes = values / scale
        nearest = np.rint(codes)
        rounded = values.astype(np.float32) == (nearest * scale).astype(np.float32)
        codes = np.where(rounded & (network.factors[0] != 1), nearest, codes)  # such values are rounded themselves
        step = f"2**{grid.lsb}" if network.factors[0] == 1 else f"{scale!r}"
        fix = f"quantise on the host first: x = clip(rint(x / {step}), {grid.min}, {grid.max}) * {step}"
    else:
        codes = array.astype(np.float64)
        fix = "save integer codes in that range, or float values"
    wrong = (codes != np.rint(codes)) | (codes < grid.min) | (codes > grid.max)
    if np.any(wrong):
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise VerifyError(
            f"{np.count_nonzero(wrong)} of {array.size} inputs are off the grid of the network's input, whole "
            f"multiples {grid.min}..{grid.max} of 2**{grid.lsb}; the first is {array[at]} at {at}",
            where=path, fix=fix)  # fmt: skip
    return np.ldexp(codes, grid.lsb)


def _array(path: Path, name: str) -> np.ndarray:
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "no such file"
        raise VerifyError(f"there are no inputs: {what}", where=path, fix="numpy.savez(FILE, inputs=x)")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {item.filename.removesuffix(".npy"): item.file_size for item in archive.infolist()}
        key = next((k for k in (name, "inputs") if k in members), None) or next(iter(members), None)
        if key is None or (key not in (name, "inputs") and len(members) > 1):
            keys = ", ".join(members) or "none"
            raise VerifyError(f"no array is called {name!r} or 'inputs'; there are: {keys}", where=path,
                              fix="numpy.savez(FILE, inputs=x)")  # fmt: skip
        if members[key] > LARGEST_INPUTS:
            raise VerifyError(f"the array {key!r} holds {members[key] / 2**30:.1f} GiB; {LARGEST_INPUTS >> 30} are "
                              "taken at most", where=path, fix="give fewer samples")  # fmt: skip
        with np.load(path, allow_pickle=False) as file:
            array = file[key]
    except SlimgateError:
        raise
    except OSError as error:
        raise VerifyError(f"the inputs cannot be read: {error.strerror or onnxfile.first_line(error)}", where=path,
                          fix="make the file readable for you") from error  # fmt: skip
    except Exception as error:  # zipfile, zlib and numpy raise many types for a damaged or pickled file
        pickled = "allow_pickle" in str(error)
        reason = "it holds Python objects, not numbers" if pickled else onnxfile.first_line(error)
        raise VerifyError(f"not a readable npz file: {reason}", where=path,
                          fix="numpy.savez(FILE, inputs=x) with an array of numbers") from error  # fmt: skip
    if array.ndim < 1:
        raise VerifyError("the inputs are a single number", where=path, fix="one row for each sample: (N, ...)")
    return array


# --------------------------------------------------------------------------- compare


def verify(path: Path, inputs: Path, board, *, say=lambda text: None, progress=None) -> dict:
    """Compare every output code of the C simulation with the network's own; return the figures as plain data.

    ``say(text)`` hears what is being done. In the result: "compared" and "mismatches" codes, "modes" the same for each
    way of transferring, "first_divergence" (None where all agree), "oracle", "samples", "plan", "io", "host"
    (operations left to it), "front" (those it does before the wire), "agreement" (where scales make qonnx round: how
    many of its codes are the same, else None), "refused" [] and, for judging diversity, "outputs" (N, K) int64 and
    "census" (:class:`hls.reference.Census`), which are no JSON.
    Raises SlimgateError for what cannot be compared.
    """
    network = examine(path)
    model, analysis = network.model, network.analysis
    values = read_inputs(inputs, network)
    plan = make_plan(model, analysis, board=board, over_budget=True)  # codes do not depend on the room
    if illegal := illegal_reuse_factors(plan):
        raise VerifyError("the plan has illegal reuse factors: " + ", ".join(illegal), where=path, fix="report it")
    codes = wire_codes(network, values)
    oracle = "qonnx" if network.exact else "integer reference"
    say(f"computing {len(codes)} samples by {oracle}")
    census = Census(analysis)
    expected, lsb = Reference(model, analysis).run(codes, visit=census.visit)
    expected = np.ldexp(expected.astype(np.float64), lsb).reshape(len(codes), -1)
    executed, agreement = network.execute(values) if network.exact or network.scaled else None, None
    if network.scaled:  # qonnx rounds, and where it does so near a threshold its code is another
        same = np.rint(np.ldexp(executed, -lsb)) == np.ldexp(expected, -lsb)
        agreement = {"oracle": "qonnx", "compared": int(same.size), "equal": int(np.count_nonzero(same))}
        if 2 * agreement["equal"] < agreement["compared"]:
            raise Disagreement(
                f"only {agreement['equal']} of {agreement['compared']} codes are those of qonnx, which rounds: values "
                "lie where two codes meet, so that rounding decides", where=path,
                fix="use scales that are powers of two, or quantisers whose scales are no such multiples of each other")
    if network.exact and not np.array_equal(executed, expected):
        raise Disagreement("qonnx execution and the integer reference disagree on this network", where=path,
                           fix="report the network: one of the two is wrong")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        say("converting, and compiling the generated C++ (from the cache when unchanged)")
        io = convert(model, analysis, plan, part=board.part, folder=project)
        wanted = _codes(expected, io["output"]["scale_log2"], path)
        library = csim.compile_design(project, io)
        say("C simulation behind the AXI4-Stream wrapper")
        outputs = csim.run(library, codes, io, batch=BATCH, progress=progress)
        runs = [("whole set", np.arange(len(codes)), outputs)]
        few = np.arange(min(FEW, len(codes)))
        runs += [(name, few, csim.run(library, codes[few], io, batch=size)) for name, size in TRANSFERS.items()]
        modes = [{"mode": name, "samples": len(chosen), "compared": int(found.size),
                  "mismatches": int(np.count_nonzero(found != wanted[chosen]))}
                 for name, chosen, found in runs]  # fmt: skip
        diverging = None
        for _, chosen, found in runs:
            wrong = chosen[np.any(found != wanted[chosen], axis=1)]
            if len(wrong):
                diverging = _divergence(project, io, network, codes, wrong)
                break
    return {
        "samples": len(codes), "oracle": oracle, "modes": modes, "first_divergence": diverging, "refused": [],
        "agreement": agreement, "host": list(network.host), "front": front_operations(model),
        **{key: sum(mode[key] for mode in modes) for key in ("compared", "mismatches")},
        "evidence": "simulated", "widest_accumulator": analysis.widest_accumulator,
        "plan": plan["totals"] | {key: plan[key] for key in ("evidence", "fits")}, "io": io, "board": board.name,
        "outputs": outputs, "census": census,
    }  # fmt: skip


def wire_codes(network: Network, values: np.ndarray) -> np.ndarray:
    """Values in the axis order of the file -> int64 codes in that of the wire, channels last."""
    told = json.loads(network.model.get_metadata_prop(WIRE))
    if network.front is not None:
        values = next(iter(graph.execute(network.front, values).values())).astype(np.float64)
        if network.factors[0] != 1:  # codes times a scale that is no power of two, rounded
            values = np.ldexp(np.rint(np.ldexp(values / network.factors[0], -network.grid.lsb)), network.grid.lsb)
    codes = np.ldexp(values, -network.grid.lsb).astype(np.int64)
    codes = codes.reshape(-1, *told.get("shape", codes.shape[1:])).transpose(told["axes"])
    # one dimension is carried as a picture of height 1
    return np.ascontiguousarray(codes).reshape(-1, *graph.input_shape(network.model))


def _flat(network: Network, values: np.ndarray) -> np.ndarray:
    """Outputs of a file as rows in the order of the wire, channels last."""
    told = json.loads(network.model.get_metadata_prop(WIRE))["output"]
    return values.reshape(-1, *told["shape"]).transpose(told["axes"]).reshape(len(values), -1).astype(np.float64)


def _codes(values: np.ndarray, lsb: int, path: Path) -> np.ndarray:
    scaled = np.ldexp(values, -lsb)
    if not np.array_equal(scaled, np.rint(scaled)):
        raise VerifyError(f"the network's outputs are no multiples of 2**{lsb}, the grid of the hardware's", where=path,
                          fix="report the network: a range was derived wrongly")  # fmt: skip
    return scaled.astype(np.int64)


def _divergence(project: Path, io: dict, network: Network, codes: np.ndarray, wrong: np.ndarray) -> dict:
    """Where the first wrong samples leave the network: a layer, or the wrapper where every layer agrees."""
    layers = json.loads((project / "layers.json").read_text())
    found = csim.first_divergence(project, io, network.model, network.analysis, layers, codes[wrong[:4]])
    if found is None:
        text = f"each layer agrees on sample {wrong[0]}: the fault lies in the wrapper or the stream"
        return {"name": None, "sample": int(wrong[0]), "text": text}
    sample = int(wrong[found["sample"]])
    return found | {"sample": sample, "text": csim.told(found, f"sample {sample}")}
