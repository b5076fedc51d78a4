"""The types of a program's values: codes, integers with proven bounds, and real outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..contract import CodeType


@dataclass(frozen=True)
class Codes:
    """The type of a value that holds codes."""

    shape: tuple[int, int, int]
    code_type: CodeType


@dataclass(frozen=True)
class Integers:
    """The type of a value that holds accumulators or a residual stream, with proven bounds."""

    shape: tuple[int, int, int]
    lo: int
    hi: int

    @property
    def dtype(self) -> type[np.signedinteger]:
        """int16 where the bounds allow it, else int32."""
        return np.int16 if -(2**15) <= self.lo and self.hi < 2**15 else np.int32


@dataclass(frozen=True)
class Reals:
    """The type of a float32 output."""

    shape: tuple[int, int, int]


Value: TypeAlias = Codes | Integers | Reals

Images: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.uint8]
"""A batch of one input: normalised float32 or uint8 images, ``[N, C, H, W]``."""
Output: TypeAlias = Any
"""float32 ``[N, *output_shape]`` of a program with one output; of one with several, a tuple of such arrays in order."""
