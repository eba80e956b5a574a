"""The account that runs the servers, and how it reaches what it needs.

PostgreSQL refuses to run as root. So root starts both servers as the owner of the data directory or, where that is
root, as `nobody`. That account often cannot reach the data directory (below a /root of mode 0700, say) nor the virtual
environment:

* data: the servers start *inside* their directory and name it `/proc/self/cwd`; the kernel asks for rights on the
  path only when it is walked, which root has done. Opening the parents to everyone was rejected: they are not ours.
* programs: what the account cannot execute is copied beside the sockets.
* sockets: in a directory of mode 0700 below the temporary directory, which everyone can reach; its path is short
  however long the data directory's is (a socket's path has at most 107 bytes).
"""

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestra.adapters.embedded.errors import EmbeddedStoresError

SOCKET_PATH_BYTES_MAX = 107
SOCKET_NAME_BYTES_MAX = len("/.s.PGSQL.5432")
PROGRAM_SECONDS_MAX = 10

_UNUSED = shutil.ignore_patterns("include", "pkgconfig", "*.a")


@dataclass(frozen=True)
class Account:
    """The user and group that run the servers and own their files."""

    uid: int
    gid: int
    name: str
    leaves_root: bool

    @classmethod
    def of(cls, data_dir: Path) -> "Account":
        """The account for an existing data directory, which its user can write."""
        is_root = os.geteuid() == 0
        uid = (data_dir.stat().st_uid or pwd.getpwnam("nobody").pw_uid) if is_root else os.geteuid()
        try:
            entry = pwd.getpwuid(uid)
        except KeyError as error:
            raise EmbeddedStoresError(
                f"user id {uid} has no entry in /etc/passwd, without which PostgreSQL does not start; "
                "add one, run as a user that has one, or set DATABASE_URL and REDIS_URL"
            ) from error
        gid = entry.pw_gid if is_root else os.getegid()
        return cls(uid, gid, entry.pw_name, leaves_root=is_root)

    @property
    def process_options(self) -> dict[str, Any]:
        """What makes a `subprocess` run as this account, with nothing of our environment (PGPORT, LC_ALL, ...)."""
        options: dict[str, Any] = {"env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}, "umask": 0o077}
        if self.leaves_root:
            options |= {"user": self.uid, "group": self.gid, "extra_groups": ()}
        return options

    def give(self, path: Path) -> None:
        """Make this account the owner of a file or a whole tree."""
        if not self.leaves_root:
            return
        for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
            os.chown(file, self.uid, self.gid, follow_symlinks=False)

    def runnable(self, root: Path, program: Path, parts: Sequence[Path], copies: Path) -> Path:
        """A program that this account can execute: the one at hand, or else a copy.

        Parameters
        ----------
        root : Path
            The directory that `program` and `parts` are relative to.
        program : Path
            The program's file.
        parts : sequence of Path
            What the program needs to run, itself included: files and directory trees.
        copies : Path
            The directory that takes the place of `root`, if a copy is needed.

        Raises
        ------
        EmbeddedStoresError
            If not even the copy can be executed.
        """
        if self._can_run(root / program):
            return root / program
        shutil.rmtree(copies, ignore_errors=True)
        for part in parts:
            (copies / part).parent.mkdir(parents=True, exist_ok=True)
            if (root / part).is_dir():
                shutil.copytree(root / part, copies / part, symlinks=True, ignore=_UNUSED)
            else:
                shutil.copy2(root / part, copies / part)
        self.give(copies)
        if not self._can_run(copies / program):
            raise EmbeddedStoresError(
                f"user {self.name} can execute neither {root / program} nor its copy in {copies}; "
                "let TMPDIR name a directory that allows execution, or set DATABASE_URL and REDIS_URL"
            )
        return copies / program

    def _can_run(self, program: Path) -> bool:
        try:
            subprocess.run(
                [str(program), "--version"],
                check=True,
                capture_output=True,
                cwd="/",
                timeout=PROGRAM_SECONDS_MAX,
                **self.process_options,
            )
        except PermissionError:
            return False
        except subprocess.SubprocessError as error:
            raise EmbeddedStoresError(
                f"{program} does not run on this machine ({error}); set DATABASE_URL and REDIS_URL instead"
            ) from error
        return True

    def socket_directory(self) -> Path:
        """A new, short directory that only this account (and root) can enter."""
        for parent in map(Path, dict.fromkeys((tempfile.gettempdir(), "/tmp", "/dev/shm"))):
            if not self._can_enter(parent):
                continue
            directory = Path(tempfile.mkdtemp(prefix="orchestra-", dir=parent))
            if len(os.fsencode(directory)) + SOCKET_NAME_BYTES_MAX <= SOCKET_PATH_BYTES_MAX:
                self.give(directory)
                return directory
            directory.rmdir()
        raise EmbeddedStoresError(
            f"no directory for sockets that user {self.name} can reach and whose path is short enough; "
            "let TMPDIR name one, such as /tmp"
        )

    def _can_enter(self, directory: Path) -> bool:
        if not os.access(directory, os.W_OK | os.X_OK):
            return False
        everyone = (path.stat().st_mode & stat.S_IXOTH for path in (directory, *directory.parents))
        return not self.leaves_root or all(everyone)

    def owns_socket_directory(self, directory: Path) -> bool:
        """Whether a recorded directory is still ours: in a shared temporary directory anyone may have made it anew."""
        try:
            found = directory.lstat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and found.st_uid == self.uid and stat.S_IMODE(found.st_mode) == 0o700
