"""Hosts that crash: whatever a host runs stops between two steps, for ever, and nothing tells it so.

A crash is a crash: no ``finally`` runs, no exception reaches a coroutine, no generator is closed, no callback comes.
What asyncio knows of a host goes in one moment, by the context variable that says which host something runs for:

- its callbacks and timers leave the loop; those made for it later, when somebody completes a future that it waited
  for, are not taken;
- its tasks are no tasks of the loop any more: nobody cancels or awaits them at the end, and no deadlock names them;
- its asynchronous generators are not shut down with the loop's;
- all of it is kept, since Python would run ``finally`` where it collects a suspended coroutine. When the loop is
  closed, and nothing can be told any more, the graves are emptied: that is the one moment when such code runs, its
  effects go nowhere, and its errors are swallowed.

A host is what the kernel knows as a process. As the kernel does, `Host.at_crash` closes what it had open: whoever is at
the other end of a connection (a client, a provider) registers there to be told.

Everything is on a loop of its own class, `HostLoop`: who runs no host pays nothing. What belongs to no host (clients,
models, SimPy processes, which know no contexts) goes on.

How it is done elsewhere: turmoil (Rust) drops a host's runtime, which runs destructors; madsim does the same; simloom
cancels tasks, which runs ``finally``.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, TypeVar, TypeVarTuple

from sim.loop import SimEnvironment, SimLoop, SimTask

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CLOSINGS_MAX = 100


class Host:
    """What can crash. Made by `HostLoop.host`.

    Attributes
    ----------
    name
        For readers.
    alive
        False once it has crashed. A restart is a new host.
    """

    def __init__(self, loop: HostLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._loop = loop
        self._context = contextvars.copy_context()
        self._context.run(_host.set, self)
        self._closings: dict[int, Callable[[], object]] = {}
        self._closings_made = 0

    def start(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine on this host, in a task."""
        return self._loop.create_task(coro, name=name, context=self._context.copy())

    def run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call `function` on this host: what it makes belongs to the host."""
        return self._context.copy().run(function, *args)

    def at_crash(self, close: Callable[[], object]) -> Callable[[], None]:
        """Have `close` called, outside of the host, when it crashes; return how to end that."""
        self._closings_made += 1
        number = self._closings_made
        self._closings[number] = close

        def forget() -> None:
            self._closings.pop(number, None)

        return forget

    def crash(self) -> None:
        """Stop here and now. Not from within the host itself: `RuntimeError`."""
        if current_host() is self:
            raise RuntimeError(f"{self.name} cannot crash itself: crash it from outside, such as from a fault")
        if self.alive:
            self.alive = False
            self._loop.bury(self)
            for close in list(self._closings.values()):  # in order of registration
                close()
            self._closings.clear()

    def __repr__(self) -> str:
        return f"<Host {self.name}{'' if self.alive else ', crashed'}>"


_host: contextvars.ContextVar[Host | None] = contextvars.ContextVar("host")


def current_host() -> Host | None:
    """Return the host that the caller runs on; None outside of all hosts."""
    return _host.get(None)


class HostEnvironment(SimEnvironment):
    """A `SimEnvironment` that hosts can crash in; its loop is a `HostLoop`."""

    loop: HostLoop

    def _make_loop(self, *args: Any) -> SimLoop:
        return HostLoop(self, *args)


class HostTask(SimTask[T]):
    """A task that knows its host."""

    __slots__ = ("host",)

    def __init__(self, host: Host | None, *args: Any, **options: Any) -> None:
        self.host = host
        super().__init__(*args, **options)

    __hash__ = SimTask.__hash__


class HostLoop(SimLoop):
    """A `SimLoop` that knows for which host each callback, timer, task and asynchronous generator is."""

    def __init__(self, env: SimEnvironment, *args: Any) -> None:
        super().__init__(env, *args)
        self._graves: list[Any] = []

    def host(self, name: str) -> Host:
        """Return a new host, alive, with nothing on it."""
        return Host(self, name)

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Call back in the next iteration, unless it is for a host that has crashed."""
        host = self._host_of(context)
        if host is None or host.alive:
            return super().call_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        self._never(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back a tick after the virtual time `when`, unless it is for a host that has crashed."""
        host = self._host_of(context)
        if host is None or host.alive:
            return super().call_at(when, callback, *args, context=context)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._never(timer)
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back a tick after `delay` seconds, unless it is for a host that has crashed."""
        return self.call_at(self.env._now + delay, callback, *args, context=context)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **more: Any,
    ) -> asyncio.Task[T]:
        """Return a task of the host that makes it, or of the one whose context is given."""
        host = self._host_of(context)
        if host is None or self.get_task_factory() is not None:
            return super().create_task(coro, name=name, context=context, **more)
        self._check_closed()  # type: ignore[attr-defined]
        self._tasks_made += 1
        task: HostTask[T] = HostTask(host, coro, self, self._tasks_made, name, context, **more)
        if not host.alive:
            self._lay_down(task)
        return task

    def _host_of(self, context: contextvars.Context | None) -> Host | None:
        """Return whose something made now in `context` is; one that knows no host gets that of the caller.

        Libraries start what should outlive a request in an empty context, on the same host all the same.
        """
        if context is None:
            return _host.get(None)
        if _host in context:
            return context[_host]
        host = _host.get(None)
        context.run(_host.set, host)  # also None: what nobody's task waits for may be completed by a host
        return host

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc]
        host = _host.get(None)
        if host is not None:
            host.generators.add(agen)

    def _never(self, handle: asyncio.Handle) -> None:
        """Keep what a handle holds: it will not be called, and what it holds must not be collected."""
        self._graves.append((handle._callback, handle._args))  # type: ignore[attr-defined]

    def bury(self, host: Host) -> None:
        """Take out of the loop all that is of `host`; for `Host.crash` only."""
        timers = [entry[2] for entry in self._timers]
        for handle in [*self._ready, *timers]:
            if not handle._cancelled and handle._context.get(_host) is host:
                self._never(handle)
                handle.cancel()
        for task in self.pending_tasks():
            if _host_of_task(task) is host:
                self._lay_down(task)
        generators = list(host.generators)
        self._graves.append(generators)
        for generator in generators:
            self._asyncgens.discard(generator)  # type: ignore[attr-defined]

    def _lay_down(self, task: asyncio.Task[Any]) -> None:
        """Take a task out of asyncio's books, and keep it."""
        self._graves.append(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio._unregister_task(task)

    def close(self) -> None:
        """Empty the graves, and close the loop."""
        if not self._graves or self.is_running():
            super().close()
            return
        self.set_exception_handler(lambda _loop, _context: None)  # what the dead did not hear, nobody has to
        told, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            self._empty_graves()
            super().close()
            gc.collect()
        finally:
            sys.unraisablehook = told

    def _empty_graves(self) -> None:
        events._set_running_loop(self)  # or what resists with `await asyncio.sleep` would spin on an error instead
        try:
            while self._graves:
                each = self._graves.pop()
                if isinstance(each, asyncio.Task):
                    _close(each.get_coro())
        finally:
            events._set_running_loop(None)


def _host_of_task(task: asyncio.Task[Any]) -> Host | None:
    """Return whose a task is; also, from Python 3.12 on, of one that the loop did not make."""
    if isinstance(task, HostTask):
        return task.host
    context: contextvars.Context | None = getattr(task, "get_context", lambda: None)()
    return None if context is None else context.get(_host)


def _close(coro: Any) -> None:
    """Close a coroutine, however it resists."""
    for _ in range(CLOSINGS_MAX):
        with suppress(BaseException):
            coro.close()
            return
    _undying.append(coro)


_undying: list[Any] = []
"""What cannot be closed may not be collected either."""
