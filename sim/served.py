"""A Sanic application served on the simulated network: its own HTTP server, parser and timeouts, in virtual time.

What `sim.asgi` leaves out holds here, because Sanic's own protocol does it: REQUEST_TIMEOUT (408), RESPONSE_TIMEOUT
(503), KEEP_ALIVE_TIMEOUT, REQUEST_MAX_SIZE, the back pressure of a slow reader, a client that goes away, and WebSockets
with their pings, closes and limits. The life of the application is that of Sanic's runner (`sanic.server.runners`),
without its processes and signals. As Sanic keeps its rewritten methods on its classes, of two applications that are up
at once the last one started decides which signals they have (`sim.asgi`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sanic import Sanic
from sanic.models.server_types import Signal
from sanic.server import serve
from sanic.server.async_server import AsyncioServer
from sanic.server.protocols.http_protocol import HttpProtocol
from sanic.server.protocols.websocket_protocol import WebSocketProtocol

from sim.asgi import sanic_kept_apart, touching_up_originals

CLOSED_CHECK_S = 0.1  # as Sanic's runner looks


class _Connections(dict[Any, None]):
    """What Sanic keeps its connections in, in the order they came: its own set closes them in that of addresses."""

    def add(self, connection: Any) -> None:
        self[connection] = None

    def discard(self, connection: Any) -> None:
        self.pop(connection, None)


@asynccontextmanager
async def serving(
    app: Sanic[Any, Any], host: str | None = None, port: int = 80, *, protocol: type[HttpProtocol] | None = None
) -> AsyncIterator[AsyncioServer]:
    """Serve `app` in the body, on the host that the caller runs on (`Network.on`); stop it gracefully afterwards.

    Parameters
    ----------
    app
        Made in this world; its name is free again afterwards.
    host
        What to bind; all addresses of the host if left out.
    port
        What to listen on.
    protocol
        Sanic's own (with WebSockets, where the application has some) if left out.

    Raises
    ------
    OSError
        The port is taken.
    Exception
        What a start listener raised.
    """
    connections = _Connections()
    signal = Signal()
    if protocol is None:
        protocol = WebSocketProtocol if app.websocket_enabled else HttpProtocol
    app.state.host, app.state.port = host or "", port
    with sanic_kept_apart(app):
        server: Any = serve(
            host,
            port,
            app,
            loop=asyncio.get_running_loop(),
            protocol=protocol,
            run_async=True,
            connections=connections,
            signal=signal,
        )
        with touching_up_originals(app):
            await _started(server)
        try:
            yield server
        finally:
            await _stopped(server, signal)


async def _started(server: Any) -> None:
    try:
        await server.startup()
        await server.before_start()
    except BaseException:
        server.serve_coro.close()  # it would tell that nobody awaited it
        raise
    try:
        server.server = await server.serve_coro
    except OSError:
        await server.after_stop()
        raise
    await server.after_start()
    server.app.set_serving(True)


async def _stopped(server: Any, signal: Signal) -> None:
    """Stop as Sanic's runner does: idle connections first, busy ones after a while, then by force."""
    app, connections = server.app, server.connections
    await server.before_stop()
    server.server.close()
    signal.stopped = True
    for connection in list(connections):
        connection.close_if_idle()
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + app.config.GRACEFUL_SHUTDOWN_TIMEOUT
    while connections and loop.time() < ends_at:  # noqa: ASYNC110  # Sanic tells nobody when the last is closed
        await asyncio.sleep(CLOSED_CHECK_S)
    for task in list(app.tasks):
        task.cancel()
    for connection in list(connections):
        if getattr(connection, "websocket", None):
            connection.websocket.fail_connection(code=1001)
        else:
            connection.abort()
    await server.server.wait_closed()
    app.set_serving(False)
    await server.after_stop()
