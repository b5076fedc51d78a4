"""Where image sets are kept."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "BITBRANCH_DATA"


def root() -> Path:
    """The folder that holds a folder for each set: ``BITBRANCH_DATA``, or ``~/.cache/bitbranch/data``."""
    variable = os.environ.get(VARIABLE)
    return Path(variable) if variable else Path.home() / ".cache" / "bitbranch" / "data"
