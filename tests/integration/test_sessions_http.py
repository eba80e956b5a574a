"""Sessions and exports of the live service, on real stores: what Redis does not hold, and what deletion leaves."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
from markdown_it import MarkdownIt
from redis.asyncio import Redis

from chaos.processes import LiveService
from orchestra import limits
from orchestra.adapters.embedded import EmbeddedStores
from orchestra.adapters.postgres import Postgres
from orchestra.chat.transcript import Transcript
from orchestra.model import Turn

SESSIONS = "/chat/v2/sessions"
CHAT = "/chat/v2/chat"


@asynccontextmanager
async def client_of(service: LiveService) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(service.url, timeout=aiohttp.ClientTimeout(total=30)) as client:
        yield client


async def asked(client: aiohttp.ClientSession, status: int, method: str, path: str, **options: Any) -> Any:
    async with client.request(method, path, **options) as response:
        body = await response.read()
        assert response.status == status, body
        return json.loads(body) if body else None


async def kept(stores: EmbeddedStores, session_id: str, count: int, chars: int) -> tuple[Turn, ...]:
    """Make a conversation durable that is longer than a session's record."""
    turns = tuple(
        Turn(
            f"{session_id}-{number}", session_id, number, "c", f"# {number} ~~~\r\n" + "é" * chars, "hi", "e", "m", 1e9
        )
        for number in range(1, count + 1)
    )
    postgres = await Postgres.connect(stores.database_url)
    try:
        await asyncio.gather(*(postgres.conversations.append(turn, f"session:{session_id}") for turn in turns))
    finally:
        await postgres.close()
    return turns


def test_a_session_lives_and_is_deleted(service: LiveService, stores: EmbeddedStores) -> None:
    async def story() -> None:
        async with client_of(service) as client:
            mine = {"session_id": "http-1", "user_id": "ada-of-http-1"}
            await asked(client, 201, "POST", SESSIONS, json=mine | {"system": "Be kind."})
            await asked(client, 409, "POST", SESSIONS, json=mine)
            for number in range(3):
                await asked(client, 200, "POST", CHAT, json=mine | {"message": f"hello {number}"})
            path = f"{SESSIONS}/http-1"
            patch = {"pinned": [1], "context": {"language": "German"}}
            changed = await asked(client, 200, "PATCH", path, json=patch)
            assert changed["profile"] == {"system": "Be kind.", **patch}
            read = await asked(client, 200, "GET", f"{path}?before=end&limit=2")
            assert [turn["message"] for turn in read["turns"]] == ["hello 1", "hello 2"]
            assert (read["state"], read["version"], read["messages"], read["next_before"]) == ("active", 3, 6, 2)
            assert (await left(stores))[:2] == (3, 3)
            await asked(client, 204, "DELETE", path)
            for method, target in (("GET", path), ("GET", f"{path}/export"), ("DELETE", path), ("PATCH", path)):
                await asked(client, 404, method, target, **({"json": {}} if method == "PATCH" else {}))
            await asked(client, 404, "POST", CHAT, json=mine | {"message": "hello?"})
            await asked(client, 409, "POST", SESSIONS, json=mine)
            turns, memories, keys = await left(stores)
            assert (turns, memories) == (0, 0)
            assert not any(b"hello" in value or b"kind" in value for value in keys)

    asyncio.run(story())


async def left(stores: EmbeddedStores) -> tuple[int, int, list[bytes]]:
    """Return how many turns and memories there are of the session, and what Redis has of it."""
    connection = await asyncpg.connect(stores.database_url)
    try:
        turns = await connection.fetchval("SELECT count(*) FROM turns WHERE session_id = 'http-1'")
        memories = await connection.fetchval("SELECT count(*) FROM memories WHERE owner = 'user:ada-of-http-1'")
    finally:
        await connection.close()
    async with Redis.from_url(stores.redis_url) as redis:
        values = [await redis.get(key) async for key in redis.scan_iter("*session*http-1*")]
        return turns, memories, [value for value in values if isinstance(value, bytes)]


def test_a_long_conversation_is_read_from_both_ends_and_exported(service: LiveService, stores: EmbeddedStores) -> None:
    async def story() -> None:
        turns = await kept(stores, "http-2", 2 * limits.SESSION_MESSAGES_MAX + 30, 500)
        async with client_of(service) as client:
            assert await paged(client, "after=0", "next_after", "after") == turns
            assert await paged(client, "before=end", "next_before", "before") == turns
            async with client.get(f"{SESSIONS}/http-2/export") as response:
                assert response.headers["Content-Type"] == "application/json"
                assert msgspec.json.decode(await response.read(), type=Transcript).turns == turns
            async with client.get(f"{SESSIONS}/http-2/export", headers={"Accept": "text/markdown"}) as response:
                assert response.charset == "UTF-8"
                assert response.content_disposition is not None
                assert response.content_disposition.filename == "conversation-http-2.md"
                text = await response.text()
        tokens = MarkdownIt().parse(text)
        assert [token.content for token in tokens if token.type == "fence"][::2] == [
            turn.message.replace("\r\n", "\n") + "\n" for turn in turns
        ]
        assert text.endswith("*End of the conversation: 230 turns.*\n")

    asyncio.run(story())


async def paged(client: aiohttp.ClientSession, query: str, key: str, parameter: str) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    while query:
        page = await asked(client, 200, "GET", f"{SESSIONS}/http-2?{query}")
        assert page["state"] == "expired"
        found = msgspec.convert(page["turns"], list[Turn])
        turns = turns + found if parameter == "after" else found + turns
        query = f"{parameter}={page[key]}" if page[key] is not None else ""
    return tuple(turns)


def test_a_slow_reader_gets_all_and_one_that_leaves_is_no_trouble(service: LiveService, stores: EmbeddedStores) -> None:
    turns = asyncio.run(kept(stores, "http-3", 100, 20_000))  # 4 MB
    address = urlsplit(service.url)
    request = f"GET {SESSIONS}/http-3/export HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    for reads in (1, None):
        with socket.create_connection((address.hostname, address.port or 80), timeout=20) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.sendall(request)
            received = bytearray()
            while (reads is None or len(received) < reads) and (piece := connection.recv(50_000)):
                received += piece
    body = _unchunked(bytes(received.partition(b"\r\n\r\n")[2]))
    assert msgspec.json.decode(body, type=Transcript).turns == turns


def _unchunked(body: bytes) -> bytes:
    """Join the chunks of a chunked body (RFC 9112, section 7.1), which has to be complete."""
    assert body.endswith(b"\r\n0\r\n\r\n")
    pieces = []
    while not body.startswith(b"0\r\n"):
        size, _, body = body.partition(b"\r\n")
        assert int(size, 16) <= 64 * 1024
        pieces.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(pieces)
