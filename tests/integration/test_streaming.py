"""Answers in pieces on real sockets: they come as the provider says them, and who leaves ends the provider's call."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores

CHAT = "/chat/v2/chat"
SECONDS_MAX = 20.0


class HaltingEndpoint:
    """An OpenAI-compatible endpoint that says one word, and the rest once it may `proceed`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.proceed = asyncio.Event()
        self.aborted = asyncio.Event()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        message = (await request.json())["messages"][-1]["content"]
        self.asked.set()
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            if "say nothing" not in message:
                await response.write(_chunk({"content": "one "}))
            await self.proceed.wait()
            await response.write(_chunk({"content": "two"}) + _chunk({}, "stop") + b"data: [DONE]\n\n")
            return response
        except asyncio.CancelledError:
            self.aborted.set()
            raise


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    body = {"model": "halting", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@asynccontextmanager
async def _listening(endpoint: HaltingEndpoint) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def lived(stores: EmbeddedStores, folder: Path, story: Callable[..., Awaitable[None]]) -> str:
    """Run ``story(client, endpoint)`` beside a service on a halting endpoint, and return the service's log."""

    async def run() -> str:
        endpoint = HaltingEndpoint()
        async with _listening(endpoint) as url:
            environ = {
                "DATABASE_URL": stores.database_url,
                "REDIS_URL": stores.redis_url,
                "ORCHESTRA_PROVIDER_URL": url,
                "ORCHESTRA_PROVIDER_MODEL": "halting",
            }
            running = live_service(folder, environ)
            service = await asyncio.to_thread(running.__enter__)
            try:
                async with aiohttp.ClientSession(service.url) as client, asyncio.timeout(SECONDS_MAX):
                    await story(client, endpoint)
            finally:
                await asyncio.to_thread(running.__exit__, None, None, None)
            return service.log.read_text()

    return asyncio.run(run())


async def event(response: aiohttp.ClientResponse) -> tuple[str, Any]:
    block = (await response.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")
    name, data = block.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_piece_is_there_before_the_next_is_said(stores: EmbeddedStores, tmp_path: Path) -> None:
    async def story(client: aiohttp.ClientSession, endpoint: HaltingEndpoint) -> None:
        async with client.post(CHAT, json={"message": "hello", "stream": True}) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert await event(response) == ("delta", {"text": "one "})
            endpoint.proceed.set()
            assert await event(response) == ("delta", {"text": "two"})
            name, reply = await event(response)
            assert (name, reply["reply"], reply["model"]) == ("done", "one two", "halting")
            assert await response.content.read() == b""
        async with client.get(f"/chat/v2/sessions/{reply['session_id']}") as read:  # the connection is used again
            history = await read.json()
        assert [(turn["message"], turn["reply"]) for turn in history["turns"]] == [("hello", "one two")]
        assert history["next_after"] is None

    lived(stores, tmp_path, story)


def test_who_goes_away_ends_the_providers_call_and_is_no_defect(stores: EmbeddedStores, tmp_path: Path) -> None:
    async def story(client: aiohttp.ClientSession, endpoint: HaltingEndpoint) -> None:
        for stream, message in product((True, False), ("hello", "say nothing")):
            sent = asyncio.create_task(_posted(client, {"message": message, "stream": stream}))
            await endpoint.asked.wait()
            if stream and message == "hello":
                (await sent).close()  # the first piece is there
            else:
                sent.cancel()
                await asyncio.wait((sent,))
            await endpoint.aborted.wait()
            endpoint.asked.clear()
            endpoint.aborted.clear()
        async with client.post(CHAT, json={"message": "hello"}, headers={"X-Request-Timeout": "0.5"}) as response:
            assert response.status == 504
            assert (await response.json(content_type=None))["type"] == "urn:ai-orchestra:problem:deadline-exceeded"
        await endpoint.aborted.wait()

    log = lived(stores, tmp_path, story)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert "unexpected_error" not in log
    assert "Traceback" not in log
    ended = [line for line in lines if line["event"] == "turn_finished"]
    assert [line["error"] for line in ended] == ["cancelled"] * 4 + ["deadline-exceeded"]
    answered = [line["status"] for line in lines if line["event"] == "request_finished" and line["route"] == CHAT]
    assert answered == [499] * 4 + [504]


async def _posted(client: aiohttp.ClientSession, body: dict[str, Any]) -> aiohttp.ClientResponse:
    response = await client.post(CHAT, json=body)
    assert (await event(response))[0] == "delta"
    return response


def test_the_offline_model_streams_too(service: LiveService) -> None:
    async def story() -> None:
        async with (
            aiohttp.ClientSession(service.url) as client,
            client.post(CHAT, json={"message": "hello"}, headers={"Accept": "text/event-stream"}) as response,
        ):
            texts = []
            while (told := await event(response))[0] == "delta":
                texts.append(told[1]["text"])
            assert told[0] == "done"
            assert len(texts) > 5
            assert "".join(texts) == told[1]["reply"]

    asyncio.run(story())
