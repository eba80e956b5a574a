"""What a client is told when something goes wrong: the service's own errors again, by their kind, and two more."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Struct

from orchestra import errors
from orchestra.errors import OrchestraError, ShuttingDown, StoreUnavailable, TurnLost
from orchestra.frames import ErrorFrame

PROBLEM_PREFIX = "urn:ai-orchestra:problem:"
RETRYABLE_STATUSES = frozenset({408, 425, 429, 502, 503, 504})
"""Of an answer that is no problem of the service's: a balancer's, say."""
EXCERPT_CHARS_MAX = 200

OUTCOME_UNKNOWN = (TurnLost, ShuttingDown, StoreUnavailable)
"""What may end a turn that is durable for all that: sent again under its id, the conversation answers."""


class Unreachable(OrchestraError):
    """No service answers there, or the connection broke off."""

    kind, title, status, retryable = "unreachable", "Service unreachable", 503, True


class UnexpectedAnswer(OrchestraError):
    """Something answered that is not the service, or is not what this SDK knows; `status` is the answer's."""

    kind, title = "unexpected-answer", "Unexpected answer"

    def __init__(self, detail: str, *, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        self.status = status
        self.retryable = status in RETRYABLE_STATUSES


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP.

    Parameters
    ----------
    status : int
    headers : mapping of str to str
        Names in lower case.
    body : bytes
        Empty where the answer is a stream of events, which is yet to be read.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_events(self) -> bool:
        """Whether the answer is a stream of server-sent events."""
        return self.status == 200 and self.headers.get("content-type", "").startswith("text/event-stream")


class _Problem(Struct):
    """Of RFC 9457 what a client acts on."""

    type: str
    status: int
    detail: str = ""
    field: str | None = None
    retry_after_seconds: float | None = None
    correlation_id: str | None = None


def error_of(answer: Answer) -> OrchestraError | None:
    """Return the error that `answer` tells of, or None where it tells of none."""
    if 200 <= answer.status < 300:
        return None
    seconds = _retry_after(answer.headers)
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = answer.body[:EXCERPT_CHARS_MAX].decode("utf-8", "replace")
        return UnexpectedAnswer(
            f"the address answers {answer.status} and no problem that a service tells ({text!r}): check the URL",
            status=answer.status,
            retry_after_seconds=seconds,
        )
    error = _rebuilt(problem.type.removeprefix(PROBLEM_PREFIX), answer.status, problem.detail)
    error.field = problem.field
    error.retry_after_seconds = seconds if problem.retry_after_seconds is None else problem.retry_after_seconds
    error.correlation_id = problem.correlation_id
    return error


def error_of_frame(frame: ErrorFrame) -> OrchestraError:
    """Return the error that `frame` tells of."""
    error = _rebuilt(frame.kind, frame.status, frame.detail)
    error.field = frame.field
    error.retry_after_seconds = frame.retry_after_seconds
    error.correlation_id = frame.correlation_id
    return error


def _rebuilt(kind: str, status: int, detail: str) -> OrchestraError:
    known = errors.of_kind(kind)
    if known is None:  # of a newer service, or of what stands before it
        return UnexpectedAnswer(f"{kind}: {detail}", status=status)
    error = known(detail)
    error.status = status
    return error


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return Retry-After in seconds; where it is a date, which this service never sends, it is not heeded."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
