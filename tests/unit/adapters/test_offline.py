"""The offline model: a small conversation makes sense, and it never pretends."""

import asyncio

from orchestra.adapters.offline import DISCLAIMER, MODEL, OfflineProvider
from orchestra.model import Delta, Finish, Message, Prompt, Recollection

HELLO = Message("user", "Hello, my name is Ada and I sail on Lake Geneva")


def said(*messages: Message, recalled: tuple[str, ...] = ()) -> str:
    async def read() -> list:
        prompt = Prompt(messages, tuple(Recollection(each, 0.4) for each in recalled))
        return [chunk async for chunk in OfflineProvider().complete(prompt)]

    *pieces, last = asyncio.run(read())
    assert isinstance(last, Finish)
    assert last.model == MODEL
    assert len(pieces) > 3
    text = "".join(each.text for each in pieces if isinstance(each, Delta))
    assert text.endswith(DISCLAIMER)
    return text.removesuffix(DISCLAIMER).strip()


def user(text: str) -> Message:
    return Message("user", text)


def test_a_name_is_greeted_and_noted():
    assert said(HELLO) == 'Hello Ada. I have noted: "Hello, my name is Ada and I sail on Lake Geneva".'


def test_a_question_is_answered_from_the_history():
    history = (HELLO, Message("assistant", said(HELLO)), user("I keep bees. My boat is red."))
    assert said(*history, user("What is my name?")) == f'You told me: "{HELLO.content}".'
    assert said(*history, user("What colour is my boat?")) == 'You told me: "My boat is red".'


def test_the_latest_word_wins():
    history = (user("My boat is red."), user("My boat is blue."), user("Is my boat red?"))
    assert said(*history[:2], user("Which boat?")) == 'You told me: "My boat is blue".'
    assert said(*history, user("Which boat?")) == 'You told me: "My boat is blue".'  # a question told nothing


def test_a_question_in_another_session_is_answered_from_memory():
    answer = said(user("Where do I sail?"), recalled=("My dog is Rex", HELLO.content))
    assert answer == f'From an earlier conversation I recall: "{HELLO.content}".'


def test_what_it_was_not_told_it_does_not_know():
    assert said(HELLO, user("Who won the match?")) == "I do not know: nothing you have told me speaks of that."
    assert said(user("What?")) == "I do not know: nothing you have told me speaks of that."


def test_a_long_message_is_quoted_in_part():
    assert len(said(user("word " * 20_000))) < 400


def test_others_run_while_it_streams():
    async def main() -> int:
        steps = 0

        async def other() -> None:
            nonlocal steps
            while True:
                steps += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        async for _ in OfflineProvider().complete(Prompt((HELLO,))):
            pass
        task.cancel()
        return steps

    assert asyncio.run(main()) > 2
