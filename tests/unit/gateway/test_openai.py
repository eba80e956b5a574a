"""The OpenAI-compatible routes in virtual time: what comes when, how it ends, and what is kept of it."""

import asyncio
import json
from itertools import product
from typing import Any

import pytest

from orchestra.engines.apology import TEXT
from orchestra.errors import FeatureOff, ProviderFailed, ProviderOverloaded
from orchestra.events import RequestFinished, TurnFinished, UnexpectedError
from orchestra.model import Message, Prompt, Sampling
from orchestra.resilience.degradation import Degradation, Level
from sim.asgi import Response, call
from tests.unit.gateway.scripts import script

PATH = "/v1/chat/completions"
KEY = "a-key-of-mine-01"
ONCE: dict[str, Any] = {"guards": {"unified": {"retry": {"attempts_max": 1}, "fallbacks": ()}}}


def body(text: str = "hello", *history: tuple[str, str], **more: Any) -> dict[str, Any]:
    messages = [{"role": role, "content": content} for role, content in (*history, ("user", text))]
    return {"model": "orchestra", "messages": messages, **more}


def events(answer: Response) -> list[tuple[float, Any]]:
    """Parse the stream: when each event came (to the tenth of a second), and what it says."""
    found: list[tuple[float, Any]] = []
    for at, piece in answer.chunks:
        assert piece.endswith(b"\n\n")  # an event is written whole
        for block in piece.decode().removesuffix("\n\n").split("\n\n"):
            data = block.removeprefix("data: ")
            found.append((round(at, 1), json.loads(data) if data.startswith("{") else data))
    return found


def said(answer: Response) -> list[tuple[float, Any]]:
    """Shorten the stream to what strict clients act on: deltas, the end's reason, errors, pings, ``[DONE]``."""
    short: list[tuple[float, Any]] = []
    for at, event in events(answer):
        if isinstance(event, str):
            short.append((at, event))
        elif "error" in event:
            short.append((at, event["error"]["code"]))
        else:
            short += [(at, choice["delta"] or choice["finish_reason"]) for choice in event["choices"]]
    return short


ROLE = {"role": "assistant", "content": ""}


def test_a_stream_byte_for_byte_and_when(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask(
            "POST",
            PATH,
            body(stream=True, stream_options={"include_usage": True}),
            X_Request_ID="mine",
            Authorization="Bearer anything",
        )
        assert answer.status == 200
        assert answer.complete
        headers = {name: value for name, value in answer.headers if name != "traceparent"}
        assert headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            "x-request-id": "mine",
        }
        assert answer.header("traceparent")
        (turn,) = client.told(TurnFinished)
        ids = (turn.turn_id, turn.session_id)
        head = (
            f'"id":"chatcmpl-{ids[0]}","object":"chat.completion.chunk","created":1767225600,"model":"orchestra",'
            '"choices":['
        )
        tail = '],"system_fingerprint":null,"usage":'
        behind = (
            f',"x_orchestra":{{"turn_id":"{ids[0]}","session_id":"{ids[1]}","engine":"unified","model":"scripted",'
            '"degraded":[]}'
        )
        choices = [
            '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}',
            '{"index":0,"delta":{"content":"Zo\u00eb"},"logprobs":null,"finish_reason":null}',
            '{"index":0,"delta":{"content":"\\n!"},"logprobs":null,"finish_reason":null}',
        ]
        end = '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}'
        usage = '{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
        expected = [
            *("{" + head + choice + tail + "null}" for choice in choices),
            "{" + head + end + tail + "null" + behind + "}",
            "{" + head + tail + usage + "}",
            "[DONE]",
        ]
        assert answer.text == "".join(f"data: {each}\n\n" for each in expected)
        assert [at for at, _ in said(answer)] == [1.0, 1.0, 3.0, 3.0, 3.0]
        assert [(each.status, each.route) for each in client.told(RequestFinished)] == [(200, PATH)]

    visit(story, script(1.0, "Zoë", 2.0, "\n!"))


def test_a_whole_answer_is_drawn_from_what_was_given_and_its_exchange_is_durable(visit: Any) -> None:
    asked: list[Prompt] = []

    async def story(client: Any) -> None:
        history = (("user", "I sail"), ("system", "be brief"), ("assistant", "Where?"))
        answer = await client.ask("POST", PATH, body("On a lake", *history, temperature=0.5, stop="end"))
        assert answer.status == 200
        assert answer.header("Content-Type") == "application/json"
        reply = json.loads(answer.body)
        assert reply["choices"][0]["message"]["content"] == "Nice"
        assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        given = (Message("system", "be brief"), Message("user", "I sail"), Message("assistant", "Where?"))
        assert asked == [Prompt((*given, Message("user", "On a lake")), (), Sampling(temperature=0.5, stop=("end",)))]
        session_id = reply["x_orchestra"]["session_id"]
        (turn,) = await client.service.ports.conversations.turns(session_id)
        assert (turn.id, turn.message, turn.reply) == (reply["id"].removeprefix("chatcmpl-"), "On a lake", "Nice")
        session = await client.service.ports.sessions.load(session_id)
        assert [(each.role, each.content) for each in session.messages] == [
            ("user", "On a lake"),
            ("assistant", "Nice"),
        ]

    visit(story, script("Nice", asked=asked))


def test_pings_come_before_the_first_piece_and_between(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", PATH, body(stream=True))
        assert said(answer) == [
            (15.0, ": keep-alive"),
            (16.0, ROLE),
            (16.0, {"content": "a"}),
            (31.0, ": keep-alive"),
            (35.0, {"content": "b"}),
            (35.0, "stop"),
            (35.0, "[DONE]"),
        ]

    visit(story, script(16.0, "a", 19.0, "b"))


def test_what_fails_before_the_first_piece_is_an_ordinary_error(visit: Any) -> None:
    async def story(client: Any) -> None:
        for stream in (True, False):
            answer = await client.ask("POST", PATH, body(stream=stream))
            assert (answer.status, answer.header("Content-Type")) == (502, "application/json")
            error = {"message": "it broke", "type": "api_error", "param": None, "code": "provider_failed"}
            assert json.loads(answer.body) == {"error": error}
            assert answer.header("x-should-retry") == "true"
        assert [each.status for each in client.told(RequestFinished)] == [502, 502]

    visit(story, script(1.0, ProviderFailed("it broke")), **ONCE)


@pytest.mark.parametrize("first", ["half an", 16.0], ids=["after a piece", "after a ping"])
def test_what_fails_later_is_an_error_event_and_no_silent_end(visit: Any, first: float | str) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", PATH, body(stream=True))
        assert answer.status == 200
        assert answer.complete
        assert [what for _, what in said(answer)][-1] == "provider_failed"
        assert "[DONE]" not in answer.text

    visit(story, script(first, ProviderFailed("it broke")), **ONCE)


def test_an_overloaded_provider_is_a_503_that_says_when(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", PATH, body())
        assert (answer.status, answer.header("Retry-After")) == (503, "7")
        assert json.loads(answer.body)["error"]["code"] == "provider_overloaded"

    visit(story, script(ProviderOverloaded("not now", retry_after_seconds=7)), **ONCE)


def test_maintenance_is_a_503_that_says_when(visit: Any) -> None:
    async def story(client: Any) -> None:
        (await client.resolve(Degradation)).latch(Level.MAINTENANCE, "test")
        for stream in (True, False):
            answer = await client.ask("POST", PATH, body(stream=stream))
            assert (answer.status, answer.header("Retry-After")) == (503, "30")
            assert json.loads(answer.body)["error"]["code"] == "maintenance"

    visit(story, script("hi"))


def test_where_the_level_allows_no_streaming_the_stream_has_one_piece(visit: Any) -> None:
    async def story(client: Any) -> None:
        (await client.resolve(Degradation)).latch(Level.ESSENTIAL, "test")
        answer = await client.ask("POST", PATH, body(stream=True))
        assert said(answer) == [(2.0, ROLE), (2.0, {"content": "good day"}), (2.0, "stop"), (2.0, "[DONE]")]
        assert "streaming" in events(answer)[-2][1]["x_orchestra"]["degraded"]

    visit(story, script("good", 2.0, " day"))


def test_an_apology_is_an_error(visit: Any) -> None:
    async def story(client: Any) -> None:
        for stream in (True, False):
            answer = await client.ask("POST", PATH, body(stream=stream))
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["code"] == "no_answer"
            assert TEXT not in answer.text

    visit(story, script(FeatureOff("off")), guards={"unified": {"fallbacks": ("apology",)}})


def test_a_command_is_answered_as_elsewhere(visit: Any) -> None:
    async def story(client: Any) -> None:
        reply = json.loads((await client.ask("POST", PATH, body("/help"))).body)
        assert reply["x_orchestra"]["engine"] == "commands"
        assert "/help" in reply["choices"][0]["message"]["content"]
        assert client.provider.said == 0

    visit(story, script("hi"))


def test_memory_takes_part_where_a_user_is_named(visit: Any) -> None:
    asked: list[Prompt] = []

    async def story(client: Any) -> None:
        await client.ask("POST", PATH, body("I sail on Lake Geneva"))
        await client.ask("POST", PATH, body("I sail on Lake Geneva", user="ada"))
        await client.ask("POST", PATH, body("Where do I sail?"))
        await client.ask("POST", PATH, body("Where do I sail?", user="bob"))
        await client.ask("POST", PATH, body("Where do I sail?", user="ada"))
        known = ("user", "I sail on Lake Geneva"), ("assistant", "Nice")
        await client.ask("POST", PATH, body("Where do I sail?", *known, user="ada"))
        recalled = [[each.text for each in prompt.recalled] for prompt in asked]
        assert recalled[:4] == [[], [], [], []]
        assert recalled[4] == ["I sail on Lake Geneva"]
        assert "I sail on Lake Geneva" not in recalled[5]  # the history says it already

    visit(story, script("Nice", asked=asked))


def test_the_same_key_is_the_same_turn(visit: Any) -> None:
    asked: list[Prompt] = []

    async def story(client: Any) -> None:
        first = asyncio.ensure_future(client.ask("POST", PATH, body(), Idempotency_Key=KEY))
        await asyncio.sleep(0.5)
        second = await client.ask("POST", PATH, body(), Idempotency_Key=KEY)
        assert (second.status, second.header("Retry-After")) == (409, "1")
        assert second.header("x-should-retry") == "true"
        streamed = await client.ask("POST", PATH, body(stream=True), Idempotency_Key=KEY)
        again = await client.ask("POST", PATH, body(), Idempotency_Key=KEY)
        late = await client.ask("POST", PATH, body(stream=True), Idempotency_Key=KEY)
        ids = {json.loads(each.body)["id"] for each in (await first, again)}
        ids |= {events(each)[0][1]["id"] for each in (streamed, late)}
        assert len(ids) == 1
        assert len(asked) == 1
        replayed = [each.header("Idempotency-Replayed") for each in (await first, streamed, again, late)]
        assert replayed == [None, "true", "true", "true"]
        for wrong in (body("other"), body("hello", ("system", "Be brief.")), body(temperature=0), body(seed=1)):
            other = await client.ask("POST", PATH, wrong, Idempotency_Key=KEY)
            assert (other.status, json.loads(other.body)["error"]["code"]) == (422, "key_reused")
        short = await client.ask("POST", PATH, body(), Idempotency_Key=KEY[:-1])
        assert (short.status, json.loads(short.body)["error"]["param"]) == (400, "Idempotency-Key")
        named = await client.ask("POST", PATH, body(user="ann"), Idempotency_Key=KEY[:-1])
        assert named.status == 200
        native = await client.ask("POST", "/chat/v2/chat", {"message": "hello"}, Idempotency_Key=KEY)
        assert json.loads(native.body)["turn_id"] not in str(ids)
        wrong = await client.ask("POST", PATH, body(), Idempotency_Key="no key")
        assert (wrong.status, json.loads(wrong.body)["error"]["param"]) == (400, "Idempotency-Key")

    visit(story, script(1.0, "hi", asked=asked))


def test_a_client_that_goes_away_ends_the_turn_and_the_providers_call_at_once(visit: Any) -> None:
    """Before the first piece, in the middle, and while only signs of life come."""

    async def story(client: Any) -> None:
        headers = {"Content-Type": "application/json"}
        for stream, leaves_after in product((True, False), (0.5, 1.5, 16.0)):
            client.events.clear()
            data = json.dumps(body(stream=stream)).encode()
            answer = await call(client.app, "POST", PATH, headers, data, disconnect_after_s=leaves_after)
            assert not answer.complete
            await asyncio.sleep(0.1)  # for the task that was cancelled to end
            assert client.provider.running == 0
            (finished,) = client.told(TurnFinished)
            assert (finished.outcome, finished.error) == ("failed", "cancelled")
            assert round(finished.seconds, 1) == leaves_after
            assert client.told(UnexpectedError) == []
            statuses = [each.status for each in client.told(RequestFinished)]
            begun = stream and leaves_after > 1.0
            assert statuses == ([499] if begun else [])  # Sanic's own server answers for the others

    visit(story, script(1.0, "one", 19.0, "two", 19.0))


def test_a_callers_time_is_the_turns_deadline(visit: Any) -> None:
    async def story(client: Any) -> None:
        late = await client.ask("POST", PATH, body(), X_Request_Timeout="2.5")
        assert (late.status, json.loads(late.body)["error"]["code"]) == (504, "deadline_exceeded")
        streamed = await client.ask("POST", PATH, body(stream=True), X_Request_Timeout="2.5")
        assert [what for _, what in said(streamed)] == [ROLE, {"content": "a"}, "deadline_exceeded"]
        wrong = await client.ask("POST", PATH, body(), X_Request_Timeout="soon")
        assert json.loads(wrong.body)["error"]["param"] == "X-Request-Timeout"

    visit(story, script(1.0, "a", 2.0, "b"), **ONCE)


def test_models(visit: Any) -> None:
    async def story(client: Any) -> None:
        listed = json.loads((await client.ask("GET", "/v1/models")).body)
        names = ["orchestra", "house/gpt-x"]
        assert listed == {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "orchestra"} for name in names],
        }
        for path, described in zip(("orchestra", "house%2Fgpt-x", "house/gpt-x"), (0, 1, 1), strict=True):
            one = await client.ask("GET", f"/v1/models/{path}")
            assert json.loads(one.body) == listed["data"][described]
        for name in names:
            reply = json.loads((await client.ask("POST", PATH, {**body(), "model": name})).body)
            assert (reply["model"], reply["x_orchestra"]["model"]) == (name, "scripted")
        for unknown in (
            await client.ask("GET", "/v1/models/gpt-9"),
            await client.ask("POST", PATH, {**body(), "model": "gpt-9"}),
        ):
            assert unknown.status == 404
            error = json.loads(unknown.body)["error"]
            assert (error["type"], error["param"], error["code"]) == (
                "invalid_request_error",
                "model",
                "model_not_found",
            )
            assert "orchestra or house/gpt-x" in error["message"]

    visit(story, script("hi"), provider_url="http://127.0.0.1:1/v1", provider_model="house/gpt-x")


JSON = {"Content-Type": "application/json"}
WRONG: list[tuple[str, str, dict[str, str], bytes, int, str]] = [
    ("GET", "/v1/nope", {}, b"", 404, "not_found"),
    ("GET", PATH, {}, b"", 405, "method_not_allowed"),
    ("POST", "/v1/models", {}, b"{}", 405, "method_not_allowed"),
    ("POST", PATH, {"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
    ("POST", PATH, JSON, b"{", 400, "invalid_request"),
    ("POST", PATH, JSON, b"", 400, "invalid_request"),
    ("POST", PATH, JSON, b"[" * 100_000, 400, "invalid_request"),
    ("POST", PATH, JSON, b'{"a": "\xff"}', 400, "invalid_request"),
    ("POST", PATH, JSON, b'{"model": NaN}', 400, "invalid_request"),
]


def test_every_error_is_openais_and_native_ones_stay_problems(visit: Any) -> None:
    async def story(client: Any) -> None:
        for method, path, headers, data, status, code in WRONG:
            answer = await call(client.app, method, path, headers, data)
            assert (answer.status, answer.header("Content-Type")) == (status, "application/json")
            error = json.loads(answer.body)["error"]
            assert list(error) == ["message", "type", "param", "code"]
            assert (error["type"], error["code"]) == ("invalid_request_error", code)
            assert answer.header("X-Request-ID")
        for native in ("/v2/nope", "/chat/v2/chat"):
            answer = await client.ask("GET", native)
            assert answer.header("Content-Type") == "application/problem+json"

    visit(story, script("hi"))


def test_a_defect_is_told_to_the_log_and_not_to_the_client(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", PATH, body(stream=True))
        assert (answer.status, answer.header("x-should-retry")) == (500, "false")
        error = json.loads(answer.body)["error"]
        assert (error["type"], error["code"]) == ("server_error", "internal")
        assert "secret" not in answer.text
        assert "a secret" in client.told(UnexpectedError)[0].traceback

    visit(story, script(LookupError("a secret")), **ONCE)


def test_the_openapi_document_describes_the_routes(visit: Any) -> None:
    async def story(client: Any) -> None:
        document = json.loads((await client.ask("GET", "/docs/openapi.json")).body)
        posted = document["paths"][PATH]["post"]
        assert set(posted["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
        failed = posted["responses"]["default"]["content"]
        assert failed == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
        assert posted["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/CompletionRequest")
        names = {each["name"] for each in posted["parameters"]}
        assert names == {"X-Request-Timeout", "Idempotency-Key"}
        schemas = document["components"]["schemas"]
        temperature = schemas["CompletionRequest"]["properties"]["temperature"]
        assert (temperature["minimum"], temperature["maximum"], temperature["nullable"]) == (0, 2, True)
        assert {"ChatCompletion", "ChatCompletionChunk", "Model", "ModelList", "ErrorBody"} <= set(schemas)
        assert {"/v1/models", "/v1/models/{name}"} <= set(document["paths"])

    visit(story, script("hi"))
