"""Scenes of garments: what is promised of boxes and masks, and the batches made of them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bitbranch.data import fashion_mnist
from bitbranch.data import scenes as module
from bitbranch.data.dataset import normalize
from bitbranch.data.scenes import CLASSES, GARMENTS, SceneBatches, SceneSet, scenes
from bitbranch.errors import InputError


@pytest.fixture(scope="module")
def some() -> SceneSet:
    return scenes("train", 150, seed=1, size=72)


def test_shapes_types_and_classes(some: SceneSet) -> None:
    assert some.images.shape == (150, 3, 72, 72) and some.images.dtype == np.uint8 and some.shape == (3, 72, 72)
    assert some.masks.shape == (150, 72, 72) and some.masks.dtype == np.uint8
    assert some.boxes.shape == (150, GARMENTS[1], 5) and some.boxes.dtype == np.float32
    assert some.classes == CLASSES == ("background", *fashion_mnist.CLASSES) and len(some.palette) == 11
    shown = np.bincount(some.boxes[..., 4].astype(int).ravel(), minlength=11)[1:]
    assert shown.min() > 0.4 * shown.mean()
    count = (some.boxes[..., 4] > 0).sum(1)
    assert count.min() >= 1 and count.max() == GARMENTS[1] and 2.5 < count.mean() < 4


def test_boxes_are_tight_around_the_visible_pixels_of_their_class(some: SceneSet) -> None:
    """Where a scene has one garment of a class, its box is that of the class's pixels; else that of all together."""
    alone = 0
    for boxes, mask in zip(some.boxes, some.masks, strict=True):
        classes = boxes[:, 4].astype(int)
        assert {0, *classes.tolist()} >= set(np.unique(mask).tolist()) and not boxes[classes == 0].any()
        for label in set(classes.tolist()) - {0}:
            mine = boxes[classes == label]
            y, x = np.nonzero(mask == label)
            expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            found = [*mine[:, :2].min(0), *mine[:, 2:4].max(0)]
            np.testing.assert_allclose(np.array(found) * 72, expected, atol=1e-4)
            alone += len(mine) == 1
            for left, top, right, bottom in np.rint(mine[:, :4] * 72).astype(int):
                inside = mask[top:bottom, left:right] == label
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
    assert alone > 200


def test_little_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a garment shows alone, three quarters are seen in the end, counted by drawing it again alone."""
    drawn: list[tuple[module._Canvas, int, np.ndarray]] = []
    plain = module._Canvas.lay

    def lay(canvas: module._Canvas, *args: object) -> None:
        plain(canvas, *args)  # type: ignore[arg-type]
        number = len(canvas.labels) - 1
        if not any(c is canvas and n == number for c, n, _ in drawn):
            drawn.append((canvas, number, canvas.owner == number))

    monkeypatch.setattr(module._Canvas, "lay", lay)
    scenes("test", 60, seed=2)
    covered = [1 - (c.owner == n).sum() / alone.sum() for c, n, alone in drawn]
    assert len(drawn) > 150 and 0.1 < max(covered) <= module.COVERED and np.mean(covered) < 0.1


def test_garments_are_brighter_or_darker_than_the_ground_and_exactly_there(some: SceneSet) -> None:
    """The ground is smooth but for its noise, so what differs from a line fitted to it is a garment."""
    image, mask = some.images[..., 8:-8, 8:-8].astype(float), some.masks[:, 8:-8, 8:-8] > 0
    for x, there in zip(image[:40], mask[:40], strict=True):
        rows, columns = np.indices(there.shape)
        design = np.stack([np.ones(there.shape), rows, columns], -1)
        for channel in x:
            fit, *_ = np.linalg.lstsq(design[~there], channel[~there], rcond=None)
            rest = np.abs(channel - design @ fit)
            assert rest[~there].max() < 6 * module.NOISE
            assert not there.any() or rest[there].mean() > rest[~there].mean()


def test_enclosed_pixels_belong_to_a_garment() -> None:
    given = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 1, 1], [1, 0, 0, 1]], bool)
    filled = given.copy()
    filled[1, 2] = True  # the others are open to the bottom
    assert np.array_equal(module._enclosed(given), filled)


def test_the_seed_decides_and_splits_share_nothing() -> None:
    first, more = scenes("test", 5, seed=3), scenes("test", 8, seed=3)
    for name in ("images", "boxes", "masks"):
        assert np.array_equal(getattr(first, name), getattr(more, name)[:5])
    assert not np.array_equal(first.images, scenes("test", 5, seed=4).images)
    assert not np.array_equal(first.images, scenes("train", 5, seed=3).images)
    few = more.spread(3)
    assert len(few) == 3 and np.array_equal(few.boxes, more.boxes[[0, 2, 5]])
    assert len(scenes("test", 0)) == 0


def test_wrong_arguments_are_refused() -> None:
    for arguments, text in (({"size": 31}, "at least 32"), ({"count": -1}, "count"), ({"split": "val"}, "split 'val'")):
        with pytest.raises(InputError, match=text):
            scenes(**{"split": "train", "count": 1, **arguments})


def test_they_come_quickly() -> None:
    scenes("train", 1)
    start = time.process_time()
    scenes("train", 400, size=96)
    assert time.process_time() - start < 2.5  # measured: 1 second, half of it to unpack the garments


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_either_kind_mirror_alike(some: SceneSet, workers: int) -> None:
    boxes, masks = (SceneBatches(some, boxes=kind, size=50, seed=5, workers=workers) for kind in (True, False))
    order, mirrored = boxes.plan(0)
    assert 40 < mirrored.sum() < 110
    seen = 0
    for (x, b), (x2, m) in zip(boxes, masks, strict=True):
        assert np.array_equal(x, x2) and str(b.dtype) == "torch.float32" and str(m.dtype) == "torch.int64"
        for image, rows, mask in zip(x.numpy(), b.numpy(), m.numpy(), strict=True):
            n, flip = order[seen], mirrored[seen]
            seen += 1
            side = -1 if flip else 1
            expected = normalize(some.images[n : n + 1], mean=some.mean, std=some.std)[0]
            assert np.array_equal(image, expected[..., ::side]) and np.array_equal(mask, some.masks[n][:, ::side])
            given = some.boxes[n]
            there = given[:, 4] > 0
            assert np.array_equal(rows[~there], given[~there])
            assert np.array_equal(rows[:, [1, 3, 4]], given[:, [1, 3, 4]])
            x0, x1 = (1 - given[there, 2], 1 - given[there, 0]) if flip else (given[there, 0], given[there, 2])
            np.testing.assert_allclose(rows[there][:, [0, 2]], np.stack([x0, x1], 1), atol=1e-6)
    assert seen == 150


def test_batches_for_testing_come_in_order(some: SceneSet) -> None:
    batches = SceneBatches(some, boxes=False, size=64, training=False)
    assert np.array_equal(np.concatenate([m for _, m in batches]), some.masks) and len(batches) == 3
