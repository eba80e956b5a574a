"""The log of one turn: numbered frames, which anybody may follow from any place in it.

    contract: `Entry`, `Watch`, `Followed`;  state: `TurnLog`, `KeptLogs`

Nothing is queued for a follower: one that is slow reads the log later, so followers cost no memory. Numbers of one run
of a turn follow each other. A turn that has to run again goes on under numbers above any that its former run can have
told, also where nobody knows any more how far that one came: each run has `SEQS_PER_RUN` of its own.
"""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from orchestra import limits
from orchestra.errors import OrchestraError, of_kind, retry_after_of
from orchestra.frames import Done, ErrorFrame, LogFrame, Started
from orchestra.model import ChatReply, Turn

SEQS_PER_RUN = 1_000_000
END_SEQ = 1_000_000_000
"""Number of the end of a turn whose log is gone: above all that any log had, and the highest that a client may name."""
ENTRY_BYTES = 400
"""What an entry takes beside its JSON, about."""


class Entry:
    """One frame of a turn's log, and the JSON that it is sent as, which is made once it is asked for."""

    __slots__ = ("_data", "frame")

    def __init__(self, frame: LogFrame, data: bytes | None = None) -> None:
        self.frame = frame
        self._data = data

    @property
    def data(self) -> bytes:
        """Its JSON."""
        if self._data is None:
            self._data = msgspec.json.encode(self.frame)
        return self._data

    @property
    def seq(self) -> int:
        """Its number."""
        return self.frame.seq or 0

    @property
    def ends(self) -> bool:
        """Whether it is the log's last."""
        return isinstance(self.frame, Done | ErrorFrame)


class TurnLog:
    """What was told of one run of a turn so far.

    Parameters
    ----------
    session_id, turn_id : str
    message : str or None
        What was said; None where it is yet to be learnt, as of a copy whose `started` has not come.
    base : int
        The number before its first entry's.
    """

    __slots__ = ("_ends", "_waiting", "base", "entries", "error", "message", "session_id", "told", "turn_id")

    def __init__(self, session_id: str, turn_id: str, message: str | None, base: int = 0) -> None:
        self.session_id = session_id
        self.turn_id = turn_id
        self.message = message
        self.base = base
        self.told = 0  # the highest number that there is known to be, where this is a copy
        self.entries: list[Entry] = []
        self.error: OrchestraError | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._ends: list[asyncio.Future[None]] = []  # those who wait for the end, and are not woken before

    @property
    def seq(self) -> int:
        """The number of the last entry."""
        return self.base + len(self.entries)

    @property
    def ended(self) -> bool:
        """Whether nothing will be added any more."""
        return bool(self.entries) and self.entries[-1].ends

    @property
    def size_bytes(self) -> int:
        """What it takes of memory, about."""
        return sum([len(entry.data) + ENTRY_BYTES for entry in self.entries])

    def add(self, frame: LogFrame) -> Entry:
        """Add `frame`, which has the next number."""
        entry = Entry(frame)
        self.append(entry)
        return entry

    def append(self, entry: Entry) -> None:
        """Add an entry, and let who waits for one go on."""
        self.entries.append(entry)
        if isinstance(entry.frame, ErrorFrame):
            self.error = self.error or error_of(entry.frame)
        elif isinstance(entry.frame, Started):
            self.session_id, self.message = entry.frame.session_id, entry.frame.message
        if self._waiting:
            self._waiting = _woken(self._waiting)
        if self._ends and entry.ends:
            self._ends = _woken(self._ends)

    def behind(self, seq: int) -> Entry | None:
        """Return the first entry with a number above `seq`, if there is one yet."""
        index = max(0, seq - self.base)
        return self.entries[index] if index < len(self.entries) else None

    async def grown(self) -> None:
        """Return once the log has another entry."""
        await _woken_from(self._waiting)

    async def end(self) -> None:
        """Return once the log has its last entry."""
        if not self.ended:
            await _woken_from(self._ends)


def _woken(waiting: list[asyncio.Future[None]]) -> list[asyncio.Future[None]]:
    """Let all who wait go on; nobody is left."""
    for each in waiting:
        if not each.done():
            each.set_result(None)
    return []


async def _woken_from(waiting: list[asyncio.Future[None]]) -> None:
    """Stand among those who wait, until woken."""
    waiter = asyncio.get_running_loop().create_future()
    waiting.append(waiter)
    try:
        await waiter
    except asyncio.CancelledError:
        with suppress(ValueError):
            waiting.remove(waiter)
        raise


class Followed:
    """A log that may be followed: one that has ended needs no more than this."""

    def __init__(self, log: TurnLog) -> None:
        self.log = log

    def attach(self) -> None:
        """Count one more follower."""

    async def detach(self, *, grace: bool) -> None:
        """Count one less; without `grace`, do what the last one's going means before this returns."""


class Watch:
    """One who follows a turn's log: enter it, then iterate over its entries from behind number `after` to the end.

    A number that the log never reached is another run's: then all of this one is new.

    Parameters
    ----------
    grace : bool
        Whether the turn, once nobody follows it any more, goes on for the grace that clients have to come back.
    replayed : bool
        Whether the turn had begun before it was asked for.

    Attributes
    ----------
    named : bool
        Whether the client can name the turn, so that it can come back; where it cannot yet, there is no grace.
    """

    __slots__ = ("_after", "_followed", "_grace", "_log", "named", "replayed")

    def __init__(self, followed: Followed, after: int, *, grace: bool, replayed: bool = True) -> None:
        self.replayed = replayed
        self.named = True
        self._followed = followed
        self._log = followed.log
        self._after = after
        self._grace = grace

    @property
    def turn_id(self) -> str:
        """The turn."""
        return self._log.turn_id

    @property
    def session_id(self) -> str:
        """Its session."""
        return self._log.session_id

    async def __aenter__(self) -> Self:
        self._followed.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._followed.detach(grace=self._grace and self.named)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        log = self._log
        while True:
            if log.entries and self._after > max(log.seq, log.told):
                self._after = 0
            if (entry := log.behind(self._after)) is not None:
                self._after = entry.seq
                return entry
            if log.ended:
                raise StopAsyncIteration
            await log.grown()

    async def reply(self) -> ChatReply:
        """Return the whole reply once the turn has ended.

        Raises
        ------
        OrchestraError
            What the turn failed with.
        """
        await self._log.end()
        last = self._log.entries[-1].frame
        if isinstance(last, Done):
            return last.reply
        assert self._log.error is not None
        raise self._log.error


class KeptLogs:
    """Logs that have ended, each for `limits.LOG_SECONDS`; the oldest go first where they are too many or too large."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._logs: dict[str, tuple[TurnLog, float]] = {}  # and until when, in order of that
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._logs)

    def get(self, turn_id: str) -> TurnLog | None:
        """Return the log of a turn that ended a moment ago."""
        kept = self._logs.get(turn_id)
        return kept and kept[0]

    def add(self, log: TurnLog) -> None:
        """Keep a log, in place of one of a former run."""
        loop = asyncio.get_running_loop()
        self.drop(log.turn_id)
        self._logs[log.turn_id] = log, loop.time() + limits.LOG_SECONDS
        self.size_bytes += log.size_bytes
        while len(self._logs) > limits.LOGS_MAX or self.size_bytes > limits.LOGS_BYTES_MAX:
            self.drop(next(iter(self._logs)))
        self._wind(loop)

    def drop(self, turn_id: str) -> None:
        """Keep the log of that turn no longer."""
        if (kept := self._logs.pop(turn_id, None)) is not None:
            self.size_bytes -= kept[0].size_bytes

    def drop_session(self, session_id: str) -> None:
        """Keep no log of that session any longer."""
        for turn_id in [turn_id for turn_id, (log, _) in self._logs.items() if log.session_id == session_id]:
            self.drop(turn_id)

    def close(self) -> None:
        """Forget everything."""
        self._logs.clear()
        self.size_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wind(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and self._logs:
            self._timer = loop.call_at(next(iter(self._logs.values()))[1], self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for turn_id in [turn_id for turn_id, (_, until) in self._logs.items() if until <= now]:
            self.drop(turn_id)
        self._wind(loop)


def ended_log(turn: Turn, after: int = 0) -> TurnLog:
    """Return the log of a turn of which only the conversation still knows, for who has number `after`.

    Its end has one place, `END_SEQ`, wherever it is asked from: who has that, has all.
    """
    log = TurnLog(turn.session_id, turn.id, turn.message, END_SEQ - (1 if after else 2))
    if not after:
        log.add(Started(turn.session_id, turn.id, END_SEQ - 1, turn.message))
    log.add(Done(turn.id, END_SEQ, turn.as_reply))
    return log


def error_frame(
    error: OrchestraError,
    *,
    turn_id: str | None = None,
    seq: int | None = None,
    id: str | None = None,  # noqa: A002 - the frame's own name for it
    correlation_id: str | None = None,
) -> ErrorFrame:
    """Return `error` as a frame."""
    return ErrorFrame(
        error.kind,
        error.title,
        error.status,
        error.detail,
        error.retryable,
        turn_id=turn_id,
        seq=seq,
        id=id,
        field=error.field,
        retry_after_seconds=retry_after_of(error),
        correlation_id=correlation_id,
    )


def error_of(frame: ErrorFrame) -> OrchestraError:
    """Return the error that `frame` tells of, as another instance met it."""
    kind = of_kind(frame.kind) or OrchestraError
    return kind(frame.detail, field=frame.field, retry_after_seconds=frame.retry_after_seconds)
