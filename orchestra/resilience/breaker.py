"""The circuit breaker: CLOSED, OPEN and HALF_OPEN as in the architecture's diagram, held by permits.

A permit carries the generation of the breaker that gave it out, and each change of state begins a new generation, so
what comes back late, or from the twin of a probe that has already decided, cannot move a state that it knows nothing
about (gobreaker's generations). The core is plain: state, event and time in, state out. There are no timers and no
tasks; OPEN ends when somebody looks after its time.

    contract: `BreakerPolicy`, `outcome_of`;  state: `_Closed`, `_Open`, `_HalfOpen`;  behaviour: `Permit`, `Breaker`
"""

from collections.abc import Callable
from types import TracebackType
from typing import ClassVar, Literal, Protocol

from msgspec import Struct

from orchestra.errors import (
    BreakerOpen,
    OrchestraError,
    Overloaded,
    ProviderOverloaded,
    ProviderRefused,
    ShuttingDown,
)
from orchestra.events import BreakerChanged
from orchestra.policies import BreakerPolicy

State = Literal["CLOSED", "OPEN", "HALF_OPEN"]
Outcome = Literal["success", "failure", "dropped"]

_NEUTRAL = (Overloaded, ProviderOverloaded, ProviderRefused, BreakerOpen, ShuttingDown)


class BreakerStatus(Struct, frozen=True):
    """A breaker at one moment, for pages and metrics. Counts belong to the current state and are 0 in the others.

    Parameters
    ----------
    failures : int
        Consecutive failures so far, in CLOSED.
    probes : int
        Probe slots taken, in HALF_OPEN.
    successes : int
        Successful probes so far, in HALF_OPEN.
    retry_after_seconds : float
        Until a call may be let through; 0 where it would be now.
    """

    name: str
    state: State
    failures: int = 0
    probes: int = 0
    successes: int = 0
    retry_after_seconds: float = 0.0


def outcome_of(error: BaseException | None) -> Outcome:
    """Say what the end of a call tells about the health of what was called.

    Cancellation and other exits tell nothing, nor do overload (429, our own shedding and rejections) and faults of the
    request itself: those drop the permit. Every other error is a failure, a deadline of ours among them.
    """
    if error is None:
        return "success"
    if not isinstance(error, Exception) or isinstance(error, _NEUTRAL):
        return "dropped"
    return "dropped" if isinstance(error, OrchestraError) and error.status < 500 else "failure"


class Permit:
    """Leave to make one call, settled once: the first of `success`, `failure` and `drop` counts, more do nothing."""

    __slots__ = ("_breaker", "admitted_at", "generation", "settled")

    def __init__(self, breaker: "Breaker", generation: int, admitted_at: float) -> None:
        self._breaker = breaker
        self.generation = generation
        self.admitted_at = admitted_at
        self.settled = False

    def success(self) -> None:
        """The call did what it should."""
        self._breaker._settle(self, "success", None)

    def failure(self, error: BaseException) -> None:
        """The call failed by a fault of what was called."""
        self._breaker._settle(self, "failure", error)

    def drop(self) -> None:
        """The call ended without telling anything about what was called: give its slot back."""
        self._breaker._settle(self, "dropped", None)


_Move = tuple["_State", str]  # the next state, and why


class _State(Protocol):
    name: ClassVar[State]

    def tick(self, now: float) -> _Move | None:
        """What the passing of time does."""

    def admit(self, permit: Permit) -> float | None:
        """Let the call through (None), or say after how many seconds to come again."""

    def settle(self, permit: Permit, outcome: Outcome, error: BaseException | None, now: float) -> _Move | None:
        """What the outcome of a call that this state let through does."""

    def status(self, breaker: str, now: float) -> BreakerStatus: ...


class _Closed:
    name: ClassVar[State] = "CLOSED"

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._failures = 0

    def tick(self, now: float) -> _Move | None:
        return None

    def admit(self, permit: Permit) -> float | None:
        return None

    def settle(self, permit: Permit, outcome: Outcome, error: BaseException | None, now: float) -> _Move | None:
        if outcome == "success":
            self._failures = 0
        elif outcome == "failure":
            self._failures += 1
            if self._failures >= self._policy.failures_max:
                reason = f"{self._failures} consecutive failures, the last {type(error).__name__}"
                return _Open(self._policy, now + self._policy.open_seconds), reason
        return None

    def status(self, breaker: str, now: float) -> BreakerStatus:
        return BreakerStatus(breaker, self.name, failures=self._failures)


class _Open:
    name: ClassVar[State] = "OPEN"

    def __init__(self, policy: BreakerPolicy, until: float) -> None:
        self._policy = policy
        self._until = until

    def tick(self, now: float) -> _Move | None:
        return (_HalfOpen(self._policy), "its open time is over") if now >= self._until else None

    def admit(self, permit: Permit) -> float | None:
        return self._until - permit.admitted_at

    def settle(self, permit: Permit, outcome: Outcome, error: BaseException | None, now: float) -> _Move | None:
        raise AssertionError("OPEN lets nothing through, so nothing of its generation comes back")

    def status(self, breaker: str, now: float) -> BreakerStatus:
        return BreakerStatus(breaker, self.name, retry_after_seconds=max(0.0, self._until - now))


class _HalfOpen:
    name: ClassVar[State] = "HALF_OPEN"

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._probes: dict[Permit, None] = {}  # those that hold a slot, oldest first
        self._successes = 0

    def tick(self, now: float) -> _Move | None:
        """Take the slots of hung probes back.

        Only the slot: what such a probe says in the end still counts while this state lasts, or a provider whose
        healthy streams outlast `open_seconds` could never prove itself.
        """
        while self._probes and now - (oldest := next(iter(self._probes))).admitted_at >= self._policy.open_seconds:
            del self._probes[oldest]
        return None

    def admit(self, permit: Permit) -> float | None:
        if len(self._probes) < self._policy.probes_max:
            self._probes[permit] = None
            return None
        return self._seconds_to_slot(permit.admitted_at)

    def settle(self, permit: Permit, outcome: Outcome, error: BaseException | None, now: float) -> _Move | None:
        self._probes.pop(permit, None)
        if outcome == "failure":
            return _Open(self._policy, now + self._policy.open_seconds), f"a probe failed with {type(error).__name__}"
        if outcome == "success":
            self._successes += 1
            if self._successes >= self._policy.successes_min:
                return _Closed(self._policy), f"{self._successes} probes succeeded"
        return None

    def status(self, breaker: str, now: float) -> BreakerStatus:
        taken = len(self._probes)
        wait = self._seconds_to_slot(now) if taken >= self._policy.probes_max else 0.0
        return BreakerStatus(breaker, self.name, probes=taken, successes=self._successes, retry_after_seconds=wait)

    def _seconds_to_slot(self, now: float) -> float:
        """Return the time until the oldest probe loses its slot: the longest that one can take to come free."""
        return next(iter(self._probes)).admitted_at + self._policy.open_seconds - now


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
        Told of every change of state, after it has happened.
    """

    def __init__(
        self, name: str, policy: BreakerPolicy, now: Callable[[], float], on_change: Callable[[BreakerChanged], None]
    ) -> None:
        self.name = name
        self.policy = policy
        self._now = now
        self._on_change = on_change
        self._state: _State = _Closed(policy)
        self._generation = 0

    @property
    def state(self) -> State:
        """The state at this moment. Looking is what ends an OPEN whose time is over."""
        self._tick(self._now())
        return self._state.name

    def acquire(self) -> Permit:
        """Return a permit for one call, which the caller must settle.

        Raises
        ------
        BreakerOpen
            The call must not be made; the error says which breaker, its state, and when to come again.
        """
        now = self._now()
        self._tick(now)
        permit = Permit(self, self._generation, now)
        wait = self._state.admit(permit)
        if wait is None:
            return permit
        raise BreakerOpen(
            f"{self.name} is failing, its circuit breaker is {self._state.name}: try again in {wait:.1f} s",
            retry_after_seconds=wait,
        )

    def permit(self) -> "PermitScope":
        """Hold a permit for the length of an ``async with`` block, and settle it by how the block ends (`outcome_of`).

        A block that settles the permit itself has the last word.
        """
        return PermitScope(self)

    def describe(self) -> BreakerStatus:
        """Return what a page shows of this breaker."""
        now = self._now()
        self._tick(now)
        return self._state.status(self.name, now)

    def _tick(self, now: float) -> None:
        if move := self._state.tick(now):
            self._change(move, now)

    def _settle(self, permit: Permit, outcome: Outcome, error: BaseException | None) -> None:
        if permit.settled:
            return
        permit.settled = True
        if permit.generation != self._generation:
            return
        now = self._now()
        if move := self._state.settle(permit, outcome, error, now):
            self._change(move, now)

    def _change(self, move: _Move, now: float) -> None:
        before, (self._state, reason) = self._state, move
        self._generation += 1
        self._on_change(BreakerChanged(now, self.name, before.name, self._state.name, reason))


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
        self._breaker._settle(self._permit, outcome_of(error), error)
