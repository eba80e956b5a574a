"""The bulkhead: how many calls of one dependency are under way at once, and who waits for a slot.

First come, first served. A slot that comes free is handed to the first waiter at that moment, in the same step: it
never lies about for a newcomer to snatch, and while anyone waits no slot is free. A waiter that was handed a slot and
is cancelled before it can run hands it on (else the wake-up, and with it the slot, would be lost).

A slot is held until the work has really ended: whoever took it gives it back in a ``finally`` around the work itself.
A caller that stops listening, by a timeout or a cancellation, frees nothing while the dependency still works for it.

    contract: `BulkheadStatus`, `WaitCut`;  behaviour: `Bulkhead`
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from math import inf

from msgspec import Struct

from orchestra.errors import BulkheadFull
from orchestra.policies import BulkheadPolicy
from orchestra.resilience.gradient import Gradient2, Windowed

INITIAL_LIMIT = 20
"""Where an adaptive limit starts, if its bounds allow (Netflix's default): low, to learn how quick an unloaded
dependency is."""
RETRY_AFTER_SECONDS_MIN = 1.0


class WaitCut(BulkheadFull):
    """No slot came free before the caller's own deadline: that, not the bulkhead's patience, ended the wait."""


class BulkheadStatus(Struct, frozen=True):
    """A bulkhead at one moment, for pages and metrics.

    Parameters
    ----------
    running : int
        Slots taken. Above `limit` for a while where an adaptive one has shrunk: slots are not revoked.
    waiting : int
        Callers in the queue.
    limit : int
        Slots at this moment.
    saturation : float
        The share of the places, slots and queue together, that is taken, 0 to 1. Full slots alone are good use of them.
    refused : int
        Callers turned away, ever: the queue was full, or `wait_seconds_max` over. Whose own deadline ended the wait is
        not among them.
    """

    name: str
    running: int
    waiting: int
    limit: int
    saturation: float
    refused: int = 0


class Bulkhead:
    """Holds the calls of one dependency to a number of slots, fixed or adaptive, and the rest in a bounded queue.

    Parameters
    ----------
    name : str
        The dependency, for errors and metrics.
    policy : BulkheadPolicy
    now : callable
        Monotonic seconds: the running loop's `time`.
    """

    __slots__ = ("_adaptive", "_limit", "_now", "_refused", "_running", "_waiting", "name", "policy")

    def __init__(self, name: str, policy: BulkheadPolicy, now: Callable[[], float]) -> None:
        self.name = name
        self.policy = policy
        self._now = now
        self._adaptive = _adaptive(policy, now) if policy.limit == "gradient2" else None
        self._limit = policy.concurrent_max if self._adaptive is None else self._adaptive.limit
        self._running = 0
        self._refused = 0
        # oldest first; ordered, and unlike a dict quick at its front, unlike a deque quick in its middle
        self._waiting: OrderedDict[asyncio.Future[bool], None] = OrderedDict()

    def try_acquire(self) -> bool:
        """Take a slot if one is free, and tell whether. Nobody is overtaken: while one waits, no slot is free."""
        if self._running < self._limit:
            self._running += 1
            return True
        return False

    async def acquire(self, until: float = inf) -> None:
        """Take a slot, after all who came before.

        Parameters
        ----------
        until : float
            The caller's deadline (monotonic seconds), past which it does not wait. A slot that is free is given
            without looking at it.

        Raises
        ------
        BulkheadFull
            The queue is full, or `wait_seconds_max` is over.
        WaitCut
            The same, but it was `until` that ended the wait.
        """
        if self.try_acquire():
            return
        now = self._now()
        if len(self._waiting) >= self.policy.queue_max:
            raise self._full(BulkheadFull, "and no more may wait")
        patience_ends = now + self.policy.wait_seconds_max
        ends = min(until, patience_ends)
        if ends > now and await self._wait(ends):
            return
        if until < patience_ends:
            raise self._full(WaitCut, "and the caller's deadline leaves no time to wait longer")
        raise self._full(BulkheadFull, f"and none came free within {self.policy.wait_seconds_max:g} s")

    def release(self, seconds: float | None = None, *, dropped: bool = False) -> None:
        """Give a slot back, once the work has ended; the first waiter has it at once.

        Parameters
        ----------
        seconds : float or None
            How long the call took, for an adaptive limit. None where that tells nothing of the dependency's speed: the
            call was cancelled, or failed.
        dropped : bool
            The dependency refused the call for overload, or did not answer in the time that we allow. Takes a
            `seconds`, of any value.
        """
        inflight = self._running
        assert inflight > 0, f"{self.name}: a slot was given back that nobody held"
        self._running = inflight - 1
        if self._adaptive is not None and seconds is not None:
            self._adaptive.sample(seconds, inflight, dropped)
            self._limit = self._adaptive.limit
        if self._waiting:
            self._hand_on()

    def describe(self) -> BulkheadStatus:
        """Return what a page shows of this bulkhead."""
        saturation = min(1.0, (self._running + len(self._waiting)) / (self._limit + self.policy.queue_max))
        return BulkheadStatus(self.name, self._running, len(self._waiting), self._limit, saturation, self._refused)

    async def _wait(self, ends: float) -> bool:
        """Stand in the queue, until monotonic time `ends` at the latest; tell whether that brought a slot."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting[waiter] = None
        timer = loop.call_at(ends, self._give_up, waiter)
        try:
            return await waiter
        except BaseException:  # cancelled, or the coroutine is closed
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.release()
            raise
        finally:
            timer.cancel()

    def _give_up(self, waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            del self._waiting[waiter]
            waiter.set_result(False)

    def _hand_on(self) -> None:
        while self._waiting and self._running < self._limit:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():  # else it was cancelled a moment ago, and is about to hear of it
                self._running += 1
                waiter.set_result(True)

    def _full(self, kind: type[BulkheadFull], why: str) -> BulkheadFull:
        """Return a fresh rejection. After the longest wait, all who wait now have a slot or are gone: come then."""
        if kind is not WaitCut:
            self._refused += 1
        retry_after = max(RETRY_AFTER_SECONDS_MIN, self.policy.wait_seconds_max)
        return kind(
            f"{self.name} has {self._running} calls under way and {len(self._waiting)} waiting, {why}: "
            f"try again in {retry_after:.1f} s",
            retry_after_seconds=retry_after,
        )


def _adaptive(policy: BulkheadPolicy, now: Callable[[], float]) -> Windowed:
    lowest, highest = policy.concurrent_min, policy.concurrent_max
    return Windowed(Gradient2(max(lowest, min(highest, INITIAL_LIMIT)), lowest, highest), now)
