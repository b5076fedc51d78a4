"""The lists that ``detect`` and ``segment`` keep of what they wrote: what stays, what is refused, what is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bitbranch.cli import pictures
from bitbranch.errors import InputError


def work(files: list[Path], out: Path, *, until: int = 99) -> Any:
    """Write grey pictures; ``until`` so many have been made."""
    done = [0]

    def one(file: Path, target: Path) -> tuple[dict[str, Any], str]:
        if done[0] == until:
            raise KeyboardInterrupt
        done[0] += 1
        if not file.is_file():
            raise InputError(f"{file}: not a readable picture")
        Image.new("L", (4, 4)).save(target)
        return {"objects": [done[0]]}, "made"

    return pictures._each(files, out, one, "list.json", lambda _: None)


def files(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (2, 2)).save(folder / name)
    return [folder / name for name in names]


def listed(out: Path) -> list[str]:
    return [row["picture"] for row in json.loads((out / "list.json").read_text())]


def test_later_calls_keep_the_rows_of_earlier_ones(tmp_path: Path) -> None:
    a, b = files(tmp_path / "in", "a.png", "b.png")
    out = tmp_path / "out"
    work([a], out)
    work([b], out)
    assert listed(out) == ["a.png", "b.png"] and {p.name for p in out.iterdir()} == {"a.png", "b.png", "list.json"}
    again = work([a, tmp_path / "in" / "none.png"], out)
    assert again["status"] == 2 and [row["picture"] for row in again["pictures"]] == ["a.png"]
    assert listed(out) == ["a.png", "b.png"]
    (out / "a.png").unlink()
    work([tmp_path / "in" / "none.png"], out)
    assert listed(out) == ["b.png"]


def test_pictures_of_one_name_keep_their_places_from_call_to_call(tmp_path: Path) -> None:
    (a,), (b,), out = files(tmp_path / "a", "x.png"), files(tmp_path / "b", "x.png"), tmp_path / "out"
    work([a], out)
    work([b], out)
    assert listed(out) == ["x.png", "x-2.png"]
    work([b, a, b], out)
    rows = {row["picture"]: row["file"] for row in json.loads((out / "list.json").read_text())}
    assert rows == {"x.png": str(a), "x-2.png": str(b), "x-3.png": str(b)}


def test_an_interrupted_call_lists_what_it_wrote(tmp_path: Path) -> None:
    three, out = files(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        work(three, out, until=2)
    assert listed(out) == ["a.png", "b.png"]
    work(three, out)
    assert listed(out) == ["a.png", "b.png", "c.png"] and len(list(out.iterdir())) == 4


@pytest.mark.parametrize("content", ['{"mine": 1}', "[1]", "text", '[{"name": "x"}]'])
def test_a_list_of_others_stays(content: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "list.json").write_text(content)
    with pytest.raises(InputError, match=r"list\.json: is not what this command writes there"):
        work(files(tmp_path / "in", "a.png"), out)
    assert (out / "list.json").read_text() == content and len(list(out.iterdir())) == 1


def test_links_that_lead_to_themselves_end_no_batch(tmp_path: Path) -> None:
    (good,) = files(tmp_path / "in", "a.png")
    loop = tmp_path / "in" / "loop.png"
    loop.symlink_to(loop)
    out = tmp_path / "out"
    out.mkdir()
    (out / "self.png").symlink_to(out / "self.png")
    assert work([good, loop], out)["status"] == 2 and listed(out) == ["a.png"]
