"""What goes wrong, as plain data, and what is wrong right now.

A fault is a verdict with a scope (turmoil's rules): while the scope is open, a model that asks is told; leaving it,
however that happens, lifts the fault. Each operation that a fault really changed touches it; one that touched none
proves nothing, and a run with it is inconclusive, not green.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

from msgspec import Struct, field

from sim.quantities import COUNT, DURATION, SHARE

StoreName = Literal["sessions", "conversations", "memories"]


class ProviderSlow(Struct, frozen=True, kw_only=True, tag="provider_slow"):
    """Calls that start meanwhile take `factor` times as long."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    factor: Annotated[float, COUNT, "how many times longer a call takes, above 1"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from _lasting(self.lasts)
        if not 1 < self.factor <= 10_000:
            yield "factor", f"{self.factor:g} is out of bounds: write more than 1, such as 8, at most 10000"


class ProviderFailing(Struct, frozen=True, kw_only=True, tag="provider_failing"):
    """A share of the calls that start meanwhile fails, at the time their first token was due."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    rate: Annotated[float, SHARE, "share of calls that fail"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from _lasting(self.lasts)
        if self.rate == 0:
            yield "rate", "0% makes nothing fail: write more"


class StoreDown(Struct, frozen=True, kw_only=True, tag="store_down"):
    """Every operation of one store is refused."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    store: Annotated[StoreName, "which one"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from _lasting(self.lasts)


Fault = ProviderSlow | ProviderFailing | StoreDown


def _lasting(seconds: float) -> Iterator[tuple[str, str]]:
    if seconds == 0:
        yield "for", "0 lasts no time: write how long the fault lasts, such as 30s"


def kind_of(fault: Fault) -> str:
    """Return the name of a fault's kind, as a scenario writes it."""
    return str(fault.__struct_config__.tag)


def describe(fault: Fault) -> str:
    """Return the fault in a few words."""
    if isinstance(fault, ProviderSlow):
        return f"provider {fault.factor:g}x slower"
    if isinstance(fault, ProviderFailing):
        return f"provider failing {fault.rate:.0%}"
    return f"{fault.store} store down"


class Injection:
    """One fault in force: how many operations it has changed so far."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.touched = 0


class Faults:
    """What is wrong right now. Models ask before they act, with draws of their own for what is left to chance."""

    def __init__(self) -> None:
        self._active: list[Injection] = []

    @contextmanager
    def injected(self, fault: Fault) -> Iterator[Injection]:
        """Keep `fault` in force inside the scope."""
        injection = Injection(fault)
        self._active.append(injection)
        try:
            yield injection
        finally:
            self._active.remove(injection)

    def slowdown(self) -> float:
        """Return the factor on a provider call that starts now; several faults multiply."""
        factor = 1.0
        for injection in self._active:
            if isinstance(injection.fault, ProviderSlow):
                injection.touched += 1
                factor *= injection.fault.factor
        return factor

    def failing(self, draw: float) -> bool:
        """Tell whether a provider call that starts now fails, given its `draw` from [0, 1); several faults add up."""
        threshold = 0.0
        for injection in self._active:
            if isinstance(injection.fault, ProviderFailing):
                threshold += (1.0 - threshold) * injection.fault.rate
                if draw < threshold:
                    injection.touched += 1
                    return True
        return False

    def down(self, store: StoreName) -> bool:
        """Tell whether `store` refuses an operation now."""
        for injection in self._active:
            if isinstance(injection.fault, StoreDown) and injection.fault.store == store:
                injection.touched += 1
                return True
        return False
