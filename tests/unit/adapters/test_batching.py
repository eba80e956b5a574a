"""Requests that arrive while a round trip is under way share the next one."""

import asyncio
import gc
import weakref

import pytest

from orchestra.adapters import batching
from orchestra.adapters.batching import Batcher
from orchestra.errors import StoreUnavailable


class Echo:
    """A store that answers each item with itself, one batch at a time, when it is let to."""

    def __init__(self, **bounds):
        self.batches = []
        self.open = asyncio.Event()
        self.open.set()
        self.batcher = Batcher("the store", self.send, **{"batch_max": 10, "waiting_max": 100, **bounds})

    async def send(self, items):
        self.batches.append(items)
        await self.open.wait()
        return [ValueError(item) if item < 0 else item for item in items]


async def soon():
    """Let everything that is ready run, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_lone_item_is_sent_at_once():
    async def scenario():
        echo = Echo()
        started = asyncio.get_running_loop().time()
        assert [await echo.batcher.submit(n) for n in (1, 2)] == [1, 2]
        assert echo.batches == [[1], [2]]
        assert asyncio.get_running_loop().time() - started < 1

    asyncio.run(scenario())


def test_what_is_submitted_in_one_tick_is_one_batch_within_its_bound():
    async def scenario():
        echo = Echo()
        assert await asyncio.gather(*map(echo.batcher.submit, range(25))) == list(range(25))
        assert [len(batch) for batch in echo.batches] == [10, 10, 5]
        assert (echo.batcher.batches, echo.batcher.items) == (3, 25)

    asyncio.run(scenario())


def test_what_arrives_during_a_round_trip_shares_the_next():
    async def scenario():
        echo = Echo()
        echo.open.clear()
        tasks = []
        for n in range(5):
            tasks.append(asyncio.create_task(echo.batcher.submit(n)))
            await soon()
        echo.open.set()
        assert await asyncio.gather(*tasks) == list(range(5))
        assert echo.batches == [[0], [1, 2, 3, 4]]

    asyncio.run(scenario())


def test_each_caller_gets_its_own_outcome():
    async def scenario():
        outcomes = await asyncio.gather(*map(Echo().batcher.submit, (1, -2, 3)), return_exceptions=True)
        assert outcomes[::2] == [1, 3]
        assert repr(outcomes[1]) == "ValueError(-2)"

    asyncio.run(scenario())


def test_a_defect_of_the_sender_reaches_its_callers_and_only_them():
    async def scenario():
        async def send(items):
            if "bad" in items:
                raise ZeroDivisionError
            return items

        batcher = Batcher("the store", send, batch_max=1, waiting_max=10)
        outcomes = await asyncio.gather(*map(batcher.submit, ("bad", "good")), return_exceptions=True)
        assert isinstance(outcomes[0], ZeroDivisionError)
        assert outcomes[1] == "good"

    asyncio.run(scenario())


def test_a_cancelled_caller_takes_its_item_back_and_loses_nobody_elses():
    async def scenario():
        echo = Echo()
        echo.open.clear()
        first, second, third, fourth = (asyncio.create_task(echo.batcher.submit(n)) for n in range(4))
        fifth = None
        await soon()
        second.cancel()  # under way
        fifth = asyncio.create_task(echo.batcher.submit(5))
        sixth = asyncio.create_task(echo.batcher.submit(6))
        await soon()
        fifth.cancel()  # waiting
        await soon()
        echo.open.set()
        assert await asyncio.gather(first, third, fourth, sixth) == [0, 2, 3, 6]
        assert echo.batches == [[0, 1, 2, 3], [6]]
        assert second.cancelled()
        assert fifth.cancelled()

    asyncio.run(scenario())


def test_more_than_may_wait_are_refused_until_there_is_room():
    async def scenario():
        echo = Echo(waiting_max=3)
        echo.open.clear()
        tasks = [asyncio.create_task(echo.batcher.submit(0))]
        await soon()
        tasks += [asyncio.create_task(echo.batcher.submit(n)) for n in range(1, 4)]
        await soon()
        with pytest.raises(StoreUnavailable, match="3 requests wait for the store already") as refusal:
            await echo.batcher.submit(4)
        assert refusal.value.retry_after_seconds is not None
        echo.open.set()
        assert await asyncio.gather(*tasks) == [0, 1, 2, 3]
        assert await echo.batcher.submit(4) == 4

    asyncio.run(scenario())


def test_closing_sends_what_waits_and_refuses_what_comes():
    async def scenario():
        echo = Echo()
        echo.open.clear()
        tasks = [asyncio.create_task(echo.batcher.submit(0))]
        await soon()
        tasks.append(asyncio.create_task(echo.batcher.submit(1)))
        closing = asyncio.create_task(echo.batcher.close())
        await soon()
        with pytest.raises(StoreUnavailable, match="closed"):
            await echo.batcher.submit(2)
        assert not closing.done()
        echo.open.set()
        assert await asyncio.gather(*tasks) == [0, 1]
        await closing
        await echo.batcher.close()

    asyncio.run(scenario())


def test_closing_ends_though_the_store_hangs(monkeypatch):
    monkeypatch.setattr(batching, "CLOSE_SECONDS", 0.01)

    async def scenario():
        echo = Echo()
        echo.open.clear()
        tasks = [asyncio.create_task(echo.batcher.submit(0))]
        await soon()
        tasks.append(asyncio.create_task(echo.batcher.submit(1)))
        await soon()
        await echo.batcher.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2
        assert outcomes[0] is not outcomes[1]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_nothing_stays_behind():
    async def scenario():
        echo = Echo()
        await asyncio.gather(*map(echo.batcher.submit, range(50)))
        await soon()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gone = weakref.ref(echo.batcher)
        del echo
        gc.collect()
        assert gone() is None

    asyncio.run(scenario())
