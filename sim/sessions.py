"""Which conversation of the service each session of the clients is, until nobody will come back to it."""

from __future__ import annotations

from collections import deque

from sim.audit import HORIZON_S
from sim.workload import Arrival


class ClientSessions:
    """What clients know of their sessions.

    A user has one at a time: another one begun, the last is over; what nobody is named for is a session of its own.
    One that is over, with no turn under way, is forgotten after `HORIZON_S`, so that a long run stays small.
    """

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}
        self._current: dict[str, str] = {}  # by user
        self._asking: dict[str, int] = {}  # turns under way, by session
        self._over: deque[tuple[float, str]] = deque()

    def begin(self, arrival: Arrival, now: float) -> None:
        """Note that a turn is under way."""
        session = arrival.session
        self._asking[session] = self._asking.get(session, 0) + 1
        if arrival.user is not None:
            before = self._current.get(arrival.user, session)
            self._current[arrival.user] = session
            if before != session and before not in self._asking:
                self._over.append((now, before))

    def find(self, session: str) -> str | None:
        """Return the id that a reply has named; None where there was none yet."""
        return self._ids.get(session)

    def named(self, session: str, session_id: str) -> None:
        """Note what a reply named."""
        self._ids[session] = session_id

    def finish(self, arrival: Arrival, now: float) -> None:
        """Note that a turn is under way no more."""
        session = arrival.session
        left = self._asking.pop(session) - 1
        if left:
            self._asking[session] = left
        elif arrival.user is None or self._current[arrival.user] != session:
            self._over.append((now, session))

    def past(self, now: float) -> list[str]:
        """Return the ids of sessions that have been over for `HORIZON_S`, and forget them."""
        found = []
        while self._over and self._over[0][0] + HORIZON_S <= now:
            session_id = self._ids.pop(self._over.popleft()[1], None)
            if session_id is not None:
                found.append(session_id)
        return found
