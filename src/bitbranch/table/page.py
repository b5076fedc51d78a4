"""A table as text, Markdown, a page, and a plot of its accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..reporting import page, plots
from ..reporting.text import markdown_table
from .rows import judged

Document = Mapping[str, Any]


def _head(document: Document) -> list[str]:
    return ["method", "scheme", f"{document['figure']} %", "minus", "points", "published", "kB", "ms", "training"]


def _cells(document: Document) -> list[list[str]]:
    rows = []
    for row in document["rows"]:
        runs = row["runs"]
        if not runs:
            errors = [f"seed {seed} failed: {error}" for seed, error in row["failed"].items()]
            why = row["reason"] or "; ".join(errors) or "not run yet"
            rows.append([row["name"], *[""] * 4, row["published"], "", "", why])
            continue
        first = runs[0]
        scheme = row["scheme"] or first["scheme"]
        size = _size(row)
        latency = document["latency"].get(row["name"])
        rows.append(
            [
                row["name"],
                scheme or "float",
                _spread(100 * row["mean"], row.get("spread")) + f" ({len(runs)})",
                row["minus"] if "difference" in row else "",
                _spread(100 * row["difference"], row.get("difference spread"), "+") if "difference" in row else "",
                row["published"],
                f"{size / 1e3:.1f}" if size else "",
                f"{latency['milliseconds']:.3f}" if latency else "",
                f"{sum(r['seconds'] for r in runs) / len(runs) / 60:.1f} min",
            ]
        )
    return rows


def _size(row: Mapping[str, Any]) -> float:
    """Bytes of the file, or of a float network's parameters; 0 for what is neither."""
    first = row["runs"][0]
    return float(first.get("bytes", 0 if row["scheme"] or first["scheme"] else 4 * first["parameters"]))


def _spread(value: float, spread: float | None, sign: str = "") -> str:
    return f"{value:{sign}.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")


def _remarks(document: Document) -> list[str]:
    """What has to be said of the figures."""
    runs = [run for row in document["rows"] for run in row["runs"]]
    sources = list(dict.fromkeys(run["source"] for run in runs))
    seeds = sorted({run["seed"] for run in runs})
    lines = [document["note"]] if document["note"] else []
    if runs:
        lines.append(f"Data: {'; '.join(sources)}. Seeds {', '.join(map(str, seeds))}; behind ±: standard deviation.")
    lines.append(
        "Figures are those of the compiled program where there is one, in the engine, on all test images; (n): seeds; "
        "points: the mean over the seeds that both rows have. "
        "kB: the file, or the parameters in float32. ms: one image, one thread, of the engine; of torch for float."
    )
    compared = [run for run in runs if "differ" in run]
    if compared:
        differ, images = sum(r["differ"] for r in compared), sum(r["images"] for r in compared)
        lines.append(
            f"Engine and integer reference: outputs differ on {differ} of {images} images, {len(compared)} runs."
        )
    wrong = list(dict.fromkeys(error for run in runs for error in run.get("left_out", [])))
    if wrong:
        lines.append(f"Left out of the data, as they are wrong, {len(wrong)}: {'; '.join(wrong[:3])}")
    for row in document["rows"]:
        reasons = {run["not compiled"] for run in row["runs"] if run.get("not compiled", "float") != "float"}
        lines += [f"{row['name']} does not compile: {reason}" for reason in sorted(reasons)]
        lines += [
            f"{row['name']}, seed {seed} was run with another configuration: {key} differs"
            for seed, key in row.get("changed", {}).items()
        ]
        lines += [f"{row['name']}, seed {seed} failed: {error}" for seed, error in row["failed"].items()]
    return lines


def _machine(document: Document) -> str:
    parts = {**document["machine"], **document["versions"]}
    return f"{document['date']}; " + ", ".join(f"{name} {value}" for name, value in parts.items())


def text(document: Document) -> str:
    """For a terminal."""
    cells = [_head(document), *_cells(document)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]) - 1)] + [0]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([document["name"], *lines, *_remarks(document)])


def markdown(document: Document) -> str:
    """As Markdown."""
    rule = ["---", "---", *["---:"] * 2, "---:", "---", "---:", "---:", "---"]
    lines = markdown_table(_head(document), rule, _cells(document))
    remarks = [f"- {line}" for line in _remarks(document)]
    return "\n".join([f"# {document['name']}", "", *lines, "", *remarks, f"- {_machine(document)}", ""])


def html(document: Document, more: Sequence[str] = ()) -> str:
    """As a page, with more sections, of HTML, in the middle."""
    cells = [[escape(cell) for cell in row] for row in _cells(document)]
    sections = [
        page.section("Figures", plot(document)),
        page.section("Methods", page.table(_head(document), cells, text_columns=2)),
        *more,
        page.section("About these figures", page.bullets([*_remarks(document), _machine(document)])),
    ]
    return page.render(document["name"], escape(_machine(document)), sections)


def plot(document: Document) -> str:
    """Accuracy of every row: runs, mean and spread, with the size beside, as SVG."""
    from matplotlib import pyplot as plt

    shown = [row for row in document["rows"] if row["runs"]]
    with plt.rc_context(plots.STYLE):
        figure, axis = plt.subplots(figsize=(9.2, 0.7 + 0.3 * max(3, len(shown))), layout="constrained")
        names = [row["name"] for row in shown]
        for at, row in enumerate(shown):
            colour = plots.COLOURS["bytes" in row["runs"][0]]
            y, x = len(shown) - at, 100 * row["mean"]
            single = [100 * judged(run) for run in row["runs"]]
            axis.plot(single, [y] * len(single), "o", ms=3.5, color=colour, alpha=0.45)
            axis.errorbar(x, y, xerr=100 * row.get("spread", 0.0), fmt="|", ms=12, color=colour, elinewidth=1.2)
            size = f", {_size(row) / 1e3:.0f} kB" if _size(row) else ""
            axis.annotate(
                f"{x:.2f} %{size}", (1.01, y), xycoords=("axes fraction", "data"), va="center",
                fontsize=8.5, color=colour,
            )  # fmt: skip
        if shown:
            axis.axvline(100 * shown[0]["mean"], color=plots.GRID, zorder=0)
        axis.set_yticks(range(len(shown), 0, -1), names)
        axis.set_xlabel(f"test {document['figure']} (%): runs, their mean and standard deviation")
        axis.grid(axis="y", visible=False)
        return plots.svg(figure)
