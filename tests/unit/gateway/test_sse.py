"""A turn's answer in pieces: what comes when, how it ends, and what a reader that leaves or lags costs."""

import asyncio
import json
from typing import Any

import pytest

from orchestra.errors import ProviderFailed
from orchestra.events import RequestFinished, TurnFinished, UnexpectedError
from orchestra.gateway.sse import KEEP_ALIVE_SECONDS
from orchestra.resilience.degradation import Degradation, Level
from sim.asgi import Response, call
from tests.unit.gateway.scripts import script

CHAT = "/chat/v2/chat"
ONCE = {"guards": {"unified": {"retry": {"attempts_max": 1}, "fallbacks": ()}}}


def events(answer: Response) -> list[tuple[float, str, Any]]:
    """Parse the stream: when each event came (to the tenth of a second), its name, its data."""
    found = []
    for at, piece in answer.chunks:
        assert piece.endswith(b"\n\n")  # an event is written whole
        for block in piece.decode().removesuffix("\n\n").split("\n\n"):
            if block.startswith(":"):
                found.append((round(at, 1), block, None))
                continue
            name, place, data = block.split("\n")
            frame = json.loads(data.removeprefix("data: "))
            assert name == f"event: {frame['type']}"
            assert place.rpartition("/")[2] == str(frame["seq"])
            assert place.split("/")[1] == frame["turn_id"]
            found.append((round(at, 1), frame["type"], frame))
    return found


def test_each_piece_comes_as_it_is_said_and_the_reply_last(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, X_Request_ID="mine")
        assert answer.status == 200
        assert answer.header("Content-Type") == "text/event-stream"
        assert answer.header("Cache-Control") == "no-store"
        assert answer.header("X-Accel-Buffering") == "no"
        assert answer.header("X-Request-ID") == "mine"
        assert answer.header("traceparent")
        assert answer.complete
        (_, _, started), *pieces, (_, last, done) = events(answer)
        session_id, turn_id = started["session_id"], started["turn_id"]
        assert started == {
            "type": "started",
            "session_id": session_id,
            "turn_id": turn_id,
            "seq": 1,
            "message": "hello",
            "client_id": "",
        }
        assert pieces == [
            (1.0, "delta", {"type": "delta", "turn_id": turn_id, "seq": 2, "text": "Good\nday"}),
            (3.0, "delta", {"type": "delta", "turn_id": turn_id, "seq": 3, "text": " to you, Zoë"}),
        ]
        places = [line for line in answer.text.split("\n") if line.startswith("id: ")]
        assert places == [f"id: {session_id}/{turn_id}/{seq}" for seq in (1, 2, 3, 4)]
        assert last == "done"
        reply = done["reply"]
        assert (reply["session_id"], reply["turn_id"]) == (session_id, turn_id)
        assert reply["reply"] == "Good\nday to you, Zoë"
        assert (reply["correlation_id"], reply["degraded"], reply["usage"]["prompt_tokens"]) == ("mine", [], 3)
        (turn,) = await client.service.ports.conversations.turns(reply["session_id"])
        assert turn.reply == "Good\nday to you, Zoë"
        (finished,) = client.told(RequestFinished)
        assert (finished.status, finished.route, round(finished.seconds, 1)) == (200, CHAT, 3.0)
        assert client.events.index(finished) > client.events.index(client.told(TurnFinished)[0])

    visit(story, script(1.0, "Good\nday", 2.0, " to you, Zoë"))


def test_a_header_asks_for_a_stream_too(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello"}, Accept="text/event-stream")
        assert [name for _, name, _ in events(answer)] == ["started", "delta", "done"]
        plain = await client.ask("POST", CHAT, {"message": "hello"}, Accept="*/*")
        assert plain.header("Content-Type") == "application/json"
        assert json.loads(plain.body)["reply"] == "hi"

    visit(story, script("hi"))


def test_a_silent_turn_is_kept_alive_before_and_between_its_pieces(visit: Any) -> None:
    async def story(client: Any) -> None:
        heard = []
        answer = await call(
            client.app,
            "POST",
            CHAT,
            {"Content-Type": "application/json"},
            b'{"message": "hello", "stream": true}',
            on_chunk=lambda piece: heard.append(asyncio.get_running_loop().time()),
        )
        told = events(answer)
        assert [(at, name) for at, name, _ in told] == [
            (15.0, "started"),
            (15.0, ": keep-alive"),
            (18.0, "delta"),
            (33.0, ": keep-alive"),
            (34.0, "delta"),
            (34.0, "done"),
        ]
        assert round(heard[0], 1) == KEEP_ALIVE_SECONDS  # and with it the headers

    slow = {"attempt": {"first_seconds_max": 60, "between_seconds_max": 60, "total_seconds_max": 60}}
    visit(story, script(18.0, "a", 16.0, "b"), guards={"unified": slow})


def test_an_error_before_the_first_piece_is_an_ordinary_problem(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert answer.status == 502
        assert answer.header("Content-Type") == "application/problem+json"
        assert len(client.told(RequestFinished)) == 1
        refused = await client.ask("POST", CHAT, {"message": " ", "stream": True})
        assert refused.status == 400
        assert json.loads(refused.body)["field"] == "$.message"

    visit(story, script(1.0, ProviderFailed("it broke")), **ONCE)


def test_an_error_after_it_is_the_last_event(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, X_Request_ID="mine")
        assert answer.status == 200
        assert answer.complete
        _, (_, first, _), (_, last, error) = events(answer)
        assert (first, last) == ("delta", "error")
        assert (error["kind"], error["status"]) == ("provider-failed", 502)
        assert (error["retryable"], error["correlation_id"]) == (True, "mine")

    visit(story, script("half an", 1.0, ProviderFailed("it broke")), **ONCE)


def test_a_defect_is_told_to_the_log_and_not_to_the_client(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        _, _, (_, last, error) = events(answer)
        assert (last, error["status"], error["kind"]) == ("error", 500, "internal")
        assert "secret" not in answer.text
        (told,) = client.told(UnexpectedError)
        assert "a secret" in told.traceback

    visit(story, script("half an", LookupError("a secret")), **ONCE)


def test_where_the_level_allows_no_streaming_the_answer_is_whole(visit: Any) -> None:
    async def story(client: Any) -> None:
        (await client.resolve(Degradation)).latch(Level.ESSENTIAL, "test")
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert answer.status == 200
        assert answer.header("Content-Type") == "application/json"
        reply = json.loads(answer.body)
        assert reply["reply"] == "good day"
        assert "streaming" in reply["degraded"]
        assert len(client.told(RequestFinished)) == 1

    visit(story, script("good", 2.0, " day"))


def test_whole_after_a_keep_alive_is_the_done_event(visit: Any) -> None:
    async def story(client: Any) -> None:
        (await client.resolve(Degradation)).latch(Level.ESSENTIAL, "test")
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        told = events(answer)
        assert [(at, name) for at, name, _ in told] == [(15.0, "started"), (15.0, ": keep-alive"), (16.0, "done")]
        assert told[-1][2]["reply"]["degraded"].count("streaming") == 1

    visit(story, script(16.0, "good day"))


def test_maintenance_is_a_plain_503(visit: Any) -> None:
    async def story(client: Any) -> None:
        (await client.resolve(Degradation)).latch(Level.MAINTENANCE, "test")
        answer = await client.ask("POST", CHAT, {"message": "hello", "stream": True})
        assert answer.status == 503
        assert int(answer.header("Retry-After")) >= 1
        problem = json.loads(answer.body)
        assert problem["type"] == "urn:ai-orchestra:problem:maintenance"
        assert problem["retry_after_seconds"] >= 1

    visit(story, script("hi"))


LEAVES = {"before the first piece": 0.5, "mid-stream": 1.5, "kept alive": 16.5}
PATIENT = {"attempt": {"first_seconds_max": 60, "between_seconds_max": 60, "total_seconds_max": 60}}


def test_a_client_that_cannot_resume_ends_the_turn_and_the_providers_call(visit: Any) -> None:
    async def story(client: Any) -> None:
        for after in LEAVES.values():
            client.events.clear()
            answer = await leaving(client, after, Prefer="respond-async, No-Resume; x=1")
            assert not answer.complete
            await asyncio.sleep(0.1)
            assert client.provider.running == 0
            (finished,) = client.told(TurnFinished)
            assert (finished.outcome, finished.error) == ("failed", "cancelled")
            assert client.told(UnexpectedError) == []
            told = [type(event) for event in client.events if isinstance(event, TurnFinished | RequestFinished)]
            assert told[0] is TurnFinished  # the request is only over with its turn
            statuses = [each.status for each in client.told(RequestFinished)]
            assert statuses == ([] if after < 1.0 else [499])  # Sanic's own server answers for the first case
            assert answer.header("Preference-Applied") == (None if after < 1.0 else "no-resume")

    visit(story, script(1.0, "one", 19.0, "two", 19.0))


def test_a_client_that_leaves_before_it_can_know_the_turn_ends_it_at_once(visit: Any) -> None:
    """It has seen no event, so no id, and it named no key: nobody can ever resume. A keep-alive has the first id."""

    async def story(client: Any) -> None:
        for after, key, lives in (
            (0.5, None, False),
            (14.9, None, False),
            (0.5, "a-key-of-mine-01", True),
            (15.1, None, True),
        ):
            client.events.clear()
            answer = await leaving(client, after, **({"Idempotency-Key": key} if key else {}))
            assert (b"id: " in answer.body) == (after > 15)
            await asyncio.sleep(9.98)
            assert (client.provider.running, len(client.told(TurnFinished))) == ((1, 0) if lives else (0, 1))
            await asyncio.sleep(0.04)
            assert client.provider.running == 0
            (finished,) = client.told(TurnFinished)
            assert (finished.outcome, finished.error) == ("failed", "cancelled")

    visit(story, script(39.0, "one"), guards={"unified": PATIENT}, resume_grace_seconds=10.0)


@pytest.mark.parametrize("grace", [10.0, 0.0])
def test_a_client_that_does_not_come_back_ends_the_turn_after_its_grace(visit: Any, grace: float) -> None:
    """To the moment: the provider's call stands until the grace is over, and is closed then."""

    async def story(client: Any) -> None:
        for after in LEAVES.values():
            client.events.clear()
            await leaving(client, after, **{"Idempotency-Key": f"a-key-of-mine-{after}"})
            if grace:
                await asyncio.sleep(grace - 0.01)
                assert client.provider.running == 1
            await asyncio.sleep(0.02)
            assert client.provider.running == 0
            (finished,) = client.told(TurnFinished)
            assert (finished.outcome, finished.error) == ("failed", "cancelled")
            assert client.told(UnexpectedError) == []

    visit(story, script(1.0, "one", 39.0, "two", 19.0), guards={"unified": PATIENT}, resume_grace_seconds=grace)


def test_a_reader_that_lags_costs_no_more_than_the_log(visit: Any) -> None:
    """The turn goes on to its end without it, and all pieces come in order once it reads."""

    async def story(client: Any) -> None:
        gate = asyncio.Event()
        received = bytearray()

        async def send(message: Any) -> None:
            received.extend(message.get("body", b""))
            await gate.wait()  # as the transport's flow control does: the socket is full

        inbox = [{"type": "http.request", "body": b'{"message": "hello", "stream": true}', "more_body": False}]

        async def receive() -> Any:
            return inbox.pop()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"host", b"x"), (b"content-type", b"application/json")],
            "client": ("203.0.113.1", 1),
            "server": ("x", 80),
        }
        task = asyncio.ensure_future(client.app(scope, receive, send))
        await asyncio.sleep(10)
        assert len(client.told(TurnFinished)) == 1
        assert received == b""
        gate.set()
        await task
        texts = [json.loads(line[6:]).get("text") for line in received.decode().splitlines() if line[:5] == "data:"]
        assert texts == [None, *(str(number) for number in range(50)), None]

    visit(story, script(*(str(number) for number in range(50))))


async def leaving(client: Any, after: float, **headers: str) -> Response:
    """Ask for a stream, and go away after so many seconds."""
    sent = {"Content-Type": "application/json", **headers}
    body = b'{"message": "hello", "stream": true}'
    return await call(client.app, "POST", CHAT, sent, body, disconnect_after_s=after)


def test_a_callers_time_is_the_turns_deadline(visit: Any) -> None:
    async def story(client: Any) -> None:
        late = await client.ask("POST", CHAT, {"message": "hello"}, X_Request_Timeout="2.5")
        assert late.status == 504
        assert round(asyncio.get_running_loop().time(), 1) == 2.5
        enough = await client.ask("POST", CHAT, {"message": "hello"}, X_Request_Timeout="3.5")
        assert enough.status == 200
        streamed = await client.ask("POST", CHAT, {"message": "hello", "stream": True}, X_Request_Timeout="2.5")
        assert [name for _, name, _ in events(streamed)] == ["started", "delta", "error"]
        assert events(streamed)[-1][2]["status"] == 504

    visit(story, script(1.0, "a", 2.0, "b"), **ONCE)


def test_a_bad_timeout_is_refused_by_its_header(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", CHAT, {"message": "hello"}, X_Request_Timeout="soon")
        assert answer.status == 400
        assert json.loads(answer.body)["field"] == "X-Request-Timeout"

    visit(story, script("hi"))
