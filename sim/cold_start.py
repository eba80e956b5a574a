"""An endpoint that is put away when nobody calls for a while, and takes its time to come back."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Struct

from sim.quantities import DURATION


class ColdStart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who calls a cold endpoint waits until it is ready, and so do all who come meanwhile."""

    takes: Annotated[float, DURATION, "from the first call to when it is ready"]
    after: Annotated[float | None, DURATION, "without a call for so long, it is cold again; never if left out"] = None
    begins: Annotated[Literal["cold", "warm"], "how it is when the run starts"] = "cold"


class Warmth:
    """Whether the endpoint is ready, and how long until it is."""

    def __init__(self, model: ColdStart) -> None:
        self._model = model
        self._ready_at = math.inf if model.begins == "cold" else 0.0
        self._idle_since: float | None = 0.0

    def wait(self, now: float) -> float:
        """Return how long a call whose service starts `now` waits for the endpoint; 0 where it is ready."""
        idle_since, self._idle_since = self._idle_since, None
        after = math.inf if self._model.after is None else self._model.after
        if self._ready_at == math.inf or (idle_since is not None and now - idle_since >= after):
            self._ready_at = now + self._model.takes
        return max(0.0, self._ready_at - now)

    def rests(self, now: float) -> None:
        """Note that the last call has left."""
        self._idle_since = now
