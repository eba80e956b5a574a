"""The simulated loop does what asyncio promises, in virtual time, beside SimPy."""

import asyncio
import collections
import contextvars
import gc
import itertools
import logging
import math
import signal
import threading
import time

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.loop import (
    CANCELLED_TIMERS_MIN,
    INSTANT_S,
    NOT_SIMULATED,
    TICK_S,
    Deadlock,
    Livelock,
    NotSimulated,
    SimEnvironment,
    SimLoop,
    run,
)
from sim.netloop import NetworkMethods
from sim.schedule import Shuffled


def now() -> float:
    return asyncio.get_running_loop().time()


def env_of_loop() -> SimEnvironment:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimLoop)
    return loop.env


class TestTimers:
    def test_sleeping_takes_virtual_time_only(self):
        async def main():
            await asyncio.sleep(86_400)
            return now()

        start = time.monotonic()
        assert run(main()) == pytest.approx(86_400)
        assert time.monotonic() - start < 60

    def test_a_timer_fires_after_its_deadline_never_at_it(self):
        """aiohttp #10149: ``if loop.time() >= deadline`` after a timer for that deadline must hold strictly."""

        async def main(deadline):
            fired = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_at(deadline, lambda: fired.set_result(now()))
            return await fired

        for deadline in (0.0, 0.1, 5.0, 3 * 86_400.1, 1e7 + 0.3, 1e12):
            fired = run(main(deadline))
            assert deadline < fired <= deadline + max(TICK_S, math.ulp(deadline))

    def test_timers_fire_in_order_of_their_deadlines(self):
        async def main():
            fired = []
            loop = asyncio.get_running_loop()
            for delay in (3, 1, 2):
                loop.call_later(delay, fired.append, delay)
            loop.call_at(-1, fired.append, "long ago")
            await asyncio.sleep(4)
            return fired

        assert run(main()) == ["long ago", 1, 2, 3]

    def test_a_cancelled_timer_does_not_fire_nor_keep_time_going(self):
        async def main():
            loop = asyncio.get_running_loop()
            loop.call_later(100, pytest.fail).cancel()
            await asyncio.sleep(1)
            return now()

        assert run(main()) == pytest.approx(1)

    def test_cancelled_timers_are_compacted(self):
        async def main():
            loop = asyncio.get_running_loop()
            keep = loop.call_later(50, lambda: None)
            for _ in range(100 * CANCELLED_TIMERS_MIN):
                loop.call_later(100, lambda: None).cancel()
            assert len(loop._timers) <= CANCELLED_TIMERS_MIN + 1
            keep.cancel()
            keep.cancel()
            await asyncio.sleep(200)
            assert loop._timers_cancelled == 0
            assert not loop._timers

        run(main())

    def test_a_nan_is_no_deadline(self):
        async def main():
            asyncio.get_running_loop().call_at(math.nan, lambda: None)

        with pytest.raises(ValueError, match="NaN"):
            run(main())


class StockLoop(asyncio.SelectorEventLoop):
    """CPython's own loop and scheduling; only its waiting is replaced by a jump in time."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self._selector.select = self._jump

    def time(self):
        return self.now

    def _jump(self, timeout):
        self.now += timeout or 0
        return []


SWITCHES = st.sampled_from(
    ("switch", "sleep", "put", "get", "get in time", "set", "wait", "lock", "soon", "cancel", "raise")
)
PROGRAMS = st.lists(st.lists(SWITCHES, max_size=6), min_size=1, max_size=4)


UNIT_S = 2.0**-20  # far above a tick, and a run's longest wait is below stock's longest look into the selector


async def perform(programs):
    """Run tasks that share a queue, an event and a lock; return what happened, in order.

    Every wait has a duration of its own, a power of two, so that no two deadlines are equal: the order of those is
    not promised by asyncio.
    """
    log = []
    durations = (UNIT_S * 2.0**power for power in itertools.count())
    queue, event, lock = asyncio.Queue(1), asyncio.Event(), asyncio.Lock()
    tasks = []

    async def act(name, step, what):
        match what:
            case "switch":
                await asyncio.sleep(0)
            case "sleep":
                await asyncio.sleep(next(durations))
            case "put":
                await queue.put((name, step))
            case "get":
                log.append(await queue.get())
            case "get in time":
                async with asyncio.timeout(next(durations)):
                    await queue.get()
            case "set":
                event.set()
            case "wait":
                await event.wait()
                event.clear()
            case "lock":
                async with lock:
                    await asyncio.sleep(next(durations))
            case "soon":
                asyncio.get_running_loop().call_soon(log.append, (name, step, "soon"))
            case "cancel":
                tasks[(name + 1) % len(tasks)].cancel()
            case "raise":
                raise LookupError(name)

    async def task(name, program):
        for step, what in enumerate(program):
            try:
                await act(name, step, what)
            except Exception as error:
                log.append((name, step, type(error).__name__))
            except asyncio.CancelledError:
                log.append((name, step, "cancelled"))
                raise
            log.append((name, step, round(now() / UNIT_S)))

    tasks += [asyncio.create_task(task(name, program)) for name, program in enumerate(programs)]
    _done, pending = await asyncio.wait(tasks, timeout=UNIT_S * 2.0**40)
    for late in sorted(pending, key=tasks.index):
        late.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return log


class TestParity:
    @given(PROGRAMS)
    @settings(max_examples=150, deadline=None)
    def test_the_order_of_events_is_that_of_the_stock_loop(self, programs):
        with asyncio.Runner(loop_factory=StockLoop) as runner:
            stock = runner.run(perform(programs))
        assert run(perform(programs)) == stock


class TestDeadlock:
    def test_a_wait_for_nothing_is_reported_with_where_it_waits(self):
        async def stuck():
            await asyncio.Event().wait()

        async def main():
            async with asyncio.TaskGroup() as group:
                group.create_task(stuck(), name="the stuck one")

        with pytest.raises(Deadlock, match="the stuck one") as caught:
            run(main())
        main_task, stuck_task = caught.value.waiting
        assert "in TestDeadlock" in main_task
        assert "stuck" in stuck_task
        assert "Event.wait" in stuck_task

    def test_a_task_that_waits_for_another_says_so(self):
        async def main():
            await asyncio.create_task(asyncio.Event().wait(), name="other")

        with pytest.raises(Deadlock, match="waits for task other"):
            run(main())

    def test_an_endless_sleep_is_a_deadlock_too(self):
        with pytest.raises(Deadlock):
            run(asyncio.sleep(math.inf))

    def test_an_environment_that_runs_out_while_a_task_waits(self):
        env = SimEnvironment()
        task = env.loop.create_task(asyncio.Event().wait())
        with pytest.raises(Deadlock):
            env.run()
        task.cancel()
        env.run()
        env.loop.close()

    def test_an_event_that_never_comes(self):
        env = SimEnvironment()
        with pytest.raises(Deadlock):
            env.run(until=env.event())

    def test_a_loop_told_to_run_on_with_nothing_to_do(self):
        with pytest.raises(Deadlock, match="was to run on"):
            SimEnvironment().loop.run_forever()


class TestLivelock:
    def test_a_task_that_spins_within_an_instant(self):
        async def main():
            while True:  # noqa: ASYNC110  # an Event would not spin
                await asyncio.sleep(0)

        with pytest.raises(Livelock, match=r"Ready: .*Task-1"):
            run(main(), env=SimEnvironment(steps_per_instant_max=1000))

    def test_timers_of_zero_move_time_by_a_tick_only(self):
        async def main():
            loop = asyncio.get_running_loop()
            while True:
                future = loop.create_future()
                loop.call_later(0, future.set_result, None)
                await future

        with pytest.raises(Livelock):
            run(main(), env=SimEnvironment(steps_per_instant_max=1000))

    def test_a_process_that_spins(self):
        env = SimEnvironment(steps_per_instant_max=1000)

        def spin():
            while True:
                yield env.timeout(0)

        env.process(spin())
        with pytest.raises(Livelock, match="SimPy events only"):
            env.run()

    def test_many_steps_over_time_are_none(self):
        async def main():
            for _ in range(3000):
                await asyncio.sleep(INSTANT_S / 100)

        run(main(), env=SimEnvironment(steps_per_instant_max=1000))

    def test_neither_side_starves_the_other_within_an_instant(self):
        env = SimEnvironment()
        seen = []

        def process():
            while "task" not in seen:
                yield env.timeout(0)
            seen.append("process")

        async def main():
            while "process" not in seen:
                await asyncio.sleep(0)
                seen.append("task")

        env.process(process())
        run(main(), env=env)


class TestCancellation:
    def test_a_cancelled_task_gets_the_error_where_it_waits(self):
        async def main():
            task = asyncio.create_task(asyncio.sleep(100))
            await asyncio.sleep(1)
            task.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await task
            return now()

        assert run(main()) == pytest.approx(1)

    def test_timeout(self):
        async def main():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await asyncio.sleep(3)
            async with asyncio.timeout(4) as scope:
                await asyncio.sleep(3)
                scope.reschedule(now() + 4)
                await asyncio.sleep(3)
            return now()

        assert run(main()) == pytest.approx(8)

    def test_a_group_cancels_its_tasks_in_order_of_creation(self):
        """asyncio keeps them in a set: by address, the order would differ from process to process."""

        async def main():
            order = []

            async def wait(number):
                try:
                    await asyncio.sleep(100)
                finally:
                    order.append(number)

            async def fail():
                await asyncio.sleep(1)
                raise LookupError

            async def all_of_them():
                async with asyncio.TaskGroup() as group:
                    for number in range(50):
                        group.create_task(wait(number))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup):
                await all_of_them()
            return order

        assert run(main()) == list(range(50))

    def test_run_cancels_what_is_left_in_order_of_creation(self):
        order = []

        async def wait(number):
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(1)
                order.append((number, round(now())))

        async def main():
            tasks = [asyncio.create_task(wait(number)) for number in range(10)]
            await asyncio.sleep(1)
            asyncio.get_running_loop().tasks = tasks

        env = SimEnvironment(schedule=InOrder())
        run(main(), env=env)
        assert order == [(number, 2) for number in range(10)]

    def test_closing_the_loop_does_not_hide_a_pending_task(self):
        env = SimEnvironment()
        task = env.loop.create_task(asyncio.Event().wait(), name="forgotten")
        with pytest.warns(ResourceWarning, match="forgotten"):
            env.loop.close()
        task._log_destroy_pending = False
        task.get_coro().close()


class InOrder:
    """A schedule that leaves ties as they came."""

    mode = "in order"

    def __init__(self):
        self.ties = iter(range(1_000_000))

    def ready(self):
        return collections.deque()

    def tie(self):
        return float(next(self.ties))


class TestSimpyBridge:
    def test_a_resource_queues_coroutines(self):
        env = SimEnvironment()
        server = simpy.Resource(env, capacity=1)

        async def call():
            with server.request() as turn:
                await env.wait(turn)
                await asyncio.sleep(5)
                return round(env.now)

        async def main():
            return await asyncio.gather(call(), call(), call())

        assert run(main(), env=env) == [5, 10, 15]

    def test_a_cancelled_request_leaves_the_queue(self):
        env = SimEnvironment()
        server = simpy.Resource(env, capacity=1)

        async def call(service_s):
            with server.request() as turn:
                await env.wait(turn)
                await asyncio.sleep(service_s)

        async def main():
            first = asyncio.create_task(call(10))
            await asyncio.sleep(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await call(10)
            assert not server.queue
            first.cancel()
            await asyncio.sleep(0)
            assert not server.users
            await call(1)
            return env.now

        assert run(main(), env=env) == pytest.approx(4)

    def test_a_request_granted_and_cancelled_at_once_is_given_back(self):
        env = SimEnvironment()
        server = simpy.Resource(env, capacity=1)

        async def call():
            with server.request() as turn:
                await env.wait(turn)

        async def main():
            task = asyncio.create_task(call())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert not server.users

        run(main(), env=env)

    def test_cancelling_one_waiter_leaves_the_event_to_the_others(self):
        env = SimEnvironment()

        async def main():
            event = env.timeout(5, "rung")
            early = asyncio.create_task(env.wait(event))
            late = asyncio.create_task(env.wait(event))
            await asyncio.sleep(1)
            early.cancel()
            return await late, await env.wait(event), env.now

        assert run(main(), env=env) == ("rung", "rung", 5)

    def test_a_waiter_cancelled_in_the_instant_of_the_event(self):
        env = SimEnvironment()

        async def main():
            event = env.event()
            waiter = asyncio.create_task(env.wait(event))
            await asyncio.sleep(1)
            event.succeed()
            waiter.cancel()
            await asyncio.wait({waiter})
            assert waiter.cancelled()
            await asyncio.sleep(1)

        run(main(), env=env)

    def test_the_failure_of_an_event_arrives_as_its_exception(self):
        env = SimEnvironment()

        def process():
            yield env.timeout(1)
            raise LookupError("no such thing")

        async def main():
            failed = env.process(process())
            with pytest.raises(LookupError, match="no such thing"):
                await env.wait(failed)
            with pytest.raises(LookupError, match="no such thing"):
                await env.wait(failed)

        run(main(), env=env)

    def test_a_failure_that_nobody_awaits_ends_the_run_as_in_simpy(self):
        env = SimEnvironment()

        def process():
            yield env.timeout(1)
            raise LookupError("unheard")

        env.process(process())
        with pytest.raises(LookupError, match="unheard"):
            env.run(until=5)

    def test_a_process_awaits_a_coroutine(self):
        env = SimEnvironment()

        async def work():
            await asyncio.sleep(2)
            return "done"

        async def fail():
            raise LookupError("sorry")

        def process():
            result = yield env.of(work())
            with pytest.raises(LookupError, match="sorry"):
                yield env.of(fail())
            return result, round(env.now)

        assert env.run(until=env.process(process())) == ("done", 2)

    def test_a_cancelled_awaitable_fails_its_event(self):
        env = SimEnvironment()

        def process():
            task = env.loop.create_task(asyncio.sleep(100))
            env.loop.call_later(1, task.cancel)
            try:
                yield env.of(task)
            except asyncio.CancelledError:
                return round(env.now)

        assert env.run(until=env.process(process())) == 1

    def test_an_event_of_another_environment_is_refused(self):
        async def main():
            await env_of_loop().wait(simpy.Environment().timeout(1))

        with pytest.raises(ValueError, match="another environment"):
            run(main())

    def test_an_interrupted_process_leaves_its_coroutine_running(self):
        env = SimEnvironment()
        finished = []

        async def work():
            await asyncio.sleep(3)
            finished.append(round(env.now))

        def process():
            with pytest.raises(simpy.Interrupt):
                yield env.of(work())

        victim = env.process(process())

        def interrupter():
            yield env.timeout(1)
            victim.interrupt()

        env.process(interrupter())
        env.run(until=10)
        assert finished == [3]


class TestDriving:
    """Either side may drive: SimPy's `run` and `step`, or asyncio's `run_until_complete`."""

    @staticmethod
    def world():
        env = SimEnvironment()
        log = []

        async def ticking():
            for _ in range(3):
                await asyncio.sleep(10)
                log.append(("task", round(env.now)))
            return "over"

        def process():
            for _ in range(3):
                yield env.timeout(4)
                log.append(("process", env.now))

        env.process(process())
        return env, env.loop.create_task(ticking()), log

    EXPECTED = (("process", 4), ("process", 8), ("task", 10), ("process", 12), ("task", 20), ("task", 30))

    def test_run(self):
        env, _task, log = self.world()
        env.run(until=9)
        assert env.now == 9
        assert log == [*self.EXPECTED[:2]]
        env.run()
        assert log == [*self.EXPECTED]
        assert env.now == pytest.approx(30)

    def test_run_until_an_event(self):
        env, task, log = self.world()
        done = env.of(task)
        assert env.run(until=done) == "over"
        assert env.run(until=done) == "over"
        assert log == [*self.EXPECTED]

    def test_run_until_complete(self):
        env, task, log = self.world()
        assert env.loop.run_until_complete(task) == "over"
        assert log == [*self.EXPECTED]

    def test_step_and_peek(self):
        env, _task, log = self.world()
        before = env.now
        while (due := env.peek()) < math.inf:
            assert due >= before
            env.step()
            assert env.now >= due
            before = env.now
        assert log == [*self.EXPECTED]
        with pytest.raises(simpy.core.EmptySchedule):
            env.step()

    def test_a_time_that_has_passed_is_no_end(self):
        env = SimEnvironment(initial_time=5)
        assert env.loop.time() == 5
        with pytest.raises(ValueError, match="later than now"):
            env.run(until=5)

    def test_time_never_goes_back(self):
        env = SimEnvironment(initial_time=5)
        for delay in (-1, math.nan):
            with pytest.raises(ValueError, match="in the past"):
                env.schedule(env.event(), delay=delay)

    def test_stop_ends_the_run_and_the_rest_stays_due(self):
        env, _task, log = self.world()
        env.loop.call_later(15, env.loop.stop)
        env.run()
        assert env.now == pytest.approx(15)
        env.run()
        assert log == [*self.EXPECTED]


class TestWithinAnotherLoop:
    """A notebook's cell runs inside the kernel's loop; a simulation is a plain computation there."""

    def test_run(self):
        async def cell():
            outer, task = asyncio.get_running_loop(), asyncio.current_task()
            env = SimEnvironment()
            env.loop.create_task(asyncio.sleep(3))
            env.run(until=10)
            result = run(asyncio.sleep(5, "inner"))
            assert asyncio.get_running_loop() is outer
            assert asyncio.current_task() is task
            await asyncio.sleep(0)
            return result

        assert asyncio.run(cell()) == "inner"

    def test_the_outer_loop_is_back_after_an_error(self):
        async def cell():
            with pytest.raises(Deadlock):
                run(asyncio.sleep(math.inf))
            return asyncio.get_running_loop()

        assert asyncio.run(cell()) is not None

    def test_a_loop_does_not_run_within_itself(self):
        async def main():
            for again in (env.run, env.step, env.loop.run_forever):
                env.loop.call_soon(int)
                with pytest.raises(RuntimeError, match="running already"):
                    again()

        env = SimEnvironment()
        run(main(), env=env)


class TestSurface:
    """What code written for asyncio may ask of a loop."""

    def test_context_variables(self):
        who = contextvars.ContextVar("who", default="nobody")

        async def main():
            who.set("main")
            task = asyncio.create_task(asyncio.to_thread(who.get))
            empty = asyncio.get_running_loop().run_in_executor(None, who.get)
            other = contextvars.Context()
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: future.set_result(who.get()), context=other)
            return await task, await empty, await future

        assert run(main()) == ("main", "nobody", "nobody")

    def test_tasks_are_named_by_their_number_on_the_loop(self):
        async def main():
            names = [asyncio.create_task(asyncio.sleep(0)).get_name() for _ in range(2)]
            return [*names, asyncio.create_task(asyncio.sleep(0), name="mine").get_name()]

        assert run(main()) == run(main()) == ["Task-2", "Task-3", "mine"]

    def test_a_task_factory_is_used(self):
        def factory(loop, coro, **options):
            made.append(coro)
            return asyncio.Task(coro, loop=loop, **options)

        made = []
        env = SimEnvironment()
        env.loop.set_task_factory(factory)
        run(asyncio.sleep(0), env=env)
        assert len(made) >= 1

    def test_work_for_an_executor_runs_inline(self):
        def work():
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            return threading.get_ident(), env.now

        async def main():
            thread, at = await asyncio.to_thread(work)
            assert asyncio.get_running_loop() is env.loop
            return thread, round(at)

        env = SimEnvironment()
        env.loop.executor_delay_s = 3.0
        assert run(main(), env=env) == (threading.get_ident(), 3)

    def test_work_for_an_executor_may_fail_or_be_cancelled(self):
        async def main():
            loop = asyncio.get_running_loop()
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(None, lambda: 1 // 0)
            loop.run_in_executor(None, pytest.fail).cancel()
            await asyncio.sleep(1)

        run(main())

    def test_the_exception_handler_hears_of_a_failed_callback(self):
        async def main():
            heard = []
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: heard.append(type(context["exception"])))
            loop.call_soon(lambda: 1 // 0)
            await asyncio.sleep(0.1)
            return heard

        assert run(main()) == [ZeroDivisionError]

    def test_asynchronous_generators_are_shut_down(self):
        closed = []

        async def numbers():
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(1)
                closed.append(round(now()))

        async def main():
            keep.append(numbers())
            async for _ in keep[0]:
                break

        keep = []
        run(main())
        assert closed == [1]

    def test_debug_mode(self, caplog):
        async def main():
            time.sleep(0.15)  # noqa: ASYNC251  # longer than asyncio's slow_callback_duration, which is in virtual time here
            asyncio.get_running_loop().call_soon(lambda: None)
            await asyncio.sleep(1)
            with pytest.raises(TypeError):
                asyncio.get_running_loop().call_soon(main)

        with caplog.at_level(logging.WARNING, "asyncio"):
            run(main(), debug=True)
        assert "took" not in caplog.text

    def test_call_soon_threadsafe_is_for_the_same_thread(self):
        async def main():
            loop = asyncio.get_running_loop()
            done = loop.create_future()
            loop.call_soon_threadsafe(done.set_result, 1)
            await done
            errors = []

            def other():
                try:
                    loop.call_soon_threadsafe(lambda: None)
                except NotSimulated as error:
                    errors.append(str(error))

            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            return errors

        assert "run_in_executor" in run(main())[0]

    def test_signal_handlers_are_recorded_and_a_model_delivers(self):
        async def main():
            loop = asyncio.get_running_loop()
            heard = []
            before = signal.getsignal(signal.SIGTERM)
            loop.add_signal_handler(signal.SIGTERM, heard.append, "term")
            assert signal.getsignal(signal.SIGTERM) is before
            loop.deliver_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            assert loop.remove_signal_handler(signal.SIGTERM)
            assert not loop.remove_signal_handler(signal.SIGTERM)
            with pytest.raises(KeyError):
                loop.deliver_signal(signal.SIGTERM)
            return heard

        assert run(main()) == ["term"]

    @pytest.mark.parametrize("name", sorted(NOT_SIMULATED))
    def test_what_is_not_simulated_is_refused_by_name(self, name):
        loop = SimEnvironment().loop
        with pytest.raises(NotSimulated, match=rf"loop\.{name} .*; \w+"):
            getattr(loop, name)()
        loop.close()

    def test_nothing_of_the_loop_does_real_work_unnoticed(self):
        """Every method of asyncio's loop is ours, refused, or known to touch neither sockets nor threads."""
        harmless = {
            *("call_exception_handler", "close", "create_future", "default_exception_handler", "get_debug"),
            *("get_exception_handler", "get_task_factory", "is_closed", "is_running", "run_forever"),
            *("run_until_complete", "set_debug", "set_exception_handler", "set_task_factory", "shutdown_asyncgens"),
            *("shutdown_default_executor", "stop"),
        }
        public = {name for name in dir(asyncio.AbstractEventLoop) + dir(asyncio.BaseEventLoop) if name[0] != "_"}
        public -= {"slow_callback_duration"}
        assert public - harmless - set(vars(SimLoop)) - set(vars(NetworkMethods)) == set()

    def test_a_network_library_is_refused_by_name(self):
        async def main():
            await asyncio.open_connection("localhost", 80)

        with pytest.raises(NotSimulated, match=r"create_connection .* without a network; give the world one"):
            run(main())

    def test_a_schedule_and_an_environment_are_not_both_given(self):
        with pytest.raises(ValueError, match="not both"):
            run(asyncio.sleep(0), env=SimEnvironment(), schedule=Shuffled())


class TestGarbage:
    def test_it_is_collected_at_fixed_steps(self):
        async def main():
            loop = asyncio.get_running_loop()
            at = []

            class Knot:
                def __init__(self):
                    self.me = self

                def __del__(self):
                    at.append(loop.steps)

            loop.collect_garbage_every(100)
            gc.disable()
            try:
                for _ in range(300):
                    Knot()
                    await asyncio.sleep(0)
            finally:
                gc.enable()
            return sorted(set(at))

        first, second = run(main()), run(main())
        assert len(first) >= 2
        assert first == second
