"""PostgreSQL: the connections, and conversations in the tables `turns` and `sessions`.

All that turns write goes through one connection of its own, where whatever waits shares one commit (see `batching`).
Reads have a bounded pool, so that neither can starve the other.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self

import asyncpg
import msgspec
from pgvector import Vector
from pgvector.asyncpg import register_vector

from orchestra.adapters.batching import Batcher
from orchestra.adapters.migrate import migrate, packaged, read_migrations
from orchestra.adapters.storing import session_gone, stale_profile, stale_turn, unavailable
from orchestra.errors import ConfigurationError, InvalidRequest, OrchestraError, StoreUnavailable
from orchestra.model import ConversationHead, Memory, Profile, Recollection, Turn, Usage

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 5.0
PING_SECONDS = 2.0
_RELEASE_SECONDS = 0.5
_READERS_MAX = 8
_BATCH_ROWS_MAX = 500
_WAITING_ROWS_MAX = 10_000

# One statement for both tables is one transaction in one round trip. What was inserted comes back; a row that is not
# in there was stored before, has lost its number to another turn, or belongs to a session that is gone.
_INSERT = r"""
WITH remembered AS (
    INSERT INTO memories (id, owner, text, embedding, at)
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::vector[], $5::float8[])
    ON CONFLICT DO NOTHING
)
INSERT INTO turns (id, session_id, number, owner, correlation_id, message, reply, engine, model,
                   prompt_tokens, completion_tokens, degraded, at, finish_reason, recalled)
SELECT id, session_id, number, owner, correlation_id, message, reply, engine, model,
       prompt_tokens, completion_tokens, string_to_array(degraded, E'\n'), at, finish_reason, recalled
FROM unnest($6::text[], $7::text[], $8::int[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
            $14::text[], $15::int[], $16::int[], $17::text[], $18::float8[], $19::text[], $20::text[])
     AS new (id, session_id, number, owner, correlation_id, message, reply, engine, model,
             prompt_tokens, completion_tokens, degraded, at, finish_reason, recalled)
WHERE NOT EXISTS (SELECT FROM sessions s WHERE s.id = new.session_id AND (s.deleted OR s.owner <> new.owner))
ON CONFLICT DO NOTHING
RETURNING id
"""
_MEMORY_COLUMNS, _TURN_COLUMNS = 5, 15

_TURN = """
SELECT id, session_id, number, correlation_id, message, reply, engine, model, at,
       prompt_tokens, completion_tokens, degraded, finish_reason, recalled
FROM turns
"""
_TURNS = _TURN + "WHERE session_id = $1 AND number > $2 ORDER BY number LIMIT $3"
_LATEST = _TURN + "WHERE session_id = $1 ORDER BY number DESC LIMIT $2"
_IDS = "SELECT id FROM turns WHERE session_id = $1 ORDER BY number"
_FIND = _TURN + "WHERE id = $1"
_STORED = _TURN + "WHERE id = ANY($1::text[])"

_HEAD = """
SELECT s.owner, s.profile, s.revision, s.created_at, s.updated_at, s.deleted,
       first.owner AS first_owner, first.at AS first_at, last.number AS last_number, last.at AS last_at
FROM (SELECT $1::text AS id) AS asked
LEFT JOIN sessions s ON s.id = asked.id
LEFT JOIN LATERAL (SELECT owner, at FROM turns WHERE session_id = asked.id ORDER BY number LIMIT 1) first ON true
LEFT JOIN LATERAL (SELECT number, at FROM turns WHERE session_id = asked.id ORDER BY number DESC LIMIT 1) last ON true
"""
_GONE = """
SELECT new.id FROM unnest($1::text[], $2::text[], $3::text[]) AS new (id, session_id, owner)
JOIN sessions s ON s.id = new.session_id WHERE s.deleted OR s.owner <> new.owner
"""
# The same again succeeds, since a reply may be lost on the way.
_SET_PROFILE = """
INSERT INTO sessions AS s (id, owner, profile, revision, created_at, updated_at)
SELECT $1, $2, $3, $4, $5, $5
WHERE ($4 = 1 OR EXISTS (SELECT FROM sessions WHERE id = $1))
  AND NOT EXISTS (SELECT FROM turns WHERE session_id = $1 AND owner <> $2)
ON CONFLICT (id) DO UPDATE
SET profile = excluded.profile, revision = excluded.revision, updated_at = excluded.updated_at
WHERE NOT s.deleted AND s.owner = excluded.owner
  AND (s.revision = excluded.revision - 1 OR (s.revision = excluded.revision AND s.profile = excluded.profile))
RETURNING id
"""
# The lock waits for the turns that are being appended, in other processes too, and lets no other begin before the
# session is marked, so that none slips past the deletion. It is held for the length of one small transaction.
_LOCK = "LOCK TABLE turns IN SHARE ROW EXCLUSIVE MODE"
_MARK_DELETED = """
INSERT INTO sessions (id, owner, profile, revision, created_at, updated_at, deleted) VALUES ($1, '', '', 0, 0, 0, true)
ON CONFLICT (id) DO UPDATE SET owner = '', profile = '', revision = 0, created_at = 0, updated_at = 0, deleted = true
"""
_DELETE = "DELETE FROM turns WHERE session_id = $1 RETURNING id"

_PROFILES = msgspec.json.Decoder(Profile)
_RECOLLECTIONS = msgspec.json.Decoder(tuple[Recollection, ...])

_MISADDRESSED = (ValueError, asyncpg.InvalidCatalogNameError, asyncpg.InvalidAuthorizationSpecificationError)
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


class TurnRow(NamedTuple):
    """A turn to append, and whose it is."""

    turn: Turn
    owner: str


class Change(NamedTuple):
    """Statements for a transaction of their own, each with its arguments; what the last one gives is the outcome.

    They may come twice, where it is not known what became of them.
    """

    statements: tuple[tuple[Any, ...], ...]


Row = TurnRow | Memory | Change


class Postgres:
    """One database, from `connect` to `close`.

    Attributes
    ----------
    conversations : PostgresConversations
    writes : Batcher
        Rows on their way into the database; each of its batches is one commit, and one more for each `Change`.
    """

    def __init__(self, url: str, readers: asyncpg.Pool) -> None:
        self._url = url
        self._readers = readers
        self._writer: asyncpg.Connection | None = None
        self.writes: Batcher[Row, Any] = Batcher(
            "PostgreSQL", self._commit, batch_max=_BATCH_ROWS_MAX, waiting_max=_WAITING_ROWS_MAX
        )
        self.conversations = PostgresConversations(self)

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect to the database at `url` and bring its schema up to date.

        Raises
        ------
        ConfigurationError
            The URL does not open a database, or its schema cannot be brought up to date.
        StoreUnavailable
            PostgreSQL cannot be reached.
        """
        try:
            connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
            try:
                await migrate(connection, read_migrations(packaged()))
                await register_vector(connection)  # refused here, once, where the type is in another schema
            finally:
                connection.terminate()
            # Every reader learns the vector type, which exists by now.
            readers = await asyncpg.create_pool(
                url, min_size=0, max_size=_READERS_MAX, init=register_vector, reset=_keep, **_OPTIONS
            )
        except _MISADDRESSED as error:
            raise ConfigurationError(f"it does not open a database: {error}", field="database_url") from error
        except _FAILURES as error:
            raise unavailable(error, "PostgreSQL") from error
        return cls(url, readers)

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Run a query that changes nothing; once more, where its connection turns out to be dead.

        Raises
        ------
        StoreUnavailable
        """
        try:
            try:
                return await self._fetch(query, *arguments)
            except _FAILURES as error:
                if not _may_pass(error):
                    raise
                return await self._fetch(query, *arguments)
        except _FAILURES as error:
            raise unavailable(error) from error

    async def change(self, *statements: tuple[Any, ...]) -> list[asyncpg.Record]:
        """Run statements in one transaction, after all that was submitted before, and return what the last one gives.

        Raises
        ------
        StoreUnavailable, InvalidRequest
        """
        records: list[asyncpg.Record] = await self.writes.submit(Change(statements))
        return records

    async def ping(self) -> None:
        """Return once PostgreSQL has answered.

        Raises
        ------
        StoreUnavailable
        """
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self.fetch("SELECT 1")
        except TimeoutError as error:
            raise StoreUnavailable(f"PostgreSQL does not answer within {PING_SECONDS:g} s") from error

    async def close(self) -> None:
        """Commit or refuse what waits, then close every connection."""
        await self.writes.close()
        self._drop_writer()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._readers.close()
        except TimeoutError:
            self._readers.terminate()

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await self._readers.acquire(timeout=CONNECT_SECONDS)
        try:
            records: list[asyncpg.Record] = await connection.fetch(query, *arguments)
            return records
        finally:
            # Where the query was cancelled or ran out of time, asyncpg asks the server to stop it and waits for that;
            # a server that hangs never does. Then the connection is cut, and what ended the query is raised, not this.
            with suppress(TimeoutError):
                await self._readers.release(connection, timeout=_RELEASE_SECONDS)

    async def _commit(self, rows: list[Row]) -> Sequence[Any]:
        """Store turns and memories in one transaction and make each change in another, in that order."""
        inserts = [row for row in rows if not isinstance(row, Change)]
        stored = iter(await self._commit_rows(inserts) if inserts else ())
        changes = iter([await self._commit_change(row) for row in rows if isinstance(row, Change)])
        return [next(changes if isinstance(row, Change) else stored) for row in rows]

    async def _commit_change(self, change: Change) -> Any:
        """Make a change; where its outcome is unknown, once more."""
        try:
            try:
                return await self._make(change)
            except _FAILURES as error:
                if not _may_pass(error):
                    raise
                self._drop_writer()
                return await self._make(change)
        except _FAILURES as error:
            if _is_refusal(error):
                return _refused("the change", error)
            self._drop_writer()
            return unavailable(error)

    async def _make(self, change: Change) -> list[asyncpg.Record]:
        writer = await self._open_writer()
        records: list[asyncpg.Record] = []
        async with writer.transaction():
            for statement in change.statements:
                records = await writer.fetch(*statement)
        return records

    async def _commit_rows(self, rows: list[TurnRow | Memory]) -> Sequence[Turn | Exception | None]:
        """Store `rows` in one transaction; where its outcome is unknown, once more: an id is stored once."""
        try:
            try:
                return await self._insert(rows)
            except _FAILURES as error:
                if not _may_pass(error):
                    raise
                self._drop_writer()
                return await self._insert(rows)
        except _FAILURES as error:
            if _is_refusal(error):
                return await self._commit_apart(rows, error)
            self._drop_writer()
            return [unavailable(error) for _ in rows]

    async def _commit_apart(
        self, rows: list[TurnRow | Memory], refusal: Exception
    ) -> Sequence[Turn | Exception | None]:
        """Find by halves the rows that PostgreSQL refuses, which fail everything that shares their transaction."""
        if len(rows) == 1:
            [row] = rows
            return [_refused(f"turn {row.turn.id}" if isinstance(row, TurnRow) else f"memory {row.id}", refusal)]
        half = len(rows) // 2
        return [*await self._commit_rows(rows[:half]), *await self._commit_rows(rows[half:])]

    async def _insert(self, rows: list[TurnRow | Memory]) -> list[Turn | Exception | None]:
        writer = await self._open_writer()
        # Sorted, lest two processes that write the same turns wait for each other.
        memories = sorted((row for row in rows if isinstance(row, Memory)), key=lambda memory: memory.id)
        turns = sorted(
            (row for row in rows if isinstance(row, TurnRow)), key=lambda row: (row.turn.session_id, row.turn.number)
        )
        columns = (
            *_columns(map(_memory_values, memories), _MEMORY_COLUMNS),
            *_columns(map(_turn_values, turns), _TURN_COLUMNS),
        )
        inserted = {record[0] for record in await writer.fetch(_INSERT, *columns)}
        times = Counter(row.turn.id for row in turns)  # of two of one id in this batch, either may be the one stored
        missed = [row for row in turns if row.turn.id not in inserted or times[row.turn.id] > 1]
        kept = await self._kept(missed) if missed else {}
        return [kept.get(row.turn.id, row.turn) if isinstance(row, TurnRow) else None for row in rows]

    async def _kept(self, missed: list[TurnRow]) -> dict[str, Turn | Exception]:
        """Tell of turns that were not inserted, by id, what is stored in their place or why they cannot be."""
        writer = await self._open_writer()
        ids = [row.turn.id for row in missed]
        kept: dict[str, Turn | Exception] = {row.turn.id: stale_turn(row.turn) for row in missed}
        sessions, owners = [row.turn.session_id for row in missed], [row.owner for row in missed]
        gone = {record[0] for record in await writer.fetch(_GONE, ids, sessions, owners)}
        kept |= {row.turn.id: session_gone(row.turn.session_id) for row in missed if row.turn.id in gone}
        return kept | {record["id"]: _turn(record) for record in await writer.fetch(_STORED, ids)}

    async def _open_writer(self) -> asyncpg.Connection:
        if self._writer is None or self._writer.is_closed():
            self._writer = await _open_writer(self._url)
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None


class PostgresConversations:
    """Conversations in PostgreSQL."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres

    async def append(self, turn: Turn, owner: str) -> Turn:
        """Make `turn` durable, and return it as it is stored: of two of one id the first stays, and is returned.

        Raises
        ------
        StaleSession, SessionUnknown, StoreUnavailable
        InvalidRequest
            No text of PostgreSQL can hold it; `limits.text_fault` tells why.
        """
        stored: Turn = await self._postgres.writes.submit(TurnRow(turn, owner))
        return stored

    async def find(self, turn_id: str) -> Turn | None:
        """Return the turn of that id, or None."""
        records = await self._postgres.fetch(_FIND, turn_id)
        return _turn(records[0]) if records else None

    async def turns(self, session_id: str, *, after: int = 0, limit: int = 100) -> tuple[Turn, ...]:
        """Return turns numbered above `after`, lowest first, at most `limit`."""
        return tuple(map(_turn, await self._postgres.fetch(_TURNS, session_id, after, limit)))

    async def latest(self, session_id: str, *, limit: int) -> tuple[Turn, ...]:
        """Return the last `limit` turns, lowest number first."""
        return tuple(map(_turn, reversed(await self._postgres.fetch(_LATEST, session_id, limit))))

    async def ids(self, session_id: str) -> tuple[str, ...]:
        """Return the ids of all its turns, lowest number first."""
        return tuple(record[0] for record in await self._postgres.fetch(_IDS, session_id))

    async def head(self, session_id: str) -> ConversationHead | None:
        """Return what is known of the session besides its turns.

        Raises
        ------
        SessionUnknown
            It was deleted.
        """
        [record] = await self._postgres.fetch(_HEAD, session_id)
        if record["deleted"]:
            raise session_gone(session_id)
        profiled, begun = record["owner"] is not None, record["last_number"] is not None
        if not profiled and not begun:
            return None
        moments = [record[name] for name in ("created_at", "updated_at", "first_at", "last_at")]
        return ConversationHead(
            owner=record["owner"] if profiled else record["first_owner"],
            created_at=min(at for at in moments if at is not None),
            updated_at=max(at for at in moments if at is not None),
            version=record["last_number"] or 0,
            profile=_PROFILES.decode(record["profile"]) if profiled else Profile(),
            revision=record["revision"] or 0,
        )

    async def set_profile(self, session_id: str, owner: str, profile: Profile, *, revision: int, at: float) -> None:
        """Make `profile` the session's where its stored revision is the one before `revision`.

        Raises
        ------
        StaleSession, SessionUnknown, StoreUnavailable
        InvalidRequest
            No text of PostgreSQL can hold it; `limits.text_fault` tells why.
        """
        document = msgspec.json.encode(profile).decode()
        if await self._postgres.change((_SET_PROFILE, session_id, owner, document, revision, at)):
            return
        head = await self.head(session_id)
        raise session_gone(session_id) if head and head.owner != owner else stale_profile(session_id, revision)

    async def delete(self, session_id: str) -> tuple[str, ...]:
        """Delete the session's turns and profile, and return the ids of the turns.

        Raises
        ------
        StoreUnavailable
        """
        deleted = await self._postgres.change((_LOCK,), (_MARK_DELETED, session_id), (_DELETE, session_id))
        return tuple(record[0] for record in deleted)

    async def ping(self) -> None:
        """Return once PostgreSQL has answered."""
        await self._postgres.ping()


async def _open_writer(url: str) -> asyncpg.Connection:
    connection = await asyncpg.connect(url, **_OPTIONS)
    try:
        await register_vector(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _keep(connection: object) -> None:
    """Leave a connection that goes back to the pool as it is: no query here changes a setting or leaves a lock."""


_OPTIONS: dict[str, Any] = {
    "timeout": CONNECT_SECONDS,
    "command_timeout": COMMAND_SECONDS,
    # The server gives up too, so that a query whose asker has gone does not go on.
    "server_settings": {"application_name": "orchestra", "statement_timeout": f"{COMMAND_SECONDS:.0f}s", "jit": "off"},
}


def _memory_values(memory: Memory) -> tuple[object, ...]:
    return memory.id, memory.owner, memory.text, Vector(list(memory.embedding)), memory.at


def _turn_values(row: TurnRow) -> tuple[object, ...]:
    turn = row.turn
    return (
        turn.id,
        turn.session_id,
        turn.number,
        row.owner,
        turn.correlation_id,
        turn.message,
        turn.reply,
        turn.engine,
        turn.model,
        turn.usage.prompt_tokens,
        turn.usage.completion_tokens,
        "\n".join(turn.degraded),
        turn.at,
        turn.finish_reason,
        msgspec.json.encode(turn.recalled).decode() if turn.recalled else None,
    )


def _columns(rows: Iterable[tuple[object, ...]], count: int) -> list[tuple[object, ...]]:
    return list(zip(*rows, strict=True)) or [()] * count


def _turn(record: asyncpg.Record) -> Turn:
    return Turn(
        id=record["id"],
        session_id=record["session_id"],
        number=record["number"],
        correlation_id=record["correlation_id"],
        message=record["message"],
        reply=record["reply"],
        engine=record["engine"],
        model=record["model"],
        at=record["at"],
        usage=Usage(record["prompt_tokens"], record["completion_tokens"]),
        degraded=tuple(record["degraded"]),
        finish_reason=record["finish_reason"],
        recalled=_RECOLLECTIONS.decode(record["recalled"]) if record["recalled"] else (),
    )


def _is_refusal(error: Exception) -> bool:
    """Tell whether PostgreSQL refuses the data: SQLSTATE classes data exception, integrity, program limit."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "22")[:2] in {"22", "23", "54"}


def _may_pass(error: Exception) -> bool:
    """Tell whether another try at once may help: a connection was cut, yes; time ran out or data is refused, no."""
    return not _is_refusal(error) and not isinstance(error, TimeoutError | asyncpg.QueryCanceledError)


def _refused(what: str, cause: Exception) -> OrchestraError:
    error = InvalidRequest(f"{what} cannot be stored: {cause}")
    error.__cause__ = cause
    return error
