"""Boxes as COCO has them: folders of pictures, and a JSON file that describes all objects of a split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .box_set import BoxSet, Collector, Object, OnError

Entry = dict[str, Any]


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
        on_error: what to do about a missing or unreadable picture, one of another size than the file says or with
            another's id, an object of a picture or category that the file does not have, a box that is empty, inverted
            or outside; see :data:`~.box_set.OnError`.

    Raises:
        InputError: no such folders or file, a file that is something else; and what ``on_error`` is not there to take.
    """
    file = folder / "annotations" / f"instances_{split}.json"
    roots = [root for root in (folder / split, folder / "images" / split, folder / "images") if root.is_dir()]
    if not roots:
        raise InputError(f"{folder}: has no pictures in {split}, images/{split} or images")
    content = _content(file)
    names = dict[int | str, str]()
    for number, category in enumerate(content["categories"]):
        wrong = _wrong(category, "categories")
        if wrong:
            raise InputError(f"{file}: categories[{number}] {wrong}")
        if category["id"] in names or category["name"] in names.values():
            raise InputError(f"{file}: categories[{number}]: its id or its name is another's: {category!r:.100}")
        names[category["id"]] = category["name"]
    ordered = tuple(names[i] for i in sorted(names, key=lambda i: (isinstance(i, str), i)))
    found = Collector(tuple(classes) if classes is not None else ordered, on_error)
    pictures = list[Entry]()
    of_picture = dict[int | str, list[Entry]]()
    for image in _sound(found, file, content, "images"):
        if image["id"] in of_picture:
            found.report(InputError(f"{file}: picture {image['file_name']}: its id {image['id']} is another's"))
            continue
        pictures.append(image)
        of_picture[image["id"]] = []
    for item in _sound(found, file, content, "annotations"):
        if item["image_id"] in of_picture:
            of_picture[item["image_id"]].append(item)
        else:
            found.report(InputError(f"{file}: annotation {item['id']}: there is no picture {item['image_id']}"))
    for image in pictures:
        path = roots[0] / image["file_name"]
        picture_size = found.picture(path, (image["height"], image["width"]))
        if picture_size is not None:
            found.add(path, picture_size, list(_objects(found, of_picture[image["id"]], names, f"{file}: {path.name}")))
    return replace(found.finish(f"{folder.name} {split}", size), crowds=True)


_NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "images": {"id": (int, str), "file_name": (str,), "height": (int,), "width": (int,)},
    "annotations": {"id": (int, str), "image_id": (int, str), "category_id": (int, str), "bbox": (list,)},
    "categories": {"id": (int, str), "name": (str,)},
}
_KINDS = {int: "a whole number", str: "text", list: "a list"}


def _wrong(entry: object, part: str) -> str:
    """What is wrong with an entry of a part, or nothing."""
    if not isinstance(entry, dict):
        return f"needs {', '.join(_NEEDED[part])}, and is {entry!r:.100}"
    for key, kinds in _NEEDED[part].items():
        if key not in entry:
            return f"needs {', '.join(_NEEDED[part])}; it has no {key}"
        if type(entry[key]) not in kinds:
            return f"needs {' or '.join(_KINDS[kind] for kind in kinds)} as {key}, not {entry[key]!r:.100}"
    return ""


def _sound(found: Collector, file: Path, content: dict[str, list[Any]], part: str) -> Iterator[Entry]:
    """The entries of a part that have what is read of them; the others are reported."""
    for number, entry in enumerate(content[part]):
        wrong = _wrong(entry, part)
        if wrong:
            found.report(InputError(f"{file}: {part}[{number}] {wrong}"))
        else:
            yield entry


def _content(file: Path) -> dict[str, list[Any]]:
    """What the file holds, checked to have the lists that are read."""
    try:
        text = file.read_bytes()
        content = json.loads(text) if text.strip() else None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error})") from None
    if content is None:
        raise InputError(f"{file}: the annotation file is empty")
    for part in _NEEDED:
        if not isinstance(content.get(part) if isinstance(content, dict) else None, list):
            raise InputError(f"{file}: has no list {part!r}")
    return dict(content)


def _objects(found: Collector, items: list[Entry], names: dict[int | str, str], where: str) -> Iterator[Object]:
    """The objects of one picture that can be read; the others are reported."""
    for item in items:
        label, name = f"{where}: annotation {item['id']}", names.get(item["category_id"])
        try:
            x, y, w, h = map(float, item["bbox"])
        except (TypeError, ValueError, OverflowError):
            found.report(InputError(f"{label}: bbox is not x, y, width, height: {item['bbox']!r:.100}"))
            continue
        if name is None:
            found.report(InputError(f"{label}: there is no category {item['category_id']}"))
            continue
        yield Object(f"{label} ({name})", name, (x, y, x + w, y + h), bool(item.get("iscrowd")))
