"""Kinds of clients in whole worlds: closed loops, several populations, answers in pieces, budgets, who goes away."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from sim.journal import ClientArrived, ClientFinished, ClientRetried, ProviderCallEnded
from sim.measures import measured
from sim.scenario import parse
from sim.verdict import Status
from sim.workload import Retries
from sim.world import rehearse

WORLD = """
name: kinds
duration: 40s
world:
  provider: {capacity: 8, first_token: {exponential: {mean: 100ms}}, per_prompt_token: 0.1ms, per_token: 5ms}
expectations: [{always: accounted}, {always: durable}, {always: no_defects}]
"""
TOKENS = "generated_tokens: 50, context_tokens: 100"
KINDS = {
    "poisson": f"{{open_loop: {{rate: 3/s, users: 20, {TOKENS}}}}}",
    "bursts": f"{{open_loop: {{arrivals: {{on_off: {{on: 8/s, on_for: 5s, off_for: 10s}}}}, {TOKENS}}}}}",
    "states": "{open_loop: {arrivals: {modulated: {states: [{rate: 1/s, for: 9s}, {for: 5s}, {rate: 9/s, for: 5s}]}}, "
    + TOKENS
    + "}}",
    "day": f"{{open_loop: {{arrivals: {{daily: {{mean: 3/s, swing: 90%, period: 40s, peak_at: 10s}}}}, {TOKENS}}}}}",
    "hours": f"{{open_loop: {{arrivals: {{profile: {{rates: [1/s, 6/s], each: 10s}}}}, {TOKENS}}}}}",
    "closed": f"{{closed_loop: {{users: 12, think: {{exponential: {{mean: 3s}}}}, start: 5s, {TOKENS}}}}}",
    "sockets": f"{{websockets: {{connections: 10, rate: 3/s, start: 5s, ping_every: 10s, {TOKENS}}}}}",
    "several": f"[{{name: public, open_loop: {{rate: 2/s, {TOKENS}}}}}, "
    f"{{name: staff, closed_loop: {{users: 4, think: 2s, {TOKENS}}}}}, "
    f"{{name: apps, websockets: {{connections: 5, rate: 1/s, start: 5s, {TOKENS}}}}}]",
}


def world(workload, more=""):
    return parse(f"{WORLD}workload: {workload}\n{more}")


def of(run, kind):
    return [entry for entry in run.journal if isinstance(entry, kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_clients_is_served_and_lives_the_same_again(kind):
    story = replace(world(KINDS[kind], "door: service\n" if "websockets" in KINDS[kind] else ""), duration=20.0)
    run = rehearse(story)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.accounting.answered == run.verdict.accounting.arrivals > 15
    times = [entry.at for entry in of(run, ClientArrived)]
    assert times == sorted(times)
    assert {entry.population for entry in of(run, ClientArrived)} == (
        {"public", "staff", "apps"} if kind == "several" else {""}
    )
    assert rehearse(story).journal.digest == run.journal.digest


def test_a_single_population_is_not_named_in_the_journal():
    run = rehearse(world(KINDS["poisson"]))
    lines = b"".join(run.journal.lines())
    assert b"client_arrived" in lines
    assert b"population" not in lines
    assert b"first_token_seconds" not in b"".join(line for line in run.journal.lines() if b"client_finished" in line)


def test_a_user_of_a_closed_loop_waits_for_the_answer_and_thinks_before_the_next_turn():
    run = rehearse(world("{closed_loop: {users: 3, think: 2s, start: 3s, turns_per_session: 4, patience: 30s}}"))
    ended = {entry.arrival: entry for entry in of(run, ClientFinished)}
    by_user = {}
    for entry in of(run, ClientArrived):
        by_user.setdefault(entry.session.partition("/")[0], []).append(entry)
    assert len(by_user) == 3
    for number, turns in by_user.items():
        assert int(number[-1]) <= turns[0].at < int(number[-1]) + 1
        for turn, following in pairwise(turns):
            assert following.at == pytest.approx(ended[turn.arrival].at + 2.0, abs=1e-5)
    sessions = [entry.session for entry in by_user["user-0"]]
    assert sessions[:5] == ["user-0/0"] * 4 + ["user-0/1"]


def test_a_closed_loop_hides_a_stall_and_the_page_says_so():
    stall = "faults: [{provider_slow: {at: 10s, for: 20s, factor: 40}}]\n"
    waits = "patience: 100s, generated_tokens: 50, context_tokens: 100"
    opened = rehearse(world(f"{{open_loop: {{rate: 3/s, {waits}}}}}", stall))
    closed = rehearse(world(f"{{closed_loop: {{users: 9, think: 2600ms, start: 3s, {waits}}}}}", stall))

    def arrived(run, start, end):
        return sum(start <= entry.at < end for entry in of(run, ClientArrived))

    assert arrived(closed, 5, 10) == pytest.approx(arrived(opened, 5, 10), rel=0.5)
    assert arrived(closed, 12, 30) < arrived(opened, 12, 30) / 2
    assert measured(closed.journal)["p95"] < measured(opened.journal)["p95"]


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_who_asks_for_an_answer_in_pieces_tells_when_the_first_came(door):
    plain = world(f"{{open_loop: {{rate: 3/s, users: 20, {TOKENS}}}}}")
    streamed = replace(plain, workload=replace(plain.workload, stream=True))
    run = rehearse(streamed, door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    ended = of(run, ClientFinished)
    assert all(0 < entry.first_token_seconds < entry.seconds for entry in ended)
    first = sum(entry.first_token_seconds for entry in ended) / len(ended)
    assert first == pytest.approx(0.12, rel=0.3)  # of the provider: 100 ms, and 0.1 ms a token read
    assert measured(run.journal)["first_token_p50"] < 0.2
    assert [entry.at for entry in of(run, ClientArrived)] == [
        entry.at for entry in of(rehearse(plain, door=door), ClientArrived)
    ]


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_errors_of_streams_are_told_by_their_kind(door):
    outage = "faults: [{provider_failing: {at: 10s, for: 10s, rate: 100%}}]\n"
    settings = "settings: {guards: {unified: {fallbacks: [], retry: {attempts_max: 1}}}}\n"
    run = rehearse(world(f"{{open_loop: {{rate: 3/s, stream: true, {TOKENS}}}}}", outage + settings), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert set(run.verdict.failures) == {"provider-failed", "breaker-open"}


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_who_goes_away_takes_the_call_of_the_provider_along(door):
    story = world(f"{{open_loop: {{rate: 2/s, patience: {{exponential: {{mean: 300ms}}}}, {TOKENS}}}}}")
    run = rehearse(story, door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    gone = [entry for entry in of(run, ClientFinished) if entry.error == "client-timeout"]
    assert len(gone) > 20
    assert len({entry.seconds for entry in gone}) == len(gone)  # each when its own patience is over
    dropped = {round(entry.at, 4) for entry in of(run, ProviderCallEnded) if entry.outcome == "dropped"}
    assert len(dropped) > 20
    assert dropped <= {round(entry.at, 4) for entry in gone}


def test_a_budget_keeps_naive_clients_from_a_storm():
    outage = "faults: [{provider_failing: {at: 10s, for: 25s, rate: 100%}}]\n"
    settings = "settings: {guards: {unified: {fallbacks: [], retry: {attempts_max: 1}}}}\n"
    story = world(f"{{open_loop: {{rate: 4/s, {TOKENS}}}}}", outage + settings)
    counts = []
    for budget in (None, 0.1):
        retries = Retries(attempts=4, wait=0.5, budget=budget)
        run = rehearse(replace(story, workload=replace(story.workload, retries=retries)))
        assert run.verdict.status is Status.PASSED, run.verdict
        counts.append((len(of(run, ClientRetried)), len(of(run, ClientFinished))))
    (wild, _), (bounded, turns) = counts
    assert wild > 200
    assert bounded <= 10 + 0.1 * turns + 1


def test_each_population_has_chance_of_its_own():
    """One more population leaves the others as they were: common random numbers."""
    public = f"{{name: public, open_loop: {{rate: 2/s, {TOKENS}}}}}"
    alone = rehearse(world(f"[{public}]"))
    joined = rehearse(world(f"[{public}, {{name: staff, closed_loop: {{users: 4, think: 2s, {TOKENS}}}}}]"))
    assert [(entry.at, entry.session) for entry in of(alone, ClientArrived)] == [
        (entry.at, entry.session) for entry in of(joined, ClientArrived) if entry.population == "public"
    ]
    assert len({entry.arrival for entry in of(joined, ClientArrived)}) == len(of(joined, ClientArrived))


def test_a_scenario_says_at_which_door_clients_come_in_and_whoever_runs_it_may_say_another():
    story = world(KINDS["poisson"], "door: service\n")
    assert (rehearse(story).door, rehearse(story, door="orchestrator").door) == ("service", "orchestrator")
