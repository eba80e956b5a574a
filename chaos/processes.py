"""Real processes of this machine: a live service on a free port, and the end of it, by process id.

As a command it runs another command beside a fresh service, whose address replaces ``{url}``, and leaves with that
command's status:

    python -m chaos.processes locust --headless --host {url}
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestra.adapters.embedded import exit_on_sigterm

HOST = "127.0.0.1"
SERVICE = (sys.executable, "-m", "orchestra", "serve")
READY_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 30.0
LOG_LINES_SHOWN = 20


class ServiceFailed(RuntimeError):
    """A service did not come up, or did not go down, in time; the message has the end of its log."""


@dataclass(frozen=True)
class LiveService:
    """A running `orchestra serve`.

    Parameters
    ----------
    url : str
        Base address without a trailing slash.
    process : subprocess.Popen
        Its main process.
    log : Path
        What it wrote.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """End the main process at once: SIGKILL, so that no clean-up runs."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and return its exit status; raises `ServiceFailed` where it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServiceFailed(f"the service did not stop within {STOP_SECONDS_MAX:g} s\n{self.log_end()}") from None

    def log_end(self) -> str:
        """Return the last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])


def start_service(
    data_dir: Path,
    environ: Mapping[str, str] | None = None,
    *,
    port: int | None = None,
    command: Sequence[str] = SERVICE,
    ready_seconds_max: float = READY_SECONDS_MAX,
) -> LiveService:
    """Start a service and return once it is ready.

    Parameters
    ----------
    data_dir : Path
        Where its stores and its log go.
    environ : mapping, optional
        Settings; those of this process's own environment are left out.
    port : int, optional
        A free one where None.
    command : sequence of str
        What to run: it listens where ORCHESTRA_HOST and ORCHESTRA_PORT say, and answers 200 at ``/readyz`` once ready.
    ready_seconds_max : float

    Raises
    ------
    ServiceFailed
        It ended, or was not ready in time.
    """
    port = port or free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "service.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=data_dir,  # where no orchestra.toml of the caller's lies
            env={
                **_neutral(os.environ),
                "ORCHESTRA_HOST": HOST,
                "ORCHESTRA_PORT": str(port),
                "ORCHESTRA_DATA_DIR": str(data_dir),
                **(environ or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = LiveService(f"http://{HOST}:{port}", process, log)
    try:
        _await_ready(service, ready_seconds_max)
    except BaseException:
        service.stop()
        raise
    return service


def _neutral(environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` without settings: what runs here must not touch the stores or the provider of a deployment."""
    named = ("REDIS_URL", "DATABASE_URL")
    return {name: value for name, value in environ.items() if name not in named and not name.startswith("ORCHESTRA_")}


def _await_ready(service: LiveService, seconds_max: float) -> None:
    end = time.monotonic() + seconds_max
    while time.monotonic() < end:
        if service.process.poll() is not None:
            raise ServiceFailed(f"the service ended with status {service.process.returncode}\n{service.log_end()}")
        try:
            with urllib.request.urlopen(f"{service.url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise ServiceFailed(f"the service was not ready within {seconds_max:g} s\n{service.log_end()}")


@contextmanager
def live_service(
    data_dir: Path, environ: Mapping[str, str] | None = None, *, command: Sequence[str] = SERVICE
) -> Iterator[LiveService]:
    """Run a service for as long as the context lasts; parameters and errors as in `start_service`."""
    service = start_service(data_dir, environ, command=command)
    try:
        yield service
    finally:
        service.stop()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: Sequence[str], *, service: Sequence[str] = SERVICE) -> int:
    """Run `arguments` beside a fresh service and return its status, or 1 where the service fails."""
    exit_on_sigterm()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="orchestra-live-") as folder,
            live_service(Path(folder), command=service) as live,
        ):
            command = [argument.replace("{url}", live.url) for argument in arguments]
            status = subprocess.run(command, check=False).returncode
            return status if status >= 0 else 128 - status  # as a shell tells of a signal
    except (ServiceFailed, FileNotFoundError) as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
