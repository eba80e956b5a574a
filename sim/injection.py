"""What is wrong right now: faults in force within their scopes, as a ledger that the models ask.

A fault is a verdict with a scope (turmoil's rules): while the scope is open, a model that asks is told; leaving it,
however that happens, lifts the fault. Each operation that a fault really changed touches it; one that touched none
proves nothing, and a run with it is inconclusive, not green.

Most faults are only looked up by the model they change. One that acts at its start and its end (a crash and the
restart) is carried out by whoever registered for its kind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Generic, TypeVar

from msgspec import Struct

F = TypeVar("F", bound=Struct)


class Injection(Generic[F]):
    """One fault in force: how many operations it has changed so far."""

    def __init__(self, fault: F) -> None:
        self.fault = fault
        self.touched = 0


Carrier = Callable[[Injection[F]], AbstractAsyncContextManager[None]]
"""Acts on entry, when a fault starts, and on exit, when it is lifted; counts what it changed in `Injection.touched`."""


class Faults:
    """What is wrong right now. Models ask before they act, with draws of their own for what is left to chance."""

    def __init__(self) -> None:
        self._active: dict[type[Struct], list[Injection[Struct]]] = {}
        self._carriers: dict[type[Struct], Carrier[Struct]] = {}

    @asynccontextmanager
    async def in_force(self, fault: F) -> AsyncIterator[Injection[F]]:
        """Keep `fault` in force inside the scope, and have it carried out where its kind has somebody for that."""
        with self.injected(fault) as injection:
            carrier = self._carriers.get(type(fault))
            if carrier is None:
                yield injection
                return
            async with carrier(injection):  # type: ignore[arg-type]
                yield injection

    @contextmanager
    def injected(self, fault: F) -> Iterator[Injection[F]]:
        """Keep `fault` in force inside the scope, for those who ask."""
        injection = Injection(fault)
        active = self._active.setdefault(type(fault), [])
        active.append(injection)  # type: ignore[arg-type]
        try:
            yield injection
        finally:
            active.remove(injection)  # type: ignore[arg-type]
            if not active:
                del self._active[type(fault)]

    @property
    def calm(self) -> bool:
        """Whether no fault at all is in force: what a model may ask first, to be cheap on an ordinary day."""
        return not self._active

    def active(self, kind: type[F]) -> list[Injection[F]]:
        """Return what is in force of one kind of fault, in order of injection."""
        return self._active.get(kind, [])  # type: ignore[return-value]

    def carry_out(self, kind: type[F], carrier: Carrier[F]) -> None:
        """Let `carrier` act where faults of `kind` start and end; it is entered inside of the fault's scope."""
        self._carriers[kind] = carrier  # type: ignore[assignment]
