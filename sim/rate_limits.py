"""How much a provider lets its customer ask in a time: two token buckets, one of requests and one of tokens.

A bucket fills at its rate up to what `over` brings and a call takes from both or from neither, when it arrives; so a
quiet minute may be followed by a burst, and in the long run no more than the rate comes through. The refusal says when
to come back, as Retry-After does: once both buckets could pay, if nobody else comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Struct

from sim.quantities import DURATION, RATE

_ROUNDING = 1e-9
"""Who comes back exactly when told to is let in, whatever the last bit says."""


class RateLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a customer may ask in a time; more is refused with 429 and a Retry-After."""

    requests: Annotated[float | None, RATE, "calls, such as 600/min; unlimited if left out"] = None
    tokens: Annotated[float | None, RATE, "tokens read and written, such as 90000/min; unlimited if left out"] = None
    over: Annotated[float, DURATION, "a bucket holds what this time brings, which may then come at once"] = 60.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.requests is None and self.tokens is None:
            yield "", "limits nothing: write requests, tokens or both, such as requests: 600/min"
        if self.over == 0:
            yield "over", "0 lets nothing in: write the time that a bucket is filled in, such as 60s"


class Bucket:
    """Fills at `per_second` up to `size`; full at first."""

    def __init__(self, per_second: float, size: float) -> None:
        self._per_second = per_second
        self._size = size
        self._level = size
        self._at = 0.0

    def wait(self, now: float, amount: float) -> float:
        """Return after how many seconds `amount` could be taken; 0 where it can be now.

        More than the bucket can ever hold counts as all that it can.
        """
        self._level = min(self._size, self._level + (now - self._at) * self._per_second)
        self._at = now
        lacks = min(amount, self._size) - self._level
        return lacks / self._per_second if lacks > _ROUNDING * self._size else 0.0

    def take(self, amount: float) -> None:
        """Take `amount`, which `wait` has just allowed."""
        self._level = max(0.0, self._level - amount)


class RateLimiter:
    """Lets calls in as `limits` say."""

    def __init__(self, limits: RateLimits) -> None:
        rates = (limits.requests, limits.tokens)
        self._buckets = [None if rate is None else Bucket(rate, max(1.0, rate * limits.over)) for rate in rates]

    def admit(self, now: float, tokens: int) -> float:
        """Let a call of so many `tokens` in and return 0, or return after how many seconds it may try again."""
        asked = [(bucket, amount) for bucket, amount in zip(self._buckets, (1, tokens), strict=True) if bucket]
        wait_s = max(bucket.wait(now, amount) for bucket, amount in asked)
        if wait_s == 0.0:
            for bucket, amount in asked:
                bucket.take(amount)
        return wait_s
