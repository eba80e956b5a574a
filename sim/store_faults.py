"""What goes wrong with the stores, as plain data, and what it does to an operation that arrives meanwhile."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Struct, field

from sim.injection import Faults
from sim.quantities import DURATION, Whole, lasting, show_duration

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


class StoreCrash(Struct, frozen=True, kw_only=True, tag="store_crash"):
    """One store dies and is started again: every operation is refused meanwhile, and what was not durable is gone.

    Subscriptions, which Redis holds in memory only, are made anew when it is back.
    """

    at: Annotated[float, DURATION, "when it dies, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it is away"] = field(name="for")
    store: Annotated[StoreName, "which one"]
    loses: Annotated[float, DURATION, "what it wrote within this time before is lost, as Redis loses up to 1s"] = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.store} store crashes" + (f", loses {show_duration(self.loses)}" if self.loses else "")


class StoreFailover(Struct, frozen=True, kw_only=True, tag="store_failover"):
    """The primary of one store is lost: no primary for a while, then its replica is one, as far as it had followed.

    PostgreSQL (conversations and memories) loses nothing where `world.stores.commits` are synchronous; Redis
    (sessions) acknowledges before it replicates, and loses the lag.
    """

    at: Annotated[float, DURATION, "when the primary is lost, from the run's start"]
    lasts: Annotated[float, DURATION, "how long there is no primary"] = field(name="for")
    store: Annotated[StoreName, "which one"]
    replica_lag: Annotated[float, DURATION, "how far behind the replica was"] = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        lag = f", replica {show_duration(self.replica_lag)} behind" if self.replica_lag else ""
        return f"{self.store} store fails over{lag}"


SLOTS = 16_384
"""The hash slots of a Redis Cluster (its specification, "Key distribution model")."""


class SlotsFailover(Struct, frozen=True, kw_only=True, tag="slots_failover"):
    """The sessions' Redis is a cluster, and one shard has no primary for a while: keys of its slots are refused."""

    at: Annotated[float, DURATION, "when the primary is lost, from the run's start"]
    lasts: Annotated[float, DURATION, "how long there is no primary"] = field(name="for")
    shards: Annotated[int, Whole(1, 1000), "how many shards the slots are divided among, evenly"] = 3
    shard: Annotated[int, Whole(1, 1000), "which of them, from 1"] = 1

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if self.shard > self.shards:
            yield "shard", f"{self.shard} is out of bounds: there are {self.shards} shards"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"shard {self.shard} of {self.shards} fails over"

    def holds(self, key: str) -> bool:
        """Tell whether `key` is in a slot of the shard."""
        return (self.shard - 1) * SLOTS <= slot_of(key) * self.shards < self.shard * SLOTS


StoreFault = StoreDown | StoreCrash | StoreFailover | SlotsFailover


def slot_of(key: str) -> int:
    """Return the slot of a key in a Redis Cluster: CRC16 (XMODEM) of its hash tag, which is all that is given here."""
    return crc_hqx(key.encode(), 0) % SLOTS


def slots_down(faults: Faults, key: str) -> bool:
    """Tell whether the cluster refuses an operation on `key` now; one without a key any node answers."""
    for injection in faults.active(SlotsFailover):
        if key and injection.fault.holds(key):
            injection.touched += 1
            return True
    return False


def down(faults: Faults, store: StoreName) -> bool:
    """Tell whether `store` refuses an operation now."""
    for injection in faults.active(StoreDown):
        if injection.fault.store == store:
            injection.touched += 1
            return True
    return False
