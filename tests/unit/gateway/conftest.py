"""The whole app in virtual time, on the modelled ports of the rehearsals, entered through ASGI as a client would."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from sanic import Sanic

from orchestra import compose
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessFleet
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
