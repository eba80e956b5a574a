"""What may be retried, after how long, and how often in all."""

import pytest

from orchestra import errors
from orchestra.errors import (
    BreakerOpen,
    BulkheadFull,
    ConfigurationError,
    DeadlineExceeded,
    FeatureOff,
    Forbidden,
    InvalidRequest,
    KeyReused,
    Maintenance,
    MethodNotAllowed,
    NotFound,
    OrchestraError,
    Overloaded,
    PayloadTooLarge,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRefused,
    SessionExists,
    SessionUnknown,
    ShuttingDown,
    StaleSession,
    StoreUnavailable,
    TooManyConnections,
    TurnCancelled,
    TurnInFlight,
    TurnLost,
    TurnUnknown,
    Unauthorized,
    UnsupportedMediaType,
)
from orchestra.policies import RetryPolicy
from orchestra.resilience.retry import BudgetStatus, RetryBudget, backoff_seconds, retriable

WORTH_IT = [DeadlineExceeded, ProviderFailed, ProviderOverloaded, StoreUnavailable]
REJECTIONS = [
    BreakerOpen,
    BulkheadFull,
    FeatureOff,
    Maintenance,
    Overloaded,
    ShuttingDown,
    StaleSession,
    TooManyConnections,
    TurnInFlight,
    TurnLost,
]
FOR_GOOD = [
    ConfigurationError,
    Forbidden,
    InvalidRequest,
    KeyReused,
    MethodNotAllowed,
    NotFound,
    OrchestraError,
    PayloadTooLarge,
    ProviderRefused,
    SessionExists,
    SessionUnknown,
    TurnCancelled,
    TurnUnknown,
    Unauthorized,
    UnsupportedMediaType,
]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, at: float = 0.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


# --- which


@pytest.mark.parametrize("kind", WORTH_IT)
def test_what_may_go_better_next_time_is_retried(kind: type[OrchestraError]) -> None:
    assert retriable(kind("no")) is True


@pytest.mark.parametrize("kind", [*REJECTIONS, *FOR_GOOD])
def test_what_cannot_is_not(kind: type[OrchestraError]) -> None:
    assert retriable(kind("no")) is False


@pytest.mark.parametrize("error", [KeyError("no"), TimeoutError(), KeyboardInterrupt(), GeneratorExit()])
def test_what_is_no_error_of_ours_is_a_defect(error: BaseException) -> None:
    assert retriable(error) is False


def test_every_kind_of_error_is_judged_here() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OrchestraError)]
    judged = [*WORTH_IT, *REJECTIONS, *FOR_GOOD]
    assert sorted({each.kind for each in kinds}) == sorted(each.kind for each in judged)


# --- when


@pytest.mark.parametrize(("retry", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (5, 3.0), (10**6, 3.0)])
def test_the_wait_is_drawn_from_a_range_that_doubles_to_its_cap(retry: int, ceiling: float) -> None:
    policy = RetryPolicy(base_seconds=0.5, cap_seconds=3.0)
    assert backoff_seconds(policy, retry, lambda: 0.0) == 0.0
    assert backoff_seconds(policy, retry, lambda: 0.25) == ceiling / 4
    assert backoff_seconds(policy, retry, lambda: 1.0, None) == ceiling


def test_a_tiny_base_has_grown_to_the_cap_as_well() -> None:
    policy = RetryPolicy(base_seconds=1e-300, cap_seconds=3600.0)
    assert backoff_seconds(policy, 1024, lambda: 1.0) == 3600.0
    assert backoff_seconds(policy, 1025, lambda: 1.0) == 3600.0


def test_a_retry_after_comes_before_the_draw() -> None:
    policy = RetryPolicy(base_seconds=0.5)
    assert backoff_seconds(policy, 2, lambda: 0.0, 7.0) == 7.0
    assert backoff_seconds(policy, 2, lambda: 0.25, 7.0) == 7.25
    assert backoff_seconds(policy, 2, lambda: 0.25, 0.0) == 0.25
    assert backoff_seconds(policy, 2, lambda: 0.25, -7.0) == 0.25


# --- how often


def test_a_few_retries_are_granted_in_any_case() -> None:
    budget = RetryBudget(RetryPolicy(), Clock())
    assert budget.describe() == BudgetStatus(requests=0, retries=0, left=3)
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
    assert budget.describe() == BudgetStatus(requests=0, retries=3, left=0)


def test_no_retry_where_none_is_allowed() -> None:
    assert RetryBudget(RetryPolicy(budget_min=0), Clock()).withdraw() is False
    budget = RetryBudget(RetryPolicy(budget_min=0, budget_ratio=0.0), Clock())
    for _ in range(100):
        budget.deposit()
    assert budget.withdraw() is False


@pytest.mark.parametrize(("requests", "granted"), [(15, 3), (19, 3), (20, 4), (24, 4), (25, 5), (100, 20)])
def test_beyond_these_a_share_of_the_requests_is(requests: int, granted: int) -> None:
    budget = RetryBudget(RetryPolicy(), Clock())
    for _ in range(requests):
        budget.deposit()
    assert budget.describe() == BudgetStatus(requests, retries=0, left=granted)
    assert [budget.withdraw() for _ in range(granted + 2)] == [True] * granted + [False] * 2
    assert budget.describe() == BudgetStatus(requests, retries=granted, left=0)


@pytest.mark.parametrize("start", [0.0, 12_345.0])
def test_what_is_long_ago_counts_no_more(start: float) -> None:
    clock = Clock(start)
    budget = RetryBudget(RetryPolicy(), clock)
    budget.deposit()
    budget.withdraw()
    clock.at = start + 0.99  # still the first of ten buckets of a second each
    budget.deposit()
    budget.withdraw()
    clock.at = start + 1.0
    budget.deposit()
    budget.withdraw()
    clock.at = start + 9.99
    assert budget.describe() == BudgetStatus(requests=3, retries=3, left=0)
    clock.at = start + 10.0
    assert budget.describe() == BudgetStatus(requests=1, retries=1, left=2)
    clock.at = start + 11.0
    assert budget.describe() == BudgetStatus(requests=0, retries=0, left=3)


@pytest.mark.parametrize("see", ["deposit", "withdraw"])
def test_time_passes_whatever_is_asked_first(see: str) -> None:
    clock = Clock()
    budget = RetryBudget(RetryPolicy(), clock)
    for _ in range(100):
        budget.deposit()
    assert all(budget.withdraw() for _ in range(20))
    clock.at = 10.0
    getattr(budget, see)()
    assert budget.describe().requests == (see == "deposit")
    assert budget.describe().retries == (see == "withdraw")


def test_a_budget_that_shrinks_owes_nothing() -> None:
    clock = Clock()
    budget = RetryBudget(RetryPolicy(), clock)
    for _ in range(100):
        budget.deposit()
    clock.at = 5.0
    assert all(budget.withdraw() for _ in range(20))
    clock.at = 10.0  # the requests are forgotten, the retries are not
    assert budget.describe() == BudgetStatus(requests=0, retries=20, left=0)
    assert budget.withdraw() is False


@pytest.mark.parametrize("idle", [10.0, 11.0, 100.0, 1e9])
def test_after_any_pause_it_starts_anew(idle: float) -> None:
    clock = Clock(3.0)
    budget = RetryBudget(RetryPolicy(), clock)
    for second in range(10):
        clock.at = 3.0 + second
        budget.deposit()
        budget.withdraw()
    clock.at = 12.0 + idle
    assert budget.describe() == BudgetStatus(requests=0, retries=0, left=3)
    budget.deposit()
    assert budget.describe().requests == 1


def test_a_bucket_whose_end_does_not_divide_keeps_its_count() -> None:
    """At 0.3 s the third bucket of 0.1 s has ended by one way of rounding, and not by another."""
    assert 0.3 // 0.1 == 2.0
    clock = Clock(0.25)
    budget = RetryBudget(RetryPolicy(budget_seconds=1.0), clock)
    budget.deposit()
    for at in (0.3, 0.30000000000000004, 0.31, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1):
        clock.at = at
        budget.deposit()
    assert budget.describe().requests == 11
    clock.at = 1.25
    assert budget.describe().requests < 11


def test_retries_are_never_more_than_their_share_in_a_storm() -> None:
    clock = Clock()
    budget = RetryBudget(RetryPolicy(), clock)
    granted = 0
    for request in range(10_000):  # a hundred seconds, every request fails and asks for all that it may
        clock.at = request / 100
        budget.deposit()
        granted += sum(budget.withdraw() for _ in range(3))
    assert granted <= 0.2 * 10_000 + 3
    assert granted >= 0.15 * 10_000


def test_what_a_page_shows_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        RetryBudget(RetryPolicy(), Clock()).describe().left = 9  # type: ignore[misc]
