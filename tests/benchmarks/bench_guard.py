"""What the whole guard costs a call that goes well: deadline, retry, breaker, bulkhead, attempt timeout.

Interleaved, best of many, in one process: the unit is a bare await of the same coroutine, measured beside it.
"""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from time import process_time
from typing import Any

from orchestra.errors import BreakerOpen
from orchestra.events import Event
from orchestra.policies import GuardPolicy
from orchestra.resilience.deadline import deadline_within
from orchestra.resilience.guard import Guard

CALLS = 5_000
REPEATS = 40
REJECTIONS = 1_000_000
BARE_AWAITS_MAX = 32


async def _work() -> int:
    return 1


def _forget(event: Event) -> None:
    """Listen to nothing: what a listener does is its own cost."""


def _guard() -> Guard:
    loop = asyncio.get_running_loop()
    return Guard("bench", GuardPolicy(), loop.time, lambda: 0.5, _forget)


async def _seconds(call: Callable[[], Awaitable[Any]]) -> float:
    started = process_time()
    for _ in range(CALLS):
        await call()
    return (process_time() - started) / CALLS


async def _costs() -> tuple[float, float, float]:
    """Return seconds a call: bare, guarded, and by `asyncio.timeout` alone."""
    guard = _guard()

    async def guarded() -> int:
        return await guard.call("c", _work)

    async def timed() -> int:
        async with asyncio.timeout(60):
            return await _work()

    best = [float("inf")] * 3
    with deadline_within(75):
        for _ in range(REPEATS):
            for number, call in enumerate((_work, guarded, timed)):
                best[number] = min(best[number], await _seconds(call))
    guard.close()
    return best[0], best[1], best[2]


async def _rejections() -> float:
    """Return the bytes by which the process grew over a million rejections."""
    guard = _guard()
    guard.breaker.force_open("bench")

    async def storm(count: int) -> None:
        for _ in range(count):
            try:
                await guard.call("c", _work)
            except BreakerOpen:
                continue

    await storm(1_000)
    tracemalloc.start()
    await storm(1_000)
    gc.collect()  # what only waits to be collected is no growth
    before = tracemalloc.get_traced_memory()[0]
    await storm(REJECTIONS)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    guard.close()
    return grown


def run() -> Iterator[dict[str, Any]]:
    """Yield one measurement per question."""
    bare, guarded, timed = asyncio.run(_costs())
    yield {
        "name": "guard.call",
        "value": round((guarded - bare) / bare, 1),
        "unit": "bare awaits over a bare await",
        "against": f"a bare await of {bare * 1e9:.0f} ns, target <= {BARE_AWAITS_MAX}; "
        f"asyncio.timeout alone takes {(timed - bare) / bare:.1f}",
    }
    yield {
        "name": "guard.rejections",
        "value": round(asyncio.run(_rejections())),
        "unit": f"bytes grown over {REJECTIONS:,} rejections",
        "against": "none, target < 10,000",
    }
