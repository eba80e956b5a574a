"""Routes: which methods they have, and that nothing is left to be found out for each when the app starts."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from orchestra.model import Chunk, Finish, Prompt


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


def test_the_start_adds_no_routes_and_reads_no_sources_of_handlers(visit: Any) -> None:
    """Both for each route: together four fifths of what a start takes."""

    async def story(client: Any) -> None:
        routes = client.app.router.routes
        assert [route.path for route in routes if hasattr(route.handler, "__auto_handler__")] == []
        ours = [route for route in routes if not route.path.startswith("docs") or route.path == "docs/asyncapi.json"]
        assert len(ours) > 20
        assert [route.path for route in ours if route.extra.error_format != "json"] == []

    visit(story, silent)
