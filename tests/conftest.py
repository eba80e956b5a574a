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
    """Make an empty database and return its URL; it goes with the server. Few: each makes the server's end slower."""
    numbers = count(1)

    def new() -> str:
        name = f"test_{next(numbers)}"
        asyncio.run(_execute(stores.database_url, f"CREATE DATABASE {name}"))
        return urlunsplit(urlsplit(stores.database_url)._replace(path=f"/{name}"))

    return new


@pytest.fixture(scope="session")
def _shared_database_url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def database_url(_shared_database_url: str) -> str:
    """The URL of an empty database that no other test uses meanwhile."""
    asyncio.run(_execute(_shared_database_url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    return _shared_database_url


async def _execute(url: str, statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements)
    finally:
        await connection.close()
