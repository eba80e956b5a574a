"""The composed guard driven by concurrent callers, whose work takes its time, fails, is cancelled or given up.

The callers are real tasks on the simulator's loop, which the rules step by hand, so that a cancellation can fall
between any two steps: while a call waits for a slot, works, pauses before a retry, or is read.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from math import inf

from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestra.errors import DeadlineExceeded, InvalidRequest, OrchestraError, ProviderFailed, ProviderOverloaded
from orchestra.events import BreakerChanged, CallFinished, CallHedged, CallRetried, Event
from orchestra.policies import GuardPolicy
from orchestra.resilience.deadline import deadline_within
from orchestra.resilience.guard import Guard
from sim.loop import SimEnvironment

QUARTER = 0.25
ENDS = ("fine", "fails", "overloaded", "refuses", "bug", "stubborn")
ALLOWED = {("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "OPEN"), ("HALF_OPEN", "CLOSED")}


@dataclass(eq=False)
class Caller:
    number: int
    ends: list[tuple[int, str]]  # of each attempt: after how many quarters of a second, and how
    began: float
    attempts: int = 0
    cancelled: bool = False
    heard: int = 0
    task: asyncio.Task[None] = field(init=False)


class GuardMachine(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 3),
        queue=st.integers(0, 3),
        attempts=st.integers(1, 4),
        hedges=st.integers(1, 2),
        failures=st.integers(1, 4),
        probes=st.integers(1, 2),
    )
    def begin(self, slots: int, queue: int, attempts: int, hedges: int, failures: int, probes: int) -> None:
        self.env = SimEnvironment(100.0)
        self.policy = GuardPolicy.model_validate(
            {
                "retry": {"attempts_max": attempts, "base_seconds": 0.5, "budget_min": 2},
                "hedge": {"attempts_max": hedges, "delay_seconds": 0.5},
                "breaker": {"failures_max": failures, "probes_max": probes, "open_seconds": 2, "open_jitter": 0},
                "bulkhead": {"concurrent_max": slots, "queue_max": queue, "wait_seconds_max": 1},
                "attempt": {"first_seconds_max": 1, "between_seconds_max": 1, "total_seconds_max": 2},
            }
        )
        self.events: list[Event] = []
        self.guard = Guard("it", self.policy, self.env.loop.time, lambda: 0.5, self.events.append)
        self.callers: list[Caller] = []
        self.working = 0
        self.rejecting_began: list[int] = []

    # --- what the dependency does

    async def work(self, caller: Caller, begins: bool = True) -> str:
        quarters, end = caller.ends[min(caller.attempts, len(caller.ends) - 1)]
        caller.attempts += 1
        assert not begins or self.guard.breaker.mode != "forced_open", "an attempt came through a breaker held open"
        self.working += 1
        try:
            await asyncio.sleep(quarters * QUARTER)
            if end == "fails":
                raise ProviderFailed("it fails")
            if end == "overloaded":
                raise ProviderOverloaded("too much", retry_after_seconds=0.5)
            if end == "refuses":
                raise InvalidRequest("not like this")
            if end == "bug":
                raise ZeroDivisionError
        except asyncio.CancelledError:
            if end == "stubborn":  # it holds its slot until it has really ended
                await asyncio.sleep(QUARTER)
            raise
        finally:
            self.working -= 1
        return "fine"

    async def tell(self, caller: Caller) -> AsyncGenerator[str, None]:
        for item in range(3):
            yield await self.work(caller, begins=item == 0)
            caller.attempts -= 1

    # --- what happens to it

    async def one(self, caller: Caller, kind: str, read: int, patience: int | None, slowly: int) -> None:
        with deadline_within(8.0), deadline_within(inf if patience is None else patience * QUARTER, ours=False):
            if kind == "stream":
                stream = self.guard.stream(str(caller.number), lambda: self.tell(caller))
                try:
                    async for _ in stream:
                        caller.heard += 1
                        await asyncio.sleep(slowly * QUARTER)
                        if caller.heard == read:
                            break
                finally:
                    await stream.aclose()
            else:
                await self.guard.call(str(caller.number), lambda: self.work(caller), idempotent=kind == "idempotent")

    @rule(
        callers=st.integers(1, 3),
        kind=st.sampled_from(["call", "idempotent", "stream"]),
        ends=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ENDS)), min_size=1, max_size=3),
        read=st.integers(1, 4),
        patience=st.none() | st.integers(1, 12),
        slowly=st.integers(0, 9),
    )
    def arrive(
        self, callers: int, kind: str, ends: list[tuple[int, str]], read: int, patience: int | None, slowly: int
    ) -> None:
        for _ in range(callers):
            caller = Caller(len(self.callers), ends, self.env.now)
            caller.task = self.env.loop.create_task(self.one(caller, kind, read, patience, slowly))
            self.callers.append(caller)

    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        if pending := self.pending():
            caller = pending[which % len(pending)]
            caller.cancelled = True
            caller.task.cancel()

    @rule(order=st.sampled_from(["force_open", "disable", "observe_only", "reset", "reset"]))
    def operate(self, order: str) -> None:
        getattr(self.guard.breaker, order)("a test")

    @rule(iterations=st.integers(1, 5))
    def let_run(self, iterations: int) -> None:
        for _ in range(iterations):
            if self.env.peek() <= self.env.now:
                self.env.step()

    @rule(quarters=st.integers(1, 12))
    def wait(self, quarters: int) -> None:
        self.env.run(until=self.env.now + quarters * QUARTER)

    # --- what holds

    def pending(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.task.done()]

    def told(self, kind: type) -> int:
        return sum(isinstance(each, kind) for each in self.events)

    @invariant()
    def no_more_at_work_than_slots(self) -> None:
        if not hasattr(self, "env"):
            return
        status = self.guard.bulkhead.describe()
        assert self.working <= status.running <= status.limit == self.policy.bulkhead.concurrent_max
        assert status.waiting <= self.policy.bulkhead.queue_max

    @invariant()
    def no_more_probes_than_allowed(self) -> None:
        if hasattr(self, "env"):
            assert 0 <= self.guard.breaker.describe().probes <= self.policy.breaker.probes_max

    @invariant()
    def retries_and_hedges_stay_within_the_budget(self) -> None:
        if not hasattr(self, "env"):
            return
        recent = [
            each for each in self.events if isinstance(each, (CallRetried, CallHedged)) and each.at > self.env.now - 9
        ]
        calls = len(self.callers)
        assert len(recent) <= max(self.policy.retry.budget_min, self.policy.retry.budget_ratio * calls)

    def teardown(self) -> None:
        if not hasattr(self, "env"):
            return
        target(float(self.told(CallRetried)), label="retries")
        target(float(self.told(CallHedged)), label="hedges")
        target(float(self.told(BreakerChanged)), label="changes of the breaker")
        self.env.run(until=self.env.now + 60)
        assert not self.pending(), "a call outlasts its turn's deadline"
        for caller in self.callers:
            self.check_end(caller)
        self.check_what_was_told()
        assert self.working == 0
        status = self.guard.bulkhead.describe()
        assert (status.running, status.waiting) == (0, 0), "a slot or a place in the queue is lost"
        self.guard.breaker.reset("a test")
        for _ in range(self.policy.bulkhead.concurrent_max):
            assert self.guard.bulkhead.try_acquire()
        self.guard.close()
        while self.env.peek() <= self.env.now:
            self.env.step()
        assert self.env.peek() == inf, "a timer is left behind"
        self.env.loop.close()

    def check_end(self, caller: Caller) -> None:
        if caller.task.cancelled():
            assert caller.cancelled, "somebody was cancelled whom nobody cancelled"
            event("cancelled")
            return
        error = caller.task.exception()
        assert error is None or isinstance(error, (OrchestraError, ZeroDivisionError)), error
        if isinstance(error, DeadlineExceeded):
            event("late")

    def check_what_was_told(self) -> None:
        """Each call that ran is told of once, and changes of state are those of the diagram, or an operator's."""
        finished = [each.correlation_id for each in self.events if isinstance(each, CallFinished)]
        assert len(finished) == len(set(finished)) <= len(self.callers)
        started = [caller for caller in self.callers if caller.attempts]
        assert {str(caller.number) for caller in started} <= set(finished)
        for change in self.events:
            if isinstance(change, BreakerChanged) and not change.reason.startswith(
                ("forced", "disabled", "observing", "reset")
            ):
                assert (change.before, change.after) in ALLOWED, change


TestGuard = GuardMachine.TestCase
TestGuard.settings = settings(stateful_step_count=40)
