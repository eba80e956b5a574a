"""The chat routes over HTTP."""

from typing import Any

import msgspec
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.chat.orchestrator import ChatOrchestrator
from orchestra.gateway import apidoc
from orchestra.gateway.wire import JSON_TYPE, decoded
from orchestra.model import ChatReply, ChatRequest


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the chat routes to `app`."""
    app.add_route(chat, "/chat/v2/chat", methods=["POST"])


@apidoc.turn_route(ChatRequest, ChatReply, "The whole answer, durable")
@openapi.summary("Answer one turn")
@openapi.description(
    "Starts a session, or continues one. The reply is given once the turn is durable: it survives a crash of the "
    "service and of its stores."
)
async def chat(request: Request) -> HTTPResponse:
    """Answer one turn."""
    body = decoded(request.body, request.headers.get("content-type"), ChatRequest)
    async with request.app.ctx.service.container.create_scope() as scope:
        orchestrator = await scope.resolve(ChatOrchestrator)
        reply: ChatReply = await orchestrator.handle_chat(
            body, correlation_id=request.ctx.correlation_id, trace=request.ctx.trace
        )
    return HTTPResponse(msgspec.json.encode(reply), content_type=JSON_TYPE)
