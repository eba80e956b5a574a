"""Histories within their limits: whole exchanges, the oldest first, what is pinned stays."""

from operator import mul

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestra import limits
from orchestra.adapters.redis import _record
from orchestra.chat.trimming import (
    MESSAGE_BYTES,
    MESSAGE_TOKENS,
    counted,
    exchange_of,
    room_fault,
    size_of,
    trimmed,
    with_profile,
    with_turn,
)
from orchestra.engines.apology import Apology
from orchestra.model import Message, Profile, Session, Turn

NEW = Session("s", "user:ada", 0, 1.0, 1.0)


def turn(number: int, message: str = "q", reply: str = "a", engine: str = "unified") -> Turn:
    return Turn(f"t{number}", "s", number, "c", message, reply, engine, "m", float(number))


def of(session: Session) -> list[int]:
    """The turns in the history, each as often as it has messages."""
    return [message.turn for message in session.messages]


def after(session: Session, *turns: Turn) -> Session:
    for each in turns:
        session = with_turn(session, each)
    return session


def test_a_turn_adds_its_exchange_and_what_it_takes() -> None:
    session = with_turn(NEW, turn(1, "Hello there", "Hi"))
    assert session.messages == (Message("user", "Hello there", 1), Message("assistant", "Hi", 1))
    assert (session.version, session.updated_at) == (1, 1.0)
    assert session.tokens == 2 + 1 + 2 * MESSAGE_TOKENS
    assert size_of(session) - size_of(NEW) == 11 + 2 + 2 * MESSAGE_BYTES


def test_an_apology_counts_as_a_turn_and_stays_out() -> None:
    session = after(NEW, turn(1), turn(2, engine=Apology.name))
    assert of(session) == [1, 1]
    assert session.version == 2
    assert session.tokens == counted(session)


def test_of_the_hundredth_message_on_the_oldest_exchange_goes() -> None:
    full = after(NEW, *(turn(number) for number in range(1, 51)))
    assert len(full.messages) == limits.SESSION_MESSAGES_MAX
    assert of(full)[0] == 1
    one_more = with_turn(full, turn(51))
    assert len(one_more.messages) == limits.SESSION_MESSAGES_MAX
    assert of(one_more)[:3] == [2, 2, 3]
    assert one_more.tokens == counted(one_more)


def words(tokens: int) -> str:
    """A text of so many tokens."""
    return " a" * tokens


def test_tokens_are_used_to_the_last_and_the_oldest_go_for_more() -> None:
    half = limits.SESSION_TOKENS_MAX // 2 - 2 * MESSAGE_TOKENS - 1
    full = after(NEW, turn(1, words(half)), turn(2, words(half)))
    assert full.tokens == limits.SESSION_TOKENS_MAX
    assert of(full) == [1, 1, 2, 2]
    assert of(after(NEW, turn(1, words(half)), turn(2, words(half + 1)))) == [2, 2]


def test_bytes_are_used_to_the_last_and_the_oldest_go_for_more() -> None:
    each = (limits.SESSION_BYTES_MAX - size_of(NEW)) // 2 - 2 * MESSAGE_BYTES - 1
    full = after(NEW, turn(1, "\n" * each), turn(2, "\n" * each))  # one token, however many
    assert limits.SESSION_BYTES_MAX - 1 <= size_of(full) <= limits.SESSION_BYTES_MAX
    assert of(full) == [1, 1, 2, 2]
    assert of(after(NEW, turn(1, "\n" * each), turn(2, "\n" * (each + 2)))) == [2, 2]


def test_an_exchange_that_is_too_large_alone_stays_out_and_takes_nothing_with_it() -> None:
    small = after(NEW, turn(1), turn(2))
    large = with_turn(small, turn(3, reply=words(limits.SESSION_TOKENS_MAX)))
    assert large.messages == small.messages
    assert (large.version, large.tokens) == (3, small.tokens)
    assert of(with_turn(large, turn(4))) == [1, 1, 2, 2, 4, 4]
    exactly = limits.SESSION_TOKENS_MAX - 2 * MESSAGE_TOKENS - 1
    assert of(with_turn(small, turn(3, reply=words(exactly)))) == [3, 3]
    assert of(with_turn(small, turn(3, reply=words(exactly + 1)))) == [1, 1, 2, 2]


def test_what_is_pinned_stays_and_so_does_the_instruction() -> None:
    session = replace(NEW, profile=Profile(system="Be brief.", pinned=(1, 3)))
    session = after(session, *(turn(number) for number in range(1, 61)))
    assert of(session) == [1, 1, 3, 3, *(number for number in range(13, 61) for _ in "qa")]
    assert len(session.messages) == limits.SESSION_MESSAGES_MAX
    assert session.profile.system == "Be brief."


def test_a_profile_brings_its_pinned_turns_along_and_takes_its_room() -> None:
    full = after(NEW, *(turn(number) for number in range(1, 61)))
    pinned = with_profile(full, Profile("x" * 80, (2, 20)), 1, [turn(2), turn(20)])
    assert of(pinned) == [2, 2, *(number for number in range(12, 61) for _ in "qa")]
    assert pinned.revision == 1
    assert pinned.tokens == counted(pinned) == counted(full) + 10 + MESSAGE_TOKENS


@pytest.mark.parametrize(
    ("profile", "texts", "fault"),
    [
        (Profile(), [("q", "a")] * 25, None),
        (Profile(), [("q", "a")] * 26, "52 messages, at most 50 are allowed"),
        (Profile(), [(words(49_991), "a")], None),
        (Profile(), [(words(49_992), "a")], "50001 tokens, at most 50000 are allowed"),
        (Profile(system="a"), [(words(49_987), "a")], "50001 tokens, at most 50000 are allowed"),
        (Profile(), [("x" * 350_000, "a"), ("x" * 160_000, "a")], "tokens"),
    ],
)
def test_pinned_turns_and_profile_take_half_at_most(profile, texts, fault) -> None:
    said = room_fault(profile, [turn(number, *each) for number, each in enumerate(texts, start=1)])
    assert said == fault or (fault is not None and fault in (said or ""))


texts = st.builds(mul, st.sampled_from(["x", " a", "漢", "é1 ", "\n", "\U0001f600"]), st.integers(0, 400))
exchanges = st.lists(st.tuples(texts, texts), min_size=1, max_size=30)


@given(exchanges, st.frozensets(st.integers(1, 8), max_size=2))
@settings(deadline=None)
def test_a_history_is_pinned_and_newest_whole_exchanges_within_the_limits(said, pins) -> None:
    """Under limits that are small enough to be met all the time."""
    turns = {number: turn(number, *each) for number, each in enumerate(said, start=1)}
    turns |= {number: turn(number, "p", "p") for number in sorted(pins & turns.keys())}
    session = replace(NEW, profile=Profile(pinned=tuple(sorted(pins))))
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        for limit, most in (("MESSAGES", 10), ("TOKENS", 300), ("BYTES", 2_500)):
            patch.setattr(limits, f"SESSION_{limit}_MAX", most)
        for each in turns.values():
            session = with_turn(session, each)
            taken += [each.number] if session.messages[-1:] == exchange_of(each)[1:] else []
            assert len(session.messages) <= 10
            assert session.tokens == counted(session) <= 300
            assert len(_record(session)) <= size_of(session) <= 2_500
            must_stay = tuple(message for message in session.messages if message.turn in pins)
            alone = replace(session, messages=must_stay + exchange_of(each))
            assert (each.number in taken) == (counted(alone) <= 300 and size_of(alone) <= 2_500)
    kept = list(dict.fromkeys(of(session)))
    assert session.messages == tuple(message for number in kept for message in exchange_of(turns[number]))
    assert pins & turns.keys() <= set(kept)
    newest = [number for number in kept if number not in pins]
    assert (
        newest
        == [number for number in taken if number not in pins][len(taken) - len(pins & set(taken)) - len(newest) :]
    )
    assert session.version == len(said)


def test_a_session_given_from_outside_is_trimmed_too() -> None:
    """A client that keeps its own history may begin it with an instruction, and with messages of no turn."""
    given_messages = (
        Message("system", "s"),
        *(Message(role, "x") for _ in range(60) for role in ("user", "assistant")),
    )
    session = with_turn(replace(NEW, messages=given_messages), turn(1))
    assert len(session.messages) == limits.SESSION_MESSAGES_MAX
    assert session.messages[0].role == "user"
    assert of(session)[-2:] == [1, 1]
    assert trimmed(session) is session


def test_the_size_bounds_what_is_stored_also_at_the_longest_ids_and_numbers() -> None:
    longest = "x" * limits.ID_CHARS_MAX
    profile = Profile("é" * 999, (2**31 - 1,) * 25, {str(n): "\n" * n for n in range(64)}, {"k": "☎"})
    messages = tuple(Message("assistant", "x" * 70_000, 2**31 - 1) for _ in range(9))
    session = Session(longest, f"session:{longest}", 2**31, 1e10, 1e10, messages, profile, 2**31, 2**31)
    assert len(_record(session)) <= size_of(session) <= len(_record(session)) + 3_000
