"""Our breaker withstands every probe, and docs/conformance.md says what they see in ours and in the libraries."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestra.policies import BreakerPolicy
from orchestra.resilience.breaker import Breaker
from tests.conformance.breakers import LIBRARIES, OURS, OursByCall
from tests.conformance.probes import PROBES, run
from tests.conformance.table import Findings, findings, page

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def found() -> Findings:
    return findings()


@pytest.mark.parametrize("name", PROBES)
def test_ours_withstands(found, name):
    assert {kind.edge: found[name][kind].saw for kind in OURS if found[name][kind].right is not True} == {}


def test_the_page_says_what_the_probes_see_now(found):
    assert PAGE.read_text(encoding="utf-8") == page(found), "run `make conformance` and look at what it changes"


def test_the_versions_probed_are_those_of_the_development_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {f"{kind.library}=={kind.version()}" for kind in LIBRARIES} == {
        each for each in extras["dev"] if "==" in each
    }


class _KeepsHungProbes(OursByCall):
    """Ours, set so that a probe may keep its slot longer than the story of the probe lasts."""

    def __init__(self, failures: int, open_seconds: float, now: Callable[[], float]) -> None:
        policy = BreakerPolicy(
            failures_max=failures, open_seconds=open_seconds, probes_max=2, successes_min=1, probe_seconds_max=3600
        )
        self.breaker = Breaker("dependency", policy, now, lambda change: None, random=lambda: 0.0)


def test_a_probe_that_nobody_fails_is_failed_by_a_planted_defect(found):
    """What finds nothing proves nothing. The libraries never limit probes, so they cannot lose a slot either."""
    failed_by_nobody = [name for name, by_kind in found.items() if all(finding.right for finding in by_kind.values())]
    assert failed_by_nobody == ["hung probe"]
    assert run(PROBES["hung probe"][1], _KeepsHungProbes).saw == "still rejects"
