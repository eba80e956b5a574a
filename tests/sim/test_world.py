"""Whole rehearsals: the real orchestrator in a small world, by both doors."""

import asyncio

import pytest
from msgspec.structs import replace

from orchestra.adapters.inprocess import InProcessConversations, InProcessSessions
from orchestra.adapters.system import SystemClock
from orchestra.events import BreakerChanged, TurnFinished
from orchestra.model import Session, Turn
from sim.audit import Auditor
from sim.compare import what_if
from sim.distributions import Constant
from sim.journal import Audited, ClientArrived, ClientFinished, FaultEnded, FaultStarted, RunFinished, RunStarted
from sim.scenario import load, replaying
from sim.verdict import Status
from sim.workload import Replay, Row, read_trace
from sim.world import Aborted, rehearse

PROPERTIES = "expectations: [{always: accounted}, {always: durable}, {always: no_defects}]\n"


def of(run, kind):
    return [entry for entry in run.journal if isinstance(entry, kind)]


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_on_a_calm_day_every_turn_is_answered_and_durable(small, door):
    run = rehearse(small(PROPERTIES), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    sums = run.verdict.accounting
    assert sums.answered == sums.arrivals > 100
    assert (sums.failed, sums.shed, run.verdict.failures, run.verdict.left_behind) == (0, 0, {}, ())
    assert of(run, Audited)[0].acknowledged == sums.answered
    assert len(of(run, TurnFinished)) == sums.answered
    assert run.virtual_seconds >= 40
    assert run.wall_seconds > 0


def test_both_doors_lead_to_the_same_orchestra(small):
    """By either door the same people ask the same, at the same times, and get their answers just as fast."""
    by_door = [rehearse(small(), door=door) for door in ("orchestrator", "service")]
    first, second = (
        [(each.arrival, each.outcome, round(each.seconds, 4)) for each in of(run, ClientFinished)] for run in by_door
    )
    assert first == second


def test_sessions_go_on_for_several_turns(small):
    run = rehearse(small())
    turns: dict[str, int] = {}
    for turn in of(run, TurnFinished):
        turns[turn.session_id] = turns.get(turn.session_id, 0) + 1
    assert max(turns.values()) == 3
    assert len(turns) < len(of(run, TurnFinished)) / 2


def test_latency_runs_from_the_intended_arrival(small):
    run = rehearse(small("  stores: {latency: 20ms}\n"))
    arrived = {each.arrival: each.at for each in of(run, ClientArrived)}
    for each in of(run, ClientFinished):
        assert each.seconds == pytest.approx(each.at - arrived[each.arrival], abs=2e-6)


@pytest.mark.parametrize(
    ("store", "kind", "degraded"),
    [("sessions", "store-unavailable", ()), ("conversations", "store-unavailable", ()), ("memories", "", ("memory",))],
)
def test_a_store_that_is_down_fails_turns_or_degrades_them_and_comes_back(small, store, kind, degraded):
    run = rehearse(small(f"faults: [{{store_down: {{at: 10s, for: 10s, store: {store}}}}}]\n{PROPERTIES}"))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.faults[0].touched >= 5  # as many as open the breaker of the memory, which spares it more
    arrived = {each.correlation_id: each.at for each in of(run, ClientArrived)}
    during = [turn for turn in of(run, TurnFinished) if 10 <= arrived[turn.correlation_id] < 19]
    assert {turn.error for turn in during if turn.error} == ({kind} if kind else set())
    assert any(turn.degraded == degraded and turn.error == kind for turn in during)
    unsaved = [turn for turn in during if turn.degraded == ("session",)]
    assert bool(unsaved) == (store == "sessions")
    assert all(turn.outcome == "answered" for turn in unsaved)
    late = [turn for turn in of(run, TurnFinished) if arrived[turn.correlation_id] > 37]
    assert late
    assert all(turn.outcome == "answered" for turn in late)


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_a_failing_provider_opens_the_breaker_and_turns_are_shed_then(small, door):
    run = rehearse(small("faults: [{provider_failing: {at: 10s, for: 10s, rate: 100%}}]\n" + PROPERTIES), door=door)
    assert run.verdict.status is Status.PASSED, run.verdict
    assert {change.breaker for change in of(run, BreakerChanged)} == {"unified"}
    assert of(run, BreakerChanged)[0].after == "OPEN"
    assert set(run.verdict.failures) == {"provider-failed", "apology"}
    assert {each.error for each in of(run, ClientFinished) if each.outcome == "shed"} == {"apology"}


def test_a_slow_provider_is_slow_only_meanwhile(small):
    run = rehearse(
        small(
            "faults: [{provider_slow: {at: 10s, for: 10s, factor: 5}}]\n"
            'expectations: [{before: fault, p50: "< 1s"}, {during: fault, p50: "> 1s"}, '
            '{after: fault, within: 9s, p50: "< 1s"}]'
        )
    )
    assert run.verdict.status is Status.PASSED, run.verdict.results


def test_a_client_without_patience_goes_away_and_leaves_nothing_behind(small):
    scenario = small(PROPERTIES)
    run = rehearse(replace(scenario, workload=replace(scenario.workload, patience=Constant(0.35))))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.failures["client-timeout"] > 10
    assert {turn.error for turn in of(run, TurnFinished)} == {"", "cancelled"}


def test_a_fault_that_touched_nothing_makes_the_run_inconclusive(small):
    run = rehearse(small("faults: [{provider_failing: {at: 1s, for: 2s, rate: 0.001%}}]\n" + PROPERTIES))
    assert run.verdict.status is Status.INCONCLUSIVE
    assert run.verdict.faults[0].touched == 0


def test_an_unhealthy_baseline_is_told_as_such(small):
    text = (
        "faults: [{provider_slow: {at: 20s, for: 5s, factor: 2}}]\n"
        "settings: {guards: {unified: {attempt: {first_seconds_max: 0.05}}}}\n"
        'expectations: [{before: fault, success_rate: ">= 99%"}]\n'
    )
    assert rehearse(small(text)).verdict.status is Status.BASELINE_UNHEALTHY


def test_a_fault_does_not_reshuffle_the_arrivals(small):
    calm = rehearse(small())
    struck = rehearse(small("faults: [{store_down: {at: 5s, for: 20s, store: sessions}}]\n"))
    assert of(calm, ClientArrived) == of(struck, ClientArrived)
    assert of(calm, ClientFinished) != of(struck, ClientFinished)


def test_the_journal_tells_the_run_from_its_start_to_its_end(small):
    run = rehearse(
        small("faults: [{store_down: {at: 5s, for: 20s, store: memories}}]\nsettings: {memory_recalled_max: 1}")
    )
    first, *_ = run.journal
    assert first == RunStarted(0.0, "small", 0, "orchestrator", 40.0, {"memory_recalled_max": 1})
    assert [entry.at for entry in of(run, FaultStarted) + of(run, FaultEnded)] == [5.0, 25.0]
    sums = run.verdict.accounting
    (end,) = of(run, RunFinished)
    assert (end.arrivals, end.answered, end.failed, end.shed) == (sums.arrivals, sums.answered, sums.failed, sums.shed)


@pytest.mark.parametrize("door", ["orchestrator", "service"])
def test_whoever_watches_may_end_the_run_and_keeps_what_there_is(small, door):
    seen = []

    def watch(progress) -> None:
        seen.append(progress)
        if progress.virtual_seconds > 20:
            raise Aborted

    run = rehearse(small(PROPERTIES), door=door, watch=watch)
    assert run.verdict.status is Status.ABORTED
    assert 20 < run.virtual_seconds < 21
    assert len(run.journal) > 100
    assert not of(run, RunFinished)
    assert not [turn for turn in of(run, TurnFinished) if turn.error == "cancelled"]
    assert [each.virtual_seconds for each in seen] == sorted(each.virtual_seconds for each in seen)


def test_what_is_left_behind_is_found_and_named(small):
    made = []

    def watch(progress) -> None:
        if not made:
            made.append(asyncio.get_running_loop().create_task(asyncio.sleep(1e9), name="forgotten"))

    run = rehearse(small(PROPERTIES), watch=watch)
    assert run.verdict.status is Status.CLEANUP_FAILED
    assert run.verdict.left_behind == ("task forgotten",)


def test_an_audit_finds_turns_that_were_acknowledged_and_are_not_stored():
    """Of two stored turns one was acknowledged; of four acknowledged, one is nowhere, one beyond its session's record,
    and one's session has none, which is made anew from where the turn is."""

    async def main() -> Audited:
        conversations = InProcessConversations()
        for number, turn_id in enumerate(("t1", "unanswered", "t3"), 1):
            await conversations.append(Turn(turn_id, "s", number, "c", "m", "r", "e", "m", 0.0), "user:ada")
        await conversations.append(Turn("u1", "unsaved", 1, "c", "m", "r", "e", "m", 0.0), "user:ada")
        sessions = InProcessSessions(SystemClock())
        await sessions.save(Session("s", "user:ada", version=2, created_at=0.0, updated_at=0.0), expected=None)
        auditor = Auditor(conversations, sessions)
        await auditor.check("s", ["t1", "t2", "t3"])
        await auditor.check("unsaved", ["u1"])
        return auditor.found(5.0)

    assert asyncio.run(main()) == Audited(5.0, 4, 2, 0)


def test_a_defect_of_whoever_watches_is_not_hidden(small):
    def watch(progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        rehearse(small(), watch=watch)


def test_a_replayed_trace_costs_what_its_tokens_say(small):
    rows = tuple(Row(float(at), 1000 * at, 100) for at in range(1, 30))
    run = rehearse(replace(small(), workload=Replay("t", rows)))
    turns = {turn.prompt_tokens: turn for turn in of(run, TurnFinished)}
    assert sorted(turns) == [1000 * at for at in range(1, 30)]
    assert all(turn.completion_tokens == 100 for turn in turns.values())
    assert turns[29_000].seconds > turns[1_000].seconds + 1


def test_the_brownout_passes(pytestconfig):
    run = rehearse(load(pytestconfig.rootpath / "chaos" / "scenarios" / "provider_brownout.yaml"))
    assert run.verdict.status is Status.PASSED, run.verdict
    assert run.verdict.accounting.arrivals > 4000


def test_without_its_breaker_the_brownout_fails(pytestconfig):
    scenario = load(pytestconfig.rootpath / "chaos" / "scenarios" / "provider_brownout.yaml")
    never = {"failures_max": 1_000_000, "window": "count", "window_calls": 1_000_000, "calls_min": 1_000_000}
    verdict = rehearse(what_if(scenario, guards={"unified": {"breaker": never}})).verdict
    assert verdict.status is Status.FAILED
    broken = {result.text.partition(": ")[2].split()[0] for result in verdict.results if not result.held}
    assert broken >= {"breaker", "failure", "p95"}, "nobody judges the failures, which health goes by, either"


@pytest.mark.parametrize("turns", [2_000, pytest.param(19_366, marks=pytest.mark.nightly)])
def test_a_recorded_hour_replays_with_every_turn_accounted_for(pytestconfig, turns):
    """Its first ten minutes or so; at night the whole of it."""
    path = pytestconfig.rootpath.parent / "shared" / "data" / "azure_llm_2023_conv.csv"
    if not path.exists():
        pytest.skip("the Azure LLM trace is not here: the README says where to download it")
    trace = read_trace(path)
    run = rehearse(replaying(replace(trace, rows=trace.rows[:turns])))
    assert run.verdict.status is Status.PASSED, run.verdict
    sums = run.verdict.accounting
    assert sums.answered + sums.failed + sums.shed == sums.arrivals == turns
