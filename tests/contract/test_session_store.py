"""What every SessionStore does."""

import asyncio

import pytest
from msgspec.structs import replace

from orchestra import limits
from orchestra.errors import SessionUnknown, StaleSession
from orchestra.model import Message, Profile, Session

FIRST = Session("s1", "user:ada", 1, 1.25, 2.5, (Message("user", "Hello ☎ \U0001f600"), Message("assistant", "Hi\n")))
SECOND = Session("s1", "user:ada", 2, 1.25, 3.5, (*FIRST.messages, Message("user", "And?"), Message("assistant", ".")))


def test_a_session_that_was_never_saved_is_none(sessions):
    async def scenario(it):
        assert await it.store.load("unknown") is None

    sessions.holds(scenario)


def test_what_is_saved_is_loaded(sessions):
    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        assert await it.store.load("s1") == FIRST
        await it.store.save(SECOND, expected=FIRST)
        assert await it.store.load("s1") == SECOND

    sessions.holds(scenario)


def test_an_empty_session_and_the_largest_come_back_whole(sessions):
    empty = Session("a", "session:a", 0, 0.0, 0.0)
    text = "é" * (limits.SESSION_BYTES_MAX // limits.SESSION_MESSAGES_MAX // 2)
    largest = Session("Z" * limits.ID_CHARS_MAX, "o", 2**31, 1.0, 1e10, (Message("user", text),) * 100)

    async def scenario(it):
        for session in (empty, largest):
            await it.store.save(session, expected=None)
            assert await it.store.load(session.id) == session

    sessions.holds(scenario)


def test_sessions_are_apart(sessions):
    neighbours = ["s", "s:corrupt", "S", "s.1", "s-1", "orchestra:session:s"]

    async def scenario(it):
        for session_id in neighbours:
            await it.store.save(Session(session_id, session_id, 0, 0.0, 0.0), expected=None)
        for session_id in neighbours:
            session = await it.store.load(session_id)
            assert session is not None
            assert session.owner == session_id

    sessions.holds(scenario)


@pytest.mark.parametrize("changes", [None, *({"version": v} for v in (0, 2, 255, 256, 2**40)), {"revision": 1}])
def test_a_save_over_another_version_is_stale_and_changes_nothing(sessions, changes):
    expected = None if changes is None else replace(FIRST, **changes)

    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        with pytest.raises(StaleSession, match="s1"):
            await it.store.save(SECOND, expected=expected)
        assert await it.store.load("s1") == FIRST

    sessions.holds(scenario)


def test_a_save_over_a_version_where_there_is_none_is_stale(sessions):
    async def scenario(it):
        for expected in (replace(FIRST, version=0), FIRST):
            with pytest.raises(StaleSession):
                await it.store.save(SECOND, expected=expected)
        assert await it.store.load("s1") is None

    sessions.holds(scenario)


def test_the_same_save_again_succeeds(sessions):
    """Its first reply may have been lost on the way."""

    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        await it.store.save(FIRST, expected=None)
        await it.store.save(SECOND, expected=FIRST)
        await it.store.save(SECOND, expected=FIRST)
        assert await it.store.load("s1") == SECOND

    sessions.holds(scenario)


def test_of_concurrent_saves_over_one_version_exactly_one_wins(sessions):
    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        rivals = [Session("s1", f"user:{n}", 2, 1.0, 2.0) for n in range(20)]
        outcomes = await asyncio.gather(
            *(it.store.save(rival, expected=FIRST) for rival in rivals), return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["StaleSession"] * 19
        assert await it.store.load("s1") == rivals[outcomes.index(None)]

    sessions.holds(scenario)


def test_a_session_lives_from_its_last_save(sessions):
    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        await it.elapse(limits.SESSION_TTL_SECONDS - 60)
        assert await it.store.load("s1") == FIRST
        await it.store.save(SECOND, expected=FIRST)
        await it.elapse(limits.SESSION_TTL_SECONDS - 60)
        assert await it.store.load("s1") == SECOND
        await it.elapse(61)
        assert await it.store.load("s1") is None
        await it.store.save(FIRST, expected=None)
        assert await it.store.load("s1") == FIRST

    sessions.holds(scenario)


def test_expiry_takes_the_oldest_only(sessions):
    async def scenario(it):
        for session_id in ("a", "b"):
            await it.store.save(Session(session_id, "o", 0, 0.0, 0.0), expected=None)
        await it.elapse(60)
        await it.store.save(Session("a", "o", 1, 0.0, 1.0), expected=Session("a", "o", 0, 0.0, 0.0))
        await it.elapse(limits.SESSION_TTL_SECONDS - 30)
        assert await it.store.load("a") is not None
        assert await it.store.load("b") is None

    sessions.holds(scenario)


def test_it_answers_a_ping(sessions):
    async def scenario(it):
        await it.store.ping()

    sessions.holds(scenario)


def test_a_profile_is_kept_with_its_session(sessions):
    profile = Profile("Be brief.", (1, 2**31 - 1), {"b": "1", "a": "é\n"}, {"title": "☎"})
    messages = (Message("system", "s", 0), Message("user", "u", 300), Message("assistant", "", 2**31 - 1))
    full = replace(FIRST, profile=profile, revision=7, tokens=99, messages=messages)

    async def scenario(it):
        await it.store.save(full, expected=None)
        loaded = await it.store.load("s1")
        assert loaded == full
        assert list(loaded.profile.context) == ["b", "a"]  # in the order that they stand in prompts

    sessions.holds(scenario)


def test_a_use_of_the_session_is_saved_over_it(sessions):
    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        await it.elapse(limits.SESSION_TTL_SECONDS - 60)
        used = replace(FIRST, updated_at=99.0)
        await it.store.save(used, expected=FIRST)
        await it.elapse(120)
        assert await it.store.load("s1") == used

    sessions.holds(scenario)


def test_a_deleted_session_is_gone_and_whoever_holds_it_cannot_bring_it_back(sessions):
    async def scenario(it):
        await it.store.save(FIRST, expected=None)
        await it.store.save(replace(FIRST, id="other"), expected=None)
        await it.store.delete("s1")
        await it.store.delete("s1")
        with pytest.raises(SessionUnknown, match="s1"):
            await it.store.load("s1")
        for expected in (FIRST, None, replace(FIRST, version=0)):
            with pytest.raises(StaleSession):
                await it.store.save(SECOND, expected=expected)
        assert await it.store.load("other") is not None

    sessions.holds(scenario)


def test_that_a_session_was_deleted_is_remembered_for_as_long_as_one_lives(sessions):
    async def scenario(it):
        await it.store.delete("s1")
        await it.elapse(limits.SESSION_TTL_SECONDS - 60)
        with pytest.raises(SessionUnknown):
            await it.store.load("s1")
        await it.elapse(61)
        assert await it.store.load("s1") is None

    sessions.holds(scenario)
