"""What a part of step 2 gives: networks for CIFAR-10 are solved with it and without, from the same images.

    python benchmarks/transforms.py pairs RUN/net.pt .. [--draws 3] [--images 10000] [--samples 50000]
    python benchmarks/transforms.py hold RUN/net.pt .. [--draws 3] [--images 1000] [--samples 2000]

Parts are changing weights in pairs, and holding them at those of step 1. Each network is a checkpoint of step 1 or a
float one. Printed is the accuracy on the 10,000 test images, in percent.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from bitbranch.cli import solve
from bitbranch.data import cifar10, places
from bitbranch.training import checkpoint
from bitbranch.twostep import Recipe
from bitbranch.twostep.descent import Descent


def accuracy(net: Path) -> float:
    """In percent, on all test images."""
    built, network = checkpoint.load(net)
    data = cifar10.load("test", places.root() / "cifar10")
    mean, std = (torch.tensor(of).view(1, -1, 1, 1) for of in (built.mean, built.std))
    right = 0
    with torch.no_grad():
        for first in range(0, len(data.images), 500):
            part = slice(first, first + 500)
            logits = network.eval()((torch.from_numpy(data.images[part].copy()).float() / 255 - mean) / std)
            right += int((logits.argmax(1).numpy() == data.labels[part]).sum())
    return 100 * right / len(data.images)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", choices=("pairs", "hold"))
    parser.add_argument("nets", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=50_000)
    options = parser.parse_args()
    train = cifar10.load("train", places.root() / "cifar10").images
    gains = []
    with tempfile.TemporaryDirectory() as folder:
        images, solved = Path(folder) / "images.npy", Path(folder) / "solved.pt"
        for net in options.nets:
            for draw in range(options.draws):
                np.save(images, train[draw :: len(train) // options.images])
                figures = []
                for takes in (False, True):
                    recipe = Recipe(samples=options.samples, seed=draw)
                    singly: AbstractContextManager[object] = contextlib.nullcontext()
                    if not takes and options.part == "hold":
                        recipe = replace(recipe, hold=0.0)
                    elif not takes:
                        singly = mock.patch.object(Descent, "fit_pairs", lambda self, cross: 0)
                    with singly:
                        solve.run(
                            *(net, images, solved),
                            scheme=None,
                            first=None,
                            last=None,
                            layers={},
                            recipe=recipe,
                            state=None,
                            per_channel=False,
                            batch=500,
                            threads=None,
                            progress=lambda line: None,
                        )
                    figures.append(accuracy(solved))
                gains.append(figures[1] - figures[0])
                print(f"{net}, draw {draw}: without {options.part} {figures[0]:.2f}, with {figures[1]:.2f}", flush=True)
    print(f"gain {np.mean(gains):+.2f}, {min(gains):+.2f} to {max(gains):+.2f}, of {len(gains)}")


if __name__ == "__main__":
    main()
