"""Connections of one session on two instances, which share stores and relay; and what a full transport lets through."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from orchestra import compose, limits
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.chat.turns import LiveTurns
from orchestra.config import Settings
from orchestra.gateway.sockets import AsgiSocket
from orchestra.gateway.websocket import Who, hold
from orchestra.model import Chunk, Delta, Finish, Prompt
from orchestra.ports import Ports
from sim import asgi, loop
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults
from sim.isolation import isolated
from sim.stores import ModelledSessions, Wire


class Slow:
    """Says three words, a second apart, and counts how often it is asked."""

    name = "slow"
    external = False

    def __init__(self, words):
        self.asked = 0
        self.words = words

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.asked += 1
        for word in self.words:
            await asyncio.sleep(1)
            yield Delta(word)
        yield Finish("stop", "slow-model")


class Instance:
    """One of several that share `stores` and `hub`: an ASGI application without its HTTP."""

    def __init__(self, ports):
        self.container = compose.build(ports, Settings())
        self.provider = ports.provider
        self.takes = asyncio.Event()
        self.takes.set()

    async def __call__(self, scope, receive, send):
        await receive()

        async def sends(message):
            await self.takes.wait()
            await send(message)

        async def accept():
            socket = AsgiSocket(sends, receive)
            await socket.accept()
            return socket

        handlers = await self.container.resolve(ConnectionHandlers)
        await hold(handlers, Who(scope["path"][1:], "lake", "203.0.113.1", "r-1"), accept)


def lived(story, count=2, sessions_seconds=0.0, words=("One ", "two ", "three.")):
    streams, env = Streams(7), loop.SimEnvironment()

    async def main():
        clock, hub = SimClock(env.loop), InProcessHub()
        wire = Wire("sessions", Constant(sessions_seconds), streams.stream("sessions"), Faults())
        shared = {
            "clock": clock, "entropy": streams.stream("orchestra"), "sessions": ModelledSessions(clock, wire),
            "conversations": InProcessConversations(), "memories": InProcessMemories(), "embedder": HashingEmbedder(),
            "hook": lambda event: None, "fleet": InProcessFleet(clock),
        }  # fmt: skip
        instances = [
            Instance(Ports(**shared, provider=Slow(words), relay=hub.join(f"instance {number}")))
            for number in range(count)
        ]
        await story(*instances)
        for each in instances:
            await each.container.dispose()

    with isolated(streams, env):
        loop.run(main(), env=env)


async def hear(socket):
    return json.loads(await socket.receive())


async def until(socket, kind):
    heard = [await hear(socket)]
    while heard[-1]["type"] != kind:
        heard.append(await hear(socket))
    return heard


def numbered(frames):
    return [(each["type"], each["seq"]) for each in frames if "seq" in each]


WHOLE = [("started", 1), ("delta", 2), ("delta", 3), ("delta", 4), ("done", 5)]
MESSAGE = json.dumps({"type": "message", "id": "m1", "message": "Hello"})


def test_a_turn_on_one_instance_is_seen_live_on_another():
    async def story(here, there):
        async with asgi.websocket(here, "/anna") as anna, asgi.websocket(there, "/ben") as ben:
            await hear(anna)
            await hear(ben)
            anna.send(MESSAGE)
            hers, his = await until(anna, "done"), await until(ben, "done")
            assert numbered(hers) == numbered(his) == WHOLE

    lived(story)


def test_a_client_resumes_on_another_instance_without_loss_or_repetition():
    async def story(here, there):
        async with asgi.websocket(here, "/anna") as anna:
            await hear(anna)
            anna.send(MESSAGE)
            seen = (await until(anna, "delta"))[1:]
            anna.close(1006)
        async with asgi.websocket(there, "/anna") as anna:
            (live,) = (await hear(anna))["live"]
            anna.send(json.dumps({"type": "resume", "turn_id": live["turn_id"], "after": seen[-1]["seq"]}))
            seen += await until(anna, "done")
            assert numbered(seen) == WHOLE
            anna.send('{"type": "ping"}')
            assert (await hear(anna))["type"] == "pong"
        assert (here.provider.asked, there.provider.asked) == (1, 0)

    lived(story)


def test_the_same_message_sent_to_another_instance_joins_the_turn_and_shows_it_once():
    async def story(here, there):
        async with asgi.websocket(here, "/anna") as anna:
            await hear(anna)
            anna.send(MESSAGE)
            await until(anna, "delta")
            async with asgi.websocket(there, "/anna") as other:
                await hear(other)
                other.send(MESSAGE)
                assert numbered(await until(other, "done")) == WHOLE
                other.send('{"type": "ping"}')
                assert (await hear(other))["type"] == "pong"
            await until(anna, "done")
        assert (here.provider.asked, there.provider.asked) == (1, 0)

    lived(story)


def test_cancel_reaches_the_turn_on_the_other_instance():
    async def story(here, there):
        async with asgi.websocket(here, "/anna") as anna, asgi.websocket(there, "/ben") as ben:
            await hear(anna)
            await hear(ben)
            anna.send(MESSAGE)
            turn_id = (await until(ben, "delta"))[-1]["turn_id"]
            ben.send(json.dumps({"type": "cancel", "turn_id": turn_id}))
            for each in (anna, ben):
                error = (await until(each, "error"))[-1]
                assert (error["kind"], error["turn_id"]) == ("turn-cancelled", turn_id)

    lived(story)


def test_a_turn_that_ends_while_the_connection_opens_is_in_its_history_and_does_not_come_again():
    async def story(here):
        async with asgi.websocket(here, "/anna") as anna:
            await hear(anna)
            anna.send(MESSAGE)
            await until(anna, "done")
            slow = asyncio.create_task(opened_and_heard(here))
            await asyncio.sleep(0.1)
            anna.send(json.dumps({"type": "message", "id": "m2", "message": "Meanwhile"}))
            await until(anna, "done")
            ready, after = await slow
            assert [turn["message"] for turn in ready["history"]] == ["Hello", "Meanwhile"]
            assert [each["type"] for each in after] == ["pong"]

    async def opened_and_heard(here):
        async with asgi.websocket(here, "/ben") as ben:
            ready = await hear(ben)
            await asyncio.sleep(5)
            ben.send('{"type": "ping"}')
            return ready, await until(ben, "pong")

    # a session's load and save each take so long that a whole turn is durable between the two of a connection
    lived(story, count=1, sessions_seconds=2.0, words=())


def test_what_comes_while_the_connection_is_being_closed_is_not_answered():
    async def story(here):
        turns = await here.container.resolve(LiveTurns)
        async with asgi.websocket(here, "/anna") as anna:
            await hear(anna)
            here.takes.clear()
            for _ in range(limits.FRAMES_BURST_MAX + 1):
                anna.send('{"type": "ping"}')
            await asyncio.sleep(1)  # it is being closed, and its allowance is full again
            anna.send(MESSAGE)
            await asyncio.sleep(1)
            assert await turns.running("lake") == ()
            here.takes.set()
            with pytest.raises(asgi.Closed) as closed:
                await until(anna, "accepted")
            assert closed.value.code == 1008

    lived(story, count=1)
