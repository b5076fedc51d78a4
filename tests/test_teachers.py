"""Teachers: several networks as one, and what is folded into them without changing what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bitbranch as bb
from bitbranch import models
from bitbranch.errors import InputError
from bitbranch.training import checkpoint, config, runner
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
    quick = prepared(network, images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) and not quick.training
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    for said, expected in zip(flat(quick(images)), flat(network.eval()(images)), strict=True):
        torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Made(nn.Module):
    """A teacher of some modules, as a function of them and the images."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.made = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.made(self, x)


class LoudNorm(nn.BatchNorm2d):
    """Not what its base does."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x).relu()


class Defaults(nn.Module):
    """Answers otherwise where it gets no second argument, which is no constant to torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        return x / 2 if scale is None else x


def conv(*arguments: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(3, 3, *(arguments or (3,)), padding=1, **options)


def made(forward: Callable[..., Any], **modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Made(forward, **modules)


UNUSUAL: dict[str, Callable[[], nn.Module]] = {
    "one convolution twice": made(
        lambda m, x: m.last(m.conv(m.first(m.conv(x)))), conv=conv(), first=nn.BatchNorm2d(3), last=nn.BatchNorm2d(3)
    ),
    "read by others, too": made(
        lambda m, x: m.norm(y := m.conv(x)) + y, conv=conv(), norm=nn.BatchNorm2d(3)
    ),
    "no statistics": made(
        lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=nn.BatchNorm2d(3, track_running_stats=False)
    ),
    "two BatchNorms": lambda: nn.Sequential(conv(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)),
    "another BatchNorm": lambda: nn.Sequential(conv(), LoudNorm(3)),
    "parameters read elsewhere": made(
        lambda m, x: m.norm(m.conv(x)) + F.conv2d(x, m.conv.weight, padding=1), conv=conv(), norm=nn.BatchNorm2d(3)
    ),
    "a method of its name": made(
        lambda m, x: m.other(m.conv(x).norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)) * m.norm(x).mean(),
        conv=conv(), other=conv(), norm=nn.BatchNorm2d(3),
    ),
    "transposed in groups": lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)),
    "a view": made(
        lambda m, x: m.norm(m.conv(x)).view(x.size(0), -1), conv=conv(), norm=nn.BatchNorm2d(3)
    ),
    "weight norm": lambda: nn.Sequential(nn.utils.weight_norm(conv()), nn.BatchNorm2d(3)),
    "looks at values": made(lambda m, x: m.conv(x) if x.sum() > 0 else m.conv(-x), conv=conv()),
    "a default": Defaults,
    "a mapping": made(lambda m, x: {"out": m.norm(m.conv(x)), "none": None}, conv=conv(), norm=nn.BatchNorm2d(3)),
    "quantized": lambda: bb.quantize(nn.Sequential(*(conv() for _ in range(3)), nn.BatchNorm2d(3)), "lsq:w2-a2"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNUSUAL)
@torch.no_grad()
def test_unusual_teachers_say_what_they_said(name: str) -> None:
    """Whether or not anything in them is folded."""
    torch.manual_seed(3)
    network, images = settled(UNUSUAL[name](), (3, 6, 6)).eval(), torch.randn(5, 3, 6, 6)
    expected, quick = answer(network, images), prepared(network, torch.randn(2, 3, 6, 6))
    torch.testing.assert_close(answer(quick, images), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(answer(network, images), expected)


def answer(network: nn.Module, images: Tensor) -> Tensor:
    """The tensor that a network gives, or has under the name of ``out``."""
    said = network(images)
    out: Tensor = said["out"] if isinstance(said, dict) else said
    return out


def test_a_teacher_that_changes_is_followed() -> None:
    """What is given to an objective is not copied: a mean of the student, say, may be kept in it."""
    teacher, student = (models.build("vgg", {"stages": [[2], [4]], "image_size": 8}) for _ in range(2))
    objective = Classification(teacher=teacher, share=1.0)
    images, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    student.eval()
    before, _ = objective(student, images, labels, 0.0)
    teacher.load_state_dict(student.state_dict())
    after, _ = objective(student, images, labels, 0.0)
    assert float(before.detach()) > 1e-4 and abs(float(after.detach())) < 1e-6


@torch.no_grad()
def test_an_ensemble_answers_with_the_mean() -> None:
    a, b = (settled(models.build("vgg", {"stages": [[2], [4]], "image_size": 8}), (3, 8, 8)).eval() for _ in range(2))
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(Ensemble([a, b])(images), (a(images) + b(images)) / 2)
    torch.testing.assert_close(prepared(Ensemble([a, b]), images)(images), (a(images) + b(images)) / 2)

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
    with pytest.raises(InputError, match=r"their outputs differ: \(5, 10\), \(5, 7\)"):
        Ensemble([a, wider])(images)
    mapped = Ensemble([Made(lambda _, x: {"out": x}), Made(lambda _, x: {"out": 3 * x})])
    assert mapped(torch.ones(2))["out"].tolist() == [2, 2]
    with pytest.raises(InputError, match="an output is NoneType, not a tensor"):
        Ensemble([Made(lambda *_: None)])(images)


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
    assert config.parse({**common, "teacher": {"checkpoint": ""}}).teacher.checkpoint == ()  # as older runs say
    states = []
    for name, content in (("both", student), ("one", alone)):
        net = runner.run(content, tmp_path / name, progress=None)["net"]
        states.append(checkpoint.load(net)[1].state_dict())
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items())
    hints = {"kind": "hints", "scheme": "lsq:w2-a2", "guided": "act1", "hint": "act1"}
    with pytest.raises(InputError, match=r"hints need guided, hint and teacher\.checkpoint, one file"):
        runner.run({**student, "phase": [hints]}, tmp_path / "hints", progress=None)


def test_a_teacher_of_another_task_is_named(tmp_path: Path) -> None:
    files = {}
    for name, arguments in {
        "few": {"num_classes": 7},
        "colour": {"in_channels": 3},
        "small": {"image_size": 12},
    }.items():
        given = {"stages": [[4], [8]], "num_classes": 10, "in_channels": 1, "image_size": 28} | arguments
        shape = (given["in_channels"], given["image_size"], given["image_size"])
        files[name] = tmp_path / f"{name}.pt"
        checkpoint.save(files[name], checkpoint.Recipe("vgg", given, shape), models.build("vgg", given))
    content: dict[str, Any] = {
        "network": {"model": "vgg", "arguments": {"stages": [[4], [8]]}}, "threads": 1,
        "data": {"set": "fashion-mnist-sample", "train_images": 200, "test_images": 100},
    }  # fmt: skip
    for names, said in (
        (["few"], r"few\.pt: its outputs are \[2, 7\] for 2 images, the student's \[2, 10\]"),
        (["colour"], r"colour\.pt: it does not take images \[1, 28, 28\] \(.*3 channels"),
        (["small"], r"small\.pt: it does not take images \[1, 28, 28\]"),
        (["few", "colour"], r"few\.pt, .*colour\.pt: it does not take images"),
    ):
        teacher = {"checkpoint": [str(files[name]) for name in names]}
        with pytest.raises(InputError, match=r"teacher\.checkpoint: .*" + said):
            runner.run({**content, "teacher": teacher}, tmp_path / "-".join(names), progress=None)
