"""Cyclic coordinate descent over the low-bit weights of a layer, and the scales that go with them.

Everything that is added up is an integer: inputs are, weights are, and ``z`` is rounded to a grid so fine that it does
not show. Sums of integers are exact in float64, in any order; so the compiled core and PyTorch give the same weights,
bit for bit, with any number of threads, on any instruction set, however the sums are split.

Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ..contract import CodeType, Kind
from ..errors import BitbranchError, InputError
from ..runtime.engine import compiled_core

BLOCK = 64
"""Weights whose products are kept up to date singly, without the compiled core; the rest follow by one product."""

FLOAT64_EXACT = 2.0**53
"""Integers up to this are exact in float64."""

INT32 = 2.0**31

PARTNERS = 32
"""Inputs that a weight is tried together with."""

LEAST = 1e-9
"""What changing a pair must gain, as a share of the first weight's curvature."""

ROWS, OUTPUTS = 1024, 128
"""Rows of a large Gram matrix that are converted at once; outputs whose products are added up at once."""


@dataclass(frozen=True)
class Levels:
    """The integers a weight may take: ``-top, -top + step, .., top``."""

    top: int
    step: int

    @classmethod
    def of(cls, code_type: CodeType) -> Levels:
        """Levels of a weight code type; a signed type's lone minimum is left out, so that negation stays possible.

        Raises:
            InputError: unsigned weights.
        """
        if code_type.kind is Kind.UNSIGNED:
            raise InputError(f"weights of type {code_type} cannot be negative; step 2 needs symmetric levels")
        return cls(code_type.hi, code_type.step)

    def nearest(self, u: Tensor) -> Tensor:
        """The level nearest to each real, any shape. For ternary weights a half rounds to 0."""
        return (((u + self.top) / self.step).round() * self.step - self.top).clamp(-self.top, self.top)


@dataclass(frozen=True)
class Moments:
    """Statistics of a layer's integer inputs ``x``, over all samples.

    Attributes:
        count: number of samples ``P``.
        total: sums of the inputs, ``[G, n]`` float64 integers.
        products: ``X X^T`` of the inputs as they are, ``[G, n, n]``, int32 or float64 integers; with ``held`` added to
            the diagonal.
        largest: greatest magnitude of an input.
        held: what each weight is held by, ``[G, n]`` float64 integers, see :class:`Anchor`; ``None``: nothing.
    """

    count: int
    total: Tensor
    products: Tensor
    largest: int
    held: Tensor | None = None

    def holding(self, share: float) -> Moments:
        """These with every weight held by a share of its input's variance; they take over :attr:`products`."""
        if share == 0:
            return self
        held = (share * self.curvature).round()
        diagonal = self.products.diagonal(dim1=1, dim2=2)
        fits = self.products.dtype == torch.float64 or float((diagonal + held).max()) < INT32
        products = self.products if fits else self.products.double()
        products.diagonal(dim1=1, dim2=2).add_(held.to(products.dtype))
        return replace(self, products=products, held=held)

    @cached_property
    def mean(self) -> Tensor:
        """``[G, n]`` float64."""
        return self.total / self.count

    @property
    def gram(self) -> Tensor:
        """``A = X X^T`` of the centred inputs and what is held, ``[G, n, n]`` float64, made anew at every call."""
        return self.products.double() - self.total[:, :, None] * self.mean[:, None]

    @cached_property
    def curvature(self) -> Tensor:
        """The diagonal of :attr:`gram`, ``[G, n]``; exactly 0 for inputs that never vary."""
        diagonal, total = self.products.diagonal(dim1=1, dim2=2).to(torch.int64), self.total.to(torch.int64)
        numbers = zip(diagonal.flatten().tolist(), total.flatten().tolist(), strict=True)
        whole = [float(self.count * d - t * t) for d, t in numbers]  # of many samples more than 64 bits
        return torch.tensor(whole, dtype=torch.float64).view_as(self.total) / self.count

    @cached_property
    def row_sum(self) -> float:
        """The greatest sum of magnitudes in a row of :attr:`products`."""
        return max(float(rows.abs().sum(2, dtype=torch.float64).max()) for rows in self.products.split(ROWS, dim=1))

    @cached_property
    def partners(self) -> tuple[Tensor, Tensor]:
        """Of each input the others that correlate most with it, and how: see :class:`Descent`.

        Returns:
            Indices ``[G, n, PARTNERS]`` int32, and elements of :attr:`gram` there, float64. Where there are fewer
            inputs, the first stands there again.
        """
        groups, n = self.total.shape
        index = torch.empty(groups, n, PARTNERS, dtype=torch.int32)
        covariance = torch.empty(groups, n, PARTNERS, dtype=torch.float64)
        again = torch.arange(PARTNERS) % min(PARTNERS, n - 1)
        for g in range(groups):
            deviation = self.curvature[g].sqrt()
            for first in range(0, n, ROWS):
                rows = slice(first, first + ROWS)
                gram = self.products[g, rows].double() - self.total[g, rows, None] * self.mean[g]
                likeness = torch.where(deviation > 0, gram.abs() / deviation, -1.0)
                likeness.diagonal(first).fill_(-2)
                found = likeness.topk(min(PARTNERS, n - 1)).indices[:, again]
                index[g, rows] = found.int()
                covariance[g, rows] = gram.gather(1, found)
        return index, covariance

    def times(self, weight: Tensor) -> Tensor:
        """:attr:`products` times weights ``[G, n, O]``, the same shape; in memory output by output."""
        groups, n, outputs = weight.shape
        out = torch.empty(groups, outputs, n, dtype=torch.float64)
        for first in range(0, n, ROWS):
            rows = self.products[:, first : first + ROWS].double()
            out[:, :, first : first + ROWS] = weight.transpose(1, 2) @ rows.transpose(1, 2)
        return out.transpose(1, 2)

    def power(self, weight: Tensor, products: Tensor | None = None, top: int | None = None) -> Tensor:
        """``||w^T (X - mean)||^2`` of every output, ``[G, n, O] -> [G, O]``; nothing of what is held.

        Args:
            weight: ``[G, n, O]``.
            products: :meth:`times` of it, if known.
            top: greatest magnitude of a weight, if known.
        """
        products = self.times(weight) if products is None else products
        bound = (float(weight.abs().max()) if top is None else top) ** 2 * self.row_sum
        whole = exact_dot(weight, products, bound) - self.tension(weight)
        return (whole - self.through(weight).square() / self.count).clamp_(min=0)

    def tension(self, weight: Tensor) -> Tensor:
        """What is held of ``w^2``, ``[G, n, O] -> [G, O]``: with :meth:`power` ``w^T A w``."""
        if self.held is None:
            return torch.zeros_like(weight[:, 0])
        return torch.cat([(self.held[:, None] @ some.square())[:, 0] for some in weight.split(OUTPUTS, 2)], 1)

    def through(self, weight: Tensor) -> Tensor:
        """Sums over the samples of ``w^T x``, ``[G, n, O] -> [G, O]``; exact."""
        return (self.total[:, None] @ weight)[:, 0]


@dataclass(frozen=True)
class Cross:
    """What the weights need to know of ``z``, which is an integer times ``unit``.

    Attributes:
        products: sums of inputs times those integers, ``[G, n, O]`` float64, in memory output by output.
        total: sums of those integers, ``[G, O]`` float64.
        unit: a power of two.
        bound: greatest magnitude that a product can have.
        power: ``||z - shift||^2``, ``[G, O]`` float64.
        mean: of the inputs, ``[G, n]``.
    """

    products: Tensor
    total: Tensor
    unit: float
    bound: float
    power: Tensor
    mean: Tensor

    @property
    def product(self) -> Tensor:
        """``b = (X - mean) (z - shift)``, ``[G, n, O]`` float64, made anew at every call."""
        return (self.products - self.mean[:, :, None] * self.total[:, None]) * self.unit


@dataclass(frozen=True)
class Anchor:
    """Real weights ``u`` that solved ones are held at: ``sum_n held_n (alpha w_n - u_n)^2`` is minimised, too.

    The samples are some thousand, the weights as many: what is least for those samples is not what is least for all
    images, the less so the better the search. With a share of every input's variance added to the Gram matrix's
    diagonal, the matrix shrinks towards one of inputs that have nothing to do with each other (Ledoit and Wolf, A
    well-conditioned estimator for large-dimensional covariance matrices, 2004), and the weights towards step 1's.

    Attributes:
        rows: real weights, ``[G, O, n]``.
        factor: of every output, ``[G, O]`` float64: ``u = factor * rows``.
    """

    rows: Tensor
    factor: Tensor

    def weight(self, outputs: slice) -> Tensor:
        """``u`` of some outputs, ``[G, outputs, n]`` float64."""
        return self.rows[:, outputs].double() * self.factor[:, outputs, None]


@dataclass
class Solution:
    """Low-bit weights of a layer: ``v = scale * weight^T (x - mean) + shift``.

    Attributes:
        weight: levels ``[G, n, O]``, float64.
        scale: ``alpha >= 0``, ``[G, O]`` float64.
    """

    weight: Tensor
    scale: Tensor


def exact_dot(weight: Tensor, values: Tensor, bound: float) -> Tensor:
    """``sum_n weight * values`` of integers in float64, rounded only once: ``[G, n, O] -> [G, O]``.

    Args:
        weight: ``[G, n, O]``.
        values: ``[G, n, O]``, integers below 2^53 in magnitude.
        bound: greatest magnitude that a single product can have.
    """
    pieces = zip(weight.split(OUTPUTS, 2), values.split(OUTPUTS, 2), strict=True)
    if bound * weight.shape[1] < FLOAT64_EXACT:
        return torch.cat([(w * v).sum(1) for w, v in pieces], 1)
    unit, out = 2.0**27, []
    for w, v in pieces:
        high = (v / unit).round_()
        out.append((w * high).sum(1) * unit + (w * (v - high * unit)).sum(1))
    return torch.cat(out, 1)


class Descent:
    """Alternates scales and weights for given ``z``, in place.

    Args:
        moments: of the inputs.
        solution: what is changed; between calls nobody else may change its weights.
        levels: of the weights.
        anchor: where they are held, if the moments say that they are.
        native: whether the compiled core descends; None takes it where it is installed. The result is the same.
        isa: its instruction set; default: the widest.

    Raises:
        InputError: the compiled core is asked for and not installed.
    """

    def __init__(
        self,
        moments: Moments,
        solution: Solution,
        levels: Levels,
        anchor: Anchor | None = None,
        *,
        native: bool | None = None,
        isa: str | None = None,
    ) -> None:
        self.moments, self.solution, self.levels, self.anchor = moments, solution, levels, anchor
        core = None if native is False else _core()
        if native and core is None:
            raise InputError("coordinate descent: the compiled core is not installed")
        self.machine = core and core.Machine(isa or core.instruction_sets()[0], torch.get_num_threads())
        solution.weight = solution.weight.transpose(1, 2).contiguous().transpose(1, 2)
        self.products = moments.times(solution.weight)

    def anchored(self, cross: Cross) -> Cross:
        """The statistics with the pull of the anchor, in place: what the other methods take."""
        if self.anchor is None or self.moments.held is None:
            return cross
        held, bound = self.moments.held[:, None], cross.bound
        for first in range(0, cross.power.shape[1], OUTPUTS):
            some = slice(first, first + OUTPUTS)
            wanted = self.anchor.weight(some)
            pull = (held * wanted).div_(cross.unit).round_()
            bound = max(bound, cross.bound + float(pull.abs().max()))
            cross.products.transpose(1, 2)[:, some] += pull
            cross.power[:, some] += (held * wanted.square_()).sum(2)
        return replace(cross, bound=bound)

    def tension(self) -> Tensor:
        """``sum_n held_n (alpha w_n - u_n)^2`` of every output, ``[G, O]``."""
        s, held = self.solution, self.moments.held
        if self.anchor is None or held is None:
            return torch.zeros_like(s.scale)
        apart = s.weight.transpose(1, 2) * s.scale[:, :, None] - self.anchor.weight(slice(None))
        return (held[:, None] * apart.square_()).sum(2)

    def fit_scale(self, cross: Cross) -> None:
        """``alpha = z^T X^T w / ||X^T w||^2``; a negative one turns the weights around instead."""
        s, m = self.solution, self.moments
        fit = exact_dot(s.weight, cross.products, self.levels.top * cross.bound)
        fit -= m.through(s.weight) * cross.total / m.count
        power = m.power(s.weight, self.products, self.levels.top) + m.tension(s.weight)
        usable = (power > 0) & (fit != 0)
        turn = usable & (fit < 0)
        if turn.any():
            sign = torch.where(turn, -1.0, 1.0).double()[:, None]
            s.weight *= sign
            self.products *= sign
        s.scale = torch.where(usable, fit.abs() * cross.unit / power.clamp(min=1e-300), s.scale)

    def fit_weights(self, cross: Cross) -> int:
        """One cycle over the weights.

        With the others fixed, weight ``n`` is best at the level nearest to ``(b_n - alpha sum_{j != n} A_nj w_j) /
        (alpha A_nn)``: for ternary levels ``-sign(l_n)`` where ``|l_n| > alpha A_nn``, else 0; for binary ones
        ``-sign(l_n)``. The product ``A w`` is carried along instead of computed anew. Inputs that never vary keep their
        weight.

        Returns:
            How many weights changed.
        """
        groups = range(len(self.moments.total))
        return sum(self._native(g, cross) if self.machine else self._plain(g, cross) for g in groups)

    def fit_pairs(self, cross: Cross) -> int:
        """One cycle over the weights, each together with one of the inputs that correlate most with its own.

        Where inputs are alike, as neighbouring pixels are, a weight that is wrong is often held in place by another
        one, and no single change helps. Of all changes of a weight by one level or two, with the best answer of each
        partner, or none, the pair is taken that lowers ``||z - alpha X^T w||^2`` most, if any does.

        Returns:
            How many pairs, or single weights, changed.
        """
        groups, n = self.moments.total.shape
        if n == 1:
            return 0
        return sum(
            self._native(g, cross, pairs=True) if self.machine else self._plain_pairs(g, cross) for g in range(groups)
        )

    def _native(self, g: int, cross: Cross, *, pairs: bool = False) -> int:
        m, s = self.moments, self.solution
        partner, covariance = (of[g].numpy() for of in m.partners) if pairs else (None, None)
        small = 2 * self.levels.top * m.row_sum < INT32
        gram = m.products[g] if m.products.dtype == torch.int32 and small else m.products[g].double()
        return int(
            _core().descend(
                self.machine,
                gram=gram.contiguous().numpy(),
                sum=m.total[g].numpy(),
                mean=m.mean[g].numpy(),
                curvature=m.curvature[g].numpy(),
                cross=cross.products[g].T.numpy(),
                total=cross.total[g].contiguous().numpy(),
                unit=cross.unit,
                scale=s.scale[g].contiguous().numpy(),
                top=self.levels.top,
                step=self.levels.step,
                weight=s.weight[g].T.numpy(),
                product=self.products[g].T.numpy(),
                partner=partner,
                covariance=covariance,
            )
        )

    def _plain(self, g: int, cross: Cross) -> int:
        m, weight, products, scale = self.moments, self.solution.weight[g], self.products[g], self.solution.scale[g]
        mean, curvature = m.mean[g], m.curvature[g]
        sums = (m.total[g][:, None] * weight).sum(0)  # of the inputs times the weights
        changed = 0
        for start in range(0, len(weight), BLOCK):
            rows = slice(start, start + BLOCK)
            before, columns = weight[rows].clone(), m.products[g, :, rows].double()
            block = products[rows].clone()
            for i in range(start, start + len(block)):
                steepness = scale * curvature[i]
                wanted = (cross.products[g, i] - mean[i] * cross.total[g]) * cross.unit
                got = block[i - start] - mean[i] * sums
                new = self.levels.nearest(weight[i] + (wanted - scale * got) / steepness)
                delta = torch.where(steepness > 0, new - weight[i], 0.0)
                weight[i] += delta
                sums += m.total[g, i] * delta
                block += columns[rows, i - start, None] * delta
            delta = weight[rows] - before
            changed += int(torch.count_nonzero(delta))
            products += columns @ delta
        return changed

    def _plain_pairs(self, g: int, cross: Cross) -> int:
        m, weight, products, scale = self.moments, self.solution.weight[g], self.products[g], self.solution.scale[g]
        mean, total, curvature, (top, step) = m.mean[g], m.total[g], m.curvature[g], (self.levels.top, self.levels.step)
        inverse = torch.where(curvature > 0, 1.0 / curvature, 0.0)
        sums = (total[:, None] * weight).sum(0)  # of the inputs times the weights
        changed = 0
        for i in torch.nonzero(curvature > 0).flatten().tolist():
            partner, pull = m.partners[0][g, i].long(), m.partners[1][g, i, :, None]
            rows = torch.cat([torch.tensor([i]), partner])
            wanted = (cross.products[g, rows] - mean[rows, None] * cross.total[g]) * cross.unit
            gradient = scale * (products[rows] - mean[rows, None] * sums) - wanted
            steepness, own = scale * curvature[i], gradient[0]
            theirs, flatness = scale * curvature[partner, None], inverse[partner, None] * (1.0 / scale)
            best, by, by_partner = -LEAST * steepness, torch.zeros_like(scale), torch.zeros_like(scale)
            who = torch.zeros_like(scale, dtype=torch.int64)
            for steps in (-2, -1, 1, 2):
                change = float(steps * step)
                alone = change * (steepness * change + 2.0 * own)
                slope = gradient[1:] + scale * change * pull
                level = (weight[partner] - slope * flatness).clamp(-top, top)
                answer = ((level + top) * (1.0 / step)).round() * step - top - weight[partner]
                gain = answer * (theirs * answer + 2.0 * slope)
                least, k = gain.min(0).values, gain.argmin(0)
                helps = least < 0
                sum_of_both = alone + torch.where(helps, least, 0.0)
                better = (sum_of_both < best) & ((weight[i] + change).abs() <= top) & (steepness > 0)
                best = torch.where(better, sum_of_both, best)
                by = torch.where(better, change, by)
                by_partner = torch.where(better, torch.where(helps, answer.gather(0, k[None])[0], 0.0), by_partner)
                who = torch.where(better, partner[k], who)
            changed += int(torch.count_nonzero(by))
            weight[i] += by
            weight.scatter_add_(0, who[None], by_partner[None])
            sums += total[i] * by + total[who] * by_partner
            moved = torch.nonzero(by).flatten()
            columns = m.products[g, :, i, None].double() * by[moved]
            products[:, moved] += columns + m.products[g][:, who[moved]].double() * by_partner[moved]
        return changed


@cache
def _core() -> Any:
    """The compiled core, or None where it is not installed."""
    try:
        return compiled_core()
    except BitbranchError:
        return None
