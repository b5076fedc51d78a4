"""Boxes in folders as Pascal VOC has them: JPEGImages, Annotations, ImageSets/Main."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from .box_set import BoxSet, Collector, Object, OnError, picture_file
from .pictures import read_text


def load(
    split: str,
    folder: Path,
    *,
    size: tuple[int, int] = (300, 300),
    classes: Sequence[str] | None = None,
    on_error: OnError = None,
) -> BoxSet:
    """The pictures that ``ImageSets/Main/SPLIT.txt`` lists, and their boxes.

    The corners in a file are the first and the last pixel of an object, counted from 1; of what reaches out of the
    picture by a pixel at most, that pixel is cut. A picture without objects is kept.

    Args:
        split: name of the list: ``"train"``, ``"val"``, ``"trainval"``, ``"test"``; or of several: ``"train+val"``.
        folder: one with the three folders, or one around several of those, whose lists are joined: VOC2007 and VOC2012
            in ``VOCdevkit`` give VOC07+12 for ``"trainval"``.
        size: height and width that networks get.
        classes: their names, in order; None takes all names in the folders' annotations, sorted, so that all splits
            have the same ones, and VOC's its usual order.
        on_error: what to do about a missing or unreadable picture, a missing, empty or unreadable annotation, a class
            that is not expected, a box that is empty, inverted or outside; see :data:`~.box_set.OnError`.

    Raises:
        InputError: no such folders or list, nothing readable in them; and what ``on_error`` is not there to take.
    """
    around = _roots(folder)
    found = Collector(tuple(classes) if classes is not None else _names(around), on_error)
    for name in split.split("+"):
        roots = [root for root in around if _list(root, name).is_file()]
        if not roots:
            raise InputError(f"{folder}: has no Annotations, JPEGImages and ImageSets/Main/{name}.txt")
        for root in roots:
            for line in read_text(_list(root, name)).splitlines():
                if line.strip():
                    _add(found, root, line.strip())
    return found.finish(f"{folder.name} {split}", size)


def _list(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _listed(root: Path, line: str) -> str:
    """The picture that a line names; in a class's list, a number behind it says whether the class is there."""
    return line if _annotation(root, line).is_file() else re.sub(r"\s+-?[01]$", "", line)


def _annotation(root: Path, name: str) -> Path:
    return root / "Annotations" / f"{name}.xml"


def _roots(folder: Path) -> list[Path]:
    """The folder itself, or those in it, that have annotations."""
    if (folder / "Annotations").is_dir():
        return [folder]
    return sorted(p.parent for pattern in ("*/Annotations", "VOCdevkit/*/Annotations") for p in folder.glob(pattern))


def _names(roots: list[Path]) -> tuple[str, ...]:
    """All classes in the annotations that can be read, sorted."""
    names = set[str]()
    for path in (p for root in roots for p in (root / "Annotations").glob("*.xml")):
        try:
            names |= {_text(item, "name", path) for item in _parsed(path).findall("object")}
        except InputError:
            continue  # reported with its picture, if a split has it
    return tuple(sorted(names))


def _add(found: Collector, root: Path, line: str) -> None:
    """Add the picture that a line of the list names, or report what is wrong with it."""
    try:
        name = _listed(root, line)
        annotation = _annotation(root, name)
        path = picture_file(root / "JPEGImages" / name)
        if path is None:
            raise InputError(f"{annotation}: has no picture JPEGImages/{name}.jpg")
        tree = _parsed(annotation)
        size = found.picture(path, _size(tree, annotation))
        if size is not None:
            found.add(path, size, list(_objects(found, tree, annotation)))
    except InputError as error:
        found.report(error)
    except (OSError, ValueError):  # it can be no file's name
        found.report(InputError(f"{root}: the list's line {line[:40]!r} names no picture"))


def _size(tree: ET.Element, path: Path) -> tuple[int, int] | None:
    """Height and width that an annotation states; some tools leave them out, or 0."""
    if tree.find("size") is None:
        return None
    height, width = (_number(tree, f"size/{side}", str(path)) for side in ("height", "width"))
    if not math.isfinite(height + width):
        raise InputError(f"{path}: size {width} x {height} is not finite")
    return (int(height), int(width)) if height and width else None


def _objects(found: Collector, tree: ET.Element, path: Path) -> Iterator[Object]:
    """The objects that can be read; the others are reported."""
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"{path}: object {number}"
        try:
            name = _text(item, "name", where)
            x0, y0, x1, y1 = (_number(item, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax"))
            if x0 == x1 or y0 == y1:  # one pixel wide by the letter, in truth a click of the mouse
                raise InputError(f"{where} ({name}): the box {x0:g}, {y0:g} .. {x1:g}, {y1:g} is empty")
        except InputError as error:
            found.report(error)
            continue
        yield Object(
            f"{where} ({name})", name, (x0 - 1, y0 - 1, x1, y1), item.findtext("difficult", "0").strip() == "1"
        )


def _parsed(path: Path) -> ET.Element:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise InputError(f"{path}: the annotation is empty")
    try:
        return ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two for encodings
        raise InputError(f"{path}: not an XML file ({error})") from None


def _text(item: ET.Element, tag: str, where: object) -> str:
    text = (item.findtext(tag) or "").strip()
    if not text:
        raise InputError(f"{where}: has no {tag}")
    return text


def _number(item: ET.Element, tag: str, where: str) -> float:
    text = _text(item, tag, where)
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {tag} is not a number: {text!r}") from None
