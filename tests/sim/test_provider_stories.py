"""The shipped stories of a provider in trouble: what the settings prevent happens where they are taken away.

That the stories hold as they are, with any seed, is tested with all others in tests/scenarios.
"""

from pathlib import Path

import pytest

from sim.compare import unguarded, what_if
from sim.scenario import load
from sim.world import rehearse

SCENARIOS = Path(__file__).parents[2] / "chaos" / "scenarios"
PATIENT = {
    "unified": {
        "attempt": {"first_seconds_max": 60, "between_seconds_max": 60, "total_seconds_max": 60},
        "retry": {"attempts_max": 1},
    }
}


def test_without_guards_and_a_second_provider_nobody_is_answered_in_the_blackout():
    verdict = rehearse(unguarded(load(SCENARIOS / "blackout.yaml"))).verdict
    measured = {result.text: result.measured for result in verdict.results if not result.held}
    assert measured["during fault: success rate >= 98%"] == "0%"
    assert measured["during fault, within 10s: breaker unified opens"] == "never"


@pytest.mark.nightly
def test_who_waits_for_the_bad_backend_waits_long():
    verdict = rehearse(what_if(load(SCENARIOS / "gray_provider.yaml"), guards=PATIENT)).verdict
    failed = {result.text: result.value for result in verdict.results if not result.held}
    assert set(failed) == {"during fault: p95 < 6s", "during fault: p99 < 12s"}
    assert failed["during fault: p99 < 12s"] > 25


@pytest.mark.nightly
def test_without_a_budget_every_refusal_is_asked_for_again():
    verdict = rehearse(unguarded(load(SCENARIOS / "rate_limited.yaml"))).verdict
    failed = {result.text: result.value for result in verdict.results if not result.held}
    assert list(failed) == ["during fault: calls of the provider a turn <= 3.60x"]
    assert failed["during fault: calls of the provider a turn <= 3.60x"] > 6
