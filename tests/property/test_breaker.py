"""The breaker against its diagram, under any order of calls, late outcomes, lost permits and steps of time.

The model keeps no counters: it writes down what happened since the last change of state, and reads the diagram's
conditions off that history each time.
"""

from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from orchestra.errors import BreakerOpen
from orchestra.events import BreakerChanged
from orchestra.resilience.breaker import Breaker, BreakerPolicy, Permit

ARROWS = {("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED"), ("HALF_OPEN", "OPEN")}
OUTCOMES = st.sampled_from(["success", "failure", "dropped"])
QUARTER = 0.25  # all times are multiples of it, which floats add up exactly


@dataclass
class Call:
    """One permit as the model remembers it."""

    at: float
    era: int
    outcome: str | None = None


@dataclass
class Diagram:
    """The history that the diagram's conditions are read from."""

    policy: BreakerPolicy
    state: str = "CLOSED"
    entered: float = 0.0
    era: int = 0
    calls: list[Call] = field(default_factory=list)  # of this era, in order of admission
    outcomes: list[str] = field(default_factory=list)  # of this era, in order of arrival
    changes: list[tuple[float, str, str]] = field(default_factory=list)

    def look(self, now: float) -> str:
        if self.state == "OPEN" and now - self.entered >= self.policy.open_seconds:
            self.enter("HALF_OPEN", now)
        return self.state

    def slots_taken(self, now: float) -> int:
        return sum(call.outcome is None and now - call.at < self.policy.open_seconds for call in self.calls)

    def admits(self, now: float) -> bool:
        if self.look(now) == "HALF_OPEN":
            return self.slots_taken(now) < self.policy.probes_max
        return self.state == "CLOSED"

    def settle(self, call: Call, outcome: str, now: float) -> None:
        if call.outcome is not None:
            return
        call.outcome = outcome
        if call.era != self.era:
            return
        self.outcomes.append(outcome)
        told = [each for each in self.outcomes if each != "dropped"]
        if self.state == "CLOSED":
            trailing = list(takewhile(lambda each: each == "failure", reversed(told)))
            if len(trailing) >= self.policy.failures_max:
                self.enter("OPEN", now)
        elif "failure" in told:
            self.enter("OPEN", now)
        elif len(told) >= self.policy.successes_min:
            self.enter("CLOSED", now)

    def enter(self, state: str, now: float) -> None:
        self.changes.append((now, self.state, state))
        self.state, self.entered, self.era = state, now, self.era + 1
        self.calls, self.outcomes = [], []


class BreakerMachine(RuleBasedStateMachine):
    running = Bundle("running")
    ended = Bundle("ended")

    @initialize(
        failures_max=st.integers(1, 3),
        open_quarters=st.integers(1, 12),
        probes_max=st.integers(1, 3),
        successes_min=st.integers(1, 3),
    )
    def begin(self, failures_max: int, open_quarters: int, probes_max: int, successes_min: int) -> None:
        self.now = 1000.0
        self.told: list[BreakerChanged] = []
        self.late = 0
        self.policy = BreakerPolicy(failures_max, open_quarters * QUARTER, probes_max, successes_min)
        self.diagram = Diagram(self.policy)
        self.calls: dict[Permit, Call] = {}
        self.breaker = Breaker("it", self.policy, lambda: self.now, self.told.append)

    @rule(target=running)
    def call(self) -> Any:
        expected = self.diagram.admits(self.now)
        try:
            permit = self.breaker.acquire()
        except BreakerOpen as rejection:
            assert not expected
            self.check_rejection(rejection)
            return multiple()
        assert expected
        call = self.calls[permit] = Call(self.now, self.diagram.era)
        self.diagram.calls.append(call)
        return permit

    def check_rejection(self, rejection: BreakerOpen) -> None:
        wait = rejection.retry_after_seconds
        assert wait is not None
        assert "it" in rejection.detail
        assert self.diagram.state in rejection.detail
        assert 0 < wait <= self.policy.open_seconds
        if self.diagram.state == "OPEN":
            assert self.now + wait == self.diagram.entered + self.policy.open_seconds
        else:
            assert self.diagram.slots_taken(self.now + wait) < self.policy.probes_max
            assert self.diagram.slots_taken(self.now + wait - QUARTER) >= self.policy.probes_max

    @rule(target=ended, permit=consumes(running), outcome=OUTCOMES)
    def end(self, permit: Permit, outcome: str) -> Permit:
        call = self.calls[permit]
        if call.era != self.diagram.era:
            self.late += 1
            event(f"late {outcome} of a call let through in another state")
        self.settle(permit, outcome)
        return permit

    @rule(permit=ended, outcome=OUTCOMES)
    def end_again(self, permit: Permit, outcome: str) -> None:
        self.settle(permit, outcome)

    def settle(self, permit: Permit, outcome: str) -> None:
        self.diagram.settle(self.calls[permit], outcome, self.now)
        if outcome == "success":
            permit.success()
        elif outcome == "failure":
            permit.failure(OSError())
        else:
            permit.drop()

    @rule(calls=st.integers(1, 5), outcome=OUTCOMES)
    def burst(self, calls: int, outcome: str) -> None:
        """Let calls begin together and end together: twin probes, and the quick way to a trip."""
        for permit in [permit for permit in (self.call() for _ in range(calls)) if isinstance(permit, Permit)]:
            self.settle(permit, outcome)

    @rule(target=running, outcome=OUTCOMES)
    def overtake(self, outcome: str) -> Any:
        """Let a call begin and others overtake it, enough of them to change the state."""
        overtaken = self.call()
        for _ in range(4):
            self.burst(1, outcome)
        return overtaken

    @rule(quarters=st.integers(1, 13))
    def wait(self, quarters: int) -> None:
        self.now += quarters * QUARTER

    @rule(target=running)
    def come_again(self) -> Any:
        """Whoever is told when to come again, and does, is let through unless another was first."""
        try:
            permit = self.breaker.acquire()
        except BreakerOpen as rejection:
            assert not self.diagram.admits(self.now)
            self.now += rejection.retry_after_seconds or 0.0
            return self.call() if self.diagram.admits(self.now) else pytest.fail("told to come too early")
        assert self.diagram.admits(self.now)
        self.calls[permit] = Call(self.now, self.diagram.era)
        self.diagram.calls.append(self.calls[permit])
        return permit

    @rule()
    def look(self) -> None:
        assert self.breaker.state == self.diagram.look(self.now)
        status = self.breaker.describe()
        assert status.state == self.diagram.state
        assert status.probes == (self.diagram.slots_taken(self.now) if status.state == "HALF_OPEN" else 0)
        assert (status.retry_after_seconds == 0) == self.diagram.admits(self.now)

    @invariant()
    def every_change_is_told_and_is_an_arrow_of_the_diagram(self) -> None:
        changes = [(each.at, each.before, each.after) for each in self.told]
        assert changes == self.diagram.changes
        assert {(before, after) for _, before, after in changes} <= ARROWS

    def teardown(self) -> None:
        arrows = [(each.before, each.after) for each in self.told]
        for arrow in sorted(set(arrows)):
            event(f"{arrow[0]} -> {arrow[1]}")
        target(float(arrows.count(("HALF_OPEN", "CLOSED"))), label="recoveries")
        target(float(arrows.count(("HALF_OPEN", "OPEN"))), label="relapses")
        target(float(self.late), label="late outcomes")


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(stateful_step_count=50)
