"""The audit: every turn that a client was told is done must stand once in the stores, and be known to the next turn.

A run ends with it. A long one could not keep all of its conversations until then, so a session that is over is audited
once `HORIZON_S` have passed since, and the world forgets it: nobody comes back to it, and what is still to be written
of it is a matter of seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from orchestra.adapters.inprocess import InProcessConversations
from orchestra.model import Session
from orchestra.ports import ConversationStore
from sim.journal import Audited

HORIZON_S = 600.0


class Sessions(Protocol):
    """The sessions of a world, as they are."""

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none."""
        ...

    def forget(self, session_id: str) -> None:
        """Let what is kept of the session go."""
        ...


class Auditor:
    """Compares what clients were told with what the stores hold, and adds up what it found.

    Parameters
    ----------
    conversations, sessions
        Past their wires and faults.
    """

    def __init__(self, conversations: InProcessConversations, sessions: Sessions) -> None:
        self._conversations = conversations
        self._sessions = sessions
        self._checked = self._missing = self._duplicated = 0

    async def check(self, session_id: str, turn_ids: Iterable[str]) -> None:
        """Look for the turns of a session that clients were told are done.

        A turn that is in its conversation but beyond its session's version is missing too: the next turn would not know
        it. A session without a record is made anew from its conversation.
        """
        stored = await _turn_ids(session_id, self._conversations, await self._sessions.load(session_id))
        for turn_id in turn_ids:
            count = stored.count(turn_id)
            self._checked += 1
            self._missing += count == 0
            self._duplicated += count > 1

    async def part_with(self, session_id: str, turn_ids: Iterable[str]) -> None:
        """Check a session that nobody will come back to, and let the stores forget it."""
        await self.check(session_id, turn_ids)
        self._conversations.forget(session_id)
        self._sessions.forget(session_id)

    def found(self, at: float) -> Audited:
        """Return what was found in all."""
        return Audited(at, self._checked, self._missing, self._duplicated)


async def _turn_ids(session_id: str, conversations: ConversationStore, session: Session | None) -> list[str]:
    """Return the ids of a session's turns that the next turn knows."""
    found: list[str] = []
    last = 0
    while page := await conversations.turns(session_id, after=last):
        found += [turn.id for turn in page if session is None or turn.number <= session.version]
        last = page[-1].number
    return found
