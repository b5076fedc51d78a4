"""The networks that a run takes over: what it starts from, built anew or of a checkpoint, and its teachers."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import models
from ..errors import InputError
from ..swap import check_layers
from . import checkpoint
from .checkpoint import Recipe
from .config import Config, Network, Teacher
from .randomness import seed_all
from .tasks import Task
from .teachers import Ensemble, check, prepared

QUANTIZED = ("arguments", "scheme", "first", "last", "layers", "codes", "affine", "all_bounded")
"""What a run takes over from the recipe of a quantized network that it starts from."""


def starting_network(config: Config, task: Task) -> tuple[Recipe, nn.Module]:
    """The network before the first phase and before the configured scheme, and the recipe that goes with it.

    Raises:
        InputError: a file does not fit the configuration, or the network not its task.
    """
    wanted, train = config.network, task.train
    arguments = dict(wanted.arguments)
    if wanted.file:
        models.register_file(wanted.file)
    if wanted.model in models.MODELS:
        known = inspect.signature(models.MODELS[wanted.model]).parameters
        arguments = {name: value for name, value in task.arguments().items() if name in known} | arguments
    recipe = Recipe(
        wanted.model, arguments, train.shape,
        first=_scheme(wanted.first),
        last=_scheme(wanted.last),
        layers={name: _scheme(scheme) for name, scheme in wanted.layers.items()},
        mean=train.mean, std=train.std,
        info={"name": config.name or wanted.model},
    )  # fmt: skip
    seed_all(config.seed)
    if wanted.start:
        recipe, network = _started(wanted, recipe, Path(wanted.start))
    else:
        network = models.build(wanted.model, arguments)
    check_layers(network, recipe.layers)
    task.check(network)
    if wanted.trunk:
        _load_trunk(network, recipe.model, Path(wanted.trunk))
    return replace(recipe, info={**recipe.info, **task.info(network)}), network


def _started(wanted: Network, recipe: Recipe, path: Path) -> tuple[Recipe, nn.Module]:
    """The network of a checkpoint, or the configured one with the parameters of a file."""
    content = checkpoint.read_tensors(path)
    if content.get("format") == checkpoint.FORMAT:
        there, network = checkpoint.load(path)
        if there.model == recipe.model:
            arguments = checkpoint.plain(wanted.arguments)
            assert isinstance(arguments, dict)
            for name, value in arguments.items():
                if (other := there.arguments.get(name, value)) != value:
                    raise InputError(f"network.start: {path} holds a {there.model} of {name} {other}, not {value}")
            if there.scheme is not None:
                _check_kept(wanted, path, there)
            taken = {"arguments"} if there.scheme is None else QUANTIZED
            return replace(recipe, **{name: getattr(there, name) for name in taken}), network
        if there.scheme is not None:
            raise InputError(f"network.start: {path} holds a quantized {there.model}, not a {recipe.model}")
        content = network.state_dict()
    network = models.build(recipe.model, recipe.arguments)
    try:
        network.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"network.start: {path} does not fit {recipe.model} ({text})") from None
    return recipe, network


def _check_kept(wanted: Network, path: Path, recipe: Recipe) -> None:
    """Whether the configuration asks for other exceptions than those of the quantized network it starts from."""
    usual = Network(model="")
    for name in ("first", "last"):
        asked, there = getattr(wanted, name), getattr(recipe, name)
        if asked != getattr(usual, name) and _scheme(asked) != there:
            raise InputError(f"network.{name}: {path} is quantized, and its {name} layer keeps {there or 'none'}")
    layers = {name: _scheme(scheme) for name, scheme in wanted.layers.items()}
    if layers and layers != dict(recipe.layers):
        raise InputError(f"network.layers: {path} is quantized, and keeps its own: {dict(recipe.layers)}")


def _load_trunk(network: nn.Module, model: str, path: Path) -> None:
    trunk = getattr(network, "trunk", None)
    if trunk is None:
        raise InputError(f"network.trunk: {model} has no trunk")
    content = checkpoint.read_tensors(path)
    if content.get("format") == checkpoint.FORMAT:
        content = checkpoint.load(path)[1].state_dict()
    wanted = trunk.state_dict()
    for name, own in wanted.items():
        if not isinstance(given := content.get(name), Tensor) or given.shape != own.shape:
            there = f"it is {list(given.shape)}" if isinstance(given, Tensor) else "it is not there"
            raise InputError(f"network.trunk: {path}: expected {name!r} of shape {list(own.shape)}, {there}")
    trunk.load_state_dict({name: content[name] for name in wanted})


def read_teacher(config: Teacher, device: torch.device) -> nn.Module | None:
    """The teacher's network, or the mean of several, on a device; None where there is none."""
    networks = [checkpoint.load(path)[1] for path in config.checkpoint]
    if not networks:
        return None
    teacher = networks[0] if len(networks) == 1 else Ensemble(networks)
    return teacher.to(device).requires_grad_(False)


def prepare_teacher(teacher: nn.Module, config: Teacher, recipe: Recipe, device: torch.device) -> nn.Module:
    """A teacher, on its device, that answers fast and as the student will, as it is asked in every step.

    Raises:
        InputError: its outputs are not of the student's shapes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = models.build(recipe.model, recipe.arguments).to(device).eval()
        images = torch.randn(2, *recipe.input_shape).to(device)
    try:
        check(teacher.eval(), student, images)
    except InputError as error:
        raise InputError(f"teacher.checkpoint: {', '.join(config.checkpoint)}: {error}") from None
    return prepared(teacher, images)


def _scheme(spelling: str) -> str | None:
    return None if spelling == "none" else spelling
