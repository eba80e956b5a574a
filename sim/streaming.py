"""Journals of long runs: one that keeps its entries in a file as they come, and what a sample leaves of them.

A turn's dozen entries take 2 kB, so a simulated week would fill a machine's memory. `FileJournal` holds one batch of
entries; whoever reads it reads the file. `DigestJournal` is for runs whose story nobody reads. `Sample` goes further:
it leaves out what is told of every turn, and counts it by the interval instead. All are complete for the verdict,
whose evidence sees every entry as it comes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from orchestra import events
from sim import journal as told
from sim.journal import Entry, IntervalCounted, Journal, Keep, decoded, encode
from sim.measures import percentile

OF_EVERY_TURN = frozenset(
    (
        *(events.TurnStarted, events.TurnFinished, events.TurnResumed, events.TurnAbandoned, events.RequestFinished),
        *(events.CallFinished, events.CallRetried, events.CallHedged, events.FellBack, events.StoreFinished),
        *(events.ConnectionOpened, events.ConnectionClosed),
        *(told.ClientArrived, told.ClientFinished, told.ClientRetried, told.ClientConnected),
        *(told.ProviderCallStarted, told.ProviderCallEnded, told.ProviderCallOutlived),
    )
)
"""What a sample leaves out; what remains are levels, breakers, faults, operators, defects, and the run's own marks."""


class NotKept(Exception):
    """Somebody reads a journal that kept nothing."""


class DigestJournal(Journal):
    """A journal that keeps nothing but its digest and the number of its entries.

    Parameters
    ----------
    keep : callable
        See `Journal`; what it leaves out is not of the digest.
    """

    def __init__(self, *, keep: Keep = list) -> None:
        super().__init__(keep=keep)
        self._sum = hashlib.sha256()
        self._count = 0

    def __len__(self) -> int:
        self.settle()
        return self._count

    @property
    def sampled(self) -> bool:
        """True: whoever draws has to do with what the run gathered."""
        return True

    def __iter__(self) -> Iterator[Entry]:
        if len(self):
            raise NotKept("this journal kept none of its entries: let the run fill a Journal, or a FileJournal")
        return iter(())

    @property
    def digest(self) -> str:
        """SHA-256 of the lines, as of any journal; it is made up as they come."""
        self.settle()
        return self._sum.hexdigest()

    def _take(self, entries: list[Entry]) -> None:
        lines = encode(entries)
        self._sum.update(lines)
        self._count += len(entries)
        self._write(lines)

    def _write(self, lines: bytes) -> None:
        """Do nothing with them."""


class FileJournal(DigestJournal):
    """A journal in a file, written as it goes.

    Parameters
    ----------
    path : Path
        Written anew.
    keep : callable
        See `Journal`.

    Raises
    ------
    OSError
        The file cannot be made. What comes in the way later is its `failure`, and ends the run: who records an entry
        could not help it.
    """

    def __init__(self, path: Path, *, keep: Keep = list) -> None:
        super().__init__(keep=keep)
        self.path = path
        self._file = path.open("wb", buffering=0)  # so that a run that is killed leaves whole batches

    @property
    def sampled(self) -> bool:
        """Whether the file is not the whole story."""
        return self._kept is not list

    def __iter__(self) -> Iterator[Entry]:
        return decoded(self.path) if len(self) else iter(())  # a file that takes nothing may give without end

    def close(self) -> None:
        """Take no more."""
        super().close()
        self._file.close()

    def _write(self, lines: bytes) -> None:
        try:
            while lines and self.failure is None:
                lines = lines[self._file.write(lines) :]
        except OSError as failure:
            self.failure = failure


class Sample:
    """Leaves out what is told of every turn, and counts it by the interval.

    Parameters
    ----------
    interval_s : float
        Length of an interval in seconds. A count stands in the journal where the next interval begins.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._intervals = 1
        self._ends_s = interval_s
        self._arrivals = 0
        self._retried = 0
        self._ended = dict.fromkeys(get_args(events.TurnOutcome), 0)
        self._answered_s: list[float] = []

    def __call__(self, entries: list[Entry]) -> list[Entry]:
        """Return what to keep of `entries`, which go on from the last ones."""
        kept: list[Entry] = []
        for entry in entries:
            if entry.at >= self._ends_s:
                kept += self._counted(entry.at)
            if type(entry) is told.RunFinished and (self._arrivals or any(self._ended.values())):
                kept.append(self._count(entry.at))  # the interval that the end has cut short
            if type(entry) in OF_EVERY_TURN:
                self._add(entry)
            else:
                kept.append(entry)
        return kept

    def _add(self, entry: Entry) -> None:
        match entry:
            case told.ClientArrived():
                self._arrivals += 1
            case told.ClientRetried():
                self._retried += 1
            case told.ClientFinished():
                self._ended[entry.outcome] += 1
                if entry.outcome == "answered":
                    self._answered_s.append(entry.seconds)

    def _counted(self, now: float) -> Iterator[Entry]:
        """Yield the counts of the intervals that have ended by `now`, also of those in which nothing came."""
        while now >= self._ends_s:
            yield self._count(self._ends_s)
            self._intervals += 1
            self._ends_s = self._intervals * self._interval_s

    def _count(self, at: float) -> IntervalCounted:
        """Return what came and ended in the interval until `at`, and begin to count anew."""
        p50, p95 = (percentile(self._answered_s, q) for q in (0.50, 0.95))
        count = IntervalCounted(
            at=at,
            arrivals=self._arrivals,
            retried=self._retried,
            **self._ended,
            p50_seconds=None if math.isnan(p50) else told.rounded(p50),
            p95_seconds=None if math.isnan(p95) else told.rounded(p95),
        )
        self._arrivals = self._retried = 0
        self._ended = dict.fromkeys(self._ended, 0)
        self._answered_s.clear()
        return count
