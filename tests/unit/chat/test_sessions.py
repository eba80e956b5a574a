"""Sessions: restored, rebuilt, one turn at a time, and never a turn lost to a race or a crash."""

import asyncio
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from orchestra import limits
from orchestra.adapters.inprocess import InProcessConversations, InProcessMemories, InProcessSessions
from orchestra.adapters.system import SystemEntropy
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.errors import SessionUnknown
from orchestra.events import Event
from orchestra.model import Turn


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

    def turn(self, session_id: str, turn_id: str, message: str = "hello", reply: str = "hi") -> Turn:
        return Turn(turn_id, session_id, 0, f"c-{turn_id}", message, reply, "unified", "m", self.clock.now())

    async def said(self, session_id: str) -> list[str]:
        stored = await self.store.load(session_id)
        assert stored
        return [message.content for message in stored.messages if message.role == "user"]


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
    async def story() -> None:
        house = House()
        session_id = await started(house)
        crashed = replace(house.turn(session_id, "t2", "before the crash"), number=2)
        await house.conversations.append(crashed, f"session:{session_id}")  # and then kill -9: no session save
        opened = await house.here.open(session_id, None, "c")
        turn = await house.here.commit(opened, house.turn(session_id, "t3", "after the crash"))
        assert turn.number == 3
        assert await house.said(session_id) == ["message 1", "before the crash", "after the crash"]

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
