"""Designs of points: how axes are written, and that a grid, a Latin hypercube and a Sobol sequence are such."""

import numpy as np
import pytest

from sim.design import AXES_MAX, DesignRefused, Listed, Range, axes, axis, placed, points
from sim.paths import PathRefused
from sim.scenario import parse

STORY = """
name: story
duration: 60s
workload: {open_loop: {rate: 4/s, generated_tokens: {lognormal: {median: 50, p95: 90}}}}
"""


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("a.b=16,32, 64", ("16", "32", "64")),
        ("a.b=[],[x, y],{z: [1, 2]}", ("[]", "[x, y]", "{z: [1, 2]}")),
        ("a.b=5/s..50/s", ("5/s", "16.25/s", "27.5/s", "38.75/s", "50/s")),
        ("a.b=2.0..4.0:3", ("2", "3", "4")),
        ("a.b=1..9:3", ("1", "5", "9")),
        ("a.b=1..3", ("1", "2", "3")),
        ("a.b=1ms .. 3ms : 2", ("1ms", "3ms")),
        ("a.b=10%..20%:2", ("10%", "20%")),
    ],
)
def test_an_axis_and_what_a_grid_takes_of_it(text, levels):
    assert axis(text).path == "a.b"
    assert axis(text).levels() == levels


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.b", "is no axis: write a path and its values"),
        ("=3", "is no axis"),
        ("a.b=1,,2", "empty or equal values"),
        ("a.b=1,1", "empty or equal values"),
        ("a.b=1s..2min", "has two units: write both ends in the same one"),
        ("a.b=3..3", "is empty: write the lower end first"),
        ("a.b=1..3:1", "1 values are out of bounds: write 2 to"),
    ],
)
def test_what_is_no_axis_is_refused(text, says):
    with pytest.raises(DesignRefused, match=says):
        axis(text)


def test_places_cover_an_axis_evenly():
    every = np.arange(0, 1, 0.001)
    whole = [Range("a", 1, 4, whole=True).at(place) for place in every]
    assert {each: whole.count(each) for each in "1234"} == dict.fromkeys("1234", 250)
    listed = [Listed("a", ("x", "y")).at(place) for place in every]
    assert (listed.count("x"), listed.count("y")) == (500, 500)
    assert Range("a", 2, 4, "s").at(0.25) == "2.5s"
    assert Listed("a", ("x", "y")).at(1.0) == "y"


def test_axes_are_checked_against_the_scenario_before_anything_runs():
    story = parse(STORY)
    assert len(axes(["workload.rate=1/s..2/s", "world.provider.capacity=1,2"], story)) == 2
    with pytest.raises(PathRefused, match="'x' is no whole number"):
        axes(["world.provider.capacity=1,x"], story)
    with pytest.raises(PathRefused, match="0 is out of bounds"):
        axes(["world.provider.capacity=0..5"], story)
    with pytest.raises(DesignRefused, match="is varied twice"):
        axes(["duration=1s,2s", "duration=3s,4s"], story)
    with pytest.raises(DesignRefused, match=f"vary 1 to {AXES_MAX} paths"):
        axes([], story)


def test_a_grid_has_every_combination_and_no_count():
    found = points((Listed("a", ("1", "2")), Range("b", 0, 1, "s", steps=3)))
    assert found[:4] == ({"a": "1", "b": "0s"}, {"a": "1", "b": "0.5s"}, {"a": "1", "b": "1s"}, {"a": "2", "b": "0s"})
    assert len(found) == 6
    with pytest.raises(DesignRefused, match="leave --points out"):
        points((Listed("a", ("1",)),), count=3)
    with pytest.raises(DesignRefused, match=r"a grid of 10,648 points: at most 10,000"):
        points([Range(name, 0, 1, "s", steps=22) for name in "abc"])


@pytest.mark.parametrize("design", ["lhs", "sobol"])
def test_a_spread_design_has_one_point_in_each_slice_of_every_axis(design):
    varied = (Range("a", 0, 16, "s"), Range("b", 0, 16, "s"))
    found = points(varied, design, 16, seed=7)
    for name in "ab":
        assert sorted(int(float(point[name][:-1])) for point in found) == list(range(16))
    assert found == points(varied, design, 16, seed=7)
    assert found != points(varied, design, 16, seed=8)


def test_a_spread_design_needs_its_count():
    varied = (Range("a", 0, 1, "s"),)
    with pytest.raises(DesignRefused, match="--design lhs needs --points"):
        points(varied, "lhs")
    with pytest.raises(DesignRefused, match="--points 48 is no power of two, which sobol needs: take 32 or 64"):
        points(varied, "sobol", 48)


def test_values_that_do_not_fit_together_make_no_scenario():
    story = parse(STORY)
    assert isinstance(placed(story, {"workload.generated_tokens.median": "100"}), PathRefused)
    assert placed(story, {"world.provider.capacity": "3"}).world.provider.capacity == 3
