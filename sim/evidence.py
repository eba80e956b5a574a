"""What one run left to judge by: its turns, faults, breakers and levels, gathered from the journal in one pass.

Windows are stretches of a run; a turn belongs to the one in which it arrived, however late it ended.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from orchestra.events import BreakerChanged, CallHedged, CallRetried, FellBack, LevelChanged, OperatorActed
from orchestra.resilience.degradation import Level
from sim import journal as told
from sim.journal import Journal

ALL_FAULTS = "fault"
WHOLE_RUN = "run"
LEVELS = tuple(level.name for level in Level)


class Window(NamedTuple):
    """Part of a run in seconds: `start` included, `end` not."""

    start: float
    end: float


class Sent(NamedTuple):
    """One arrival and how it ended for its client."""

    at: float
    outcome: str
    seconds: float


class Evidence:
    """What the expectations ask of a journal, gathered in one pass."""

    def __init__(self, journal: Journal) -> None:
        self.duration_s = 0.0
        self.journal = journal
        self.faults: dict[int, tuple[str, float, float]] = {}
        self.changes: list[BreakerChanged] = []
        self.levels: list[LevelChanged] = []
        self.helped: list[CallRetried | CallHedged | FellBack] = []
        self.operated: list[OperatorActed] = []
        self.retried: list[float] = []
        arrived: dict[int, float] = {}
        ended: dict[int, told.ClientFinished] = {}
        for entry in journal:
            if isinstance(entry, told.ClientArrived):
                arrived[entry.arrival] = entry.at
            elif isinstance(entry, told.ClientFinished):
                ended[entry.arrival] = entry
            elif isinstance(entry, BreakerChanged):
                self.changes.append(entry)
            elif isinstance(entry, LevelChanged):
                self.levels.append(entry)
            elif isinstance(entry, CallRetried | CallHedged | FellBack):
                self.helped.append(entry)
            elif isinstance(entry, OperatorActed):
                self.operated.append(entry)
            elif isinstance(entry, told.ClientRetried):
                self.retried.append(entry.at)
            elif isinstance(entry, told.FaultStarted):
                self.faults[entry.fault] = (entry.kind, entry.at, math.inf)
            elif isinstance(entry, told.FaultEnded):
                self.faults[entry.fault] = (*self.faults[entry.fault][:2], entry.at)
            elif isinstance(entry, told.RunStarted):
                self.duration_s = entry.duration_seconds
        self.sent = [
            Sent(at, ended[number].outcome, ended[number].seconds) for number, at in arrived.items() if number in ended
        ]
        self._times = [each.at for each in self.sent]
        self.arrivals = len(arrived)
        self.attempted = sorted([*arrived.values(), *self.retried])
        self.answered = sorted(each.at + each.seconds for each in self.sent if each.outcome == "answered")

    def window(self, kind: str, subject: str) -> Window | None:
        """Return a window's bounds; None where the fault it refers to never came."""
        end = max(self.duration_s, self._times[-1] if self._times else 0.0) + 1e-6
        if kind == "always":
            return Window(0.0, end)
        spans = [span[1:] for span in self.faults.values() if subject in (ALL_FAULTS, span[0])]
        if not spans:
            return None
        first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
        whole = {"before": Window(0.0, first), "during": Window(first, last), "after": Window(last, end)}
        return whole[kind]

    def turns(self, window: Window) -> list[Sent]:
        """Return the turns that arrived in `window`."""
        return self.sent[within(self._times, window)]

    def time_in_levels(self) -> dict[str, float]:
        """Return for how many seconds each level was in force, without those that never were."""
        spent = dict.fromkeys(LEVELS, 0.0)
        for start, end, level in self.level_spans():
            spent[level] += end - start
        return {level: seconds for level, seconds in spent.items() if seconds > 0}

    def help_counts(self) -> dict[tuple[str, str], int]:
        """Return how often which dependency got what help, such as ``("unified", "retried")``, in order of both."""
        counts: dict[tuple[str, str], int] = {}
        for entry in self.helped:
            key = (entry.target, help_of(entry))
            counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))

    def level_spans(self, end: float | None = None) -> list[tuple[float, float, str]]:
        """Return the levels as (start, end, level) without gaps, up to `end` or to the end of arrivals, in seconds."""
        end = max([self.duration_s, *(change.at for change in self.levels)]) if end is None else end
        starts = [0.0, *(change.at for change in self.levels)]
        names = [self.levels[0].before if self.levels else LEVELS[0], *(change.after for change in self.levels)]
        return list(zip(starts, [*starts[1:], end], names, strict=True))


def help_of(entry: CallRetried | CallHedged | FellBack) -> str:
    """Say what was done where a dependency did not answer, or not soon."""
    if isinstance(entry, FellBack):
        return f"{entry.fallback} instead"
    return "retried" if isinstance(entry, CallRetried) else "hedged"


def within(times: list[float], window: Window) -> slice:
    """Return which of `times`, in order, lie in `window`."""
    return slice(bisect.bisect_left(times, window.start), bisect.bisect_left(times, window.end))
