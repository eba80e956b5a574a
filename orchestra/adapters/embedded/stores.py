"""Both servers together: started once for a data directory, shared by all its users, stopped by the last."""

import asyncio
import atexit
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from orchestra.adapters.embedded import postgres, redis, server
from orchestra.adapters.embedded.account import Account
from orchestra.adapters.embedded.errors import EmbeddedStoresError
from orchestra.adapters.embedded.ownership import Ownership, locked, new_user


@dataclass(frozen=True)
class EmbeddedStores:
    """A running PostgreSQL with pgvector and a running Redis, and this process's share in them.

    Attributes
    ----------
    database_url : str
        For asyncpg. The user is a superuser, so that ``CREATE EXTENSION vector`` works.
    redis_url : str
        For redis-py.
    data_dir : Path
        Where both keep their data and logs.
    """

    database_url: str
    redis_url: str
    data_dir: Path
    _user: str = field(repr=False)
    _pid: int = field(repr=False, default_factory=os.getpid)

    def stop(self) -> None:
        """Give up this share; the last one stops both servers and waits until they are gone. Again is harmless.

        Raises
        ------
        EmbeddedStoresError
            If a server cannot be stopped, even by SIGKILL.
        """
        if os.getpid() != self._pid or not self.data_dir.exists():
            return  # a fork of the owner leaves through the same `finally`; a deleted directory has no servers
        with locked(self.data_dir):
            account = Account.of(self.data_dir)
            owned = Ownership.read(self.data_dir)
            if self._user in owned.users:
                _release(self.data_dir, account, owned, self._user)
        atexit.unregister(self.stop)


def start(data_dir: Path) -> EmbeddedStores:
    """Start PostgreSQL and Redis under a data directory, or join those that run there.

    The servers stop with the last user's `EmbeddedStores.stop`, which also runs when the interpreter exits; call
    `exit_on_sigterm` first, so that it exits on SIGTERM. What a killed owner left running is reused.

    Parameters
    ----------
    data_dir : Path
        Created (mode 0700) where it does not exist. As root, the servers run as its owner, or else as nobody.

    Raises
    ------
    EmbeddedStoresError
        If a package is missing or a server does not start within a bound; it names the cure and shows the log's end.
    """
    data_dir = data_dir.expanduser().absolute()
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(data_dir):
            account = Account.of(data_dir)
            return _join(data_dir, account)
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedStoresError(
            f"cannot use {data_dir} for the private PostgreSQL and Redis ({error}); "
            f"make it a directory that user id {os.geteuid()} can write, or choose another data directory"
        ) from error


@contextlib.asynccontextmanager
async def embedded_stores(data_dir: Path) -> AsyncIterator[EmbeddedStores]:
    """Use PostgreSQL and Redis under a data directory for the length of a block; see `start`.

    Raises
    ------
    EmbeddedStoresError
        As `start` and `EmbeddedStores.stop`.
    """
    starting = asyncio.ensure_future(asyncio.to_thread(start, data_dir))
    try:
        yield await asyncio.shield(starting)
    finally:
        # Also when we were cancelled meanwhile: a thread cannot be, and what it started must not stay.
        stores = await starting
        await asyncio.to_thread(stores.stop)


def exit_on_sigterm() -> None:
    """Make SIGTERM leave this process as `sys.exit(143)` does: through every `finally` and atexit.

    For the main thread of a process that owns stores, before it starts them. Without it SIGTERM ends the process on
    the spot and the servers stay, to be reused by the next start.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off the stop, which is bounded
    raise SystemExit(128 + number)


def _join(data_dir: Path, account: Account) -> EmbeddedStores:
    server.reap()
    owned = Ownership.read(data_dir)
    sockets = Path(owned.sockets)
    if not owned.sockets or not account.owns_socket_directory(sockets):
        sockets = account.socket_directory()
    user = new_user()
    # Recorded first: if we are killed from here on, the next start knows where to look.
    owned = Ownership((*owned.users, user), str(sockets))
    try:
        owned.write(data_dir, account)
        both = _describe(data_dir, sockets)
        _ensure(both, account)
    except BaseException:  # a failed start, Ctrl-C or SIGTERM leaves nothing behind that only it would use
        _release(data_dir, account, owned, user)
        raise
    for one in both:
        for path in (data_dir / "lock", one.lock_file, one.log):
            account.give(path)  # root on a user's directory leaves nothing there that this user cannot open later
    stores = EmbeddedStores(postgres.url(both[0]), redis.url(both[1]), data_dir, user)
    atexit.register(stores.stop)
    return stores


def _describe(data_dir: Path, sockets: Path) -> tuple[server.Server, server.Server]:
    return postgres.describe(data_dir, sockets), redis.describe(data_dir, sockets)


def _ensure(both: tuple[server.Server, server.Server], account: Account) -> None:
    """Launch what does not run, side by side, and wait for it."""
    launched = []
    # Redis first: it loads its data while PostgreSQL initialises.
    for one, launch in ((both[1], redis.launch), (both[0], postgres.launch)):
        lock = one.claim()
        if lock is None:
            continue
        try:
            launched.append((one, launch(one, account, lock)))
        finally:
            os.close(lock)  # the server has its own copy, and the lock with it
    for one, child in launched:
        one.await_ready(child)


def _release(data_dir: Path, account: Account, owned: Ownership, user: str) -> None:
    users = tuple(other for other in owned.users if other != user)
    sockets = owned.sockets
    if not users:
        server.stop(*_describe(data_dir, Path(sockets)))
        shutil.rmtree(sockets, ignore_errors=True)
        sockets = ""
    Ownership(users, sockets).write(data_dir, account)
