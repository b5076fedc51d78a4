"""How many threads PyTorch computes with."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads, and behind this with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_fastest_threads(network: nn.Module, images: Tensor, most: int) -> None:
    """Let torch train on ``most`` threads, or on one if that is faster now.

    On a machine that others use, several threads wait for one another, and training can take ten times as long.

    Args:
        network: to be trained; not changed.
        images: a batch.
        most: number of threads to try.
    """
    trial = copy.deepcopy(network).train()

    def seconds(threads: int, limit: float = float("inf")) -> float:
        """Of the fastest of some steps, the first not counted; tries no longer where one takes far more."""
        torch.set_num_threads(threads)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            _total(trial(images)).backward()
            times.append(time.perf_counter() - start)
            if times[-1] > 10 * limit:
                break
        return min(times[1:], default=limit)

    alone = seconds(1)
    if most > 1 and not seconds(most, limit=alone) < alone:
        torch.set_num_threads(1)


def _total(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The sum of all that a network says."""
    if isinstance(outputs, Tensor):
        return outputs.sum()
    return torch.stack([_total(each) for each in outputs]).sum()
