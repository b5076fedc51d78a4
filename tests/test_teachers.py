"""Teachers: several networks as one, and what is folded into them without changing what they say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitbranch as bb
from bitbranch import models
from bitbranch.errors import InputError
from bitbranch.training import checkpoint, runner
from bitbranch.training.objectives import Classification
from bitbranch.training.teachers import Ensemble, prepared

torch.set_num_threads(1)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FOLDED = {
    "vgg": ({"stages": [[4], [8, 8]], "hidden": 6, "image_size": 16}, (3, 16, 16)),
    "resnet_cifar": ({"depth": 8, "width": 0.5}, (3, 16, 16)),
    "mobilenet_v2": ({"width": 0.25, "num_classes": 5}, (3, 32, 32)),
    "ssd": ({"trunk": "vgg_small", "num_classes": 3, "image_size": 64, "width": 0.25}, (3, 64, 64)),
    "unet": ({"num_classes": 4}, (3, 32, 32)),
}


def settled(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """With BatchNorms that have seen something and learned something."""
    for module in network.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(torch.randn(8, *shape))
    return network


def flat(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [t for part in outputs for t in flat(part)]


@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_a_prepared_teacher_says_what_it_said(name: str) -> None:
    arguments, shape = FOLDED[name]
    torch.manual_seed(1)
    network = settled(models.build(name, arguments), shape)
    before, images = copy.deepcopy(network.state_dict()), torch.randn(4, *shape)
    quick = prepared(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) and not quick.training
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    for said, expected in zip(flat(quick(images)), flat(network.eval()(images)), strict=True):
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Twice(nn.Module):
    """Calls one convolution twice, with a BatchNorm behind it each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


class Branching(nn.Module):
    """Looks at its input's values, so that torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_folded_is_left_alone() -> None:
    branching = Branching()
    assert prepared(branching) is branching and not branching.training
    for network, shape in (
        (Twice(), (2, 3, 3)),
        (bb.quantize(models.build("vgg", {"stages": [[2], [4], [6]], "image_size": 8}), "lsq:w2-a2"), (3, 8, 8)),
    ):
        settled(network, shape).eval()
        images = torch.randn(4, *shape)
        torch.testing.assert_close(prepared(network)(images), network(images))


@torch.no_grad()
def test_an_ensemble_answers_with_the_mean() -> None:
    a, b = (settled(models.build("vgg", {"stages": [[2], [4]], "image_size": 8}), (3, 8, 8)).eval() for _ in range(2))
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(Ensemble([a, b])(images), (a(images) + b(images)) / 2)
    torch.testing.assert_close(prepared(Ensemble([a, b]))(images), (a(images) + b(images)) / 2)

    class Heads(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return self.factor * x, [x, x - self.factor]

    first, (second, third) = Ensemble([Heads(1), Heads(3), Heads(5)])(torch.ones(2))
    assert first.tolist() == [3, 3] and second.tolist() == [1, 1] and third.tolist() == [-2, -2]
    with pytest.raises(InputError, match="no networks"):
        Ensemble([])
    wider = models.build("vgg", {"stages": [[2], [4]], "image_size": 8, "num_classes": 7}).eval()
    with pytest.raises(InputError, match=r"their outputs differ in shape: \(5, 10\), \(5, 7\)"):
        Ensemble([a, wider])(images)


def test_the_objective_follows_the_mean() -> None:
    """At a share of 1 the loss is the divergence from the mean of the teachers, and only the student gets gradients."""

    class Constant(nn.Module):
        def __init__(self, value: Tensor) -> None:
            super().__init__()
            self.value = nn.Parameter(value)

        def forward(self, x: Tensor) -> Tensor:
            return self.value.expand(len(x), -1)

    torch.manual_seed(2)
    teachers, student = [Constant(torch.randn(4)) for _ in range(2)], Constant(torch.randn(4))
    objective = Classification(teacher=Ensemble(teachers), share=1.0, temperature=3.0)
    loss, _ = objective(student, torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), 0.0)
    target = ((teachers[0].value + teachers[1].value) / 6).softmax(0)
    expected = 9 * (target * (target.log() - (student.value / 3).log_softmax(0))).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.value.grad is not None and all(teacher.value.grad is None for teacher in teachers)


def test_a_run_learns_from_several_checkpoints(tmp_path: Path) -> None:
    common = {
        "network": {"model": "vgg", "arguments": {"stages": [[4], [8]], "hidden": 8}}, "threads": 1,
        "data": {"set": "fashion-mnist-sample", "batch": 50, "train_images": 300, "test_images": 100},
        "train": {"epochs": 1, "lr": 4e-3},
    }  # fmt: skip
    nets = [runner.run({**common, "seed": seed}, tmp_path / str(seed), progress=None)["net"] for seed in (1, 2)]
    student = {**common, "seed": 3, "teacher": {"checkpoint": nets, "share": 1.0}}
    alone = {**common, "seed": 3, "teacher": {"checkpoint": nets[0], "share": 1.0}}
    states = []
    for name, content in (("both", student), ("one", alone)):
        net = runner.run(content, tmp_path / name, progress=None)["net"]
        states.append(checkpoint.load(net)[1].state_dict())
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items())
    hints = {"kind": "hints", "scheme": "lsq:w2-a2", "guided": "act1", "hint": "act1"}
    with pytest.raises(InputError, match=r"hints need guided, hint and teacher\.checkpoint, one file"):
        runner.run({**student, "phase": [hints]}, tmp_path / "hints", progress=None)
