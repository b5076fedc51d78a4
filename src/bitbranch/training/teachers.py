"""The networks that a student learns from: several taken for one, and made fast, as they answer in every step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import InputError
from ..tracing import trace

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


class Ensemble(nn.Module):
    """Several networks that answer as one: the mean of their outputs, of each head where they have several.

    Args:
        members: networks of the same inputs and outputs.

    Raises:
        InputError: there are none; in a forward pass, their outputs are not of one shape.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 5, where many networks teach one.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble has no networks")
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Any:
        return _mean([member(x) for member in self.members])


def _mean(outputs: Sequence[Any]) -> Any:
    kinds = {tuple(o.shape) if isinstance(o, Tensor) else len(o) for o in outputs}
    if len(kinds) > 1:
        raise InputError(f"teachers: their outputs differ in shape: {', '.join(map(str, sorted(map(str, kinds))))}")
    if isinstance(outputs[0], Tensor):
        return torch.stack([o.float() for o in outputs]).mean(0)
    return [_mean(parts) for parts in zip(*outputs, strict=True)]


def prepared(teacher: nn.Module) -> nn.Module:
    """A teacher as it answers in every step of a training: evaluated, and two to three times as fast on a CPU.

    BatchNorms are folded into the convolutions in front, in a copy, and all laid out pixel by pixel: the outputs are
    those of the teacher but for their rounding. A network that ``torch.fx`` cannot trace is left
    as it is.
    """
    teacher.eval()
    if isinstance(teacher, Ensemble):
        return Ensemble([prepared(member) for member in teacher.members]).eval()
    try:
        copied = copy.deepcopy(teacher)
        traced = fx.GraphModule(copied, trace(copied))
    except InputError:
        return teacher
    modules: dict[str, Any] = dict(traced.named_modules())
    calls = Counter(node.target for node in traced.graph.nodes)
    for node in traced.graph.nodes:
        norm, source = modules.get(str(node.target)), next(iter(node.all_input_nodes), None)
        if not isinstance(norm, _BatchNorm) or source is None or len(source.users) != 1:
            continue
        layer: Any = modules.get(str(source.target))
        transposed = type(layer) in TRANSPOSED and layer.groups == 1
        known = transposed or type(layer) in CONVOLUTIONS
        if known and norm.running_mean is not None and calls[source.target] == 1:
            traced.set_submodule(str(source.target), fuse_conv_bn_eval(layer, norm, transposed))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
