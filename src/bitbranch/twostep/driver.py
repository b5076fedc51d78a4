"""Step 2 of two-step quantization: low-bit weights for a whole network, layer by layer, front to back.

Each layer is solved from what it really sees, the codes of the layers already quantized, towards the codes of the
step-1 network. Source: Wang et al., Two-Step Quantization for Low-bit Neural Networks, CVPR 2018, section 3.2.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import torch
from torch import fx, nn

from ..chains import Chain, Graph
from ..disk import scratch
from ..errors import InputError
from ..layers import QuantizedLayer
from ..training.loop import to_stderr
from .batchnorm import evaluation, reestimate_batchnorm
from .calibration import Batches, Images
from .codes import has_low_bit_weight
from .front import Front
from .layer import LayerProblem, check_layer, collect
from .outputs import fit_outputs, output_calls
from .solver import fit_codes, fit_linear, target_cross
from .staircase import Clip, Code, Staircase
from .state import RunKey, State

Method = Literal["tsq", "linear", "start"]
ZUpdate = Literal["staircase", "clipped"]

LAMBDAS = (0.01, 0.1, 1.0)
"""Schedule of lambda."""

HOLD = 0.1
"""Share of an input's variance by which weights are held at those of step 1, where there are samples enough."""

LINEAR_SWEEPS = 15
"""Cycles of coordinate descent for linear reconstruction, at most."""

START_SETTLED = 0.01
"""Where codes are fitted, linear reconstruction is but the start, and ends when so few weights change in a cycle."""

MANY_LEVELS = 16
"""A code with more levels is fitted as a clipped real: its staircase is as good as smooth."""


@dataclass(frozen=True)
class LayerReport:
    """How one layer was solved.

    Attributes:
        name: of the layer.
        target: what was fitted, for people.
        samples: number of output positions.
        start: share of samples, 0..1, where the start gives the step-1 network's code; ``nan`` where no code of few
            levels follows.
        solved: the same for the result, with the BatchNorm statistics it was left with; where max-pooling comes before
            the BatchNorm, these are measured only later.
        seconds: time to solve, without collecting the samples.
    """

    name: str
    target: str
    samples: int
    start: float
    solved: float
    seconds: float

    def __str__(self) -> str:
        codes = "" if math.isnan(self.solved) else f", codes agree {100 * self.start:.1f} -> {100 * self.solved:.1f} %"
        return f"{self.name}: {self.target}, {self.samples} samples{codes}, {self.seconds:.1f} s"


@dataclass(frozen=True)
class Following:
    """What follows a layer.

    Attributes:
        code: the function of the pre-activation whose values are fitted; None is the identity.
        label: its name, for people.
    """

    code: Code | None
    label: str


Lambdas = Sequence[float] | Mapping[str, Sequence[float]]
"""A schedule for all layers, or schedules by the layers' names or patterns such as ``"layer1.*"``."""


@dataclass(frozen=True)
class Recipe:
    """How layers are solved; the arguments of :func:`learn_transforms` of the same names.

    Raises:
        InputError: an unknown method or update, or numbers out of range.
    """

    method: Method = "tsq"
    samples: int = 20_000
    lambdas: Lambdas = LAMBDAS
    iterations: int = 2
    sweeps: int = 2
    z_update: ZUpdate = "clipped"
    hold: float = HOLD
    reestimate: bool = True
    outputs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("tsq", "linear", "start"):
            raise InputError(f"method {self.method!r}: expected 'tsq', 'linear' or 'start'")
        if self.z_update not in ("staircase", "clipped"):
            raise InputError(f"z_update {self.z_update!r}: expected 'staircase' or 'clipped'")
        for name in ("samples", "iterations", "sweeps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.hold < math.inf:
            raise InputError(f"hold must not be negative nor infinite, got {self.hold}")
        for schedule in self.lambdas.values() if isinstance(self.lambdas, Mapping) else [self.lambdas]:
            if not schedule or not all(0 < lam < math.inf for lam in schedule):
                raise InputError(f"lambdas must be positive and finite, got {list(schedule)}")

    def schedule(self, layer: str) -> Sequence[float]:
        """The schedule of a layer: its name goes before patterns, an earlier pattern before a later one."""
        if not isinstance(self.lambdas, Mapping):
            return self.lambdas
        matching = [pattern for pattern in self.lambdas if fnmatchcase(layer, pattern)]
        return self.lambdas[layer if layer in matching else matching[0]] if matching else LAMBDAS

    def check(self, layers: list[str]) -> None:
        """Whether every schedule is some layer's.

        Raises:
            InputError: one is not.
        """
        for pattern in self.lambdas if isinstance(self.lambdas, Mapping) else ():
            if not any(fnmatchcase(layer, pattern) for layer in layers):
                raise InputError(f"lambdas: {pattern!r} matches no layer that is solved")


@torch.no_grad()
def learn_transforms(
    q: nn.Module,
    teacher: nn.Module,
    loader: Batches,
    *,
    method: Method = "tsq",
    samples: int = 20_000,
    lambdas: Lambdas = LAMBDAS,
    iterations: int = 2,
    sweeps: int = 2,
    z_update: ZUpdate = "clipped",
    hold: float = HOLD,
    reestimate: bool = True,
    outputs: bool = True,
    seed: int = 0,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = to_stderr,
    on_layer: Callable[[LayerReport], None] | None = None,
) -> nn.Module:
    """Give the network of step 1 low-bit weights, without gradients.

    Layers whose weights are float or 8-bit in ``q`` (first and last) keep the weights of step 1; those behind solved
    layers, without a BatchNorm (outputs), are then fitted to the step-1 network's. The others start from the weights
    their quantizer gives (optimal ternary); ``z`` starts at the step-1 network's pre-activation, so that the first fit
    is linear reconstruction. The steps of the ablation are ``method="start", reestimate=False``; ``method="start"``;
    ``method="linear"``; ``method="tsq"``; and the last one trained further as any network.

    The scale alpha is found for the normalised pre-activation. Re-estimation sets the BatchNorm's deviation to 1 again,
    and with it alpha to ``1 / std(w^T X)``; with ``reestimate=False`` the variance of step 1 and the solved alpha stay,
    and only the mean follows the new weights.

    Where no code follows a layer (before an addition, say) its pre-activation is fitted, clipped if a ReLU follows; a
    progress line says so.

    Args:
        q: the network from ``quantize()``, whose weight quantizers are taken; not changed.
        teacher: the step-1 network made of it by :func:`learn_codes`; not changed.
        loader: batches, whose images calibrate, see :data:`~bitbranch.twostep.calibration.Batches`. Iterated once.
        method: ``"tsq"`` fits codes, ``"linear"`` the pre-activations, ``"start"`` nothing.
        samples: output positions per layer, spread over all batches.
        lambdas: schedule of the relaxation, or schedules by the layers' names or patterns such as ``"layer1.*"``.
        iterations: ``z`` updates at each lambda; each reads the samples once.
        sweeps: cycles of coordinate descent after each.
        z_update: the exact staircase, or the clipped identity in its place.
        hold: how much the weights are held at those of step 1, as a share of their inputs' variance; up to ten times
            that where samples are few, see :class:`~bitbranch.twostep.layer.LayerProblem`. 0, as in the paper, trusts
            the samples alone.
        reestimate: measure the BatchNorm statistics anew: behind each layer from its samples, elsewhere from all.
        outputs: fit outputs of many bits, see :func:`~bitbranch.twostep.outputs.fit_outputs`; not for ``"start"``.
        seed: of the sampled positions, and of torch's global generator while a shuffling loader is read.
        state: folder where each solved layer is kept. Called again with the same arguments and the same images, after
            it was interrupted, the run goes on there and gives the same result.
        progress: takes one line per layer; None is silent.
        on_layer: takes a report per layer.

    Returns:
        The step-2 network, in evaluation mode.

    Raises:
        InputError: an unknown method or update, numbers out of range, a teacher that is not of ``q``, a layer whose
            quantizers step 2 cannot serve, that is called twice or shares its weights with another, or a ``forward``
            that cannot be traced; names the layer.
    """
    recipe = Recipe(method, samples, lambdas, iterations, sweeps, z_update, hold, reestimate, outputs, seed)
    student, names = _start(q, teacher)
    return solve(student, teacher, names, loader, recipe, state=state, progress=progress, on_layer=on_layer)


def solve(
    student: nn.Module,
    teacher: nn.Module,
    names: set[str],
    loader: Batches,
    recipe: Recipe,
    *,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = to_stderr,
    on_layer: Callable[[LayerReport], None] | None = None,
) -> nn.Module:
    """Solve the named layers of a network in place, front to back, towards the pre-activations of another.

    Args:
        student: low-bit, in evaluation mode.
        teacher: of the same graph; not changed.
        names: of the layers.
        loader, state, progress, on_layer: see :func:`learn_transforms`.
        recipe: how.

    Returns:
        The student.

    Raises:
        InputError: see :func:`learn_transforms`.
    """
    nodes = calls_of(Graph(student), names)
    recipe.check([str(node.target) for node in nodes])
    if recipe.method == "start" and not recipe.reestimate:
        return student
    calibration = Images(loader, "step 2")
    if recipe.method == "start":
        reestimate_batchnorm(student, calibration)
        return student
    device = next(student.parameters()).device
    if device.type != "cpu":  # where all of this is computed
        student.cpu()
        teacher = copy.deepcopy(teacher).cpu()
    key = RunKey(recipe, sorted(names), str(student))
    key.add_network(student)
    key.add_network(teacher)
    with torch.random.fork_rng(devices=[]), evaluation(teacher), scratch("step-2") as folder:
        torch.manual_seed(recipe.seed)
        fronts = Front(student, folder / "student"), Front(teacher, folder / "teacher")
        for given in calibration:
            images = given.cpu()
            key.add(images)
            for front in fronts:
                front.enter(images)
        kept = None if state is None else State(Path(state), key)
        _solve_layers(*fronts, nodes, recipe, kept, progress, on_layer)
    return student.to(device)


def _solve_layers(
    student: Front,
    teacher: Front,
    solved: list[fx.Node],
    recipe: Recipe,
    kept: State | None,
    progress: Callable[[str], None] | None,
    on_layer: Callable[[LayerReport], None] | None,
) -> None:
    graph, own = student.graph, set[str]()
    calls = [graph.call(str(node.target)) for node in solved]
    first = student.position[calls[0]]
    fitted = output_calls(graph, calls) if recipe.outputs else []
    names = [str(node.target) for node in sorted(calls + fitted, key=student.position.__getitem__)]
    _check_scales(graph, calls)
    _keep_alive(teacher, [graph.chain(graph.call(name)) for name in names])
    for number, name in enumerate(names, 1):
        chain = graph.chain(graph.call(name))
        if recipe.reestimate:
            student.settle(first, student.position[graph.call(name)], own)
        own |= {name, chain.watched}
        changed = [graph.modules[m] for m in (name, chain.batchnorm) if m]
        known = kept.load(f"{number:03}") if kept else None
        if known is None:
            seed = recipe.seed * 1_000_003 + number
            if graph.call(name) in fitted:
                report = _fit_outputs(student, teacher, chain, recipe, seed)
            else:
                report = _solve(student, teacher, chain, _following(graph, chain), recipe, seed)
            if kept:
                states = [module.state_dict() for module in changed]
                kept.store(f"{number:03}", {"report": asdict(report), "states": states})
        else:
            report = LayerReport(**known["report"])  # type: ignore[arg-type]
            for module, values in zip(changed, known["states"], strict=True):  # type: ignore[call-overload]
                module.load_state_dict(values)
        if progress is not None:
            progress(f"transforms {number}/{len(names)}: {report}" + ("" if known is None else " (kept)"))
        if on_layer is not None:
            on_layer(report)
    if recipe.reestimate:
        student.settle(first, len(student.nodes), own)


def _check_scales(graph: Graph, calls: list[fx.Node]) -> None:
    """Whether each layer's solved scale stays: in its quantizer, or in the BatchNorm behind it.

    Raises:
        InputError: it does not; names the layer.
    """
    for call in calls:
        layer = graph.module(call)
        assert isinstance(layer, QuantizedLayer) and layer.weight_quantizer is not None
        if not layer.weight_quantizer.keeps_size and graph.chain(call).batchnorm is None:
            kind = type(layer.weight_quantizer).__name__
            raise InputError(
                f"layer {call.target}: {kind} has no scale for what step 2 finds, and no BatchNorm is behind it that "
                "could take it; take tsq's weights of as many bits"
            )


def _keep_alive(teacher: Front, chains: list[Chain]) -> None:
    """Let a pre-activation live until it is collected, also where an earlier layer's lies behind it."""
    furthest = 0
    for chain in chains:
        behind = teacher.graph.call(chain.watched)
        teacher.last_use[behind] = max(teacher.last_use[behind], furthest)
        furthest = max(furthest, teacher.position[behind] + 1)


def _start(q: nn.Module, teacher: nn.Module) -> tuple[nn.Module, set[str]]:
    """A copy of the teacher with the low-bit weight quantizers of ``q``, and the names of those layers."""
    student = copy.deepcopy(teacher)
    modules = dict(student.named_modules())
    names: set[str] = set()
    for name, layer in q.named_modules():
        if not (isinstance(layer, QuantizedLayer) and has_low_bit_weight(layer)):
            continue
        twin = modules.get(name)
        if not isinstance(twin, QuantizedLayer) or twin.weight.shape != layer.weight.shape:
            raise InputError(f"layer {name}: the teacher has no such layer; it must be made of q by learn_codes()")
        twin.weight_quantizer = copy.deepcopy(layer.weight_quantizer)
        if not torch.equal(twin.weight, layer.weight.to(twin.weight.device)):
            restart(twin)
        check_layer(name, twin)
        names.add(name)
    if not names:
        raise InputError(f"two-step quantization: {type(q).__name__} has no layer with low-bit weights")
    return student.eval(), names


def restart(layer: QuantizedLayer) -> None:
    """Let a layer's weight quantizer choose its parameters for weights that it has not seen."""
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.restart(layer.outputs_first(layer.weight.detach()))


def calls_of(graph: Graph, names: set[str]) -> list[fx.Node]:
    """The one call of each named layer, in order of execution."""
    nodes = [node for node in graph.calls(QuantizedLayer) if str(node.target) in names]
    for name, times in Counter(str(node.target) for node in nodes).items():
        if times > 1:
            raise InputError(f"layer {name}: step 2 cannot solve a layer that is called {times} times")
    owners = {id(graph.modules[str(node.target)].weight): str(node.target) for node in nodes}
    for name, module in graph.modules.items():
        owner = owners.get(id(getattr(module, "weight", None)), name)
        if owner != name and module is not graph.modules[owner]:
            raise InputError(f"layers {owner} and {name}: step 2 cannot solve layers that share their weights")
    return nodes


def _solve(
    student: Front, teacher: Front, chain: Chain, following: Following, recipe: Recipe, seed: int
) -> LayerReport:
    """Solve one layer of the student, in place."""
    with collect(student, teacher, chain, recipe.samples, seed) as file:
        begin = time.perf_counter()
        problem = LayerProblem(student.graph.modules, chain, file, recipe.hold)
        start = problem.agreement(following.code)
        code = following.code if recipe.method == "tsq" else None
        cross = problem.descent.anchored(target_cross(file, problem.moments, problem.shift))
        fit_linear(problem.descent, cross, LINEAR_SWEEPS, enough=0 if code is None else START_SETTLED)
        del cross
        if code is not None:
            fit_codes(
                file,
                problem.descent,
                code,
                code.relaxed() if recipe.z_update == "clipped" else code,
                problem.shift,
                lambdas=recipe.schedule(chain.source),
                iterations=recipe.iterations,
                sweeps=recipe.sweeps,
            )
            problem.keep_better(code, renormalise=recipe.reestimate)
        problem.write(renormalise=recipe.reestimate)
        solved = problem.agreement(following.code)
        label = following.label if recipe.method == "tsq" else "linear"
        agrees = float(start.mean()), float(solved.mean())
        return LayerReport(chain.source, label, file.count, *agrees, time.perf_counter() - begin)


def _fit_outputs(student: Front, teacher: Front, chain: Chain, recipe: Recipe, seed: int) -> LayerReport:
    """Fit a layer of many bits behind solved ones, in place."""
    with collect(student, teacher, chain, recipe.samples, seed) as file:
        begin = time.perf_counter()
        layer = student.graph.modules[chain.source]
        assert isinstance(layer, QuantizedLayer)
        before, after = fit_outputs(layer, file)
        label = f"outputs, error {100 * before:.1f} -> {100 * after:.1f} % of their variance"
        return LayerReport(chain.source, label, file.count, math.nan, math.nan, time.perf_counter() - begin)


def _following(graph: Graph, chain: Chain) -> Following:
    """What follows a layer: a common code of all its readers, else a clip, else nothing that helps."""
    lo, hi = chain.lo, chain.hi
    codes = []
    for reader in chain.readers:
        layer = graph.modules[reader.layer]
        assert isinstance(layer, QuantizedLayer)
        if layer.input_quantizer is not None:
            codes.append((layer.input_quantizer.encoder(), layer.input_quantizer.scale(), reader.lo, reader.hi))
            code = Staircase.of(layer.input_quantizer)
    if codes and len(codes) == len(chain.readers) and len(set(codes)) == 1:
        if len(code.levels) <= MANY_LEVELS and code.commutes(*codes[0][2:]):
            return Following(code, "codes")
        clip = code.relaxed()
        lo, hi = max(lo, clip.lo), min(hi, clip.hi)
    why = f" ({chain.obstacle})" if chain.obstacle else ""
    if (lo, hi) != (-math.inf, math.inf):
        return Following(Clip(lo, hi), f"reals clipped to {lo:.3g}..{hi:.3g}{why}")
    return Following(None, f"linear{why}")
