"""The breaker's rules one by one; `tests/property/test_breaker.py` holds it against the whole diagram."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from orchestra import errors
from orchestra.events import BreakerChanged
from orchestra.resilience.breaker import Breaker, BreakerPolicy, BreakerStatus, Permit, outcome_of

POLICY = BreakerPolicy(failures_max=3, open_seconds=10.0, probes_max=2, successes_min=2)


@dataclass
class Bench:
    """A breaker with a clock to turn."""

    now: float = 100.0
    changes: list[BreakerChanged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.breaker = Breaker("unified", POLICY, lambda: self.now, self.changes.append)

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.acquire().failure(OSError())

    def half_open(self) -> None:
        self.fail(3)
        self.now += 10.0
        assert self.state() == "HALF_OPEN"

    def state(self) -> str:
        return self.breaker.state

    def arrows(self) -> list[str]:
        return [f"{each.before} -> {each.after}" for each in self.changes]


def test_it_walks_the_diagram_and_tells_each_change() -> None:
    bench = Bench()
    bench.fail(3)
    assert bench.state() == "OPEN"
    bench.now += 10.0
    bench.breaker.acquire().success()
    bench.breaker.acquire().success()
    assert bench.state() == "CLOSED"
    assert bench.changes == [
        BreakerChanged(100.0, "unified", "CLOSED", "OPEN", "3 consecutive failures, the last OSError"),
        BreakerChanged(110.0, "unified", "OPEN", "HALF_OPEN", "its open time is over"),
        BreakerChanged(110.0, "unified", "HALF_OPEN", "CLOSED", "2 probes succeeded"),
    ]


def test_a_success_breaks_a_row_of_failures_and_a_drop_does_not() -> None:
    bench = Bench()
    bench.fail(2)
    bench.breaker.acquire().success()
    bench.fail(2)
    assert bench.state() == "CLOSED"
    bench.breaker.acquire().drop()
    bench.fail(1)
    assert bench.state() == "OPEN"


def test_every_rejection_is_fresh_and_says_who_what_and_when() -> None:
    bench = Bench()
    bench.fail(3)
    bench.now += 2.5
    with pytest.raises(errors.BreakerOpen, match=r"unified is failing, its circuit breaker is OPEN: .* 7\.5 s") as one:
        bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen) as other:
        bench.breaker.acquire()
    assert one.value.retry_after_seconds == 7.5
    assert one.value is not other.value
    bench.now += 7.5
    bench.breaker.acquire()
    bench.now += 1.0
    bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen, match=r"HALF_OPEN: .* 9\.0 s"):
        bench.breaker.acquire()


def test_half_open_admits_so_many_at_once_and_one_failure_decides() -> None:
    bench = Bench()
    bench.half_open()
    first, second = bench.breaker.acquire(), bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen):
        bench.breaker.acquire()
    first.success()
    third = bench.breaker.acquire()
    second.failure(OSError())
    assert bench.state() == "OPEN"
    third.success()  # the twin comes too late to close it
    assert bench.state() == "OPEN"
    assert bench.arrows() == ["CLOSED -> OPEN", "OPEN -> HALF_OPEN", "HALF_OPEN -> OPEN"]


def test_a_late_outcome_of_an_older_generation_changes_nothing() -> None:
    bench = Bench()
    early = [bench.breaker.acquire() for _ in range(4)]
    bench.half_open()
    early[0].failure(OSError())
    early[1].success()
    early[2].success()
    assert bench.breaker.describe() == BreakerStatus("unified", "HALF_OPEN")
    bench.breaker.acquire().success()
    bench.breaker.acquire().success()
    for permit in (early[3], bench.breaker.acquire(), bench.breaker.acquire()):
        permit.failure(OSError())
    assert bench.breaker.describe() == BreakerStatus("unified", "CLOSED", failures=2)


def test_a_permit_is_settled_once() -> None:
    bench = Bench()
    permit = bench.breaker.acquire()
    permit.failure(OSError())
    permit.failure(OSError())
    permit.failure(OSError())
    permit.success()
    assert bench.breaker.describe().failures == 1


def test_a_dropped_probe_gives_its_slot_back_and_says_nothing() -> None:
    bench = Bench()
    bench.half_open()
    probes = [bench.breaker.acquire(), bench.breaker.acquire()]
    probes[0].drop()
    assert bench.breaker.describe() == BreakerStatus("unified", "HALF_OPEN", probes=1)
    bench.breaker.acquire()


def test_the_slot_of_a_hung_probe_is_taken_back_but_its_word_still_counts() -> None:
    bench = Bench()
    bench.half_open()
    hung = [bench.breaker.acquire(), bench.breaker.acquire()]
    bench.now += 9.75
    assert bench.breaker.describe() == BreakerStatus("unified", "HALF_OPEN", probes=2, retry_after_seconds=0.25)
    bench.now += 0.25
    assert bench.breaker.describe() == BreakerStatus("unified", "HALF_OPEN")
    new = [bench.breaker.acquire(), bench.breaker.acquire()]
    hung[0].success()
    assert bench.breaker.describe() == BreakerStatus(
        "unified", "HALF_OPEN", probes=2, successes=1, retry_after_seconds=10
    )
    hung[1].success()
    assert bench.state() == "CLOSED"
    new[0].failure(OSError())
    assert bench.breaker.describe() == BreakerStatus("unified", "CLOSED")


def test_slots_are_taken_back_one_by_one_oldest_first() -> None:
    bench = Bench()
    bench.half_open()
    bench.breaker.acquire()
    bench.now += 4.0
    bench.breaker.acquire()
    bench.now += 6.0
    assert bench.breaker.describe().probes == 1
    bench.now += 4.0
    assert bench.breaker.describe().probes == 0


def test_a_page_sees_what_is_counted() -> None:
    bench = Bench()
    bench.fail(2)
    assert bench.breaker.describe() == BreakerStatus("unified", "CLOSED", failures=2)
    bench.fail(1)
    bench.now += 4.0
    assert bench.breaker.describe() == BreakerStatus("unified", "OPEN", retry_after_seconds=6.0)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "success"),
        (OSError(), "failure"),
        (TimeoutError(), "failure"),
        (errors.ProviderFailed("x"), "failure"),
        (errors.DeadlineExceeded("x"), "failure"),
        (errors.StoreUnavailable("x"), "failure"),
        (errors.ProviderOverloaded("x"), "dropped"),
        (errors.ProviderRefused("x"), "dropped"),
        (errors.Overloaded("x"), "dropped"),
        (errors.BreakerOpen("x"), "dropped"),
        (errors.ShuttingDown("x"), "dropped"),
        (errors.InvalidRequest("x"), "dropped"),
        (errors.SessionUnknown("x"), "dropped"),
        (errors.StaleSession("x"), "dropped"),
        (asyncio.CancelledError(), "dropped"),
        (GeneratorExit(), "dropped"),
        (KeyboardInterrupt(), "dropped"),
    ],
)
def test_the_end_of_a_block_settles_its_permit(error: BaseException | None, outcome: str) -> None:
    bench = Bench()
    assert outcome_of(error) == outcome

    async def main() -> None:
        async with bench.breaker.permit():
            if error is not None:
                raise error

    bench.half_open()
    with pytest.raises(StopIteration if error is None else type(error)) as raised:
        main().send(None)
    assert error is None or raised.value is error
    expected = {
        "success": BreakerStatus("unified", "HALF_OPEN", successes=1),
        "failure": BreakerStatus("unified", "OPEN", retry_after_seconds=10.0),
        "dropped": BreakerStatus("unified", "HALF_OPEN"),
    }
    assert bench.breaker.describe() == expected[outcome]


def test_a_block_may_settle_first_and_an_open_breaker_keeps_it_from_running() -> None:
    bench = Bench()

    async def main() -> None:
        for _ in range(3):
            async with bench.breaker.permit() as permit:
                permit.failure(ValueError("a bad answer"))
        with pytest.raises(errors.BreakerOpen):
            async with bench.breaker.permit():
                raise AssertionError("it ran")

    asyncio.run(main())
    assert bench.changes[0].reason == "3 consecutive failures, the last ValueError"


def test_a_cancelled_task_and_an_abandoned_stream_release_their_slots() -> None:
    bench = Bench()
    bench.half_open()

    async def hang() -> None:
        async with bench.breaker.permit():
            await asyncio.Event().wait()

    async def stream() -> AsyncIterator[int]:
        async with bench.breaker.permit():
            yield 1
            yield 2

    async def main() -> None:
        task = asyncio.create_task(hang())
        pieces = stream()
        assert await anext(pieces) == 1
        await asyncio.sleep(0)
        assert bench.breaker.describe().probes == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pieces.aclose()  # type: ignore[attr-defined]
        assert bench.breaker.describe() == BreakerStatus("unified", "HALF_OPEN")

    asyncio.run(main())


def test_a_hundred_callers_at_the_end_of_open_send_no_more_than_the_probes() -> None:
    bench = Bench()
    bench.fail(3)
    bench.now += 10.0
    reached: list[Permit] = []

    async def caller(gate: asyncio.Event) -> None:
        async with bench.breaker.permit() as permit:
            reached.append(permit)
            await gate.wait()

    async def main() -> None:
        gate = asyncio.Event()
        callers = asyncio.gather(*(caller(gate) for _ in range(100)), return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        results = await callers
        assert len(reached) == 2
        assert sum(isinstance(each, errors.BreakerOpen) for each in results) == 98

    asyncio.run(main())
    assert bench.state() == "CLOSED"


@pytest.mark.parametrize("name", ["failures_max", "open_seconds", "probes_max", "successes_min"])
@pytest.mark.parametrize("value", [0, -1])
def test_an_impossible_policy_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(errors.ConfigurationError, match=f"{name} of a breaker is {value}") as refusal:
        BreakerPolicy(**{name: value})
    assert refusal.value.field == name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_endless_open_time_is_refused(value: float) -> None:
    with pytest.raises(errors.ConfigurationError, match="finite"):
        BreakerPolicy(open_seconds=value)
