"""Stand-ins for sockets.

Libraries make sockets themselves (aiohttp's client, by aiohappyeyeballs) and ask a transport for its socket to set
options on it. `SimSocket` is a `socket.socket` without a descriptor: it knows its addresses, takes any option, and
refuses by name whatever would block.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from sim.refusals import refuse

if TYPE_CHECKING:
    from sim.tcp import Address, Endpoint

UNBOUND: Address = ("0.0.0.0", 0)  # what an unbound socket says


class SimSocket(socket.socket):
    """A TCP socket of the simulated network; it has no descriptor.

    Attributes
    ----------
    endpoint
        Its end of a connection, once it has one.
    """

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002
        # without the parent's, which asks the kernel for a descriptor
        self.endpoint: Endpoint | None = None
        self.local: Address = UNBOUND
        self._options: dict[tuple[int, int], Any] = {}
        self._timeout: float | None = None
        self._shut = False

    @classmethod
    def of(cls, endpoint: Endpoint) -> SimSocket:
        """Return the socket of a connection."""
        made = cls()
        made.endpoint = endpoint
        made.local = endpoint.local
        return made

    @classmethod
    def bound(cls, address: Address) -> SimSocket:
        """Return a socket that is bound to `address`."""
        made = cls()
        made.local = address
        return made

    def __repr__(self) -> str:
        return f"<SimSocket {self.local}{f' to {self.endpoint.remote}' if self.endpoint else ''}>"

    def __getstate__(self) -> Any:
        raise TypeError("a simulated socket cannot be pickled")

    @property
    def family(self) -> socket.AddressFamily:
        """Always AF_INET."""
        return socket.AF_INET

    @property
    def type(self) -> socket.SocketKind:
        """Always SOCK_STREAM."""
        return socket.SOCK_STREAM

    @property
    def proto(self) -> int:
        """Always TCP."""
        return socket.IPPROTO_TCP

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def getsockname(self) -> Address:
        """Return the local address."""
        return self.local

    def getpeername(self) -> Address:
        """Return the peer's address."""
        if self.endpoint is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self.endpoint.remote

    def bind(self, address: Any) -> None:
        """Choose the local address."""
        self.local = (str(address[0]), int(address[1]))

    def listen(self, backlog: int = 0) -> None:
        """Do nothing: a server that gets this socket listens."""

    def setsockopt(self, level: int, option: int, value: Any, *length: int) -> None:
        """Keep an option; none has an effect."""
        self._options[level, option] = value

    def getsockopt(self, level: int, option: int, *length: int) -> Any:
        """Return an option that was set, else 0."""
        return self._options.get((level, option), 0)

    def setblocking(self, flag: bool) -> None:
        """Keep the flag; whatever would block is refused in any case."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """Return the flag."""
        return self._timeout != 0.0

    def settimeout(self, value: float | None) -> None:
        """Keep the time."""
        self._timeout = value

    def gettimeout(self) -> float | None:
        """Return the time."""
        return self._timeout

    def close(self) -> None:
        """Close the connection, unless a transport has taken it over."""
        if self.endpoint is not None and self.endpoint.user is None and not self._shut:
            self.endpoint.close()
        self._shut = True

    def shutdown(self, how: int) -> None:
        """Send a FIN, unless only reading is shut down."""
        if self.endpoint is not None and how != socket.SHUT_RD:
            self.endpoint.shut_down()


for _name in (
    *("accept", "connect", "connect_ex", "detach", "dup", "makefile", "recv", "recv_into", "recvfrom", "recvfrom_into"),
    *("recvmsg", "recvmsg_into", "send", "sendall", "sendfile", "sendmsg", "sendto"),
):
    setattr(SimSocket, _name, refuse("socket", _name, "it would block; use the loop's create_connection or streams"))
