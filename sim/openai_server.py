"""An OpenAI-compatible endpoint on the simulated network, in front of a modelled provider.

    with network.on("llm"):
        async with serving(provider):
            ...

Unmodified clients meet the provider's queue, its rate limits and its faults as bytes: chunked server-sent events that
end by ``data: [DONE]``, 429 with Retry-After, 500 and 503, a body that is no completion, a connection that is reset
amid the answer, or before it, or on which nothing ever comes. A client that closes its connection aborts its call.

Source: OpenAI API reference, "Create chat completion", "Streaming" and "Error codes"; RFC 9110, section 10.2.3.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from orchestra.errors import DeadlineExceeded, OrchestraError, ProviderOverloaded
from orchestra.model import Chunk, Delta, Finish, Message, Prompt, Role, Sampling
from orchestra.ports import Provider
from sim import provider_errors as errors

PORT = 80
BODY_BYTES_MAX = 10_000_000
DONE = b"data: [DONE]\n\n"


class _Said(msgspec.Struct):
    role: Role
    content: str


class _Options(msgspec.Struct):
    include_usage: bool = False


class _Request(msgspec.Struct):
    """What is read of a request; whatever else a client adds is ignored, but for how to draw (`Sampling`)."""

    model: str
    messages: list[_Said]
    stream: bool = False
    stream_options: _Options | None = None


class _Status(NamedTuple):
    """An answer that is an error."""

    status: int
    code: str


FAILED = _Status(500, "server_error")
_STATUS_OF = {str(errors.failed()): FAILED, str(errors.full()): _Status(503, "overloaded")}
_GARBLED = str(errors.garbled())
_UNREACHABLE = str(errors.unreachable())
_BROKEN_OFF = str(errors.broken_off())


@asynccontextmanager
async def serving(provider: Provider, *, port: int = PORT) -> AsyncIterator[None]:
    """Let `provider` answer in the body, on the host that the caller runs on (`Network.on`), below ``/v1``.

    Afterwards calls under way are aborted.

    Raises
    ------
    OSError
        The port is taken.
    """
    endpoint = _Endpoint(provider)
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_post("/v1/chat/completions", endpoint.complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


class _Endpoint:
    """Answers requests; its answers are numbered, so that they are the same bytes in each run."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._answers = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer one request as the provider's model has it."""
        body = await request.read()
        try:
            asked = msgspec.json.decode(body, type=_Request)
            prompt = Prompt(
                tuple(Message(each.role, each.content) for each in asked.messages),
                sampling=msgspec.json.decode(body, type=Sampling),
            )
            if not prompt.messages:
                raise msgspec.ValidationError("messages is empty: give at least one")
        except msgspec.DecodeError as error:
            return _error(_Status(400, "invalid_request_error"), str(error))
        self._answers += 1
        answer = _Answer(request, asked, f"chatcmpl-{self._answers}")
        try:
            async with aclosing(self._provider.complete(prompt)) as chunks:
                async for chunk in chunks:
                    await answer.add(chunk)
            return await answer.end()
        except OrchestraError as error:
            return answer.fail(error)


class _Answer:
    """One answer as it is sent: piece by piece, or whole at its end where no stream was asked for."""

    def __init__(self, request: web.Request, asked: _Request, number: str) -> None:
        self._request = request
        self._asked = asked
        self._created = int(asyncio.get_running_loop().time())
        self._number = number
        self._text = ""
        self._finish: Finish | None = None
        self._stream: web.StreamResponse | None = None

    async def add(self, chunk: Chunk) -> None:
        """Take a piece of the answer, or what comes at its end, and send it if the answer is a stream."""
        if isinstance(chunk, Delta):
            self._text += chunk.text
            if self._asked.stream:
                await self._send([self._choice({"content": chunk.text}, None)])
        elif isinstance(chunk, Finish):
            self._finish = chunk
            if self._asked.stream:
                await self._send([self._choice({}, chunk.reason)])

    async def end(self) -> web.StreamResponse:
        """Return the answer, now that it is whole."""
        assert self._finish is not None, "a provider's last chunk is a Finish"
        if self._stream is not None:
            if self._asked.stream_options and self._asked.stream_options.include_usage:
                await self._send([], usage=self._usage(self._finish))
            await self._stream.write(DONE)
            return self._stream
        message = {"role": "assistant", "content": self._text}
        choice = {"index": 0, "message": message, "finish_reason": self._finish.reason}
        return _json(200, self._document("chat.completion", [choice], usage=self._usage(self._finish)))

    def fail(self, error: OrchestraError) -> web.StreamResponse:
        """Return what a client gets of an answer that ends by `error`."""
        what = str(error)
        if self._stream is not None or what in (_BROKEN_OFF, _UNREACHABLE) or isinstance(error, DeadlineExceeded):
            if self._request.transport is not None:
                self._request.transport.abort()
            return self._stream or web.Response()  # which nobody gets
        if isinstance(error, ProviderOverloaded):
            return _error(_Status(429, "rate_limit_exceeded"), what, _retry_after(error.retry_after_seconds))
        if what == _GARBLED:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        return _error(_STATUS_OF.get(what, FAILED), what)

    async def _send(self, choices: list[Any], **more: Any) -> None:
        if self._stream is None:
            self._stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await self._stream.prepare(self._request)
        document = self._document("chat.completion.chunk", choices, **more)
        await self._stream.write(b"data: %b\n\n" % msgspec.json.encode(document))

    def _document(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        head = {"id": self._number, "object": kind, "created": self._created, "model": self._asked.model}
        return {**head, "choices": choices, **more}

    def _choice(self, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": reason}

    def _usage(self, finish: Finish) -> dict[str, int]:
        read, written = finish.usage.prompt_tokens, finish.usage.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _retry_after(seconds: float | None) -> dict[str, str]:
    """Return the header in whole seconds, as the RFC has it, and OpenAI's finer one beside it."""
    if seconds is None:
        return {}
    return {"Retry-After": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def _error(status: _Status, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"message": message, "type": status.code, "param": None, "code": status.code}
    return _json(status.status, {"error": error}, headers)


def _json(status: int, document: dict[str, Any], headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(document), content_type="application/json", headers=headers
    )
