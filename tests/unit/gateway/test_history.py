"""Reading a conversation, page by page."""

import json
from typing import Any

import pytest

from orchestra.events import StoreFinished
from orchestra.gateway import history
from orchestra.model import Delta, Finish
from orchestra.resilience.degradation import Degradation, Level
from sim.faults import StoreDown

SESSIONS = "/chat/v2/sessions/"


async def hi(_prompt: Any) -> Any:
    yield Delta("hi")
    yield Finish("stop", "scripted")


async def talked(client: Any, turns: int) -> str:
    session_id = ""
    for number in range(1, turns + 1):
        body = {"message": f"message {number}"} | ({"session_id": session_id} if session_id else {})
        reply = await client.ask("POST", "/chat/v2/chat", body)
        session_id = str(json.loads(reply.body)["session_id"])
    return session_id


async def read(client: Any, path: str) -> Any:
    answer = await client.ask("GET", SESSIONS + path)
    assert answer.status == 200, answer.text
    assert answer.header("Cache-Control") == "no-store"
    return json.loads(answer.body)


def numbers(page: Any) -> list[int]:
    return [turn["number"] for turn in page["turns"]]


def test_the_turns_come_in_order_and_in_pages(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 5)
        whole = await read(client, session_id)
        assert (whole["session_id"], numbers(whole), whole["next_after"]) == (session_id, [1, 2, 3, 4, 5], None)
        assert whole["turns"][1]["message"] == "message 2"
        assert whole["turns"][1]["reply"] == "hi"
        first = await read(client, f"{session_id}?limit=2")
        assert (numbers(first), first["next_after"]) == ([1, 2], 2)
        second = await read(client, f"{session_id}?limit=3&after=2")
        assert (numbers(second), second["next_after"]) == ([3, 4, 5], None)
        beyond = await read(client, f"{session_id}?after=5")
        assert (numbers(beyond), beyond["next_after"]) == ([], None)
        assert {"conversations"} == {each.target for each in client.told(StoreFinished)[-2:]}

    visit(story, hi)


def test_a_page_has_100_turns_at_most(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 101)
        page = await read(client, session_id)
        assert (len(page["turns"]), page["next_after"]) == (100, 100)

    visit(story, hi)


def test_a_page_of_long_turns_is_shorter_and_nothing_is_skipped(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 25)
        seen: list[int] = []
        sizes: list[int] = []
        after: int | None = 0
        while after is not None:
            page = await read(client, f"{session_id}?after={after}")
            seen += numbers(page)
            sizes.append(len(page["turns"]))
            after = page["next_after"]
        assert seen == list(range(1, 26))
        assert sizes == [10, 9, 6]  # of 11 characters a turn at first, then of 12

    monkeypatch.setattr(history, "PAGE_CHARS_MAX", 111)
    visit(story, hi)


def test_a_turn_that_is_longer_than_a_page_is_a_page(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 2)
        first = await read(client, session_id)
        assert (numbers(first), first["next_after"]) == ([1], 1)
        last = await read(client, f"{session_id}?after=1")
        assert (numbers(last), last["next_after"]) == ([2], None)

    monkeypatch.setattr(history, "PAGE_CHARS_MAX", 5)
    visit(story, hi)


def test_it_is_read_in_maintenance_where_turns_are_refused(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 1)
        (await client.resolve(Degradation)).latch(Level.MAINTENANCE, "test")
        assert numbers(await read(client, session_id)) == [1]
        assert (await client.ask("POST", "/chat/v2/chat", {"message": "hello"})).status == 503

    visit(story, hi)


def test_bad_parameters_are_refused_by_name(visit: Any) -> None:
    async def story(client: Any) -> None:
        for path, status, field in (
            ("0123456789", 404, "session_id"),
            ("0123456789?after=7", 404, "session_id"),
            ("-x", 400, "session_id"),
            ("%00", 400, "session_id"),
            ("a" * 129, 400, "session_id"),
            ("abc?limit=0", 400, "limit"),
            ("abc?limit=101", 400, "limit"),
            ("abc?limit=", 400, "limit"),
            ("abc?limit=1&limit=2", 400, "limit"),
            ("abc?after=-1", 400, "after"),
            ("abc?after=2147483648", 400, "after"),
            ("abc?after=x%00", 400, "after"),
            ("abc?before=7", 400, "before"),
            ("abc?%ff=7", 400, "\ufffd"),
        ):
            answer = await client.ask("GET", SESSIONS + path)
            problem = json.loads(answer.body)
            assert (answer.status, problem["field"]) == (status, field), path
            assert problem["type"].endswith("session-unknown" if status == 404 else "invalid-request")

    visit(story, hi)


def test_a_store_that_is_away_is_a_503(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 1)
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="conversations")):
            answer = await client.ask("GET", SESSIONS + session_id)
        assert answer.status == 503
        assert answer.header("Retry-After") == "1"

    visit(story, hi)
