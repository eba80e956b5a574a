"""The circuit breaker: CLOSED, OPEN and HALF_OPEN as in the architecture's diagram, held by permits.

Each state is a small object, and each change of state makes a new one. A permit carries the very state that let its
call through: that object is the breaker's generation (gobreaker's idea), so what comes back late, or from the twin of a
probe that has already decided, cannot move a state that it knows nothing about. The core is plain: state, event and
time in, state out. There are no timers and no tasks; OPEN ends when somebody looks after its time.

    contract: `BreakerStatus`, `outcome_of`;  state: `_State` and its kinds;  behaviour: `Permit`, `Breaker`
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeVar, TypeVarTuple

from msgspec import Struct

from orchestra import limits
from orchestra.errors import (
    BreakerOpen,
    DeadlineShortened,
    FeatureOff,
    OrchestraError,
    Overloaded,
    ProviderOverloaded,
    ProviderRefused,
    ShuttingDown,
    kind_of,
)
from orchestra.events import BreakerChanged
from orchestra.model import Tally
from orchestra.policies import BreakerPolicy
from orchestra.resilience.window import CountWindow, TimeWindow, Window

State = Literal["CLOSED", "OPEN", "HALF_OPEN"]
Mode = Literal["automatic", "forced_open", "disabled", "observing"]
Outcome = Literal["success", "failure", "dropped"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_NEUTRAL = (
    BreakerOpen,
    DeadlineShortened,
    FeatureOff,
    Overloaded,
    ProviderOverloaded,
    ProviderRefused,
    ShuttingDown,
)
_LOG = logging.getLogger(__name__)


class BreakerStatus(Struct, frozen=True, kw_only=True):
    """A breaker at one moment, for pages, metrics and health. In mode observing, `state` is what it would be.

    Parameters
    ----------
    calls, failures, slow : int
        In the window, in CLOSED; 0 in the other states.
    failure_rate, slow_rate : float or None
        Shares of those calls, 0 to 1; None where there are none.
    consecutive_failures : int
        Since the last success, in CLOSED.
    probes : int
        Probe slots taken, in HALF_OPEN.
    successes : int
        Successful probes so far, in HALF_OPEN.
    retry_after_seconds : float
        Until a call may be let through; 0 where it would be now.
    relapses : int
        Steps by which the next OPEN will be longer than the first.
    rejected : int
        Calls that were not let through, ever.
    late : int
        Calls that ended in another state than the one that let them through, ever.
    """

    name: str
    state: State
    mode: Mode = "automatic"
    calls: int = 0
    failures: int = 0
    slow: int = 0
    failure_rate: float | None = None
    slow_rate: float | None = None
    consecutive_failures: int = 0
    probes: int = 0
    successes: int = 0
    retry_after_seconds: float = 0.0
    relapses: int = 0
    rejected: int = 0
    late: int = 0


def outcome_of(error: BaseException | None) -> Outcome:
    """Say what the end of a call tells about the health of what was called.

    Cancellation and other exits tell nothing, nor do overload (429, our own shedding and rejections), a deadline that
    the caller shortened, and faults of the request itself: those drop the permit. Every other error is a failure, a
    deadline of ours among them.
    """
    if error is None:
        return "success"
    if not isinstance(error, Exception) or isinstance(error, _NEUTRAL):
        return "dropped"
    return "dropped" if isinstance(error, OrchestraError) and error.status < 500 else "failure"


class CallRejected(BreakerOpen):
    """A fresh error for each rejection, which words itself only when it is read: there may be a storm of them.

    Parameters
    ----------
    breaker : str
    state : str
    retry_after_seconds : float
    """

    __slots__ = ("breaker", "retry_after_seconds", "state")  # a third cheaper than in a dictionary
    field = None

    def __init__(self, breaker: str, state: State, retry_after_seconds: float) -> None:
        self.breaker = breaker
        self.state = state
        self.retry_after_seconds = retry_after_seconds

    def __getattr__(self, name: str) -> str:
        if name != "detail":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        wait = f"{self.retry_after_seconds:.1f} s"
        return f"{self.breaker} is failing, its circuit breaker is {self.state}: try again in {wait}"

    def __str__(self) -> str:
        return self.detail


class Permit:
    """Leave to make one call, settled once: the first of `settle` and its three parts counts, more do nothing.

    Parameters
    ----------
    state : _State or None
        What let the call through; None for a call that the state would have rejected, had it not only been observing.
    admitted_at : float
    """

    __slots__ = ("_breaker", "admitted_at", "responded_at", "settled", "state")

    def __init__(self, breaker: "Breaker", state: "_State | None", admitted_at: float) -> None:
        self._breaker = breaker
        self.state = state
        self.admitted_at = admitted_at
        self.responded_at: float | None = None
        self.settled = False

    def responded(self) -> None:
        """The first item of a stream is here: this moment, and not the stream's end, says whether the call was slow."""
        if not self.settled and self.responded_at is None:
            self._breaker._responded(self)

    def success(self) -> None:
        """The call did what it should."""
        if not self.settled:
            self.settled = True
            self._breaker._ended(self, False, None)

    def failure(self, error: BaseException | None = None) -> None:
        """The call failed by a fault of what was called; without an `error` where its result shows that."""
        if not self.settled:
            self.settled = True
            self._breaker._ended(self, True, error)

    def drop(self) -> None:
        """The call ended without telling anything about what was called: give its slot back."""
        if not self.settled:
            self.settled = True
            self._breaker._dropped(self)

    def settle(self, error: BaseException | None) -> None:
        """Settle by how the call ended: by the breaker's predicates and policy, and otherwise by `outcome_of`."""
        if error is None:
            self.success()
        elif self._breaker.outcome_of(error) == "failure":
            self.failure(error)
        else:
            self.drop()


_Move = tuple["_State", str] | None  # the next state and why, or None to stay


@dataclass(frozen=True, slots=True)
class _Rules:
    """What all states of a breaker act on, and how they make one another."""

    policy: BreakerPolicy
    random: Callable[[], float]

    def closed(self, now: float, *, relapses: int = 0, learns_at: float = float("-inf")) -> "_Closed":
        return _Closed(self, now, relapses, learns_at)

    def opened(self, now: float, relapses: int, error: BaseException | None) -> "_Open":
        """Open for longer with each relapse (Envoy's outlier ejection), and for as long as `error` asks in any case."""
        policy = self.policy
        grown = min(policy.open_seconds_max, policy.open_seconds * policy.open_growth**relapses)
        jittered = min(policy.open_seconds_max, grown * (1 + policy.open_jitter * self.random()))
        # a step beyond the longest would change nothing but how long the way back takes
        longer = relapses + 1 if grown < policy.open_seconds_max else relapses
        return _Open(self, now + max(jittered, _asked_seconds(error)), longer)


def _asked_seconds(error: BaseException | None) -> float:
    """Return the Retry-After that `error` carries, within bounds; 0 where it carries none that can be used."""
    asked = getattr(error, "retry_after_seconds", None)
    if isinstance(asked, int | float) and asked > 0:
        return min(float(asked), limits.RETRY_AFTER_SECONDS_MAX)
    return 0.0


class _State:
    """What is the same in most states: time, outcomes and the fleet move nothing."""

    __slots__ = ()

    name: ClassVar[State]

    def tick(self, now: float) -> _Move:
        """What the passing of time does."""
        return None

    def wait(self, now: float) -> float:
        """Say after how many seconds a call may come, 0 where it may now."""
        return 0.0

    def hold(self, permit: Permit) -> None:
        """Take the call in for which `wait` was 0."""

    def end(self, permit: Permit, failed: bool, slow: bool, error: BaseException | None, now: float) -> _Move:
        """What the success or failure of a call that this state let through does."""
        return None

    def drop(self, permit: Permit) -> None:
        """What the end of a call that tells nothing does."""

    def respond(self, permit: Permit, slow: bool, now: float) -> _Move:
        """What the first item of a stream that this state let through does."""
        return None

    def learn(self, fleet: Tally, now: float) -> _Move:
        """What the fleet's calls do."""
        return None

    def counts(self, now: float) -> dict[str, Any]:
        """Return what `BreakerStatus` shows of this state."""
        return {}


class _Disabled(_State):
    __slots__ = ()
    name: ClassVar[State] = "CLOSED"


class _ForcedOpen(_State):
    __slots__ = ("_seconds",)
    name: ClassVar[State] = "OPEN"

    def __init__(self, policy: BreakerPolicy) -> None:
        self._seconds = policy.open_seconds  # nobody knows when the operator lets go: look again after a while

    def wait(self, now: float) -> float:
        return self._seconds


class _Closed(_State):
    __slots__ = ("_learns_at", "_policy", "_relapses", "_rules", "_since", "consecutive", "window")
    name: ClassVar[State] = "CLOSED"

    def __init__(self, rules: _Rules, now: float, relapses: int, learns_at: float) -> None:
        policy = rules.policy
        self._rules = rules
        self._policy = policy
        self._since = now
        self._relapses = relapses
        self._learns_at = learns_at
        self.consecutive = 0
        self.window: Window = (
            TimeWindow(policy.window_seconds, now) if policy.window == "time" else CountWindow(policy.window_calls)
        )

    def end(self, permit: Permit, failed: bool, slow: bool, error: BaseException | None, now: float) -> _Move:
        window = self.window
        window.record(now, failed, slow)
        self.consecutive = self.consecutive + 1 if failed else 0
        return self.judge(error, now) if window.failures or window.slow else None

    def judge(self, error: BaseException | None, now: float) -> _Move:
        """Say what follows from what has been counted, the end of the last call, by `error` or not, included."""
        if self.consecutive >= self._policy.failures_max:
            return self._open(f"{self.consecutive} consecutive failures, {_last(error)}", error, now)
        reason = self._verdict(self.window.calls, self.window.failures, self.window.slow)
        return self._open(reason, error, now) if reason else None

    def learn(self, fleet: Tally, now: float) -> _Move:
        """Trip where the fleet's rates say so, but not by calls from before this breaker closed."""
        if now < self._learns_at:
            return None
        reason = self._verdict(fleet.calls, fleet.failures, fleet.slow)
        return self._open(f"in the whole fleet, {reason}", None, now) if reason else None

    def counts(self, now: float) -> dict[str, Any]:
        window = self.window
        window.advance(now)
        calls, failures, slow = window.calls, window.failures, window.slow
        return {
            "calls": calls,
            "failures": failures,
            "slow": slow,
            "failure_rate": failures / calls if calls else None,
            "slow_rate": slow / calls if calls else None,
            "consecutive_failures": self.consecutive,
            "relapses": self._relapses_left(now),
        }

    def _verdict(self, calls: int, failures: int, slow: int) -> str | None:
        """Say which rate is too high, if one is. The quotient, unlike a product, meets a limit such as 0.3 exactly."""
        policy = self._policy
        if calls < policy.calls_min:
            return None
        if failures / calls >= policy.failure_rate_max:
            return f"{failures} of {calls} calls failed"
        if policy.slow_seconds is not None and slow / calls >= policy.slow_rate_max:
            return f"{slow} of {calls} calls took {policy.slow_seconds:g} s or longer"
        return None

    def _open(self, reason: str, error: BaseException | None, now: float) -> _Move:
        return self._rules.opened(now, self._relapses_left(now), error), reason

    def _relapses_left(self, now: float) -> int:
        """Return the steps of growth that are left after so much time without a relapse."""
        return max(0, self._relapses - int((now - self._since) / self._policy.recovery_seconds))


class _Open(_State):
    __slots__ = ("_relapses", "_rules", "_until")
    name: ClassVar[State] = "OPEN"

    def __init__(self, rules: _Rules, until: float, relapses: int) -> None:
        self._rules = rules
        self._until = until
        self._relapses = relapses

    def tick(self, now: float) -> _Move:
        return (_HalfOpen(self._rules, self._relapses), "its open time is over") if now >= self._until else None

    def wait(self, now: float) -> float:
        return self._until - now

    def counts(self, now: float) -> dict[str, Any]:
        return {"relapses": self._relapses}


class _HalfOpen(_State):
    __slots__ = ("_policy", "_probes", "_relapses", "_rules", "_successes")
    name: ClassVar[State] = "HALF_OPEN"

    def __init__(self, rules: _Rules, relapses: int) -> None:
        self._rules = rules
        self._policy = rules.policy
        self._relapses = relapses
        self._probes: dict[Permit, float] = {}  # those that hold a slot, oldest first, and since when
        self._successes = 0

    def tick(self, now: float) -> _Move:
        """Take the slots of hung probes back.

        Only the slot: what such a probe says in the end still counts while this state lasts, or a provider whose
        healthy streams outlast `probe_seconds_max` could never prove itself.
        """
        while self._probes and self._seconds_to_slot(now) <= 0:
            del self._probes[next(iter(self._probes))]
        return None

    def wait(self, now: float) -> float:
        return 0.0 if len(self._probes) < self._policy.probes_max else self._seconds_to_slot(now)

    def hold(self, permit: Permit) -> None:
        self._probes[permit] = permit.admitted_at

    def end(self, permit: Permit, failed: bool, slow: bool, error: BaseException | None, now: float) -> _Move:
        self.drop(permit)
        if failed:
            return self._reopen(f"a probe failed, {_last(error)}", error, now)
        if slow:
            return self._reopen_slow(now)
        self._successes += 1
        if self._successes < self._policy.successes_min:
            return None
        # the fleet still counts calls from before this moment, for as long as its window reaches back
        learns_at = now + self._policy.window_seconds
        closed = self._rules.closed(now, relapses=self._relapses, learns_at=learns_at)
        return closed, f"{self._successes} probes succeeded"

    def drop(self, permit: Permit) -> None:
        self._probes.pop(permit, None)

    def respond(self, permit: Permit, slow: bool, now: float) -> _Move:
        """A probe that is slow to respond has decided, however well its stream may end."""
        return self._reopen_slow(now) if slow else None

    def counts(self, now: float) -> dict[str, Any]:
        return {"probes": len(self._probes), "successes": self._successes, "relapses": self._relapses}

    def _seconds_to_slot(self, now: float) -> float:
        """Return the time until the oldest probe loses its slot: the longest that one can take to come free."""
        return next(iter(self._probes.values())) + self._policy.probe_seconds_max - now

    def _reopen(self, reason: str, error: BaseException | None, now: float) -> _Move:
        return self._rules.opened(now, self._relapses, error), reason

    def _reopen_slow(self, now: float) -> _Move:
        return self._reopen(f"a probe took {self._policy.slow_seconds:g} s or longer", None, now)


def _last(error: BaseException | None) -> str:
    return "by its result" if error is None else f"the last {type(error).__name__}"


class Breaker:
    """Stops calls to what keeps failing, and tries carefully whether it has recovered.

    Parameters
    ----------
    name : str
        What it protects, for errors, events and metrics.
    policy : BreakerPolicy
    now : callable
        Monotonic seconds, such as the running loop's `time`. Wall time plays no role.
    on_change : callable
        Told of every change of state, and every order of an operator, after it has happened. What it raises goes to
        the log: it is nothing to the call that happened to be under way.
    random : callable
        Chance in [0, 1), for the jitter of the open time.
    ignore, record : callable, optional
        Whether an error says nothing, and whether it is a failure, as the policy's fields of these names; `ignore` is
        asked first. Cancellation is not theirs to judge. What they raise goes to the log, and counts as no.
    failed_result : callable, optional
        Whether the result of a `call` shows that the call failed.
    """

    def __init__(
        self,
        name: str,
        policy: BreakerPolicy,
        now: Callable[[], float],
        on_change: Callable[[BreakerChanged], None],
        random: Callable[[], float],
        *,
        ignore: Callable[[BaseException], bool] | None = None,
        record: Callable[[BaseException], bool] | None = None,
        failed_result: Callable[[Any], bool] | None = None,
    ) -> None:
        self.name = name
        self.policy = policy
        self._now = now
        self._on_change = on_change
        self._ignore = ignore
        self._record = record
        self._failed_result = failed_result
        self._slow_seconds = policy.slow_seconds
        self._rules = _Rules(policy, random)
        self._state: _State = self._rules.closed(now())
        self._mode: Mode = "automatic"
        self._calls = self._failures = self._slow = 0  # ended since the last `take_tally`
        self._taken = 0  # calls of all tallies that were taken
        self._rejected = 0
        self._late = 0

    @property
    def state(self) -> State:
        """The state at this moment. Looking is what ends an OPEN whose time is over."""
        return self._look(self._now()).name

    @property
    def mode(self) -> Mode:
        """What an operator has ordered, or ``automatic``."""
        return self._mode

    @property
    def ended(self) -> int:
        """Calls that ended in the state that let them through, ever, without the dropped."""
        return self._taken + self._calls

    # --- calls

    def acquire(self) -> Permit:
        """Return a permit for one call, which the caller must settle.

        Raises
        ------
        BreakerOpen
            The call must not be made; the error says which breaker, its state, and when to come again.
        """
        now = self._now()
        state = self._state
        if type(state) is _Closed:
            return Permit(self, state, now)
        wait = state.wait(now)
        if wait <= 0:
            state = self._look(now)
            wait = state.wait(now)
            if wait <= 0:
                permit = Permit(self, state, now)
                state.hold(permit)
                return permit
        self._rejected += 1
        if self._mode == "observing":
            return Permit(self, None, now)
        raise CallRejected(self.name, state.name, wait)

    async def call(self, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await ``fn(*args)``, and settle by how that ends; `fn` is not even called where the breaker rejects.

        Raises
        ------
        BreakerOpen
            As `acquire`. Whatever `fn` raises comes out as it is.
        """
        state = self._state
        if type(state) is not _Closed:
            return await self._call_by_permit(self.acquire(), fn, args)
        # CLOSED lets everything through, so that a permit is only made where there is something to say by it
        started = 0.0 if self._slow_seconds is None else self._now()
        try:
            result = await fn(*args)
        except BaseException as error:
            Permit(self, state, started).settle(error)
            raise
        if state is not self._state or self._failed_result is not None:
            self._settle_result(Permit(self, state, started), result)
            return result
        now = self._now()
        slow = self._slow_seconds is not None and now - started >= self._slow_seconds
        self._calls += 1
        if slow:
            self._slow += 1
        window = state.window
        window.record(now, False, slow)
        state.consecutive = 0
        if (window.failures or window.slow) and (move := state.judge(None, now)):
            self._change(move, now)
        return result

    async def _call_by_permit(self, permit: Permit, fn: Callable[[*Ts], Awaitable[T]], args: tuple[*Ts]) -> T:
        try:
            result = await fn(*args)
        except BaseException as error:
            permit.settle(error)
            raise
        self._settle_result(permit, result)
        return result

    def permit(self) -> "PermitScope":
        """Hold a permit for the length of an ``async with`` block, and settle it by how the block ends.

        A block that settles the permit itself has the last word.
        """
        return PermitScope(self)

    async def stream(self, source: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """Yield the items of `source`, with one permit to its end; the first item says whether the call was slow.

        A reader that closes the stream early says nothing about what was called. `source` is closed in any case.
        """
        try:
            async with self.permit() as permit:
                async for item in source:
                    permit.responded()
                    yield item
        finally:
            if (close := getattr(source, "aclose", None)) is not None:
                await close()

    def outcome_of(self, error: BaseException) -> Outcome:
        """Say what `error` tells about what was called: by predicates and policy, otherwise as `outcome_of` does.

        No policy can make a failure of a cancellation, nor of a deadline that the caller shortened, which has the kind
        of one that is ours.
        """
        if not isinstance(error, Exception) or isinstance(error, DeadlineShortened):
            return "dropped"
        kind = kind_of(error)
        if kind in self.policy.ignore or self._agrees(self._ignore, error):
            return "dropped"
        if kind in self.policy.record or self._agrees(self._record, error):
            return "failure"
        return outcome_of(error)

    # --- operators

    def force_open(self, reason: str) -> None:
        """Reject every call until another order."""
        self._order("forced_open", _ForcedOpen(self.policy), f"forced open: {reason}")

    def disable(self, reason: str) -> None:
        """Let every call through, whatever becomes of it, until another order."""
        self._order("disabled", _Disabled(), f"disabled: {reason}")

    def observe_only(self, reason: str) -> None:
        """Let every call through until another order, and tell the changes that would be made otherwise.

        Calls that would be rejected then count for nothing, so that the changes are those of a breaker that acts.
        """
        self._order("observing", self._anew(), f"observing only: {reason}")

    def reset(self, reason: str) -> None:
        """Begin anew: automatic and CLOSED, with nothing counted and the growth of the open time forgotten."""
        self._order("automatic", self._anew(), f"reset: {reason}")

    # --- the fleet, and pages

    def take_tally(self) -> Tally:
        """Return what ended since this was last asked: calls of the state that they ended in, without the dropped."""
        tally = Tally(self._calls, self._failures, self._slow)
        self._taken += self._calls
        self._calls = self._failures = self._slow = 0
        return tally

    def learn(self, fleet: Tally) -> None:
        """Take note of what all instances saw in the last `window_seconds`: a breaker that is CLOSED trips by it."""
        now = self._now()
        if move := self._look(now).learn(fleet, now):
            self._change(move, now)

    def describe(self) -> BreakerStatus:
        """Return what a page shows of this breaker."""
        now = self._now()
        state = self._look(now)
        return BreakerStatus(
            name=self.name,
            state=state.name,
            mode=self._mode,
            retry_after_seconds=state.wait(now),
            rejected=self._rejected,
            late=self._late,
            **state.counts(now),
        )

    # --- what permits say

    def _responded(self, permit: Permit) -> None:
        now = permit.responded_at = self._now()
        state = permit.state
        if state is self._state and (move := state.respond(permit, self._is_slow(permit, now), now)):
            self._change(move, now)

    def _ended(self, permit: Permit, failed: bool, error: BaseException | None) -> None:
        state = permit.state
        if state is not self._state:
            self._late += state is not None
            return
        now = self._now()
        slow = self._slow_seconds is not None and self._is_slow(permit, now)
        self._calls += 1
        if failed:
            self._failures += 1
        if slow:
            self._slow += 1
        if move := state.end(permit, failed, slow, error, now):
            self._change(move, now)

    def _dropped(self, permit: Permit) -> None:
        if permit.state is self._state:
            permit.state.drop(permit)

    def _settle_result(self, permit: Permit, result: object) -> None:
        if self._agrees(self._failed_result, result):
            permit.failure()
        else:
            permit.success()

    def _is_slow(self, permit: Permit, now: float) -> bool:
        if self._slow_seconds is None:
            return False
        answered_at = now if permit.responded_at is None else permit.responded_at
        return answered_at - permit.admitted_at >= self._slow_seconds

    def _agrees(self, predicate: Callable[[Any], bool] | None, subject: object) -> bool:
        try:
            return predicate is not None and bool(predicate(subject))
        except Exception:
            _LOG.exception("a predicate of the breaker %s failed, which counts as no", self.name)
            return False

    # --- changes of state

    def _look(self, now: float) -> _State:
        """Return the state at this moment."""
        if move := self._state.tick(now):
            self._change(move, now)
        return self._state

    def _anew(self) -> _State:
        now = self._now()
        return self._rules.closed(now, learns_at=now + self.policy.window_seconds)

    def _order(self, mode: Mode, state: _State, reason: str) -> None:
        self._mode = mode
        self._enter(state, reason, self._now())

    def _change(self, move: tuple[_State, str], now: float) -> None:
        state, reason = move
        self._enter(state, f"only observed: {reason}" if self._mode == "observing" else reason, now)

    def _enter(self, state: _State, reason: str, now: float) -> None:
        before, self._state = self._state, state
        try:
            self._on_change(BreakerChanged(now, self.name, before.name, state.name, reason))
        except Exception:
            _LOG.exception("a listener of the breaker %s failed", self.name)


class PermitScope:
    """The thin edge between a breaker and ``async with``."""

    __slots__ = ("_breaker", "_permit")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    async def __aenter__(self) -> Permit:
        self._permit = self._breaker.acquire()
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._permit.settle(error)
