"""Sessions: opened for a turn, one turn at a time, and committed with it.

The conversation store holds the truth; the session store holds what the next turn needs of it. A turn is appended to
the conversation first and to the session second, so whatever a crash leaves between the two is found again: the next
turn's number is taken, the missing turns are read from the conversation, and the turn gets the next free number.

A record in the session store is replaced only where it is still the one that was read (its version counts turns, its
revision changes of the profile). Who loses that race reads the record again, adds what the conversation has beyond it,
and tries once more; so two instances never lose each other's turns or profiles.

A session lives `limits.SESSION_TTL_SECONDS` after its last use: a turn, a change of its profile, or a connection that
begins. Looking at it is no use of it. An expired session is refused, or, where it may be created, goes on under its
profile and the next number with an empty history: what was said before can be read, but no model hears of it again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.lifecycle import SessionView, state_of
from orchestra.chat.profiles import checked
from orchestra.chat.stores import StoreCalls
from orchestra.chat.trimming import counted, room_fault, size_of, with_profile, with_turn
from orchestra.engines.apology import Apology
from orchestra.errors import InvalidRequest, SessionExists, SessionUnknown, StaleSession, StoreUnavailable
from orchestra.model import ConversationHead, Profile, Session, Turn
from orchestra.ports import Clock, ConversationStore, Entropy, MemoryStore, SessionStore

ATTEMPTS_MAX = 8
"""Each lost race means that another writer of the session succeeded; more than this is no race but a defect."""

PAGE_TURNS = 100

T = TypeVar("T")


@dataclass(frozen=True)
class OpenSession:
    """A session as a turn found it, and as the session store holds it (None where it does not)."""

    session: Session
    stored: Session | None


class SessionLocks:
    """Lets one turn of a session run at a time, in the order of arrival. A session nobody uses costs nothing."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def exclusive(self, session_id: str | None) -> AsyncIterator[None]:
        """Hold the session alone; a session yet to be made (None) is nobody else's."""
        if session_id is None:
            yield
            return
        with self.held(session_id):
            async with self._locks.setdefault(session_id, asyncio.Lock()):
                yield

    @contextmanager
    def held(self, session_id: str) -> Iterator[None]:
        """Hold the session together with others."""
        self._users[session_id] = self._users.get(session_id, 0) + 1
        try:
            yield
        finally:
            self._users[session_id] -= 1
            if not self._users[session_id]:
                del self._users[session_id]
                self._locks.pop(session_id, None)

    def is_held(self, session_id: str) -> bool:
        """Tell whether anybody holds the session."""
        return session_id in self._users


class Sessions:
    """The session manager."""

    def __init__(
        self,
        store: SessionStore,
        conversations: ConversationStore,
        calls: StoreCalls,
        clock: Clock,
        entropy: Entropy,
        memories: MemoryStore,
    ) -> None:
        self._store = store
        self._memories = memories
        self._conversations = conversations
        self._calls = calls
        self._clock = clock
        self._entropy = entropy
        self._locks = SessionLocks()
        self.exclusive = self._locks.exclusive

    def held(self, session_id: str) -> AbstractContextManager[None]:
        """Keep the session active for as long as the context lasts: a connection of it stands."""
        return self._locks.held(session_id)

    async def open(
        self,
        session_id: str | None,
        user_id: str | None,
        correlation_id: str,
        *,
        create: bool = False,
        fresh: bool = False,
    ) -> OpenSession:
        """Restore the session, or make one where `session_id` is None; nothing is stored before its first turn.

        With `create`, a session that does not exist is made, too, under the id that was asked for. A `fresh` id was
        made just now: no store is asked whether there is such a session.

        Raises
        ------
        SessionUnknown
            There is no such session, it expired, it was deleted, or it is another user's (which must not be told
            apart).
        """
        if session_id is None or fresh:
            return OpenSession(self._new(session_id or self._entropy.hex(16), user_id), None)
        stored = await self._record(session_id, correlation_id)
        session = await self._current(session_id, stored, correlation_id)
        if session is None and create:
            return OpenSession(self._new(session_id, user_id), None)
        if session is None or (self._expired(session) and not create):
            raise _unknown(session_id)
        return OpenSession(_owned(session, user_id), stored)

    async def commit(self, opened: OpenSession, turn: Turn) -> Turn:
        """Make `turn` durable in the conversation and the session, and return it with the number that it got.

        Where a turn of its id is durable already, that one is returned, and `turn` is not kept.

        Raises
        ------
        SessionUnknown
            The session was deleted meanwhile, or begun by another user under the same id.
        StaleSession
            Others committed turns of this session faster, `ATTEMPTS_MAX` times in a row.
        """
        session, correlation_id = opened.session, turn.correlation_id
        for _ in range(ATTEMPTS_MAX):
            numbered = replace(turn, number=session.version + 1)
            try:
                kept = await self._told(correlation_id, self._conversations.append(numbered, session.owner))
            except StaleSession:
                if not session.version:  # others began it, too
                    _check_same_owner(session, await self._head(session.id, correlation_id))
                session = await self._caught_up(session, correlation_id)
                continue
            if kept.session_id == session.id:
                await self._include(kept, session, opened.stored)
            return kept
        raise _overtaken()

    async def restore(
        self, session_id: str, user_id: str | None, correlation_id: str, *, create: bool = False
    ) -> Session:
        """Return the session for a connection that begins, which counts as its use: it lives a day from now.

        With `create`, a session that does not exist is made under this id; it is stored with its first turn.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        opened = await self.open(session_id, user_id, correlation_id, create=create)
        session = opened.session
        if not session.version and not session.revision:
            return session
        session = replace(session, updated_at=max(session.updated_at, self._clock.now()))
        with suppress(StaleSession):  # somebody used it just now
            await self._cached(correlation_id, self._store.save(session, expected=opened.stored))
        return session

    async def describe(
        self, session_id: str, user_id: str | None, correlation_id: str, *, to_read: bool = False
    ) -> SessionView:
        """Return how the session stands; an expired one is described as long as its conversation is kept.

        Where it is only `to_read` and the session store is away, the conversation tells it, as of a session whose
        record was lost: its last use is its last turn or change of its profile, whatever connections it had since.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        try:
            stored = await self._record(session_id, correlation_id)
        except StoreUnavailable:
            if not to_read:
                raise
            stored = None
        session = await self._current(session_id, stored, correlation_id)
        if session is None:
            raise _unknown(session_id)
        return self._view(_owned(session, user_id))

    async def change_profile(
        self,
        session_id: str,
        user_id: str | None,
        correlation_id: str,
        change: Callable[[Profile], Profile],
        *,
        create: bool = False,
    ) -> SessionView:
        """Replace the session's profile by what `change` makes of it, and return how the session stands then.

        `change` may be called several times, where others change the profile meanwhile; it may raise an
        `OrchestraError`. With `create`, the session is made, durably and with its owner, also of an empty profile.

        Raises
        ------
        SessionExists
            It should be made, and is there.
        InvalidRequest, PayloadTooLarge
            The profile cannot be kept, or pins a turn that there is not or more than fits; names field and cure.
        SessionUnknown, StaleSession, StoreUnavailable
        """
        for _ in range(ATTEMPTS_MAX):
            found = await self._head(session_id, correlation_id)
            if found is None and not create:
                raise _unknown(session_id)
            if found is not None and create:
                raise SessionExists(f"there is a session {session_id!r} already", field="$.session_id")
            now = self._clock.now()
            owner = _owner(session_id, user_id) if found is None else found.owner
            head = found or ConversationHead(owner, now, now)
            _owned(Session(session_id, owner, head.version, now, now), user_id)
            profile = checked(change(head.profile))
            pinned = await self._pinned(session_id, profile, correlation_id)
            if (fault := room_fault(profile, pinned)) is not None:
                raise InvalidRequest(
                    f"instruction, context and pinned turns take {fault}, half of what a session may have: pin fewer "
                    "or shorter turns",
                    field="$.pinned",
                )
            try:
                if found is None or profile != head.profile:
                    revision = head.revision + 1
                    setting = self._conversations.set_profile(session_id, owner, profile, revision=revision, at=now)
                    await self._told(correlation_id, setting)
                    head = replace(head, profile=profile, revision=revision, updated_at=now)
            except StaleSession:
                continue
            return self._view(await self._put_profile(session_id, head, pinned, correlation_id))
        raise _overtaken()

    async def delete(self, session_id: str, user_id: str | None, correlation_id: str) -> None:
        """Delete the session everywhere: its record, its turns, its profile and what memory keeps of it.

        A turn that is under way cannot bring it back. Its id is never used again. May be repeated after an error.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        try:
            head = await self._head(session_id, correlation_id)
        except SessionUnknown:  # deleted, but maybe not everywhere
            await self._cached(correlation_id, self._store.delete(session_id))
            raise
        if head is None:
            raise _unknown(session_id)
        _owned(Session(session_id, head.owner, head.version, 0, 0), user_id)
        after = 0
        while turns := await self._turns(session_id, after, correlation_id):  # before they are gone: they name memories
            await self.forget([turn.id for turn in turns], correlation_id)
            after = turns[-1].number
        late = await self._told(correlation_id, self._conversations.delete(session_id))
        await self._cached(correlation_id, self._store.delete(session_id))  # behind all that was saved until now
        await self.forget(late, correlation_id)

    async def forget(self, turn_ids: Sequence[str], correlation_id: str) -> None:
        """Let memory forget what was said in turns that are no more."""
        if turn_ids:
            await self._calls("memories", correlation_id, self._memories.forget(turn_ids))

    async def _include(self, turn: Turn, session: Session, stored: Session | None) -> None:
        """Save the session with `turn`, which is durable."""
        correlation_id = turn.correlation_id
        if turn.number == session.version + 1:
            session = with_turn(session, turn)
        elif turn.number > session.version:
            session = await self._caught_up(session, correlation_id)
        for _ in range(ATTEMPTS_MAX):
            if stored is not None and stored.version >= turn.number:
                return  # whoever saved it had read our turn from the conversation
            try:
                await self._cached(correlation_id, self._store.save(session, expected=stored))
                return
            except StaleSession:
                stored = await self._record(session.id, correlation_id)
            if stored is not None:
                session = await self._caught_up(stored, correlation_id)
            else:
                session = await self._rebuilt(session.id, await self._head(session.id, correlation_id), correlation_id)
        raise _overtaken()

    async def _put_profile(
        self, session_id: str, head: ConversationHead, pinned: Sequence[Turn], correlation_id: str
    ) -> Session:
        """Bring the profile that is durable into the session's record, and return the session."""
        for _ in range(ATTEMPTS_MAX):
            stored = await self._record(session_id, correlation_id)
            if stored is not None and stored.revision >= head.revision:
                return stored
            kept = head.profile.pinned
            if stored is None or any(number not in kept for number in stored.profile.pinned):
                # Of a turn that is no longer pinned, the record cannot tell whether it still belongs to the history.
                session = await self._rebuilt(session_id, head, correlation_id)
            else:
                session = with_profile(stored, head.profile, head.revision, pinned)
                session = replace(session, updated_at=max(session.updated_at, head.updated_at))
            try:
                await self._cached(correlation_id, self._store.save(session, expected=stored))
                return session
            except StaleSession:
                continue
        raise _overtaken()

    async def _pinned(self, session_id: str, profile: Profile, correlation_id: str) -> list[Turn]:
        """Read the turns that the profile pins.

        Raises
        ------
        InvalidRequest
            There is no such turn, or an apology is pinned.
        """
        if len(profile.pinned) > limits.SESSION_MESSAGES_MAX // 4:
            raise InvalidRequest(
                f"{len(profile.pinned)} turns are pinned, at most {limits.SESSION_MESSAGES_MAX // 4} are allowed: pin "
                "fewer",
                field="$.pinned",
            )
        pinned: list[Turn] = []
        for number in profile.pinned:
            turns = await self._turns(session_id, number - 1, correlation_id, limit=1)
            if not turns or turns[0].number != number or turns[0].engine == Apology.name:
                raise InvalidRequest(
                    f"turn {number} of this session cannot be pinned: there is none, or it has no answer",
                    field="$.pinned",
                )
            pinned += turns
        return pinned

    async def _record(self, session_id: str, correlation_id: str) -> Session | None:
        return await self._cached(correlation_id, self._store.load(session_id))

    async def _current(self, session_id: str, stored: Session | None, correlation_id: str) -> Session | None:
        """Return the session: that of its record, or made from its conversation."""
        if stored is not None and all(message.turn for message in stored.messages):
            return stored
        # Lost, expired, or a record from before messages told their turns.
        head = await self._head(session_id, correlation_id)
        return stored if head is None else await self._rebuilt(session_id, head, correlation_id)

    async def _rebuilt(self, session_id: str, head: ConversationHead | None, correlation_id: str) -> Session:
        """Make the session from its conversation; what was said before a pause of a day is no more part of it."""
        assert head is not None, "a session with a turn has a head"
        reading = self._conversations.latest(session_id, limit=limits.SESSION_MESSAGES_MAX // 2)
        latest = await self._told(correlation_id, reading)
        recent = _since_last_pause(latest, self._clock.now())
        session = Session(
            session_id,
            head.owner,
            version=0,
            created_at=head.created_at,
            updated_at=head.updated_at,
            profile=head.profile,
            revision=head.revision,
        )
        first = recent[0].number if recent else head.version + 1
        for number in head.profile.pinned:
            if number < first:
                recent = *await self._turns(session_id, number - 1, correlation_id, limit=1), *recent
        for turn in sorted(recent, key=_number):
            session = with_turn(session, turn)
        version = max([head.version, *(turn.number for turn in latest)])
        return replace(session, version=version, tokens=counted(session))

    async def _caught_up(self, session: Session, correlation_id: str) -> Session:
        """Add the turns that the conversation has and the session has not."""
        while True:
            turns = await self._turns(session.id, session.version, correlation_id)
            for turn in turns:
                session = with_turn(session, turn)
            if len(turns) < PAGE_TURNS:
                return session

    async def _turns(
        self, session_id: str, after: int, correlation_id: str, limit: int = PAGE_TURNS
    ) -> tuple[Turn, ...]:
        return await self._told(correlation_id, self._conversations.turns(session_id, after=after, limit=limit))

    async def _head(self, session_id: str, correlation_id: str) -> ConversationHead | None:
        return await self._told(correlation_id, self._conversations.head(session_id))

    async def _told(self, correlation_id: str, call: Coroutine[Any, Any, T]) -> T:
        return await self._calls("conversations", correlation_id, call)

    async def _cached(self, correlation_id: str, call: Coroutine[Any, Any, T]) -> T:
        return await self._calls("sessions", correlation_id, call)

    def _new(self, session_id: str, user_id: str | None) -> Session:
        now = self._clock.now()
        return Session(session_id, _owner(session_id, user_id), version=0, created_at=now, updated_at=now)

    def _expired(self, session: Session) -> bool:
        return state_of(session.updated_at, self._clock.now(), held=False) == "expired"

    def _view(self, session: Session) -> SessionView:
        return SessionView(
            session_id=session.id,
            state=state_of(session.updated_at, self._clock.now(), held=self._locks.is_held(session.id)),
            turns=session.version,
            messages=len(session.messages),
            tokens=session.tokens,
            bytes=size_of(session),
            created_at=session.created_at,
            updated_at=session.updated_at,
            expires_at=session.updated_at + limits.SESSION_TTL_SECONDS,
            profile=session.profile,
        )


def _since_last_pause(turns: Sequence[Turn], now: float) -> tuple[Turn, ...]:
    """Return the turns behind the last pause in which the session expired."""
    later = now
    for index in reversed(range(len(turns))):
        if later - turns[index].at >= limits.SESSION_TTL_SECONDS:
            return tuple(turns[index + 1 :])
        later = turns[index].at
    return tuple(turns)


def _owner(session_id: str, user_id: str | None) -> str:
    return f"session:{session_id}" if user_id is None else f"user:{user_id}"


def _owned(session: Session, user_id: str | None) -> Session:
    """Return `session`, where it is not another user's."""
    if user_id is not None and session.owner != f"user:{user_id}":
        raise _unknown(session.id)
    return session


def _check_same_owner(session: Session, head: ConversationHead | None) -> None:
    if head is not None and head.owner != session.owner:
        raise _unknown(session.id)


def _number(turn: Turn) -> int:
    return turn.number


def _unknown(session_id: str) -> SessionUnknown:
    return SessionUnknown(
        f"there is no session {session_id!r}, or it has expired: leave session_id out to start a new one",
        field="$.session_id",
    )


def _overtaken() -> StaleSession:
    return StaleSession("others changed this session first, again and again: send it again")
