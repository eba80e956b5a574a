"""An adaptive concurrency limit: how many calls at once a dependency carries, told by how long they take.

Gradient2 of Netflix concurrency-limits (Apache-2.0; "Performance Under Load", 2018), written anew from its published
description. Queueing shows as time: while calls take as long as they usually do, the limit grows by a small queue
allowance; once they take longer, it shrinks by the ratio of the two. It averages rather than taking the minimum, since
the times of remote calls spread widely and a minimum would shed far too much.

    contract: `sample`, `limit`;  behaviour: `Gradient2` (one update), `Windowed` (what an update is made of)
"""

from collections.abc import Callable
from math import inf

TOLERANCE = 1.5  # how many times its usual time a call may take before the limit shrinks
SMOOTHING = 0.2  # the share of an update that takes effect at once
QUEUE_SIZE = 4.0  # calls that may queue at the dependency: the room to grow into
GRADIENT_MIN = 0.5  # one update never halves more than once, whatever an outlier says
USUAL_SAMPLES = 600  # the span of the exponential average
WARMUP_SAMPLES = 10  # the first ones have equal weight, or the very first would set the average for long
DRIFT_MAX = 2.0  # above so many times the present time, the usual one is a relic of a slow spell ...
DRIFT_DECAY = 0.9  # ... and is forgotten faster than the average would

WINDOW_SECONDS = 1.0
WINDOW_SAMPLES_MIN = 10


class Gradient2:
    """The limit itself, moved by each sample.

    Parameters
    ----------
    initial : int
        The limit before the first sample.
    lowest, highest : int
        Its bounds, at least 1.
    """

    __slots__ = ("_estimate", "_highest", "_lowest", "_samples", "_usual_seconds")

    def __init__(self, initial: int, lowest: int, highest: int) -> None:
        assert 1 <= lowest <= initial <= highest, (lowest, initial, highest)
        self._estimate = float(initial)
        self._lowest = lowest
        self._highest = highest
        self._usual_seconds = 0.0
        self._samples = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way at once."""
        return int(self._estimate)

    def sample(self, rtt_seconds: float, inflight: int, dropped: bool) -> None:
        """Move the limit by what one call, or a window of them, has told.

        Parameters
        ----------
        rtt_seconds : float
            How long it took.
        inflight : int
            Calls under way at that time, this one included.
        dropped : bool
            It was refused for overload, or timed out. Then its time tells nothing (a refusal is quick, which would
            look like health) and the limit shrinks as far as one update may. Gradient2 itself looks at times alone; a
            dependency that says 429 deserves to be heard, as it is by Netflix's Gradient and AIMD limits. A cancelled
            call is no drop, and no sample either.
        """
        assert 0 <= rtt_seconds < inf, rtt_seconds
        if dropped:
            self._move(self._estimate * GRADIENT_MIN)
            return
        usual = self._learn(rtt_seconds)
        if inflight < self._estimate / 2:
            return  # too few callers to try the limit: it must not grow by what was never tested
        gradient = max(GRADIENT_MIN, TOLERANCE * usual / rtt_seconds) if rtt_seconds > TOLERANCE * usual else 1.0
        self._move(self._estimate * gradient + QUEUE_SIZE)

    def _learn(self, seconds: float) -> float:
        """Put a time into the average of the usual ones, and return that as it was before any quick forgetting."""
        if self._samples < WARMUP_SAMPLES:
            self._samples += 1
            weight = 1 / self._samples
        else:
            weight = 2 / (USUAL_SAMPLES + 1)
        usual = self._usual_seconds + weight * (seconds - self._usual_seconds)
        self._usual_seconds = usual * DRIFT_DECAY if usual > DRIFT_MAX * seconds else usual
        return usual

    def _move(self, target: float) -> None:
        estimate = self._estimate * (1 - SMOOTHING) + target * SMOOTHING
        self._estimate = max(self._lowest, min(self._highest, estimate))


class Windowed:
    """Gathers calls into windows, and gives the limit one sample for each: their mean time and their peak.

    A single call says little of the dependency and much of itself. A window lasts at least `WINDOW_SECONDS` and
    `WINDOW_SAMPLES_MIN` calls, so the pace at which a limit moves, and forgets what is usual, does not depend on the
    load (Netflix's WindowedLimit). A window in which any call was dropped counts as dropped.
    """

    __slots__ = ("_dropped", "_ends_at", "_inflight", "_limit", "_now", "_samples", "_seconds")

    def __init__(self, limit: Gradient2, now: Callable[[], float]) -> None:
        self._limit = limit
        self._now = now
        self._ends_at = -inf  # the first window has no need to wait
        self._samples = 0
        self._seconds = 0.0
        self._inflight = 0
        self._dropped = False

    @property
    def limit(self) -> int:
        """Calls that may be under way at once."""
        return self._limit.limit

    def sample(self, rtt_seconds: float, inflight: int, dropped: bool) -> None:
        """Take what one call has told; see `Gradient2.sample`."""
        self._samples += 1
        self._seconds += rtt_seconds
        self._inflight = max(self._inflight, inflight)
        self._dropped = self._dropped or dropped
        now = self._now()
        if self._samples >= WINDOW_SAMPLES_MIN and now >= self._ends_at:
            self._limit.sample(self._seconds / self._samples, self._inflight, self._dropped)
            self._ends_at = now + WINDOW_SECONDS
            self._clear()

    def _clear(self) -> None:
        self._samples = 0
        self._seconds = 0.0
        self._inflight = 0
        self._dropped = False
