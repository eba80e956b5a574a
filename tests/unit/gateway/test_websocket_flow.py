"""Every arrow of the architecture's "WebSocket Connection Flow", in its order, in virtual time and from outside."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from orchestra.chat.handlers import ConnectionHandlers
from orchestra.events import ConnectionClosed, ConnectionOpened, UnexpectedError
from orchestra.model import Chunk, Delta, Finish, Prompt
from sim import asgi


async def answers(prompt: Prompt) -> AsyncGenerator[Chunk, None]:
    for word in ("One ", "two."):
        await asyncio.sleep(1)
        yield Delta(word)
    yield Finish("stop", "scripted-model")


async def breaks(prompt: Prompt) -> AsyncGenerator[Chunk, None]:
    raise LookupError("a defect")
    yield


async def refusal(client, talking, *who, **options):
    with pytest.raises(asgi.Refused) as refused:
        async with talking(client, *who, **options):
            pytest.fail("it must not open")
    return refused.value.response


# C->>WS: WS Connect, WS->>CP: Check Connection Limit


def test_a_client_connects_to_its_client_id_and_session_id(visit, talking):
    async def story(client):
        async with talking(client, "anna", "lake") as talk:
            ready = await talk.hear()
            assert (ready["client_id"], ready["session_id"]) == ("anna", "lake")
        (opened,) = client.told(ConnectionOpened)
        assert (opened.client_id, opened.session_id) == ("anna", "lake")

    visit(story, answers)


# alt Limit Exceeded: CP-->>WS: Reject Connection, WS-->>C: Close with Error


@pytest.mark.parametrize(
    ("setting", "second", "whose"),
    [
        ("connections_max", {"who": ("ben", "sea"), "address": "203.0.113.2"}, "this instance has 1 connections"),
        ("connections_per_client_max", {"who": ("anna", "sea"), "address": "203.0.113.2"}, "this client id has 1"),
        ("connections_per_address_max", {"who": ("ben", "sea"), "address": "203.0.113.1"}, "your network address has"),
    ],
)
def test_over_a_limit_the_pool_rejects_before_acceptance_and_the_client_is_told_when_to_come_back(
    visit, talking, setting, second, whose
):
    async def story(client):
        async with talking(client, "anna", "lake", address="203.0.113.1") as talk:
            await talk.hear()
            answer = await refusal(client, talking, *second["who"], address=second["address"])
            assert (answer.status, answer.header("retry-after")) == (503, "5")
            assert answer.header("content-type") == "application/problem+json"
            assert "urn:ai-orchestra:problem:too-many-connections" in answer.text
            assert whose in answer.text
            assert len(client.told(ConnectionOpened)) == 1
        async with talking(client, *second["who"], address=second["address"]) as talk:
            assert (await talk.hear())["type"] == "ready"  # the place is free again

    visit(story, answers, **{setting: 1})


# else Limit OK: CP->>CP: Add to Pool


def test_within_the_limit_the_connection_is_added_to_the_pool(visit, talking):
    async def story(client):
        pool = (await client.resolve(ConnectionHandlers)).pool
        assert len(pool) == 0
        async with talking(client) as talk:
            ready = await talk.hear()
            assert len(pool) == 1
            assert [each.id for each in pool.connections] == [ready["connection_id"]]

    visit(story, answers)


# WS->>SM: Create/Restore Session, SM->>SM: Load Session History, SM-->>WS: Session Ready


def test_a_session_that_does_not_exist_is_created_under_the_id_of_the_path(visit, talking):
    async def story(client):
        async with talking(client, session_id="brand-new") as talk:
            ready = await talk.hear()
            assert (ready["session_id"], ready["version"], ready["history"]) == ("brand-new", 0, [])
            talk.say("message", id="m1", message="Hello")
            done = (await talk.until("done"))[-1]
            assert done["reply"]["session_id"] == "brand-new"

    visit(story, answers)


def test_a_session_that_exists_is_restored_with_its_history(visit, talking):
    async def story(client):
        begun = await client.ask("POST", "/chat/v2/chat", {"message": "first"})
        session_id = json.loads(begun.text)["session_id"]
        await client.ask("POST", "/chat/v2/chat", {"message": "second", "session_id": session_id})
        async with talking(client, session_id=session_id) as talk:
            ready = await talk.hear()
            assert ready["version"] == 2
            assert [(turn["number"], turn["message"]) for turn in ready["history"]] == [(1, "first"), (2, "second")]

    visit(story, answers)


# WS->>CO: Initialize Handler, CO->>TM: Register Connection


def test_the_handler_registers_the_connection_with_the_one_timeout_manager(visit, talking):
    async def story(client):
        timeouts = (await client.resolve(ConnectionHandlers)).timeouts
        async with talking(client, "anna") as one, talking(client, "ben") as other:
            await one.hear()
            await other.hear()
            assert len(timeouts) == 2
        assert len(timeouts) == 0

    visit(story, answers)


# WS-->>C: Connection Established


def test_the_first_frame_says_that_the_connection_stands_and_at_what_level(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            ready = await talk.hear()
            assert ready.pop("connection_id")
            assert ready == {
                "type": "ready", "protocol": 1, "client_id": "anna", "session_id": "lake", "version": 0,
                "level": "NORMAL", "off": [], "history": [], "live": [], "idle_seconds_max": 900.0,
            }  # fmt: skip

    visit(story, answers)


# loop Message Exchange: C->>WS: Send Message, WS->>CO: Process Message


def test_a_message_is_acknowledged_and_becomes_a_turn(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            accepted, started = await talk.hear(), await talk.hear()
            assert (accepted["type"], accepted["id"]) == ("accepted", "m1")
            assert (started["type"], started["turn_id"], started["seq"]) == ("started", accepted["turn_id"], 1)
            assert (started["message"], started["client_id"]) == ("Hello", "anna")
            await talk.until("done")

    visit(story, answers)


# CO->>CO: Handle with Error Boundary


def test_a_defect_within_a_turn_is_an_error_frame_and_the_connection_goes_on(visit, talking):
    async def story(client):
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            error = (await talk.until("error"))[-1]
            assert (error["kind"], error["seq"]) == ("internal", 2)
            talk.say("ping", id="p1")
            assert await talk.hear() == {"type": "pong", "id": "p1"}
        assert client.told(UnexpectedError)

    visit(story, breaks, guards={"unified": {"fallbacks": ()}})


# CO-->>WS: Response/Stream, WS-->>C: Send Response


def test_the_answer_is_streamed_in_order_and_ends_with_the_whole_reply(visit, talking):
    async def story(client):
        now = asyncio.get_running_loop().time
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            await talk.hear()
            heard = []
            while not heard or heard[-1][1]["type"] != "done":
                frame = await talk.hear()
                heard.append((round(now(), 1), frame))
        assert [(at, frame["seq"], frame.get("text")) for at, frame in heard] == [
            (0.0, 1, None), (1.0, 2, "One "), (2.0, 3, "two."), (2.0, 4, None)
        ]  # fmt: skip
        assert heard[-1][1]["reply"]["reply"] == "One two."

    visit(story, answers)


# TM->>TM: Update Last Activity


def test_each_frame_of_the_client_counts_as_activity_and_costs_the_timeout_manager_nothing(visit, talking):
    async def story(client):
        now = asyncio.get_running_loop().time
        async with talking(client) as talk:
            await talk.hear()
            for _ in range(3):
                await asyncio.sleep(800)
                talk.say("ping")
                assert (await talk.hear())["type"] == "pong"
            last = now()
            assert await talk.closed() == (1001, "idle: no frame from you for 900 s")
            assert now() - last == pytest.approx(900, abs=0.01)

    visit(story, answers)


# alt Idle Timeout: TM->>CO: Timeout Detected, CO->>WS: Close Connection, WS->>CP: Remove from Pool, WS-->>C: Closed


def test_an_idle_connection_is_closed_with_a_reason_and_leaves_the_pool(visit, talking):
    async def story(client):
        handlers = await client.resolve(ConnectionHandlers)
        async with talking(client) as talk:
            await talk.hear()
            assert await talk.closed() == (1001, "idle: no frame from you for 60 s")
            await asyncio.sleep(0)
            assert (len(handlers.pool), len(handlers.pool.connections), len(handlers.timeouts)) == (0, 0, 0)
        (closed,) = client.told(ConnectionClosed)
        assert (closed.code, closed.reason) == (1001, "idle: no frame from you for 60 s")
        assert (closed.seconds, closed.received, closed.sent) == (pytest.approx(60, abs=0.01), 0, 1)

    visit(story, answers, connection_idle_seconds_max=60)


# else Client Disconnect: C->>WS: Close, WS->>CP: Remove from Pool, WS->>SM: Save Session, WS->>TM: Unregister


def test_a_client_that_disconnects_leaves_the_pool_its_session_is_saved_and_the_timeout_manager_forgets_it(
    visit, talking
):
    async def story(client):
        handlers = await client.resolve(ConnectionHandlers)
        async with talking(client) as talk:
            await talk.hear()
            talk.say("message", id="m1", message="Hello")
            await talk.until("done")
            before = (await client.service.ports.sessions.load("lake")).updated_at
            await asyncio.sleep(100)
            talk.socket.close(1001)
        assert (len(handlers.pool), len(handlers.pool.connections), len(handlers.timeouts)) == (0, 0, 0)
        assert (await client.service.ports.sessions.load("lake")).updated_at == pytest.approx(before + 100)
        assert client.told(ConnectionClosed)[0].code == 1001

    visit(story, answers)
