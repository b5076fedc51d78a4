"""From a program to a plan of the native engine: which kernel, which form and geometry of every value, which steps.

A plan serves batches up to its capacity. Every value of codes is stored once for each form and geometry that a
reader wants; the step that makes the value writes the most wanted one, repack steps make the others. A convolution
followed by a threshold alone is one step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import ACCUMULATOR_MAX, CodeType, accumulator_bounds
from ..errors import FormatError, InputError
from . import layout as lay
from . import program as p
from .layout import CHUNK, MAX_PIXELS, Form, Geometry, Taps

INT16_MAX = 2**15 - 1
LINEAR_BATCH = 16
"""From this batch on, a dictionary with images as lanes beats a linear kernel with outputs as lanes."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepInfo:
    """What a step of the plan does: for profiles and traces."""

    operation: int
    """Number of the operation that it completes or serves."""
    name: str
    family: str
    macs: int
    """Multiply-accumulates of one image."""
    completes: bool
    """Whether the operation's value is there after this step."""


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


@dataclass(frozen=True, eq=False)
class Choice:
    """How a convolution is executed."""

    family: str
    form: Form
    """Of the codes that it reads."""
    taps: Taps | None = None
    """Not for the linear family."""
    digits: tuple[int, ...] = ()
    wide: bool = True
    """Whether sums are int32."""
    folded: bool = False
    """Whether thresholds are compared with the sums as they are, not with accumulators."""


@dataclass(eq=False)
class Planner:
    """Builds one plan; see :meth:`build`.

    Args:
        core: the compiled module.
        machine: its instruction set and threads.
        isa: name of the instruction set.
        program: what to run.
        capacity: largest batch.
        packed: packed weights by (operation, family), shared by the plans of an engine.
    """

    core: Any
    machine: Any
    isa: str
    program: p.Program
    capacity: int
    packed: dict[tuple[int, str], Any]
    steps: list[StepInfo] = field(default_factory=list)
    stored: dict[int, list[Stored]] = field(default_factory=dict)
    workspace: int = 0
    """Bytes of all buffers."""

    def __post_init__(self) -> None:
        self.plan = self.core.Plan(self.machine)
        self.values = self.program.values
        self.kernels = list(self.core.kernels(self.isa))
        self.readers: dict[int, list[int]] = {i: [] for i in range(len(self.values))}
        for i, op in enumerate(self.program.operations):
            for j in op.inputs:
                self.readers[j].append(i)
        self.free: list[tuple[int, Any]] = []
        self.choices: dict[int, Choice] = {}
        for i, op in enumerate(self.program.operations):
            if isinstance(op, p.Conv):
                self.choices[i] = self._choose(i, op)

    def build(self) -> None:
        """Add the steps of every operation to ``plan``."""
        for i, op in enumerate(self.program.operations):
            if isinstance(op, p.Conv) and self._fused(i):
                continue  # made together with its threshold
            if isinstance(op, p.Encode):
                self._encode(i, op)
            elif isinstance(op, p.Conv):
                self._convolution(i, i, op, None)
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
            self._release(i)

    # ---- values -------------------------------------------------------------------------------------------------

    def _codes(self, value: int) -> p.Codes:
        v = self.values[value]
        assert isinstance(v, p.Codes)
        return v

    def _fused(self, value: int) -> bool:
        """Whether a convolution's accumulators go straight through thresholds."""
        readers = self.readers[value]
        return len(readers) == 1 and isinstance(self.program.operations[readers[0]], p.Threshold)

    def _wanted(self, value: int) -> dict[tuple[Form, p.Pair], Geometry]:
        """What the readers of codes want by form and stride, merged where one copy serves several."""
        v = self._codes(value)
        wanted: dict[tuple[Form, p.Pair], Geometry] = {}
        for reader in self.readers[value]:
            choice = self.choices.get(reader)
            if choice is not None and choice.taps is not None:
                form, geometry = choice.form, choice.taps.geometry
            elif isinstance(self.program.operations[reader], p.SumPool):
                form, geometry = Form.bytes(v.code_type), Geometry(*v.shape[1:])
            else:
                continue  # reads any form
            key = (form, geometry.stride)
            wanted[key] = wanted[key].merge(geometry) if key in wanted else geometry
        return wanted

    def _first_copy(self, value: int, form: Form | None = None) -> Stored:
        """The copy that the step which makes the value writes: in this form, or else in the most wanted one."""
        v, wanted = self._codes(value), self._wanted(value)
        if form is None:
            forms = [f for f, stride in wanted if stride == (1, 1)] or [f for f, _ in wanted]
            # Bit-planes rather than bytes: they are less to write, and to read again.
            form = min(forms or [self._compact(v.code_type)], key=lambda f: f.bits == 0)
        copy = self._store_codes(v.shape[0], form, wanted.get((form, (1, 1)), Geometry(*v.shape[1:])))
        self.stored[value] = [copy]
        return copy

    def _copies(self, value: int) -> None:
        """Steps for the other copies that are wanted."""
        first = self.stored[value][0]
        assert first.form is not None
        channels = self.values[value].shape[0]
        for (form, stride), geometry in self._wanted(value).items():
            if (form, stride) == (first.form, (1, 1)):
                continue
            copy = self._store_codes(channels, form, geometry)
            self.stored[value].append(copy)
            self.plan.repack(
                source=first.view, source_form=self._form(first.form), target=copy.view, target_form=self._form(form),
                channels=channels, stride=stride, phases=list(geometry.phases),
            )  # fmt: skip
            self._add(value, "repack", completes=False, what=" (repack)")

    @staticmethod
    def _compact(code_type: CodeType) -> Form:
        return Form.planes(code_type) if code_type.bits <= 4 else Form.bytes(code_type)

    def _buffer(self, size: int) -> Any:
        if size >= 1 << 31:
            raise InputError(f"a value of this program needs {size} bytes of memory; the engine's limit is 2 GiB")
        self.workspace += size
        return self.core.Buffer(size)

    def _store_codes(self, channels: int, form: Form, geometry: Geometry) -> Stored:
        stride = geometry.plane_stride(self.capacity, form.pixel_bytes)
        head = geometry.head(form.pixel_bytes)
        planes = form.plane_count(channels) * len(geometry.phases)
        # A kernel reads a vector from any shift of any pixel of the last block.
        tail = lay.round_up(head + 2 * MAX_PIXELS * form.pixel_bytes, lay.LINE)
        buffer = self._buffer(head + planes * stride + tail)
        view = self.core.View(
            buffer=buffer, start=head, stride=stride, pixel_bytes=form.pixel_bytes, height=geometry.phase_height,
            width=geometry.phase_width, rows=geometry.rows, pitch=geometry.pitch,
        )  # fmt: skip
        return Stored(view, buffer, head, stride, geometry, form)

    def _store_integers(self, value: int) -> Stored:
        """int32 planes without pads; their memory is used again when the value is no longer needed."""
        channels, height, width = self.values[value].shape
        stride = lay.round_up(self.capacity * height * width * 4, lay.LINE) | lay.LINE
        size = lay.round_up(channels, CHUNK) * stride + MAX_PIXELS * 4
        fitting = [b for b in self.free if size <= b[0] <= 2 * size]
        if fitting:
            entry = min(fitting, key=lambda b: b[0])
            self.free.remove(entry)
            buffer = entry[1]
        else:
            buffer = self._buffer(size)
        view = self.core.View(
            buffer=buffer, start=0, stride=stride, pixel_bytes=4, height=height, width=width, rows=height, pitch=width
        )
        return Stored(view, buffer, 0, stride, Geometry(height, width), None)

    def _release(self, operation: int) -> None:
        """Give back the memory of integers that no later operation reads."""
        for value in {*self.program.operations[operation].inputs}:
            if self.readers[value][-1] == operation:
                self.free += [(s.buffer.size, s.buffer) for s in self.stored.get(value, []) if s.form is None]

    def _integers(self, value: int) -> Stored:
        return self.stored[value][0]

    def _find(self, value: int, form: Form | None, stride: p.Pair = (1, 1)) -> Stored:
        return next(s for s in self.stored[value] if (form is None or s.form == form) and s.geometry.stride == stride)

    def _add(self, operation: int, family: str, macs: int = 0, completes: bool = True, what: str = "") -> None:
        op = self.program.operations[operation]
        name = f"{op.name or type(op).__name__.lower()}{what}"
        self.steps.append(StepInfo(operation, name, family, macs, completes))

    def _form(self, form: Form) -> Any:
        return self.core.Form(form.bits, form.is_signed, form.multiplier, form.add)

    # ---- convolutions -------------------------------------------------------------------------------------------

    def _kernel(self, family: str, bits: int, outputs: int = 0) -> Any:
        """The kernel of a family with the widest tile, or with the tile of so many outputs."""
        rows = [k for k in self.kernels if k.family == family and k.bits == bits]
        return next(k for k in rows if k.outputs == outputs) if outputs else max(rows, key=lambda k: k.outputs)

    def _choose(self, i: int, op: p.Conv) -> Choice:
        source, out = self._codes(op.inputs[0]), self.values[i]
        size, out_size = source.shape[1:], out.shape[1:]
        code_type, pixel = source.code_type, out_size == (1, 1)
        magnitude = np.abs(op.values()).reshape(len(op.weight), -1).sum(axis=1, dtype=np.int64)
        digits = None
        if code_type.bits <= 4:
            form = Form.planes(code_type)
            digits = lay.dictionary_digits(op, form.channels_per_unit)
            top = (2**code_type.bits - 1) * int(magnitude.max())
            if top > ACCUMULATOR_MAX:
                digits = None
        small = op.groups == 1 and size[0] * size[1] <= 4 * op.kernel[0] * op.kernel[1]
        if pixel and small and (digits is None or self.capacity < LINEAR_BATCH):
            return Choice("linear", Form(0, False, 1, 0))
        # One output pixel: a stride over the whole image makes every kernel position a phase of one pixel, and the
        # images of the batch become neighbours.
        stride = (size[0] + op.padding[0], size[1] + op.padding[2]) if pixel else op.stride
        taps = lay.convolution_taps(op, size, out_size, stride)
        if digits is None:
            byte_form = Form.bytes(code_type)
            return Choice("byte_signed" if byte_form.is_signed else "byte_unsigned", byte_form, taps)
        lo, hi = accumulator_bounds(op.values(), code_type)
        bound = max(-int(lo.min()), int(hi.max()))
        affine = form.add != 0 and lay.border(op, size, out_size) is not None
        folded = self._fused(i) and not affine
        return Choice("dictionary", form, taps, digits, (top if folded else bound) > INT16_MAX, folded)

    def _convolution(self, i: int, value: int, op: p.Conv, threshold: p.Threshold | None) -> None:
        """One step for operation ``i``, and for the threshold that makes ``value`` from its accumulators."""
        choice = self.choices[i]
        source = op.inputs[0]
        target = self._first_copy(value) if threshold else self._store_integers(value)
        self.stored.setdefault(value, [target])
        macs = op.macs(self.values[source])
        if choice.taps is None:
            self._linear(i, op, target, threshold)
        else:
            self._tiled(i, op, choice, choice.taps, target, threshold)
        self._add(value, choice.family, macs, what=f" ({op.name})" if threshold and op.name else "")
        if threshold:
            self._copies(value)

    def _tiled(
        self, i: int, op: p.Conv, choice: Choice, taps: Taps, target: Stored, threshold: p.Threshold | None
    ) -> None:
        form, stored = choice.form, self._find(op.inputs[0], choice.form, taps.geometry.stride)
        if choice.family == "dictionary":
            kernel = self._kernel("dictionary", form.bits)
        else:
            sparse = op.groups > 1 and op.weight.shape[1] < CHUNK and op.weight.shape[0] // op.groups < CHUNK
            kernel = self._kernel(choice.family, 8, 2 if sparse else 0)
        if (i, choice.family) not in self.packed:
            self.packed[i, choice.family] = (
                lay.pack_dictionary(op, form.bits, kernel.outputs, choice.digits)
                if choice.family == "dictionary"
                else lay.pack_pairs(op, kernel.outputs)
            )
        packed: lay.PackedWeights = self.packed[i, choice.family]

        lists: dict[range, npt.NDArray[np.int32]] = {}
        starts: dict[range, int] = {}
        for units in packed.units:
            if units not in lists:
                starts[units] = sum(map(len, lists.values()))
                lists[units] = taps.offsets(stored.geometry, form, units, stored.plane_stride)
        levels = 2**form.bits - 1 if choice.family == "dictionary" else 0
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
            span=packed.flush * (0xFFFF // (255 * levels)) if levels else 0,
            chunks=-(-len(op.weight) // CHUNK),
            epilogue=self._epilogue(i, op, choice, stored.geometry, packed.bias * levels, target, threshold),
        )

    def _linear(self, i: int, op: p.Conv, target: Stored, threshold: p.Threshold | None) -> None:
        source = self._codes(op.inputs[0])
        single = self._kernel("linear8", 16)
        if (i, "linear") not in self.packed:
            self.packed[i, "linear"] = lay.pack_linear(op, source.shape[1:], single.outputs)
        weights, depth, weight_bytes = self.packed[i, "linear"]
        family = "linear8" if weight_bytes == 1 else "linear16"
        by_images = sorted((k for k in self.kernels if k.family == family), key=lambda k: k.pixels)
        flat = self._buffer(self.capacity * depth * 2)
        stored = self._find(op.inputs[0], None)
        assert stored.form is not None
        self.plan.flatten(
            source=stored.view, form=self._form(stored.form), channels=source.shape[0], target=flat, depth=depth
        )
        self._add(i, "flatten", completes=False, what=" (flatten)")
        self.plan.linear(
            single=by_images[0],
            several=by_images[-1],
            activations=flat,
            depth=depth,
            weights=weights,
            weight_bytes=weight_bytes,
            outputs=len(op.weight),
            epilogue=self._epilogue(
                i, op, self.choices[i], Geometry(1, 1), np.zeros(lay.round_up(len(op.weight), CHUNK), np.int64), target,
                threshold,
            ),
        )  # fmt: skip

    def _epilogue(
        self,
        i: int,
        op: p.Conv,
        choice: Choice,
        source: Geometry,
        bias: Ints,
        target: Stored,
        threshold: p.Threshold | None,
    ) -> Any:
        """From sums to accumulators, ``multiplier * sum + constant + border term``, and to what is stored."""
        outputs, height, width = self.values[i].shape
        size = self._codes(op.inputs[0]).shape[1:]
        form, family = choice.form, choice.family
        total = np.zeros(len(bias), np.int64)
        total[:outputs] = op.values().reshape(outputs, -1).sum(axis=1, dtype=np.int64)
        constant = form.add * total - form.multiplier * bias
        arguments: dict[str, Any] = {}
        edges = lay.border(op, size, (height, width)) if form.add and family != "linear" else None
        fold = edges is None and threshold is not None
        assert fold or not choice.folded
        if not fold and (form.multiplier != 1 or constant.any() or edges is not None):
            arguments |= {"multiplier": form.multiplier, "constants": _int32(constant)}
        if edges is not None:
            classes, missing = edges
            pixels = np.zeros((source.rows, source.pitch), np.int32)
            pixels[:height, :width] = classes
            terms = np.zeros((len(bias), missing.shape[1]), np.int64)
            terms[:outputs] = -form.add * missing
            by_chunk = terms.reshape(-1, CHUNK, terms.shape[1]).transpose(0, 2, 1)
            arguments |= {
                "border_class": pixels,
                "border_terms": _int32(by_chunk),
                "border_classes": terms.shape[1],
            }
        if threshold is not None:
            bar = threshold.thresholds.astype(np.int64)
            if fold:  # multiplier * sum + constant >= T
                bar = -((constant[:outputs, None] - bar) // form.multiplier)
            arguments |= self._code_arguments(threshold, bar, outputs, choice.wide, target)
        return self.core.Epilogue(
            target=target.view, wide=choice.wide, height=height, width=width, rows=source.rows, pitch=source.pitch,
            **arguments,
        )  # fmt: skip

    def _code_arguments(
        self, op: p.Threshold, thresholds: Ints, channels: int, wide: bool, target: Stored
    ) -> dict[str, Any]:
        assert target.form is not None
        table = np.broadcast_to(thresholds, (channels, thresholds.shape[1]))
        # The form that the epilogue writes: how a rank becomes the stored number.
        multiplier, add = target.form.stored(op.code_type)
        written = self.core.Form(target.form.bits, target.form.is_signed, multiplier, add)
        if target.form.bits:
            found = lay.plane_limits(table, channels, wide)
            return {"form": written, "limits": found, "thresholds": found.shape[1]}
        found, guess = lay.byte_limits(table, channels)
        return {"form": written, "limits": found, "thresholds": found.shape[1], "guess": guess}

    # ---- everything else ----------------------------------------------------------------------------------------

    def _encode(self, i: int, op: p.Encode) -> None:
        form = Form.bytes(op.code_type)
        target = self._first_copy(i, form)
        multiplier, add = form.stored(op.code_type)
        table = None
        if op.table is not None:
            rank = np.zeros(256, np.int64)
            rank[op.code_type.from_rank(np.arange(op.code_type.count))] = np.arange(op.code_type.count)
            table = (multiplier * rank[op.table] + add).astype(np.uint8)
        self.plan.encode(
            channels=op.shape[0], thresholds=op.thresholds.tolist(), table=table, multiplier=multiplier, add=add,
            target=target.view,
        )  # fmt: skip
        self._add(i, "encode")
        self._copies(i)

    def _threshold(self, i: int, op: p.Threshold) -> None:
        source = op.inputs[0]
        before = self.program.operations[source]
        if isinstance(before, p.Conv) and self._fused(source):
            self._convolution(source, i, before, op)
            return
        channels, height, width = self.values[i].shape
        stored, target = self._integers(source), self._first_copy(i)
        arguments = self._code_arguments(op, op.thresholds.astype(np.int64), channels, True, target)
        epilogue = self.core.Epilogue(
            target=target.view, wide=True, height=height, width=width, rows=height, pitch=width, **arguments
        )
        self.plan.threshold(source=stored.view, chunks=-(-channels // CHUNK), epilogue=epilogue)
        self._add(i, "threshold")
        self._copies(i)

    def _max_pool(self, i: int, op: p.MaxPool) -> None:
        source, channels = op.inputs[0], self.values[i].shape[0]
        window = {
            "kernel": op.kernel, "stride": op.stride, "top_left": (op.padding[0], op.padding[2]),
            "dilation": op.dilation,
        }  # fmt: skip
        if isinstance(self.values[i], p.Integers):
            target = self._store_integers(i)
            self.stored[i] = [target]
            self.plan.pool_integers(
                kind="max", source=self._integers(source).view, form=self.core.Form(0, False, 1, 0),
                target=target.view, channels=channels, **window,
            )  # fmt: skip
            self._add(i, "max-pool")
            return
        stored = next(s for s in self.stored[source] if s.geometry.stride == (1, 1))
        assert stored.form is not None
        target = self._first_copy(i, stored.form)  # the pool keeps the form
        self.plan.max_pool_codes(
            source=stored.view, target=target.view, form=self._form(stored.form), chunks=-(-channels // CHUNK), **window
        )
        self._add(i, "max-pool")
        self._copies(i)

    def _sum_pool(self, i: int, op: p.SumPool) -> None:
        source = op.inputs[0]
        target = self._store_integers(i)
        self.stored[i] = [target]
        form, kind, stored = Form(0, False, 1, 0), "sum", None
        if isinstance(self.values[source], p.Codes):
            form, kind = Form.bytes(self._codes(source).code_type), "sum_bytes"
            stored = self._find(source, form)
        self.plan.pool_integers(
            kind=kind, source=(stored or self._integers(source)).view, form=self._form(form), target=target.view,
            channels=self.values[i].shape[0], kernel=op.kernel, stride=op.stride,
            top_left=(op.padding[0], op.padding[2]), dilation=(1, 1),
        )  # fmt: skip
        self._add(i, "sum-pool")

    def _stream(self, i: int, op: p.Requantize | p.Add) -> None:
        channels = self.values[i].shape[0]
        target = self._store_integers(i)
        self.stored[i] = [target]
        if isinstance(op, p.Add):
            left, right = (self._integers(j).view for j in op.inputs)
            self.plan.add(left=left, right=right, target=target.view, channels=channels, lo=op.lo, hi=op.hi)
            self._add(i, "add")
            return
        self.plan.requantize(
            source=self._integers(op.inputs[0]).view, target=target.view, channels=channels,
            multiplier=np.ascontiguousarray(op.multiplier), shift=np.ascontiguousarray(op.shift),
            offset=np.ascontiguousarray(op.offset), lo=op.lo, hi=op.hi,
        )  # fmt: skip
        self._add(i, "requantize")

    def _scale(self, i: int, op: p.Scale) -> None:
        self.plan.scale(
            source=self._integers(op.inputs[0]).view, channels=self.values[i].shape[0],
            scale=np.ascontiguousarray(op.scale), bias=np.ascontiguousarray(op.bias),
        )  # fmt: skip
        self._add(i, "scale")


def _int32(x: Ints) -> npt.NDArray[np.int32]:
    """Modulo 2^32: the engine's sums are modular, and in range in the end."""
    return np.ascontiguousarray((x & 0xFFFFFFFF).astype(np.uint32)).view(np.int32)
