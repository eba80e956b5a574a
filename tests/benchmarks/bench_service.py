"""`POST /chat/v2/chat` with an instant provider, against a bare Sanic handler that writes the same two stores.

The bare handler is what a turn cannot do without: one Redis SET and one PostgreSQL INSERT, durable, and a JSON answer.
Both run as one process each on the same real stores and are asked in turn by the same client, so that a busy moment of
the machine hits both. CPU is the server process's own.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from chaos.processes import free_port
from orchestra.adapters.embedded import EmbeddedStores, start
from orchestra.gateway.workers import listening, run_one

SECONDS = 3.0
ROUNDS = 3
CONNECTIONS = 32
NUMBERS = count()
"""So that no message is one that came before: nothing that was kept of it helps."""
REPLY = "A short answer that took no time at all."


def bare_app(database_url: str, redis_url: str) -> Any:
    """Make the app that the service is measured against."""
    import asyncpg
    import redis.asyncio
    from sanic import HTTPResponse, Request, Sanic

    app: Any = Sanic("bare", configure_logging=False)

    @app.before_server_start
    async def open_stores(app: Any) -> None:
        app.ctx.redis = redis.asyncio.Redis.from_url(redis_url)
        app.ctx.pool = await asyncpg.create_pool(database_url, min_size=4, max_size=8)
        await app.ctx.pool.execute("CREATE TABLE IF NOT EXISTS bare (id text PRIMARY KEY, message text, reply text)")

    @app.after_server_stop
    async def close_stores(app: Any) -> None:
        await app.ctx.pool.close()
        await app.ctx.redis.aclose()

    @app.post("/chat/v2/chat")
    async def chat(request: Request) -> HTTPResponse:
        import os

        turn_id, message = os.urandom(16).hex(), request.json["message"]
        await app.ctx.redis.set(f"bare:{turn_id}", message)
        await app.ctx.pool.execute("INSERT INTO bare VALUES ($1, $2, $3)", turn_id, message, REPLY)
        return HTTPResponse(json.dumps({"reply": REPLY, "turn_id": turn_id}), content_type="application/json")

    return app


def orchestra_app(database_url: str, redis_url: str, pieces: Sequence[str] = (REPLY,)) -> Any:
    """Make the service itself, with a provider that answers at once, in `pieces`."""
    from orchestra import compose
    from orchestra.config import Settings
    from orchestra.gateway.app import Service, create_app
    from orchestra.gateway.server import live_service
    from orchestra.model import Chunk, Delta, Finish, Prompt

    class Instant:
        """Answers at once."""

        name = "instant"
        external = False

        async def complete(self, prompt: Prompt) -> AsyncIterator[Chunk]:
            for piece in pieces:
                yield Delta(piece)
            yield Finish("stop", "instant")

    settings = Settings(
        database_url=database_url, redis_url=redis_url, log_level="warning", connections_per_address_max=1_000_000
    )

    @asynccontextmanager
    async def opener() -> AsyncIterator[Service]:
        async with live_service(settings) as service:
            ports = replace(service.ports, provider=Instant())
            yield Service(compose.build(ports, settings), ports, service.metrics_page)

    return create_app("orchestra", settings, opener)


def serve(kind: str, port: int, database_url: str, redis_url: str) -> None:
    """Serve one of the two apps; this is what the server processes run."""
    if kind == "bare":
        serve_bare(bare_app(database_url, redis_url), port)
    else:
        run_one(lambda: orchestra_app(database_url, redis_url), listening("127.0.0.1", port))


def serve_bare(app: Any, port: int) -> None:
    """Serve an app as Sanic itself does; ours is served as in production."""
    from sanic import Sanic

    app.prepare(host="127.0.0.1", port=port, single_process=True, motd=False, access_log=False)
    Sanic.serve_single(primary=app)


@dataclass
class Server:
    """One server process and what was measured of it."""

    url: str
    process: psutil.Process
    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    rates: list[float] = field(default_factory=list)


@contextmanager
def server(kind: str, stores: EmbeddedStores) -> Iterator[Server]:
    """Run a server process for as long as the context lasts."""
    port = free_port()
    command = [sys.executable, "-m", __spec__.name, kind, str(port), stores.database_url, stores.redis_url]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Server(f"http://127.0.0.1:{port}/chat/v2/chat", psutil.Process(child.pid))
    finally:
        child.terminate()
        child.wait(30)


async def ask(server: Server, seconds: float) -> None:
    """Ask `server` over `CONNECTIONS` connections, each with one request at a time, and add up what it did."""
    before = sum(server.process.cpu_times()[:2])
    begun = time.perf_counter()
    done = 0

    async def user(client: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            body = {"message": f"What is the weather on lake {next(NUMBERS)}?"}
            async with client.post(server.url, json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()
            done += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as client:
        await asyncio.gather(*(user(client) for _ in range(CONNECTIONS)))
    elapsed = time.perf_counter() - begun
    server.requests += done
    server.seconds += elapsed
    server.cpu_seconds += sum(server.process.cpu_times()[:2]) - before
    server.rates.append(done / elapsed)


async def up(server: Server) -> None:
    """Wait until `server` answers."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.post(server.url, json={"message": "hi"}):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def measure(servers: tuple[Server, ...]) -> None:
    """Warm each server up, then ask them in turn."""
    for each in servers:
        await up(each)
        await ask(each, 1.0)
        each.requests, each.seconds, each.cpu_seconds, each.rates = 0, 0.0, 0.0, []
    for _ in range(ROUNDS):
        for each in servers:
            await ask(each, SECONDS)


def run() -> Iterator[dict[str, Any]]:
    """Yield requests per second and CPU per request of the service, against the bare handler."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = start(Path(folder) / "stores")
        stack.callback(stores.stop)
        bare = stack.enter_context(server("bare", stores))
        ours = stack.enter_context(server("orchestra", stores))
        asyncio.run(measure((bare, ours)))
    rates = [sum(each.rates) / len(each.rates) for each in (bare, ours)]
    cpus = [each.cpu_seconds / each.requests * 1000 for each in (bare, ours)]
    against = "bare Sanic handler with one Redis SET and one PostgreSQL INSERT"
    yield {
        "name": "service.requests_per_second",
        "value": round(rates[1]),
        "unit": "requests/s",
        "against": f"{against}: {rates[0]:.0f} requests/s",
    }
    yield {"name": "service.requests_ratio", "value": round(rates[1] / rates[0], 3), "unit": "x", "against": against}
    yield {
        "name": "service.cpu_per_request",
        "value": round(cpus[1], 3),
        "unit": "ms",
        "against": f"{against}: {cpus[0]:.3f} ms",
    }
    yield {"name": "service.cpu_ratio", "value": round(cpus[1] / cpus[0], 3), "unit": "x", "against": against}


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
