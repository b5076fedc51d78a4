"""The memory of a plan: where the copies of its values lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import InputError
from .checks import Pair
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
        return self._codes(form.plane_count(channels) * len(geometry.phases), form, geometry)

    def single(self, channels: int, form: Form, pairs: TapPairs) -> Stored:
        """Room for single bytes from which pairs are made."""
        return self._codes(channels * len(pairs.geometry.phases), form, pairs.geometry, pairs.reach)

    def _codes(self, planes: int, form: Form, geometry: Geometry, reach: int = 0) -> Stored:
        """Room for so many planes; ``reach``: pixels that are read beyond where the pads would let one read."""
        stride = geometry.plane_stride(self.capacity, form.pixel_bytes)
        head = geometry.head(form.pixel_bytes)
        # A kernel reads a vector from any shift of any pixel of the last block.
        tail = round_up(head + (2 * MAX_PIXELS + reach) * form.pixel_bytes, LINE)
        buffer = self.buffer(head + planes * stride + tail)
        return self._stored(buffer, head, stride, geometry, form)

    def pairs(self, form: Form, pairs: TapPairs) -> Stored:
        """Room for pairs of taps, whose pads are not 0: every plane has its own."""
        geometry = pairs.geometry
        head = geometry.head(form.pixel_bytes)
        stride = geometry.plane_stride(self.capacity, form.pixel_bytes) + 2 * head
        buffer = self.buffer(head + len(pairs.planes) * stride + head + 2 * MAX_PIXELS * form.pixel_bytes)
        return self._stored(buffer, head, stride, geometry, form)

    def _stored(self, buffer: Any, start: int, stride: int, geometry: Geometry, form: Form) -> Stored:
        stored = Stored(None, buffer, start, stride, geometry, form)
        return replace(stored, view=self._view(stored, start))

    def integers(self, channels: int, geometry: Geometry, spare: int = 0) -> Stored:
        """Room for int32 planes and spare ones behind them, in memory that was given back where it fits."""
        stride = round_up(self.capacity * geometry.rows * geometry.pitch * 4, LINE) | LINE
        size = (round_up(channels, CHUNK) + spare) * stride + MAX_PIXELS * 4
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

    def planes(self, stored: Stored, first_channel: int) -> Stored:
        """The planes of a copy from a channel on, which is the first one of its plane."""
        form = stored.form
        plane = first_channel // form.channels_per_unit * form.planes_per_unit if form else first_channel
        start = stored.start + plane * stored.plane_stride
        return replace(stored, view=self._view(stored, start), start=start)

    def pixels(self, stored: Stored, first: Pair, step: Pair, size: Pair) -> Any:
        """A view of every so many pixels of a copy, from ``first`` on."""
        pixel_bytes = stored.form.pixel_bytes if stored.form else 4
        start = stored.start + (first[0] * stored.geometry.pitch + first[1]) * pixel_bytes
        return self._view(stored, start, step, size)

    def _view(self, stored: Stored, start: int, step: Pair = (1, 1), size: Pair | None = None) -> Any:
        geometry = stored.geometry
        height, width = size or (geometry.phase_height, geometry.phase_width)
        return self.core.View(
            buffer=stored.buffer, start=start, stride=stored.plane_stride,
            pixel_bytes=stored.form.pixel_bytes if stored.form else 4, height=height, width=width,
            rows=geometry.rows, pitch=geometry.pitch, step=step,
        )  # fmt: skip

    def give_back(self, stored: Stored, value: int) -> None:
        """Let the memory of a value's integers be used again; that of codes is not, since its pads must stay 0."""
        if value not in self.given_back:
            self.given_back.add(value)
            self.free.append(stored.buffer)
