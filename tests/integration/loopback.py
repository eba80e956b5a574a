"""Endpoints that a test makes up, served on a free port of loopback: in the test's loop, or beside it in a thread; and
the settings of a service beside them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from queue import Queue

from aiohttp import web

from orchestra.adapters.embedded import EmbeddedStores

COMPLETIONS = "/v1/chat/completions"

LEVEL_HELD = {"ORCHESTRA_DEGRADATION__DOWN_SECONDS": "3600"}
"""Health stays what it is, and the level NORMAL: on a machine so busy that a ping takes seconds, replies would leave
features out that a test of something else asks for. An operator's order changes it all the same, and reaches every
service on the same Redis: a test that gives orders has a Redis, or a `redis_database`, of its own."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def settings_on(stores: EmbeddedStores) -> dict[str, str]:
    """Return the settings of a service on these stores, whose level is not what a test is about."""
    return {"DATABASE_URL": stores.database_url, "REDIS_URL": stores.redis_url, **LEVEL_HELD}


def redis_database(redis_url: str, number: int) -> str:
    """Return the URL of another database, 0 to 15, of the same Redis."""
    return f"{redis_url}{'&' if '?' in redis_url else '?'}db={number}"


@asynccontextmanager
async def serving(answer: Answer, path: str = COMPLETIONS) -> AsyncIterator[str]:
    """Let `answer` answer at `path` for as long as the context lasts; gives the address without a path.

    A caller that goes away cancels its answer.
    """
    app = web.Application()
    app.router.add_route("*", path, answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def listening(answer: Answer, path: str = COMPLETIONS) -> Iterator[str]:
    """Do as `serving` does, in a thread with a loop of its own."""
    loop, ends, url = asyncio.new_event_loop(), asyncio.Event(), Queue[str]()

    async def serve() -> None:
        async with serving(answer, path) as address:
            url.put(address)
            await ends.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield url.get(timeout=20)
    finally:
        loop.call_soon_threadsafe(ends.set)
        thread.join()
        loop.close()
