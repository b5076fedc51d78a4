"""What a run learns: how its images become batches, what is minimised, and by what figure a network is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import processes
from ..data import sets
from ..data.batches import BatchSource
from ..data.box_batches import Augmentation, BoxBatches
from ..data.box_set import BoxSet
from ..data.dataset import Dataset
from ..data.folders import PictureSet
from ..data.mask_batches import MaskBatches
from ..data.masks import MaskSet
from ..data.scenes import SceneBatches, SceneSet
from ..errors import InputError
from ..tasks.boxes import DefaultBoxes
from ..tasks.segmentation import median_frequency
from . import gallery, multibox, pixels
from .config import Data, Phase, Teacher, read_as
from .loop import Answers, evaluating, score
from .multibox import Multibox
from .objectives import Classification, Objective
from .pixels import Pixels

T = TypeVar("T")

SHOWN = 6
"""Test images in a run's report."""

Run = Callable[[npt.NDArray[np.uint8]], Any]
"""From images, uint8 ``[N, C, H, W]``, to a network's output, or outputs, as arrays."""


class Task:
    """Base of what a run can learn from a set of images.

    Args:
        data: what the configuration says of it.
        train, test: images of the two splits.
        left_out: what was wrong with pictures, annotations or objects that they lack.

    Attributes:
        name: in files.
        figures: names of what :meth:`score` gives at least; a network is judged by the first, 0..1.
        shows: whether a report has a :meth:`gallery`.
        divided: whether several processes share the test images.
        tested_at_once: images of a batch in evaluation.
    """

    name: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    shows: ClassVar[bool] = True
    divided: ClassVar[bool] = True
    tested_at_once: ClassVar[int] = 8

    def __init__(self, data: Data, train: Any, test: Any, left_out: Sequence[str] = ()) -> None:
        self.data, self.train, self.test, self.left_out = data, train, test, tuple(left_out)

    @property
    def figure(self) -> str:
        """Name of the figure that a network is judged by."""
        return self.figures[0]

    def arguments(self) -> dict[str, object]:
        """Arguments of networks that come from the data, where a network has them."""
        channels, height, width = self.train.shape
        size = height if height == width else [height, width]
        return {"num_classes": len(self.train.classes), "in_channels": channels, "image_size": size}

    def info(self, network: nn.Module) -> dict[str, str]:
        """What the compiled file must say, so that its outputs can be read.

        Raises:
            InputError: the network is for another task.
        """
        return {"task": self.name, "classes": listed(self.train.classes)}

    def check(self, network: nn.Module) -> None:
        """Answer one image in evaluation mode.

        Raises:
            InputError: the network does not take such images, or its outputs are not those of the task.
        """
        name, shape = type(network).__name__, tuple(self.train.shape)
        try:
            with evaluating(network) as device:
                output = network(torch.zeros(1, *shape, device=device))
        except (RuntimeError, ValueError, TypeError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"network: {name} does not take the images {shape} of {self.data.set} ({said})") from None
        wanted, found = self._outputs(network, output)
        if wanted != found:
            raise InputError(
                f"network: {name} gives {found} for an image of {self.data.set}; {self.name} needs {wanted}"
            )

    def _outputs(self, network: nn.Module, output: Any) -> tuple[str, str]:
        """What the outputs of one image should be, and are."""
        raise NotImplementedError

    def batches(self, seed: int) -> BatchSource:
        """This process's part of the training batches, augmented."""
        part = (processes.rank(), processes.count())
        return self._source(
            self.train, augmented=True, training=True, seed=seed, size=self.data.batch, workers=self.data.workers,
            part=part,
        )  # fmt: skip

    def calibration(self, images: int, seed: int) -> BatchSource:
        """So many training images, as test images are taken, in an order of chance; the same in every process."""
        source = self._source(self.train.spread(images), size=self.data.batch, training=False, seed=seed)
        source.shuffled = True
        return source

    def objective(self, network: nn.Module, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        """What a phase of kind ``train`` or ``codes`` minimises."""
        raise NotImplementedError

    def score(self, network: nn.Module, run: Run | None = None) -> dict[str, float]:
        """The figures on the test images.

        Args:
            network: what is judged.
            run: computes its outputs in its place; only where there is one process.
        """
        raise NotImplementedError

    def gallery(self, networks: Mapping[str, nn.Module]) -> str:
        """Some test images with the truth and what networks say of them, by their titles, as HTML.

        Only where :attr:`shows`.
        """
        raise NotImplementedError

    def _tested(self, run: Run | None) -> BatchSource:
        """The test images: as pixels for a function, else normalised."""
        self._test_source.pixels = run is not None
        return self._test_source

    @cached_property
    def _test_source(self) -> BatchSource:
        part = (processes.rank(), processes.count()) if self.divided else (0, 1)
        return self._source(
            self.test, size=self.tested_at_once * part[1], training=False, workers=self.data.workers, part=part
        )

    def _source(self, images: Any, augmented: bool = False, **given: Any) -> BatchSource:
        """Batches of images; the rest as for :class:`~bitbranch.data.batches.BatchSource`."""
        raise NotImplementedError

    def _augmentation(self, how: type[T]) -> T:
        """``[data.augmentation]`` and ``flip``, checked, as a dataclass."""
        flip = {} if self.data.flip is None else {"flip": self.data.flip}
        return read_as(how, {**flip, **self.data.augmentation}, "data.augmentation")


@dataclass(frozen=True)
class Mirror:
    """The augmentation of scenes."""

    flip: bool = True


@dataclass(frozen=True)
class MaskAugmentation:
    """That of pictures with masks, see :class:`~bitbranch.data.mask_batches.MaskBatches`."""

    scale: tuple[float, ...] = (0.5, 2.0)
    flip: bool = True
    colour: float = 0.3


class ImageClassification(Task):
    """One class for each image."""

    name = "classification"
    figures = ("accuracy", "top5", "loss")
    shows = False
    tested_at_once = 250

    def _outputs(self, network: nn.Module, output: Any) -> tuple[str, str]:
        return f"logits [{len(self.train.classes)}]", _described(output)

    def _source(self, images: Dataset | PictureSet, augmented: bool = False, **given: Any) -> BatchSource:
        if self.data.augmentation:
            raise InputError(f"data.augmentation: is for pictures with boxes or masks; {self.data.set} has flip, shift")
        if self.data.shift is not None and not isinstance(images, Dataset):
            raise InputError(f"data.shift: is for sets of small images; pictures of {self.data.set} are cropped")
        usual = sets.find(self.data.set)
        shift = usual.shift if self.data.shift is None else self.data.shift
        flip = usual.flip if self.data.flip is None else self.data.flip
        return sets.batches(images, flip=flip and augmented, shift=shift if augmented else 0, **given)

    def objective(self, network: nn.Module, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        return Classification(
            teacher=teacher, share=wanted.shares, temperature=wanted.temperature, smoothing=phase.smoothing,
            label=phase.name,
        )  # fmt: skip

    def score(self, network: nn.Module, run: Run | None = None) -> dict[str, float]:
        return score(network if run is None else Answers(run), self._tested(run))


class ObjectDetection(Task):
    """Boxes around objects of some classes."""

    name = "detection"
    figures = ("map", "map_2007")
    divided = False  # precision is of the ranking of all

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, without the background."""
        names: tuple[str, ...] = self.train.classes
        return names[1:] if isinstance(self.train, SceneSet) else names

    def arguments(self) -> dict[str, object]:
        return {**super().arguments(), "num_classes": 1 + len(self.names)}

    def _outputs(self, network: nn.Module, output: Any) -> tuple[str, str]:
        logits, _ = Multibox(_default_boxes(network)).flattened(output)
        return f"{1 + len(self.names)} classes for each box", f"{logits.shape[-1]} classes for each box"

    def info(self, network: nn.Module) -> dict[str, str]:
        return {"task": self.name, "classes": listed(self.names), "boxes": _default_boxes(network).to_json()}

    def _source(self, images: BoxSet | SceneSet, augmented: bool = False, **given: Any) -> BatchSource:
        if isinstance(images, SceneSet):
            return SceneBatches(images, boxes=True, flip=augmented and self._augmentation(Mirror).flip, **given)
        chosen = self._augmentation(Augmentation) if augmented else Augmentation(False, 1.0, 1.0, False)
        return BoxBatches(images, augmentation=chosen, difficult=not images.crowds, **given)

    def objective(self, network: nn.Module, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        if phase.smoothing:
            raise InputError(f"{phase.name}: smoothing is for classification and segmentation")
        return Multibox(
            _default_boxes(network), teacher=teacher, share=wanted.shares, temperature=wanted.temperature,
            label=phase.name,
        )  # fmt: skip

    def score(self, network: nn.Module, run: Run | None = None) -> dict[str, float]:
        coco = getattr(self.test, "crowds", False) and find_spec("pycocotools") is not None
        batches: Any = self._tested(run)
        return multibox.evaluate(run or network, batches, _default_boxes(network), coco=coco)

    def gallery(self, networks: Mapping[str, nn.Module]) -> str:
        images, targets = next(iter(self._source(self.test.spread(SHOWN), size=SHOWN, training=False)))
        default = _default_boxes(next(iter(networks.values())))
        return gallery.boxes(networks, images, targets, self.names, default, self.test.mean, self.test.std)


def _default_boxes(network: nn.Module) -> DefaultBoxes:
    boxes = getattr(network, "default_boxes", None)
    if not isinstance(boxes, DefaultBoxes):
        raise InputError(f"network.model: {type(network).__name__} has no default boxes, so it detects nothing")
    return boxes


class SemanticSegmentation(Task):
    """The class of every pixel."""

    name = "segmentation"
    figures = ("miou", "pixel_accuracy", "class_accuracy")

    def _outputs(self, network: nn.Module, output: Any) -> tuple[str, str]:
        size = f", {', '.join(map(str, output.shape[2:]))}" if isinstance(output, Tensor) else ""
        return f"logits [{len(self.train.classes)}{size or ', H, W'}]", _described(output)

    def info(self, network: nn.Module) -> dict[str, str]:
        colours = ["".join(f"{part:02x}" for part in colour) for colour in self.train.palette]
        return {**super().info(network), "palette": ",".join(colours)}

    def _source(self, images: MaskSet | SceneSet, augmented: bool = False, **given: Any) -> BatchSource:
        if isinstance(images, SceneSet):
            return SceneBatches(images, boxes=False, flip=augmented and self._augmentation(Mirror).flip, **given)
        chosen = self._augmentation(MaskAugmentation) if augmented else MaskAugmentation((1.0, 1.0), False, 0.0)
        if len(chosen.scale) != 2:
            raise InputError(f"data.augmentation.scale: expected the least and the most, got {list(chosen.scale)}")
        scale = (chosen.scale[0], chosen.scale[1])
        return MaskBatches(images, scale=scale, flip=chosen.flip, colour=chosen.colour, **given)

    @cached_property
    def weights(self) -> npt.NDArray[np.float64] | None:
        """Of the classes in the loss."""
        masks = self.train.masks if isinstance(self.train, SceneSet) else self.train.labels()
        return median_frequency(masks, len(self.train.classes), power=self.data.balance) if self.data.balance else None

    def objective(self, network: nn.Module, phase: Phase, teacher: nn.Module | None, wanted: Teacher) -> Objective:
        return Pixels(
            weights=self.weights, teacher=teacher, share=wanted.shares, temperature=wanted.temperature,
            smoothing=phase.smoothing, label=phase.name,
        )  # fmt: skip

    def score(self, network: nn.Module, run: Run | None = None) -> dict[str, float]:
        return pixels.evaluate(run or network, self._tested(run), self.train.classes)

    def gallery(self, networks: Mapping[str, nn.Module]) -> str:
        images, targets = next(iter(self._source(self.test.spread(SHOWN), size=SHOWN, training=False)))
        colours = tuple(self.train.palette)
        return gallery.areas(networks, images, targets, self.train.classes, colours, self.test.mean, self.test.std)


TASKS: dict[str, type[Task]] = {
    task.name: task for task in (ImageClassification, ObjectDetection, SemanticSegmentation)
}


def read(data: Data) -> Task:
    """The task that a configuration's set of images is for, with its images.

    What is wrong with single pictures is warned of, and kept with the task.

    Raises:
        InputError: no such set, or it is not there or damaged.
    """
    source = sets.find(data.set)
    if data.balance and source.task != SemanticSegmentation.name:
        raise InputError(f"data.balance: is for pictures with masks, and {data.set} has none")
    for name in ("flip", "shift"):
        if getattr(data, name) is not None and source.task != ImageClassification.name:
            raise InputError(f"data.{name}: is for classification; {data.set} has data.augmentation")
    if data.path and source.folder is None:
        raise InputError(f"data.path: {data.set} comes with bitbranch")
    folder = Path(data.path) if data.path else source.place()
    names = data.train_split or source.splits[0], data.test_split or source.splits[-1]
    shared = set(names[0].split("+")) & set(names[1].split("+"))
    if shared:
        raise InputError(f"data.test_split: {', '.join(sorted(shared))} is learned from")
    left_out = list[str]()

    def leave_out(error: InputError) -> None:
        left_out.append(str(error))
        sets.warn(error)

    train, test = (source.read(name, folder, data.size, leave_out) for name in names)
    seen = set[object]()
    for name, images in zip(names, (train, test), strict=True):
        paths = getattr(images, "paths", ())
        twice = len(paths) - len(set(paths) - seen)
        if twice:
            raise InputError(f"data: splits {names[0]!r} and {names[1]!r}: {twice:,} pictures of {name!r} come twice")
        seen |= set(paths)
    if train.classes != test.classes:
        if not isinstance(test, PictureSet):
            differing = sorted({*train.classes} ^ {*test.classes}) or ["their order"]
            raise InputError(f"data: splits {names[0]!r} and {names[1]!r} differ in classes: {', '.join(differing)}")
        test = test.numbered(train.classes)
    if data.train_images:
        train = train.spread(data.train_images)
    if data.test_images:
        test = test.spread(data.test_images)
    return TASKS[source.task](data, train, test, left_out)


def _described(output: Any) -> str:
    if not isinstance(output, Tensor):
        return f"{len(output)} outputs" if isinstance(output, (tuple, list)) else type(output).__name__
    return f"logits [{', '.join(map(str, output.shape[1:]))}]"


def listed(classes: Sequence[str]) -> str:
    """Names of classes as compiled files hold them.

    Raises:
        InputError: one with a comma.
    """
    for name in classes:
        if "," in name:
            raise InputError(f"class {name!r}: a name may have no comma")
    return ",".join(classes)
