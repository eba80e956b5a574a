"""One at a time in each session: who asks meanwhile waits in the order of arrival, and not too many do."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
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

    def exclusive(self, session_id: str | None) -> AbstractAsyncContextManager[None]:
        """Hold the session alone; a session yet to be made (None) is nobody else's.

        Raises
        ------
        Overloaded
            On entering: as many as may wait for this session already.
        """
        return nullcontext() if session_id is None else _Exclusive(self, session_id)

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
        self._hold(session_id)
        try:
            yield
        finally:
            self._let_go(session_id)

    def is_held(self, session_id: str) -> bool:
        """Tell whether anybody holds the session."""
        return session_id in self._users

    def _hold(self, session_id: str) -> None:
        self._users[session_id] = self._users.get(session_id, 0) + 1

    def _let_go(self, session_id: str) -> None:
        self._users[session_id] -= 1
        if not self._users[session_id]:
            del self._users[session_id]
            self._locks.pop(session_id, None)

    async def _take(self, session_id: str) -> _Queue:
        """Hold the session, and wait until it is nobody else's."""
        self._hold(session_id)
        try:
            self.check_room(session_id)
            queue = self._locks.setdefault(session_id, _Queue())
            queue.askers += 1
            try:
                await queue.lock.acquire()
            except BaseException:
                queue.askers -= 1
                raise
        except BaseException:
            self._let_go(session_id)
            raise
        return queue

    def _give_back(self, session_id: str, queue: _Queue) -> None:
        queue.lock.release()
        queue.askers -= 1
        self._let_go(session_id)


class _Exclusive:
    """What `SessionLocks.exclusive` gives: a class, for every turn takes one, and a generator costs twice as much."""

    __slots__ = ("_locks", "_queue", "_session_id")

    def __init__(self, locks: SessionLocks, session_id: str) -> None:
        self._locks = locks
        self._session_id = session_id

    async def __aenter__(self) -> None:
        self._queue = await self._locks._take(self._session_id)

    async def __aexit__(self, *_: object) -> None:
        self._locks._give_back(self._session_id, self._queue)
