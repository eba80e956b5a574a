"""Expectations: what each measure says of a journal that is known by heart."""

import math

import pytest

from orchestra.events import TurnStarted, UnexpectedError
from sim.expectations import Evidence, Expectation, judge, percentile
from sim.journal import Audited, ClientArrived, ClientFinished, Journal, ProviderCallStarted
from sim.quantities import comparison, count, duration, share
from sim.verdict import Status, reach


def bound(text: str, quantity=share):
    return comparison(text, quantity)


def result(journal, **expectation):
    (it,) = judge((Expectation(**expectation),), journal)
    return it


TURNS = [
    (5, "answered", 1.0),
    (15, "answered", 2.0),
    (30, "failed", 8.0),
    (35, "shed", 0.1),
    (45, "answered", 9.0),
    (60, "failed", 1.0),
    (70, "answered", 1.0),
    (80, "answered", 3.0),
]


@pytest.mark.parametrize(
    ("window", "measure", "value"),
    [
        ({"before": "fault"}, "success_rate", 1.0),
        ({"during": "fault"}, "success_rate", 1 / 3),
        ({"after": "fault"}, "success_rate", 2 / 3),
        ({"always": "run"}, "success_rate", 5 / 8),
        ({"during": "fault"}, "failure_rate", 1 / 3),
        ({"during": "fault"}, "shed_share", 1 / 3),
        ({"always": "run"}, "failures", 2),
        ({"always": "run"}, "p50", 2.0),
        ({"after": "fault"}, "p95", 2.9),
        ({"during": "store_down"}, "p99", 9.0),
        ({"during": "fault"}, "refusal_p95", 0.1 + 0.95 * 7.9),
    ],
)
def test_a_measure_is_taken_in_its_window(story, window, measure, value):
    quantity = {"p": duration, "r": duration, "f": count, "s": share}[measure[0]]
    it = result(story(TURNS, fault=(20, 50)), **window, **{measure: bound("<= 0", quantity)})
    assert it.value == pytest.approx(value)


def test_a_turn_belongs_to_the_window_in_which_it_arrived(story):
    journal = story([(19.9, "failed", 50.0)], fault=(20, 50))
    assert result(journal, before="fault", success_rate=bound(">= 1%")).value == 0.0


def test_bounds_hold_or_not(story):
    journal = story(TURNS, fault=(20, 50))
    assert result(journal, after="fault", success_rate=bound(">= 66%")).held
    assert not result(journal, after="fault", success_rate=bound(">= 67%")).held


def test_each_bound_is_a_result_in_words_with_what_was_measured(story):
    journal = story(TURNS, fault=(20, 50))
    first, second = judge(
        (Expectation(before="fault", success_rate=bound(">= 99%"), p95=bound("< 1s", duration)),), journal
    )
    assert (first.text, first.measured, first.held, first.baseline) == (
        "before fault: success rate >= 99%",
        "100%",
        True,
        True,
    )
    assert (second.text, second.measured, second.held) == ("before fault: p95 < 1s", "1.9s", False)


def test_within_skips_to_the_first_moment_from_which_it_holds(story):
    journal = story(TURNS, fault=(20, 50))
    it = result(journal, after="fault", within=30.0, success_rate=bound(">= 99%"))
    assert (it.held, it.measured) == (True, "100% from 11s on")
    assert not result(journal, after="fault", within=10.0, success_rate=bound(">= 99%")).held


@pytest.mark.parametrize("measure", ["success_rate", "shed_share", "p95", "refusal_p95"])
def test_where_nothing_arrived_nothing_holds(story, measure):
    quantity = duration if "p95" in measure else share
    it = result(story([], fault=(20, 50)), during="fault", **{measure: bound("<= 0", quantity)})
    assert (it.held, it.measured, it.value) == (False, "-", None)


def test_where_nobody_was_refused_no_refusal_kept_waiting(story):
    it = result(story([(30, "answered", 1.0)]), always="run", refusal_p95=bound("< 1s", duration))
    assert (it.held, it.value) == (True, 0.0)


CHANGES = [
    (25, "unified", "OPEN"),
    (40, "unified", "HALF_OPEN"),
    (41, "unified", "OPEN"),
    (55, "unified", "HALF_OPEN"),
    (57, "unified", "CLOSED"),
]


@pytest.mark.parametrize(
    ("window", "breaker", "within", "held", "measured"),
    [
        ({"during": "fault"}, "unified opens", None, True, "after 5s"),
        ({"during": "fault"}, "opens", 4.0, False, "never"),
        ({"during": "fault"}, "half_opens", 20.1, True, "after 20s"),
        ({"during": "fault"}, "closes", None, False, "never"),
        ({"before": "fault"}, "closed", None, True, "from 0s on"),
        ({"after": "fault"}, "unified closed", 10.0, True, "from 7s on"),
        ({"after": "fault"}, "unified closed", 6.0, False, "from 7s on"),
        ({"after": "fault"}, "memory closed", None, True, "from 0s on"),
        ({"during": "fault"}, "open", 25.0, True, "from 21s on"),
        ({"during": "fault"}, "closed", 30.0, False, "not at the window's end"),
        ({"during": "fault"}, "memory opens", None, False, "never"),
    ],
)
def test_a_breaker_does_something_or_is_in_a_state(story, window, breaker, within, held, measured):
    it = result(story(TURNS, fault=(20, 50), changes=CHANGES), **window, breaker=breaker, within=within)
    assert (it.held, it.measured) == (held, measured)


def test_all_breakers_are_meant_where_none_is_named(story):
    changes = [(25, "unified", "OPEN"), (26, "memory", "OPEN"), (60, "unified", "CLOSED")]
    journal = story(TURNS, fault=(20, 50), changes=changes)
    assert not result(journal, after="fault", within=40.0, breaker="closed").held
    assert result(journal, after="fault", within=40.0, breaker="unified closed").held


def test_a_fault_that_never_came_keeps_nothing(story):
    journal = story(TURNS)
    assert result(journal, during="fault", success_rate=bound(">= 0%")).measured == "the fault never came"
    assert not result(journal, during="fault", breaker="opens").held


def test_accounted_finds_what_does_not_add_up(story):
    journal = story(TURNS, fault=(20, 50))
    assert result(journal, always="accounted").measured == "5 answered + 2 failed + 1 shed = 8"
    for entry in (
        ClientArrived(90.0, 99, "c", "s", 1, 1),
        ClientFinished(90.0, 1, "c", "answered", "", 1.0),
        TurnStarted(90.0, "c", None),
        ProviderCallStarted(90.0, 1, 0, 0),
    ):
        it = result(Journal([*journal, entry]), always="accounted")
        assert not it.held, entry
        assert "1 " in it.measured
        assert "open" in it.measured
    assert not result(story(TURNS, finished=False), always="accounted").held


def test_durable_believes_only_an_audit(story):
    journal = story(TURNS)
    assert not result(journal, always="durable").held
    for missing, duplicated, held in ((0, 0, True), (1, 0, False), (0, 1, False)):
        assert result(Journal([*journal, Audited(100.0, 5, missing, duplicated)]), always="durable").held is held


def test_no_defects_names_the_first(story):
    journal = story(TURNS)
    assert result(journal, always="no_defects").held
    journal.record(UnexpectedError(3.0, "c", "turn", "Traceback\nKeyError: 'x'\n"))
    it = result(journal, always="no_defects")
    assert (it.held, it.measured) == (False, "1, the first in turn: KeyError: 'x'")


@pytest.mark.parametrize(("values", "q", "expected"), [([1], 0.95, 1), ([1, 2, 3], 0.5, 2), ([4, 1], 0.25, 1.75)])
def test_percentiles_interpolate(values, q, expected):
    assert percentile(values, q) == expected


def test_the_percentile_of_nothing_is_no_number():
    assert math.isnan(percentile([], 0.5))


def test_a_fault_still_in_force_lasts_to_the_end(story):
    journal = Journal(entry for entry in story(TURNS, fault=(20, 50)) if type(entry).__name__ != "FaultEnded")
    window = Evidence(journal).window("during", "fault")
    assert window.start == 20
    assert window.end == math.inf


HOLDS, BREAKS = (
    Expectation(always="run", failures=bound("<= 9", count)),
    Expectation(always="run", failures=bound("<= 0", count)),
)
SICK = Expectation(before="fault", success_rate=bound("< 1%"))


@pytest.mark.parametrize(
    ("expectations", "touched", "left", "finished", "status"),
    [
        ((HOLDS,), 1, (), True, Status.PASSED),
        ((HOLDS, BREAKS), 1, (), True, Status.FAILED),
        ((SICK, BREAKS), 0, (), True, Status.BASELINE_UNHEALTHY),
        ((HOLDS, BREAKS), 0, (), True, Status.INCONCLUSIVE),
        ((HOLDS,), 1, ("task x",), True, Status.CLEANUP_FAILED),
        ((HOLDS, BREAKS), 1, ("task x",), True, Status.FAILED),
        ((SICK,), 0, ("task x",), False, Status.ABORTED),
    ],
)
def test_a_verdict_weighs_first_what_makes_the_rest_meaningless(story, expectations, touched, left, finished, status):
    entries = story(TURNS, fault=(20, 50), finished=finished)
    if not touched:
        entries = Journal(
            type(entry)(entry.at, entry.fault, entry.kind, 0) if type(entry).__name__ == "FaultEnded" else entry
            for entry in entries
        )
    verdict = reach(expectations, entries, left)
    assert verdict.status is status
    assert verdict.exit_code == status.value
    assert verdict.passed is (status is Status.PASSED)
    assert verdict.accounting.adds_up
    assert verdict.failures == {"x": 3}
    assert verdict.meaning
