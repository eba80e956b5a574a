"""The breaker under any order of calls, late outcomes, cancellations, orders of operators and steps of time.

What must hold in every history is said here; what exactly follows from a history, `test_breaker_reference.py` says.
"""

import asyncio
import sys
from typing import Any

import pytest
from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from orchestra.errors import BreakerOpen, ProviderOverloaded
from orchestra.events import BreakerChanged
from orchestra.limits import RETRY_AFTER_SECONDS_MAX
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker, BreakerStatus, Permit

ARROWS = {("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED"), ("HALF_OPEN", "OPEN")}
ORDERS = {
    "force_open": ("forced_open", "OPEN"),
    "disable": ("disabled", "CLOSED"),
    "observe_only": ("observing", "CLOSED"),
    "reset": ("automatic", "CLOSED"),
}
QUARTER = 0.25  # all times are multiples of powers of two, which floats add up exactly


class Failure(Exception):
    def __init__(self, retry_after_seconds: float | None) -> None:
        self.retry_after_seconds = retry_after_seconds


ENDS = st.one_of(
    st.none(),
    st.sampled_from([None, None, 3.0, 1e9]).map(Failure),
    st.sampled_from([asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), ProviderOverloaded("429")]),
)
COUNTS = st.integers(1, 3)
POLICIES = st.builds(
    BreakerPolicy,
    failures_max=st.sampled_from([1, 2, 3, 50]),
    failure_rate_max=st.sampled_from([0.25, 0.5, 1.0]),
    slow_rate_max=st.sampled_from([0.5, 1.0]),
    slow_seconds=st.sampled_from([None, 1.0]),
    calls_min=COUNTS,
    window=st.sampled_from(["time", "count"]),
    window_seconds=st.sampled_from([2.5, 20.0]),
    window_calls=st.integers(3, 6),
    open_seconds=st.integers(1, 8).map(lambda quarters: quarters * QUARTER),
    open_growth=st.sampled_from([1.0, 2.0]),
    open_seconds_max=st.sampled_from([2.0, 4.0, 16.0]),
    open_jitter=st.sampled_from([0.0, 0.5]),
    recovery_seconds=st.sampled_from([1.0, 8.0]),
    probes_max=COUNTS,
    successes_min=COUNTS,
    probe_seconds_max=st.sampled_from([0.5, 2.0]),
)


class BreakerMachine(RuleBasedStateMachine):
    running = Bundle("running")
    ended = Bundle("ended")

    @initialize(policy=POLICIES, chance=st.integers(0, 7))
    def begin(self, policy: BreakerPolicy, chance: int) -> None:
        self.now = 1000.0
        self.policy = policy
        self.told: list[BreakerChanged] = []
        self.ordered: set[int] = set()  # which of the changes an operator ordered
        self.probes: list[Permit] = []
        self.hung = self.late = self.relapses = 0
        self.breaker = Breaker("it", policy, lambda: self.now, self.told.append, lambda: chance / 8)

    # --- calls

    @rule(target=running)
    def call(self) -> Any:
        before = self.breaker.describe()
        admitted = self.try_call()
        if isinstance(admitted, BreakerOpen):
            assert before.mode in ("automatic", "forced_open")
            assert before.retry_after_seconds == admitted.retry_after_seconds
            self.check_rejection(admitted, before)
            return multiple()
        assert before.mode == "observing" or before.retry_after_seconds == 0
        assert before.mode == "observing" or before.state != "OPEN"
        return admitted

    def try_call(self) -> Permit | BreakerOpen:
        try:
            permit = self.breaker.acquire()
        except BreakerOpen as rejection:
            return rejection
        if permit.state is not None and self.breaker.state == "HALF_OPEN":
            self.probes.append(permit)
        return permit

    def check_rejection(self, rejection: BreakerOpen, before: BreakerStatus) -> None:
        wait = rejection.retry_after_seconds
        assert wait is not None
        assert wait > 0
        assert "it is failing" in rejection.detail
        assert before.state in rejection.detail
        if before.mode == "forced_open":
            assert wait == self.policy.open_seconds
        elif before.state == "OPEN":
            assert wait <= RETRY_AFTER_SECONDS_MAX
        else:
            assert wait <= self.policy.probe_seconds_max
            assert before.probes == self.policy.probes_max

    @rule(target=running)
    def come_again(self) -> Any:
        """Whoever is told when to come again, and does, is let through unless others were first."""
        rejection = self.try_call()
        if isinstance(rejection, Permit):
            return rejection
        self.now += rejection.retry_after_seconds or 0.0
        again = self.try_call()
        if isinstance(again, Permit):
            return again
        assert self.breaker.mode == "forced_open"
        return multiple()

    # --- ends

    @rule(target=ended, permit=consumes(running), error=ENDS)
    def end(self, permit: Permit, error: BaseException | None) -> Permit:
        self.settle(permit, error)
        return permit

    @rule(permit=ended, error=ENDS)
    def end_again(self, permit: Permit, error: BaseException | None) -> None:
        before = self.breaker.describe()
        permit.settle(error)
        permit.responded()
        assert self.breaker.describe() == before

    def settle(self, permit: Permit, error: BaseException | None) -> None:
        before = self.breaker.describe()
        late = permit.state is not self.breaker._state
        neutral = self.breaker.outcome_of(error) == "dropped" if error else False
        if permit in self.probes and not late and permit.admitted_at + self.policy.probe_seconds_max <= self.now:
            self.hung += 1
            event("a hung probe ended")
        permit.settle(error)
        after = self.breaker.describe()
        if late or neutral:
            assert self.told_of(after) == self.told_of(before)
            assert after.late - before.late == int(late and not neutral and permit.state is not None)
        elif before.state == "HALF_OPEN" and isinstance(error, Failure):
            assert after.state == "OPEN"
            assert after.retry_after_seconds >= min(error.retry_after_seconds or 0.0, RETRY_AFTER_SECONDS_MAX)
        if late:
            self.late += 1
            event("an end came late")

    @staticmethod
    def told_of(status: BreakerStatus) -> tuple[Any, ...]:
        """Return what no late and no neutral end may change. A neutral one may give a slot back."""
        return (
            status.state,
            status.mode,
            status.calls,
            status.failures,
            status.slow,
            status.successes,
            status.relapses,
        )

    @rule(permit=running)
    def respond(self, permit: Permit) -> None:
        late = permit.state is not self.breaker._state
        before = self.breaker.describe()
        permit.responded()
        if late or self.policy.slow_seconds is None:
            assert self.breaker.describe() == before

    @rule(calls=st.integers(1, 4), error=ENDS)
    def burst(self, calls: int, error: BaseException | None) -> None:
        """Let calls begin together and end together: twin probes, and the quick way to a trip."""
        for permit in [each for each in (self.try_call() for _ in range(calls)) if isinstance(each, Permit)]:
            self.settle(permit, error)

    @rule(target=running)
    def overtake(self) -> Any:
        """Let a call begin and so many others fail after it that the state changes."""
        overtaken = self.call()
        self.burst(4, Failure(None))
        return overtaken

    # --- time, operators, the fleet

    @rule(quarters=st.integers(1, 40))
    def wait(self, quarters: int) -> None:
        self.now += quarters * QUARTER

    @rule(order=st.sampled_from(sorted(ORDERS)), sure=st.integers(0, 3))
    def order(self, order: str, sure: int) -> None:
        if sure:  # most histories shall go on undisturbed
            return
        self.ordered.add(len(self.told))
        getattr(self.breaker, order)("a test")
        assert (self.breaker.mode, self.breaker.state) == ORDERS[order]
        assert self.breaker.describe().relapses == 0
        assert self.told[-1].after == ORDERS[order][1]
        event(order)

    @rule(calls=st.integers(0, 5), failures=st.integers(0, 5))
    def learn(self, calls: int, failures: int) -> None:
        before = self.breaker.describe()
        self.breaker.learn(Tally(calls, min(calls, failures), 0))
        after = self.breaker.describe()
        assert after.state == before.state or (before.state, after.state) == ("CLOSED", "OPEN")
        assert after == before or calls >= self.policy.calls_min

    # --- what always holds

    @invariant()
    def every_change_is_an_arrow_of_the_diagram_or_an_order(self) -> None:
        self.relapses = 0
        for place, change in enumerate(self.told):
            assert change.at <= self.now
            if place:
                assert change.before == self.told[place - 1].after
            if place not in self.ordered:
                assert (change.before, change.after) in ARROWS
                self.relapses += (change.before, change.after) == ("HALF_OPEN", "OPEN")

    @invariant()
    def no_more_probes_live_than_there_may_be(self) -> None:
        live = [
            each
            for each in self.probes
            if each.state is self.breaker._state
            and not each.settled
            and self.now - each.admitted_at < self.policy.probe_seconds_max
        ]
        assert len(live) <= self.policy.probes_max
        status = self.breaker.describe()
        assert status.state != "HALF_OPEN" or status.probes == len(live)

    @invariant()
    def the_status_makes_sense(self) -> None:
        status = self.breaker.describe()
        counts = (status.calls, status.failures, status.slow, status.consecutive_failures)
        rest = (status.probes, status.successes, status.retry_after_seconds, status.rejected, status.late)
        assert min(*counts, *rest, status.relapses) >= 0
        assert max(status.failures, status.slow) <= status.calls
        assert status.consecutive_failures < self.policy.failures_max
        assert status.successes < self.policy.successes_min
        assert (status.failure_rate is None) == (status.slow_rate is None) == (status.calls == 0)
        assert status.state == "CLOSED" or not any(counts)
        assert status.state == "HALF_OPEN" or not any((status.probes, status.successes))
        assert status.state != "OPEN" or status.retry_after_seconds > 0
        assert status.state != "CLOSED" or status.retry_after_seconds == 0
        if status.calls >= self.policy.calls_min and self.policy.window == "count":
            assert status.failures / status.calls < self.policy.failure_rate_max

    def teardown(self) -> None:
        if not hasattr(self, "told"):
            return
        arrows = [(each.before, each.after) for each in self.told]
        for arrow in sorted(set(arrows)):
            event(f"{arrow[0]} -> {arrow[1]}")
        target(float(arrows.count(("HALF_OPEN", "CLOSED"))), label="recoveries")
        target(float(self.relapses), label="relapses")
        target(float(self.late), label="late ends")
        target(float(self.hung), label="hung probes")


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(stateful_step_count=50)


def test_a_million_rejections_do_not_grow_memory() -> None:
    breaker = Breaker("it", BreakerPolicy(failures_max=1), lambda: 0.0, lambda change: None, lambda: 0.0)
    breaker.acquire().failure(OSError())

    def storm(times: int) -> None:
        for _ in range(times):
            try:
                breaker.acquire()
            except BreakerOpen:
                continue
            pytest.fail("it was let through")

    storm(1_000)
    before = sys.getallocatedblocks()
    storm(1_000_000)
    assert sys.getallocatedblocks() - before < 1_000  # one each thousand rejections would be too many
    assert breaker.describe().rejected == 1_001_000
