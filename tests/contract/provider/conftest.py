"""A real OpenAI-compatible HTTP server on loopback, told by the request's own text how to behave."""

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from aiohttp import web

from orchestra.adapters.openai import OpenAIProvider


class Script(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What the server does with a request whose last message is this, as JSON; any other message is echoed.

    `pieces` are written one by one (each a latin-1 string of bytes); then the response ends, `end` permitting.
    """

    status: int = 200
    headers: dict[str, str] = {}
    content_type: str = "text/event-stream"
    pieces: list[str] = []
    end: str = "eof"  # or "hang", "reset"
    silent: bool = False  # never answers at all


class OpenAIServer:
    """Records what it is asked; `async with` starts it on a free port and stops it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[Any] = []
        self.aborted = asyncio.Event()
        self.answering = asyncio.Event()
        self._providers: list[OpenAIProvider] = []

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=10_000_000)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None):
        for provider in self._providers:
            await provider.aclose()
        await self._runner.cleanup()

    def provider(self, clock: Any = None, **changes: Any) -> OpenAIProvider:
        settings: dict[str, Any] = {
            "base_url": f"http://127.0.0.1:{self.port}/v1",
            "key": "key-of-the-tests",
            "model": "echo-1",
            "timeout_seconds": 30.0,
            "first_token_seconds": 30.0,
            "connections_max": 50,
            "clock": clock,
        }
        provider = OpenAIProvider(**{**settings, **changes})
        self._providers.append(provider)
        return provider

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        self.requests.append(asked)
        self.headers.append(dict(request.headers))
        self.peers.append(request.transport.get_extra_info("peername"))
        last = asked["messages"][-1]["content"]
        script = msgspec.json.decode(last, type=Script) if last.startswith("{") else _echo(last)
        try:
            return await self._perform(request, script)
        except asyncio.CancelledError:
            self.aborted.set()
            raise

    async def _perform(self, request: web.Request, script: Script) -> web.StreamResponse:
        if script.silent:
            self.answering.set()
            await asyncio.Event().wait()
        response = web.StreamResponse(status=script.status, headers=script.headers)
        response.content_type = script.content_type
        await response.prepare(request)
        for piece in script.pieces:
            await response.write(piece.encode("latin-1"))
            await asyncio.sleep(0)
        self.answering.set()
        if script.end == "hang":
            await asyncio.Event().wait()
        if script.end == "reset":
            request.transport.abort()
        return response


def _echo(text: str) -> Script:
    words = [f"{word} " for word in text.split()] or [""]
    usage = {"prompt_tokens": 11, "completion_tokens": len(words)}
    chunks: list[Any] = [{"model": "echo-1-2026", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
    return Script(pieces=[*(f"data: {json.dumps(each)}\n\n" for each in chunks), "data: [DONE]\n\n"])


@pytest.fixture
def openai_server() -> Callable[[], OpenAIServer]:
    return OpenAIServer


@pytest.fixture
def script() -> Callable[..., str]:
    """Make the message that has the server do something: `script(status=500)`."""

    def make(**fields: Any) -> str:
        return msgspec.json.encode(Script(**fields)).decode()

    return make
