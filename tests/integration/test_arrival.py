"""Requests that trickle, on real sockets: each has an end, which is said, and nobody else is held up."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp
import pytest

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores
from tests.integration.loopback import settings_on

CHAT = "/chat/v2/chat"
BOUND_SECONDS = 1.0
DRIP_SECONDS = 0.05
"""Far more often than the bound, so that each drip would put off a limit on silence."""

SECONDS_MAX = 20.0
HEAD = "Host: x\r\nContent-Type: application/json\r\n"
DRIPS = b" " * 10_000


@pytest.fixture(scope="module")
def strict(stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    environ = {
        **settings_on(stores),
        "ORCHESTRA_REQUEST_SECONDS_MAX": str(BOUND_SECONDS),
    }
    with live_service(tmp_path_factory.mktemp("strict"), environ) as running:
        yield running


class Ended(NamedTuple):
    """What a trickling client was answered until its connection closed, and after how many seconds that was."""

    answer: str
    seconds: float

    @property
    def status(self) -> int:
        return int(self.answer.split(" ", 2)[1])

    @property
    def body(self) -> str:
        return self.answer.partition("\r\n\r\n")[2]


async def trickle(service: LiveService, first: str, drips: bytes) -> Ended:
    """Send `first` at once and `drips` byte by byte, until the service closes the connection."""
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    writer.write(first.encode())

    async def drip() -> None:
        for each in drips:
            await asyncio.sleep(DRIP_SECONDS)
            writer.write(bytes((each,)))

    dripping = asyncio.create_task(drip())
    try:
        answer = bytearray()
        try:
            while piece := await reader.read(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return Ended(answer.decode(), loop.time() - begun)
    finally:
        dripping.cancel()
        writer.close()


def lived(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(SECONDS_MAX):
            await story()

    asyncio.run(run())


def test_what_trickles_is_ended_with_408_and_nobody_else_is_held_up(strict: LiveService) -> None:
    chunked = "Transfer-Encoding: chunked\r\n\r\n"

    async def story() -> None:
        async with aiohttp.ClientSession(strict.url) as client:
            slow = asyncio.gather(
                trickle(strict, f"POST {CHAT} HTTP/1.1\r\n", b"x: " + b"y" * 5000),  # a header
                trickle(strict, "P", b"O" * 5000),
                trickle(strict, f"POST {CHAT} HTTP/1.1\r\n{HEAD}Content-Length: 9999\r\n\r\n", DRIPS),  # a body
                trickle(strict, f"POST {CHAT} HTTP/1.1\r\n{HEAD}{chunked}", b"5\r\nhello\r\n" * 500),
                trickle(strict, f"POST /chat/v1/chat HTTP/1.1\r\n{HEAD}Content-Length: 9999\r\n\r\n", DRIPS),
            )
            served = 0
            while not slow.done():
                async with client.post(CHAT, json={"message": "hello"}) as response:
                    assert response.status == 200
                served += 1
                await asyncio.sleep(DRIP_SECONDS)
            assert served > 3
            for ended in await slow:
                assert ended.status == 408
                assert "connection: close" in ended.answer.lower()
                assert ended.seconds >= BOUND_SECONDS
            problem, said = json.loads((await slow)[2].body), json.loads((await slow)[4].body)
            assert problem["type"] == "urn:ai-orchestra:problem:request-timeout"
            assert "send it at once" in problem["detail"]
            assert (said["error"], said["status"]) == ("request-timeout", 408)

    lived(story)
    assert "Traceback" not in strict.log.read_text()
    assert "unexpected_error" not in strict.log.read_text()


def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(strict: LiveService) -> None:
    async def story() -> None:
        for path, more, status in (("/no/such/path", "Content-Length: 9999", 404), (CHAT, "Content-Length: x", 400)):
            ended = await trickle(strict, f"POST {path} HTTP/1.1\r\n{HEAD}{more}\r\n\r\n", DRIPS)
            assert ended.status == status

    lived(story)
    assert "Traceback" not in strict.log.read_text()


def test_a_request_that_comes_in_two_halves_in_time_is_answered_on_a_connection_that_stays(
    strict: LiveService,
) -> None:
    async def story() -> None:
        address = urlsplit(strict.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = json.dumps({"message": "hello"})
        for _ in range(3):  # the bound is each request's own
            writer.write(f"POST {CHAT} HTTP/1.1\r\n{HEAD}".encode())
            await asyncio.sleep(BOUND_SECONDS / 3)
            writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode())
            await asyncio.sleep(BOUND_SECONDS / 3)
            writer.write(body.encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            (length,) = [int(each.split(b":")[1]) for each in head.split(b"\r\n") if each.startswith(b"content-length")]
            await reader.readexactly(length)
        writer.close()

    lived(story)


def test_what_is_too_large_or_no_utf_8_is_refused(strict: LiveService) -> None:
    async def story() -> None:
        async with aiohttp.ClientSession(strict.url) as client:
            for path, kind in ((CHAT, "type"), ("/chat/v1/chat", "error")):
                for body, status, word in (
                    (b'{"message": "' + b"x" * 1_300_001 + b'"}', 413, "payload-too-large"),
                    (b'{"message": "\xff"}', 400, "invalid-request"),
                    (b'{"text": "\xff"}', 400, "invalid-request"),
                ):
                    headers = {"Content-Type": "application/json"}
                    async with client.post(path, data=body, headers=headers) as response:
                        assert response.status == status
                        assert json.loads(await response.text())[kind].endswith(word)

    lived(story)
