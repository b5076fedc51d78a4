"""Boxes as COCO has them: folders of pictures, and a JSON file that describes all objects of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .box_set import BoxSet, Collector, Object, OnError


def load(
    split: str,
    folder: Path,
    *,
    size: tuple[int, int] = (300, 300),
    classes: Sequence[str] | None = None,
    on_error: OnError = None,
) -> BoxSet:
    """The pictures of ``annotations/instances_SPLIT.json``, in ``SPLIT``, ``images/SPLIT`` or ``images``.

    Classes are numbered ``1 .. C`` in the order of the file's category numbers, which have gaps. Crowds are difficult.
    A picture without objects is kept.

    Args:
        split: ``"train2017"``, ``"val2017"``.
        folder: around all of it.
        size: height and width that networks get.
        classes: their names, in order; None takes all of the file.
        on_error: what to do about a missing or unreadable picture, one of another size than the file says, an object
            of a picture or category that the file does not have, a box that is empty, inverted or outside; see
            :data:`~.box_set.OnError`.

    Raises:
        InputError: no such folders or file, a file that is something else; and what ``on_error`` is not there to take.
    """
    file = folder / "annotations" / f"instances_{split}.json"
    roots = [root for root in (folder / split, folder / "images" / split, folder / "images") if root.is_dir()]
    if not roots:
        raise InputError(f"{folder}: has no pictures in {split}, images/{split} or images")
    content = _content(file)
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = Collector(tuple(classes) if classes is not None else tuple(names[i] for i in sorted(names)), on_error)
    of_picture: dict[object, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        if item["image_id"] in of_picture:
            of_picture[item["image_id"]].append(item)
        else:
            found.report(InputError(f"{file}: annotation {item['id']}: there is no picture {item['image_id']}"))
    for image in content["images"]:
        path = roots[0] / image["file_name"]
        picture_size = found.picture(path, (image["height"], image["width"]))
        if picture_size is not None:
            found.add(path, picture_size, list(_objects(found, of_picture[image["id"]], names, f"{file}: {path.name}")))
    return found.finish(f"{folder.name} {split}", size)


_NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def _content(file: Path) -> dict[str, list[dict[str, Any]]]:
    """What the file holds, checked to have everything that is read."""
    try:
        text = file.read_bytes()
        content = json.loads(text) if text.strip() else None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{file}: not a JSON file ({error})") from None
    if content is None:
        raise InputError(f"{file}: the annotation file is empty")
    for part, keys in _NEEDED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file}: has no list {part!r}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(key in entry for key in keys):
                raise InputError(f"{file}: {part}[{number}] needs {', '.join(keys)}")
    return content


def _objects(found: Collector, items: list[dict[str, Any]], names: dict[object, str], where: str) -> Iterator[Object]:
    """The objects of one picture that can be read; the others are reported."""
    for item in items:
        label, name = f"{where}: annotation {item['id']}", names.get(item["category_id"])
        try:
            x, y, w, h = map(float, item["bbox"])
        except (TypeError, ValueError):
            found.report(InputError(f"{label}: bbox is not x, y, width, height: {item['bbox']!r}"))
            continue
        if name is None:
            found.report(InputError(f"{label}: there is no category {item['category_id']}"))
            continue
        yield Object(f"{label} ({name})", name, (x, y, x + w, y + h), bool(item.get("iscrowd")))
