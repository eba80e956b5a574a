"""Two instances work on one session, and every call of a store is a place where anything may come between.

A call of a store waits at a gate until the machine lets it act, so Hypothesis decides how operations interleave, where
an instance dies, when Redis loses everything and how much time passes.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import settings, target
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from orchestra import limits
from orchestra.adapters.system import SystemEntropy
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.chat.trimming import counted, exchange_of, exchanges, size_of
from orchestra.engines.apology import Apology
from orchestra.errors import InvalidRequest, SessionExists, SessionUnknown, StaleSession
from orchestra.events import Event, StoreFinished
from orchestra.model import Message, Session, Turn
from sim.distributions import Constant
from sim.faults import Faults
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire

OPERATIONS_MAX = 4
DAY = limits.SESSION_TTL_SECONDS


class HandClock:
    """Wall time that the machine moves."""

    at = 1_000_000.0

    def now(self) -> float:
        return self.at


class Unhurried(SystemEntropy):
    """Whoever waits before trying again waits no time: here only the machine decides who comes first."""

    def random(self) -> float:
        return 0.0


class Gate(Wire):
    """A way to a store on which every call waits to be let through."""

    def __init__(self, waiting: list[tuple[asyncio.Task[Any] | None, asyncio.Future[None]]]) -> None:
        super().__init__("sessions", Constant(0.0), Random(0), Faults())
        self._waiting = waiting

    async def cross(self, key: str = "") -> None:
        passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((asyncio.current_task(), passed))
        await passed


class SessionMachine(RuleBasedStateMachine):
    """The model is what was acknowledged: turns, and notes in the profile's metadata."""

    @initialize(turns=st.integers(0, 4))
    def open_house(self, turns: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(limits, "SESSION_MESSAGES_MAX", 8)  # small, so that trimming is not rare
        self.loop = asyncio.new_event_loop()
        self.clock = HandClock()
        self.waiting: list[tuple[asyncio.Task[Any] | None, asyncio.Future[None]]] = []
        gate = Gate(self.waiting)
        self.sessions = ModelledSessions(self.clock, gate)
        self.conversations = ModelledConversations(gate)
        self.memories = ModelledMemories(gate)
        self.instances = [self._instance(), self._instance()]
        self.running: dict[asyncio.Task[None], Sessions] = {}
        self.dead: list[asyncio.Task[None]] = []
        self.turns: dict[str, int] = {}  # acknowledged: id and number
        self.notes: list[str] = []  # acknowledged
        self.deleting = self.deleted = False
        self.said = 0
        self.races_lost = 0
        for _ in range(turns):
            self.turn(0, "unified")
            self.let_all_through()

    # what clients do

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX)
    @rule(instance=st.integers(0, 1), engine=st.sampled_from(["unified", "unified", "unified", Apology.name]))
    def turn(self, instance: int, engine: str) -> None:
        self.said += 1
        self._start(self._turn, self.instances[instance], f"t{self.said}", engine)

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX and self.said)
    @rule(instance=st.integers(0, 1))
    def the_same_turn_again(self, instance: int) -> None:
        """A client that got no answer sends its message again, maybe to another instance."""
        self._start(self._turn, self.instances[instance], f"t{self.said}", "unified")

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX)
    @rule(instance=st.integers(0, 1))
    def note(self, instance: int) -> None:
        self.said += 1
        self._start(self._note, self.instances[instance], f"n{self.said}")

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX and self.turns)
    @rule(instance=st.integers(0, 1), number=st.integers(1, 8))
    def pin(self, instance: int, number: int) -> None:
        self._start(self._change, self.instances[instance], lambda profile: replace(profile, pinned=(number,)))

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX)
    @rule(instance=st.integers(0, 1))
    def connect(self, instance: int) -> None:
        self._start(self._connect, self.instances[instance])

    @precondition(lambda self: len(self.running) < OPERATIONS_MAX and len(self.turns) > 3)
    @rule(instance=st.integers(0, 1))
    def delete(self, instance: int) -> None:
        self._start(self._delete, self.instances[instance])

    # what the world does

    @precondition(lambda self: self.waiting)
    @rule(choices=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def let_some_through(self, choices: list[int]) -> None:
        for choice in choices:
            if self.waiting:
                self._pass(choice % len(self.waiting))

    @rule()
    def let_all_through(self) -> None:
        while self.waiting:
            self._pass(0)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0, 1))
    def an_instance_dies(self, choice: int) -> None:
        """A process is killed: what it was at never goes on, and no `finally` of it runs."""
        killed, self.instances[choice] = self.instances[choice], self._instance()
        gone = [task for task, sessions in self.running.items() if sessions is killed]
        self.waiting[:] = [(task, passed) for task, passed in self.waiting if task not in gone]
        for task in gone:
            del self.running[task]
        self.dead += gone

    @precondition(lambda self: not self.deleting)  # with the mark that keeps those out who still hold what is deleted
    @rule()
    def lose_the_session_store(self) -> None:
        self.sessions.store._records.clear()

    @precondition(lambda self: not self.running)  # which takes seconds
    @rule(hours=st.sampled_from([1, 12, 23, 25]))
    def time_passes(self, hours: int) -> None:
        self.clock.at += hours * 3600

    # what always holds

    @invariant()
    def nothing_acknowledged_is_lost_or_out_of_order(self) -> None:
        stored = self._stored()
        if self.deleted:
            assert stored == []
            return
        assert [each.number for each in stored] == list(range(1, len(stored) + 1))
        by_id = {each.id: each.number for each in stored}
        assert len(by_id) == len(stored), "no turn twice"
        assert self.turns.items() <= by_id.items() or self.deleting
        if not self.deleting:
            head = self._run(self.conversations.store.head("s"))
            assert set(self.notes) <= set(head.profile.metadata if head else ())

    @invariant()
    def the_record_is_whole_exchanges_within_the_limits(self) -> None:
        record = self._record()
        if record is None:
            return
        assert not self.deleted
        assert len(record.messages) <= limits.SESSION_MESSAGES_MAX
        assert record.tokens == counted(record) <= limits.SESSION_TOKENS_MAX
        assert size_of(record) <= limits.SESSION_BYTES_MAX
        if self.deleting:
            return
        said = {each.number: each for each in self._stored() if each.engine != Apology.name}
        kept = [exchange[0].turn for exchange in exchanges(record.messages)]
        expected: list[Message] = [message for number in kept for message in exchange_of(said[number])]
        assert list(record.messages) == expected, "no answer without its question, none twice"
        assert kept == sorted(kept)
        pinned = record.profile.pinned
        assert all(number in kept for number in pinned)
        newest = [number for number in kept if number not in pinned]
        may = [number for number in said if number <= record.version and number not in pinned]
        assert newest == may[len(may) - len(newest) :], "a suffix"

    @invariant()
    def a_record_at_rest_has_the_profile_that_is_durable(self) -> None:
        record = self._record()
        if record is None or self.running or self.dead or self.deleting:
            return
        head = self._run(self.conversations.store.head("s"))
        assert (record.profile, record.revision) == (head.profile, head.revision)
        assert record.version == head.version

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.let_all_through()
            assert not self.running, "nobody waits for ever"
            self.nothing_acknowledged_is_lost_or_out_of_order()
            self.the_record_is_whole_exchanges_within_the_limits()
            self.a_record_at_rest_has_the_profile_that_is_durable()
            target(float(self.races_lost), label="races lost")
        finally:
            self.patch.undo()
            left = [*self.dead, *self.running]
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.wait(left))
            self.loop.close()

    # how it is done

    async def _turn(self, sessions: Sessions, turn_id: str, engine: str) -> None:
        async with sessions.exclusive("s"):
            opened = await sessions.open("s", None, "c", create=True)
            turn = Turn(turn_id, "s", 0, "c", f"says {turn_id}", "ok", engine, "m", self.clock.now())
            kept = await sessions.commit(opened, turn)
        assert self.turns.setdefault(turn_id, kept.number) == kept.number

    async def _note(self, sessions: Sessions, note: str) -> None:
        await self._change(sessions, lambda profile: replace(profile, metadata=profile.metadata | {note: ""}))
        self.notes.append(note)

    async def _change(self, sessions: Sessions, change: Any) -> None:
        with suppress(InvalidRequest):  # a turn is pinned that there is not
            for create in (False, True):
                with suppress(SessionUnknown, SessionExists):
                    await sessions.change_profile("s", None, "c", change, create=create)
                    return
            await sessions.change_profile("s", None, "c", change)

    async def _connect(self, sessions: Sessions) -> None:
        session = await sessions.restore("s", None, "c", create=True)
        assert session.id == "s"

    async def _delete(self, sessions: Sessions) -> None:
        self.deleting = True
        await sessions.delete("s", None, "c")
        self.deleted = True

    def _start(self, operation: Callable[..., Coroutine[Any, Any, None]], sessions: Sessions, *details: Any) -> None:
        self.running[self.loop.create_task(operation(sessions, *details))] = sessions
        self._rest()

    def _pass(self, index: int) -> None:
        _, passed = self.waiting.pop(index)
        if not passed.done():
            passed.set_result(None)
        self._rest()

    def _rest(self) -> None:
        """Run what is ready until everybody waits at a gate, or is done."""
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [each for each in self.running if each.done()]:
            del self.running[task]
            try:
                task.result()
            except SessionUnknown:
                assert self.deleting, "nobody deletes it, and it may be made"

    def _instance(self) -> Sessions:
        calls = StoreCalls(self._count_races, seconds_max=1e9)
        return Sessions(self.sessions, self.conversations, calls, self.clock, Unhurried(), self.memories)

    def _count_races(self, event: Event) -> None:
        self.races_lost += isinstance(event, StoreFinished) and event.error == StaleSession.kind

    def _stored(self) -> list[Turn]:
        return list(self._run(self.conversations.store.turns("s", limit=10_000)))

    def _record(self) -> Session | None:
        try:
            return self._run(self.sessions.store.load("s"))
        except SessionUnknown:
            return None

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(call)


TestSession = SessionMachine.TestCase
TestSession.settings = settings(settings(), stateful_step_count=40)
