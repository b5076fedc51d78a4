"""The README's picture and table of the demo's figures, from its ``summary.json``.

    python tools/readme_figures.py build/demo/summary.json

Writes ``docs/demo.svg`` and ``docs/results/demo.json``, and prints the table as Markdown.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bitbranch.cli import report
from bitbranch.reporting import plots

ROOT = Path(__file__).parents[1]


def main(summary_file: Path) -> None:
    """Write the picture and the summary, print the table."""
    summary = json.loads(summary_file.read_text())
    (ROOT / "docs/results").mkdir(parents=True, exist_ok=True)
    (ROOT / "docs/results/demo.json").write_text(json.dumps(summary, indent=1) + "\n")
    picture = plots.trade_off(report._points(summary))
    (ROOT / "docs/demo.svg").write_text('<?xml version="1.0" encoding="utf-8"?>\n' + picture)

    networks = summary["networks"]
    settings = [("1", "1"), ("1", "64"), ("2", "64")]
    base = networks[0]["latency_ms"]["torch f32"]
    accuracies = {peer["name"]: peer["accuracy"] for peer in summary["peers"]}
    print("| network | executor | accuracy % | file kB | 1 image | 64 images | 64 images, 2 threads |")
    print("|---|---|---|---|---|---|---|")
    for n in networks:
        own = n["latency_ms"] if n is networks[0] else {"engine": n["latency_ms"]["engine"]}
        for executor, times in own.items():
            accuracy = f"{100 * accuracies.get(executor, n['accuracy']):.2f}"
            size = f"{n['file_bytes'] / 1e3:.1f}" if executor not in accuracies else ""
            cells = [f"{times[t][b]:.3f} ({base[t][b] / times[t][b]:.1f}x)" for t, b in settings]
            print(f"| {n['name']} | {executor} | {accuracy} | {size} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
