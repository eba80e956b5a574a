"""The proxy that stands before several instances."""

import asyncio
from contextlib import asynccontextmanager, suppress

from chaos.processes import HOST, free_port
from chaos.proxy import proxy


@asynccontextmanager
async def echo(name: bytes, *, breaks_off: bool = False):
    """A server that says its name, and then what it hears until that ends."""

    async def serve(reader, writer):
        writer.write(name)
        if breaks_off:
            await reader.read(1)
            writer.transport.abort()
        writer.write(await reader.read())
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def visit(port: int, said: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(said)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()


def test_connections_go_to_each_target_in_turn_and_all_bytes_both_ways():
    async def main():
        async with echo(b"a") as one, echo(b"b") as two, proxy([one, two]) as running:
            said = b"x" * 1_000_000
            heard = [await visit(running.port, said) for _ in range(3)]
            assert heard == [name + said for name in (b"a", b"b", b"a")]
            assert running.passed == [one, two, one]

    asyncio.run(main())


def test_a_target_that_does_not_accept_is_passed_over_and_without_any_the_connection_ends():
    async def main():
        nobody = free_port()
        async with echo(b"b") as two, proxy([nobody, two]) as running, proxy([nobody]) as alone:
            assert [await visit(running.port, b"") for _ in range(2)] == [b"b", b"b"]
            with suppress(ConnectionResetError):
                assert await visit(alone.port, b"") == b""

    asyncio.run(main())


def test_where_one_side_breaks_off_the_other_is_cut():
    async def main():
        async with echo(b"a", breaks_off=True) as one, proxy([one]) as running:
            reader, writer = await asyncio.open_connection(HOST, running.port)
            assert await reader.read(1) == b"a"
            writer.write(b"!")
            with suppress(ConnectionResetError):
                assert await reader.read() == b""  # and does not hang
            writer.close()

    asyncio.run(main())
