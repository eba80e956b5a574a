"""What everybody may know of the service's condition: its level, since when, and what that switches off."""

import asyncio
from typing import Any

from msgspec import Struct
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.gateway import apidoc
from orchestra.gateway.routes import add_route
from orchestra.gateway.wire import NO_STORE, json_response
from orchestra.ports import Clock
from orchestra.resilience.degradation import Degradation


class Status(Struct, frozen=True):
    """The service's condition.

    Parameters
    ----------
    level : str
        NORMAL, LIMITED, ESSENTIAL, EMERGENCY or MAINTENANCE; the last takes no new turns.
    since : float
        Unix time in seconds of the step into it.
    degraded : tuple of str
        Features that are switched off.
    """

    level: str
    since: float
    degraded: tuple[str, ...]


DOCUMENTED = (Status,)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the route to `app`."""
    add_route(app, status, "/status")


@apidoc.route(Status, "The level")
@openapi.summary("How much of itself does the service offer?")
async def status(request: Request) -> HTTPResponse:
    """Return the level."""
    service = request.app.ctx.service
    degradation: Degradation = await service.container.resolve(Degradation)
    described = degradation.describe()
    shown = Status(described.level, unix(described.since, service.ports.clock), described.disabled)
    return json_response(shown, NO_STORE)


def unix(at: float, clock: Clock) -> float:
    """Return the monotonic time `at` as Unix time in seconds, to the millisecond."""
    return round(clock.now() - (asyncio.get_running_loop().time() - at), 3)
