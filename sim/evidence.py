"""What one run left to judge by: its turns, faults, breakers and levels, gathered from the journal in one pass.

Windows are stretches of a run; a turn belongs to the one in which it arrived, however late it ended.

What is gathered may be as long as a simulated week, so nothing is kept of a turn but some 40 bytes in columns: what
began and has ended leaves no trace but in the counts. The run feeds its evidence while it goes on, and so needs no
second pass over a journal that may be in a file by then, or may have left out most of it.
"""

from __future__ import annotations

import bisect
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

from orchestra.events import (
    BreakerChanged,
    CallHedged,
    CallRetried,
    ConnectionClosed,
    ConnectionOpened,
    FellBack,
    LevelChanged,
    OperatorActed,
    TurnFinished,
    TurnStarted,
    UnexpectedError,
)
from orchestra.resilience.degradation import Level
from sim import journal as told
from sim import littles_law
from sim.connectivity import Connectivity
from sim.fleet import Fleet
from sim.journal import Entry, Journal
from sim.littles_law import Flow

ALL_FAULTS = "fault"
WHOLE_RUN = "run"
LEVELS = tuple(level.name for level in Level)
OUTCOMES = ("answered", "failed", "shed")
_OPEN = len(OUTCOMES)
_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}


class Window(NamedTuple):
    """Part of a run in seconds: `start` included, `end` not."""

    start: float
    end: float


class Sent(NamedTuple):
    """One arrival and how it ended for its client."""

    at: float
    outcome: str
    seconds: float
    first_token_seconds: float | None = None


class Turns:
    """All arrivals in columns, in order of time: when, how it ended for the client, after how long.

    Of those that have not ended, only `at` means something.
    """

    def __init__(self) -> None:
        self.at = array("d")
        self.seconds = array("d")
        self.first_token = array("d")  # NaN where none came, or nobody told
        self.codes = bytearray()
        self._open: dict[int, int] = {}  # by the arrival's number: its place in the columns

    def __len__(self) -> int:
        return len(self.at)

    def arrive(self, number: int, at: float) -> None:
        """Note an arrival."""
        self._open[number] = len(self.at)
        self.at.append(at)
        self.seconds.append(math.nan)
        self.first_token.append(math.nan)
        self.codes.append(_OPEN)

    def finish(self, number: int, outcome: str, seconds: float, first_token_seconds: float | None) -> None:
        """Note how an arrival ended; one that nobody knows of, or that has ended already, is none."""
        place = self._open.pop(number, None)
        if place is not None:
            self.codes[place] = _CODES[outcome]
            self.seconds[place] = seconds
            if first_token_seconds is not None:
                self.first_token[place] = first_token_seconds

    def within(self, window: Window) -> slice:
        """Return which of them arrived in `window`."""
        return within(self.at, window)

    def count(self, outcome: str, part: slice = slice(None)) -> int:
        """Return how many ended so."""
        return self.codes[part].count(_CODES[outcome])

    def sent(self, part: slice = slice(None)) -> list[Sent]:
        """Return those that have ended."""
        rows = zip(self.at[part], self.codes[part], self.seconds[part], self.first_token[part], strict=True)
        return [
            Sent(at, OUTCOMES[code], seconds, None if math.isnan(first) else first)
            for at, code, seconds, first in rows
            if code != _OPEN
        ]

    def latencies(self, part: slice = slice(None), *, answered: bool = True) -> list[float]:
        """Return after how long they were answered, or ended without an answer."""
        wanted = (_CODES["answered"],) if answered else (_CODES["failed"], _CODES["shed"])
        return [seconds for seconds, code in zip(self.seconds[part], self.codes[part], strict=True) if code in wanted]


class Spent(NamedTuple):
    """What one call of the provider had read and written when it ended, and what that cost."""

    at: float
    prompt_tokens: int
    completion_tokens: int
    cost: float


class Calls:
    """All calls of the provider in columns: when they came, and when they ended, what they had read and written."""

    def __init__(self) -> None:
        self.started_at = array("d")
        self.ended_at = array("d")
        self.prompt_tokens = array("q")
        self.completion_tokens = array("q")
        self.cost = array("d")

    def finish(self, entry: told.ProviderCallEnded) -> None:
        """Note how a call ended."""
        self.ended_at.append(entry.at)
        self.prompt_tokens.append(entry.prompt_tokens)
        self.completion_tokens.append(entry.completion_tokens)
        self.cost.append(entry.cost)


class Balance:
    """What began and has not ended as often, by its id; an end too many stands out as well."""

    def __init__(self) -> None:
        self._open: dict[str | int, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, key: str | int) -> bool:
        return key in self._open

    def change(self, key: str | int, by: int) -> None:
        """Count a beginning (1) or an end (-1)."""
        count = self._open.pop(key, 0) + by
        if count:
            self._open[key] = count


class Evidence:
    """What is asked of a journal, gathered in one pass.

    Parameters
    ----------
    journal : Journal
        Whose entries are read; those of an empty one that is about to be filled come by `read`.

    Raises
    ------
    ValueError
        The journal is a sampled one that was read from a file.

    Attributes
    ----------
    journal : Journal
        For what is drawn and not judged.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.scenario = ""
        self.duration_s = 0.0
        self.faults: dict[int, tuple[str, float, float]] = {}
        self.whats: dict[int, str] = {}  # by fault, in words
        self.touched: dict[int, int] = {}  # by fault that has ended
        self.changes: list[BreakerChanged] = []
        self.levels: list[LevelChanged] = []
        self.operated: list[OperatorActed] = []
        self.helped: dict[tuple[str, str], array[float]] = {}  # by target and help: when
        self.retried = array("d")
        self.arrived = Turns()
        self.calls = Calls()
        self._begun: dict[str, float | None] = {}  # by correlation id, of turns that clients wait for: the first token
        self.finished = dict.fromkeys(OUTCOMES, 0)
        self.failures: dict[str, int] = {}
        self.turns_flow, self.calls_flow = Flow("turns"), Flow("provider calls")
        self.open_arrivals, self.open_turns, self.open_calls = Balance(), Balance(), Balance()
        self.defects = 0
        self.first_defect: UnexpectedError | None = None
        self.audited: told.Audited | None = None
        self.fleet = Fleet()
        self.connections = Connectivity()
        self.complete = False
        self.read(journal)

    def read(self, entries: Iterable[Entry]) -> None:
        """Take in what happened next."""
        for entry in entries:
            take = _TAKES.get(type(entry))
            if take is not None:
                take(self, entry)

    # --- one kind of entry each

    def _begin(self, entry: told.RunStarted) -> None:
        self.scenario, self.duration_s = entry.scenario, entry.duration_seconds

    def _end(self, _: told.RunFinished) -> None:
        self.complete = True

    def _arrive(self, entry: told.ClientArrived) -> None:
        self.open_arrivals.change(entry.arrival, 1)
        self.turns_flow.come(entry.arrival, entry.at)
        self.arrived.arrive(entry.arrival, entry.at)
        self._begun[entry.correlation_id] = None

    def _finish(self, entry: told.ClientFinished) -> None:
        self.open_arrivals.change(entry.arrival, -1)
        self.turns_flow.leave(entry.arrival, entry.at, entry.seconds)
        begun = self._begun.pop(entry.correlation_id, None)
        seen = entry.first_token_seconds
        self.arrived.finish(entry.arrival, entry.outcome, entry.seconds, begun if seen is None else seen)
        self.finished[entry.outcome] += 1
        if entry.error:
            self.failures[entry.error] = self.failures.get(entry.error, 0) + 1

    def _retry(self, entry: told.ClientRetried) -> None:
        self.retried.append(entry.at)

    def _connect(self, entry: told.ClientConnected) -> None:
        self.connections.connected(entry)

    def _open_connection(self, entry: ConnectionOpened) -> None:
        self.connections.opened(entry)

    def _close_connection(self, entry: ConnectionClosed) -> None:
        self.connections.closed(entry)

    def _open_turn(self, entry: TurnStarted) -> None:
        self.open_turns.change(entry.correlation_id, 1)

    def _close_turn(self, entry: TurnFinished) -> None:
        """A turn that was refused admission, and so was shed, ends without having started."""
        if entry.outcome != "shed" or entry.correlation_id in self.open_turns:
            self.open_turns.change(entry.correlation_id, -1)
        if entry.correlation_id in self._begun:
            self._begun[entry.correlation_id] = entry.first_token_seconds

    def _open_call(self, entry: told.ProviderCallStarted) -> None:
        self.open_calls.change(entry.call, 1)
        self.calls_flow.come(entry.call, entry.at)
        self.calls.started_at.append(entry.at)

    def _close_call(self, entry: told.ProviderCallEnded) -> None:
        self.open_calls.change(entry.call, -1)
        self.calls_flow.leave(entry.call, entry.at, entry.seconds)
        self.calls.finish(entry)

    def _change_breaker(self, entry: BreakerChanged) -> None:
        self.changes.append(entry)

    def _change_level(self, entry: LevelChanged) -> None:
        self.levels.append(entry)

    def _change_level_of_one(self, entry: told.InstanceLevelChanged) -> None:
        self.levels += self.fleet.level(entry)

    def _change_breaker_of_one(self, entry: told.InstanceBreakerChanged) -> None:
        self.changes += self.fleet.breaker(entry)

    def _crash(self, entry: told.InstanceCrashed) -> None:
        """An instance has forgotten all; its turns have ended, for they will not go on."""
        for turn in entry.turns:
            self.open_turns.change(turn, -1)
        for change in self.fleet.crash(entry):
            if isinstance(change, LevelChanged):
                self.levels.append(change)
            else:
                self.changes.append(change)

    def _operate(self, entry: OperatorActed) -> None:
        self.operated.append(entry)

    def _help(self, entry: CallRetried | CallHedged | FellBack) -> None:
        self.helped.setdefault((entry.target, help_of(entry)), array("d")).append(entry.at)

    def _start_fault(self, entry: told.FaultStarted) -> None:
        self.faults[entry.fault] = (entry.kind, entry.at, math.inf)
        self.whats[entry.fault] = entry.what

    def _end_fault(self, entry: told.FaultEnded) -> None:
        self.faults[entry.fault] = (*self.faults[entry.fault][:2], entry.at)
        self.touched[entry.fault] = entry.touched

    def _refuse(self, _: told.IntervalCounted) -> NoReturn:
        raise ValueError(
            "a sampled journal does not tell of every turn, so nothing can be judged by it or drawn from it: "
            "take Run.evidence, which saw them all, or read the counts from Journal.frame()"
        )

    def _audit(self, entry: told.Audited) -> None:
        self.audited = entry

    def _blame(self, entry: UnexpectedError) -> None:
        self.defects += 1
        self.first_defect = self.first_defect or entry

    # --- what it comes to

    @property
    def balances(self) -> tuple[littles_law.Balance, ...]:
        """Little's law for each system: the turns of clients, and the calls at providers."""
        return self.turns_flow.balance(self.duration_s), self.calls_flow.balance(self.duration_s)

    @property
    def arrivals(self) -> int:
        """How many turns arrived."""
        return len(self.arrived)

    def ended(self, window: Window) -> int:
        """Return how many of the turns that arrived in `window` have ended."""
        part = self.arrived.within(window)
        return sum(self.arrived.count(outcome, part) for outcome in OUTCOMES)

    @property
    def sent(self) -> list[Sent]:
        """The turns that have ended, in order of arrival."""
        return self.arrived.sent()

    def first_tokens(self, window: Window) -> list[float]:
        """Return after how long the first token came of the answered turns that arrived in `window`."""
        found = (each.first_token_seconds for each in self.turns(window) if each.outcome == "answered")
        return [seconds for seconds in found if seconds is not None]

    @property
    def called(self) -> Sequence[float]:
        """When calls reached the provider, in order."""
        return self.calls.started_at

    @property
    def spent(self) -> Iterator[Spent]:
        """What each call of the provider had read and written when it ended, in order."""
        calls = self.calls
        columns = (calls.ended_at, calls.prompt_tokens, calls.completion_tokens, calls.cost)
        return map(Spent, *columns)

    @cached_property
    def attempted(self) -> Sequence[float]:
        """When clients asked, for the first time or again, in order; not to be asked before all was read."""
        return array("d", sorted([*self.arrived.at, *self.retried]))

    @cached_property
    def answered(self) -> Sequence[float]:
        """When clients got their answers, in order; not to be asked before all was read."""
        columns = self.arrived
        rows = zip(columns.at, columns.seconds, columns.codes, strict=True)
        return array("d", sorted(at + seconds for at, seconds, code in rows if code == _CODES["answered"]))

    def window(self, kind: str, subject: str) -> Window | None:
        """Return a window's bounds; None where the fault it refers to never came."""
        end = max(self.duration_s, self.arrived.at[-1] if self.arrived else 0.0) + 1e-6
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
        return self.arrived.sent(self.arrived.within(window))

    def time_in_levels(self) -> dict[str, float]:
        """Return for how many seconds each level was in force, without those that never were."""
        spent = dict.fromkeys(LEVELS, 0.0)
        for start, end, level in self.level_spans():
            spent[level] += end - start
        return {level: seconds for level, seconds in spent.items() if seconds > 0}

    def help_counts(self) -> dict[tuple[str, str], int]:
        """Return how often which dependency got what help, such as ``("unified", "retried")``, in order of both."""
        return {key: len(self.helped[key]) for key in sorted(self.helped)}

    def breaker_spans(self, breaker: str, end: float) -> list[tuple[float, float, str]]:
        """Return a breaker's states as (start, end, state) without gaps, up to `end`, in seconds."""
        changes = [change for change in self.changes if change.breaker == breaker]
        starts = [0.0, *(change.at for change in changes)]
        return list(zip(starts, [*starts[1:], end], ["CLOSED", *(change.after for change in changes)], strict=True))

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


def within(times: Sequence[float], window: Window) -> slice:
    """Return which of `times`, in order, lie in `window`."""
    return slice(bisect.bisect_left(times, window.start), bisect.bisect_left(times, window.end))


_TAKES: dict[type, Callable[[Evidence, Any], None]] = {
    told.RunStarted: Evidence._begin,
    told.RunFinished: Evidence._end,
    told.ClientArrived: Evidence._arrive,
    told.ClientFinished: Evidence._finish,
    told.ClientRetried: Evidence._retry,
    told.ClientConnected: Evidence._connect,
    told.ProviderCallStarted: Evidence._open_call,
    told.ProviderCallEnded: Evidence._close_call,
    told.FaultStarted: Evidence._start_fault,
    told.FaultEnded: Evidence._end_fault,
    told.Audited: Evidence._audit,
    told.IntervalCounted: Evidence._refuse,
    TurnStarted: Evidence._open_turn,
    TurnFinished: Evidence._close_turn,
    ConnectionOpened: Evidence._open_connection,
    ConnectionClosed: Evidence._close_connection,
    BreakerChanged: Evidence._change_breaker,
    LevelChanged: Evidence._change_level,
    told.InstanceLevelChanged: Evidence._change_level_of_one,
    told.InstanceBreakerChanged: Evidence._change_breaker_of_one,
    told.InstanceCrashed: Evidence._crash,
    OperatorActed: Evidence._operate,
    CallRetried: Evidence._help,
    CallHedged: Evidence._help,
    FellBack: Evidence._help,
    UnexpectedError: Evidence._blame,
}
