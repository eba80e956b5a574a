"""The chat routes over HTTP, as the diagram "API Version Compatibility" has them.

    detect -> version 1: adapter to version 2 -> process -> version 1's format
           -> version 2                       -> process -> version 2's format

`/chat` detects the version, `/chat/v1/chat` and `/chat/v2/chat` are of one, and what a request says besides must agree.
"""

from collections.abc import Callable
from types import UnionType
from typing import Any, TypeVar

from msgspec.structs import replace
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra import limits
from orchestra.chat.turns import LiveTurns, Watch
from orchestra.gateway import apidoc, sse, turns, versions
from orchestra.gateway.parameters import (
    EVENT_STREAM,
    KEY_HEADER,
    LONE_KEY_CHARS_MIN,
    NO_RESUME,
    PLACE_HEADER,
    PREFER_HEADER,
    REPLAYED_HEADER,
    TIMEOUT_HEADER,
    TIMEOUT_SECONDS_MAX,
    Place,
    can_resume,
    idempotency_key,
    resumed_place,
    timeout_seconds,
    wants_events,
)
from orchestra.gateway.problems import CONTENT_TYPE, Problem
from orchestra.gateway.routes import add_route
from orchestra.gateway.versions import (
    V1,
    V2,
    V2_PATH,
    VERSION_HEADER,
    ErrorV1,
    ReplyV1,
    RequestV1,
    RequestV2,
    reply_to_v1,
    request_to_v2,
)
from orchestra.gateway.wire import JSON_TYPE, decoded, json_response
from orchestra.model import ChatReply, ChatRequest

DOCUMENTED = (RequestV1, ReplyV1, ErrorV1, RequestV2, ChatReply, *turns.DOCUMENTED)

Handler = TypeVar("Handler", bound=Callable[..., Any])


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the chat routes to `app`."""
    add_route(app, chat, "/chat", "POST")
    add_route(app, chat_v1, "/chat/v1/chat", "POST")
    add_route(app, chat_v2, V2_PATH, "POST")
    turns.add_routes(app)


def _documented(
    gives: type | UnionType,
    takes: type | UnionType,
    *,
    also: str | None = None,
    fails: tuple[str, type] = (CONTENT_TYPE, Problem),
) -> Callable[[Handler], Handler]:
    """Decorate a chat route with what it takes and gives, and what its headers may say."""
    headers = (
        apidoc.parameter(
            VERSION_HEADER,
            "The version of body and answer, where the path and the body leave it open.",
            location="header",
            type="string",
            enum=[V1, V2],
        ),
        apidoc.parameter(
            TIMEOUT_HEADER,
            "How many seconds the caller waits: the turn ends by then, with 504 where it is not done.",
            location="header",
            type="number",
            maximum=TIMEOUT_SECONDS_MAX,
        ),
        apidoc.parameter(
            KEY_HEADER,
            "The client's own name of the turn, unique within its session and user: sent again, the same is answered, "
            f"and nothing runs twice; `{REPLAYED_HEADER}` tells. 409 while it is under way, but a stream joins it; 422 "
            f"with another message. At least {LONE_KEY_CHARS_MIN} characters where neither session nor user is named.",
            location="header",
            type="string",
            maxLength=limits.ID_CHARS_MAX,
        ),
    )

    def decorate(handler: Handler) -> Handler:
        handler = apidoc.route(gives, "The whole answer, durable", takes=takes, also=also, fails=fails)(handler)
        for each in headers:
            handler = each(handler)
        return handler

    return decorate


@_documented(ChatReply | ReplyV1, RequestV2 | RequestV1, also=EVENT_STREAM)
@openapi.summary("Answer one turn, of either version")
@openapi.description(
    f"Takes and gives what the version's own path does. The version is what `{VERSION_HEADER}` or the body's "
    "`api_version` say; where neither does, a body with `text` and no `message` is of version 1."
)
async def chat(request: Request) -> HTTPResponse | None:
    """Answer one turn of a client of either version."""
    if versions.version_of(request.body, request.headers) == V1:
        return await _answer_v1(request)
    return await _answer_v2(request)


@_documented(ReplyV1, RequestV1, fails=(JSON_TYPE, ErrorV1))
@openapi.deprecated()
@openapi.summary("Answer one turn, as version 1 says it")
@openapi.description(
    f"Deprecated, as every answer's `Deprecation` and `Sunset` say: use `{V2_PATH}`. Nothing is streamed, and errors "
    "have a form of their own; statuses and headers are those of version 2."
)
async def chat_v1(request: Request) -> HTTPResponse:
    """Answer one turn of a client of version 1."""
    versions.check_version(request.headers, V1)
    return await _answer_v1(request)


@_documented(ChatReply, RequestV2, also=EVENT_STREAM)
@apidoc.parameter(
    PLACE_HEADER,
    "The id of the last event that came: no turn is begun, the stream goes on behind it.",
    location="header",
    type="string",
)
@apidoc.parameter(
    PREFER_HEADER,
    f"`{NO_RESUME}` says that the client cannot come back to a stream: when it is gone, the turn ends.",
    location="header",
    type="string",
)
@openapi.summary("Answer one turn")
@openapi.description(
    "Starts a session, or continues one. The reply is given once the turn is durable: it survives a crash of the "
    "service and of its stores. With `stream` (or `Accept: text/event-stream`) the answer comes as server-sent events: "
    "`started`, then `delta` with a piece of its `text` each, then `done` with the `reply`, or `error`. Where "
    "streaming is switched off, or the turn ends before a piece came, the answer is the same as without. Who loses a "
    "stream has the setting `resume_grace_seconds` to come back; who leaves without a stream, or before it began and "
    f"without an `{KEY_HEADER}`, ends the turn."
)
async def chat_v2(request: Request) -> HTTPResponse | None:
    """Answer one turn of a client of version 2."""
    versions.check_version(request.headers, V2)
    return await _answer_v2(request)


async def _answer_v1(request: Request) -> HTTPResponse:
    request.ctx.version = V1  # errors, too, are answered as version 1 says them
    asked = request_to_v2(decoded(request.body, request.headers.get("content-type"), RequestV1))
    request.ctx.adapted = True
    watch, headers = await _begun(request, asked, stream=False)
    async with watch:
        return json_response(reply_to_v1(await watch.reply()), headers)


async def _answer_v2(request: Request) -> HTTPResponse | None:
    asked = decoded(request.body, request.headers.get("content-type"), RequestV2)
    if (place := resumed_place(request.headers)) is not None:
        return await _resumed(request, place)
    stream = asked.stream or wants_events(request.headers)
    watch, headers = await _begun(request, asked, stream=stream)
    if stream:
        return await sse.answer(request, watch, headers)
    async with watch:
        return json_response(await watch.reply(), headers)


async def _begun(request: Request, asked: ChatRequest, *, stream: bool) -> tuple[Watch, dict[str, str]]:
    """Begin the turn, or find the one that the key names; return a watch of it, and what to say of it."""
    grace = can_resume(request.headers)
    headers = {"Preference-Applied": NO_RESUME} if stream and not grace else {}
    key = idempotency_key(request.headers, alone=asked.session_id is None and asked.user_id is None)
    live: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    watch = await live.start(
        replace(asked, stream=stream),
        key=key,
        join=stream,
        grace=stream and grace,
        correlation_id=request.ctx.correlation_id,
        trace=request.ctx.trace,
        seconds_max=timeout_seconds(request.headers),
    )
    watch.named = key is not None  # else with its first event
    if watch.replayed:
        headers[REPLAYED_HEADER] = "true"
    return watch, headers


async def _resumed(request: Request, place: Place) -> HTTPResponse | None:
    """Let the stream go on that the client lost."""
    live: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    watch = await live.resume(place.session_id, place.turn_id, after=place.seq, grace=can_resume(request.headers))
    return await sse.answer(request, watch, {}, resumed=True)
