"""Scheme strings, resolved to quantizers in one place.

``METHOD:wM-aK`` names a method with its weights (``w1 .. w8``, ``wt`` for ternary, ``w32`` for float) and activations
(``a1 .. a8``, ``a32``); ``wMaK`` alone is ``uniform:wM-aK``, and ``METHOD:wM`` is ``METHOD:wM-a32``. Methods that leave
activations float in their papers have learned steps (``lsq``) for ``a1 .. a8``, so that they can be compiled.
``METHOD(NAME=VALUE, ..)`` gives a method's options: ``tsq(sparsity=0.75):wt-a2``. To add a method, add a row to
:data:`METHODS`, and to :data:`OPTIONS` if it has some.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from ..errors import InputError
from .base import ActivationQuantizer, WeightQuantizer
from .binaryconnect import BinaryConnectWeight
from .binarynet import BinaryNetActivation, BinaryNetWeight
from .bwn import BinaryWeight
from .bwnh import HashedWeight
from .dorefa import FLOAT_GRADIENT, DoReFaActivation, DoReFaWeight
from .ffn import FactorizedWeight
from .hwgq import HalfWaveActivation
from .inq import PowerOfTwoWeight
from .lloyd import LloydActivation
from .lsq import LearnedStepActivation, LearnedStepWeight
from .mbn import BipolarActivation, BipolarWeight, Clip, Gradient
from .tsq import LearnedTernaryWeight, SparseActivation, TernaryWeight
from .ttq import THRESHOLD, TrainedTernaryWeight
from .twn import ThresholdTernaryWeight
from .uniform import UniformActivation, UniformWeight
from .xnor import XnorActivation, XnorWeight

WeightFactory = Callable[[], WeightQuantizer | None]
ActivationFactory = Callable[[], ActivationQuantizer | None]


def no_quantizer() -> None:
    """The factory of ``w32`` and ``a32``: float."""


@dataclass(frozen=True)
class Scheme:
    """How the layers of a network are quantized; every layer gets quantizers of its own.

    Attributes:
        name: for reports.
        weight: makes a weight quantizer, or None for float weights.
        activation: makes a quantizer of the layer's input, or None for float.
    """

    name: str
    weight: WeightFactory = no_quantizer
    activation: ActivationFactory = no_quantizer


@dataclass(frozen=True)
class Method:
    """A row of the registry: what ``w...`` and ``a...`` may say after the colon, and what it makes."""

    weights: Mapping[str, WeightFactory]
    activations: Mapping[str, ActivationFactory]

    def scheme(self, method: str, weight: str, activation: str) -> Scheme:
        """The scheme of one weight and one activation spelling, such as ``"t"`` and ``"2"``.

        Raises:
            InputError: a spelling that the method does not have.
        """
        name = f"{method}:w{weight}-a{activation}"
        weights = {**self.weights, "32": no_quantizer}
        activations = {**self.activations, "32": no_quantizer}
        if weight not in weights or activation not in activations:
            known = f"w{{{','.join(weights)}}}-a{{{','.join(activations)}}}"
            raise InputError(f"unknown scheme {name!r}: {method} has {known}")
        return Scheme(name, weights[weight], activations[activation])


def _bits(make: Callable[[int], WeightQuantizer], bits: Iterable[int]) -> dict[str, WeightFactory]:
    return {str(b): partial(make, b) for b in bits}


def _activation_bits(make: Callable[[int], ActivationQuantizer]) -> dict[str, ActivationFactory]:
    return {str(b): partial(make, b) for b in range(1, 9)}


_TERNARY: dict[str, WeightFactory] = {"t": TernaryWeight}
_BINARY: dict[str, WeightFactory] = {"1": BinaryWeight}
_LEARNED_STEPS = _activation_bits(LearnedStepActivation)
_UNIFORM: dict[str, WeightFactory] = {**_BINARY, **_TERNARY, **_bits(UniformWeight, range(2, 9))}


def mbn(*, clip: Clip | Literal["learned"] = "htanh", gradient: Gradient = "ste", fixed_range: bool = False) -> Method:
    """Multi-branch binary networks, with the options of :class:`BipolarActivation` and :class:`BipolarWeight`.

    ``clip="learned"`` keeps ReLUs and learns where each layer's inputs are cut, by LSQ's gradient: codes ``0 .. n`` of
    a learned step. A float network with ReLUs then keeps its function at 8 bits, where the published clips, whose ends
    are fixed, have to learn it anew.
    """
    weight = partial(BipolarWeight, fixed_range=fixed_range, gradient=gradient)
    clips = (*get_args(Clip), "learned")
    if clip not in clips:
        raise InputError(f"mbn: clip must be one of {', '.join(clips)}, got {clip!r}")
    if clip == "learned":
        return Method(_bits(weight, range(1, 9)), _LEARNED_STEPS)
    activation = partial(BipolarActivation, clip=clip, gradient=gradient)
    return Method(_bits(weight, range(1, 9)), _activation_bits(activation))


def lsq(*, per_channel: bool = False) -> Method:
    """Learned step size quantization, with a step of the weights for each layer or each output channel."""
    return Method(_bits(partial(LearnedStepWeight, per_channel=per_channel), range(2, 9)), _LEARNED_STEPS)


def tsq(*, sparsity: float = 0.625, lloyd: bool = False, learned: bool = False) -> Method:
    """Two-step quantization.

    Args:
        sparsity: share of codes 0, in [0.5, 1).
        lloyd: levels of the codes by Lloyd's algorithm (2 and 3 bits) instead of evenly spaced.
        learned: ternary weights, and no others, whose scales are trained; see :class:`LearnedTernaryWeight`.
    """
    weights: dict[str, WeightFactory] = {"t": LearnedTernaryWeight} if learned else _UNIFORM
    if not lloyd:
        return Method(weights, _activation_bits(partial(SparseActivation, sparsity=sparsity)))
    activations: dict[str, ActivationFactory] = {str(b): partial(LloydActivation, b, sparsity=sparsity) for b in (2, 3)}
    return Method(weights, activations)


def binaryconnect(*, magnitude: float = 1.0, stochastic: bool = False) -> Method:
    """BinaryConnect, with the options of :class:`BinaryConnectWeight`."""
    weight = partial(BinaryConnectWeight, magnitude=magnitude, stochastic=stochastic)
    return Method({"1": weight}, _LEARNED_STEPS)


def dorefa(*, gradient_bits: int = FLOAT_GRADIENT) -> Method:
    """DoReFa-Net, with quantized gradients if asked for; see :class:`DoReFaActivation`."""
    activation = partial(DoReFaActivation, gradient_bits=gradient_bits)
    return Method(_bits(DoReFaWeight, range(1, 9)), _activation_bits(activation))


def ffn(*, rank: int | None = None) -> Method:
    """Fixed-point factorized networks of a given rank; see :class:`FactorizedWeight`."""
    return Method({"t": partial(FactorizedWeight, rank=rank)}, _LEARNED_STEPS)


def ttq(*, threshold: float = THRESHOLD) -> Method:
    """Trained ternary quantization with another threshold; see :class:`TrainedTernaryWeight`."""
    return Method({"t": partial(TrainedTernaryWeight, threshold=threshold)}, _LEARNED_STEPS)


def twn(*, per_layer: bool = False) -> Method:
    """Ternary weight networks, by filter or by layer; see :class:`ThresholdTernaryWeight`."""
    return Method({"t": partial(ThresholdTernaryWeight, per_layer=per_layer)}, _LEARNED_STEPS)


def xnor(*, input_scale: bool = True) -> Method:
    """XNOR-Net with the scale of inputs or, to be compiled, without; see :class:`XnorActivation`."""
    return Method({"1": XnorWeight}, {"1": partial(XnorActivation, input_scale=input_scale)})


METHODS: dict[str, Method] = {
    "uniform": Method(_UNIFORM, _activation_bits(UniformActivation)),
    "mbn": mbn(),
    "tsq": tsq(),
    "hwgq": Method({**_BINARY, **_TERNARY}, _activation_bits(HalfWaveActivation)),
    "lsq": lsq(),
    "binaryconnect": binaryconnect(),
    "binarynet": Method(_bits(BinaryNetWeight, range(1, 9)), _activation_bits(BinaryNetActivation)),
    "bwn": Method(_BINARY, _LEARNED_STEPS),
    "xnor": xnor(),
    "bwnh": Method({"1": HashedWeight}, _LEARNED_STEPS),
    "twn": twn(),
    "ttq": ttq(),
    "dorefa": dorefa(),
    "inq": Method(_bits(PowerOfTwoWeight, range(2, 6)), _LEARNED_STEPS),
    "ffn": ffn(),
}
"""Every method that a scheme string may name."""

OPTIONS: dict[str, Callable[..., Method]] = {
    "mbn": mbn, "tsq": tsq, "lsq": lsq, "binaryconnect": binaryconnect, "xnor": xnor, "twn": twn, "ttq": ttq,
    "dorefa": dorefa, "ffn": ffn,
}  # fmt: skip
"""The methods with options, and what makes a :class:`Method` of them."""

_SPELLING = re.compile(
    r"(?:(?P<method>\w+)(?:\((?P<options>[^()]*)\))?:)?w(?P<weight>t|\d+)(?:-?a(?P<activation>\d+))?"
)


def parse_scheme(scheme: str | Scheme, method: Method | None = None) -> Scheme:
    """The scheme that a string names; a :class:`Scheme` is handed back.

    Args:
        scheme: such as ``"tsq:wt-a2"``, ``"mbn:w2-a2"`` or ``"w8a8"``.
        method: a method with options, in place of the registry's row, such as ``tsq(sparsity=0.75)``.

    Raises:
        InputError: a string that names no known scheme.

    >>> parse_scheme("tsq:wt-a2", tsq(sparsity=0.75)).activation()
    SparseActivation(2, eps=0.67449, step=0.786785)
    """
    if isinstance(scheme, Scheme):
        return scheme
    match = _SPELLING.fullmatch(scheme) if isinstance(scheme, str) else None
    if match is None or not (match["activation"] or match["method"]):
        raise InputError(f"unknown scheme {scheme!r}: expected METHOD:wM-aK or wMaK, such as tsq:wt-a2 or w8a8")
    name = match["method"] or "uniform"
    row = method or METHODS.get(name)
    if row is None:
        raise InputError(f"unknown scheme {scheme!r}: no method {name!r}; known are {', '.join(METHODS)}")
    label = name
    if match["options"] is not None:
        row, label = _with_options(scheme, name, match["options"]), f"{name}({match['options']})"
    return row.scheme(label, match["weight"], match["activation"] or "32")


def _with_options(scheme: str, name: str, text: str) -> Method:
    """A method with the options ``NAME=VALUE, ..``: numbers, ``true``, ``false``, ``none`` or words."""
    if name not in OPTIONS:
        raise InputError(f"scheme {scheme!r}: {name} has no options")
    known, given = inspect.signature(OPTIONS[name]).parameters, dict[str, object]()
    for part in filter(None, (p.strip() for p in text.split(","))):
        option, _, value = (p.strip() for p in part.partition("="))
        if option not in known or not value:
            raise InputError(f"scheme {scheme!r}: {part!r} is no option of {name}, which has {', '.join(known)}")
        try:
            given[option] = _WORDS[value] if value in _WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            given[option] = value
        default = known[option].default
        like: tuple[type, ...] = (type(default),)
        if default is None or isinstance(default, float):
            like = (int, type(default))
        if not isinstance(given[option], like) or isinstance(given[option], bool) != isinstance(default, bool):
            wanted = "a whole number, or none" if default is None else f"like {default}"
            raise InputError(f"scheme {scheme!r}: {option} = {value} should be {wanted}")
    return OPTIONS[name](**given)


_WORDS = {"true": True, "false": False, "none": None}
