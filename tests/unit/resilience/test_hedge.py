"""Hedged calls in virtual time: who answers, what is started, and that nothing is left running."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from orchestra.errors import (
    BreakerOpen,
    BulkheadFull,
    OrchestraError,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRefused,
)
from orchestra.policies import HedgePolicy, RetryPolicy
from orchestra.resilience.deadline import current, deadline_within
from orchestra.resilience.hedge import hedged
from orchestra.resilience.retry import RetryBudget
from sim import loop

T = TypeVar("T")
THREE = HedgePolicy(attempts_max=3, delay_seconds=1.0)


def now() -> float:
    return round(asyncio.get_running_loop().time(), 3)


class Dependency:
    """Answers its n-th call after the seconds, and with the answer or the error, that are written down for it."""

    def __init__(self, *endings: tuple[float, str | BaseException], farewell_seconds: float = 0.0) -> None:
        self.endings = endings
        self.farewell_seconds = farewell_seconds  # how long a cancelled call takes to clean up
        self.started: list[float] = []
        self.hedges: list[float] = []
        self.log: list[str] = []
        self.running = 0

    async def work(self) -> str:
        seconds, ending = self.endings[len(self.started)]
        self.started.append(now())
        name = len(self.started)
        self.running += 1
        try:
            await asyncio.sleep(seconds)
            self.log.append(f"{name} ended at {now():.3f}")
        except asyncio.CancelledError:
            self.log.append(f"{name} cancelled at {now():.3f}")
            await asyncio.sleep(self.farewell_seconds)
            raise
        finally:
            self.running -= 1
        if isinstance(ending, BaseException):
            raise ending
        return ending

    async def hedged(self, policy: HedgePolicy = THREE, *, budget_min: int = 10) -> str:
        self.budget = RetryBudget(RetryPolicy(budget_min=budget_min), asyncio.get_running_loop().time)
        return await hedged(self.work, policy, self.budget, lambda: self.hedges.append(now()))


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run in virtual time; fail if a task is left, or an error that nobody looked at."""
    complaints: list[dict[str, Any]] = []

    async def checked() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        try:
            return await main()
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    gc.freeze()  # the collection below need only look at what is new
    try:
        return loop.run(checked())
    finally:
        gc.collect()
        gc.unfreeze()
        assert complaints == []


def test_one_call_at_most_is_just_awaited() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def work() -> str:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(5.0)
        return "a"

    async def main() -> None:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        assert await hedged(work, HedgePolicy(), budget, lambda: pytest.fail("hedged")) == "a"
        assert tasks == [asyncio.current_task()]

    run(main)


def test_a_quick_answer_is_not_hedged() -> None:
    dependency = Dependency((0.9, "a"))
    assert run(dependency.hedged) == "a"
    assert dependency.hedges == []
    assert dependency.budget.describe().retries == 0


def test_a_slow_answer_is_hedged_as_often_as_the_policy_says() -> None:
    dependency = Dependency((9.0, "a"), (9.0, "b"), (9.0, "c"))
    assert run(dependency.hedged) == "a"
    assert dependency.started == [0.0, 1.0, 2.0]
    assert dependency.hedges == [1.0, 2.0]
    assert dependency.budget.describe().retries == 2
    assert dependency.log == ["1 ended at 9.000", "2 cancelled at 9.000", "3 cancelled at 9.000"]


def test_the_first_answer_wins_and_the_others_are_cancelled() -> None:
    dependency = Dependency((9.0, "a"), (0.5, "b"))
    assert run(dependency.hedged) == "b"
    assert dependency.log == ["2 ended at 1.500", "1 cancelled at 1.500"]
    assert dependency.running == 0


def test_a_hedge_that_the_budget_refuses_is_left_out() -> None:
    dependency = Dependency((9.0, "a"), (9.0, "b"))
    assert run(lambda: dependency.hedged(budget_min=1)) == "a"
    assert dependency.started == [0.0, 1.0]
    assert dependency.hedges == [1.0]
    alone = Dependency((9.0, "a"))
    assert run(lambda: alone.hedged(budget_min=0)) == "a"
    assert alone.hedges == []


def test_an_error_before_the_first_hedge_is_the_retrys_to_see() -> None:
    dependency = Dependency((0.5, ProviderFailed("first")))
    with pytest.raises(ProviderFailed, match="first"):
        run(dependency.hedged)
    assert dependency.started == [0.0]


@pytest.mark.parametrize(
    "error", [ProviderFailed("no"), ProviderOverloaded("no"), BulkheadFull("no"), BreakerOpen("no")]
)
def test_after_an_error_the_others_may_still_answer_and_none_is_added(error: OrchestraError) -> None:
    dependency = Dependency((5.0, "a"), (0.5, error))
    assert run(dependency.hedged) == "a"
    assert dependency.hedges == [1.0]
    other_way_round = Dependency((1.5, error), (5.0, "b"))
    assert run(other_way_round.hedged) == "b"
    assert other_way_round.log == ["1 ended at 1.500", "2 ended at 6.000"]


@pytest.mark.parametrize("error", [ProviderRefused("no"), KeyError("no"), asyncio.CancelledError("no")])
def test_an_error_for_good_ends_all(error: BaseException) -> None:
    dependency = Dependency((9.0, "a"), (0.5, error))
    with pytest.raises(type(error)):
        run(dependency.hedged)
    assert dependency.log == ["2 ended at 1.500", "1 cancelled at 1.500"]


def test_when_all_fail_it_is_as_without_hedging() -> None:
    dependency = Dependency((5.0, ProviderFailed("first")), (0.5, BulkheadFull("second")))
    with pytest.raises(ProviderFailed, match="first"):
        run(dependency.hedged)
    assert dependency.log == ["2 ended at 1.500", "1 ended at 5.000"]


@pytest.mark.parametrize(("older", "newer", "answer"), [("a", "b", "a"), (ProviderRefused("no"), "b", "b")])
def test_of_calls_that_end_at_once_the_older_counts_but_an_answer_before_an_error(
    older: str | Exception, newer: str, answer: str
) -> None:
    async def main() -> str:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        end = asyncio.Event()
        endings = iter([older, newer])

        async def work() -> str:
            ending = next(endings)
            await end.wait()  # so that the calls end in one turn of the loop
            if isinstance(ending, Exception):
                raise ending
            return ending

        asyncio.get_running_loop().call_later(1.5, end.set)
        return await hedged(work, THREE, budget, lambda: None)

    assert run(main) == answer


def test_what_fails_before_it_is_awaited_fails_the_call() -> None:
    def work() -> Coroutine[Any, Any, str]:
        raise ProviderRefused("not even begun")

    async def main() -> None:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        with pytest.raises(ProviderRefused, match="not even begun"):
            await hedged(work, THREE, budget, lambda: None)

    run(main)


def test_a_listener_that_fails_leaves_no_call_running() -> None:
    dependency = Dependency((9.0, "a"))

    def listener() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        with pytest.raises(ZeroDivisionError):
            await hedged(dependency.work, THREE, budget, listener)

    run(main)
    assert dependency.log == ["1 cancelled at 1.000"]


def test_losers_are_waited_for() -> None:
    dependency = Dependency((9.0, "a"), (0.5, "b"), farewell_seconds=2.0)

    async def main() -> None:
        assert await dependency.hedged() == "b"
        assert dependency.running == 0
        assert now() == 3.5

    run(main)


def test_a_loser_that_fails_as_it_is_cancelled_is_nobodys_business() -> None:
    calls: list[int] = []

    async def work() -> str:
        calls.append(1)
        if len(calls) == 2:
            return "b"
        try:
            await asyncio.sleep(9.0)
        finally:
            raise KeyError("while cleaning up")

    async def main() -> None:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        assert await hedged(work, THREE, budget, lambda: None) == "b"

    run(main)


@pytest.mark.parametrize("after", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
def test_cancelled_at_any_time_all_calls_are_and_are_waited_for(after: float) -> None:
    """Before the first starts, between hedges, as one starts, with all under way, and while losers clean up."""
    dependency = Dependency((9.0, "a"), (9.0, "b"), (0.75, "c"), farewell_seconds=1.0)  # done at 2.75, returns at 3.75

    async def main() -> None:
        task = asyncio.create_task(dependency.hedged())
        if after:
            await asyncio.sleep(after)
        task.cancel("the caller has gone")
        with pytest.raises(asyncio.CancelledError, match="the caller has gone"):
            await task
        assert dependency.running == 0
        assert task.cancelling() == 1
        farewells = [line for line in dependency.log if "cancelled" in line]
        assert len(farewells) == len(dependency.started) - ("3 ended at 2.750" in dependency.log)

    run(main)


@pytest.mark.parametrize("turns", range(12))
def test_cancelled_at_every_turn_of_the_loop_nothing_is_left(turns: int) -> None:
    """Here each step of the calls takes one turn of the loop, so each place where `hedged` waits is met."""
    running = 0

    async def work() -> str:
        nonlocal running
        running += 1
        try:
            for _ in range(4):
                await asyncio.sleep(0)
        finally:
            running -= 1
        return "a"

    async def main() -> None:
        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        policy = HedgePolicy(attempts_max=3, delay_seconds=1e-12)
        task = asyncio.create_task(hedged(work, policy, budget, lambda: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert running == 0
        assert task.cancelled() or task.result() == "a"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_a_caller_that_is_cancelled_again_still_leaves_nothing_behind() -> None:
    dependency = Dependency((9.0, "a"), (9.0, "b"), farewell_seconds=10.0)

    async def main() -> None:
        task = asyncio.create_task(dependency.hedged())
        await asyncio.sleep(1.5)
        task.cancel("first")
        await asyncio.sleep(1.0)
        task.cancel("second")  # is passed on, and cuts the farewells short
        with pytest.raises(asyncio.CancelledError, match="second"):
            await task
        assert now() == 2.5
        assert dependency.running == 0

    run(main)


def test_calls_see_the_callers_context() -> None:
    async def main() -> None:
        async def work() -> float:
            deadline = current()
            return 0.0 if deadline is None else deadline.at

        budget = RetryBudget(RetryPolicy(), asyncio.get_running_loop().time)
        with deadline_within(7.0):
            assert await hedged(work, THREE, budget, lambda: None) == 7.0

    run(main)
