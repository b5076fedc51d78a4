"""Inputs and targets of one layer at sampled output positions, kept in a temporary file and read in chunks.

Memory holds one batch while writing and one chunk while reading, however many samples there are; the Gram matrix
``A = X X^T`` is summed from integers and does not depend on the size of the chunks.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..disk import temporary_writes
from ..errors import InputError
from ..layers import FLOAT32_EXACT, QuantizedLayer
from .bytes import INT8, multiplies_bytes
from .descent import Moments

CHUNK_BYTES = 4 << 20
"""Size of a chunk of inputs as float32: small enough that what is computed from it stays in the cache."""

CHUNK_LEAST = 2048
"""Samples of a chunk at least: what is summed from few into large matrices takes longer to add than to multiply."""

LARGE = 64
"""Inputs of a group from which on their Gram matrix is a product of bytes."""

PANEL = 2048
"""Rows of the Gram matrix that are computed at once."""


Integer = np.dtype[np.signedinteger[Any]] | np.dtype[np.unsignedinteger[Any]]


def smallest_dtype(lo: int, hi: int) -> Integer:
    """The smallest NumPy integer type that holds ``lo .. hi``."""
    for kind in (np.uint8, np.int8, np.int16):
        info = np.iinfo(kind)
        if info.min <= lo and hi <= info.max:
            return np.dtype(kind)
    return np.dtype(np.int32)


class SampleFile:
    """Samples of one layer: inputs ``[G, n]`` as small integers, targets ``[G, O]`` as float32.

    A context manager; the temporary files vanish with it.

    Args:
        groups: ``G``.
        taps: inputs of one output, ``n``.
        outputs: outputs of one group, ``O``.
        dtype: NumPy integer type that holds the input values.
        chunk: samples per chunk; default by :data:`CHUNK_BYTES`.
        precision: dtype of the chunks.
    """

    def __init__(
        self,
        groups: int,
        taps: int,
        outputs: int,
        dtype: Integer,
        *,
        chunk: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.groups, self.taps, self.outputs = groups, taps, outputs
        self.dtype, self.precision = dtype, precision
        self.chunk = chunk or max(CHUNK_LEAST, CHUNK_BYTES // (4 * groups * taps))
        self.count = 0
        self.largest = 0
        self.reach = 0.0
        self._inputs = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._targets = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._inputs.close()
        self._targets.close()

    def append(self, inputs: Tensor, targets: Tensor) -> None:
        """Add samples: integers ``[p, G, n]`` and reals ``[p, G, O]``.

        Raises:
            InputError: another shape, or reals that are not finite.
        """
        p = inputs.shape[0]
        if inputs.shape != (p, self.groups, self.taps) or targets.shape != (p, self.groups, self.outputs):
            raise InputError(
                f"samples need inputs [p, {self.groups}, {self.taps}] and targets [p, {self.groups}, {self.outputs}], "
                f"got {list(inputs.shape)} and {list(targets.shape)}"
            )
        if not torch.isfinite(targets).all():
            raise InputError("the step-1 network gives NaN or infinity on the samples")
        with temporary_writes():
            self._inputs.write(inputs.cpu().numpy().astype(self.dtype, order="C").data)
            self._targets.write(targets.cpu().numpy().astype(np.float32, order="C").data)
        self.count += p
        if p:
            self.largest = max(self.largest, int(inputs.abs().max()))
            self.reach = max(self.reach, float(targets.abs().max()))

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order: inputs ``[G, p, n]`` and targets ``[G, p, O]`` of the chosen precision."""
        for file in (self._inputs, self._targets):
            with temporary_writes():
                file.flush()
            file.seek(0)
        for start in range(0, self.count, self.chunk):
            p = min(self.chunk, self.count - start)
            x = np.fromfile(self._inputs, self.dtype, p * self.groups * self.taps)
            t = np.fromfile(self._targets, np.float32, p * self.groups * self.outputs)
            yield (
                torch.from_numpy(x).view(p, self.groups, self.taps).to(self.precision).transpose(0, 1),
                torch.from_numpy(t).view(p, self.groups, self.outputs).to(self.precision).transpose(0, 1),
            )

    def target_mean(self) -> Tensor:
        """Mean of the targets, ``[G, O]`` float64, rounded on a grid so that the order of the sum does not matter."""
        total = torch.zeros(self.groups, self.outputs, dtype=torch.float64)
        unit = 2.0 ** math.ceil(math.log2(max(self.reach, 1e-30))) * 2.0**-30
        for _, t in self.chunks():
            total += (t.double() / unit).round_().sum(1)
        return total * unit / max(1, self.count)

    def moments(self) -> Moments:
        """Sums and sums of products of the inputs, exact; equal whatever the chunks.

        Raises:
            InputError: no samples.
        """
        if not self.count:
            raise InputError("no samples to solve a layer from")
        n, square = self.taps, max(1, self.largest**2)
        single, small = self.count * square < FLOAT32_EXACT, self.count * square < 2**31
        by_bytes = small and self.largest <= INT8 and n >= LARGE and multiplies_bytes()
        dtype = torch.int8 if by_bytes else torch.float32 if single else torch.float64
        total = torch.zeros(self.groups, n, dtype=torch.float64)
        products = torch.zeros(self.groups, n, n, dtype=torch.int32 if by_bytes else dtype)
        for x, _ in self.chunks():
            x = x.to(dtype)
            total += x.sum(1, dtype=torch.float64)
            for end in range(PANEL, n + PANEL, PANEL):  # the lower triangle
                rows, sums = x[:, :, end - PANEL : end].transpose(1, 2), products[:, end - PANEL : end, :end]
                if by_bytes:
                    for g, group in enumerate(x[:, :, :end]):
                        sums[g] += torch._int_mm(rows[g], group)
                else:
                    sums.baddbmm_(rows, x[:, :, :end])
        if small:
            products = products.to(torch.int32)
        for end in range(PANEL, n, PANEL):
            products[:, end - PANEL : end, end:] = products[:, end:, end - PANEL : end].transpose(1, 2)
        return Moments(self.count, total, products, self.largest)


def draw_positions(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """``count`` different positions (or all, if fewer) out of ``N x spatial``, drawn evenly.

    Args:
        shape: ``[N, *spatial]``.
        count: how many.
        generator: source of randomness.

    Returns:
        ``[p, len(shape)]`` int64 coordinates.
    """
    flat = torch.randperm(int(np.prod(shape)), generator=generator)[:count]
    return torch.stack(torch.unravel_index(flat, tuple(shape)), 1)


def patches(layer: QuantizedLayer, values: Tensor, positions: Tensor) -> Tensor:
    """The inputs that single outputs of a layer are made of, in the order of the layer's weights, outputs first.

    Args:
        layer: Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d or Linear.
        values: its whole input, ``[N, C, *spatial]`` or, for Linear, ``[N, *, C]``.
        positions: coordinates in the output, ``[p, 1 + spatial]``, channels left out.

    Returns:
        ``[p, G, n]``, ``n = I / G * kernel``; 0 where the layer pads.

    Raises:
        InputError: another type of layer.
    """
    if isinstance(layer, nn.Linear):
        return values[tuple(positions.T)].unsqueeze(1)
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)):
        raise InputError(f"step 2 has no patches of {type(layer).__name__}")
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    index, inside = [], []
    for axis, (kernel, size) in enumerate(zip(layer.kernel_size, values.shape[2:], strict=True)):
        tap = torch.arange(kernel) * layer.dilation[axis]
        pad = _leading_pad(layer, axis)
        if transposed:  # output = stride * input - pad + tap
            source = positions[:, 1 + axis, None] + pad - tap
            hit = source % layer.stride[axis] == 0
            source = torch.div(source, layer.stride[axis], rounding_mode="floor")
        else:
            source = positions[:, 1 + axis, None] * layer.stride[axis] - pad + tap
            hit = torch.ones_like(source, dtype=torch.bool)
        inside.append(hit & (source >= 0) & (source < size))
        index.append(source.clamp(0, size - 1))
    image = positions[:, 0]
    channels_last = values.movedim(1, -1)
    if len(index) == 1:
        out, mask = channels_last[image[:, None], index[0]], inside[0]
    else:
        out = channels_last[image[:, None, None], index[0][:, :, None], index[1][:, None]]
        mask = inside[0][:, :, None] & inside[1][:, None]
    out = (out * mask[..., None]).movedim(-1, 1)
    return out.reshape(len(out), layer.groups, -1)


def _leading_pad(layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d, axis: int) -> int:
    """Zeros before the first input along a spatial axis; ``"same"`` puts the odd one behind."""
    if layer.padding == "valid":
        return 0
    if layer.padding == "same":
        return layer.dilation[axis] * (layer.kernel_size[axis] - 1) // 2
    return int(layer.padding[axis])
