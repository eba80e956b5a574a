"""Commands to one Redis that share round trips: how they are sent, and what became of each.

One round trip carries all that is asked while the one before it is under way (`batching`).
"""

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from orchestra.adapters.storing import unavailable
from orchestra.errors import ConfigurationError, StoreUnavailable

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 2.0
BATCH_COMMANDS_MAX = 100
WAITING_COMMANDS_MAX = 10_000
REFUSED_RETRY_SECONDS = 10.0

Command = tuple[str | bytes | int, ...]


class WrongType(StoreUnavailable):
    """The key holds another type than records are."""


def connection(url: str) -> Redis:
    """Return the way to the Redis at `url`, which connects with the first command.

    Raises
    ------
    ConfigurationError
        The URL is not one.
    """
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=REPLY_SECONDS,
            max_connections=2,
            # Once more, on a new connection, where the old one turns out to be dead: Redis was restarted. So every
            # command may be sent twice. A timeout is not tried again: Redis is there, and in trouble.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
    except ValueError as error:
        raise ConfigurationError(f"it is not the address of a Redis: {error}", field="redis_url") from error


async def outcomes(redis: Redis, commands: Sequence[Command]) -> Sequence[Any]:
    """Send `commands` in one round trip, and return the reply to each, or the `StoreUnavailable` that it met."""
    try:
        pipeline = redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies = await pipeline.execute(raise_on_error=False)
    except (RedisError, OSError, TimeoutError) as error:
        return [failure(error) for _ in commands]
    return [failure(reply) if isinstance(reply, Exception) else reply for reply in replies]


def failure(reply: Exception) -> StoreUnavailable:
    """Say what Redis answered a command with: it is there, and refuses, unless the connection was lost."""
    if isinstance(reply.__context__, AuthenticationError):  # at connecting, redis-py tells of a connection only
        reply = reply.__context__
    if not isinstance(reply, ResponseError | AuthenticationError | AuthorizationError):
        return unavailable(reply)
    kind = WrongType if "WRONGTYPE" in str(reply) else StoreUnavailable
    code = getattr(reply, "status_code", None) or str(reply).partition(" ")[0]
    error = kind(
        f"Redis is there and refuses the command ({code}): whoever runs the service must mend that",
        retry_after_seconds=REFUSED_RETRY_SECONDS,
    )
    error.__cause__ = reply
    return error
