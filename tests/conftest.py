"""What tests of several kinds share: a real PostgreSQL and Redis, and databases of their own in it."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from orchestra.adapters.embedded import EmbeddedStores, start


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStores]:
    """A private PostgreSQL and Redis for the whole test session: `stores.database_url` and `stores.redis_url`."""
    running = start(tmp_path_factory.mktemp("stores"))
    yield running
    running.stop()


@pytest.fixture
def own_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStores]:
    """A private PostgreSQL and Redis for one test, which may kill them and `start` them again on the same directory."""
    running = start(tmp_path_factory.mktemp("own_stores"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def new_database(stores: EmbeddedStores) -> Callable[[], str]:
    """Make an empty database and return its URL; it goes with the server."""
    numbers = count(1)

    async def create(name: str) -> None:
        connection = await asyncpg.connect(stores.database_url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()

    def new() -> str:
        name = f"test_{next(numbers)}"
        asyncio.run(create(name))
        return urlunsplit(urlsplit(stores.database_url)._replace(path=f"/{name}"))

    return new


@pytest.fixture
def database_url(new_database: Callable[[], str]) -> str:
    """The URL of an empty database of its own for one test."""
    return new_database()
