"""Sessions: opened for a turn, one turn at a time, and committed with it.

The conversation store holds the truth; the session store holds what the next turn needs of it. A turn is appended to
the conversation first and to the session second, so whatever a crash leaves between the two is found again: the next
turn's number is taken, the missing turns are read from the conversation, and the turn gets the next free number.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass

from msgspec.structs import replace

from orchestra import limits
from orchestra.chat.lifecycle import SessionView
from orchestra.chat.stores import StoreCalls
from orchestra.engines.apology import Apology
from orchestra.errors import SessionUnknown, StaleSession
from orchestra.model import Message, Profile, Session, Turn
from orchestra.ports import Clock, ConversationStore, Entropy, MemoryStore, SessionStore

COMMIT_ATTEMPTS_MAX = 8
"""Each lost race means that another turn of the session was committed; more than this is no race but a defect."""


@dataclass(frozen=True)
class OpenSession:
    """A session as a turn found it, and as the session store holds it (None where it does not)."""

    session: Session
    stored: Session | None


class SessionLocks:
    """Lets one turn of a session run at a time, in the order of arrival. A session nobody waits for costs nothing."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def exclusive(self, session_id: str | None) -> AsyncIterator[None]:
        """Hold the session; a session yet to be made (None) is nobody else's."""
        if session_id is None:
            yield
            return
        lock = self._locks.setdefault(session_id, asyncio.Lock())
        self._users[session_id] = self._users.get(session_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[session_id] -= 1
            if not self._users[session_id]:
                del self._users[session_id], self._locks[session_id]


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

    async def open(
        self, session_id: str | None, user_id: str | None, correlation_id: str, *, create: bool = False
    ) -> OpenSession:
        """Restore the session, or make one where `session_id` is None; nothing is stored before its first turn.

        With `create`, a session that does not exist is made, too, under the id that was asked for.

        Raises
        ------
        SessionUnknown
            There is no such session, it expired, or it is another user's (which must not be told apart).
        """
        if session_id is None:
            return OpenSession(self._new(self._entropy.hex(16), user_id), None)
        stored = await self._calls("sessions", correlation_id, self._store.load(session_id))
        session = stored or await self._rebuilt(session_id, correlation_id)
        if session is None and create:
            return OpenSession(self._new(session_id, user_id), None)
        if session is None or (user_id is not None and session.owner != f"user:{user_id}"):
            raise SessionUnknown(
                f"there is no session {session_id!r}, or it has expired: leave session_id out to start a new one",
                field="$.session_id",
            )
        return OpenSession(session, stored)

    async def commit(self, opened: OpenSession, turn: Turn) -> Turn:
        """Make `turn` durable in the conversation and the session, and return it with the number that it got.

        Raises
        ------
        StaleSession
            Others committed turns of this session faster, `COMMIT_ATTEMPTS_MAX` times in a row.
        """
        session = opened.session
        for _ in range(COMMIT_ATTEMPTS_MAX):
            turn = replace(turn, number=session.version + 1)
            try:
                turn = await self._calls(
                    "conversations", turn.correlation_id, self._conversations.append(turn, session.owner)
                )
            except StaleSession:
                session = await self._caught_up(session, turn.correlation_id)
            else:
                await self._save(with_turn(session, turn), opened.stored, turn.correlation_id)
                return turn
        raise StaleSession("other turns of this session came first, again and again: send the message again")

    async def restore(
        self, session_id: str, user_id: str | None, correlation_id: str, *, create: bool = False
    ) -> Session:
        """Return the session for a connection that begins, which counts as its use: it lives a day from now.

        With `create`, a session that does not exist is made under this id; it is stored with its first turn.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        raise NotImplementedError

    def held(self, session_id: str) -> AbstractContextManager[None]:
        """Keep the session active for as long as the context lasts: a connection of it stands."""
        raise NotImplementedError

    async def describe(self, session_id: str, user_id: str | None, correlation_id: str) -> SessionView:
        """Return how the session stands; an expired one is described as long as its conversation is kept.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        raise NotImplementedError

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
        `OrchestraError`. With `create`, a session that does not exist is made.

        Raises
        ------
        InvalidRequest
            The profile is too large, or pins a turn that there is not.
        SessionUnknown, StaleSession, StoreUnavailable
        """
        raise NotImplementedError

    async def delete(self, session_id: str, user_id: str | None, correlation_id: str) -> None:
        """Delete the session everywhere: its record, its turns, its profile and what memory keeps of it.

        A turn that is under way cannot bring it back. Its id is never used again. May be repeated after an error.

        Raises
        ------
        SessionUnknown, StoreUnavailable
        """
        raise NotImplementedError

    async def _save(self, session: Session, stored: Session | None, correlation_id: str) -> None:
        for _ in range(COMMIT_ATTEMPTS_MAX):
            try:
                await self._calls("sessions", correlation_id, self._store.save(session, expected=stored))
            except StaleSession:
                stored = await self._calls("sessions", correlation_id, self._store.load(session.id))
                if stored is not None and stored.version >= session.version:
                    return  # whoever saved it had read our turn from the conversation
            else:
                return
        raise StaleSession("other turns of this session came first, again and again: send the message again")

    def _new(self, session_id: str, user_id: str | None) -> Session:
        owner = f"session:{session_id}" if user_id is None else f"user:{user_id}"
        now = self._clock.now()
        return Session(id=session_id, owner=owner, version=0, created_at=now, updated_at=now)

    async def _rebuilt(self, session_id: str, correlation_id: str) -> Session | None:
        """Make the session anew from its conversation, for a session store that lost it."""
        exchanges_max = limits.SESSION_MESSAGES_MAX // 2
        turns = await self._calls(
            "conversations", correlation_id, self._conversations.latest(session_id, limit=exchanges_max)
        )
        if not turns or self._clock.now() - turns[-1].at > limits.SESSION_TTL_SECONDS:
            return None
        owner = await self._calls("conversations", correlation_id, self._conversations.owner(session_id))
        first = turns[0]
        session = Session(session_id, owner or "", first.number - 1, created_at=first.at, updated_at=first.at)
        for turn in turns:
            session = with_turn(session, turn)
        return session

    async def _caught_up(self, session: Session, correlation_id: str) -> Session:
        """Add the turns that the conversation has and the session has not."""
        while True:
            turns = await self._calls(
                "conversations", correlation_id, self._conversations.turns(session.id, after=session.version)
            )
            if not turns:
                return session
            for turn in turns:
                session = with_turn(session, turn)


def with_turn(session: Session, turn: Turn) -> Session:
    """Return `session` with the exchange of `turn`, trimmed to the limits by dropping the oldest whole exchanges.

    A question that was met with an apology stays out: it will come again, and no model should take the apology for its
    own words.
    """
    messages = session.messages
    if turn.engine != Apology.name:
        messages = (*messages, Message("user", turn.message), Message("assistant", turn.reply))
    return replace(session, version=turn.number, updated_at=turn.at, messages=trimmed(messages))


def trimmed(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Drop the oldest whole exchanges until the rest is within `limits.SESSION_*`; the newest exchange always stays.

    An exchange is a user's message with what answers it: a history that opens with an answer misleads a model.
    """
    tokens, size_bytes = 0, 0
    keep_from = len(messages)
    for index in reversed(range(len(messages))):
        content = messages[index].content
        tokens += limits.estimated_tokens(content)
        size_bytes += len(content.encode())
        over = (
            len(messages) - index > limits.SESSION_MESSAGES_MAX
            or tokens > limits.SESSION_TOKENS_MAX
            or size_bytes > limits.SESSION_BYTES_MAX
        )
        if over and keep_from < len(messages):
            break
        if messages[index].role == "user":
            keep_from = index
    return messages[keep_from:]
