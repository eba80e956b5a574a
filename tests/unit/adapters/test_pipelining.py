"""Commands to Redis: what is said of one that cannot be had."""

import asyncio
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestra.adapters.pipelining import outcomes
from orchestra.errors import StoreUnavailable


def test_a_redis_that_is_away_is_a_store_to_a_client_and_itself_to_the_log(tmp_path: Path) -> None:
    async def story() -> None:
        redis = Redis.from_url(f"unix://{tmp_path}/none.sock")
        told = await outcomes(redis, [("GET", "a"), ("GET", "b")])
        await redis.aclose()
        assert [type(each) for each in told] == [StoreUnavailable] * 2
        for each in told:
            assert each.detail == "a store cannot be reached or does not answer in time: try again"
            assert isinstance(each.__cause__, RedisError)
            assert each.retry_after_seconds == 1

    asyncio.run(story())
