"""A guard: all policies around the calls of one dependency, composed from one `GuardPolicy`.

Outermost first: deadline, fallback, retry, hedge, breaker, bulkhead, attempt timeout. The deadline is the turn's
(`orchestra.resilience.deadline`): every attempt gets what is left of it. Fallbacks stand between engines and so are
composed a floor higher (`orchestra.chat.guarded`), by `orchestra.resilience.fallback`.

Breaker before bulkhead means that a call which the breaker rejects never waits for a slot. The slot is held around the
permit all the same, not within it: a permit that is held while waiting goes stale (docs/decisions.md, 18).

Every attempt asks breaker and bulkhead anew, so that a retry is no way around them, and settles with both when it has
really ended. A stream is retried only before its first item: what a reader has seen cannot be taken back.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from math import inf
from typing import Generic, TypeVar

from msgspec import Struct

from orchestra.errors import BreakerOpen, DeadlineExceeded, DeadlineShortened, Overloaded, ProviderOverloaded, kind_of
from orchestra.events import CallFinished, CallHedged, CallOutcome, CallRetried, Hook
from orchestra.policies import GuardPolicy
from orchestra.resilience.breaker import Breaker
from orchestra.resilience.bulkhead import Bulkhead
from orchestra.resilience.deadline import Deadline, Watchdog, current
from orchestra.resilience.hedge import hedged
from orchestra.resilience.retry import RetryBudget, backoff_seconds, retriable

T = TypeVar("T")


class _Call(Struct):
    """A call under way, for what the hook is told of it."""

    correlation_id: str
    started: float
    rounds: int = 1  # tries, one after the other
    attempts: int = 1  # calls that were made for them, hedges included


class _End:
    """What comes behind the last item of a stream."""


_END = _End()


class Guard:
    """Guards one dependency. All its calls share one breaker, one bulkhead and one retry budget.

    Parameters
    ----------
    name : str
        The dependency, for errors, events and metrics.
    policy : GuardPolicy
    now : callable
        Monotonic seconds: the running loop's `time`.
    random : callable
        A number in [0, 1), for jitter.
    hook : Hook
        Gets one `CallFinished` a call, and what happened on the way: `CallRetried`, `CallHedged`, `BreakerChanged`.
    """

    def __init__(
        self, name: str, policy: GuardPolicy, now: Callable[[], float], random: Callable[[], float], hook: Hook
    ) -> None:
        self.name = name
        self.policy = policy
        self.breaker = Breaker(name, policy.breaker, now, hook, random)
        self.bulkhead = Bulkhead(name, policy.bulkhead, now)
        self.budget = RetryBudget(policy.retry, now)
        self._now = now
        self._random = random
        self._hook = hook
        self._watchdog = Watchdog()
        self._total_seconds_max = policy.attempt.total_seconds_max
        self._adaptive = policy.bulkhead.limit != "fixed"

    def close(self) -> None:
        """Leave no timer behind."""
        self._watchdog.close()

    async def call(self, correlation_id: str, work: Callable[[], Awaitable[T]], *, idempotent: bool = False) -> T:
        """Await `work()`; it is not even started where breaker or bulkhead reject the call.

        Parameters
        ----------
        correlation_id : str
        work : callable
            Makes one attempt; called anew for each.
        idempotent : bool
            Whether two attempts at once do no harm: only then is it hedged, where the policy says so.

        Raises
        ------
        BreakerOpen, BulkheadFull
            The call was not made.
        DeadlineExceeded
            The last attempt took longer than its limit, or than what was left of the turn.
        """
        self.budget.deposit()
        told = _Call(correlation_id, self._now())
        hedges = idempotent and self.policy.hedge.attempts_max > 1
        try:
            while True:
                try:
                    if hedges:
                        result = await self._attempt_hedged(work, told)
                    else:
                        result = await self._attempt(work)
                    break
                except Exception as error:
                    pause = self._pause(error, told)
                await asyncio.sleep(pause)
        except BaseException as error:
            self._failed(told, error)
            raise
        self._finish(told, "success", "")
        return result

    async def stream(self, correlation_id: str, work: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        """Stream the items of `work()`; permit and slot are held to the stream's end. Raises like `call`."""
        self.budget.deposit()
        told = _Call(correlation_id, self._now())
        try:
            while True:
                attempt: _Streaming[T] = _Streaming(self)
                try:
                    item = await attempt.begin(work)
                    break
                except Exception as error:
                    pause = self._pause(error, told)
                await asyncio.sleep(pause)
            try:
                while not isinstance(item, _End):
                    yield item
                    item = await attempt.next()
            except BaseException as error:  # also GeneratorExit: whoever read it has had enough
                await attempt.end(error)
                raise
        except BaseException as error:
            self._failed(told, error)
            raise
        self._finish(told, "success", "")

    async def _attempt(self, work: Callable[[], Awaitable[T]]) -> T:
        deadline = current()
        if not self.bulkhead.try_acquire():
            await self._queue(deadline)
        started = self._now()
        try:
            if deadline is not None and started >= deadline.at:
                raise self._spent()
            result = await self.breaker.call(self._bounded, work, started, deadline)
        except BaseException as error:
            self._release(error, started)
            raise
        self.bulkhead.release(self._now() - started if self._adaptive else None)
        return result

    async def _attempt_hedged(self, work: Callable[[], Awaitable[T]], told: _Call) -> T:
        def on_hedge() -> None:
            told.attempts += 1
            self._hook(CallHedged(self._now(), told.correlation_id, self.name))

        return await hedged(lambda: self._attempt(work), self.policy.hedge, self.budget, on_hedge)

    async def _bounded(self, work: Callable[[], Awaitable[T]], started: float, deadline: Deadline | None) -> T:
        end = started + self._total_seconds_max
        watch = self._watchdog.enter(end if deadline is None or end < deadline.at else deadline.at)
        try:
            result = await work()
        except BaseException as error:
            if self._watchdog.leave(watch, error):
                raise self._late(watch.at, deadline, started) from error
            raise
        self._watchdog.leave(watch)
        return result

    async def _queue(self, deadline: Deadline | None) -> None:
        """Wait for a slot, unless the breaker would reject the call anyway.

        No permit is held meanwhile: the wait, which is ours, makes no call slow, no probe's place is taken by a call
        that only waits, and a breaker that opens meanwhile is asked anew.
        """
        if self.breaker.mode != "observing":
            self.breaker.acquire().drop()
        await self.bulkhead.acquire(inf if deadline is None else deadline.at)

    def _late(self, at: float, deadline: Deadline | None, started: float) -> DeadlineExceeded:
        """Say what ran out at `at`: the attempt's own time, the turn's, or the caller's. Loops may fire too early."""
        if deadline is None or at < deadline.at:
            return DeadlineExceeded(f"{self.name} did not answer within {at - started:.3g} s: try again")
        if deadline.blames(started):
            return DeadlineExceeded(f"{self.name} did not answer within what was left of the turn: try again")
        return DeadlineShortened(f"{self.name} did not answer within the little time that it was left: give it more")

    def _spent(self) -> DeadlineShortened:
        return DeadlineShortened(f"no time was left to ask {self.name}: give the turn more")

    def _release(self, error: BaseException, started: float) -> None:
        """Give the slot back, and tell an adaptive limit of a dependency that was overloaded or late."""
        late = isinstance(error, DeadlineExceeded) and not isinstance(error, DeadlineShortened)
        dropped = late or isinstance(error, ProviderOverloaded)
        self.bulkhead.release(self._now() - started if dropped else None, dropped=dropped)

    def _pause(self, error: Exception, told: _Call) -> float:
        """Return how long to wait before the next attempt; raise `error` again where there will be none."""
        retry = self.policy.retry
        if told.rounds >= retry.attempts_max or not retriable(error):
            raise error
        seconds = backoff_seconds(retry, told.rounds, self._random, getattr(error, "retry_after_seconds", None))
        deadline, now = current(), self._now()
        if (deadline is not None and now + seconds >= deadline.at) or not self.budget.withdraw():
            raise error
        told.rounds += 1
        told.attempts += 1
        self._hook(CallRetried(now, told.correlation_id, self.name, told.attempts, seconds, kind_of(error)))
        return seconds

    def _failed(self, told: _Call, error: BaseException) -> None:
        rejected = isinstance(error, (BreakerOpen, Overloaded))
        self._finish(told, "rejected" if rejected else self.breaker.outcome_of(error), kind_of(error))

    def _finish(self, told: _Call, outcome: CallOutcome, error: str) -> None:
        now = self._now()
        seconds = now - told.started
        self._hook(CallFinished(now, told.correlation_id, self.name, outcome, error, seconds, told.attempts))


class _Streaming(Generic[T]):
    """One attempt at a stream: it holds slot and permit to its end, and bounds the wait for each of its items.

    An object that is asked for the next item, and no generator around the source's: every generator that an answer
    passes costs a turn as much as a call of a store.
    """

    __slots__ = ("_deadline", "_ended", "_given_at", "_guard", "_lag", "_patience", "_permit", "_source", "_started")

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._patience = guard.policy.attempt.first_seconds_max
        self._lag = 0.0  # what the reader took, which is not the dependency's time
        self._ended = False

    async def begin(self, work: Callable[[], AsyncGenerator[T, None]]) -> T | _End:
        """Ask for the stream, and return its first item."""
        guard = self._guard
        self._deadline = deadline = current()
        if not guard.bulkhead.try_acquire():
            await guard._queue(deadline)
        self._started = self._given_at = started = guard._now()
        try:
            if deadline is not None and started >= deadline.at:
                raise guard._spent()
            self._permit = permit = guard.breaker.acquire()
            try:
                self._source = work()
            except BaseException as error:
                permit.settle(error)
                raise
        except BaseException as error:
            guard._release(error, started)
            raise
        return await self.next()

    async def next(self) -> T | _End:
        """Return the next item, or that there is none, within its own time and that of all items together.

        The watch stands around one step and never around a `yield`, where it would cancel whoever reads the stream.
        """
        guard, deadline = self._guard, self._deadline
        now = guard._now()
        self._lag += now - self._given_at
        started = self._started + self._lag
        at = min(now + self._patience, started + guard._total_seconds_max, inf if deadline is None else deadline.at)
        watch = guard._watchdog.enter(at)
        try:
            item = await anext(self._source)
        except BaseException as error:
            if guard._watchdog.leave(watch, error):
                late = guard._late(at, deadline, started)
                await self.end(late)
                raise late from error
            if isinstance(error, StopAsyncIteration):
                await self.end(None)
                return _END
            await self.end(error)
            raise
        guard._watchdog.leave(watch)
        self._permit.responded()
        self._given_at = guard._now()
        self._patience = guard.policy.attempt.between_seconds_max
        return item

    async def end(self, error: BaseException | None) -> None:
        """Close the source, settle the permit by how the stream ended, and give the slot back; once."""
        if self._ended:
            return
        self._ended = True
        try:
            await self._source.aclose()
        except BaseException as worse:
            error = worse
            raise
        finally:
            self._permit.settle(error)
            if error is None:
                self._guard.bulkhead.release(self._guard._now() - self._started)
            else:
                self._guard._release(error, self._started)
