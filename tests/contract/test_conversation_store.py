"""What every ConversationStore does."""

import asyncio

import msgspec
import pytest

from orchestra.errors import SessionUnknown, StaleSession
from orchestra.model import ConversationHead, Profile, Recollection, Turn, Usage

PROFILE = Profile("Be brief.", (1, 7), {"zone": "UTC", "language": "é\n'☎"}, {"title": "T"})


def turn(number: int, session_id: str = "s1", /, **changes) -> Turn:
    first = Turn(f"{session_id}-{number}", session_id, number, "c", "Hello", "Hi", "unified", "offline", 1.0)
    return msgspec.structs.replace(first, **changes)


def test_an_unknown_session_has_no_turns_and_no_owner(conversations):
    async def scenario(store):
        assert await store.turns("unknown") == ()
        assert await store.latest("unknown", limit=5) == ()
        assert await store.head("unknown") is None
        assert await store.ids("unknown") == ()

    conversations.holds(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"message": "☎ \U0001f600 'quoted' \"\\\n\t$1 %s", "reply": "x" * 400_000},
        {"at": 1_700_000_000.123_456_7, "usage": Usage(12, 34_000)},
        {"degraded": ("memory",)},
        {"degraded": ("memory", "external APIs")},
        {"reply": "", "model": "", "number": 2**31 - 1},
        {"finish_reason": "length", "recalled": (Recollection('a\n☎ "', 0.1 + 0.2), Recollection("", -1.0))},
    ],
)
def test_a_turn_comes_back_as_it_was(conversations, changes):
    async def scenario(store):
        appended = turn(1, **changes)
        assert await store.append(appended, "user:ada") == appended
        assert await store.find(appended.id) == appended
        assert await store.turns("s1") == (appended,)
        assert await store.latest("s1", limit=1) == (appended,)

    conversations.holds(scenario)


def test_turns_are_paged_by_number(conversations):
    async def scenario(store):
        all_turns = tuple(turn(number) for number in range(1, 13))
        for each in reversed(all_turns):  # the order of arrival does not matter
            await store.append(each, "o")
        await store.append(turn(1, "s2"), "o")
        assert await store.turns("s1") == all_turns
        assert await store.turns("s1", after=3, limit=4) == all_turns[3:7]
        assert await store.turns("s1", after=10, limit=4) == all_turns[10:]
        assert await store.turns("s1", after=12) == ()
        assert await store.turns("s1", limit=0) == ()

    conversations.holds(scenario)


def test_the_latest_turns_come_lowest_number_first(conversations):
    async def scenario(store):
        all_turns = tuple(turn(number) for number in range(1, 6))
        for each in all_turns:
            await store.append(each, "o")
        assert await store.latest("s1", limit=2) == all_turns[3:]
        assert await store.latest("s1", limit=99) == all_turns
        assert await store.latest("s1", limit=0) == ()

    conversations.holds(scenario)


def test_the_same_turn_again_changes_nothing(conversations):
    async def scenario(store):
        await store.append(turn(1), "user:ada")
        await store.append(turn(1), "user:ada")
        await asyncio.gather(*(store.append(turn(2), "user:ada") for _ in range(5)))
        assert await store.turns("s1") == (turn(1), turn(2))

    conversations.holds(scenario)


def test_of_two_turns_of_one_id_the_first_stays_and_is_what_both_are_told(conversations):
    async def scenario(store):
        first = turn(1, reply="first")
        assert await store.append(first, "user:ada") == first
        for again in (turn(1, reply="second"), turn(5, id=first.id), turn(1, "s2", id=first.id)):
            assert await store.append(again, "user:ada") == first
        rivals = [turn(2 + n, id="t", reply=str(n)) for n in range(5)]
        told = await asyncio.gather(*(store.append(each, "user:ada") for each in rivals))
        [stored] = await store.turns("s1", after=1)
        assert told == [stored] * 5
        assert await store.turns("s2") == ()

    conversations.holds(scenario)


def test_a_turn_is_found_by_its_id(conversations):
    async def scenario(store):
        await store.append(turn(1), "o")
        await store.append(turn(1, "s2"), "o")
        assert await store.find("s2-1") == turn(1, "s2")
        assert await store.find("s2-2") is None

    conversations.holds(scenario)


def test_another_turn_of_the_same_number_is_stale(conversations):
    async def scenario(store):
        await store.append(turn(1), "user:ada")
        with pytest.raises(StaleSession, match="s1 already has a turn 1"):
            await store.append(turn(1, id="other"), "user:eve")
        assert await store.turns("s1") == (turn(1),)
        assert (await store.head("s1")).owner == "user:ada"

    conversations.holds(scenario)


def test_of_concurrent_turns_of_one_number_exactly_one_wins(conversations):
    async def scenario(store):
        rivals = [turn(1, id=f"t{n}") for n in range(20)]
        others = [turn(1, f"other{n}") for n in range(20)]
        appends = [store.append(each, "o") for pair in zip(rivals, others, strict=True) for each in pair]
        outcomes = await asyncio.gather(*appends, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes[::2]) == ["StaleSession"] * 19 + ["Turn"]
        assert outcomes[1::2] == others
        assert await store.turns("s1") == tuple(each for each in outcomes[::2] if isinstance(each, Turn))

    conversations.holds(scenario)


def test_the_owner_is_whom_the_first_turn_named(conversations):
    async def scenario(store):
        await store.append(turn(2), "user:eve")
        await store.append(turn(1), "user:ada")
        await store.append(turn(1, "s2"), "session:s2")
        assert (await store.head("s1")).owner == "user:ada"
        assert (await store.head("s2")).owner == "session:s2"
        assert await store.ids("s1") == ("s1-1", "s1-2")

    conversations.holds(scenario)


def test_the_head_tells_of_turns(conversations):
    async def scenario(store):
        assert await store.head("s1") is None
        await store.append(turn(3, at=30.5), "user:ada")
        await store.append(turn(1, at=10.5), "user:ada")
        assert await store.head("s1") == ConversationHead("user:ada", 10.5, 30.5, 3)

    conversations.holds(scenario)


def test_a_profile_makes_a_session_that_has_no_turn_yet(conversations):
    async def scenario(store):
        await store.set_profile("s1", "user:ada", PROFILE, revision=1, at=5.5)
        assert await store.ids("s1") == ()
        assert await store.head("s1") == ConversationHead("user:ada", 5.5, 5.5, 0, PROFILE, 1)
        await store.append(turn(1, at=7.5), "user:ada")
        await store.set_profile("s1", "user:ada", Profile(), revision=2, at=6.5)
        assert await store.head("s1") == ConversationHead("user:ada", 5.5, 7.5, 1, Profile(), 2)
        assert await store.turns("s1") == (turn(1, at=7.5),)

    conversations.holds(scenario)


def test_a_profile_keeps_the_order_of_its_context(conversations):
    async def scenario(store):
        await store.set_profile("s1", "o", PROFILE, revision=1, at=5.5)
        head = await store.head("s1")
        assert list(head.profile.context) == ["zone", "language"]

    conversations.holds(scenario)


def test_a_profile_is_changed_by_one_of_those_who_saw_it(conversations):
    async def scenario(store):
        await store.set_profile("s1", "o", PROFILE, revision=1, at=1.0)
        await store.set_profile("s1", "o", PROFILE, revision=1, at=1.0)  # its first reply was lost on the way
        rivals = [Profile(str(n)) for n in range(10)]
        outcomes = await asyncio.gather(
            *(store.set_profile("s1", "o", each, revision=2, at=2.0) for each in rivals), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in outcomes) == ["NoneType"] + ["StaleSession"] * 9
        head = await store.head("s1")
        assert (head.profile, head.revision) == (rivals[outcomes.index(None)], 2)
        for revision in (1, 4):
            with pytest.raises(StaleSession, match=f"revision {revision - 1}"):
                await store.set_profile("s1", "o", Profile("late"), revision=revision, at=3.0)
        with pytest.raises(StaleSession):
            await store.set_profile("s2", "o", PROFILE, revision=2, at=3.0)
        assert await store.head("s2") is None

    conversations.holds(scenario)


def test_nobody_adds_to_anothers_session(conversations):
    async def scenario(store):
        await store.set_profile("s1", "user:ada", PROFILE, revision=1, at=1.0)
        with pytest.raises(SessionUnknown):
            await store.append(turn(1), "user:eve")
        with pytest.raises(SessionUnknown):
            await store.set_profile("s1", "user:eve", Profile(), revision=2, at=1.0)
        await store.append(turn(1, "s2"), "user:ada")
        with pytest.raises(SessionUnknown):
            await store.set_profile("s2", "user:eve", PROFILE, revision=1, at=1.0)
        assert await store.turns("s1") == ()
        assert (await store.head("s2")).revision == 0

    conversations.holds(scenario)


def test_a_deleted_session_is_gone_and_nothing_is_ever_added_to_it(conversations):
    async def scenario(store):
        for number in (1, 2):
            await store.append(turn(number), "o")
        await store.append(turn(1, "s2"), "o")
        await store.set_profile("s1", "o", PROFILE, revision=1, at=1.0)
        assert sorted(await store.delete("s1")) == ["s1-1", "s1-2"]
        assert await store.delete("s1") == ()
        assert await store.turns("s1") == await store.latest("s1", limit=9) == ()
        assert await store.find("s1-1") is None
        assert await store.ids("s1") == ()
        with pytest.raises(SessionUnknown, match="s1"):
            await store.head("s1")
        for late in (turn(1), turn(3)):
            with pytest.raises(SessionUnknown, match="s1"):
                await store.append(late, "o")
        for revision in (1, 2):
            with pytest.raises(SessionUnknown):
                await store.set_profile("s1", "o", PROFILE, revision=revision, at=2.0)
        assert await store.turns("s2") == (turn(1, "s2"),)

    conversations.holds(scenario)


def test_turns_that_race_with_a_deletion_are_gone_or_refused(conversations):
    async def scenario(store):
        await store.append(turn(1), "o")
        appends = [store.append(turn(2 + n), "o") for n in range(10)]
        outcomes = await asyncio.gather(*appends[:5], store.delete("s1"), *appends[5:], return_exceptions=True)
        assert {type(each) for each in outcomes} <= {Turn, tuple, SessionUnknown}
        assert await store.turns("s1") == ()

    conversations.holds(scenario)


def test_it_answers_a_ping(conversations):
    async def scenario(store):
        await store.ping()

    conversations.holds(scenario)
