"""``bitbranch demo --task detection|segmentation``: learn, quantize, compile, compare and show, on composed scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ..disk import write_bytes
from ..errors import InputError
from ..reporting import page as html
from ..table import command, page, spec
from ..training import checkpoint, config, tasks
from ..training.loop import to_stderr

TABLES = Path(__file__).parent.parent / "table" / "demos"
NETWORK = "two steps"
"""The row whose network is kept."""
QUICK = {"train_images": 400, "test_images": 60}
"""Of the data, in a quick demo."""


def run(task: str, *, out: Path, size: str = "standard", seed: int = 0) -> dict[str, Any]:
    """Run the demo of a task and write ``report.html``, ``net.bb``, and the table with its runs.

    Args:
        task: ``"detection"`` or ``"segmentation"``.
        out: folder for the files, made where missing; what is done there is not run again.
        size: ``"standard"``, ``"full"`` (twice the epochs) or ``"quick"`` (few scenes, one epoch).
        seed: of everything random.

    Returns:
        What ``table.json`` holds, with ``text`` for people, and ``failed`` where a row fails or an executor differs.

    Raises:
        InputError: ``out`` cannot be a folder, or holds another demo.
    """
    content = config.read(TABLES / f"{task}.toml")
    content["seeds"] = [seed]
    if size == "quick":
        content["common"]["data"] |= QUICK
        content["common"]["threads"] = 1  # to try how many are fastest would take longer
    for part in [content["common"], *content["row"]]:
        for settings in [part.get("train", {}), *part.get("phase", [])]:
            _resize(settings, size)
    file = out / "demo.json"
    text = json.dumps(content, indent=1).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if file.is_file() and file.read_bytes() != text:
            raise InputError(f"{out}: holds another demo; give another folder by --out")
    except OSError as error:
        raise InputError(f"{out}: cannot be the output folder ({error.strerror})") from None
    write_bytes(file, text)
    document: dict[str, Any] = command.run(command.Options(file, out), to_stderr)
    kept = next((row["runs"][0] for row in document["rows"] if row["name"] == NETWORK and row["runs"]), None)
    if kept is not None:
        shutil.copyfile(out / "runs" / f"{spec.folder_name(NETWORK)}-{seed}" / "net.bb", out / "net.bb")
    shown = _gallery(content, document, out, seed)
    write_bytes(
        out / "report.html", page.html(document, [html.section("Test images", shown)] if shown else []).encode()
    )
    differ = sum(run.get("differ", 0) for row in document["rows"] for run in row["runs"])
    lines = [document.pop("text"), f"report: {out / 'report.html'}"]
    return {**document, "failed": document["failed"] or differ > 0, "text": "\n".join(lines)}


def _resize(settings: dict[str, Any], size: str) -> None:
    """Change how long a phase takes."""
    if "epochs" in settings:
        settings["epochs"] = {"standard": settings["epochs"], "full": 2 * settings["epochs"], "quick": 1}[size]
    if size == "quick" and "samples" in settings:
        settings |= {"images": 100, "samples": 1000}


def _gallery(content: dict[str, Any], document: dict[str, Any], out: Path, seed: int) -> str:
    """Test images with what each row's network says of them."""
    task = tasks.read(config.parse(content["common"]).data)
    networks = {}
    for row in document["rows"]:
        if row["runs"]:
            recipe, network = checkpoint.load(out / "runs" / f"{spec.folder_name(row['name'])}-{seed}" / "net.pt")
            networks[recipe.scheme or "float"] = network
    return task.gallery(networks) if networks else ""
