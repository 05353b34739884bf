"""Random networks that keep an account of every channel themselves, for the tests of trimming."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

SHAPE = (2, 6, 6)


def outputs(module):
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


class Net(nn.Module):
    """A network from a list of words, which says of every channel who made it: (layer, number).

    With ``dead`` (a set of those) it zeroes dead channels after every operation, activations included, and checks that
    what is added, and what a depthwise convolution maps, is dead or alive on both sides.
    """

    def __init__(self, words, widths=None):
        super().__init__()
        self.words, self.widths, self.dead, self.parts = words, widths or {}, None, nn.ModuleDict()
        channels, size = SHAPE[0], SHAPE[1]
        for number, (word, value) in enumerate(words):
            name = f"{word}{number}"
            if word in ("conv", "shared"):
                self.conv(name, channels, value)
                if word == "shared":
                    self.conv(f"{name}again", self.width(name, value), self.width(name, value), same=True)
                channels = self.width(name, value)
            elif word == "depthwise":
                self.parts[name] = nn.Conv2d(channels, channels * value, 3, padding=1, groups=channels)
                self.norm(name, channels * value)
                channels *= value
            elif word == "residual":
                self.conv(f"{name}a", channels, value)
                self.conv(f"{name}b", self.width(f"{name}a", value), channels)
            elif word == "concat":
                self.conv(f"{name}a", channels, value)
                self.conv(f"{name}b", channels, 3)
                channels = self.width(f"{name}a", value) + self.width(f"{name}b", 3)
            elif word == "dense":
                self.conv(f"{name}a", channels, value)
                channels += self.width(f"{name}a", value)
            elif word == "broadcast":
                self.conv(f"{name}a", channels, 1)
            elif word == "norm":
                self.norm(name, channels)
            elif word == "pool" and size > 1:
                size //= 2
            elif word == "head":
                features = channels * (size * size if value != 2 else 1)
                if value == 1:
                    self.parts["hidden"] = nn.Linear(features, self.width("hidden", 7))
                    features = self.width("hidden", 7)
                    self.parts["hiddennorm"] = nn.BatchNorm1d(features)
                self.parts["last"] = nn.Linear(features, 3)
        self.size = SHAPE[1]

    def width(self, name, value):
        return self.widths.get(f"parts.{name}", value)

    def conv(self, name, inputs, outputs, same=False):
        width = outputs if same else self.width(name, outputs)
        self.parts[name] = nn.Conv2d(inputs, width, 3, padding=1, bias=len(name) % 2 == 0)
        self.norm(name, width)

    def norm(self, name, channels):
        self.parts[f"{name}norm"] = nn.BatchNorm2d(channels)

    def masked(self, x, origin):
        if self.dead is None:
            return x, origin
        mask = torch.tensor([who not in self.dead for who in origin], dtype=x.dtype)
        return x * mask.reshape(1, -1, *[1] * (x.ndim - 2)), origin

    def layer(self, name, x):
        module = self.parts[name]
        x = module(x)
        x, origin = self.masked(x, [(f"parts.{name}", i) for i in range(outputs(module))])
        if f"{name}norm" in self.parts:
            x, _ = self.masked(self.parts[f"{name}norm"](x), origin)
        return x, origin

    def same(self, left, right):
        assert self.dead is None or [who in self.dead for who in left] == [who in self.dead for who in right]

    def forward(self, x):
        origin, size = [("input", i) for i in range(SHAPE[0])], SHAPE[1]
        for number, (word, value) in enumerate(self.words):
            name = f"{word}{number}"
            if word == "conv":
                x, origin = self.layer(name, x)
            elif word == "shared":
                x, origin = self.layer(name, x)
                for _ in range(2):
                    x, again = self.layer(f"{name}again", F.relu(x))
                    self.same(origin, again)
                    origin = again
            elif word == "depthwise":
                x, after = self.layer(name, x)
                self.same([who for who in origin for _ in range(value)], after)
                origin = after
            elif word == "residual":
                y, _ = self.layer(f"{name}a", x)
                y, other = self.layer(f"{name}b", self.act(y, name))
                self.same(origin, other)
                x = x + y
            elif word in ("concat", "dense"):
                y, left = self.layer(f"{name}a", x)
                x, right = self.layer(f"{name}b", x) if word == "concat" else (x, origin)
                x, origin = torch.cat([y, x], 1), left + right
            elif word == "broadcast":
                y, _ = self.layer(f"{name}a", x)
                x = x + (y.mean((2, 3), keepdim=True) if value else y)
            elif word == "norm":
                x = self.parts[f"{name}norm"](x)
            elif word == "act":
                x = [torch.sigmoid, F.relu, torch.tanh, F.leaky_relu][value % 4](x)
            elif word == "drop":
                x = F.dropout(x, 0.5, self.training)
            elif word == "pool" and size > 1:
                x, size = [F.max_pool2d, F.avg_pool2d][value % 2](x, 2), size // 2
            elif word == "head":
                if value == 2:
                    x = x.mean((2, 3))
                else:
                    origin = [who for who in origin for _ in range(size * size)]
                    x = x.flatten(1) if value == 0 else x.view(x.size(0), -1)
                    if value == 1:
                        x, origin = self.layer("hidden", x)
                        x = F.relu(x)
                x, _ = self.masked(x, origin)
                return self.parts["last"](x)
            x, origin = self.masked(x, origin)
        raise AssertionError("no head")

    def act(self, y, name):
        y = torch.sigmoid(y)
        return self.masked(y, [(f"parts.{name}a", i) for i in range(self.parts[f"{name}a"].out_channels)])[0]


def randomized(net, seed):
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return net.double().eval()


WORDS = st.one_of(
    st.tuples(st.sampled_from(["conv", "residual", "concat", "dense", "shared"]), st.integers(1, 5)),
    st.tuples(st.just("depthwise"), st.integers(1, 2)),
    st.tuples(st.just("broadcast"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["act", "pool"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["norm", "drop"]), st.just(0)),
)
NETS = st.tuples(st.lists(WORDS, min_size=1, max_size=6), st.integers(0, 2)).map(
    lambda drawn: [*drawn[0], ("head", drawn[1])]
)
