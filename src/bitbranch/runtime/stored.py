"""Where the values of a plan lie: the form and geometry of every copy, and the memory it takes.

Every value of codes is stored once for each form and geometry that a reader wants; the step that makes the value
writes the most wanted one, repack steps make the others. Integers are stored once, in memory that is used again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import concat, layout, tiles
from . import program as p
from .choice import Choice
from .interpolation import Interpolation
from .layout import CHUNK, LINE, Form, Geometry
from .rewrite import interpolate_at_once, pool_first, readers_of
from .steps import Planning, StepInfo
from .transposed import Phase
from .tuning import Rates
from .workspace import Stored, Workspace

PAD_MOST = 1.1
"""A copy may have so many times the pixels that its readers want, to have them where a convolution's sums are."""


@dataclass(eq=False)
class StoredValues(Planning):
    """The values of a plan and their copies.

    Args:
        core, machine, isa, program, capacity, packed: see :class:`~bitbranch.runtime.steps.Planning`.
        families: family to force, by number of the operation.
        rates: this machine's, for the instruction set; see :mod:`bitbranch.runtime.tuning`.
    """

    families: Mapping[int, str] = field(default_factory=dict)
    rates: Rates = field(default_factory=dict)
    stored: dict[int, list[Stored]] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)
    """Values that are stored, or that no later step needs."""

    def __post_init__(self) -> None:
        self.plan = self.core.Plan(self.machine)
        rewritten = interpolate_at_once(pool_first(self.program))
        self.operations, self.values, self.origin = rewritten.operations, rewritten.values, rewritten.origin
        self.kernels = list(self.core.kernels(self.isa))
        self.readers = readers_of(self.operations)
        self.workspace = Workspace(self.core, self.capacity)
        self.homes = concat.homes(self.operations, self.values)
        self.placed: set[tuple[int, int]] = set()  # concatenation and first channel of the parts that are there
        self.wanted: dict[int, dict[tuple[Form, p.Pair], Geometry]] = {}
        self.choices: dict[int, Choice] = {}
        self.phases: dict[int, list[tuple[Phase, Choice]]] = {}  # of transposed convolutions

    def settle_pads(self) -> None:
        """Find the pads of neighbouring values, once it is chosen how every convolution reads its input."""
        self.neighbours = self._neighbours()
        self.pads: dict[int, p.Pair] = dict.fromkeys(self.neighbours, (0, 0))  # the most that a reader wants
        for value, first in enumerate(self.neighbours):
            for (_, stride), g in self._wanted(value).items() if isinstance(self.values[value], p.Codes) else ():
                rows, columns = self.pads[first]
                if stride == (1, 1):
                    self.pads[first] = max(rows, g.pad_rows), max(columns, g.pad_columns)

    @property
    def size(self) -> int:
        """Bytes of the buffers."""
        return self.workspace.size

    def _codes(self, value: int) -> p.Codes:
        v = self.values[value]
        assert isinstance(v, p.Codes)
        return v

    def _is_threshold(self, i: int) -> bool:
        return isinstance(self.operations[i], p.Threshold)

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

    def _take_sextets(self, value: int) -> bool:
        bits = self._codes(value).code_type.bits
        for r in self.readers[value]:
            op = self.operations[r]
            kept = isinstance(op, (p.MaxPool, p.Upsample))
            if isinstance(op, (p.Concat, p.ConvTranspose)) or (kept and not self._take_sextets(r)):
                return False
            if isinstance(op, p.Conv) and not tiles.takes_sextets(op, bits):
                return False
            if self.families.get(self.origin[r], "dictionary") != "dictionary":
                return False
        return True

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
            if isinstance(op, (p.SumPool, Interpolation)):
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

    def _compact(self, value: int) -> Form:
        """The form of codes whose readers take any."""
        code_type = self._codes(value).code_type
        if code_type.bits > 4:
            return Form.bytes(code_type)
        return replace(Form.planes(code_type), sextets=self._sextets(value))

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

    def _find(self, value: int, form: Form | None, stride: p.Pair = (1, 1)) -> Stored:
        return next(s for s in self.stored[value] if (form is None or s.form == form) and s.geometry.stride == stride)

    def _find_near(self, value: int, target: int) -> Stored:
        """A copy without a stride, in the form that is wanted of the target if there is one."""
        copies = [s for s in self.stored[value] if s.geometry.stride == (1, 1)]
        return next((s for s in copies if s.form == self._main_form(target)), copies[0])

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
            takers = (p.Add, p.Requantize, p.Threshold, p.MaxPool, p.SumPool, p.Scale, Interpolation)
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
