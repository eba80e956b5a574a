"""What goes wrong with the stores, as plain data, and what it does to an operation that arrives meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Struct, field

from sim.injection import Faults
from sim.quantities import DURATION, lasting

StoreName = Literal["sessions", "conversations", "memories"]


class StoreDown(Struct, frozen=True, kw_only=True, tag="store_down"):
    """Every operation of one store is refused."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    store: Annotated[StoreName, "which one"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.store} store down"


StoreFault = StoreDown


def down(faults: Faults, store: StoreName) -> bool:
    """Tell whether `store` refuses an operation now."""
    for injection in faults.active(StoreDown):
        if injection.fault.store == store:
            injection.touched += 1
            return True
    return False
