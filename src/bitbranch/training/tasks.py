"""What a run learns: how its images become batches, what is minimised, and by what figure a network is judged."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from .. import processes
from ..data import sets
from ..data.batches import BatchSource
from .config import Data, Phase, Teacher
from .loop import score
from .objectives import Classification, Objective

EVALUATION_BATCH = 250


class Task:
    """Base of what a run can learn from a set of images.

    Args:
        data: what the configuration says of it.
        train, test: images of the two splits.

    Attributes:
        figures: names of what :meth:`score` gives; a network is judged by the first, 0..1.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init__(self, data: Data, train: sets.Images, test: sets.Images) -> None:
        self.data, self.train, self.test = data, train, test

    @property
    def figure(self) -> str:
        """Name of the figure that a network is judged by."""
        return self.figures[0]

    def arguments(self) -> dict[str, object]:
        """Arguments of networks that come from the data, where a network has them."""
        raise NotImplementedError

    def batches(self, seed: int) -> BatchSource:
        """This process's part of the training batches, augmented."""
        raise NotImplementedError

    def calibration(self, images: int, seed: int) -> BatchSource:
        """Whole batches of so many training images, not augmented, the same in every process."""
        raise NotImplementedError

    def objective(self, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        """What a phase of kind ``train`` or ``codes`` minimises."""
        raise NotImplementedError

    def score(self, network: nn.Module) -> dict[str, float]:
        """The figures on the test images."""
        raise NotImplementedError


class ImageClassification(Task):
    """One class for each image."""

    figures = ("accuracy", "top5", "loss")

    def arguments(self) -> dict[str, object]:
        channels, height, _ = self.train.shape
        return {"num_classes": len(self.train.classes), "in_channels": channels, "image_size": height}

    def batches(self, seed: int) -> BatchSource:
        usual = sets.find(self.data.set)
        return sets.batches(
            self.train, size=self.data.batch, training=True,
            flip=usual.flip if self.data.flip is None else self.data.flip,
            shift=usual.shift if self.data.shift is None else self.data.shift,
            seed=seed, workers=self.data.workers, part=(processes.rank(), processes.count()),
        )  # fmt: skip

    def calibration(self, images: int, seed: int) -> BatchSource:
        return sets.batches(self.train.spread(images), size=self.data.batch, training=True, seed=seed)

    def objective(self, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        return Classification(
            teacher=teacher, share=wanted.shares, temperature=wanted.temperature, smoothing=phase.smoothing,
            label=phase.name,
        )  # fmt: skip

    def score(self, network: nn.Module) -> dict[str, float]:
        return score(
            network,
            sets.batches(
                self.test, size=EVALUATION_BATCH * processes.count(), training=False, workers=self.data.workers,
                part=(processes.rank(), processes.count()),
            ),
        )  # fmt: skip


def read(data: Data) -> Task:
    """The task that a configuration's set of images is for, with its images.

    Raises:
        InputError: no such set, or it is not there or damaged.
    """
    source = sets.find(data.set)
    folder = Path(data.path) if data.path else source.place()
    train, test = source.load("train", folder), source.load("test", folder)
    if data.train_images:
        train = train.spread(data.train_images)
    if data.test_images:
        test = test.spread(data.test_images)
    return ImageClassification(data, train, test)
