"""No reality may leak into a simulated world: clocks and chance are replaced, the rest raises `Leak` by name.

How, and why so:

- Functions that read a clock or the kernel's entropy get stand-ins wherever they are held (`sim.standins`). One is
  virtual only inside the context and on its thread, and calls the real function elsewhere: other threads (a test's
  watchdog) see real time, and a stand-in that someone copied is harmless afterwards.
- `datetime.datetime.now` and `utcnow` read the clock in C. A subclass put in their place, as freezegun does, breaks
  whoever knows types by identity (msgspec, pydantic), so the class keeps its identity and its own dictionary is edited.
- Sockets, processes and files are trapped by an audit hook, installed once: it sees C callers too. It cannot
  see threads on all versions, nor blocking waits: these are trapped at `threading`.
- A leak that the program swallows (``except Exception``) is raised again when the context ends.

`docs/determinism.md` has the matrix of what is covered, and what is not.
"""

from __future__ import annotations

import datetime
import functools
import gc
import itertools
import logging
import os
import platform
import random
import socket
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from sim.clock import SimClock
from sim.entropy import Stream, Streams
from sim.loop import SimEnvironment
from sim.sockets import SimSocket
from sim.standins import StandIn, Swap, dictionary_of, forget_lookups

COLLECT_EVERY_STEPS = 100_000
NS_PER_S = 1_000_000_000
SEED_BITS = 128
FRAMES_TO_OUTPUT_MAX = 8
UUID_NODE_BITS = 48
UUID_NODE_IS_RANDOM = 1 << 40  # the multicast bit, by RFC 9562


class Leak(RuntimeError):
    """Simulated code reached for reality; the message names what for and the cure."""


class Isolation:
    """What `isolated` yields.

    Attributes
    ----------
    leaks
        Every leak so far, also those that the program swallowed.
    unreplaced
        Where a real clock or entropy function is held that could not be replaced (`functools.partial`, slots, ...).
    """

    def __init__(self, streams: Streams, env: SimEnvironment, writable: Iterable[Path | str]) -> None:
        self.leaks: list[Leak] = []
        self.unreplaced: list[str] = []
        self.entropy: Stream = streams.stream("isolation.entropy")
        self.random: Stream = streams.stream("isolation.random")
        self.clock = SimClock(env.loop)
        self.env = env
        self._writable = tuple(os.path.abspath(path) for path in writable)  # noqa: PTH100  # links stay as written
        self._thread_id = threading.get_ident()

    def here(self) -> bool:
        """Return whether the caller is on the simulated thread."""
        return threading.get_ident() == self._thread_id

    def leak(self, what: str, cure: str) -> Leak:
        """Record a leak and return it, to be raised."""
        leak = Leak(f"{what} leaks reality into the simulation; {cure}")
        self.leaks.append(leak)
        return leak

    def may_write(self, path: object) -> bool:
        """Return whether a path is, or is below, one that the caller allowed."""
        if not isinstance(path, str | bytes | os.PathLike):
            return isinstance(path, int)  # a descriptor was opened before, or its opening was trapped
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return full == os.devnull or any(full == root or full.startswith(root + os.sep) for root in self._writable)


_active: Isolation | None = None


def _simulated() -> Isolation | None:
    """Return the isolation that governs the caller, if any."""
    isolation = _active
    return isolation if isolation is not None and isolation.here() else None


@contextmanager
def isolated(streams: Streams, env: SimEnvironment, *, writable: Iterable[Path | str] = ()) -> Iterator[Isolation]:
    """Keep reality out while the body runs, on this thread.

    Clocks read `env`, chance comes from two streams of its own ("isolation.entropy" for the kernel's, and
    "isolation.random" for `random`), the time zone is UTC, and garbage is collected at fixed steps of the loop.
    What else is asked of the machine raises `Leak`.

    Parameters
    ----------
    streams
        The run's chance.
    env
        The run's environment; its time at entry may be any.
    writable
        Files and folders that may be written, such as a report's.

    Raises
    ------
    Leak
        Where the leak is, and again at the end if nobody has let it through.
    RuntimeError
        Isolation is nested: the inner one would restore what belongs to the outer one.
    """
    global _active  # noqa: PLW0603  # the hooks are process-wide, so what they ask is too
    if _active is not None:
        raise RuntimeError("isolated() is nested; one process simulates one world at a time")
    isolation = Isolation(streams, env, writable)
    _install_audit_hook()
    with ExitStack() as undo:
        _replace_functions(isolation, undo)
        _replace_datetime(undo)
        _seed_chance(isolation, undo)
        _settle_process(isolation, undo)
        _active = isolation
        undo.callback(_deactivate)
        yield isolation
    if isolation.leaks:
        raise isolation.leaks[0]


def _deactivate() -> None:
    global _active  # noqa: PLW0603
    _active = None


# --- clocks and the kernel's entropy: what answers instead of each function


def _monotonic(isolation: Isolation, _real: Any) -> float:
    return isolation.env.loop.time()


def _monotonic_ns(isolation: Isolation, _real: Any) -> int:
    return round(isolation.env.loop.time() * NS_PER_S)


def _wall(isolation: Isolation, _real: Any) -> float:
    return isolation.clock.now()


def _wall_ns(isolation: Isolation, _real: Any) -> int:
    return round(isolation.clock.epoch_unix_s) * NS_PER_S + round(isolation.env.loop.time() * NS_PER_S)


def _clock_gettime(isolation: Isolation, _real: Any, clock_id: int) -> float:
    return isolation.clock.now() if clock_id == time.CLOCK_REALTIME else isolation.env.loop.time()


def _clock_gettime_ns(isolation: Isolation, _real: Any, clock_id: int) -> int:
    return (_wall_ns if clock_id == time.CLOCK_REALTIME else _monotonic_ns)(isolation, None)


def _broken_down(isolation: Isolation, real: Callable[[float], Any], seconds: float | None = None) -> Any:
    return real(isolation.clock.now() if seconds is None else seconds)


def _text(isolation: Isolation, real: Callable[..., str], *broken_down: Any) -> str:
    return real(*(broken_down or (_utc(isolation),)))


def _formatted(isolation: Isolation, real: Callable[..., str], form: str, *broken_down: Any) -> str:
    return real(form, *(broken_down or (_utc(isolation),)))


def _utc(isolation: Isolation) -> time.struct_time:
    return time.gmtime(isolation.clock.now())


def _sleep(isolation: Isolation, _real: Any, seconds: float) -> None:
    raise isolation.leak(f"time.sleep({seconds})", "await asyncio.sleep, or yield env.timeout in a process")


def _urandom(isolation: Isolation, _real: Any, size: int, *_flags: int) -> bytes:
    return isolation.entropy.randbytes(size)


def _reseed(isolation: Isolation, real: Callable[..., None], seed: Any = None, version: int = 2) -> None:
    real(isolation.random.getrandbits(SEED_BITS) if seed is None else seed, version)


_VIRTUAL: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (time, "time", _wall),
    (time, "time_ns", _wall_ns),
    (time, "monotonic", _monotonic),
    (time, "monotonic_ns", _monotonic_ns),
    (time, "perf_counter", _monotonic),
    (time, "perf_counter_ns", _monotonic_ns),
    (time, "process_time", _monotonic),
    (time, "process_time_ns", _monotonic_ns),
    (time, "thread_time", _monotonic),
    (time, "thread_time_ns", _monotonic_ns),
    (time, "clock_gettime", _clock_gettime),
    (time, "clock_gettime_ns", _clock_gettime_ns),
    (time, "gmtime", _broken_down),
    (time, "localtime", _broken_down),
    (time, "ctime", _broken_down),
    (time, "asctime", _text),
    (time, "strftime", _formatted),
    (time, "sleep", _sleep),
    (os, "urandom", _urandom),
    (os, "getrandom", _urandom),
    (random, "seed", _reseed),
)
_STAND_INS = tuple(
    StandIn(getattr(owner, name), virtual, _simulated) for owner, name, virtual in _VIRTUAL if hasattr(owner, name)
)


def _replace_functions(isolation: Isolation, undo: ExitStack) -> None:
    gc.unfreeze()  # the collector does not look into what is frozen
    swap = Swap(_STAND_INS)
    swap.into(undo)
    isolation.unreplaced = swap.unreplaced
    before = frozenset(sys.modules)
    undo.callback(_clean_late_modules, before)


def _clean_late_modules(before: frozenset[str]) -> None:
    """Put the real functions into modules that were imported inside and took stand-ins."""
    for name in sys.modules.keys() - before:
        for key, value in list(getattr(sys.modules[name], "__dict__", {}).items()):
            if isinstance(value, StandIn):
                setattr(sys.modules[name], key, value.real)


# --- datetime: the class keeps its identity


def _now(cls: type[datetime.datetime], tz: datetime.tzinfo | None = None) -> datetime.datetime:
    isolation = _simulated()
    if isolation is None:
        return cast(datetime.datetime, _REAL_NOW.__get__(None, cls)(tz))
    return cls.fromtimestamp(isolation.clock.now(), tz)


def _utcnow(cls: type[datetime.datetime]) -> datetime.datetime:
    isolation = _simulated()
    if isolation is None:
        return cast(datetime.datetime, _REAL_UTCNOW.__get__(None, cls)())
    return cls.fromtimestamp(isolation.clock.now(), datetime.UTC).replace(tzinfo=None)


_REAL_NOW = datetime.datetime.__dict__["now"]
_REAL_UTCNOW = datetime.datetime.__dict__["utcnow"]


def _replace_datetime(undo: ExitStack) -> None:
    """Replace what reads the clock in C; `today` of both classes asks `time.time` and so needs nothing."""
    _set_on_datetime(now=classmethod(_now), utcnow=classmethod(_utcnow))
    undo.callback(_set_on_datetime, now=_REAL_NOW, utcnow=_REAL_UTCNOW)


def _set_on_datetime(**methods: Any) -> None:
    dictionary_of(datetime.datetime).update(methods)
    forget_lookups(datetime.datetime)


# --- chance


def _seed_chance(isolation: Isolation, undo: ExitStack) -> None:
    undo.callback(random.setstate, random.getstate())
    random.seed(isolation.random.getrandbits(SEED_BITS))
    _put(undo, random.Random, "seed", _seed_of_bare_random)
    # without these, uuid1 asks a C library and the network card, and goes on from the last identifier
    for name, value in (("_generate_time_safe", None), ("_UuidCreate", None), ("_last_timestamp", None)):
        if hasattr(uuid, name):
            _put(undo, uuid, name, value)
    _put(undo, uuid, "_node", isolation.random.getrandbits(UUID_NODE_BITS) | UUID_NODE_IS_RANDOM)
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        undo.callback(numpy_random.set_state, numpy_random.get_state())
        numpy_random.seed(isolation.random.getrandbits(32))


_REAL_SEED = random.Random.seed


def _seed_of_bare_random(self: random.Random, a: Any = None, version: int = 2) -> None:
    """Seed as ever, and from the run's chance where the kernel's would be used."""
    isolation = _simulated()
    if isolation is not None and a is None:
        a = isolation.random.getrandbits(SEED_BITS)
    _REAL_SEED(self, a, version)


# --- what would wait for, start, or write something real


def _settle_process(isolation: Isolation, undo: ExitStack) -> None:
    _replace_sockets(undo)
    # `uname -p` would be run to learn it, and both keep what they learnt
    for owner, name, value in (
        (vars(platform)["_Processor"], "get", staticmethod(str)),
        (platform, "_uname_cache", None),
        (platform, "_platform_cache", {}),
    ):
        _put(undo, owner, name, value)
    _put(undo, threading.Thread, "start", _start)
    _put(undo, threading.Condition, "wait", _wait)
    _put(undo, sys, "dont_write_bytecode", True)
    now = isolation.clock.now()
    start: Any = vars(logging)["_startTime"]  # log records tell the time since; nanoseconds from Python 3.13 on
    _put(undo, logging, "_startTime", now if isinstance(start, float) else round(now * NS_PER_S))
    undo.callback(_set_time_zone, os.environ.get("TZ"))
    _set_time_zone("UTC")
    _collect_at_fixed_steps(isolation.env, undo)


def _replace_sockets(undo: ExitStack) -> None:
    """Let `socket.socket` make simulated ones in a world with a network; as with datetime, the class stays the same."""
    undo.callback(delattr, socket.socket, "__new__")
    socket.socket.__new__ = _new_socket  # type: ignore[method-assign,assignment]


def _new_socket(cls: type[socket.socket], *arguments: int, **named: int) -> socket.socket:
    family, kind, _, fileno = (*arguments, *(None,) * 4)[:4]
    family, kind, fileno = named.get("family", family), named.get("type", kind), named.get("fileno", fileno)
    is_tcp = family in (None, -1, socket.AF_INET, socket.AF_INET6) and kind in (None, -1, socket.SOCK_STREAM)
    isolation = _simulated()
    if cls is socket.socket and is_tcp and fileno is None and isolation and isolation.env.loop.network is not None:
        return _REAL_NEW_SOCKET(SimSocket)
    return _REAL_NEW_SOCKET(cls)


_REAL_NEW_SOCKET: Callable[[type[socket.socket]], socket.socket] = socket.socket.__new__


def _set_time_zone(zone: str | None) -> None:
    if zone is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = zone
    time.tzset()


def _collect_at_fixed_steps(env: SimEnvironment, undo: ExitStack) -> None:
    """Let finalizers run at the same steps in every process; what exists already is left out of the collections."""
    undo.callback(gc.enable if gc.isenabled() else gc.disable)
    gc.disable()
    gc.freeze()
    undo.callback(gc.unfreeze)
    undo.callback(env.loop.collect_garbage_every, 0)
    env.loop.collect_garbage_every(COLLECT_EVERY_STEPS)


def _put(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


_NO_THREADS = "use run_in_executor, which runs inline here, or a SimPy process"


@functools.wraps(threading.Thread.start)
def _start(thread: threading.Thread) -> None:
    isolation = _simulated()
    if isolation is not None:
        raise isolation.leak("threading.Thread.start", _NO_THREADS)
    _REAL_START(thread)


@functools.wraps(threading.Condition.wait)
def _wait(condition: threading.Condition, timeout: float | None = None) -> bool:
    isolation = _simulated()
    looks_only = timeout is not None and timeout <= 0
    if isolation is not None and not looks_only and not _is_for_output():
        raise isolation.leak("threading.Condition.wait", _NO_THREADS)
    return _REAL_WAIT(condition, timeout)


def _is_for_output() -> bool:
    """Return whether it is a notebook's kernel that waits: its `print` and log handlers are flushed by a thread."""
    callers = itertools.islice(_callers(), FRAMES_TO_OUTPUT_MAX)
    return any(frame.f_globals.get("__name__") == "ipykernel.iostream" for frame in callers)


def _callers() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


_REAL_START = threading.Thread.start
_REAL_WAIT = threading.Condition.wait

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NO_SOCKETS = (
    "give the world a network (sim.network.Network), model the peer behind a port, or drive an app by sim.asgi"
)
_NO_PROCESSES = "model the other program as a SimPy process"
_NO_FILES = "return the data, or allow the path: isolated(..., writable=[path])"
_TRAPPED_PREFIXES = (("socket.", _NO_SOCKETS), ("subprocess.", _NO_PROCESSES), ("_thread.start", _NO_THREADS))
_TRAPPED = {
    **dict.fromkeys(("os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn"), _NO_PROCESSES),
    "pty.spawn": _NO_PROCESSES,
}
_WRITES = frozenset(
    ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime")
)
_HARMLESS = frozenset(("socket.gethostname",))
_hook_installed = False


def _install_audit_hook() -> None:
    global _hook_installed  # noqa: PLW0603  # a hook cannot be removed, so there must be one only
    if not _hook_installed:
        sys.addaudithook(_audit)
        _hook_installed = True


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _active is None:
        return
    isolation = _simulated()
    if isolation is None:
        return
    if event == "open":
        path, _mode, flags = args
        if flags & _WRITE_FLAGS and not isolation.may_write(path):
            raise isolation.leak(f"open({path!r}) for writing", _NO_FILES)
    elif event in _WRITES:
        if not isolation.may_write(args[0]):
            raise isolation.leak(f"{event}({args[0]!r})", _NO_FILES)
    elif event in _TRAPPED:
        raise isolation.leak(event, _TRAPPED[event])
    elif event not in _HARMLESS:
        for prefix, cure in _TRAPPED_PREFIXES:
            if event.startswith(prefix):
                raise isolation.leak(event, cure)
