"""How clients with WebSockets fared: who lost a connection, when it came back, and how many were open at once.

Of a journal it takes what clients tell (`ClientConnected`) and what the service tells (`ConnectionOpened`,
`ConnectionClosed`); a connection that is dead and not yet noticed is one that the service still holds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from orchestra.events import ConnectionClosed, ConnectionOpened
from sim.journal import ClientConnected


class Return(NamedTuple):
    """One time that a client wanted a connection: from when on, until it had one, by how many attempts.

    `seconds` is infinite where it never had one.
    """

    since: float
    seconds: float
    attempts: int
    refused: int
    again: bool


class Connectivity:
    """What became of connections, gathered entry by entry."""

    def __init__(self) -> None:
        self.returns: list[Return] = []
        self._counts: list[tuple[float, int]] = [(0.0, 0)]  # how many were open from when on

    def connected(self, entry: ClientConnected) -> None:
        """Note that a client has a connection, or that it will have none."""
        seconds = entry.seconds if entry.connected else math.inf
        since = entry.at - entry.seconds
        self.returns.append(Return(since, seconds, entry.attempts, entry.refused, entry.again))

    def opened(self, entry: ConnectionOpened) -> None:
        """Count one more."""
        self._counts.append((entry.at, self._counts[-1][1] + 1))

    def closed(self, entry: ConnectionClosed) -> None:
        """Count one less."""
        self._counts.append((entry.at, self._counts[-1][1] - 1))

    def within(self, start: float, end: float) -> list[Return]:
        """Return those who began to want a connection between two times, `end` not included."""
        return [each for each in self.returns if start <= each.since < end]

    def open_max(self, start: float, end: float) -> int:
        """Return how many connections were open at most, between two times."""
        before = [count for at, count in self._counts if at <= start]
        return max(before[-1:] + [count for at, count in self._counts if start < at < end], default=0)

    @property
    def words(self) -> str:
        """What became of them, for readers; empty where there were none."""
        if not self.returns:
            return ""
        lost = [each for each in self.returns if each.again]
        gone = sum(math.isinf(each.seconds) for each in self.returns)
        words = f"{self.open_max(0.0, math.inf):,} at once at most, {len(lost):,} lost"
        if lost:
            words += f" and asked for again {sum(each.attempts for each in lost):,} times"
        if refused := sum(each.refused for each in self.returns):
            words += f", {refused:,} refused"
        return words + (f", {gone:,} never had again" if gone else "")
