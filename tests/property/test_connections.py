"""The pool through all orders of arrivals and ends, and real connections cancelled at any of their awaits.

The connections are those of the edge (`gateway.websocket.hold`) on the sockets that the service has over ASGI, driven
by `sim.asgi` in virtual time; nothing of them is replaced.
"""

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import event, given, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestra import compose
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessFleet
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.adapters.offline import OfflineProvider
from orchestra.chat.connections import ConnectionPool, PoolLimits
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.chat.sessions import Sessions
from orchestra.chat.turns import LiveTurns
from orchestra.config import Settings
from orchestra.errors import OrchestraError, ShuttingDown, TooManyConnections
from orchestra.events import ConnectionClosed, ConnectionOpened, Event, UnexpectedError
from orchestra.gateway.sockets import AsgiSocket
from orchestra.gateway.websocket import Who, hold
from orchestra.ports import Ports
from sim import asgi, loop
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults
from sim.isolation import isolated
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire

CLIENTS = st.sampled_from(["anna", "ben", "cy"])
ADDRESSES = st.sampled_from(["203.0.113.1", "203.0.113.2"])


class PoolMachine(RuleBasedStateMachine):
    """The pool against a list of who is in it."""

    @initialize(process=st.integers(1, 6), client=st.integers(1, 4), address=st.integers(1, 4))
    def begin(self, process: int, client: int, address: int) -> None:
        self.limits = PoolLimits(process, client, address)
        self.pool = ConnectionPool(self.limits)
        self.inside: list[tuple[str, str, ExitStack]] = []
        self.refused = 0

    @rule(client=CLIENTS, address=ADDRESSES)
    def arrive(self, client: str, address: str) -> None:
        full = {
            "process": len(self.inside) >= self.limits.process,
            "client": sum(who == client for who, _, _ in self.inside) >= self.limits.client,
            "address": sum(where == address for _, where, _ in self.inside) >= self.limits.address,
        }
        place = ExitStack()
        if self.pool.draining or any(full.values()):
            expected = ShuttingDown if self.pool.draining else TooManyConnections
            with pytest.raises(expected) as refusal:
                place.enter_context(self.pool.admitted(client, address))
            assert refusal.value.retry_after_seconds
            self.refused += 1
            event(f"refused: {'draining' if self.pool.draining else next(why for why, is_so in full.items() if is_so)}")
        else:
            place.enter_context(self.pool.admitted(client, address))
            self.inside.append((client, address, place))

    @precondition(lambda self: self.inside)
    @rule(pick=st.integers(0, 99), how=st.sampled_from([None, RuntimeError, asyncio.CancelledError]))
    def leave(self, pick: int, how: type[BaseException] | None) -> None:
        _, _, place = self.inside.pop(pick % len(self.inside))
        if how is None:
            place.close()
            return
        with pytest.raises(how), place:
            raise how

    @precondition(lambda self: len(self.inside) > 2)
    @rule()
    def drain(self) -> None:
        self.pool.draining = True

    @invariant()
    def counts_are_right_and_nothing_of_those_who_left_is_kept(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert len(self.pool) == len(self.inside)
        assert set(self.pool._clients) == {client for client, _, _ in self.inside}
        assert set(self.pool._addresses) == {address for _, address, _ in self.inside}

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            target(float(self.refused), label="refused")
            for _, _, place in self.inside:
                place.close()
            assert len(self.pool) == 0


TestPool = PoolMachine.TestCase


# --- real connections, cancelled


class CancelledAt:
    """Awaits something, and is cancelled in its await number `number`, as a server cancels a handler."""

    def __init__(self, awaited: Awaitable[None], number: int | None) -> None:
        self._awaited = awaited
        self._number = number
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._awaited.__await__()
        send: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                waited_for = send()
            except StopIteration:
                return
            self.awaits += 1
            if self.awaits == self._number:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                value = yield waited_for
            except BaseException as error:
                send = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                send = lambda value=value: steps.send(value)  # type: ignore[misc]  # noqa: E731


class World:
    """Handlers on modelled stores, each of whose operations takes a moment, and an ASGI application that holds them."""

    def __init__(self, env: loop.SimEnvironment, streams: Streams, **settings: Any) -> None:
        self.events: list[Event] = []
        self.cancel_at: dict[str, int | None] = {}
        self.awaits: dict[str, int] = {}
        self.most = 0
        clock = SimClock(env.loop)
        self.env = env

        def wire(store: Any) -> Wire:
            return Wire(store, Constant(0.01), streams.stream(store), Faults())

        ports = Ports(
            clock=clock,
            entropy=streams.stream("orchestra"),
            sessions=ModelledSessions(clock, wire("sessions")),
            conversations=ModelledConversations(wire("conversations")),
            memories=ModelledMemories(wire("memories")),
            embedder=HashingEmbedder(),
            provider=OfflineProvider(),
            hook=self.events.append,
            fleet=InProcessFleet(clock),
            relay=InProcessHub().join("test"),
        )
        self.settings = Settings(**settings)
        self.container = compose.build(ports, self.settings)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Hold one connection; its path names the client, whose number says at which await it is cancelled."""
        await receive()
        client_id = scope["path"].removeprefix("/")
        who = Who(client_id.partition("-")[0], "lake", scope["client"][0], client_id)
        handlers = await self.container.resolve(ConnectionHandlers)

        async def accept() -> AsgiSocket:
            socket = AsgiSocket(send, receive)
            await socket.accept()
            await asyncio.sleep(0)
            self.most = max(self.most, len(handlers.pool))
            return socket

        held = CancelledAt(hold(handlers, who, accept), self.cancel_at.get(client_id))
        try:
            await held
        except OrchestraError:
            await send({"type": "websocket.close", "code": 1013})
        finally:
            self.awaits[client_id] = held.awaits

    async def visit(self, client_id: str, steps: list[str], address: str) -> None:
        """Be a client that does `steps`, and takes what comes."""
        try:
            async with asgi.websocket(self.app, f"/{client_id}", client=(address, 1)) as socket:
                await self._talk(socket, client_id, steps)
        except (asgi.Closed, asgi.Refused, asyncio.CancelledError):
            pass

    async def _talk(self, socket: asgi.Socket, client_id: str, steps: list[str]) -> None:
        turn_id = "f" * 32
        for number, step in enumerate(steps):
            if step == "hear":
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        turn_id = json.loads(await socket.receive()).get("turn_id", turn_id)
            elif step == "wait":
                await asyncio.sleep(0.05)
            elif step == "leave":
                socket.close(1001)
                return
            elif step == "binary":
                socket.send(b"binary")
            else:
                said = {"id": f"{client_id}-{number}"} if step == "message" else {}
                said |= {"message": "Hello"} if step == "message" else {"turn_id": turn_id}
                socket.send(json.dumps({"type": step} | (said if step != "ping" else {})))

    async def nothing_is_left(self) -> None:
        """See that every place was given back and nothing waits any more, once the turns have ended."""
        handlers = await self.container.resolve(ConnectionHandlers)
        turns = await self.container.resolve(LiveTurns)
        sessions = await self.container.resolve(Sessions)
        assert (len(handlers.pool), handlers.pool.connections, len(handlers.timeouts)) == (0, (), 0)
        assert (handlers.pool._clients, handlers.pool._addresses) == ({}, {})
        assert turns._listeners == {}
        await asyncio.sleep(60)
        assert not sessions._locks.is_held("lake")
        opened = [each.connection_id for each in self.events if isinstance(each, ConnectionOpened)]
        closed = [each.connection_id for each in self.events if isinstance(each, ConnectionClosed)]
        assert sorted(opened) == sorted(closed)
        assert [each.traceback for each in self.events if isinstance(each, UnexpectedError)] == []
        await self.container.dispose()


def lived(story: Callable[[World], Awaitable[None]], **settings: Any) -> World:
    streams, env = Streams(7), loop.SimEnvironment()
    worlds: list[World] = []

    async def main() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        world = World(env, streams, **settings)
        worlds.append(world)
        await story(world)
        await asyncio.sleep(0.1)
        await world.nothing_is_left()
        left = [task for task in env.loop.pending_tasks() if task is not asyncio.current_task()]
        assert left == []
        gc.collect(0)
        assert unhandled == []

    with isolated(streams, env):
        loop.run(main(), env=env)
    return worlds[0]


EVERYTHING = ["hear", "message", "hear", "hear", "ping", "message", "hear", "cancel", "resume", "wait", "leave"]


def test_cancelled_at_each_await_of_a_whole_life_it_leaves_nothing_behind() -> None:
    async def once(world: World) -> None:
        await world.visit("anna-0", EVERYTHING, "203.0.113.1")

    awaits = lived(once).awaits["anna-0"]
    assert awaits > 10
    for number in range(1, awaits + 1):

        async def story(world: World, number: int = number) -> None:
            world.cancel_at["anna-0"] = number
            await world.visit("anna-0", EVERYTHING, "203.0.113.1")
            await world.visit("anna-1", ["hear"], "203.0.113.1")  # there is a place again

        world = lived(story, connections_max=1)
        assert sum(isinstance(each, ConnectionOpened) for each in world.events) >= 1, number


STEPS = st.lists(
    st.sampled_from(["hear", "message", "ping", "cancel", "resume", "wait", "binary", "leave"]), max_size=8
)
VISITS = st.lists(
    st.tuples(CLIENTS, STEPS, ADDRESSES, st.one_of(st.none(), st.integers(1, 40))), min_size=1, max_size=6
)


@given(visits=VISITS, together=st.booleans())
def test_whoever_comes_and_is_cancelled_limits_hold_and_nothing_is_left(
    visits: list[tuple[str, list[str], str, int | None]], together: bool
) -> None:
    async def story(world: World) -> None:
        async with asyncio.TaskGroup() as group:
            for number, (client, steps, address, cancel_at) in enumerate(visits):
                client_id = f"{client}-{number}"
                world.cancel_at[client_id] = cancel_at
                group.create_task(world.visit(client_id, steps, address))
                await asyncio.sleep(0 if together else 0.03)

    world = lived(story, connections_max=3, connections_per_client_max=2, connections_per_address_max=2)
    assert world.most <= 3
    refused = len(visits) - sum(isinstance(each, ConnectionOpened) for each in world.events)
    event(f"refused: {refused}")
    target(float(world.most), label="most at once")
