"""When a client tries again, to the second: the machine's draw is always a half."""

import pytest

from orchestra.errors import DeadlineExceeded, InvalidRequest, Overloaded, TurnInFlight
from orchestra.sdk.failures import Unreachable
from orchestra.sdk.retries import Attempts, Retries

GONE = Unreachable("gone")


def test_waits_double_up_to_the_longest_and_are_drawn_from_nothing_on(machine):
    attempts = Attempts(Retries(attempts_max=9, first_seconds=1, longest_seconds=8), machine, 1000)
    assert [attempts.failed(GONE) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_so_many_attempts_are_made_and_the_last_error_is_raised(machine):
    attempts = Attempts(Retries(attempts_max=3), machine, 1000)
    attempts.failed(GONE)
    attempts.failed(GONE)
    last = Unreachable("still gone")
    with pytest.raises(Unreachable) as raised:
        attempts.failed(last)
    assert raised.value is last


def test_progress_begins_the_count_anew(machine):
    attempts = Attempts(Retries(attempts_max=2), machine, 1000)
    for _ in range(5):
        attempts.failed(GONE)
        attempts.progressed()


def test_what_cannot_help_is_not_tried_again(machine):
    with pytest.raises(InvalidRequest):
        Attempts(Retries(), machine, 1000).failed(InvalidRequest("wrong"))


def test_retry_after_is_the_least_and_has_a_bound(machine):
    attempts = Attempts(Retries(first_seconds=1, retry_after_seconds_max=60), machine, 1000)
    assert attempts.failed(Overloaded("busy", retry_after_seconds=60)) == 60.5
    with pytest.raises(Overloaded):
        attempts.failed(Overloaded("busy", retry_after_seconds=60.1))


def test_no_attempt_is_begun_behind_the_end(machine):
    attempts = Attempts(Retries(first_seconds=1), machine, 10)
    machine.passes(9.4)
    assert attempts.seconds_left == pytest.approx(0.6)
    assert attempts.failed(GONE) == 0.5
    machine.passes(0.2)
    with pytest.raises(Unreachable):
        attempts.failed(GONE)
    machine.passes(0.4)
    with pytest.raises(DeadlineExceeded, match="10 s"):
        _ = attempts.seconds_left


def test_a_turn_that_is_under_way_is_waited_for_and_is_no_failure(machine):
    attempts = Attempts(Retries(attempts_max=2, first_seconds=1), machine, 1000)
    assert [attempts.failed(TurnInFlight("wait", retry_after_seconds=1)) for _ in range(9)] == [1.5] * 9
    assert attempts.failures == 0
