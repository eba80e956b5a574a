"""What every Fleet does: counts the calls of all instances for a window, and keeps the operators' orders."""

import asyncio

from orchestra.model import Tally

WINDOW = 1000.0
"""Seconds; a tenth of it is far longer than a test takes, so that the real clock of Redis decides nothing."""
TENTH = WINDOW / 10


async def share(instance, window_seconds=WINDOW, **tallies):
    return await instance.share(tallies, window_seconds=window_seconds)


def test_an_instance_is_told_what_all_instances_saw(fleet):
    async def scenario(it):
        ours, theirs = await it.join(), await it.join()
        assert await share(ours, unified=Tally(10, 4, 2)) == {"unified": Tally(10, 4, 2)}
        assert await share(theirs, unified=Tally(5, 1, 3)) == {"unified": Tally(15, 5, 5)}
        assert await share(ours, unified=Tally()) == {"unified": Tally(15, 5, 5)}

    fleet.holds(scenario)


def test_several_breakers_are_shared_at_once_and_apart(fleet):
    async def scenario(it):
        ours, theirs = await it.join(), await it.join()
        seen = await share(ours, unified=Tally(3, 2, 1), memory=Tally(7, 0, 0), idle=Tally())
        assert seen == {"unified": Tally(3, 2, 1), "memory": Tally(7, 0, 0), "idle": Tally()}
        assert list(seen) == ["unified", "memory", "idle"]
        assert await share(theirs, memory=Tally(1, 1, 1)) == {"memory": Tally(8, 1, 1)}
        assert await share(theirs, **{"unified:1": Tally(), "unified": Tally()}) == {
            "unified:1": Tally(),
            "unified": Tally(3, 2, 1),
        }

    fleet.holds(scenario)


def test_without_breakers_there_is_nothing_to_share(fleet):
    async def scenario(it):
        assert await share(await it.join()) == {}

    fleet.holds(scenario)


def test_a_kind_that_did_not_happen_is_none(fleet):
    async def scenario(it):
        instance = await it.join()
        assert await share(instance, unified=Tally(calls=3)) == {"unified": Tally(3, 0, 0)}
        assert await share(instance, unified=Tally(2, 2)) == {"unified": Tally(5, 2, 0)}

    fleet.holds(scenario)


def test_of_instances_that_add_at_once_nothing_is_lost_or_counted_twice(fleet):
    async def scenario(it):
        instances = [await it.join() for _ in range(4)]
        seen = await asyncio.gather(*(share(instances[n % 4], unified=Tally(3, 2, 1)) for n in range(100)))
        assert sorted(each["unified"].calls for each in seen) == [3 * n for n in range(1, 101)]
        assert await share(instances[0], unified=Tally()) == {"unified": Tally(300, 200, 100)}

    fleet.holds(scenario)


def test_a_large_count_is_exact(fleet):
    async def scenario(it):
        instance = await it.join()
        await share(instance, unified=Tally(2**40 + 1, 2**40, 1))
        assert await share(instance, unified=Tally(2**40, 1, 0)) == {"unified": Tally(2**41 + 1, 2**40 + 1, 1)}

    fleet.holds(scenario)


def test_calls_count_for_nine_tenths_of_the_window_and_never_longer(fleet):
    async def scenario(it):
        instance = await it.join()
        await share(instance, unified=Tally(10, 4, 2))
        await it.elapse(5 * TENTH)
        assert await share(instance, unified=Tally(1, 1, 1)) == {"unified": Tally(11, 5, 3)}
        await it.elapse(3 * TENTH)  # the real time may have reached one tenth more
        assert await share(instance, unified=Tally()) == {"unified": Tally(11, 5, 3)}
        await it.elapse(2 * TENTH)
        assert await share(instance, unified=Tally()) == {"unified": Tally(1, 1, 1)}
        await it.elapse(5 * TENTH)
        assert await share(instance, unified=Tally()) == {"unified": Tally()}

    fleet.holds(scenario)


def test_asking_does_not_make_calls_live_longer(fleet):
    async def scenario(it):
        instance = await it.join()
        await share(instance, unified=Tally(10, 4, 2))
        for _ in range(10):
            await it.elapse(TENTH)
            seen = await share(instance, unified=Tally())
        assert seen == {"unified": Tally()}

    fleet.holds(scenario)


def test_windows_of_other_lengths_count_apart(fleet):
    async def scenario(it):
        instance = await it.join()
        await share(instance, unified=Tally(10, 4, 2))
        assert await share(instance, window_seconds=2 * WINDOW, unified=Tally(1)) == {"unified": Tally(1)}
        assert await share(instance, unified=Tally()) == {"unified": Tally(10, 4, 2)}

    fleet.holds(scenario)


def test_windows_may_be_as_short_and_as_long_as_a_policy_allows(fleet):
    async def scenario(it):
        instance = await it.join()
        for window_seconds in (0.001, 0.5, 3600):
            seen = await share(instance, window_seconds=window_seconds, unified=Tally(3, 2, 1))
            assert seen == {"unified": Tally(3, 2, 1)}

    fleet.holds(scenario)


def test_an_order_stands_until_it_is_withdrawn_for_every_instance(fleet):
    async def scenario(it):
        ours, theirs = await it.join(), await it.join()
        assert await ours.orders() == {}
        await ours.order("unified", "force_open: it lies ☎")
        await theirs.order("level", "LIMITED")
        assert await ours.orders() == {"unified": "force_open: it lies ☎", "level": "LIMITED"}
        await theirs.order("unified", "disable")
        assert await ours.orders() == {"unified": "disable", "level": "LIMITED"}
        await ours.order("unified", None)
        await ours.order("unknown", None)
        assert await theirs.orders() == {"level": "LIMITED"}
        assert await (await it.join()).orders() == {"level": "LIMITED"}  # an instance that came later

    fleet.holds(scenario)


def test_orders_and_calls_do_not_meet(fleet):
    async def scenario(it):
        instance = await it.join()
        await instance.order("unified", "disable")
        assert await share(instance, unified=Tally(1), orders=Tally(2)) == {"unified": Tally(1), "orders": Tally(2)}
        assert await instance.orders() == {"unified": "disable"}

    fleet.holds(scenario)
