"""Little's law in every verdict: kept by what the worlds tell, and broken by any event that is missing or wrong."""

from dataclasses import replace
from io import StringIO

import msgspec
import pytest
from rich.console import Console

from sim.journal import ClientArrived, ClientFinished, Journal, ProviderCallEnded, ProviderCallStarted
from sim.littles_law import Flow
from sim.report import page
from sim.scenario import parse
from sim.timeline import render
from sim.verdict import Status, reach
from sim.world import rehearse

CROWDED = """
name: crowded
duration: 40s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, patience: 2s}}
world:
  provider: {capacity: 2, first_token: {exponential: {mean: 300ms}}, per_token: 5ms, failure_rate: 10%}
faults: [{provider_slow: {at: 10s, for: 10s, factor: 4}}]
"""
KINDS = (ClientArrived, ClientFinished, ProviderCallStarted, ProviderCallEnded)


@pytest.fixture(scope="module")
def run():
    return rehearse(parse(CROWDED))


def test_the_law_holds_where_calls_wait_fail_and_are_given_up(run):
    turns, calls = run.verdict.balances
    assert run.verdict.status is Status.PASSED
    assert (turns.held, calls.held) == (True, True)
    assert turns.came == run.verdict.accounting.arrivals
    assert calls.came > turns.came / 2
    for balance in (turns, calls):
        assert balance.number == pytest.approx(balance.came / balance.until * balance.stay_seconds, rel=1e-5)
    assert {each.outcome for each in run.journal if isinstance(each, ProviderCallEnded)} >= {"answered", "dropped"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_too_few_or_too_many_is_a_failed_verdict_that_names_the_numbers(run, kind):
    events = list(run.journal)
    place = [number for number, each in enumerate(events) if isinstance(each, kind)][20]
    name = getattr(events[place], "arrival", None) or events[place].call
    for doctored in (events[:place] + events[place + 1 :], [*events[: place + 1], events[place], *events[place + 1 :]]):
        verdict = reach((), Journal(doctored))
        assert verdict.status is Status.FAILED
        assert f"number {name}" in verdict.meaning
        assert "L = " in verdict.meaning
        assert "lambda W = " in verdict.meaning


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_time_that_is_off_by_five_microseconds_is_found(run, kind):
    events = list(run.journal)
    place = [number for number, each in enumerate(events) if isinstance(each, kind)][20]
    for field in ("at", "seconds"):
        if hasattr(events[place], field):
            changed = msgspec.structs.replace(events[place], **{field: getattr(events[place], field) + 5e-6})
            assert reach((), Journal([*events[:place], changed, *events[place + 1 :]])).status is Status.FAILED, field


def test_two_errors_that_cancel_out_in_the_sum_are_found():
    flow = Flow("calls")
    for key in (1, 2):
        flow.come(key, float(key))
    flow.leave(1, 5.0, 5.0)
    flow.leave(2, 6.0, 3.0)
    balance = flow.balance(10.0)
    assert balance.number == balance.came / balance.until * balance.stay_seconds == 0.8
    assert not balance.held


def test_the_numbers_are_those_of_a_count_by_hand():
    """Two are there: from 1 to 4 and from 2 to 8 s, in 10 s."""
    flow = Flow("calls")
    flow.come("a", 1.0)
    flow.come("b", 2.0)
    assert "number a, which came at 1s, and 1 others never left" in flow.balance(10.0).text
    flow.leave("a", 4.0, 3.0)
    flow.leave("b", 8.0, 6.0)
    assert flow.balance(10.0).text == "calls: L = 0.9, lambda W = 0.2/s x 4.5 s = 0.9"
    assert flow.balance(10.0).held
    assert Flow("calls").balance(0.0).held


def test_report_and_timeline_tell_of_it_in_the_accounting_only_where_it_is_broken(run):
    broken = reach((), Journal(each for each in run.journal if not isinstance(each, ProviderCallStarted)))
    torn = replace(run, verdict=broken)
    console = Console(width=200, record=True, file=StringIO())
    for each in (torn, run):
        console.print(render(each, "again", console))
        shown = "Little's law is broken" in console.export_text(), "s law is broken" in page(each)
        assert shown == ((True, True) if each is torn else (False, False))


def test_a_run_that_was_cut_off_is_not_blamed_for_who_was_still_there(run):
    events = list(run.journal)
    verdict = reach((), Journal(events[: len(events) // 2]))
    assert verdict.status is Status.ABORTED
    assert verdict.unbalanced == ""
