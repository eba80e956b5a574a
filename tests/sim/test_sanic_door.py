"""A whole Sanic application, unmodified, in virtual time through ASGI: the base of the `service` door."""

import asyncio
import contextvars
import json

import pytest
import sanic.server.protocols.http_protocol
from sanic import Sanic, response

from sim import asgi
from sim.entropy import Streams
from sim.isolation import isolated
from sim.loop import Deadlock, SimEnvironment, run

WHO = contextvars.ContextVar("who", default="nobody")


def make_app(log):
    app = Sanic("Door")
    app.extend(config={"oas_ui_default": "swagger"})

    @app.before_server_start
    async def begin(app):
        await asyncio.sleep(2)
        log.append(("started", now()))

    @app.after_server_stop
    async def end(app):
        await asyncio.sleep(1)
        log.append(("stopped", now()))

    @app.on_request
    async def mark(request):
        WHO.set(request.ip)

    @app.get("/slow")
    async def slow(request):
        await asyncio.sleep(5)
        return response.json({"at": now(), "id": str(request.id)})

    @app.get("/clock")
    async def clock(request):
        return response.json([sanic.server.protocols.http_protocol.current_time(), now()])

    @app.post("/echo")
    async def echo(request):
        return response.json({"json": request.json, "query": request.args, "header": request.headers.get("x-one")})

    @app.get("/stream")
    async def stream(request):
        stream = await request.respond(content_type="text/event-stream")
        try:
            for number in range(3):
                await stream.send(f"data: {number}\n\n")
                await asyncio.sleep(1)
            await stream.eof()
        except asyncio.CancelledError:
            log.append(("cancelled", now()))
            raise

    @app.get("/background")
    async def background(request):
        async def later():
            await asyncio.sleep(3)
            log.append(("background", now()))

        request.app.add_task(later())
        return response.empty()

    @app.get("/broken")
    async def broken(request):
        raise LookupError

    return app


def now():
    return round(asyncio.get_running_loop().time(), 3)


def visit(client, *, seed=1):
    """Run ``client(app)`` against a started application; return its result and the application's log."""
    log = []
    env = SimEnvironment()

    async def main():
        app = make_app(log)
        async with asgi.lifespan(app):
            return await client(app)

    with isolated(Streams(seed), env):
        return run(main(), env=env), log


class TestLifespan:
    def test_listeners_run_in_virtual_time(self):
        async def client(app):
            await asyncio.sleep(10)
            return now()

        assert visit(client) == (12, [("started", 2), ("stopped", 13)])

    def test_many_applications_of_one_name(self):
        async def client(app):
            return (await asgi.call(app, "GET", "/clock")).status

        mode = Sanic.test_mode
        assert [visit(client)[0] for _ in range(3)] == [200] * 3
        assert "Door" not in Sanic._app_registry
        assert Sanic.test_mode is mode

    def test_a_failed_start_is_raised(self):
        async def main():
            app = make_app([])

            @app.before_server_start
            async def fail(app):
                raise LookupError("no database")

            async with asgi.lifespan(app):
                pytest.fail("it must not start")

        with pytest.raises(asgi.LifespanFailed, match="no database"):
            run(main())

    def test_an_application_without_a_lifespan_is_refused(self):
        async def app(scope, receive, send):
            return

        async def main():
            async with asgi.lifespan(app):
                pass

        with pytest.raises(asgi.LifespanFailed, match="without an answer to startup"):
            run(main())


class TestRequest:
    def test_a_slow_handler_takes_virtual_time(self):
        async def client(app):
            answer = await asgi.call(app, "GET", "/slow")
            return answer.status, json.loads(answer.text)["at"], now()

        assert visit(client)[0] == (200, 7, 7)

    def test_requests_run_side_by_side(self):
        async def client(app):
            await asyncio.gather(*(asgi.call(app, "GET", "/slow") for _ in range(100)))
            return now()

        assert visit(client)[0] == pytest.approx(7)

    def test_sanics_own_clock_is_virtual(self):
        async def client(app):
            await asyncio.sleep(3)
            return json.loads((await asgi.call(app, "GET", "/clock")).text)

        current_time, loop_time = visit(client)[0]
        assert current_time == pytest.approx(loop_time) == pytest.approx(5)

    def test_what_is_sent_arrives(self):
        async def client(app):
            headers = {"Content-Type": "application/json", "X-One": "1"}
            answer = await asgi.call(app, "POST", "/echo?a=b%20c", headers, b'{"hello": "world"}')
            assert answer.header("Content-Type") == "application/json"
            return json.loads(answer.body)

        assert visit(client)[0] == {"json": {"hello": "world"}, "query": {"a": ["b c"]}, "header": "1"}

    def test_a_stream_tells_when_each_piece_came(self):
        async def client(app):
            heard = []
            answer = await asgi.call(app, "GET", "/stream", on_chunk=heard.append)
            assert heard == [piece for _, piece in answer.chunks]
            assert answer.complete
            return [(round(at, 3), piece) for at, piece in answer.chunks]

        assert visit(client)[0] == [(2, b"data: 0\n\n"), (3, b"data: 1\n\n"), (4, b"data: 2\n\n")]

    def test_a_client_that_goes_away_cancels_the_handler(self):
        async def client(app):
            answer = await asgi.call(app, "GET", "/stream", disconnect_after_s=1.5)
            assert not answer.complete
            await asyncio.sleep(1)
            return answer.text

        result, log = visit(client)
        assert result == "data: 0\n\ndata: 1\n\n"
        assert ("cancelled", 3.5) in log

    def test_a_client_that_loses_patience_cancels_the_handler(self):
        async def client(app):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await asgi.call(app, "GET", "/stream")

        assert ("cancelled", 3.5) in visit(client)[1]

    def test_a_client_that_waits_long_enough_gets_all(self):
        async def client(app):
            return await asgi.call(app, "GET", "/stream", disconnect_after_s=10), now()

        answer, at = visit(client)[0]
        assert answer.complete
        assert at == 5

    def test_background_tasks_outlive_their_request(self):
        async def client(app):
            assert (await asgi.call(app, "GET", "/background")).status == 204
            await asyncio.sleep(5)

        assert ("background", 5) in visit(client)[1]

    def test_errors_are_answers(self):
        async def client(app):
            return [(await asgi.call(app, "GET", path)).status for path in ("/broken", "/nowhere", "/echo")]

        assert visit(client)[0] == [500, 404, 405]

    def test_openapi_is_served(self):
        async def client(app):
            specification = json.loads((await asgi.call(app, "GET", "/docs/openapi.json")).text)
            return set(specification["paths"]), (await asgi.call(app, "GET", "/docs")).status

        paths, status = visit(client)[0]
        assert {"/slow", "/echo", "/stream"} <= paths
        assert status == 200

    def test_a_request_has_a_context_of_its_own(self):
        async def client(app):
            await asgi.call(app, "GET", "/clock", client=("198.51.100.7", 1))
            return WHO.get()

        assert visit(client)[0] == "nobody"

    def test_one_seed_gives_the_same_ids(self):
        async def client(app):
            return (await asgi.call(app, "GET", "/slow")).text

        assert visit(client, seed=1) == visit(client, seed=1)
        assert visit(client, seed=1) != visit(client, seed=2)


class TestPlainApplication:
    """Any ASGI application may be called."""

    def test_after_the_client_went_away_receive_says_so_and_send_is_lost(self):
        heard = []

        async def app(scope, receive, send):
            heard.append((await receive())["body"])
            await send({"type": "http.response.start", "status": 200})
            try:
                await receive()
            except asyncio.CancelledError:
                heard.append((await receive())["type"])
                await send({"type": "http.response.body", "body": b"too late"})

        async def main():
            answer = await asgi.call(app, "POST", "/", body=b"hello", disconnect_after_s=2)
            await asyncio.sleep(1)
            return answer.status, answer.body

        assert run(main()) == (200, b"")
        assert heard == [b"hello", "http.disconnect"]

    def test_its_errors_are_raised(self):
        async def app(scope, receive, send):
            raise LookupError(scope["path"])

        for options in ({}, {"disconnect_after_s": 5}):
            with pytest.raises(LookupError, match="/a b"):
                run(asgi.call(app, "GET", "/a%20b", **options))

    def test_one_that_never_answers_is_a_deadlock(self):
        async def app(scope, receive, send):
            await receive()
            await receive()

        with pytest.raises(Deadlock):
            run(asgi.call(app, "GET", "/"))
