"""From a program to a plan of the native engine's planar path: the walk over its operations.

A plan serves batches up to its capacity. Where values lie is decided in :mod:`~bitbranch.runtime.stored`, convolutions
and what is done with their accumulators are planned in :mod:`~bitbranch.runtime.convolutions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import FormatError
from . import concat
from . import program as p
from .convolutions import ConvolutionPlanner
from .interpolation import Interpolation
from .layout import CHUNK, Form, Geometry


@dataclass(eq=False)
class Planner(ConvolutionPlanner):
    """Builds one plan, see :meth:`build`; takes the arguments of :class:`~bitbranch.runtime.stored.StoredValues`."""

    def build(self) -> None:
        """Add the steps of every operation to ``plan``."""
        for i, op in enumerate(self.operations):
            if i in self.made:
                continue  # together with one before
            if isinstance(op, p.Encode):
                self._encode(i, op)
            elif isinstance(op, p.Conv):
                self._convolution(i, op)
            elif isinstance(op, p.ConvTranspose):
                self._transposed(i)
            elif isinstance(op, p.Concat):
                self._concat(i, op)
            elif isinstance(op, p.Upsample):
                self._upsample(i, op)
            elif isinstance(op, Interpolation):
                self._interpolate(i, op)
            elif isinstance(op, p.Threshold):
                self._threshold(i, op)
            elif isinstance(op, p.MaxPool):
                self._max_pool(i, op)
            elif isinstance(op, p.SumPool):
                self._sum_pool(i, op)
            elif isinstance(op, (p.Requantize, p.Add)):
                self._stream(i, op)
            elif isinstance(op, p.Scale):
                self._scale(i, op)
            else:
                raise FormatError(f"the engine has no operation {type(op).__name__}")
            self.made.add(i)
            self._release()
        self.stored = {self.origin[value]: stored for value, stored in self.stored.items()}

    def _encode(self, i: int, op: p.Encode) -> None:
        # Bytes come out of the encoder, whatever else is wanted.
        form = next((f for f, _ in self._wanted(i) if f.bits == 0), Form.bytes(op.code_type))
        pairs = self.paired.get(self.readers[i][0])
        if pairs is None:
            target = self._first_copy(i, form)
        else:
            target = self.workspace.single(op.shape[0], replace(form, single=True), pairs)
        multiplier, add = form.stored(op.code_type)
        table = None
        if op.table is not None:
            rank = np.zeros(256, np.int64)
            rank[op.code_type.from_rank(np.arange(op.code_type.count))] = np.arange(op.code_type.count)
            table = (multiplier * rank[op.table] + add).astype(np.uint8)
        self.plan.encode(
            input=self.program.input_names.index(op.name), channels=op.shape[0], thresholds=op.thresholds.tolist(),
            table=table, multiplier=multiplier, add=add, target=target.view, size=op.shape[1:],
            stride=target.geometry.stride,
        )  # fmt: skip
        self._add(i, "encode")
        if pairs is None:
            self._copies(i)
            return
        copy = self.workspace.pairs(form, pairs)
        self.stored[i] = [target, copy]
        head = copy.geometry.pad_rows * copy.geometry.pitch + copy.geometry.pad_columns
        self.plan.pair(source=target.view, target=copy.view, head=head, planes=pairs.halves())
        self._add(i, "pair", completes=(), what=" (pairs)")

    def _threshold(self, i: int, op: p.Threshold) -> None:
        shape, stored = self.values[i].shape, self._integers(op.inputs[0])
        finish = self._core_epilogue([self._output(i, self._bars(i), True)], True, shape, stored.geometry)
        self.plan.threshold(source=stored.view, chunks=-(-shape[0] // CHUNK), epilogue=finish)
        self._add(i, "threshold")
        self._copies(i)

    def _max_pool(self, i: int, op: p.MaxPool) -> None:
        source, channels = op.inputs[0], self.values[i].shape[0]
        window = self._window(op)
        if isinstance(self.values[i], p.Integers):
            target = self._new_integers(i)
            self.plan.pool_integers(
                kind="max", source=self._integers(source).view, form=self.core.Form(0, False, 1, 0),
                target=target.view, channels=channels, window=window,
            )  # fmt: skip
            self._add(i, "max-pool")
            return
        stored = self._find_near(source, i)
        assert stored.form is not None
        target = self._first_copy(i, stored.form)  # the pool keeps the form
        self.plan.max_pool_codes(
            source=stored.view,
            target=target.view,
            form=self._form(stored.form),
            chunks=-(-channels // CHUNK),
            window=window,
        )
        self._add(i, "max-pool")
        self._copies(i)

    def _concat(self, i: int, op: p.Concat) -> None:
        codes = isinstance(self.values[i], p.Codes)
        target = self._first_copy(i) if codes else self._new_integers(i)
        parts: list[Any] = []
        pieces: list[concat.Piece] = []
        first = 0
        for j in op.inputs:
            channels = self.values[j].shape[0]
            if self.homes.get(j) != (i, first):
                pieces += concat.pieces(target.form, len(parts), channels, first)
                parts.append(self._find(j, target.form).view)
            first += channels
        self.plan.concat(target=target.view, parts=parts, pieces=sorted(pieces))
        self._add(i, "concat")
        if codes:
            self._copies(i)

    def _upsample(self, i: int, op: p.Upsample) -> None:
        """Codes, repeated."""
        stored = self._find_near(op.inputs[0], i)
        assert stored.form is not None
        target, planes = self._first_copy(i, stored.form), stored.form.plane_count(self.values[i].shape[0])
        self.plan.upsample_nearest(source=stored.view, target=target.view, planes=planes, factor=op.factor)
        self._add(i, "upsample")
        self._copies(i)

    def _interpolate(self, i: int, op: Interpolation) -> None:
        """An interpolation and what all its readers make of it: codes, or an output."""
        shape, form = self.values[i].shape, None
        if isinstance(source := self.values[op.inputs[0]], p.Codes):
            form = Form.bytes(source.code_type)
        codes = [r for r in self.readers[i] if self._is_threshold(r)]
        outputs, done, after = [self._output(r, self._bars(r), True) for r in codes], list(codes), {}
        rest = [r for r in self.readers[i] if r not in codes]
        scale = self.operations[rest[0]] if rest else None
        if isinstance(scale, p.Scale) and self.readers[i] == rest[:1]:
            after, done = self._real_output(scale), rest
        elif rest:
            outputs.append(self.core.Output(target=self._new_integers(i).view, channels=shape[0]))
            done = [i, *codes]
        self.plan.interpolate(
            source=self._find(op.inputs[0], form).view, form=form and self._form(form), channels=shape[0],
            down=op.rows.rows, across=op.columns.rows,
            epilogue=self._core_epilogue(outputs, True, shape, Geometry(*shape[1:])), **after,
        )  # fmt: skip
        self.made.update(done)
        self._add(i, "interpolate", completes=tuple(done))
        for r in codes:
            self._copies(r)

    def _sum_pool(self, i: int, op: p.SumPool) -> None:
        source = op.inputs[0]
        target = self._new_integers(i)
        form, kind, stored = Form(0, False, 1, 0), "sum", None
        if isinstance(self.values[source], p.Codes):
            form, kind = Form.bytes(self._codes(source).code_type), "sum_bytes"
            stored = self._find(source, form)
        self.plan.pool_integers(
            kind=kind, source=(stored or self._integers(source)).view, form=self._form(form), target=target.view,
            channels=self.values[i].shape[0], window=self._window(op),
        )  # fmt: skip
        self._add(i, "sum-pool")

    def _stream(self, i: int, op: p.Requantize | p.Add) -> None:
        channels, source = self.values[i].shape[0], self._integers(op.inputs[0])
        target = self._new_integers(i, source.geometry)
        if isinstance(op, p.Add):
            left, right = (self._integers(j).view for j in op.inputs)
            self.plan.add(left=left, right=right, target=target.view, channels=channels, lo=op.lo, hi=op.hi)
            self._add(i, "add")
            return
        acc = self.values[op.inputs[0]]
        assert isinstance(acc, p.Integers)
        self.plan.requantize(
            source=source.view, target=target.view, channels=channels, stream=self._rescale(i, acc)
        )  # fmt: skip
        self._add(i, "requantize")

    def _scale(self, i: int, op: p.Scale) -> None:
        self.plan.scale(
            source=self._integers(op.inputs[0]).view, channels=self.values[i].shape[0], **self._real_output(op)
        )
        self._add(i, "scale")

    def _real_output(self, op: p.Scale) -> dict[str, Any]:
        output = self.program.output_names.index(op.name)
        return {"output": output, "scale": np.ascontiguousarray(op.scale), "bias": np.ascontiguousarray(op.bias)}
