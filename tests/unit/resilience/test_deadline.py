"""Deadlines and the watchdog, in virtual time; what must hold on other loops also there."""

import asyncio
import gc
import math
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from orchestra.resilience.deadline import Deadline, TimeLimit, Watch, Watchdog, current, deadline_within
from sim import loop

A_TICK = 1e-6  # timers of the simulated loop are late by far less


def now() -> float:
    return asyncio.get_running_loop().time()


def timers() -> int:
    """Timers that are set on the running simulated loop."""
    running = asyncio.get_running_loop()
    assert isinstance(running, loop.SimLoop)
    return sum(not timer.cancelled() for _, _, timer in running._timers)


def watches() -> int:
    """Watches of tasks of the running loop that anything still holds."""
    gc.collect()
    here = asyncio.get_running_loop()
    return sum(isinstance(each, Watch) and each.task.get_loop() is here for each in gc.get_objects())


async def watched(watchdog: Watchdog, at: float, work: Coroutine[Any, Any, object]) -> str:
    """Do `work` under watch; say how it ended and when, or raise what it raised."""
    watch = watchdog.enter(at)
    try:
        await work
    except BaseException as error:
        if watchdog.leave(watch, error):
            return f"expired at {now():.3f}"
        raise
    assert watchdog.leave(watch) is False
    return f"ended at {now():.3f}"


# --- the deadline of a turn


def test_without_a_deadline_there_is_all_the_time() -> None:
    assert current() is None


def test_a_deadline_stands_within_its_block_only() -> None:
    async def main() -> None:
        await asyncio.sleep(2.0)
        began = now()
        with deadline_within(3.0):
            assert current() == Deadline(began + 3.0, True, began)
        assert current() is None
        with pytest.raises(KeyError), deadline_within(3.0):
            raise KeyError
        assert current() is None

    loop.run(main())


@pytest.mark.parametrize(("started", "blames"), [(10.0, True), (15.0, True), (15.001, False), (20.0, False)])
def test_who_was_left_less_than_half_of_the_time_is_not_to_blame(started: float, blames: bool) -> None:
    assert Deadline(20.0, True, 10.0).blames(started) is blames
    assert not Deadline(20.0, False, 10.0).blames(started), "a caller's shorter deadline blames nobody"


def test_an_inner_deadline_only_shortens() -> None:
    async def main() -> None:
        with deadline_within(3.0):
            with deadline_within(2.0, ours=False):
                assert current() == Deadline(2.0, ours=False)
                with deadline_within(2.5):
                    assert current() == Deadline(2.0, ours=False)
                assert current() == Deadline(2.0, ours=False)
            assert current() == Deadline(3.0, ours=True)

    loop.run(main())


def test_of_equal_deadlines_the_outer_stays() -> None:
    async def main() -> None:
        with deadline_within(3.0, ours=False), deadline_within(3.0):
            assert current() == Deadline(3.0, ours=False)
        with deadline_within(3.0), deadline_within(3.0, ours=False):
            assert current() == Deadline(3.0, ours=True)

    loop.run(main())


def left() -> float:
    deadline = current()
    return math.inf if deadline is None else deadline.at


def test_tasks_take_the_deadline_over_and_keep_theirs_to_themselves() -> None:
    async def below() -> float:
        before = left()
        with deadline_within(1.0):
            await asyncio.sleep(0.5)
        return before

    async def main() -> None:
        with deadline_within(3.0):
            task = asyncio.create_task(below())
            await asyncio.sleep(0.25)
            assert current() == Deadline(3.0, ours=True)
            assert await task == 3.0

    loop.run(main())


def test_a_deadline_that_was_given_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        Deadline(1.0, ours=True).at = 2.0  # type: ignore[misc]


def test_a_deadline_is_a_number() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"^seconds is NaN.*give a number of seconds"), deadline_within(math.nan):
            pass

    loop.run(main())


# --- the watchdog


def test_a_call_is_cancelled_at_its_deadline() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        watch = watchdog.enter(2.0)
        with pytest.raises(asyncio.CancelledError) as raised:
            await asyncio.sleep(5.0)
        assert 2.0 <= now() < 2.0 + A_TICK
        assert watchdog.leave(watch, raised.value) is True
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    loop.run(main())


def test_a_call_in_time_is_left_alone_for_good() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        assert await watched(watchdog, 2.0, asyncio.sleep(1.0)) == "ended at 1.000"
        await asyncio.sleep(5.0)  # past the deadline

    loop.run(main())


@pytest.mark.parametrize("at", [2.0, 0.5])
def test_a_call_that_fails_in_time_keeps_its_error(at: float) -> None:
    async def main() -> None:
        watchdog = Watchdog()
        await watched(watchdog, 1.0, asyncio.sleep(0))  # so that 0.5 is out of order
        for error in (KeyError(), asyncio.CancelledError()):
            watch = watchdog.enter(at)
            assert watchdog.leave(watch, error) is False
        await asyncio.sleep(5.0)

    loop.run(main())


def test_each_call_has_its_own_deadline() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        for_ever = asyncio.Event()
        deadlines = [1.0, 2.0, 2.0, 3.5, 3.0, 0.5, 4.0]  # two of them out of order
        calls = [asyncio.create_task(watched(watchdog, at, for_ever.wait())) for at in deadlines]
        assert await asyncio.gather(*calls) == [f"expired at {at:.3f}" for at in deadlines]
        assert timers() == 0

    loop.run(main())


def test_all_calls_share_one_timer() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        calls = [asyncio.create_task(watched(watchdog, 2.0 + at / 100, asyncio.Event().wait())) for at in range(50)]
        await asyncio.sleep(0)
        assert timers() == 1
        await asyncio.sleep(2.205)
        assert timers() == 1
        assert sum(call.done() for call in calls) == 21
        await asyncio.gather(*calls)
        assert timers() == 0

    loop.run(main())


def test_a_call_out_of_order_has_a_timer_of_its_own() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        assert watchdog.enter(3.0).timer is None
        assert watchdog.enter(3.0).timer is None
        early = watchdog.enter(2.0)
        assert early.timer is not None
        assert timers() == 2
        assert watchdog.leave(early) is False
        assert timers() == 1
        assert watchdog.enter(3.5).timer is None

    loop.run(main())


def test_calls_that_left_are_forgotten() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        oldest = watchdog.enter(60.0)  # which stays, before all others
        for _ in range(1000):
            watchdog.leave(watchdog.enter(60.0 + now()))
            watchdog.leave(watchdog.enter(30.0))
            await asyncio.sleep(0.001)
        assert watches() == 1
        assert timers() <= 2
        watchdog.leave(oldest)

    loop.run(main())


def test_no_timer_stays_for_calls_that_left() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        await watched(watchdog, 3.0, asyncio.sleep(0))
        assert timers() == 1
        await asyncio.sleep(4.0)
        assert timers() == 0
        assert await watched(watchdog, 6.0, asyncio.sleep(5.0)) == "expired at 6.000"

    loop.run(main())


def test_the_timer_moves_on_to_the_oldest_call_that_is_left() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        await watched(watchdog, 1.0, asyncio.sleep(0))
        calls = [asyncio.create_task(watched(watchdog, at, asyncio.sleep(9.0))) for at in (2.0, 3.0)]
        await asyncio.sleep(1.5)  # it has fired for the first and found nobody
        assert await asyncio.gather(*calls) == ["expired at 2.000", "expired at 3.000"]

    loop.run(main())


def test_closing_takes_the_timer_back_and_entering_sets_it_again() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        watchdog.close()  # nothing to take back
        await watched(watchdog, 3.0, asyncio.sleep(0))
        watchdog.close()
        assert timers() == 0
        watchdog.close()
        assert await watched(watchdog, 4.0, asyncio.sleep(9.0)) == "expired at 4.000"

    loop.run(main())


def test_timers_hold_nothing_of_the_turns_that_set_them() -> None:
    """A loop keeps a timer's context until its time has come, also where it was cancelled."""

    async def main() -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, loop.SimLoop)
        watchdog = Watchdog()
        with deadline_within(9.0):  # which is a context variable
            for at in (2.0, 1.0):
                watchdog.leave(watchdog.enter(at))
        assert [len(timer._context) for _, _, timer in running._timers] == [0, 0]  # type: ignore[attr-defined]

    loop.run(main())


@pytest.mark.parametrize("at", [1.0, 2.0])
def test_a_deadline_that_has_passed_expires_in_the_next_turn(at: float) -> None:
    async def main() -> None:
        watchdog = Watchdog()
        await asyncio.sleep(2.0 - now())
        assert now() >= 2.0
        for deadline in (at, now(), at):  # the last one is out of order
            assert await watched(watchdog, deadline, asyncio.sleep(0)) == "expired at 2.000"
        assert timers() == 0

    loop.run(main())


def test_without_end_nothing_expires_and_the_order_of_others_stays() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        endless = watchdog.enter(math.inf)
        assert watchdog.enter(2.0).timer is None
        await asyncio.sleep(1.0)
        assert watchdog.leave(endless) is False

    loop.run(main())


# --- who is it that cancels? as with asyncio.timeout


@pytest.mark.parametrize("cancelled_at", [1.0, 2.0])
@pytest.mark.parametrize("first", [True, False])
def test_a_cancellation_from_elsewhere_wins(cancelled_at: float, first: bool) -> None:
    """Also one that comes in the same turn of the loop as the deadline, before or after it."""

    async def work(watchdog: Watchdog, counted: list[int]) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await watched(watchdog, 2.0, asyncio.sleep(9.0))
        finally:
            counted.append(task.cancelling())

    async def main() -> None:
        watchdog = Watchdog()
        counted: list[int] = []
        running = asyncio.get_running_loop()
        task = asyncio.create_task(work(watchdog, counted))
        if first:
            running.call_at(cancelled_at, task.cancel)
        await asyncio.sleep(0)
        if not first:
            running.call_at(cancelled_at, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert counted == [1]

    loop.run(main())


def test_earlier_cancellations_of_the_task_are_not_the_watchs() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert await watched(Watchdog(), 2.0, asyncio.sleep(9.0)) == "expired at 2.000"
        assert task.cancelling() == 1
        task.uncancel()

    loop.run(main())


def test_a_call_may_end_well_all_the_same() -> None:
    async def stubborn() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(9.0)

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert await watched(Watchdog(), 2.0, stubborn()) == "ended at 2.000"
        assert task.cancelling() == 0
        await asyncio.sleep(1.0)

    loop.run(main())


def test_another_error_goes_its_way() -> None:
    async def clumsy() -> None:
        try:
            await asyncio.sleep(9.0)
        except asyncio.CancelledError:
            raise KeyError("while cleaning up") from None

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(KeyError):
            await watched(Watchdog(), 2.0, clumsy())
        assert task.cancelling() == 0

    loop.run(main())


@pytest.mark.parametrize(
    ("outer", "inner", "ended"),
    [
        (3.0, 2.0, "inner expired at 2.000"),
        (2.0, 3.0, "expired at 2.000"),
        (2.0, 2.0, "expired at 2.000"),  # both ask for it, and the outermost answers
    ],
)
def test_one_watch_in_another(outer: float, inner: float, ended: str) -> None:
    async def main() -> None:
        watchdog = Watchdog()
        told = []

        async def nested() -> None:
            told.append("inner " + await watched(watchdog, inner, asyncio.sleep(9.0)))

        told.append(await watched(watchdog, outer, nested()))
        assert told[0] == ended
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    loop.run(main())


def test_a_cancelled_task_that_never_left_does_not_hold_the_watchdog_up() -> None:
    async def forgetful(watchdog: Watchdog) -> None:
        watchdog.enter(1.0)

    async def main() -> None:
        watchdog = Watchdog()
        await asyncio.create_task(forgetful(watchdog))
        assert await watched(watchdog, 2.0, asyncio.sleep(9.0)) == "expired at 2.000"
        assert timers() == 0

    loop.run(main())


def test_a_step_of_a_stream_can_be_watched_and_its_reader_is_left_alone() -> None:
    async def items() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        await asyncio.sleep(9.0)
        yield 3

    async def timed(watchdog: Watchdog) -> AsyncGenerator[int | str, None]:
        source = items()
        try:
            while True:
                watch = watchdog.enter(now() + 1.0)
                try:
                    item = await anext(source)
                except BaseException as error:
                    if watchdog.leave(watch, error):
                        yield f"late at {now():.3f}"
                        return
                    raise
                watchdog.leave(watch)
                yield item
        finally:
            await source.aclose()

    async def main() -> None:
        read = []
        async for item in timed(Watchdog()):
            read.append(item)
            await asyncio.sleep(2.0)  # longer than a step may take
        assert read == [1, 2, "late at 5.000"]

    loop.run(main())


# --- where it may be used


def test_only_a_task_can_be_watched() -> None:
    async def main() -> None:
        watchdog = Watchdog()
        refused: list[str] = []

        def callback() -> None:
            try:
                watchdog.enter(1.0)
            except RuntimeError as error:
                refused.append(str(error))

        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.1)
        assert refused == ["a watchdog watches over a task of the event loop that it was first used on"]
        assert timers() == 0

    loop.run(main())


@pytest.mark.parametrize("at", [1.0, math.inf])
def test_a_watchdog_keeps_to_its_loop(at: float) -> None:
    watchdog = Watchdog()

    async def main() -> None:
        watchdog.leave(watchdog.enter(at))

    loop.run(main())
    with pytest.raises(RuntimeError, match="the event loop that it was first used on"):
        loop.run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_it_works_on_real_loops(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def main() -> None:
        watchdog = Watchdog()
        start = now()
        late = [asyncio.create_task(watched(watchdog, start + 0.0104 * n, asyncio.Event().wait())) for n in (1, 2, 3)]
        early = asyncio.create_task(watched(watchdog, start + 0.005, asyncio.Event().wait()))
        assert (await watched(watchdog, start + 60.0, asyncio.sleep(0.001))).startswith("ended")
        assert all(each.startswith("expired") for each in await asyncio.gather(*late, early))
        assert now() - start > 0.029  # uvloop counts whole milliseconds
        watchdog.close()

    run(main())


def test_a_timer_that_fires_early_is_taken_at_its_word() -> None:
    """A loop fires by its clock's resolution too early: waiting out the rest here would start it again and again."""

    async def briefly() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def main() -> None:
        watchdog = Watchdog()
        asyncio.get_running_loop()._clock_resolution = 1000.0  # type: ignore[attr-defined]
        at = now() + 100.0
        ended = await asyncio.gather(watched(watchdog, at, briefly()), watched(watchdog, at + 3000.0, briefly()))
        assert [each.split()[0] for each in ended] == ["expired", "ended"]
        watchdog.close()

    asyncio.run(main())


# --- a limit of a whole block


def test_a_block_that_outlasts_its_limit_raises_timeout_error() -> None:
    async def story() -> None:
        watchdog = Watchdog()
        with pytest.raises(TimeoutError) as failure, TimeLimit(watchdog, 2.0):
            await asyncio.sleep(3)
        assert isinstance(failure.value.__cause__, asyncio.CancelledError)
        assert now() == pytest.approx(2.0, abs=A_TICK)
        with TimeLimit(watchdog, now() + 2.0):
            await asyncio.sleep(1)
        with pytest.raises(KeyError), TimeLimit(watchdog, now() + 2.0):
            raise KeyError
        watchdog.close()
        assert timers() == 0

    loop.run(story())


def test_a_limit_that_was_lifted_ends_nothing() -> None:
    async def story() -> None:
        watchdog = Watchdog()
        with TimeLimit(watchdog, 2.0) as limit:
            await asyncio.sleep(1)
            limit.lift()
            await asyncio.sleep(5)
        assert now() == pytest.approx(6.0, abs=A_TICK)
        watchdog.close()
        assert (watches(), timers()) == (0, 0)

    loop.run(story())


def test_a_cancellation_of_the_block_stays_one() -> None:
    async def story() -> None:
        watchdog = Watchdog()

        async def bounded() -> None:
            with TimeLimit(watchdog, 2.0):
                await asyncio.sleep(3)

        task = asyncio.create_task(bounded())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        watchdog.close()

    loop.run(story())
