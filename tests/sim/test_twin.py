"""A twin has what the records say, and comes near to them; percentiles are those of the calls."""

import pytest

from sim.calibrate import calibrate
from sim.forms import Unreadable
from sim.records import Call
from sim.scenario import parse
from sim.twin import percentiles, recorded, traced, twin
from sim.workload import Replay
from sim.world import rehearse

PRODUCTION = """
name: production
duration: 60s
workload: {open_loop: {rate: 5/s, users: 20, patience: 20s, generated_tokens: 50, context_tokens: 100}}
world:
  provider: {capacity: 32, first_token: {gamma: {shape: 2, scale: 200ms}}, per_token: 5ms}
"""
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02}.5,{100 + second},{10 + second}\n" for second in range(60)
)


def call(first, seconds, failed=False):
    return Call(0.0, first, seconds, 10, 10, failed)


@pytest.fixture(scope="module")
def production():
    return parse(PRODUCTION)


@pytest.fixture(scope="module")
def calls(production):
    return recorded(rehearse(production, seed=1).journal)


def test_a_twin_has_the_provider_and_the_rate_of_the_records_and_keeps_the_rest(production, calls):
    found = calibrate(calls)
    made = twin(production, found)
    assert made.name == "production, twin"
    assert made.world.provider == found.model
    assert made.world.stores == production.world.stores
    assert made.workload.rate == found.rate
    assert made.workload.patience == production.workload.patience
    assert made.workload.generated_tokens == found.generated_tokens.chosen.distribution


def test_a_twin_with_another_seed_comes_near_to_the_records(production, calls):
    lived = recorded(rehearse(twin(production, calibrate(calls)), seed=2).journal)
    frame = percentiles({"recorded": calls, "twin": lived})
    assert frame.apart.loc[["whole answer p50", "whole answer p90"]].abs().max() < 0.15


def test_a_trace_gives_the_arrivals_of_its_first_part_and_a_twin_keeps_them(production, calls, tmp_path):
    (tmp_path / "trace.csv").write_text(TRACE)
    story = traced(production, tmp_path / "trace.csv", 20.0)
    assert isinstance(story.workload, Replay)
    assert [row.at for row in story.workload.rows] == list(range(20))
    assert story.workload.patience == production.workload.patience
    assert twin(story, calibrate(calls)).workload == story.workload


def test_without_a_trace_a_story_stays_as_it_is(production, tmp_path):
    assert traced(production, tmp_path / "nothing.csv", 20.0) is production


def test_a_trace_that_ends_before_a_fault_is_refused(tmp_path):
    (tmp_path / "trace.csv").write_text(TRACE)
    broken = parse(PRODUCTION + "faults: [{provider_failing: {at: 30s, for: 10s, rate: 50%}}]\n")
    with pytest.raises(Unreadable, match="production with the trace"):
        traced(broken, tmp_path / "trace.csv", 20.0)


def test_percentiles_are_those_of_answered_calls():
    first = [call(0.1, 1.0), call(0.3, 3.0), call(9.0, 90.0, failed=True)]
    frame = percentiles({"recorded": first, "twin": [call(0.4, 1.0)]})
    assert frame.loc["first token p50", ["recorded", "twin", "apart"]].tolist() == pytest.approx([0.2, 0.4, 1.0])
    assert frame.loc["whole answer p50", "apart"] == pytest.approx(-0.5)
