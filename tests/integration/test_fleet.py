"""The fleet's knowledge on a real Redis that dies, hangs and loses replies, and the breakers that do without it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from orchestra.adapters.embedded import start
from orchestra.adapters.fleet import RedisFleet
from orchestra.errors import ConfigurationError, ProviderFailed, StoreUnavailable
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker

KEY = "orchestra:{fleet}:calls:1000000:unified"
WINDOW = 1000.0
NONE = Tally()


@contextlib.asynccontextmanager
async def connected(url, **how):
    fleet = RedisFleet(url, **how)
    try:
        yield fleet
    finally:
        await fleet.aclose()


async def seen(fleet, new=NONE):
    return (await fleet.share({"unified": new}, window_seconds=WINDOW))["unified"]


def test_calls_are_counted_by_the_time_of_redis_and_forgotten_with_their_window(redis_url):
    async def scenario():
        async with connected(redis_url) as fleet, Redis.from_url(redis_url, decode_responses=True) as redis:
            (before, _) = await redis.time()
            await seen(fleet, Tally(10, 4, 2))
            (after, _) = await redis.time()
            counted = await redis.hgetall(KEY)
            buckets = {int(field.partition(":")[0]) for field in counted}
            assert buckets in ({before // 100}, {after // 100})
            assert {field.partition(":")[2]: count for field, count in counted.items()} == {
                "1": "10",
                "2": "4",
                "3": "2",
            }
            assert 990_000 < await redis.pttl(KEY) <= 1_000_000
            await redis.pexpire(KEY, 500_000)
            await seen(fleet)
            assert await redis.pttl(KEY) <= 500_000  # who only asks keeps nothing alive
            await seen(fleet, Tally(1))
            assert await redis.pttl(KEY) > 990_000
            assert await redis.keys() == [KEY]

    asyncio.run(scenario())


def test_buckets_out_of_the_window_are_deleted_also_where_redis_clock_was_set_back(redis_url):
    async def scenario():
        async with connected(redis_url) as fleet, Redis.from_url(redis_url, decode_responses=True) as redis:
            (now, _) = await redis.time()
            fields = {f"{now // 100 + ahead}:1": 1 for ahead in range(-1000, 1001)}
            await redis.hset(KEY, mapping=fields)
            # From nine tenths ago to as many ahead; a tenth that begins meanwhile finds as many.
            assert await seen(fleet) == Tally(19)
            assert await redis.hlen(KEY) == 19

    asyncio.run(scenario())


def test_many_breakers_are_one_round_trip(redis_url):
    async def scenario():
        async with connected(redis_url) as fleet, Redis.from_url(redis_url) as redis:
            before = await _evals(redis)
            await fleet.share({f"b{n}": Tally(1) for n in range(50)}, window_seconds=WINDOW)
            assert await _evals(redis) == before + 1

    asyncio.run(scenario())


async def _evals(redis):
    return (await redis.info("commandstats")).get("cmdstat_eval", {}).get("calls", 0)


def test_an_order_survives_a_restart_of_the_client_and_of_redis(own_stores):
    async def scenario():
        async with connected(own_stores.redis_url) as fleet:
            await fleet.order("unified", "disable")
        async with connected(own_stores.redis_url) as fleet:
            assert await fleet.orders() == {"unified": "disable"}
            redis_server = server(own_stores.data_dir)
            os.kill(redis_server.pid, signal.SIGKILL)
            await asyncio.to_thread(psutil.wait_procs, [redis_server], timeout=10)
            for call in (seen(fleet), fleet.orders(), fleet.order("unified", "reset"), fleet.order("unified", None)):
                with pytest.raises(StoreUnavailable) as outage:
                    await call
                assert outage.value.__cause__ is not None
            again = await asyncio.to_thread(start, own_stores.data_dir)
            try:
                assert await fleet.orders() == {"unified": "disable"}
                assert await seen(fleet, Tally(1)) == Tally(1)
            finally:
                await asyncio.to_thread(again.stop)

    asyncio.run(scenario())


def test_a_redis_that_hangs_makes_nobody_hang_and_wakes_up_to_no_flood(own_stores):
    async def scenario():
        async with connected(own_stores.redis_url, seconds_max=0.1) as fleet:
            await seen(fleet, Tally(1))
            hung = server(own_stores.data_dir)
            hung.suspend()
            try:
                async with asyncio.timeout(30):  # 20 in turn, 10 at once: 3 s and what a busy machine adds
                    for _ in range(20):
                        with pytest.raises(StoreUnavailable):
                            await seen(fleet, Tally(100))
                    outcomes = await asyncio.gather(*(fleet.orders() for _ in range(10)), return_exceptions=True)
                    assert [type(each) for each in outcomes] == [StoreUnavailable] * 10
            finally:
                hung.resume()
            # Of 2000 calls told meanwhile, only those of the share that was on its way then may have been counted.
        async with connected(own_stores.redis_url, seconds_max=10) as fleet:
            assert await seen(fleet) in (Tally(1), Tally(101))

    asyncio.run(scenario())


def test_a_caller_that_gives_up_leaves_no_reply_to_the_next(own_stores):
    async def scenario():
        async with connected(own_stores.redis_url, seconds_max=10) as fleet:
            await fleet.order("unified", "disable")
            hung = server(own_stores.data_dir)
            hung.suspend()
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await fleet.orders()
            finally:
                hung.resume()
            assert await seen(fleet, Tally(3, 2, 1)) == Tally(3, 2, 1)
            assert await fleet.orders() == {"unified": "disable"}

    asyncio.run(scenario())


def test_a_connection_that_was_cut_while_idle_is_replaced_unnoticed(redis_url):
    async def scenario():
        async with connected(redis_url) as fleet, Redis.from_url(redis_url) as redis:
            for n in range(1, 11):
                assert await seen(fleet, Tally(1)) == Tally(n)
                await redis.client_kill_filter(_type="normal", skipme=True)
                await redis.ping()

    asyncio.run(scenario())


def test_a_share_whose_reply_is_lost_is_counted_once(redis_url, tmp_path):
    redis_path, _, database = redis_url.removeprefix("unix://").partition("?")

    async def lose_first_share(reader, writer):
        """Pass bytes on; cut the connection in place of the reply to a script."""
        redis_reader, redis_writer = await asyncio.open_unix_connection(redis_path)
        asked = b""

        async def forward():
            nonlocal asked
            while data := await reader.read(65536):
                asked = data
                redis_writer.write(data)
            redis_writer.close()

        forwarding = asyncio.create_task(forward())
        while data := await redis_reader.read(65536):
            if b"EVAL" in asked:
                lost.append(data)
                break
            writer.write(data)
        forwarding.cancel()
        redis_writer.close()
        writer.close()

    lost = []

    async def scenario():
        line = await asyncio.start_unix_server(lose_first_share, str(tmp_path / "lossy"))
        async with line, connected(f"unix://{tmp_path / 'lossy'}?{database}") as lossy, connected(redis_url) as fleet:
            with pytest.raises(StoreUnavailable):
                await seen(lossy, Tally(3, 2, 1))
            assert len(lost) == 1
            assert await seen(fleet) == Tally(3, 2, 1)

    asyncio.run(scenario())


def test_what_somebody_else_wrote_there_is_an_outage_and_no_crash(redis_url):
    async def scenario():
        async with connected(redis_url) as fleet, Redis.from_url(redis_url) as redis:
            await redis.set("orchestra:{fleet}:orders", "text")
            for call in (fleet.orders(), fleet.order("unified", "disable"), fleet.order("unified", None)):
                with pytest.raises(StoreUnavailable):
                    await call
            await redis.hset(KEY, mapping={"field": "odd"})
            with pytest.raises(StoreUnavailable):
                await seen(fleet, Tally(1))
            await redis.flushdb()
            await redis.hset("orchestra:{fleet}:orders", mapping={"unified": b"\xff"})
            assert await fleet.orders() == {"unified": "\ufffd"}
            assert await seen(fleet, Tally(1)) == Tally(1)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["", "nonsense", "http://localhost", "redis://localhost:port"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigurationError) as refusal:
        RedisFleet(url)
    assert refusal.value.field == "redis_url"


def test_a_closed_fleet_refuses(redis_url):
    async def scenario():
        fleet = RedisFleet(redis_url)
        await fleet.orders()
        await fleet.aclose()
        await fleet.aclose()
        with pytest.raises(StoreUnavailable, match="shutting down"):
            await fleet.orders()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


class Instance:
    """A breaker of one instance at a time that its test sets, and all that it tells."""

    POLICY = BreakerPolicy(
        failures_max=100,
        failure_rate_max=0.5,
        calls_min=20,
        window_seconds=WINDOW,
        open_seconds=5,
        open_jitter=0,
        successes_min=1,
    )

    def __init__(self):
        self.time = 0.0
        self.told = []
        self.breaker = Breaker("unified", self.POLICY, lambda: self.time, self.told.append, lambda: 0.5)

    def call(self, *, failures=0, successes=0):
        for _ in range(failures):
            self.breaker.acquire().failure(ProviderFailed("it fails"))
        for _ in range(successes):
            self.breaker.acquire().success()

    async def exchange(self, fleet):
        """Do what the health monitor does each interval."""
        tallies = {"unified": self.breaker.take_tally()}
        self.breaker.learn((await fleet.share(tallies, window_seconds=WINDOW))["unified"])


def test_instances_that_each_see_too_few_calls_trip_together(redis_url):
    async def scenario():
        async with connected(redis_url) as ours, connected(redis_url) as theirs:
            one, other, third = Instance(), Instance(), Instance()
            one.call(failures=8, successes=4)
            other.call(failures=6, successes=2)
            await one.exchange(ours)
            assert one.breaker.state == "CLOSED"  # 12 calls of at least 20
            await other.exchange(theirs)
            assert other.breaker.state == "OPEN"  # 20 calls, 14 of them failed
            await one.exchange(ours)
            await third.exchange(theirs)  # which has not called at all
            assert [each.breaker.state for each in (one, other, third)] == ["OPEN"] * 3
            for each in (one, other, third):
                [change] = each.told
                assert "in the whole fleet" in change.reason

    asyncio.run(scenario())


def test_a_fleet_below_its_limit_trips_no_breaker(redis_url):
    async def scenario():
        async with connected(redis_url) as ours, connected(redis_url) as theirs:
            one, other = Instance(), Instance()
            one.call(failures=9, successes=1)
            other.call(successes=10)
            for _ in range(3):  # asking again counts nothing again
                await one.exchange(ours)
                await other.exchange(theirs)
            assert (one.breaker.state, other.breaker.state) == ("CLOSED", "CLOSED")  # 9 of 20 failed

    asyncio.run(scenario())


STORY = [  # what happens between two exchanges: how much later, and with which calls
    (0, {"failures": 9, "successes": 10}),
    (1, {"successes": 1}),
    (1, {"failures": 2}),  # 11 of 22: it opens
    (4, {}),
    (2, {"failures": 1}),  # a probe: it opens again, for 10 s
    (9, {}),
    (2, {"successes": 1}),  # a probe: it closes
    (1, {"failures": 3, "successes": 5}),
    (2000, {"failures": 1}),
]


@pytest.mark.parametrize("outage", ["killed", "hanging"])
def test_without_redis_a_breaker_is_exactly_what_it_is_alone(own_stores, outage):
    async def scenario():
        alone, one, other = Instance(), Instance(), Instance()
        async with (
            connected(own_stores.redis_url, seconds_max=0.05) as ours,
            connected(own_stores.redis_url, seconds_max=0.05) as theirs,
            broken(server(own_stores.data_dir), outage),
        ):
            for seconds, calls in STORY:
                for each in (alone, one, other):
                    each.time += seconds
                    each.call(**calls)
                for each, fleet in ((one, ours), (other, theirs)):
                    with pytest.raises(StoreUnavailable):
                        await each.exchange(fleet)
                assert one.breaker.describe() == other.breaker.describe() == alone.breaker.describe()
            assert one.told == other.told == alone.told
            assert [change.after for change in alone.told] == ["OPEN", "HALF_OPEN", "OPEN", "HALF_OPEN", "CLOSED"]

    asyncio.run(scenario())


def test_calls_go_on_while_an_exchange_hangs(own_stores):
    async def scenario():
        async with (
            connected(own_stores.redis_url, seconds_max=600) as fleet,
            broken(server(own_stores.data_dir), "hanging"),
        ):
            instance = Instance()
            exchange = asyncio.create_task(instance.exchange(fleet))
            for _ in range(100):
                await instance.breaker.call(asyncio.sleep, 0)
            assert instance.breaker.describe().calls == 100
            assert not exchange.done()
            exchange.cancel()
            await asyncio.wait([exchange])

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def broken(redis_server, outage):
    if outage == "killed":
        os.kill(redis_server.pid, signal.SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, [redis_server], timeout=10)
        yield
    else:
        redis_server.suspend()
        try:
            yield
        finally:
            redis_server.resume()


def server(data_dir: Path) -> psutil.Process:
    [pid_file] = (data_dir / "redis").glob("*.pid")
    return psutil.Process(int(pid_file.read_text()))
