"""Keep the compiled network of a table's run in ``networks/``, with a card that says what it is.

    python tools/keep_network.py RUNS/tsq-ternary-2-bits-0 bccd-ssd-wt-a2 --table benchmarks/tables/bccd.toml \
        --float RUNS/float-0 --about "Finds blood cells in microscope pictures." --licence "MIT, as BCCD's pictures"

Writes ``networks/NAME.bb`` and ``networks/NAME.md``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from bitbranch.table.spec import folder_name
from bitbranch.training.config import read

NETWORKS = Path(__file__).parents[1] / "networks"
MOST_BYTES = 2_000_000
FIGURES = {
    "map": ("detection", "mAP@0.5"),
    "miou": ("segmentation", "mIoU"),
    "accuracy": ("classification", "Accuracy"),
}


def main() -> None:
    """Read the command line, copy the network and write the card."""
    parser = argparse.ArgumentParser(description="Keep a network of a table's run in networks/, with a card.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("name")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--float", type=Path, required=True, metavar="RUN", help="the float network beside it")
    parser.add_argument("--about", required=True, help="a sentence: what it does")
    parser.add_argument("--licence", required=True, help="of the network, and what it follows from")
    parser.add_argument("--command", help="that made it; default: of the table")
    options = parser.parse_args()
    if (options.run / "net.bb").stat().st_size > MOST_BYTES:
        parser.error(f"{options.run / 'net.bb'} has more than {MOST_BYTES:,} bytes")
    NETWORKS.mkdir(exist_ok=True)
    shutil.copyfile(options.run / "net.bb", NETWORKS / f"{options.name}.bb")
    (NETWORKS / f"{options.name}.md").write_text(card(options))


def card(options: argparse.Namespace) -> str:
    """The card's Markdown."""
    row, config = _read(options.run, "row"), _read(options.run, "config")
    beside = _read(options.float, "row")
    figure = row.get("figure", "accuracy")
    table = read(options.table)
    (name,) = (r["name"] for r in table["row"] if f"{folder_name(r['name'])}-{row['seed']}" == options.run.name)
    made = options.command or f'bitbranch table {options.table} --rows "{name}" --seeds {row["seed"]}'
    network = config["network"]
    others = {"first": network["first"], "last": network["last"], **network.get("layers", {})}
    facts = {
        "Task": FIGURES[figure][0],
        "Network": f"`{network['model']}`, `{json.dumps(network['arguments'])}`",
        "Precision": f"`{row['scheme']}`; " + ", ".join(f"{layer} `{scheme}`" for layer, scheme in others.items()),
        "File": f"{row['bytes']:,} bytes, {row['parameters']:,} parameters",
        "Data": f"{config['data']['set']} {config['data'].get('train_split', '')}".strip()
        + f"; tested on {row['source']}",
        "Trained": _history(options.run),
        "Seed": str(row["seed"]),
        FIGURES[figure][
            1
        ]: f"{100 * row[figure]:.2f} %; float: {100 * beside[figure]:.2f} % ({_history(options.float)})",
        "Engine and reference": f"outputs differ on {row['differ']} of {row['images']} images",
        "Licence": options.licence,
        "Made by": f"`{made}`",
    }
    lines = [f"# {options.name}", "", options.about, "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {fact} | {text} |" for fact, text in facts.items())]) + "\n"


def _history(run: Path) -> str:
    """The phases of a run, after those of the run that it starts from."""
    config = _read(run, "config")
    start = Path(config["network"]["start"])
    before = [_history(run.parent / start.parent.name)] if start.name else []
    phases = []
    for phase in config["phase"]:
        scheme = phase["scheme"] or (config["network"]["scheme"] if phase is config["phase"][0] else "")
        length = f"{phase['images']} images" if phase["kind"] == "transforms" else f"{phase['epochs']} epochs"
        phases.append(" ".join(filter(None, [phase["kind"], scheme and f"`{scheme}`", length])))
    return "; then ".join([*before, *phases])


def _read(run: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / f"{name}.json").read_text())
    return content


if __name__ == "__main__":
    main()
