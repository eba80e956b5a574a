"""Where clients come in: at the orchestrator itself, or at the whole service.

`orchestrator_door` calls the orchestrator as a request handler does, in a scope of the container; `ServiceDoor` posts
to the whole Sanic app through ASGI, and opens WebSockets to it. Both tell a failure by its error's stable kind. A
request with `stream` is answered in pieces, as by server-sent events.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import msgspec

from orchestra.chat.orchestrator import ChatOrchestrator
from orchestra.chat.turns import LiveTurns
from orchestra.container import DIContainer
from orchestra.errors import OrchestraError
from orchestra.frames import DeltaFrame, Done, ErrorFrame, ServerFrame
from orchestra.gateway.problems import TYPE_PREFIX, Problem
from orchestra.model import ChatReply, ChatRequest
from sim import asgi

DoorName = Literal["orchestrator", "service"]
DOORS: tuple[DoorName, ...] = ("orchestrator", "service")
CHAT_PATH = "/chat/v2/chat"
SOCKET_PATH = "/chat/ws"
CUT_OFF = "cut-off"
FIRST_PIECE = b"event: delta"

_FRAMES: msgspec.json.Decoder[Any] = msgspec.json.Decoder(ServerFrame)


class Refused(Exception):
    """A turn got no answer: the kind of error that told so, and after how many seconds it asks to come back, if so."""

    def __init__(self, kind: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


Began = Callable[[], None]
"""Called when the first piece of an answer comes."""


class Door(Protocol):
    """Where requests come in."""

    async def __call__(self, request: ChatRequest, correlation_id: str, began: Began | None = None) -> ChatReply:
        """Return the reply, after calling `began` where it comes in pieces; raises `Refused`."""
        ...


@runtime_checkable
class SocketDoor(Door, Protocol):
    """A door that takes WebSockets as well."""

    def connect(
        self, client_id: str, session_id: str, address: tuple[str, int], unread_max: int
    ) -> AbstractAsyncContextManager[asgi.Socket]:
        """Return a WebSocket, to be entered; entering raises `asgi.Refused`."""
        ...


def orchestrator_door(container: DIContainer) -> Door:
    """Return the door that calls `ChatOrchestrator.handle_chat`; answers in pieces are those of `LiveTurns`."""

    async def send(request: ChatRequest, correlation_id: str, began: Began | None = None) -> ChatReply:
        try:
            if request.stream:
                return await _followed(await container.resolve(LiveTurns), request, correlation_id, began)
            async with container.create_scope() as scope:
                orchestrator = await scope.resolve(ChatOrchestrator)
                return await orchestrator.handle_chat(request, correlation_id=correlation_id)
        except OrchestraError as error:
            raise Refused(error.kind, error.retry_after_seconds) from error

    return send


async def _followed(live: LiveTurns, request: ChatRequest, correlation_id: str, began: Began | None) -> ChatReply:
    """Follow a turn piece by piece, as `orchestra.gateway.sse` does for a client that can resume."""
    watch = await live.start(request, correlation_id=correlation_id)
    watch.named = False  # before the first piece the client knows no id to come back to
    async with watch:
        async for entry in watch:
            if isinstance(entry.frame, DeltaFrame) and not watch.named:
                watch.named = True
                if began is not None:
                    began()
        return await watch.reply()


class ServiceDoor:
    """The door of a started app."""

    def __init__(self, app: asgi.Application) -> None:
        self._app = app
        self._reply = msgspec.json.Decoder(ChatReply).decode
        self._problem = msgspec.json.Decoder(Problem).decode

    async def __call__(self, request: ChatRequest, correlation_id: str, began: Began | None = None) -> ChatReply:
        """Post `request`; raises `Refused`."""
        headers = {"content-type": "application/json", "x-request-id": correlation_id}
        body = msgspec.json.encode(request)
        heard = None if began is None else _telling_first(began)
        response = await asgi.call(self._app, "POST", CHAT_PATH, headers, body, on_chunk=heard)
        if response.status != 200:
            problem = self._problem(response.body)
            raise Refused(problem.type.removeprefix(TYPE_PREFIX), problem.retry_after_seconds)
        if (response.header("content-type") or "").startswith("text/event-stream"):
            return _streamed(response.body)
        return self._reply(response.body)

    def connect(
        self, client_id: str, session_id: str, address: tuple[str, int], unread_max: int
    ) -> AbstractAsyncContextManager[asgi.Socket]:
        """Return a WebSocket to the session, to be entered."""
        path = f"{SOCKET_PATH}/{client_id}/{session_id}"
        return asgi.websocket(self._app, path, client=address, unread_max=unread_max)


def _telling_first(began: Began) -> Callable[[bytes], None]:
    """Return what calls `began` at the first piece of the text in a stream of events."""
    waits = True

    def heard(piece: bytes) -> None:
        nonlocal waits
        if waits and FIRST_PIECE in piece:
            waits = False
            began()

    return heard


def _streamed(body: bytes) -> ChatReply:
    """Return the reply that a stream of events ends with; raises `Refused` with the error that it may end with."""
    last = body.rstrip().rpartition(b"\n\n")[2]
    data = next((line[6:] for line in last.splitlines() if line.startswith(b"data: ")), None)
    frame = None if data is None else _FRAMES.decode(data)
    if isinstance(frame, Done):
        return frame.reply
    if isinstance(frame, ErrorFrame):
        raise Refused(frame.kind, frame.retry_after_seconds)
    raise Refused(CUT_OFF)
