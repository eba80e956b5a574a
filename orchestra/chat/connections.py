"""Connections: what one WebSocket is to the chat, whatever carries it, and the pool that bounds how many there are.

    contract: `Socket`, `Closed`;  state: `Connection`;  behaviour: `ConnectionPool`

Everything that stays while nothing happens is counted here in bytes, for most connections are idle: no task, timer or
queue of its own beside the handler's. Frames wait in an outbox that is bounded, and are the same bytes for everybody
who gets them; a task writes them for as long as there are some.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import msgspec

from orchestra import limits
from orchestra.errors import ShuttingDown, TooManyConnections
from orchestra.frames import ServerFrame

RETRY_SECONDS = 5.0
"""When to ask again where a limit is reached: connections last for minutes, but many close at any time."""


class Closed(Exception):
    """There will be no more frames.

    Parameters
    ----------
    code : int
        As in RFC 6455, section 7.4; 1006 where the peer was lost.
    reason : str
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Socket(Protocol):
    """A WebSocket that carries text only.

    What the protocol itself forbids it closes by itself: binary messages (1003), text that is not UTF-8 (1007),
    messages over `limits.REQUEST_BYTES_MAX` (1009).
    """

    @property
    def closed(self) -> Closed | None:
        """How it was closed; None while it is open."""
        ...

    @property
    def heard_at(self) -> float:
        """The loop's time of the last sign of life."""
        ...

    @property
    def arrives_by(self) -> float | None:
        """The loop's time by which the message that is arriving must be complete; None where none is."""
        ...

    async def receive(self) -> bytes:
        """Return the next message; raises `Closed` where there will be none."""
        ...

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages, once the transport takes more; raises `Closed` where it is."""
        ...

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Begin to close; what was received and not yet fetched is dropped."""
        ...

    def abort(self, reason: str) -> None:
        """Drop the transport (1006): the peer is lost."""
        ...


class Allowance:
    """A token bucket: so many at once, so many a second."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._at = now
        self._left = float(limits.FRAMES_BURST_MAX)

    def take(self, now: float) -> bool:
        """Take one, or return False where none is left."""
        left = self._left + (now - self._at) * limits.FRAMES_PER_SECOND_MAX
        self._left = min(left, float(limits.FRAMES_BURST_MAX))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Connection:
    """One WebSocket of a client in a session: its outbox, and when it is idle, lost or too slow.

    Parameters
    ----------
    id, client_id, session_id : str
    socket : Socket
    idle_seconds_max : float
        Without a frame from the client for so long it is closed (1001).
    now : callable
        The running loop's `time`.
    """

    __slots__ = (
        "_active_at",
        "_allowance",
        "_close_timer",
        "_closing",
        "_idle_seconds_max",
        "_now",
        "_outbox",
        "_outbox_bytes",
        "_pinged_at",
        "_writer",
        "client_id",
        "id",
        "opened_at",
        "received",
        "sent",
        "session_id",
        "socket",
    )  # fmt: skip

    def __init__(
        self,
        id: str,  # noqa: A002 - what everybody calls it
        client_id: str,
        session_id: str,
        socket: Socket,
        idle_seconds_max: float,
        now: Callable[[], float],
    ) -> None:
        self.id = id
        self.client_id = client_id
        self.session_id = session_id
        self.socket = socket
        self.opened_at = now()
        self.received = 0
        self.sent = 0
        self._idle_seconds_max = idle_seconds_max
        self._now = now
        self._active_at = self.opened_at
        self._pinged_at: float | None = None
        self._allowance = Allowance(self.opened_at)
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._closing: Closed | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    @property
    def closing(self) -> Closed | None:
        """How it is being closed, or was; None while it is open."""
        return self._closing or self.socket.closed

    async def receive(self) -> bytes | None:
        """Return the client's next frame, or None where it sends more than it may.

        Raises
        ------
        Closed
        """
        data = await self.socket.receive()
        self.received += 1
        self._active_at = now = self._now()
        return data if self._allowance.take(now) else None

    def send(self, frame: ServerFrame) -> None:
        """Send `frame` after what waits already."""
        self.push(msgspec.json.encode(frame))

    def push(self, data: bytes) -> None:
        """Send an encoded frame after what waits already; a peer too far behind to get it is closed instead (1008)."""
        if self.closing is not None:
            return
        if len(self._outbox) >= limits.OUTBOX_FRAMES_MAX or self._outbox_bytes > limits.OUTBOX_BYTES_MAX:
            self._drop(Closed(1008, "too slow: too much waited to be sent to you; connect again and resume"))
            return
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def room(self) -> None:
        """Return when the outbox has room for more, for those who can wait."""
        while self._writer is not None and self._outbox_bytes > limits.OUTBOX_BYTES_MAX // 4:
            await asyncio.wait((self._writer,))

    async def _write(self) -> None:
        """Write until nothing waits, and close where that was only waited for."""
        try:
            while self._outbox:
                batch, self._outbox = self._outbox, []
                await self.socket.send(batch)
                self._outbox_bytes -= sum(map(len, batch))
                self.sent += len(batch)
        except Closed:
            self._outbox.clear()
        finally:
            self._writer = None
        if self._closing is not None:
            self.socket.close(self._closing.code, self._closing.reason)

    def close(self, code: int, reason: str) -> None:
        """Close once what waits is sent, or within `limits.CLOSE_SECONDS_MAX`."""
        if self.closing is not None:
            return
        self._closing = Closed(code, reason)
        if self._writer is None:
            self.socket.close(code, reason)
            return
        loop = asyncio.get_running_loop()
        self._close_timer = loop.call_later(limits.CLOSE_SECONDS_MAX, self._drop, self._closing)

    def _drop(self, closed: Closed) -> None:
        """Close at once, whatever waits."""
        self._closing = closed
        self._outbox.clear()
        self.socket.close(closed.code, closed.reason)

    def look(self, now: float) -> float | None:
        """Close the connection where it is idle or its peer lost, ping where it is quiet; return when to look again."""
        if self.closing is not None:
            return None
        idle_at = self._active_at + self._idle_seconds_max
        if now >= idle_at:
            self.close(1001, f"idle: no frame from you for {self._idle_seconds_max:g} s")
            return None
        arrives_by = self.socket.arrives_by
        if arrives_by is not None:
            if now >= arrives_by:
                self.close(1008, "too slow: a message took too long to arrive")
                return None
            idle_at = min(idle_at, arrives_by)
        heard_at = self.socket.heard_at
        if self._pinged_at is not None and heard_at >= self._pinged_at:
            self._pinged_at = None
        if self._pinged_at is None and now >= heard_at + limits.PING_SECONDS:
            self.socket.ping()
            self._pinged_at = now
        if self._pinged_at is None:
            return min(idle_at, heard_at + limits.PING_SECONDS)
        lost_at = self._pinged_at + limits.PONG_SECONDS_MAX
        if now >= lost_at:
            self.socket.abort("lost: no pong")
            return None
        return min(idle_at, lost_at)

    async def ended(self) -> None:
        """Let go of what belongs to it; the last that is called."""
        self._outbox.clear()
        if self._close_timer is not None:
            self._close_timer.cancel()
        if (writer := self._writer) is not None:
            writer.cancel()
            await asyncio.wait((writer,))


class PoolLimits(NamedTuple):
    """How many connections there may be at once: in the process, of one client id, from one address."""

    process: int
    client: int
    address: int


class ConnectionPool:
    """All connections of the process.

    Parameters
    ----------
    limits : PoolLimits
    """

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._count = 0
        self._clients: dict[str, int] = {}
        self._addresses: dict[str, int] = {}
        self._connections: dict[str, Connection] = {}
        self._emptied: asyncio.Future[None] | None = None
        self.draining = False

    def __len__(self) -> int:
        return self._count

    @property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are up, oldest first."""
        return tuple(self._connections.values())

    @contextmanager
    def admitted(self, client_id: str, address: str) -> Iterator[None]:
        """Hold a place for a connection; to be entered before it is accepted, and left when it has ended.

        Raises
        ------
        TooManyConnections
            Names the limit.
        ShuttingDown
        """
        self._check(client_id, address)
        self._count += 1
        self._clients[client_id] = self._clients.get(client_id, 0) + 1
        self._addresses[address] = self._addresses.get(address, 0) + 1
        try:
            yield
        finally:
            self._count -= 1
            _count_down(self._clients, client_id)
            _count_down(self._addresses, address)
            if not self._count and self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    def check_open(self) -> None:
        """Refuse where no more connections are wanted.

        Raises
        ------
        ShuttingDown
        """
        if self.draining:
            raise ShuttingDown("the instance is shutting down: connect again", retry_after_seconds=1)

    def _check(self, client_id: str, address: str) -> None:
        self.check_open()
        held = (
            (self._count, self._limits.process, "this instance", "connect later, or to another"),
            (self._clients.get(client_id, 0), self._limits.client, "this client id", "close one"),
            (self._addresses.get(address, 0), self._limits.address, "your network address", "close one"),
        )
        for count, most, whose, cure in held:
            if count >= most:
                raise TooManyConnections(
                    f"{whose} has {most} connections, as many as it may have: {cure}", retry_after_seconds=RETRY_SECONDS
                )

    def add(self, connection: Connection) -> None:
        """Count `connection` among those that are told."""
        self._connections[connection.id] = connection

    def remove(self, connection: Connection) -> None:
        """Tell it no more."""
        self._connections.pop(connection.id, None)

    async def emptied(self) -> None:
        """Return when none is left."""
        if self._count:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)


def _count_down(counts: dict[str, int], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
