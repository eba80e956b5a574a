"""Deadlines: one a turn, which everything below it can see, and a watchdog that keeps calls to theirs.

A turn's deadline lies in a context variable, so that no function in between has to pass it on, and a task takes it
over from whoever started it. It is only ever shortened on the way down (gRPC's deadline propagation).

    contract: `Deadline`;  state: `_deadline`, `Watch`;  behaviour: `deadline_within`, `Watchdog`, `TimeLimit`
"""

import asyncio
import math
from asyncio import CancelledError, current_task
from collections.abc import Callable
from contextvars import Context, ContextVar, Token
from itertools import takewhile
from typing import Any, Self, TypeVarTuple

from msgspec import Struct

Ts = TypeVarTuple("Ts")


class Deadline(Struct, frozen=True):
    """When the work that runs must have ended.

    Parameters
    ----------
    at : float
        On the running loop's clock, in seconds.
    ours : bool
        Whether we set it. Running into one of ours is a failure of what was called; running into one that a caller
        shortened says nothing about it.
    since : float
        When it was set.
    """

    at: float
    ours: bool
    since: float = 0.0

    def blames(self, started: float) -> bool:
        """Tell whether running into it says something about a call that started at `started`.

        Not where a caller shortened it, nor where what came before the call had used up most of the time: who was
        left less than half of it, and was late, may be as quick as ever.
        """
        return self.ours and self.at - started >= (self.at - self.since) / 2


_NEVER = math.inf
_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current() -> Deadline | None:
    """Return the deadline of what runs now; None where it has all the time it wants."""
    return _deadline.get()


def deadline_within(seconds: float, *, ours: bool = True) -> "_Within":
    """Let the body, and the tasks that it starts, see a deadline `seconds` from now, unless an earlier one stands.

    It only says so; those who wait keep to it. Not for around a `yield` of an asynchronous generator: a context
    variable set there is seen by whoever reads the generator (PEP 568 tells why, and was never accepted).

    Parameters
    ----------
    seconds : float
        From now; at or below 0 it is over already.
    ours : bool
        See `Deadline`. Where the earlier deadline stays, it stays with its own.

    Raises
    ------
    ValueError
        `seconds` is no number.
    """
    if math.isnan(seconds):
        raise ValueError("seconds is NaN, which no deadline can be: give a number of seconds")
    return _Within(seconds, ours)


class _Within:
    """What `deadline_within` gives: a class, since a generator for every turn costs three times as much."""

    __slots__ = ("_ours", "_seconds", "_token")

    def __init__(self, seconds: float, ours: bool) -> None:
        self._seconds = seconds
        self._ours = ours
        self._token: Token[Deadline | None] | None = None

    def __enter__(self) -> None:
        outer = _deadline.get()
        now = asyncio.get_running_loop().time()
        at = now + self._seconds
        if outer is None or at < outer.at:
            self._token = _deadline.set(Deadline(at, self._ours, now))

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _deadline.reset(self._token)


class Watch(Struct, eq=False):
    """A call under watch; `Watchdog.enter` gives it out for `Watchdog.leave` to take back."""

    at: float
    task: asyncio.Task[Any]
    cancelling: int  # requests to cancel the task that were there before
    timer: asyncio.Handle | None = None  # its own, where it is out of order
    expired: bool = False


class Watchdog:
    """Cancels calls that outlast their deadline: `asyncio.timeout_at` for very many calls, by one timer for all.

    Calls of one guard have one limit, so they nearly always expire in the order in which they came. Those lie in a
    dict, which keeps that order and forgets a call the moment it leaves; the timer is set for the oldest, and only
    when it fires is it set anew. One whose deadline is earlier than a former one's gets a timer of its own, as
    `asyncio.timeout` would give it. A heap would order any mix, but costs each call more, and holds dead entries.

    It belongs to the event loop on which it is first used. A call is the awaiting of something by one task: also one
    step of an asynchronous generator, but never what lies around a `yield`, where it would cancel the generator's
    reader.

    Examples
    --------
    >>> watch = watchdog.enter(at)
    ... try:
    ...     answer = await work()
    ... except BaseException as error:
    ...     if watchdog.leave(watch, error):
    ...         raise DeadlineExceeded("...") from error
    ...     raise
    ... watchdog.leave(watch)
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watches: dict[Watch, None] = {}  # in order of their deadlines
        self._latest = -math.inf  # deadline among all that were ever in there
        self._timer: asyncio.Handle | None = None  # never later than the first of them

    def enter(self, at: float) -> Watch:
        """Watch over the running task from here to `leave`, which must follow however the call ends.

        Parameters
        ----------
        at : float
            The deadline, on the running loop's clock in seconds. One that has passed expires in the loop's next turn;
            infinity never does.

        Raises
        ------
        RuntimeError
            No task runs, or one of another loop than the watchdog's.
        """
        task = current_task(self._loop)  # twice as fast as looking the running loop up
        if task is None:
            raise RuntimeError("a watchdog watches over a task of the event loop that it was first used on")
        watch = Watch(at, task, task.cancelling())
        if self._latest <= at < _NEVER:
            self._latest = at
            self._watches[watch] = None
            if self._timer is None:
                self._arm(at)
        else:
            watch.timer = self._call_at(at, _expire, watch)
        return watch

    def leave(self, watch: Watch, error: BaseException | None = None) -> bool:
        """End a watch; say whether its deadline is what ended the call, so that the caller must raise its own error.

        As with `asyncio.timeout`, it is not where the call came to an end of its own all the same, nor where somebody
        else has asked for the task's cancellation meanwhile: then `error`, or the result, goes on its way.

        Parameters
        ----------
        watch : Watch
            From `enter`; each must leave once.
        error : BaseException or None
            What the call raised, if anything.
        """
        if watch.timer is not None:
            watch.timer.cancel()
        elif not watch.expired:
            del self._watches[watch]
            return False
        if not watch.expired:
            return False
        others = watch.task.uncancel() > watch.cancelling
        return isinstance(error, CancelledError) and not others

    def close(self) -> None:
        """Take the timer back, which else stays set for the last call that came, even where that has left.

        For the end, when no call is under way: one that is would lose its deadline.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer = self._call_at(at, self._fire, at)

    def _fire(self, at: float) -> None:
        assert self._loop is not None
        # a loop may fire by its clock's resolution too early, uvloop by up to a millisecond
        due = max(at, self._loop.time())
        expired = list(takewhile(lambda watch: watch.at <= due, self._watches))
        for watch in expired:
            del self._watches[watch]
        oldest = next(iter(self._watches), None)
        if oldest is None:
            self._timer = None
        else:
            self._arm(oldest.at)
        for watch in expired:
            _expire(watch)

    def _call_at(self, at: float, callback: Callable[[*Ts], None], *args: *Ts) -> asyncio.Handle:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        nobodys = Context()  # the timer outlives whoever sets it, and must not hold what their turn has in its own
        if at <= self._loop.time():
            return self._loop.call_soon(callback, *args, context=nobodys)  # a timer would let one more turn pass
        return self._loop.call_at(at, callback, *args, context=nobodys)


def _expire(watch: Watch) -> None:
    watch.expired = True
    watch.task.cancel()


class TimeLimit:
    """Bounds the body of a ``with``: `asyncio.timeout_at` by a watchdog, and as that raises `TimeoutError`.

    Parameters
    ----------
    watchdog : Watchdog
    at : float
        On the running loop's clock, in seconds.
    """

    __slots__ = ("_at", "_watch", "_watchdog")

    def __init__(self, watchdog: Watchdog, at: float) -> None:
        self._watchdog = watchdog
        self._at = at
        self._watch: Watch | None = None

    def __enter__(self) -> Self:
        self._watch = self._watchdog.enter(self._at)
        return self

    def lift(self) -> None:
        """Give the rest of the body all the time it wants."""
        assert self._watch is not None, "the limit was lifted before"
        self._watchdog.leave(self._watch)
        self._watch = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._watch is not None and self._watchdog.leave(self._watch, error):
            raise TimeoutError from error
