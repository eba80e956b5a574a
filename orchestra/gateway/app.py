"""The Sanic app: routes, the way of every request through them, and when the orchestra behind it is up.

The same app serves sockets (`gateway.server`) and, through ASGI, a simulated world; what it runs on
comes in as `opener`.
"""

import asyncio
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import SimpleNamespace

from sanic import HTTPResponse, Request, Sanic
from sanic.config import Config
from sanic.handlers import ErrorHandler
from sanic.response import BaseHTTPResponse

from orchestra import limits
from orchestra.config import Settings
from orchestra.container import DIContainer
from orchestra.errors import unforeseen
from orchestra.events import Lifecycle, RequestFinished, UnexpectedError
from orchestra.gateway import apidoc, http, probes
from orchestra.gateway.problems import problem_response, translated
from orchestra.gateway.tracing import correlation_id_of, trace_of
from orchestra.ports import Ports
from orchestra.telemetry import correlation


@dataclass(frozen=True)
class Service:
    """What a running gateway stands on: the orchestra's container, its ports, and its metrics page."""

    container: DIContainer
    ports: Ports
    metrics_page: Callable[[], bytes]


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
    apidoc.describe(app)
    http.add_routes(app)
    probes.add_routes(app)
    _add_lifecycle(app, opener)
    app.register_middleware(_arrive, "request")
    app.register_middleware(_depart, "response")
    return app


def _configure(app: App, settings: Settings) -> None:
    app.config.update(
        ACCESS_LOG=False,  # RequestFinished tells more, through the one hook
        FALLBACK_ERROR_FORMAT="json",
        GRACEFUL_SHUTDOWN_TIMEOUT=settings.shutdown_seconds_max,
        MOTD=False,
        OAS_UI_DEFAULT="swagger",
        REQUEST_MAX_SIZE=limits.REQUEST_BYTES_MAX,
        RESPONSE_TIMEOUT=settings.turn_seconds_max + settings.store_seconds_max,  # the turn's own limit answers first
    )


def _add_lifecycle(app: App, opener: Opener) -> None:
    async def start(app: App) -> None:
        app.ctx.opened = opener()
        app.ctx.service = await app.ctx.opened.__aenter__()
        _tell(app, "up")

    async def stop(app: App) -> None:
        _tell(app, "down")
        await app.ctx.opened.__aexit__(None, None, None)

    app.register_listener(start, "before_server_start")
    app.register_listener(stop, "after_server_stop")


def _tell(app: App, state: str) -> None:
    app.ctx.service.ports.hook(Lifecycle(asyncio.get_running_loop().time(), "gateway", state))


async def _arrive(request: Request) -> None:
    _identify(request)


def _identify(request: Request) -> None:
    """Give the request its ids, once: those of the caller where they are well formed, else new ones."""
    if hasattr(request.ctx, "trace"):
        return
    entropy = request.app.ctx.service.ports.entropy
    request.ctx.started = asyncio.get_running_loop().time()
    request.ctx.correlation_id = correlation_id_of(request.headers, entropy)
    correlation.set(request.ctx.correlation_id)  # for lines that libraries log
    request.ctx.trace = trace_of(request.headers, entropy)


async def _depart(request: Request, response: BaseHTTPResponse) -> None:
    """Return the ids, and tell the hook."""
    _identify(request)  # it has none where it was refused before it was routed
    response.headers["X-Request-ID"] = request.ctx.correlation_id
    response.headers["traceparent"] = request.ctx.trace.traceparent
    now = asyncio.get_running_loop().time()
    request.app.ctx.service.ports.hook(
        RequestFinished(
            at=now,
            correlation_id=request.ctx.correlation_id,
            method=request.method or "",
            route=f"/{request.route.path}" if request.route else "",
            status=response.status,
            seconds=now - request.ctx.started,
        )
    )


class ProblemHandler(ErrorHandler):
    """Answers every error, ours and Sanic's, with a problem; a defect goes to the hook with its traceback."""

    def default(self, request: Request, exception: Exception) -> HTTPResponse:
        """Answer `exception`."""
        service: Service = request.app.ctx.service
        _identify(request)
        error = translated(exception)
        if error is None:
            at = asyncio.get_running_loop().time()
            text = "".join(traceback.format_exception(exception))
            service.ports.hook(UnexpectedError(at, request.ctx.correlation_id, "gateway", text))
            error = unforeseen()
        return problem_response(error, request.ctx.correlation_id)
