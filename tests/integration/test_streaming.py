"""Answers in pieces on real sockets: they come as the provider says them, and who leaves ends the provider's call."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import product
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores
from orchestra.chat.turns import turn_id_of
from tests.integration.loopback import serving, settings_on

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


def lived(stores: EmbeddedStores, folder: Path, story: Callable[..., Awaitable[None]], **settings: str) -> str:
    """Run ``story(client, endpoint)`` beside a service on a halting endpoint, and return the service's log."""

    async def run() -> str:
        endpoint = HaltingEndpoint()
        async with serving(endpoint.complete) as url:
            environ = {
                **settings_on(stores),
                "ORCHESTRA_PROVIDER_URL": f"{url}/v1",
                "ORCHESTRA_PROVIDER_MODEL": "halting",
                **settings,
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
    """Return the next event: its id, and its frame."""
    block = (await response.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")
    name, place, data = block.split("\n")
    frame = json.loads(data.removeprefix("data: "))
    assert name == f"event: {frame['type']}"
    return place.removeprefix("id: "), frame


async def told(response: aiohttp.ClientResponse) -> Any:
    """Return what the next event says: the text of a piece, the reply of a turn that is done, else its type."""
    _, frame = await event(response)
    return frame.get("text") or frame.get("reply") or frame["type"]


def test_a_piece_is_there_before_the_next_is_said(stores: EmbeddedStores, tmp_path: Path) -> None:
    async def story(client: aiohttp.ClientSession, endpoint: HaltingEndpoint) -> None:
        async with client.post(CHAT, json={"message": "hello", "stream": True}) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/event-stream"
            assert response.headers["X-Accel-Buffering"] == "no"
            assert [await told(response), await told(response)] == ["started", "one "]
            endpoint.proceed.set()
            assert await told(response) == "two"
            reply = await told(response)
            assert (reply["reply"], reply["model"]) == ("one two", "halting")
            assert await response.content.read() == b""
        async with client.get(f"/chat/v2/sessions/{reply['session_id']}") as read:  # the connection is used again
            session = await read.json()
        assert [(turn["message"], turn["reply"]) for turn in session["turns"]] == [("hello", "one two")]

    lived(stores, tmp_path, story)


def test_who_goes_away_ends_the_providers_call_and_is_no_defect(stores: EmbeddedStores, tmp_path: Path) -> None:
    """At once: a client of a whole reply, and one of a stream that says that it cannot resume."""

    async def story(client: aiohttp.ClientSession, endpoint: HaltingEndpoint) -> None:
        client.headers["Prefer"] = "no-resume"
        for stream, message in product((True, False), ("hello", "say nothing")):
            await _left(client, endpoint, {"message": message, "stream": stream})
            await endpoint.aborted.wait()
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


def test_who_lost_a_stream_comes_back_to_it_or_ends_it(stores: EmbeddedStores, tmp_path: Path) -> None:
    """Within its grace the turn goes on; after it, and when it is cancelled, the provider's connection closes."""

    async def story(client: aiohttp.ClientSession, endpoint: HaltingEndpoint) -> None:
        for message in ("hello", "say nothing"):  # nobody comes back
            await _left(client, endpoint, {"message": message, "stream": True})
            await endpoint.aborted.wait()
            endpoint.aborted.clear()

        async with client.post(CHAT, json={"message": "hello", "stream": True}) as lost:
            assert await told(lost) == "started"
            last, _ = await event(lost)
            lost.close()
        session_id, turn_id, _ = last.split("/")
        path = f"/chat/v2/sessions/{session_id}/turns/{turn_id}"
        async with client.get(f"{path}/events", headers={"Last-Event-ID": last}) as back:
            assert await back.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            endpoint.proceed.set()
            assert await told(back) == "two"
            assert (await told(back))["reply"] == "one two"
        endpoint.proceed.clear()
        assert not endpoint.aborted.is_set()

        endpoint.asked.clear()
        for message in ("hello", "say nothing"):
            body = {"message": message, "stream": True, "session_id": session_id}
            begun = asyncio.create_task(_answer(client, body, {"Idempotency-Key": message[:3]}))
            await endpoint.asked.wait()
            endpoint.asked.clear()
            turn_id = turn_id_of(session_id, None, message[:3])
            async with client.delete(f"/chat/v2/sessions/{session_id}/turns/{turn_id}") as cancelled:
                assert cancelled.status == 202
            await endpoint.aborted.wait()
            endpoint.aborted.clear()
            assert "turn-cancelled" in await begun

    log = lived(stores, tmp_path, story, ORCHESTRA_RESUME_GRACE_SECONDS="0.5")
    assert "unexpected_error" not in log
    assert "Traceback" not in log


async def _left(client: aiohttp.ClientSession, endpoint: HaltingEndpoint, body: dict[str, Any]) -> None:
    """Ask, and go away: from a stream that says something with its first piece, else when the provider is asked."""
    sent = asyncio.create_task(_posted(client, body))
    await endpoint.asked.wait()
    endpoint.asked.clear()
    if body["stream"] and body["message"] == "hello":
        (await sent).close()
    else:
        sent.cancel()
        await asyncio.wait((sent,))


async def _posted(client: aiohttp.ClientSession, body: dict[str, Any]) -> aiohttp.ClientResponse:
    response = await client.post(CHAT, json=body)
    assert [await told(response), await told(response)] == ["started", "one "]
    return response


async def _answer(client: aiohttp.ClientSession, body: dict[str, Any], headers: dict[str, str]) -> str:
    async with client.post(CHAT, json=body, headers=headers) as response:
        return await response.text()


def test_the_offline_model_streams_too(service: LiveService) -> None:
    async def story() -> None:
        async with (
            aiohttp.ClientSession(service.url) as client,
            client.post(CHAT, json={"message": "hello"}, headers={"Accept": "text/event-stream"}) as response,
        ):
            texts = []
            assert await told(response) == "started"
            while isinstance(said := await told(response), str):
                texts.append(said)
            assert len(texts) > 5
            assert "".join(texts) == said["reply"]

    asyncio.run(story())
