"""One timer for everything that is timed: exact to the tick, cheap to touch, and nothing left behind."""

import asyncio

import pytest

from orchestra.chat.timeouts import COMPACT_AT, TimeoutManager
from sim import loop


class Timed:
    """Notes when it was looked at, and answers as told."""

    def __init__(self, *again):
        self.seen = []
        self._again = list(again)

    def look(self, now):
        self.seen.append(round(now, 3))
        return self._again.pop(0) if self._again else None


def in_virtual_time(story):
    async def main():
        manager = TimeoutManager()
        await story(manager)

    loop.run(main())


def test_each_is_looked_at_when_its_time_has_come_and_again_when_it_says():
    async def story(manager):
        first, second = Timed(5.0, 7.0), Timed()
        manager.register(first, 3.0)
        manager.register(second, 1.0)
        await asyncio.sleep(10)
        assert (first.seen, second.seen) == ([3.0, 5.0, 7.0], [1.0])
        assert len(manager) == 0

    in_virtual_time(story)


def test_there_is_one_timer_however_many_are_registered_and_none_when_all_are_gone():
    async def main():
        running = asyncio.get_running_loop()

        def timers():
            return [each for each in running._scheduled if not each.cancelled()]

        manager = TimeoutManager()
        timed = [Timed() for _ in range(100)]
        for number, each in enumerate(timed):
            manager.register(each, running.time() + 1_000 - number)
        assert len(timers()) == 1
        for each in timed:
            manager.unregister(each)
        assert timers() == []

    asyncio.run(main())


def test_registered_again_only_the_new_time_counts_earlier_or_later():
    async def story(manager):
        earlier, later = Timed(), Timed()
        manager.register(earlier, 50.0)
        manager.register(earlier, 5.0)
        manager.register(later, 5.0)
        manager.register(later, 50.0)
        assert len(manager) == 2
        await asyncio.sleep(100)
        assert (earlier.seen, later.seen) == ([5.0], [50.0])

    in_virtual_time(story)


def test_one_that_is_forgotten_by_another_ones_look_is_not_looked_at():
    async def story(manager):
        victim = Timed()

        class Forgets(Timed):
            def look(self, now):
                manager.unregister(victim)
                return super().look(now)

        manager.register(Forgets(), 5.0)
        manager.register(victim, 5.0)
        await asyncio.sleep(10)
        assert victim.seen == []

    in_virtual_time(story)


def test_a_time_that_has_passed_is_now_and_one_that_never_moves_on_does_not_block_the_loop():
    async def story(manager):
        stuck = Timed(*[0.0] * 5)
        manager.register(stuck, -1.0)
        await asyncio.sleep(1)
        assert len(stuck.seen) == 6

    in_virtual_time(story)


def test_a_defect_of_one_is_reported_and_does_not_silence_the_others():
    async def story(manager):
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

        class Broken:
            def look(self, now):
                raise LookupError("a defect")

        other = Timed()
        manager.register(Broken(), 5.0)
        manager.register(other, 5.0)
        await asyncio.sleep(10)
        assert other.seen == [5.0]
        assert [str(each) for each in reported] == ["a defect"]
        assert len(manager) == 0

    in_virtual_time(story)


def test_what_is_forgotten_does_not_pile_up():
    async def story(manager):
        kept = Timed()
        manager.register(kept, 1_000.0)
        for _ in range(10 * COMPACT_AT):
            each = Timed()
            manager.register(each, 900.0)
            manager.unregister(each)
            assert len(manager._heap) <= COMPACT_AT + 2
        await asyncio.sleep(2_000)
        assert kept.seen == [1000.0]

    in_virtual_time(story)


def test_closed_it_looks_at_nothing():
    async def story(manager):
        timed = Timed()
        manager.register(timed, 5.0)
        manager.close()
        await asyncio.sleep(10)
        assert (timed.seen, len(manager)) == ([], 0)

    in_virtual_time(story)


@pytest.mark.parametrize("count", [1, 1_000])
def test_touching_costs_the_manager_nothing(count):
    """Activity is noted by what is timed: between two looks the manager does nothing, however much happens."""

    async def story(manager):
        class Active:
            def __init__(self):
                self.active_at = 0.0
                self.looks = 0

            def look(self, now):
                self.looks += 1
                return self.active_at + 100 if now < self.active_at + 100 else None

        timed = [Active() for _ in range(count)]
        for each in timed:
            manager.register(each, 100.0)
        for _ in range(90):
            await asyncio.sleep(1)
            for each in timed:
                each.active_at = asyncio.get_running_loop().time()
        await asyncio.sleep(200)
        assert {each.looks for each in timed} == {2}

    in_virtual_time(story)
