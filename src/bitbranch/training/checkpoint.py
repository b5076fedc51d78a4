"""Checkpoints: a network's recipe and its parameters in one file, loaded without running anyone's code."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..disk import write_bytes
from ..errors import InputError
from ..quantizers.registry import parse_scheme
from ..swap import bound_all, quantize

FORMAT = "bitbranch checkpoint 1"


@dataclass(frozen=True)
class Recipe:
    """How to build a network before its parameters are loaded.

    Args:
        model: name in :data:`bitbranch.models`' registry.
        arguments: of that model.
        scheme: of :func:`bitbranch.quantize`; ``None`` for a float network.
        first, last, layers: schemes of the first and last layer, and of others by name or pattern.
        input_shape: (C, H, W) of one image.
        mean, std: of the normalisation of uint8 images, one number a channel; empty when there is none.
        info: free text that goes into the compiled file.
        codes: whether it is a network of step 1 of two-step quantization: its low-bit weights are float, and its
            BatchNorms are as :func:`bitbranch.twostep.learn_codes` has them.
        affine: whether these keep their affine part.
        all_bounded: whether every ReLU is a Hardtanh where the scheme's codes read signs, not only those that such
            codes read; so it is in files that do not say.
    """

    model: str
    arguments: Mapping[str, object]
    input_shape: tuple[int, int, int]
    scheme: str | None = None
    first: str | None = "w8a8"
    last: str | None = "w8a8"
    layers: Mapping[str, str | None] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    info: Mapping[str, str] = field(default_factory=dict)
    codes: bool = False
    affine: bool = False
    all_bounded: bool = False

    def build(self) -> nn.Module:
        """The network with fresh parameters, quantized as the recipe says."""
        network = models.build(self.model, self.arguments)
        if self.scheme is None:
            return network
        network = quantize(network, self.scheme, first=self.first, last=self.last, layers=self.layers)
        codes = parse_scheme(self.scheme).activation()
        if self.all_bounded and codes is not None and codes.reads_signs:
            network = bound_all(network)
        if not self.codes:
            return network
        from ..twostep.codes import codes_network  # which trains

        return codes_network(network, affine=self.affine)

    @property
    def example(self) -> Tensor:
        """An input of one image, zeros."""
        return torch.zeros(1, *self.input_shape)


def save(path: str | os.PathLike[str], recipe: Recipe, network: nn.Module) -> None:
    """Write a checkpoint, atomically: an interrupted call leaves the old file, or none."""
    write(Path(path), {"format": FORMAT, "recipe": plain(asdict(recipe)), "state": network.state_dict()})


def write(path: Path, content: object) -> None:
    """Write an object of plain types and tensors, atomically.

    Raises:
        BitbranchError: it cannot be written, as on a full disk; names the file, which is as it was.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def read(path: str | os.PathLike[str], *, format: str) -> dict[str, Any]:
    """Read what :func:`write` wrote, without running anyone's code.

    Raises:
        InputError: missing, damaged, of another format, or of another version of it.
    """
    content = read_tensors(path)
    if (there := content.get("format")) != format:
        name = format.rsplit(" ", 1)[0]
        if isinstance(there, str) and there.startswith(f"{name} "):
            raise InputError(f"{path}: written by another version of bitbranch: {there!r}, not {format!r}")
        raise InputError(f"{path}: not a {name}")
    return content


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dictionary of plain types and tensors that torch has saved, without running anyone's code.

    Raises:
        InputError: missing, damaged or something else.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not data.startswith((b"PK", b"\x80")):  # an archive, or a pickle as torch once wrote them
        raise InputError(f"{path}: {'damaged, or not a checkpoint' if data else 'is empty'}")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "weights_only" in str(error):
            raise InputError(f"{path}: not a checkpoint: it holds more than tensors and plain values") from None
        raise InputError(f"{path}: damaged, or not a checkpoint") from None
    except Exception:  # damaged bytes make the unpickler raise nearly anything
        raise InputError(f"{path}: damaged, or not a checkpoint") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a bitbranch checkpoint")
    return content


def load(path: str | os.PathLike[str]) -> tuple[Recipe, nn.Module]:
    """Read a checkpoint: its recipe and the network in evaluation mode.

    Raises:
        InputError: missing, damaged or not a checkpoint; an unknown model or scheme; parameters that do not fit.
    """
    content = read(path, format=FORMAT)
    try:
        stored = {"all_bounded": True, **content["recipe"]}
        tuples = {key: tuple(stored[key]) for key in ("input_shape", "mean", "std")}
        recipe = Recipe(**{**stored, **tuples})
        _check(recipe)
        network = recipe.build()
        network.load_state_dict(content["state"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the parameters do not fit ({' '.join(str(error).split())[:200]})") from None
    return recipe, network.eval()


def _check(recipe: Recipe) -> None:
    """Raise ValueError where what is used outside of the network is of another type than it should be."""
    for name, kinds in (("input_shape", int), ("mean", (int, float)), ("std", (int, float))):
        if not all(isinstance(number, kinds) for number in getattr(recipe, name)):
            raise ValueError(f"{name}: not numbers")
    if len(recipe.input_shape) != 3 or min(recipe.input_shape) < 1:
        raise ValueError(f"input_shape {list(recipe.input_shape)}: not three sizes")
    for name in ("arguments", "layers", "info"):
        if not isinstance(getattr(recipe, name), Mapping):
            raise ValueError(f"{name}: not a table")


def plain(value: object) -> object:
    """The same without tuples or mapping types, which a safe load does not know."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value
