"""All clients of a simulated world: each population comes as its workload says, and tells how it fared.

siblings: `sim.request_clients` (open and closed loops, traces), `sim.websocket_clients`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from sim.client_faults import ClientsDisconnected
from sim.doors import DOORS, Door, DoorName, ServiceDoor, SocketDoor, orchestrator_door
from sim.entropy import Streams
from sim.injection import Faults, Injection
from sim.journal import WorldEvent
from sim.request_clients import Crowd, Regulars
from sim.tally import Tally
from sim.websocket_clients import Sockets
from sim.workload import (
    Arrival,
    ClosedLoop,
    OpenLoop,
    Part,
    Recording,
    Replay,
    Single,
    WebSockets,
    Workload,
    populations,
    stream_name,
)

__all__ = ["DOORS", "Clients", "Door", "DoorName", "ServiceDoor", "SocketDoor", "orchestrator_door"]


class Clients:
    """All clients of a run.

    Parameters
    ----------
    door : Door
        One that takes WebSockets, where the workload has some.
    workload : Workload
    streams : Streams
        Each population draws from some of its own.
    faults : Faults
        Those between clients and the service are carried out here.
    record : callable
    expect : callable
        Told of each arrival before it comes.
    """

    def __init__(
        self,
        door: Door,
        workload: Workload,
        streams: Streams,
        faults: Faults,
        record: Callable[[WorldEvent], None],
        expect: Callable[[Arrival], None],
    ) -> None:
        self.tally = Tally(record)
        self._door = door
        self._populations = populations(workload)
        self._streams = streams
        self._expect = expect
        self._sockets: list[Sockets] = []
        faults.carry_out(ClientsDisconnected, self._disconnected)

    async def come(self, duration_s: float) -> None:
        """Let them all come until `duration_s`, and return when the last one has gone."""
        async with asyncio.TaskGroup() as all_of_them:
            for part, clients in self._populations:
                all_of_them.create_task(self._come(part, clients, duration_s))

    async def _come(self, part: Part, clients: Single, duration_s: float) -> None:
        chance = self._streams.stream(stream_name("arrivals", part))
        match clients:
            case OpenLoop() | Replay():
                crowd = Crowd(self._door, clients, part, self._streams, self.tally)
                await crowd.come(self._expected(clients.coming(duration_s, chance, part)))
            case ClosedLoop():
                crowd = Crowd(self._door, clients, part, self._streams, self.tally)
                await Regulars(crowd, clients, part, chance).come(duration_s, self._expect)
            case WebSockets():
                assert isinstance(self._door, SocketDoor)  # the scenario was checked
                sockets = Sockets(self._door, clients, part, self._streams, self.tally)
                self._sockets.append(sockets)
                await sockets.come(duration_s, chance, self._expect)
            case Recording():
                raise AssertionError("a trace that a scenario names is read with it")

    @asynccontextmanager
    async def _disconnected(self, injection: Injection[ClientsDisconnected]) -> AsyncIterator[None]:
        """Cut connections, and keep their clients away, while the fault lasts."""
        cut = [client for sockets in self._sockets for client in sockets.cut(injection.fault)]
        injection.touched += len(cut)
        for client in cut:
            client.outages += 1
        try:
            yield
        finally:
            for client in cut:
                client.outages -= 1

    def _expected(self, arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
        for arrival in arrivals:
            self._expect(arrival)
            yield arrival
