"""The live service: real adapters behind the app, served on a socket.

The process that serves owns the embedded stores, where no others are configured: it starts them before a worker
asks for them, and stops them when it ends, also on SIGTERM.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import partial

from orchestra import compose
from orchestra.adapters import embedded
from orchestra.adapters.embedding import HashingEmbedder
from orchestra.adapters.fleet import RedisFleet
from orchestra.adapters.offline import OfflineProvider
from orchestra.adapters.openai import OpenAIProvider
from orchestra.adapters.pgvector import PgvectorMemories
from orchestra.adapters.postgres import Postgres
from orchestra.adapters.redis import RedisSessions
from orchestra.adapters.relay import RedisRelay
from orchestra.adapters.system import SystemClock, SystemEntropy
from orchestra.config import Settings
from orchestra.gateway import workers
from orchestra.gateway.app import App, Service, create_app
from orchestra.ports import Clock, Ports, Provider
from orchestra.telemetry import telemetry

APP_NAME = "orchestra"
INSTANCE_BYTES = 8


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; everything that was started is stopped before this returns."""
    embedded.exit_on_sigterm()  # until a loop runs, which then has handlers of its own
    with workers.listening(settings.host, settings.port) as listener, _stores(settings) as complete:
        make_app = partial(live_app, complete)
        if settings.workers == 1:
            workers.run_one(make_app, listener)
        else:
            with closing(telemetry(complete, SystemClock())) as told:
                workers.run_many(
                    make_app,
                    listener,
                    settings.workers,
                    stop_seconds_max=settings.shutdown_seconds_max,
                    tell=told.hook,
                )


def live_app(settings: Settings) -> App:
    """Make the app on real adapters; every worker process calls this for itself."""
    return create_app(APP_NAME, settings, partial(live_service, settings))


@asynccontextmanager
async def live_service(settings: Settings) -> AsyncIterator[Service]:
    """Open everything the service stands on, in order, and close it in reverse.

    Parameters
    ----------
    settings : Settings
        With `redis_url` and `database_url` set.
    """
    clock, entropy = SystemClock(), SystemEntropy()
    async with AsyncExitStack() as stack:
        told = telemetry(settings, clock)
        stack.callback(told.close)
        postgres = await Postgres.connect(settings.database_url or "")
        stack.push_async_callback(postgres.close)
        sessions = RedisSessions(settings.redis_url or "", hook=told.hook)
        stack.push_async_callback(sessions.close)
        fleet = RedisFleet(settings.redis_url or "")
        stack.push_async_callback(fleet.aclose)
        relay = RedisRelay(settings.redis_url or "", instance=entropy.hex(INSTANCE_BYTES), hook=told.hook)
        stack.push_async_callback(relay.aclose)
        provider, alternate = await stack.enter_async_context(_providers(settings, clock))
        ports = Ports(
            clock=clock,
            entropy=entropy,
            sessions=sessions,
            conversations=postgres.conversations,
            memories=PgvectorMemories(postgres),
            embedder=HashingEmbedder(),
            provider=provider,
            hook=told.hook,
            fleet=fleet,
            relay=relay,
            alternate=alternate,
            offline=OfflineProvider(),
        )
        container = compose.build(ports, settings)
        stack.push_async_callback(container.dispose)
        yield Service(container, ports, told.metrics.render)


@asynccontextmanager
async def _providers(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Provider, Provider | None]]:
    """Open the provider and, where one is set, the alternate."""
    async with AsyncExitStack() as stack:
        opened: list[Provider | None] = []
        for which in ("provider", "alternate"):
            if (url := getattr(settings, f"{which}_url")) is None:
                opened.append(None)
                continue
            key = getattr(settings, f"{which}_key")
            attempt = (settings.guards.unified if which == "provider" else settings.guards.alternate).attempt
            provider = OpenAIProvider(
                base_url=url,
                key=key.get_secret_value() if key else "",
                model=getattr(settings, f"{which}_model"),
                timeout_seconds=attempt.total_seconds_max,
                first_token_seconds=attempt.first_seconds_max,
                connections_max=settings.provider_connections_max,
                clock=clock,
            )
            stack.push_async_callback(provider.aclose)
            opened.append(provider)
        yield opened[0] or OfflineProvider(), opened[1]


@contextmanager
def _stores(settings: Settings) -> Iterator[Settings]:
    """Yield settings in which both stores have a URL, with embedded ones running for as long as that lasts."""
    if settings.redis_url and settings.database_url:
        yield settings
        return
    running = embedded.start(settings.data_dir)
    try:
        yield settings.model_copy(
            update={
                "redis_url": settings.redis_url or running.redis_url,
                "database_url": settings.database_url or running.database_url,
            }
        )
    finally:
        running.stop()
