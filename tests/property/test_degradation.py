"""The level against its rules, under any order of observations, gaps, latches and releases.

The model keeps no timers: it writes down all that happened, and reads levels, holds, relapses and calm off that history
each time.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestra.events import LevelChanged
from orchestra.policies import DegradationPolicy
from orchestra.resilience.degradation import Degradation, Level

QUARTER = 0.25  # all times are multiples of it, which floats add up exactly
ROUND = [0.0, 10.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 85.0, 90.0, 100.0]
HEALTHS = st.one_of(st.sampled_from(ROUND), st.floats(0, 100))


@dataclass(frozen=True)
class Seen:
    at: float
    health: float | None


@dataclass(frozen=True)
class Moved:
    """A step by health, and the hold that it had waited for where it went up."""

    at: float
    level: int
    by: int
    hold: float


@dataclass(frozen=True)
class Latched:
    at: float
    level: int


@dataclass(frozen=True)
class Relapsed:
    at: float


@dataclass(frozen=True)
class Calmed:
    """One step of growth was taken back, for the time up to `at`."""

    at: float


@dataclass
class Model:
    policy: DegradationPolicy
    began: float
    history: list[Seen | Moved | Latched | Relapsed | Calmed] = field(default_factory=list)

    def place(self) -> tuple[int, float]:
        """Return the level, and since when it is."""
        level, since = 0, self.began
        for each in self.history:
            if isinstance(each, Moved | Latched) and each.level != level:
                level, since = each.level, each.at
        return level, since

    def relapses(self) -> int:
        count = 0
        for each in self.history:
            count = 0 if isinstance(each, Latched) else count + isinstance(each, Relapsed) - isinstance(each, Calmed)
        return count

    def hold(self, relapses: int) -> float:
        return min(self.policy.up_seconds * self.policy.relapse_growth**relapses, self.policy.up_seconds_max)

    def run(self, level: int, by: int) -> float | None:
        """Return when the unbroken run of observations began that call for a step of `by` from `level`."""
        begin = None
        for each in reversed([each for each in self.history if isinstance(each, Seen)]):
            below = each.health is not None and each.health < 80 - 20 * level
            above = each.health is not None and each.health > 100 - 20 * level + self.policy.margin_points
            if not (below if by > 0 else above):
                break
            begin = each.at
        return None if level + by not in range(5) else begin

    def since_rise(self) -> list[Seen | Moved | Latched | Relapsed | Calmed]:
        """Return the history from the last step up on, the step first; empty where anything else moved the level."""
        for n in reversed(range(len(self.history))):
            match self.history[n]:
                case Moved(by=-1):
                    return self.history[n:]
                case Moved() | Latched():
                    return []
        return []

    def calm(self, now: float) -> None:
        since = self.since_rise()
        if not since or self.run(self.place()[0], 1) is not None:
            return
        begin = since[0].at
        for n, each in enumerate(since):
            if isinstance(each, Calmed):
                begin = max(begin, each.at)
            if isinstance(each, Seen) and each.health is None:
                begin = next((later.at for later in since[n + 1 :] if isinstance(later, Seen)), now)
        while self.relapses() and now - begin >= (hold := self.hold(self.relapses())):
            begin += hold
            self.history.append(Calmed(begin))

    def observe(self, now: float, health: float | None, latched: bool) -> None:
        self.calm(now)
        self.history.append(Seen(now, health))
        if latched:
            return
        while (begin := self.run(self.place()[0], 1)) is not None and now - begin >= self.policy.down_seconds:
            rise = self.since_rise()
            relapse = rise and isinstance(rise[0], Moved) and begin - rise[0].at < rise[0].hold
            if relapse and self.hold(self.relapses() + 1) > self.hold(self.relapses()):
                self.history.append(Relapsed(now))
            self.history.append(Moved(now, self.place()[0] + 1, 1, 0.0))
        while (begin := self.run(self.place()[0], -1)) is not None:
            hold = self.hold(self.relapses())
            if now - max(begin, self.place()[1]) < hold:
                break
            self.history.append(Moved(now, self.place()[0] - 1, -1, hold))


class DegradationMachine(RuleBasedStateMachine):
    @initialize(
        margin=st.sampled_from([0.0, 5.0, 19.0]),
        down=st.integers(0, 4),
        up=st.integers(0, 12),
        growth=st.sampled_from([1.0, 2.0, 4.0]),
        longest=st.integers(12, 60),
    )
    def begin(self, margin: float, down: int, up: int, growth: float, longest: int) -> None:
        self.now = 1000.0
        self.told: list[LevelChanged] = []
        self.policy = DegradationPolicy(
            margin_points=margin,
            down_seconds=down * QUARTER,
            up_seconds=up * QUARTER,
            relapse_growth=growth,
            up_seconds_max=longest * QUARTER,
        )
        self.degradation = Degradation(self.policy, lambda: self.now, self.told.append)
        self.model = Model(self.policy, self.now)
        self.latched = False
        self.relapses = self.calms = 0

    def look(self, health: float | None) -> None:
        before, relapses = len(self.told), self.degradation.describe().relapses
        self.degradation.observe(health, "it")
        self.model.observe(self.now, health, self.latched)
        after = self.degradation.describe().relapses
        self.relapses += after > relapses
        self.calms += after < relapses
        steps = self.told[before:]
        assert not (steps and (self.latched or health is None))
        assert all(each.health == health and each.at == self.now for each in steps)
        ups = [each for each in steps if Level[each.after] < Level[each.before]]
        assert len(ups) in (0, len(steps)), "one observation moves one way only"
        if self.policy.up_seconds:
            assert len(ups) <= 1, "a hold passes between two steps up"

    @rule(health=HEALTHS, quarters=st.integers(1, 8))
    def observe(self, health: float, quarters: int) -> None:
        self.now += quarters * QUARTER
        self.look(health)

    @rule(health=HEALTHS, times=st.integers(1, 12))
    def stay(self, health: float, times: int) -> None:
        """Let health be the same for a while, which is how holds end."""
        for _ in range(times):
            self.observe(health, 2)

    @rule(low=st.sampled_from(ROUND), high=st.sampled_from([90.0, 100.0]), quarters=st.integers(1, 4))
    def dip(self, low: float, high: float, quarters: int) -> None:
        """Let health fall for as long as the hold asks, and be high for as long: the quick way to a relapse."""
        self.observe(low, 1)
        self.now += self.policy.down_seconds
        self.look(low)
        self.observe(high, quarters)
        self.now += self.degradation.describe().up_hold_seconds
        self.look(high)

    @rule(low=st.sampled_from([10.0, 50.0, 70.0]))
    def waver(self, low: float) -> None:
        """Let health be on its way down for as long as calm would take: it is none."""
        self.dip(low, 100.0, 1)
        self.dip(low, 100.0, 1)
        self.observe(low, 1)
        self.now += self.degradation.describe().up_hold_seconds
        self.look(low)

    @rule(times=st.integers(1, 3))
    def lose_sight(self, times: int) -> None:
        for _ in range(times):
            self.now += QUARTER
            self.look(None)

    @rule(level=st.sampled_from(Level))
    def latch(self, level: Level) -> None:
        self.latched = True
        self.degradation.latch(level, "the operator")
        self.model.history.append(Latched(self.now, level))

    @precondition(lambda self: self.latched)
    @rule()
    def release(self) -> None:
        self.latched = False
        self.degradation.release()

    @invariant()
    def the_model_agrees(self) -> None:
        level, since = self.model.place()
        status = self.degradation.describe()
        assert (self.degradation.level, status.since) == (level, since)
        assert status.relapses == self.model.relapses()
        assert status.up_hold_seconds == self.model.hold(self.model.relapses())

    @invariant()
    def steps_are_adjacent_and_follow_each_other(self) -> None:
        at = Level.NORMAL
        for each in self.told:
            assert Level[each.before] == at
            assert abs(Level[each.after] - at) == 1
            at = Level[each.after]
        assert self.degradation.level == at

    @invariant()
    def nothing_goes_up_and_up_again_faster_than_the_shortest_hold(self) -> None:
        ups = [each.at for each in self.told if Level[each.after] < Level[each.before] and each.health is not None]
        assert all(later - earlier >= self.policy.up_seconds for earlier, later in pairwise(ups))

    def teardown(self) -> None:
        for each in self.told:
            event(f"{each.before} -> {each.after}{'' if each.health is not None else ', latched'}")
        by_health = [each for each in self.told if each.health is not None]
        target(float(len(by_health)), label="steps by health")
        target(float(self.relapses), label="relapses")
        target(float(self.calms), label="calms")


TestDegradation = DegradationMachine.TestCase
TestDegradation.settings = settings(stateful_step_count=40)
