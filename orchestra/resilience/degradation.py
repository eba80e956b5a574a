"""The degradation level: which features the service offers, by its health, as in the architecture's diagram.

Each threshold of the diagram stands between two levels, and is passed in adjacent steps only. The bare diagram would
flap with every noise around a threshold, so a step needs its condition to have held without a break: for a short time
on the way down, for a longer one, above a margin, on the way up, and for longer still after each relapse. (Kubernetes'
autoscaler worsens at once and recovers late; Envoy's overload manager with bare thresholds flaps; so does a lock-out
that asks for the condition only at its end, see OpenEMS #3338.) Between two observations health counts as what the
first one said. Nothing here waits or runs by itself: the level moves where it is observed.

    contract: `Level`, `Feature`, `THRESHOLDS`, `DISABLED`;  state: `LevelStatus`;  behaviour: `Degradation`
"""

from collections import deque
from collections.abc import Callable
from enum import IntEnum, StrEnum

from msgspec import Struct

from orchestra.events import LevelChanged
from orchestra.policies import DegradationPolicy

TRANSITIONS_KEPT_MAX = 20


class Level(IntEnum):
    """How much of itself the service offers, from all of it down to what is stored, read only."""

    NORMAL = 0
    LIMITED = 1
    ESSENTIAL = 2
    EMERGENCY = 3
    MAINTENANCE = 4


class Feature(StrEnum):
    """What a level can switch off."""

    ANALYTICS = "analytics"
    COLLABORATION = "collaboration"
    SWARM = "swarm"
    MEMORY = "memory"
    STREAMING = "streaming"
    EXTERNAL_APIS = "external_apis"
    WEBHOOKS = "webhooks"


THRESHOLDS = (80.0, 60.0, 40.0, 20.0)
"""Per cent of health: the n-th stands between level n and level n + 1."""

_LIMITED = (Feature.ANALYTICS, Feature.COLLABORATION)
_ESSENTIAL = (*_LIMITED, Feature.SWARM, Feature.MEMORY, Feature.STREAMING)
_EMERGENCY = (*_ESSENTIAL, Feature.EXTERNAL_APIS, Feature.WEBHOOKS)

DISABLED: dict[Level, tuple[Feature, ...]] = {
    Level.NORMAL: (),
    Level.LIMITED: _LIMITED,
    Level.ESSENTIAL: _ESSENTIAL,
    Level.EMERGENCY: _EMERGENCY,
    Level.MAINTENANCE: tuple(Feature),
}
"""What each level switches off, as in the diagram. MAINTENANCE is read only besides."""


class LevelStatus(Struct, frozen=True):
    """The level at one moment, for pages and metrics.

    Parameters
    ----------
    level : str
        Name of the `Level`.
    read_only : bool
        Whether new turns are refused.
    disabled : tuple of str
        Features that the level switches off.
    since : float
        Monotonic time of the step into it.
    health : float or None
        Per cent, as last observed; None where it is unknown.
    latched : str or None
        Why an operator holds the level; None where it follows health.
    down_held_seconds, up_held_seconds : float or None
        How long, by the last observation, health has called for the next step down or up; None where it does not.
    down_hold_seconds, up_hold_seconds : float
        How long it must.
    relapses : int
        Steps of growth in `up_hold_seconds`.
    transitions : tuple of LevelChanged
        The last `TRANSITIONS_KEPT_MAX` steps, oldest first.
    """

    level: str
    read_only: bool
    disabled: tuple[str, ...]
    since: float
    health: float | None
    latched: str | None
    down_held_seconds: float | None
    down_hold_seconds: float
    up_held_seconds: float | None
    up_hold_seconds: float
    relapses: int
    transitions: tuple[LevelChanged, ...]


class Degradation:
    """Holds the level, moves it by health or by an operator, and is the one gate that every feature asks.

    Down: health has been below the level's threshold at every observation for ``down_seconds``. A fall through several
    thresholds passes every level in order. Up: for the current up hold, counted from the later of the step into the
    level and the begin of the condition, health has been above the threshold plus ``margin_points``. A *relapse* is a
    step down whose condition began within the hold that the last step up had waited for; each multiplies the up hold
    by ``relapse_growth``, up to ``up_seconds_max``. *Calm* takes that back: each time that a level which was reached
    upwards has stood for the current hold, with health not below its threshold, one step of growth goes. Unknown health
    moves nothing, and breaks every hold and calm.

    Parameters
    ----------
    policy : DegradationPolicy
    now : callable
        Monotonic seconds, such as the running loop's `time`.
    on_change : callable
        Told of every step, after it has happened.
    """

    def __init__(
        self, policy: DegradationPolicy, now: Callable[[], float], on_change: Callable[[LevelChanged], None]
    ) -> None:
        self.policy = policy
        self._now = now
        self._listeners = [on_change]
        self._level = Level.NORMAL
        self._since = self._observed_at = now()
        self._health: float | None = None
        self._latched: str | None = None
        # since when every observation was beyond the n-th threshold, downwards and (margin included) upwards
        self._below: list[float | None] = [None] * len(THRESHOLDS)
        self._above: list[float | None] = [None] * len(THRESHOLDS)
        self._relapses = 0
        self._up_hold = policy.up_seconds
        # after a step up, and until one down: within when the next one down is a relapse, and since when calm counts
        self._relapse_until: float | None = None
        self._calm_from = self._since
        self._transitions: deque[LevelChanged] = deque(maxlen=TRANSITIONS_KEPT_MAX)

    @property
    def level(self) -> Level:
        """The level now."""
        return self._level

    @property
    def read_only(self) -> bool:
        """Whether new turns are refused, and only what is stored can be read."""
        return self._level is Level.MAINTENANCE

    def allows(self, feature: Feature) -> bool:
        """Tell whether `feature` may be used now."""
        return feature not in DISABLED[self._level]

    def listen(self, listener: Callable[[LevelChanged], None]) -> None:
        """Let `listener` be told of every step, too; it must not raise."""
        self._listeners.append(listener)

    def observe(self, health: float | None, reason: str) -> None:
        """Take in what health is now, and move the level where a hold has ended.

        Parameters
        ----------
        health : float or None
            Per cent; None where it is unknown.
        reason : str
            What takes health down, for the steps that follow from it.
        """
        now = self._now()
        self._calm(now)
        self._health, self._observed_at = health, now
        for n, threshold in enumerate(THRESHOLDS):
            self._below[n] = _run(self._below[n], health is not None and health < threshold, now)
            self._above[n] = _run(
                self._above[n], health is not None and health > threshold + self.policy.margin_points, now
            )
        if self._latched is None and health is not None:
            self._follow(health, reason, now)

    def latch(self, level: Level, reason: str) -> None:
        """Go to `level`, step by step, and stay there until `release`, whatever health does.

        Health goes on being tracked. Relapses are forgotten: whoever latches has taken over, and begins anew.
        """
        now = self._now()
        self._latched = reason
        self._relapses, self._up_hold, self._relapse_until = 0, self.policy.up_seconds, None
        while self._level != level:
            self._step(1 if level > self._level else -1, None, reason, now)

    def release(self) -> None:
        """Let the level follow health again, from where it is, at the next observation."""
        self._latched = None

    def describe(self) -> LevelStatus:
        """Return what a page shows of the level."""
        down, up = self._down_from(), self._up_from()
        return LevelStatus(
            self._level.name,
            self.read_only,
            tuple(str(feature) for feature in DISABLED[self._level]),
            self._since,
            self._health,
            self._latched,
            None if down is None else self._observed_at - down,
            self.policy.down_seconds,
            None if up is None else max(0.0, self._observed_at - up),
            self._up_hold,
            self._relapses,
            tuple(self._transitions),
        )

    def _follow(self, health: float, reason: str, now: float) -> None:
        down_seconds, margin = self.policy.down_seconds, self.policy.margin_points
        while (since := self._down_from()) is not None and now - since >= down_seconds:
            self._relapse(since)
            threshold = THRESHOLDS[self._level]
            self._step(1, health, _cause(f"below {threshold:g} %", health, now - since, reason), now)
        while (since := self._up_from()) is not None and now - since >= self._up_hold:
            threshold = THRESHOLDS[self._level - 1] + margin
            self._step(-1, health, _cause(f"above {threshold:g} %", health, now - since, reason), now)
            self._relapse_until, self._calm_from = now + self._up_hold, now

    def _down_from(self) -> float | None:
        """Return since when health calls for the next step down."""
        return None if self._level is Level.MAINTENANCE else self._below[self._level]

    def _up_from(self) -> float | None:
        """Return since when health calls for the next step up: not before the step into the level."""
        since = None if self._level is Level.NORMAL else self._above[self._level - 1]
        return None if since is None else max(since, self._since)

    def _step(self, by: int, health: float | None, reason: str, now: float) -> None:
        before, self._level, self._since = self._level, Level(self._level + by), now
        change = LevelChanged(now, before.name, self._level.name, health, reason)
        self._transitions.append(change)
        for listener in self._listeners:
            listener(change)

    def _relapse(self, since: float) -> None:
        """Lengthen the up hold where a step down, whose condition began at `since`, is a relapse: one for each fall."""
        if self._relapse_until is not None and since < self._relapse_until:
            hold = self._hold(self._relapses + 1)
            if hold > self._up_hold:  # at the longest there is nothing to grow, nor to take back
                self._relapses, self._up_hold = self._relapses + 1, hold
        self._relapse_until = None

    def _calm(self, now: float) -> None:
        """Take growth back for the time up to now, as the last observation said what it was."""
        if self._health is None:
            self._calm_from = now
        if self._relapse_until is None or self._down_from() is not None:
            return
        while self._relapses and now - self._calm_from >= self._up_hold:
            self._calm_from += self._up_hold
            self._relapses -= 1
            self._up_hold = self._hold(self._relapses)

    def _hold(self, relapses: int) -> float:
        return min(self.policy.up_seconds * self.policy.relapse_growth**relapses, self.policy.up_seconds_max)


def _run(since: float | None, holds: bool, now: float) -> float | None:
    """Return since when a condition has held without a break."""
    if not holds:
        return None
    return now if since is None else since


def _cause(what: str, health: float, held_seconds: float, reason: str) -> str:
    return f"health is {health:.1f} %, {what} for {held_seconds:.1f} s" + (f": {reason}" if reason else "")
