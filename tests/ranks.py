"""Run by torchrun for test_distributed: a few steps of training, whose parameters and statistics go into a file."""

from __future__ import annotations

import sys

import numpy as np
import torch

from bitbranch import models, processes, quantize
from bitbranch.data.batches import Batches
from bitbranch.data.dataset import Dataset
from bitbranch.training.loop import Training, score
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import Settings

# Without max-pooling: of equal sums of codes it takes the one that rounding happens to make the largest.
TINY = {"depth": 8, "num_classes": 3, "in_channels": 2, "width": 0.5}
SCHEMES = ["float", "tsq:wt-a2", "mbn:w2-a2", "lsq:w3-a3", "w4a4"]


def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 2, 12, 12), dtype=np.uint8)
    return Dataset(images, rng.integers(0, 3, 64), ("a", "b", "c"), (0.4, 0.5), (0.2, 0.3), "noise")


def train(scheme: str, epochs: int = 1) -> dict[str, torch.Tensor]:
    """The state after steps of 16 images, and the score of the test images; no epochs is the network as it starts."""
    torch.manual_seed(0)
    network = models.build("resnet_cifar", TINY)
    if scheme != "float":
        network = quantize(network, scheme)
    part = (processes.rank(), processes.count())
    batches = Batches(dataset(), size=16, flip=True, shift=1, part=part)
    settings = Settings(epochs=epochs, lr=0.02, optimizer="sgd")
    Training(network, batches, settings, Classification()).run()
    if not epochs:
        return network.state_dict()
    found = score(network, Batches(dataset(), size=10, training=False, part=part))
    return {**network.state_dict(), "score": torch.tensor(list(found.values()))}


def held() -> dict[str, torch.Tensor]:
    """The state of layers whose scales a solver has set in process 0, as all have it after sharing."""
    torch.manual_seed(processes.rank())
    network = quantize(torch.nn.Sequential(*(torch.nn.Conv2d(2, 3, 1) for _ in range(4))), "mbn:w2-a2")
    if processes.rank() == 0:
        network[1].weight_quantizer.hold(torch.tensor([0.5, 1.0, 2.0]))
    processes.share(network)
    return network.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        states = {scheme: train(scheme) for scheme in SCHEMES} | {"held": held()}
        torch.save(states, f"{sys.argv[1]}/{processes.rank()}.pt")
