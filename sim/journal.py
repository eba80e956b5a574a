"""The append-only history of a run: what the orchestra tells about itself, and what the world around it did.

Every checker and plot reads a journal and nothing else. A journal is a hook (`orchestra.events.Hook`); in a file it is
JSON lines with sorted keys. Times are rounded to the microsecond, so that the last bits of a machine's floating point
do not tell two equal histories apart.

A turn tells a dozen entries, so recording one does no more than append it; entries are put into shape by the batch,
when one is full or somebody reads (rounding each as it came took a twentieth of a simulated turn). `sim.streaming` has
a journal that keeps its entries in a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import pandas as pd
from msgspec import Struct

from orchestra import events
from orchestra.events import TurnOutcome

PER_SECOND = 1e6
"""Times are kept to the microsecond."""

BATCH = 512
_IDS = ("correlation_id", "session", "session_id", "span_id", "turn_id", "turns")
_FREE_TEXTS = (*_IDS, "traceback", "detail", "reason", "what")


class RunStarted(Struct, frozen=True, tag="run_started"):
    """A run began: all that is needed to see it again."""

    at: float
    scenario: str
    seed: int
    door: str
    duration_seconds: float
    settings: dict[str, str | int | float | bool]
    mode: str = "faithful"


class RunFinished(Struct, frozen=True, tag="run_finished"):
    """The last client went home. A journal without this was cut off."""

    at: float
    arrivals: int
    answered: int
    failed: int
    shed: int


class ClientArrived(Struct, frozen=True, tag="client_arrived", omit_defaults=True):
    """A client sent a turn, at the time it had intended to; `population` says of which, where there are several."""

    at: float
    arrival: int
    correlation_id: str
    session: str
    context_tokens: int
    generated_tokens: int
    population: str = ""


class ClientFinished(Struct, frozen=True, tag="client_finished", omit_defaults=True):
    """A client's turn ended, as its last attempt did; `seconds` run from the intended arrival.

    So do `first_token_seconds`, to the first piece of the answer; None where it did not come in pieces.
    """

    at: float
    arrival: int
    correlation_id: str
    outcome: TurnOutcome
    error: str
    seconds: float
    first_token_seconds: float | None = None


class ClientRetried(Struct, frozen=True, tag="client_retried"):
    """A client that got no answer because of `error` asked again, as attempt number `attempt` (from 2)."""

    at: float
    arrival: int
    correlation_id: str
    attempt: int
    error: str
    waited_seconds: float


class ClientConnected(Struct, frozen=True, tag="client_connected"):
    """A client got its WebSocket, or gave up to: `seconds` after it first wanted it, or lost the last one.

    Parameters
    ----------
    client_id : str
    again : bool
        Whether it had one before.
    connected : bool
        False where it has none: it gave up, or the run ended.
    attempts, refused : int
        How often it asked, and was told to come later; other attempts found nobody.
    seconds : float
    """

    at: float
    client_id: str
    again: bool
    connected: bool
    attempts: int
    refused: int
    seconds: float


class FaultStarted(Struct, frozen=True, tag="fault_started"):
    """A fault is in force from now on."""

    at: float
    fault: int
    kind: str
    what: str


class FaultEnded(Struct, frozen=True, tag="fault_ended"):
    """A fault was lifted, after it had changed `touched` operations."""

    at: float
    fault: int
    kind: str
    touched: int


class ProviderCallStarted(Struct, frozen=True, tag="provider_call_started"):
    """A call reached the provider, behind `queued` others and beside `serving` ones."""

    at: float
    call: int
    queued: int
    serving: int


class ProviderCallEnded(Struct, frozen=True, tag="provider_call_ended", omit_defaults=True):
    """A call left the provider: `answered`, `failed`, `refused` when it came, or `dropped` by its caller.

    Tokens are those that were read and written for it, and `cost` is paid for them, whether its answer came or not.
    """

    at: float
    call: int
    outcome: str
    queued_seconds: float
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    provider: str = "main"
    cost: float = 0.0


class ProviderCallOutlived(Struct, frozen=True, tag="provider_call_outlived"):
    """The provider goes on with a call that was dropped, which keeps its slot for `seconds` more."""

    at: float
    call: int
    seconds: float


class IntervalCounted(Struct, frozen=True, tag="interval_counted"):
    """What a sampled journal (`sim.streaming.Sample`) tells of the turns of an interval that ended at `at`.

    Parameters
    ----------
    arrivals, retried : int
        How often clients asked for the first time, and again.
    answered, failed, shed : int
        How many of their turns ended, and how, whenever they had arrived.
    p50_seconds, p95_seconds : float or None
        Latency of those answered.
    """

    at: float
    arrivals: int
    retried: int
    answered: int
    failed: int
    shed: int
    p50_seconds: float | None
    p95_seconds: float | None


class Audited(Struct, frozen=True, tag="audited"):
    """The world compared what clients were told with what the conversation store holds."""

    at: float
    acknowledged: int
    missing: int
    duplicated: int


class InstanceStarted(Struct, frozen=True, tag="instance_started"):
    """An instance (or one of its workers) takes turns from now on, with empty memory."""

    at: float
    instance: str


class InstanceCrashed(Struct, frozen=True, tag="instance_crashed"):
    """An instance (or one of its workers) is dead, and with it its `turns`, by correlation id, which end nowhere."""

    at: float
    instance: str
    turns: tuple[str, ...]


class InstanceOut(Struct, frozen=True, tag="instance_out"):
    """A balancer has taken an instance out of rotation."""

    at: float
    instance: str
    reason: str


class InstanceIn(Struct, frozen=True, tag="instance_in"):
    """A balancer has put an instance back into rotation."""

    at: float
    instance: str


class InstanceLevelChanged(Struct, frozen=True, tag="instance_level_changed"):
    """The `LevelChanged` of one of several instances."""

    at: float
    instance: str
    before: str
    after: str
    health: float | None
    reason: str


class InstanceBreakerChanged(Struct, frozen=True, tag="instance_breaker_changed"):
    """The `BreakerChanged` of one of several instances."""

    at: float
    instance: str
    breaker: str
    before: str
    after: str
    reason: str


WorldEvent = (
    RunStarted
    | RunFinished
    | ClientArrived
    | ClientFinished
    | ClientRetried
    | ClientConnected
    | FaultStarted
    | FaultEnded
    | ProviderCallStarted
    | ProviderCallEnded
    | ProviderCallOutlived
    | Audited
    | InstanceStarted
    | InstanceCrashed
    | InstanceOut
    | InstanceIn
    | InstanceLevelChanged
    | InstanceBreakerChanged
    | IntervalCounted
)
Entry = events.Event | WorldEvent

_KINDS: tuple[type[Struct], ...] = (*get_args(events.Event), *get_args(WorldEvent))
_SECONDS: dict[type[Struct], tuple[str, ...]] = {
    kind: tuple(name for name, hint in kind.__annotations__.items() if hint in (float, "float", "float | None"))
    + tuple(name for name, hint in kind.__annotations__.items() if hint == (float | None))
    for kind in _KINDS
}
_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(Entry)


def rounded(seconds: float) -> float:
    """Return seconds to the microsecond: the float nearest to those six digits, and never minus zero."""
    return round(seconds * PER_SECOND) / PER_SECOND  # a quarter of what round(seconds, 6) costs


def _shaper(kind: type[Struct]) -> Callable[[Any], Any]:
    """Return a function that puts an entry of `kind` into the shape that a journal keeps; None stays None."""
    places = tuple(kind.__struct_fields__.index(name) for name in _SECONDS[kind])
    astuple = msgspec.structs.astuple

    def shaped(entry: Struct) -> Struct:
        values = list(astuple(entry))
        for place in places:
            if (value := values[place]) is not None:
                values[place] = round(value * PER_SECOND) / PER_SECOND  # `rounded`, without the call
        return kind(*values)

    if kind is not events.UnexpectedError:
        return shaped
    return lambda entry: shaped(msgspec.structs.replace(entry, traceback=_portable(entry.traceback)))


def _portable(traceback: str) -> str:
    """Take a machine's folders and addresses out of a traceback."""
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", re.sub(r'File "[^"]*?([^"/\\]+)"', r'File "\1"', traceback))


_SHAPERS = {kind: _shaper(kind) for kind in _KINDS}

Reader = Callable[[Sequence[Entry]], None]
"""Gets every entry once, in order, batch by batch."""


def encode(entries: Sequence[Entry]) -> bytes:
    """Return entries as lines of JSON, keys sorted."""
    return _ENCODER.encode_lines(entries)


def decoded(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file, one at a time.

    Raises
    ------
    JournalBroken
        Some line is no entry.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry: Entry = _DECODER.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
                raise JournalBroken(f"{path.name}: line {number} is no journal entry: {wrong}") from None
            yield entry


class JournalBroken(Exception):
    """A file is no journal; the message names the line."""


Keep = Callable[[list[Entry]], list[Entry]]
"""Says what a journal keeps of the entries that come next; `list` for all of them."""


class Journal:
    """What happened, in order.

    Parameters
    ----------
    entries : iterable of Entry
        A history to start from.
    keep : callable
        Says what is kept of what is recorded.

    Attributes
    ----------
    readers : list of callable
        Each is given every entry that is recorded from now on, kept or not.
    failure : OSError or None
        Why no more can be kept.
    """

    def __init__(self, entries: Iterable[Entry] = (), *, keep: Keep = list) -> None:
        self.readers: list[Reader] = []
        self.failure: OSError | None = None
        self._entries: list[Entry] = list(entries)
        self._kept = keep
        self._fresh: list[Entry] = []
        self._closed = False

    def __len__(self) -> int:
        self.settle()
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        self.settle()
        return iter(self._entries)

    @property
    def sampled(self) -> bool:
        """Whether some of what is recorded is not kept, so that what it holds is not the whole story."""
        return self._kept is not list

    def record(self, entry: Entry) -> None:
        """Append `entry`. This is the hook that the orchestra and the world tell."""
        self._fresh.append(entry)
        if len(self._fresh) >= BATCH:
            self.settle()

    def close(self) -> None:
        """Take no more: what comes now is no part of the story."""
        self.settle()
        self._closed = True

    def settle(self) -> None:
        """Put what was recorded lately into shape, keep it, and let readers have it."""
        fresh, self._fresh = self._fresh, []
        if not fresh or self._closed:
            return
        shaped = [_SHAPERS[type(entry)](entry) for entry in fresh]
        self._take(self._kept(shaped))
        for read in self.readers:
            read(shaped)

    def _take(self, entries: list[Entry]) -> None:
        self._entries += entries

    def lines(self) -> Iterator[bytes]:
        """Yield each entry as a line of JSON, keys sorted."""
        for entry in self:
            yield encode((entry,))

    @property
    def digest(self) -> str:
        """SHA-256 of the lines: equal for equal histories, across processes and machines."""
        self.settle()
        digest = hashlib.sha256()
        for start in range(0, len(self._entries), BATCH):
            digest.update(encode(self._entries[start : start + BATCH]))
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write JSON lines to `path`."""
        with path.open("wb") as file:
            file.writelines(self.lines())

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Read what `write` wrote; raises as `decoded` does."""
        return cls(decoded(path))

    def frame(self) -> pd.DataFrame:
        """Return one row an entry: `at` (seconds), `event` (its tag), and a typed column for every field of any event.

        Seconds are `float64`, other numbers `Int64`, ids and free texts `string`, words of a small vocabulary
        `category`; missing where an event has no such field. Trace ids and settings are left to the entries themselves;
        several `degraded` features are joined by commas.
        """
        rows: dict[type[Struct], list[int]] = {}
        entries = list(self)
        for index, entry in enumerate(entries):
            rows.setdefault(type(entry), []).append(index)
        columns: dict[str, Any] = {"at": [entry.at for entry in entries]}
        columns |= {name: [None] * len(entries) for name in ("event", *_COLUMNS)}
        for kind, indices in rows.items():
            tag = str(kind.__struct_config__.tag)
            for name in ("event", *(name for name in kind.__struct_fields__ if name in _COLUMNS)):
                column = columns[name]
                for index in indices:
                    value = tag if name == "event" else getattr(entries[index], name)
                    column[index] = ",".join(value) if isinstance(value, tuple) else value
        types = {"at": "float64", "event": "category", **_COLUMNS}
        return pd.DataFrame({name: pd.Series(column, dtype=types[name]) for name, column in columns.items()})


def _column_types() -> dict[str, str]:
    names = {
        name: kind.__annotations__[name]
        for kind in _KINDS
        for name in kind.__struct_fields__
        if name not in ("at", "trace")
    }
    types = {}
    for name in sorted(names):
        hint = str(names[name])
        if "dict" not in hint:
            text = "string" if name in _FREE_TEXTS else "category"
            types[name] = "float64" if "float" in hint else "Int64" if "int" in hint else text
    return types


_COLUMNS = _column_types()
