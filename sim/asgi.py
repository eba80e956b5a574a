"""Drive a whole ASGI application in virtual time: its lifespan, one request at a time, and WebSockets.

This is the base of the `service` door. The application runs on the caller's loop, with neither a socket nor an HTTP
parser between. What was found for Sanic 25.12:

Holds over ASGI: routing, middleware, signals, listeners (`before_server_start` and `after_server_start` both at
start-up), sanic-ext (OpenAPI, injection, validation), streamed requests and responses, background tasks
(`app.add_task`), error handlers, `request.ip` (from `client`).

Does not hold, because Sanic's own HTTP server does it: REQUEST_TIMEOUT, RESPONSE_TIMEOUT and KEEP_ALIVE_TIMEOUT (put
the deadline into the handler, or an `asyncio.timeout` around `call`); REQUEST_MAX_SIZE (its parser counts); the back
pressure of a slow reader; `main_process_*` listeners, workers and reloading. A handler does not notice by itself that
its client went away; Sanic's server cancels the handler then, and so does `call`. Of WebSockets: pings and pongs, size
limits, invalid UTF-8 and a close by the server (`WebSocketConnection.close` does nothing; send ``websocket.close``).

What `lifespan` does for Sanic: it takes the application out of Sanic's registry of names at the end, so that one
process can make many of one name, and it switches the message of the day off, for which Sanic starts ``uname -p``.
Sanic's start-up rewrites methods of its classes from their source (`TouchUp`), leaving out the signals that nobody
listens to; `lifespan` makes it begin with the originals each time, as in Sanic's test mode. Those methods belong to the
class, so of two applications that are up at once the last one started decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]
Headers = Mapping[str, str] | Iterable[tuple[str, str]]

CLIENT = ("203.0.113.1", 50_000)  # an address for documentation, RFC 5737
SERVER = ("simulated", 80)


class LifespanFailed(RuntimeError):
    """The application reported that its start-up or shutdown failed."""


@dataclass
class Response:
    """What the client received.

    Attributes
    ----------
    status
        The HTTP status; 0 if the client went away before it came.
    headers
        In the order they came, names in lower case.
    chunks
        Each piece of the body with the loop's time when it came, in seconds; the first is the first token.
    complete
        Whether the response came to its end.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        """The whole body, as far as it came."""
        return b"".join(piece for _, piece in self.chunks)

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def header(self, name: str) -> str | None:
        """Return the first header called `name`, whatever its case."""
        return next((value for key, value in self.headers if key == name.lower()), None)


@asynccontextmanager
async def lifespan(app: Application) -> AsyncIterator[None]:
    """Start an application and, at the end of the body, stop it.

    Raises
    ------
    LifespanFailed
        With the application's own message.
    """
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, to_app.get, from_app.put))

    async def ask(phase: str) -> None:
        to_app.put_nowait({"type": f"lifespan.{phase}"})
        answer = asyncio.ensure_future(from_app.get())
        await asyncio.wait((task, answer), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and from_app.empty():
            answer.cancel()
            await task  # raises what ended it
            raise LifespanFailed(f"the application ended without an answer to {phase}")
        told = await answer  # it may be on its way when the application is already over
        if told["type"] != f"lifespan.{phase}.complete":
            raise LifespanFailed(told.get("message") or phase)

    with sanic_kept_apart(app):
        try:
            with touching_up_originals(app):
                await ask("startup")
            yield
            await ask("shutdown")
            await task
        finally:
            task.cancel()


def _is_sanic(app: Any) -> bool:
    return hasattr(type(app), "unregister_app")


@contextmanager
def sanic_kept_apart(app: Any) -> Iterator[None]:
    """Keep Sanic's message of the day from starting a process, and its registry from growing."""
    if not _is_sanic(app):
        yield
        return
    app.config.MOTD = False
    try:
        yield
    finally:
        type(app).unregister_app(app)


@contextmanager
def touching_up_originals(app: Any) -> Iterator[None]:
    """Let Sanic rewrite its methods from their own source, not from what it made of them for an earlier application."""
    if not _is_sanic(app):
        yield
        return
    kind = type(app)
    before = kind.test_mode
    kind.test_mode = True
    try:
        yield
    finally:
        kind.test_mode = before


class Closed(Exception):
    """The WebSocket is closed: by the application's close, or as if its transport were lost (1006)."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Refused(Exception):
    """The application did not accept the WebSocket: with an HTTP response, or with a close code before acceptance."""

    def __init__(self, response: Response, code: int | None = None, reason: str = "") -> None:
        super().__init__(response.status or code)
        self.response = response
        self.code = code
        self.reason = reason


class Socket:
    """The client's side of an accepted WebSocket."""

    def __init__(self, unread_max: int | None = None) -> None:
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()  # from the application; None: its task ended
        self.room = None if unread_max is None else asyncio.Semaphore(unread_max)
        self.outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._closed: Closed | None = None

    def send(self, data: str | bytes) -> None:
        """Send one text or binary message."""
        kind = "text" if isinstance(data, str) else "bytes"
        self.outbox.put_nowait({"type": "websocket.receive", kind: data})

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises
        ------
        Closed
            There will be no more.
        """
        if self._closed is None:
            message = await self.inbox.get()
            if message is not None and message["type"] == "websocket.send":
                if self.room is not None:
                    self.room.release()
                data: str | bytes | None = message.get("text")
                return message["bytes"] if data is None else data
            closed = message or {}
            self._closed = Closed(closed.get("code", 1006), closed.get("reason") or "")
        raise self._closed

    def close(self, code: int = 1000) -> None:
        """Close it from the client's side; 1005 and 1006 tell of a connection that was lost."""
        self.outbox.put_nowait({"type": "websocket.disconnect", "code": code})


@asynccontextmanager
async def websocket(
    app: Application,
    path: str,
    headers: Headers = (),
    *,
    client: tuple[str, int] = CLIENT,
    unread_max: int | None = None,
) -> AsyncIterator[Socket]:
    """Open a WebSocket to a started application; at the end of the body the client closes it and the handler ends.

    With `unread_max` the application waits in sending while so many messages are on their way or unread: the back
    pressure of a slow reader, whose socket's buffers are full.

    Cancelling the caller cancels the handler, as a server does that is stopped.

    Raises
    ------
    Refused
        The application did not accept it.
    """
    socket = Socket(unread_max)
    socket.outbox.put_nowait({"type": "websocket.connect"})
    scope = _scope("GET", path, headers, b"", client)
    scope.update({"type": "websocket", "scheme": "ws", "subprotocols": []})
    del scope["method"]

    async def send(message: Message) -> None:
        if socket.room is not None and message["type"] == "websocket.send":
            await socket.room.acquire()
        socket.inbox.put_nowait(message)

    task = asyncio.ensure_future(app(scope, socket.outbox.get, send))
    task.add_done_callback(lambda _: socket.inbox.put_nowait(None))
    try:
        await _accepted(socket)
        yield socket
        socket.close()
        await task
    finally:
        task.cancel()


async def _accepted(socket: Socket) -> None:
    """Return once the application has accepted."""
    response = Response()
    while not response.complete:
        message = await socket.inbox.get()
        if message is None:
            raise Refused(response)
        match message["type"]:
            case "websocket.accept":
                return
            case "websocket.close":
                raise Refused(response, message.get("code", 1000), message.get("reason") or "")
            case _:
                _record(response, message, None)
    raise Refused(response)


async def call(
    app: Application,
    method: str,
    path: str,
    headers: Headers = (),
    body: bytes = b"",
    *,
    disconnect_after_s: float | None = None,
    on_chunk: Callable[[bytes], None] | None = None,
    client: tuple[str, int] = CLIENT,
) -> Response:
    """Send one HTTP request to a started application and return its response.

    The handler runs in a task of its own, as under a server. Cancelling the caller (`asyncio.timeout` around the call
    is a client's own timeout) cancels the handler, as Sanic's server does when the connection is lost. A body without
    a content-length is sent with one, as clients do.

    Parameters
    ----------
    path
        With its query string, percent-encoded as on the wire.
    disconnect_after_s
        The client goes away after so many seconds; what came until then is returned, with `complete` false.
    on_chunk
        Called with each piece of the body as it comes.
    """
    response = Response()
    gone = asyncio.Event()
    inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if not gone.is_set():
            _record(response, message, on_chunk)

    task = asyncio.ensure_future(app(_scope(method, path, headers, body, client), receive, send))
    if disconnect_after_s is None:
        await task
        return response
    await asyncio.wait((task,), timeout=disconnect_after_s)
    gone.set()
    if task.done():
        await task  # raises what the application raised
    else:
        task.cancel()
    return response


def _scope(method: str, path: str, headers: Headers, body: bytes, client: tuple[str, int]) -> Scope:
    raw_path, _, query = path.encode("ascii").partition(b"?")
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    if not any(name == b"host" for name, _ in encoded):
        encoded.insert(0, (b"host", SERVER[0].encode()))
    if body and not any(name == b"content-length" for name, _ in encoded):
        encoded.append((b"content-length", str(len(body)).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method.upper(),
        "scheme": "http",
        "path": unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": encoded,
        "client": client,
        "server": SERVER,
    }


def _record(response: Response, message: Message, on_chunk: Callable[[bytes], None] | None) -> None:
    if message["type"] == "http.response.start":
        response.status = message["status"]
        response.headers = [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in message.get("headers", ())
        ]
        return
    piece = bytes(message.get("body", b""))
    if piece:
        response.chunks.append((asyncio.get_running_loop().time(), piece))
        if on_chunk is not None:
            on_chunk(piece)
    response.complete = not message.get("more_body", False)
