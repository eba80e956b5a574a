"""One at a time in each session: who asks meanwhile waits in the order of arrival, and not too many do."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from orchestra.errors import Overloaded


@dataclass
class _Queue:
    """Who holds a session alone, and who waits for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    askers: int = 0


class SessionLocks:
    """Lets one piece of work of a session run at a time. A session nobody uses costs nothing.

    Parameters
    ----------
    what : str
        What runs in turn, in the plural, for errors.
    waiting_max : int
        How many may wait for one session, so that none can fill the instance.
    """

    def __init__(self, what: str, waiting_max: int) -> None:
        self._what = what
        self._waiting_max = waiting_max
        self._locks: dict[str, _Queue] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def exclusive(self, session_id: str | None) -> AsyncIterator[None]:
        """Hold the session alone; a session yet to be made (None) is nobody else's.

        Raises
        ------
        Overloaded
            As many as may wait for this session already.
        """
        if session_id is None:
            yield
            return
        with self.held(session_id):
            self.check_room(session_id)
            queue = self._locks.setdefault(session_id, _Queue())
            queue.askers += 1
            try:
                async with queue.lock:
                    yield
            finally:
                queue.askers -= 1

    def check_room(self, session_id: str | None) -> None:
        """Raise `Overloaded` where as many as may wait for the session already."""
        queue = self._locks.get(session_id) if session_id is not None else None
        if queue is not None and queue.askers > self._waiting_max:
            raise Overloaded(
                f"{self._waiting_max} {self._what} wait for this session, which takes one at a time: wait for their "
                "answers, or use several sessions",
                retry_after_seconds=1,
            )

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
