"""What asyncio's programs notice of TCP: the same on this machine's loopback and on the simulated network."""

import asyncio
import errno
import socket

import pytest

from sim.entropy import Streams
from sim.isolation import isolated
from sim.loop import SimEnvironment, run
from sim.network import Network
from sim.schedule import Fifo, Shuffled

HERE = "127.0.0.1"
SETTLES_S = 0.1  # what was sent is in the peer's kernel at once, and the loop looks there before this is over
SECONDS_MAX = 20.0


def on_loopback(story):
    async def bounded():
        async with asyncio.timeout(SECONDS_MAX):
            return await story()

    return asyncio.run(bounded())


def simulated(schedule):
    def lived(story):
        streams = Streams(1)
        env = SimEnvironment(schedule=schedule(streams.stream("schedule")))
        with isolated(streams, env):
            Network(env, streams)
            return run(story(), env=env)

    return lived


@pytest.fixture(
    params=[on_loopback, simulated(Fifo), simulated(Shuffled)], ids=["loopback", "simulated", "simulated, adversarial"]
)
def tcp(request):
    """Run a story on one of the networks."""
    return request.param


class Recorder(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self, stays_open=False):
        self.told = []
        self.data = b""
        self.stays_open = stays_open
        self.over = asyncio.get_running_loop().create_future()
        self.resumed = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.told.append("made")

    def data_received(self, data):
        if self.told[-1] != "data":
            self.told.append("data")
        self.data += data

    def eof_received(self):
        self.told.append("eof")
        return self.stays_open

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")
        self.resumed.set()

    def connection_lost(self, exc):
        self.told.append("lost" if exc is None else type(exc).__name__)
        self.over.set_result(None)


async def pair(server_side=Recorder, client_side=Recorder):
    """Connect two protocols; return the server, its side and the client's."""
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()

    def accept():
        accepted.set_result(server_side())
        return accepted.result()

    server = await loop.create_server(accept, HERE, 0)
    _, client = await loop.create_connection(client_side, *server.sockets[0].getsockname())
    theirs = await accepted
    await asyncio.sleep(0.01)  # until it is told so
    return server, theirs, client


def test_bytes_arrive_in_order_and_each_half_is_closed_by_itself(tcp):
    sent = bytes(range(256)) * 8_000

    async def story():
        async def turn_around(reader, writer):
            said = await reader.read()  # to the client's end
            writer.write(said[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(turn_around, HERE, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for start in range(0, len(sent), 100_000):
            writer.write(sent[start : start + 100_000])
            await writer.drain()
        writer.write_eof()
        heard = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        return heard

    assert tcp(story) == sent[::-1]


def test_nobody_listens(tcp):
    async def story():
        server = await asyncio.start_server(lambda reader, writer: None, HERE, 0)
        address = server.sockets[0].getsockname()
        server.close()
        with pytest.raises(ConnectionRefusedError, match="Connect call failed") as refused:
            await asyncio.open_connection(*address)
        return refused.value.errno

    assert tcp(story) == errno.ECONNREFUSED


def test_a_port_is_bound_once(tcp):
    async def story():
        server = await asyncio.start_server(lambda reader, writer: None, HERE, 0)
        with pytest.raises(OSError, match="ddress already in use") as taken:
            await asyncio.start_server(lambda reader, writer: None, *server.sockets[0].getsockname())
        server.close()
        again = await asyncio.start_server(lambda reader, writer: None, HERE, 0)
        again.close()
        return taken.value.errno

    assert tcp(story) == errno.EADDRINUSE


def test_the_callbacks_and_their_order(tcp):
    async def story():
        server, theirs, ours = await pair()
        ours.transport.write(b"hello")
        ours.transport.close()
        ours.transport.close()
        assert ours.transport.is_closing()
        await theirs.over
        server.close()
        return ours.told, theirs.told, theirs.data

    assert tcp(story) == (["made", "lost"], ["made", "data", "eof", "lost"], b"hello")


def test_a_side_that_stays_open_after_the_others_end(tcp):
    async def story():
        server, theirs, ours = await pair(lambda: Recorder(stays_open=True))
        ours.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            ours.transport.write(b"more")
        await asyncio.sleep(SETTLES_S)
        theirs.transport.write(b"still")
        await asyncio.sleep(SETTLES_S)
        heard = ours.data
        theirs.transport.close()
        await ours.over
        server.close()
        return heard, theirs.told, ours.told

    assert tcp(story) == (b"still", ["made", "eof", "lost"], ["made", "data", "eof", "lost"])


def test_closing_sends_what_waits_first(tcp):
    async def story():
        server, theirs, ours = await pair()
        ours.transport.write(b"x" * 5_000_000)
        ours.transport.close()
        ours.transport.write(b"")
        await theirs.over
        server.close()
        return len(theirs.data), ours.told

    assert tcp(story) == (5_000_000, ["made", "pause", "resume", "lost"])


def test_closing_with_something_unread_resets_the_peer(tcp):
    async def story():
        server, theirs, ours = await pair()
        theirs.transport.pause_reading()
        assert not theirs.transport.is_reading()
        ours.transport.write(b"never read")
        await asyncio.sleep(SETTLES_S)
        theirs.transport.close()
        await ours.over
        server.close()
        return ours.told, theirs.told

    assert tcp(story) == (["made", "ConnectionResetError"], ["made", "lost"])


def test_writing_to_a_peer_that_has_closed_is_answered_by_a_reset(tcp):
    async def story():
        server, theirs, ours = await pair(client_side=lambda: Recorder(stays_open=True))
        theirs.transport.abort()
        await asyncio.sleep(SETTLES_S)
        ours.transport.write(b"one")
        await asyncio.sleep(SETTLES_S)
        for _ in range(7):
            ours.transport.write(b"into the void")
        await ours.over
        server.close()
        return ours.told

    told = tcp(story)
    assert told[:2] == ["made", "eof"]
    assert told[2:] in (["ConnectionResetError"], ["BrokenPipeError"])  # who notices first: the reader or the writer


def test_aborting_is_an_end_not_a_reset(tcp):
    async def story():
        server, theirs, ours = await pair()
        ours.transport.abort()
        await theirs.over
        server.close()
        return ours.told, theirs.told

    assert tcp(story) == (["made", "lost"], ["made", "eof", "lost"])


def test_a_reader_that_pauses_stops_the_writer(tcp):
    async def story():
        server, theirs, ours = await pair()
        theirs.transport.pause_reading()
        ours.transport.set_write_buffer_limits(high=50_000, low=10_000)
        written = 0
        while "pause" not in ours.told:
            ours.transport.write(b"x" * 10_000)
            written += 10_000
            await asyncio.sleep(0)
        assert ours.transport.get_write_buffer_size() > 50_000
        assert ours.transport.get_write_buffer_limits() == (10_000, 50_000)
        await asyncio.sleep(SETTLES_S)
        paused = list(ours.told)
        theirs.transport.resume_reading()
        await ours.resumed.wait()
        resumed = list(ours.told)
        ours.transport.close()
        await theirs.over
        server.close()
        return paused, resumed, len(theirs.data) == written

    assert tcp(story) == (["made", "pause"], ["made", "pause", "resume"], True)


def test_a_server_that_is_closed_keeps_its_connections(tcp):
    async def story():
        server, theirs, ours = await pair()
        assert server.is_serving()
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()
        ours.transport.write(b"hello")
        await asyncio.sleep(SETTLES_S)
        heard = theirs.data
        ours.transport.close()
        await theirs.over
        await server.wait_closed()
        return heard

    assert tcp(story) == b"hello"


def test_a_server_that_starts_later(tcp):
    async def story():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, HERE, 0, start_serving=False)
        address = server.sockets[0].getsockname()
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        forever = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        _, writer = await asyncio.open_connection(*address)
        writer.close()
        await asyncio.sleep(SETTLES_S)
        forever.cancel()
        await asyncio.gather(forever, return_exceptions=True)
        return server.is_serving(), forever.cancelled()

    assert tcp(story) == (False, True)


def test_addresses(tcp):
    async def story():
        server, theirs, ours = await pair()
        listens = server.sockets[0].getsockname()
        names = [each.transport.get_extra_info(name) for each in (ours, theirs) for name in ("sockname", "peername")]
        sock = ours.transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert (sock.getsockname(), sock.getpeername()) == (names[0], names[1])
        assert ours.transport.get_extra_info("nothing", "default") == "default"
        found = await asyncio.get_running_loop().getaddrinfo(b"localhost", 80, type=socket.SOCK_STREAM)
        ours.transport.close()
        await theirs.over
        server.close()
        return names[1] == names[2] == listens, names[0] == names[3], (HERE, 80) in [each[4] for each in found]

    assert tcp(story) == (True, True, True)


def test_an_error_in_a_callback_closes_the_connection_and_is_told(tcp):
    class Broken(Recorder):
        def data_received(self, data):
            raise LookupError(data)

    async def story():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        server, theirs, ours = await pair(Broken)
        ours.transport.write(b"hello")
        await theirs.over
        await ours.over
        server.close()
        return theirs.told, told

    assert tcp(story) == (["made", "LookupError"], ["Fatal error: protocol.data_received() call failed."])


def test_a_protocol_that_lends_its_buffer(tcp):
    class Lender(asyncio.BufferedProtocol):
        def __init__(self):
            self.told = []
            self.data = b""
            self.buffer = bytearray(10)
            self.over = asyncio.get_running_loop().create_future()

        def connection_made(self, transport):
            self.told.append("made")

        def get_buffer(self, sizehint):
            return self.buffer

        def buffer_updated(self, nbytes):
            self.data += self.buffer[:nbytes]

        def connection_lost(self, exc):
            self.over.set_result(exc)

    async def story():
        server, theirs, ours = await pair(Lender)
        ours.transport.writelines([b"more than ", memoryview(b"ten bytes of it")])
        ours.transport.close()
        await theirs.over
        server.close()
        return theirs.data

    assert tcp(story) == b"more than ten bytes of it"


def test_a_socket_that_a_library_connects_itself(tcp):
    async def story():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, HERE, 0)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        assert isinstance(sock, socket.socket)
        sock.setblocking(False)
        await loop.sock_connect(sock, server.sockets[0].getsockname())
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        assert transport.get_protocol() is protocol
        peer = transport.get_extra_info("peername") == server.sockets[0].getsockname()
        transport.close()
        await protocol.over
        unused = socket.socket()
        await loop.sock_connect(unused, server.sockets[0].getsockname())
        unused.close()
        await asyncio.sleep(SETTLES_S)
        server.close()
        return peer

    assert tcp(story) is True


def test_after_closing_nothing_is_read(tcp):
    async def story():
        server, theirs, ours = await pair()
        ours.transport.pause_reading()
        theirs.transport.write(b"x" * 10_000_000)
        theirs.transport.close()  # it waits for the reader
        ours.transport.write(b"late")
        await asyncio.sleep(SETTLES_S)
        told = list(theirs.told)
        ours.transport.abort()
        await theirs.over
        server.close()
        return told, theirs.data

    assert tcp(story) == (["made", "pause"], b"")
