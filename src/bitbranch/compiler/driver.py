"""`compile`: capture, simplify, lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.program import Program
from . import graph as g
from .capture import capture
from .lower import Table, lower
from .passes import simplify


def compile(
    q: nn.Module,
    example: Tensor | npt.ArrayLike | tuple[Tensor | npt.ArrayLike, ...],
    *,
    name: str | None = None,
    info: Mapping[str, str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Program:
    """The integer program of a quantized network.

    The program takes float32 images ``[N, C, H, W]`` (a sequence ``[N, C, L]`` as ``[N, C, 1, L]``, a vector
    ``[N, C]`` as ``[N, C, 1, 1]``), one array for each argument of ``q``, and gives what ``q`` gives in evaluation: the
    same integers at every layer, apart from roundings of residual sums, and of averages and bilinear upsampling behind
    an activation. Without those its codes equal the ones that ``q`` has in exact arithmetic, bit for bit;
    :func:`verify` counts.

    Inputs are named as the arguments are, a single one ``input``. Outputs are named by the keys and indices under which
    ``q`` returns them (``boxes``, ``boxes.0``, ``output0``), a single one ``output``.

    Args:
        q: network of quantized layers, from :func:`~bitbranch.quantize`; not changed, nor is its mode.
        example: one image or more, as ``q`` takes them, tensor or array of reals; only the shape matters. A tuple of
            them for a network of several arguments.
        name: the network's name, kept in the program's info.
        info: further texts about the network, kept in the file.
        mean, std: the images' normalisation, a number or one per channel. With either, the program also takes uint8
            images; pixel ``u`` counts as ``(float32(u) / 255 - mean) / std``, evaluated in float32 in this order.
            Default 0 and 1. With several inputs they are for all of them.

    Raises:
        CompileError: a layer or operation that has no integer form; names it and the reason.
        InputError: an example, mean or std that does not fit.
    """
    examples = [_tensor(x) for x in (example if isinstance(example, tuple) else (example,))]
    graph = simplify(capture(q, *examples))
    inputs = [i for i, node in enumerate(graph.nodes) if isinstance(node, g.Input)]
    given = mean is not None or std is not None
    tables = {i: _table(graph.shapes[i][0], mean, std) for i in inputs} if given else {}
    texts = {} if name is None else {"name": name}
    texts |= {str(k): str(v) for k, v in (info or {}).items()}
    return lower(graph, texts, tables)


def _tensor(example: Tensor | npt.ArrayLike) -> Tensor:
    try:
        return torch.as_tensor(example)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            "compile: the example must be a tensor or an array, or a tuple of them for several arguments, got a "
            f"{type(example).__name__}"
        ) from None


def _table(channels: int, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Table:
    numbers = []
    for what, given, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        a = np.asarray(default if given is None else given, np.float32).reshape(-1)
        if a.size not in (1, channels) or not np.isfinite(a).all():
            raise InputError(f"compile: {what} must be one finite number or one for each of {channels} channels")
        numbers.append(np.array(np.broadcast_to(a, (channels,))))
    if (numbers[1] <= 0).any():
        raise InputError("compile: std must be positive")
    return Table(*numbers)
