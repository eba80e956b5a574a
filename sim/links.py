"""What lies between two hosts of the simulated network, in one direction, and what may be wrong with it.

A link has a latency and a bandwidth. Its bandwidth is shared: what is sent over it leaves one after the other, so a
large answer holds up the small ones behind it. A condition is scoped: what it changes is as before once it is lifted
(turmoil's rules).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from sim.distributions import Constant, Distribution, Lognormal

LATENCY = Lognormal(median=250e-6, p95=500e-6)  # one way within a data centre, in seconds
LOOPBACK_LATENCY = Constant(20e-6)
CUT_SHARE = 1 / 16  # of the segments arrive in two reads: a byte stream has no boundaries, and who relies on them fails


@dataclass(eq=False)
class Condition:
    """What is wrong with some links, for as long as it is imposed on them.

    Parameters
    ----------
    partitioned
        Nothing passes; TCP sends it again until it does, or gives up.
    resets
        Whatever is sent is answered by a reset, to both sides.
    severs
        Connections that exist, or are made meanwhile, lose their packets for ever, and nobody is told.
    latency
        In seconds, instead of the link's own.
    bandwidth
        In bytes per second, instead of the link's own.

    Attributes
    ----------
    touched
        How many packets, or connections at once, it has hit.
    """

    partitioned: bool = False
    resets: bool = False
    severs: bool = False
    latency: Distribution | None = None
    bandwidth: float | None = None
    touched: int = 0

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            positive(self.bandwidth)


class Link:
    """The way from one host to another.

    Parameters
    ----------
    source, target
        Names of hosts.
    latency
        One way, in seconds.
    bandwidth
        Bytes per second.
    chance
        What its latencies and cuts are drawn from: two draws for each packet.
    """

    def __init__(
        self, source: str, target: str, latency: Distribution, bandwidth: float, chance: random.Random
    ) -> None:
        self.source = source
        self.target = target
        self._own = latency, positive(bandwidth)
        self._chance = chance
        self._conditions: list[Condition] = []
        self._free_at = -math.inf
        self._settle()

    def set(self, latency: Distribution | None, bandwidth: float | None) -> None:
        """Change the link for good; what is None stays as it is."""
        own_latency, own_bandwidth = self._own
        self._own = latency or own_latency, own_bandwidth if bandwidth is None else positive(bandwidth)
        self._settle()

    def impose(self, condition: Condition) -> None:
        """Let `condition` hold from now on, also over those that hold already."""
        self._conditions.append(condition)
        self._settle()

    def lift(self, condition: Condition) -> None:
        """Let `condition` hold no longer, if it does."""
        if condition in self._conditions:
            self._conditions.remove(condition)
            self._settle()

    def _settle(self) -> None:
        """Work out what holds, so that a packet need not."""
        self._latency, self._bandwidth = self._own
        self._slow: Condition | None = None
        self._partition: Condition | None = None
        self.resets: Condition | None = None
        self.severs: Condition | None = None
        for condition in self._conditions:
            self._partition = condition if condition.partitioned else self._partition
            self.resets = condition if condition.resets else self.resets
            self.severs = condition if condition.severs else self.severs
            if condition.latency is not None or condition.bandwidth is not None:
                self._slow = condition
                self._latency = condition.latency or self._latency
                self._bandwidth = self._bandwidth if condition.bandwidth is None else condition.bandwidth

    def passes(self) -> bool:
        """Return whether a packet sent now gets through."""
        if self._partition is None:
            return True
        self._partition.touched += 1
        return False

    def arrival(self, now: float, size_bytes: int) -> float:
        """Return when a packet arrives whose turn to be sent is now, in seconds."""
        if self._slow is not None:
            self._slow.touched += 1
        begins = max(now, self._free_at)
        self._free_at = begins + size_bytes / self._bandwidth
        return self._free_at + self._latency.draw(self._chance)

    def cut(self, size_bytes: int) -> int:
        """Return after how many bytes a segment is cut in two; `size_bytes` if it stays whole."""
        drawn = self._chance.random()
        if drawn >= CUT_SHARE or size_bytes < 2:  # one byte has no inside
            return size_bytes
        return 1 + int(drawn / CUT_SHARE * (size_bytes - 1))


def positive(bandwidth: float) -> float:
    """Return a bandwidth; `ValueError` where it carries nothing."""
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}: give bytes per second above zero, or a partition where none pass")
    return bandwidth
