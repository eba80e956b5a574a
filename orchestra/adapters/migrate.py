"""The schema by numbered SQL files, each applied once, in order, in a transaction of its own, and never changed after.

A PostgreSQL advisory lock lets any number of processes start at once: one migrates, the others wait and find it done.
"""

import re
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

import asyncpg

from orchestra.errors import ConfigurationError

LOCK_SECONDS = 60
_LOCK = 0x6F726368  # "orch": any number that other users of the database are unlikely to choose
_FILE_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")

_HISTORY = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class Migration(NamedTuple):
    """One numbered SQL file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL in hex."""
        return sha256(self.sql.encode()).hexdigest()


def packaged() -> Traversable:
    """Return the folder with the migrations of this version."""
    return files("orchestra.adapters") / "migrations"


def read_migrations(folder: Traversable) -> list[Migration]:
    """Read the SQL files of `folder`, lowest number first.

    Raises
    ------
    ConfigurationError
        A file is not named ``NNNN_what.sql``, or the numbers are not 1, 2, 3 ... without gap or double.
    """
    migrations = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        named = _FILE_NAME.fullmatch(file.name)
        if named is None:
            raise ConfigurationError(f"migration {file.name} is not named like 0001_what_it_does.sql: rename it")
        migrations.append(Migration(int(named[1]), file.name, file.read_text("utf-8")))
    for expected, migration in enumerate(migrations, start=1):
        if migration.number != expected:
            raise ConfigurationError(
                f"migration {migration.name} stands where number {expected:04} is expected: "
                "number the files without gap or double"
            )
    return migrations


async def migrate(connection: asyncpg.Connection, migrations: list[Migration]) -> list[str]:
    """Bring the database to the last of `migrations`; return the names of those applied now.

    Raises
    ------
    ConfigurationError
        The database was migrated by files that are changed or missing here, or a migration fails.
    """
    await connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
    try:
        await connection.execute(_HISTORY)
        history = await connection.fetch("SELECT number, name, checksum FROM schema_migrations ORDER BY number")
        _check(history, migrations)
        pending = migrations[len(history) :]
        for migration in pending:
            await _apply(connection, migration)
        return [migration.name for migration in pending]
    finally:
        if not connection.is_closed():  # else the lock went with the connection
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)


def _check(history: list[asyncpg.Record], migrations: list[Migration]) -> None:
    """Refuse a database whose history is not a beginning of `migrations`."""
    known = {migration.number: migration for migration in migrations}
    for applied in history:
        migration = known.get(applied["number"])
        if migration is None:
            raise ConfigurationError(
                f"the database was migrated by {applied['name']}, which this version does not have: "
                "run the version that does, or restore a backup from before"
            )
        if (migration.name, migration.checksum) != (applied["name"], applied["checksum"]):
            raise ConfigurationError(
                f"migration {migration.name} is not what the database was migrated with ({applied['name']}, sha256 "
                f"{applied['checksum'][:12]}): restore the file and put the change into a migration of a new number"
            )
    # The files have no gaps and each number of the history is among them: it lacks one only where a row was deleted.
    for expected, applied in enumerate(history, start=1):
        if applied["number"] != expected:
            raise ConfigurationError(
                f"schema_migrations lacks number {expected:04} but has {applied['name']}: restore the deleted row"
            )


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
    except asyncpg.FeatureNotSupportedError as error:  # CREATE EXTENSION of what is not installed
        raise ConfigurationError(f"migration {migration.name}: {error}. Install pgvector on the server") from error
    except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):  # not the migration's fault
        raise
    except asyncpg.PostgresError as error:
        raise ConfigurationError(f"migration {migration.name} fails and nothing of it was applied: {error}") from error
