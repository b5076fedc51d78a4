"""Stage one of FitNets: a student's inner layer learns to give what a teacher's gives."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from .distillation import hint_loss, hint_regressor
from .loop import Batches, Epoch, Training, to_stderr
from .objectives import Objective
from .optimization import Settings


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
    Then comes ``fit`` with ``teacher=``, the second stage. The paper's weight of the soft targets falls from 4 to 1
    beside a cross-entropy of 1 and has no factor ``T^2``, which ours has; a weight ``w`` is the share
    ``w / (w + T^2)``: ``teacher_share=(0.31, 0.1)`` at a temperature of 3.

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
    if not len(train_batches):  # type: ignore[arg-type]
        raise InputError(f"{label}: there are no batches to train on")
    images, _ = next(iter(train_batches))
    settings = Settings(
        epochs=epochs, lr=lr, optimizer=optimizer, weight_decay=weight_decay, momentum=momentum, schedule=schedule
    )
    objective = Hints(student, teacher, images, guided=guided, hint=hint, label=label)
    training = Training(student, train_batches, settings, objective, label=label)

    def say(epoch: Epoch) -> None:
        if progress is not None:
            progress(f"{label}: epoch {epoch.number}/{epochs}  loss {epoch.loss:.4g}")

    return [epoch.loss for epoch in training.run(on_epoch=say)]


class Hints(Objective):
    """The hint loss, up to the guided layer: what lies behind it is not run, so no answer is judged.

    See :func:`fit_hints`.

    Args:
        student, teacher, guided, hint: as there.
        images: a batch, for the shapes.
        label: of the training, for errors.

    Raises:
        InputError: as there.
    """

    judges = False

    def __init__(
        self, student: nn.Module, teacher: nn.Module, images: Tensor, *, guided: str, hint: str, label: str = "hints"
    ) -> None:
        super().__init__()
        for network, name in ((student, guided), (teacher, hint)):
            if name not in dict(network.named_modules()):
                raise InputError(f"{label}: {type(network).__name__} has no layer {name!r}")
        self.guided, self.hint = guided, hint
        self._teacher = (teacher.eval(),)  # in a tuple: not trained, not saved
        trial = copy.deepcopy(student).train()  # whose steps may not be known yet
        device = next(student.parameters()).device
        with torch.no_grad():
            shapes = [
                output_of(n, n.get_submodule(m), images.to(device)).shape for n, m in ((trial, guided), (teacher, hint))
            ]
        self.regressor = hint_regressor(*shapes).to(device)

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, done: float) -> tuple[Tensor, Tensor]:
        (teacher,) = self._teacher
        with torch.no_grad():
            target = output_of(teacher, teacher.get_submodule(self.hint), images)
        loss = hint_loss(output_of(model, model.get_submodule(self.guided), images), target, self.regressor)
        return loss, loss.new_zeros(())


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
