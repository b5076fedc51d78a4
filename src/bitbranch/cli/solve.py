"""The command ``bitbranch solve``: step 2 of two-step quantization on files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import twostep
from ..data.dataset import normalize
from ..errors import InputError
from ..layers import QuantizedLayer
from ..training import checkpoint
from ..twostep.codes import has_low_bit_weight
from .files import Array, Result, check_apart, load_array


@dataclass(frozen=True)
class Images:
    """Float32 images ``[N, C, H, W]`` in batches, in their order, with labels that mean nothing."""

    images: Array
    size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.images), self.size):
            part = torch.from_numpy(np.ascontiguousarray(self.images[start : start + self.size]))
            yield part, torch.zeros(len(part), dtype=torch.int64)


def run(
    net: Path,
    images: Path,
    out: Path,
    *,
    scheme: str | None,
    first: str | None,
    last: str | None,
    layers: Mapping[str, str],
    recipe: twostep.Recipe,
    state: Path | None,
    per_channel: bool,
    batch: int,
    threads: int | None,
    progress: Callable[[str], None],
) -> Result:
    """Solve a checkpoint's low-bit weights and write a checkpoint.

    Args:
        net: a checkpoint. A float network is converted to ``scheme``; one that ends with step 1 has its low-bit weights
            found; so has any other quantized one, whose codes are taken as learned.
        images: a ``.npy`` file ``[N, C, H, W]`` of float32, or of uint8, which is normalised as the checkpoint says.
        out: the checkpoint to write.
        scheme, first, last, layers: of a float network; default ``tsq:wt-a2``, for first and last layer ``w8a8``;
            ``"none"`` leaves a layer float.
        recipe, state, per_channel: see :func:`bitbranch.twostep.convert`.
        batch: images at once.
        threads: of PyTorch and the solver; default: PyTorch's.
        progress: takes lines.

    Raises:
        InputError: files that do not fit each other, or a scheme for a network that has one.
    """
    if state is not None and out.resolve().is_relative_to(state.resolve()):
        raise InputError(f"--out {out}: lies in the folder of --state, {state}; give another file")
    for read in (net, images):
        check_apart(out, read)
    if threads is not None:
        torch.set_num_threads(threads)
    built, network = checkpoint.load(net)
    loader = Images(_read(images, built), batch)
    reports: list[twostep.LayerReport] = []
    if built.scheme is None:
        built = replace(
            built, scheme=scheme or "tsq:wt-a2", first=_scheme(first or "w8a8"), last=_scheme(last or "w8a8"),
            layers={name: _scheme(spelling) for name, spelling in layers.items()},
        )  # fmt: skip
        solved = twostep.convert(
            network,
            loader,
            built.scheme or "",
            first=built.first,
            last=built.last,
            layers=built.layers,
            per_channel=per_channel,
            recipe=recipe,
            state=state,
            progress=progress,
            on_layer=reports.append,
        )
    elif per_channel or layers or any(given is not None for given in (scheme, first, last)):
        raise InputError(
            f"{net}: is quantized as {built.scheme}; --scheme, --first, --last, --layer and --per-channel are for "
            "float networks"
        )
    else:
        teacher = network
        if built.codes:
            built = replace(built, codes=False, affine=False)
            network = built.build()
        else:
            teacher = copy.deepcopy(network)
            for layer in teacher.modules():
                if isinstance(layer, QuantizedLayer) and has_low_bit_weight(layer):
                    layer.weight_quantizer = None
        solved = twostep.learn_transforms(
            network, teacher, loader, **vars(recipe), state=state, progress=progress, on_layer=reports.append
        )
    checkpoint.save(out, built, solved)
    text = f"{out}: {built.scheme}, {len(reports)} layers solved from {len(loader.images)} images"
    return {
        "file": str(out),
        "scheme": built.scheme,
        "images": len(loader.images),
        "layers": [{k: None if v != v else v for k, v in asdict(r).items()} for r in reports],
        "text": text,
    }


def _scheme(spelling: str) -> str | None:
    return None if spelling == "none" else spelling


def _read(path: Path, built: checkpoint.Recipe) -> Array:
    images = load_array(path)
    if images.shape[1:] != tuple(built.input_shape) or images.dtype not in (np.float32, np.uint8) or not len(images):
        shape = ", ".join(map(str, built.input_shape))
        raise InputError(f"{path}: expected float32 or uint8 [N, {shape}], got {images.dtype} {list(images.shape)}")
    if images.dtype == np.float32:
        return images
    if not built.mean:
        raise InputError(f"{path}: uint8 images need the mean and deviation, which the checkpoint does not hold")
    return normalize(images.astype(np.uint8, copy=False), mean=built.mean, std=built.std)
