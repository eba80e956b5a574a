"""Several instances seen as one: the fleet's level is its worst instance's, and so are its breakers' states.

What one instance alone tells (`LevelChanged`, `BreakerChanged`) is then told of the fleet, so that whoever asks "is the
breaker open?" or "is the level NORMAL?" asks it of all.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestra.events import BreakerChanged, LevelChanged
from orchestra.resilience.degradation import Level
from sim.journal import InstanceBreakerChanged, InstanceCrashed, InstanceLevelChanged

LEVELS = tuple(level.name for level in Level)
STATES = ("CLOSED", "HALF_OPEN", "OPEN")


class Worst:
    """One thing that every instance has in some state: the worst of them."""

    def __init__(self, states: tuple[str, ...]) -> None:
        self._states = states
        self._of: dict[str, str] = {}  # by instance, without those in the best state
        self.state = states[0]

    def change(self, instance: str, after: str) -> tuple[str, str] | None:
        """Take in that an instance is in another state; return the worst before and now, where that has changed."""
        self._of.pop(instance, None)
        if after != self._states[0]:
            self._of[instance] = after
        before, self.state = self.state, max(self._of.values(), key=self._states.index, default=self._states[0])
        return None if before == self.state else (before, self.state)


class Fleet:
    """The changes of a fleet's level and breakers, made from those of its instances.

    Attributes
    ----------
    leaps : list of InstanceLevelChanged
        Changes of one instance's level that are no adjacent step from where it was.
    steps : int
        Changes of single instances' levels, all in all.
    """

    def __init__(self) -> None:
        self.leaps: list[InstanceLevelChanged] = []
        self.steps = 0
        self._levels: dict[str, str] = {}
        self._level = Worst(LEVELS)
        self._breakers: dict[str, Worst] = {}

    def level(self, entry: InstanceLevelChanged) -> Iterator[LevelChanged]:
        """Yield the change of the fleet's level, if it is one."""
        level = self._levels.get(entry.instance, LEVELS[0])
        step = abs(LEVELS.index(entry.after) - LEVELS.index(level))
        if entry.before != level or step != 1:
            self.leaps.append(entry)
        self.steps += 1
        self._levels[entry.instance] = entry.after
        if changed := self._level.change(entry.instance, entry.after):
            yield LevelChanged(entry.at, *changed, entry.health, f"{entry.instance}: {entry.reason}")

    def breaker(self, entry: InstanceBreakerChanged) -> Iterator[BreakerChanged]:
        """Yield the change of the fleet's breaker, if it is one."""
        worst = self._breakers.setdefault(entry.breaker, Worst(STATES))
        if changed := worst.change(entry.instance, entry.after):
            yield BreakerChanged(entry.at, entry.breaker, *changed, f"{entry.instance}: {entry.reason}")

    def crash(self, entry: InstanceCrashed) -> Iterator[LevelChanged | BreakerChanged]:
        """Yield what changes because an instance has forgotten all."""
        self._levels.pop(entry.instance, None)
        reason = f"{entry.instance} crashed"
        if changed := self._level.change(entry.instance, LEVELS[0]):
            yield LevelChanged(entry.at, *changed, None, reason)
        for name, worst in self._breakers.items():
            if changed := worst.change(entry.instance, STATES[0]):
                yield BreakerChanged(entry.at, name, *changed, reason)
