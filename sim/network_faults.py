"""What goes wrong between the service and what it calls over a simulated network (`world.wire`), and how it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Annotated, Literal

from msgspec import Struct, field

from sim.distributions import Distribution
from sim.injection import Faults, Injection
from sim.links import Condition
from sim.network import DEFAULT_HOST, Network
from sim.quantities import DURATION, Spread, lasting

Peer = Literal["redis", "provider", "alternate"]
SERVICE = DEFAULT_HOST
"""The host that the service runs on: what it starts in a context of its own must be there too."""


class _Link(Struct, frozen=True, kw_only=True):
    """What all of them say: when, and on the way to whom."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    to: Annotated[Peer, "which host at the other end: redis has sessions, relay and fleet"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)


class LinkPartition(_Link, frozen=True, kw_only=True, tag="link_partition"):
    """Nothing passes between the service and `to`; afterwards connections come back as soon as TCP tries again."""

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"no way to {self.to}"

    def imposed(self, network: Network) -> AbstractContextManager[Condition]:
        """Let it hold in the body."""
        return network.partition(SERVICE, self.to)


class LinkReset(_Link, frozen=True, kw_only=True, tag="link_reset"):
    """All connections between the service and `to` are reset, and new ones are refused while it lasts."""

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"connections to {self.to} reset"

    def imposed(self, network: Network) -> AbstractContextManager[Condition]:
        """Let it hold in the body."""
        return network.reset(SERVICE, self.to)


class LinkSlow(_Link, frozen=True, kw_only=True, tag="link_slow"):
    """Every packet between the service and `to` takes this long, one way."""

    latency: Annotated[Distribution, Spread(DURATION), "one way, in place of the link's own"]

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"slow way to {self.to}"

    def imposed(self, network: Network) -> AbstractContextManager[Condition]:
        """Let it hold in the body."""
        return network.slow(SERVICE, self.to, latency=self.latency)


LinkFault = LinkPartition | LinkReset | LinkSlow


def carry_out_on(network: Network, faults: Faults) -> None:
    """Let faults of links happen to `network`; what they touch are its packets, and connections."""

    @asynccontextmanager
    async def carried(injection: Injection[LinkFault]) -> AsyncIterator[None]:
        with injection.fault.imposed(network) as condition:
            try:
                yield
            finally:
                injection.touched += condition.touched

    for kind in (LinkPartition, LinkReset, LinkSlow):
        faults.carry_out(kind, carried)  # type: ignore[arg-type]
