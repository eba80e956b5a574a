"""The level's rules one by one; `tests/property/test_degradation.py` holds it against a naive model."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from orchestra.events import LevelChanged
from orchestra.policies import DegradationPolicy
from orchestra.resilience.degradation import (
    DISABLED,
    THRESHOLDS,
    TRANSITIONS_KEPT_MAX,
    Degradation,
    Feature,
    Level,
)

POLICY = DegradationPolicy(
    margin_points=5.0, down_seconds=3.0, up_seconds=10.0, relapse_growth=2.0, up_seconds_max=35.0
)
BARE = DegradationPolicy(margin_points=0, down_seconds=0, up_seconds=0)


class Bench:
    """A level with a clock to turn."""

    def __init__(self, policy: DegradationPolicy = POLICY) -> None:
        self.now = 100.0
        self.told: list[LevelChanged] = []
        self.degradation = Degradation(policy, lambda: self.now, self.told.append)

    def observe(self, health: float | None, reason: str = "") -> str:
        self.degradation.observe(health, reason)
        return self.degradation.level.name

    def hold(self, health: float | None, seconds: float) -> str:
        """Observe `health` now, and each second from here to `seconds` later."""
        self.observe(health)
        for _ in range(round(seconds)):
            self.now += 1
            self.observe(health)
        return self.degradation.level.name

    def fall(self, health: float = 70.0) -> str:
        return self.hold(health, 3)

    def arrows(self) -> list[str]:
        return [f"{each.before} -> {each.after}" for each in self.told]


def test_the_thresholds_and_features_are_those_of_the_diagram() -> None:
    assert list(THRESHOLDS) == [80, 60, 40, 20]
    assert [level.name for level in sorted(Level)] == ["NORMAL", "LIMITED", "ESSENTIAL", "EMERGENCY", "MAINTENANCE"]
    assert [list(map(str, DISABLED[level])) for level in Level] == [
        [],
        ["analytics", "collaboration"],
        ["analytics", "collaboration", "swarm", "memory", "streaming"],
        ["analytics", "collaboration", "swarm", "memory", "streaming", "external_apis", "webhooks"],
        ["analytics", "collaboration", "swarm", "memory", "streaming", "external_apis", "webhooks"],
    ]


@pytest.mark.parametrize("level", Level)
def test_every_feature_has_one_gate(level: Level) -> None:
    bench = Bench()
    bench.degradation.latch(level, "to see")
    assert [each for each in Feature if not bench.degradation.allows(each)] == list(DISABLED[level])
    assert bench.degradation.read_only is (level is Level.MAINTENANCE)


@pytest.mark.parametrize(
    ("health", "level"),
    [
        (100, "NORMAL"),
        (80, "NORMAL"),
        (79.9, "LIMITED"),
        (60, "LIMITED"),
        (59.9, "ESSENTIAL"),
        (40, "ESSENTIAL"),
        (39.9, "EMERGENCY"),
        (20, "EMERGENCY"),
        (19.9, "MAINTENANCE"),
        (0, "MAINTENANCE"),
    ],
)
def test_without_margins_and_holds_the_bare_diagram_is_followed_down_at_once(health: float, level: str) -> None:
    assert Bench(BARE).observe(health) == level


@pytest.mark.parametrize(
    ("health", "level"),
    [
        (20, "MAINTENANCE"),
        (20.1, "EMERGENCY"),
        (40, "EMERGENCY"),
        (40.1, "ESSENTIAL"),
        (60, "ESSENTIAL"),
        (60.1, "LIMITED"),
        (80, "LIMITED"),
        (80.1, "NORMAL"),
        (100, "NORMAL"),
    ],
)
def test_without_margins_and_holds_the_bare_diagram_is_followed_up_at_once(health: float, level: str) -> None:
    bench = Bench(BARE)
    bench.observe(0)
    del bench.told[:]
    assert bench.observe(health) == level
    ladder = ["MAINTENANCE", "EMERGENCY", "ESSENTIAL", "LIMITED", "NORMAL"]
    passed = ladder[: ladder.index(level) + 1]
    assert bench.arrows() == [f"{a} -> {b}" for a, b in pairwise(passed)]


def test_a_fall_from_100_to_10_passes_every_level_in_order_each_told_with_its_cause() -> None:
    bench = Bench()
    bench.observe(100)
    bench.now += 1
    for second in range(3):
        assert bench.observe(10, "the provider is away") == "NORMAL", second
        bench.now += 1
    assert bench.observe(10, "the provider is away") == "MAINTENANCE"
    why = "health is 10.0 %, below {} % for 3.0 s: the provider is away"
    assert bench.told == [
        LevelChanged(104.0, "NORMAL", "LIMITED", 10, why.format(80)),
        LevelChanged(104.0, "LIMITED", "ESSENTIAL", 10, why.format(60)),
        LevelChanged(104.0, "ESSENTIAL", "EMERGENCY", 10, why.format(40)),
        LevelChanged(104.0, "EMERGENCY", "MAINTENANCE", 10, why.format(20)),
    ]


def test_each_threshold_has_a_hold_of_its_own() -> None:
    bench = Bench()
    bench.hold(70, 2)
    bench.now += 1
    assert bench.observe(50) == "LIMITED", "below 80 for 3 s, below 60 only now"
    bench.now += 2.9
    assert bench.observe(50) == "LIMITED"
    bench.now += 0.1
    assert bench.observe(50) == "ESSENTIAL"


@pytest.mark.parametrize("between", [80.0, 100.0, None])
def test_a_single_observation_that_is_not_below_breaks_the_way_down(between: float | None) -> None:
    bench = Bench()
    bench.hold(70, 2)
    bench.observe(between)
    assert bench.hold(70, 2) == "NORMAL"
    bench.now += 1
    assert bench.observe(70) == "LIMITED"


def test_up_goes_one_level_at_a_time_each_after_a_hold_above_the_margin() -> None:
    bench = Bench()
    bench.fall(10)
    bench.now += 1
    assert bench.hold(100, 9) == "MAINTENANCE"
    for level in ("EMERGENCY", "ESSENTIAL", "LIMITED", "NORMAL"):
        bench.now += 1
        assert bench.observe(100, "all is well") == level
        assert bench.hold(100, 9) == level
    assert [(each.at, each.reason) for each in bench.told[4:]] == [
        (114.0, "health is 100.0 %, above 25 % for 10.0 s: all is well"),
        (124.0, "health is 100.0 %, above 45 % for 10.0 s: all is well"),
        (134.0, "health is 100.0 %, above 65 % for 10.0 s: all is well"),
        (144.0, "health is 100.0 %, above 85 % for 10.0 s: all is well"),
    ]


@pytest.mark.parametrize(("health", "level"), [(85.0, "LIMITED"), (85.1, "NORMAL")])
def test_the_margin_itself_is_not_yet_above(health: float, level: str) -> None:
    bench = Bench()
    bench.fall()
    assert bench.hold(health, 20) == level


@pytest.mark.parametrize("between", [85.0, 10.0, None])
def test_a_single_observation_that_is_not_above_breaks_the_way_up(between: float | None) -> None:
    bench = Bench()
    bench.fall()
    bench.hold(100, 9)
    bench.observe(between)
    assert bench.hold(100, 9) == "LIMITED"
    bench.now += 1
    assert bench.observe(100) == "NORMAL"


def test_the_hold_up_is_counted_from_the_step_into_the_level_where_the_condition_is_older() -> None:
    bench = Bench()
    bench.fall(50)  # ESSENTIAL; above 25 and 45 long before
    bench.fall(30)
    assert bench.degradation.level is Level.EMERGENCY
    assert bench.hold(50, 9) == "EMERGENCY"
    bench.now += 1
    assert bench.observe(50) == "ESSENTIAL"


def test_unknown_health_moves_nothing() -> None:
    bench = Bench(BARE)
    assert bench.observe(None) == "NORMAL"
    bench.observe(50)
    assert bench.hold(None, 1000) == "ESSENTIAL"
    assert bench.degradation.describe().health is None


def recover(bench: Bench, hold: int) -> None:
    """Let the level rise by one, and see that it takes exactly `hold` seconds."""
    level = bench.degradation.level
    bench.now += 1
    bench.hold(100, hold - 1)
    assert bench.degradation.level == level
    bench.now += 1
    bench.observe(100)
    assert bench.degradation.level == level - 1


def test_each_relapse_makes_the_hold_up_longer_until_the_longest() -> None:
    bench = Bench()
    for hold, relapses in ((10, 0), (20, 1), (35, 2), (35, 2)):
        bench.fall()
        status = bench.degradation.describe()
        assert (status.up_hold_seconds, status.relapses) == (hold, relapses)
        recover(bench, hold)


def test_many_relapses_do_not_overflow() -> None:
    bench = Bench(DegradationPolicy(down_seconds=0, up_seconds=3600, relapse_growth=100, up_seconds_max=3600))
    for _ in range(1000):
        bench.observe(70)
        bench.now += 3600.5
        bench.observe(100)
        bench.now += 3600.5
        bench.observe(100)
        bench.now += 1
    assert bench.degradation.describe().relapses == 0
    assert len(bench.told) == 2000


@pytest.mark.parametrize(("seconds", "relapses"), [(9.0, 1), (9.9, 1), (10.0, 0), (11.0, 0)])
def test_a_relapse_is_a_fall_that_began_within_the_hold_after_a_rise(seconds: float, relapses: int) -> None:
    bench = Bench()
    bench.fall()
    recover(bench, 10)
    bench.now += seconds
    bench.fall()
    assert bench.degradation.level is Level.LIMITED
    assert bench.degradation.describe().relapses == relapses


def test_a_fall_through_several_levels_is_one_relapse() -> None:
    bench = Bench()
    bench.fall()
    recover(bench, 10)
    bench.now += 1
    assert bench.fall(10) == "MAINTENANCE"
    assert bench.degradation.describe().relapses == 1


def test_a_fall_further_down_is_no_relapse_where_nothing_had_risen() -> None:
    bench = Bench()
    bench.fall(70)
    bench.fall(50)
    assert bench.fall(30) == "EMERGENCY"
    assert bench.degradation.describe().relapses == 0


def relapsed(times: int) -> Bench:
    """Return a bench at NORMAL, just risen, with that many relapses; the hold is 10, 20 or 35 s."""
    bench = Bench()
    bench.fall()
    for hold in (10, 20, 35)[:times]:
        recover(bench, hold)
        bench.now += 1
        bench.fall()
    recover(bench, (10, 20, 35)[times])
    assert bench.degradation.describe().relapses == times
    return bench


def test_calm_takes_growth_back_step_by_step() -> None:
    bench = relapsed(2)
    at = bench.now
    for seconds, relapses in ((34, 2), (35, 1), (54, 1), (55, 0), (500, 0)):
        bench.now = at + seconds
        bench.observe(100)
        assert bench.degradation.describe().relapses == relapses, seconds
    assert bench.degradation.describe().up_hold_seconds == 10


def test_a_long_calm_takes_all_growth_back_at_once() -> None:
    bench = relapsed(2)
    bench.now += 55
    bench.observe(100)
    assert bench.degradation.describe().relapses == 0


def test_unknown_health_is_no_calm() -> None:
    bench = relapsed(1)
    bench.hold(None, 30)
    bench.hold(100, 19)
    assert bench.degradation.describe().relapses == 1
    bench.now += 1
    bench.observe(100)
    assert bench.degradation.describe().relapses == 0


def test_the_time_down_on_a_low_level_is_no_calm() -> None:
    bench = relapsed(1)
    bench.now += 1
    bench.fall()
    assert bench.degradation.describe().relapses == 2
    bench.hold(70, 500)
    assert bench.degradation.describe().relapses == 2


def test_a_way_down_under_way_is_no_calm() -> None:
    bench = relapsed(1)
    bench.now += 19
    bench.observe(70)  # began within the hold
    bench.now += 3
    assert bench.observe(70) == "LIMITED"
    assert bench.degradation.describe().relapses == 2


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "noise", [lambda chance: chance.uniform(77, 83), lambda chance: chance.gauss(80, 3)], ids=["uniform", "gauss"]
)
def test_noise_around_a_threshold_moves_the_level_at_most_once_an_hour(
    noise: Callable[[Random], float], seed: int
) -> None:
    chance, bench = Random(seed), Bench(DegradationPolicy())
    for _ in range(3600):
        bench.observe(noise(chance))
        bench.now += 1
    assert bench.arrows() == ["NORMAL -> LIMITED"]


def test_the_same_noise_makes_the_bare_diagram_flap() -> None:
    chance, bench = Random(1), Bench(BARE)
    for _ in range(3600):
        bench.observe(chance.uniform(77, 83))
        bench.now += 1
    assert len(bench.told) > 1000


def test_a_latch_passes_every_level_in_order_with_the_operators_reason() -> None:
    bench = Bench()
    bench.degradation.latch(Level.EMERGENCY, "the provider moves house")
    assert bench.told == [
        LevelChanged(100.0, "NORMAL", "LIMITED", None, "the provider moves house"),
        LevelChanged(100.0, "LIMITED", "ESSENTIAL", None, "the provider moves house"),
        LevelChanged(100.0, "ESSENTIAL", "EMERGENCY", None, "the provider moves house"),
    ]
    bench.now += 1
    bench.degradation.latch(Level.LIMITED, "half of it stands")
    assert bench.arrows()[3:] == ["EMERGENCY -> ESSENTIAL", "ESSENTIAL -> LIMITED"]
    assert bench.degradation.describe().latched == "half of it stands"
    assert bench.degradation.describe().since == 101.0


@pytest.mark.parametrize("health", [0.0, 100.0, None])
def test_a_latched_level_stays_whatever_health_does(health: float | None) -> None:
    bench = Bench(BARE)
    bench.degradation.latch(Level.ESSENTIAL, "to see")
    assert bench.degradation.describe().latched == "to see"
    assert bench.hold(health, 1000) == "ESSENTIAL"
    assert bench.degradation.describe().health == health
    bench.degradation.release()
    assert bench.degradation.describe().latched is None
    assert bench.degradation.level is Level.ESSENTIAL, "it moves where it is observed"


def test_a_released_level_follows_health_as_it_was_tracked_meanwhile() -> None:
    bench = Bench()
    bench.degradation.latch(Level.ESSENTIAL, "to see")
    bench.hold(10, 60)
    bench.degradation.release()
    assert bench.observe(10) == "MAINTENANCE"
    bench.degradation.latch(Level.ESSENTIAL, "to see")
    bench.now += 1
    bench.hold(100, 60)
    bench.degradation.release()
    assert bench.observe(100) == "LIMITED"
    assert bench.hold(100, 9) == "LIMITED"


def test_a_latch_forgets_relapses() -> None:
    bench = relapsed(1)
    bench.degradation.latch(Level.NORMAL, "mended")
    bench.degradation.release()
    status = bench.degradation.describe()
    assert (status.relapses, status.up_hold_seconds) == (0, 10)
    bench.now += 1
    bench.fall()
    assert bench.degradation.describe().relapses == 0, "what an operator raised did not relapse"


def test_the_status_says_how_far_the_holds_are() -> None:
    bench = Bench()
    status = bench.degradation.describe()
    assert (status.level, status.read_only, status.disabled, status.since) == ("NORMAL", False, (), 100.0)
    assert (status.health, status.latched, status.transitions) == (None, None, ())
    assert (status.down_held_seconds, status.down_hold_seconds) == (None, 3.0)
    assert (status.up_held_seconds, status.up_hold_seconds) == (None, 10.0)
    bench.hold(70, 2)
    assert bench.degradation.describe().down_held_seconds == 2
    bench.now += 1
    bench.observe(70)
    bench.hold(90, 4)
    status = bench.degradation.describe()
    assert (status.health, status.down_held_seconds, status.up_held_seconds) == (90, None, 4)
    assert status.disabled == ("analytics", "collaboration")
    assert status.transitions == tuple(bench.told)
    bench.now += 1
    bench.degradation.latch(Level.MAINTENANCE, "to see")
    status = bench.degradation.describe()
    assert (status.down_held_seconds, status.up_held_seconds, status.read_only) == (None, 0.0, True)


def test_only_the_last_transitions_are_kept() -> None:
    bench = Bench(BARE)
    for _ in range(30):
        bench.observe(70)
        bench.observe(100)
    assert TRANSITIONS_KEPT_MAX == 20
    assert bench.degradation.describe().transitions == tuple(bench.told[-20:])
