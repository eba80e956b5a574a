"""The composed guard, in virtual time: order of the policies, deadlines, retries, and that nothing is left behind."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from orchestra.errors import (
    BreakerOpen,
    BulkheadFull,
    DeadlineExceeded,
    DeadlineShortened,
    InvalidRequest,
    OrchestraError,
    ProviderFailed,
    ProviderOverloaded,
)
from orchestra.events import BreakerChanged, CallFinished, CallHedged, CallRetried, Event
from orchestra.policies import GuardPolicies, GuardPolicy
from orchestra.resilience.bulkhead import WaitCut
from orchestra.resilience.deadline import deadline_within
from orchestra.resilience.guard import Guard
from sim import loop

T = TypeVar("T")
E = TypeVar("E")


class House:
    """A guard on a simulated loop, and a dependency that does as it is told, attempt by attempt."""

    def __init__(self, **policy: Any) -> None:
        self.env = loop.SimEnvironment()
        self.events: list[Event] = []
        table = {"retry": {"attempts_max": 1}, **policy}
        self.policy: GuardPolicy = GuardPolicies(memory=table).memory
        self.attempts = 0
        self.running = 0
        self.most_running = 0
        self.chance = 0.5

    def note(self, event: Event) -> None:
        """Keep an event, its times rounded: a timer fires a tick after its deadline."""
        seconds = {
            name: round(getattr(event, name), 6) for name in ("at", "seconds", "wait_seconds") if hasattr(event, name)
        }
        self.events.append(replace(event, **seconds))

    def live(self, story: Callable[["House"], Awaitable[T]]) -> T:
        async def lived() -> T:
            self.guard = Guard("dep", self.policy, self.env.loop.time, lambda: self.chance, self.note)
            try:
                result = await story(self)
            finally:
                self.guard.close()
            assert self.guard.bulkhead.describe().running == 0, "a slot was lost"
            assert self.running == 0, "work goes on behind our back"
            return result

        return loop.run(lived(), env=self.env)

    def doing(self, *steps: float | BaseException | str) -> Callable[[], Awaitable[str]]:
        """Make work whose n-th attempt does step n (the last one again): sleeps so long, raises, or answers."""

        async def work() -> str:
            step = steps[min(self.attempts, len(steps) - 1)]
            self.attempts += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, str):
                    return step
                await asyncio.sleep(step)
                return f"after {step:g}"
            finally:
                self.running -= 1

        return work

    def telling(self, *steps: list[float | str | BaseException]) -> Callable[[], AsyncGenerator[str, None]]:
        """Make a stream whose n-th attempt goes through step n: sleeps, items, or an error."""

        async def work() -> AsyncGenerator[str, None]:
            step = steps[min(self.attempts, len(steps) - 1)]
            self.attempts += 1
            self.running += 1
            try:
                for each in step:
                    if isinstance(each, BaseException):
                        raise each
                    if isinstance(each, str):
                        yield each
                    else:
                        await asyncio.sleep(each)
            finally:
                self.running -= 1

        return work

    def told(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def outcomes(self) -> list[tuple[str, str, int]]:
        return [(each.outcome, each.error, each.attempts) for each in self.told(CallFinished)]

    @property
    def now(self) -> float:
        return self.env.now


async def said(guard: Guard, work: Callable[[], AsyncGenerator[str, None]]) -> list[str]:
    return [item async for item in guard.stream("c", work)]


# --- a call that ends well, and what is told of it


def test_a_call_is_made_once_and_told() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(1)
        assert await house.guard.call("c1", house.doing(0.25)) == "after 0.25"

    house = House()
    house.live(story)
    assert house.events == [CallFinished(1.25, "c1", "dep", "success", "", 0.25, 1)]


def test_a_stream_is_told_once_it_has_ended() -> None:
    house = House()
    assert house.live(lambda it: said(it.guard, it.telling([0.5, "a", 0.5, "b"]))) == ["a", "b"]
    assert house.events == [CallFinished(1.0, "c", "dep", "success", "", 1.0, 1)]


def test_a_stream_without_items_is_a_success() -> None:
    house = House()
    assert house.live(lambda it: said(it.guard, it.telling([]))) == []
    assert house.outcomes == [("success", "", 1)]


# --- breaker and bulkhead


def test_an_open_breaker_rejects_without_an_attempt() -> None:
    async def story(house: House) -> None:
        for _ in range(2):
            with pytest.raises(ProviderFailed):
                await house.guard.call("c", house.doing(ProviderFailed("x")))
        with pytest.raises(BreakerOpen):
            await house.guard.call("c", house.doing("x"))
        with pytest.raises(BreakerOpen):
            await said(house.guard, house.telling(["x"]))

    house = House(breaker={"failures_max": 2})
    house.live(story)
    assert house.attempts == 2
    assert house.outcomes[2:] == [("rejected", "breaker-open", 1)] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_bulkhead_rejects_and_is_nothing_to_the_breaker(stream: bool) -> None:
    async def story(house: House) -> None:
        first = asyncio.create_task(house.guard.call("c", house.doing(3.0)))
        await asyncio.sleep(0.1)
        with pytest.raises(BulkheadFull):
            await (said(house.guard, house.telling(["x"])) if stream else house.guard.call("c", house.doing("x")))
        assert await first == "after 3"

    house = House(bulkhead={"concurrent_max": 1, "queue_max": 0}, breaker={"failures_max": 1})
    house.live(story)
    assert house.attempts == 1
    assert house.outcomes == [("rejected", "bulkhead-full", 1), ("success", "", 1)]
    assert house.told(BreakerChanged) == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_for_a_slot_ends_with_the_deadline(stream: bool) -> None:
    async def story(house: House) -> None:
        first = asyncio.create_task(house.guard.call("c", house.doing(5.0)))
        await asyncio.sleep(0.5)
        with deadline_within(2.0), pytest.raises(WaitCut, match="dep has 1 calls under way"):
            await (said(house.guard, house.telling(["x"])) if stream else house.guard.call("c", house.doing("x")))
        assert house.now == pytest.approx(2.5, abs=0.001)
        await first

    House(bulkhead={"concurrent_max": 1, "wait_seconds_max": 60}, attempt={"total_seconds_max": 60}).live(story)


def test_only_lateness_and_overload_move_an_adaptive_limit_down() -> None:
    async def story(house: House) -> None:
        async def busy(step: float | BaseException) -> tuple[int, float]:
            for _ in range(10):
                await asyncio.gather(
                    *(house.guard.call("c", house.doing(step)) for _ in range(20)), return_exceptions=True
                )
                await asyncio.sleep(0.2)
            adaptive = house.guard.bulkhead._adaptive
            assert adaptive is not None
            return house.guard.bulkhead.describe().limit, adaptive._limit._usual_seconds

        before = await busy(0.5)
        assert await busy(ProviderFailed("x")) == before, "how soon it failed is no measure of speed"
        assert await busy(InvalidRequest("x")) == before

    House(
        bulkhead={"limit": "gradient2", "concurrent_min": 1, "concurrent_max": 100},
        breaker={"failures_max": 1_000_000, "calls_min": 1_000_000},
    ).live(story)


@pytest.mark.parametrize("stream", [False, True])
def test_the_wait_for_a_slot_is_ours_and_makes_no_call_slow(stream: bool) -> None:
    async def story(house: House) -> None:
        first = asyncio.create_task(house.guard.call("c", house.doing(1.5)))
        await asyncio.sleep(0.1)
        await (said(house.guard, house.telling([0.5, "x"])) if stream else house.guard.call("c", house.doing(0.5)))
        await first
        status = house.guard.breaker.describe()
        assert (status.calls, status.slow) == (2, 0)

    House(bulkhead={"concurrent_max": 1}, breaker={"slow_seconds": 1.6}).live(story)


def test_a_slot_waited_for_in_vain_gives_the_permit_back() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed):
            await house.guard.call("c", house.doing(ProviderFailed("x")))
        await asyncio.sleep(5)  # HALF_OPEN, one probe at once
        assert house.guard.bulkhead.try_acquire()
        with pytest.raises(BulkheadFull):
            await house.guard.call("c", house.doing("x"))
        house.guard.bulkhead.release()
        assert house.guard.breaker.describe().probes == 0
        assert await house.guard.call("c", house.doing("x")) == "x"

    House(
        bulkhead={"concurrent_max": 1, "wait_seconds_max": 1},
        breaker={"failures_max": 1, "probes_max": 1, "open_jitter": 0},
    ).live(story)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_waited_while_the_breaker_opened_is_not_made(stream: bool) -> None:
    async def story(house: House) -> None:
        first = asyncio.create_task(house.guard.call("c", house.doing(1.0, "second")))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(
            said(house.guard, house.telling(["x"])) if stream else house.guard.call("c", house.doing("x"))
        )
        await asyncio.sleep(0.1)
        house.guard.breaker.force_open("test")
        assert await first == "after 1"
        with pytest.raises(BreakerOpen):
            await second
        assert house.attempts == 1

    House(bulkhead={"concurrent_max": 1}).live(story)


def test_no_more_run_at_once_than_there_are_slots() -> None:
    async def story(house: House) -> list[str]:
        return await asyncio.gather(*(house.guard.call("c", house.doing(1.0)) for _ in range(7)))

    house = House(bulkhead={"concurrent_max": 3, "wait_seconds_max": 10})
    assert house.live(story) == ["after 1"] * 7
    assert (house.most_running, house.now) == (3, pytest.approx(3.0, abs=0.01))


@pytest.mark.parametrize("stream", [False, True])
def test_an_adaptive_limit_learns_from_calls_that_end_and_from_those_that_are_late(stream: bool) -> None:
    async def story(house: House) -> None:
        def one(seconds: float) -> Awaitable[Any]:
            if stream:
                return said(house.guard, house.telling([seconds, "x"]))
            return house.guard.call("c", house.doing(seconds))

        async def busy(seconds: float) -> int:
            for _ in range(20):
                await asyncio.gather(*(one(seconds) for _ in range(20)), return_exceptions=True)
            return house.guard.bulkhead.describe().limit

        start = house.guard.bulkhead.describe().limit
        assert (grown := await busy(0.1)) > start
        assert await busy(9.0) < grown

    House(
        bulkhead={"limit": "gradient2", "concurrent_min": 1, "concurrent_max": 100},
        attempt={"first_seconds_max": 1, "total_seconds_max": 1},
        breaker={"failures_max": 1_000_000, "calls_min": 1_000_000},
    ).live(story)


# --- the attempt's limits, and deadlines


def test_an_attempt_that_takes_too_long_is_a_failure_of_the_dependency() -> None:
    async def story(house: House) -> None:
        await asyncio.sleep(5)
        with pytest.raises(DeadlineExceeded, match=r"dep did not answer within 2 s") as late:
            await house.guard.call("c", house.doing(10.0))
        assert type(late.value) is DeadlineExceeded

    house = House(attempt={"first_seconds_max": 1, "total_seconds_max": 2}, breaker={"failures_max": 1})
    house.live(story)
    assert house.now == pytest.approx(7.0, abs=0.001)
    assert house.outcomes == [("failure", "deadline-exceeded", 1)]
    assert [(change.after, change.breaker) for change in house.told(BreakerChanged)] == [("OPEN", "dep")]


@pytest.mark.parametrize(
    ("steps", "heard", "seconds"),
    [
        ([9.0, "a"], [], 1.0),
        ([0.9, "a", 9.0, "b"], ["a"], 2.9),
        ([0.9, "a", 1.9, "b", 1.9, "c"], ["a", "b"], 4.0),
    ],
)
def test_a_stream_is_bounded_to_its_first_item_from_item_to_item_and_in_all(
    steps: list[float | str | BaseException], heard: list[str], seconds: float
) -> None:
    async def story(house: House) -> None:
        items: list[str] = []

        async def listen() -> None:
            async for item in house.guard.stream("c", house.telling(steps)):
                items.append(item)

        with pytest.raises(DeadlineExceeded):
            await listen()
        assert items == heard

    house = House(
        attempt={"first_seconds_max": 1, "between_seconds_max": 2, "total_seconds_max": 4}, breaker={"failures_max": 1}
    )
    house.live(story)
    assert house.now == pytest.approx(seconds, abs=0.001)
    assert house.outcomes == [("failure", "deadline-exceeded", 1)]
    assert [change.after for change in house.told(BreakerChanged)] == ["OPEN"]


def test_the_turn_ends_a_stream_between_items_too() -> None:
    async def story(house: House) -> None:
        with deadline_within(3.0), pytest.raises(DeadlineExceeded, match="within what was left of the turn"):
            await said(house.guard, house.telling([0.5, "a", 9.0, "b"]))
        assert house.now == pytest.approx(3.0, abs=0.001)
        assert house.guard.breaker.state == "OPEN"

    House(
        breaker={"failures_max": 1},
        attempt={"first_seconds_max": 20, "between_seconds_max": 20, "total_seconds_max": 60},
    ).live(story)


def test_a_reader_may_take_its_time() -> None:
    async def story(house: House) -> list[str]:
        items = []
        async for item in house.guard.stream("c", house.telling([0.1, "a", 0.1, "b"])):
            items.append(item)
            await asyncio.sleep(3)
        return items

    house = House(attempt={"first_seconds_max": 1, "between_seconds_max": 1, "total_seconds_max": 60})
    assert house.live(story) == ["a", "b"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("ours", "outcome", "kind"), [(True, "failure", "OPEN"), (False, "dropped", "CLOSED")])
def test_our_deadline_is_a_failure_and_a_callers_shorter_one_is_neutral(
    ours: bool, outcome: str, kind: str, stream: bool
) -> None:
    async def story(house: House) -> None:
        with deadline_within(3.0, ours=ours), pytest.raises(DeadlineExceeded) as late:
            await (
                said(house.guard, house.telling([10.0, "a"])) if stream else house.guard.call("c", house.doing(10.0))
            )
        assert isinstance(late.value, DeadlineShortened) is not ours
        assert house.guard.breaker.state == kind

    house = House(breaker={"failures_max": 1, "open_seconds": 60}, retry={"attempts_max": 3})
    house.live(story)
    assert house.now == pytest.approx(3.0, abs=0.001)
    assert house.outcomes == [(outcome, "deadline-exceeded", 1)]


@pytest.mark.parametrize("stream", [False, True])
def test_with_no_time_left_nobody_is_asked_and_nobody_blamed(stream: bool) -> None:
    async def story(house: House) -> None:
        with deadline_within(2.0):
            await asyncio.sleep(2.0)
            with pytest.raises(DeadlineShortened, match="no time was left to ask dep"):
                await (said(house.guard, house.telling(["x"])) if stream else house.guard.call("c", house.doing("x")))

    house = House(breaker={"failures_max": 1})
    house.live(story)
    assert house.attempts == 0
    assert house.outcomes == [("dropped", "deadline-exceeded", 1)]
    assert house.told(BreakerChanged) == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("before", "state"), [(1.0, "OPEN"), (3.0, "CLOSED")])
def test_who_was_left_little_of_the_turn_is_not_to_blame(before: float, state: str, stream: bool) -> None:
    async def story(house: House) -> None:
        with deadline_within(4.0):
            await asyncio.sleep(before)
            with pytest.raises(DeadlineExceeded):
                await (said(house.guard, house.telling([9.0])) if stream else house.guard.call("c", house.doing(9.0)))
        assert house.guard.breaker.state == state

    House(breaker={"failures_max": 1}).live(story)


def test_a_reader_who_takes_the_whole_time_is_no_fault_of_the_dependency() -> None:
    async def story(house: House) -> list[str]:
        items = []
        async for item in house.guard.stream("c", house.telling([0.5, "a", 0.5, "b", 0.5, "c"])):
            items.append(item)
            await asyncio.sleep(30)
        return items

    house = House(attempt={"first_seconds_max": 1, "between_seconds_max": 1, "total_seconds_max": 2})
    assert house.live(story) == ["a", "b", "c"]

    async def turn(house: House) -> None:
        async def listen() -> None:
            async for _ in house.guard.stream("c", house.telling(["a", 9.0, "b"])):
                await asyncio.sleep(9)

        with deadline_within(10.0), pytest.raises(DeadlineShortened):
            await listen()

    house = House(breaker={"failures_max": 1})
    house.live(turn)
    assert house.outcomes == [("dropped", "deadline-exceeded", 1)]


def test_the_time_of_a_dependency_adds_up_beside_its_readers() -> None:
    async def story(house: House) -> None:
        async def listen() -> None:
            async for _ in house.guard.stream("c", house.telling([0.9, "a", 0.9, "b", 0.9, "c"])):
                await asyncio.sleep(30)

        with pytest.raises(DeadlineExceeded, match="within 2 s"):
            await listen()

    House(attempt={"first_seconds_max": 1, "between_seconds_max": 1, "total_seconds_max": 2}).live(story)


@pytest.mark.parametrize("stream", [False, True])
def test_an_adaptive_limit_hears_429(stream: bool) -> None:
    async def story(house: House) -> None:
        async def one() -> None:
            error = ProviderOverloaded("429")
            await (said(house.guard, house.telling([error])) if stream else house.guard.call("c", house.doing(error)))

        start = house.guard.bulkhead.describe().limit
        for _ in range(5):
            await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
            await asyncio.sleep(1)
        assert house.guard.bulkhead.describe().limit < start

    House(bulkhead={"limit": "gradient2"}).live(story)


def test_a_stream_closed_early_leaves_no_task_behind() -> None:
    async def story(house: House) -> None:
        stream = house.guard.stream("c", house.telling(["a", "b"]))
        await anext(stream)
        await stream.aclose()
        assert len(house.env.loop.pending_tasks()) == 1

    House().live(story)


def test_a_hedge_takes_no_retry_away() -> None:
    async def story(house: House) -> str:
        broken = ProviderFailed("x")
        work = house.doing(2.0, broken, broken, "fine")
        return await house.guard.call("c", work, idempotent=True)

    house = House(hedge={"attempts_max": 2, "delay_seconds": 1}, retry={"attempts_max": 2, "base_seconds": 0.1})
    assert house.live(story) == "after 2"

    async def failing(house: House) -> None:
        async def work() -> str:
            house.attempts += 1
            await asyncio.sleep(1.5)
            raise ProviderFailed("x")

        with pytest.raises(ProviderFailed):
            await house.guard.call("c", work, idempotent=True)

    house = House(hedge={"attempts_max": 2, "delay_seconds": 1}, retry={"attempts_max": 2, "base_seconds": 0.1})
    house.live(failing)
    assert house.attempts == 4
    assert [each.attempt for each in house.told(CallRetried)] == [3]


def test_a_breaker_that_only_observes_lets_a_waiting_call_through_and_counts_it_once() -> None:
    async def story(house: House) -> None:
        house.guard.breaker.observe_only("test")
        house.guard.breaker.acquire().failure(ProviderFailed("x"))
        first = asyncio.create_task(house.guard.call("c", house.doing(1.0, "second")))
        await asyncio.sleep(0.1)
        assert await house.guard.call("c", house.doing(1.0, "second")) == "second"
        await first
        assert house.guard.breaker.describe().rejected == 2

    House(bulkhead={"concurrent_max": 1}, breaker={"failures_max": 1, "open_seconds": 60}).live(story)


@pytest.mark.parametrize("stream", [False, True])
def test_cancellation_is_neutral_and_leaves_nothing_behind(stream: bool) -> None:
    async def story(house: House) -> None:
        call = said(house.guard, house.telling([10.0, "a"])) if stream else house.guard.call("c", house.doing(10.0))
        task = asyncio.ensure_future(call)
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.guard.breaker.describe().calls == 0

    house = House(breaker={"failures_max": 1})
    house.live(story)
    assert house.outcomes == [("dropped", "cancelled", 1)]


def test_a_stream_closed_early_is_neutral_and_closes_its_source() -> None:
    async def story(house: House) -> None:
        stream = house.guard.stream("c", house.telling(["a", "b"]))
        assert await anext(stream) == "a"
        assert house.running == 1
        await stream.aclose()
        assert house.guard.breaker.describe().calls == 0

    house = House(breaker={"failures_max": 1})
    house.live(story)
    assert house.outcomes == [("dropped", "cancelled", 1)]


def test_an_error_amid_a_stream_is_a_failure() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed):
            await said(house.guard, house.telling(["a", ProviderFailed("torn")]))
        assert house.guard.breaker.state == "OPEN"

    house = House(breaker={"failures_max": 1}, retry={"attempts_max": 3})
    house.live(story)
    assert house.attempts == 1, "what a reader has seen cannot be taken back"


def test_slowness_of_a_stream_is_that_of_its_first_item() -> None:
    async def story(house: House) -> None:
        await said(house.guard, house.telling([0.9, "a", 3.0, "b"]))
        assert house.guard.breaker.describe().slow == 0
        house.attempts = 0
        await said(house.guard, house.telling([1.0, "a"]))
        assert house.guard.breaker.describe().slow == 1

    House(breaker={"slow_seconds": 1}).live(story)


# --- retries


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_tried_again_after_a_pause(stream: bool) -> None:
    async def story(house: House) -> Any:
        broken = ProviderFailed("x")
        if stream:
            return await said(house.guard, house.telling([broken], [broken], ["fine"]))
        return await house.guard.call("c", house.doing(broken, broken, "fine"))

    house = House(retry={"attempts_max": 3, "base_seconds": 1, "cap_seconds": 9})
    assert house.live(story) in ("fine", ["fine"])
    assert house.told(CallRetried) == [
        CallRetried(0.0, "c", "dep", 2, 0.5, "provider-failed"),
        CallRetried(0.5, "c", "dep", 3, 1.0, "provider-failed"),
    ]
    assert house.outcomes == [("success", "", 3)]
    assert house.now == pytest.approx(1.5, abs=0.001)


def test_attempts_come_to_an_end_with_the_last_error() -> None:
    async def story(house: House) -> None:
        with pytest.raises(ProviderFailed, match="three"):
            await house.guard.call(
                "c", house.doing(ProviderFailed("one"), ProviderFailed("two"), ProviderFailed("three"), "late")
            )

    house = House(retry={"attempts_max": 3})
    house.live(story)
    assert house.outcomes == [("failure", "provider-failed", 3)]


@pytest.mark.parametrize("error", [InvalidRequest("x"), ValueError("x"), OrchestraError("x")])
def test_what_cannot_get_better_is_not_tried_again(error: Exception) -> None:
    async def story(house: House) -> None:
        with pytest.raises(type(error)):
            await house.guard.call("c", house.doing(error))

    house = House(retry={"attempts_max": 3})
    house.live(story)
    assert house.attempts == 1


def test_an_overload_is_tried_again_when_it_asks_for_that() -> None:
    async def story(house: House) -> str:
        return await house.guard.call("c", house.doing(ProviderOverloaded("429", retry_after_seconds=7.0), "fine"))

    house = House(retry={"attempts_max": 2, "base_seconds": 1}, breaker={"failures_max": 1})
    assert house.live(story) == "fine"
    assert house.now == pytest.approx(7.5, abs=0.001)


def test_no_retry_begins_where_the_deadline_would_end_it_at_once() -> None:
    async def story(house: House) -> None:
        with deadline_within(2.0), pytest.raises(ProviderFailed):
            await house.guard.call("c", house.doing(ProviderFailed("x", retry_after_seconds=1.5), "fine"))

    house = House(retry={"attempts_max": 2, "base_seconds": 1})
    house.live(story)
    assert house.now == 0.0
    assert house.guard.budget.describe().retries == 0


def test_a_retry_gets_what_is_left_of_the_turn() -> None:
    async def story(house: House) -> None:
        with deadline_within(5.0), pytest.raises(DeadlineExceeded, match="little time"):
            await house.guard.call("c", house.doing(10.0))

    house = House(
        retry={"attempts_max": 9, "base_seconds": 0.2}, attempt={"first_seconds_max": 2, "total_seconds_max": 2}
    )
    house.live(story)
    assert house.now == pytest.approx(5.0, abs=0.001)
    assert house.attempts == 3


def test_retries_stay_within_the_budget_of_the_dependency() -> None:
    async def story(house: House) -> None:
        for _ in range(40):
            with pytest.raises(ProviderFailed):
                await house.guard.call("c", house.doing(ProviderFailed("x")))

    house = House(
        retry={"attempts_max": 3, "base_seconds": 0.001, "budget_ratio": 0.2, "budget_min": 3},
        breaker={"failures_max": 1_000_000, "failure_rate_max": 1, "calls_min": 1_000_000},
    )
    house.live(story)
    assert house.attempts == 40 + 8


def test_a_rejection_is_not_tried_again() -> None:
    async def story(house: House) -> None:
        house.guard.breaker.force_open("test")
        with pytest.raises(BreakerOpen):
            await house.guard.call("c", house.doing("x"))

    house = House(retry={"attempts_max": 3})
    house.live(story)
    assert house.told(CallRetried) == []


def test_a_retry_asks_the_breaker_anew() -> None:
    async def story(house: House) -> None:
        with pytest.raises(BreakerOpen):
            await house.guard.call("c", house.doing(ProviderFailed("x")))

    house = House(retry={"attempts_max": 9, "base_seconds": 0.001}, breaker={"failures_max": 3})
    house.live(story)
    assert house.attempts == 3


# --- hedges


def test_only_idempotent_calls_are_hedged_and_only_where_the_policy_says() -> None:
    async def story(house: House) -> tuple[str, str]:
        return (
            await house.guard.call("c", house.doing(3.0, "quick"), idempotent=True),
            await house.guard.call("c", house.doing(3.0)),
        )

    house = House(hedge={"attempts_max": 2, "delay_seconds": 1})
    assert house.live(story) == ("quick", "after 3")
    assert house.told(CallHedged) == [CallHedged(1.0, "c", "dep")]
    assert house.outcomes == [("success", "", 2), ("success", "", 1)]

    async def alone(house: House) -> str:
        return await house.guard.call("c", house.doing(3.0, "quick"), idempotent=True)

    assert House().live(alone) == "after 3"
