"""A network evaluated in stretches: the values at a cut, for every batch, lie in files until the next stretch.

So a network that is solved layer by layer is evaluated once, not once per layer.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..chains import Graph
from ..disk import temporary_writes

Values = dict[str, Any]
"""What nodes of a graph gave, by the nodes' names."""


class Front:
    """All batches on their way through a network, up to a node of its graph.

    Args:
        model: the network, in evaluation mode; what its modules hold may change behind the front.
        folder: for the files; made here.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.graph = Graph(model)
        self.nodes = self.graph.nodes
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.last_use = {n: max((self.position[u] for u in n.users), default=-1) for n in self.nodes}
        self.interpreter = fx.Interpreter(fx.GraphModule(model, self.graph.traced), garbage_collect_values=False)
        self.folder = folder
        folder.mkdir()
        self.batches = 0
        self.at = 0

    def enter(self, images: Tensor) -> None:
        """Add a batch, at the network's input."""
        self._keep(self.batches, {"": images})
        self.batches += 1

    def advance(self, stop: int) -> Iterator[Callable[[fx.Node], Any]]:
        """Evaluate all nodes before number ``stop``; yields for each batch a function from nodes to their values.

        Values of nodes that were done before and that nothing behind the cut reads are gone.
        """
        start, self.at = self.at, max(stop, self.at)
        for batch in range(self.batches):
            known: Values = torch.load(self._file(batch), weights_only=False)
            self.interpreter.args_iter = iter([known.pop("", None)])
            self.interpreter.env = {node: known[node.name] for node in self.nodes[:start] if node.name in known}
            for node in self.nodes[start:stop]:
                self.interpreter.env[node] = self.interpreter.run_node(node)
            yield self.interpreter.env.__getitem__
            if stop > start:
                live = {n.name: _compact(v) for n, v in self.interpreter.env.items() if self.last_use[n] >= stop}
                self._keep(batch, live)
        self.interpreter.env = {}

    def settle(self, start: int, stop: int, skip: set[str]) -> None:
        """Evaluate all nodes before number ``stop``.

        On the way measure every BatchNorm anew from number ``start`` on, but those of ``skip``.
        """
        for node in list(self.graph.calls(_BatchNorm)):
            norm, at = self.graph.module(node), self.position[node]
            assert isinstance(norm, _BatchNorm)
            if max(start, self.at) <= at < stop and str(node.target) not in skip and norm.running_mean is not None:
                self._measure(norm, node.all_input_nodes[0], at)

    def _measure(self, norm: _BatchNorm, source: fx.Node, at: int) -> None:
        count, total = 0, torch.zeros(norm.num_features, dtype=torch.float64)
        square = torch.zeros_like(total)
        for value in self.advance(at):
            x = value(source).transpose(0, 1).flatten(1).double()
            count, total, square = count + x.shape[1], total + x.sum(1), square + x.square().sum(1)
        assert norm.running_mean is not None and norm.running_var is not None
        mean = total / count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square - total * mean).clamp_(min=0) / max(1, count - 1))

    def _keep(self, batch: int, values: Values) -> None:
        buffer = io.BytesIO()
        torch.save(values, buffer)
        with temporary_writes():
            self._file(batch).write_bytes(buffer.getbuffer())

    def _file(self, batch: int) -> Path:
        return self.folder / f"{batch}.pt"


def _compact(value: Any) -> Any:
    """Without the rest of the memory that a tensor is a part of, which would be written, too."""
    partial = isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes
    return value.clone() if partial else value
