"""The chat routes over HTTP."""

from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra import limits
from orchestra.chat.turns import LiveTurns
from orchestra.gateway import apidoc, sse, turns
from orchestra.gateway.parameters import (
    EVENT_STREAM,
    KEY_HEADER,
    NO_RESUME,
    PLACE_HEADER,
    PREFER_HEADER,
    TIMEOUT_HEADER,
    TIMEOUT_SECONDS_MAX,
    can_resume,
    idempotency_key,
    resumed_place,
    timeout_seconds,
    wants_events,
)
from orchestra.gateway.wire import decoded, json_response
from orchestra.model import ChatReply, ChatRequest

DOCUMENTED = (ChatRequest, ChatReply, *turns.DOCUMENTED)
REPLAYED_HEADER = "Idempotency-Replayed"


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the chat routes to `app`."""
    app.add_route(chat, "/chat/v2/chat", methods=["POST"])
    turns.add_routes(app)


@apidoc.route(ChatReply, "The whole answer, durable", takes=ChatRequest, also=EVENT_STREAM)
@apidoc.parameter(
    TIMEOUT_HEADER,
    "How many seconds the caller waits: the turn ends by then, with 504 where it is not done.",
    location="header",
    type="number",
    maximum=TIMEOUT_SECONDS_MAX,
)
@apidoc.parameter(
    KEY_HEADER,
    "The client's own name of the turn, unique within its session and user: sent again, the same is answered, and "
    f"nothing runs twice; `{REPLAYED_HEADER}` tells. 409 while it is under way, unless it is streamed, which joins it; "
    "422 with another message.",
    location="header",
    type="string",
    maxLength=limits.ID_CHARS_MAX,
)
@apidoc.parameter(
    PLACE_HEADER,
    "The id of the last event that came: no turn is begun, the stream goes on behind it.",
    location="header",
    type="string",
)
@apidoc.parameter(
    PREFER_HEADER,
    f"`{NO_RESUME}` says that the client cannot come back to a stream: with the stream, the turn ends.",
    location="header",
    type="string",
)
@openapi.summary("Answer one turn")
@openapi.description(
    "Starts a session, or continues one. The reply is given once the turn is durable: it survives a crash of the "
    "service and of its stores. With `stream` (or `Accept: text/event-stream`) the answer comes as server-sent events: "
    "`started`, then `delta` with a piece of its `text` each, then `done` with the `reply`, or `error`. Where "
    "streaming is switched off, or the turn ends before a piece came, the answer is the same as without. Who goes away "
    "from a stream has `resume_grace_seconds` to come back; who goes away else ends the turn."
)
async def chat(request: Request) -> HTTPResponse | None:
    """Answer one turn."""
    body = decoded(request.body, request.headers.get("content-type"), ChatRequest)
    live: LiveTurns = await request.app.ctx.service.container.resolve(LiveTurns)
    grace = can_resume(request.headers)
    said = {} if grace else {"Preference-Applied": NO_RESUME}
    if (place := resumed_place(request.headers)) is not None:
        watch = await live.resume(place.session_id, place.turn_id, after=place.seq, grace=grace)
        return await sse.answer(request, watch, said, resumed=True)
    stream = body.stream or wants_events(request.headers)
    key = idempotency_key(request.headers)
    watch = await live.start(
        body,
        key=key,
        join=stream,
        grace=stream and grace,
        correlation_id=request.ctx.correlation_id,
        trace=request.ctx.trace,
        seconds_max=timeout_seconds(request.headers),
    )
    if key is not None and watch.replayed:
        said[REPLAYED_HEADER] = "true"
    if stream:
        return await sse.answer(request, watch, said)
    async with watch:
        return json_response(await watch.reply(), said)
