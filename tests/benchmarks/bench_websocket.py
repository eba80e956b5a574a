"""WebSockets: what an idle one costs in memory, and how many frames busy ones get, against bare Sanic WebSockets.

The bare server echoes what it hears. Both run as one process each; the same client, which does next to nothing, talks
to them in turn. Idle: 5,000 connections, each a session of its own; memory is the process's own (USS). Busy: 100
connections that each say something and wait for the whole answer, with a provider that answers at once in as many
pieces as it has words; an echo's answer is one frame. Frames that arrive at clients are counted; beside them the turns,
each of which is a round trip that is durable in both stores.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from chaos.processes import free_port
from orchestra.adapters.embedded import EmbeddedStores, start
from orchestra.gateway.workers import listening, run_one
from tests.benchmarks.bench_service import orchestra_app, serve_bare

IDLE = 5_000
BUSY = 100
OPENED_AT_ONCE = 50
SECONDS = 3.0
ROUNDS = 3
SETTLE_SECONDS = 3.0
MESSAGE = "What is the weather on the lake?"
ANSWER = (
    "The morning will be calm with fog over the water, which should lift before ten. From noon on a light wind from "
    "the west is likely, two to three knots, rising to six towards the evening. There is no storm warning for today."
)


def bare_app() -> Any:
    """Make the echo that the service is measured against."""
    from sanic import Request, Sanic, Websocket

    app: Any = Sanic("bare", configure_logging=False)

    @app.websocket("/chat/ws/<client:str>/<session:str>")
    async def echo(request: Request, socket: Websocket, client: str, session: str) -> None:
        async for message in socket:
            await socket.send(message)

    return app


def serve(kind: str, port: int, database_url: str, redis_url: str) -> None:
    """Serve one of the two apps; this is what the server processes run."""
    if kind == "bare":
        serve_bare(bare_app(), port)
    else:
        run_one(lambda: orchestra_app(database_url, redis_url, ANSWER.split(" ")), listening("127.0.0.1", port))


@dataclass
class Server:
    """One server process and what was measured of it."""

    port: int
    process: psutil.Process
    ends: Callable[[bytes], bool]
    frames: int = 0
    answers: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    idle_bytes: list[float] = field(default_factory=list)


@contextmanager
def server(kind: str, stores: EmbeddedStores, ends: Callable[[bytes], bool]) -> Iterator[Server]:
    """Run a server process for as long as the context lasts."""
    port = free_port()
    command = [sys.executable, "-m", __spec__.name, kind, str(port), stores.database_url, stores.redis_url]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Server(port, psutil.Process(child.pid), ends)
    finally:
        child.terminate()
        child.wait(60)


class Client(asyncio.Protocol):
    """The least that a WebSocket client can be (RFC 6455): whole unfragmented frames, a mask of zeros."""

    def __init__(self, number: int, heard: Callable[["Client", bytes], None]) -> None:
        self.number = number
        self.said = 0
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = heard
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(  # type: ignore[attr-defined]
            b"GET /chat/ws/client%d/session%d HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            % (self.number, self.number)
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self.open.done():
            head, end, self._buffer = self._buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self.open.set_result(None)
        while (frame := self._frame()) is not None:
            self._heard(self, frame)

    def _frame(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, start = buffer[1], 2
        if length > 125:
            start = 4 if length == 126 else 10
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start])
        if len(buffer) < start + length:
            return None
        self._buffer = buffer[start + length :]
        payload = buffer[start : start + length]
        if buffer[0] == 0x89:  # a ping, where the machine is slow
            self.transport.write(bytes((0x8A, 0x80 | length, 0, 0, 0, 0)) + payload)
            return self._frame()
        assert buffer[0] == 0x81, buffer[:200]
        return payload

    def say(self) -> None:
        """Send one message."""
        self.said += 1
        payload = b'{"type":"message","id":"m%d-%d","message":"%b"}' % (self.number, self.said, MESSAGE.encode())
        assert len(payload) < 126
        self.transport.write(bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


async def opened(server: Server, count: int, heard: Callable[[Client, bytes], None]) -> list[Client]:
    """Open `count` connections."""
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for begin in range(0, count, OPENED_AT_ONCE):
        batch = [
            loop.create_connection(lambda number=number: Client(number, heard), "127.0.0.1", server.port)  # type: ignore[misc]
            for number in range(begin, min(begin + OPENED_AT_ONCE, count))
        ]
        fresh = [client for _, client in await asyncio.gather(*batch)]
        await asyncio.gather(*(client.open for client in fresh))
        clients += fresh
    return clients


async def closed(clients: list[Client]) -> None:
    """Close the connections, and let the server notice."""
    for client in clients:
        client.transport.close()
    await asyncio.sleep(SETTLE_SECONDS)


async def up(server: Server) -> None:
    """Wait until `server` accepts."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await closed(await opened(server, 1, lambda client, frame: None))
            except (OSError, AssertionError):
                await asyncio.sleep(0.05)


async def idle(server: Server) -> None:
    """Measure what an idle connection costs, once the process has grown to its size."""
    before = server.process.memory_full_info().uss
    clients = await opened(server, IDLE, lambda client, frame: None)
    await asyncio.sleep(SETTLE_SECONDS)
    server.idle_bytes.append((server.process.memory_full_info().uss - before) / IDLE)
    await closed(clients)


async def busy(server: Server, seconds: float) -> None:
    """Let `BUSY` connections each say something and wait for the whole answer, again and again."""
    frames = answers = 0

    def heard(client: Client, frame: bytes) -> None:
        nonlocal frames, answers
        frames += 1
        assert not frame.startswith(b'{"type":"error"'), frame
        if server.ends(frame):
            answers += 1
            client.say()

    clients = await opened(server, BUSY, heard)
    cpu = sum(server.process.cpu_times()[:2])
    begun = time.perf_counter()
    for client in clients:
        client.say()
    await asyncio.sleep(seconds)
    server.frames += frames
    server.answers += answers
    server.seconds += time.perf_counter() - begun
    server.cpu_seconds += sum(server.process.cpu_times()[:2]) - cpu
    await closed(clients)


async def measure(servers: tuple[Server, ...]) -> None:
    """Ask the servers in turn: busy ones first, so that each has its size before memory is counted."""
    for each in servers:
        await up(each)
        await busy(each, 1.0)
        each.frames, each.answers, each.seconds, each.cpu_seconds = 0, 0, 0.0, 0.0
    for _ in range(ROUNDS):
        for each in servers:
            await busy(each, SECONDS)
    for each in servers:
        await idle(each)


def run() -> Iterator[dict[str, Any]]:
    """Yield memory per idle connection and frames per second of busy ones, against the bare echo."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stores = start(Path(folder) / "stores")
        stack.callback(stores.stop)
        bare = stack.enter_context(server("bare", stores, lambda frame: True))
        ours = stack.enter_context(server("orchestra", stores, lambda frame: frame.startswith(b'{"type":"done"')))
        asyncio.run(measure((bare, ours)))
    against = "bare Sanic WebSocket"
    kib = [each.idle_bytes[0] / 1024 for each in (bare, ours)]
    frames = [each.frames / each.seconds for each in (bare, ours)]
    answers = [each.answers / each.seconds for each in (bare, ours)]
    yield _result("idle_memory", round(kib[1], 1), "KiB/connection", f"{against}: {kib[0]:.1f} KiB, {IDLE} connections")
    yield _result("idle_memory_ratio", round(kib[1] / kib[0], 2), "x", f"{against} (at most 1.5)")
    yield _result("busy_frames", round(frames[1]), "frames/s", f"{against} echo: {frames[0]:.0f} frames/s, {BUSY} busy")
    yield _result("busy_frames_ratio", round(frames[1] / frames[0], 2), "x", f"{against} echo (at least 0.6)")
    yield _result("busy_turns", round(answers[1]), "turns/s", f"{against} echo: {answers[0]:.0f} round trips/s")
    yield _result("busy_turns_ratio", round(answers[1] / answers[0], 3), "x", f"{against} echo, which stores nothing")
    cpu = [each.cpu_seconds / each.frames * 1e6 for each in (bare, ours)]
    yield _result("busy_cpu_per_frame", round(cpu[1], 1), "us", f"{against} echo: {cpu[0]:.1f} us")


def _result(name: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"name": f"websocket.{name}", "value": value, "unit": unit, "against": against}


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
