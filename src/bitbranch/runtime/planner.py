"""From a program to a plan of the native engine: which kernel, which form and geometry of every value, which steps.

A plan serves batches up to its capacity. Every value of codes is stored once for each form and geometry that a
reader wants; the step that makes the value writes the most wanted one, repack steps make the others.

A convolution's step also makes what directly follows from its accumulators, while they are in registers: the codes of
its thresholds; the residual stream that a requantization makes of them, added to another stream if that is there
already; and the codes of that stream's thresholds. What nothing else reads is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from . import concat, epilogue, layout, tiles, transposed
from . import program as p
from .choice import BIASED, DICTIONARIES, Choice, choose
from .layout import CHUNK, LINE, Form, Geometry, Ints, TapPairs, Taps
from .rewrite import pool_first, readers_of
from .tiles import INT16_MAX
from .transposed import Phase
from .tuning import Rates
from .workspace import Stored, Workspace

PAD_MOST = 1.1
"""A copy may have so many times the pixels that its readers want, to have them where a convolution's sums are."""
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
    bits: int = 0
    """Of the codes that a convolution reads as bit-planes; 0: bytes."""


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
    made: set[int] = field(default_factory=set)
    """Values that are stored, or that no later step needs."""

    def __post_init__(self) -> None:
        self.plan = self.core.Plan(self.machine)
        rewritten = pool_first(self.program)
        self.operations, self.values, self.origin = rewritten.operations, rewritten.values, rewritten.origin
        self.kernels = list(self.core.kernels(self.isa))
        self.readers = readers_of(self.operations)
        self.workspace = Workspace(self.core, self.capacity)
        self.homes = concat.homes(self.operations, self.values)
        self.placed: set[tuple[int, int]] = set()  # concatenation and first channel of the parts that are there
        self.wanted: dict[int, dict[tuple[Form, p.Pair], Geometry]] = {}
        self.choices: dict[int, Choice] = {}
        self.phases: dict[int, list[tuple[Phase, Choice]]] = {}  # of transposed convolutions
        for i, op in enumerate(self.operations):
            out = self.values[i].shape[1:]
            if isinstance(op, p.Conv):
                self.choices[i] = self._choose(i, op, out)
            elif isinstance(op, p.ConvTranspose):
                parts = transposed.phases(op, self.values[op.inputs[0]].shape[1:], out)
                self.phases[i] = [(part, self._choose(i, part.conv, part.size, True)) for part in parts]
        self.paired = {i: pairs for i in self.choices if (pairs := self._tap_pairs(i)) is not None}
        self.neighbours = self._neighbours()
        self.pads: dict[int, p.Pair] = dict.fromkeys(self.neighbours, (0, 0))  # the most that a reader wants
        for value, first in enumerate(self.neighbours):
            for (_, stride), g in self._wanted(value).items() if isinstance(self.values[value], p.Codes) else ():
                rows, columns = self.pads[first]
                if stride == (1, 1):
                    self.pads[first] = max(rows, g.pad_rows), max(columns, g.pad_columns)

    def _choose(self, i: int, op: p.Conv, out: p.Pair, phase: bool = False) -> Choice:
        source, sextets = self._codes(op.inputs[0]), self._sextets(op.inputs[0])
        family = self.families.get(self.origin[i])
        return choose(
            op, source, out, self._fused(i), self.isa, self.capacity, sextets, phase, family, self.rates
        )  # fmt: skip

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
            elif isinstance(op, p.ConvTranspose):
                self._transposed(i)
            elif isinstance(op, p.Concat):
                self._concat(i, op)
            elif isinstance(op, p.Upsample):
                self._upsample(i, op)
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
        if self._pooled(value):
            readers = self.readers[readers[0]]
        return all(map(self._is_threshold, readers))

    def _pooled(self, value: int) -> bool:
        """Whether a max-pool is taken in the step of a convolution."""
        readers = self.readers[value]
        takes = isinstance(self.operations[value], p.Conv) and len(readers) == 1
        return takes and isinstance(self.operations[readers[0]], p.MaxPool)

    def _sextets(self, value: int) -> bool:
        """Whether codes are stored as sextets: a convolution's epilogue makes them, and every dictionary reads them."""
        while isinstance(self.operations[value], (p.MaxPool, p.Upsample)):
            (value,) = self.operations[value].inputs
        op, v = self.operations[value], self.values[value]
        bits = self._codes(value).code_type.bits
        if not any(k.family == "sextets64" and k.bits == bits for k in self.kernels):
            return False
        made = isinstance(op, p.Threshold) and op.table is None and v.shape[1:] != (1, 1)
        return made and self._take_sextets(value)

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
            kept = isinstance(op, p.MaxPool) or (isinstance(op, p.Upsample) and op.mode == "nearest")
            if isinstance(op, (p.Concat, p.ConvTranspose)) or (kept and not self._take_sextets(r)):
                return False
            if isinstance(op, p.Conv) and not tiles.takes_sextets(op, bits):
                return False
            if self.families.get(self.origin[r], "dictionary") != "dictionary":
                return False
        return True

    def _is_threshold(self, i: int) -> bool:
        return isinstance(self.operations[i], p.Threshold)

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

    def _wanted(self, value: int) -> dict[tuple[Form, p.Pair], Geometry]:
        """What the readers of codes want by form and stride, merged where one copy serves several."""
        if value in self.wanted:
            return self.wanted[value]
        v, plain = self._codes(value), Geometry(*self.values[value].shape[1:])
        wanted: dict[tuple[Form, p.Pair], Geometry] = {}
        for reader in self.readers[value]:
            op = self.operations[reader]
            choices = [self.choices[reader]] if reader in self.choices else []
            choices += [choice for _, choice in self.phases.get(reader, [])]
            wants = [(choice.form, choice.taps.geometry) for choice in choices if choice.taps is not None]
            if isinstance(op, p.SumPool) or (isinstance(op, p.Upsample) and op.mode == "bilinear"):
                wants = [(Form.bytes(v.code_type), plain)]
            elif isinstance(op, p.Concat):
                wants = [(self._main_form(reader), plain)]
            for form, geometry in wants:  # others read any form
                key = (form, geometry.stride)
                wanted[key] = wanted[key].merge(geometry) if key in wanted else geometry
        self.wanted[value] = wanted
        return wanted

    def _main_form(self, value: int) -> Form:
        """The most wanted form of codes."""
        wanted = self._wanted(value)
        forms = [f for f, stride in wanted if stride == (1, 1)] or [f for f, _ in wanted]
        # Bit-planes rather than bytes: they are less to write, and to read again.
        return min(forms or [self._compact(value)], key=lambda f: f.bits == 0)

    def _geometry(self, value: int, form: Form) -> Geometry:
        """Of a copy without a stride, for its readers and those of the parts that are written in it."""
        geometry = self._wanted(value).get((form, (1, 1)), Geometry(*self.values[value].shape[1:]))
        geometry = self._like_neighbours(value, geometry)
        if isinstance(self.operations[value], p.Concat) and form == self._main_form(value):
            for part in self.operations[value].inputs:
                if self.homes.get(part, (None,))[0] == value:
                    geometry = geometry.merge(self._geometry(part, form))
        return geometry

    def _like_neighbours(self, value: int, geometry: Geometry) -> Geometry:
        """With the pads of all values that convolutions of stride 1 lead to or come from, if that costs little.

        Where a convolution reads and writes the same geometry, its epilogue writes codes in place.
        """
        pads = self.pads[self.neighbours[value]]
        padded = geometry.merge(replace(geometry, pad_rows=pads[0], pad_columns=pads[1]))
        pixels = [layout.round_up(self.capacity * g.rows * g.pitch, LINE) for g in (geometry, padded)]
        return padded if pixels[1] <= PAD_MOST * pixels[0] else geometry

    def _neighbours(self) -> list[int]:
        """For every value the first one of those that lead to each other with the same height and width."""
        first = list(range(len(self.operations)))
        for i, op in enumerate(self.operations):
            alike = isinstance(op, (p.Threshold, p.Requantize, p.Add, p.Concat))
            alike = alike or (isinstance(op, p.Conv) and op.stride == (1, 1))
            for j in op.inputs:
                if alike and self.values[i].shape[1:] == self.values[j].shape[1:] and first[i] != first[j]:
                    old, new = max(first[i], first[j]), min(first[i], first[j])
                    first = [new if k == old else k for k in first]
        return first

    def _copy(self, value: int, form: Form) -> Stored:
        """Room for a copy without a stride: in the concatenation that the value is a part of, if that has the form."""
        whole, first = self.homes.get(value, (value, 0))
        if whole == value or (whole, first) in self.placed or self._main_form(whole) != form:
            return self.workspace.codes(self.values[value].shape[0], form, self._geometry(value, form))
        self.placed.add((whole, first))
        return self.workspace.planes(self._first_copy(whole, form), first)

    def _first_copy(self, value: int, form: Form | None = None) -> Stored:
        """The copy that the step which makes the value writes: in this form, or else in the most wanted one."""
        if value not in self.stored:
            self.stored[value] = [self._copy(value, form or self._main_form(value))]
        return self.stored[value][0]

    def _copies(self, value: int) -> None:
        """Steps for the other copies that are wanted."""
        first = self.stored[value][0]
        assert first.form is not None
        channels = self.values[value].shape[0]
        for (form, stride), geometry in self._wanted(value).items():
            if (form, stride) == (first.form, (1, 1)):
                continue
            copy = self._copy(value, form) if stride == (1, 1) else self.workspace.codes(channels, form, geometry)
            self.stored[value].append(copy)
            self.plan.repack(
                source=first.view, source_form=self._form(first.form), target=copy.view, target_form=self._form(form),
                channels=channels, stride=stride, phases=list(copy.geometry.phases),
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
            free = isinstance(self.values[value], p.Integers) and self.homes.get(value) not in self.placed
            if free and self._is_read(value):
                self.workspace.give_back(self.stored[value][0], value)

    def _is_read(self, value: int) -> bool:
        """Whether no later operation reads a value, or a part that lies in it."""
        op = self.operations[value]
        parts = [j for j in op.inputs if self.homes[j][0] == value] if isinstance(op, p.Concat) else []
        return self.made.issuperset({value, *self.readers[value]}) and all(map(self._is_read, parts))

    def _new_integers(self, value: int, like: Geometry | None = None) -> Stored:
        """Room for integers, with their pixels where they are in ``like`` if all readers take that."""
        if value in self.stored:
            return self.stored[value][0]
        shape = self.values[value].shape
        whole, first = self.homes.get(value, (value, 0))
        if whole != value:
            self.placed.add((whole, first))
            target = self.workspace.planes(self._new_integers(whole), first)
        else:
            takers = (p.Add, p.Requantize, p.Threshold, p.MaxPool, p.SumPool, p.Scale)
            geometry = Geometry(*shape[1:])
            if like is not None and all(isinstance(self.operations[r], takers) for r in self.readers[value]):
                geometry = Geometry(*shape[1:], pad_rows=like.rows - shape[1], pad_columns=like.pitch - shape[2])
            # Steps read whole chunks, those of a part too.
            spare = CHUNK if isinstance(self.operations[value], p.Concat) else 0
            target = self.workspace.integers(shape[0], geometry, spare)
        self.stored[value] = [target]
        return target

    def _integers(self, value: int) -> Stored:
        return self.stored[value][0]

    def _find(self, value: int, form: Form | None, stride: p.Pair = (1, 1)) -> Stored:
        return next(s for s in self.stored[value] if (form is None or s.form == form) and s.geometry.stride == stride)

    def _find_near(self, value: int, target: int) -> Stored:
        """A copy without a stride, in the form that is wanted of the target if there is one."""
        copies = [s for s in self.stored[value] if s.geometry.stride == (1, 1)]
        return next((s for s in copies if s.form == self._main_form(target)), copies[0])

    def _add(
        self,
        operation: int,
        family: str,
        macs: int = 0,
        completes: tuple[int, ...] | None = None,
        what: str = "",
        bits: int = 0,
    ) -> None:
        op = self.operations[operation]
        name = f"{op.name or type(op).__name__.lower()}{what}"
        values = (operation,) if completes is None else completes
        done = tuple(self.origin[value] for value in values if self.origin[value] >= 0)
        self.steps.append(StepInfo(self.origin[operation], name, family, macs, done, bits))

    def _form(self, form: Form) -> Any:
        return self.core.Form(form.bits, form.is_signed, form.multiplier, form.add, form.sextets)

    # ---- convolutions -------------------------------------------------------------------------------------------

    def _kernel(self, family: str, bits: int) -> Any:
        """The kernel of a family with the tile of most outputs."""
        return max((k for k in self.kernels if k.family == family and k.bits == bits), key=lambda k: k.outputs)

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
            chunks=-(-len(op.weight) // CHUNK),
            **self._epilogue(i, op, choice, stored.geometry, packed.bias * levels, fused, phase),
        )

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
        no_bias = np.zeros(layout.round_up(len(op.weight), CHUNK), np.int64)
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
            outputs=len(op.weight),
            **self._epilogue(i, op, self.choices[i], Geometry(1, 1), no_bias, fused),
        )

    def _epilogue(
        self, i: int, op: p.Conv, choice: Choice, source: Geometry, bias: Ints, fused: Fused, phase: Phase | None = None
    ) -> dict[str, Any]:
        """What happens to the sums of convolution ``i``, whose pixels lie in ``source``: arguments for its step."""
        out, shape = self.values[i], (len(op.weight), *(phase.size if phase else self.values[i].shape[1:]))
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
        source, channels = op.inputs[0], self.values[i].shape[0]
        if op.mode == "bilinear":
            form = None
            if isinstance(self.values[source], p.Codes):
                form = Form.bytes(self._codes(source).code_type)
            self.plan.upsample_bilinear(
                source=self._find(source, form).view, form=form and self._form(form),
                target=self._new_integers(i).view, channels=channels, factor=op.factor,
            )  # fmt: skip
            self._add(i, "upsample")
            return
        codes = isinstance(self.values[i], p.Codes)
        stored = self._find_near(source, i) if codes else self._integers(source)
        target = self._first_copy(i, stored.form) if codes else self._new_integers(i)
        planes = stored.form.plane_count(channels) if stored.form else channels
        self.plan.upsample_nearest(source=stored.view, target=target.view, planes=planes, factor=op.factor)
        self._add(i, "upsample")
        if codes:
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


def _least_loss(kernels: list[Any], pixels: int) -> Any:
    """The kernel whose tiles cover so many pixels fastest."""
    return min(kernels, key=lambda k: layout.round_up(pixels, k.pixels) * (1 + 4 / k.pixels))
