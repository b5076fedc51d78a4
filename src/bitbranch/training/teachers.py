"""The networks that a student learns from: several taken for one, and made fast, as they answer in every step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import InputError
from ..tracing import trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

SAME = 0.01
"""Of the largest output: what a prepared teacher may differ by; rounding in half precision stays below."""


class Ensemble(nn.Module):
    """Several networks that answer as one: the mean of their outputs, of each head where they have several.

    The mean of logits gives the geometric mean of the networks' probabilities.

    Args:
        members: networks of the same inputs and outputs: tensors, or lists, tuples and mappings of them.

    Raises:
        InputError: there are none; in a forward pass, their outputs are not alike.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 1.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble has no networks")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Any:
        return _mean([member(x) for member in self.members])


def _mean(outputs: Sequence[Any]) -> Any:
    kinds = {_kind(output) for output in outputs}
    if len(kinds) > 1:
        raise InputError(f"teachers: their outputs differ: {', '.join(sorted(kinds))}")
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack([output.float() for output in outputs]).mean(0)
    if isinstance(first, Mapping):
        return {key: _mean([output[key] for output in outputs]) for key in first}
    if isinstance(first, (list, tuple)):
        return [_mean(parts) for parts in zip(*outputs, strict=True)]
    raise InputError(f"teachers: an output is {kinds.pop()}, not a tensor")


def _kind(output: object) -> str:
    """What the outputs of networks that answer as one have in common, for people."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return f"a mapping of {', '.join(map(str, output))}"
    return f"{len(output)} parts" if isinstance(output, (list, tuple)) else type(output).__name__


@torch.no_grad()
def check(teacher: nn.Module, like: nn.Module, images: Tensor) -> None:
    """Raise InputError where a teacher does not take images, or does not say as many numbers as another network does.

    Args:
        teacher: in evaluation mode.
        like: a network of the student's inputs and outputs, in evaluation mode.
        images: some that the student takes, ``[N, C, H, W]``.
    """
    try:
        said = teacher(images)
    except Exception as error:  # the teacher's own code
        text = " ".join(str(error).split())
        raise InputError(f"it does not take images {list(images.shape[1:])} ({text})") from None
    wanted, found = (_shapes(output) for output in (like(images), said))
    if wanted != found:
        raise InputError(f"its outputs are {found} for {len(images)} images, the student's {wanted}")


def _shapes(output: Any) -> Any:
    """Of the tensors in an output, nested as they are."""
    if isinstance(output, Tensor):
        return list(output.shape)
    if isinstance(output, Mapping):
        return {key: _shapes(part) for key, part in output.items()}
    return tuple(map(_shapes, output)) if isinstance(output, (list, tuple)) else type(output).__name__


@torch.no_grad()
def prepared(teacher: nn.Module, images: Tensor) -> nn.Module:
    """A copy of a teacher that answers 1.4 to 2.4 times as fast on a CPU, in evaluation mode.

    BatchNorms are folded into the convolutions in front, and all laid out pixel by pixel. Both networks are asked about
    some images: where their answers are not the same but for rounding, or ``torch.fx`` cannot trace the teacher, or
    anything else goes wrong, the teacher itself is given back.

    Args:
        teacher: not changed, but brought into evaluation mode.
        images: some that it takes, ``[N, C, H, W]``.
    """
    teacher.eval()
    if isinstance(teacher, Ensemble):
        return Ensemble([prepared(member, images) for member in teacher.members]).eval()
    try:
        quick = _folded(teacher)
        return quick if _alike(quick(images), teacher(images)) else teacher
    except Exception:  # the teacher's own code, run in a way that it was not written for
        return teacher


def _folded(teacher: nn.Module) -> nn.Module:
    copied = copy.deepcopy(teacher)
    traced = fx.GraphModule(copied, trace(copied))
    calls = Counter(node.target for node in traced.graph.nodes)
    for node in traced.graph.nodes:
        source = next(iter(node.all_input_nodes), None)
        norm, layer = (_called(traced, n) for n in (node, source))
        if type(norm) not in NORMS or norm.running_mean is None or source is None:
            continue
        transposed = type(layer) in TRANSPOSED and layer.groups == 1
        alone = len(source.users) == 1 and calls[source.target] == 1
        if alone and (transposed or type(layer) in CONVOLUTIONS):
            traced.set_submodule(str(source.target), fuse_conv_bn_eval(layer, norm, transposed))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _called(network: nn.Module, node: fx.Node | None) -> Any:
    """The module that a node calls, if it does."""
    return network.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _alike(quick: Any, said: Any) -> bool:
    """Whether outputs of any nesting are the same but for rounding."""
    if isinstance(said, Tensor):
        bound = SAME * said.abs().max() if said.numel() else 0.0
        return quick.shape == said.shape and bool(((quick - said).abs() <= bound).all())
    if isinstance(said, Mapping):
        return set(quick) == set(said) and all(_alike(quick[key], said[key]) for key in said)
    return len(quick) == len(said) and all(_alike(q, s) for q, s in zip(quick, said, strict=True))
