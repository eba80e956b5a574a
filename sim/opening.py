"""One orchestra, wired and opened at one of its doors, and disposed of afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from sanic import Sanic

from orchestra import compose
from orchestra.config import Settings
from orchestra.errors import OrchestraError
from orchestra.gateway.app import Service, create_app
from orchestra.ports import Ports
from orchestra.resilience.monitor import HealthMonitor
from sim import asgi
from sim.doors import Door, DoorName, ServiceDoor, orchestrator_door

APP_NAME = "rehearsed"
READINESS_PATH = "/readyz"


class Opened(NamedTuple):
    """An orchestra that takes turns: where they come in, and what tells whether it is ready for them."""

    door: Door
    ready: Callable[[], Awaitable[bool]]


@asynccontextmanager
async def opened(
    ports: Ports, settings: Settings, door: DoorName, left_behind: list[str], app_name: str = APP_NAME
) -> AsyncIterator[Opened]:
    """Wire an orchestra on `ports`, and dispose of it afterwards; what fails then is added to `left_behind`.

    Parameters
    ----------
    app_name : str
        Of the Sanic app, where clients come in at the service: of those that are up at once, each needs its own.
    """
    container = compose.build(ports, settings)
    try:
        if door == "orchestrator":
            await container.resolve(HealthMonitor)  # which the app does at its start
            yield Opened(orchestrator_door(container), lambda: _answer(ports))
        else:
            async with _serving(app_name, settings, Service(container, ports, metrics_page=bytes)) as orchestra:
                yield orchestra
    finally:
        try:
            await container.dispose()
        except ExceptionGroup as failures:
            left_behind.extend(f"container: {each!r}" for each in failures.exceptions)


async def _answer(ports: Ports) -> bool:
    """Return whether every store answers, which is what the gateway's readiness is."""
    try:
        await asyncio.gather(*(ping() for ping in ports.pings.values()))
    except OrchestraError:
        return False
    return True


@asynccontextmanager
async def _serving(name: str, settings: Settings, service: Service) -> AsyncIterator[Opened]:
    """Start the whole app on `service`, and stop it afterwards."""

    @asynccontextmanager
    async def opener() -> AsyncIterator[Service]:
        yield service

    async def ready() -> bool:
        response = await asgi.call(app, "GET", READINESS_PATH)
        return response.status == 200

    Sanic.test_mode = True  # Sanic then rewrites its own methods anew for each app (see sim.asgi)
    app = create_app(name, settings, opener)
    async with asgi.lifespan(app):
        yield Opened(ServiceDoor(app), ready)
