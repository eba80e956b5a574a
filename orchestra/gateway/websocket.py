"""WebSockets at `/chat/ws/<client_id>/<session_id>`: the frames of `orchestra.frames`, see /docs/asyncapi.json.

What is refused is refused before acceptance, with an ordinary problem: wrong ids (400), a page of another origin (403),
too many connections (503).
Then the session is created or restored, `ready` is sent, and frames are answered one after the other; those that came
before `ready` have waited, in order. A frame that is wrong, or meets a defect, is answered with an `error` frame, and
the next one is read. Close codes: 1001 idle, 1003 binary, 1007 not UTF-8, 1008 flood or too slow, 1009 too large, 1011
defect, 1012 the instance is going, 1013 busy, or the session cannot be had now. Where an `error` frame that is not
retryable comes last before the close, its error gives the code, and to come back is in vain.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from sanic import HTTPResponse, Request, Sanic

from orchestra import limits
from orchestra.chat.connections import Closed, Connection, Socket
from orchestra.chat.handlers import ConnectionHandler, ConnectionHandlers
from orchestra.chat.turns import error_frame
from orchestra.errors import Forbidden, Overloaded
from orchestra.events import ConnectionClosed, ConnectionOpened
from orchestra.frames import Cancel, ClientFrame, Resume, SendMessage
from orchestra.gateway import wire
from orchestra.gateway.routes import add_route
from orchestra.gateway.sockets import Budget, accepted
from orchestra.security.validation import validate_id

PATH = "/chat/ws/<client_id:str>/<session_id:str>"
CONNECTION_ID_BYTES = 8

_FRAME: Any = ClientFrame  # to a type checker a union is no type
_SHAPE = "a frame is one flat JSON object with a type (message, cancel, resume or ping): see /docs/asyncapi.json"


class Who(NamedTuple):
    """Who connects: the ids of the path, the network address, and the id of the request."""

    client_id: str
    session_id: str
    address: str
    correlation_id: str


def add_routes(app: Sanic[Any, Any], origins_allowed: Sequence[str]) -> None:
    """Add the route to `app`; pages of its own origin may connect, and those of `origins_allowed`.

    It is an ordinary one that takes the connection over, for Sanic accepts a WebSocket route's before it is asked.
    """
    app.enable_websocket()
    app.ctx.unfinished = Budget()
    app.ctx.origins_allowed = origins_allowed
    add_route(app, connect, PATH)


async def connect(request: Request, client_id: str, session_id: str) -> HTTPResponse | None:
    """Serve one connection, from its handshake to its end."""
    validate_id("client_id", client_id, "choose one for each client, and keep it")
    validate_id("session_id", session_id, "send one that a reply named, or choose one")
    check_origin(request.headers, request.app.ctx.origins_allowed)
    service = request.app.ctx.service
    handlers: ConnectionHandlers = await service.container.resolve(ConnectionHandlers)
    who = Who(client_id, session_id, request.remote_addr or request.ip, request.ctx.correlation_id)
    await hold(handlers, who, partial(accepted, request, request.app.ctx.unfinished))
    return None


def check_origin(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Refuse what a browser sends for a page of another origin: any page may open WebSockets to anywhere.

    What is no browser sends no `Origin`, or may send what it likes. (RFC 6455, section 10.2.)

    Raises
    ------
    Forbidden
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    scheme, _, host = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    if not host or host.removesuffix(port) != headers.get("host", "").lower().removesuffix(port):
        raise Forbidden("pages of another origin may not connect: the setting origins_allowed names those that may")


connect.is_websocket = True  # type: ignore[attr-defined]


async def hold(handlers: ConnectionHandlers, who: Who, accept: Callable[[], Awaitable[Socket]]) -> None:
    """Take a place in the pool, then accept, and serve the connection until it is closed."""
    with handlers.pool.admitted(who.client_id, who.address):
        socket = await accept()
        connection = Connection(
            handlers.entropy.hex(CONNECTION_ID_BYTES),
            who.client_id,
            who.session_id,
            socket,
            handlers.idle_seconds_max,
            handlers.now,
        )
        await _serve(handlers, connection, who.correlation_id)


async def _serve(handlers: ConnectionHandlers, connection: Connection, correlation_id: str) -> None:
    """Hold a conversation with an accepted connection until it is closed."""
    who = (connection.id, connection.client_id, connection.session_id, correlation_id)
    handlers.hook(ConnectionOpened(handlers.now(), *who))
    handler = ConnectionHandler(handlers, connection)
    try:
        with handlers.sessions.held(connection.session_id):
            await _converse(handlers, handler, connection)
    except Closed:
        pass
    finally:
        handlers.timeouts.unregister(connection)
        handlers.pool.remove(connection)
        closed = connection.closing or Closed(1006, "dropped")
        now = handlers.now()
        seconds = now - connection.opened_at
        frames = (connection.received, connection.sent)
        handlers.hook(ConnectionClosed(now, *who, closed.code, closed.reason, seconds, *frames))
        try:
            await handler.close()
        finally:
            await connection.ended()


async def _converse(handlers: ConnectionHandlers, handler: ConnectionHandler, connection: Connection) -> None:
    """Say `ready`, and answer frame by frame; ends with `Closed`."""
    try:
        await handler.open()
        handlers.timeouts.register(connection, connection.opened_at)
        while True:
            data = await connection.receive()
            if connection.closing is None:
                await _answer(handler, connection, data)
    except Closed:
        raise
    except Exception as raised:
        error = handler.boundary(raised)
        connection.send(error_frame(error))
        connection.close(error.close_code, error.detail)
    while True:  # until it is closed
        await connection.receive()


async def _answer(handler: ConnectionHandler, connection: Connection, data: bytes | None) -> None:
    """Answer one frame, within the error boundary: whatever is wrong with it is answered as well."""
    if data is None:
        flood = Overloaded("too many frames: send fewer", retry_after_seconds=1)
        connection.send(error_frame(flood))
        connection.close(1008, "flood: too many frames")
        return
    frame: ClientFrame | None = None
    try:
        frame = wire.parsed(data, _FRAME, lambda: _SHAPE, "frame")
        await handler.handle(frame)
    except Exception as raised:
        error = handler.boundary(raised)
        match frame:
            case SendMessage():
                connection.send(error_frame(error, id=frame.id))
            case Cancel() | Resume():
                turn_id = frame.turn_id if limits.is_id(frame.turn_id) else None  # not to be echoed
                connection.send(error_frame(error, turn_id=turn_id))
            case _:
                connection.send(error_frame(error))
