"""The simulated network: hosts with names, links between them, and what goes wrong with those.

    network = Network(env, streams)
    network.wire("api", "redis", latency=Constant(0.001), bandwidth=10e6)
    with network.on("redis"):
        server = await asyncio.start_server(answer, port=6379)
    with network.on("api"):
        reader, writer = await asyncio.open_connection("redis", 6379)
        with network.partition("api", "redis"):
            ...

Making one gives the loop of `env` its network methods, and under `sim.isolation.isolated` it gives programs that call
`socket.socket` a stand-in. Which host code runs on is the context variable `host`, so a task hands it to the tasks it
starts. A name that has been used is a host; loopback names and addresses mean the caller's own host.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import ipaddress
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

from sim.distributions import Distribution
from sim.entropy import Streams
from sim.links import LATENCY, LOOPBACK_LATENCY, Condition, Link, positive
from sim.loop import SimEnvironment
from sim.tcp import CONNECT_SECONDS_MAX, Address, Endpoint

DEFAULT_HOST = "localhost"
LOOPBACK = "127.0.0.1"
ANY = "0.0.0.0"  # a simulated host's
SAME_FOR_IPV6 = {"::1": LOOPBACK, "::": ANY, "": ANY}
FIRST_ADDRESS = ipaddress.IPv4Address("10.0.0.1")
EPHEMERAL_PORTS = range(49_152, 65_536)  # RFC 6335
WINDOW_BYTES = 65_536  # what Linux offers at first: half of tcp_rmem's default

Hosts = str | Iterable[str] | None
Way = tuple[tuple[str, ...] | None, tuple[str, ...] | None]
PeersSee = Literal["fin", "rst", "nothing"]

host: contextvars.ContextVar[str] = contextvars.ContextVar("sim.network.host", default=DEFAULT_HOST)
"""The host that the current task runs on."""


@dataclass(eq=False)
class Listener:
    """A port that a program listens on.

    Parameters
    ----------
    address
        Where: one of the host's, or `ANY`.
    context
        The program's; every accepted connection runs in a copy of it.
    accept
        Called with the server's end of each new connection.
    accepting
        Whether connections are accepted now, else they are refused.
    """

    address: Address
    context: contextvars.Context
    accept: Callable[[Endpoint], None]
    accepting: bool = False


class Host:
    """A machine of the simulated network.

    Attributes
    ----------
    name, address
        How others reach it.
    up
        Whether its kernel answers; while it is down, packets to it vanish.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.up = True
        self.endpoints: dict[Endpoint, None] = {}  # a set, in order
        self.listeners: dict[Address, Listener] = {}
        self._ports_lent: dict[int, None] = {}
        self._next_port = 0

    def listen(self, wanted: Address, context: contextvars.Context, accept: Callable[[Endpoint], None]) -> Listener:
        """Bind a listener; `OSError` where its port is taken, or its address is another host's."""
        address, port = wanted
        if address not in (ANY, LOOPBACK, self.address):
            raise _failure(errno.EADDRNOTAVAIL, f"{address} is no address of the host {self.name}")
        port = port or self.lend_port()
        clash = {ANY, address} if address != ANY else {ANY, LOOPBACK, self.address}
        if any((each, port) in self.listeners for each in clash):
            raise _failure(errno.EADDRINUSE, f"{address}:{port} on the host {self.name}")
        listener = self.listeners[address, port] = Listener((address, port), context, accept)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Accept nothing more, and let the port be bound again."""
        listener.accepting = False
        if self.listeners.get(listener.address) is listener:
            del self.listeners[listener.address]
            self.return_port(listener.address[1])

    def listener(self, local: Address) -> Listener | None:
        """Return who accepts connections to `local`."""
        found = self.listeners.get(local) or self.listeners.get((ANY, local[1]))
        return found if found is not None and found.accepting else None

    def lend_port(self) -> int:
        """Return the next free ephemeral port; `OSError` if all are in use."""
        for _ in EPHEMERAL_PORTS:
            port = EPHEMERAL_PORTS[self._next_port]
            self._next_port = (self._next_port + 1) % len(EPHEMERAL_PORTS)
            if port not in self._ports_lent and not any(port == taken for _, taken in self.listeners):
                self._ports_lent[port] = None
                return port
        raise _failure(errno.EADDRNOTAVAIL, f"all ephemeral ports of the host {self.name} are in use")

    def return_port(self, port: int) -> None:
        """Let a port be lent again."""
        self._ports_lent.pop(port, None)

    def forget(self, endpoint: Endpoint) -> None:
        """Know a connection no longer."""
        if endpoint in self.endpoints:
            del self.endpoints[endpoint]
            if endpoint.dialling is not None:  # it is a client's
                self.return_port(endpoint.local[1])


class Network:
    """Hosts, the links between them, and the conditions on those.

    Parameters
    ----------
    env
        Its loop gets the network.
    streams
        Chance: every link draws from a stream of its own, ``network.<source>.<target>``.
    latency, bandwidth
        Of a link that nobody has set, one way: seconds, and bytes per second.
    window_bytes
        How much a writer may be ahead of its reader, on each connection.
    """

    def __init__(
        self,
        env: SimEnvironment,
        streams: Streams,
        *,
        latency: Distribution = LATENCY,
        bandwidth: float = math.inf,
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        if window_bytes < 1:
            raise ValueError(f"window_bytes is {window_bytes}: give at least 1")
        self.env = env
        self.window_bytes = window_bytes
        self._streams = streams
        self._latency = latency
        self._bandwidth = positive(bandwidth)
        self._hosts: dict[str, Host] = {}
        self._names: dict[str, str] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._imposed: list[tuple[list[Way], Condition]] = []
        env.loop.network = self

    # --- hosts and names

    def host(self, name: str) -> Host:
        """Return the host called `name`, new if there is none yet."""
        found = self._hosts.get(name)
        if found is None:
            if not name or name in SAME_FOR_IPV6 or _is_address(name):
                raise ValueError(f"a host needs a name, not {name!r}; its address is given by the network")
            found = self._hosts[name] = Host(name, str(FIRST_ADDRESS + len(self._hosts)))
            self._names[found.address] = name
        return found

    @contextmanager
    def on(self, name: str) -> Iterator[Host]:
        """Let the body, and the tasks it starts, run on the host called `name`."""
        found = self.host(name)
        token = host.set(name)
        try:
            yield found
        finally:
            host.reset(token)

    def here(self) -> Host:
        """Return the host that the caller runs on."""
        return self.host(host.get())

    def resolve(self, name: str) -> str:
        """Return the address of a host for the caller; `socket.gaierror` if there is no such host."""
        name = SAME_FOR_IPV6.get(name, name)
        if name == DEFAULT_HOST:
            return LOOPBACK
        if _is_address(name):
            return name
        if name not in self._hosts:
            raise socket.gaierror(
                socket.EAI_NONAME, f"no host {name!r} in the simulated network; make it: network.host({name!r})"
            )
        return self._hosts[name].address

    # --- links and what may be wrong with them

    def link(self, source: str, target: str) -> Link:
        """Return the link from one host to another, new if there is none yet."""
        found = self._links.get((source, target))
        if found is None:
            latency, bandwidth = (LOOPBACK_LATENCY, math.inf) if source == target else (self._latency, self._bandwidth)
            chance = self._streams.stream(f"network.{source}.{target}")
            found = self._links[source, target] = Link(source, target, latency, bandwidth, chance)
            for ways, condition in self._imposed:
                if any(_matches(found, *way) for way in ways):
                    found.impose(condition)
        return found

    def wire(
        self,
        source: str,
        target: str,
        *,
        latency: Distribution | None = None,
        bandwidth: float | None = None,
        both_ways: bool = True,
    ) -> None:
        """Set the link from `source` to `target`, and the one back: one-way seconds, and bytes per second."""
        for each in (source, target):
            self.host(each)
        self.link(source, target).set(latency, bandwidth)
        if both_ways:
            self.link(target, source).set(latency, bandwidth)

    def partition(self, source: Hosts, target: Hosts, *, both_ways: bool = True) -> AbstractContextManager[Condition]:
        """Let nothing pass in the body.

        Hosts are given by name, several as a list, all others as None; so they are for the other conditions.
        Whoever waits finds out by a timeout of its own, or after minutes by TCP's; afterwards connections come back as
        soon as TCP tries again. The body gets the `Condition`, which counts what it touched.
        """
        return self._impose(source, target, Condition(partitioned=True), both_ways)

    def slow(
        self,
        source: Hosts,
        target: Hosts,
        *,
        latency: Distribution | None = None,
        bandwidth: float | None = None,
        both_ways: bool = True,
    ) -> AbstractContextManager[Condition]:
        """Let the links have this latency (one way, in seconds) and bandwidth (bytes per second) in the body."""
        return self._impose(source, target, Condition(latency=latency, bandwidth=bandwidth), both_ways)

    @contextmanager
    def reset(self, source: Hosts, target: Hosts) -> Iterator[Condition]:
        """Reset the connections there are, and in the body whatever is sent on others; new ones are refused."""
        with self._impose(source, target, Condition(resets=True), both_ways=True) as condition:
            for each in self._connections(source, target):
                condition.touched += 1
                each.refused()
                each.peer.refused()
            yield condition

    @contextmanager
    def half_open(self, source: Hosts, target: Hosts) -> Iterator[Condition]:
        """Let the packets of all connections that exist, or are made in the body, vanish for ever.

        As behind a firewall that has forgotten them: no side is told. What is made after the body works.
        """
        with self._impose(source, target, Condition(severs=True), both_ways=True) as condition:
            for each in self._connections(source, target):
                condition.touched += 1
                each.pipe.severed = each.peer.pipe.severed = True
            yield condition

    @contextmanager
    def _impose(self, source: Hosts, target: Hosts, condition: Condition, both_ways: bool) -> Iterator[Condition]:
        ways = [(_named(source), _named(target))]
        if both_ways:
            ways.append(ways[0][::-1])
        entry = ways, condition
        self._imposed.append(entry)
        for link in self._links.values():
            if any(_matches(link, *way) for way in ways):
                link.impose(condition)
        try:
            yield condition
        finally:
            self._imposed.remove(entry)
            for link in self._links.values():
                link.lift(condition)

    def _connections(self, source: Hosts, target: Hosts) -> list[Endpoint]:
        """Return one end of each connection between hosts, in order."""
        ways = _named(source), _named(target)
        found: dict[Endpoint, None] = {}
        for each in self._hosts.values():
            for end in each.endpoints:
                link = end.pipe.link
                between = _matches(link, *ways) or _matches(link, *ways[::-1])
                if between and end.peer not in found:
                    found[end] = None
        return list(found)

    # --- connections

    async def connect(self, remote: Address, local: Address | None = None) -> Endpoint:
        """Return the caller's end of a new connection.

        Raises
        ------
        OSError
            Nobody listens there (`ConnectionRefusedError`), no packet passes for `CONNECT_SECONDS_MAX`
            (`TimeoutError`), or no host has the address.
        """
        here = self.here()
        remote = (LOOPBACK if remote[0] == ANY else remote[0], remote[1])
        there = here if remote[0] == LOOPBACK else self._hosts.get(self._names.get(remote[0], ""))
        if there is None:
            raise _failure(errno.ENETUNREACH, f"no host of the simulated network has the address {remote[0]}")
        address = LOOPBACK if remote[0] == LOOPBACK else here.address
        port = local[1] if local is not None and local[1] else here.lend_port()
        client = Endpoint(self, here, (address, port), remote, contextvars.copy_context())
        server = Endpoint(self, there, remote, client.local, None)
        client.joined(server, self.link(here.name, there.name))
        server.joined(client, self.link(there.name, here.name))
        here.endpoints[client] = None
        await self._dial(client)
        return client

    async def _dial(self, client: Endpoint) -> None:
        loop = self.env.loop
        client.dialling = loop.create_future()
        late = TimeoutError(errno.ETIMEDOUT, f"Connect call to {client.remote} timed out")
        giving_up = loop.call_later(CONNECT_SECONDS_MAX, client.lose, late)
        client.pipe.send(client.peer.synchronise)
        try:
            await client.dialling
        except asyncio.CancelledError:
            client.reset()
            raise
        except ConnectionRefusedError as error:
            raise ConnectionRefusedError(error.errno, f"Connect call failed {client.remote}") from None
        finally:
            giving_up.cancel()

    # --- crashes

    def crash(self, name: str, *, peers_see: PeersSee = "rst") -> None:
        """Take everything that a host's programs have on the network from them, at once; they are not told.

        Ending the host's tasks is the caller's business.

        Parameters
        ----------
        name
            The host.
        peers_see
            ``fin``: a process was killed, and its kernel closes the connections at once. ``rst``: the kernel knows of
            none of them, and answers the next packet by a reset, as after a quick restart. In both cases new
            connections are refused. ``nothing``: the host is off, and all packets to it vanish until `restart`.
        """
        if peers_see not in get_args(PeersSee):
            raise ValueError(f"peers_see is {peers_see!r}: give one of {', '.join(get_args(PeersSee))}")
        crashed = self.host(name)
        crashed.up = peers_see != "nothing"
        for listener in list(crashed.listeners.values()):
            crashed.unlisten(listener)
        for end in list(crashed.endpoints):
            if peers_see == "fin" and end.user is not None:
                end.user.vanish()
                end.close()
            else:
                end.vanish()

    def restart(self, name: str) -> None:
        """Let a host's kernel answer again; it knows of no connection and nobody listens yet."""
        self.host(name).up = True


def _named(hosts: Hosts) -> tuple[str, ...] | None:
    if hosts is None:
        return None
    return (hosts,) if isinstance(hosts, str) else tuple(hosts)


def _matches(link: Link, sources: tuple[str, ...] | None, targets: tuple[str, ...] | None) -> bool:
    """Return whether a link leads from one of `sources` to one of `targets`; None is every other host."""
    if link.source == link.target and (sources is None or targets is None):
        return False
    return (sources is None or link.source in sources) and (targets is None or link.target in targets)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _failure(number: int, what: str) -> OSError:
    return OSError(number, f"{os.strerror(number)}: {what}")
