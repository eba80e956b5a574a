"""A guard: the policies around every call of one dependency, outermost first: breaker, then attempt timeout.

Deadline, fallback, retry and bulkhead find their places around these in a later issue.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from orchestra.errors import BreakerOpen, DeadlineExceeded, kind_of
from orchestra.events import CallFinished, CallOutcome, Hook
from orchestra.resilience.breaker import Breaker, outcome_of

T = TypeVar("T")


@dataclass(frozen=True)
class AttemptLimits:
    """How long one attempt may take: to its first item (streams only), and in all."""

    first_seconds_max: float
    total_seconds_max: float


class Guard:
    """Guards one dependency.

    Parameters
    ----------
    breaker : Breaker
        Shared by all calls of the dependency.
    attempt : AttemptLimits
    hook : Hook
        Gets one `CallFinished` a call.
    """

    def __init__(self, breaker: Breaker, attempt: AttemptLimits, hook: Hook) -> None:
        self.breaker = breaker
        self._attempt = attempt
        self._hook = hook

    async def call(self, correlation_id: str, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work()`; it is not even started where the breaker rejects the call.

        Raises
        ------
        BreakerOpen
            The dependency is failing.
        DeadlineExceeded
            The attempt took longer than its limit.
        """
        limit = self._attempt.total_seconds_max
        with self._told(correlation_id):
            async with self.breaker.permit():
                try:
                    async with asyncio.timeout(limit):
                        return await work()
                except TimeoutError as timeout:
                    raise self._late(limit) from timeout

    async def stream(self, correlation_id: str, work: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """Stream the items of `work()`; the breaker's permit is held to the stream's end. Raises like `call`."""
        with self._told(correlation_id):
            async with self.breaker.permit(), aclosing(self._timed(work())) as items:
                async for item in items:
                    yield item

    async def _timed(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Bound the wait for each item: by the first-item limit at first, by what is left of the total after it.

        The timeout stands around one step and never around a `yield`, where it would cancel whoever reads the stream.
        """
        started = asyncio.get_running_loop().time()
        end = started + self._attempt.total_seconds_max
        deadline = min(end, started + self._attempt.first_seconds_max)
        async with aclosing(source):
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        item = await anext(source)
                except StopAsyncIteration:
                    return
                except TimeoutError as timeout:
                    raise self._late(deadline - started) from timeout
                yield item
                deadline = end

    def _late(self, limit_seconds: float) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self.breaker.name} did not answer within {limit_seconds:g} s: try again")

    @contextmanager
    def _told(self, correlation_id: str) -> Iterator[None]:
        """Tell the hook how the call ended."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        outcome: CallOutcome = "success"
        error = ""
        try:
            yield
        except BaseException as raised:
            outcome = "rejected" if isinstance(raised, BreakerOpen) else outcome_of(raised)
            error = kind_of(raised)
            raise
        finally:
            now = loop.time()
            self._hook(CallFinished(now, correlation_id, self.breaker.name, outcome, error, now - started))
