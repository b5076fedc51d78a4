"""Test images with what networks say of them, and the truth, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ..reporting import page, pictures
from ..tasks.boxes import DefaultBoxes, detections
from ..tasks.segmentation import IGNORED, masks
from .loop import evaluating

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

SCORE = 0.5
"""Boxes of lower scores are not drawn."""
WIDTH = 200
"""Small images are enlarged to at least so many pixels."""


def shown(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> list[Pixels]:
    """Normalised images ``[N, 3, H, W]`` as pictures, uint8 ``[H, W, 3]``, enlarged by whole factors where small."""
    factor = max(1, -(-WIDTH // images.shape[3]))
    reals = images.permute(0, 2, 3, 1).numpy() * np.array(std) + np.array(mean)
    pixels = (255 * reals).round().clip(0, 255).astype(np.uint8)
    return list(pixels.repeat(factor, 1).repeat(factor, 2))


def boxes(
    networks: Mapping[str, nn.Module], images: Tensor, targets: Tensor, classes: tuple[str, ...], default: DefaultBoxes,
    mean: tuple[float, ...], std: tuple[float, ...],
) -> str:  # fmt: skip
    """A row for each image: the true boxes ``[N, M, 5]``, then those of each network by its title; as HTML."""
    colours = pictures.palette(len(classes))
    columns = [("truth", [rows[rows[:, 4] > 0] for rows in targets.numpy()])]
    for title, network in networks.items():
        with evaluating(network) as device:
            heads = [[m.float().cpu().numpy() for m in part] for part in network(images.to(device))]
        found = detections(heads[0], heads[1], default, threshold=SCORE)
        columns.append((title, [rows[:, [0, 1, 2, 3, 5]] for rows in found]))

    def drawn(pixels: Pixels, rows: npt.NDArray[np.float32]) -> Image:
        numbers = rows[:, 4].astype(int) - 1
        return pictures.with_boxes(pixels, rows[:, :4], [classes[n] for n in numbers], [colours[n] for n in numbers])

    views = shown(images, mean, std)
    return _rows([(t, [drawn(p, r) for p, r in zip(views, rows, strict=True)]) for t, rows in columns])


def areas(
    networks: Mapping[str, nn.Module], images: Tensor, targets: Tensor, classes: tuple[str, ...],
    colours: tuple[tuple[int, int, int], ...], mean: tuple[float, ...], std: tuple[float, ...],
) -> str:  # fmt: skip
    """A row for each image: the true masks ``[N, H, W]``, then those of each network by its title; as HTML."""
    background = 0 if classes[0] == "background" else -1
    truth = targets.numpy()
    columns = [("truth", np.where(truth == IGNORED, -1, truth))]
    for title, network in networks.items():
        with evaluating(network) as device:
            logits = network(images.to(device)).float().cpu().numpy()
        columns.append((title, masks(logits, (truth.shape[1], truth.shape[2])).astype(np.int64)))

    def drawn(pixels: Pixels, mask: npt.NDArray[np.int64]) -> Image:
        return pictures.with_mask(pixels, mask, colours, background=background)

    views = shown(images, mean, std)
    made = [(title, [drawn(p, mask) for p, mask in zip(views, rows, strict=True)]) for title, rows in columns]
    return _rows(made) + page.legend([(name, colour) for name, colour in zip(classes, colours, strict=True)])


def _rows(columns: list[tuple[str, list[Image]]]) -> str:
    titles = [escape(title) for title, _ in columns]
    lines = zip(*(images for _, images in columns), strict=True)
    return "".join("<div class=gallery>" + "".join(map(pictures.embedded, line, titles)) + "</div>" for line in lines)
