"""Stage one of FitNets: a student's inner layer learns to give what a teacher's gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import BitbranchError, InputError
from .distillation import hint_loss, hint_regressor
from .loop import Batches, make_optimizer, make_schedule, project, to_stderr


def fit_hints(
    student: nn.Module,
    teacher: nn.Module,
    train_batches: Batches,
    *,
    guided: str,
    hint: str,
    epochs: int,
    lr: float,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    schedule: str = "cosine",
    progress: Callable[[str], None] | None = to_stderr,
    label: str = "hints",
    seed: int | None = None,
) -> list[float]:
    """Train the student up to its guided layer so that a regressor makes the teacher's hint of it.

    What lies behind the guided layer is neither run nor changed. The regressor is made for the shapes and thrown away.
    Then comes ``fit`` with ``teacher=``, the second stage; ``teacher_share=(0.8, 0.5)`` is the paper's weight of the
    soft targets, which falls from 4 to 1 beside a cross-entropy of 1.

    Args:
        student: any network, quantized or not; trained in place and left in evaluation mode.
        teacher: a network of the same input; not changed, evaluated.
        train_batches: pairs of images and labels, with a length; the labels are not used.
        guided: name of the student's layer (as in ``named_modules()``); its output is ``[N, C, ...]``.
        hint: name of the teacher's layer.
        epochs: passes over the batches.
        lr, optimizer, weight_decay, momentum, schedule: as in :func:`~bitbranch.training.loop.fit`.
        progress: takes one line per epoch; None is silent.
        label: what the progress lines call this training.
        seed: seeds torch's global generator first; the regressor's initial weights come from it, too.

    Returns:
        The mean loss of each epoch.

    Raises:
        InputError: no such layer, one that is not reached, outputs that no regressor brings together, no batches.
        BitbranchError: the loss is no longer finite.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equations (3) and (4), algorithm 1.
    """
    if seed is not None:
        torch.manual_seed(seed)
    layers = []
    for network, name in ((student, guided), (teacher, hint)):
        if name not in dict(network.named_modules()):
            raise InputError(f"{label}: {type(network).__name__} has no layer {name!r}")
        layers.append(network.get_submodule(name))
    steps = len(train_batches)  # type: ignore[arg-type]
    if steps == 0:
        raise InputError(f"{label}: there are no batches to train on")

    images, _ = next(iter(train_batches))
    teacher.eval()
    trial = copy.deepcopy(student).train()  # whose steps may not be known yet
    with torch.no_grad():
        shapes = [output_of(n, n.get_submodule(m), images).shape for n, m in ((trial, guided), (teacher, hint))]
    regressor = hint_regressor(*shapes).to(images.device)
    update = make_optimizer(nn.ModuleList([student, regressor]), optimizer, lr=lr, weight_decay=weight_decay,
                            momentum=momentum)  # fmt: skip
    rate = make_schedule(schedule, steps=epochs * steps)
    losses: list[float] = []
    student.train()
    done = 0
    for number in range(1, epochs + 1):
        total, seen = 0.0, 0
        for images, _ in train_batches:
            for group in update.param_groups:
                group["lr"] = lr * rate(done)
            with torch.no_grad():
                target = output_of(teacher, layers[1], images)
            loss = hint_loss(output_of(student, layers[0], images), target, regressor)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise BitbranchError(f"{label}: the loss is {value} at epoch {number}; lower the learning rate")
            update.zero_grad(set_to_none=True)
            loss.backward()
            update.step()
            project(student)
            done += 1
            total += value * len(images)
            seen += len(images)
        losses.append(total / seen)
        if progress is not None:
            progress(f"{label}: epoch {number}/{epochs}  loss {losses[-1]:.4g}")
    student.eval()
    return losses


class _Reached(Exception):
    """Ends a forward pass once the wanted output has been seen."""


def output_of(network: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """What one layer of a network gives in a forward pass, which ends there.

    Raises:
        InputError: the layer is not reached, or does not give a tensor.
    """
    seen: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        seen.append(out)
        raise _Reached

    with layer.register_forward_hook(take):
        try:
            network(images)
        except _Reached:
            if isinstance(seen[0], Tensor):
                return seen[0]
    raise InputError(
        f"hints: a forward pass of {type(network).__name__} gets no tensor from that {type(layer).__name__}"
    )
