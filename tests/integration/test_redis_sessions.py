"""Sessions on a real Redis that restarts, hangs, loses replies and holds records that nobody can read."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from random import Random

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from orchestra import limits
from orchestra.adapters import pipelining
from orchestra.adapters import redis as adapter
from orchestra.adapters.embedded import start
from orchestra.adapters.pipelining import REFUSED_RETRY_SECONDS
from orchestra.adapters.redis import RedisSessions
from orchestra.errors import ConfigurationError, StaleSession, StoreUnavailable
from orchestra.events import UnexpectedError
from orchestra.model import Message, Session

FIRST = Session("s1", "user:ada", 1, 1.0, 2.0, (Message("user", "Hello"), Message("assistant", "Hi")))
SECOND = Session("s1", "user:ada", 2, 1.0, 3.0, (Message("user", "More"), Message("assistant", "Yes")))
KEY = "orchestra:session:{s1}"


@contextlib.asynccontextmanager
async def connected(url, hook=lambda event: None):
    sessions = RedisSessions(url, hook)
    try:
        yield sessions
    finally:
        await sessions.close()


def test_a_record_lives_as_long_as_a_session_may(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            await sessions.save(FIRST, expected=None)
            assert limits.SESSION_TTL_SECONDS - 60 < await redis.ttl(KEY) <= limits.SESSION_TTL_SECONDS
            await redis.expire(KEY, 100)
            await sessions.save(SECOND, expected=FIRST)
            assert await redis.ttl(KEY) > limits.SESSION_TTL_SECONDS - 60

    asyncio.run(scenario())


# Written by the version before schema 2, of a session of two turns.
SCHEMA_1 = bytes.fromhex(
    "01000000000000000286a26964a27331a56f776e6572a8757365723a616461a776657273696f6e02aa637265617465645f6174cb3ff0000000"
    "000000aa757064617465645f6174cb4008000000000000a86d657373616765739482a4726f6c65a475736572a7636f6e74656e74a848656c6c"
    "6f20c3a982a4726f6c65a9617373697374616e74a7636f6e74656e74a2486982a4726f6c65a475736572a7636f6e74656e74a44d6f726582a4"
    "726f6c65a9617373697374616e74a7636f6e74656e74a3596573"
)


def record(session: Session, **changes) -> bytes:
    """A record of `session`, whose wire form is changed."""
    whole = adapter._record(session)
    wire = msgspec.msgpack.decode(whole[17:], type=adapter._Wire)
    return whole[:17] + msgspec.msgpack.encode(msgspec.structs.replace(wire, **changes))


UNREADABLE = {
    "empty": b"",
    "one byte": b"\x02",
    "head only": adapter._record(FIRST)[:17],
    "truncated": adapter._record(FIRST)[:-1],
    "half": adapter._record(FIRST)[:40],
    "longer": adapter._record(FIRST) + b"\x00",
    "no array": adapter._record(FIRST)[:17] + b"\x80",
    "unknown schema": b"\xff" + adapter._record(FIRST)[1:],
    "another session's": adapter._record(msgspec.structs.replace(FIRST, id="s2")),
    "another version in its head": record(FIRST, version=2),
    "another revision in its head": record(FIRST, revision=1),
    "negative version": record(FIRST, version=-1),
    "a role less": record(FIRST, roles="u"),
    "unknown role": record(FIRST, roles="ux"),
    "wrong types": adapter._record(FIRST)[:17] + msgspec.msgpack.encode(["s1", 2, 1, 0, 1.0, 2.0, 0, [], "", [], []]),
    "deep": adapter._record(FIRST)[:17] + b"\x9c" * 100_000,
    "no UTF-8": adapter._record(FIRST).replace(b"Hello", b"\xff\xfe\xfd\xfc\xfb"),
    "random": bytes(Random(7).randbytes(500)),
    "JSON": b'{"id": "s1"}',
    "schema 1, head only": b"\x01" + (1).to_bytes(8),
    "schema 1, truncated": SCHEMA_1[:-1],
    "schema 1, another version": SCHEMA_1[:8] + b"\x03" + SCHEMA_1[9:],
    "schema 1, negative version": b"\x01" + SCHEMA_1[1:].replace(b"version\x02", b"version\xff"),
}


@pytest.mark.parametrize("record", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_record_is_set_aside_and_reported(redis_url, record):
    async def scenario():
        events = []
        async with connected(redis_url, events.append) as sessions, Redis.from_url(redis_url) as redis:
            await redis.set(KEY, record)  # which no one lets go with time
            assert await sessions.load("s1") is None
            assert await redis.get(KEY) is None
            assert await redis.get(f"{KEY}:corrupt") == record
            assert limits.SESSION_TTL_SECONDS - 60 < await redis.ttl(f"{KEY}:corrupt") <= limits.SESSION_TTL_SECONDS
            [event] = events
            assert isinstance(event, UnexpectedError)
            assert "session s1 cannot be read" in event.traceback
            assert await sessions.load("s1") is None
            assert len(events) == 1
            await sessions.save(FIRST, expected=None)
            assert await sessions.load("s1") == FIRST

    asyncio.run(scenario())


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_are_read_but_as_a_session_or_an_error(noise, at):
    """What may stand in Redis: anything, also in the middle of a good record."""
    good = adapter._record(SECOND)
    for bytes_ in (noise, good[:at] + noise, good[:at] + noise + good[at:], b"\x02" + noise, b"\x01" + noise):
        with contextlib.suppress(ValueError, RecursionError):
            assert isinstance(adapter._session(bytes_, "s1"), Session)


def test_a_record_that_a_newer_writer_adds_fields_to_is_read(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            whole = adapter._record(FIRST)
            newer = [*msgspec.msgpack.decode(whole[17:]), {"mood": "sunny"}]
            await redis.set(KEY, whole[:17] + msgspec.msgpack.encode(newer))
            assert await sessions.load("s1") == FIRST
            await sessions.save(SECOND, expected=FIRST)

    asyncio.run(scenario())


def test_a_record_of_schema_1_is_read_and_replaced(redis_url):
    messages = (
        Message("user", "Hello é"),
        Message("assistant", "Hi"),
        Message("user", "More"),
        Message("assistant", "Yes"),
    )
    old = Session("s1", "user:ada", 2, 1.0, 3.0, messages)

    async def scenario():
        events = []
        async with connected(redis_url, events.append) as sessions, Redis.from_url(redis_url) as redis:
            await redis.set(KEY, SCHEMA_1)
            assert await sessions.load("s1") == old
            for expected in (FIRST, None, msgspec.structs.replace(old, revision=1)):
                with pytest.raises(StaleSession):
                    await sessions.save(SECOND, expected=expected)
            assert await redis.get(KEY) == SCHEMA_1
            third = msgspec.structs.replace(old, version=3)
            await sessions.save(third, expected=old)
            assert (await redis.get(KEY))[0] == adapter.SCHEMA == 2
            assert await sessions.load("s1") == third
            assert events == []

    asyncio.run(scenario())


def test_a_record_is_compact():
    """100 messages of 100 characters: what is not text takes 5 bytes a message, 30 in schema 1."""
    messages = tuple(Message(role, "x" * 100, turn) for turn in range(1, 51) for role in ("user", "assistant"))
    session = Session("s" * 32, "user:ada", 50, 1.0, 2.0, messages)
    assert len(adapter._record(session)) <= 10_000 + 5 * 100
    assert len(msgspec.msgpack.encode(session)) >= 10_000 + 30 * 100


def test_what_is_left_of_a_deleted_session_is_a_mark_that_goes_after_a_day(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            await redis.set(KEY, b"corrupt")
            assert await sessions.load("s1") is None
            await sessions.save(FIRST, expected=None)
            await sessions.delete("s1")
            assert await redis.keys() == [KEY.encode()]
            assert await redis.get(KEY) == b"\0"
            assert limits.SESSION_TTL_SECONDS - 60 < await redis.ttl(KEY) <= limits.SESSION_TTL_SECONDS

    asyncio.run(scenario())


def test_concurrent_requests_share_round_trips(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            many = [msgspec.structs.replace(FIRST, id=f"s{n}") for n in range(250)]
            await asyncio.gather(*(sessions.save(each, expected=None) for each in many))
            assert list(await asyncio.gather(*(sessions.load(each.id) for each in many))) == many
            assert sessions.commands.batches == 6  # of 100 commands at most
            clients = [client for client in await redis.client_list() if client["db"] == "14"]
            assert len(clients) == 2  # this test's and the store's

    asyncio.run(scenario())


def test_one_command_that_fails_fails_alone(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            await redis.rpush("a-list", "no record")
            outcomes = await asyncio.gather(
                sessions.save(FIRST, expected=None),
                sessions.commands.submit(("GET", "a-list")),
                sessions.load("none"),
                return_exceptions=True,
            )
            assert outcomes[::2] == [None, None]
            assert isinstance(outcomes[1], StoreUnavailable)
            assert "WRONGTYPE" in str(outcomes[1].__cause__)

    asyncio.run(scenario())


@pytest.mark.parametrize("read_first", [True, False])
def test_a_key_of_another_type_is_set_aside_for_a_day_and_reported(redis_url, read_first):
    async def scenario():
        events = []
        async with connected(redis_url, events.append) as sessions, Redis.from_url(redis_url) as redis:
            await redis.rpush(KEY, "no record")
            if read_first:
                assert await sessions.load("s1") is None
            else:
                with pytest.raises(StaleSession):
                    await sessions.save(FIRST, expected=None)
            assert await redis.lrange(f"{KEY}:corrupt", 0, -1) == [b"no record"]
            assert limits.SESSION_TTL_SECONDS - 60 < await redis.ttl(f"{KEY}:corrupt") <= limits.SESSION_TTL_SECONDS
            [event] = events
            assert "session s1 cannot be read" in event.traceback
            await sessions.save(FIRST, expected=None)
            assert await sessions.load("s1") == FIRST
            assert len(events) == 1

    asyncio.run(scenario())


def test_what_redis_refuses_is_told_as_a_refusal(redis_url):
    async def scenario():
        async with Redis.from_url(redis_url) as redis:
            await redis.execute_command(
                "ACL", "SETUSER", "reader", "on", ">secret", "~*", "+get", "+select", "+client", "+hello", "+auth"
            )
            try:
                for password, calls, code in (
                    ("secret", ("save",), "NOPERM"),
                    ("wrong", ("save", "load"), "WRONGPASS"),
                ):
                    path, _, query = redis_url.partition("?")
                    url = f"{path.replace('unix://', f'unix://reader:{password}@')}?{query}"
                    async with connected(url) as sessions:
                        for call in calls:
                            with pytest.raises(StoreUnavailable, match=f"refuses the command .{code}") as refusal:
                                await (sessions.load("s1") if call == "load" else sessions.save(FIRST, expected=None))
                            assert "cannot be reached" not in refusal.value.detail
                            assert refusal.value.retry_after_seconds == REFUSED_RETRY_SECONDS
            finally:
                await redis.execute_command("ACL", "DELUSER", "reader")

    asyncio.run(scenario())


def test_a_restart_is_not_noticed_and_loses_nothing(own_stores):
    async def scenario():
        async with connected(own_stores.redis_url) as sessions:
            await sessions.save(FIRST, expected=None)
            redis_server = server(own_stores.data_dir)
            os.kill(redis_server.pid, signal.SIGKILL)
            await asyncio.to_thread(psutil.wait_procs, [redis_server], timeout=10)
            for call in (sessions.load("s1"), sessions.save(SECOND, expected=FIRST), sessions.ping()):
                with pytest.raises(StoreUnavailable) as outage:
                    await call
                assert outage.value.__cause__ is not None
            again = await asyncio.to_thread(start, own_stores.data_dir)
            try:
                assert await sessions.load("s1") == FIRST
                await sessions.save(SECOND, expected=FIRST)
                await sessions.ping()
            finally:
                await asyncio.to_thread(again.stop)

    asyncio.run(scenario())


def test_connections_that_were_cut_are_replaced_unnoticed(redis_url):
    async def scenario():
        async with connected(redis_url) as sessions, Redis.from_url(redis_url) as redis:
            stored = None
            for version in range(10):
                await redis.client_kill_filter(_type="normal", skipme=True)
                session = msgspec.structs.replace(FIRST, version=version)
                await sessions.save(session, expected=stored)
                stored = session
                assert await sessions.load("s1") == session

    asyncio.run(scenario())


def test_a_server_that_hangs_makes_nobody_hang(own_stores, monkeypatch):
    monkeypatch.setattr(pipelining, "REPLY_SECONDS", 0.2)
    monkeypatch.setattr(adapter, "PING_SECONDS", 0.1)

    async def scenario():
        async with connected(own_stores.redis_url) as sessions:
            await sessions.save(FIRST, expected=None)
            hung = server(own_stores.data_dir)
            hung.suspend()
            try:
                with pytest.raises(StoreUnavailable):
                    await sessions.ping()
                with pytest.raises(StoreUnavailable):
                    await sessions.load("s1")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await sessions.load("s1")
            finally:
                hung.resume()
            assert await sessions.load("s1") == FIRST

    asyncio.run(scenario())


class LossyLine:
    """A socket in front of Redis that, when told, cuts the connection in place of the next reply."""

    def __init__(self, socket_path: str, redis_path: str) -> None:
        self.url = f"unix://{socket_path}?db=14"
        self.cuts = 0
        self.replies_lost = 0
        self._socket_path = socket_path
        self._redis_path = redis_path

    async def __aenter__(self):
        self._server = await asyncio.start_unix_server(self._serve, self._socket_path)
        return self

    async def __aexit__(self, *exc_info):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader, writer):
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._redis_path)

        async def forward():
            while data := await reader.read(65536):
                redis_writer.write(data)
            redis_writer.close()

        forwarding = asyncio.create_task(forward())
        while data := await redis_reader.read(65536):
            if self.cuts:
                self.cuts -= 1
                self.replies_lost += 1
                break
            writer.write(data)
        forwarding.cancel()
        redis_writer.close()
        writer.close()


def test_a_save_whose_reply_was_lost_succeeds_once(redis_url, tmp_path):
    redis_path = redis_url.removeprefix("unix://").partition("?")[0]

    async def scenario():
        async with LossyLine(str(tmp_path / "lossy"), redis_path) as line, connected(line.url) as sessions:
            await sessions.save(FIRST, expected=None)
            line.cuts = 1
            await sessions.save(SECOND, expected=FIRST)
            assert line.replies_lost == 1
            assert await sessions.load("s1") == SECOND
            with pytest.raises(StaleSession):
                await sessions.save(FIRST, expected=FIRST)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["", "nonsense", "http://localhost", "redis://localhost:port"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigurationError) as refusal:
        RedisSessions(url, hook=lambda event: None)
    assert refusal.value.field == "redis_url"


def test_a_closed_store_refuses(redis_url):
    async def scenario():
        sessions = RedisSessions(redis_url, hook=lambda event: None)
        await sessions.ping()
        await sessions.close()
        with pytest.raises(StoreUnavailable):
            await sessions.load("s1")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def server(data_dir: Path) -> psutil.Process:
    [pid_file] = (data_dir / "redis").glob("*.pid")
    return psutil.Process(int(pid_file.read_text()))
