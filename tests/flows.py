"""Streaming networks put together process by process, without a graph or a project, to simulate."""

import math

from hls import dataflow
from hls.cost import LayerSpec
from hls.dataflow import LASTS, Network, Process, Timing


class Flow:
    """``flow.conv("c1", 16, reuse_factor=9)`` appends to the tensor last made; ``fork`` and ``join`` make branches.

    FIFOs are named as :mod:`hls.dataflow` names them.
    """

    def __init__(self, size: int, channels: int = 3, timing: Timing | None = None):
        self.timing = timing or Timing()
        self.made: list[list] = []  # name, kind, shape, sources
        self.size, self.channels = size, channels
        self.sizes: dict[str, tuple[int, int]] = {}
        self.at = self.add("unpack", "unpack", {"tokens": size * size, "cycles": 1}, ())

    def add(self, name: str, kind: str, shape: dict, sources: tuple[str, ...]) -> str:
        self.made.append([name, kind, shape, sources])
        self.sizes[name] = (self.size, self.channels)
        self.at = name
        return name

    def go(self, name: str) -> "Flow":
        """Continue from another process."""
        self.at = name
        self.size, self.channels = self.sizes[name]
        return self

    def conv(self, name: str, filters: int, kernel: int = 3, *, stride: int = 1, reuse_factor: int = 9, pad=None,
             resource: int = 1) -> str:  # fmt: skip
        before, after = (kernel // 2, kernel // 2) if pad is None else pad
        if before or after:
            self.add(f"zp2d_{name}", "pad", {"height": self.size, "width": self.size, "top": before, "left": before,
                                             "bottom": after, "right": after}, (self.at,))
            self.size += before + after
        shape = {"height": self.size, "width": self.size, "kernel_height": kernel, "kernel_width": kernel,
                 "stride_height": stride, "stride_width": stride, "pointwise": int(kernel == 1), "resource": resource,
                 "reuse_factor": reuse_factor}
        self.size, self.channels = (self.size - kernel) // stride + 1, filters
        return self.add(name, "convolution", shape, (self.at,))

    def relu(self, name: str) -> str:
        return self.add(name, "elementwise", {"tokens": self.size**2}, (self.at,))

    def pool(self, name: str, kernel: int = 2) -> str:
        shape = {"height": self.size, "width": self.size, "kernel_height": kernel, "kernel_width": kernel,
                 "stride_height": kernel, "stride_width": kernel, "pointwise": 0}
        self.size //= kernel
        return self.add(name, "pooling", shape, (self.at,))

    def join(self, name: str, one: str, other: str) -> str:
        """Add, or concatenation of channels."""
        return self.add(name, "merge", {"tokens": self.size**2}, (one, other))

    def dense(self, name: str, outputs: int = 10, *, reuse_factor: int = 16) -> str:
        shape = {"tokens": self.size**2, "reuse_factor": reuse_factor}
        self.size, self.channels = 1, outputs
        return self.add(name, "gather", shape, (self.at,))

    def network(self) -> Network:
        made = [*self.made, ["pack", "pack", {"tokens": self.size**2, "cycles": self.channels}, (self.at,)]]
        users: dict[str, list[str]] = {}
        for name, _, _, sources in made:
            for source in sources:
                users.setdefault(source, []).append(name)
        processes, bits = [], {}
        for name, kind, shape, sources in made:
            inputs = tuple(f"clone_{s}->{name}" if len(users[s]) > 1 else f"{s}->{name}" for s in sources)
            readers = users.get(name, [])
            outputs = [f"{name}->{readers[0]}"] if len(readers) == 1 else [f"{name}->clone_{name}"] if readers else []
            lasts = (LASTS,) if kind in ("pack", "unpack") else ()
            processes.append(Process(name, kind, shape, inputs + (lasts if kind == "pack" else ()),
                                     tuple(outputs) + (lasts if kind == "unpack" else ())))
            made_bits = 4 * self.sizes.get(name, (1, 1))[1]
            if len(readers) > 1:
                copies = tuple(f"clone_{name}->{r}" for r in readers)
                processes.append(Process(f"clone_{name}", "clone", {"tokens": self.sizes[name][0] ** 2,
                                                                    "copies": len(readers)}, tuple(outputs), copies))
                bits |= dict.fromkeys(copies, made_bits)
            bits |= dict.fromkeys(outputs, made_bits)
        return Network(processes, bits | {LASTS: 1}, self.timing)


def resnet(blocks: int = 3, *, size: int = 32, filters: int = 16, reuse_factor: int = 16) -> Flow:
    """The CIFAR ResNet of depth 6 * ``blocks`` + 2 (He et al. 2015, section 4.2)."""
    flow = Flow(size)
    flow.conv("stem", filters, reuse_factor=reuse_factor)
    flow.relu("relu")
    for stage in range(3):
        for block in range(blocks):
            name, fork = f"s{stage}b{block}", flow.at
            first = stage > 0 and block == 0
            width, stride = filters << stage, 2 if first else 1
            flow.conv(f"{name}c1", width, stride=stride, reuse_factor=reuse_factor)
            flow.relu(f"{name}r1")
            branch = flow.conv(f"{name}c2", width, reuse_factor=reuse_factor)
            if first:
                fork = flow.go(fork).conv(f"{name}short", width, 1, stride=2, reuse_factor=reuse_factor)
            flow.join(f"{name}add", branch, fork)
            flow.relu(f"{name}r2")
    flow.pool("average", flow.size)
    flow.dense("classifier")
    return flow


def layers_of(network: Network, outputs: dict[str, int], inputs: dict[str, int], bits: int = 4) -> list[LayerSpec]:
    """The layers of weights of a flow; ``outputs`` and ``inputs``: channels."""
    found = []
    for p in network.processes:
        if p.name not in outputs:
            continue
        about = {"weight_bits": bits, "input_bits": bits, "accumulator_bits": 14, "output_bits": bits,
                 "n_out": outputs[p.name]}
        if p.kind == "convolution":
            size, kernel = p.shape["height"], p.shape["kernel_height"]
            pixels, n_in = math.isqrt(int(dataflow._windows(p.shape).sum())), kernel**2 * inputs[p.name]
            found.append(LayerSpec(p.name, "conv", (size, size, inputs[p.name]), (pixels, pixels, outputs[p.name]),
                                   kernel=(kernel, kernel), n_in=n_in, weights=n_in * outputs[p.name], **about))
        elif p.kind == "gather":
            n_in = p.shape["tokens"] * inputs[p.name]
            found.append(LayerSpec(p.name, "dense", (p.shape["tokens"], inputs[p.name]), (outputs[p.name],), n_in=n_in,
                                   weights=n_in * outputs[p.name], **about))
    return found


def textbook_cost(layer: LayerSpec) -> dict[str, float]:
    """Resources by textbook figures, no fit: LUT multipliers (w * a partial products, two per LUT) and an adder each;
    weights in BRAM, 36 bits wide and 512 deep per BRAM18, where they are read in turns."""
    n = layer.multipliers
    memory = layer.strategy == "resource" and layer.reuse_factor > 1
    return {"lut": n * (layer.weight_bits * layer.input_bits / 2 + layer.accumulator_bits),
            "ff": 2 * n * layer.accumulator_bits, "dsp": 0,
            "bram18": math.ceil(n * layer.weight_bits / 36) * math.ceil(layer.reuse_factor / 512) if memory else 0}
