"""Which ready callback runs next, and which of two timers with one deadline is first.

`Fifo` (mode "faithful") varies only what reality varies: asyncio promises FIFO for `call_soon`, but the order of
equal deadlines is that of a heap, which is not FIFO, so ties are drawn by seed. `Shuffled` (mode "adversarial") also
draws among the ready callbacks, and so finds schedules that stock asyncio cannot produce: label findings with `mode`.

A schedule gives the loop its ready queue; the next callback is whatever that queue's `popleft` returns. Both picks are
O(1): scanning the ready set was measured elsewhere at 200 times the cost of a task switch.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol


class Ready(Protocol):
    """The callbacks that may run now."""

    def append(self, handle: asyncio.Handle, /) -> None:
        """Add one."""

    def popleft(self) -> asyncio.Handle:
        """Remove and return the one to run next; `IndexError` if there is none."""

    def clear(self) -> None:
        """Forget all."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[asyncio.Handle]: ...


class Schedule(Protocol):
    """Decides what asyncio (or this project's mode) leaves open."""

    @property
    def mode(self) -> str:
        """The label every finding carries: "faithful" or "adversarial"."""

    def ready(self) -> Ready:
        """Return the loop's ready queue."""

    def tie(self) -> float:
        """Return what orders a new timer among others of the same deadline: lowest first."""


class Fifo:
    """Faithful: FIFO as asyncio promises; only timers that tie are permuted.

    Parameters
    ----------
    stream
        Chance for ties, usually ``Streams(seed).stream("schedule")``. A fixed one if left out.
    """

    mode = "faithful"

    def __init__(self, stream: random.Random | None = None) -> None:
        self.tie = (stream or random.Random(0)).random

    def ready(self) -> Ready:
        """Return a plain queue."""
        return deque()


class Shuffled:
    """Adversarial: any ready callback may be next, each with equal chance.

    Parameters
    ----------
    stream
        Chance for every pick and tie.
    """

    mode = "adversarial"

    def __init__(self, stream: random.Random | None = None) -> None:
        self._random = (stream or random.Random(0)).random
        self.tie = self._random

    def ready(self) -> Ready:
        """Return a queue that gives its members in random order."""
        return _Urn(self._random)


class _Urn(list[asyncio.Handle]):
    """A bag: a draw swaps its pick with the last member, so nothing has to move up."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self._draw = draw

    def popleft(self) -> asyncio.Handle:
        last = len(self) - 1
        if last <= 0:
            return self.pop()
        index = int(self._draw() * (last + 1))
        self[index], self[last] = self[last], self[index]
        return self.pop()
