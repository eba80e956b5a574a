"""The breaker's rules one by one, at their boundaries.

`tests/property/test_breaker.py` holds it against the whole diagram, `test_breaker_reference.py` against a model.
"""

import asyncio
import logging
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestra import errors
from orchestra.events import BreakerChanged
from orchestra.limits import RETRY_AFTER_SECONDS_MAX
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker, BreakerStatus, CallRejected, Permit, outcome_of

PLAIN: dict[str, Any] = {
    "failures_max": 3,
    "calls_min": 1000,
    "open_seconds": 10.0,
    "open_jitter": 0.0,
    "probes_max": 2,
    "successes_min": 2,
    "probe_seconds_max": 20.0,
}


@dataclass
class Bench:
    """A breaker with a clock to turn."""

    over: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    chance: float = 0.5
    now: float = 100.0
    changes: list[BreakerChanged] = field(default_factory=list)

    def __post_init__(self) -> None:
        policy = BreakerPolicy(**{**PLAIN, **self.over})
        self.breaker = Breaker(
            "unified", policy, lambda: self.now, self.changes.append, lambda: self.chance, **self.options
        )

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.acquire().success()

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.acquire().failure(OSError())

    def slow(self, seconds: float, error: Exception | None = None) -> None:
        permit = self.breaker.acquire()
        self.now += seconds
        permit.settle(error)

    def open(self) -> None:
        self.fail(3)
        assert self.state == "OPEN"

    def half_open(self) -> None:
        self.open()
        self.now += 10.0
        assert self.state == "HALF_OPEN"

    def close(self) -> None:
        """Come from OPEN to CLOSED by probes."""
        self.now += self.status.retry_after_seconds
        self.succeed(2)
        assert self.state == "CLOSED"

    def trip(self) -> float:
        """Return how long the OPEN of another trip lasts."""
        self.open()
        return self.status.retry_after_seconds

    @property
    def state(self) -> str:
        return self.breaker.state

    @property
    def status(self) -> BreakerStatus:
        return self.breaker.describe()

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.changes]

    @property
    def arrows(self) -> list[str]:
        return [f"{each.before} -> {each.after}" for each in self.changes]


def status(state: Any = "CLOSED", **values: Any) -> BreakerStatus:
    return BreakerStatus(name="unified", state=state, **values)


async def give(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


# --- the diagram


def test_it_walks_the_diagram_and_tells_each_change() -> None:
    bench = Bench()
    bench.fail(2)
    assert bench.state == "CLOSED"
    bench.fail(1)
    assert bench.state == "OPEN"
    bench.now += 9.75
    assert bench.state == "OPEN"
    bench.now += 0.25
    bench.succeed()
    assert bench.state == "HALF_OPEN"
    bench.succeed()
    assert bench.state == "CLOSED"
    assert bench.changes == [
        BreakerChanged(100.0, "unified", "CLOSED", "OPEN", "3 consecutive failures, the last OSError"),
        BreakerChanged(110.0, "unified", "OPEN", "HALF_OPEN", "its open time is over"),
        BreakerChanged(110.0, "unified", "HALF_OPEN", "CLOSED", "2 probes succeeded"),
    ]


def test_a_new_breaker_is_closed_and_automatic_with_nothing_counted() -> None:
    bench = Bench()
    assert (bench.breaker.name, bench.breaker.mode, bench.state) == ("unified", "automatic", "CLOSED")
    assert bench.status == status()
    assert bench.status.mode == "automatic"
    assert bench.status.failure_rate is bench.status.slow_rate is None
    assert bench.changes == []


def test_a_success_breaks_a_row_of_failures_and_a_drop_does_not() -> None:
    bench = Bench()
    bench.fail(2)
    assert bench.status.consecutive_failures == 2
    bench.succeed()
    assert bench.status.consecutive_failures == 0
    bench.fail(2)
    bench.breaker.acquire().drop()
    assert bench.state == "CLOSED"
    bench.fail()
    assert bench.state == "OPEN"


def test_half_open_admits_so_many_at_once_and_one_failure_decides() -> None:
    bench = Bench()
    bench.half_open()
    first, second = bench.breaker.acquire(), bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen):
        bench.breaker.acquire()
    first.success()
    third = bench.breaker.acquire()
    second.failure(OSError())
    assert bench.state == "OPEN"
    third.success()  # the twin comes too late to close it
    assert bench.state == "OPEN"
    assert bench.arrows == ["CLOSED -> OPEN", "OPEN -> HALF_OPEN", "HALF_OPEN -> OPEN"]
    assert bench.reasons[2] == "a probe failed, the last OSError"
    assert bench.status.late == 1


def test_a_late_outcome_of_an_older_state_counts_as_late_only() -> None:
    bench = Bench()
    early = [bench.breaker.acquire() for _ in range(5)]
    bench.half_open()
    early[0].failure(OSError())
    early[1].success()
    early[2].success()
    early[4].drop()
    assert bench.status == status("HALF_OPEN", late=3, relapses=1)
    bench.succeed(2)
    for permit in (early[3], bench.breaker.acquire(), bench.breaker.acquire()):
        permit.failure(OSError())
    assert bench.status == status(
        calls=2, failures=2, failure_rate=1.0, slow_rate=0.0, consecutive_failures=2, late=4, relapses=1
    )
    assert bench.breaker.take_tally() == Tally(7, 5, 0)


def test_a_permit_is_settled_once() -> None:
    bench = Bench()
    for first in (Permit.success, Permit.failure, Permit.drop):
        permit = bench.breaker.acquire()
        assert not permit.settled
        first(permit)
        assert permit.settled
        for again in (Permit.success, Permit.failure, Permit.drop):
            again(permit)
    assert bench.breaker.take_tally() == Tally(2, 1, 0)


def test_calls_that_ended_are_counted_for_good_whoever_takes_the_tally() -> None:
    bench = Bench()
    assert bench.breaker.ended == 0
    bench.breaker.acquire().success()
    bench.breaker.acquire().failure()
    bench.breaker.acquire().drop()
    assert bench.breaker.ended == 2
    for _ in range(2):
        bench.breaker.take_tally()
        assert bench.breaker.ended == 2
    bench.breaker.acquire().success()
    bench.breaker.take_tally()
    assert bench.breaker.ended == 3


def test_a_dropped_probe_gives_its_slot_back_and_says_nothing() -> None:
    bench = Bench()
    bench.half_open()
    probes = [bench.breaker.acquire(), bench.breaker.acquire()]
    assert bench.status == status("HALF_OPEN", probes=2, retry_after_seconds=20.0, relapses=1)
    probes[0].drop()
    assert bench.status == status("HALF_OPEN", probes=1, relapses=1)
    bench.breaker.acquire()
    assert bench.status.probes == 2


def test_the_slot_of_a_hung_probe_is_taken_back_but_its_word_still_counts() -> None:
    bench = Bench()
    bench.half_open()
    hung = [bench.breaker.acquire(), bench.breaker.acquire()]
    bench.now += 19.75
    assert bench.status == status("HALF_OPEN", probes=2, retry_after_seconds=0.25, relapses=1)
    with pytest.raises(errors.BreakerOpen):
        bench.breaker.acquire()
    bench.now += 0.25
    new = [bench.breaker.acquire(), bench.breaker.acquire()]
    hung[0].success()
    assert bench.status == status("HALF_OPEN", probes=2, successes=1, retry_after_seconds=20, relapses=1, rejected=1)
    hung[1].success()
    assert bench.state == "CLOSED"
    new[0].failure(OSError())
    assert bench.status.failures == 0


def test_slots_are_taken_back_one_by_one_oldest_first() -> None:
    bench = Bench()
    bench.half_open()
    bench.breaker.acquire()
    bench.now += 4.0
    bench.breaker.acquire()
    bench.now += 16.0
    assert bench.status.probes == 1
    bench.now += 3.75
    assert bench.status.probes == 1
    bench.now += 0.25
    assert bench.status.probes == 0


# --- rejections


def test_every_rejection_is_fresh_and_says_who_what_and_when() -> None:
    bench = Bench()
    bench.open()
    bench.now += 2.5
    with pytest.raises(errors.BreakerOpen) as one:
        bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen) as other:
        bench.breaker.acquire()
    assert one.value is not other.value
    assert one.value.detail == str(one.value) == "unified is failing, its circuit breaker is OPEN: try again in 7.5 s"
    assert (one.value.retry_after_seconds, one.value.field, one.value.kind) == (7.5, None, "breaker-open")
    assert isinstance(one.value, CallRejected)
    assert (one.value.breaker, one.value.state) == ("unified", "OPEN")
    bench.now += 7.5
    bench.breaker.acquire()
    bench.now += 1.0
    bench.breaker.acquire()
    with pytest.raises(errors.BreakerOpen, match=r"HALF_OPEN: .* 19\.0 s"):
        bench.breaker.acquire()
    assert bench.status.rejected == 3


def test_a_rejection_is_an_error_like_any_other() -> None:
    rejection = CallRejected("unified", "OPEN", 1.25)
    copy = pickle.loads(pickle.dumps(rejection))
    assert (str(copy), copy.retry_after_seconds) == (str(rejection), 1.25)
    with pytest.raises(AttributeError, match="'CallRejected' object has no attribute 'nonsense'"):
        rejection.nonsense  # noqa: B018


def test_a_storm_of_rejections_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.open()

    def storm(times: int) -> None:
        for _ in range(times):
            try:
                bench.breaker.acquire()
            except errors.BreakerOpen:
                continue

    tracemalloc.start()
    try:
        storm(2_000)
        before = tracemalloc.get_traced_memory()[0]
        storm(2_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert bench.status.rejected == 4_000
    assert grown < 1_000  # a byte a rejection would be too much


# --- rates


def test_a_failure_rate_trips_where_it_is_reached_by_enough_calls() -> None:
    bench = Bench({"calls_min": 4, "failure_rate_max": 0.5})
    bench.fail(2)
    bench.succeed()
    assert bench.status == status(calls=3, failures=2, failure_rate=2 / 3, slow_rate=0.0)
    bench.succeed()  # a success may be the call that makes the rate count
    assert bench.state == "OPEN"
    assert bench.reasons == ["2 of 4 calls failed"]


def test_a_failure_rate_below_the_limit_does_not_trip() -> None:
    bench = Bench({"calls_min": 4, "failure_rate_max": 0.5, "failures_max": 4})
    bench.succeed(2)
    bench.fail()
    bench.succeed(2)
    bench.fail()
    assert bench.status.failure_rate == 2 / 6
    bench.fail()
    assert bench.state == "CLOSED"
    bench.fail()
    assert bench.reasons == ["4 of 8 calls failed"]


def test_a_rate_is_met_exactly_where_a_product_would_miss_it() -> None:
    bench = Bench({"calls_min": 10, "failure_rate_max": 0.1})
    bench.fail()
    bench.succeed(9)
    assert 0.1 * 3 != 0.3
    assert bench.state == "OPEN"


def test_what_left_the_time_window_does_not_count() -> None:
    bench = Bench({"calls_min": 2, "failure_rate_max": 1.0, "window_seconds": 10.0, "failures_max": 100})
    bench.fail()
    bench.now += 10.0
    bench.fail()
    assert bench.status == status(calls=1, failures=1, failure_rate=1.0, slow_rate=0.0, consecutive_failures=2)
    bench.now += 9.75
    bench.fail()
    assert bench.reasons == ["2 of 2 calls failed"]


def test_a_page_does_not_see_what_left_the_window() -> None:
    bench = Bench({"window_seconds": 10.0})
    bench.succeed()
    bench.now += 9.75
    assert bench.status.calls == 1
    bench.now += 0.25
    assert bench.status == status()


def test_a_count_window_looks_at_the_last_calls() -> None:
    bench = Bench({"window": "count", "window_calls": 4, "calls_min": 4, "failure_rate_max": 0.75})
    bench.succeed(4)
    bench.now += 1e6
    bench.fail(2)
    assert bench.status.failures == 2
    assert bench.status.calls == 4
    bench.succeed()
    bench.fail()
    assert bench.reasons == ["3 of 4 calls failed"]


@pytest.mark.parametrize("error", [None, OSError()])
def test_slow_calls_trip_whether_they_succeed_or_fail(error: Exception | None) -> None:
    bench = Bench({"slow_seconds": 2.0, "calls_min": 2, "slow_rate_max": 0.75, "failure_rate_max": 1.0})
    bench.slow(2.0, None)
    bench.slow(1.75, error)
    assert bench.status.slow == 1
    assert bench.status.slow_rate == 0.5
    bench.slow(2.0, error)
    bench.slow(2.0, None)
    assert bench.reasons == ["3 of 4 calls took 2 s or longer"]
    assert bench.breaker.take_tally() == Tally(4, 0 if error is None else 2, 3)


def test_without_a_limit_no_call_is_slow() -> None:
    bench = Bench({"calls_min": 1, "slow_rate_max": 0.1})
    bench.slow(3600.0)
    bench.breaker.learn(Tally(10, 0, 10))
    assert bench.status.slow_rate is None or bench.status.slow_rate == 0
    assert bench.state == "CLOSED"


def test_a_stream_is_slow_by_its_first_item_and_not_by_its_end() -> None:
    bench = Bench({"slow_seconds": 2.0})
    quick, late = bench.breaker.acquire(), bench.breaker.acquire()
    bench.now += 1.75
    quick.responded()
    bench.now += 0.25
    late.responded()
    quick.responded()  # the second item says nothing
    bench.now += 60.0
    quick.success()
    assert bench.status.slow == 0
    late.failure(OSError())
    bench.now += 1.0
    late.responded()
    assert bench.status.slow == 1
    assert late.responded_at == 102.0


def test_a_slow_probe_reopens_at_its_first_item() -> None:
    bench = Bench({"slow_seconds": 2.0})
    bench.half_open()
    quick, late = bench.breaker.acquire(), bench.breaker.acquire()
    bench.now += 1.75
    quick.responded()
    assert bench.state == "HALF_OPEN"
    bench.now += 0.25
    late.responded()
    assert bench.state == "OPEN"
    assert bench.reasons[2] == "a probe took 2 s or longer"
    quick.success()
    late.success()
    assert bench.status.late == 2
    assert bench.state == "OPEN"


def test_a_slow_probe_reopens_at_its_end() -> None:
    bench = Bench({"slow_seconds": 2.0})
    bench.half_open()
    bench.slow(2.0)
    assert bench.state == "OPEN"
    bench.now += bench.status.retry_after_seconds
    bench.slow(1.75)
    bench.slow(1.75)
    assert bench.state == "CLOSED"


def test_what_responds_after_it_was_settled_says_nothing() -> None:
    bench = Bench({"slow_seconds": 2.0})
    bench.half_open()
    probe = bench.breaker.acquire()
    probe.success()
    bench.now += 2.0
    probe.responded()
    assert bench.status == status("HALF_OPEN", successes=1, relapses=1)
    assert probe.responded_at is None


def test_a_slow_stream_in_closed_counts_when_it_ends() -> None:
    bench = Bench({"slow_seconds": 2.0, "calls_min": 1, "slow_rate_max": 1.0})
    permit = bench.breaker.acquire()
    bench.now += 2.0
    permit.responded()
    assert bench.state == "CLOSED"
    permit.success()
    assert bench.state == "OPEN"


# --- how long OPEN lasts


def test_open_grows_with_each_relapse_up_to_its_cap() -> None:
    bench = Bench({"open_growth": 2.0, "open_seconds_max": 35.0})
    lengths = [bench.trip()]
    assert bench.status.relapses == 1
    for _ in range(4):
        bench.now += bench.status.retry_after_seconds
        bench.fail()
        lengths.append(bench.status.retry_after_seconds)
    assert lengths == [10.0, 20.0, 35.0, 35.0, 35.0]
    assert bench.status.relapses == 2  # more would only make the way back longer


def test_a_trip_soon_after_closing_is_a_relapse_too_and_calm_takes_it_back_step_by_step() -> None:
    bench = Bench({"open_growth": 2.0, "open_seconds_max": 3600.0, "recovery_seconds": 50.0})
    assert bench.trip() == 10.0
    bench.close()
    bench.now += 49.75
    assert bench.status.relapses == 1
    assert bench.trip() == 20.0
    bench.close()
    assert bench.trip() == 40.0
    bench.close()
    assert bench.status.relapses == 3
    bench.now += 50.0
    assert bench.status.relapses == 2
    bench.now += 49.75
    assert bench.status.relapses == 2
    assert bench.trip() == 40.0
    assert bench.status.relapses == 3
    bench.close()
    bench.now += 1e6
    assert bench.status.relapses == 0
    assert bench.trip() == 10.0


def test_open_is_jittered_upward_within_its_cap() -> None:
    assert Bench({"open_jitter": 0.5}, chance=0.5).trip() == 12.5
    assert Bench({"open_jitter": 0.5}, chance=0.0).trip() == 10.0
    assert Bench({"open_jitter": 0.5, "open_seconds_max": 11.0}, chance=0.5).trip() == 11.0
    assert Bench({"open_jitter": 0.1}, chance=0.5).trip() == 10.5


class Asking(Exception):
    def __init__(self, retry_after_seconds: object) -> None:
        self.retry_after_seconds = retry_after_seconds


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        (30, 30.0),
        (30.5, 30.5),
        (9.0, 10.0),
        (0.0, 10.0),
        (-5.0, 10.0),
        (None, 10.0),
        ("30", 10.0),
        (float("nan"), 10.0),
        (float("inf"), RETRY_AFTER_SECONDS_MAX),
        (RETRY_AFTER_SECONDS_MAX + 1, RETRY_AFTER_SECONDS_MAX),
    ],
)
def test_open_lasts_as_long_as_the_error_asks(asked: object, seconds: float) -> None:
    bench = Bench({"failures_max": 1})
    bench.breaker.acquire().failure(Asking(asked))
    assert bench.status.retry_after_seconds == seconds
    bench.now += seconds
    bench.breaker.acquire().failure(Asking(70.0))  # a probe's error asks as well
    assert bench.status.retry_after_seconds == 70.0


def test_an_error_that_trips_a_rate_is_heard_too() -> None:
    bench = Bench({"calls_min": 2, "failure_rate_max": 0.5})
    bench.succeed()
    bench.breaker.acquire().failure(Asking(33.0))
    assert bench.status.retry_after_seconds == 33.0


# --- what an error says


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "success"),
        (OSError(), "failure"),
        (TimeoutError(), "failure"),
        (errors.ProviderFailed("x"), "failure"),
        (errors.DeadlineExceeded("x"), "failure"),
        (errors.StoreUnavailable("x"), "failure"),
        (errors.ConfigurationError("x"), "failure"),
        (errors.DeadlineShortened("x"), "dropped"),
        (errors.FeatureOff("x"), "dropped"),
        (errors.ProviderOverloaded("x"), "dropped"),
        (errors.ProviderRefused("x"), "dropped"),
        (errors.Overloaded("x"), "dropped"),
        (errors.BulkheadFull("x"), "dropped"),
        (errors.BreakerOpen("x"), "dropped"),
        (CallRejected("x", "OPEN", 1.0), "dropped"),
        (errors.ShuttingDown("x"), "dropped"),
        (errors.InvalidRequest("x"), "dropped"),
        (errors.SessionUnknown("x"), "dropped"),
        (errors.StaleSession("x"), "dropped"),
        (asyncio.CancelledError(), "dropped"),
        (GeneratorExit(), "dropped"),
        (KeyboardInterrupt(), "dropped"),
        (SystemExit(), "dropped"),
    ],
)
def test_the_end_of_a_call_settles_its_permit(error: BaseException | None, outcome: str) -> None:
    assert outcome_of(error) == outcome

    async def block(bench: Bench) -> None:
        async with bench.breaker.permit() as permit:
            assert not permit.settled
            await give(error)

    async def call(bench: Bench) -> None:
        await bench.breaker.call(give, error)

    expected = {
        "success": status("HALF_OPEN", successes=1, relapses=1),
        "failure": status("OPEN", retry_after_seconds=20.0, relapses=2),
        "dropped": status("HALF_OPEN", relapses=1),
    }
    for way in (block, call):
        bench = Bench()
        bench.half_open()
        assert ended(way(bench)) is error
        assert bench.status == expected[outcome]

        bench = Bench()
        assert ended(way(bench)) is error
        calls, failures = int(outcome != "dropped"), int(outcome == "failure")
        assert (bench.status.calls, bench.status.failures) == (calls, failures)
        assert bench.breaker.take_tally() == Tally(calls, failures, 0)
        assert bench.breaker.take_tally() == Tally(0, 0, 0)


def ended(call: Coroutine[Any, Any, Any]) -> BaseException | None:
    """Run `call` from where it stands to its end, and return the error that came out of it."""
    try:
        call.send(None)
    except StopIteration:
        return None
    except BaseException as error:
        return error
    raise AssertionError("it suspended")


def test_the_policy_names_kinds_that_say_nothing_and_kinds_that_are_failures() -> None:
    breaker = Bench({"ignore": ("provider-failed",), "record": ("provider-overloaded", "internal")}).breaker
    assert breaker.outcome_of(errors.ProviderFailed("x")) == "dropped"
    assert breaker.outcome_of(errors.ProviderOverloaded("x")) == "failure"
    assert breaker.outcome_of(errors.StoreUnavailable("x")) == "failure"
    assert breaker.outcome_of(errors.Overloaded("x")) == "dropped"
    assert breaker.outcome_of(OSError()) == "failure"
    assert breaker.outcome_of(asyncio.CancelledError()) == "dropped"  # in any case


def test_a_deadline_that_the_caller_shortened_is_no_failure_whatever_the_policy_says() -> None:
    breaker = Bench({"record": ("deadline-exceeded",)}, options={"record": lambda error: True}).breaker
    assert breaker.outcome_of(errors.DeadlineShortened("x")) == "dropped"
    assert breaker.outcome_of(errors.DeadlineExceeded("x")) == "failure"


def test_predicates_do_so_too_and_ignore_is_asked_first() -> None:
    bench = Bench(
        {"record": ("not-found",)},
        options={
            "ignore": lambda error: isinstance(error, OSError),
            "record": lambda error: isinstance(error, errors.InvalidRequest | FileNotFoundError),
        },
    )
    assert bench.breaker.outcome_of(FileNotFoundError()) == "dropped"
    assert bench.breaker.outcome_of(errors.InvalidRequest("x")) == "failure"
    assert bench.breaker.outcome_of(errors.NotFound("x")) == "failure"
    assert bench.breaker.outcome_of(errors.Forbidden("x")) == "dropped"
    assert bench.breaker.outcome_of(ValueError()) == "failure"
    bench.breaker.acquire().settle(FileNotFoundError())
    assert bench.status.calls == 0


def test_a_predicate_is_not_asked_about_cancellation() -> None:
    breaker = Bench(options={"record": lambda error: True}).breaker
    assert breaker.outcome_of(asyncio.CancelledError()) == "dropped"
    assert breaker.outcome_of(errors.Overloaded("x")) == "failure"


def test_a_result_may_show_a_failure_and_is_returned_all_the_same() -> None:
    bench = Bench(options={"failed_result": lambda result: result == "bad"})

    async def main() -> None:
        assert await bench.breaker.call(give, "good") == "good"
        assert await bench.breaker.call(give, "bad") == "bad"
        assert (bench.status.calls, bench.status.failures) == (2, 1)
        for _ in range(2):
            await bench.breaker.call(give, "bad")
        assert bench.reasons == ["3 consecutive failures, by its result"]
        bench.now += 10.0
        assert await bench.breaker.call(give, "good") == "good"
        assert bench.status.successes == 1
        assert await bench.breaker.call(give, "bad") == "bad"

    asyncio.run(main())
    assert bench.state == "OPEN"
    assert bench.reasons[2] == "a probe failed, by its result"


def boom(*_: object) -> Any:
    raise ValueError("a broken predicate or listener")


def test_a_broken_predicate_is_logged_and_counts_as_no(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(options={"ignore": boom, "record": boom, "failed_result": boom})
    lost = OSError()
    assert ended(bench.breaker.call(give, lost)) is lost
    assert ended(bench.breaker.call(give, "good")) is None
    assert (bench.status.calls, bench.status.failures) == (2, 1)
    messages = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert messages == ["a predicate of the breaker unified failed, which counts as no"] * 3
    assert all(each.exc_info for each in caplog.records)


def test_a_broken_listener_neither_masks_the_error_nor_stops_the_breaker(caplog: pytest.LogCaptureFixture) -> None:
    breaker = Breaker("unified", BreakerPolicy(failures_max=1), lambda: 0.0, boom, lambda: 0.0)
    lost = OSError()
    assert ended(breaker.call(give, lost)) is lost
    assert breaker.state == "OPEN"
    assert [each.message for each in caplog.records] == ["a listener of the breaker unified failed"]
    assert caplog.records[0].exc_info


def test_a_listener_may_ask_and_order() -> None:
    seen: list[str] = []

    def listener(change: BreakerChanged) -> None:
        seen.append(breaker.state)
        if change.after == "OPEN" and breaker.mode == "automatic":
            breaker.force_open("a human shall look")

    breaker = Breaker("it", BreakerPolicy(failures_max=1), lambda: 0.0, listener, lambda: 0.0)
    breaker.acquire().failure(OSError())
    assert seen == ["OPEN", "OPEN"]
    assert breaker.mode == "forced_open"


# --- call, block and stream


def test_call_passes_arguments_and_result_and_does_not_call_when_open() -> None:
    bench = Bench()
    called: list[tuple[int, str]] = []

    async def fn(number: int, word: str) -> str:
        called.append((number, word))
        return word * number

    async def main() -> None:
        assert await bench.breaker.call(fn, 2, "ab") == "abab"
        bench.half_open()
        assert await bench.breaker.call(fn, 1, "c") == "c"
        bench.fail()
        with pytest.raises(errors.BreakerOpen):
            await bench.breaker.call(fn, 3, "d")

    asyncio.run(main())
    assert called == [(2, "ab"), (1, "c")]


@pytest.mark.parametrize(("seconds", "slow"), [(1.75, 0), (2.0, 1)])
@pytest.mark.parametrize("error", [None, OSError()])
def test_call_judges_its_own_length(seconds: float, slow: int, error: Exception | None) -> None:
    bench = Bench({"slow_seconds": 2.0})

    async def fn() -> None:
        bench.now += seconds
        await give(error)

    assert ended(bench.breaker.call(fn)) is error
    assert bench.status.slow == slow
    assert bench.breaker.take_tally() == Tally(1, int(error is not None), slow)


def test_a_slow_call_trips_by_call_as_by_permit() -> None:
    bench = Bench({"slow_seconds": 2.0, "calls_min": 2, "slow_rate_max": 1.0})

    async def fn() -> None:
        bench.now += 2.0

    assert ended(bench.breaker.call(fn)) is None
    assert bench.state == "CLOSED"
    assert ended(bench.breaker.call(fn)) is None
    assert bench.reasons == ["2 of 2 calls took 2 s or longer"]


def test_a_success_by_call_can_make_the_failure_rate_count() -> None:
    bench = Bench({"calls_min": 2, "failure_rate_max": 0.5})
    bench.fail()
    assert ended(bench.breaker.call(give, None)) is None
    assert bench.changes == [BreakerChanged(100.0, "unified", "CLOSED", "OPEN", "1 of 2 calls failed")]


def test_a_success_by_call_breaks_a_row() -> None:
    bench = Bench()
    bench.fail(2)
    assert ended(bench.breaker.call(give, None)) is None
    assert bench.status.consecutive_failures == 0
    bench.fail(2)
    assert bench.state == "CLOSED"


async def after_a_while(end: BaseException | str) -> Any:
    await asyncio.sleep(0)
    return await give(end)


@pytest.mark.parametrize("end", ["result", OSError(), asyncio.CancelledError()])
@pytest.mark.parametrize("into", ["OPEN", "HALF_OPEN", "CLOSED", "reset"])
def test_a_call_from_before_a_change_of_state_ends_late(end: BaseException | str, into: str) -> None:
    bench = Bench()
    call = bench.breaker.call(after_a_while, end)
    call.send(None)
    if into == "reset":
        bench.breaker.reset("a test")
    else:
        bench.open()
        bench.now += 10.0 if into != "OPEN" else 0.0
        bench.succeed(2 if into == "CLOSED" else 0)
    before = bench.status
    assert ended(call) is (None if isinstance(end, str) else end)
    after = bench.status
    late = int(not isinstance(end, asyncio.CancelledError))
    assert (before.late, after.late) == (0, late)
    assert status(after.state, calls=after.calls) == status(before.state, calls=before.calls)
    assert (after.failures, after.successes, after.probes) == (before.failures, before.successes, before.probes)


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
    assert bench.reasons == ["3 consecutive failures, the last ValueError"]


class Source:
    """A stream that notes that it was closed."""

    def __init__(self, bench: Bench, *items: Any) -> None:
        self.bench = bench
        self.items = list(items)
        self.closed = 0

    def __aiter__(self) -> "Source":
        return self

    async def __anext__(self) -> Any:
        self.bench.now += 1.0
        if not self.items:
            raise StopAsyncIteration
        return await give(self.items.pop(0))

    async def aclose(self) -> None:
        self.closed += 1


def test_a_stream_holds_its_permit_to_its_end() -> None:
    bench = Bench({"slow_seconds": 2.0})
    bench.half_open()

    async def main() -> None:
        source = Source(bench, 1, 2, 3)
        seen = []
        async for item in bench.breaker.stream(source):
            seen.append(item)
            assert bench.status.probes == 1
            assert bench.status.successes == 0
        assert seen == [1, 2, 3]
        assert source.closed == 1

    asyncio.run(main())
    assert bench.status == status("HALF_OPEN", successes=1, relapses=1)  # four seconds long, the first item after one


def test_a_stream_is_slow_by_its_first_item() -> None:
    bench = Bench({"slow_seconds": 1.0})

    async def main() -> None:
        assert [item async for item in bench.breaker.stream(Source(bench, 1, 2))] == [1, 2]

    asyncio.run(main())
    assert bench.status.slow == 1


def test_an_error_in_the_middle_of_a_stream_is_a_failure() -> None:
    bench = Bench()
    lost = OSError()
    source = Source(bench, 1, lost)

    async def main() -> None:
        seen: list[Any] = []
        try:
            async for item in bench.breaker.stream(source):
                seen.append(item)
        except OSError as raised:
            seen.append(raised)
        assert seen == [1, lost]

    asyncio.run(main())
    assert (bench.status.calls, bench.status.failures, source.closed) == (1, 1, 1)


def test_whoever_closes_a_stream_early_says_nothing() -> None:
    bench = Bench()
    bench.half_open()

    async def main() -> None:
        source = Source(bench, 1, 2)
        stream = bench.breaker.stream(source)
        assert await anext(stream) == 1
        assert bench.status.probes == 1
        await stream.aclose()
        assert source.closed == 1

    asyncio.run(main())
    assert bench.status == status("HALF_OPEN", relapses=1)


def test_an_open_breaker_closes_the_stream_unread_and_a_plain_iterator_will_do() -> None:
    bench = Bench()

    class Plain:
        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            raise StopAsyncIteration

    async def main() -> None:
        assert [item async for item in bench.breaker.stream(Plain())] == []
        assert bench.status.calls == 1
        bench.open()
        source = Source(bench, 1)
        with pytest.raises(errors.BreakerOpen):
            await anext(bench.breaker.stream(source))
        assert (source.closed, source.items) == (1, [1])

    asyncio.run(main())


def test_a_cancelled_task_and_an_abandoned_stream_release_their_slots() -> None:
    bench = Bench()
    bench.half_open()

    async def stream() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def main() -> None:
        task = asyncio.create_task(bench.breaker.call(asyncio.Event().wait))
        pieces = bench.breaker.stream(stream())
        assert await anext(pieces) == 1
        await asyncio.sleep(0)
        assert bench.status.probes == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pieces.aclose()
        assert bench.status == status("HALF_OPEN", relapses=1)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["call", "permit"])
def test_a_hundred_callers_at_the_end_of_open_send_no_more_than_the_probes(way: str) -> None:
    bench = Bench()
    bench.open()
    bench.now += 10.0
    reached = 0

    async def main() -> None:
        gate = asyncio.Event()

        async def backend() -> None:
            nonlocal reached
            reached += 1
            await gate.wait()

        async def by_permit() -> None:
            async with bench.breaker.permit():
                await backend()

        ways = {"call": lambda: bench.breaker.call(backend), "permit": by_permit}
        callers = asyncio.gather(*(ways[way]() for _ in range(100)), return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        results = await callers
        assert reached == 2
        assert sum(isinstance(each, errors.BreakerOpen) for each in results) == 98

    asyncio.run(main())
    assert bench.state == "CLOSED"


# --- operators


def test_forced_open_rejects_everything_until_another_order() -> None:
    bench = Bench()
    early = bench.breaker.acquire()
    bench.breaker.force_open("the invoice is unpaid")
    assert bench.changes == [BreakerChanged(100.0, "unified", "CLOSED", "OPEN", "forced open: the invoice is unpaid")]
    assert bench.status == status("OPEN", mode="forced_open", retry_after_seconds=10.0)
    bench.now += 1e6
    with pytest.raises(errors.BreakerOpen) as rejection:
        bench.breaker.acquire()
    assert rejection.value.retry_after_seconds == 10.0
    early.success()
    assert bench.status == status("OPEN", mode="forced_open", retry_after_seconds=10.0, rejected=1, late=1)
    bench.breaker.reset("it is paid")
    assert bench.changes[1] == BreakerChanged(1000100.0, "unified", "OPEN", "CLOSED", "reset: it is paid")
    assert bench.breaker.mode == "automatic"
    bench.succeed()


def test_disabled_lets_everything_through_and_counts_nothing() -> None:
    bench = Bench()
    bench.open()
    bench.breaker.disable("the alarm is false")
    assert bench.changes[1] == BreakerChanged(100.0, "unified", "OPEN", "CLOSED", "disabled: the alarm is false")
    bench.fail(100)
    bench.breaker.learn(Tally(1000, 1000, 1000))
    permit = bench.breaker.acquire()
    permit.responded()
    permit.drop()
    assert ended(bench.breaker.call(give, None)) is None
    assert bench.status == status(mode="disabled")
    assert bench.breaker.take_tally() == Tally(104, 103, 0)  # the fleet may know


def test_observing_never_rejects_and_tells_what_it_would_do() -> None:
    bench = Bench()
    bench.breaker.observe_only("a new policy")
    bench.open()
    unheard = [bench.breaker.acquire() for _ in range(3)]  # rejections, were it not only observing
    for permit in unheard:
        permit.responded()
    unheard[0].failure(OSError())
    assert bench.status == status("OPEN", mode="observing", retry_after_seconds=10.0, relapses=1, rejected=3)
    bench.now += 10.0
    probes = [bench.breaker.acquire() for _ in range(5)]
    for permit in (*unheard[1:], *probes[2:]):
        permit.failure(OSError())
    assert bench.status == status(
        "HALF_OPEN", mode="observing", probes=2, retry_after_seconds=20.0, relapses=1, rejected=6
    )
    probes[0].success()
    probes[1].success()
    assert bench.reasons == [
        "observing only: a new policy",
        "only observed: 3 consecutive failures, the last OSError",
        "only observed: its open time is over",
        "only observed: 2 probes succeeded",
    ]
    assert bench.status.late == 0
    bench.breaker.reset("it is good")
    bench.open()
    assert bench.reasons[-1] == "3 consecutive failures, the last OSError"


def test_observing_lets_a_call_through_where_it_is_open() -> None:
    bench = Bench()
    bench.breaker.observe_only("a new policy")
    bench.open()
    assert asyncio.run(bench.breaker.call(give, "through")) == "through"


def test_reset_begins_anew_and_forgets_the_growth() -> None:
    bench = Bench()
    assert bench.trip() == 10.0
    bench.close()
    bench.fail(2)
    bench.breaker.reset("a new key")
    assert bench.status == status()
    assert bench.arrows[-1] == "CLOSED -> CLOSED"
    assert bench.trip() == 10.0


# --- the fleet


def test_a_breaker_trips_by_what_the_fleet_saw() -> None:
    bench = Bench({"calls_min": 4, "failure_rate_max": 0.5})
    bench.breaker.learn(Tally(3, 3, 0))
    bench.breaker.learn(Tally(5, 2, 5))
    assert bench.state == "CLOSED"
    bench.breaker.learn(Tally(4, 2, 0))
    assert bench.reasons == ["in the whole fleet, 2 of 4 calls failed"]
    assert bench.status.retry_after_seconds == 10.0
    bench.breaker.learn(Tally(4, 4, 0))
    bench.now += 10.0
    bench.breaker.learn(Tally(4, 4, 0))  # which also ends OPEN
    assert bench.arrows == ["CLOSED -> OPEN", "OPEN -> HALF_OPEN"]


def test_the_fleet_s_slow_calls_trip_where_slowness_is_judged() -> None:
    bench = Bench({"calls_min": 4, "slow_rate_max": 0.75, "slow_seconds": 2.5})
    bench.breaker.learn(Tally(4, 0, 2))
    assert bench.state == "CLOSED"
    bench.breaker.learn(Tally(4, 0, 3))
    assert bench.reasons == ["in the whole fleet, 3 of 4 calls took 2.5 s or longer"]


@pytest.mark.parametrize("way", ["probes", "reset", "observe"])
def test_what_the_fleet_saw_before_this_breaker_closed_does_not_trip_it_again(way: str) -> None:
    bench = Bench({"calls_min": 4, "failure_rate_max": 0.5, "window_seconds": 30.0})
    bench.breaker.learn(Tally(4, 4, 0))
    if way == "probes":
        bench.close()
    elif way == "reset":
        bench.breaker.reset("a test")
    else:
        bench.breaker.observe_only("a test")
    bench.now += 29.75
    bench.breaker.learn(Tally(4, 4, 0))
    assert bench.state == "CLOSED"
    bench.now += 0.25
    bench.breaker.learn(Tally(4, 4, 0))
    assert bench.state == "OPEN"


def test_probes_count_for_the_fleet() -> None:
    bench = Bench({"slow_seconds": 2.0})
    bench.half_open()
    assert bench.breaker.take_tally() == Tally(3, 3, 0)
    bench.slow(2.0)
    assert bench.breaker.take_tally() == Tally(1, 0, 1)


# --- at the edges ---


@pytest.mark.parametrize(("asked", "wait"), [(None, 0.1), (0.05, 0.1), (0.5, 0.5)])
def test_an_error_that_is_settled_may_ask_for_a_longer_open_time(asked: float | None, wait: float) -> None:
    bench = Bench({"open_seconds": 0.1, "open_jitter": 0.0})
    for _ in range(3):
        bench.breaker.acquire().settle(errors.ProviderFailed("x", retry_after_seconds=asked))
    assert bench.status.retry_after_seconds == pytest.approx(wait)
    assert "ProviderFailed" in bench.changes[-1].reason


def test_less_than_a_second_before_its_end_open_still_rejects() -> None:
    bench = Bench({"open_seconds": 0.5, "open_jitter": 0.0})
    bench.open()
    bench.now += 0.4
    with pytest.raises(errors.BreakerOpen):
        bench.breaker.acquire()
    bench.now += 0.1
    probes = [bench.breaker.acquire() for _ in range(bench.breaker.policy.probes_max)]
    assert bench.state == "HALF_OPEN"
    with pytest.raises(errors.BreakerOpen):
        bench.breaker.acquire()
    for probe in probes:
        probe.drop()


def test_calls_add_up_in_the_tally() -> None:
    bench = Bench({"slow_seconds": 1.0, "calls_min": 1000})

    async def work(seconds: float) -> None:
        bench.now += seconds

    async def story() -> None:
        for seconds in (0.5, 1.0, 2.0):
            await bench.breaker.call(work, seconds)

    asyncio.run(story())
    assert bench.breaker.take_tally() == Tally(3, 0, 2)


def test_every_change_is_dated() -> None:
    bench = Bench()
    bench.now += 100.0
    bench.breaker.learn(Tally(1000, 1000, 0))
    assert [change.at for change in bench.changes] == [200.0]
    bench = Bench({"slow_seconds": 1.0})
    bench.half_open()
    permit = bench.breaker.acquire()
    bench.now += 1.0
    permit.responded()
    assert (bench.changes[-1].after, bench.changes[-1].at) == ("OPEN", bench.now)
