"""Errors as clients see them: RFC 9457 problem details with a stable `type`, never a stack trace."""

import asyncio
import math
from collections.abc import Callable

import msgspec
from sanic import HTTPResponse, exceptions
from sanic.exceptions import SanicException

from orchestra import limits
from orchestra.errors import (
    InvalidRequest,
    NotFound,
    OrchestraError,
    Overloaded,
    PayloadTooLarge,
    retry_after_of,
)
from orchestra.frames import ErrorFrame

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ai-orchestra:problem:"

Fault = OrchestraError | ErrorFrame
"""What went wrong, here or on the instance that ran the turn."""


class ClientGone(OrchestraError):
    """The client went away before its answer: what nginx logs as 499, and no client sees."""

    kind, title, status, close_code = "cancelled", "Client closed the request", 499, 1001


class ArrivedLate(OrchestraError):
    """The request did not arrive whole in time."""

    kind, title, status, close_code, retryable = "request-timeout", "Request timed out", 408, 1008, True


class HeadersTooLarge(OrchestraError):
    """The request's line and headers are over their limit (RFC 6585, section 5)."""

    kind, title, status, close_code = "headers-too-large", "Request headers too large", 431, 1009


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error response (RFC 9457), with where in the request the fault is and how to find the log."""

    type: str
    title: str
    status: int
    detail: str
    correlation_id: str
    field: str | None = None
    retry_after_seconds: float | None = None


def problem_of(error: Fault, correlation_id: str) -> Problem:
    """Return `error` as clients see it."""
    retry_after_seconds = _retry_after(error)
    return Problem(
        type=TYPE_PREFIX + error.kind,
        title=error.title,
        status=error.status,
        detail=error.detail,
        correlation_id=correlation_id,
        field=error.field,
        retry_after_seconds=None if retry_after_seconds is None else round(retry_after_seconds, 3),
    )


def problem_response(error: Fault, correlation_id: str) -> HTTPResponse:
    """Return `error` as a response, with the headers that belong to its status."""
    problem = problem_of(error, correlation_id)
    return HTTPResponse(msgspec.json.encode(problem), error.status, headers_of(error), CONTENT_TYPE)


def headers_of(error: Fault) -> dict[str, str]:
    """Return the headers that belong to the error's status."""
    headers = {}
    if (seconds := _retry_after(error)) is not None:
        headers["Retry-After"] = str(max(1, math.ceil(round(seconds, 3))))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 11.6.1
    return headers


def _retry_after(error: Fault) -> float | None:
    return error.retry_after_seconds if isinstance(error, ErrorFrame) else retry_after_of(error)


def translated(error: BaseException) -> OrchestraError | None:
    """Translate what Sanic raises itself; None where the error is nobody's plan."""
    if isinstance(error, OrchestraError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return ClientGone("the client went away before its answer")
    for kind, translate in _TRANSLATIONS:
        if isinstance(error, kind):
            return translate(error)
    return None


def _client_error(error: SanicException) -> OrchestraError | None:
    if error.status_code >= 500:
        return None
    return InvalidRequest(f"the request is no HTTP that is read here ({error}): send it as RFC 9112 says it")


_TRANSLATIONS: tuple[tuple[type[SanicException], Callable[[SanicException], OrchestraError | None]], ...] = (
    (exceptions.NotFound, lambda _: NotFound("there is no such path: see /docs for those that exist")),
    (
        exceptions.PayloadTooLarge,
        lambda _: PayloadTooLarge(
            f"the request is over {limits.REQUEST_BYTES_MAX} bytes: a message has at most "
            f"{limits.MESSAGE_CHARS_MAX} characters"
        ),
    ),
    (
        exceptions.RequestTimeout,
        lambda _: ArrivedLate("the request did not arrive in time: send it at once, headers and body"),
    ),
    (exceptions.ServiceUnavailable, lambda _: Overloaded("the service did not answer in time: try again")),
    (SanicException, _client_error),
)
