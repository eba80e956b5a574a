"""Retries: which errors are worth one, how long to wait before it, and the budget that keeps them from being a load.

Retries without a budget turn a fault into an overload that outlives it; with one they never add more than a share of
the recent requests, and few calls can still be retried when there is little traffic (Finagle's and failsafe-go's).

    contract: `policies.RetryPolicy`, `BudgetStatus`;  state: `RetryBudget`'s ring;
    behaviour: `retriable`, `backoff_seconds`, `RetryBudget`
"""

from collections.abc import Callable

from msgspec import Struct

from orchestra.errors import (
    BreakerOpen,
    DeadlineShortened,
    FeatureOff,
    Maintenance,
    OrchestraError,
    Overloaded,
    ShuttingDown,
    StaleSession,
    TurnInFlight,
    TurnLost,
)
from orchestra.policies import RetryPolicy

BUCKETS = 10

# A client may come back after these; in here another attempt at once meets the same refusal, or adds to an overload
# of our own. A stale session must be read again first, which is not the failed call's to do, and a turn that runs
# elsewhere, or was lost there, is its client's to send again.
_NOT_HERE = (
    BreakerOpen,
    DeadlineShortened,
    FeatureOff,
    Maintenance,
    Overloaded,
    ShuttingDown,
    StaleSession,
    TurnInFlight,
    TurnLost,
)
_DOUBLINGS_MAX = 1023  # the most that a float can hold


def retriable(error: BaseException) -> bool:
    """Say whether another attempt can succeed where this one failed; a defect, which is no error of ours, stays one."""
    return isinstance(error, OrchestraError) and error.retryable and not isinstance(error, _NOT_HERE)


def backoff_seconds(
    policy: RetryPolicy, retry: int, random: Callable[[], float], retry_after_seconds: float | None = None
) -> float:
    """Return how long to wait before a retry: exponential with full jitter.

    A Retry-After comes on top: whoever was told the same one would else come back all at once.

    Parameters
    ----------
    policy : RetryPolicy
    retry : int
        Which retry of the call it is, from 1.
    random : callable
        Chance, at least 0 and below 1.
    retry_after_seconds : float or None
        What the failed attempt was told to wait at least.

    References
    ----------
    AWS Architecture Blog, "Exponential Backoff and Jitter"; RFC 9110, section 10.2.3.
    """
    ceiling = min(policy.cap_seconds, policy.base_seconds * 2.0 ** min(retry - 1, _DOUBLINGS_MAX))
    return max(0.0, retry_after_seconds or 0.0) + random() * ceiling


class BudgetStatus(Struct, frozen=True):
    """A retry budget at one moment, for pages and metrics: what it has seen lately, and how many retries are left."""

    requests: int
    retries: int
    left: int


class RetryBudget:
    """Grants retries while they are few among the recent requests; shared by all calls of one dependency.

    Recent is a ring of ten buckets, the newest of which is being filled: between nine and ten tenths of
    `policy.budget_seconds`.

    Parameters
    ----------
    policy : RetryPolicy
    now : callable
        Monotonic seconds, such as the running loop's `time`.
    """

    def __init__(self, policy: RetryPolicy, now: Callable[[], float]) -> None:
        self._policy = policy
        self._now = now
        self._bucket_seconds = policy.budget_seconds / BUCKETS
        self._number = int(now() // self._bucket_seconds)  # of the newest bucket, counted from the clock's zero
        self._ends = (self._number + 1) * self._bucket_seconds
        self._newest = 0  # requests in the newest bucket, which is not in its place yet: deposit must be cheap
        self._requests = [0] * BUCKETS  # bucket n is at n modulo BUCKETS
        self._retries = [0] * BUCKETS

    def deposit(self) -> None:
        """Count one request: a call, however many attempts it takes."""
        now = self._now()
        if now >= self._ends:
            self._turn(now)
        self._newest += 1

    def withdraw(self) -> bool:
        """Grant one more attempt, and count it, or say no: it would be one too many."""
        granted = self.describe().left > 0
        if granted:
            self._retries[self._number % BUCKETS] += 1
        return granted

    def describe(self) -> BudgetStatus:
        """Return what a page shows of this budget."""
        now = self._now()
        if now >= self._ends:
            self._turn(now)
        requests, retries = sum(self._requests) + self._newest, sum(self._retries)
        allowed = max(self._policy.budget_min, int(self._policy.budget_ratio * requests))
        return BudgetStatus(requests, retries, max(0, allowed - retries))

    def _turn(self, now: float) -> None:
        """Empty the buckets that time has left behind, and begin the one that `now` lies in."""
        self._requests[self._number % BUCKETS] += self._newest
        self._newest = 0
        number = int(now // self._bucket_seconds)
        for passed in range(max(self._number + 1, number - BUCKETS + 1), number + 1):
            self._requests[passed % BUCKETS] = self._retries[passed % BUCKETS] = 0
        self._number = number
        self._ends = (number + 1) * self._bucket_seconds
