"""`verify`: does the program compute what the trained network computes, code for code, layer by layer?

The network is evaluated in float64, where a real that lies near a threshold is on the side where exact arithmetic has
it; in float32 the network itself may round it over. Compared with it is the NumPy reference, and with that, bit for
bit, any number of engines.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import InputError
from ..layers import QuantizedLayer, native_order
from ..runtime import program as p
from ..runtime import reference
from ..runtime.comparison import Array, Count, Divergence, EngineCheck, Executor, executor_name, output_numbers
from .exact import Call, Recorder


@dataclass
class LayerCheck:
    """One quantized layer: the codes that it reads and its accumulators, torch in float64 against the reference.

    ``rounded``: what it reads comes from residual sums or averages that the program rounds to integers, so that a few
    codes may differ.
    """

    name: str
    rounded: bool = False
    codes: Count = field(default_factory=Count)
    accumulators: Count = field(default_factory=Count)

    @property
    def first(self) -> Divergence | None:
        """The first differing code, or else accumulator."""
        return self.codes.first or self.accumulators.first

    @property
    def mismatches(self) -> int:
        """Differing codes and accumulators."""
        return self.codes.differing + self.accumulators.differing


@dataclass
class Verification:
    """What :func:`verify` found; ``str()`` is a table.

    Attributes:
        images: number of images.
        layers: in the program's order.
        engines: in the order given.
        output_error: largest difference of an output from the network's in float32, as PyTorch evaluates it.
        output_error_exact: largest difference of an output from the network's in float64.
        decisions_differing: images whose largest number of an output is another than the float32 network's.
    """

    images: int = 0
    layers: list[LayerCheck] = field(default_factory=list)
    engines: list[EngineCheck] = field(default_factory=list)
    output_error: float = 0.0
    output_error_exact: float = 0.0
    decisions_differing: int = 0

    @property
    def codes_differing(self) -> int:
        """Differing codes of all layers."""
        return sum(layer.codes.differing for layer in self.layers)

    @property
    def mismatches(self) -> int:
        """Differing codes and accumulators of all layers, and differing values of all engines."""
        return sum(layer.mismatches for layer in self.layers) + sum(engine.values.differing for engine in self.engines)

    @property
    def first(self) -> tuple[str, Divergence] | None:
        """The first layer that differs, by name, and where."""
        return next(((layer.name, layer.first) for layer in self.layers if layer.first), None)

    def __str__(self) -> str:
        names = [layer.name for layer in self.layers] + [engine.name for engine in self.engines]
        width = max(len(name) for name in ["layer", *names])
        lines = [f"{'layer':{width}}  {'codes':>12} {'differ':>8}  {'accumulators':>12} {'differ':>8}"]
        for layer in self.layers:
            a, b = layer.codes, layer.accumulators
            numbers = f"{a.compared:12,} {a.differing:8,}  {b.compared:12,} {b.differing:8,}"
            lines.append(f"{layer.name:{width}}  {numbers}  {layer.first or ''}".rstrip())
        for engine in self.engines:
            numbers = f"{engine.values.compared:12,} {engine.values.differing:8,}"
            where = f"{engine.operation}: {engine.values.first}" if engine.values.first else ""
            lines.append(f"{engine.name:{width}}  {numbers}  values against the reference  {where}".rstrip())
        lines.append(
            f"{self.images} images, {self.mismatches:,} mismatches; outputs within {self.output_error:.3g} of the "
            f"float32 network ({self.decisions_differing} decisions differ), {self.output_error_exact:.3g} of float64"
        )
        return "\n".join(lines)


def verify(
    q: nn.Module,
    program: p.Program,
    batches: Iterable[npt.ArrayLike | Tensor | Sequence[Tensor]],
    engines: Sequence[Executor] = (),
) -> Verification:
    """Compare a compiled program with the network that it came from, on real inputs.

    For networks without residual sums, and without averages and bilinear upsampling behind an activation, no code is
    expected to differ.

    Args:
        q: the quantized network; not changed, evaluated in copies.
        program: what :func:`~bitbranch.compiler.compile` made of it.
        batches: float32 images as ``q`` takes them, ``[N, ...]``; of a tuple (images, labels) the images. For a network
            of several arguments a tuple that begins with them.
        engines: executors of the program, compared with the reference bit for bit.

    Raises:
        InputError: no batch, one of other numbers or another shape, or a program whose layers are not those of ``q``.
    """
    plain = copy.deepcopy(q).cpu().eval()
    own = next((a.dtype for a in plain.parameters() if a.is_floating_point()), torch.float32)
    recorder = Recorder(q)
    layers = _Layers(program, recorder.network)
    outputs = output_numbers(program)
    result = Verification(layers=layers.checks, engines=[EngineCheck(executor_name(engine)) for engine in engines])
    for number, batch in enumerate(batches):
        x, images = _images(batch, program)
        with torch.no_grad():
            exact, calls = recorder.run(*x)
            rounded = plain(*(a.to(own) for a in x))
        values, kept = {}, {*layers.inputs, *outputs}
        for i, value in reference.trace(program, *images):
            values[i] = value
            layers.compare(number, i, values, calls)
            if not engines:
                values = {j: v for j, v in values.items() if j in kept or j == i}
        result.images += len(x[0])
        _compare_outputs(result, [values[i] for i in outputs], exact, rounded)
        for engine, check in zip(engines, result.engines, strict=True):
            check.compare(number, engine, program, images, values)
    if not result.images:
        raise InputError("verify: no images were given")
    return result


def _images(
    batch: npt.ArrayLike | Tensor | Sequence[Tensor], program: p.Program
) -> tuple[list[Tensor], list[npt.NDArray[np.float32]]]:
    """A batch as the network takes it, and as the program does: a sequence or vector as an image."""
    given = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(given) < len(program.inputs):
        raise InputError(f"verify: the network takes {len(program.inputs)} inputs, the batch has {len(given)}")
    tensors: list[Tensor] = []
    images = []
    for op, a in zip(program.inputs, given, strict=False):
        x = torch.as_tensor(np.asarray(a))
        if not x.is_floating_point():
            raise InputError(f"verify: images must be float32, as the network takes them, got {x.dtype}")
        if len(x.shape) < 2 or len(x) == 0 or x.shape[1:] not in _forms(op.shape):
            raise InputError(f"verify: images must be N of shape {op.shape}, got {tuple(x.shape)}")
        if tensors and len(x) != len(tensors[0]):
            raise InputError(f"verify: the first input has {len(tensors[0])} images, {op.name!r} {len(x)}")
        tensors.append(x.float())
        images.append(tensors[-1].numpy().reshape(len(x), *op.shape))
    return tensors, images


def _forms(shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Shapes in which a network may take what the program takes as an image: ``[C, H, W]``, ``[C, L]``, ``[C]``."""
    channels, height, width = shape
    return [shape, *([(channels, width)] if height == 1 else []), *([(channels,)] if height == width == 1 else [])]


def _compare_outputs(result: Verification, outputs: Sequence[Array], exact: Any, rounded: Any) -> None:
    """Compare the program's outputs with what the network returned, of whatever structure."""
    other = np.zeros(len(outputs[0]), np.bool_)
    for output, *tensors in zip(outputs, pytree.tree_leaves(exact), pytree.tree_leaves(rounded), strict=True):
        flat = [np.asarray(a, np.float64).reshape(len(output), -1) for a in (output, *tensors)]
        result.output_error_exact = max(result.output_error_exact, float(np.abs(flat[0] - flat[1]).max()))
        result.output_error = max(result.output_error, float(np.abs(flat[0] - flat[2]).max()))
        other |= flat[0].argmax(1) != flat[2].argmax(1)
    result.decisions_differing += int(np.count_nonzero(other))


class _Layers:
    """Which convolution of the program is which call of which layer of the network."""

    def __init__(self, program: p.Program, network: nn.Module) -> None:
        self.program = program
        self.checks: list[LayerCheck] = []
        self.of: dict[int, tuple[LayerCheck, str, int, npt.NDArray[np.int64]]] = {}
        self.called: dict[str, int] = {}
        self.chosen: dict[tuple[str, int], int] = {}
        self.inputs: set[int] = set()
        self.twice: dict[int, bool] = {}
        rounded = _rounded(program)
        modules = dict(network.named_modules())
        for i, op in enumerate(program.operations):
            if not isinstance(op, (p.Conv, p.ConvTranspose)):
                continue
            layer = modules.get(op.name)
            if not isinstance(layer, QuantizedLayer):
                raise InputError(f"verify: the network has no quantized layer {op.name!r}, which the program has")
            call = self.called.get(op.name, 0)
            self.called[op.name] = call + 1
            name = op.name if call == 0 else f"{op.name} (call {call + 1})"
            check = LayerCheck(name, rounded[op.inputs[0]])
            self.checks.append(check)
            sign, self.twice[i] = _turned(op, layer)
            self.of[i] = (check, op.name, call, sign)
            self.inputs.add(op.inputs[0])

    def compare(self, batch: int, number: int, values: dict[int, Array], calls: dict[str, list[Call]]) -> None:
        """Compare an operation of the program, if it is a layer's."""
        if number not in self.of:
            return
        check, name, index, sign = self.of[number]
        source = self.program.operations[number].inputs[0]
        source_type = self.program.values[source]
        assert isinstance(source_type, p.Codes)
        codes = source_type.code_type.decode(values[source])
        channels = codes.shape[1] // 2 if self.twice[number] else codes.shape[1]
        codes, accumulators = codes[:, :channels], values[number] * sign[:, None, None]  # type: ignore[operator]
        call = self.call_of(name, index, codes, calls.get(name, []))
        check.codes.compare(batch, call.inputs.numpy(), codes)
        check.accumulators.compare(batch, call.accumulators.numpy(), accumulators)

    def call_of(self, name: str, index: int, codes: Array, calls: list[Call]) -> Call:
        """The network's call of a layer that is the program's call ``index`` of it.

        Where the network calls it more often than the program, for results that no output depends on, it is the one
        with the nearest input, of those that leave enough for the program's other calls.
        """
        spare = len(calls) - self.called[name]
        if spare < 0:
            raise InputError(f"verify: the network does not call layer {name!r} as often as the program")
        if (name, index) not in self.chosen:
            first = self.chosen.get((name, index - 1), -1) + 1
            apart = {
                i: int(np.count_nonzero(calls[i].inputs.numpy().reshape(codes.shape) != codes))
                for i in range(first, index + spare + 1)
                if calls[i].inputs.numel() == codes.size
            }
            self.chosen[name, index] = min(apart, key=lambda i: apart[i], default=first)
        return calls[self.chosen[name, index]]


def _rounded(program: p.Program) -> list[bool]:
    """For each value whether numbers were rounded to integers on the way to it."""
    found: list[bool] = []
    for op in program.operations:
        rounds = isinstance(op, p.Requantize) and bool(op.shift.any())
        found.append(rounds or any(found[i] for i in op.inputs))
    return found


def _turned(op: p.Conv | p.ConvTranspose, layer: QuantizedLayer) -> tuple[npt.NDArray[np.int64], bool]:
    """+1 for each output channel, or -1 where the compiler negated its weights, as it does under negative slopes.

    And whether the layer reads its input twice, which it does where weights are too large for their type.
    """
    own = layer.integer_weight()[0].flatten(1).numpy()
    weight = torch.from_numpy(op.values())
    compiled = (native_order(weight, op.groups) if isinstance(op, p.ConvTranspose) else weight).numpy()
    compiled = compiled.reshape(len(compiled), -1)
    twice = compiled.size == 2 * own.size
    if twice:
        compiled = compiled.reshape(len(compiled), 2, -1).sum(1, dtype=np.int64)
    if own.shape == compiled.shape:
        same, negated = (own == compiled).all(1), (own == -compiled).all(1)
        if (same | negated).all():
            return np.where(same, 1, -1), twice
    raise InputError(f"verify: the program's weights of layer {op.name!r} are not those of the network")
