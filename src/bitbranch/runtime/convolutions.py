"""The steps of convolutions in a plan: kernels, packed weights, and what is made of their accumulators.

A convolution's step also makes what directly follows from its accumulators, while they are in registers: the codes of
its thresholds; the residual stream that a requantization makes of them, added to another stream if that is there
already; and the codes of that stream's thresholds. What nothing else reads is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import epilogue, layout, tiles, transposed
from . import program as p
from .choice import BIASED, DICTIONARIES, Choice, choose
from .layout import CHUNK, Geometry, Ints, TapPairs, Taps
from .stored import StoredValues
from .tiles import INT16_MAX
from .transposed import Phase
from .workspace import Stored

MAX_PHASES = 8
"""Up to this stride, a first layer's input is split into its phases by the encoder."""


@dataclass(frozen=True)
class Fused:
    """What the step of a convolution makes of its accumulators."""

    accumulators: int
    """Their value: the convolution's, or that of the max-pool behind it."""
    codes: tuple[int, ...]
    """Thresholds of the accumulators."""
    kept: bool
    """Whether the accumulators themselves are stored."""
    requantize: int | None = None
    add: int | None = None
    other: int | None = None
    """The stream that ``add`` adds."""
    stream_codes: tuple[int, ...] = ()
    """Thresholds of the stream, which is the value of ``add`` or else of ``requantize``."""
    stream_kept: bool = False

    @property
    def stream(self) -> int | None:
        return self.requantize if self.add is None else self.add

    @property
    def stored(self) -> tuple[int, ...]:
        """The values that are stored."""
        stream = (self.stream,) if self.stream_kept and self.stream is not None else ()
        return (self.accumulators,) * self.kept + self.codes + stream + self.stream_codes


@dataclass(eq=False)
class ConvolutionPlanner(StoredValues):
    """Plans convolutions; takes the arguments of :class:`~bitbranch.runtime.stored.StoredValues`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for i, op in enumerate(self.operations):
            out = self.values[i].shape[1:]
            if isinstance(op, p.Conv):
                self.choices[i] = self._choose(i, op, out)
            elif isinstance(op, p.ConvTranspose):
                parts = transposed.phases(op, self.values[op.inputs[0]].shape[1:], out)
                self.phases[i] = [(part, self._choose(i, part.conv, part.size, True)) for part in parts]
        self.paired = {i: pairs for i in self.choices if (pairs := self._tap_pairs(i)) is not None}
        self.settle_pads()

    def _choose(self, i: int, op: p.Conv, out: p.Pair, phase: bool = False) -> Choice:
        source, sextets = self._codes(op.inputs[0]), self._sextets(op.inputs[0])
        family = self.families.get(self.origin[i])
        return choose(
            op, source, out, self._fused(i), self.isa, self.capacity, sextets, phase, family, self.rates
        )  # fmt: skip

    def _fused(self, value: int) -> bool:
        """Whether a convolution's accumulators go through thresholds only, pooled or not."""
        readers = self.readers[value]
        if self._pooled(value):
            readers = self.readers[readers[0]]
        return all(map(self._is_threshold, readers))

    def _pooled(self, value: int) -> bool:
        """Whether a max-pool is taken in the step of a convolution."""
        readers = self.readers[value]
        takes = isinstance(self.operations[value], p.Conv) and len(readers) == 1
        return takes and isinstance(self.operations[readers[0]], p.MaxPool)

    def _tap_pairs(self, i: int) -> TapPairs | None:
        """How a first layer's taps are paired, if the encoder's bytes have no other reader and it gains by that."""
        op, choice = self.operations[i], self.choices[i]
        (source,) = op.inputs
        if choice.taps is None or choice.form.bits or not isinstance(self.operations[source], p.Encode):
            return None
        channels, stride = self.values[source].shape[0], choice.taps.geometry.stride
        assert isinstance(op, p.Conv)
        if len(self.readers[source]) > 1 or op.groups > 1 or max(stride) > MAX_PHASES:
            return None
        if channels % 2 == 0 and stride == (1, 1):
            return None
        return layout.tap_pairs(choice.taps, channels, op.kernel)

    def _narrowed(self, i: int, fused: Fused) -> Choice:
        """The choice for convolution ``i`` with its sums saturated to int16, if its thresholds see no difference."""
        choice = self.choices[i]
        if not choice.folded or choice.span or choice.taps is None or fused.kept or fused.stream is not None:
            return choice
        op, out = self.operations[i], self.values[i]
        assert isinstance(op, p.Conv) and isinstance(out, p.Integers)
        no_bias = np.zeros(layout.round_up(op.packed.shape[0], CHUNK), np.int64)
        sums = epilogue.Sums(op, self._codes(op.inputs[0]).shape[1:], out.shape, choice, Geometry(1, 1), no_bias)
        beyond = 255 * op.sums()[1][:, None]  # no sum of products with bytes exceeds that
        for j in fused.codes:
            limits = sums.bars(self._bars(j)) - 1
            if not ((limits >= -INT16_MAX - 1) & ((limits < INT16_MAX) | (limits >= beyond))).all():
                return choice
        return replace(choice, wide=False)

    def _fuse(self, i: int) -> Fused:
        """What convolution ``i`` makes, given the values that are there already."""
        operations, readers = self.operations, self.readers[i]
        if self._pooled(i) and self.choices[i].taps is not None:
            i = readers[0]
            readers = self.readers[i]
        codes = tuple(filter(self._is_threshold, readers))
        rest = [r for r in readers if r not in codes]
        requantize = next((r for r in rest if isinstance(operations[r], p.Requantize)), None)
        if requantize is None:
            return Fused(i, codes, bool(rest))
        stream, add, other = requantize, None, None
        following = self.readers[requantize]
        if len(following) == 1 and isinstance(operations[following[0]], p.Add):
            pair = set(operations[following[0]].inputs) - {requantize}
            if pair and pair <= self.made:  # the later of the two streams takes the sum
                stream = add = following[0]
                (other,) = pair
        stream_codes = tuple(filter(self._is_threshold, self.readers[stream]))
        stream_kept = len(stream_codes) < len(self.readers[stream])
        return Fused(i, codes, len(rest) > 1, requantize, add, other, stream_codes, stream_kept)

    def _convolution(self, i: int, op: p.Conv) -> None:
        """One step for operation ``i`` and for what it makes of its accumulators."""
        fused = self._fuse(i)
        choice = self.choices[i] = self._narrowed(i, fused)
        if choice.taps is None:
            self._linear(i, op, fused)
        else:
            self._tiled(i, op, choice, choice.taps, fused)
        macs = op.macs(self.values[op.inputs[0]])
        self._add(i, choice.family, macs, completes=fused.stored, bits=choice.form.bits)
        self._made(i, fused)

    def _transposed(self, i: int) -> None:
        """One step for each phase of operation ``i`` and for what it makes of its accumulators."""
        fused, parts = self._fuse(i), self.phases[i]
        for k, (phase, choice) in enumerate(parts):
            assert choice.taps is not None
            self._tiled(i, phase.conv, choice, choice.taps, fused, phase)
            what = f" (phase {k + 1} of {len(parts)})"
            self._add(i, choice.family, phase.macs, fused.stored if k + 1 == len(parts) else (), what, choice.form.bits)
        self._made(i, fused)

    def _made(self, i: int, fused: Fused) -> None:
        streams = {j for j in (fused.requantize, fused.add) if j is not None}
        self.made |= {i, fused.accumulators, *fused.codes, *fused.stream_codes, *streams}
        for value in fused.codes + fused.stream_codes:
            self._copies(value)

    def _tiled(self, i: int, op: p.Conv, choice: Choice, taps: Taps, fused: Fused, phase: Phase | None = None) -> None:
        form, stored = choice.form, self._find(op.inputs[0], choice.form, taps.geometry.stride)
        # A wide tile is a little faster; a narrow one loses less at the end of a small image.
        pixels = stored.geometry.rows * stored.geometry.pitch
        if form.sextets:
            rows = [k for k in self.kernels if (k.family, k.bits) == (choice.family, form.bits)]
            kernel = _least_loss(rows, pixels)
        elif choice.family in BIASED:
            kernel = self._kernel(choice.family, form.bits)
        else:
            rows = [k for k in self.kernels if k.family == choice.family]
            kernel = _least_loss([k for k in rows if (k.outputs == 2) == tiles.is_sparse(op)], pixels)
        name = f"{choice.family} {kernel.outputs}" + (f" {phase.first}" if phase else "")
        if (i, name) not in self.packed:
            bits = 8 if choice.family == "byte16" else 16
            self.packed[i, name] = (
                tiles.pack_dictionary(op, form, kernel.outputs, choice.digits)
                if choice.family in DICTIONARIES
                else tiles.pack_xnor(op, form, kernel.outputs, choice.digits)
                if choice.family in BIASED
                else tiles.pack_tap_pairs(op, kernel.outputs, bits, self.paired[i].weights)
                if i in self.paired
                else tiles.pack_pairs(op, kernel.outputs, bits)
            )
        packed: tiles.PackedWeights = self.packed[i, name]

        lists: dict[range, npt.NDArray[np.int32]] = {}
        starts: dict[range, int] = {}
        for units in packed.units:
            if units not in lists:
                starts[units] = sum(map(len, lists.values()))
                lists[units] = (
                    self.paired[i].offsets(stored.plane_stride)
                    if i in self.paired
                    else taps.offsets(stored.geometry, form, units, stored.plane_stride)
                )
        levels = 2**form.bits - 1 if choice.family in BIASED else 0
        self.plan.convolution(
            kernel=kernel,
            source=stored.view,
            offsets=np.concatenate([*lists.values(), np.zeros(1, np.int32)]),
            first_tap=np.asarray([starts[u] for u in packed.units], np.int32),
            taps=np.asarray([len(lists[u]) for u in packed.units], np.int32),
            weights_at=packed.weights_at,
            weights=packed.weights,
            dictionary=packed.dictionary,
            second=stored.plane_stride * len(stored.geometry.phases),
            word_bytes=packed.word_bytes,
            flush=packed.flush,
            span=choice.span if choice.wide else 0,
            chunks=-(-op.packed.shape[0] // CHUNK),
            **self._epilogue(i, op, choice, stored.geometry, packed.bias * levels, fused, phase),
        )

    def _kernel(self, family: str, bits: int) -> Any:
        """The kernel of a family with the tile of most outputs."""
        return max((k for k in self.kernels if k.family == family and k.bits == bits), key=lambda k: k.outputs)

    def _linear(self, i: int, op: p.Conv, fused: Fused) -> None:
        source = self._codes(op.inputs[0])
        bits = tiles.linear_bits(op, source)
        by_images = sorted((k for k in self.kernels if k.family == f"linear{bits}"), key=lambda k: k.pixels)
        if (i, "linear") not in self.packed:
            lanes = by_images[0].outputs
            self.packed[i, "linear"] = (
                tiles.pack_ranks(op, source.code_type, lanes, bits)
                if bits < 8
                else tiles.pack_linear(op, source.shape[1:], lanes)
            )
        packed: tiles.LinearWeights = self.packed[i, "linear"]
        flat = self.workspace.buffer(self.capacity * packed.depth * (1 if bits < 8 else 2))
        stored = self._find(op.inputs[0], None)
        assert stored.form is not None
        self.plan.flatten(
            source=stored.view, form=self._form(stored.form), channels=source.shape[0], target=flat,
            depth=packed.depth, narrow=bits < 8,
        )  # fmt: skip
        self._add(i, "flatten", completes=(), what=" (flatten)")
        no_bias = np.zeros(layout.round_up(op.packed.shape[0], CHUNK), np.int64)
        self.plan.linear(
            single=by_images[0],
            several=by_images[-1],
            activations=flat,
            depth=packed.depth,
            weights=packed.weights,
            weight_bits=bits,
            step=packed.step,
            low=packed.low,
            flush=packed.flush,
            outputs=op.packed.shape[0],
            **self._epilogue(i, op, self.choices[i], Geometry(1, 1), no_bias, fused),
        )

    def _epilogue(
        self, i: int, op: p.Conv, choice: Choice, source: Geometry, bias: Ints, fused: Fused, phase: Phase | None = None
    ) -> dict[str, Any]:
        """What happens to the sums of convolution ``i``, whose pixels lie in ``source``: arguments for its step."""
        out, shape = self.values[i], (op.packed.shape[0], *(phase.size if phase else self.values[i].shape[1:]))
        assert isinstance(out, p.Integers)
        sums = epilogue.Sums(op, self._codes(op.inputs[0]).shape[1:], shape, choice, source, bias)
        arguments, pool = sums.arguments(), None
        before: dict[str, Any] = {}
        if fused.accumulators != i:
            pool = self.operations[fused.accumulators]
            # Border terms differ between the pixels of a window; a constant may as well be added to the largest.
            before, arguments = (arguments, {}) if "border_terms" in arguments else ({}, arguments)
            grid, unpooled, out = source, shape, self.values[fused.accumulators]
            assert isinstance(out, p.Integers)
            shape, source = out.shape, Geometry(*out.shape[1:])
        like = None if phase else source
        bounds = sums.bounds(out.lo, out.hi)
        outputs = [self._output(j, sums.bars(self._bars(j)), choice.wide, bounds, phase) for j in fused.codes]
        if fused.kept:
            target = self._view(self._new_integers(fused.accumulators, like), phase)
            outputs.append(self.core.Output(target=target, channels=shape[0]))
        stream = None
        if fused.requantize is not None and fused.stream is not None:
            stream = self._rescale(fused.requantize, out, fused.add, fused.other, phase)
            if fused.stream_kept:
                target = self._view(self._new_integers(fused.stream, like), phase)
                outputs.append(self.core.Output(target=target, channels=shape[0], of_stream=True))
            outputs += [self._output(j, self._bars(j), True, None, phase, fused.stream) for j in fused.stream_codes]
        after = self._core_epilogue(outputs, choice.wide, shape, source, stream=stream, **arguments)
        if pool is None:
            return {"epilogue": after}
        assert isinstance(pool, p.MaxPool)
        first = self._core_epilogue([], choice.wide, unpooled, grid, **before)
        return {"epilogue": after, "pool": self._window(pool), "before": first}

    def _view(self, stored: Stored, phase: Phase | None) -> Any:
        """A stored copy, or the pixels of a phase of it."""
        if phase is None:
            return stored.view
        return self.workspace.pixels(stored, phase.first, phase.step, phase.size)

    def _window(self, op: p.MaxPool | p.SumPool) -> Any:
        dilation = op.dilation if isinstance(op, p.MaxPool) else (1, 1)
        return self.core.Window(
            kernel=op.kernel, stride=op.stride, top_left=(op.padding[0], op.padding[2]), dilation=dilation
        )

    def _bars(self, threshold: int) -> Ints:
        op = self.operations[threshold]
        assert isinstance(op, p.Threshold)
        return op.thresholds.astype(np.int64)

    def _output(
        self,
        threshold: int,
        bars: Ints,
        wide: bool,
        bounds: tuple[Ints, Ints] | None = None,
        phase: Phase | None = None,
        stream: int | None = None,
    ) -> Any:
        """The first copy of a threshold's codes, for ``bars`` and ``bounds`` as they apply to what is compared."""
        op, channels = self.operations[threshold], self.values[threshold].shape[0]
        target = self._first_copy(threshold)
        assert isinstance(op, p.Threshold) and target.form is not None
        if bounds is None:
            source = self.values[op.inputs[0]]
            assert isinstance(source, p.Integers)
            bounds = np.asarray([source.lo]), np.asarray([source.hi])
        arguments = epilogue.to_codes(op, bars, channels, wide, target.form, bounds)
        form = self._form(arguments.pop("form"))
        view = self._view(target, phase)
        return self.core.Output(target=view, channels=channels, of_stream=stream is not None, form=form, **arguments)

    def _rescale(
        self, i: int, acc: p.Integers, add: int | None = None, other: int | None = None, phase: Phase | None = None
    ) -> Any:
        """Requantization ``i`` of accumulators, and the addition behind it."""
        op = self.operations[i]
        assert isinstance(op, p.Requantize)
        arguments: dict[str, Any] = {}
        if add is not None and other is not None:
            total = self.operations[add]
            assert isinstance(total, p.Add)
            view = self._view(self._integers(other), phase)
            arguments = {"other": view, "sum_lo": total.lo, "sum_hi": total.hi}
        return self.core.Stream(
            multiplier=np.ascontiguousarray(op.multiplier), shift=np.ascontiguousarray(op.shift),
            offset=np.ascontiguousarray(op.offset), lo=op.lo, hi=op.hi, acc_lo=acc.lo, acc_hi=acc.hi, **arguments,
        )  # fmt: skip

    def _core_epilogue(
        self, outputs: list[Any], wide: bool, shape: tuple[int, int, int], source: Geometry, **arguments: Any
    ) -> Any:
        return self.core.Epilogue(
            outputs=outputs, wide=wide, height=shape[1], width=shape[2], rows=source.rows, pitch=source.pitch,
            **arguments,
        )  # fmt: skip


def _least_loss(kernels: list[Any], pixels: int) -> Any:
    """The kernel whose tiles cover so many pixels fastest."""
    return min(kernels, key=lambda k: layout.round_up(pixels, k.pixels) * (1 + 4 / k.pixels))
