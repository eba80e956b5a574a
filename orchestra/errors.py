"""What can go wrong, one root. Each kind knows its HTTP status, its WebSocket close code and whether a retry can help.

A message is for the person who must act: it names the field or the part, and the cure. What a client may see is
`detail`; causes (`raise ... from`) stay in the logs.
"""

from typing import ClassVar


class OrchestraError(Exception):
    """Root of all errors the orchestra raises on purpose.

    Parameters
    ----------
    detail : str
        What happened and what to do, fit for a client's eyes.
    field : str or None
        The request's field at fault, as a JSON path such as ``$.message``.
    retry_after_seconds : float or None
        When a retry has a chance.

    Attributes
    ----------
    correlation_id : str or None
        What finds the request in the service's log; known to a client, which was told it.
    """

    kind: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: int = 500
    close_code: ClassVar[int] = 1011
    retryable: bool = False

    def __init__(self, detail: str, *, field: str | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.retry_after_seconds = retry_after_seconds
        self.correlation_id: str | None = None


class ConfigurationError(OrchestraError):
    """The service cannot start as it is set up."""

    kind, title = "configuration", "Configuration refused"


class InvalidRequest(OrchestraError):
    """The request cannot be understood; sending it again unchanged cannot help."""

    kind, title, status, close_code = "invalid-request", "Invalid request", 400, 1008


class Unauthorized(OrchestraError):
    """The request names nobody, or not convincingly."""

    kind, title, status, close_code = "unauthorized", "Unauthorized", 401, 1008


class Forbidden(OrchestraError):
    """Whoever asks may not do this."""

    kind, title, status, close_code = "forbidden", "Forbidden", 403, 1008


class NotFound(OrchestraError):
    """No such resource."""

    kind, title, status, close_code = "not-found", "Not found", 404, 1008


class SessionUnknown(NotFound):
    """The session does not exist, or has expired."""

    kind, title = "session-unknown", "Session unknown"


class SessionExists(OrchestraError):
    """A session of this id exists, or did."""

    kind, title, status, close_code = "session-exists", "Session exists", 409, 1008


class MethodNotAllowed(OrchestraError):
    """The resource has no such method."""

    kind, title, status, close_code = "method-not-allowed", "Method not allowed", 405, 1008


class PayloadTooLarge(OrchestraError):
    """The request is over a size limit."""

    kind, title, status, close_code = "payload-too-large", "Payload too large", 413, 1009


class UnsupportedMediaType(OrchestraError):
    """The body is not in a format the service reads."""

    kind, title, status, close_code = "unsupported-media-type", "Unsupported media type", 415, 1003


class StaleSession(OrchestraError):
    """Another writer was first; the state must be read again."""

    kind, title, status, close_code, retryable = "stale-session", "Session changed meanwhile", 409, 1013, True


class TurnInFlight(OrchestraError):
    """The same turn, by its idempotency key, is under way."""

    kind, title, status, close_code, retryable = "turn-in-flight", "Turn under way", 409, 1013, True


class KeyReused(OrchestraError):
    """An idempotency key came again with something else to do."""

    kind, title, status, close_code = "key-reused", "Idempotency key reused", 422, 1008


class TurnUnknown(NotFound):
    """The turn does not run, and was never durable."""

    kind, title = "turn-unknown", "Turn unknown"


class TurnCancelled(OrchestraError):
    """A client stopped the turn; nothing of it is kept."""

    kind, title, status, close_code = "turn-cancelled", "Turn cancelled", 409, 1000


class TurnLost(OrchestraError):
    """The instance that ran the turn is gone; sent again under the same id, it runs on another."""

    kind, title, status, close_code, retryable = "turn-lost", "Turn lost", 503, 1012, True


class Overloaded(OrchestraError):
    """The service sheds this request to protect those it has accepted."""

    kind, title, status, close_code, retryable = "overloaded", "Overloaded", 503, 1013, True


class TooManyConnections(Overloaded):
    """The process, the client or its address has as many connections as it may have."""

    kind, title = "too-many-connections", "Too many connections"


class BulkheadFull(Overloaded):
    """A dependency has as many calls under way and waiting as it may have."""

    kind, title = "bulkhead-full", "Dependency saturated"


class FeatureOff(OrchestraError):
    """The degradation level has switched off what the call needs."""

    kind, title, status, close_code, retryable = "feature-off", "Switched off for now", 503, 1013, True


class Maintenance(OrchestraError):
    """The service is read only: what is stored can be read, new turns are refused."""

    kind, title, status, close_code, retryable = "maintenance", "Maintenance", 503, 1013, True


class BreakerOpen(OrchestraError):
    """A circuit breaker rejects the call: what it protects is failing."""

    kind, title, status, close_code, retryable = "breaker-open", "Dependency unavailable", 503, 1013, True


class DeadlineExceeded(OrchestraError):
    """The time allowed for the work ran out."""

    kind, title, status, close_code, retryable = "deadline-exceeded", "Deadline exceeded", 504, 1013, True


class DeadlineShortened(DeadlineExceeded):
    """Less time was given, or left, than a call needs to prove itself: its end says nothing about who was called."""


class ProviderFailed(OrchestraError):
    """An LLM provider gave an error or broke off."""

    kind, title, status, close_code, retryable = "provider-failed", "Provider failed", 502, 1013, True


class ProviderRefused(OrchestraError):
    """An LLM provider refuses the request itself (a key, a model or a parameter is wrong); a retry cannot help."""

    kind, title, status, close_code = "provider-refused", "Provider refused the request", 502, 1011


class ProviderOverloaded(OrchestraError):
    """An LLM provider asks for fewer requests (429): overload, not failure."""

    kind, title, status, close_code, retryable = "provider-overloaded", "Provider overloaded", 503, 1013, True


class StoreUnavailable(OrchestraError):
    """A store cannot be reached or does not answer in time."""

    kind, title, status, close_code, retryable = "store-unavailable", "Store unavailable", 503, 1013, True


class ShuttingDown(OrchestraError):
    """The instance is draining; another one, or this one after its restart, will answer."""

    kind, title, status, close_code, retryable = "shutting-down", "Shutting down", 503, 1012, True


def kinds() -> tuple[str, ...]:
    """Return every kind of error that is defined here, each once, in order; ``cancelled`` is none."""
    return tuple(_by_kind())


def of_kind(kind: str) -> type[OrchestraError] | None:
    """Return the error that is called `kind`, where there is one: what another process told of is raised again."""
    return _by_kind().get(kind)


def _by_kind() -> dict[str, type[OrchestraError]]:
    here = [each for each in globals().values() if isinstance(each, type) and issubclass(each, OrchestraError)]
    return {each.kind: each for each in here if "kind" in vars(each)}


def retry_after_of(error: OrchestraError) -> float | None:
    """Return after how many seconds a client is told to try again: every 429 and 503 says it."""
    if error.retry_after_seconds is None and error.status in {429, 503}:
        return 1.0
    return error.retry_after_seconds


def kind_of(error: BaseException) -> str:
    """Return the stable word that events and metrics call `error` by; a caller that went away is ``cancelled``."""
    if isinstance(error, OrchestraError):
        return error.kind
    return OrchestraError.kind if isinstance(error, Exception) else "cancelled"


def unforeseen() -> OrchestraError:
    """Return what a client may know of a defect: that there was one, and where its traceback can be found."""
    return OrchestraError("something went wrong that nobody foresaw; the log has it under this correlation id")
