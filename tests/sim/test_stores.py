"""Stores that die: what is refused meanwhile, what is lost, and that the audit finds it."""

import asyncio

import pytest

from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.errors import StoreUnavailable
from orchestra.events import TurnFinished
from orchestra.limits import EMBEDDING_DIMENSIONS
from orchestra.model import Memory, Session, Tally, Turn
from sim.clock import SimClock
from sim.crash import HostEnvironment, HostLoop
from sim.distributions import Constant
from sim.durability import put_back, state_of
from sim.entropy import Stream
from sim.faults import Faults
from sim.journal import Audited, ClientFinished
from sim.loop import run
from sim.scenario import parse
from sim.service_faults import RegionPartition
from sim.store_faults import SLOTS, SlotsFailover, slot_of, slots_down
from sim.stores import PoolModel, Wire
from sim.subscriptions import Subscriptions
from sim.verdict import Status
from sim.ways import Borders, Pool, Way
from sim.world import rehearse

STORY = """
name: small
duration: 30s
workload: {{open_loop: {{rate: 5/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}}}
world:
  provider: {{capacity: 8, first_token: {{exponential: {{mean: 100ms}}}}, per_prompt_token: 0.1ms, per_token: 5ms}}
  stores: {{latency: 2ms, commits: {commits}}}
faults: [{fault}]
expectations: [{{always: accounted}}, {{always: durable}}, {{always: no_defects}}]
"""


def lived(fault: str, commits: str = "synchronous"):
    return rehearse(parse(STORY.format(fault=fault, commits=commits)))


def of(run, kind):
    return [entry for entry in run.journal if isinstance(entry, kind)]


def missing(run) -> int:
    (audited,) = of(run, Audited)
    return audited.missing


def acknowledged_between(run, start: float, end: float) -> int:
    """Return how many turns became durable, or were said to be, in (start, end]: the store's 2 ms before they ended."""
    return sum(not turn.error and start < turn.at - 0.002 <= end for turn in of(run, TurnFinished))


class TestLosses:
    def test_synchronous_commits_survive_a_failover(self):
        run = lived("store_failover: {at: 20s, for: 2s, store: conversations, replica_lag: 1s}")
        assert run.verdict.status is Status.PASSED, run.verdict
        assert set(run.verdict.failures) == {"store-unavailable"}

    def test_asynchronous_ones_are_lost_as_far_as_the_replica_was_behind(self):
        fault = "store_failover: {at: 20s, for: 2s, store: conversations, replica_lag: 1s}"
        run = lived(fault, "asynchronous")
        assert run.verdict.status is Status.FAILED
        (result,) = (each for each in run.verdict.results if not each.held)
        assert result.text == "always durable"
        assert missing(run) == acknowledged_between(run, 19.0, 20.0) > 2
        assert f"{missing(run)} missing" in result.measured

    @pytest.mark.parametrize(("loses", "fails"), [("0", False), ("800ms", True)])
    def test_a_crash_loses_what_it_says_whatever_commits_wait_for(self, loses, fails):
        run = lived(f"store_crash: {{at: 20s, for: 2s, store: conversations, loses: {loses}}}")
        assert run.verdict.status is (Status.FAILED if fails else Status.PASSED), run.verdict
        assert missing(run) == (acknowledged_between(run, 19.2, 20.0) if fails else 0)

    def test_turns_that_the_sessions_store_has_lost_are_unknown_to_the_next_turn(self):
        """Redis does not wait for its replica, so commits of PostgreSQL do not help; at the end nobody can mend it."""
        run = lived("store_failover: {at: 28s, for: 2s, store: sessions, replica_lag: 3s}")
        assert run.verdict.status is Status.FAILED
        assert 0 < missing(run) <= acknowledged_between(run, 25.0, 28.0)

    def test_memories_that_are_lost_are_no_turns(self):
        run = lived("store_crash: {at: 20s, for: 5s, store: memories, loses: 1s}")
        assert run.verdict.status is Status.PASSED, run.verdict

    def test_one_that_loses_since_before_the_start_is_empty(self):
        run = lived("store_crash: {at: 2s, for: 1s, store: conversations, loses: 1h}")
        assert missing(run) == acknowledged_between(run, 0.0, 2.0) > 2


class TestState:
    def test_everything_that_a_store_keeps_is_put_back(self):
        async def main() -> None:
            clock = SimClock(asyncio.get_running_loop())
            sessions, fleet = InProcessSessions(clock), InProcessFleet(clock)
            conversations, memories = InProcessConversations(), InProcessMemories()
            unit = (1.0, *[0.0] * (EMBEDDING_DIMENSIONS - 1))

            async def write(number: int) -> None:
                name = str(number)
                session = Session("s", "user:ada", version=number, created_at=0.0, updated_at=0.0)
                before = None if number == 1 else Session("s", "user:ada", number - 1, created_at=0.0, updated_at=0.0)
                await sessions.save(session, expected=before)
                await conversations.append(Turn(name, "s", number, "c", "m", "r", "e", "m", 0.0), "user:ada")
                await memories.remember(Memory(name, "user:ada", name, unit, 0.0))
                await fleet.share({"unified": Tally(1, 0)}, window_seconds=60)
                await fleet.order(name, "open")

            await write(1)
            kept = [(store, state_of(store)) for store in (sessions, conversations, memories, fleet)]
            await write(2)
            assert len(await conversations.turns("s")) == len(await memories.recall("user:ada", unit, limit=9)) == 2
            for store, state in kept:
                put_back(store, state)
            assert (await sessions.load("s")).version == 1
            assert await conversations.ids("s") == ("1",)
            assert await conversations.find("2") is None
            assert [each.text for each in await memories.recall("user:ada", unit, limit=9)] == ["1"]
            assert await fleet.orders() == {"1": "open"}
            await write(2)

        run(main())


class TestSlots:
    def test_slots_are_those_of_redis(self):
        """The example of the cluster's specification: CRC16 of 123456789 is 0x31C3."""
        assert slot_of("123456789") == 0x31C3 % SLOTS == 12739
        assert slot_of("user1000") == 3443

    def test_shards_divide_the_slots(self):
        shards = [SlotsFailover(at=0, lasts=1, shards=3, shard=number) for number in (1, 2, 3)]
        keys = [f"session-{number}" for number in range(3000)]
        held = [sum(shard.holds(key) for key in keys) for shard in shards]
        assert sum(held) == len(keys)
        assert min(held) > 900
        assert all(sum(shard.holds(key) for shard in shards) == 1 for key in keys)

    def test_only_keys_of_the_shard_are_refused(self):
        faults, fault = Faults(), SlotsFailover(at=0, lasts=1, shards=2, shard=1)
        inside = next(key for key in "abcdef" if fault.holds(key))
        outside = next(key for key in "abcdef" if not fault.holds(key))
        with faults.injected(fault) as injection:
            assert slots_down(faults, inside)
            assert not slots_down(faults, outside)
            assert not slots_down(faults, "")
            assert injection.touched == 1
        assert not slots_down(faults, inside)

    def test_sessions_of_other_shards_do_not_notice(self):
        run = lived("slots_failover: {at: 10s, for: 10s, shards: 4, shard: 1}")
        assert run.verdict.status is Status.PASSED, run.verdict
        during = [each for each in of(run, ClientFinished) if 10 < each.at - each.seconds < 19]
        failed = sum(bool(each.error) for each in during)
        assert 0 < failed < 0.5 * len(during)


def way(faults: Faults, store="sessions", region="home", pool=None, borders=None) -> Way:
    far, chance = Constant(0.1), Stream(0)
    borders = borders or Borders(faults)
    return Way(
        store, Constant(0.01), chance, faults, region=region, home="home", distance=far, borders=borders, pool=pool
    )


def now() -> float:
    return asyncio.get_running_loop().time()


class TestWays:
    def test_an_operation_waits_for_a_connection_and_not_for_ever(self):
        async def main() -> None:
            pooled = way(Faults(), "conversations", pool=Pool(PoolModel(size=1, wait=0.025)))
            ended = await asyncio.gather(*(pooled.cross() for _ in range(4)), return_exceptions=True)
            assert [type(each) for each in ended] == [type(None)] * 3 + [StoreUnavailable]
            assert "no connection to the store became free" in str(ended[3])
            assert now() == pytest.approx(0.03, abs=1e-6)
            await pooled.cross()

        run(main())

    def test_who_gives_up_leaves_its_connection_to_others(self):
        async def main() -> None:
            pooled = way(Faults(), "conversations", pool=Pool(PoolModel(size=1, wait=1.0)))
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.005):
                        await pooled.cross()
            await pooled.cross()

        run(main())

    def test_the_far_region_is_farther(self):
        async def main() -> None:
            await way(Faults()).cross()
            assert now() == pytest.approx(0.01, abs=1e-6)
            await way(Faults(), region="away").cross()
            assert now() == pytest.approx(0.12, abs=1e-6)

        run(main())

    @pytest.mark.parametrize(("operations", "ends"), [("hang", 5.11), ("refuse", 0.0)])
    def test_a_partition_lets_operations_hang_or_refuses_them(self, operations, ends):
        fault = RegionPartition(at=0, lasts=5, between=("home", "away"), operations=operations)

        async def main() -> None:
            faults = Faults()
            borders = Borders(faults)
            near, far = way(faults, borders=borders), way(faults, region="away", borders=borders)
            async with faults.in_force(fault) as injection:
                crossing = asyncio.create_task(far.cross())
                crossing.add_done_callback(lambda _: ended.append(now()))
                await near.cross()
                await asyncio.sleep(5 - now())
            await asyncio.wait((crossing,))
            assert injection.touched == 1
            assert isinstance(crossing.exception(), StoreUnavailable if operations == "refuse" else type(None))

        ended: list[float] = []
        run(main())
        assert ended == [pytest.approx(ends, abs=1e-3)]

    def test_a_pool_that_is_too_small_fails_turns(self):
        text = STORY.format(commits="synchronous", fault="").replace("latency: 2ms", "latency: 300ms, pool: {POOL}")
        small = rehearse(parse(text.replace("POOL", "size: 1, wait: 200ms")))
        ample = rehearse(parse(text.replace("POOL", "size: 50")))
        assert ample.verdict.failures == {}
        assert small.verdict.failures["store-unavailable"] > 5


class TestSubscriptions:
    def test_they_end_with_their_host_and_with_redis_and_are_renewed_by_the_living(self):
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, HostLoop)
            hub = InProcessHub()
            subscriptions = Subscriptions(hub)
            wire = Wire("sessions", Constant(0.0), Stream(0), Faults())
            hosts = [loop.host(name) for name in "abc"]
            relays = [subscriptions.join(host.name, host, wire) for host in hosts]
            heard: list[str] = []
            ends = [
                relay.hear("news", lambda message, name=host.name: heard.append(f"{name} {message.decode()}"))
                for host, relay in zip(hosts, relays, strict=True)
            ]

            async def tell(message: str) -> None:
                relays[0].tell("news", message.encode())
                await asyncio.sleep(1)

            await tell("one")
            hosts[1].crash()
            await tell("two")
            subscriptions.lose("conversations")
            subscriptions.renew("conversations")
            subscriptions.lose("sessions")
            await tell("lost")
            ends[2]()
            subscriptions.renew("sessions")
            await tell("three")
            ends[0]()
            await tell("four")
            assert hub.ears == {}
            return heard

        assert run(main(), env=HostEnvironment()) == ["a one", "b one", "c one", "a two", "c two", "a three"]
