"""What tests of several kinds share: a real PostgreSQL and Redis, started once a test session, and fresh databases."""

import asyncio
from collections.abc import Iterator
from itertools import count
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from orchestra.adapters.embedded import EmbeddedStores, start

_databases = count(1)


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStores]:
    """A private PostgreSQL and Redis for this test session: `stores.database_url` and `stores.redis_url`."""
    running = start(tmp_path_factory.mktemp("stores"))
    yield running
    running.stop()


@pytest.fixture
def database_url(stores: EmbeddedStores) -> Iterator[str]:
    """The URL of an empty database of its own for one test."""
    name = f"test_{next(_databases)}"
    asyncio.run(_execute(stores.database_url, f"CREATE DATABASE {name}"))
    yield urlunsplit(urlsplit(stores.database_url)._replace(path=f"/{name}"))
    asyncio.run(_execute(stores.database_url, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
