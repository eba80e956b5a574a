"""Scenarios of a deployment fail without what protects it: one that passes whatever is taken away proves nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from sim.scenario import Scenario, load
from sim.verdict import Status
from sim.world import rehearse

FOLDER = Path(__file__).parents[2] / "chaos" / "scenarios"


def alone(scenario: Scenario) -> Scenario:
    """Let there be one instance, which is the one that dies."""
    deployment = replace(scenario.world.deployment, instances=1)
    crash = replace(scenario.faults[0], instance="home-1")
    return replace(scenario, world=replace(scenario.world, deployment=deployment), faults=(crash,))


def unwatched(scenario: Scenario) -> Scenario:
    """Let the balancers ask nobody whether it is ready."""
    deployment = scenario.world.deployment
    deployment = replace(deployment, balancer=replace(deployment.balancer, probes="none"))
    return replace(scenario, world=replace(scenario.world, deployment=deployment))


def asked_once(scenario: Scenario) -> Scenario:
    """Let nobody ask again."""
    return replace(scenario, workload=replace(scenario.workload, retries=None))


@pytest.mark.parametrize(
    ("name", "without", "broken"),
    [
        ("instance_crash", alone, "during fault: success rate"),
        ("instance_crash", asked_once, "always: failures"),
        ("region_partition", unwatched, "during fault: success rate"),
        ("redis_failover", asked_once, "during slots_failover: success rate"),
    ],
)
def test_without_its_protection_it_fails(name: str, without: Callable[[Scenario], Scenario], broken: str) -> None:
    verdict = rehearse(without(load(FOLDER / f"{name}.yaml"))).verdict
    assert verdict.status is Status.FAILED
    assert any(result.text.startswith(broken) for result in verdict.results if not result.held)
