"""What every ConversationStore does."""

import asyncio

import msgspec
import pytest

from orchestra.errors import StaleSession
from orchestra.model import Turn, Usage


def turn(number: int, session_id: str = "s1", /, **changes) -> Turn:
    first = Turn(f"{session_id}-{number}", session_id, number, "c", "Hello", "Hi", "unified", "offline", 1.0)
    return msgspec.structs.replace(first, **changes)


def test_an_unknown_session_has_no_turns_and_no_owner(conversations):
    async def scenario(store):
        assert await store.turns("unknown") == ()
        assert await store.latest("unknown", limit=5) == ()
        assert await store.owner("unknown") is None

    conversations.holds(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"message": "☎ \U0001f600 'quoted' \"\\\n\t$1 %s", "reply": "x" * 400_000},
        {"at": 1_700_000_000.123_456_7, "usage": Usage(12, 34_000)},
        {"degraded": ("memory",)},
        {"degraded": ("memory", "external APIs")},
        {"reply": "", "model": "", "number": 2**31 - 1},
    ],
)
def test_a_turn_comes_back_as_it_was(conversations, changes):
    async def scenario(store):
        appended = turn(1, **changes)
        await store.append(appended, "user:ada")
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


def test_another_turn_of_the_same_number_is_stale(conversations):
    async def scenario(store):
        await store.append(turn(1), "user:ada")
        with pytest.raises(StaleSession, match="s1 already has a turn 1"):
            await store.append(turn(1, id="other"), "user:eve")
        assert await store.turns("s1") == (turn(1),)
        assert await store.owner("s1") == "user:ada"

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
        assert await store.owner("s1") == "user:ada"
        assert await store.owner("s2") == "session:s2"

    conversations.holds(scenario)


def test_it_answers_a_ping(conversations):
    async def scenario(store):
        await store.ping()

    conversations.holds(scenario)
