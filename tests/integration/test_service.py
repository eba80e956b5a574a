"""The live service over HTTP: a conversation, its ids, and every kind of bad input."""

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import jsonschema
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from chaos.processes import LiveService
from orchestra import limits
from orchestra.adapters.embedded import EmbeddedStores

CHAT = "/chat/v2/chat"


class Answer:
    """One HTTP answer."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(service: LiveService, method: str = "POST", path: str = CHAT, **options: Any) -> Answer:
    async def asked() -> Answer:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.request(method, service.url + path, **options) as response,
        ):
            return Answer(response.status, response.headers, await response.read())

    return asyncio.run(asked())


def say(service: LiveService, message: str, **more: str) -> Any:
    answer = ask(service, json={"message": message, **more})
    assert answer.status == 200, answer.body
    return answer.json


def test_a_conversation_uses_its_history(service: LiveService) -> None:
    first = say(service, "Hello, my name is Ada")
    second = say(service, "What is my name?", session_id=first["session_id"])
    assert "Ada" in second["reply"]
    assert "offline" in second["reply"].lower()
    assert second["session_id"] == first["session_id"]
    assert first["turn_id"] != second["turn_id"]
    assert second["model"] == "offline"
    assert second["usage"]["prompt_tokens"] > 0
    assert first["degraded"] == second["degraded"] == []


def test_head_is_answered_where_get_streams_and_the_connection_goes_on(service: LiveService) -> None:
    told = say(service, "hello")
    path = f"/chat/v2/sessions/{told['session_id']}"

    async def asked() -> None:
        made: list[object] = []

        async def note(*told: object) -> None:
            made.append(told)

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(note)
        async with aiohttp.ClientSession(service.url, trace_configs=[trace]) as session:
            for place in (f"{path}/export", f"{path}/turns/{told['turn_id']}/events", f"{path}/export"):
                headers = {"X-Request-ID": "only-the-head"}
                async with session.head(place, headers=headers) as head, asyncio.timeout(20):
                    assert (head.status, await head.read()) == (200, b"")
                    assert "Content-Length" not in head.headers
            async with session.get(f"{path}/export") as whole:
                assert (await whole.json())["turns"][0]["message"] == "hello"
        assert len(made) == 1

    asyncio.run(asked())
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if "only-the-head" in line]
    assert [(line["event"], line.get("status")) for line in lines if line["event"] != "store_finished"] == [
        ("request_finished", 200)
    ] * 3


def test_the_longest_message_fits_however_a_client_writes_it(service: LiveService) -> None:
    body = json.dumps({"message": "\U0001f600" * 99_000})  # twelve bytes each
    answer = ask(service, data=body, headers={"Content-Type": "application/json"})
    assert answer.status == 200, answer.body[:500]


def test_a_memory_crosses_the_sessions_of_its_user_only(service: LiveService) -> None:
    say(service, "I sail on Lake Geneva every summer", user_id="sailor")
    mine = say(service, "Where do I sail?", user_id="sailor")
    assert [each["text"] for each in mine["recalled"]] == ["I sail on Lake Geneva every summer"]
    assert "Lake Geneva" in mine["reply"]
    assert say(service, "Where do I sail?", user_id="somebody-else")["recalled"] == []
    assert say(service, "Where do I sail?")["recalled"] == []


def test_a_command_is_answered_without_a_provider(service: LiveService) -> None:
    reply = say(service, "/help")
    assert reply["engine"] == "commands"
    assert "/help" in reply["reply"]
    assert "no command /nonsense" in say(service, "/nonsense")["reply"]
    assert say(service, "/usr/bin is a path")["engine"] == "unified"


def test_ids_are_honoured_and_returned(service: LiveService) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-ID": "my-request-1", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    answer = ask(service, json={"message": "hi"}, headers=headers)
    assert answer.headers["X-Request-ID"] == answer.json["correlation_id"] == "my-request-1"
    version, returned, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, returned, flags) == ("00", trace_id, "01")
    assert span_id != "00f067aa0ba902b7"
    refused = ask(service, json={"message": ""}, headers=headers)
    assert refused.headers["X-Request-ID"] == refused.json["correlation_id"] == "my-request-1"


def test_the_log_has_the_correlation_id(service: LiveService) -> None:
    ask(service, json={"message": "hi"}, headers={"X-Request-ID": "find-me-in-the-log"})
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if "find-me-in-the-log" in line]
    assert {"turn_finished", "request_finished"} <= {line["event"] for line in lines}
    assert all(line["correlation_id"] == "find-me-in-the-log" for line in lines)


def test_probes(service: LiveService) -> None:
    assert ask(service, "GET", "/livez").json == {"status": "alive"}
    ready = ask(service, "GET", "/readyz")
    assert ready.status == 200
    assert ready.json["stores"] == {"sessions": "up", "conversations": "up", "memories": "up"}


def test_metrics_count_turns_and_requests(service: LiveService) -> None:
    say(service, "hi")
    text = ask(service, "GET", "/metrics").body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    answered = [s.value for s in samples if s.name.endswith("turns_total") and s.labels.get("outcome") == "answered"]
    assert answered
    assert answered[0] >= 1
    assert any(s.labels.get("route") == CHAT for s in samples)


def test_the_openapi_document_describes_what_is_said(service: LiveService) -> None:
    document = ask(service, "GET", "/docs/openapi.json").json
    operation = document["paths"][CHAT]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/RequestV2")
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]
    schema = {**reference, "components": document["components"]}
    jsonschema.validate(say(service, "hi"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"reply": "hi"}, schema)


NESTED = '{"message": ' + "[" * 100_000 + "]" * 100_000 + "}"
BAD: list[tuple[str, dict[str, Any], int, str, str | None, str]] = [
    ("no JSON", {"data": b"hello"}, 400, "invalid-request", "$", "not JSON"),
    ("empty body", {"data": b""}, 400, "invalid-request", "$", "empty"),
    ("no UTF-8", {"data": b'{"message": "\xff"}'}, 400, "invalid-request", "$", "UTF-8"),
    ("an array", {"data": b"[]"}, 400, "invalid-request", "$", "object"),
    ("wrong type", {"json": {"message": 7}}, 400, "invalid-request", "$.message", "str"),
    ("wrong type of an id", {"json": {"message": "a", "session_id": 7}}, 400, "invalid-request", "$.session_id", "str"),
    ("missing field", {"json": {}}, 400, "invalid-request", "$", "`message`"),
    ("unknown field", {"json": {"message": "a", "colour": 1}}, 400, "invalid-request", "$.colour", "`colour`"),
    ("empty message", {"json": {"message": ""}}, 400, "invalid-request", "$.message", "say something"),
    ("blank message", {"json": {"message": " \n\t"}}, 400, "invalid-request", "$.message", "say something"),
    ("NUL", {"json": {"message": "a\0b"}}, 400, "invalid-request", "$.message", "NUL"),
    ("lone surrogate", {"data": b'{"message": "\\ud800 x"}'}, 400, "invalid-request", "$", "surrogate"),
    ("deep nesting", {"data": NESTED.encode()}, 400, "invalid-request", "$.message", "str"),
    ("deep nesting outside", {"data": b"[" * 300_000}, 400, "invalid-request", "$", "object"),
    (
        "bad session id",
        {"json": {"message": "a", "session_id": "../x"}},
        400,
        "invalid-request",
        "$.session_id",
        "leave",
    ),
    ("bad user id", {"json": {"message": "a", "user_id": ""}}, 400, "invalid-request", "$.user_id", "leave"),
    (
        "unknown session",
        {"json": {"message": "a", "session_id": "0123456789"}},
        404,
        "session-unknown",
        "$.session_id",
        "leave session_id out",
    ),
    (
        "long message",
        {"json": {"message": "a" * (limits.MESSAGE_CHARS_MAX + 1)}},
        413,
        "payload-too-large",
        "$.message",
        "shorten",
    ),
    ("over 1.3 MB", {"json": {"message": "a" * 1_400_000}}, 413, "payload-too-large", None, "1300000 bytes"),
    (
        "headers",
        {"json": {"message": "a"}, "headers": {"X-Much": "a" * 20_000}},
        431,
        "headers-too-large",
        None,
        "send fewer or shorter headers",
    ),
    ("form", {"data": {"message": "a"}}, 415, "unsupported-media-type", None, "application/json"),
    (
        "text",
        {"data": b'{"message": "a"}', "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported-media-type",
        None,
        "application/json",
    ),
]


def rows(stores: EmbeddedStores, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Ask the database, past the service."""

    async def asked() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(stores.database_url)
        try:
            return [tuple(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(asked())


def kept(stores: EmbeddedStores) -> tuple[list[tuple[Any, ...]], int]:
    """Count what is stored: turns and memories, and sessions."""
    with redis.Redis.from_url(stores.redis_url) as connection:
        keys = len(connection.keys("orchestra:*"))
    return rows(stores, "SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM memories)"), keys


@pytest.mark.parametrize(
    ("options", "status", "kind", "field", "words"), [each[1:] for each in BAD], ids=[each[0] for each in BAD]
)
def test_bad_input_is_refused_with_field_and_cure_and_stores_nothing(
    service: LiveService,
    stores: EmbeddedStores,
    options: dict[str, Any],
    status: int,
    kind: str,
    field: str | None,
    words: str,
) -> None:
    before = kept(stores)
    if isinstance(options.get("data"), bytes):
        options = {"headers": {"Content-Type": "application/json"}, **options}
    answer = ask(service, **options)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["type"] == f"urn:ai-orchestra:problem:{kind}"
    assert problem["status"] == status
    assert problem.get("field") == field
    assert words in problem["detail"]
    assert problem["correlation_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in answer.body.decode()
    assert ".py" not in answer.body.decode()
    assert kept(stores) == before


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", CHAT, 405, "method-not-allowed"),
        ("DELETE", CHAT, 405, "method-not-allowed"),
        ("POST", "/livez", 405, "method-not-allowed"),
        ("POST", "/chat/v3/chat", 404, "not-found"),
        ("GET", "/%00", 404, "not-found"),
    ],
)
def test_a_wrong_path_or_method_is_a_problem_too(
    service: LiveService, method: str, path: str, status: int, kind: str
) -> None:
    answer = ask(service, method, path)
    assert answer.status == status
    assert answer.json["type"] == f"urn:ai-orchestra:problem:{kind}"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"POST /chat/v2/chat HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /chat/v2/chat HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /chat/v2/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_client_error_and_the_service_goes_on(service: LiveService, raw: bytes) -> None:
    address = urlsplit(service.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 4")
    assert b"Traceback" not in answer
    assert ask(service, "GET", "/livez").status == 200


def test_concurrent_turns_of_one_session_are_serialised(service: LiveService, stores: EmbeddedStores) -> None:
    session_id = say(service, "turn 0")["session_id"]

    async def all_at_once() -> list[int]:
        async with aiohttp.ClientSession() as session:

            async def one(number: int) -> int:
                body = {"message": f"turn {number}", "session_id": session_id}
                async with session.post(service.url + CHAT, json=body) as response:
                    return response.status

            return await asyncio.gather(*(one(number) for number in range(1, 17)))

    assert asyncio.run(all_at_once()) == [200] * 16

    stored = rows(stores, "SELECT number, message FROM turns WHERE session_id = $1 ORDER BY number", session_id)
    assert [number for number, _ in stored] == list(range(1, 18))
    assert sorted(message for _, message in stored) == sorted(f"turn {number}" for number in range(17))
