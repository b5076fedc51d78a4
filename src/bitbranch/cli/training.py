"""The commands that train: ``bitbranch train`` and ``bitbranch data``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import places, sets
from ..errors import InputError
from ..training import config, runner

Result = dict[str, object]
RECIPES = Path(__file__).parent.parent / "training" / "recipes"


def train(name: str, out: Path | None, changes: Sequence[str], say: Callable[[str], None]) -> Result:
    """Run a configuration, or go on with it.

    Args:
        name: of a file, or of a recipe that comes with bitbranch.
        out: folder of the run; None is ``runs/`` and the configuration's name.
        changes: ``KEY=VALUE``, keys with dots, values as in TOML or bare words; paths are from the current folder on.
        say: takes progress lines.
    """
    path = Path(name) if Path(name).is_file() else RECIPES / f"{name}.toml"
    if not path.is_file():
        recipes = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InputError(f"{name}: no such file or recipe; recipes are {recipes}")
    content = config.read(path)
    for change in changes:
        _change(content, change)
    try:
        checked = config.parse(content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    results = runner.run(checked, out or Path("runs") / path.stem, progress=say)
    if int(os.environ.get("RANK", "0")):
        raise SystemExit(0)  # of several processes the first one prints
    figure = results["figure"]
    lines = [f"{p['name']}: {100 * p[figure]:.2f} %, {p['seconds']:.0f} s" for p in results["phases"]]
    lines.append(f"{results['net']}: test {figure} {100 * results[figure]:.2f} %")
    lines += left_out(results)
    return {**results, "status": 2 if results.get("left_out") else 0, "text": "\n".join(lines)}


def left_out(result: Mapping[str, Any]) -> list[str]:
    """A line about the pictures and objects that a run did without, if any."""
    errors = result.get("left_out", [])
    return [f"left out {len(errors):,} that are wrong: {errors[0]}" + (" .." if errors[1:] else "")] if errors else []


def _change(content: dict[str, Any], change: str) -> None:
    """Put one ``KEY=VALUE`` into a nested table.

    ``phase.2.epochs=3`` means the second phase; ``train.epochs=3`` all of them, whatever they say themselves.
    """
    key, equals, text = change.partition("=")
    if not equals:
        raise InputError(f"--set {change}: expected KEY=VALUE")
    *parents, last = key.split(".")
    if parents[:1] == ["phase"] and "phase" not in content:
        raise InputError(f"--set {change}: there are no phases; use train.{last}")
    for phase in content.get("phase", []) if parents == ["train"] else []:
        if isinstance(phase, dict):
            phase.pop(last, None)
    table: Any = content
    for parent in parents:
        if isinstance(table, list):
            if not (parent.isdecimal() and 1 <= int(parent) <= len(table)):
                raise InputError(f"--set {change}: there are {len(table)} phases")
            table = table[int(parent) - 1]
        else:
            table = table.setdefault(parent, {})
        if not isinstance(table, (dict, list)):
            raise InputError(f"--set {change}: {parent} is no table")
    if isinstance(table, list):
        raise InputError(f"--set {change}: which phase? phase.1.{last}=..")
    value = config.toml_value(text)
    if len(parents) == 1 and last in config.PATHS.get(parents[0], ()):
        value = [_from_here(path) for path in value] if isinstance(value, list) else _from_here(value)
    table[last] = value


def _from_here(path: object) -> object:
    """A path from the current folder on, not from the configuration's."""
    return str(Path.cwd() / path) if isinstance(path, str) and path and not path.startswith("~") else path


def data(name: str | None, source: Path | None, say: Callable[[str], None]) -> Result:
    """List the sets, or prepare one from an archive or a folder."""
    if source is not None:
        wanted = sets.find(name or "")
        wanted.bring(source, say)
    rows, lines = list[Result](), list[str]()
    for each in sets.SETS.values() if name is None else [sets.find(name)]:
        folder = None if each.folder is None else each.place()
        found, wrong = list[str](), ""
        try:
            found += [each.read(split, folder or Path()).source for split in (each.splits[0], each.splits[-1])]
        except InputError as error:
            found.clear()
            wrong = str(error) if folder is not None and folder.exists() else ""
        rows.append({"name": each.name, "title": each.title, "folder": folder and str(folder), "found": found})
        state = "; ".join(found) or (f"not usable: {wrong}" if wrong else f"not found; {each.origin}")
        lines.append(f"{each.name}: {each.title}\n    {folder or 'in the package'}: {state}")
    return {"root": str(places.root()), "sets": rows, "text": "\n".join(lines)}
