"""What every test starts from: no cost table of the user who runs the tests, and no forced kernels."""

from __future__ import annotations

import os

os.environ["BITBRANCH_TUNING"] = "off"
os.environ.pop("BITBRANCH_FAMILY", None)
