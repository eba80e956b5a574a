"""A crash is a crash: whatever a host runs never steps again, and nothing tells it so."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys

import pytest
import simpy

from sim.crash import Host, HostEnvironment, HostLoop, current_host
from sim.loop import Deadlock, run


def loop_here() -> HostLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, HostLoop)
    return loop


def live(main):
    """Run `main` with a host; return what was told while the loop ran, for what the graves tell comes later."""
    told: list[str] = []

    async def whole() -> list[str]:
        host = loop_here().host("h")
        await main(host, told)
        return list(told)

    return run(whole(), env=HostEnvironment())


async def _guarded(told, name, wait) -> None:
    """Tell of everything that could be told."""
    try:
        told.append(f"{name} starts")
        await wait()
        told.append(f"{name} goes on")
    except BaseException as error:
        told.append(f"{name} raises {type(error).__name__}")
        raise
    finally:
        told.append(f"{name} cleans up")
        await asyncio.sleep(0)
        told.append(f"{name} cleans up more")


class _Scope:
    def __init__(self, told) -> None:
        self.told = told

    async def __aenter__(self) -> None:
        await asyncio.sleep(1)

    async def __aexit__(self, *_) -> None:
        self.told.append("scope left")


def _event() -> simpy.Event:
    return simpy.Event(loop_here().env)


class TestWaits:
    """Whatever a task of the host waits for, it starts and never goes on."""

    @staticmethod
    def crashed(wait_of):
        """Run a guarded wait, crash at 5 s, let a simulated hour pass."""

        async def main(host, told) -> None:
            host.start(_guarded(told, "task", lambda: wait_of(told)))
            await asyncio.sleep(5)
            host.crash()
            await asyncio.sleep(3600)
            assert loop_here().pending_tasks() == [asyncio.current_task()]

        return live(main)

    def test_a_sleep(self):
        assert self.crashed(lambda told: asyncio.sleep(10)) == ["task starts"]

    def test_a_sleep_that_ends_as_the_host_crashes(self):
        """Whichever is first; the host's last step may be any, and there is none after it."""
        told = self.crashed(lambda told: asyncio.sleep(5))
        assert told == ["task starts", "task goes on", "task cleans up", "task cleans up more"][: len(told)]
        assert len(told) < 4

    def test_endless_switches(self):
        async def spin() -> None:
            while True:
                await asyncio.sleep(0.001)
                await asyncio.sleep(0)

        assert self.crashed(lambda told: spin()) == ["task starts"]

    def test_a_timeout(self):
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await asyncio.sleep(100)

        assert self.crashed(lambda told: bounded()) == ["task starts"]

    def test_a_group_and_its_children(self):
        async def group(told) -> None:
            async with asyncio.TaskGroup() as children:
                for number in range(3):
                    children.create_task(_guarded(told, f"child {number}", lambda: asyncio.sleep(10)))

        assert self.crashed(group) == ["task starts", "child 0 starts", "child 1 starts", "child 2 starts"]

    def test_a_shielded_task(self):
        async def shielded(told) -> None:
            await asyncio.shield(asyncio.create_task(_guarded(told, "inner", lambda: asyncio.sleep(10))))

        assert self.crashed(shielded) == ["task starts", "inner starts"]

    def test_a_gathering(self):
        async def gathered(told) -> None:
            await asyncio.gather(asyncio.sleep(10), _guarded(told, "inner", lambda: asyncio.sleep(20)))

        assert self.crashed(gathered) == ["task starts", "inner starts"]

    def test_a_scope(self):
        async def scoped(told) -> None:
            async with _Scope(told):
                await asyncio.sleep(10)

        assert self.crashed(scoped) == ["task starts"]

    def test_an_asynchronous_generator_amid_a_step(self):
        async def numbers(told):
            try:
                yield 1
                await asyncio.sleep(10)
                yield 2
            finally:
                told.append("generator cleans up")

        async def read(told) -> None:
            async with contextlib.aclosing(numbers(told)) as them:
                async for _ in them:
                    pass

        assert self.crashed(read) == ["task starts"]

    def test_an_asynchronous_generator_between_two_steps(self):
        async def numbers(told):
            try:
                yield 1
                yield 2
            finally:
                told.append("generator cleans up")

        async def read(told) -> None:
            them = numbers(told)
            await anext(them)
            await asyncio.sleep(10)

        assert self.crashed(read) == ["task starts"]

    def test_a_task_in_an_empty_context(self):
        """As libraries start what outlives a request; so does the call that bounds one by its deadline."""

        async def detached(told) -> None:
            def tick() -> None:
                told.append("tick")
                asyncio.get_running_loop().call_later(10, tick)

            asyncio.get_running_loop().call_at(4, tick, context=contextvars.Context())
            inner = _guarded(told, "detached", lambda: asyncio.sleep(10))
            await asyncio.get_running_loop().create_task(inner, context=contextvars.Context())

        assert self.crashed(detached) == ["task starts", "detached starts", "tick"]

    def test_work_for_an_executor(self):
        async def worked(told) -> None:
            loop_here().executor_delay_s = 10
            await asyncio.get_running_loop().run_in_executor(None, told.append, "work done")

        assert self.crashed(worked) == ["task starts"]

    def test_a_task_that_asyncio_itself_made(self):
        async def own(told) -> None:
            asyncio.get_running_loop().own = asyncio.Task(_guarded(told, "own", lambda: asyncio.sleep(10)))
            await asyncio.sleep(10)

        if sys.version_info >= (3, 12):  # before, a task does not tell its context
            assert self.crashed(own) == ["task starts", "own starts"]


class TestFromOutside:
    """What others complete, cancel or look at later reaches nobody."""

    @staticmethod
    def waiting(wait, then) -> list[str]:
        """Let a task of the host await, crash the host, and let `then` happen outside."""

        async def main(host, told) -> None:
            task = host.start(_guarded(told, "task", wait))
            await asyncio.sleep(1)
            host.crash()
            await then(task)
            await asyncio.sleep(10)

        return live(main)

    def test_a_future_of_somebody_else_is_completed(self):
        futures = []

        async def wait() -> None:
            await futures[0]

        async def main(host, told) -> None:
            futures.append(asyncio.get_running_loop().create_future())
            host.start(_guarded(told, "task", wait))
            host.run(futures[0].add_done_callback, lambda _: told.append("called back"))
            await asyncio.sleep(1)
            host.crash()
            futures[0].set_result(None)
            assert await futures[0] is None
            await asyncio.sleep(1)

        assert live(main) == ["task starts"]

    def test_a_queue_and_a_lock_of_somebody_else(self):
        async def main(host, told) -> None:
            queue: asyncio.Queue[int] = asyncio.Queue()
            lock = asyncio.Lock()
            await lock.acquire()
            host.start(_guarded(told, "reader", queue.get))
            host.start(_guarded(told, "holder", lock.acquire))
            await asyncio.sleep(1)
            host.crash()
            queue.put_nowait(1)
            lock.release()
            await asyncio.sleep(1)

        assert live(main) == ["reader starts", "holder starts"]

    def test_an_event_of_simpy_happens(self):
        async def main(host, told) -> None:
            happened, timeout = _event(), loop_here().env.timeout(20)
            host.start(_guarded(told, "first", lambda: loop_here().env.wait(happened)))
            host.start(_guarded(told, "second", lambda: loop_here().env.wait(timeout)))
            await asyncio.sleep(1)
            host.crash()
            happened.succeed(1)
            await asyncio.sleep(30)
            assert happened.processed
            assert timeout.processed

        assert live(main) == ["first starts", "second starts"]

    def test_it_is_cancelled(self):
        async def cancel(task) -> None:
            task.cancel()

        assert self.waiting(lambda: asyncio.sleep(10), cancel) == ["task starts"]

    def test_whoever_waited_for_its_task_waits_with_its_own_patience(self):
        async def look(task) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5):
                    await asyncio.wait((task,))

        assert self.waiting(lambda: asyncio.sleep(10), look) == ["task starts"]

    def test_a_task_that_was_just_made_does_not_start(self):
        async def main(host, told) -> None:
            host.start(_guarded(told, "task", lambda: asyncio.sleep(1)))
            host.crash()
            await asyncio.sleep(5)

        assert live(main) == []

    def test_what_is_started_on_a_dead_host_does_not_start_either(self):
        async def main(host, told) -> None:
            host.crash()
            host.start(_guarded(told, "task", lambda: asyncio.sleep(1)))
            host.run(asyncio.get_running_loop().call_soon, told.append, "soon")
            host.run(asyncio.get_running_loop().call_later, 1, told.append, "later")
            await asyncio.sleep(5)
            assert loop_here().pending_tasks() == [asyncio.current_task()]

        assert live(main) == []


class TestOthers:
    def test_others_go_on(self):
        async def main(host, told) -> None:
            other = loop_here().host("other")
            first = other.start(_guarded(told, "other", lambda: asyncio.sleep(10)))
            host.start(_guarded(told, "task", lambda: asyncio.sleep(10)))
            second = asyncio.create_task(_guarded(told, "nobody's", lambda: asyncio.sleep(10)))
            await asyncio.sleep(5)
            host.crash()
            await asyncio.gather(first, second)
            assert (host.alive, other.alive) == (False, True)
            assert repr(host) == "<Host h, crashed>"

        told = live(main)
        assert [each for each in told if each.startswith("task")] == ["task starts"]
        assert [each for each in told if each.startswith("other")][-1] == "other cleans up more"
        assert [each for each in told if each.startswith("nobody's")][-1] == "nobody's cleans up more"

    def test_what_a_host_does_to_others_is_not_its_own(self):
        """A future that the host completed in its last moment still reaches who waited for it."""

        async def main(host, told) -> None:
            future = asyncio.get_running_loop().create_future()
            waiter = asyncio.create_task(_guarded(told, "waiter", lambda: future))
            await asyncio.sleep(1)
            host.run(future.set_result, 1)
            host.crash()
            await waiter

        assert "waiter goes on" in live(main)

    def test_connections_are_closed_outside_in_order_and_once(self):
        async def main(host, told) -> None:
            host.at_crash(lambda: told.append(f"first {current_host()}"))
            forget = host.at_crash(lambda: told.append("forgotten"))
            host.at_crash(lambda: told.append("last"))
            forget()
            forget()
            host.crash()
            host.crash()

        assert live(main) == ["first None", "last"]

    def test_a_host_cannot_crash_itself(self):
        async def main(host, told) -> None:
            with pytest.raises(RuntimeError, match="h cannot crash itself: crash it from outside"):
                await host.start(_crash(host))

        live(main)

    def test_tasks_and_callbacks_know_their_host(self):
        seen: list[Host | None] = []

        async def look() -> None:
            seen.append(current_host())
            asyncio.get_running_loop().call_soon(lambda: seen.append(current_host()))
            await asyncio.get_running_loop().run_in_executor(None, lambda: seen.append(current_host()))

        async def main(host, told) -> None:
            await host.start(look())
            await look()
            assert seen == [host, host, host, None, None, None]

        live(main)


async def _crash(host) -> None:
    host.crash()


class TestTheEnd:
    def test_its_generators_are_not_shut_down_with_the_loops(self):
        async def numbers(told):
            try:
                yield 1
            finally:
                told.append("generator cleans up")

        async def read(told) -> None:
            them = numbers(told)
            await anext(them)
            await asyncio.sleep(10)

        async def main(host, told) -> None:
            host.start(read(told))
            others = numbers(told)
            await anext(others)
            await asyncio.sleep(1)
            host.crash()
            await asyncio.get_running_loop().shutdown_asyncgens()

        assert live(main) == ["generator cleans up"], "that of nobody's"

    def test_what_only_a_timer_holds_is_kept_as_well(self):
        def steps(told):
            try:
                yield
            finally:
                told.append("generator cleans up")

        def begin(told) -> None:
            loop = asyncio.get_running_loop()
            soon, later = steps(told), steps(told)
            next(soon)
            next(later)
            loop.call_soon(next, soon)
            loop.call_later(1, next, later)

        async def main(host, told) -> None:
            host.run(begin, told)
            host.crash()
            gc.collect()
            await asyncio.sleep(5)
            host.run(begin, told)
            gc.collect()
            await asyncio.sleep(5)

        assert live(main) == []

    def test_nothing_of_the_dead_is_told_when_the_loop_closes(self, caplog, recwarn, monkeypatch):
        raised: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", raised.append)

        async def endless() -> None:
            while True:
                try:
                    await asyncio.sleep(1)
                except BaseException:
                    continue

        async def failed() -> None:
            raise ValueError

        async def numbers():
            try:
                yield 1
            finally:
                await asyncio.sleep(1)

        async def generator() -> None:
            them = numbers()
            await anext(them)
            await asyncio.sleep(9)

        async def main(host, told) -> None:
            host.start(_guarded(told, "task", lambda: asyncio.sleep(10)))
            host.start(endless())
            host.start(generator())
            keep.append(host.start(failed()))
            await asyncio.sleep(5)
            host.crash()

        keep: list[object] = []
        with caplog.at_level(logging.DEBUG):
            live(main)
            keep.clear()
            gc.collect()
        assert not raised
        assert not [record for record in caplog.records if record.levelno > logging.DEBUG]
        assert not recwarn.list

    def test_what_was_alive_is_closed_as_ever(self):
        told: list[str] = []

        async def main() -> None:
            host = loop_here().host("h")
            host.start(_guarded(told, "task", lambda: asyncio.sleep(10)))
            await asyncio.sleep(1)

        run(main(), env=HostEnvironment())
        assert told[1:] == ["task raises CancelledError", "task cleans up", "task cleans up more"]

    def test_a_deadlock_names_only_the_living(self):
        async def main() -> None:
            host = loop_here().host("h")
            host.start(asyncio.sleep(1e6), name="dead")
            await asyncio.sleep(1)
            host.crash()
            await asyncio.get_running_loop().create_future()

        with pytest.raises(Deadlock) as caught:
            run(main(), env=HostEnvironment())
        assert len(caught.value.waiting) == 1
        assert "task dead" not in str(caught.value)

    def test_hosts_come_and_go_without_a_trace(self):
        """A restarted host has empty memory, and what the dead one held is collected in the end."""
        kept: list[int] = []

        class Memory:
            def __del__(self) -> None:
                kept.append(1)

        async def hold() -> None:
            memory = Memory()
            await asyncio.sleep(1e6)
            del memory

        async def main() -> None:
            for _ in range(5):
                host = loop_here().host("h")
                host.start(hold())
                await asyncio.sleep(1)
                host.crash()
            assert kept == []

        run(main(), env=HostEnvironment())
        gc.collect()
        assert kept == [1] * 5
