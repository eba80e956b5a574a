"""What clients tell, as it stands in the journal."""

import pytest

from orchestra.errors import Overloaded, ProviderFailed
from sim.tally import Attempt, Tally, refused
from sim.workload import Arrival


def arrival(at, number=1):
    return Arrival(at, number, "s", "u", "m", 10, 5)


def test_arrivals_are_told_in_order_of_time_though_one_population_is_a_tick_ahead():
    told = []
    tally = Tally(told.append)
    for number, at in enumerate((1.0, 2.0000001, 2.0, 3.0), 1):
        tally.arrive(arrival(at, number), "c", "")
    assert [entry.at for entry in told] == [1.0, 2.0000001, 2.0000001, 3.0]
    assert tally.arrived == 4


def test_a_turn_is_told_from_when_it_was_meant_to_come():
    told = []
    tally = Tally(told.append)
    tally.finish(arrival(2.0), "c", Attempt("answered", first_token_at=2.5), 4.0)
    tally.finish(arrival(2.0, 2), "d", Attempt("shed", "overloaded"), 2.25)
    assert [(entry.seconds, entry.first_token_seconds) for entry in told] == [(2.0, 0.5), (0.25, None)]
    assert tally.counts == {"answered": 1, "failed": 0, "shed": 1}


@pytest.mark.parametrize(("error", "outcome"), [(Overloaded, "shed"), (ProviderFailed, "failed")])
def test_a_refusal_is_shed_where_it_protects_and_failed_else(error, outcome):
    assert refused(error.kind, 3.0, 1.5) == Attempt(outcome, error.kind, 3.0, 1.5)
