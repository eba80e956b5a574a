"""Expectations: what each measure says of a journal that is known by heart."""

import math

import pytest

from orchestra.events import TurnStarted, UnexpectedError
from sim.evidence import Evidence
from sim.expectations import Expectation, judge
from sim.journal import Audited, ClientArrived, ClientFinished, Journal, ProviderCallStarted
from sim.measures import percentile
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


def test_goodput_counts_answers_when_they_come_and_a_turn_where_it_arrived(story):
    """The answer of 45 comes after the fault; before it came those of 5 and 15, of as many turns."""
    journal = story(TURNS, fault=(20, 50))
    values = [result(journal, **{window: "fault"}, goodput=bound(">= 0%")).value for window in ("before", "during")]
    assert values == [1.0, 0.0]
    assert result(journal, after="fault", goodput=bound(">= 90%")).value == 1.0
    assert result(journal, always="run", goodput=bound(">= 62%")).measured == "62.5%"


def test_goodput_is_above_one_while_a_backlog_is_answered(story):
    journal = story([(30, "answered", 25.0), (35, "answered", 18.0), (60, "answered", 1.0)], fault=(20, 50))
    assert result(journal, after="fault", goodput=bound(">= 1%")).value == 3.0


def test_retry_amplification_counts_attempts_when_they_are_made(story):
    journal = story(TURNS, fault=(20, 50), retries=[(31, 3), (38, 3), (49.9, 4), (50.1, 4)])
    found = [
        result(journal, **window, retry_amplification=bound("<= 9", count))
        for window in ({"before": "fault"}, {"during": "fault"}, {"after": "fault"}, {"always": "run"})
    ]
    assert [it.value for it in found] == [1.0, 2.0, 4 / 3, 12 / 8]
    assert found[3].text == "always: retry amplification <= 9.00x"
    assert found[3].measured == "1.50x"


@pytest.mark.parametrize("measure", ["goodput", "retry_amplification"])
def test_without_arrivals_there_is_neither_goodput_nor_amplification(story, measure):
    quantity = share if measure == "goodput" else count
    journal = story([(10, "answered", 15.0)], fault=(20, 50), retries=[(30, 1)])
    it = result(journal, during="fault", **{measure: bound(">= 0", quantity)})
    assert (it.held, it.measured) == (False, "-")


LEVELS = [
    (25, "NORMAL", "LIMITED"),
    (30, "LIMITED", "ESSENTIAL"),
    (60, "ESSENTIAL", "LIMITED"),
    (80, "LIMITED", "NORMAL"),
]


@pytest.mark.parametrize(
    ("window", "level", "within", "held", "measured"),
    [
        ({"during": "fault"}, "at least LIMITED", 5.0, True, "from 5s on"),
        ({"during": "fault"}, "at least LIMITED", 4.9, False, "from 5s on"),
        ({"during": "fault"}, "at least LIMITED", None, False, "from 5s on"),
        ({"during": "fault"}, "at least ESSENTIAL", 10.0, True, "from 10s on"),
        ({"during": "fault"}, "ESSENTIAL", 10.0, True, "from 10s on"),
        ({"during": "fault"}, "LIMITED", 30.0, False, "ESSENTIAL at the window's end"),
        ({"during": "fault"}, "at least EMERGENCY", 30.0, False, "ESSENTIAL at the window's end"),
        ({"before": "fault"}, "NORMAL", None, True, "all the time"),
        ({"after": "fault"}, "NORMAL", 30.0, True, "from 30s on"),
        ({"after": "fault"}, "NORMAL", 29.0, False, "from 30s on"),
        ({"after": "fault"}, "at most LIMITED", 10.0, True, "from 10s on"),
        ({"always": "run"}, "at most ESSENTIAL", None, True, "all the time"),
        ({"always": "run"}, "at most LIMITED", None, False, "from 60s on"),
    ],
)
def test_a_level_is_kept_from_some_moment_to_the_windows_end(story, window, level, within, held, measured):
    it = result(story(TURNS, fault=(20, 50), levels=LEVELS), **window, level=level, within=within)
    assert (it.held, it.measured) == (held, measured)
    assert it.text.endswith(f": level {level}")


def test_a_run_that_tells_of_no_level_was_normal(story):
    journal = story(TURNS, fault=(20, 50))
    assert result(journal, always="run", level="NORMAL").held
    assert not result(journal, during="fault", within=10.0, level="at least LIMITED").held
    assert result(journal, always="levels_in_order").measured == "NORMAL all the time"
    assert Evidence(journal).time_in_levels() == {"NORMAL": 100.0}


def test_the_level_of_a_fault_that_never_came_is_kept_by_nothing(story):
    assert not result(story(TURNS), during="fault", level="NORMAL").held


def test_breaker_and_level_of_one_expectation_are_two_results(story):
    journal = story(TURNS, fault=(20, 50), levels=LEVELS)
    both = judge((Expectation(during="fault", within=9.0, breaker="closed", level="at least LIMITED"),), journal)
    assert [(it.text, it.held) for it in both] == [
        ("during fault, within 9s: breaker closed", True),
        ("during fault, within 9s: level at least LIMITED", True),
    ]


@pytest.mark.parametrize(
    ("levels", "held", "measured"),
    [
        (LEVELS, True, "4 adjacent steps"),
        ([(25, "NORMAL", "ESSENTIAL")], False, "at 25s from NORMAL to ESSENTIAL, after NORMAL"),
        ([(25, "LIMITED", "ESSENTIAL")], False, "at 25s from LIMITED to ESSENTIAL, after NORMAL"),
        ([(25, "NORMAL", "NORMAL")], False, "at 25s from NORMAL to NORMAL, after NORMAL"),
        ([*LEVELS[:2], (40, "ESSENTIAL", "NORMAL")], False, "at 40s from ESSENTIAL to NORMAL, after ESSENTIAL"),
    ],
)
def test_levels_come_in_adjacent_steps(story, levels, held, measured):
    it = result(story(TURNS, levels=levels), always="levels_in_order")
    assert (it.held, it.measured) == (held, measured)


def test_time_in_each_level_adds_up_to_the_run(story):
    spent = Evidence(story(TURNS, levels=LEVELS)).time_in_levels()
    assert spent == {"NORMAL": 45.0, "LIMITED": 25.0, "ESSENTIAL": 30.0}
    assert list(spent) == ["NORMAL", "LIMITED", "ESSENTIAL"]


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
