"""A live service on real stores, shared by the tests that only talk to it."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from redis.asyncio import Redis

from chaos.processes import LiveService, live_service, start_service
from orchestra.adapters.embedded import EmbeddedStores
from tests.integration.loopback import listening, redis_database, settings_on


@pytest.fixture(scope="session")
def service(stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service on a free port that uses the stores of this test session, as a deployment names them."""
    environ = settings_on(stores)
    with live_service(tmp_path_factory.mktemp("service"), environ) as running:
        yield running


class Speaker:
    """An OpenAI-compatible provider in a thread of its own: says "one ", then, of a message with "halt", the rest only
    once it may `proceed`; what follows "say:" in a message it says to the letter."""

    def __init__(self) -> None:
        self.proceed = threading.Event()
        self.halted: Queue[str] = Queue()
        self.aborted: Queue[str] = Queue()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        said = (await request.json())["messages"][-1]["content"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await response.write(self._piece("one "))
            if "halt" in said:
                self.halted.put(said)
                while not self.proceed.is_set():  # noqa: ASYNC110 - set by a test, in another thread
                    await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.aborted.put(said)
            raise
        await response.write(self._piece(said.partition("say:")[2] or "two") + self._piece("", "stop"))
        await response.write(b"data: [DONE]\n\n")
        return response

    def saw_abort_of(self, said: str) -> bool:
        """Return once that call was aborted; False where it is not in 20 s. Others are passed over."""
        with suppress(Empty):
            while self.aborted.get(timeout=20) != said:
                pass
            return True
        return False

    @staticmethod
    def _piece(text: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        return b"data: " + json.dumps({"model": "speaker", "choices": [choice]}).encode() + b"\n\n"


class Restartable:
    """A service that halts where its provider does, and that may be killed and started again at its address."""

    def __init__(self, speaker: Speaker, folder: Path, environ: dict[str, str]) -> None:
        self.speaker = speaker
        self._folder = folder
        self._environ = environ
        self._running = start_service(folder, environ)

    @property
    def url(self) -> str:
        return self._running.url

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self._running.kill()

    def start(self) -> None:
        """Start it again; what halted before may go on from now on."""
        self.speaker.proceed.set()
        port = urlsplit(self._running.url).port
        self._running = start_service(self._folder, self._environ, port=port)

    def stop(self) -> None:
        self._running.stop()


@pytest.fixture(scope="module")
def restartable(stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restartable]:
    """A service of this module's own, on the stores of the test session."""
    speaker = Speaker()
    with listening(speaker.complete) as url:
        environ = {
            **settings_on(stores),
            "ORCHESTRA_PROVIDER_URL": f"{url}/v1",
            "ORCHESTRA_PROVIDER_MODEL": "speaker",
        }
        service = Restartable(speaker, tmp_path_factory.mktemp("restartable"), environ)
        try:
            yield service
        finally:
            service.stop()


@pytest.fixture
def redis_url(stores: EmbeddedStores) -> str:
    """The URL of an empty Redis database that no other test uses meanwhile."""
    url = redis_database(stores.redis_url, 14)

    async def empty() -> None:
        async with Redis.from_url(url) as redis:
            await redis.flushdb()

    asyncio.run(empty())
    return url
