"""Metrics: what the page says after known events, read by Prometheus' own parser."""

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from orchestra.events import (
    BreakerChanged,
    FellBack,
    LevelChanged,
    OperatorActed,
    RequestFinished,
    TurnFinished,
    TurnStarted,
)
from orchestra.telemetry.metrics import LABEL_VALUES_MAX, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"orchestra_{name}", tuple(sorted(labels.items()))))


def fed(events) -> Metrics:
    metrics = Metrics()
    for event in events:
        metrics.hook(event)
    return metrics


def test_every_event_is_counted(events):
    for event in events:
        counted = {key for key, number in samples(fed([event])).items() if number and key[0].startswith("orchestra_")}
        assert any(not name.endswith("_created") for name, _ in counted), event


def test_the_page_says_what_happened(events):
    metrics = fed(events)
    assert value(metrics, "turns_total", outcome="answered", error="") == 1
    assert value(metrics, "turn_seconds_sum", outcome="answered") == 2.0
    assert value(metrics, "first_token_seconds_bucket", le="1.0") == 1
    assert value(metrics, "first_token_seconds_bucket", le="0.5") == 0
    assert value(metrics, "tokens_total", direction="prompt") == 30
    assert value(metrics, "tokens_total", direction="completion") == 12
    assert value(metrics, "turns_degraded_total", feature="memory") == 1
    assert value(metrics, "calls_total", target="memory", outcome="failure") == 1
    assert value(metrics, "call_seconds_sum", target="unified") == 1.0
    assert value(metrics, "store_operations_total", target="conversations", error="") == 1
    assert value(metrics, "call_retries_total", target="unified") == 1
    assert value(metrics, "call_hedges_total", target="unified") == 1
    assert value(metrics, "fallbacks_total", target="unified", fallback="cache") == 1
    assert value(metrics, "degradation_level_changes_total", level="LIMITED") == 1
    assert value(metrics, "operator_actions_total", target="memory", action="disable") == 1
    assert value(metrics, "http_requests_total", method="POST", route="/chat/v2/chat", status="200") == 1
    assert value(metrics, "http_request_seconds_count", route="/chat/v2/chat") == 1
    assert value(metrics, "unexpected_errors_total", where="turn") == 1
    assert value(metrics, "lifecycle_total", part="gateway", state="up") == 1
    assert value(metrics, "turns_in_flight") == 0


def test_a_breaker_is_in_exactly_one_state(events):
    metrics = fed(events[:5])
    assert value(metrics, "breaker_state", breaker="unified", state="CLOSED") == 1
    for state in ("OPEN", "HALF_OPEN", "CLOSED", "OPEN"):
        metrics.hook(BreakerChanged(1.0, "memory", "", state, ""))
        states = {
            each: value(metrics, "breaker_state", breaker="memory", state=each)
            for each in ("CLOSED", "OPEN", "HALF_OPEN")
        }
        assert states == {"CLOSED": 0, "OPEN": 0, "HALF_OPEN": 0, state: 1}
    metrics.hook(events[1])  # a call tells nothing about a breaker whose state is known
    assert value(metrics, "breaker_state", breaker="memory", state="OPEN") == 1
    assert value(metrics, "breaker_changes_total", breaker="memory", state="OPEN") == 2


def test_the_service_is_at_exactly_one_level_from_the_start():
    metrics = Metrics()
    levels = ("NORMAL", "LIMITED", "ESSENTIAL", "EMERGENCY", "MAINTENANCE")
    before = "NORMAL"
    for level in (*levels, *reversed(levels)):
        if level != before:
            metrics.hook(LevelChanged(1.0, before, level, None, ""))
        before = level
        shown = {each: value(metrics, "degradation_level", level=each) for each in levels}
        assert shown == dict.fromkeys(levels, 0) | {level: 1}
    assert value(metrics, "degradation_level_changes_total", level="LIMITED") == 2
    assert value(metrics, "degradation_level_changes_total", level="MAINTENANCE") == 1


def test_turns_in_flight_count_what_was_admitted_and_not_ended(events):
    finished = next(event for event in events if isinstance(event, TurnFinished))
    shed = msgspec.structs.replace(finished, correlation_id="c-3", outcome="shed", error="overloaded")
    metrics = fed([TurnStarted(1.0, "c-1", None), TurnStarted(1.0, "c-2", None), shed])
    assert value(metrics, "turns_in_flight") == 2
    metrics.hook(finished)
    assert value(metrics, "turns_in_flight") == 1
    assert value(metrics, "turns_total", outcome="shed", error="overloaded") == 1


def test_a_label_never_takes_more_values_than_its_bound():
    metrics = fed(RequestFinished(1.0, "c", f"METHOD{n}", "/", 405, 0.1) for n in range(LABEL_VALUES_MAX + 50))
    methods = [dict(labels)["method"] for name, labels in samples(metrics) if name == "orchestra_http_requests_total"]
    assert len(methods) == LABEL_VALUES_MAX + 1
    assert value(metrics, "http_requests_total", method="other", route="/", status="405") == 50


def test_targets_and_actions_from_outside_are_bounded_too():
    count = LABEL_VALUES_MAX + 50
    metrics = fed(OperatorActed(1.0, f"target-{n}", f"action-{n}", "") for n in range(count))
    for n in range(count):
        metrics.hook(FellBack(1.0, "c", f"target-{n}", f"fallback-{n}", ""))
    assert value(metrics, "operator_actions_total", target="other", action="other") == 50
    assert value(metrics, "fallbacks_total", target="other", fallback="other") == 50


def test_two_registries_count_apart(events):
    fed(events)
    assert value(Metrics(), "turns_in_flight") == 0
