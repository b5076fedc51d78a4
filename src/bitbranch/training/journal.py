"""What a run has to tell: rows of its log, and the files made of them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..disk import write_bytes
from .config import Config
from .loop import Training
from .report import render

Row = dict[str, Any]

COLUMNS = ("phase", "step", "epoch", "seconds", "lr", "loss", "accuracy")
"""Of ``log.csv``, and behind them ``test_..``: a row is of training images or of test images."""

PAUSE = 50
"""Drawing takes at most one part in so many of the time."""


class Journal:
    """The log of a run.

    Args:
        config: of the run.
        folder: where ``log.csv``, ``log.jsonl`` and ``report.html`` go.
        figure: name of the figure, 0..1, that test images are judged by.

    Attributes:
        rows: of the log.
        phases: those that are finished, with what they gave.
    """

    def __init__(self, config: Config, folder: Path, figure: str) -> None:
        self.config, self.folder, self.figure = config, folder, figure
        self.rows: list[Row] = []
        self.phases: list[Row] = []
        self.mark = [0.0, 0.0, 0.0]  # the sums of the epoch at its last row
        self.due = 0.0

    def trained(self, phase: str, training: Training, before: float) -> None:
        """Add a row of the training images since the last one; ``before`` are the seconds of the phases before.

        Without ``accuracy`` where the objective judges no answers.
        """
        loss, right, seen = (now - then for now, then in zip(training.sums, self.mark, strict=True))
        self.mark = list(training.sums)
        self.rows.append(
            {
                "phase": phase,
                "step": training.step,
                "epoch": round(training.step / training.steps_per_epoch, 4),
                "seconds": round(before + training.seconds, 2),
                "lr": training.optimizer.param_groups[0]["lr"],
                "loss": loss / seen,
            }
            | ({"accuracy": right / seen} if training.objective.judges else {})
        )

    def close_epoch(self) -> None:
        """The sums of the training begin anew."""
        self.mark = [0.0, 0.0, 0.0]

    def tested(self, phase: str, epoch: int, seconds: float, found: Mapping[str, float]) -> None:
        """Add a row of the test images; their figures get the prefix ``test_``."""
        figures = {f"test_{name}": value for name, value in found.items()}
        self.rows.append({"phase": phase, "epoch": epoch, "seconds": round(seconds, 2), **figures})

    def show(self, status: str, *, now: bool = False, gallery: str = "") -> None:
        """Write the files, if it is time for it, or ``now``; ``gallery`` is HTML for the report."""
        start = time.monotonic()
        if start < self.due and not now:
            return
        buffer = io.StringIO()
        tested = dict.fromkeys(key for row in self.rows for key in row if key.startswith("test_"))
        writer = csv.DictWriter(buffer, [*COLUMNS, *tested], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(self.folder / "log.csv", buffer.getvalue().encode())
        write_bytes(self.folder / "log.jsonl", "".join(f"{json.dumps(row)}\n" for row in self.rows).encode())
        html = render(self.config, self.rows, self.phases, status, self.figure, gallery)
        write_bytes(self.folder / "report.html", html.encode())
        end = time.monotonic()
        self.due = end + PAUSE * (end - start)

    def state_dict(self) -> dict[str, Any]:
        """For :meth:`load_state_dict`, of plain types."""
        return {"rows": self.rows, "phases": self.phases, "mark": self.mark}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as it was when :meth:`state_dict` was taken."""
        self.rows, self.phases, self.mark = list(state["rows"]), list(state["phases"]), list(state["mark"])
