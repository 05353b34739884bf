"""Which channels must go together, and a network without them.

Union-find over single channels on a torch.fx trace. Every layer that makes channels (convolution, linear) makes fresh
ones; every operation says which channels its output has. An add unites the channels it adds, a depthwise convolution
the ones it maps, a concatenation lines them up, a flatten repeats each for its block of features. What is united
lives and dies together, so residual, concatenated and flattened networks need no rules of their own.

Channels of the network's inputs and outputs are never trimmed. An operation that is not in the lists below is refused
by name: guessing what it does to channels would give a network that computes something else.
"""

from __future__ import annotations

import math
import operator
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from boards.errors import SlimgateError

ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.PReLU,
)  # fmt: skip
SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
POOL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)

ACTIVATION_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish, F.hardsigmoid,
    F.sigmoid, F.tanh, F.softplus, torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_",
}  # fmt: skip
SAME_FUNCTIONS = {F.dropout, F.dropout2d, "contiguous", "clone", "detach"}
POOL_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, torch.max_pool1d, torch.max_pool2d, torch.avg_pool1d,
}  # fmt: skip
ADD_FUNCTIONS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    torch.add,
    torch.sub,
    "add",
    "add_",
    "sub",
}
SCALE_FUNCTIONS = {operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div"}
MEAN_FUNCTIONS = {torch.mean, "mean"}
CONCAT_FUNCTIONS = {torch.cat, torch.concat, torch.concatenate}
SHAPE_FUNCTIONS = {torch.flatten, torch.reshape, torch.squeeze, "flatten", "reshape", "view", "squeeze"}
PASSED_FUNCTIONS = (
    ACTIVATION_FUNCTIONS
    | SAME_FUNCTIONS
    | POOL_FUNCTIONS
    | ADD_FUNCTIONS
    | SCALE_FUNCTIONS
    | MEAN_FUNCTIONS
    | CONCAT_FUNCTIONS
)
# Numbers read off a tensor's shape, not tensors.
NUMBER_FUNCTIONS = {getattr, operator.getitem, operator.floordiv, "size", "dim", "numel"}


class GroupError(SlimgateError):
    """The network cannot be trimmed as it is; ``where`` names layer or line."""


@dataclass
class Layer:
    """One module with weights: which channel each of its inputs and outputs is (ids), before uniting."""

    path: str
    module: nn.Module
    inputs: np.ndarray
    outputs: np.ndarray
    positions: int  # output positions per picture at which its weights multiply, over all its calls
    depthwise: bool = False
    shape_in: tuple[int, ...] = ()  # (C, H, W) of its first call
    shape_out: tuple[int, ...] = ()


@dataclass(frozen=True)
class Group:
    """Channels of several layers that are trimmed as units: unit u is kept or removed in all of them at once.

    ``producers`` {path: (out_channels,) unit of each output channel} of the layers that make the channels;
    ``tensors`` {node: (channels,) unit of each channel there, -1 for channels of other groups}, the tensors at which
    a criterion looks at the units: see ``_measured``. ``inputs``: the same for what enters the activations there (the
    tensor itself where there is none). ``norms`` {producer: (node, path) of the BatchNorm that reads it at once}.
    """

    name: str
    size: int
    producers: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Graph:
    """A traced network: its layers, the groups that may be trimmed (by name), and the trace itself."""

    model: nn.Module
    traced: fx.GraphModule
    layers: dict[str, Layer]
    groups: dict[str, Group] = field(default_factory=dict)
    unit_of: np.ndarray = None  # (channels,) unit within its group of every channel id, -1 where never trimmed
    group_of: np.ndarray = None  # (channels,) index into ``names`` of every channel id, -1 where never trimmed
    channels: dict[str, np.ndarray] = field(default_factory=dict)  # node name -> ids of its channels

    @property
    def names(self) -> list[str]:
        return list(self.groups)

    @property
    def depthwise(self) -> list[str]:
        return [path for path, layer in self.layers.items() if layer.depthwise]


def trace(model: nn.Module, input_shape: tuple[int, ...], depthwise: Collection[str] = ()) -> Graph:
    """Trace ``model`` for one input (C, H, W) and find its groups. GroupError where it cannot be trimmed.

    ``depthwise`` names convolutions to be taken as depthwise, ``graph.depthwise`` of the network before it was
    trimmed: with one channel left nothing in such a layer tells it from a dense one.
    """
    _refuse_shared_parameters(model)
    training = {module: module.training for module in model.modules()}
    try:
        # The trace keeps what self.training was, so that a functional dropout must be off by now.
        model.eval()
        try:
            walk = _walked(model, input_shape, depthwise, lines=False)
        except GroupError:
            # Again, for the line: noting where each node comes from takes as long as all the rest.
            walk = _walked(model, input_shape, depthwise, lines=True)
    finally:
        for module, mode in training.items():
            module.training = mode
    return walk.finish(model)


def _walked(model: nn.Module, input_shape: tuple[int, ...], depthwise: Collection[str], lines: bool) -> _Walk:
    walk = _Walk(_traced(model, lines), depthwise)
    example = next(model.parameters())
    with torch.no_grad():
        # Two pictures: a batch of one could be taken for a channel.
        walk.run(torch.zeros(2, *input_shape, dtype=example.dtype, device=example.device))
    return walk


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A layer derived from a known one (a quantized convolution, say) is to be refused by its own name.
        known = (*CONVOLUTIONS, *NORM_MODULES, *ACTIVATION_MODULES, nn.Linear)
        return super().is_leaf_module(m, module_qualified_name) or isinstance(m, known)


def _traced(model: nn.Module, lines: bool) -> fx.GraphModule:
    tracer = _Tracer()
    tracer.record_stack_traces = lines
    try:
        traced = fx.GraphModule(model, tracer.trace(model))
    # What tracing meets is the user's own Python: any failure there means the network is not a fixed graph.
    except Exception as error:
        raise GroupError(
            f"the network cannot be traced: {_first_line(error)}",
            where=_user_line(error),
            fix="its layers must not depend on values of the data (no if or for on tensors)",
        ) from error
    # What no output needs is not part of the network.
    traced.graph.eliminate_dead_code()
    return traced


class _Walk(fx.Interpreter):
    """Runs the trace once and notes, node by node, which channels each tensor has."""

    def __init__(self, traced: fx.GraphModule, depthwise: Collection[str]):
        super().__init__(traced)
        self.depthwise = depthwise
        self.parent: list[int] = []
        self.layers: dict[str, Layer] = {}
        self.calls: dict[str, list[fx.Node]] = {}
        self.ids: dict[fx.Node, np.ndarray] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.fixed: list[np.ndarray] = []

    def run_node(self, node: fx.Node):
        try:
            result = super().run_node(node)
        except GroupError:
            raise
        except Exception as error:
            raise GroupError(
                f"the network fails on a picture of the given shape: {_first_line(error)}",
                where=_place(node),
            ) from error
        if node.op == "output":
            self.fixed += [self.ids[source] for source in node.all_input_nodes if source in self.ids]
        elif isinstance(result, torch.Tensor):
            self.shapes[node] = tuple(result.shape)
            self.ids[node] = self._channels(node)
            if self.shapes[node][0] != 2 or len(self.ids[node]) != self.shapes[node][1]:
                raise self._refused(node, "it does not keep pictures and channels apart")
        elif node.target not in NUMBER_FUNCTIONS:
            raise self._refused(node, "it gives something else than one tensor")
        return result

    def call_module(self, target, args, kwargs):
        """Only shapes matter here: what keeps them hands its input on, a convolution computes one channel for all."""
        module = self.fetch_attr(target)
        kind = type(module)
        if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            if kind in ACTIVATION_MODULES or (kind in NORM_MODULES and args[0].shape[1] == module.num_features):
                return args[0]
            fits = args[0].ndim == getattr(module, "weight", args[0]).ndim and kind in CONVOLUTIONS
            if fits and module.padding_mode == "zeros" and args[0].shape[1] == module.in_channels:
                convolve = F.conv1d if kind is nn.Conv1d else F.conv2d
                one = convolve(
                    args[0][:, :1], module.weight[:1, :1], None, module.stride, module.padding, module.dilation
                )
                return one.new_zeros(one.shape[0], module.out_channels, *one.shape[2:])
        return super().call_module(target, args, kwargs)  # which says what is wrong, where something is

    # --- what each operation does to channels ---

    def _channels(self, node: fx.Node) -> np.ndarray:
        if node.op == "placeholder":
            ids = self._fresh(self.shapes[node][1])
            self.fixed.append(ids)
            return ids
        if node.op == "get_attr":
            raise self._refused(node, "a parameter or buffer used without a layer around it")
        if node.op == "call_module":
            return self._module(node, self.fetch_attr(node.target))
        target = node.target
        if target in CONCAT_FUNCTIONS:
            return self._concat(node)
        if target in ADD_FUNCTIONS or (target in SCALE_FUNCTIONS and len(self._tensors(node)) == 1):
            return self._add(node)
        if target in SHAPE_FUNCTIONS:
            return self._flatten(node, self._one(node))
        if target in MEAN_FUNCTIONS:
            return self._mean(node)
        if target in ACTIVATION_FUNCTIONS or target in SAME_FUNCTIONS or target in POOL_FUNCTIONS:
            return self.ids[self._one(node)]
        raise self._refused(node)

    def _module(self, node: fx.Node, module: nn.Module) -> np.ndarray:
        source = self._one(node)
        ids = self.ids[source]
        # By exact type: a subclass (a quantized layer, say) may do something else.
        kind = type(module)
        if kind is nn.PReLU and module.num_parameters > 1:
            raise self._refused(node, "PReLU with one slope per channel")
        if kind in ACTIVATION_MODULES or kind in SAME_MODULES or kind in POOL_MODULES:
            return ids
        if kind is nn.Flatten:
            return self._flatten(node, source)
        if kind in NORM_MODULES:
            return self._layer(node, module, ids, lambda: ids, 0)
        if kind is nn.Linear:
            if len(self.shapes[source]) != 2:
                raise self._refused(node, "a linear layer on something else than a vector per picture")
            return self._layer(node, module, ids, lambda: self._fresh(module.out_features), 1)
        if kind in CONVOLUTIONS:
            positions = math.prod(self.shapes[node][2:])
            depthwise = module.groups == module.in_channels and (module.groups > 1 or node.target in self.depthwise)
            if module.groups == 1 and not depthwise:
                return self._layer(node, module, ids, lambda: self._fresh(module.out_channels), positions)
            if depthwise:
                each = module.out_channels // module.in_channels
                return self._layer(node, module, ids, lambda: np.repeat(ids, each), positions, True)
            raise self._refused(node, f"a convolution of {module.groups} groups, neither dense nor depthwise")
        raise self._refused(node)

    def _layer(self, node, module, inputs, outputs, positions: int, depthwise: bool = False) -> np.ndarray:
        """Note a layer; on a further call of the same one its inputs and outputs are united with the first call's."""
        self.calls.setdefault(node.target, []).append(node)
        layer = self.layers.get(node.target)
        if layer is None:
            shapes = self.shapes[self._one(node)][1:], self.shapes[node][1:]
            layer = self.layers[node.target] = Layer(node.target, module, inputs, outputs(), 0, depthwise, *shapes)
        else:
            self._unite(layer.inputs, inputs)
        layer.positions += positions
        return layer.outputs

    def _add(self, node: fx.Node) -> np.ndarray:
        """Tensors of equal channels are united. One channel that is added to many is nobody's partner: it is the only
        channel of the layer that makes it, so it always stays, and each of the many lives or dies by itself."""
        tensors = self._tensors(node)
        widest = max(tensors, key=lambda tensor: len(self.ids[tensor]))
        for other in tensors:
            if len(self.shapes[other]) != len(self.shapes[widest]):
                raise self._refused(
                    node, f"of shapes {self.shapes[tensors[0]]} and {self.shapes[tensors[1]]}: not of equal rank"
                )
            if len(self.ids[other]) == len(self.ids[widest]):
                self._unite(self.ids[widest], self.ids[other])
        return self.ids[widest]

    def _concat(self, node: fx.Node) -> np.ndarray:
        tensors = node.args[0]
        dim = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else 0))
        if dim % len(self.shapes[node]) != 1:
            raise self._refused(node, f"along dimension {dim}, not along channels")
        return np.concatenate([self.ids[tensor] for tensor in tensors])

    def _flatten(self, node: fx.Node, source: fx.Node) -> np.ndarray:
        before, after = self.shapes[source], self.shapes[node]
        if after == before:
            return self.ids[source]
        if len(after) == 2 and after[0] == before[0]:
            return np.repeat(self.ids[source], math.prod(before[2:]))
        raise self._refused(node, f"from shape {before} to {after}, which is no flattening")

    def _mean(self, node: fx.Node) -> np.ndarray:
        source = self._one(node)
        rank = len(self.shapes[source])
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        dims = (dims,) if isinstance(dims, int) else dims
        if not dims or any(dim % rank < 2 for dim in dims):
            raise self._refused(node, "over pictures or channels")
        return self.ids[source]

    # --- helpers ---

    def _tensors(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in (*node.args, *node.kwargs.values()) if source in self.ids]

    def _one(self, node: fx.Node) -> fx.Node:
        tensors = [source for source in node.all_input_nodes if source in self.ids]
        if len(tensors) != 1:
            raise self._refused(node, f"with {len(tensors)} tensors")
        return tensors[0]

    def _refused(self, node: fx.Node, why: str = "not an operation that trimming knows") -> GroupError:
        module = self.fetch_attr(node.target) if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
        return GroupError(
            f"cannot trim through {name!r}: {why}",
            where=_place(node),
            fix='use the operations listed in pipeline/trimming/groups.py, or trim with method = "none"',
        )

    def _fresh(self, number: int) -> np.ndarray:
        start = len(self.parent)
        self.parent += range(start, start + number)
        return np.arange(start, start + number)

    def _find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = channel = self.parent[self.parent[channel]]
        return channel

    def _unite(self, left: np.ndarray, right: np.ndarray) -> None:
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._find(a), self._find(b)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def finish(self, model: nn.Module) -> Graph:
        roots = np.array([self._find(channel) for channel in range(len(self.parent))], dtype=np.int64)
        frozen = np.zeros(len(roots), dtype=bool)
        for ids in self.fixed:
            frozen[roots[ids]] = True
        graph = Graph(model, self.module, self.layers)
        graph.unit_of = np.full(len(roots), -1)
        graph.group_of = np.full(len(roots), -1)
        graph.channels = {node.name: roots[ids] for node, ids in self.ids.items()}
        producers = [layer for layer in self.layers.values() if not isinstance(layer.module, NORM_MODULES)]
        for number, members in enumerate(_families(producers, roots, frozen)):
            units = np.unique(np.concatenate([roots[layer.outputs] for layer in members]))
            place = np.minimum(np.searchsorted(units, roots), len(units) - 1)
            unit = np.where(units[place] == roots, place, -1)
            graph.unit_of = np.where(unit >= 0, unit, graph.unit_of)
            graph.group_of = np.where(unit >= 0, number, graph.group_of)
            measured = self._measured(members)
            before = [self._one(node) if self._is_activation(node) else node for node in measured]
            graph.groups[members[0].path] = Group(
                members[0].path,
                len(units),
                {layer.path: unit[layer.outputs] for layer in members},
                {node.name: unit[self.ids[node]] for node in measured},
                {node.name: unit[self.ids[node]] for node in before},
                self._norms(members),
            )
        return graph

    def _measured(self, members: list[Layer]) -> list[fx.Node]:
        """Where the outputs of these layers are looked at: after the activation that follows each.

        From a layer's output on through BatchNorm, adds, concatenations, pooling and the like (not through another
        layer or a flattening) to the first activation on each way. In a residual block that is the activation after
        the add: the value the next layers read, to which both branches contribute. A way on which the channels are
        used without an activation (a linear bottleneck) is looked at where they are used, phi being the identity.
        """
        found: dict[fx.Node, None] = {}
        for layer in members:
            seen: set[fx.Node] = set()
            front = list(self.calls[layer.path])
            while front:
                node = front.pop()
                if node in seen:
                    continue
                seen.add(node)
                if self._is_activation(node):
                    found[node] = None
                    continue
                onward = [user for user in node.users if self._passes(user)]
                used_here = len(onward) < len(node.users)
                if used_here and not any(self._is_activation(user) for user in onward):
                    found[node] = None
                front += onward
        order = {node: place for place, node in enumerate(self.module.graph.nodes)}
        return sorted(found, key=order.__getitem__)

    def _norms(self, members: list[Layer]) -> dict[str, tuple[str, str]]:
        return {
            layer.path: (user.name, user.target)
            for layer in members
            for node in self.calls[layer.path]
            for user in node.users
            if user.op == "call_module" and isinstance(self.fetch_attr(user.target), NORM_MODULES)
        }

    def _is_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self.fetch_attr(node.target)) in ACTIVATION_MODULES
        return node.target in ACTIVATION_FUNCTIONS

    def _passes(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            kinds = (*ACTIVATION_MODULES, *SAME_MODULES, *POOL_MODULES, *NORM_MODULES)
            return type(self.fetch_attr(node.target)) in kinds
        return node.op in ("call_function", "call_method") and node.target in PASSED_FUNCTIONS


def _families(producers: list[Layer], roots: np.ndarray, frozen: np.ndarray) -> list[list[Layer]]:
    """Layers that share a channel, together; those that share one with an input or output are left out."""
    families: list[tuple[set, list[Layer]]] = []
    for layer in producers:
        mine, members = set(roots[layer.outputs].tolist()), [layer]
        for family in [family for family in families if family[0] & mine]:
            families.remove(family)
            mine |= family[0]
            members = family[1] + members
        families.append((mine, members))
    order = {layer.path: place for place, layer in enumerate(producers)}
    kept = [sorted(members, key=lambda layer: order[layer.path]) for mine, members in families
            if not frozen[sorted(mine)].any()]  # fmt: skip
    return sorted(kept, key=lambda members: order[members[0].path])


def alive(graph: Graph, keep: dict[str, np.ndarray]) -> np.ndarray:
    """(channels,) bool by channel id: which live when of each named group only these units are kept.

    Groups that are not named stay whole. GroupError: unknown group, a unit out of range or named twice, a layer that
    would be left without channels.
    """
    living = np.ones(len(graph.unit_of), dtype=bool)
    for name, units in keep.items():
        if name not in graph.groups:
            raise GroupError(f"no group {name!r}", fix=f"groups: {', '.join(graph.groups) or 'none'}")
        group = graph.groups[name]
        units = np.asarray(units, dtype=np.int64)
        if len(np.unique(units)) != len(units) or (units < 0).any() or (units >= group.size).any():
            raise GroupError(f"kept units of {name!r} must be different numbers in 0..{group.size - 1}")
        stay = np.zeros(group.size, dtype=bool)
        stay[units] = True
        for path, of_channel in group.producers.items():
            if not stay[of_channel].any():
                raise GroupError("no channel would be left", where=path, fix="keep at least one")
        mine = graph.group_of == graph.names.index(name)
        living[mine] = stay[graph.unit_of[mine]]
    return living


def remove(graph: Graph, keep: dict[str, np.ndarray]) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """(widths, state_dict) of the physically smaller network with the kept units of each group, in their order.

    ``widths`` {path: out_channels} of every convolution and of every linear layer that may be trimmed, for the
    model's ``build(widths, None, ...)``; the state fits that network. The model itself is not changed.
    """
    living = alive(graph, keep)
    state, cut = {key: value.detach() for key, value in graph.model.state_dict().items()}, set()
    widths, producers = {}, {path for group in graph.groups.values() for path in group.producers}
    for path, layer in graph.layers.items():
        device = layer.module.weight.device if getattr(layer.module, "weight", None) is not None else "cpu"
        inputs, outputs = (
            torch.from_numpy(np.flatnonzero(living[ids])).to(device) for ids in (layer.inputs, layer.outputs)
        )
        if isinstance(layer.module, NORM_MODULES):
            sliced = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (outputs,))
        elif layer.depthwise:
            sliced = {"weight": (outputs,), "bias": (outputs,)}
        else:
            sliced = {"weight": (outputs, inputs), "bias": (outputs,)}
        for name, axes in sliced.items():
            key = f"{path}.{name}"
            for axis, index in enumerate(axes):
                if key in state and len(index) < state[key].shape[axis]:
                    state[key] = state[key].index_select(axis, index)
                    cut.add(key)
        if isinstance(layer.module, CONVOLUTIONS) or path in producers:
            widths[path] = len(outputs)
    return widths, {key: value if key in cut else value.clone() for key, value in state.items()}


def _refuse_shared_parameters(model: nn.Module) -> None:
    """One tensor under two names cannot be cut for both."""
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name:
            raise GroupError(
                "two layers share their weights",
                where=f"{first} and {name}",
                fix="give each layer weights of its own",
            )


def _place(node: fx.Node) -> str:
    """Layer or operation, with the line of the user's file that calls it where it is known."""
    lines = [
        line.strip()
        for line in (node.stack_trace or "").splitlines()
        if line.strip().startswith("File") and str(Path(torch.__file__).parent) not in line
    ]
    return str(node.target if node.op == "call_module" else node.name) + (f" ({lines[-1]})" if lines else "")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _user_line(error: BaseException) -> str | None:
    """The deepest line outside torch of where an error came from."""
    library = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((library, str(Path(__file__)), "<"))
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else None
