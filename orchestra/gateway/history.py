"""Reading what a conversation has said, a few turns at a time. Nothing here takes a turn, so MAINTENANCE lets it be."""

from dataclasses import dataclass

from orchestra.chat.stores import StoreCalls
from orchestra.errors import SessionUnknown
from orchestra.model import ConversationHead, Turn
from orchestra.ports import ConversationStore
from orchestra.security.validation import validate_id

TURNS_MAX = 100

PAGE_CHARS_MAX = 2_000_000
READ_AT_ONCE = 20


@dataclass(frozen=True)
class Page:
    """Turns of one conversation, lowest number first.

    Parameters
    ----------
    turns : tuple of Turn
    next_after : int or None
        The `after` that brings what follows; None where nothing does.
    next_before : int or None
        The `before` that brings what precedes; None where nothing does.
    """

    turns: tuple[Turn, ...]
    next_after: int | None
    next_before: int | None


class Reading:
    """Reads conversations for one request, a few turns at a time, so that a page of long ones fills no memory."""

    def __init__(self, conversations: ConversationStore, calls: StoreCalls, correlation_id: str) -> None:
        self._conversations = conversations
        self._calls = calls
        self._correlation_id = correlation_id

    async def head(self, session_id: str) -> ConversationHead:
        """Return what is known of the session besides its turns.

        Raises
        ------
        SessionUnknown
            Neither a turn nor a profile of it is stored.
        """
        found = self._conversations.head(session_id)
        try:
            head = await self._calls("conversations", self._correlation_id, found)
        except SessionUnknown:  # deleted, which only those know who deleted it
            head = None
        if head is None:
            raise unknown(session_id)
        return head

    async def page_after(self, session_id: str, after: int, limit: int, version: int) -> Page:
        """Return at most `limit` turns above number `after` and up to `version`, fewer where they are long."""
        turns: list[Turn] = []
        chars = 0
        begin = reached = min(after, version)
        while reached < version and len(turns) < limit:
            for turn in await self.some(session_id, reached, version, limit - len(turns)):
                chars += _chars(turn)
                if turns and chars > PAGE_CHARS_MAX:
                    limit = len(turns)
                    break
                turns.append(turn)
                reached = turn.number
        return Page(tuple(turns), reached if reached < version else None, begin + 1 if begin else None)

    async def page_before(self, session_id: str, before: int, limit: int, version: int) -> Page:
        """Return the last `limit` turns below number `before` and up to `version`, fewer where they are long."""
        newest_first: list[Turn] = []
        chars = 0
        end = reached = min(before - 1, version)
        while reached and len(newest_first) < limit:
            # turns are numbered without gaps (but after a loss of data), so their numbers tell where to read
            start = max(0, reached - min(READ_AT_ONCE, limit - len(newest_first)))
            found = await self._above(session_id, start, reached - start)
            for turn in reversed([each for each in found if each.number <= reached]):
                chars += _chars(turn)
                if newest_first and chars > PAGE_CHARS_MAX:
                    limit = len(newest_first)
                    break
                newest_first.append(turn)
                reached = turn.number - 1
            else:
                reached = start
        return Page(tuple(reversed(newest_first)), end if end < version else None, reached + 1 if reached else None)

    async def some(self, session_id: str, after: int, upto: int, most: int = READ_AT_ONCE) -> tuple[Turn, ...]:
        """Return at most `most` turns above number `after` and up to `upto`, which exists: at least one.

        Raises
        ------
        SessionUnknown
            The session was deleted meanwhile.
        """
        found = await self._above(session_id, after, min(READ_AT_ONCE, most, upto - after))
        turns = tuple(turn for turn in found if turn.number <= upto)
        if not turns:
            raise unknown(session_id)
        return turns

    async def _above(self, session_id: str, after: int, limit: int) -> tuple[Turn, ...]:
        found = self._conversations.turns(session_id, after=after, limit=limit)
        return await self._calls("conversations", self._correlation_id, found)


def _chars(turn: Turn) -> int:
    return len(turn.message) + len(turn.reply)


def validate_session_id(session_id: str) -> None:
    """Refuse what cannot be a session's id.

    Raises
    ------
    InvalidRequest
    """
    validate_id("session_id", session_id, "send one that a reply named")


def unknown(session_id: str) -> SessionUnknown:
    """Return what to tell somebody who asks for a session that there is not."""
    return SessionUnknown(
        f"there is no session {session_id!r}: send the session_id of a reply that was given", field="session_id"
    )
