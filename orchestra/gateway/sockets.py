"""The two ways a WebSocket comes in: over Sanic's own server, and over ASGI.

`WireSocket` stands where Sanic keeps its own `WebsocketImplProtocol`, on the same protocol engine (websockets'
`ServerProtocol`, which does no input or output). Sanic's was tried and left: it starts a task for every piece of data
that arrives and three that stay for every connection, leaves a connection with invalid UTF-8 hanging, and tells a
client's close from a cancelled handler by nothing. Here data is taken as it arrives, without a task.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from sanic import Request
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from orchestra import limits
from orchestra.chat.connections import Allowance, Closed
from orchestra.errors import InvalidRequest

_BINARY = Closed(1003, "binary: frames are JSON objects in text messages")
_TOO_LARGE = Closed(1009, f"too large: a message has at most {limits.REQUEST_BYTES_MAX} bytes")


async def accepted(request: Request) -> "WireSocket | AsgiSocket":
    """Accept the WebSocket that `request` asks for.

    Raises
    ------
    InvalidRequest
        It asks for none, or wrongly.
    """
    transport: Any = request.transport
    if request.app.asgi:
        if transport.scope["type"] != "websocket":
            raise _no_handshake("the Upgrade header is missing")
        socket = AsgiSocket(transport.send, transport.receive)
        await socket.accept()
        return socket
    return _upgraded(transport.get_protocol(), request)


def _upgraded(protocol: Any, request: Request) -> "WireSocket":
    """Answer the handshake, and take the connection over from Sanic's HTTP."""
    engine = ServerProtocol(state=State.OPEN, max_size=limits.REQUEST_BYTES_MAX)  # the HTTP was read by Sanic
    response = engine.accept(Handshake(request.path, Headers(request.headers)))
    if response.status_code != 101:
        raise _no_handshake((response.body or b"").decode(errors="replace").strip())
    protocol.transport.write(response.serialize())
    socket = protocol.websocket = WireSocket(protocol, engine)
    protocol.transport.resume_reading()
    return socket


def _no_handshake(why: str) -> InvalidRequest:
    return InvalidRequest(f"this path is for WebSockets (RFC 6455): {why}")


class WireSocket:
    """A WebSocket on a transport of Sanic's server.

    Parameters
    ----------
    protocol
        Sanic's protocol of the connection: its `transport`, and `_can_write`, which is set while the transport takes
        more (asyncio's `pause_writing` and `resume_writing`).
    engine : ServerProtocol
    """

    __slots__ = (
        "_allowance",
        "_inbox",
        "_inbox_bytes",
        "_loop",
        "_partial",
        "_paused",
        "_protocol",
        "_timer",
        "_transport",
        "_waiter",
        "closed",
        "heard_at",
        "ws_proto",
    )  # fmt: skip

    loop = None
    """Sanic starts a task here to close at the end, where it finds a loop."""

    def __init__(self, protocol: Any, engine: ServerProtocol) -> None:
        self.ws_proto = engine
        self.closed: Closed | None = None
        self._protocol = protocol
        self._transport = protocol.transport
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._inbox: deque[bytes] | None = None  # made when something waits
        self._inbox_bytes = 0
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._partial: bytearray | None = None
        self._allowance = Allowance(self.heard_at)
        self._timer: asyncio.TimerHandle | None = None

    # what Sanic's protocol calls

    def data_received(self, data: bytes) -> None:
        """Take in what arrived."""
        self.heard_at = self._loop.time()
        if self.ws_proto.reader.eof:
            return
        self.ws_proto.receive_data(data)
        for event in self.ws_proto.events_received():
            if self.closed is None:
                self._take(event)
        self._flush()
        if self.closed is None and self.ws_proto.state is not State.OPEN:
            self._end(self._how())
        if self._transport.get_write_buffer_size() > limits.OUTBOX_BYTES_MAX:
            self.abort("too slow: it reads nothing")  # pongs, say, to one that only pings

    def eof_received(self) -> bool:
        """Take in that nothing more will arrive; the transport then closes itself."""
        self.ws_proto.receive_eof()
        self._flush()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Take in that the transport is gone."""
        self.ws_proto.state = State.CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._end(Closed(1006, "lost: the connection broke off"))

    def end_connection(self, code: int = 1000, reason: str = "") -> None:
        """Close where the handler ended and left it open."""
        self.close(code, reason)

    def fail_connection(self, code: int = 1006, reason: str = "") -> None:
        """Drop the transport: the time for an orderly end is over."""
        self.abort(reason or f"dropped ({code})")

    # what the chat calls

    async def receive(self) -> bytes:
        while not self._inbox:
            if self.closed is not None:
                raise self.closed
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        data = self._inbox.popleft()
        self._inbox_bytes -= len(data)
        if not self._inbox:
            self._inbox = None
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
        return data

    async def send(self, messages: Sequence[bytes]) -> None:
        await self._protocol._can_write.wait()
        if self.ws_proto.state is not State.OPEN:
            raise self.closed or Closed(1006, "lost")
        for each in messages:
            self.ws_proto.send_text(each)
        self._flush()

    def ping(self) -> None:
        if self.ws_proto.state is State.OPEN:
            self.ws_proto.send_ping(b"")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        if self.ws_proto.state is State.OPEN:
            self.ws_proto.send_close(code, reason.encode()[: limits.CLOSE_REASON_BYTES_MAX].decode(errors="ignore"))
            self._flush()
        self._end(Closed(code, reason))
        self._linger()

    def abort(self, reason: str) -> None:
        self._end(Closed(1006, reason))
        self._transport.abort()

    # how it works

    def _take(self, frame: Any) -> None:
        """Take one frame that the engine has parsed; it has answered pings and closes already."""
        assert isinstance(frame, Frame)
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            if not self._allowance.take(self.heard_at):
                self._fail(Closed(1008, "flood: too many control frames"))
        elif frame.opcode is Opcode.BINARY:
            self._fail(_BINARY)
        elif frame.opcode is not Opcode.CLOSE:
            self._text(bytes(frame.data), frame.fin)

    def _text(self, data: bytes, whole: bool) -> None:
        if not whole or self._partial is not None:
            self._partial = self._partial or bytearray()
            self._partial += data
            if not whole:
                return
            data, self._partial = bytes(self._partial), None
        try:
            data.decode()
        except UnicodeDecodeError as fault:
            self._fail(Closed(1007, f"not UTF-8: byte {fault.start} of a message"))
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(data)
        self._inbox_bytes += len(data)
        full = len(self._inbox) >= limits.INBOX_FRAMES_MAX or self._inbox_bytes >= limits.INBOX_BYTES_MAX
        if full and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _fail(self, closed: Closed) -> None:
        """Close because of what the peer sent, and hear no more of it."""
        self.ws_proto.fail(closed.code, closed.reason)
        self._end(closed)

    def _how(self) -> Closed:
        """Return how the engine closed: answering the peer's close, or because of what it sent."""
        if (theirs := self.ws_proto.close_rcvd) is not None:
            return Closed(theirs.code)
        ours = self.ws_proto.close_sent
        if ours is None:
            return Closed(1006, "lost")
        return _TOO_LARGE if ours.code == _TOO_LARGE.code else Closed(ours.code, ours.reason)

    def _end(self, closed: Closed) -> None:
        """Be closed, unless it is; what the peer said before it closed can still be fetched."""
        if self.closed is None:
            self.closed = closed
            if self.ws_proto.close_rcvd is None:
                self._inbox = None
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _flush(self) -> None:
        """Write what the engine has to send."""
        writes = self.ws_proto.data_to_send()
        if not writes or self._transport.is_closing():
            return
        self._transport.write(b"".join(writes))
        if not writes[-1]:  # its mark of the end: the peer may still read, then it closes
            self._linger()
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _linger(self) -> None:
        """Give the peer some time to close as well."""
        if self._timer is None and not self._transport.is_closing():
            self._timer = self._loop.call_later(limits.CLOSE_SECONDS_MAX, self._transport.abort)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()


Message = MutableMapping[str, Any]


class AsgiSocket:
    """A WebSocket of an ASGI server, which answers pings and finds lost peers by itself.

    Parameters
    ----------
    send, receive : callable
        As ASGI gives them to the application.
    """

    __slots__ = ("_closing", "_loop", "_receive", "_send", "_tell_peer", "closed")

    def __init__(self, send: Callable[[Message], Awaitable[None]], receive: Callable[[], Awaitable[Message]]) -> None:
        self.closed: Closed | None = None
        self._send = send
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._tell_peer = False

    @property
    def heard_at(self) -> float:
        return self._loop.time()

    async def accept(self) -> None:
        """Accept it. ``websocket.connect`` is gone: Sanic takes it for the request's body."""
        await self._send({"type": "websocket.accept"})

    async def receive(self) -> bytes:
        if self.closed is None:
            receiving = asyncio.ensure_future(self._receive())
            try:
                await asyncio.wait((receiving, self._closing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                receiving.cancel()
            if self.closed is None and (data := self._text(receiving.result())) is not None:
                return data
        assert self.closed is not None
        if self._tell_peer:
            self._tell_peer = False
            await self._send({"type": "websocket.close", "code": self.closed.code, "reason": self.closed.reason})
        raise self.closed

    def _text(self, message: Message) -> bytes | None:
        """Return the text of a message, or None where it ends the connection."""
        if message["type"] == "websocket.disconnect":
            self.closed = Closed(message.get("code", 1005))
            return None
        if message.get("text") is None:
            self.close(_BINARY.code, _BINARY.reason)
            return None
        try:
            data: bytes = message["text"].encode()
        except UnicodeEncodeError as fault:
            self.close(1007, f"not UTF-8: a lone surrogate at character {fault.start} of a message")
            return None
        if len(data) > limits.REQUEST_BYTES_MAX:
            self.close(_TOO_LARGE.code, _TOO_LARGE.reason)
            return None
        return data

    async def send(self, messages: Sequence[bytes]) -> None:
        for each in messages:
            if self.closed is not None:
                raise self.closed
            await self._send({"type": "websocket.send", "text": each.decode()})

    def ping(self) -> None:
        """Leave that to the server."""

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed, self._tell_peer = Closed(code, reason), True  # whoever receives tells it
            self._closing.set_result(None)

    def abort(self, reason: str) -> None:
        self.close(1006, reason)
