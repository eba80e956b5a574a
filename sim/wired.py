"""One orchestra on its real adapters: RESP and HTTP over a simulated network, to the models at its other end.

Sessions, fleet and relay are redis-py against `sim.resp`; the providers are the OpenAI adapter against
`sim.openai_server`. What the modelled ports leave out happens here: pools of connections, reconnects, TCP's delays, an
answer that is half there. Conversations and memories stay modelled: PostgreSQL's protocol is not simulated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from orchestra.adapters.fleet import RedisFleet
from orchestra.adapters.openai import OpenAIProvider
from orchestra.adapters.redis import RedisSessions
from orchestra.adapters.relay import RedisRelay
from orchestra.config import Settings
from orchestra.events import Event
from orchestra.model import Session
from orchestra.ports import Ports, Provider
from sim import openai_server, resp
from sim.entropy import Streams
from sim.injection import Faults
from sim.loop import SimEnvironment
from sim.network import Network
from sim.network_faults import Peer, carry_out_on
from sim.provider import MODEL

REDIS = "redis"
AUDITED = "audited"
"""A host with the same data, which no fault cuts off."""
INSTANCE = "orchestra"


class AuditedSessions:
    """The sessions in Redis as an auditor reads them, past all faults."""

    def __init__(self, store: RedisSessions) -> None:
        self._store = store

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none."""
        return await self._store.load(session_id)

    def forget(self, session_id: str) -> None:
        """Leave it to Redis, whose sessions expire."""


@asynccontextmanager
async def wired(
    env: SimEnvironment, streams: Streams, faults: Faults, ports: Ports, settings: Settings
) -> AsyncIterator[tuple[Ports, AuditedSessions]]:
    """Put a network between an orchestra and the models of `ports`.

    Yields its ports, and the sessions for an auditor. Afterwards all connections and servers are closed.
    """
    network = Network(env, streams)
    carry_out_on(network, faults)
    async with AsyncExitStack() as stack:
        data, url = resp.Data(), f"redis://{REDIS}:{resp.PORT}"
        for host in (REDIS, AUDITED):
            with network.on(host):
                await stack.enter_async_context(resp.serving(data))
        audited = RedisSessions(f"redis://{AUDITED}:{resp.PORT}", _untold)
        stack.push_async_callback(audited.close)
        sessions = RedisSessions(url, ports.hook)
        stack.push_async_callback(sessions.close)
        fleet = RedisFleet(url)
        stack.push_async_callback(fleet.aclose)
        relay = RedisRelay(url, instance=INSTANCE, hook=ports.hook)
        stack.push_async_callback(relay.aclose)
        provider = await stack.enter_async_context(_reached(network, "provider", ports, ports.provider, settings))
        alternate = ports.alternate
        if alternate is not None:
            alternate = await stack.enter_async_context(_reached(network, "alternate", ports, alternate, settings))
        real = dataclasses.replace(
            ports, sessions=sessions, fleet=fleet, relay=relay, provider=provider, alternate=alternate
        )
        yield real, AuditedSessions(audited)


@asynccontextmanager
async def _reached(
    network: Network, host: Peer, ports: Ports, provider: Provider, settings: Settings
) -> AsyncIterator[OpenAIProvider]:
    """Serve a modelled provider on `host`, and give the adapter that reaches it, as the live service has it."""
    attempt = (settings.guards.alternate if host == "alternate" else settings.guards.unified).attempt
    async with AsyncExitStack() as stack:
        with network.on(host):
            await stack.enter_async_context(openai_server.serving(provider))
        adapter = OpenAIProvider(
            base_url=f"http://{host}/v1",
            key="",
            model=MODEL,
            timeout_seconds=attempt.total_seconds_max,
            first_token_seconds=attempt.first_seconds_max,
            connections_max=settings.provider_connections_max,
            clock=ports.clock,
        )
        stack.push_async_callback(adapter.aclose)
        yield adapter


def _untold(event: Event) -> None:
    """Let what an auditor finds broken be told by its audit."""
