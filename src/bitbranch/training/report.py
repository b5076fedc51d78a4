"""The page that shows how a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .config import Config

REFRESH = 15
"""Seconds after which a browser loads the page of a run on its way again."""


ON_ITS_WAY = "on its way"
"""How the status of a run begins that goes on."""


def render(
    config: Config,
    rows: Sequence[Mapping[str, Any]],
    phases: Sequence[Mapping[str, Any]],
    status: str,
    figure: str,
    gallery: str = "",
) -> str:
    """The page as HTML, with its curves in it; while the run is on its way it loads itself again.

    Args:
        config: of the run.
        rows: of its log.
        phases: those that are finished.
        status: ``"finished"``, what the run does behind :data:`ON_ITS_WAY`, or why it stopped.
        figure: name of the figure, 0..1, that test images are judged by.
        gallery: HTML that shows some of them.
    """
    from ..reporting import page, plots

    title = config.name or f"{config.network.model} on {config.data.set}"
    lead = escape(status) + (f"; {escape(config.source)}" if config.source else "")
    if status.startswith(ON_ITS_WAY):
        lead += f"<meta http-equiv='refresh' content='{REFRESH}'>"
    done = [
        [escape(p["name"]), escape(p["scheme"] or "float"), f"{100 * p[figure]:.2f}", f"{p['seconds']:.0f}"]
        for p in phases
    ]
    sections = [
        page.section("Curves", plots.run_curves(rows, figure)),
        page.section("Phases", page.table(["phase", "scheme", f"test {figure} %", "seconds"], done, text_columns=2)),
        *([page.section("Test images", gallery)] if gallery else []),
        page.section("Configuration", page.table(["", ""], _settings(config.as_dict()), text_columns=2)),
    ]
    return page.render(title, lead, sections)


def _settings(table: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Name and value of everything in a nested table, as HTML."""
    rows = []
    for key, value in table.items():
        if key == "phase":
            for i, phase in enumerate(value, 1):
                rows += _settings(phase, f"phase {i}: ")
        elif isinstance(value, Mapping) and value:
            rows += _settings(value, f"{prefix}{key}.")
        elif value not in ("", None, [], {}):
            rows.append([escape(f"{prefix}{key}"), f"<code>{escape(str(value))}</code>"])
    return rows
