"""Stores in this process's memory, with the semantics of the real ones: what the simulator's stores are built on.

They forget with the process and grow with what they are given (sessions expire, turns and memories do not), so the
service never runs on them. Structs are frozen: what is stored needs no copy.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from math import floor
from operator import itemgetter, mul
from typing import NamedTuple

from msgspec.structs import astuple, replace

from orchestra import limits
from orchestra.adapters.storing import (
    WINDOW_BUCKETS,
    check_embedding,
    session_gone,
    similarity,
    stale_profile,
    stale_session,
    stale_turn,
)
from orchestra.model import ConversationHead, Memory, Profile, Recollection, Session, Tally, Turn
from orchestra.ports import Clock


class _Record(NamedTuple):
    session: Session | None  # None of one that was deleted
    expires_at: float


class InProcessSessions:
    """Sessions by id, each for `limits.SESSION_TTL_SECONDS` after its last save."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none (any more)."""
        record = self._alive(session_id)
        if record is not None and record.session is None:
            raise session_gone(session_id)
        return record and record.session

    async def save(self, session: Session, *, expected: Session | None) -> None:
        """Store `session` where the stored one has `expected`'s version and revision; None: where there is none."""
        record = self._alive(session.id)
        if record is not None and record.session is None:
            raise stale_session(session, expected)
        if _stamp(record and record.session) != _stamp(expected):
            if record and record.session == session:
                return
            raise stale_session(session, expected)
        self._put(session.id, session)

    async def delete(self, session_id: str) -> None:
        """Forget the session, and refuse to take it back for a while."""
        self._put(session_id, None)

    def forget(self, session_id: str) -> None:
        """Drop the session as if it had never been: for a world that must stay small."""
        self._records.pop(session_id, None)

    async def ping(self) -> None:
        """Return at once."""

    def _put(self, session_id: str, session: Session | None) -> None:
        # Taken out first, so that the dictionary stays ordered by expiry and the expired are found at its front.
        self._records.pop(session_id, None)
        self._records[session_id] = _Record(session, self._clock.now() + limits.SESSION_TTL_SECONDS)

    def _alive(self, session_id: str) -> _Record | None:
        now = self._clock.now()
        while self._records:
            oldest = next(iter(self._records))
            if self._records[oldest].expires_at > now:
                break
            del self._records[oldest]
        return self._records.get(session_id)


def _stamp(session: Session | None) -> tuple[int, int] | None:
    return None if session is None else (session.version, session.revision)


class _Row(NamedTuple):
    turn: Turn
    owner: str


def _number(row: _Row) -> int:
    return row.turn.number


class InProcessConversations:
    """Turns by session, kept in the order of their numbers, and profiles; only the ids of what was deleted."""

    def __init__(self) -> None:
        self._sessions: dict[str, list[_Row]] = {}
        self._turns: dict[str, Turn] = {}
        self._profiles: dict[str, ConversationHead] = {}
        self._deleted: dict[str, None] = {}

    async def append(self, turn: Turn, owner: str) -> Turn:
        """Keep `turn`, and return what is kept: of two of one id the first."""
        if (stored := self._turns.get(turn.id)) is not None:
            return stored
        profiled = self._profiles.get(turn.session_id)
        if turn.session_id in self._deleted or (profiled is not None and profiled.owner != owner):
            raise session_gone(turn.session_id)
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

    async def ids(self, session_id: str) -> tuple[str, ...]:
        """Return the ids of all its turns, lowest number first."""
        return tuple(row.turn.id for row in self._sessions.get(session_id, []))

    async def head(self, session_id: str) -> ConversationHead | None:
        """Return what is known of the session besides its turns."""
        if session_id in self._deleted:
            raise session_gone(session_id)
        rows, profiled = self._sessions.get(session_id), self._profiles.get(session_id)
        if not rows:
            return profiled
        first, last = rows[0], rows[-1].turn
        head = profiled or ConversationHead(first.owner, first.turn.at, last.at)
        return replace(
            head,
            created_at=min(head.created_at, first.turn.at),
            updated_at=max(head.updated_at, last.at),
            version=last.number,
        )

    async def set_profile(self, session_id: str, owner: str, profile: Profile, *, revision: int, at: float) -> None:
        """Keep `profile` as the session's where the kept revision is the one before `revision`."""
        head = await self.head(session_id)
        if head is not None and head.owner != owner:
            raise session_gone(session_id)
        kept = self._profiles.get(session_id)
        if kept is not None and (kept.revision, kept.profile) == (revision, profile):
            return
        if (kept.revision if kept else 0) != revision - 1:
            raise stale_profile(session_id, revision)
        created_at = kept.created_at if kept else at
        self._profiles[session_id] = ConversationHead(owner, created_at, at, 0, profile, revision)

    async def delete(self, session_id: str) -> tuple[str, ...]:
        """Forget the session's turns and profile, and return the ids of the turns."""
        self._deleted[session_id] = None
        self._profiles.pop(session_id, None)
        turn_ids = tuple(row.turn.id for row in self._sessions.pop(session_id, []))
        for turn_id in turn_ids:
            del self._turns[turn_id]
        return turn_ids

    def forget(self, session_id: str) -> None:
        """Drop the session as if it had never been: for a world that must stay small."""
        self._profiles.pop(session_id, None)
        for row in self._sessions.pop(session_id, []):
            del self._turns[row.turn.id]

    async def ping(self) -> None:
        """Return at once."""


class _Remembered(NamedTuple):
    """A memory, and what of its vector is not zero: which components, as one look into another vector, and they."""

    memory: Memory
    same_components: Callable[[Sequence[float]], tuple[float, ...]]
    components: tuple[float, ...]

    @classmethod
    def of(cls, memory: Memory) -> "_Remembered":
        vector = memory.embedding
        places = tuple(compress(range(len(vector)), vector))
        look = itemgetter(*places) if len(places) > 1 else tuple  # for one place it would give no tuple
        return cls(memory, look, look(vector))

    def cosine(self, vector: Sequence[float]) -> float:
        """Return the cosine with another unit vector, which is their dot product."""
        products: Iterable[float] = map(mul, self.same_components(vector), self.components)
        return sum(products)


class InProcessMemories:
    """Memories by owner; recall compares with every memory of that owner, so it is exact."""

    def __init__(self) -> None:
        self._owners: dict[str, list[_Remembered]] = {}
        self._owner_of: dict[str, str] = {}

    async def remember(self, memory: Memory) -> None:
        """Keep `memory`, once however often it comes."""
        check_embedding(memory.embedding)
        if memory.id not in self._owner_of:
            self._owner_of[memory.id] = memory.owner
            self._owners.setdefault(memory.owner, []).append(_Remembered.of(memory))

    async def recall(self, owner: str, embedding: tuple[float, ...], *, limit: int) -> tuple[Recollection, ...]:
        """Return the `limit` memories of `owner` nearest to `embedding`, nearest first, ties by id."""
        check_embedding(embedding)
        remembered = self._owners.get(owner, ())
        ranked = sorted([(-each.cosine(embedding), each.memory.id, each.memory.text) for each in remembered])
        return tuple([Recollection(text, similarity(-distance)) for distance, _, text in ranked[:limit]])

    async def forget(self, memory_ids: Sequence[str]) -> None:
        """Forget the memories of these ids."""
        for memory_id in memory_ids:
            if (owner := self._owner_of.pop(memory_id, None)) is not None:
                self._owners[owner] = [each for each in self._owners[owner] if each.memory.id != memory_id]

    async def ping(self) -> None:
        """Return at once."""


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
