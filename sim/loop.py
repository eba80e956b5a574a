"""An asyncio event loop that steps a SimPy environment.

Code written for asyncio runs here unmodified, over a simulated network if it has one (`sim.network`), in virtual time,
beside SimPy processes: coroutines await SimPy events (`SimEnvironment.wait`), processes yield awaitables
(`SimEnvironment.of`), so a provider can be a `simpy.Resource` with a queue in front.

One loop iteration is a stock one (`asyncio.BaseEventLoop._run_once`) in which SimPy's queue stands where the selector
stood: if nothing is ready, time moves to the next deadline or event; due timers become ready; SimPy's due events are
processed until one of them makes a callback ready; then the callbacks that were ready run. asyncio's ready list and
timer heap stay as they are (one SimPy event per callback was measured to cost 40 % of the task switches).

What this loop cannot do raises `NotSimulated` with its cure; nothing is quietly ignored.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import math
import threading
import warnings
from asyncio import events
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from math import isnan
from typing import Any, NoReturn, TypeVar, TypeVarTuple

import simpy
from simpy.core import EmptySchedule, StopSimulation
from simpy.events import NORMAL, URGENT

from sim.entropy import Streams
from sim.handles import SimHandle, SimTimer
from sim.netloop import NetworkMethods
from sim.refusals import NotSimulated, refuse
from sim.schedule import Fifo, Ready, Schedule

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

TICK_S = 2.0**-30  # about a nanosecond; a power of two keeps sums of round numbers exact, and 48 days resolve it
INSTANT_S = 1e-3  # what counts as one instant for the livelock bound: a timer of zero moves time by one tick
STEPS_PER_INSTANT_MAX = 1_000_000
CANCELLED_TIMERS_MIN = 100  # compaction as in CPython's base_events
CANCELLED_TIMERS_FRACTION = 0.5
STACK_FRAMES_MAX = 32
CULPRITS_MAX = 10


class Deadlock(RuntimeError):
    """Nothing is left to run, and something still waits.

    Attributes
    ----------
    waiting
        One text per waiting task, in order of creation: its name and the frames it waits in, outermost first.
    """

    def __init__(self, message: str, waiting: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join((message, *waiting)))
        self.waiting = waiting


class Livelock(RuntimeError):
    """Too many steps in one instant: something spins and virtual time cannot pass."""


class SimTask(asyncio.Task[T]):
    """A task whose hash is its number on its loop.

    asyncio keeps tasks in sets (`TaskGroup`, `asyncio.wait`, `asyncio.all_tasks`) and cancels them in the order of
    those. With the usual hash, an address, that order would differ between two processes that run the same seed.
    """

    __slots__ = ("number",)

    def __init__(
        self, coro: Any, loop: SimLoop, number: int, name: object, context: contextvars.Context | None, **more: Any
    ) -> None:
        self.number = number
        super().__init__(coro, loop=loop, name=str(name) if name else f"Task-{number}", context=context, **more)

    def __hash__(self) -> int:
        return self.number


class SimEnvironment(simpy.Environment):
    """A SimPy environment with an asyncio loop in it; `peek` and `step` see both queues.

    Either side may drive: `run` (as in SimPy) or `loop.run_until_complete` / `loop.run_forever`.

    Parameters
    ----------
    initial_time
        Virtual time at the start, in seconds. `now` and `loop.time()` are one clock.
    schedule
        What runs next where asyncio leaves it open; `Fifo()` if left out.
    steps_per_instant_max
        How many callbacks and events may run within `INSTANT_S` before `Livelock` is raised.
    """

    def __init__(
        self,
        initial_time: float = 0.0,
        *,
        schedule: Schedule | None = None,
        steps_per_instant_max: int = STEPS_PER_INSTANT_MAX,
    ) -> None:
        super().__init__(initial_time)
        self.loop = self._make_loop(schedule or Fifo(), steps_per_instant_max)

    def _make_loop(self, schedule: Schedule, steps_per_instant_max: int) -> SimLoop:
        return SimLoop(self, schedule, steps_per_instant_max)

    def schedule(self, event: simpy.Event, priority: Any = NORMAL, delay: float = 0) -> None:
        """Schedule `event` after `delay` seconds; `ValueError` if that is the past, for time never goes back."""
        if not delay >= 0:
            raise ValueError(f"delay {delay} of {event} is in the past")
        super().schedule(event, priority, delay)

    def peek(self) -> float:
        """Return the time of the next callback, timer or event in seconds; infinity if there is none."""
        return self.loop.next_time()

    def step(self) -> None:
        """Run one loop iteration: all that is due once, after moving time there.

        Raises
        ------
        simpy.core.EmptySchedule
            Nothing is left to run.
        """
        due = self.loop.next_time()
        if due == math.inf:
            raise EmptySchedule
        self._now = max(self._now, due)
        self.loop.stop()  # a stopped loop runs exactly one iteration
        self.loop.run_forever()

    def run(self, until: float | simpy.Event | None = None) -> Any:
        """Run until a time in seconds, until an event was processed (return its value), or until nothing is left.

        Raises
        ------
        Deadlock
            Nothing is left to run and either a task still waits or the `until` event has not come.
        Livelock
            See `SimEnvironment`.
        """
        if until is not None:
            if not isinstance(until, simpy.Event):
                until = self._alarm(float(until))
            elif until.processed:
                return until.value
            until.callbacks.append(StopSimulation.callback)
        try:
            self.loop.run_forever()
        except StopSimulation as stop:
            return stop.args[0] if stop.args else None
        except Deadlock as deadlock:
            if until is not None or deadlock.waiting:
                raise
        return None

    def _alarm(self, at_s: float) -> simpy.Event:
        if not at_s > self._now:
            raise ValueError(f"until ({at_s}) must be later than now ({self._now})")
        alarm = simpy.Event(self)
        alarm._ok = True
        alarm._value = None
        self.schedule(alarm, URGENT, at_s - self._now)
        return alarm

    def of(self, awaitable: Any) -> simpy.Event:
        """Return an event that succeeds or fails as the coroutine, task or future `awaitable` does.

        A cancelled awaitable fails the event with `asyncio.CancelledError`. Interrupting the process that yields the
        event does not cancel the awaitable; cancel the task yourself where that is meant.
        """
        event = simpy.Event(self)

        def settle(done: asyncio.Future[Any]) -> None:
            if done.cancelled():
                event.fail(asyncio.CancelledError())  # type: ignore[arg-type]
                return
            error = done.exception()
            if error is None:
                event.succeed(done.result())
            else:
                event.fail(error)  # type: ignore[arg-type]

        asyncio.ensure_future(awaitable, loop=self.loop).add_done_callback(settle)
        return event

    async def wait(self, event: simpy.Event) -> Any:
        """Return the value of a SimPy event once it has been processed; raise its exception if it failed.

        Cancelling the waiting task leaves the event to others. A request of a resource is withdrawn by its own
        context manager: ``with resource.request() as request: await env.wait(request)``.
        """
        if event.env is not self:
            raise ValueError(f"{event} belongs to another environment")
        if event.processed:
            return _outcome(event)
        future: asyncio.Future[Any] = self.loop.create_future()

        def settle(event: simpy.Event) -> None:
            if future.cancelled():
                return  # the waiting task is about to hear of it
            if event.ok:
                future.set_result(event.value)
            else:
                event.defused = True  # the waiting coroutine takes the exception over
                future.set_exception(_error(event))

        event.callbacks.append(settle)
        try:
            return await future
        finally:
            if not event.processed:
                event.callbacks.remove(settle)


class SimLoop(NetworkMethods):
    """The loop of a `SimEnvironment`; made by it.

    A timer fires a tick after its deadline, never at it. Real loops are late too, and a library that compares
    `loop.time()` with its own deadline by `<` starts the same timer for ever if the clock reads the deadline exactly
    (aiohttp #10149).

    Attributes
    ----------
    env
        The environment whose clock and events it shares.
    executor_delay_s
        How long `run_in_executor` seems to take, in seconds.
    on_iteration
        Told at each iteration how many callbacks are ready, before they run; None by default. Set it before running.
    signal_handlers
        What was registered by `add_signal_handler`, by signal number; `deliver_signal` runs one.
    """

    _ready: Ready
    _closed: bool
    _debug: bool
    _stopping: bool
    _thread_id: int | None
    _current_handle: asyncio.Handle | None

    def __init__(self, env: SimEnvironment, schedule: Schedule, steps_per_instant_max: int) -> None:
        super().__init__()
        self.env = env
        self.schedule = schedule
        self.steps = 0
        self.executor_delay_s = 0.0
        self.signal_handlers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._steps_per_instant_max = steps_per_instant_max
        self._owner_thread_id = threading.get_ident()
        self._ready = schedule.ready()
        self._tie = schedule.tie
        self.on_iteration: Callable[[int], None] | None = None
        # (deadline, order among equals, handle): tuples compare in C, stock's handles in Python
        self._timers: list[tuple[float, float, asyncio.TimerHandle]] = []
        self._timers_cancelled = 0
        self._tasks_made = 0
        self._collect_every_steps = 0
        self._collect_at_step = 0
        self._instant_ends_s = -math.inf
        self._instant_steps_max = -1
        self._look_up_at_step: float = -1

    # --- time and what is due

    def time(self) -> float:
        """Return virtual time in seconds: the environment's `now`."""
        return self.env._now

    def next_time(self) -> float:
        """Return when the next callback, timer or event runs, in seconds; infinity if there is none."""
        now = self.env._now
        if self._ready:
            return now
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)[2]._scheduled = False  # type: ignore[attr-defined]
            self._timers_cancelled -= 1
        queue = self.env._queue
        due = queue[0][0] if queue else math.inf
        if timers:
            when = timers[0][0]
            fires_at = when + TICK_S
            if fires_at <= when:  # a clock so late that it cannot tell a tick
                fires_at = math.nextafter(when, math.inf)
            if fires_at < due:  # noqa: PLR1730  # this and the next line are min() and max() without the calls
                due = fires_at
        return due if due > now else now

    # These three do what asyncio's own do in fewer calls: a busy stock loop runs many deadlines in one iteration, and
    # this one, which is never late, has one for each and must win that back.

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call back in the next iteration."""
        if self._closed or self._debug:
            self._check_call(callback, "call_soon")
            handle = asyncio.Handle(callback, args, self, context)
        else:
            handle = SimHandle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back a tick after the virtual time `when`, in seconds."""
        if self._closed or self._debug:
            return self._call_at_checked(when, callback, args, context)
        if isnan(when):
            raise ValueError("a timer needs a deadline, not NaN")
        timer = SimTimer(when, callback, args, self, context)
        heappush(self._timers, (when, self._tie(), timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back a tick after `delay` seconds of virtual time."""
        when = self.env._now + delay
        if self._closed or self._debug:
            return self._call_at_checked(when, callback, args, context)
        if isnan(when):  # it would disorder the heap; infinity is fine: asyncio.sleep(math.inf) waits for ever
            raise ValueError("a timer needs a delay, not NaN")
        timer = SimTimer(when, callback, args, self, context)
        heappush(self._timers, (when, self._tie(), timer))
        return timer

    def _call_at_checked(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> asyncio.TimerHandle:
        """Do the same with asyncio's own handle, which in debug mode knows where it was made."""
        self._check_call(callback, "call_at")
        if isnan(when):
            raise ValueError("a timer needs a time, not NaN")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, self._tie(), timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _check_call(self, callback: Callable[..., object], method: str) -> None:
        self._check_closed()  # type: ignore[attr-defined]
        if self._debug:
            self._check_thread()  # type: ignore[attr-defined]
            self._check_callback(callback, method)  # type: ignore[attr-defined]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Count it and, as CPython does, clear the heap out once most of it is cancelled."""
        if not handle._scheduled:  # type: ignore[attr-defined]
            return
        self._timers_cancelled += 1
        timers = self._timers
        if len(timers) > CANCELLED_TIMERS_MIN and self._timers_cancelled > CANCELLED_TIMERS_FRACTION * len(timers):
            handle._scheduled = False  # type: ignore[attr-defined]  # it is marked as cancelled only after this call
            for entry in timers:
                if entry[2]._cancelled:
                    entry[2]._scheduled = False  # type: ignore[attr-defined]
            timers[:] = [entry for entry in timers if entry[2]._scheduled]  # type: ignore[attr-defined]
            heapify(timers)
            self._timers_cancelled = 0

    # --- running

    def run_forever(self) -> None:
        """Run until `stop`, or until nothing is left (`Deadlock`).

        Unlike a real loop it may run inside another one's callback, so in a notebook's cell: it waits for nothing, so
        to the outer loop it is a plain computation.
        """
        with _outer_loop_set_aside(self):
            super().run_forever()

    def _run_once(self) -> None:
        """Run iterations until the loop is to stop; asyncio's `run_forever` would call this for each."""
        ready = self._ready
        take = ready.popleft
        timers = self._timers
        env = self.env
        queue = env._queue
        told = self.on_iteration
        while True:
            if not ready and not self._stopping:
                due = self.next_time()
                if due == math.inf:
                    self._report_deadlock()
                env._now = due
            now = env._now
            while timers and timers[0][0] < now:
                timer = heappop(timers)[2]
                timer._scheduled = False  # type: ignore[attr-defined]
                if timer._cancelled:
                    self._timers_cancelled -= 1
                else:
                    ready.append(timer)
            if queue and queue[0][0] <= now:
                self._process_due_events(now)
            todo = len(ready)
            self.steps += todo
            if told is not None:
                told(todo)
            if self.steps > self._look_up_at_step:
                self._look_up()
            for _ in range(todo):
                handle = take()
                if not handle._cancelled:
                    handle._run()
            if self._stopping:
                return

    def _process_due_events(self, now: float) -> None:
        """Let SimPy run until it makes a callback ready: neither side can starve the other within an instant."""
        queue = self.env._queue
        while queue and queue[0][0] <= now:
            simpy.Environment.step(self.env)
            self.steps += 1
            if self._ready or self._stopping:
                return
            if self.steps > self._look_up_at_step:
                self._look_up()

    def _look_up(self) -> None:
        """Do what need not be done at each step: raise if time does not pass, collect garbage."""
        if self.steps > self._instant_steps_max:
            self._begin_instant()
        if self._collect_every_steps and self.steps > self._collect_at_step:
            self._collect_at_step = self.steps + self._collect_every_steps
            gc.collect()
        self._look_up_at_step = min(self._instant_steps_max, self._collect_at_step or math.inf)

    def _begin_instant(self) -> None:
        """Count a new instant's steps; `Livelock` if the last one has not passed after so many."""
        now = self.env._now
        if now <= self._instant_ends_s:
            ready = [name_of(handle) for handle in itertools.islice(self._ready, CULPRITS_MAX)]
            raise Livelock(
                f"more than {self._steps_per_instant_max} steps within {INSTANT_S} s of virtual time, at {now} s. "
                f"Ready: {', '.join(ready) or 'SimPy events only'}"
            )
        self._instant_ends_s = now + INSTANT_S
        self._instant_steps_max = self.steps + self._steps_per_instant_max

    def collect_garbage_every(self, steps: int) -> None:
        """Collect garbage each time so many steps have run; never if 0.

        With the automatic collection disabled (`isolated` does both), finalizers run at the same step in every process.
        """
        self._collect_every_steps = steps
        self._collect_at_step = self.steps + steps if steps else 0
        self._look_up_at_step = -1

    def _report_deadlock(self) -> NoReturn:
        waiting = tuple(_describe(task) for task in self.pending_tasks())
        what = f"{len(waiting)} tasks wait" if waiting else "the loop was to run on"
        raise Deadlock(f"nothing is left to run at {self.env._now} s of virtual time, and {what}", waiting)

    # --- tasks and callbacks

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **more: Any,
    ) -> asyncio.Task[T]:
        """Return a task for a coroutine; it is numbered, and named after its number unless `name` is given."""
        if self.get_task_factory() is not None:
            return super().create_task(coro, name=name, context=context, **more)
        self._check_closed()  # type: ignore[attr-defined]
        self._tasks_made += 1
        return SimTask(coro, self, self._tasks_made, name, context, **more)

    def pending_tasks(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, in order of creation (those of a foreign factory last)."""
        return sorted(asyncio.all_tasks(self), key=lambda task: getattr(task, "number", math.inf))

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call back soon; from the loop's own thread only, since another one would bring the host's scheduler in."""
        if threading.get_ident() != (self._thread_id or self._owner_thread_id):
            raise NotSimulated("call_soon_threadsafe from another thread; keep to one thread, or use run_in_executor")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        """Run `func` inline as a callback of its own, after `executor_delay_s`, whatever the executor.

        As in a thread, no loop is running while it runs, and it sees an empty context.
        """
        self._check_closed()  # type: ignore[attr-defined]
        if executor is None:
            self._check_default_executor()  # type: ignore[attr-defined]
        future: asyncio.Future[T] = self.create_future()

        def work() -> None:
            if future.cancelled():
                return
            events._set_running_loop(None)
            try:
                result = func(*args)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                events._set_running_loop(self)

        context = contextvars.Context()
        if self.executor_delay_s > 0:
            self.call_later(self.executor_delay_s, work, context=context)
        else:
            self.call_soon(work, context=context)
        return future

    # --- signals: recorded, and delivered only by a model

    def add_signal_handler(self, sig: int, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        """Record a handler; the process's own signals stay as they are. See `deliver_signal`."""
        self.signal_handlers[sig] = (callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """Forget a handler; return whether there was one."""
        return self.signal_handlers.pop(sig, None) is not None

    def deliver_signal(self, sig: int) -> None:
        """Call the recorded handler of `sig` soon, as if the process had received it; `KeyError` if there is none."""
        callback, args = self.signal_handlers[sig]
        self.call_soon(callback, *args)

    # --- the end

    def __del__(self) -> None:
        """Say nothing of a loop left open: it holds nothing real, and environments of SimPy are just dropped."""

    def close(self) -> None:
        """Close the loop; warn of every task that is left, for none of them is cancelled here (`run` does that)."""
        if not self.is_closed() and not self.is_running():
            left = [task.get_name() for task in self.pending_tasks()]
            if left:
                warnings.warn(f"{self!r} closed with pending tasks: {', '.join(left)}", ResourceWarning, stacklevel=2)
        super().close()
        self._timers.clear()
        self._timers_cancelled = 0


_MODEL = "model the peer behind a port (sim.network, sim.provider, sim.stores), or drive an app through sim.asgi"
_PROCESS = "model the other program as a SimPy process"
_NO_POOL = "run_in_executor runs inline here, leave the default executor unset"
NOT_SIMULATED = {
    "create_unix_connection": _MODEL,
    "create_unix_server": _MODEL,
    "create_datagram_endpoint": _MODEL,
    "connect_accepted_socket": _MODEL,
    "connect_read_pipe": _PROCESS,
    "connect_write_pipe": _PROCESS,
    "subprocess_shell": _PROCESS,
    "subprocess_exec": _PROCESS,
    "sendfile": _MODEL,
    "getnameinfo": _MODEL,
    "sock_recv": _MODEL,
    "sock_recv_into": _MODEL,
    "sock_recvfrom": _MODEL,
    "sock_recvfrom_into": _MODEL,
    "sock_sendall": _MODEL,
    "sock_sendto": _MODEL,
    "sock_accept": _MODEL,
    "sock_sendfile": _MODEL,
    "add_reader": _MODEL,
    "remove_reader": _MODEL,
    "add_writer": _MODEL,
    "remove_writer": _MODEL,
    "set_default_executor": _NO_POOL,
}
for _name, _cure in NOT_SIMULATED.items():
    setattr(SimLoop, _name, refuse("loop", _name, _cure))


def run(
    main: Coroutine[Any, Any, T],
    *,
    env: SimEnvironment | None = None,
    seed: int = 0,
    schedule: Schedule | None = None,
    debug: bool | None = None,
) -> T:
    """Run a coroutine in virtual time and return its result: `asyncio.run` on a simulated loop.

    When `main` is done the tasks that are left are cancelled and awaited in order of creation, asynchronous generators
    are shut down, and the loop is closed.

    Parameters
    ----------
    main
        What to run. It finds its environment as ``asyncio.get_running_loop().env``, or builds it before.
    env
        The environment to run in, which is closed afterwards; a new one if left out.
    seed
        Of a new environment's schedule (stream "schedule").
    schedule
        Of a new environment, instead of `Fifo`.
    debug
        asyncio's debug mode. Its slow-callback warning measures virtual time, so it never comes.

    Raises
    ------
    Deadlock, Livelock
        See `SimEnvironment.run`.
    """
    if env is None:
        env = SimEnvironment(schedule=schedule or Fifo(Streams(seed).stream("schedule")))
    elif schedule is not None:
        main.close()
        raise ValueError("give a schedule or an environment that has one, not both")
    loop = env.loop
    with _outer_loop_set_aside(loop), asyncio.Runner(loop_factory=lambda: loop, debug=debug) as runner:
        return runner.run(main)


@contextmanager
def _outer_loop_set_aside(loop: SimLoop) -> Iterator[None]:
    """Let no other loop count as running in the body; it is restored afterwards."""
    outer = events._get_running_loop()
    if outer is loop:
        raise RuntimeError("this loop is running already; await, or start a task")
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(outer)


def _error(event: simpy.Event) -> BaseException:
    error = event.value
    assert isinstance(error, BaseException)
    return error


def _outcome(event: simpy.Event) -> Any:
    if event.ok:
        return event.value
    raise _error(event)


def _describe(task: asyncio.Task[Any]) -> str:
    """Return a task's name and the frames it waits in, outermost first, by module rather than by file."""
    lines = [f"task {task.get_name()}"]
    inner: Any = task.get_coro()
    while inner is not None and len(lines) <= STACK_FRAMES_MAX:
        frame = _first(inner, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            where = f"{frame.f_globals.get('__name__')}:{frame.f_lineno}"
            lines.append(f"  {where} in {frame.f_code.co_qualname}")
        inner = _first(inner, "cr_await", "gi_yieldfrom", "ag_await")
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task):
        lines.append(f"  waits for task {waiter.get_name()}")
    return "\n".join(lines)


def _first(owner: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(owner, name, None)) is not None), None)


def name_of(handle: asyncio.Handle) -> str:
    """Return whose turn a handle is: its task's name if it steps one, else its callback's."""
    callback = handle._callback  # type: ignore[attr-defined]
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return owner.get_name()
    return str(getattr(callback, "__qualname__", type(callback).__name__))
