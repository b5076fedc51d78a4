"""The integer contract: what a code, a branch, a threshold, a rounding and a padding value mean, everywhere.

Every executor (PyTorch evaluation, the NumPy reference, the native engine, exports) computes the integers
defined here; nothing else in the project re-derives them. NumPy only.

Vocabulary
    code        unsigned integer ``u`` in ``0 .. count-1`` that is stored; one byte in memory
    value       the integer that a code means (:meth:`CodeType.decode`); ``real = scale * value``
    rank        number of thresholds that a real number passes; the k-th smallest value has rank k
    bit-plane   one bit of every code; a branch is a bit-plane as ``2 b - 1`` in {-1, +1}
    accumulator exact integer sum of products of weight values and activation values
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ACCUMULATOR_MAX = 2**31 - 2
"""Largest magnitude of an accumulator or a residual stream; one more, a threshold never passed, is still an int32."""

REQUANTIZE_OFFSET_MAX = 2**61
"""Largest magnitude of a fixed-point offset; with ``|acc * m| < 2**62`` and half a unit the sum fits in int64."""


class Kind(str, Enum):
    """How a code is read as an integer."""

    UNSIGNED = "u"
    BIPOLAR = "b"
    TERNARY = "t"
    SIGNED = "s"


@dataclass(frozen=True)
class CodeType:
    """A kind together with its number of bits, 1 to 8; ternary codes take 2 bits.

    ======== =============================== ==========================
    kind     value of code ``u``             values
    ======== =============================== ==========================
    unsigned ``u``                           ``0 .. 2^K-1``
    bipolar  ``2 u - (2^K-1)``               odd, ``-(2^K-1) .. 2^K-1``
    ternary  ``u - 1``                       ``-1, 0, 1``
    signed   two's complement                ``-2^(K-1) .. 2^(K-1)-1``
    ======== =============================== ==========================

    Raises:
        InputError: no such kind, bits outside 1..8, or ternary with other than 2 bits.
    """

    kind: Kind
    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.kind, Kind):
            raise InputError(f"code type: expected a Kind, got {self.kind!r}")
        if not (isinstance(self.bits, int) and 1 <= self.bits <= 8):
            raise InputError(f"code type {self.kind.name.lower()}: bits must be 1..8, got {self.bits}")
        if self.kind is Kind.TERNARY and self.bits != 2:
            raise InputError(f"code type ternary has 2 bits, got {self.bits}")

    @classmethod
    def parse(cls, text: str) -> CodeType:
        """Read the spelling that ``str()`` writes: ``u2``, ``b1``, ``t``, ``s8``.

        Raises:
            InputError: anything else.
        """
        if text == "t":
            return cls(Kind.TERNARY, 2)
        if len(text) == 2 and text[0] in "ubs" and text[1] in "12345678":
            return cls(Kind(text[0]), int(text[1]))
        raise InputError(f"code type {text!r}: expected one of u1..u8, b1..b8, s1..s8, t")

    def __str__(self) -> str:
        return "t" if self.kind is Kind.TERNARY else f"{self.kind.value}{self.bits}"

    @property
    def count(self) -> int:
        """Number of codes."""
        return 3 if self.kind is Kind.TERNARY else 1 << self.bits

    @cached_property
    def lo(self) -> int:
        """Smallest value."""
        return int(self.decode(self.from_rank(np.zeros(1, np.int64)))[0])

    @cached_property
    def hi(self) -> int:
        """Largest value."""
        return int(self.decode(self.from_rank(np.full(1, self.count - 1)))[0])

    @property
    def step(self) -> int:
        """Distance between neighbouring values: 2 for bipolar codes, else 1."""
        return 2 if self.kind is Kind.BIPOLAR else 1

    @property
    def has_zero(self) -> bool:
        """Whether the value 0 has a code (bipolar codes have none)."""
        return self.kind is not Kind.BIPOLAR

    @property
    def dtype(self) -> type[np.signedinteger]:
        """The narrowest type that holds the values."""
        return np.int8 if -128 <= self.lo and self.hi <= 127 else np.int16

    def decode(self, codes: npt.ArrayLike, dtype: type[np.signedinteger] = np.int32) -> npt.NDArray[Any]:
        """Codes to values, any shape, in :attr:`dtype` or wider. Codes must be below :attr:`count`."""
        u = np.asarray(codes).astype(dtype)  # in a narrow type what follows may wrap round, and comes back
        if self.kind is Kind.BIPOLAR:
            return 2 * u - ((1 << self.bits) - 1)
        if self.kind is Kind.TERNARY:
            return u - 1
        if self.kind is Kind.SIGNED:
            return u - ((u >> (self.bits - 1)) << self.bits)
        return u

    def encode(self, values: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Values to codes, any shape.

        Raises:
            InputError: a value that no code means.
        """
        v = np.asarray(values, dtype=np.int64)
        rank = v - self.lo
        between = self.step == 2 and bool((rank & 1).any())
        if self.step == 2:
            rank >>= 1
        if v.size and (between or rank.min() < 0 or rank.max() >= self.count):
            raise InputError(f"values {v.min()}..{v.max()} are not all values of code type {self}")
        return self.from_rank(rank)

    def from_rank(self, rank: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """The code of the value with this rank (0 = smallest value)."""
        r = np.asarray(rank)
        if self.kind is Kind.SIGNED:
            return ((r + (1 << (self.bits - 1))) & ((1 << self.bits) - 1)).astype(np.uint8)
        return r.astype(np.uint8)

    def to_rank(self, codes: npt.ArrayLike) -> Ints:
        """The rank of each code: the inverse of :meth:`from_rank`."""
        return (self.decode(codes).astype(np.int64) - self.lo) // self.step

    def negate(self, codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Codes of the negated values; needs a symmetric set of values (a signed minimum raises InputError)."""
        u, values = np.asarray(codes, np.uint8), self.decode(np.arange(self.count)).astype(np.int64)
        negatable = np.isin(-values, values)
        if not negatable.all() and not negatable.take(u).all():
            raise InputError(f"not all values of code type {self} in use have a negative")
        return self.encode(np.where(negatable, -values, self.lo)).take(u)


def bit_planes(codes: npt.ArrayLike, code_type: CodeType) -> npt.NDArray[np.uint8]:
    """Split codes into bit-planes, least significant first.

    A ternary code is read as a thermometer (``u >= 1``, ``u >= 2``), so that its two branches weigh the same.

    Args:
        codes: any shape ``S``.
        code_type: their type, ``K`` bits.

    Returns:
        ``[K, *S]`` of {0, 1}.
    """
    u = np.asarray(codes, dtype=np.uint8)
    if code_type.kind is Kind.TERNARY:
        return np.stack([u >= 1, u >= 2]).astype(np.uint8)
    return np.stack([(u >> m) & 1 for m in range(code_type.bits)])


def branches(codes: npt.ArrayLike, code_type: CodeType) -> npt.NDArray[np.int8]:
    """The {-1, +1} branches ``c_m = 2 b_m - 1`` of codes, ``[K, *S]``, least significant first.

    Source: Sun et al., arXiv 2106.09886, the encoding of section 3.
    """
    return (2 * bit_planes(codes, code_type).astype(np.int8) - 1).astype(np.int8)


def branch_weights(code_type: CodeType) -> tuple[list[Fraction], Fraction]:
    """Coefficients ``k_m`` and constant ``k`` with ``value = sum_m k_m c_m + k``, exactly, for every code.

    Bipolar: ``2^m`` and 0. Ternary: ``1/2, 1/2`` and 0. Unsigned: ``2^(m-1)`` and ``(2^K-1)/2``. Signed: as
    unsigned with the top coefficient negated and the constant ``-1/2``.
    """
    bits = code_type.bits
    if code_type.kind is Kind.BIPOLAR:
        return [Fraction(1 << m) for m in range(bits)], Fraction(0)
    if code_type.kind is Kind.TERNARY:
        return [Fraction(1, 2)] * 2, Fraction(0)
    weights = [Fraction(1 << m, 2) for m in range(bits)]
    if code_type.kind is Kind.SIGNED:
        weights[-1] = -weights[-1]
    return weights, sum(weights, Fraction(0))


def sine_branches(x: npt.ArrayLike, bits: int) -> npt.NDArray[np.int8]:
    """The paper's M-bit encoder functions: branches of a real number in [-1, 1] by signs of sines.

    With ``n = 2^M - 1``: the top branch is ``sign(sin(n / 2^M * pi * x))``, branch ``m < M`` (1-based from the
    least significant) is ``sign(-sin(n / 2^m * pi * x))``. The sign at a zero of the sine is the limit from the
    right, which is how the integer encoder closes its intervals: at ``x = 0`` the top branch is +1 and the others
    -1. Production code uses :class:`Encoder`; this is the published form that it equals.

    Args:
        x: reals in [-1, 1], any shape ``S``.
        bits: M, 1..8.

    Returns:
        ``[M, *S]`` of {-1, +1}, least significant first.

    Source: Sun et al., arXiv 2106.09886, the M-bit encoding functions.
    """
    x = np.asarray(x, dtype=np.float64)
    n = (1 << bits) - 1
    zero = np.rint(n * x)  # a sine's zeros are among the points zero / n, which are floats only nearly
    side = np.where(x >= zero / n, 1.0, -1.0)
    scaled = np.where(x == zero / n, zero, n * x)
    out = np.empty((bits, *x.shape), np.int8)
    for m in range(1, bits + 1):
        half_turns = np.mod(scaled / (1 << m), 2.0)
        sine = np.where(half_turns == 0, side, np.where(half_turns == 1, -side, np.sin(np.pi * half_turns)))
        out[m - 1] = np.where((sine if m == bits else -sine) > 0, 1, -1)
    return out


@dataclass(frozen=True)
class Encoder:
    """From a real number to a code: count the thresholds it passes.

    ``rank(y) = #{k : y >= t_k}`` (closed) or ``#{k : y > t_k}`` (open); the code is the one of that rank.

    Args:
        code_type: the codes produced.
        thresholds: ascending reals, ``count - 1`` of them.
        closed: whether a real equal to a threshold passes it.

    Raises:
        InputError: wrong number of thresholds, not ascending, or not finite.
    """

    code_type: CodeType
    thresholds: tuple[float, ...]
    closed: bool = True

    def __post_init__(self) -> None:
        t = np.asarray(self.thresholds, np.float64)
        if t.shape != (self.code_type.count - 1,):
            raise InputError(
                f"encoder of type {self.code_type} needs {self.code_type.count - 1} thresholds, got {t.size}"
            )
        if not np.isfinite(t).all() or (np.diff(t) < 0).any():
            raise InputError("encoder thresholds must be finite and ascending")

    def rank(self, y: npt.ArrayLike) -> Ints:
        """Number of thresholds that each real passes."""
        side = "right" if self.closed else "left"
        return np.searchsorted(np.asarray(self.thresholds), np.asarray(y, np.float64), side=side)  # type: ignore[call-overload]

    def codes(self, y: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Codes of reals of any shape; NaN is the caller's to refuse."""
        return self.code_type.from_rank(self.rank(y))

    def float32_thresholds(self) -> npt.NDArray[np.float32]:
        """Closed float32 thresholds that give the same codes for every float32 input.

        Each is the smallest float32 number that passes the real threshold, so ``y >= t32`` decides as exactly as
        the real comparison does.
        """
        t = np.asarray(self.thresholds, np.float64)
        with np.errstate(over="ignore"):
            t32 = t.astype(np.float32)
        passes = t32 >= t if self.closed else t32 > t
        return np.where(passes, t32, np.nextafter(t32, np.float32(np.inf))).astype(np.float32)


def bipolar_encoder(bits: int) -> Encoder:
    """``u = floor(n (clip(y, -1, 1) + 1) / 2 + 1/2)`` with ``n = 2^K - 1``: halves round up, ``sign(0) = +1``.

    Threshold ``k`` is ``(2 k - 1) / n - 1``. Source: Sun et al., arXiv 2106.09886, the quantizer ``q_K``.
    """
    n = (1 << bits) - 1
    return Encoder(CodeType(Kind.BIPOLAR, bits), tuple((2 * k - 1 - n) / n for k in range(1, n + 1)))


def uniform_encoder(code_type: CodeType, step: float) -> Encoder:
    """Nearest of the type's values times ``step``, halves up: thresholds midway between neighbours, times ``step``.

    Used by LSQ, PACT, DoReFa activations and the 8-bit first and last layers.
    """
    if not (np.isfinite(step) and step > 0):
        raise InputError(f"uniform encoder: the step must be positive and finite, got {step}")
    midpoints = (code_type.lo + (k - 0.5) * code_type.step for k in range(1, code_type.count))
    return Encoder(code_type, tuple(m * step for m in midpoints))


def sparse_encoder(bits: int, eps: float, step: float) -> Encoder:
    """TSQ's sparse codes: thresholds ``(eps, 1.5 D, 2.5 D, ..)``, open, levels ``0, D, 2 D, ..``.

    Source: Wang et al., CVPR 2018, equation (4); HWGQ (Cai et al., CVPR 2017) is the case ``eps = 0``. Where
    ``eps`` exceeds some later thresholds (many bits, high sparsity) those levels are empty: the dead zone wins.
    """
    rest = [max(eps, (k - 0.5) * step) for k in range(2, 1 << bits)]
    return Encoder(CodeType(Kind.UNSIGNED, bits), (eps, *rest), closed=False)


def accumulator_bounds(weights: npt.ArrayLike, code_type: CodeType) -> tuple[Ints, Ints]:
    """Proven least and greatest accumulator per output, for weight values ``[O, ...]`` and any activation codes.

    The weights' positive and negative parts meet the extremes of the activations' values.
    Zero padding replaces an activation by 0, which lies between the extremes of every kind, so the bounds hold at
    borders too.
    """
    return bounds_of_sums(*weight_sums(weights), code_type)


def weight_sums(weights: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Sum of the weights and sum of their magnitudes per output, for weight values ``[O, ...]`` of any integer type."""
    w = np.asarray(weights).reshape(np.shape(weights)[0], -1)
    if w.dtype == np.int8 and w.shape[1] < 1 << 23:  # 32 bits hold the sums; |-128| is 128 as uint8
        magnitude = np.abs(w).view(np.uint8)
        return w.sum(1, dtype=np.int32).astype(np.int64), magnitude.sum(1, dtype=np.uint32).astype(np.int64)
    w = w.astype(np.int32)
    return w.sum(1, dtype=np.int64), np.abs(w).sum(1, dtype=np.int64)


def bounds_of_sums(total: Ints, magnitude: Ints, code_type: CodeType) -> tuple[Ints, Ints]:
    """:func:`accumulator_bounds` from :func:`weight_sums`."""
    positive, negative = (magnitude + total) // 2, (total - magnitude) // 2
    lo, hi = code_type.lo, code_type.hi
    return positive * lo + negative * hi, positive * hi + negative * lo


def fold_thresholds(
    slope: npt.ArrayLike,
    intercept: npt.ArrayLike,
    encoder: Encoder,
    lo: npt.ArrayLike,
    hi: npt.ArrayLike,
    clip: tuple[float, float] = (-np.inf, np.inf),
) -> Ints:
    """Integer thresholds of ``rank(clip(a * acc + b))``, exact in rational arithmetic.

    For ``a > 0`` the rank is ``#{k : acc >= T_k}``; for ``a < 0`` it is ``#{k : -acc >= T_k}``, so the caller
    negates that channel's weights and there is one direction of comparison. ``a = 0`` gives a constant rank.

    The floats are taken as the rationals they are. The quotient ``(t - b) / a`` is first computed in float64, whose
    error is below ``2^-51`` of it; where that cannot decide the rounding, it is computed again with fractions.

    Args:
        slope: ``a``, shape ``[C]``, finite.
        intercept: ``b``, shape ``[C]``, finite.
        encoder: the real encoder, ``n`` thresholds.
        lo: least value of ``acc`` (of ``-acc`` where ``a < 0``), ``[C]``.
        hi: greatest value likewise.
        clip: monotone clip between the affine map and the encoder, as ReLU or HTanh.

    Returns:
        ``[C, n]`` int64, ascending, within ``lo .. hi + 1``: ``lo`` means always passed, ``hi + 1`` never.
    """
    a = np.abs(np.asarray(slope, np.float64))[:, None]
    b = np.asarray(intercept, np.float64)[:, None]
    t = np.asarray(encoder.thresholds, np.float64)[None, :]
    lo_, hi_ = np.asarray(lo, np.int64)[:, None], np.asarray(hi, np.int64)[:, None]
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("folding needs finite slopes and intercepts (a NaN or infinity in the weights or BatchNorm?)")

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.where(a > 0, (t - b) / np.where(a > 0, a, 1), 0.0)
        exact = np.ceil(quotient) if encoder.closed else np.floor(quotient) + 1
        doubtful = np.abs(quotient - np.rint(quotient)) <= np.abs(quotient) * 2.0**-50 + 2.0**-1000
    thresholds = np.clip(exact, lo_, hi_ + 1).astype(np.int64)
    for c, k in np.argwhere((a > 0) & doubtful & (quotient > lo_ - 2) & (quotient < hi_ + 2)):
        ratio = (Fraction(t[0, k]) - Fraction(b[c, 0])) / Fraction(a[c, 0])
        ceiling = -(-ratio.numerator // ratio.denominator)
        whole = ratio.denominator == 1
        thresholds[c, k] = ceiling + (1 if whole and not encoder.closed else 0)

    passed = (b >= t) if encoder.closed else (b > t)
    constant = np.where(passed, lo_, hi_ + 1)
    thresholds = np.where(a > 0, thresholds, constant)
    floor_passes = (clip[0] >= t) if encoder.closed else (clip[0] > t)
    ceiling_fails = (clip[1] < t) if encoder.closed else (clip[1] <= t)
    thresholds = np.where(floor_passes, lo_, np.where(ceiling_fails, hi_ + 1, thresholds))
    return np.clip(thresholds, lo_, hi_ + 1)


def fixed_point(ratio: npt.ArrayLike, bound: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Multiplier and shift with ``ratio ~ m / 2^s``, to 30 significant bits (fewer below ``2^-31``).

    Args:
        ratio: reals of any sign, ``[C]``.
        bound: largest ``|acc|`` the multiplier will meet, ``[C]``; ``|acc * m| < 2^62`` is guaranteed.

    Returns:
        ``m`` and ``s`` (``0 <= s <= 61``), ``[C]`` int64, ``|m| <= 2^30``.

    Raises:
        InputError: a ratio that is not finite or of ``2^30`` and more, or a bound beyond an accumulator's.
    """
    multipliers, shifts = [], []
    for r, top in np.broadcast(np.asarray(ratio, np.float64), np.asarray(bound, np.int64)):
        if not np.isfinite(r):
            raise InputError(f"fixed-point ratio must be finite, got {r}")
        exponent = int(np.frexp(r)[1])
        shift = min(61, 30 - exponent)
        m = round(Fraction(float(r)) * Fraction(2) ** shift)
        if shift < 0 or abs(m) * int(top) >= 1 << 62:
            raise InputError(f"fixed-point ratio {r} of an accumulator up to {top} does not fit")
        multipliers.append(m)
        shifts.append(shift)
    return np.asarray(multipliers, np.int64), np.asarray(shifts, np.int64)


def requantize(acc: npt.ArrayLike, multiplier: Ints, shift: Ints, offset: Ints, lo: int, hi: int) -> Ints:
    """``clamp((acc * m + offset + 2^(s-1)) >> s, lo, hi)``: fixed-point rescaling, halves round up.

    ``s = 0`` adds nothing. The arguments broadcast; all arithmetic is int64 and does not overflow where
    :func:`fixed_point` chose ``m`` and the offset is within :data:`REQUANTIZE_OFFSET_MAX`.
    """
    half = np.where(shift > 0, np.int64(1) << np.maximum(shift - 1, 0), 0)
    return np.clip((np.asarray(acc, np.int64) * multiplier + offset + half) >> shift, lo, hi)
