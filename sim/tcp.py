"""TCP as two programs notice it: bytes in order, a bounded window, a handshake, FIN, RST, and retransmission.

There is no loss below TCP except as delay: a packet that does not pass is sent again after the retransmission timeout,
which doubles (RFC 6298), so a connection may come back long after the network did, and gives up as Linux does.
What one end has read opens the other's window once it is half of it (RFC 9293, 3.8.6.2.2), so that short messages
cost one event each. Not modelled: congestion control, Nagle's algorithm, keep-alive probes, TIME_WAIT.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sim.links import Link
    from sim.network import Host, Listener, Network

Address = tuple[str, int]
Packet = tuple[Callable[[bytes], None], bytes]

SEGMENT_BYTES_MAX = 65_536
CUT_GAP_S = 2.0**-20  # about a microsecond: enough for two reads
SYN_RETRY_S = 1.0  # RFC 6298, 2.1
CONNECT_SECONDS_MAX = 127.0  # Linux: tcp_syn_retries = 6
RETRY_S_MIN = 0.2  # Linux: TCP_RTO_MIN
RETRY_S_MAX = 120.0  # Linux: TCP_RTO_MAX
RETRIES_MAX = 15  # Linux: tcp_retries2, some 924 s


class User(Protocol):
    """Who uses an end of a connection: its transport."""

    def readable(self) -> None:
        """There are bytes, or the end of them."""

    def writable(self) -> None:
        """The window has opened."""

    def lost(self, error: OSError) -> None:
        """The connection is broken."""

    def vanish(self) -> None:
        """The host has crashed: run nothing of it any more."""


def _failure(kind: type[OSError], number: int) -> OSError:
    return kind(number, os.strerror(number))


class Pipe:
    """One direction of a connection: packets arrive once and in order, late while the link lets none pass.

    Parameters
    ----------
    network, link
        Where it lies.
    source, target
        The ends.
    """

    def __init__(self, network: Network, link: Link, source: Endpoint, target: Endpoint) -> None:
        self.link = link
        self.severed = False
        self.retry_s = SYN_RETRY_S
        self._loop = network.env.loop
        self._source = source
        self._target = target
        self._transit: deque[tuple[float, Packet]] = deque()
        self._moving = False
        self._unsent: deque[Packet] = deque()
        self._retries = 0
        self._retry: asyncio.TimerHandle | None = None

    def send(self, deliver: Callable[[bytes], None], payload: bytes = b"") -> None:
        """Send a packet that is sent again until it arrives."""
        if (reset := self.link.resets) is not None:
            reset.touched += 1
            for end in (self._source, self._target):
                end.refused()
        elif self._unsent or not self._passes():
            self._unsent.append((deliver, payload))
            if self._retry is None:
                self._retries = 0
                self._wait_for(self.retry_s)
        else:
            self._let_go(deliver, payload)

    def send_once(self, deliver: Callable[[bytes], None]) -> None:
        """Send what TCP does not send again: a reset."""
        if self._passes():
            self._let_go(deliver, b"")

    def stop(self) -> None:
        """Send nothing again; what is under way arrives."""
        self._unsent.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _passes(self) -> bool:
        if (severs := self.link.severs) is not None and not self.severed:
            severs.touched += 1
            self.severed = True
        return not self.severed and self._target.host.up and self.link.passes()

    def _let_go(self, deliver: Callable[[bytes], None], payload: bytes) -> None:
        size = len(payload)
        at = self.link.arrival(self._loop.time(), size)
        cut = self.link.cut(size)
        self._transit.append((at, (deliver, payload[:cut])))
        if cut < size:
            self._transit.append((at + CUT_GAP_S, (deliver, payload[cut:])))
        if not self._moving:
            self._await_next()

    def _await_next(self) -> None:
        self._moving = bool(self._transit)
        if self._moving:
            self._loop.call_at(self._transit[0][0], self._arrive, context=self._target.context)

    def _arrive(self) -> None:
        """Hand over all that has arrived, as one read would find it; what overtook another packet has waited for it."""
        now = self._loop.time()
        transit = self._transit
        if not self._target.host.up or self.severed:
            self._unsent.extendleft(packet for _, packet in reversed(transit))
            transit.clear()
            self._moving = False
            if self._unsent and self._retry is None and not self._source.gone:
                self._wait_for(self.retry_s)
            return
        while transit and transit[0][0] <= now:
            deliver, payload = transit.popleft()[1]
            deliver(payload)
        self._await_next()
        self._target.tell()

    def _wait_for(self, seconds: float) -> None:
        self._retry = self._loop.call_later(seconds, self._try_again, seconds, context=self._source.context)

    def _try_again(self, waited_s: float) -> None:
        self._retry = None
        if not self._source.host.up:
            return
        if self._passes():
            unsent, self._unsent = self._unsent, deque()
            for packet in unsent:
                self.send(*packet)
            return
        self._retries += 1
        if self._retries > RETRIES_MAX:
            self._source.lose(_failure(TimeoutError, errno.ETIMEDOUT))
        else:
            self._wait_for(min(2 * waited_s, RETRY_S_MAX))


class Endpoint:
    """One end of a connection: what a kernel keeps of it, also when no program uses it.

    Parameters
    ----------
    network, host
        Where it is.
    local, remote
        Addresses and ports.
    context
        What the program's callbacks run in; None until a listener's is known.

    Attributes
    ----------
    user
        Its transport, once there is one.
    unread_bytes
        Arrived and not yet read; they take window from the peer.
    at_eof
        Whether the peer has sent its last byte.
    gone
        Nobody here knows the connection any more: what arrives is answered by a reset.
    """

    def __init__(
        self, network: Network, host: Host, local: Address, remote: Address, context: contextvars.Context | None
    ) -> None:
        self.network = network
        self.host = host
        self.local = local
        self.remote = remote
        self.context = context
        self.user: User | None = None
        self.dialling: asyncio.Future[None] | None = None
        self.unread_bytes = 0
        self.at_eof = False
        self.gone = False
        self.pipe: Pipe
        self.peer: Endpoint
        self._listener: Listener | None = None
        self._inbox: deque[bytes] = deque()
        self._read_bytes = 0
        self._window_bytes = network.window_bytes
        self._closed = False
        self._fin_sent = False
        self._news = False

    def joined(self, peer: Endpoint, link: Link) -> None:
        """Make the way to `peer`."""
        self.peer = peer
        self.pipe = Pipe(self.network, link, self, peer)

    # --- what its program does

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of `data` as the window takes, and return how many bytes that was."""
        if self.gone:
            return len(data)
        taken = min(len(data), self._window_bytes)
        self._window_bytes -= taken
        for start in range(0, taken, SEGMENT_BYTES_MAX):
            self.pipe.send(self.peer.take, bytes(data[start : min(start + SEGMENT_BYTES_MAX, taken)]))
        return taken

    def read(self, bytes_max: int) -> bytes:
        """Return what has arrived, at most `bytes_max` bytes of it."""
        pieces: list[bytes] = []
        room = bytes_max
        while self._inbox and room:
            piece = self._inbox.popleft()
            if len(piece) > room:
                self._inbox.appendleft(piece[room:])
                piece = piece[:room]
            pieces.append(piece)
            room -= len(piece)
        size = bytes_max - room
        self.unread_bytes -= size
        self._read_bytes += size
        if self._read_bytes >= self.network.window_bytes / 2 and not self.gone:
            self.pipe.send(partial(self.peer.open_window, self._read_bytes))
            self._read_bytes = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def shut_down(self) -> None:
        """Send a FIN: there are no more bytes from here."""
        if not self._fin_sent and not self.gone:
            self._fin_sent = True
            self.pipe.send(self.peer.end)

    def close(self) -> None:
        """Be used no longer; what arrives from now on, or was not read, is answered by a reset (RFC 2525, 2.17)."""
        self.user = None
        self._closed = True
        if self.unread_bytes:
            self.reset()
        self.shut_down()
        if self.at_eof:
            self.host.forget(self)

    def reset(self) -> None:
        """Send an RST and forget the connection."""
        if not self.gone:
            self._leave()
            self.pipe.send_once(self.peer.refused)

    # --- what arrives

    def synchronise(self, _payload: bytes) -> None:
        """Answer a SYN: by accepting it where somebody listens, else by a reset."""
        listener = self.host.listener(self.local)
        if listener is None:
            self.gone = True
            self.pipe.send_once(self.peer.refused)
            return
        self._listener = listener
        self.context = listener.context.copy()
        self.host.endpoints[self] = None
        self.pipe.send(self.peer.establish)

    def establish(self, _payload: bytes) -> None:
        """Be connected, and say so to the side that listens."""
        if self._answered_by_reset():
            return
        self.pipe.retry_s = RETRY_S_MIN
        self.pipe.send(self.peer.accept)
        if self.dialling is not None and not self.dialling.done():
            self.dialling.set_result(None)

    def accept(self, _payload: bytes) -> None:
        """Become a connection of the listener's program, if that still listens."""
        self.pipe.retry_s = RETRY_S_MIN
        assert self._listener is not None
        if self.gone:
            return
        if self._listener.accepting:
            self._listener.accept(self)
        else:
            self.reset()

    def take(self, payload: bytes) -> None:
        """Keep bytes until they are read."""
        if not self._answered_by_reset():
            self._inbox.append(payload)
            self.unread_bytes += len(payload)
            self._news = True

    def end(self, _payload: bytes) -> None:
        """Take note of a FIN."""
        if self.gone:
            self._answered_by_reset()
            return
        self.at_eof = self._news = True
        if self._closed:
            self.host.forget(self)

    def open_window(self, size_bytes: int, _payload: bytes) -> None:
        """Take note of what the peer has read."""
        if self.gone:
            self._answered_by_reset()
            return
        self._window_bytes += size_bytes
        if self.user is not None:
            self.user.writable()

    def refused(self, _payload: bytes = b"") -> None:
        """Take note of a reset, which refuses a connection that is not yet one."""
        if self.dialling is not None and not self.dialling.done():
            self.lose(_failure(ConnectionRefusedError, errno.ECONNREFUSED))
        else:
            self.lose(_failure(ConnectionResetError, errno.ECONNRESET))

    def tell(self) -> None:
        """Tell the program of what has arrived, if anything has."""
        if self._news and self.user is not None:
            self._news = False
            self.user.readable()

    def _answered_by_reset(self) -> bool:
        """Return whether nobody is here to take a packet; the peer then learns it."""
        if not self.gone and not self._closed:
            return False
        if not self.gone:
            self._leave()
        if self.host.up:
            self.pipe.send_once(self.peer.refused)
        return True

    # --- the end

    def lose(self, error: OSError) -> None:
        """Break the connection on this side, and tell its program."""
        if self.gone:
            return
        self._leave()
        if self.dialling is not None and not self.dialling.done():
            self.dialling.set_exception(error)
        elif self.user is not None:
            self.user.lost(error)

    def vanish(self) -> None:
        """Be gone with the host's memory: neither the program nor the peer is told."""
        self._leave()
        if self.user is not None:
            self.user.vanish()
            self.user = None

    def _leave(self) -> None:
        self.gone = True
        self.pipe.stop()
        self.host.forget(self)
