"""A result of ``bitbranch bench`` as text, as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..reporting.text import markdown_table
from ..runtime.profile import Profile
from . import levels, stats

PACKAGES = (
    "bitbranch", "numpy", "torch", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer",
    "litert-torch", "ncnn", "pnnx",
)  # fmt: skip
"""Whose versions a result states."""

Row = Mapping[str, Any]
Setting = tuple[int, int, str]
"""Threads, batch size, level."""


def settings(result: Mapping[str, Any]) -> list[Setting]:
    """The settings of a result, in the order of its rows."""
    return list(dict.fromkeys((r["threads"], r["batch"], r["level"]) for r in result["times"]))


def lines_of(result: Mapping[str, Any], setting: Setting) -> tuple[list[Row], list[Row]]:
    """The rows of a setting: those measured, the fastest first and one for each executor, and those that were not."""
    rows = [r for r in result["times"] if (r["threads"], r["batch"], r["level"]) == setting]
    best: dict[str, Row] = {}
    for row in sorted((r for r in rows if "milliseconds" in r), key=lambda r: r["milliseconds"]):
        best.setdefault(row["executor"], row)
    missing = {r["executor"]: r for r in rows if "milliseconds" not in r and r["executor"] not in best}
    return list(best.values()), list(missing.values())


def own_of(result: Mapping[str, Any], measured: Sequence[Row]) -> list[Row]:
    """The engine's rows, in the order of the programs."""
    rows = {r["executor"]: r for r in measured}
    names = [f"bitbranch {name}" for name in result["network"]["programs"]]
    return [rows[name] for name in names if name in rows]


def ratios(result: Mapping[str, Any], setting: Setting) -> dict[tuple[str, str], stats.Ratio]:
    """(peer, own executor) to how many times longer the peer takes, at one setting."""
    measured, _ = lines_of(result, setting)
    own = own_of(result, measured)
    return {
        (peer["executor"], mine["executor"]): stats.ratio(stats.Times.from_dict(peer), stats.Times.from_dict(mine))
        for peer in measured
        for mine in own
        if peer is not mine
    }


def text(result: Mapping[str, Any], profile: bool = False) -> str:
    """Tables for a terminal, with the engine's profiles on request."""
    lines = list(_document(result, _plain_table, ""))
    for row in result["times"] if profile else []:
        if "steps" in row:
            lines += ["", f"{row['executor']}, {row['isa']}, {row['threads']} thread(s), batch {row['batch']}"]
            lines.append(str(Profile.from_dict(row["profile"] | {"steps": row["steps"]})))
    return "\n".join(lines)


def markdown(result: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    return "\n".join(["# " + _title(result), "", *_document(result, _markdown_table, "## ")]) + "\n"


def _title(result: Mapping[str, Any]) -> str:
    c, h, w = result["network"]["shape"]
    return f"{result['network']['name']}, images {c}x{h}x{w}, weights {result['network']['weights']}"


def _document(result: Mapping[str, Any], table: Any, heading: str) -> Iterator[str]:
    machine, versions = result["machine"], result["versions"]
    if not heading:
        yield _title(result)
    yield f"{result['date']}; {', '.join(f'{k}: {v}' for k, v in machine.items())}"
    yield ", ".join(f"{k} {v}" for k, v in versions.items())
    yield (
        f"Milliseconds a call: median (quartiles) of {result['rounds']} rounds, in which the executors take turns, each"
        " in a process of its own pinned to as many processors as threads, where there are so many. Ratios (/ NAME):"
        " how many times longer than bitbranch's program NAME, median (quartiles) of the rounds' ratios. torch runs"
        " operation by operation, its BatchNorms too; the others have them within the convolutions."
    )
    yield ""
    for setting in settings(result):
        threads, batch, level = setting
        meaning = levels.MEANING.get(level, level)
        yield f"{heading}{threads} thread{'s' * (threads > 1)}, batch {batch}, instructions: {meaning}"
        yield ""
        measured, missing = lines_of(result, setting)
        own = [r["executor"] for r in own_of(result, measured)] if len(measured) > 1 else []
        found = ratios(result, setting)
        head = [
            "executor",
            "ms a call",
            "quartiles",
            "per image",
            *(f"/ {name.split(' ', 1)[1]}" for name in own),
        ]
        cells = []
        for r in measured:
            what = r["isa"] or r["variant"]
            cells.append(
                [
                    r["executor"] + (f" ({what})" if what else ""),
                    f"{r['milliseconds']:.3f}",
                    "..".join(f"{q:.3f}" for q in r["quartiles"]),
                    f"{r['milliseconds'] / batch:.3f}",
                    *(str(found[r["executor"], name]) if (r["executor"], name) in found else "" for name in own),
                ]
            )
        yield from table(head, cells)
        reasons: dict[str, list[str]] = {}
        for r in missing:
            reasons.setdefault(r["reason"], []).append(r["executor"])
        for reason, names in reasons.items():
            yield f"{'- ' if heading else '  '}not measured: {', '.join(names)}: {reason}"
        yield ""
    yield from _accuracy(result, table)
    yield "Sizes: " + "; ".join(
        f"{name} {p['bytes']:,} bytes (bit budget {p['bit_budget']:,})"
        for name, p in result["network"]["programs"].items()
    )


def _accuracy(result: Mapping[str, Any], table: Any) -> Iterator[str]:
    if not result["accuracy"]:
        why = "no executor gave its outputs" if result.get("labelled") else "no labelled images were given"
        yield f"No accuracy: weights are {result['network']['weights']}, and {why}."
        return
    head = ["executor", "accuracy %", "same answer as torch f32 %"]
    cells = [
        [name, f"{100 * a['accuracy']:.2f}", f"{100 * a['agreement']:.2f}" if "agreement" in a else ""]
        for name, a in result["accuracy"].items()
    ]
    yield from table(head, cells)
    yield ""


def _plain_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [head, *rows]
    ]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*markdown_table(head, ["---"] + ["---:"] * (len(head) - 1), rows), ""]


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot(result: Mapping[str, Any]) -> str:
    """Milliseconds of every executor as bars, one panel a setting, as an SVG document."""
    from matplotlib import pyplot as plt

    from ..reporting import plots

    shown = [(s, lines_of(result, s)[0]) for s in settings(result)]
    heights = [0.6 + 0.26 * len(rows) for _, rows in shown]
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            len(shown), 1, figsize=(8.5, 0.5 + sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
        )
        for axis, ((threads, batch, level), rows) in zip(axes[:, 0], shown, strict=True):
            y = range(len(rows), 0, -1)
            ms = [r["milliseconds"] for r in rows]
            error = [[abs(m - r["quartiles"][end]) for m, r in zip(ms, rows, strict=True)] for end in (0, 1)]
            own = [r["executor"].startswith("bitbranch ") for r in rows]
            colours = [plots.COLOURS[1] if o else "#cbd2d9" for o in own]
            axis.barh(list(y), ms, xerr=error, color=colours, ecolor=plots.FAINT, height=0.7, error_kw={"lw": 1})
            ends = [max(m, r["quartiles"][1]) for m, r in zip(ms, rows, strict=True)]
            for at, m, end, o in zip(y, ms, ends, own, strict=True):
                axis.annotate(
                    f"{m:.3g}", (end, at), (6, 0), textcoords="offset points", va="center", fontsize=8.5,
                    color=plots.COLOURS[1] if o else plots.INK,
                )  # fmt: skip
            axis.set_yticks(list(y), [r["executor"] for r in rows])
            axis.set_xlim(0, 1.12 * max(ends, default=1))
            axis.grid(axis="y", visible=False)
            plural = "s" * (threads > 1)
            axis.set_title(f"{threads} thread{plural}, batch {batch}, {level}: ms a call", loc="left", fontsize=9.5)
        figure.suptitle(_title(result), fontsize=11)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + plots.svg(figure)
