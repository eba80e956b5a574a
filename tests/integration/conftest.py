"""A live service on real stores, shared by the tests that only talk to it."""

import asyncio
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores


@pytest.fixture(scope="session")
def service(stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service on a free port that uses the stores of this test session, as a deployment names them."""
    environ = {"DATABASE_URL": stores.database_url, "REDIS_URL": stores.redis_url}
    with live_service(tmp_path_factory.mktemp("service"), environ) as running:
        yield running


@pytest.fixture
def redis_url(stores: EmbeddedStores) -> str:
    """The URL of an empty Redis database that no other test uses meanwhile."""
    url = f"{stores.redis_url}{'&' if '?' in stores.redis_url else '?'}db=14"

    async def empty() -> None:
        async with Redis.from_url(url) as redis:
            await redis.flushdb()

    asyncio.run(empty())
    return url
