"""What asyncio asks of a loop about TCP, answered by the simulated network.

Without a network, and for what is not simulated (TLS, sockets read and written by the program itself), the methods
raise `NotSimulated` by name.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sim.refusals import NotSimulated
from sim.sockets import UNBOUND, SimSocket
from sim.transports import SimServer, SimTransport

if TYPE_CHECKING:
    from sim.network import Network
    from sim.tcp import Address, Endpoint

    AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Address]

SERVICES = {"http": 80, "redis": 6379, "postgresql": 5432}
_NO_NETWORK = "give the world one (sim.network.Network), model the peer behind a port, or drive an app through sim.asgi"
_NO_TLS = "bytes of the simulated network are not encrypted: use http://, ws://, redis:// within the world"
_NO_SOCKET = "give a host and a port, or run within sim.isolation.isolated, where socket.socket gives a simulated one"


class NetworkMethods(asyncio.BaseEventLoop):
    """The network methods of a simulated loop.

    Attributes
    ----------
    network
        The network of the world, once one was made for it.
    """

    network: Network | None = None

    def _simulated(self, name: str) -> Network:
        if self.network is None:
            raise NotSimulated(f"loop.{name} is not simulated in a world without a network; {_NO_NETWORK}")
        return self.network

    async def getaddrinfo(  # type: ignore[override]
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """Return the one address of a host, as TCP over IPv4; `socket.gaierror` if the network has no such host."""
        network = self._simulated("getaddrinfo")
        if family not in (socket.AF_UNSPEC, socket.AF_INET):
            raise socket.gaierror(socket.EAI_FAMILY, "the simulated network speaks IPv4 only")
        if isinstance(host, bytes):  # anyio's
            host = host.decode("ascii")
        if host is None:
            host = UNBOUND[0] if flags & socket.AI_PASSIVE else "localhost"
        address = network.resolve(host), _port_of(port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        sock: socket.socket | None = None,
        local_addr: Address | None = None,
        **_options: Any,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect, and return the transport and its protocol.

        Options about families and delays between addresses have no effect: every host has one address.
        """
        network = self._simulated("create_connection")
        _refuse_tls(ssl, "create_connection(ssl=...)")
        if sock is not None:
            if host is not None or port is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            endpoint = _simulated_socket(sock, "create_connection(sock=...)").endpoint
            if endpoint is None:
                raise NotSimulated("create_connection with a socket that is not connected; use loop.sock_connect first")
        else:
            if host is None and port is None:
                raise ValueError("host and port was not specified and no sock specified")
            found = await self.getaddrinfo(host, port)
            endpoint = await network.connect(found[0][4], local_addr)
        return await self._transport_over(endpoint, protocol_factory)

    async def _transport_over(
        self, endpoint: Endpoint, protocol_factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        waiter: asyncio.Future[None] = self.create_future()
        try:
            protocol = protocol_factory()
        except BaseException:
            endpoint.close()
            raise
        transport = SimTransport(self, endpoint, protocol, waiter=waiter)
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a simulated socket."""
        network = self._simulated("sock_connect")
        simulated = _simulated_socket(sock, "sock_connect")
        local = None if simulated.local == UNBOUND else simulated.local
        simulated.endpoint = await network.connect((network.resolve(address[0]), address[1]), local)
        simulated.local = simulated.endpoint.local

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        sock: socket.socket | None = None,
        ssl: Any = None,
        start_serving: bool = True,
        **_options: Any,
    ) -> SimServer:
        """Listen on the host that the caller runs on.

        Options about families, backlogs and reuse have no effect: connections are accepted as they come.

        Raises
        ------
        OSError
            The port is taken, or the address belongs to another host.
        """
        network = self._simulated("create_server")
        _refuse_tls(ssl, "create_server(ssl=...)")
        if sock is not None:
            if host is not None or port is not None:
                raise ValueError("host/port and sock can not be specified at the same time")
            addresses = [_simulated_socket(sock, "create_server(sock=...)").local]
        else:
            addresses = [(network.resolve(name), _port_of(port)) for name in _names(host)]
        server = SimServer(self, network.here(), protocol_factory)
        try:
            for address in dict.fromkeys(addresses):
                server.listen(address, contextvars.copy_context())
        except OSError:
            server.close()
            raise
        if start_serving:
            await server.start_serving()
        return server

    async def start_tls(self, *_args: Any, **_options: Any) -> Any:
        """Raise `NotSimulated`: there is no TLS in the simulated network."""
        _refuse_tls(True, "start_tls")


def _refuse_tls(asked: object, what: str) -> None:
    if asked:
        raise NotSimulated(f"loop.{what} is not simulated; {_NO_TLS}")


def _simulated_socket(sock: socket.socket, what: str) -> SimSocket:
    if not isinstance(sock, SimSocket):
        raise NotSimulated(f"loop.{what} with a real socket is not simulated; {_NO_SOCKET}")
    return sock


def _port_of(port: Any) -> int:
    """Return a port as a number."""
    if isinstance(port, bytes):
        port = port.decode("ascii")
    if isinstance(port, str) and not port.isdecimal():
        if port not in SERVICES:
            raise socket.gaierror(socket.EAI_SERVICE, f"no service {port!r}; give the port as a number")
        return SERVICES[port]
    return int(port or 0)


def _names(host: Any) -> Iterable[str]:
    """Return what a server is to bind: one name, several, or all addresses of its host."""
    if host is None or host == "":
        return [UNBOUND[0]]
    return [host] if isinstance(host, str) else host
