"""Faults: in force within their scope, and touched only by what they really change."""

import pytest

from sim.faults import Faults, ProviderFailing, ProviderSlow, StoreDown, kind_of
from sim.provider_errors import Luck
from sim.provider_faults import Asked, ending
from sim.provider_faults import slowdown as slowdown_of
from sim.store_faults import down as is_down

SLOW = ProviderSlow(at=0, lasts=1, factor=3)
FAILING = ProviderFailing(at=0, lasts=1, rate=0.5)
DOWN = StoreDown(at=0, lasts=1, store="sessions")


def fails(faults: Faults, luck: float) -> bool:
    return ending(faults, Asked("main", "a conversation", Luck(luck), Luck(0.5))) == "failed"


def slowdown(faults: Faults) -> float:
    return slowdown_of(faults, Asked("main", "a conversation", Luck(0.5), Luck(0.5)))


def test_nothing_is_wrong_without_a_fault():
    faults = Faults()
    assert slowdown(faults) == 1.0
    assert not fails(faults, 0.0)
    assert not is_down(faults, "sessions")


def test_leaving_the_scope_lifts_the_fault_however_it_is_left():
    faults = Faults()

    def leave_badly() -> None:
        with faults.injected(SLOW):
            assert slowdown(faults) == 3.0
            raise KeyError

    with pytest.raises(KeyError):
        leave_badly()
    assert slowdown(faults) == 1.0


def test_of_two_equal_faults_leaving_one_keeps_the_other():
    faults = Faults()
    with faults.injected(SLOW) as first:
        with faults.injected(SLOW) as second:
            assert slowdown(faults) == 9.0
        assert slowdown(faults) == 3.0
    assert (first.touched, second.touched) == (2, 1)


def test_an_operation_that_a_fault_spares_does_not_touch_it():
    faults = Faults()
    with faults.injected(FAILING) as failing, faults.injected(DOWN) as down:
        assert not fails(faults, 0.5)
        assert not is_down(faults, "memories")
        assert (failing.touched, down.touched) == (0, 0)
        assert fails(faults, 0.49)
        assert is_down(faults, "sessions")
        assert (failing.touched, down.touched) == (1, 1)


def test_the_rates_of_several_faults_add_up_as_independent_ones_do():
    faults = Faults()
    with faults.injected(FAILING) as first, faults.injected(FAILING) as second:
        assert fails(faults, 0.4)
        assert fails(faults, 0.7)
        assert not fails(faults, 0.75)
    assert (first.touched, second.touched) == (1, 1)


def test_faults_say_what_they_are():
    assert [kind_of(each) for each in (SLOW, FAILING, DOWN)] == ["provider_slow", "provider_failing", "store_down"]
    assert [each.what for each in (SLOW, FAILING, DOWN)] == [
        "provider 3x slower",
        "provider failing 50%",
        "sessions store down",
    ]
