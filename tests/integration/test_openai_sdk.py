"""OpenAI's own Python SDK against a running service: what works with theirs works with ours."""

import asyncio
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from queue import Queue
from time import monotonic
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI, OpenAI

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores
from tests.integration.loopback import listening, settings_on

SECONDS_MAX = 20.0
MODEL = "house/echo-1"


class Endpoint:
    """A provider in a thread of its own, told by the last message how to behave."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.hanging: Queue[str] = Queue()
        self.aborted: Queue[str] = Queue()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        said = body["messages"][-1]["content"]
        self.asked.append(body)
        self.calls[said] += 1
        if said.startswith("overloaded") and self.calls[said] == 1:
            return web.json_response({"error": {"message": "not now"}}, status=429)
        if said.startswith("refused"):
            return web.json_response({"error": {"message": "no such thing"}}, status=400)
        try:
            return await self._speak(request, said)
        except asyncio.CancelledError:
            self.aborted.put(said)
            raise

    async def _speak(self, request: web.Request, said: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if not said.startswith("say nothing"):
            await response.write(_chunk({"content": "one "}))
        if said.startswith(("say nothing", "hang")):
            self.hanging.put(said)
            await asyncio.Event().wait()
        if said.startswith("break"):
            await response.write(b'data: {"error": {"message": "it broke"}}\n\n')
            return response
        usage = {"prompt_tokens": 11, "completion_tokens": 2}
        await response.write(_chunk({"content": "two"}) + _chunk({}, "stop") + _chunk(None, usage=usage))
        await response.write(b"data: [DONE]\n\n")
        return response


def _chunk(delta: dict[str, str] | None, finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"model": "echo-1-2026", "choices": choices, "usage": usage}).encode() + b"\n\n"


@pytest.fixture(scope="module")
def endpoint() -> Endpoint:
    return Endpoint()


@pytest.fixture(scope="module")
def orchestra(
    endpoint: Endpoint, stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    with listening(endpoint.complete) as url:
        environ = {
            **settings_on(stores),
            "ORCHESTRA_PROVIDER_URL": f"{url}/v1",
            "ORCHESTRA_PROVIDER_MODEL": MODEL,
            "ORCHESTRA_GUARDS__UNIFIED__RETRY__ATTEMPTS_MAX": "1",
            "ORCHESTRA_GUARDS__UNIFIED__FALLBACKS": "cache",
            "ORCHESTRA_GUARDS__UNIFIED__BREAKER__FAILURES_MAX": "100",
        }
        with live_service(tmp_path_factory.mktemp("openai"), environ) as running:
            yield running


@pytest.fixture(scope="module")
def sync(orchestra: LiveService) -> Iterator[OpenAI]:
    """A client that takes nothing that is not of the SDK's own types."""
    with OpenAI(
        base_url=f"{orchestra.url}/v1",
        api_key="anything",
        max_retries=0,
        timeout=SECONDS_MAX,
        _strict_response_validation=True,
    ) as client:
        yield client


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_a_whole_answer(sync: OpenAI, endpoint: Endpoint) -> None:
    completion = sync.chat.completions.create(
        model="orchestra",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "how are you?"},
        ],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=50,
        stop=["end"],
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        n=1,
        store=True,
        metadata={"any": "thing"},
        user="ada",
    )
    (choice,) = completion.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "one two")
    assert completion.usage is not None
    assert completion.usage.total_tokens == 13
    assert (completion.object, completion.model) == ("chat.completion", "orchestra")
    turn = completion.model_extra["x_orchestra"] if completion.model_extra else {}
    assert (completion.id, turn["model"], turn["degraded"]) == (f"chatcmpl-{turn['turn_id']}", "echo-1-2026", [])
    assert endpoint.asked[-1] == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "how are you?"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 50,
        "stop": ["end"],
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
    }
    # what came can be sent back as it is
    again: Any = [*user("hi"), choice.message.model_dump(), *user("and now?")]
    assert sync.chat.completions.create(model=MODEL, messages=again).choices[0].message.content == "one two"
    raw = sync.chat.completions.with_raw_response.create(
        model="orchestra", messages=user("hi"), extra_headers={"X-Request-ID": "mine"}
    )
    assert raw.headers["x-request-id"] == "mine"
    assert raw.headers["traceparent"]


def test_a_stream_with_its_usage(sync: OpenAI) -> None:
    for usage in (True, False):
        *chunks, end = sync.chat.completions.create(
            model="orchestra", messages=user("hi"), stream=True, stream_options={"include_usage": usage}
        )
        if usage:
            assert end.choices == []
            assert end.usage is not None
            assert end.usage.total_tokens == 13
            *chunks, end = chunks
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert [delta.content for delta in deltas] == ["", "one ", "two"]
        assert [delta.role for delta in deltas] == ["assistant", None, None]
        assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
        assert (end.choices[0].finish_reason, end.choices[0].delta.content) == ("stop", None)
        assert len({chunk.id for chunk in chunks}) == 1


def test_the_sdks_own_way_to_put_a_stream_together(sync: OpenAI) -> None:
    with sync.chat.completions.stream(model="orchestra", messages=user("hi")) as stream:
        kinds = [event.type for event in stream]
        completion = stream.get_final_completion()
    assert kinds.count("content.done") == 1
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == ("one two", "stop")


def test_async_whole_and_streamed(orchestra: LiveService) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=f"{orchestra.url}/v1", api_key="x", max_retries=0, timeout=SECONDS_MAX) as it:
            whole = await it.chat.completions.create(model="orchestra", messages=user("hi"))
            assert whole.choices[0].message.content == "one two"
            stream = await it.chat.completions.create(model="orchestra", messages=user("hi"), stream=True)
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "one two"
            assert [each.id async for each in it.models.list()] == ["orchestra", MODEL]
            stream = await it.chat.completions.create(model="orchestra", messages=user("break it"), stream=True)
            with pytest.raises(openai.APIError) as caught:
                [chunk async for chunk in stream]
            assert caught.value.code == "provider_failed"

    asyncio.run(main())


def test_a_stream_on_the_wire(orchestra: LiveService) -> None:
    body = {
        "model": "orchestra",
        "messages": user("hi"),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{orchestra.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS_MAX) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        text = response.read().decode()
    head = '{"id":"ID","object":"chat.completion.chunk","created":AT,"model":"orchestra","choices":['
    tail = '],"system_fingerprint":null,"usage":'
    usage = '{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13}'
    turn = '{"turn_id":"ID","session_id":"ID","engine":"unified","model":"echo-1-2026","degraded":[]}'
    deltas = ('{"role":"assistant","content":""}', '{"content":"one "}', '{"content":"two"}', "{}")
    ends = ("null", "null", "null", '"stop"')
    chunks = [
        head + f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{end}}}' + tail + "null"
        for delta, end in zip(deltas, ends, strict=True)
    ]
    expected = [*(f"{each}}}" for each in chunks[:3]), f'{chunks[3]},"x_orchestra":{turn}}}', head + tail + usage + "}"]
    shape = re.sub(r'"created":\d+', '"created":AT', re.sub(r'"(chatcmpl-)?[0-9a-f]{32}"', '"ID"', text))
    assert shape == "".join(f"data: {each}\n\n" for each in [*expected, "[DONE]"])


def test_models(sync: OpenAI) -> None:
    assert [each.id for each in sync.models.list()] == ["orchestra", MODEL]
    assert sync.models.retrieve(MODEL).id == MODEL
    for ask in (
        lambda: sync.models.retrieve("gpt-9"),
        lambda: sync.chat.completions.create(model="gpt-9", messages=user("hi")),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"temperature": 3.0}, "invalid_request", "temperature"),
        ({"messages": []}, "invalid_request", "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "x"}] * 2_002}, "context_length_exceeded", "messages"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_refused_is_a_bad_request_by_its_parameter(
    sync: OpenAI, more: dict[str, Any], code: str, param: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sync.chat.completions.create(**{"model": "orchestra", "messages": user("hi"), "stream": stream, **more})
    assert (caught.value.code, caught.value.param, caught.value.type) == (code, param, "invalid_request_error")


def test_errors_of_the_server_itself_are_read_as_well(sync: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sync.embeddings.create(model="orchestra", input="x")
    assert caught.value.code == "not_found"
    with pytest.raises(openai.APIStatusError) as large:
        sync.chat.completions.create(model="orchestra", messages=user("x" * 1_400_000))
    assert (large.value.status_code, large.value.code) == (413, "payload_too_large")


def test_a_failure_in_the_middle_raises(sync: OpenAI) -> None:
    stream = sync.chat.completions.create(model="orchestra", messages=user("break it"), stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "one "]
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "provider_failed"
    assert "it broke" in caught.value.message
    with pytest.raises(openai.InternalServerError) as whole:
        sync.chat.completions.create(model="orchestra", messages=user("break it"))
    assert (whole.value.status_code, whole.value.type) == (502, "api_error")


def test_the_sdk_comes_back_when_it_may_and_not_before(sync: OpenAI, endpoint: Endpoint) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        sync.chat.completions.create(model="orchestra", messages=user("overloaded, and once is enough"))
    assert (caught.value.status_code, caught.value.code) == (503, "provider_overloaded")
    assert caught.value.response.headers["retry-after"] == "1"
    patient = sync.with_options(max_retries=1)
    started = monotonic()
    completion = patient.chat.completions.create(model="orchestra", messages=user("overloaded"))
    assert monotonic() - started >= 1.0  # without the header the SDK waits half a second
    assert completion.choices[0].message.content == "one two"
    assert endpoint.calls["overloaded"] == 2


def test_the_sdk_does_not_come_back_where_that_cannot_help(sync: OpenAI, endpoint: Endpoint) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        sync.with_options(max_retries=3).chat.completions.create(model="orchestra", messages=user("refused"))
    assert caught.value.code == "provider_refused"
    assert endpoint.calls["refused"] == 1


def test_the_time_of_the_caller(sync: OpenAI, endpoint: Endpoint) -> None:
    with pytest.raises(openai.APITimeoutError):
        sync.with_options(timeout=0.5).chat.completions.create(model="orchestra", messages=user("say nothing 1"))
    assert endpoint.aborted.get(timeout=SECONDS_MAX) == "say nothing 1"
    with pytest.raises(openai.InternalServerError) as caught:
        sync.chat.completions.create(
            model="orchestra", messages=user("say nothing 2"), extra_headers={"X-Request-Timeout": "0.5"}
        )
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
    assert endpoint.aborted.get(timeout=SECONDS_MAX) == "say nothing 2"


def test_who_closes_a_stream_ends_the_providers_call(sync: OpenAI, endpoint: Endpoint) -> None:
    stream = sync.chat.completions.create(model="orchestra", messages=user("hang on"), stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    assert endpoint.aborted.get(timeout=SECONDS_MAX) == "hang on"


def test_who_leaves_before_the_first_piece_ends_the_providers_call(orchestra: LiveService, endpoint: Endpoint) -> None:
    async def main() -> None:
        async with AsyncOpenAI(base_url=f"{orchestra.url}/v1", api_key="x", max_retries=0, timeout=SECONDS_MAX) as it:
            said = "say nothing 3"
            asking = asyncio.create_task(
                it.chat.completions.create(model="orchestra", messages=user(said), stream=True)
            )
            while await asyncio.to_thread(endpoint.hanging.get, timeout=SECONDS_MAX) != said:
                pass  # those of other tests
            asking.cancel()
            await asyncio.wait((asking,))
        assert endpoint.aborted.get(timeout=SECONDS_MAX) == said

    asyncio.run(main())


def test_the_same_key_runs_nothing_twice(sync: OpenAI, endpoint: Endpoint) -> None:
    key = {"Idempotency-Key": "stainless-python-retry-1"}
    ids = {
        sync.chat.completions.create(model="orchestra", messages=user("only once"), extra_headers=key).id
        for _ in range(2)
    }
    ids |= {
        chunk.id
        for chunk in sync.chat.completions.create(
            model="orchestra", messages=user("only once"), extra_headers=key, stream=True
        )
    }
    assert len(ids) == 1
    assert endpoint.calls["only once"] == 1


def test_the_offline_model_answers_too(service: LiveService) -> None:
    with OpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0, timeout=SECONDS_MAX) as client:
        assert [each.id for each in client.models.list()] == ["orchestra"]
        history: Any = [*user("I sail on Lake Geneva."), {"role": "assistant", "content": "Nice."}]
        chunks = client.chat.completions.create(
            model="orchestra", messages=[*history, *user("Where do I sail?")], stream=True
        )
        assert "Lake Geneva" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
