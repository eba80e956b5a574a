"""What clients tell: each turn as it came and ended, and what all of them come to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from orchestra.chat.orchestrator import SHED
from orchestra.events import TurnOutcome
from orchestra.model import ChatReply
from sim.journal import ClientArrived, ClientFinished, WorldEvent
from sim.workload import Arrival

APOLOGY = "apology"
TIMED_OUT = "client-timeout"
SHED_KINDS = frozenset(error.kind for error in SHED)


class Attempt(NamedTuple):
    """How one attempt ended."""

    outcome: TurnOutcome
    error: str = ""
    retry_after_s: float | None = None
    first_token_at: float | None = None


def refused(kind: str, retry_after_s: float | None, first_token_at: float | None) -> Attempt:
    """Return how an attempt ended that got the error `kind`."""
    return Attempt("shed" if kind in SHED_KINDS else "failed", kind, retry_after_s, first_token_at)


class Tally:
    """What all clients of a run come to.

    Parameters
    ----------
    record : callable
        Gets a `ClientArrived` and a `ClientFinished` for each arrival, and what clients tell besides.

    Attributes
    ----------
    arrived : int
    counts : dict of int
        Turns that ended so far, by outcome.
    acknowledged : dict of list of str
        By session, the ids of the turns that were answered, be it with an apology: what must never be lost.
    over : list of str
        Sessions that nobody will come back to.
    ended : deque of (float, str)
        When turns ended for their clients, and their messages.
    """

    def __init__(self, record: Callable[[WorldEvent], None]) -> None:
        self.arrived = 0
        self.counts: dict[TurnOutcome, int] = {"answered": 0, "failed": 0, "shed": 0}
        self.acknowledged: dict[str, list[str]] = {}
        self.over: list[str] = []
        self.ended: deque[tuple[float, str]] = deque()
        self.record = record
        self._last_at = 0.0

    def arrive(self, arrival: Arrival, correlation_id: str, population: str) -> None:
        """Count an arrival."""
        self.arrived += 1
        tokens = arrival.context_tokens, arrival.generated_tokens
        # of several populations one may be a tick ahead of another; a journal is in order of time
        self._last_at = at = max(self._last_at, arrival.at)
        self.record(ClientArrived(at, arrival.number, correlation_id, arrival.session, *tokens, population))

    def finish(self, arrival: Arrival, correlation_id: str, last: Attempt, now: float) -> None:
        """Count how a turn ended: as its last attempt did."""
        self.counts[last.outcome] += 1
        self.ended.append((now, arrival.message))
        first_s = None if last.first_token_at is None else last.first_token_at - arrival.at
        seconds = now - arrival.at
        self.record(ClientFinished(now, arrival.number, correlation_id, last.outcome, last.error, seconds, first_s))

    def acknowledge(self, reply: ChatReply, first_token_at: float | None) -> Attempt:
        """Return how an attempt ended that got `reply`, which is now not to be lost."""
        self.acknowledged.setdefault(reply.session_id, []).append(reply.turn_id)
        if reply.engine == APOLOGY:
            return Attempt("shed", APOLOGY, None, first_token_at)
        return Attempt("answered", "", None, first_token_at)

    def leave(self, session_id: str) -> None:
        """Note that nobody will come back to a session."""
        self.over.append(session_id)
