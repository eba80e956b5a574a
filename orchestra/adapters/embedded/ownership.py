"""Who uses the servers of a data directory: one lock around every change, and a list of the living.

A user is a process, told apart by pid, start time and boot, so that a recycled pid does not count, and a number, so
that one process may use the servers more than once.
"""

import contextlib
import fcntl
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestra.adapters.embedded.account import Account
from orchestra.adapters.embedded.errors import EmbeddedStoresError

# One start or stop at its slowest: everything else in line waits for it.
LOCK_SECONDS_MAX = 120
POLL_SECONDS = 0.01

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Ownership:
    """What is recorded of a data directory: its users, and where the sockets are while it has any."""

    users: tuple[str, ...] = ()
    sockets: str = ""

    @classmethod
    def read(cls, data_dir: Path) -> "Ownership":
        """What is recorded, without the users that have died."""
        try:
            recorded = json.loads((data_dir / "users.json").read_text())
            users = tuple(user for user in recorded["users"] if _lives(user))
            return cls(users, recorded["sockets"])
        except (FileNotFoundError, ValueError, KeyError):
            return cls()  # never used, or torn by a power cut, which no user survived

    def write(self, data_dir: Path, account: Account) -> None:
        """Record it, whole or not at all."""
        draft = data_dir / "users.json.draft"
        draft.write_text(json.dumps(asdict(self)))
        account.give(draft)
        draft.replace(data_dir / "users.json")


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Alone with the data directory, among all processes and threads.

    Raises
    ------
    EmbeddedStoresError
        If another one keeps it for `LOCK_SECONDS_MAX`.
    """
    path = data_dir / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS_MAX
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise EmbeddedStoresError(
                        f"another process has been starting or stopping the servers of {data_dir} for over "
                        f"{LOCK_SECONDS_MAX} s; `fuser {path}` names it: end it, and try again"
                    ) from error
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(lock)


def new_user() -> str:
    """This process, as one more user."""
    return f"{_identity(os.getpid())} {next(_numbers)}"


def _lives(user: str) -> bool:
    identity, _, _ = user.rpartition(" ")
    return identity == _identity(int(user.split(maxsplit=1)[0]))


def _identity(pid: int) -> str | None:
    try:
        # proc(5): the command in parentheses may hold anything; then state is field 3 and starttime field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{pid} {fields[19]} {boot}"
