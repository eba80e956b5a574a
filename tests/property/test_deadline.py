"""The watchdog against `asyncio.timeout_at`: the same story, told once with each, ends the same way.

Deadlines lie at odd eighths of a second and everything else at quarters, so that nothing but deadlines can tie. What
cannot tie in these stories, a cancellation in the same turn of the loop as a deadline, has its unit test.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hypothesis import event, given, target
from hypothesis import strategies as st

from orchestra.resilience.deadline import Watchdog
from sim import loop

SECONDS_MAX = 5
QUARTERS = st.integers(0, 4 * SECONDS_MAX).map(lambda number: number / 4)
DEADLINES = st.one_of(st.integers(0, 4 * SECONDS_MAX).map(lambda number: number / 4 + 0.125), st.just(float("inf")))

Bounded = Callable[[float, Callable[[], Awaitable[str]]], Awaitable[str]]


@dataclass(frozen=True)
class Call:
    """One call of a story: when it begins, until when it may last, and what it does; a call may lie within a call."""

    begins: float
    deadline: float
    lasts: float
    manners: str
    inner: "Call | None"
    caller_leaves: float


CALLS = st.recursive(
    st.none(),
    lambda inner: st.builds(
        Call,
        QUARTERS,
        DEADLINES,
        QUARTERS,
        st.sampled_from(["plain", "swallows", "fails instead", "tidies up"]),
        inner,
        st.one_of(st.just(100.0), QUARTERS),
    ),
    max_leaves=3,
).filter(lambda call: call is not None)


async def work(call: Call, bounded: Bounded) -> str:
    try:
        if call.inner is not None:
            inner = call.inner
            within = await bounded(inner.deadline, lambda: work(inner, bounded))
            await asyncio.sleep(call.lasts)
            return f"done with ({within})"
        await asyncio.sleep(call.lasts)
    except asyncio.CancelledError:
        if call.manners == "swallows":
            return "swallowed"
        if call.manners == "fails instead":
            raise KeyError from None
        if call.manners == "tidies up":
            await asyncio.sleep(0.5)
        raise
    return "done"


async def told(call: Call, bounded: Bounded) -> str:
    """Say how the call ended, when, and how many requests to cancel its task are left."""
    task = asyncio.current_task()
    assert task is not None
    now = asyncio.get_running_loop().time
    try:
        ended = await bounded(call.deadline, lambda: work(call, bounded))
    except BaseException as error:
        ended = type(error).__name__
    ended = f"{ended} at {now():.6f}, {task.cancelling()} requests"
    try:
        await asyncio.sleep(10.0)  # a cancellation that comes too late would be seen here
    except asyncio.CancelledError:
        ended += f", cancelled at {now():.6f}"
    return ended


async def tell(calls: list[Call], bounded: Bounded) -> list[str]:
    running = asyncio.get_running_loop()
    tasks: dict[int, asyncio.Task[str]] = {}

    def begin(number: int, call: Call) -> None:
        tasks[number] = asyncio.create_task(told(call, bounded))
        running.call_later(call.caller_leaves, tasks[number].cancel)

    for number, call in enumerate(calls):
        running.call_at(call.begins, begin, number, call)
    await asyncio.sleep(SECONDS_MAX + 1)
    return [await tasks[number] if not tasks[number].cancelled() else "never began" for number in range(len(calls))]


async def with_timeouts(calls: list[Call]) -> list[str]:
    async def bounded(at: float, work: Callable[[], Awaitable[str]]) -> str:
        async with asyncio.timeout_at(at):
            return await work()

    return await tell(calls, bounded)


async def with_a_watchdog(calls: list[Call]) -> tuple[list[str], int]:
    watchdog = Watchdog()

    async def bounded(at: float, work: Callable[[], Awaitable[str]]) -> str:
        watch = watchdog.enter(at)
        try:
            result = await work()
        except BaseException as error:
            if watchdog.leave(watch, error):
                raise TimeoutError from error
            raise
        watchdog.leave(watch)
        return result

    ended = await tell(calls, bounded)
    return ended, len(watchdog._watches)


@given(st.lists(CALLS, min_size=1, max_size=8))
def test_a_watchdog_ends_calls_as_timeouts_do(calls: list[Call]) -> None:
    expected = loop.run(with_timeouts(calls))
    ended, left = loop.run(with_a_watchdog(calls))
    assert ended == expected
    assert left == 0
    for word in ("TimeoutError", "CancelledError", "KeyError", "swallowed", "done with", "cancelled at"):
        if count := sum(word in each for each in ended):
            event(word)
        target(float(count), label=word)
