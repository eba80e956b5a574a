"""A live service on real stores, shared by the tests that only talk to it."""

from collections.abc import Iterator

import pytest

from chaos.processes import LiveService, live_service
from orchestra.adapters.embedded import EmbeddedStores


@pytest.fixture(scope="session")
def service(stores: EmbeddedStores, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service on a free port that uses the stores of this test session, as a deployment names them."""
    environ = {"DATABASE_URL": stores.database_url, "REDIS_URL": stores.redis_url}
    with live_service(tmp_path_factory.mktemp("service"), environ) as running:
        yield running
