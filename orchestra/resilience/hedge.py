"""Hedging: a second, equal call beside a slow one, and the first answer wins (Dean and Barroso, "The Tail at Scale").

Only for calls that may be made twice. Each further call takes from the retry budget, so that a dependency which is slow
for everyone is not asked twice by everyone (gRPC proposal A6).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from orchestra.errors import OrchestraError
from orchestra.policies import HedgePolicy
from orchestra.resilience.retry import RetryBudget

T = TypeVar("T")


async def hedged(
    work: Callable[[], Awaitable[T]], policy: HedgePolicy, budget: RetryBudget, on_hedge: Callable[[], None]
) -> T:
    """Return the first answer of equal calls, of which another starts each time that none has ended for a while.

    A call that fails ends the starting of others, which is the retry's to do, but those under way go on and may still
    answer. An error that no attempt can help against ends all of them. When all have failed, the error is that of the
    call that started first: what the caller would have met without hedging, and not, say, the rejection of a hedge by
    a full bulkhead. Whatever the end, no call is left running.

    Parameters
    ----------
    work : callable
        Makes one call. Each runs in a task of its own, unless the policy never hedges.
    policy : HedgePolicy
    budget : RetryBudget
        Asked once for each further call; where it says no, that one is left out.
    on_hedge : callable
        Told of each further call before it starts.
    """
    if policy.attempts_max == 1:
        return await work()
    calls = [asyncio.create_task(_made(work))]
    try:
        for _ in range(policy.attempts_max - 1):
            await asyncio.wait(calls, timeout=policy.delay_seconds, return_when=asyncio.FIRST_COMPLETED)
            if any(call.done() for call in calls):
                break
            if budget.withdraw():
                on_hedge()
                calls.append(asyncio.create_task(_made(work)))
        while (decisive := _decisive(calls)) is None:
            await asyncio.wait(_running(calls), return_when=asyncio.FIRST_COMPLETED)
        return decisive.result()
    finally:
        await _end(calls)


async def _made(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _running(calls: Sequence[asyncio.Task[T]]) -> list[asyncio.Task[T]]:
    return [call for call in calls if not call.done()]


def _decisive(calls: Sequence[asyncio.Task[T]]) -> asyncio.Task[T] | None:
    """Return the call whose end is that of all, in order: an answer, an error for good, the first of all errors."""
    ended = [call for call in calls if call.done()]
    for call in ended:
        if not call.cancelled() and call.exception() is None:
            return call
    for call in ended:
        if call.cancelled() or not _another_may_answer(call.exception()):
            return call
    return calls[0] if len(ended) == len(calls) else None


def _another_may_answer(error: BaseException | None) -> bool:
    # unlike `retriable` also after our own rejections: the other calls were let through
    return isinstance(error, OrchestraError) and error.retryable


async def _end(calls: Sequence[asyncio.Task[T]]) -> None:
    """Cancel what still runs and wait for it to end, also while being cancelled, which is passed on and then raised."""
    cancelled: asyncio.CancelledError | None = None
    while running := _running(calls):
        for call in running:
            call.cancel()
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError as again:
            cancelled = again
    for call in calls:
        if not call.cancelled():
            call.exception()  # retrieved: nobody else will ask
    if cancelled is not None:
        raise cancelled
