"""Sessions in Redis: one record a session, saved by one atomic script that compares the version.

A record is one byte of schema, the session's version as eight bytes, and the session in msgpack. The version stands in
front so that the script compares bytes and never parses; a key that does not exist reads as no bytes, which is how
"there must be none" is compared by the same line.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from orchestra import limits
from orchestra.adapters.batching import Batcher
from orchestra.adapters.storing import stale_session
from orchestra.errors import ConfigurationError, StoreUnavailable
from orchestra.events import Hook, UnexpectedError
from orchestra.model import Session

SCHEMA = 1
_DECODERS = {1: msgspec.msgpack.Decoder(Session)}  # older schemas stay here, each with what brings it up to date
_HEADER_BYTES = 9

# A save whose reply was lost is sent again; then the record is the very one it wrote, and that is success. The script
# goes with every save: 300 bytes are cheaper than a second code path for a server that has forgotten its scripts.
_SAVE = f"""
if redis.call('GETRANGE', KEYS[1], 1, {_HEADER_BYTES - 1}) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', {limits.SESSION_TTL_SECONDS})
  return 1
end
return redis.call('GET', KEYS[1]) == ARGV[2] and 1 or 0
"""
_SET_ASIDE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('RENAME', KEYS[1], KEYS[2]) end"

CONNECT_SECONDS = 2.0
REPLY_SECONDS = 2.0
PING_SECONDS = 2.0
_BATCH_COMMANDS_MAX = 100
_WAITING_COMMANDS_MAX = 10_000

_Command = tuple[str | bytes | int, ...]


class RedisSessions:
    """Sessions in Redis, over one connection whose round trips concurrent requests share.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it. Connects with the first command.
    hook : callable
        Told when a record cannot be read.

    Attributes
    ----------
    commands : Batcher
        Commands on their way to Redis; each of its batches is one round trip.

    Raises
    ------
    ConfigurationError
        The URL is not one.
    """

    def __init__(self, url: str, hook: Hook) -> None:
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=REPLY_SECONDS,
                max_connections=2,
                # Once more, on a new connection, where the old one turns out to be dead: Redis was restarted. Sending
                # a save twice is safe (see `_SAVE`). A timeout is not tried again: Redis is there, and in trouble.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except ValueError as error:
            raise ConfigurationError(f"it is not the address of a Redis: {error}", field="redis_url") from error
        self._hook = hook
        self.commands: Batcher[_Command, Any] = Batcher(
            "Redis", self._send, batch_max=_BATCH_COMMANDS_MAX, waiting_max=_WAITING_COMMANDS_MAX
        )

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none; an unreadable record is set aside under ``<key>:corrupt``.

        Raises
        ------
        StoreUnavailable
        """
        key = _key(session_id)
        record: bytes | None = await self.commands.submit(("GET", key))
        if record is None:
            return None
        try:
            return _session(record, session_id)
        except ValueError as error:  # which msgspec.DecodeError is
            await self.commands.submit(("EVAL", _SET_ASIDE, 2, key, f"{key}:corrupt", record))
            self._report(f"the record of session {session_id} cannot be read: {error}; it is now {key}:corrupt")
            return None

    async def save(self, session: Session, *, expected_version: int) -> None:
        """Store `session` where the stored version is `expected_version`; -1 means that there must be none.

        Raises
        ------
        StaleSession, StoreUnavailable
        """
        expected = b"" if expected_version == -1 else expected_version.to_bytes(_HEADER_BYTES - 1)
        saved = await self.commands.submit(("EVAL", _SAVE, 1, _key(session.id), expected, _record(session)))
        if not saved:
            raise stale_session(session, expected_version)

    async def ping(self) -> None:
        """Return once Redis has answered.

        Raises
        ------
        StoreUnavailable
        """
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self.commands.submit(("PING",))
        except TimeoutError as error:
            raise StoreUnavailable(f"Redis does not answer within {PING_SECONDS:g} s") from error

    async def close(self) -> None:
        """Finish what is under way and close the connection."""
        await self.commands.close()
        await self._redis.aclose()

    async def _send(self, commands: list[_Command]) -> Sequence[Any]:
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            replies = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            return [_unavailable(error) for _ in commands]
        return [_unavailable(reply) if isinstance(reply, Exception) else reply for reply in replies]

    def _report(self, what: str) -> None:
        at = asyncio.get_running_loop().time()
        self._hook(UnexpectedError(at, correlation_id="", where="RedisSessions.load", traceback=what))


def _key(session_id: str) -> str:
    # Braces, which no id can hold, keep a session called "x:corrupt" apart from what was set aside of session "x",
    # and both keys in one slot of a Redis Cluster.
    return f"orchestra:session:{{{session_id}}}"


def _record(session: Session) -> bytes:
    return bytes((SCHEMA,)) + session.version.to_bytes(_HEADER_BYTES - 1) + msgspec.msgpack.encode(session)


def _session(record: bytes, session_id: str) -> Session:
    decoder = _DECODERS.get(record[0]) if record else None
    if decoder is None:
        raise ValueError("its schema is unknown")
    session = decoder.decode(memoryview(record)[_HEADER_BYTES:])
    if session.id != session_id:
        raise ValueError(f"it is the record of session {session.id}")
    return session


def _unavailable(cause: Exception) -> StoreUnavailable:
    error = StoreUnavailable("Redis cannot be reached or does not answer in time", retry_after_seconds=1.0)
    error.__cause__ = cause
    return error
