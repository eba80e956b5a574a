"""Clients that ask again: naive ones at once, polite ones later; and what counts as an answer."""

from itertools import pairwise
from random import Random

import pytest
from msgspec.structs import replace

from orchestra.events import FellBack, TurnFinished
from sim.distributions import Constant
from sim.entropy import Streams
from sim.evidence import Evidence, Window
from sim.journal import Audited, ClientArrived, ClientFinished, ClientRetried
from sim.measures import MEASURES
from sim.verdict import Status
from sim.workload import POLITE_WAIT_S_MAX, Replay, Retries, Row
from sim.world import rehearse

PROPERTIES = "expectations: [{always: accounted}, {always: durable}, {always: no_defects}]\n"
OUTAGE = "faults: [{provider_failing: {at: 10s, for: 10s, rate: 100%}}]\n" + PROPERTIES
NO_FALLBACKS = "settings: {guards: {unified: {fallbacks: [], retry: {attempts_max: 1}}}}\n"
NAIVE = Retries(attempts=4, wait=0.5)
POLITE = Retries(attempts=4, wait=0.5, style="polite")


def of(run, kind):
    return [entry for entry in run.journal if isinstance(entry, kind)]


def retrying(scenario, retries, **more):
    return replace(scenario, workload=replace(scenario.workload, retries=retries, **more))


def test_a_naive_client_waits_for_the_same_time_whatever_it_is_told():
    assert {NAIVE.wait_s(attempt, after, Random(1)) for attempt in (1, 2, 3) for after in (None, 30.0)} == {0.5}


def test_a_polite_client_waits_as_long_as_it_is_asked_to_and_then_for_a_doubled_time_by_chance():
    luck = Random(1).random()
    for attempt, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, POLITE_WAIT_S_MAX), (99, POLITE_WAIT_S_MAX)):
        assert POLITE.wait_s(attempt, None, Random(1)) == luck * longest
        assert POLITE.wait_s(attempt, 7.0, Random(1)) == 7.0 + luck * longest


def test_either_style_spends_one_draw_a_wait():
    left = []
    for retries in (NAIVE, POLITE):
        chance = Random(1)
        retries.wait_s(1, None, chance)
        left.append(chance.random())
    assert left[0] == left[1]


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_naive_clients_ask_again_at_once_until_they_are_answered_or_have_asked_often_enough(small, door):
    run = rehearse(retrying(small(OUTAGE + NO_FALLBACKS), NAIVE), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    ended = {entry.arrival: entry for entry in of(run, ClientFinished)}
    asked = {}
    for entry in of(run, ClientRetried):
        asked.setdefault(entry.arrival, []).append(entry)
    assert {entry.waited_seconds for each in asked.values() for entry in each} == {0.5}
    assert {entry.error for each in asked.values() for entry in each} == {"provider-failed", "breaker-open"}
    assert all([entry.attempt for entry in each] == list(range(2, len(each) + 2)) for each in asked.values())
    assert {len(each) for number, each in asked.items() if ended[number].outcome == "answered"} >= {1, 2}
    assert {len(each) for number, each in asked.items() if ended[number].outcome != "answered"} == {3}
    assert all(ended[number].seconds >= 0.5 * len(each) for number, each in asked.items())
    attempts = len(of(run, ClientArrived)) + len(of(run, ClientRetried))
    assert len(of(run, TurnFinished)) == attempts
    evidence = Evidence(run.journal)
    whole = Window(0.0, 1000.0)
    assert MEASURES["retry_amplification"].of(evidence, whole) == attempts / len(ended) > 1.2


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_polite_clients_come_back_when_the_breaker_lets_them_in_and_later_each_time(small, door):
    run = rehearse(retrying(small(OUTAGE + NO_FALLBACKS), POLITE), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    naive = rehearse(retrying(small(OUTAGE + NO_FALLBACKS), NAIVE), door=door)
    waits = [entry for entry in of(run, ClientRetried) if entry.error == "breaker-open"]
    assert max(entry.waited_seconds for entry in waits) > 4  # as long as the breaker stays open
    assert len({entry.waited_seconds for entry in waits}) > len(waits) * 0.9  # and nobody with anybody else
    assert len(of(run, ClientRetried)) < 0.8 * len(of(naive, ClientRetried))
    assert run.verdict.accounting.answered > naive.verdict.accounting.answered


def test_who_is_out_of_patience_asks_again(small):
    run = rehearse(retrying(small(PROPERTIES), NAIVE, patience=Constant(0.35)))
    assert run.verdict.status is Status.PASSED, run.verdict
    asked = of(run, ClientRetried)
    assert {entry.error for entry in asked} == {"client-timeout"}
    longest = max(entry.seconds for entry in of(run, ClientFinished))
    assert longest == pytest.approx(4 * 0.35 + 3 * 0.5, abs=0.001)


def test_retries_reshuffle_neither_the_arrivals_nor_their_ids(small):
    scenario = small(OUTAGE)
    runs = [rehearse(retrying(scenario, retries)) for retries in (None, NAIVE, POLITE)]
    arrivals = [of(run, ClientArrived) for run in runs]
    assert arrivals[0] == arrivals[1] == arrivals[2]
    assert not of(runs[0], ClientRetried)


def test_where_all_is_well_nobody_asks_again_and_the_journal_is_the_same(small):
    plain, retried = rehearse(small()), rehearse(retrying(small(), NAIVE))
    assert plain.journal.digest == retried.journal.digest


def test_clients_of_a_trace_ask_again_too(small):
    trace = Replay("t", tuple(Row(float(at), 100, 50) for at in range(30)), retries=NAIVE)
    run = rehearse(replace(small(OUTAGE + NO_FALLBACKS), workload=trace))
    assert of(run, ClientRetried)


def test_an_apology_is_no_answer_and_is_kept_all_the_same(small):
    apologise = "settings: {guards: {unified: {fallbacks: [apology]}}}\n"
    run = rehearse(retrying(small(OUTAGE + apologise), NAIVE))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.failures["apology"] == run.verdict.accounting.shed > 5
    attempts = [*of(run, ClientRetried), *of(run, ClientFinished)]
    apologies = sum(entry.error == "apology" for entry in attempts)
    assert apologies == len(of(run, FellBack)) > run.verdict.accounting.shed  # who got one asked again
    (audited,) = of(run, Audited)
    assert audited.acknowledged == run.verdict.accounting.answered + apologies


def test_waits_come_from_a_stream_of_their_own():
    names = ("clients", "clients.retries")
    first, second = (Streams(0).stream(name).random() for name in names)
    assert first != second


def test_attempts_come_one_after_the_other(small):
    run = rehearse(retrying(small(OUTAGE + NO_FALLBACKS), NAIVE))
    told = {}
    for entry in of(run, ClientRetried):
        told.setdefault(entry.arrival, []).append(entry.at)
    assert all(later - earlier >= 0.499999 for each in told.values() for earlier, later in pairwise(each))
