"""Makers of every implementation of the store ports, each fresh and empty, for the contract suites.

To put another implementation under contract (a modelled store in virtual time, say), add a fixture that gives a
`Contract` and name it in the list of its port.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg
import pytest
from redis.asyncio import Redis

from orchestra import limits
from orchestra.adapters.embedded import EmbeddedStores
from orchestra.adapters.fleet import RedisFleet
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub, InProcessRelay
from orchestra.adapters.pgvector import PgvectorMemories
from orchestra.adapters.postgres import Postgres
from orchestra.adapters.redis import RedisSessions
from orchestra.adapters.relay import RedisRelay
from orchestra.ports import ConversationStore, Fleet, MemoryStore, Relay, SessionStore
from sim.clock import SimClock
from sim.distributions import Exponential
from sim.entropy import Streams
from sim.faults import Faults, StoreName
from sim.isolation import isolated
from sim.loop import SimEnvironment
from sim.loop import run as virtually
from sim.network import Network
from sim.resp import Data, serving
from sim.stores import ModelledConversations, ModelledFleet, ModelledMemories, ModelledRelay, ModelledSessions, Wire

SESSION_STORES = ["inprocess_sessions", "modelled_sessions", "redis_sessions", "wired_sessions"]
CONVERSATION_STORES = ["inprocess_conversations", "modelled_conversations", "postgres_conversations"]
FLEETS = ["inprocess_fleet", "modelled_fleet", "redis_fleet", "wired_fleet"]
RELAYS = ["inprocess_relays", "modelled_relays", "redis_relays", "wired_relays"]
MEMORY_STORES = ["inprocess_memories", "modelled_memories", "pgvector_memories"]

Store = TypeVar("Store")
Elapse = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Contract(Generic[Store]):
    """How to make a fresh store of one implementation, and on what loop its coroutines run.

    Parameters
    ----------
    make : callable
        Opens a fresh, empty store for the length of an `async with` block.
    run : callable
        Runs a coroutine to its end: `asyncio.run`, or a simulated loop's equivalent.
    """

    make: Callable[[], AbstractAsyncContextManager[Store]]
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run

    def holds(self, scenario: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
        """Run `scenario` on a fresh store."""

        async def on_fresh_store() -> None:
            async with self.make() as store:
                await scenario(store)

        self.run(on_fresh_store())


@dataclass(frozen=True)
class Sessions:
    """A session store, and a way to let time pass for what it holds."""

    store: SessionStore
    elapse: Elapse


@dataclass(frozen=True)
class Instances:
    """A maker of instances of one fleet, each with what is its own, and a way to let time pass for what they share."""

    join: Callable[[], Awaitable[Fleet]]
    elapse: Elapse


@dataclass(frozen=True)
class Relays:
    """A maker of the relays of instances that know each other, a way to let one die, and one to let time pass."""

    join: Callable[[str], Awaitable[Relay]]
    die: Callable[[Relay], Awaitable[None]]
    elapse: Elapse


@pytest.fixture(params=SESSION_STORES)
def sessions(request: pytest.FixtureRequest) -> Contract[Sessions]:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=CONVERSATION_STORES)
def conversations(request: pytest.FixtureRequest) -> Contract[ConversationStore]:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=MEMORY_STORES)
def memories(request: pytest.FixtureRequest) -> Contract[MemoryStore]:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest) -> Contract[Instances]:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=RELAYS)
def relays(request: pytest.FixtureRequest) -> Contract[Relays]:
    return request.getfixturevalue(request.param)


class _Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self._now = 1_700_000_000.0

    def now(self) -> float:
        return self._now

    async def elapse(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def inprocess_sessions() -> Contract[Sessions]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Sessions]:
        clock = _Clock()
        yield Sessions(InProcessSessions(clock), clock.elapse)

    return Contract(make)


@pytest.fixture
def inprocess_conversations() -> Contract[ConversationStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[ConversationStore]:
        yield InProcessConversations()

    return Contract(make)


@pytest.fixture
def inprocess_memories() -> Contract[MemoryStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[MemoryStore]:
        yield InProcessMemories()

    return Contract(make)


@pytest.fixture
def inprocess_fleet() -> Contract[Instances]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Instances]:
        clock = _Clock()
        fleet = InProcessFleet(clock)

        async def join() -> Fleet:
            return fleet

        yield Instances(join, clock.elapse)

    return Contract(make)


def _wire(store: StoreName) -> Wire:
    return Wire(store, Exponential(0.002), Streams(0).stream(store), Faults())


@pytest.fixture
def modelled_sessions() -> Contract[Sessions]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Sessions]:
        clock = SimClock(asyncio.get_running_loop())
        yield Sessions(ModelledSessions(clock, _wire("sessions")), asyncio.sleep)

    return Contract(make, virtually)


@pytest.fixture
def modelled_fleet() -> Contract[Instances]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Instances]:
        fleet = ModelledFleet(SimClock(asyncio.get_running_loop()), _wire("sessions"))

        async def join() -> Fleet:
            return fleet

        yield Instances(join, asyncio.sleep)

    return Contract(make, virtually)


@pytest.fixture
def inprocess_relays() -> Contract[Relays]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Relays]:
        hub = InProcessHub()

        async def join(instance: str) -> Relay:
            return hub.join(instance)

        async def die(relay: Relay) -> None:
            assert isinstance(relay, InProcessRelay)
            relay.vanish()
            await asyncio.sleep(limits.LEASE_SECONDS)

        yield Relays(join, die, asyncio.sleep)

    return Contract(make, virtually)


@pytest.fixture
def modelled_relays() -> Contract[Relays]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Relays]:
        hub = InProcessHub()

        async def join(instance: str) -> Relay:
            return ModelledRelay(hub.join(instance), _wire("sessions"))

        async def die(relay: Relay) -> None:
            assert isinstance(relay, ModelledRelay)
            relay.relay.vanish()
            await asyncio.sleep(limits.LEASE_SECONDS)

        yield Relays(join, die, asyncio.sleep)

    return Contract(make, virtually)


@pytest.fixture
def modelled_conversations() -> Contract[ConversationStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[ConversationStore]:
        yield ModelledConversations(_wire("conversations"))

    return Contract(make, virtually)


@pytest.fixture
def modelled_memories() -> Contract[MemoryStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[MemoryStore]:
        yield ModelledMemories(_wire("memories"))

    return Contract(make, virtually)


@pytest.fixture
def contract_redis_url(stores: EmbeddedStores) -> Iterator[str]:
    """The URL of an empty Redis database that only contract tests use."""
    url = f"{stores.redis_url}{'&' if '?' in stores.redis_url else '?'}db=15"

    async def empty() -> None:
        async with Redis.from_url(url) as redis:
            await redis.flushdb()

    asyncio.run(empty())
    yield url
    asyncio.run(empty())


@pytest.fixture
def redis_sessions(contract_redis_url: str) -> Contract[Sessions]:
    async def elapse(seconds: float) -> None:
        """Take `seconds` off what every record has left to live, which is what passing time does."""
        async with Redis.from_url(contract_redis_url) as redis:
            for key in await redis.keys():
                await redis.pexpire(key, await redis.pttl(key) - round(seconds * 1000))

    @asynccontextmanager
    async def make() -> AsyncIterator[Sessions]:
        store = RedisSessions(contract_redis_url, hook=lambda event: None)
        yield Sessions(store, elapse)
        await store.close()

    return Contract(make)


@pytest.fixture
def redis_fleet(contract_redis_url: str) -> Contract[Instances]:
    async def elapse(seconds: float) -> None:
        """Make everything counted older by `seconds`, whole tenths of its window, and its time to live shorter."""
        async with Redis.from_url(contract_redis_url, decode_responses=True) as redis:
            for key in await redis.keys("orchestra:{fleet}:calls:*"):
                window_seconds = int(key.split(":")[3]) / 1000
                older = {
                    f"{int(bucket) - round(seconds * 10 / window_seconds)}:{kind}": count
                    for field, count in (await redis.hgetall(key)).items()
                    for bucket, kind in [field.split(":")]
                }
                left = await redis.pttl(key) - round(seconds * 1000)
                await redis.delete(key)
                await redis.hset(key, mapping=older)
                await redis.pexpire(key, left)

    @asynccontextmanager
    async def make() -> AsyncIterator[Instances]:
        async with AsyncExitStack() as stack:

            async def join() -> Fleet:
                fleet = RedisFleet(contract_redis_url, seconds_max=10)
                stack.push_async_callback(fleet.aclose)
                return fleet

            yield Instances(join, elapse)

    return Contract(make)


@pytest.fixture
def redis_relays(contract_redis_url: str) -> Contract[Relays]:
    async def elapse(seconds: float) -> None:
        async with Redis.from_url(contract_redis_url) as redis:
            for key in await redis.keys("orchestra:turn:*"):
                await redis.pexpire(key, await redis.pttl(key) - round(seconds * 1000))

    async def die(relay: Relay) -> None:
        """Leave: one that crashed is as gone a few seconds later."""
        assert isinstance(relay, RedisRelay)
        await relay.aclose()

    @asynccontextmanager
    async def make() -> AsyncIterator[Relays]:
        async with AsyncExitStack() as stack:

            async def join(instance: str) -> Relay:
                relay = RedisRelay(contract_redis_url, instance=instance, hook=lambda event: None)
                stack.push_async_callback(relay.aclose)
                return relay

            yield Relays(join, die, elapse)

    return Contract(make)


def _on_network(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a world with a network, cut off from reality."""
    streams = Streams(0)
    env = SimEnvironment()
    Network(env, streams)
    with isolated(streams, env):
        virtually(coroutine, env=env)


@asynccontextmanager
async def _modelled_redis() -> AsyncIterator[str]:
    """The URL of a Redis that is a model, behind bytes of the simulated network."""
    loop: Any = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        with loop.network.on("redis"):
            await stack.enter_async_context(serving(Data()))
        yield "redis://redis:6379"


@pytest.fixture
def wired_sessions() -> Contract[Sessions]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Sessions]:
        async with _modelled_redis() as url:
            store = RedisSessions(url, hook=lambda event: None)
            yield Sessions(store, asyncio.sleep)
            await store.close()

    return Contract(make, _on_network)


@pytest.fixture
def wired_fleet() -> Contract[Instances]:
    @asynccontextmanager
    async def make() -> AsyncIterator[Instances]:
        async with _modelled_redis() as url, AsyncExitStack() as stack:

            async def join() -> Fleet:
                fleet = RedisFleet(url, seconds_max=10)
                stack.push_async_callback(fleet.aclose)
                return fleet

            yield Instances(join, asyncio.sleep)

    return Contract(make, _on_network)


@pytest.fixture
def wired_relays() -> Contract[Relays]:
    async def die(relay: Relay) -> None:
        assert isinstance(relay, RedisRelay)
        await relay.aclose()

    @asynccontextmanager
    async def make() -> AsyncIterator[Relays]:
        async with _modelled_redis() as url, AsyncExitStack() as stack:

            async def join(instance: str) -> Relay:
                relay = RedisRelay(url, instance=instance, hook=lambda event: None)
                stack.push_async_callback(relay.aclose)
                return relay

            yield Relays(join, die, asyncio.sleep)

    return Contract(make, _on_network)


@pytest.fixture(scope="session")
def contract_database_url(new_database: Callable[[], str]) -> str:
    """The URL of a database that only contract tests use."""
    return new_database()


@asynccontextmanager
async def _emptied(database_url: str) -> AsyncIterator[Postgres]:
    postgres = await Postgres.connect(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("TRUNCATE turns, memories, sessions")
    await connection.close()
    yield postgres
    await postgres.close()


@pytest.fixture
def postgres_conversations(contract_database_url: str) -> Contract[ConversationStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[ConversationStore]:
        async with _emptied(contract_database_url) as postgres:
            yield postgres.conversations

    return Contract(make)


@pytest.fixture
def pgvector_memories(contract_database_url: str) -> Contract[MemoryStore]:
    @asynccontextmanager
    async def make() -> AsyncIterator[MemoryStore]:
        async with _emptied(contract_database_url) as postgres:
            yield PgvectorMemories(postgres)

    return Contract(make)
