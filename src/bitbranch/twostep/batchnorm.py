"""BatchNorm statistics measured anew, after the weights in front have changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .calibration import Batches, Images


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module is in its own mode again."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, loader: Batches) -> None:
    """Measure the statistics of every BatchNorm, in place, as averages over the batches of one pass.

    Everything else computes as in evaluation, a quantized layer with its integers. Modes are restored.

    Args:
        model: any network.
        loader: see :data:`~bitbranch.twostep.calibration.Batches`; each should be large enough for its own statistics.

    Raises:
        InputError: no batches, or images that are not finite.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    calibration = Images(loader, "BatchNorm re-estimation")
    momenta = [norm.momentum for norm in norms]
    with evaluation(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # averages all batches evenly
            norm.training = True
        try:
            for images in calibration:
                model(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
