"""A load balancer in front of a region's instances: whose turn it is, and who is in rotation.

It asks each instance at intervals whether it is ready, and takes one out that often was not, until it often is again.
Where none is left it sends to all of them, as AWS's Application Load Balancer fails open and Envoy panics: a probe that
fails everywhere tells more of what the instances have in common than of them.

It tries another instance only where the first took no connection, for then nothing was sent; whether a request that was
sent has been carried out, no balancer can know (RFC 9110, 9.2.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Literal, Protocol

from msgspec import Struct

from orchestra.model import ChatReply, ChatRequest
from sim.doors import Began, Refused
from sim.journal import InstanceIn, InstanceOut, WorldEvent
from sim.quantities import DURATION, Whole

NOBODY = "no-instance"


class BalancerModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose turn it is, and how one learns that an instance should get none."""

    policy: Annotated[Literal["round_robin", "least_connections"], "whose turn it is"] = "round_robin"
    probes: Annotated[
        Literal["readiness", "none"], "whether instances are asked if they are ready, and left out while not"
    ] = "readiness"
    every: Annotated[float, DURATION, "how often each instance is asked"] = 2.0
    patience: Annotated[float, DURATION, "how long an answer is waited for, and a connection"] = 1.0
    out_after: Annotated[int, Whole(1, 100), "probes in a row that fail before an instance is left out"] = 2
    in_after: Annotated[int, Whole(1, 100), "probes in a row that succeed before it is back"] = 2

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        for name in ("every", "patience"):
            if getattr(self, name) == 0:
                yield name, "0 is no time: write some, such as 1s"


class NotConnected(Exception):
    """The instance took no connection: nothing was sent."""


class Backend(Protocol):
    """What a balancer sends to."""

    @property
    def name(self) -> str:
        """The instance's name."""
        ...

    async def ready(self, connect_s: float) -> bool:
        """Return whether it says that it can take turns; raises like `send`."""
        ...

    async def send(self, request: ChatRequest, correlation_id: str, began: Began | None, connect_s: float) -> ChatReply:
        """Return the reply; raises `Refused`, or `NotConnected` after at most `connect_s`."""
        ...


class Rotation:
    """Who gets turns: decides only, and never waits.

    Parameters
    ----------
    model : BalancerModel
    names : sequence of str
        The instances, all of them in rotation.
    """

    def __init__(self, model: BalancerModel, names: Sequence[str]) -> None:
        self._model = model
        self._streaks = dict.fromkeys(names, 0)  # probes in a row that speak against how things are
        self._in = dict.fromkeys(names, True)
        self._open = dict.fromkeys(names, 0)
        self._turns = dict.fromkeys(names, 0)  # when each had its last one
        self._turn = 0

    @property
    def members(self) -> list[str]:
        """Who is in rotation."""
        return [name for name, is_in in self._in.items() if is_in]

    def order(self) -> list[str]:
        """Return whom to try, in order, for one connection: those in rotation, or all where nobody is."""
        names = self.members or list(self._in)
        if self._model.policy == "least_connections":
            return sorted(names, key=lambda name: (self._open[name], self._turns[name]))
        return sorted(names, key=self._turns.__getitem__)

    def begin(self, name: str) -> None:
        """Count a connection, which is its turn."""
        self._turn += 1
        self._turns[name] = self._turn
        self._open[name] += 1

    def end(self, name: str) -> None:
        """Count a connection that is over."""
        self._open[name] -= 1

    def probed(self, name: str, *, is_ready: bool) -> bool:
        """Take in a probe; return whether the instance has just left the rotation, or come back."""
        if is_ready == self._in[name]:
            self._streaks[name] = 0
            return False
        self._streaks[name] += 1
        needed = self._model.in_after if is_ready else self._model.out_after
        if self._streaks[name] < needed:
            return False
        self._streaks[name] = 0
        self._in[name] = is_ready
        return True


class Balancer:
    """One region's load balancer.

    Parameters
    ----------
    model : BalancerModel
    backends : sequence of Backend
    record : callable
        Gets an `InstanceOut` and an `InstanceIn` where the rotation changes.
    """

    def __init__(self, model: BalancerModel, backends: Sequence[Backend], record: Callable[[WorldEvent], None]) -> None:
        self.rotation = Rotation(model, [each.name for each in backends])
        self._model = model
        self._backends = {each.name: each for each in backends}
        self._record = record

    async def watch(self) -> None:
        """Probe the instances, each at its own moment of the interval, until cancelled."""
        if self._model.probes == "none":
            return
        count = len(self._backends)
        async with asyncio.TaskGroup() as probes:
            for number, name in enumerate(self._backends):
                probes.create_task(self._watch(name, self._model.every * (number + 1) / count))

    async def _watch(self, name: str, first_s: float) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + first_s
        while True:
            await asyncio.sleep(max(0.0, at - loop.time()))
            at += self._model.every
            reason = await self._asked(self._backends[name].ready(self._model.patience))
            if self.rotation.probed(name, is_ready=not reason):
                change = InstanceOut(loop.time(), name, reason) if reason else InstanceIn(loop.time(), name)
                self._record(change)

    async def _asked(self, readiness: Awaitable[bool]) -> str:
        """Return what speaks against an instance; nothing where it is ready."""
        try:
            async with asyncio.timeout(self._model.patience):
                return "" if await readiness else "not ready"
        except TimeoutError:
            return "no answer"
        except NotConnected:
            return "no connection"

    async def send(self, request: ChatRequest, correlation_id: str, began: Began | None) -> ChatReply:
        """Pass a request on to whose turn it is, and to the next one where nothing could be sent.

        Raises
        ------
        Refused
            The instance did, or its connection was lost, or nobody takes any.
        """
        for name in self.rotation.order():
            self.rotation.begin(name)
            try:
                with suppress(NotConnected):
                    return await self._backends[name].send(request, correlation_id, began, self._model.patience)
            finally:
                self.rotation.end(name)
        raise Refused(NOBODY)
