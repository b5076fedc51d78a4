"""Whole runs: a configuration and a folder in, a trained network and its results out; interrupted runs go on."""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import models, processes
from ..data.batches import BatchSource
from ..disk import write_bytes
from ..errors import BitbranchError, InputError
from ..quantizers.base import ActivationQuantizer
from ..runtime import tuning
from ..swap import calibrate, quantize
from . import checkpoint, tasks
from .config import Config, Network, Phase, load, parse
from .hints import Hints
from .journal import Journal
from .loop import Epoch, Training, to_stderr
from .objectives import Objective
from .randomness import random_state, seed_all, set_random_state
from .report import ON_ITS_WAY
from .run_folder import FLOAT, LAST, RESULTS, claim, write_configuration
from .stages import fix_weights
from .start import prepare_teacher, read_teacher, starting_network
from .threads import use_fastest_threads

if TYPE_CHECKING:
    from ..twostep.codes import Sparsity

FORMAT = "bitbranch run 2"

SOLVED = "solved"
"""The folder of layers that step 2 has solved, while it is on its way."""

Say = Callable[[str], None]


def run(
    config: Config | Mapping[str, Any] | Path | str,
    folder: Path | str,
    *,
    progress: Say | None = to_stderr,
) -> dict[str, Any]:
    """Train as a configuration says, or go on where an interrupted run of it stopped.

    The folder then holds ``config.json`` (all values, resolved), ``net.pt`` (the trained network, for ``bitbranch
    compile``), ``best.pt`` (that of the last phase with the best accuracy on the test images), ``float.pt`` (what float
    phases ended with, where others follow), ``last.pt`` (all that a run needs to go on), ``log.csv``, ``log.jsonl``,
    ``report.html`` and ``results.json``. A run that was killed and goes on ends with the same parameters, bit for bit,
    as one that was not, on the same machine.

    Args:
        config: a :class:`Config`, a table as TOML gives it, or the path of a TOML or JSON file.
        folder: of the run, made where missing. One that holds a finished run of the same configuration gives its
            results at once; one of an interrupted run goes on, and phases that have not begun may be changed.
        progress: takes a line now and then; None is silent.

    Returns:
        What ``results.json`` holds: ``figure``, the name of what the network is judged by; on the test images
        ``accuracy``, ``top5`` and ``loss``, ``map`` and ``map_2007``, or ``miou`` and others; ``best_`` and the figure,
        ``scheme``, ``seconds`` of training, ``net`` and the other files' paths, of each phase its ``name``, ``kind``,
        ``seconds``, and the figures at its end, and ``left_out``, what was wrong with pictures and annotations.

    Raises:
        InputError: a wrong configuration, missing data, or a folder that holds another run or files of others.
        BitbranchError: the loss is no longer finite, the memory does not suffice, or a file cannot be written; the last
            checkpoint is intact.
    """
    if isinstance(config, (str, Path)):
        config = load(Path(config))
    elif not isinstance(config, Config):
        config = parse(config)
    with processes.joined() as device:
        return _Run(config, Path(folder), device, progress if processes.rank() == 0 else None).execute()


class _OnDevice:
    """Batches, brought to a device."""

    def __init__(self, batches: BatchSource, device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images.to(self.device), labels.to(self.device)) for images, labels in self.batches)


class _Run:
    """A run on its way. Only process 0 writes."""

    def __init__(self, config: Config, folder: Path, device: torch.device, progress: Say | None) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.say: Say = progress or (lambda _: None)
        self.writes = processes.rank() == 0
        if config.data.batch % processes.count():
            raise InputError(f"data.batch {config.data.batch} does not divide among {processes.count()} processes")
        self.best = -1.0
        self.seconds = 0.0  # of the phases before
        self.sparsity: Sparsity | None = None  # of the phase of step 1
        self.zeros: dict[str, float] = {}  # its last epoch's
        self.counts: dict[str, Any] = {}
        self.quantized: nn.Module | None = None  # the network before step 1 took its weight quantizers

    def execute(self) -> dict[str, Any]:
        done = self.folder / RESULTS
        state = None if done.is_file() else self._saved()
        begun = 0 if state is None else state["phase"] + (state["training"] is not None)
        claim(self.folder, self.config, begun)
        processes.barrier()  # no other has read what is written from here on
        if self.writes:
            write_configuration(self.folder, self.config)
        if done.is_file():
            return {**_results(done), **self._files()}
        self.task = tasks.read(self.config.data)
        self.say(f"{self.task.train.source}; {self.task.test.source}")
        self.journal = Journal(self.config, self.folder, self.task.figure)
        self._start()
        self._say_unused()
        self.teacher = read_teacher(self.config.teacher, self.device)
        self._choose_threads(state)
        first = 0
        if state is not None:
            first = self._continue(state)
        with self._reported():
            for number in range(first, len(self.config.phase)):
                self._phase(number, state["training"] if state and number == first else None)
                self._save(number + 1, None)
                self._forget_solved()
            return self._finish()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """What ends the run early is in its report, as are the rows so far."""
        try:
            yield
        except BaseException as error:
            said = " ".join(str(error).split()) or type(error).__name__
            if self.writes:
                with suppress(BitbranchError, OSError):
                    self.journal.show(f"stopped: {said}", now=True)
            if isinstance(error, RuntimeError) and is_memory(error):
                advice = "take a smaller data.batch"
                raise BitbranchError(f"{self.folder}: out of memory ({said[:200]}); {advice}") from None
            raise

    # What the configuration holds

    def _calibration(self, phase: int) -> _OnDevice:
        """Training images to solve and to calibrate with."""
        return _OnDevice(self.task.calibration(self.config.phase[phase].images, self._seed(phase)), self.device)

    def _seed(self, phase: int) -> int:
        return self.config.seed + 1000 * phase

    def _start(self) -> None:
        """The network before the first phase, the same in all processes."""
        self.recipe, network = starting_network(self.config, self.task)
        if self.config.network.scheme:
            network = self._quantize(network, self.config.network.scheme)
        self.network = network.to(self.device)
        processes.share(self.network)

    def _say_unused(self) -> None:
        """What the configuration says of quantization, where nothing is quantized."""
        network, usual = self.config.network, Network(model="")
        if self.recipe.scheme is None and not any(phase.scheme for phase in self.config.phase):
            for name in ("first", "last", "layers"):
                if getattr(network, name) != getattr(usual, name):
                    self.say(f"network.{name}: not used, for there is no scheme: the network stays float")

    def _quantize(self, network: nn.Module, scheme: str) -> nn.Module:
        fresh = self.recipe.scheme is None
        first, last, layers = self.recipe.first, self.recipe.last, self.recipe.layers
        if not fresh:  # these have their quantizers, and keep them
            first, last, layers = None, None, dict.fromkeys(layers)
        if self.recipe.codes:  # step 1 ends here: its weights get quantizers again, and its BatchNorms learn again
            for norm in (m for m in network.modules() if isinstance(m, _BatchNorm)):
                norm.requires_grad_(True)
        self.quantized = None
        self.recipe = replace(self.recipe, scheme=scheme, codes=False, affine=False, all_bounded=False)
        return quantize(network, scheme, first=first, last=last, layers=layers).to(self.device)

    def _choose_threads(self, state: Mapping[str, Any] | None) -> None:
        """As configured, as before an interruption (sums in another order round otherwise), or the fastest now."""
        if self.device.type != "cpu":
            return
        if threads := self.config.threads or (state["threads"] if state else 0):
            torch.set_num_threads(threads)
        elif processes.count() == 1:
            images, _ = next(iter(self.task.batches(self._seed(0))))
            torch.manual_seed(self.config.seed)
            use_fastest_threads(self.network, images, tuning.cores())

    # Phases

    def _begin(self, phase: Phase, *, quiet: bool = False) -> None:
        """Make the network what a phase trains or solves."""
        from ..twostep.codes import Sparsity, codes_network

        if phase.scheme:
            self.network = self._quantize(self.network, phase.scheme)
        if phase.fix:
            fix_weights(self.network, phase.fix)
        if phase.kind == "transforms" and self.quantized is None and self.recipe.codes:
            self.quantized = replace(self.recipe, codes=False).build().to(self.device)
        if phase.kind == "codes":
            self.quantized = self.network
            self.network = codes_network(self.network, None if quiet else self.say, affine=phase.affine)
            self.recipe = replace(self.recipe, codes=True, affine=phase.affine)
            self.sparsity = Sparsity(self.network)

    def _phase(self, number: int, training_state: Mapping[str, Any] | None) -> None:
        phase = self.config.phase[number]
        start = time.perf_counter()
        if training_state is None:
            self.best = -1.0  # of this phase, if it is the last
            if number and phase.scheme and self.recipe.scheme is None:
                self._write_network(FLOAT)
            seed_all(self._seed(number))
            self._begin(phase)
        if phase.kind in ("transforms", "hash"):
            self._solve(number)
            seconds = time.perf_counter() - start
        else:
            seconds = self._train(number, training_state)
        self.seconds += seconds
        if phase.kind not in ("train", "codes") or not phase.epochs:
            if any(isinstance(m, ActivationQuantizer) and not m.ready for m in self.network.modules()):
                calibrate(self.network, (images for images, _ in self._calibration(number)))
            self._test(phase, phase.epochs if phase.kind == "hints" else 0, 0.0)
        self.journal.phases.append(
            {"name": phase.name, "kind": phase.kind, "scheme": self.recipe.scheme, "seconds": round(seconds, 2)}
            | self.latest
            | ({"zeros": self.zeros} if phase.kind == "codes" else {})
        )
        self.sparsity = None

    def _test(self, phase: Phase, epoch: int, seconds: float) -> None:
        """Evaluate on the test images, and say so."""
        self.latest = self.task.score(self.network)
        if not math.isfinite(self.latest.get("loss", 0.0)):
            raise BitbranchError(f"{phase.name}: the loss on the test images is {self.latest['loss']}")
        self.journal.tested(phase.name, epoch, self.seconds + seconds, self.latest)
        self.say(f"{phase.name}: test {self.task.figure} {100 * self.latest[self.task.figure]:.2f} %")

    def _train(self, number: int, state: Mapping[str, Any] | None) -> float:
        phase = self.config.phase[number]
        training = Training(
            self.network, self.task.batches(self._seed(number)), phase, self._objective(number).to(self.device),
            label=phase.name,
        )  # fmt: skip
        if state is not None:
            with self._fitting():
                training.load_state_dict(state)
        last = number == len(self.config.phase) - 1
        if self.sparsity is not None and self.counts and self.writes:  # it holds those of all processes
            self.sparsity.zeros, self.sparsity.seen = dict(self.counts["zeros"]), dict(self.counts["seen"])
        self.counts = {}

        def on_step(step: int) -> None:
            if step % self.config.log_every == 0 or step % training.steps_per_epoch == 0:
                self.journal.trained(phase.name, training, self.seconds)
                self._show(phase)
            if step % self.config.save_every == 0 and step < training.steps:
                self._save(number, training)

        def on_epoch(epoch: Epoch) -> None:
            self.journal.close_epoch()
            if self.sparsity is not None:
                self.zeros = self.sparsity.take()
                self.say(f"{phase.name}: {self.sparsity.text(self.zeros)}")
            due = epoch.number % self.config.evaluate_every == 0 or epoch.number == phase.epochs
            if due and phase.kind != "hints":
                self._test(phase, epoch.number, epoch.seconds)
                if last and self.latest[self.task.figure] > self.best:
                    self.best = self.latest[self.task.figure]
                    self._write_network("best.pt")
            if self.sparsity is not None:
                self.sparsity.take()  # of the test images
            self._show(phase, now=epoch.number == phase.epochs)

        with self.sparsity or nullcontext():
            training.run(on_step=on_step, on_epoch=on_epoch, progress=self.say)
        return training.seconds

    def _objective(self, number: int) -> Objective:
        phase = self.config.phase[number]
        if phase.kind == "hints":
            assert self.teacher is not None
            images, _ = next(iter(self.task.batches(self._seed(number))))
            return Hints(self.network, self.teacher, images, guided=phase.guided, hint=phase.hint, label=phase.name)
        teacher = self.teacher
        if teacher is not None:
            teacher = prepare_teacher(teacher, self.config.teacher, self.recipe, self.device)
        return self.task.objective(self.network, phase, teacher, self.config.teacher)

    def _solve(self, number: int) -> None:
        """Step 2 or hashing, in process 0; the others get its result."""
        from .. import twostep

        phase, alone = self.config.phase[number], self.writes
        if phase.kind == "transforms":
            if self.quantized is None:
                raise InputError(
                    f"phase {phase.name!r}: step 2 needs a phase of kind 'codes' before it, or a start from one"
                )
            recipe = phase.solving(self._seed(number))
            if not alone:
                recipe = replace(recipe, method="start", reestimate=False)
            self.network = twostep.learn_transforms(
                self.quantized, self.network, self._calibration(number), **vars(recipe),
                state=self.folder / SOLVED if alone else None, progress=self.say,
            )  # fmt: skip
            self._solved()
        else:
            calibrate(self.network, (images for images, _ in self._calibration(number)))
            reference = models.build(self.recipe.model, self.recipe.arguments).to(self.device)
            reference.load_state_dict(self.network.state_dict(), strict=False)  # without the quantizers' parameters
            if alone:
                self.network = twostep.hash_weights(
                    self.network, reference.eval(), self._calibration(number), samples=phase.samples,
                    seed=self._seed(number), progress=self.say,
                )  # fmt: skip
        processes.share(self.network)

    def _solved(self) -> None:
        """Step 2 is done: the network is quantized whole."""
        self.quantized = None
        self.recipe = replace(self.recipe, codes=False, affine=False)

    # Going on

    def _save(self, number: int, training: Training | None) -> None:
        """Write all that the run needs to go on in this phase, at this step of its training or at its beginning."""
        if training is not None:
            training.check_finite()  # else the last checkpoint would be of no use
        counts = {} if self.sparsity is None else self.sparsity.counts()
        if not self.writes:
            return
        quantized = None if self.quantized is None else self.quantized.state_dict()
        state = {
            "phase": number, "training": None if training is None else training.state_dict(),
            "network": None if training is not None else self.network.state_dict(), "quantized": quantized,
            "journal": self.journal.state_dict(), "best": self.best, "seconds": self.seconds, "random": random_state(),
            "threads": torch.get_num_threads() if self.device.type == "cpu" else 0, "counts": counts,
            "code": self._code(), "images": self._images(),
        }  # fmt: skip
        checkpoint.write(self.folder / LAST, {"format": FORMAT, **state})

    def _code(self) -> str:
        """SHA-256 of the file with networks of one's own, or an empty text."""
        file = self.config.network.file
        return sha256(Path(file).read_bytes()).hexdigest() if file else ""

    def _images(self) -> list[int]:
        """How many there are to train and to test with."""
        return [len(self.task.train), len(self.task.test)]

    def _saved(self) -> dict[str, Any] | None:
        path = self.folder / LAST
        return checkpoint.read(path, format=FORMAT) if path.is_file() else None

    def _continue(self, state: Mapping[str, Any]) -> int:
        """Rebuild the network as it was in that phase; its number."""
        from ..twostep import learn_transforms

        number: int = state["phase"]
        if state.get("code", "") != self._code():
            self.say(f"{self.config.network.file}: is not as it was when the run began")
        if (then := state.get("images", self._images())) != self._images():
            now, before = (f"{train:,} training and {test:,} test images" for train, test in (self._images(), then))
            raise InputError(
                f"{self.folder}: began with {before}, and now there are {now}: it would not go on where it stopped; "
                "bring the data back, or train into another folder"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what quantize() warns of, it has said before
            for phase in self.config.phase[: number + (state["training"] is not None)]:
                self._begin(phase, quiet=True)
                if phase.kind == "transforms":
                    assert self.quantized is not None
                    self.network = learn_transforms(
                        self.quantized, self.network, [], method="start", reestimate=False, progress=None
                    )
                    self._solved()
        with self._fitting():
            if state["network"] is not None:
                self.network.load_state_dict(state["network"])
            if self.quantized is not None:
                self.quantized.load_state_dict(state["quantized"])
        self.counts = state["counts"]
        set_random_state(state["random"])
        self.journal.load_state_dict(state["journal"])
        self.best, self.seconds = state["best"], state["seconds"]
        if number < len(self.config.phase):
            self.say(f"{self.folder}: going on with {self.config.phase[number].name}")
        return number

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, TypeError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{self.folder / LAST}: does not fit the configuration ({text})") from None

    # What is written

    def _shown(self) -> dict[str, nn.Module]:
        """The network at the end and the float one that it comes from, where there is one, by titles."""
        networks = {self.recipe.scheme or "float": self.network}
        start = str(self.folder / FLOAT) if (self.folder / FLOAT).is_file() else self.config.network.start
        if self.recipe.scheme is not None and start:
            content = checkpoint.read_tensors(Path(start))
            if content.get("format") == checkpoint.FORMAT and content["recipe"]["scheme"] is None:
                networks = {"float": checkpoint.load(start)[1].to(self.device), **networks}
        return networks

    def _show(self, phase: Phase, *, now: bool = False) -> None:
        if self.writes:
            self.journal.show(f"{ON_ITS_WAY}: {phase.name}", now=now)

    def _write_network(self, name: str) -> None:
        if self.writes:
            checkpoint.save(self.folder / name, self.recipe, self.network)

    def _files(self) -> dict[str, str]:
        return {"folder": str(self.folder), "net": str(self.folder / "net.pt"), "best": str(self.folder / "best.pt")}

    def _forget_solved(self) -> None:
        """The layers that an interrupted step 2 would go on from; what it gave has been saved."""
        if self.writes:
            shutil.rmtree(self.folder / SOLVED, ignore_errors=True)

    def _finish(self) -> dict[str, Any]:
        self.network.eval()
        self._forget_solved()
        last, figure = self.journal.phases[-1], self.task.figure
        if self.best < last[figure]:
            self.best = last[figure]
            self._write_network("best.pt")
        self._write_network("net.pt")
        results = {
            "name": self.config.name,
            "scheme": self.recipe.scheme,
            "figure": figure,
            **{name: last[name] for name in self.task.figures},
            f"best_{figure}": self.best,
            "seconds": round(self.seconds, 2),
            "phases": self.journal.phases,
            "left_out": list(self.task.left_out),
        }
        if self.writes:
            gallery = self.task.gallery(self._shown()) if self.task.shows else ""
            self.journal.show("finished", now=True, gallery=gallery)
            write_bytes(self.folder / RESULTS, json.dumps(results, indent=2).encode())
        processes.barrier()
        return {**results, **self._files()}


def _results(path: Path) -> dict[str, Any]:
    """Of a run that is finished."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: damaged ({text}); remove it, and the run goes on from its last checkpoint") from None


def is_memory(error: RuntimeError) -> bool:
    """Whether torch says that there is no memory left; it has no error of its own for a processor's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
