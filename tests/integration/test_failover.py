"""`kill -9` of one of two instances amid streams: clients go on, on the other one, and nothing is there twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from chaos.processes import LiveService, start_service
from chaos.proxy import proxy
from orchestra.adapters.embedded import EmbeddedStores
from orchestra.model import ChatReply
from orchestra.sdk import Answered, AsyncClient, AsyncSession, Began, Failed, Restarted, Text
from tests.integration.loopback import serving, settings_on

CLIENTS = 12
STREAMERS = 6
MESSAGES = 3
WORDS = 40
WORD_SECONDS = 0.02
KILLED_AT_PIECES = 200
SECONDS_MAX = 60


@asynccontextmanager
async def slow_provider() -> AsyncIterator[str]:
    """An OpenAI-compatible server that repeats what it was told, word by word, for most of a second."""

    async def complete(request: web.Request) -> web.StreamResponse:
        said = (await request.json())["messages"][-1]["content"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(WORDS):
            await response.write(_chunk(f"{said}.{number} "))
            await asyncio.sleep(WORD_SECONDS)
        await response.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        return response

    async with serving(complete) as url:
        yield f"{url}/v1"


def _chunk(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


def answer_to(message: str) -> str:
    return "".join(f"{message}.{number} " for number in range(WORDS))


class Pieces:
    """Counts the pieces of all clients, and tells when enough came."""

    def __init__(self) -> None:
        self.count = 0
        self.restarts = 0
        self.enough = asyncio.Event()

    def add(self) -> None:
        self.count += 1
        if self.count >= KILLED_AT_PIECES:
            self.enough.set()


async def converse(session: AsyncSession, name: str, pieces: Pieces) -> list[ChatReply]:
    """Say `MESSAGES` things over a WebSocket, and check each answer piece by piece."""
    replies = []
    async with session.connect(client_id=name) as conversation:
        for number in range(MESSAGES):
            message_id = await conversation.send(f"{name}-{number}")
            heard: list[str] = []
            turn_id = ""
            async for event in conversation:
                match event:
                    case Began(id=begun) if begun == message_id:
                        turn_id = event.turn_id
                    case Text() if event.turn_id == turn_id:
                        heard.append(event.text)
                        pieces.add()
                    case Restarted():
                        heard.clear()
                        pieces.restarts += 1
                    case Answered(id=answered) if answered == message_id:
                        assert "".join(heard) == event.reply.reply == answer_to(f"{name}-{number}")
                        replies.append(event.reply)
                        break
                    case Failed():
                        raise event.error
    return replies


async def stream(session: AsyncSession, name: str, pieces: Pieces) -> list[ChatReply]:
    """Say `MESSAGES` things over HTTP, each streamed as events."""
    replies = []
    for number in range(MESSAGES):
        heard: list[str] = []
        async with session.stream(f"{name}-{number}") as turn:
            async for event in turn:
                if isinstance(event, Restarted):
                    heard.clear()
                    pieces.restarts += 1
                else:
                    heard.append(event.text)
                    pieces.add()
        assert "".join(heard) == turn.reply.reply == answer_to(f"{name}-{number}")
        replies.append(turn.reply)
    return replies


def instance(folder: Path, stores: EmbeddedStores, provider_url: str) -> LiveService:
    return start_service(
        folder,
        {
            **settings_on(stores),
            "ORCHESTRA_PROVIDER_URL": provider_url,
            "ORCHESTRA_PROVIDER_MODEL": "words",
        },
    )


async def survive(folder: Path, stores: EmbeddedStores) -> None:
    async with AsyncExitStack() as stack:
        provider_url = await stack.enter_async_context(slow_provider())
        starting = (asyncio.to_thread(instance, folder / name, stores, provider_url) for name in ("a", "b"))
        killed, other = await asyncio.gather(*starting)
        stack.callback(other.stop)
        stack.callback(killed.stop)
        ports = [int(each.url.rpartition(":")[2]) for each in (killed, other)]
        before = await stack.enter_async_context(proxy(ports))
        client = await stack.enter_async_context(
            AsyncClient(f"http://127.0.0.1:{before.port}", timeout_seconds=SECONDS_MAX)
        )
        pieces = Pieces()
        names = [f"ws{number}" for number in range(CLIENTS)] + [f"sse{number}" for number in range(STREAMERS)]
        sessions = [client.session(f"failover-{name}" if name.startswith("ws") else None) for name in names]
        async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
            talks = [
                group.create_task((converse if name.startswith("ws") else stream)(session, name, pieces))
                for name, session in zip(names, sessions, strict=True)
            ]
            await pieces.enough.wait()
            assert before.passed.count(ports[0]) >= 2, "nobody talks to the one that is killed"
            killed.kill()
        assert pieces.restarts > 0, "the kill hit no stream"
        for name, session, talk in zip(names, sessions, talks, strict=True):
            turns = [turn async for turn in session.turns()]
            assert [turn.message for turn in turns] == [f"{name}-{number}" for number in range(MESSAGES)]
            assert [turn.as_reply for turn in turns] == talk.result()
            assert Counter(turn.id for turn in turns).most_common(1)[0][1] == 1


def test_clients_of_a_killed_instance_resume_on_the_other_and_transcripts_are_complete_and_single(
    tmp_path: Path, stores: EmbeddedStores
) -> None:
    asyncio.run(survive(tmp_path, stores))
