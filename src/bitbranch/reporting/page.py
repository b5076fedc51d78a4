"""The bare HTML page: its style and its few building blocks. Everything is inside; nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def render(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole page; the title is plain text, lead and sections are HTML."""
    return _PAGE.format(title=escape(title), lead=lead, sections="\n".join(sections))


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def section(title: str, *parts: str) -> str:
    """A titled part of the page, of HTML parts."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """Rows of HTML cells; the first ``text_columns`` are set left, the others right as numbers."""

    def row(cells: Sequence[str], tag: str) -> str:
        made = (f"<{tag}{'' if i < text_columns else ' class=n'}>{c}</{tag}>" for i, c in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    header = f"<thead>{row([escape(h) for h in head], 'th')}</thead>" if any(head) else ""
    return f"<div class='wide'><table>{header}<tbody>{''.join(row(r, 'td') for r in rows)}</tbody></table></div>"


def legend(entries: Iterable[tuple[str, tuple[int, int, int]]]) -> str:
    """Names behind squares of their colours."""
    squares = (f"<span><i style='background:rgb({r},{g},{b})'></i>{escape(name)}</span>" for name, (r, g, b) in entries)
    return f"<p class=legend>{''.join(squares)}</p>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --ink: #1f2933; --faint: #7b8794; --line: #e4e7eb; --accent: #0b7285; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 64rem; padding: 3rem 1.5rem 5rem; background: #fff; color: var(--ink);
  font: 15px/1.55 Inter, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }}
h1 {{ font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }}
h2 {{ font-size: 1.25rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; }}
p {{ max-width: 46rem; }}
.lead {{ color: var(--faint); margin: 0; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem; margin: 1rem 0 2rem; }}
.card {{ border-top: 4px solid; background: #f7f9fb; border-radius: 4px; padding: .8rem 1rem 1rem; }}
.card h3 {{ margin: 0; }}
.card ul {{ list-style: none; padding: 0; margin: 0; font-size: .85rem; }}
.big {{ font-size: 2.2rem; font-weight: 600; line-height: 1.3; letter-spacing: -.02em; margin: 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; font-weight: 600; color: var(--faint); font-size: .82rem; vertical-align: bottom; }}
th, td {{ padding: .32rem 1.3rem .32rem 0; border-bottom: 1px solid var(--line); }}
th.n, td.n {{ text-align: right; white-space: nowrap; }}
small {{ color: var(--faint); }}
code {{ font: .9em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }}
.bar {{ display: inline-block; height: .6rem; background: var(--accent); opacity: .75; border-radius: 2px; }}
td.n:has(.bar) {{ text-align: left; min-width: 140px; }}
svg {{ max-width: 100%; height: auto; }}
.gallery {{ display: flex; flex-wrap: wrap; gap: .8rem; }}
figure {{ margin: 0; width: 84px; text-align: center; font-size: .78rem; line-height: 1.25; }}
figure img {{ width: 84px; height: 84px; image-rendering: pixelated; border: 1px solid var(--line); }}
figure.picture {{ width: auto; flex: 0 1 200px; min-width: 0; margin: 0 0 .6rem; }}
figure.picture img {{ width: 100%; height: auto; display: block; }}
.legend span {{ margin-right: 1rem; white-space: nowrap; font-size: .85rem; }}
.legend i {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -.1rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{sections}
</body>
</html>
"""
