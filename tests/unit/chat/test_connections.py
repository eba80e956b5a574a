"""One connection and the pool, on the ASGI socket over queues in memory, in virtual time."""

import asyncio
import json

import pytest

from orchestra import limits
from orchestra.chat.connections import Allowance, Closed, Connection, ConnectionPool, PoolLimits
from orchestra.errors import ShuttingDown, TooManyConnections
from orchestra.frames import Pong
from orchestra.gateway.sockets import AsgiSocket
from sim import loop


class Peer:
    """The other end of an `AsgiSocket`: what it was sent, and a transport that can be full."""

    def __init__(self):
        self.inbox = asyncio.Queue()
        self.got = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.socket = AsgiSocket(self._send, self.inbox.get)

    async def _send(self, message):
        await self.takes.wait()
        self.got.append(message)

    def says(self, text):
        self.inbox.put_nowait({"type": "websocket.receive", "text": text})

    @property
    def texts(self):
        return [each["text"] for each in self.got if each["type"] == "websocket.send"]

    @property
    def close(self):
        found = [(each["code"], each["reason"]) for each in self.got if each["type"] == "websocket.close"]
        assert len(found) <= 1
        return found[0] if found else None


class Quiet(AsgiSocket):
    """A socket whose server leaves pings to us."""

    __slots__ = ("heard", "pings")

    def __init__(self, peer):
        super().__init__(peer._send, peer.inbox.get)
        self.heard = 0.0
        self.pings = 0

    @property
    def heard_at(self):
        return self.heard

    def ping(self):
        self.pings += 1


def lived(story):
    async def main():
        peer = Peer()
        connection = Connection("c1", "anna", "lake", peer.socket, 900.0, asyncio.get_running_loop().time)
        await story(connection, peer)
        await connection.ended()
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == []

    loop.run(main())


async def closed(connection):
    """Let the connection's handler run until it is closed, as the edge does."""
    try:
        while True:
            await connection.receive()
    except Closed as ended:
        return ended.code, ended.reason


# --- the outbox


def test_frames_go_out_in_order_by_a_task_that_lives_only_while_there_are_some():
    async def story(connection, peer):
        assert len(asyncio.all_tasks()) == 1
        for number in range(3):
            connection.send(Pong(str(number)))
        assert len(asyncio.all_tasks()) == 2
        await asyncio.sleep(0.1)
        assert [json.loads(each)["id"] for each in peer.texts] == ["0", "1", "2"]
        assert (connection.sent, len(asyncio.all_tasks())) == (3, 1)

    lived(story)


def test_a_reader_that_is_too_slow_is_closed_by_bytes():
    async def story(connection, peer):
        peer.takes.clear()
        piece = b"x" * 1_000
        for _ in range(limits.OUTBOX_BYTES_MAX // 1_000 + 1):
            connection.push(piece)
        assert connection.closing is None  # what waited before the last was within the bound
        connection.push(piece)
        assert connection.closing.code == 1008
        assert connection.closing.reason.startswith("too slow")
        peer.takes.set()
        assert (await closed(connection))[0] == 1008
        assert peer.close[0] == 1008
        assert len(peer.texts) <= 1  # what waited is dropped

    lived(story)


def test_a_reader_that_is_too_slow_is_closed_by_count():
    async def story(connection, peer):
        peer.takes.clear()
        for _ in range(limits.OUTBOX_FRAMES_MAX):
            connection.push(b"{}")
        assert connection.closing is None
        await asyncio.sleep(1)  # the writer has taken them, and waits
        for _ in range(limits.OUTBOX_FRAMES_MAX):
            connection.push(b"{}")
        assert connection.closing is None
        connection.push(b"{}")
        assert connection.closing.code == 1008

    lived(story)


def test_one_frame_may_be_larger_than_the_bound_where_nothing_much_waits_before_it():
    async def story(connection, peer):
        connection.push(b"x" * (2 * limits.OUTBOX_BYTES_MAX))
        await asyncio.sleep(0.1)
        assert (len(peer.texts), connection.closing) == (1, None)
        connection.push(b"{}")
        await asyncio.sleep(0.1)
        assert (len(peer.texts), connection.closing) == (2, None)

    lived(story)


def test_who_can_wait_waits_for_room():
    async def story(connection, peer):
        peer.takes.clear()
        connection.push(b"x" * (limits.OUTBOX_BYTES_MAX // 2))
        waiting = asyncio.create_task(connection.room())
        await asyncio.sleep(1)
        assert not waiting.done()
        peer.takes.set()
        await asyncio.sleep(0.1)
        assert waiting.done()
        await connection.room()  # at once

    lived(story)


# --- closing


def test_what_waits_is_sent_before_the_close():
    async def story(connection, peer):
        connection.push(b"last words")
        connection.close(1012, "going")
        connection.push(b"too late")
        assert await closed(connection) == (1012, "going")
        assert (peer.texts, peer.close) == (["last words"], (1012, "going"))

    lived(story)


def test_a_close_waits_so_long_for_a_reader_and_no_longer():
    async def story(connection, peer):
        peer.takes.clear()
        connection.push(b"never read")
        await asyncio.sleep(0.1)
        connection.close(1012, "going")
        ending = asyncio.create_task(closed(connection))
        await asyncio.sleep(limits.CLOSE_SECONDS_MAX - 0.1)
        assert connection.socket.closed is None
        await asyncio.sleep(0.2)
        assert connection.socket.closed.code == 1012
        peer.takes.set()
        assert await ending == (1012, "going")

    lived(story)


def test_the_first_close_counts():
    async def story(connection, peer):
        connection.close(1001, "idle")
        connection.close(1012, "going")
        assert await closed(connection) == (1001, "idle")

    lived(story)


def test_a_peer_that_closes_ends_it_with_its_code():
    async def story(connection, peer):
        peer.says("last")
        peer.inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})
        assert await connection.receive() == b"last"
        assert await closed(connection) == (1001, "")
        assert connection.closing.code == 1001
        connection.push(b"nobody reads")
        assert peer.got == []

    lived(story)


# --- allowance, idle, lost


def test_an_allowance_is_a_burst_and_then_so_many_a_second():
    allowance = Allowance(0.0)
    assert [allowance.take(0.0) for _ in range(limits.FRAMES_BURST_MAX + 1)] == [True] * limits.FRAMES_BURST_MAX + [
        False
    ]
    assert allowance.take(1 / limits.FRAMES_PER_SECOND_MAX)
    assert not allowance.take(1 / limits.FRAMES_PER_SECOND_MAX)
    assert [allowance.take(1_000.0) for _ in range(limits.FRAMES_BURST_MAX + 1)].count(True) == limits.FRAMES_BURST_MAX


def quiet(story):
    async def main():
        peer = Peer()
        socket = Quiet(peer)
        connection = Connection("c1", "anna", "lake", socket, 900.0, asyncio.get_running_loop().time)
        await story(connection, socket)

    loop.run(main())


def test_a_quiet_peer_is_pinged_and_one_that_answers_stays():
    async def story(connection, socket):
        assert connection.look(0.0) == 20.0
        assert connection.look(19.9) == 20.0
        assert socket.pings == 0
        assert connection.look(20.0) == 40.0
        assert socket.pings == 1
        socket.heard = 21.0  # a pong
        assert connection.look(40.0) == 41.0
        assert connection.look(41.0) == 61.0
        assert (socket.pings, connection.closing) == (2, None)

    quiet(story)


def test_a_half_open_peer_is_dropped_when_no_pong_comes():
    async def story(connection, socket):
        connection.look(20.0)
        assert connection.look(39.9) == 40.0
        assert connection.look(40.0) is None
        assert (connection.closing.code, connection.closing.reason) == (1006, "lost: no pong")
        assert connection.look(41.0) is None
        assert socket.pings == 1

    quiet(story)


def test_an_idle_connection_is_closed_though_its_peer_answers_pings():
    async def story(connection, socket):
        socket.heard = 899.0
        assert connection.look(899.0) == 900.0
        assert connection.look(900.0) is None
        assert (connection.closing.code, connection.closing.reason) == (1001, "idle: no frame from you for 900 s")

    quiet(story)


# --- the pool


def test_each_limit_holds_exactly_and_a_place_is_free_again_at_the_end():
    pool = ConnectionPool(PoolLimits(process=3, client=2, address=2))
    first, second, third = pool.admitted("a", "x"), pool.admitted("a", "y"), pool.admitted("b", "x")
    first.__enter__()
    second.__enter__()
    with pytest.raises(TooManyConnections, match="this client id has 2"):
        pool.admitted("a", "z").__enter__()
    third.__enter__()
    with pytest.raises(TooManyConnections, match="this instance has 3"):
        pool.admitted("c", "z").__enter__()
    second.__exit__(None, None, None)
    with pytest.raises(TooManyConnections, match="your network address has 2"):
        pool.admitted("c", "x").__enter__()
    with pool.admitted("c", "z"):
        assert len(pool) == 3
    for each in (first, third):
        each.__exit__(None, None, None)
    assert len(pool) == 0
    assert (pool._clients, pool._addresses) == ({}, {})


def test_a_draining_pool_admits_nobody_and_tells_when_it_is_empty():
    async def main():
        pool = ConnectionPool(PoolLimits(3, 3, 3))
        await pool.emptied()  # at once
        with pool.admitted("a", "x"):
            pool.draining = True
            with pytest.raises(ShuttingDown):
                pool.admitted("b", "y").__enter__()
            waiting = asyncio.create_task(pool.emptied())
            await asyncio.sleep(1)
            assert not waiting.done()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert waiting.done()

    loop.run(main())
