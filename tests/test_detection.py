"""Boxes, matching, suppression, average precision, the multibox loss: against plain loops and numbers by hand."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import bitbranch as bb
from bitbranch import models
from bitbranch.data.box_batches import Augmentation, BoxBatches
from bitbranch.data.box_set import BoxSet
from bitbranch.errors import InputError
from bitbranch.models.ssd import SSD
from bitbranch.tasks.average_precision import (
    COCO_FIGURES,
    average_precision,
    coco_average_precision,
    mean_average_precision,
)
from bitbranch.tasks.boxes import (
    DefaultBoxes,
    corners,
    decode,
    detections,
    encode,
    intersection_over_union,
    linear_scales,
    match,
    suppress,
    usual_ratios,
)
from bitbranch.training.loop import Training
from bitbranch.training.multibox import Multibox, evaluate, matched_truths
from bitbranch.training.optimization import Settings

torch.set_num_threads(1)  # small problems; the machine may be shared

SMALL = DefaultBoxes((48, 64), ((3, 4), (2, 2)), (0.4, 0.7, 1.0), ((1.0, 2.0, 0.5), (1.0,)))


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Corners, float32 ``[count, 4]``, at least 0.02 wide and high."""
    first, second = rng.uniform(0, 0.9, (2, count, 2))
    return np.concatenate([np.minimum(first, second), np.maximum(first, second) + 0.02], 1).astype(np.float32)


# ---- default boxes


def test_default_boxes_by_hand() -> None:
    boxes = SMALL.centres
    assert boxes.shape == (len(SMALL), 4) == (3 * 4 * 4 + 2 * 2 * 2, 4)
    assert SMALL.per_pixel == (4, 2)
    row, column, kind = 1, 2, 1  # ratio 2 of scale 0.4: pixels 0.4 * 48 * sqrt(2) wide
    expected = [2.5 / 4, 1.5 / 3, 0.4 * math.sqrt(2) * 48 / 64, 0.4 / math.sqrt(2)]
    assert np.allclose(boxes[(row * 4 + column) * 4 + kind], expected)
    square = boxes[(row * 4 + column) * 4 + 3]
    assert np.allclose(square[2:] * [64, 48], math.sqrt(0.4 * 0.7) * 48)
    assert np.allclose(boxes[48 + (1 * 2 + 0) * 2 + 1], [0.25, 0.75, math.sqrt(0.7) * 0.75, math.sqrt(0.7)])


def test_ssd300_has_8732_boxes_of_the_published_scales() -> None:
    assert np.allclose(linear_scales(6), [0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.075])
    assert np.allclose(linear_scales(4, first=None), [0.2, 0.2 + 0.7 / 3, 0.2 + 1.4 / 3, 0.9, 0.9 + 0.7 / 3])
    assert linear_scales(1, first=None)[0] == 0.2 and len(linear_scales(1)) == 2
    assert usual_ratios(4) == (1, 2, 1 / 2) and usual_ratios(6) == (1, 2, 1 / 2, 3, 1 / 3) and usual_ratios(1) == ()
    boxes = models.ssd(width=1 / 16).default_boxes
    assert len(boxes) == 8732 and boxes.per_pixel == (4, 6, 6, 6, 4, 4)


def test_boxes_travel_as_one_line() -> None:
    text = SMALL.to_json()
    assert "\n" not in text and DefaultBoxes.from_json(text) == SMALL
    for damaged in ("", "[]", "{}", text[:-3], text.replace("0.4", '"a"'), text.replace("[3, 4]", "[3]"), "null"):
        with pytest.raises(InputError, match="default boxes"):
            DefaultBoxes.from_json(damaged)


@pytest.mark.parametrize(
    "change",
    [
        {"scales": (0.4, 0.7)},
        {"ratios": ((1.0,),)},
        {"scales": (0.4, 0.7, 0.0)},
        {"ratios": ((1.0,), (-1.0,))},
        {"sizes": ((3, 4), (0, 2))},
        {"variances": (0.1, math.inf)},
    ],
)
def test_default_boxes_that_do_not_fit_together_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="default boxes"):
        replace(SMALL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"trunk": "resnet18", "width": 1 / 16, "image_size": (96, 128)},
        {"trunk": "resnet18", "width": 1 / 16, "image_size": (72, 104), "extras": 1},
        {"trunk": "mobilenet_v2", "width": 1 / 8, "image_size": [50, 97]},
        {"trunk": "vgg_small", "width": 1 / 32, "image_size": (50, 70), "ratios": [(1,)] * 3 + [()]},
        {"trunk": "vgg_small", "width": 1 / 32, "image_size": 48, "extras": 0, "boxes": [5], "scales": (0.1, 0.3)},
    ],
)
def test_a_network_gives_the_numbers_of_its_default_boxes(options: dict[str, object]) -> None:
    """Heads whose outputs say map, row, column and box come out in the order of the boxes."""
    network = models.ssd(num_classes=3, **options).eval()  # type: ignore[arg-type]
    boxes = network.default_boxes
    with torch.no_grad():
        classes, places = network(torch.randn(1, 3, *boxes.image_size))
    assert [tuple(m.shape[2:]) for m in classes] == list(boxes.sizes)
    assert [m.shape[1] for m in places] == [4 * count for count in boxes.per_pixel]
    for number, m in enumerate(places):
        _, channels, height, width = m.shape
        c, y, x = torch.meshgrid(*map(torch.arange, (channels, height, width)), indexing="ij")
        m[0] = ((number * 20 + y) * 20 + x) * 100 + c
    _, got = Multibox(boxes).flattened((classes, places))
    keys = [
        [((number * 20 + y) * 20 + x) * 100 + 4 * a + i for i in range(4)]
        for number, ((h, w), count) in enumerate(zip(boxes.sizes, boxes.per_pixel, strict=True))
        for y, x, a in product(range(h), range(w), range(count))
    ]
    assert got[0].tolist() == keys


def test_a_new_network_says_background() -> None:
    torch.manual_seed(0)
    network = models.ssd(num_classes=5, width=1 / 8, image_size=64).eval()
    with torch.no_grad():
        logits, offsets = Multibox(network.default_boxes).flattened(network(torch.randn(2, 3, 64, 64)))
    assert abs(float(logits.softmax(2)[..., 0].mean()) - 0.75) < 0.1 and float(offsets.abs().mean()) < 1
    with pytest.raises(InputError, match="not one more than the ratios"):
        models.ssd(width=1 / 8, image_size=32, extras=0, ratios=[(1,)] * 3, boxes=[2, 2, 3])
    with pytest.raises(InputError, match="default boxes: 3 maps need"):
        models.ssd(width=1 / 8, image_size=32, extras=0, scales=[0.1, 0.2])
    with pytest.raises(InputError, match="usual ratios, got 7"):
        models.ssd(width=1 / 8, image_size=32, extras=0, boxes=[7, 4, 4])


# ---- overlap, matching, encoding


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes, plainly."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def test_overlap_by_hand_and_by_loops() -> None:
    a = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [1, 1, 1, 1]], np.float64)
    got = intersection_over_union(a, a)
    assert np.allclose(got, [[1, 1 / 7, 0, 0], [1 / 7, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    rng = np.random.default_rng(0)
    b, c = random_boxes(rng, 7).astype(np.float64), random_boxes(rng, 9).astype(np.float64)
    assert np.allclose(intersection_over_union(b, c), [[overlap(x, y) for y in c] for x in b])
    assert intersection_over_union(np.zeros((0, 4)), c).shape == (0, 9)


def test_encoding_by_hand_and_back() -> None:
    default = np.array([0.5, 0.5, 0.2, 0.4], np.float32)
    truth = np.array([0.45, 0.3, 0.65, 0.5], np.float32)  # centre 0.55, 0.4, size 0.2, 0.2
    assert np.allclose(encode(truth, default), [0.05 / 0.2 / 0.1, -0.1 / 0.4 / 0.1, 0, math.log(0.5) / 0.2], atol=1e-5)
    rng = np.random.default_rng(1)
    truths, centres = random_boxes(rng, 50), SMALL.centres[:50]
    assert np.allclose(decode(encode(truths, centres), centres), truths, atol=1e-5)
    assert np.isfinite(decode(np.full((50, 4), 1e6, np.float32), centres)).all()


def test_matching_by_hand() -> None:
    grid = DefaultBoxes((10, 10), ((1, 2),), (1.0, 1.0), ((),))  # two boxes of 1x1 around 0.25 and 0.75
    assert np.allclose(corners(grid.centres), [[-0.25, 0, 0.75, 1], [0.25, 0, 1.25, 1]])
    both = np.array([[0, 0, 1, 1], [0, 0, 0.9, 1]], np.float32)
    # The second overlaps box 0 by 0.75 / 1.15, the first both by 0.75 / 1.25: so the second has box 0, the first box 1.
    assert match(both, grid).tolist() == [1, 0]
    assert match(both[1:], grid, least=0.5).tolist() == [0, 0]  # and box 1, at 0.65 / 1.25
    assert match(both[1:], grid, least=0.6).tolist() == [0, -1]
    assert match(np.zeros((0, 4), np.float32), grid).tolist() == [-1, -1]
    tiny = np.array([[0.5, 0.5, 0.51, 0.51]], np.float32)
    assert sorted(match(tiny, grid).tolist()) == [-1, 0]
    assert match(np.repeat(both[:1], 3, 0), grid, least=0.99).tolist() == [0, 1]  # more truths than boxes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.floats(0.2, 0.8), st.booleans())
def test_a_batch_is_matched_as_one_by_one(seed: int, count: int, least: float, crowded: bool) -> None:
    rng = np.random.default_rng(seed)
    truths = np.zeros((3, count, 4), np.float32)
    real = np.zeros((3, count), bool)
    for image, m in enumerate((0, count, count // 2)):
        truths[image, :m], real[image, :m] = random_boxes(rng, m), True
        if crowded and m > 1:
            truths[image, :m] = truths[image, 0] + rng.choice([0, 0.01], (m, 1)).astype(np.float32)
    got = matched_truths(
        torch.from_numpy(truths), torch.from_numpy(real), torch.from_numpy(SMALL.centres), least
    ).numpy()
    for image in range(3):
        expected = match(truths[image][real[image]], SMALL, least=least)
        owner = got[image]
        best = intersection_over_union(truths[image], corners(SMALL.centres))
        same = owner == expected
        tied = [abs(best[a, i] - best[b, i]) < 1e-6 for i, (a, b) in enumerate(zip(owner, expected, strict=True))]
        assert crowded or same.all()
        assert (same | np.array(tied) | (owner < 0) | (expected < 0)).all()
        assert len(set(owner[owner >= 0])) == len(set(expected[expected >= 0]))


# ---- suppression and detections


def plain_suppression(boxes: np.ndarray, scores: np.ndarray, most: float, top: int) -> list[int]:
    left, kept = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))[:top], list[int]()
    while left:
        kept.append(left[0])
        left = [i for i in left[1:] if overlap(boxes[i], boxes[kept[-1]]) <= most]
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0.1, 0.9), st.integers(1, 50))
def test_suppression_is_that_of_loops(seed: int, count: int, most: float, top: int) -> None:
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, count), np.round(rng.random(count), 1).astype(np.float32)
    got = suppress(boxes, scores, most=most, top=top).tolist()
    assert got == plain_suppression(boxes.astype(np.float64), scores, most, top)


def test_boxes_that_overlap_by_just_as_much_stay() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 0.5, 1]], np.float32)  # halves of the first
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert suppress(boxes, scores, most=0.5).tolist() == [0, 1, 2]
    assert suppress(boxes, scores, most=0.49).tolist() == [0]
    assert suppress(boxes[:2], scores[:2], most=0.51).tolist() == [0, 1]


def maps_for(boxes: DefaultBoxes, classes: int, rng: np.random.Generator, n: int = 1) -> tuple[list, list]:
    shapes = list(zip(boxes.per_pixel, boxes.sizes, strict=True))
    out = [[rng.standard_normal((n, a * k, *s)).astype(np.float32) for a, s in shapes] for k in (classes + 1, 4)]
    return out[0], out[1]


def test_detections_are_those_of_loops() -> None:
    rng = np.random.default_rng(3)
    class_maps, box_maps = maps_for(SMALL, 3, rng, n=2)
    got = detections(class_maps, box_maps, SMALL, threshold=0.3, most=0.4, top=9, keep=12)
    for image in range(2):
        found = list[list[float]]()
        logits, offsets, number = list[np.ndarray](), list[np.ndarray](), 0
        for k, b, (h, w), a in zip(class_maps, box_maps, SMALL.sizes, SMALL.per_pixel, strict=True):
            for y, x, i in product(range(h), range(w), range(a)):
                logits.append(k[image, 4 * i : 4 * i + 4, y, x].astype(np.float64))
                offsets.append(b[image, 4 * i : 4 * i + 4, y, x].astype(np.float64))
        scores = np.array([np.exp(v) / np.exp(v).sum() for v in logits])
        places = []
        for o, (cx, cy, w, h) in zip(offsets, SMALL.centres.astype(np.float64), strict=True):
            x, y = cx + 0.1 * o[0] * w, cy + 0.1 * o[1] * h
            w, h = w * math.exp(0.2 * o[2]), h * math.exp(0.2 * o[3])
            places.append([min(max(v, 0), 1) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)])
        for c in (1, 2, 3):
            chosen = [i for i in range(len(SMALL)) if scores[i, c] >= 0.3]
            kept = plain_suppression(np.array(places)[chosen], scores[chosen, c], 0.4, 9)
            found += [[*places[chosen[i]], scores[chosen[i], c], c] for i in kept]
            number += len(kept)
        expected = sorted(found, key=lambda row: -row[4])[:12]
        assert 0 < len(expected) < number and np.allclose(got[image], expected, atol=1e-5)
        assert got[image].dtype == np.float32


def test_nothing_found_is_an_empty_array() -> None:
    class_maps, box_maps = maps_for(SMALL, 2, np.random.default_rng(0))
    assert [d.shape for d in detections(class_maps, box_maps, SMALL, threshold=1.0)] == [(0, 6)]


def test_maps_of_other_boxes_are_refused() -> None:
    class_maps, box_maps = maps_for(SMALL, 3, np.random.default_rng(0))
    for c, b in ((class_maps[:1], box_maps), (box_maps, box_maps), (class_maps[::-1], box_maps[::-1])):
        if c is not box_maps:
            with pytest.raises(InputError, match="detections: "):
                detections(c, b, SMALL)
    with pytest.raises(InputError, match="map 1 has 2 default boxes at 2x2"):
        detections([class_maps[0], class_maps[1][:, :, :1]], box_maps, SMALL)


def test_an_image_of_ssd300_is_read_in_time() -> None:
    boxes = DefaultBoxes(
        (300, 300), tuple((n, n) for n in (38, 19, 10, 5, 3, 1)), linear_scales(6),
        tuple(usual_ratios(n) for n in (4, 6, 6, 6, 4, 4)),
    )  # fmt: skip
    class_maps, box_maps = maps_for(boxes, 20, np.random.default_rng(0))
    detections(class_maps, box_maps, boxes)
    spent = []
    for _ in range(5):
        start = time.process_time()
        (found,) = detections(class_maps, box_maps, boxes)
        spent.append(time.process_time() - start)
    assert found.shape == (200, 6) and min(spent) < 0.1  # about 20 ms on a processor of 2020 that does nothing else


# ---- average precision


def truth_rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 5)


def found_rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 6)


def test_average_precision_by_hand() -> None:
    """Two pictures, three truths; right, wrong (a second one of the same), right, wrong (too far), and one not found.

    Precision at recall: 1 at 1/3, 2/3 at 2/3. Area: 1/3 + 2/9 = 5/9. Eleven points: 1 at 0 .. 0.3, 2/3 at 0.4 .. 0.6.
    """
    truths = [truth_rows((0, 0, 0.2, 0.2, 1), (0.5, 0.5, 0.9, 0.9, 1)), truth_rows((0.1, 0.1, 0.5, 0.5, 1))]
    found = [
        found_rows((0, 0, 0.2, 0.2, 0.9, 1), (0, 0, 0.2, 0.19, 0.8, 1), (0.3, 0.3, 0.6, 0.6, 0.6, 1)),
        found_rows((0.1, 0.1, 0.5, 0.4, 0.7, 1)),
    ]
    assert np.allclose(average_precision(found, truths, classes=1), 5 / 9)
    assert np.allclose(average_precision(found, truths, classes=1, eleven_points=True), (4 + 3 * 2 / 3) / 11)
    two = average_precision(found, truths, classes=2, thresholds=(0.5, 0.76))  # then the last one is too far
    assert np.allclose(two, [[5 / 9, np.nan], [1 / 3, np.nan]], equal_nan=True)
    assert np.isclose(mean_average_precision(two), (5 / 9 + 1 / 3) / 2)
    assert np.isnan(mean_average_precision(two[:, 1:]))


def test_recall_of_an_eleventh_is_reached_exactly() -> None:
    """Three of ten found: 0.3, which is not 0.1 + 0.1 + 0.1 in floating point."""
    truths = [truth_rows(*((i / 10, 0, i / 10 + 0.05, 1, 1) for i in range(10)))]
    found = [found_rows(*((i / 10, 0, i / 10 + 0.05, 1, 1 - i / 10, 1) for i in range(3)))]
    assert np.isclose(average_precision(found, truths, classes=1, eleven_points=True)[0, 0], 4 / 11)


def test_difficult_truths_count_neither_way() -> None:
    truths = [truth_rows((0, 0, 0.4, 0.4, 1), (0.5, 0.5, 1, 1, 1))]
    hard = [np.array([True, False])]
    found = [found_rows((0, 0, 0.4, 0.4, 0.9, 1), (0, 0, 0.4, 0.41, 0.8, 1), (0.5, 0.5, 1, 1, 0.7, 1))]
    assert average_precision(found, truths, classes=1, difficult=hard)[0, 0] == 1
    assert np.isclose(average_precision(found, truths, classes=1)[0, 0], 0.5 + 0.5 * 2 / 3)
    assert np.isnan(average_precision(found, truths, classes=1, difficult=[np.array([True, True])])[0, 0])


def test_an_overlap_of_just_the_threshold_is_enough() -> None:
    truths, found = [truth_rows((0, 0, 1, 1, 1))], [found_rows((0, 0, 1, 0.5, 0.9, 1))]
    got = average_precision(found, truths, classes=1, thresholds=(0.49, 0.5, 0.51))
    assert got.tolist() == [[1], [1], [0]]


def test_what_overlaps_a_found_truth_most_is_wrong_though_another_is_free() -> None:
    """As the development kit has it: the truth of largest overlap decides, found or not."""
    truths = [truth_rows((0, 0, 1, 0.5, 1), (0, 0, 1, 0.6, 1))]
    found = [found_rows((0, 0, 1, 0.5, 0.9, 1), (0, 0, 1, 0.52, 0.8, 1))]
    assert average_precision(found, truths, classes=1)[0, 0] == 0.5


def devkit(found: list, truths: list, hard: list, number: int, threshold: float, eleven: bool) -> float:
    """The development kits' evaluation, loop by loop."""
    rows = [(float(d[4]), i, d) for i, part in enumerate(found) for d in part if d[5] == number]
    rows.sort(key=lambda row: -row[0])
    taken, flags = set[tuple[int, int]](), list[bool]()
    for _, image, d in rows:
        best, owner = -1.0, -1
        for j, t in enumerate(truths[image]):
            if t[4] == number and overlap(d.astype(float), t.astype(float)) > best:
                best, owner = overlap(d.astype(float), t.astype(float)), j
        if best >= threshold:
            if not hard[image][owner]:
                flags.append((image, owner) not in taken)
                taken.add((image, owner))
        else:
            flags.append(False)
    count = sum(
        int(t[4] == number and not h) for ts, hs in zip(truths, hard, strict=True) for t, h in zip(ts, hs, strict=True)
    )
    if not count:
        return math.nan
    points = [(sum(flags[: i + 1]), i + 1) for i in range(len(flags))]
    if eleven:
        return sum(max((h / n for h, n in points if 10 * h >= k * count), default=0) for k in range(11)) / 11
    return sum(max(h / n for h, n in points[i:]) for i, flag in enumerate(flags) if flag) / count


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.3, 0.5, 0.75]), st.booleans())
def test_average_precision_is_that_of_the_development_kit(
    seed: int, pictures: int, threshold: float, eleven: bool
) -> None:
    found, truths, hard = random_results(np.random.default_rng(seed), pictures)
    got = average_precision(found, truths, classes=3, difficult=hard, thresholds=(0.1, threshold), eleven_points=eleven)
    expected = [devkit(found, truths, hard, c, threshold, eleven) for c in (1, 2, 3)]
    assert np.allclose(got[1], expected, equal_nan=True)


def random_results(rng: np.random.Generator, pictures: int) -> tuple[list, list, list]:
    """Detections near truths and elsewhere, of three classes; some truths difficult, some pictures empty."""
    found, truths, hard = [], [], []
    for _ in range(pictures):
        m, k = rng.integers(0, 7, 2)
        real = np.concatenate([random_boxes(rng, m), rng.integers(1, 4, (m, 1))], 1).astype(np.float32)
        near = real[rng.integers(0, m, k if m else 0), :4]
        places = np.concatenate([near + rng.uniform(-0.03, 0.03, near.shape), random_boxes(rng, k)])
        rows = [places, rng.random((len(places), 1)), rng.integers(1, 4, (len(places), 1))]
        found.append(np.concatenate(rows, 1).astype(np.float32))
        truths.append(real)
        hard.append(rng.random(m) < 0.2)
    return found, truths, hard


def test_results_that_do_not_fit_together_are_refused() -> None:
    found, truths, hard = random_results(np.random.default_rng(0), 3)
    with pytest.raises(InputError, match="detections of 2 pictures, truths of 3"):
        average_precision(found[:2], truths, classes=3, difficult=hard)
    with pytest.raises(InputError, match=r"a class is 1\.\.2"):
        average_precision(found, truths, classes=2)
    with pytest.raises(InputError, match="sizes of 1"):
        pytest.importorskip("pycocotools")
        coco_average_precision(found, truths, classes=3, sizes=np.ones((1, 2), np.int64))


def test_coco_by_hand_and_beside_the_area_under_the_curve() -> None:
    pytest.importorskip("pycocotools")
    truths = [truth_rows((0, 0, 0.5, 0.5, 1), (0.6, 0.6, 0.7, 0.7, 2)), truth_rows()]
    found = [found_rows((0, 0, 0.5, 0.4, 0.9, 1), (0.6, 0.6, 0.7, 0.7, 0.9, 2)), found_rows((0, 0, 0.1, 0.1, 0.95, 2))]
    sizes = np.full((2, 2), 200)
    scores = coco_average_precision(found, truths, classes=2, sizes=sizes)
    assert tuple(scores) == COCO_FIGURES
    # Class 1 overlaps by 0.8: right at 7 of 10 thresholds. Class 2 has a better wrong one: precision 1/2.
    assert np.isclose(scores["ap"], (0.7 + 0.5) / 2, atol=1e-3) and np.isclose(scores["ap50"], 0.75, atol=1e-3)
    assert scores["ap_medium"] == -1 and np.isclose(scores["ap_small"], 0.5, atol=1e-3)
    assert np.isclose(scores["ap_large"], 0.7, atol=1e-3)  # 100x100 pixels
    crowd = [np.array([True, False]), np.zeros(0, bool)]
    assert np.isclose(coco_average_precision(found, truths, classes=2, sizes=sizes, crowd=crowd)["ap"], 0.5, atol=1e-3)


def test_coco_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(InputError, match="pip install pycocotools"):
        coco_average_precision([], [], classes=1, sizes=np.zeros((0, 2), np.int64))


# ---- the loss


class Fixed(nn.Module):
    """Heads that are parameters."""

    def __init__(self, boxes: DefaultBoxes, classes: int, n: int, seed: int = 0) -> None:
        super().__init__()
        maps = maps_for(boxes, classes, np.random.default_rng(seed), n)
        self.parts = nn.ModuleList(nn.ParameterList(torch.from_numpy(m) for m in part) for part in maps)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        classes, places = ([p[: len(x)] for p in part] for part in self.parts)  # type: ignore[attr-defined]
        return classes, places


def padded(rows: list[np.ndarray]) -> Tensor:
    out = np.zeros((len(rows), max([1, *map(len, rows)]), 5), np.float32)
    for target, part in zip(out, rows, strict=True):
        target[: len(part)] = part
    return torch.from_numpy(out)


def by_loops(
    logits: np.ndarray, offsets: np.ndarray, rows: list[np.ndarray], negatives: int
) -> tuple[float, float, np.ndarray]:
    """Loss, share of right answers and which boxes count."""
    total, positives = 0.0, 0
    counted = np.zeros(logits.shape[:2], bool)
    right = []
    for image, truths in enumerate(rows):
        owner = match(truths[:, :4], SMALL)
        loss = np.log(np.exp(logits[image]).sum(1, keepdims=True)) - logits[image]
        mine = [i for i in range(len(SMALL)) if owner[i] >= 0]
        others = sorted((i for i in range(len(SMALL)) if owner[i] < 0), key=lambda i: -loss[i, 0])
        for i in mine:
            truth = truths[owner[i]]
            total += loss[i, int(truth[4])]
            right.append(logits[image, i].argmax() == truth[4])
            for d in np.abs(offsets[image, i] - encode(truth[:4], SMALL.centres[i])):
                total += 0.5 * d * d if d < 1 else d - 0.5
        others = others[: negatives * max(1, len(mine))]
        total += sum(loss[i, 0] for i in others)
        right += [logits[image, i].argmax() == 0 for i in others]
        counted[image, mine + others] = True
        positives += len(mine)
    return total / max(1, positives), float(np.mean(right)), counted


def some_truths(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.concatenate([random_boxes(rng, m), rng.integers(1, 4, (m, 1))], 1).astype(np.float32) for m in (4, 0, 2)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("negatives", [0, 1, 3, 100])
def test_the_loss_is_that_of_loops(seed: int, negatives: int) -> None:
    rows, network = some_truths(seed), Fixed(SMALL, 3, 3, seed)
    objective = Multibox(SMALL, negatives=negatives)
    loss, right = objective(network, torch.zeros(3, 3, 48, 64), padded(rows), 0.0)
    logits, offsets = (t.detach().double().numpy() for t in objective.flattened(network(torch.zeros(3))))
    expected, share, counted = by_loops(logits, offsets, rows, negatives)
    assert np.isclose(loss.item(), expected, rtol=1e-4) and np.isclose(right.item(), share)
    loss.backward()
    grad = torch.cat([p.grad.permute(0, 2, 3, 1).reshape(3, -1, 4) for p in network.parts[0]], 1)  # type: ignore[union-attr]
    assert np.array_equal((grad.abs().sum(2) > 0).numpy(), counted)


@pytest.mark.parametrize("teacher", [False, True])
def test_no_boxes_in_a_batch(teacher: bool) -> None:
    network = Fixed(SMALL, 3, 2)
    objective = Multibox(SMALL, teacher=Fixed(SMALL, 3, 2, 1) if teacher else None)
    loss, right = objective(network, torch.zeros(2, 3, 48, 64), torch.zeros(2, 1, 5), 0.5)
    loss.backward()
    assert math.isfinite(loss.item()) and 0 <= right.item() <= 1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    assert all(not p.grad.any() for p in network.parts[1])  # type: ignore[union-attr, attr-defined]


def test_a_teacher_is_learned_where_boxes_count() -> None:
    rows, network, teacher = some_truths(1), Fixed(SMALL, 3, 3, 1), Fixed(SMALL, 3, 3, 2)
    x, targets = torch.zeros(3, 3, 48, 64), padded(rows)
    plain, _ = Multibox(SMALL)(network, x, targets, 0.0)
    objective = Multibox(SMALL, teacher=teacher, share=(0.0, 1.0), temperature=3.0)
    assert torch.equal(objective(network, x, targets, 0.0)[0], plain)
    logits, offsets = (t.detach() for t in objective.flattened(network(x)))
    soft, places = (t.detach() for t in objective.flattened(teacher(x)))
    classes, _ = objective.wanted(targets)
    counted, mine = objective.counted(logits, classes), classes > 0
    p, q = (soft[counted] / 3).softmax(1), (logits[counted] / 3).softmax(1)
    learned = 9 * (p * (p / q).log()).sum() + F.smooth_l1_loss(offsets[mine], places[mine], reduction="sum")
    got = [objective(network, x, targets, done)[0].item() for done in (0.25, 1.0)]
    assert np.allclose(got, [0.75 * plain.item() + 0.25 * (learned / mine.sum()).item(), (learned / mine.sum()).item()])
    assert not list(objective.parameters()) and not objective.state_dict()


@pytest.mark.parametrize(
    "options", [{"least": 0.0}, {"negatives": -1.0}, {"weight": -1.0}, {"share": 2.0}, {"temperature": 0.0}]
)
def test_an_objective_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="made up: "):
        Multibox(SMALL, label="made up", **options)  # type: ignore[arg-type]


def test_heads_of_other_boxes_are_refused() -> None:
    with pytest.raises(InputError, match="56 default boxes, but the heads are for 48"):
        classes, places = Fixed(SMALL, 3, 1)(torch.zeros(1))
        Multibox(SMALL).flattened((classes[:1], places[:1]))


# ---- learning and evaluating


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> BoxSet:
    """Pictures of one bright and one dark square on grey."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    paths, boxes = list[str](), list[np.ndarray]()
    for number in range(48):
        pixels, rows = np.full((48, 64, 3), 128, np.uint8), []
        for c in (1, 2):
            side = int(rng.integers(12, 20))
            x, y = int(rng.integers(32 * (c - 1), 32 * c - side + 1)), int(rng.integers(0, 48 - side))
            pixels[y : y + side, x : x + side] = 255 * (c - 1)
            rows.append([x / 64, y / 48, (x + side) / 64, (y + side) / 48, c])
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
        boxes.append(np.array(rows, np.float32))
    plain = tuple(np.zeros(2, bool) for _ in paths)
    return BoxSet(
        tuple(paths), tuple(boxes), plain, np.full((48, 2), (48, 64)), ("dark", "bright"), (48, 64), "squares"
    )


@pytest.fixture(scope="module")
def finder(squares: BoxSet) -> SSD:
    """A small network that has learned to find the squares."""
    torch.manual_seed(0)
    network = models.ssd(
        trunk="vgg_small", num_classes=3, width=1 / 16, image_size=(48, 64), extras=0, boxes=[4], scales=[0.35, 0.5]
    )
    how = Augmentation(colour=False, expand=1, crop=1)
    batches = BoxBatches(squares, size=8, augmentation=how, seed=1)
    history = Training(network, batches, Settings(epochs=8, lr=0.02), Multibox(network.default_boxes)).run()
    assert history[-1].loss < 0.4 * history[0].loss and history[-1].accuracy > 0.85
    return network


def test_a_small_network_learns_to_find_squares(squares: BoxSet, finder: SSD) -> None:
    test, boxes = BoxBatches(squares, size=20, training=False), finder.default_boxes
    seen = list[int]()
    scores = evaluate(finder, test, boxes, objective=Multibox(boxes), progress=seen.append)
    assert list(scores) == ["map", "map_2007", "ap_dark", "ap_bright", "loss"] and seen == [20, 40, 48]
    assert scores["map"] > 0.9 and np.isclose(scores["map"], (scores["ap_dark"] + scores["ap_bright"]) / 2)
    pytest.importorskip("pycocotools")
    assert np.isclose(evaluate(finder, test, boxes, coco=True)["ap50"], scores["map"], atol=0.01)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_the_engine_finds_what_the_low_bit_network_finds(squares: BoxSet, finder: SSD, tmp_path: Path) -> None:
    """From uint8 images, with nothing but the file."""
    test = BoxBatches(squares, size=20, training=False)
    images = next(iter(test))[0]
    q = bb.quantize(finder, "lsq:w4-a4").train()
    with torch.no_grad():
        q(images)
    bb.calibrate(q.eval(), [images])
    info = {"default_boxes": finder.default_boxes.to_json()}
    bb.compile(q, images[:1], info=info, mean=squares.mean, std=squares.std).save(tmp_path / "finder.bb")
    program = bb.load(tmp_path / "finder.bb")
    boxes = DefaultBoxes.from_json(program.info["default_boxes"])
    pixels = BoxBatches(squares, size=48, training=False)
    pixels.pixels = True
    scores, engines = evaluate(q, test, finder.default_boxes), evaluate(bb.Engine(program), pixels, boxes)
    assert boxes == finder.default_boxes and scores["map"] > 0.5
    assert np.allclose([engines[k] for k in scores], [scores[k] for k in scores], atol=1e-3)


def test_what_cannot_be_evaluated_is_refused(squares: BoxSet) -> None:
    network = Fixed(SMALL, 2, 48)
    for batches in (BoxBatches(squares, size=8), BoxBatches(squares, size=8, training=False, part=(0, 2))):
        with pytest.raises(InputError, match="of the whole set, in its order"):
            evaluate(network, batches, SMALL)
    nothing = replace(
        squares, boxes=tuple(b[:0] for b in squares.boxes), difficult=tuple(d[:0] for d in squares.difficult)
    )
    with pytest.raises(InputError, match="squares: there are no objects to find"):
        evaluate(network, BoxBatches(nothing, size=48, training=False), SMALL)


def test_decoding_needs_no_torch() -> None:
    modules = "bitbranch.tasks.boxes, bitbranch.tasks.average_precision, bitbranch.data.pictures"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
