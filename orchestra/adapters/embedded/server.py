"""A server process of a data directory: is it there, does it answer, start it, stop it.

Whether it runs is asked of the kernel: the server inherits a file descriptor with an flock on its lock file, so the
lock is free exactly when the last of its processes is gone. The server's own pid file only says whom to signal; alone
it lies, after a crash, about a pid that something else has by now. (`/proc/<pid>/cwd` was rejected as the witness: root
in a container may not read it for another user's process.)
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestra.adapters.embedded.account import Account
from orchestra.adapters.embedded.errors import EmbeddedStoresError

REUSE_SECONDS_MAX = 10
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20
KILL_SECONDS_MAX = 10
PROBE_SECONDS_MAX = 1
POLL_SECONDS = 0.01
LOG_BYTES_MAX = 10_000_000
LOG_LINES_SHOWN = 12

# Keeps a reference to what this process started, until it can be reaped: a server may outlive its starter's interest.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Server:
    """One server of one data directory: what it is, not whether it runs."""

    name: str
    programs: tuple[str, ...]
    directory: Path
    pid_file: Path
    socket: Path
    hello: bytes
    welcome: bytes
    stop_signal: signal.Signals

    @property
    def lock_file(self) -> Path:
        return self.directory.with_suffix(".lock")

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def open_log(self) -> BinaryIO:
        """Its log, to append to: for its owner's eyes, since errors quote what was stored."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.old"))  # one of the same size stays: bounded
        self.log.touch(mode=0o600)
        return self.log.open("ab")

    def answers(self) -> bool:
        """Whether it greets a client as a server does that is ready for work."""
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(PROBE_SECONDS_MAX)
            client.connect(str(self.socket))
            client.sendall(self.hello)
            answer = b""
            # To the end: a server that loses its client in the middle of an answer complains in its log.
            while chunk := client.recv(4096):
                answer += chunk
            return answer.startswith(self.welcome)
        return False

    def try_lock(self) -> int | None:
        """The locked descriptor of a server none of whose processes runs, to be closed; else None."""
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def is_running(self) -> bool:
        if not self.lock_file.exists():
            return False
        lock = self.try_lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def claim(self) -> int | None:
        """The locked descriptor to start the server with; None where a healthy one runs. A mute one is killed."""
        deadline = time.monotonic() + REUSE_SECONDS_MAX
        while time.monotonic() < deadline:
            lock = self.try_lock()
            if lock is not None:
                self._sweep()
                return lock
            if self.answers():
                return None
            time.sleep(POLL_SECONDS)
        self.kill()
        return self.claim()

    def _sweep(self) -> None:
        # Nothing runs, so what names a pid is stale; PostgreSQL would refuse to start if another process had that pid.
        for path in (self.pid_file, self.socket, self.socket.with_name(self.socket.name + ".lock")):
            path.unlink(missing_ok=True)

    def launch(self, command: Sequence[str | Path], account: Account, lock: int) -> subprocess.Popen[bytes]:
        """Start it in its own session (Ctrl-C in our terminal is not meant for it), holding `lock` while it lives."""
        with self.open_log() as log:
            child = subprocess.Popen(
                command,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                **account.process_options,
            )
        _children.append(child)
        return child

    def await_ready(self, child: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.answers():
            if child.poll() is not None:
                raise self.failure(f"ended with code {child.returncode} instead of starting")
            if time.monotonic() > deadline:
                raise self.failure(f"did not answer within {START_SECONDS_MAX} s of its start")
            time.sleep(POLL_SECONDS)

    def pid(self) -> int | None:
        """Whom to signal, while it runs."""
        try:
            pid = int(self.pid_file.read_text().split(maxsplit=1)[0])
            # Seen from another container the number may be anybody's.
            return pid if Path(f"/proc/{pid}/comm").read_text().strip() in self.programs else None
        except (OSError, ValueError, IndexError):
            return None

    def kill(self) -> None:
        """SIGKILL for it and the processes it forked; both stores keep what they acknowledged."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                for victim in (pid, *map(int, children)):
                    os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS_MAX
        while self.is_running():
            if time.monotonic() > deadline:
                raise self.failure(
                    f"runs but does not answer, and cannot be killed from here; whoever holds {self.lock_file} is it: "
                    f"end that (`fuser {self.lock_file}` names it; it may live in another container)"
                )
            time.sleep(POLL_SECONDS)

    def failure(self, what: str) -> EmbeddedStoresError:
        """An error that names this server and shows the end of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        except OSError:
            lines = []
        said = "\n  ".join(lines) or "(nothing)"
        return EmbeddedStoresError(
            f"the private {self.name} in {self.directory} {what}. {self.log} ends:\n  {said}\n"
            "Cure what it names, choose another data directory, or set DATABASE_URL and REDIS_URL."
        )


def stop(*servers: Server) -> None:
    """Stop the servers that run, at once; those that take too long are killed.

    Raises
    ------
    EmbeddedStoresError
        If one survives even that.
    """
    deadline = time.monotonic() + STOP_SECONDS_MAX
    asked: set[int] = set()
    while running := [server for server in servers if server.is_running()]:
        if time.monotonic() > deadline:
            for server in running:
                server.kill()
            break
        for server in running:
            # Just started, it may not have written its pid yet.
            pid = server.pid()
            if pid is not None and pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, server.stop_signal)
                asked.add(pid)
        time.sleep(POLL_SECONDS)
    reap()


def reap() -> None:
    """Collect what this process started and what has ended since."""
    _children[:] = [child for child in _children if child.poll() is None]
