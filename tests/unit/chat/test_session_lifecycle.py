"""The session's diagram, arrow by arrow; a day costs nothing in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from orchestra import limits
from orchestra.adapters.system import SystemEntropy
from orchestra.chat.lifecycle import state_of
from orchestra.chat.sessions import Sessions
from orchestra.chat.stores import StoreCalls
from orchestra.errors import SessionUnknown
from orchestra.model import Profile, Turn
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Streams
from sim.faults import Faults, StoreName
from sim.loop import run
from sim.stores import ModelledConversations, ModelledMemories, ModelledSessions, Wire

DAY = limits.SESSION_TTL_SECONDS
SHORT = 1.0  # far longer than the few calls of a store that a step takes


class House:
    """Any number of instances on one session store, which a test may lose, and one conversation store."""

    def __init__(self) -> None:
        self.clock = SimClock(asyncio.get_running_loop())
        self.sessions = ModelledSessions(self.clock, wire("sessions"))
        self.conversations = ModelledConversations(wire("conversations"))
        self.memories = ModelledMemories(wire("memories"))
        self.here, self.there = self.instance(), self.instance()
        self._said = 0

    def instance(self) -> Sessions:
        calls = StoreCalls(lambda event: None, seconds_max=5)
        return Sessions(self.sessions, self.conversations, calls, self.clock, SystemEntropy(), self.memories)

    async def say(self, message: str = "hello", reply: str = "hi", *, at: Sessions | None = None, **how) -> Turn:
        sessions = at or self.here
        self._said += 1
        async with sessions.exclusive("s"):
            opened = await sessions.open("s", None, "c", **how)
            now = self.clock.now()
            turn = Turn(f"t{self._said}", "s", 0, "c", message, reply, "unified", "m", now)
            return await sessions.commit(opened, turn)

    async def state(self, at: Sessions | None = None) -> str:
        return (await (at or self.here).describe("s", None, "c")).state


def wire(store: StoreName) -> Wire:
    return Wire(store, Constant(0.001), Streams(1).stream(store), Faults())


def virtually(story: Callable[[House], Awaitable[None]]) -> None:
    async def on_house() -> None:
        await story(House())

    run(on_house())


def test_create_to_active() -> None:
    async def story(house: House) -> None:
        with pytest.raises(SessionUnknown):
            await house.state()
        with pytest.raises(SessionUnknown):
            await house.say()
        turn = await house.say(create=True)
        assert turn.number == 1
        assert await house.state() == "active"

    virtually(story)


def test_active_to_idle() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        await asyncio.sleep(limits.SESSION_IDLE_SECONDS - SHORT)
        assert await house.state() == "active"
        await asyncio.sleep(SHORT)
        assert await house.state() == "idle"

    virtually(story)


def test_active_for_as_long_as_a_turn_or_a_connection_holds_it() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        with house.here.held("s"):
            await asyncio.sleep(DAY / 2)
            assert await house.state() == "active"
            assert await house.state(house.there) == "idle", "another instance knows the last use only"
        assert await house.state() == "idle"
        async with house.here.exclusive("s"):
            assert await house.state() == "active"
        assert await house.state() == "idle"

    virtually(story)


def test_idle_to_active() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        await asyncio.sleep(DAY / 2)
        assert await house.state() == "idle"
        await house.say()
        assert await house.state() == "active"
        await asyncio.sleep(DAY / 2)
        await house.here.restore("s", None, "c")
        assert await house.state() == "active", "a connection that begins is a use"
        await asyncio.sleep(DAY / 2)
        assert await house.state() == "idle"
        await house.here.change_profile("s", None, "c", lambda profile: Profile("Be brief."))
        assert await house.state() == "active"

    virtually(story)


def test_idle_to_expire() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        await asyncio.sleep(DAY - SHORT)
        assert await house.state() == "idle", "and looking at it is no use"
        await asyncio.sleep(SHORT)
        view = await house.here.describe("s", None, "c")
        assert (view.state, view.turns, view.messages) == ("expired", 1, 0)
        with pytest.raises(SessionUnknown, match="expired"):
            await house.say()

    virtually(story)


def test_what_was_said_before_it_expired_is_read_but_no_part_of_the_next_prompt() -> None:
    async def story(house: House) -> None:
        await house.say("before", create=True)
        await house.here.change_profile("s", None, "c", lambda profile: Profile("Be brief."))
        await asyncio.sleep(DAY)
        assert (await house.here.restore("s", None, "c", create=True)).messages == ()
        turn = await house.say("after", create=True)
        assert turn.number == 2
        for _ in ("from its record", "made anew"):
            opened = await house.here.open("s", None, "c")
            assert [each.content for each in opened.session.messages] == ["after", "hi"]
            assert opened.session.profile.system == "Be brief."
            await house.sessions.store.save(opened.session, expected=opened.stored)
            house.sessions.store._records.clear()
        assert [each.message for each in await house.conversations.turns("s")] == ["before", "after"]

    virtually(story)


def test_active_to_persist() -> None:
    async def story(house: House) -> None:
        await house.say("kept", create=True)
        record = await house.sessions.load("s")
        assert record is not None
        assert [each.content for each in record.messages] == ["kept", "hi"]
        assert [each.message for each in await house.conversations.turns("s")] == ["kept"]

    virtually(story)


def test_persist_to_restore() -> None:
    async def story(house: House) -> None:
        await house.say("kept", create=True)
        session = await house.there.restore("s", None, "c")
        assert [each.content for each in session.messages] == ["kept", "hi"]
        house.sessions.store._records.clear()  # Redis lost it
        again = await house.there.restore("s", None, "c")
        assert again.messages == session.messages
        assert await house.sessions.load("s") == again, "and has it back"

    virtually(story)


def test_restore_to_active() -> None:
    async def story(house: House) -> None:
        await house.say("kept", create=True)
        await asyncio.sleep(DAY / 2)
        await house.there.restore("s", None, "c")
        assert await house.state(house.there) == "active"
        assert (await house.say("more", at=house.there)).number == 2

    virtually(story)


def test_active_to_history() -> None:
    async def story(house: House) -> None:
        await house.say("one", "1", create=True)
        await house.say("two", "2")
        session = (await house.here.open("s", None, "c")).session
        assert [(each.role, each.content, each.turn) for each in session.messages] == [
            ("user", "one", 1),
            ("assistant", "1", 1),
            ("user", "two", 2),
            ("assistant", "2", 2),
        ]

    virtually(story)


def test_active_to_context() -> None:
    async def story(house: House) -> None:
        await house.here.change_profile("s", None, "c", lambda _: Profile(context={"zone": "UTC"}), create=True)
        await house.say()
        assert (await house.there.open("s", None, "c")).session.profile.context == {"zone": "UTC"}

    virtually(story)


def test_active_to_metadata() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        created = house.clock.now()
        await asyncio.sleep(100)
        await house.say()
        await house.here.change_profile("s", None, "c", lambda _: Profile(metadata={"title": "T"}))
        view = await house.there.describe("s", None, "c")
        assert view.profile.metadata == {"title": "T"}
        assert view.created_at == pytest.approx(created, abs=SHORT)
        assert view.updated_at == pytest.approx(created + 100, abs=SHORT)
        assert view.expires_at == view.updated_at + DAY
        assert (view.turns, view.messages) == (2, 4)

    virtually(story)


def test_active_to_tokens() -> None:
    async def story(house: House) -> None:
        await house.say("three small words", "ok", create=True)
        view = await house.here.describe("s", None, "c")
        assert view.tokens == 3 + 1 + 2 * 4
        await house.here.change_profile("s", None, "c", lambda _: Profile("Be brief."))
        assert (await house.here.describe("s", None, "c")).tokens == view.tokens + 3 + 4

    virtually(story)


def test_history_to_max_history() -> None:
    async def story(house: House) -> None:
        for _ in range(52):
            await house.say(create=True)
        view = await house.here.describe("s", None, "c")
        assert (view.turns, view.messages) == (52, limits.SESSION_MESSAGES_MAX)
        assert len(await house.conversations.turns("s")) == 52

    virtually(story)


def test_tokens_to_max_tokens() -> None:
    async def story(house: House) -> None:
        for _ in range(3):
            await house.say(" a" * 30_000, " a" * 10_000, create=True)
        view = await house.here.describe("s", None, "c")
        assert (view.messages, view.tokens) == (4, 80_016)
        assert view.tokens <= limits.SESSION_TOKENS_MAX

    virtually(story)


def test_metadata_to_max_size() -> None:
    async def story(house: House) -> None:
        await house.here.change_profile("s", None, "c", lambda _: Profile(metadata={"k": "x" * 30_000}), create=True)
        for _ in range(5):
            await house.say("\n" * 100_000, "\n" * 140_000)
        view = await house.here.describe("s", None, "c")
        assert view.messages == 8, "the metadata's 30,000 bytes leave no room for a fifth exchange of 240,000"
        assert 990_000 < view.bytes <= limits.SESSION_BYTES_MAX

    virtually(story)


def test_expire_to_ttl() -> None:
    async def story(house: House) -> None:
        await house.say(create=True)
        for _ in range(3):  # each turn gives it another day
            await asyncio.sleep(DAY - SHORT)
            await house.say()
        assert await house.sessions.load("s") is not None
        await asyncio.sleep(DAY + SHORT)
        assert await house.sessions.load("s") is None

    virtually(story)


def test_a_state_is_a_function_of_times() -> None:
    idle, day = limits.SESSION_IDLE_SECONDS, limits.SESSION_TTL_SECONDS
    assert [state_of(0.0, at, held=False) for at in (0, idle - 0.5, idle, day - 0.5, day)] == [
        "active",
        "active",
        "idle",
        "idle",
        "expired",
    ]
    assert state_of(0.0, 10 * day, held=True) == "active"
