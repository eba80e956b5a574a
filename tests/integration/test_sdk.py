"""The Python SDK against services on real sockets: what it promises when they are killed, refuse, or say nothing."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import pytest
from aiohttp import web

from chaos.processes import LiveService, free_port
from orchestra.sdk import (
    Answered,
    AsyncClient,
    Began,
    Client,
    Connected,
    DeadlineExceeded,
    Disconnected,
    Failed,
    InvalidRequest,
    Overloaded,
    Restarted,
    Retries,
    SessionUnknown,
    Text,
    TurnCancelled,
    UnexpectedAnswer,
    Unreachable,
)
from tests.integration.loopback import listening

PATIENT = Retries(attempts_max=100, first_seconds=0.1, longest_seconds=0.3)
OFFLINE = 'I have noted: "hello"'


def test_three_lines_also_where_a_loop_runs(service: LiveService) -> None:
    async def notebook() -> str:
        chat = Client(service.url).session()
        return chat.say("hello").reply

    assert asyncio.run(notebook()).startswith(OFFLINE)


def test_a_session_from_its_beginning_to_its_end(service: LiveService) -> None:
    with Client(service.url) as client:
        chat = client.create_session(user_id="ada", system="Be kind.", context={"language": "German"})
        assert chat.say("hello").session_id == chat.id
        with chat.stream("hello") as turn:
            pieces = [str(event) for event in turn]
        assert len(pieces) > 5
        assert "".join(pieces) == turn.text == turn.reply.reply
        with chat.connect(client_id="anna") as conversation:
            assert conversation.say("hello").reply.startswith(OFFLINE)
        assert chat.read(limit=1).turns[0].number == 3
        assert chat.read(after=1, limit=1).turns[0].number == 2
        assert chat.read(before=2).next_after == 1
        assert [turn.number for turn in chat.turns()] == [1, 2, 3]
        assert chat.change(pinned=[2], context={"language": None}).profile.pinned == (2,)
        assert chat.read().profile.system == "Be kind."
        assert json.loads(chat.export())["version"] == 3
        assert chat.export("markdown").startswith("# ")
        chat.delete()
        for call in (chat.read, chat.delete, chat.export, lambda: chat.say("hello"), lambda: next(chat.stream("x"))):
            with pytest.raises(SessionUnknown) as raised:
                call()
            assert raised.value.status == 404
            assert raised.value.correlation_id


def test_a_session_from_its_beginning_to_its_end_on_a_loop(service: LiveService) -> None:
    async def story() -> None:
        async with AsyncClient(service.url) as client:
            chat = await client.create_session(system="Be kind.")
            assert (await chat.say("hello")).session_id == chat.id
            async with chat.stream("hello") as turn:
                pieces = [str(event) async for event in turn]
            assert len(pieces) > 5
            assert "".join(pieces) == turn.text == turn.reply.reply
            async with chat.connect(client_id="anna") as conversation:
                assert (await conversation.say("hello")).reply.startswith(OFFLINE)
            assert [turn.number async for turn in chat.turns()] == [1, 2, 3]
            assert (await chat.read(limit=1)).turns[0].number == 3
            assert (await chat.change(pinned=[2])).profile.pinned == (2,)
            assert json.loads(await chat.export())["version"] == 3
            await chat.delete()
            with pytest.raises(SessionUnknown):
                await chat.read()

    asyncio.run(story())


def test_two_in_one_session_hear_each_other(service: LiveService) -> None:
    async def story() -> None:
        async with (
            AsyncClient(service.url) as client,
            client.session("sdk-two").connect(client_id="anna") as anna,
            client.session("sdk-two").connect(client_id="ben") as ben,
        ):
            said = await anna.send("hello")
            heard = []
            async for event in ben:
                heard.append(event)
                if isinstance(event, Answered):
                    break
            assert [type(each) for each in heard[:3]] == [Connected, Began, Text]
            assert (heard[1].message, heard[1].client_id, heard[1].id) == ("hello", "anna", None)
            assert "".join(str(each) for each in heard if isinstance(each, Text)) == heard[-1].reply.reply
            async for event in anna:
                if isinstance(event, Answered):
                    assert (event.id, event.reply) == (said, heard[-1].reply)
                    break

    asyncio.run(story())


def test_a_stream_goes_on_when_the_service_was_killed_and_restarted(restartable) -> None:
    restartable.speaker.proceed.clear()
    with Client(restartable.url, retries=PATIENT) as client:
        chat = client.session()
        with chat.stream("halt") as turn:
            assert str(next(turn)) == "one "
            restartable.kill()
            starting = threading.Thread(target=restartable.start)
            starting.start()
            events = list(turn)
            starting.join()
        assert [type(each) for each in events] == [Restarted, Text, Text]
        assert turn.text == turn.reply.reply == "one two"
        assert [each.reply for each in client.session(chat.id).turns()] == ["one two"]


def test_a_conversation_goes_on_when_the_service_was_killed_and_restarted(restartable) -> None:
    async def story() -> None:
        restartable.speaker.proceed.clear()
        async with AsyncClient(restartable.url, retries=PATIENT) as client:
            chat = client.session("sdk-killed")
            async with chat.connect() as conversation:
                first = await conversation.send("halt")
                events = []
                starting = None
                async for event in conversation:
                    events.append(event)
                    if isinstance(event, Text) and starting is None:
                        restartable.kill()
                        starting = asyncio.create_task(asyncio.to_thread(restartable.start))
                        second = await conversation.send("and more", message_id="mine")
                    if sum(isinstance(each, Answered) for each in events) == 2:
                        break
                await starting
            kinds = [type(each) for each in events]
            assert kinds.index(Disconnected) < kinds.index(Restarted)
            done = [each for each in events if isinstance(each, Answered)]
            assert sorted(each.id for each in done) == sorted([first, second])
            for each in done:
                mine = [event for event in events if getattr(event, "turn_id", None) == each.turn_id]
                begun = max((n for n, event in enumerate(mine) if isinstance(event, Restarted)), default=0)
                assert "".join(str(event) for event in mine[begun:] if isinstance(event, Text)) == each.reply.reply
            assert sorted([turn.message async for turn in chat.turns()]) == ["and more", "halt"]

    asyncio.run(story())


def test_an_answer_is_stopped_and_its_providers_call_is_closed(restartable) -> None:
    restartable.speaker.proceed.clear()
    with Client(restartable.url) as client:
        chat = client.session()
        for _ in range(2):
            with chat.stream("halt, left") as turn:
                next(turn)
            assert restartable.speaker.saw_abort_of("halt, left")
            assert (chat.id or chat.say("hello").session_id) == chat.id
            assert [turn.message for turn in chat.turns()] == ["hello"]
        with chat.connect() as conversation:
            said = conversation.send("halt, cancelled")
            for event in conversation:
                if isinstance(event, Text):
                    conversation.cancel(said)
                if isinstance(event, Failed):
                    assert (event.id, type(event.error)) == (said, TurnCancelled)
                    break
        assert restartable.speaker.saw_abort_of("halt, cancelled")


def test_an_answer_that_takes_too_long_is_over_on_both_sides(restartable) -> None:
    restartable.speaker.proceed.clear()
    with Client(restartable.url) as client, pytest.raises(DeadlineExceeded):
        client.session().say("halt, slow", timeout_seconds=0.5)
    assert restartable.speaker.saw_abort_of("halt, slow")


@contextmanager
def answering(*answers: web.Response | None) -> Iterator[tuple[str, "Queue[tuple[float, str]]"]]:
    """Answer requests one after the other, None with silence; gives the URL, and when each came under which key."""
    asked: Queue[tuple[float, str]] = Queue()
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.put((time.monotonic(), request.headers.get("Idempotency-Key", "")))
        given = left.pop(0)
        return given or await asyncio.Event().wait()

    with listening(answer, "/{path:.*}") as url:
        yield url, asked


def busy(seconds: str) -> web.Response:
    problem = {"type": "urn:ai-orchestra:problem:overloaded", "title": "t", "status": 503, "detail": "busy"}
    return web.json_response(problem, status=503, headers={"Retry-After": seconds})


def test_who_is_told_to_come_later_comes_later_under_the_same_key(service: LiveService) -> None:
    with Client(service.url) as client:
        reply = client.session().say("hello")
    body = web.json_response(
        {"turn_id": "t", "session_id": "s", "correlation_id": "c", "reply": reply.reply, "engine": "e", "model": "m",
         "finish_reason": "stop", "usage": {}}
    )  # fmt: skip
    with answering(busy("1"), body) as (url, asked), Client(url) as client:
        assert client.session().say("hello").reply == reply.reply
        (first, key), (second, again) = asked.get(), asked.get()
        assert second - first >= 1
        assert key == again != ""


def test_who_is_told_to_come_much_later_is_told_so(service: LiveService) -> None:
    with answering(busy("3600")) as (url, _), Client(url) as client:
        with pytest.raises(Overloaded) as raised:
            client.session().say("hello")
        assert raised.value.retry_after_seconds == 3600


def test_silence_has_an_end() -> None:
    async def story(url: str) -> None:
        async with AsyncClient(url, timeout_seconds=0.3) as client:
            with pytest.raises(DeadlineExceeded):
                await client.session().say("hello")
            with pytest.raises(DeadlineExceeded):
                await anext(client.session().stream("hello"))

    with answering(None, None, None) as (url, _):
        asyncio.run(story(url))
        with Client(url, timeout_seconds=0.3) as client, pytest.raises(DeadlineExceeded):
            client.session().say("hello")


def test_where_nobody_or_somebody_else_answers() -> None:
    once = Retries(attempts_max=1)
    with Client(f"http://127.0.0.1:{free_port()}", retries=once) as client:
        with pytest.raises(Unreachable):
            client.session().say("hello")
        with pytest.raises(Unreachable), client.session().connect():
            pass
    page = [web.Response(text="<html>", content_type="text/html") for _ in range(3)]
    with answering(*page) as (url, _), Client(url, retries=once) as client:
        with pytest.raises(UnexpectedAnswer):
            client.session().say("hello")
        with pytest.raises(UnexpectedAnswer):
            next(client.session().stream("hello"))
        with pytest.raises(Unreachable, match="WebSocket"), client.session().connect():
            pass


def test_what_could_lead_elsewhere_is_refused_before_it_is_sent(service: LiveService) -> None:
    with Client(service.url) as client:
        for call in (
            lambda: client.session("../x"),
            lambda: client.create_session("a b"),
            lambda: client.session().connect(client_id="a/b"),
            lambda: client.session(user_id="a b"),
        ):
            with pytest.raises(InvalidRequest) as raised:
                call()
            assert raised.value.field in {"session_id", "client_id", "user_id"}
        with pytest.raises(InvalidRequest) as raised:
            client.create_session(user_id="a b")
        assert (raised.value.status, raised.value.field) == (400, "$.user_id")


def test_one_at_a_time_waits_in_a_conversation(service: LiveService) -> None:
    async def story() -> None:
        async with AsyncClient(service.url) as client, client.session().connect() as conversation:
            said = await asyncio.gather(*(conversation.say("hello") for _ in range(2)), return_exceptions=True)
            assert [type(each).__name__ for each in said] == ["ChatReply", "InvalidRequest"]
            assert (await conversation.say("hello")).reply.startswith(OFFLINE)
            assert len((await client.session(conversation.session_id).read()).turns) == 2  # the refused was not sent

    asyncio.run(story())


def test_a_conversation_is_talked_in_while_it_is_entered(service: LiveService) -> None:
    with Client(service.url) as client:
        conversation = client.session().connect()
        with conversation:
            assert conversation.say("hello").reply.startswith(OFFLINE)
        for use in (conversation.say, conversation.send, conversation.cancel, lambda _: next(conversation)):
            with pytest.raises(InvalidRequest, match="it was left: `connect` again"):
                use("hello")
        with pytest.raises(InvalidRequest, match="entered once"), conversation:
            pass
    with pytest.raises(InvalidRequest, match="closed"):
        client.session().say("hello")


def test_who_speaks_tls_to_plain_http_is_told() -> None:
    once = Retries(attempts_max=1)
    with answering(None) as (url, _), Client(url.replace("http:", "https:"), retries=once) as client:
        with pytest.raises(Unreachable, match="is it http"):
            client.session().say("hello")
        with pytest.raises(Unreachable, match="is it http"), client.session().connect():
            pass
