"""Redis and PostgreSQL as models: the in-process stores, with the time that a network and a disk take, and outages.

An operation acts when its latency is over, as a command acts when it reaches a server. A store that is down refuses,
after the same time, and has then done nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Annotated, Literal

from msgspec import Struct

from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessRelay
from orchestra.errors import StoreUnavailable
from orchestra.model import ConversationHead, Memory, Profile, Recollection, Session, Tally, Turn
from orchestra.ports import Claim, Clock, Found
from sim.distributions import Distribution, Lognormal
from sim.injection import Faults
from sim.quantities import DURATION, Spread, Whole
from sim.store_faults import StoreName, down

OWNER_MEMORIES_MAX = 16
MEMORIES_MAX = 20_000

FLEET = "fleet"
"""The hash tag of the fleet's keys, which keeps them in one slot of a Redis Cluster."""


class PoolModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The connections to PostgreSQL that one process holds; an operation has one to itself."""

    size: Annotated[int, Whole(1, 10_000), "connections a process holds"] = 10
    wait: Annotated[float, DURATION, "how long an operation waits for one before it fails"] = 1.0


class StoresModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Redis and PostgreSQL: what one operation takes."""

    latency: Annotated[Distribution, Spread(DURATION), "time of one operation"] = Lognormal(0.001, 0.004)
    pool: Annotated[PoolModel | None, "connections to PostgreSQL; without it they never run out"] = None
    commits: Annotated[
        Literal["synchronous", "asynchronous"],
        "whether PostgreSQL acknowledges what its replica has not, and a failover loses; Redis always does",
    ] = "synchronous"


class Wire:
    """The way to one store: how long it takes, and whether anybody is there.

    Parameters
    ----------
    store : str
        Which store, for faults and errors.
    latency : Distribution
        Of one operation, in seconds.
    chance : Random
        One draw an operation.
    faults : Faults
    """

    def __init__(self, store: StoreName, latency: Distribution, chance: Random, faults: Faults) -> None:
        self._store = store
        self._latency = latency
        self._chance = chance
        self._faults = faults

    async def cross(self, key: str = "") -> None:
        """Return once an operation on `key` has reached the store; which key it is matters only to what is sharded.

        Raises
        ------
        StoreUnavailable
            The store is down.
        """
        await asyncio.sleep(self._latency.draw(self._chance))
        if not self._faults.calm and down(self._faults, self._store):
            raise StoreUnavailable(f"the {self._store} store is down: try again", retry_after_seconds=1)


class ModelledSessions:
    """`InProcessSessions` at the end of a wire."""

    def __init__(self, clock: Clock, wire: Wire, store: InProcessSessions | None = None) -> None:
        self.store = store or InProcessSessions(clock)
        self._wire = wire

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None."""
        await self._wire.cross(session_id)
        return await self.store.load(session_id)

    async def save(self, session: Session, *, expected: Session | None) -> None:
        """Store `session` where the stored one has `expected`'s version and revision; None: where there is none."""
        await self._wire.cross(session.id)
        await self.store.save(session, expected=expected)

    async def delete(self, session_id: str) -> None:
        """Forget the session."""
        await self._wire.cross(session_id)
        await self.store.delete(session_id)

    async def ping(self) -> None:
        """Return once the store has answered."""
        await self._wire.cross()


class ModelledConversations:
    """`InProcessConversations` at the end of a wire."""

    def __init__(self, wire: Wire, store: InProcessConversations | None = None) -> None:
        self.store = store or InProcessConversations()
        self._wire = wire

    async def append(self, turn: Turn, owner: str) -> Turn:
        """Keep `turn`, and return what is kept."""
        await self._wire.cross()
        return await self.store.append(turn, owner)

    async def find(self, turn_id: str) -> Turn | None:
        """Return the turn of that id, or None."""
        await self._wire.cross()
        return await self.store.find(turn_id)

    async def turns(self, session_id: str, *, after: int = 0, limit: int = 100) -> tuple[Turn, ...]:
        """Return turns numbered above `after`."""
        await self._wire.cross()
        return await self.store.turns(session_id, after=after, limit=limit)

    async def latest(self, session_id: str, *, limit: int) -> tuple[Turn, ...]:
        """Return the last turns."""
        await self._wire.cross()
        return await self.store.latest(session_id, limit=limit)

    async def ids(self, session_id: str) -> tuple[str, ...]:
        """Return the ids of all its turns."""
        await self._wire.cross()
        return await self.store.ids(session_id)

    async def head(self, session_id: str) -> ConversationHead | None:
        """Return what is known of the session besides its turns, or None."""
        await self._wire.cross()
        return await self.store.head(session_id)

    async def set_profile(self, session_id: str, owner: str, profile: Profile, *, revision: int, at: float) -> None:
        """Keep `profile` as the session's where the kept revision is the one before `revision`."""
        await self._wire.cross()
        await self.store.set_profile(session_id, owner, profile, revision=revision, at=at)

    async def delete(self, session_id: str) -> tuple[str, ...]:
        """Forget the session's turns and profile."""
        await self._wire.cross()
        return await self.store.delete(session_id)

    async def ping(self) -> None:
        """Return once the store has answered."""
        await self._wire.cross()


class RecentMemories(InProcessMemories):
    """Keeps the newest memories of each owner, and of all: each recall compares with every one of its owner.

    A user who has come for a simulated week has said thousands of things; those of long ago would make every turn
    dearer, and hardly ever be the nearest.
    """

    def __init__(self) -> None:
        super().__init__()
        self._of_owner: dict[str, deque[str]] = {}
        self._of_all: deque[str] = deque()

    async def remember(self, memory: Memory) -> None:
        """Keep `memory`, and forget the oldest where there are too many."""
        await super().remember(memory)
        mine = self._of_owner.setdefault(memory.owner, deque())
        mine.append(memory.id)
        self._of_all.append(memory.id)
        if len(mine) > OWNER_MEMORIES_MAX:
            await self.forget((mine.popleft(),))
        if len(self._of_all) > MEMORIES_MAX:
            await self.forget((self._of_all.popleft(),))


class ModelledMemories:
    """`InProcessMemories` at the end of a wire."""

    def __init__(self, wire: Wire, store: InProcessMemories | None = None) -> None:
        self._store = store or InProcessMemories()
        self._wire = wire

    async def remember(self, memory: Memory) -> None:
        """Keep `memory`."""
        await self._wire.cross()
        await self._store.remember(memory)

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        """Return the nearest memories."""
        await self._wire.cross()
        return await self._store.recall(owner, embedding, limit=limit)

    async def forget(self, memory_ids: Sequence[str]) -> None:
        """Forget the memories of these ids."""
        await self._wire.cross()
        await self._store.forget(memory_ids)

    async def ping(self) -> None:
        """Return once the store has answered."""
        await self._wire.cross()


class ModelledFleet:
    """`InProcessFleet` at the end of a wire: that of the sessions, since the fleet lives in their Redis."""

    def __init__(self, clock: Clock, wire: Wire, fleet: InProcessFleet | None = None) -> None:
        self._fleet = fleet or InProcessFleet(clock)
        self._wire = wire

    async def share(self, tallies: Mapping[str, Tally], *, window_seconds: float) -> dict[str, Tally]:
        """Add new calls to the fleet's, and return what all instances saw in the window."""
        await self._wire.cross(FLEET)
        return await self._fleet.share(tallies, window_seconds=window_seconds)

    async def orders(self) -> dict[str, str]:
        """Return the operators' standing orders, by target."""
        await self._wire.cross(FLEET)
        return await self._fleet.orders()

    async def order(self, target: str, order: str | None) -> None:
        """Let `order` stand for `target`, or none any more."""
        await self._wire.cross(FLEET)
        await self._fleet.order(target, order)


class ModelledRelay:
    """`InProcessRelay` at the end of a wire: that of the sessions, since it is their Redis that relays.

    What is not awaited crosses the wire together with all that was given meanwhile, as in a pipeline; while the store
    is down, it is lost.
    """

    def __init__(self, relay: InProcessRelay, wire: Wire) -> None:
        self.relay = relay
        self._wire = wire
        self._waiting: list[Callable[[], None]] = []
        self._sender: asyncio.Task[None] | None = None

    @property
    def instance(self) -> str:
        """The address of this instance."""
        return self.relay.instance

    async def claim(self, turn_id: str, about: str) -> Claim:
        """Take the turn for this instance, unless another that lives has it."""
        await self._wire.cross(turn_id)
        return await self.relay.claim(turn_id, about)

    def begin(self, session_id: str, turn_id: str, address: str, message: bytes) -> None:
        """Let others know that the turn runs here, and tell those who hear `address`."""
        self._send(lambda: self.relay.begin(session_id, turn_id, address, message))

    def end(self, session_id: str, turn_id: str, *, kept: bool) -> None:
        """Let others know that the turn has ended, and whether its log is here."""
        self._send(lambda: self.relay.end(session_id, turn_id, kept=kept))

    async def find(self, session_id: str, turn_id: str) -> Found | None:
        """Return where the turn runs, or ran a moment ago and is kept."""
        await self._wire.cross(session_id)
        return await self.relay.find(session_id, turn_id)

    async def running(self, session_id: str) -> dict[str, str]:
        """Return the turns of the session that run on instances that live, and on which."""
        await self._wire.cross(session_id)
        return await self.relay.running(session_id)

    def tell(self, address: str, message: bytes) -> None:
        """Send `message` to all who hear `address` when it arrives."""
        self._send(lambda: self.relay.tell(address, message))

    def hear(self, address: str, deliver: Callable[[bytes], None]) -> Callable[[], None]:
        """Let `deliver` get what is told to `address`, and return how to end that."""
        return self.relay.hear(address, deliver)

    async def aclose(self) -> None:
        """Return once nothing is on its way any more."""
        if self._sender is not None:
            await asyncio.wait((self._sender,))

    def _send(self, act: Callable[[], None]) -> None:
        self._waiting.append(act)
        if self._sender is None:
            self._sender = asyncio.create_task(self._cross())

    async def _cross(self) -> None:
        while batch := self._waiting:
            self._waiting = []
            with suppress(StoreUnavailable):
                await self._wire.cross()
                for act in batch:
                    act()
        self._sender = None
