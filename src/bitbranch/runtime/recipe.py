"""How a plan was made, call by call, so that it can be made again over memory of its own.

Several callers of one engine each need a plan with its own buffers, but not its own weights. A plan is made by calls
of the compiled core with buffers, arrays and what was made before; repeating them with new buffers gives a second plan
over the same arrays, without planning again and without copying a weight, a threshold or a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Thing:
    """In a recipe, what its call of this number made."""

    number: int


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Any] | tuple[Thing, str]
    """A constructor of the core, or a method of a thing."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class Recipe:
    """Stands in for the compiled core while a plan is made: does every call and remembers it.

    Args:
        core: the compiled module.
        machine: threads and instruction set of the first plan.
    """

    def __init__(self, core: ModuleType, machine: Any) -> None:
        self._core = core
        self._calls: list[_Call] = []
        self.machine = Made(self, Thing(0), machine)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        if isinstance(found, type):
            return _Maker(self, found)
        if not callable(found):
            return found
        return lambda *args, **kwargs: found(*_real(args), **_real_values(kwargs))

    def repeat(self, machine: Any, wanted: Thing) -> Any:
        """Make everything again, for another machine; returns what stands for ``wanted``."""
        things = [machine]

        def now(x: Any) -> Any:
            if isinstance(x, Thing):
                return things[x.number]
            return type(x)(map(now, x)) if isinstance(x, (list, tuple)) else x

        for call in self._calls:
            function = call.function
            if isinstance(function, tuple):
                function = getattr(now(function[0]), function[1])
            things.append(function(*now(call.args), **{key: now(x) for key, x in call.kwargs.items()}))
        return things[wanted.number]

    def do(self, function: Callable[..., Any] | tuple[Thing, str], result: Any, args: Any, kwargs: Any) -> Made:
        """Remember a call and what it made."""
        self._calls.append(_Call(function, _named(args), {key: _named(x) for key, x in kwargs.items()}))
        return Made(self, Thing(len(self._calls)), result)


class _Maker:
    """A class of the core: its constructor and its static functions make things."""

    def __init__(self, recipe: Recipe, function: Callable[..., Any]) -> None:
        self._recipe, self._function = recipe, function

    def __call__(self, *args: Any, **kwargs: Any) -> Made:
        return self._recipe.do(self._function, self._function(*_real(args), **_real_values(kwargs)), args, kwargs)

    def __getattr__(self, name: str) -> _Maker:
        return _Maker(self._recipe, getattr(self._function, name))


class Made:
    """Something that a recipe made; to everyone else the thing itself.

    Its methods that return nothing (the steps of a plan) change it, and are part of the recipe.
    """

    def __init__(self, recipe: Recipe, thing: Thing, real: Any) -> None:
        self._recipe, self.thing, self.real = recipe, thing, real

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*_real(args), **_real_values(kwargs))
            if result is None:
                self._recipe.do((self.thing, name), None, args, kwargs)
            return result

        return call


def _real(x: Any) -> Any:
    """An argument as the core takes it."""
    if isinstance(x, Made):
        return x.real
    return type(x)(map(_real, x)) if isinstance(x, (list, tuple)) else x


def _real_values(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _real(x) for key, x in kwargs.items()}


def _named(x: Any) -> Any:
    """An argument as a recipe keeps it: without what was made, so that nothing is kept alive by it."""
    if isinstance(x, Made):
        return x.thing
    return type(x)(map(_named, x)) if isinstance(x, (list, tuple)) else x
