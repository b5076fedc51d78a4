"""What ``bitbranch bench NET`` measures: programs, and the float network that the peers run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..runtime.container import bit_budget, read
from .convert import STATISTICS, settle
from .files import Files

if TYPE_CHECKING:
    from ..training.checkpoint import Recipe

CALIBRATION = 16
"""Random calibration images where none are given."""
IMAGE_SIZES = {"resnet_cifar": 32, "vgg_small": 32, "ssd": 300}
"""Usual image sizes of networks by name; 224 of the others."""


@dataclass(frozen=True)
class Data:
    """Labelled images.

    Attributes:
        images: ``[N, C, H, W]`` float32, normalised.
        labels: ``[N]``.
        calibration: images for quantization, not those that accuracy is measured on; or ``None``.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.float32] | None

    @staticmethod
    def load(path: Path) -> Data:
        """Read a ``.npz`` file with ``images`` and ``labels``, and perhaps ``calibration``.

        Raises:
            InputError: missing or malformed; names the file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            images, labels = arrays["images"], arrays["labels"]
            calibration = arrays.get("calibration")
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path}: expected a .npz file with images and labels ({error})") from None
        for name, a in (("images", images), ("calibration", calibration)):
            if a is not None and (a.dtype != np.float32 or a.ndim != 4 or not len(a)):
                raise InputError(f"{path}: {name} must be float32 [N, C, H, W], got {a.dtype} {a.shape}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(f"{path}: labels must be {len(images)} integers, got {labels.dtype} {labels.shape}")
        return Data(images, labels.astype(np.int64), calibration)


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: for titles.
        shape: (C, H, W) of an image.
        programs: name to ``.bb`` file.
        files: of the float network; ``None`` where there is none.
        weights: where the weights come from, in words.
    """

    name: str
    shape: tuple[int, int, int]
    programs: Mapping[str, Path]
    files: Files | None
    weights: str

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        programs = {}
        for name, file in self.programs.items():
            program = read(file)
            programs[name] = {
                "bytes": file.stat().st_size, "bit_budget": bit_budget(program), "macs": program.macs
            }  # fmt: skip
        return {"name": self.name, "shape": list(self.shape), "weights": self.weights, "programs": programs}


def from_files(
    nets: Sequence[Path], float_checkpoint: Path | None, data: Data | None, work: Path, say: Callable[[str], None]
) -> Network:
    """Compiled networks as they are; the peers run the network of ``float_checkpoint``, if there is one.

    A quantized network's checkpoint stands for the float network with its real weights.

    Raises:
        InputError: files of different image shapes.
        FormatError: a malformed file.
    """
    programs = {}
    for file in nets:
        program = read(file)
        programs[program.info.get("scheme") or program.info.get("name") or file.stem] = program.input.shape
    shapes = set(programs.values())
    if len(shapes) != 1 or len(programs) != len(nets):
        raise InputError("bench: networks to compare need the same image shape, and names of their own")
    shape = shapes.pop()
    files = None
    if float_checkpoint is not None:
        recipe, state = _float(float_checkpoint)
        if recipe.input_shape != shape:
            raise InputError(f"{float_checkpoint}: its images are {recipe.input_shape}, those of {nets[0]} {shape}")
        files = _files(work, recipe, state, data, say)
    weights = f"of {float_checkpoint.name}" if float_checkpoint is not None else "as in the file"
    return Network(nets[0].stem, shape, dict(zip(programs, nets, strict=True)), files, weights)


def by_name(
    model: str,
    arguments: Mapping[str, Any],
    schemes: Sequence[str],
    size: tuple[int, int] | None,
    work: Path,
    say: Callable[[str], None],
) -> Network:
    """A network of :mod:`bitbranch.models` with random weights: for times, not for accuracy.

    Raises:
        InputError: unknown name, arguments or scheme.
    """
    import torch

    from .. import models
    from ..quantizers.registry import parse_scheme
    from ..training.checkpoint import Recipe

    for scheme in schemes:
        parse_scheme(scheme)
    height, width = size or [IMAGE_SIZES.get(model, 224)] * 2
    recipe = Recipe(model, dict(arguments), (int(arguments.get("in_channels", 3)), height, width))
    torch.manual_seed(0)
    network = models.build(model, recipe.arguments)
    settle(network, torch.randn(STATISTICS, *recipe.input_shape))
    files = _files(work, recipe, network.eval().state_dict(), None, say)
    programs = {}
    for scheme in schemes:
        folder = f"program-{scheme.replace(':', '-')}-{code_digest()}"
        needs = {"checkpoint": "float", "images": "images"}
        programs[scheme] = files.make(folder, "net.bb", "program", needs, {"scheme": scheme})
    return Network(model, recipe.input_shape, programs, files, "random")


@cache
def code_digest() -> str:
    """A name for bitbranch's code as it is: of its Python files and the compiled core."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("_core*")]):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def _float(path: Path) -> tuple[Recipe, Mapping[str, Any]]:
    """The float recipe and parameters of a checkpoint, whose quantizers are dropped."""
    from dataclasses import replace

    from ..training.checkpoint import load

    recipe, network = load(path)
    recipe = replace(recipe, scheme=None)
    wanted, have = recipe.build().state_dict(), network.state_dict()
    missing = [name for name in wanted if name not in have]
    if missing:
        raise InputError(f"{path}: the float network's parameter {missing[0]!r} is not there")
    return recipe, {name: have[name] for name in wanted}


def _files(
    work: Path, recipe: Recipe, state: Mapping[str, Any], data: Data | None, say: Callable[[str], None]
) -> Files:
    """The folder of a float network, named after its contents, with its checkpoint and calibration images."""
    from ..training import checkpoint

    if data is not None and data.calibration is not None:
        calibration = data.calibration
    else:
        rng = np.random.default_rng(1)
        calibration = rng.standard_normal((CALIBRATION, *recipe.input_shape), np.float32)
    digest = hashlib.sha256(json.dumps([recipe.model, dict(recipe.arguments), recipe.input_shape]).encode())
    digest.update(calibration.tobytes())
    for name in sorted(state):
        digest.update(name.encode() + state[name].numpy().tobytes())
    folder = work / f"{recipe.model}-{digest.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    network = recipe.build()
    network.load_state_dict(state)
    checkpoint.save(folder / "float.pt", recipe, network.eval())
    np.save(folder / "calibration.npy", calibration)
    return Files(folder, {"float": folder / "float.pt", "images": folder / "calibration.npy"}, say)
