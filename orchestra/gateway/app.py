"""The Sanic app: routes, the way of every request through them, and when the orchestra behind it is up.

The same app serves sockets (`gateway.server`) and, through ASGI, a simulated world; what it runs on
comes in as `opener`.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import SimpleNamespace

from sanic import HTTPResponse, Request, Sanic, exceptions
from sanic.config import Config
from sanic.handlers import ErrorHandler
from sanic.response import BaseHTTPResponse, empty

from orchestra import limits
from orchestra.chat.handlers import ConnectionHandlers
from orchestra.config import Settings
from orchestra.container import DIContainer
from orchestra.errors import MethodNotAllowed
from orchestra.events import Lifecycle
from orchestra.gateway import (
    apidoc,
    asyncapi,
    export,
    http,
    openai,
    operators,
    probes,
    sessions,
    status,
    versions,
    web,
    websocket,
)
from orchestra.gateway.openai_errors import error_response
from orchestra.gateway.passage import error_of, identify, tell_finished
from orchestra.gateway.problems import problem_response
from orchestra.gateway.routes import allowed_methods
from orchestra.ports import Ports
from orchestra.resilience.monitor import HealthMonitor


@dataclass(frozen=True)
class Service:
    """What a running gateway stands on: the orchestra's container, its ports, and its metrics page."""

    container: DIContainer
    ports: Ports
    metrics_page: Callable[[], bytes]


DOORS = (http, openai, sessions, export, status, operators)
"""Where users and operators come in, as the OpenAPI document describes them."""

LEFT_SECONDS_MIN = 1.0
"""For connections to close after the last turn has ended, however late that was."""

App = Sanic[Config, SimpleNamespace]
Opener = Callable[[], AbstractAsyncContextManager[Service]]


def create_app(name: str, settings: Settings, opener: Opener) -> App:
    """Make the app.

    Parameters
    ----------
    name : str
        Unique in the process, as Sanic wants it.
    settings : Settings
    opener : callable
        Opens what the app stands on, within the app's own event loop: entered before the first request, left after the
        last one.
    """
    app: App = Sanic(name, error_handler=ProblemHandler(), configure_logging=False)
    _configure(app, settings)
    apidoc.describe(app, (model for each in DOORS for model in each.DOCUMENTED))
    for each in DOORS:
        each.add_routes(app)
    probes.add_routes(app)
    websocket.add_routes(app, settings.origins_allowed)
    asyncapi.add_routes(app)
    web.add_routes(app)
    _add_lifecycle(app, opener, settings.shutdown_seconds_max)
    app.register_middleware(_arrive, "request")
    app.register_middleware(_depart, "response")
    return app


def _configure(app: App, settings: Settings) -> None:
    app.config.update(
        ACCESS_LOG=False,  # RequestFinished tells more, through the one hook
        FALLBACK_ERROR_FORMAT="json",
        CORS=False,  # no other origin is allowed anything, which needs no header
        GRACEFUL_SHUTDOWN_TIMEOUT=settings.shutdown_seconds_max,
        HTTP_AUTO_HEAD=False,  # see `routes`
        HTTP_AUTO_OPTIONS=False,
        MOTD=False,
        OAS_UI_DEFAULT="swagger",
        REQUEST_MAX_SIZE=limits.REQUEST_BYTES_MAX,
        REQUEST_TIMEOUT=settings.request_seconds_max,
        RESPONSE_TIMEOUT=settings.turn_seconds_max + settings.store_seconds_max,  # the turn's own limit answers first
    )


def _add_lifecycle(app: App, opener: Opener, shutdown_seconds_max: float) -> None:
    async def start(app: App) -> None:
        app.ctx.opened = opener()
        app.ctx.service = await app.ctx.opened.__aenter__()
        await app.ctx.service.container.resolve(HealthMonitor)  # looks at health from now on, also without traffic
        _tell(app, "up")

    async def drain(app: App) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + shutdown_seconds_max
        handlers = await app.ctx.service.container.resolve(ConnectionHandlers)
        await handlers.drain(shutdown_seconds_max)
        # what Sanic then gives the connections that are left, so that both together stay within the bound
        app.config.GRACEFUL_SHUTDOWN_TIMEOUT = max(end - loop.time(), LEFT_SECONDS_MIN)

    async def stop(app: App) -> None:
        _tell(app, "down")
        await app.ctx.opened.__aexit__(None, None, None)

    app.register_listener(start, "before_server_start")
    app.register_listener(drain, "before_server_stop")
    app.register_listener(stop, "after_server_stop")


def _tell(app: App, state: str) -> None:
    app.ctx.service.ports.hook(Lifecycle(asyncio.get_running_loop().time(), "gateway", state))


async def _arrive(request: Request) -> None:
    identify(request)


async def _depart(request: Request, response: BaseHTTPResponse) -> None:
    """Return the ids, and tell the hook unless the answer has only begun."""
    identify(request)  # it has none where it was refused before it was routed
    response.headers["X-Request-ID"] = request.ctx.correlation_id
    response.headers["traceparent"] = request.ctx.trace.traceparent
    if versions.speaks_v1(request):
        response.headers.update(versions.DEPRECATION_HEADERS)
    if not request.ctx.streams:
        tell_finished(request, response.status)


class ProblemHandler(ErrorHandler):
    """Answers every error, ours and Sanic's: with a problem, but clients of OpenAI and of version 1 as they read it."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        """Answer `exception`."""
        identify(request)
        if not isinstance(exception, exceptions.MethodNotAllowed):
            return _answer(request, exception)
        allowed = allowed_methods(request)
        error = MethodNotAllowed(f"this path has no such method: use {allowed}")
        response = empty() if request.method == "OPTIONS" else _answer(request, error)
        response.headers["Allow"] = allowed  # RFC 9110, 15.5.6
        return response


def _answer(request: Request, exception: Exception) -> HTTPResponse:
    error = error_of(request, exception)
    if request.path.startswith(openai.PREFIX):
        return error_response(error)
    if versions.speaks_v1(request):
        return versions.error_response(request, error)
    return problem_response(error, request.ctx.correlation_id)
