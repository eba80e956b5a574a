"""Sliding windows over the calls that ended: how many there were, how many of them failed, how many were slow.

Both keep running totals, so that reading costs nothing and recording the same however long the window is
(resilience4j's two aggregators). Time comes in with each call; a window has no timer.

    contract: `Window`;  behaviour: `TimeWindow`, `CountWindow`
"""

from collections import deque
from typing import Protocol

BUCKETS = 10
"""Of a time window: what is older than the window leaves it a tenth of it at a time."""


class Window(Protocol):
    """The three totals of a window, and how calls enter it."""

    calls: int
    failures: int
    slow: int

    def record(self, now: float, failed: bool, slow: bool) -> None:
        """Take in a call that ended at `now`."""

    def advance(self, now: float) -> None:
        """Let go what has left the window by `now`."""


class TimeWindow:
    """The calls of the current bucket and of the `BUCKETS` - 1 before it; `now` must not go back.

    Parameters
    ----------
    seconds : float
        Length of the window, above 0.
    now : float
        When it begins: boundaries lie whole buckets after this.
    """

    __slots__ = ("_before", "_bucket_seconds", "_ends_at", "_full", "calls", "failures", "slow")

    def __init__(self, seconds: float, now: float) -> None:
        self.calls = self.failures = self.slow = 0
        self._full: deque[tuple[int, int, int]] = deque()  # the totals of each full bucket, oldest first
        self._before = (0, 0, 0)  # their sum; what the totals have beyond it is the current bucket's
        self._bucket_seconds = seconds / BUCKETS
        self._ends_at = now + self._bucket_seconds

    def record(self, now: float, failed: bool, slow: bool) -> None:
        """Take in a call that ended at `now`."""
        if now >= self._ends_at:
            self.advance(now)
        self.calls += 1
        if failed:
            self.failures += 1
        if slow:
            self.slow += 1

    def advance(self, now: float) -> None:
        """Begin a new bucket for every boundary that has passed by `now`."""
        if now < self._ends_at:
            return
        passed = int((now - self._ends_at) / self._bucket_seconds) + 1
        self._ends_at += passed * self._bucket_seconds
        for _ in range(min(passed, BUCKETS)):
            self._begin_bucket()

    def _begin_bucket(self) -> None:
        calls, failures, slow = self._before
        self._full.append((self.calls - calls, self.failures - failures, self.slow - slow))
        if len(self._full) == BUCKETS:
            calls, failures, slow = self._full.popleft()
            self.calls -= calls
            self.failures -= failures
            self.slow -= slow
        self._before = (self.calls, self.failures, self.slow)


class CountWindow:
    """The last `size` calls, at least 1."""

    __slots__ = ("_last", "_size", "calls", "failures", "slow")

    def __init__(self, size: int) -> None:
        self.calls = self.failures = self.slow = 0
        self._last: deque[tuple[bool, bool]] = deque()  # failed, slow; oldest first
        self._size = size

    def record(self, now: float, failed: bool, slow: bool) -> None:
        """Take in a call, in the place of the oldest where the window is full."""
        if self.calls == self._size:
            was_failed, was_slow = self._last.popleft()
            self.failures -= was_failed
            self.slow -= was_slow
        else:
            self.calls += 1
        self._last.append((failed, slow))
        self.failures += failed
        self.slow += slow

    def advance(self, now: float) -> None:
        """Time alone moves nothing out of a count window."""
