"""Put stand-ins for functions of C modules wherever a program holds them.

Libraries keep `time.monotonic` under other names (Sanic: ``from time import monotonic as current_time``), in class
attributes, closures, default arguments and instances. One pass of the garbage collector finds every container that
refers to such a function, and each reference is swapped. A walk over `sys.modules` alone was tried: half the time, but
it sees module globals only. Code imported later takes the stand-in from the module it imports from.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any


class StandIn:
    """Calls `decide()` for who governs the caller; then `virtual(governor, real, ...)`, or `real(...)` if nobody does.

    An object with slots rather than a function: as a class attribute it must not bind, for a built-in does not; and the
    pass below must not find the reference in here.

    Parameters
    ----------
    real
        The function it stands for.
    virtual
        What answers instead; it gets the governor and `real` before the caller's arguments.
    decide
        Returns the governor or None.
    """

    __slots__ = ("decide", "real", "virtual")

    def __init__(self, real: Callable[..., Any], virtual: Callable[..., Any], decide: Callable[[], Any]) -> None:
        self.real = real
        self.virtual = virtual
        self.decide = decide

    def __call__(self, *args: Any, **options: Any) -> Any:
        governor = self.decide()
        if governor is None:
            return self.real(*args, **options)
        return self.virtual(governor, self.real, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __repr__(self) -> str:
        return f"<stand-in for {self.real!r}>"

    def __reduce__(self) -> Any:
        return self.real.__reduce__()  # a pickle must not carry a simulation elsewhere


# Functions and classes that were found to own default arguments or a dictionary with a real function in it. Asking the
# collector who owns those costs a second pass, which this saves from the second simulation of a process on.
_OWNERS: weakref.WeakSet[Any] = weakref.WeakSet()


class Swap:
    """The references to some functions, swapped for stand-ins until `undo` is closed.

    Attributes
    ----------
    unreplaced
        Descriptions of the holders that cannot be changed (`functools.partial`, slots, tuples of data).
    """

    def __init__(self, stand_ins: Iterable[StandIn]) -> None:
        self._by_id = {id(stand_in.real): stand_in for stand_in in stand_ins}
        self.unreplaced: list[str] = []

    def into(self, undo: ExitStack) -> None:
        """Swap every reference; `undo` swaps them back."""
        reals = [stand_in.real for stand_in in self._by_id.values()]
        owned = []
        for holder in gc.get_referrers(*reals):
            if holder is reals or isinstance(holder, StandIn | types.FrameType):
                continue
            if type(holder) is tuple or (type(holder) is dict and _looks_like_a_class(holder)):
                owned.append(holder)
            else:
                self._swap(holder, undo)
        if owned:
            self._swap_owned(owned, undo)

    def _swap_owned(self, owned: list[Any], undo: ExitStack) -> None:
        """Swap in what only its owner may change: default arguments, dictionaries of classes."""
        owners = {id(part): owner for owner in _OWNERS for part in _parts(owner)}
        unknown = [holder for holder in owned if id(holder) not in owners]
        if unknown:
            for owner in gc.get_referrers(*unknown):
                if isinstance(owner, types.FunctionType | type | functools.partial):
                    _OWNERS.add(owner)
                    owners.update((id(part), owner) for part in _parts(owner))
        for holder in owned:
            self._swap(owners.get(id(holder), holder), undo)

    def _swap(self, holder: Any, undo: ExitStack) -> None:
        swap = next((swap for kind, swap in _SWAPS if isinstance(holder, kind)), _swap_in_instance)
        if not swap(holder, self._by_id, undo):
            self.unreplaced.append(f"{type(holder).__module__}.{type(holder).__qualname__}")


def _looks_like_a_class(holder: dict[Any, Any]) -> bool:
    return "__module__" in holder and "__name__" not in holder


def _parts(owner: Any) -> Iterator[Any]:
    """Yield the containers of an owner that the collector reports in its stead."""
    if isinstance(owner, types.FunctionType):
        yield owner.__defaults__
    elif isinstance(owner, functools.partial):
        yield owner.args
    else:
        yield dictionary_of(owner)


def dictionary_of(owner: type) -> dict[str, Any]:
    """Return the dictionary behind a class's read-only `__dict__`; call `forget_lookups` after a change."""
    dictionary = gc.get_referents(owner.__dict__)[0]
    assert isinstance(dictionary, dict)
    return dictionary


def forget_lookups(owner: type) -> None:
    """Make the interpreter forget what it cached about a class whose dictionary was changed."""
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))


# --- one function per kind of holder: swap what is wanted, register how to swap back, return whether anything was found

Wanted = Mapping[int, StandIn]


def _swap_in_dict(holder: dict[Any, Any], wanted: Wanted, undo: ExitStack) -> bool:
    found = [(key, value) for key, value in holder.items() if id(value) in wanted]
    for key, value in found:
        holder[key] = wanted[id(value)]
        undo.callback(holder.__setitem__, key, value)
    return bool(found)


def _swap_in_list(holder: list[Any], wanted: Wanted, undo: ExitStack) -> bool:
    found = [(index, value) for index, value in enumerate(holder) if id(value) in wanted]
    for index, value in found:
        holder[index] = wanted[id(value)]
        undo.callback(holder.__setitem__, index, value)
    return bool(found)


def _swap_in_class(holder: type, wanted: Wanted, undo: ExitStack) -> bool:
    found = [(name, value) for name, value in holder.__dict__.items() if id(value) in wanted]
    for name, value in found:
        type.__setattr__(holder, name, wanted[id(value)])
        undo.callback(type.__setattr__, holder, name, value)
    return bool(found)


def _swap_in_defaults(holder: types.FunctionType, wanted: Wanted, undo: ExitStack) -> bool:
    before = holder.__defaults__
    holder.__defaults__ = _swapped(before or (), wanted)
    undo.callback(setattr, holder, "__defaults__", before)
    return True


def _swap_in_cell(holder: types.CellType, wanted: Wanted, undo: ExitStack) -> bool:
    before = holder.cell_contents
    holder.cell_contents = wanted[id(before)]
    undo.callback(setattr, holder, "cell_contents", before)
    return True


def _swap_in_staticmethod(holder: staticmethod[..., Any], wanted: Wanted, undo: ExitStack) -> bool:
    before = holder.__func__
    staticmethod.__init__(holder, wanted[id(before)])
    undo.callback(staticmethod.__init__, holder, before)
    return True


def _swap_in_partial(holder: functools.partial[Any], wanted: Wanted, undo: ExitStack) -> bool:
    before = (holder.func, holder.args, holder.keywords, holder.__dict__)
    func = wanted.get(id(holder.func), holder.func)
    holder.__setstate__((func, _swapped(holder.args, wanted), *before[2:]))  # type: ignore[attr-defined]
    undo.callback(holder.__setstate__, before)  # type: ignore[attr-defined]
    return True


def _swap_in_instance(holder: Any, wanted: Wanted, undo: ExitStack) -> bool:
    slots = [name for kind in type(holder).__mro__ for name in _slots(kind)]
    found = []
    for name in dict.fromkeys((*getattr(holder, "__dict__", ()), *slots)):
        try:
            value = object.__getattribute__(holder, name)
        except AttributeError:  # an empty slot
            continue
        if id(value) in wanted:
            object.__setattr__(holder, name, wanted[id(value)])  # past a frozen dataclass's own
            undo.callback(object.__setattr__, holder, name, value)
            found.append(name)
    return bool(found)


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _swapped(values: tuple[Any, ...], wanted: Wanted) -> tuple[Any, ...]:
    return tuple(wanted.get(id(value), value) for value in values)


_SWAPS: tuple[tuple[type, Callable[[Any, Wanted, ExitStack], bool]], ...] = (
    (type, _swap_in_class),
    (dict, _swap_in_dict),
    (list, _swap_in_list),
    (types.FunctionType, _swap_in_defaults),
    (types.CellType, _swap_in_cell),
    (staticmethod, _swap_in_staticmethod),
    (functools.partial, _swap_in_partial),
)
