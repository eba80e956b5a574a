"""Gradient2 against numbers computed by hand, and in a small simulated queue."""

import asyncio
from math import inf, nan

import pytest

from orchestra.policies import BulkheadPolicy
from orchestra.resilience.bulkhead import Bulkhead
from orchestra.resilience.gradient import Gradient2, Windowed
from sim.loop import run


def exact(limit: Gradient2) -> float:
    return limit._estimate


def usual(limit: Gradient2) -> float:
    return limit._usual_seconds


def warm(limit: Gradient2, seconds: float = 1.0) -> Gradient2:
    """Tell it what is usual, by so few callers that it does not move."""
    for _ in range(10):
        limit.sample(seconds, 0, False)
    return limit


# --- one update ------------------------------------------------------------------------------------------------------


def test_it_starts_where_it_is_told() -> None:
    assert Gradient2(20, 8, 200).limit == 20


@pytest.mark.parametrize(("initial", "lowest", "highest"), [(1, 1, 1), (8, 8, 9), (9, 8, 9)])
def test_the_bounds_themselves_are_within_bounds(initial: int, lowest: int, highest: int) -> None:
    assert Gradient2(initial, lowest, highest).limit == initial


@pytest.mark.parametrize(("initial", "lowest", "highest"), [(1, 0, 1), (7, 8, 9), (10, 8, 9), (8, 8, 7)])
def test_impossible_bounds_are_a_defect(initial: int, lowest: int, highest: int) -> None:
    with pytest.raises(AssertionError, match=rf"\({initial}|{lowest}, {initial}, {highest}"):
        Gradient2(initial, lowest, highest)


@pytest.mark.parametrize("seconds", [-0.001, inf, nan])
def test_a_time_that_no_clock_gives_is_a_defect(seconds: float) -> None:
    with pytest.raises(AssertionError, match=str(seconds)):
        Gradient2(20, 8, 200).sample(seconds, 20, False)


def test_usual_times_grow_it_by_a_fifth_of_the_queue() -> None:
    limit = warm(Gradient2(20, 8, 200))
    limit.sample(1.0, 20, False)  # 20 * 0.8 + (20 * 1 + 4) * 0.2
    assert exact(limit) == pytest.approx(20.8)
    assert limit.limit == 20
    limit.sample(1.0, 20, False)
    assert exact(limit) == pytest.approx(21.6)
    assert limit.limit == 21


def test_quicker_times_grow_it_no_faster() -> None:
    limit = warm(Gradient2(20, 8, 200))
    limit.sample(0.9, 20, False)
    assert exact(limit) == pytest.approx(20.8)


def test_twice_as_slow_shrinks_it_by_the_ratio_that_is_not_tolerated() -> None:
    limit = warm(Gradient2(100, 8, 200))
    limit.sample(2.0, 100, False)
    average = 1 + 2 / 601 * (2 - 1)
    assert usual(limit) == pytest.approx(average)
    assert exact(limit) == pytest.approx(100 * 0.8 + (100 * 1.5 * average / 2 + 4) * 0.2)


def test_half_as_slow_again_is_tolerated() -> None:
    limit = warm(Gradient2(100, 8, 200))
    limit.sample(1.5, 100, False)  # the average has moved a little up, too
    assert exact(limit) == pytest.approx(100.8)


def test_a_little_over_the_tolerance_shrinks_it() -> None:
    limit = warm(Gradient2(100, 8, 200))
    limit.sample(1.6, 100, False)
    average = 1 + 2 / 601 * 0.6
    assert exact(limit) == pytest.approx(80 + (150 * average / 1.6 + 4) * 0.2)


def test_an_outlier_halves_it_at_most() -> None:
    limit = warm(Gradient2(100, 8, 200))
    limit.sample(60.0, 100, False)
    assert exact(limit) == pytest.approx(100 * 0.8 + (50 + 4) * 0.2)


def test_it_stays_within_its_bounds() -> None:
    limit = warm(Gradient2(20, 18, 21))
    for _ in range(3):
        limit.sample(1.0, 21, False)
    assert exact(limit) == 21
    assert limit.limit == 21
    for _ in range(3):
        limit.sample(1.0, 21, True)
    assert exact(limit) == 18
    assert limit.limit == 18


def test_less_than_half_in_use_leaves_it_alone_and_half_moves_it() -> None:
    limit = warm(Gradient2(20, 8, 200))
    limit.sample(1.0, 9, False)
    limit.sample(9.0, 9, False)
    assert exact(limit) == 20
    assert usual(limit) > 1.02  # it has learnt, though
    limit.sample(1.0, 10, False)
    assert exact(limit) == pytest.approx(20.8)


def test_a_drop_shrinks_it_by_a_tenth_whatever_its_time_and_however_few_run() -> None:
    limit = warm(Gradient2(100, 8, 200))
    limit.sample(0.001, 1, True)
    assert exact(limit) == pytest.approx(100 * 0.8 + 50 * 0.2)
    assert usual(limit) == 1.0  # a refusal is quick, and would spoil what is usual


def test_calls_that_take_no_time_at_all_only_grow_it() -> None:
    limit = Gradient2(20, 8, 200)
    limit.sample(0.0, 20, False)
    assert exact(limit) == pytest.approx(20.8)


# --- what is usual ---------------------------------------------------------------------------------------------------


def test_the_first_ten_have_equal_weight() -> None:
    limit = Gradient2(20, 8, 200)
    for count in range(1, 11):
        limit.sample(float(count), 0, False)
        assert usual(limit) == pytest.approx((count + 1) / 2)
    limit.sample(11.0, 0, False)
    assert usual(limit) == pytest.approx(5.5 + 2 / 601 * 5.5)


def test_a_slow_spell_is_forgotten_by_a_tenth_a_sample() -> None:
    limit = warm(Gradient2(20, 8, 200), seconds=4.0)
    limit.sample(1.0, 0, False)
    assert usual(limit) == pytest.approx((4 - 3 * 2 / 601) * 0.9)


def test_it_is_forgotten_only_above_twice_the_present_time() -> None:
    limit = Gradient2(20, 8, 200)
    limit.sample(3.0, 0, False)
    limit.sample(1.0, 0, False)  # the average, 2, is just twice of it
    assert usual(limit) == 2.0
    limit.sample(0.5, 0, False)  # 1.5 is not
    assert usual(limit) == pytest.approx(1.5 * 0.9)


def test_a_gradient_uses_the_average_before_it_is_forgotten() -> None:
    limit = Gradient2(100, 8, 200)
    limit.sample(3.1, 0, False)
    limit.sample(1.0, 100, False)
    assert usual(limit) == pytest.approx(2.05 * 0.9)
    assert exact(limit) == pytest.approx(100.8)


# --- windows ---------------------------------------------------------------------------------------------------------


class Desk:
    """A windowed limit with a clock to turn."""

    def __init__(self) -> None:
        self.now = 50.0
        self.gradient = Gradient2(100, 8, 200)
        self.windowed = Windowed(self.gradient, lambda: self.now)

    def feed(self, times: int, seconds: float = 1.0, inflight: int = 100, dropped: bool = False) -> int:
        for _ in range(times):
            self.windowed.sample(seconds, inflight, dropped)
        return self.windowed.limit


def test_the_first_window_ends_with_its_tenth_call() -> None:
    desk = Desk()
    desk.feed(9)
    assert exact(desk.gradient) == 100
    desk.feed(1)
    assert exact(desk.gradient) == pytest.approx(100.8)


def test_the_next_lasts_a_second_and_ten_calls() -> None:
    desk = Desk()
    desk.feed(10)
    desk.now += 0.999
    desk.feed(30)
    assert exact(desk.gradient) == pytest.approx(100.8)
    desk.now += 0.001
    desk.feed(1)
    assert exact(desk.gradient) == pytest.approx(101.6)
    desk.now += 5.0
    desk.feed(9)
    assert exact(desk.gradient) == pytest.approx(101.6)
    assert desk.feed(1) == 102
    desk.now += 0.5  # counted from the end of the last window, not from when that could have ended
    assert desk.feed(10) == 102


def test_it_gives_the_mean_time_and_the_peak() -> None:
    desk = Desk()
    desk.feed(9, seconds=1.0, inflight=20)
    desk.feed(1, seconds=3.0, inflight=50)
    assert usual(desk.gradient) == pytest.approx(1.2)
    assert exact(desk.gradient) == pytest.approx(100.8)  # 50 is half in use, 20 would not be
    desk.now += 1.0
    desk.feed(10, seconds=2.0, inflight=49)  # nothing of the last window is left
    assert usual(desk.gradient) == pytest.approx(1.6)
    assert exact(desk.gradient) == pytest.approx(100.8)


def test_the_peak_may_come_first() -> None:
    desk = Desk()
    desk.feed(1, inflight=50)
    desk.feed(9, inflight=20)
    assert exact(desk.gradient) == pytest.approx(100.8)


@pytest.mark.parametrize("before", [0, 9])
def test_one_drop_makes_a_window_dropped_and_no_more_than_one(before: int) -> None:
    desk = Desk()
    desk.feed(before)
    desk.feed(1, dropped=True)
    assert desk.feed(9 - before) == 90
    desk.now += 1.0
    desk.feed(10)
    assert exact(desk.gradient) == pytest.approx(90.8)


# --- in a queue: a dependency that works on so many calls at once, the rest queue there ------------------------------


async def lived(callers: int, slowdown: float) -> dict[str, list[int]]:
    """Return the limits seen before, in and after a slow spell of a dependency with room for 40 calls of 0.1 s."""
    loop = asyncio.get_running_loop()
    policy = BulkheadPolicy(limit="gradient2", concurrent_min=4, concurrent_max=100, wait_seconds_max=60)
    bulkhead = Bulkhead("unified", policy, loop.time)
    room = asyncio.Semaphore(40)
    pace = 0.1
    phase = "before"
    seen: dict[str, list[int]] = {"before": [], "during": [], "after": []}

    async def client() -> None:
        while phase:
            await bulkhead.acquire()
            began = loop.time()
            async with room:
                await asyncio.sleep(pace)
            bulkhead.release(loop.time() - began)
            seen[phase or "after"].append(bulkhead.describe().limit)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(client())
        await asyncio.sleep(60)
        phase, pace = "during", 0.1 * slowdown
        await asyncio.sleep(30)
        phase, pace = "after", 0.1
        await asyncio.sleep(60)
        phase = ""
    assert bulkhead.describe().running == 0
    return seen


def test_under_a_slowdown_the_limit_falls_and_recovers_afterwards() -> None:
    seen = run(lived(callers=120, slowdown=8.0))
    assert seen["before"][-1] > 50  # it found the room, and a queue that is tolerated
    assert min(seen["during"]) < 20
    assert seen["after"][-1] > 50
    everything = seen["before"] + seen["during"] + seen["after"]
    assert min(everything) >= 4
    assert max(everything) <= 100


def test_without_callers_to_try_it_the_limit_stays_where_it_is() -> None:
    seen = run(lived(callers=5, slowdown=8.0))
    assert set(seen["before"] + seen["during"] + seen["after"]) == {20}
