"""Unmodified libraries on the simulated network, in virtual time and cut off from reality."""

import asyncio
import json

import aiohttp
import httpx
import httpx2
import openai
import pytest
import redis.asyncio
from aiohttp import web
from redis.exceptions import ConnectionError as RedisConnectionError
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedOK

from orchestra.adapters.openai import OpenAIProvider
from orchestra.errors import DeadlineExceeded, ProviderFailed
from orchestra.model import Delta, Finish, Message, Prompt
from sim.clock import SimClock
from sim.distributions import Constant

WORDS = ("one ", "two ", "three")
HOUR_S = 3600.0


def now():
    return round(asyncio.get_running_loop().time(), 2)


async def site(network, *routes, host="web", port=80):
    """Serve aiohttp handlers on a host; return what stops it."""
    app = web.Application()
    app.add_routes(routes)
    with network.on(host):
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, port=port).start()
    return runner


async def answer_slowly(request):
    await asyncio.sleep(HOUR_S)
    return web.json_response({"from": request.remote, "body": await request.text()})


async def complete(request):
    """Answer as OpenAI's endpoint does: a stream of server-sent events, in chunks, a second apart."""
    assert (await request.json())["stream"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in WORDS:
        await asyncio.sleep(1)
        await response.write(chunk({"content": word}))
    await response.write(chunk({}, "stop") + b"data: [DONE]\n\n")
    return response


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n".encode()


class TestHttp:
    def test_aiohttp_client_and_server(self, networked):
        async def story(network):
            runner = await site(network, web.post("/", answer_slowly))
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
                async with session.post("http://web/", data="hello") as response:
                    answer = await response.json()
                with pytest.raises(aiohttp.ClientConnectorError, match="Connect call failed"):
                    await session.get("http://web:81/")
                with pytest.raises(aiohttp.ClientConnectorDNSError, match="no host 'nowhere'"):
                    await session.get("http://nowhere/")
            await runner.cleanup()
            return answer, now()

        assert networked(story) == ({"from": "10.0.0.2", "body": "hello"}, HOUR_S)

    @pytest.mark.parametrize("library", [httpx, httpx2])
    def test_httpx(self, networked, library):
        async def story(network):
            runner = await site(network, web.post("/", answer_slowly))
            async with library.AsyncClient(timeout=None) as client:
                answer = (await client.post("http://web/", content="hello")).json()
                with pytest.raises(library.ConnectError):
                    await client.get("http://web:81/")
            async with library.AsyncClient(timeout=5) as client:
                began = now()
                with pytest.raises(library.ReadTimeout):
                    await client.post("http://web/", content="hello")
                waited = now() - began
                with network.partition("web", None), pytest.raises(library.ConnectTimeout):
                    await client.post("http://web/", content="hello")
                waited_twice = now() - began
            await runner.cleanup()
            return answer, waited, waited_twice

        assert networked(story) == ({"from": "10.0.0.2", "body": "hello"}, 5, pytest.approx(10, abs=0.1))

    def test_tls_is_refused_by_name(self, networked):
        async def story(network):
            await site(network, port=443)
            async with aiohttp.ClientSession() as session:
                await session.get("https://web/")

        with pytest.raises(NotImplementedError, match=r"ssl=.* is not simulated; .* use http://"):
            networked(story)


class TestOpenAI:
    def test_the_client_streams_from_a_modelled_endpoint(self, networked):
        async def story(network):
            runner = await site(network, web.post("/v1/chat/completions", complete))
            came = []
            async with openai.AsyncOpenAI(base_url="http://web/v1", api_key="k", max_retries=0) as client:
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "go"}], stream=True
                )
                async for each in stream:
                    came.append((now(), each.choices[0].delta.content))
            await runner.cleanup()
            return came

        assert networked(story) == [(1, "one "), (2, "two "), (3, "three"), (3, None)]

    def test_our_own_provider(self, networked):
        prompt = Prompt((Message("user", "go"),))

        async def story(network):
            runner = await site(network, web.post("/v1/chat/completions", complete))
            provider = OpenAIProvider(
                base_url="http://web/v1",
                key="k",
                model="m",
                timeout_seconds=30,
                first_token_seconds=10,
                connections_max=5,
                clock=SimClock(asyncio.get_running_loop()),
            )
            came = [each async for each in provider.complete(prompt)]
            at = now()
            with network.partition("web", None), pytest.raises(DeadlineExceeded):
                [each async for each in provider.complete(prompt)]
            failed_at = now()
            stream = provider.complete(prompt)
            await anext(stream)
            with network.reset("web", None), pytest.raises(ProviderFailed):
                [each async for each in stream]
            await provider.aclose()
            await runner.cleanup()
            return came, at, failed_at - at

        came, at, failed_after = networked(story)
        assert [each.text for each in came if isinstance(each, Delta)] == list(WORDS)
        assert isinstance(came[-1], Finish)
        assert at == 3
        assert failed_after == pytest.approx(10, abs=0.1)


class Resp:
    """A Redis that knows as much as a connection needs."""

    def __init__(self):
        self.kept = {}

    async def __call__(self, reader, writer):
        while line := await reader.readline():
            words = [await self._bulk(reader) for _ in range(int(line[1:]))]
            writer.write(self.answer(*words))
            await writer.drain()
        writer.close()

    async def _bulk(self, reader):
        size = int((await reader.readline())[1:])
        return (await reader.readexactly(size + 2))[:-2]

    def answer(self, name, *words):
        match name.upper(), words:
            case b"SET", (key, value):
                self.kept[key] = value
            case b"GET", (key,):
                value = self.kept.get(key)
                return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
            case b"HELLO", _:
                return b"-ERR unknown command 'HELLO'\r\n"
        return b"+OK\r\n"


class TestRedis:
    def test_its_asyncio_client(self, networked):
        async def story(network):
            network.wire("localhost", "redis", latency=Constant(0.01))
            with network.on("redis"):
                server = await asyncio.start_server(Resp(), port=6379)
            client = redis.asyncio.Redis(host="redis", protocol=2, socket_timeout=2, socket_keepalive=True, retry=None)
            await client.set("a", "x" * 200_000)
            got = await client.get("a"), await client.get("b")
            at = now()
            pipe = client.pipeline(transaction=False)
            for number in range(100):
                pipe.set(f"k{number}", number)
            answers = await pipe.execute()
            with network.partition("localhost", "redis"), pytest.raises(redis.exceptions.TimeoutError):
                await client.get("a")
            network.crash("redis")
            with pytest.raises(RedisConnectionError):
                await client.get("a")
            await client.aclose()
            server.close()
            return got, answers, at

        got, answers, at = networked(story)
        assert got == (b"x" * 200_000, None)
        assert answers == [True] * 100
        assert 0.08 <= at < 0.3  # connecting, saying hello, a few round trips and windows, of 20 ms each


class TestWebSockets:
    def test_client_and_server(self, networked):
        async def echo(socket):
            async for message in socket:
                await socket.send(message)

        async def story(network):
            with network.on("chat"):
                server = await serve(echo, port=80)
            async with connect("ws://chat/") as socket:
                await socket.send("hello")
                await socket.send(b"x" * 500_000)
                came = await socket.recv(), len(await socket.recv())
                await asyncio.sleep(HOUR_S)  # pings and pongs keep it open
                server.close()
                with pytest.raises(ConnectionClosedOK):
                    await socket.recv()
            await server.wait_closed()
            return came

        assert networked(story) == ("hello", 500_000)

    def test_a_dead_peer_is_found_by_its_pings(self, networked):
        async def story(network):
            with network.on("chat"):
                server = await serve(lambda socket: asyncio.sleep(HOUR_S), port=80, ping_interval=None)
            async with connect("ws://chat/", ping_interval=20, ping_timeout=20, close_timeout=1) as socket:
                with network.half_open("localhost", "chat") as condition:
                    closed = await asyncio.gather(socket.recv(), return_exceptions=True)
                at = now()
            server.close()
            return at, closed[0].rcvd, condition.touched

        at, received, touched = networked(story)
        assert received is None
        assert 40 <= at <= 42
        assert touched >= 1
