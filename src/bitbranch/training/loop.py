"""One plain training loop, for float and for quantized networks alike, and the evaluation that goes with it.

Nothing here knows a method: a quantized layer brings its own gradient, and after each step its quantizer may bring
the latent weights back into range.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import processes
from ..data.batches import BatchSource
from ..errors import BitbranchError, InputError
from ..layers import QuantizedLayer
from .objectives import Classification, Objective
from .optimization import PRECISIONS, Settings
from .randomness import random_state, set_random_state
from .synchronized import synchronized

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images ``[N, C, H, W]`` float32 and labels ``[N]`` int64; iterated once per epoch, with a length."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave.

    Attributes:
        number: 1-based.
        loss: mean of the training loss.
        accuracy: share of the training images that were classified right while training, 0..1.
        seconds: since training began.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def to_stderr(line: str) -> None:
    """Write a progress line to standard error."""
    print(line, file=sys.stderr, flush=True)


def fit(
    model: nn.Module,
    train_batches: Batches,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    schedule: str = "cosine",
    teacher: nn.Module | None = None,
    teacher_share: float | tuple[float, float] = 0.5,
    temperature: float = 2.0,
    on_step: Callable[[int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: Callable[[str], None] | None = to_stderr,
    label: str = "training",
    seed: int | None = None,
) -> list[Epoch]:
    """Train a classifier by cross-entropy, in place, and leave it in evaluation mode.

    :class:`Training` does the same and can be stopped and continued.

    Args:
        model: images ``[N, C, H, W]`` to logits ``[N, classes]``.
        train_batches: see :data:`Batches`.
        epochs, lr, optimizer, weight_decay, momentum, schedule: see
            :class:`~bitbranch.training.optimization.Settings`.
        teacher, teacher_share, temperature: see :class:`~bitbranch.training.objectives.Classification`.
        on_step: called with the number of steps done.
        on_epoch: called after each epoch.
        progress: takes one line per epoch, with the estimated time left; ``None`` is silent.
        label: what the progress lines call this training.
        seed: seeds torch's global generator first (dropout, random initial steps).

    Returns:
        One :class:`Epoch` per epoch.

    Raises:
        InputError: unknown optimizer or schedule, no batches, or a teacher's share or temperature out of range.
        BitbranchError: the loss is no longer finite.
    """
    if seed is not None:
        torch.manual_seed(seed)
    settings = Settings(
        epochs=epochs, lr=lr, optimizer=optimizer, weight_decay=weight_decay, momentum=momentum, schedule=schedule
    )
    objective = Classification(teacher=teacher, share=teacher_share, temperature=temperature, label=label)
    training = Training(model, train_batches, settings, objective, label=label)
    return training.run(on_step=on_step, on_epoch=on_epoch, progress=progress)


class Training:
    """A training on its way: everything that its next step depends on, and the loop.

    With several processes (see :mod:`bitbranch.processes`) each has its part of every batch; the gradients are
    averaged, and BatchNorms and quantizers take the statistics of the whole batch.

    Args:
        model: trained in place.
        batches: see :data:`Batches`; of this process.
        settings: how.
        objective: what is minimised.
        label: what progress lines and errors call it.

    Attributes:
        step: steps done.
        history: the epochs done.

    Raises:
        InputError: there are no batches.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, settings: Settings, objective: Objective, *, label: str = "training"
    ) -> None:
        self.model, self.batches, self.settings, self.objective, self.label = model, batches, settings, objective, label
        self.steps_per_epoch = len(batches)  # type: ignore[arg-type]
        if self.steps_per_epoch == 0:
            raise InputError(f"{label}: there are no batches to train on")
        self.steps = settings.epochs * self.steps_per_epoch
        self.trained = nn.ModuleList([model, objective])
        self.optimizer = settings.update_rule(self.trained)
        self.device = next(model.parameters()).device
        self.step = 0
        self.history: list[Epoch] = []
        self.sums = [0.0, 0.0, 0.0]  # of the epoch on its way: loss, right answers, images
        self.first_epoch = batches.epoch if isinstance(batches, BatchSource) else 0
        self.seconds = 0.0

    def run(
        self,
        *,
        on_step: Callable[[int], None] | None = None,
        on_epoch: Callable[[Epoch], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> list[Epoch]:
        """Take all steps that are left, and leave the network in evaluation mode; arguments as for :func:`fit`."""
        rate = self.settings.rate(self.steps_per_epoch)
        begin = time.perf_counter() - self.seconds
        self.model.train()
        with _channels_last(self.model), synchronized(self.model):
            while len(self.history) < self.settings.epochs:
                for images, labels in self._rest_of_epoch():
                    images, labels = (t.to(self.device, non_blocking=True) for t in (images, labels))
                    self._update(images, labels, rate(self.step))
                    self.seconds = time.perf_counter() - begin
                    if on_step is not None:
                        on_step(self.step)
                epoch = self._close_epoch()
                if progress is not None:
                    progress(f"{self.label}: {self._line(epoch)}")
                if on_epoch is not None:
                    on_epoch(epoch)
                    self.model.train()
        self.model.eval()
        return self.history

    def _rest_of_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        done = self.step - len(self.history) * self.steps_per_epoch
        if isinstance(self.batches, BatchSource):
            self.batches.seek(self.first_epoch + len(self.history), done)
            return iter(self.batches)
        return islice(self.batches, done, None)

    def _update(self, images: Tensor, labels: Tensor, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate
        dtype = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss, right = self.objective(self.model, images, labels, self.step / max(1, self.steps - 1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        found = torch.stack([loss.detach().double(), right.double()])
        value, share = self._shared(found).tolist()
        if not math.isfinite(value):
            raise self._diverged(f"the loss is {value}", self.step + 1)
        self.optimizer.step()
        project(self.model, moved=True)
        self.step += 1
        for i, summand in enumerate((value, share, 1)):
            self.sums[i] += summand * len(images) * processes.count()

    def check_finite(self) -> None:
        """Whether the parameters are numbers, which a finite loss says of those before its step alone.

        Raises:
            BitbranchError: they are not.
        """
        if not all(bool(torch.isfinite(p).all()) for p in self.trained.parameters()):
            raise self._diverged("parameters are no longer finite", self.step)

    def _diverged(self, what: str, step: int) -> BitbranchError:
        at = f"epoch {len(self.history) + 1}, step {step}"
        return BitbranchError(f"{self.label}: {what} at {at}; lower the learning rate")

    def _shared(self, found: Tensor) -> Tensor:
        """Average the gradients over the processes, in place, and ``found`` with them."""
        if processes.count() > 1:
            grads = [p.grad for p in self.trained.parameters() if p.grad is not None]
            flat = processes.mean(torch.cat([g.flatten().float() for g in grads]))
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
        return processes.mean(found)

    def _close_epoch(self) -> Epoch:
        self.check_finite()
        loss, right, seen = self.sums
        epoch = Epoch(len(self.history) + 1, loss / seen, right / seen, self.seconds)
        self.history.append(epoch)
        self.sums = [0.0, 0.0, 0.0]
        return epoch

    def _line(self, epoch: Epoch) -> str:
        left = epoch.seconds / epoch.number * (self.settings.epochs - epoch.number)
        judged = f"  train accuracy {100 * epoch.accuracy:.1f} %" if self.objective.judges else ""
        return (
            f"epoch {epoch.number}/{self.settings.epochs}  loss {epoch.loss:.3f}{judged}  {epoch.seconds:.0f} s, "
            f"{left:.0f} s left"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, for :meth:`load_state_dict`: of plain types and tensors."""
        return {
            "step": self.step,
            "history": [epoch.as_dict() for epoch in self.history],
            "sums": list(self.sums),
            "first_epoch": self.first_epoch,
            "seconds": self.seconds,
            "network": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; settings, batches and network are built as they were then."""
        self.step, self.sums, self.first_epoch = state["step"], list(state["sums"]), state["first_epoch"]
        self.seconds = state["seconds"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.model.load_state_dict(state["network"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Lay convolutions out pixel by pixel: they and what lies behind them train 1.2 to 1.5 times faster so."""
    weights = [p for p in model.parameters() if p.dim() == 4 and p.is_contiguous()]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)


@torch.no_grad()
def project(model: nn.Module, *, moved: bool = False) -> None:
    """Let every weight quantizer bring its latent weights back into its range, in place.

    Args:
        model: the network.
        moved: leave those layers as they are that have no gradient.
    """
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer) and layer.weight_quantizer is not None:
            if moved and all(p.grad is None for p in layer.parameters()):
                continue
            weight = layer.outputs_first(layer.weight)
            layer.weight_quantizer.project(weight)
            if weight is not layer.weight:  # a transposed convolution hands out a rearranged copy
                layer.weight.copy_(layer.native_order(weight))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, and afterwards the mode that was; gives the device of the parameters."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield next((p.device for p in network.parameters()), torch.device("cpu"))
    finally:
        network.train(was_training)


class Answers(nn.Module):
    """A function of arrays, such as an engine, as a network, so that both are scored by the same code."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, images: Tensor) -> Any:
        return _tensors(self.run(images.numpy()))


def _tensors(said: Any) -> Any:
    return [_tensors(part) for part in said] if isinstance(said, (tuple, list)) else torch.from_numpy(said)


def predict(model: nn.Module, images: npt.NDArray[np.float32] | Tensor, *, batch_size: int = 256) -> Tensor:
    """Logits ``[N, classes]`` of normalised float32 images ``[N, C, H, W]``, in evaluation mode."""
    with evaluating(model):
        return torch.cat([model(part) for part in torch.as_tensor(images).split(batch_size)])


def evaluate(
    model: nn.Module,
    images: npt.NDArray[np.float32] | Tensor,
    labels: npt.NDArray[np.int64] | Tensor,
    *,
    batch_size: int = 256,
) -> float:
    """Share of images, 0..1, whose largest logit is their label's; arguments as for :func:`predict`."""
    right = predict(model, images, batch_size=batch_size).argmax(1) == torch.as_tensor(labels)
    return float(right.float().mean())


def score(model: nn.Module, batches: Batches) -> dict[str, float]:
    """Evaluate a classifier on batches, of which each process has its part; the result is that of all.

    Returns:
        ``accuracy``, the share of the images whose largest logit is their label's, 0..1; ``top5``, the share of those
        whose label's logit is among the five largest; ``loss``, the mean cross-entropy.

    Raises:
        InputError: there are no images.
    """
    with evaluating(model) as device:
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for images, labels in batches:
            if len(labels):
                labels = labels.to(device)
                logits = model(images.to(device)).float()
                ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                sums += torch.stack([loss, ranked[:, 0].sum(), ranked.sum(), torch.tensor(len(labels), device=device)])
    loss, first, five, seen = processes.total(sums).tolist()
    if not seen:
        raise InputError("there are no images to evaluate on")
    return {"accuracy": first / seen, "top5": five / seen, "loss": loss / seen}
