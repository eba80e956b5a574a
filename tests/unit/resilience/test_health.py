"""What each thing known of a component takes from health, and how the causes add up."""

import pytest

from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import BreakerStatus
from orchestra.resilience.health import OTHER, WEIGHTS, Cause, ComponentHealth, Reading, assess, reading_of


def up(component: str) -> Reading:
    return Reading(component, "CLOSED", calls=100, failure_rate=0.0, slow_rate=0.0)


def down(component: str) -> Reading:
    return Reading(component, "OPEN")


def share(reading: Reading) -> float | None:
    """Return what part of its weight the component of `reading` takes."""
    score = assess([reading]).components[0].score
    return None if score is None else 1 - score / 100


def what(reading: Reading) -> str:
    return assess([reading]).why[0].what


def test_the_weights_are_set_so_that_one_loss_costs_features_and_both_cost_new_turns() -> None:
    assert {name: weight.points for name, weight in WEIGHTS.items()} == {
        "unified": 45,
        "conversations": 45,
        "sessions": 15,
        "memory": 10,
        "memories": 10,
        "alternate": 5,
        "commands": 5,
    }
    assert all(weight.reason for weight in (*WEIGHTS.values(), OTHER))
    assert assess([down("unified")]).score == 55
    assert assess([down("unified"), down("conversations")]).score == 10
    assert assess([down("memory"), down("memories")]).score == 80
    assert assess([down("conversations"), down("memory"), down("memories")]).score == 35
    assert assess([down("what nobody weighed")]).score == 95


def test_all_well_is_a_hundred_without_causes() -> None:
    health = assess([up("unified"), Reading("sessions", pings=0.0)])
    assert (health.score, health.why, health.reason) == (100, (), "")
    assert health.components == (ComponentHealth("unified", 100, 45), ComponentHealth("sessions", 100, 15))


@pytest.mark.parametrize(
    "reading", [Reading("unified"), Reading("unified", "CLOSED"), Reading("unified", "CLOSED", saturation=0.8)]
)
def test_a_component_without_calls_and_pings_is_unknown(reading: Reading) -> None:
    health = assess([reading])
    assert (health.score, health.why) == (None, ())
    assert health.components == (ComponentHealth("unified", None, 45),)
    assert assess([]).score is None


@pytest.mark.parametrize(
    ("reading", "score", "takes", "words"),
    [
        (Reading("unified", calls=50, failure_rate=0.4, past=True), None, 36.0, "40% of 50 calls failed"),
        (Reading("unified", calls=50, slow_rate=0.4, past=True), None, 22.5, "40% of 50 calls were slow"),
        (Reading("unified", calls=50, failure_rate=0.4, saturation=0.9, past=True), 75, 36.0, "40% of 50 calls failed"),
    ],
)
def test_what_has_not_been_asked_since_takes_what_it_took_then(
    reading: Reading, score: float | None, takes: float, words: str
) -> None:
    health = assess([reading, Reading("sessions", pings=0.0)])
    assert health.score == pytest.approx(100 - takes)
    assert health.components[0].score == pytest.approx(score)
    assert [(cause.component, cause.what) for cause in health.why] == [("unified", f"{words}, when last asked")]


def test_what_is_known_now_counts_where_it_is_worse_than_what_was() -> None:
    health = assess([Reading("unified", calls=50, failure_rate=0.1, saturation=1.0, past=True)])
    assert health.why == (Cause("unified", "it is full, and refuses calls", 22.5),)
    assert health.score == 77.5


def test_where_all_that_is_known_is_past_health_is_unknown_and_says_what_was() -> None:
    health = assess([Reading("unified", calls=50, failure_rate=0.0, slow_rate=0.4, past=True)])
    assert health.score is None
    assert health.reason == "unified: 40% of 50 calls were slow, when last asked (-22.5)"
    assert assess([Reading("unified", calls=50, failure_rate=0.0, past=True)]).why == ()


def test_an_unknown_component_takes_nothing_from_those_that_are_known() -> None:
    health = assess([Reading("unified"), Reading("sessions", pings=1.0)])
    assert health.score == 85
    assert [each.score for each in health.components] == [None, 0]


@pytest.mark.parametrize(
    ("reading", "takes", "words"),
    [
        (Reading("unified", "OPEN"), 1.0, "its breaker is OPEN"),
        (Reading("unified", "OPEN", "observing"), 1.0, "its breaker is OPEN"),
        (Reading("unified", "OPEN", "forced_open"), 1.0, "an operator holds its breaker open"),
        (Reading("unified", "HALF_OPEN"), 1.0, "its breaker is HALF_OPEN, without a good probe yet"),
        (Reading("unified", "HALF_OPEN", successes=1), 0.5, "its breaker is HALF_OPEN, with a good probe"),
    ],
)
def test_a_breaker_that_opened_takes_all_until_a_probe_was_good(reading: Reading, takes: float, words: str) -> None:
    assert share(reading) == takes
    assert what(reading) == words


def test_rates_of_another_time_do_not_speak_for_a_breaker_that_opened() -> None:
    reading = Reading("unified", "HALF_OPEN", calls=100, failure_rate=1.0, slow_rate=1.0, successes=1)
    assert share(reading) == 0.5


@pytest.mark.parametrize(("rate", "takes"), [(0.0, 0), (0.1, 0.25), (0.2, 0.5), (0.4, 1), (0.9, 1)])
def test_failures_take_in_proportion_up_to_where_the_breaker_opens(rate: float, takes: float) -> None:
    assert share(Reading("x", "CLOSED", calls=100, failure_rate=rate, failure_rate_max=0.4)) == pytest.approx(takes)
    assert share(Reading("x", "CLOSED", calls=100, slow_rate=rate, slow_rate_max=0.4)) == pytest.approx(takes)


@pytest.mark.parametrize(("calls", "takes"), [(1, 0.1), (5, 0.5), (10, 1.0), (11, 1.0)])
def test_a_rate_of_few_calls_says_little(calls: int, takes: float) -> None:
    reading = Reading("x", "CLOSED", calls=calls, failure_rate=0.5, failure_rate_max=0.5, calls_min=10)
    assert share(reading) == pytest.approx(takes)


@pytest.mark.parametrize(("saturation", "takes"), [(0.81, 0.025), (0.9, 0.25), (1.0, 0.5), (1.5, 0.5)])
def test_a_full_component_takes_half_growing_from_80_per_cent_on(saturation: float, takes: float) -> None:
    assert share(Reading("x", saturation=saturation)) == pytest.approx(takes)
    assert share(Reading("x", pings=0.0, saturation=0.8)) == 0


def test_causes_are_told_in_words() -> None:
    assert what(Reading("x", calls=40, failure_rate=0.25)) == "25% of 40 calls failed"
    assert what(Reading("x", calls=40, slow_rate=0.25)) == "25% of 40 calls were slow"
    assert what(Reading("x", saturation=0.95)) == "95% of its places are taken"
    assert what(Reading("x", saturation=1.0)) == "it is full, and refuses calls"
    assert what(Reading("x", pings=0.4)) == "40% of its recent pings failed"


def test_only_the_worst_of_a_component_counts() -> None:
    reading = Reading("unified", "CLOSED", calls=100, failure_rate=0.1, slow_rate=0.4, saturation=1.0, pings=0.6)
    health = assess([reading])
    assert health.why == (Cause("unified", "60% of its recent pings failed", 27.0),)
    assert health.score == 73


def test_causes_are_sorted_and_add_up() -> None:
    health = assess([down("commands"), down("sessions"), down("alternate"), Reading("memory", pings=0.2)])
    assert [(cause.component, cause.points) for cause in health.why] == [
        ("sessions", 15),
        ("alternate", 5),
        ("commands", 5),
        ("memory", 2),
    ]
    assert health.score == 73
    assert health.reason.startswith("sessions: its breaker is OPEN (-15); alternate: ")


def test_where_more_than_a_hundred_would_go_the_last_take_what_is_left() -> None:
    health = assess([down(name) for name in WEIGHTS])
    assert health.score == 0
    assert [(cause.component, cause.points) for cause in health.why] == [
        ("conversations", 45),
        ("unified", 45),
        ("sessions", 10),
        ("memories", 0),
        ("memory", 0),
        ("alternate", 0),
        ("commands", 0),
    ]
    assert all(component.score == 0 for component in health.components)


def test_a_reading_is_taken_off_a_breaker_and_its_policy() -> None:
    status = BreakerStatus(
        name="unified",
        state="HALF_OPEN",
        mode="observing",
        calls=30,
        failures=3,
        failure_rate=0.1,
        slow_rate=0.2,
        successes=1,
    )
    policy = BreakerPolicy(failure_rate_max=0.3, slow_rate_max=0.6, calls_min=7)
    assert reading_of(status, policy, 0.5) == Reading(
        "unified",
        state="HALF_OPEN",
        mode="observing",
        calls=30,
        failure_rate=0.1,
        slow_rate=0.2,
        failure_rate_max=0.3,
        slow_rate_max=0.6,
        calls_min=7,
        successes=1,
        past=False,
        saturation=0.5,
        pings=None,
    )
    assert reading_of(status, policy).saturation is None
    assert reading_of(status, policy, past=True).past is True


def test_the_defaults_are_those_of_a_breaker() -> None:
    reading, policy = Reading("x"), BreakerPolicy()
    assert (reading.failure_rate_max, reading.slow_rate_max) == (policy.failure_rate_max, policy.slow_rate_max)
    assert (reading.calls, reading.calls_min, reading.successes, reading.mode) == (0, 1, 0, "automatic")
    assert reading.past is False
