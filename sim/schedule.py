"""Which ready callback runs next, and which of two timers with one deadline is first.

`Fifo` (mode "faithful") varies only what reality varies: asyncio promises FIFO for `call_soon`, but the order of
equal deadlines is that of a heap, which is not FIFO, so ties are drawn by seed. `Shuffled` (mode "adversarial") also
draws among the ready callbacks, and `Prioritised` (mode "pct") gives each task a rank that it keeps; both find
schedules that stock asyncio cannot produce: label findings with `mode`.

A schedule gives the loop its ready queue; the next callback is whatever that queue's `popleft` returns. No pick scans
the ready set: that was measured elsewhere at 200 times the cost of a task switch.

A choice is a pick among two or more that are ready. It is told as a place in FIFO order (0 is what stock asyncio would
run next), so that a log of choices can be replayed, and shrunk, without the schedule that made it (`sim.tape`).
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import Literal, Protocol, get_args

from sim.entropy import Stream, derive

Mode = Literal["faithful", "adversarial", "pct"]
MODES: tuple[Mode, ...] = get_args(Mode)
ORDERS: dict[Mode, str] = {
    "faithful": "faithful: ready callbacks first in, first out, as asyncio promises",
    "adversarial": "adversarial: any ready callback may be next, which stock asyncio does not do",
    "pct": "pct: of the ready tasks always the one of highest rank, which stock asyncio does not do",
}
WINDOW_MAX = 4096
DEPTH = 3
RANKS = 4096  # tasks whose numbers are so far apart share a rank, and so keep FIFO among themselves


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


Note = Callable[[int], object]
"""Told of each choice: the place in FIFO order of what was picked."""


class Schedule(Protocol):
    """Decides what asyncio (or this project's mode) leaves open."""

    @property
    def mode(self) -> Mode:
        """The label every finding carries."""

    def ready(self, note: Note | None = None) -> Ready:
        """Return the loop's ready queue, which tells `note` of its choices."""

    def tie(self) -> float:
        """Return what orders a new timer among others of the same deadline: lowest first."""


class Fifo:
    """Faithful: FIFO as asyncio promises; only timers that tie are permuted.

    Parameters
    ----------
    ties
        Chance for the order of timers that tie, usually ``Streams(seed).stream("schedule.ties")``. A fixed one if left
        out.
    """

    mode: Mode = "faithful"

    def __init__(self, ties: random.Random | None = None) -> None:
        self.tie = (ties or random.Random(0)).random

    def ready(self, note: Note | None = None) -> Ready:
        """Return a plain queue. It chooses nothing, so there is nothing to note."""
        return deque()


class Shuffled:
    """Adversarial: any ready callback may be next, each with equal chance (of more than `WINDOW_MAX`, the newest).

    Parameters
    ----------
    picks
        Chance for every choice.
    ties
        Chance for the order of timers that tie.
    """

    mode: Mode = "adversarial"

    def __init__(self, picks: random.Random | None = None, ties: random.Random | None = None) -> None:
        self._draw = (picks or random.Random(0)).random
        self.tie = (ties or random.Random(1)).random

    def ready(self, note: Note | None = None) -> Ready:
        """Return a queue that gives its members in random order."""
        return _Urn(self._draw, note)


class _Urn(list[asyncio.Handle]):
    """A list in FIFO order: taking one out moves at most `WINDOW_MAX` pointers, quicker than any cleverness."""

    __slots__ = ("_draw", "_note")

    def __init__(self, draw: Callable[[], float], note: Note | None) -> None:
        super().__init__()
        self._draw = draw
        self._note = note

    def popleft(self) -> asyncio.Handle:
        count = len(self)
        if count < 2:
            return self.pop()
        place = int(self._draw() * count) if count <= WINDOW_MAX else count - 1 - int(self._draw() * WINDOW_MAX)
        if self._note:
            self._note(place)
        return self.pop(place)


class Prioritised:
    """Adversarial by rank (PCT): of the ready tasks always the one of highest rank, ranks drawn once a task.

    At `depth - 1` steps, drawn from the run's whole length, the task about to run falls below all others. A bug that
    takes `depth` ordered events among n tasks in k steps shows with probability 1 / (n k ** (depth - 1)) at least;
    one that takes somebody's starvation (depth 1) within a few seeds, where equal chances at each step starve nobody.
    A callback that belongs to no task has a rank of its own.

    Parameters
    ----------
    picks
        Chance for ranks and for the steps at which they change.
    ties
        Chance for the order of timers that tie.
    horizon
        Length of the run in steps, measured (`sim.world.rehearse` does) since a guess too long changes nothing, and one
        too short only the beginning.
    depth
        See above; 1 changes no rank.

    Attributes
    ----------
    picked : int
        Steps so far: what to give as the `horizon` of the next run.

    References
    ----------
    Burckhardt, Kothari, Musuvathi and Nagarakatte, "A randomized scheduler with probabilistic guarantees of finding
    bugs", ASPLOS 2010.
    """

    mode: Mode = "pct"

    def __init__(
        self,
        picks: random.Random | None = None,
        ties: random.Random | None = None,
        *,
        horizon: int = 0,
        depth: int = DEPTH,
    ) -> None:
        picks = picks or random.Random(0)
        self.tie = (ties or random.Random(1)).random
        self.draw = picks.random
        self.ranks = [picks.random() for _ in range(RANKS)]
        self.changes = sorted(int(picks.random() * horizon) for _ in range(depth - 1)) if horizon else []
        self.picked = 0

    def ready(self, note: Note | None = None) -> Ready:
        """Return a queue ordered by rank."""
        return _Ranking(self, note)


class _Ranking:
    """A heap of (rank, arrival, handle), lowest first.

    The place in FIFO order, which only a `note` needs, is that of the arrival among those still here.
    """

    def __init__(self, schedule: Prioritised, note: Note | None) -> None:
        self._schedule = schedule
        self._note = note
        self._heap: list[tuple[float, int, asyncio.Handle]] = []
        self._arrived = 0
        self._here: list[int] = []  # arrivals, ascending; kept for a note only
        self._fallen: dict[int, float] = {}  # ranks of those that fell, by number of the task

    def append(self, handle: asyncio.Handle, /) -> None:
        self._arrived = arrival = self._arrived + 1
        owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
        number = getattr(owner, "number", None) if isinstance(owner, asyncio.Task) else None
        if number is None:
            rank = self._schedule.draw()
        else:
            rank = (self._fallen and self._fallen.get(number)) or self._schedule.ranks[number % RANKS]
        heappush(self._heap, (rank, arrival, handle))
        if self._note:
            self._here.append(arrival)

    def popleft(self) -> asyncio.Handle:
        schedule = self._schedule
        schedule.picked = picked = schedule.picked + 1
        while schedule.changes and schedule.changes[0] < picked:
            del schedule.changes[0]
            self._fall()
        _, arrival, handle = heappop(self._heap)
        if self._note:
            if self._heap:
                place = bisect_left(self._here, arrival)
                self._note(place)
                del self._here[place]
            else:
                self._here.clear()
        return handle

    def _fall(self) -> None:
        """Let the one about to run come after all others from now on; of those that fell, the last comes last."""
        if not self._heap:
            return
        _, arrival, handle = self._heap[0]
        rank = 2.0 + len(self._fallen)
        owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
        if isinstance(owner, asyncio.Task) and hasattr(owner, "number"):
            self._fallen[owner.number] = rank
        heapreplace(self._heap, (rank, arrival, handle))

    def clear(self) -> None:
        self._heap.clear()
        self._here.clear()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[asyncio.Handle]:
        return (handle for _, _, handle in sorted(self._heap, key=lambda entry: entry[1]))


def schedule_of(mode: Mode, seed: int, horizon: int = 0) -> Schedule:
    """Return the schedule of a mode, its chances drawn from streams of the run's `seed`.

    Parameters
    ----------
    horizon
        The run's length in steps, for "pct".
    """
    picks, ties = (Stream(derive(seed, name), name) for name in ("schedule", "schedule.ties"))
    if mode == "faithful":
        return Fifo(ties)
    return Shuffled(picks, ties) if mode == "adversarial" else Prioritised(picks, ties, horizon=horizon)
