"""Tuning: a front that is one, constraints that hold, and searches that can be repeated and gone on with."""

import math
import tomllib

import pandas as pd
import pytest
import yaml

from sim.design import DesignRefused, axes
from sim.measures import COLUMNS, MeasureUnknown
from sim.scenario import parse
from sim.tune import AS_IT_IS, Search, constraint, front, settings_toml, settings_yaml, tune

TINY = """
name: tiny
duration: 5s
workload: {open_loop: {rate: 6/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world: {provider: {capacity: 1, first_token: {exponential: {mean: 100ms}}, per_token: 5ms}}
"""


@pytest.fixture(scope="module")
def tiny():
    return parse(TINY)


def search(tiny, **options):
    varied = axes(["world.provider.capacity=1..6", "guards.unified.breaker.open_seconds=1.0..9.0"], tiny)
    return Search(varied, ("availability", "p95"), (constraint("p95 <= 1s"),), runs=1, **options)


def test_the_front_is_of_those_that_nothing_dominates():
    frame = pd.DataFrame(
        {
            "availability": [0.9, 0.9, 0.8, 0.99, 0.7, math.nan, 0.9],
            "p95": [2.0, 1.0, 0.5, 5.0, 0.5, 0.1, 1.0],
            "feasible": [True, True, True, False, True, True, True],
        }
    )
    assert list(front(frame, ("availability", "p95"))) == [False, True, True, False, False, False, True]
    assert list(front(frame, ("p95",))) == [False, False, False, False, False, True, False]


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("nsga2", marks=pytest.mark.nightly)])
def test_a_search_can_be_repeated_and_its_front_keeps_the_constraints(tiny, sampler):
    told = []
    found = tune(tiny, search(tiny, sampler=sampler), 4, watch=lambda *progress: told.append(progress))
    assert found["trial"].tolist() == [AS_IT_IS, 0, 1, 2, 3]
    assert found["world.provider.capacity"][0] == ""
    assert not found["feasible"][0]  # one call at once is too few for six a second
    assert found["feasible"].tolist() == (found["p95"] <= 1).tolist()
    best = found[found["front"]]
    assert len(best) >= 1
    assert best["feasible"].all()
    assert best["p95"].min() == found["p95"].min()
    assert told == [(done, 4) for done in range(5)]
    pd.testing.assert_frame_equal(tune(tiny, search(tiny, sampler=sampler), 4), found)
    assert set(COLUMNS) < set(found.columns)


def test_a_search_that_is_kept_goes_on(tiny, tmp_path):
    kept = tmp_path / "trials.log"

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tiny, search(tiny), 4, storage=kept, watch=stop)
    two = tune(tiny, search(tiny), 2, storage=kept)
    three = tune(tiny, search(tiny), 3, storage=kept)
    assert three["trial"].tolist() == [AS_IT_IS, 0, 1, 2]
    columns = ["trial", "world.provider.capacity", "p95", "feasible"]
    pd.testing.assert_frame_equal(three[columns][:3], two[columns])
    other = tune(tiny, search(tiny, first_seed=9), 1, storage=kept)
    assert other["trial"].tolist() == [AS_IT_IS, 0]


def test_a_point_that_cannot_run_is_infeasible_and_says_why(tiny):
    varied = axes(["faults=[],[{provider_slow: {at: 1s, for: 9s, factor: 2}}]"], tiny)
    found = tune(tiny, Search(varied, ("p95",), runs=1), 6)
    broken = found[found["error"] != ""]
    assert len(broken)
    assert broken["error"].str.contains("ends at 10s, after the run's 5s").all()
    assert not broken["feasible"].any()
    assert not broken["front"].any()
    assert found["front"].any()


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("availability >= 99%", 0.99, True),
        ("availability >= 99%", 0.98, False),
        ("availability > 99%", 0.99, False),
        ("p95 < 3s", 2.9, True),
        ("p95 < 3s", 3.0, False),
        ("retry_amplification<=1.2", 1.2, True),
        ("cost <= 5", math.nan, False),
    ],
)
def test_a_constraint_is_exceeded_by_what_breaks_it(text, value, holds):
    found = constraint(text)
    assert (found.excess(value) <= 0) is holds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p95", "is no constraint: write a measure and a bound, such as 'availability >= 99%'"),
        ("p95 <= 3", "p95: 3 has no unit: write 3s, 3ms or 3min"),
        ("availability >= 99", "did you mean 99%"),
        ("avail >= 99%", "there is no measure 'avail'"),
    ],
)
def test_what_is_no_constraint_is_refused(text, says):
    with pytest.raises((DesignRefused, MeasureUnknown), match=says):
        constraint(text)


@pytest.mark.parametrize(
    ("objectives", "says"),
    [((), "name one or more objectives"), (("p95", "p95"), "each once"), (("openings",), "openings has no better way")],
)
def test_what_is_no_objective_is_refused(tiny, objectives, says):
    with pytest.raises(DesignRefused, match=says):
        tune(tiny, search(tiny)._replace(objectives=objectives), 1)
    with pytest.raises(DesignRefused, match="0 trials are out of bounds"):
        tune(tiny, search(tiny), 0)


def test_a_point_is_written_to_be_pasted():
    point = {
        "world.provider.capacity": "16",
        "guards.unified.breaker.open_seconds": "12.5",
        "settings.guards.unified.fallbacks": "[alternate]",
        "turn_seconds_max": "50",
    }
    assert settings_yaml(point).startswith("# world.provider.capacity: 16\n")
    settings = {
        "guards": {"unified": {"breaker": {"open_seconds": 12.5}, "fallbacks": ["alternate"]}},
        "turn_seconds_max": 50,
    }
    assert yaml.safe_load(settings_yaml(point)) == {"settings": settings}
    assert tomllib.loads(settings_toml(point)) == settings
    assert settings_toml({"world.provider.capacity": "16"}) == ""
