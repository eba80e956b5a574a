"""WebSockets of a whole Sanic application in virtual time."""

import asyncio

import pytest
from sanic import Sanic, response

from sim import asgi
from sim.entropy import Streams
from sim.isolation import isolated
from sim.loop import SimEnvironment, run


def make_app(log):
    app = Sanic("Sockets")

    @app.on_request
    async def guard(request):
        return response.text("full", 503, {"Retry-After": "1"}) if request.path == "/full" else None

    @app.websocket("/full")
    async def full(request, ws):
        raise AssertionError

    @app.websocket("/echo/<who:str>")
    async def echo(request, ws, who):
        try:
            await ws.send(f"hello {who} from {request.ip}")
            while (data := await ws.recv()) is not None:
                if data == "bye":
                    return await ws._send({"type": "websocket.close", "code": 4001, "reason": "as you wish"})
                await asyncio.sleep(60)
                await ws.send(data)
        finally:
            log.append(round(asyncio.get_running_loop().time()))

    return app


def drive(client):
    """Run ``client(app)`` against a started application; return its result and when each of its handlers ended."""
    log = []
    env = SimEnvironment()

    async def main():
        app = make_app(log)
        async with asgi.lifespan(app):
            return await client(app)

    with isolated(Streams(1), env):
        return run(main(), env=env), log


def test_text_and_bytes_go_both_ways_and_the_handler_notices_that_the_client_has_gone():
    async def client(app):
        async with asgi.websocket(app, "/echo/anna", client=("203.0.113.9", 1)) as socket:
            socket.send("one")
            socket.send(b"two")
            return [await socket.receive() for _ in range(3)]

    assert drive(client) == (["hello anna from 203.0.113.9", "one", b"two"], [120])


def test_the_application_closes_with_a_code_and_a_reason_and_says_nothing_more():
    async def client(app):
        async with asgi.websocket(app, "/echo/anna") as socket:
            await socket.receive()
            socket.send("bye")
            told = []
            for _ in range(2):
                with pytest.raises(asgi.Closed) as closed:
                    await socket.receive()
                told.append((closed.value.code, closed.value.reason))
            return told

    assert drive(client) == ([(4001, "as you wish")] * 2, [0])


def test_a_refused_handshake_is_an_http_response():
    async def client(app):
        with pytest.raises(asgi.Refused) as refused:
            async with asgi.websocket(app, "/full"):
                pytest.fail("it must not open")
        return refused.value.response

    answer, _ = drive(client)
    assert (answer.status, answer.header("retry-after"), answer.text) == (503, "1", "full")


def test_a_close_before_acceptance_is_a_refusal_with_its_code():
    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.close", "code": 1013, "reason": "later"})

    async def main():
        with pytest.raises(asgi.Refused) as refused:
            async with asgi.websocket(app, "/any"):
                pytest.fail("it must not open")
        return refused.value.code, refused.value.reason

    assert run(main()) == (1013, "later")


def test_a_client_that_is_cancelled_takes_the_handler_with_it():
    async def client(app):
        async def stay():
            async with asyncio.timeout(30), asgi.websocket(app, "/echo/anna") as socket:
                while True:
                    await socket.receive()

        with pytest.raises(TimeoutError):
            await stay()
        await asyncio.sleep(1)

    assert drive(client) == (None, [30])
