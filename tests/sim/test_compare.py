"""What-ifs change what they name and nothing else, and stand side by side with the numbers of their runs."""

import math

import pytest
from msgspec import structs

from orchestra.events import BreakerChanged, CallFinished, FellBack
from sim.compare import side_by_side, unguarded, what_if
from sim.journal import ClientArrived
from sim.scenario import settings_of
from sim.verdict import reach
from sim.world import Run, rehearse

BREAKER = "guards.unified.breaker"
TROUBLE = "faults: [{provider_failing: {at: 10s, for: 10s, rate: 100%}}]"


def run_of(journal, scenario):
    return Run(scenario, 0, "orchestrator", journal, reach((), journal), 0.0, 0.0)


def test_what_if_changes_the_named_setting_only(small):
    scenario = small("settings: {log_level: error, guards: {unified: {breaker: {open_seconds: 5, probes_max: 3}}}}")
    changed = what_if(scenario, guards={"unified": {"fallbacks": ["apology"], "breaker": {"open_seconds": 1}}})
    assert changed.settings == {
        "log_level": "error",
        "guards.unified.fallbacks": "apology",
        f"{BREAKER}.open_seconds": 1,
        f"{BREAKER}.probes_max": 3,
    }
    assert structs.replace(changed, settings=scenario.settings) == scenario
    assert scenario.settings[f"{BREAKER}.open_seconds"] == 5


def test_unguarded_means_that_the_provider_is_asked_whatever_happens(small):
    more = "settings: {guards: {unified: {fallbacks: [apology], bulkhead: {concurrent_max: 1}}}}\n"
    guarded, free = small(more), unguarded(small(more))
    policy = settings_of(free.settings).guards.unified
    assert (policy.fallbacks, policy.retry.attempts_max) == ((), 3)
    run = rehearse(structs.replace(free, faults=small(TROUBLE).faults), seed=1)
    assert not [entry for entry in run.journal if isinstance(entry, BreakerChanged | FellBack)]
    assert {entry.outcome for entry in run.journal if isinstance(entry, CallFinished)} == {"success", "failure"}
    assert set(run.verdict.failures) == {"provider-failed"}
    assert structs.replace(free, settings=guarded.settings) == guarded


def test_runs_of_one_seed_have_the_same_arrivals_and_differ_in_what_was_changed(small):
    scenario = small(TROUBLE)
    short, long = (
        rehearse(
            what_if(scenario, guards={"unified": {"breaker": {"open_seconds": seconds, "open_growth": 1}}}), seed=3
        )
        for seconds in (1, 15)
    )
    arrivals = [[entry.at for entry in run.journal if isinstance(entry, ClientArrived)] for run in (short, long)]
    assert arrivals[0] == arrivals[1]
    table = side_by_side({"short": short, "long": long})
    assert list(table.index) == ["short", "long"]
    assert table.loc["short", "openings"] > table.loc["long", "openings"] == 1
    assert table.loc["short", "closed_after"] < table.loc["long", "closed_after"]
    assert table.loc["short", "shed"] < table.loc["long", "shed"]


def test_the_table_has_the_numbers_of_the_run(small, story):
    turns = [(1.0, "answered", 2.0), (2.0, "failed", 1.0), (3.0, "shed", 0.1), (4.0, "answered", 4.0)]
    changes = [(21.0, "unified", "OPEN"), (33.0, "unified", "CLOSED"), (25.0, "memory", "CLOSED")]
    row = side_by_side(
        {"x": run_of(story(turns, fault=(20.0, 30.0), changes=changes, retries=[(2.0, 2), (2.5, 2)]), small())}
    ).loc["x"]
    assert row.to_dict() == {
        "verdict": "PASSED",
        "success": 0.5,
        "failed": 1,
        "shed": 1,
        "p95": 3.9,
        "amplification": 1.5,
        "openings": 1,
        "closed_after": 3.0,
    }


@pytest.mark.parametrize(
    ("fault", "changes", "seconds"),
    [
        ((20.0, 30.0), [], 0.0),
        ((20.0, 30.0), [(25.0, "unified", "CLOSED")], 0.0),
        ((20.0, 30.0), [(40.0, "unified", "OPEN")], math.nan),
        (None, [], math.nan),
    ],
)
def test_closed_after_counts_from_the_end_of_the_faults(small, story, fault, changes, seconds):
    row = side_by_side({"x": run_of(story(fault=fault, changes=changes), small())}).loc["x"]
    assert row["closed_after"] == pytest.approx(seconds, nan_ok=True)
