"""From a torch network to the small graph, by torch.export.

Every quantized layer becomes one opaque node of the exported graph, so that its arithmetic on levels never has to be
recognised; its integers are read from the module. The rest of the network is ordinary torch operations; those with
an integer form are in :mod:`~bitbranch.compiler.aten`.
"""

from __future__ import annotations

import copy
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from ..decomposition import MultiBranch
from ..errors import CompileError, InputError
from ..layers import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConvTranspose,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedLayer,
    QuantizedLinear,
)
from ..runtime.checks import Padding, Pair
from . import aten
from . import graph as g

BATCH = 2
"""Batch size of the export: a reshape that mixes images with channels shows at 2 and would not at 1."""


@torch.library.custom_op("bitbranch::layer", mutates_args=())
def _layer(x: Tensor, like: Tensor, path: str, output_padding: Sequence[int]) -> Tensor:
    """A quantized layer as one node: its input, a tensor of its output's shape, its module path.

    And what a transposed convolution adds to its output in this call.
    """
    return torch.empty_like(like)


@_layer.register_fake
def _(x: Tensor, like: Tensor, path: str, output_padding: Sequence[int]) -> Tensor:
    return torch.empty_like(like)


def _marked_forward(layer: QuantizedLayer, path: str, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """Forward of a layer while it is exported: as a float layer it says the shape, the marker says which it is."""
    if not isinstance(layer, QuantizedConvTranspose):
        return _layer(x, layer.accumulate(x, layer.weight, layer.bias), path, [])
    with layer.reaching(x, output_size):
        return _layer(x, layer.accumulate(x, layer.weight, layer.bias), path, list(layer.output_padding))


def capture(q: nn.Module, *examples: Tensor) -> g.Graph:
    """Export a quantized network and read it as a graph.

    Args:
        q: quantized network; not changed.
        examples: for each argument of the network images as it takes them, ``[N, C, H, W]``, ``[N, C, L]`` or
            ``[N, C]``; only the shape matters.

    Raises:
        CompileError: an operation or layer without an integer form, by name; a network that cannot be exported.
        InputError: an example that is not of reals, or has none of these shapes.
    """
    for example in examples:
        if not isinstance(example, Tensor) or example.dim() not in (2, 3, 4) or len(example) == 0:
            found = f"shape {list(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
            raise InputError(
                f"compile: the example must be a tensor [N, C, H, W], [N, C, L] or [N, C] with N >= 1, got {found}"
            )
        if not example.is_floating_point():
            raise InputError(f"compile: the example must be reals, as the network takes them, got {example.dtype}")
    network = copy.deepcopy(q).cpu().eval()
    modules = dict(network.named_modules())
    for path, module in modules.items():
        if isinstance(module, MultiBranch):
            raise CompileError(f"layer {path!r} is decomposed: compile the network that decompose() was given")
        if isinstance(module, QuantizedLayer):
            module.forward = partial(_marked_forward, module, path)  # type: ignore[method-assign]
    own = next((a.dtype for a in network.parameters() if a.is_floating_point()), torch.float32)
    images = tuple(example[:1].to("cpu", own).expand(BATCH, *example.shape[1:]).contiguous() for example in examples)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(network, images, strict=False)
            graphs = [m.graph for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)]
            if any(_writes(node) or _converts(node) for graph in graphs for node in graph.nodes):
                exported = exported.run_decompositions({})  # to a graph without such operations; traces it again
    except Exception as error:  # whatever the user's forward or torch.export raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        shapes = ", ".join(str(["N", *example.shape[1:]]).replace("'", "") for example in examples)
        raise CompileError(f"torch.export cannot capture the network for {shapes}: {lines[0]}") from error
    return _Reader(exported, modules).graph


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings, log and dumps of graphs, which are about its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


class _Reader:
    """Walks an exported program and appends nodes to a graph."""

    def __init__(self, exported: torch.export.ExportedProgram, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.nodes: list[g.Node] = []
        self.shapes: list[g.Shape] = []
        self.values: dict[fx.Node, aten.Value] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.parts: dict[fx.Node, tuple[fx.Node, ...]] = {}  # results of a graph within the graph
        signature = exported.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= signature.inputs_to_lifted_tensor_constants
        tensors = {**exported.state_dict, **exported.constants}
        own = [s.kind is OutputKind.USER_OUTPUT for s in signature.output_specs]
        (everything,) = next(node for node in exported.graph.nodes if node.op == "output").args
        results = tuple(result for result, is_own in zip(everything, own, strict=True) if is_own)
        live = _live(results)
        arguments = [name for name in signature.user_inputs if isinstance(name, str)]
        for node in exported.graph.nodes:
            if node.op == "output":
                self.read_outputs(results, exported.call_spec.out_spec)
            elif node.op == "placeholder" and node.name in names:
                self.constants[node] = tensors[names[node.name]].detach()
            elif node.op == "placeholder":
                name = "input" if len(arguments) == 1 else node.name
                if node not in live:
                    raise CompileError(f"the network's output does not depend on its input {name!r}")
                number = self.append(g.Input(name, (), shape=self.result(node).shape))
                self.values[node] = self.result(node, number)
            elif node in live:
                self.read(node)

    @property
    def graph(self) -> g.Graph:
        return g.Graph(tuple(self.nodes))

    def append(self, node: g.Node) -> int:
        self.shapes.append(node.infer(*(self.shapes[j] for j in node.inputs)))
        self.nodes.append(node)
        return len(self.nodes) - 1

    def result(self, node: fx.Node, number: int = -1) -> aten.Value:
        """What an exported operation makes, with its number in the graph."""
        meta = node.meta["val"]
        shape = tuple(int(s) for s in (meta if isinstance(meta, Tensor) else meta[0]).shape)
        if len(shape) not in (2, 3, 4) or shape[0] != BATCH:
            text = ", ".join(map(str, ("N", *shape[1:]) if shape[:1] == (BATCH,) else shape))
            raise _refuse(node, f"makes a tensor [{text}]; compiled are [N, C], [N, C, L] and [N, C, H, W]")
        channels, *size = shape[1:]
        return aten.Value(number, (channels, *([1] * (2 - len(size))), *size), len(shape))  # type: ignore[arg-type]

    def read(self, node: fx.Node) -> None:
        """Append one exported operation, or compute it at once where it depends on constants only."""
        if node.op == "get_attr":
            return  # a graph, which is read where it is called
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self.read_within(node)
        elif node.target is operator.getitem and node.args[0] in self.parts:
            self.take(node, self.parts[node.args[0]][node.args[1]])  # type: ignore[index]
        elif not any(source in self.values for source in node.all_input_nodes):
            args, kwargs = self.known(node.args), self.known(node.kwargs)
            with torch.no_grad():
                self.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        elif node.target is operator.getitem:
            source, index = node.args
            if index != 0:
                raise _refuse(source, f"result {index} has no integer form")  # type: ignore[arg-type]
            self.values[node] = self.values[source]  # type: ignore[index]
        elif node.target is torch.ops.bitbranch.layer.default:
            x, (path, more) = self.values[node.args[0]], node.args[2:]  # type: ignore[index]
            layer = self.modules[path]  # type: ignore[index]
            assert isinstance(layer, QuantizedLayer) and isinstance(path, str)
            try:
                self.add(node, [layer_node(layer, path, x, more)])  # type: ignore[arg-type]
            except InputError as error:  # a quantizer that is not ready
                raise CompileError(f"layer {path!r}: {error}") from error
        else:
            self.add(node, aten.read(self.call(node)))

    def read_within(self, node: fx.Node) -> None:
        """Read the graph that stands for what a forward does under ``torch.autocast`` or another mode of gradients."""
        what = node.target.name()  # type: ignore[union-attr]
        graphs = [a for a in node.args if isinstance(a, fx.Node) and a.op == "get_attr"]
        if what not in ("wrap_with_autocast", "wrap_with_set_grad_enabled") or len(graphs) != 1:
            raise _refuse(node, f"{what} has no integer form")
        if what == "wrap_with_autocast" and node.args[0] == "cpu" and node.args[2]:
            raise _refuse(node, "computes under torch.autocast; leave it away, the program computes in integers")
        owner = node.graph.owning_module
        assert owner is not None
        part = owner.get_submodule(str(graphs[0].target))
        assert isinstance(part, fx.GraphModule)
        operands = iter(node.args[node.args.index(graphs[0]) + 1 :])
        results: Any = part.graph.output_node().args[0]
        live = _live(results)
        for inner in part.graph.nodes:
            if inner.op == "placeholder":
                self.take(inner, next(operands))  # type: ignore[arg-type]
            elif inner in live:
                self.read(inner)
        self.parts[node] = tuple(results)

    def take(self, node: fx.Node, source: fx.Node) -> None:
        """Give a node the value or constant of another one."""
        known: dict[fx.Node, Any] = self.values if source in self.values else self.constants
        if source in known:
            known[node] = known[source]

    def known(self, argument: Any) -> Any:
        """Arguments with every exported node replaced by its value or constant."""
        if isinstance(argument, fx.Node):
            return self.values[argument] if argument in self.values else self.constants[argument]
        if isinstance(argument, Mapping):
            return {key: self.known(a) for key, a in argument.items()}
        if isinstance(argument, (list, tuple)):
            return [self.known(a) for a in argument]
        return argument

    def call(self, node: fx.Node) -> aten.Call:
        schema = node.target._schema  # type: ignore[union-attr]
        args, kwargs = self.known(node.args), self.known(node.kwargs)
        named = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(schema.arguments)
        }
        return aten.Call(schema.name, _name(node), named, self.result(node), next_number=len(self.nodes))

    def add(self, node: fx.Node, new: Sequence[g.Node]) -> None:
        """Append the nodes that an operation became, and check the shape that they make against torch's."""
        for n in new:
            number = self.append(n)
        made, value = self.shapes[-1], self.result(node, number)
        if value.dimensions == 3 and value.shape == (made[0], 1, made[1] * made[2]):  # one axis for a map's two
            value = replace(value, shape=made)
        if made != value.shape:
            raise _refuse(node, f"makes shape {value.shape} in torch, which was read as {made}")
        self.values[node] = value

    def read_outputs(self, results: Sequence[Any], spec: pytree.TreeSpec) -> None:
        names = [".".join(map(_key, path)) for path, _ in pytree.tree_flatten_with_path(_unflatten(spec))[0]]
        for name, result in zip(names, results, strict=True):
            what = f"output {name}" if name else "output"
            if not isinstance(result, fx.Node):
                raise CompileError(f"the network's {what} is {result!r:.50}; outputs are tensors")
            if result not in self.values:
                raise CompileError(f"the network's {what} does not depend on an input")
            if self.values[result].spread:
                raise CompileError(f"the network's {what} has a map's height and width in one axis; return the map")
            shape = tuple(int(s) for s in result.meta["val"].shape[1:])
            if len(shape) == 2:  # a program's output is flat or an image: a sequence has height 1
                shape = (shape[0], 1, shape[1])
            name = "output" + name if name[:1].isdigit() else name or "output"
            self.append(g.Output(name, (self.values[result].number,), output_shape=shape))


def _unflatten(spec: pytree.TreeSpec) -> Any:
    """A result of the network's structure, with something in the place of every tensor."""
    return pytree.tree_unflatten(range(spec.num_leaves), spec)


def _key(entry: Any) -> str:
    """Its text in an output's name: a key of a dict, an index, a field."""
    return str(next(getattr(entry, field) for field in ("key", "idx", "name") if hasattr(entry, field)))


def _converts(node: fx.Node) -> bool:
    """Whether an operation asks for a type, which mostly is the one there is."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.name == "aten::to"


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes one of its arguments, as ``relu_`` does."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _live(results: Iterable[Any]) -> set[fx.Node]:
    """What results depend on, without the float layers that only told the markers their shape."""
    live: set[fx.Node] = set()
    todo = [result for result in results if isinstance(result, fx.Node)]
    while todo:
        node = todo.pop()
        if node not in live:
            live.add(node)
            marker = node.target is torch.ops.bitbranch.layer.default
            todo += node.all_input_nodes[:1] if marker else node.all_input_nodes
    return live


def _name(node: fx.Node) -> str:
    """The user's name of the layer that an operation belongs to, or the operation's own name at the top."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""  # torch marks a module's second call by @1
    return path or node.name


def _refuse(node: fx.Node, reason: str) -> CompileError:
    return CompileError(f"layer {_name(node)!r}: {reason}")


def layer_node(layer: QuantizedLayer, path: str, x: aten.Value, output_padding: Sequence[int] = ()) -> g.Layer:
    """The integers of a quantized layer that reads ``x``.

    A transposed convolution adds ``output_padding`` to its output, or else its own.

    Raises:
        CompileError: a float layer, a linear layer along an image's axis, or parameters that are not finite.
    """
    quantizer = layer.input_quantizer
    if quantizer is None or layer.weight_quantizer is None:
        what = "weights are" if layer.weight_quantizer is None else "input is"
        raise CompileError(f"layer {path!r}: its {what} float: {aten.OFFER}")
    if layer.obstacle:
        raise CompileError(f"layer {path!r}: {layer.obstacle}")
    values, scales, weight_type = layer.integer_weight()
    bias = torch.zeros(len(values)) if layer.bias is None else layer.bias.detach()
    if not all(bool(torch.isfinite(t).all()) for t in (values, scales, bias)):
        raise CompileError(f"layer {path!r}: its weights, scales or bias hold a NaN or an infinity")
    weight = values.to(torch.int64).numpy()
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    groups = 1
    if x.spread and max(weight.shape[2:]) > 1:
        raise CompileError(f"layer {path!r}: {aten.WINDOW}; do that to the map as it was before")
    if isinstance(layer, QuantizedLinear):
        if x.dimensions != 2:
            raise CompileError(f"layer {path!r}: a linear layer takes [N, C] here; flatten or pool its input first")
        weight = weight[:, :, None, None]
    elif isinstance(layer, QuantizedConv1d):
        weight = weight[:, :, None, :]
        stride, dilation, groups = (1, layer.stride[0]), (1, layer.dilation[0]), layer.groups
        padding = _padding(layer.padding, (1, weight.shape[3]), dilation)
    elif isinstance(layer, QuantizedConv2d):
        stride, dilation, groups = tuple(layer.stride), tuple(layer.dilation), layer.groups  # type: ignore[assignment]
        padding = _padding(layer.padding, (weight.shape[2], weight.shape[3]), dilation)
    elif isinstance(layer, QuantizedConvTranspose1d):
        weight = weight[:, :, None, :]
        stride, dilation, groups = (1, layer.stride[0]), (1, layer.dilation[0]), layer.groups
        padding = _cut(layer.padding, output_padding or layer.output_padding)
    elif isinstance(layer, QuantizedConvTranspose2d):
        stride, dilation, groups = tuple(layer.stride), tuple(layer.dilation), layer.groups  # type: ignore[assignment]
        padding = _cut(layer.padding, output_padding or layer.output_padding)
    else:
        raise CompileError(f"layer {path!r}: {type(layer).__name__} is not yet compiled")
    return g.Layer(
        path,
        (x.number,),
        weight=weight,
        weight_type=weight_type,
        weight_scale=scales.detach().double().numpy(),
        bias=bias.double().numpy(),
        encoder=quantizer.encoder(),
        scale=quantizer.scale(),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=isinstance(layer, QuantizedConvTranspose),
    )


def _cut(padding: str | tuple[int, ...], output_padding: Sequence[int]) -> Padding:
    """What a transposed convolution cuts off its full output, as (top, bottom, left, right)."""
    assert isinstance(padding, tuple)  # torch has no "same" here
    (top, left), (below, right) = (0, *padding)[-2:], (0, *output_padding)[-2:]
    return (top, top - below, left, left - right)


def _padding(padding: str | tuple[int, ...], kernel: Pair, dilation: Pair) -> Padding:
    """Padding of a torch layer as (top, bottom, left, right); 'same' puts an odd one at the bottom and right."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    vertical, horizontal = (0, *padding)[-2:]  # a 1-d layer has the horizontal only
    return (vertical, vertical, horizontal, horizontal)
