"""Versions 1 and 2 of the API: a test for each arrow of the diagram "API Version Compatibility", and what lies by."""

import asyncio
import json
from collections.abc import AsyncGenerator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from multidict import CIMultiDict

from orchestra.errors import InvalidRequest, Maintenance
from orchestra.events import TurnStarted
from orchestra.gateway.problems import problem_of
from orchestra.gateway.versions import (
    DEPRECATION_HEADERS,
    ErrorV1,
    ReplyV1,
    RequestV1,
    Version,
    check_version,
    error_to_v1,
    reply_to_v1,
    request_to_v2,
    version_of,
)
from orchestra.model import ChatReply, ChatRequest, Chunk, Delta, Finish, Prompt, Usage
from orchestra.resilience.degradation import Degradation, Level
from sim.asgi import Response

OPEN, V1, V2 = "/chat", "/chat/v1/chat", "/chat/v2/chat"


async def hi(_prompt: Prompt) -> AsyncGenerator[Chunk, None]:
    yield Delta("hi")
    await asyncio.sleep(1.0)
    yield Finish("stop", "scripted", Usage(3, 2))


def detected(body: object, **headers: str) -> Version:
    given = CIMultiDict((name.replace("_", "-"), value) for name, value in headers.items())
    return version_of(json.dumps(body).encode(), given)


def loaded(answer: Response) -> Any:
    return json.loads(answer.body)


def is_v1(answer: Response) -> bool:
    """Tell whether the answer, be it reply or error, is version 1's: by its form, and by its headers."""
    forms = {"response", "conversation_id", "id", "tokens", "status"}, {"error", "message", "status", "request_id"}
    deprecated = [answer.header(name) for name in DEPRECATION_HEADERS]
    assert deprecated in ([None, None, None], list(DEPRECATION_HEADERS.values()))
    named = set(loaded(answer))
    shaped = named == forms[0] or forms[1] <= named <= forms[1] | {"field", "retry_after"}
    assert shaped == (deprecated[0] is not None)
    return shaped


# --- the arrows ---------------------------------------------------------------------------------------------------


def test_arrow_request_to_detect(visit: Any) -> None:
    """`/chat` takes both versions, each in its own form and answered in it."""

    async def story(client: Any) -> None:
        assert is_v1(await client.ask("POST", OPEN, {"text": "hello"}))
        assert not is_v1(await client.ask("POST", OPEN, {"message": "hello"}))
        assert is_v1(await client.ask("POST", OPEN, {"text": " "}))
        assert not is_v1(await client.ask("POST", OPEN, {"message": " "}))

    visit(story, hi)


def test_arrow_detect_to_v1_where_it_has_api_version_v1(visit: Any) -> None:
    async def story(client: Any) -> None:
        for body, headers in (({"text": "hello", "api_version": "v1"}, {}), ({"text": "hello"}, {"API_Version": "v1"})):
            for path in (OPEN, V1):
                answer = await client.ask("POST", path, body, **headers)
                assert answer.status == 200
                assert is_v1(answer)
        wrong = await client.ask("POST", OPEN, {"message": "hello", "api_version": "v1"})
        assert (wrong.status, loaded(wrong)["field"]) == (400, "$.message")  # which version 1 does not know
        assert is_v1(wrong)

    visit(story, hi)


def test_arrow_detect_to_v2_where_it_has_api_version_v2(visit: Any) -> None:
    async def story(client: Any) -> None:
        for body, headers in (
            ({"message": "hello", "api_version": "v2"}, {}),
            ({"message": "hello"}, {"API_Version": "v2"}),
        ):
            for path in (OPEN, V2):
                answer = await client.ask("POST", path, body, **headers)
                assert answer.status == 200
                assert not is_v1(answer)
        wrong = await client.ask("POST", OPEN, {"text": "hello"}, API_Version="v2")
        assert (wrong.status, loaded(wrong)["field"]) == (400, "$.text")
        assert not is_v1(wrong)

    visit(story, hi)


@pytest.mark.parametrize(
    "body", [{"text": "hello"}, {"text": 5}, {"text": "hello", "user": "ann"}, {"text": "hello", "stream": True}]
)
def test_arrow_detect_to_v1_by_itself(body: Any) -> None:
    assert detected(body) == "v1"


@pytest.mark.parametrize("body", [{"message": "hello"}, {"message": "hello", "text": "hello"}, {}, [], "text", None])
def test_arrow_detect_to_v2_by_itself(body: Any) -> None:
    assert detected(body) == "v2"


def test_arrow_v1_to_adapter() -> None:
    asked = RequestV1("hello", "c-1", "ann")
    assert request_to_v2(asked) == ChatRequest("hello", "c-1", "ann", stream=False)


def test_arrow_adapter_to_process(visit: Any) -> None:
    """A turn of a version 1 client is a turn: durable, in the session that it continues, of the user that it names."""

    async def story(client: Any) -> None:
        first = loaded(await client.ask("POST", V1, {"text": "hello", "user": "ann"}))
        again = {"text": "again", "user": "ann", "conversation_id": first["conversation_id"]}
        assert loaded(await client.ask("POST", V1, again))["conversation_id"] == first["conversation_id"]
        turns = await client.service.ports.conversations.turns(first["conversation_id"])
        assert [turn.message for turn in turns] == ["hello", "again"]
        assert turns[0].id == first["id"]
        head = await client.service.ports.conversations.head(first["conversation_id"])
        assert head.owner == "user:ann"

    visit(story, hi)


def test_arrow_v2_to_process(visit: Any) -> None:
    async def story(client: Any) -> None:
        reply = loaded(await client.ask("POST", V2, {"message": "hello", "user_id": "ann"}))
        (turn,) = await client.service.ports.conversations.turns(reply["session_id"])
        assert (turn.id, turn.message) == (reply["turn_id"], "hello")

    visit(story, hi)


def test_arrow_process_to_response(visit: Any) -> None:
    """What was processed is one and the same: a key of version 2 is answered to version 1 without another turn."""

    async def story(client: Any) -> None:
        two = await client.ask("POST", V2, {"message": "hello"}, Idempotency_Key="a-key-of-mine-01")
        one = await client.ask("POST", V1, {"text": "hello"}, Idempotency_Key="a-key-of-mine-01")
        assert one.header("Idempotency-Replayed") == "true"
        assert (loaded(one)["id"], loaded(one)["response"]) == (loaded(two)["turn_id"], loaded(two)["reply"])
        assert len(client.told(TurnStarted)) == 1
        wrong = await client.ask("POST", V1, {"text": "goodbye"}, Idempotency_Key="a-key-of-mine-01")
        assert (wrong.status, loaded(wrong)["error"]) == (422, "key-reused")

    visit(story, hi)


def test_arrow_response_to_v1_response_format_for_a_v1_client(visit: Any) -> None:
    async def story(client: Any) -> None:
        answer = await client.ask("POST", V1, {"text": "hello"}, X_Request_ID="mine", Accept="text/event-stream")
        reply = loaded(answer)
        assert reply == {
            "id": reply["id"],
            "conversation_id": reply["conversation_id"],
            "response": "hi",
            "status": "complete",
            "tokens": 5,
        }
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("X-Request-ID") == "mine"
        assert answer.header("Deprecation") == "@1793491200"
        assert answer.header("Sunset") == "Mon, 01 Nov 2027 00:00:00 GMT"
        assert answer.header("Link") == '</chat/v2/chat>; rel="successor-version"'

    visit(story, hi)


def test_arrow_response_to_v2_response_format_for_a_v2_client(visit: Any) -> None:
    async def story(client: Any) -> None:
        for path in (OPEN, V2):
            answer = await client.ask("POST", path, {"message": "hello"})
            assert {"turn_id", "session_id", "reply", "usage"} <= set(loaded(answer))
            assert answer.header("Deprecation") is None
            streamed = await client.ask("POST", path, {"message": "hello", "stream": True})
            assert streamed.header("Content-Type") == "text/event-stream"
            assert streamed.header("Deprecation") is None

    visit(story, hi)


# --- what contradicts itself --------------------------------------------------------------------------------------


def test_a_body_or_header_that_contradicts_its_path_is_refused_by_name(visit: Any) -> None:
    async def story(client: Any) -> None:
        for path, body, headers, field in (
            (V1, {"text": "hello", "api_version": "v2"}, {}, "$.api_version"),
            (V2, {"message": "hello", "api_version": "v1"}, {}, "$.api_version"),
            (V1, {"text": "hello"}, {"API_Version": "v2"}, "API-Version"),
            (V2, {"message": "hello"}, {"API_Version": "v1"}, "API-Version"),
            (V1, {"message": "hello"}, {}, "$.message"),
            (V1, {"text": "hello", "stream": True}, {}, "$.stream"),
            (V2, {"text": "hello"}, {}, "$.text"),
            (OPEN, {"text": "hello", "message": "hello"}, {}, "$.text"),
            (OPEN, {"text": "hello", "api_version": "v1"}, {"API_Version": "v2"}, "$.api_version"),
            (OPEN, {"text": "hello", "api_version": "v3"}, {}, "$.api_version"),
            (OPEN, {"text": "hello", "api_version": None}, {}, "$.api_version"),
            (OPEN, {"text": "hello"}, {"API_Version": "1"}, "API-Version"),
        ):
            answer = await client.ask("POST", path, body, **headers)
            assert (answer.status, loaded(answer)["field"]) == (400, field)
            assert is_v1(answer) == (path == V1)
        assert client.told(TurnStarted) == []

    visit(story, hi)


def test_a_version_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="api_version is 'v3': send v1 or v2, or leave it out"):
        detected({"api_version": "v3"})
    with pytest.raises(InvalidRequest, match="API-Version is 'v1, v1': send v1 or v2") as caught:
        version_of(b"{}", CIMultiDict([("API-Version", "v1"), ("api-version", "v1")]))
    assert caught.value.field == "API-Version"
    with pytest.raises(InvalidRequest, match="this path is of v1: leave the header out, or use v2's path"):
        check_version(CIMultiDict({"API-Version": "v2"}), "v1")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_of_the_version_that_the_header_says(body: bytes) -> None:
    assert version_of(body, CIMultiDict()) == "v2"
    assert version_of(body, CIMultiDict({"API-Version": "v1"})) == "v1"


# --- errors of version 1 --------------------------------------------------------------------------------------------


def test_every_error_of_version_1_is_in_its_form_with_its_status_and_deprecated(visit: Any) -> None:
    async def story(client: Any) -> None:
        for method, path, body, headers, status, kind, field in (
            ("POST", V1, {"text": " "}, {}, 400, "invalid-request", "$.text"),
            ("POST", V1, {"text": "x" * 100_001}, {}, 413, "payload-too-large", "$.text"),
            ("POST", V1, {"text": "x", "conversation_id": "-"}, {}, 400, "invalid-request", "$.conversation_id"),
            ("POST", V1, {"text": "x", "conversation_id": "nobodys"}, {}, 404, "session-unknown", "$.conversation_id"),
            ("POST", V1, {"text": "x", "user": "-"}, {}, 400, "invalid-request", "$.user"),
            ("POST", V1, None, {}, 415, "unsupported-media-type", None),
            ("POST", V1, {"text": "x"}, {"X_Request_Timeout": "0.5"}, 504, "deadline-exceeded", None),
            ("GET", V1, None, {}, 405, "method-not-allowed", None),
            ("GET", "/chat/v1/other", None, {}, 404, "not-found", None),
        ):
            answer = await client.ask(method, path, body, X_Request_ID="mine", **headers)
            assert is_v1(answer)
            error = loaded(answer)
            assert (answer.status, error["status"], error["error"]) == (status, status, kind)
            assert (error.get("field"), error["request_id"]) == (field, "mine")
            assert not {"session_id", "user_id"} & set(error["message"].replace(":", " ").split())

        (await client.resolve(Degradation)).latch(Level.MAINTENANCE, "test")
        refused = await client.ask("POST", V1, {"text": "hello"})
        assert (refused.status, loaded(refused)["error"]) == (503, "maintenance")
        assert int(refused.header("Retry-After") or 0) == loaded(refused)["retry_after"] == 30

    visit(story, hi)


def test_an_error_names_fields_as_version_1_does() -> None:
    refusal = InvalidRequest("session_id is bad: leave session_id out", field="$.session_id")
    said = error_to_v1(problem_of(refusal, "c-1"))
    cure = "conversation_id is bad: leave conversation_id out"
    assert said == ErrorV1("invalid-request", cure, 400, "c-1", "$.conversation_id")
    late = error_to_v1(problem_of(Maintenance("not now", retry_after_seconds=2.5), "c-1"))
    assert late == ErrorV1("maintenance", "not now", 503, "c-1", retry_after=2.5)


# --- the adapter, and what is said of it ----------------------------------------------------------------------------


def test_an_answer_that_was_cut_off_is_incomplete() -> None:
    reply = ChatReply("t-1", "s-1", "c-1", "hi", "unified", "m", "length", Usage(3, 2), degraded=("memory",))
    assert reply_to_v1(reply) == ReplyV1("t-1", "s-1", "hi", "incomplete", 5)


def test_the_sunset_is_a_date_after_the_deprecation() -> None:
    sunset = parsedate_to_datetime(DEPRECATION_HEADERS["Sunset"])
    assert sunset.strftime("%a, %d %b %Y %H:%M:%S GMT") == DEPRECATION_HEADERS["Sunset"]  # the right day of the week
    assert int(DEPRECATION_HEADERS["Deprecation"].removeprefix("@")) < sunset.timestamp()


def test_both_versions_are_documented(visit: Any) -> None:
    async def story(client: Any) -> None:
        document = loaded(await client.ask("GET", "/docs/openapi.json"))
        post = {path: document["paths"][path]["post"] for path in (OPEN, V1, V2)}
        schemas = document["components"]["schemas"]
        for path, kinds in ((OPEN, ("RequestV2", "RequestV1")), (V1, ("RequestV1",)), (V2, ("RequestV2",))):
            schema = post[path]["requestBody"]["content"]["application/json"]["schema"]
            referred = [each["$ref"].rpartition("/")[2] for each in schema.get("oneOf", [schema])]
            assert tuple(referred) == kinds
            named = {each["name"] for each in post[path]["parameters"]}
            assert {"API-Version", "Idempotency-Key", "X-Request-Timeout"} <= named
        assert {RequestV1.__name__, ReplyV1.__name__, ErrorV1.__name__} <= set(schemas)
        assert post[V1]["deprecated"] is True
        assert "ErrorV1" in str(post[V1]["responses"]["default"])
        assert {"Last-Event-ID", "Prefer"} <= {each["name"] for each in post[V2]["parameters"]}
        turn = document["paths"]["/chat/v2/sessions/{session_id}/turns/{turn_id}"]["delete"]
        assert "202" in turn["responses"]
        events = document["paths"]["/chat/v2/sessions/{session_id}/turns/{turn_id}/events"]["get"]
        assert "text/event-stream" in events["responses"]["200"]["content"]
        assert "204" in events["responses"]

    visit(story, hi)
