"""Operators' standing orders: a level latched, a breaker held open, switched off or only watched.

An order counts at once where it is given, and in the whole service as soon as the fleet can be told. Each target is a
register that the last writer wins, and the end of an order is an order too (``release``, ``reset``), not its absence:
so an instance that sees nothing, or something older than it knows, tells the fleet again, and neither a stale read nor
a fleet that forgot everything lifts a latch.

    contract: `Order`, `ACTIONS`;  behaviour: `Orders`
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec import Struct

from orchestra.errors import InvalidRequest
from orchestra.events import Hook, OperatorActed, UnexpectedError
from orchestra.resilience.degradation import Degradation, Level

LEVEL = "level"
BREAKER = "breaker:"
REASON_CHARS_MAX = 500
LATER_SECONDS = 0.001
"""By how much an order is later than the one it replaces, where the clock of who gives it goes slow."""


class Order(Struct, frozen=True):
    """What an operator ordered of one target, and why; `at` is Unix time in seconds."""

    action: str
    reason: str
    at: float


class Switch(Protocol):
    """What an operator can do to a breaker."""

    def force_open(self, reason: str) -> None:
        """Reject everything."""

    def disable(self, reason: str) -> None:
        """Let everything through."""

    def observe_only(self, reason: str) -> None:
        """Let everything through, and go on counting."""

    def reset(self, reason: str) -> None:
        """Begin anew, by its own judgement."""


_SWITCHES: dict[str, Callable[[Switch, str], None]] = {
    "open": lambda breaker, reason: breaker.force_open(reason),
    "disable": lambda breaker, reason: breaker.disable(reason),
    "observe": lambda breaker, reason: breaker.observe_only(reason),
    "reset": lambda breaker, reason: breaker.reset(reason),
}
_LATCHES = {f"latch {level.name}": level for level in Level}
ACTIONS = {LEVEL: (*_LATCHES, "release"), BREAKER: tuple(_SWITCHES)}
"""What can be ordered of the level and of a breaker, whose target is this prefix and its name."""
_ENDS = ("release", "reset")


class Orders:
    """Carries orders out, and keeps those that stand.

    Parameters
    ----------
    degradation : Degradation
    breakers : mapping of str to Switch
        By name.
    wall : callable
        Unix time in seconds.
    now : callable
        Monotonic seconds.
    hook : Hook
        Told of every order that is carried out, and once of each that cannot be read.
    """

    def __init__(
        self,
        degradation: Degradation,
        breakers: Mapping[str, Switch],
        wall: Callable[[], float],
        now: Callable[[], float],
        hook: Hook,
    ) -> None:
        self._degradation = degradation
        self._breakers = {BREAKER + name: breaker for name, breaker in breakers.items()}
        self._wall = wall
        self._now = now
        self._hook = hook
        self._standing: dict[str, Order] = {}
        self._unreadable: dict[str, str] = {}

    @property
    def standing(self) -> dict[str, Order]:
        """The last order of each target that had any."""
        return dict(self._standing)

    def give(self, target: str, action: str, reason: str) -> str:
        """Carry out an order given here, and return it as the fleet is told it.

        Raises
        ------
        InvalidRequest
            There is no such target or action, or no reason of at most `REASON_CHARS_MAX` characters.
        """
        self._check(target, action)
        if not reason.strip() or len(reason) > REASON_CHARS_MAX:
            raise InvalidRequest(f"give a reason of 1 to {REASON_CHARS_MAX} characters", field="$.reason")
        at = self._wall()
        if before := self._standing.get(target):
            at = max(at, before.at + LATER_SECONDS)
        order = Order(action, reason, at)
        self._carry_out(target, order)
        return _text(order)

    def merge(self, theirs: Mapping[str, str]) -> dict[str, str]:
        """Carry out what the fleet knows better, and return what it must be told, by target."""
        tell = {}
        for target in (LEVEL, *self._breakers):
            ours, text = self._standing.get(target), theirs.get(target)
            order = None if text is None else self._read(target, text)
            if order is not None and (ours is None or _rank(order) > _rank(ours)):
                if ours is None and order.action in _ENDS:
                    self._standing[target] = order  # the end of what never began here
                else:
                    self._carry_out(target, order)
            elif ours is not None and text != _text(ours) and (text is None or order is not None):
                tell[target] = _text(ours)
        return tell

    def _check(self, target: str, action: str) -> None:
        if target != LEVEL and target not in self._breakers:
            raise InvalidRequest(
                f"there is no target {target!r}: give one of {', '.join((LEVEL, *self._breakers))}", field="$.target"
            )
        actions = ACTIONS[LEVEL if target == LEVEL else BREAKER]
        if action not in actions:
            raise InvalidRequest(
                f"{target} has no action {action!r}: give one of {', '.join(actions)}", field="$.action"
            )

    def _carry_out(self, target: str, order: Order) -> None:
        self._standing[target] = order
        self._hook(OperatorActed(self._now(), target, order.action, order.reason))
        if target != LEVEL:
            _SWITCHES[order.action](self._breakers[target], order.reason)
        elif order.action in _LATCHES:
            self._degradation.latch(_LATCHES[order.action], order.reason)
        else:
            self._degradation.release()

    def _read(self, target: str, text: str) -> Order | None:
        """Read an order of the fleet; one of another version is left alone, and told once."""
        try:
            order = msgspec.json.decode(text, type=Order)
            self._check(target, order.action)
        except (msgspec.DecodeError, InvalidRequest) as error:
            if self._unreadable.get(target) != text:
                self._unreadable[target] = text
                what = f"the fleet's order for {target} cannot be read, and is not followed: {error}"
                self._hook(UnexpectedError(self._now(), correlation_id="", where="Orders.merge", traceback=what))
            return None
        return order


def _text(order: Order) -> str:
    return msgspec.json.encode(order).decode()


def _rank(order: Order) -> tuple[float, str]:
    """Return what orders of one target are compared by: their time, and at the same time anything that decides."""
    return order.at, _text(order)
