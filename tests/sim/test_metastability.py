"""A retry storm outlives its cause where nothing holds it back, and ends with it where guards do.

The very same clients, arrivals and provider in both arms; only settings of the guard differ.
"""

from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from sim.compare import unguarded
from sim.evidence import Evidence, Window
from sim.journal import ClientArrived, ProviderCallStarted
from sim.measures import MEASURES
from sim.scenario import load
from sim.verdict import Status
from sim.world import rehearse

SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2)))
RECOVERY_S = 30.0


@pytest.fixture(scope="module")
def storm(pytestconfig):
    return load(pytestconfig.rootpath / "chaos" / "scenarios" / "retry_storm.yaml")


@pytest.fixture(scope="module", params=SEEDS)
def arms(request, storm):
    """Both arms of one seed, rehearsed once."""
    both = {"guarded": storm, "unguarded": unguarded(storm)}
    return SimpleNamespace(**{name: rehearse(scenario, seed=request.param) for name, scenario in both.items()})


def measured(run, measure: str, after_s: float = RECOVERY_S) -> float:
    """The measure from `after_s` after the fault's end to the end of arrivals."""
    evidence = Evidence(run.journal)
    after = evidence.window("after", "fault")
    return MEASURES[measure].of(evidence, Window(after.start + after_s, after.end))


def before(run, measure: str) -> float:
    evidence = Evidence(run.journal)
    return MEASURES[measure].of(evidence, evidence.window("before", "fault"))


def test_both_arms_meet_the_same_arrivals_and_are_well_before_the_fault(arms):
    arrivals = [[each for each in run.journal if isinstance(each, ClientArrived)] for run in vars(arms).values()]
    assert arrivals[0] == arrivals[1]
    for run in vars(arms).values():
        assert before(run, "success_rate") >= 0.99
        assert before(run, "retry_amplification") < 1.05


def test_without_guards_the_service_stays_down_long_after_the_fault(arms):
    evidence = Evidence(arms.unguarded.journal)
    after = evidence.window("after", "fault")
    assert after.end - after.start >= 150
    assert measured(arms.unguarded, "goodput") < 0.1  # which is far below the half that would be bad enough
    assert MEASURES["goodput"].of(evidence, Window(after.end - 60, after.end)) < 0.1  # and it does not get better
    assert measured(arms.unguarded, "retry_amplification") > 3


def test_with_guards_goodput_is_back_within_half_a_minute(arms):
    assert arms.guarded.verdict.status is Status.PASSED, arms.guarded.verdict
    assert measured(arms.guarded, "goodput") >= 0.95
    assert measured(arms.guarded, "success_rate") >= 0.99
    assert measured(arms.guarded, "retry_amplification") < 1.1


def test_guards_keep_the_storm_from_the_provider(arms):
    """Clients ask as often as they like; calls to the provider, by turns, are what guards decide on."""
    calls = {
        name: sum(isinstance(each, ProviderCallStarted) for each in run.journal) / run.verdict.accounting.arrivals
        for name, run in vars(arms).items()
    }
    assert calls["guarded"] < 1.1
    assert calls["unguarded"] > 3


def test_without_the_fault_the_same_service_without_guards_is_well(storm):
    """So it is no lack of capacity: two stable states, and the fault only moves the service from one to the other."""
    calm = rehearse(replace(unguarded(storm), faults=(), expectations=(), duration=120.0))
    evidence = Evidence(calm.journal)
    assert calm.verdict.accounting.answered == calm.verdict.accounting.arrivals
    assert MEASURES["retry_amplification"].of(evidence, evidence.window("always", "run")) == 1.0
