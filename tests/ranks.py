"""Run by torchrun for test_distributed: steps of training, whose parameters and statistics go into a file, and runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bitbranch import models, processes, quantize
from bitbranch.cli.main import main
from bitbranch.data.batches import Batches
from bitbranch.data.dataset import Dataset
from bitbranch.reporting import plots
from bitbranch.tasks.segmentation import IGNORED
from bitbranch.training import runner
from bitbranch.training.loop import Training, score
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import Settings
from bitbranch.training.pixels import Pixels

# Without max-pooling: of equal sums of codes it takes the one that rounding happens to make the largest.
TINY = {"depth": 8, "num_classes": 3, "in_channels": 2, "width": 0.5}
SCHEMES = ["float", "tsq:wt-a2", "mbn:w2-a2", "lsq:w3-a3", "w4a4"]
RUN: dict[str, Any] = {
    "network": {"model": "pooled"},
    "data": {"set": "fashion-mnist-sample", "batch": 16, "train_images": 64, "test_images": 40},
    "threads": 1,
    "save_every": 3,
    "log_every": 1,
    "train": {"lr": 0.02, "optimizer": "sgd"},
    "phase": [{"name": "float"}, {"name": "low", "scheme": "tsq:w3-a3", "kind": "codes"}],
}
"""Of two phases of four steps."""


def pooled(*, num_classes: int) -> nn.Module:
    """Of few pixels: over many, torch's own BatchNorm, that of a single process, loses four digits."""
    return nn.Sequential(
        *(nn.AvgPool2d(4), nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, num_classes)),
    )


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


def segmented(teacher: bool) -> dict[str, torch.Tensor]:
    """Steps of four masks, of which the second process has few labelled pixels, in the second step none."""
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.normal(size=(12, 2, 8, 8)).astype(np.float32))
    masks = torch.from_numpy(rng.integers(0, 3, (12, 8, 8)))
    masks[1::2][torch.from_numpy(rng.random((6, 8, 8)) < 0.8)] = IGNORED
    masks[5:8:2] = IGNORED
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))
    followed = nn.Conv2d(2, 3, 1)
    objective = Pixels(weights=[0.5, 1.0, 3.0], smoothing=0.1, teacher=followed if teacher else None, share=0.7)
    parts = (slice(start + processes.rank(), start + 4, processes.count()) for start in range(0, 12, 4))
    settings = Settings(epochs=1, lr=0.1, optimizer="sgd", schedule="constant")
    (epoch,) = Training(network, [(images[part], masks[part]) for part in parts], settings, objective).run()
    return {**network.state_dict(), "loss": torch.tensor(epoch.loss), "accuracy": torch.tensor(epoch.accuracy)}


def run(folder: Path, stops: int) -> list[int]:
    """`bitbranch train` through :data:`RUN`, stopped after so many checkpoints and begun again; what it returns."""
    content = folder.with_suffix(f".{processes.rank()}.json")
    content.write_text(json.dumps(RUN))
    save, places, codes = runner._Run._save, set[tuple[int, bool]](), list[int]()

    def stop(self: Any, number: int, training: Any) -> None:
        save(self, number, training)
        processes.barrier()  # what one process reads then, another has written
        place = (number, training is None)
        if place not in places and len(places) < stops:
            places.add(place)
            raise KeyboardInterrupt

    own, curves = patch.dict(models.MODELS, pooled=pooled), patch.object(plots, "run_curves", lambda *_: "")
    with patch.object(runner._Run, "_save", stop), own, curves:
        while len(codes) <= stops:
            try:
                codes.append(main(["train", str(content), "--out", str(folder)]))
            except SystemExit as ended:  # of all processes but the first, which prints
                codes.append(ended.code)
    return codes


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
    out = Path(sys.argv[1])
    with processes.joined():
        states = {scheme: train(scheme) for scheme in SCHEMES} | {"held": held()}
        states |= {f"pixels {teacher}": segmented(teacher) for teacher in (False, True)}
        states["runs"] = {name: torch.tensor(run(out / name, stops)) for name, stops in (("whole", 0), ("stopped", 3))}
        torch.save(states, out / f"{processes.rank()}.pt")
