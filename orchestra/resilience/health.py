"""Health: 0 to 100 %, from what the service itself observes of its components, each point that is missing explained.

Every component may take at most its weight, by the worst of what is known of it: adding up would count one trouble
twice, since a failing store is slow, full and open at once. What we shed or rejected is in none of the figures, or
shedding would heal the health that it answers to. Of a component without calls or pings nothing is known: it gives no
trust, and takes what it took when it was last asked, or nothing where it never was; silence is no recovery. Where
nothing is known of any, health is unknown.

    contract: `WEIGHTS`;  state: `Reading`, `Health`;  behaviour: `reading_of`, `assess`
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import BreakerStatus, Mode, State


class Weight(NamedTuple):
    """How many points of health a component may take, and why so many."""

    points: float
    reason: str


WEIGHTS = {
    "unified": Weight(45, "no provider, no new answers; alone it leaves 55 %: ESSENTIAL, answers by fallback"),
    "conversations": Weight(45, "no turn can be made durable; with the provider 10 % are left: MAINTENANCE"),
    "sessions": Weight(15, "a cache of the conversations: turns go on, with more to read"),
    "memory": Weight(10, "turns go on without it, and say so; alone it never leaves NORMAL"),
    "memories": Weight(10, "as memory, and in the same database as the conversations"),
    "alternate": Weight(5, "only asked where the provider is away"),
    "commands": Weight(5, "only the turns that are commands need it"),
}
"""By component. Provider and conversations are set so that one alone costs features and both cost the new turns."""

OTHER = Weight(5, "a part that most turns do without")
SATURATED_FROM = 0.8
SATURATION_SHARE_MAX = 0.5
"""A full component still answers those who have a place: it takes half its weight, growing from 80 % on."""
HALF_OPEN_SHARE = 0.5


class Reading(Struct, frozen=True):
    """What is known of one component at one moment.

    Parameters
    ----------
    component : str
    state : str or None
        Of its breaker; None where it has none.
    mode : str
        What an operator has set of it. It only words the cause: a breaker that is forced open is OPEN, for users do
        without the component whoever took it away; one that is disabled counts nothing, so that nothing is known; and
        one that only observes is judged as if it acted.
    calls : int
        Ended in the breaker's window with a success or a failure: neither shed, rejected nor dropped.
    failure_rate, slow_rate : float or None
        Shares of those calls; None where there are none.
    failure_rate_max, slow_rate_max : float
        Shares from which its breaker opens: there they take the whole weight.
    calls_min : int
        Calls from which a rate says anything; where there are fewer, those that are missing count as good ones.
    successes : int
        Probes that succeeded since it became HALF_OPEN.
    past : bool
        Whether the calls and their shares are those of when it was last asked: none of it is in the window any more.
    saturation : float or None
        Share of its places that are taken, 1 where it refuses calls; None where it has no limit.
    pings : float or None
        Share of its recent pings that failed; None where there were none.
    """

    component: str
    state: State | None = None
    mode: Mode = "automatic"
    calls: int = 0
    failure_rate: float | None = None
    slow_rate: float | None = None
    failure_rate_max: float = 0.5
    slow_rate_max: float = 0.8
    calls_min: int = 1
    successes: int = 0
    past: bool = False
    saturation: float | None = None
    pings: float | None = None


def reading_of(
    breaker: BreakerStatus, policy: BreakerPolicy, saturation: float | None = None, *, past: bool = False
) -> Reading:
    """Read a guarded component off its breaker, and off the `saturation` of its bulkhead where it has one."""
    return Reading(
        breaker.name,
        state=breaker.state,
        mode=breaker.mode,
        calls=breaker.calls,
        failure_rate=breaker.failure_rate,
        slow_rate=breaker.slow_rate,
        failure_rate_max=policy.failure_rate_max,
        slow_rate_max=policy.slow_rate_max,
        calls_min=policy.calls_min,
        successes=breaker.successes,
        past=past,
        saturation=saturation,
    )


class Cause(Struct, frozen=True):
    """What took points of health, and how many."""

    component: str
    what: str
    points: float


class ComponentHealth(Struct, frozen=True):
    """How one component is now: 0 to 100 %, None where it is unknown, and the points that it can take at most."""

    component: str
    score: float | None
    weight: float


class Health(Struct, frozen=True):
    """How the service is.

    Parameters
    ----------
    score : float or None
        0 to 100 %; None where nothing is known of any component.
    components : tuple of ComponentHealth
        In the order of the readings.
    why : tuple of Cause
        What takes points, most first, then by component. Where the score is known they add up to 100 - score: where
        the components would take more than 100 in all, those that come last take only what is left, maybe nothing.
    """

    score: float | None
    components: tuple[ComponentHealth, ...]
    why: tuple[Cause, ...]

    @property
    def reason(self) -> str:
        """The causes in one line; empty where there are none."""
        return "; ".join(f"{cause.component}: {cause.what} (-{cause.points:.3g})" for cause in self.why)


def assess(readings: Iterable[Reading]) -> Health:
    """Weigh what is known of each component into the health of the service."""
    components, causes = [], []
    for reading in readings:
        weight = WEIGHTS.get(reading.component, OTHER).points
        now, past = list(_losses(reading)), list(_past(reading))
        score = 100 * (1 - max(now)[0]) if now else None
        components.append(ComponentHealth(reading.component, score, weight))
        share, what = max([*now, *past], key=lambda loss: loss[0], default=(0.0, ""))
        if share:
            causes.append(Cause(reading.component, what, weight * share))
    why = _within_hundred(sorted(causes, key=lambda cause: (-cause.points, cause.component)))
    known = any(component.score is not None for component in components)
    return Health(100 - sum(cause.points for cause in why) if known else None, tuple(components), why)


def _losses(reading: Reading) -> Iterator[tuple[float, str]]:
    """Yield what each thing known of a component takes, as a share of its weight, and in words."""
    if reading.state in ("OPEN", "HALF_OPEN"):
        yield _tripped(reading)
    elif not reading.past:
        yield from _rates(reading)
    if reading.saturation is not None and reading.saturation > SATURATED_FROM:
        above = (min(1.0, reading.saturation) - SATURATED_FROM) / (1 - SATURATED_FROM)
        full = f"{reading.saturation:.0%} of its places are taken" if above < 1 else "it is full, and refuses calls"
        yield SATURATION_SHARE_MAX * above, full
    if reading.pings is not None:
        yield reading.pings, f"{reading.pings:.0%} of its recent pings failed"


def _past(reading: Reading) -> Iterator[tuple[float, str]]:
    """Yield what the calls of when a component was last asked take, until something new is known of it."""
    if reading.past:
        for share, what in _rates(reading):
            yield share, f"{what}, when last asked"


def _tripped(reading: Reading) -> tuple[float, str]:
    """Judge a breaker that has opened. That its open time is over proves nothing, the first good probe does."""
    if reading.state == "OPEN":
        return 1.0, "an operator holds its breaker open" if reading.mode == "forced_open" else "its breaker is OPEN"
    if reading.successes:
        return HALF_OPEN_SHARE, "its breaker is HALF_OPEN, with a good probe"
    return 1.0, "its breaker is HALF_OPEN, without a good probe yet"


def _rates(reading: Reading) -> Iterator[tuple[float, str]]:
    trust = min(1.0, reading.calls / reading.calls_min)
    for rate, rate_max, did in (
        (reading.failure_rate, reading.failure_rate_max, "failed"),
        (reading.slow_rate, reading.slow_rate_max, "were slow"),
    ):
        if rate is not None:
            yield min(1.0, rate * trust / rate_max), f"{rate:.0%} of {reading.calls} calls {did}"


def _within_hundred(causes: list[Cause]) -> tuple[Cause, ...]:
    left, why = 100.0, []
    for cause in causes:
        points = min(cause.points, left)
        left -= points
        why.append(Cause(cause.component, cause.what, points))
    return tuple(why)
