"""Measures of whole runs: what each says of a journal that is known by heart."""

import math

import msgspec
import pytest

from orchestra.events import TurnFinished
from sim.evidence import Evidence, Window
from sim.expectations import BOUNDED
from sim.journal import ClientFinished, ProviderCallEnded, ProviderCallStarted
from sim.measures import COLUMNS, MEASURES, MeasureUnknown, known, measured, recovery

TURNS = [(5, "answered", 1.0), (15, "answered", 2.0), (30, "failed", 8.0), (35, "shed", 0.1), (45, "answered", 9.0)]


def calls(*spent):
    """Calls of the provider as (at, prompt tokens, completion tokens, cost), each a second long."""
    return [
        entry
        for number, (at, prompt, completion, cost) in enumerate(spent)
        for entry in (
            ProviderCallStarted(at, number, 0, 0),
            msgspec.structs.replace(
                ProviderCallEnded(at + 1, number, "answered", 0.0, 1.0, prompt, completion), cost=cost
            ),
        )
    ]


def begun(at, number, first_token_seconds):
    """How the orchestra told the end of a turn."""
    return TurnFinished(at, f"c{number}", "s", "t", "answered", "", 1.0, first_token_seconds, "e", 1, 1, (), None)


def test_turns_and_shares(story):
    found = measured(story(TURNS))
    assert [found[name] for name in ("turns", "answered", "failed", "shed")] == [5, 3, 1, 1]
    assert [found[name] for name in ("availability", "failure_rate", "shed_share")] == [0.6, 0.2, 0.2]
    assert found["goodput_per_second"] == 3 / 100
    assert found["p50"] == 2.0
    assert found["p95"] == pytest.approx(8.3)
    assert found["refusal_p95"] == pytest.approx(7.605)


def test_what_the_warm_up_saw_does_not_count(story):
    found = measured(story(TURNS, changes=[(2, "unified", "OPEN"), (20, "unified", "CLOSED")]), warm_up_s=10)
    assert (found["turns"], found["answered"], found["openings"]) == (4, 2, 0)
    assert found["goodput_per_second"] == 2 / 90
    assert found["breaker_unified_open_seconds"] == 10
    assert found["breaker_unified_closed_seconds"] == 80


def test_time_in_each_state_of_a_breaker_and_level_adds_up_to_the_run(story):
    changes = [(10, "unified", "OPEN"), (30, "unified", "HALF_OPEN"), (31, "unified", "CLOSED"), (90, "memory", "OPEN")]
    levels = [(20, "NORMAL", "LIMITED"), (25, "LIMITED", "ESSENTIAL"), (99.5, "ESSENTIAL", "LIMITED")]
    found = measured(story(TURNS, changes=changes, levels=levels))
    states = ("closed", "half_open", "open")
    assert [found[f"breaker_unified_{state}_seconds"] for state in states] == [79, 1, 20]
    assert [found[f"breaker_memory_{state}_seconds"] for state in states] == [90, 0, 10]
    assert [found[f"breaker_commands_{state}_seconds"] for state in states] == [100, 0, 0]
    assert found["openings"] == 2
    assert [found[f"level_{name}_seconds"] for name in ("normal", "limited", "essential")] == [20, 5.5, 74.5]


def test_time_to_the_first_token_is_the_clients_where_they_saw_one_else_the_orchestras(story):
    more = [begun(5.9, 1, 0.25), begun(16.9, 2, 0.75)]
    found = measured(story(TURNS[:2], more=more))
    assert (found["first_token_p50"], found["first_token_p95"]) == (0.5, pytest.approx(0.725))
    told = story(TURNS[:2], more=more)
    entries = [
        msgspec.structs.replace(entry, first_token_seconds=0.5) if isinstance(entry, ClientFinished) else entry
        for entry in told
    ]
    assert measured(type(told)(entries))["first_token_p95"] == 0.5
    assert math.isnan(measured(story(TURNS))["first_token_p50"])


def test_amplification_of_clients_and_of_the_providers_calls(story):
    found = measured(story(TURNS, retries=[(31, 3), (32, 3)], more=calls((5, 1, 1, 0), (15, 1, 1, 0), (30, 1, 1, 0))))
    assert found["retry_amplification"] == 7 / 5
    assert found["provider_amplification"] == 3 / 5


def test_cost_is_what_was_paid_for_all_calls(story):
    found = measured(story(TURNS, more=calls((5, 100, 20, 0.5), (15, 300, 40, 1.25))))
    assert (found["prompt_tokens"], found["completion_tokens"], found["cost"]) == (400, 60, 1.75)
    assert measured(story(TURNS))["cost"] == 0


class TestRecovery:
    def journal(self, story, bad, fault=(20, 30), until=100):
        """One turn a second, of which those at `bad` seconds fail."""
        return story([(at, "failed" if at in bad else "answered", 0.1) for at in range(until)], fault=fault)

    def found(self, *arguments, start=0.0, **options):
        return recovery(Evidence(self.journal(*arguments, **options)), Window(start, 100.0))

    def test_it_counts_from_the_faults_end_until_every_ten_seconds_are_well(self, story):
        assert self.found(story, range(20, 30)) == (0.0, True)
        # of the ten seconds from 38 on, two are bad, from 39 on one is: which 90 % of all allows
        assert self.found(story, range(20, 40)) == (9.0, True)

    def test_a_relapse_counts(self, story):
        assert self.found(story, {*range(20, 30), 60, 61}) == (31.0, True)

    def test_one_that_never_came_has_taken_at_least_until_the_end(self, story):
        assert self.found(story, range(20, 100)) == (pytest.approx(70.0), False)
        found = measured(self.journal(story, range(20, 100)))
        assert (found["recovery_seconds"], found["recovered"]) == (pytest.approx(70.0), 0.0)

    def test_it_is_measured_against_what_was_usual(self, story):
        half = range(1, 100, 2)
        assert self.found(story, half) == (0.0, True)

    def test_a_warm_up_is_not_what_was_usual(self, story):
        bad = {*range(10), *range(40, 100, 2)}  # half of all is well if half of all was usual
        assert self.found(story, bad) == (0.0, True)
        assert self.found(story, bad, start=10.0) == (pytest.approx(70.0), False)

    def test_without_a_fault_or_time_after_it_there_is_nothing_to_measure(self, story):
        assert math.isnan(self.found(story, (), fault=None)[0])
        assert math.isnan(self.found(story, (), fault=(20, 95))[0])
        assert math.isnan(measured(self.journal(story, (), fault=None))["recovered"])


def test_every_measure_has_a_unit_and_shows_what_is_not_there():
    units = {"share", "seconds", "times", "turns", "turns/s", "tokens", "money"}
    assert {each.unit for each in MEASURES.values()} == units
    assert {each.show(math.nan) for each in MEASURES.values()} == {"-"}
    assert MEASURES["cost"].show(12.3456) == "12.35"


def test_an_unknown_measure_is_refused_with_the_nearest():
    assert known("p95") == "p95"
    with pytest.raises(MeasureUnknown, match="there is no measure 'availabilty': did you mean availability"):
        known("availabilty")
    with pytest.raises(MeasureUnknown, match="write one such as availability, p95"):
        known("zzz")


def test_a_run_has_a_column_for_each_and_expectations_bound_some():
    assert set(COLUMNS) <= set(MEASURES)
    assert "first_token_p95" in BOUNDED
    assert not {"success_rate", "failures"} & set(COLUMNS)
