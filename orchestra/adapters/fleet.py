"""The fleet's common knowledge in Redis: counted by one atomic script, timed by Redis' own clock.

A window is ten buckets of calls, as a breaker's own (Polly, failsafe-go): a call counts from its arrival for between
nine and ten tenths of the window, and never longer. Each breaker and window is one hash, which Redis forgets a window
after the last call. Instances need no common clock, since only Redis' decides; where that is set, calls from up to a
window ahead still count, and all is well two windows later.

Nothing is sent twice: a `share` whose reply is lost may have been counted, so its calls are told at most once.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orchestra.adapters.storing import WINDOW_BUCKETS, unavailable
from orchestra.errors import ConfigurationError, StoreUnavailable
from orchestra.model import Tally

# A bucket is three fields, `<number>:<1 calls, 2 failures, 3 slow>`. Redis replicates the writes and not the script
# (always since 7, by default since 5), so that the script may ask for the time. A window of 1 ms still has exact
# numbers: they are doubles below 2^53.
_SHARE = f"""
local time = redis.call('TIME')
local window = tonumber(ARGV[1])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local bucket = math.floor(now * {WINDOW_BUCKETS} / window)
local seen = {{}}
for n, key in ipairs(KEYS) do
  for kind = 1, 3 do
    local count = ARGV[n * 3 - 2 + kind]
    if count ~= '0' then
      redis.call('HINCRBY', key, string.format('%.0f:%d', bucket, kind), count)
      redis.call('PEXPIRE', key, window)
    end
  end
  local fields, sums = redis.call('HGETALL', key), {{0, 0, 0}}
  for i = 1, #fields, 2 do
    local at, kind = fields[i]:match('^(%d+):(%d)$')
    if math.abs(bucket - at) < {WINDOW_BUCKETS} then
      sums[tonumber(kind)] = sums[tonumber(kind)] + fields[i + 1]
    else
      redis.call('HDEL', key, fields[i])
    end
  end
  seen[n] = sums
end
return seen
"""

# The braces keep all keys, which one script takes, in one slot of a Redis Cluster.
_CALLS = "orchestra:{fleet}:calls"
_ORDERS = "orchestra:{fleet}:orders"


class RedisFleet:
    """What the instances that use one Redis database know together.

    It has a connection of its own: what hangs here holds up no session, and a command that was given up is not read
    by the next.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it. Connects with the first command.
    seconds_max : float
        How long any call may take, above 0; then it is `StoreUnavailable`, whatever Redis does.

    Raises
    ------
    ConfigurationError
        The URL is not one.
    """

    def __init__(self, url: str, *, seconds_max: float = 1.0) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                # One: who comes meanwhile waits for it. A new connection is greeted before it is used, so that a
                # Redis that hangs has at most one share in its inbox, and wakes up to no flood of old calls.
                max_connections=1,
                timeout=seconds_max,
                socket_connect_timeout=seconds_max,
                socket_timeout=seconds_max,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ConfigurationError(f"it is not the address of a Redis: {error}", field="redis_url") from error
        self._redis: Redis = Redis.from_pool(pool)
        self._seconds_max = seconds_max
        self._closed = False

    async def share(self, tallies: Mapping[str, Tally], *, window_seconds: float) -> dict[str, Tally]:
        """Add this instance's new calls to the fleet's, and return what all instances saw in the last `window_seconds`.

        Raises
        ------
        StoreUnavailable
            The calls may or may not have been added: do not tell them again.
        """
        if not tallies:
            return {}
        window = max(1, round(window_seconds * 1000))
        keys = [f"{_CALLS}:{window}:{name}" for name in tallies]
        counts = [count for tally in tallies.values() for count in (tally.calls, tally.failures, tally.slow)]
        seen = await self._command("EVAL", _SHARE, len(keys), *keys, window, *counts)
        return {name: Tally(*sums) for name, sums in zip(tallies, seen, strict=True)}

    async def orders(self) -> dict[str, str]:
        """Return the operators' standing orders, by target.

        Raises
        ------
        StoreUnavailable
        """
        standing: dict[bytes, bytes] = await self._command("HGETALL", _ORDERS)
        return {_text(target): _text(order) for target, order in standing.items()}

    async def order(self, target: str, order: str | None) -> None:
        """Let `order` stand for `target`, or none any more.

        Raises
        ------
        StoreUnavailable
            The order may or may not stand: give it again, which does no harm.
        """
        if order is None:
            await self._command("HDEL", _ORDERS, target)
        else:
            await self._command("HSET", _ORDERS, target, order)

    async def aclose(self) -> None:
        """Close the connection; what is asked later is refused."""
        self._closed = True
        await self._redis.aclose()

    async def _command(self, *words: str | int) -> Any:
        if self._closed:
            raise StoreUnavailable("the connection to Redis is closed: the service is shutting down")
        try:
            async with asyncio.timeout(self._seconds_max):
                return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise unavailable(error) from error


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
