"""The clients of a simulated world: they come when they had meant to, whatever the service does, and count replies.

One that got no answer may ask again (`sim.workload.Retries`); how its turn ended is then how the last attempt did. An
apology is no answer: it counts as shed, though the service had a reply.

There are two doors to come in by: `orchestrator_door` calls the orchestrator as a request handler does, in a scope of
the container; `service_door` posts to the whole Sanic app through ASGI. Both tell a failure by its error's stable kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import Literal, NamedTuple

import msgspec

from orchestra.chat.orchestrator import SHED, ChatOrchestrator
from orchestra.container import DIContainer
from orchestra.errors import OrchestraError
from orchestra.events import TurnOutcome
from orchestra.gateway.problems import TYPE_PREFIX, Problem
from orchestra.model import ChatReply, ChatRequest
from sim import asgi
from sim.journal import ClientArrived, ClientFinished, ClientRetried, WorldEvent
from sim.workload import Arrival, Workload

DoorName = Literal["orchestrator", "service"]
DOORS: tuple[DoorName, ...] = ("orchestrator", "service")
CHAT_PATH = "/chat/v2/chat"
CORRELATION_ID_BYTES = 8
TIMED_OUT = "client-timeout"
APOLOGY = "apology"
SHED_KINDS = tuple(error.kind for error in SHED)


class Refused(Exception):
    """A turn got no answer: the kind of error that told so, and after how many seconds it asks to come back, if so."""

    def __init__(self, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


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
            raise Refused(error.kind, error.retry_after_seconds) from error

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
        problem = decode_problem(response.body)
        raise Refused(problem.type.removeprefix(TYPE_PREFIX), problem.retry_after_seconds)

    return send


class Attempt(NamedTuple):
    """How one attempt ended."""

    outcome: TurnOutcome
    error: str = ""
    retry_after_s: float | None = None


class Crowd:
    """All clients of a run.

    Parameters
    ----------
    door : Door
    workload : Workload
        How long one waits for an answer, and whether it asks again.
    chance : Random
        For correlation ids; one draw an arrival.
    waits : Random
        For what is left to chance in waiting before one asks again; one draw each time.
    record : callable
        Gets a `ClientArrived` and a `ClientFinished` for each arrival, and a `ClientRetried` for each further attempt.

    Attributes
    ----------
    counts : dict of int
        Turns that ended so far, by outcome.
    acknowledged : list of (str, str)
        Session and id of every turn that was answered, be it with an apology: what must never be lost.
    """

    def __init__(
        self, door: Door, workload: Workload, chance: Random, waits: Random, record: Callable[[WorldEvent], None]
    ) -> None:
        self.arrived = 0
        self.counts: dict[TurnOutcome, int] = {"answered": 0, "failed": 0, "shed": 0}
        self.acknowledged: list[tuple[str, str]] = []
        self._door = door
        self._patience_s = workload.patience
        self._retries = workload.retries
        self._chance = chance
        self._waits = waits
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
        tokens = arrival.context_tokens, arrival.generated_tokens
        self._record(ClientArrived(arrival.at, arrival.number, correlation_id, arrival.session, *tokens))
        last = await self._ask(arrival, correlation_id)
        number = 1
        while self._retries is not None and last.outcome != "answered" and number < self._retries.attempts:
            wait_s = self._retries.wait_s(number, last.retry_after_s, self._waits)
            await asyncio.sleep(wait_s)
            number += 1
            self._record(ClientRetried(loop.time(), arrival.number, correlation_id, number, last.error, wait_s))
            last = await self._ask(arrival, correlation_id)
        self.counts[last.outcome] += 1
        now = loop.time()
        self._record(ClientFinished(now, arrival.number, correlation_id, last.outcome, last.error, now - arrival.at))

    async def _ask(self, arrival: Arrival, correlation_id: str) -> Attempt:
        """Send the turn, in its session where an earlier reply has named that; who has none yet starts a new one."""
        request = ChatRequest(arrival.message, self._session_ids.get(arrival.session), arrival.user)
        try:
            async with asyncio.timeout(self._patience_s):
                reply = await self._door(request, correlation_id)
        except TimeoutError:
            return Attempt("failed", TIMED_OUT)
        except Refused as refusal:
            outcome: TurnOutcome = "shed" if refusal.kind in SHED_KINDS else "failed"
            return Attempt(outcome, refusal.kind, refusal.retry_after_seconds)
        self._session_ids[arrival.session] = reply.session_id
        self.acknowledged.append((reply.session_id, reply.turn_id))
        return Attempt("shed", APOLOGY) if reply.engine == APOLOGY else Attempt("answered")
