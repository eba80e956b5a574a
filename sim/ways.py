"""Wires of a deployment: to shards, from another region, by a pool of connections.

A plain `Wire` knows none of these, and is what a world without them pays for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

from orchestra.errors import StoreUnavailable
from sim.distributions import Distribution
from sim.injection import Faults, Injection
from sim.service_faults import RegionPartition
from sim.store_faults import StoreName, slots_down
from sim.stores import PoolModel, Wire


class Pool:
    """The connections to one server that a process holds; whoever finds none free waits in line, and not for ever."""

    def __init__(self, model: PoolModel) -> None:
        self._free = asyncio.Semaphore(model.size)
        self._wait_s = model.wait

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        """Lend a connection.

        Raises
        ------
        StoreUnavailable
            None became free in time.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            message = "no connection to the store became free: try again, or let the pool be larger"
            raise StoreUnavailable(message, retry_after_seconds=1) from None
        try:
            yield
        finally:
            self._free.release()


class Borders:
    """Where nothing passes between regions now."""

    def __init__(self, faults: Faults) -> None:
        self._cuts: list[tuple[Injection[RegionPartition], asyncio.Event]] = []
        faults.carry_out(RegionPartition, self._cut)

    @asynccontextmanager
    async def _cut(self, injection: Injection[RegionPartition]) -> AsyncIterator[None]:
        cut = injection, asyncio.Event()
        self._cuts.append(cut)
        try:
            yield
        finally:
            self._cuts.remove(cut)
            cut[1].set()

    async def cross(self, one: str, other: str) -> None:
        """Return once something gets from one region to the other.

        Raises
        ------
        StoreUnavailable
            It does not, and whoever is on the way is told.
        """
        while cut := next((each for each in self._cuts if {one, other} == set(each[0].fault.between)), None):
            injection, healed = cut
            injection.touched += 1
            if injection.fault.operations == "refuse":
                raise StoreUnavailable(f"no way from {one} to {other}: try again", retry_after_seconds=1)
            await healed.wait()


class Way(Wire):
    """A wire with all that a deployment adds.

    Parameters
    ----------
    region, home : str
        Where it begins, and where the stores' primaries are.
    distance : Distribution
        What a way to another region adds to an operation, in seconds; one draw each where it is one.
    borders : Borders
    pool : Pool or None
        What an operation needs a connection of.
    """

    def __init__(
        self,
        store: StoreName,
        latency: Distribution,
        chance: Random,
        faults: Faults,
        *,
        region: str,
        home: str,
        distance: Distribution,
        borders: Borders,
        pool: Pool | None = None,
    ) -> None:
        super().__init__(store, latency, chance, faults)
        self._is_sharded = store == "sessions"
        self._from_afar = region != home
        self._between = region, home
        self._distance = distance
        self._borders = borders
        self._pool = pool

    async def cross(self, key: str = "") -> None:
        """Return once an operation on `key` has reached the store.

        Raises
        ------
        StoreUnavailable
            The store is down, or the shard of `key`, or no way leads there, or no connection is free.
        """
        if self._pool is None:
            await self._reach(key)
        else:
            async with self._pool.connection():
                await self._reach(key)

    async def _reach(self, key: str) -> None:
        if self._from_afar:
            await self._borders.cross(*self._between)
            await asyncio.sleep(self._distance.draw(self._chance))
        await super().cross(key)
        if self._is_sharded and slots_down(self._faults, key):
            raise StoreUnavailable("the shard of this key has no primary: try again", retry_after_seconds=1)
