"""The smoke run starts a service, waits for it within bounds, and always stops it."""

import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest

from loadtests.smoke import ServiceFailed, service

READY_AFTER = """
import http.server, os, pathlib, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        type(self).asked += 1
        self.send_response(200 if self.asked > 2 else 503)
        self.end_headers()
        self.wfile.write(b"x")
    def log_message(self, *_): pass
data = pathlib.Path(os.environ["ORCHESTRA_DATA_DIR"])
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {data} {data.is_dir()}")
http.server.HTTPServer((os.environ["ORCHESTRA_HOST"], int(os.environ["ORCHESTRA_PORT"])), Handler).serve_forever()
"""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_service_is_ready_has_its_own_data_and_is_gone_afterwards(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with service((sys.executable, "-c", READY_AFTER, str(note))) as address:
        pid, data_dir, was_made = note.read_text().split()
        assert was_made == "True"
        with urllib.request.urlopen(f"{address}/readyz", timeout=10) as answer:
            assert answer.status == 200
    assert not _alive(int(pid))
    assert not Path(data_dir).exists()


def test_service_is_stopped_when_the_load_fails(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with pytest.raises(ZeroDivisionError), service((sys.executable, "-c", READY_AFTER, str(note))):
        raise ZeroDivisionError
    assert not _alive(int(note.read_text().split()[0]))


def test_service_that_ends_is_reported() -> None:
    with (
        pytest.raises(ServiceFailed, match="ended with status 3 before it was ready"),
        service((sys.executable, "-c", "raise SystemExit(3)")),
    ):
        pytest.fail("never ready")


def test_service_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(600)"
    with (
        pytest.raises(ServiceFailed, match=r"not ready within 2 s: http://127.0.0.1:\d+/readyz"),
        service((sys.executable, "-c", code), start_seconds_max=2.0),
    ):
        pytest.fail("never ready")
    assert not note.exists() or not _alive(int(note.read_text()))


def test_sigterm_during_the_load_stops_the_service_too(tmp_path: Path) -> None:
    note = tmp_path / "note"
    code = textwrap.dedent(f"""
        import sys
        from loadtests import smoke
        command = (sys.executable, "-c", {READY_AFTER!r}, {str(note)!r})
        locust = (sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(600)")
        sys.exit(smoke.main([], command=command, locust=locust))
    """)
    with subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line == "loading\n" for line in process.stdout)
        process.terminate()
        assert process.wait(60) == 128 + 15
    assert not _alive(int(note.read_text().split()[0]))
