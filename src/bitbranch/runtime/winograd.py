"""Winograd's filtering of 3 x 3 kernels in integers, exactly: fewer products for the dot-product path.

A patch of ``n x n`` pixels, ``n = side + 2``, gives ``side x side`` outputs by ``n * n`` products of each channel
instead of ``9 * side * side``: 2.25 times fewer for a side of 2, 3.24 times for 3. With ``x`` a patch and ``g`` a
kernel,

    y = (A^T K) ((G' g G'^T) * (B^T x B)) (A^T K)^T / c^2        K G' = c G

in which all factors are integers where ``c`` is 2 or 6, and the division leaves no rest. Codes of few bits leave room
in a byte for ``B^T x B`` and ternary weights for ``G' g G'^T``, so the products are of bytes, as before. Weights of 2
and 4 branches fit, too, unless a kernel consists of the largest ones. The diagonal ``K`` moves factors to where the
products are large, so that these stay small.

Source: Winograd, Arithmetic Complexity of Computations (1980); Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks (CVPR 2016). The native side is ``native/dot/winograd.hpp``. NumPy only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from . import dot
from . import program as p
from .dot import FEWEST_QUADS, Ints, zero
from .layout import round_up

PIXELS: dict[int, Ints] = {
    2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.int64),
    3: np.array(
        [[2, -1, -2, 1, 0], [0, 2, 1, -1, 0], [0, -2, 3, -1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]], np.int64
    ),
}
"""``B^T`` by side; the points are 0, 1, -1, infinity, and 2 with a side of 3."""
WEIGHTS: dict[int, Ints] = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.int64),
    3: np.array([[3, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [0, 0, 3]], np.int64),
}
"""``G'`` by side."""
DIVISORS = {2: 4, 3: 36}
"""``c^2`` by side."""

MATRICES = ("amx",)
"""Instruction sets that multiply so fast that the transforms would take longer than they save."""
GAIN = 0.95
"""Share of the time that filtering may take at most."""
HELD = 384 << 10
"""Bytes that a convolution's transformed weights, and its transformed pixels, take in the second cache each."""

_known: WeakKeyDictionary[p.Conv, dict[int, bool]] = WeakKeyDictionary()
"""By side, whether the weights of a convolution fit, where their type does not say."""


@dataclass(frozen=True)
class Filtering:
    """How a convolution is filtered."""

    side: int
    """Of the outputs of a patch."""
    half: bool
    """Whether products and all behind them are modulo 2^16; see :func:`fits_half`."""
    group: int
    """Patches whose transformed pixels are held at once."""
    together: bool
    """Whether the transformed weights of all outputs are held; else those of 32."""
    scratch: int
    """Bytes that a thread needs."""


def fits(side: int, codes: CodeType, op: p.Conv) -> bool:
    """Whether the transformed codes and weights of a convolution are bytes."""
    least, most = _range(side, codes)
    if int((most - least).max()) > 255:
        return False
    beyond = _largest(side, op.weight_type) > 127
    if not beyond.any():
        return True
    known = _known.setdefault(op, {})
    if side not in known:
        known[side] = not (_largest(side, op.weight_type) > 2 * 127).any() and _weights_fit(side, op, beyond)
    return known[side]


def _weights_fit(side: int, op: p.Conv, planes: npt.NDArray[np.bool_]) -> bool:
    """Whether the weights' transforms are bytes at some planes, ``[n, n]``."""
    g = WEIGHTS[side].astype(np.float32)
    factors = np.stack([np.outer(g[i], g[j]).ravel() for i, j in np.argwhere(planes)], axis=1)
    for _, codes in op.packed.pieces():
        transformed = op.weight_type.decode(codes).reshape(-1, 9).astype(np.float32) @ factors
        if transformed.min() < -128 or transformed.max() > 127:
            return False
    return True


def fits_half(side: int, codes: CodeType, weights: CodeType, sums: p.Integers, narrow_sums: bool) -> bool:
    """Whether products need be known modulo 2^16 only: of ``c^2 y``, which they make, this leaves 14 bits of ``y``.

    Args:
        side: of the outputs of a patch.
        codes, weights: the convolution's.
        sums: its output.
        narrow_sums: whether the instructions saturate sums of two products, which then must fit 16 bits.
    """
    return -(2**13) <= sums.lo and sums.hi < 2**13 and (not narrow_sums or _pair(side, codes, weights) < 2**15)


def narrow_quads(side: int, codes: CodeType, weights: CodeType) -> int:
    """As :func:`~bitbranch.runtime.dot.narrow_quads`, of the transformed numbers."""
    quads = (2**15 - 1) // _pair(side, codes, weights)
    return quads if quads >= FEWEST_QUADS else 0


def summands(side: int, codes: CodeType) -> npt.NDArray[np.uint8]:
    """``[n * n]``: what is added to the transform of stored bytes, modulo 256, so that the least number is 0."""
    ones = PIXELS[side].sum(axis=1)
    least = _range(side, codes)[0]
    return ((-least - zero(codes) * np.outer(ones, ones)) % 256).astype(np.uint8).ravel()


def starts(side: int, codes: CodeType, sums: Ints) -> Ints:
    """What the products of an output start with, for the summands.

    Args:
        side: of the outputs of a patch.
        codes: the convolution's input.
        sums: ``[O, 3, 3]`` of the weights over the input channels.

    Returns:
        ``[O, n * n]``.
    """
    g = WEIGHTS[side]
    transformed = g @ sums @ g.T
    return (transformed * _range(side, codes)[0]).reshape(len(sums), -1)


def family(side: int, narrow: bool) -> str:
    """What a profile calls a filtered convolution: ``winograd3``, or ``winograd3_16`` where sums stay narrow."""
    return f"winograd{side}_16" if narrow else f"winograd{side}"


def family_of(name: str) -> tuple[str, float] | None:
    """The family whose products a filtered convolution takes, and what share of them; None for another family."""
    found = re.fullmatch(r"winograd(\d)(_16)?", name)
    if found is None:
        return None
    side = int(found[1])
    return ("dot16" if found[2] else "dot"), (side + 2) ** 2 / (9 * side**2)


def chunks(channels: int) -> dot.Chunks:
    """The depth of a convolution: 64 channels of each of the nine taps, then the next 64."""
    channel, tap = np.ogrid[:channels, :9]
    count = -(-channels // dot.DEPTH)
    last = channels - (count - 1) * dot.DEPTH
    quads = np.full((count, 9), dot.DEPTH // 4, np.uint8)
    quads[-1] = -(-last // 4)
    columns = (channel // dot.DEPTH * 9 + tap) * dot.DEPTH + channel % dot.DEPTH
    return dot.Chunks(np.zeros(9 * count, np.int32), quads.ravel(), columns)


def choose(op: p.Conv, codes: CodeType, sums: p.Integers, isa: str, narrow_sums: bool) -> tuple[int, float]:
    """How a convolution of one image is fastest.

    More images would share the transform of the weights, but these would be packed in two ways.

    Args:
        op: the convolution.
        codes: its input.
        sums: its output.
        isa: the instruction set.
        narrow_sums: whether sums of products of few bits stay in 16 bits there.

    Returns:
        The side of the outputs of a patch, 0 without filtering, and about what share of the time it takes without.
    """
    kind = (op.kernel, op.stride, op.dilation, op.groups)
    if kind != ((3, 3), (1, 1), (1, 1), 1) or isa in MATRICES:
        return 0, 1.0
    outputs, channels = op.packed.shape[:2]
    narrow = narrow_sums and dot.narrow_quads(codes, op.weight_type) > 0
    best, share = 0, 1.0
    _, height, width = sums.shape
    for side, divisor in DIVISORS.items():
        slow = narrow and narrow_quads(side, codes, op.weight_type) == 0
        effort = _effort(side, channels, outputs, patches(side, sums.shape)) / (9 * height * width)
        large = divisor * max(-sums.lo, sums.hi) >= 2**31
        if not slow and not large and effort < min(share, GAIN) and fits(side, codes, op):
            best, share = side, effort
    return best, share


def plan(core: Any, side: int, half: bool, channels: int, outputs: int, count: int, threads: int) -> Filtering:
    """Groups and memory.

    Args:
        core: the compiled module.
        side: of the outputs of a patch.
        half: whether products are modulo 2^16.
        channels: of the input.
        outputs: channels of the output.
        count: of the patches of all images.
        threads: that share them.
    """
    chunks, blocks = -(-channels // 64), -(-outputs // 32)
    planes, batch = (side + 2) ** 2, core.winograd_batch
    together = planes * chunks * core.dot_depth * core.dot_outputs * blocks <= HELD
    if together:  # groups are what threads share: a multiple of their number, of about the same size
        groups = round_up(-(-count // batch), threads)
        group = min(batch, round_up(-(-count // groups), 4))
    else:
        most = max(1, HELD // (planes * batch * chunks * core.dot_depth))
        group = batch * min(most, -(-count // batch))
    scratch = core.winograd_scratch(side, chunks, group, blocks if together else 1)
    return Filtering(side, half, group, together, scratch)


def patches(side: int, shape: tuple[int, int, int]) -> int:
    """How many there are in an image of an output."""
    return -(-shape[1] // side) * -(-shape[2] // side)


def _effort(side: int, channels: int, outputs: int, patches: int) -> float:
    """What it takes, in multiply-accumulates of sums over all taps, for each pair of a channel and an output."""
    planes = (side + 2) ** 2
    return planes * (patches * (1 + 37 / channels + 6 / outputs) + 7)


def _range(side: int, codes: CodeType) -> tuple[Ints, Ints]:
    """``[n, n]`` each: the least and the largest of the transformed codes, of which pads are the value 0."""
    factors = np.einsum("ia,jb->ijab", PIXELS[side], PIXELS[side])
    up, down = np.maximum(factors, 0).sum(axis=(2, 3)), np.minimum(factors, 0).sum(axis=(2, 3))
    lo, hi = min(codes.lo, 0), max(codes.hi, 0)
    return up * lo + down * hi, up * hi + down * lo


def _pair(side: int, codes: CodeType, weights: CodeType) -> int:
    """The largest sum of two products."""
    least, most = _range(side, codes)
    return 2 * int(((most - least) * _largest(side, weights)).max())


def _largest(side: int, weights: CodeType) -> Ints:
    """``[n, n]``: the largest magnitude of the transformed weights."""
    rows = np.abs(WEIGHTS[side]).sum(axis=1)
    return np.outer(rows, rows) * max(-weights.lo, weights.hi)
