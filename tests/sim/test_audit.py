"""Long worlds stay small, and whatever was lost or stored twice is found all the same."""

import asyncio

import pytest

from orchestra.adapters.inprocess import InProcessConversations, InProcessSessions
from orchestra.model import Memory, Turn
from sim.audit import HORIZON_S
from sim.clock import SimClock
from sim.loop import SimEnvironment
from sim.scenario import parse
from sim.sessions import ClientSessions
from sim.stores import OWNER_MEMORIES_MAX, RecentMemories
from sim.verdict import Status
from sim.workload import Arrival
from sim.world import rehearse

LONG = parse(
    """
name: long
duration: 30min
workload: {open_loop: {rate: 0.4/s, users: 10, turns_per_session: 3, generated_tokens: 20}}
expectations: [{always: durable}, {always: accounted}]
"""
)


def arrival(session: str, user: str | None = "u") -> Arrival:
    return Arrival(0.0, 1, session, user, "m", 1, 1)


@pytest.fixture
def stores(monkeypatch):
    """Yield the conversation stores of the worlds of a test."""
    made = []
    begin = InProcessConversations.__init__

    def begun(self) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(InProcessConversations, "__init__", begun)
    return made


def test_a_long_world_keeps_the_sessions_of_its_last_minutes_and_has_audited_all(stores):
    run = rehearse(LONG)
    audited = run.evidence.audited
    assert run.verdict.status is Status.PASSED
    assert audited.acknowledged == run.verdict.accounting.answered > 600
    kept = sum(len(rows) for rows in stores[0]._sessions.values())
    assert kept == len(stores[0]._turns)
    assert 0 < kept < (HORIZON_S + 200) * 0.4 + 3 * 10


@pytest.mark.parametrize("planted", ["lost", "twice", "lost late"])
def test_a_turn_lost_or_stored_twice_is_found_though_its_session_was_forgotten(monkeypatch, planted):
    append = InProcessConversations.append
    count = 0

    async def appended(self, turn: Turn, owner: str) -> Turn:
        nonlocal count
        count += 1
        stored = await append(self, turn, owner)
        if count == (650 if planted == "lost late" else 50):
            rows = self._sessions[turn.session_id]
            if planted == "twice":
                rows.append(rows[-1])
            else:
                rows.pop()
        return stored

    monkeypatch.setattr(InProcessConversations, "append", appended)
    monkeypatch.setattr(InProcessConversations, "forget", lambda self, session_id: self._sessions.pop(session_id, None))
    run = rehearse(LONG)
    audited = run.evidence.audited
    assert (audited.missing, audited.duplicated) == ((0, 1) if planted == "twice" else (1, 0))
    assert run.verdict.status is Status.FAILED


def test_a_session_is_past_once_its_user_has_another_and_no_turn_of_it_is_under_way():
    sessions = ClientSessions()
    sessions.begin(arrival("a"), 0.0)
    sessions.named("a", "id-a")
    sessions.begin(arrival("b"), 1.0)
    assert sessions.past(1.0 + HORIZON_S) == []
    sessions.finish(arrival("a"), 5.0)
    sessions.finish(arrival("b"), 6.0)
    assert sessions.find("a") == "id-a"
    assert sessions.past(5.0 + HORIZON_S - 0.1) == []
    assert sessions.past(5.0 + HORIZON_S) == ["id-a"]
    assert sessions.find("a") is None
    assert sessions.past(1e9) == []  # b is its user's last, and may go on


def test_a_session_of_nobody_is_past_after_its_turn_and_one_that_never_began_is_none():
    sessions = ClientSessions()
    for name in ("a", "b"):
        sessions.begin(arrival(name, None), 0.0)
        sessions.finish(arrival(name, None), 2.0)
    sessions.named("b", "id-b")
    assert sessions.past(2.0 + HORIZON_S) == ["id-b"]


def test_the_newest_memories_of_an_owner_are_kept():
    async def main() -> list[str]:
        memories = RecentMemories()
        for number in range(OWNER_MEMORIES_MAX + 5):
            await memories.remember(Memory(f"m{number}", "ada", f"{number}", (1.0, *[0.0] * 255), 0.0))
        return [each.text for each in await memories.recall("ada", (1.0, *[0.0] * 255), limit=100)]

    assert sorted(map(int, asyncio.run(main()))) == list(range(5, OWNER_MEMORIES_MAX + 5))


def test_what_a_store_forgets_never_was():
    async def main() -> None:
        conversations, sessions = InProcessConversations(), InProcessSessions(SimClock(SimEnvironment().loop))
        turn = Turn("t", "s", 1, "c", "m", "r", "e", "m", 0.0)
        await conversations.append(turn, "user:ada")
        conversations.forget("s")
        sessions.forget("s")
        conversations.forget("never")
        assert await conversations.find("t") is None
        assert await conversations.head("s") is None
        assert await conversations.append(turn, "user:ada") == turn

    asyncio.run(main())
