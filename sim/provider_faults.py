"""What goes wrong with a provider, as plain data, and what it does to a call that starts meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Struct, field

from sim.injection import Faults
from sim.quantities import COUNT, DURATION, SHARE, lasting


class ProviderSlow(Struct, frozen=True, kw_only=True, tag="provider_slow"):
    """Calls that start meanwhile take `factor` times as long."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    factor: Annotated[float, COUNT, "how many times longer a call takes, above 1"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if not 1 < self.factor <= 10_000:
            yield "factor", f"{self.factor:g} is out of bounds: write more than 1, such as 8, at most 10000"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"provider {self.factor:g}x slower"


class ProviderFailing(Struct, frozen=True, kw_only=True, tag="provider_failing"):
    """A share of the calls that start meanwhile fails, at the time their first token was due."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    rate: Annotated[float, SHARE, "share of calls that fail"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if self.rate == 0:
            yield "rate", "0% makes nothing fail: write more"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"provider failing {self.rate:.0%}"


ProviderFault = ProviderSlow | ProviderFailing


def slowdown(faults: Faults) -> float:
    """Return the factor on a provider call that starts now; several faults multiply."""
    factor = 1.0
    for injection in faults.active(ProviderSlow):
        injection.touched += 1
        factor *= injection.fault.factor
    return factor


def failing(faults: Faults, draw: float) -> bool:
    """Tell whether a provider call that starts now fails, given its `draw` from [0, 1); several faults add up."""
    threshold = 0.0
    for injection in faults.active(ProviderFailing):
        threshold += (1.0 - threshold) * injection.fault.rate
        if draw < threshold:
            injection.touched += 1
            return True
    return False
