"""Which of the engine's two paths runs a program: planar kernels, or products of bytes. Results do not depend on it.

An estimate says so where one path is much faster; else the engine times both (:meth:`Engine._race`).
"""

from __future__ import annotations

from dataclasses import dataclass

from . import dot, winograd
from . import program as p
from .layout import round_up


@dataclass(frozen=True)
class Cost:
    """What layers take on a path, one thread; for whole networks, so what is between the layers counts too."""

    gmacs: tuple[float, ...]
    """10^9 multiply-accumulates per second for activations of 1, 2, .. bits; the last stands for all above."""
    output: float
    """Nanoseconds that finishing an output takes."""
    depthwise: float
    """Nanoseconds for each tap of a depthwise output."""
    narrow: float = 0.0
    """The same as ``gmacs`` where sums of products stay in 16 bits for a while; 0: they never do."""
    wide: float = 1.0
    """How many times longer it takes with weights that do not fit a byte."""

    def milliseconds(self, program: p.Program, products: str = "") -> float:
        """An estimate for one image, on the path of dot products if their instruction set is given."""
        total = 0.0
        for op, value in zip(program.operations, program.values, strict=True):
            if not isinstance(op, (p.Conv, p.ConvTranspose)):
                continue
            source = program.values[op.inputs[0]]
            assert isinstance(source, p.Codes)
            macs, outputs = op.macs(source), value.shape[0] * value.shape[1] * value.shape[2]
            rate = self.gmacs[min(source.code_type.bits, len(self.gmacs)) - 1]
            if self.narrow and dot.narrow_quads(source.code_type, op.weight_type):
                rate = self.narrow
            if not dot.fits_byte(op.weight_type):
                rate /= self.wide
            if products and not dot.is_depthwise(op):
                rate *= value.shape[0] / round_up(value.shape[0], dot.OUTPUTS // 2)
            if not products:
                rate *= _filled(op, value.shape) / FILLED
            if products and isinstance(op, p.Conv) and isinstance(value, p.Integers):
                rate /= winograd.choose(op, source.code_type, value, products, self.narrow > 0)[1]
            nanoseconds = macs * self.depthwise if dot.is_depthwise(op) else macs / rate
            total += 1e-6 * (nanoseconds + outputs * self.output)
        return total


def _filled(op: p.Conv | p.ConvTranspose, out: tuple[int, ...]) -> float:
    """Which share of its vectors of pixels the planar path fills with outputs; pads lie between the rows."""
    _, height, width = out
    if height * width == 1:
        return FILLED  # outputs side by side instead
    return height * width / round_up(height * (width + op.padding[2]), PIXELS)


PIXELS, FILLED = 64, 0.87
"""Pixels that the planar kernels compute at once, and the share of them that counts in the networks of the costs."""

PRODUCTS = {
    "amx": Cost((1200,), 0.3, 0.065, wide=2),
    "avx512_vnni": Cost((235,), 0.3, 0.065, wide=2),
    "avx512_vbmi": Cost((45,), 0.33, 0.065, narrow=225, wide=2),
    "avx512": Cost((45,), 0.33, 0.065, narrow=225, wide=2),
    "avx_vnni": Cost((130,), 0.4, 0.1, wide=2),
    "avx2": Cost((33,), 0.45, 0.1, narrow=150, wide=2),
}
"""The dot-product path, where the processor has instructions for it.

Fitted, as the planar costs, to ResNet-18, AlexNet and MobileNetV2 on one core of a Xeon of 2023 and, with Winograd's
filtering, an EPYC of 2024. An instruction set that is not here was never timed, and takes the path whenever it can.
"""
PLANAR = {
    "sextets": Cost((500, 280, 150, 95, 70), 0.24, 0.026),
    "avx512": Cost((470, 260, 150, 95, 70), 0.24, 0.026),
    "avx2": Cost((240, 145, 90, 68, 55), 0.35, 0.035),
}
"""The planar path by its kernels: with AVX-512 and look-ups of 64 entries, without these, and with AVX2."""


CLOSE = 1.3
"""Estimates that differ by less are not trusted: processors with the same instructions differ as much.

Wider, and engines for most networks would be made twice.
"""
WORTH_TIMING = 0.02, 250.0
"""Milliseconds of an image below which it does not matter, and above which it would take too long."""


def estimates(program: p.Program, isa: str, sextets: bool) -> tuple[float, float]:
    """Milliseconds of an image on the path of dot products and on the planar one, for :func:`prefers_products`.

    An instruction set without costs takes no time at all.
    """
    if isa not in PRODUCTS:
        return 0.0, 1.0
    planar = PLANAR["avx2" if isa in ("avx_vnni", "avx2") else "sextets" if sextets else "avx512"]
    return PRODUCTS[isa].milliseconds(program, isa), planar.milliseconds(program)


def prefers_products(program: p.Program, isa: str, sextets: bool) -> bool:
    """Whether the dot-product path is the faster one by the estimates, where both can run a program.

    Args:
        program: the program.
        isa: an instruction set that multiplies bytes and adds them up.
        sextets: whether its planar kernels look up tables of 64 entries.
    """
    products, planar = estimates(program, isa, sextets)
    return products <= planar


def are_close(program: p.Program, isa: str, sextets: bool) -> bool:
    """Whether both paths should rather be timed than estimated."""
    low, high = sorted(estimates(program, isa, sextets))
    return WORTH_TIMING[0] <= low <= WORTH_TIMING[1] and high < CLOSE * low
