"""`kill -9` in the middle of many turns: what was acknowledged is in the session and in the database, once."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from chaos.processes import LiveService, free_port, live_service, start_service
from orchestra.adapters import embedded
from orchestra.adapters.redis import RedisSessions
from orchestra.model import Session

TURNS = 200
SESSIONS = 50
ACKNOWLEDGED_BEFORE_KILL = 60
AFTERWARDS = "after the crash"


async def storm(service: LiveService) -> list[dict[str, Any]]:
    """Send `TURNS` turns at once, kill the service amid them, and return the acknowledged replies."""
    acknowledged: list[dict[str, Any]] = []
    enough = asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as client:

        async def say(message: str, session_id: str | None) -> dict[str, Any]:
            body = {"message": message} | ({"session_id": session_id} if session_id else {})
            async with client.post(f"{service.url}/chat/v2/chat", json=body) as response:
                reply: dict[str, Any] = await response.json()
                assert response.status == 200, reply
            return {**reply, "message": message}

        async def turn(number: int, session_id: str) -> None:
            acknowledged.append(await say(f"turn {number}", session_id))
            if len(acknowledged) >= ACKNOWLEDGED_BEFORE_KILL + SESSIONS:
                enough.set()

        acknowledged += await asyncio.gather(*(say(f"start {number}", None) for number in range(SESSIONS)))
        ids = [reply["session_id"] for reply in acknowledged]
        turns = [asyncio.create_task(turn(number, ids[number % SESSIONS])) for number in range(TURNS)]
        await asyncio.wait_for(enough.wait(), 30)
        service.kill()
        outcomes = await asyncio.gather(*turns, return_exceptions=True)
    assert any(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes), "the kill came after the last turn"
    return acknowledged


async def stored(data_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Session]]:
    """Read every turn and session, past the service."""
    async with embedded.embedded_stores(data_dir) as stores:
        connection = await asyncpg.connect(stores.database_url)
        turns = [dict(row) for row in await connection.fetch("SELECT * FROM turns")]
        await connection.close()
        sessions = RedisSessions(stores.redis_url, hook=lambda event: None)
        loaded = {row["session_id"]: await sessions.load(row["session_id"]) for row in turns}
        await sessions.close()
    return turns, {session_id: session for session_id, session in loaded.items() if session}


def check(acknowledged: list[dict[str, Any]], turns: list[dict[str, Any]], sessions: dict[str, Session]) -> None:
    by_id = Counter(turn["id"] for turn in turns)
    assert [reply["turn_id"] for reply in acknowledged if by_id[reply["turn_id"]] != 1] == []
    said_once = Counter((turn["session_id"], turn["message"]) for turn in turns if turn["message"] != AFTERWARDS)
    assert max(said_once.values()) == 1
    for reply in acknowledged:
        said = [message.content for message in sessions[reply["session_id"]].messages if message.role == "user"]
        assert said.count(reply["message"]) == 1


def test_a_killed_service_keeps_every_acknowledged_turn_once(tmp_path: Path) -> None:
    service = start_service(tmp_path)
    acknowledged = asyncio.run(storm(service))
    assert len(acknowledged) < SESSIONS + TURNS
    check(acknowledged, *asyncio.run(stored(tmp_path)))  # before a further turn could mend anything
    with live_service(tmp_path) as again:
        # the sessions go on, also those that the crash caught between their two writes
        async def goes_on() -> None:
            async with aiohttp.ClientSession() as client:
                for session_id in {reply["session_id"]: None for reply in acknowledged}:
                    body = {"message": AFTERWARDS, "session_id": session_id}
                    async with client.post(f"{again.url}/chat/v2/chat", json=body) as response:
                        assert response.status == 200, await response.text()

        asyncio.run(goes_on())
        turns, sessions = asyncio.run(stored(tmp_path))
    check(acknowledged, turns, sessions)
    for session_id, session in sessions.items():
        numbers = sorted(turn["number"] for turn in turns if turn["session_id"] == session_id)
        assert numbers == list(range(1, session.version + 1))
        assert len(session.messages) == 2 * session.version


def test_a_restart_on_the_same_port_goes_on_with_the_session(tmp_path: Path) -> None:
    port = free_port()

    def say(service: LiveService, body: dict[str, str]) -> dict[str, Any]:
        async def said() -> dict[str, Any]:
            async with (
                aiohttp.ClientSession() as client,
                client.post(f"{service.url}/chat/v2/chat", json=body) as answer,
            ):
                reply: dict[str, Any] = await answer.json()
                return reply

        return asyncio.run(said())

    service = start_service(tmp_path, port=port)
    first = say(service, {"message": "my name is Ada"})
    assert service.stop() in {0, 143}
    service = start_service(tmp_path, port=port)
    try:
        assert "Ada" in say(service, {"message": "What is my name?", "session_id": first["session_id"]})["reply"]
    finally:
        service.stop()
