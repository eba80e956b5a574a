"""The operating system's wall time and chance."""

import re
import time

from orchestra.adapters.system import SystemClock, SystemEntropy


def test_the_clock_tells_unix_time_in_seconds():
    before = time.time()
    assert before <= SystemClock().now() <= time.time()


def test_chance_stays_in_its_interval_and_fills_it():
    draws = [SystemEntropy().random() for _ in range(10_000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert {int(draw * 10) for draw in draws} == set(range(10))  # fails once in 10**456 runs


def test_ids_are_hex_of_the_length_asked_for_and_differ():
    ids = [SystemEntropy().hex(16) for _ in range(100)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert len(set(ids)) == 100
