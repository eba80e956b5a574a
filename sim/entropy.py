"""Seeded chance: one stream a purpose, so that a new consumer does not reshuffle the others.

`Stream` implements the port `Entropy` of `orchestra` and is a full `random.Random` for the models. A stream's seed is a
hash of the run's seed and the stream's name: neither PYTHONHASHSEED nor the order in which streams are asked for
matters, and adding "faults" leaves "arrivals" as they were (common random numbers).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

SEED_BYTES = 16
SEED_MAX = 2**63 - 1
"""The greatest seed that a command takes: one that every table holds."""


def derive(seed: int, name: str) -> int:
    """Return the seed of the stream `name` in a run seeded with `seed`, the same in every process."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=SEED_BYTES)
    return int.from_bytes(digest.digest(), "big")


class Stream(random.Random):
    """One named source of chance.

    Parameters
    ----------
    seed
        Any integer, usually from `derive`.
    name
        What the stream is for; shown in its `repr` only.
    """

    def __init__(self, seed: int, name: str = "") -> None:
        super().__init__(seed)
        self.name = name

    def hex(self, byte_count: int) -> str:
        """Return `byte_count` random bytes in hexadecimal (`2 * byte_count` characters), for ids."""
        return self.randbytes(byte_count).hex()

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"


class Streams:
    """The independent streams of one run.

    Parameters
    ----------
    seed
        The run's seed; the same seed gives the same streams on every machine and in every process.
    make
        Makes a stream of its seed and name, where one is to be watched.
    """

    def __init__(self, seed: int, make: Callable[[int, str], Stream] = Stream) -> None:
        self.seed = seed
        self._make = make
        self._streams: dict[str, Stream] = {}

    def stream(self, name: str) -> Stream:
        """Return the stream called `name`: always the same object, so its draws go on where they stopped."""
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = self._make(derive(self.seed, name), name)
        return found

    def fork(self, name: str) -> Streams:
        """Return fresh streams for a part called `name` (a replication, a client) that draws its own names."""
        return Streams(derive(self.seed, f"{name}/"), lambda seed, inner: self._make(seed, f"{name}/{inner}"))
