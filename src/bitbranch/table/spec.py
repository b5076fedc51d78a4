"""What a table consists of: a TOML file to rows, and a row and a seed to the configuration of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..training import config

NEEDS = re.compile(r"\{(runs?):([^{}]+)\}")
"""Stands in a row's configuration for the network that another row's run of the same seed ends with (``{run:NAME}``),
or for the list of those of all the row's seeds (``{runs:NAME}``, which stands alone)."""
KEYS = ("name", "note", "seeds", "common", "row")
ROW_KEYS = ("name", "published", "minus", "reason", "scheme", "seeds")
"""What a row holds beside the keys of a configuration."""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: unique.
        content: of its run's configuration, merged with what is common; empty where there is a ``reason``.
        needs: names of the rows whose networks it takes, of the same seed.
        gathers: names of the rows whose networks it takes, of all its seeds.
        seeds: of its runs.
        minus: name of the row that its accuracy is compared with; none is the first.
        published: what the method's paper reports, for people; not of the same setting.
        reason: why the row has no figure.
        scheme: of a network of one's own that quantizes itself, for people.
    """

    name: str
    content: Mapping[str, Any]
    needs: tuple[str, ...]
    gathers: tuple[str, ...]
    seeds: tuple[int, ...]
    minus: str = ""
    published: str = ""
    reason: str = ""
    scheme: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return folder_name(self.name)


def folder_name(name: str) -> str:
    """A name in small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Table:
    """Rows in the order of their runs; a row comes behind those that it needs.

    Paths in them are relative to ``folder``.
    """

    name: str
    note: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    folder: Path

    def runs(self, names: Sequence[str], seeds: Sequence[int]) -> list[tuple[Row, int]]:
        """Rows and seeds to run: all rows for one seed, then all for the next; what a chosen row needs comes before it.

        Args:
            names: of the chosen rows; none are all.
            seeds: the chosen ones; none are all.

        Raises:
            InputError: there is no such row or seed.
        """
        known = {row.name: row for row in self.rows}
        for name in names:
            if name not in known:
                raise InputError(f"table: no row {name!r}; there are {', '.join(map(repr, known))}")
        all_seeds = list(dict.fromkeys(s for row in self.rows for s in row.seeds))
        for seed in seeds:
            if seed not in all_seeds:
                raise InputError(f"table: no row has the seed {seed}; there are {', '.join(map(str, all_seeds))}")
        found: dict[tuple[str, int], Row] = {}  # in their order

        def add(row: Row, seed: int) -> None:
            if row.reason or seed not in row.seeds or (row.name, seed) in found:
                return
            for name in row.needs:
                add(known[name], seed)
            for name in row.gathers:
                for other in row.seeds:
                    add(known[name], other)
            found[row.name, seed] = row

        for seed in seeds or all_seeds:
            for name in [row.name for row in self.rows if not names or row.name in names]:
                add(known[name], seed)
        return [(row, seed) for (_, seed), row in found.items()]


def load(path: Path) -> Table:
    """Read a table's TOML file.

    Raises:
        InputError: missing or malformed, unknown keys, rows of one name, or a row that needs one that does not come
            before it; names the file and the row.
    """
    content = config.read(path)
    try:
        return _table(content, path.parent, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _table(content: Mapping[str, Any], folder: Path, name: str) -> Table:
    if "row" not in content and "network" in content:
        raise InputError("it has no rows: run it by bitbranch train, not table")
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise InputError(f"{unknown[0]}: unknown key; a table has {', '.join(KEYS)}")
    seeds = _seeds(content.get("seeds", [0]))
    common, tables = content.get("common", {}), content.get("row", [])
    if not isinstance(common, Mapping) or not isinstance(tables, list) or not tables:
        raise InputError("a table has one table [common] and some [[row]]")
    rows: list[Row] = []
    for table in tables:
        row = _row(table, common, seeds)
        for needed in (*row.needs, *row.gathers):
            if needed not in [r.name for r in rows if not r.reason]:
                raise InputError(f"row {row.name!r}: needs {needed!r}, which is no row before it")
        for other in (other for other in rows if other.name in (*row.needs, *row.gathers)):
            if lacking := sorted(set(row.seeds) - set(other.seeds)):
                raise InputError(f"row {row.name!r}: needs {other.name!r}, which has no seed {lacking[0]}")
        if row.folder in [r.folder for r in rows] or not row.folder:
            raise InputError(f"row {row.name!r}: the name is taken, or has no letters")
        if not row.reason:
            try:
                config.parse(configured(row, 0, lambda needed, _: Path(needed)), folder)
            except InputError as error:
                raise InputError(f"row {row.name!r}: {error}") from None
        rows.append(row)
    names = [row.name for row in rows]
    for row in rows:
        if row.minus and row.minus not in names:
            raise InputError(f"row {row.name!r}: minus {row.minus!r} is no row")
    return Table(str(content.get("name", name)), str(content.get("note", "")), seeds, tuple(rows), folder)


def _seeds(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(s) is int and 0 <= s < 2**31 for s in value):
        raise InputError(f"seeds: expected whole numbers from 0 to 2^31 - 1, got {value!r}")
    return tuple(dict.fromkeys(value))


def _row(table: object, common: Mapping[str, Any], seeds: tuple[int, ...]) -> Row:
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise InputError("row: every [[row]] is a table with a name")
    own = {key: value for key, value in table.items() if key not in ROW_KEYS}
    texts = {key: str(table.get(key, "")) for key in ("minus", "published", "reason", "scheme")}
    if texts["reason"] and own:
        raise InputError(f"row {table['name']!r}: has a reason why it is not run, and {', '.join(own)}")
    content = {} if texts["reason"] else merged(common, own)
    if "seed" in content:
        raise InputError(f"row {table['name']!r}: seed: a table, or a row, has seeds")
    needed = list(dict.fromkeys(found for text in _texts(content) for found in NEEDS.findall(text)))
    needs, gathers = (tuple(name for kind, name in needed if kind == wanted) for wanted in ("run", "runs"))
    seeds = _seeds(table["seeds"]) if "seeds" in table else seeds
    return Row(table["name"], content, needs, gathers, seeds, **texts)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, the second's values before the first's; lists are replaced as a whole."""
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        result[key] = merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def configured(row: Row, seed: int, network: Callable[[str, int], Path]) -> dict[str, Any]:
    """The configuration of a run, as :func:`bitbranch.training.config.parse` takes it.

    Args:
        row: the row.
        seed: of the run.
        network: where the network of a row, by its name and seed, lies.

    Raises:
        InputError: ``{runs:NAME}`` within a longer text.
    """

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if not isinstance(value, str):
            return value
        whole = NEEDS.fullmatch(value)
        if whole and whole[1] == "runs":
            return [str(network(whole[2], other)) for other in row.seeds]
        if any(kind == "runs" for kind, _ in NEEDS.findall(value)):
            raise InputError(f"row {row.name!r}: {value!r}: {{runs:NAME}} is a list, and stands alone")
        return NEEDS.sub(lambda found: str(network(found[2], seed)), value)

    content: dict[str, Any] = replaced(dict(row.content))
    return {"name": f"{row.name}, seed {seed}", **content, "seed": seed}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in _texts(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in _texts(item))
