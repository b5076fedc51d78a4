"""Which family of kernels executes a convolution, and what it reads: the fastest one that is exact."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..contract import ACCUMULATOR_MAX, CodeType, bounds_of_sums
from . import layout, tiles
from . import program as p
from .layout import Form, Taps

INT16_MAX = 2**15 - 1
DICTIONARY_BITS = {
    "amx": 3, "avx512_vnni": 3, "avx512_vbmi": 3, "avx512": 3, "avx_vnni": 3, "avx2": 3, "scalar": 0,
}  # fmt: skip
"""Most bits of activations for which the dictionary kernels are faster than ``byte16``.

Measured, 10^9 multiply-accumulates per second on one core of a Xeon of 2023 (56x56, 64 channels, 3x3):

======== ========================= ======== ======
..       dictionary, 1 2 3 4 bits  byte16   byte
======== ========================= ======== ======
avx512   640 360 230 160           185      100
..vbmi   900 480                   185      100
avx2     400 190 129 94            125      65
scalar   4.3 1.9                   22       3
======== ========================= ======== ======
"""
DICTIONARIES = ("dictionary", "sextets", "sextets64")
BYTE16_TAPS = 8
"""With fewer taps within int16, adding up in int32 costs more than the 16-bit kernel saves."""
LINEAR_BATCH = 16
"""From this batch on, any kernel with images as lanes beats a linear kernel with outputs as lanes."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How a convolution is executed."""

    family: str
    form: Form
    """Of the codes that it reads."""
    taps: Taps | None = None
    """Not for the linear family."""
    digits: tuple[int, ...] = ()
    wide: bool = True
    """Whether sums are int32."""
    folded: bool = False
    """Whether thresholds are compared with the sums as they are, since nothing else takes accumulators."""
    span: int = 0
    """Taps whose sums fit int16; 0 for a kernel with int32 sums."""


def choose(
    op: p.Conv, source: p.Codes, out: p.Integers, fused: bool, isa: str, capacity: int, sextets: bool = False
) -> Choice:
    """How to execute a convolution.

    Args:
        op: the convolution.
        source: type of its input.
        out: type of its output.
        fused: whether its accumulators go into thresholds only.
        isa: instruction set.
        capacity: largest batch.
        sextets: whether the input's bit-planes are sextets.
    """
    size, out_size = source.shape[1:], out.shape[1:]
    code_type, pixel = source.code_type, out_size == (1, 1)
    total, magnitude = op.sums()
    top = (2**code_type.bits - 1) * int(magnitude.max())  # bound of a sum of ranks, biased or not
    family, form, digits, span = _family(op, code_type, top, isa, sextets)
    small = op.groups == 1 and size[0] * size[1] <= 4 * op.kernel[0] * op.kernel[1]
    if pixel and small and capacity < LINEAR_BATCH:
        return Choice("linear", Form(0, False, 1, 0), folded=fused)
    # One output pixel: a stride over the whole image makes every kernel position a phase of one pixel, and the images
    # of the batch become neighbours.
    stride = (size[0] + op.padding[0], size[1] + op.padding[2]) if pixel else op.stride
    taps = layout.convolution_taps(op, size, out_size, stride)
    folded = fused and not (form.add != 0 and layout.reads_padding(op, size, out_size))
    if not span:
        return Choice(family, form, taps, folded=folded)
    lo, hi = bounds_of_sums(total, magnitude, code_type)
    bound = max(-int(lo.min()), int(hi.max()))
    wide = (top if folded else bound) > INT16_MAX
    return Choice(family, form, taps, digits, wide, folded, span)


def _family(
    op: p.Conv, code_type: CodeType, top: int, isa: str, sextets: bool
) -> tuple[str, Form, tuple[int, ...], int]:
    """The family, the form that it reads, its dictionary's digits, and its taps whose sums fit int16."""
    ranks, largest = code_type.count - 1, max(-op.weight_type.lo, op.weight_type.hi)
    if code_type.bits <= DICTIONARY_BITS[isa] and top <= ACCUMULATOR_MAX:
        form = replace(Form.planes(code_type), sextets=sextets)
        digits = tiles.dictionary_digits(op, form.channels_per_unit)
        if digits is not None:
            flush = tiles.dictionary_flush(digits, form.bits, sextets)
            if sextets:
                few = len(digits) ** form.channels_per_unit <= tiles.SEXTET_WORDS
                return "sextets" if few else "sextets64", form, digits, flush * (INT16_MAX // 255)
            return "dictionary", form, digits, flush * (INT16_MAX // (255 * (2**form.bits - 1)))
    span = INT16_MAX // (2 * ranks * largest)
    if span >= BYTE16_TAPS and op.weight_type.hi <= 127 and top <= ACCUMULATOR_MAX:
        return "byte16", Form.ranks(code_type), (), span
    form = Form.bytes(code_type)
    return "byte_signed" if form.is_signed else "byte_unsigned", form, (), 0
