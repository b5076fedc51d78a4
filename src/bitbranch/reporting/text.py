"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rule: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; bars within cells are escaped, and each cell is one line.

    Args:
        head: names of the columns.
        rule: how each is aligned, such as ``---:``.
        rows: of as many cells.
    """
    return [f"| {' | '.join(_cell(text) for text in row)} |" for row in (head, rule, *rows)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
