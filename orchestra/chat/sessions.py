"""Sessions: opened for a turn, one turn at a time, and committed with it.

The conversation store holds the truth; the session store holds what the next turn needs of it. A turn is appended to
the conversation first and to the session second. From the first on it is durable, and is answered: where the session
cannot be saved, the reply says so (`SESSION` in `degraded`), the session's next turn on this instance reads from the
conversation what its record lacks, and the record is mended as soon as the store answers. Until then, or where the
instance crashed between the two writes, a turn on another instance finds the old record: its model does not see the
turn that is missing there. Nothing is lost by that: the turn's number is taken, so the missing turns are read from the
conversation, and it gets the next free number. To ask for the conversation's head with every turn would close this
gap, for one more query a turn.

A record in the session store is replaced only where it is still the one that was read (its version counts turns, its
revision changes of the profile). Who loses that race reads the record again, adds what the conversation has beyond it,
and tries once more; so two instances never lose each other's turns or profiles.

A session lives `limits.SESSION_TTL_SECONDS` after its last use: a turn, a change of its profile, or a connection that
begins. Looking at it is no use of it. An expired session is refused, or, where it may be created, goes on under its
profile and the next number with an empty history: what was said before can be read, but no model hears of it again.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.lifecycle import SessionView, state_of
from orchestra.chat.locks import SessionLocks
from orchestra.chat.mending import Mender
from orchestra.chat.profiles import checked
from orchestra.chat.rebuilding import Others, rebuilt
from orchestra.chat.stores import StoreCalls
from orchestra.chat.trimming import room_fault, size_of, with_profile, with_turn
from orchestra.engines.apology import Apology
from orchestra.errors import InvalidRequest, SessionExists, SessionUnknown, StaleSession, StoreUnavailable
from orchestra.model import ConversationHead, Profile, Session, Turn
from orchestra.ports import Clock, ConversationStore, Entropy, MemoryStore, SessionStore

ATTEMPTS_MAX = 8
"""Each lost race means that another writer of the session succeeded; more than this is no race but a defect."""

BEHIND_TURNS_MAX = 8
"""Turns that a session is brought up to date by; one that lacks more is made anew."""

WAIT_SECONDS = 0.01
"""How long, about, who lost a race for a profile waits at first; then twice as long, and so on."""

FORGOTTEN_AT_ONCE = 1_000

SESSION = "session"
"""What a turn did without whose session could not be saved with it."""

T = TypeVar("T")


@dataclass(frozen=True)
class OpenSession:
    """A session as a turn found it, and as the session store holds it (None where it does not)."""

    session: Session
    stored: Session | None


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
        self._locks = SessionLocks("turns", limits.SESSION_WAITING_MAX)
        self.exclusive = self._locks.exclusive
        self.check_room = self._locks.check_room
        self._changes = SessionLocks("changes of the profile", limits.PROFILE_WAITING_MAX)
        self._mender = Mender(self._mend, entropy.random)

    async def aclose(self) -> None:
        """Mend no records any more."""
        await self._mender.aclose()

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
        if stored is not None and session is stored and session_id in self._mender:
            session = await self._up_to_date(stored, correlation_id)
            with suppress(StaleSession, StoreUnavailable):
                await self._save_mended(session, stored, correlation_id)
                stored = session
        if session is None and create:
            return OpenSession(self._new(session_id, user_id), None)
        if session is None or (self._expired(session) and not create):
            raise _unknown(session_id)
        return OpenSession(_owned(session, user_id), stored)

    async def commit(self, opened: OpenSession, turn: Turn) -> Turn:
        """Make `turn` durable in the conversation, save the session with it, and return it with the number that it got.

        Where a turn of its id is durable already, that one is returned, and `turn` is not kept. Where the session could
        not be saved, the turn that is returned has `SESSION` in `degraded`; the one that is durable has not.

        Raises
        ------
        SessionUnknown
            The session was deleted meanwhile, or begun by another user under the same id.
        StaleSession
            Others committed turns of this session faster, `ATTEMPTS_MAX` times in a row; `turn` is not durable.
        StoreUnavailable
            Whether `turn` is durable is unknown.
        """
        session, correlation_id = opened.session, turn.correlation_id
        for _ in range(ATTEMPTS_MAX):
            if turn.number != session.version + 1:
                turn = replace(turn, number=session.version + 1)
            try:
                kept = await self._appended(turn, session.owner)
            except StaleSession:
                if not session.version:  # others began it, too
                    _check_same_owner(session, await self._head(session.id, correlation_id))
                session = await self._caught_up(session, correlation_id)
                continue
            if kept.session_id != session.id or await self._included(kept, session, opened.stored):
                return kept
            return replace(kept, degraded=(*kept.degraded, SESSION))
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
        stored, answers = None, True
        try:
            stored = await self._record(session_id, correlation_id)
        except StoreUnavailable:
            if not to_read:
                raise
            answers = False
        session = await self._current(session_id, stored, correlation_id)
        if session is None:
            raise _unknown(session_id)
        view = self._view(_owned(session, user_id))
        if answers and session is not stored and view.state != "expired":  # made anew: once is enough
            with suppress(StaleSession, StoreUnavailable):
                await self._cached(correlation_id, self._store.save(session, expected=stored))
        return view

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

        It counts as use of the session, also where it changes nothing. `change` may be called several times, where
        others change the profile meanwhile; it may raise an `OrchestraError`. With `create`, the session is made,
        durably and with its owner, also of an empty profile.

        Raises
        ------
        SessionExists
            It should be made, and is there.
        InvalidRequest, PayloadTooLarge
            The profile cannot be kept, or pins a turn that there is not or more than fits; names field and cure.
        SessionUnknown, StaleSession, Overloaded, StoreUnavailable
        """
        async with self._changes.exclusive(session_id):
            for attempt in range(ATTEMPTS_MAX):
                with suppress(StaleSession):
                    return self._view(await self._changed(session_id, user_id, correlation_id, change, create))
                await asyncio.sleep(WAIT_SECONDS * 2**attempt * self._entropy.random())
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
        turn_ids = await self._told(correlation_id, self._conversations.ids(session_id))
        await self.forget(turn_ids, correlation_id)  # before they are gone: they name memories
        late = await self._told(correlation_id, self._conversations.delete(session_id))
        await self._cached(correlation_id, self._store.delete(session_id))  # behind all that was saved until now
        await self.forget(late, correlation_id)

    async def forget(self, turn_ids: Sequence[str], correlation_id: str) -> None:
        """Let memory forget what was said in turns that are no more."""
        for first in range(0, len(turn_ids), FORGOTTEN_AT_ONCE):
            some = turn_ids[first : first + FORGOTTEN_AT_ONCE]
            await self._calls("memories", correlation_id, self._memories.forget(some))

    # --- a turn

    async def _appended(self, turn: Turn, owner: str) -> Turn:
        try:
            return await self._told(turn.correlation_id, self._conversations.append(turn, owner))
        except StoreUnavailable as error:
            self._mender.note(turn.session_id, turn.correlation_id)
            raise StoreUnavailable(
                "the conversation store did not confirm that it has the turn, which may be durable or not: ask again "
                "with the same key (Idempotency-Key, or the message's id), or read the conversation first",
                retry_after_seconds=error.retry_after_seconds,
            ) from error

    async def _included(self, turn: Turn, session: Session, stored: Session | None) -> bool:
        """Save the session with `turn`, which is durable, now or later; tell whether it was now."""
        try:
            await self._include(turn, session, stored)
        except (StaleSession, StoreUnavailable):
            self._mender.note(session.id, turn.correlation_id)
            return False
        self._mender.mended(session.id)
        return True

    async def _include(self, turn: Turn, session: Session, stored: Session | None) -> None:
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

    # --- a profile

    async def _changed(
        self,
        session_id: str,
        user_id: str | None,
        correlation_id: str,
        change: Callable[[Profile], Profile],
        create: bool,
    ) -> Session:
        """Change the profile, unless others do at the same time: that is `StaleSession`."""
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
        if found is None or profile != head.profile:
            revision = head.revision + 1
            setting = self._conversations.set_profile(session_id, owner, profile, revision=revision, at=now)
            await self._told(correlation_id, setting)
            head = replace(head, profile=profile, revision=revision)
        try:
            return await self._put_profile(session_id, head, pinned, now, correlation_id)
        except (StaleSession, StoreUnavailable):
            self._mender.note(session_id, correlation_id)  # it is durable
            raise

    async def _put_profile(
        self, session_id: str, head: ConversationHead, pinned: Sequence[Turn], now: float, correlation_id: str
    ) -> Session:
        """Bring the profile that is durable into the session's record, which was in use, and return the session."""
        for _ in range(ATTEMPTS_MAX):
            stored = await self._record(session_id, correlation_id)
            kept = head.profile.pinned
            if stored is not None and stored.revision >= head.revision and not self._expired(stored):
                session = stored
            elif stored is None or self._expired(stored) or any(each not in kept for each in stored.profile.pinned):
                # Of a turn that is no longer pinned, the record cannot tell whether it still belongs to the history.
                session = await self._rebuilt(session_id, await self._head(session_id, correlation_id), correlation_id)
            else:
                session = with_profile(stored, head.profile, head.revision, pinned)
            session = replace(session, updated_at=max(session.updated_at, now))
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

    # --- how a session is found

    def _record(self, session_id: str, correlation_id: str) -> Coroutine[Any, Any, Session | None]:
        return self._cached(correlation_id, self._store.load(session_id))

    async def _current(self, session_id: str, stored: Session | None, correlation_id: str) -> Session | None:
        """Return the session: that of its record, or made from its conversation."""
        if stored is not None and all(message.turn for message in stored.messages) and not self._expired(stored):
            return stored
        # Lost, expired, or a record from before messages told their turns.
        head = await self._head(session_id, correlation_id)
        return stored if head is None else await self._rebuilt(session_id, head, correlation_id)

    async def _rebuilt(self, session_id: str, head: ConversationHead | None, correlation_id: str) -> Session:
        """Make the session from its conversation."""
        assert head is not None, "a session with a turn has a head"

        async def read(after: int, limit: int) -> tuple[Turn, ...]:
            return await self._turns(session_id, after, correlation_id, limit=limit)

        return await rebuilt(session_id, head, read, self._clock.now())

    async def _caught_up(self, session: Session, correlation_id: str) -> Session:
        """Add the turns that the conversation has and the session has not."""
        turns = await self._turns(session.id, session.version, correlation_id, limit=BEHIND_TURNS_MAX)
        if len(turns) == BEHIND_TURNS_MAX:
            return await self._anew(session, await self._head(session.id, correlation_id), correlation_id)
        others = Others()
        for turn in turns:
            session = with_turn(session, turn)
            await others.run_after(turn)
        return session

    async def _anew(self, session: Session, head: ConversationHead | None, correlation_id: str) -> Session:
        again = await self._rebuilt(session.id, head, correlation_id)
        return replace(again, updated_at=max(again.updated_at, session.updated_at))

    async def _mend(self, session_id: str, correlation_id: str) -> None:
        """Bring the session's record up to date; one that there is not is made when it is asked for."""
        stored = await self._record(session_id, correlation_id)
        if stored is not None:
            await self._save_mended(await self._up_to_date(stored, correlation_id), stored, correlation_id)

    async def _up_to_date(self, stored: Session, correlation_id: str) -> Session:
        """Return the session of a record with what the conversation has beyond it."""
        head = await self._head(stored.id, correlation_id)
        if head is not None and head.revision > stored.revision:
            return await self._anew(stored, head, correlation_id)
        return await self._caught_up(stored, correlation_id)

    async def _save_mended(self, session: Session, stored: Session, correlation_id: str) -> None:
        if session is not stored:
            await self._cached(correlation_id, self._store.save(session, expected=stored))
        self._mender.mended(stored.id)

    async def _turns(self, session_id: str, after: int, correlation_id: str, limit: int) -> tuple[Turn, ...]:
        return await self._told(correlation_id, self._conversations.turns(session_id, after=after, limit=limit))

    async def _head(self, session_id: str, correlation_id: str) -> ConversationHead | None:
        return await self._told(correlation_id, self._conversations.head(session_id))

    def _told(self, correlation_id: str, call: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return self._calls("conversations", correlation_id, call)

    def _cached(self, correlation_id: str, call: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        return self._calls("sessions", correlation_id, call)

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


def remembers_itself(session: Session) -> bool:
    """Tell whether the history says all that memory could: of a session without a user, with every turn still there."""
    return len(session.messages) == 2 * session.version and session.owner == _owner(session.id, None)


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


def _unknown(session_id: str) -> SessionUnknown:
    return SessionUnknown(
        f"there is no session {session_id!r}, or it has expired: leave session_id out to start a new one",
        field="$.session_id",
    )


def _overtaken() -> StaleSession:
    return StaleSession("others changed this session first, again and again: send it again", retry_after_seconds=1)
