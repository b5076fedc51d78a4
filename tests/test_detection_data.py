"""Readers of boxes, their errors, and the augmented batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bitbranch.data import coco_boxes, colours, voc_boxes
from bitbranch.data.box_batches import (
    OVERLAPS,
    Augmentation,
    BoxBatches,
    random_colours,
    random_window,
    seen_through,
)
from bitbranch.data.box_set import BoxSet
from bitbranch.data.pictures import decode_resized, size_of
from bitbranch.errors import InputError
from bitbranch.tasks.boxes import DefaultBoxes, intersection_over_union
from bitbranch.training import config, tasks

Corners = tuple[object, object, object, object]


def picture(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def annotation(objects: list[tuple[str, Corners]], size: tuple[int, int] | None = (40, 30), extra: str = "") -> str:
    parts = [] if size is None else [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for name, corners in objects:
        sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        parts.append(f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def voc(root: Path, files: dict[str, str], split: str = "train") -> Path:
    """A folder of pictures of 40x30 pixels with these annotations."""
    for number, (name, text) in enumerate(files.items()):
        picture(root / "JPEGImages" / f"{name}.jpg", 40, 30, number)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in files) + "\n")
    return root


# ---- Pascal VOC


def test_voc_boxes_are_counted_from_one_and_hold_their_last_pixel(tmp_path: Path) -> None:
    text = annotation([("dog", (1, 1, 40, 30)), ("cat", (5, 4, 20.0, "12.5"))]).replace(
        "</bndbox></object></annotation>",
        "</bndbox><difficult>1</difficult><part><name>head</name></part></object></annotation>",
    )
    voc(tmp_path, {"a": text, "b": annotation([])})
    got = voc_boxes.load("train", tmp_path, size=(60, 80))
    assert got.classes == ("cat", "dog") and len(got) == 2 and got.shape == (3, 60, 80)
    assert np.allclose(got.boxes[0], [[0, 0, 1, 1, 2], [4 / 40, 3 / 30, 20 / 40, 12.5 / 30, 1]])
    assert got.boxes[0].dtype == np.float32 and got.boxes[1].shape == (0, 5)
    assert got.difficult[0].tolist() == [False, True] and got.difficult[1].shape == (0,)
    assert got.sizes.tolist() == [[30, 40]] * 2 and got.source == f"{tmp_path.name} train, 2 pictures"
    assert [Path(p).name for p in got.paths] == ["a.jpg", "b.jpg"]


def test_lines_of_a_list_that_name_no_picture_are_reported(tmp_path: Path) -> None:
    root = voc(tmp_path, {"a": annotation([("cat", (1, 1, 9, 9))])})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfa\n" + b"x" * 300 + b"\n/\n")
    said: list[InputError] = []
    assert len(voc_boxes.load("train", root, on_error=said.append)) == 1
    assert len(said) == 2 and "the list's line 'xxxx" in str(said[0]) and "line '/' names no picture" in str(said[1])


def test_voc_objects_are_difficult_where_it_says_one(tmp_path: Path) -> None:
    said = ("<difficult>1</difficult>", "<difficult>0</difficult>", "", "<difficult> 1\n</difficult>")
    said += ("<difficult></difficult>", "<difficult/>", "<difficult>Unspecified</difficult>")
    voc(tmp_path, {f"{i}": annotation([("dog", (1, 1, 9, 9))], extra=text) for i, text in enumerate(said)})
    got = voc_boxes.load("train", tmp_path)
    assert [bool(hard[0]) for hard in got.difficult] == [True, False, False, True, False, False, False]


def test_voc07_and_12_are_joined_and_keep_their_classes(tmp_path: Path) -> None:
    kit = tmp_path / "VOCdevkit"
    voc(kit / "VOC2007", {"1": annotation([("dog", (1, 1, 9, 9))])}, "trainval")
    voc(kit / "VOC2012", {"2": annotation([("cat", (1, 1, 9, 9))]), "3": annotation([])}, "trainval")
    voc(kit / "VOC2007", {"4": annotation([("dog", (1, 1, 9, 9))])}, "test")
    for folder in (tmp_path, kit):
        both, test = voc_boxes.load("trainval", folder), voc_boxes.load("test", folder)
        assert [Path(p).parts[-3:] for p in both.paths] == [
            ("VOC2007", "JPEGImages", "1.jpg"), ("VOC2012", "JPEGImages", "2.jpg"), ("VOC2012", "JPEGImages", "3.jpg"),
        ]  # fmt: skip
        assert both.classes == ("cat", "dog") and len(test) == 1
    assert test.boxes[0][0, 4] == voc_boxes.load("test", kit / "VOC2007").boxes[0][0, 4] + 1  # there is no cat in 2007
    joined = voc_boxes.load("test+trainval", kit)
    assert joined.paths == test.paths + both.paths and joined.source.endswith("test+trainval, 4 pictures")
    with pytest.raises(InputError, match=r"ImageSets/Main/val\.txt"):
        voc_boxes.load("test+val", kit)
    named = voc_boxes.load("test", kit, classes=("bird", "cat", "dog"))
    assert named.boxes[0][0, 4] == 3 and named.classes == ("bird", "cat", "dog")


def test_boxes_that_reach_out_by_a_pixel_are_cut(tmp_path: Path) -> None:
    voc(tmp_path, {"a": annotation([("dog", (0, 0, 41, 31))])})
    assert np.array_equal(voc_boxes.load("train", tmp_path).boxes[0], [[0, 0, 1, 1, 1]])


GOOD = annotation([("dog", (2, 3, 9, 9))])
Change = Callable[[Path], object]


def write(name: str, text: str) -> Change:
    return lambda root: (root / name).write_text(text)


def broken(corners: Corners) -> Change:
    return write("Annotations/bad.xml", annotation([("dog", (2, 3, 9, 9)), ("dog", corners), ("dog", (1, 1, 5, 5))]))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


BAD_PICTURES: dict[str, tuple[Change, str]] = {
    "missing picture": (lambda r: (r / "JPEGImages/bad.jpg").unlink(), r"bad\.xml: has no picture JPEGImages/bad\.jpg"),
    "unreadable picture": (write("JPEGImages/bad.jpg", "hello"), r"bad\.jpg: not a readable picture"),
    "picture cut off": (lambda r: shorten(r / "JPEGImages/bad.jpg"), r"bad\.jpg: not a readable picture \(.*truncated"),
    "another size": (lambda r: picture(r / "JPEGImages/bad.jpg", 30, 40), r"bad\.jpg: 30x40 pixels, but .* says 40x30"),
    "missing annotation": (lambda r: (r / "Annotations/bad.xml").unlink(), r"bad\.xml: cannot be read \(No such file"),
    "empty annotation": (write("Annotations/bad.xml", " \n"), r"bad\.xml: the annotation is empty"),
    "cut off": (write("Annotations/bad.xml", GOOD[:-20]), r"bad\.xml: not an XML file \(.*line 1, column"),
    "unknown encoding": (
        write("Annotations/bad.xml", '<?xml version="1.0" encoding="martian"?>' + GOOD),
        r"bad\.xml: not an XML file \(unknown encoding",
    ),
    "encoding of several bytes": (
        write("Annotations/bad.xml", '<?xml version="1.0" encoding="GBK"?>' + GOOD),
        r"bad\.xml: not an XML file \(multi-byte encodings",
    ),
    "size not finite": (
        write("Annotations/bad.xml", GOOD.replace(">40<", ">inf<")),
        r"bad\.xml: size inf x 30.0 is not finite",
    ),
    "size not a number": (
        write("Annotations/bad.xml", GOOD.replace(">40<", ">x<")),
        r"size/width is not a number: 'x'",
    ),
}
"""What leaves a picture out."""


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_whole_pictures_are_known_by_their_ends(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    assert size_of(path) == (30, 40)
    path.write_bytes(whole + b"a note" * 100)
    assert size_of(path) == (30, 40)
    if suffix != "bmp":
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=rf"a\.{suffix}: not a readable picture"):
            size_of(path)


BAD_BOXES: dict[str, tuple[Change, str]] = {
    "outside": (broken((5, 5, 42, 9)), r"bad\.xml: object 2 \(dog\): the box 4, 4 \.\. 42, 9 reaches out of .* 40x30"),
    "far outside": (broken((50, 5, 60, 9)), r"object 2 \(dog\): the box .* reaches out of the picture"),
    "before the edge": (broken((-2, 5, 6, 9)), r"object 2 \(dog\): the box -3, 4 .* reaches out of the picture"),
    "beside the edge": (broken((41, 5, 41.5, 9)), r"object 2 \(dog\): the box .* reaches out of the picture"),
    "inverted": (broken((9, 5, 2, 9)), r"object 2 \(dog\): the box 8, 4 \.\. 2, 9 is inverted"),
    "empty": (broken((7, 5, 7, 5)), r"object 2 \(dog\): the box 7, 5 \.\. 7, 5 is empty"),
    "nan": (broken(("nan", 5, 7, 9)), r"object 2 \(dog\): the box .* is not finite"),
    "not a number": (broken(("a", 5, 7, 9)), r"bad\.xml: object 2: bndbox/xmin is not a number: 'a'"),
    "no corner": (broken(("", 5, 7, 9)), r"bad\.xml: object 2: has no bndbox/xmin"),
    "no name": (
        write("Annotations/bad.xml", annotation([("dog", (2, 3, 9, 9)), ("", (1, 1, 5, 5)), ("dog", (1, 1, 5, 5))])),
        r"object 2: has no name",
    ),
    "unknown class": (
        write("Annotations/bad.xml", annotation([("dog", (2, 3, 9, 9)), ("eel", (1, 1, 5, 5)), ("dog", (1, 1, 5, 5))])),
        r"object 2 \(eel\): unknown class 'eel'; expected cat, dog",
    ),
}
"""What leaves the second of three boxes out."""


@pytest.mark.parametrize("case", [*BAD_PICTURES, *BAD_BOXES])
def test_what_is_wrong_with_voc_is_named_and_the_rest_goes_on(case: str, tmp_path: Path) -> None:
    voc(tmp_path, {"first": GOOD, "bad": GOOD, "last": GOOD})
    change, text = (BAD_PICTURES | BAD_BOXES)[case]
    change(tmp_path)
    with pytest.raises(InputError, match=text) as caught:
        voc_boxes.load("train", tmp_path, classes=("cat", "dog"))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    errors = list[InputError]()
    rest = voc_boxes.load("train", tmp_path, classes=("cat", "dog"), on_error=errors.append)
    assert [str(e) for e in errors] == [str(caught.value)]
    assert [len(b) for b in rest.boxes] == ([1, 2, 1] if case in BAD_BOXES else [1, 1])
    assert [len(d) for d in rest.difficult] == [len(b) for b in rest.boxes] and len(rest.sizes) == len(rest)


def test_names_with_spaces_and_endings_in_capitals(tmp_path: Path) -> None:
    voc(tmp_path, {"a dog": GOOD, "b": GOOD, "c": GOOD})
    (tmp_path / "JPEGImages/b.jpg").rename(tmp_path / "JPEGImages/b.JPG")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a dog\nb -1\nc  1\n")
    found = voc_boxes.load("train", tmp_path)
    assert [Path(p).name for p in found.paths] == ["a dog.jpg", "b.JPG", "c.jpg"]


def test_annotations_without_a_size_take_the_pictures(tmp_path: Path) -> None:
    voc(
        tmp_path, {"a": annotation([("dog", (1, 1, 20, 30))], None), "b": annotation([("dog", (1, 1, 20, 30))], (0, 0))}
    )
    assert all(np.allclose(b, [[0, 0, 0.5, 1, 1]]) for b in voc_boxes.load("train", tmp_path).boxes)


def test_a_number_behind_a_name_may_be_part_of_it(tmp_path: Path) -> None:
    """In the list of a class it says whether the class is there; picture and annotation say which it is."""
    voc(tmp_path, {name: annotation([("dog", (1, 1, 9, 9))]) for name in ("scan", "scan 1", "scan 2", "other")})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("scan\nscan 1\nscan 2\nother -1\n")
    assert [Path(p).stem for p in voc_boxes.load("train", tmp_path).paths] == ["scan", "scan 1", "scan 2", "other"]


def test_turned_pictures_go_with_their_boxes(tmp_path: Path) -> None:
    pixels = np.zeros((40, 30, 3), np.uint8)
    pixels[:20, :15] = 255  # upright, the upper right quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    voc(tmp_path, {"a": annotation([("dog", (21, 1, 40, 15))])})
    Image.fromarray(pixels).save(tmp_path / "JPEGImages" / "a.jpg", exif=exif, quality=95)
    found = voc_boxes.load("train", tmp_path, size=(30, 40))
    batches = BoxBatches(found, size=1, training=False)
    batches.pixels = True
    image = np.asarray(next(iter(batches))[0])[0]
    assert image[:, :14, 21:].min() > 250 and image[:, 16:].max() < 5 and image[:, :, :19].max() < 5


def test_folders_that_are_not_voc_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no Annotations, JPEGImages and ImageSets/Main/train\.txt"):
        voc_boxes.load("train", tmp_path)
    voc(tmp_path, {"a": ""})
    with pytest.raises(InputError, match=r"ImageSets/Main/val\.txt"):
        voc_boxes.load("val", tmp_path)
    with pytest.raises(InputError, match="there are no pictures"):
        voc_boxes.load("train", tmp_path, on_error=lambda _: None)


# ---- COCO


def coco_content() -> dict[str, list[dict[str, object]]]:
    return {
        "images": [{"id": 7, "file_name": "x.png", "height": 30, "width": 40},
                   {"id": 3, "file_name": "y.png", "height": 30, "width": 40}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": [4, 3, 10, 12], "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 18, "bbox": [0, 0, 40.4, 30], "iscrowd": 1},
        ],
    }  # fmt: skip


def coco(root: Path, content: object, pictures: str = "val2017") -> Path:
    for number, name in enumerate(("x.png", "y.png")):
        picture(root / pictures / name, 40, 30, number)
    (root / "annotations").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations" / "instances_val2017.json").write_text(text)
    return root


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017", "images"])
def test_coco_boxes(pictures: str, tmp_path: Path) -> None:
    got = coco_boxes.load("val2017", coco(tmp_path, coco_content(), pictures), size=(320, 320))
    assert got.classes == ("dog", "cat") and [Path(p).name for p in got.paths] == ["x.png", "y.png"]
    assert got.boxes[0].shape == (0, 5)
    assert np.allclose(got.boxes[1], [[0.1, 0.1, 14 / 40, 0.5, 2], [0, 0, 1, 1, 1]])
    assert got.difficult[1].tolist() == [False, True] and got.sizes.tolist() == [[30, 40]] * 2
    named = coco_boxes.load("val2017", tmp_path, classes=("cat", "dog"))
    assert named.boxes[1][:, 4].tolist() == [1, 2]


COCO_BAD: dict[str, tuple[dict[str, object], str]] = {
    "outside": ({"bbox": [30, 3, 12, 5]}, r"json: y\.png: annotation 1 \(cat\): the box 30, 3 \.\. 42, 8 reaches out"),
    "inverted": ({"bbox": [4, 3, -2, 5]}, r"annotation 1 \(cat\): the box 4, 3 \.\. 2, 8 is inverted"),
    "empty": ({"bbox": [4, 3, 0, 5]}, r"annotation 1 \(cat\): the box 4, 3 \.\. 4, 8 is empty"),
    "three numbers": ({"bbox": [4, 3, 1]}, r"annotation 1: bbox is not x, y, width, height: \[4, 3, 1\]"),
    "unknown category": ({"category_id": 5}, r"y\.png: annotation 1: there is no category 5"),
    "unknown picture": ({"image_id": 5}, r"annotation 1: there is no picture 5"),
}


@pytest.mark.parametrize("case", COCO_BAD)
def test_what_is_wrong_with_cocos_boxes_is_named_and_the_rest_goes_on(case: str, tmp_path: Path) -> None:
    change, text = COCO_BAD[case]
    content = coco_content()
    content["annotations"][0] |= change
    coco(tmp_path, content)
    with pytest.raises(InputError, match=text) as caught:
        coco_boxes.load("val2017", tmp_path)
    errors = list[InputError]()
    rest = coco_boxes.load("val2017", tmp_path, on_error=errors.append)
    assert [str(e) for e in errors] == [str(caught.value)] and [len(b) for b in rest.boxes] == [0, 1]


@pytest.mark.parametrize(
    ("part", "entry", "text"),
    [
        ("annotations", {"bbox": [1, 2, 10**400, 4]}, r"annotation \d+: bbox is not x, y, width, height: \[1, 2, 1000"),
        ("images", {"id": None}, r"picture y\.png: its id \d+ is another's"),
        ("categories", {"id": None}, r"categories\[1\]: its id or its name is another's"),
        ("categories", {"name": None}, r"categories\[1\]: its id or its name is another's"),
    ],
)
def test_numbers_beyond_any_and_names_given_twice(
    part: str, entry: dict[str, object], text: str, tmp_path: Path
) -> None:
    """A None stands for what the entry before has."""
    content = coco_content()
    first, second = content[part][0], content[part][-1]
    second |= {key: first[key] if value is None else value for key, value in entry.items()}
    coco(tmp_path, content)
    with pytest.raises(InputError, match=text) as caught:
        coco_boxes.load("val2017", tmp_path)
    assert len(str(caught.value)) < 400


def test_what_is_wrong_with_cocos_pictures_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    coco(tmp_path, coco_content())
    with pytest.raises(InputError, match=r"unknown class 'cat'; expected dog"):
        coco_boxes.load("val2017", tmp_path, classes=("dog",))
    for spoil, text in (
        (lambda p: picture(p, 41, 30), "x.png: 41x30 pixels"),
        (lambda p: p.write_bytes(b"x"), "x.png: not a readable picture"),
        (lambda p: p.unlink(), "x.png: not a readable picture .*No such file"),
    ):
        spoil(tmp_path / "val2017" / "x.png")
        with pytest.raises(InputError, match=text):
            coco_boxes.load("val2017", tmp_path)
        errors = list[InputError]()
        assert len(coco_boxes.load("val2017", tmp_path, on_error=errors.append)) == 1 and len(errors) == 1


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "the annotation file is empty"),
        ("{", "not a JSON file"),
        ("[]", "has no list 'images'"),
        ({"images": []}, "has no list 'annotations'"),
        (coco_content() | {"images": [{"id": 1}]}, r"images\[0\] needs id, file_name, height, width"),
        (coco_content() | {"annotations": [3]}, r"annotations\[0\] needs"),
        (coco_content() | {"annotations": [{"id": 1, "image_id": 3}]}, r"annotations\[0\] .*; it has no category_id"),
        (
            coco_content() | {"categories": [{"id": [1], "name": "a"}]},
            r"categories\[0\] needs a whole number or text",
        ),
        (
            coco_content() | {"images": [{"id": 3, "file_name": 5, "height": 3, "width": 4}]},
            r"images\[0\] needs text as",
        ),
        (coco_content() | {"images": []}, "annotation 1: there is no picture 3"),
    ],
)
def test_files_that_are_not_cocos_are_refused(content: object, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"instances_val2017\.json: {text}"):
        coco_boxes.load("val2017", coco(tmp_path, content))


def test_one_wrong_entry_of_coco_leaves_the_others(tmp_path: Path) -> None:
    content: dict[str, Any] = coco_content()
    content["images"].append({"id": 4, "file_name": "y.png", "height": "30", "width": 40})
    content["annotations"] += [
        {"id": 3, "image_id": 3, "category_id": 18},
        {"id": 4, "image_id": [3], "category_id": 18, "bbox": [0, 0, 9, 9]},
        {"id": 5, "image_id": 3, "category_id": [18], "bbox": [0, 0, 9, 9]},
        {"id": 6, "image_id": 3, "category_id": 18, "bbox": None},
        7,
    ]
    content["categories"].append({"id": "other", "name": "bird"})
    errors = list[InputError]()
    found = coco_boxes.load("val2017", coco(tmp_path, content), on_error=errors.append)
    assert found.classes == ("dog", "cat", "bird") and [len(b) for b in found.boxes] == [0, 2]
    said = [str(error).split("json: ")[1] for error in errors]
    assert [text.split()[0] for text in said] == ["images[2]", *(f"annotations[{i}]" for i in range(2, 7))]
    assert "a whole number as height, not '30'" in said[0] and "it has no bbox" in said[1]


def test_crowds_are_not_learned(tmp_path: Path) -> None:
    found = coco_boxes.load("val2017", coco(tmp_path, coco_content()), size=(30, 40))
    assert found.crowds and found.spread(1).crowds
    data = config.Data(set="coco-boxes", path=str(tmp_path))
    task = tasks.ObjectDetection(data, found, found)
    (_, targets), *_ = task.calibration(2, 0)
    assert (targets[..., 4] > 0).sum() == 1 and (targets[..., 4] == 2).sum() == 1  # the cat


class OneCat(nn.Module):
    """Says that there is a cat in the middle half of every picture."""

    default_boxes = DefaultBoxes((30, 40), ((1, 1),), (0.5, 0.5), ((),))

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        logits = torch.tensor([0.0, 0.0, 9.0]).reshape(1, 3, 1, 1)
        return [logits.repeat(len(images), 1, 1, 1)], [torch.zeros(len(images), 4, 1, 1)]


def test_sets_in_cocos_form_have_cocos_figures(tmp_path: Path) -> None:
    """The cat of 15x19.5 pixels is found as 15x15: an overlap of 1/1.3, enough at 6 of COCO's 10 thresholds."""
    pytest.importorskip("pycocotools")
    content = coco_content()
    content["annotations"][0] |= {"image_id": 7, "bbox": [12.5, 7.5, 15, 19.5]}
    content["annotations"][1] |= {"category_id": 90, "bbox": [0, 0, 40, 30]}  # a crowd of cats in the other picture
    found = coco_boxes.load("val2017", coco(tmp_path, content), size=(30, 40))
    data = config.Data(set="coco-boxes", path=str(tmp_path))
    scores = tasks.ObjectDetection(data, found, found).score(OneCat())
    assert scores["map"] == 1 and scores["ap50"] == pytest.approx(1) and scores["ap75"] == pytest.approx(1)
    assert scores["ap"] == pytest.approx(0.6) and scores["ar1"] == pytest.approx(0.6)
    assert scores["ap_small"] == pytest.approx(0.6) and scores["ap_large"] == -1
    plain = replace(found, crowds=False)
    assert list(tasks.ObjectDetection(data, plain, plain).score(OneCat())) == ["map", "map_2007", "ap_cat"]


def test_folders_that_are_not_cocos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pictures in val2017, images/val2017 or images"):
        coco_boxes.load("val2017", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"instances_val2017\.json: cannot be read"):
        coco_boxes.load("val2017", tmp_path)
    with pytest.raises(InputError, match="there are no pictures"):
        coco_boxes.load("val2017", coco(tmp_path, {"images": [], "annotations": [], "categories": []}))


# ---- batches

MARKED = 12
"""Squares of this many pixels mark the boxes of :func:`marked`."""


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> BoxSet:
    """Twelve pictures of 100x80 pixels, black, with a red square (class 1) and, in most, a green one (class 2)."""
    folder, rng = tmp_path_factory.mktemp("marked"), np.random.default_rng(0)
    paths, boxes = list[str](), list[np.ndarray]()
    for number in range(12):
        pixels, rows = np.zeros((80, 100, 3), np.uint8), []
        for c in (1, 2)[: 1 + (number % 4 > 0)]:
            x, y = int(rng.integers(50 * (c - 1), 50 * c - MARKED)), int(rng.integers(0, 80 - MARKED))
            pixels[y : y + MARKED, x : x + MARKED, c - 1] = 255
            rows.append([x / 100, y / 80, (x + MARKED) / 100, (y + MARKED) / 80, c])
        Image.fromarray(pixels).save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png"))
        boxes.append(np.array(rows, np.float32))
    hard = tuple(np.arange(len(b)) == 1 for b in boxes)
    return BoxSet(
        tuple(paths), tuple(boxes), hard, np.full((12, 2), (80, 100)), ("red", "green"), (80, 100), "marked",
        (0.0,) * 3, (1.0,) * 3,
    )  # fmt: skip


NOTHING = Augmentation(colour=False, expand=1, crop=1, flip=False)


def test_pictures_at_test_time_are_only_resized(marked: BoxSet) -> None:
    batches = BoxBatches(marked, size=5, training=False)
    images, targets = (torch.cat(t) for t in zip(*batches, strict=True))
    assert images.shape == (12, 3, 80, 100) and targets.shape == (12, 2, 5) and targets.dtype == torch.float32
    for image, target, path, boxes in zip(images, targets, marked.paths, marked.boxes, strict=True):
        assert np.array_equal((image * 255).round().numpy().transpose(1, 2, 0), np.asarray(Image.open(path)))
        assert np.array_equal(target[: len(boxes)], boxes) and not target[len(boxes) :].any()
    small = replace(marked, size=(40, 60))
    as_pixels = BoxBatches(small, size=12, training=False)
    as_pixels.pixels = True
    ((pixels, _),) = list(as_pixels)
    assert pixels.dtype == torch.uint8
    expected = Image.open(marked.paths[3]).resize((60, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels[3].numpy().transpose(1, 2, 0), np.asarray(expected))
    ((_, easy),) = list(BoxBatches(marked, size=12, training=False, difficult=False))
    assert easy.shape == (12, 1, 5) and (easy[..., 4] == 1).all()
    empty = replace(marked, boxes=tuple(b[:0] for b in marked.boxes), difficult=tuple(d[:0] for d in marked.difficult))
    for training in (False, True):
        ((images, targets),) = list(BoxBatches(empty, size=12, training=training))
        assert targets.shape == (12, 1, 5) and not targets.any()


@pytest.mark.parametrize(
    "how",
    [
        NOTHING,
        replace(NOTHING, flip=True),
        replace(NOTHING, upside_down=True),
        replace(NOTHING, expand=3.0),
        replace(NOTHING, crop=0.4),
        Augmentation(colour=False, upside_down=True),
    ],
)
def test_boxes_go_with_their_pictures(how: Augmentation, marked: BoxSet) -> None:
    """A box holds the pixels of its colour that are seen, and nothing of that colour is elsewhere."""
    seen = 0
    for epoch in range(6):
        batches = BoxBatches(marked, size=12, seed=epoch, augmentation=how)
        ((images, targets),) = list(batches)
        for image, target in zip(images.numpy(), targets.numpy(), strict=True):
            for x0, y0, x1, y1, c in target[target[:, 4] > 0]:
                there = image[int(c) - 1] > 0.5
                (y, x), off = np.nonzero(there), 1.6
                assert abs(x.min() - x0 * 100) < off and abs(x.max() + 1 - x1 * 100) < off
                assert abs(y.min() - y0 * 80) < off and abs(y.max() + 1 - y1 * 80) < off
                seen += 1
    assert seen > 60


def test_each_augmentation_does_what_it_says(marked: BoxSet) -> None:
    def share(how: Augmentation, changed: Callable[[np.ndarray, np.ndarray], bool]) -> float:
        """Of the pictures with their original beside them."""
        order = [i for s in range(10) for i in BoxBatches(marked, size=12, seed=s).order(0)[0]]
        images = [i for s in range(10) for x, _ in BoxBatches(marked, size=12, seed=s, augmentation=how) for i in x]
        ((plain, _),) = list(BoxBatches(marked, size=12, training=False))
        return float(np.mean([changed(i.numpy(), plain[n].numpy()) for i, n in zip(images, order, strict=True)]))

    differs = lambda a, b: not np.array_equal(a, b)  # noqa: E731
    assert share(NOTHING, differs) == 0
    assert 0.35 < share(replace(NOTHING, flip=True), lambda a, b: np.array_equal(a, b[:, :, ::-1])) < 0.65
    assert 0.35 < share(replace(NOTHING, upside_down=True), lambda a, b: np.array_equal(a, b[:, ::-1])) < 0.65
    assert 0.35 < share(replace(NOTHING, expand=2.0), differs) < 0.65
    assert 0.35 < share(replace(NOTHING, crop=0.3), differs) < 0.95  # few crops overlap so small squares by much
    assert 0.6 < share(replace(NOTHING, colour=True), differs) < 1
    for wrong in ({"expand": 0.5}, {"crop": 0.0}, {"crop": 1.5}, {"expand": float("inf")}):
        with pytest.raises(InputError, match="augmentation: "):
            Augmentation(**wrong)  # type: ignore[arg-type]


def test_crops_keep_what_they_promise() -> None:
    """Sides of 0.3 to 1 and 1:2 to 2:1, the centre of a box inside, and minimum overlaps drawn as often as others."""
    rng, how = np.random.default_rng(0), Augmentation(expand=1)
    boxes = np.array([[0.3, 0.3, 0.7, 0.7, 1], [0.05, 0.1, 0.1, 0.2, 2]], np.float32)
    whole, most = 0, []
    for _ in range(1000):
        window = random_window(boxes, rng, how)
        x0, y0, x1, y1 = window
        assert 0 <= x0 and 0 <= y0 and x1 <= 1 + 1e-9 and y1 <= 1 + 1e-9
        w, h = x1 - x0, y1 - y0
        whole += w == h == 1
        assert w >= 0.3 and h >= 0.3 and 0.5 <= w / h <= 2
        kept = seen_through(window, boxes)
        centres = (boxes[:, :2] + boxes[:, 2:4]) / 2
        inside = ((centres > [x0, y0]) & (centres < [x1, y1])).all(1)
        assert inside.any() and kept[:, 4].tolist() == boxes[inside, 4].tolist()
        back = kept[:, :4] * [w, h, w, h] + [x0, y0, x0, y0]
        assert np.allclose(back, boxes[inside, :4].clip([x0, y0, x0, y0], [x1, y1, x1, y1]), atol=1e-6)
        most.append(float(intersection_over_union(np.array([window]), boxes[:, :4].astype(np.float64)).max()))
    # Of seven draws, an overlap of 0.9 is never found and one of 0.7 hardly ever: the others have a fifth each.
    assert 140 < whole < 260
    shares = [np.mean(np.array(most) >= least) for least in OVERLAPS]
    assert shares == sorted(shares, reverse=True) and 0.4 < shares[2] < 0.75 and 0.15 < shares[3] < 0.4
    expanded = [random_window(boxes, rng, Augmentation(crop=1, expand=3)) for _ in range(300)]
    sides = np.array([(x1 - x0, y1 - y0) for x0, y0, x1, y1 in expanded])
    assert np.allclose(sides[:, 0], sides[:, 1]) and sides.max() <= 3 and 0.4 < (sides[:, 0] == 1).mean() < 0.6
    assert all(x0 <= 0 and y0 <= 0 and x1 >= 1 and y1 >= 1 for x0, y0, x1, y1 in expanded)
    assert random_window(boxes[:0], rng, how) != (0, 0, 1, 1)


def test_colours_change_grey_levels_alone_or_turn_about_grey() -> None:
    grey = np.broadcast_to(np.arange(60, 200, dtype=np.uint8)[:, None, None], (140, 2, 3))
    changed = 0
    for seed in range(60):
        matrix = random_colours(np.random.default_rng(seed))
        assert np.allclose(matrix[:, :3].sum(1), matrix[0, :3].sum()) and np.ptp(matrix[:, 3]) < 1e-9
        gain, lift = float(matrix[0, :3].sum()), float(matrix[0, 3])
        assert 0.5 <= gain <= 1.5 and abs(lift) <= 32 * 1.5
        got = colours.changed(np.ascontiguousarray(grey), matrix)
        assert np.abs(got - (grey * gain + lift).clip(0, 255)).max() <= 1
        changed += not np.allclose(matrix[:, :3], np.eye(3))
    assert 30 < changed < 60


def test_batches_depend_on_seed_epoch_and_number_alone(marked: BoxSet) -> None:
    plain, helped = (BoxBatches(marked, size=4, seed=3, workers=workers) for workers in (0, 2))
    parts = [BoxBatches(marked, size=4, seed=3, part=(i, 2)) for i in range(2)]
    uncached = BoxBatches(marked, size=4, seed=3, memory=0, workers=1)
    epochs = []
    for _ in range(2):
        for (x, y), (u, v), (c, d), *split in zip(plain, helped, uncached, *parts, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v) and torch.equal(x, c) and torch.equal(y, d)
            for i in range(2):
                assert torch.equal(x[i::2], split[i][0])
                rows = split[i][1].shape[1]
                assert torch.equal(y[i::2, :rows], split[i][1]) and not y[i::2, rows:].any()
            epochs.append(x)
    assert len(epochs) == 6 and not torch.equal(epochs[0], epochs[3])
    resumed = BoxBatches(marked, size=4, seed=3)
    resumed.seek(1, 2)
    assert torch.equal(next(iter(resumed))[0], epochs[5])
    assert len(plain.kept) == 12 and not uncached.kept


def test_memory_is_bounded(marked: BoxSet) -> None:
    batches = BoxBatches(marked, size=4, memory=5 * 80 * 100 * 3 + 7)
    list(batches)
    assert len(batches.kept) == 5 and batches.memory == 7
    ahead = BoxBatches(marked, size=4, memory=5 * 80 * 100 * 3 + 7, workers=1)
    list(ahead)
    assert sorted(ahead.kept) == list(range(5))
    small = BoxBatches(replace(marked, size=(10, 20)), size=4)
    list(small)
    assert {p.shape for p in small.kept.values()} == {(20, 40, 3)}


def test_a_damaged_picture_is_named(marked: BoxSet, tmp_path: Path) -> None:
    whole = tmp_path / "a.jpg"
    picture(whole, 100, 80)
    whole.write_bytes(whole.read_bytes()[:2000])
    spoiled = replace(marked, paths=(*marked.paths[:3], str(whole), *marked.paths[4:]))
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"a\.jpg: not a readable picture") as caught:
            list(BoxBatches(spoiled, size=4, workers=workers))
        assert "\n" not in str(caught.value)


def test_pictures_are_resized_without_regard_to_proportions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 50, 30)
    pixels = Image.open(tmp_path / "a.png")
    assert np.array_equal(decode_resized(tmp_path / "a.png", (30, 50)), np.asarray(pixels))
    half = pixels.resize((50, 15), Image.Resampling.BILINEAR)
    assert np.array_equal(decode_resized(tmp_path / "a.png", (15, 90), enlarge=False), np.asarray(half))
    large = pixels.resize((90, 60), Image.Resampling.BILINEAR)
    assert np.array_equal(decode_resized(tmp_path / "a.png", (60, 90)), np.asarray(large))


def test_spread_takes_pictures_at_equal_distances(marked: BoxSet) -> None:
    few = marked.spread(3)
    assert len(few) == 3 and few.paths == marked.paths[::4] and len(few.boxes) == len(few.difficult) == 3
    assert few.source == f"{marked.source}, 3 of them"
    assert few.sizes.shape == (3, 2) and few.classes == marked.classes and len(marked.spread(100)) == 12


# ---- real cells


def test_the_blood_cells_are_read_but_for_two_clicks(real_set: Callable[[str], Path]) -> None:
    bccd = real_set("bccd")
    errors = list[InputError]()
    sets = {s: voc_boxes.load(s, bccd, on_error=errors.append) for s in ("train", "val", "test")}
    assert [len(s) for s in sets.values()] == [205, 87, 72]
    for pictures in sets.values():
        assert pictures.classes == ("Platelets", "RBC", "WBC") and (pictures.sizes == (480, 640)).all()
    counts = sum(np.bincount(np.concatenate(s.boxes)[:, 4].astype(int), minlength=4) for s in sets.values())
    assert counts.tolist() == [0, 361, 4155 - 2, 372]
    assert [str(e).split("/")[-1].split(" ..")[0] for e in errors] == [
        "BloodImage_00343.xml: object 4 (RBC): the box 181, 329",
        "BloodImage_00338.xml: object 13 (RBC): the box 504, 337",
    ]
    assert all(str(e).endswith("is empty") for e in errors)
