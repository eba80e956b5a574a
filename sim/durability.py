"""What a store loses when it dies: everything that it wrote within the last moments, as if that had never been written.

A scenario's faults are known beforehand, so the state that will be left is copied when it is current, and put back when
the store dies. Nobody pays for it but the runs that lose something, and what is lost is exactly what was written
between the two moments.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sim.injection import Faults, Injection
from sim.store_faults import StoreCrash, StoreDown, StoreFailover, StoreName

MEMORY_ONLY = ("ears", "leases")
"""What a hub does not keep: subscriptions, and leases, which their holders renew."""

State = dict[str, Any]


def state_of(store: object) -> State:
    """Return a copy of all that `store` keeps; what is stored is frozen, so that only the containers are copied."""
    return {name: _copied(value) for name, value in vars(store).items() if name not in MEMORY_ONLY}


def put_back(store: object, state: State) -> None:
    """Let `store` keep again what it kept when `state` was taken, which may be put back once."""
    vars(store).update(state)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(each) for key, each in value.items()}
    return list(value) if type(value) is list else value


class Archive:
    """The stores as they were at the moments that they will be thrown back to.

    Parameters
    ----------
    stores : mapping of str to sequence
        All that lives in each store.
    loses : callable
        Says how far back a fault throws its store, in seconds.
    """

    def __init__(
        self,
        stores: Mapping[StoreName, Sequence[object]],
        loses: Callable[[StoreCrash | StoreFailover], float],
    ) -> None:
        self._stores = stores
        self._loses = loses
        self._kept: dict[StoreCrash | StoreFailover, list[State]] = {}

    async def keep(self, fault: StoreCrash | StoreFailover) -> None:
        """Copy, at its time, what `fault` will leave; return at once where that is all."""
        loses_s = self._loses(fault)
        if loses_s > 0:
            await asyncio.sleep(max(0.0, fault.at - loses_s - asyncio.get_running_loop().time()))
            self._kept[fault] = [state_of(store) for store in self._stores[fault.store]]

    def throw_back(self, fault: StoreCrash | StoreFailover) -> None:
        """Lose what `fault` loses."""
        states = self._kept.pop(fault, None)
        if states is not None:
            for store, state in zip(self._stores[fault.store], states, strict=True):
                put_back(store, state)


def carry_out_losses(
    faults: Faults, archive: Archive, gone: Callable[[StoreName], None], back: Callable[[StoreName], None]
) -> None:
    """Let crashes and failovers of stores happen: what is lost is lost, and all is refused until there is one again.

    Parameters
    ----------
    gone, back : callable
        Told when the store that the subscriptions are in has died, and when there is one again.
    """

    @asynccontextmanager
    async def dead(injection: Injection[StoreCrash | StoreFailover]) -> AsyncIterator[None]:
        fault = injection.fault
        archive.throw_back(fault)
        gone(fault.store)
        with faults.injected(StoreDown(at=fault.at, lasts=fault.lasts, store=fault.store)) as down:
            yield
        injection.touched += down.touched
        back(fault.store)

    faults.carry_out(StoreCrash, dead)  # type: ignore[arg-type]
    faults.carry_out(StoreFailover, dead)  # type: ignore[arg-type]
