"""One layer of a network in the solver's terms, and the solution put back into the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..chains import Chain
from ..contract import CodeType
from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.base import per_output
from .descent import Anchor, Descent, Levels, Solution
from .front import Front
from .solver import agreement, target_cross
from .staircase import Staircase
from .statistics import SampleFile, draw_positions, patches, smallest_dtype

FEW, MOST = 40.0, 10.0
"""How much more the weights are held where samples are few."""

BLOCK = 1 << 22
"""Weights that are loosened at once."""

ROOM = 0.45
"""How far from its level a latent weight may be towards the next one, in steps between levels."""


class LayerProblem:
    """The normalised pre-activation behind a layer as ``alpha w^T (x - mean) + shift``.

    ``x`` are the integer values of the layer's input. The BatchNorm's slope and the input's scale are within alpha, the
    sign of the slope is within ``w``. The shift is the mean of the pre-activation: the BatchNorm's bias, or without one
    what the step-1 network shows, to be set by the layer's bias.

    Max-pooling before the BatchNorm changes little: BatchNorm and codes are monotone, so codes that are right at all
    positions are right behind it. But the BatchNorm's statistics are of what was pooled. Mean and variance of the
    pre-activation before are then the step-1 network's, too.

    Args:
        modules: of the network that is being solved, by name.
        chain: the layer and its BatchNorm.
        file: its samples.
        hold: share of an input's variance by which its weights are held at step 1's; times ``1 + FEW n / P`` for ``n``
            weights of an output and ``P`` samples, or times :data:`MOST`.

    Raises:
        InputError: no samples, or weights that step 2 cannot serve.
    """

    def __init__(self, modules: Mapping[str, nn.Module], chain: Chain, file: SampleFile, hold: float = 0.0) -> None:
        layer = modules[chain.source]
        assert isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None
        norm = modules[chain.batchnorm] if chain.batchnorm else None
        assert norm is None or isinstance(norm, _BatchNorm)
        self.name, self.layer, self.norm, self.pooled, self.file = chain.source, layer, norm, chain.pooled, file
        self.input_scale = layer.input_quantizer.scale()
        self.moments = file.moments().holding(hold * min(MOST, 1 + FEW * file.taps / file.count))
        values, scale, code_type = layer.integer_weight()
        self.keeps_size = layer.weight_quantizer is None or layer.weight_quantizer.keeps_size
        self.levels = Levels.of(code_type)
        self.shape = values.shape
        slope, shift = self._behind()
        self.sign = torch.where(slope < 0, -1.0, 1.0)
        self.slope = slope.abs().clamp_min(torch.finfo(torch.float32).tiny)
        self.shift = shift.view(file.groups, -1)
        self.statistic = self._statistic()
        self.solution = Solution(
            self._columns(values.double().flatten(1) * self.sign[:, None]),
            (scale.double() * self.input_scale * self.slope).view(file.groups, -1),
        )
        real = layer.outputs_first(layer.weight.detach()).flatten(1)
        factor = (self.sign * self.slope * self.input_scale).view(file.groups, -1)
        anchor = Anchor(real.view(file.groups, -1, real.shape[1]), factor)
        self.descent = Descent(self.moments, self.solution, self.levels, anchor)
        self._start = self.solution.weight.to(torch.int8), self.solution.scale, self._power()
        self._restarted = torch.zeros_like(self.shift, dtype=torch.bool)

    def _behind(self) -> tuple[Tensor, Tensor]:
        """Slope of the pre-activation in the layer's output, and its mean: ``[O]`` each."""
        norm = self.norm
        if norm is None:
            mean = self.file.target_mean().flatten()
            return torch.ones_like(mean), mean
        assert norm.running_var is not None
        gain, bias = affine(norm)
        slope = gain * (norm.running_var.double() + norm.eps).rsqrt()
        return slope, self.file.target_mean().flatten() if self.pooled else bias

    def _statistic(self) -> Tensor:
        """Variance that BatchNorm is to know of the layer's outputs, as a multiple of theirs, ``[G, O]``."""
        if self.norm is None or not self.pooled:
            return torch.ones_like(self.shift)
        power = target_cross(self.file, self.moments, self.shift).power
        gain, _ = affine(self.norm)
        return gain.square().view_as(power) * self.moments.count / power.clamp_min(torch.finfo(torch.float32).tiny)

    def _columns(self, rows: Tensor) -> Tensor:
        """Weights outputs first to the solver's order, ``[G O, n] -> [G, n, O]``."""
        return rows.view(self.file.groups, -1, rows.shape[1]).transpose(1, 2).contiguous()

    def agreement(self, code: object) -> Tensor:
        """Share of samples, 0..1, that get the step-1 network's code, ``[G, O]``; ``nan`` if it is no staircase."""
        if not isinstance(code, Staircase):
            return torch.full_like(self.shift, math.nan)
        return agreement(self.file, self.moments, self.solution, code, self.shift)

    def keep_better(self, code: object, *, renormalise: bool) -> None:
        """Give outputs their first weights back where these give more samples the right code.

        The alternation lowers a relaxed objective, which is not always the codes' own.

        Args:
            code: ``Q``; nothing happens if it is no staircase.
            renormalise: compare them as :meth:`write` will leave them, each with the variance that it makes.
        """
        if not isinstance(code, Staircase):
            return
        weight, scale, power = self._start
        shares = [
            agreement(self.file, self.moments, self._renormalised(s, p) if renormalise else s, code, self.shift)
            for s, p in ((self.solution, self._power()), (Solution(weight.double(), scale), power))
        ]
        self.restart(shares[1] > shares[0])

    def _power(self) -> Tensor:
        """``||w^T X||^2`` of the solution's weights, ``[G, O]``, from the products that the descent has kept."""
        return self.moments.power(self.solution.weight, self.descent.products, self.levels.top)

    def _renormalised(self, s: Solution, power: Tensor) -> Solution:
        """What a solution becomes when BatchNorm's variance follows from it."""
        norm = self.norm
        if norm is None:
            return s
        slope = self.slope.view_as(s.scale)
        unit = s.scale / slope
        variance = self._variance(power) * unit**2
        gain = affine(norm)[0].abs().view_as(s.scale)
        return Solution(s.weight, unit * gain * (variance + norm.eps).rsqrt())

    def _variance(self, power: Tensor) -> Tensor:
        """What BatchNorm is to take for the variance of ``w^T X``, ``[G, O]``."""
        return power / max(1, self.moments.count - 1) * self.statistic

    def restart(self, outputs: Tensor) -> None:
        """Give outputs, ``[G, O]`` bool, the weights and scales back that the layer came with."""
        solution, (weight, scale, _) = self.solution, self._start
        solution.weight.transpose(1, 2)[outputs] = weight.transpose(1, 2)[outputs].double()
        solution.scale[outputs] = scale[outputs]
        self._restarted |= outputs

    def write(self, *, renormalise: bool) -> None:
        """Put the solution into the layer, and the mean that follows from it into BatchNorm or bias.

        Args:
            renormalise: set the BatchNorm's variance likewise, as re-estimation would from the same samples; alpha
                then becomes ``1 / std(w^T X)``. Otherwise the variance stays, and alpha as solved with it.

        Raises:
            InputError: the layer's weight quantizer cannot hold the solved integers.
        """
        solution = self.solution
        dead = (solution.weight == 0).all(1) | (solution.scale == 0)  # and would stay so in training
        self.restart(dead)
        rows = solution.weight.transpose(1, 2).flatten(0, 1) * self.sign[:, None]
        wanted = solution.scale.flatten() / (self.input_scale * self.slope)
        real = self.layer.outputs_first(self.layer.weight).detach().clone()
        scale = write_weight(self.layer, rows.view(self.shape), wanted)
        if scale is None:
            kind = type(self.layer.weight_quantizer).__name__
            raise InputError(f"layer {self.name}: its {kind} does not hold the weights that step 2 found")
        power = torch.where(self._restarted, self._start[2], self._power())
        unit = loosen(self.layer, real) * self.input_scale
        mean = (self._columns(rows) * self.moments.mean[:, :, None]).sum(1).flatten() * unit
        bias, norm = self.layer.bias, self.norm
        if norm is None:
            if bias is not None:
                bias.copy_(self.shift.flatten() - mean)
            return
        assert norm.running_mean is not None and norm.running_var is not None
        if renormalise:
            norm.running_var.copy_(self._variance(power).flatten() * unit**2)
        elif not self.keeps_size:
            apart = unit / (wanted * self.input_scale)
            norm.running_var.copy_(((norm.running_var + norm.eps) * apart.square() - norm.eps).clamp_min(0))
        gain, shift = affine(norm)
        slope = gain * (norm.running_var.double() + norm.eps).rsqrt()
        if self.pooled:
            mean = mean - torch.where(slope == 0, 0.0, (self.shift.flatten() - shift) / slope)
        norm.running_mean.copy_(mean if bias is None else mean + bias)
        if renormalise:
            solution.scale = (unit * slope.abs()).view_as(solution.scale)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A BatchNorm's gain and bias, 1 and 0 without them: ``[O]`` float64 each."""
    assert norm.running_var is not None
    if norm.weight is None:
        return torch.ones_like(norm.running_var).double(), torch.zeros_like(norm.running_var).double()
    return norm.weight.double(), norm.bias.double()


def write_weight(layer: QuantizedLayer, values: Tensor, scale: Tensor) -> Tensor | None:
    """Write latent weights that the layer's quantizer reads as given integers.

    Args:
        layer: with a weight quantizer.
        values: integers ``[O, I / G, *kernel]``, float64.
        scale: wanted scales ``[O]``.

    Returns:
        The scales that the quantizer reads, ``[O]`` float64; some quantizers derive their own. None if it reads other
        integers.
    """
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.hold(scale)
    for latent in (values * per_output(scale, values), values / values.abs().max()):
        layer.weight.copy_(layer.native_order(latent.to(layer.weight.dtype)))
        read, kept, _ = layer.integer_weight()
        if torch.equal(read.double(), values):
            return kept.double()
    return None


@torch.no_grad()
def loosen(layer: QuantizedLayer, toward: Tensor) -> Tensor:
    """Move latent weights towards real ones as far as the quantizer reads the same integers.

    Latent weights at the very middle of their levels, where :func:`write_weight` puts them, are what a quantizer
    changes last: training that goes on from there hardly moves any. Near the real ones, those that hardly got their
    level lose it first.

    Args:
        layer: with a weight quantizer and latent weights.
        toward: the real weights ``[O, I / G, *kernel]``, whatever their scale.

    Returns:
        The scales that the quantizer reads now, ``[O]`` float64: as before, but for rounding.
    """
    values, scale, code_type = layer.integer_weight()
    integers, tight = values.flatten(1), layer.outputs_first(layer.weight).detach().flatten(1).clone()
    near = torch.empty_like(tight)
    for rows in torch.arange(len(tight)).split(max(1, BLOCK // tight.shape[1])):
        near[rows] = _near(tight[rows], toward.flatten(1)[rows], integers[rows], code_type).to(near.dtype)

    def read(latent: Tensor) -> tuple[Tensor, Tensor]:
        layer.weight.copy_(layer.native_order(latent.view(values.shape)))
        now, kept, _ = layer.integer_weight()
        return (now.flatten(1) == integers).all(1), kept

    best, settled = tight.clone(), torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for share in (1.0, 0.5, 0.25):
        latent = tight.lerp(near, share)
        _, kept = read(latent)
        latent *= (scale / torch.where(kept == 0, scale, kept)).to(latent.dtype)[:, None]  # scales from the weights
        same, kept = read(latent)
        good = same & torch.isclose(kept, scale, rtol=1e-5, atol=0)
        best[good & ~settled] = latent[good & ~settled]
        settled |= good
    same, kept = read(best)
    if not (same.all() and torch.allclose(kept, scale, rtol=1e-5, atol=0)):  # rows share a scale
        _, kept = read(tight)
    return kept.double()


def _near(tight: Tensor, real: Tensor, integers: Tensor, code_type: CodeType) -> Tensor:
    """Real weights, at the scale of latent ones, clipped to :data:`ROOM` around their integers: ``[O, n]`` float64."""
    tight, real, integers = tight.double(), real.double(), integers.double()
    # What one step of the integers is in the latent weights, which need not have the scale that is read.
    unit = (tight * integers).sum(1, keepdim=True) / integers.square().sum(1, keepdim=True).clamp_min(1)
    power = real.square().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    fit = ((tight * real).sum(1, keepdim=True) / power).clamp_min(0)
    half = ROOM * code_type.step
    low = torch.where(integers > code_type.lo, integers - half, -math.inf)
    high = torch.where(integers < code_type.hi, integers + half, math.inf)
    unit = torch.where(unit == 0, 1.0, unit)
    return torch.clamp(fit * real, torch.minimum(low * unit, high * unit), torch.maximum(low * unit, high * unit))


def check_layer(name: str, layer: QuantizedLayer) -> None:
    """Whether step 2 can solve a layer with low-bit weights.

    Raises:
        InputError: its input is float, its weights are no integers with one scale, or its weight quantizer cannot hold
            those that are found; names the layer.
    """
    if layer.input_quantizer is None:
        raise InputError(f"layer {name}: step 2 fits activation codes, but its input is float")
    if layer.obstacle:
        raise InputError(f"layer {name}: {layer.obstacle}")
    if not holds_any_weights(layer):
        raise InputError(
            f"layer {name}: {type(layer.weight_quantizer).__name__} takes its scale from the weights, and cannot hold "
            "what step 2 finds; take tsq's weights of as many bits"
        )


@torch.no_grad()
def holds_any_weights(layer: QuantizedLayer) -> bool:
    """Whether a layer's quantizer reads what :func:`write_weight` writes: tried with random integers and scales.

    Of more than three levels the integers leave the outer ones out, as solved ones may.
    """
    assert layer.weight_quantizer is not None
    allowed = Levels.of(layer.weight_quantizer.code_type)
    levels = torch.arange(-allowed.top, allowed.top + 1, allowed.step, dtype=torch.float64)
    if len(levels) > 3:
        levels = levels[1:-1]
    random = torch.Generator().manual_seed(0)
    shape = layer.outputs_first(layer.weight).shape
    values = levels[torch.randint(len(levels), shape, generator=random)]
    scale = torch.rand(shape[0], generator=random, dtype=torch.float64) + 0.5
    return write_weight(copy.deepcopy(layer).cpu(), values, scale) is not None


class _Captured(Exception):
    """Ends a forward pass once the wanted tensor has been seen."""


def capture(model: nn.Module, images: Tensor, name: str, *, output: bool) -> Tensor:
    """Input or output of one module in a forward pass, which ends there."""
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Captured

    def behind(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out)
        raise _Captured

    module = model.get_submodule(name)
    hook = module.register_forward_hook(behind) if output else module.register_forward_pre_hook(before)
    with hook:
        try:
            model(images)
        except _Captured:
            return seen[0]
    raise InputError(f"layer {name}: the forward pass does not reach it")


def collect(student: Front, teacher: Front, chain: Chain, samples: int, seed: int) -> SampleFile:
    """Inputs of the student's layer and pre-activations of the teacher's, at the same random positions.

    Args:
        student: the network that is being solved; all layers in front are. It goes on to the layer.
        teacher: what it is to be like; goes on past the pre-activation.
        chain: the layer, and the BatchNorm whose output is the pre-activation.
        samples: positions in all, evenly from all batches; fewer if the batches have no more.
        seed: of the positions.

    Raises:
        InputError: images, or what the teacher makes of them, are not finite.
    """
    call, behind = student.graph.call(chain.source), teacher.graph.call(chain.watched)
    norm = teacher.graph.modules[chain.batchnorm] if chain.batchnorm and chain.pooled else nn.Identity()
    layer = student.graph.module(call)
    assert isinstance(layer, QuantizedLayer) and layer.input_quantizer is not None
    weight, groups = layer.outputs_first(layer.weight), int(getattr(layer, "groups", 1))
    code_type = layer.input_quantizer.code_type
    file = SampleFile(groups, weight[0].numel(), len(weight) // groups, smallest_dtype(code_type.lo, code_type.hi))
    generator = torch.Generator().manual_seed(seed)
    fronts = zip(student.advance(student.position[call]), teacher.advance(teacher.position[behind] + 1), strict=True)
    for done, (got, wanted) in enumerate(fronts, 1):
        quota = samples * done // student.batches - file.count
        if quota <= 0:
            continue
        target = norm(wanted(behind))
        channels_last = target if isinstance(layer, nn.Linear) else target.movedim(1, -1)
        positions = draw_positions(channels_last.shape[:-1], quota, generator)
        rows = channels_last[tuple(positions.T)]
        values = layer.input_quantizer.values(got(call.all_input_nodes[0]))
        file.append(patches(layer, values, positions), rows.view(len(rows), groups, -1))
    return file
