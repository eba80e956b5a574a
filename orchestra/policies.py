"""Policies: what a guard, a breaker or the degradation does, as data that configuration can set.

Each is a frozen pydantic model, so that one definition validates a value given in code, in a file, in the environment
or in a scenario, and refuses what is impossible by the key's path, such as ``guards.unified.breaker.probes_max``.
The objects that act on them live in `orchestra.resilience`; a field's unit and meaning stand in its own line.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from orchestra.errors import kinds

Fallback = Literal["alternate", "cache", "offline", "apology"]

_COUNT = {"ge": 1, "le": 1_000_000}
_COUNT_OR_NONE = {"ge": 0, "le": 1_000_000}
_SECONDS = {"gt": 0, "le": 3600}
_SECONDS_OR_NONE = {"ge": 0, "le": 3600}
_RATE = {"gt": 0, "le": 1}
_SHARE = {"ge": 0, "le": 1}
_GROWTH = {"ge": 1, "le": 100}


def setting(default: object, unit: str, meaning: str, **bounds: Any) -> Any:
    """Declare a field that an operator may set, with its unit and meaning for `orchestra config`."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **bounds)


class Policy(BaseModel):
    """What all policies share: frozen, nothing unknown, nothing infinite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        if isinstance(value, bool):  # which would pass for 0 or 1
            raise PydanticCustomError("flag", "it is a truth value, which this setting is not")
        return value


def listed(value: object) -> object:
    """Split what the environment can only give as one text: words separated by commas."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("order", "{message}", {"message": message})


class BreakerPolicy(Policy):
    """When a breaker trips, by any of three signals, and how it recovers (resilience4j; the open time after Envoy)."""

    failures_max: int = setting(5, "calls", "Consecutive failures that open it.", **_COUNT)
    failure_rate_max: float = setting(
        0.5, "share, 0 to 1", "Failures among the window's calls that open it, reached or passed.", **_RATE
    )
    slow_rate_max: float = setting(
        0.8, "share, 0 to 1", "Slow calls among the window's calls that open it, reached or passed.", **_RATE
    )
    slow_seconds: float | None = setting(
        None, "seconds", "From when a call (a stream: its first item) is slow; none judges no call by time.", **_SECONDS
    )
    calls_min: int = setting(20, "calls", "Calls that the window must hold before a rate says anything.", **_COUNT)
    window: Literal["time", "count"] = setting(
        "time", "kind", "Whether rates are over the last window_seconds or the last window_calls."
    )
    window_seconds: float = setting(30.0, "seconds", "Length of the time window, kept in ten buckets.", **_SECONDS)
    window_calls: int = setting(100, "calls", "Length of the count window.", **_COUNT)
    open_seconds: float = setting(
        5.0, "seconds", "How long it first rejects before it lets probes through.", **_SECONDS
    )
    open_growth: float = setting(2.0, "factor", "How much longer each relapse makes that.", **_GROWTH)
    open_seconds_max: float = setting(60.0, "seconds", "The longest that grows to.", **_SECONDS)
    open_jitter: float = setting(0.1, "share, 0 to 1", "Up to this share of itself it is longer, by chance.", **_SHARE)
    recovery_seconds: float = setting(
        60.0, "seconds", "Each such time CLOSED without a relapse takes one step of growth back.", **_SECONDS
    )
    probes_max: int = setting(2, "calls", "Probes at once through a half-open breaker.", **_COUNT)
    successes_min: int = setting(2, "calls", "Successful probes that close it.", **_COUNT)
    probe_seconds_max: float = setting(30.0, "seconds", "How long a probe may keep its slot.", **_SECONDS)
    ignore: tuple[str, ...] = setting((), "kinds of error", "Errors that say nothing, though they would be failures.")
    record: tuple[str, ...] = setting((), "kinds of error", "Errors that are failures, though they would say nothing.")

    _lists = field_validator("ignore", "record", mode="before")(listed)

    @field_validator("ignore", "record")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = kinds()
        for kind in value:
            if kind not in known:
                near = difflib.get_close_matches(kind, known, n=1, cutoff=0)  # the nearest, however far
                raise _refuse(f"{kind} is no kind of error: did you mean {near[0]}?")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.open_seconds > self.open_seconds_max:
            raise _refuse("open_seconds is above open_seconds_max: lower it or raise the other")
        if self.window == "count" and self.calls_min > self.window_calls:
            raise _refuse("calls_min is above window_calls, so that no rate would ever count: lower it")
        if both := sorted(set(self.ignore) & set(self.record)):
            raise _refuse(f"{both[0]} is in both ignore and record: keep it in one")
        return self


class RetryPolicy(Policy):
    """When a failed call is made again: exponential backoff with full jitter, within a budget.

    Source: AWS Architecture Blog, "Exponential Backoff and Jitter"; the budget is Finagle's and failsafe-go's.
    """

    attempts_max: int = setting(3, "attempts", "Attempts in all; 1 never retries.", **_COUNT)
    base_seconds: float = setting(
        0.2, "seconds", "The n-th wait is drawn from 0 to this times 2 to the n-1.", **_SECONDS
    )
    cap_seconds: float = setting(5.0, "seconds", "What a wait is drawn from is never longer.", **_SECONDS)
    budget_ratio: float = setting(0.2, "share, 0 to 1", "Retries among the recent requests at most.", **_SHARE)
    budget_min: int = setting(3, "retries", "Recent retries that are allowed in any case.", **_COUNT_OR_NONE)
    budget_seconds: float = setting(10.0, "seconds", "How far back recent reaches.", **_SECONDS)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.base_seconds > self.cap_seconds:
            raise _refuse("base_seconds is above cap_seconds: lower it or raise the other")
        return self


class HedgePolicy(Policy):
    """When a second, equal call is started beside a slow one; only idempotent calls are hedged (gRPC, A6)."""

    attempts_max: int = setting(1, "calls", "Equal calls at once; 1 never hedges.", ge=1, le=10)
    delay_seconds: float = setting(
        1.0,
        "seconds",
        "How long an answer is waited for before the next call; each takes from the retry budget.",
        **_SECONDS,
    )


class BulkheadPolicy(Policy):
    """How many calls may be under way at once, and how many may wait for that."""

    concurrent_max: int = setting(256, "calls", "Calls at once; the ceiling of an adaptive limit.", **_COUNT)
    queue_max: int = setting(256, "calls", "Calls that may wait, first come, first served.", **_COUNT_OR_NONE)
    wait_seconds_max: float = setting(2.0, "seconds", "How long one may wait.", **_SECONDS_OR_NONE)
    limit: Literal["fixed", "gradient2"] = setting(
        "fixed", "kind", "Whether the limit is fixed or follows latency (Netflix concurrency-limits, Gradient2)."
    )
    concurrent_min: int = setting(8, "calls", "Floor of an adaptive limit.", **_COUNT)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.limit != "fixed" and self.concurrent_min > self.concurrent_max:
            raise _refuse("concurrent_min is above concurrent_max: lower it or raise the other")
        return self


class AttemptPolicy(Policy):
    """How long one attempt may take."""

    first_seconds_max: float = setting(20.0, "seconds", "To the first item of a stream.", **_SECONDS)
    between_seconds_max: float = setting(20.0, "seconds", "From one item of a stream to the next.", **_SECONDS)
    total_seconds_max: float = setting(60.0, "seconds", "In all.", **_SECONDS)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.first_seconds_max > self.total_seconds_max:
            raise _refuse("first_seconds_max is above total_seconds_max: lower it or raise the other")
        return self


class GuardPolicy(Policy):
    """Everything that guards one dependency, outermost first."""

    fallbacks: tuple[Fallback, ...] = setting(
        (),
        "names, in order",
        "Who answers where the dependency does not; alternate only where alternate_url is set, apology only where the "
        "call was refused (an open breaker, a full bulkhead, a feature that is off), and not after an error.",
    )
    retry: RetryPolicy = RetryPolicy()
    hedge: HedgePolicy = HedgePolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    bulkhead: BulkheadPolicy = BulkheadPolicy()
    attempt: AttemptPolicy = AttemptPolicy()

    _lists = field_validator("fallbacks", mode="before")(listed)

    @field_validator("fallbacks")
    @classmethod
    def _once(cls, value: tuple[Fallback, ...]) -> tuple[Fallback, ...]:
        for place, name in enumerate(value):
            if name in value[:place]:
                raise _refuse(f"{name} is named twice: keep it where it should be asked first")
        return value


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

    @model_validator(mode="after")
    def _agree(self) -> Self:
        faults = [
            InitErrorDetails(type=_refuse(message), loc=(name, *key), input=None)
            for name in type(self).model_fields
            for key, message in _without_effect(name, getattr(self, name))
        ]
        if faults:  # each by its own key's path, which an error raised here directly would not have
            raise ValidationError.from_exception_data(type(self).__name__, faults, hide_input=True)
        return self


def _without_effect(name: str, guard: GuardPolicy) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield key and fault of what is possible in a guard, but would do nothing in that of this dependency."""
    if name != "unified" and guard.fallbacks:
        yield ("fallbacks",), f"{name} has fallbacks, and only unified can have any: remove them"
    if name != "memory" and guard.hedge.attempts_max > 1:
        yield (
            ("hedge", "attempts_max"),
            f"{name} is never hedged, only memory is asked in calls that may be made twice: set it to 1",
        )
    ends = "total_seconds_max" if name == "memory" else "first_seconds_max"  # the others' answers are streams
    slow, end = guard.breaker.slow_seconds, getattr(guard.attempt, ends)
    if slow is not None and slow > end:
        yield (
            ("breaker", "slow_seconds"),
            f"no call could be slow, since each ends before, by {name}.attempt.{ends}, {end:g} s: "
            "lower it or raise the other",
        )


class DegradationPolicy(Policy):
    """How calmly the level follows health. Zero margin and holds give the bare diagram."""

    margin_points: float = setting(
        5.0, "points of health", "How far above a threshold health must be to recover past it.", ge=0, lt=20
    )
    down_seconds: float = setting(3.0, "seconds", "How long health must be below it to go down.", **_SECONDS_OR_NONE)
    up_seconds: float = setting(15.0, "seconds", "How long above it, margin included, to go up.", **_SECONDS_OR_NONE)
    relapse_growth: float = setting(2.0, "factor", "How much longer each relapse makes the hold to go up.", **_GROWTH)
    up_seconds_max: float = setting(300.0, "seconds", "The longest that grows to.", **_SECONDS_OR_NONE)
    interval_seconds: float = setting(1.0, "seconds", "How often health is looked at.", **_SECONDS)
    canary_seconds: float = setting(
        10.0, "seconds", "From the end of one canary to the next, where no user's call is a probe.", **_SECONDS
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.up_seconds > self.up_seconds_max:
            raise _refuse("up_seconds is above up_seconds_max: lower it or raise the other")
        return self


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
