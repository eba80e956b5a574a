"""asyncio's transports and servers on the simulated network, with the contract that asyncio documents.

As asyncio's own on a selector: one read for each iteration; what the window does not take waits in a buffer whose
limits pause and resume the protocol; `close` sends the buffer first, `abort` does not, and neither resets the peer
unless it left something unread. All that belongs to a connection runs in the context of the program that made it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from asyncio import protocols, transports
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from sim.sockets import SimSocket

if TYPE_CHECKING:
    from sim.network import Host, Listener
    from sim.tcp import Address, Endpoint

READ_BYTES_MAX = 262_144  # as asyncio.selector_events
LOST_WRITES_TO_TELL = 5  # asyncio.constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
logger = logging.getLogger("asyncio")


class SimTransport(transports._FlowControlMixin):  # the limits and pauses that all of asyncio's own transports share
    """One side of a simulated connection.

    Parameters
    ----------
    loop
        The loop of the world.
    endpoint
        Its end of the connection.
    protocol
        Told of everything, from the next iteration on.
    waiter
        Gets a result once `connection_made` has run.
    server
        Whose connection it is, on the side that listens.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: Endpoint,
        protocol: asyncio.BaseProtocol,
        *,
        waiter: asyncio.Future[None] | None = None,
        server: SimServer | None = None,
    ) -> None:
        extra = {"peername": endpoint.remote, "sockname": endpoint.local, "socket": SimSocket.of(endpoint)}
        super().__init__(extra, loop)
        self._endpoint = endpoint
        self._server = server
        self._protocol: asyncio.BaseProtocol | None = None
        self._buffer = bytearray()
        self._eof_to_write = False
        self._eof_read = False
        self._closing = False
        self._lost_writes = 0  # above zero once the connection is lost, as asyncio counts
        self._dead = False
        self._started = False
        self._failure: OSError | None = None
        self._paused = False
        self._read_due = False
        self.set_protocol(protocol)
        endpoint.user = self
        if server is not None:
            server.connections[self] = None
        self._soon(self._start, waiter)

    def __repr__(self) -> str:
        return f"<SimTransport {self._endpoint.local} to {self._endpoint.remote}>"

    def _soon(self, callback: Callable[..., object], *args: Any) -> None:
        self._loop.call_soon(callback, *args, context=self._endpoint.context)

    def _start(self, waiter: asyncio.Future[None] | None) -> None:
        if self._dead:
            return
        assert self._protocol is not None
        try:
            self._protocol.connection_made(self)
        finally:
            self._started = True
            if self._failure is not None:
                self._force_close(self._failure)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
            self._read_soon()

    # --- what the network tells

    def readable(self) -> None:
        """Hand over what has arrived, or the end of it, unless reading is paused."""
        if not self._started or self._paused or self._closing or self._dead:
            return
        if self._endpoint.unread_bytes:
            self._feed(self._endpoint.read(READ_BYTES_MAX))
        elif self._endpoint.at_eof and not self._eof_read:
            self._eof_read = True
            self._end()
        if self._endpoint.unread_bytes or (self._endpoint.at_eof and not self._eof_read):
            self._read_soon()

    def _read_soon(self) -> None:
        if not self._read_due:
            self._read_due = True
            self._soon(self._read)

    def _read(self) -> None:
        self._read_due = False
        self.readable()

    def _feed(self, data: bytes) -> None:
        try:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                protocols._feed_data_to_buffered_proto(self._protocol, data)  # type: ignore[attr-defined]
            else:
                cast(asyncio.Protocol, self._protocol).data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error, "protocol.data_received() call failed.")

    def _end(self) -> None:
        try:
            stays_open = cast(asyncio.Protocol, self._protocol).eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fail(error, "protocol.eof_received() call failed.")
            return
        if not stays_open:
            self.close()

    def writable(self) -> None:
        """Send on what waits in the buffer."""
        if self._dead or self._lost_writes:
            return
        if self._buffer:
            del self._buffer[: self._endpoint.send(self._buffer)]
            self._maybe_resume_protocol()  # type: ignore[attr-defined]
        if not self._buffer:
            self._flushed()

    def _flushed(self) -> None:
        """Do what had to wait for the last byte."""
        if self._eof_to_write:
            self._endpoint.shut_down()
        if self._closing and not self._lost_writes:
            self._lost_writes += 1
            self._soon(self._connection_lost, None)

    def lost(self, error: OSError) -> None:
        """Close at once, with `error`; after `connection_made` in any case."""
        if self._started:
            self._force_close(error)
        else:
            self._failure = error

    def vanish(self) -> None:
        """Call nothing of the program any more: its host has crashed."""
        self._dead = self._closing = True
        self._lost_writes += 1
        self._buffer.clear()

    # --- what the program asks for: asyncio.Transport

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Tell another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the current protocol."""
        return cast(asyncio.BaseProtocol, self._protocol)

    def is_closing(self) -> bool:
        """Return whether it is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Read no more, send what waits, then close."""
        if not self._closing:
            self._closing = True
            if not self._buffer:
                self._flushed()

    def abort(self) -> None:
        """Close at once; what waits to be sent is lost."""
        self._force_close(None)

    def is_reading(self) -> bool:
        """Return whether data is handed over as it comes."""
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        """Leave what arrives unread; once the window is full the peer cannot send."""
        self._paused = True

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused and not self._closing:
            self._paused = False
            self._read_soon()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the window has not taken yet."""
        return len(self._buffer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, now or when the window opens."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._eof_to_write:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data:
            return
        if self._lost_writes:
            if self._lost_writes >= LOST_WRITES_TO_TELL and not self._dead:
                logger.warning("socket.send() raised exception.")
            self._lost_writes += 1
            return
        if isinstance(data, memoryview):
            data = data.cast("B") if data.nbytes else data
        taken = 0 if self._buffer else self._endpoint.send(data)
        if taken < len(data):
            self._buffer += data[taken:]
            self._maybe_pause_protocol()  # type: ignore[attr-defined]

    def can_write_eof(self) -> bool:
        """Return True: a connection can be closed by halves."""
        return True

    def write_eof(self) -> None:
        """Say that there is no more to come, once all is sent; reading goes on."""
        if self._closing or self._eof_to_write:
            return
        self._eof_to_write = True
        if not self._buffer:
            self._endpoint.shut_down()

    # --- the end

    def _fail(self, error: BaseException, what: str) -> None:
        if isinstance(error, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, what, exc_info=True)
        else:
            told = {"message": f"Fatal error: {what}", "exception": error, "transport": self}
            self._loop.call_exception_handler({**told, "protocol": self._protocol})
        self._force_close(error)

    def _force_close(self, error: BaseException | None) -> None:
        if self._lost_writes:
            return
        self._buffer.clear()
        self._closing = True
        self._lost_writes += 1
        self._soon(self._connection_lost, error)

    def _connection_lost(self, error: BaseException | None) -> None:
        if self._dead:
            return
        try:
            assert self._protocol is not None
            self._protocol.connection_lost(cast(Exception | None, error))
        finally:
            self._endpoint.close()
            self._protocol = None
            server, self._server = self._server, None
            if server is not None:
                server.connection_ended(self)


class SimServer(asyncio.AbstractServer):
    """A server on the simulated network, as `asyncio.Server`.

    Parameters
    ----------
    loop
        The loop of the world.
    host
        Where it listens.
    make_protocol
        Called for every connection.

    Attributes
    ----------
    connections
        Its transports, in the order they came.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: Host, make_protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self.connections: dict[SimTransport, None] = {}
        self._loop = loop
        self._host = host
        self._make_protocol = make_protocol
        self._listeners: list[Listener] = []
        self._closed = False
        self._ended: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<SimServer on {self._host.name}: {', '.join(str(each.address) for each in self._listeners)}>"

    def listen(self, address: Address, context: contextvars.Context) -> None:
        """Bind one more address; with port 0, to a free port."""
        listener = self._host.listen(address, context, self.accept)
        self._listeners.append(listener)

    def accept(self, endpoint: Endpoint) -> None:
        """Serve a new connection."""
        try:
            protocol = self._make_protocol()
        except Exception as error:
            told = {"message": "Error on transport creation for incoming connection", "exception": error}
            self._loop.call_exception_handler(told)
            endpoint.close()
        else:
            SimTransport(self._loop, endpoint, protocol, server=self)

    def connection_ended(self, transport: SimTransport) -> None:
        """Forget a connection, and let those go on who wait for the last one's end."""
        self.connections.pop(transport, None)
        self._let_waiters_go()

    @property
    def sockets(self) -> tuple[SimSocket, ...]:
        """What it listens on, as sockets that know their address."""
        return tuple(SimSocket.bound(each.address) for each in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return its loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Return whether it accepts connections."""
        return any(each.accepting for each in self._listeners)

    async def start_serving(self) -> None:
        """Accept connections from now on."""
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        for each in self._listeners:
            each.accepting = True

    async def serve_forever(self) -> None:
        """Serve until cancelled, and be closed then."""
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accept no more connections; those that there are go on."""
        self._closed = True
        for each in self._listeners:
            self._host.unlisten(each)
        self._listeners.clear()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._let_waiters_go()

    async def wait_closed(self) -> None:
        """Return once it is closed and its last connection has ended, as asyncio's does from Python 3.12 on."""
        if not self._closed or self.connections:
            ended: asyncio.Future[None] = self._loop.create_future()
            self._ended.append(ended)
            await ended

    def close_clients(self) -> None:
        """Close its connections."""
        for each in list(self.connections):
            each.close()

    def abort_clients(self) -> None:
        """Close its connections without sending what waits."""
        for each in list(self.connections):
            each.abort()

    def _let_waiters_go(self) -> None:
        if self._closed and not self.connections:
            for each in self._ended:
                if not each.done():
                    each.set_result(None)
            self._ended.clear()
