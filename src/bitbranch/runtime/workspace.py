"""The memory of a plan: where the copies of its values lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from .layout import CHUNK, LINE, MAX_PIXELS, Form, Geometry, TapPairs, round_up


@dataclass(frozen=True, eq=False)
class Stored:
    """One stored copy of a value."""

    view: Any
    buffer: Any
    start: int
    plane_stride: int
    geometry: Geometry
    form: Form | None
    """``None``: int32."""


@dataclass(eq=False)
class Workspace:
    """Allocates buffers for batches up to ``capacity``."""

    core: Any
    capacity: int
    size: int = 0
    """Bytes of all buffers."""
    free: list[Any] = field(default_factory=list)
    """Buffers of integers that are no longer needed."""
    given_back: set[int] = field(default_factory=set)
    """The values whose buffers those were."""

    def buffer(self, size: int) -> Any:
        """New memory, zeroed.

        Raises:
            InputError: beyond the 32-bit distances of the kernels.
        """
        if size >= 1 << 31:
            raise InputError(f"a value of this program needs {size} bytes of memory; the engine's limit is 2 GiB")
        self.size += size
        return self.core.Buffer(size)

    def codes(self, channels: int, form: Form, geometry: Geometry) -> Stored:
        """Room for codes."""
        return self._planes(form.plane_count(channels) * len(geometry.phases), form, geometry)

    def _planes(self, planes: int, form: Form, geometry: Geometry, reach: int = 0) -> Stored:
        """``reach``: pixels that are read beyond where the pads would let one read."""
        stride = geometry.plane_stride(self.capacity, form.pixel_bytes)
        head = geometry.head(form.pixel_bytes)
        # A kernel reads a vector from any shift of any pixel of the last block.
        tail = round_up(head + (2 * MAX_PIXELS + reach) * form.pixel_bytes, LINE)
        buffer = self.buffer(head + planes * stride + tail)
        return Stored(self._view(buffer, head, stride, form, geometry), buffer, head, stride, geometry, form)

    def _view(self, buffer: Any, start: int, stride: int, form: Form, geometry: Geometry) -> Any:
        return self.core.View(
            buffer=buffer, start=start, stride=stride, pixel_bytes=form.pixel_bytes, height=geometry.phase_height,
            width=geometry.phase_width, rows=geometry.rows, pitch=geometry.pitch,
        )  # fmt: skip

    def single(self, channels: int, form: Form, pairs: TapPairs) -> Stored:
        """Room for single bytes from which pairs are made."""
        reach = max(distance for _, _, distance in pairs.halves())
        return self._planes(channels * len(pairs.geometry.phases), form, pairs.geometry, reach)

    def pairs(self, form: Form, pairs: TapPairs, like: Geometry) -> Stored:
        """Room for pairs of taps, whose pads are not 0: every plane has its own. ``like``: what the reader wants."""
        geometry = pairs.geometry
        head = geometry.head(form.pixel_bytes)
        tail = 2 * MAX_PIXELS * form.pixel_bytes
        stride = geometry.plane_stride(self.capacity, form.pixel_bytes) + 2 * round_up(head, LINE)
        buffer = self.buffer(head + len(pairs.planes) * stride + head + tail)
        return Stored(self._view(buffer, head, stride, form, geometry), buffer, head, stride, like, form)

    def integers(self, channels: int, geometry: Geometry) -> Stored:
        """Room for int32 planes, in memory that was given back where it fits."""
        stride = round_up(self.capacity * geometry.rows * geometry.pitch * 4, LINE) | LINE
        size = round_up(channels, CHUNK) * stride + MAX_PIXELS * 4
        fitting = [b for b in self.free if size <= b.size <= 2 * size]
        if fitting:
            buffer = min(fitting, key=lambda b: b.size)
            self.free.remove(buffer)
        else:
            buffer = self.buffer(size)
        view = self.core.View(
            buffer=buffer, start=0, stride=stride, pixel_bytes=4, height=geometry.height, width=geometry.width,
            rows=geometry.rows, pitch=geometry.pitch,
        )  # fmt: skip
        return Stored(view, buffer, 0, stride, geometry, None)

    def give_back(self, stored: Stored, value: int) -> None:
        """Let the memory of a value's integers be used again; that of codes is not, since its pads must stay 0."""
        if value not in self.given_back:
            self.given_back.add(value)
            self.free.append(stored.buffer)
