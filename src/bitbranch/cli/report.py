"""``report.html``: one self-contained page of what the demo did, measured and found wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import image as mpl_image

from ..reporting import page, plots

Summary = Mapping[str, Any]
"""What ``summary.json`` holds; see :func:`render`."""


@dataclass(frozen=True)
class Mistake:
    """An image that a network got wrong: uint8 ``[H, W]`` or ``[H, W, 3]``, with the two class names."""

    image: npt.NDArray[np.uint8]
    truth: str
    guess: str


def render(summary: Summary, mistakes: Mapping[str, Sequence[Mistake]]) -> str:
    """The page as HTML text.

    Args:
        summary: ``date``, ``seed``, ``command``, ``seconds``; ``machine`` and ``versions`` (name to text); ``data``
            (``name``, ``train``, ``test``, ``licence``); ``notes`` (lines of text); ``ablation`` (each ``step``,
            ``accuracy``); ``peers`` (``name`` in the float network's ``latency_ms``, ``accuracy``, ``file_bytes``); and
            ``networks``, the float one first, each with ``name``, ``scheme``, ``accuracy``,
            ``float_accuracy``, ``file_bytes``, ``float_bytes``, ``bit_budget``, ``bit_mismatches``,
            ``seconds_to_train``, ``latency_ms`` (executor to threads to batch to milliseconds a call), ``layers``
            (``name``, ``kernel``, ``milliseconds`` and, with weights, ``weights``, ``inputs``, ``macs``, ``bytes``),
            ``equality`` (``executor``, ``compared``, ``different``), ``histograms`` (layer to ``type`` and ``counts``
            by rank) and ``training`` (epochs: ``number``, ``loss``, ``accuracy``).
        mistakes: network name to images that it got wrong.
    """
    networks: Sequence[Summary] = summary["networks"]
    low_bit = networks[1:]
    sections = [
        page.section("Result", _cards(networks), plots.trade_off(_points(summary)), _overview(networks)),
        page.section("Equality", _equality_text(low_bit), _equality(low_bit)),
        page.section("Latency", _latency_text(summary), _latency(networks)),
        page.section("Two-step quantization, step by step", _ablation_text(), _ablation(summary["ablation"])),
        page.section("Layers", _layers_text(), *(_layers(n) for n in low_bit)),
        page.section("Codes", _codes_text(), *(_histogram(n, i + 1) for i, n in enumerate(low_bit))),
        page.section("Training", _training_text(), plots.curves({n["name"]: n["training"] for n in networks})),
        page.section("What they got wrong", *(_gallery(name, images) for name, images in mistakes.items())),
        page.section("Limits", page.bullets(summary["notes"])),
        page.section("Machine and versions", _facts(summary)),
    ]
    data = summary["data"]
    lead = (
        f"{escape(data['name'])}: {data['train']:,} training and {data['test']:,} test images. "
        f"{escape(summary['date'])}, seed {summary['seed']}, {summary['seconds']:.0f} s in all."
    )
    return page.render("From a float network to low-bit integers", lead, sections)


def _points(summary: Summary) -> Sequence[Summary]:
    """The networks for the plot, then ONNX Runtime's forms of the float network."""
    networks: Sequence[Summary] = summary["networks"]
    own = [
        {"name": n["name"], "accuracy": n["accuracy"], "bytes": n["file_bytes"], "milliseconds": own_latency(n)}
        for n in networks
    ]
    times = networks[0]["latency_ms"]
    peers = [
        {
            "name": peer["name"],
            "accuracy": peer["accuracy"],
            "bytes": peer["file_bytes"] if peer["accuracy"] != networks[0]["accuracy"] else None,
            "milliseconds": times[peer["name"]]["1"]["1"],
            "peer": True,
        }
        for peer in summary["peers"]
    ]
    return own + peers


def own_latency(network: Summary, threads: str = "1", batch: str = "1") -> float:
    """Milliseconds a call of the executor that the network is made for: the first in ``latency_ms``."""
    first: Mapping[str, Mapping[str, float]] = next(iter(network["latency_ms"].values()))
    return float(first[threads][batch])


def _cards(networks: Sequence[Summary]) -> str:
    reference = networks[0]
    cards = []
    for i, n in enumerate(networks):
        ms = own_latency(n)
        facts = [f"{n['file_bytes'] / 1e3:,.1f} kB", f"{ms:.3f} ms an image"]
        if n is not reference:
            drop = 100 * (n["accuracy"] - n["float_accuracy"])
            facts[0] += f", <b>{n['float_bytes'] / n['file_bytes']:.1f}x smaller</b>"
            facts[1] += f", <b>{own_latency(reference) / ms:.1f}x faster</b>"
            facts.insert(0, f"{drop:+.2f} points against float")
            facts.append(f"{n['bit_mismatches']:,} differing numbers")
        else:
            facts.insert(0, "the reference, PyTorch, one thread")
        lines = "".join(f"<li>{fact}</li>" for fact in facts)
        cards.append(
            f"<div class='card' style='border-color:{plots.COLOURS[i % len(plots.COLOURS)]}'>"
            f"<h3>{escape(n['name'])}</h3><p class='big'>{100 * n['accuracy']:.2f}<small> %</small></p>"
            f"<ul>{lines}</ul></div>"
        )
    return f"<div class='cards'>{''.join(cards)}</div>"


def _overview(networks: Sequence[Summary]) -> str:
    rows = [
        [
            escape(n["name"]),
            f"<code>{escape(n['scheme'])}</code>",
            f"{100 * n['accuracy']:.2f}",
            f"{100 * (n['accuracy'] - n['float_accuracy']):+.2f}",
            f"{n['file_bytes'] / 1e3:,.1f}",
            f"{100 * (n['file_bytes'] / n['bit_budget'] - 1):+.2f}" if n.get("bit_budget") else "",
            f"{n['float_bytes'] / n['file_bytes']:.1f}x",
            f"{n['seconds_to_train']:.0f}",
        ]
        for n in networks
    ]
    head = [
        "network", "scheme", "accuracy %", "against float", "file kB", "file against bit budget %", "smaller",
        "training s",
    ]  # fmt: skip
    return page.table(head, rows, text_columns=2)


def _equality_text(networks: Sequence[Summary]) -> str:
    total = sum(n["bit_mismatches"] for n in networks)
    return (
        "<p>Every executor computes the same integers. Codes and accumulators at every layer, and the bits of the "
        f"float32 outputs, are compared with the NumPy reference: <b>{total:,} differ</b>.</p>"
    )


def _equality(networks: Sequence[Summary]) -> str:
    """One row for each executor, one column for each network."""
    by_executor: dict[str, list[str]] = {}
    for n in networks:
        for e in n["equality"]:
            cell = f"{e['different']:,} <small>of {e['compared']:,}</small>"
            by_executor.setdefault(e["executor"], []).append(cell)
    head = ["executor", *(f"{n['name']}: differ" for n in networks)]
    return page.table(head, [[escape(name), *cells] for name, cells in by_executor.items()], text_columns=1)


def _latency_text(summary: Summary) -> str:
    return (
        "<p>Milliseconds a call, medians of interleaved runs in one process on "
        f"{escape(str(summary['machine'].get('processor', 'this machine')))}. The engine's calls include checking and "
        "encoding the float images. Behind each time: how many times faster than PyTorch. Absolute times "
        "move with the machine's load; the ratios move less.</p>"
    )


def _latency(networks: Sequence[Summary]) -> str:
    settings = sorted(
        {(int(t), int(b)) for n in networks for e in n["latency_ms"].values() for t in e for b in e[t]},
        key=lambda s: (s[1], s[0]),
    )
    base = networks[0]
    own = [(n, *next(iter(n["latency_ms"].items()))) for n in networks[1:]]
    rows = []
    for n, executor, times in [*((base, *item) for item in base["latency_ms"].items()), *own]:
        cells = [escape(n["name"]), escape(executor)]
        for t, b in settings:
            ms = times[str(t)][str(b)]
            cells.append(f"{ms:.3f} <small>{own_latency(base, str(t), str(b)) / ms:.1f}x</small>")
        rows.append(cells)
    head = ["network", "executor", *(f"batch {b}, {t} thread{'s' if t > 1 else ''}" for t, b in settings)]
    return page.table(head, rows, text_columns=2)


def _ablation_text() -> str:
    return (
        "<p>Step 1 learns sparse codes with float weights. Step 2 solves for ternary weights layer by layer, without "
        "gradients. Each row adds one part of the method (Wang et al., CVPR 2018).</p>"
    )


def _ablation(rows: Sequence[Summary]) -> str:
    cells = []
    for before, row in zip([None, None, *rows[1:]], rows, strict=False):
        change = "" if before is None else f"{100 * (row['accuracy'] - before['accuracy']):+.2f}"
        cells.append([escape(row["step"]), f"{100 * row['accuracy']:.2f}", change])
    return page.table(["step", "accuracy %", "change"], cells, text_columns=1)


def _layers_text() -> str:
    return (
        "<p>Every step of the engine for one image on one thread; medians. Types: u unsigned, b bipolar, s signed, t "
        "ternary, with their bits.</p>"
    )


def _layers(network: Summary) -> str:
    layers = network["layers"]
    longest = max((row["milliseconds"] for row in layers), default=0) or 1
    rows = [
        [
            escape(row["name"]),
            escape(row.get("weights", "")),
            escape(row.get("inputs", "")),
            escape(row["kernel"]),
            f"{row['macs'] / 1e6:.2f}" if "macs" in row else "",
            f"{row['bytes'] / 1e3:.1f}" if "bytes" in row else "",
            f"{1e3 * row['milliseconds']:.1f}",
            _bar(row["milliseconds"] / longest),
        ]
        for row in layers
    ]
    head = ["step", "weights", "input codes", "kernel", "million MAC", "weights kB", "microseconds", ""]
    return f"<h3>{escape(network['name'])}</h3>" + page.table(head, rows, text_columns=4)


def _codes_text() -> str:
    return "<p>How often each value occurs at the input of each layer, smallest value first, on test images.</p>"


def _histogram(network: Summary, index: int) -> str:
    colour = plots.COLOURS[index % len(plots.COLOURS)]
    return f"<h3>{escape(network['name'])}</h3>" + plots.histograms(network["histograms"], colour)


def _training_text() -> str:
    return (
        "<p>Loss and accuracy on the training images, augmented. The low-bit networks' loss has a part from the float "
        "network's soft targets, so losses of different networks do not compare. tsq: only the tuning at the end.</p>"
    )


def _gallery(name: str, mistakes: Sequence[Mistake]) -> str:
    figures = "".join(
        f"<figure><img alt='' src='{_png(m.image)}'><figcaption>{escape(m.guess)}<br>"
        f"<small>is {escape(m.truth)}</small></figcaption></figure>"
        for m in mistakes
    )
    return f"<h3>{escape(name)}</h3><div class='gallery'>{figures}</div>"


def _png(image: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    mpl_image.imsave(buffer, image, format="png", cmap="gray", vmin=0, vmax=255)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _facts(summary: Summary) -> str:
    facts = {**summary["machine"], **summary["versions"], "command": summary["command"]}
    return page.table(["", ""], [[escape(k), escape(str(v))] for k, v in facts.items()], text_columns=2)


def _bar(share: float) -> str:
    return f"<span class='bar' style='width:{120 * share:.0f}px'></span>"
