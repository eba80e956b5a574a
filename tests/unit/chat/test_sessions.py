"""Sessions: restored, rebuilt, one turn at a time, and never a turn lost to a race or a crash."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

import pytest
from msgspec.structs import replace

from orchestra import limits
from orchestra.adapters.inprocess import InProcessConversations, InProcessMemories, InProcessSessions
from orchestra.adapters.system import SystemEntropy
from orchestra.chat.mending import PAUSE_SECONDS_MAX
from orchestra.chat.sessions import OpenSession, Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.engines.apology import Apology
from orchestra.errors import InvalidRequest, SessionUnknown, StaleSession, StoreUnavailable
from orchestra.events import Event, StoreFinished
from orchestra.model import Memory, Profile, Turn
from sim import loop
from sim.distributions import Constant
from sim.faults import Faults, StoreDown, StoreName
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire


@dataclass
class HandClock:
    """Wall time that the test moves."""

    at: float = 1_000_000.0

    def now(self) -> float:
        return self.at


@dataclass
class House:
    """Two service instances, `here` and `there`, on the same stores."""

    clock: HandClock = field(default_factory=HandClock)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = InProcessSessions(self.clock)
        self.conversations = InProcessConversations()
        self.memories = InProcessMemories()
        self.here, self.there = self.instance(), self.instance()

    def instance(self) -> Sessions:
        calls = StoreCalls(self.events.append, seconds_max=5)
        return Sessions(self.store, self.conversations, calls, self.clock, SystemEntropy(), self.memories)

    def over_wires(self, faults: Faults, seconds: float = 0.0) -> Sessions:
        """An instance on the same stores, which may be down."""

        def wire(store: StoreName) -> Wire:
            return Wire(store, Constant(seconds), Random(0), faults)

        sessions = ModelledSessions(self.clock, wire("sessions"))
        conversations = ModelledConversations(wire("conversations"))
        memories = ModelledMemories(wire("memories"))
        sessions.store, conversations.store, memories._store = self.store, self.conversations, self.memories
        calls = StoreCalls(self.events.append, seconds_max=5)
        return Sessions(sessions, conversations, calls, self.clock, SystemEntropy(), memories)

    def turn(self, session_id: str, turn_id: str, message: str = "hello", reply: str = "hi") -> Turn:
        return Turn(turn_id, session_id, 0, f"c-{turn_id}", message, reply, "unified", "m", self.clock.now())

    async def said(self, session_id: str) -> list[str]:
        stored = await self.store.load(session_id)
        assert stored
        return [message.content for message in stored.messages if message.role == "user"]


UNIT = (1.0,) + (0.0,) * (limits.EMBEDDING_DIMENSIONS - 1)


def memory_of(turn: Turn, owner: str) -> Memory:
    return Memory(turn.id, owner, turn.id, UNIT, turn.at)


async def started(house: House, turns: int = 1, user_id: str | None = None) -> str:
    """Start a session of `turns` turns and return its id."""
    opened = await house.here.open(None, user_id, "c")
    session_id = opened.session.id
    for number in range(1, turns + 1):
        await house.here.commit(opened, house.turn(session_id, f"t{number}", f"message {number}"))
        opened = await house.here.open(session_id, None, "c")
    return session_id


def test_a_new_session_is_stored_only_with_its_first_turn() -> None:
    async def story() -> None:
        house = House()
        opened = await house.here.open(None, None, "c")
        assert await house.store.load(opened.session.id) is None
        turn = await house.here.commit(opened, house.turn(opened.session.id, "t1"))
        assert turn.number == 1
        stored = await house.store.load(opened.session.id)
        assert stored
        assert stored.version == 1
        assert [m.role for m in stored.messages] == ["user", "assistant"]
        assert await house.conversations.turns(opened.session.id) == (turn,)

    asyncio.run(story())


def test_an_unknown_session_names_field_and_cure() -> None:
    async def story() -> None:
        with pytest.raises(SessionUnknown, match="leave session_id out") as refusal:
            await House().here.open("nobody", None, "c")
        assert refusal.value.field == "$.session_id"

    asyncio.run(story())


def test_another_users_session_cannot_be_told_from_none() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, user_id="ada")
        assert (await house.here.open(session_id, "ada", "c")).session.owner == "user:ada"
        with pytest.raises(SessionUnknown) as foreign:
            await house.here.open(session_id, "bob", "c")
        with pytest.raises(SessionUnknown) as unknown:
            await house.here.open("no" + session_id, "bob", "c")
        assert foreign.value.detail == unknown.value.detail.replace("no" + session_id, session_id)

    asyncio.run(story())


def test_a_crash_between_the_two_writes_loses_nothing() -> None:
    """The turn after it, wherever it runs, does not see what the crash left out; the one after that does."""

    async def story() -> None:
        house = House()
        session_id = await started(house)
        crashed = replace(house.turn(session_id, "t2", "before the crash"), number=2)
        await house.conversations.append(crashed, f"session:{session_id}")  # and then kill -9: no session save
        opened = await house.here.open(session_id, None, "c")
        assert seen(opened) == ["message 1"], "the window that the module tells of"
        turn = await house.here.commit(opened, house.turn(session_id, "t3", "after the crash"))
        assert turn.number == 3
        assert await house.said(session_id) == ["message 1", "before the crash", "after the crash"]
        assert seen(await house.there.open(session_id, None, "c")) == await house.said(session_id)

    asyncio.run(story())


def seen(opened: OpenSession) -> list[str]:
    """What the model of a turn gets to see of what users said."""
    return [message.content for message in opened.session.messages if message.role == "user"]


ALWAYS = {"at": 0.0, "lasts": float("inf")}


def test_a_durable_turn_is_answered_and_the_next_prompt_has_it_though_its_session_was_not_saved() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        faults = Faults()
        here = house.over_wires(faults)
        opened = await here.open(session_id, None, "c")
        with faults.injected(StoreDown(store="sessions", **ALWAYS)):
            turn = await here.commit(opened, house.turn(session_id, "t2", "message 2"))
        assert (turn.number, turn.degraded) == (2, ("session",))
        assert [event.error for event in house.events if isinstance(event, StoreFinished)][-1] == "store-unavailable"
        assert await house.said(session_id) == ["message 1"], "the record is behind"
        again = await here.open(session_id, None, "c")
        assert seen(again) == ["message 1", "message 2"]
        assert await house.said(session_id) == ["message 1", "message 2"], "and saved at once"
        assert seen(await house.there.open(session_id, None, "c")) == ["message 1", "message 2"]
        assert (await here.commit(again, house.turn(session_id, "t3", "message 3"))).degraded == ()
        await here.aclose()

    asyncio.run(story())


def test_a_record_that_is_behind_is_mended_by_itself_for_other_instances() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        faults = Faults()
        here = house.over_wires(faults)
        opened = await here.open(session_id, None, "c")
        with faults.injected(StoreDown(store="sessions", **ALWAYS)):
            await here.commit(opened, house.turn(session_id, "t2", "message 2"))
            await asyncio.sleep(100)
            assert await house.said(session_id) == ["message 1"]
        await asyncio.sleep(1.5 * PAUSE_SECONDS_MAX)
        assert seen(await house.there.open(session_id, None, "c")) == ["message 1", "message 2"]
        assert here._mender._task is None, "nothing is left to do"

    loop.run(story())


def test_a_turn_whose_end_is_unknown_is_looked_for() -> None:
    """The conversation took it and could not say so; nobody is told that it failed, nor that it is there."""

    async def story() -> None:
        house = House()
        session_id = await started(house)
        faults = Faults()
        here = house.over_wires(faults)
        opened = await here.open(session_id, None, "c")
        turn = house.turn(session_id, "t2", "message 2")
        unknown = pytest.raises(StoreUnavailable, match="may be durable or not: ask again with the same key")
        with faults.injected(StoreDown(store="conversations", **ALWAYS)), unknown:
            await here.commit(opened, turn)
        await house.conversations.append(replace(turn, number=2), f"session:{session_id}")
        assert seen(await here.open(session_id, None, "c")) == ["message 1", "message 2"]
        await here.aclose()

    asyncio.run(story())


def test_notes_of_sessions_that_are_behind_are_bounded() -> None:
    async def story() -> None:
        mender = House().here._mender
        for number in range(limits.SESSIONS_BEHIND_MAX + 1):
            mender.note(f"s{number}", "c")
        assert "s0" not in mender
        assert "s1" in mender
        await mender.aclose()

    asyncio.run(story())


def test_two_instances_never_lose_a_turn() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        one = await house.here.open(session_id, None, "c")
        two = await house.there.open(session_id, None, "c")
        await house.here.commit(one, house.turn(session_id, "a", "from here"))
        second = await house.there.commit(two, house.turn(session_id, "b", "from there"))
        assert second.number == 3
        assert await house.said(session_id) == ["message 1", "from here", "from there"]

    asyncio.run(story())


def test_many_writers_of_one_session_are_all_kept() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        instances = [house.instance() for _ in range(8)]
        opened = [await each.open(session_id, None, "c") for each in instances]
        turns = await asyncio.gather(
            *(
                each.commit(open_session, house.turn(session_id, f"w{index}", f"writer {index}"))
                for index, (each, open_session) in enumerate(zip(instances, opened, strict=True))
            )
        )
        assert sorted(turn.number for turn in turns) == list(range(2, 10))
        assert len(await house.said(session_id)) == 9

    asyncio.run(story())


def test_a_lost_session_is_rebuilt_from_its_conversation() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3, user_id="ada")
        house.store = InProcessSessions(house.clock)  # a session store that lost everything
        opened = await house.instance().open(session_id, None, "c")
        assert opened.stored is None
        assert opened.session.version == 3
        assert opened.session.owner == "user:ada"
        await house.instance().commit(opened, house.turn(session_id, "t4", "message 4"))
        assert await house.said(session_id) == [f"message {n}" for n in range(1, 5)]

    asyncio.run(story())


def test_a_session_expires_a_day_after_its_last_turn() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        house.clock.at += limits.SESSION_TTL_SECONDS - 1
        opened = await house.here.open(session_id, None, "c")
        await house.here.commit(opened, house.turn(session_id, "t2"))
        house.clock.at += limits.SESSION_TTL_SECONDS - 1
        assert (await house.here.open(session_id, None, "c")).session.version == 2
        house.clock.at += 2
        with pytest.raises(SessionUnknown):
            await house.here.open(session_id, None, "c")

    asyncio.run(story())


def test_turns_of_one_session_run_one_at_a_time_in_order() -> None:
    async def story() -> None:
        sessions = House().here
        seen: list[str] = []

        async def turn(name: str, session_id: str | None) -> None:
            async with sessions.exclusive(session_id):
                seen.append(f"{name} in")
                await asyncio.sleep(0)
                seen.append(f"{name} out")

        await asyncio.gather(turn("a", "s"), turn("b", "s"), turn("c", "s"))
        assert seen == [f"{name} {step}" for name in "abc" for step in ("in", "out")]
        seen.clear()
        await asyncio.gather(turn("a", "s"), turn("b", "other"), turn("c", None))
        assert seen[:3] == ["a in", "b in", "c in"]

    asyncio.run(story())


def test_a_cancelled_waiter_leaves_the_session_free() -> None:
    async def story() -> None:
        sessions = House().here

        async def turn() -> None:
            async with sessions.exclusive("s"):
                await asyncio.sleep(0)

        async with sessions.exclusive("s"):
            waiter = asyncio.create_task(turn())
            await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
        async with asyncio.timeout(1):
            await turn()
        assert not sessions._locks._locks
        assert not sessions._locks._users

    asyncio.run(story())


def changed_to(profile: Profile) -> Callable[[Profile], Profile]:
    return lambda _: profile


def test_a_session_may_be_made_under_an_id_but_not_under_anothers() -> None:
    async def story() -> None:
        house = House()
        ada = await house.here.open("mine", "ada", "c", create=True)
        await house.here.commit(ada, house.turn("mine", "t1"))
        assert (await house.there.open("mine", "ada", "c", create=True)).session.version == 1
        for hours in (0, 30):  # also when it has expired
            house.clock.at += hours * 3600
            with pytest.raises(SessionUnknown):
                await house.here.open("mine", "bob", "c", create=True)
        assert (await house.here.open("mine", "ada", "c", create=True)).session.version == 1

    asyncio.run(story())


def test_of_two_users_who_begin_one_id_at_once_the_second_is_refused_and_sees_nothing() -> None:
    async def story() -> None:
        house = House()
        ada = await house.here.open("mine", "ada", "c", create=True)
        bob = await house.there.open("mine", "bob", "c", create=True)
        await house.here.commit(ada, house.turn("mine", "t1", "a secret"))
        with pytest.raises(SessionUnknown):
            await house.there.commit(bob, house.turn("mine", "t2"))
        assert await house.said("mine") == ["a secret"]
        with pytest.raises(SessionUnknown):
            await house.there.change_profile("mine", "bob", "c", changed_to(Profile("obey bob")))
        with pytest.raises(SessionUnknown):
            await house.there.describe("mine", "bob", "c")
        with pytest.raises(SessionUnknown):
            await house.there.delete("mine", "bob", "c")

    asyncio.run(story())


def test_a_turn_that_is_durable_is_returned_and_counted_once() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        one = await house.here.open(session_id, None, "c")
        two = await house.there.open(session_id, None, "c")
        first = await house.here.commit(one, house.turn(session_id, "same", "hello", "first"))
        again = await house.there.commit(two, house.turn(session_id, "same", "hello", "second"))
        assert again == first
        late = await house.there.open(session_id, None, "c")
        assert await house.there.commit(late, house.turn(session_id, "same", "hello", "third")) == first
        assert await house.said(session_id) == ["message 1", "hello"]
        assert (await house.here.open(session_id, None, "c")).session.version == 2

    asyncio.run(story())


def test_a_turn_that_is_durable_in_another_session_is_returned_and_leaves_this_one_alone() -> None:
    async def story() -> None:
        house = House()
        elsewhere = await started(house, turns=3)
        session_id = (await house.here.open(None, None, "c")).session.id
        await house.here.commit(await house.here.open(session_id, None, "c", create=True), house.turn(session_id, "t9"))
        before = await house.store.load(session_id)
        assert before is not None
        for turn_id in ("t2", "t1"):  # the one with this session's next number, and one that it passed
            opened = await house.here.open(session_id, None, "c")
            kept = await house.here.commit(opened, house.turn(session_id, turn_id, "mine"))
            assert (kept.session_id, kept.id, kept.message) == (elsewhere, turn_id, f"message {turn_id[1:]}")
            assert await house.store.load(session_id) == before
        new = await house.here.open(None, None, "c")
        assert (await house.here.commit(new, house.turn(new.session.id, "t1", "mine"))).session_id == elsewhere
        assert await house.store.load(new.session.id) is None
        assert [turn.id for turn in await house.conversations.turns(session_id)] == ["t9"]

    asyncio.run(story())


def test_a_profile_is_durable_and_in_the_record_of_every_instance() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3)
        profile = Profile("Be brief.", (2, 1, 2), {"zone": "UTC"}, {"title": "T"})
        view = await house.here.change_profile(session_id, None, "c", changed_to(profile))
        assert view.profile == replace(profile, pinned=(1, 2))
        assert (await house.there.open(session_id, None, "c")).session.profile == view.profile
        house.store._records.clear()
        assert (await house.there.open(session_id, None, "c")).session.profile == view.profile

    asyncio.run(story())


def test_a_turn_under_way_and_a_change_of_the_profile_both_stay() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=2)
        opened = await house.here.open(session_id, None, "c")
        await house.there.change_profile(session_id, None, "c", changed_to(Profile("Be brief.", (1,))))
        await house.here.commit(opened, house.turn(session_id, "t3", "message 3"))
        session = (await house.here.open(session_id, None, "c")).session
        assert session.profile == Profile("Be brief.", (1,))
        assert await house.said(session_id) == ["message 1", "message 2", "message 3"]

    asyncio.run(story())


def test_changes_of_a_profile_at_once_are_all_kept() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)

        def noted(number: int) -> Callable[[Profile], Profile]:
            return lambda profile: replace(profile, metadata=profile.metadata | {str(number): ""})

        await asyncio.gather(
            *(house.instance().change_profile(session_id, None, "c", noted(number)) for number in range(6))
        )
        view = await house.here.describe(session_id, None, "c")
        assert sorted(view.profile.metadata) == list("012345")

    asyncio.run(story())


def test_a_pinned_turn_that_left_the_history_comes_back_and_stays() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=60)
        assert (await house.said(session_id))[0] == "message 11"
        await house.here.change_profile(session_id, None, "c", changed_to(Profile(pinned=(3,))))
        assert (await house.said(session_id))[:2] == ["message 3", "message 12"]
        opened = await house.here.open(session_id, None, "c")
        await house.here.commit(opened, house.turn(session_id, "t61", "message 61"))
        assert (await house.said(session_id))[:2] == ["message 3", "message 13"]
        house.store._records.clear()
        session = (await house.here.open(session_id, None, "c")).session
        assert [each.content for each in session.messages[::2]][:2] == ["message 3", "message 13"]
        assert len(session.messages) == limits.SESSION_MESSAGES_MAX

    asyncio.run(story())


def test_a_turn_that_is_no_longer_pinned_goes_unless_it_is_recent() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=60)
        await house.here.change_profile(session_id, None, "c", changed_to(Profile(pinned=(3, 30))))
        await house.here.change_profile(session_id, None, "c", changed_to(Profile(pinned=(30,))))
        assert await house.said(session_id) == [f"message {number}" for number in range(11, 61)]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (Profile(pinned=(3,)), "turn 3 of this session cannot be pinned: there is none"),
        (Profile(pinned=(2,)), "turn 2 of this session cannot be pinned: there is none, or it has no answer"),
        (Profile(pinned=tuple(range(1, 27))), "26 turns are pinned, at most 25 are allowed"),
        (Profile("x y " * 1_000, pinned=(1,)), "tokens, at most 50000 are allowed"),
    ],
)
def test_what_cannot_be_pinned_is_refused_and_changes_nothing(profile: Profile, why: str) -> None:
    async def story() -> None:
        house = House()
        opened = await house.here.open(None, None, "c")
        session_id = opened.session.id
        await house.here.commit(opened, house.turn(session_id, "t1", " a" * 24_000, " a" * 24_500))
        opened = await house.here.open(session_id, None, "c")
        await house.here.commit(opened, replace(house.turn(session_id, "t2"), engine=Apology.name))
        with pytest.raises(InvalidRequest, match=why) as refusal:
            await house.here.change_profile(session_id, None, "c", changed_to(profile))
        assert refusal.value.field == "$.pinned"
        assert (await house.here.describe(session_id, None, "c")).profile == Profile()

    asyncio.run(story())


def test_deleting_leaves_nothing_in_any_store() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3, user_id="ada")
        for turn in await house.conversations.turns(session_id):
            await house.memories.remember(memory_of(turn, "user:ada"))
        await house.memories.remember(memory_of(house.turn("other", "elsewhere"), "user:ada"))
        await house.here.change_profile(session_id, "ada", "c", changed_to(Profile("Be brief.")))
        await house.here.delete(session_id, "ada", "c")
        assert await house.conversations.turns(session_id) == ()
        assert [each.text for each in await house.memories.recall("user:ada", UNIT, limit=9)] == ["elsewhere"]
        for create in (False, True):
            for who in ("ada", None):
                with pytest.raises(SessionUnknown):
                    await house.there.open(session_id, who, "c", create=create)
        for gone in (
            house.here.delete(session_id, "ada", "c"),
            house.here.describe(session_id, "ada", "c"),
            house.here.change_profile(session_id, "ada", "c", changed_to(Profile())),
        ):
            with pytest.raises(SessionUnknown):
                await gone
        house.clock.at += limits.SESSION_TTL_SECONDS  # when the session store has forgotten that it was deleted
        with pytest.raises(SessionUnknown):
            await house.there.open(session_id, "ada", "c", create=True)

    asyncio.run(story())


def test_a_turn_under_way_does_not_bring_a_deleted_session_back() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3)
        opened = await house.there.open(session_id, None, "c")
        await house.here.delete(session_id, None, "c")
        with pytest.raises(SessionUnknown):
            await house.there.commit(opened, house.turn(session_id, "late"))
        assert await house.conversations.turns(session_id) == ()
        with pytest.raises(SessionUnknown):
            await house.store.load(session_id)

    asyncio.run(story())


@pytest.mark.parametrize("down", ["memories", "conversations", "sessions"])
def test_a_deletion_that_broke_off_can_be_repeated(down: StoreName) -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        [turn] = await house.conversations.turns(session_id)
        await house.memories.remember(memory_of(turn, "o"))
        faults = Faults()
        over_wires = house.over_wires(faults)
        with faults.injected(StoreDown(store=down, at=0, lasts=1)), pytest.raises(StoreUnavailable):
            await over_wires.delete(session_id, None, "c")
        with suppress(SessionUnknown):  # it is gone; what is left of it goes
            await over_wires.delete(session_id, None, "c")
        assert await house.conversations.turns(session_id) == ()
        assert await house.memories.recall("o", UNIT, limit=1) == ()
        with pytest.raises(SessionUnknown):
            await house.store.load(session_id)

    asyncio.run(story())


def test_a_record_from_before_messages_told_their_turns_is_made_anew() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=2)
        now = await house.store.load(session_id)
        assert now is not None
        old = replace(now, messages=tuple(replace(each, turn=0) for each in now.messages), tokens=0)
        await house.store.save(old, expected=now)
        opened = await house.here.open(session_id, None, "c")
        assert opened.session.messages == now.messages
        assert opened.session.tokens == now.tokens
        await house.here.commit(opened, house.turn(session_id, "t3", "message 3"))
        assert await house.said(session_id) == ["message 1", "message 2", "message 3"]
        stored = await house.store.load(session_id)
        assert stored is not None
        assert [each.turn for each in stored.messages] == [1, 1, 2, 2, 3, 3]

    asyncio.run(story())


def test_a_session_that_is_restored_before_its_first_turn_is_stored_nowhere() -> None:
    async def story() -> None:
        house = House()
        session = await house.here.restore("new", "ada", "c", create=True)
        assert (session.id, session.owner, session.version) == ("new", "user:ada", 0)
        assert await house.store.load("new") is None
        with pytest.raises(SessionUnknown):
            await house.here.restore("new", "ada", "c")

    asyncio.run(story())


def test_no_store_is_asked_for_a_session_whose_id_was_made_just_now() -> None:
    async def story() -> None:
        house = House()
        opened = await house.here.open("fresh", "ada", "c", fresh=True)
        assert (opened.session.id, opened.session.owner, opened.stored) == ("fresh", "user:ada", None)
        assert house.events == []

    asyncio.run(story())


async def large(house: House, turns: int, chars: int) -> str:
    """A session of long turns, which no session store knows."""
    for number in range(1, turns + 1):
        turn = house.turn("s", f"t{number}", f"{number} " + "\u6f22" * chars, "ok")
        await house.conversations.append(replace(turn, number=number), "session:s")
    return "s"


@pytest.mark.parametrize("ask", ["describe", "open", "unpin"])
def test_a_session_is_made_anew_in_steps_that_count_little(monkeypatch: pytest.MonkeyPatch, ask: str) -> None:
    counted = [0]  # characters, in each step of the loop
    estimated = limits.estimated_tokens

    def counting(text: str) -> int:
        counted[-1] += len(text)
        return estimated(text)

    async def story() -> None:
        house = House()
        session_id = await large(house, 50, 45_000)
        if ask == "unpin":
            await house.here.change_profile(session_id, None, "c", changed_to(Profile(pinned=(1,))))

        async def runs() -> None:
            while True:
                counted.append(0)
                await asyncio.sleep(0)

        running = asyncio.create_task(runs())
        monkeypatch.setattr(limits, "estimated_tokens", counting)
        if ask == "describe":
            assert (await house.here.describe(session_id, None, "c")).messages == 4
        elif ask == "open":
            assert len((await house.here.open(session_id, None, "c")).session.messages) == 4
        else:
            await house.here.change_profile(session_id, None, "c", changed_to(Profile()))
        monkeypatch.undo()
        running.cancel()
        assert sum(counted) < 1.6 * limits.SESSION_TOKENS_MAX
        assert max(counted) < limits.SESSION_TOKENS_MAX

    asyncio.run(story())


def test_a_session_that_was_made_anew_to_be_described_is_stored() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3)
        before = await house.store.load(session_id)
        house.store._records.clear()
        view = await house.here.describe(session_id, None, "c")
        assert await house.store.load(session_id) == before
        asked = len(house.events)
        assert await house.there.describe(session_id, None, "c") == view
        assert len(house.events) == asked + 1, "one read of its record"

    asyncio.run(story())


def test_who_looked_at_a_session_does_not_bring_its_history_over_a_day() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house, turns=3)
        house.store._records.clear()
        house.clock.at += limits.SESSION_TTL_SECONDS - 1
        await house.here.describe(session_id, None, "c")
        house.clock.at += 2
        assert await house.store.load(session_id) is not None
        with pytest.raises(SessionUnknown):
            await house.here.open(session_id, None, "c")
        opened = await house.here.open(session_id, None, "c", create=True)
        assert (opened.session.version, opened.session.messages) == (3, ())
        view = await house.here.change_profile(session_id, None, "c", changed_to(Profile("Be brief.")))
        assert (view.state, view.messages) == ("active", 0)

    asyncio.run(story())


def test_exchanges_that_are_too_large_alone_are_passed_over_and_not_for_ever() -> None:
    async def story() -> None:
        house = House()
        for number, size in enumerate([1, *[60_000] * 3, 10, 60_000, 10], start=1):
            words = "\u6f22" * size
            turn = replace(house.turn("s", f"t{number}", words, words), number=number)
            await house.conversations.append(turn, "session:s")
        session = (await house.here.open("s", None, "c")).session
        assert [message.turn for message in session.messages] == [5, 5, 7, 7]
        assert (session.version, session.tokens) == (7, 4 * 14)

    asyncio.run(story())


def test_a_session_far_behind_its_conversation_is_made_anew() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        opened = await house.here.open(session_id, None, "c")
        for number in range(2, 400):
            turn = replace(house.turn(session_id, f"t{number}", f"message {number}"), number=number)
            await house.conversations.append(turn, f"session:{session_id}")
        await house.here.commit(opened, house.turn(session_id, "last", "message 400"))
        assert await house.said(session_id) == [f"message {number}" for number in range(351, 401)]

    asyncio.run(story())


@pytest.mark.parametrize("instances", [1, 4])
def test_thirty_changes_of_a_profile_at_once_are_all_kept(instances: int) -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        doors = [house.over_wires(Faults(), seconds=0.01) for _ in range(instances)]

        def noted(number: int) -> Callable[[Profile], Profile]:
            return lambda profile: replace(profile, metadata=profile.metadata | {str(number): ""})

        await asyncio.gather(*(doors[n % instances].change_profile(session_id, None, "c", noted(n)) for n in range(30)))
        view = await house.here.describe(session_id, None, "c")
        assert len(view.profile.metadata) == 30
        lost = [each for each in house.events if isinstance(each, StoreFinished) and each.error == StaleSession.kind]
        assert bool(lost) == (instances > 1), "within an instance nobody races"
        assert not any(door._changes._locks for door in doors)

    loop.run(story())


def test_who_loses_every_race_is_told_when_to_try_again() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)

        class Ahead(InProcessConversations):
            """A conversation store in which somebody is always first."""

            async def set_profile(self, *args: object, **more: object) -> None:
                raise StaleSession("somebody was first")

        ahead = Ahead()
        ahead.__dict__ = house.conversations.__dict__
        calls = StoreCalls(house.events.append, seconds_max=5)
        late = Sessions(house.store, ahead, calls, house.clock, SystemEntropy(), house.memories)
        with pytest.raises(StaleSession) as refused:
            await late.change_profile(session_id, None, "c", changed_to(Profile("Be brief.")))
        assert refused.value.retry_after_seconds == 1

    loop.run(story())


def test_a_change_that_changes_nothing_counts_as_use() -> None:
    async def story() -> None:
        house = House()
        session_id = await started(house)
        house.clock.at += limits.SESSION_TTL_SECONDS - 1
        view = await house.here.change_profile(session_id, None, "c", lambda profile: profile)
        assert (view.updated_at, view.state) == (house.clock.at, "active")
        house.clock.at += limits.SESSION_TTL_SECONDS - 1
        assert len((await house.there.open(session_id, None, "c")).session.messages) == 2

    asyncio.run(story())
