"""The bulkhead driven through all orders of arrivals, ends, cancellations, timers and moving limits.

The callers are real tasks on the simulator's loop, which the rules step by hand: `let_run` runs one iteration, so a
cancellation can fall between any two of them, and into the very one in which a slot is handed over.
"""

import asyncio
from dataclasses import dataclass, field
from math import inf

from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestra.errors import BulkheadFull
from orchestra.policies import BulkheadPolicy
from orchestra.resilience.bulkhead import Bulkhead, WaitCut
from sim.loop import TICK_S, SimEnvironment

QUARTER = 0.25
PICK = st.integers(0, 99)  # the place in a list, modulo its length


@dataclass(eq=False)
class Caller:
    number: int
    until: float
    arrived: float = inf  # when it asked
    cancelled: bool = False
    task: asyncio.Task[None] = field(init=False)


class BulkheadMachine(RuleBasedStateMachine):
    @initialize(
        limit=st.sampled_from(["fixed", "gradient2"]),
        slots=st.integers(1, 4),
        queue=st.integers(0, 6),
        wait_quarters=st.integers(0, 8),
    )
    def begin(self, limit: str, slots: int, queue: int, wait_quarters: int) -> None:
        self.env = SimEnvironment(1000.0)
        self.policy = BulkheadPolicy.model_validate(
            {
                "limit": limit,
                "concurrent_max": slots,
                "concurrent_min": 1,
                "queue_max": queue,
                "wait_seconds_max": wait_quarters * QUARTER,
            }
        )
        self.bulkhead = Bulkhead("it", self.policy, self.env.loop.time)
        self.callers: list[Caller] = []
        self.order: list[int] = []  # of those that waited and were let in, as they were
        self.holding = 0
        self.lost = 0
        self.shrinks = self.grown = 0
        self.most = 0  # that may run: the limit, or those it has caught by shrinking

    async def call(self, caller: Caller) -> None:
        caller.arrived = self.env.now
        before = self.bulkhead.describe()
        ahead = any(self.waits(other) for other in self.callers)
        try:
            await self.bulkhead.acquire(caller.until)
        except BulkheadFull as refusal:
            self.check_refusal(caller, before.waiting, refusal)
            return
        self.holding += 1
        if before.running >= before.limit:
            self.order.append(caller.number)
        else:  # perhaps before one whose slot was handed over in this very step wakes up to it
            assert not ahead, "it overtook those who wait"

    def check_refusal(self, caller: Caller, waiting_before: int, refusal: BulkheadFull) -> None:
        patience_ends = caller.arrived + self.policy.wait_seconds_max
        if "no more may wait" in refusal.detail:
            assert waiting_before == self.policy.queue_max
            assert self.env.now == caller.arrived
            return
        event("waited in vain")
        ends = max(caller.arrived, min(caller.until, patience_ends))
        assert ends <= self.env.now <= ends + 10 * TICK_S
        assert isinstance(refusal, WaitCut) == (caller.until < patience_ends)

    # --- what happens to it

    @rule(callers=st.integers(1, 4), until_quarters=st.none() | st.integers(-1, 6))
    def arrive(self, callers: int, until_quarters: int | None) -> None:
        for _ in range(callers):
            until = inf if until_quarters is None else self.env.now + until_quarters * QUARTER
            caller = Caller(len(self.callers), until)
            caller.task = self.env.loop.create_task(self.call(caller))
            self.callers.append(caller)

    @rule()
    def try_at_once(self) -> None:
        live = [caller for caller in self.callers if self.waits(caller)]
        if self.bulkhead.try_acquire():
            assert not live, "it overtook those who wait"
            self.holding += 1
            event("let in at once")

    @precondition(lambda self: self.holding)
    @rule(calls=st.integers(1, 4), seconds=st.none() | st.sampled_from([0.0, 0.1, 1.0, 5.0]), dropped=st.booleans())
    def end(self, calls: int, seconds: float | None, dropped: bool) -> None:
        for _ in range(min(calls, self.holding)):
            self.release(seconds, dropped)

    def release(self, seconds: float | None, dropped: bool) -> None:
        before = self.bulkhead.describe()
        self.holding -= 1
        self.bulkhead.release(seconds, dropped=dropped)
        after = self.bulkhead.describe()
        assert after.running <= max(after.limit, before.running - 1)
        if after.limit < before.limit:
            self.shrinks += 1
            event("the limit shrank")
        if after.limit > before.limit and before.waiting:
            self.grown += 1
            event("the limit grew while callers waited")

    @precondition(lambda self: self.policy.limit == "gradient2")
    @rule(windows=st.lists(st.sampled_from(["good", "slow", "dropped"]), min_size=1, max_size=4), waiters=PICK)
    def busy_seconds(self, windows: list[str], waiters: int) -> None:
        """Fill windows of the adaptive limit, each ended by a call while others may wait."""
        for window in windows:
            self.wait(4)
            for _ in range(9):
                self.end_one_of_many(window)
            self.arrive(1 + waiters % 4, None)
            self.settle()
            self.end_one_of_many(window)

    def end_one_of_many(self, window: str) -> None:
        while self.bulkhead.try_acquire():
            self.holding += 1
        self.settle()
        if self.holding:
            self.release(9.0 if window == "slow" else 0.1, window == "dropped")
        self.settle()

    @precondition(lambda self: self.pending())
    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def cancel(self, picks: list[int]) -> None:
        pending = self.pending()
        for pick in picks:
            self.cancel_one(pending[pick % len(pending)])

    def cancel_one(self, caller: Caller) -> None:
        caller.cancelled = True
        caller.task.cancel()

    @precondition(lambda self: self.holding and any(self.waits(caller) for caller in self.callers))
    @rule(first=st.booleans(), pick=PICK, both=st.booleans())
    def cancel_as_a_slot_comes(self, first: bool, pick: int, both: bool) -> None:
        """The classic lost wake-up: the waiter that is handed a slot is cancelled in the same step."""
        waiting = [caller for caller in self.callers if self.waits(caller)]
        chosen = waiting[:2] if both else [waiting[0 if first else pick % len(waiting)]]
        if pick % 2:
            self.release(None, False)
        for caller in chosen:
            self.cancel_one(caller)
        if not pick % 2:
            self.release(None, False)
        self.lost += 1

    @rule(iterations=st.integers(1, 3))
    def let_run(self, iterations: int) -> None:
        for _ in range(iterations):
            if self.env.peek() <= self.env.now:
                self.env.step()

    @rule(quarters=st.integers(1, 9))
    def wait(self, quarters: int) -> None:
        self.env.run(until=self.env.now + quarters * QUARTER)
        self.settle()

    # --- what holds

    def pending(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.task.done()]

    def waits(self, caller: Caller) -> bool:
        """Tell whether the caller stands in the queue: it has asked, and neither it nor anyone else has ended that."""
        waiter = getattr(caller.task, "_fut_waiter", None)
        return waiter is not None and not waiter.done()

    def settle(self) -> None:
        while self.env.peek() <= self.env.now:
            self.env.step()

    @invariant()
    def no_more_run_than_may(self) -> None:
        status = self.bulkhead.describe()
        assert self.holding <= status.running
        self.most = max(status.limit, min(self.most, status.running))
        assert status.running <= self.most <= self.policy.concurrent_max
        if self.policy.limit == "fixed":
            assert status.limit == self.policy.concurrent_max
        assert 1 <= status.limit <= self.policy.concurrent_max
        assert status.waiting <= self.policy.queue_max

    @invariant()
    def no_slot_lies_about_while_someone_waits(self) -> None:
        status = self.bulkhead.describe()
        if any(self.waits(caller) for caller in self.callers):
            assert status.running >= status.limit

    @invariant()
    def only_who_waits_is_in_the_queue(self) -> None:
        if self.env.peek() > self.env.now:  # else one that was cancelled has yet to hear of it
            assert self.bulkhead.describe().waiting == sum(map(self.waits, self.callers))

    @invariant()
    def they_are_let_in_as_they_came(self) -> None:
        assert self.order == sorted(self.order)

    @invariant()
    def nobody_waits_longer_than_allowed(self) -> None:
        for caller in self.callers:
            if self.waits(caller):
                ends = min(caller.until, caller.arrived + self.policy.wait_seconds_max)
                assert self.env.now <= ends + 10 * TICK_S

    def teardown(self) -> None:
        if not hasattr(self, "env"):
            return
        target(float(self.lost), label="cancelled as a slot came")
        target(float(self.shrinks), label="shrinks")
        target(float(self.grown), label="grown while callers waited")
        self.settle()
        while self.holding:
            self.release(None, False)
            self.settle()
        assert not self.pending(), "a slot is lost, or a caller is deaf"
        for caller in self.callers:
            assert caller.task.cancelled() <= caller.cancelled
            assert caller.task.cancelled() or caller.task.exception() is None
        status = self.bulkhead.describe()
        assert (status.running, status.waiting) == (0, 0)
        assert self.env.peek() == inf, "a timer is left behind"
        assert self.bulkhead.try_acquire()
        self.env.loop.close()


TestBulkhead = BulkheadMachine.TestCase
TestBulkhead.settings = settings(stateful_step_count=40)
