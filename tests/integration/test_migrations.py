"""Numbered SQL files bring a real database up to date, once, and refuse a history that is not theirs."""

import asyncio
import sys
from pathlib import Path

import asyncpg
import pytest

from orchestra import limits
from orchestra.adapters.migrate import migrate, packaged, read_migrations
from orchestra.adapters.postgres import Postgres
from orchestra.errors import ConfigurationError, StoreUnavailable
from orchestra.model import ConversationHead, Profile, Turn, Usage

ONE = "CREATE TABLE one (n int)"
TWO = "CREATE TABLE two (n int); INSERT INTO one VALUES (2)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_one.sql").write_text(ONE)
    (tmp_path / "0002_two.sql").write_text(TWO)
    (tmp_path / "README.md").write_text("not a migration")
    return tmp_path


def run(database_url: str, folder: Path) -> list[str]:
    async def scenario() -> list[str]:
        connection = await asyncpg.connect(database_url)
        try:
            return await migrate(connection, read_migrations(folder))
        finally:
            await connection.close()

    return asyncio.run(scenario())


def value(database_url: str, query: str):
    async def scenario():
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(scenario())


def test_each_is_applied_once_and_in_order(database_url, folder):
    assert run(database_url, folder) == ["0001_one.sql", "0002_two.sql"]
    assert run(database_url, folder) == []
    (folder / "0003_three.sql").write_text("INSERT INTO one SELECT n FROM two")
    assert run(database_url, folder) == ["0003_three.sql"]
    assert value(database_url, "SELECT array_agg(number ORDER BY applied_at) FROM schema_migrations") == [1, 2, 3]
    assert value(database_url, "SELECT count(*) FROM one") == 1


def test_one_that_fails_is_named_and_nothing_of_it_stays(database_url, folder):
    (folder / "0002_two.sql").write_text("CREATE TABLE two (n int); SELECT 1/0")
    with pytest.raises(ConfigurationError, match=r"0002_two\.sql fails .* division by zero"):
        run(database_url, folder)
    assert value(database_url, "SELECT max(number) FROM schema_migrations") == 1
    assert value(database_url, "SELECT to_regclass('two')") is None
    (folder / "0002_two.sql").write_text(TWO)
    assert run(database_url, folder) == ["0002_two.sql"]


def test_one_that_cannot_be_recorded_is_not_applied(database_url, folder):
    forged = "INSERT INTO schema_migrations (number, name, checksum) VALUES (2, '', '')"
    (folder / "0002_two.sql").write_text(f"CREATE TABLE two (n int); {forged}")
    with pytest.raises(ConfigurationError, match=r"0002_two\.sql fails"):
        run(database_url, folder)
    assert value(database_url, "SELECT to_regclass('two')") is None


def test_a_changed_one_is_refused_by_name(database_url, folder):
    run(database_url, folder)
    (folder / "0001_one.sql").write_text(ONE + " -- changed")
    with pytest.raises(ConfigurationError, match=r"0001_one\.sql is not what the database was migrated with"):
        run(database_url, folder)


def test_a_renamed_one_is_refused_by_name(database_url, folder):
    run(database_url, folder)
    (folder / "0002_two.sql").rename(folder / "0002_other.sql")
    with pytest.raises(ConfigurationError, match=r"0002_other\.sql is not what .* \(0002_two\.sql"):
        run(database_url, folder)


def test_a_missing_one_is_refused_by_name(database_url, folder):
    run(database_url, folder)
    (folder / "0002_two.sql").unlink()
    with pytest.raises(ConfigurationError, match=r"migrated by 0002_two\.sql, which this version does not have"):
        run(database_url, folder)


def test_a_hole_in_the_history_is_refused(database_url, folder):
    run(database_url, folder)
    value(database_url, "DELETE FROM schema_migrations WHERE number = 1")
    with pytest.raises(ConfigurationError, match="lacks number 0001"):
        run(database_url, folder)


@pytest.mark.parametrize("name", ["3_three.sql", "0003-three.sql", "three.sql", "0003_Three.sql"])
def test_a_misnamed_file_is_refused(folder, name):
    (folder / name).write_text(ONE)
    with pytest.raises(ConfigurationError, match=name):
        read_migrations(folder)


@pytest.mark.parametrize("name", ["0004_gap.sql", "0002_double.sql"])
def test_a_gap_or_double_is_refused(folder, name):
    (folder / name).write_text(ONE)
    with pytest.raises(ConfigurationError, match="without gap or double"):
        read_migrations(folder)


PROCESS = """
import asyncio, sys
from orchestra.adapters.postgres import Postgres

async def main():
    sys.stdin.readline()
    postgres = await Postgres.connect(sys.argv[1])
    await postgres.close()

asyncio.run(main())
"""


def test_processes_that_start_together_migrate_once(database_url):
    async def scenario() -> None:
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PROCESS,
                database_url,
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            for _ in range(3)
        ]
        outcomes = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        assert [(process.returncode, stderr) for process, (_, stderr) in zip(processes, outcomes, strict=True)] == [
            (0, b"")
        ] * 3

    asyncio.run(scenario())
    assert value(database_url, "SELECT count(*) FROM schema_migrations") == len(read_migrations(packaged()))


def test_connections_that_start_together_migrate_once(database_url, folder):
    async def scenario() -> list[list[str]]:
        connections = [await asyncpg.connect(database_url) for _ in range(5)]
        applied = await asyncio.gather(*(migrate(each, read_migrations(folder)) for each in connections))
        for each in connections:
            await each.close()
        return applied

    assert sorted(asyncio.run(scenario())) == [[], [], [], [], ["0001_one.sql", "0002_two.sql"]]


def test_the_schema_holds_the_embeddings_we_make(database_url):
    async def scenario() -> None:
        await (await Postgres.connect(database_url)).close()

    asyncio.run(scenario())
    dimensions = "SELECT atttypmod FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attname = 'embedding'"
    assert value(database_url, dimensions) == limits.EMBEDDING_DIMENSIONS


OLD_TURN = """
INSERT INTO turns VALUES ('t1', 's1', 1, 'user:ada', 'c', 'Hello', 'Hi', 'unified', 'm', 1, 2, '{memory}', 1.5)
"""


def test_turns_from_before_sessions_had_profiles_are_read(database_url):
    async def scenario() -> None:
        connection = await asyncpg.connect(database_url)
        await migrate(connection, read_migrations(packaged())[:1])
        await connection.execute(OLD_TURN)
        await connection.close()
        postgres = await Postgres.connect(database_url)
        store = postgres.conversations
        old = Turn("t1", "s1", 1, "c", "Hello", "Hi", "unified", "m", 1.5, Usage(1, 2), ("memory",))
        assert await store.turns("s1") == (old,)
        assert (old.finish_reason, old.recalled) == ("stop", ())
        assert await store.head("s1") == ConversationHead("user:ada", 1.5, 1.5, 1)
        await store.set_profile("s1", "user:ada", Profile("Be brief."), revision=1, at=2.5)
        assert await store.head("s1") == ConversationHead("user:ada", 1.5, 2.5, 1, Profile("Be brief."), 1)
        await postgres.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["nonsense", "mysql://localhost/x", "postgresql://localhost:port/x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigurationError) as refusal:
        asyncio.run(Postgres.connect(url))
    assert refusal.value.field == "database_url"


def test_a_database_that_does_not_exist_is_refused(database_url):
    with pytest.raises(ConfigurationError, match="does_not_exist"):
        asyncio.run(Postgres.connect(database_url.replace("test_", "does_not_exist_")))


def test_a_server_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(StoreUnavailable):
        asyncio.run(Postgres.connect(f"postgresql://orchestra@/postgres?host={tmp_path}"))
