"""Evidence: nothing is kept of what has ended, and what does not add up stands out all the same."""

import sys

import pytest

from orchestra.events import TurnFinished, TurnStarted
from sim.evidence import Balance, Evidence, Sent, Turns, Window
from sim.journal import ClientFinished, Journal, ProviderCallEnded, ProviderCallStarted
from sim.verdict import reach
from sim.world import rehearse


def finished(outcome: str, correlation_id: str = "c1") -> TurnFinished:
    return TurnFinished(9.0, correlation_id, "s", "t", outcome, "", 1.0, 0.4, "unified", 1, 1, (), None)


TURN = [(1, "answered", 2.0)]


@pytest.mark.parametrize(
    ("more", "loose"),
    [
        ([TurnStarted(1.0, "c1", None), finished("answered")], 0),
        ([finished("shed")], 0),  # it was refused admission
        ([finished("answered")], 1),
        ([finished("failed")], 1),
        ([TurnStarted(1.0, "c1", None)], 1),
        ([TurnStarted(1.0, "c1", None), finished("answered"), finished("answered")], 1),
        ([TurnStarted(1.0, "c1", None), TurnStarted(1.5, "c1", None), finished("failed"), finished("answered")], 0),
    ],
)
def test_a_turn_ends_as_often_as_it_started(story, more, loose):
    assert len(Evidence(story(TURN, more=more)).open_turns) == loose


def test_a_call_that_ends_twice_is_one_end_too_many(story):
    end = ProviderCallEnded(2.0, 1, "answered", 0.0, 1.0, 5, 6)
    evidence = Evidence(story(TURN, more=[ProviderCallStarted(1.0, 1, 0, 1), end, end]))
    assert len(evidence.open_calls) == 1


def test_a_client_that_ends_twice_does_not_add_up(story):
    again = ClientFinished(4.0, 1, "c1", "failed", "x", 3.0)
    evidence = Evidence(story(TURN, more=[again]))
    assert len(evidence.open_arrivals) == 1
    assert evidence.sent == [Sent(1.0, "answered", 2.0)]
    assert not reach((), evidence).accounting.adds_up


def test_the_first_token_is_the_one_of_the_turn_where_the_client_tells_none(story):
    assert Evidence(story(TURN, more=[finished("answered")])).sent[0].first_token_seconds is None  # came too late
    early = finished("answered")
    journal = Journal()
    for entry in story(TURN):
        if isinstance(entry, ClientFinished):
            journal.record(early)
        journal.record(entry)
    assert Evidence(journal).first_tokens(Window(0.0, 10.0)) == [0.4]


def test_columns_are_those_of_what_has_ended_in_order_of_arrival():
    turns = Turns()
    for number, at in enumerate((1.0, 2.0, 3.0), 1):
        turns.arrive(number, at)
    turns.finish(3, "shed", 0.5, None)
    turns.finish(1, "answered", 4.0, 0.5)
    turns.finish(7, "answered", 1.0, None)
    assert turns.sent() == [Sent(1.0, "answered", 4.0, 0.5), Sent(3.0, "shed", 0.5)]
    assert turns.count("answered") == 1
    assert turns.within(Window(1.5, 3.0)) == slice(1, 2)
    assert turns.latencies() == [4.0]
    assert turns.latencies(answered=False) == [0.5]


def test_a_balance_keeps_what_is_open():
    balance = Balance()
    balance.change("a", 1)
    balance.change("b", -1)
    assert ("a" in balance, "b" in balance, len(balance)) == (True, True, 2)
    balance.change("a", -1)
    balance.change("b", 1)
    assert len(balance) == 0


def test_of_a_run_that_is_over_some_bytes_a_turn_are_kept(small):
    evidence = rehearse(small()).evidence
    assert len(evidence.open_turns) == len(evidence.open_calls) == len(evidence.open_arrivals) == 0
    columns = [
        each
        for owner in (evidence.arrived, evidence.calls)
        for each in vars(owner).values()
        if hasattr(each, "__len__") and len(each)
    ]
    assert sum(map(sys.getsizeof, columns)) < 120 * evidence.arrivals + 100 * len(columns)
