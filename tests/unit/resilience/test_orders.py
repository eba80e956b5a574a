"""Operators' orders: carried out once, agreed on by instances that meet only through what the fleet remembers."""

import msgspec
import pytest

from orchestra.errors import InvalidRequest
from orchestra.events import BreakerChanged, Event, LevelChanged, OperatorActed, UnexpectedError
from orchestra.policies import BreakerPolicy, DegradationPolicy
from orchestra.resilience.breaker import Breaker
from orchestra.resilience.degradation import Degradation, Level
from orchestra.resilience.orders import ACTIONS, REASON_CHARS_MAX, Order, Orders


class Instance:
    """A service's level, one breaker and its orders; `wall` is its own idea of Unix time."""

    def __init__(self, wall: float = 1_000_000.0) -> None:
        self.wall = wall
        self.told: list[Event] = []
        self.degradation = Degradation(DegradationPolicy(), lambda: 7.0, self.told.append)
        self.breaker = Breaker("unified", BreakerPolicy(), lambda: 7.0, self.told.append, lambda: 0.0)
        self.orders = Orders(
            self.degradation, {"unified": self.breaker}, lambda: self.wall, lambda: 7.0, self.told.append
        )
        self.give = self.orders.give

    def meet(self, fleet: dict[str, str]) -> None:
        """Do what a tick does with the fleet."""
        fleet.update(self.orders.merge(dict(fleet)))

    def acts(self) -> list[OperatorActed]:
        return [each for each in self.told if isinstance(each, OperatorActed)]


def test_the_actions() -> None:
    assert ACTIONS == {
        "level": (
            "latch NORMAL",
            "latch LIMITED",
            "latch ESSENTIAL",
            "latch EMERGENCY",
            "latch MAINTENANCE",
            "release",
        ),
        "breaker:": ("open", "disable", "observe", "reset"),
    }


def test_a_level_is_latched_and_released() -> None:
    here = Instance()
    text = here.give("level", "latch LIMITED", "to see")
    assert msgspec.json.decode(text) == {"action": "latch LIMITED", "reason": "to see", "at": 1_000_000.0}
    assert here.degradation.level is Level.LIMITED
    assert here.degradation.describe().latched == "to see"
    here.give("level", "release", "seen")
    assert here.degradation.describe().latched is None
    assert here.told == [
        OperatorActed(7.0, "level", "latch LIMITED", "to see"),
        LevelChanged(7.0, "NORMAL", "LIMITED", None, "to see"),
        OperatorActed(7.0, "level", "release", "seen"),
    ]


@pytest.mark.parametrize(
    ("action", "mode", "state"),
    [
        ("open", "forced_open", "OPEN"),
        ("disable", "disabled", "CLOSED"),
        ("observe", "observing", "CLOSED"),
        ("reset", "automatic", "CLOSED"),
    ],
)
def test_a_breaker_is_switched(action: str, mode: str, state: str) -> None:
    here = Instance()
    here.give("breaker:unified", action, "to see")
    assert (here.breaker.mode, here.breaker.state) == (mode, state)
    acted, changed = here.told
    assert acted == OperatorActed(7.0, "breaker:unified", action, "to see")
    assert isinstance(changed, BreakerChanged)
    assert changed.reason.endswith(": to see")


@pytest.mark.parametrize(
    ("target", "action", "reason", "field", "words"),
    [
        ("breaker:other", "open", "why", "$.target", "give one of level, breaker:unified"),
        ("unified", "open", "why", "$.target", "give one of level, breaker:unified"),
        ("level", "open", "why", "$.action", "give one of latch NORMAL"),
        ("level", "latch normal", "why", "$.action", "give one of latch NORMAL"),
        ("breaker:unified", "release", "why", "$.action", "give one of open, disable, observe, reset"),
        ("level", "release", "", "$.reason", "1 to 500 characters"),
        ("level", "release", " \n", "$.reason", "1 to 500 characters"),
        ("level", "release", "x" * (REASON_CHARS_MAX + 1), "$.reason", "1 to 500 characters"),
    ],
)
def test_what_cannot_be_ordered_is_refused(target: str, action: str, reason: str, field: str, words: str) -> None:
    here = Instance()
    with pytest.raises(InvalidRequest, match="give") as refused:
        here.give(target, action, reason)
    assert refused.value.field == field
    assert words in refused.value.detail
    assert (here.told, here.orders.standing) == ([], {})


def test_the_longest_reason_is_taken() -> None:
    Instance().give("level", "release", "x" * REASON_CHARS_MAX)


def test_an_order_is_carried_out_once_everywhere() -> None:
    here, there, fleet = Instance(), Instance(), dict[str, str]()
    fleet["level"] = here.give("level", "latch EMERGENCY", "to see")
    for _ in range(3):
        here.meet(fleet)
        there.meet(fleet)
    assert there.degradation.level is Level.EMERGENCY
    assert there.acts() == here.acts() == [OperatorActed(7.0, "level", "latch EMERGENCY", "to see")]
    assert there.orders.standing == {"level": Order("latch EMERGENCY", "to see", 1_000_000.0)}


def test_what_the_fleet_was_not_told_it_is_told_until_it_knows() -> None:
    here = Instance()
    text = here.give("level", "latch EMERGENCY", "to see")
    assert here.orders.merge({}) == {"level": text}
    assert here.orders.merge({}) == {"level": text}
    assert here.orders.merge({"level": text}) == {}


def test_a_fleet_that_forgot_lifts_no_latch_and_is_told_again() -> None:
    here, there, fleet = Instance(), Instance(), dict[str, str]()
    fleet["breaker:unified"] = text = here.give("breaker:unified", "open", "to see")
    there.meet(fleet)
    fleet.clear()
    there.meet(fleet)
    assert there.breaker.mode == "forced_open"
    assert fleet == {"breaker:unified": text}


def test_an_older_order_does_not_undo_a_newer_one() -> None:
    here = Instance()
    older = here.give("level", "latch EMERGENCY", "to see")
    here.wall += 60
    newer = here.give("level", "release", "seen")
    assert here.orders.merge({"level": older}) == {"level": newer}
    assert here.degradation.describe().latched is None


@pytest.mark.parametrize("wall", [1_000_000.0, 999_000.0, 1_000_001.0])
def test_a_later_order_wins_whatever_the_clock_of_who_gave_it_says(wall: float) -> None:
    here, there, fleet = Instance(), Instance(wall), dict[str, str]()
    fleet["level"] = here.give("level", "latch EMERGENCY", "to see")
    there.meet(fleet)
    fleet["level"] = there.give("level", "release", "seen")
    assert there.orders.standing["level"].at == (1_000_001.0 if wall > 1_000_000 else 1_000_000.001)
    here.meet(fleet)
    assert here.acts()[-1].action == "release"


def test_orders_of_the_same_moment_are_decided_alike_everywhere() -> None:
    here, there, fleet = Instance(), Instance(), dict[str, str]()
    fleet["level"] = here.give("level", "latch EMERGENCY", "mine")
    fleet["level"] = there.give("level", "latch LIMITED", "no, mine")
    for _ in range(3):
        here.meet(fleet)
        there.meet(fleet)
    assert here.degradation.level is there.degradation.level
    assert here.orders.standing == there.orders.standing
    assert len(here.acts()) + len(there.acts()) == 3, "one of them gave way, once"


@pytest.mark.parametrize(("target", "action"), [("level", "release"), ("breaker:unified", "reset")])
def test_the_end_of_what_never_began_here_is_only_noted(target: str, action: str) -> None:
    here, there, fleet = Instance(), Instance(), dict[str, str]()
    fleet[target] = here.give(target, action, "seen")
    there.meet(fleet)
    assert there.told == []
    assert there.orders.standing == here.orders.standing


@pytest.mark.parametrize("text", ["?", "{}", '{"action":"latch HIGH","reason":"x","at":9e9}', "\ufffd"])
def test_an_order_of_another_version_is_left_alone_and_told_once(text: str) -> None:
    here = Instance()
    here.give("level", "latch LIMITED", "to see")
    del here.told[:]
    assert here.orders.merge({"level": text}) == {}
    assert here.orders.merge({"level": text}) == {}
    [told] = here.told
    assert isinstance(told, UnexpectedError)
    assert (told.at, told.correlation_id, told.where) == (7.0, "", "Orders.merge")
    assert told.traceback.startswith("the fleet's order for level cannot be read, and is not followed: ")
    assert here.degradation.level is Level.LIMITED
    here.orders.merge({"level": text + " "})
    assert len(here.told) == 2


def test_orders_for_what_is_not_here_are_ignored() -> None:
    here = Instance()
    assert here.orders.merge({"breaker:new": "?", "else": "?"}) == {}
    assert here.told == []


def test_the_standing_orders_are_a_copy() -> None:
    here = Instance()
    here.orders.standing["level"] = Order("release", "x", 0.0)
    assert here.orders.standing == {}
