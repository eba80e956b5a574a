"""Policies: what a guard, a breaker or the degradation does, as data that configuration can set.

Each is a frozen pydantic model, so that one definition validates a value given in code, in a file, in the environment
or in a scenario, and refuses what is impossible by the key's path, such as ``guards.unified.breaker.probes_max``.
The objects that act on them live in `orchestra.resilience`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
SecondsOrNone = Annotated[float, Field(ge=0, le=3600)]
Share = Annotated[float, Field(gt=0, le=1)]
Growth = Annotated[float, Field(ge=1, le=100)]

Fallback = Literal["alternate", "cache", "offline", "apology"]


class Policy(BaseModel):
    """What all policies share: frozen, nothing unknown, nothing infinite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_flags(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                if isinstance(value, bool):  # which would pass for 0 or 1
                    raise PydanticCustomError("flag", "{name} is a truth value: give a number", {"name": name})
        return values


class BreakerPolicy(Policy):
    """When a breaker trips and how it recovers. Any of the three signals trips it (resilience4j, Envoy).

    Parameters
    ----------
    failures_max : int
        Consecutive failures that open it.
    failure_rate_max : float
        Share of failures among the window's calls that opens it, reached or passed; (0, 1].
    slow_rate_max : float
        Share of slow calls among the window's calls that opens it, reached or passed; (0, 1].
    slow_seconds : float or None
        A call is slow that took this long or longer (a stream: to its first item). None judges no call by its time.
    calls_min : int
        Calls that the window must hold before a rate says anything.
    window : str
        ``time``: the calls of the last `window_seconds`; ``count``: the last `window_calls` calls.
    window_seconds : float
        Length of the time window, kept in `BUCKETS` buckets: a call leaves it with its bucket.
    window_calls : int
        Length of the count window.
    open_seconds, open_growth, open_seconds_max : float
        The first OPEN lasts `open_seconds`; each relapse makes it `open_growth` times longer, up to the last.
    open_jitter : float
        OPEN is made longer by a random share of itself, up to this one; [0, 1].
    recovery_seconds : float
        Each such time spent CLOSED without a relapse takes one step of growth back (Envoy's ejection time).
    probes_max : int
        Probes that may be under way at once in HALF_OPEN.
    successes_min : int
        Successful probes that close it.
    probe_seconds_max : float
        How long a probe may keep its slot.
    ignore, record : tuple of str
        Kinds of error (`OrchestraError.kind`) that drop the permit although they would count as failures, and that
        count as failures although they would drop it.
    """

    failures_max: Count = 5
    failure_rate_max: Share = 0.5
    slow_rate_max: Share = 0.8
    slow_seconds: Seconds | None = None
    calls_min: Count = 20
    window: Literal["time", "count"] = "time"
    window_seconds: Seconds = 30.0
    window_calls: Count = 100
    open_seconds: Seconds = 5.0
    open_growth: Growth = 2.0
    open_seconds_max: Seconds = 60.0
    open_jitter: Annotated[float, Field(ge=0, le=1)] = 0.1
    recovery_seconds: Seconds = 60.0
    probes_max: Count = 2
    successes_min: Count = 2
    probe_seconds_max: Seconds = 30.0
    ignore: tuple[str, ...] = ()
    record: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.open_seconds > self.open_seconds_max:
            raise PydanticCustomError("order", "open_seconds is above open_seconds_max: lower it or raise the other")
        if self.window == "count" and self.calls_min > self.window_calls:
            raise PydanticCustomError("order", "calls_min is above window_calls, so no rate would ever count: lower it")
        if both := set(self.ignore) & set(self.record):
            raise PydanticCustomError("order", "{kinds} is in both ignore and record: keep one", {"kinds": min(both)})
        return self


class RetryPolicy(Policy):
    """When a failed call is tried again: exponential backoff with full jitter, within a budget.

    Parameters
    ----------
    attempts_max : int
        Attempts in all; 1 never retries.
    base_seconds, cap_seconds : float
        The n-th wait is drawn evenly from 0 to ``min(cap, base * 2**(n-1))`` (AWS's full jitter).
    budget_ratio, budget_min, budget_seconds
        Retries of the last `budget_seconds` may be `budget_ratio` of its requests, and `budget_min` in any case
        (Finagle's and failsafe-go's budget).
    """

    attempts_max: Count = 3
    base_seconds: Seconds = 0.2
    cap_seconds: Seconds = 5.0
    budget_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    budget_min: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    budget_seconds: Seconds = 10.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.base_seconds > self.cap_seconds:
            raise PydanticCustomError("order", "base_seconds is above cap_seconds: lower it or raise the other")
        return self


class BulkheadPolicy(Policy):
    """How many calls may be under way at once, and how many may wait for that.

    Parameters
    ----------
    concurrent_max : int
        Calls at once; with an adaptive limit, its ceiling.
    queue_max : int
        Calls that may wait for a slot, first come, first served; 0 lets none wait.
    wait_seconds_max : float
        How long one may wait.
    limit : str
        ``fixed``: `concurrent_max`; ``gradient2``: between `concurrent_min` and `concurrent_max`, by how much slower
        calls are now than they usually are (Netflix concurrency-limits, Gradient2).
    concurrent_min : int
        Floor of an adaptive limit.
    """

    concurrent_max: Count = 256
    queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    wait_seconds_max: SecondsOrNone = 2.0
    limit: Literal["fixed", "gradient2"] = "fixed"
    concurrent_min: Count = 8

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.limit != "fixed" and self.concurrent_min > self.concurrent_max:
            raise PydanticCustomError("order", "concurrent_min is above concurrent_max: lower it or raise the other")
        return self


class AttemptPolicy(Policy):
    """How long one attempt may take: to its first item, from item to item (streams only), and in all."""

    first_seconds_max: Seconds = 20.0
    between_seconds_max: Seconds = 20.0
    total_seconds_max: Seconds = 60.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.first_seconds_max > self.total_seconds_max:
            raise PydanticCustomError(
                "order", "first_seconds_max is above total_seconds_max: lower it or raise the other"
            )
        return self


class HedgePolicy(Policy):
    """When a second, equal call is started beside a slow one (gRPC A6); only calls said to be idempotent are hedged.

    Parameters
    ----------
    attempts_max : int
        Calls at once, the first one included; 1 never hedges.
    delay_seconds : float
        How long one waits for an answer before the next is started. Each takes from the retry budget.
    """

    attempts_max: Annotated[int, Field(ge=1, le=10)] = 1
    delay_seconds: Seconds = 1.0


class GuardPolicy(Policy):
    """Everything that guards one dependency, outermost first: fallbacks, retry, hedge, breaker, bulkhead, attempt."""

    fallbacks: tuple[Fallback, ...] = ()
    retry: RetryPolicy = RetryPolicy()
    hedge: HedgePolicy = HedgePolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    bulkhead: BulkheadPolicy = BulkheadPolicy()
    attempt: AttemptPolicy = AttemptPolicy()


_SHORT = AttemptPolicy(first_seconds_max=5.0, between_seconds_max=5.0, total_seconds_max=5.0)


class GuardPolicies(Policy):
    """The guard of every dependency. A value given for one key leaves the dependency's other defaults as they are."""

    unified: GuardPolicy = GuardPolicy(fallbacks=("alternate", "cache", "apology"))
    alternate: GuardPolicy = GuardPolicy()
    memory: GuardPolicy = GuardPolicy(attempt=_SHORT)
    commands: GuardPolicy = GuardPolicy(attempt=_SHORT, retry=RetryPolicy(attempts_max=1))

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: _merged(cls.model_fields[name].default.model_dump(), value)
            if name in cls.model_fields and isinstance(value, Mapping)
            else value
            for name, value in values.items()
        }


class DegradationPolicy(Policy):
    """How calmly the level follows health. Zero margin and holds give the bare diagram.

    Parameters
    ----------
    margin_points : float
        How far above a threshold health must be to recover past it.
    down_seconds, up_seconds : float
        How long the condition must have held, without a break, to go down or up a level.
    relapse_growth, up_seconds_max : float
        Each relapse makes the next hold before recovery so many times longer, up to the last.
    interval_seconds : float
        How often health is looked at.
    """

    margin_points: Annotated[float, Field(ge=0, lt=20)] = 5.0
    down_seconds: SecondsOrNone = 3.0
    up_seconds: SecondsOrNone = 15.0
    relapse_growth: Growth = 2.0
    up_seconds_max: SecondsOrNone = 300.0
    interval_seconds: Seconds = 1.0

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.up_seconds > self.up_seconds_max:
            raise PydanticCustomError("order", "up_seconds is above up_seconds_max: lower it or raise the other")
        return self


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
