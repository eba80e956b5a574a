"""Reading a conversation, page by page, from its beginning or from its end."""

import json
from typing import Any

import pytest

from orchestra.gateway import history
from orchestra.model import Delta, Finish, Turn
from orchestra.resilience.degradation import Degradation, Level
from sim.faults import StoreDown

SESSIONS = "/chat/v2/sessions/"


async def hi(_prompt: Any) -> Any:
    yield Delta("hi")
    yield Finish("stop", "scripted")


def said(number: int) -> Turn:
    return Turn("", "", number, "c", f"message {number}", "hi", "unified", "scripted", at=float(number))


async def talked(client: Any, turns: int) -> str:
    await client.keep("s-1", *map(said, range(1, turns + 1)))
    return "s-1"


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

    visit(story, hi)


def test_the_turns_come_from_the_end_in_pages(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 5)

        async def page(query: str) -> Any:
            page = await read(client, f"{session_id}?{query}")
            return numbers(page), page["next_before"], page["next_after"]

        assert await page("before=end&limit=2") == ([4, 5], 4, None)
        assert await page("before=4&limit=2") == ([2, 3], 2, 3)
        assert await page("before=2&limit=2") == ([1], None, 1)
        assert await page("before=1") == ([], None, 0)
        assert await page("before=end") == ([1, 2, 3, 4, 5], None, None)
        assert await page("before=6&limit=5") == ([1, 2, 3, 4, 5], None, None)
        assert await page("before=2147483647&limit=1") == ([5], 5, None)

    visit(story, hi)


def test_a_page_tells_of_both_neighbours(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 5)
        for query, before, after in (
            ("limit=5", None, None),
            ("limit=2", None, 2),
            ("after=2&limit=2", 3, 4),
            ("after=3&limit=2", 4, None),
            ("after=5", 6, None),
            ("after=9", 6, None),
        ):
            page = await read(client, f"{session_id}?{query}")
            assert (page["next_before"], page["next_after"]) == (before, after), query

    visit(story, hi)


def test_from_the_end_long_turns_make_short_pages_and_nothing_is_skipped(
    visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 45)
        pages: list[list[int]] = []
        before: str | None = "end"
        while before is not None:
            page = await read(client, f"{session_id}?before={before}&limit=30")
            pages.insert(0, numbers(page))
            before = page["next_before"]
        assert [number for page in pages for number in page] == list(range(1, 46))
        assert [len(page) for page in pages] == [18, 27]  # of 12 characters a turn at first

    monkeypatch.setattr(history, "PAGE_CHARS_MAX", 27 * 12 + 11)
    visit(story, hi)


def test_turns_that_a_loss_of_data_took_are_skipped_over(visit: Any) -> None:
    async def story(client: Any) -> None:
        session_id = await talked(client, 3)
        await client.keep(session_id, said(28), said(29), said(30))
        assert numbers(await read(client, session_id)) == [1, 2, 3, 28, 29, 30]
        seen: list[int] = []
        before: int | str | None = "end"
        while before is not None:
            page = await read(client, f"{session_id}?before={before}&limit=2")
            seen = numbers(page) + seen
            before = page["next_before"]
        assert seen == [1, 2, 3, 28, 29, 30]

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
        for before, number, next_before in (("end", 2, 2), ("2", 1, None)):
            page = await read(client, f"{session_id}?before={before}")
            assert (numbers(page), page["next_before"]) == ([number], next_before)

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
            ("abc?before=0", 400, "before"),
            ("abc?before=2147483648", 400, "before"),
            ("abc?before=End", 400, "before"),
            ("abc?before=", 400, "before"),
            ("abc?before=end&before=end", 400, "before"),
            ("abc?before=7&after=0", 400, "before"),
            ("abc?page=7", 400, "page"),
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
