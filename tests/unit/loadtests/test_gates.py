"""Gates decide by numbers alone; on the command line they end a real Locust run against a real server."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from chaos.processes import free_port
from loadtests.gates import EXIT_GATE, Gates, Measured, violations
from loadtests.replies import CHAT_PATH, reply_fault

ROOT = Path(__file__).resolve().parents[3]
Handler = Callable[[web.Request], Awaitable[web.Response]]


@pytest.mark.parametrize(
    ("measured", "fragments"),
    [
        (Measured(requests=100, failures=0, p95_ms=500.0), []),
        (Measured(requests=100, failures=1, p95_ms=10.0), ["1 of 100 requests failed (1.00 %)"]),
        (Measured(requests=100, failures=0, p95_ms=501.0), ["p95 is 501 ms"]),
        (Measured(requests=0, failures=0, p95_ms=0.0), ["0 requests ended"]),
        (Measured(requests=100, failures=0, p95_ms=10.0, exceptions=2), ["2 kinds of exception"]),
        (Measured(requests=10, failures=10, p95_ms=5000.0), ["10 of 10 requests failed", "p95 is 5000 ms"]),
    ],
)
def test_violations(measured: Measured, fragments: list[str]) -> None:
    found = violations(measured, Gates())
    assert len(found) == len(fragments)
    assert all(fragment in sentence for fragment, sentence in zip(fragments, found, strict=True))


def test_gates_are_bounds_that_may_be_reached() -> None:
    gates = Gates(failure_percent_max=1.0, p95_ms_max=50.0, requests_min=100)
    assert violations(Measured(requests=100, failures=1, p95_ms=50.0), gates) == []
    assert len(violations(Measured(requests=99, failures=1, p95_ms=50.1), gates)) == 3


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ({"reply": "hello", "session_id": "s"}, None),
        (None, "the reply is no JSON object"),
        (["reply"], "the reply is no JSON object"),
        ({"session_id": "s"}, "the reply has no text"),
        ({"reply": "", "session_id": "s"}, "the reply has no text"),
        ({"reply": "hello"}, "the reply names no session"),
        ({"reply": "hello", "session_id": "other"}, "the reply is of another session"),
    ],
)
def test_reply_fault(reply: object, fault: str | None) -> None:
    assert reply_fault(reply, "s") == fault


USERS = 3
ONE_ANSWERED = USERS + 1  # a user waits for its answer, so one request more than users means that one was answered
PATIENT = ("--gate-p95-ms-max", "60000")


def _locust(handler: Handler, *arguments: str, requests: int = ONE_ANSWERED) -> tuple[int, str]:
    """Run the smoke profile until `requests` have come to `handler`; return exit code and output."""
    return asyncio.run(_run(handler, arguments, requests))


async def _run(handler: Handler, arguments: tuple[str, ...], requests: int) -> tuple[int, str]:
    seen = 0
    enough = asyncio.Event()

    async def counted(request: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        if seen >= requests:
            enough.set()
        return await handler(request)

    app = web.Application()
    app.router.add_post(CHAT_PATH, counted)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host = f"http://127.0.0.1:{runner.addresses[0][1]}"
        command = ["-m", "locust", "-f", "loadtests/locustfile.py", "--headless", "--only-summary", "--host", host]
        profile = ["--users", str(USERS), "--spawn-rate", "10"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            *profile,
            *arguments,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        waiting = asyncio.create_task(enough.wait())
        ending = asyncio.create_task(process.communicate())
        await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not ending.done():
            process.terminate()  # which Locust takes for the end of its run time
        output, _ = await ending
        return process.returncode or 0, output.decode()
    finally:
        await runner.cleanup()


def test_a_good_service_passes_and_sessions_go_on() -> None:
    sessions: list[str | None] = []

    async def good(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        sessions.append(body["session_id"])
        return web.json_response({"reply": "fine", "session_id": body["session_id"] or f"s{len(sessions)}"})

    code, output = _locust(good, *PATIENT, requests=20)
    assert code == 0, output
    assert "gates: passed" in output
    # a user opens a session, names it in its next four turns, then opens another
    assert sessions.count(None) >= USERS
    assert all(sessions.count(session) <= 4 for session in sessions if session is not None)
    assert any(session is not None for session in sessions)


async def _failing(_: web.Request) -> web.Response:
    return web.json_response({}, status=500)


def test_a_failing_service_fails_the_run() -> None:
    code, output = _locust(_failing, *PATIENT)
    assert code == EXIT_GATE, output
    assert "requests failed (100.00 %)" in output


def test_failures_that_the_gate_allows_pass() -> None:
    code, output = _locust(_failing, *PATIENT, "--gate-failure-percent-max", "100")
    assert code == 0, output


def test_a_wrong_reply_fails_the_run() -> None:
    async def confused(_: web.Request) -> web.Response:
        return web.json_response({"reply": "fine", "session_id": ""})

    code, output = _locust(confused, *PATIENT)
    assert code == EXIT_GATE, output
    assert "the reply names no session" in output


def test_a_slow_service_fails_the_run() -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.2)
        return web.json_response({"reply": "at last", "session_id": "s"})

    code, output = _locust(slow, "--gate-p95-ms-max", "100", "--gate-failure-percent-max", "100")
    assert code == EXIT_GATE, output
    assert "at most 100 ms is allowed" in output


def test_a_service_that_never_answers_fails_the_run() -> None:
    async def frozen(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    code, output = _locust(frozen, *PATIENT, requests=USERS)
    assert code == EXIT_GATE, output
    assert "0 requests ended" in output


def test_a_service_that_is_not_there_fails_the_run() -> None:
    async def never(_: web.Request) -> web.Response:
        raise AssertionError

    port = free_port()
    code, output = _locust(never, *PATIENT, "--run-time", "1s", "--host", f"http://127.0.0.1:{port}")
    assert code == EXIT_GATE, output
