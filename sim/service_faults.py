"""What goes wrong with the service itself and between its regions, as plain data.

What it does is carried out by `sim.cluster`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Struct, field

from sim.quantities import DURATION, Whole, lasting

Connections = Literal["reset", "hang"]


class InstanceCrash(Struct, frozen=True, kw_only=True, tag="instance_crash"):
    """One instance, or all of a region, dies without a word, and is started again with empty memory.

    With `connections: reset` its machine lives and tells clients at once, as after ``kill -9``; with ``hang`` the
    machine is gone too, and clients learn of it by their own patience only.
    """

    at: Annotated[float, DURATION, "when it dies, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it is dead"] = field(name="for")
    instance: Annotated[str | None, "which one, such as home-1"] = None
    region: Annotated[str | None, "all of which region, in place of one"] = None
    connections: Annotated[Connections, "reset: clients are told at once; hang: they hear nothing"] = "reset"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if (self.instance is None) == (self.region is None):
            yield "", "name either the instance or the region that dies"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.instance or f'all of {self.region}'} crashes"


class WorkerCrash(Struct, frozen=True, kw_only=True, tag="worker_crash"):
    """One worker process of an instance dies, and is started again with empty memory; the others go on."""

    at: Annotated[float, DURATION, "when it dies, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it is dead"] = field(name="for")
    instance: Annotated[str, "of which instance, such as home-1"]
    worker: Annotated[int, Whole(1, 100), "which of its workers, from 1"] = 1

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"worker {self.worker} of {self.instance} crashes"


class RegionPartition(Struct, frozen=True, kw_only=True, tag="region_partition"):
    """Nothing passes between two regions: instances of the one reach no stores in the other.

    Clients come by other ways, and reach both.
    """

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    between: Annotated[tuple[str, ...], "the two regions"]
    operations: Annotated[
        Literal["hang", "refuse"], "hang: nobody is told, until it is over; refuse: operations fail at once"
    ] = "hang"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if len(set(self.between)) != 2 or len(self.between) != 2:
            yield "between", "name two regions, such as [home, away]"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"no way between {' and '.join(self.between)}"


ServiceFault = InstanceCrash | WorkerCrash | RegionPartition
