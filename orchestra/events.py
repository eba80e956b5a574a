"""What the orchestra tells about itself: frozen details given to one hook, which feeds logs, traces, metrics, journal.

Times are seconds. `at` is monotonic (the running loop's `time()`), so that in a simulation it is virtual time.
"""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from orchestra.model import TraceContext

TurnOutcome = Literal["answered", "failed", "shed"]
CallOutcome = Literal["success", "failure", "rejected", "dropped"]


class TurnStarted(Struct, frozen=True, tag="turn_started"):
    """A turn was admitted."""

    at: float
    correlation_id: str
    session_id: str | None


class TurnFinished(Struct, frozen=True, tag="turn_finished"):
    """A turn ended: `answered` and durable, `failed`, or `shed` (rejected to protect the service or a dependency).

    Parameters
    ----------
    error : str
        The `kind` of the error that ended it; empty where it was answered. A client that went away is ``cancelled``.
    seconds : float
        From admission to the durable reply.
    first_token_seconds : float or None
        From admission to the first piece of the answer.
    """

    at: float
    correlation_id: str
    session_id: str
    turn_id: str
    outcome: TurnOutcome
    error: str
    seconds: float
    first_token_seconds: float | None
    engine: str
    prompt_tokens: int
    completion_tokens: int
    degraded: tuple[str, ...]
    trace: TraceContext | None


class CallFinished(Struct, frozen=True, tag="call_finished"):
    """A guarded call of an engine ended, after `attempts`; `rejected`: its breaker or bulkhead did not let it through.

    What a fallback answered instead is told by `FellBack`.
    """

    at: float
    correlation_id: str
    target: str
    outcome: CallOutcome
    error: str
    seconds: float
    attempts: int = 1


class CallRetried(Struct, frozen=True, tag="call_retried"):
    """An attempt failed with `error` and is made again, as number `attempt`, after `wait_seconds`."""

    at: float
    correlation_id: str
    target: str
    attempt: int
    wait_seconds: float
    error: str


class CallHedged(Struct, frozen=True, tag="call_hedged"):
    """A call was slow, so that an equal one was started beside it."""

    at: float
    correlation_id: str
    target: str


class FellBack(Struct, frozen=True, tag="fell_back"):
    """`target` gave no answer because of `error`, so that `fallback` answers instead."""

    at: float
    correlation_id: str
    target: str
    fallback: str
    error: str


class StoreFinished(Struct, frozen=True, tag="store_finished"):
    """A read or write of a store ended; `error` is the kind of error, empty where there was none."""

    at: float
    correlation_id: str
    target: str
    error: str
    seconds: float


class BreakerChanged(Struct, frozen=True, tag="breaker_changed"):
    """A circuit breaker moved from one state to another, and why."""

    at: float
    breaker: str
    before: str
    after: str
    reason: str


class LevelChanged(Struct, frozen=True, tag="level_changed"):
    """The degradation level moved one step, and why.

    Parameters
    ----------
    health : float or None
        Per cent; None where it was unknown, as when an operator latched the level.
    """

    at: float
    before: str
    after: str
    health: float | None
    reason: str


class OperatorActed(Struct, frozen=True, tag="operator_acted"):
    """An operator latched or released a level, or set the mode of a breaker."""

    at: float
    target: str
    action: str
    reason: str


class RequestFinished(Struct, frozen=True, tag="request_finished"):
    """An HTTP request was answered. `route` is the pattern, not the path, so that metrics stay bounded."""

    at: float
    correlation_id: str
    method: str
    route: str
    status: int
    seconds: float


class TurnResumed(Struct, frozen=True, tag="turn_resumed"):
    """A client came back to a turn; `source` says where that was found: here, kept, elsewhere or stored."""

    at: float
    correlation_id: str
    session_id: str
    turn_id: str
    source: str


class TurnAbandoned(Struct, frozen=True, tag="turn_abandoned"):
    """A turn is stopped since nobody follows it any more, and its grace is over."""

    at: float
    correlation_id: str
    session_id: str
    turn_id: str


class ConnectionOpened(Struct, frozen=True, tag="connection_opened"):
    """A WebSocket was accepted."""

    at: float
    connection_id: str
    client_id: str
    session_id: str
    correlation_id: str


class ConnectionClosed(Struct, frozen=True, tag="connection_closed"):
    """A WebSocket ended.

    Parameters
    ----------
    code : int
        As in RFC 6455, section 7.4: what the service closed with, else what the client did; 1006 where it was lost.
    reason : str
        What was said beside a code of ours; a client's own words are not told.
    seconds : float
        Since it was accepted.
    received, sent : int
        Frames from and to the client.
    """

    at: float
    connection_id: str
    client_id: str
    session_id: str
    correlation_id: str
    code: int
    reason: str
    seconds: float
    received: int
    sent: int


class UnexpectedError(Struct, frozen=True, tag="unexpected_error"):
    """A defect: an error that nobody foresaw, with its traceback for the logs."""

    at: float
    correlation_id: str
    where: str
    traceback: str


class Lifecycle(Struct, frozen=True, tag="lifecycle"):
    """The service came up, drains or went down, or one of its parts did."""

    at: float
    part: str
    state: str
    detail: str = ""


Event = (
    TurnStarted
    | TurnFinished
    | CallFinished
    | CallRetried
    | CallHedged
    | FellBack
    | StoreFinished
    | BreakerChanged
    | LevelChanged
    | OperatorActed
    | RequestFinished
    | TurnResumed
    | TurnAbandoned
    | ConnectionOpened
    | ConnectionClosed
    | UnexpectedError
    | Lifecycle
)

Hook = Callable[[Event], None]


def fan_out(*hooks: Hook) -> Hook:
    """Make one hook that gives every event to each of `hooks`, in order."""

    def hook(event: Event) -> None:
        for each in hooks:
            each(event)

    return hook
