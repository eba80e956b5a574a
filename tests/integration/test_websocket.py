"""WebSockets over TCP: on Sanic's own server in this process, byte by byte, and on `orchestra serve`."""

import asyncio
import gc
import json
import os
import signal
import socket
import struct
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sanic import Sanic
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.server import ServerProtocol

from chaos.processes import live_service
from orchestra import compose, limits
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.inprocess import InProcessConversations, InProcessFleet, InProcessMemories, InProcessSessions
from orchestra.adapters.inprocess_relay import InProcessHub
from orchestra.adapters.system import SystemClock, SystemEntropy
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.config import Settings
from orchestra.events import ConnectionClosed as Told
from orchestra.gateway.app import Service, create_app
from orchestra.gateway.sockets import SLICE_BYTES, Budget, accepted
from orchestra.model import Chunk, Delta, Finish, Prompt
from orchestra.ports import Ports
from tests.integration.loopback import settings_on

SECONDS_MAX = 20.0
HANDSHAKE = (
    "GET /chat/ws/{} HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Scripted:
    """Says one word, or very much where it is asked for much."""

    name = "scripted"
    external = False

    async def complete(self, prompt: Prompt) -> AsyncGenerator[Chunk, None]:
        for _ in range(800 if prompt.messages[-1].content == "much" else 1):
            await asyncio.sleep(0)
            yield Delta("x" * 3_000 if prompt.messages[-1].content == "much" else "Hi")
        yield Finish("stop", "scripted-model")


class Server:
    """The app on a port of this machine."""

    def __init__(self, app, service, port, events):
        self.app = app
        self.service = service
        self.port = port
        self.events = events
        self.url = f"ws://127.0.0.1:{port}/chat/ws"

    @property
    def told(self):
        return [(event.code, event.reason) for event in self.events if isinstance(event, Told)]

    async def handlers(self):
        return await self.service.container.resolve(ConnectionHandlers)

    async def emptied(self):
        await (await self.handlers()).pool.emptied()


@asynccontextmanager
async def serving(**settings) -> AsyncIterator[Server]:
    events = []
    clock = SystemClock()
    ports = Ports(
        clock=clock,
        entropy=SystemEntropy(),
        sessions=InProcessSessions(clock),
        conversations=InProcessConversations(),
        memories=InProcessMemories(),
        embedder=HashingEmbedder(),
        provider=Scripted(),
        hook=events.append,
        fleet=InProcessFleet(clock),
        relay=InProcessHub().join("test"),
    )
    complete = Settings(**settings)
    service = Service(compose.build(ports, complete), ports, bytes)

    @asynccontextmanager
    async def opener():
        yield service

    mode, Sanic.test_mode = Sanic.test_mode, True
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # a slow reader is noticed soon
    app = create_app("served", complete, opener)
    try:
        server = await app.create_server(sock=listener, return_asyncio_server=True, access_log=False)
        await server.startup()
        await server.before_start()
        await server.after_start()
        yield Server(app, service, listener.getsockname()[1], events)
        await server.before_stop()
        await server.close()
        for connection in tuple(server.connections):
            connection.abort()
        await server.after_stop()
    finally:
        Sanic.test_mode = mode
        Sanic.unregister_app(app)
        await service.container.dispose()


def lived(story, **settings):
    async def main():
        async with asyncio.timeout(SECONDS_MAX), serving(**settings) as server:
            await story(server)

    asyncio.run(main())


class Raw:
    """A WebSocket client that says byte by byte what it likes."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def frame(self, opcode, payload=b"", *, fin=True, length=None, mask=True):
        """Send a frame whose header claims `length` bytes."""
        length = len(payload) if length is None else length
        head = bytes([(0x80 if fin else 0) | opcode])
        masked = 0x80 if mask else 0
        if length < 126:
            head += bytes([masked | length])
        elif length < 65_536:
            head += bytes([masked | 126]) + struct.pack(">H", length)
        else:
            head += bytes([masked | 127]) + struct.pack(">Q", length)
        self.writer.write(head + (b"\0\0\0\0" if mask else b"") + payload)

    async def hear(self):
        """Return opcode and payload of the next frame."""
        first, length = await self.reader.readexactly(2)
        if length == 126:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(length)

    async def closed(self):
        """Return code and reason of the close frame that follows, whatever comes before it, and answer it."""
        while True:
            opcode, payload = await self.hear()
            if opcode == CLOSE:
                self.frame(CLOSE, payload)
                return struct.unpack(">H", payload[:2])[0], payload[2:].decode()


@asynccontextmanager
async def raw(server, who="anna/lake", *, receive_bytes=None):
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1_024 if receive_bytes else 2**16)
    writer.write(HANDSHAKE.format(who).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


async def hear(client):
    return json.loads(await client.recv())


async def seen(holds):
    """Return once it holds: what was sent has arrived, or what was closed is gone."""
    for _ in range(int(SECONDS_MAX * 100)):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never held")


async def alive(client):
    """See that a client is served."""
    await client.send('{"type": "ping", "id": "p"}')
    assert await hear(client) == {"type": "pong", "id": "p"}


async def answered(client):
    """See that a raw client is served."""
    client.frame(TEXT, b'{"type":"ping"}')
    while (heard := await client.hear())[0] == PING:
        pass
    assert json.loads(heard[1]) == {"type": "pong", "id": None}


@pytest.fixture
def parsed(monkeypatch):
    """Every frame that engines of the server have parsed."""
    frames = []
    recv_frame = ServerProtocol.recv_frame

    def counting(self, frame):
        frames.append(frame.opcode)
        recv_frame(self, frame)

    monkeypatch.setattr(ServerProtocol, "recv_frame", counting)
    return frames


# --- what is usual


def test_a_client_talks_and_closes_and_both_ends_know_how():
    async def story(server):
        async with connect(f"{server.url}/anna/lake") as client:
            assert (await hear(client))["type"] == "ready"
            await client.send('{"type": "message", "id": "m1", "message": "Hello"}')
            heard = [await hear(client) for _ in range(4)]
            assert [each["type"] for each in heard] == ["accepted", "started", "delta", "done"]
            await (await client.ping())
            await client.close(1000, "bye")
        await server.emptied()
        await asyncio.sleep(0)
        assert server.told == [(1000, "")]
        assert client.close_code == 1000

    lived(story)


def test_a_message_may_come_in_pieces_and_characters_may_be_cut():
    async def story(server):
        async with raw(server) as client:
            await client.hear()
            text = '{"type": "ping", "id": "grüße"}'.encode()
            cut = text.index("ü".encode()) + 1
            client.frame(TEXT, text[:cut], fin=False)
            client.frame(PING, b"between")
            client.frame(0, b"", fin=False)
            client.frame(0, text[cut:])
            assert await client.hear() == (PONG, b"between")
            opcode, payload = await client.hear()
            assert (opcode, json.loads(payload)) == (TEXT, {"type": "pong", "id": "grüße"})

    lived(story)


# --- before acceptance


def test_a_wrong_handshake_is_refused_with_a_problem():
    right = {
        "Host": "here", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
    }  # fmt: skip
    wrong = [
        ("-/lake", {}),
        ("anna/lake", {"Sec-WebSocket-Version": "8"}),
        ("anna/lake", {"Sec-WebSocket-Key": "short"}),
        ("anna/lake", {"Upgrade": "h2c"}),
        ("anna/lake", {"Connection": "close"}),
    ]

    async def story(server):
        for who, headers in wrong:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            lines = [f"{name}: {value}" for name, value in (right | headers).items()]
            writer.write("\r\n".join([f"GET /chat/ws/{who} HTTP/1.1", *lines, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("http/1.1 400"), head
            assert "content-type: application/problem+json" in head
            writer.close()
        assert len((await server.handlers()).pool) == 0

    lived(story)


def test_over_the_limit_the_handshake_is_answered_503_with_retry_after():
    async def story(server):
        async with connect(f"{server.url}/anna/lake") as client:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{server.url}/anna/sea")
            response = refused.value.response
            assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
            assert json.loads(response.body)["type"] == "urn:ai-orchestra:problem:too-many-connections"
            assert (await hear(client))["type"] == "ready"
        await server.emptied()
        async with connect(f"{server.url}/anna/sea") as client:
            assert (await hear(client))["type"] == "ready"

    lived(story, connections_per_client_max=1)


# --- what is wrong


def test_each_offence_has_its_close_code_and_others_are_served_meanwhile():
    offences = {
        "binary": (lambda client: client.frame(BINARY, b"{}"), 1003, "binary"),
        "not UTF-8": (lambda client: client.frame(TEXT, b'"\xff"'), 1007, "not UTF-8: byte 1"),
        "cut UTF-8": (lambda client: client.frame(TEXT, b'"\xc3'), 1007, "not UTF-8: byte 1"),
        "unmasked": (lambda client: client.frame(TEXT, b"{}", mask=False), 1002, ""),
        "reserved": (lambda client: client.frame(0x3, b""), 1002, ""),
        "no beginning": (lambda client: client.frame(0, b"x"), 1002, ""),
        # the header alone is enough: nothing of it is waited for or kept
        "too large": (lambda client: client.frame(TEXT, length=limits.REQUEST_BYTES_MAX + 1), 1009, ""),
        "control flood": (
            lambda client: [client.frame(PING) for _ in range(limits.FRAMES_BURST_MAX + 200)],
            1008,
            "flood: too many control frames",
        ),
        "flood": (
            lambda client: [client.frame(TEXT, b'{"type":"ping"}') for _ in range(limits.FRAMES_BURST_MAX + 200)],
            1008,
            "flood: too many frames",
        ),
    }

    async def story(server):
        async with connect(f"{server.url}/ben/sea") as other:
            await hear(other)
            for name, (commit, code, reason) in offences.items():
                async with raw(server) as client:
                    await client.hear()
                    commit(client)
                    closed = await client.closed()
                    assert (closed[0], closed[1].startswith(reason)) == (code, True), (name, closed)
                    await alive(other)
                    assert await client.reader.read() == b"", name  # and the server ends the connection
            assert [code for code, _ in server.told] == [code for _, code, _ in offences.values()]

    lived(story)


def test_fragments_without_end_are_parsed_only_so_far_and_the_rest_of_them_is_dropped(parsed):
    async def story(server):
        async with connect(f"{server.url}/ben/sea") as other, raw(server) as client:
            await hear(other)
            await client.hear()
            client.frame(TEXT, b"", fin=False)
            client.writer.write(b"\x00\x80\0\0\0\0" * 480_000)
            assert await client.closed() == (1008, "flood: too many fragments")
            await alive(other)
            assert len(parsed) <= limits.FRAMES_BURST_MAX + SLICE_BYTES // 6 + 10
            assert server.told == [(1008, "flood: too many fragments")]

    lived(story)


def test_messages_without_end_are_parsed_only_so_far_and_told_to_be_a_flood(parsed):
    async def story(server):
        async with connect(f"{server.url}/ben/sea") as other, raw(server) as client:
            await hear(other)
            await client.hear()
            client.writer.write(b"\x81\x81\0\0\0\0x" * 290_000)
            errors = []
            while (heard := await client.hear())[0] == TEXT:
                errors.append(json.loads(heard[1])["kind"])
            assert heard[1][2:] == b"flood: too many frames"
            assert errors == ["invalid-request"] * (len(errors) - 1) + ["overloaded"]
            await alive(other)
            assert len(parsed) <= 2 * limits.FRAMES_BURST_MAX + 2 * (SLICE_BYTES // 7) + 100

    lived(story)


def test_others_are_answered_between_the_parts_of_what_one_sends_at_once(parsed):
    """The server parses no more at once than a slice and a full inbox."""

    async def story(server):
        async with raw(server) as client:
            await client.hear()
            client.writer.write(b"\x81\x81\0\0\0\0x" * 5_000)
            most = 0
            while not server.told:
                before = len(parsed)
                await asyncio.sleep(0)
                most = max(most, len(parsed) - before)
            assert 0 < most <= limits.INBOX_FRAMES_MAX + SLICE_BYTES // 7 + 1

    lived(story)


def test_what_comes_with_the_handshake_is_taken_in():
    async def story(server):
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        client = Raw(reader, writer)
        writer.write(HANDSHAKE.format("anna/lake").encode() + b"\x81\x8f\0\0\0\0" + b'{"type":"ping"}')
        await reader.readuntil(b"\r\n\r\n")
        heard = [json.loads((await client.hear())[1])["type"] for _ in range(2)]
        assert heard == ["ready", "pong"]
        writer.close()

    lived(story)


def test_a_closed_connection_leaves_nothing_in_memory():
    async def story(server):
        handlers = await server.handlers()
        for end in ("abort", "close"):
            async with raw(server) as client:
                await client.hear()
                (connection,) = handlers.pool.connections
                wire = connection.socket
                client.frame(TEXT, b"x" * 600_000, fin=False)
                client.frame(0, b"x" * 200_000, length=300_000)
                await seen(lambda: server.app.ctx.unfinished.held >= 800_000 - limits.UNFINISHED_BYTES_FREE)
                engine, partial = weakref.ref(wire.ws_proto), wire._partial
                assert len(partial) == 600_000
                del partial
                getattr(client.writer.transport, end)()
                del connection
                await server.emptied()
                await seen(lambda wire=wire: wire.ws_proto is None)
                assert (engine(), wire._partial, wire._inbox) == (None, None, None)
                assert wire._protocol.websocket is None
                assert server.app.ctx.unfinished.held == 0

    gc.collect()
    gc.disable()
    try:
        lived(story)
    finally:
        gc.enable()


def test_incomplete_messages_are_bounded_in_a_process_and_the_one_that_is_over_is_closed(monkeypatch):
    monkeypatch.setattr(limits, "UNFINISHED_BYTES_MAX", 1_000_000)

    async def story(server):
        async with (
            raw(server, "anna/lake") as first,
            raw(server, "ben/lake") as second,
            raw(server, "cy/lake") as small,
        ):
            for client in (first, second, small):
                await client.hear()
            first.frame(TEXT, b"x" * 800_000, fin=False)
            await seen(lambda: server.app.ctx.unfinished.held == 800_000 - limits.UNFINISHED_BYTES_FREE)
            second.frame(TEXT, b"x" * 400_000, fin=False)
            assert (await second.closed())[0] == 1013
            text = b'{"type":"ping","id":"%s"}' % (b"p" * 10_000)
            small.frame(TEXT, text[:9_000], fin=False)
            small.frame(0, text[9_000:])
            assert (await small.hear())[0] == TEXT
            await answered(small)
            first.frame(0, b"x")  # whose message was there before
            assert json.loads((await first.hear())[1])["kind"] == "invalid-request"

    lived(story)


def test_a_message_that_takes_too_long_to_arrive_is_closed_and_the_next_one_has_its_own_time():
    async def story(server):
        handlers = await server.handlers()
        async with raw(server) as client:
            await client.hear()
            (connection,) = handlers.pool.connections
            client.frame(TEXT, b'{"type":', fin=False)
            client.frame(PING)
            assert (await client.hear())[0] == PONG
            first = connection.socket.arrives_by
            assert connection.look(first - 1) == first
            assert (await client.hear())[0] == PING
            client.frame(0, b'"ping"}')
            assert (await client.hear())[0] == TEXT
            assert connection.socket.arrives_by is None
            client.frame(TEXT, b'{"ty', length=100)
            client.frame(PING)  # within the message that is not complete
            await seen(lambda: connection.socket.arrives_by is not None)
            assert connection.socket.arrives_by > first
            assert connection.look(connection.socket.arrives_by) is None
            assert await client.closed() == (1008, "too slow: a message took too long to arrive")

    lived(story)


def test_a_full_write_buffer_is_no_offence_where_one_frame_is_as_large():
    async def story(server):
        handlers = await server.handlers()
        async with raw(server, receive_bytes=4_096) as client:
            await client.hear()
            (connection,) = handlers.pool.connections
            await connection.socket.send([b'"' + b"x" * 2_400_000 + b'"'])
            assert connection.socket._transport.get_write_buffer_size() > limits.OUTBOX_BYTES_MAX
            client.frame(TEXT, b'{"type":"ping"}')
            assert len((await client.hear())[1]) == 2_400_002
            assert (await client.hear())[0] == TEXT

    lived(story)


def test_too_large_in_pieces_is_closed_when_it_is_too_large():
    async def story(server):
        async with raw(server) as client:
            await client.hear()
            client.frame(TEXT, b"x" * 600_000, fin=False)
            client.frame(0, b"x" * (limits.REQUEST_BYTES_MAX - 599_999))
            assert (await client.closed())[0] == 1009

    lived(story)


def test_a_connection_that_breaks_off_is_lost_and_gives_its_place_back():
    async def story(server):
        async with raw(server) as client:
            await client.hear()
            client.writer.transport.abort()
        await server.emptied()
        await asyncio.sleep(0)
        assert server.told == [(1006, "lost: the connection broke off")]

    lived(story)


def test_a_reader_that_is_too_slow_is_closed_and_costs_no_more_than_the_bound_and_others_see_all():
    async def story(server):
        pool = (await server.handlers()).pool
        reading = connect(f"{server.url}/anna/lake", max_size=None)
        async with raw(server, "slow/lake", receive_bytes=4_096), reading as client:
            await hear(client)
            slow = next(each for each in pool.connections if each.client_id == "slow")
            await client.send('{"type": "message", "id": "m1", "message": "much"}')
            waiting = 0
            while (frame := await hear(client))["type"] != "done":
                assert frame["type"] != "error", frame
                waiting = max(waiting, slow._outbox_bytes)
            assert slow.closing.code == 1008
            assert slow.closing.reason.startswith("too slow")
            assert waiting <= limits.OUTBOX_BYTES_MAX + 4_000
            assert frame["seq"] == 802
        await server.emptied()
        assert sorted(code for code, _ in server.told) == [1000, 1008]

    lived(story)


def test_who_sends_more_than_is_taken_is_not_read_further_and_nothing_of_it_is_lost():
    sockets = []

    async def takes_nothing(request, who):
        sockets.append(await accepted(request, Budget()))
        await asyncio.get_running_loop().create_future()

    takes_nothing.is_websocket = True

    async def main():
        app = Sanic("mute", configure_logging=False)
        app.enable_websocket()
        app.add_route(takes_nothing, "/chat/ws/<who:path>")
        listener = socket.create_server(("127.0.0.1", 0))
        server = await app.create_server(sock=listener, return_asyncio_server=True)
        await server.startup()
        async with raw(Server(app, None, listener.getsockname()[1], [])) as client:
            for number in range(5_000):
                client.frame(TEXT, b"%1000d" % number)
            (taken,) = sockets
            for _ in range(30):  # what the loop can read in this time is far more
                await asyncio.sleep(0.01)
                assert taken._inbox_bytes <= limits.INBOX_BYTES_MAX + 2**19
            assert [int(await taken.receive()) for _ in range(5_000)] == list(range(5_000))
        await server.close()
        for connection in tuple(server.connections):
            connection.abort()

    mode, Sanic.test_mode = Sanic.test_mode, True
    try:
        asyncio.run(main())
    finally:
        Sanic.test_mode = mode
        Sanic.unregister_app(Sanic.get_app("mute"))


def test_a_half_open_peer_is_pinged_and_dropped_and_one_that_answers_stays():
    async def story(server):
        handlers = await server.handlers()
        now = asyncio.get_running_loop().time
        async with raw(server, "mute/lake") as mute, raw(server, "ben/lake") as ben:
            for client in (mute, ben):
                await client.hear()
            one, other = handlers.pool.connections
            later = now() + limits.PING_SECONDS
            for connection in (one, other):
                connection.look(later)
            for client in (mute, ben):
                assert await client.hear() == (PING, b"")
            ben.frame(PONG)
            await answered(ben)  # the pong before it was taken in as well
            other.socket.heard_at = later  # as if it had come then
            for connection in (one, other):
                connection.look(later + limits.PONG_SECONDS_MAX)
            assert await mute.reader.read() == b""
            await answered(ben)
            assert server.told == [(1006, "lost: no pong")]

    lived(story)


def test_who_does_not_answer_a_close_is_let_go(monkeypatch):
    monkeypatch.setattr(limits, "CLOSE_SECONDS_MAX", 0.05)

    async def story(server):
        handlers = await server.handlers()
        async with raw(server) as client:
            await client.hear()
            handlers.pool.connections[0].close(1012, "going")
            assert await client.hear() == (CLOSE, struct.pack(">H", 1012) + b"going")
            assert await client.reader.read() == b""  # though the client said nothing

    lived(story)


# --- `orchestra serve`


def test_sigterm_says_goodbye_closes_with_1012_and_ends_in_time(stores, tmp_path):
    async def story(service):
        url = service.url.replace("http", "ws", 1)
        async with asyncio.timeout(SECONDS_MAX), connect(f"{url}/chat/ws/anna/sigterm") as client:
            assert (await hear(client))["type"] == "ready"
            os.kill(service.process.pid, signal.SIGTERM)
            assert (await hear(client))["type"] == "goodbye"
            with pytest.raises(ConnectionClosed):
                await hear(client)
            return client.close_code

    with live_service(tmp_path, settings_on(stores)) as service:
        assert asyncio.run(story(service)) == 1012
        assert service.process.wait(10) == 0


def test_a_conversation_is_restored_on_a_new_connection_of_the_live_service(service):
    url = service.url.replace("http", "ws", 1) + "/chat/ws/anna/restored"

    async def story():
        async with asyncio.timeout(SECONDS_MAX):
            async with connect(url) as client:
                await hear(client)
                await client.send('{"type": "message", "id": "m1", "message": "Hello"}')
                while (frame := await hear(client))["type"] != "done":
                    assert frame["type"] != "error", frame
            async with connect(url) as client:
                ready = await hear(client)
        assert [(turn["message"], turn["reply"]) for turn in ready["history"]] == [("Hello", frame["reply"]["reply"])]

    asyncio.run(story())
