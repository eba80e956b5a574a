"""A world whose orchestra is on its real adapters, with a simulated network between them and the models."""

from collections import Counter
from pathlib import Path

import pytest

from sim.forms import Unreadable
from sim.journal import ClientFinished, ProviderCallEnded
from sim.scenario import parse, write
from sim.world import rehearse
from tests.sim.elsewhere import said

STORY = """
name: wired
duration: 13s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world:
  wire: true
  provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
expectations: [{always: accounted}, {always: durable}, {always: no_defects}]
"""
FROM_S, TO_S = 4.0, 8.0


def lived(fault="", *, story=STORY, **options):
    """Live through the story, which must hold; return the run."""
    run = rehearse(parse(story + (f"faults: [{{{fault}}}]\n" if fault else "")), **options)
    assert run.verdict.passed, run.verdict
    assert run.verdict.left_behind == ()
    return run


def ended(run, begin, end):
    """Return how turns ended from `begin` to `end`, and how long the slowest of them took."""
    turns = [each for each in run.journal if isinstance(each, ClientFinished) and begin <= each.at < end]
    return Counter(each.error or each.outcome for each in turns), max((each.seconds for each in turns), default=0.0)


@pytest.fixture(scope="module")
def calm():
    return lived()


class TestParity:
    def test_a_calm_day_is_that_of_the_modelled_ports(self, calm):
        plain = lived(story=STORY.replace("wire: true", "wire: false"))
        wired, modelled = (
            {each.call: each.seconds for each in run.journal if isinstance(each, ProviderCallEnded)}
            for run in (calm, plain)
        )
        assert calm.verdict.accounting == plain.verdict.accounting
        assert calm.verdict.accounting.answered == calm.verdict.accounting.arrivals > 40
        assert len(wired) == len(modelled)
        assert sum(wired.values()) == pytest.approx(sum(modelled.values()), rel=0.01)
        (turns, _), (plain_turns, _) = ([each.stay_seconds for each in run.verdict.balances] for run in (calm, plain))
        assert turns == pytest.approx(plain_turns, rel=0.02)

    @pytest.mark.parametrize("fault", ["provider_blackout: {how: refuses, ", "provider_midstream: {rate: 100%, "])
    def test_a_providers_fault_does_to_the_real_client_what_it_does_to_the_modelled_port(self, fault):
        fault += "at: 4s, for: 4s}"
        wired, plain = (lived(fault, story=story) for story in (STORY, STORY.replace("wire: true", "wire: false")))
        assert set(ended(wired, FROM_S, TO_S)[0]) >= {"provider-failed", "apology"}
        for run in (wired, plain):
            assert run.verdict.faults[0].touched >= 3
        assert wired.verdict.accounting.answered == pytest.approx(plain.verdict.accounting.answered, abs=3)
        assert wired.verdict.accounting.failed == pytest.approx(plain.verdict.accounting.failed, abs=2)

    @pytest.mark.parametrize(("door", "mode"), [("orchestrator", "adversarial"), ("service", "faithful")])
    def test_one_seed_gives_one_journal(self, door, mode):
        story = STORY.replace("13s", "2s")
        assert len({lived(story=story, seed=7, door=door, mode=mode).journal.digest for _ in range(2)}) == 1


class TestLinks:
    def test_without_a_way_to_redis_turns_fail_by_the_clients_own_timeout_and_recover(self):
        run = lived("link_partition: {at: 4s, for: 7s, to: redis}", story=STORY.replace("13s", "16s"))
        during, slowest = ended(run, 4, 11)
        assert during["store-unavailable"] >= 5
        assert 2 < slowest < 5  # redis-py waits 2 s, and is not asked for ever
        assert set(ended(run, 14, 99)[0]) == {"answered"}

    def test_a_redis_that_resets_fails_turns_at_once(self):
        run = lived("link_reset: {at: 4s, for: 4s, to: redis}")
        during, slowest = ended(run, FROM_S, TO_S)
        assert during["store-unavailable"] >= 5
        assert slowest < 1
        assert set(ended(run, TO_S + 1, 99)[0]) == {"answered"}

    def test_a_slow_way_makes_turns_slower_and_fails_none(self, calm):
        run = lived("link_slow: {at: 4s, for: 4s, to: redis, latency: 50ms}")
        assert run.verdict.accounting == calm.verdict.accounting
        slow, usual = (
            {each.arrival: each.seconds for each in each_run.journal if isinstance(each, ClientFinished)}
            for each_run in (run, calm)
        )
        slower = [round(slow[turn] - usual[turn], 1) for turn in slow if slow[turn] - usual[turn] > 0.05]
        assert len(slower) > 10
        assert {0.1, 0.2} & set(slower)  # a round trip to read the session, one to save it

    def test_an_answer_waits_for_tcp_where_the_way_to_its_provider_is_cut(self):
        run = lived("link_partition: {at: 4s, for: 4s, to: provider}")
        assert ended(run, FROM_S + 0.5, TO_S) == (Counter(), 0.0)
        after, slowest = ended(run, TO_S, 99)
        assert set(after) == {"answered"}
        assert 4 < slowest < 10  # no deadline is over: the connection comes back, late by its retransmissions

    def test_a_reset_provider_opens_the_breaker(self):
        run = lived("link_reset: {at: 4s, for: 4s, to: provider}")
        during, slowest = ended(run, FROM_S, TO_S)
        assert during["provider-failed"] >= 1
        assert during["apology"] >= 5
        assert slowest < 2


class TestScenario:
    def test_it_is_written_as_it_was_read(self):
        scenario = parse(STORY + "faults: [{link_slow: {at: 4s, for: 4s, to: redis, latency: 50ms}}]\n")
        assert parse(write(scenario)) == scenario
        assert scenario.world.wire

    @pytest.mark.parametrize(
        ("world", "fault", "says"),
        [
            ("wire: false", "link_reset: {at: 1s, for: 1s, to: redis}", "there is no network: write `wire: true`"),
            ("wire: true", "link_reset: {at: 1s, for: 1s, to: alternate}", r"to: there is no alternate"),
            ("wire: true", "link_reset: {at: 1s, for: 1s, to: moon}", "moon"),
            ("wire: true", "link_slow: {at: 1s, for: 0s, to: redis, latency: 1s}", "for"),
            ("wire: true", "store_down: {at: 1s, for: 1s, store: sessions}", "use `link_reset` with `to: redis`"),
            ("wire: true", "store_crash: {at: 1s, for: 1s, store: sessions}", r"world.wire: .* have none: remove it"),
        ],
    )
    def test_what_cannot_be_is_refused(self, world, fault, says):
        with pytest.raises(Unreadable, match=says):
            parse(STORY.replace("wire: true", world) + f"faults: [{{{fault}}}]\n")


@pytest.mark.nightly
def test_one_seed_gives_one_journal_in_every_process(tmp_path):
    path = Path(tmp_path) / "story.yaml"
    path.write_text(STORY + "faults: [{link_partition: {at: 4s, for: 4s, to: redis}}]\n", encoding="utf-8")
    told = "from pathlib import Path; from sim.scenario import load; from sim.world import rehearse; import sys; "
    told += "print(rehearse(load(Path(sys.argv[1])), seed=5).journal.digest)"
    digests = [said(told, path, hash_seed=hash_seed) for hash_seed in ("1", "2")]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == 64
