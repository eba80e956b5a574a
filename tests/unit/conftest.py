"""The whole app in virtual time, on the modelled ports of the rehearsals, entered through ASGI as a client would."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from sanic import Sanic

from orchestra import compose
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessFleet
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.config import Settings
from orchestra.events import Event
from orchestra.gateway.app import Service, create_app
from orchestra.model import Chunk, Prompt, Turn
from orchestra.ports import Fleet, Ports
from sim import asgi, loop
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults
from sim.isolation import isolated
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire

Script = Callable[[Prompt], AsyncGenerator[Chunk, None]]


class ScriptedProvider:
    """Answers as a script says, and counts what is under way."""

    name = "scripted"
    external = False

    def __init__(self, script: Script) -> None:
        self._script = script
        self.running = 0
        self.said = 0

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        try:
            async for chunk in self._script(prompt):
                self.said += 1
                yield chunk
        finally:
            self.running -= 1


class Client:
    """Sends requests to the app, and sees what it stands on."""

    def __init__(self, app: Any, service: Service, provider: ScriptedProvider, faults: Faults, events: list[Event]):
        self.app = app
        self.service = service
        self.provider = provider
        self.faults = faults
        self.events = events

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> asgi.Response:
        """Send `body` as JSON; a header's underscores are hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            sent["Content-Type"] = "application/json"
        return await asgi.call(self.app, method, path, sent, data)

    async def resolve(self, kind: type) -> Any:
        return await self.service.container.resolve(kind)

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def keep(self, session_id: str, *turns: Turn) -> None:
        """Make `turns` durable as those of a session, as another instance would have done."""
        for turn in turns:
            kept = replace(turn, session_id=session_id, id=f"{session_id}-{turn.number}")
            await self.service.ports.conversations.append(kept, f"session:{session_id}")


class Talk:
    """A client's side of a WebSocket, frame by frame."""

    def __init__(self, socket: asgi.Socket) -> None:
        self.socket = socket

    def say(self, frame: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": frame, **fields}))

    async def hear(self) -> dict[str, Any]:
        """Return the next frame."""
        return json.loads(await self.socket.receive())

    async def until(self, frame: str) -> list[dict[str, Any]]:
        """Return the frames up to the first of that type, which is the last."""
        heard = [await self.hear()]
        while heard[-1]["type"] != frame:
            heard.append(await self.hear())
        return heard

    async def closed(self) -> tuple[int, str]:
        """Return code and reason of the close that follows; other frames may come before it."""
        try:
            while True:
                await self.socket.receive()
        except asgi.Closed as closed:
            return closed.code, closed.reason


@pytest.fixture
def talking() -> Callable[..., AbstractAsyncContextManager[Talk]]:
    """Open a WebSocket: ``async with talking(client, "anna", "lake") as talk``; `ready` is yet to be heard."""

    @asynccontextmanager
    async def talked(
        client: Client, client_id: str = "anna", session_id: str = "lake", *, address: str = "203.0.113.1"
    ) -> AsyncIterator[Talk]:
        path = f"/chat/ws/{client_id}/{session_id}"
        async with asgi.websocket(client.app, path, client=(address, 50_000)) as socket:
            yield Talk(socket)

    return talked


Visit = Callable[..., None]


@pytest.fixture
def visit() -> Visit:
    """Run ``story(client)`` against a started app: ``visit(story, script, fleet=None, **settings)``."""

    def visited(
        story: Callable[[Client], Awaitable[None]],
        script: Script,
        *,
        fleet: Callable[[SimClock], Fleet] = InProcessFleet,
        **settings: Any,
    ) -> None:
        streams = Streams(7)
        env = loop.SimEnvironment()

        async def lived() -> None:
            async with opened(env, streams, script, fleet, settings) as client:
                await story(client)
                assert client.provider.running == 0

        with isolated(streams, env):
            loop.run(lived(), env=env)

    return visited


@asynccontextmanager
async def opened(
    env: loop.SimEnvironment,
    streams: Streams,
    script: Script,
    fleet: Callable[[SimClock], Fleet],
    settings: dict[str, Any],
) -> AsyncIterator[Client]:
    clock, faults = SimClock(env.loop), Faults()
    events: list[Event] = []
    provider = ScriptedProvider(script)
    ports = Ports(
        clock=clock,
        entropy=streams.stream("orchestra"),
        sessions=ModelledSessions(clock, Wire("sessions", Constant(0.0), streams.stream("sessions"), faults)),
        conversations=ModelledConversations(
            Wire("conversations", Constant(0.0), streams.stream("conversations"), faults)
        ),
        memories=ModelledMemories(Wire("memories", Constant(0.0), streams.stream("memories"), faults)),
        embedder=HashingEmbedder(),
        provider=provider,
        hook=events.append,
        fleet=fleet(clock),
        relay=InProcessHub().join("test"),
    )
    complete = Settings(**settings)
    service = Service(compose.build(ports, complete), ports, bytes)

    @asynccontextmanager
    async def opener() -> AsyncIterator[Service]:
        yield service

    mode, Sanic.test_mode = Sanic.test_mode, True
    try:
        app = create_app("visited", complete, opener)
        async with asgi.lifespan(app):
            yield Client(app, service, provider, faults, events)
    finally:
        Sanic.test_mode = mode
        await service.container.dispose()
