"""Little's law, L = lambda W, as the bookkeeping of a journal: what everybody's stay comes to, counted in two ways.

The number in a system, integrated over a time in which all came and went, is the sum of the times that each was there
(Little, "A proof for the queuing formula", 1961; Stidham's sample-path version needs no probability at all). The first
is made of when each came and left, the second of how long each is said to have stayed; so an event that is missing,
told twice or told of another time shows, whatever the system is.
"""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct

from sim.quantities import show_duration

OFF_US_MAX = 3
"""How far two ways to count one stay may differ: three times are rounded, and two clocks of arrivals a tick apart."""
_US = 1e6


class Balance(Struct, frozen=True):
    """How the two ways to count compare, for one system.

    Parameters
    ----------
    system : str
        Who was in it, as a reader calls them.
    came : int
    number : float
        Mean number in the system (L), from 0 to `until`, from when each came and left.
    stay_seconds : float
        Mean time in the system (W), from how long each is said to have stayed.
    until : float
        End of the time that was looked at, in seconds.
    wrong : str
        The first thing that does not add up; empty where all does.
    """

    system: str
    came: int
    number: float
    stay_seconds: float
    until: float
    wrong: str

    @property
    def held(self) -> bool:
        """Whether the law holds."""
        return not self.wrong

    @property
    def text(self) -> str:
        """Both sides of the law, and what is wrong."""
        rate = self.came / self.until if self.until else 0.0
        right = f"{rate:.6g}/s x {self.stay_seconds:.6g} s = {rate * self.stay_seconds:.6g}"
        said = f"{self.system}: L = {self.number:.6g}, lambda W = {right}"
        return f"{said}; {self.wrong}" if self.wrong else said


class Flow:
    """Who came and left, of one system. Nothing is kept of who has left but the sums, in whole microseconds."""

    def __init__(self, system: str) -> None:
        self._system = system
        self._here: dict[Hashable, int] = {}
        self._came = 0
        self._came_us = 0
        self._left = 0
        self._left_us = 0
        self._stayed_us = 0
        self._until_us = 0
        self._wrong = ""

    def come(self, key: Hashable, at: float) -> None:
        """Note that `key` came."""
        at_us = round(at * _US)
        self._came += 1
        self._came_us += at_us
        if key in self._here:
            self._blame(f"number {key} came twice, the second time at {at:g} s")
        self._here[key] = at_us

    def leave(self, key: Hashable, at: float, seconds: float) -> None:
        """Note that `key` left, and is said to have stayed for `seconds`."""
        at_us, stayed_us = round(at * _US), round(seconds * _US)
        self._left += 1
        self._left_us += at_us
        self._stayed_us += stayed_us
        self._until_us = max(self._until_us, at_us)
        came_us = self._here.pop(key, None)
        if came_us is None:
            self._blame(f"number {key} left at {at:g} s and had not come")
        elif abs(at_us - came_us - stayed_us) > OFF_US_MAX:
            there = f"came at {came_us / _US:g} s and left at {at:g} s"
            self._blame(f"number {key} {there}, and is said to have stayed {seconds:g} s")

    def _blame(self, wrong: str) -> None:
        self._wrong = self._wrong or wrong

    def balance(self, duration_s: float) -> Balance:
        """Return how it comes out over a run that lasts `duration_s` or until the last has left."""
        until_us = max(self._until_us, round(duration_s * _US), *self._here.values(), 0)
        there_us = self._left_us - self._came_us + until_us * (self._came - self._left)
        wrong = self._wrong
        if not wrong and self._here:
            key, came_us = next(iter(self._here.items()))
            others = f" and {len(self._here) - 1} others" if len(self._here) > 1 else ""
            wrong = f"number {key}, which came at {show_duration(came_us / _US)},{others} never left"
        return Balance(
            system=self._system,
            came=self._came,
            number=there_us / until_us if until_us else 0.0,
            stay_seconds=self._stayed_us / _US / self._came if self._came else 0.0,
            until=until_us / _US,
            wrong=wrong,
        )
