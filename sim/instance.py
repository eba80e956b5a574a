"""An instance of the service: worker processes that take turns, crash, and are started again with empty memory.

A client's request runs in a task on the worker's host, and the client waits for it as for a connection: if the host
crashes, it is told so, or hears nothing. The provider is at the other end of a `Line`, which the kernel cuts.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, TypeVar

from orchestra.events import BreakerChanged, Event, LevelChanged, TurnFinished, TurnStarted
from orchestra.model import ChatReply, ChatRequest, Chunk, Prompt
from orchestra.ports import Provider
from sim.balancer import NotConnected
from sim.crash import Host, HostLoop
from sim.doors import Began, Refused
from sim.journal import Entry, InstanceBreakerChanged, InstanceCrashed, InstanceLevelChanged, InstanceStarted
from sim.opening import Opened
from sim.service_faults import Connections

T = TypeVar("T")

LOST = "connection-lost"


class Line:
    """A connection to a provider for each call: the provider's end is outside of the host, and outlives it."""

    def __init__(self, provider: Provider, host: Host, outside: contextvars.Context) -> None:
        self.name = provider.name
        self.external = provider.external
        self._provider = provider
        self._host = host
        self._outside = outside

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        """Stream an answer; a crash of the host ends the call as a broken connection does."""
        arrived: asyncio.Queue[Chunk | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        call = loop.create_task(self._serve(prompt, arrived), context=self._outside.copy())
        forget = self._host.at_crash(call.cancel)
        try:
            while (chunk := await arrived.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk
        finally:
            forget()
            call.cancel()

    async def _serve(self, prompt: Prompt, arrived: asyncio.Queue[Chunk | Exception | None]) -> None:
        try:
            async with aclosing(self._provider.complete(prompt)) as chunks:
                async for chunk in chunks:
                    arrived.put_nowait(chunk)
        except Exception as error:
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)


class Life(NamedTuple):
    """What a worker is from one start to its end."""

    host: Host
    orchestra: Opened
    task: asyncio.Task[None]
    stopping: asyncio.Event


Open = Callable[["Worker", Host, asyncio.Future[Opened], asyncio.Event], Coroutine[Any, Any, None]]
"""Runs on the worker's host for its whole life: opens an orchestra, tells it, and closes it when told to stop."""


class Worker:
    """One process of an instance.

    Parameters
    ----------
    name : str
    open_ : callable
    record : callable
        Told of starts and crashes, and of what the orchestra tells, as of this worker.
    """

    def __init__(self, name: str, open_: Open, record: Callable[[Entry], None]) -> None:
        self.name = name
        self.starts = 0
        self.refused = 0  # connections that nobody took
        self._open = open_
        self._record = record
        self._host: Host | None = None
        self._life: Life | None = None  # once it has started
        self._deaths = 0
        self._connections: Connections = "reset"
        self._turns: dict[str, int] = {}
        self._requests: dict[asyncio.Task[Any], None] = {}

    @property
    def alive(self) -> bool:
        """Whether it takes connections."""
        return self._life is not None

    async def start(self) -> None:
        """Start it on a host of its own, and return when it takes turns, or has crashed before."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, HostLoop)
        self.starts += 1
        host = self._host = loop.host(self.name)
        opened: asyncio.Future[Opened] = loop.create_future()
        stopping = asyncio.Event()
        task = host.start(self._open(self, host, opened, stopping), name=self.name)
        task.add_done_callback(partial(_told, opened))
        forget = host.at_crash(opened.cancel)
        await asyncio.wait((opened,))
        forget()
        if not host.alive:
            return
        self._life = Life(host, opened.result(), task, stopping)
        self._record(InstanceStarted(loop.time(), self.name))

    async def stop(self) -> None:
        """Let what runs end, and close the orchestra."""
        if self._life is None:
            return
        life, self._life = self._life, None
        if self._requests:
            await asyncio.wait(self._requests)
        life.stopping.set()
        await life.task

    def crash(self, connections: Connections) -> int:
        """Die; return how many requests that cost."""
        self._deaths += 1
        self._connections = connections
        if self._host is None or not self._host.alive:
            return 0
        self._life = None
        lost = len(self._requests)
        self._requests.clear()
        self._host.crash()
        turns = tuple(name for name, count in self._turns.items() for _ in range(count))
        self._turns.clear()
        self._record(InstanceCrashed(asyncio.get_running_loop().time(), self.name, turns))
        return lost

    async def revive(self) -> None:
        """Be started again, unless something else keeps it dead."""
        self._deaths -= 1
        if not self._deaths:
            await self.start()

    async def send(self, request: ChatRequest, correlation_id: str, began: Began | None, connect_s: float) -> ChatReply:
        """Return the reply; raises `Refused`, or `NotConnected` after at most `connect_s`."""
        life = await self._connected(connect_s)
        return await self._asked(life, life.orchestra.door(request, correlation_id, began))

    async def ready(self, connect_s: float) -> bool:
        """Return what its readiness probe says."""
        life = await self._connected(connect_s)
        return await self._asked(life, _awaited(life.orchestra.ready))

    async def _connected(self, connect_s: float) -> Life:
        if self._life is None:
            self.refused += 1
            if self._connections == "hang":
                await asyncio.sleep(connect_s)
            raise NotConnected(self.name)
        return self._life

    async def _asked(self, life: Life, coro: Coroutine[Any, Any, T]) -> T:
        """Run `coro` on the host and return what it does, or what becomes of a connection to who has crashed."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = life.host.start(coro)
        task.add_done_callback(partial(_told, answer))
        forget = life.host.at_crash(partial(self._cut, answer))
        self._requests[task] = None
        task.add_done_callback(self._done)
        try:
            return await answer
        finally:
            forget()
            if life.host.alive:
                task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._requests.pop(task, None)

    def _cut(self, answer: asyncio.Future[Any]) -> None:
        if self._connections == "reset" and not answer.done():
            answer.set_exception(Refused(LOST))

    def hook(self, event: Event) -> None:
        """Record what the worker's orchestra tells, and whose it is where several could have told it."""
        kind = type(event)
        if kind is TurnStarted:
            self._turns[event.correlation_id] = self._turns.get(event.correlation_id, 0) + 1  # type: ignore[union-attr]
        elif kind is TurnFinished:
            self._end(event.correlation_id)  # type: ignore[union-attr]
        elif isinstance(event, LevelChanged):
            event = InstanceLevelChanged(event.at, self.name, event.before, event.after, event.health, event.reason)  # type: ignore[assignment]
        elif isinstance(event, BreakerChanged):
            event = InstanceBreakerChanged(  # type: ignore[assignment]
                event.at, self.name, event.breaker, event.before, event.after, event.reason
            )
        self._record(event)

    def _end(self, correlation_id: str) -> None:
        """Count a turn as over; one that was refused admission never began."""
        count = self._turns.pop(correlation_id, 0) - 1
        if count > 0:
            self._turns[correlation_id] = count


class Instance:
    """Workers behind one address, each of which gets connections in turn."""

    def __init__(self, name: str, region: str, workers: Sequence[Worker]) -> None:
        self.name = name
        self.region = region
        self.workers = workers
        self._turn = 0

    def _next(self) -> Worker:
        """Return the worker whose turn it is; a dead one only where all are."""
        self._turn += 1
        count = len(self.workers)
        in_turn = [self.workers[(self._turn + number) % count] for number in range(count)]
        return next((worker for worker in in_turn if worker.alive), in_turn[0])

    async def send(self, request: ChatRequest, correlation_id: str, began: Began | None, connect_s: float) -> ChatReply:
        """Return the reply; raises `Refused`, or `NotConnected` after at most `connect_s`."""
        return await self._next().send(request, correlation_id, began, connect_s)

    async def ready(self, connect_s: float) -> bool:
        """Return whether it says that it can take turns; `NotConnected` where it says nothing."""
        return await self._next().ready(connect_s)


def _told(answer: asyncio.Future[Any], task: asyncio.Task[Any]) -> None:
    """Let `answer` be as `task` ended, where anybody still waits."""
    if task.cancelled():
        answer.cancel()
        return
    error = task.exception()
    if answer.done():
        return
    if error is None:
        answer.set_result(task.result())
    else:
        answer.set_exception(error)


async def _awaited(function: Callable[[], Any]) -> Any:
    return await function()
