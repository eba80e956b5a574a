"""Turns and memories share commits, each caller gets its own outcome, and what was acknowledged survives."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import asyncpg
import psutil
import pytest

from orchestra import limits
from orchestra.adapters.embedded import start
from orchestra.adapters.pgvector import PgvectorMemories
from orchestra.adapters.postgres import PING_SECONDS, Postgres
from orchestra.errors import InvalidRequest, SessionUnknown, StaleSession, StoreUnavailable
from orchestra.model import Memory, Profile, Turn

UNIT = (1.0,) + (0.0,) * (limits.EMBEDDING_DIMENSIONS - 1)


def turn(session_id: str, number: int = 1, message: str = "Hello", turn_id: str | None = None) -> Turn:
    return Turn(turn_id or f"{session_id}-{number}", session_id, number, "c", message, "Hi", "unified", "offline", 1.0)


def memory(memory_id: str, text: str = "Hello") -> Memory:
    return Memory(memory_id, "user:ada", text, UNIT, 1.0)


@contextlib.asynccontextmanager
async def connected(database_url: str):
    postgres = await Postgres.connect(database_url)
    try:
        yield postgres
    finally:
        await postgres.close()


async def commits(postgres: Postgres) -> int:
    """Count the transactions that wrote what is stored; xmin names a row's."""
    written = "SELECT count(DISTINCT xmin::text) FROM (SELECT xmin FROM turns UNION ALL SELECT xmin FROM memories) x"
    [record] = await postgres.fetch(written)
    return record[0]


async def deadlocks(database_url: str) -> int:
    connection = await asyncpg.connect(database_url)
    try:
        await all_others_gone(connection)  # and have handed in what they counted
        return await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    finally:
        await connection.close()


async def all_others_gone(connection) -> None:
    """Wait until no other connection to the database is left: a backend takes a moment to notice."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    for _ in range(1000):
        if await connection.fetchval(others) == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("connections are left")


def test_concurrent_writes_share_commits(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            memories = PgvectorMemories(postgres)
            await asyncio.gather(
                *(postgres.conversations.append(turn(f"s{n}"), "o") for n in range(200)),
                *(memories.remember(memory(f"m{n}")) for n in range(200)),
            )
            assert len(await postgres.fetch("SELECT id FROM turns")) == 200
            assert len(await postgres.fetch("SELECT id FROM memories")) == 200
            assert await commits(postgres) == postgres.writes.batches == 1

    asyncio.run(scenario())


def test_writers_that_come_at_any_time_share_commits(database_url):
    async def writer(postgres, n):
        for number in range(1, 11):
            await postgres.conversations.append(turn(f"s{n}", number), "o")

    async def scenario():
        async with connected(database_url) as postgres:
            await asyncio.gather(*(writer(postgres, n) for n in range(40)))
            assert len(await postgres.fetch("SELECT id FROM turns")) == 400
            assert await commits(postgres) <= 40

    asyncio.run(scenario())


def test_a_lone_write_is_one_commit_and_is_durable_when_it_returns(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            for number in range(1, 6):
                await postgres.conversations.append(turn("s", number), "o")
                assert len(await postgres.fetch("SELECT id FROM turns")) == number
            assert await commits(postgres) == 5

    asyncio.run(scenario())


@pytest.mark.parametrize("poison", ["a\0b", "\ud800"], ids=["NUL", "lone surrogate"])
def test_one_that_cannot_be_stored_fails_alone(database_url, poison):
    async def scenario():
        async with connected(database_url) as postgres:
            memories = PgvectorMemories(postgres)
            writes = [postgres.conversations.append(turn(f"s{n}", message=poison * (n == 70)), "o") for n in range(100)]
            writes += [memories.remember(memory(f"m{n}", text=poison * (n == 7))) for n in range(20)]
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
            assert {n: type(outcome) for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)} == {
                70: InvalidRequest,
                107: InvalidRequest,
            }
            assert "turn s70-1 cannot be stored" in str(outcomes[70])
            assert isinstance(outcomes[70].__cause__, asyncpg.PostgresError)
            assert len(await postgres.fetch("SELECT id FROM turns")) == 99
            assert len(await postgres.fetch("SELECT id FROM memories")) == 19

    asyncio.run(scenario())


def test_a_lost_race_is_told_apart_from_a_repetition_within_one_commit(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            await postgres.conversations.append(turn("s", 1), "o")
            outcomes = await asyncio.gather(
                postgres.conversations.append(turn("s", 1), "o"),
                postgres.conversations.append(turn("s", 1, turn_id="other"), "o"),
                postgres.conversations.append(turn("s", 2), "o"),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [Turn, StaleSession, Turn]
            assert postgres.writes.batches == 2

    asyncio.run(scenario())


def test_two_that_write_the_same_never_deadlock(database_url):
    async def scenario():
        before = await deadlocks(database_url)
        async with connected(database_url) as one, connected(database_url) as other:
            for batch in range(20):
                names = [f"{batch}-{n}" for n in range(400)]
                await asyncio.gather(
                    *(one.conversations.append(turn(name), "o") for name in names),
                    *(other.conversations.append(turn(name), "o") for name in reversed(names)),
                )
            assert len(await one.fetch("SELECT id FROM turns")) == 8000
        assert await deadlocks(database_url) == before

    asyncio.run(scenario())


def test_a_cancelled_writer_loses_nobody_elses(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            tasks = [asyncio.create_task(postgres.conversations.append(turn(f"s{n}"), "o")) for n in range(50)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert outcomes[1::2] == [turn(f"s{n}") for n in range(1, 50, 2)]
            stored = await postgres.fetch("SELECT id FROM turns")
            assert {f"s{n}-1" for n in range(1, 50, 2)} <= {record[0] for record in stored}
            await postgres.conversations.append(turn("after"), "o")

    asyncio.run(scenario())


def test_closing_commits_what_waits_and_leaves_no_connection(database_url):
    async def scenario():
        postgres = await Postgres.connect(database_url)
        tasks = [asyncio.create_task(postgres.conversations.append(turn(f"s{n}"), "o")) for n in range(20)]
        await asyncio.sleep(0)
        await postgres.close()
        assert await asyncio.gather(*tasks) == [turn(f"s{n}") for n in range(20)]
        with pytest.raises(StoreUnavailable):
            await postgres.conversations.append(turn("late"), "o")
        with pytest.raises(StoreUnavailable):
            await postgres.conversations.turns("s1")
        connection = await asyncpg.connect(database_url)
        assert await connection.fetchval("SELECT count(*) FROM turns") == 20
        await all_others_gone(connection)
        await connection.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_connection_that_is_cut_is_replaced_unnoticed(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            await postgres.conversations.append(turn("before"), "o")
            for n in range(5):
                connection = await asyncpg.connect(database_url)
                await connection.execute(
                    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await connection.close()
                await asyncio.gather(
                    postgres.conversations.append(turn(f"s{n}"), "o"), postgres.conversations.turns("before")
                )
            assert len(await postgres.fetch("SELECT id FROM turns")) == 6

    asyncio.run(scenario())


async def waiting(watcher, count: int):
    """Return the backends that wait for a lock, once there are so many."""
    for _ in range(400):
        backends = await watcher.fetch(WAITING)
        if len(backends) == count:
            return backends
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(backends)} wait, not {count}")


WAITING = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_a_commit_and_a_read_that_are_cut_while_under_way_are_done_again(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            await postgres.conversations.append(turn("before"), "o")
            blocker, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE turns IN ACCESS EXCLUSIVE MODE")
                append = asyncio.create_task(postgres.conversations.append(turn("s"), "o"))
                read = asyncio.create_task(postgres.conversations.turns("before"))
                for record in await waiting(watcher, 2):
                    assert await watcher.fetchval("SELECT pg_terminate_backend($1, 1000)", record["pid"])
            await blocker.close()
            await watcher.close()
            assert await append == turn("s")
            assert await read == (turn("before"),)
            assert await postgres.conversations.turns("s") == (turn("s"),)

    asyncio.run(scenario())


def test_a_deletion_waits_for_turns_that_others_are_appending(database_url):
    """A turn that another process has sent but not committed is deleted, too; one that comes later is refused."""

    async def scenario():
        async with connected(database_url) as here, connected(database_url) as there:
            await here.conversations.append(turn("s", 1), "o")
            other, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
            async with other.transaction():
                await other.execute(
                    "INSERT INTO turns SELECT 's-2', session_id, 2, owner, correlation_id, message, reply, engine, "
                    "model, prompt_tokens, completion_tokens, degraded, at FROM turns"
                )
                deletion = asyncio.create_task(here.conversations.delete("s"))
                await waiting(watcher, 1)
                late = asyncio.create_task(there.conversations.append(turn("s", 3), "o"))
                await waiting(watcher, 2)
                assert not deletion.done()
            assert sorted(await deletion) == ["s-1", "s-2"]
            with pytest.raises(SessionUnknown):
                await late
            assert await here.conversations.turns("s") == ()
            await other.close()
            await watcher.close()

    asyncio.run(scenario())


def test_a_change_that_is_cut_while_under_way_is_made_again_once(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            await postgres.conversations.set_profile("s", "o", Profile("1"), revision=1, at=1.0)
            blocker, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE")
                change = asyncio.create_task(
                    postgres.conversations.set_profile("s", "o", Profile("2"), revision=2, at=2.0)
                )
                [backend] = await waiting(watcher, 1)
                assert await watcher.fetchval("SELECT pg_terminate_backend($1, 1000)", backend["pid"])
            await change
            assert (await postgres.conversations.head("s")).profile == Profile("2")
            await blocker.close()
            await watcher.close()

    asyncio.run(scenario())


def test_a_change_that_is_refused_fails_alone_and_after_what_was_submitted_before(database_url):
    async def scenario():
        async with connected(database_url) as postgres:
            memories = PgvectorMemories(postgres)
            outcomes = await asyncio.gather(
                postgres.conversations.append(turn("s"), "o"),
                memories.remember(memory("m")),
                postgres.change(("SELECT 1 / 0",)),
                memories.forget(["m"]),
                postgres.change(("SELECT 7 AS seven",)),
                return_exceptions=True,
            )
            assert postgres.writes.batches == 1
            assert outcomes[0] == turn("s")
            assert isinstance(outcomes[2], InvalidRequest)
            assert outcomes[4][0]["seven"] == 7
            assert await postgres.fetch("SELECT id FROM memories") == []

    asyncio.run(scenario())


def postmaster(data_dir: Path) -> psutil.Process:
    return psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0]))


def test_acknowledged_turns_survive_a_kill_and_the_connections_its_end(own_stores):
    acknowledged: list[Turn] = []

    async def writer(postgres, n, killed):
        for number in range(1, 100_000):
            mine = turn(f"s{n}", number)
            try:
                await postgres.conversations.append(mine, "o")
            except StoreUnavailable:
                return
            acknowledged.append(mine)
            if len(acknowledged) == 500:
                os.kill(postmaster(own_stores.data_dir).pid, signal.SIGKILL)
                killed.set()

    async def scenario():
        killed = asyncio.Event()
        async with connected(own_stores.database_url) as postgres:
            await asyncio.gather(*(writer(postgres, n, killed) for n in range(20)))
            assert killed.is_set()
            with pytest.raises(StoreUnavailable) as outage:
                await postgres.conversations.append(turn("meanwhile"), "o")
            assert outage.value.__cause__ is not None
            with pytest.raises(StoreUnavailable):
                await postgres.ping()

            again = await asyncio.to_thread(start, own_stores.data_dir)
            try:
                await postgres.ping()
                await postgres.conversations.append(turn("afterwards"), "o")
                ids = [record[0] for record in await postgres.fetch("SELECT id FROM turns")]
                assert len(ids) == len(set(ids))
                assert {each.id for each in acknowledged} <= set(ids)
            finally:
                await asyncio.to_thread(again.stop)

    asyncio.run(scenario())


def test_a_server_that_hangs_makes_nobody_hang(own_stores):
    async def scenario():
        async with connected(own_stores.database_url) as postgres:
            await postgres.conversations.append(turn("before"), "o")
            server = postmaster(own_stores.data_dir)
            family = [server, *server.children(recursive=True)]
            for process in family:
                process.suspend()
            try:
                loop = asyncio.get_running_loop()
                started = loop.time()
                with pytest.raises(StoreUnavailable, match="2 s"):
                    await postgres.ping()
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await postgres.conversations.append(turn("meanwhile"), "o")
                assert loop.time() - started < 3 * PING_SECONDS
            finally:
                for process in family:
                    process.resume()
            await postgres.conversations.append(turn("afterwards"), "o")
            await postgres.ping()

    asyncio.run(scenario())
