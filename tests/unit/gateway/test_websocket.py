"""The WebSocket's edges in virtual time: who sees what, what is refused and how, and how it ends."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from orchestra import limits
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.chat.turns import LiveTurns
from orchestra.events import ConnectionClosed, UnexpectedError
from orchestra.model import Chunk, Delta, Finish, Prompt
from orchestra.resilience.degradation import Degradation, Level
from sim import asgi
from sim.faults import StoreDown


async def answers(prompt: Prompt) -> AsyncGenerator[Chunk, None]:
    for word in ("One ", "two ", "three."):
        await asyncio.sleep(1)
        yield Delta(word)
    yield Finish("stop", "scripted-model")


def numbered(frames):
    """Tell frames of turns by what makes them one of a kind, and others by their type."""
    return [(each["type"], each["seq"]) if "seq" in each else each["type"] for each in frames]


# --- before acceptance


def test_a_wrong_id_in_the_path_is_refused_before_acceptance(visit):
    wrong = {
        "/chat/ws/-anna/lake": "client_id",
        "/chat/ws/anna/a%20b": "session_id",
        "/chat/ws/anna/" + "x" * 129: "session_id",
    }

    async def story(client):
        for path, field in wrong.items():
            with pytest.raises(asgi.Refused) as refused:
                async with asgi.websocket(client.app, path):
                    pytest.fail("it must not open")
            answer = refused.value.response
            assert (answer.status, json.loads(answer.text)["field"]) == (400, field)

    visit(story, answers)


def test_a_page_of_another_origin_is_refused_before_acceptance(visit):
    cases = {
        ("chat.example", "https://chat.example"): True,
        ("Chat.example:8000", "http://chat.example:8000"): True,
        ("chat.example:80", "http://chat.example"): True,
        ("chat.example", None): True,
        ("127.0.0.1:8000", "https://front.example"): True,  # by the setting
        ("127.0.0.1:8000", "https://evil.example"): False,
        ("127.0.0.1:8000", "http://127.0.0.1:8001"): False,
        ("127.0.0.1:8000", "null"): False,
        ("127.0.0.1:8000", ""): False,
        ("front.example.evil", "https://front.example.evi"): False,
    }

    async def story(client):
        for (host, origin), welcome in cases.items():
            headers = [("host", host), *([("origin", origin)] if origin is not None else [])]
            if welcome:
                async with asgi.websocket(client.app, "/chat/ws/anna/lake", headers) as socket:
                    assert json.loads(await socket.receive())["type"] == "ready"
                continue
            with pytest.raises(asgi.Refused) as refused:
                async with asgi.websocket(client.app, "/chat/ws/anna/lake", headers):
                    pytest.fail(f"{origin} must not open {host}")
            answer = refused.value.response
            assert (answer.status, json.loads(answer.text)["type"]) == (403, "urn:ai-orchestra:problem:forbidden")

    visit(story, answers, origins_allowed=("https://front.example",))


def test_an_ordinary_request_is_told_that_the_path_is_for_websockets(visit):
    async def story(client):
        answer = await client.ask("GET", "/chat/ws/anna/lake")
        assert answer.status == 400
        assert "WebSocket" in answer.text
        assert len((await client.resolve(ConnectionHandlers)).pool) == 0

    visit(story, answers)


# --- messages


def test_frames_sent_before_ready_wait_their_turn_in_order(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            talk.say("ping", id="p1")
            talk.say("message", id="m1", message="Hello")
            talk.say("ping", id="p2")
            heard = [await talk.hear() for _ in range(5)]
            assert [each["type"] for each in heard] == ["ready", "pong", "accepted", "started", "pong"]
            await talk.until("done")

    visit(story, answers)


def test_messages_of_a_session_are_answered_one_after_the_other(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for number in range(3):
                talk.say("message", id=f"m{number}", message=f"question {number}")
            done = []
            while len(done) < 3:
                done.append((await talk.until("done"))[-1]["turn_id"])
            assert asyncio.get_running_loop().time() == pytest.approx(9, abs=0.01)
        async with talking(client) as talk:
            history = (await talk.hear())["history"]
            assert [(turn["message"], turn["id"]) for turn in history] == [
                (f"question {number}", done[number]) for number in range(3)
            ]

    visit(story, answers)


def test_so_many_messages_may_wait_and_the_next_is_told_that_they_do(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for number in range(limits.TURNS_PER_CONNECTION_MAX + 1):
                talk.say("message", id=f"m{number}", message="Hello")
            error = (await talk.until("error"))[-1]
            assert (error["kind"], error["id"], error["retryable"]) == ("overloaded", "m8", True)
            await talk.until("done")
            talk.say("message", id="m8", message="Hello")
            assert (await talk.until("accepted"))[-1]["id"] == "m8"
            for _ in range(8):
                await talk.until("done")

    visit(story, answers)


def test_a_message_that_comes_again_is_the_same_turn_while_it_runs_and_after(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            await talk.until("delta")
            talk.say("message", id="m1", message="Hello")
            heard = await talk.until("done")
            assert numbered(heard) == ["accepted", ("delta", 3), ("delta", 4), ("done", 5)]
            talk.say("message", id="m1", message="Hello")
            accepted, *log = await talk.until("done")
            assert {each["turn_id"] for each in log} == {accepted["turn_id"]} == {heard[-1]["turn_id"]}
            assert log[-1]["reply"]["reply"] == "One two three."
            talk.say("message", id="m1", message="Something else")
            error = await talk.hear()
            assert (error["kind"], error["id"], error["status"]) == ("key-reused", "m1", 422)
        assert len(await client.service.ports.conversations.latest("lake", limit=9)) == 1

    visit(story, answers)


def test_a_cancelled_turn_ends_with_an_error_stops_the_provider_and_is_not_kept(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            turn_id = (await talk.until("delta"))[-1]["turn_id"]
            talk.say("cancel", turn_id=turn_id)
            error = await talk.hear()
            assert (error["kind"], error["turn_id"], error["seq"]) == ("turn-cancelled", turn_id, 3)
            assert client.provider.running == 0
        assert await client.service.ports.conversations.latest("lake", limit=9) == ()

    visit(story, answers)


def test_an_unknown_turn_is_said_to_be_unknown(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for frame in ("cancel", "resume"):
                talk.say(frame, turn_id="f" * 32)
                error = await talk.hear()
                assert (error["kind"], error["turn_id"], error["status"]) == ("turn-unknown", "f" * 32, 404)
                assert "seq" not in error

    visit(story, answers)


def test_what_is_no_turns_id_is_refused_and_neither_looked_for_nor_repeated(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for frame in ("cancel", "resume"):
                for turn_id in ("a\0b", "x" * 129, ""):
                    talk.say(frame, turn_id=turn_id)
                    error = await talk.hear()
                    assert (error["kind"], error["field"], "turn_id" in error) == (
                        "invalid-request",
                        "$.turn_id",
                        False,
                    )
            talk.say("resume", turn_id="f" * 32, after=2**53)
            error = await talk.hear()
            assert (error["kind"], error["field"]) == ("invalid-request", "$.after")
            talk.say("resume", turn_id="f" * 32, after=2**53 - 1)
            assert (await talk.hear())["kind"] == "turn-unknown"

    visit(story, answers)


# --- several clients, and coming back


def test_everybody_in_a_session_sees_everybodys_turns_once_and_in_order(visit, talking):
    async def story(client):
        async with talking(client, "anna") as anna, talking(client, "ben") as ben, talking(client, "cy", "sea") as cy:
            for each in (anna, ben, cy):
                await each.hear()
            anna.say("message", id="m1", message="Hello")
            _, *hers = await anna.until("done")
            his = await ben.until("done")
            assert numbered(hers) == [("started", 1), ("delta", 2), ("delta", 3), ("delta", 4), ("done", 5)]
            assert his == hers
            assert his[0]["client_id"] == "anna"
            cy.say("ping")
            assert (await cy.hear())["type"] == "pong"  # and nothing before it

    visit(story, answers)


def test_a_client_that_comes_back_resumes_after_what_it_saw_and_misses_and_repeats_nothing(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            seen = (await talk.until("delta"))[1:]
            talk.socket.close(1006)
            turn_id = seen[0]["turn_id"]
        async with talking(client) as talk:
            ready = await talk.hear()
            assert ready["live"] == [{"turn_id": turn_id, "seq": 2}]
            await asyncio.sleep(1.5)  # what comes meanwhile stays silent until it is resumed
            talk.say("resume", turn_id=turn_id, after=seen[-1]["seq"])
            talk.say("resume", turn_id=turn_id, after=0)  # once is enough
            seen += await talk.until("done")
            assert numbered(seen) == [("started", 1), ("delta", 2), ("delta", 3), ("delta", 4), ("done", 5)]
            talk.say("ping")
            assert (await talk.hear())["type"] == "pong"

    visit(story, answers)


def test_resuming_what_is_seen_already_repeats_nothing(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            turn_id = (await talk.until("delta"))[-1]["turn_id"]
            talk.say("resume", turn_id=turn_id, after=0)
            assert numbered(await talk.until("done")) == [("delta", 3), ("delta", 4), ("done", 5)]
            talk.say("ping")
            assert (await talk.hear())["type"] == "pong"

    visit(story, answers)


def test_of_a_turn_that_ended_meanwhile_resuming_brings_the_whole_reply(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            turn_id = (await talk.until("delta"))[-1]["turn_id"]
        await asyncio.sleep(300)
        async with talking(client) as talk:
            assert [turn["id"] for turn in (await talk.hear())["history"]] == [turn_id]
            talk.say("resume", turn_id=turn_id, after=2)
            assert (await talk.until("done"))[-1]["reply"]["reply"] == "One two three."

    visit(story, answers)


def test_a_turn_that_two_ask_for_runs_once_and_both_see_it_from_its_beginning(visit, talking):
    async def story(client):
        async with talking(client, "anna") as anna:
            await anna.hear()
            anna.say("message", id="m1", message="Hello")
            await anna.until("delta")
            async with talking(client, "anna") as other_tab:
                await other_tab.hear()
                other_tab.say("message", id="m1", message="Hello")
                heard = await other_tab.until("done")
                assert numbered(heard) == [
                    "accepted", ("started", 1), ("delta", 2), ("delta", 3), ("delta", 4), ("done", 5)
                ]  # fmt: skip
            assert numbered(await anna.until("done")) == [("delta", 3), ("delta", 4), ("done", 5)]
        assert client.provider.said == 4

    visit(story, answers)


# --- levels


def test_a_new_level_is_told_to_all_and_of_steps_at_once_only_the_last(visit, talking):
    async def story(client):
        degradation = await client.resolve(Degradation)
        async with talking(client, "anna") as anna, talking(client, "ben") as ben:
            await anna.hear()
            await ben.hear()
            degradation.latch(Level.ESSENTIAL, "a test")
            told = [await each.hear() for each in (anna, ben)]
            off = ["analytics", "collaboration", "swarm", "memory", "streaming"]
            assert told == [{"type": "level", "level": "ESSENTIAL", "off": off}] * 2
            degradation.latch(Level.NORMAL, "a test")
            assert await anna.hear() == {"type": "level", "level": "NORMAL", "off": []}

    visit(story, answers)


def test_where_the_level_has_no_collaboration_each_client_sees_its_own_turns(visit, talking):
    async def story(client):
        (await client.resolve(Degradation)).latch(Level.LIMITED, "a test")
        async with talking(client, "anna") as anna, talking(client, "ben") as ben:
            assert (await anna.hear())["level"] == (await ben.hear())["level"] == "LIMITED"
            anna.say("message", id="m1", message="Hello")
            assert (await anna.until("done"))[-1]["reply"]["reply"] == "One two three."
            ben.say("ping")
            assert (await ben.hear())["type"] == "pong"  # and nothing of it before

    visit(story, answers)


def test_collaboration_goes_and_comes_back_with_the_level_turn_by_turn(visit, talking):
    async def story(client):
        degradation = await client.resolve(Degradation)
        whole = [("started", 1), ("delta", 2), ("delta", 3), ("delta", 4), ("done", 5)]
        async with talking(client, "anna") as anna, talking(client, "ben") as ben:
            await anna.hear()
            await ben.hear()

            # one that was shown from its beginning is shown to its end
            anna.say("message", id="m1", message="First")
            assert numbered([await ben.hear(), await ben.hear()]) == whole[:2]
            degradation.latch(Level.LIMITED, "a test")
            assert numbered(await ben.until("done")) == ["level", *whole[2:]]
            await anna.until("done")

            # one that begins now is not, but for who asked, and who resumes it
            anna.say("message", id="m2", message="Second")
            turn_id = (await anna.until("accepted"))[-1]["turn_id"]
            await anna.until("delta")
            ben.say("message", id="m3", message="My own")
            ben.say("resume", turn_id=turn_id, after=1)
            heard = await ben.until("done") + await ben.until("done")
            own = next(each["turn_id"] for each in heard if each["type"] == "accepted")
            assert numbered([each for each in heard if each.get("turn_id") == turn_id]) == whole[1:]
            assert numbered([each for each in heard if each.get("turn_id") == own]) == ["accepted", *whole]
            assert len(heard) == len(whole) - 1 + 1 + len(whole)
            assert numbered(await anna.until("done")) == whole[2:]  # and nothing of ben's

            # one that began unseen stays so, and the next is seen again
            anna.say("message", id="m4", message="Fourth")
            await anna.until("delta")
            degradation.latch(Level.NORMAL, "a test")
            await anna.until("done")
            anna.say("message", id="m5", message="Fifth")
            await anna.until("done")
            heard = await ben.until("done")
            assert numbered(heard) == ["level", *whole]
            assert heard[1]["message"] == "Fifth"
        history = json.loads((await client.ask("GET", "/chat/v2/sessions/lake")).body)["turns"]
        assert [turn["message"] for turn in history] == ["First", "Second", "My own", "Fourth", "Fifth"]

    visit(story, answers)


# --- what is wrong


WRONG_FRAMES = [
    ("{", "$", "the frame is not JSON"),
    ("", "$", "empty"),
    ("[1]", "$", "message, cancel, resume or ping"),
    ('{"type": "shout"}', "$.type", "message, cancel, resume or ping"),
    ('{"id": "m1", "message": "Hello"}', "$", "type"),
    ('{"type": "message", "id": "m1"}', "$", "message"),
    ('{"type": "message", "id": "m1", "message": 5}', "$.message", "str"),
    ('{"type": "message", "id": "m1", "message": "Hello", "colour": "red"}', "$.colour", "unknown field"),
    ('{"type": "message", "id": "no id", "message": "Hello"}', "$.id", "of your own"),
    ('{"type": "message", "id": "m1", "message": " "}', "$.message", "say something"),
    ('{"type": "message", "id": "m1", "message": "Hello", "user_id": "no id"}', "$.user_id", "leave it out"),
    ('{"type": "resume", "turn_id": "x", "after": -1}', "$.after", ">= 0"),
]


def test_a_wrong_frame_is_answered_by_what_is_wrong_and_the_next_one_is_read(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for text, field, says in WRONG_FRAMES:
                talk.socket.send(text)
                error = await talk.hear()
                assert (error["type"], error["kind"], error["status"]) == ("error", "invalid-request", 400), text
                assert (error["field"], says in error["detail"]) == (field, True), (text, error["detail"])
                talk.say("ping")
                assert (await talk.hear())["type"] == "pong"
        assert await client.service.ports.conversations.latest("lake", limit=9) == ()

    visit(story, answers)


def test_what_the_protocol_forbids_closes_the_connection_and_no_other(visit, talking):
    forbidden = [
        (b'{"type": "ping"}', 1003, "binary"),
        ("x" * (limits.REQUEST_BYTES_MAX + 1), 1009, "too large"),
        ('{"type": "ping", "id": "\ud800"}', 1007, "not UTF-8"),
    ]

    async def story(client):
        async with talking(client, "ben") as ben:
            await ben.hear()
            for data, code, reason in forbidden:
                async with talking(client) as talk:
                    await talk.hear()
                    talk.socket.send(data)
                    closed = await talk.closed()
                    assert (closed[0], closed[1].startswith(reason)) == (code, True)
                ben.say("ping")
                assert (await ben.hear())["type"] == "pong"

    visit(story, answers)


def test_a_flood_is_told_so_and_closed_and_a_burst_within_the_bound_is_answered(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            for _ in range(limits.FRAMES_BURST_MAX):
                talk.say("ping")
            assert {(await talk.hear())["type"] for _ in range(limits.FRAMES_BURST_MAX)} == {"pong"}
            await asyncio.sleep(0.5)
            for _ in range(51):
                talk.say("ping")
            heard = await talk.until("error")
            assert ([each["type"] for each in heard].count("pong"), heard[-1]["kind"]) == (50, "overloaded")
            assert await talk.closed() == (1008, "flood: too many frames")

    visit(story, answers)


def test_a_session_that_cannot_be_had_is_an_error_and_a_close_that_says_try_again(visit, talking):
    async def story(client):
        with client.faults.injected(StoreDown(store="conversations", at=0, lasts=1)):
            async with talking(client) as talk:
                error = await talk.hear()
                assert (error["type"], error["kind"], error["retryable"]) == ("error", "store-unavailable", True)
                assert (await talk.closed())[0] == 1013
        assert len((await client.resolve(ConnectionHandlers)).pool) == 0

    visit(story, answers)


def test_a_defect_in_the_answer_to_a_frame_is_told_to_the_hook_and_the_client_and_the_next_one_is_read(
    visit, talking, monkeypatch
):
    async def story(client):
        turns = await client.resolve(LiveTurns)

        async def broken(*_):
            raise LookupError("a defect")

        monkeypatch.setattr(turns, "cancel", broken)
        async with talking(client) as talk:
            await talk.hear()
            talk.say("cancel", turn_id="f" * 32)
            error = await talk.hear()
            assert (error["kind"], error["turn_id"], "defect" in error["detail"]) == ("internal", "f" * 32, False)
            talk.say("ping")
            assert (await talk.hear())["type"] == "pong"
        (event,) = client.told(UnexpectedError)
        assert (event.where, "LookupError: a defect" in event.traceback) == ("websocket", True)

    visit(story, answers)


def test_a_defect_outside_of_any_frame_closes_the_connection(visit, talking, monkeypatch):
    async def story(client):
        turns = await client.resolve(LiveTurns)

        async def broken(*_):
            raise LookupError("a defect")

        monkeypatch.setattr(turns, "running", broken)
        async with talking(client) as talk:
            assert (await talk.hear())["kind"] == "internal"
            assert (await talk.closed())[0] == 1011
        assert len(client.told(UnexpectedError)) == 1

    visit(story, answers)


# --- the end


def test_a_shutdown_says_goodbye_lets_turns_end_and_closes(visit, talking):
    async def story(client):
        handlers = await client.resolve(ConnectionHandlers)
        async with talking(client) as talk, talking(client, "ben", "sea") as ben:
            await talk.hear()
            await ben.hear()
            talk.say("message", id="m1", message="Hello")
            await talk.until("delta")
            draining = asyncio.create_task(handlers.drain(15))
            goodbye = await talk.hear()
            assert goodbye["type"] == "goodbye"
            assert 1 <= goodbye["reconnect_after_seconds"] <= 6
            assert (await ben.hear())["reconnect_after_seconds"] != goodbye["reconnect_after_seconds"]
            talk.say("message", id="m2", message="One more")
            error, *more = await talk.until("done")
            assert (error["kind"], error["id"]) == ("shutting-down", "m2")
            assert more[-1]["reply"]["reply"] == "One two three."
            for each in (talk, ben):
                assert await each.closed() == (1012, "the instance is shutting down: connect again")
            await draining
            with pytest.raises(asgi.Refused) as refused:
                async with talking(client):
                    pytest.fail("it must not open")
            assert refused.value.response.status == 503
            assert refused.value.response.header("retry-after") == "1"

    visit(story, answers)


def test_a_turn_that_outlasts_the_shutdown_is_handed_back(visit, talking):
    async def story(client):
        handlers = await client.resolve(ConnectionHandlers)
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            await talk.until("delta")
            await handlers.drain(0.5)
            error = (await talk.until("error"))[-1]
            assert (error["kind"], error["retryable"], "seq" in error) == ("shutting-down", True, True)
            assert (await talk.closed())[0] == 1012

    visit(story, answers)


def test_the_apps_end_drains_and_what_is_told_says_how_it_ended(visit, talking):
    closed = []

    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            await client.app._server_event("shutdown", "before")
            closed.append(await talk.closed())
            closed.extend(client.told(ConnectionClosed))

    visit(story, answers)
    assert closed[0][0] == 1012
    assert (closed[1].code, closed[1].sent) == (1012, 2)
