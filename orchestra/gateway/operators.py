"""What operators see and order. Whoever has the setting `operator_key` is one; without the setting nobody is.

Every worker of every instance answers for itself: what it shows is its own, and an order counts there at once. The
others follow as soon as the fleet, which is told before the answer is given, can be asked.
"""

import hmac
from typing import Any, Literal

from msgspec import Struct, structs
from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.config import Settings
from orchestra.errors import Forbidden, InvalidRequest, NotFound, Unauthorized
from orchestra.gateway import apidoc
from orchestra.gateway.routes import add_route
from orchestra.gateway.status import unix
from orchestra.gateway.wire import NO_STORE, decoded, json_response
from orchestra.ports import Clock
from orchestra.resilience.monitor import HealthMonitor, Overview
from orchestra.resilience.orders import BREAKER, LEVEL

SHARED = "it counts here, and the other workers and instances follow within moments"
NOT_SHARED = "it counts here only for now: the other workers and instances are told as soon as Redis can be reached"


class LevelOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with the level, and why: hold it at `level`, or let it follow health again."""

    action: Literal["latch", "release"]
    reason: str
    level: Literal["NORMAL", "LIMITED", "ESSENTIAL", "EMERGENCY", "MAINTENANCE"] | None = None


class BreakerOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """What to do with a breaker, and why: reject all calls, let all through, only count, or begin anew by itself."""

    action: Literal["open", "disable", "observe", "reset"]
    reason: str


class Ordered(Struct, frozen=True):
    """An order that was carried out here.

    Parameters
    ----------
    target, action, reason : str
    shared : bool
        Whether the other workers and instances can know of it already.
    detail : str
        What that means.
    """

    target: str
    action: str
    reason: str
    shared: bool
    detail: str


DOCUMENTED = (Overview, LevelOrder, BreakerOrder, Ordered)


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the operators' routes to `app`."""
    add_route(app, overview, "/operator")
    add_route(app, order_level, "/operator/level", "POST")
    add_route(app, order_breaker, "/operator/breakers/<name:str>", "POST")


@apidoc.route(Overview, "What this worker knows; all times are Unix seconds", operator=True)
@openapi.summary("See the service's health, and why it is so")
@openapi.description(
    "Health as a whole and of each component, `why` with the points that each trouble takes, the level with its holds "
    "and last transitions, breakers, bulkheads, and the operators' standing orders."
)
async def overview(request: Request) -> HTTPResponse:
    """Return what the monitor sees."""
    monitor = await _operated(request)
    return json_response(_dated(monitor.describe(), request.app.ctx.service.ports.clock), NO_STORE)


@apidoc.route(Ordered, "Carried out", takes=LevelOrder, operator=True)
@openapi.summary("Latch or release the level")
async def order_level(request: Request) -> HTTPResponse:
    """Carry out an order for the level."""
    monitor = await _operated(request)
    order = decoded(request.body, request.headers.get("content-type"), LevelOrder)
    if order.action == "release":
        return await _carried_out(monitor, LEVEL, "release", order.reason)
    if order.level is None:
        raise InvalidRequest("there is no level to latch: send the one to hold, such as EMERGENCY", field="$.level")
    return await _carried_out(monitor, LEVEL, f"latch {order.level}", order.reason)


@apidoc.route(Ordered, "Carried out", takes=BreakerOrder, operator=True)
@openapi.summary("Set what a breaker does")
async def order_breaker(request: Request, name: str) -> HTTPResponse:
    """Carry out an order for the breaker `name`."""
    monitor = await _operated(request)
    names = [breaker.name for breaker in monitor.describe().breakers]
    if name not in names:
        raise NotFound(f"there is no such breaker: those that exist are {', '.join(names)}")
    order = decoded(request.body, request.headers.get("content-type"), BreakerOrder)
    return await _carried_out(monitor, BREAKER + name, order.action, order.reason)


async def _operated(request: Request) -> HealthMonitor:
    """Return what an operator works on, to an operator.

    Raises
    ------
    Forbidden
        Nobody may operate the service.
    Unauthorized
        The request does not have the operators' key.
    """
    container = request.app.ctx.service.container
    key = (await container.resolve(Settings)).operator_key
    if key is None:
        raise Forbidden(
            "nobody may operate this service: set operator_key (ORCHESTRA_OPERATOR_KEY), and start the service again"
        )
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    # bytes, for compare_digest takes no other text than ASCII; Sanic keeps what is no UTF-8 as surrogates
    given = token.strip().encode(errors="surrogateescape")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given, key.get_secret_value().encode()):
        raise Unauthorized("only operators may do this: send 'Authorization: Bearer' with the setting operator_key")
    monitor: HealthMonitor = await container.resolve(HealthMonitor)
    return monitor


async def _carried_out(monitor: HealthMonitor, target: str, action: str, reason: str) -> HTTPResponse:
    shared = await monitor.order(target, action, reason)
    return json_response(Ordered(target, action, reason, shared, SHARED if shared else NOT_SHARED), NO_STORE)


def _dated(seen: Overview, clock: Clock) -> Overview:
    """Return `seen` with wall times for the monotonic ones, which mean nothing outside of the process."""
    level = structs.replace(
        seen.level,
        since=unix(seen.level.since, clock),
        transitions=tuple(structs.replace(each, at=unix(each.at, clock)) for each in seen.level.transitions),
    )
    return structs.replace(seen, level=level)
