"""The two ways a WebSocket comes in: over Sanic's own server, and over ASGI.

`WireSocket` stands where Sanic keeps its own `WebsocketImplProtocol`, on the same protocol engine (websockets'
`ServerProtocol`, which does no input or output). Sanic's was tried and left: it starts a task for every piece of data
that arrives and three that stay for every connection, leaves a connection with invalid UTF-8 hanging, and tells a
client's close from a cancelled handler by nothing. Here data is taken as it arrives, without a task.

What arrives is given to the engine in slices, for it parses all that it gets at once, and a frame may take two bytes.
Control frames and fragments are judged after each slice; messages wait for whoever fetches them, and while enough of
them wait nothing more is parsed.
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

SLICE_BYTES = 2_048
"""What the engine gets at a time: at most 341 frames of a client."""

_BINARY = Closed(1003, "binary: frames are JSON objects in text messages")
_TOO_LARGE = Closed(1009, f"too large: a message has at most {limits.REQUEST_BYTES_MAX} bytes")


class Budget:
    """Bytes of incomplete messages that all connections of a process hold together."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


async def accepted(request: Request, budget: Budget) -> "WireSocket | AsgiSocket":
    """Accept the WebSocket that `request` asks for; a message may take as long to arrive as a request.

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
    return _upgraded(transport.get_protocol(), request, budget)


def _upgraded(protocol: Any, request: Request, budget: Budget) -> "WireSocket":
    """Answer the handshake, and take the connection over from Sanic's HTTP."""
    engine = ServerProtocol(state=State.OPEN, max_size=limits.REQUEST_BYTES_MAX)  # the HTTP was read by Sanic
    response = engine.accept(Handshake(request.path, Headers(request.headers)))
    if response.status_code != 101:
        raise _no_handshake((response.body or b"").decode(errors="replace").strip())
    protocol.transport.write(response.serialize())
    socket = protocol.websocket = WireSocket(protocol, engine, budget, request.app.config.REQUEST_TIMEOUT)
    protocol.transport.resume_reading()
    if early := bytes(protocol.recv_buffer):  # it came with the handshake
        protocol.recv_buffer.clear()
        socket.data_received(early)
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
    budget : Budget
    message_seconds_max : float
        How long a message may take to arrive.
    """

    __slots__ = (
        "_allowance",
        "_begun_at",
        "_budget",
        "_charged",
        "_inbox",
        "_inbox_bytes",
        "_loop",
        "_message_seconds_max",
        "_partial",
        "_paused",
        "_protocol",
        "_timer",
        "_transport",
        "_unread",
        "_waiter",
        "closed",
        "heard_at",
        "ws_proto",
    )  # fmt: skip

    loop = None
    """Sanic starts a task here to close at the end, where it finds a loop."""

    def __init__(self, protocol: Any, engine: ServerProtocol, budget: Budget, message_seconds_max: float) -> None:
        self.ws_proto: ServerProtocol | None = engine  # None once the transport is gone
        self.closed: Closed | None = None
        self._protocol = protocol
        self._transport = protocol.transport
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self._inbox: deque[bytes] | None = None  # made when something waits
        self._inbox_bytes = 0
        self._paused = False
        self._unread = b""  # not parsed while the inbox is full
        self._waiter: asyncio.Future[None] | None = None
        self._partial: bytearray | None = None
        self._begun_at: float | None = None  # since when a message is not complete
        self._message_seconds_max = message_seconds_max
        self._budget = budget
        self._charged = 0  # what of the budget is held here
        self._allowance = Allowance(self.heard_at)
        self._timer: asyncio.TimerHandle | None = None

    # what Sanic's protocol calls

    def data_received(self, data: bytes) -> None:
        """Take in what arrived."""
        self.heard_at = self._loop.time()
        if self.ws_proto is None or self.ws_proto.reader.eof:
            return
        if self._paused:
            self._unread += data
            return
        self._feed(self.ws_proto, data)

    def eof_received(self) -> bool:
        """Take in that nothing more will arrive; the transport then closes itself."""
        if self.ws_proto is not None:
            self.ws_proto.receive_eof()
            self._flush()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Take in that the transport is gone, and let go of all that it brought.

        The engine and its parser know each other, and so do Sanic's protocol and this: without this, what they hold
        stays in memory until the garbage collector looks at its oldest generation.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._end(Closed(1006, "lost: the connection broke off"))
        engine, self.ws_proto = self.ws_proto, None
        if engine is not None:
            vars(engine).clear()
        self._protocol.websocket = None
        self._inbox = self._partial = None
        self._unread = b""
        self._charge(0)

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
                raise _again(self.closed)
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
                self._loop.call_soon(self._go_on)
        return data

    async def send(self, messages: Sequence[bytes]) -> None:
        await self._protocol._can_write.wait()
        if self.ws_proto is None or self.ws_proto.state is not State.OPEN:
            raise _again(self.closed or Closed(1006, "lost"))
        for each in messages:
            self.ws_proto.send_text(each)
        self._flush()

    @property
    def arrives_by(self) -> float | None:
        if self._begun_at is None or self._paused:
            return None
        return self._begun_at + self._message_seconds_max

    def ping(self) -> None:
        if self.ws_proto is not None and self.ws_proto.state is State.OPEN:
            self.ws_proto.send_ping(b"")
            self._flush()

    def close(self, code: int, reason: str) -> None:
        if self.ws_proto is not None and self.ws_proto.state is State.OPEN:
            self.ws_proto.send_close(code, reason.encode()[: limits.CLOSE_REASON_BYTES_MAX].decode(errors="ignore"))
            self._flush()
        self._end(Closed(code, reason))
        self._linger()

    def abort(self, reason: str) -> None:
        self._end(Closed(1006, reason))
        self._transport.abort()

    # how it works

    def _feed(self, engine: ServerProtocol, data: bytes) -> None:
        """Let the engine parse `data`, slice by slice, until enough waits, or no more is to be heard."""
        now = self._loop.time()
        start = 0
        while start < len(data) and not self._paused and not engine.eof_sent:
            engine.receive_data(data[start : start + SLICE_BYTES])
            start += SLICE_BYTES
            for event in engine.events_received():
                self._take(engine, event, now)
        self._unread = data[start:] if self._paused else b""
        self._weigh(engine, now)
        self._flush()
        if self.closed is None and engine.state is not State.OPEN:
            self._end(self._how(engine))
        if self._transport.get_write_buffer_size() > limits.WRITE_BYTES_MAX:
            self.abort("too slow: it reads nothing")  # pongs, say, to one that only pings

    def _go_on(self) -> None:
        """Parse what has waited, then read on."""
        if not self._paused or self.ws_proto is None:
            return
        self._paused = False
        self._begun_at = None  # nothing could arrive meanwhile
        self._feed(self.ws_proto, self._unread)
        if not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()

    def _take(self, engine: ServerProtocol, frame: Any, now: float) -> None:
        """Take one frame that the engine has parsed; it has answered pings and closes already."""
        assert isinstance(frame, Frame)
        if self.closed is not None:  # only the peer's close is waited for
            if not engine.eof_sent and not self._allowance.take(now):
                engine.fail(1008)
        elif frame.opcode is Opcode.BINARY:
            self._fail(engine, _BINARY)
        elif frame.opcode in (Opcode.PING, Opcode.PONG):
            if not self._allowance.take(now):
                self._fail(engine, Closed(1008, "flood: too many control frames"))
        elif frame.opcode is not Opcode.CLOSE:
            if not frame.fin and not self._allowance.take(now):
                self._fail(engine, Closed(1008, "flood: too many fragments"))
            else:
                self._text(engine, bytes(frame.data), frame.fin)
        if self._partial is None:
            self._begun_at = None

    def _weigh(self, engine: ServerProtocol, now: float) -> None:
        """Note since when a message is incomplete, and refuse it where all of them are too large together."""
        parsed = len(engine.reader.buffer)
        if self._partial is None and not parsed:
            self._begun_at = None
        elif self._begun_at is None:
            self._begun_at = now
        held = len(self._partial or b"") + parsed + len(self._unread)
        before = self._charged
        self._charge(max(0, held - limits.UNFINISHED_BYTES_FREE))
        if self._charged > before and self._budget.held > limits.UNFINISHED_BYTES_MAX and self.closed is None:
            self._fail(engine, Closed(1013, "busy: too many messages are incomplete; try again"))

    def _charge(self, held: int) -> None:
        self._budget.held += held - self._charged
        self._charged = held

    def _text(self, engine: ServerProtocol, data: bytes, whole: bool) -> None:
        if not whole or self._partial is not None:
            self._partial = self._partial if self._partial is not None else bytearray()
            self._partial += data
            if not whole:
                return
            data, self._partial = bytes(self._partial), None
        try:
            data.decode()
        except UnicodeDecodeError as fault:
            self._fail(engine, Closed(1007, f"not UTF-8: byte {fault.start} of a message"))
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

    def _fail(self, engine: ServerProtocol, closed: Closed) -> None:
        """Close because of what the peer sent, and hear no more of it."""
        engine.fail(closed.code, closed.reason)
        engine.reader.discard()
        self._partial, self._unread = None, b""
        self._charge(0)
        self._end(closed)

    def _how(self, engine: ServerProtocol) -> Closed:
        """Return how the engine closed: answering the peer's close, or because of what it sent."""
        if (theirs := engine.close_rcvd) is not None:
            return Closed(theirs.code)
        ours = engine.close_sent
        if ours is None:
            return Closed(1006, "lost")
        return _TOO_LARGE if ours.code == _TOO_LARGE.code else Closed(ours.code, ours.reason)

    def _end(self, closed: Closed) -> None:
        """Be closed, unless it is; what the peer said before it closed can still be fetched."""
        if self.closed is None:
            self.closed = closed
            if self.ws_proto is None or self.ws_proto.close_rcvd is None:
                self._inbox = None
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _flush(self) -> None:
        """Write what the engine has to send."""
        writes = self.ws_proto.data_to_send() if self.ws_proto is not None else []
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
                self._loop.call_soon(self._go_on)


def _again(closed: Closed) -> Closed:
    """Return what can be raised: an exception that is kept as well keeps the frames that it passed."""
    return Closed(closed.code, closed.reason)


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

    arrives_by = None
    """The server sees to it."""

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
        raise _again(self.closed)

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
                raise _again(self.closed)
            await self._send({"type": "websocket.send", "text": each.decode()})

    def ping(self) -> None:
        """Leave that to the server."""

    def close(self, code: int, reason: str) -> None:
        if self.closed is None:
            self.closed, self._tell_peer = Closed(code, reason), True  # whoever receives tells it
            self._closing.set_result(None)

    def abort(self, reason: str) -> None:
        self.close(1006, reason)
