"""How calls go wrong at a provider, by kind and share, and the luck of a call that decides which.

The errors are those of `orchestra.adapters.openai`: what a simulated provider raises is what the real adapter makes of
a real one's status or silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Struct

from orchestra.errors import DeadlineExceeded, OrchestraError, ProviderFailed, ProviderOverloaded
from orchestra.limits import RETRY_AFTER_SECONDS_MAX
from sim.quantities import DURATION, SHARE

SILENCE_S_MAX = 600.0
"""How long a call that is never answered is waited for, if nobody bounds it: the default of OpenAI's own client."""


class ErrorMix(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which shares of calls go wrong, and how; the rest is answered."""

    rate_limited: Annotated[float, SHARE, "refused at once with 429"] = 0.0
    retry_after: Annotated[float | None, DURATION, "the Retry-After of those; none is sent if left out"] = None
    failed: Annotated[float, SHARE, "fail with 500 when their first token was due"] = 0.0
    garbled: Annotated[float, SHARE, "answered with what nobody understands, when the first token was due"] = 0.0
    hangs: Annotated[float, SHARE, "never answered: they keep their slot until their caller gives up"] = 0.0
    midstream: Annotated[float, SHARE, "broken off somewhere amid their answer"] = 0.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 0 < self.total <= 1 + 1e-9:
            shares = "rate_limited, failed, garbled, hangs and midstream"
            yield "", f"{shares} make {self.total:.0%} together: write more than 0% and at most 100%"
        if self.retry_after is not None and self.rate_limited == 0:
            yield "retry_after", "is sent with 429 only: write a share of rate_limited, or remove it"

    @property
    def total(self) -> float:
        """The share of calls that go wrong in any way."""
        return self.rate_limited + self.failed + self.garbled + self.hangs + self.midstream

    @property
    def what(self) -> str:
        """The mix in a few words."""
        shares = [(name, getattr(self, name)) for name in ("rate_limited", "failed", "garbled", "hangs", "midstream")]
        return ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in shares if share)


class Luck:
    """One uniform draw that decides any number of questions, each independently of the others.

    A question with probability p takes the part below p of what is left, and stretches the part that it leaves to a
    whole again, as a stick is broken; so a call needs the same draws however many faults ask about it.

    Parameters
    ----------
    draw : float
        From [0, 1).
    """

    __slots__ = ("left",)

    def __init__(self, draw: float) -> None:
        self.left = draw

    def falls(self, share: float) -> bool:
        """Tell whether what has probability `share` happens."""
        if self.left < share or share >= 1.0:
            self.left /= share
            return True
        self.left = (self.left - share) / (1.0 - share)
        return False


def failed() -> OrchestraError:
    """A 500."""
    return ProviderFailed("the provider failed (500): the modelled provider answered with an error: try again")


def garbled() -> OrchestraError:
    """A 200 whose body is nothing that the adapter knows."""
    return ProviderFailed("the provider does not answer with chat completions: check base_url")


def broken_off() -> OrchestraError:
    """A stream that ends before its answer does."""
    return ProviderFailed("the provider's stream was cut off before the end of the answer")


def unreachable() -> OrchestraError:
    """A connection that is refused."""
    return ProviderFailed("the connection to the provider failed (ClientConnectorError)")


def silent() -> OrchestraError:
    """The adapter's own patience is over."""
    return DeadlineExceeded(f"the provider gave no first token within {SILENCE_S_MAX:g} s")


def full() -> OrchestraError:
    """A 503: there is no place left to wait in."""
    return ProviderFailed("the provider failed (503): as many calls as it takes are under way and waiting")


def rate_limited(retry_after_seconds: float | None) -> OrchestraError:
    """A 429."""
    if retry_after_seconds is not None:
        retry_after_seconds = min(retry_after_seconds, RETRY_AFTER_SECONDS_MAX)
    return ProviderOverloaded(
        "the provider is overloaded (429): the rate limit is reached", retry_after_seconds=retry_after_seconds
    )
