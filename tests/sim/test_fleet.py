"""Several instances seen as one: the worst of them counts, and each one's level moves in order."""

from sim.evidence import Evidence
from sim.expectations import PROPERTIES
from sim.journal import InstanceBreakerChanged, InstanceCrashed, InstanceLevelChanged, Journal


def level(at, instance, before, after) -> InstanceLevelChanged:
    return InstanceLevelChanged(at, instance, before, after, 50.0, "why")


def breaker(at, instance, before, after) -> InstanceBreakerChanged:
    return InstanceBreakerChanged(at, instance, "unified", before, after, "why")


def evidence(*entries) -> Evidence:
    journal = Journal()
    for entry in entries:
        journal.record(entry)
    return Evidence(journal)


def moves(changes) -> list[tuple[float, str, str]]:
    return [(change.at, change.before, change.after) for change in changes]


def test_the_fleet_is_at_the_level_of_its_worst_instance():
    found = evidence(
        level(1, "a", "NORMAL", "LIMITED"),
        level(2, "b", "NORMAL", "LIMITED"),
        level(3, "b", "LIMITED", "ESSENTIAL"),
        level(4, "a", "LIMITED", "NORMAL"),
        level(5, "b", "ESSENTIAL", "LIMITED"),
        level(6, "b", "LIMITED", "NORMAL"),
    )
    assert moves(found.levels) == [
        (1, "NORMAL", "LIMITED"),
        (3, "LIMITED", "ESSENTIAL"),
        (5, "ESSENTIAL", "LIMITED"),
        (6, "LIMITED", "NORMAL"),
    ]
    assert found.levels[1].reason == "b: why"
    assert PROPERTIES["levels_in_order"](found) == (True, "6 adjacent steps")


def test_a_breaker_of_the_fleet_is_open_while_any_is_and_closed_when_all_are():
    found = evidence(
        breaker(1, "a", "CLOSED", "OPEN"),
        breaker(2, "b", "CLOSED", "OPEN"),
        breaker(3, "a", "OPEN", "HALF_OPEN"),
        breaker(4, "b", "OPEN", "HALF_OPEN"),
        breaker(5, "a", "HALF_OPEN", "CLOSED"),
        breaker(6, "b", "HALF_OPEN", "CLOSED"),
    )
    assert moves(found.changes) == [
        (1, "CLOSED", "OPEN"),
        (4, "OPEN", "HALF_OPEN"),
        (6, "HALF_OPEN", "CLOSED"),
    ]


def test_who_crashes_has_forgotten_level_and_breakers():
    found = evidence(
        level(1, "a", "NORMAL", "LIMITED"),
        level(2, "a", "LIMITED", "ESSENTIAL"),
        breaker(3, "a", "CLOSED", "OPEN"),
        InstanceCrashed(4, "a", ()),
        level(5, "a", "NORMAL", "LIMITED"),
    )
    assert moves(found.levels) == [
        (1, "NORMAL", "LIMITED"),
        (2, "LIMITED", "ESSENTIAL"),
        (4, "ESSENTIAL", "NORMAL"),
        (5, "NORMAL", "LIMITED"),
    ]
    assert moves(found.changes) == [(3, "CLOSED", "OPEN"), (4, "OPEN", "CLOSED")]
    assert PROPERTIES["levels_in_order"](found)[0]


def test_an_instance_that_skips_a_level_is_named():
    found = evidence(level(1, "a", "NORMAL", "LIMITED"), level(2, "b", "NORMAL", "ESSENTIAL"))
    assert PROPERTIES["levels_in_order"](found) == (False, "at 2s b from NORMAL to ESSENTIAL")
