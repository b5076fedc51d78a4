"""The swap in a user's network: :func:`quantize`, and :func:`coverage`, which says what it reached."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from .chains import Graph
from .errors import InputError
from .layers import QuantizedLayer, quantized_layer, replace_modules, why_float
from .quantizers.base import ActivationQuantizer, WeightQuantizer
from .quantizers.registry import Scheme, parse_scheme


@dataclass(frozen=True)
class Covered:
    """What became of one layer.

    Attributes:
        name: as in ``named_modules()``.
        type: name of its class.
        scheme: what it is quantized by; None if it is float.
        reason: why it is float, or what it replaces.
    """

    name: str
    type: str
    scheme: str | None
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.type}): {self.scheme or self.reason}"


def quantize(
    model: nn.Module,
    scheme: str | Scheme,
    *,
    first: str | Scheme | None = "w8a8",
    last: str | Scheme | None = "w8a8",
    layers: Mapping[str, str | Scheme | None] | None = None,
) -> nn.Module:
    """A copy of a network whose convolutions and linear layers are quantized; weights are kept.

    These are Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d and Linear. First and last are meant in the order of
    ``named_modules()``. Where the codes of ``scheme`` read signs (``mbn``), ReLU and ReLU6 modules in front of layers
    with such codes become ``nn.Hardtanh``, since a ReLU would leave half of the codes unused. Those that only others
    read (the last layer, an exception) stay, and a scheme whose codes read no signs gives all back. Where ``forward``
    cannot be traced, so that nobody knows what reads them, all become Hardtanh. A network that is quantized already
    gets the new quantizers: ``quantize(q8, "mbn:w4-a4")``.

    Args:
        model: any torch module; it is not changed.
        scheme: a string such as ``"tsq:wt-a2"`` (see :mod:`bitbranch.quantizers.registry`) or a :class:`Scheme`.
        first, last: for the first and the last layer; None leaves it as it is.
        layers: exceptions, by the layer's name or a pattern such as ``"head.*"``; None leaves a layer as it is. A name
            goes before patterns, and an earlier pattern before a later one.

    Raises:
        InputError: an unknown scheme, no layer to quantize, an exception that matches no layer, or one that asks for a
            layer that has no quantized form.

    Warns of layers with parameters that stay float without having been asked to (:func:`coverage` lists all), and of
    what is known to go wrong when a method's training starts from these weights.
    """
    network = copy.deepcopy(model)
    parametric = dict(_parametric(network))
    quantizable = [name for name, layer in parametric.items() if not why_float(layer)]
    if not quantizable:
        raise InputError(
            f"{type(model).__name__} has no layer to quantize: no Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d or "
            "Linear"
        )
    wanted: dict[str, str | Scheme | None] = dict.fromkeys(quantizable, scheme)
    wanted[quantizable[-1]] = last
    wanted[quantizable[0]] = first
    wanted |= _exceptions(layers or {}, list(parametric), quantizable)

    new: dict[nn.Module, nn.Module] = {}
    for name, spelling in wanted.items():
        if spelling is not None:
            new[parametric[name]] = _swapped(name, parametric[name], parse_scheme(spelling))
    network = replace_modules(network, new)
    activation = parse_scheme(scheme).activation()
    network = replace_modules(network, _bounded(network, activation is not None and activation.reads_signs))

    left = [str(c) for c in coverage(network) if c.scheme is None and c.name not in wanted and c.name in parametric]
    if left:
        warnings.warn(f"quantize: these stay float: {'; '.join(left)}", stacklevel=2)
    for trap, names in _traps(network).items():
        warnings.warn(f"quantize: {', '.join(names)}: {trap}", stacklevel=2)
    return network


def coverage(network: nn.Module) -> list[Covered]:
    """What :func:`quantize` made of each layer with parameters (BatchNorm apart, which folds), in module order.

    An activation that took the place of another is listed with what it replaces.
    """
    parametric = dict(_parametric(network))
    out = []
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLayer):
            out.append(Covered(name, type(module).__name__, module.scheme or "quantizers given as objects"))
        elif name in parametric:
            out.append(Covered(name, type(module).__name__, None, why_float(module) or "no scheme asked for it"))
        elif replaced := getattr(module, "replaces", ""):
            out.append(Covered(name, type(module).__name__, None, f"replaces {replaced}: the next codes have signs"))
    return out


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Choose the steps and ranges that come from data by running batches ``[N, ...]`` through the network.

    A batch is a tensor or an array; for a network of several arguments a tuple of them. What else is in a tuple, such
    as labels, is left out.

    Nothing is trained: BatchNorm statistics and weights stay. Training does the same on its way, so this is for
    networks that are not trained after :func:`quantize`.

    Raises:
        InputError: no batch, or one batch in place of several; a layer's inputs or weights are not finite, or its
            inputs all zero.
    """
    if isinstance(batches, (Tensor, np.ndarray)):
        raise InputError("calibrate takes batches: give it a list of them, [x]")
    taken = _arguments(network)
    names = {layer: name for name, layer in network.named_modules()}
    entered = ""

    def start(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal entered
        assert isinstance(layer, QuantizedLayer)
        entered = names[layer]
        for what, numbers in (("inputs", args[0]), ("weights", layer.weight)):
            if not torch.isfinite(numbers).all():
                raise InputError(f"its {what} hold NaN or infinity")
        if layer.input_quantizer is not None:
            layer.input_quantizer.start(args[0])

    modes = {m: m.training for m in network.modules()}
    hooks = [m.register_forward_pre_hook(start) for m in network.modules() if isinstance(m, QuantizedLayer)]
    network.eval()
    seen = False
    try:
        for x in batches:
            given = x if isinstance(x, (tuple, list)) else (x,)
            network(*map(torch.as_tensor, given[:taken]))
            seen = True
    except InputError as error:
        raise InputError(f"layer {entered!r}: {error}" if entered else str(error)) from None
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        raise InputError("calibrate needs at least one batch")


def _arguments(network: nn.Module) -> int | None:
    """How many arguments a network takes by their places; None if any number."""
    kinds = inspect.signature(network.forward).parameters.values()
    if any(kind.kind is kind.VAR_POSITIONAL for kind in kinds):
        return None
    return sum(kind.kind in (kind.POSITIONAL_ONLY, kind.POSITIONAL_OR_KEYWORD) for kind in kinds)


def _parametric(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own, by name; quantizers, what lies in them, and BatchNorm apart."""
    found = []
    for name, module in network.named_modules():
        ours = isinstance(module, (ActivationQuantizer, WeightQuantizer, _BatchNorm))
        ours = ours or (isinstance(module, _InstanceNorm) and module.track_running_stats)
        if not ours and next(module.parameters(recurse=False), None) is not None:
            found.append((name, module))
    return found


NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
POOLED_SIGNS = (
    "most of what max-pooling takes from a BatchNorm is positive, so that its signs say little; put the BatchNorm "
    "behind the max-pooling"
)
NOT_NORMALISED = "the codes are for inputs that a BatchNorm has normalised, and the network has none"


@torch.no_grad()
def _traps(network: nn.Module) -> dict[str, list[str]]:
    """What is known to go wrong in training, and in which layers."""
    found: dict[str, list[str]] = {}
    has_norm = any(isinstance(m, _BatchNorm) for m in network.modules())
    normalised = any(isinstance(m, NORMS) for m in network.modules())
    pooled_signs = _pooled_signs(network)
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLayer) and layer.weight_quantizer is not None:
            texts = [layer.weight_quantizer.trap(layer.outputs_first(layer.weight))]
            if not (layer.weight_quantizer.keeps_size or has_norm):
                texts.append("the weights' size is fixed, and the network has no BatchNorm to bring its outputs back")
            codes = layer.input_quantizer
            if codes is not None and codes.normalised and not normalised:
                texts.append(NOT_NORMALISED)
            if name in pooled_signs:
                texts.append(POOLED_SIGNS)
            for text in filter(None, texts):
                found.setdefault(text, []).append(name or type(layer).__name__)
    return found


def _pooled_signs(network: nn.Module) -> set[str]:
    """Layers with 1-bit activations whose input is max-pooled behind its BatchNorm; none of what cannot be traced."""
    signs = {
        name
        for name, layer in network.named_modules()
        if _reads_signs(layer) and layer.input_quantizer.code_type.bits == 1
    }
    if not signs:
        return signs
    try:
        graph = Graph(network)
    except InputError:
        return set()
    return {
        name
        for call in graph.calls(QuantizedLayer)
        if (name := str(call.target)) in signs and graph.pooled_from_norm(call)
    }


def check_layers(network: nn.Module, layers: Iterable[str]) -> None:
    """Raise :class:`InputError` where a name or pattern of ``layers`` matches no layer; see :func:`quantize`."""
    _exceptions(dict.fromkeys(layers), [name for name, _ in _parametric(network)], [])


def _exceptions(
    layers: Mapping[str, str | Scheme | None], parametric: list[str], quantizable: list[str]
) -> dict[str, str | Scheme | None]:
    """The schemes of the layers that names and patterns match; a pattern asks nothing of what cannot be quantized."""
    out: dict[str, str | Scheme | None] = {}
    for pattern, scheme in layers.items():
        matched = [name for name in parametric if fnmatchcase(name, pattern)]
        if not matched:
            raise InputError(f"layers: {pattern!r} matches no layer with parameters")
        for name in matched:
            if scheme is None or name in quantizable:
                out.setdefault(name, scheme)
    return out | {name: scheme for name, scheme in layers.items() if name in parametric}


def _swapped(name: str, layer: nn.Module, scheme: Scheme) -> QuantizedLayer:
    try:
        new = quantized_layer(layer, scheme.activation(), scheme.weight())
    except InputError as error:
        raise InputError(f"layer {name}: {error}") from None
    new.scheme = scheme.name
    return new


def _bounded(network: nn.Module, signs: bool) -> dict[nn.Module, nn.Module]:
    """New activations, by those they replace: if ``signs``, a Hardtanh wherever codes that read signs read a ReLU."""
    rectifiers = {m for m in network.modules() if type(m) in (nn.ReLU, nn.ReLU6)}
    bounded = {m for m in network.modules() if getattr(m, "replaces", "")}
    wanted: set[nn.Module] = set()
    if signs and (readers := {name for name, layer in network.named_modules() if _reads_signs(layer)}):
        try:
            graph = Graph(network)
            calls = graph.calls((nn.ReLU, nn.ReLU6, nn.Hardtanh))
            wanted = {network.get_submodule(str(call.target)) for call in calls if graph.reached(call) & readers}
        except InputError:
            wanted = rectifiers | bounded
    return {m: _hardtanh(m) for m in rectifiers & wanted} | {m: _given_back(m) for m in bounded - wanted}


def bound_all(network: nn.Module) -> nn.Module:
    """Put a Hardtanh in the place of every ReLU and ReLU6, as :func:`quantize` once did for codes that read signs."""
    return replace_modules(network, {m: _hardtanh(m) for m in network.modules() if type(m) in (nn.ReLU, nn.ReLU6)})


def _reads_signs(layer: nn.Module) -> bool:
    codes = layer.input_quantizer if isinstance(layer, QuantizedLayer) else None
    return codes is not None and codes.reads_signs


def _hardtanh(relu: nn.Module) -> nn.Hardtanh:
    new = nn.Hardtanh()
    new.training = relu.training
    new.replaces = type(relu).__name__  # type: ignore[assignment]
    return new


def _given_back(hardtanh: nn.Module) -> nn.Module:
    """The activation that a Hardtanh has replaced."""
    new = {"ReLU": nn.ReLU, "ReLU6": nn.ReLU6}[str(hardtanh.replaces)]()
    new.training = hardtanh.training
    return new
