"""Sessions in Redis: one record a session, saved by one atomic script that compares the version.

A record is one byte of schema, the session's version and revision as eight bytes each, and the session in msgpack, as
arrays without names. What is compared stands in front, so that the script compares bytes and never parses.

Schema 0 is a session that was deleted, and nothing else. Schema 1 had no revision and named its fields; it is read and
replaced. An instance of the version before knows neither 0 nor 2: where it runs beside this one, while one takes over
from the other, it takes such a record for corrupt, sets it aside, and makes the session anew from its conversation,
without the profile, so its turns know none. This version then reads what that wrote, and makes the session anew once
more, with the profile, which PostgreSQL has. No turn is lost; every record set aside is an error in the log.
"""

import asyncio
from functools import partial
from typing import Any

import msgspec

from orchestra import limits
from orchestra.adapters.batching import Batcher
from orchestra.adapters.pipelining import (
    BATCH_COMMANDS_MAX,
    WAITING_COMMANDS_MAX,
    Command,
    WrongType,
    connection,
    outcomes,
)
from orchestra.adapters.storing import session_gone, stale_session
from orchestra.errors import StoreUnavailable
from orchestra.events import Hook, UnexpectedError
from orchestra.model import Message, Profile, Role, Session

SCHEMA = 2
_DELETED = b"\0"
_ROLES: dict[Role, str] = {"system": "s", "user": "u", "assistant": "a"}
_ROLE_OF = {letter: role for role, letter in _ROLES.items()}

# A save whose reply was lost is sent again; then the record is the very one it wrote, and that is success. The script
# goes with every save: 500 bytes are cheaper than a second code path for a server that has forgotten its scripts. A key
# that does not exist reads as no bytes, which is how "there must be none" is compared by the same line.
_SAVE = f"""
local head = redis.call('GETRANGE', KEYS[1], 0, 16)
local schema = string.byte(head)
local stamp = head
if schema == 2 then stamp = string.sub(head, 2)
elseif schema == 1 then stamp = string.sub(head, 2, 9) .. string.rep('\\0', 8) end
if stamp == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'EX', {limits.SESSION_TTL_SECONDS})
  return 1
end
return redis.call('GET', KEYS[1]) == ARGV[2] and 1 or 0
"""
# Where it still is what was read, or of a type that no record has. What is set aside goes with time in any case.
_SET_ASIDE = f"""
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or (kind == 'string' and redis.call('GET', KEYS[1]) ~= ARGV[1]) then return 0 end
redis.call('RENAME', KEYS[1], KEYS[2])
return redis.call('EXPIRE', KEYS[2], {limits.SESSION_TTL_SECONDS})
"""

PING_SECONDS = 2.0


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
        self._redis = connection(url)
        self._hook = hook
        self.commands: Batcher[Command, Any] = Batcher(
            "Redis", partial(outcomes, self._redis), batch_max=BATCH_COMMANDS_MAX, waiting_max=WAITING_COMMANDS_MAX
        )

    async def load(self, session_id: str) -> Session | None:
        """Return the session, or None where there is none; an unreadable record is set aside under ``<key>:corrupt``.

        Raises
        ------
        SessionUnknown
            It was deleted.
        StoreUnavailable
        """
        key = _key(session_id)
        try:
            record: bytes | None = await self.commands.submit(("GET", key))
        except WrongType as error:
            await self._set_aside(session_id, b"", error)
            return None
        if record is None:
            return None
        if record == _DELETED:
            raise session_gone(session_id)
        try:
            return _session(record, session_id)
        except (ValueError, RecursionError) as error:  # msgspec.DecodeError is a ValueError
            await self._set_aside(session_id, record, error)
            return None

    async def save(self, session: Session, *, expected: Session | None) -> None:
        """Store `session` where the stored one has `expected`'s version and revision; None: where there is none.

        Raises
        ------
        StaleSession, StoreUnavailable
        """
        stamp = b"" if expected is None else _stamp(expected)
        try:
            saved = await self.commands.submit(("EVAL", _SAVE, 1, _key(session.id), stamp, _record(session)))
        except WrongType as error:  # it is no record; whoever reads it anew finds none
            await self._set_aside(session.id, b"", error)
            saved = False
        if not saved:
            raise stale_session(session, expected)

    async def delete(self, session_id: str) -> None:
        """Forget the session and what was set aside of it, and leave a mark: nobody who holds it brings it back.

        Raises
        ------
        StoreUnavailable
        """
        key = _key(session_id)
        await self.commands.submit(("SET", key, _DELETED, "EX", limits.SESSION_TTL_SECONDS))
        await self.commands.submit(("DEL", f"{key}:corrupt"))

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

    async def _set_aside(self, session_id: str, record: bytes, why: Exception) -> None:
        key = _key(session_id)
        await self.commands.submit(("EVAL", _SET_ASIDE, 2, key, f"{key}:corrupt", record))
        self._report(f"the record of session {session_id} cannot be read: {why}; it is now {key}:corrupt")

    def _report(self, what: str) -> None:
        at = asyncio.get_running_loop().time()
        self._hook(UnexpectedError(at, correlation_id="", where="RedisSessions.load", traceback=what))


def _key(session_id: str) -> str:
    # Braces, which no id can hold, keep a session called "x:corrupt" apart from what was set aside of session "x",
    # and both keys in one slot of a Redis Cluster.
    return f"orchestra:session:{{{session_id}}}"


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """A session as schema 2 says it; a newer writer may add fields at the end."""

    id: str
    owner: str
    version: int
    revision: int
    created_at: float
    updated_at: float
    tokens: int
    profile: tuple[str | None, tuple[int, ...], dict[str, str], dict[str, str]]
    roles: str
    turns: tuple[int, ...]
    contents: tuple[str, ...]


_WIRES = msgspec.msgpack.Decoder(_Wire)
_SCHEMA_1 = msgspec.msgpack.Decoder(Session)


def _stamp(session: Session) -> bytes:
    return session.version.to_bytes(8) + session.revision.to_bytes(8)


def _record(session: Session) -> bytes:
    profile, messages = session.profile, session.messages
    wire = _Wire(
        id=session.id,
        owner=session.owner,
        version=session.version,
        revision=session.revision,
        created_at=session.created_at,
        updated_at=session.updated_at,
        tokens=session.tokens,
        profile=(profile.system, profile.pinned, profile.context, profile.metadata),
        roles="".join([_ROLES[each.role] for each in messages]),
        turns=tuple([each.turn for each in messages]),
        contents=tuple([each.content for each in messages]),
    )
    return bytes((SCHEMA,)) + _stamp(session) + msgspec.msgpack.encode(wire)


def _session(record: bytes, session_id: str) -> Session:
    schema = record[0] if record else None
    body = memoryview(record)
    if schema == SCHEMA:
        session = _from_wire(_WIRES.decode(body[17:]))
        stamp = int.from_bytes(record[1:9]), int.from_bytes(record[9:17])
    elif schema == 1:
        session = _SCHEMA_1.decode(body[9:])
        stamp = int.from_bytes(record[1:9]), 0
    else:
        raise ValueError("its schema is unknown")
    if session.id != session_id:
        raise ValueError(f"it is the record of session {session.id}")
    if stamp != (session.version, session.revision):
        raise ValueError("its head tells another version than its body")
    return session


def _from_wire(wire: _Wire) -> Session:
    if not len(wire.roles) == len(wire.turns) == len(wire.contents):
        raise ValueError("it has not as many roles as messages")
    if any(letter not in _ROLE_OF for letter in wire.roles):
        raise ValueError("it has a role that is none")
    messages = [
        Message(_ROLE_OF[letter], content, turn)
        for letter, content, turn in zip(wire.roles, wire.contents, wire.turns, strict=True)
    ]
    return Session(
        id=wire.id,
        owner=wire.owner,
        version=wire.version,
        created_at=wire.created_at,
        updated_at=wire.updated_at,
        messages=tuple(messages),
        profile=Profile(*wire.profile),
        revision=wire.revision,
        tokens=wire.tokens,
    )
