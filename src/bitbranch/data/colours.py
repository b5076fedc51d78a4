"""Changes of colour as matrices: from red, green, blue and 1 to red, green and blue, 0 .. 255."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue; ITU-R BT.601."""


def saturated(factor: float) -> Matrix:
    """Colours as far from grey as they were, times a factor; ``[3, 3]``."""
    return factor * np.eye(3) + (1 - factor) * np.broadcast_to(LUMA, (3, 3))


def turned(angle: float) -> Matrix:
    """Hues turned by an angle in radians about the axis of greys, by Rodrigues' formula; ``[3, 3]``."""
    axis = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    return axis + math.cos(angle) * (np.eye(3) - axis) + math.sin(angle) * cross


def changed(image: npt.NDArray[np.uint8], matrix: Matrix) -> npt.NDArray[np.uint8]:
    """Pixels ``[H, W, 3]`` under a matrix ``[3, 4]``, whose last column is added."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).convert("RGB", tuple(matrix.ravel().tolist())))
