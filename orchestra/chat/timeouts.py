"""One timeout manager for all connections: a heap of when to look at each next, and one timer of the loop.

    contract: `Timed`;  state: a heap;  behaviour: `TimeoutManager`

What happens all the time, activity, costs nothing here: whoever is timed only notes when it was active last. When its
time has come it is looked at, and says when to be looked at again. (The lazy timers of Linux' connection tracking and
of HAProxy's tasks work like that; a timer for each connection that every frame starts anew was rejected.)
"""

import asyncio
from heapq import heapify, heappop, heappush
from typing import Protocol

COMPACT_AT = 64
"""Forgotten entries are swept out when there are more than this many, and more than half of the heap."""


class Timed(Protocol):
    """What is looked at when its time has come."""

    def look(self, now: float) -> float | None:
        """Do what is due at the loop's time `now`, and return when to look again; None: never."""
        ...


class _Entry:
    __slots__ = ("at", "number", "timed")

    def __init__(self, at: float, number: int, timed: Timed | None) -> None:
        self.at = at
        self.number = number
        self.timed = timed

    def __lt__(self, other: "_Entry") -> bool:
        return (self.at, self.number) < (other.at, other.number)


class TimeoutManager:
    """Looks at everything registered when it is time; at most one timer of the running loop is set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[_Entry] = []
        self._entries: dict[Timed, _Entry] = {}
        self._forgotten = 0
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, timed: Timed, at: float) -> None:
        """Look at `timed` at the loop's time `at`, instead of when it was registered for before."""
        self.unregister(timed)
        self._number += 1
        entry = self._entries[timed] = _Entry(at, self._number, timed)
        heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set_timer()

    def unregister(self, timed: Timed) -> None:
        """Forget `timed`, if it is known."""
        entry = self._entries.pop(timed, None)
        if entry is None:
            return
        entry.timed = None  # it stays in the heap until its time, or until there are too many like it
        self._forgotten += 1
        if self._forgotten > COMPACT_AT and self._forgotten > len(self._heap) // 2:
            self._heap = [each for each in self._heap if each.timed is not None]
            heapify(self._heap)
            self._forgotten = 0
        if not self._entries:
            self.close()

    def close(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._heap.clear()
        self._forgotten = 0
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = self._loop.call_at(self._heap[0].at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            while self._heap and self._heap[0].at <= now:
                self._look(heappop(self._heap), now)
        finally:  # a defect of one must not silence the others
            self._set_timer()

    def _look(self, entry: _Entry, now: float) -> None:
        timed = entry.timed
        if timed is None:
            self._forgotten -= 1
            return
        del self._entries[timed]
        again = timed.look(now)
        if again is not None:
            self.register(timed, max(again, now))
