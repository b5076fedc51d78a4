"""From a program to a plan of the native engine: which kernel, which form and geometry of every value, which steps.

A plan serves batches up to its capacity. Every value of codes is stored once for each form and geometry that a
reader wants; the step that makes the value writes the most wanted one, repack steps make the others.

A convolution's step also makes what directly follows from its accumulators, while they are in registers: the codes of
its thresholds; the residual stream that a requantization makes of them, added to another stream if that is there
already; and the codes of that stream's thresholds. What nothing else reads is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import epilogue, layout, tiles
from . import program as p
from .choice import DICTIONARIES, INT16_MAX, Choice, choose
from .layout import CHUNK, Form, Geometry, Ints, TapPairs, Taps
from .rewrite import pool_first, readers_of
from .workspace import Stored, Workspace


MAX_PHASES = 8
"""Up to this stride, a first layer's input is split into its phases by the encoder."""


@dataclass(frozen=True)
class StepInfo:
    """What a step of the plan does: for profiles and traces."""

    operation: int
    """Number of the operation that it completes or serves."""
    name: str
    family: str
    macs: int
    """Multiply-accumulates of one image."""
    completes: tuple[int, ...]
    """The operations whose values are there after this step."""


def refuses(program: p.Program) -> str:
    """Why planar kernels cannot run a program; empty if they can."""
    for op in program.operations:
        if isinstance(op, (p.ConvTranspose, p.Concat, p.Upsample)):
            return f"{op.name}: planar kernels have no {type(op).__name__}"
        if isinstance(op, p.Threshold) and op.table is not None:
            return f"{op.name}: planar kernels have no table of codes"
    return ""


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
    made: set[int] = field(default_factory=set)
    """Values that are stored, or that no later step needs."""

    def __post_init__(self) -> None:
        self.plan = self.core.Plan(self.machine)
        rewritten = pool_first(self.program)
        self.operations, self.values, self.origin = rewritten.operations, rewritten.values, rewritten.origin
        self.kernels = list(self.core.kernels(self.isa))
        self.readers = readers_of(self.operations)
        self.workspace = Workspace(self.core, self.capacity)
        self.choices: dict[int, Choice] = {}
        for i, op in enumerate(self.operations):
            out = self.values[i]
            if isinstance(op, p.Conv) and isinstance(out, p.Integers):
                source = self._codes(op.inputs[0])
                self.choices[i] = choose(
                    op, source, out, self._fused(i), self.isa, self.capacity, self._sextets(op.inputs[0])
                )

        self.paired = {i: pairs for i in self.choices if (pairs := self._tap_pairs(i)) is not None}

    @property
    def size(self) -> int:
        """Bytes of the buffers."""
        return self.workspace.size

    def build(self) -> None:
        """Add the steps of every operation to ``plan``."""
        for i, op in enumerate(self.operations):
            if i in self.made:
                continue  # together with a convolution
            if isinstance(op, p.Encode):
                self._encode(i, op)
            elif isinstance(op, p.Conv):
                self._convolution(i, op)
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

    # ---- values -------------------------------------------------------------------------------------------------

    def _codes(self, value: int) -> p.Codes:
        v = self.values[value]
        assert isinstance(v, p.Codes)
        return v

    def _fused(self, value: int) -> bool:
        """Whether a convolution's accumulators go through thresholds only, pooled or not."""
        readers = self.readers[value]
        if len(readers) == 1 and isinstance(self.operations[readers[0]], p.MaxPool):
            readers = self.readers[readers[0]]
        return all(map(self._plain_threshold, readers))

    def _sextets(self, value: int) -> bool:
        """Whether codes are stored as sextets: a convolution's epilogue makes them, and every dictionary reads them."""
        while isinstance(self.operations[value], p.MaxPool):
            (value,) = self.operations[value].inputs
        v = self.values[value]
        bits = self._codes(value).code_type.bits
        if not any(k.family == "sextets64" and k.bits == bits for k in self.kernels):
            return False
        return isinstance(self.operations[value], p.Threshold) and v.shape[1:] != (1, 1) and self._take_sextets(value)

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
        no_bias = np.zeros(layout.round_up(len(op.weight), CHUNK), np.int64)
        sums = epilogue.Sums(op, self._codes(op.inputs[0]).shape[1:], out.shape, choice, Geometry(1, 1), no_bias)
        beyond = 255 * op.sums()[1][:, None]  # no sum of products with bytes exceeds that
        for j in fused.codes:
            limits = sums.bars(self._bars(j)) - 1
            if not ((limits >= -INT16_MAX - 1) & ((limits < INT16_MAX) | (limits >= beyond))).all():
                return choice
        return replace(choice, wide=False)

    def _take_sextets(self, value: int) -> bool:
        bits = self._codes(value).code_type.bits
        for r in self.readers[value]:
            op = self.operations[r]
            if isinstance(op, p.MaxPool) and not self._take_sextets(r):
                return False
            if isinstance(op, p.Conv) and not tiles.takes_sextets(op, bits):
                return False
        return True

    def _plain_threshold(self, i: int) -> bool:
        op = self.operations[i]
        return isinstance(op, p.Threshold) and op.table is None

    def _fuse(self, i: int) -> Fused:
        """What convolution ``i`` makes, given the values that are there already."""
        operations, readers = self.operations, self.readers[i]
        if self.choices[i].taps is not None and len(readers) == 1 and isinstance(operations[readers[0]], p.MaxPool):
            i = readers[0]
            readers = self.readers[i]
        codes = tuple(filter(self._plain_threshold, readers))
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
        stream_codes = tuple(filter(self._plain_threshold, self.readers[stream]))
        stream_kept = len(stream_codes) < len(self.readers[stream])
        return Fused(i, codes, len(rest) > 1, requantize, add, other, stream_codes, stream_kept)

    def _wanted(self, value: int) -> dict[tuple[Form, p.Pair], Geometry]:
        """What the readers of codes want by form and stride, merged where one copy serves several."""
        v = self._codes(value)
        wanted: dict[tuple[Form, p.Pair], Geometry] = {}
        for reader in self.readers[value]:
            choice = self.choices.get(reader)
            if choice is not None and choice.taps is not None:
                form, geometry = choice.form, choice.taps.geometry
            elif isinstance(self.operations[reader], p.SumPool):
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
            form = min(forms or [self._compact(value)], key=lambda f: f.bits == 0)
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
            self._add(value, "repack", completes=(), what=" (repack)")

    def _compact(self, value: int) -> Form:
        """The form of codes whose readers take any."""
        code_type = self._codes(value).code_type
        if code_type.bits > 4:
            return Form.bytes(code_type)
        return replace(Form.planes(code_type), sextets=self._sextets(value))

    def _release(self) -> None:
        """Give back the memory of integers that no later operation reads."""
        for value in self.made & set(self.stored):
            if self.made.issuperset(self.readers[value]) and isinstance(self.values[value], p.Integers):
                self.workspace.give_back(self.stored[value][0], value)

    def _new_integers(self, value: int, like: Geometry | None = None) -> Stored:
        """Room for integers, with their pixels where they are in ``like`` if all readers take that."""
        shape = self.values[value].shape
        takers = (p.Add, p.Requantize, p.Threshold, p.MaxPool, p.SumPool, p.Scale)
        geometry = Geometry(*shape[1:])
        if like is not None and all(isinstance(self.operations[r], takers) for r in self.readers[value]):
            geometry = Geometry(*shape[1:], pad_rows=like.rows - shape[1], pad_columns=like.pitch - shape[2])
        target = self.workspace.integers(shape[0], geometry)
        self.stored[value] = [target]
        return target

    def _integers(self, value: int) -> Stored:
        return self.stored[value][0]

    def _find(self, value: int, form: Form | None, stride: p.Pair = (1, 1)) -> Stored:
        return next(s for s in self.stored[value] if (form is None or s.form == form) and s.geometry.stride == stride)

    def _add(
        self, operation: int, family: str, macs: int = 0, completes: tuple[int, ...] | None = None, what: str = ""
    ) -> None:
        op = self.operations[operation]
        name = f"{op.name or type(op).__name__.lower()}{what}"
        values = (operation,) if completes is None else completes
        done = tuple(self.origin[value] for value in values if self.origin[value] >= 0)
        self.steps.append(StepInfo(self.origin[operation], name, family, macs, done))

    def _form(self, form: Form) -> Any:
        return self.core.Form(form.bits, form.is_signed, form.multiplier, form.add, form.sextets)

    # ---- convolutions -------------------------------------------------------------------------------------------

    def _kernel(self, family: str, bits: int, outputs: int = 0) -> Any:
        """The kernel of a family with the widest tile, or with the tile of so many outputs."""
        rows = [k for k in self.kernels if k.family == family and k.bits == bits]
        return next(k for k in rows if k.outputs == outputs) if outputs else max(rows, key=lambda k: k.outputs)

    def _convolution(self, i: int, op: p.Conv) -> None:
        """One step for operation ``i`` and for what it makes of its accumulators."""
        fused = self._fuse(i)
        choice = self.choices[i] = self._narrowed(i, fused)
        macs = op.macs(self.values[op.inputs[0]])
        if choice.taps is None:
            self._linear(i, op, fused)
        else:
            self._tiled(i, op, choice, choice.taps, fused)
        stream = () if fused.stream is None else (fused.stream,) * fused.stream_kept
        stored = (fused.accumulators,) * fused.kept + fused.codes + stream + fused.stream_codes
        self._add(i, choice.family, macs, completes=stored)
        self.made |= {
            i,
            fused.accumulators,
            *fused.codes,
            *fused.stream_codes,
            *filter(None, (fused.requantize, fused.add)),
        }
        for value in fused.codes + fused.stream_codes:
            self._copies(value)

    def _tiled(self, i: int, op: p.Conv, choice: Choice, taps: Taps, fused: Fused) -> None:
        form, stored = choice.form, self._find(op.inputs[0], choice.form, taps.geometry.stride)
        if form.sextets:
            # A wide tile is a little faster; a narrow one loses less at the end of a small image.
            pixels = taps.geometry.rows * taps.geometry.pitch
            rows = [k for k in self.kernels if (k.family, k.bits) == (choice.family, form.bits)]
            kernel = min(rows, key=lambda k: layout.round_up(pixels, k.pixels) * (1 + 4 / k.pixels))
        elif choice.family == "dictionary":
            kernel = self._kernel("dictionary", form.bits)
        else:
            sparse = op.groups > 1 and op.weight.shape[1] < CHUNK and op.weight.shape[0] // op.groups < CHUNK
            kernel = self._kernel(choice.family, 8, 2 if sparse else 0)
        if (i, choice.family) not in self.packed:
            bits = 8 if choice.family == "byte16" else 16
            self.packed[i, choice.family] = (
                tiles.pack_dictionary(op, form, kernel.outputs, choice.digits)
                if choice.family in DICTIONARIES
                else tiles.pack_tap_pairs(op, kernel.outputs, bits, self.paired[i].weights)
                if i in self.paired
                else tiles.pack_pairs(op, kernel.outputs, bits)
            )
        packed: tiles.PackedWeights = self.packed[i, choice.family]

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
        levels = 2**form.bits - 1 if choice.family in DICTIONARIES else 0
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
            **self._epilogue(i, stored.geometry, packed.bias * levels, fused),
        )

    def _linear(self, i: int, op: p.Conv, fused: Fused) -> None:
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
        self._add(i, "flatten", completes=(), what=" (flatten)")
        no_bias = np.zeros(layout.round_up(len(op.weight), CHUNK), np.int64)
        self.plan.linear(
            single=by_images[0],
            several=by_images[-1],
            activations=flat,
            depth=depth,
            weights=weights,
            weight_bytes=weight_bytes,
            outputs=len(op.weight),
            **self._epilogue(i, Geometry(1, 1), no_bias, fused),
        )

    def _epilogue(self, i: int, source: Geometry, bias: Ints, fused: Fused) -> dict[str, Any]:
        """What happens to the sums of convolution ``i``, whose pixels lie in ``source``: arguments for its step."""
        op, out = self.operations[i], self.values[i]
        assert isinstance(op, p.Conv) and isinstance(out, p.Integers)
        choice = self.choices[i]
        sums = epilogue.Sums(op, self._codes(op.inputs[0]).shape[1:], out.shape, choice, source, bias)
        arguments, pool = sums.arguments(), None
        before: dict[str, Any] = {}
        if fused.accumulators != i:
            pool = self.operations[fused.accumulators]
            # Border terms differ between the pixels of a window; a constant may as well be added to the largest.
            before, arguments = (arguments, {}) if "border_terms" in arguments else ({}, arguments)
            grid, out = source, self.values[fused.accumulators]
            assert isinstance(out, p.Integers)
            source = Geometry(*out.shape[1:])
        outputs = [self._output(j, sums.bars(self._bars(j)), choice.wide) for j in fused.codes]
        if fused.kept:
            outputs.append(self.core.Output(target=self._new_integers(fused.accumulators, source).view))
        stream = None
        if fused.requantize is not None and fused.stream is not None:
            stream = self._rescale(fused.requantize, out, fused.add, fused.other)
            if fused.stream_kept:
                target = self._new_integers(fused.stream, source)
                outputs.append(self.core.Output(target=target.view, of_stream=True))
            outputs += [self._output(j, self._bars(j), True, of_stream=True) for j in fused.stream_codes]
        after = self._core_epilogue(outputs, choice.wide, out.shape, source, stream=stream, **arguments)
        if pool is None:
            return {"epilogue": after}
        assert isinstance(pool, p.MaxPool)
        first = self._core_epilogue([], choice.wide, self.values[i].shape, grid, **before)
        return {"epilogue": after, "pool": self._window(pool), "before": first}

    def _window(self, op: p.MaxPool | p.SumPool) -> Any:
        dilation = op.dilation if isinstance(op, p.MaxPool) else (1, 1)
        return self.core.Window(
            kernel=op.kernel, stride=op.stride, top_left=(op.padding[0], op.padding[2]), dilation=dilation
        )

    def _bars(self, threshold: int) -> Ints:
        op = self.operations[threshold]
        assert isinstance(op, p.Threshold)
        return op.thresholds.astype(np.int64)

    def _output(self, threshold: int, bars: Ints, wide: bool, of_stream: bool = False) -> Any:
        """The first copy of a threshold's codes, for ``bars`` as they apply to what is compared."""
        op, channels = self.operations[threshold], self.values[threshold].shape[0]
        target = self._first_copy(threshold)
        assert isinstance(op, p.Threshold) and target.form is not None
        arguments = epilogue.to_codes(op, bars, channels, wide, target.form)
        form = self._form(arguments.pop("form"))
        return self.core.Output(target=target.view, of_stream=of_stream, form=form, **arguments)

    def _rescale(self, i: int, acc: p.Integers, add: int | None = None, other: int | None = None) -> Any:
        """Requantization ``i`` of accumulators, and the addition behind it."""
        op = self.operations[i]
        assert isinstance(op, p.Requantize)
        arguments: dict[str, Any] = {}
        if add is not None and other is not None:
            total = self.operations[add]
            assert isinstance(total, p.Add)
            arguments = {"other": self._integers(other).view, "sum_lo": total.lo, "sum_hi": total.hi}
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

    # ---- everything else ----------------------------------------------------------------------------------------

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
        wanted = self._wanted(i)[form, pairs.geometry.stride]
        copy = self.workspace.pairs(form, pairs, wanted)
        self.stored[i] = [target, copy]
        head = wanted.pad_rows * wanted.pitch + wanted.pad_columns
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
        stored = next(s for s in self.stored[source] if s.geometry.stride == (1, 1))
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
            output=self.program.output_names.index(op.name), source=self._integers(op.inputs[0]).view,
            channels=self.values[i].shape[0],
            scale=np.ascontiguousarray(op.scale), bias=np.ascontiguousarray(op.bias),
        )  # fmt: skip
        self._add(i, "scale")
