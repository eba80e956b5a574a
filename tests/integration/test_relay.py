"""The relay on a real Redis that dies, hangs and restarts, what it costs, and turns that instances share over it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from orchestra import compose, limits
from orchestra.adapters.embedded import start
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.relay import RedisRelay
from orchestra.adapters.system import SystemClock, SystemEntropy
from orchestra.chat.turnlog import SEQS_PER_RUN
from orchestra.chat.turns import LiveTurns, turn_id_of
from orchestra.config import Settings
from orchestra.errors import ConfigurationError, StoreUnavailable
from orchestra.events import Lifecycle
from orchestra.frames import Started
from orchestra.model import ChatRequest, Chunk, Delta, Finish, Prompt
from orchestra.ports import Claim, Ports


@contextlib.asynccontextmanager
async def connected(url, instance="a", hook=lambda event: None):
    relay = RedisRelay(url, instance=instance, hook=hook)
    try:
        yield relay
    finally:
        await relay.aclose()


async def settled(said, seconds_max=20.0):
    async with asyncio.timeout(seconds_max):
        while not said():  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.02)


async def passing(relay, letters, letter):
    """Tell it until it comes."""
    async with asyncio.timeout(20):
        while letter not in letters:
            relay.tell("x", letter)
            await asyncio.sleep(0.05)


def server(data_dir: Path) -> psutil.Process:
    [pid_file] = (data_dir / "redis").glob("*.pid")
    return psutil.Process(int(pid_file.read_text()))


def test_a_lease_is_renewed_while_turns_are_held_and_given_up_at_the_end(redis_url):
    async def scenario():
        async with Redis.from_url(redis_url) as redis:
            key = "orchestra:instance:{a}"
            async with connected(redis_url) as relay:
                await relay.claim("t", "hello")
                left = await redis.pttl(key)
                assert 0 < left <= limits.LEASE_SECONDS * 1000
                await redis.pexpire(key, 60_000)

                async def renewed():
                    return await redis.pttl(key) <= limits.LEASE_SECONDS * 1000

                async with asyncio.timeout(limits.LEASE_SECONDS):
                    while not await renewed():  # noqa: ASYNC110 - another process tells nobody
                        await asyncio.sleep(0.05)
                kept = await redis.pttl("orchestra:turn:{t}")
                assert kept > (limits.CLAIM_SECONDS - 60) * 1000
                relay.end("s", "t", kept=True)
            assert not await redis.exists(key)  # whoever asks now need not wait for it to run out
            assert 0 < await redis.pttl("orchestra:turn:{t}") <= limits.LOG_SECONDS * 1000

    asyncio.run(scenario())


def test_a_record_that_cannot_be_read_is_none(redis_url):
    async def scenario():
        async with Redis.from_url(redis_url) as redis, connected(redis_url) as relay:
            await redis.set("orchestra:turn:{t}", b"\xff nonsense")
            assert await relay.find("s", "t") is None
            assert await relay.claim("t", "hello") == Claim(None, 0, "hello")
            letters = []
            relay.hear("x", letters.append)
            await passing(relay, letters, b"1")
            await redis.publish("orchestra:to:x", b"\xff nonsense")
            await passing(relay, letters, b"2")

    asyncio.run(scenario())


def test_a_redis_that_restarts_is_heard_again(own_stores, tmp_path_factory):
    events = []

    async def scenario():
        async with connected(own_stores.redis_url, hook=events.append) as relay:
            letters = []
            relay.hear("x", letters.append)
            await passing(relay, letters, b"before")
            server(own_stores.data_dir).kill()
            relay.tell("x", b"lost")
            with pytest.raises(StoreUnavailable):
                await relay.claim("t", "hello")
            await settled(lambda: {("relay sending", "away"), ("relay hearing", "away")} <= states(events))
            again = await asyncio.to_thread(start, own_stores.data_dir)
            try:
                await passing(relay, letters, b"after")
                assert b"lost" not in letters
                assert await relay.claim("t", "hello") == Claim(None, 0, "hello")
                await settled(lambda: ("relay hearing", "back") in states(events))
                told = [(each.part, each.state) for each in events if isinstance(each, Lifecycle)]
                assert told.count(("relay sending", "away")) == told.count(("relay sending", "back")) == 1
            finally:
                await asyncio.to_thread(again.stop)

    asyncio.run(scenario())


def states(events):
    return {(each.part, each.state) for each in events if isinstance(each, Lifecycle)}


def test_what_waits_for_a_redis_that_hangs_is_bounded_and_nobody_waits_long(own_stores):
    async def scenario():
        async with connected(own_stores.redis_url) as relay:
            letters = []
            relay.hear("x", letters.append)
            await passing(relay, letters, b"before")
            hung = server(own_stores.data_dir)
            hung.suspend()
            try:
                began = asyncio.get_running_loop().time()
                for number in range(100):
                    relay.tell(f"to {number}", b"x" * 100_000)
                assert asyncio.get_running_loop().time() - began < 1.0
                assert relay._waiting_bytes <= limits.RELAY_WAITING_BYTES_MAX
                with pytest.raises(StoreUnavailable):
                    await relay.claim("t", "hello")
                assert asyncio.get_running_loop().time() - began < 15.0
            finally:
                hung.resume()
            await passing(relay, letters, b"after")
            assert relay._waiting_bytes < 100

    asyncio.run(scenario())


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigurationError) as raised:
        RedisRelay("http://nowhere", instance="a", hook=lambda event: None)
    assert raised.value.field == "redis_url"


# --- turns


class Pieces:
    """Says three pieces, and waits before the last until it is told to go on."""

    name = "pieces"
    external = False

    def __init__(self):
        self.calls = 0
        self.go_on = asyncio.Event()

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.calls += 1
        yield Delta("one ")
        yield Delta("two ")
        await self.go_on.wait()
        yield Delta("three")
        yield Finish("stop", "pieces")


@contextlib.asynccontextmanager
async def instances(url, count):
    """Yield the live turns of so many instances, and the provider that all ask."""
    clock, provider = SystemClock(), Pieces()
    sessions, conversations = InProcessSessions(clock), InProcessConversations()
    async with contextlib.AsyncExitStack() as stack:
        turns = []
        for number in range(count):
            relay = await stack.enter_async_context(connected(url, "abc"[number]))
            ports = Ports(
                clock=clock,
                entropy=SystemEntropy(),
                sessions=sessions,
                conversations=conversations,
                memories=InProcessMemories(),
                embedder=HashingEmbedder(),
                provider=provider,
                hook=lambda event: None,
                fleet=InProcessFleet(clock),
                relay=relay,
            )
            container = compose.build(ports, Settings())
            stack.push_async_callback(container.dispose)
            turns.append(await container.resolve(LiveTurns))
        yield turns, provider, conversations


async def entries(watch, heard=None):
    heard = [] if heard is None else heard
    async with watch:
        async for entry in watch:
            heard.append(entry)
    return heard


def test_two_instances_share_a_turn(redis_url):
    """Joined, resumed and listened to elsewhere: the same frames, once, in order."""

    async def scenario():
        async with instances(redis_url, 2) as ((here, there), provider, _):
            listened = []
            stop = there.listen("s", listened.append)
            await asyncio.sleep(0.2)  # until Redis knows of it; what comes earlier is not missed, but not live
            request = ChatRequest("hello", "s")
            ours, theirs = [], []
            tasks = [asyncio.create_task(entries(await here.start(request, key="k", create=True), ours))]
            await settled(lambda: len(ours) == 3)
            turn_id = turn_id_of("s", None, "k")
            for watch in (await there.start(request, key="k", create=True), await there.resume("s", turn_id, after=1)):
                theirs.append([])
                tasks.append(asyncio.create_task(entries(watch, theirs[-1])))
            await settled(lambda: len(theirs[0]) == 3)
            assert [each.turn_id for each in await there.running("s")] == [turn_id]
            provider.go_on.set()
            await asyncio.wait(tasks)
            assert [entry.seq for entry in ours] == [1, 2, 3, 4, 5]
            told = [entry.data for entry in ours]
            assert [[entry.data for entry in each] for each in theirs] == [told, told[1:]]
            await settled(lambda: len(listened) == 5)
            assert [entry.data for entry in listened] == told
            assert provider.calls == 1
            stop()

    asyncio.run(scenario())


def test_a_turn_whose_instance_falls_silent_runs_anew_elsewhere(redis_url):
    async def scenario():
        async with instances(redis_url, 2) as ((here, there), provider, conversations):
            request = ChatRequest("hello", "s")
            ours, theirs = [], []
            first = asyncio.create_task(entries(await here.start(request, key="k", create=True), ours))
            await settled(lambda: len(ours) == 3)
            following = asyncio.create_task(entries(await there.start(request, key="k", create=True), theirs))
            await settled(lambda: len(theirs) == 3)
            relay = here._relay
            relay._lease.close()  # a crash: the lease is not renewed, and nothing is heard
            await relay._ears.aclose()
            await following
            assert (theirs[-1].frame.kind, theirs[-1].seq) == ("turn-lost", 4)
            anew = []
            again = asyncio.create_task(entries(await there.start(request, key="k", create=True), anew))
            await settled(lambda: len(anew) == 3)
            provider.go_on.set()
            await again
            assert isinstance(anew[0].frame, Started)
            assert [entry.seq - SEQS_PER_RUN for entry in anew] == [1, 2, 3, 4, 5]
            await first
            assert len(await conversations.turns("s")) == 1  # also where the silent one lived on
            assert ours[-1].frame.reply == anew[-1].frame.reply

    asyncio.run(scenario())


@pytest.mark.parametrize(("keyed", "session", "each"), [(False, None, 0), (False, "s", 2), (True, "s", 4)])
def test_a_turn_that_nobody_follows_elsewhere_costs_few_commands(redis_url, keyed, session, each):
    async def scenario():
        async with instances(redis_url, 1) as ((here,), provider, _):
            provider.go_on.set()

            async def turn(number):
                key = f"k{number}" if keyed else None
                request = ChatRequest("hello", session and f"{session}{number}")
                await entries(await here.start(request, key=key, create=True, grace=False))

            await turn("first")
            commands = here._relay.commands
            before = commands.items
            for number in range(100):
                await turn(number)
            await commands.submit(("PING",))
            renewals = commands.items - before - 1 - 100 * each
            assert 0 <= renewals < 20
            assert not each or commands.batches < commands.items

    asyncio.run(scenario())
