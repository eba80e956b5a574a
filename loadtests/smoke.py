"""`make load`: start the service with stores of its own, let Locust chat with it for a while, stop it.

Arguments are handed to Locust, such as ``--users 50 --run-time 2m --gate-p95-ms-max 300``. The exit code is Locust's;
a service that does not come up, or not down, is 1.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

START_SECONDS_MAX = 90.0
STOP_SECONDS_MAX = 30.0
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
LOCUST = (sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--stop-timeout", "5")
PROFILE = ("--users", "10", "--spawn-rate", "10", "--run-time", "20s")
SERVICE = (sys.executable, "-m", "orchestra", "serve")


class ServiceFailed(Exception):
    """The service under load did not come up, or did not stop when it was told to."""


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def service(command: Sequence[str] = SERVICE, *, start_seconds_max: float = START_SECONDS_MAX) -> Iterator[str]:
    """Run the service on a free port with a data directory of its own; yield its address once it is ready.

    Raises
    ------
    ServiceFailed
        It ended or was not ready in time, or it had to be killed at the end.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="orchestra-load-", ignore_cleanup_errors=True) as data_dir:
        environ = os.environ | {
            "ORCHESTRA_HOST": "127.0.0.1",
            "ORCHESTRA_PORT": str(port),
            "ORCHESTRA_DATA_DIR": data_dir,
            "ORCHESTRA_LOG_LEVEL": "warning",
        }
        # a session of its own, so that Ctrl-C reaches the service only through the orderly stop below
        with subprocess.Popen(command, env=environ, start_new_session=True) as process:
            try:
                _wait_ready(process, f"http://127.0.0.1:{port}/readyz", start_seconds_max)
                yield f"http://127.0.0.1:{port}"
            finally:
                _stop(process)


def _wait_ready(process: "subprocess.Popen[bytes]", url: str, seconds_max: float) -> None:
    give_up = time.monotonic() + seconds_max
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServiceFailed(f"the service ended with status {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=2.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServiceFailed(f"the service was not ready within {seconds_max:g} s: {url} never answered 200")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise ServiceFailed(f"the service did not stop within {STOP_SECONDS_MAX:g} s of SIGTERM; killed it") from None


def _interrupt(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # so that the service is stopped on the way out


def main(arguments: Sequence[str], *, command: Sequence[str] = SERVICE, locust: Sequence[str] = LOCUST) -> int:
    """Run the smoke profile with `arguments` added, and return the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with service(command) as host:
            return subprocess.run((*locust, *PROFILE, "--host", host, *arguments), check=False).returncode
    except ServiceFailed as error:
        sys.stderr.write(f"load: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
