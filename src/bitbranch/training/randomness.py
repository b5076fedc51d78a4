"""The global generators of torch, NumPy and Python: networks of one's own may draw from any."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """Their states, of plain types and tensors."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 -- saved for those who draw from it
    state = {"torch": torch.get_rng_state(), "numpy": [name, torch.from_numpy(np.array(keys, np.int64)), *rest]}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state | {"python": random.getstate()}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set them as :func:`random_state` found them."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
