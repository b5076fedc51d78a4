"""From a program to a plan of the native engine: which kernel, which form and geometry of every value, which steps.

A plan serves batches up to its capacity. Every value of codes is stored once for each form and geometry that a
reader wants; the step that makes the value writes the most wanted one, repack steps make the others. A convolution
followed by a threshold alone is one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import CodeType
from ..errors import FormatError
from . import epilogue, layout, tiles
from . import program as p
from .choice import Choice, choose
from .layout import CHUNK, Form, Geometry, Ints, Taps
from .tuning import Rates
from .workspace import Stored, Workspace


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
    bits: int = 0
    """Of the codes that a convolution reads as bit-planes; 0: bytes."""


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
        families: family to force, by number of the operation.
        rates: this machine's, for the instruction set; see :mod:`bitbranch.runtime.tuning`.
    """

    core: Any
    machine: Any
    isa: str
    program: p.Program
    capacity: int
    packed: dict[tuple[int, str], Any]
    families: Mapping[int, str] = field(default_factory=dict)
    rates: Rates = field(default_factory=dict)
    steps: list[StepInfo] = field(default_factory=list)
    stored: dict[int, list[Stored]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = self.core.Plan(self.machine)
        self.values = self.program.values
        self.kernels = list(self.core.kernels(self.isa))
        self.readers: dict[int, list[int]] = {i: [] for i in range(len(self.values))}
        for i, op in enumerate(self.program.operations):
            for j in op.inputs:
                self.readers[j].append(i)
        self.workspace = Workspace(self.core, self.capacity)
        self.choices: dict[int, Choice] = {}
        for i, op in enumerate(self.program.operations):
            out = self.values[i]
            if isinstance(op, p.Conv) and isinstance(out, p.Integers):
                source = self._codes(op.inputs[0])
                family = self.families.get(i)
                self.choices[i] = choose(op, source, out, self._fused(i), self.isa, self.capacity, family, self.rates)

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
        copy = self.workspace.codes(v.shape[0], form, wanted.get((form, (1, 1)), Geometry(*v.shape[1:])))
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
            copy = self.workspace.codes(channels, form, geometry)
            self.stored[value].append(copy)
            self.plan.repack(
                source=first.view, source_form=self._form(first.form), target=copy.view, target_form=self._form(form),
                channels=channels, stride=stride, phases=list(geometry.phases),
            )  # fmt: skip
            self._add(value, "repack", completes=False, what=" (repack)")

    @staticmethod
    def _compact(code_type: CodeType) -> Form:
        return Form.planes(code_type) if code_type.bits <= 4 else Form.bytes(code_type)

    def _release(self, operation: int) -> None:
        """Give back the memory of integers that no later operation reads."""
        for value in {*self.program.operations[operation].inputs}:
            if self.readers[value][-1] == operation:
                for stored in self.stored.get(value, []):
                    self.workspace.give_back(stored)

    def _new_integers(self, value: int) -> Stored:
        target = self.workspace.integers(self.values[value].shape)
        self.stored[value] = [target]
        return target

    def _integers(self, value: int) -> Stored:
        return self.stored[value][0]

    def _find(self, value: int, form: Form | None, stride: p.Pair = (1, 1)) -> Stored:
        return next(s for s in self.stored[value] if (form is None or s.form == form) and s.geometry.stride == stride)

    def _add(
        self, operation: int, family: str, macs: int = 0, completes: bool = True, what: str = "", bits: int = 0
    ) -> None:
        op = self.program.operations[operation]
        name = f"{op.name or type(op).__name__.lower()}{what}"
        self.steps.append(StepInfo(operation, name, family, macs, completes, bits))

    def _form(self, form: Form) -> Any:
        return self.core.Form(form.bits, form.is_signed, form.multiplier, form.add)

    # ---- convolutions -------------------------------------------------------------------------------------------

    def _kernel(self, family: str, bits: int, outputs: int = 0) -> Any:
        """The kernel of a family with the widest tile, or with the tile of so many outputs."""
        rows = [k for k in self.kernels if k.family == family and k.bits == bits]
        return next(k for k in rows if k.outputs == outputs) if outputs else max(rows, key=lambda k: k.outputs)

    def _convolution(self, i: int, value: int, op: p.Conv, threshold: p.Threshold | None) -> None:
        """One step for operation ``i``, and for the threshold that makes ``value`` from its accumulators."""
        choice = self.choices[i]
        source = op.inputs[0]
        target = self._first_copy(value) if threshold else self._new_integers(value)
        macs = op.macs(self.values[source])
        if choice.taps is None:
            self._linear(i, op, target, threshold)
        else:
            self._tiled(i, op, choice, choice.taps, target, threshold)
        what = f" ({op.name})" if threshold and op.name else ""
        self._add(value, choice.family, macs, what=what, bits=choice.form.bits)
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
                tiles.pack_dictionary(op, form.bits, kernel.outputs, choice.digits)
                if choice.family == "dictionary"
                else tiles.pack_pairs(op, kernel.outputs, 8 if choice.family == "byte16" else 16)
            )
        packed: tiles.PackedWeights = self.packed[i, choice.family]

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
            span=choice.span if choice.wide else 0,
            chunks=-(-len(op.weight) // CHUNK),
            epilogue=self._epilogue(i, stored.geometry, packed.bias * levels, target, threshold),
        )

    def _linear(self, i: int, op: p.Conv, target: Stored, threshold: p.Threshold | None) -> None:
        source = self._codes(op.inputs[0])
        single = self._kernel("linear8", 16)
        if (i, "linear") not in self.packed:
            self.packed[i, "linear"] = tiles.pack_linear(op, source.shape[1:], single.outputs)
        weights, depth, weight_bytes = self.packed[i, "linear"]
        family = "linear8" if weight_bytes == 1 else "linear16"
        by_images = sorted((k for k in self.kernels if k.family == family), key=lambda k: k.pixels)
        flat = self.workspace.buffer(self.capacity * depth * 2)
        stored = self._find(op.inputs[0], None)
        assert stored.form is not None
        self.plan.flatten(
            source=stored.view, form=self._form(stored.form), channels=source.shape[0], target=flat, depth=depth
        )
        self._add(i, "flatten", completes=False, what=" (flatten)")
        no_bias = np.zeros(layout.round_up(len(op.weight), CHUNK), np.int64)
        self.plan.linear(
            single=by_images[0],
            several=by_images[-1],
            activations=flat,
            depth=depth,
            weights=weights,
            weight_bytes=weight_bytes,
            outputs=len(op.weight),
            epilogue=self._epilogue(i, Geometry(1, 1), no_bias, target, threshold),
        )

    def _epilogue(self, i: int, source: Geometry, bias: Ints, target: Stored, threshold: p.Threshold | None) -> Any:
        """What happens to the sums of convolution ``i``, whose pixels lie in ``source``."""
        op, out = self.program.operations[i], self.values[i]
        assert isinstance(op, p.Conv)
        size = self._codes(op.inputs[0]).shape[1:]
        arguments = epilogue.from_sums(op, size, out.shape, self.choices[i], source, bias, target.form, threshold)
        return self._core_epilogue(target, self.choices[i].wide, out.shape, source, arguments)

    def _core_epilogue(
        self, target: Stored, wide: bool, shape: tuple[int, int, int], source: Geometry, arguments: dict[str, Any]
    ) -> Any:
        if "form" in arguments:
            arguments["form"] = self._form(arguments["form"])
        return self.core.Epilogue(
            target=target.view, wide=wide, height=shape[1], width=shape[2], rows=source.rows, pitch=source.pitch,
            **arguments,
        )  # fmt: skip

    # ---- everything else ----------------------------------------------------------------------------------------

    def _encode(self, i: int, op: p.Encode) -> None:
        # Bytes come out of the encoder, whatever else is wanted.
        form = next((f for f, _ in self._wanted(i) if f.bits == 0), Form.bytes(op.code_type))
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
        shape = self.values[i].shape
        stored, target = self._integers(source), self._first_copy(i)
        assert target.form is not None
        arguments = epilogue.to_codes(op, op.thresholds.astype(np.int64), shape[0], True, target.form)
        finish = self._core_epilogue(target, True, shape, stored.geometry, arguments)
        self.plan.threshold(source=stored.view, chunks=-(-shape[0] // CHUNK), epilogue=finish)
        self._add(i, "threshold")
        self._copies(i)

    def _max_pool(self, i: int, op: p.MaxPool) -> None:
        source, channels = op.inputs[0], self.values[i].shape[0]
        window = {
            "kernel": op.kernel, "stride": op.stride, "top_left": (op.padding[0], op.padding[2]),
            "dilation": op.dilation,
        }  # fmt: skip
        if isinstance(self.values[i], p.Integers):
            target = self._new_integers(i)
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
        target = self._new_integers(i)
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
        target = self._new_integers(i)
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
