"""What follows each quantized layer of a network: its BatchNorm, and the layers that encode its output.

Found on the graph that ``torch.fx`` traces, so functional calls count as well as modules. Only operations that commute
with an activation's encoding may lie between: clipping, max-pool, dropout, flattening, concatenation, nearest
upsampling.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import QuantizedLayer
from .tracing import trace

CLIPPING: dict[Any, tuple[float, float]] = {
    **dict.fromkeys((nn.ReLU, F.relu, F.relu_, torch.relu, "relu", "relu_"), (0.0, math.inf)),
    **dict.fromkeys((nn.ReLU6, F.relu6), (0.0, 6.0)),
}
"""Operations that clip, with their range; Hardtanh modules say their own."""

JOINING = (torch.cat, torch.concat, torch.concatenate)
"""Operations that put the values of several beside each other."""

POOLING = {nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d}
"""Max-pooling."""

REARRANGING = {
    *POOLING,
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.dropout, torch.flatten),
    *("flatten", "view", "reshape", "contiguous"),
}
"""Operations that move values, or choose among them, without changing any (dropout in evaluation).

Nearest upsampling is one, too.
"""


@dataclass(frozen=True)
class Reader:
    """A quantized layer that reads an output, and the range the output is clipped to on the way there.

    ``joined`` says that it reads other channels, too, beside those of the output.
    """

    layer: str
    lo: float = -math.inf
    hi: float = math.inf
    joined: bool = False


@dataclass(frozen=True)
class Chain:
    """What lies between a layer and those that read its output.

    Attributes:
        source: name of the layer.
        batchnorm: name of the BatchNorm directly behind it, or behind max-pooling of it, if any.
        pooled: whether max-pooling comes before the BatchNorm.
        lo, hi: range that the output, or the BatchNorm's, is clipped to before anything else happens to it.
        readers: the quantized layers behind, if they are all that reads the output.
        obstacle: why there are no ``readers``.
    """

    source: str
    batchnorm: str | None
    pooled: bool
    lo: float
    hi: float
    readers: tuple[Reader, ...]
    obstacle: str | None

    @property
    def watched(self) -> str:
        """Name of what gives the pre-activation, at every position: the BatchNorm, or the layer that pooling reads."""
        return self.source if self.pooled or self.batchnorm is None else self.batchnorm


class Graph:
    """The traced graph of a network.

    Raises:
        InputError: ``forward`` cannot be traced, as with control flow that depends on data.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.traced = trace(model)
        self.nodes = list(self.traced.nodes)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def calls(self, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> Iterator[fx.Node]:
        """Calls of modules of a type, in order of execution."""
        for node in self.nodes:
            if isinstance(self.module(node), kind):
                yield node

    def call(self, name: str) -> fx.Node:
        """The one call of a module."""
        return next(node for node in self.nodes if node.op == "call_module" and node.target == name)

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Nodes that read the values of a node, as opposed to its shape."""
        return [u for u in node.users if not _asks_shape(u)]

    def chain(self, node: fx.Node) -> Chain:
        """What follows the call of a layer."""
        name, batchnorm, pooled = str(node.target), None, False
        behind = self._sole_user(node)
        while behind is not None and self.kind(behind) in POOLING:
            behind = self._sole_user(behind)
        if behind is not None and isinstance(self.module(behind), _BatchNorm):
            pooled, batchnorm = behind not in node.users, str(behind.target)
            node = behind
        users = self.users(node)
        ranges = {self._clip(u) for u in users}
        lo, hi = (ranges.pop() if len(ranges) == 1 else None) or (-math.inf, math.inf)
        readers, obstacles = self.readers(node)
        known, obstacle = (() if obstacles else readers), obstacles[0] if obstacles else None
        return Chain(name, batchnorm, pooled, lo, hi, known, obstacle)

    def readers(self, node: fx.Node) -> tuple[tuple[Reader, ...], tuple[str, ...]]:
        """The quantized layers that encode a node's output, and what else is done with it."""
        readers: list[Reader] = []
        obstacles: list[str] = []

        def follow(node: fx.Node, lo: float, hi: float, joined: bool) -> None:
            for user in self.users(node):
                if isinstance(self.module(user), QuantizedLayer):
                    readers.append(Reader(str(user.target), lo, hi, joined))
                elif (clip := self._clip(user)) is not None:
                    follow(user, max(lo, clip[0]), min(hi, clip[1]), joined)
                elif self.kind(user) in REARRANGING or self._repeats(user):
                    follow(user, lo, hi, joined)
                elif self.kind(user) in JOINING:
                    follow(user, lo, hi, True)
                else:
                    obstacles.append(f"{self._spelling(user)} reads it")

        follow(node, -math.inf, math.inf, False)
        if not readers and not obstacles:
            obstacles.append("nothing reads it")
        return tuple(readers), tuple(obstacles)

    def reached(self, node: fx.Node) -> set[str]:
        """The quantized layers that read an activation's values, or what is made of them before the next activation."""
        found: set[str] = set()
        seen, ahead = {node}, [node]
        while ahead:
            for user in self.users(ahead.pop()):
                if isinstance(self.module(user), QuantizedLayer):
                    found.add(str(user.target))
                elif self._clip(user) is None and user not in seen:
                    seen.add(user)
                    ahead.append(user)
        return found

    def pooled_from_norm(self, node: fx.Node) -> bool:
        """Whether what a layer's call reads is what max-pooling took from a BatchNorm's numbers."""
        pooled, node = False, node.all_input_nodes[0]
        while self.kind(node) in REARRANGING or self._clip(node) is not None:
            pooled |= self.kind(node) in POOLING
            node = node.all_input_nodes[0]
        return pooled and isinstance(self.module(node), _BatchNorm)

    def _sole_user(self, node: fx.Node) -> fx.Node | None:
        """What reads a node's values, if nothing else does."""
        users = self.users(node)
        return users[0] if len(users) == 1 else None

    def kind(self, node: fx.Node) -> Any:
        """What a node calls: a module's type, a function, or a method's name."""
        module = self.module(node)
        return type(module) if module is not None else node.target if node.op.startswith("call") else None

    def _repeats(self, node: fx.Node) -> bool:
        """Whether it is a nearest upsampling."""
        module = self.module(node)
        if isinstance(module, nn.Upsample):
            return module.mode == "nearest"
        return node.target is F.interpolate and node.kwargs.get("mode", "nearest") == "nearest" and len(node.args) < 4

    def _clip(self, node: fx.Node) -> tuple[float, float] | None:
        """The range that a node clips to, if that is what it does."""
        module = self.module(node)
        if type(module) is nn.Hardtanh:
            return module.min_val, module.max_val
        return CLIPPING.get(self.kind(node))

    def _spelling(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the network's output"
        kind = self.kind(node)
        if kind in (operator.add, operator.iadd, torch.add, "add", "add_"):
            return "an addition"
        name = getattr(kind, "__name__", str(kind))
        return f"{name} {node.target}" if node.op == "call_module" else name


def _asks_shape(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in ("size", "dim")) or (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")
    )


@torch.no_grad()
def scale_inputs(layer: QuantizedLayer, scale: Tensor) -> None:
    """Multiply the weights that read each channel by its scale; flattened positions of a channel lie together."""
    groups = getattr(layer, "groups", 1)
    weight = layer.outputs_first(layer.weight).unflatten(0, (groups, -1))
    per_input = scale.repeat_interleave(groups * weight.shape[2] // len(scale))
    per_input = per_input.view(groups, 1, -1, *[1] * (weight.dim() - 3))
    layer.weight.copy_(layer.native_order((weight * per_input).flatten(0, 1)))
