"""The relay of instances that crash, in a Redis that does: who hears what, until either is gone.

What is told is delivered on the host that hears it, whoever told it. Redis keeps subscriptions in memory only: when it
dies they are gone, and the living make them anew when it is back, as the real relay does.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestra.adapters.inprocess_relay import InProcessHub, InProcessRelay
from sim.crash import Host
from sim.store_faults import StoreName
from sim.stores import ModelledRelay, Wire

Deliver = Callable[[bytes], None]


class Subscriptions:
    """All relays of a deployment."""

    def __init__(self, hub: InProcessHub) -> None:
        self._hub = hub
        self._relays: list[HostedRelay] = []

    def join(self, address: str, host: Host, wire: Wire) -> HostedRelay:
        """Return the relay of an instance that has just been started on `host`."""
        joined = self._hub.join(address)
        relay = HostedRelay(joined, wire, host)
        self._relays.append(relay)

        def vanish() -> None:
            self._relays.remove(relay)
            joined.vanish()

        host.at_crash(vanish)
        return relay

    def lose(self, store: StoreName) -> None:
        """Let all subscriptions be gone, where it is their store that died."""
        if store == "sessions":
            self._hub.ears.clear()

    def renew(self, store: StoreName) -> None:
        """Let the living subscribe again."""
        if store == "sessions":
            for relay in self._relays:
                relay.subscribe_again()


class HostedRelay(ModelledRelay):
    """A `ModelledRelay` that remembers what it hears, and hears it on its host."""

    def __init__(self, relay: InProcessRelay, wire: Wire, host: Host) -> None:
        super().__init__(relay, wire)
        self._host = host
        self._heard: dict[int, tuple[str, Deliver, Callable[[], None]]] = {}
        self._number = 0

    def hear(self, address: str, deliver: Deliver) -> Callable[[], None]:
        """Let `deliver` get what is told to `address`, and return how to end that."""

        def on_host(message: bytes) -> None:
            self._host.run(deliver, message)

        self._number += 1
        number = self._number
        self._heard[number] = address, on_host, super().hear(address, on_host)

        def unhear() -> None:
            heard = self._heard.pop(number, None)
            if heard is not None:
                heard[2]()

        return unhear

    def subscribe_again(self) -> None:
        """Make all subscriptions anew."""
        for number, (address, deliver, _) in list(self._heard.items()):
            self._heard[number] = address, deliver, super().hear(address, deliver)
