"""The chat routes over HTTP."""

from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.chat.orchestrator import ChatOrchestrator, Sink
from orchestra.gateway import apidoc, sse
from orchestra.gateway.parameters import (
    EVENT_STREAM,
    TIMEOUT_HEADER,
    TIMEOUT_SECONDS_MAX,
    timeout_seconds,
    wants_events,
)
from orchestra.gateway.wire import decoded, json_response
from orchestra.model import ChatReply, ChatRequest

DOCUMENTED = (ChatRequest, ChatReply)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the chat routes to `app`."""
    app.add_route(chat, "/chat/v2/chat", methods=["POST"])


@apidoc.route(ChatReply, "The whole answer, durable", takes=ChatRequest, also=EVENT_STREAM)
@apidoc.parameter(
    TIMEOUT_HEADER,
    "How many seconds the caller waits: the turn ends by then, with 504 where it is not done.",
    location="header",
    type="number",
    maximum=TIMEOUT_SECONDS_MAX,
)
@openapi.summary("Answer one turn")
@openapi.description(
    "Starts a session, or continues one. The reply is given once the turn is durable: it survives a crash of the "
    "service and of its stores. With `stream` (or `Accept: text/event-stream`) the answer comes as server-sent events: "
    "`delta` with a piece of its `text`, then `done` with the reply, or `error` with a problem. Where streaming is "
    "switched off, or the turn ends before a piece came, the answer is the same as without."
)
async def chat(request: Request) -> HTTPResponse | None:
    """Answer one turn."""
    body = decoded(request.body, request.headers.get("content-type"), ChatRequest)
    seconds_max = timeout_seconds(request.headers)

    async def turn(sink: Sink | None = None) -> ChatReply:
        async with request.app.ctx.service.container.create_scope() as scope:
            orchestrator: ChatOrchestrator = await scope.resolve(ChatOrchestrator)
            return await orchestrator.handle_chat(
                body,
                correlation_id=request.ctx.correlation_id,
                trace=request.ctx.trace,
                sink=sink,
                seconds_max=seconds_max,
            )

    if body.stream or wants_events(request.headers):
        return await sse.answer(request, turn)
    return json_response(await turn())
