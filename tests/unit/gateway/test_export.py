"""A conversation as a file: whole, in bounded pieces, and never half of one that looks whole."""

import asyncio
import json
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from sanic.exceptions import RequestCancelled

from orchestra.chat.transcript import FORMAT, Transcript
from orchestra.events import RequestFinished, StoreFinished
from orchestra.gateway import export
from orchestra.gateway.export import TURNS_AT_ONCE
from orchestra.model import Delta, Finish, Profile, Recollection, Turn, Usage
from sim import asgi
from sim.faults import StoreDown

SESSIONS = "/chat/v2/sessions"
NASTY = '"\\ \n\r\t\u2028 </script> ~~~ \x1b[31m é 漢 🎻 \ud7ff\uffff'


async def hi(_prompt: Any) -> Any:
    yield Delta("hi")
    yield Finish("stop", "scripted")


def said(number: int, message: str = "hello", reply: str = "hi") -> Turn:
    return Turn(
        f"s-1-{number}",
        "s-1",
        number,
        f"c-{number}",
        message,
        reply,
        "unified",
        "scripted",
        1.5e9 + number / 3,
        Usage(number, 2),
        ("memory",) if number % 2 else (),
        "length",
        (Recollection(NASTY, 0.1 + number),),
    )


async def exported(client: Any, session_id: str = "s-1", query: str = "", **headers: str) -> Any:
    answer = await client.ask("GET", f"{SESSIONS}/{session_id}/export{query}", **headers)
    assert answer.status == 200, answer.text
    assert answer.complete
    assert answer.header("Cache-Control") == "no-store"
    return answer


def at_once(call: Coroutine[Any, Any, object]) -> None:
    """Run what has nothing to wait for."""
    with pytest.raises(StopIteration):
        call.send(None)


def finished(client: Any) -> list[int]:
    return [event.status for event in client.told(RequestFinished) if event.route.endswith("/export")]


def test_json_is_everything(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.ask("POST", SESSIONS, {"session_id": "s-1", "system": NASTY, "metadata": {"title": "Rome"}})
        turns = tuple(said(number, f"{number} {NASTY}", NASTY * number) for number in range(1, TURNS_AT_ONCE + 2))
        await client.keep("s-1", *turns)
        answer = await exported(client)
        assert answer.header("Content-Type") == "application/json"
        assert answer.header("Content-Disposition") == 'attachment; filename="conversation-s-1.json"'
        document = msgspec.json.decode(answer.body, type=Transcript, strict=True)
        assert document.turns == turns
        head = await client.service.ports.conversations.head("s-1")
        assert document.profile == head.profile == Profile(system=NASTY, metadata={"title": "Rome"})
        assert (document.format, document.session_id, document.version) == (FORMAT, "s-1", TURNS_AT_ONCE + 1)
        assert (document.created_at, document.updated_at) == (head.created_at, head.updated_at)
        assert document.exported_at == client.service.ports.clock.now()
        assert set(json.loads(answer.body)["turns"][0]) == set(Turn.__struct_fields__)

    visit(story, hi)


def test_markdown_is_for_people(visit: Any) -> None:
    async def story(client: Any) -> None:
        body = {"session_id": "a:b", "system": "Be kind.", "metadata": {"title": "Rome"}}
        await client.ask("POST", SESSIONS, body)
        await client.ask("POST", "/chat/v2/chat", {"message": "# hello", "session_id": "a:b"})
        answer = await exported(client, "a:b", "?format=markdown")
        assert answer.header("Content-Type") == "text/markdown; charset=UTF-8"
        assert answer.header("Content-Disposition") == 'attachment; filename="conversation-a-b.md"'
        assert answer.text.startswith("# Rome\n\n- Session: `a:b`\n- Begun: ")
        assert (
            "\n## System\n\n~~~\nBe kind.\n~~~\n\n## 1. User\n\n~~~\n# hello\n~~~\n\n## 1. Assistant\n" in answer.text
        )
        assert answer.text.endswith("\n---\n\n*End of the conversation: 1 turn.*\n")

    visit(story, hi)


def test_a_name_decides_or_else_accept(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", said(1))
        for query, accept, kind in (
            ("", "text/markdown", "text/markdown"),
            ("", "text/*", "text/markdown"),
            ("", "application/json;q=0.5, text/markdown", "text/markdown"),
            ("", "text/markdown;q=0.5, application/json", "application/json"),
            ("", "*/*", "application/json"),
            ("", "text/html", "application/json"),
            ("", "", "application/json"),
            ("?format=json", "text/markdown", "application/json"),
            ("?format=markdown", "application/json", "text/markdown"),
        ):
            answer = await exported(client, "s-1", query, accept=accept)
            assert answer.header("Content-Type").partition(";")[0] == kind, (query, accept)

    visit(story, hi)


def test_what_cannot_be_exported_is_a_problem(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", said(1))
        for path, headers, status, field in (
            ("s-1/export?format=pdf", {}, 400, "format"),
            ("s-1/export?format=", {}, 400, "format"),
            ("s-1/export?format=json&format=json", {}, 400, "format"),
            ("s-1/export?limit=1", {}, 400, "limit"),
            ("s-1/export", {"accept": "markdown"}, 400, "Accept"),
            ("-/export", {}, 400, "session_id"),
            ("s-2/export", {}, 404, "session_id"),
        ):
            answer = await client.ask("GET", f"{SESSIONS}/{path}", **headers)
            assert (answer.status, json.loads(answer.body)["field"]) == (status, field), path
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="conversations")):
            answer = await client.ask("GET", f"{SESSIONS}/s-1/export")
        assert (answer.status, answer.header("Retry-After")) == (503, "1")
        assert answer.header("Content-Disposition") is None

    visit(story, hi)


def test_it_needs_no_session_store(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", said(1))
        with client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="sessions")):
            assert msgspec.json.decode((await exported(client)).body, type=Transcript).turns == (said(1),)

    visit(story, hi)


def test_a_long_conversation_is_read_while_it_is_sent(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Any) -> None:
        turns = tuple(said(number, "x" * number) for number in range(1, 20 * TURNS_AT_ONCE + 1))
        await client.keep("s-1", *turns)
        sizes: list[int] = []
        reads: list[int] = []

        def piece(data: bytes) -> None:
            sizes.append(len(data))
            reads.append(len(client.told(StoreFinished)))

        answer = await asgi.call(client.app, "GET", f"{SESSIONS}/s-1/export", on_chunk=piece)
        assert msgspec.json.decode(answer.body, type=Transcript).turns == turns
        assert set(sizes[:-1]) == {1000}
        assert 0 < sizes[-1] <= 1000
        assert (reads[0], reads[-1]) == (2, 21)  # the head and the first turns; in the end, all turns once
        assert {later - sooner for sooner, later in pairwise(reads)} == {0, 1}
        assert finished(client) == [200]

    monkeypatch.setattr(export, "PIECE_BYTES", 1000)
    visit(story, hi)


def test_a_turn_that_comes_meanwhile_is_in_the_next_export(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", *(said(number) for number in range(1, 31)))
        late = [said(31)]

        def piece(_: bytes) -> None:
            if late:
                at_once(client.service.ports.conversations.store.append(late.pop(), "session:s-1"))

        answer = await asgi.call(client.app, "GET", f"{SESSIONS}/s-1/export", on_chunk=piece)
        document = msgspec.json.decode(answer.body, type=Transcript)
        assert (document.version, [turn.number for turn in document.turns]) == (30, [*range(1, 31)])
        assert msgspec.json.decode((await exported(client)).body, type=Transcript).version == 31

    monkeypatch.setattr(export, "PIECE_BYTES", 1000)
    visit(story, hi)


@pytest.mark.parametrize(
    ("what", "status", "name"), [("store", 503, "json"), ("deleted", 404, "markdown"), ("defect", 500, "json")]
)
def test_what_fails_in_its_middle_is_cut_and_looks_cut(
    visit: Any, monkeypatch: pytest.MonkeyPatch, what: str, status: int, name: str
) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", *(said(number) for number in range(1, 8 * TURNS_AT_ONCE + 1)))
        conversations = client.service.ports.conversations
        received: list[bytes] = []

        def piece(data: bytes) -> None:
            received.append(data)
            if len(received) > 1:
                return
            if what == "store":
                broken.__enter__()
            elif what == "deleted":
                at_once(conversations.store.delete("s-1"))
            else:
                monkeypatch.setattr(conversations, "turns", None)

        broken = client.faults.injected(StoreDown(at=0.0, lasts=60.0, store="conversations"))
        with pytest.raises(asyncio.CancelledError):  # which Sanic's server answers by closing the connection
            await asgi.call(client.app, "GET", f"{SESSIONS}/s-1/export?format={name}", on_chunk=piece)
        assert finished(client) == [status]
        assert received
        text = b"".join(received).decode()
        assert "End of the conversation" not in text
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)

    monkeypatch.setattr(export, "PIECE_BYTES", 1000)
    visit(story, hi)


def test_a_reader_that_stands_still_is_cut(visit: Any) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", *(said(number, "x" * 50_000) for number in range(1, 5)))
        scope = asgi._scope("GET", f"{SESSIONS}/s-1/export", (), b"", asgi.CLIENT)
        taken: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            taken.append(message)
            await asyncio.sleep((0, 29.9, 31)[len(taken) - 1])

        started = asyncio.get_running_loop().time()
        with pytest.raises(RequestCancelled):
            await client.app(scope, receive, send)
        assert [message["type"] for message in taken] == ["http.response.start", *["http.response.body"] * 2]
        assert asyncio.get_running_loop().time() - started == pytest.approx(29.9 + 30)
        assert finished(client) == [504]

    visit(story, hi)


def test_a_client_that_goes_away_ends_it(visit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(client: Any) -> None:
        await client.keep("s-1", *(said(number) for number in range(1, 101)))

        def leave(_: bytes) -> None:
            task.cancel()

        task = asyncio.ensure_future(asgi.call(client.app, "GET", f"{SESSIONS}/s-1/export", on_chunk=leave))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert finished(client) == [499]
        assert len(client.told(StoreFinished)) < 6

    monkeypatch.setattr(export, "PIECE_BYTES", 1000)
    visit(story, hi)
