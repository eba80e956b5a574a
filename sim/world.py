"""One scenario, lived through: the real orchestrator with modelled ports, in virtual time and cut off from reality.

`rehearse` is the whole of it. The orchestra is wired by the same `orchestra.compose.build` as the live service and
never knows; everything around it (clients, provider, stores, faults) lives in one SimPy environment. Each draws from a
stream of its own, so that a fault more or less does not reshuffle the arrivals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count

from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.config import Settings
from orchestra.ports import Ports
from sim import loop, verdict
from sim.audit import HORIZON_S, Auditor
from sim.bounds import bounded
from sim.clients import Clients, Door, DoorName
from sim.clock import SimClock
from sim.cluster import Stores, Surroundings, deployed
from sim.crash import HostEnvironment
from sim.deployment import needs_hosts
from sim.entropy import Streams
from sim.evidence import Evidence
from sim.faults import Fault, Faults, StoreName, kind_of
from sim.isolation import Leak, isolated
from sim.journal import FaultEnded, FaultStarted, Journal, RunFinished, RunStarted
from sim.opening import opened
from sim.provider import ModelledProvider, Plan, ProviderModel, Tokens
from sim.provider_faults import ProviderName
from sim.scenario import Scenario, digest, entering, settings_of
from sim.schedule import Mode, Prioritised, Schedule, schedule_of
from sim.store_faults import StoreCrash, StoreFailover
from sim.stores import (
    ModelledConversations,
    ModelledFleet,
    ModelledMemories,
    ModelledRelay,
    ModelledSessions,
    RecentMemories,
    Wire,
)
from sim.tally import Tally
from sim.tape import Recording
from sim.verdict import Verdict
from sim.workload import Arrival

PROGRESS_STEPS = 200


class Aborted(Exception):
    """Whoever watches the run wants it to end now. Raised by a `Watch`."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    virtual_seconds: float
    duration_seconds: float
    arrivals: int
    answered: int
    failed: int
    shed: int


Watch = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """One scenario lived through, and everything that is known of it.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    door : str
    journal : Journal
    verdict : Verdict
    virtual_seconds, wall_seconds : float
        How long it took in the world, and on the clock on the wall.
    gathered : Evidence or None
        See `evidence`.
    mode : str
        How ready callbacks were scheduled (`sim.schedule`): only what is found in "faithful" mode can stock asyncio do.
    """

    scenario: Scenario
    seed: int
    door: DoorName
    journal: Journal
    verdict: Verdict
    virtual_seconds: float
    wall_seconds: float
    gathered: Evidence | None = None
    mode: Mode = "faithful"

    @cached_property
    def evidence(self) -> Evidence:
        """What was gathered while it happened, also from what the journal did not keep; else from the journal."""
        return self.gathered or Evidence(self.journal)


def rehearse(
    scenario: Scenario,
    *,
    seed: int = 0,
    door: DoorName | None = None,
    mode: Mode = "faithful",
    tape: Recording | None = None,
    watch: Watch = lambda progress: None,
    journal: Journal | None = None,
) -> Run:
    """Live through `scenario` and judge it.

    Parameters
    ----------
    scenario : Scenario
    seed : int
        The same scenario, seed, door and mode give the same journal, byte for byte.
    door : str
        Where clients come in: ``orchestrator`` or ``service``; None for where the scenario says.
    mode : str
        ``faithful``, ``adversarial`` or ``pct`` (`sim.schedule`); the last measures the run's length beforehand.
    tape : Recording
        Records the run's choices; one that replays a tape takes seed, door and mode from there.
    watch : callable
        Told of the progress about `PROGRESS_STEPS` times; it may raise `Aborted`, and the run ends with what it has.
    journal : Journal
        An empty one to fill, such as one in a file (`sim.streaming`); None for one in memory.

    Raises
    ------
    sim.forms.Unreadable
        The scenario's clients cannot come in at `door`.
    sim.isolation.Leak, sim.loop.Deadlock, sim.loop.Livelock
        The code under rehearsal did what no simulation can follow.
    sim.tape.OtherScenario
        The tape to be replayed is of another one.
    OSError
        The journal cannot be written any more.
    """
    started = time.perf_counter()
    if tape is not None and tape.against is not None:
        seed, door, mode = tape.against.header.seed, tape.against.header.door, tape.against.header.mode
    if door is not None and door != scenario.door:
        scenario = entering(scenario, door)
    journal = Journal() if journal is None else journal
    horizon = _steps(scenario, watch) if mode == "pct" and (tape is None or tape.plan is None) else 0
    schedule = schedule_of(mode, seed, horizon)
    world = World(scenario, seed, scenario.door, watch, journal, schedule, tape)
    if tape is not None:
        tape.begin(scenario, seed, mode)
    try:
        left_behind = world.live()
    finally:
        journal.close()
        if tape is not None:
            tape.finish(journal.digest)
    if journal.failure is not None:
        raise journal.failure
    judged = verdict.reach(scenario.expectations, world.evidence, left_behind)
    wall_s = time.perf_counter() - started
    return Run(scenario, seed, scenario.door, journal, judged, world.env.now, wall_s, world.evidence, mode)


def _steps(scenario: Scenario, watch: Watch) -> int:
    """Return how many callbacks run in a rehearsal, as measured once a process: with seed 0 and ranks that stay."""
    key = digest(scenario)
    if key not in _measured:
        schedule = schedule_of("pct", 0)
        assert isinstance(schedule, Prioritised)
        with suppress(loop.Deadlock, loop.Livelock, Leak):  # the run itself will say so; this far it goes
            World(scenario, 0, scenario.door, watch, Journal(), schedule).live()
        _measured[key] = schedule.picked
    return _measured[key]


_measured: dict[str, int] = {}


class World:
    """Everything that one run consists of."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        door: DoorName,
        watch: Watch,
        journal: Journal,
        schedule: Schedule,
        tape: Recording | None = None,
    ) -> None:
        self.scenario = scenario
        self.journal = journal
        self.evidence = Evidence(journal)
        journal.readers.append(self.evidence.read)
        self.streams = Streams(seed) if tape is None else tape.streams(seed)
        self._hosted = needs_hosts(scenario.world.deployment, scenario.world.stores, scenario.faults)
        environment = HostEnvironment if self._hosted else loop.SimEnvironment
        self.env = environment(schedule=schedule if tape is None else tape.schedule(schedule, seed))
        if tape is not None:
            tape.attach(self.env)
        self._mode = schedule.mode
        self.faults = Faults()
        self._record = journal.record
        self._seed = seed
        self._door_name: DoorName = door
        self._watch = watch
        self._clock = SimClock(self.env.loop)
        self._plan = Plan()
        self._stores = Stores(
            InProcessSessions(self._clock), InProcessConversations(), RecentMemories(), InProcessFleet(self._clock)
        )
        self._auditor = Auditor(self._stores.conversations, self._stores.sessions)  # past their wires and faults
        self._relay = ModelledRelay(InProcessHub().join("world"), self._wire("sessions", "relay"))
        self._calls = count(1)
        self._provider = self._modelled(scenario.world.provider, "main", "provider")
        other = scenario.world.alternate
        self._alternate = None if other is None else self._modelled(other, "alternate", "alternate")

    def _modelled(self, model: ProviderModel, which: ProviderName, stream: str) -> ModelledProvider:
        return ModelledProvider(
            self.env,
            model,
            self.streams.stream(stream),
            self.faults,
            cost=self._plan,
            record=self._record,
            which=which,
            numbers=self._calls,
        )

    def live(self) -> tuple[str, ...]:
        """Let the scenario happen, and return what is left behind."""
        with bounded(self.scenario.limits), isolated(self.streams, self.env):
            return loop.run(self._run(), env=self.env)

    async def _run(self) -> tuple[str, ...]:
        left_behind: list[str] = []
        try:
            async with self._opened(left_behind) as door:
                clients = Clients(door, self.scenario.workload, self.streams, self.faults, self._record, self._expect)
                tally = clients.tally
                await self._story(clients)
                for session_id, turn_ids in tally.acknowledged.items():
                    await self._auditor.check(session_id, turn_ids)
                self._record(self._auditor.found(self.env.now))
                self._record(RunFinished(self.env.now, tally.arrived, **tally.counts))
        except* Aborted:
            pass
        left_behind += self._found_left()
        self.journal.close()  # what crashed is collected now, and may say what it likes
        return tuple(left_behind)

    async def _story(self, clients: Clients) -> None:
        """Run clients and faults to their end, watched."""
        scenario = self.scenario
        told = scenario.name, self._seed, self._door_name, scenario.duration, scenario.settings, self._mode
        self._record(RunStarted(0.0, *told))
        async with asyncio.TaskGroup() as watching:
            watchers = [watching.create_task(self._monitor(clients.tally))]
            if scenario.duration > HORIZON_S:
                watchers.append(watching.create_task(self._stay_small(clients.tally)))
            async with asyncio.TaskGroup() as story:
                for number, fault in enumerate(scenario.faults):
                    story.create_task(self._inject(number, fault))
                    if isinstance(fault, StoreCrash | StoreFailover):
                        story.create_task(self._archive.keep(fault))
                story.create_task(clients.come(scenario.duration))
                story.create_task(_until(scenario.duration))
            for watcher in watchers:
                watcher.cancel()

    def _expect(self, arrival: Arrival) -> None:
        """Let the provider know what an arrival's turn costs."""
        self._plan.add(arrival.message, Tokens(arrival.context_tokens, arrival.generated_tokens))

    async def _inject(self, number: int, fault: Fault) -> None:
        await _until(fault.at)
        async with self.faults.in_force(fault) as injection:
            self._record(FaultStarted(self.env.now, number, kind_of(fault), fault.what))
            await _until(fault.at + fault.lasts)
        self._record(FaultEnded(self.env.now, number, kind_of(fault), injection.touched))

    async def _stay_small(self, tally: Tally) -> None:
        """Let the world forget what nobody will ask for any more, after an audit of it.

        Instances that crash and stores that fail over keep theirs to the end: what these lose is found out later.
        """
        while True:
            await asyncio.sleep(HORIZON_S / 10)
            while tally.ended and tally.ended[0][0] + HORIZON_S <= self.env.now:
                self._plan.forget(tally.ended.popleft()[1])
            over, tally.over = tally.over, []
            if not self._hosted:
                for session_id in over:
                    await self._auditor.part_with(session_id, tally.acknowledged.pop(session_id, ()))

    async def _monitor(self, tally: Tally) -> None:
        while True:
            try:
                if self.journal.failure is not None:
                    raise Aborted  # nobody could read how it goes on
                self._watch(Progress(self.env.now, self.scenario.duration, tally.arrived, **tally.counts))
            except Aborted:
                self.journal.close()  # what the end of all tasks tells now is no part of the story
                raise
            await asyncio.sleep(self.scenario.duration / PROGRESS_STEPS)

    @asynccontextmanager
    async def _opened(self, left_behind: list[str]) -> AsyncIterator[Door]:
        """Open one orchestra, or a whole deployment, and dispose of it afterwards."""
        settings, ports = settings_of(self.scenario.settings), self._ports()
        if self._hosted:
            world = self.scenario.world
            around = Surroundings(
                *(world.deployment, world.stores, settings, self._door_name, ports, self._stores),
                *(self.streams, self.faults, self._record, left_behind),
            )
            async with deployed(around) as (door, self._archive):
                yield door
            return
        async with (
            self._reached(ports, settings) as reached,
            opened(reached, settings, self._door_name, left_behind) as orchestra,
        ):
            yield orchestra.door

    @asynccontextmanager
    async def _reached(self, ports: Ports, settings: Settings) -> AsyncIterator[Ports]:
        """Give the ports of one orchestra: the modelled ones, or real adapters that reach the models by a network."""
        try:
            if not self.scenario.world.wire:
                yield ports
                return
            from sim.wired import wired  # noqa: PLC0415 - it needs the extra `lab`

            async with wired(self.env, self.streams, self.faults, ports, settings) as (real, sessions):
                self._auditor = Auditor(self._stores.conversations, sessions)
                yield real
        finally:
            await self._relay.aclose()

    def _ports(self) -> Ports:
        stores = self._stores
        return Ports(
            clock=self._clock,
            entropy=self.streams.stream("orchestra"),
            sessions=ModelledSessions(self._clock, self._wire("sessions"), stores.sessions),
            conversations=ModelledConversations(self._wire("conversations"), stores.conversations),
            memories=ModelledMemories(self._wire("memories"), stores.memories),
            embedder=HashingEmbedder(),
            provider=self._provider,
            hook=self._record,
            fleet=ModelledFleet(self._clock, self._wire("sessions", "fleet"), stores.fleet),
            relay=self._relay,
            alternate=self._alternate,
        )

    def _wire(self, store: StoreName, stream: str = "") -> Wire:
        chance = self.streams.stream(f"stores.{stream or store}")
        return Wire(store, self.scenario.world.stores.latency, chance, self.faults)

    def _found_left(self) -> list[str]:
        """Name what should be gone by now: tasks, and calls that still hold the provider."""
        current = asyncio.current_task()
        left = [f"task {task.get_name()}" for task in self.env.loop.pending_tasks() if task is not current]
        for name, provider in (("provider", self._provider), ("alternate", self._alternate)):
            if provider is not None and (provider.busy or provider.queued):
                left.append(f"{name}: {provider.busy} calls served and {provider.queued} queued")
        return left


async def _until(at: float) -> None:
    """Return at the virtual time `at`, or at once where that has passed."""
    await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
