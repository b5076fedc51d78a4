"""The training loop, networks by name, and checkpoints."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bitbranch import models, quantize
from bitbranch.errors import BitbranchError, InputError
from bitbranch.layers import QuantizedLayer
from bitbranch.quantizers.lsq import LearnedStepActivation
from bitbranch.quantizers.mbn import BipolarActivation
from bitbranch.quantizers.registry import METHODS, mbn, parse_scheme
from bitbranch.quantizers.tsq import SparseActivation
from bitbranch.quantizers.uniform import UniformActivation
from bitbranch.swap import calibrate
from bitbranch.training import checkpoint
from bitbranch.training.checkpoint import Recipe
from bitbranch.training.loop import Training, evaluate, fit, predict
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import Settings

torch.set_num_threads(1)  # small problems; the machine may be shared

TINY = {"stages": [[4], [6]], "hidden": 8, "num_classes": 3, "in_channels": 1, "image_size": 8}


def blobs(count: int = 120, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose brighter third says their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.normal(0, 0.3, (count, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 1.5
    return torch.from_numpy(images), torch.from_numpy(labels)


IMAGES, LABELS = blobs()
BATCHES = list(zip(IMAGES.split(20), LABELS.split(20), strict=True))


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("vgg", TINY)


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("sgd", 5e-2)])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_fit_learns(optimizer: str, lr: float, schedule: str) -> None:
    model = tiny()
    history = fit(model, BATCHES, epochs=6, lr=lr, optimizer=optimizer, schedule=schedule, progress=None)
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].loss < 0.5 * history[0].loss
    assert not model.training
    assert evaluate(model, *blobs(seed=1)) > 0.9


@pytest.mark.parametrize("scheme", ["mbn:w1-a1", "mbn:w2-a2", "tsq:wt-a2", "lsq:w3-a3"])
def test_fit_trains_quantized_networks(scheme: str) -> None:
    model = quantize(tiny(), scheme)
    fit(model, BATCHES, epochs=10, lr=1e-2, progress=None, seed=0)
    assert evaluate(model, IMAGES, LABELS) > 0.8


LOWEST = {"mbn": "w2-a2", "tsq": "wt-a2", "hwgq": "w1-a2", "dorefa": "w2-a2", "uniform": "w4-a4", "lsq": "w2-a2",
          "inq": "w4-a4", "xnor": "w1-a1", "binarynet": "w1-a1"}  # fmt: skip


QUICK = ("tsq", "mbn", "lsq", "ttq")


@pytest.mark.parametrize("method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.long) for m in METHODS])
@pytest.mark.filterwarnings("ignore:quantize", "ignore:DoReFaActivation")
def test_every_method_trains_in_bfloat16_as_in_float32(method: str) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        weights = "wt" if "t" in METHODS[method].weights else "w1"
        q = quantize(tiny(), f"{method}:{LOWEST.get(method, f'{weights}-a4')}")
        torch.manual_seed(0)
        settings = Settings(epochs=8, lr=1e-2, precision=precision)
        losses.append([e.loss for e in Training(q, BATCHES, settings, Classification()).run()])
        assert all(p.dtype == torch.float32 for p in q.parameters())
    assert losses[1] != losses[0]
    assert losses[1][-1] < 0.7 * losses[1][0]
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=0.2)


@pytest.mark.parametrize("scheme", ["tsq:wt-a2", "mbn:w4-a4", "lsq:w2-a2", "uniform:w4-a4", "hwgq:w1-a2"])
def test_levels_of_half_precision_change_no_bit(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In mixed precision quantizers may stay in it: forward and backward are what float32 and rounding give."""
    found = []
    for stays in (True, False):
        if not stays:
            for quantizer in (SparseActivation, UniformActivation, LearnedStepActivation):
                monkeypatch.setattr(quantizer, "mixes", False)
        torch.manual_seed(0)
        q = quantize(tiny(), scheme)
        for module in q.modules():
            if isinstance(module, BipolarActivation):
                module.mixes = stays
        Training(q, BATCHES, Settings(epochs=1, lr=1e-2, precision="bfloat16"), Classification()).run()
        found.append(q.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_same_seed_gives_the_same_network() -> None:
    first, second = (tiny() for _ in range(2))
    for model in (first, second):
        fit(model, BATCHES, epochs=2, lr=1e-2, progress=None, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_cosine_schedule_ends_near_zero() -> None:
    """The last step hardly moves the weights."""
    model, before = tiny(), {}

    def remember(step: int) -> None:
        if step == 5 * len(BATCHES) - 1:
            before.update({name: p.detach().clone() for name, p in model.named_parameters()})

    fit(model, BATCHES, epochs=5, lr=1e-2, on_step=remember, progress=None)
    moved = max(float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters())
    assert 0 < moved < 1e-3


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"schedule": "step", "milestones": (2, 3.5), "decay": 0.1}, [1] * 8 + [0.1] * 6 + [0.01] * 6),
        ({"schedule": "linear"}, [1 - i / 20 for i in range(20)]),
        ({"schedule": "cosine", "warmup": 0}, [(1 + math.cos(math.pi * i / 20)) / 2 for i in range(20)]),
        ({"schedule": "constant", "warmup": 1}, [0.25, 0.5, 0.75] + [1] * 17),
    ],
)
def test_schedules_have_their_numbers(schedule: dict[str, object], expected: list[float]) -> None:
    """Of five epochs of four steps."""
    rate = Settings(epochs=5, lr=1.0, **schedule).rate(4)  # type: ignore[arg-type]
    assert [rate(step) for step in range(20)] == pytest.approx(expected)


def test_a_training_continues_from_its_state() -> None:
    """Whatever the moment: within an epoch, at its last step, between epochs."""
    settings = Settings(epochs=3, lr=1e-2)
    whole = Training(tiny(), BATCHES, settings, Classification())
    states: dict[int, dict[str, object]] = {}

    def remember(step: int) -> None:
        states[step] = copy.deepcopy(whole.state_dict())

    history = whole.run(on_step=remember)
    for step in (1, 6, 7, 12, 18):
        part = Training(tiny(5), BATCHES, settings, Classification())
        part.load_state_dict(states[step])
        part.run()
        assert [(e.number, e.loss, e.accuracy) for e in part.history] == [
            (e.number, e.loss, e.accuracy) for e in history
        ]
        pairs = zip(part.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_only_weights_decay() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.constant_(model[1].bias, 1.0)
    weight = model[1].weight.detach().clone()
    nothing = [(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))]
    fit(model, nothing, epochs=1, lr=1e-9, weight_decay=1e8, schedule="constant", progress=None)
    assert torch.allclose(model[1].weight, 0.9 * weight)
    assert torch.allclose(model[1].bias, torch.ones(3))


def test_distillation_alone_makes_the_student_answer_like_the_teacher() -> None:
    teacher, student = tiny(1), tiny(2)
    fit(teacher, BATCHES, epochs=6, lr=1e-2, progress=None)
    scrambled = [(x, torch.zeros_like(y)) for x, y in BATCHES]
    fit(student, scrambled, epochs=15, lr=1e-2, teacher=teacher, teacher_share=1.0, progress=None)
    same = predict(student, IMAGES).argmax(1) == predict(teacher, IMAGES).argmax(1)
    assert float(same.float().mean()) > 0.9


def test_latent_weights_are_projected_after_every_step() -> None:
    model = quantize(tiny(), parse_scheme("mbn:w2-a2", mbn(fixed_range=True)))
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer) and m.scheme == "mbn:w2-a2"]
    assert layers
    fit(model, BATCHES, epochs=1, lr=1.0, progress=None)
    assert all(float(layer.weight.detach().abs().max()) == 1.0 for layer in layers)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    bad = [(IMAGES[:20] * math.nan, LABELS[:20])]
    with pytest.raises(BitbranchError, match="float: the loss is nan at epoch 1, step 1; lower the learning rate"):
        fit(tiny(), bad, epochs=1, lr=1e-2, progress=None, label="float")


@pytest.mark.parametrize("bad", [{"optimizer": "adagrad"}, {"schedule": "sawtooth"}])
def test_unknown_words_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"expected 'adam' or 'sgd'|expected 'cosine', 'step', 'linear' or 'constant'"):
        fit(tiny(), BATCHES, epochs=1, lr=1e-2, progress=None, **bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no batches"):
        fit(tiny(), [], epochs=1, lr=1e-2, progress=None)


def test_progress_says_how_long_it_will_take() -> None:
    lines: list[str] = []
    fit(tiny(), BATCHES, epochs=2, lr=1e-2, progress=lines.append, label="float")
    assert len(lines) == 2
    assert lines[0].startswith("float: epoch 1/2  loss ")
    assert lines[1].endswith("0 s left")


def test_predict_restores_the_mode() -> None:
    model = tiny().train()
    predict(model, IMAGES, batch_size=7)
    assert model.training


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("resnet99", {}, "model 'resnet99': expected one of"),
        ("vgg", {"hidden": 4}, "missing a required argument"),
        ("vgg", {**TINY, "colour": 3}, "unexpected keyword argument 'colour'"),
        ("vgg", {**TINY, "stages": [[4]] * 4}, "leave nothing of an image of 8 pixels"),
    ],
)
def test_unknown_networks_and_arguments_are_refused(name: str, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        models.build(name, arguments)


@pytest.mark.parametrize("scheme", [None, "mbn:w2-a2", "tsq:wt-a2", "lsq:w2-a2"])
def test_checkpoints_round_trip(tmp_path: Path, scheme: str | None) -> None:
    recipe = Recipe("vgg", TINY, (1, 8, 8), scheme, mean=(0.5,), std=(0.25,), info={"name": "tiny"})
    network = recipe.build()
    fit(network, BATCHES, epochs=1, lr=1e-2, progress=None)
    checkpoint.save(tmp_path / "net.pt", recipe, network)
    loaded, again = checkpoint.load(tmp_path / "net.pt")
    assert loaded == recipe
    assert torch.equal(predict(again, IMAGES), predict(network, IMAGES))
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"

    def refused(text: str) -> None:
        with pytest.raises(InputError, match=text) as caught:
            checkpoint.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    refused("cannot be read")
    recipe = Recipe("vgg", TINY, (1, 8, 8))
    checkpoint.save(path, recipe, recipe.build())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("damaged")
    path.write_bytes(b"something else")
    refused("damaged")
    torch.save({"weights": torch.zeros(3)}, path)
    refused("not a bitbranch checkpoint")
    torch.save({"format": "bitbranch checkpoint 0"}, path)
    refused("written by another version of bitbranch: 'bitbranch checkpoint 0', not")
    state = recipe.build().state_dict()
    for change, text in [({"scheme": "mbn:w9-a2"}, "unknown scheme"), ({"model": "lenet"}, "model 'lenet'")]:
        content = {"format": checkpoint.FORMAT, "recipe": {**_stored(recipe), **change}, "state": state}
        torch.save(content, path)
        refused(text)
    state.pop("conv1.weight")
    torch.save({"format": checkpoint.FORMAT, "recipe": _stored(recipe), "state": state}, path)
    refused("do not fit")


def test_checkpoints_of_networks_bounded_everywhere_stay_what_they_were(tmp_path: Path) -> None:
    def bounded(network: nn.Module) -> list[bool]:
        return [type(m) is nn.Hardtanh for m in network.modules() if isinstance(m, (nn.ReLU, nn.Hardtanh))]

    path = tmp_path / "net.pt"
    for scheme, now, old in [("mbn:w2-a2", [True, True, False], [True] * 3), ("tsq:wt-a2", [False] * 3, [False] * 3)]:
        recipe = Recipe("vgg", TINY, (1, 8, 8), scheme)
        network = recipe.build()
        calibrate(network, [IMAGES])
        checkpoint.save(path, recipe, network)
        again, loaded = checkpoint.load(path)
        assert again == recipe and bounded(loaded) == bounded(network) == now
        stored = {key: value for key, value in _stored(recipe).items() if key != "all_bounded"}
        torch.save({"format": checkpoint.FORMAT, "recipe": stored, "state": network.state_dict()}, path)
        again, loaded = checkpoint.load(path)
        assert again.all_bounded and bounded(loaded) == old


def _stored(recipe: Recipe) -> dict[str, object]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(recipe).items()}


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("never-made"),))  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "recipe": _Hostile()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Hostile()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(InputError, match="not a checkpoint: it holds more than tensors"):
            checkpoint.load(tmp_path / name)
    assert not (tmp_path / "never-made").exists()
