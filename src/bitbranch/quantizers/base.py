"""What every quantizer is: a thin module over a pure function, that also says its integers.

During training a quantizer maps reals to reals that lie on its levels, with the gradient its paper gives. The same
object states the integer meaning (code type, scale, encoder), from which evaluation, the compiler and every executor
work; so what was trained is what runs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contract import CodeType, Encoder
from .passes import HALVES, dense, row, window

COMPARISONS_MAX = 15
"""Up to so many thresholds, comparing with each is faster on a CPU than a search among them."""


class ActivationQuantizer(nn.Module):
    """Reals to codes, one scale for the whole tensor: ``real = scale * value``.

    Subclasses define :attr:`code_type`, :meth:`scale`, :meth:`encoder` and :meth:`quantize`.

    Attributes:
        reads_signs: whether negative inputs carry information, so that a ReLU in front would destroy the codes.
        mixes: whether :meth:`quantize` gives levels of half precision for reals of half precision, with the gradient of
            float32.
        normalised: whether the levels are for inputs that a BatchNorm has brought to deviation 1.
        obstacle: why no integer program computes the layer behind, or an empty text.
    """

    reads_signs: bool = False
    normalised: bool = False
    mixes: bool = False
    obstacle: str = ""
    _signs_checked: bool = False

    @property
    def ready(self) -> bool:
        """Whether the parameters that come from data are known; see :meth:`start`."""
        return True

    @property
    def code_type(self) -> CodeType:
        """Type of the codes."""
        raise NotImplementedError

    def scale(self) -> float:
        """The real number that value 1 means."""
        raise NotImplementedError

    def encoder(self) -> Encoder:
        """The thresholds between codes, as float64 reals."""
        raise NotImplementedError

    def quantize(self, x: Tensor) -> Tensor:
        """Reals to the nearest levels, any shape, with the training gradient."""
        raise NotImplementedError

    def start(self, x: Tensor) -> None:
        """Choose starting parameters from the first batch seen in training (learned steps); default: nothing."""

    def output_factor(self, x: Tensor, layer: nn.Module) -> Tensor | None:
        """Reals that broadcast with the layer's output and multiply it before the bias; default: None, for 1."""
        return None

    def behind(self, out: Tensor) -> Tensor:
        """The layer's output in training, which may be given another gradient; default: as it is."""
        return out

    def check_signs(self, x: Tensor) -> None:
        """Warn, once, if the first training batch of codes that read signs has no negative input."""
        if self.reads_signs and not self._signs_checked:
            self._signs_checked = True
            if bool((x >= 0).all()):
                warnings.warn(f"{self} reads signs, but its input has none: is there a ReLU in front?", stacklevel=2)

    def values(self, x: Tensor) -> Tensor:
        """The integers that reals are encoded to, any shape, in the dtype of ``x``; exact, without gradient.

        A float32 tensor is compared with the float32 form of the thresholds, a float64 tensor with the reals. Half
        precision is read as float32, and gives it. NaN is encoded as some number: a network that holds one does not
        show it in evaluation.
        """
        encoder = self.encoder()
        x = x.float() if x.dtype in HALVES else x
        if x.dtype == torch.float64:
            thresholds, closed = torch.tensor(encoder.thresholds, dtype=torch.float64), encoder.closed
        else:
            thresholds, closed = torch.from_numpy(encoder.float32_thresholds()), True
        t = encoder.code_type
        return rank(x.detach(), thresholds, closed).to(x.dtype).mul_(t.step).add_(t.lo)

    def forward(self, x: Tensor) -> Tensor:
        """Levels with gradient while training, else ``scale * values(x)``.

        Half precision is read as float32; in mixed precision, where the layer rounds the levels anyway, they may come
        back in it.
        """
        if x.dtype in HALVES and not (self.training and self.mixes and torch.is_autocast_enabled(x.device.type)):
            x = x.float()
        if self.training:
            self.start(x)
            return self.quantize(x)
        return self.values(x) * self.scale()


class WeightQuantizer(nn.Module):
    """Latent weights to low-bit weights with one scale per output channel: ``real = scale[o] * value``.

    Weights always come with outputs first, ``[O, ...]``. Subclasses define :attr:`code_type`, :meth:`integers` and
    :meth:`quantize`.

    Attributes:
        keeps_size: whether the low-bit weights are about as large as the latent ones. Where they are not, the layer
            needs a BatchNorm behind it.
    """

    keeps_size: bool = True

    @property
    def obstacle(self) -> str:
        """Why the weights are not integers with one scale per output channel, or an empty text where they are."""
        return ""

    @property
    def code_type(self) -> CodeType:
        """Type of the codes."""
        raise NotImplementedError

    def hold(self, scale: Tensor) -> None:
        """Take the scales ``[O]`` that a solver has found; quantizers that follow the weights keep their own."""

    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer values ``[O, ...]`` (in the dtype of ``weight``) and scales ``[O]``, without gradient."""
        raise NotImplementedError

    def quantize(self, weight: Tensor) -> Tensor:
        """Reals ``[O, ...]`` on the levels, with the training gradient."""
        raise NotImplementedError

    def start(self, weight: Tensor) -> None:
        """Choose starting parameters from the first weights seen in training; default: nothing."""

    def restart(self, weight: Tensor) -> None:
        """Choose starting parameters anew, for weights that have changed as float ones since; default: nothing."""

    def trap(self, weight: Tensor) -> str:
        """What is known to go wrong when training starts from these latent weights, or an empty text."""
        return ""

    def stored(self, weight: Tensor) -> int:
        """How many numbers of :attr:`code_type` stand for a weight ``[O, ...]``; default: one for each of its own."""
        return weight.numel()

    def project(self, weight: Tensor) -> None:
        """Bring latent weights back into the method's range, in place, after an optimiser step; default: nothing."""

    def forward(self, weight: Tensor) -> Tensor:
        """Levels with gradient while training; ``scale * values`` in evaluation, where there are integers."""
        if self.training:
            self.start(weight)
        if self.training or self.obstacle:
            return self.quantize(weight)
        values, scale = self.integers(weight)
        return values * per_output(scale, weight)


class HeldScales(WeightQuantizer):
    """Base of weights whose scales are computed from them, until a solver sets others (:meth:`hold`), which then stay.

    Of the integers that a solver finds, the largest need not be the largest there is, so their scales cannot be read
    from the latent weights.
    """

    held: Tensor
    """The scales that a solver has set, ``[O]`` float32, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("held", torch.zeros(0))

    def hold(self, scale: Tensor) -> None:
        self.held = scale.detach().float()

    def restart(self, weight: Tensor) -> None:
        self.held = self.held[:0]

    def held_or(self, scale: Callable[[], Tensor]) -> Tensor:
        """The scales ``[O]`` that are held, float32, or where there are none those that a function computes."""
        return self.held if len(self.held) else scale().float()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        # Of any length, and nothing where there is none yet.
        stored = state_dict.setdefault(f"{prefix}held", torch.zeros(0))
        self.held = torch.zeros_like(stored, device=self.held.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Passthrough(torch.autograd.Function):
    """``forward`` gives the second argument, ``backward`` hands the gradient to the first, times a mask."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(mask)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (mask,) = ctx.saved_tensors
        return (grad if mask is None else grad * mask), None, None


class Window(torch.autograd.Function):
    """``forward`` gives the second argument, ``backward`` hands the gradient to the first where ``lo < x < hi``."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.bounds = lo, hi
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return window(grad, x, *ctx.bounds), None, None, None


def rank(x: Tensor, thresholds: Tensor, closed: bool) -> Tensor:
    """How many of the ascending thresholds ``[n]`` each element of ``x`` passes, as small integers, shape of ``x``."""
    if len(thresholds) > COMPARISONS_MAX:
        x = dense(x)
        found = torch.bucketize(row(x), thresholds.to(x.device), right=closed, out_int32=True)
        return found.as_strided(x.shape, x.stride())
    passed = torch.ge if closed else torch.gt
    count = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for t in thresholds.tolist():  # a Python float compares as the float32 or float64 number it came from
        count += passed(x, t).view(torch.uint8)
    return count


def straight_through(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """``y`` in the forward direction with the gradient of ``x``, multiplied by ``mask`` where given.

    Source: the straight-through estimator, Bengio et al., arXiv 1308.3432.
    """
    out: Tensor = Passthrough.apply(x, y, mask)
    return out


def straight_through_within(x: Tensor, y: Tensor, lo: float, hi: float, ends: str = "()") -> Tensor:
    """``y`` in the forward direction with the gradient of ``x`` from ``lo`` to ``hi``, exclusive.

    ``ends`` says which are inclusive, as intervals are written: ``"()"``, ``"(]"``, ``"[)"`` or ``"[]"``.
    """
    dtype = torch.float32 if x.dtype in HALVES else x.dtype
    bounds = torch.tensor([lo, hi], dtype=dtype)
    outwards = torch.nextafter(bounds, torch.tensor([-math.inf, math.inf], dtype=dtype))
    lo, hi = (float(out if end in "[]" else b) for b, out, end in zip(bounds, outwards, ends, strict=True))
    out: Tensor = Window.apply(x, y, lo, hi)
    return out


def signs(x: Tensor) -> Tensor:
    """-1 or +1 for each element, any shape, without gradient; ``sign(0) = +1``."""
    return torch.where(x.detach() >= 0, 1.0, -1.0).to(x.dtype)


def per_output(scale: Tensor, weight: Tensor) -> Tensor:
    """A vector ``[O]`` shaped so that it multiplies ``weight [O, ...]``."""
    return scale.reshape(-1, *[1] * (weight.dim() - 1))


def float32(number: float) -> float:
    """The float32 number nearest to a float, as a Python float; scales are stored so."""
    return float(np.float32(number))
