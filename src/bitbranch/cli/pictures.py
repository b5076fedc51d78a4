"""``bitbranch detect`` and ``bitbranch segment``: a compiled network on picture files, without torch."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..data.pictures import decode, read_bytes
from ..disk import write_bytes
from ..errors import BitbranchError, InputError
from ..reporting import pictures as drawn
from ..vision import Detector, Segmenter, check_shares

Result = dict[str, Any]
Say = Callable[[str], None]


def detect(
    net: Path, files: Sequence[Path], out: Path, *, threshold: float, most: float, threads: int, say: Say
) -> Result:
    """Find objects in pictures; write each with boxes, and ``detections.json``, into a folder.

    Args:
        net: the detector.
        files: pictures. One that cannot be read is reported, and the rest goes on.
        out: the folder.
        threshold, most: see :class:`Detector`.
        threads: of the engine.
        say: takes a line for each picture.
    """
    check_shares(threshold, most)
    detector = Detector(net, threads=threads)
    colours = drawn.palette(len(detector.classes))

    def one(file: Path, target: Path) -> tuple[Result, str]:
        found = detector(file, threshold=threshold, most=most)
        pixels = decode(read_bytes(file), str(file), upright=True)
        numbers = found[:, 5].astype(int) - 1
        labels = [f"{detector.classes[n]} {s:.2f}" for n, s in zip(numbers, found[:, 4], strict=True)]
        _save(target, drawn.with_boxes(pixels, found[:, :4], labels, [colours[n] for n in numbers]))
        height, width = pixels.shape[:2]
        objects = [
            {
                "class": detector.classes[number],
                "score": round(float(row[4]), 4),
                "box": [round(float(v), 1) for v in row[:4] * (width, height, width, height)],
            }
            for number, row in zip(numbers, found, strict=True)
        ]
        counts = {name: sum(o["class"] == name for o in objects) for name in detector.classes}
        said = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing"
        return {"width": width, "height": height, "objects": objects}, said

    return _each(files, out, one, "detections.json", say)


def segment(net: Path, files: Sequence[Path], out: Path, *, threads: int, say: Say) -> Result:
    """Outline classes in pictures; write each under its mask with a legend, the mask alone, and ``segments.json``.

    The masks are PNG files of 8 bits with a palette, whose numbers are the classes.

    Args:
        net: the network.
        files: pictures. One that cannot be read is reported, and the rest goes on.
        out: the folder.
        threads: of the engine.
        say: takes a line for each picture.
    """
    segmenter = Segmenter(net, threads=threads)

    def one(file: Path, target: Path) -> tuple[Result, str]:
        from PIL import Image

        pixels = decode(read_bytes(file), str(file), upright=True)
        mask = segmenter(pixels)
        background = 0 if segmenter.classes[0] == "background" else -1
        over = drawn.with_mask(pixels, mask, segmenter.colours, background=background)
        _save(target, drawn.with_legend(over, segmenter.classes, segmenter.colours))
        alone = Image.fromarray(mask)
        alone.putpalette([part for colour in segmenter.colours for part in colour])
        _save(target.with_name(f"{target.stem}-mask.png"), alone)
        counts = np.bincount(mask.ravel(), minlength=len(segmenter.classes)) / mask.size
        shares = {n: round(float(s), 4) for n, s in zip(segmenter.classes, counts, strict=True) if s}
        largest = sorted(shares, key=lambda name: -shares[name])[:3]
        said = ", ".join(f"{100 * shares[name]:.0f} % {name}" for name in largest)
        return {"width": mask.shape[1], "height": mask.shape[0], "shares": shares}, said

    return _each(files, out, one, "segments.json", say)


def _each(
    files: Sequence[Path], out: Path, one: Callable[[Path, Path], tuple[Result, str]], name: str, say: Say
) -> Result:
    """Work on all files, each with a target in the folder; status 2 if any fails.

    The listing keeps the rows of earlier calls whose pictures are there, and is written whatever happens.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be the output folder ({error.strerror})") from None
    if (out / name).is_dir():
        raise InputError(f"{out / name}: cannot be written: it is a folder")
    rows, errors = list[Result](), list[str]()
    listed = _written_before(out / name)
    ours = {f"{Path(picture).stem}{end}" for picture in listed for end in (".png", "-mask.png")}
    lying = {path.name: _real(path) for path in out.iterdir()}
    taken = {_real(file) for file in files}  # which stay as they are, as does what is not ours
    taken |= {path for name, path in lying.items() if name not in ours}
    earlier = {path for name, path in lying.items() if name in ours}
    try:
        for file in files:
            before = [Path(picture).stem for picture, row in listed.items() if row.get("file") == str(file)]
            target = _target(out, file, before, taken, earlier)
            try:
                row, said = one(file, target)
            except (BitbranchError, MemoryError) as error:
                text = " ".join(str(error).split())
                if isinstance(error, MemoryError):
                    text = f"{file}: too large for the memory there is ({text})"
                errors.append(text)
                say(f"bitbranch: error: {text}")
                continue
            rows.append({"file": str(file), "picture": target.name, **row})
            listed[target.name] = rows[-1]
            say(f"{file}: {said}")
    finally:
        kept = [row for picture, row in listed.items() if (out / picture).is_file()]
        write_bytes(out / name, (json.dumps(kept, indent=1) + "\n").encode())
    text = f"{len(rows)} of {len(files)} pictures; written to {out}: {name} and pictures"
    return {"out": str(out), "pictures": rows, "errors": errors, "status": 2 if errors else 0, "text": text}


def _written_before(listing: Path) -> dict[str, Result]:
    """The rows that calls before this one have written into the folder, by the names of their pictures.

    Raises:
        InputError: the file is something else.
    """
    if not listing.exists():
        return {}
    try:
        return {Path(row["picture"]).name: dict(row) for row in json.loads(listing.read_text())}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{listing}: is not what this command writes there; give another folder by --out") from None


def _real(path: Path) -> Path:
    """Without links; also of a link that leads to itself."""
    return Path(os.path.realpath(path))


def _target(out: Path, file: Path, before: Sequence[str], taken: set[Path], earlier: set[Path]) -> Path:
    """A picture's name in the folder: that of an earlier call, else its own, where nothing takes another's place.

    Args:
        out: the folder.
        file: the picture.
        before: names that it had.
        taken: files that stay as they are; the name's are added.
        earlier: those of earlier calls, which the same pictures may replace.
    """
    for number in count(1 - len(before)):
        again = number < 1
        name = before[number - 1] if again else file.stem if number == 1 else f"{file.stem}-{number}"
        wanted = {_real(out / f"{name}{end}") for end in (".png", "-mask.png")}
        if not wanted & (taken if again else taken | earlier):
            taken |= wanted
            return out / f"{name}.png"
    raise AssertionError


def _save(target: Path, picture: Any) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(target, buffer.getvalue())
