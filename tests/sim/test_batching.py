"""Work done by several at one common speed: exact, whoever comes and goes."""

import asyncio

import pytest

from sim.batching import Batch
from sim.entropy import Streams
from sim.loop import SimEnvironment, run


def ends_of(arrivals: list[tuple[float, float]], together: int, slowdown: float, gone: dict[int, float]) -> list[float]:
    """When who arrives as (at, work) leaves; `gone` says who is cancelled, and when."""
    env = SimEnvironment()
    ends = [0.0] * len(arrivals)

    async def one(batch: Batch, number: int, at: float, work_s: float) -> None:
        await asyncio.sleep(at)
        batch.join()
        try:
            await batch.finished(work_s)
        finally:
            batch.leave()
            ends[number] = env.now

    async def main() -> None:
        batch = Batch(env.loop, together, slowdown)
        tasks = [asyncio.ensure_future(one(batch, number, *each)) for number, each in enumerate(arrivals)]
        for number, at in sorted(gone.items(), key=lambda item: item[1]):
            await asyncio.sleep(at - env.now)
            tasks[number].cancel()
        await asyncio.wait(tasks)

    run(main(), env=env)
    return ends


def test_two_of_a_pair_share_and_each_has_the_whole_when_alone():
    """In a batch of two that is twice as slow: one begins at 0 with 2 s, the other at 1 with 1 s of work."""
    assert ends_of([(0.0, 2.0), (1.0, 1.0)], 2, 2.0, {}) == pytest.approx([3.0, 3.0])
    assert ends_of([(0.0, 2.0), (1.0, 0.5)], 2, 2.0, {}) == pytest.approx([2.5, 2.0])
    assert ends_of([(0.0, 2.0), (1.0, 9.0)], 2, 2.0, {1: 2.0}) == pytest.approx([2.5, 2.0])


def test_nobody_is_slowed_down_who_is_alone_again():
    assert ends_of([(0.0, 2.0), (50.0, 2.0)], 10, 5.0, {}) == pytest.approx([2.0, 52.0])


def test_any_comings_and_goings_end_as_a_fluid_model_says():
    """Small steps of time, each with the speed that the batch has then, as what the clock of work must come to."""
    chance = Streams(20).stream("batch")
    arrivals = [(chance.uniform(0, 10), chance.expovariate(1.0)) for _ in range(40)]
    gone = {number: arrivals[number][0] + 0.5 for number in range(0, 40, 7)}
    together, slowdown, step_s = 8, 4.0, 1e-3
    left, ends, now = dict(enumerate(work for _, work in arrivals)), {}, 0.0
    while left:
        here = [number for number in left if arrivals[number][0] <= now]
        speed = 1.0 / (1.0 + (slowdown - 1.0) / (together - 1) * max(0, len(here) - 1))
        for number in here:
            left[number] -= step_s * speed
            if left[number] <= 0 or now >= gone.get(number, 1e9):
                ends[number] = now
                del left[number]
        now += step_s
    found = ends_of(arrivals, together, slowdown, gone)
    assert found == pytest.approx([ends[number] for number in range(40)], abs=0.05)


def test_a_long_run_loses_nothing_to_rounding():
    """One call beside a thousand that come one after another: each takes its time to the microsecond."""
    others = [(float(number), 0.4) for number in range(1000)]
    ends = ends_of([(0.0, 600.0), *others], 2, 2.0, {})
    assert ends == pytest.approx([1000.0, *(at + 0.8 for at, _ in others)], abs=1e-6)
