"""What machines ask the service: alive, ready, metrics."""

import asyncio
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.chat.stores import StoreCalls
from orchestra.errors import OrchestraError, StoreUnavailable
from orchestra.gateway.routes import add_route
from orchestra.gateway.wire import json_response


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the probes to `app`."""
    add_route(app, livez, "/livez")
    add_route(app, readyz, "/readyz")
    add_route(app, metrics, "/metrics")


@openapi.summary("Is the process alive?")
async def livez(_request: Request) -> HTTPResponse:
    """Answer 200 as long as the process can answer at all; stores play no part, a restart would not mend them."""
    return json_response({"status": "alive"})


@openapi.summary("Can the service take turns?")
async def readyz(request: Request) -> HTTPResponse:
    """Answer 200 where every store answers, else 503 with what is missing."""
    service = request.app.ctx.service
    calls: StoreCalls = await service.container.resolve(StoreCalls)
    pings = service.ports.pings
    answers = await asyncio.gather(
        *(calls(name, request.ctx.correlation_id, ping()) for name, ping in pings.items()), return_exceptions=True
    )
    down = [name for name, answer in zip(pings, answers, strict=True) if isinstance(answer, OrchestraError)]
    for answer in answers:
        if answer is not None and not isinstance(answer, OrchestraError):
            raise answer
    if down:
        raise StoreUnavailable(f"no answer from the store of {' and '.join(down)}: see the log", retry_after_seconds=1)
    return json_response({"status": "ready", "stores": dict.fromkeys(pings, "up")})


@openapi.summary("Metrics in the Prometheus text format")
async def metrics(request: Request) -> HTTPResponse:
    """Return the metrics of this worker."""
    return HTTPResponse(request.app.ctx.service.metrics_page(), content_type=CONTENT_TYPE_LATEST)
