"""Routes: which methods they have, and that nothing is left to be found out for each when the app starts."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from orchestra.chat.turns import LiveTurns
from orchestra.events import TurnFinished, UnexpectedError
from orchestra.model import Chunk, Delta, Finish, Prompt


async def silent(_: Prompt) -> AsyncGenerator[Chunk, None]:
    yield Finish("stop", "scripted-model")


ALLOWED = {
    "/status": "GET, HEAD, OPTIONS",
    "/chat/v2/chat": "OPTIONS, POST",
    "/chat/v1/chat": "OPTIONS, POST",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/chat/v2/sessions/s-1": "DELETE, GET, HEAD, OPTIONS, PATCH",
}


@pytest.mark.parametrize("path", ALLOWED)
def test_a_path_tells_its_methods_to_who_asks_and_to_who_errs(visit: Any, path: str) -> None:
    async def story(client: Any) -> None:
        asked = await client.ask("OPTIONS", path)
        assert (asked.status, asked.body, asked.header("allow")) == (204, b"", ALLOWED[path])
        wrong = await client.ask("PUT", path)
        assert (wrong.status, wrong.header("allow")) == (405, ALLOWED[path])
        assert f"use {ALLOWED[path]}" in wrong.text

    visit(story, silent)


def test_head_is_answered_as_get_is(visit: Any) -> None:
    async def story(client: Any) -> None:
        for path, status in (("/status", 200), ("/v1/models", 200), ("/metrics", 200), ("/operator", 403)):
            get, head = await client.ask("GET", path), await client.ask("HEAD", path)
            assert get.status == head.status == status
            assert get.header("content-type") == head.header("content-type")
        assert (await client.ask("HEAD", "/chat/v2/chat")).status == 405

    visit(story, silent)


def test_every_route_answers_head_and_options(visit: Any) -> None:
    async def story(client: Any) -> None:
        paths = {re.sub(r"<[^>]+>", "s-1", route.path) for route in client.app.router.routes}
        assert len(paths) > 20
        for path in sorted(paths):
            for method in ("HEAD", "OPTIONS"):
                answer = await client.ask(method, f"/{path}")
                assert answer.status < 500, (method, path, answer.status)  # the body is the server's to leave out
                assert method != "OPTIONS" or answer.status == 204
        assert client.told(UnexpectedError) == []

    visit(story, silent)


def test_head_of_a_stream_has_its_headers_and_follows_nothing(visit: Any) -> None:
    async def slow(_: Prompt) -> AsyncGenerator[Chunk, None]:
        yield Delta("one")
        await asyncio.sleep(5)
        yield Finish("stop", "scripted-model")

    async def story(client: Any) -> None:
        asking = asyncio.ensure_future(client.ask("POST", "/chat/v2/chat", {"message": "hello", "stream": True}))
        await asyncio.sleep(1)
        turns = await client.resolve(LiveTurns)
        (run,) = turns._runs.values()
        path = f"/chat/v2/sessions/{run.log.session_id}"
        followers = run._watchers
        head = await client.ask("HEAD", f"{path}/turns/{run.log.turn_id}/events")
        assert (head.status, head.header("content-type"), head.body) == (200, "text/event-stream", b"")
        assert (run._watchers, head.header("cache-control")) == (followers, "no-store")
        assert (await asking).status == 200
        get, head = await client.ask("GET", f"{path}/export"), await client.ask("HEAD", f"{path}/export")
        assert (head.status, head.body, head.header("content-length")) == (200, b"", None)
        for name in ("content-type", "content-disposition", "cache-control"):
            assert head.header(name) == get.header(name)
        assert (await client.ask("HEAD", "/chat/v2/sessions/nobody/export")).status == 404
        assert len(client.told(TurnFinished)) == 1

    visit(story, slow)


def test_the_start_adds_no_routes_and_reads_no_sources_of_handlers(visit: Any) -> None:
    """Both for each route: together four fifths of what a start takes."""

    async def story(client: Any) -> None:
        routes = client.app.router.routes
        assert [route.path for route in routes if hasattr(route.handler, "__auto_handler__")] == []
        ours = [route for route in routes if not route.path.startswith("docs") or route.path == "docs/asyncapi.json"]
        assert len(ours) > 20
        assert [route.path for route in ours if route.extra.error_format != "json"] == []

    visit(story, silent)
