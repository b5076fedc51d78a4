"""Masks and their figures, the objective and the score of whole networks: by hand, and against slow plain loops."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import bitbranch as bb
from bitbranch import InputError, models
from bitbranch.chains import Graph
from bitbranch.layers import QuantizedLayer
from bitbranch.models.blocks import enlarged
from bitbranch.models.deeplab import dilate
from bitbranch.tasks.segmentation import (
    IGNORED,
    Confusion,
    coloured,
    masks,
    median_frequency,
    palette,
    resized,
    restored,
)
from bitbranch.training.loop import Training
from bitbranch.training.objectives import Classification
from bitbranch.training.optimization import Settings
from bitbranch.training.pixels import Pixels, evaluate
from bitbranch.twostep import LayerReport, convert

TRUTH = np.array([[[0, 0, 0, 1], [1, 1, IGNORED, 2]]], np.uint8)
FOUND = np.array([[[0, 0, 1, 1], [1, 0, 3, 0]]], np.uint8)


def test_it_needs_no_torch() -> None:
    code = "import sys, bitbranch.tasks.segmentation, bitbranch.data.masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- masks


def test_the_largest_logit_wins_and_the_lowest_class_of_equals() -> None:
    logits = np.zeros((1, 3, 1, 4), np.float32)
    logits[0, :, 0] = [[5, 1, 2, 7], [5, 3, 1, 0], [4, 3, 9, 7]]
    found = masks(logits)
    assert found.dtype == np.uint8 and found.tolist() == [[[0, 1, 2, 0]]]
    assert masks(logits, (2, 8)).tolist() == [[[0, 0, 1, 1, 2, 2, 0, 0]] * 2]
    for wrong in (logits[0], np.zeros((1, 256, 1, 1)), np.zeros((1, 0, 1, 1))):
        with pytest.raises(InputError, match=r"logits must be \[N, C, H, W\]"):
            masks(wrong)


def test_resizing_takes_the_pixel_in_which_a_centre_lies() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    assert resized(labels, (3, 4)) is labels
    assert resized(labels, (1, 2)).tolist() == [[[5, 7]]]  # rows' centre 1.5; columns' centres 1 and 3
    for size in ((7, 3), (5, 9), (2, 11)):
        rows = [int((i + 0.5) * 3 / size[0]) for i in range(size[0])]
        columns = [int((i + 0.5) * 4 / size[1]) for i in range(size[1])]
        assert resized(labels[0], size).tolist() == [[labels[0, r, c] for c in columns] for r in rows]
    assert restored(labels, (2, 2), (2, 4)).tolist() == [[[0, 0, 1, 1], [4, 4, 5, 5]]]


def test_the_palette_is_vocs() -> None:
    assert palette(6) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128))
    assert palette(21)[8] == (64, 0, 0) and palette(21)[20] == (0, 64, 128) and len(set(palette(256))) == 256
    shown = coloured(np.array([[1, IGNORED]], np.uint8), palette(3), ignored=(9, 8, 7))
    assert shown.dtype == np.uint8 and shown.tolist() == [[[128, 0, 0], [9, 8, 7]]]


# ---- figures


def test_figures_by_hand() -> None:
    """Seven labelled pixels: class 0 has 2 of 3 right, 1 has 2 of 3, 2 none of 1; 3 is found where nothing counts."""
    confusion = Confusion(5)
    confusion.add(TRUTH, FOUND)
    assert confusion.matrix.tolist() == [
        [2, 1, 0, 0, 0],
        [1, 2, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    # intersections 2, 2, 0; unions 3 + 4 - 2, 3 + 3 - 2 and 1; classes 3 and 4 are in neither
    np.testing.assert_array_equal(confusion.iou, [2 / 5, 2 / 4, 0, np.nan, np.nan])
    assert confusion.miou == pytest.approx((0.4 + 0.5 + 0) / 3)
    assert confusion.pixel_accuracy == pytest.approx(4 / 7)
    assert confusion.class_accuracy == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    figures = confusion.figures(("a", "b", "c", "d", "e"))
    assert list(figures) == ["miou", "pixel_accuracy", "class_accuracy", "iou a", "iou b", "iou c"]
    assert figures["iou b"] == 0.5


def test_a_class_that_is_only_found_counts_in_miou_alone() -> None:
    confusion = Confusion(2)
    confusion.add(np.zeros((1, 4)), np.array([[0, 0, 0, 1]]))
    assert confusion.iou.tolist() == [0.75, 0] and confusion.miou == 0.375
    assert confusion.class_accuracy == confusion.pixel_accuracy == 0.75


def test_nothing_labelled_is_no_number() -> None:
    confusion = Confusion(2)
    confusion.add(np.full((2, 2), IGNORED), np.zeros((2, 2), int))
    assert np.isnan([confusion.miou, confusion.pixel_accuracy, confusion.class_accuracy]).all()


@pytest.mark.parametrize(
    ("truth", "found", "text"),
    [
        ([[0, 1]], [[0], [1]], r"masks of \[2, 1\] cannot be compared with a truth of \[1, 2\]"),
        ([[0, 3]], [[0, 1]], r"labels of 0\.\.3 in a mask of 3 classes"),
        ([[0, 1]], [[-1, 1]], r"labels of -1\.\.1"),
    ],
)
def test_masks_that_do_not_fit_are_refused(truth: list[list[int]], found: list[list[int]], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Confusion(3).add(np.array(truth), np.array(found))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_figures_equal_plain_loops_however_batches_are_cut(classes: int, batches: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    confusion, pairs = Confusion(classes, ignored=7), []
    for _ in range(batches):
        truth = rng.choice([*range(classes), 7], (int(rng.integers(0, 4)), 3, 2)).astype(np.uint8)
        found = rng.integers(0, classes, truth.shape).astype(np.int64)
        confusion.add(truth, found)
        pairs += list(zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True))
    pairs = [(t, f) for t, f in pairs if t != 7]
    ious, recalls = [], []
    for c in range(classes):
        both = sum(t == f == c for t, f in pairs)
        either = sum(c in (t, f) for t, f in pairs)
        true = sum(t == c for t, _ in pairs)
        assert either == 0 or confusion.iou[c] == both / either
        ious += [both / either] if either else []
        recalls += [both / true] if true else []
    if pairs:
        assert confusion.miou == pytest.approx(sum(ious) / len(ious))
        assert confusion.class_accuracy == pytest.approx(sum(recalls) / len(recalls))
        assert confusion.pixel_accuracy == sum(t == f for t, f in pairs) / len(pairs)


def test_median_frequency_weights_by_hand() -> None:
    """Class 0: 6 of 8 pixels; class 1: 1 of the 4 in the one mask that has it; class 2: 1 of 4; class 3 nowhere."""
    given = [np.array([[0, 0], [0, 1]]), np.array([[0, 0, 0], [2, IGNORED, IGNORED]])]
    assert median_frequency(given, 4).tolist() == [1 / 3, 1, 1, 1]
    np.testing.assert_allclose(median_frequency(given, 4, power=0.5), [3**-0.5, 1, 1, 1])
    assert median_frequency([], 2).tolist() == [1, 1]
    with pytest.raises(InputError, match="label 5 in a mask of 4 classes"):
        median_frequency([np.array([[5]])], 4)


# ---- the objective


class Constant(nn.Module):
    """A network whose answer is a parameter."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 2, IGNORED], (2, 3, 4))
    return torch.from_numpy(rng.normal(size=(2, 3, 3, 4)).astype(np.float32)), torch.from_numpy(labels)


def by_hand(logits: Tensor, labels: Tensor, weights: npt.ArrayLike) -> float:
    total = weight = 0.0
    for n, y, x in np.ndindex(*labels.shape):
        if (label := int(labels[n, y, x])) != IGNORED:
            probabilities = np.exp(logits[n, :, y, x].double().numpy())
            w = np.asarray(weights)[label]
            total -= w * np.log(probabilities[label] / probabilities.sum())
            weight += w
    return total / weight


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.25)])
def test_cross_entropy_of_labelled_pixels(weights: tuple[float, ...] | None) -> None:
    logits, labels = case()
    model = Constant(logits)
    loss, right = Pixels(weights=weights)(model, torch.zeros(2, 1), labels, 0.0)
    assert loss.item() == pytest.approx(by_hand(logits, labels, weights or (1, 1, 1)), rel=1e-6)
    assert right.item() == (logits.argmax(1) == labels).sum().item() / (labels != IGNORED).sum().item()
    loss.backward()
    assert not model.logits.grad.movedim(1, -1)[labels == IGNORED].any()  # type: ignore[union-attr]
    assert model.logits.grad.movedim(1, -1)[labels != IGNORED].any(1).all()  # type: ignore[union-attr]


def test_a_batch_without_labels_costs_nothing() -> None:
    logits, labels = case()
    model = Constant(logits)
    for teacher in (None, Constant(logits + 1)):
        loss, right = Pixels(teacher=teacher)(model, torch.zeros(2, 1), torch.full_like(labels, IGNORED), 0.0)
        loss.backward()
        assert loss.item() == right.item() == 0 and not model.logits.grad.any()  # type: ignore[union-attr]


def test_a_teacher_is_followed_on_labelled_pixels() -> None:
    logits, labels = case()
    taught, _ = case(1)
    objective = Pixels(teacher=Constant(taught), share=(0.8, 0.4), temperature=2.0)
    got, _ = objective(Constant(logits), torch.zeros(2, 1), labels, 0.5)
    p, q = (F.softmax(x.double() / 2, 1) for x in (taught, logits))
    divergence = (p * (p / q).log()).sum(1)[labels != IGNORED].mean().item()
    assert got.item() == pytest.approx(0.4 * by_hand(logits, labels, (1, 1, 1)) + 0.6 * 4 * divergence, rel=1e-5)


def test_one_pixel_is_a_classification() -> None:
    logits, _ = case()
    vectors, labels = logits.reshape(-1, 3), torch.arange(24) % 3
    settings = {"teacher": Constant(vectors.flip(0)), "share": 0.3, "smoothing": 0.1}
    expected = Classification(**settings)(Constant(vectors), torch.zeros(24, 1), labels, 0.0)
    settings["teacher"] = Constant(vectors.flip(0)[..., None, None])
    got = Pixels(**settings)(Constant(vectors[..., None, None]), torch.zeros(24, 1), labels[:, None, None], 0.0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"weights": (1, -1)}, "weights must be finite"), ({"weights": (np.nan,)}, "finite"), ({"share": 2.0}, "0..1")],
)
def test_wrong_objectives_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Pixels(**options)  # type: ignore[arg-type]


# ---- whole networks


def striped(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Noisy images, the class of whose pixels is their brightest channel; a row is ignored."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 3, (count, 1, -(-size[1] // 16))), 16, axis=2)[..., : size[1]]
    labels = np.repeat(labels, size[0], axis=1)
    images = np.eye(3)[labels].transpose(0, 3, 1, 2) + rng.normal(0, 0.2, (count, 3, *size))
    labels[:, 0] = IGNORED
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


def test_float_low_bit_and_engine_are_scored_by_the_same_code() -> None:
    images, labels = striped(8, (21, 42))
    batches = [(images[i : i + 4], labels[i : i + 4]) for i in range(0, 8, 4)]
    torch.manual_seed(0)
    network = models.fcn(width=1 / 8, num_classes=3, stride=4)
    before = evaluate(network, batches, "abc")
    assert network.training
    Training(network, batches, Settings(epochs=30, lr=1e-2), Pixels()).run()
    after = evaluate(network, batches, "abc")
    assert next(iter(after)) == "miou" and after["miou"] > 0.7 > 0.5 > before["miou"], (before, after)
    q = bb.quantize(network, "lsq:w4-a4").train()
    bb.calibrate(q, [images])
    Training(q, batches, Settings(epochs=6, lr=1e-3), Pixels(teacher=network)).run()
    scores = evaluate(q, batches, "abc")
    program = bb.compile(q, images[:1])
    engine = bb.Engine(program)
    result = bb.verify(q, program, [images[:4]], engines=[engine])
    assert [check.values.differing for check in result.engines] == [0]
    found = evaluate(engine, batches, "abc")
    assert found == evaluate(program.reference, batches, "abc")
    assert scores["miou"] > 0.6 and found["miou"] == pytest.approx(scores["miou"], abs=0.01)


def test_logits_of_another_size_give_masks_of_the_truths() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [1, 1, 0, IGNORED]]])
    logits = np.zeros((1, 2, 2, 2), np.float32)
    logits[0, 1] = [[-1, 1], [1, -1]]
    assert evaluate(lambda _: logits, [(torch.zeros(1, 3, 2, 4), labels)], "ab")["miou"] == 1
    with pytest.raises(InputError, match="no labelled pixels"):
        evaluate(lambda _: logits, [(torch.zeros(1, 3, 2, 4), torch.full_like(labels, IGNORED))], "ab")


# ---- networks


@pytest.mark.parametrize("size", [(180, 240), (45, 61), (23, 11), (33, 64), (1, 7)])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_maps_come_back_to_the_images_size(size: tuple[int, int], steps: int) -> None:
    small = list(size)
    for _ in range(steps):
        small = [(n + 1) // 2 for n in small]
    x = torch.randn(1, 2, *small)
    y = enlarged(x, size)
    assert y.shape[2:] == size and y.min() >= x.min() - 1e-5 and y.max() <= x.max() + 1e-5
    torch.testing.assert_close(enlarged(torch.ones(1, 1, *small), size), torch.ones(1, 1, *size))


def test_enlarged_by_whole_factors_and_between_points() -> None:
    x = torch.randn(1, 2, 6, 5)
    torch.testing.assert_close(enlarged(x, (24, 20)), F.interpolate(x, scale_factor=4, mode="bilinear"))
    torch.testing.assert_close(
        enlarged(x, (11, 9)), F.interpolate(x, size=(11, 9), mode="bilinear", align_corners=True)
    )
    rows = F.interpolate(x, scale_factor=(1, 2), mode="bilinear")
    torch.testing.assert_close(
        enlarged(x, (11, 10)), F.interpolate(rows, size=(11, 10), mode="bilinear", align_corners=True)
    )
    with pytest.raises(InputError, match=r"a map of \[6, 5\] does not come from \[13, 10\] by strides of 2"):
        enlarged(x, (13, 10))


def test_dilation_keeps_what_strides_computed() -> None:
    """Every other pixel of the dilated map is that of the strided one."""
    torch.manual_seed(0)
    network = models.resnet18(width=1 / 16).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        strided = network.maps(x)
        for output_stride, step in ((16, 2), (8, 4)):
            dilate(network, output_stride)
            dilated = network.maps(x)
            assert dilated[-1].shape[2:] == (96 // output_stride, 64 // output_stride)
            torch.testing.assert_close(dilated[-1][:, :, ::step, ::step], strided[-1])


NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "fcn": ("fcn", {"width": 1 / 8, "num_classes": 5, "stride": 4}),
    "fcn-mobilenet": ("fcn", {"width": 1 / 8, "num_classes": 5, "trunk": "mobilenet_v2"}),
    "deeplab": ("deeplab", {"width": 1 / 8, "num_classes": 5, "rates": (1, 2)}),
    "unet": ("unet", {"base": 4, "depth": 2, "num_classes": 5}),
    "unet-over-resnet18": ("trunk_unet", {"width": 1 / 8, "num_classes": 5}),
}


def trained(name: str, size: tuple[int, int], count: int = 4) -> tuple[nn.Module, Tensor]:
    """A network whose BatchNorms know the images."""
    torch.manual_seed(0)
    network, x = models.build(*NETWORKS[name]).train(), torch.randn(count, 3, *size)
    with torch.no_grad():
        for _ in range(4):
            network(x)
    return network.eval(), x


@pytest.mark.parametrize("name", NETWORKS)
def test_the_two_steps_find_their_layers(name: str) -> None:
    """Tracers follow the networks: each quantized layer is called once, and many have readers whose codes they make."""
    network, _ = trained(name, (32, 32))
    q = bb.quantize(network, "tsq:wt-a2")
    graph = Graph(q)
    calls = list(graph.calls(QuantizedLayer))
    assert len(calls) == sum(isinstance(m, QuantizedLayer) for m in q.modules())
    assert sum(bool(graph.chain(call).readers) for call in calls) > 0.25 * len(calls)


@pytest.mark.parametrize("name", ["unet", *(pytest.param(n, marks=pytest.mark.long) for n in NETWORKS if n != "unet")])
def test_both_steps_are_solved_and_run(name: str) -> None:
    network, x = trained(name, (16, 24) if name == "unet" else (35, 41))
    solved: list[LayerReport] = []
    q = convert(network, [(x, torch.zeros(len(x)))], "tsq:wt-a2", progress=None, on_layer=solved.append)
    inner = [m for m in q.modules() if isinstance(m, QuantizedLayer)][1:-1]
    assert len(solved) >= len(inner) and torch.isfinite(q(x)).all()
    program = bb.compile(q, x[:1])
    result = bb.verify(q, program, [x[:1]], engines=[bb.Engine(program)])
    assert [check.values.differing for check in result.engines] == [0], str(result)


@pytest.mark.long
@pytest.mark.parametrize("scheme", ["tsq:wt-a2", "mbn:w4-a4", "lsq:w2-a2"])
@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "unet"])
def test_camvids_size_and_odd_ones_in_the_engine(name: str, scheme: str) -> None:
    for size in ((180, 240), (77, 51)):
        network, x = trained(name, size, 2)
        q = bb.quantize(network, scheme)
        bb.calibrate(q, [x])
        program = bb.compile(q, x[:1])
        assert program.output_shapes == ((5, *size),)
        np.testing.assert_array_equal(bb.Engine(program)(x.numpy()), program.reference(x.numpy()))
