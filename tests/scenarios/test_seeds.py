"""The shipped scenarios pass whatever the seed: a verdict that hangs on luck would be flaky in everybody's CI."""

from pathlib import Path

import pytest

from sim import scenario
from sim.verdict import Status
from sim.world import rehearse

SCENARIOS = sorted((Path(__file__).parents[2] / "chaos" / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_passes_with_another_seed(path: Path) -> None:
    run = rehearse(scenario.load(path), seed=1)
    assert run.verdict.status is Status.PASSED, [each for each in run.verdict.results if not each.held]


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(21))
@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_passes_with_every_seed(path: Path, seed: int) -> None:
    run = rehearse(scenario.load(path), seed=seed)
    assert run.verdict.status is Status.PASSED, [each for each in run.verdict.results if not each.held]
