"""What interrupted trainings go on with, what is kept and measured meanwhile, and single steps, images and tables."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bitbranch import models, quantize
from bitbranch.data import fashion_mnist, folders
from bitbranch.data.folders import PictureBatches
from bitbranch.errors import InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.registry import binaryconnect, parse_scheme
from bitbranch.reporting import plots
from bitbranch.table import command
from bitbranch.training import checkpoint, config, runner, tasks
from bitbranch.training.loop import Training, fit
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import Settings

torch.set_num_threads(1)

BASE: dict[str, Any] = {
    "network": {"model": "vgg", "arguments": {"stages": [[6], [8]], "hidden": 12}},
    "data": {"set": "fashion-mnist-sample", "batch": 50, "train_images": 200, "test_images": 40},
    "threads": 1,
    "save_every": 5,
    "train": {"lr": 4e-3},
}
"""Four steps in an epoch."""
LOAD = functools.cache(fashion_mnist.load)


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them would take most of the time, and reading the images the rest."""
    monkeypatch.setattr(plots, "run_curves", lambda *_: "")
    monkeypatch.setattr(fashion_mnist, "load", LOAD)


class Noise(nn.Module):
    """Scales by numbers drawn from all global generators, while training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(()) + np.random.random() + random.random()) if self.training else x  # noqa: NPY002


def noisy(*, num_classes: int) -> nn.Module:
    return nn.Sequential(
        *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(49, 12), nn.ReLU(), nn.Dropout(0.3), Noise()),
        nn.Linear(12, num_classes),
    )


def sow(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


class Interrupted(BaseException):
    pass


def interrupted(content: dict[str, Any], folder: Path, line: str) -> None:
    """Run until it says this."""

    def stop(said: str) -> None:
        if said.startswith(line):
            raise Interrupted

    with pytest.raises(Interrupted):
        runner.run(content, folder, progress=stop)


def state_of(file: Path) -> dict[str, Tensor]:
    return torch.load(file)["state"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- random numbers, threads


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_training_goes_on_with_its_random_numbers(stochastic: bool) -> None:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.normal(size=(40, 1, 28, 28)).astype(np.float32))
    batches = list(zip(images.split(10), torch.arange(40).remainder(4).split(10), strict=True))

    def begun(seed: int) -> Training:
        sow(seed)
        model = noisy(num_classes=4)
        if stochastic:
            model = quantize(model, parse_scheme("binaryconnect:w1-a8", binaryconnect(stochastic=True)), first=None)
        return Training(model, batches, Settings(epochs=3, lr=1e-2), Classification())

    whole, states = begun(1), dict[int, dict[str, Any]]()
    whole.run(on_step=lambda step: states.update({step: copy.deepcopy(whole.state_dict())}))
    for step in (2, 4, 7):  # within epochs, and at the end of one
        part = begun(2)
        part.load_state_dict(states[step])
        part.run()
        check_same(whole.model.state_dict(), part.model.state_dict())
        assert [e.loss for e in part.history] == [e.loss for e in whole.history]


def test_a_run_goes_on_with_its_random_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of NumPy and Python, too, within the first phase, between both, and within the second."""
    monkeypatch.setattr(models, "MODELS", models.MODELS | {"noisy": noisy})
    phases = [{"name": "one", "epochs": 2}, {"name": "two", "epochs": 2}]
    run = BASE | {"network": {"model": "noisy"}, "phase": phases, "log_every": 2}
    sow(6)  # a run seeds all generators itself
    found = runner.run(run, tmp_path / "whole", progress=None)
    for line, phase in (("one: epoch 2/2", 0), ("two: epoch 1/2", 1), ("two: epoch 2/2", 1)):
        folder = tmp_path / line[:12].replace(":", "")
        sow(7)
        interrupted(run, folder, line)
        last = checkpoint.read(folder / "last.pt", format=runner.FORMAT)
        assert (last["phase"], last["training"] is None) == (phase, line == "two: epoch 1/2")
        sow(8)
        again = runner.run(run, folder, progress=None)
        check_same(state_of(Path(found["net"])), state_of(Path(again["net"])))
        assert log_of(folder) == log_of(tmp_path / "whole")


def test_a_run_goes_on_with_its_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]
) -> None:
    """Though another number is the fastest by then."""
    monkeypatch.setattr(models, "MODELS", models.MODELS | {"noisy": noisy})  # so small that one thread does it all
    run = {**BASE, "network": {"model": "noisy"}, "threads": 0, "phase": [{"epochs": 2}]}
    for fastest in (2, 3):
        folder = tmp_path / str(fastest)
        monkeypatch.setattr(runner, "use_fastest_threads", lambda *_, fastest=fastest: threads(fastest))
        interrupted(run, folder, "train 1: epoch 2/2")
        monkeypatch.setattr(runner, "use_fastest_threads", lambda *_: threads(1))
        threads(1)
        seen = dict[str, int]()
        runner.run(run, folder, progress=lambda line, seen=seen: seen.update({line: torch.get_num_threads()}))
        assert [count for line, count in seen.items() if "epoch" in line] == [fastest]


# ---- what is kept and measured


def test_the_best_network_of_the_last_phase_is_kept(tmp_path: Path) -> None:
    """One that gets worse and worse: its rate is too large, and becomes a hundred times as large."""
    worse = {"name": "worse", "epochs": 3, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0.02}
    worse |= {"schedule": "step", "milestones": [1], "decay": 100.0}
    run = {**BASE, "data": {**BASE["data"], "batch": 10, "test_images": 200}, "save_every": 50}
    run["phase"] = [{"name": "good", "epochs": 6, "lr": 1e-2}, worse]
    found = runner.run(run, tmp_path / "whole", progress=None)
    scores = [row["test_accuracy"] for row in log_of(tmp_path / "whole") if "test_accuracy" in row]
    first, *later = scores[6:]
    assert len(later) == 2 and first > max(later) and max(scores[:6]) > first
    interrupted(run, tmp_path / "resumed", "worse: epoch 3/3")
    again = runner.run(run, tmp_path / "resumed", progress=None)
    test = tasks.read(config.parse(run).data)
    for result in (found, again):
        assert (result["best_accuracy"], result["accuracy"]) == (first, later[-1])
        assert test.score(checkpoint.load(result["best"])[1])["accuracy"] == first
    check_same(state_of(Path(found["best"])), state_of(Path(again["best"])))


def test_the_best_network_is_of_the_phase_that_is_the_last_now(tmp_path: Path) -> None:
    """Phases may be added while a run is interrupted; what came before them is no longer judged."""
    run = BASE | {"phase": [{"epochs": 4, "lr": 1e-2}]}
    interrupted(run, tmp_path, "train 1: epoch 3/4")
    run["phase"] = [*run["phase"], {"scheme": "lsq:w2-a2", "epochs": 1, "lr": 1e-6}]
    found = runner.run(run, tmp_path, progress=None)
    assert found["best_accuracy"] == found["accuracy"]
    assert checkpoint.load(found["best"])[0].scheme == checkpoint.load(found["net"])[0].scheme == "lsq:w2-a2"


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = BASE | {"phase": [{"epochs": 3}]}
    interrupted(run, tmp_path, "train 1: epoch 2/3")
    whole = fashion_mnist.load

    def smaller(split: str, *rest: Any) -> Any:
        return whole(split, *rest).spread(150)

    monkeypatch.setattr(fashion_mnist, "load", smaller)
    with pytest.raises(InputError, match="began with 200 training and 40 test images, and now there are 150 training"):
        runner.run(run, tmp_path, progress=None)
    monkeypatch.setattr(fashion_mnist, "load", whole)
    assert len(runner.run(run, tmp_path, progress=None)["phases"]) == 1


def test_test_images_are_asked_as_often_as_configured(tmp_path: Path) -> None:
    run = BASE | {"phase": [{"epochs": 5}, {"epochs": 2}, {"epochs": 1}], "evaluate_every": 2}
    runner.run({**run, "data": {**BASE["data"], "train_images": 50}}, tmp_path, progress=None)
    tested = [(row["phase"], row["epoch"]) for row in log_of(tmp_path) if "test_accuracy" in row]
    assert tested == [("train 1", 2), ("train 1", 4), ("train 1", 5), ("train 2", 2), ("train 3", 1)]


def test_zero_codes_are_counted_in_training_images_alone(tmp_path: Path) -> None:
    data = {**BASE["data"], "flip": False, "shift": 0}
    phase = {"kind": "codes", "scheme": "tsq:wt-a2", "epochs": 2}
    run = BASE | {"data": data, "phase": [phase]}
    shares = []
    for change in ({}, {"data": {**data, "test_images": 600}}, {"evaluate_every": 2}):
        shares.append(runner.run(run | change, tmp_path / str(len(shares)), progress=None)["phases"][0]["zeros"])
    interrupted(run, tmp_path / "resumed", "codes 1: epoch 2/2")
    shares.append(runner.run(run, tmp_path / "resumed", progress=None)["phases"][0]["zeros"])
    assert all(share == shares[0] for share in shares)

    # Without a step the network stays what it is, and answers the images as it did.
    still = run | {"phase": [{**phase, "lr": 0.0}], "data": {**data, "test_images": 600}}
    told = runner.run(still, tmp_path / "still", progress=None)
    network = checkpoint.load(told["net"])[1].train()
    layers = {name: m for name, m in network.named_modules() if isinstance(m, QuantizedLayer)}
    zeros = {name: list[float]() for name in told["phases"][0]["zeros"]}
    assert set(zeros) == {"conv2", "linear1"}

    def count(name: str) -> Callable[..., None]:
        return lambda _, __, codes: zeros[name].append(float((codes == 0).double().mean()))

    for name in zeros:
        layers[name].input_quantizer.register_forward_hook(count(name))
    for images, _ in tasks.read(config.parse(still).data).batches(0):
        network(images)
    assert told["phases"][0]["zeros"] == {name: pytest.approx(np.mean(zeros[name]), abs=0.01) for name in zeros}


# ---- one step, and the images of one


@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
def test_two_steps_of_sgd_by_hand(momentum: float) -> None:
    """Nesterov's: of weights ``+-w``, whose gradient is ``-+g``, at a rate of 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    one = [(torch.ones(1, 1, 1, 1), torch.tensor([0]))]
    seen = list[list[float]]()

    def remember(_: int) -> None:
        seen.append(model[1].weight.detach().flatten().tolist())

    fit(
        model, one, epochs=2, lr=1.0, optimizer="sgd", momentum=momentum, schedule="constant", on_step=remember,
        progress=None,
    )  # fmt: skip
    g = 0.5  # one less the softmax of equal logits
    velocity = g
    w = g + momentum * velocity
    expected = [[w, -w]]
    g = 1 - 1 / (1 + math.exp(-2 * w))
    velocity = momentum * velocity + g
    w += g + momentum * velocity
    expected.append([w, -w])
    assert seen == [pytest.approx(pair, abs=1e-6) for pair in expected]
    if momentum == 0.9:
        assert w == pytest.approx(1.602206, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "mirrored", "shift"),
    [({}, True, 1), ({"flip": False}, False, 1), ({"shift": 0}, True, 0), ({"flip": False, "shift": 2}, False, 2)],
)
def test_images_are_augmented_as_is_usual_for_the_set_or_as_configured(
    change: dict[str, Any], mirrored: bool, shift: int
) -> None:
    """Those of the sample are mirrored and moved by a pixel; those to calibrate and to test with are left alone."""
    task = tasks.read(config.parse({**BASE, "data": {**BASE["data"], **change}}).data)
    origin = dict[bytes, tuple[int, bool, int, int]]()
    for index, image in enumerate(task.train.images):
        for flip in (False, True):
            around = np.pad(image[:, :, ::-1] if flip else image, ((0, 0), (2, 2), (2, 2)))
            for dy in range(5):
                for dx in range(5):
                    found = (index, flip, dy - 2, dx - 2)
                    origin.setdefault(around[:, dy : dy + 28, dx : dx + 28].tobytes(), found)

    def drawn(source: Any) -> list[tuple[int, bool, int, int]]:
        source.pixels = True
        return [origin[image.numpy().tobytes()] for images, _ in source for image in images]

    trained = drawn(task.batches(0))
    assert sorted(index for index, *_ in trained) == list(range(200))
    assert 70 < sum(flip for _, flip, *_ in trained) < 130 if mirrored else not any(flip for _, flip, *_ in trained)
    moves = range(-shift, shift + 1)
    assert {(dy, dx) for *_, dy, dx in trained} == {(dy, dx) for dy in moves for dx in moves}
    assert {found[1:] for found in drawn(task.calibration(100, 0))} == {(False, 0, 0)}


def test_pictures_are_cropped_anew_in_every_epoch(tmp_path: Path) -> None:
    y, x = np.mgrid[0:40, 0:50]
    for name in "abcd":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.stack([5 * x, 6 * y, 3 * x], 2).astype(np.uint8)).save(tmp_path / "train" / name / "0.png")
    pictures = folders.load("train", tmp_path, size=16)

    def epochs(seed: int, first: int, flip: bool = True) -> list[list[Tensor]]:
        """Of two epochs the views of each picture."""
        batches = PictureBatches(pictures, size=2, seed=seed, flip=flip)
        batches.seek(first, 0)
        passes = [[pair for images, labels in batches for pair in zip(images, labels, strict=True)] for _ in range(2)]
        return [[image for image, _ in sorted(seen, key=lambda pair: int(pair[1]))] for seen in passes]

    begin, same, later, other = epochs(3, 0), epochs(3, 0), epochs(3, 1), epochs(4, 0)
    for picture in range(4):
        assert torch.equal(begin[0][picture], same[0][picture]) and torch.equal(begin[1][picture], later[0][picture])
        views = [begin[0][picture], begin[1][picture], later[1][picture], other[0][picture]]
        assert all(not torch.equal(views[i], views[k]) for i in range(4) for k in range(i))
    plain = [view for seen in epochs(3, 0, flip=False) for view in seen]
    assert len({view.numpy().tobytes() for view in plain}) == 8  # other crops, not only mirrored ones


# ---- tables

TABLE = """
name = "By hand"
seeds = [1, 2, 3]

[common]
network = {model = "vgg"}
data = {set = "fashion-mnist-sample"}

[[row]]
name = "float"

[[row]]
name = "low"
seeds = [2, 3, 4]
network = {scheme = "lsq:w2-a2"}

[[row]]
name = "lower"
seeds = [3, 5]
minus = "low"
network = {scheme = "lsq:w2-a1"}

[[row]]
name = "alone"
seeds = [9]
network = {scheme = "bwn:w1"}
"""
FIGURES = {
    "float": {1: 0.5, 2: 0.6, 3: 0.8},
    "low": {2: 0.55, 3: 0.65, 4: 0.95},
    "lower": {3: 0.6, 5: 0.1},
    "alone": {9: 0.4},
}


def test_differences_are_those_of_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    (tmp_path / "hand.toml").write_text(TABLE)
    for name, figures in FIGURES.items():
        for seed, figure in figures.items():
            folder = tmp_path / "out" / "runs" / f"{name}-{seed}"
            folder.mkdir(parents=True)
            result = {"figure": "accuracy", "accuracy": figure, "torch": figure, "scheme": "", "seconds": 60.0}
            result |= {"source": "nothing", "parameters": 10, "seed": seed, "phases": [], "not compiled": "float"}
            (folder / "row.json").write_text(json.dumps(result))
    options = command.Options(tmp_path / "hand.toml", tmp_path / "out", measure=False)
    document: Any = command.run(options, lambda _: None)
    first, low, lower, alone = document["rows"]
    assert "difference" not in first and "difference" not in alone
    assert low["compared"] == [2, 3]  # differences of -5 and -15 points
    assert low["difference"] == pytest.approx(-0.1) and low["difference spread"] == pytest.approx(0.1 / math.sqrt(2))
    assert low["mean"] == pytest.approx(2.15 / 3)
    assert lower["compared"] == [3] and lower["difference"] == pytest.approx(-0.05)
    assert "difference spread" not in lower
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in lines if "|" in line}
    assert cells["low"][4:6] == ["float", "-10.00 ± 7.07"] and cells["lower"][4:6] == ["low", "-5.00"]
    assert cells["float"][4:6] == cells["alone"][4:6] == ["", ""]
