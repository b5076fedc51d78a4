"""Binary weight networks via hashing (BWNH): signs for a whole network, layer by layer, front to back.

Each layer is solved for the inputs that it gets from the layers already binary, towards the inner products of the
float network. Source: Hu, Wang, Cheng, "From Hashing to CNNs", AAAI 2018, section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..chains import Graph
from ..errors import InputError
from ..layers import QuantizedLayer
from ..quantizers.bwnh import HashedWeight, hashed
from ..training.loop import to_stderr
from .batchnorm import evaluation, reestimate_batchnorm
from .calibration import Batches, Images
from .driver import calls_of
from .layer import capture
from .statistics import draw_positions, patches


@torch.no_grad()
def hash_weights(
    q: nn.Module,
    reference: nn.Module,
    loader: Batches,
    *,
    samples: int = 20_000,
    reestimate: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = to_stderr,
) -> nn.Module:
    """Solve the binary weights of every layer of ``bwnh:w1-aK``, without gradients; then it can be trained further.

    Args:
        q: the network from ``quantize(reference, "bwnh:w1-aK")``, steps of activations known (``calibrate``); not
            changed.
        reference: the trained float network; not changed.
        loader: batches, whose images calibrate, see :data:`~bitbranch.twostep.calibration.Batches`. Iterated once per
            layer.
        samples: output positions per layer, spread over all batches.
        reestimate: measure the BatchNorm statistics anew, behind each layer.
        seed: of the sampled positions, and of torch's global generator while a shuffling loader is read.
        progress: takes one line per layer; None is silent.

    Returns:
        The solved network, in evaluation mode.

    Raises:
        InputError: no layer of this method, a reference that does not have these layers, no batches, images that are
            not finite, a layer called twice, or a ``forward`` that cannot be traced; names the layer.
    """
    student = copy.deepcopy(q).eval()
    names = {
        name
        for name, layer in student.named_modules()
        if isinstance(layer, QuantizedLayer) and isinstance(layer.weight_quantizer, HashedWeight)
    }
    if not names:
        raise InputError(f"hashing: {type(q).__name__} has no layer of bwnh:w1")
    if samples < 1:
        raise InputError(f"hashing: samples must be positive, got {samples}")
    calibration = Images(loader, "hashing")
    nodes = calls_of(Graph(student), names)
    with torch.random.fork_rng(devices=[]), evaluation(reference):
        torch.manual_seed(seed)
        for number, node in enumerate(nodes, 1):
            before, after = _solve(student, reference, str(node.target), calibration, samples)
            if reestimate:
                reestimate_batchnorm(student, calibration)
            if progress is not None:
                progress(f"hashing {number}/{len(nodes)}: {node.target}: error {before:.3g} -> {after:.3g}")
    return student


def _solve(
    student: nn.Module, reference: nn.Module, name: str, calibration: Images, samples: int
) -> tuple[float, float]:
    """Solve one layer, in place; its squared error before and after, in shares of the inner products' power."""
    layer, twin = student.get_submodule(name), dict(reference.named_modules()).get(name)
    assert isinstance(layer, QuantizedLayer)
    if twin is None or getattr(twin, "weight", layer.weight[:0]).shape != layer.weight.shape:
        raise InputError(f"layer {name}: the reference has no such layer; q must be made of it by quantize()")
    weight, groups = layer.outputs_first(layer.weight), int(getattr(layer, "groups", 1))
    rows = weight.detach().cpu().flatten(1).view(groups, -1, weight[0].numel())
    gram = torch.zeros(groups, rows.shape[2], rows.shape[2], dtype=torch.float64)
    cross, power = torch.zeros(rows.shape, dtype=torch.float64), torch.zeros(rows.shape[:2], dtype=torch.float64)
    count = 0
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    for done, images in enumerate(calibration, 1):
        quota = samples * done // len(calibration) - count
        if quota <= 0:
            continue
        x, s = _inputs_and_products(student, reference, name, images)
        positions = draw_positions(s.shape[:-1], quota, generator)
        taps = patches(layer, x, positions).cpu().double().transpose(0, 1)  # [G, p, n]
        wanted = s[tuple(positions.T)].cpu().double().view(len(positions), groups, -1).transpose(0, 1)
        gram += taps.transpose(1, 2) @ taps
        cross += wanted.transpose(1, 2) @ taps
        power += wanted.square().sum(1)
        count += len(positions)

    def error(b: Tensor, alpha: Tensor) -> float:
        fit, size = (b * cross).sum(2), (b * (b @ gram)).sum(2)
        return float((power - 2 * alpha * fit + alpha**2 * size).sum() / power.sum().clamp_min(1e-300))

    values, scale, _ = layer.integer_weight()
    start = error(values.cpu().double().view(rows.shape), scale.cpu().double().view(groups, -1))
    solved = [hashed(rows[g], gram[g], cross[g]) for g in range(groups)]
    b, alpha = torch.stack([s[0] for s in solved]), torch.stack([s[1] for s in solved])
    layer.weight.copy_(layer.native_order((alpha[:, :, None] * b).view_as(weight)))
    return start, error(b.double(), alpha.double())


def _inputs_and_products(student: nn.Module, reference: nn.Module, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the student's layer multiplies, and what the float layer makes of its own input, channels last, no bias."""
    layer, twin = student.get_submodule(name), reference.get_submodule(name)
    assert isinstance(layer, QuantizedLayer)
    x = capture(student, images, name, output=False)
    if layer.input_quantizer is not None:
        x = layer.input_quantizer.values(x) * layer.input_quantizer.scale()
    s = capture(reference, images, name, output=True)
    if not isinstance(twin, nn.Linear):
        s = s.movedim(1, -1)
    return x, s if twin.bias is None else s - twin.bias  # type: ignore[operator]
