"""A deployment, alive: instances that crash and come back, balancers before them, the shared stores behind.

Each instance, or each of its workers, has a container of its own, and so breakers, level, budgets and ids of its own;
they share the modelled stores, whose primaries live in the first region, and tell each other of turns by one relay.
Clients reach the balancer of their own region; where that has nobody in rotation and the other has, the edge sends them
there. Clients of one user always come from the same region.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from binascii import crc32
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.config import Settings
from orchestra.model import ChatReply, ChatRequest
from orchestra.ports import Ports, Provider
from sim.balancer import NOBODY, Balancer, BalancerModel, NotConnected
from sim.crash import Host
from sim.deployment import DeploymentModel
from sim.distributions import Distribution
from sim.doors import Began, Door, DoorName, Refused
from sim.durability import Archive, carry_out_losses
from sim.entropy import Streams
from sim.injection import Faults, Injection
from sim.instance import Instance, Line, Worker
from sim.journal import Entry
from sim.opening import APP_NAME, Opened, opened
from sim.service_faults import Connections, InstanceCrash, WorkerCrash
from sim.store_faults import StoreCrash, StoreFailover, StoreName
from sim.stores import ModelledConversations, ModelledFleet, ModelledMemories, ModelledSessions, StoresModel
from sim.subscriptions import Subscriptions
from sim.ways import Borders, Pool, Way

REFUSED = "connection-refused"


class Stores(NamedTuple):
    """What all instances share."""

    sessions: InProcessSessions
    conversations: InProcessConversations
    memories: InProcessMemories
    fleet: InProcessFleet


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a deployment stands in.

    Parameters
    ----------
    model : DeploymentModel
    stores_model : StoresModel
    settings : Settings
    door : str
    ports : Ports
        Those of a single orchestra; what instances do not have of their own they have from here.
    stores : Stores
    streams : Streams
    faults : Faults
    record : callable
    left_behind : list of str
    """

    model: DeploymentModel
    stores_model: StoresModel
    settings: Settings
    door: DoorName
    ports: Ports
    stores: Stores
    streams: Streams
    faults: Faults
    record: Callable[[Entry], None]
    left_behind: list[str]


class Deployment:
    """The instances, and the faults that happen to them and to the stores behind."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._outside = contextvars.copy_context()
        self._hub = InProcessHub()
        self._subscriptions = Subscriptions(self._hub)
        self._borders = Borders(around.faults)
        self._streams: dict[str, Streams] = {}
        model = around.model
        self.instances = [
            Instance(name, region, [self._worker(name, region, number) for number in range(1, model.workers + 1)])
            for region in model.regions
            for name in model.names(region)
        ]
        self.archive = Archive(
            {
                "sessions": (around.stores.sessions, around.stores.fleet, self._hub),
                "conversations": (around.stores.conversations,),
                "memories": (around.stores.memories,),
            },
            self._loses,
        )
        carry_out_losses(around.faults, self.archive, self._subscriptions.lose, self._subscriptions.renew)
        around.faults.carry_out(InstanceCrash, self._crash_instances)
        around.faults.carry_out(WorkerCrash, self._crash_worker)

    @property
    def workers(self) -> Iterator[Worker]:
        """All worker processes, by region, instance and number."""
        return (worker for instance in self.instances for worker in instance.workers)

    def _loses(self, fault: StoreCrash | StoreFailover) -> float:
        """Return how far back a fault throws its store, in seconds."""
        if isinstance(fault, StoreCrash):
            return fault.loses
        waits = fault.store != "sessions" and self._around.stores_model.commits == "synchronous"
        return 0.0 if waits else fault.replica_lag

    # --- one worker

    def _worker(self, instance: str, region: str, number: int) -> Worker:
        name = instance if self._around.model.workers == 1 else f"{instance}/{number}"
        self._streams[name] = self._around.streams.fork(name)

        async def live(worker: Worker, host: Host, told: asyncio.Future[Opened], stopping: asyncio.Event) -> None:
            around = self._around
            relay = self._subscriptions.join(f"{name}#{worker.starts}", host, self._way(name, region, "sessions", None))
            ports = dataclasses.replace(self._ports(worker, region, host), relay=relay)
            app_name = f"{APP_NAME}-{name.replace('/', '-')}-{worker.starts}"
            async with opened(ports, around.settings, around.door, around.left_behind, app_name) as orchestra:
                told.set_result(orchestra)
                await stopping.wait()
            await relay.aclose()

        return Worker(name, live, self._around.record)

    def _ports(self, worker: Worker, region: str, host: Host) -> Ports:
        """Return the ports of one worker: its own chance and ways, the shared stores, a line to each provider."""
        base, stores, name = self._around.ports, self._around.stores, worker.name
        pool = None if self._around.stores_model.pool is None else Pool(self._around.stores_model.pool)

        def line(provider: Provider) -> Line:
            return Line(provider, host, self._outside)

        return dataclasses.replace(
            base,
            entropy=self._streams[name].stream("orchestra"),
            hook=worker.hook,
            sessions=ModelledSessions(base.clock, self._way(name, region, "sessions", None), stores.sessions),
            fleet=ModelledFleet(base.clock, self._way(name, region, "sessions", None), stores.fleet),
            conversations=ModelledConversations(self._way(name, region, "conversations", pool), stores.conversations),
            memories=ModelledMemories(self._way(name, region, "memories", pool), stores.memories),
            provider=line(base.provider),
            alternate=base.alternate and line(base.alternate),
        )

    def _way(self, name: str, region: str, store: StoreName, pool: Pool | None) -> Way:
        around = self._around
        return Way(
            store,
            around.stores_model.latency,
            self._streams[name].stream(f"stores.{store}"),
            around.faults,
            region=region,
            home=around.model.regions[0],
            distance=around.model.distance,
            borders=self._borders,
            pool=pool,
        )

    # --- faults

    @asynccontextmanager
    async def _crash_instances(self, injection: Injection[InstanceCrash]) -> AsyncIterator[None]:
        fault = injection.fault
        hit = [each for each in self.instances if fault.instance == each.name or fault.region == each.region]
        async with _dead([worker for each in hit for worker in each.workers], fault.connections, injection):
            yield

    @asynccontextmanager
    async def _crash_worker(self, injection: Injection[WorkerCrash]) -> AsyncIterator[None]:
        fault = injection.fault
        (instance,) = (each for each in self.instances if each.name == fault.instance)
        async with _dead([instance.workers[fault.worker - 1]], "reset", injection):
            yield


@asynccontextmanager
async def _dead(
    workers: Sequence[Worker], connections: Connections, injection: Injection[InstanceCrash] | Injection[WorkerCrash]
) -> AsyncIterator[None]:
    """Keep workers dead in the body; what it touches are the requests that it costs and the connections it refuses."""
    injection.touched += sum(worker.crash(connections) for worker in workers)
    refused = sum(worker.refused for worker in workers)
    yield
    injection.touched += sum(worker.refused for worker in workers) - refused
    for worker in workers:
        await worker.revive()


class Direct:
    """The door of a single instance that nothing stands before."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def __call__(self, request: ChatRequest, correlation_id: str, began: Began | None = None) -> ChatReply:
        """Return the reply; raises `Refused`."""
        try:
            return await self._instance.send(request, correlation_id, began, float("inf"))
        except NotConnected:
            raise Refused(REFUSED) from None


class Edge:
    """The door of a deployment: a balancer for each region, and what sends a client to one of them."""

    def __init__(self, balancers: dict[str, Balancer], distance: Distribution, chance: Streams) -> None:
        self._balancers = balancers
        self._regions = list(balancers)
        self._distance = distance
        self._chance = chance.stream("edge")

    def _home_of(self, key: str) -> str:
        return self._regions[crc32(key.encode()) % len(self._regions)]

    async def __call__(self, request: ChatRequest, correlation_id: str, began: Began | None = None) -> ChatReply:
        """Return the reply; raises `Refused`."""
        home = self._home_of(request.user_id or correlation_id)
        others = [name for name in self._regions if name != home and self._balancers[name].rotation.members]
        order = [home, *others] if self._balancers[home].rotation.members else [*others, home]
        for region in order:
            if region != home:
                await asyncio.sleep(self._distance.draw(self._chance))
            try:
                return await self._balancers[region].send(request, correlation_id, began)
            except Refused as refusal:
                if refusal.kind != NOBODY or region == order[-1]:
                    raise
        raise AssertionError("some region is the last")


@asynccontextmanager
async def deployed(around: Surroundings) -> AsyncIterator[tuple[Door, Archive]]:
    """Start all instances and what is before them, and stop them afterwards."""
    deployment = Deployment(around)
    model = around.model
    for worker in deployment.workers:
        await worker.start()
    balancers: dict[str, Balancer] = {}
    if model.balancer is not None or len(deployment.instances) > 1:
        for region in model.regions:
            backends = [each for each in deployment.instances if each.region == region]
            balancers[region] = Balancer(model.balancer or BalancerModel(), backends, around.record)
    watches = [asyncio.create_task(each.watch(), name=f"balancer of {name}") for name, each in balancers.items()]
    try:
        door = Edge(balancers, model.distance, around.streams) if balancers else Direct(deployment.instances[0])
        yield door, deployment.archive
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for worker in deployment.workers:
            await worker.stop()
