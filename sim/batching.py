"""Work that several calls have done at once, the slower the more they are: continuous batching.

An inference server decodes one token for each sequence of its batch in a step, and a step takes longer the larger the
batch is, about linearly (Agrawal et al., "Vidur", MLSys 2024; Yu et al., "Orca", OSDI 2022). All calls so proceed at
one common speed, which changes for all whenever one joins or leaves: generalised processor sharing (Kelly,
"Reversibility and Stochastic Networks", 1979, section 3.3).

That is followed exactly and cheaply by a clock that counts work done for each: a call ends when this clock has moved by
the call's own work, and only the earliest end needs a timer. A call that comes or goes costs O(log n), not O(n).
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count

_ROUNDING_S = 1e-9


class Batch:
    """What is being worked on at once.

    Parameters
    ----------
    loop : AbstractEventLoop
    together : int
        How many calls the full batch has.
    slowdown : float
        How many times longer work takes in the full batch than alone, at least 1; in between, in proportion.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, together: int, slowdown: float) -> None:
        self._loop = loop
        self._step = (slowdown - 1.0) / max(1, together - 1)
        self._size = 0
        self._done = 0.0
        self._at = loop.time()
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pace(self) -> float:
        """How many times longer than alone work takes now."""
        return 1.0 + self._step * max(0, self._size - 1)

    @property
    def done(self) -> float:
        """Seconds of work that whoever was here all the time has had done."""
        now = self._loop.time()
        self._done += (now - self._at) / self.pace
        self._at = now
        return self._done

    def join(self) -> None:
        """Make the batch larger by one, and so everybody slower."""
        self._resize(1)

    def leave(self) -> None:
        """Make the batch smaller by one, and so everybody faster."""
        self._resize(-1)

    def finished(self, seconds: float) -> asyncio.Future[None]:
        """Return what is done when `seconds` of work of one of the batch are. Cancelled, it is forgotten."""
        future: asyncio.Future[None] = self._loop.create_future()
        heappush(self._ends, (self.done + seconds, next(self._numbers), future))
        self._look_ahead()
        return future

    def _resize(self, by: int) -> None:
        done = self.done  # at the speed so far
        self._size += by
        if self._size == 0:
            self._ends.clear()  # whoever was cancelled in here is gone
            self._done = 0.0
        else:
            self._done = done
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Set the timer to the earliest end, as things are."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = self._ends
        while ends and ends[0][2].done():
            heappop(ends)
        if ends:
            self._timer = self._loop.call_later(max(0.0, (ends[0][0] - self.done) * self.pace), self._reach)

    def _reach(self) -> None:
        """End what is due: the earliest for certain, since the timer was for it, and what ends with it."""
        self._timer = None
        self._done = max(self.done, self._ends[0][0])
        while self._ends and self._ends[0][0] <= self._done + _ROUNDING_S:
            future = heappop(self._ends)[2]
            if not future.done():
                future.set_result(None)
        self._look_ahead()
