"""The bulkhead's rules one by one; `tests/property/test_bulkhead.py` drives it through all orders of events."""

import asyncio
from math import inf

import pytest

from orchestra.errors import BulkheadFull, Overloaded
from orchestra.policies import BulkheadPolicy
from orchestra.resilience.bulkhead import Bulkhead, BulkheadStatus, WaitCut
from sim.loop import SimLoop, run

TICK = 1e-6  # more than a timer is late


def fixed(slots: int, queue: int = 10, wait_seconds: float = 2.0) -> BulkheadPolicy:
    return BulkheadPolicy(concurrent_max=slots, queue_max=queue, wait_seconds_max=wait_seconds)


def adaptive(lowest: int, highest: int) -> BulkheadPolicy:
    return BulkheadPolicy(limit="gradient2", concurrent_min=lowest, concurrent_max=highest)


class Bench:
    """A bulkhead in virtual time, whose callers are told apart by their names."""

    def __init__(self, policy: BulkheadPolicy) -> None:
        self.loop = asyncio.get_running_loop()
        self.bulkhead = Bulkhead("unified", policy, self.loop.time)
        self.admitted: list[str] = []

    def begin(self, name: str, until: float = inf) -> asyncio.Task[None]:
        async def call() -> None:
            await self.bulkhead.acquire(until)
            self.admitted.append(name)

        return self.loop.create_task(call())

    async def begun(self, names: str) -> list[asyncio.Task[None]]:
        tasks = [self.begin(name) for name in names]
        await asyncio.sleep(0)
        return tasks

    @property
    def counts(self) -> tuple[int, int]:
        status = self.bulkhead.describe()
        return status.running, status.waiting


async def soon() -> None:
    """Let everything happen that is due."""
    for _ in range(5):
        await asyncio.sleep(0)


def timers() -> int:
    """Count what would wake the loop later."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return sum(not timer.cancelled() for _, _, timer in loop._timers)


# --- slots -----------------------------------------------------------------------------------------------------------


def test_it_gives_as_many_slots_as_there_are() -> None:
    bulkhead = Bulkhead("unified", fixed(2), lambda: 0.0)
    assert [bulkhead.try_acquire() for _ in range(3)] == [True, True, False]
    bulkhead.release()
    assert [bulkhead.try_acquire() for _ in range(2)] == [True, False]


def test_it_describes_itself() -> None:
    async def main() -> None:
        bench = Bench(fixed(2, queue=2))
        assert bench.bulkhead.describe() == BulkheadStatus(
            "unified", running=0, waiting=0, limit=2, saturation=0.0, refused=0
        )
        await bench.begun("a")
        assert bench.bulkhead.describe() == BulkheadStatus("unified", running=1, waiting=0, limit=2, saturation=0.25)
        tasks = await bench.begun("bcd")
        assert bench.bulkhead.describe() == BulkheadStatus("unified", running=2, waiting=2, limit=2, saturation=1.0)
        for task in tasks:
            task.cancel()

    run(main())


def test_a_free_slot_is_taken_without_a_wait_even_past_the_deadline() -> None:
    bulkhead = Bulkhead("unified", fixed(1, queue=0, wait_seconds=0), lambda: 10.0)
    with pytest.raises(StopIteration):
        bulkhead.acquire(until=5.0).send(None)
    assert bulkhead.describe().running == 1


def test_a_slot_that_nobody_held_cannot_be_given_back() -> None:
    bulkhead = Bulkhead("unified", fixed(1), lambda: 0.0)
    with pytest.raises(AssertionError, match="unified: a slot was given back that nobody held"):
        bulkhead.release()
    assert bulkhead.describe().running == 0


# --- the queue -------------------------------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    async def main() -> None:
        bench = Bench(fixed(2))
        await bench.begun("abcde")
        assert bench.admitted == ["a", "b"]
        bench.bulkhead.release()
        assert bench.counts == (2, 2)  # handed over in the same step
        assert not bench.bulkhead.try_acquire()
        await soon()
        assert bench.admitted == ["a", "b", "c"]
        bench.bulkhead.release()
        bench.bulkhead.release()
        await soon()
        assert bench.admitted == ["a", "b", "c", "d", "e"]
        assert bench.counts == (2, 0)
        assert timers() == 0

    run(main())


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, queue=2, wait_seconds=2.5))
        await bench.begun("abc")
        with pytest.raises(BulkheadFull) as first:
            await bench.bulkhead.acquire()
        assert bench.loop.time() == 0
        assert first.value.detail == (
            "unified has 1 calls under way and 2 waiting, and no more may wait: try again in 2.5 s"
        )
        assert first.value.retry_after_seconds == 2.5
        assert type(first.value) is BulkheadFull
        with pytest.raises(BulkheadFull) as second:
            await bench.bulkhead.acquire()
        assert second.value is not first.value
        assert bench.counts == (1, 2)
        assert bench.bulkhead.describe().refused == 2
        bench.bulkhead.release()
        bench.bulkhead.release()
        await soon()
        assert bench.admitted == ["a", "b", "c"]

    run(main())


def test_nobody_waits_where_nobody_may() -> None:
    async def main() -> None:
        for policy in (fixed(1, queue=0), fixed(1, wait_seconds=0)):
            bench = Bench(policy)
            await bench.bulkhead.acquire()
            with pytest.raises(BulkheadFull) as refusal:
                await bench.bulkhead.acquire()
            assert type(refusal.value) is BulkheadFull
            assert refusal.value.retry_after_seconds == max(1.0, policy.wait_seconds_max)
            assert bench.loop.time() == 0

    run(main())


def test_a_wait_that_is_over_is_refused() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, wait_seconds=1.5))
        await bench.bulkhead.acquire()
        await asyncio.sleep(10)
        late = bench.begin("late")
        await asyncio.sleep(1.5 - TICK)
        assert bench.counts == (1, 1)
        await asyncio.sleep(2 * TICK)
        assert bench.counts == (1, 0)
        with pytest.raises(BulkheadFull) as refusal:
            await late
        assert refusal.value.detail == (
            "unified has 1 calls under way and 0 waiting, and none came free within 1.5 s: try again in 1.5 s"
        )
        assert type(refusal.value) is BulkheadFull
        assert bench.bulkhead.describe().refused == 1
        assert timers() == 0
        bench.bulkhead.release()
        assert bench.bulkhead.try_acquire()

    run(main())


def test_a_deadline_cuts_the_wait_and_says_so() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, wait_seconds=1.5))
        await bench.bulkhead.acquire()
        await asyncio.sleep(10)
        late = bench.begin("late", until=10.5)
        await asyncio.sleep(0.5 - TICK)
        assert bench.counts == (1, 1)
        await asyncio.sleep(2 * TICK)
        assert bench.counts == (1, 0)
        with pytest.raises(WaitCut) as refusal:
            await late
        assert refusal.value.detail == (
            "unified has 1 calls under way and 0 waiting, and the caller's deadline leaves no time to wait longer: "
            "try again in 1.5 s"
        )
        assert isinstance(refusal.value, Overloaded)
        assert refusal.value.kind == "bulkhead-full"
        for over in (10.0, bench.loop.time()):
            with pytest.raises(WaitCut):
                await bench.bulkhead.acquire(until=over)
        assert bench.bulkhead.describe().refused == 0, "that is the caller's doing"

    run(main())


def test_a_deadline_that_is_no_sooner_than_patience_is_not_to_blame() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, wait_seconds=1.5))
        await bench.bulkhead.acquire()
        for until in (1.5, 4.5):
            with pytest.raises(BulkheadFull) as refusal:
                await bench.bulkhead.acquire(bench.loop.time() + 1.5 if until == 1.5 else until)
            assert type(refusal.value) is BulkheadFull

    run(main())


def test_who_has_waited_in_vain_stands_in_nobodys_way() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, wait_seconds=2.0))
        await bench.begun("a")
        impatient = bench.begin("b", until=0.5)
        bench.begin("c")
        await asyncio.sleep(1.0)
        assert isinstance(impatient.exception(), WaitCut)
        bench.bulkhead.release()
        await soon()
        assert bench.admitted == ["a", "c"]

    run(main())


# --- cancellation ----------------------------------------------------------------------------------------------------


def test_a_cancelled_waiter_leaves_the_queue() -> None:
    async def main() -> None:
        bench = Bench(fixed(1))
        _, b, _ = await bench.begun("abc")
        b.cancel()
        await soon()
        assert bench.counts == (1, 1)
        assert b.cancelled()
        assert timers() == 1
        bench.bulkhead.release()
        await soon()
        assert bench.admitted == ["a", "c"]
        bench.bulkhead.release()
        assert bench.counts == (0, 0)
        assert timers() == 0

    run(main())


def test_a_waiter_cancelled_in_the_tick_that_gave_it_a_slot_hands_it_on() -> None:
    async def main() -> None:
        bench = Bench(fixed(1))
        _, b, _ = await bench.begun("abc")
        bench.bulkhead.release()
        b.cancel()
        assert bench.counts == (1, 1)
        await soon()
        assert b.cancelled()
        assert bench.admitted == ["a", "c"]
        assert bench.counts == (1, 0)

    run(main())


def test_a_slot_goes_past_a_waiter_cancelled_just_before() -> None:
    async def main() -> None:
        bench = Bench(fixed(1))
        _, b, _ = await bench.begun("abc")
        b.cancel()
        bench.bulkhead.release()
        await soon()
        assert b.cancelled()
        assert bench.admitted == ["a", "c"]
        assert bench.counts == (1, 0)

    run(main())


def test_with_nobody_left_to_take_it_the_slot_is_free() -> None:
    async def main() -> None:
        for release_first in (True, False):
            bench = Bench(fixed(1))
            _, b = await bench.begun("ab")
            if release_first:
                bench.bulkhead.release()
            b.cancel()
            if not release_first:
                bench.bulkhead.release()
            await soon()
            assert bench.counts == (0, 0)
            assert bench.bulkhead.try_acquire()

    run(main())


def test_a_waiter_cancelled_as_its_wait_is_over_holds_nothing() -> None:
    async def main() -> None:
        bench = Bench(fixed(1, wait_seconds=1.0))
        await bench.bulkhead.acquire()
        waiter = bench.begin("b")
        bench.loop.call_at(1.0, waiter.cancel)  # its timer is the later of the two
        await asyncio.sleep(1.1)
        assert waiter.cancelled()
        assert bench.counts == (1, 0)
        late = bench.begin("c")
        await asyncio.sleep(0)
        bench.loop.call_at(2.1, late.cancel)  # and here the earlier
        await asyncio.sleep(1.1)
        assert late.cancelled()
        assert bench.counts == (1, 0)
        bench.bulkhead.release()
        assert bench.counts == (0, 0)

    run(main())


def test_a_coroutine_that_is_closed_leaves_the_queue_and_hands_on() -> None:
    async def main() -> None:
        bench = Bench(fixed(1))
        await bench.bulkhead.acquire()
        pending, given = bench.bulkhead.acquire(), bench.bulkhead.acquire()
        pending.send(None)
        given.send(None)
        pending.close()
        assert bench.counts == (1, 1)
        bench.bulkhead.release()
        assert bench.counts == (1, 0)
        given.close()
        assert bench.counts == (0, 0)
        assert timers() == 0

    run(main())


# --- an adaptive limit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lowest", "highest", "initial"), [(8, 256, 20), (30, 256, 30), (1, 5, 5), (20, 20, 20)])
def test_an_adaptive_limit_starts_at_twenty_where_its_bounds_allow(lowest: int, highest: int, initial: int) -> None:
    bulkhead = Bulkhead("unified", adaptive(lowest, highest), lambda: 0.0)
    assert bulkhead.describe().limit == initial


def test_a_fixed_limit_learns_nothing() -> None:
    bulkhead = Bulkhead("unified", fixed(3), lambda: 0.0)
    for _ in range(20):
        assert bulkhead.try_acquire()
        bulkhead.release(1.0, dropped=True)
    assert bulkhead.describe().limit == 3


class Adaptive:
    """An adaptive bulkhead of 4 to 22, all of its first 20 slots taken, with a clock to turn."""

    def __init__(self, policy: BulkheadPolicy) -> None:
        self.now = 0.0
        self.bulkhead = Bulkhead("unified", policy, lambda: self.now)
        self.take()

    def take(self) -> None:
        while self.bulkhead.try_acquire():
            pass

    def again(self, times: int, seconds: float | None = 1.0, *, dropped: bool = False) -> int:
        """Let calls end and others begin in their place; return the limit."""
        for _ in range(times):
            self.bulkhead.release(seconds, dropped=dropped)
            self.take()
        return self.bulkhead.describe().limit


def test_calls_that_end_move_it() -> None:
    bench = Adaptive(adaptive(4, 22))
    bench.again(10)
    bench.now += 1.0
    assert bench.again(10) == 21
    assert bench.bulkhead.describe().running == 21


def test_drops_shrink_it_and_no_slot_is_revoked() -> None:
    bench = Adaptive(adaptive(4, 22))
    assert bench.again(10, dropped=True) == 18
    status = bench.bulkhead.describe()
    assert (status.running, status.waiting, status.limit) == (19, 0, 18)
    assert status.saturation == 19 / (18 + BulkheadPolicy().queue_max)
    assert not bench.bulkhead.try_acquire()
    bench.bulkhead.release()
    assert not bench.bulkhead.try_acquire()
    bench.bulkhead.release()
    assert bench.bulkhead.try_acquire()
    assert not bench.bulkhead.try_acquire()


def test_a_shrunk_one_is_no_more_than_full() -> None:
    bench = Adaptive(BulkheadPolicy(limit="gradient2", concurrent_min=4, concurrent_max=22, queue_max=0))
    bench.again(10, dropped=True)
    status = bench.bulkhead.describe()
    assert (status.running, status.limit, status.saturation) == (19, 18, 1.0)


def test_calls_without_a_time_are_no_samples() -> None:
    bench = Adaptive(adaptive(4, 22))
    assert bench.again(9) == 20
    assert bench.again(20, seconds=None, dropped=True) == 20
    assert bench.again(1, dropped=True) == 18


def test_the_calls_under_way_count_the_one_that_ends() -> None:
    bench = Adaptive(adaptive(4, 22))
    while bench.bulkhead.describe().running > 10:
        bench.bulkhead.release()
    for _ in range(10):
        bench.bulkhead.release(1.0)  # 10 is half of 20: it may grow
        bench.bulkhead.try_acquire()
    bench.now += 1.0
    for _ in range(10):
        bench.bulkhead.release(1.0)  # 10 is less than half of 20.8
        bench.bulkhead.try_acquire()
    assert bench.bulkhead._adaptive is not None
    assert bench.bulkhead._adaptive._limit._estimate == pytest.approx(20.8)


def test_waiters_are_let_in_as_it_grows_and_not_before_a_shrunk_one_has_room() -> None:
    async def main() -> None:
        bench = Bench(adaptive(4, 22))
        while bench.bulkhead.try_acquire():
            pass
        await bench.begun("abcd")
        for _ in range(10):
            bench.bulkhead.release(1.0)
            assert bench.bulkhead.describe().running == 20 or bench.counts[1] == 0
            bench.bulkhead.try_acquire()
        await soon()
        assert bench.admitted == ["a", "b", "c", "d"]
        await bench.begun("efgh")
        await asyncio.sleep(1.0)
        for _ in range(9):
            bench.bulkhead.release(1.0)
            await bench.begun("-")
        assert bench.counts == (20, 4)
        bench.bulkhead.release(1.0)  # the window ends, and the limit is 21: one slot given back lets two in
        assert bench.counts == (21, 2)
        await asyncio.sleep(1.0)
        for _ in range(10):
            bench.bulkhead.release(1.0, dropped=True)
            await bench.begun("-")
        status = bench.bulkhead.describe()
        assert (status.limit, status.running) == (19, 20)  # 21.6 less a tenth; one too many is still under way
        waiting = status.waiting
        bench.bulkhead.release()
        assert bench.counts == (19, waiting)
        bench.bulkhead.release()
        assert bench.counts == (19, waiting - 1)

    run(main())
