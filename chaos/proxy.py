"""A TCP proxy on the loopback interface, as a load balancer stands before several instances of a service.

Each connection goes to the next target in turn that accepts; where none does, it is closed. What goes through is passed
on as it comes, an end as an end, and where one side breaks off the other is cut.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count

from chaos.processes import HOST

PIECE_BYTES_MAX = 65_536


class Proxy:
    """Passes connections on to `targets`.

    Parameters
    ----------
    targets : sequence of int
        Ports of the loopback interface.

    Attributes
    ----------
    port : int
        Where it listens.
    passed : list of int
        The target of every connection so far.
    """

    def __init__(self, targets: Sequence[int]) -> None:
        self.port = 0
        self.passed: list[int] = []
        self._targets = tuple(targets)
        self._turns = count()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on, to its end."""
        try:
            if (upstream := await self._connected()) is not None:
                await _joined((reader, writer), upstream)
        finally:
            writer.transport.abort()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        first = next(self._turns)
        for number in range(len(self._targets)):
            target = self._targets[(first + number) % len(self._targets)]
            with suppress(OSError):
                upstream = await asyncio.open_connection(HOST, target)
                self.passed.append(target)
                return upstream
        return None


Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _joined(one: Side, other: Side) -> None:
    """Pass bytes both ways until both sides have ended, or one broke off."""
    try:
        async with asyncio.TaskGroup() as passing:
            passing.create_task(_pass(one[0], other[1]))
            passing.create_task(_pass(other[0], one[1]))
    except* OSError:
        pass  # a side that broke off, as when its process was killed
    finally:
        other[1].transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(PIECE_BYTES_MAX):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def proxy(targets: Sequence[int]) -> AsyncIterator[Proxy]:
    """Run a proxy on a free port for as long as the context lasts."""
    running = Proxy(targets)
    server = await asyncio.start_server(running.serve, HOST, 0)
    running.port = server.sockets[0].getsockname()[1]
    try:
        yield running
    finally:
        server.close()
