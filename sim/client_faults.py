"""What goes wrong between clients and the service, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Struct, field

from sim.quantities import DURATION, SHARE, lasting, show_duration


class ClientsDisconnected(Struct, frozen=True, kw_only=True, tag="clients_disconnected"):
    """A share of the WebSockets is cut at once, and their clients cannot connect while it lasts; then all come back.

    As when a network fails between them and the service, or what stands before it restarts. No goodbye arrives, so the
    service keeps a connection that is dead, and its place in the pool, until it notices: real ones ask by a ping
    (`orchestra.limits`), modelled ones are told after `noticed`.
    """

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long they cannot connect"] = field(name="for")
    share: Annotated[float, SHARE, "share of the connections that is cut"] = 1.0
    noticed: Annotated[float, DURATION, "how long the service takes to notice"] = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)
        if self.share == 0:
            yield "share", "0% cuts no connection: write more"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.share:.0%} of WebSockets cut, away for {show_duration(self.lasts)}"


ClientFault = ClientsDisconnected
