"""The networks of the demo and how each is trained: float, two-step ternary, and two multi-branch binary ones.

Two-step quantization and the multi-branch networks train side by side in processes of their own: both start from the
float network, and two processes on one core each are faster than one process on two cores.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .. import models, twostep
from ..data.batches import Batches
from ..runtime import tuning
from ..swap import quantize
from ..training import checkpoint
from ..training.checkpoint import Recipe
from ..training.loop import Epoch, evaluate, fit, to_stderr
from ..training.teachers import prepared
from ..training.threads import use_fastest_threads
from ..twostep.driver import Method
from .demo_plan import Plan

BATCH = 100
WORKERS = 2
LAST = "w8a4"
"""Of the last layer: an 8-bit input would take 255 thresholds for each hidden channel, more bytes than the weights."""


@dataclass(frozen=True)
class Log:
    """Progress lines on standard error, with the seconds since ``start`` (by ``time.time()``) in front."""

    start: float

    def __call__(self, line: str) -> None:
        to_stderr(f"[{time.time() - self.start:4.0f} s] {line}")


@dataclass
class AblationRow:
    """A step of two-step quantization and the test accuracy after it, 0..1."""

    step: str
    accuracy: float


@dataclass
class Trained:
    """How a network was trained; the network itself is a checkpoint.

    Attributes:
        name: for tables.
        path: of the checkpoint.
        seconds: of its training, without that of the float network that it starts from.
        history: of its last gradient training.
        ablation: of two-step quantization, the steps on the way.
    """

    name: str
    path: Path
    seconds: float
    history: list[Epoch]
    ablation: list[AblationRow] = field(default_factory=list)


def train_all(plan: Plan, folder: Path, *, seed: int, log: Log) -> list[Trained]:
    """Train the four networks of the demo, the low-bit ones from the float one and with its soft targets.

    Test accuracy is logged on the way; nothing is chosen by it.

    Args:
        plan: images, widths and epochs.
        folder: where the checkpoints go.
        seed: of initial weights, order and augmentation.
        log: takes progress lines.

    Returns:
        The float network, then ``tsq wt-a2``, ``mbn w2-a2`` and ``mbn w1-a1``.
    """
    reference = Training(plan, folder, seed, log).float_network()
    with workers() as pool:
        two_step = pool.submit(_two_step, plan, folder, seed, log)
        multi_branch = pool.submit(_multi_branch, plan, folder, seed, log)
        return [reference, two_step.result(), *multi_branch.result()]


def _two_step(plan: Plan, folder: Path, seed: int, log: Log) -> Trained:
    return Training(plan, folder, seed, log, sharers=WORKERS).two_step()


def _multi_branch(plan: Plan, folder: Path, seed: int, log: Log) -> list[Trained]:
    run = Training(plan, folder, seed, log, sharers=WORKERS)
    return [
        run.multi_branch("mbn:w2-a2", epochs=plan.two_bit_epochs),
        run.multi_branch("mbn:w1-a1", epochs=plan.one_bit_epochs),
    ]


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """Processes to train in; they end with the block, at once if it fails or is interrupted."""
    # Spawned, since torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave interrupts to the parent, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Training:
    """The trainings, with what they share.

    Args:
        plan, folder, seed, log: see :func:`train_all`.
        sharers: number of processes that share the cores.
    """

    def __init__(self, plan: Plan, folder: Path, seed: int, log: Log, *, sharers: int = 1) -> None:
        self.plan, self.folder, self.seed, self.log = plan, folder, seed, log
        self.cores = max(1, tuning.cores() // sharers)
        self.train, self.test = plan.data()
        self.test_images = torch.from_numpy(self.test.normalized())
        self.arguments = {
            "stages": [list(stage) for stage in plan.stages],
            "hidden": plan.hidden,
            "num_classes": len(self.train.classes),
            "in_channels": self.train.shape[0],
            "image_size": self.train.shape[1],
            "pool_first": True,
        }

    def batches(self, *, stream: int, shift: int = 1) -> Batches:
        """Augmented training batches; each training has its own stream of random numbers."""
        return Batches(self.train, size=BATCH, flip=True, shift=shift, seed=self.seed * 100 + stream)

    def accuracy(self, network: nn.Module) -> float:
        return evaluate(network, self.test_images, self.test.labels)

    def recipe(self, name: str, scheme: str | None) -> Recipe:
        info = {"name": name, "scheme": scheme or "float", "classes": ",".join(self.train.classes)}
        mean, std = self.train.mean, self.train.std
        return Recipe("vgg", self.arguments, self.train.shape, scheme, last=LAST, mean=mean, std=std, info=info)

    def float_network(self) -> Trained:
        torch.manual_seed(self.seed)
        network = models.build("vgg", self.arguments)
        start = time.perf_counter()
        use_fastest_threads(network, self.test_images[:BATCH], self.cores)
        history = fit(
            network, self.batches(stream=0), epochs=self.plan.float_epochs, lr=4e-3, weight_decay=1e-2,
            progress=self.log, label="float", seed=self.seed,
        )  # fmt: skip
        return self.finished("float", None, network, time.perf_counter() - start, history)

    def reference(self) -> nn.Module:
        """The trained float network."""
        return checkpoint.load(self.folder / "float.pt")[1]

    def multi_branch(self, scheme: str, *, epochs: int) -> Trained:
        name = scheme.replace(":", " ")
        reference = self.reference()
        teacher = prepared(reference, self.test_images[:2])
        start = time.perf_counter()
        network = quantize(reference, scheme, last=LAST)
        use_fastest_threads(network, self.test_images[:BATCH], self.cores)
        # Not shifted: with one or two bits everywhere the network fits its training images badly enough.
        history = fit(
            network, self.batches(stream=1, shift=0), epochs=epochs, lr=8e-3, teacher=teacher,
            progress=self.log, label=name, seed=self.seed,
        )  # fmt: skip
        return self.finished(name, scheme, network, time.perf_counter() - start, history)

    def two_step(self) -> Trained:
        """Both steps and fine-tuning, with step 2 solved in all the ways of the ablation."""
        name, scheme = "tsq wt-a2", "tsq:wt-a2"
        reference = self.reference()
        teacher = prepared(reference, self.test_images[:2])
        start = time.perf_counter()
        network = quantize(reference, scheme, last=LAST)
        use_fastest_threads(network, self.test_images[:BATCH], self.cores)
        codes = twostep.learn_codes(
            network, self.batches(stream=2), epochs=self.plan.codes_epochs, lr=2e-3, teacher=teacher,
            seed=self.seed, progress=self.log,
        )  # fmt: skip
        seconds = time.perf_counter() - start

        ablation: list[AblationRow] = []
        calibration = Batches(self.train.spread(self.plan.solver_images), size=BATCH, seed=self.seed)

        def note(step: str, network: nn.Module) -> nn.Module:
            ablation.append(AblationRow(step, self.accuracy(network)))
            self.log(f"{name}: {step}: test accuracy {100 * ablation[-1].accuracy:.2f} %")
            return network

        def solve(step: str, method: Method, *, reestimate: bool = True) -> nn.Module:
            solved = twostep.learn_transforms(
                network, codes, calibration, method=method, reestimate=reestimate, seed=self.seed, progress=None
            )
            return note(step, solved)

        note("step 1, float weights and 2-bit codes", codes)
        solve("start of step 2, optimal ternary weights", "start", reestimate=False)
        solve("start + BatchNorm re-estimation", "start")
        solve("linear reconstruction", "linear")
        start = time.perf_counter()
        solved = solve("TSQ, codes reconstructed", "tsq")
        history = fit(
            solved, self.batches(stream=3), epochs=self.plan.tuning_epochs, lr=1e-3, teacher=teacher,
            progress=self.log, label=name, seed=self.seed,
        )  # fmt: skip
        note("TSQ + fine-tuning", solved)
        return self.finished(name, scheme, solved, seconds + time.perf_counter() - start, history, ablation)

    def finished(
        self,
        name: str,
        scheme: str | None,
        network: nn.Module,
        seconds: float,
        history: list[Epoch],
        ablation: list[AblationRow] | None = None,
    ) -> Trained:
        """Save the network."""
        self.log(f"{name}: test accuracy {100 * self.accuracy(network):.2f} %, trained in {seconds:.0f} s")
        path = self.folder / f"{name.replace(' ', '-')}.pt"
        checkpoint.save(path, self.recipe(name, scheme), network)
        return Trained(name, path, seconds, history, ablation or [])
