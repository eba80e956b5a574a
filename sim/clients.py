"""The clients of a simulated world: they come when they had meant to, whatever the service does, and count replies.

There are two doors to come in by: `orchestrator_door` calls the orchestrator as a request handler does, in a scope of
the container; `service_door` posts to the whole Sanic app through ASGI. Both tell a failure by its error's stable kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Literal

import msgspec

from orchestra.chat.orchestrator import SHED, ChatOrchestrator
from orchestra.container import DIContainer
from orchestra.errors import OrchestraError
from orchestra.events import TurnOutcome
from orchestra.gateway.problems import TYPE_PREFIX, Problem
from orchestra.model import ChatReply, ChatRequest
from sim import asgi
from sim.journal import ClientArrived, ClientFinished, WorldEvent
from sim.workload import Arrival

DoorName = Literal["orchestrator", "service"]
DOORS: tuple[DoorName, ...] = ("orchestrator", "service")
CHAT_PATH = "/chat/v2/chat"
CORRELATION_ID_BYTES = 8
TIMED_OUT = "client-timeout"
SHED_KINDS = tuple(error.kind for error in SHED)


class Refused(Exception):
    """A turn got no answer, and the kind of error that told so."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


Door = Callable[[ChatRequest, str], Awaitable[ChatReply]]
"""Takes a request and its correlation id, returns the reply or raises `Refused`."""


def orchestrator_door(container: DIContainer) -> Door:
    """Return the door that calls `ChatOrchestrator.handle_chat`."""

    async def send(request: ChatRequest, correlation_id: str) -> ChatReply:
        try:
            async with container.create_scope() as scope:
                orchestrator = await scope.resolve(ChatOrchestrator)
                return await orchestrator.handle_chat(request, correlation_id=correlation_id)
        except OrchestraError as error:
            raise Refused(error.kind) from error

    return send


def service_door(app: asgi.Application) -> Door:
    """Return the door that posts to a started app."""
    decode_reply = msgspec.json.Decoder(ChatReply).decode
    decode_problem = msgspec.json.Decoder(Problem).decode

    async def send(request: ChatRequest, correlation_id: str) -> ChatReply:
        headers = {"content-type": "application/json", "x-request-id": correlation_id}
        response = await asgi.call(app, "POST", CHAT_PATH, headers, msgspec.json.encode(request))
        if response.status == 200:
            return decode_reply(response.body)
        raise Refused(decode_problem(response.body).type.removeprefix(TYPE_PREFIX))

    return send


class Crowd:
    """All clients of a run.

    Parameters
    ----------
    door : Door
    patience_s : float
        How long one waits before it goes away.
    chance : Random
        For correlation ids; one draw an arrival.
    record : callable
        Gets a `ClientArrived` and a `ClientFinished` for each arrival.

    Attributes
    ----------
    counts : dict of int
        Turns that ended so far, by outcome.
    acknowledged : list of (str, str)
        Session and id of every turn that was answered: what must never be lost.
    """

    def __init__(self, door: Door, patience_s: float, chance: Random, record: Callable[[WorldEvent], None]) -> None:
        self.arrived = 0
        self.counts: dict[TurnOutcome, int] = {"answered": 0, "failed": 0, "shed": 0}
        self.acknowledged: list[tuple[str, str]] = []
        self._door = door
        self._patience_s = patience_s
        self._chance = chance
        self._record = record
        self._session_ids: dict[str, str] = {}

    async def come(self, arrivals: Iterable[Arrival]) -> None:
        """Let every arrival come at its time, and return when the last client has gone."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as turns:
            for arrival in arrivals:
                if (wait_s := arrival.at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                turns.create_task(self._turn(arrival))

    async def _turn(self, arrival: Arrival) -> None:
        loop = asyncio.get_running_loop()
        correlation_id = self._chance.randbytes(CORRELATION_ID_BYTES).hex()
        self.arrived += 1
        self._record(
            ClientArrived(
                arrival.at,
                arrival.number,
                correlation_id,
                arrival.session,
                arrival.context_tokens,
                arrival.generated_tokens,
            )
        )
        outcome, error = await self._ask(arrival, correlation_id)
        self.counts[outcome] += 1
        now = loop.time()
        self._record(ClientFinished(now, arrival.number, correlation_id, outcome, error, now - arrival.at))

    async def _ask(self, arrival: Arrival, correlation_id: str) -> tuple[TurnOutcome, str]:
        """Send the turn, in its session where an earlier reply has named that; who has none yet starts a new one."""
        request = ChatRequest(arrival.message, self._session_ids.get(arrival.session), arrival.user)
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await self._door(request, correlation_id)
        except TimeoutError:
            return "failed", TIMED_OUT
        except Refused as refusal:
            return ("shed" if refusal.kind in SHED_KINDS else "failed"), refusal.kind
        self._session_ids[arrival.session] = reply.session_id
        self.acknowledged.append((reply.session_id, reply.turn_id))
        return "answered", ""
