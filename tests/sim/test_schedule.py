"""Schedules: what asyncio promises stays, what it leaves open is drawn by seed."""

import asyncio
import collections

import pytest

from sim.entropy import Streams
from sim.loop import SimEnvironment, run
from sim.schedule import WINDOW_MAX, Fifo, Prioritised, Shuffled

SEEDS = range(40)


def order_of(schedule, *, callbacks=0, ties=0, distinct=0):
    """Return the order in which ready callbacks and timers ran."""

    async def main():
        loop = asyncio.get_running_loop()
        ran = []
        for number in range(callbacks):
            loop.call_soon(ran.append, number)
        for number in range(ties):
            loop.call_at(1.0, ran.append, number)
        for number in range(distinct):
            loop.call_at(2.0 + number, ran.append, number)
        await asyncio.sleep(1 + 2 * distinct)
        return ran

    return run(main(), env=SimEnvironment(schedule=schedule))


def stream(seed):
    return Streams(seed).stream("schedule")


class TestFifo:
    def test_ready_callbacks_keep_their_order(self):
        for seed in SEEDS:
            assert order_of(Fifo(stream(seed)), callbacks=5) == [0, 1, 2, 3, 4]

    def test_distinct_deadlines_keep_their_order(self):
        for seed in SEEDS:
            assert order_of(Fifo(stream(seed)), distinct=5) == [0, 1, 2, 3, 4]

    def test_timers_that_tie_are_permuted_by_seed(self):
        orders = {tuple(order_of(Fifo(stream(seed)), ties=3)) for seed in SEEDS}
        assert len(orders) == 6

    def test_one_seed_gives_one_order(self):
        assert order_of(Fifo(stream(3)), ties=20) == order_of(Fifo(stream(3)), ties=20)


class TestShuffled:
    def test_ready_callbacks_are_permuted_by_seed(self):
        orders = {tuple(order_of(Shuffled(stream(seed)), callbacks=3)) for seed in SEEDS}
        assert len(orders) == 6

    def test_each_order_is_about_as_likely(self):
        orders = collections.Counter(tuple(order_of(Shuffled(stream(seed)), callbacks=3)) for seed in range(600))
        assert min(orders.values()) > 60
        assert max(orders.values()) < 140

    def test_deadlines_are_still_kept(self):
        for seed in SEEDS:
            assert order_of(Shuffled(stream(seed)), distinct=5) == [0, 1, 2, 3, 4]

    def test_one_seed_gives_one_order(self):
        assert order_of(Shuffled(stream(3)), callbacks=20, ties=20) == order_of(
            Shuffled(stream(3)), callbacks=20, ties=20
        )

    def test_nothing_is_lost_or_run_twice(self):
        assert sorted(order_of(Shuffled(stream(1)), callbacks=100)) == list(range(100))

    def test_of_very_many_it_takes_among_the_newest(self):
        order = order_of(Shuffled(stream(1)), callbacks=WINDOW_MAX + 100)
        assert sorted(order) == list(range(WINDOW_MAX + 100))
        assert order[0] >= 100

    def test_it_finds_a_race_that_fifo_cannot_show(self):
        """Which of two tasks made together runs first is settled in asyncio; code that relies on it is fragile."""

        async def main():
            seen = []

            async def first():
                seen.append("first")

            async def second():
                seen.append("second")

            async with asyncio.TaskGroup() as group:
                group.create_task(first())
                group.create_task(second())
            return tuple(seen)

        def outcomes(schedule):
            return {run(main(), env=SimEnvironment(schedule=schedule(stream(seed)))) for seed in SEEDS}

        assert outcomes(Fifo) == {("first", "second")}
        assert outcomes(Shuffled) == {("first", "second"), ("second", "first")}


class TestPrioritised:
    def test_a_task_keeps_its_rank(self):
        """Without changes a task runs on before others are looked at, and so do the parts of a chain of callbacks."""

        async def main():
            seen = []

            async def walk(name):
                for _ in range(4):
                    seen.append(name)
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                for name in "abc":
                    group.create_task(walk(name))
            return "".join(seen)

        orders = {run(main(), env=SimEnvironment(schedule=Prioritised(stream(seed), depth=1))) for seed in SEEDS}
        assert orders == {"".join(name * 4 for name in order) for order in ("abc", "acb", "bac", "bca", "cab", "cba")}

    def test_deadlines_are_still_kept(self):
        for seed in SEEDS:
            assert order_of(Prioritised(stream(seed), horizon=50), distinct=5) == [0, 1, 2, 3, 4]

    def test_ready_callbacks_and_ties_are_permuted_by_seed(self):
        orders = {tuple(order_of(Prioritised(stream(seed), stream(seed)), callbacks=3)) for seed in SEEDS}
        assert len(orders) == 6
        assert len({tuple(order_of(Prioritised(ties=stream(seed)), ties=3)) for seed in SEEDS}) == 6

    def test_nothing_is_lost_or_run_twice(self):
        assert sorted(order_of(Prioritised(stream(1), horizon=300, depth=50), callbacks=100)) == list(range(100))

    def test_it_finds_what_takes_starvation_where_equal_chances_do_not(self):
        """A watchdog that looks 25 times without a sign of life gives up; the worker needs two steps for one."""

        async def gives_up():
            alive = False

            async def work():
                nonlocal alive
                await asyncio.sleep(0)
                alive = True

            async def watch():
                for _ in range(25):
                    if alive:
                        return False
                    await asyncio.sleep(0)
                return True

            given_up = (await asyncio.gather(watch(), work()))[0]
            for _ in range(200):  # the rest of the run, where ranks may change as well
                await asyncio.sleep(0)
            return given_up

        def found(schedule):
            return sum(run(gives_up(), env=SimEnvironment(schedule=schedule(stream(seed)))) for seed in range(400))

        measured = Prioritised(stream(0))
        run(gives_up(), env=SimEnvironment(schedule=measured))
        assert found(Fifo) == found(Shuffled) == 0
        assert found(lambda chance: Prioritised(chance, horizon=measured.picked)) > 100

    def test_it_finds_what_takes_a_change_of_rank_at_one_step(self):
        """The writer must be stopped between its two writes, and the reader run meanwhile: depth 2."""

        async def torn():
            pair = [0, 0]
            seen = []

            async def write():
                for value in range(1, 11):
                    pair[0] = value
                    await asyncio.sleep(0)
                    pair[1] = value
                    await asyncio.sleep(0)

            async def read():
                for _ in range(3):
                    seen.append(tuple(pair))
                    await asyncio.sleep(0)

            await asyncio.gather(write(), read())
            return all(first != second for first, second in seen)

        def found(**more):
            schedules = [Prioritised(stream(seed), **more) for seed in range(200)]
            return sum(run(torn(), env=SimEnvironment(schedule=schedule)) for schedule in schedules)

        assert found(depth=1, horizon=30) == found(horizon=0) == 0
        assert found(horizon=30) > 20


@pytest.mark.parametrize(("schedule", "mode"), [(Fifo, "faithful"), (Shuffled, "adversarial"), (Prioritised, "pct")])
def test_findings_can_be_labelled(schedule, mode):
    env = SimEnvironment(schedule=schedule())
    assert env.loop.schedule.mode == mode
    env.loop.close()


class TestStreams:
    def test_they_are_the_same_in_every_process(self):
        """Fixed values: a change of the derivation would change every recorded run."""
        assert Streams(1).stream("arrivals").hex(4) == "9ba3a3b6"
        assert Streams(1).stream("faults").hex(4) == "322ac62a"

    def test_a_new_consumer_does_not_reshuffle_the_others(self):
        alone = Streams(7)
        expected = [alone.stream("arrivals").random() for _ in range(5)]
        crowded = Streams(7)
        mixed = []
        for _ in range(5):
            crowded.stream("faults").random()
            mixed.append(crowded.stream("arrivals").random())
        assert mixed == expected

    def test_a_name_is_one_stream(self):
        streams = Streams(7)
        assert streams.stream("a") is streams.stream("a")
        assert streams.stream("a").random() != streams.stream("b").random()

    def test_seeds_and_forks_differ(self):
        first, second = Streams(1), Streams(2)
        draws = {s.stream("a").random() for s in (first, second, first.fork("x"), first.fork("y"), second.fork("x"))}
        assert len(draws) == 5
        assert first.fork("x").stream("a").random() == Streams(1).fork("x").stream("a").random()

    def test_ids_have_the_length_asked_for(self):
        assert len(Streams(1).stream("ids").hex(16)) == 32
        assert Streams(1).stream("ids").hex(0) == ""
        assert 0 <= Streams(1).stream("ids").random() < 1
