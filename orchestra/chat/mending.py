"""Sessions whose records may be behind what is durable, until they are not: a save failed, or nobody knows of a write.

Turns on this instance bring such a session up to date when they open it. Those on others would not know, so the record
is mended in the background, too, as soon as the stores answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from orchestra import limits
from orchestra.errors import OrchestraError, SessionUnknown, StaleSession

PAUSE_SECONDS = 1.0
PAUSE_SECONDS_MAX = 15.0

Mend = Callable[[str, str], Awaitable[object]]
"""Brings the record of a session up to date, for the request of that correlation id."""


class Mender:
    """Remembers sessions to mend, at most `limits.SESSIONS_BEHIND_MAX`, and mends them.

    Parameters
    ----------
    mend : Mend
    random : callable
        Gives numbers in [0, 1): instances do not try all at once.
    """

    def __init__(self, mend: Mend, random: Callable[[], float]) -> None:
        self._mend = mend
        self._random = random
        self._behind: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, session_id: str, correlation_id: str) -> None:
        """Remember that the session's record may be behind; of too many, the oldest note goes."""
        self._behind.pop(session_id, None)
        self._behind[session_id] = correlation_id
        if len(self._behind) > limits.SESSIONS_BEHIND_MAX:
            del self._behind[next(iter(self._behind))]
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def mended(self, session_id: str) -> None:
        """Forget the session, whose record has all that is durable."""
        self._behind.pop(session_id, None)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._behind

    async def aclose(self) -> None:
        """Mend nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        pause = PAUSE_SECONDS
        try:
            while self._behind:
                await asyncio.sleep(pause * (0.5 + self._random()))
                pause = PAUSE_SECONDS if await self._round() else min(2 * pause, PAUSE_SECONDS_MAX)
        finally:
            self._task = None

    async def _round(self) -> bool:
        """Mend all that can be; tell whether the stores answered."""
        for session_id, correlation_id in tuple(self._behind.items()):
            if session_id not in self._behind:
                continue
            try:
                with suppress(SessionUnknown):  # deleted
                    await self._mend(session_id, correlation_id)
            except StaleSession:  # in use just now: the next time
                continue
            except OrchestraError:
                return False
            self.mended(session_id)
        return True
