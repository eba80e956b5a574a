"""Stores in this process's memory, with the semantics of the real ones: what the simulator's stores are built on.

They forget with the process and grow with what they are given (sessions expire, turns and memories do not), so the
service never runs on them. Structs are frozen: what is stored needs no copy.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from heapq import nsmallest
from math import floor
from operator import mul
from typing import NamedTuple

from msgspec.structs import astuple

from orchestra import limits
from orchestra.adapters.storing import WINDOW_BUCKETS, check_embedding, similarity, stale_session, stale_turn
from orchestra.model import Memory, Recollection, Session, Tally, Turn
from orchestra.ports import Clock


class _Record(NamedTuple):
    session: Session
    expires_at: float


class InProcessSessions:
    """Sessions by id, each for `limits.SESSION_TTL_SECONDS` after its last save."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none (any more)."""
        record = self._alive(session_id)
        return record.session if record else None

    async def save(self, session: Session, *, expected_version: int) -> None:
        """Store `session` where the stored version is `expected_version`; -1 means that there must be none."""
        record = self._alive(session.id)
        version = record.session.version if record else -1
        if version != expected_version:
            if record and record.session == session:
                return
            raise stale_session(session, expected_version)
        # Taken out first, so that the dictionary stays ordered by expiry and the expired are found at its front.
        self._records.pop(session.id, None)
        self._records[session.id] = _Record(session, self._clock.now() + limits.SESSION_TTL_SECONDS)

    async def ping(self) -> None:
        """Return at once."""

    def _alive(self, session_id: str) -> _Record | None:
        now = self._clock.now()
        while self._records:
            oldest = next(iter(self._records))
            if self._records[oldest].expires_at > now:
                break
            del self._records[oldest]
        return self._records.get(session_id)


class _Row(NamedTuple):
    turn: Turn
    owner: str


def _number(row: _Row) -> int:
    return row.turn.number


class InProcessConversations:
    """Turns by session, kept in the order of their numbers."""

    def __init__(self) -> None:
        self._sessions: dict[str, list[_Row]] = {}
        self._turns: dict[str, Turn] = {}

    async def append(self, turn: Turn, owner: str) -> Turn:
        """Keep `turn`, and return what is kept: of two of one id the first."""
        if (stored := self._turns.get(turn.id)) is not None:
            return stored
        rows = self._sessions.setdefault(turn.session_id, [])
        place = bisect_left(rows, turn.number, key=_number)
        if place < len(rows) and rows[place].turn.number == turn.number:
            raise stale_turn(turn)
        rows.insert(place, _Row(turn, owner))
        self._turns[turn.id] = turn
        return turn

    async def find(self, turn_id: str) -> Turn | None:
        """Return the turn of that id, or None."""
        return self._turns.get(turn_id)

    async def turns(self, session_id: str, *, after: int = 0, limit: int = 100) -> tuple[Turn, ...]:
        """Return turns numbered above `after`, lowest first, at most `limit`."""
        rows = self._sessions.get(session_id, [])
        start = bisect_right(rows, after, key=_number)
        return tuple(row.turn for row in rows[start : start + limit])

    async def latest(self, session_id: str, *, limit: int) -> tuple[Turn, ...]:
        """Return the last `limit` turns, lowest number first."""
        rows = self._sessions.get(session_id, [])
        return tuple(row.turn for row in rows[max(0, len(rows) - limit) :])

    async def owner(self, session_id: str) -> str | None:
        """Return the owner that the session's first turn named."""
        rows = self._sessions.get(session_id)
        return rows[0].owner if rows else None

    async def ping(self) -> None:
        """Return at once."""


class InProcessMemories:
    """Memories by owner; recall compares with every memory of that owner, so it is exact."""

    def __init__(self) -> None:
        self._owners: dict[str, list[Memory]] = {}
        self._memory_ids: set[str] = set()

    async def remember(self, memory: Memory) -> None:
        """Keep `memory`, once however often it comes."""
        check_embedding(memory.embedding)
        if memory.id not in self._memory_ids:
            self._memory_ids.add(memory.id)
            self._owners.setdefault(memory.owner, []).append(memory)

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        """Return the `limit` memories of `owner` nearest to `embedding`, nearest first, ties by id."""
        check_embedding(embedding)
        # The cosine of unit vectors is their dot product.
        ranked = ((-sum(map(mul, each.embedding, embedding)), each.id, each.text) for each in self._owned(owner))
        return tuple(Recollection(text, similarity(-distance)) for distance, _, text in nsmallest(limit, ranked))

    async def ping(self) -> None:
        """Return at once."""

    def _owned(self, owner: str) -> list[Memory]:
        return self._owners.get(owner, [])


class InProcessFleet:
    """A fleet of the instances that are given this very object. What it keeps is bounded by the names of breakers."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, float], dict[int, Tally]] = {}  # by breaker and window, then by bucket's number
        self._orders: dict[str, str] = {}

    async def share(self, tallies: Mapping[str, Tally], *, window_seconds: float) -> dict[str, Tally]:
        """Add new calls to the fleet's, and return what all instances saw in the window."""
        now = floor(self._clock.now() * WINDOW_BUCKETS / window_seconds)
        return {name: self._add(name, window_seconds, now, tally) for name, tally in tallies.items()}

    def _add(self, name: str, window_seconds: float, now: int, tally: Tally) -> Tally:
        seen = self._seen.get((name, window_seconds), {})
        recent = {at: each for at, each in seen.items() if abs(now - at) < WINDOW_BUCKETS}
        recent[now] = _sum((recent.get(now, Tally()), tally))
        self._seen[name, window_seconds] = recent
        return _sum(recent.values())

    async def orders(self) -> dict[str, str]:
        """Return the operators' standing orders, by target."""
        return dict(self._orders)

    async def order(self, target: str, order: str | None) -> None:
        """Let `order` stand for `target`, or none any more."""
        if order is None:
            self._orders.pop(target, None)
        else:
            self._orders[target] = order


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(*map(astuple, tallies), strict=True)))
