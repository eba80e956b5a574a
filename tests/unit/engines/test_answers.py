"""The answer cache: the same question, lately, and within bounds; and the apology."""

import asyncio

import pytest

from orchestra import limits
from orchestra.engines.answers import AnswerCache
from orchestra.engines.apology import TEXT, Apology
from orchestra.engines.engine import Engine, Task
from orchestra.errors import NotFound
from orchestra.model import Chunk, Delta, Finish, Message, Profile, Recollection, Sampling, Session

FINISH = Finish("stop", "model")


def task(
    message: str,
    *history: str,
    recalled: tuple[Recollection, ...] = (),
    sampling: Sampling | None = None,
    profile: Profile | None = None,
) -> Task:
    messages = tuple(Message("user", text) for text in history)
    session = Session("s", "session:s", 0, 0.0, 0.0, messages, profile=profile or Profile())
    return Task("c", message, session, recalled, sampling or Sampling())


def said(engine: Engine, it: Task) -> list[Chunk]:
    async def listen() -> list[Chunk]:
        return [chunk async for chunk in engine.answer(it)]

    return asyncio.run(listen())


class Hours:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_same_question_is_answered_again() -> None:
    cache = AnswerCache(Hours())
    cache.keep(task("why?"), "because", FINISH)
    assert said(cache, task("why?")) == [Delta("because"), FINISH]
    assert said(cache, task("why?")) == [Delta("because"), FINISH]


@pytest.mark.parametrize(
    "other",
    [
        task("why not?"),
        task("why?", "earlier"),
        task("why?", recalled=(Recollection("mine", 0.9),)),
        task("why?", recalled=(Recollection("yours", 0.8),)),
        task("why?", sampling=Sampling(temperature=0.0)),
        task("why?", profile=Profile(system="Be brief.")),
        task("why?", profile=Profile(context={"language": "fr"})),
    ],
)
def test_another_question_is_not(other: Task) -> None:
    cache = AnswerCache(Hours())
    cache.keep(task("why?"), "because", FINISH)
    cache.keep(task("why?", recalled=(Recollection("mine", 0.8),)), "because of you", FINISH)
    with pytest.raises(NotFound):
        said(cache, other)


def test_what_depends_on_a_history_is_not_kept() -> None:
    cache = AnswerCache(Hours())
    cache.keep(task("why?", "earlier"), "because", FINISH)
    for history in ((), ("earlier",)):
        with pytest.raises(NotFound):
            said(cache, task("why?", *history))


def test_what_was_answered_in_a_deleted_session_is_forgotten() -> None:
    cache = AnswerCache(Hours())
    cache.keep(task("why?"), "because", FINISH)
    cache.forget("t")
    assert said(cache, task("why?"))
    cache.forget("s")
    assert cache._chars == 0
    with pytest.raises(NotFound):
        said(cache, task("why?"))


def test_an_answer_grows_old() -> None:
    hours = Hours()
    cache = AnswerCache(hours)
    cache.keep(task("why?"), "because", FINISH)
    hours.now += limits.ANSWER_SECONDS_MAX - 0.001
    assert said(cache, task("why?"))
    hours.now += 0.001
    with pytest.raises(NotFound):
        said(cache, task("why?"))


def test_the_oldest_goes_where_there_are_too_many() -> None:
    cache = AnswerCache(Hours())
    for number in range(limits.ANSWERS_MAX + 1):
        cache.keep(task(str(number)), "x", FINISH)
    with pytest.raises(NotFound):
        said(cache, task("0"))
    assert said(cache, task("1"))
    assert said(cache, task(str(limits.ANSWERS_MAX)))


def test_the_oldest_goes_where_they_are_too_long() -> None:
    cache = AnswerCache(Hours())
    half = "x" * (limits.ANSWERS_CHARS_MAX // 2)
    cache.keep(task("a"), half, FINISH)
    cache.keep(task("b"), half, FINISH)
    assert said(cache, task("a"))
    cache.keep(task("b"), half, FINISH)  # the same once more takes no more room
    assert said(cache, task("a"))
    cache.keep(task("c"), "y", FINISH)
    with pytest.raises(NotFound):
        said(cache, task("a"))
    assert said(cache, task("b"))
    cache.keep(task("d"), "x" * (limits.ANSWERS_CHARS_MAX + 1), FINISH)
    with pytest.raises(NotFound):
        said(cache, task("d"))
    assert said(cache, task("c"))


def test_an_apology_claims_nothing() -> None:
    assert said(Apology(), task("why?")) == [Delta(TEXT), Finish("apology", "apology")]
