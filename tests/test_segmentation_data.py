"""Pictures with masks: the layouts that are read, what is wrong with files, and the batches made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bitbranch.data import mask_batches
from bitbranch.data.mask_batches import MaskBatches, recoloured, window
from bitbranch.data.masks import CAMVID, MaskSet, camvid, cityscapes, fitted, pairs, voc
from bitbranch.data.pictures import MEAN, STD
from bitbranch.errors import InputError
from bitbranch.tasks.segmentation import IGNORED, restored

Array = npt.NDArray[np.uint8]


def picture(seed: int = 0, height: int = 12, width: int = 16) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mask(seed: int = 0, height: int = 12, width: int = 16, labels: int = 3) -> Array:
    return np.random.default_rng(seed).integers(0, labels, (height, width), np.uint8)


def save(path: Path, array: Array, colours: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if colours:
        image.putpalette([*range(0, 256, 2), *range(1, 256, 2)] * 3)
    image.save(path)


def folder_of(folder: Path, count: int = 4, images: str = "train", masks: str = "trainannot") -> Path:
    for n in range(count):
        save(folder / images / f"p{n}.png", picture(n))
        save(folder / masks / f"p{n}.png", mask(n))
    return folder


# ---- layouts


@pytest.mark.parametrize(
    ("images", "masks"),
    [("train", "trainannot"), ("train/images", "train/masks"), ("images/train", "masks/train"), ("images", "masks")],
)
def test_pairs_in_folders(tmp_path: Path, images: str, masks: str) -> None:
    folder_of(tmp_path, 3, images, masks)
    (tmp_path / "classes.txt").write_text("sea\nland\n\nice\n")
    names = ["p0", "p1", "p2"]
    if images == "images":
        (tmp_path / "train.txt").write_text("p2\np0\n")
        names = ["p2", "p0"]
    found = pairs("train", tmp_path, size=(8, 8))
    assert [p.stem for p in found.paths] == [p.stem for p in found.masks] == names
    assert found.classes == ("sea", "land", "ice") and found.palette[1] == (128, 0, 0) and found.shape == (3, 8, 8)
    pixels, labels = found.pair(1)
    assert np.array_equal(pixels, picture(int(names[1][1]))) and np.array_equal(labels, mask(int(names[1][1])))
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsea\r\nland\nice\n")
    assert pairs("train", tmp_path, size=(8, 8)).classes == found.classes
    (tmp_path / "classes.txt").write_text("sea\nland\nsea\n")
    with pytest.raises(InputError, match=r"classes.txt: 'sea' is there more than once"):
        pairs("train", tmp_path)
    (tmp_path / "classes.txt").write_bytes("fl\u00e4che\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"classes.txt: is not UTF-8 \(byte 2\)"):
        pairs("train", tmp_path)
    (tmp_path / "classes.txt").write_text("sea\nland\nice\n")
    with pytest.raises(InputError, match="no split 'test'"):
        pairs("test", tmp_path)
    with pytest.raises(InputError, match="0 classes; expected 1 to 254"):
        pairs("train", tmp_path, classes=())
    with pytest.raises(InputError, match="split 'valid': expected 'train', 'val', 'test'"):
        pairs("valid", tmp_path)


def test_several_splits_are_joined_in_every_layout(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 5)):
        for n in (first, first + 1):
            save(tmp_path / f"{split}/p{n}.png", picture(n))
            save(tmp_path / f"{split}annot/p{n}.png", mask(n))
            save(tmp_path / f"JPEGImages/p{n}.jpg", picture(n))
            save(tmp_path / f"SegmentationClass/p{n}.png", mask(n), colours=True)
            save(tmp_path / f"leftImg8bit/{split}/ulm/p{n}_leftImg8bit.png", picture(n))
            save(tmp_path / f"gtFine/{split}/ulm/p{n}_gtFine_labelIds.png", np.full((12, 16), 7, np.uint8))
        lists = tmp_path / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text(f"p{first + 1}\np{first}\n")
    for read in (camvid, voc, cityscapes):
        one, other, both = (read(split, tmp_path) for split in ("val", "train", "val+train"))
        assert len(one) == len(other) == 2 and "val+train, 4 pictures" in both.source
        assert both.paths == one.paths + other.paths and both.masks == one.masks + other.masks
    with pytest.raises(InputError, match="split 'trial': expected"):
        camvid("train+trial", tmp_path)


def test_camvid_has_eleven_classes_and_void(tmp_path: Path) -> None:
    save(tmp_path / "val" / "a.png", picture())
    save(tmp_path / "valannot" / "a.png", mask(labels=12))
    found = camvid("test", tmp_path)  # val, where there is no test
    assert found.classes == tuple(name for name, _ in CAMVID) and len(found.palette) == 11
    assert np.array_equal(found.pair(0)[1], np.where(mask(labels=12) == 11, IGNORED, mask(labels=12)))


def test_voc_has_palettes_and_lists(tmp_path: Path) -> None:
    labels = mask(labels=21)
    labels[0] = 255
    for name in ("2007_1", "2007_2"):
        save(tmp_path / "JPEGImages" / f"{name}.jpg", picture())
        save(tmp_path / "SegmentationClass" / f"{name}.png", labels, colours=True)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_2\n")
    found = voc("test", tmp_path)
    assert len(found) == 1 and len(found.classes) == 21 and found.classes[15] == "person"
    assert found.palette[15] == (192, 128, 128)
    assert np.array_equal(found.pair(0)[1], labels)
    with pytest.raises(InputError, match=r"train\.txt: cannot be read"):
        voc("train", tmp_path)


def test_cityscapes_has_nineteen_of_34_labels(tmp_path: Path) -> None:
    labels = np.arange(36, dtype=np.uint8).reshape(6, 6)
    labels[5, 4:] = 255, 0
    save(tmp_path / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png", picture(0, 6, 6))
    save(tmp_path / "gtFine/val/ulm/ulm_1_gtFine_labelIds.png", labels)
    found = cityscapes("val", tmp_path)
    read = found.pair(0)[1].ravel()
    known = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))
    assert read.tolist() == [known.get(i, IGNORED) for i in labels.ravel().tolist()]
    assert found.classes[13] == "car" and len(found.classes) == len(found.palette) == 19
    with pytest.raises(InputError, match="no pictures leftImg8bit/train/CITY"):
        cityscapes("val+train", tmp_path)


PUBLISHED_CITYSCAPES = """
7 road 128 64 128; 8 sidewalk 244 35 232; 11 building 70 70 70; 12 wall 102 102 156; 13 fence 190 153 153;
17 pole 153 153 153; 19 traffic light 250 170 30; 20 traffic sign 220 220 0; 21 vegetation 107 142 35;
22 terrain 152 251 152; 23 sky 70 130 180; 24 person 220 20 60; 25 rider 255 0 0; 26 car 0 0 142; 27 truck 0 0 70;
28 bus 0 60 100; 31 train 0 80 100; 32 motorcycle 0 0 230; 33 bicycle 119 11 32
"""
"""Those that are evaluated in ``labels.py`` of cityscapesScripts, in the order of their train ids."""
PUBLISHED_CAMVID = """
0 sky 128 128 128; 1 building 128 0 0; 2 pole 192 192 128; 3 road 128 64 128; 4 pavement 60 40 222; 5 tree 128 128 0;
6 sign 192 128 128; 7 fence 64 64 128; 8 car 64 0 128; 9 pedestrian 64 64 0; 10 bicyclist 0 128 192
"""
"""SegNet's, whose masks these are."""
PUBLISHED_VOC = """
0 background 0 0 0; 1 aeroplane 128 0 0; 2 bicycle 0 128 0; 3 bird 128 128 0; 4 boat 0 0 128; 5 bottle 128 0 128;
6 bus 0 128 128; 7 car 128 128 128; 8 cat 64 0 0; 9 chair 192 0 0; 10 cow 64 128 0; 11 dining table 192 128 0;
12 dog 64 0 128; 13 horse 192 0 128; 14 motorbike 64 128 128; 15 person 192 128 128; 16 potted plant 0 64 0;
17 sheep 128 64 0; 18 sofa 0 192 0; 19 train 128 192 0; 20 tv monitor 0 64 128
"""
"""Of the development kit: the numbers in its masks and their colours."""


@pytest.mark.parametrize(
    ("read", "published", "image", "labelled"),
    [
        (cityscapes, PUBLISHED_CITYSCAPES, "leftImg8bit/val/a/a_leftImg8bit.png", "gtFine/val/a/a_gtFine_labelIds.png"),
        (camvid, PUBLISHED_CAMVID, "val/a.png", "valannot/a.png"),
        (voc, PUBLISHED_VOC, "JPEGImages/a.jpg", "SegmentationClass/a.png"),
    ],
    ids=["cityscapes", "camvid", "voc"],
)
def test_classes_are_the_published_ones(
    read: Callable[..., MaskSet], published: str, image: str, labelled: str, tmp_path: Path
) -> None:
    """Names, colours and numbers in the files."""
    rows = [row.split() for row in published.strip().split(";")]
    values = np.array([[int(row[0]) for row in rows]], np.uint8)
    save(tmp_path / image, picture(0, 1, len(rows)))
    save(tmp_path / labelled, values)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    found = read("val", tmp_path)
    assert list(found.classes) == [" ".join(row[1:-3]) for row in rows]
    assert [list(colour) for colour in found.palette] == [[int(part) for part in row[-3:]] for row in rows]
    assert found.pair(0)[1].tolist() == [list(range(len(rows)))]


def test_spread_and_take(tmp_path: Path) -> None:
    found = camvid("train", folder_of(tmp_path, 7))
    assert [p.stem for p in found.spread(3).paths] == ["p0", "p2", "p4"]
    assert len(found.spread(99)) == len(found) == 7 and len(found.spread(0)) == 0
    assert found.spread(3).source == f"{found.source}, 3 of them" and found.spread(7).source == found.source
    assert [p.stem for p in found.take([5, 1]).masks] == ["p5", "p1"]


# ---- what is wrong with files


def damage(folder: Path, how: str) -> tuple[Path, str]:
    """Spoil one of the pairs: the file that must be named, and what must be said of it."""
    image, labels = folder / "train" / "p1.png", folder / "trainannot" / "p1.png"
    if how == "alone":
        image.unlink()
        return image, "no such file|cannot be read"
    if how == "missing":
        labels.unlink()
        return labels, "no such file|cannot be read"
    if how == "size":
        save(labels, mask(0, 12, 15))
        return labels, "a mask of 15x12 pixels for a picture of 16x12"
    if how == "label":
        save(labels, mask(labels=3) + np.uint8(10))
        return labels, "unknown label 12; there are 11 classes"
    if how == "colour":
        save(labels, picture())
        return labels, "mode RGB; masks are grey"
    if how == "truncated":
        image.write_bytes(image.read_bytes()[:200])
        return image, "not a readable picture"
    if how == "empty":
        labels.write_bytes(b"")
        return labels, "not a readable picture"
    image.unlink()
    image.mkdir()
    return image, "no such file|cannot be read"


@pytest.mark.parametrize("how", ["missing", "alone", "size", "label", "colour", "truncated", "empty", "folder"])
def test_what_is_not_sound_is_named_or_left_out(tmp_path: Path, how: str) -> None:
    path, text = damage(folder_of(tmp_path), how)
    with pytest.raises(InputError, match=text) as caught:
        camvid("train", tmp_path).pair(1)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=text):
        MaskBatches(camvid("train", tmp_path), size=2)
    errors: list[InputError] = []
    found = camvid("train", tmp_path, on_error=errors.append)
    assert [p.stem for p in found.paths] == ["p0", "p2", "p3"] and "3 pictures" in found.source
    assert len(errors) == 1 and str(path) in str(errors[0])


def test_a_policy_does_not_hide_that_nothing_is_sound(tmp_path: Path) -> None:
    damage(folder_of(tmp_path, 2), "label")
    (tmp_path / "trainannot" / "p0.png").unlink()
    errors: list[InputError] = []
    with pytest.raises(InputError, match="none of 2 pictures has a sound mask"):
        camvid("train", tmp_path, on_error=errors.append)
    assert len(errors) == 2


def test_pictures_of_one_name_and_turned_ones(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    turned, exif = picture(1, 16, 12), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(turned).save(tmp_path / "train" / "p1.png", exif=exif)
    np.testing.assert_array_equal(camvid("train", tmp_path).pair(1)[0], np.rot90(turned, -1))
    (tmp_path / "train" / "p0.jpg").write_bytes((tmp_path / "train" / "p0.png").read_bytes())
    with pytest.raises(InputError, match=r"train: p0\.jpg and p0\.png have one name"):
        camvid("train", tmp_path)


# ---- fitting


def test_a_smaller_picture_is_filled_up() -> None:
    image, labels, inner = fitted(picture(), (14, 20), mask())
    assert inner == (12, 16) and image.shape == (14, 20, 3)
    assert np.array_equal(image[:12, :16], picture()) and np.array_equal(labels[:12, :16], mask())
    assert (labels[12:] == IGNORED).all() and (labels[:, 16:] == IGNORED).all()
    assert np.array_equal(np.unique(image[12:].reshape(-1, 3), axis=0), [picture().mean((0, 1)).round()])
    assert (fitted(picture(), (14, 20))[1] == IGNORED).all()


def test_a_larger_picture_is_shrunk_and_comes_back() -> None:
    whole = np.kron(mask(0, 6, 8), np.ones((4, 4), np.uint8))
    image, labels, inner = fitted(picture(0, 24, 32), (6, 9), whole)
    assert inner == (6, 8) and image.shape == (6, 9, 3) and np.array_equal(labels[:, :8], mask(0, 6, 8))
    assert np.array_equal(restored(labels[None], inner, (24, 32))[0], whole)


# ---- batches


def made(folder: Path, **options: Any) -> MaskBatches:
    return MaskBatches(camvid("train", folder_of(folder), size=(10, 14)), size=2, **options)


def test_batches_are_the_same_however_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = made(tmp_path, seed=3)
    first, second = list(plain), list(plain)
    assert [x.shape for x in first[0]] == [(2, 3, 10, 14), (2, 10, 14)]
    assert not np.array_equal(first[0][0], second[0][0])
    plain.seek(1, 1)
    assert np.array_equal(next(iter(plain))[0], second[1][0])
    for again in (made(tmp_path, seed=3, workers=2), made(tmp_path, seed=3)):
        for (x, y), (a, b) in zip(first, again, strict=True):
            assert np.array_equal(x, a) and np.array_equal(y, b)
    monkeypatch.setattr(mask_batches, "IN_MEMORY", 0)
    parts = [made(tmp_path, seed=3, part=(i, 2)) for i in range(2)]
    assert parts[0].kept == [] and len(plain.kept) == 4
    for (x, y), *halves in zip(first, *parts, strict=True):
        assert np.array_equal(x, np.concatenate([half[0] for half in halves]))
        assert np.array_equal(y, np.concatenate([half[1] for half in halves]))


def test_without_augmentation_pictures_come_as_they_are(tmp_path: Path) -> None:
    found = camvid("train", folder_of(tmp_path), size=(12, 16))
    (x, y), (x2, _) = MaskBatches(found, size=3, training=False)
    assert len(x2) == 1 and str(y.dtype) == "torch.int64"
    for n in range(3):
        expected = (picture(n).astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        np.testing.assert_allclose(x[n].numpy(), expected.transpose(2, 0, 1), rtol=1e-6)
        assert np.array_equal(y[n], mask(n))
    still = MaskBatches(found, size=4, scale=(1, 1), flip=False, colour=0)
    (a, b), (c, d) = next(iter(still)), next(iter(MaskBatches(found, size=4, training=False)))
    order = still.order(0)[0]
    assert np.array_equal(a, c[order]) and np.array_equal(b, d[order])


def test_each_augmentation_can_be_had_alone(tmp_path: Path) -> None:
    found = camvid("train", folder_of(tmp_path, 40), size=(12, 16))
    off: dict[str, Any] = {"scale": (1, 1), "flip": False, "colour": 0.0}
    truth = [found.pair(n)[1] for n in range(40)]

    def drawn(**on: Any) -> list[tuple[int, Array, Array]]:
        batches = MaskBatches(found, size=40, **{**off, **on})
        x, y = next(iter(batches))
        return list(zip(batches.order(0)[0].tolist(), x.numpy(), y.numpy(), strict=True))

    mirrored = [np.array_equal(y, truth[n][:, ::-1]) for n, _, y in drawn(flip=True)]
    assert all(m or np.array_equal(y, truth[n]) for m, (n, _, y) in zip(mirrored, drawn(flip=True), strict=True))
    assert 8 <= sum(mirrored) <= 32
    plain = {n: x for n, x, _ in drawn()}
    assert all(np.array_equal(y, truth[n]) and not np.array_equal(x, plain[n]) for n, x, y in drawn(colour=0.5))
    scaled = drawn(scale=(0.5, 2.0))
    smaller = [(y == IGNORED).any() for _, _, y in scaled]
    assert 8 <= sum(smaller) <= 32
    for n, _, y in scaled:
        assert set(np.unique(y)) <= {*np.unique(truth[n]).tolist(), IGNORED}


def test_picture_and_mask_stay_together() -> None:
    """Away from the borders of labels, where colours blend, every pixel has the colour of its label."""
    labels = np.kron(mask(0, 6, 8), np.ones((16, 16), np.uint8))
    colours = np.array([[0, 0, 0], [120, 120, 120], [240, 240, 240]], np.uint8)
    rng = np.random.default_rng(0)
    for factor in (0.5, 0.8, 1.0, 1.7, 2.0):
        image, cut = window(colours[labels], labels, (70, 90), factor, rng)
        inside = cut != IGNORED
        around = np.lib.stride_tricks.sliding_window_view(np.pad(cut, 2, mode="edge"), (5, 5), axis=(0, 1))
        plain = inside & (around == cut[..., None, None]).all((2, 3))
        assert plain.sum() > 0.25 * inside.sum() and np.array_equal(image[plain], colours[cut[plain]]), factor
        share = min(70, round(96 * factor)) * min(90, round(128 * factor)) / (70 * 90)
        assert inside.mean() == pytest.approx(share)


def test_colours_by_hand() -> None:
    given = picture()
    grey = given @ [0.299, 0.587, 0.114]
    for changes, expected in (
        ((1, 1, 1), given),
        ((0.5, 1, 1), given * 0.5),
        ((1, 0.25, 1), 0.25 * given + 0.75 * grey.mean()),
        ((1, 1, 0), np.repeat(grey[..., None], 3, 2)),
        ((1.3, 1, 1), np.minimum(255, 1.3 * given)),
    ):
        assert np.abs(recoloured(given, *changes) - expected).max() <= 1


@pytest.mark.parametrize("options", [{"scale": (0, 1)}, {"scale": (2, 1)}, {"colour": 1.5}])
def test_augmentation_out_of_range_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="augmentation: "):
        made(tmp_path, **options)


# ---- the real set


def test_camvid_is_sound_and_its_batches_are_quick(real_set: Callable[[str], Path]) -> None:
    real = real_set("camvid")
    errors: list[InputError] = []
    splits: list[MaskSet] = [camvid(split, real, on_error=errors.append) for split in ("train", "val", "test")]
    assert [len(split) for split in splits] == [367, 101, 233] and not errors
    batches = MaskBatches(splits[0].spread(64), size=8)
    start = time.process_time()
    assert sum(len(x) for x, _ in batches) == 64
    assert time.process_time() - start < 64 / 60  # measured: some 250 a second and core
