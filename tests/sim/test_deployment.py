"""Whole rehearsals of a deployment: instances that crash and come back, balancers, regions, workers."""

import pytest
from msgspec.structs import replace

from orchestra.events import BreakerChanged, LevelChanged, TurnFinished
from sim.distributions import Constant
from sim.forms import Unreadable
from sim.journal import (
    ClientFinished,
    InstanceBreakerChanged,
    InstanceCrashed,
    InstanceIn,
    InstanceLevelChanged,
    InstanceOut,
    InstanceStarted,
    ProviderCallEnded,
    ProviderCallStarted,
)
from sim.scenario import load, parse
from sim.verdict import Status
from sim.world import rehearse
from tests.sim.elsewhere import said

PROPERTIES = "expectations: [{always: accounted}, {always: durable}, {always: no_defects}, {always: levels_in_order}]\n"
STORY = """
name: small
duration: 40s
workload: {open_loop: {rate: 6/s, users: 20, turns_per_session: 3, generated_tokens: 60, context_tokens: 100}}
world:
  provider: {capacity: 30, first_token: {exponential: {mean: 200ms}}, per_prompt_token: 0.1ms, per_token: 10ms}
"""
BOTH_DOORS = pytest.mark.parametrize("door", ["orchestrator", "service"])


def story(deployment: str = "", *faults: str, more: str = ""):
    lines = f"  deployment: {deployment}\n" if deployment else ""
    listed = f"faults: [{', '.join(faults)}]\n" if faults else ""
    return parse(STORY + lines + more + listed + PROPERTIES)


def of(run, *kinds):
    return [entry for entry in run.journal if isinstance(entry, kinds)]


def told(run) -> list[tuple[str, str, float]]:
    """What the journal tells of instances: what, of which, when in whole seconds."""
    kinds = of(run, InstanceStarted, InstanceCrashed, InstanceOut, InstanceIn)
    return [(type(each).__name__.removeprefix("Instance"), each.instance, round(each.at)) for each in kinds]


def test_without_a_deployment_nothing_is_told_of_instances():
    run = rehearse(story())
    assert told(run) == []
    assert run.verdict.status is Status.PASSED


@BOTH_DOORS
def test_on_a_calm_day_all_instances_share_the_turns(door):
    run = rehearse(story("{instances: 3}"), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.accounting.answered == run.verdict.accounting.arrivals > 200
    assert told(run) == [("Started", f"home-{number}", 0) for number in (1, 2, 3)]
    ids = [turn.turn_id for turn in of(run, TurnFinished)]
    assert len(set(ids)) == len(ids), "each draws its ids from a stream of its own"


@BOTH_DOORS
def test_who_crashes_loses_its_turns_and_nothing_that_was_acknowledged(door):
    run = rehearse(story("{instances: 3}", "instance_crash: {at: 15s, for: 10s, instance: home-2}"), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert [each for each in told(run) if each[2]] == [
        ("Crashed", "home-2", 15),
        ("Out", "home-2", 17),
        ("Started", "home-2", 25),
        ("In", "home-2", 27),
    ]
    (crash,) = of(run, InstanceCrashed)
    lost = [each.correlation_id for each in of(run, ClientFinished) if each.error]
    assert sorted(lost) == sorted(crash.turns)
    assert lost
    assert run.verdict.failures == {"connection-lost": len(lost)}
    assert all(each.at == 15.0 for each in of(run, ClientFinished) if each.error), "they are told at once"
    finished = [turn.correlation_id for turn in of(run, TurnFinished)]
    assert not set(lost) & set(finished), "a turn that died tells nothing, not even that it was cancelled"
    dropped = [each for each in of(run, ProviderCallEnded) if each.outcome == "dropped"]
    assert dropped
    assert {each.at for each in dropped} == {15.0}, "the provider learns of it as of a broken connection"
    assert len(of(run, ProviderCallStarted)) == len(of(run, ProviderCallEnded))


def test_who_waits_for_a_machine_that_is_gone_hears_nothing():
    scenario = story("{instances: 3}", "instance_crash: {at: 15s, for: 10s, instance: home-2, connections: hang}")
    run = rehearse(replace(scenario, workload=replace(scenario.workload, patience=Constant(9.0))))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert set(run.verdict.failures) == {"client-timeout"}
    assert all(each.seconds == pytest.approx(9, abs=1e-3) for each in of(run, ClientFinished) if each.error)


def test_a_single_instance_that_crashes_refuses_everybody_until_it_is_back():
    run = rehearse(story("", "instance_crash: {at: 15s, for: 10s, instance: home-1}"))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert told(run) == [("Started", "home-1", 0), ("Crashed", "home-1", 15), ("Started", "home-1", 25)]
    assert set(run.verdict.failures) == {"connection-lost", "connection-refused"}
    refused = [each for each in of(run, ClientFinished) if each.error == "connection-refused"]
    assert all(15 <= each.at < 25 and each.seconds == 0 for each in refused)
    assert run.verdict.faults[0].touched == sum(run.verdict.failures.values())
    assert any(each.at > 25.5 and not each.error for each in of(run, ClientFinished))


def test_two_crashes_of_one_instance_that_overlap_end_with_the_later():
    faults = [f"instance_crash: {{at: {at}s, for: 10s, instance: home-1}}" for at in (10, 15)]
    run = rehearse(story("", *faults))
    assert told(run)[1:] == [("Crashed", "home-1", 10), ("Started", "home-1", 25)]


def test_a_restarted_instance_has_empty_memory():
    """Its breaker was open, its level was not NORMAL; neither is known any more, and the fleet's are as they begin."""
    failing = "provider_failing: {at: 5s, for: 30s, rate: 100%}"
    run = rehearse(story("", failing, "instance_crash: {at: 20s, for: 1s, instance: home-1}"))
    before = [each for each in of(run, InstanceBreakerChanged) if each.at < 20]
    after = [each for each in of(run, InstanceBreakerChanged) if each.at > 21]
    assert (before[0].before, before[0].after) == (after[0].before, after[0].after) == ("CLOSED", "OPEN")
    assert of(run, InstanceLevelChanged)[0].before == "NORMAL"
    assert next(each.before for each in of(run, InstanceLevelChanged) if each.at > 21) == "NORMAL"
    assert not of(run, BreakerChanged, LevelChanged)
    assert run.verdict.status is Status.PASSED, run.verdict


@BOTH_DOORS
def test_of_two_workers_one_crashes_and_the_other_goes_on(door):
    run = rehearse(story("{workers: 2}", "worker_crash: {at: 15s, for: 10s, instance: home-1, worker: 2}"), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert told(run) == [
        ("Started", "home-1/1", 0),
        ("Started", "home-1/2", 0),
        ("Crashed", "home-1/2", 15),
        ("Started", "home-1/2", 25),
    ]
    assert set(run.verdict.failures) == {"connection-lost"}


def test_instances_do_not_share_breakers():
    """One that is cut off opens its own breaker of the memory store; the others know nothing of it."""
    partition = "region_partition: {at: 10s, for: 20s, between: [home, away], operations: refuse}"
    run = rehearse(story("{regions: [home, away], balancer: {probes: none}}", partition))
    opened = {each.instance for each in of(run, InstanceBreakerChanged) if each.after == "OPEN"}
    assert opened == {"away-1"}
    assert {each.instance for each in of(run, InstanceLevelChanged)} == {"away-1"}


class TestRegions:
    PARTITION = "region_partition: {at: 10s, for: 15s, between: [home, away]}"

    def test_the_stores_are_farther_from_the_second_region(self):
        run = rehearse(story("{regions: [home, away], distance: 100ms}"))
        assert run.verdict.status is Status.PASSED, run.verdict
        near = rehearse(story("{regions: [home, away], distance: 0}"))
        slower = [
            far.seconds - close.seconds
            for far, close in zip(of(run, TurnFinished), of(near, TurnFinished), strict=True)
        ]
        assert sum(each > 0.2 for each in slower) > 0.2 * len(slower)

    @pytest.mark.parametrize("operations", ["hang", "refuse"])
    def test_a_region_that_is_cut_off_is_left_out_and_its_clients_are_sent_on(self, operations):
        deployment = "{instances: 2, regions: [home, away], balancer: {every: 1s, patience: 500ms}}"
        run = rehearse(story(deployment, self.PARTITION.replace("away]", f"away], operations: {operations}")))
        assert run.verdict.status is Status.PASSED, run.verdict
        changes = sorted((what, name) for what, name, _ in told(run) if what in ("Out", "In"))
        assert changes == [("In", "away-1"), ("In", "away-2"), ("Out", "away-1"), ("Out", "away-2")]
        assert all(11 <= each.at < 13 for each in of(run, InstanceOut)), "after two probes a second apart"
        assert all(26 <= each.at < 28 for each in of(run, InstanceIn))
        late = [each for each in of(run, ClientFinished) if 13 < each.at - each.seconds < 25]
        assert all(each.outcome == "answered" for each in late)

    def test_without_probes_its_clients_get_no_answers(self):
        deployment = "{instances: 2, regions: [home, away], balancer: {probes: none}}"
        run = rehearse(story(deployment, self.PARTITION))
        asked = [each for each in of(run, ClientFinished) if 11 < each.at - each.seconds < 24]
        assert sum(each.outcome != "answered" for each in asked) > 0.2 * len(asked)

    def test_a_region_that_dies_is_left_to_the_other(self):
        deployment = "{instances: 2, regions: [home, away], balancer: {every: 1s}}"
        run = rehearse(story(deployment, "instance_crash: {at: 15s, for: 10s, region: away}"))
        assert run.verdict.status is Status.PASSED, run.verdict
        assert set(run.verdict.failures) == {"connection-lost"}
        assert sum(each[0] == "Crashed" for each in told(run)) == 2


def test_whoever_watches_may_end_it_with_instances_dead():
    from sim.world import Aborted

    def watch(progress) -> None:
        if progress.virtual_seconds > 20:
            raise Aborted

    crash = "instance_crash: {at: 15s, for: 20s, instance: home-2}"
    run = rehearse(story("{instances: 2}", crash), watch=watch)
    assert run.verdict.status is Status.ABORTED
    assert run.verdict.left_behind == ()


@pytest.mark.parametrize(
    ("deployment", "fault", "path", "cure"),
    [
        ("{regions: [a, a]}", "", "regions", "name one region or two different ones"),
        ("{regions: [a, b, c]}", "", "regions", "name one region or two different ones"),
        ("{balancer: {every: 0}}", "", "every", "0 is no time"),
        ("{instances: 2}", "instance_crash: {at: 1s, for: 1s, instance: home-3}", "instance", "home-1, home-2"),
        ("{}", "instance_crash: {at: 1s, for: 1s}", "instance_crash", "either the instance or the region"),
        ("{}", "instance_crash: {at: 1s, for: 1s, region: away}", "region", "there is no region 'away'"),
        ("{}", "worker_crash: {at: 1s, for: 1s, instance: home-1, worker: 2}", "worker", "an instance has 1"),
        ("{}", "region_partition: {at: 1s, for: 1s, between: [home, away]}", "between", "there is no region 'away'"),
        ("{}", "region_partition: {at: 1s, for: 1s, between: [home]}", "between", "name two regions"),
        ("{}", "slots_failover: {at: 1s, for: 1s, shards: 3, shard: 4}", "shard", "there are 3 shards"),
    ],
)
def test_what_names_what_there_is_not_is_refused_with_its_cure(deployment, fault, path, cure):
    with pytest.raises(Unreadable) as refusal:
        story(deployment, *([fault] if fault else []))
    problem = refusal.value.problems[0]
    assert path in problem.path
    assert cure in problem.message


PROGRAM = """
import sys
from pathlib import Path
from sim.scenario import load
from sim.world import rehearse
print(rehearse(load(Path(sys.argv[1])), seed=5).journal.digest)
"""


def test_crashes_are_as_deterministic_as_the_rest(tmp_path):
    """In another process with another hash seed, with everything dying at some time."""
    faults = (
        "instance_crash: {at: 4s, for: 3s, instance: home-2}",
        "worker_crash: {at: 5s, for: 3s, instance: home-1, worker: 1}",
        "store_crash: {at: 8s, for: 1s, store: sessions, loses: 1s}",
        "region_partition: {at: 10s, for: 3s, between: [home, away]}",
        "instance_crash: {at: 14s, for: 3s, region: away, connections: hang}",
    )
    deployment = "  deployment: {instances: 2, workers: 2, regions: [home, away]}\n"
    file = tmp_path / "story.yaml"
    file.write_text(STORY.replace("40s", "20s") + deployment + f"faults: [{', '.join(faults)}]\n")
    here = rehearse(load(file), seed=5)
    assert len(of(here, InstanceCrashed)) == 7
    elsewhere = said(PROGRAM, file, hash_seed="1")
    assert elsewhere.split() == [here.journal.digest]
