"""Which family of kernels executes a convolution, and what it reads: the fastest one that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..contract import ACCUMULATOR_MAX, CodeType, bounds_of_sums
from ..errors import InputError
from . import layout, tiles, tuning
from . import program as p
from .layout import Form, Ints, Taps
from .tiles import INT16_MAX

DICTIONARY_BITS = {
    "amx": 3, "avx512_vnni": 3, "avx512_vbmi": 3, "avx512": 3, "avx_vnni": 3, "avx2": 3, "neon_dotprod": 4, "neon": 4,
    "scalar": 0,
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

NEON is not measured, for want of an ARM processor. Its row follows from the multiply-accumulates per instruction of the
compiled inner loops: dictionary 18, 9, 6, 4 for 1 to 4 bits, ``byte16`` 2.6.
"""
XNOR_TAPS = {
    "amx": (64, 128), "avx512_vnni": (64, 128), "avx512_vbmi": (64, 128), "avx512": (64, 128), "scalar": (1, 64),
}  # fmt: skip
"""Taps from which on XNOR kernels with carry-save counting are faster, for codes of 1 bit and of 2 to 4 bits.

Measured as above, for 144 taps; without the three-operand logic of AVX-512 the dictionary is never slower:

======== ============================== =========================
..       XNOR, 1 2 4 bits, binary       ternary, 2 4 bits
======== ============================== =========================
avx512   800 400 197                    384 187
avx2     378 194 93                     158 78
scalar   61 30 15                       29 14
======== ============================== =========================
"""
SPARSE_BITS = {isa: 3 if isa.startswith("neon") else 1 for isa in DICTIONARY_BITS}
"""The same for sparse layers; one bit more where repacking for a stride, or sextets, favour bit-planes.

A tile of dictionary words wastes more of its products on channels that an output does not read. Measured by
``benchmarks/depthwise.py``; for NEON it follows from the products that are wasted.
"""
DICTIONARIES = ("dictionary", "sextets", "sextets64")
BIASED = (*DICTIONARIES, "xnor", "xnor_ternary")
"""Kernel families whose sums are higher by the magnitudes of the negative weights, times the greatest rank."""
BYTE16_TAPS = 8
"""With fewer taps within int16, adding up in int32 costs more than the 16-bit kernel saves."""
LINEAR_BATCH = 16
"""From this batch on, a dictionary with images as lanes beats a linear kernel with outputs as lanes."""
DICTIONARY_MOST = 4
"""Most bits of activations that the dictionary kernels take."""
KERNEL_FAMILIES = ("dictionary", "xnor", "byte16", "byte", "byte_signed", "byte_unsigned", "linear")
"""Families that can be forced; ``byte`` is the one of the two that fits the codes' sign."""
LARGE = 400
"""Output pixels from which on the ends of rows and tiles hardly count."""


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


@dataclass(frozen=True)
class Candidate:
    """A family that is exact for a layer, the form that it reads, its dictionary's digits, its taps within int16."""

    family: str
    form: Form
    digits: tuple[int, ...] = ()
    span: int = 0


def choose(
    op: p.Conv,
    source: p.Codes,
    out: p.Pair,
    fused: bool,
    isa: str,
    capacity: int,
    sextets: bool = False,
    phase: bool = False,
    family: str | None = None,
    rates: tuning.Rates = MappingProxyType({}),
) -> Choice:
    """How to execute a convolution.

    Args:
        op: the convolution.
        source: type of its input.
        out: height and width of its output.
        fused: whether its accumulators go into thresholds only.
        isa: instruction set.
        capacity: largest batch.
        sextets: whether the input's bit-planes are sextets.
        phase: whether it makes a phase of a larger image.
        family: to force, if it is exact here.
        rates: this machine's, for the instruction set; empty: the rules above decide.
    """
    size, code_type = source.shape[1:], source.code_type
    pixel = out == (1, 1) and not phase
    total, magnitude = op.sums()
    top = _top(magnitude, code_type)
    found = candidates(op, source, out, top, sextets, phase)
    shape = _shape(op, out, capacity)
    name = family if family in found else tuning.fastest(rates, shape, code_type.bits, op.weight_type.bits, found)
    candidate = found[name or _rule(found, op, code_type, isa, capacity)]
    form, span = candidate.form, candidate.span
    if candidate.family == "linear":
        return Choice("linear", form, folded=fused)
    # One output pixel: a stride over the whole image makes every kernel position a phase of one pixel, and the images
    # of the batch become neighbours.
    stride = (size[0] + op.padding[0], size[1] + op.padding[2]) if pixel else op.stride
    taps = layout.convolution_taps(op, size, out, stride)
    folded = fused and not (form.add != 0 and layout.reads_padding(op, size, out))
    if not span:
        return Choice(candidate.family, form, taps, folded=folded)
    lo, hi = bounds_of_sums(total, magnitude, code_type)
    bound = max(-int(lo.min()), int(hi.max()))
    wide = (top if folded else bound) > INT16_MAX
    return Choice(candidate.family, form, taps, candidate.digits, wide, folded, span)


def forced(program: p.Program, families: Mapping[str, str]) -> dict[int, str]:
    """Families to force by operation number, from names of convolutions or ``"*"``; see :class:`~.engine.Engine`.

    Raises:
        InputError: no such convolution or family, or one that is not exact for the convolution.
    """
    convolutions = [i for i, op in enumerate(program.operations) if isinstance(op, p.Conv)]
    exact = {i: candidates_of(program, i) for i in convolutions} if families else {}
    result: dict[int, str] = {}
    for name, family in sorted(families.items(), key=lambda item: item[0] != "*"):
        wanted = [i for i in exact if name in ("*", program.operations[i].name)]
        if not wanted and name != "*":
            raise InputError(f"families: the program has no convolution {name!r}")
        if family not in KERNEL_FAMILIES:
            raise InputError(f"families: {name!r}: {family!r} is none of {', '.join(KERNEL_FAMILIES)}")
        for i in wanted:
            here = next((f for f in exact[i] if family in (f, f.split("_")[0])), None)
            if here is not None:
                result[i] = here
            elif name != "*":
                raise InputError(f"families: {family!r} is not exact for {name!r}, which has {', '.join(exact[i])}")
    return result


def candidates_of(program: p.Program, operation: int) -> dict[str, Candidate]:
    """:func:`candidates` of a program's convolution; none where its output is not integers."""
    op, out = program.operations[operation], program.values[operation]
    if not isinstance(op, p.Conv) or not isinstance(out, p.Integers):
        return {}
    source = program.values[op.inputs[0]]
    assert isinstance(source, p.Codes)
    return candidates(op, source, out.shape[1:], _top(op.sums()[1], source.code_type))


def candidates(
    op: p.Conv, source: p.Codes, out: p.Pair, top: int, sextets: bool = False, phase: bool = False
) -> dict[str, Candidate]:
    """The families that are exact for a convolution, by name; ``top`` bounds its sums of ranks."""
    code_type, size = source.code_type, source.shape[1:]
    ranks, largest = code_type.count - 1, max(-op.weight_type.lo, op.weight_type.hi)
    found = {}
    if code_type.bits <= DICTIONARY_MOST and top <= ACCUMULATOR_MAX:
        form = replace(Form.planes(code_type), sextets=sextets)
        digits = tiles.dictionary_digits(op, form.channels_per_unit)
        if digits is not None:
            flush, most, family = tiles.dictionary_flush(digits, form.bits, sextets), 255, "dictionary"
            if sextets:
                few = len(digits) ** form.channels_per_unit <= tiles.SEXTET_WORDS
                family = "sextets" if few else "sextets64"
            else:
                most *= 2**form.bits - 1
            found["dictionary"] = Candidate(family, form, digits, flush * (INT16_MAX // most))
            family = {(-1, 1): "xnor", (-1, 0, 1): "xnor_ternary"}.get(digits, "")
            if family and not sextets and (form.bits in (2, 4) or (form.bits == 1 and family == "xnor")):
                most = tiles.XNOR_GROUP * form.channels_per_unit * (2**form.bits - 1)
                found["xnor"] = Candidate(family, form, digits, tiles.XNOR_GROUP * (INT16_MAX // most))
    span = INT16_MAX if top <= INT16_MAX else INT16_MAX // (2 * ranks * largest)
    if span >= 1 and op.weight_type.hi <= 127 and top <= ACCUMULATOR_MAX:
        found["byte16"] = Candidate("byte16", Form.ranks(code_type), (), span)
    form = Form.bytes(code_type)
    family = "byte_signed" if form.is_signed else "byte_unsigned"
    found[family] = Candidate(family, form)
    if out == (1, 1) and not phase and op.groups == 1 and size[0] * size[1] <= 4 * op.kernel[0] * op.kernel[1]:
        found["linear"] = Candidate("linear", Form(0, False, 1, 0))
    return found


def _top(magnitude: Ints, code_type: CodeType) -> int:
    """A bound of a sum of ranks, biased or not, from the outputs' sums of magnitudes."""
    return (2**code_type.bits - 1) * int(magnitude.max())


def _rule(found: dict[str, Candidate], op: p.Conv, code_type: CodeType, isa: str, capacity: int) -> str:
    """The family that the built-in rules prefer."""
    most, xnor = DICTIONARY_BITS[isa], "xnor" in found and isa in XNOR_TAPS
    if tiles.is_sparse(op) and "byte16" in found:
        sextets = "dictionary" in found and found["dictionary"].form.sextets
        most = min(most, SPARSE_BITS[isa] + (sextets or op.stride != (1, 1)))
    dictionary = "dictionary" in found and code_type.bits <= most
    if xnor:
        units = -(-op.packed.shape[1] // found["xnor"].form.channels_per_unit)
        xnor = units * op.kernel[0] * op.kernel[1] >= XNOR_TAPS[isa][code_type.bits > 1]
    if "linear" in found and (not (dictionary or xnor) or capacity < LINEAR_BATCH):
        return "linear"
    if xnor:
        return "xnor"
    if dictionary:
        return "dictionary"
    if "byte16" in found and found["byte16"].span >= BYTE16_TAPS:
        return "byte16"
    return next(name for name in found if name.startswith("byte_"))


def _shape(op: p.Conv, out_size: p.Pair, capacity: int) -> str:
    """The kind of layer that a cost table knows."""
    if out_size == (1, 1):
        return "pixel" if capacity < LINEAR_BATCH else "pixel-batch"
    if op.groups > 1 and op.packed.shape[1] < layout.CHUNK:
        return "grouped"
    return "large" if out_size[0] * out_size[1] >= LARGE else "small"
