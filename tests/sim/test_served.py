"""Sanic's own server in virtual time, with its own timeouts; and the whole orchestra on it."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext

import httpx2
import pytest
from sanic import Sanic, response
from websockets.asyncio.client import connect

from orchestra import compose
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.adapters.openai import OpenAIProvider
from orchestra.config import Settings
from orchestra.events import ConnectionClosed as Told
from orchestra.gateway.app import Service, create_app
from orchestra.gateway.arrival import TimedProtocol
from orchestra.ports import Ports
from sim.clock import SimClock
from sim.distributions import Constant
from sim.entropy import Stream
from sim.served import serving

CHECKS_S = 0.5  # Sanic looks at its timeouts at halves of the shortest


def now():
    return asyncio.get_running_loop().time()


def make_app(log, name="Served", **config):
    app = Sanic(name)
    timeouts = {"REQUEST_TIMEOUT": 1, "RESPONSE_TIMEOUT": 1, "KEEP_ALIVE_TIMEOUT": 1}
    app.config.update({"ACCESS_LOG": False, "AUTO_EXTEND": False, **timeouts, **config})
    for each in ("before_server_start", "after_server_start", "before_server_stop", "after_server_stop"):
        app.register_listener(lambda _app, each=each: log.append(each), each)

    @app.get("/who")
    async def who(request):
        return response.text(request.ip)

    @app.get("/slow")
    async def slow(request):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            log.append(f"cancelled at {now():.1f} {request.args.get('n', '')}".strip())
            raise
        return response.text("late")

    @app.get("/much")
    async def much(request):
        stream = await request.respond()
        for number in range(1_000):
            await stream.send("x" * 1_000)
            log.append(number)
        await stream.eof()

    @app.post("/length")
    async def length(request):
        return response.text(str(len(request.body)))

    @app.websocket("/echo")
    async def echo(request, ws):
        async for message in ws:
            await ws.send(message)

    return app


@pytest.fixture
def served(networked):
    """Run ``story(network)`` beside an application on the host ``api``; return its result and what was logged."""

    def visit(story, log=None, **config):
        log = [] if log is None else log

        async def lived(network):
            app = make_app(log, **config)
            network.wire("localhost", "api", latency=Constant(0.001))
            async with AsyncExitStack() as stack:
                with network.on("api"):
                    await stack.enter_async_context(serving(app, port=80))
                return await story(network)

        return networked(lived), log

    return visit


async def ask(said, port=80):
    """Say something to the server, read to its end; return what it said and after how long it was over."""
    reader, writer = await asyncio.open_connection("api", port)
    began = now()
    writer.write(said)
    answer = await reader.read()
    writer.close()
    return answer, now() - began


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: api\r\n\r\n".encode()


class TestSanicsOwnTimeouts:
    def test_an_idle_connection_is_closed(self, served):
        async def story(network):
            return await ask(get("/who"))

        (answer, after), _ = served(story)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"10.0.0.1")
        assert 1 < after <= 1 + CHECKS_S + 0.01

    def test_a_handler_of_5_s_gets_503_at_its_time(self, served):
        async def story(network):
            return await ask(get("/slow"))

        (answer, after), log = served(story)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert 1 < after <= 1 + CHECKS_S + 0.01
        assert any(str(each).startswith("cancelled at") for each in log)

    def test_a_request_that_does_not_come_to_its_end_gets_408(self, served):
        async def story(network):
            return await ask(b"GET /who HT")

        (answer, after), _ = served(story)
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert 1 < after <= 1 + CHECKS_S + 0.01

    def test_a_handler_within_its_time_is_answered(self, served):
        async def story(network):
            async with httpx2.AsyncClient(timeout=None) as client:
                return (await client.get("http://api/slow")).text, now()

        assert served(story, RESPONSE_TIMEOUT=6)[0] == ("late", pytest.approx(5, abs=0.1))


class TestServer:
    def test_a_client_that_goes_away_cancels_the_handler(self, served):
        async def story(network):
            _, writer = await asyncio.open_connection("api", 80)
            writer.write(get("/slow"))
            await asyncio.sleep(2)
            writer.close()
            await asyncio.sleep(1)

        assert "cancelled at 2.0" in served(story, RESPONSE_TIMEOUT=60)[1]

    def test_a_slow_reader_stops_the_handler(self, served):
        log = []

        async def story(network):
            reader, writer = await asyncio.open_connection("api", 80)
            writer.write(get("/much"))
            await asyncio.sleep(5)
            sent_unread = log[-1]
            await asyncio.sleep(5)
            still = log[-1]
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += await reader.read(65_536)
            writer.close()
            return sent_unread, still, len(body)

        (sent_unread, still, size), _ = served(story, log, RESPONSE_TIMEOUT=60)
        assert sent_unread == still
        assert 150 < still < 350  # thousand bytes: the window, what the transport may hold, and what the reader holds
        assert size > 1_000_000

    def test_a_body_over_the_limit_is_refused(self, served):
        async def story(network):
            async with httpx2.AsyncClient() as client:
                return [
                    (await client.post("http://api/length", content=b"x" * size)).status_code for size in (900, 1_100)
                ]

        assert served(story, REQUEST_MAX_SIZE=1_000)[0] == [200, 413]

    def test_websockets(self, served):
        async def story(network):
            async with connect("ws://api/echo") as socket:
                await socket.send("hello")
                heard = await socket.recv()
                await asyncio.sleep(600)
                return heard, socket.state.name

        assert served(story)[0] == ("hello", "OPEN")

    def test_its_life_is_that_of_sanics_runner(self, served):
        async def story(network):
            open_one = asyncio.ensure_future(ask(get("/slow")))
            async with connect("ws://api/echo") as socket:
                asyncio.get_running_loop().call_later(2, open_one.cancel)
                return socket.state.name

        result, log = served(story, RESPONSE_TIMEOUT=60, GRACEFUL_SHUTDOWN_TIMEOUT=3)
        assert result == "OPEN"
        listeners = [each for each in log if str(each).endswith(("start", "stop"))]
        assert listeners == ["before_server_start", "after_server_start", "before_server_stop", "after_server_stop"]
        assert "Served" not in Sanic._app_registry

    def test_a_port_is_served_once(self, served):
        async def story(network):
            with network.on("api"), pytest.raises(OSError, match=r"Address already in use: 0\.0\.0\.0:80"):
                async with serving(make_app(log, "Other"), port=80):
                    pytest.fail("it must not start")
            return log

        log = []
        assert served(story)[0] == ["before_server_start", "after_server_stop"]

    def test_connections_that_do_not_end_are_aborted_in_the_order_they_came(self, served):
        writers = []

        async def story(network):
            for number in range(10):
                writers.append((await asyncio.open_connection("api", 80))[1])
                writers[-1].write(get(f"/slow?n={number}"))
            await asyncio.sleep(0.1)

        _, log = served(story, RESPONSE_TIMEOUT=600, GRACEFUL_SHUTDOWN_TIMEOUT=0.2)
        ended = [each.split()[-1] for each in log if str(each).startswith("cancelled")]
        assert ended == list("0123456789")

    def test_several_instances_live_in_one_world_and_one_crashes(self, networked):
        async def story(network):
            log = []
            statuses = []
            async with AsyncExitStack() as stack:
                for name in ("one", "two"):
                    with network.on(name):
                        await stack.enter_async_context(serving(make_app(log, name, RESPONSE_TIMEOUT=60), port=80))
                async with httpx2.AsyncClient(timeout=10) as client:
                    under_way = asyncio.ensure_future(client.get("http://one/slow"))
                    await asyncio.sleep(1)
                    network.crash("one", peers_see="fin")
                    with pytest.raises(httpx2.RemoteProtocolError):
                        await under_way
                    with pytest.raises(httpx2.ConnectError):
                        await client.get("http://one/who")
                    statuses.append((await client.get("http://two/who")).status_code)
                stack.pop_all()  # a crashed one has no end
                Sanic.unregister_app(Sanic.get_app("one"))
                Sanic.unregister_app(Sanic.get_app("two"))
            return statuses, [each for each in log if str(each).startswith("cancelled")]

        assert networked(story) == ([200], [])


class TestOrchestra:
    """The whole service, its provider and its clients, each on a host of its own."""

    def test_a_turn_over_http_and_a_conversation_over_a_websocket(self, networked):
        async def story(network):
            async with orchestra(network) as told:
                async with httpx2.AsyncClient(base_url="http://api", timeout=None) as client:
                    answer = await client.post("/chat", json={"message": "hello"})
                    ready_status = (await client.get("/readyz")).status_code
                frames = await converse("ws://api/chat/ws/anna/lake", "how are you", "and now")
                await asyncio.sleep(1)
            return answer.status_code, answer.json(), ready_status, frames, told

        status, reply, ready_status, frames, told = networked(story)
        assert (status, ready_status) == (200, 200)
        assert reply["reply"] == "one two three"
        kinds = [frame["type"] for frame in frames]
        assert kinds[0] == "ready"
        assert kinds.count("done") == 2
        assert "".join(frame["text"] for frame in frames if frame["type"] == "delta") == 2 * "one two three"
        assert [(each.code) for each in told if isinstance(each, Told)] == [1000]

    def test_a_client_whose_network_is_gone_is_dropped_by_the_services_pings(self, networked):
        async def story(network):
            options = {"ping_interval": None, "close_timeout": 1}
            async with orchestra(network) as told, connect("ws://api/chat/ws/anna/lake", **options) as socket:
                await socket.recv()
                with network.half_open("localhost", "api"):
                    await asyncio.sleep(300)
            return [each.code for each in told if isinstance(each, Told)]

        assert networked(story) == [1006]


@asynccontextmanager
async def orchestra(network):
    """Serve the app on the host ``api``, with a provider on ``llm``; give what its hook is told."""
    told = []
    clock = SimClock(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.sleep, 1)  # what is closed reaches the other side
        with network.on("llm"):
            llm = await asyncio.start_server(complete, port=80)
        stack.callback(llm.close)
        with network.on("api"):
            provider = OpenAIProvider(
                base_url="http://llm/v1",
                key="",
                model="m",
                timeout_seconds=30,
                first_token_seconds=10,
                connections_max=5,
                clock=clock,
            )
            stack.push_async_callback(provider.aclose)
            service = opened(Settings(), provider, clock, told)
            stack.push_async_callback(service.container.dispose)
            app = create_app("api", Settings(), lambda: nullcontext(service))
            await stack.enter_async_context(serving(app, port=80, protocol=TimedProtocol))
        yield told


def opened(settings, provider, clock, told):
    ports = Ports(
        clock=clock,
        entropy=Stream(1),
        sessions=InProcessSessions(clock),
        conversations=InProcessConversations(),
        memories=InProcessMemories(),
        embedder=HashingEmbedder(),
        provider=provider,
        hook=told.append,
        fleet=InProcessFleet(clock),
        relay=InProcessHub().join("api"),
    )
    return Service(compose.build(ports, settings), ports, bytes)


async def complete(reader, writer):
    """Answer every request of a connection as an OpenAI-compatible endpoint does, a word each tenth of a second."""
    while (head := await header(reader)) is not None:
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for word in ("one ", "two ", "three", None):
            await asyncio.sleep(0.1)
            choice = {"index": 0, "delta": {"content": word or ""}, "finish_reason": None if word else "stop"}
            event = f"data: {json.dumps({'model': 'm', 'choices': [choice]})}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    writer.close()


async def header(reader):
    """Return a request's line and headers, or None at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None


async def converse(url, *messages):
    """Send messages one after the other, each once the one before is answered; return all frames."""
    frames = []
    async with connect(url) as socket:
        for number, message in enumerate(messages):
            await socket.send(json.dumps({"type": "message", "id": str(number), "message": message}))
            while not frames or frames[-1]["type"] not in ("done", "error"):
                frames.append(json.loads(await socket.recv()))
            frames.append({"type": "next"})
    return frames
