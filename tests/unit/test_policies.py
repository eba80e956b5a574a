"""Policies: what is impossible is refused by the key's path, and what is left out stays as it was."""

import math
import sys
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from orchestra import errors, policies
from orchestra.policies import (
    AttemptPolicy,
    BreakerPolicy,
    BulkheadPolicy,
    DegradationPolicy,
    GuardPolicies,
    GuardPolicy,
    HedgePolicy,
    Policy,
    RetryPolicy,
)

LEAVES: list[type[Policy]] = [
    BreakerPolicy,
    RetryPolicy,
    HedgePolicy,
    BulkheadPolicy,
    AttemptPolicy,
    DegradationPolicy,
]
POLICIES: list[type[Policy]] = [*LEAVES, GuardPolicy, GuardPolicies]

# What is too little, the least and the most that is taken, and what is too much.
COUNT = (0, 1, 1_000_000, 1_000_001)
COUNT_OR_NONE = (-1, 0, 1_000_000, 1_000_001)
SECONDS = (0, sys.float_info.min, 3600, 3600.001)
SECONDS_OR_NONE = (-0.001, 0, 3600, 3600.001)
RATE = (0, sys.float_info.min, 1, 1.001)
SHARE = (-0.001, 0, 1, 1.001)
GROWTH = (0.999, 1, 100, 100.001)

BOUNDS: dict[type[Policy], dict[str, tuple[float, float, float, float]]] = {
    BreakerPolicy: {
        "failures_max": COUNT,
        "failure_rate_max": RATE,
        "slow_rate_max": RATE,
        "slow_seconds": SECONDS,
        "calls_min": COUNT,
        "window_seconds": SECONDS,
        "window_calls": COUNT,
        "open_seconds": SECONDS,
        "open_growth": GROWTH,
        "open_seconds_max": SECONDS,
        "open_jitter": SHARE,
        "recovery_seconds": SECONDS,
        "probes_max": COUNT,
        "successes_min": COUNT,
        "probe_seconds_max": SECONDS,
    },
    RetryPolicy: {
        "attempts_max": COUNT,
        "base_seconds": SECONDS,
        "cap_seconds": SECONDS,
        "budget_ratio": SHARE,
        "budget_min": COUNT_OR_NONE,
        "budget_seconds": SECONDS,
    },
    HedgePolicy: {"attempts_max": (0, 1, 10, 11), "delay_seconds": SECONDS},
    BulkheadPolicy: {
        "concurrent_max": COUNT,
        "queue_max": COUNT_OR_NONE,
        "wait_seconds_max": SECONDS_OR_NONE,
        "concurrent_min": COUNT,
    },
    AttemptPolicy: {"first_seconds_max": SECONDS, "between_seconds_max": SECONDS, "total_seconds_max": SECONDS},
    DegradationPolicy: {
        "margin_points": (-0.001, 0, 19.999, 20),
        "down_seconds": SECONDS_OR_NONE,
        "up_seconds": SECONDS_OR_NONE,
        "relapse_growth": GROWTH,
        "up_seconds_max": SECONDS_OR_NONE,
        "interval_seconds": SECONDS,
        "canary_seconds": SECONDS,
    },
}
BOTH = ["internal is in both", "ignore", "record"]
NUMBERS = [(policy, field, bounds) for policy, fields in BOUNDS.items() for field, bounds in fields.items()]
FIELDS = [(policy, field) for policy in LEAVES for field in policy.model_fields]


def faults(policy: type[Policy], values: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with `values`, by the path of the key; what is only wrong together has the table's path."""
    try:
        policy.model_validate(values)
    except ValidationError as error:
        return {".".join(map(str, each["loc"])): each["msg"] for each in error.errors()}
    return {}


def test_the_table_of_bounds_is_whole() -> None:
    numbers = {
        (policy, name)
        for policy in POLICIES
        for name, field in policy.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert {(policy, field) for policy, field, _ in NUMBERS} == numbers


@pytest.mark.parametrize("policy", POLICIES)
def test_defaults_are_valid_and_each_says_what_it_is(policy: type[Policy]) -> None:
    assert faults(policy, policy().model_dump()) == {}
    for name, field in policy.model_fields.items():
        if isinstance(field.default, Policy):
            continue
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict)
        assert field.json_schema_extra["unit"], name


@pytest.mark.parametrize(("policy", "field", "bounds"), NUMBERS)
def test_a_number_is_taken_up_to_its_bounds_and_refused_beyond(
    policy: type[Policy], field: str, bounds: tuple[float, float, float, float]
) -> None:
    below, least, most, above = bounds
    assert field in faults(policy, {field: below})
    assert field not in faults(policy, {field: least})
    assert field not in faults(policy, {field: most})
    assert field in faults(policy, {field: above})


def test_the_tables_leave_no_policy_out() -> None:
    every = {each for each in vars(policies).values() if isinstance(each, type) and issubclass(each, Policy)}
    assert {*POLICIES, Policy} == every


@pytest.mark.parametrize(("policy", "field"), FIELDS)
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, {}, [1]])
def test_what_is_no_value_at_all_is_refused(policy: type[Policy], field: str, value: object) -> None:
    [fault] = faults(policy, {field: value})
    assert fault.partition(".")[0] == field


@pytest.mark.parametrize(("policy", "field"), [(policy, field) for policy, field, _ in NUMBERS])
@pytest.mark.parametrize("value", ["much", "", "1 s"])
def test_a_text_is_no_number(policy: type[Policy], field: str, value: str) -> None:
    assert list(faults(policy, {field: value})) == [field]


@pytest.mark.parametrize("field", ["failures_max", "calls_min", "probes_max", "successes_min"])
def test_a_count_is_whole(field: str) -> None:
    assert field in faults(BreakerPolicy, {field: 1.5})
    assert faults(BreakerPolicy, {field: 2.0}) == {}


def test_only_slow_seconds_may_be_none() -> None:
    may_be_none = {field for policy, field in FIELDS if not faults(policy, {field: None})}
    assert may_be_none == {"slow_seconds"}


@pytest.mark.parametrize("policy", POLICIES)
def test_an_unknown_key_is_refused(policy: type[Policy]) -> None:
    assert list(faults(policy, {"open_secs": 1})) == ["open_secs"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_cannot_be_changed(policy: type[Policy]) -> None:
    made = policy()
    field = next(iter(policy.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, field, getattr(made, field))
    assert made == policy()
    assert hash(made) == hash(policy())


@pytest.mark.parametrize(
    ("policy", "values", "fields"),
    [
        (BreakerPolicy, {"open_seconds": 60.001}, ["open_seconds ", "open_seconds_max"]),
        (BreakerPolicy, {"open_seconds_max": 4.999}, ["open_seconds ", "open_seconds_max"]),
        (BreakerPolicy, {"window": "count", "calls_min": 101}, ["calls_min", "window_calls"]),
        (BreakerPolicy, {"window": "count", "window_calls": 19}, ["calls_min", "window_calls"]),
        (BreakerPolicy, {"ignore": ["not-found", "internal"], "record": "overloaded, internal"}, BOTH),
        (BreakerPolicy, {"ignore": "overloaded, internal", "record": "internal, overloaded"}, ["internal is in both"]),
        (RetryPolicy, {"base_seconds": 5.001}, ["base_seconds", "cap_seconds"]),
        (RetryPolicy, {"cap_seconds": 0.199}, ["base_seconds", "cap_seconds"]),
        (BulkheadPolicy, {"limit": "gradient2", "concurrent_min": 257}, ["concurrent_min", "concurrent_max"]),
        (BulkheadPolicy, {"limit": "gradient2", "concurrent_max": 7}, ["concurrent_min", "concurrent_max"]),
        (AttemptPolicy, {"first_seconds_max": 60.001}, ["first_seconds_max", "total_seconds_max"]),
        (AttemptPolicy, {"total_seconds_max": 19.999}, ["first_seconds_max", "total_seconds_max"]),
        (DegradationPolicy, {"up_seconds": 300.001}, ["up_seconds ", "up_seconds_max"]),
        (DegradationPolicy, {"up_seconds_max": 14.999}, ["up_seconds ", "up_seconds_max"]),
    ],
)
def test_a_contradiction_names_both_sides_and_the_cure(
    policy: type[Policy], values: dict[str, Any], fields: list[str]
) -> None:
    [(path, message)] = faults(policy, values).items()
    assert path == ""
    assert all(field in message for field in fields)
    assert ": lower it" in message or ": keep it in one" in message


@pytest.mark.parametrize(
    ("policy", "values"),
    [
        (BreakerPolicy, {"open_seconds": 60}),
        (BreakerPolicy, {"window": "count", "calls_min": 100}),
        (BreakerPolicy, {"window": "time", "calls_min": 101}),
        (BreakerPolicy, {"ignore": "not-found, internal", "record": "overloaded"}),
        (RetryPolicy, {"base_seconds": 5}),
        (BulkheadPolicy, {"limit": "gradient2", "concurrent_min": 256}),
        (BulkheadPolicy, {"limit": "fixed", "concurrent_max": 1}),
        (AttemptPolicy, {"first_seconds_max": 60}),
        (AttemptPolicy, {"between_seconds_max": 3600}),
        (DegradationPolicy, {"up_seconds": 300}),
        (DegradationPolicy, {"margin_points": 0, "down_seconds": 0, "up_seconds": 0, "up_seconds_max": 0}),
    ],
)
def test_what_only_touches_is_no_contradiction(policy: type[Policy], values: dict[str, Any]) -> None:
    assert faults(policy, values) == {}


def test_words_come_from_a_list() -> None:
    assert "window" in faults(BreakerPolicy, {"window": "calls"})
    assert "limit" in faults(BulkheadPolicy, {"limit": "vegas"})
    assert "fallbacks.1" in faults(GuardPolicy, {"fallbacks": ["cache", "prayer"]})


@pytest.mark.parametrize("text", ["{0}, {1}", " {0} ,{1},, "])
def test_one_text_may_be_a_list(text: str) -> None:
    assert GuardPolicy.model_validate({"fallbacks": text.format("cache", "apology")}).fallbacks == ("cache", "apology")
    for field in ("ignore", "record"):
        policy = BreakerPolicy.model_validate({field: text.format("not-found", "internal")})
        assert getattr(policy, field) == ("not-found", "internal")
    assert (
        GuardPolicy.model_validate({"fallbacks": ""}).fallbacks == BreakerPolicy.model_validate({"ignore": ""}).ignore
    )
    assert GuardPolicy.model_validate({"fallbacks": "cache"}).fallbacks == ("cache",)


@pytest.mark.parametrize("field", ["ignore", "record"])
def test_a_kind_of_error_that_does_not_exist_is_refused_with_the_nearest(field: str) -> None:
    assert faults(BreakerPolicy, {field: "internal, deadline-exceded"}) == {
        field: "deadline-exceded is no kind of error: did you mean deadline-exceeded?"
    }
    assert "did you mean" in faults(BreakerPolicy, {field: ["?"]})[field]
    assert "cancelled is no kind of error" in faults(BreakerPolicy, {field: "cancelled"})[field]  # it never counts
    assert faults(BreakerPolicy, {field: errors.kinds()}) == {}


def test_the_kinds_are_those_that_the_errors_have_each_once() -> None:
    kinds = errors.kinds()
    assert kinds[:2] == ("internal", "configuration")
    assert {"bulkhead-full", "session-unknown", "deadline-exceeded"} < set(kinds)
    assert len(set(kinds)) == len(kinds)


def test_a_fallback_is_named_once() -> None:
    assert faults(GuardPolicy, {"fallbacks": "cache, apology, cache"}) == {
        "fallbacks": "cache is named twice: keep it where it should be asked first"
    }


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"unified": {"breaker": {"probes_max": 0}}}, "unified.breaker.probes_max"),
        ({"memory": {"retry": {"base_seconds": -1}}}, "memory.retry.base_seconds"),
        ({"commands": {"breaker": {"failure_rate_max": 2}}}, "commands.breaker.failure_rate_max"),
        ({"alternate": {"bulkhead": {"queue_max": True}}}, "alternate.bulkhead.queue_max"),
        ({"unified": {"attempt": {"seconds": 1}}}, "unified.attempt.seconds"),
        ({"unified": {"timeout": {}}}, "unified.timeout"),
        ({"swarm": {}}, "swarm"),
        ({"unified": {"retry": {"cap_seconds": 0.1}}}, "unified.retry"),
        ({"memory": {"attempt": {"first_seconds_max": 6}}}, "memory.attempt"),
        ({"unified": {"breaker": 3}}, "unified.breaker"),
        ({"unified": {"breaker": True}}, "unified.breaker"),
        ({"unified": True}, "unified"),
        ({"unified": None}, "unified"),
    ],
)
def test_the_path_leads_to_the_key(values: dict[str, Any], path: str) -> None:
    assert list(faults(GuardPolicies, values)) == [path]


def test_every_fault_is_told_at_once() -> None:
    values = {"unified": {"breaker": {"probes_max": 0, "open_seconds": -1}}, "memory": {"hedge": {"attempts_max": 11}}}
    assert sorted(faults(GuardPolicies, values)) == [
        "memory.hedge.attempts_max",
        "unified.breaker.open_seconds",
        "unified.breaker.probes_max",
    ]


@pytest.mark.parametrize("name", ["alternate", "memory", "commands"])
def test_only_unified_has_fallbacks(name: str) -> None:
    assert faults(GuardPolicies, {name: {"fallbacks": ["cache"]}}) == {
        f"{name}.fallbacks": f"{name} has fallbacks, and only unified can have any: remove them"
    }
    assert faults(GuardPolicies, {"unified": {"fallbacks": ["offline"]}, name: {"fallbacks": []}}) == {}


@pytest.mark.parametrize("name", ["unified", "alternate", "commands"])
def test_only_memory_is_hedged(name: str) -> None:
    assert faults(GuardPolicies, {name: {"hedge": {"attempts_max": 2}}}) == {
        f"{name}.hedge.attempts_max": f"{name} is never hedged, only memory is asked in calls that may be made twice: "
        "set it to 1"
    }
    assert faults(GuardPolicies, {name: {"hedge": {"attempts_max": 1}}, "memory": {"hedge": {"attempts_max": 2}}}) == {}


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("unified", "first_seconds_max"),
        ("alternate", "first_seconds_max"),
        ("memory", "total_seconds_max"),
        ("commands", "first_seconds_max"),
    ],
)
def test_a_call_can_be_slow_before_it_has_to_end(name: str, ends: str) -> None:
    attempt = {"first_seconds_max": 2, "between_seconds_max": 3, "total_seconds_max": 4}
    most = attempt[ends]
    assert faults(GuardPolicies, {name: {"attempt": attempt, "breaker": {"slow_seconds": most}}}) == {}
    assert faults(GuardPolicies, {name: {"attempt": attempt, "breaker": {"slow_seconds": most + 0.5}}}) == {
        f"{name}.breaker.slow_seconds": f"no call could be slow, since each ends before, by {name}.attempt.{ends}, "
        f"{most} s: lower it or raise the other"
    }


def test_all_that_would_do_nothing_is_told_at_once() -> None:
    values = {"unified": {"hedge": {"attempts_max": 2}}, "commands": {"fallbacks": "cache", "breaker": {}}}
    assert list(faults(GuardPolicies, values)) == ["unified.hedge.attempts_max", "commands.fallbacks"]


def test_a_table_in_part_keeps_the_dependencys_other_defaults() -> None:
    defaults = GuardPolicies()
    given = GuardPolicies.model_validate(
        {
            "unified": {"breaker": {"failures_max": 7}},
            "memory": {"attempt": {"first_seconds_max": 1}},
            "commands": {"fallbacks": (), "retry": {"base_seconds": 0.5}},
        }
    )
    assert given.unified.fallbacks == ("alternate", "cache", "apology")
    assert given.unified == defaults.unified.model_copy(update={"breaker": BreakerPolicy(failures_max=7)})
    assert given.memory.attempt == AttemptPolicy(first_seconds_max=1.0, between_seconds_max=5.0, total_seconds_max=5.0)
    assert given.memory.retry == RetryPolicy()
    assert given.commands.retry == RetryPolicy(attempts_max=1, base_seconds=0.5)
    assert given.commands.attempt.total_seconds_max == 5.0
    assert given.alternate == defaults.alternate
    assert GuardPolicies() == defaults  # the defaults themselves are as they were


def test_a_whole_policy_given_in_code_is_taken_as_it_is() -> None:
    bare = GuardPolicy(retry=RetryPolicy(attempts_max=9))
    given = GuardPolicies(commands=bare)
    assert given.commands is bare
    assert given.commands.attempt == AttemptPolicy()


def test_the_defaults_are_those_of_the_design() -> None:
    guards = GuardPolicies()
    assert guards.unified == GuardPolicy(fallbacks=("alternate", "cache", "apology"))
    assert guards.alternate == GuardPolicy()
    assert (guards.memory.attempt.total_seconds_max, guards.memory.retry.attempts_max) == (5.0, 3)
    assert (guards.commands.attempt.total_seconds_max, guards.commands.retry.attempts_max) == (5.0, 1)
    assert guards.unified.hedge.attempts_max == 1
    assert (guards.unified.retry.budget_ratio, guards.unified.retry.budget_min) == (0.2, 3)
    assert guards.unified.retry.budget_seconds == 10.0


def test_what_was_given_is_not_shown_again() -> None:
    with pytest.raises(ValidationError) as refusal:
        BreakerPolicy.model_validate({"failures_max": "sk-secret"})
    assert "sk-secret" not in str(refusal.value)
