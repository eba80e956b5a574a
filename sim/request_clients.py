"""Clients that send requests: open loops come when they had meant to, whatever the service does; closed ones wait.

One that got no answer may ask again (`sim.workload.Retries`); how its turn ended is then how the last attempt did. An
apology is no answer: it counts as shed, though the service had a reply. One out of patience goes away: its request is
cancelled, and with it all that the service does for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random

from orchestra.model import ChatRequest
from sim.doors import Door, Refused
from sim.entropy import Streams
from sim.journal import ClientRetried
from sim.sessions import ClientSessions
from sim.tally import TIMED_OUT, Attempt, Tally, refused
from sim.workload import Arrival, ClosedLoop, OpenLoop, Part, Recording, RetryBudget, stream_name

CORRELATION_ID_BYTES = 8


class Crowd:
    """A population whose turns are requests, each at the time that it had intended to.

    Parameters
    ----------
    door : Door
    clients : OpenLoop, ClosedLoop or Recording
        Whether one asks again, and for answers in pieces.
    part : Part
    streams : Streams
        `clients`: one draw an arrival, for its correlation id; `clients.retries`: one draw each time one asks again.
    tally : Tally
    """

    def __init__(
        self, door: Door, clients: OpenLoop | ClosedLoop | Recording, part: Part, streams: Streams, tally: Tally
    ) -> None:
        self._door = door
        self._retries = clients.retries
        self._stream = clients.stream
        self._part = part
        self._chance = streams.stream(stream_name("clients", part))
        self._waits = streams.stream(stream_name("clients.retries", part))
        self._tally = tally
        self._budget = RetryBudget(None if clients.retries is None else clients.retries.budget)
        self._sessions = ClientSessions()

    async def come(self, arrivals: Iterator[Arrival]) -> None:
        """Let every arrival come at its time, and return when the last client has gone."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as turns:
            for arrival in arrivals:
                if (wait_s := arrival.at - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                turns.create_task(self.turn(arrival))

    async def turn(self, arrival: Arrival) -> None:
        """Let one client want one turn, and return when it has an answer or gives up."""
        loop = asyncio.get_running_loop()
        correlation_id = self._chance.randbytes(CORRELATION_ID_BYTES).hex()
        self._sessions.begin(arrival, loop.time())
        self._tally.arrive(arrival, correlation_id, self._part.name)
        self._budget.earn()
        last = await self._ask(arrival, correlation_id)
        if last.outcome != "answered" and self._retries is not None:
            last = await self._ask_again(arrival, correlation_id, last)
        now = loop.time()
        self._tally.finish(arrival, correlation_id, last, now)
        self._sessions.finish(arrival, now)
        for session_id in self._sessions.past(now):
            self._tally.leave(session_id)

    async def _ask_again(self, arrival: Arrival, correlation_id: str, last: Attempt) -> Attempt:
        """Ask until there is an answer, or it was asked often enough; return how the last attempt ended."""
        loop = asyncio.get_running_loop()
        assert self._retries is not None
        for number in range(2, self._retries.attempts + 1):
            if last.outcome == "answered" or not self._budget.take():
                break
            wait_s = self._retries.wait_s(number - 1, last.retry_after_s, self._waits)
            await asyncio.sleep(wait_s)
            self._tally.record(ClientRetried(loop.time(), arrival.number, correlation_id, number, last.error, wait_s))
            last = await self._ask(arrival, correlation_id)
        return last

    async def _ask(self, arrival: Arrival, correlation_id: str) -> Attempt:
        """Send the turn, in its session where an earlier reply has named that; who has none yet starts a new one."""
        session_id = self._sessions.find(arrival.session)
        request = ChatRequest(arrival.message, session_id, arrival.user, self._stream)
        first: list[float] = []
        try:
            async with asyncio.timeout(arrival.patience_s):
                if self._stream:
                    now = asyncio.get_running_loop().time
                    reply = await self._door(request, correlation_id, lambda: first.append(now()))
                else:
                    reply = await self._door(request, correlation_id)
        except TimeoutError:
            return Attempt("failed", TIMED_OUT, None, first[0] if first else None)
        except Refused as refusal:
            return refused(refusal.kind, refusal.retry_after_seconds, first[0] if first else None)
        self._sessions.named(arrival.session, reply.session_id)
        return self._tally.acknowledge(reply, first[0] if first else None)


class Regulars:
    """A population that waits for its answers: each user has one turn at a time."""

    def __init__(self, crowd: Crowd, clients: ClosedLoop, part: Part, chance: Random) -> None:
        self._crowd = crowd
        self._clients = clients
        self._part = part
        self._chance = chance

    async def come(self, duration_s: float, expect: Callable[[Arrival], None]) -> None:
        """Let every user come and stay until `duration_s`; return when the last one has its answer."""
        async with asyncio.TaskGroup() as users:
            for user in range(self._clients.users):
                users.create_task(self._stay(user, Random(self._chance.getrandbits(64)), duration_s, expect))

    async def _stay(self, user: int, chance: Random, duration_s: float, expect: Callable[[Arrival], None]) -> None:
        now = asyncio.get_running_loop().time
        for visit in self._clients.visits(user, chance, self._part):
            if now() + visit.pause_s >= duration_s:
                return
            await asyncio.sleep(visit.pause_s)
            arrival = visit.turn._replace(at=now())
            expect(arrival)
            await self._crowd.turn(arrival)
