"""The monitor in virtual time, on the simulator's stores and fleet: what a tick does, and what cannot end it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from orchestra.errors import BreakerOpen, BulkheadFull, InvalidRequest, ProviderFailed
from orchestra.events import Event, LevelChanged, OperatorActed, StoreFinished, UnexpectedError
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy, BulkheadPolicy, DegradationPolicy
from orchestra.resilience.breaker import Breaker
from orchestra.resilience.bulkhead import Bulkhead, WaitCut
from orchestra.resilience.degradation import Degradation
from orchestra.resilience.monitor import PING_SECONDS_MAX, HealthMonitor, Probe, Watched
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults, StoreDown, StoreName
from sim.loop import run
from sim.stores import ModelledConversations, ModelledFleet, ModelledSessions, Wire

LATENCY_SECONDS = 0.125


class World:
    """Stores and a fleet in Redis that may go down, for any number of instances; made inside the running loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self.clock = SimClock(loop)
        self.faults = Faults()
        self.fleet = ModelledFleet(self.clock, self.wire("sessions"))
        self.sessions = ModelledSessions(self.clock, self.wire("sessions"))
        self.conversations = ModelledConversations(self.wire("conversations"))

    def wire(self, store: StoreName) -> Wire:
        return Wire(store, Constant(LATENCY_SECONDS), Streams(0).stream(store), self.faults)

    @contextmanager
    def down(self, store: StoreName) -> Iterator[None]:
        with self.faults.injected(StoreDown(at=0, lasts=1, store=store)):
            yield


class Instance:
    """One service's breaker, bulkhead, level and monitor."""

    def __init__(
        self,
        world: World,
        *,
        pings: dict[str, Probe] | None = None,
        canaries: dict[str, Probe] | None = None,
        policy: DegradationPolicy | None = None,
        fleet_view: bool = False,
        places: BulkheadPolicy | None = None,
    ) -> None:
        places = places or BulkheadPolicy(concurrent_max=10, queue_max=0)
        policy = policy or DegradationPolicy()
        self.told: list[Event] = []
        self.degradation = Degradation(policy, world.now, self.told.append)
        self.breaker = Breaker("unified", BreakerPolicy(), world.now, self.told.append, lambda: 0.0)
        self.bulkhead = Bulkhead("unified", places, world.now)
        self.monitor = HealthMonitor(
            policy,
            self.degradation,
            Watched({"unified": self.breaker}, {"unified": self.bulkhead}, pings or {}, canaries or {}),
            fleet=world.fleet,
            clock=world.clock,
            now=world.now,
            hook=self.hook,
            fleet_view=fleet_view,
        )

    def hook(self, event: Event) -> None:
        self.told.append(event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Instance"]:
        self.monitor.start()
        try:
            yield self
        finally:
            await self.monitor.aclose()

    def score(self) -> float | None:
        health = self.monitor.describe().health
        assert health is not None
        return health.score

    def level(self) -> str:
        return self.degradation.level.name

    def mode(self) -> str:
        return self.breaker.mode

    def of(self, *kinds: type[Event]) -> list[Event]:
        return [each for each in self.told if isinstance(each, kinds)]


def test_before_the_first_tick_health_is_none_and_then_unknown_and_then_what_pings_say() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world, pings={"sessions": world.sessions.ping})
        overview = instance.monitor.describe()
        assert overview.health is None
        async with instance.running():
            await asyncio.sleep(LATENCY_SECONDS / 2)
            assert instance.monitor.describe() == overview
            await asyncio.sleep(LATENCY_SECONDS)
            assert instance.score() == 100
        silent = Instance(world)
        async with silent.running():
            await asyncio.sleep(5)
            assert silent.score() is None
            assert silent.level() == "NORMAL"

    run(main())


def test_a_tick_comes_every_interval_whatever_it_takes() -> None:
    async def main() -> None:
        world, at = World(), []

        async def ping() -> None:
            at.append(world.now())
            await asyncio.sleep(0.5)

        async with Instance(world, pings={"x": ping}, policy=DegradationPolicy(interval_seconds=2)).running():
            await asyncio.sleep(7)
        assert at == pytest.approx([0, 2, 4, 6], abs=1e-6)

    run(main())


def test_a_store_that_goes_down_takes_the_level_with_it_and_back() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world, pings={"conversations": world.conversations.ping, "sessions": world.sessions.ping})
        async with instance.running():
            await asyncio.sleep(2.5)
            with world.down("conversations"):
                scores = []
                for _ in range(6):
                    await asyncio.sleep(1)
                    scores.append(instance.score())
                assert scores == [88.75, 82, 73, 64, 55, 55]  # 1 of 4, then 2 to 5 of 5 pings failed, and still 5
                await asyncio.sleep(5)
                assert instance.level() == "ESSENTIAL"
            await asyncio.sleep(40)
            assert instance.level() == "NORMAL"
            assert instance.score() == 100
        reasons = [each.reason for each in instance.told if isinstance(each, LevelChanged)]
        assert "conversations: " in reasons[0]
        assert instance.of(UnexpectedError, StoreFinished) == []

    run(main())


def test_a_ping_that_hangs_fails_and_holds_nothing_up() -> None:
    async def main() -> None:
        world = World()

        async def ping() -> None:
            await asyncio.sleep(PING_SECONDS_MAX + 0.001)

        async def slow() -> None:
            await asyncio.sleep(PING_SECONDS_MAX - 0.001)

        instance = Instance(world, pings={"memories": ping, "sessions": slow})
        async with instance.running():
            await asyncio.sleep(1.01)
            assert instance.score() == 90
        assert instance.of(UnexpectedError) == [], "that a store is slow is no defect"

    run(main())


def test_health_reads_breaker_and_bulkhead() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world)
        async with instance.running():
            await asyncio.sleep(0.5)
            for _ in range(5):
                instance.breaker.acquire().failure(OSError())
            await asyncio.sleep(1)
            assert instance.score() == 55
            instance.breaker.reset("mended")
            for _ in range(10):
                assert instance.bulkhead.try_acquire()
            await asyncio.sleep(1)
            assert instance.score() == 77.5
            overview = instance.monitor.describe()
            assert overview.health is not None
            assert [cause.what for cause in overview.health.why] == ["it is full, and refuses calls"]
            assert overview.level == instance.degradation.describe()
            assert overview.breakers == (instance.breaker.describe(),)
            assert overview.bulkheads == (instance.bulkhead.describe(),)
            assert overview.orders == {}

    run(main())


async def troubled(instance: Instance) -> None:
    """Let 40 % of 50 calls fail, which takes 36 points."""
    for n in range(50):
        permit = instance.breaker.acquire()
        await asyncio.sleep(0.01)
        permit.settle(OSError() if n % 5 in (0, 2) else None)
    await asyncio.sleep(1)
    assert instance.score() == 64


def test_a_silent_night_heals_nothing_and_the_first_good_call_does() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world, pings={"sessions": world.sessions.ping})
        async with instance.running():
            await troubled(instance)
            await asyncio.sleep(20)
            health = instance.monitor.describe().health
            assert health is not None
            assert (health.score, health.components[0].score) == (64, pytest.approx(20)), "still in the window"
            assert [cause.what for cause in health.why] == ["40% of 50 calls failed"]
            scores = set()
            for _ in range(60):
                await asyncio.sleep(60)
                scores.add(instance.score())
            assert scores == {64}
            assert instance.level() == "LIMITED"
            health = instance.monitor.describe().health
            assert health is not None
            assert health.components[0].score is None, "no traffic is unknown"
            assert [cause.what for cause in health.why] == ["40% of 50 calls failed, when last asked"]
            instance.breaker.acquire().drop()
            await asyncio.sleep(1)
            assert instance.score() == 64, "a call that was cancelled says nothing"
            instance.breaker.acquire().success()
            await asyncio.sleep(1)
            assert instance.score() == 100
            await asyncio.sleep(20)
            assert instance.level() == "NORMAL"

    run(main())


@pytest.mark.parametrize("fleet_view", [False, True])
def test_an_order_to_a_breaker_forgets_what_was_last_seen_of_its_component(fleet_view: bool) -> None:
    async def main() -> None:
        world = World()
        pings: dict[str, Probe] = {"sessions": world.sessions.ping}
        instance = Instance(world, pings=pings, fleet_view=fleet_view)
        there = Instance(world)
        async with instance.running(), there.running():
            await troubled(instance)
            await asyncio.sleep(60)
            assert instance.score() == 64
            await there.monitor.order("breaker:unified", "open", "to see")
            await asyncio.sleep(2)
            assert instance.score() == 55
            await there.monitor.order("breaker:unified", "reset", "seen")
            await asyncio.sleep(2)
            assert instance.score() == 100
            await troubled(instance)
            await asyncio.sleep(60)
            assert instance.score() == 64
            await instance.monitor.order("breaker:unified", "reset", "again")
            await asyncio.sleep(1)
            assert instance.score() == 100

    run(main())


def test_a_breaker_that_closed_again_has_proved_itself() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world, pings={"sessions": world.sessions.ping})
        async with instance.running():
            await troubled(instance)
            for _ in range(5):
                instance.breaker.acquire().failure(OSError())
            await asyncio.sleep(60)
            health = instance.monitor.describe().health
            assert health is not None
            assert [cause.what for cause in health.why] == ["its breaker is HALF_OPEN, without a good probe yet"]
            for _ in range(2):
                instance.breaker.acquire().success()
            await asyncio.sleep(1)
            assert instance.score() == 100
            await asyncio.sleep(60)
            assert instance.score() == 100

    run(main())


def test_a_bulkhead_that_refuses_is_full_however_long_its_queue_may_be() -> None:
    async def main() -> None:
        instance = Instance(World(), places=BulkheadPolicy(concurrent_max=1, queue_max=99, wait_seconds_max=2))
        async with instance.running():
            await asyncio.sleep(0.5)
            assert instance.bulkhead.try_acquire()
            cut = asyncio.create_task(instance.bulkhead.acquire(asyncio.get_running_loop().time() + 1))
            over = asyncio.create_task(instance.bulkhead.acquire())
            await asyncio.sleep(1.75)
            assert instance.score() is None, "that the caller's own deadline ended its wait says nothing"
            await asyncio.sleep(1)
            assert instance.score() == 77.5
            health = instance.monitor.describe().health
            assert health is not None
            assert [cause.what for cause in health.why] == ["it is full, and refuses calls"]
            await asyncio.sleep(1)
            assert instance.score() is None, "nobody was refused since"
            ended = await asyncio.gather(cut, over, return_exceptions=True)
            assert [type(each) for each in ended] == [WaitCut, BulkheadFull]

    run(main())


def test_a_defect_is_told_and_the_next_tick_comes() -> None:
    async def main() -> None:
        world = World()

        async def ping() -> None:
            raise ZeroDivisionError("planted")

        instance = Instance(world, pings={"memories": ping, "sessions": world.sessions.ping})
        async with instance.running():
            await asyncio.sleep(2.5)
            assert instance.score() == 90, "a store whose ping is defective did not answer"
        told = instance.of(UnexpectedError)
        assert len(told) == 3
        assert isinstance(told[0], UnexpectedError)
        assert (told[0].correlation_id, told[0].where) == ("", "HealthMonitor.tick")
        assert "ZeroDivisionError: planted" in told[0].traceback

    run(main())


def test_a_hook_that_fails_too_does_not_end_it() -> None:
    async def main() -> None:
        world, pings = World(), []

        async def ping() -> None:
            pings.append(world.now())
            raise ZeroDivisionError("planted")

        instance = Instance(world, pings={"sessions": ping})

        def broken(event: Event) -> None:
            raise OSError("planted too")

        instance.monitor._hook = broken
        async with instance.running():
            await asyncio.sleep(2.5)
        assert len(pings) == 3

    run(main())


def test_a_ping_that_cancels_itself_does_not_end_it() -> None:
    async def main() -> None:
        async def ping() -> None:
            raise asyncio.CancelledError

        instance = Instance(World(), pings={"sessions": ping})
        async with instance.running():
            await asyncio.sleep(2.5)
            assert instance.score() == 85

    run(main())


@pytest.mark.parametrize(
    ("level", "runs"),
    [("NORMAL", 0), ("LIMITED", 0), ("ESSENTIAL", 0), ("EMERGENCY", 3), ("MAINTENANCE", 3)],
)
def test_canaries_go_on_where_no_traffic_does(level: str, runs: int) -> None:
    async def main() -> None:
        calls = []

        async def canary() -> None:
            calls.append(1)

        instance = Instance(World(), canaries={"unified": canary})
        await instance.monitor.order("level", f"latch {level}", "to see")
        async with instance.running():
            await asyncio.sleep(25)
        assert len(calls) == runs

    run(main())


def test_by_canaries_the_level_finds_its_way_back_from_maintenance() -> None:
    async def main() -> None:
        world, broken = World(), True

        async def canary() -> None:
            async with instance.breaker.permit():
                if broken:
                    raise ProviderFailed("down")

        pings: dict[str, Probe] = {"conversations": world.conversations.ping}
        instance = Instance(world, pings=pings, canaries={"unified": canary})
        async with instance.running():
            for _ in range(5):
                instance.breaker.acquire().failure(OSError())
            with world.down("conversations"):
                await asyncio.sleep(20)
                assert instance.level() == "MAINTENANCE"
            broken = False
            await asyncio.sleep(160)
            assert instance.breaker.state == "CLOSED"
            assert instance.level() == "NORMAL"
        assert instance.of(UnexpectedError) == []

    run(main())


def test_canaries_of_a_kind_come_one_after_the_other_with_a_pause_between() -> None:
    async def main() -> None:
        world, starts, ends = World(), [], []

        async def canary() -> None:
            starts.append(world.now())
            try:
                await asyncio.sleep(20)
            finally:
                ends.append(world.now())

        policy = DegradationPolicy(interval_seconds=0.5, canary_seconds=2.25)
        instance = Instance(world, canaries={"unified": canary}, policy=policy)
        await instance.monitor.order("level", "latch EMERGENCY", "to see")
        began = world.now()
        async with instance.running():
            await asyncio.sleep(25)
            assert [at - began for at in starts] == pytest.approx([0, 22.5], abs=1e-5), "at the first tick after it"
            assert [at - began for at in ends] == pytest.approx([20], abs=1e-6)
        assert len(ends) == 2, "closing ends it"
        assert instance.of(UnexpectedError) == []

    run(main())


def test_a_defective_canary_is_told() -> None:
    async def main() -> None:
        async def rejected() -> None:
            raise BreakerOpen("as usual")

        async def defective() -> None:
            raise ZeroDivisionError("planted")

        instance = Instance(World(), canaries={"unified": rejected, "alternate": defective})
        await instance.monitor.order("level", "latch EMERGENCY", "to see")
        async with instance.running():
            await asyncio.sleep(0.5)
        [told] = instance.of(UnexpectedError)
        assert isinstance(told, UnexpectedError)
        assert told.where == "canary alternate"
        assert "ZeroDivisionError: planted" in told.traceback

    run(main())


def test_an_order_counts_here_at_once_and_everywhere_within_a_tick() -> None:
    async def main() -> None:
        world = World()
        here, there = Instance(world), Instance(world)
        async with here.running(), there.running():
            ordering = asyncio.create_task(here.monitor.order("level", "latch EMERGENCY", "to see"))
            await asyncio.sleep(0)
            assert here.level() == "EMERGENCY"
            assert await ordering is True
            await asyncio.sleep(1.5)
            assert there.level() == "EMERGENCY"
            assert await there.monitor.order("level", "release", "seen")
            await asyncio.sleep(1.5)
            assert here.degradation.describe().latched is None
            assert [each.action for each in here.monitor.describe().orders.values()] == ["release"]
        acts = [(each.action, each.reason) for each in here.told if isinstance(each, OperatorActed)]
        assert acts == [("latch EMERGENCY", "to see"), ("release", "seen")]

    run(main())


def test_an_order_that_the_fleet_did_not_hear_counts_here_and_is_told_again() -> None:
    async def main() -> None:
        world = World()
        here, there = Instance(world), Instance(world)
        async with here.running(), there.running():
            with world.down("sessions"):
                assert await here.monitor.order("breaker:unified", "open", "to see") is False
                await asyncio.sleep(5)
                assert here.mode() == "forced_open"
                assert there.mode() == "automatic"
            await asyncio.sleep(2.5)
            assert there.mode() == "forced_open"
            told = here.of(StoreFinished)
            assert [(each.target, each.error) for each in told if isinstance(each, StoreFinished)] == [
                ("fleet", "store-unavailable"),
                ("fleet", ""),
            ]

    run(main())


def test_an_order_that_makes_no_sense_is_refused_and_told_to_nobody() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world)
        with pytest.raises(InvalidRequest):
            await instance.monitor.order("level", "latch HIGH", "to see")
        assert await world.fleet.orders() == {}
        assert instance.told == []

    run(main())


def test_a_fleet_that_hangs_holds_nothing_up() -> None:
    async def main() -> None:
        world = World()
        world.fleet = ModelledFleet(
            world.clock, Wire("sessions", Constant(3600.0), Streams(0).stream("x"), world.faults)
        )
        instance = Instance(world, pings={"sessions": world.sessions.ping})
        async with instance.running():
            await asyncio.sleep(PING_SECONDS_MAX + 0.01)
            assert instance.score() == 100
            [told] = instance.of(StoreFinished)
            assert isinstance(told, StoreFinished)
            assert told.error == "store-unavailable"
            assert told.seconds == pytest.approx(PING_SECONDS_MAX, abs=1e-6)

    run(main())


@pytest.mark.parametrize("fleet_view", [False, True])
def test_breakers_learn_from_each_other_only_where_the_fleet_view_is_on(fleet_view: bool) -> None:
    async def main() -> None:
        world = World()
        here, there = Instance(world, fleet_view=fleet_view), Instance(world, fleet_view=fleet_view)
        async with here.running(), there.running():
            await asyncio.sleep(0.5)
            for _ in range(9):  # 18 calls each: less than the 20 that a breaker needs, but not so together
                for breaker in (here.breaker, there.breaker):
                    breaker.acquire().success()
                    breaker.acquire().failure(OSError())
            await asyncio.sleep(3)
            assert {here.breaker.state, there.breaker.state} == {"OPEN" if fleet_view else "CLOSED"}
            seen = await world.fleet.share({"unified": Tally()}, window_seconds=30.0)
            assert seen == {"unified": Tally(36, 18, 0) if fleet_view else Tally()}

    run(main())


def test_it_is_started_once_and_leaves_nothing_behind() -> None:
    async def main() -> None:
        instance = Instance(World())
        await instance.monitor.aclose()
        async with instance.running():
            with pytest.raises(AssertionError, match="once"):
                instance.monitor.start()
            assert "health monitor" in {task.get_name() for task in asyncio.all_tasks()}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


def test_calls_from_while_the_fleet_was_away_are_not_told_as_new_ones_later() -> None:
    async def main() -> None:
        world = World()
        instance = Instance(world, fleet_view=True)
        async with instance.running():
            with world.down("sessions"):
                for _ in range(10):
                    await asyncio.sleep(1)
                    instance.breaker.acquire().failure(ProviderFailed("it fails"))
                    instance.breaker.acquire().success()
                    instance.breaker.acquire().success()
                await asyncio.sleep(1)
            instance.breaker.acquire().success()
            await asyncio.sleep(2)
            seen = await world.fleet.share({"unified": Tally()}, window_seconds=30.0)
            assert seen == {"unified": Tally(1)}

    run(main())
