"""A session made anew from its conversation: what its record lost, or cannot tell.

The history is read newest first and only as far as it goes into a prompt. However long the conversation and its turns
are, little is read that is not kept, each text is counted once, and others run in between.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from orchestra import limits
from orchestra.chat.trimming import Room, exchange_of
from orchestra.engines.apology import Apology
from orchestra.model import ConversationHead, Session, Turn

READ_FIRST = 2
READ_AT_ONCE = 16
"""Turns of one read: each reads twice as many as the one before, so that few are read for nothing."""

YIELD_CHARS = 50_000
"""Of text that is counted without letting others run, unless one exchange has more: some 2 ms."""

Reader = Callable[[int, int], Awaitable[tuple[Turn, ...]]]
"""Returns the turns above a number, lowest first, at most so many."""


async def rebuilt(session_id: str, head: ConversationHead, read: Reader, now: float) -> Session:
    """Return the session of that conversation; what was said before a pause of a day is no more part of it.

    Parameters
    ----------
    read : Reader
    now : float
        Unix time in seconds.
    """
    session = Session(
        session_id,
        head.owner,
        version=head.version,
        created_at=head.created_at,
        updated_at=head.updated_at,
        profile=head.profile,
        revision=head.revision,
    )
    room = Room(session)
    others = Others()
    for number in head.profile.pinned:
        for turn in await read(number - 1, 1):
            room.add(exchange_of(turn))
            await others.run_after(turn)
    room.fix()
    below, size, later = head.version + 1, READ_FIRST, now
    oldest = max(1, below - limits.SESSION_MESSAGES_MAX // 2)
    while below > oldest:
        first = max(oldest, below - size)
        turns = await read(first - 1, below - first)
        for turn in _newest_first(turns, below):
            if later - turn.at >= limits.SESSION_TTL_SECONDS:
                return room.session
            later = turn.at
            if turn.engine != Apology.name and turn.number not in head.profile.pinned:
                if not room.takes(exchange_of(turn)):
                    return room.session
                await others.run_after(turn)
        below, size = first, min(2 * size, READ_AT_ONCE)
    return room.session


class Others:
    """Lets others run, whenever a good deal of text was counted."""

    def __init__(self) -> None:
        self._chars = 0

    async def run_after(self, turn: Turn) -> None:
        """Note that the turn's texts were counted."""
        self._chars += len(turn.message) + len(turn.reply)
        if self._chars > YIELD_CHARS:
            self._chars = 0
            await asyncio.sleep(0)


def _newest_first(turns: Sequence[Turn], below: int) -> Iterator[Turn]:
    return (turn for turn in reversed(turns) if turn.number < below)
