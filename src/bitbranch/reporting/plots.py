"""The plots of the report, as SVG text to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLOURS = ("#7b8794", "#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c")
"""The first is for the float network, the others for low-bit networks in turn."""

MOST_BARS = 16
"""Codes with more values than this have no histogram."""

SIDES = (
    ((0, -8), "center", "top"),
    ((0, 8), "center", "bottom"),
    ((8, 0), "left", "center"),
    ((-8, 0), "right", "center"),
)
"""Where a point's name may stand: the offset in points, and which of its sides is there."""

Point = tuple[str, tuple[float, float], str]
"""A name, where its point is, and the colour of both."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bitbranch",
    "text.parse_math": False,  # names come from outside
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
}


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without prologue; closes it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def trade_off(networks: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against file size and against latency, side by side.

    Args:
        networks: each with ``name``, ``accuracy`` (0..1), ``bytes`` and ``milliseconds``, the float network first;
            those with a ``peer`` are drawn hollow, those without a number (None) in one plot are left out of it.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharey=True, layout="constrained")
        points: dict[Axes, list[Point]] = {axis: [] for axis in axes}
        for axis, key, label, unit in (
            (axes[0], "bytes", "file size (kB)", 1e3),
            (axes[1], "milliseconds", "latency of one image, one thread (ms)", 1.0),
        ):
            for colour, network in zip(_cycle(len(networks)), networks, strict=True):
                if network[key] is None:
                    continue
                x, y = network[key] / unit, 100 * network["accuracy"]
                colour = FAINT if network.get("peer") else colour
                axis.scatter(
                    [x], [y], s=60, color="none" if network.get("peer") else colour, edgecolor=colour, zorder=3
                )
                points[axis].append((network["name"], (x, y), colour))
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.xaxis.set_minor_formatter(lambda value, _: "")
            axis.set_xlabel(label)
            axis.margins(x=0.25, y=0.25)
        axes[0].set_ylabel("test accuracy (%)")
        figure.draw_without_rendering()  # so that places are known
        for axis in axes:
            _name(axis, points[axis])
        return svg(figure)


def _name(axis: Axes, points: Sequence[Point]) -> None:
    """Write names beside points, on the first side where they cover nothing; below, if there is none."""
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in (axis.transData.transform(at) for _, at, _ in points)]
    taken: list[Bbox] = []
    for name, at, colour in points:
        text = axis.annotate(name, at, (0, 0), textcoords="offset points", color=colour, fontsize=9)
        for offset, ha, va in (*SIDES, SIDES[0]):
            text.set(position=offset, ha=ha, va=va)
            box = text.get_window_extent()
            inside = axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1
            if inside and not any(box.overlaps(other) for other in (*dots, *taken)):
                break
        taken.append(box)


def curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Loss and training accuracy by epoch, one line for each training; empty histories are left out.

    Args:
        histories: name to epochs, each with ``number``, ``loss`` and ``accuracy`` (0..1).
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.2, 2.9), layout="constrained")
        for colour, (name, epochs) in zip(_cycle(len(histories)), histories.items(), strict=True):
            if not epochs:
                continue
            numbers = [e["number"] for e in epochs]
            axes[0].plot(numbers, [e["loss"] for e in epochs], "o-", ms=3, color=colour, label=name)
            axes[1].plot(numbers, [100 * e["accuracy"] for e in epochs], "o-", ms=3, color=colour)
        for axis, label in zip(axes, ("training loss", "training accuracy (%)"), strict=True):
            axis.set_xlabel("epoch")
            axis.set_ylabel(label)
            axis.xaxis.get_major_locator().set_params(integer=True)
        figure.legend(loc="outside upper center", ncols=len(histories), frameon=False)
        return svg(figure)


class _Plain(LogFormatter):
    """The numbers of a logarithmic axis where matplotlib would label it, as plain text: formulas are not set here."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def run_curves(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Loss and accuracy of a run, phase after phase along one axis of epochs.

    Args:
        rows: of the run's log: ``phase``, ``epoch`` within it, and ``loss`` and ``accuracy`` (0..1) of training images
            or ``test_loss`` and ``test_`` and the figure.
        figure: name of the figure, 0..1, that test images are judged by.
    """
    begin, offset, phases = 0.0, list[float](), list[tuple[str, float]]()
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or before["phase"] != row["phase"]:
            begin = offset[-1] if offset else 0.0
            phases.append((row["phase"], begin))
        offset.append(begin + row["epoch"])
    with plt.rc_context(STYLE):
        drawn, axes = plt.subplots(1, 2, figsize=(9.2, 3.2), layout="constrained")
        label = "accuracy (%)" if figure == "accuracy" else f"training: accuracy, test: {figure} (%)"
        panels = ((axes[0], ("loss", "test_loss"), 1, "loss"), (axes[1], ("accuracy", f"test_{figure}"), 100, label))
        for axis, keys, unit, label in panels:
            for key, colour, name in zip(keys, COLOURS, ("training images", "test images"), strict=False):
                points = [(x, unit * row[key]) for x, row in zip(offset, rows, strict=True) if key in row]
                axis.plot(*zip(*points, strict=True) if points else ([], []), color=colour, lw=1.2, label=name)
            for _, start in phases[1:]:
                axis.axvline(start, color=GRID, lw=1, zorder=0)
            axis.set_xlabel("epoch")
            axis.set_ylabel(label)
        if any(row.get(key, 0) > 0 for row in rows for key in ("loss", "test_loss")):
            axes[0].set_yscale("log")
            axes[0].yaxis.set_major_formatter(_Plain())
            axes[0].yaxis.set_minor_formatter(_Plain())
        axes[0].legend(frameon=False)
        return svg(drawn)


def histograms(layers: Mapping[str, Mapping[str, Any]], colour: str) -> str:
    """How often each value occurs at the input of each layer of at most 4 bits, one small panel a layer.

    Args:
        layers: layer name to its input's code ``type`` and ``counts`` by rank (smallest value first).
        colour: of the bars.
    """
    layers = {name: layer for name, layer in layers.items() if len(layer["counts"]) <= MOST_BARS}
    with plt.rc_context(STYLE):
        count = max(1, len(layers))
        figure, axes = plt.subplots(1, count, figsize=(9.2, 1.5), layout="constrained", squeeze=False)
        for axis, (name, layer) in zip(axes[0], layers.items(), strict=False):
            counts = layer["counts"]
            total = sum(counts) or 1
            axis.bar(range(len(counts)), [100 * c / total for c in counts], color=colour, width=0.85)
            axis.set_title(f"{name}: {layer['type']}", fontsize=8.5, color=INK)
            axis.set_xticks([])
            axis.tick_params(labelsize=8)
            axis.grid(axis="x", visible=False)
        axes[0][0].set_ylabel("% of codes", fontsize=8.5)
        return svg(figure)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
