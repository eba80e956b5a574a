"""Turns over HTTP: repeated, resumed, cancelled, and by whom they are answered where the provider fails."""

import asyncio
import json
from itertools import product
from typing import Any

from orchestra.chat.turns import LiveTurns
from orchestra.errors import ProviderFailed, ProviderOverloaded
from orchestra.events import FellBack, TurnFinished, TurnStarted
from sim.asgi import Response, call
from tests.unit.gateway.scripts import runs

CHAT = "/chat/v2/chat"
KEY = "a-key-of-mine-01"
ONCE = {"guards": {"unified": {"retry": {"attempts_max": 1}, "fallbacks": ()}}}


SLOW = (1.0, "one ", 2.0, "two ", 2.0, "three")


def frames(answer: Response) -> list[Any]:
    """Return the frames of a stream, in order."""
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def places(answer: Response) -> list[str]:
    """Return the ids of a stream's events, in order."""
    return [line[4:] for line in answer.text.splitlines() if line.startswith("id: ")]


def brief(answer: Response) -> list[tuple[str, Any]]:
    """Return type and text of each frame."""
    return [(each["type"], each.get("text")) for each in frames(answer)]


async def leaving(client: Any, after: float, **headers: str) -> Response:
    """Ask for a stream, and go away after so many seconds."""
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): each for name, each in headers.items()}}
    body = b'{"message": "hello", "stream": true}'
    return await call(client.app, "POST", CHAT, sent, body, disconnect_after_s=after)


def begin(client: Any, body: Any, **headers: str) -> "asyncio.Task[Response]":
    return asyncio.ensure_future(client.ask("POST", CHAT, body, **headers))


# --- resuming -----------------------------------------------------------------------------------------------------


def test_a_lost_stream_goes_on_behind_the_last_event_that_came(visit: Any) -> None:
    """By GET, by its query and by POST, before the next piece, after it and after the end: nothing lost or repeated."""

    async def story(client: Any) -> None:
        for way, back_after in product(("header", "query", "post"), (0.1, 1.7, 4.0)):
            client.events.clear()
            lost = await leaving(client, 1.5)
            assert brief(lost) == [("started", None), ("delta", "one ")]
            await asyncio.sleep(back_after)
            last = places(lost)[-1]
            session_id, turn_id, seq = last.split("/")
            path = f"/chat/v2/sessions/{session_id}/turns/{turn_id}/events"
            if way == "header":
                back = await client.ask("GET", path, Last_Event_ID=last)
            elif way == "query":
                back = await client.ask("GET", f"{path}?after={seq}")
            else:
                back = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, Last_Event_ID=last)
            assert (back.status, back.header("Content-Type")) == (200, "text/event-stream")
            told = brief(back)
            assert told[-1] == ("done", None)
            assert frames(back)[-1]["reply"]["reply"] == "one two three"
            assert [each for each in brief(lost) + told if each[0] == "delta"] == [
                ("delta", "one "),
                ("delta", "two "),
                ("delta", "three"),
            ]
            assert [int(each.rpartition("/")[2]) for each in places(lost) + places(back)] == [1, 2, 3, 4, 5]
            assert len(client.told(TurnStarted)) == 1
            turns = await client.service.ports.conversations.turns(session_id)
            assert [turn.reply for turn in turns] == ["one two three"]

    visit(story, runs(SLOW))


def test_the_header_has_precedence_over_the_query(visit: Any) -> None:
    """An `EventSource` that connects again uses the same URL, and tells by the header where it stands."""

    async def story(client: Any) -> None:
        lost = await leaving(client, 3.5)
        session_id, turn_id, _ = places(lost)[0].split("/")
        path = f"/chat/v2/sessions/{session_id}/turns/{turn_id}/events"
        back = await client.ask("GET", f"{path}?after=0", Last_Event_ID=places(lost)[-1])
        assert brief(back) == [("delta", "three"), ("done", None)]

    visit(story, runs(SLOW))


def test_a_resumed_stream_stands_at_once(visit: Any) -> None:
    """Its client knows that it is back, though nothing is said for a while."""

    async def story(client: Any) -> None:
        lost = await leaving(client, 1.5)
        back = await client.ask("POST", CHAT, {"message": "hello"}, Last_Event_ID=places(lost)[-1])
        assert [(round(at, 1), piece.split(b"\n")[0]) for at, piece in back.chunks[:2]] == [
            (1.5, b": keep-alive"),
            (3.0, b"event: delta"),
        ]

    visit(story, runs(SLOW))


def test_behind_the_last_event_there_is_nothing_and_an_event_source_is_told_to_stop(visit: Any) -> None:
    """And long after the end, when the log is gone, the whole reply is what comes."""

    async def story(client: Any) -> None:
        whole = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        session_id, turn_id, last = places(whole)[-1].split("/")
        path = f"/chat/v2/sessions/{session_id}/turns/{turn_id}/events"
        again = await client.ask("GET", path, Last_Event_ID=places(whole)[-1])
        assert (again.status, again.body) == (204, b"")
        assert (await client.ask("GET", path)).body == whole.body  # the same bytes for all
        await asyncio.sleep(3600)
        (done,) = frames(await client.ask("GET", f"{path}?after={int(last) - 1}"))
        assert done["reply"] == frames(whole)[-1]["reply"]

    visit(story, runs(SLOW))


def test_a_turn_that_fails_after_its_stream_was_lost_says_so_in_the_stream(visit: Any) -> None:
    async def story(client: Any) -> None:
        lost = await leaving(client, 1.5)
        back = await client.ask("POST", CHAT, {"message": "hello"}, Last_Event_ID=places(lost)[-1])
        assert back.status == 200
        (error,) = frames(back)
        assert (error["type"], error["kind"], error["status"], error["seq"]) == ("error", "provider-failed", 502, 3)

    visit(story, runs((1.0, "one ", 2.0, ProviderFailed("it broke"))), **ONCE)


def test_what_cannot_be_resumed_says_why(visit: Any) -> None:
    async def story(client: Any) -> None:
        reply = json.loads((await client.ask("POST", CHAT, {"message": "hello"})).body)
        session_id, turn_id = reply["session_id"], reply["turn_id"]
        path = f"/chat/v2/sessions/{session_id}/turns/{turn_id}/events"
        for asked, header, status, kind, field in (
            (f"/chat/v2/sessions/{session_id}/turns/unknown/events", "", 404, "turn-unknown", "turn_id"),
            (f"/chat/v2/sessions/other/turns/{turn_id}/events", "", 404, "turn-unknown", "turn_id"),
            (f"/chat/v2/sessions/-/turns/{turn_id}/events", "", 400, "invalid-request", "session_id"),
            (f"/chat/v2/sessions/{session_id}/turns/-/events", "", 400, "invalid-request", "turn_id"),
            (f"{path}?after=x", "", 400, "invalid-request", "after"),
            (f"{path}?before=1", "", 400, "invalid-request", "before"),
            (path, "rubbish", 400, "invalid-request", "Last-Event-ID"),
            (path, f"{session_id}/another/1", 400, "invalid-request", "Last-Event-ID"),
        ):
            answer = await client.ask("GET", asked, **({"Last_Event_ID": header} if header else {}))
            problem = json.loads(answer.body)
            assert (answer.status, problem["field"]) == (status, field)
            assert problem["type"] == f"urn:ai-orchestra:problem:{kind}"
        gone = await client.ask("POST", CHAT, {"message": "hello"}, Last_Event_ID=f"{session_id}/unknown/1")
        assert gone.status == 404

    visit(story, runs(("hi",)))


# --- cancelling ---------------------------------------------------------------------------------------------------


def test_a_turn_that_is_cancelled_ends_with_its_providers_call_and_leaves_nothing(visit: Any) -> None:
    """Before the first piece, and after it."""

    async def story(client: Any) -> None:
        live = await client.resolve(LiveTurns)
        session_id = json.loads((await client.ask("POST", CHAT, {"message": "hello"})).body)["session_id"]
        for stream, after in product((True, False), (0.5, 1.5)):
            begun = begin(client, {"message": "hello", "stream": stream, "session_id": session_id})
            await asyncio.sleep(after)
            (started,) = client.told(TurnStarted)[-1:]
            (turn_id,) = [each.turn_id for each in await live.running(session_id)]
            assert client.provider.running == 1
            answer = await client.ask("DELETE", f"/chat/v2/sessions/{session_id}/turns/{turn_id}")
            assert (answer.status, answer.body) == (202, b"")
            ended = await begun
            assert client.provider.running == 0
            if stream and after > 1.0:
                *_, error = frames(ended)
                assert (error["type"], error["kind"], error["status"]) == ("error", "turn-cancelled", 409)
                assert not error["retryable"]
            else:
                assert ended.status == 409
                assert json.loads(ended.body)["type"] == "urn:ai-orchestra:problem:turn-cancelled"
            finished = client.told(TurnFinished)[-1]
            assert (finished.correlation_id, finished.error) == (started.correlation_id, "cancelled")
            assert len(await client.service.ports.conversations.turns(session_id)) == 1

    visit(story, runs(("hi",), SLOW))


def test_what_is_durable_or_unknown_is_not_cancelled(visit: Any) -> None:
    async def story(client: Any) -> None:
        reply = json.loads((await client.ask("POST", CHAT, {"message": "hello"})).body)
        path = f"/chat/v2/sessions/{reply['session_id']}/turns/"
        assert (await client.ask("DELETE", path + reply["turn_id"])).status == 202
        assert len(await client.service.ports.conversations.turns(reply["session_id"])) == 1
        unknown = await client.ask("DELETE", path + "unknown")
        assert (unknown.status, json.loads(unknown.body)["field"]) == (404, "turn_id")
        assert (await client.ask("DELETE", path + "-")).status == 400

    visit(story, runs(("hi",)))


# --- idempotency --------------------------------------------------------------------------------------------------


def test_a_key_that_comes_again_is_answered_as_the_first_time(visit: Any) -> None:
    async def story(client: Any) -> None:
        first = await client.ask("POST", CHAT, {"message": "hello"}, Idempotency_Key=KEY)
        assert first.header("Idempotency-Replayed") is None
        for key, body in (
            (KEY, {"message": "hello"}),
            (f'"{KEY}"', {"message": "hello", "stream": False}),
            (KEY, {"message": "hello", "stream": True}),
        ):
            again = await client.ask("POST", CHAT, body, Idempotency_Key=key)
            assert again.status == 200
            assert again.header("Idempotency-Replayed") == "true"
            assert json.loads(again.body) == json.loads(first.body)
        assert len(client.told(TurnStarted)) == 1
        other = await client.ask("POST", CHAT, {"message": "hello", "user_id": "ann"}, Idempotency_Key=KEY)
        assert json.loads(other.body)["turn_id"] != json.loads(first.body)["turn_id"]  # another user's key is another
        assert other.header("Idempotency-Replayed") is None

    visit(story, runs(("hi",)))


def test_a_key_with_another_message_is_422(visit: Any) -> None:
    async def story(client: Any) -> None:
        begun = begin(client, {"message": "hello"}, Idempotency_Key=KEY)
        await asyncio.sleep(0.5)
        for _ in ("in flight", "durable"):
            other = await client.ask("POST", CHAT, {"message": "goodbye"}, Idempotency_Key=KEY)
            assert other.status == 422
            assert json.loads(other.body)["type"] == "urn:ai-orchestra:problem:key-reused"
            await begun

    visit(story, runs(SLOW))


def test_a_key_in_flight_is_409_whole_and_joined_as_a_stream(visit: Any) -> None:
    async def story(client: Any) -> None:
        first = begin(client, {"message": "hello", "stream": True}, Idempotency_Key=KEY)
        await asyncio.sleep(1.5)
        whole = await client.ask("POST", CHAT, {"message": "hello"}, Idempotency_Key=KEY)
        assert (whole.status, whole.header("Retry-After")) == (409, "1")
        assert json.loads(whole.body)["type"] == "urn:ai-orchestra:problem:turn-in-flight"
        joined = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, Idempotency_Key=KEY)
        assert joined.header("Idempotency-Replayed") == "true"
        assert (await first).header("Idempotency-Replayed") is None
        assert joined.body == (await first).body  # the same bytes
        assert len(client.told(TurnStarted)) == 1

    visit(story, runs(SLOW))


def test_a_key_finds_a_turn_whose_client_left_before_it_knew_its_id(visit: Any) -> None:
    async def story(client: Any) -> None:
        assert (await leaving(client, 0.5, Idempotency_Key=KEY)).chunks == []
        await asyncio.sleep(4.0)
        back = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, Idempotency_Key=KEY)
        assert [text for name, text in brief(back) if name == "delta"] == ["one ", "two ", "three"]
        assert len(client.told(TurnStarted)) == 1

    visit(story, runs(SLOW))


def test_a_key_of_a_turn_that_failed_runs_it_anew(visit: Any) -> None:
    async def story(client: Any) -> None:
        failed = await client.ask("POST", CHAT, {"message": "hello"}, Idempotency_Key=KEY)
        assert failed.status == 502
        again = await client.ask("POST", CHAT, {"message": "hello"}, Idempotency_Key=KEY)
        assert (again.status, again.header("Idempotency-Replayed")) == (200, None)
        assert json.loads(again.body)["reply"] == "hi"

    visit(story, runs((ProviderFailed("it broke"),), ("hi",)), **ONCE)


def test_a_bad_key_is_refused_by_its_header(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello"}, Idempotency_Key="a key")
        assert (answer.status, json.loads(answer.body)["field"]) == (400, "Idempotency-Key")

    visit(story, runs(("hi",)))


# --- before the first content byte, and after it --------------------------------------------------------------------


def test_before_the_first_piece_another_attempt_answers_in_the_same_stream(visit: Any) -> None:
    provider = runs((1.0, ProviderFailed("it broke")), ("hi", " there"))

    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert answer.status == 200
        assert brief(answer) == [("started", None), ("delta", "hi"), ("delta", " there"), ("done", None)]
        assert len(provider.calls) == 2

    visit(story, provider)


def test_before_the_first_piece_a_fallback_answers_in_the_same_stream(visit: Any) -> None:
    provider = runs(("good day",), (1.0, ProviderFailed("it broke")))

    async def story(client: Any) -> None:
        await client.ask("POST", CHAT, {"message": "hello"})
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert answer.status == 200
        assert brief(answer) == [("started", None), ("delta", "good day"), ("done", None)]
        reply = frames(answer)[-1]["reply"]
        assert (reply["engine"], reply["degraded"]) == ("cache", ["unified"])
        (fell,) = client.told(FellBack)
        assert fell.error == "provider-failed"

    visit(story, provider, guards={"unified": {"retry": {"attempts_max": 1}}})


def test_after_the_first_piece_nothing_is_tried_again_and_nobody_stands_in(visit: Any) -> None:
    provider = runs(("good day",), ("good", 1.0, ProviderOverloaded("it broke")), ("never",))

    async def story(client: Any) -> None:
        await client.ask("POST", CHAT, {"message": "hello"})  # so that there is who could stand in
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert brief(answer) == [("started", None), ("delta", "good"), ("error", None)]
        error = frames(answer)[-1]
        assert (error["kind"], error["status"], error["retry_after_seconds"]) == ("provider-overloaded", 503, 1.0)
        assert len(provider.calls) == 2
        assert client.told(FellBack) == []

    visit(story, provider)
