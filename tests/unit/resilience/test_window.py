"""What a window holds at every boundary, against times that floats add up exactly."""

import random

import pytest

from orchestra.resilience.window import BUCKETS, CountWindow, TimeWindow, Window


def held(window: Window) -> tuple[int, int, int]:
    return window.calls, window.failures, window.slow


def test_both_windows_count_what_failed_and_what_was_slow_apart() -> None:
    for window in (TimeWindow(10.0, 100.0), CountWindow(8)):
        assert held(window) == (0, 0, 0)
        window.record(100.0, False, False)
        window.record(100.0, True, False)
        window.record(100.0, False, True)
        window.record(100.0, True, True)
        window.record(100.0, True, False)
        assert held(window) == (5, 3, 2)


def test_a_call_leaves_the_time_window_with_its_bucket_and_no_sooner() -> None:
    assert BUCKETS == 10
    window = TimeWindow(10.0, 100.0)
    window.record(100.0, True, False)
    window.record(100.75, False, True)
    window.record(101.0, True, True)  # the first of the second bucket
    window.advance(109.75)
    assert held(window) == (3, 2, 2)
    window.advance(110.0)
    assert held(window) == (1, 1, 1)
    window.advance(110.75)
    assert held(window) == (1, 1, 1)
    window.advance(111.0)
    assert held(window) == (0, 0, 0)


def test_recording_lets_go_as_advancing_does() -> None:
    window = TimeWindow(10.0, 100.0)
    window.record(100.5, True, True)
    window.record(109.5, False, False)
    assert held(window) == (2, 1, 1)
    window.record(110.0, False, False)
    assert held(window) == (2, 0, 0)


@pytest.mark.parametrize(("idle", "left"), [(8.0, 3), (9.0, 1), (10.0, 0), (11.0, 0), (1e9, 0)])
def test_an_idle_time_lets_go_of_as_many_buckets(idle: float, left: int) -> None:
    window = TimeWindow(10.0, 0.0)
    for at in (0.5, 0.75, 1.5):
        window.record(at, True, True)
    window.advance(1.5 + idle)
    assert held(window) == (left, left, left)
    window.record(1.5 + idle, False, False)
    assert held(window) == (left + 1, left, left)


def test_boundaries_stay_where_they_are_after_an_idle_time() -> None:
    window = TimeWindow(10.0, 0.0)
    window.record(25.75, True, False)  # its bucket reaches from 25 to 26
    window.advance(34.75)
    assert held(window) == (1, 1, 0)
    window.advance(35.0)
    assert held(window) == (0, 0, 0)


def test_looking_at_the_same_moment_again_changes_nothing() -> None:
    window = TimeWindow(10.0, 0.0)
    window.record(0.5, True, False)
    for _ in range(50):
        window.advance(9.5)
    assert held(window) == (1, 1, 0)


def test_a_count_window_holds_the_last_so_many() -> None:
    window = CountWindow(3)
    for failed, slow in ((True, False), (False, True), (True, True)):
        window.record(0.0, failed, slow)
    assert held(window) == (3, 2, 2)
    window.record(0.0, False, False)
    assert held(window) == (3, 1, 2)
    window.record(0.0, False, False)
    assert held(window) == (3, 1, 1)
    window.record(0.0, False, False)
    assert held(window) == (3, 0, 0)
    window.advance(1e9)
    assert held(window) == (3, 0, 0)


def test_a_count_window_of_one_is_the_last_call() -> None:
    window = CountWindow(1)
    window.record(0.0, True, False)
    assert held(window) == (1, 1, 0)
    window.record(0.0, False, True)
    assert held(window) == (1, 0, 1)


def test_the_time_window_agrees_with_a_list_of_all_calls() -> None:
    chance = random.Random(3)
    for _ in range(200):
        start = chance.randrange(100) / 4
        window, calls, now = TimeWindow(5.0, start), list[tuple[float, bool, bool]](), start
        for _ in range(60):
            now += chance.choice([0, 0, 0.25, 0.5, 1.25, 4.5, 5.0, 7.75])
            call = (now, chance.random() < 0.5, chance.random() < 0.3)
            window.record(*call)
            calls.append(call)
            bucket = (now - start) // 0.5
            kept = [each for each in calls if (each[0] - start) // 0.5 > bucket - 10]
            assert held(window) == (len(kept), sum(each[1] for each in kept), sum(each[2] for each in kept))


def test_a_window_never_holds_more_than_its_buckets() -> None:
    window = TimeWindow(1.0, 0.0)
    for step in range(5000):
        window.record(step / 7, step % 2 == 0, False)
    assert len(window._full) == BUCKETS - 1
