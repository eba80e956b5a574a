"""Redis on the simulated network: fakeredis's commands and data behind the bytes of RESP.

    data = Data()
    with network.on("redis"):
        async with serving(data):
            ...

Unmodified clients connect, pipeline, subscribe, block and run Lua scripts; what expires does so in the world's time.
Data outlive the server: serve the same again for a Redis that kept what it had, new ones for one that lost it. Commands
take no time of their own: they are microseconds beside a network's latency.

The bytes are written here, not by fakeredis's own server: that one has threads, and no longer tells a simple string
from a bulk string, nor a push from an array. Source: the Redis serialization protocol specification, RESP2 and RESP3.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Disconnected

from sim.executors import LabMissing

try:
    import lupa  # noqa: F401  # without it fakeredis knows no EVAL
    from fakeredis import FakeServer
    from fakeredis._command_args_parsing import Float
    from fakeredis._core import Database
    from fakeredis._helpers import NoResponse, SimpleError, SimpleString
    from fakeredis._socket._async import AsyncFakeSocket
except ModuleNotFoundError as missing:
    raise LabMissing(str(missing.name)) from missing

PORT = 6379
VERSION = (7, 4)
READ_BYTES = 65_536
UNREAD_BYTES_MAX = 32 * 2**20
"""What a subscriber may leave unread before it is cut off: Redis's own ``client-output-buffer-limit pubsub``."""


UNORDERED = ("smembers", "sunion", "sinter", "sdiff")
"""Whose answers Redis gives in any order, and fakeredis in that of the process's string hashes."""


class _InOrder(dict[Any, None]):
    """A set that is iterated in the order things were added: fakeredis's own goes by their addresses."""

    add = dict.setdefault
    remove = dict.pop


class Data(FakeServer):
    """What one Redis holds: databases, scripts, and who subscribed to what. Make it in the world that it is for."""

    def __init__(self) -> None:
        super().__init__(version=VERSION)
        self.dbs = defaultdict(self._database)

    def _database(self) -> Database:
        database = Database(self.lock)
        database._change_callbacks = _InOrder()  # type: ignore[assignment]
        return database


@asynccontextmanager
async def serving(data: Data, *, port: int = PORT) -> AsyncIterator[asyncio.Server]:
    """Serve `data` in the body, on the host that the caller runs on (`Network.on`); close all connections afterwards.

    Raises
    ------
    OSError
        The port is taken.
    """
    handling: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        handling[task] = writer
        try:
            await _Connection(data, writer).serve(reader)
        finally:
            del handling[task]

    server = await asyncio.start_server(handle, port=port, limit=READ_BYTES)
    try:
        yield server
    finally:
        server.close()
        for writer in handling.values():
            hang_up = writer.transport.abort if writer.transport.get_write_buffer_size() else writer.close
            hang_up()
        if handling:
            await asyncio.wait(tuple(handling))


class _Reply(NamedTuple):
    """The answer to a command; what else is sent is a push."""

    value: Any


class _Connection(AsyncFakeSocket):
    """What one client is to the server: fakeredis parses and carries out, and what it answers is written at once."""

    def __init__(self, data: Data, writer: asyncio.StreamWriter) -> None:
        self._out = writer
        self._blocked_in: asyncio.Task[Any] | None = None
        super().__init__(data, 0, client_class=Redis)

    def __hash__(self) -> int:
        """Return the client's number: subscribers and watchers are kept in sets, and must be told in one order."""
        return int(self._client_info["id"])

    def __eq__(self, other: object) -> bool:
        return self is other

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer what comes until the client goes, says what is no RESP, or is killed."""
        try:
            while said := await reader.read(READ_BYTES):
                self.sendall(said)
        except SimpleError as error:
            self._out.write(encoded(error, resp3=False))
        except (OSError, Disconnected):
            pass  # the connection was reset, or another client killed this one
        finally:
            self._out.close()
            await self._unblocked()
            self.close()

    def put_response(self, message: Any) -> None:
        """Write an answer, or a push."""
        if self._out.is_closing():
            return
        is_push = isinstance(message, list)
        resp3 = self._client_info.protocol_version == 3
        said = encoded(message.value if isinstance(message, _Reply) else message, resp3=resp3)
        self._out.write(b">" + said[1:] if is_push and resp3 else said)
        if is_push and self._out.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._out.transport.abort()

    def resume(self) -> None:
        """Go on with what the client said while it was blocked."""
        if not self._out.is_closing():
            super().resume()

    def _run_command(self, func: Any, sig: Any, args: list[Any], from_script: bool) -> Any:
        result = super()._run_command(func, sig, args, from_script)
        return sorted(result) if sig.name in UNORDERED and isinstance(result, list) else result

    def _decode_result(self, result: Any) -> Any:
        return result if isinstance(result, NoResponse) else _Reply(result)

    async def _async_blocking(self, *waiting: Any) -> None:
        self._blocked_in = asyncio.current_task()
        try:
            await super()._async_blocking(*waiting)
        finally:
            self._blocked_in = None

    async def _unblocked(self) -> None:
        if self._blocked_in is not None:
            self._blocked_in.cancel()
            await asyncio.wait((self._blocked_in,))


def encoded(value: Any, *, resp3: bool) -> bytes:
    """Return what fakeredis answers as RESP3, or as RESP2, which has fewer types."""
    match value:
        case None:
            return b"_\r\n" if resp3 else b"$-1\r\n"
        case bool():
            return (b"#t\r\n" if value else b"#f\r\n") if resp3 else b":%d\r\n" % value
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%.17g\r\n" % value if resp3 else _bulk(Float.encode(value, False))
        case bytes():
            return _bulk(value)
        case str():
            return _bulk(value.encode())
        case SimpleString():
            return b"+%b\r\n" % value.value
        case SimpleError():
            return b"-%b\r\n" % value.value.encode()
        case dict():
            flat = [each for pair in value.items() for each in pair]
            return _aggregate(b"%%%d\r\n" % len(value) if resp3 else b"*%d\r\n" % len(flat), flat, resp3)
        case set() | frozenset():
            return _aggregate((b"~%d\r\n" if resp3 else b"*%d\r\n") % len(value), sorted(value), resp3)
        case list() | tuple():
            return _aggregate(b"*%d\r\n" % len(value), value, resp3)
    raise TypeError(f"a {type(value).__name__} cannot be said in RESP")


def _bulk(said: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(said), said)


def _aggregate(head: bytes, parts: list[Any] | tuple[Any, ...], resp3: bool) -> bytes:
    return head + b"".join([encoded(each, resp3=resp3) for each in parts])
