"""A world with two providers: who falls back finds the second, and faults and prices tell them apart."""

import pytest

from sim.compare import what_if
from sim.forms import Unreadable
from sim.journal import ProviderCallEnded, ProviderCallStarted
from sim.scenario import parse
from sim.verdict import Status
from sim.world import rehearse

STORY = """
name: two providers
duration: 40s
workload: {open_loop: {rate: 4/s, users: 20, turns_per_session: 3, generated_tokens: 50, context_tokens: 100}}
world:
  provider: {capacity: 8, first_token: 100ms, per_token: 5ms, price: {prompt: 1, completion: 1}}
  alternate: {capacity: 8, first_token: 200ms, per_token: 5ms, price: {prompt: 10, completion: 10}}
faults:
  - provider_blackout: {at: 10s, for: 10s}
expectations:
  - {always: run, success_rate: ">= 99%"}
  - {always: accounted}
"""


def calls_of(run) -> dict[str, list[ProviderCallEnded]]:
    calls = {"main": [], "alternate": []}
    for each in run.journal:
        if isinstance(each, ProviderCallEnded):
            calls[each.provider].append(each)
    return calls


def test_while_the_first_is_away_the_second_answers_at_its_own_price():
    run = rehearse(parse(STORY))
    assert run.verdict.status is Status.PASSED
    calls = calls_of(run)
    during = [each for each in calls["alternate"] if each.outcome == "answered"]
    assert len(during) > 20
    assert min(each.at - each.seconds for each in during) >= 10  # and until the first one's breaker closes
    assert sum(each.outcome == "refused" for each in calls["main"]) == run.verdict.faults[0].touched > 0
    for name, price in (("main", 1.0), ("alternate", 10.0)):
        for each in calls[name]:
            assert each.cost == pytest.approx(price * (each.prompt_tokens + each.completion_tokens) / 1000, abs=1e-6)
    numbers = [each.call for each in run.journal if isinstance(each, ProviderCallStarted)]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))  # one sequence for both, so that each is accounted for


def test_without_the_second_the_blackout_is_felt():
    scenario = parse(STORY)
    run = rehearse(what_if(scenario, guards={"unified": {"fallbacks": []}}))
    assert run.verdict.status is Status.FAILED
    assert calls_of(run)["alternate"] == []


def test_a_fault_of_the_second_leaves_the_first_alone():
    text = STORY.replace("{at: 10s, for: 10s}", "{at: 10s, for: 10s}\n  - provider_slow: {at: 5s, for: 20s, factor: 3")
    run = rehearse(parse(text.replace("factor: 3", "factor: 3, provider: alternate}")))
    slow = run.verdict.faults[1]
    assert slow.what == "alternate 3x slower"
    assert slow.touched == sum(5 <= each.at - each.seconds < 25 for each in calls_of(run)["alternate"])
    assert max(each.seconds for each in calls_of(run)["main"]) < 0.5


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("at: 10s, for: 10s}", "at: 10s, for: 10s, provider: second}", "is unknown"),
        ("  alternate: {", "  nobody: {", "unknown key"),
        ("faults:", "settings: {guards: {unified: {fallbacks: [apology]}}}\nfaults:", "is never asked"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_cure(was, becomes, says):
    with pytest.raises(Unreadable, match=says):
        parse(STORY.replace(was, becomes))


def test_a_fault_of_a_second_provider_needs_one():
    text = "\n".join(line for line in STORY.splitlines() if "alternate:" not in line)
    with pytest.raises(Unreadable, match="there is no alternate: describe it"):
        parse(text.replace("at: 10s, for: 10s}", "at: 10s, for: 10s, provider: alternate}"))
