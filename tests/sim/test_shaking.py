"""Shaking: a quarter of the points in a run, by seed, valid together, and nothing of it afterwards."""

import ast
from collections import Counter
from pathlib import Path

import pytest

import orchestra
from orchestra import limits
from orchestra.config import FIELDS, Settings, value_of
from sim.entropy import Streams
from sim.shaking import SHAKEN_LIMITS, STEADY_SETTINGS, shaken_limits, shaken_settings

SOURCES = [path.read_text() for path in Path(orchestra.__file__).parent.rglob("*.py")]


def points_of(seed):
    _, settings = shaken_settings(Settings(), Streams(seed))
    with shaken_limits(Streams(seed)) as bounds:
        return settings + bounds


def test_the_seed_decides():
    assert points_of(1) == points_of(1) != points_of(2)


def test_what_is_told_is_what_is_shaken_and_no_more():
    settings, told = shaken_settings(Settings(), Streams(3))
    assert told
    changed = {path for path in FIELDS if value_of(settings, path) != value_of(Settings(), path)}
    assert changed == {shake.point for shake in told}
    assert all(value_of(settings, shake.point) == shake.value for shake in told)
    assert all(value_of(Settings(), shake.point) == shake.usual for shake in told)
    assert not changed & set(STEADY_SETTINGS)


def test_every_point_is_shaken_now_and_then_and_none_always():
    """A quarter of the runs, less where the shaken value contradicts another: over 50 runs, up to 27."""
    counts = Counter(shake.point for seed in range(50) for shake in points_of(seed))
    wanted = {f"limits.{name}" for name in SHAKEN_LIMITS} | {
        path for path in FIELDS if isinstance(value_of(Settings(), path), int | float) and path not in STEADY_SETTINGS
    }
    seldom = {path for path in wanted if path.endswith("hedge.attempts_max")}  # few of its values go with the others
    assert wanted - seldom <= set(counts) <= wanted
    assert min(counts.values()) >= 1
    assert max(counts.values()) <= 27
    assert sum(counts.values()) / len(wanted) / 50 == pytest.approx(0.25, abs=0.05)


def test_bounds_are_as_they_were_afterwards_however_it_ends():
    usual = {name: getattr(limits, name) for name in SHAKEN_LIMITS}

    def break_off(seed: int) -> None:
        with shaken_limits(Streams(seed)) as told:
            assert told
            for shake in told:
                assert getattr(limits, shake.point.removeprefix("limits.")) == shake.value
            raise KeyError

    for seed in range(5):
        with pytest.raises(KeyError):
            break_off(seed)
        assert {name: getattr(limits, name) for name in SHAKEN_LIMITS} == usual


def test_no_bound_is_below_what_makes_sense():
    for seed in range(40):
        with shaken_limits(Streams(seed)) as told:
            for shake in told:
                name = shake.point.removeprefix("limits.")
                assert shake.value >= SHAKEN_LIMITS[name]
                assert type(shake.value) is type(shake.usual)


@pytest.mark.parametrize("name", SHAKEN_LIMITS)
def test_the_orchestra_reads_each_bound_where_it_needs_it(name):
    """In a function, not once at import, where a shaken value would come too late."""
    trees = [ast.parse(source) for source in SOURCES if f"limits.{name}" in source]
    functions = [
        each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert any(f"attr='{name}'" in ast.dump(each) for each in functions)
    assert not any(f"import {name}" in source for source in SOURCES)
