"""Versions of the API: which one a request speaks, and the adapter between them, of pure functions.

    contract: `RequestV1`, `ReplyV1`, `ErrorV1`, `RequestV2`;  behaviour: `version_of`, and the adapter

Version 2 is what the service speaks (`orchestra.model`). Version 1 said less: one text in, one text out, no streaming,
no word on what was left out. It is deprecated, and every answer to it says so, errors too. A request's version is what
its path, its header `API-Version` or its body's `api_version` say, which must agree; on the path that leaves it open,
where nothing says it, a body with `text` and no `message` is version 1's.

Source of the headers: RFC 9745 (Deprecation), RFC 8594 (Sunset), RFC 5829 (successor-version).
"""

import re
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace
from sanic import HTTPResponse, Request

from orchestra.errors import InvalidRequest
from orchestra.gateway.parameters import Headers, shown
from orchestra.gateway.problems import TYPE_PREFIX, Fault, Problem, headers_of, problem_of
from orchestra.gateway.wire import JSON_TYPE
from orchestra.model import ChatReply, ChatRequest

Version = Literal["v1", "v2"]
V1: Version = "v1"
V2: Version = "v2"
VERSION_HEADER = "API-Version"
V1_PREFIX = "/chat/v1/"
V2_PATH = "/chat/v2/chat"

DEPRECATION_HEADERS = {
    "Deprecation": "@1793491200",  # 2026-11-01
    "Sunset": "Mon, 01 Nov 2027 00:00:00 GMT",
    "Link": f'<{V2_PATH}>; rel="successor-version"',
}


class RequestV1(Struct, frozen=True, forbid_unknown_fields=True):
    """One user message as version 1 of the API says it.

    Parameters
    ----------
    text : str
        What the user says.
    conversation_id : str or None
        The conversation to continue, as an earlier reply named it. None starts a new one.
    user : str or None
        Whose memories the turn may use and add to.
    """

    text: str
    conversation_id: str | None = None
    user: str | None = None
    api_version: Literal["v1"] = "v1"


class ReplyV1(Struct, frozen=True):
    """The answer as version 1 of the API says it.

    Parameters
    ----------
    id : str
        Of the turn.
    conversation_id : str
    response : str
        What is answered.
    status : str
        ``complete``, or ``incomplete`` where the answer was cut off at a limit.
    tokens : int
        What question and answer cost together.
    """

    id: str
    conversation_id: str
    response: str
    status: Literal["complete", "incomplete"]
    tokens: int


class ErrorV1(Struct, frozen=True, omit_defaults=True):
    """The body of an error response of version 1; `error` is the stable word to tell errors apart by.

    Parameters
    ----------
    error, message : str
    status : int
        The HTTP status, the same as in version 2.
    request_id : str
    field : str or None
        The request's field at fault.
    retry_after : float or None
        Seconds.
    """

    error: str
    message: str
    status: int
    request_id: str
    field: str | None = None
    retry_after: float | None = None


class RequestV2(ChatRequest, frozen=True, forbid_unknown_fields=True):
    """One user message as version 2 of the API says it, which may say so."""

    api_version: Literal["v2"] = "v2"


class _Hint(Struct, frozen=True):
    """What tells the version of a body."""

    api_version: Any = UNSET
    text: msgspec.Raw | UnsetType = UNSET
    message: msgspec.Raw | UnsetType = UNSET


_hint = msgspec.json.Decoder(_Hint)


def version_of(body: bytes, headers: Headers) -> Version:
    """Return the version of a request whose path leaves it open.

    Raises
    ------
    InvalidRequest
        Header and body contradict each other, or name no version that there is.
    """
    said = said_version(headers)
    try:
        hint = _hint.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return said or V2  # which says what is wrong with it
    if hint.api_version is not UNSET:
        inside = _known(hint.api_version, "api_version", "$.api_version")
        if said is not None and said != inside:
            raise InvalidRequest(
                f"api_version is {inside} and the header {VERSION_HEADER} {said}: send one of them, or the same",
                field="$.api_version",
            )
        return inside
    return said or (V1 if hint.text is not UNSET and hint.message is UNSET else V2)


def said_version(headers: Headers) -> Version | None:
    """Return the version that the header names, or None.

    Raises
    ------
    InvalidRequest
    """
    values = headers.getall(VERSION_HEADER, [])
    return _known(", ".join(values), VERSION_HEADER, VERSION_HEADER) if values else None


def check_version(headers: Headers, version: Version) -> None:
    """Refuse a header that names another version than the path.

    Raises
    ------
    InvalidRequest
    """
    if (said := said_version(headers)) not in {None, version}:
        raise InvalidRequest(
            f"{VERSION_HEADER} is {said}, and this path is of {version}: leave the header out, or use {said}'s path",
            field=VERSION_HEADER,
        )


def _known(value: object, name: str, field: str) -> Version:
    if value == V1:
        return V1
    if value == V2:
        return V2
    raise InvalidRequest(f"{name} is {shown(value)}: send {V1} or {V2}, or leave it out", field=field)


def request_to_v2(request: RequestV1) -> ChatRequest:
    """Return a request of version 1 as version 2 says it."""
    return ChatRequest(message=request.text, session_id=request.conversation_id, user_id=request.user)


def reply_to_v1(reply: ChatReply) -> ReplyV1:
    """Return a reply of version 2 as version 1 says it."""
    return ReplyV1(
        id=reply.turn_id,
        conversation_id=reply.session_id,
        response=reply.reply,
        status="complete" if reply.finish_reason == "stop" else "incomplete",
        tokens=reply.usage.prompt_tokens + reply.usage.completion_tokens,
    )


_NAMES_V1 = {"message": "text", "session_id": "conversation_id", "user_id": "user"}


def error_to_v1(problem: Problem) -> ErrorV1:
    """Return an error of version 2 as version 1 says it, its field under the name that it has there."""
    name = (problem.field or "").removeprefix("$.")
    if name not in _NAMES_V1:
        return _as_v1(problem)
    message = re.sub(rf"\b{name}\b", _NAMES_V1[name], problem.detail)
    return _as_v1(replace(problem, field=f"$.{_NAMES_V1[name]}", detail=message))


def _as_v1(problem: Problem) -> ErrorV1:
    return ErrorV1(
        error=problem.type.removeprefix(TYPE_PREFIX),
        message=problem.detail,
        status=problem.status,
        request_id=problem.correlation_id,
        field=problem.field,
        retry_after=problem.retry_after_seconds,
    )


def speaks_v1(request: Request) -> bool:
    """Tell whether the client is one of version 1, by its path or by what was detected."""
    return getattr(request.ctx, "version", None) == V1 or request.path.startswith(V1_PREFIX)


def error_response(request: Request, fault: Fault) -> HTTPResponse:
    """Return `fault` as a response of version 1; what was found before the adapter has version 1's names already."""
    problem = problem_of(fault, request.ctx.correlation_id)
    error = error_to_v1(problem) if getattr(request.ctx, "adapted", False) else _as_v1(problem)
    return HTTPResponse(msgspec.json.encode(error), error.status, headers_of(fault), JSON_TYPE)
