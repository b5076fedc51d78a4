"""From a trained float network to a low-bit one without training: codes from the data, then the solver of step 2.

The float network takes the place of the step-1 network: its own pre-activations are what every layer is fitted to, so
errors of the layers in front are made up for.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.lloyd import LloydActivation
from ..quantizers.registry import Scheme
from ..quantizers.tsq import SparseActivation
from ..swap import NOT_NORMALISED, quantize
from ..training.loop import to_stderr
from .batchnorm import evaluation
from .calibration import Batches, Images
from .codes import has_low_bit_weight
from .driver import LayerReport, Recipe, restart, solve
from .histogram import Histogram, equalize
from .layer import check_layer


@torch.no_grad()
def convert(
    network: nn.Module,
    loader: Batches,
    scheme: str | Scheme = "tsq:wt-a2",
    *,
    first: str | Scheme | None = "w8a8",
    last: str | Scheme | None = "w8a8",
    layers: Mapping[str, str | Scheme | None] | None = None,
    per_channel: bool = False,
    recipe: Recipe | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = to_stderr,
    on_layer: Callable[[LayerReport], None] | None = None,
) -> nn.Module:
    """Quantize a trained float network of ordinary BatchNorm and ReLU without training it.

    The step ``D`` of each layer's sparse codes minimises ``E[(Q(x) - relu(x))^2]`` over the inputs that the float
    network measures, thresholds midway between the levels; codes of other methods choose their steps as ``calibrate``
    does. Then the low-bit weights are solved as by :func:`learn_transforms`, before the addition in residual networks,
    and biases and BatchNorm statistics follow.

    Args:
        network: a trained float network; not changed.
        loader: batches, whose images calibrate, see :data:`~bitbranch.twostep.calibration.Batches`. Iterated twice: it
            should give the same images again, or others of their kind.
        scheme, first, last, layers: see :func:`bitbranch.quantize`.
        per_channel: give each channel that a BatchNorm alone feeds to codes a step of its own. The BatchNorm takes it
            over, and the weights behind the opposite; so the program costs no more.
        recipe: how layers are solved; default: ``Recipe()``.
        state, progress, on_layer: see :func:`learn_transforms`.

    Returns:
        The low-bit network, in evaluation mode: it compiles, and can be trained further.

    Raises:
        InputError: see :func:`bitbranch.quantize` and :func:`learn_transforms`; images that are not finite.

    Source: the solver is that of Wang et al., CVPR 2018, section 3.3; steps by least squares: Cai et al., CVPR 2017.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f".*{NOT_NORMALISED}")  # the steps are chosen here
        student = quantize(network, scheme, first=first, last=last, layers=layers).eval()
    names = {name for name, layer in student.named_modules() if has_low_bit_weight(layer)}
    check_codes(student, names)
    bounded = [name for name, m in student.named_modules() if getattr(m, "replaces", "")]
    if any(not getattr(network.get_submodule(name), "replaces", "") for name in bounded):
        raise InputError(
            f"step 2: the codes of {scheme!r} read signs, for which {bounded[0]} becomes a Hardtanh: another function, "
            "that only training makes up for; take mbn(clip=learned) or tsq, which keep it"
        )
    if per_channel and not any(_sparse(layer) for layer in student.modules()):
        raise InputError(f"per_channel: is for sparse codes, and {scheme!r} has none")
    if not names:
        raise InputError(
            f"two-step quantization: {scheme!r} gives {type(network).__name__} no layer with low-bit weights"
        )
    calibration = Images(loader, "step 2")
    recipe = recipe or Recipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        place_codes(student, calibration, per_channel=per_channel)
    for name in names:
        layer = student.get_submodule(name)
        assert isinstance(layer, QuantizedLayer)
        restart(layer)
    return solve(
        student, float_twin(student), names, calibration, recipe, state=state, progress=progress, on_layer=on_layer
    )


def _sparse(layer: nn.Module) -> bool:
    return isinstance(layer, QuantizedLayer) and isinstance(layer.input_quantizer, SparseActivation)


def float_twin(network: nn.Module) -> nn.Module:
    """A copy of a quantized network in which nothing is quantized."""
    twin = copy.deepcopy(network)
    for layer in twin.modules():
        if isinstance(layer, QuantizedLayer):
            layer.input_quantizer = layer.weight_quantizer = None
    return twin


@torch.no_grad()
def place_codes(network: nn.Module, loader: Batches, *, per_channel: bool = False) -> None:
    """Give the sparse codes of a quantized network the steps that suit what its float weights make of the images.

    Args:
        network: changed in place; its float function is kept.
        loader: see :func:`convert`.
        per_channel: see :func:`convert`.

    Raises:
        InputError: images that are not finite, or ``forward`` cannot be traced.
    """
    twin = float_twin(network)
    layers = {n: m for n, m in network.named_modules() if isinstance(m, QuantizedLayer)}
    sparse = {n: m for n, m in layers.items() if _sparse(m)}
    histograms: dict[str, Histogram] = {}

    def measure(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if (quantizer := layers[name].input_quantizer) is not None:
            quantizer.start(args[0])
        if name in sparse:
            channels = args[0].flatten(0, -2).T if isinstance(module, nn.Linear) else args[0].transpose(0, 1).flatten(1)
            histograms.setdefault(name, Histogram(len(channels))).add(channels)

    hooks = [twin.get_submodule(name).register_forward_pre_hook(partial(measure, name)) for name in layers]
    try:
        with evaluation(twin):
            for images in Images(loader, "step 2"):
                twin(images)
    finally:
        for hook in hooks:
            hook.remove()
    for name, histogram in histograms.items():
        quantizer = layers[name].input_quantizer
        assert isinstance(quantizer, SparseActivation)
        step = float(histogram.whole().best_steps(quantizer.bits)[0])
        quantizer.place(step / 2, step)
    if per_channel:
        equalize(network, lambda norm, reader: histograms[reader].merged(norm.num_features))


def check_codes(network: nn.Module, names: set[str]) -> None:
    """Whether step 2 can serve these layers as they are.

    Raises:
        InputError: one has float inputs, codes whose levels only training could place, or a weight quantizer that reads
            other integers than the solver's; names it.
    """
    for name, layer in network.named_modules():
        if name not in names or not isinstance(layer, QuantizedLayer):
            continue
        check_layer(name, layer)
        if isinstance(layer.input_quantizer, LloydActivation):
            raise InputError(f"layer {name}: Lloyd's levels are for normalised inputs, as learn_codes() makes them")
